"""How vLLM is given a finished prompt. Sources name files of vLLM 0.32.0."""

from __future__ import annotations

from backends.adapter import Body, Given
from backends.dialect import CHAT
from chat_templates.prompts import Prompt


def given(endpoint: str, body: Body, prompt: Prompt) -> Given | None:
    """Ids beside the messages, which are not rendered then; its parsers of reasoning and tools work as ever.

    ``kv_transfer_params.prompt_token_ids`` is meant for the second of two servers that share the work; it needs no
    connector (renderers/online_renderer.py _reused_prompt_token_ids). Messages with images are rendered all the same.
    """
    if endpoint != CHAT or prompt.ids is None or _has_media(body):
        return None
    asked = {
        name: value for name, value in body.items() if name not in ("add_generation_prompt", "continue_final_message")
    }
    return Given("tokens", {**asked, "kv_transfer_params": {"prompt_token_ids": list(prompt.ids)}})


def _has_media(body: Body) -> bool:
    contents = [message.get("content") for message in body.get("messages") or ()]
    parts = [part for content in contents if isinstance(content, list) for part in content]
    return any(part.get("type") != "text" for part in parts)
