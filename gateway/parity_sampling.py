"""The proof goes on in production: now and then a request is looked at whether its prompt was the contract's.

For engines whose answers show the ids they were given for (vLLM). The request is not slower for it: its answer is
passed on as ever, without what only we asked for, and compared afterwards.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from chat_templates.prompts import Seen
from gateway.contracted import ContractedChat
from gateway.errors import GatewayError
from gateway.normalisation import Appearance
from gateway.prompts import Prompts
from gateway.routing import Route

COMPARED_AT_ONCE = 4
"""More samples than this are not looked at: they would only show how slow comparing is."""

Count = Callable[[str, str], None]
"""Takes a model and how its sample came out: exact, mismatch, or failed, when it could not be compared."""

_log = logging.getLogger("unigate.gateway")


@dataclass(frozen=True, slots=True)
class Sample:
    """A request that is looked at: *fields* are put into it, and *appearance* shows its answer to us."""

    fields: Mapping[str, Any]
    appearance: Callable[[Appearance], Appearance]


class ParitySampling:
    """Chooses samples and compares them, the outcome told to *count*. *chance* gives numbers from 0 to below 1."""

    def __init__(self, prompts: Prompts, count: Count, chance: Callable[[], float] = random.random) -> None:
        self._prompts = prompts
        self._count = count
        self._chance = chance
        self._comparing: set[asyncio.Task[None]] = set()

    def sample(
        self, route: Route, chat: ContractedChat | None, body: Mapping[str, Any], request_id: str
    ) -> Sample | None:
        """The sample that the request *body* is to be, whose prompt is that of *chat*; None for most of them."""
        prompting, witness = route.backend.prompting, route.adapter.witness
        if chat is None or prompting is None or not witness.is_exact or self._chance() >= prompting.sample:
            return None
        if len(self._comparing) >= COMPARED_AT_ONCE:
            return None
        is_told = False

        def look(answer: Mapping[str, Any]) -> None:
            nonlocal is_told
            seen = witness.seen(answer)
            if seen.ids is not None and not is_told:
                is_told = True
                self._begin(route, chat, seen, request_id)

        hidden = witness.fields_of_answer if not any(body.get(name) for name in witness.fields) else frozenset()
        return Sample(witness.fields, lambda shown: replace(shown, hidden=hidden, witness=look))

    def _begin(self, route: Route, chat: ContractedChat, seen: Seen, request_id: str) -> None:
        task = asyncio.create_task(self._compare(route, chat, seen, request_id), name=f"sample {request_id}")
        self._comparing.add(task)
        task.add_done_callback(self._comparing.discard)

    async def _compare(self, route: Route, chat: ContractedChat, seen: Seen, request_id: str) -> None:
        prompting = route.backend.prompting
        assert prompting is not None
        try:
            compared = await self._prompts.compared(prompting, chat, seen)
        except GatewayError as problem:
            self._count(route.model, "failed")
            _log.warning("%s: the prompt of %s could not be compared: %s", route.model, request_id, problem)
            return
        except Exception:
            # the top of a task nobody waits for
            self._count(route.model, "failed")
            _log.exception("%s: comparing the prompt of %s broke", route.model, request_id)
            return
        self._count(route.model, "mismatch" if compared.verdict == "mismatch" else "exact")
        if compared.verdict == "mismatch":
            # Neither prompt is shown: it is a user's.
            _log.warning(
                "%s: the engine gave %s another prompt than the contract's (%s, from token %s on): %s",
                route.model,
                request_id,
                compared.cause,
                compared.first_token,
                compared.fix(route.backend.engine),
            )

    async def close(self) -> None:
        """Compare no more."""
        for task in self._comparing:
            task.cancel()
        await asyncio.gather(*self._comparing, return_exceptions=True)
