"""A contract as an engine is given it: one template that needs nothing more, and where answers end."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from backends.adapter import Objection
from backends.argv import owned_objections
from backends.prompting import Prompting
from backends.settings import BackendSettings
from chat_templates.contract import SAMPLING, Contract
from chat_templates.forms.gguf_file import vocabulary
from chat_templates.forms.ignored import is_gguf
from chat_templates.forms.one_jinja import one_template
from chat_templates.forms.pinned_jinja import with_variables
from chat_templates.model_folder import ModelFolderUnreadable, read_config
from chat_templates.refusals import CannotDerive, Unwritable
from chat_templates.vocabulary import missing_tokens

TEMPLATE_FILE = "chat_template.jinja"
GENERATION_CONFIG = "generation_config.json"

LIMITS = frozenset({"max_length", "max_new_tokens"})
"""Of a ``generation_config.json``: no part of a contract, and vLLM takes them for the most that a request may ask for
(vllm/entrypoints/openai/chat_completion/serving.py, 0.32.0)."""


def contract_objections(backend: BackendSettings, owned: Mapping[str, str]) -> Iterator[Objection]:
    """Flags of *owned*, and options, that would say what the contract says. *owned*: flag -> what to do."""
    if backend.contract is None:
        return
    yield from owned_objections(backend.args, owned)
    if "generation_config" in backend.options:
        yield Objection(("options", "generation_config"), "is said by the contract", "remove it")


def relies_on_the_engine(prompting: Prompting) -> bool:
    """Whether requests may be rendered by the engine without a proof that it does so rightly."""
    return prompting.mode == "native" or (prompting.mode == "auto" and prompting.policy == "off")


def template_problem(prompting: Prompting) -> str | None:
    """Why no template can be made that needs nothing of its engine, where one is needed."""
    try:
        with_variables(prompting.contract.renderer())
    except (CannotDerive, Unwritable) as problem:
        return f"{prompting.file}: {problem}" if relies_on_the_engine(prompting) else None
    return None


def vocabulary_problem(prompting: Prompting, weights: Path | None) -> str | None:
    """Why the GGUF file *weights* is not of the contract's fine-tune: a marker of the template is no token of it (T11).

    Blocks: a vocabulary of 150,000 tokens takes half a second.
    """
    if weights is None or not is_gguf(weights):
        return None
    try:
        refusal = missing_tokens(prompting.contract.templates.values(), vocabulary(weights))
    except Unwritable as unreadable:
        return str(unreadable)
    return f"{weights}: {refusal}" if refusal is not None else None


def template_text(contract: Contract) -> str:
    """The one template, with the pinned variables and the frozen clock in it.

    Where they cannot be written into it, it stands as it is: what the engine makes of that is not proven, and so not
    asked for.
    """
    try:
        return one_template(with_variables(contract.renderer()))
    except (CannotDerive, Unwritable):
        return one_template(contract.templates)


def template_texts(contract: Contract) -> dict[str, str]:
    """The same by name, for an engine that chooses as transformers does."""
    try:
        return with_variables(contract.renderer())
    except (CannotDerive, Unwritable):
        return dict(contract.templates)


def generation_config(contract: Contract, weights: Path | None) -> str:
    """A ``generation_config.json`` like that in the folder *weights*, with the contract's stop ids and sampling.

    Without stop ids in the contract, those of the weights stay. Blocks: reads small files.
    """
    own = _own_config(weights)
    kept = {name: value for name, value in own.items() if name not in SAMPLING and name not in LIMITS}
    if contract.stop.token_ids:
        kept["eos_token_id"] = list(contract.stop.token_ids)
    return json.dumps({**kept, **contract.sampling}, indent=2) + "\n"


def _own_config(weights: Path | None) -> dict[str, Any]:
    if weights is None or not weights.is_dir():
        return {}
    try:
        own = read_config(weights / GENERATION_CONFIG)
        if own:
            return own
        # where transformers looks next (GenerationConfig.from_model_config)
        end = read_config(weights / "config.json").get("eos_token_id")
    # the engine reads them too, and says so
    except ModelFolderUnreadable:
        return {}
    return {} if end is None else {"eos_token_id": end}
