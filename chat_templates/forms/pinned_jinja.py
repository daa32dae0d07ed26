"""A Jinja template that needs nothing from its engine: what a renderer pins is written into the template itself.

vLLM and llama.cpp take variables by a flag, LMDeploy by request, a GGUF file not at all; a ``set`` at the top of the
template is understood by all of them, and no request can undo it. A frozen clock becomes a macro of the name
``strftime_now``. What pins nothing is not changed by a byte.
"""

from __future__ import annotations

import json
import math

from jinja2 import TemplateSyntaxError

from chat_templates.battery import BATTERY
from chat_templates.conversation import Json
from chat_templates.probing import Render, outcome
from chat_templates.refusals import CannotDerive, Refusal, Unwritable
from chat_templates.rendering import Renderer
from chat_templates.rules import RULES
from chat_templates.template_names import CLOCK, TemplateNames, names_in


def pinned(renderer: Renderer, render: Render = Renderer.render) -> dict[str, str]:
    """The templates by name, with the renderer's variables and clock in them, compared over the whole battery.

    Variables that a template does not read are left out. Special tokens are the tokenizer's, which every engine has.
    Raises CannotDerive, Unwritable, and what *render* raises.
    """
    return {name: _pinned(name, renderer, render) for name in renderer.templates}


def with_variables(renderer: Renderer) -> dict[str, str]:
    """As `pinned`, and compared with nothing: for one whose prompts are proven where they are made. Renders nothing.

    Raises CannotDerive and Unwritable.
    """
    return {name: _made(name, renderer) for name in renderer.templates}


def _pinned(name: str, renderer: Renderer, render: Render) -> str:
    text, made = renderer.templates[name], _made(name, renderer)
    if made == text:
        return text
    one = Renderer({"default": text}, renderer.rules, renderer.variables, renderer.special_tokens, renderer.clock)
    # without a clock of its own: were the macro not used, the time of this machine would show
    other = Renderer({"default": made}, renderer.rules, {}, renderer.special_tokens)
    for case in BATTERY:
        left, right = (outcome(render, each, case.conversation) for each in (one, other))
        # of what is refused, the line has moved
        if left.text != right.text:
            sentence = "the template does not say the same when its variables are set in it"
            raise CannotDerive(Refusal("T09", sentence, case.name, str(left), str(right)))
    return made


def _made(name: str, renderer: Renderer) -> str:
    text = renderer.templates[name]
    try:
        names = names_in(text, RULES[renderer.rules])
    except TemplateSyntaxError as problem:
        sentence = f"the template {name} cannot be parsed: line {problem.lineno}: {problem.message}"
        raise CannotDerive(Refusal("T01", sentence)) from problem
    head = [
        # trim_blocks: the line end after a block is not part of the prompt
        f"{{% set {variable} = {literal(value)} %}}\n"
        for variable, value in sorted(renderer.variables.items())
        if variable in names.variables
    ]
    if renderer.clock is not None and names.time_formats != ():
        head.append(_clock(renderer, names))
    return "".join(head) + text


def _clock(renderer: Renderer, names: TemplateNames) -> str:
    assert renderer.clock is not None
    if names.time_formats is None:
        raise CannotDerive(Refusal("T07", "the template asks for the time in a format that is not written in it"))
    told = {one: literal(renderer.clock.strftime(one)) for one in names.time_formats}
    tests = [
        f"{{% {'elif' if number else 'if'} format == {literal(one)} %}}{{{{ {text} }}}}"
        for number, (one, text) in enumerate(told.items())
    ]
    return f"{{% macro {CLOCK}(format) %}}{''.join(tests)}{{% endif %}}{{% endmacro %}}\n"


def literal(value: Json) -> str:
    """*value* as a literal of Jinja's. Raises Unwritable for what has none."""
    match value:
        case None:
            return "none"
        case bool():
            return "true" if value else "false"
        case str():
            # Jinja knows JSON's escapes (jinja2/lexer.py, `wrap`), but takes half a surrogate pair for a character
            return json.dumps(value, ensure_ascii=False)
        case float() if not math.isfinite(value):
            raise Unwritable(f"the number {value} cannot be written in a template")
        case int() | float():
            return repr(value)
        case dict():
            return "{" + ", ".join(f"{literal(key)}: {literal(item)}" for key, item in value.items()) + "}"
    return "[" + ", ".join(literal(item) for item in value) + "]"
