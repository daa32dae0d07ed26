"""What always holds of the choice between replicas."""

from __future__ import annotations

import math
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from backends.choosing import Replica, choose, share, to_wake
from backends.lifecycle import State

LOADS = st.lists(st.integers(0, 40), min_size=1, max_size=16)
AFFINITIES = st.none() | st.binary(max_size=64)
TURNS = st.integers(0, 10_000)
STATES = st.lists(st.tuples(st.sampled_from(State), st.integers(0, 40)), min_size=1, max_size=16)


def ready(loads: list[int]) -> list[Replica]:
    """READY replicas with these numbers of requests."""
    return [Replica(f"m#{number}", State.READY, load) for number, load in enumerate(loads)]


def load_of(replicas: list[Replica], name: str) -> int:
    """The requests of the one called *name*."""
    return next(replica.outstanding for replica in replicas if replica.name == name)


@given(STATES, AFFINITIES, TURNS)
def test_a_ready_one_comes_first(states: list[tuple[State, int]], affinity: bytes | None, turn: int) -> None:
    """Whatever the loads, one that is not READY is chosen only when none is, a FAILED one only when all are."""
    replicas = [Replica(f"m#{number}", state, load) for number, (state, load) in enumerate(states)]
    chosen = next(replica for replica in replicas if replica.name == choose(replicas, affinity, turn))
    states_there = {replica.state for replica in replicas}
    assert chosen.state is State.READY or State.READY not in states_there
    assert chosen.state is not State.FAILED or states_there == {State.FAILED}


@given(LOADS, TURNS)
def test_without_an_affinity_the_least_loaded(loads: list[int], turn: int) -> None:
    """No READY replica has fewer requests than the chosen one."""
    replicas = ready(loads)
    assert load_of(replicas, choose(replicas, None, turn)) == min(loads)


@given(st.integers(1, 16), st.integers(1, 20))
def test_equally_loaded_ones_take_turns(count: int, rounds: int) -> None:
    """Requests that come one after the other are spread evenly."""
    replicas = ready([0] * count)
    chosen = Counter(choose(replicas, None, turn) for turn in range(count * rounds))
    assert set(chosen.values()) == {rounds}


@given(LOADS, st.binary(), TURNS)
def test_an_affinity_never_overfills(loads: list[int], affinity: bytes, turn: int) -> None:
    """With the request, the chosen replica has at most 1.25 times its even share, rounded up."""
    replicas = ready(loads)
    taken = load_of(replicas, choose(replicas, affinity, turn)) + 1
    assert taken <= math.ceil(1.25 * (sum(loads) + 1) / len(loads))


@given(LOADS, st.binary(), TURNS, TURNS)
def test_an_affinity_stays_while_there_is_room(loads: list[int], affinity: bytes, turn: int, later: int) -> None:
    """The replica that an idle model would use is used as long as its share is not full."""
    preferred = choose(ready([0] * len(loads)), affinity, turn)
    replicas = ready(loads)
    if load_of(replicas, preferred) < share(sum(loads) + 1, len(loads)):
        assert choose(replicas, affinity, later) == preferred


@given(st.integers(1, 15), st.binary())
def test_one_more_replica_takes_only_what_becomes_its_own(count: int, affinity: bytes) -> None:
    """With one more replica an affinity stays where it was, or moves to the new one."""
    before = choose(ready([0] * count), affinity, 0)
    after = choose(ready([0] * (count + 1)), affinity, 0)
    assert after in (before, f"m#{count}")


@given(st.integers(1, 8))
def test_it_takes_about_its_share(count: int) -> None:
    """Of many affinities the new one of N takes about one in N: half more or less at the most."""
    affinities = [number.to_bytes(4, "big") for number in range(1000)]
    moved = sum(choose(ready([0] * (count + 1)), affinity, 0) == f"m#{count}" for affinity in affinities)
    assert 0.5 < moved / (len(affinities) / (count + 1)) < 1.5


@given(STATES)
def test_only_a_resting_one_is_woken_and_only_when_all_are_busy(states: list[tuple[State, int]]) -> None:
    """A replica is woken when it rests, every READY one has a request, and no other is starting: a sleeper first."""
    replicas = [Replica(f"m#{number}", state, load) for number, (state, load) in enumerate(states)]
    woken = to_wake(replicas)
    loads = [replica.outstanding for replica in replicas if replica.state is State.READY]
    resting = [replica.name for replica in replicas if replica.state is State.SLEEPING]
    resting += [replica.name for replica in replicas if replica.state is State.STOPPED]
    is_due = bool(loads) and min(loads) > 0 and bool(resting) and State.STARTING not in {one.state for one in replicas}
    assert woken == (resting[0] if is_due else None)
