"""From what was compared to what is proven: pure, and the same for every engine."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from chat_templates.battery import FEATURES, Feature
from chat_templates.comparison import Comparison
from chat_templates.conversation import Json
from chat_templates.parity import Mode, Parity
from chat_templates.visible import visible

BY_BLAME: tuple[Feature, ...] = ("tools", "prefill", "reasoning_history", "parts", "multi_turn", "system", "text")
"""A case that fails speaks against the first of these that it has: what is most likely to be the reason, and what any
request like it needs."""


DIFFERING_SHOWN = 10
OF_ANY_TEXT = frozenset({"special_text_not_parsed", "other_tokenizer"})
"""Causes that may be met in any text, whatever the conversation."""
ENGINE_REFUSES = "engine_refuses"
"""The cause of a mismatch that is no prompt at all."""


@dataclass(frozen=True, slots=True)
class Strings:
    """How an engine tokenises texts: how many were *compared*, and those that have other ids."""

    compared: int
    differing: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Stops:
    """The ids at which the contract ends an answer, and those of them at which the engine does not."""

    wanted: tuple[int, ...]
    missing: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Handed:
    """How an engine takes finished prompts. features: for which kinds of request it takes them at all.

    problem: how it was seen not to take them as they are; empty where it did.
    """

    mode: Mode
    features: frozenset[Feature]
    problem: str = ""


def refuted(comparisons: Iterable[Comparison]) -> frozenset[Feature]:
    """The features that an engine does not render as the contract does.

    Each case that fails speaks against one of its features, so that a request of the same kind is not let pass, and one
    of another kind still is. A count of tokens that is right proves nothing, and fails. A conversation that the engine
    refuses gets no wrong prompt: it speaks against a feature only where nothing of it is rendered right.
    """
    found: set[Feature] = set()
    failed = [
        one
        for one in comparisons
        if (one.verdict == "mismatch" and one.cause != ENGINE_REFUSES)
        or (one.verdict == "exact" and one.basis == "count")
    ]
    # the plainest first: what they show need not be blamed on anything more special
    for one in sorted(failed, key=lambda one: -BY_BLAME.index(blamed(one))):
        if not found & one.features:
            found.add(blamed(one))
    rendered = {blamed(one) for one in comparisons if one.verdict == "exact"}
    refused = {blamed(one) for one in comparisons if one.verdict == "mismatch" and one.cause == ENGINE_REFUSES}
    return frozenset(found | (refused - rendered))


def blamed(comparison: Comparison) -> Feature:
    """The one of its features that a failed *comparison* speaks against; text where any text may be met so."""
    if comparison.cause is not None and not OF_ANY_TEXT.isdisjoint(comparison.cause.split("+")):
        return "text"
    return next(feature for feature in BY_BLAME if feature in comparison.features)


def modes_proven(
    choice: str,
    comparisons: Sequence[Comparison],
    strings: Strings | None,
    stops: Stops | None,
    handed: Handed | None,
) -> Mapping[Feature, tuple[Mode, ...]]:
    """By feature the modes that are proven and that the operator's *choice* (auto, native, strict) allows.

    A tokenizer that gives any text other ids speaks against all but finished ids, and a missing end of answers against
    everything. Without *comparisons* nothing was shown, and no rendering of the engine's is proven.
    """
    if stops is not None and stops.missing:
        return {}
    is_same_tokenizer = strings is None or not strings.differing
    against = refuted(comparisons)
    if not comparisons or "text" in against or not is_same_tokenizer:
        against = frozenset(FEATURES)
    proven: dict[Feature, tuple[Mode, ...]] = {}
    for feature in FEATURES:
        modes: list[Mode] = []
        if choice != "strict" and feature not in against:
            modes.append("native")
        is_handed = choice != "native" and handed is not None and not handed.problem and feature in handed.features
        if is_handed and handed is not None and (handed.mode == "tokens" or is_same_tokenizer):
            modes.append(handed.mode)
        if modes:
            proven[feature] = tuple(modes)
    return proven


@dataclass(frozen=True, slots=True)
class Proof:
    """The outcome of one proof at load.

    report: JSON, what was compared and how it came out, for people and programs. problem: the first thing that was seen
    to differ, in a sentence, with its *remedy*; both are empty where nothing was.
    """

    parity: Parity
    report: Mapping[str, Json]
    problem: str = ""
    remedy: str = ""

    def as_json(self) -> dict[str, Json]:
        """All of it."""
        return {
            "contract": self.parity.contract,
            "engine": self.parity.engine,
            "modes": {feature: list(modes) for feature, modes in self.parity.modes.items()},
            "unproven": list(self.parity.unproven(FEATURES)),
            "problem": self.problem,
            "remedy": self.remedy,
            **self.report,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Json]) -> Proof:
        """The inverse of `as_json`. Raises KeyError, TypeError or AttributeError for anything else."""
        report = {key: item for key, item in value.items() if key not in _NO_REPORT}
        modes = {feature: tuple(modes) for feature, modes in value["modes"].items()}
        return cls(Parity(value["contract"], value["engine"], modes), report, value["problem"], value["remedy"])


_NO_REPORT = frozenset({"contract", "engine", "modes", "unproven", "problem", "remedy"})


def concluded(
    parity: Parity,
    comparisons: Sequence[Comparison],
    strings: Strings | None,
    stops: Stops | None,
    handed: Handed | None,
    about: Mapping[str, Json],
) -> Proof:
    """The proof that these come to; *about* is put into its report as it is."""
    problem, remedy = _first_problem(comparisons, strings, stops, handed, parity.engine)
    report: dict[str, Json] = {
        **about,
        "tokenizer": None
        if strings is None
        else {"compared": strings.compared, "differing": list(strings.differing[:DIFFERING_SHOWN])},
        "stops": None if stops is None else {"wanted": list(stops.wanted), "missing": list(stops.missing)},
        "finished_prompts": None
        if handed is None
        else {"mode": handed.mode, "features": sorted(handed.features), "problem": handed.problem},
        "cases": [one.as_json() | {"lines": one.lines(parity.engine)} for one in comparisons],
    }
    return Proof(parity, report, problem, remedy)


def _first_problem(
    comparisons: Sequence[Comparison],
    strings: Strings | None,
    stops: Stops | None,
    handed: Handed | None,
    engine: str,
) -> tuple[str, str]:
    if stops is not None and stops.missing:
        ids = ", ".join(map(str, stops.missing))
        return (
            f"answers do not end at the contract's stop ids {ids} (missing_stop)",
            "give weights whose generation_config.json, or GGUF file, names them as ends",
        )
    failed = [one for one in comparisons if one.verdict == "mismatch"]
    if strings is not None and strings.differing:
        text = visible(strings.differing[0])
        return (
            f"the engine's tokenizer is another one: {len(strings.differing)} of {strings.compared} texts have other"
            f" ids, such as {text} (other_tokenizer)",
            "convert the weights anew with the tokenizer of the fine-tune, or use an engine that takes finished ids",
        )
    if failed:
        worst = max(failed, key=lambda one: BY_BLAME.index(blamed(one)))
        return (
            f"of {len(comparisons)} conversations {len(failed)} get another prompt than the contract's, such as"
            f" {worst.case} ({worst.cause or 'unknown'})",
            worst.fix(engine),
        )
    if handed is not None and handed.problem:
        return f"finished prompts are not taken as they are: {handed.problem}", ""
    return "", ""
