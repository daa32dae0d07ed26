"""Derivation: the same prompts from another form than Jinja, or the reason why not.

Three steps. `names_in` refuses what can be seen without rendering; `linear_of` reads off what the template puts between
messages; and then every conversation of the core is rendered both ways and compared, which is the only step that is
believed. Where the two differ in whitespace alone, the rules by which the template trims are searched for, and whoever
sends conversations to the form has to trim so first.

The **core** is what a form has to carry: an optional system message, then user and assistant in turn, texts with any
characters. Everything else of the battery is compared too, and said: `Derivation.comparisons`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Literal

from jinja2 import TemplateSyntaxError

from chat_templates.battery import CASES, Case, Feature
from chat_templates.conversation import Conversation
from chat_templates.probing import Linear, NoPlace, Outcome, Render, linear_of, outcome
from chat_templates.refusals import CannotDerive, Code, Refusal
from chat_templates.rendering import Renderer
from chat_templates.rules import RULES
from chat_templates.template_names import TemplateNames, names_in
from chat_templates.trimming import TrimRules, all_rules
from chat_templates.visible import parting

CARRIED: frozenset[Feature] = frozenset({"text", "system", "multi_turn"})
"""The features of a conversation that a derived form carries."""

CORE_CASES = (
    "whitespace", "user", "system_user", "multi_turn", "system_multi_turn", "many_turns", "unicode",
    "template_literals", "special_token_text", "long",
)  # fmt: skip

Comparison = Literal["exact", "differs", "not carried", "not refused"]
"""What a form says of a conversation: the template's prompt (or, as it, none), another one, none where the template has
one, one where the template has none."""

FormPrompt = Callable[[Conversation], str]
"""The prompt an engine makes of a conversation with a form. Raises NoPlace where the engine refuses it."""

CANDIDATES = (True, False, "text")
"""What a variable is set to, to see whether the prompt depends on it."""

OTHER_TIMES = (datetime(2001, 2, 3, 4, 5, 6), datetime(2032, 11, 12, 13, 14, 15))


@dataclass(frozen=True, slots=True)
class Derivation:
    """A linear template that was compared.

    trim: what has to be done to contents before they are sent. said: by the names of its cases, all that the template
    says of the core and of the rest of the battery. accepted: reasons against it that somebody has accepted.
    """

    linear: Linear
    trim: TrimRules
    said: Mapping[str, tuple[Case, Outcome]]
    accepted: Sequence[Refusal] = ()

    def comparisons(self, form: FormPrompt) -> dict[str, Comparison]:
        """What *form* says of every case, by the case's name. Contents are trimmed first."""
        return {name: comparison(form, trimmed(case.conversation, self.trim), wanted)
                for name, (case, wanted) in self.said.items()}  # fmt: skip

    def core_said(self) -> list[tuple[Case, Outcome]]:
        """What the template says of the core."""
        return _core_of(self.said)

    def check(self, form: FormPrompt, accept: Collection[Code] = ()) -> list[Refusal]:
        """See that *form* says what the template says, over the core; what speaks against it and is accepted.

        Raises CannotDerive.
        """
        core_said = self.core_said()
        unrefused = first_difference(form, self.trim, [entry for entry in core_said if entry[1].text is None])
        accepted = [unrefused] if unrefused is not None and _is_accepted(unrefused, accept) else []
        difference = first_difference(form, self.trim, [entry for entry in core_said if entry[1].text is not None])
        if difference is not None:
            raise CannotDerive(difference)
        return accepted


def derive(
    renderer: Renderer,
    render: Render = Renderer.render,
    *,
    needs: Collection[Feature] = CARRIED,
    accept: Collection[Code] = (),
) -> Derivation:
    """The linear template that says what *renderer* says, over the whole core.

    needs: what its conversations may have. accept: codes of `ACCEPTABLE` that do not refuse. Raises CannotDerive, and
    what *render* raises.
    """
    accepted = [refusal for refusal in _objections(renderer, render, needs) if _is_accepted(refusal, accept)]
    linear = linear_of(render, renderer)
    cases = {case.name: case for case in (*core(), *CASES)}
    said = {name: (case, outcome(render, renderer, case.conversation)) for name, case in cases.items()}
    return Derivation(linear, _trim_rules(linear, _core_of(said)), said, tuple(accepted))


def core() -> Iterator[Case]:
    """The conversations on which a form has to agree: the battery's, and each without its system message."""
    named = {case.name: case for case in CASES}
    for case in (named[name] for name in CORE_CASES):
        yield case
        first, *rest = case.conversation.messages
        if first["role"] == "system":
            yield Case(
                f"{case.name}.without_system", case.features - {"system"}, replace(case.conversation, messages=rest)
            )


def _core_of(said: Mapping[str, tuple[Case, Outcome]]) -> list[tuple[Case, Outcome]]:
    return [said[case.name] for case in core()]


def trimmed(conversation: Conversation, trim: TrimRules) -> Conversation:
    """*conversation* with each content that is a text trimmed."""
    if trim.are_none:
        return conversation
    messages = [
        {**message, "content": trim.trimmed(message["role"], content)}
        if isinstance(content := message.get("content"), str)
        else message
        for message in conversation.messages
    ]
    return replace(conversation, messages=messages)


def comparison(form: FormPrompt, conversation: Conversation, wanted: Outcome) -> Comparison:
    """What *form* says of *conversation*, of which the template says *wanted*."""
    try:
        said = form(conversation)
    except NoPlace:
        return "exact" if wanted.text is None else "not carried"
    if wanted.text is None:
        return "not refused"
    return "exact" if said == wanted.text else "differs"


def first_difference(form: FormPrompt, trim: TrimRules, said: Sequence[tuple[Case, Outcome]]) -> Refusal | None:
    """The first case of which *form* does not say what the template says."""
    for case, wanted in said:
        try:
            prompt = form(trimmed(case.conversation, trim))
        except NoPlace as problem:
            if wanted.text is not None:
                return Refusal("T08", f"the form has no place for {problem}", case.name, str(wanted))
            continue
        if wanted.text is None:
            sentence = f"the template refuses what the form would render: {wanted.refusal}"
            return Refusal("T08", sentence, case.name, str(wanted), prompt)
        if prompt != wanted.text:
            return Refusal("T02", _changed(wanted.text, prompt), case.name, wanted.text, prompt)
    return None


def _changed(wanted: str, said: str) -> str:
    if "".join(wanted.split()) == "".join(said.split()):
        return "no rule per role says which whitespace around a message's text is left out"
    return "a message's text is changed on its way into the prompt"


def _trim_rules(linear: Linear, said: Sequence[tuple[Case, Outcome]]) -> TrimRules:
    """The rules with which *linear* says what is *said*. Raises CannotDerive with the nearest miss."""
    order = {case.name: number for number, (case, _) in enumerate(said)}
    nearest: tuple[tuple[int, int], Refusal] | None = None
    for rules in all_rules():
        difference = first_difference(lambda conversation: linear.prompt(_texts(conversation)), rules, said)
        if difference is None:
            return rules
        reached = order[difference.case or ""], parting(difference.template or "", difference.form or "")
        if nearest is None or reached > nearest[0]:
            nearest = reached, difference
    assert nearest is not None
    raise CannotDerive(nearest[1])


def _texts(conversation: Conversation) -> list[tuple[str, str]]:
    return [(message["role"], message["content"]) for message in conversation.messages]


def _is_accepted(refusal: Refusal, accept: Collection[Code]) -> bool:
    if refusal.code not in accept:
        raise CannotDerive(refusal)
    return True


def _objections(renderer: Renderer, render: Render, needs: Collection[Feature]) -> Iterator[Refusal]:
    """What speaks against it before any probing."""
    if wanted := sorted(set(needs) - CARRIED):
        yield Refusal("T06", f"conversations with {', '.join(wanted)} are wanted, and the form carries texts alone")
    try:
        names = names_in(renderer.templates[renderer.template_for(Conversation(()))], RULES[renderer.rules])
    except TemplateSyntaxError as problem:
        yield Refusal("T01", f"the template cannot be parsed: line {problem.lineno}: {problem.message}")
        return
    yield from _unsteady(renderer, render, names)
    for name in sorted(names.variables - renderer.variables.keys() - renderer.special_tokens.keys()):
        if (seen := _dependence(renderer, render, name)) is not None:
            yield seen


def _unsteady(renderer: Renderer, render: Render, names: TemplateNames) -> Iterator[Refusal]:
    if names.uses_chance:
        yield Refusal("T07", "the template uses Jinja's `random` filter, so its prompt depends on chance")
    if renderer.clock is None and names.time_formats != ():
        earlier, later = (replace(renderer, clock=time) for time in OTHER_TIMES)
        sentence = "the prompt depends on the clock; freeze it at the time the model was trained with"
        yield from _differences("T07", sentence, earlier, later, render)


def _dependence(renderer: Renderer, render: Render, name: str) -> Refusal | None:
    """That a prompt changes with the variable *name*; two prompts say more than a prompt and an error."""
    errors = None
    for value in CANDIDATES:
        other = replace(renderer, variables={**renderer.variables, name: value})
        sentence = f"the prompt depends on the variable `{name}`, which is not pinned: unset, and {name}={value!r}"
        for case in core():
            left, right = (outcome(render, each, case.conversation) for each in (renderer, other))
            if left == right:
                continue
            seen = Refusal("T09", sentence, case.name, str(left), str(right))
            if right.text is not None:
                return seen
            errors = errors or seen
            break
    return errors


def _differences(code: Code, sentence: str, one: Renderer, other: Renderer, render: Render) -> Iterator[Refusal]:
    """The first case of the core in which the two say different things, if there is one."""
    for case in core():
        left, right = (outcome(render, renderer, case.conversation) for renderer in (one, other))
        if left != right:
            yield Refusal(code, sentence, case.name, str(left), str(right))
            return
