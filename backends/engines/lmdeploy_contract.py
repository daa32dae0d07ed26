"""A contract in LMDeploy's command line. Sources name files of LMDeploy 0.18.0."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from backends.adapter import LinkedFolder, RunFile
from backends.contract_texts import (
    GENERATION_CONFIG,
    TEMPLATE_FILE,
    generation_config,
    relies_on_the_engine,
    template_problem,
    template_texts,
)
from backends.prompting import Prompting
from chat_templates.forms.lmdeploy_overlay import OTHER_TEMPLATES
from chat_templates.model_folder import DEFAULT, TEMPLATE_FOLDER, ModelFolderUnreadable, read_config
from chat_templates.tokenizing import Tokenizer
from chat_templates.vocabulary import long_stops

MODEL_FOLDER = "model"

CONTRACT_OWNED = {"generation-config": "remove it: the contract says it"}


def contract_files(prompting: Prompting, weights: Path) -> Mapping[str, RunFile]:
    """A model folder like *weights*, to be served in its place. Blocks: reads small files.

    The stop ids of every request are those of the ``generation_config.json`` beside the weights, whatever
    --generation-config names (serve/core/async_engine.py, hf_gen_cfg), so it takes a folder of its own to change them.
    """
    texts = template_texts(prompting.contract)
    others = {f"{MODEL_FOLDER}/{TEMPLATE_FOLDER}/{name}.jinja": text for name, text in texts.items() if name != DEFAULT}
    default = {f"{MODEL_FOLDER}/{TEMPLATE_FILE}": texts[DEFAULT]} if DEFAULT in texts else {}
    return {
        MODEL_FOLDER: LinkedFolder(weights, without=frozenset({*OTHER_TEMPLATES, GENERATION_CONFIG})),
        **default,
        **others,
        f"{MODEL_FOLDER}/{GENERATION_CONFIG}": generation_config(prompting.contract, weights),
    }


def contract_problem(prompting: Prompting, weights: Path | None) -> str | None:
    """What LMDeploy would do otherwise than the contract says, seen in its files. Blocks: reads the tokenizer."""
    problem = template_problem(prompting)
    if problem is not None:
        return problem
    try:
        if prompting.tokenizer is not None and prompting.contract.stop.strings:
            refusal = long_stops(prompting.contract.stop.strings, Tokenizer.read(prompting.tokenizer))
            if refusal is not None:
                return str(refusal)
        if weights is not None and weights.is_dir() and relies_on_the_engine(prompting):
            named = read_config(weights / "config.json").get("architectures") or ()
            if "GptOssForCausalLM" in named:
                return "LMDeploy takes a word out of the prompts of gpt-oss (model.py HFChatTemplate.messages2prompt)"
    except ModelFolderUnreadable as unreadable:
        return str(unreadable)
    return None
