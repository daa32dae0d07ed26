"""A base and two fine-tunes of it in one engine, on the real vLLM and the real llama.cpp.

The adapters are random, and the same in both formats.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from backends.diagnosis import ExitStatus
from backends.engines import ADAPTERS
from tests.engines.environment import gguf_model, hf_model, vllm_python
from tests.engines.lora import gguf_adapter, peft_adapter
from tests.gateways import Gateway, running_gateway

pytestmark = [pytest.mark.engine_vllm, pytest.mark.engine_llamacpp, pytest.mark.timeout(420)]

START_S = 300.0
BASES = ("smol-vllm", "smol-llamacpp")
QUESTIONS = ("What is the capital of France?", "Name three colours.", "Write one sentence about the sea.")


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    folder = tmp_path_factory.mktemp("lora")
    vllm = {
        "engine": "vllm",
        "weights": str(hf_model()),
        "context_length": 2048,
        "options": {"enforce_eager": True},
        "env": {"VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "2"},
    }
    llamacpp = {"engine": "llamacpp", "weights": str(gguf_model()), "context_length": 2048}
    models: dict[str, Any] = {}
    for base, section in zip(BASES, (vllm, llamacpp), strict=True):
        models |= {base: section, f"{base}-alone": section}
        for seed in (1, 2):
            name = f"{base}-tune-{seed}"
            made = peft_adapter(folder / name, seed) if section is vllm else gguf_adapter(folder / f"{name}.gguf", seed)
            models[name] = {"base": base, "adapter": str(made)}
    engines = {"vllm": {"command": [str(vllm_python()), "-m", "vllm.entrypoints.openai.api_server"]}}
    with running_gateway(folder, models, engines=engines, is_ready=False) as gateway:
        gateway.until_ready(START_S)
        yield gateway


def answer(gateway: Gateway, model: str, question: str) -> str:
    """At temperature 0, some tokens long."""
    with gateway.openai() as client:
        answered = client.with_options(timeout=120).chat.completions.create(
            model=model, messages=[{"role": "user", "content": question}], temperature=0, max_tokens=24
        )
    assert answered.model == model
    return answered.choices[0].message.content or ""


@pytest.mark.parametrize("base", BASES)
def test_base_and_fine_tunes(gateway: Gateway, base: str) -> None:
    """Each adapter answers in its own way, and the base word for word as the same weights without any adapter."""
    asked = (base, f"{base}-tune-1", f"{base}-tune-2", base, f"{base}-alone")
    answers = {question: [answer(gateway, model, question) for model in asked] for question in QUESTIONS}
    for first, one, other, again, alone in answers.values():
        assert first == again == alone
        assert len({first, one, other}) == 3


@pytest.mark.parametrize("model", [name for base in BASES for name in (base, f"{base}-alone")])
def test_a_log_without_trouble_names_none(gateway: Gateway, model: str) -> None:
    """What an engine prints while all is well, warnings included, is taken for no reason of an end."""
    backend = gateway.backend(model)
    assert backend["state"] == "ready"
    log = Path(backend["log"]).read_text(errors="replace").splitlines()
    assert len(log) > 5
    assert ADAPTERS[backend["engine"]].diagnose(ExitStatus(code=1), log).code == "crashed"
