"""One `unigate serve` with every engine at once, and with models that cannot work: those say why, the others serve."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from typing import Any

import pytest

from tests.engines.environment import gguf_model, hf_model, lmdeploy_command, vllm_python
from tests.gateways import Gateway, running_gateway, until

pytestmark = [
    pytest.mark.engine_vllm,
    pytest.mark.engine_llamacpp,
    pytest.mark.engine_lmdeploy,
    pytest.mark.timeout(420),
]

START_S = 360.0
"""All of them, one after the other, on a busy machine of two cores."""
PARIS: list[Any] = [{"role": "user", "content": "What is the capital of France?"}]

HAS_OLLAMA = shutil.which("ollama") is not None
"""No package index has it; where it is missing, its model has to say so."""
SERVING = ("smol-vllm", "smol-llamacpp", "smol-lmdeploy", *(["smol-ollama"] if HAS_OLLAMA else []))
FAILING = {
    **({} if HAS_OLLAMA else {"smol-ollama": ("not_started", "ollama")}),
    "no-weights": ("weights_missing", "nowhere.gguf"),
    "bad-flag": ("bad_option", "--no-such-flag"),
}
"""Model -> the code of its diagnosis, and what its reason has to name."""


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    folder = tmp_path_factory.mktemp("all")
    small = {"context_length": 1024}
    models: dict[str, dict[str, Any]] = {
        "smol-vllm": {
            "engine": "vllm",
            "weights": str(hf_model()),
            "args": {"enforce-eager": True},
            "env": {"VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "2"},
            **small,
        },
        "smol-llamacpp": {"engine": "llamacpp", "weights": str(gguf_model()), **small},
        "smol-lmdeploy": {"engine": "lmdeploy", "weights": str(hf_model()), "env": {"HF_HUB_OFFLINE": "1"}, **small},
        "smol-ollama": {"engine": "ollama", "weights": str(gguf_model()), **small},
        "no-weights": {"engine": "llamacpp", "weights": str(folder / "nowhere.gguf")},
        "bad-flag": {"engine": "llamacpp", "weights": str(gguf_model()), "args": {"no-such-flag": True}},
    }
    engines = {
        "vllm": {"command": [str(vllm_python()), "-m", "vllm.entrypoints.openai.api_server"]},
        "lmdeploy": {"command": lmdeploy_command()},
    }
    with running_gateway(folder, models, engines=engines, words=["--keep-going"], is_ready=False) as gateway:
        until(
            lambda: all(backend["state"] in ("ready", "failed") for backend in backends(gateway)),
            START_S,
            "all is said",
        )
        yield gateway


def backends(gateway: Gateway) -> list[dict[str, Any]]:
    """Every backend as it stands."""
    found: list[dict[str, Any]] = gateway.ask("GET", "/admin/backends").json()
    return found


@pytest.mark.parametrize("model", SERVING)
def test_each_engine_answers(gateway: Gateway, model: str) -> None:
    """The same question on the same weights: the same answer from each, beside models that failed."""
    with gateway.openai() as client:
        answer = client.with_options(timeout=60).chat.completions.create(model=model, messages=PARIS, temperature=0)
    assert answer.choices[0].message.content == "The capital of France is Paris."


@pytest.mark.parametrize("model", FAILING)
def test_what_cannot_work_says_why(gateway: Gateway, model: str) -> None:
    """It is FAILED after one start, with a reason that names what is wrong, and its clients are told the same."""
    code, named = FAILING[model]
    backend = gateway.backend(model)
    assert (backend["state"], backend["restarts"]) == ("failed", 0)
    assert backend["diagnosis"]["code"] == code
    assert named in backend["diagnosis"]["reason"]
    answer = gateway.ask("POST", "/v1/chat/completions", json={"model": model, "messages": PARIS})
    assert answer.status_code == 503
    assert named in answer.json()["error"]["message"]


def test_one_table_shows_them_all(gateway: Gateway) -> None:
    """`unigate ps` has a row for each, READY or FAILED, and the reasons below."""
    done = gateway.command("ps", "-c", str(gateway.config), environ={"COLUMNS": "160"})
    print(done.stdout)
    assert done.returncode == 0, done.stderr
    rows = {line.split()[0]: line for line in done.stdout.splitlines() if line.split()}
    for model in SERVING:
        assert "ready" in rows[model].lower()
    for model, (_, named) in FAILING.items():
        assert "failed" in rows[model].lower()
        assert named in done.stdout
