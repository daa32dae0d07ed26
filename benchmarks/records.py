"""What is kept of every request: one row, written as it ends. All numbers are recomputed from these rows."""

from __future__ import annotations

import dataclasses
import queue
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from benchmarks.errors import BenchmarkError

REQUESTS = "requests.jsonl"
JOURNAL = "journal.jsonl"
RECOUNTS = "recounts.jsonl"

WARM_UP = "warm_up"
MEASURED = "measured"


@dataclass(frozen=True, slots=True)
class Row:
    """One request. Times are seconds since its session's own start, rounded to 1 us; ``None``: it never came.

    ``index``, ``turn``: which conversation of the plan and which question of it. ``intended``: when the schedule
    wanted it sent; without a schedule, when its turn came. ``held``: seconds it then waited because ``max_in_flight``
    were under way. ``sent``: when it was handed to a connection, before any connect. ``connected``: when a new
    connection was there; None on one that was kept alive. ``first_byte``: the head. ``first_chunk``, ``first_token``,
    ``first_output``, ``last_chunk``: see `benchmarks.load.reading.Reading`. ``end``: the answer was complete, or had
    failed.

    ``token_us``: of every event with content, microseconds after the one before; the first after ``sent``.
    ``token_chars``: the characters in each. ``in_flight``: requests under way when it was sent, itself included.
    ``error_kind``: None, or one of ``http stream_error no_finish_reason no_done unexpected_finish garbage timeout
    connection``.
    """

    index: int
    turn: int
    is_last_turn: bool
    phase: str
    session: int
    prompt: str
    intended: float
    held: float
    sent: float
    end: float
    in_flight: int
    status: int | None = None
    connected: float | None = None
    first_byte: float | None = None
    first_chunk: float | None = None
    first_token: float | None = None
    first_output: float | None = None
    last_chunk: float | None = None
    expected_prompt_tokens: int | None = None
    wanted_tokens: int | None = None
    prompt_tokens: int | None = None
    output_tokens: int | None = None
    cached_tokens: int | None = None
    finish_reason: str | None = None
    model: str | None = None
    fingerprint: str | None = None
    error_kind: str | None = None
    error_text: str | None = None
    token_us: tuple[int, ...] = ()
    token_chars: tuple[int, ...] = ()
    text: str | None = None

    @property
    def is_good(self) -> bool:
        """Whether it was answered as asked."""
        return self.error_kind is None

    @property
    def lag(self) -> float:
        """Seconds this client was late with sending."""
        return self.sent - self.intended - self.held


_FIELDS = {field.name for field in dataclasses.fields(Row)}
_NEEDED = {
    field.name for field in dataclasses.fields(Row) if field.default is dataclasses.MISSING
}  # fmt: skip


class RecordFile:
    """Appends JSON lines to a file from a thread of its own, so that no disk delays a request.

    What was added is in the file at most ``FLUSH_S`` later, and all of it after ``close``.
    """

    FLUSH_S = 0.1

    def __init__(self, path: Path) -> None:
        self._path = path
        self._queue: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self._ended = threading.Event()
        self._file = path.open("ab", buffering=0)  # nothing is left to fail when it is closed
        self._problem: OSError | None = None
        self._thread = threading.Thread(target=self._write, name=f"writes {path.name}", daemon=True)
        self._thread.start()

    def add(self, record: object) -> None:
        """Append *record*: a dataclass or JSON. Raises BenchmarkError when the file cannot be written (any more)."""
        if self._problem is not None:
            raise BenchmarkError(f"{self._path}: {self._problem.strerror or self._problem}")
        # made into bytes here: a thread that did it in batches would hold the interpreter for milliseconds
        self._queue.put(orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE))

    def close(self) -> None:
        """Write what is left. Raises BenchmarkError if something could not be written."""
        self._ended.set()
        self._thread.join()
        self._file.close()
        if self._problem is not None:
            raise BenchmarkError(f"{self._path}: {self._problem.strerror or self._problem}")

    def _write(self) -> None:
        is_last = False
        while not is_last:
            is_last = self._ended.wait(self.FLUSH_S)
            lines = []
            while not self._queue.empty():
                lines.append(self._queue.get())
            try:
                unwritten = memoryview(b"".join(lines))
                while unwritten:
                    unwritten = unwritten[self._file.write(unwritten) :]
            except OSError as problem:
                self._problem = problem
                return


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSON-lines file; none without the file. A last line that was cut is left out.

    Raises BenchmarkError with file and line for any other that is not an object.
    """
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return []
    except OSError as problem:
        raise BenchmarkError(f"{path}: {problem.strerror or problem}") from problem
    found = []
    for number, line in enumerate(lines[:-1], 1):  # what follows the last newline was cut, or is empty
        try:
            record = orjson.loads(line)
        except orjson.JSONDecodeError as problem:
            raise BenchmarkError(f"{path}:{number}: not JSON ({problem}); mend or remove this line") from problem
        if not isinstance(record, dict):
            raise BenchmarkError(f"{path}:{number}: not a JSON object; mend or remove this line")
        found.append(record)
    return found


def cut_torn_line(path: Path) -> None:
    """Remove what follows the last newline of *path*, left there by a process that was killed."""
    if not path.exists():
        return
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        with path.open("r+b") as file:
            file.truncate(whole)


def read_rows(folder: Path) -> list[Row]:
    """The rows of a run. One that was sent again, after an interruption, counts as it went the last time.

    Raises BenchmarkError with file and line.
    """
    path = folder / REQUESTS
    latest: dict[tuple[str, int, int], Row] = {}
    for number, record in enumerate(read_lines(path), 1):
        missing = _NEEDED - record.keys()
        if missing:
            raise BenchmarkError(f"{path}:{number}: not a row of this program: no {', '.join(sorted(missing))}")
        row = Row(**{name: value for name, value in record.items() if name in _FIELDS})
        key = (row.phase, row.index, row.turn)
        latest.pop(key, None)
        latest[key] = row
    return list(latest.values())


def finished(rows: Iterable[Row]) -> set[int]:
    """The conversations that are over: answered to their end, or failed."""
    return {row.index for row in rows if row.phase == MEASURED and (row.is_last_turn or not row.is_good)}
