"""LoRA adapters: what a look at their files tells, and how each engine is told of them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from backends.adapter import LaunchSpec, Served
from backends.address import Address
from backends.engines import ADAPTERS
from backends.lora import base_doubt, gguf_adapter_problem, highest_rank, peft_problem
from backends.settings import BackendSettings, EngineSettings, LoraAdapter

UDS = Address(uds="/run/m.sock")
BACKEND = BackendSettings(name="m", engine="vllm", weights=Path("/models/Qwen2.5-1.5B"))


def peft_folder(folder: Path, config: object, *, tensors: str = "adapter_model.safetensors") -> Path:
    """An adapter's folder with *config*, which is text or JSON."""
    folder.mkdir(exist_ok=True)
    (folder / "adapter_config.json").write_text(config if isinstance(config, str) else json.dumps(config))
    if tensors:
        (folder / tensors).touch()
    return folder


def spec_of(engine: str, *adapters: LoraAdapter, **others: Any) -> LaunchSpec:
    """The run of a backend with *adapters*."""
    backend = replace(BACKEND, engine=engine, adapters=adapters, **others)
    return ADAPTERS[engine].launch_spec(backend, EngineSettings(), UDS, Path("/state/runs/m"))


# --- files ---


@pytest.mark.parametrize("tensors", ["adapter_model.safetensors", "adapter_model.bin"])
def test_a_whole_adapter(tmp_path: Path, tensors: str) -> None:
    """A configuration with a rank, and weights beside it, is an adapter."""
    assert peft_problem(peft_folder(tmp_path, {"peft_type": "LORA", "r": 8}, tensors=tensors)) is None


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ("{", "adapter_config.json: is not JSON"),
        ("[]", "adapter_config.json: is not a JSON object"),
        ({"peft_type": "IA3", "r": 8}, "is an adapter of type IA3, not LORA"),
        ({"peft_type": "LORA"}, "has no rank"),
        ({"r": 0}, "has no rank"),
        ({"r": True}, "has no rank"),
        ({"r": "8"}, "has no rank"),
        ({"r": 8, "rank_pattern": {"q": -1}}, "has no rank"),
    ],
)
def test_what_is_no_adapter(tmp_path: Path, config: object, said: str) -> None:
    """A configuration that cannot be used is told in a sentence."""
    assert said in (peft_problem(peft_folder(tmp_path, config)) or "")


def test_what_is_missing(tmp_path: Path) -> None:
    """Nothing, a file, a folder of something else, and an adapter without its weights are told apart."""
    assert "there is no such file or folder" in (peft_problem(tmp_path / "nope") or "")
    (tmp_path / "a.gguf").write_bytes(b"GGUF")
    assert "is a file" in (peft_problem(tmp_path / "a.gguf") or "")
    assert "has no adapter_config.json, so" in (peft_problem(tmp_path) or "")
    (tmp_path / "config.json").touch()
    assert "it is a whole model" in (peft_problem(tmp_path) or "")
    assert "unfinished download" in (peft_problem(peft_folder(tmp_path / "l", {"r": 8}, tensors="")) or "")


def test_llamacpp_says_how_to_convert(tmp_path: Path) -> None:
    """A folder in PEFT's format is refused with the command that makes a GGUF file of it; a GGUF file is fine."""
    problem = gguf_adapter_problem(peft_folder(tmp_path / "sql", {"r": 8})) or ""
    assert "convert_lora_to_gguf.py --base WEIGHTS_FOLDER --outfile" in problem
    (tmp_path / "a.gguf").write_bytes(b"GGUF")
    assert gguf_adapter_problem(tmp_path / "a.gguf") is None
    assert "is not a GGUF file" in (gguf_adapter_problem(tmp_path / "sql" / "adapter_model.safetensors") or "")


@pytest.mark.parametrize(
    ("config", "rank"),
    [({"r": 8}, 8), ({"r": 8, "rank_pattern": {"a": 64, "b": 4}}, 64), ({"r": None}, None), ("{", None)],
)
def test_the_highest_rank(tmp_path: Path, config: object, rank: int | None) -> None:
    """A rank of single modules counts too; one that cannot be read is None."""
    assert highest_rank(peft_folder(tmp_path, config)) == rank


def test_no_rank_without_a_file(tmp_path: Path) -> None:
    """Nor is there a doubt about a base that nobody names."""
    assert highest_rank(tmp_path) is None
    assert base_doubt(tmp_path, Path("/models/m")) is None


@pytest.mark.parametrize(
    ("trained_on", "weights", "is_doubtful"),
    [
        ("Qwen/Qwen2.5-1.5B", "/models/qwen2.5-1.5b", False),
        ("/root/llm/Qwen2.5-1.5B/", "/models/Qwen2.5-1.5B", False),
        ("Qwen/Qwen2.5-1.5B", "/cache/models--Qwen--Qwen2.5-1.5B/snapshots/8faed761", False),
        ("Qwen/Qwen2.5-1.5B", "/models/hf/Qwen/Qwen2.5-1.5B@main", False),
        ("Qwen/Qwen2.5-7B", "/models/Qwen2.5-1.5B", True),
        ("", "/models/m", False),
        (None, "/models/m", False),
        (5, "/models/m", False),
    ],
)
def test_another_base(tmp_path: Path, trained_on: object, weights: str, is_doubtful: bool) -> None:
    """A base of another name is worth a look, wherever the weights are kept."""
    adapter = peft_folder(tmp_path, {"r": 8, "base_model_name_or_path": trained_on})
    assert (base_doubt(adapter, Path(weights)) is not None) is is_doubtful


# --- engines ---


@pytest.mark.parametrize(("rank", "size"), [(1, "1"), (8, "8"), (9, "16"), (24, "32"), (512, "512")])
def test_vllm_makes_room_for_the_rank(tmp_path: Path, rank: int, size: str) -> None:
    """The least size vLLM has that holds the highest rank, so that its default of 16 turns nobody away."""
    low = LoraAdapter("low", peft_folder(tmp_path / "low", {"r": 1}))
    high = LoraAdapter("high", peft_folder(tmp_path / "high", {"r": rank}))
    argv = spec_of("vllm", low, high).argv
    assert argv[argv.index("--max-lora-rank") + 1] == size
    assert argv[argv.index("--max-loras") + 1] == "2"


@pytest.mark.parametrize(
    "said", [{"options": {"max_lora_rank": 64, "max_loras": 1}}, {"args": {"max_lora_rank": 64, "max-loras": 1}}]
)
def test_what_the_operator_says_of_sizes_wins(tmp_path: Path, said: dict[str, Any]) -> None:
    """A size below options or args is written once, as it was said."""
    argv = spec_of("vllm", LoraAdapter("a", peft_folder(tmp_path, {"r": 8})), **said).argv
    flags = [word.replace("_", "-") for word in argv]
    assert flags.count("--max-lora-rank") == flags.count("--max-loras") == 1
    assert flags[flags.index("--max-lora-rank") + 1] == "64"


def test_vllm_without_a_readable_rank(tmp_path: Path) -> None:
    """The size is then vLLM's to choose, and what is wrong with the adapter is vLLM's to say."""
    assert "--max-lora-rank" not in spec_of("vllm", LoraAdapter("a", tmp_path)).argv


def test_a_rank_beyond_vllms_sizes(tmp_path: Path) -> None:
    """More than vLLM's largest size is a problem of the adapter, told before any start."""
    assert "has rank 513" in (ADAPTERS["vllm"].adapter_problem(peft_folder(tmp_path, {"r": 513})) or "")
    assert ADAPTERS["vllm"].adapter_problem(peft_folder(tmp_path, {"r": 512})) is None


def test_llamacpp_is_asked_by_scales() -> None:
    """Every request says the scale of every adapter, so that the base stays the base."""
    first, second = (LoraAdapter(name, Path(f"/l/{name}.gguf")) for name in ("a", "b"))
    backend = replace(BACKEND, engine="llamacpp", adapters=(first, second))
    served = {model: ADAPTERS["llamacpp"].served(backend, model) for model in ("m", "a", "b")}
    for model, scales in {"m": (0.0, 0.0), "a": (1.0, 0.0), "b": (0.0, 1.0)}.items():
        assert served[model].name == "m"
        assert served[model].fields == {"lora": [{"id": n, "scale": scale} for n, scale in enumerate(scales)]}
    assert ADAPTERS["llamacpp"].served(replace(BACKEND, engine="llamacpp"), "m") == Served("m")


def test_llamacpp_cannot_name_a_comma() -> None:
    """A path that its command line would take for two is refused where it is written."""
    backend = replace(BACKEND, engine="llamacpp", adapters=(LoraAdapter("a", Path("/l/a,b.gguf")),))
    (objection,) = ADAPTERS["llamacpp"].objections(backend)
    assert (objection.model, objection.path) == ("a", ("adapter",))


@pytest.mark.parametrize("flag", ["lora", "--lora-scaled"])
def test_llamacpp_counts_its_adapters(flag: str) -> None:
    """A further adapter below args would shift the numbers; without adapters of our own it is the operator's affair."""
    backend = replace(BACKEND, engine="llamacpp", args={flag: "/l/x.gguf"})
    assert list(ADAPTERS["llamacpp"].objections(backend)) == []
    named = replace(backend, adapters=(LoraAdapter("a", Path("/l/a.gguf")),))
    (objection,) = ADAPTERS["llamacpp"].objections(named)
    assert objection.path == ("args", flag)
