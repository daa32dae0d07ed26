"""What a model for Ollama is made of: its files, and what they say of templates and parameters. Reads, starts nothing.

Numbers in brackets are recordings of the real server, 0.33.0-rc2; sources name files of
https://github.com/ollama/ollama at that version.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from backends.diagnosis import Diagnosis
from backends.engines.ollama_modelfile import parse_modelfile
from backends.engines.ollama_options import OPTIONS
from backends.engines.ollama_parameters import read_parameter
from backends.gguf import CHAT_TEMPLATE, GgufUnreadable, read_metadata
from backends.residence import ResidenceRefused, Source
from backends.settings import BackendSettings
from backends.sources import OllamaName
from backends.weights import gguf_problem, hf_folder_problem, missing_problem
from chat_templates.sources.modelfile_parsing import Modelfile, ModelfileUnreadable

GGUF_NAME = "model.gguf"
TOKENIZER_CONFIG = "tokenizer_config.json"
_SPLIT_GGUF = re.compile(r"-\d{5}-of-\d{5}\.gguf$")

# /v1 sends these for a request that names none, and so do OpenAI's servers (openai/openai.go FromChatRequest). The
# native API would take 0.8 and 0.9 (api/types.go DefaultOptions).
SAMPLING = {"temperature": 1.0, "top_p": 1.0}


@dataclass(frozen=True, slots=True)
class Content:
    """A model as it is to be in the daemon.

    *files*: name in the daemon -> what is in it. *origin* is the published model it is made from,
    instead of files. *template* is the chat template that has to be in force: Jinja, or Go's when *is_go*; None when
    whatever there is is right. *has_split* tells that the tokenizer cuts text by patterns of its own first.
    """

    files: Mapping[str, Source] = field(default_factory=dict)
    origin: str = ""
    adapter: Path | None = None
    template: str | None = None
    is_go: bool = False
    has_split: bool = False
    parameters: Mapping[str, Any] = field(default_factory=dict)
    extras: Mapping[str, Any] = field(default_factory=dict)
    """Further fields of the creation: system, messages, renderer, parser, template, license."""


def content_problem(weights: Path) -> str | None:
    """What is wrong with *weights* for Ollama, in a sentence, as far as a look at the files can tell."""
    missing = missing_problem(weights)
    if missing is not None:
        return missing
    if weights.is_dir():
        return hf_folder_problem(weights) or _without_safetensors(weights)
    if is_modelfile(weights):
        try:
            modelfile = parse_modelfile(weights.read_text(encoding="utf-8"))
        except (ModelfileUnreadable, UnicodeDecodeError) as problem:
            return f"{weights}: {problem}"
        base = path_of(modelfile.base, weights.parent)
        return content_problem(base) if base is not None else None
    if _SPLIT_GGUF.search(weights.name):
        return f"{weights}: is one of several parts; join them first (llama-gguf-split --merge), for Ollama takes one"
    return gguf_problem(weights)


def is_modelfile(weights: Path) -> bool:
    """Whether *weights* is a Modelfile, by its name."""
    return weights.name.lower().startswith("modelfile") or weights.suffix.lower() == ".modelfile"


def _without_safetensors(weights: Path) -> str | None:
    if any(weights.glob("*.safetensors")):
        return None
    return f"{weights}: holds no *.safetensors; Ollama is given those only, or one GGUF file"


def path_of(base: str, folder: Path) -> Path | None:
    """A Modelfile's FROM as a path; None when it is a published model's name, as `ollama create` decides it."""
    path = (folder / Path(base).expanduser()).resolve()
    return path if path.exists() or base.startswith((".", "/", "~")) else None


# reading


def read_content(backend: BackendSettings, *, go_templates: bool | None) -> Content:
    """What *backend* is made of. *go_templates*: whether the daemon renders with Go templates, None when not known.

    Blocks: reads headers and small files. Raises ResidenceRefused, OSError.
    """
    content = _content(backend, go_templates)
    if backend.template_is_engines or backend.readiness == "embed":
        content = replace(content, template=None)
    elif not content.origin and not content.template and not content.is_go:
        raise refused(
            "template_missing",
            "The weights hold no chat template, and Ollama would take ChatML.",
            "Write models.<name>.template: {from: FILE} (for a folder), or {engine: true} if ChatML is right.",
        )
    return replace(content, parameters={**content.parameters, **configured(backend)})


def _content(backend: BackendSettings, go_templates: bool | None) -> Content:
    if isinstance(backend.source, OllamaName):
        return Content(origin=backend.source.name)
    weights = backend.weights
    assert weights is not None, "a model without a published name has weights"
    problem = content_problem(weights)
    if problem is not None:
        raise refused("weights_unusable", f"The weights cannot be used: {problem}.", "Correct the model's weights.")
    if is_modelfile(weights):
        modelfile = parse_modelfile(weights.read_text(encoding="utf-8"))
        return _of_modelfile(modelfile, weights, backend, go_templates)
    return replace(_of_path(weights, backend.template_file), parameters=SAMPLING)


def configured(backend: BackendSettings) -> dict[str, Any]:
    """The parameters that the configuration says."""
    flags = {option.name: option.flag for option in OPTIONS}
    found = {flags[name]: read_parameter(flags[name], value) for name, value in backend.options.items()}
    found |= {name: read_parameter(name, value) for name, value in backend.args.items()}
    if backend.context_length is not None:
        found["num_ctx"] = backend.context_length
    return found


def _of_modelfile(modelfile: Modelfile, path: Path, backend: BackendSettings, go_templates: bool | None) -> Content:
    if modelfile.template and go_templates is False and not backend.template_is_engines:
        raise refused(
            "template_not_kept",
            f"{path.name} has a TEMPLATE in Go's language, which this daemon does not use: it renders with the template"
            " in the weights.",
            "Give the folder or GGUF file itself as weights, or write engines.ollama.go_templates: true, or remove"
            " TEMPLATE.",
        )
    base = path_of(modelfile.base, path.parent)
    content = Content(origin=modelfile.base) if base is None else _of_path(base, backend.template_file)
    words = ("system", "renderer", "parser", "license", "template")
    extras: dict[str, Any] = {word: getattr(modelfile, word) for word in words if getattr(modelfile, word)}
    if modelfile.messages:
        extras["messages"] = [dict(message) for message in modelfile.messages]
    if modelfile.template or modelfile.renderer:
        content = replace(content, template=modelfile.template or None, is_go=True)
    return replace(
        content,
        adapter=path.parent / modelfile.adapter if modelfile.adapter else None,
        parameters={**(SAMPLING if base is not None else {}), **modelfile.parameters},
        extras=extras,
    )


def _of_path(weights: Path, template_file: Path | None) -> Content:
    wanted = template_file.read_text(encoding="utf-8") if template_file is not None else None
    return folder_content(weights, wanted) if weights.is_dir() else _of_gguf(weights, wanted)


def _of_gguf(weights: Path, wanted: str | None) -> Content:
    try:
        own = read_metadata(weights, {CHAT_TEMPLATE}).get(CHAT_TEMPLATE)
    except GgufUnreadable as problem:
        raise refused("weights_unreadable", f"The weights cannot be read: {problem}.", "Get the file anew.") from None
    if wanted is not None and wanted != own:
        raise refused(
            "template_not_kept",
            "The template of the configuration is another one than that in the GGUF file, and Ollama uses the latter.",
            "Write the template into the file (gguf-new-metadata --chat-template-file), or give the safetensors folder"
            " as weights, or use llamacpp.",
        )
    return Content(files={GGUF_NAME: weights}, template=str(own) if own else None)


def folder_content(weights: Path, wanted: str | None) -> Content:
    """As `ollama create` picks files (parser/parser.go filesForModel), with two of them mended.

    The converter reads rope_theta at the top level of config.json only, where transformers 5 does not write it any
    more [215, 216], and the chat template in tokenizer_config.json only, which loses chat_template.jinja [27, 35].
    """
    files: dict[str, Source] = {path.name: path for path in sorted(_picked(weights))}
    config = _json(weights / "config.json")
    mended = with_rope(config)
    if mended != config:
        files["config.json"] = json.dumps(mended, indent=2)
    tokenizer = _json(weights / TOKENIZER_CONFIG) if (weights / TOKENIZER_CONFIG).is_file() else {}
    template = wanted if wanted is not None else _template_in(weights, tokenizer)
    if template is not None and tokenizer.get("chat_template") != template:
        files[TOKENIZER_CONFIG] = json.dumps({**tokenizer, "chat_template": template}, indent=2, ensure_ascii=False)
    return Content(files=files, template=template, has_split=_has_split(weights / "tokenizer.json"))


def _picked(weights: Path) -> Iterator[Path]:
    safetensors = list(weights.glob("model*.safetensors")) or list(weights.glob("consolidated*.safetensors"))
    yield from safetensors or weights.glob("*.safetensors")
    yield from weights.glob("*.json")
    yield from weights.glob("tokenizer.model")


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as problem:
        raise refused("weights_unreadable", f"{path} is not JSON: {problem}.", "Correct the file.") from None
    return found if isinstance(found, dict) else {}


def with_rope(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config.json as transformers 4 would have written it: rope_theta and rope_scaling at its top level."""
    mended = dict(config)
    if isinstance(config.get("text_config"), Mapping):
        mended["text_config"] = with_rope(config["text_config"])
    rope = config.get("rope_parameters")
    if not isinstance(rope, Mapping):
        return mended
    by_layer = {kind: given for kind, given in rope.items() if isinstance(given, Mapping)}
    full = by_layer.get("full_attention", rope)
    if "rope_theta" in full:
        mended.setdefault("rope_theta", full["rope_theta"])
    if "rope_theta" in by_layer.get("sliding_attention", {}):
        mended.setdefault("rope_local_base_freq", by_layer["sliding_attention"]["rope_theta"])
    scaling = {name: value for name, value in full.items() if name != "rope_theta" and not isinstance(value, Mapping)}
    if scaling.get("rope_type", "default") != "default" and mended.get("rope_scaling") is None:
        mended["rope_scaling"] = scaling
    return mended


def _template_in(weights: Path, tokenizer: Mapping[str, Any]) -> str | None:
    """The folder's own template, as transformers picks it: chat_template.jinja overrules tokenizer_config.json."""
    file = weights / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    own = tokenizer.get("chat_template")
    if isinstance(own, list):
        own = next((entry.get("template") for entry in own if entry.get("name") == "default"), None)
    return own if isinstance(own, str) else None


def _has_split(tokenizer: Path) -> bool:
    """Whether the tokenizer cuts text by a regular expression, of which the converter knows a few (tokenizer.go)."""
    if not tokenizer.is_file():
        return False
    cutter = _json(tokenizer).get("pre_tokenizer") or {}
    return any(
        step.get("type") == "Split" and bool((step.get("pattern") or {}).get("Regex"))
        for step in cutter.get("pretokenizers") or ()
    )


def refused(code: str, reason: str, advice: str, *, permanent: bool = True) -> ResidenceRefused:
    """A refusal with this diagnosis."""
    return ResidenceRefused(Diagnosis(code, reason, advice, permanent))
