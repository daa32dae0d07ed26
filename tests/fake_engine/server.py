"""The HTTP side of a fake engine: the OpenAI surface of vLLM and llama.cpp, with the faults it was told."""

from __future__ import annotations

import asyncio
import os
from http import HTTPStatus
from pathlib import Path

from tests.fake_engine import answers
from tests.fake_engine.activity import Activity
from tests.fake_engine.answers import Generation
from tests.fake_engine.connection import Connection, Request
from tests.fake_engine.faults import READINESS_MAX_TOKENS, AnswerFaults, Place, PromptFaults
from tests.fake_engine.templated import PromptRefused, Templated

CRASH_EXIT_CODE = 70

GENERATING = {"/v1/chat/completions": True, "/v1/completions": False}
"""Path -> whether it is chat."""

SLEEPING = {"/sleep": True, "/wake_up": False, "/wakeup": False}
"""Path -> whether it sleeps afterwards: as vLLM and LMDeploy have them."""


class FakeServer:
    """Answers for one model. `listen` to begin; it counts its generations in `activity`."""

    def __init__(self, model: str, faults: AnswerFaults, prompts: PromptFaults) -> None:
        self.activity = Activity()
        self._model = model
        self._faults = faults
        self._prompts = prompts
        self._tokenised = 0
        self._templated = None
        if prompts.template is not None and prompts.weights is not None:
            template = prompts.renders or prompts.template
            self._templated = Templated.read(template, prompts)
        self._is_asleep = False
        self._last: object = None
        """The body of the last generation that was no probe, shown at ``/__last``."""

    async def listen(self, place: Place) -> asyncio.Server:
        """Begin to listen. Raises OSError when the place is taken. The caller closes the server."""
        if place.uds:
            Path(place.uds).unlink(missing_ok=True)
            return await asyncio.start_unix_server(self._connected, place.uds)
        return await asyncio.start_server(self._connected, place.host, place.port)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await Connection(reader, writer).serve(self._answer)

    async def _answer(self, request: Request, connection: Connection) -> None:
        if not self._is_admitted(request):
            # vLLM's own words (vllm/entrypoints/serve/middleware/authenticate.py, 0.32.0).
            return await connection.send_whole(HTTPStatus.UNAUTHORIZED, {"error": "Unauthorized"})
        if request.method == "GET":
            return await self._answer_get(request.path, connection)
        return await self._answer_post(request, connection)

    def _is_admitted(self, request: Request) -> bool:
        key = self._faults.require_key
        is_open = not key or not request.path.startswith("/v1/")
        return is_open or request.headers.get("authorization") == f"Bearer {key}"

    async def _answer_get(self, path: str, connection: Connection) -> None:
        if path == "/health":
            if self._faults.hang_health:
                await asyncio.Event().wait()
            await connection.send_whole(HTTPStatus.OK, "")
        elif path == "/v1/models":
            await connection.send_whole(HTTPStatus.OK, answers.models(self._model))
        elif path == "/metrics":
            text = self.activity.as_metrics(self._model)
            await connection.send_whole(HTTPStatus.OK, text, content_type="text/plain; version=0.0.4")
        elif path == "/version":
            await connection.send_whole(HTTPStatus.OK, {"version": "fake"})
        elif path == "/is_sleeping":
            await connection.send_whole(HTTPStatus.OK, {"is_sleeping": self._is_asleep})
        elif path == "/__state":
            await connection.send_whole(HTTPStatus.OK, self.activity.as_json())
        elif path == "/__last":
            await connection.send_whole(HTTPStatus.OK, {"body": self._last})
        else:
            await connection.send_whole(HTTPStatus.NOT_FOUND, {"detail": "Not Found"})

    async def _answer_post(self, request: Request, connection: Connection) -> None:
        body = request.body
        ids: list[int] | None = None
        if self._templated is not None and request.path in (*GENERATING, "/tokenize"):
            if self._prompts.turns_to is not None and self._prompts.turns_to.is_file():
                self._templated = self._templated.with_template(self._prompts.turns_to.read_text())
            try:
                ids = self._templated.ids(body)
            except PromptRefused as refusal:
                said = answers.error("vllm", HTTPStatus.BAD_REQUEST, str(refusal))
                return await connection.send_whole(HTTPStatus.BAD_REQUEST, said)
        if request.path in GENERATING:
            if self._is_asleep:
                return await connection.send_whole(HTTPStatus.SERVICE_UNAVAILABLE, {"error": "asleep"})
            wanted = answers.generation(body, chat=GENERATING[request.path], chunks=self._faults.chunks)
            if self._templated is not None and ids is not None:
                wanted = self._templated.after(ids, wanted, body)
            if body.get("max_tokens") == READINESS_MAX_TOKENS and not self._faults.fault_probe:
                return await self._send_faultless(wanted, connection)
            self._last = body
            with self.activity.generation():
                await self._generate(wanted, connection)
        elif request.path in SLEEPING:
            self._is_asleep = SLEEPING[request.path] and not self._faults.sleepless
            await connection.send_whole(HTTPStatus.OK, {"status": "sleeping" if self._is_asleep else "awake"})
        elif request.path == "/v1/embeddings":
            await self._embed(request, connection)
        elif request.path == "/tokenize":
            ids = answers.token_ids(body) if ids is None else ids
            await self._tokenising()
            await connection.send_whole(HTTPStatus.OK, {"count": len(ids), "max_model_len": 4096, "tokens": ids})
        elif request.path == "/apply-template":
            prompt = "".join(f"{message.get('content', '')} " for message in body.get("messages", []))
            await connection.send_whole(HTTPStatus.OK, {"prompt": prompt})
        else:
            await connection.send_whole(HTTPStatus.NOT_FOUND, {"detail": "Not Found"})
        return None

    async def _tokenising(self) -> None:
        """The faults of /tokenize."""
        self._tokenised += 1
        if self._prompts.die_after is not None and self._tokenised > self._prompts.die_after:
            os._exit(CRASH_EXIT_CODE)
        if self._prompts.stall_after is not None and self._tokenised > self._prompts.stall_after:
            await asyncio.Event().wait()

    async def _embed(self, request: Request, connection: Connection) -> None:
        if request.body.get("input") == "Hi" and not self._faults.fault_probe:  # the readiness probe of the adapters
            return await connection.send_whole(HTTPStatus.OK, answers.embeddings(request.body))
        with self.activity.generation():
            if not await self._fail_at_once(connection):
                await connection.send_whole(HTTPStatus.OK, answers.embeddings(request.body))
        return None

    async def _send_faultless(self, wanted: Generation, connection: Connection) -> None:
        await connection.send_whole(HTTPStatus.OK, wanted.whole())

    async def _generate(self, wanted: Generation, connection: Connection) -> None:
        if await self._fail_at_once(connection):
            return
        if wanted.is_streamed:
            await self._stream(wanted, connection)
        else:
            await self._send_slowly(wanted, connection)

    async def _fail_at_once(self, connection: Connection) -> bool:
        """Whether a fault took the place of the answer."""
        faults = self._faults
        if faults.stall_headers:
            await asyncio.Event().wait()
        if faults.garbage:
            await connection.send(b"\x16\x03\x01 this is not HTTP\r\n\r\n")
            connection.close()
        elif faults.garbage_body:
            await connection.send_whole(HTTPStatus.OK, "<html>this is not JSON")
        elif faults.status is not None:
            error = answers.error(faults.error_shape, faults.status, f"the fake engine answers {faults.status}")
            content_type = "text/plain" if isinstance(error, str) else "application/json"
            await connection.send_whole(faults.status, error, content_type=content_type)
        else:
            return False
        return True

    async def _stream(self, wanted: Generation, connection: Connection) -> None:
        await connection.begin_stream()
        for event in wanted.opening():
            await connection.send_event(event)
        for sent, word in enumerate(wanted.words()):
            if await self._break_stream(sent, connection):
                return
            await asyncio.sleep(self._faults.chunk_interval_s)
            await connection.send_event(wanted.piece(word))
        self._crash_if_due(wanted.tokens)
        for event in wanted.closing():
            await connection.send_event(event)
        await self._finish(connection)

    async def _break_stream(self, sent: int, connection: Connection) -> bool:
        """Whether the stream ended here, *sent* tokens in."""
        self._crash_if_due(sent)
        if sent != self._faults.break_after:
            return False
        if self._faults.stall_mid_stream:
            await asyncio.Event().wait()
        if self._faults.close_mid_stream:
            connection.close()
            return True
        if self._faults.error_mid_stream:
            error = answers.error("vllm", HTTPStatus.INTERNAL_SERVER_ERROR, "the fake engine failed in mid-stream")
            await connection.send_event(error)
            await self._finish(connection)
            return True
        return False

    async def _finish(self, connection: Connection) -> None:
        if not self._faults.no_done:
            await connection.send_event("[DONE]")
        await connection.end_stream()

    async def _send_slowly(self, wanted: Generation, connection: Connection) -> None:
        """The whole answer after the time its tokens take; broken in its middle where a stream would be."""
        self._crash_if_due(wanted.tokens)
        await asyncio.sleep(self._faults.chunk_interval_s * wanted.tokens)
        if self._faults.stall_mid_stream or self._faults.close_mid_stream:
            # The head promises more than will come.
            await connection.send(
                b'HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 4096\r\n\r\n{"id":'
            )
            if self._faults.stall_mid_stream:
                await asyncio.Event().wait()
            connection.close()
        elif self._faults.error_mid_stream:
            message = "the fake engine failed in mid-answer"
            error = answers.error(self._faults.error_shape, HTTPStatus.INTERNAL_SERVER_ERROR, message)
            await connection.send_whole(HTTPStatus.INTERNAL_SERVER_ERROR, error)
        else:
            await connection.send_whole(HTTPStatus.OK, wanted.whole())

    def _crash_if_due(self, sent: int) -> None:
        due = self._faults.crash_after_chunks
        if due is not None and sent >= due:
            os._exit(CRASH_EXIT_CODE)
