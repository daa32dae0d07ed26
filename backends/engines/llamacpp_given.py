"""How llama.cpp is given a finished prompt. Sources name files of llama.cpp, build 11549."""

from __future__ import annotations

from backends.adapter import Body, Given
from backends.completion_as_chat import CompletionAsChat, completion_body, is_thinking
from backends.dialect import CHAT
from backends.translation import Translated
from chat_templates.prompts import Prompt


def given(endpoint: str, body: Body, prompt: Prompt) -> Given | None:
    """Ids for /v1/completions, to which nothing is added (tools/server/server-common.cpp tokenize_input_prompts).

    Its chat endpoint takes messages only, so its parsers have no part in the answer: tools cannot be had so.
    """
    if endpoint != CHAT or prompt.ids is None:
        return None
    asked = completion_body(body, list(prompt.ids))
    if asked is None:
        return None
    for name in ("add_generation_prompt", "continue_final_message"):
        asked.pop(name, None)
    answer = CompletionAsChat(is_stream=bool(body.get("stream")), is_thinking=is_thinking(prompt.text))
    return Given("tokens", translated=Translated("/v1/completions", asked, answer))
