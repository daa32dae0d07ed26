"""A backend's log: splitting, ring, file, followers, a full disk."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from backends.logs import FOLLOWER_LINES, LINE_LIMIT, RING_BYTES, BackendLog, LineSplitter, file_name
from backends.rotating_file import RotatingFile

# --- LineSplitter ---

SPLITS: list[tuple[list[bytes], list[str]]] = [
    ([b"a\nb\n"], ["a", "b"]),
    ([b"a", b"b\nc"], ["ab", "c"]),
    ([b"a\r\nb\r\n"], ["a", "b"]),
    ([b"a\r", b"\nb"], ["a", "b"]),
    ([b"10%\r50%\r100%\n"], ["10%", "50%", "100%"]),
    ([b"\n\n  \na\n"], ["a"]),
    ([b"  indented\n"], ["  indented"]),
    ([b"caf\xc3", b"\xa9\n"], ["caf\u00e9"]),
    ([b"\xff\xfe bad\n"], ["\ufffd\ufffd bad"]),
    ([], []),
]


@pytest.mark.parametrize(("chunks", "lines"), SPLITS)
def test_split(chunks: list[bytes], lines: list[str]) -> None:
    """Lines end at LF, CR LF or CR, wherever the chunks end; empty ones are dropped; the rest comes at the end."""
    splitter = LineSplitter()
    assert [line for chunk in chunks for line in splitter.feed(chunk)] + splitter.close() == lines
    assert splitter.close() == []


@pytest.mark.parametrize("chunk_bytes", [1000, 64 * 1024, 10_000_000])
def test_a_long_line_is_cut_once(chunk_bytes: int) -> None:
    """Of a line without end only the beginning is kept, once, however it comes; the next line is whole."""
    content = b"before\n" + b"x" * 1_000_000 + b"\nafter\n"
    splitter = LineSplitter()
    lines = [
        line
        for start in range(0, len(content), chunk_bytes)
        for line in splitter.feed(content[start : start + chunk_bytes])
    ]
    assert lines == ["before", "x" * LINE_LIMIT, "after"]


# --- BackendLog ---


def test_the_tail_is_the_last_lines(tmp_path: Path) -> None:
    """The last lines, oldest first; fewer when there are fewer, none for none."""
    log = BackendLog(tmp_path / "m.log")
    for number in range(5):
        log.write(f"line {number}")
    assert log.tail(2) == ["line 3", "line 4"]
    assert len(log.tail(100)) == 5
    assert log.tail(0) == log.tail(-1) == []
    assert log.lines_written == 5
    log.close()


def test_the_ring_has_a_size(tmp_path: Path) -> None:
    """Memory keeps at most RING_BYTES, the newest; the file keeps all."""
    log = BackendLog(tmp_path / "m.log")
    line = "x" * 1000
    for number in range(600):
        log.write(f"{number:04} {line}")
    kept = log.tail(10_000)
    assert sum(map(len, kept)) <= RING_BYTES
    assert len(kept) == RING_BYTES // 1005
    assert kept[-1].startswith("0599")
    log.close()
    assert len((tmp_path / "m.log").read_text().splitlines()) == 600


def test_a_note_is_ours_and_dated(tmp_path: Path) -> None:
    """Our own lines are marked and carry the time."""
    log = BackendLog(tmp_path / "m.log")
    log.note("run 1 ended")
    assert log.tail(1)[0].startswith("[unigate 20")
    assert log.tail(1)[0].endswith("] run 1 ended")
    log.close()


def test_the_file_rotates(tmp_path: Path) -> None:
    """A file does not grow beyond rotate_bytes, only *keep* old ones stay, and the newest lines are in the newest."""
    log = BackendLog(tmp_path / "m.log", rotate_bytes=1000, keep=2)
    for number in range(100):
        log.write(f"line {number:04} " + "x" * 40)
    log.close()
    files = sorted(path.name for path in tmp_path.iterdir())
    assert files == ["m.log", "m.log.1", "m.log.2"]
    assert all((tmp_path / name).stat().st_size <= 1000 for name in files)
    text = "".join((tmp_path / name).read_text() for name in reversed(files))
    assert [int(line.split()[1]) for line in text.splitlines()] == list(range(100))[-len(text.splitlines()) :]


def test_the_file_is_continued(tmp_path: Path) -> None:
    """A second gateway appends to the file of the first, making its folder where it is gone."""
    for text in ("first", "second"):
        log = BackendLog(tmp_path / "deep" / "m.log")
        log.write(text)
        log.close()
    assert (tmp_path / "deep" / "m.log").read_text() == "first\nsecond\n"


def test_any_text_can_be_written(tmp_path: Path) -> None:
    """Half a surrogate pair, a percent sign and Chinese reach the file without an error."""
    log = BackendLog(tmp_path / "m.log")
    for text in ("\udcff", "100 %s %d", "\u4f60\u597d"):
        log.write(text)
    log.close()
    assert (tmp_path / "m.log").read_text(encoding="utf-8") == "?\n100 %s %d\n\u4f60\u597d\n"


async def test_a_follower_gets_the_tail_and_what_comes(tmp_path: Path) -> None:
    """The last lines first, then each new one, until the log is closed; then it is forgotten."""
    log = BackendLog(tmp_path / "m.log")
    for number in range(3):
        log.write(f"old {number}")

    async def follow() -> list[str]:
        return [line async for line in log.follow(2)]

    async with asyncio.timeout(5):
        following = asyncio.create_task(follow())
        await asyncio.sleep(0)
        log.write("new")
        log.close()
        assert await following == ["old 1", "old 2", "new"]
    assert "0 followers" in repr(log)


async def test_a_follower_that_does_not_read_loses_lines_not_memory(tmp_path: Path) -> None:
    """A stalled follower holds at most FOLLOWER_LINES lines; the engine never waits for it."""
    log = BackendLog(tmp_path / "m.log")
    lines = log.follow(1)
    log.write("first")
    async with asyncio.timeout(5):
        assert await anext(lines) == "first"
        for number in range(FOLLOWER_LINES + 500):
            log.write(str(number))
        log.close()
        rest = [line async for line in lines]
    assert rest == [str(number) for number in range(FOLLOWER_LINES)]


async def test_a_closed_log_is_followed_to_its_end(tmp_path: Path) -> None:
    """Who follows a log that is closed already gets its tail, and then the end."""
    log = BackendLog(tmp_path / "x.log")
    log.write("last words")
    log.close()
    async with asyncio.timeout(5):
        assert [line async for line in log.follow(10)] == ["last words"]


async def test_a_follower_that_leaves_is_forgotten(tmp_path: Path) -> None:
    """Closing the iterator ends the following."""
    log = BackendLog(tmp_path / "m.log")
    log.write("a")
    lines = log.follow(1)
    assert await anext(lines) == "a"
    assert "1 followers" in repr(log)
    await lines.aclose()  # type: ignore[attr-defined]
    assert "0 followers" in repr(log)
    log.close()


class Disk:
    """A disk under every log file that can be full."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.is_full = True
        append = RotatingFile.append

        def append_unless_full(file: RotatingFile, line: str) -> None:
            if self.is_full:
                raise OSError(28, "No space left on device")
            append(file, line)

        monkeypatch.setattr(RotatingFile, "append", append_unless_full)


def test_a_full_disk_loses_nothing_that_memory_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """While writing fails that is said once; the first line that can be written brings those before it along."""
    disk = Disk(monkeypatch)
    log = BackendLog(tmp_path / "m.log")
    for number in range(3):
        log.write(f"late {number}")
    disk.is_full = False
    log.write("in time")
    disk.is_full = True
    log.write("never")
    log.close()
    assert [record.getMessage() for record in caplog.records] == [
        f"cannot write {tmp_path / 'm.log'}: No space left on device; its lines are kept in memory",
        f"{tmp_path / 'm.log'} is written again",
        f"cannot write {tmp_path / 'm.log'}: No space left on device; its lines are kept in memory",
    ]
    assert (tmp_path / "m.log").read_text() == "late 0\nlate 1\nlate 2\nin time\n"
    assert log.tail(10) == ["late 0", "late 1", "late 2", "in time", "never"]


def test_a_long_outage_is_marked_in_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What memory could not hold until the disk had space is missing, and the file says there how much and why."""
    disk = Disk(monkeypatch)
    log = BackendLog(tmp_path / "m.log")
    lines = [f"{number:04} {'x' * 1000}" for number in range(600)]
    for line in lines:
        log.write(line)
    disk.is_full = False
    log.write("again")
    log.close()
    mark, *kept = (tmp_path / "m.log").read_text().splitlines()
    assert kept == [*lines[-len(kept) + 1 :], "again"]
    assert mark.endswith(f"] {600 - len(kept) + 1} lines are missing here: No space left on device")
    assert len(kept) > 200


def test_a_real_full_disk(caplog: pytest.LogCaptureFixture) -> None:
    """On a device that is always full, writing and closing raise nothing and leave no open file."""
    log = BackendLog(Path("/dev/full"))
    for number in range(3):
        log.write(f"line {number}")
    log.close()
    assert len(caplog.records) == 1
    assert len(log.tail(10)) == 3


def test_a_folder_that_cannot_be_made(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A file where the folder should be: said once, and the lines are in memory."""
    (tmp_path / "logs").touch()
    log = BackendLog(tmp_path / "logs" / "m.log")
    log.write("a")
    log.write("b")
    log.close()
    assert len(caplog.records) == 1
    assert log.tail(2) == ["a", "b"]


@pytest.mark.parametrize(
    ("backend", "name"),
    [("m", "m.log"), ("Qwen/Qwen3", "Qwen%2FQwen3.log"), ("../x", "..%2Fx.log"), ("a b", "a b.log")],
)
def test_file_names_stay_in_their_folder(backend: str, name: str) -> None:
    """A public name with slashes becomes one file name."""
    assert file_name(backend, ".log") == name
    assert Path(name).name == name
