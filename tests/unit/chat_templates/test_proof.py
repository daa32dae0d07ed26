"""From comparisons to what is proven."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chat_templates.battery import FEATURES, Feature
from chat_templates.comparison import Comparison
from chat_templates.parity import Parity
from chat_templates.proof import Handed, Proof, Stops, Strings, blamed, concluded, modes_proven, refuted
from chat_templates.proof_cases import PROOF_CASES

TOKENS = Handed("tokens", frozenset(FEATURES))


def compared(*features: Feature, verdict: Any = "exact", basis: Any = "ids", cause: str | None = None) -> Comparison:
    cause = cause or ("trailing_newline" if verdict == "mismatch" else None)
    return Comparison("case", frozenset({"text", *features}), verdict, basis, cause)


EACH = [compared(), *(compared(feature) for feature in FEATURES if feature != "text")]


def modes(*comparisons: Comparison, choice: str = "auto", **seen: Any) -> dict[Feature, tuple[str, ...]]:
    parts: dict[str, Any] = {"strings": None, "stops": None, "handed": None, **seen}
    return dict(modes_proven(choice, comparisons, parts["strings"], parts["stops"], parts["handed"]))


def test_a_failure_speaks_against_what_is_special_about_it() -> None:
    """A case that fails with tools speaks against tools, and not against the system message that it has too; a plain
    one speaks against everything."""
    assert refuted([*EACH, compared("system", "multi_turn", "tools", verdict="mismatch")]) == {"tools"}
    assert refuted([*EACH, compared("system", verdict="mismatch")]) == {"system"}
    assert modes(*EACH, compared(verdict="mismatch")) == {}


@pytest.mark.parametrize("cause", ["other_tokenizer", "trailing_newline+special_text_not_parsed"])
def test_what_may_be_in_any_text_speaks_against_all(cause: str) -> None:
    """A text that is tokenised otherwise with tools is tokenised otherwise without them."""
    assert refuted([*EACH, compared("tools", verdict="mismatch", cause=cause)]) == {"text"}


def test_each_feature_alone_has_contents_that_differ() -> None:
    """An engine that trims what users write is found out in a plain conversation, and is not believed in any."""
    alone = {case.features - {"text"} for case in PROOF_CASES if "whitespace" in case.name and len(case.features) <= 2}
    assert alone == {
        frozenset(feature) for feature in ((), ("system",), ("multi_turn",), ("reasoning_history",), ("tools",))
    }
    assert len({case.name for case in PROOF_CASES}) == len(PROOF_CASES)


def test_one_reason_is_enough() -> None:
    """A case that has a feature which is refuted already is not blamed on another one too."""
    failed = [compared("system", verdict="mismatch"), compared("system", "multi_turn", verdict="mismatch")]
    assert refuted([*EACH, *failed]) == {"system"}


@given(st.lists(st.sets(st.sampled_from([feature for feature in FEATURES if feature != "text"]), max_size=4)))
def test_no_request_like_a_failed_case_is_let_through(failing: list[set[Feature]]) -> None:
    """For every failed case: a request with its features has at least one that is not proven natively."""
    failed = [compared(*features, verdict="mismatch") for features in failing]
    proven = modes(*EACH, *failed)
    for one in failed:
        assert any("native" not in proven.get(feature, ()) for feature in one.features)
        assert blamed(one) in one.features


def test_a_count_proves_nothing() -> None:
    """As many tokens are not the same tokens."""
    assert modes(compared(basis="count")) == {}
    assert modes() == {}


def test_a_refusal_is_no_wrong_prompt() -> None:
    """What the engine refuses speaks against a feature only where nothing of it is rendered right."""
    refusal = compared("tools", verdict="mismatch", cause="engine_refuses")
    assert "tools" not in refuted([*EACH, refusal])
    assert "tools" in refuted([*(one for one in EACH if "tools" not in one.features), refusal])


def test_what_the_contract_refuses_is_no_mismatch() -> None:
    """The gateway refuses it, and no engine is asked."""
    assert refuted([*EACH, compared("system", verdict="refused")]) == frozenset()


def test_the_operators_choice() -> None:
    """auto has both, the engine's own first; native has the one, strict the other."""
    assert modes(*EACH, handed=TOKENS)["text"] == ("native", "tokens")
    assert modes(*EACH, handed=TOKENS, choice="native")["text"] == ("native",)
    assert modes(*EACH, handed=TOKENS, choice="strict")["text"] == ("tokens",)


def test_another_tokenizer_leaves_finished_ids() -> None:
    """Whoever tokenises with it makes other prompts, from messages and from text alike."""
    other = Strings(200, ("7  8",))
    assert modes(*EACH, strings=other) == {}
    assert set(modes(*EACH, strings=other, handed=TOKENS).values()) == {("tokens",)}
    assert modes(*EACH, strings=other, handed=Handed("text", frozenset(FEATURES))) == {}


def test_finished_prompts_with_a_problem_prove_nothing() -> None:
    """Nor do they prove what the engine does not take beside them."""
    assert modes(handed=Handed("tokens", frozenset(FEATURES), "user: other ids")) == {}
    assert modes(handed=Handed("tokens", frozenset({"text"}))) == {"text": ("tokens",)}


def test_an_answer_that_runs_on_is_never_proven() -> None:
    """Whoever makes the prompt, the answer has another end."""
    assert modes(*EACH, handed=TOKENS, stops=Stops((2, 7), (7,))) == {}
    assert modes(*EACH, handed=TOKENS, stops=Stops((2, 7)))


@pytest.mark.parametrize(
    ("seen", "said"),
    [
        ({"stops": Stops((2, 7), (7,))}, "stop ids 7 (missing_stop)"),
        ({"strings": Strings(200, ("7  8", "x"))}, "2 of 200 texts have other ids, such as 7␠␠8 (other_tokenizer)"),
        ({"comparisons": [compared(verdict="mismatch")]}, "such as case (trailing_newline)"),
        ({"handed": Handed("tokens", frozenset(), "user: 3 ids were used, and 4 given")}, "3 ids were used"),
        ({}, ""),
    ],
)
def test_the_first_problem_in_words(seen: dict[str, Any], said: str) -> None:
    """The report says the gravest thing that was seen, with its cause."""
    parts: dict[str, Any] = {"comparisons": EACH, "strings": None, "stops": None, "handed": None, "about": {}, **seen}
    proof = concluded(Parity("h", "vllm"), **parts)
    assert said in proof.problem
    assert bool(proof.problem) == bool(said)


def test_a_proof_survives_json() -> None:
    """What is written is read again as it was."""
    parity = Parity("h", "vllm", {"text": ("native", "tokens")})
    cases = [*EACH, compared(verdict="mismatch")]
    proof = concluded(parity, cases, Strings(200), Stops((2,)), TOKENS, {"contract_name": "c"})
    written = json.loads(json.dumps(proof.as_json()))
    again = Proof.from_json(written)
    assert again.as_json() == written
    assert again.parity == parity
    assert written["unproven"] == sorted(set(FEATURES) - {"text"})
