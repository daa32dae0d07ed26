"""Ollama by its recordings: what it rendered of SmolLM2's weights, beside what their own template says."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from chat_templates.conversation import Conversation
from chat_templates.model_folder import read_special_tokens
from chat_templates.rendering import DEFAULT, Renderer
from tests.engines.environment import ROOT
from tests.parity.weights import cut_folder

RECORDINGS = ROOT / "tests" / "recordings" / "ollama_native.jsonl"

MODELS = {
    "smol-plain": "imported from its GGUF file",
    "smol-hf": "imported from its Hugging Face folder",
    "smol-hf-rope": "imported from its folder, `rope_theta` repaired",
    "smol-hf-full": "imported from its folder, `rope_theta` and tokens repaired",
}
"""The models of the recordings that were made of SmolLM2's weights, without a template or a system message added."""
GO_TEMPLATES_OFF = "209-go-template-0"


@dataclass(frozen=True, slots=True)
class Recorded:
    """One recorded prompt. name: of the recording. is_exact: it is the template's own."""

    name: str
    made: str
    is_exact: bool


def recorded() -> Iterator[Recorded]:
    """Each prompt of a conversation that Ollama showed (``_debug_render_only``)."""
    folder = cut_folder()
    text = (folder / "chat_template.jinja").read_text("utf-8")
    renderer = Renderer({DEFAULT: text}, special_tokens=read_special_tokens(folder))
    for line in RECORDINGS.read_text("utf-8").splitlines():
        exchange = json.loads(line)
        body, answer = exchange["request"].get("body"), exchange["response"].get("body")
        if _shows_a_prompt(body, answer) and body["model"] in MODELS:
            wanted = renderer.render(Conversation(body["messages"])).text
            made = MODELS[body["model"]]
            if exchange["name"] == GO_TEMPLATES_OFF:
                made += ", `OLLAMA_GO_TEMPLATE=0`"
            yield Recorded(exchange["name"], made, answer["_debug_info"]["rendered_template"] == wanted)


def _shows_a_prompt(body: Any, answer: Any) -> bool:
    return isinstance(body, dict) and isinstance(answer, dict) and "messages" in body and "_debug_info" in answer


def rows() -> list[str]:
    """The table, as Markdown."""
    lines = [f"| {one.name} | {one.made} | {'exact' if one.is_exact else 'mismatch caught'} |" for one in recorded()]
    return ["| recording | model | prompt |", "|---|---|---|", *lines]
