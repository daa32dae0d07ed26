"""Requests as engines understand them, answers as OpenAI's clients do."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backends.dialect import CHAT, COMPLETIONS, OPENAI, Dialect
from backends.engines import ADAPTERS
from backends.engines.lmdeploy_dialect import DIALECT as LMDEPLOY
from backends.engines.ollama_dialect import DIALECT as OLLAMA
from gateway.errors import BadGateway, BadRequest, translate
from gateway.normalisation import Appearance, Normaliser, appearance, normalise_request
from gateway.sse import DONE
from gateway.stream_watch import LESSONS, StreamWatch

VLLM, LLAMACPP, EXTERNAL = (ADAPTERS[engine].dialect for engine in ("vllm", "llamacpp", "external"))
EVERY = {"vllm": VLLM, "llamacpp": LLAMACPP, "external": EXTERNAL, "lmdeploy": LMDEPLOY, "ollama": OLLAMA}

Json = dict[str, Any]


def asked(dialect: Dialect, endpoint: str = CHAT, *, ignores: bool = False, **body: Any) -> Json:
    """What is forwarded of a request with *body*."""
    return normalise_request(body, dialect, endpoint, ignores=ignores).body


# requests


@pytest.mark.parametrize("dialect", EVERY.values(), ids=EVERY)
def test_a_plain_request_is_forwarded_as_it_is(dialect: Dialect) -> None:
    """What every engine understands reaches it unchanged."""
    body: Json = {
        "model": "m",
        "messages": [{"role": "user", "content": "hi"}],
        "temperature": 0,
        "max_tokens": 4,
        "n": 1,
    }
    forwarded = asked(dialect, **body)
    assert {**forwarded, "n": 1} == body


def test_the_clients_body_is_not_touched() -> None:
    """The forwarded body is another one, with other messages."""
    body = {"n": 1, "max_completion_tokens": 3, "messages": [{"role": "assistant", "reasoning_content": "hm"}]}
    before = json.dumps(body)
    normalise_request(body, OLLAMA, CHAT, ignores=True)
    assert json.dumps(body) == before


def test_null_is_left_out() -> None:
    """Null, OpenAI's word for a default, reaches no engine: llama.cpp refuses it, LMDeploy fails on it."""
    assert asked(LLAMACPP, COMPLETIONS, prompt="hi", best_of=None, n=None) == {"prompt": "hi"}


@pytest.mark.parametrize(
    ("dialect", "endpoint", "body", "names"),
    [
        (OLLAMA, CHAT, {"n": 2}, ["n"]),
        (OLLAMA, CHAT, {"n": 1, "logit_bias": {}, "tool_choice": "auto"}, []),
        (OLLAMA, CHAT, {"tool_choice": "required"}, ["tool_choice"]),
        (OLLAMA, CHAT, {"tool_choice": {"type": "function", "function": {"name": "f"}}}, ["tool_choice"]),
        (OLLAMA, CHAT, {"logit_bias": {"7": 1}, "top_k": 5}, ["logit_bias"]),
        (OLLAMA, CHAT, {"presence_penalty": 1, "frequency_penalty": 1, "logprobs": True}, []),
        (OLLAMA, COMPLETIONS, {"logprobs": 1, "echo": True, "suffix": "x"}, ["echo", "suffix"]),
        (LMDEPLOY, CHAT, {"presence_penalty": 0.5, "frequency_penalty": 0.0}, ["presence_penalty"]),
        (LMDEPLOY, CHAT, {"n": 2, "logit_bias": {"7": 1}, "logprobs": True}, []),
        (LMDEPLOY, COMPLETIONS, {"n": 2, "echo": False, "logprobs": 0}, ["n", "logprobs"]),
        (LLAMACPP, COMPLETIONS, {"best_of": 2, "suffix": "x"}, ["best_of", "suffix"]),
        (LLAMACPP, CHAT, {"n": 2, "best_of": 2}, []),
        (VLLM, CHAT, {"guided_json": {}}, ["guided_json"]),
        (VLLM, CHAT, {"n": 2, "logit_bias": {"7": 1}, "tool_choice": "required", "top_k": 5}, []),
        (EXTERNAL, CHAT, {"n": 2, "guided_json": {}, "anything": 1}, []),
    ],
)
def test_what_an_engine_does_not_honour(dialect: Dialect, endpoint: str, body: Json, names: list[str]) -> None:
    """A parameter that would be dropped is refused by its name, or left out and reported; its default is neither."""
    found = normalise_request(body, dialect, endpoint, ignores=True)
    assert list(found.ignored) == names
    assert not set(names) & set(found.body)
    if not names:
        normalise_request(body, dialect, endpoint, ignores=False)
        return
    with pytest.raises(BadRequest) as caught:
        normalise_request(body, dialect, endpoint, ignores=False)
    assert (caught.value.status, caught.value.code, caught.value.param) == (400, "unsupported_parameter", names[0])
    assert ", ".join(names) in caught.value.message


def test_parameters_by_another_name() -> None:
    """A parameter that the engine calls otherwise is renamed, and wins over the old name."""
    assert asked(OLLAMA, max_completion_tokens=4) == {"max_tokens": 4}
    assert asked(OLLAMA, max_completion_tokens=4, max_tokens=9) == {"max_tokens": 4}
    assert asked(VLLM, max_completion_tokens=4) == {"max_completion_tokens": 4}
    assert asked(LLAMACPP, repetition_penalty=1.1) == {"repeat_penalty": 1.1}


def test_no_tool_call_means_no_tools() -> None:
    """tool_choice: none keeps its meaning where it is not known: the tools are withheld."""
    body: Json = {"tool_choice": "none", "tools": [{"type": "function"}], "parallel_tool_calls": False}
    assert asked(OLLAMA, **body) == {}
    assert asked(VLLM, **body) == body


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
@pytest.mark.parametrize("value", [0, -1])
def test_no_tokens_are_not_endless_tokens(name: str, value: int) -> None:
    """Ollama takes 0 and less for "no limit"; here it is refused, as OpenAI refuses it, whatever is ignored."""
    with pytest.raises(BadRequest, match=f"{name} must be at least 1, not {value}") as caught:
        normalise_request({name: value}, OLLAMA, CHAT, ignores=True)
    assert (caught.value.param, caught.value.code) == (name, "integer_below_min_value")


@pytest.mark.parametrize("written", ["reasoning", "reasoning_content"])
@pytest.mark.parametrize(
    ("dialect", "read"), [(OLLAMA, "reasoning"), (LMDEPLOY, "reasoning_content"), (LLAMACPP, "reasoning_content")]
)
def test_thinking_in_the_history(dialect: Dialect, read: str, written: str) -> None:
    """Earlier thinking reaches the engine in the field it reads, whichever the client wrote."""
    user = {"role": "user", "content": "hi"}
    answer = {"role": "assistant", "content": "4", written: "hm"}
    expected = {"role": "assistant", "content": "4", read: "hm"}
    assert asked(dialect, messages=[user, answer, "odd"])["messages"] == [user, expected, "odd"]


def test_both_kinds_of_thinking_in_the_history() -> None:
    """Of two fields the engine's own is kept, the other dropped; null is none; both pass where both are read."""
    both = {"role": "assistant", "reasoning": "a", "reasoning_content": "b"}
    assert asked(OLLAMA, messages=[both])["messages"] == [{"role": "assistant", "reasoning": "a"}]
    null = {"role": "assistant", "reasoning_content": None}
    assert asked(OLLAMA, messages=[null])["messages"] == [{"role": "assistant"}]
    assert asked(VLLM, messages=[both])["messages"] == [both]
    assert asked(OLLAMA, messages="hi")["messages"] == "hi"


# answers


def look(dialect: Dialect, endpoint: str = CHAT, served_name: str = "m") -> Appearance:
    """The appearance of an answer of the model m."""
    return appearance(dialect, endpoint, model="m", served_name=served_name, upstream_id="req-1-abc")


def test_when_an_answer_is_renamed() -> None:
    """Public names and own ids are given where the engine's differ or collide, and nowhere else."""
    assert look(VLLM) == Appearance(VLLM)
    assert look(VLLM, served_name="x") == Appearance(VLLM, model="m")
    assert look(OLLAMA) == Appearance(OLLAMA, model="m", answer_id="chatcmpl-req-1-abc")
    assert look(LMDEPLOY, COMPLETIONS) == Appearance(LMDEPLOY, model="m", answer_id="cmpl-req-1-abc")
    assert [look(EVERY[engine]).edits_every_chunk for engine in EVERY] == [False, False, False, True, True]
    assert look(VLLM, served_name="x").edits_every_chunk


def test_a_whole_answer_of_vllm() -> None:
    """vLLM's reasoning gets our name; an answer without any is not changed at all, null fields included."""
    message: Json = {"role": "assistant", "content": "4", "reasoning": "hm"}
    answer = {"id": "x", "model": "m", "choices": [{"message": message, "finish_reason": "stop"}]}
    assert Normaliser(look(VLLM)).whole(answer)
    assert message == {"role": "assistant", "content": "4", "reasoning_content": "hm"}
    message["reasoning"] = None
    assert not Normaliser(look(VLLM)).whole(answer)


def test_two_kinds_of_thinking_in_an_answer() -> None:
    """An answer with both fields keeps ours as it is, and has one in the end."""
    message = {"reasoning": "a", "reasoning_content": "b"}
    Normaliser(look(EXTERNAL)).whole({"choices": [{"message": message}]})
    assert message == {"reasoning_content": "b"}


def test_embeddings_are_renamed_only() -> None:
    """An answer without choices gets the public name, and no id if it had none."""
    answer: Json = {"object": "list", "model": "x", "data": [], "usage": {"prompt_tokens": 0}}
    assert Normaliser(look(OLLAMA, "embeddings", "x")).whole(answer)
    assert answer == {"object": "list", "model": "m", "data": [], "usage": {"prompt_tokens": 0}}


@pytest.mark.parametrize(
    ("dialect", "reason", "shown"),
    [
        (VLLM, "repetition", "stop"),
        (LMDEPLOY, "parse_error", "stop"),
        (OLLAMA, "load", "stop"),
        (OLLAMA, "unload", "stop"),
        (VLLM, "length", "length"),
        (VLLM, None, None),
        (VLLM, 7, 7),
    ],
)
def test_finish_reasons(dialect: Dialect, reason: Any, shown: Any) -> None:
    """A finish reason OpenAI does not have becomes one it has, the engine's own beside it; all others stay."""
    choice = {"finish_reason": reason}
    changed = Normaliser(Appearance(dialect)).whole({"choices": [choice]})
    assert changed is (shown != reason)
    assert choice == {"finish_reason": shown, **({"engine_finish_reason": reason} if changed else {})}


@pytest.mark.parametrize("dialect", [VLLM, LMDEPLOY, EXTERNAL])
@pytest.mark.parametrize("reason", ["abort", "error"])
def test_an_answer_that_was_broken_off(dialect: Dialect, reason: str) -> None:
    """An engine that ends an answer early has not answered: 502, in a whole one and in a chunk."""
    answer = {"choices": [{"finish_reason": reason, "delta": {}}]}
    for normalise in (Normaliser(look(dialect)).whole, Normaliser(look(dialect)).chunk):
        with pytest.raises(BadGateway, match=rf"before it was complete \({reason}\)") as caught:
            normalise(json.loads(json.dumps(answer)))
        assert (caught.value.status, caught.value.code) == (502, "backend_aborted")


@pytest.mark.parametrize("odd", [{}, {"choices": None}, {"choices": ["x", {}]}, {"choices": [{"delta": 1}]}])
def test_odd_answers_are_left_alone(odd: Json) -> None:
    """What is not shaped as an answer passes without being changed, or tripping anything."""
    before = json.dumps(odd)
    normaliser = Normaliser(Appearance(LMDEPLOY))
    assert not normaliser.whole(odd)
    assert not normaliser.chunk(odd)
    assert json.dumps(odd) == before


# streams


def event(chunk: Json, *, spaced: bool = False) -> bytes:
    """One event with *chunk* as its data, as Go and Rust write JSON or, *spaced*, as Python does."""
    separators = (", ", ": ") if spaced else (",", ":")
    return b"data: " + json.dumps(chunk, separators=separators, ensure_ascii=spaced).encode() + b"\n\n"


def chunk_of(delta: Json, index: int = 0, **others: Any) -> Json:
    """One chat chunk."""
    choice = {"index": index, "delta": delta, "finish_reason": None, **others}
    return {"id": "x", "object": "chat.completion.chunk", "model": "x", "choices": [choice]}


def shown(watch: StreamWatch, *events: bytes) -> list[Json]:
    """The JSON of what is forwarded of *events*."""
    return [json.loads(piece.removeprefix(b"data: ")) for piece in watch.take(events)]


@settings(deadline=None)
@given(st.lists(st.text(max_size=12), max_size=30), st.sampled_from(sorted(EVERY)), st.booleans())
def test_every_text_survives(texts: list[str], engine: str, spaced: bool) -> None:
    """Whatever a token holds, quotes, backslashes, other scripts, the client gets it, in chunks of one shape."""
    watch = StreamWatch(wants_usage=False, appearance=look(EVERY[engine], served_name="x"))
    stream = [event(chunk_of({"content": text}), spaced=spaced) for text in texts]
    got = shown(watch, *stream)
    assert [chunk["choices"][0]["delta"]["content"] for chunk in got] == texts
    assert all(chunk["model"] == "m" for chunk in got)
    assert len({chunk["id"] for chunk in got}) <= 1


@settings(deadline=None)
@given(st.lists(st.text(alphabet='ab"\\', max_size=12), max_size=30))
def test_a_pass_through_stream_is_untouched(texts: list[str]) -> None:
    """A stream that needs no change comes out byte for byte, whatever its text looks like."""
    watch = StreamWatch(wants_usage=False, appearance=look(VLLM))
    stream = [event(chunk_of({"content": text})) for text in texts]
    assert watch.take(stream) == stream


@pytest.mark.parametrize(
    "text", ['","reasoning":"', '"},"finish_reason":"abort"', '"usage":{"x":1}', '\\","error":"x', "\\\\", '\\"']
)
@pytest.mark.parametrize("lessons", [0, LESSONS + 2])
def test_text_that_looks_like_fields(text: str, lessons: int) -> None:
    """Text that quotes JSON is text: nothing of it is renamed, mapped or taken for an error."""
    watch = StreamWatch(wants_usage=False, appearance=look(VLLM))
    other = [event(chunk_of({"content": "hi"}, index=i % 2)) for i in range(lessons)]
    stream = [*other, event(chunk_of({"content": "hi"})), event(chunk_of({"content": text}))]
    assert watch.take(stream) == stream
    assert not watch.is_failed


def test_thinking_then_answer() -> None:
    """Streamed thinking gets our name in every chunk, and the answer after it passes untouched."""
    watch = StreamWatch(wants_usage=False, appearance=look(VLLM))
    thoughts = [event(chunk_of({"reasoning": text})) for text in ("let", " me", " see")]
    answer = [event(chunk_of({"content": text})) for text in ("4", ".")]
    deltas = [chunk["choices"][0]["delta"] for chunk in shown(watch, event(chunk_of({"role": "assistant"})), *thoughts)]
    assert deltas == [{"role": "assistant"}, *({"reasoning_content": text} for text in ("let", " me", " see"))]
    assert watch.take(answer) == answer


def test_what_follows_many_tokens_is_still_seen() -> None:
    """After any number of like tokens, and of unlike ones, a finish reason, reasoning and an abort are seen."""
    watch = StreamWatch(wants_usage=False, appearance=look(VLLM))
    alternating = [event(chunk_of({"content": "a"}, index=i % 2)) for i in range(3 * LESSONS)]
    assert watch.take(alternating) == alternating
    late = shown(watch, event(chunk_of({"reasoning": "hm"})))
    assert late[0]["choices"][0]["delta"] == {"reasoning_content": "hm"}
    ended = shown(watch, event(chunk_of({}, finish_reason="repetition")))
    assert ended[0]["choices"][0]["finish_reason"] == "stop"
    assert watch.has_finish
    told = shown(watch, event(chunk_of({}, finish_reason="abort")), DONE)
    assert [problem["error"]["code"] for problem in told] == ["backend_aborted"]
    assert watch.is_failed


def test_a_role_is_said_once_for_each_choice() -> None:
    """LMDeploy's role on every delta is left out of all but the first of each choice."""
    watch = StreamWatch(wants_usage=False, appearance=look(LMDEPLOY))
    stream = [event(chunk_of({"role": "assistant", "content": "a"}, index=i), spaced=True) for i in (0, 1, 0, 0, 1)]
    roles = ["role" in chunk["choices"][0]["delta"] for chunk in shown(watch, *stream)]
    assert roles == [True, True, False, False, False]


@pytest.mark.parametrize("stray", [None, {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}])
@pytest.mark.parametrize("wants_usage", [True, False])
def test_usage_beside_output(stray: Any, wants_usage: bool) -> None:
    """Empty usage beside output is null for a client that asked for usage, and nothing for one that did not."""
    watch = StreamWatch(wants_usage=wants_usage, appearance=look(OLLAMA))
    stream = [event({**chunk_of({"content": text}), "usage": stray}) for text in ("a", "b", "c")]
    for chunk in shown(watch, *stream):
        assert chunk.get("usage", "none") == (None if wants_usage else "none")
    assert [watch.prompt_tokens, watch.completion_tokens] == [None, None]
    counts = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
    last = shown(watch, event({"id": "x", "model": "x", "choices": [], "usage": counts}))
    assert [chunk["usage"] for chunk in last] == ([counts] if wants_usage else [])
    assert [watch.prompt_tokens, watch.completion_tokens] == [3, 2]


def test_usage_of_nothing() -> None:
    """A usage chunk that says zero is a usage chunk: kept back when nobody asked, and counted."""
    nothing = event({"id": "x", "choices": [], "usage": {"prompt_tokens": 0, "completion_tokens": 0}})
    watch = StreamWatch(wants_usage=False, appearance=look(VLLM))
    assert watch.take([nothing]) == []
    assert [watch.prompt_tokens, watch.completion_tokens] == [0, 0]


@pytest.mark.parametrize("dialect", [VLLM, LLAMACPP, LMDEPLOY, OLLAMA])
def test_an_end_without_a_finish_reason_is_none(dialect: Dialect) -> None:
    """A [DONE] of an engine that always names a finish reason, without one, is kept back: the stream is not whole."""
    watch = StreamWatch(wants_usage=False, appearance=look(dialect))
    assert len(watch.take([event(chunk_of({"content": "a"})), DONE])) == 1
    assert not watch.is_done
    finished = StreamWatch(wants_usage=False, appearance=look(dialect))
    finished.take([event(chunk_of({"content": "a"})), event(chunk_of({}, finish_reason="stop")), DONE])
    assert finished.is_done


@pytest.mark.parametrize("dialect", [OPENAI, EXTERNAL])
def test_an_unknown_servers_end_is_believed(dialect: Dialect) -> None:
    """Of a server we know nothing of, [DONE] is enough."""
    watch = StreamWatch(wants_usage=False, appearance=look(dialect))
    watch.take([event(chunk_of({"content": "a"})), DONE])
    assert watch.is_done


# errors


@pytest.mark.parametrize(
    ("dialect", "status", "body", "code", "param"),
    [
        (
            LMDEPLOY,
            400,
            {"message": "Input length (80) must be smaller than the model context length (64).", "code": 400},
            "context_length_exceeded",
            None,
        ),
        (LMDEPLOY, 400, {"message": "messages: Field required", "type": "invalid_request_error"}, None, "messages"),
        (
            LMDEPLOY,
            400,
            {"message": "The top_p 0.0 must be in (0, 1].", "type": "invalid_request_error"},
            None,
            "top_p",
        ),
        (
            OLLAMA,
            400,
            {"error": {"message": "json: cannot unmarshal string into Go struct field X.temperature of type float64"}},
            "invalid_type",
            "temperature",
        ),
        (
            OLLAMA,
            404,
            {"error": {"message": "model 'nope' not found", "type": "not_found_error"}},
            "model_not_found",
            None,
        ),
        (
            LLAMACPP,
            400,
            {"error": {"code": 400, "message": "request (5001 tokens) exceeds", "type": "exceed_context_size_error"}},
            "context_length_exceeded",
            None,
        ),
        (
            VLLM,
            400,
            {"error": {"message": "This model's maximum context length is 8 tokens.", "type": "BadRequestError"}},
            "context_length_exceeded",
            None,
        ),
        (VLLM, 400, {"error": {"message": "no", "param": "n", "code": "own"}}, "own", "n"),
    ],
)
def test_what_an_errors_words_tell(
    dialect: Dialect, status: int, body: Json, code: str | None, param: str | None
) -> None:
    """From an engine's own words come OpenAI's code and the parameter at fault, where they tell."""
    error = translate(status, json.dumps(body).encode(), dialect.error_forms)
    assert (error.code, error.param) == (code, param)


@pytest.mark.parametrize(
    ("message", "shown_message"),
    [
        ('{"error":{"code":400,"message":"Multimodal data provided"}}', "Multimodal data provided"),
        ('{"error":"text"}', "text"),
        ("{not json", "{not json"),
        ('{"a": 1}', '{"a": 1}'),
    ],
)
def test_an_error_within_an_error(message: str, shown_message: str) -> None:
    """A message that is itself an error's JSON is opened; any other text stays."""
    body = json.dumps({"error": {"message": message, "type": "invalid_request_error", "code": None}}).encode()
    assert translate(400, body).message == shown_message


def test_a_witness_sees_what_the_client_does_not() -> None:
    """What is hidden of an answer, and of its choices, is shown before it is left out; without it nothing changes."""
    shown: list[dict[str, Any]] = []
    look = Appearance(hidden=frozenset({"ids"}), witness=lambda answer: shown.append(copy.deepcopy(answer)))
    assert look.edits_every_chunk
    answer = {"ids": [1], "choices": [{"ids": None, "message": {"content": "x"}}, {"message": {"ids": "content"}}]}
    assert Normaliser(look).whole(answer)
    assert shown[0]["ids"] == [1]
    assert answer == {"choices": [{"message": {"content": "x"}}, {"message": {"ids": "content"}}]}
    chunk: dict[str, Any] = {"choices": [{"delta": {"content": "x"}}]}
    assert not Normaliser(look).chunk(chunk)
    assert len(shown) == 2
