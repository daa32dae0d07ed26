"""What one engine and the gateway make of each case of the battery, under one contract.

For each case: what the contract says the prompt is; what the engine says it would make of the conversation; how the
gateway therefore serves it; and, independently of both, what the model was given, when the engine rendered by itself and
when it was served. Nothing here decides whether that is good: `verdicts` does.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from backends.adapter import Call
from backends.prompting import CallRefused, SeePlan
from backends.seen import CHAT, body_of
from chat_templates.battery import CASES, Case
from chat_templates.contract import Contract
from chat_templates.conversation import Conversation, ConversationInvalid
from chat_templates.parity import Mode
from chat_templates.prompts import Prompt, Refused, Seen
from chat_templates.rendering import TemplateBroken, TemplateRefused
from chat_templates.tokenizing import Tokenizer
from tests.parity.hosts import Session
from tests.parity.stand_in import compared, ids_call, ruled

Wanted = Literal["prompt", "refused by the template", "refused by the rules"]
Said = Literal["exact", "count", "mismatch", "refuses"]
"""What an engine's own account comes to. count: only the number of ids is known, and right. refuses: it gives none."""
Got = Literal["", "same", "other", "refuses"]
"""What the model was given: the contract's prompt, another, nothing because the engine refused; empty: not asked."""


@dataclass(frozen=True, slots=True)
class Observation:
    """One case. wanted: what the contract says. said: what the engine says; cause: of a mismatch.

    alone: what the model got of the engine's own rendering. mode: how the gateway serves it, empty where it refuses.
    served: what the model got then. note: why it is not served, or in which words something was refused.
    """

    case: str
    wanted: Wanted
    said: Said
    cause: str = ""
    alone: Got = ""
    mode: Mode | Literal[""] = ""
    served: Got = ""
    note: str = ""


def observations(session: Session, tokenizer: Tokenizer, cases: Sequence[Case] = CASES) -> Iterator[Observation]:
    """Each case in turn."""
    assert session.backend.prompting is not None
    contract = session.backend.prompting.contract
    for case in cases:
        try:
            conversation = ruled(contract.messages, case.conversation)
        except ConversationInvalid as problem:
            yield Observation(case.name, "refused by the rules", "refuses", note=str(problem))
            continue
        yield _observed(session, case, conversation, expected_of(contract, tokenizer, conversation))


def expected_of(contract: Contract, tokenizer: Tokenizer, conversation: Conversation) -> Prompt | Refused:
    """What *contract* says of a conversation that its rules have been applied to."""
    try:
        text = contract.renderer().render(conversation).text
    except (TemplateRefused, TemplateBroken, ConversationInvalid) as problem:
        return Refused(str(problem))
    return Prompt(text, tuple(tokenizer.encode(text)))


def _observed(session: Session, case: Case, conversation: Conversation, expected: Prompt | Refused) -> Observation:
    body = body_of(session.backend, conversation)
    alone = _got(session, Call("POST", CHAT, body), expected)
    said, cause = compared(seen_by(session, conversation), expected)
    if isinstance(expected, Refused):
        return Observation(case.name, "refused by the template", said, alone=alone, note=expected.message)
    if said == "exact":
        return Observation(case.name, "prompt", said, alone=alone, mode="native", served=alone)
    call = ids_call(session.adapter.engine, body, expected)
    if call is None:
        return Observation(case.name, "prompt", said, cause, alone)
    return Observation(case.name, "prompt", said, cause, alone, "tokens", _got(session, call, expected))


def seen_by(session: Session, conversation: Conversation) -> Seen | Refused:
    """What the engine says of *conversation*, by its adapter's plan."""
    plan = session.adapter.see(session.backend, conversation)
    try:
        return Seen() if plan is None else _driven(plan, session)
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


def _got(session: Session, call: Call, expected: Prompt | Refused) -> Got:
    try:
        given = session.given(call)
    except CallRefused:
        return "refuses"
    if isinstance(expected, Refused):
        return "other"
    return "same" if is_of(expected, given) else "other"


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
