"""A model's stay in a daemon that serves several: what there is to say of it, and what has to be done for it.

An adapter describes the doing as a plan: steps out, replies in, without any I/O. `backends.moving` drives it.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from backends.adapter import Body, Call, Probe
from backends.diagnosis import Diagnosis
from chat_templates.forms.gguf_file import RewrittenGguf

PHASE_MARK = "[daemon] "
"""Before what a daemon is said to be doing for a model, in that model's log."""


@dataclass(frozen=True, slots=True)
class Reading:
    """Something to be read from files, away from the event loop; what *read* returns is the reply's *value*."""

    read: Callable[[], Any]


Source = Path | RewrittenGguf | str
"""A file, a file as it would be with other keys, or a text's UTF-8."""


@dataclass(frozen=True, slots=True)
class Digest:
    """The sha256 of *source*, wanted in hex as the reply's *value*."""

    source: Source


@dataclass(frozen=True, slots=True)
class Upload:
    """*source*, to be posted to *target* as it is."""

    target: str
    source: Source


@dataclass(frozen=True, slots=True)
class Follow:
    """A Call that is answered with one JSON object a line, the last of which is the reply's body.

    *phase* names what is being done, in a few words, from one such object; None leaves the phase as it is.
    """

    call: Call
    phase: Callable[[Body], str | None]


@dataclass(frozen=True, slots=True)
class Pause:
    """Nothing, for so many seconds."""

    seconds: float


Step = Call | Reading | Digest | Upload | Follow | Pause


@dataclass(frozen=True, slots=True)
class Reply:
    """What came of a Step: an HTTP *status* with the JSON object of its body, empty for none; or a *value*."""

    status: int = 200
    body: Body = field(default_factory=dict)
    value: Any = None


@dataclass(frozen=True, slots=True)
class Resident:
    """A model as its daemon has it.

    *name* is what the daemon calls it. *weights* names what is in memory once it is loaded: residents with the same
    weights share that, so they have to agree on *runner*, the settings it is loaded with. *load* returns when it is
    loaded; *leave* makes the daemon forget it, and ends when it has.
    """

    name: str
    weights: str
    runner: Mapping[str, Any]
    probe: Probe
    load: Call
    leave: Callable[[], Generator[Step, Reply, None]]


ArrivalPlan = Generator[Step, Reply, Resident]
"""Steps out, replies in, without any I/O, until the daemon has the model. Raises ResidenceRefused."""


class ResidenceRefused(Exception):
    """A daemon cannot have a model as it is wanted; the diagnosis says why."""

    def __init__(self, diagnosis: Diagnosis) -> None:
        super().__init__(diagnosis.reason)
        self.diagnosis = diagnosis


@dataclass(frozen=True, slots=True)
class Residence:
    """A run that is no process but a model's stay in a daemon, which serves several. *diagnose*: why it did not load,
    from the answer to the load."""

    arrive: Callable[[], ArrivalPlan]
    diagnose: Callable[[Reply], Diagnosis]
