"""Those who wait for a backend to be READY: a bounded queue whose every member is answered."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from backends.lease import BackendUnavailable


class Waiters:
    """At most *limit* waiters of one backend. Each takes its lease itself when it wakes, so none can be lost."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._waiting: dict[asyncio.Future[None], asyncio.Future[None] | None] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def is_full(self) -> bool:
        """Whether nobody more may wait."""
        return len(self._waiting) >= self.limit

    async def wait(self, start_taken: asyncio.Future[None] | None) -> None:
        """Until woken. *start_taken*: done when the start asked for with this waiter has been looked at.

        Raises what `fail` was given to make. Cancelled, it leaves the queue.
        """
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting[waiter] = start_taken
        try:
            await waiter
        finally:
            del self._waiting[waiter]

    def wake(self) -> None:
        """Answer everybody: the backend is READY."""
        for waiter in self._waiting:
            if not waiter.done():
                waiter.set_result(None)

    def fail(self, problem: Callable[[], BackendUnavailable], *, spare_newcomers: bool) -> None:
        """Answer everybody with a *problem* of its own: one exception raised in many tasks would gather tracebacks.

        Newcomers, whose start is still to be looked at, may be spared.
        """
        for waiter, start_taken in self._waiting.items():
            is_newcomer = start_taken is not None and not start_taken.done()
            if not waiter.done() and not (spare_newcomers and is_newcomer):
                waiter.set_exception(problem())
