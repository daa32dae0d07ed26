"""The proof at load on real engines: what each of them is proven for, and what is found of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from chat_templates.battery import FEATURES
from tests.engines.environment import gguf_model, hf_model, lmdeploy_command, vllm_python
from tests.engines.test_real_contracts import START_S, models
from tests.gateways import Gateway, running_gateway

pytestmark = pytest.mark.timeout(600)


@contextmanager
def proven(
    folder: Path, engine: str, weights: Path, name: str, engines: dict[str, Any] | None = None, **settings: Any
) -> Iterator[tuple[Gateway, dict[str, Any]]]:
    """A gateway with one model under the contract *name*, enforced, and what was proven of it; it may have failed."""
    section = models(folder, engine, weights, **settings)[name]
    section["template"] |= {"parity": "enforce", "mode": "auto"}
    with running_gateway(folder, {name: section}, engines=engines or {}, is_ready=False) as gateway:
        gateway.until_state(name, "ready", "failed", within_s=START_S)
        (entry,) = gateway.ask("GET", f"/admin/models/{name}/parity").json()
        assert entry["proof"] is not None, gateway.backend(name)
        yield gateway, entry["proof"]


def verdicts(proof: dict[str, Any]) -> set[str]:
    return {case["verdict"] for case in proof["cases"]}


@pytest.mark.engine_vllm
@pytest.mark.parametrize("name", ["own", "foreign"])
def test_vllm_is_proven_for_everything(tmp_path: Path, name: str) -> None:
    """Under the weights' own template and under another: no conversation differs, no text, no stop id, and ids are
    taken as they are; a restart takes the proof that was kept."""
    engines = {"vllm": {"command": [str(vllm_python()), "-m", "vllm.entrypoints.openai.api_server"]}}
    settings = {
        "args": {"enforce-eager": True},
        "env": {"VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "2"},
        "start_timeout_s": START_S,
    }
    with proven(tmp_path, "vllm", hf_model(), name, engines, **settings) as (gateway, proof):
        assert gateway.backend(name)["state"] == "ready"
        assert {feature: tuple(modes) for feature, modes in proof["modes"].items()} == dict.fromkeys(
            FEATURES, ("native", "tokens")
        )
        assert (proof["problem"], proof["notes"]) == ("", [])
        assert verdicts(proof) <= {"exact", "refused"}
        assert {case["basis"] for case in proof["cases"] if case["verdict"] == "exact"} == {"ids"}


@pytest.mark.engine_llamacpp
def test_llamacpp_is_given_ids_where_its_tokenizer_is_another(tmp_path: Path) -> None:
    """llama.cpp makes the contract's prompt of every conversation of the battery, and yet tokenises some texts of
    SmolLM2 (digits beside white space) otherwise than its tokenizer.json: it is proven with finished ids alone."""
    with proven(tmp_path, "llamacpp", gguf_model(), "own") as (gateway, proof):
        assert proof["template_shown"] == "the contract's"
        assert gateway.backend("own")["state"] == "ready"
        assert set(map(tuple, proof["modes"].values())) == {("tokens",)}
        assert proof["unproven"] == ["tools"]
        assert verdicts(proof) <= {"exact", "refused"}
        assert "7\n\n8" in proof["tokenizer"]["differing"]
        assert "(other_tokenizer)" in proof["problem"]


@pytest.mark.engine_lmdeploy
def test_lmdeploy_is_given_ids(tmp_path: Path) -> None:
    """LMDeploy shows the prompt of no conversation, so its own rendering is never believed; the ids that it is given,
    it takes."""
    engines = {"lmdeploy": {"command": lmdeploy_command()}}
    env = {"HF_HUB_OFFLINE": "1"}
    with proven(tmp_path, "lmdeploy", hf_model(), "foreign", engines, env=env) as (gateway, proof):
        assert gateway.backend("foreign")["state"] == "ready"
        assert set(map(tuple, proof["modes"].values())) == {("tokens",)}
        assert proof["unproven"] == []
        assert proof["problem"] == ""
        assert proof["tokenizer"]["differing"] == []
        # the engine that stands in for those of CUDA passes logit_bias over, and is seen to
        assert proof["stops"] is None
        assert any("logit_bias has no effect" in note for note in proof["notes"])
