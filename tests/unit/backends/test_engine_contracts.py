"""Each engine is started so that it renders as the contract does, and nothing beside the contract says otherwise."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from backends.adapter import LaunchSpec, LinkedFolder
from backends.address import Address
from backends.engines import ADAPTERS
from backends.prompting import ContractChoice, Prompting
from backends.settings import BackendSettings, EngineSettings
from chat_templates.contract import Contract, MessageRules, Stop
from tests.gguf_files import write_gguf
from tests.oracle.folders import OWN, model_folder

PLACE = Address(host="127.0.0.1", port=18000)
FOLDER = Path("/state/runs/m")
TEMPLATE = "{{ mood }}{{ messages[0].content }}"
PINNED = '{% set mood = "calm" %}\n' + TEMPLATE
CONTRACT = Contract("tuned", {"default": TEMPLATE}, "here", pinned={"mood": "calm"}, stop=Stop((5, 2)))
WRITTEN = ("vllm", "lmdeploy", "llamacpp")


def backend_of(engine: str, weights: Path, contract: Contract = CONTRACT, **others: Any) -> BackendSettings:
    """A model of *engine* under *contract*; *others* are fields of Prompting, or else of BackendSettings."""
    said = {name: others.pop(name) for name in ("policy", "mode", "tokenizer") if name in others}
    prompting = Prompting(contract, Path("/c/tuned.contract.yaml"), **said)
    choice = ContractChoice(prompting.file, **said)
    return BackendSettings("m", engine, weights, contract=choice, prompting=prompting, **others)


def spec_of(backend: BackendSettings, *command: str) -> LaunchSpec:
    return ADAPTERS[backend.engine].launch_spec(backend, EngineSettings(command), PLACE, FOLDER)


def value_of(spec: LaunchSpec, flag: str) -> str:
    """What follows *flag*, which is there once."""
    assert spec.argv.count(flag) == 1
    return spec.argv[spec.argv.index(flag) + 1]


@pytest.mark.parametrize("engine", WRITTEN)
def test_the_template_is_the_contracts(engine: str, tmp_path: Path) -> None:
    """The file with the contract's template, its variables in it, is in the run's folder, and no other is named."""
    spec = spec_of(backend_of(engine, tmp_path))
    (name,) = [name for name in spec.files if name.endswith("chat_template.jinja")]
    assert spec.files[name] == PINNED
    assert not [word for word in spec.argv if word.startswith("/c/")]


def test_vllm(tmp_path: Path) -> None:
    """vLLM is named the template, the renderer that reads it, and a folder with the contract's stop ids."""
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": 9, "temperature": 0.6}')
    spec = spec_of(backend_of("vllm", tmp_path))
    assert value_of(spec, "--chat-template") == str(FOLDER / "chat_template.jinja")
    assert value_of(spec, "--tokenizer-mode") == "hf"
    assert value_of(spec, "--chat-template-content-format") == "string"
    assert value_of(spec, "--generation-config") == str(FOLDER / "generation")
    assert json.loads(str(spec.files["generation/generation_config.json"])) == {"eos_token_id": [2, 5]}
    as_given = replace(CONTRACT, messages=MessageRules(parts="as_given"))
    assert value_of(spec_of(backend_of("vllm", tmp_path, as_given)), "--chat-template-content-format") == "auto"


def test_lmdeploy(tmp_path: Path) -> None:
    """LMDeploy is given a folder like the weights', with the template and the stop ids in it and no other template."""
    weights = tmp_path / "mistral-instruct-exp"
    weights.mkdir()
    spec = spec_of(backend_of("lmdeploy", weights))
    assert str(FOLDER / "model") in spec.argv
    assert str(weights) not in spec.argv
    assert value_of(spec, "--chat-template") == "hf"
    folder = spec.files["model"]
    assert isinstance(folder, LinkedFolder)
    assert folder.origin == weights
    assert {"chat_template.jinja", "additional_chat_templates", "generation_config.json"} <= folder.without
    assert json.loads(str(spec.files["model/generation_config.json"])) == {"eos_token_id": [2, 5]}
    two = replace(CONTRACT, templates={"default": TEMPLATE, "tool_use": "{{ tools }}"})
    files = spec_of(backend_of("lmdeploy", weights, two)).files
    assert files["model/additional_chat_templates/tool_use.jinja"] == "{{ tools }}"
    assert next(iter(files)) == "model", "what stands in the folder is written after it"


def test_llamacpp(tmp_path: Path) -> None:
    """llama.cpp's own habits are switched off, and what its environment would say of prompts is taken away."""
    spec = spec_of(backend_of("llamacpp", tmp_path))
    assert value_of(spec, "--chat-template-file") == str(FOLDER / "chat_template.jinja")
    assert {"--jinja", "--no-reasoning-preserve", "--no-prefill-assistant"} <= set(spec.argv)
    assert "--override-kv" not in spec.argv, "the embedded server has no place for it"
    assert "LLAMA_ARG_CHAT_TEMPLATE_KWARGS" in spec.env_removed


def test_stop_ids_of_a_llama_server(tmp_path: Path) -> None:
    """Those that are not the file's EOS are named as its other two ends; a third has no place."""
    weights = write_gguf(tmp_path / "m.gguf", eos=2)

    def said(*ids: int) -> str:
        contract = replace(CONTRACT, stop=Stop(ids))
        argv = spec_of(backend_of("llamacpp", weights, contract), "/opt/llama-server").argv
        return argv[argv.index("--override-kv") + 1] if "--override-kv" in argv else ""

    assert said(2) == said() == ""
    assert said(5, 2) == "tokenizer.ggml.eot_token_id=int:5"
    assert said(5, 2, 7) == said(5, 2, 7, 9) == "tokenizer.ggml.eot_token_id=int:5,tokenizer.ggml.eom_token_id=int:7"


@pytest.mark.parametrize(
    ("engine", "settings", "path"),
    [
        ("vllm", {"args": {"chat-template": "x"}}, ("args", "chat-template")),
        ("vllm", {"args": {"trust_request_chat_template": True}}, ("args", "trust_request_chat_template")),
        ("vllm", {"args": {"tokenizer-mode": "mistral"}}, ("args", "tokenizer-mode")),
        ("vllm", {"args": {"default-chat-template-kwargs": "{}"}}, ("args", "default-chat-template-kwargs")),
        ("vllm", {"args": {"override-generation-config": "{}"}}, ("args", "override-generation-config")),
        ("vllm", {"options": {"generation_config": "vllm"}}, ("options", "generation_config")),
        ("lmdeploy", {"args": {"generation-config": "x"}}, ("args", "generation-config")),
        ("lmdeploy", {"options": {"generation_config": "lmdeploy"}}, ("options", "generation_config")),
        ("llamacpp", {"args": {"no-jinja": True}}, ("args", "no-jinja")),
        ("llamacpp", {"args": {"chat_template_kwargs": "{}"}}, ("args", "chat_template_kwargs")),
        ("llamacpp", {"args": {"reasoning-preserve": True}}, ("args", "reasoning-preserve")),
        ("llamacpp", {"env": {"LLAMA_ARG_CHAT_TEMPLATE": "x"}}, ("env", "LLAMA_ARG_CHAT_TEMPLATE")),
    ],
)
def test_nothing_beside_the_contract(engine: str, settings: Any, path: tuple[str, ...], tmp_path: Path) -> None:
    """A flag, option or variable that would say what the contract says is an objection."""
    found = ADAPTERS[engine].objections(backend_of(engine, tmp_path, **settings))
    assert path in [objection.path for objection in found]


@pytest.mark.parametrize("engine", WRITTEN)
def test_without_a_contract_nothing_changes(engine: str, tmp_path: Path) -> None:
    """What a contract owns is the operator's elsewhere."""
    backend = BackendSettings("m", engine, tmp_path)
    assert not ADAPTERS[engine].contract_problem(backend)
    assert spec_of(backend).files == {}


@pytest.mark.parametrize(
    ("engine", "config"), [("vllm", {"model_type": "gpt_oss"}), ("lmdeploy", {"architectures": ["GptOssForCausalLM"]})]
)
def test_models_that_an_engine_renders_by_itself(engine: str, config: Any, tmp_path: Path) -> None:
    """Where the engine is to render, a model for which it ignores or changes templates is refused (T13)."""
    (tmp_path / "config.json").write_text(json.dumps(config))

    def problem(**said: Any) -> str | None:
        return ADAPTERS[engine].contract_problem(backend_of(engine, tmp_path, **said))

    assert problem(mode="native")
    assert problem(policy="off")
    assert problem(mode="strict") is problem() is None, "then it is given the finished prompt, or the proof decides"
    (tmp_path / "config.json").write_text("{}")
    assert problem(mode="native") is None
    (tmp_path / "config.json").unlink()
    assert problem(mode="native") is None
    file = tmp_path / "m.gguf"
    file.touch()
    assert ADAPTERS[engine].contract_problem(backend_of(engine, file, mode="native")) is None


def test_stop_texts_that_lmdeploy_drops(tmp_path: Path) -> None:
    """LMDeploy stops at single tokens: a stop text of several is refused (T12), one of a single token is not."""
    tokenizer = model_folder(tmp_path, OWN)

    def problem(text: str) -> str | None:
        contract = replace(CONTRACT, stop=Stop((), (text,)))
        return ADAPTERS["lmdeploy"].contract_problem(backend_of("lmdeploy", tmp_path, contract, tokenizer=tokenizer))

    assert str(problem("### Question")).startswith("T12")
    assert problem("</s>") is None


@pytest.mark.parametrize("engine", ["llamacpp", "ollama"])
def test_a_gguf_file_of_another_fine_tune(engine: str, tmp_path: Path) -> None:
    """A marker of the template that is no token of the GGUF file is told before a start, in every mode (T11)."""
    weights = write_gguf(tmp_path / "m.gguf")
    marked = replace(CONTRACT, templates={"default": "<|im_start|>{{ messages[0].content }}<|eot_id|>"})
    for mode in ("native", "strict"):
        problem = ADAPTERS[engine].contract_problem(backend_of(engine, weights, marked, mode=mode))
        assert str(problem).startswith(f"{weights}: T11: the vocabulary has no token <|eot_id|>;")
        assert ADAPTERS[engine].contract_problem(backend_of(engine, weights, mode=mode)) is None
