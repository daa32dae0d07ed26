"""What survives the gateway, and the reaping of what a crash left."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from backends.kill_set import all_entries, carries_marker, read_entry
from backends.records import ProcessRecord, ProcessRecords, Reaped, StateFolderInUse, reap, state_folder_lock
from tests.unit.backends.processes import is_alive, new_marker, running, until


@pytest.fixture
def records(tmp_path: Path) -> ProcessRecords:
    """Records in a folder that is not there yet."""
    return ProcessRecords(tmp_path / "records")


def test_what_was_written_is_read(records: ProcessRecords) -> None:
    """One record per backend, replaced by the next and gone when removed; removing twice is no error."""
    assert records.read_all() == []
    records.write(ProcessRecord("Qwen/Qwen3", "Qwen/Qwen3:00"))
    records.write(ProcessRecord("b", "b:01", 7, 8))
    records.write(ProcessRecord("b", "b:02", 9, 10))
    assert records.read_all() == [ProcessRecord("Qwen/Qwen3", "Qwen/Qwen3:00"), ProcessRecord("b", "b:02", 9, 10)]
    for _ in range(2):
        records.remove("b")
    assert records.read_all() == [ProcessRecord("Qwen/Qwen3", "Qwen/Qwen3:00")]


def test_a_record_is_whole_or_the_old_one(records: ProcessRecords, monkeypatch: pytest.MonkeyPatch) -> None:
    """A write that fails leaves the record before it."""
    records.write(ProcessRecord("m", "m:1"))

    def full(*_: object, **__: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="No space left"):
        records.write(ProcessRecord("m", "m:2"))
    monkeypatch.undo()
    assert records.read_all() == [ProcessRecord("m", "m:1")]


def test_names_that_differ_only_behind_a_dot_are_two_records(records: ProcessRecords) -> None:
    """``qwen.1`` and ``qwen.2`` do not share a file, not even while writing."""
    records.write(ProcessRecord("qwen.1", "a"))
    records.write(ProcessRecord("qwen.2", "b"))
    assert [record.marker for record in records.read_all()] == ["a", "b"]


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"backend": "m"}', '{"backend": "m", "marker": "x", "z": 1}'])
def test_an_unreadable_record_is_skipped(
    records: ProcessRecords, tmp_path: Path, caplog: pytest.LogCaptureFixture, text: str
) -> None:
    """A damaged file is told, removed, and does not keep the others from being read."""
    records.write(ProcessRecord("good", "g"))
    (tmp_path / "records" / "bad.json").write_text(text)
    assert [record.backend for record in records.read_all()] == ["good"]
    assert "unreadable process record" in caplog.text
    assert not (tmp_path / "records" / "bad.json").exists()


def test_a_damaged_record_is_skipped(records: ProcessRecords, tmp_path: Path) -> None:
    """A record whose numbers are none names no process, and is forgotten."""
    records.write(ProcessRecord("m", "m:1", 5, 6))
    (file,) = tmp_path.rglob("*.json")
    file.write_text('{"backend": "m", "marker": "m:1", "session": "5", "started_ticks": 6}')
    assert records.read_all() == []
    assert not file.exists()


def test_reaping_ends_what_bears_the_marker(records: ProcessRecords) -> None:
    """A process an earlier gateway left is found by its marker, ended, told, and forgotten."""
    marker = new_marker()
    with running("sleep", "60", marker=marker, session=True) as left, running("sleep", "60") as stranger:
        until(lambda: carries_marker(left.pid, marker))
        records.write(ProcessRecord("m", marker))
        assert reap(records) == [Reaped("m", (left.pid,), ())]
        assert left.wait(5) == -signal.SIGTERM
        assert is_alive(stranger.pid)
    assert records.read_all() == []


def test_reaping_ends_the_session_of_a_shim_that_is_gone(records: ProcessRecords) -> None:
    """A process without the marker belongs by the session, whose leader has died."""
    with running("sh", "-c", "sleep 60 & echo $!; exit", session=True) as leader:
        session = leader.pid
        leader.wait(5)

        def left() -> list[int]:
            return [entry.pid for entry in all_entries() if entry.session == session]

        until(lambda: len(left()) == 1)
        (pid,) = left()
        records.write(ProcessRecord("m", new_marker(), session, 1))
        assert reap(records) == [Reaped("m", (pid,), ())]
        assert not is_alive(pid)


def test_reaping_spares_a_session_number_given_away(records: ProcessRecords) -> None:
    """A living leader that was started at another time is a stranger, and so is its session."""
    with running("sleep", "60", session=True) as stranger:
        entry = read_entry(stranger.pid)
        assert entry is not None
        records.write(ProcessRecord("m", new_marker(), stranger.pid, entry.started_ticks - 1))
        assert reap(records) == []
        assert is_alive(stranger.pid)
    assert records.read_all() == []


def test_reaping_ends_the_shim_we_started(records: ProcessRecords) -> None:
    """The same leader, with the start time we wrote down, is ours."""
    with running("sleep", "60", session=True) as ours:
        until(lambda: (seen := read_entry(ours.pid)) is not None and seen.session == ours.pid)
        entry = read_entry(ours.pid)
        assert entry is not None
        records.write(ProcessRecord("m", new_marker(), ours.pid, entry.started_ticks))
        assert reap(records) == [Reaped("m", (ours.pid,), ())]


def test_reaping_where_nothing_was_left(records: ProcessRecords) -> None:
    """A record of a run that is gone is forgotten without a word."""
    records.write(ProcessRecord("m", new_marker()))
    assert reap(records) == []
    assert records.read_all() == []


def test_one_gateway_per_state_folder(tmp_path: Path) -> None:
    """A second gateway is refused with the first one's pid and a remedy; after the first, it may."""
    with (
        state_folder_lock(tmp_path / "state"),
        pytest.raises(StateFolderInUse, match=rf"process {os.getpid()}\); stop it, or set another"),
        state_folder_lock(tmp_path / "state"),
    ):
        pass
    with state_folder_lock(tmp_path / "state"):
        pass


def test_a_crash_gives_the_folder_free(tmp_path: Path) -> None:
    """The lock of a process that was killed is no longer held."""
    code = (
        "import sys, time, pathlib\n"
        "from backends.records import state_folder_lock\n"
        "with state_folder_lock(pathlib.Path(sys.argv[1])):\n"
        "    print('held', flush=True); time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(StateFolderInUse, match=f"process {holder.pid}"), state_folder_lock(tmp_path):
            pass
        holder.kill()
    with state_folder_lock(tmp_path):
        assert (tmp_path / "lock").read_text() == str(os.getpid())


def test_a_record_is_plain_json(records: ProcessRecords, tmp_path: Path) -> None:
    """A person can read what was left where."""
    records.write(ProcessRecord("m", "m:1", 2, 3))
    content = json.loads((tmp_path / "records" / "m.json").read_text())
    assert content == {"backend": "m", "marker": "m:1", "session": 2, "started_ticks": 3}
