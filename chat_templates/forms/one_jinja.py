"""Several templates as one: for an engine that takes a single file, where transformers chooses among templates by name.

transformers takes ``tool_use`` where there are tools, and ``default`` elsewhere (`get_chat_template`, 5.23.0); the file
asks the same. Templates of other names are only used by those who name them, and nobody does.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from chat_templates.rendering import DEFAULT, TOOL_USE

_LAST_LINE_END = re.compile(r"(\r\n|\r|\n)\Z")


def one_template(templates: Mapping[str, str]) -> str:
    """The text that renders as *templates* do: by itself where only one of them is ever used."""
    default, tool_use = templates.get(DEFAULT), templates.get(TOOL_USE)
    if default is None or tool_use is None:
        only = next(iter(templates.values()), "")
        return default or tool_use or only
    return (
        "{% if tools is defined and tools is not none %}\n"
        f"{_within(tool_use)}"
        "{% else %}\n"
        f"{_within(default)}"
        "{% endif %}"
    )


def _within(text: str) -> str:
    """*text* with what Jinja does at a template's end done, and nothing done to it by the block that follows."""
    # keep_trailing_newline is off; lstrip_blocks takes the spaces between a line's begin and a block, not a variable
    return _LAST_LINE_END.sub("", text, count=1) + '{{ "" }}'
