"""A contract in vLLM's command line. Sources name files of vLLM 0.32.0."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from backends.contract_texts import (
    GENERATION_CONFIG,
    TEMPLATE_FILE,
    generation_config,
    relies_on_the_engine,
    template_problem,
    template_text,
)
from backends.prompting import Prompting
from chat_templates.forms.ignored import ignored_by_vllm_hf
from chat_templates.model_folder import ModelFolderUnreadable

GENERATION_FOLDER = "generation"

_REMEDY = "remove it: the contract says it"
CONTRACT_OWNED = dict.fromkeys(
    (
        "tokenizer-mode", "chat-template-content-format", "default-chat-template-kwargs", "generation-config",
        "override-generation-config",
    ),
    _REMEDY,
)  # fmt: skip


def contract_flags(prompting: Prompting, folder: Path) -> list[str]:
    """The flags under which vLLM renders as the contract does, its files in *folder*.

    ``hf`` is the tokeniser and the renderer that reads a template; left to itself vLLM takes another one for some
    architectures, and for a folder with Mistral's files (config/model.py, tokenizers/registry.py). A folder is the only
    place from which it takes stop ids for all requests: --override-generation-config does not reach them
    (config/model.py try_get_generation_config, sampling_params.py update_from_generation_config).
    """
    is_joined = prompting.contract.messages.parts != "as_given"
    return [
        "--chat-template", str(folder / TEMPLATE_FILE),
        # Parts are one text by then; what vLLM would detect is whether to make parts of a text.
        "--chat-template-content-format", "string" if is_joined else "auto",
        "--tokenizer-mode", "hf",
        "--generation-config", str(folder / GENERATION_FOLDER),
    ]  # fmt: skip


def contract_files(prompting: Prompting, weights: Path | None) -> Mapping[str, str]:
    """What those flags name. Blocks: reads small files."""
    return {
        TEMPLATE_FILE: template_text(prompting.contract),
        f"{GENERATION_FOLDER}/{GENERATION_CONFIG}": generation_config(prompting.contract, weights),
    }


def contract_problem(prompting: Prompting, weights: Path | None) -> str | None:
    """Why vLLM would not render with the contract's template, where it is to."""
    problem = template_problem(prompting)
    if problem is not None or weights is None or not weights.is_dir() or not relies_on_the_engine(prompting):
        return problem
    try:
        refusal = ignored_by_vllm_hf(weights)
    except ModelFolderUnreadable as unreadable:
        return str(unreadable)
    return str(refusal) if refusal is not None else None
