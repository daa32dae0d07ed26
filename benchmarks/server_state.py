"""Asking a server about itself: before a run, while it goes on, and after."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import Mapping
from typing import Any

from benchmarks.engine_metrics import Sample, dialect_named, read_samples
from benchmarks.environment import read_backends, read_model, read_version
from benchmarks.load.connection import Address, ConnectionPool, read_address
from benchmarks.load.fetching import Fetched, FetchFailed, fetch

ASK_S = 5.0
VERSION_PATHS = ("/version", "/props", "/api/version")
IDLE_PATIENCE_S = 2.0
POLL_S = 0.25


class ServerState:
    """Asks the server at *address* and what has metrics of its own at *metrics_urls*. The caller closes it."""

    def __init__(
        self,
        address: Address,
        model: str,
        headers: Mapping[str, str],
        metrics_urls: tuple[str, ...],
        tls: ssl.SSLContext | None,
    ) -> None:
        self._address = address
        self._model = model
        self._headers = headers
        self._pool = ConnectionPool(address, tls=tls)
        self._metrics = []
        for url in metrics_urls or (f"{address.origin}/metrics",):
            place = read_address(url)
            pool = self._pool if place.origin == address.origin else ConnectionPool(place, tls=tls)
            # a key is for the server it was given for
            self._metrics.append((place, pool, headers if pool is self._pool else {}))

    async def close(self) -> None:
        """Close the connections."""
        for pool in {self._pool, *(pool for _, pool, _ in self._metrics)}:
            await pool.close()

    async def servers(self) -> dict[str, Sample]:
        """What the metrics say now; ``{}`` where there are none."""
        found: dict[str, Sample] = {}
        for place, pool, headers in self._metrics:
            with contextlib.suppress(FetchFailed):
                answer = await fetch(pool, place, place.path or "/metrics", headers, ASK_S)
                if answer.status == 200:
                    found.update(read_samples(answer.body.decode("utf-8", "replace"), self._model))
        return found

    async def state(self, *, waits_for_idle: bool = False) -> dict[str, Any]:
        """Everything the server says of itself. *waits_for_idle*: its own metrics may still tell of our warm-up."""
        servers = await self.servers()
        if waits_for_idle and servers:
            await asyncio.sleep(max(dialect_named(name).refresh_s for name in servers))
            servers = await self.servers()
            for _ in range(round(IDLE_PATIENCE_S / POLL_S)):
                if not any(sample.get("running") for sample in servers.values()):
                    break
                await asyncio.sleep(POLL_S)
                servers = await self.servers()
        models = await self._ask(f"{self._address.path}/models")
        state = {
            "servers": servers,
            "model": read_model(models.body, self._model) if models is not None else None,
            "version": await self._version(),
            "backends": await self._backends(),
        }
        return {name: value for name, value in state.items() if value is not None}

    async def _version(self) -> str | None:
        for path in VERSION_PATHS:
            answer = await self._ask(path)
            version = read_version(path, answer.body) if answer is not None else None
            if version is not None:
                return f"{path} {version}"
        return None

    async def _backends(self) -> list[dict[str, Any]] | None:
        answer = await self._ask("/admin/backends")
        return read_backends(answer.body, self._model) if answer is not None else None

    async def _ask(self, path: str) -> Fetched | None:
        try:
            answer = await fetch(self._pool, self._address, path, self._headers, ASK_S)
        except FetchFailed:
            return None
        return answer if answer.status == 200 else None
