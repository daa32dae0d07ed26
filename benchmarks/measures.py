"""The numbers of a run, from its rows. Pure: the same rows give the same numbers, to the last digit.

Definitions, and where they differ from `vllm bench serve` 0.32.0 (vllm/benchmarks/serve.py calculate_metrics,
lib/endpoint_request_func.py):

- *TTFT*: from ``sent`` to the first non-empty delta. vLLM's clock stops at the first chunk with a choice, which for
  chat is a role without a token; that time is here as ``first_chunk``.
- *TPOT*: (last chunk - first token) / (output tokens - 1), per request; as vLLM's, but for the first token above.
- *inter-chunk*: between events with content. It is an inter-token latency, and gets that name, only while one event
  is one token.
- *E2E*: from ``sent`` until the answer is complete, ``[DONE]`` included. vLLM's ends at the last chunk with a choice.
- *from intended*: the same from when the schedule wanted the request sent, so that waiting in this client is not
  hidden.
- Failures are in no latency, and in the denominator of goodput. To vLLM an error inside a stream is a success.
- *duration*: from the start to the end of the last answer; *steady*: the part in between where the load was as asked
  for.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from benchmarks.distributions import Distribution, distribution
from benchmarks.records import Row

ONE_TOKEN_PER_CHUNK = 1.01
"""Tokens per event up to which an event is called a token."""

Recounts = Mapping[tuple[int, int], int]
"""Tokens of an answer's text as a tokenizer of ours counts them, by (index, turn)."""


@dataclass(frozen=True, slots=True)
class Goal:
    """What a good request keeps: seconds, None where nothing is asked."""

    ttft_s: float | None = None
    tpot_s: float | None = None
    e2e_s: float | None = None

    @property
    def is_set(self) -> bool:
        """Whether anything is asked."""
        return (self.ttft_s, self.tpot_s, self.e2e_s) != (None, None, None)


def session_offsets(rows: Iterable[Row]) -> dict[int, float]:
    """Where each session begins on one axis without the pauses between them: session -> seconds."""
    lasted: dict[int, float] = {}
    for row in rows:
        lasted[row.session] = max(lasted.get(row.session, 0.0), row.end)
    offsets = {}
    passed = 0.0
    for session in sorted(lasted):
        offsets[session] = passed
        passed += lasted[session]
    return offsets


def on_one_axis(rows: Sequence[Row]) -> list[Row]:
    """*rows* of all sessions on the axis of `session_offsets`, by the time at which they were sent."""
    offsets = session_offsets(rows)
    return sorted((_moved(row, offsets[row.session]) for row in rows), key=lambda row: (row.sent, row.index, row.turn))


def _moved(row: Row, by: float) -> Row:
    if not by:
        return row

    def later(at: float | None) -> float | None:
        return None if at is None else at + by

    return replace(
        row,
        intended=row.intended + by,
        sent=row.sent + by,
        end=row.end + by,
        connected=later(row.connected),
        first_byte=later(row.first_byte),
        first_chunk=later(row.first_chunk),
        first_token=later(row.first_token),
        first_output=later(row.first_output),
        last_chunk=later(row.last_chunk),
    )


def ttft(row: Row) -> float | None:
    """Seconds to the first token; None if there was none, or the answer came whole."""
    return None if row.first_token is None else row.first_token - row.sent


def tpot(row: Row, tokens: int) -> float | None:
    """Seconds per output token after the first; None for an answer of one token or one that came whole."""
    if row.first_token is None or row.last_chunk is None or tokens < 2:
        return None
    return (row.last_chunk - row.first_token) / (tokens - 1)


def output_tokens(row: Row, recounts: Recounts) -> int:
    """What the server charged; where it said nothing, what our tokenizer counts; else the number of chunks."""
    if row.output_tokens is not None:
        return row.output_tokens
    return recounts.get((row.index, row.turn), len(row.token_us))


def token_source(rows: Sequence[Row], recounts: Recounts) -> str:
    """Where the counts of *rows* are from: ``usage``, ``tokenizer``, ``chunks``, or ``mixed``."""
    sources = {
        "usage" if row.output_tokens is not None else "tokenizer" if (row.index, row.turn) in recounts else "chunks"
        for row in rows
    }
    return sources.pop() if len(sources) == 1 else "mixed" if sources else "usage"


def token_times(row: Row) -> list[float]:
    """When each event with content came."""
    times = []
    at = row.sent
    for gap in row.token_us:
        at += gap / 1e6
        times.append(at)
    return times


def tokens_at(row: Row, tokens: int) -> list[tuple[float, float]]:
    """When how many tokens came: spread evenly over the events; all at the end for an answer that came whole."""
    times = token_times(row)
    if not times:
        return [(row.end, float(tokens))] if tokens else []
    return [(at, tokens / len(times)) for at in times]


def is_within(row: Row, tokens: int, goal: Goal) -> bool:
    """Whether a request was answered as asked and kept *goal*. A time that could not be taken keeps none."""
    if not row.is_good:
        return False
    e2e = row.end - row.sent
    first = ttft(row)
    each = tpot(row, tokens)
    if goal.ttft_s is not None and (first is None or first > goal.ttft_s):
        return False
    if goal.tpot_s is not None and tokens > 1 and (each is None or each > goal.tpot_s):
        return False
    return goal.e2e_s is None or e2e <= goal.e2e_s


def most_at_once(rows: Iterable[Row]) -> int:
    """The most requests that were under way at one time."""
    steps = sorted([(row.sent, 1) for row in rows] + [(row.end, -1) for row in rows])
    most = now = 0
    for _, step in steps:
        now += step
        most = max(most, now)
    return most


def steady_window(rows: Sequence[Row], concurrency: int | None) -> tuple[float, float] | None:
    """From when to when the load was as asked for. *rows* by ``sent``. None if that is less than a fifth of the run.

    In a closed loop of *concurrency*: from the first time that many were under way until the last was sent. In an
    open one (None): from the first answer until the last was sent. What comes before fills the server, what comes
    after drains it.
    """
    if not rows:
        return None
    if concurrency is None:
        begins = min(row.end for row in rows)
    else:
        wanted = min(concurrency, len(rows))
        begins = next((row.sent for row in rows if row.in_flight >= wanted), rows[-1].sent)
    ends = rows[-1].sent
    lasts = max(row.end for row in rows)
    return (begins, ends) if ends - begins >= lasts / 5 else None


def busiest_second(arrivals: Iterable[tuple[float, float]]) -> float:
    """The most tokens of any whole second."""
    seconds: Counter[int] = Counter()
    for at, count in arrivals:
        seconds[int(at)] += count  # type: ignore[assignment]
    return float(max(seconds.values(), default=0.0))


@dataclass(frozen=True, slots=True)
class Numbers:
    """What a run came to. Times in seconds, rates per second; the latencies are of good requests only."""

    duration: float
    sent: int
    completed: int
    failed: int
    prompt_tokens: int
    output_tokens: int
    tokens_from: str
    tokens_per_chunk: float | None
    errors: dict[str, int]
    finish_reasons: dict[str, int]
    good: int | None
    most_in_flight: int
    busiest_second: float
    steady: tuple[float, float] | None
    steady_requests: float | None
    steady_tokens: float | None
    cached_tokens: int | None
    ttft: Distribution
    ttft_intended: Distribution
    ttfo: Distribution
    first_chunk: Distribution
    tpot: Distribution
    inter_chunk: Distribution
    e2e: Distribution
    e2e_intended: Distribution
    connect: Distribution
    lag: Distribution
    held: Distribution
    prompt_length: Distribution
    output_length: Distribution

    @property
    def is_one_token_per_chunk(self) -> bool:
        """Whether an inter-chunk latency is an inter-token latency."""
        return self.tokens_per_chunk is not None and self.tokens_per_chunk <= ONE_TOKEN_PER_CHUNK


def measure(
    rows: Sequence[Row],
    recounts: Recounts,
    goal: Goal,
    *,
    is_open: bool,
    concurrency: int | None,
    is_level: bool = True,
) -> Numbers:
    """The numbers of the measured *rows*, on one axis (`on_one_axis`).

    ``concurrency``: of a closed loop. ``is_level``: whether the load was to stay the same; else none of it is steady.
    """
    good = [row for row in rows if row.is_good]
    counts = {(row.index, row.turn): output_tokens(row, recounts) for row in good}
    tokens = [counts[row.index, row.turn] for row in good]
    pairs = list(zip(good, tokens, strict=True))

    def arrivals() -> Iterator[tuple[float, float]]:  # never all at once: a long run has millions
        return (arrival for row, count in pairs for arrival in tokens_at(row, count))

    window = steady_window(rows, None if is_open else concurrency) if is_level else None
    duration = max((row.end for row in rows), default=0.0)
    is_inside = (lambda at: window[0] <= at <= window[1]) if window is not None else (lambda at: False)
    length = window[1] - window[0] if window is not None else None
    failures = [row for row in rows if not row.is_good]
    cached = [row.cached_tokens for row in good if row.cached_tokens is not None]
    return Numbers(
        duration=duration,
        sent=len(rows),
        completed=len(good),
        failed=len(failures),
        prompt_tokens=sum(row.prompt_tokens or row.expected_prompt_tokens or 0 for row in good),
        output_tokens=sum(tokens),
        tokens_from=token_source(good, recounts),
        tokens_per_chunk=_tokens_per_chunk(pairs),
        errors=dict(Counter(str(row.error_kind) for row in failures).most_common()),
        finish_reasons=dict(sorted(Counter(row.finish_reason or "none" for row in good).items())),
        good=sum(is_within(row, count, goal) for row, count in pairs) if goal.is_set else None,
        most_in_flight=most_at_once(rows),
        busiest_second=busiest_second(arrivals()),
        steady=window,
        steady_requests=sum(is_inside(row.end) for row in good) / length if length else None,
        steady_tokens=sum(count for at, count in arrivals() if is_inside(at)) / length if length else None,
        cached_tokens=sum(cached) if cached else None,
        ttft=distribution(_known(ttft(row) for row in good)),
        ttft_intended=distribution([row.first_token - row.intended for row in good if row.first_token is not None]),
        ttfo=distribution([row.first_output - row.sent for row in good if row.first_output is not None]),
        first_chunk=distribution([row.first_chunk - row.sent for row in good if row.first_chunk is not None]),
        tpot=distribution(_known(tpot(row, count) for row, count in pairs)),
        inter_chunk=distribution([gap / 1e6 for row in good for gap in row.token_us[1:]]),
        e2e=distribution([row.end - row.sent for row in good]),
        e2e_intended=distribution([row.end - row.intended for row in good]),
        connect=distribution([row.connected - row.sent for row in good if row.connected is not None]),
        lag=distribution([row.lag for row in rows if row.turn == 0] if is_open else []),
        held=distribution([row.held for row in rows if row.turn == 0] if is_open else []),
        prompt_length=distribution([float(row.prompt_tokens) for row in good if row.prompt_tokens is not None]),
        output_length=distribution([float(count) for count in tokens]),
    )


def _known(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None]


def _tokens_per_chunk(pairs: Sequence[tuple[Row, int]]) -> float | None:
    """Tokens per event with content. The token that ends an answer has no text, so a stop counts one less."""
    streamed = [(row, count) for row, count in pairs if row.token_us]
    chunks = sum(len(row.token_us) for row, _ in streamed)
    if not chunks:
        return None
    shown = sum(count - (row.finish_reason == "stop" and count > len(row.token_us)) for row, count in streamed)
    return shown / chunks
