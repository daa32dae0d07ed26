"""Rendering: from a conversation to the prompt, exactly as the library that trained the model does it.

A `Renderer` is a value: two that are equal give equal prompts, for ever (a template that uses Jinja's ``random`` filter
excepted). It trusts its template no more than the sandbox does, but it cannot stop one that never ends: where templates
come from others, render in a child process, as `backends.render_pool` does.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime

from jinja2 import Template, TemplateSyntaxError

from chat_templates.conversation import Conversation, ConversationInvalid, Json, plain
from chat_templates.rules import GIVEN, RULES, TRANSFORMERS_5_23, Raised, Rules

DEFAULT = "default"
TOOL_USE = "tool_use"
"""The named template that is used where there are tools (transformers' `get_chat_template`, 5.23.0)."""

COMPILED_TEMPLATES = 128
"""How many compiled templates are kept."""


class TemplateRefused(Exception):
    """The template itself refused the conversation (``raise_exception``); the message is its own."""


class TemplateBroken(Exception):
    """The template failed. The message is what Python or Jinja said; line counts from 1, None where it is not known."""

    def __init__(self, message: str, line: int | None) -> None:
        super().__init__(message)
        self.message = message
        self.line = line

    def __str__(self) -> str:
        return self.message if self.line is None else f"line {self.line}: {self.message}"


@dataclass(frozen=True, slots=True)
class Rendered:
    """A prompt. template: the name of the one that rendered it."""

    text: str
    template: str = DEFAULT


@dataclass(frozen=True, slots=True)
class Renderer:
    """Templates by name, and everything else their text depends on.

    templates: Jinja texts; a model's only one is called ``default``. rules: a key of `RULES`. variables: what
    transformers calls template kwargs, such as ``enable_thinking``. special_tokens: ``bos_token`` and its like, as the
    tokenizer has them; variables come before them. clock: what ``strftime_now`` tells; None is the machine's local
    time, with which a prompt changes from day to day.

    Raises ConversationInvalid when made with a variable that the conversation defines, or that is no JSON value, and
    KeyError for unknown rules. Safe to use from several threads at once.
    """

    templates: Mapping[str, str]
    rules: str = TRANSFORMERS_5_23.name
    variables: Mapping[str, Json] = field(default_factory=dict)
    special_tokens: Mapping[str, str] = field(default_factory=dict)
    clock: datetime | None = None

    def __post_init__(self) -> None:
        RULES[self.rules]
        for name in self.variables:
            if name in GIVEN:
                raise ConversationInvalid(f"the variable {name!r} is defined by the conversation itself")
        object.__setattr__(self, "variables", plain(self.variables, "variables"))

    @classmethod
    def of(cls, template: str) -> Renderer:
        """A renderer of one template, with nothing else set."""
        return cls({DEFAULT: template})

    def template_for(self, conversation: Conversation) -> str:
        """The name of the template that renders *conversation*. Raises ConversationInvalid where there is none."""
        if conversation.tools is not None and TOOL_USE in self.templates:
            return TOOL_USE
        if DEFAULT in self.templates:
            return DEFAULT
        names = ", ".join(sorted(self.templates)) or "none"
        raise ConversationInvalid(f"there is no template called {DEFAULT!r}; there are: {names}")

    def render(self, conversation: Conversation) -> Rendered:
        """The prompt for *conversation*.

        Raises ConversationInvalid, TemplateRefused or TemplateBroken, and MemoryError as it comes.
        """
        rules = RULES[self.rules]
        name = self.template_for(conversation)
        text = self.templates[name]
        template = _compiled(text, rules, self.clock)
        prepared = rules.prepare(conversation, text)
        given = {**self.special_tokens, **plain(self.variables, "variables"), **prepared.given}
        try:
            rendered = template.render(given)
        except Raised as refusal:
            raise TemplateRefused(_shown(refusal.args[0])) from refusal
        except MemoryError:
            raise
        # a template's code may raise anything at all
        except Exception as problem:
            raise _broken(problem) from problem
        return Rendered(rules.finish(rendered, prepared), name)


@functools.lru_cache(COMPILED_TEMPLATES)
def _code(text: str, rules: str) -> types.CodeType:
    try:
        return RULES[rules].environment.compile(text)
    except MemoryError:
        raise
    # besides Jinja's own: what Python's compiler makes of the generated code (nesting, recursion)
    except Exception as problem:
        raise _broken(problem) from problem


def _compiled(text: str, rules: Rules, clock: datetime | None) -> Template:
    now: Callable[[], datetime] = datetime.now if clock is None else lambda: clock
    names = rules.environment.make_globals(rules.names(now))
    return rules.environment.template_class.from_code(rules.environment, _code(text, rules.name), names)


def _broken(problem: Exception) -> TemplateBroken:
    if isinstance(problem, TemplateSyntaxError):
        return TemplateBroken(problem.message or "syntax error", problem.lineno)
    said = str(problem) or "no reason given"
    # Jinja's own errors are sentences; of Python's the name is half of what they say
    message = said if type(problem).__module__.startswith("jinja2") else f"{type(problem).__name__}: {said}"
    return TemplateBroken(message, _template_line(problem))


def _template_line(problem: Exception) -> int | None:
    """The line of the template in *problem*'s traceback that is nearest to where it happened."""
    line, traceback = None, problem.__traceback__
    while traceback is not None:
        # Jinja puts such a frame where the template's generated code was (jinja2/debug.py, 3.1.6)
        if "__jinja_exception__" in traceback.tb_frame.f_globals:
            line = traceback.tb_lineno
        traceback = traceback.tb_next
    return line


def _shown(message: object) -> str:
    try:
        return str(message)
    # an undefined value says so by raising
    except Exception as problem:
        return str(problem)
