"""The proof at load: whether a running engine makes the prompts that the contract of its model says.

It is asked over its own HTTP side, as it will be by requests: to tokenise texts, to show what it makes of each
conversation of the battery, to end where the contract ends, and to take prompts that are finished. What comes of it is
kept for the next start of the same engine with the same command line.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Protocol

import httpx

from backends.adapter import Adapter, LaunchSpec
from backends.asking import Ask, asking, outcome_of
from backends.diagnosis import Diagnosis
from backends.prompting import CallRefused, Prompting
from backends.proof_records import ProofRecords, proof_key
from backends.proof_work import ProofWork
from backends.render_pool import RenderChildFailed, RenderPool, TemplateStopped
from backends.settings import BackendSettings
from chat_templates.battery import FEATURES
from chat_templates.model_folder import ModelFolderUnreadable
from chat_templates.proof import Proof
from chat_templates.tokenizing import TextUnencodable, Tokenizer

LIMIT_S = 300.0
"""The whole proof. It takes seconds, unless the model is slow to answer."""


class ProofFailed(Exception):
    """Nothing was proven, nor the opposite: the engine did not answer, or a prompt could not be made here."""


class Prover(Protocol):
    """What a start asks for a proof."""

    async def prove(
        self, backend: BackendSettings, adapter: Adapter, spec: LaunchSpec, say: Callable[[str], None]
    ) -> Proof:
        """The proof of the engine that runs as *spec*, its progress told to *say*. *backend* has a contract.

        Raises ProofFailed.
        """


class LocalProver:
    """Proofs over HTTP, with prompts rendered in *pool*, and kept in *records*."""

    def __init__(self, pool: RenderPool, records: ProofRecords, limit_s: float = LIMIT_S) -> None:
        self._pool = pool
        self._records = records
        self._limit_s = limit_s

    async def prove(
        self, backend: BackendSettings, adapter: Adapter, spec: LaunchSpec, say: Callable[[str], None]
    ) -> Proof:
        """As the protocol has it. A proof that was kept of the very same is taken again."""
        prompting = backend.prompting
        assert prompting is not None
        if spec.served_name is not None:
            backend = replace(backend, served_name=spec.served_name)
        try:
            async with asyncio.timeout(self._limit_s), asking(spec) as ask:
                return await self._prove(backend, prompting, adapter, spec, ask, say)
        except TimeoutError:
            raise ProofFailed(f"it took more than {self._limit_s:g} s") from None
        except (httpx.RequestError, OSError) as problem:
            raise ProofFailed(f"the engine did not answer ({str(problem) or type(problem).__name__})") from problem
        except (ModelFolderUnreadable, RenderChildFailed, TemplateStopped, TextUnencodable) as problem:
            raise ProofFailed(f"the contract's prompt could not be made: {problem}") from problem
        except (KeyError, TypeError, IndexError, AttributeError, ValueError) as problem:
            raise ProofFailed(f"the engine gave an answer of no known form ({problem!r})") from problem

    async def _prove(
        self,
        backend: BackendSettings,
        prompting: Prompting,
        adapter: Adapter,
        spec: LaunchSpec,
        ask: Ask,
        say: Callable[[str], None],
    ) -> Proof:
        version = await _version(adapter, ask)
        key = await asyncio.to_thread(proof_key, backend, prompting, spec, version) if version is not None else None
        kept = await asyncio.to_thread(self._records.read, backend.name, key) if key is not None else None
        if kept is not None:
            return replace(kept, report={**kept.report, "is_from_cache": True})
        began = time.monotonic()
        folder = prompting.tokenizer
        tokenizer = await asyncio.to_thread(Tokenizer.read, folder) if folder is not None else None
        proof = await ProofWork(backend, prompting, adapter, ask, say, tokenizer, self._pool).proof(version)
        when = {
            "proven_at": datetime.now(UTC).isoformat(timespec="seconds"),
            "took_s": round(time.monotonic() - began, 2),
            "is_from_cache": False,
        }
        proof = replace(proof, report={**proof.report, **when})
        if key is not None:
            await asyncio.to_thread(self._records.write, backend.name, key, proof)
        return proof


async def _version(adapter: Adapter, ask: Ask) -> str | None:
    plan = adapter.see_version()
    try:
        return await outcome_of(plan, ask) if plan is not None else None
    except CallRefused:
        return None


def mismatch(proof: Proof) -> Diagnosis | None:
    """Why an engine with this *proof* may not serve: a plain request would not be given the contract's prompt."""
    if not proof.parity.unproven({"text"}):
        return None
    reason = proof.problem or "nothing that it shows proves them"
    message = f"The engine's prompts are not those of the contract: {reason}."
    further = "`unigate template verify` shows every difference; template.parity: warn serves it all the same."
    advice = f"{_sentence(proof.remedy)}{further}"
    return Diagnosis("template_mismatch", message, advice, permanent=True)


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}. " if text else ""


def summary(proof: Proof) -> list[str]:
    """What of *proof* belongs into a log: one line each."""
    report, parity = proof.report, proof.parity
    when = " (kept from an earlier start)" if report.get("is_from_cache") else ""
    by_modes: dict[str, list[str]] = {}
    for feature, modes in parity.modes.items():
        by_modes.setdefault(", ".join(modes), []).append(feature)
    lines = [f"the template is proven ({modes}): {', '.join(features)}{when}" for modes, features in by_modes.items()]
    unproven = parity.unproven(FEATURES)
    if unproven:
        lines.append(f"the template is not proven: {', '.join(unproven)}")
    if proof.problem:
        lines.append(f"the template: {proof.problem}")
    return lines
