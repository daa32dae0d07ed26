"""Asking the fine-tune on each engine, by itself and under its contract.

How many answers are right, and how many prompts are not what LLaMA-Factory would have trained with.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from tests.engines.environment import say
from tests.parity_demo.dataset import Example
from tests.parity_demo.serving import MODEL, RAW, START_S, THROUGH, Served, served_by_unigate, served_raw
from tests.parity_demo.tuning import FineTune, TrainedPrompt

ANSWER_TOKENS = 16
EXAMPLES = 3


@dataclass(frozen=True, slots=True)
class Measured:
    """One engine, served in one way. right, differing: of *asked* prompts. examples: the first wrong answers."""

    engine: str
    way: str
    asked: int
    right: int
    differing: int
    examples: tuple[str, ...] = ()


def measure(
    folder: Path, tune: FineTune, contract: Path, examples: Sequence[Example], engines: Sequence[str]
) -> Iterator[Measured]:
    """Every engine of *engines*, one after the other, raw and through Unigate. Raises RuntimeError: one fails."""
    for engine in engines:
        for way in (RAW, THROUGH):
            say(f"{engine}, {way}")
            place = folder / f"{engine}-{way.split()[0]}"
            place.mkdir()
            serving = (
                served_raw(engine, tune, place) if way == RAW else served_by_unigate(engine, tune, contract, place)
            )
            with serving as served:
                measured = _asked(engine, way, served, examples, tune)
            # at once: whoever interrupts a run keeps what it has found
            say(f"{engine}, {way}: {measured.right} of {measured.asked} right, {measured.differing} other prompts")
            yield measured


def _asked(engine: str, way: str, served: Served, examples: Sequence[Example], tune: FineTune) -> Measured:
    right = differing = 0
    wrong = []
    with httpx.Client(base_url=served.url, timeout=START_S, trust_env=False) as client:
        for example in examples:
            body = {
                "model": MODEL,
                "messages": [{"role": "user", "content": example.sentence}],
                "temperature": 0,
                "max_tokens": ANSWER_TOKENS,
                **WITNESSES[engine].asks,
            }
            answer = client.post("/v1/chat/completions", json=body)
            if answer.status_code != 200:
                raise RuntimeError(f"{engine}, {way}: {answer.status_code} {answer.text}")
            said = answer.json()
            text = said["choices"][0]["message"]["content"]
            right += text == example.answer
            if text != example.answer:
                wrong.append(text)
            differing += not WITNESSES[engine].is_trained(said, served, tune.prompts[example.sentence])
    return Measured(engine, way, len(examples), right, differing, tuple(wrong[:EXAMPLES]))


# --- what the model was given


@dataclass(frozen=True, slots=True)
class Witness:
    """What shows an engine's prompts. *asks*: what a request says for it. *told*: what it is, for people.

    *is_trained* is asked after each answer, with its body, whether the model was given the prompt.
    """

    told: str
    is_trained: Callable[[Mapping[str, Any], Served, TrainedPrompt], bool]
    asks: Mapping[str, Any]


def _by_answer(said: Mapping[str, Any], served: Served, prompt: TrainedPrompt) -> bool:
    return bool(said["prompt_token_ids"] == prompt.ids)


def _by_slot(said: Mapping[str, Any], served: Served, prompt: TrainedPrompt) -> bool:
    (slot,) = served.engine.get("/slots").json()
    asked = {"content": prompt.text, "add_special": True, "parse_special": True}
    tokens = served.engine.post("/tokenize", json=asked).json()["tokens"]
    # what was generated stands behind the prompt
    is_begun_by_it = slot["prompt"].startswith(prompt.text) and tokens == prompt.ids
    return bool(is_begun_by_it and said["usage"]["prompt_tokens"] == len(prompt.ids))


def _by_engine(said: Mapping[str, Any], served: Served, prompt: TrainedPrompt) -> bool:
    lines = served.prompts.read_text(encoding="ascii").splitlines()
    return bool(json.loads(lines[-1]) == prompt.ids)


WITNESSES: Mapping[str, Witness] = {
    "vllm": Witness("the ids it returns with each answer (`return_token_ids`)", _by_answer, {"return_token_ids": True}),
    "llamacpp": Witness("the text in its slot (`/slots`), its ids of that text, and their number", _by_slot, {}),
    "lmdeploy": Witness("the ids its server hands to the engine", _by_engine, {}),
}
