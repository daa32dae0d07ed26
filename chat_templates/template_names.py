"""What a template can be seen to use without rendering it: names, calls and filters in its syntax tree."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from jinja2 import meta, nodes

from chat_templates.rules import GIVEN, Rules

CLOCK = "strftime_now"


@dataclass(frozen=True, slots=True)
class TemplateNames:
    """variables: names that are neither the conversation's nor the environment's, so somebody has to pin them.

    time_formats: the constant formats that ``strftime_now`` is called with; None where one is not constant, and empty
    where the clock is not read. uses_chance: the ``random`` filter.
    """

    variables: frozenset[str]
    time_formats: tuple[str, ...] | None
    uses_chance: bool


def names_in(template: str, rules: Rules) -> TemplateNames:
    """The names in *template*. Raises jinja2's TemplateSyntaxError."""
    tree = rules.environment.parse(template)
    undeclared = meta.find_undeclared_variables(tree)
    return TemplateNames(
        frozenset(undeclared - GIVEN - rules.environment.globals.keys() - {CLOCK}),
        _time_formats(tree) if CLOCK in undeclared else (),
        any(node.name == "random" for node in tree.find_all(nodes.Filter)),
    )


def _time_formats(tree: nodes.Template) -> tuple[str, ...] | None:
    formats = list(_called_with(tree))
    if any(one is None for one in formats):
        return None
    return tuple(sorted({one for one in formats if one is not None}))


def _called_with(tree: nodes.Template) -> Iterator[str | None]:
    for call in tree.find_all(nodes.Call):
        if isinstance(call.node, nodes.Name) and call.node.name == CLOCK:
            given = [*call.args, *(keyword.value for keyword in call.kwargs)]
            constant = given[0] if len(given) == 1 else None
            is_text = isinstance(constant, nodes.Const) and isinstance(constant.value, str)
            yield constant.value if is_text else None  # type: ignore[union-attr] # is_text says so
