"""Noticing that a file has changed."""

from __future__ import annotations

import asyncio
from pathlib import Path

from gateway.watching import Watch, stamp_of, watch

ONE, TWO = (1, 1, 1, 1), (1, 2, 1, 2)


def test_a_change_counts_when_it_has_settled() -> None:
    """A file is taken as changed once it is seen the same twice, and only once."""
    seen = Watch(ONE)
    assert [seen.look(stamp) for stamp in (ONE, ONE, TWO, TWO, TWO)] == [False, False, False, True, False]


def test_one_that_is_being_written_has_not_changed_yet() -> None:
    """As long as it goes on changing, nobody is told."""
    seen = Watch(ONE)
    assert not any(seen.look((1, 1, size, size)) for size in range(2, 9))


def test_one_that_is_away_has_not_changed() -> None:
    """Between the removal and the rename of an editor there is nothing to read; what comes back is looked at."""
    seen = Watch(ONE)
    assert [seen.look(stamp) for stamp in (None, None, ONE, ONE)] == [False] * 4
    assert [seen.look(stamp) for stamp in (None, TWO, TWO)] == [False, False, True]


def test_a_rename_is_another_file(tmp_path: Path) -> None:
    """A file of the same size and time under the same name is told by its inode."""
    path, other = tmp_path / "a", tmp_path / "b"
    path.write_text("1")
    other.write_text("2")
    before = stamp_of(path)
    other.rename(path)
    assert stamp_of(path) != before
    path.unlink()
    assert stamp_of(path) is None


async def test_changes_are_told_while_they_are_wanted(tmp_path: Path) -> None:
    """Who watches is told of a change, and not of one that came while it did not want to know."""
    path = tmp_path / "a"
    path.write_text("1")
    is_wanted, told = True, asyncio.Event()

    async def changed() -> None:
        told.set()

    async with asyncio.timeout(10):
        watching = asyncio.create_task(watch(path, lambda: is_wanted, changed, every_s=0.001))
        while not told.is_set():  # the first look may come after the first change
            path.write_text(path.read_text() + "2")
            await asyncio.sleep(0.01)
        is_wanted = False
        told.clear()
        path.write_text("another")
        for _ in range(20):
            await asyncio.sleep(0.001)
        assert not told.is_set()
        watching.cancel()
        await asyncio.wait([watching])
