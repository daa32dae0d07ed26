"""Chat templates as text: read, and parsed as the engines parse them.

The dialect is that of transformers' `apply_chat_template` (src/transformers/utils/chat_template_utils.py, 5.23.0):
Jinja2 with trimmed blocks, loop controls and the ``{% generation %}`` block.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from jinja2 import TemplateSyntaxError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from chat_templates.text_files import TextUnreadable, read_utf8

TEMPLATE_LIMIT_BYTES = 1024 * 1024


class TemplateUnreadable(Exception):
    """The template cannot be read or parsed; the message says where and why."""


class GenerationTag(Extension):
    """``{% generation %}…{% endgeneration %}`` marks the assistant's own tokens; it renders as its content.

    The content is a block of its own, as in transformers: what is set in it is not seen after it.
    """

    tags = {"generation"}  # noqa: RUF012 - Jinja's own way of declaring it

    def parse(self, parser: Parser) -> nodes.Node:
        """A call of `_content` with the block."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_content"), [], [], body).set_lineno(line)

    def _content(self, caller: Callable[[], str]) -> str:
        return caller()


def environment() -> ImmutableSandboxedEnvironment:
    """A sandboxed environment with the dialect's settings. It parses; rendering rules are added by the renderer."""
    return ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[GenerationTag, loopcontrols])


def read_template(path: Path) -> str:
    """The template in *path*, UTF-8, known to parse. Raises TemplateUnreadable."""
    try:
        text = read_utf8(path, TEMPLATE_LIMIT_BYTES, ", so it is no chat template")
    except TextUnreadable as problem:
        raise TemplateUnreadable(f"{path}: {problem}") from problem
    try:
        environment().parse(text)
    except TemplateSyntaxError as problem:
        raise TemplateUnreadable(f"{path}:{problem.lineno}: {problem.message}") from problem
    except RecursionError as problem:
        raise TemplateUnreadable(f"{path}: is nested too deeply to be parsed") from problem
    return text
