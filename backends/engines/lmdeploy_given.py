"""How LMDeploy is given a finished prompt. Sources name files of LMDeploy 0.18.0."""

from __future__ import annotations

from backends.adapter import Body, Given
from backends.dialect import CHAT
from backends.settings import BackendSettings
from chat_templates.prompts import Prompt

THINKING = "enable_thinking"


def given(backend: BackendSettings, endpoint: str, body: Body, prompt: Prompt) -> Given | None:
    """Ids in the place of the messages (serve/openai/chat_completions/serving.py); its parsers work as ever.

    Whether there is thinking to be parsed it is told by a variable, for it does not look at the prompt
    (serve/parsers/reasoning_parser).
    """
    if endpoint != CHAT or prompt.ids is None:
        return None
    dropped = ("messages", "add_generation_prompt", "continue_final_message", "chat_template_kwargs")
    asked = {name: value for name, value in body.items() if name not in dropped}
    variables = dict(backend.prompting.contract.pinned) if backend.prompting is not None else {}
    variables |= body.get("chat_template_kwargs") or {}
    if isinstance(variables.get(THINKING), bool):
        asked["chat_template_kwargs"] = {THINKING: variables[THINKING]}
    return Given("tokens", {**asked, "messages": [], "input_ids": list(prompt.ids)})
