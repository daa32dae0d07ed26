"""Whether an engine takes finished prompts as they are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from backends.adapter import Call
from backends.engines import ADAPTERS
from backends.handing import Handing, Sample
from backends.prompting import CallRefused
from backends.settings import BackendSettings
from chat_templates.battery import FEATURES
from chat_templates.prompts import Prompt

Engine = Callable[[dict[str, Any]], dict[str, Any]]


def sample(text: str, *, is_exact: bool = True) -> Sample:
    body = {"model": "m", "messages": [{"role": "user", "content": text}]}
    return Sample(text, body, Prompt(text, tuple(map(ord, text))), is_exact)


SAMPLES = [sample("one"), sample("three"), sample("fourteen")]


def rendered(body: dict[str, Any]) -> list[int]:
    return list(map(ord, body["messages"][0]["content"]))


def vllm(said: Callable[[list[int]], str] = str, *, takes_ids: bool = True) -> Engine:
    """An engine whose answer follows from its prompt's ids."""

    def answer(body: dict[str, Any]) -> dict[str, Any]:
        given = (body.get("kv_transfer_params") or {}).get("prompt_token_ids")
        ids = given if given is not None and takes_ids else rendered(body)
        return {"choices": [{"message": {"content": said(ids)}}], "prompt_token_ids": ids}

    return answer


async def handed(answer: Engine, engine: str = "vllm", samples: list[Sample] = SAMPLES) -> tuple[Any, list[str]]:
    async def ask(call: Call) -> Any:
        assert call.body is not None
        return answer(call.body)

    handing = Handing(BackendSettings("m", engine, Path("/w")), ADAPTERS[engine], ask)
    return await handing.outcome(samples), handing.notes


async def test_ids_that_are_taken() -> None:
    """Each prompt comes with another's messages, is seen to be used, and is answered like its own conversation."""
    found, notes = await handed(vllm())
    assert (found.mode, found.problem, notes) == ("tokens", "", [])
    assert found.features == set(FEATURES)


async def test_ids_that_are_passed_over() -> None:
    """An engine that renders the messages beside them is found out by the ids it used."""
    found, _ = await handed(vllm(takes_ids=False))
    assert found.problem == "one: other ids were used than those given"


async def test_another_answer_to_the_same_ids_is_only_noted() -> None:
    """Where the ids are shown to be the same, an answer that differs is the engine's arithmetic."""
    turns = iter(range(100))
    found, notes = await handed(vllm(lambda _: str(next(turns))))
    assert found.problem == ""
    assert len(notes) == len(SAMPLES)


def lmdeploy(count: Callable[[int], int] = int, said: Callable[[list[int]], str] = str) -> Engine:
    """An engine that shows only how many ids it used."""

    def answer(body: dict[str, Any]) -> dict[str, Any]:
        ids = body.get("input_ids") or rendered(body)
        return {"choices": [{"message": {"content": said(ids)}}], "usage": {"prompt_tokens": count(len(ids))}}

    return answer


async def test_a_count_and_the_same_answer() -> None:
    """Where only a count is shown, the answer has to be the same too, where the engine renders the conversation right;
    the first try may differ, as with an empty cache."""
    found, _ = await handed(lmdeploy(), "lmdeploy")
    assert (found.mode, found.problem) == ("tokens", "")
    turns = iter(range(100))
    cold, _ = await handed(lmdeploy(said=lambda ids: str(ids) if next(turns) else "cold"), "lmdeploy")
    assert cold.problem == ""
    always, _ = await handed(lmdeploy(said=lambda _: str(next(turns))), "lmdeploy")
    assert "is not that to the conversation" in always.problem
    unseen = [sample("one", is_exact=False)]
    assert (await handed(lmdeploy(said=lambda _: str(next(turns))), "lmdeploy", unseen))[0].problem == ""


async def test_a_count_that_is_wrong() -> None:
    """One id more is a BOS that was added."""
    found, _ = await handed(lmdeploy(lambda count: count + 1), "lmdeploy")
    assert found.problem == "one: 4 ids were used, and 3 given"


async def test_llamacpp_takes_no_tools_beside_them() -> None:
    """Its answer is a completion, made into a chat's; half a character at its end is dropped in one way only."""

    def answer(body: dict[str, Any]) -> dict[str, Any]:
        if "prompt" in body:
            return {"choices": [{"text": f"{body['prompt']}\ufffd"}], "usage": {"prompt_tokens": len(body["prompt"])}}
        return {"choices": [{"message": {"content": str(rendered(body))}}], "usage": {"prompt_tokens": 0}}

    found, _ = await handed(answer, "llamacpp")
    assert (found.mode, found.problem) == ("tokens", "")
    assert found.features == set(FEATURES) - {"tools"}


async def test_an_engine_that_refuses_them() -> None:
    """Why it does is said."""

    def answer(body: dict[str, Any]) -> dict[str, Any]:
        raise CallRefused(400, "no such field")

    assert (await handed(answer))[0].problem == "one: the finished prompt was refused: no such field"


@pytest.mark.parametrize("samples", [[], [Sample("x", {"model": "m", "messages": []}, Prompt("x"), True)]])
async def test_nothing_to_hand(samples: list[Sample]) -> None:
    """Without a prompt, or its ids, there is nothing to be seen."""
    assert (await handed(vllm(), samples=samples))[0] is None
