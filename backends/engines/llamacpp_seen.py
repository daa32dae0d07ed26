"""What llama-server shows of its prompts. Source: tools/server/README.md of llama.cpp, build 11549."""

from __future__ import annotations

from backends.adapter import Call
from backends.prompting import CallRefused, SeePlan, TemplatePlan, VersionPlan
from backends.seen import body_of
from backends.settings import BackendSettings
from chat_templates.conversation import Conversation
from chat_templates.prompts import Seen


def see(backend: BackendSettings, conversation: Conversation) -> SeePlan:
    """The ids of what /apply-template renders, tokenised as the chat endpoint does: with BOS where the vocabulary adds
    one, and special tokens parsed. The text has lost that BOS (common/chat.cpp), and so is no witness."""
    rendered = yield Call("POST", "/apply-template", body_of(backend, conversation))
    text = {"content": rendered["prompt"], "add_special": True, "parse_special": True}
    answer = yield Call("POST", "/tokenize", text)
    return Seen(ids=tuple(answer["tokens"]))


def see_template() -> TemplatePlan:
    """``chat_template`` of ``GET /props``."""
    answer = yield Call("GET", "/props")
    return str(answer["chat_template"])


def see_version() -> VersionPlan:
    """``build_info`` of ``GET /props``. Raises CallRefused for a build that does not know its own, as the wheel's."""
    answer = yield Call("GET", "/props")
    build = str(answer["build_info"])
    if "unknown" in build:
        raise CallRefused(200, f"the build is {build}")
    return build
