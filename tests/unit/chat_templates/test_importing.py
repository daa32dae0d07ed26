"""What a contract is made to say: where answers end, who writes the BOS, what samples, what time it is."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from chat_templates.agreement import agree
from chat_templates.importing import NEUTRAL, Imported, ImportRefused, Wishes, contract_of
from chat_templates.rendering import DEFAULT, Renderer
from chat_templates.sources.found import Found
from chat_templates.tokenizing import Tokenizer
from tests.oracle.folders import CONFIGURATIONS, model_folder
from tests.unit.chat_templates.test_derivation import CHATML

TODAY = datetime(2024, 7, 26, 23, 59)
THINKING = CHATML + "{% if enable_thinking %}<think>{% endif %}"
DATED = "{{ strftime_now('%Y') }}" + CHATML


def imported(template: str, *, found: dict[str, Any] | None = None, **wishes: Any) -> Imported:
    """What becomes of *template*."""
    source = Found("jinja", {DEFAULT: template}, Path("t.jinja"), **(found or {}))
    voice = agree([source], Renderer.render, {}, None, wishes.get("variables")).voices[0]
    return contract_of(voice, Wishes("tune", **wishes), Renderer.render, TODAY)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model's folder whose vocabulary has ChatML's markers."""
    return model_folder(tmp_path / "model", CONFIGURATIONS["tokens without a name"])


def test_answers_end_where_anything_says_so(folder: Path) -> None:
    """The weights' ends, the EOS, and the template's marker behind an answer; what is no token stays a text."""
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 7]}))
    stops = {"stop_strings": ("User:", "<|im_end|>")}
    stop = imported(CHATML, found=stops, tokenizer=folder, generation=folder).contract.stop
    (marker,) = Tokenizer.read(folder).encode("<|im_end|>")
    assert (stop.token_ids, stop.strings) == (tuple(sorted({2, 7, marker})), ("User:",))


def test_the_model_samples_as_it_says_and_else_plainly(folder: Path) -> None:
    """What the generation config says is pinned, and what it does not say too: each engine has a default of its own."""
    (folder / "generation_config.json").write_text(json.dumps({"temperature": 0.6, "top_k": 20, "do_sample": True}))
    assert imported(CHATML, generation=folder).contract.sampling == {**NEUTRAL, "temperature": 0.6, "top_k": 20}


@pytest.mark.parametrize(
    ("template", "is_given_bos", "bos"),
    [("{{ bos_token }}" + CHATML, False, "from_template"), (CHATML, False, "none"), (CHATML, True, "tokenizer")],
)
def test_one_writes_the_bos(folder: Path, template: str, is_given_bos: bool, bos: str) -> None:
    """The template where it does; the tokenizer only where the source's engine has it do so; else nobody."""
    made = imported(template, found={"is_given_bos": is_given_bos}, tokenizer=folder)
    assert made.contract.tokenizer.bos == bos


def test_variables_are_pinned_free_or_never_set() -> None:
    """What nobody decides stays unset, and a person hears of it."""
    made = imported(THINKING)
    assert (made.contract.pinned, made.contract.free) == ({}, ())
    assert any(note.startswith("never set, as in a plain call: enable_thinking") for note in made.notes)
    assert imported(THINKING, variables={"enable_thinking": True}).contract.pinned == {"enable_thinking": True}
    assert imported(THINKING, free=("enable_thinking",)).contract.free == ("enable_thinking",)


def test_the_clock_is_frozen_to_a_day() -> None:
    """A template that tells the time is told the day of its import, unless it is to run; the others have no clock."""
    assert imported(CHATML).contract.clock is None
    assert imported(DATED).contract.clock == datetime(2024, 7, 26)
    assert imported(DATED, clock="live").contract.is_time_dependent


@pytest.mark.parametrize(
    ("template", "wishes", "complaint"),
    [
        ("{{ raise_exception('never') }}", {}, "t.jinja: T01: the template refuses a plain question: never"),
        (THINKING, {"variables": {"thinking": 1}}, "--var thinking: the template reads no such variable; it reads en"),
        (THINKING, {"free": ("x",)}, "--free x: the template reads no such variable"),
        (THINKING, {"variables": {"enable_thinking": 1}, "free": ("enable_thinking",)}, "it has to stay 1"),
        (CHATML, {"tokenizer": Path("nowhere")}, "nowhere/tokenizer.json: No such file"),
    ],
)  # fmt: skip
def test_what_makes_no_contract_is_told(template: str, wishes: dict[str, Any], complaint: str) -> None:
    """A wish that the template cannot have, and a template that answers nothing, are refused with the remedy."""
    with pytest.raises(ImportRefused) as problem:
        imported(template, **wishes)
    assert complaint in str(problem.value)
