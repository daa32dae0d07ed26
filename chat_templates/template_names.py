"""What a template can be seen to use without rendering it: names, calls and filters in its syntax tree."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NoReturn

from jinja2 import nodes
from jinja2.environment import Environment
from jinja2.meta import TrackingCodeGenerator

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
    tracking = _Tracking(rules.environment)
    tracking.visit(tree)
    undeclared = tracking.undeclared_identifiers
    return TemplateNames(
        frozenset(undeclared - GIVEN - rules.environment.globals.keys() - {CLOCK}),
        _time_formats(tree) if CLOCK in undeclared else (),
        any(node.name == "random" for node in tree.find_all(nodes.Filter)),
    )


class _Tracking(TrackingCodeGenerator):
    """Jinja's own, which is what `jinja2.meta.find_undeclared_variables` uses, without its folding of constants.

    ``{{ 9 ** 9 ** 9 }}`` is computed while it is compiled: so nothing that is foreign may be compiled where nobody can
    stop it (jinja2 3.1.6, src/jinja2/compiler.py: the three places at which it asks for constants).
    """

    def __init__(self, environment: Environment) -> None:
        super().__init__(environment)
        self.optimizer = None

    def _output_child_to_const(self, *args: Any) -> NoReturn:
        raise nodes.Impossible

    def visit_EvalContextModifier(self, node: nodes.EvalContextModifier, frame: Any) -> None:  # noqa: N802 - Jinja's
        frame.eval_ctx.volatile = True


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
