"""How Ollama is given a finished prompt. Sources name files of https://github.com/ollama/ollama at v0.33.0-rc2."""

from __future__ import annotations

from backends.adapter import Body, Given
from backends.completion_as_chat import CompletionAsChat, completion_body, is_thinking
from backends.dialect import CHAT, COMPLETIONS
from backends.engines.ollama_native import translate
from backends.settings import BackendSettings
from backends.translation import Translated
from chat_templates.prompts import Prompt


def given(backend: BackendSettings, endpoint: str, body: Body, prompt: Prompt) -> Given | None:
    """Text, by /api/generate with ``raw``: it takes no ids, and has no parsers there (server/routes.go).

    The runner puts the BOS in front where the weights' tokenizer does so, and what the contract says of that is what
    the weights say: from a text that begins with it, it is taken off.
    """
    if endpoint != CHAT:
        return None
    asked = completion_body(body, without_bos(backend, prompt.text))
    if asked is None:
        return None
    for name in ("add_generation_prompt", "continue_final_message"):
        asked.pop(name, None)
    inner = translate(backend, COMPLETIONS, asked)
    answer = CompletionAsChat(
        is_stream=bool(body.get("stream")), is_thinking=is_thinking(prompt.text), inner=inner.answer
    )
    return Given("text", translated=Translated(inner.target, inner.body, answer))


def without_bos(backend: BackendSettings, text: str) -> str:
    """*text* as the runner has to be given it, so that there is one BOS in the prompt."""
    if backend.prompting is None:
        return text
    bos = backend.prompting.contract.tokenizer.special_tokens.get("bos_token", "")
    return text.removeprefix(bos) if bos else text
