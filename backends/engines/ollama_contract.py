"""A contract in a model of Ollama's: the template in the weights, and nothing of Ollama's own beside it.

Numbers in brackets are recordings of the real server, 0.33.0-rc2; sources name files of
https://github.com/ollama/ollama at that version.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from backends.adapter import Objection
from backends.contract_texts import relies_on_the_engine, template_problem, template_text, vocabulary_problem
from backends.engines.ollama_content import (
    GGUF_NAME,
    SAMPLING,
    Content,
    configured,
    content_problem,
    folder_content,
    is_modelfile,
    path_of,
    refused,
)
from backends.engines.ollama_modelfile import parse_modelfile
from backends.engines.ollama_parameters import RUNNER
from backends.gguf import further_ends
from backends.prompting import Prompting
from backends.settings import BackendSettings
from backends.sources import OllamaName
from chat_templates.contract import Contract
from chat_templates.forms.gguf_file import TEMPLATE_KEY, RewrittenGguf, read_header
from chat_templates.forms.ignored import ignored_by_ollama
from chat_templates.refusals import Unwritable
from chat_templates.rendering import DEFAULT


def read_under_contract(backend: BackendSettings) -> Content:
    """What *backend* is made of under its contract. Blocks: reads headers and small files.

    Of a Modelfile only FROM, ADAPTER and the parameters that a runner is started with count: its TEMPLATE, SYSTEM,
    RENDERER, PARSER and MESSAGEs would each change prompts (server/prompt.go, server/routes.go [16, 102]). Raises
    ResidenceRefused, OSError.
    """
    prompting, weights = backend.prompting, backend.weights
    assert prompting is not None, "who has no contract is read by read_content"
    if weights is None:
        raise _published()
    problem = content_problem(weights)
    if problem is not None:
        raise refused("weights_unusable", f"The weights cannot be used: {problem}.", "Correct the model's weights.")
    parameters, adapter = dict(SAMPLING), None
    if is_modelfile(weights):
        modelfile = parse_modelfile(weights.read_text(encoding="utf-8"))
        base = path_of(modelfile.base, weights.parent)
        if base is None:
            raise _published()
        parameters |= {name: value for name, value in modelfile.parameters.items() if name in RUNNER}
        adapter = weights.parent / modelfile.adapter if modelfile.adapter else None
        weights = base
    content = _content(weights, prompting.contract)
    stop = {"stop": list(prompting.contract.stop.strings)} if prompting.contract.stop.strings else {}
    return replace(content, adapter=adapter, parameters={**parameters, **stop, **configured(backend)})


def _content(weights: Path, contract: Contract) -> Content:
    text = template_text(contract)
    if weights.is_dir():
        return folder_content(weights, text)
    try:
        own = read_header(weights).values
    except Unwritable as problem:
        raise refused("weights_unreadable", f"The weights cannot be read: {problem}.", "Get the file anew.") from None
    ends = further_ends(weights, contract.stop.token_ids)
    if own.get(TEMPLATE_KEY) == text and not any(key.startswith(f"{TEMPLATE_KEY}.") for key in own):
        ends = {key: one for key, one in ends.items() if own.get(key) != one}
        if not ends:
            return Content(files={GGUF_NAME: weights}, template=text)
    return Content(files={GGUF_NAME: RewrittenGguf(weights, ((DEFAULT, text),), tuple(ends.items()))}, template=text)


def _published() -> Exception:
    return refused(
        "contract_unusable",
        "A published model brings a template of its own, which no contract can replace.",
        "Give the weights as files, or remove template.contract.",
    )


def contract_objections(backend: BackendSettings) -> Iterator[Objection]:
    """What would say what the contract says, and a model whose template cannot be replaced."""
    if backend.contract is None:
        return
    if isinstance(backend.source, OllamaName):
        message = "has no effect on a published model, which brings its own template"
        yield Objection(("template", "contract"), message, "remove it, or give the weights as files")
    if "stop" in backend.args:
        yield Objection(("args", "stop"), "is said by the contract", "remove it")


def contract_problem(prompting: Prompting, weights: Path | None) -> str | None:
    """Weights of another fine-tune, and why Ollama would not render with the template, where it is to. Blocks."""
    problem = vocabulary_problem(prompting, weights) or template_problem(prompting)
    if problem is not None or weights is None or not relies_on_the_engine(prompting):
        return problem
    try:
        refusal = ignored_by_ollama(weights)
    except Unwritable as unreadable:
        return str(unreadable)
    return str(refusal) if refusal is not None else None
