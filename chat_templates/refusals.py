"""Why a template cannot be had in an engine's own form: a code that stays, a sentence, and the two renders.

| code | what it says |
|---|---|
| T01 | the template raises on a plain user turn |
| T02 | a message's text is in the prompt not once, or not as it is |
| T03 | what stands around a message depends on which turn it is |
| T04 | later messages change the prompt of earlier ones |
| T05 | the head of the answer to come is not the head of a past answer, or depends on the past |
| T06 | tools, documents or parts are wanted, which the form does not carry |
| T07 | the prompt depends on the clock or on chance |
| T08 | the template refuses conversations that the form would render |
| T09 | the prompt depends on a variable that is not pinned |
| T10 | LMDeploy's fields cannot leave out the system block |
| T11 | a special token of the template is not in the vocabulary |
| T12 | LMDeploy stops at single tokens only |
| T13 | the engine ignores templates for this model |
| T14 | the sources of a template disagree |
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from chat_templates.visible import around, parting

Code = Literal["T01", "T02", "T03", "T04", "T05", "T06", "T07", "T08", "T09", "T10", "T11", "T12", "T13", "T14"]

ACCEPTABLE: frozenset[Code] = frozenset({"T08", "T09"})
"""What a person may accept: the conversations that are rendered nevertheless stay the same."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """One reason. case: the conversation that shows it. template, form: what each of them says of it.

    Where a reason is seen without a form, the two are two renders of the template's that should agree and do not.
    """

    code: Code
    sentence: str
    case: str | None = None
    template: str | None = None
    form: str | None = None

    def __str__(self) -> str:
        return f"{self.code}: {self.sentence}"

    def pair(self) -> Sequence[tuple[str, str]]:
        """Both renders about the place where they part, with visible whitespace, each with what it is called."""
        if self.template is None:
            return ()
        if self.form is None:
            return (("the template says", around(self.template, 0)),)
        index = parting(self.template, self.form)
        return (("the template", around(self.template, index)), ("the other", around(self.form, index)))


class CannotDerive(Exception):
    """The template cannot be had in this form."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(str(refusal))
        self.refusal = refusal


class Unwritable(Exception):
    """The form cannot be written, for a reason that is not the template's; the message says what, and what to do."""
