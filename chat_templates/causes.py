"""Why an engine's prompt is another than the contract's: causes with names, each of which proves itself.

A cause is not guessed from how a difference looks. It is a change, of the conversation before it is rendered or of the
prompt after; where it makes the engine's prompt of the contract's, to the last character, it is the cause. Only where
no single one does are two tried together. What none explains is ``unknown``, and shown as it is.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from chat_templates.conversation import Conversation, ConversationInvalid, Json
from chat_templates.rendering import TemplateBroken, TemplateRefused
from chat_templates.rules import REASONING_FIELDS
from chat_templates.trimming import all_rules

Message = Mapping[str, Json]
RenderText = Callable[[Conversation], str]
"""The contract's template on a conversation. Raises as `Renderer.render`."""

PAIRS_LIMIT = 300
"""How many pairs of changes are tried for one prompt; each costs a rendering at most."""


@dataclass(frozen=True, slots=True)
class Change:
    """One cause tried. *before* changes the conversation, *after* the prompt's text; they give None where there is
    nothing to change. *detail*: which of its forms."""

    code: str
    before: Callable[[Conversation], Conversation | None] | None = None
    after: Callable[[str], str | None] | None = None
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Explanation:
    """The changes that together explain a difference."""

    changes: Sequence[Change]

    @property
    def code(self) -> str:
        """One word for all of it."""
        return "+".join(change.code for change in self.changes)

    @property
    def details(self) -> str:
        """The details there are."""
        return "; ".join(change.detail for change in self.changes if change.detail)


def explain(
    conversation: Conversation,
    expected: str,
    seen: str,
    bos: str,
    render: RenderText,
    is_seen: Callable[[str], bool],
) -> Explanation | None:
    """Why *seen* is not *expected*, which *render* makes of *conversation*; None where nothing explains it.

    is_seen: whether a text is the engine's prompt; *seen* is as near to that as it can be read.
    """
    changes = [
        *_before(conversation),
        *_after(expected, seen, bos),
        *_of_system(conversation, expected, seen, bos),
        *_of_a_head(conversation, expected, render),
    ]
    made = {id(change): _made(change, conversation, expected, render) for change in changes}
    for change in changes:
        text = made[id(change)]
        if text is not None and is_seen(text):
            return Explanation([change])
    if _same_but_dates(expected, seen):
        return Explanation([Change("date")])
    for one, other in itertools.islice(_pairs([one for one in changes if made[id(one)] is not None]), PAIRS_LIMIT):
        both = _made_by_two(one, other, conversation, made[id(one)], render)
        if both is not None and is_seen(both):
            return Explanation([one, other])
    return _by_its_place(conversation, expected, seen, render)


SYSTEM_BLOCKS = frozenset({"default_system_lost", "default_system_added", "empty_system_block", "system_lost"})
"""Of these one alone is a cause: one block taken and another put would explain anything."""


def _pairs(changes: Sequence[Change]) -> Iterator[tuple[Change, Change]]:
    """Each pair once, those first that cost no rendering."""
    texts = [change for change in changes if change.after is not None]
    others = [change for change in changes if change.before is not None]
    for one, other in itertools.chain(
        itertools.product(others, texts), itertools.permutations(texts, 2), itertools.combinations(others, 2)
    ):
        if one.code != other.code and not {one.code, other.code} <= SYSTEM_BLOCKS:
            yield one, other


def _made(change: Change, conversation: Conversation, expected: str, render: RenderText) -> str | None:
    """What *change* alone makes; None where it changes nothing."""
    if change.before is None:
        assert change.after is not None
        text = change.after(expected)
    else:
        changed = change.before(conversation)
        text = None if changed is None or changed == conversation else _rendered(changed, render)
    return None if text == expected else text


def _made_by_two(
    one: Change, other: Change, conversation: Conversation, by_one: str | None, render: RenderText
) -> str | None:
    if other.after is not None:
        return None if by_one is None else other.after(by_one)
    assert one.before is not None
    assert other.before is not None
    changed = one.before(conversation)
    both = None if changed is None else other.before(changed)
    return None if both is None else _rendered(both, render)


def _rendered(conversation: Conversation, render: RenderText) -> str | None:
    try:
        return render(conversation)
    except (TemplateRefused, TemplateBroken, ConversationInvalid):
        return None


# --- changes of the conversation


def _before(conversation: Conversation) -> Iterator[Change]:
    yield from _of_the_end(conversation)
    yield Change("system_lost", _without_system)
    for joint in ("\n\n", "\n", ""):
        yield Change("system_moved_into_user", _calling(_system_into_user, joint), detail=f"by {joint!r}")
    for joint in ("\n\n", "\n", "", " "):
        yield Change("same_role_merged", _calling(_merged, joint, {"tool"}), detail=f"by {joint!r}")
        yield Change("same_role_merged", _calling(_merged, joint, set()), detail=f"by {joint!r}, results of tools too")
    yield from _of_parts()
    yield from _of_thoughts()
    yield from _of_tools()
    for rules in all_rules():
        if not rules.are_none:
            shown = ", ".join(f"{role} {rule}" for role, rule in rules.by_role().items() if rule != "none")
            yield Change("content_trimmed", _calling(_each_text, rules.trimmed), detail=shown)
    for side, cut in {"both": str.strip, "left": str.lstrip, "right": str.rstrip}.items():
        yield Change("content_trimmed", _calling(_each_text, _cut_of("tool", cut)), detail=f"tool {side}")
        yield Change("content_trimmed", _calling(_each_text, _cut_of(None, cut)), detail=f"every role {side}")
    yield from _of_roles(conversation)


def _calling(
    change: Callable[..., Conversation | None], *more: object
) -> Callable[[Conversation], Conversation | None]:
    return lambda given: change(given, *more)


def _of_the_end(conversation: Conversation) -> Iterator[Change]:
    last = conversation.messages[-1].get("role") if conversation.messages else None
    if conversation.continue_final_message:
        yield Change("new_turn_instead_of_continued", _calling(_ended, True, False))
        yield Change("new_turn_instead_of_continued", _calling(_ended, False, False), detail="the message is closed")
    elif conversation.add_generation_prompt:
        if last == "assistant":
            yield Change("continued_instead_of_new_turn", _calling(_ended, False, True))
        yield Change("missing_generation_prompt", _calling(_ended, False, False))
    else:
        yield Change("extra_generation_prompt", _calling(_ended, True, False))


def _ended(given: Conversation, begins_answer: bool, goes_on: bool) -> Conversation:
    return replace(given, add_generation_prompt=begins_answer, continue_final_message=goes_on)


def _with(given: Conversation, messages: Sequence[Message]) -> Conversation | None:
    return replace(given, messages=messages) if messages else None


def _without_system(given: Conversation) -> Conversation | None:
    return _with(given, [message for message in given.messages if message.get("role") != "system"])


def _system_into_user(given: Conversation, joint: str) -> Conversation | None:
    systems = [message for message in given.messages if message.get("role") == "system"]
    others = [dict(message) for message in given.messages if message.get("role") != "system"]
    at = next((index for index, message in enumerate(others) if message.get("role") == "user"), None)
    if not systems or at is None or not all(isinstance(one.get("content"), str) for one in (*systems, others[at])):
        return None
    others[at]["content"] = joint.join([*(message["content"] for message in systems), others[at]["content"]])
    return _with(given, others)


def _merged(given: Conversation, joint: str, apart: Collection[str]) -> Conversation | None:
    made: list[dict[str, Json]] = []
    for message in given.messages:
        before = made[-1] if made else {}
        if before.get("role") == message.get("role") not in apart and all(
            isinstance(one.get("content"), str) for one in (before, message)
        ):
            before["content"] = f"{before['content']}{joint}{message['content']}"
        else:
            made.append(dict(message))
    return _with(given, made) if len(made) < len(given.messages) else None


def _of_parts() -> Iterator[Change]:
    for joint in ("\n", "", " ", "\n\n"):
        yield Change("parts_joined", _calling(_joined_parts, joint), detail=f"by {joint!r}")
    yield Change("parts_joined", _first_part, detail="only the first is kept")
    yield Change("parts_joined", _one_message_each, detail="a message of each")


def _joined_parts(given: Conversation, joint: str) -> Conversation | None:
    return _each_list(given, lambda parts: joint.join(_text(part) for part in parts))


def _first_part(given: Conversation) -> Conversation | None:
    return _each_list(given, lambda parts: _text(parts[0]) if parts else "")


def _text(part: Json) -> str:
    return str(part.get("text", "")) if isinstance(part, Mapping) else str(part)


def _each_list(given: Conversation, form: Callable[[list[Json]], Json]) -> Conversation | None:
    changed = [
        {**message, "content": form(message["content"])} if isinstance(message.get("content"), list) else message
        for message in given.messages
    ]
    return _with(given, changed)


def _one_message_each(given: Conversation) -> Conversation | None:
    made: list[Message] = []
    for message in given.messages:
        content = message.get("content")
        made += [{**message, "content": _text(part)} for part in content] if isinstance(content, list) else [message]
    return _with(given, made)


_THOUGHT = re.compile(r"<think>.*?</think>\s*", re.DOTALL)


def _of_thoughts() -> Iterator[Change]:
    yield Change("history_think_dropped", _calling(_each_message, _without_thought_fields))
    yield Change("history_think_dropped", _calling(_each_message, _without_thoughts))
    yield Change("history_think_kept", _calling(_each_message, _with_inline_thought))


def _each_message(given: Conversation, form: Callable[[Message], Message]) -> Conversation | None:
    return _with(given, [form(message) for message in given.messages])


def _without_thought_fields(message: Message) -> Message:
    return {key: value for key, value in message.items() if key not in REASONING_FIELDS}


def _without_thoughts(message: Message) -> Message:
    kept = dict(_without_thought_fields(message))
    if message.get("role") == "assistant" and isinstance(kept.get("content"), str):
        kept["content"] = _THOUGHT.sub("", kept["content"])
    return kept


def _with_inline_thought(message: Message) -> Message:
    thought = next((message[name] for name in REASONING_FIELDS if message.get(name)), None)
    if thought is None:
        return message
    content = f"<think>\n{thought}\n</think>\n\n{message.get('content') or ''}"
    return {**_without_thought_fields(message), "content": content}


def _of_tools() -> Iterator[Change]:
    forms: Mapping[str, Callable[[Json], Json]] = {
        "without their wrapper": lambda tool: tool.get("function", tool),
        "with nulls": _with_nulls,
        "keys in order": lambda tool: json.loads(json.dumps(tool, sort_keys=True)),
        "parameters filled": _with_parameters,
    }
    for detail, form in forms.items():
        yield Change("tools_wrapper", _calling(_each_tool, form), detail=detail)
    yield Change("tools_wrapper", _without_tools, detail="left out")
    yield Change("tools_wrapper", _with_no_tools, detail="an empty list")
    yield Change("tool_calls", _calling(_each_call, _with_text_arguments), detail="arguments as text")
    yield Change("tool_calls", _calling(_each_call, _without_id), detail="without ids")
    yield Change("tool_calls", _calling(_each_message, _without_calls), detail="left out")


def _each_tool(given: Conversation, form: Callable[[Json], Json]) -> Conversation | None:
    return replace(given, tools=[form(tool) for tool in given.tools]) if given.tools else None


def _without_tools(given: Conversation) -> Conversation | None:
    return None if given.tools is None else replace(given, tools=None)


def _with_no_tools(given: Conversation) -> Conversation | None:
    return replace(given, tools=[]) if given.tools is None else None


def _function_of(tool: Json, form: Callable[[Mapping[str, Json]], Json]) -> Json:
    return {**tool, "function": form(tool["function"])} if isinstance(tool.get("function"), Mapping) else tool


def _with_nulls(tool: Json) -> Json:
    names = ("name", "description", "parameters")
    return _function_of(tool, lambda given: {**{name: given.get(name) for name in names}, **given})


def _with_parameters(tool: Json) -> Json:
    empty = {"type": "object", "properties": {}}
    return _function_of(tool, lambda given: {**given, "parameters": given.get("parameters") or empty})


def _each_call(given: Conversation, form: Callable[[Json], Json]) -> Conversation | None:
    def changed(message: Message) -> Message:
        calls = message.get("tool_calls")
        return {**message, "tool_calls": [form(call) for call in calls]} if calls else message

    return _each_message(given, changed)


def _with_text_arguments(call: Json) -> Json:
    return _function_of(call, lambda given: {**given, "arguments": json.dumps(given.get("arguments"))})


def _without_id(call: Json) -> Json:
    return {key: value for key, value in call.items() if key != "id"}


def _without_calls(message: Message) -> Message:
    return {key: value for key, value in message.items() if key != "tool_calls"}


ROLE_NAMES = ("system", "user", "assistant", "developer", "model", "human", "ai", "tool", "ipython")


def _of_roles(conversation: Conversation) -> Iterator[Change]:
    for role in sorted({str(message.get("role")) for message in conversation.messages}):
        for name in ROLE_NAMES:
            if name != role:
                yield Change("role_header", _calling(_renamed, role, name), detail=f"{role} as {name}")


def _renamed(given: Conversation, role: str, name: str) -> Conversation | None:
    return _each_message(given, lambda one: {**one, "role": name} if one.get("role") == role else one)


def _cut_of(role: str | None, cut: Callable[[str], str]) -> Callable[[str, str], str]:
    """Trims the messages of *role*; of every role where that is None."""
    return lambda one, text: cut(text) if role in (None, one) else text


def _each_text(given: Conversation, form: Callable[[str, str], str]) -> Conversation | None:
    def changed(message: Message) -> Message:
        content = message.get("content")
        return {**message, "content": form(str(message.get("role")), content)} if isinstance(content, str) else message

    return _each_message(given, changed)


# --- changes of the prompt


THINKING = (
    "<think>\n", "<think>", "<think>\n\n</think>\n\n", "<think></think>", "<think>\n</think>\n",
    "<think>\n\n</think>\n", "</think>", "</think>\n\n", "<think></think>\n",
)  # fmt: skip
"""What templates begin an answer with, to have it thought over or not."""


def _after(expected: str, seen: str, bos: str) -> Iterator[Change]:
    if bos:
        yield Change("double_bos", after=lambda text: bos + text if text.startswith(bos) else None)
        yield Change("added_bos", after=lambda text: None if text.startswith(bos) else bos + text)
        yield Change("missing_bos", after=lambda text: text.removeprefix(bos) if text.startswith(bos) else None)
    yield Change("trailing_newline", after=lambda text: seen if text.rstrip() == seen.rstrip() else None)
    for thinking in THINKING:
        yield Change("think_prefill_added", after=_adding(thinking), detail=repr(thinking))
        yield Change("think_prefill_missing", after=_taking(thinking), detail=repr(thinking))
    yield Change("history_think_dropped", after=lambda text: _THOUGHT.sub("", text))
    thoughts = [found[0] for found in _THOUGHT.finditer(seen) if found[0] not in expected]
    if thoughts:
        yield Change("history_think_kept", after=lambda text: _inserted(text, seen, thoughts))


def _adding(more: str) -> Callable[[str], str | None]:
    return lambda text: text + more


def _taking(less: str) -> Callable[[str], str | None]:
    return lambda text: text.removesuffix(less) if text.endswith(less) else None


def _inserted(text: str, seen: str, pieces: Sequence[str]) -> str | None:
    """*seen*, if it is *text* with *pieces* put in."""
    without = seen
    for piece in pieces:
        without = without.replace(piece, "", 1)
    return seen if without == text else None


_BLOCK = re.compile(r"system|developer|<<SYS>>|instructions?", re.IGNORECASE)
_MARKS = re.compile(r"<[^<>\n]*>|\[/?[A-Z_]+\]|system|[:#\s]", re.IGNORECASE)


def _of_system(conversation: Conversation, expected: str, seen: str, bos: str) -> Iterator[Change]:
    """A block in front that is in one of the two only, and looks like a system message's.

    *seen* may end otherwise, by another cause, so the block is looked for where the two begin to differ.
    """
    plain, other = expected.removeprefix(bos), seen.removeprefix(bos)
    head = expected[: len(expected) - len(plain)]
    for block in _blocks(other, plain):
        code = "default_system_added" if _MARKS.sub("", block) else "empty_system_block"
        yield Change(code, after=_putting(head, block), detail=repr(block[:60]))
    has_own = bool(conversation.messages) and conversation.messages[0].get("role") == "system"
    for block in _blocks(plain, other):
        code = "system_lost" if has_own else "default_system_lost"
        yield Change(code, after=_cutting(head, block), detail=repr(block[:60]))


def _of_a_head(conversation: Conversation, expected: str, render: RenderText) -> Iterator[Change]:
    """The head of an answer, of a template that begins none by itself."""
    mark = "\x00answer\x00"
    answered = replace(
        conversation,
        messages=[*conversation.messages, {"role": "assistant", "content": mark}],
        add_generation_prompt=False,
        continue_final_message=False,
    )
    text = _rendered(answered, render)
    if text is not None and mark in text and text.startswith(expected):
        yield Change("extra_generation_prompt", after=_adding(text[len(expected) : text.index(mark)]))


def _blocks(longer: str, shorter: str) -> Iterator[str]:
    """What has to be taken from the front of *longer* so that it begins as *shorter* does, where it looks so."""
    beginning = shorter[:12]
    at = longer.find(beginning, 1) if beginning else -1
    while at > 0:
        block = longer[:at]
        if _BLOCK.search(block):
            yield block
        at = longer.find(beginning, at + 1)


def _putting(head: str, block: str) -> Callable[[str], str | None]:
    return lambda text: head + block + text.removeprefix(head)


def _cutting(head: str, block: str) -> Callable[[str], str | None]:
    return lambda text: head + text.removeprefix(head).removeprefix(block)


_MONTHS = "Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec"
_DATES = re.compile(
    r"\b\d{4}-\d{2}-\d{2}(?:[T ]\d{2}:\d{2}(?::\d{2})?)?\b"
    r"|\b\d{1,2}/\d{1,2}/\d{2,4}\b"
    rf"|\b\d{{1,2}} (?:{_MONTHS})[a-z]* \d{{4}}\b"
    rf"|\b(?:{_MONTHS})[a-z]* \d{{1,2}},? \d{{4}}\b"
    r"|\b(?:Mon|Tues|Wednes|Thurs|Fri|Satur|Sun)day\b"
    r"|\b\d{1,2}:\d{2}(?::\d{2})?(?: ?[AP]M)?\b"
)


def _same_but_dates(expected: str, seen: str) -> bool:
    return _DATES.sub("DATE", expected) == _DATES.sub("DATE", seen)


# --- where no change makes it: what can be said from the place of the difference


def _by_its_place(conversation: Conversation, expected: str, seen: str, render: RenderText) -> Explanation | None:
    """What the part that differs holds: a system message that is missing, or the tools."""
    first, last = _differing(expected, seen)
    if expected[:first] + expected[last:] == seen and _has_system(conversation, expected[first:last]):
        return Explanation([Change("system_lost")])
    bare = _rendered(replace(conversation, tools=None), render) if conversation.tools else None
    if bare is None or bare == expected:
        return None
    begins, ends = _differing(expected, bare)
    return (
        Explanation([Change("tools_wrapper", detail="in a way of its own")])
        if begins <= first <= last <= ends
        else None
    )


def _has_system(conversation: Conversation, text: str) -> bool:
    said = [message.get("content") for message in conversation.messages if message.get("role") == "system"]
    return any(isinstance(one, str) and bool(one.strip()) and one.strip() in text for one in said)


def _differing(text: str, other: str) -> tuple[int, int]:
    """Begin and end of the part of *text* that is not as in *other*."""
    shorter = min(len(text), len(other))
    begins = next((at for at in range(shorter) if text[at] != other[at]), shorter)
    same = next((at for at in range(shorter - begins) if text[-1 - at] != other[-1 - at]), shorter - begins)
    return begins, len(text) - same
