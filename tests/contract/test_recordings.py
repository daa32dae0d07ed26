"""What real engines answered, replayed through the real data path to the official client.

A loopback server answers with the recorded bytes, and a gateway stands before it: its front door, its admission, its
lease, its upstream connection, its relay. Only the adapter is not the engine's own but one for an external address that
speaks the engine's dialect. The request is a plain one of the same form (streamed or not, with usage or without), since
what is looked at is the answer: also that to a request which the gateway would not have let through.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
import uvicorn
import uvloop
import yaml
from openai import DefaultHttpxClient, OpenAI, Stream

from backends.dialect import Dialect
from backends.engines import ADAPTERS
from backends.engines.external import External
from backends.engines.lmdeploy_dialect import DIALECT as LMDEPLOY
from backends.engines.ollama_dialect import DIALECT as OLLAMA
from gateway.app import build, listen, uvicorn_config
from gateway.config_file import load_config

RECORDINGS = Path(__file__).parents[1] / "recordings"
DIALECTS = {"lmdeploy": LMDEPLOY, "ollama": OLLAMA}
READY_S = 20.0

CHAT, COMPLETIONS, EMBEDDINGS = "/v1/chat/completions", "/v1/completions", "/v1/embeddings"
PREFIXES = {CHAT: "chatcmpl-req-", COMPLETIONS: "cmpl-req-"}
FINISHES = {"stop", "length", "tool_calls"}
EXCEPTIONS = {400: openai.BadRequestError, 404: openai.NotFoundError}

Json = dict[str, Any]


class Recording:
    """One exchange."""

    def __init__(self, engine: str, line: str) -> None:
        exchange = json.loads(line)
        self.engine = engine
        self.name: str = exchange["name"]
        self.id = f"{engine}-{self.name}" + (f"-{exchange['label']}" if "label" in exchange else "")
        self.method: str = exchange["request"]["method"]
        self.path: str = exchange["request"]["path"]
        self.asked: Json = exchange["request"].get("body", {})
        self.status: int | None = exchange["response"]["status"]
        self.headers: Json = exchange["response"]["headers"]
        self.body: Any = exchange["response"].get("body")
        self.chunks: list[str] | None = exchange["response"].get("chunks")
        self.cut: str = exchange["response"].get("transport_error", "")

    @property
    def is_stream(self) -> bool:
        """Whether the answer is a stream of events."""
        return "event-stream" in str(self.headers.get("content-type"))

    @property
    def wants_usage(self) -> bool:
        """Whether the client asked for the usage of its stream."""
        return bool((self.asked.get("stream_options") or {}).get("include_usage"))

    def answer(self) -> Json:
        """The JSON of a whole answer."""
        found: Json = json.loads("".join(self.chunks)) if self.chunks is not None else self.body
        return found

    def events(self) -> list[Json]:
        """The JSON of every event, without [DONE]."""
        data = [event.removeprefix("data: ") for event in "".join(self.chunks or []).split("\n\n") if event]
        return [json.loads(text) for text in data if text != "[DONE]"]

    def left_out(self) -> str:
        """Why this one is not replayed; empty when it is."""
        if self.method != "POST":
            return "the gateway answers every other method itself"
        if self.cut.startswith(("TimeoutError", "client closed", "closed by the client")):
            return "its client left: there is no whole answer to look at"
        if "_debug_render_only" in self.asked:
            return "it asked for the rendered prompt, and is no answer of a model"
        return ""


def recordings() -> list[Recording]:
    """All of them."""
    files = [RECORDINGS / f"{engine}.jsonl" for engine in DIALECTS]
    return [Recording(file.stem, line) for file in files for line in file.read_text().splitlines()]


ALL = recordings()
REPLAYED = [recording for recording in ALL if not recording.left_out()]
ERRORS = [recording for recording in REPLAYED if recording.status is None or recording.status >= 400]
STREAMS = [recording for recording in REPLAYED if recording not in ERRORS and recording.is_stream]
WHOLE = [recording for recording in REPLAYED if recording not in ERRORS and not recording.is_stream]


class Replay:
    """A gateway before a server that answers with recordings, both on a loop of their own thread."""

    def __init__(self, folder: Path, dialect: Dialect, adapter: External | None = None) -> None:
        self.recording: Recording | None = None
        self.asked = b""
        """The body of the last request that came through the gateway."""
        self.port = 0
        self._folder = folder
        self._adapter = adapter or External()
        self._adapter.dialect = dialect
        self._is_ready = threading.Event()
        self._thread = threading.Thread(target=lambda: uvloop.run(self._run()))
        self._end: tuple[asyncio.AbstractEventLoop, asyncio.Event] | None = None

    def __enter__(self) -> Replay:
        self._thread.start()
        assert self._is_ready.wait(READY_S)
        return self

    def __exit__(self, *exc: object) -> None:
        assert self._end is not None
        loop, event = self._end
        loop.call_soon_threadsafe(event.set)
        self._thread.join(READY_S)
        assert not self._thread.is_alive()

    def client(self) -> OpenAI:
        """The official client; the caller closes it."""
        http = DefaultHttpxClient(trust_env=False)
        return OpenAI(base_url=f"http://127.0.0.1:{self.port}/v1", api_key="any", max_retries=0, http_client=http)

    async def _run(self) -> None:
        self._end = asyncio.get_running_loop(), asyncio.Event()
        engine = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        gateway = self._gateway(engine.sockets[0].getsockname()[1])
        listener = listen("127.0.0.1", 0)
        self.port = listener.getsockname()[1]
        server = uvicorn.Server(uvicorn_config(gateway.door))
        http = asyncio.create_task(server.serve(sockets=[listener]))
        try:
            await gateway.fleet.open()
            async with gateway.fleet.lease("public", READY_S):
                self._is_ready.set()
            await self._end[1].wait()
        finally:
            await gateway.fleet.close(0)
            server.should_exit = True
            await http
            await gateway.pool.aclose()
            engine.close()
            await engine.wait_closed()

    def _gateway(self, port: int) -> Any:
        model = {
            "engine": "external",
            "url": f"http://127.0.0.1:{port}/v1",
            "served_name": "smol",
            "readiness": "models",
        }
        settings = {"state_dir": str(self._folder), "access_log": False}
        file = self._folder / "unigate.yaml"
        models = {"public": model, "lenient": {**model, "unsupported_parameters": "ignore"}}
        file.write_text(yaml.safe_dump({"gateway": settings, "models": models}))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("gateway.app.ADAPTERS", {**ADAPTERS, "external": self._adapter})
            return build(load_config(file, {}))

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.closing(writer):
            head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
            length = next((line.split(":")[1] for line in head.split("\r\n") if line.startswith("content-length")), "0")
            self.asked = await reader.readexactly(int(length))
            answer = b'{"data":[{"id":"smol"}]}' if head.startswith("get") else None
            writer.write(_http(200, {}, [answer], "") if answer else _wire(self.recording))
            await writer.drain()


def _wire(recording: Recording | None) -> bytes:
    """The bytes of a recorded answer, as far as they came."""
    assert recording is not None
    if recording.status is None:
        return b""
    if recording.chunks is not None:
        pieces = [chunk.encode() for chunk in recording.chunks]
    else:
        body = recording.body
        text = body if isinstance(body, str) else json.dumps(body, ensure_ascii=False, separators=(",", ":"))
        pieces = [text.encode()] if text else []
    return _http(recording.status, recording.headers, pieces, recording.cut)


def _http(status: int, headers: Json, pieces: list[bytes], cut: str) -> bytes:
    lines = [f"HTTP/1.1 {status} Any", "transfer-encoding: chunked", "connection: close"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces)
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + chunks + (b"" if cut else b"0\r\n\r\n")


@pytest.fixture(scope="module")
def replays(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Replay]]:
    with contextlib.ExitStack() as stack:
        yield {
            engine: stack.enter_context(Replay(tmp_path_factory.mktemp(engine), dialect))
            for engine, dialect in DIALECTS.items()
        }


@pytest.fixture(scope="module")
def clients(replays: dict[str, Replay]) -> Iterator[dict[str, OpenAI]]:
    with contextlib.ExitStack() as stack:
        yield {engine: stack.enter_context(replay.client()) for engine, replay in replays.items()}


def ask(recording: Recording, replays: dict[str, Replay], clients: dict[str, OpenAI]) -> Any:
    """A plain request of the recorded one's form, answered with the recording."""
    replays[recording.engine].recording = recording
    client = clients[recording.engine]
    if recording.path == EMBEDDINGS:
        return client.embeddings.create(model="public", input="hi")
    options: Json = {}
    if recording.is_stream or recording.asked.get("stream") is True:
        options["stream"] = True
        if recording.wants_usage:
            options["stream_options"] = {"include_usage": True}
    if recording.path == CHAT:
        return client.chat.completions.create(model="public", messages=[{"role": "user", "content": "hi"}], **options)
    return client.completions.create(model="public", prompt="hi", **options)


def recorded_message(body: Any) -> str:
    """What an error says, however it is wrapped."""
    error = body.get("error", body.get("detail", body)) if isinstance(body, dict) else body
    text = error["message"] if isinstance(error, dict) else str(error)
    return recorded_message(json.loads(text)) if text.startswith("{") else text


def test_which_recordings_are_left_out() -> None:
    """All recordings of our routes are replayed but those that hold no answer of an engine to look at."""
    assert Counter(recording.left_out() for recording in ALL if recording.left_out()) == {
        "the gateway answers every other method itself": 4,
        "its client left: there is no whole answer to look at": 6,
        "it asked for the rendered prompt, and is no answer of a model": 3,
    }
    assert Counter(recording.engine for recording in REPLAYED) == {"lmdeploy": 99, "ollama": 132}


@pytest.mark.parametrize("recording", ERRORS, ids=lambda recording: recording.id)
def test_a_recorded_error(recording: Recording, replays: dict[str, Replay], clients: dict[str, OpenAI]) -> None:
    """An engine's refusal is the exception of its status, in our envelope, with the engine's own words."""
    # An engine that wants a key, or has died, is no fault of the client.
    status = 502 if recording.status in (None, 401, 403) else recording.status
    assert status is not None
    with pytest.raises(EXCEPTIONS.get(status, openai.InternalServerError)) as caught:
        ask(recording, replays, clients)
    assert caught.value.status_code == status
    error = caught.value.body
    assert isinstance(error, dict)
    assert set(error) == {"message", "type", "param", "code", "source"}
    assert error["source"] == "backend"
    assert caught.value.response.headers["x-unigate-engine"] == "external"
    if recording.status is None:
        assert error["code"] == "backend_broke_off"
    else:
        assert error["message"] == (recorded_message(recording.body) or f"the backend answered {recording.status}")
        assert error["code"] is None or not error["code"].isdigit()


@pytest.mark.parametrize("recording", WHOLE, ids=lambda recording: recording.id)
def test_a_recorded_answer(recording: Recording, replays: dict[str, Replay], clients: dict[str, OpenAI]) -> None:
    """A whole answer is what OpenAI's types say it is, under the model's public name, with its text and usage kept."""
    was = recording.answer()
    if any(choice.get("finish_reason") == "abort" for choice in was.get("choices", ())):
        with pytest.raises(openai.InternalServerError, match="before it was complete") as caught:
            ask(recording, replays, clients)
        assert (caught.value.status_code, caught.value.code) == (502, "backend_aborted")
        return
    answer = ask(recording, replays, clients)
    type(answer).model_validate(answer.to_dict())
    assert answer.model == "public"
    if recording.path == EMBEDDINGS:
        assert len(answer.data) == len(was["data"])
        assert all(isinstance(value, float) for row in answer.data for value in row.embedding)
        return
    assert answer.id.startswith(PREFIXES[recording.path])
    assert answer.usage.to_dict() == {
        name: count for name, count in was["usage"].items() if name in answer.usage.to_dict()
    }
    for choice, old in zip(answer.choices, was["choices"], strict=True):
        assert choice.finish_reason in FINISHES
        if recording.path == CHAT:
            assert choice.message.content == old["message"]["content"]
            assert (choice.message.tool_calls is None) == (not old["message"].get("tool_calls"))
            thinking = old["message"].get("reasoning_content", old["message"].get("reasoning"))
            assert getattr(choice.message, "reasoning_content", None) == thinking
        else:
            assert choice.text == old["text"]


@pytest.mark.parametrize("recording", STREAMS, ids=lambda recording: recording.id)
def test_a_recorded_stream(recording: Recording, replays: dict[str, Replay], clients: dict[str, OpenAI]) -> None:
    """A stream keeps its text and usage, has one id, one role and one public name, and ends as it truly ended."""
    stream = ask(recording, replays, clients)
    assert isinstance(stream, Stream)
    chunks, problem = drained(stream)
    events = recording.events()
    told = [event["error"] for event in events if "error" in event]
    reasons = [choice.get("finish_reason") for event in events for choice in event.get("choices", ())]
    if told:
        assert problem is not None
        assert problem.message == told[0]["message"]
    elif "abort" in reasons:
        assert problem is not None
        assert problem.code == "backend_aborted"
    elif recording.cut or not any(reasons):
        assert problem is not None
        assert problem.code == "backend_broke_off"
    else:
        assert problem is None
        assert [reason for reason in finishes(chunks) if reason] == [reason for reason in reasons if reason]
        usages = [event["usage"] for event in events if not event["choices"]]
        shown = [chunk["usage"] for chunk in chunks if not chunk["choices"]]
        assert shown == (usages if recording.wants_usage else [])
    assert texts(chunks) == texts(event for event in events if "choices" in event)
    assert {chunk["model"] for chunk in chunks} <= {"public"}
    assert len({chunk["id"] for chunk in chunks}) <= 1
    assert all(chunk["id"].startswith(PREFIXES[recording.path]) for chunk in chunks)
    assert not any(chunk.get("usage") for chunk in chunks if chunk["choices"])
    roles = Counter(
        choice["index"] for chunk in chunks for choice in chunk["choices"] if "role" in choice.get("delta", {})
    )
    assert set(roles.values()) <= {1}


def drained(stream: Stream[Any]) -> tuple[list[Json], openai.APIError | None]:
    """Every chunk, valid by OpenAI's types, and the error at the end if there is one."""
    chunks = []
    try:
        for chunk in stream:
            # A completion's chunk has the type of a whole one, whose finish reason may not be null.
            if chunk.object == "chat.completion.chunk":
                type(chunk).model_validate(chunk.to_dict())
            chunks.append(chunk.to_dict())
    except openai.APIError as problem:
        return chunks, problem
    return chunks, None


def texts(chunks: Any) -> Counter[Any]:
    """All output of a stream: the text of each choice and field, put together."""
    found: dict[Any, str] = {}
    for chunk in chunks:
        for choice in chunk["choices"]:
            fields = {**choice, **choice.get("delta", {})}
            calls = [(call["index"], call["function"]) for call in fields.get("tool_calls", ())]
            pieces = [(index, function.get("arguments")) for index, function in calls]
            pieces += [(name, fields.get(name)) for name in ("content", "text", "reasoning_content")]
            for field, piece in pieces:
                if piece:
                    key = choice["index"], field
                    found[key] = found.get(key, "") + piece
    return Counter(found.items())


def finishes(chunks: list[Json]) -> list[str | None]:
    """The finish reasons in their order."""
    return [choice.get("finish_reason") for chunk in chunks for choice in chunk["choices"]]


def test_ids_do_not_repeat(replays: dict[str, Replay], clients: dict[str, OpenAI]) -> None:
    """Two answers never have one id, though their engine gave them one."""
    recording = next(recording for recording in WHOLE if recording.name == "41-completions")
    assert recording.answer()["id"] == "-1"
    assert len({ask(recording, replays, clients).id for _ in range(10)}) == 10


def test_a_parameter_that_is_not_honoured(replays: dict[str, Replay], clients: dict[str, OpenAI]) -> None:
    """It is refused by its name, before the engine is asked; or, by configuration, left out and told in a header."""
    replays["ollama"].recording = next(recording for recording in WHOLE if recording.name == "57-v1-chat-n2")
    completions = clients["ollama"].chat.completions
    messages: Any = [{"role": "user", "content": "hi"}]
    with pytest.raises(openai.BadRequestError, match="does not honour n, logit_bias: leave them out") as caught:
        completions.create(model="public", messages=messages, n=2, logit_bias={"1": 1})
    assert (caught.value.param, caught.value.code) == ("n", "unsupported_parameter")
    raw = completions.with_raw_response.create(
        model="lenient", messages=messages, n=2, logit_bias={"1": 1}, max_completion_tokens=4
    )
    assert raw.headers["x-unigate-ignored-params"] == "n, logit_bias"
    assert len(raw.parse().choices) == 1
    forwarded = {"model": "smol", "messages": messages, "max_tokens": 4}
    assert json.loads(replays["ollama"].asked) == forwarded


def test_deltas_add_up(replays: dict[str, Replay], clients: dict[str, OpenAI]) -> None:
    """The client's own adding up of LMDeploy's deltas gives one message with one role."""
    recording = next(recording for recording in STREAMS if recording.name == "04-chat-stream")
    replays["lmdeploy"].recording = recording
    messages: Any = [{"role": "user", "content": "hi"}]
    with clients["lmdeploy"].chat.completions.stream(model="public", messages=messages) as stream:
        message = stream.get_final_completion().choices[0].message
    assert (message.role, message.content) == ("assistant", "The capital of France is Paris.")
