"""Random lives of real processes; `make fault` plays 500 of them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.fault.interleavings import ACTS, Act, as_text, from_text, play_all, script_of

COUNT = int(os.environ.get("UNIGATE_INTERLEAVINGS", "25"))
FIRST = 1


@pytest.mark.timeout(60 + 3 * COUNT)
async def test_whatever_is_done_to_processes(tmp_path: Path) -> None:
    """Starts, stops, kills and leases in any order leave no process, lease, waiter, record, socket or task behind."""
    told: list[str] = []
    seeds = range(FIRST, FIRST + COUNT)
    broken, census = await play_all(tmp_path, ((seed, script_of(seed)) for seed in seeds), told.append)
    print(census)
    assert broken == [], "\n".join(told)
    assert census.leases > COUNT / 2
    assert {"BecameReady", "Crashed", "Exited", "StopRequested"} <= set(census.events)


def test_a_seed_is_a_script() -> None:
    """The same seed gives the same script, another seed another, and every act is drawn now and then."""
    assert script_of(7) == script_of(7) != script_of(8)
    assert {act for seed in range(100) for act, _ in script_of(seed)} == set(ACTS)


def test_a_script_can_be_played_by_hand() -> None:
    """What is told of a broken script is what `--script` takes."""
    assert all(from_text(as_text(script_of(seed))) == script_of(seed) for seed in range(100))


SCRIPTS: list[list[Act]] = [
    from_text("load a; ready a; kill a; lease a; pause 50; unload a"),
    from_text("load a; ready a; stop a; lease a; pause 100; restart a"),
    from_text("mood a deaf child; load a; ready a; kill-shim a; load b; lease a; pause 100"),
    from_text("mood a exit; lease a; lease a; cancel a; pause 100; load a; ready a; kill-child a"),
    from_text("mood a mute; load a; lease a; pause 100; unload a; load a; lease b"),
]


@pytest.mark.parametrize("script", SCRIPTS, ids=as_text)
async def test_what_chance_may_not_find(tmp_path: Path, script: list[Act]) -> None:
    """Scripts written by hand hold as well."""
    told: list[str] = []
    broken, _ = await play_all(tmp_path, iter([(0, script)]), told.append)
    assert broken == [], told
