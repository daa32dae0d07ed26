"""Which replica of a model serves a request, decided from how each of them stands at that moment.

Least outstanding: of the READY replicas the one with the fewest requests. A request with an affinity prefers one of
them, always the same while that one has room, because there the beginning of its prompt is still in the prefix cache.
The preference is rendezvous hashing (Thaler and Ravishankar, "Using name-based mappings to increase hit rates",
IEEE/ACM Transactions on Networking 6(1), 1998): one more replica takes its own share of the affinities and moves no
other. The room is that of "Consistent Hashing with Bounded Loads" (Mirrokni, Thorup, Zadimoghaddam, arXiv:1608.01350):
no replica gets more than 1.25 times its share, so that one busy conversation cannot pile up on one engine.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

from backends.lifecycle import RESTING, State

LOAD_FACTOR = 1.25
"""How far above its even share a replica may be filled for the sake of an affinity."""

_READINESS = {
    State.READY: 0,
    State.STARTING: 1,
    State.SLEEPING: 2,
    State.STOPPED: 3,
    State.YIELDING: 4,
    State.DRAINING: 4,
    State.STOPPING: 4,
    State.RECYCLING: 5,
    State.BACKOFF: 5,
    State.FAILED: 6,
}
"""How soon a replica may answer: one that is starting before one that is yet to start, before one that is ending."""


@dataclass(frozen=True, slots=True)
class Replica:
    """One replica as the choice sees it. *outstanding*: the requests it works on and those that wait for it."""

    name: str
    state: State
    outstanding: int


def choose(replicas: Sequence[Replica], affinity: bytes | None, turn: int) -> str:
    """The name of the replica to use, or to wait for when none is READY. *replicas* must not be empty.

    *affinity*: any bytes; equal ones prefer the same replica. *turn*: a number that counts up, so that without an
    affinity equally loaded replicas take turns.
    """
    soonest = min(_READINESS[replica.state] for replica in replicas)
    ready = [replica for replica in replicas if _READINESS[replica.state] == soonest]
    if affinity is None:
        least = min(replica.outstanding for replica in ready)
        idlest = [replica for replica in ready if replica.outstanding == least]
        return idlest[turn % len(idlest)].name
    room = share(sum(replica.outstanding for replica in ready) + 1, len(ready))
    fitting = (replica for replica in ready if replica.outstanding < room)
    return max(fitting, key=lambda replica: weight(affinity, replica.name)).name


def share(outstanding: int, replicas: int) -> int:
    """The most requests one of *replicas* may have when there are *outstanding* in all. At least one has room below."""
    return math.ceil(LOAD_FACTOR * outstanding / replicas)


def weight(affinity: bytes, name: str) -> bytes:
    """How much *affinity* prefers the replica *name*: the largest of a group wins."""
    return hashlib.blake2b(name.encode(), key=hashlib.sha256(affinity).digest(), digest_size=8).digest()


def to_wake(replicas: Sequence[Replica]) -> str | None:
    """The resting replica to start when every READY one is busy: an on-demand model grows as it is used."""
    ready = [replica for replica in replicas if replica.state is State.READY]
    is_starting = any(replica.state is State.STARTING for replica in replicas)
    if not ready or is_starting or any(replica.outstanding == 0 for replica in ready):
        return None
    resting = sorted(replicas, key=lambda replica: _READINESS[replica.state])
    return next((replica.name for replica in resting if replica.state in RESTING), None)
