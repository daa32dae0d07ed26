"""What runs were seen to take of memory, kept for the next one. One file for each backend, written by this gateway."""

from __future__ import annotations

import contextlib
import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from backends.logs import file_name
from backends.settings import BackendSettings, EngineSettings


@dataclass(frozen=True, slots=True)
class Peak:
    """The most one run took, in bytes on each of its devices. *fingerprint* says with which settings."""

    fingerprint: str
    on_gpu: bool
    devices: int
    bytes_on_each: int


class Learnt:
    """Peaks in *folder*, by backend. Its methods block for a moment: for a thread."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def read(self, backend: BackendSettings, engine: EngineSettings) -> Peak | None:
        """The peak of *backend* with exactly these settings; None without one, or when it cannot be read."""
        with contextlib.suppress(OSError, ValueError, TypeError):
            peak = Peak(**json.loads(self._file(backend.name).read_text(encoding="utf-8")))
            if peak.fingerprint == fingerprint(backend, engine) and peak.bytes_on_each > 0:
                return peak
        return None

    def write(self, backend: str, peak: Peak) -> None:
        """Keep *peak*, replacing what was there. What cannot be written is not kept: the next start reckons again."""
        file = self._file(backend)
        with contextlib.suppress(OSError):
            file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            half = file.with_suffix(".tmp")
            half.write_text(json.dumps(asdict(peak)), encoding="utf-8")
            half.replace(file)

    def _file(self, backend: str) -> Path:
        return self._folder / file_name(backend, ".json")


def fingerprint(backend: BackendSettings, engine: EngineSettings) -> str:
    """One word for all that a run's memory depends on. What is secret in it cannot be read from it."""
    weights = backend.weights
    changed = ""
    if weights is not None:
        with contextlib.suppress(OSError):
            changed = str(weights.stat().st_mtime_ns)
    told = (
        backend.engine, str(weights), changed, backend.context_length, sorted(backend.args.items(), key=repr),
        sorted({**engine.env, **backend.env}.items()), engine.command, repr(engine.environment),
        [str(adapter.path) for adapter in backend.adapters], backend.gpus,
    )  # fmt: skip
    return hashlib.sha256(repr(told).encode()).hexdigest()
