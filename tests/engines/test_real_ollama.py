"""The real Ollama behind a gateway: where an `ollama` is on the PATH, else this is deselected (conftest.py).

Its weights are SmolLM2's, as a GGUF file and as the folder that transformers 5 makes of it.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from typing import Any

import openai
import psutil
import pytest

from tests.engines.environment import gguf_model, hf_model
from tests.gateways import Gateway, running_gateway, until

pytestmark = [pytest.mark.engine_ollama, pytest.mark.timeout(300)]

GGUF = "smol-gguf"
FOLDER = "smol-folder"
START_S = 120.0
PARIS: list[Any] = [{"role": "user", "content": "What is the capital of France?"}]
STORY: list[Any] = [{"role": "user", "content": "Tell me a very long story about a river."}]
SAY_HI: list[Any] = [{"role": "user", "content": "Say hi"}]
TOKENS_WITH_DEFAULT_SYSTEM = 32
"""Of SAY_HI by SmolLM2's own template; ChatML without its default system message has 11 (recordings 51, 209)."""


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    folder = tmp_path_factory.mktemp("ollama")
    settings = {"engine": "ollama", "context_length": 1024, "backoff": {"base_s": 0.5, "max_s": 2}}
    models = {
        GGUF: {**settings, "weights": str(gguf_model())},
        FOLDER: {**settings, "weights": str(hf_model())},
    }
    engines = {"ollama": {"models_dir": str(folder / "models")}}
    with running_gateway(folder, models, engines=engines, is_ready=False) as running:
        running.until_ready(START_S)
        yield running


@pytest.mark.parametrize("model", [GGUF, FOLDER])
def test_the_weights_are_as_they_were(gateway: Gateway, model: str) -> None:
    """The right answer, from a prompt rendered by the model's own template: rope and template survived the import."""
    with gateway.openai() as client:
        answer = client.chat.completions.create(model=model, messages=PARIS, temperature=0, max_tokens=24)
        assert "Paris" in (answer.choices[0].message.content or "")
        hi = client.chat.completions.create(model=model, messages=SAY_HI, max_tokens=1)
        assert hi.usage is not None
        assert hi.usage.prompt_tokens == TOKENS_WITH_DEFAULT_SYSTEM


def test_a_completion_is_raw(gateway: Gateway) -> None:
    """No template is applied: two tokens (recording 209)."""
    with gateway.openai() as client:
        answer = client.completions.create(model=GGUF, prompt="Say hi", max_tokens=2)
        assert answer.usage is not None
        assert answer.usage.prompt_tokens == 2


def test_a_prompt_that_is_too_long(gateway: Gateway) -> None:
    """It is refused."""
    with gateway.openai() as client, pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model=GGUF, messages=[{"role": "user", "content": "a b c d " * 600}])
    assert caught.value.code == "context_length_exceeded"


def test_an_answer_ends_with_its_context(gateway: Gateway) -> None:
    """Without max_tokens, and though the model would go on."""
    with gateway.openai() as client:
        answer = client.with_options(timeout=200).chat.completions.create(model=GGUF, messages=STORY, temperature=0)
        assert answer.usage is not None
        assert answer.usage.total_tokens <= 1025


def test_a_killed_daemon_leaves_no_runner(gateway: Gateway) -> None:
    """kill -9 of `ollama serve`: its llama-server processes are ended, and both models are READY again."""
    daemon = psutil.Process(gateway.backend("ollama")["pid"])
    runners = daemon.children(recursive=True)
    assert runners
    os.kill(daemon.pid, signal.SIGKILL)
    until(lambda: not any(runner.is_running() for runner in runners), 20, "the runners are ended")
    for model in (GGUF, FOLDER):
        until(lambda: gateway.backend(model)["restarts"] >= 1, 30, f"{model} is restarted")  # noqa: B023 - used at once
        gateway.until_state(model, "ready", within_s=START_S)
