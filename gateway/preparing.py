"""A request made ready for its engine: what can be done before a lease, and what depends on the run that was leased."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from backends.adapter import Given
from backends.dialect import CHAT
from backends.lease import Lease
from backends.prompting import Prompting
from backends.translation import Translated, Untranslatable
from chat_templates.prompts import Prompt
from gateway.contracted import (
    ContractedChat,
    allowed_modes,
    can_refuse,
    contracted_chat,
    unproven,
    ways,
    with_contract_defaults,
)
from gateway.enforcement import enforce
from gateway.envelope import Envelope
from gateway.errors import BadRequest, ParityUnproven
from gateway.normalisation import normalise_request
from gateway.prompts import Prompts
from gateway.routing import Route

UNPROVEN = "unproven"
"""The mode of a prompt that was served as a warning, not as a proven one."""

_log = logging.getLogger("unigate.gateway")


@dataclass(frozen=True, slots=True)
class Prepared:
    """A request to *endpoint* as the engine of *route* is to get it; *ignored* parameters were left out."""

    route: Route
    endpoint: str
    asked: dict[str, Any]
    ignored: Sequence[str]
    chat: ContractedChat | None = None
    """A chat whose prompt is a contract's."""


class Preparing:
    """Prepares requests; *prompts* makes the prompts of those whose model has a contract."""

    def __init__(self, prompts: Prompts) -> None:
        self._prompts = prompts
        self._warned: set[tuple[str, Sequence[str]]] = set()

    async def prepared(self, envelope: Envelope, route: Route, endpoint: str) -> Prepared:
        """All that needs no engine. Raises GatewayError."""
        body = enforce(envelope, route)
        chat = None
        if (prompting := route.backend.prompting) is not None:
            body = with_contract_defaults(body, prompting.contract, route.adapter.dialect, endpoint)
            if endpoint == CHAT:
                chat = contracted_chat(
                    # what the operator puts into every request is not the client's to answer for
                    {name: value for name, value in body.items() if name not in route.served.fields},
                    prompting.contract,
                    await self._prompts.control_tokens(prompting),
                )
                body = {**chat.body, **route.served.fields}
        asked = normalise_request(body, route.adapter.dialect, endpoint, ignores=route.ignores_unsupported)
        made = Prepared(route, endpoint, asked.body, asked.ignored, chat)
        if chat is None:
            _rendered_by_engine(made)  # what cannot be said, is refused before anything is loaded for it
        return made

    async def given(self, prepared: Prepared, lease: Lease) -> tuple[Given, str | None]:
        """The request as the leased run gets it, and who made its prompt; None without a contract.

        Anew for each attempt, because a translation reads one answer. Raises GatewayError.
        """
        route, chat, prompting = prepared.route, prepared.chat, prepared.route.backend.prompting
        if chat is None or prompting is None:
            return _rendered_by_engine(prepared), None
        features = chat.features
        proven = ways(prompting, lease.parity, features, has_variables=bool(chat.variables))
        unsure = [mode for mode in allowed_modes(prompting) if mode not in proven] if prompting.policy == "warn" else []
        prompt: Prompt | None = None
        for mode in (*proven, *unsure):
            if mode == "native":
                given: Given | None = await self._rendered_natively(prepared, prompting, chat)
            else:
                prompt = prompt or await self._prompts.prompt(prompting, chat)
                given = await asyncio.to_thread(_finished, prepared, prompt)
            if given is not None and given.mode == mode:
                if mode in proven:
                    return given, mode
                self._warn(route, unproven(prompting, lease.parity, features))
                return given, UNPROVEN
        if proven:
            message = f"{lease.engine} takes no finished prompt for what this request asks, and no other way is proven"
        else:
            missing = ", ".join(unproven(prompting, lease.parity, features))
            message = (
                f"it is not proven that {lease.engine} is given the prompt of this model's contract for: {missing}"
            )
        raise ParityUnproven(f"{message} (`unigate template verify` says why)", param="messages")

    async def _rendered_natively(self, prepared: Prepared, prompting: Prompting, chat: ContractedChat) -> Given:
        if can_refuse(prompting.contract):
            # Engines lose refusals: llama.cpp merges a system message that the template has no place for.
            await self._prompts.render(prompting, chat)
        return _rendered_by_engine(prepared)

    def _warn(self, route: Route, features: Sequence[str]) -> None:
        """Say once of each model and kind of request what is not proven."""
        if (route.model, features) not in self._warned:
            self._warned.add((route.model, features))
            shown = ", ".join(features)
            _log.warning("%s: its contract's prompt is not proven on %s: %s", route.model, route.backend.engine, shown)


def as_leased(route: Route, lease: Lease) -> Route:
    """*route* under the contract that the leased run was started with."""
    if lease.prompting == route.backend.prompting:
        return route
    return replace(route, backend=replace(route.backend, prompting=lease.prompting))


def _rendered_by_engine(prepared: Prepared) -> Given:
    """The request to an engine that renders for itself. Raises BadRequest."""
    route = prepared.route
    try:
        translated: Translated | None = route.adapter.translate(route.backend, prepared.endpoint, prepared.asked)
    except Untranslatable as problem:
        raise BadRequest(str(problem), param=problem.param, code=problem.code) from problem
    return Given("native", None if translated is not None else prepared.asked, translated)


def _finished(prepared: Prepared, prompt: Prompt) -> Given | None:
    """The request with a finished prompt, where the engine takes one for it. Raises BadRequest. Blocks."""
    route = prepared.route
    try:
        return route.adapter.given(route.backend, prepared.endpoint, prepared.asked, prompt)
    except Untranslatable as problem:
        raise BadRequest(str(problem), param=problem.param, code=problem.code) from problem
