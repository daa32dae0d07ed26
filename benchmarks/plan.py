"""What a run is to be: every choice that changes its numbers, as one frozen value that is saved beside them."""

from __future__ import annotations

import dataclasses
import difflib
import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args, get_type_hints

from benchmarks.errors import BenchmarkError
from benchmarks.load.connection import read_address
from benchmarks.load.requests import PATHS
from benchmarks.measures import Goal

PLAN = "plan.json"
SCENARIOS = Path(__file__).parent / "scenarios"

SYNTHETIC = "synthetic"
FORMATS = ("sharegpt", "alpaca", "messages", "text")
TURNS = ("first", "last", "all")
ARRIVALS = ("poisson", "constant", "gamma", "trace")
LEAST_WARM_UP = 10


@dataclass(frozen=True, slots=True)
class Plan:
    """One run, or with ``sweep`` or ``rates`` several. Names are those of the options of `unigate bench run`.

    Seconds where a name ends in ``_s``, tokens where it ends in ``_tokens``. ``rate``: requests (conversations) per
    second, an open loop; ``concurrency``: a closed one. ``goodput``: ``{"ttft": ms, "tpot": ms, "e2el": ms}``, as
    vLLM names them.
    """

    base_url: str = ""
    model: str = ""
    endpoint: str = "chat"
    stream: bool = True
    dataset: str = SYNTHETIC
    dataset_format: str | None = None
    dataset_dir: str | None = None
    turns: str | None = None
    tokenizer: str | None = None
    input_tokens: int = 256
    input_spread: float = 0.0
    prefix_tokens: int = 0
    output_tokens: int = 128
    output_spread: float = 0.0
    ignore_eos: bool = False
    num_prompts: int | None = None
    duration_s: float | None = None
    rate: float | None = None
    ramp_to: float | None = None
    arrivals: str = "poisson"
    burstiness: float = 1.0
    trace: str | None = None
    trace_speed: float = 1.0
    max_in_flight: int = 0
    concurrency: int | None = None
    ramp_s: float = 0.0
    think_s: float = 0.0
    sweep: bool = False
    rates: tuple[float, ...] = ()
    warm_up: int | None = None
    seed: int = 0
    temperature: float | None = 0.0
    extra_body: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    goodput: Mapping[str, float] = dataclasses.field(default_factory=dict)
    metrics_url: tuple[str, ...] = ()
    sample_s: float = 1.0
    connect_timeout_s: float = 10.0
    idle_timeout_s: float = 120.0
    timeout_s: float = 600.0
    keep_text: bool = True
    api_key_env: str = "OPENAI_API_KEY"
    ca_file: str | None = None
    insecure: bool = False
    label: str | None = None
    scenario: str | None = None

    @property
    def is_open(self) -> bool:
        """Whether requests are sent by a schedule, whatever the server does."""
        return self.concurrency is None

    @property
    def is_sweep(self) -> bool:
        """Whether this is several runs."""
        return self.sweep or bool(self.rates)

    @property
    def loop(self) -> str:
        """What the load is called: numbers of one kind are not to be compared with those of the other."""
        if not self.is_open:
            return f"closed, C={self.concurrency}"
        if self.is_sweep:
            return "open, swept"
        if self.arrivals == "trace":
            return "open, trace"
        rate = f"{self.rate:g}/s" if self.ramp_to is None else f"{self.rate:g} to {self.ramp_to:g}/s"
        how = f"gamma {self.burstiness:g}" if self.arrivals == "gamma" else self.arrivals
        return f"open, {rate}, {how}"

    @property
    def is_level(self) -> bool:
        """Whether the load is to stay the same from its beginning to its end."""
        return self.ramp_to is None and self.arrivals != "trace"

    @property
    def shape(self) -> float | None:
        """The burstiness of the arrivals; None for even ones."""
        return {"constant": None, "poisson": 1.0}.get(self.arrivals, self.burstiness)

    @property
    def prompts(self) -> int:
        """How many conversations are asked for."""
        if self.num_prompts is not None:
            return self.num_prompts
        if self.duration_s is not None and self.rate is not None:
            mean = self.rate if self.ramp_to is None else (self.rate + self.ramp_to) / 2
            return max(1, round(self.duration_s * mean))
        return 0

    @property
    def warm_ups(self) -> int:
        """How many requests go before, and are not measured: at least 10, twice the concurrency in a closed loop."""
        return self.warm_up if self.warm_up is not None else max(LEAST_WARM_UP, 2 * (self.concurrency or 0))

    @property
    def goal(self) -> Goal:
        """What a good request keeps."""
        asked = self.goodput
        return Goal(*(asked[name] / 1000 if name in asked else None for name in ("ttft", "tpot", "e2el")))


def build_plan(*layers: Mapping[str, Any]) -> Plan:
    """A plan from *layers* of options, the later over the earlier. Raises BenchmarkError, with all that is wrong."""
    merged: dict[str, Any] = {}
    for layer in layers:
        merged.update(layer)
    types = get_type_hints(Plan)
    problems = []
    for name, value in merged.items():
        if name not in types:
            near = difflib.get_close_matches(name, types, 1)
            problems.append(f"{name}: unknown option" + (f'; did you mean "{near[0]}"?' if near else ""))
        elif not _is_of(value, types[name]):
            problems.append(f"{name}: {value!r} is of the wrong kind")
    if not problems:
        merged = {name: tuple(value) if isinstance(value, list) else value for name, value in merged.items()}
        plan = Plan(**merged)
        problems = _problems(plan)
        if not problems:
            return plan
    raise BenchmarkError("\n".join(problems))


def _is_of(value: object, wanted: Any) -> bool:
    kinds = get_args(wanted) if type(None) in get_args(wanted) else (wanted,)
    for kind in kinds:
        origin = getattr(kind, "__origin__", kind)
        if origin is tuple and isinstance(value, list | tuple):
            return all(_is_of(item, get_args(kind)[0]) for item in value)
        if origin is float and isinstance(value, int | float) and not isinstance(value, bool):
            return True
        if origin is int and isinstance(value, bool):
            continue
        if isinstance(origin, type) and isinstance(value, origin):
            return True
    return False


def _problems(plan: Plan) -> list[str]:
    found = []

    def require(holds: bool, problem: str) -> None:
        if not holds:
            found.append(problem)

    def one_of(name: str, value: str | None, known: tuple[str, ...]) -> None:
        if value is not None:
            require(value in known, f"--{name} {value}: choose {', '.join(known)}")

    if plan.base_url:
        try:
            read_address(plan.base_url)
        except BenchmarkError as problem:
            found.append(str(problem))
    require(bool(plan.base_url), "--base-url: missing; where does the server listen? http://127.0.0.1:8080/v1")
    require(bool(plan.model), "--model: missing; the name to ask for")
    one_of("endpoint", plan.endpoint, tuple(PATHS))
    one_of("dataset-format", plan.dataset_format, FORMATS)
    one_of("turns", plan.turns, TURNS)
    one_of("arrivals", plan.arrivals, ARRIVALS)
    loads = [plan.rate is not None or plan.arrivals == "trace", plan.concurrency is not None, plan.is_sweep]
    require(sum(loads) == 1, "the load: give one of --rate (or --arrivals trace), --concurrency, --sweep, --rates")
    require((plan.trace is not None) == (plan.arrivals == "trace"), "--trace FILE and --arrivals trace go together")
    require(plan.ramp_to is None or plan.rate is not None, "--ramp-to: needs --rate, from where it goes")
    has_length = plan.prompts > 0 or plan.trace is not None or (plan.is_sweep and plan.duration_s is not None)
    require(has_length, "--num-prompts: missing; or --duration with --rate, --rates or --sweep")
    for name in ("rate", "ramp_to", "duration_s", "burstiness", "trace_speed", "sample_s", "timeout_s"):
        value = getattr(plan, name)
        require(value is None or 0 < value < float("inf"), f"--{_option(name)} {value}: has to be above 0")
    for name in ("concurrency", "num_prompts", "input_tokens", "output_tokens"):
        value = getattr(plan, name)
        require(value is None or value > 0, f"--{_option(name)} {value}: has to be above 0")
    for name in ("ramp_s", "think_s", "prefix_tokens", "max_in_flight"):
        require(getattr(plan, name) >= 0, f"--{_option(name)}: has to be 0 or more")
    for name in ("connect_timeout_s", "idle_timeout_s"):
        require(0 < getattr(plan, name) < float("inf"), f"--{_option(name)}: has to be above 0")
    require(all(rate > 0 for rate in plan.rates), "--rates: each has to be above 0")
    for name in ("input_spread", "output_spread"):
        require(0 <= getattr(plan, name) < 1, f"--{_option(name)}: a part of the length, 0 or more and below 1")
    require(
        plan.prefix_tokens < plan.input_tokens, "--prefix-tokens: has to be below --input-tokens, which it is part of"
    )
    require(plan.warm_up is None or plan.warm_up >= 0, "--warm-up: has to be 0 or more")
    require(plan.endpoint == "chat" or plan.turns != "all", "--turns all: conversations need --endpoint chat")
    for name, limit in plan.goodput.items():
        require(name in ("ttft", "tpot", "e2el"), f"--goodput {name}: choose ttft, tpot, e2el")
        require(isinstance(limit, int | float) and limit > 0, f"--goodput {name}:{limit}: milliseconds above 0")
    return found


def _option(name: str) -> str:
    return name.removesuffix("_s").replace("_", "-")


def scenario_names() -> list[str]:
    """The scenarios that come with this program."""
    return sorted(path.stem for path in SCENARIOS.glob("*.toml"))


def read_scenario(name: str) -> dict[str, Any]:
    """The options of a scenario: one of ours by its name, or a TOML file. Raises BenchmarkError."""
    path = Path(name) if name.endswith(".toml") else SCENARIOS / f"{name}.toml"
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as problem:
        known = ", ".join(scenario_names())
        raise BenchmarkError(
            f"--scenario {name}: no such scenario; ours are {known}, or name a .toml file"
        ) from problem
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as problem:
        raise BenchmarkError(f"{path}: {problem}") from problem
    document.pop("about", None)
    run = document.pop("run", None)
    if document or not isinstance(run, dict):
        raise BenchmarkError(f'{path}: a scenario has "about" and the table "run", and nothing else')
    return {**run, "scenario": name}


def save_plan(plan: Plan, folder: Path) -> None:
    """Write the plan into *folder*."""
    (folder / PLAN).write_text(
        json.dumps(dataclasses.asdict(plan), indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
    )


def load_plan(folder: Path) -> Plan:
    """The plan of the run in *folder*. Raises BenchmarkError."""
    path = folder / PLAN
    try:
        saved = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as problem:
        raise BenchmarkError(f"{folder}: holds no run ({PLAN} is missing)") from problem
    except (OSError, ValueError) as problem:
        raise BenchmarkError(f"{path}: {problem}") from problem
    if not isinstance(saved, dict):
        raise BenchmarkError(f"{path}: not a plan")
    try:
        return build_plan(saved)
    except BenchmarkError as problem:
        raise BenchmarkError(f"{path}: {problem}") from problem
