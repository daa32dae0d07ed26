"""What one fault did to one engine's gateway, and whether that was what was promised."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.fault.matrix.stage import Stage


@dataclass(frozen=True, slots=True)
class Recovery:
    """From the fault to the first whole answer for somebody else, in seconds.

    *refused*: so many of those who asked, one after the other, got an error until then.
    """

    after_s: float
    refused: int = 0


@dataclass(frozen=True, slots=True)
class Outcome:
    """What was seen. *client*: in words, what came of the request that met the fault.

    *orphans*: processes of the run, or gateway, that was hit and live on. *leaked_leases*: leases, requests in flight
    and waiting, that stay counted when nobody is served. *lost_lines*: numbered lines of the engine's log that are not
    in its files, or not in their order; *is_loss_told*: the product itself said that it could not write them.
    """

    client: str
    recovery: Recovery
    orphans: int
    leaked_leases: int
    lost_lines: int
    is_loss_told: bool = False


@dataclass(frozen=True, slots=True)
class Absent:
    """The engine has nothing that this fault could hit: neither good nor bad."""

    reason: str


@dataclass(frozen=True, slots=True)
class Broken:
    """The fault's course ended where it should not have: *problem* in a sentence or more."""

    problem: str


@dataclass(frozen=True, slots=True)
class Fault:
    """One column. *promise* says what the client may expect, *expected* matches the words of such an outcome.

    *inject* does it on a stage whose backend is READY, or not yet started where *is_cold*, and returns what was seen.
    *needs_port*: the engine has to listen on a port for it. Afterwards the stage's gateway serves again, or has been
    replaced by one that does.
    """

    key: str
    title: str
    promise: str
    expected: str
    inject: Callable[[Stage], Outcome | Absent]
    is_cold: bool = False
    needs_port: bool = False


Seen = Outcome | Absent | Broken


@dataclass(frozen=True, slots=True)
class Cell:
    """What was seen of *fault* on the engine *engine*."""

    engine: str
    fault: Fault
    seen: Seen

    def complaints(self) -> list[str]:
        """What is not as promised; empty for a good cell."""
        if isinstance(self.seen, Absent):
            return []
        if isinstance(self.seen, Broken):
            return [self.seen.problem]
        seen, found = self.seen, []
        if not re.fullmatch(self.fault.expected, seen.client):
            found.append(f"the client saw {seen.client!r}, and should have seen: {self.fault.promise}")
        if seen.orphans:
            found.append(f"{seen.orphans} processes live on")
        if seen.leaked_leases:
            found.append(f"{seen.leaked_leases} leases or requests stay counted")
        if seen.lost_lines and not seen.is_loss_told:
            found.append(f"{seen.lost_lines} log lines are lost, and nobody was told")
        return found
