"""An OpenAI-compatible address that somebody else runs: probed and routed to, never started or stopped."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

from backends.adapter import (
    Body,
    Call,
    Daemon,
    Given,
    LaunchSpec,
    Objection,
    Probe,
    Served,
    Sleep,
    TokenizePlan,
    TokenizeRequest,
    Unsupported,
    served_by_name,
)
from backends.address import Address
from backends.diagnosis import Diagnosis, ExitStatus
from backends.dialect import Dialect, Finish
from backends.environments import Environment
from backends.memory_estimate import NO_NEED, MemoryNeed, WeightFacts
from backends.options import Options
from backends.prompting import USAGE, SeePlan, StopPlan, TemplatePlan, VersionPlan
from backends.settings import BackendSettings, EngineSettings, SocketKind, Timing
from backends.sources import SourceKind
from backends.translation import Translated
from chat_templates.conversation import Conversation
from chat_templates.prompts import Prompt

ENDPOINTS = frozenset({"chat/completions", "completions", "embeddings"})

_FINISHES = "a word of vLLM's or LMDeploy's, which may run there: vllm_dialect, lmdeploy_dialect"

DIALECT = Dialect(
    # Nothing is known of what it honours, so nothing is refused; what it answers is understood in every form we know.
    answer_reasoning="reasoning",
    finishes=(
        Finish("abort", None, _FINISHES),
        Finish("error", None, _FINISHES),
        Finish("repetition", "stop", _FINISHES),
        Finish("parse_error", "stop", _FINISHES),
    ),
)
"""Of whatever speaks OpenAI's API."""

SILENCE_S = 10.0
"""An address that has not answered for this long is down."""


class External:
    """The adapter of an address we do not own."""

    engine = "external"
    launches = False
    endpoints = ENDPOINTS
    dialect = DIALECT
    witness = USAGE
    sockets: frozenset[SocketKind] = frozenset({"unix", "tcp"})
    takes_adapters = False
    sources: frozenset[SourceKind] = frozenset()
    engine_keys: frozenset[str] = frozenset()
    obtaining = ""
    daemon_name = ""
    chooses_templates = False
    programs = ()
    distributions = ()
    options: Options = ()

    def default_command(self) -> tuple[str, ...]:
        """There is nothing to run."""
        return ()

    def command_in(self, environment: Environment) -> tuple[str, ...] | None:
        """It runs elsewhere."""
        return None

    def version_argv(self, engine: EngineSettings) -> tuple[str, ...] | None:
        """There is nothing to ask."""
        return None

    def weights_problem(self, weights: Path) -> str | None:
        """Weights are the other side's affair."""
        return None

    def adapter_problem(self, adapter: Path) -> str | None:
        """It takes none."""
        return None

    def contract_problem(self, backend: BackendSettings) -> str | None:
        """None: nothing that a look at the files could tell."""
        return None

    def objections(self, backend: BackendSettings) -> Sequence[Objection]:
        """Settings that need a process of ours."""
        fields = {
            "options": backend.options,
            "args": backend.args,
            "env": backend.env,
            "template": backend.template_file,
        }
        message = "has no effect on an external backend, which the gateway does not start"
        return tuple(Objection((name,), message, "remove it") for name, value in fields.items() if value)

    def timing(self, timing: Timing) -> Timing:
        """An address is there or not, at once; and since we cannot start it, we never stop looking for it."""
        stall_s = min(timing.start_stall_timeout_s, SILENCE_S)
        return replace(timing, start_stall_timeout_s=stall_s, max_failed_starts=sys.maxsize)

    def served(self, backend: BackendSettings, model: str) -> Served:
        """As its server calls it."""
        return served_by_name(backend, model)

    def sleep(self, backend: BackendSettings) -> Sleep | None:
        """Its memory is the other side's affair."""
        return None

    def launch_spec(self, backend: BackendSettings, engine: EngineSettings, place: Address, folder: Path) -> LaunchSpec:
        """No argv; the address of the configured URL instead of *place*."""
        address = address_of(backend.url)
        base, model = address.base_path, backend.model_name
        models = Call("GET", f"{base}/models")
        if backend.readiness == "models":
            probe = Probe(models, models, ("data",))
        elif backend.readiness == "embed":
            body = {"model": model, "input": "Hi"}
            probe = Probe(models, Call("POST", f"{base}/embeddings", body), ("data", 0, "embedding", 0))
        else:
            messages = [{"role": "user", "content": "Hi"}]
            proof = Call("POST", f"{base}/chat/completions", {"model": model, "messages": messages, "max_tokens": 1})
            probe = Probe(models, proof, ("choices", 0, "message"))
        authorization = f"Bearer {backend.api_key}" if backend.api_key else ""
        return LaunchSpec(address=address, probe=probe, stop_grace_s=1.0, authorization=authorization)

    def gpu_count(self, backend: BackendSettings, engine: EngineSettings) -> int | None:
        """None of ours to give."""
        return 0

    def memory(self, backend: BackendSettings, facts: WeightFacts, *, on_gpu: bool) -> MemoryNeed:
        """Nothing here."""
        return NO_NEED

    def memory_flags(
        self, backend: BackendSettings, facts: WeightFacts, limit_bytes: int, total_bytes: int
    ) -> list[str]:
        """There is no command line."""
        return []

    def daemon(self, first: BackendSettings, engine: EngineSettings) -> Daemon | None:
        """None: each address stands for itself."""
        return None

    def translate(self, backend: BackendSettings, endpoint: str, body: Body) -> Translated | None:
        """None: its API is OpenAI's."""
        return None

    def diagnose(self, status: ExitStatus, tail: Sequence[str]) -> Diagnosis:
        """We let go of it; nothing ended."""
        return Diagnosis("unreachable", "The external address does not answer.", "Check its url and that it runs.")

    def phase(self, line: str) -> str | None:
        """It has no log of ours."""
        return None

    def tokenize(self, request: TokenizeRequest) -> TokenizePlan:
        """Not part of the OpenAI API."""
        raise Unsupported("an external backend offers no tokenisation")

    def see(self, backend: BackendSettings, conversation: Conversation) -> SeePlan | None:
        """None: nothing is known of it."""
        return None

    def see_stops(self, backend: BackendSettings) -> StopPlan | None:
        """None: nothing is known of it."""
        return None

    def see_template(self) -> TemplatePlan | None:
        """None: whose engine it is, nobody knows."""
        return None

    def see_version(self) -> VersionPlan | None:
        """None."""
        return None

    def given(self, backend: BackendSettings, endpoint: str, body: Body, prompt: Prompt) -> Given | None:
        """None: what such a server takes beside messages, nobody knows."""
        return None


def address_of(url: str) -> Address:
    """``http://127.0.0.1:9000/v1`` as an Address; the path is what stands before ``/chat/completions``."""
    parts = urlsplit(url)
    tls = parts.scheme == "https"
    return Address(
        host=parts.hostname or "",
        port=parts.port or (443 if tls else 80),
        tls=tls,
        base_path=parts.path.rstrip("/"),
    )
