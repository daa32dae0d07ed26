"""Whether several sources say the same of a prompt: each is rendered over the battery, and the renders are compared.

A fine-tune's folder often says two things. LLaMA-Factory trains with slots of its own and leaves the base's Jinja
beside the weights; a converter reads another file than the trainer wrote. Which of them the model was trained with, no
file says: where they differ a person has to.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from chat_templates.battery import CASES, FEATURES, Case
from chat_templates.conversation import Json
from chat_templates.derivation import CORE_CASES
from chat_templates.probing import Outcome, Render, outcome
from chat_templates.rendering import Renderer
from chat_templates.rules import RULES, TRANSFORMERS_5_23
from chat_templates.sources.found import Found
from chat_templates.template_names import names_in
from chat_templates.visible import around, parting

RICHEST = ("jinja", "tokenizer_config", "gguf", "modelfile", "lmdeploy")
"""Whose word is taken where all agree: the one that says most. Others come after."""

FLAG_VALUES: tuple[Json, ...] = (False, True)
"""What a variable is set to, to see whether a template says with it what another says without."""

NOON = datetime(2024, 7, 26, 12)
"""The time at which all are asked."""


@dataclass(frozen=True, slots=True)
class Voice:
    """One source, ready to be asked. given: variables that were set to make it say what the others say."""

    found: Found
    given: Mapping[str, Json]
    said: Mapping[str, Outcome]
    """By the name of the case, for those on which it has a say."""
    bos: str = ""


@dataclass(frozen=True, slots=True)
class Disagreement:
    """Two sources that differ on a case; how many others they differ on, of how many both speak of."""

    one: Voice
    other: Voice
    case: str
    differing: int
    compared: int

    def lines(self) -> list[str]:
        """For a person: both renders about the place where they part, whitespace made visible."""
        one, other = self.one.said[self.case], self.other.said[self.case]
        head = (
            f"{self.one.found.name} and {self.other.found.name} differ on {self.differing} of {self.compared}"
            f" conversations, such as {self.case}:"
        )
        index = parting(one.text or "", other.text or "")
        width = max(len(self.one.found.name), len(self.other.found.name))
        shown = [head]
        for voice, said in ((self.one, one), (self.other, other)):
            text = around(said.text, index) if said.text is not None else f"{said}"
            indented = text.replace("\n", "\n" + " " * (width + 4))
            # each line by itself: whoever prints them may put something before each
            shown += f"  {voice.found.name:{width}}  {indented}".split("\n")
        return shown


@dataclass(frozen=True, slots=True)
class Agreement:
    """What was found. winner: None where the sources disagree and nobody named one."""

    voices: Sequence[Voice]
    winner: Voice | None
    disagreements: Sequence[Disagreement]


def agree(
    sources: Sequence[Found],
    render: Render,
    special_tokens: Mapping[str, str],
    chosen: str | None = None,
    variables: Mapping[str, Json] | None = None,
) -> Agreement:
    """Compare *sources*, each with what it comes with over *special_tokens*.

    chosen: the name of the one whose word counts. variables: what a person has set, for those that read them. A source
    that reads a variable, and says with it what the winner or the trainer's own source says, is taken as having it so.
    """
    voices = [_voice(found, render, special_tokens, variables or {}) for found in sources]
    voices = _with_flags(voices, render, special_tokens, variables or {}, chosen)
    disagreements = list(_disagreements(voices))
    ranked = sorted(voices, key=lambda voice: _rank(voice.found.name))
    if chosen is not None:
        winner = next(voice for voice in voices if voice.found.name == chosen)
        others = [one for one in disagreements if winner in (one.one, one.other)]
        return Agreement(voices, winner, others)
    return Agreement(voices, None if disagreements else ranked[0], disagreements)


def _rank(name: str) -> int:
    plain = name.partition("-")[0]
    return RICHEST.index(plain) if plain in RICHEST else len(RICHEST)


def renderer_of(found: Found, special_tokens: Mapping[str, str], variables: Mapping[str, Json]) -> Renderer:
    """What renders *found*, with those of *variables* that it reads and does not fix itself."""
    read = reads(found)
    given = {name: value for name, value in variables.items() if name in read}
    return Renderer(
        found.templates,
        variables={**given, **found.pinned},
        special_tokens={**special_tokens, **found.special_tokens},
        clock=NOON,
    )


def reads(found: Found) -> frozenset[str]:
    """The variables that any of its templates reads."""
    every = [names_in(text, RULES[TRANSFORMERS_5_23.name]).variables for text in found.templates.values()]
    return frozenset(itertools.chain.from_iterable(every))


def _voice(found: Found, render: Render, special_tokens: Mapping[str, str], variables: Mapping[str, Json]) -> Voice:
    renderer = renderer_of(found, special_tokens, variables)
    said = {case.name: outcome(render, renderer, case.conversation) for case in _cases_of(found)}
    bos = renderer.special_tokens.get("bos_token", "")
    return Voice(found, {name: value for name, value in variables.items() if name in reads(found)}, said, bos)


def _cases_of(found: Found) -> Sequence[Case]:
    """Those on which it has a say: all, or the core where it was not written for more."""
    if _says_all(found):
        return CASES
    return [case for case in CASES if case.name in CORE_CASES and case.features <= found.speaks_of]


def _says_all(found: Found) -> bool:
    return found.speaks_of >= frozenset(FEATURES)


def _with_flags(
    voices: Sequence[Voice],
    render: Render,
    special_tokens: Mapping[str, str],
    variables: Mapping[str, Json],
    chosen: str | None,
) -> list[Voice]:
    """*voices*, those that differ from what was trained asked once more with each variable that nobody has set."""
    trained = next((voice for voice in voices if voice.found.name == chosen), None)
    if trained is None:
        # slots of a trainer, and what is derived for an engine, read no variables: they are the ones that stand fast
        trained = next((voice for voice in voices if not reads(voice.found)), None)
    if trained is None:
        return list(voices)
    return [
        voice if voice is trained else _flagged(voice, trained, render, special_tokens, variables) for voice in voices
    ]


def _flagged(
    voice: Voice,
    trained: Voice,
    render: Render,
    special_tokens: Mapping[str, str],
    variables: Mapping[str, Json],
) -> Voice:
    if not _differing(voice, trained):
        return voice
    for name in sorted(reads(voice.found) - variables.keys() - voice.found.pinned.keys()):
        for value in FLAG_VALUES:
            asked = _voice(voice.found, render, special_tokens, {**variables, name: value})
            if not _differing(asked, trained):
                return asked
    return voice


def _disagreements(voices: Sequence[Voice]) -> Iterator[Disagreement]:
    for one, other in itertools.combinations(voices, 2):
        differing = _differing(one, other)
        if differing:
            yield Disagreement(one, other, differing[0], len(differing), len(one.said.keys() & other.said.keys()))


def _differing(one: Voice, other: Voice) -> list[str]:
    """The cases on which both speak and differ.

    What both refuse, in whatever words, is no difference; and where a source that was not written for all refuses, it
    has no say.
    """
    return [name for name in one.said if name in other.said and not _alike(one, other, name)]


def _alike(one: Voice, other: Voice, case: str) -> bool:
    said = [voice.said[case].text for voice in (one, other)]
    if said[0] == said[1]:
        return True
    if said[0] is not None and said[1] is not None and (one.found.is_given_bos or other.found.is_given_bos):
        # one of the two engines puts it there by itself
        return said[0].removeprefix(one.bos) == said[1].removeprefix(other.bos)
    return any(voice.said[case].text is None and not _says_all(voice.found) for voice in (one, other))
