"""Which path goes where: the ASGI application that uvicorn runs."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Any

import orjson

from backends.devices import Device, Devices
from gateway import metrics as exposition
from gateway.client import Client, Headers, Receive, Scope, Send
from gateway.dashboard import dashboard, wants_page
from gateway.errors import GatewayError, InternalError, UnknownPath, WrongMethod
from gateway.keys import Keyring
from gateway.metrics import Metrics
from gateway.model_list import ModelList
from gateway.readiness import Readiness
from gateway.serving import GENERATION, JSON, TOKENIZING, Serving, request_id_of

MODELS = "/v1/models"
GET = ("GET", "HEAD")
FRONT_PAGE = {"name": "unigate", "api": "/v1", "ready": "/ready", "metrics": "/metrics", "admin": "/admin/docs"}

_log = logging.getLogger("unigate.gateway")


class FrontDoor:
    """Sends each request to the data path, to the administration, or answers the short ones itself."""

    def __init__(
        self,
        serving: Serving,
        models: ModelList,
        readiness: Readiness,
        metrics: Metrics,
        keyring: Keyring,
        admin: Any,
        devices: Devices,
    ) -> None:
        self._serving = serving
        self._models = models
        self._readiness = readiness
        self._metrics = metrics
        self._keyring = keyring
        self._admin = admin
        self._devices = devices

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection scope; only HTTP is spoken here."""
        if scope["type"] != "http":
            return
        path: str = scope["path"]
        if path in GENERATION or path in TOKENIZING:
            if scope["method"] == "POST":
                await self._serving(scope, receive, send)
            else:
                await self._refuse(scope, receive, send, _wrong_method(path, ("POST",)))
        elif path == "/admin" or path.startswith("/admin/"):
            await self._admin(scope, receive, send)
        else:
            await self._answer_short(path, scope, receive, send)

    async def _answer_short(self, path: str, scope: Scope, receive: Receive, send: Send) -> None:
        client = Client(scope, receive, send, patience_s=60)
        try:
            # GPUs are asked in a thread: a driver may take its time.
            devices = await asyncio.to_thread(self._devices.read) if path == "/metrics" else ()
            status, headers, body = self._short(path, scope["method"], client, devices)
        except GatewayError as problem:
            status, headers, body = problem.status, [JSON, *problem.headers], problem.body()
        except Exception:
            # The ASGI boundary of everything that is not the data path.
            _log.exception("%s %s failed", scope["method"], path)
            mistake = InternalError("the gateway made a mistake; its log has the details")
            status, headers, body = mistake.status, [JSON], mistake.body()
        headers = [*headers, (b"x-request-id", request_id_of(client).encode())]
        await client.answer(status, headers, body)  # to HEAD too: uvicorn leaves the body away

    def _short(self, path: str, method: str, client: Client, devices: Sequence[Device]) -> tuple[int, Headers, bytes]:
        known = path in ("/", "/health", "/ready", "/metrics", MODELS) or path.startswith(f"{MODELS}/")
        if not known:
            raise UnknownPath(f"nothing is served at {path}; the API is below /v1")
        if method not in GET:
            raise _wrong_method(path, GET)
        if path == "/health":
            return 200, [JSON], b'{"status":"ok"}'
        if path == "/ready":
            is_ready, shown = self._readiness.report()
            return (200 if is_ready else 503), [JSON], orjson.dumps(shown)
        if path == "/metrics":
            return 200, [(b"content-type", exposition.CONTENT_TYPE)], self._metrics.exposition(devices)
        if path == "/" and wants_page(client.header(b"accept")):
            return 200, *dashboard()
        if path == "/":
            return 200, [JSON], orjson.dumps(FRONT_PAGE)
        caller = self._keyring.admit(client.header(b"authorization"))
        if path == MODELS:
            return 200, [JSON], orjson.dumps(self._models.all(caller))
        return 200, [JSON], orjson.dumps(self._models.one(path.removeprefix(f"{MODELS}/"), caller))

    async def _refuse(self, scope: Scope, receive: Receive, send: Send, problem: GatewayError) -> None:
        client = Client(scope, receive, send, patience_s=60)
        headers = [JSON, *problem.headers, (b"x-request-id", request_id_of(client).encode())]
        await client.answer(problem.status, headers, problem.body())


def _wrong_method(path: str, allowed: tuple[str, ...]) -> WrongMethod:
    words = " or ".join(allowed)
    return WrongMethod(f"{path} takes {words}", headers=[(b"allow", ", ".join(allowed).encode())])
