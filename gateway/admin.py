"""`/admin`: seeing and steering the backends. For this machine, or for keys marked ``admin: true``."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import asdict
from typing import Annotated, Any

from fastapi import FastAPI, HTTPException, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response, StreamingResponse
from starlette.exceptions import HTTPException as StarletteHTTPException

from backends.fleet import Fleet
from backends.lifecycle import State
from backends.logs import FOLLOWER_LINES, BackendLog
from backends.status import BackendStatus
from gateway import __version__
from gateway.client import Client, Receive, Scope, Send
from gateway.errors import BadRequest, GatewayError, NotAllowed, Unavailable, UnknownPath, WrongMethod
from gateway.keys import Keyring
from gateway.reloading import Reloading, ReloadRefused, ReloadUnavailable
from gateway.serving import JSON

MAX_WAIT_S = 3600.0
WaitS = Annotated[float, Query(ge=0, le=MAX_WAIT_S, description="Seconds to wait for the outcome; 0: answer at once.")]
LOOPBACK_NAMES = ("localhost", "127.0.0.1", "::1")
RELAYED = (b"x-forwarded-for", b"forwarded", b"x-real-ip", b"via")
"""Headers that proxies put on what they pass on. Behind one on this machine that adds none, everybody looks local."""


def admin_app(fleet: Fleet, reloading: Reloading) -> FastAPI:
    """The administration's routes, without their guard."""
    app = FastAPI(title="Unigate administration", version=__version__, docs_url="/admin/docs", redoc_url=None,
                  openapi_url="/admin/openapi.json")  # fmt: skip

    def known(name: str) -> str:
        if name not in fleet.names():
            replicas = [status.name for status in fleet.replicas(name)]
            message = f"{name!r} has replicas" if replicas else f"there is no backend {name!r}"
            raise HTTPException(404, f"{message}; there are: {', '.join(replicas or fleet.names())}")
        return name

    def meant(name: str) -> list[str]:
        """The backends of the model *name*, or the one backend that is called so."""
        return [status.name for status in fleet.replicas(name)] or [known(name)]

    @app.get("/admin/backends")
    async def list_backends() -> list[dict[str, Any]]:
        """All backends as they stand."""
        return [as_json(status) for status in fleet.statuses()]

    @app.get("/admin/backends/{name:path}/logs")
    async def read_log(
        name: str, lines: Annotated[int, Query(ge=0, le=100_000)] = 100, follow: bool = False
    ) -> Response:
        """The last lines of a backend's log, then, with *follow*, new ones as they come."""
        log = fleet.log(known(name))
        if not follow:
            return Response("".join(f"{line}\n" for line in log.tail(lines)), media_type="text/plain")
        return StreamingResponse(_as_text(log.follow(lines)), media_type="text/plain")

    @app.get("/admin/models/{name:path}/logs")
    async def read_logs(
        name: str, lines: Annotated[int, Query(ge=0, le=100_000)] = 100, follow: bool = False
    ) -> Response:
        """As the log of a backend; of a model with replicas the logs of all, each line with its backend's name."""
        names = meant(name)
        if len(names) == 1:
            return await read_log(names[0], lines, follow)
        logs = {one: fleet.log(one) for one in names}
        if not follow:
            shown = "".join(f"{one} | {line}\n" for one, log in logs.items() for line in log.tail(lines))
            return Response(shown, media_type="text/plain")
        return StreamingResponse(_as_text(_side_by_side(logs, lines)), media_type="text/plain")

    @app.post("/admin/models/{name:path}/load")
    async def load_all(name: str, wait_s: WaitS = 0) -> list[dict[str, Any]]:
        """Start every backend of a model, failed ones too. *name* may also be that of one backend."""
        names = meant(name)
        for one in names:
            await fleet.load(one)
        return await outcomes(names, wait_s, State.READY, State.FAILED)

    @app.post("/admin/models/{name:path}/unload")
    async def unload_all(name: str, wait_s: WaitS = 0) -> list[dict[str, Any]]:
        """Let running requests finish, then stop every backend of a model. The next request starts it again."""
        names = meant(name)
        for one in names:
            await fleet.unload(one)
        return await outcomes(names, wait_s, State.STOPPED)

    @app.post("/admin/models/{name:path}/restart")
    async def restart_all(name: str, wait_s: WaitS = 0) -> list[dict[str, Any]]:
        """Let running requests finish, stop every backend of a model and start it again: one at a time."""
        names = meant(name)
        if len(names) == 1:
            return [await restart(names[0], wait_s)]
        rolling = await reloading.restart(names)
        await asyncio.wait([rolling], timeout=wait_s)
        return [as_json(fleet.status(one)) for one in names if one in fleet.names()]

    @app.post("/admin/reload")
    async def reload(wait_s: WaitS = 0) -> dict[str, Any]:
        """Read the configuration file again and do what has changed; what it does, and how far it has come.

        400 with every problem of the file, and nothing changed.
        """
        try:
            plan = await reloading.reload()
        except ReloadRefused as problem:
            raise HTTPException(400, str(problem)) from problem
        except ReloadUnavailable as problem:
            raise HTTPException(503, str(problem)) from problem
        if wait_s > 0:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await reloading.outcome(plan)
        return reloading.report(plan)

    @app.post("/admin/backends/{name:path}/load")
    async def load(name: str, wait_s: WaitS = 0) -> dict[str, Any]:
        """Start a backend, a failed one too."""
        await fleet.load(known(name))
        return await outcome(name, wait_s, State.READY, State.FAILED)

    @app.post("/admin/backends/{name:path}/unload")
    async def unload(name: str, wait_s: WaitS = 0) -> dict[str, Any]:
        """Let running requests finish, then stop a backend. The next request for it starts it again."""
        await fleet.unload(known(name))
        return await outcome(name, wait_s, State.STOPPED)

    @app.post("/admin/backends/{name:path}/restart")
    async def restart(name: str, wait_s: WaitS = 0) -> dict[str, Any]:
        """Let running requests finish, stop a backend and start it again."""
        await fleet.unload(known(name))
        await fleet.load(name)
        return await outcome(name, wait_s, State.READY, State.FAILED)

    @app.get("/admin/backends/{name:path}/parity")
    async def show_parity(name: str) -> dict[str, Any]:
        """Whether a backend's prompts were proven to be its contract's; ``proof`` is null where nothing was."""
        return parity_as_json(fleet, known(name))

    @app.get("/admin/models/{name:path}/parity")
    async def show_all_parity(name: str) -> list[dict[str, Any]]:
        """The same for every backend of a model. *name* may also be that of one backend."""
        return [parity_as_json(fleet, one) for one in meant(name)]

    @app.get("/admin/backends/{name:path}")
    async def show_backend(name: str) -> dict[str, Any]:
        """One backend as it stands."""
        return as_json(fleet.status(known(name)))

    async def outcome(name: str, wait_s: float, *states: State) -> dict[str, Any]:
        if wait_s > 0:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await fleet.settled(name, *states)
        return as_json(fleet.status(name))

    async def outcomes(names: Sequence[str], wait_s: float, *states: State) -> list[dict[str, Any]]:
        return list(await asyncio.gather(*(outcome(name, wait_s, *states) for name in names)))

    @app.exception_handler(StarletteHTTPException)
    async def envelope(request: Request, problem: StarletteHTTPException) -> Response:
        error: GatewayError
        if problem.status_code == 405:
            error = WrongMethod(f"{request.url.path} does not take {request.method}; see /admin/docs")
        elif problem.detail == "Not Found":  # Starlette's own word for a path nobody serves
            error = UnknownPath(f"nothing is served at {request.url.path}; see /admin/docs")
        elif problem.status_code == 400:
            error = BadRequest(str(problem.detail), code="config_refused")
        elif problem.status_code == 503:
            error = Unavailable(str(problem.detail), code="reload_unavailable")
        else:
            error = UnknownPath(str(problem.detail), code="unknown_backend")
        return Response(error.body(), error.status, media_type="application/json", headers=problem.headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, problem: RequestValidationError) -> Response:
        first = problem.errors()[0]
        error = BadRequest(f"{first['loc'][-1]}: {first['msg']}", param=str(first["loc"][-1]))
        return Response(error.body(), error.status, media_type="application/json")

    return app


def parity_as_json(fleet: Fleet, name: str) -> dict[str, Any]:
    """What was proven of the prompts of one backend; ``proof`` is None where nothing was."""
    proof, status = fleet.proof(name), fleet.status(name)
    shown = proof.as_json() if proof is not None else None
    return {"backend": name, "engine": status.engine, "state": status.state.value, "proof": shown}


def as_json(status: BackendStatus) -> dict[str, Any]:
    """A status as the administration shows it."""
    return {**asdict(status), "state": status.state.value}


async def _side_by_side(logs: Mapping[str, BackendLog], lines: int) -> AsyncIterator[str]:
    """The lines of several logs as they come, each behind its backend's name."""
    queue: asyncio.Queue[str | None] = asyncio.Queue(FOLLOWER_LINES)

    async def follow(name: str, log: BackendLog) -> None:
        async for line in log.follow(lines):
            await queue.put(f"{name} | {line}")
        await queue.put(None)

    following = [asyncio.create_task(follow(name, log)) for name, log in logs.items()]
    try:
        for _ in following:
            while (line := await queue.get()) is not None:
                yield line
    finally:
        for task in following:
            task.cancel()


async def _as_text(lines: AsyncIterator[str]) -> AsyncIterator[str]:
    async for line in lines:
        yield f"{line}\n"


class AdminGuard:
    """Lets in who sends an admin key, and who is on this machine and nobody's relay.

    A proxy on this machine makes every client look local, so a forwarded request needs the key. So does one that a
    browser sends for a page from elsewhere (its Origin), or under a name that is not this machine's (DNS rebinding).
    """

    def __init__(self, app: Any, keyring: Keyring) -> None:
        self._app = app
        self._keyring = keyring

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or refuse it with 403."""
        client = Client(scope, receive, send, patience_s=60)
        caller = self._keyring.find(client.header(b"authorization"))
        if (caller is not None and caller.is_admin) or is_local(scope, client):
            await self._app(scope, receive, send)
            return
        message = "/admin is open to this machine only, or to a key marked admin: true"
        problem = NotAllowed(message, code="admin_only")
        await client.answer(problem.status, [JSON], problem.body())


def is_local(scope: Scope, client: Client) -> bool:
    """Whether a request comes from this machine itself, and from no web page but our own."""
    peer = scope.get("client")
    if peer is None or not _is_loopback(peer[0]):
        return False
    if any(client.header(name) is not None for name in RELAYED):
        return False
    host = (client.header(b"host") or b"").decode("latin-1")
    if _host_name(host) not in LOOPBACK_NAMES:
        return False
    origin = client.header(b"origin")
    return origin is None or origin.decode("latin-1").partition("://")[2] == host


def _host_name(host: str) -> str:
    if host.startswith("["):
        name, _, port = host[1:].partition("]")
        return name if not port or port.startswith(":") else host
    return host.partition(":")[0]


def _is_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False
