"""What speaks against a run."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.journal import DONE, ClientSample, Journal, Session
from benchmarks.measures import Recounts, measure
from benchmarks.plan import Plan
from benchmarks.records import Row
from benchmarks.validity import Verdict, judge, lag_summary, miscounted
from tests.unit.benchmarks.rows import failed, row

OPEN = Plan("http://x/v1", "m", rate=10.0, num_prompts=100)
CLOSED = Plan("http://x/v1", "m", concurrency=4, num_prompts=100)


def sample(at: float, **given: Any) -> ClientSample:
    """A sample of an idle client, 4 requests under way."""
    fields: dict[str, Any] = {
        "session": 0, "at": at, "in_flight": 4, "most_in_flight": 4, "ended": 0, "failed": 0, "cpu_s": at * 0.1,
        "wait_s": 0.0, "lag_us": (100,) * 50, "servers": {},
    }  # fmt: skip
    return ClientSample(**{**fields, **given})


def session(
    number: int = 0, *, before: Any = None, after: Any = None, ended: str | None = DONE, environment: Any = None
) -> Session:
    """A session of 100 requests."""
    return Session(number, environment or {}, before or {}, after or {}, ended, 100)


CROWDED = {"server_is_on_this_machine": True, "client": {"load_average": [6.5, 5.0, 4.0], "cores": 2}}


def verdict(
    plan: Plan, rows: list[Row], *, samples: list[ClientSample] | None = None, sessions: list[Session] | None = None,
    recounts: Recounts | None = None,
) -> Verdict:  # fmt: skip
    """The verdict on *rows*."""
    journal = Journal(tuple(sessions or [session()]), tuple(samples or [sample(0.0), sample(10.0)]))
    recounts = recounts or {}
    numbers = measure(rows, recounts, plan.goal, is_open=plan.is_open, concurrency=plan.concurrency)
    return judge(plan, rows, numbers, journal, recounts)


def steady(count: int = 100, **given: Any) -> list[Row]:
    """Requests every 0.1 s."""
    return [row(number, sent=number * 0.1, **given) for number in range(count)]


def test_nothing_speaks_against_a_clean_run() -> None:
    """A run without a flaw is valid."""
    for plan in (OPEN, CLOSED):
        assert verdict(plan, steady()).reasons == ()


def test_sending_late_is_invalid() -> None:
    """Lag beyond 5 ms, or a tenth of the TTFT, distorts an open loop."""
    late = [row(number, sent=number * 0.1 + 0.012, intended=number * 0.1, first=0.1) for number in range(100)]
    assert "send lag" in verdict(OPEN, late).reasons[0]
    slow = [row(number, sent=number * 0.1 + 0.012, intended=number * 0.1, first=0.2) for number in range(100)]
    assert verdict(OPEN, slow).is_valid


def test_being_held_back_is_not_lag() -> None:
    """Waiting for room among max_in_flight is asked for; what it costs shows in the rate."""
    held = [row(number, sent=number * 0.1 + 0.5, intended=number * 0.1, held=0.5) for number in range(1000)]
    assert verdict(OPEN, held).reasons == ()


def test_ticks_that_come_late_are_invalid_in_a_closed_loop_too() -> None:
    """A starved client is found without a schedule: by its own clock."""
    starved = [sample(float(at), lag_us=(20_000,) * 50, wait_s=at * 0.5) for at in range(10)]
    (reason,) = verdict(CLOSED, steady(), samples=starved).reasons
    assert "late client" in reason
    assert "waited 50% of the time for a CPU" in reason


def test_a_missed_rate_is_invalid() -> None:
    """Less than 98 % of the offered rate sent is another experiment than the one asked for."""
    missed = [row(number, sent=number * 0.105, intended=number * 0.1, held=number * 0.005) for number in range(100)]
    (reason,) = verdict(OPEN, missed).reasons
    assert reason.startswith("rate: 95.2% of the offered rate was sent because max_in_flight")


def test_a_busy_client_is_invalid() -> None:
    """Above 80 % of a core over some seconds, the client measures itself."""
    busy = [sample(float(at), cpu_s=at * 0.2 + max(0, at - 10) * 0.7) for at in range(20)]
    assert "client CPU: this client used 90% of a core" in verdict(CLOSED, steady(), samples=busy).reasons[0]


def test_another_model_in_the_middle_is_invalid() -> None:
    """Answers that name two models, or carry two fingerprints, are of two experiments."""
    rows = [*steady(50), *[row(50 + number, sent=5 + number * 0.1, model="n", fingerprint="f") for number in range(50)]]
    rows[0] = row(0, fingerprint="g")
    reasons = verdict(CLOSED, rows).reasons
    assert reasons[0] == "changed model: the answers name m, n"
    assert "fingerprints f, g" in reasons[1]


def test_a_server_that_is_another_afterwards_is_invalid() -> None:
    """What /v1/models, the version or the gateway say has to be the same before and after."""
    first = {"name": "a", "engine": "vllm", "pid": 1, "restarts": 0, "idle": 3}
    for changes, reason in (({"pid": 2}, "changed backends: "), ({"idle": 4}, "")):
        states = [{"version": "1", "backends": [one]} for one in (first, {**first, **changes})]
        told = verdict(CLOSED, steady(), sessions=[session(before=states[0], after=states[1])])
        assert "".join(told.reasons)[: len("changed backends: ")] == reason
    newer = session(before={"version": "1"}, after={"version": "2"})
    assert verdict(CLOSED, steady(), sessions=[newer]).reasons[0].startswith("changed version")


def test_requests_of_others_before_the_start_are_invalid() -> None:
    """An engine that is busy before we begin is shared."""
    busy = session(before={"servers": {"vllm": {"running": 2.0, "waiting": 1.0}}})
    assert verdict(CLOSED, steady(), sessions=[busy]).reasons == (
        "other tenants: 3 requests were under way on vllm before the run began",
    )


def test_answers_to_others_are_invalid() -> None:
    """An engine that answered more than we asked had another client."""
    before = {"servers": {"vllm": {"finished": 50.0}}}
    for finished, is_valid in ((150.0, True), (151.0, True), (155.0, False), (3.0, False)):
        told = verdict(
            CLOSED, steady(), sessions=[session(before=before, after={"servers": {"vllm": {"finished": finished}}})]
        )
        assert told.is_valid is is_valid, told


def test_others_under_way_are_seen_while_the_run_goes_on() -> None:
    """A gauge above what we have under way, more than once, is somebody else; once is a matter of the moment."""
    crowded = [sample(float(at), servers={"vllm": {"running": 9.0 if at % 2 else 4.0}}) for at in range(10)]
    assert verdict(CLOSED, steady(), samples=crowded).reasons == (
        "other tenants: vllm had up to 5 requests more under way than this run",
    )
    once = [sample(float(at), servers={"vllm": {"running": 9.0 if at == 3 else 4.0}}) for at in range(10)]
    assert verdict(CLOSED, steady(), samples=once).is_valid


def test_a_gauge_that_is_refreshed_seldom_tells_of_what_was() -> None:
    """LMDeploy's gauges may be 10 s old: what we had under way then is not somebody else's."""
    ours = [
        sample(float(at), most_in_flight=9 if at < 5 else 1, servers={"lmdeploy": {"running": 9.0}}) for at in range(12)
    ]
    assert verdict(CLOSED, steady(), samples=ours).is_valid


def test_counts_that_differ_from_our_tokenizer_are_invalid() -> None:
    """More than 1 % between the server's tokens and ours: one of the two counts something else."""
    rows = [row(number, sent=number * 0.1, tokens=101) for number in range(10)]
    near = {(number, 0): 101 - (number == 0) for number in range(10)}
    far = {(number, 0): 99 for number in range(10)}
    assert verdict(CLOSED, rows, recounts=near).is_valid
    assert "differ by 2.0%" in verdict(CLOSED, rows, recounts=far).reasons[0]


def test_the_token_that_ends_an_answer_is_expected() -> None:
    """One token more than the text has is not a difference after a stop."""
    assert miscounted([row(tokens=11, finish_reason="stop")], {(0, 0): 10}) == (0, 11)
    assert miscounted([row(tokens=11)], {(0, 0): 10}) == (1, 11)


def test_prompts_of_another_length_are_invalid() -> None:
    """A text completion's prompt is as long as asked, but for the token that begins it."""
    begun = steady(expected_prompt_tokens=19)
    longer = steady(expected_prompt_tokens=15)
    assert verdict(CLOSED, begun).is_valid
    assert "prompt tokens" in verdict(CLOSED, longer).reasons[0]


def test_no_answer_at_all_is_invalid() -> None:
    """A run in which everything failed says nothing."""
    assert verdict(CLOSED, [failed(number, sent=number * 0.1) for number in range(9)]).reasons == (
        "no request was answered as asked",
    )


@pytest.mark.parametrize(
    ("rows", "sessions", "text"),
    [
        ([*steady(), failed(100, sent=9.9)], None, "1 of 101 requests failed; they are in no latency"),
        (steady(), [session(), session(1)], "the run was resumed 1 times; the pauses are left out"),
        (
            steady(cached_tokens=10),
            None,
            "50% of the prompts' tokens came from the server's prefix cache: it has seen them before; another --seed "
            "makes others",
        ),
        (steady(), [session(ended="interrupted")], "the run is not complete"),
        (
            steady(),
            [session(environment=CROWDED)],
            "the server is on this machine, whose load was 6.5 on 2 cores when the run began: what else ran here "
            "slowed it down",
        ),
        (
            steady(output_tokens=None),
            None,
            "the server did not say how many tokens it made; they are counted from chunks",
        ),
        (steady(token_us=(10, 10)), None, "5.50 tokens per chunk: gaps between chunks are not inter-token latencies"),
    ],
)
def test_what_a_reader_has_to_know_is_said(rows: list[Row], sessions: list[Session] | None, text: str) -> None:
    """Some things do not make a run invalid, and are not kept quiet."""
    told = verdict(CLOSED, rows, sessions=sessions)
    assert told.is_valid
    assert text in told.warnings


def test_a_client_without_samples_says_nothing_of_itself() -> None:
    """Health that was not measured is unknown, not good."""
    assert set(lag_summary([]).values()) == {None}
