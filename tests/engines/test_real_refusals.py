"""What the real engines say when they cannot start, and what is made of it: reason, advice, and no second try."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.engines.environment import gguf_model, hf_model, lmdeploy_command, vllm_python
from tests.engines.lora import gguf_adapter, peft_adapter
from tests.gateways import Gateway, running_gateway

pytestmark = [
    pytest.mark.engine_vllm,
    pytest.mark.engine_lmdeploy,
    pytest.mark.engine_llamacpp,
    pytest.mark.timeout(300),
]

START_S = 180.0
"""A vLLM reads its adapters when all else is loaded."""
NO_SUCH_FLAG: dict[str, Any] = {"args": {"no-such-flag": 3}}


class Case(NamedTuple):
    """A model that cannot start, and what must be made of it. *said* is part of the reason, in the engine's words."""

    engine: str
    code: str
    said: str
    settings: dict[str, Any]
    adapter: str = ""


CASES = {
    "vllm-flag": Case("vllm", "bad_option", "unrecognized arguments: --no-such-flag", NO_SUCH_FLAG),
    "lmdeploy-flag": Case("lmdeploy", "bad_option", "unrecognized arguments: --no-such-flag", NO_SUCH_FLAG),
    "llamacpp-flag": Case("llamacpp", "bad_option", "unrecognized arguments: --no-such-flag", NO_SUCH_FLAG),
    "vllm-value": Case("vllm", "bad_option", "argument --block-size", {"args": {"block-size": "many"}}),
    "lmdeploy-value": Case("lmdeploy", "bad_option", "argument --log-level", {"args": {"log-level": "LOUD"}}),
    "llamacpp-value": Case("llamacpp", "bad_option", "argument --threads-http", {"args": {"threads-http": "many"}}),
    "vllm-parser": Case(
        "vllm", "unknown_parser", "tool call parser named hermess", {"options": {"tool_call_parser": "hermess"}}
    ),
    "lmdeploy-parser": Case(
        "lmdeploy", "unknown_parser", "tool parser named hermess", {"options": {"tool_call_parser": "hermess"}}
    ),
    "vllm-sleep": Case("vllm", "sleep_unsupported", "CUDA and ROCm only", {"options": {"sleep": True}}),
    "vllm-heads": Case("vllm", "heads_not_divisible", "9 attention heads", {"options": {"tensor_parallel": 2}}),
    "vllm-quantisation": Case("vllm", "quantisation_unsupported", "awqq", {"options": {"quantization": "awqq"}}),
    "vllm-tokenizer": Case("vllm", "tokenizer_missing", "", {"weights": "without-tokenizer"}),
    "lmdeploy-tokenizer": Case("lmdeploy", "tokenizer_missing", "", {"weights": "without-tokenizer"}),
    "vllm-damaged": Case("vllm", "weights_unreadable", "", {"weights": "damaged"}),
    "lmdeploy-damaged": Case("lmdeploy", "weights_unreadable", "", {"weights": "damaged"}),
    "llamacpp-damaged": Case("llamacpp", "weights_incomplete", "", {"weights": "damaged.gguf"}),
    "vllm-rank": Case("vllm", "adapter_rank_too_high", "rank 64", {"options": {"max_lora_rank": 8}}, "rank-64"),
    "vllm-modules": Case("vllm", "adapter_modules_unsupported", "mystery_proj", {}, "mystery"),
    "llamacpp-adapter": Case("llamacpp", "adapter_unusable", "", {}, "another-model.gguf"),
}
"""By the model's name."""


def prepare(folder: Path) -> None:
    """The weights and adapters that the cases name."""
    for name in ("without-tokenizer", "damaged"):
        (folder / name).mkdir()
        for file in hf_model().iterdir():
            if not (name == "without-tokenizer" and file.name.startswith("tokenizer")):
                (folder / name / file.name).symlink_to(file)
    with gguf_model().open("rb") as whole:
        (folder / "damaged.gguf").write_bytes(whole.read(100_000_000))
    peft_adapter(folder / "rank-64", rank=64)
    peft_adapter(folder / "mystery", value_module="mystery_proj")
    gguf_adapter(folder / "another-model.gguf", architecture="qwen2")


def spoil(folder: Path) -> None:
    """Weights that were whole when the gateway looked at them become a Git LFS pointer."""
    weights = folder / "damaged" / "model.safetensors"
    weights.unlink()
    weights.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 269060552\n")


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    folder = tmp_path_factory.mktemp("refusals")
    prepare(folder)
    models: dict[str, Any] = {}
    for name, case in CASES.items():
        weights = gguf_model() if case.engine == "llamacpp" else hf_model()
        models[name] = {
            "engine": case.engine,
            "weights": str(weights),
            "context_length": 512,
            "load": "on_demand",
            "env": {"VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1"},
            **case.settings,
        }
        if case.engine == "vllm":
            models[name]["options"] = {"enforce_eager": True, **case.settings.get("options", {})}
        if "weights" in case.settings:
            models[name]["weights"] = str(folder / case.settings["weights"])
        if case.adapter:
            models[f"{name}-tune"] = {"base": name, "adapter": str(folder / case.adapter)}
    engines = {
        "vllm": {"command": [str(vllm_python()), "-m", "vllm.entrypoints.openai.api_server"]},
        "lmdeploy": {"command": lmdeploy_command()},
    }
    with running_gateway(folder, models, engines=engines) as gateway:
        spoil(folder)
        yield gateway


@pytest.mark.parametrize("name", CASES)
def test_a_start_that_cannot_succeed(gateway: Gateway, name: str) -> None:
    """It is FAILED after one try, with a reason in the engine's own words and an advice, wherever one looks."""
    case = CASES[name]
    load = gateway.ask("POST", f"/admin/backends/{name}/load", params={"wait_s": START_S}, timeout=START_S + 5)
    failed = load.json()
    diagnosis = failed["diagnosis"]
    assert (failed["state"], diagnosis["code"], failed["restarts"]) == ("failed", case.code, 0), diagnosis
    assert case.said in diagnosis["reason"]
    assert diagnosis["permanent"]
    answer = gateway.ask("POST", "/v1/completions", json={"model": name, "prompt": "Hi"})
    assert answer.status_code == 503
    assert answer.headers["x-should-retry"] == "false"
    told = answer.json()["error"]["diagnosis"]
    assert (told["reason"], told["advice"]) == (diagnosis["reason"], diagnosis["advice"])
    (shown,) = [entry for entry in gateway.ask("GET", "/v1/models").json()["data"] if entry["id"] == name]
    assert (shown["status"]["reason"], shown["status"]["advice"]) == (diagnosis["reason"], diagnosis["advice"])
    assert gateway.metric("unigate_backend_failures_total", model=name, reason=case.code) == 1
    assert f"{diagnosis['reason']} {diagnosis['advice']}" in Path(failed["log"]).read_text()
