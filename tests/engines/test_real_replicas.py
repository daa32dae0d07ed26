"""Two real llama.cpp behind one model: a conversation's later turns meet their own prompt in the prefix cache."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.engines.environment import gguf_model
from tests.gateways import Gateway, running_gateway

pytestmark = [pytest.mark.engine_llamacpp, pytest.mark.timeout(300)]

SUBJECTS = ("rivers", "clocks", "bread")
TURNS = 2


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    folder = tmp_path_factory.mktemp("replicas")
    model = {"engine": "llamacpp", "weights": str(gguf_model()), "context_length": 2048, "replicas": 2}
    with running_gateway(folder, {"smol": model}, engines={}, is_ready=False) as gateway:
        for name in ("smol#1", "smol#2"):
            gateway.until_state(name, "ready", within_s=120)
        yield gateway


def turn(gateway: Gateway, messages: list[dict[str, str]]) -> tuple[str, dict[str, Any], str]:
    """One turn of a conversation: the backend, the usage, and the answer."""
    body = {"model": "smol", "messages": messages, "temperature": 0, "max_tokens": 8}
    answer = gateway.ask("POST", "/v1/chat/completions", json=body, timeout=120)
    assert answer.status_code == 200, answer.text
    content = answer.json()
    return answer.headers["x-unigate-backend"], content["usage"], content["choices"][0]["message"]["content"]


def test_later_turns_hit_the_prefix_cache(gateway: Gateway) -> None:
    """Conversations that take turns with each other stay on their replicas, without any key: from the second turn on
    the engine reports nearly all of the prompt before as cached, and of a first turn hardly anything."""
    talks = {
        subject: [
            {"role": "system", "content": f"You know all about {subject}. " + f"Think of {subject}, and answer. " * 10},
            {"role": "user", "content": f"Tell me about {subject}."},
        ]
        for subject in SUBJECTS
    }
    backends: dict[str, list[str]] = {subject: [] for subject in SUBJECTS}
    before: dict[str, int] = {}
    for number in range(TURNS):
        for subject, messages in talks.items():
            backend, usage, said = turn(gateway, messages)
            cached = usage["prompt_tokens_details"]["cached_tokens"]
            if number == 0:
                assert cached < usage["prompt_tokens"] * 0.2
            else:
                assert cached > before[subject] * 0.9, (subject, number, usage)
            before[subject] = usage["prompt_tokens"]
            backends[subject].append(backend)
            messages += [{"role": "assistant", "content": said}, {"role": "user", "content": f"And then {number}?"}]
    assert all(len(set(used)) == 1 for used in backends.values()), backends


def test_another_replica_has_nothing_cached(gateway: Gateway) -> None:
    """The hit is the affinity's doing: the same prompt on the other replica is evaluated from its beginning."""
    prompt = [{"role": "user", "content": "Count the ways to cross a street. " * 10}]
    body = {"model": "smol", "messages": prompt, "temperature": 0, "max_tokens": 4}
    cached: dict[str, int] = {}
    number = 0
    while len(cached) < 2:
        answer = gateway.ask("POST", "/v1/chat/completions", json={**body, "user": f"user-{number}"}, timeout=120)
        usage = answer.json()["usage"]
        backend = answer.headers["x-unigate-backend"]
        is_first = backend not in cached
        cached[backend] = usage["prompt_tokens_details"]["cached_tokens"]
        assert (cached[backend] < usage["prompt_tokens"] * 0.2) == is_first, usage
        number += 1
