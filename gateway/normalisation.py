"""One API whatever the engine: a request as its engine understands it, an answer as OpenAI's clients do. Pure.

What differs is data, `backends.dialect`; here is what is done about it. A parameter the engine would drop is mapped, or
refused by its name, or, where the operator says so, left out and reported. An answer gets the public name of its model
and, where the engine's own may repeat, an id of ours.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from backends.dialect import CHAT, OPENAI, REASONING, Dialect, Quirk
from gateway.errors import BadGateway, BadRequest

Json = dict[str, Any]

_OTHER_NAME = {"reasoning": "reasoning_content", "reasoning_content": "reasoning"}
_ID_PREFIX = {CHAT: "chatcmpl-"}


@dataclass(frozen=True, slots=True)
class Appearance:
    """How one answer is to look to its client.

    *model* and *answer_id* replace what the engine says; None leaves it. *witness* is shown the whole answer, or each
    chunk, as the engine gave it; *hidden* fields of the answer and of its choices are then left out.
    """

    dialect: Dialect = OPENAI
    model: str | None = None
    answer_id: str | None = None
    hidden: frozenset[str] = frozenset()
    witness: Callable[[Json], None] | None = None

    @property
    def edits_every_chunk(self) -> bool:
        """Whether no chunk of a stream may pass untouched."""
        is_renamed = self.model is not None or self.answer_id is not None
        return is_renamed or self.dialect.needs_editing or self.witness is not None


@dataclass(frozen=True, slots=True)
class Asked:
    """A request's *body* as it is forwarded, and the names of the parameters that were *ignored*."""

    body: Json
    ignored: tuple[str, ...] = ()


def appearance(dialect: Dialect, endpoint: str, *, model: str, served_name: str, upstream_id: str) -> Appearance:
    """How the answer of *endpoint* is to look: named *model*, which its engine calls *served_name*.

    *upstream_id* is unique; it becomes the id of an answer whose engine's own would not be.
    """
    own_id = Quirk.IDS_COLLIDE in dialect.quirks
    return Appearance(
        dialect,
        model=model if served_name != model or dialect.needs_editing else None,
        answer_id=_ID_PREFIX.get(endpoint, "cmpl-") + upstream_id if own_id else None,
    )


# requests


def normalise_request(body: Mapping[str, Any], dialect: Dialect, endpoint: str, *, ignores: bool) -> Asked:
    """*body* as an engine of *dialect* understands it; the client's own is not touched.

    *ignores*: what the engine would not honour is left out and named, instead of refused. Null is OpenAI's word for a
    default, which engines do not all read so, and is left out. Raises BadRequest.
    """
    # llama.cpp refuses some parameters even as null, LMDeploy's completions fail on n: null.
    asked = {name: value for name, value in body.items() if value is not None}
    _check_minimums(asked, dialect, endpoint)
    for kept in dialect.withheld:
        if endpoint in kept.endpoints and asked.get(kept.name) == kept.value:
            for name in kept.drops:
                asked.pop(name, None)
    ignored = _leave_out_unhonoured(asked, dialect, endpoint)
    if ignored and not ignores:
        raise _unsupported(ignored)
    for renamed in dialect.renamed:
        if endpoint in renamed.endpoints and renamed.name in asked:
            asked[renamed.to] = asked.pop(renamed.name)
    if endpoint == CHAT and dialect.history_reasoning is not None and isinstance(asked.get("messages"), list):
        asked["messages"] = _history(asked["messages"], dialect.history_reasoning)
    return Asked(asked, ignored)


def _check_minimums(asked: Json, dialect: Dialect, endpoint: str) -> None:
    for bound in dialect.minimums:
        value = asked.get(bound.name)
        if endpoint in bound.endpoints and isinstance(value, int) and value < bound.least:
            message = f"{bound.name} must be at least {bound.least}, not {value}"
            raise BadRequest(message, param=bound.name, code="integer_below_min_value")


def _leave_out_unhonoured(asked: Json, dialect: Dialect, endpoint: str) -> tuple[str, ...]:
    known = [row for row in dialect.unhonoured if row.name in asked and endpoint in row.endpoints]
    return tuple(row.name for row in known if asked.pop(row.name) not in row.harmless)


def _unsupported(names: tuple[str, ...]) -> BadRequest:
    listed = ", ".join(names)
    it = "it" if len(names) == 1 else "them"
    message = (
        f"the engine of this model does not honour {listed}: leave {it} out"
        f" (the gateway's operator can have {it} ignored: models.<name>.unsupported_parameters: ignore)"
    )
    return BadRequest(message, param=names[0], code="unsupported_parameter")


def _history(messages: list[Any], name: str) -> list[Any]:
    """*messages* with earlier thinking in the field *name*, whichever of the two the client wrote."""
    other = _OTHER_NAME[name]
    if not any(isinstance(message, dict) and other in message for message in messages):
        return messages
    return [_message(message, name, other) if isinstance(message, dict) else message for message in messages]


def _message(message: Json, name: str, other: str) -> Json:
    renamed = dict(message)
    thinking = renamed.pop(other, None)
    if thinking is not None:
        renamed.setdefault(name, thinking)
    return renamed


# answers


@dataclass(slots=True)
class Normaliser:
    """Makes one answer look as *appearance* has it: a whole one, or its chunks in their order.

    *wants_usage*: the client asked for the usage of its stream. Both methods change what they are given, return whether
    anything was changed, and raise BadGateway for an answer that the engine broke off: its finish reason says so.
    """

    appearance: Appearance = field(default_factory=Appearance)
    wants_usage: bool = False
    _finish_words: Mapping[str, str | None] = field(init=False)
    _roles_shown: set[int] = field(init=False, default_factory=set)

    def __post_init__(self) -> None:
        self._finish_words = self.appearance.dialect.finish_words

    def whole(self, answer: Json) -> bool:
        """A whole answer: a completion, or embeddings."""
        changed = self._witnessed(answer) | self._name(answer)
        for choice in _dicts(answer.get("choices")):
            changed |= self._finish(choice) | self._reasoning(choice.get("message"))
        return changed

    def chunk(self, chunk: Json) -> bool:
        """One chunk of a stream."""
        changed = self._witnessed(chunk) | self._name(chunk)
        choices = _dicts(chunk.get("choices"))
        for choice in choices:
            delta = choice.get("delta")
            changed |= self._finish(choice) | self._reasoning(delta) | self._role(choice.get("index"), delta)
        return changed | (bool(choices) and self._stray_usage(chunk))

    def _witnessed(self, answer: Json) -> bool:
        look = self.appearance
        if look.witness is None:
            return False
        look.witness(answer)
        is_changed = False
        for one in (answer, *_dicts(answer.get("choices"))):
            for name in look.hidden & one.keys():
                del one[name]
                is_changed = True
        return is_changed

    def _name(self, answer: Json) -> bool:
        look = self.appearance
        changed = False
        if look.model is not None and answer.get("model") != look.model:
            answer["model"] = look.model
            changed = True
        if look.answer_id is not None and "id" in answer:
            answer["id"] = look.answer_id
            changed = True
        return changed

    def _finish(self, choice: Json) -> bool:
        reason = choice.get("finish_reason")
        if not isinstance(reason, str) or reason not in self._finish_words:
            return False
        means = self._finish_words[reason]
        if means is None:
            message = f"the backend ended its answer before it was complete ({reason})"
            raise BadGateway(message, code="backend_aborted")
        choice["finish_reason"] = means
        choice["engine_finish_reason"] = reason
        return True

    def _reasoning(self, fields: object) -> bool:
        name = self.appearance.dialect.answer_reasoning
        if name == REASONING or not isinstance(fields, dict) or fields.get(name) is None:
            return False
        thinking = fields.pop(name)
        if fields.get(REASONING) is None:
            fields[REASONING] = thinking
        return True

    def _role(self, index: object, delta: object) -> bool:
        if not isinstance(delta, dict) or "role" not in delta or not isinstance(index, int):
            return False
        if Quirk.ROLE_REPEATED not in self.appearance.dialect.quirks:
            return False
        if index not in self._roles_shown:
            self._roles_shown.add(index)
            return False
        del delta["role"]
        return True

    def _stray_usage(self, chunk: Json) -> bool:
        if Quirk.STRAY_USAGE not in self.appearance.dialect.quirks or "usage" not in chunk:
            return False
        usage = chunk["usage"]
        if isinstance(usage, dict) and any(usage.values()):
            return False
        # OpenAI has null beside every choice of a stream whose usage was asked for, and nothing otherwise.
        if self.wants_usage:
            chunk["usage"] = None
        else:
            del chunk["usage"]
        return True


def _dicts(items: object) -> list[Json]:
    return [item for item in items if isinstance(item, dict)] if isinstance(items, list) else []
