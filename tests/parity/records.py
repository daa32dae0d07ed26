"""What was observed, kept while a table is made: one that is interrupted goes on where it was."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

from chat_templates.contract import Contract
from gateway.starter_model import default_cache_dir
from tests.engines.environment import ROOT
from tests.parity.observation import Observation

_DECIDING = (
    "backends/engines/ENGINE*.py",
    "backends/completion_as_chat.py",
    "backends/contract_texts.py",
    "backends/seen.py",
    "chat_templates/battery.py",
    "chat_templates/conversation.py",
    "chat_templates/forms/one_jinja.py",
    "chat_templates/forms/pinned_jinja.py",
    "chat_templates/features.py",
    "chat_templates/messages.py",
    "chat_templates/proof.py",
    "chat_templates/rendering.py",
    "chat_templates/rules.py",
    "chat_templates/tokenizer_strings.py",
    "chat_templates/tokenizing.py",
    "requirements/dev.txt",
    "requirements/engine-ENGINE.txt",
    "tests/parity/contracts.py",
    "tests/parity/hosts.py",
    "tests/parity/observation.py",
)
"""What prompts depend on, and how they are observed."""


@dataclass(frozen=True, slots=True)
class Records:
    """Files in *folder*, which is made."""

    folder: Path

    def read(self, engine: str, contract: Contract) -> list[Observation] | None:
        """What was observed of *engine* with the same contract, engine and code; None where nothing was."""
        try:
            kept = json.loads(self._path(engine, contract).read_text("utf-8"))
        except (OSError, ValueError):
            return None
        return [Observation(**{**one, "other": tuple(one["other"])}) for one in kept]

    def write(self, engine: str, contract: Contract, observed: Sequence[Observation]) -> None:
        """Keep it."""
        path = self._path(engine, contract)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps([asdict(one) for one in observed]), "utf-8")
        partial.rename(path)

    def _path(self, engine: str, contract: Contract) -> Path:
        return self.folder / f"{engine}-{contract.hash[:16]}-{code_digest(engine)}.json"


def default_folder() -> Path:
    """Under ``~/.cache/unigate``."""
    return default_cache_dir(os.environ).parent / "parity" / "observed"


@cache
def code_digest(engine: str) -> str:
    """For *engine*, twelve hexadecimal digits of all of that."""
    digest = hashlib.sha256()
    for pattern in _DECIDING:
        for path in sorted(ROOT.glob(pattern.replace("ENGINE", engine))):
            digest.update(path.read_bytes())
    return digest.hexdigest()[:12]
