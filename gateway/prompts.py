"""Prompts as contracts have them, for requests: rendered in child processes, tokenised off the event loop."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path

from backends.prompting import Prompting
from backends.render_pool import RenderChildFailed, RenderPool, TemplateStopped
from chat_templates.battery import Case
from chat_templates.canonical import prompt_of
from chat_templates.comparison import Comparison, Context, compare
from chat_templates.conversation import ConversationInvalid
from chat_templates.model_folder import ModelFolderUnreadable
from chat_templates.prompts import Prompt, Seen
from chat_templates.rendering import Renderer, TemplateBroken, TemplateRefused
from chat_templates.tokenizing import TextUnencodable, Tokenizer
from gateway.contracted import ContractedChat
from gateway.errors import BadRequest, InternalError, Unavailable

KEPT_TOKENIZERS = 8
"""A vocabulary takes tens of megabytes; one more model is read again when it is asked for."""


class Prompts:
    """Makes prompts. *pool* renders them, and is its owner's to close."""

    def __init__(self, pool: RenderPool) -> None:
        self._pool = pool
        self._tokenizers: OrderedDict[tuple[Path, str], asyncio.Future[Tokenizer]] = OrderedDict()

    async def render(self, prompting: Prompting, chat: ContractedChat) -> str:
        """What the contract's template makes of *chat*, or why it makes nothing of it: raises GatewayError."""
        renderer = prompting.contract.renderer()
        if chat.variables:
            renderer = _with_variables(renderer, chat)
        try:
            return (await self._pool.render(renderer, chat.conversation)).text
        except TemplateRefused as problem:
            raise BadRequest(str(problem), param="messages", code="template_refused") from problem
        except TemplateBroken as problem:
            message = f"the chat template of this model fails on this conversation: {problem}"
            raise BadRequest(message, param="messages", code="template_refused") from problem
        except ConversationInvalid as problem:
            raise BadRequest(str(problem), param="messages", code="invalid_messages") from problem
        except TemplateStopped as problem:
            message = f"the chat template of this model was stopped: {problem}"
            raise InternalError(message, code="template_stopped", headers=[(b"x-should-retry", b"false")]) from problem
        except RenderChildFailed as problem:
            retry = [(b"retry-after", b"5")]
            raise Unavailable(str(problem), code="renderer_unavailable", headers=retry) from problem

    async def prompt(self, prompting: Prompting, chat: ContractedChat) -> Prompt:
        """The finished prompt of *chat*; without ids where the contract has no tokenizer. Raises GatewayError."""
        text = await self.render(prompting, chat)
        tokenizer = await self.tokenizer(prompting)
        try:
            return await asyncio.to_thread(prompt_of, prompting.contract, text, tokenizer)
        except TextUnencodable as problem:
            raise BadRequest(
                f"the prompt has no tokens: {problem}", param="messages", code="invalid_messages"
            ) from None

    async def compared(self, prompting: Prompting, chat: ContractedChat, seen: Seen) -> Comparison:
        """What an engine was *seen* to use for *chat*, beside what the contract says. Raises GatewayError."""
        prompt, tokenizer = await self.prompt(prompting, chat), await self.tokenizer(prompting)
        renderer = prompting.contract.renderer()
        if chat.variables:
            renderer = _with_variables(renderer, chat)
        context = Context(renderer, tokenizer, self._pool.from_threads())
        case = Case("request", chat.features, chat.conversation)
        return await asyncio.to_thread(compare, case, prompt, seen, context)

    async def control_tokens(self, prompting: Prompting) -> frozenset[str]:
        """The texts that are special tokens, where the contract has a rule for them. Raises GatewayError."""
        if prompting.contract.messages.control_tokens_in_text == "allow":
            return frozenset()
        named = frozenset(prompting.contract.tokenizer.special_tokens.values())
        tokenizer = await self.tokenizer(prompting)
        return named if tokenizer is None else named | tokenizer.control_tokens

    async def tokenizer(self, prompting: Prompting) -> Tokenizer | None:
        """The contract's tokenizer, read once; None where there is none at hand. Raises GatewayError."""
        folder = prompting.tokenizer
        if folder is None:
            return None
        key = (folder, prompting.contract.tokenizer.sha256)
        reading = self._tokenizers.get(key)
        if reading is None:
            reading = self._tokenizers[key] = asyncio.ensure_future(asyncio.to_thread(Tokenizer.read, folder))
            if len(self._tokenizers) > KEPT_TOKENIZERS:
                self._tokenizers.popitem(last=False)
        self._tokenizers.move_to_end(key)
        try:
            # several requests wait for one reading, and one that is cancelled leaves it to the others
            return await asyncio.shield(reading)
        except ModelFolderUnreadable as problem:
            self._tokenizers.pop(key, None)
            raise Unavailable(
                f"the tokenizer of this model's contract cannot be read: {problem}", code="tokenizer_unreadable"
            ) from problem


def _with_variables(renderer: Renderer, chat: ContractedChat) -> Renderer:
    try:
        return replace(renderer, variables={**renderer.variables, **chat.variables})
    except ConversationInvalid as problem:
        raise BadRequest(str(problem), param="chat_template_kwargs", code="invalid_type") from problem
