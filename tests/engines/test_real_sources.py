"""Weights that come from a hub, served by the real llama.cpp: the library, the download and the engine are all real."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.engines.environment import gguf_model
from tests.gateways import running_gateway
from tests.hubs import running_hub

pytestmark = [pytest.mark.engine_llamacpp, pytest.mark.timeout(180)]


@pytest.mark.parametrize("scheme", ["hf", "modelscope"])
def test_a_model_from_a_hub_answers(tmp_path: Path, scheme: str) -> None:
    """One GGUF file of a repository is downloaded, verified, loaded, and says that Paris is the capital of France."""
    models = {"m": {"engine": "llamacpp", "weights": f"{scheme}:org/smol:smol.gguf", "context_length": 512}}
    folders = {"models_dir": str(tmp_path / "models")}
    with (
        running_hub({"org/smol": {"smol.gguf": gguf_model().read_bytes()}}) as hub,
        running_gateway(
            tmp_path, models, settings=folders, engines={}, environ=hub.environ(), is_ready=False
        ) as gateway,
    ):
        gateway.until_ready(120)
        with gateway.openai() as client:
            messages: list[Any] = [{"role": "user", "content": "What is the capital of France?"}]
            answer = client.chat.completions.create(model="m", messages=messages, temperature=0, max_tokens=16)
        assert "Paris" in (answer.choices[0].message.content or "")
