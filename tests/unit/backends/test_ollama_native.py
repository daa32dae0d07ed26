"""OpenAI's requests in Ollama's own API, and its answers in OpenAI's."""

from __future__ import annotations

import base64
import json
import struct
from typing import Any

import pytest

from backends.engines.ollama_native import translate
from backends.settings import BackendSettings
from backends.translation import AnswerTranslation, Untranslatable

CHAT, COMPLETIONS, EMBEDDINGS = "chat/completions", "completions", "embeddings"
PLAIN = BackendSettings(name="m", engine="ollama")
EMBEDDER = BackendSettings(name="m", engine="ollama", readiness="embed")
HI = [{"role": "user", "content": "hi"}]
PNG = "data:image/png;base64,aGk="
DATA_HEAD = {"model": "m", "created_at": "2026-11-24T02:56:16.47210346Z"}

Json = dict[str, Any]


def chat(backend: BackendSettings = PLAIN, **fields: Any) -> Json:
    """The native body of a chat request with *fields*."""
    translated = translate(backend, CHAT, {"model": "m", "messages": HI, **fields})
    assert translated.target == "/api/chat"
    return translated.body


def generate(**fields: Any) -> Json:
    """The native body of a completion request."""
    translated = translate(PLAIN, COMPLETIONS, {"model": "m", "prompt": "hi", **fields})
    assert translated.target == "/api/generate"
    return translated.body


def refusal(endpoint: str = CHAT, backend: BackendSettings = PLAIN, **fields: Any) -> Untranslatable:
    """Why such a request is refused."""
    wholes: dict[str, Json] = {CHAT: {"messages": HI}, COMPLETIONS: {"prompt": "hi"}, EMBEDDINGS: {"input": "hi"}}
    with pytest.raises(Untranslatable) as caught:
        translate(backend, endpoint, {"model": "m", **wholes[endpoint], **fields})
    return caught.value


def answer(endpoint: str = CHAT, *, stream: bool = False) -> AnswerTranslation:
    """A fresh reader of an answer."""
    return translate(PLAIN, endpoint, {"model": "m", "messages": HI, "prompt": "hi", "stream": stream}).answer


def whole(line: Json, endpoint: str = CHAT) -> Json:
    """A whole answer, translated."""
    shown: Json = json.loads(answer(endpoint).whole(json.dumps({**DATA_HEAD, "done": True, **line}).encode()))
    return shown


def streamed(*lines: Json, endpoint: str = CHAT) -> list[Any]:
    """A stream's events, translated."""
    text = "".join(json.dumps({**DATA_HEAD, **line}) + "\n" for line in lines)
    return events(answer(endpoint, stream=True).feed(text.encode()))


def events(raw: bytes) -> list[Any]:
    """The data of each event."""
    data = [event.removeprefix(b"data: ") for event in raw.split(b"\n\n") if event]
    return [text.decode() if text == b"[DONE]" else json.loads(text) for text in data]


# requests


@pytest.mark.parametrize("body", [chat(), generate(), chat(stream=True)], ids=["chat", "completion", "stream"])
def test_nothing_is_cut_nor_unloaded(body: Json) -> None:
    """Every request forbids cutting and shifting, and keeps the model where it is."""
    assert (body["truncate"], body["shift"], body["keep_alive"]) == (False, False, -1)
    assert "num_ctx" not in body["options"]


def test_the_stream_is_always_said() -> None:
    """Left out, Ollama would stream."""
    assert chat()["stream"] is False
    assert chat(stream=True)["stream"] is True


def test_an_answer_is_bounded_by_its_context() -> None:
    """Without max_tokens the context is the bound; max_tokens wins, and so does the operator's num_predict."""
    bounded = BackendSettings(name="m", engine="ollama", context_length=512)
    assert chat(bounded)["options"] == {"num_predict": 512}
    assert chat(bounded, max_tokens=7)["options"] == {"num_predict": 7}
    assert chat(PLAIN)["options"] == {}
    own = BackendSettings(name="m", engine="ollama", context_length=512, args={"num_predict": 9})
    assert chat(own)["options"] == {}


def test_sampling_parameters_become_options() -> None:
    """Each under Ollama's name and of the kind it wants."""
    asked: Json = {
        "max_tokens": 3, "temperature": 0, "top_p": 1, "top_k": 4, "min_p": 0.1, "seed": 5, "frequency_penalty": 1,
        "presence_penalty": -1, "repetition_penalty": 1.1, "stop": "x",
    }  # fmt: skip
    assert chat(**asked)["options"] == {
        "num_predict": 3, "temperature": 0.0, "top_p": 1.0, "top_k": 4, "min_p": 0.1, "seed": 5,
        "frequency_penalty": 1.0, "presence_penalty": -1.0, "repeat_penalty": 1.1, "stop": ["x"],
    }  # fmt: skip
    assert chat(stop=["a", "b"])["options"]["stop"] == ["a", "b"]


@pytest.mark.parametrize("wrong", [{"temperature": "hot"}, {"seed": 1.5}, {"max_tokens": True}, {"stop": [1]}])
def test_a_parameter_of_the_wrong_kind(wrong: Json) -> None:
    """It is the client's fault and told by its name, where Ollama would answer 500."""
    problem = refusal(**wrong)
    assert (problem.param, problem.code) == (next(iter(wrong)), "invalid_type")


def test_a_completion_is_sent_as_it_is() -> None:
    """No template is applied to a prompt."""
    body = generate(prompt="<|im_start|>x", logprobs=2)
    assert (body["prompt"], body["raw"], body["logprobs"], body["top_logprobs"]) == ("<|im_start|>x", True, True, 2)
    assert generate(prompt=["one"])["prompt"] == "one"


@pytest.mark.parametrize("prompt", ["", ["a", "b"], [1, 2], [[1]], None, 5])
def test_prompts_that_cannot_be_sent(prompt: object) -> None:
    """Tokens, several prompts, and the empty one, which would only load the model."""
    assert refusal(COMPLETIONS, prompt=prompt).param == "prompt"


def test_parts_of_a_message() -> None:
    """Texts become lines of one message, images its images without their data URL."""
    parts = [
        {"type": "text", "text": "a"},
        {"type": "image_url", "image_url": {"url": PNG}},
        {"type": "text", "text": "b"},
    ]
    (message,) = chat(messages=[{"role": "user", "content": parts}])["messages"]
    assert message == {"role": "user", "content": "a\nb", "images": ["aGk="]}


@pytest.mark.parametrize(
    ("part", "word"),
    [
        ({"type": "image_url", "image_url": {"url": "https://a.b/c.png"}}, "https://a.b/c.png"),
        ({"type": "image_url", "image_url": "data:image/tiff;base64,aGk="}, "cannot be read"),
        ({"type": "image_url", "image_url": {}}, "cannot be read"),
        ({"type": "input_audio", "input_audio": {}}, "neither text nor an image"),
        ("text", "neither text nor an image"),
    ],
)
def test_parts_that_cannot_be_sent(part: object, word: str) -> None:
    """An image at an address is not fetched, and says so with the address; other kinds are named by their place."""
    problem = refusal(messages=[*HI, {"role": "user", "content": [part]}])
    assert word in str(problem)
    assert "messages[1]" in str(problem)


def test_tool_calls_of_a_history() -> None:
    """Arguments become an object, and a tool's answer gets the name of the function that was called."""
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}}
    history = [
        {"role": "assistant", "content": None, "tool_calls": [call], "reasoning": "hm"},
        {"role": "tool", "tool_call_id": "c1", "content": "12:00"},
    ]
    assert chat(messages=history)["messages"] == [
        {
            "role": "assistant",
            "content": "",
            "thinking": "hm",
            "tool_calls": [{"id": "c1", "function": {"name": "f", "arguments": {"a": 1}}}],
        },
        {"role": "tool", "content": "12:00", "tool_call_id": "c1", "tool_name": "f"},
    ]


@pytest.mark.parametrize(
    "messages",
    [
        [], "hi", None, [5], [{"content": "x"}], [{"role": "user"}], [{"role": "user", "content": 5}],
        [{"role": "assistant", "tool_calls": ["x"]}],
        [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{bad"}}]}],
        [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "[]"}}]}],
    ],
)  # fmt: skip
def test_messages_that_cannot_be_sent(messages: object) -> None:
    """What is no conversation is told before the engine sees it; an empty one would only load the model."""
    problem = refusal(messages=messages)
    assert (problem.param, problem.code) == ("messages", "invalid_type")


def test_a_developer_is_the_system() -> None:
    """OpenAI's newer word for it, which Ollama would render as a role of its own."""
    assert chat(messages=[{"role": "developer", "content": "x"}])["messages"] == [{"role": "system", "content": "x"}]


@pytest.mark.parametrize(
    ("wanted", "format_"),
    [
        ({"type": "text"}, None),
        ({"type": "json_object"}, "json"),
        ({"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "object"}}}, {"type": "object"}),
    ],
)
def test_response_formats(wanted: Json, format_: object) -> None:
    """JSON mode and JSON schema are asked for by `format`."""
    assert chat(response_format=wanted).get("format") == format_


@pytest.mark.parametrize("wanted", [{"type": "xml"}, {"type": "json_schema"}, "json", {}])
def test_response_formats_that_are_none(wanted: object) -> None:
    """They are refused, where Ollama would answer freely."""
    assert refusal(response_format=wanted).param == "response_format"


@pytest.mark.parametrize(
    ("asked", "think"),
    [
        ({}, None),
        ({"reasoning_effort": "none"}, False),
        ({"reasoning_effort": "minimal"}, "low"),
        ({"reasoning": {"effort": "high"}}, "high"),
        ({"chat_template_kwargs": {"enable_thinking": False}}, False),
        ({"chat_template_kwargs": {}}, None),
    ],
)
def test_reasoning(asked: Json, think: object) -> None:
    """An effort, or the variable that other engines' templates have, is Ollama's `think`."""
    assert chat(**asked).get("think") == think


def test_reasoning_that_is_none() -> None:
    """An unknown effort and unknown template variables are refused by name."""
    assert refusal(reasoning_effort="huge").param == "reasoning_effort"
    assert "date" in str(refusal(chat_template_kwargs={"date": 1}))


def test_embeddings() -> None:
    """A text or several, not cut; as floats or, as the official client asks, in base64."""
    translated = translate(EMBEDDER, EMBEDDINGS, {"model": "m", "input": "hi", "dimensions": 2})
    expected = {"model": "m", "input": ["hi"], "truncate": False, "keep_alive": -1, "dimensions": 2}
    assert (translated.target, translated.body) == ("/api/embed", expected)
    told = b'{"model":"m","embeddings":[[0.5,1.0]],"prompt_eval_count":3}'
    shown = json.loads(translated.answer.whole(told))
    assert shown["data"] == [{"object": "embedding", "index": 0, "embedding": [0.5, 1.0]}]
    assert shown["usage"] == {"prompt_tokens": 3, "total_tokens": 3}
    coded = translate(EMBEDDER, EMBEDDINGS, {"model": "m", "input": ["hi"], "encoding_format": "base64"}).answer
    (row,) = json.loads(coded.whole(told))["data"]
    assert struct.unpack("<2f", base64.b64decode(row["embedding"])) == (0.5, 1.0)


@pytest.mark.parametrize("given_", ["", [], [""], [1, 2], None, ["a", 5]])
def test_embeddings_of_nothing(given_: object) -> None:
    """Tokens and empty texts, which Ollama would answer with no embedding at all."""
    assert refusal(EMBEDDINGS, EMBEDDER, input=given_).param == "input"


def test_embeddings_of_a_chat_model() -> None:
    """They are refused at once: asked of Ollama, they would start its runner anew."""
    assert refusal(EMBEDDINGS).code == "endpoint_not_supported"


# answers


def test_a_whole_chat() -> None:
    """Text, thinking, reason and usage, with the time of the answer."""
    shown = whole(
        {"message": {"role": "assistant", "content": "hi", "thinking": "hm"}, "done_reason": "length",
         "prompt_eval_count": 2, "eval_count": 3}
    )  # fmt: skip
    assert shown["object"] == "chat.completion"
    assert shown["created"] == 1795488976
    assert shown["choices"] == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "hi", "reasoning_content": "hm"},
            "logprobs": None,
            "finish_reason": "length",
        }
    ]
    assert shown["usage"] == {"prompt_tokens": 2, "completion_tokens": 3, "total_tokens": 5}


@pytest.mark.parametrize("raw", [b"", b"[]", b"{", b'{"done":false}', b'{"done":true', b'"x"'])
def test_an_answer_that_is_not_whole(raw: bytes) -> None:
    """Half an answer is none."""
    with pytest.raises(Untranslatable):
        answer().whole(raw)


def test_tool_calls_finish_with_their_reason() -> None:
    """Ollama says stop; OpenAI says tool_calls, with arguments as text."""
    call = {"id": "call_1", "function": {"index": 0, "name": "f", "arguments": {"tz": "UTC"}}}
    message = {"role": "assistant", "content": "", "tool_calls": [call]}
    (choice,) = whole({"message": message, "done_reason": "stop"})["choices"]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"] is None
    assert choice["message"]["tool_calls"] == [
        {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": '{"tz":"UTC"}'}}
    ]
    first, last, _, done = streamed(
        {"message": message, "done": False},
        {"message": {"role": "assistant", "content": ""}, "done": True, "done_reason": "stop"},
    )
    assert first["choices"][0]["delta"]["tool_calls"][0]["index"] == 0
    assert last["choices"][0]["finish_reason"] == "tool_calls"
    assert done == "[DONE]"


def test_a_stream_has_one_role_a_finish_and_its_usage() -> None:
    """The role comes with the first delta; thinking and text of one line are two chunks."""
    shown = streamed(
        {"message": {"role": "assistant", "thinking": "hm", "content": "a"}, "done": False},
        {"message": {"role": "assistant", "content": "b"}, "done": False},
        {"message": {"content": ""}, "done": True, "done_reason": "stop", "prompt_eval_count": 2, "eval_count": 3},
    )
    deltas = [chunk["choices"][0]["delta"] for chunk in shown[:4]]
    assert deltas == [{"role": "assistant", "reasoning_content": "hm"}, {"content": "a"}, {"content": "b"}, {}]
    assert shown[3]["choices"][0]["finish_reason"] == "stop"
    assert shown[4]["choices"] == []
    assert shown[4]["usage"] == {"prompt_tokens": 2, "completion_tokens": 3, "total_tokens": 5}
    assert shown[5] == "[DONE]"


def test_a_runner_that_dies_ends_the_stream_in_an_error() -> None:
    """The error line becomes an error event, and nothing follows it."""
    shown = streamed({"message": {"content": "a"}, "done": False}, {"error": "runner"}, {"message": {"content": "b"}})
    assert [list(event) for event in shown][1] == ["error"]
    assert shown[1]["error"]["message"] == "runner"
    assert len(shown) == 2


@pytest.mark.parametrize("raw", [b"garbage\n", b"[1]\n", b"x" * (17 * 1024 * 1024)])
def test_lines_that_cannot_be_read(raw: bytes) -> None:
    """What is no JSON object, or has no end, is an error event, not silence."""
    (event,) = events(answer(stream=True).feed(raw))
    assert "error" in event


def test_logprobs() -> None:
    """A chat's come in rows, a completion's in columns with the place of each token in the text."""
    entries = [{"token": "I", "logprob": -2.1, "bytes": [73], "top_logprobs": [{"token": "I", "logprob": -2.1}]}]
    (choice,) = whole({"message": {"content": "I"}, "logprobs": entries})["choices"]
    assert choice["logprobs"]["content"][0]["top_logprobs"] == [{"bytes": None, "token": "I", "logprob": -2.1}]
    lines = [{"response": "ab", "logprobs": [{"token": "ab", "logprob": -1}], "done": False}] * 2
    shown = streamed(*lines, endpoint=COMPLETIONS)
    assert [chunk["choices"][0]["logprobs"]["text_offset"] for chunk in shown] == [[0], [2]]
