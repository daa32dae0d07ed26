"""Asking an engine whether it lives and whether it can really answer."""

from __future__ import annotations

import asyncio
from typing import Any, Protocol

import httpx

from backends.adapter import Call, LaunchSpec
from backends.address import Address


class ProbeFailed(Exception):
    """The engine answered, but not as a working one does; the message says how.

    *is_permanent*: asking again would bring the same answer (a 4xx).
    """

    def __init__(self, message: str, *, is_permanent: bool = False) -> None:
        super().__init__(message)
        self.is_permanent = is_permanent


class Prober(Protocol):
    """What the supervisor asks of an engine's HTTP side."""

    async def is_healthy(self, spec: LaunchSpec, timeout_s: float) -> bool:
        """Whether the health call is answered with 2xx within *timeout_s*."""

    async def prove(self, spec: LaunchSpec, timeout_s: float) -> None:
        """One real token. Raises ProbeFailed, or httpx.RequestError when there was no answer."""

    async def tell(self, spec: LaunchSpec, request: Call, timeout_s: float) -> Any:
        """Send *request*; the answer's JSON, None without any. Raises ProbeFailed, or httpx.RequestError."""


def client_for(address: Address, timeout_s: float) -> httpx.AsyncClient:
    """A client for one address. The environment's proxies are not used: engines are on this machine."""
    # verify=False where there is no TLS: httpx would load the certificates all the same, for 24 ms on the loop
    # (httpx 0.28.1).
    transport = httpx.AsyncHTTPTransport(uds=address.uds or None, verify=address.tls)
    base_url = f"{'https' if address.tls else 'http'}://{address.authority}"
    return httpx.AsyncClient(transport=transport, base_url=base_url, timeout=timeout_s, trust_env=False)


async def call(client: httpx.AsyncClient, spec: LaunchSpec, request: Call) -> httpx.Response:
    """Send one Call; the spec's authorization goes with it."""
    headers = {"authorization": spec.authorization} if spec.authorization else {}
    if request.body is None:
        return await client.request(request.method, request.target, headers=headers)
    return await client.request(request.method, request.target, json=request.body, headers=headers)


class HttpProber:
    """Probes over HTTP, a fresh connection each time: a kept one would prove only that it was kept."""

    async def is_healthy(self, spec: LaunchSpec, timeout_s: float) -> bool:
        """Whether the health call is answered with 2xx within *timeout_s*."""
        try:
            # httpx's own timeout is per read: an answer that trickles in would never be too late.
            async with asyncio.timeout(timeout_s), client_for(spec.address, timeout_s) as client:
                answer = await call(client, spec, spec.probe.health)
        except (httpx.RequestError, OSError):
            return False
        return answer.is_success

    async def prove(self, spec: LaunchSpec, timeout_s: float) -> None:
        """One real token. Raises ProbeFailed, or httpx.RequestError when there was no answer."""
        async with client_for(spec.address, timeout_s) as client:
            answer = await call(client, spec, spec.probe.proof)
        if not answer.is_success:
            raise ProbeFailed(
                f"the readiness request was answered {answer.status_code}: {answer.text[:300]}",
                is_permanent=answer.is_client_error and answer.status_code not in (408, 425, 429),
            )
        if not _holds(answer, spec.probe.proof_pointer):
            raise ProbeFailed(f"the readiness request brought no result back: {answer.text[:300]}")

    async def tell(self, spec: LaunchSpec, request: Call, timeout_s: float) -> Any:
        """Send *request*; the answer's JSON, None without any. Raises ProbeFailed, or httpx.RequestError."""
        async with client_for(spec.address, timeout_s) as client:
            answer = await call(client, spec, request)
        if not answer.is_success:
            raise ProbeFailed(f"{request.target} was answered {answer.status_code}: {answer.text[:300]}")
        try:
            return answer.json()
        except ValueError:
            return None


def _holds(answer: httpx.Response, pointer: tuple[str | int, ...]) -> bool:
    try:
        value: Any = answer.json()
        for step in pointer:
            value = value[step]
    except (ValueError, KeyError, IndexError, TypeError):
        return False
    return value is not None
