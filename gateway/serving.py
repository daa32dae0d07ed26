"""The data path: one request in eight steps, from its head to its account. Plain ASGI.

Theory of operation
-------------------
admit -> read -> resolve -> enforce -> lease -> forward -> relay -> account, each a function, each with one type to hand
over, each with its own way to refuse. Steps five to seven live inside nested ``async with`` blocks of one coroutine:
whatever ends it, a good answer, an engine that dies, a client that leaves, a shutdown, the lease goes back and the
upstream connection is closed or returned before the account is written. There is no lease in a generator's ``finally``
(it may never run) and no middleware that hides a disconnect.

A refusal before the first byte is an OpenAI error envelope with its status; after it, an error event in the stream.

A model may have replicas. When the one that was chosen cannot be reached, breaks off before it has answered, or says
that it is unavailable, the request moves to another, once; never when a byte of the answer has come. What a reload of
the configuration exchanges (routes, keys, limits) each request looks up anew, and the route again with the lease.
"""

from __future__ import annotations

import logging
import re
import secrets
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from time import perf_counter as clock  # not loop.time(): uvloop's stands still for whole milliseconds
from urllib.parse import quote

import orjson

from backends.adapter import TokenizeRequest, Unsupported
from backends.dialect import CHAT
from backends.fleet import NO_NAMES, Fleet
from backends.lease import BackendUnavailable, Lease
from gateway.affinity import affinity
from gateway.client import Client, ClientGone, Headers, Receive, Scope, Send
from gateway.client_api import ClientApi, TranslatedClient
from gateway.client_apis import CLIENT_APIS, COUNT_TOKENS
from gateway.contracted import contracted_chat
from gateway.enforcement import enforce
from gateway.envelope import Envelope, read_envelope
from gateway.errors import (
    BackendError,
    BadGateway,
    BadRequest,
    GatewayError,
    InternalError,
    Unavailable,
    UnknownPath,
    from_unavailable,
    from_upstream,
    translate,
)
from gateway.keys import BEARER, Caller, Keyring
from gateway.metrics import Metrics
from gateway.normalisation import appearance
from gateway.observation import SHORT_HASH, STATUS_CLIENT_GONE, Observation, log_line
from gateway.parity_sampling import ParitySampling
from gateway.preparing import Preparing, as_leased
from gateway.prompts import Prompts
from gateway.relaying import relay
from gateway.routing import Route, Routes
from gateway.sse import error_event
from gateway.translating import TranslatedAnswer
from gateway.upstream import UpstreamPool
from gateway.upstream_errors import (
    BrokenAnswer,
    ConnectFailed,
    ConnectTimedOut,
    FirstByteTimedOut,
    IdleTimedOut,
    UpstreamError,
)

GENERATION = {
    **{f"/v1/{endpoint}": endpoint for endpoint in ("chat/completions", "completions", "embeddings")},
    **{path: CHAT for path in CLIENT_APIS if path != COUNT_TOKENS},
}
TOKENIZE = "/tokenize"
TOKENIZING = frozenset({TOKENIZE, COUNT_TOKENS})
TOKENIZE_ONLY = frozenset({"add_special_tokens", "return_token_strs"})
"""Parameters that only /tokenize has; a contract's prompt has its special tokens already."""
TOKENIZE_LIMIT_BYTES = 64 * 1024 * 1024

JSON = (b"content-type", b"application/json")
_REQUEST_ID = re.compile(rb"[A-Za-z0-9._:-]{1,128}")

_log = logging.getLogger("unigate.gateway")
_access = logging.getLogger("unigate.access")


@dataclass(frozen=True, slots=True)
class Limits:
    """What one request may take. *patience_s*: how long a client may neither send nor read, in seconds."""

    body_bytes: int
    max_wait_s: float
    patience_s: float


class Serving:
    """The endpoints that need a model."""

    def __init__(
        self,
        keyring: Keyring,
        routes: Routes,
        fleet: Fleet,
        pool: UpstreamPool,
        metrics: Metrics,
        prompts: Prompts,
        limits: Limits,
        *,
        access_log: bool = True,
    ) -> None:
        self._keyring = keyring
        self._routes = routes
        self._fleet = fleet
        self._pool = pool
        self._metrics = metrics
        self._prompts = prompts
        self._sampling = ParitySampling(prompts, metrics.sampled)
        self._preparing = Preparing(prompts)
        self.limits = limits
        self.access_log = access_log
        self.is_draining = False

    async def close(self) -> None:
        """End what goes on after the requests; they are over."""
        await self._sampling.close()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one POST to a path of GENERATION or of TOKENIZING."""
        path: str = scope["path"]
        api = CLIENT_APIS.get(path)
        client = _client(api, scope, receive, send, self.limits.patience_s)
        seen = Observation(
            request_id=request_id_of(client),
            endpoint=path,
            received_at=clock(),
        )
        try:
            await self._serve(path, api, client, seen)
        except ClientGone:
            seen.status = STATUS_CLIENT_GONE
        except GatewayError as problem:
            await self._refuse(client, seen, problem)
        except Exception:
            # The ASGI boundary: a mistake of ours is told as such, and kept for us in the log.
            _log.exception("request %s failed in %s", seen.request_id, seen.phase)
            await self._refuse(client, seen, InternalError("the gateway made a mistake; its log has the details"))
        finally:
            self._account(seen)

    async def _serve(self, path: str, api: ClientApi | None, client: Client, seen: Observation) -> None:
        caller = self._admit(client, api)
        seen.caller = caller.name
        seen.phase = "read"
        raw = await client.read_body(self.limits.body_bytes)
        envelope = read_envelope(raw, client.header(b"content-type"))
        if api is not None and isinstance(client, TranslatedClient):
            client.reply = api.reply(envelope.body, secrets.token_hex(12))
            envelope = replace(envelope, body=api.request(envelope.body), wants_usage=True)
        seen.is_stream = envelope.is_stream
        seen.phase = "resolve"
        route = self._routes.resolve(envelope.model, caller)
        seen.model, seen.engine, seen.contract = route.model, route.backend.engine, _contract_hash(route)
        with self._metrics.in_flight(route.model, route.backend.engine).track_inprogress():
            if path in TOKENIZING:
                await self._tokenize(client, seen, route, envelope)
            else:
                await self._generate(client, seen, route, envelope, GENERATION[path])

    def _admit(self, client: Client, api: ClientApi | None) -> Caller:
        if self.is_draining:
            message = "the gateway is shutting down"
            raise Unavailable(message, code="draining", headers=[(b"retry-after", b"5"), (b"connection", b"close")])
        return self._keyring.admit(_authorization(client, api))

    async def _generate(
        self, client: Client, seen: Observation, route: Route, envelope: Envelope, endpoint: str
    ) -> None:
        if endpoint not in route.adapter.endpoints:
            raise UnknownPath(f"the engine of {route.model} has no /v1/{endpoint}", code="endpoint_not_supported")
        seen.phase = "enforce"
        prepared = await self._preparing.prepared(envelope, route, endpoint)
        upstream_id = _upstream_id(seen.request_id)

        async def forward_and_relay(lease: Lease) -> bool:
            nonlocal prepared
            if (now := as_leased(self._routes.now(prepared.route), lease)) is not prepared.route:
                prepared = await self._preparing.prepared(envelope, now, endpoint)  # reloaded while we waited
            route = prepared.route
            seen.contract = _contract_hash(route)
            headers = _upstream_headers(upstream_id, lease.authorization)
            seen.phase = "enforce"
            given, seen.prompt_mode = await self._preparing.given(prepared, lease)
            translated = given.translated
            target = translated.target if translated is not None else f"{lease.address.base_path}/{endpoint}"
            body = translated.body if translated is not None else given.body or {}
            sample = None
            if translated is None:
                sample = self._sampling.sample(route, prepared.chat, body, seen.request_id)
            if sample is not None:
                body = {**body, **sample.fields}
            seen.phase = "forward"
            if lease.served_name is not None:
                body = {**body, "model": lease.served_name}
            look = appearance(
                route.adapter.dialect,
                endpoint,
                model=route.model,
                served_name=route.served.name,
                upstream_id=upstream_id,
            )
            seen.sent_at = clock()
            async with self._pool.exchange(lease.address, "POST", target, headers, orjson.dumps(body)) as answer:
                seen.phase = "relay"
                return await relay(
                    answer if translated is None else TranslatedAnswer(answer, translated.answer),
                    client,
                    [*_own_headers(seen), *_ignored_header(prepared.ignored)],
                    seen,
                    wants_usage=envelope.wants_usage,
                    observe_gap=self._metrics.inter_chunk(route.model, route.backend.engine),
                    appearance=look if sample is None else sample.appearance(look),
                )

        belongs_with = None
        if route.backend.replica_of:
            belongs_with = affinity(endpoint, envelope.body, client.header, seen.caller)
        await self._with_lease(client, seen, route, forward_and_relay, belongs_with)
        seen.status = 200

    async def _with_lease(
        self,
        client: Client,
        seen: Observation,
        route: Route,
        use: Callable[[Lease], Awaitable[bool]],
        belongs_with: bytes | None = None,
    ) -> None:
        """Lease a backend of the route and *use* it while the client is there. Raises GatewayError, ClientGone.

        *use* is called a second time, with the lease of another replica, when the first had nothing to answer.
        """
        asked_at = clock()
        try:
            async with client.watched():
                failed = await self._attempt(client, seen, route, use, belongs_with, asked_at, NO_NAMES)
                if failed is not None:
                    await self._attempt(client, seen, route, use, belongs_with, asked_at, frozenset({failed}))
        except BackendUnavailable as problem:
            seen.waited_s = clock() - asked_at
            raise from_unavailable(problem) from problem
        except UpstreamError as problem:
            seen.upstream_error = type(problem).__name__
            _log.warning("request %s to %s: %s", seen.request_id, seen.backend or route.model, problem)
            raise from_upstream(problem, route.model) from problem
        seen.phase = "done"

    async def _attempt(
        self,
        client: Client,
        seen: Observation,
        route: Route,
        use: Callable[[Lease], Awaitable[bool]],
        belongs_with: bytes | None,
        asked_at: float,
        tried: frozenset[str],
    ) -> str | None:
        """One backend's turn; returns its name when another shall have one. *tried*: the names of those that had."""
        seen.phase = "lease"
        model = route.backend.model
        max_wait_s = max(0.0, self.limits.max_wait_s - (clock() - asked_at))
        async with self._fleet.lease(model, max_wait_s, belongs_with, tried) as lease:
            seen.waited_s = clock() - asked_at
            seen.backend = lease.backend if lease.backend != model else None
            try:
                if await use(lease):
                    lease.release(answered=True)
                elif seen.upstream_error == IdleTimedOut.__name__:
                    lease.release(silent=True)
            except (UpstreamError, BackendError) as problem:
                if isinstance(problem, FirstByteTimedOut | IdleTimedOut):
                    lease.release(silent=True)
                reason = None if client.has_started or tried else move_reason(problem)
                if reason is None or not self._fleet.has_other(model, frozenset({lease.backend})):
                    raise
                self._metrics.retried(route.model, reason)
                _log.warning("request %s moves away from %s: %s", seen.request_id, lease.backend, reason)
                return lease.backend
        return None

    async def _tokenize(self, client: Client, seen: Observation, route: Route, envelope: Envelope) -> None:
        """vLLM's /tokenize, for every engine that can: ``{model, prompt | messages}`` -> ``{count, tokens}``."""
        request = _tokenize_request(envelope)
        enforce(envelope, route)
        if request.messages is not None and (prompting := route.backend.prompting) is not None:
            control_tokens = await self._prompts.control_tokens(prompting)
            asked = {name: value for name, value in envelope.body.items() if name not in TOKENIZE_ONLY}
            chat = contracted_chat(asked, prompting.contract, control_tokens, may_be_closed=True)
            prompt = await self._prompts.prompt(prompting, chat)
            if prompt.ids is not None:
                shown = {
                    "count": len(prompt.ids),
                    "tokens": prompt.ids,
                    "max_model_len": route.backend.context_length,
                }
                await client.answer(200, [JSON, *_own_headers(seen)], orjson.dumps(shown))
                seen.status, seen.phase = 200, "done"
                return
            request = replace(request, messages=chat.body["messages"])
        try:
            route.adapter.tokenize(request)
        except Unsupported as problem:
            raise BadRequest(str(problem), code="endpoint_not_supported") from problem

        async def ask_and_answer(lease: Lease) -> bool:
            plan = route.adapter.tokenize(request)
            seen.phase = "forward"
            headers = _upstream_headers(_upstream_id(seen.request_id), lease.authorization)
            seen.sent_at = clock()
            call = next(plan)
            while True:
                body = orjson.dumps({**(call.body or {}), "model": route.served.name})
                async with self._pool.exchange(lease.address, call.method, call.target, headers, body) as answer:
                    content = await answer.read(TOKENIZE_LIMIT_BYTES)
                if answer.status != 200:
                    raise translate(answer.status, content, route.adapter.dialect.error_forms)
                try:
                    call = plan.send(orjson.loads(content))
                except StopIteration as done:
                    result = done.value
                    break
                except (orjson.JSONDecodeError, KeyError, TypeError) as problem:
                    raise BadGateway("the backend's tokenisation cannot be read", code="backend_garbage") from problem
            seen.phase = "relay"
            shown = {"count": len(result.tokens), "tokens": result.tokens, "max_model_len": result.context_length}
            await client.answer(200, [JSON, *_own_headers(seen)], orjson.dumps(shown))
            return True

        await self._with_lease(client, seen, route, ask_and_answer)
        seen.status = 200

    async def _refuse(self, client: Client, seen: Observation, problem: GatewayError) -> None:
        seen.status = problem.status
        seen.error = problem.code or problem.type
        if not client.has_started:
            await client.answer(problem.status, [JSON, *problem.headers, *_own_headers(seen)], problem.body())
        elif seen.is_stream and not client.is_finished:
            await client.finish(error_event(problem.body()))

    def _account(self, seen: Observation) -> None:
        seen.ended_at = clock()
        if seen.status == 0:  # cancelled from outside: the gateway is being stopped
            seen.status = STATUS_CLIENT_GONE
        self._metrics.account(seen)
        if self.access_log:
            _access.info("%s", log_line(seen))


def _contract_hash(route: Route) -> str | None:
    return route.backend.prompting.contract.hash if route.backend.prompting is not None else None


def move_reason(problem: UpstreamError | BackendError) -> str | None:
    """Why a request that met *problem* before any byte of its answer may move to another replica; None when not.

    One that timed out may not: another engine would take as long. A 503 is an engine's word that it takes no request
    now: its queue is full (vLLM's --max-num-queued-reqs, 0.32.0), it sleeps (LMDeploy 0.18.0,
    serve/utils/server_utils.py), it shuts down.
    """
    match problem:
        case ConnectFailed() | ConnectTimedOut():
            return "unreachable"
        case BrokenAnswer(answered=False):
            return "broke_off"
        case BackendError(status=503):
            return "unavailable"
        case _:
            return None


def request_id_of(client: Client) -> str:
    """The client's own id when it is plain, else a new one."""
    given = client.header(b"x-request-id")
    if given is not None and _REQUEST_ID.fullmatch(given):
        return given.decode("ascii")
    return f"req-{secrets.token_hex(12)}"


def _own_headers(seen: Observation) -> Headers:
    headers = [(b"x-request-id", seen.request_id.encode())]
    if seen.engine is not None:
        headers.append((b"x-unigate-engine", seen.engine.encode()))
    if seen.contract is not None:
        headers.append((b"x-unigate-contract", seen.contract[:SHORT_HASH].encode()))
    if seen.backend is not None:
        headers.append((b"x-unigate-backend", quote(seen.backend, safe="/#:@ ").encode()))
    return headers


def _ignored_header(names: Sequence[str]) -> Headers:
    """Which parameters were left out, because the engine does not honour them and the operator wants it so."""
    return [(b"x-unigate-ignored-params", ", ".join(names).encode())] if names else []


def _upstream_id(request_id: str) -> str:
    """What an engine is told as the request's id.

    vLLM makes it its own (entrypoints/serve/engine/serving.py, 0.32.0), and two requests with one id would meet there;
    a client's id may repeat, so a suffix of ours makes it single.
    """
    return f"{request_id}-{secrets.token_hex(3)}"


def _upstream_headers(upstream_id: str, authorization: str) -> Headers:
    """What an engine is told: never the client's headers, which may hold its key."""
    headers = [
        JSON,
        (b"accept", b"application/json, text/event-stream"),
        (b"accept-encoding", b"identity"),
        (b"x-request-id", upstream_id.encode()),
    ]
    if authorization:
        headers.append((b"authorization", authorization.encode()))
    return headers


def _client(api: ClientApi | None, scope: Scope, receive: Receive, send: Send, patience_s: float) -> Client:
    if api is None:
        return Client(scope, receive, send, patience_s)
    # Until the request is read, nothing but an error can be its answer.
    return TranslatedClient(scope, receive, send, patience_s, api.reply({}, ""))


def _authorization(client: Client, api: ClientApi | None) -> bytes | None:
    """The client's key as OpenAI's clients send it, wherever its own API has it."""
    given = client.header(b"authorization")
    key = client.header(api.key_header) if api is not None and given is None else None
    return BEARER + key if key is not None else given


def _tokenize_request(envelope: Envelope) -> TokenizeRequest:
    body = envelope.body
    prompt, messages = body.get("prompt"), body.get("messages")
    if (prompt is None) == (messages is None):
        raise BadRequest("give either prompt or messages", param="prompt", code="invalid_type")
    if prompt is not None and not isinstance(prompt, str):
        raise BadRequest("prompt must be text", param="prompt", code="invalid_type")
    if messages is not None and not isinstance(messages, list):
        raise BadRequest("messages must be a list", param="messages", code="invalid_type")
    return TokenizeRequest(
        prompt=prompt,
        messages=messages,
        # As vLLM has it: a template writes its own special tokens, a bare prompt has none.
        add_special_tokens=bool(body.get("add_special_tokens", messages is None)),
        add_generation_prompt=bool(body.get("add_generation_prompt", True)),
    )
