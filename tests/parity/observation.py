"""What one engine and the gateway make of each case of the battery, under one contract.

For each case: what the contract says the prompt is; what the engine says it would make of the conversation; how the
gateway therefore serves it; and, independently of both, what the model was given, when the engine rendered by itself
and when it was served. Nothing here decides whether that is good: `verdicts` does.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from backends.adapter import Call
from backends.prompting import CallRefused, SeePlan
from backends.seen import CHAT, body_of
from chat_templates.battery import CASES, Case
from chat_templates.comparison import Context, compare
from chat_templates.contract import Contract
from chat_templates.conversation import Conversation, ConversationInvalid
from chat_templates.messages import ruled
from chat_templates.parity import Mode
from chat_templates.prompts import Prompt, Refused, Seen
from chat_templates.rendering import Renderer, TemplateBroken, TemplateRefused
from chat_templates.tokenizing import Tokenizer
from tests.parity.hosts import NotStarted, Session

Said = Literal["exact", "count", "mismatch", "refuses", "nothing"]
"""What an engine's own account of a prompt comes to. count: only the number of ids is known, and right. refuses: it has
none. nothing: it shows none of its prompts."""
Wanted = Literal["prompt", "refused by the template", "refused by the rules"]
Got = Literal["", "same", "other", "refuses"]
"""What the model was given: the contract's prompt, another, nothing because the engine refused; empty: not asked."""

ENDPOINT = "chat/completions"

NOTHING_TO_NAME = Context(Renderer({}))
"""Nothing with which a cause could be looked for: `naming` does that when all is observed."""


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


def observations(
    session: Session | NotStarted, tokenizer: Tokenizer, cases: Sequence[Case] = CASES
) -> Iterator[Observation]:
    """Each case in turn. An engine that did not start with the contract serves nothing."""
    for case in cases:
        try:
            conversation = ruled(session.contract.messages, case.conversation)
        except ConversationInvalid:
            yield Observation(case.name, "refused by the rules", "refuses")
            continue
        expected = expected_of(session.contract, tokenizer, conversation)
        if isinstance(session, NotStarted):
            wanted: Wanted = "prompt" if isinstance(expected, Prompt) else "refused by the template"
            yield Observation(case.name, wanted, "refuses")
        else:
            yield _observed(session, case, conversation, expected)


def expected_of(contract: Contract, tokenizer: Tokenizer, conversation: Conversation) -> Prompt | Refused:
    """What *contract* says of a conversation that its rules have been applied to."""
    try:
        text = contract.renderer().render(conversation).text
    except (TemplateRefused, TemplateBroken, ConversationInvalid) as problem:
        return Refused(str(problem))
    return Prompt(text, tuple(tokenizer.encode(text)))


def _observed(session: Session, case: Case, conversation: Conversation, expected: Prompt | Refused) -> Observation:
    body = body_of(session.backend, conversation)
    seen = seen_by(session, conversation)
    said = account(case, expected, seen)
    alone, given = _got(session, Call("POST", CHAT, body), expected)
    if isinstance(expected, Refused):
        return Observation(case.name, "refused by the template", said, alone)
    if said == "exact":
        return Observation(case.name, "prompt", said, alone, mode="native", served=alone)
    known = [one.ids for one in (seen, given) if isinstance(one, Seen) and one.ids not in (None, expected.ids)]
    other = (known[0] or ()) if known else ()
    finished = session.adapter.given(session.backend, ENDPOINT, body, expected)
    if finished is None:
        return Observation(case.name, "prompt", said, alone, other)
    translated = finished.translated
    target, asked = (CHAT, finished.body) if translated is None else (translated.target, translated.body)
    served, _ = _got(session, Call("POST", target, asked), expected)
    return Observation(case.name, "prompt", said, alone, other, finished.mode, served)


def account(case: Case, expected: Prompt | Refused, seen: Seen | Refused | None) -> Said:
    """What *seen* comes to. Which prompts are the same is the proof's own comparison to say."""
    if seen is None:
        return "nothing"
    if isinstance(seen, Refused):
        return "refuses"
    if isinstance(expected, Refused):
        return "mismatch"
    comparison = compare(case, expected, seen, NOTHING_TO_NAME)
    if comparison.verdict != "exact":
        return "mismatch"
    return "count" if comparison.basis == "count" else "exact"


def seen_by(session: Session, conversation: Conversation) -> Seen | Refused | None:
    """What the engine says of *conversation*, by its adapter's plan; None where it has none."""
    plan = session.adapter.see(session.backend, conversation)
    try:
        return None if plan is None else _driven(plan, session)
    except CallRefused as problem:
        return Refused(str(problem))


def _driven(plan: SeePlan, session: Session) -> Seen:
    try:
        call = next(plan)
        while True:
            try:
                answer = session.send(call)
            except CallRefused as problem:
                call = plan.throw(problem)
            else:
                call = plan.send(answer)
    except StopIteration as end:
        seen: Seen = end.value
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
