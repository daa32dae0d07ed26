"""Bringing an engine's answer to the client: whole, or piece by piece as it comes.

A stream that breaks ends in an error event, never in a ``[DONE]`` the engine did not send: a client that sees a stream
end quietly believes it has the whole answer, and the OpenAI SDK raises nothing when ``[DONE]`` is missing
(openai-python src/openai/_streaming.py, 3.54.0).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from time import perf_counter as clock
from typing import Any

import orjson

from gateway.client import Client, Headers
from gateway.errors import BadGateway, GatewayError, from_upstream, translate
from gateway.normalisation import Appearance, Normaliser
from gateway.observation import Observation
from gateway.sse import EventSplitter, EventTooLong, error_event
from gateway.stream_watch import StreamWatch, usage_of
from gateway.translating import TranslatedAnswer
from gateway.upstream_connection import Answer
from gateway.upstream_errors import UpstreamError

ERROR_LIMIT_BYTES = 1024 * 1024
"""Of an error's body; what is longer is cut. Engines quote the request they refuse, which may be long."""
ANSWER_LIMIT_BYTES = 256 * 1024 * 1024
"""Of a whole answer. Embeddings of a full batch are tens of MiB; beyond this something is wrong with the engine."""

EVENT_STREAM = b"text/event-stream"
PASSED_ON = (b"content-type",)


async def relay(
    answer: Answer | TranslatedAnswer,
    client: Client,
    headers: Headers,
    seen: Observation,
    *,
    wants_usage: bool,
    observe_gap: Callable[[float], None],
    appearance: Appearance | None = None,
) -> bool:
    """Bring *answer* to *client*, looking as *appearance* has it; returns whether it was whole and good.

    Raises GatewayError while nothing has been sent yet, UpstreamError likewise.
    """
    look = appearance or Appearance()
    if answer.status >= 400:
        problem = translate(answer.status, await _beginning(answer, ERROR_LIMIT_BYTES), look.dialect.error_forms)
        problem.headers = tuple((name, value) for name, value in answer.headers if name == b"retry-after")
        raise problem
    if answer.status != 200:
        raise BadGateway(f"the backend answered {answer.status}, which is no answer to this", code="backend_garbage")
    shown = [(name, value) for name, value in answer.headers if name in PASSED_ON]
    content_type = next((value for name, value in shown if name == b"content-type"), b"")
    if content_type.startswith(EVENT_STREAM):
        no_buffering = [(b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no")]
        await client.start(200, [*shown, *no_buffering, *headers])
        watch = StreamWatch(wants_usage=wants_usage, appearance=look)
        return await _relay_stream(answer, client, seen, watch, observe_gap)
    body = await answer.read(ANSWER_LIMIT_BYTES)
    seen.first_byte_at = clock()
    body = _normalised(body, look, seen)
    seen.relayed_at = clock()
    await client.answer(200, [*shown, *headers], body)
    return True


def _normalised(body: bytes, look: Appearance, seen: Observation) -> bytes:
    """A whole answer as its client is to have it; the very bytes where nothing is to be changed. Raises BadGateway."""
    if not body.lstrip().startswith(b"{"):
        raise BadGateway("the backend answered something that is not a JSON object", code="backend_garbage")
    parsed: Any = None
    # What only a laxer reader understands, half a surrogate pair say, is for the client to judge.
    with contextlib.suppress(orjson.JSONDecodeError):
        parsed = orjson.loads(body)
    if parsed is None:
        return body
    seen.prompt_tokens, seen.completion_tokens = usage_of(parsed)
    return orjson.dumps(parsed) if Normaliser(look).whole(parsed) else body


async def _beginning(answer: Answer | TranslatedAnswer, limit_bytes: int) -> bytes:
    body = b""
    async for piece in answer.chunks():
        body += piece
        if len(body) >= limit_bytes:
            break
    return body[:limit_bytes]


async def _relay_stream(
    answer: Answer | TranslatedAnswer,
    client: Client,
    seen: Observation,
    watch: StreamWatch,
    observe_gap: Callable[[float], None],
) -> bool:
    try:
        await _relay_events(answer, client, seen, watch, observe_gap)
    except UpstreamError as broken:
        if not watch.is_done:  # after [DONE] nothing is missing
            seen.upstream_error = type(broken).__name__
            return await _break_off(client, seen, from_upstream(broken, seen.model or ""))
    except EventTooLong:
        problem = BadGateway("the backend sent an event longer than any should be", code="backend_garbage")
        return await _break_off(client, seen, problem)
    finally:
        seen.prompt_tokens, seen.completion_tokens = watch.prompt_tokens, watch.completion_tokens
    if watch.is_failed:
        seen.error = seen.upstream_error = "error_in_stream"
    elif not watch.is_done:
        problem = BadGateway("the backend ended its stream before it was complete", code="backend_broke_off")
        return await _break_off(client, seen, problem)
    await client.finish()
    return not watch.is_failed


async def _relay_events(
    answer: Answer | TranslatedAnswer,
    client: Client,
    seen: Observation,
    watch: StreamWatch,
    observe_gap: Callable[[float], None],
) -> None:
    splitter = EventSplitter()
    last: float | None = None
    async for chunk in answer.chunks():
        if seen.first_byte_at is None:
            seen.first_byte_at = clock()
        shown = watch.take(splitter.feed(chunk))
        if not shown:
            continue
        await client.write(shown[0] if len(shown) == 1 else b"".join(shown))
        now = clock()
        if last is None:
            seen.relayed_at = now
        else:
            observe_gap(now - last)
        last = now
        if watch.has_token and seen.first_token_at is None:
            seen.first_token_at = now


async def _break_off(client: Client, seen: Observation, problem: GatewayError) -> bool:
    """Tell the client, inside the stream, that it is not whole. A half event that was held back is dropped."""
    seen.error = problem.code
    await client.finish(error_event(problem.body()))
    return False
