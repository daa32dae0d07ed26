"""What a run is to be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks.errors import BenchmarkError
from benchmarks.measures import Goal
from benchmarks.plan import Plan, build_plan, load_plan, read_scenario, save_plan, scenario_names

ENOUGH: dict[str, Any] = {"base_url": "http://127.0.0.1:8000/v1", "model": "m", "num_prompts": 10, "rate": 2.0}


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({"base_url": ""}, "--base-url: missing"),
        ({"base_url": "x"}, "--base-url x: not an address"),
        ({"model": ""}, "--model: missing"),
        ({"rate": None}, "the load: give one of"),
        ({"concurrency": 3}, "the load: give one of"),
        ({"num_prompts": None}, "--num-prompts: missing"),
        ({"rate": 0.0}, "--rate 0.0: has to be above 0"),
        ({"rate": float("inf")}, "--rate inf: has to be above 0"),
        ({"num_prompts": -1}, "--num-prompts -1: has to be above 0"),
        ({"arrivals": "normal"}, "--arrivals normal: choose poisson"),
        ({"trace": "t"}, "--trace FILE and --arrivals trace go together"),
        ({"input_spread": 1.0}, "--input-spread: a part of the length"),
        ({"prefix_tokens": 256}, "--prefix-tokens: has to be below"),
        ({"goodput": {"speed": 3.0}}, "--goodput speed: choose ttft"),
        ({"goodput": {"ttft": -3.0}}, "--goodput ttft:-3.0: milliseconds above 0"),
        ({"endpoint": "completions", "turns": "all"}, "conversations need --endpoint chat"),
        ({"rates": [0.0], "rate": None}, "--rates: each has to be above 0"),
        ({"rate": None, "ramp_to": 3.0, "concurrency": 1}, "--ramp-to: needs --rate"),
        ({"max_in_flight": -1}, "--max-in-flight: has to be 0 or more"),
        ({"idle_timeout_s": 0.0}, "--idle-timeout: has to be above 0"),
        ({"warm_up": -1}, "--warm-up: has to be 0 or more"),
        ({"rat": 3.0}, 'rat: unknown option; did you mean "rate"?'),
        ({"rate": "fast"}, "rate: 'fast' is of the wrong kind"),
        ({"seed": True}, "seed: True is of the wrong kind"),
        ({"metrics_url": [3]}, "metrics_url: [3] is of the wrong kind"),
    ],
)
def test_what_cannot_be_run_is_told_before(given: dict[str, Any], problem: str) -> None:
    """Every option is checked before anything is sent, and told by its name."""
    with pytest.raises(BenchmarkError) as told:
        build_plan(ENOUGH, given)
    assert problem in str(told.value)


def test_all_that_is_wrong_is_told_at_once() -> None:
    """Two mistakes are two lines of one error."""
    with pytest.raises(BenchmarkError) as told:
        build_plan(ENOUGH, {"model": "", "output_tokens": 0})
    assert len(str(told.value).splitlines()) == 2


@pytest.mark.parametrize(
    ("given", "loop"),
    [
        ({}, "open, 2/s, poisson"),
        ({"ramp_to": 8.0, "arrivals": "constant"}, "open, 2 to 8/s, constant"),
        ({"arrivals": "gamma", "burstiness": 0.5}, "open, 2/s, gamma 0.5"),
        ({"rate": None, "concurrency": 4}, "closed, C=4"),
        ({"rate": None, "sweep": True}, "open, swept"),
        ({"rate": None, "arrivals": "trace", "trace": "t"}, "open, trace"),
    ],
)
def test_a_load_is_called_what_it_is(given: dict[str, Any], loop: str) -> None:
    """Open and closed loops are never to be confused."""
    assert build_plan(ENOUGH, given).loop == loop


def test_a_duration_is_a_number_of_prompts() -> None:
    """Seconds at a rate, or along a ramp, come to a number of requests."""
    assert build_plan(ENOUGH, {"num_prompts": None, "duration_s": 30}).prompts == 60
    assert build_plan(ENOUGH, {"num_prompts": None, "duration_s": 30.0, "ramp_to": 4.0}).prompts == 90


def test_warm_up_is_ten_or_twice_the_concurrency() -> None:
    """Every slot of a closed loop is warm before anything is measured; none is needed when told so."""
    assert build_plan(ENOUGH).warm_ups == 10
    assert build_plan(ENOUGH, {"rate": None, "concurrency": 16}).warm_ups == 32
    assert build_plan(ENOUGH, {"warm_up": 0}).warm_ups == 0


def test_a_goal_is_in_milliseconds() -> None:
    """What a user writes in milliseconds is a limit in seconds."""
    assert build_plan(ENOUGH, {"goodput": {"ttft": 200.0}}).goal == Goal(ttft_s=0.2)


def test_a_plan_is_the_same_after_it_was_saved(tmp_path: Path) -> None:
    """A resumed run is the run that was begun."""
    plan = build_plan(
        ENOUGH, {"metrics_url": ["http://x/metrics"], "extra_body": {"top_k": 1}, "goodput": {"tpot": 50.0}}
    )
    save_plan(plan, tmp_path)
    assert load_plan(tmp_path) == plan


@pytest.mark.parametrize(
    ("content", "problem"), [(None, "holds no run"), ("{", "plan.json"), ("[]", "not a plan"), ("{}", "--model")]
)
def test_a_folder_without_a_plan_is_told(tmp_path: Path, content: str | None, problem: str) -> None:
    """Another folder, or a plan that was broken, is an error with its file."""
    if content is not None:
        (tmp_path / "plan.json").write_text(content)
    with pytest.raises(BenchmarkError, match=problem):
        load_plan(tmp_path)


@pytest.mark.parametrize("name", scenario_names())
def test_our_scenarios_can_be_run(name: str) -> None:
    """Every scenario is complete but for the server and the model."""
    server = {"base_url": "http://127.0.0.1:8000/v1", "model": "m"}
    assert isinstance(build_plan(read_scenario(name), server), Plan)


def test_a_scenario_of_ones_own_is_a_file(tmp_path: Path) -> None:
    """A TOML file is a scenario; a key that is none is told by build_plan, a table that is none here."""
    path = tmp_path / "mine.toml"
    path.write_text('about = "x"\n[run]\nrate = 3.0\n')
    assert read_scenario(str(path)) == {"rate": 3.0, "scenario": str(path)}
    path.write_text("[runs]\n")
    with pytest.raises(BenchmarkError, match="and nothing else"):
        read_scenario(str(path))
    path.write_text("[run\n")
    with pytest.raises(BenchmarkError, match=r"mine\.toml"):
        read_scenario(str(path))
    with pytest.raises(BenchmarkError, match="ours are burst, chat"):
        read_scenario("none")
