"""Two real llama.cpp models in a host budget for one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.engines.environment import gguf_model
from tests.fault.alternation import Account, Witness
from tests.gateways import ANSWER_S, running_gateway, until

pytestmark = [pytest.mark.engine_llamacpp, pytest.mark.timeout(180)]

PARIS: list[Any] = [{"role": "user", "content": "What is the capital of France?"}]
SETTINGS = {"memory_gib": 0.7, "min_residency_s": 0.5}


def test_two_models_take_turns(tmp_path: Path) -> None:
    """Both models answer in turn, only ever one is in memory, and what each took is learnt for its next start."""
    model = {"engine": "llamacpp", "weights": str(gguf_model()), "context_length": 2048, "load": "on_demand"}
    account = Account(0, 0, 0)
    with running_gateway(tmp_path, {"a": model, "b": model}, settings=SETTINGS) as gateway, gateway.openai() as client:
        reckoned = []
        with Witness(gateway, account):
            for name in ("a", "b", "a", "b"):
                answer = client.with_options(timeout=60).chat.completions.create(
                    model=name, messages=PARIS, temperature=0
                )
                assert "Paris" in (answer.choices[0].message.content or "")
                reckoned.append(gateway.backend(name)["memory_bytes"])
        assert account.together == 0
        assert gateway.metric("unigate_swaps_total", how="stop") == 3
        assert reckoned[0] == reckoned[1] > gguf_model().stat().st_size
        peak = until(lambda: json.loads((tmp_path / "state" / "memory" / "b.json").read_text()), ANSWER_S)
        assert gguf_model().stat().st_size < peak["bytes_on_each"] < 0.7 * 1024**3
        # The second start of each asks for what the first was seen to take.
        assert reckoned[3] == pytest.approx(peak["bytes_on_each"] * 1.05, rel=0.1)
