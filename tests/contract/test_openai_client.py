"""The official OpenAI client against a gateway: what it asks for, it gets."""

from __future__ import annotations

from openai import AsyncOpenAI, OpenAI
from openai.types.chat import ChatCompletionMessageParam

from tests.gateways import Gateway, until

MESSAGES: list[ChatCompletionMessageParam] = [{"role": "user", "content": "one two three"}]
TEXT = "word0 word1 word2 word3 word4 "
PROMPT_TOKENS, COMPLETION_TOKENS = 3, 5


def test_a_chat_answer(client: OpenAI) -> None:
    """A chat completion is the engine's answer, with its usage."""
    answer = client.chat.completions.create(model="chat", messages=MESSAGES)
    assert answer.choices[0].message.content == TEXT
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (PROMPT_TOKENS, COMPLETION_TOKENS)


def test_a_chat_stream(client: OpenAI) -> None:
    """A streamed chat completion arrives chunk by chunk and ends with its finish reason."""
    with client.chat.completions.create(model="chat", messages=MESSAGES, stream=True) as stream:
        chunks = list(stream)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == TEXT
    assert [chunk.choices[0].finish_reason for chunk in chunks] == [None] * 6 + ["stop"]


async def test_an_async_chat_answer(async_client: AsyncOpenAI) -> None:
    """The asynchronous client gets the same answer."""
    answer = await async_client.chat.completions.create(model="chat", messages=MESSAGES)
    assert answer.choices[0].message.content == TEXT


async def test_an_async_chat_stream(async_client: AsyncOpenAI) -> None:
    """The asynchronous client gets the same stream."""
    async with await async_client.chat.completions.create(model="chat", messages=MESSAGES, stream=True) as stream:
        pieces = [chunk.choices[0].delta.content or "" async for chunk in stream]
    assert "".join(pieces) == TEXT


def test_a_completion(client: OpenAI) -> None:
    """A plain completion is the engine's answer."""
    answer = client.completions.create(model="chat", prompt="one two three", max_tokens=3)
    assert answer.choices[0].text == "word0 word1 word2 "
    assert answer.choices[0].finish_reason == "length"


async def test_a_completion_stream(async_client: AsyncOpenAI) -> None:
    """A plain completion can be streamed."""
    async with await async_client.completions.create(model="chat", prompt="hi", stream=True) as stream:
        assert "".join([chunk.choices[0].text async for chunk in stream]) == TEXT


async def test_embeddings(client: OpenAI, async_client: AsyncOpenAI) -> None:
    """Embeddings come back one for each input, for both clients."""
    answers = [
        client.embeddings.create(model="chat", input=["one", "two"], encoding_format="float"),
        await async_client.embeddings.create(model="chat", input=["one", "two"], encoding_format="float"),
    ]
    for answer in answers:
        assert [row.embedding for row in answer.data] == [[0.1, 0.2, 0.3, 0.4]] * 2


def test_the_usage_chunk_comes_when_asked_for(client: OpenAI) -> None:
    """A stream with include_usage ends in a chunk without choices that holds the usage."""
    with client.chat.completions.create(
        model="chat", messages=MESSAGES, stream=True, stream_options={"include_usage": True}
    ) as stream:
        last = list(stream)[-1]
    assert last.choices == []
    assert last.usage is not None
    assert (last.usage.prompt_tokens, last.usage.completion_tokens) == (PROMPT_TOKENS, COMPLETION_TOKENS)


def test_the_usage_chunk_stays_away_unasked_and_is_counted_all_the_same(gateway: Gateway, client: OpenAI) -> None:
    """A stream without include_usage shows no usage, and the tokens metric counts it."""

    def counted() -> tuple[float, float]:
        prompt = gateway.metric("unigate_tokens_total", model="chat", kind="prompt")
        return prompt, gateway.metric("unigate_tokens_total", model="chat", kind="completion")

    prompt, completion = counted()
    with client.chat.completions.create(model="chat", messages=MESSAGES, stream=True) as stream:
        chunks = list(stream)
    assert all(chunk.choices and chunk.usage is None for chunk in chunks)
    until(lambda: counted() == (prompt + PROMPT_TOKENS, completion + COMPLETION_TOKENS), what="the tokens are counted")


def test_an_alias_answers_as_its_model(client: OpenAI) -> None:
    """Both aliases of a model are served, and metrics and engine know the model by its own name."""
    for alias in ("default", "Org/Chat-7B"):
        answer = client.chat.completions.create(model=alias, messages=MESSAGES)
        assert answer.choices[0].message.content == TEXT
        assert answer.model == "chat"


def test_a_cold_model_loads_for_its_first_request(gateway: Gateway, client: OpenAI) -> None:
    """A request for a model that is not loaded waits for its start and is answered."""
    gateway.ask("POST", "/admin/backends/cold/unload", params={"wait_s": 10}, timeout=15)
    assert client.models.retrieve("cold").model_dump()["status"]["value"] == "unloaded"
    answer = client.chat.completions.create(model="cold", messages=MESSAGES)
    assert answer.choices[0].message.content == TEXT
    assert client.models.retrieve("cold").model_dump()["status"]["value"] == "loaded"


def test_the_list_names_cold_and_failed_models_too(gateway: Gateway, client: OpenAI) -> None:
    """GET /v1/models lists all that is configured, in its order, each with its engine, aliases and status."""
    gateway.load("failed")
    listed = {model.id: model.model_dump() for model in client.models.list()}
    assert list(listed)[:4] == ["chat", "cold", "odd%20name", "failed"]
    assert listed["chat"]["object"] == "model"
    assert listed["chat"]["owned_by"] == "unigate"
    assert listed["chat"]["engine"] == "vllm"
    assert listed["chat"]["aliases"] == ["default", "Org/Chat-7B"]
    assert listed["chat"]["max_model_len"] == 4096
    assert listed["chat"]["status"] == {"value": "loaded", "state": "ready"}
    assert listed["elsewhere"]["engine"] == "external"
    assert listed["failed"]["status"]["value"] == "failed"
    assert "unrecognized arguments" in listed["failed"]["status"]["reason"]


async def test_the_async_list(client: OpenAI, async_client: AsyncOpenAI) -> None:
    """The asynchronous client lists the same models."""
    assert [model.id async for model in async_client.models.list()] == [model.id for model in client.models.list()]


def test_models_are_found_by_name_and_by_alias(client: OpenAI) -> None:
    """A single model can be asked for by its name or an alias, slashes and percent signs included."""
    for name in ("chat", "default", "Org/Chat-7B"):
        assert client.models.retrieve(name).id == "chat"
    assert client.models.retrieve("odd%20name").id == "odd%20name"


def test_a_request_id_is_kept(gateway: Gateway, client: OpenAI) -> None:
    """A client's own X-Request-ID comes back with the answer and stands in the gateway's log."""
    answer = client.chat.completions.with_raw_response.create(
        model="chat", messages=MESSAGES, extra_headers={"X-Request-ID": "mine-1234"}
    )
    assert answer.headers["x-request-id"] == "mine-1234"
    assert "status=200" in gateway.until_logged("id=mine-1234 ")


def test_a_request_id_is_given(gateway: Gateway, client: OpenAI) -> None:
    """A stream without an id gets one, the same in its head and in the log; so does one whose id is unfit for a log."""
    for headers in ({}, {"X-Request-ID": "two words"}):
        with client.chat.completions.with_streaming_response.create(
            model="chat", messages=MESSAGES, stream=True, extra_headers=headers
        ) as answer:
            given = answer.headers["x-request-id"]
            answer.read()
        assert given.startswith("req-")
        line = gateway.until_logged(f"id={given} ")
        assert "stream=true" in line
        assert "ttft_ms=" in line


def test_the_answer_names_its_engine(client: OpenAI) -> None:
    """Every answer of a model carries x-unigate-engine."""
    answer = client.completions.with_raw_response.create(model="chat", prompt="hi")
    assert answer.headers["x-unigate-engine"] == "vllm"


def test_any_key_is_taken_where_none_is_configured(gateway: Gateway) -> None:
    """OpenAI clients must send a key; without configured keys any will do, and none too."""
    for headers in ({}, {"authorization": "Bearer whatever"}, {"authorization": "Basic eDp5"}):
        answer = gateway.ask("POST", "/v1/completions", json={"model": "chat", "prompt": "hi"}, headers=headers)
        assert answer.status_code == 200
