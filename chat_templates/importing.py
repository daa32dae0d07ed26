"""Making a contract of what a fine-tune left behind: the template that won, its tokenizer, and where answers end."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from chat_templates.agreement import Voice, reads
from chat_templates.battery import CASES
from chat_templates.contract import LIVE, SAMPLING, Bos, Contract, Stop, TokenizerFacts
from chat_templates.conversation import Json
from chat_templates.model_folder import ModelFolderUnreadable, read_config
from chat_templates.probing import Render, closings_of, outcome
from chat_templates.rendering import Renderer
from chat_templates.rules import RULES, TRANSFORMERS_5_23
from chat_templates.template_names import names_in
from chat_templates.tokenizing import Tokenizer

GENERATION_CONFIG = "generation_config.json"

NEUTRAL: Mapping[str, float | int] = {
    "temperature": 1.0,
    "top_p": 1.0,
    "top_k": 0,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
}
"""Sampling where nothing is said of it: from the model's own probabilities. Each engine has defaults of its own
otherwise (llama.cpp: temperature 0.8, top_k 40, top_p 0.95, min_p 0.05), and so other answers to equal prompts."""

Clock = datetime | Literal["live"]


class ImportRefused(Exception):
    """No contract can be made; each line of the message is one problem, with what to do."""


@dataclass(frozen=True, slots=True)
class Wishes:
    """What a person says of the contract. variables: pinned. free: left to requests. clock: None where nobody has said.

    tokenizer: a folder with it. generation: a folder with a ``generation_config.json``; None without.
    """

    name: str
    variables: Mapping[str, Json] = field(default_factory=dict)
    free: Collection[str] = ()
    clock: Clock | None = None
    tokenizer: Path | None = None
    generation: Path | None = None


@dataclass(frozen=True, slots=True)
class Imported:
    """A contract, and what a person has to know of it, one sentence each."""

    contract: Contract
    notes: Sequence[str]


def contract_of(voice: Voice, wishes: Wishes, render: Render, today: datetime) -> Imported:
    """The contract that *voice* makes under *wishes*. Blocks: reads the tokenizer. Raises ImportRefused."""
    try:
        tokenizer = None if wishes.tokenizer is None else Tokenizer.read(wishes.tokenizer)
        generation = {} if wishes.generation is None else read_config(wishes.generation / GENERATION_CONFIG)
    except ModelFolderUnreadable as problem:
        raise ImportRefused(str(problem)) from problem
    found = voice.found
    notes = list(found.notes)
    pinned = {**wishes.variables, **voice.given, **found.pinned}
    _check_variables(voice, wishes, pinned)
    clock = _clock(voice, wishes, today, notes)
    special_tokens = {**(tokenizer.special_tokens if tokenizer is not None else {}), **found.special_tokens}
    frozen = clock if isinstance(clock, datetime) else None
    renderer = Renderer(found.templates, variables=pinned, special_tokens=special_tokens, clock=frozen)
    text = outcome(render, renderer, CASES[0].conversation)
    if text.text is None:
        raise ImportRefused(f"{found.origin}: T01: the template refuses a plain question: {text.refusal}")
    facts = TokenizerFacts(
        tokenizer.sha256 if tokenizer is not None else "",
        _bos(text.text, special_tokens, tokenizer, is_given=found.is_given_bos),
        special_tokens,
    )
    stop = _stop(voice, renderer, render, tokenizer, generation, special_tokens)
    if not stop.token_ids and not stop.strings:
        notes.append("nothing says where answers end; engines will end them where the weights do")
    if tokenizer is None:
        notes.append("no tokenizer was found: prompts can be compared as texts only; name its folder with --tokenizer")
    unset = sorted(reads(found) - pinned.keys() - set(wishes.free))
    if unset:
        notes.append(
            f"never set, as in a plain call: {', '.join(unset)} (--var pins one, --free leaves it to requests)"
        )
    for name, value in voice.given.items():
        if name not in wishes.variables:
            notes.append(f"{name} is pinned to {json.dumps(value)}: only so it is what the model was trained with")
    contract = Contract(
        name=wishes.name,
        templates=found.templates,
        source=found.name,
        jinja2=version("jinja2"),
        pinned=pinned,
        free=tuple(wishes.free),
        tokenizer=facts,
        stop=stop,
        sampling={**NEUTRAL, **_sampling(generation)},
        clock=clock,
    )
    return Imported(contract, notes)


def _check_variables(voice: Voice, wishes: Wishes, pinned: Mapping[str, Json]) -> None:
    known = reads(voice.found)
    problems = [
        f"--{option} {name}: the template reads no such variable; it reads {', '.join(sorted(known)) or 'none'}"
        for option, names in (("var", wishes.variables), ("free", wishes.free))
        for name in names
        if name not in known and name not in voice.found.pinned
    ]
    problems += [
        f"--free {name}: it has to stay {json.dumps(pinned[name])}, as the model was trained"
        for name in wishes.free
        if name in pinned
    ]
    if problems:
        raise ImportRefused("\n".join(problems))


def _clock(voice: Voice, wishes: Wishes, today: datetime, notes: list[str]) -> Clock | None:
    """Frozen unless somebody wants it live: a prompt that changes over night cannot be proven for tomorrow."""
    formats = [names_in(text, RULES[TRANSFORMERS_5_23.name]).time_formats for text in voice.found.templates.values()]
    if all(one == () for one in formats):
        return None
    if wishes.clock == LIVE:
        notes.append("the prompt tells the time, so it is another one every day, and proven for the day of the proof")
        return LIVE
    if wishes.clock is not None:
        return wishes.clock
    day = datetime(today.year, today.month, today.day)
    notes.append(f"the template tells the date: it will be {day:%Y-%m-%d} for ever (--clock DATE, or --clock live)")
    return day


def _bos(text: str, special_tokens: Mapping[str, str], tokenizer: Tokenizer | None, *, is_given: bool) -> Bos:
    bos = special_tokens.get("bos_token", "")
    if bos and text.startswith(bos):
        return "from_template"
    return "tokenizer" if is_given and tokenizer is not None and tokenizer.adds_bos else "none"


def _stop(
    voice: Voice,
    renderer: Renderer,
    render: Render,
    tokenizer: Tokenizer | None,
    generation: Mapping[str, Any],
    special_tokens: Mapping[str, str],
) -> Stop:
    """Where answers end: what the weights say, the EOS, and the marker that the template puts behind an answer."""
    ids = set(_ids(generation.get("eos_token_id")))
    texts = [*voice.found.stop_strings, *_marker(closings_of(render, renderer)[1])]
    if (eos := special_tokens.get("eos_token")) is not None:
        texts.append(eos)
    strings = []
    for text in texts:
        one = tokenizer.encode(text) if tokenizer is not None else []
        if len(one) == 1:
            ids.add(one[0])
        elif text in voice.found.stop_strings or tokenizer is None:
            strings.append(text)
    return Stop(tuple(ids), tuple(strings))


def _marker(closing: str) -> Iterator[str]:
    """The first word behind an answer, where it is a marker and no text."""
    word = closing.split()[0] if closing.split() else ""
    if word.startswith(("<", "[")):
        yield word


def _ids(value: object) -> list[int]:
    given = value if isinstance(value, list) else [value]
    return [one for one in given if isinstance(one, int) and not isinstance(one, bool) and one >= 0]


def _sampling(generation: Mapping[str, Any]) -> dict[str, float | int]:
    return {
        name: generation[name]
        for name in SAMPLING
        if isinstance(generation.get(name), int | float) and not isinstance(generation[name], bool)
    }
