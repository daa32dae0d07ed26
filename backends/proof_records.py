"""Proofs kept for the next start: one file for each backend, with what it was a proof of."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

from backends.adapter import LaunchSpec
from backends.logs import file_name
from backends.prompting import Prompting
from backends.settings import BackendSettings
from chat_templates.proof import Proof

FORMAT = 1
"""Of a proof: one of another is not taken from what was kept. Raised whenever proofs compare something more."""


class ProofRecords:
    """The proofs in *folder*, by backend. Its methods block for a moment: for a thread."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def read(self, backend: str, key: str) -> Proof | None:
        """The proof of *backend* that was kept under *key*; None without one, or when it cannot be read."""
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
            kept = json.loads(self._file(backend).read_text(encoding="utf-8"))
            if kept["key"] == key:
                return Proof.from_json(kept["proof"])
        return None

    def write(self, backend: str, key: str, proof: Proof) -> None:
        """Keep *proof*, replacing what was there. What cannot be written is not kept: the next start proves again."""
        file = self._file(backend)
        with contextlib.suppress(OSError):
            file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            half = file.with_suffix(".tmp")
            half.write_text(json.dumps({"key": key, "proof": proof.as_json()}), encoding="utf-8")
            half.replace(file)

    def _file(self, backend: str) -> Path:
        return self._folder / file_name(backend, ".json")


def proof_key(backend: BackendSettings, prompting: Prompting, spec: LaunchSpec, version: str) -> str:
    """One word for all that a proof is of: contract, engine and its version, command line, files, and the model's.

    Where the run listens is no part of it. Of the weights' files names, sizes and times count. Blocks for a moment.
    """
    place = {spec.address.uds, str(spec.address.port)}
    argv = ["" if word in place else word for word in spec.argv]
    told = (
        FORMAT, prompting.contract.hash, prompting.mode, str(prompting.tokenizer), backend.engine, backend.model_name,
        version, argv, sorted(spec.env.items()), sorted((name, repr(file)) for name, file in spec.files.items()),
        list(_stamps(backend.weights)),
    )  # fmt: skip
    return hashlib.sha256(repr(told).encode("utf-8", "surrogatepass")).hexdigest()


def _stamps(weights: Path | None) -> Iterator[tuple[str, int, int]]:
    if weights is None:
        return
    with contextlib.suppress(OSError):
        for file in sorted(weights.iterdir()) if weights.is_dir() else [weights]:
            if file.is_file():
                stat = file.stat()
                yield file.name, stat.st_size, stat.st_mtime_ns
