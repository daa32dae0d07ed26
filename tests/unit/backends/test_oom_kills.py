"""How many processes the kernel killed for want of memory, read from either version of control groups."""

from __future__ import annotations

from pathlib import Path

import pytest

from backends.diagnosis import ExitStatus
from backends.lifecycle import State
from backends.oom_kills import oom_kills
from tests.unit.backends.fakes import living_backend, settings

EVENTS = "low 0\nhigh 0\nmax 12\noom 3\noom_kill 2\noom_group_kill 0\n"
CONTROL = "oom_kill_disable 0\nunder_oom 0\noom_kill 5\n"


def machine(root: Path, groups: str, **files: str) -> Path:
    """A root file system with */proc/self/cgroup* and files of control groups, ``__`` for a slash in their names."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(groups)
    for name, text in files.items():
        path = root / "sys/fs/cgroup" / name.replace("__", "/").replace("_dot_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.mark.parametrize(
    ("groups", "files", "count"),
    [
        ("0::/user/unigate\n", {"user__unigate__memory_dot_events": EVENTS}, 2),
        ("0::/\n", {"memory_dot_events": EVENTS}, 2),
        # within a container of Docker's, the path is the host's
        ("0::/docker/1a2b\n", {"memory_dot_events": EVENTS}, 2),
        ("5:cpu:/\n4:memory:/job\n0::/\n", {"memory__job__memory_dot_oom_control": CONTROL}, 5),
        ("4:cpu,memory:/job\n", {"memory__memory_dot_oom_control": CONTROL}, 5),
        ("0::/\n", {}, None),
        ("5:cpu:/\n", {"memory__memory_dot_oom_control": CONTROL}, None),
        ("0::/\n", {"memory_dot_events": "low 0\n"}, None),
        ("", {}, None),
    ],
)
def test_the_count(tmp_path: Path, groups: str, files: dict[str, str], count: int | None) -> None:
    """Version 2 and version 1, at the group's own path or at the mount; None where nothing tells."""
    assert oom_kills(machine(tmp_path, groups, **files)) == count


def test_without_proc(tmp_path: Path) -> None:
    """A system without control groups has no count, and no error."""
    assert oom_kills(tmp_path) is None


def test_this_machine() -> None:
    """What this machine says is a count, or that there is none."""
    count = oom_kills()
    assert count is None or count >= 0


@pytest.mark.parametrize(
    ("counts", "code"), [([4, 5], "host_out_of_memory"), ([4, 4], "killed"), ([4, None], "killed")]
)
async def test_a_kill_while_a_run_lives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, counts: list[int | None], code: str
) -> None:
    """A count that has grown since the run began explains its end by signal 9; one that has not leaves a guess."""
    told = iter(counts)
    monkeypatch.setattr("backends.start.oom_kills", lambda: next(told, None))
    async with living_backend(tmp_path, settings(tmp_path)) as world:
        run = await world.ready()
        run.end(ExitStatus(signal=9))
        await world.published(3)
        assert world.transitions[-1].after is State.BACKOFF
        assert world.transitions[-1].diagnosis is not None
        assert world.transitions[-1].diagnosis.code == code
