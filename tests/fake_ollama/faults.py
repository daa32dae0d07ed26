"""How a fake Ollama misbehaves: words in the environment, ``FAKE_OLLAMA="slow-load=2,chunk-s=0.05"``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

VARIABLE = "FAKE_OLLAMA"


@dataclass(frozen=True, slots=True)
class Faults:
    """What goes wrong. Times in seconds."""

    slow_load_s: float = 0.0
    load_error: str = ""
    """A load fails with this text, status 500."""
    chunk_s: float = 0.0
    """Pause before each token."""
    die_after_chunks: int | None = None
    """The runner is killed, by the server itself, after so many tokens of an answer."""
    exit_at_start: int | None = None
    pull_s: float = 0.0
    """Pause between two lines of a pull or a creation."""
    pull_error: str = ""


def faults_in(environ: Mapping[str, str]) -> Faults:
    """The faults that *environ* asks for."""
    pairs = (word.partition("=") for word in environ.get(VARIABLE, "").split(",") if word)
    given = {name.strip(): value for name, _, value in pairs}
    return Faults(
        slow_load_s=float(given.get("slow-load", 0)),
        load_error=given.get("load-error", ""),
        chunk_s=float(given.get("chunk-s", 0)),
        die_after_chunks=int(given["die-after-chunks"]) if "die-after-chunks" in given else None,
        exit_at_start=int(given["exit-at-start"]) if "exit-at-start" in given else None,
        pull_s=float(given.get("pull-s", 0)),
        pull_error=given.get("pull-error", ""),
    )
