"""Whether a run's numbers may be believed. Pure: from rows, journal and plan to reasons against it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.distributions import distribution, quantile
from benchmarks.engine_metrics import dialect_named, under_way
from benchmarks.journal import ClientSample, Journal, Session, cpu_shares, mean_share
from benchmarks.measures import Numbers, Recounts
from benchmarks.plan import Plan
from benchmarks.records import Row

LAG_S = 0.005
LAG_PART_OF_TTFT = 0.10
LEAST_ACHIEVED = 0.98
MOST_CPU = 0.80
CPU_WINDOW_S = 5.0
MOST_MISCOUNTED = 0.01
MOST_CACHED = 0.1
LEAST_FOREIGN_SAMPLES = 2
FOREIGN_PART = 0.05
LOOK_BACK = 1000  # samples


@dataclass(frozen=True, slots=True)
class Verdict:
    """``reasons``: why the run is INVALID, empty if it is not; ``warnings``: what else a reader has to know."""

    reasons: tuple[str, ...]
    warnings: tuple[str, ...]

    @property
    def is_valid(self) -> bool:
        """Whether nothing speaks against the numbers."""
        return not self.reasons


def judge(
    plan: Plan, rows: Sequence[Row], numbers: Numbers, journal: Journal, recounts: Recounts, notes: Iterable[str] = ()
) -> Verdict:
    """The verdict on a run. *rows*: measured, on one axis; *notes*: what was said of its prompts."""
    reasons = [
        *_lag(plan, numbers, journal),
        *_rate(plan, rows),
        *_cpu(journal.samples),
        *_model(rows, journal.sessions),
        *_others(journal),
        *_tokens(plan, rows, recounts),
    ]
    if not numbers.completed:
        reasons.append("no request was answered as asked")
    return Verdict(tuple(reasons), (*notes, *_warnings(plan, numbers, journal)))


def lag_limit(numbers: Numbers) -> float:
    """Seconds of lateness that do not show in the numbers: 5 ms, or a tenth of the median TTFT if that is more."""
    typical = numbers.ttft.median if numbers.ttft.median is not None else numbers.e2e.median
    return max(LAG_S, LAG_PART_OF_TTFT * (typical or 0.0))


def loop_lag(samples: Sequence[ClientSample], part: float) -> float | None:
    """How late this client's own ticks came, in seconds, at a quantile; None without any."""
    ticks = sorted(tick for sample in samples for tick in sample.lag_us)
    return quantile(ticks, part) / 1e6 if ticks else None


def _lag(plan: Plan, numbers: Numbers, journal: Journal) -> list[str]:
    limit = lag_limit(numbers)
    found = []
    if plan.is_open and numbers.sent:
        late = _p99(numbers)
        if late > limit:
            found.append(
                f"send lag: this client sent requests up to {late * 1000:.1f} ms late (p99); at most "
                f"{limit * 1000:.1f} ms do not distort the latencies. Use a faster or idler machine, or a lower rate"
            )
    late_loop = loop_lag(journal.samples, 0.99)
    if late_loop is not None and late_loop > limit:
        wait = mean_share(journal.samples, "wait_s")
        starved = f"; it waited {wait:.0%} of the time for a CPU" if wait is not None and wait > 0.02 else ""
        found.append(
            f"late client: its clock ticks came up to {late_loop * 1000:.1f} ms late (p99), at most "
            f"{limit * 1000:.1f} ms do not distort the latencies{starved}. Something else uses this machine"
        )
    return found


def _p99(numbers: Numbers) -> float:
    """Of the lag; of few requests it is the latest one, which errs on the side of caution."""
    known = dict(numbers.lag.percentiles).get(99.0)
    return known if known is not None else numbers.lag.most or 0.0


def _rate(plan: Plan, rows: Sequence[Row]) -> list[str]:
    if not plan.is_open:
        return []
    offered = achieved = 0.0
    for session in {row.session for row in rows}:
        own = [row for row in rows if row.session == session and row.turn == 0]
        if len(own) > 1:
            first = min(row.intended for row in own)
            offered += max(row.intended for row in own) - first
            achieved += max(row.sent for row in own) - first
    if not offered or offered / achieved >= LEAST_ACHIEVED:
        return []
    held = " because max_in_flight were under way" if any(row.held for row in rows) else ""
    return [
        f"rate: {offered / achieved:.1%} of the offered rate was sent{held}; at least {LEAST_ACHIEVED:.0%} is asked"
    ]


def _cpu(samples: Sequence[ClientSample]) -> list[str]:
    shares = cpu_shares(samples, CPU_WINDOW_S) or [mean_share(samples, "cpu_s") or 0.0]
    most = max(shares)
    if most <= MOST_CPU:
        return []
    return [f"client CPU: this client used {most:.0%} of a core; above {MOST_CPU:.0%} it measures itself"]


def _model(rows: Sequence[Row], sessions: Sequence[Session]) -> list[str]:
    found = []
    models = sorted({row.model for row in rows if row.is_good and row.model is not None})
    prints = sorted({row.fingerprint for row in rows if row.is_good and row.fingerprint is not None})
    if len(models) > 1:
        found.append(f"changed model: the answers name {', '.join(models)}")
    if len(prints) > 1:
        found.append(f"changed server: the answers carry the fingerprints {', '.join(prints)}")
    states = [state for session in sessions for state in (session.before, session.after) if state is not None]
    for name in ("model", "version", "backends"):
        values = [_identity(state[name]) for state in states if state.get(name) is not None]
        if any(value != values[0] for value in values):
            found.append(f"changed {name}: what the server says of it is not the same before and after the run")
    return found


def _identity(said: Any) -> Any:
    """Of a gateway's backends what has to stay; of all else everything."""
    if not isinstance(said, list):
        return said
    kept = ("name", "engine", "pid", "restarts")
    return sorted([str(one.get(name)) for name in kept] for one in said)


def _others(journal: Journal) -> list[str]:
    found = []
    for session in journal.sessions:
        for name, sample in sorted(session.before.get("servers", {}).items()):
            busy = under_way(dialect_named(name), sample)
            if busy:
                found.append(f"other tenants: {busy:.0f} requests were under way on {name} before the run began")
        after = (session.after or {}).get("servers", {})
        for name, sample in sorted(after.items()):
            before = session.before.get("servers", {}).get(name, {})
            if "finished" in sample and "finished" in before:
                more = sample["finished"] - before["finished"] - session.requests
                if more < -session.requests:
                    found.append(f"restarted: {name} counts from anew; it was started again in the middle of the run")
                elif more > max(1.0, 0.005 * session.requests):
                    found.append(f"other tenants: {name} answered {more:.0f} requests that were not of this run")
    for name in sorted({name for sample in journal.samples for name in sample.servers}):
        foreign = _foreign(journal.samples, name)
        seen = [sample for sample in journal.samples if name in sample.servers]
        if len(foreign) >= LEAST_FOREIGN_SAMPLES and len(foreign) >= FOREIGN_PART * len(seen):
            found.append(f"other tenants: {name} had up to {max(foreign):.0f} requests more under way than this run")
    return found


def _foreign(samples: Sequence[ClientSample], name: str) -> list[float]:
    """How many more requests the server had under way than we, of every sample in which it had."""
    dialect = dialect_named(name)
    found = []
    for place, sample in enumerate(samples):
        busy = under_way(dialect, sample.servers.get(name, {}))
        if busy is None:
            continue
        most = sample.most_in_flight
        for other in reversed(samples[max(0, place - LOOK_BACK) : place]):
            if other.session != sample.session or sample.at - other.at > dialect.refresh_s + 1:
                break
            most = max(most, other.most_in_flight)
        more = busy - most
        if more > 0:
            found.append(more)
    return found


def miscounted(rows: Iterable[Row], recounts: Recounts) -> tuple[int, int]:
    """Tokens by which the server's counts and ours differ, and how many were compared.

    The token that ends an answer has no text: one less is expected after a stop.
    """
    differ = compared = 0
    for row in rows:
        ours = recounts.get((row.index, row.turn))
        if row.is_good and ours is not None and row.output_tokens is not None:
            compared += row.output_tokens
            gap = abs(row.output_tokens - ours)
            differ += max(0, gap - (row.finish_reason == "stop"))
    return differ, compared


def _tokens(plan: Plan, rows: Sequence[Row], recounts: Recounts) -> list[str]:
    found = []
    differ, compared = miscounted(rows, recounts)
    if compared and differ / compared > MOST_MISCOUNTED:
        found.append(
            f"tokens: the server's counts and those of {plan.tokenizer} differ by {differ / compared:.1%}; is it the "
            "model's own tokenizer?"
        )
    expected = [
        (row.expected_prompt_tokens, row.prompt_tokens)
        for row in rows
        if row.is_good and row.expected_prompt_tokens is not None and row.prompt_tokens is not None
    ]
    wanted = sum(pair[0] for pair in expected)
    # one more than expected is the token that begins a text
    wrong = sum(max(0, abs(pair[1] - pair[0]) - (pair[1] > pair[0])) for pair in expected)
    if wanted and wrong / wanted > MOST_MISCOUNTED:
        found.append(f"prompt tokens: the server counts {wrong / wanted:.1%} otherwise than asked for")
    return found


def _warnings(plan: Plan, numbers: Numbers, journal: Journal) -> list[str]:
    found = []
    if numbers.failed:
        found.append(f"{numbers.failed} of {numbers.sent} requests failed; they are in no latency")
    if numbers.tokens_from != "usage":
        found.append(f"the server did not say how many tokens it made; they are counted from {numbers.tokens_from}")
    if numbers.tokens_per_chunk is not None and not numbers.is_one_token_per_chunk:
        found.append(
            f"{numbers.tokens_per_chunk:.2f} tokens per chunk: gaps between chunks are not inter-token latencies"
        )
    if numbers.cached_tokens and numbers.cached_tokens > MOST_CACHED * numbers.prompt_tokens:
        cached = numbers.cached_tokens / numbers.prompt_tokens
        found.append(
            f"{cached:.0%} of the prompts' tokens came from the server's prefix cache: it has seen them before; "
            "another --seed makes others"
        )
    if len(journal.sessions) > 1:
        found.append(f"the run was resumed {len(journal.sessions) - 1} times; the pauses are left out")
    if not journal.is_done:
        found.append("the run is not complete")
    found += _crowded(journal)
    if numbers.steady is None and numbers.sent and plan.is_level:
        found.append("too short for a steady window: the load was as asked for in less than a fifth of the run")
    return found


def _crowded(journal: Journal) -> list[str]:
    """A server on this machine shares it with whatever else runs here."""
    for session in journal.sessions:
        client = session.environment.get("client", {})
        load, cores = client.get("load_average"), client.get("cores")
        if session.environment.get("server_is_on_this_machine") and load and cores and load[0] > cores:
            return [
                f"the server is on this machine, whose load was {load[0]:.1f} on {cores} cores when the run began: "
                "what else ran here slowed it down"
            ]
    return []


def lag_summary(samples: Sequence[ClientSample]) -> Mapping[str, float | None]:
    """What the client's own health comes to: milliseconds, and parts of a core."""
    ticks = distribution([tick / 1000 for sample in samples for tick in sample.lag_us])
    p99 = loop_lag(samples, 0.99)
    return {
        "tick_lag_median_ms": ticks.median,
        "tick_lag_p99_ms": None if p99 is None else p99 * 1000,
        "tick_lag_max_ms": ticks.most,
        "cpu_mean": mean_share(samples, "cpu_s"),
        "cpu_max": max(cpu_shares(samples, CPU_WINDOW_S), default=None),
        "cpu_wait_mean": mean_share(samples, "wait_s"),
    }
