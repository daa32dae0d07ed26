"""Probing: what a template puts between the messages, read off conversations whose contents are marks.

A template is *linear* when the text between two messages depends on their two roles only. Then its prompt is the
contents, with a known text before the first, between any two, and after the last, and any language with a loop can
make it. That is more than markers around each role: a system message that is folded into the first user's turn, as in
Llama 2, is linear too. Nothing here is proof; `derivation` renders again and compares.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from chat_templates.conversation import Conversation, ConversationInvalid
from chat_templates.refusals import CannotDerive, Code, Refusal
from chat_templates.rendering import Rendered, Renderer, TemplateBroken, TemplateRefused

Render = Callable[[Renderer, Conversation], Rendered]
"""`Renderer.render`, or something that does it elsewhere. What it raises beyond that comes through."""

START, END = "start", "end"
"""Before the first message, and after the last one, where the answer begins."""

ROLES: Mapping[str, str] = {"s": "system", "u": "user", "a": "assistant"}

Border = tuple[str, str]
"""Two roles that follow one another; the first may be START, the second END."""


class NoPlace(Exception):
    """The form has no text for this conversation; the message says what of it."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a template or a form says of a conversation: its prompt, or why there is none."""

    text: str | None
    refusal: str = ""

    def __str__(self) -> str:
        return f"refuses: {self.refusal}" if self.text is None else self.text


@dataclass(frozen=True, slots=True)
class Linear:
    """A linear template. borders: the text between two roles. Where a border is missing, nothing is known of it."""

    borders: Mapping[Border, str]

    @property
    def has_system(self) -> bool:
        """Whether a conversation may begin with a system message."""
        return (START, "system") in self.borders

    def prompt(self, messages: Sequence[tuple[str, str]]) -> str:
        """The prompt of *messages*, each role and content. Raises NoPlace for a border that is not known."""
        pieces, before = [], START
        for role, content in messages:
            pieces += [self._border(before, role), content]
            before = role
        return "".join([*pieces, self._border(before, END)])

    def _border(self, before: str, after: str) -> str:
        try:
            return self.borders[before, after]
        except KeyError:
            raise NoPlace(_shown(before, after)) from None


def _shown(before: str, after: str) -> str:
    if before == START:
        return f"a conversation that begins with {after}"
    return f"a conversation that ends with {before}" if after == END else f"{after} after {before}"


def outcome(render: Render, renderer: Renderer, conversation: Conversation) -> Outcome:
    """What *renderer* says of *conversation*."""
    try:
        return Outcome(render(renderer, conversation).text)
    except (TemplateRefused, TemplateBroken, ConversationInvalid) as problem:
        return Outcome(None, str(problem))


@dataclass(frozen=True, slots=True)
class Probe:
    """One probe's render. shape: its roles, such as ``suau``. texts: before, between and after the contents."""

    shape: str
    rendered: str
    texts: tuple[str, ...]

    def borders(self) -> Iterator[tuple[Border, str]]:
        """Each border in its order."""
        roles = [START, *(ROLES[letter] for letter in self.shape), END]
        yield from zip(itertools.pairwise(roles), self.texts, strict=True)


def conversation_of(shape: str, *, closed: bool = False) -> Conversation:
    """The conversation of marks in *shape*. closed: without the generation prompt."""
    messages = [{"role": ROLES[letter], "content": _mark(letter, turn)} for turn, letter in enumerate(shape)]
    return Conversation(messages, add_generation_prompt=not closed)


def _mark(letter: str, turn: int) -> str:
    # letters and digits: nothing to trim, escape or split at; upper and lower case, to see whether that is changed
    return f"Zq{turn}{letter.upper()}xK{turn}"


def probe(render: Render, renderer: Renderer, shape: str, *, closed: bool = False) -> Probe | Outcome:
    """The probe of *shape*, or the outcome where the template refuses it. Raises CannotDerive with T02."""
    found = outcome(render, renderer, conversation_of(shape, closed=closed))
    if found.text is None:
        return found
    texts, rest = [], found.text
    for turn, letter in enumerate(shape):
        if found.text.count(_mark(letter, turn)) != 1 or _mark(letter, turn) not in rest:
            times = found.text.count(_mark(letter, turn))
            where = "out of its order" if times == 1 else f"{times} times"
            sentence = f"the text of a {ROLES[letter]} message is in the prompt {where}"
            raise CannotDerive(Refusal("T02", sentence, shown_shape(shape), found.text))
        before, _, rest = rest.partition(_mark(letter, turn))
        texts.append(before)
    return Probe(shape, found.text, (*texts, rest))


def shown_shape(shape: str) -> str:
    """How a person is told of *shape*."""
    return "probe " + "-".join(ROLES[letter] for letter in shape)


def linear_of(render: Render, renderer: Renderer) -> Linear:
    """The linear template that *renderer* seems to be. Raises CannotDerive."""
    first = probe(render, renderer, "u")
    if isinstance(first, Outcome):
        raise CannotDerive(Refusal("T01", f"the template refuses a user message: {first.refusal}", "probe user"))
    known: dict[Border, tuple[str, Probe]] = {}
    _merge(known, first)
    for shape in ("uau", "uauau"):
        _merge(known, _required(render, renderer, shape))
    if isinstance(system := probe(render, renderer, "su"), Probe):
        _merge(known, system)
        for shape in ("suau", "suauau"):
            _merge(known, _required(render, renderer, shape))
    for shape in ("uasu", "ua", "s"):
        _merge_optional(known, render, renderer, shape)
    return Linear({border: text for border, (text, _) in known.items()})


def closings_of(render: Render, renderer: Renderer) -> tuple[str, str]:
    """What stands after a user message and after an answer when nothing is to follow; empty where that is not known."""
    found = []
    for shape in ("u", "ua"):
        try:
            closed = probe(render, renderer, shape, closed=True)
        except CannotDerive:
            closed = Outcome(None)
        found.append(closed.texts[-1] if isinstance(closed, Probe) else "")
    return found[0], found[1]


def _required(render: Render, renderer: Renderer, shape: str) -> Probe:
    found = probe(render, renderer, shape)
    if isinstance(found, Outcome):
        sentence = f"the template refuses a conversation of this shape: {found.refusal}"
        raise CannotDerive(Refusal("T08", sentence, shown_shape(shape), str(found)))
    return found


def _merge(known: dict[Border, tuple[str, Probe]], found: Probe) -> None:
    """Add the borders of *found*. Raises CannotDerive where one is known otherwise."""
    own: dict[Border, str] = {}
    for border, text in found.borders():
        if border in own and own[border] != text:
            sentence = f"what stands between {border[0]} and {border[1]} depends on the turn"
            raise CannotDerive(_difference("T03", sentence, found, found, own[border], text))
        if border in known and known[border][0] != text:
            earlier = known[border][1]
            code, sentence = _reason(border, earlier.shape, found.shape)
            raise CannotDerive(_difference(code, sentence, earlier, found, known[border][0], text))
        own[border] = text
    known.update({border: (text, found) for border, text in own.items() if border not in known})


def _reason(border: Border, earlier: str, later: str) -> tuple[Code, str]:
    if border[1] == END:
        return "T05", "the head of the answer to come depends on what was said before"
    if later.startswith(earlier):
        return "T04", f"what stands between {border[0]} and {border[1]} is changed by later messages"
    return "T03", f"what stands between {border[0]} and {border[1]} depends on the turn"


def _difference(code: Code, sentence: str, one: Probe, other: Probe, left: str, right: str) -> Refusal:
    case = shown_shape(other.shape)
    if one is other:
        return Refusal(code, sentence, case, left, right)
    return Refusal(code, sentence, f"{shown_shape(one.shape)} and {case}", one.rendered, other.rendered)


def _merge_optional(known: dict[Border, Any], render: Render, renderer: Renderer, shape: str) -> None:
    """Add what *shape* shows, unless the template refuses it or does something else with it."""
    attempt = dict(known)
    try:
        found = probe(render, renderer, shape)
        if isinstance(found, Probe):
            _merge(attempt, found)
            known.update(attempt)
    except CannotDerive:
        pass
