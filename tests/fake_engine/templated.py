"""How a fake engine makes prompts: as vLLM does, with the template, tokenizer and stop ids it is started with."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from chat_templates.conversation import Conversation
from chat_templates.model_folder import TOKENIZER_FILE
from chat_templates.rendering import Renderer, TemplateBroken, TemplateRefused
from chat_templates.tokenizing import Tokenizer
from tests.fake_engine.answers import Generation
from tests.fake_engine.faults import PromptFaults


class PromptRefused(Exception):
    """There is no prompt for this request."""


@dataclass(frozen=True, slots=True)
class Templated:
    """The vLLM side of prompts: /tokenize, ``return_token_ids``, ``kv_transfer_params``, ``logit_bias``."""

    renderer: Renderer
    tokenizer: Tokenizer
    stop_ids: frozenset[int]
    takes_ids: bool
    tokenizes: str | None = None

    @classmethod
    def read(cls, template: Path, told: PromptFaults) -> Templated | None:
        """None where the weights have no tokenizer."""
        if told.weights is None or not (told.weights / TOKENIZER_FILE).is_file():
            return None
        tokenizer = Tokenizer.read(told.weights)
        renderer = Renderer({"default": template.read_text()}, special_tokens=tokenizer.special_tokens)
        said: Mapping[str, Any] = {}
        if told.generation is not None and not told.deaf_ends:
            said = json.loads((told.generation / "generation_config.json").read_text())
        ends = said.get("eos_token_id", [])
        stop_ids = frozenset(ends if isinstance(ends, list) else [ends])
        return cls(renderer, tokenizer, stop_ids, not told.takes_no_ids, told.tokenizes)

    def with_template(self, text: str) -> Templated:
        """The same with another template."""
        return replace(self, renderer=replace(self.renderer, templates={"default": text}))

    def ids(self, body: Mapping[str, Any]) -> list[int]:
        """Those of the prompt that the request *body* gets. Raises PromptRefused."""
        given = (body.get("kv_transfer_params") or {}).get("prompt_token_ids")
        if given is not None and self.takes_ids:
            return list(given)
        if "messages" not in body:
            return self._encoded(str(body.get("prompt", "")))
        conversation = Conversation(
            [_read(message) for message in body["messages"]],
            body.get("tools"),
            add_generation_prompt=body.get("add_generation_prompt", True),
            continue_final_message=body.get("continue_final_message", False),
        )
        try:
            return self._encoded(self.renderer.render(conversation).text)
        except (TemplateRefused, TemplateBroken) as problem:
            raise PromptRefused(str(problem)) from problem

    def _encoded(self, text: str) -> list[int]:
        """The ids of *text*, as this engine's tokenizer has them."""
        if self.tokenizes is None:
            return self.tokenizer.encode(text)
        special = "|".join(map(re.escape, sorted(self.tokenizer.control_tokens, key=len, reverse=True)))
        pieces = re.split(f"({special})", text)
        if self.tokenizes == "plain":  # each mark broken, so that it is no token
            pieces = [
                part
                for piece in pieces
                for part in ((piece[:1], piece[1:]) if re.fullmatch(special, piece) else (piece,))
            ]
        else:
            pieces = [part for piece in pieces for part in ([piece] if re.fullmatch(special, piece) else piece)]
        return [id_ for piece in pieces for id_ in self.tokenizer.encode(piece)]

    def after(self, ids: Sequence[int], wanted: Generation, body: Mapping[str, Any]) -> Generation:
        """What is *wanted*, after a prompt of *ids*; what ``logit_bias`` forces may end it at once, or is its text."""
        wanted = replace(wanted, prompt_tokens=len(ids))
        if body.get("return_token_ids"):
            wanted = replace(wanted, prompt_ids=tuple(ids))
        forced = [int(id_) for id_ in body.get("logit_bias") or {}]
        if any(id_ in self.stop_ids for id_ in forced):
            return replace(wanted, tokens=0, finish_reason="stop")
        return replace(wanted, said="".join(map(str, forced))) if forced else wanted


def _read(message: Mapping[str, Any]) -> dict[str, Any]:
    calls = message.get("tool_calls")
    if not calls:
        return dict(message)
    return {**message, "tool_calls": [{**call, "function": _function(call["function"])} for call in calls]}


def _function(function: Mapping[str, Any]) -> dict[str, Any]:
    arguments = function["arguments"]
    return {**function, "arguments": json.loads(arguments) if isinstance(arguments, str) else arguments}
