"""Which processes belong to a run, and making an end of them."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from backends.kill_set import ProcessEntry, all_entries, carries_marker, members, read_entry, send, sweep
from tests.unit.backends.processes import is_alive, new_marker, running, until

DEAF = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); time.sleep(60)"


@pytest.fixture
def marker() -> str:
    """A marker of this test's own."""
    return new_marker()


@contextlib.contextmanager
def deaf(marker: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process that ignores TERM, and does so already."""
    env = {**os.environ, "UNIGATE_BACKEND_ID": marker}
    with subprocess.Popen([sys.executable, "-c", DEAF], env=env, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"deaf\n"
            yield process
        finally:
            process.kill()


def pids(entries: list[ProcessEntry]) -> set[int]:
    """Their numbers."""
    return {entry.pid for entry in entries}


def test_an_entry_is_what_proc_says() -> None:
    """Our own entry has our parent and our session; it is no zombie."""
    entry = read_entry(os.getpid())
    assert entry is not None
    assert (entry.pid, entry.parent, entry.session) == (os.getpid(), os.getppid(), os.getsid(0))
    assert entry.started_ticks > 0
    assert not entry.is_zombie
    assert entry in all_entries()


def test_nobody_is_no_entry() -> None:
    """A pid nobody has is None."""
    assert read_entry(2**22 + 1) is None
    assert not carries_marker(2**22 + 1, "x")


def test_a_zombie_is_one() -> None:
    """A process that ended and was not waited for is a zombie and no member."""
    with running("true", marker="z:1") as process:
        until(lambda: not is_alive(process.pid))
        entry = read_entry(process.pid)
        assert entry is not None
        assert entry.is_zombie
        assert process.pid not in pids(members("z:1", session=os.getsid(0)))


def test_a_name_with_parentheses_is_read() -> None:
    """A command that holds blanks and parentheses does not shift the fields."""
    code = (
        "import ctypes, time; ctypes.CDLL(None).prctl(15, b') R 1 (x', 0, 0, 0); print(1, flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        entry = read_entry(process.pid)
        process.kill()
    assert entry is not None
    assert (entry.parent, entry.session) == (os.getpid(), os.getsid(0))


def test_the_marker_makes_a_member(marker: str) -> None:
    """A process in a session of its own belongs by its environment; another marker's does not, nor a prefix's."""
    with (
        running("sleep", "60", marker=marker, session=True) as ours,
        running("sleep", "60", marker=marker + "0", session=True) as other,
    ):
        until(lambda: carries_marker(ours.pid, marker))
        assert pids(members(marker)) == {ours.pid}
        assert not carries_marker(other.pid, marker)


def test_the_session_makes_a_member(marker: str) -> None:
    """A process without the marker belongs by its session."""
    with running("sleep", "60", session=True) as ours:
        until(lambda: (entry := read_entry(ours.pid)) is not None and entry.session == ours.pid)
        assert pids(members(marker, session=ours.pid)) == {ours.pid}
        assert members(marker) == []


def test_descent_makes_a_member(marker: str) -> None:
    """A grandchild without marker in another session belongs by its descent; the root itself is spared."""
    with running("sh", "-c", "setsid sleep 60 & wait") as root:

        def family() -> set[int]:
            return pids(members(marker, root=root.pid))

        until(lambda: len(family()) == 1)
        (grandchild,) = family()
        assert grandchild != root.pid
        os.kill(grandchild, signal.SIGKILL)


def test_we_are_no_member_of_what_we_end() -> None:
    """The caller is spared, even in the session asked for."""
    assert os.getpid() not in pids(members("none", session=os.getsid(0)))


def test_send_reaches_exactly_the_process_seen() -> None:
    """A signal for an entry whose start time is another's is not sent; to one that is gone it is no error."""
    with running("sleep", "60") as process:
        entry = read_entry(process.pid)
        assert entry is not None
        stranger = ProcessEntry(entry.pid, entry.parent, entry.session, entry.started_ticks - 1, False)
        send(stranger, signal.SIGKILL)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.1)
        send(entry, signal.SIGKILL)
        assert process.wait(5) == -signal.SIGKILL
        send(entry, signal.SIGKILL)


def test_sweep_asks_first(marker: str) -> None:
    """Processes that obey TERM end by it."""
    with running("sleep", "60", marker=marker) as process:
        until(lambda: carries_marker(process.pid, marker))
        assert sweep(lambda: members(marker), term_s=10) == []
        assert process.wait(5) == -signal.SIGTERM


def test_sweep_then_forces(marker: str) -> None:
    """A process deaf to TERM is killed after term_s."""
    with deaf(marker) as process:
        before = time.monotonic()
        assert sweep(lambda: members(marker), term_s=0.2) == []
        assert time.monotonic() - before >= 0.2
        assert process.wait(5) == -signal.SIGKILL


def test_sweep_kills_at_once_without_a_grace(marker: str) -> None:
    """term_s 0 sends no TERM at all."""
    with running("sleep", "60", marker=marker) as process:
        until(lambda: carries_marker(process.pid, marker))
        assert sweep(lambda: members(marker), term_s=0) == []
        assert process.wait(5) == -signal.SIGKILL


def test_sweep_of_nothing_takes_no_time(marker: str) -> None:
    """Where there is nobody, sweep returns at once."""
    before = time.monotonic()
    assert sweep(lambda: members(marker), term_s=10) == []
    assert time.monotonic() - before < 2


def test_sweep_names_what_would_not_die() -> None:
    """Processes that stay are told by their pids once kill_s has passed."""
    immortal = ProcessEntry(2**22 + 1, 1, 1, 1, False)
    assert sweep(lambda: [immortal], term_s=0.01, kill_s=0.05) == [immortal.pid]
