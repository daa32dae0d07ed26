"""Carrying out plans: their calls to a running engine, and its answers back into them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Generator, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from backends.adapter import Call, LaunchSpec
from backends.probing import call, client_for
from backends.prompting import CallRefused

CALL_LIMIT_S = 120.0
AT_ONCE = 4
"""Calls under way with one engine."""
REFUSAL_CHARACTERS = 500

Answer = TypeVar("Answer")
Ask = Callable[[Call], Awaitable[Any]]


@asynccontextmanager
async def asking(spec: LaunchSpec) -> AsyncIterator[Ask]:
    """Asks the engine of *spec*, over connections that are kept. Raises CallRefused, httpx.RequestError, ValueError."""
    at_once = asyncio.Semaphore(AT_ONCE)
    async with client_for(spec.address, CALL_LIMIT_S) as client:

        async def ask(request: Call) -> Any:
            async with at_once:
                answer = await call(client, spec, request)
            if not answer.is_success:
                raise CallRefused(answer.status_code, answer.text[:REFUSAL_CHARACTERS])
            return answer.json()

        yield ask


async def outcome_of(plan: Generator[Call, Any, Answer], ask: Ask) -> Answer:
    """What *plan* comes to. Raises what *ask* raises, where the plan does not know better."""
    try:
        request = next(plan)
        while True:
            try:
                answer = await ask(request)
            except CallRefused as refusal:
                request = plan.throw(refusal)
            else:
                request = plan.send(answer)
    except StopIteration as end:
        outcome: Answer = end.value
        return outcome


async def together(works: Sequence[Coroutine[Any, Any, Answer]]) -> list[Answer]:
    """What *works* come to, in their order; the first failure ends them all."""
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
