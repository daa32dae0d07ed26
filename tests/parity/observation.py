"""What one engine and the gateway make of each case of the battery, under one contract.

For each case: what the contract says the prompt is; what the engine says it would make of the conversation; how the
gateway therefore serves it; and, independently of both, what the model was given, when the engine rendered by itself
and when it was served. Nothing here decides whether that is good: `verdicts` does.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal

from backends.adapter import Body, Call
from backends.prompting import CallRefused
from backends.seen import CHAT, body_of
from chat_templates.battery import CASES, FEATURES, Case
from chat_templates.comparison import UNKNOWN, Comparison, Verdict
from chat_templates.contract import Contract
from chat_templates.conversation import Conversation, ConversationInvalid
from chat_templates.features import features_of
from chat_templates.messages import ruled
from chat_templates.parity import Mode, Parity
from chat_templates.prompts import Prompt, Refused, Seen
from chat_templates.proof import ENGINE_REFUSES, Handed, Strings, modes_proven
from chat_templates.rendering import TemplateBroken, TemplateRefused
from chat_templates.tokenizer_strings import tokenizer_strings
from chat_templates.tokenizing import Tokenizer
from tests.parity.hosts import NotStarted, Session, driven

Said = Literal["exact", "count", "mismatch", "refuses", "nothing"]
"""What an engine's own account of a prompt comes to. count: only the number of ids is known, and right. refuses: it has
none. nothing: it shows none of its prompts."""
Wanted = Literal["prompt", "refused by the template", "refused by the rules"]
Got = Literal["", "same", "other", "refuses"]
"""What the model was given: the contract's prompt, another, nothing because the engine refused; empty: not asked."""

ENDPOINT = "chat/completions"


@dataclass(frozen=True, slots=True)
class Observation:
    """One case. wanted: what the contract says. said: what the engine says. alone: what the model got of the engine's
    own rendering. other: the ids of that, where they are not the contract's; empty where they are not known.
    mode: how the gateway serves it, empty where it refuses. served: what the model got then.
    """

    case: str
    wanted: Wanted
    said: Said
    alone: Got = ""
    other: tuple[int, ...] = ()
    mode: Mode | Literal[""] = ""
    served: Got = ""


@dataclass(frozen=True, slots=True)
class _Prepared:
    """A case that the rules let pass: what is asked and expected, what the engine says, and what its model gets."""

    case: Case
    conversation: Conversation
    body: Body
    expected: Prompt | Refused
    seen: Seen | Refused | None
    alone: Got
    given: Seen | None


def observations(
    session: Session | NotStarted, tokenizer: Tokenizer, cases: Sequence[Case] = CASES
) -> list[Observation]:
    """Each case: first as the engine makes its prompt, then as the gateway serves it after that has been compared."""
    found: dict[str, Observation] = {}
    asked: list[tuple[Case, Conversation, Prompt | Refused]] = []
    for case in cases:
        try:
            conversation = ruled(session.contract.messages, case.conversation)
        except ConversationInvalid:
            found[case.name] = Observation(case.name, "refused by the rules", "refuses")
            continue
        expected = expected_of(session.contract, tokenizer, conversation)
        if isinstance(session, NotStarted):
            wanted: Wanted = "prompt" if isinstance(expected, Prompt) else "refused by the template"
            found[case.name] = Observation(case.name, wanted, "refuses")
        else:
            asked.append((case, conversation, expected))
    if not isinstance(session, NotStarted):
        with ThreadPoolExecutor(session.at_once) as pool:
            prepared = list(pool.map(lambda one: _prepared(session, *one), asked))
            parity = proven(session, tokenizer, prepared)
            observed = pool.map(lambda one: _observed(session, one, parity), prepared)
            found |= {one.case: one for one in observed}
    return [found[case.name] for case in cases]


def proven(session: Session, tokenizer: Tokenizer, prepared: Sequence[_Prepared]) -> Parity:
    """What is proven of the engine, as the proof at load concludes it from the same comparisons and texts."""
    comparisons = [] if prepared[0].seen is None else [_comparison(one) for one in prepared]
    strings = _strings(session, tokenizer) if comparisons else None
    prompt = next((one.expected for one in prepared if isinstance(one.expected, Prompt)), None)
    handed = None
    if prompt is not None:
        taken = [one.case for one in prepared if _finished(session, one.body, prompt) is not None]
        features = frozenset(
            feature
            for feature in FEATURES
            if all(one.case in taken for one in prepared if one.case.features <= {"text", feature})
        )
        handed = Handed("tokens", features)
    modes = modes_proven("auto", comparisons, strings, None, handed)
    return Parity(session.contract.hash, session.adapter.engine, modes)


def _strings(session: Session, tokenizer: Tokenizer) -> Strings:
    """The texts that a proof has tokenised."""
    bos = tokenizer.special_tokens.get("bos_token") or "\0"
    given = tokenizer_strings(tokenizer.special_tokens.values(), session.contract.templates)
    texts = [text for text in given if not text.startswith(bos)]
    other = [text for text in texts if session.tokenized(text) != tokenizer.encode(text)]
    return Strings(len(texts), tuple(other))


def expected_of(contract: Contract, tokenizer: Tokenizer, conversation: Conversation) -> Prompt | Refused:
    """What *contract* says of a conversation that its rules have been applied to."""
    try:
        text = contract.renderer().render(conversation).text
    except (TemplateRefused, TemplateBroken, ConversationInvalid) as problem:
        return Refused(str(problem))
    return Prompt(text, tuple(tokenizer.encode(text)))


def _prepared(session: Session, case: Case, conversation: Conversation, expected: Prompt | Refused) -> _Prepared:
    body = body_of(session.backend, conversation)
    seen = seen_by(session, conversation)
    alone, given = _got(session, Call("POST", CHAT, body), expected)
    return _Prepared(case, conversation, body, expected, seen, alone, given)


def _observed(session: Session, one: _Prepared, parity: Parity) -> Observation:
    name, expected, said = one.case.name, one.expected, account(one.expected, one.seen)
    if isinstance(expected, Refused):
        return Observation(name, "refused by the template", said, one.alone)
    ids = [shown.ids for shown in (one.seen, one.given) if isinstance(shown, Seen) and shown.ids is not None]
    other = next((shown for shown in ids if shown != expected.ids), ())
    mode = parity.mode(features_of(one.conversation))
    if mode is None:
        return Observation(name, "prompt", said, one.alone, other)
    if mode == "native":
        return Observation(name, "prompt", said, one.alone, other, mode, one.alone)
    call = _finished(session, one.body, expected)
    if call is None:
        return Observation(name, "prompt", said, one.alone, other)
    served, _ = _got(session, call, expected)
    return Observation(name, "prompt", said, one.alone, other, mode, served)


def _finished(session: Session, body: Body, prompt: Prompt) -> Call | None:
    given = session.adapter.given(session.backend, ENDPOINT, body, prompt)
    if given is None:
        return None
    translated = given.translated
    return Call("POST", CHAT, given.body) if translated is None else Call("POST", translated.target, translated.body)


def _comparison(one: _Prepared) -> Comparison:
    """Which prompts are the same; why not is not asked here."""
    match account(one.expected, one.seen):
        case "exact" | "count" as said:
            return Comparison(one.case.name, one.case.features, "exact", "ids" if said == "exact" else "count")
        case "refuses" if isinstance(one.expected, Prompt):
            return Comparison(one.case.name, one.case.features, "mismatch", "ids", ENGINE_REFUSES)
    verdict: Verdict = "mismatch" if isinstance(one.expected, Prompt) else "refused"
    return Comparison(one.case.name, one.case.features, verdict, "ids", UNKNOWN if verdict == "mismatch" else None)


def account(expected: Prompt | Refused, seen: Seen | Refused | None) -> Said:
    """What *seen* comes to."""
    if seen is None:
        return "nothing"
    if isinstance(seen, Refused):
        return "refuses"
    if isinstance(expected, Refused) or not is_of(expected, seen):
        return "mismatch"
    return "count" if seen.ids is None and seen.text is None else "exact"


def seen_by(session: Session, conversation: Conversation) -> Seen | Refused | None:
    """What the engine says of *conversation*, by its adapter's plan; None where it has none."""
    plan = session.adapter.see(session.backend, conversation)
    try:
        seen: Seen | None = None if plan is None else driven(plan, session.send)
    except CallRefused as problem:
        return Refused(str(problem))
    return seen


def _got(session: Session, call: Call, expected: Prompt | Refused) -> tuple[Got, Seen | None]:
    try:
        given = session.given(call)
    except CallRefused:
        return "refuses", None
    return ("same" if isinstance(expected, Prompt) and is_of(expected, given) else "other"), given


def is_of(expected: Prompt, given: Seen) -> bool:
    """Whether all that is known of a prompt that was given to a model is so of *expected*."""
    assert expected.ids is not None
    pairs: list[tuple[Any, Any]] = [
        (given.ids, expected.ids),
        (given.text, expected.text),
        (given.count, len(expected.ids)),
    ]
    known = [pair for pair in pairs if pair[0] is not None]
    assert known, "nothing was seen"
    return all(left == right for left, right in known)
