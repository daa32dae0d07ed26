"""What LMDeploy shows of its prompts. Sources name files of LMDeploy 0.18.0."""

from __future__ import annotations

from backends.adapter import Call
from backends.prompting import SeePlan
from backends.seen import CHAT, body_of
from backends.settings import BackendSettings
from chat_templates.conversation import Conversation
from chat_templates.prompts import Seen


def see(backend: BackendSettings, conversation: Conversation) -> SeePlan:
    """How many ids there are: nothing here shows those of a conversation (serve/openai/endpoints).

    A count can tell that two prompts differ, and not that they are the same.
    """
    answer = yield Call("POST", CHAT, {**body_of(backend, conversation), "max_tokens": 1, "temperature": 0})
    return Seen(count=int(answer["usage"]["prompt_tokens"]))
