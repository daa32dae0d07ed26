"""What Ollama shows of its prompts. Sources name files of https://github.com/ollama/ollama at v0.33.0-rc2."""

from __future__ import annotations

from backends.adapter import Call
from backends.dialect import CHAT
from backends.engines.ollama_native import translate
from backends.prompting import SeePlan, VersionPlan
from backends.seen import body_of
from backends.settings import BackendSettings
from chat_templates.conversation import Conversation
from chat_templates.prompts import Seen


def see(backend: BackendSettings, conversation: Conversation) -> SeePlan:
    """The text, by ``_debug_render_only`` (server/routes.go ChatHandler). No route tokenises.

    The text lacks the BOS that the tokenizer puts before it (llama.cpp, common/chat.cpp); /api/show tells whether it
    does.
    """
    translated = translate(backend, CHAT, body_of(backend, conversation))
    rendered = yield Call("POST", translated.target, {**translated.body, "stream": False, "_debug_render_only": True})
    text = str(rendered["_debug_info"]["rendered_template"])
    shown = yield Call("POST", "/api/show", {"model": backend.model_name})
    adds_bos = (shown.get("model_info") or {}).get("tokenizer.ggml.add_bos_token") is True
    bos = backend.prompting.contract.tokenizer.special_tokens.get("bos_token", "") if backend.prompting else ""
    return Seen(text=bos + text if adds_bos and not text.startswith(bos) else text)


def see_version() -> VersionPlan:
    """``GET /api/version``."""
    answer = yield Call("GET", "/api/version")
    return str(answer["version"])
