"""What the real Ollama answered in its own API, replayed through the real data path to the official client."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from openai import OpenAI, Stream

from backends.engines.external import External
from backends.engines.ollama import Ollama
from backends.engines.ollama_dialect import DIALECT
from backends.settings import BackendSettings
from backends.translation import Translated
from tests.contract.test_recordings import Recording, Replay, drained, finishes, recorded_message, texts

RECORDINGS = Path(__file__).parents[1] / "recordings" / "ollama_native.jsonl"
ENDPOINTS = {"/api/chat": "chat", "/api/generate": "completions", "/api/embed": "embeddings"}
EXCEPTIONS = {400: openai.BadRequestError}
NOT_FOUND = 404

Json = dict[str, Any]


class Native(External):
    """An external address that is spoken to in Ollama's own API, for every kind of answer."""

    dialect = DIALECT

    def translate(self, backend: BackendSettings, endpoint: str, body: Json) -> Translated | None:
        """As the Ollama adapter does."""
        readiness: Any = "embed" if endpoint == "embeddings" else "generate"
        return Ollama().translate(BackendSettings(name="public", engine="ollama", readiness=readiness), endpoint, body)


def left_out(recording: Recording) -> bool:
    """Whether this is no answer of a model: a load, a rendered prompt, another route, or one whose client left."""
    whole = recording.body if isinstance(recording.body, dict) else {}
    return (
        recording.path not in ENDPOINTS
        or whole.get("done_reason") in ("load", "unload")
        or "_debug_info" in whole
        or recording.cut.startswith(("TimeoutError", "client closed", "closed by the client"))
    )


ALL = [Recording("ollama_native", line) for line in RECORDINGS.read_text().splitlines()]
REPLAYED = [recording for recording in ALL if not left_out(recording)]
ERRORS = [recording for recording in REPLAYED if recording.status is None or recording.status >= 400]
STREAMS = [recording for recording in REPLAYED if recording not in ERRORS and recording.chunks is not None]
WHOLE = [recording for recording in REPLAYED if recording not in ERRORS and recording.chunks is None]


@pytest.fixture(scope="module")
def replay(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Replay]:
    with Replay(tmp_path_factory.mktemp("native"), DIALECT, Native()) as running:
        yield running


@pytest.fixture(scope="module")
def client(replay: Replay) -> Iterator[OpenAI]:
    with replay.client() as made:
        yield made


def ask(recording: Recording, replay: Replay, client: OpenAI) -> Any:
    """A plain request of the recorded one's form, answered with the recording."""
    replay.recording = recording
    kind = ENDPOINTS[recording.path]
    if kind == "embeddings":
        return client.embeddings.create(model="public", input="hi", encoding_format="float")
    options: Json = {"stream": True, "stream_options": {"include_usage": True}} if recording in STREAMS else {}
    if kind == "chat":
        return client.chat.completions.create(model="public", messages=[{"role": "user", "content": "hi"}], **options)
    return client.completions.create(model="public", prompt="hi", **options)


def lines(recording: Recording) -> list[Json]:
    """The JSON of every line of a stream; those that were lost in its middle are lost."""
    texts_ = "".join(recording.chunks or ()).split("\n")
    return [json.loads(line) for line in texts_ if line.startswith("{")]


def native_text(line: Json) -> str:
    """The text of one answer or line."""
    text: str = line.get("message", {}).get("content", "") if "message" in line else line.get("response", "")
    return text


def test_there_are_enough() -> None:
    """Whole answers, streams and errors are all replayed."""
    assert min(len(WHOLE), len(STREAMS), len(ERRORS)) >= 4


@pytest.mark.parametrize("recording", ERRORS, ids=lambda recording: recording.id)
def test_a_recorded_error(recording: Recording, replay: Replay, client: OpenAI) -> None:
    """A refusal is told in our envelope with Ollama's words; that it lost a model of ours is no fault of the client."""
    status = 502 if recording.status in (None, NOT_FOUND) else recording.status
    assert status is not None
    with pytest.raises(EXCEPTIONS.get(status, openai.InternalServerError)) as caught:
        ask(recording, replay, client)
    assert caught.value.status_code == status
    error: Any = caught.value.body
    assert error["source"] == "backend"
    if recording.status is not None:
        assert error["message"] == recorded_message(recording.body)


@pytest.mark.parametrize("recording", WHOLE, ids=lambda recording: recording.id)
def test_a_recorded_answer(recording: Recording, replay: Replay, client: OpenAI) -> None:
    """A whole answer is what OpenAI's types say it is, with its text, its reason and its counts."""
    was = recording.answer()
    answer = ask(recording, replay, client)
    type(answer).model_validate(answer.to_dict())
    assert answer.model == "public"
    if "embeddings" in was:
        assert [row.embedding for row in answer.data] == was["embeddings"]
        assert answer.usage.prompt_tokens == was["prompt_eval_count"]
        return
    (choice,) = answer.choices
    calls = was.get("message", {}).get("tool_calls")
    assert choice.finish_reason == ("tool_calls" if calls else was["done_reason"])
    assert (choice.message.content if hasattr(choice, "message") else choice.text) == (native_text(was) or None)
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (was["prompt_eval_count"], was["eval_count"])
    assert answer.id.startswith(("chatcmpl-req-", "cmpl-req-"))
    if calls:
        (call,) = choice.message.tool_calls
        assert json.loads(call.function.arguments) == calls[0]["function"]["arguments"]


@pytest.mark.parametrize("recording", STREAMS, ids=lambda recording: recording.id)
def test_a_recorded_stream(recording: Recording, replay: Replay, client: OpenAI) -> None:
    """A stream keeps its text; a runner that died is an error in it; a whole one has a reason and its usage."""
    stream = ask(recording, replay, client)
    assert isinstance(stream, Stream)
    chunks, problem = drained(stream)
    was = lines(recording)
    told = [line["error"] for line in was if "error" in line]
    if told:
        assert problem is not None
        assert problem.message == told[0]
    elif not was[-1].get("done"):
        assert problem is not None
    else:
        assert problem is None
        has_calls = any(line.get("message", {}).get("tool_calls") for line in was)
        assert [reason for reason in finishes(chunks) if reason] == [
            "tool_calls" if has_calls else was[-1]["done_reason"]
        ]
        (usage,) = [chunk["usage"] for chunk in chunks if not chunk["choices"]]
        assert (usage["prompt_tokens"], usage["completion_tokens"]) == (
            was[-1]["prompt_eval_count"],
            was[-1]["eval_count"],
        )
    shown = texts(chunks)
    assert "".join(text for ((_, field), text) in shown if field in ("content", "text")) == "".join(
        native_text(line) for line in was
    )
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert {chunk["model"] for chunk in chunks} == {"public"}
