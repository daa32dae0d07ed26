"""A folder from which LMDeploy takes a Jinja template: a model's tokenizer with another template beside it.

``--chat-template FILE`` with ``{"model_name": "hf", "model_path": FOLDER}`` renders with the template of the tokenizer
in FOLDER (lmdeploy/model.py, `HFChatTemplate`, LMDeploy 0.18.0); a Jinja file itself it does not take.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

from chat_templates.model_folder import DEFAULT, TEMPLATE_FILE, TEMPLATE_FOLDER, TOKENIZER_FILE
from chat_templates.refusals import Unwritable

CONFIG_NAME = "chat_template.json"
OVERLAY_NAME = "template"
WEIGHT_SUFFIXES = frozenset({".safetensors", ".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack", ".onnx"})
OTHER_TEMPLATES = frozenset({TEMPLATE_FILE, TEMPLATE_FOLDER, "chat_template.json"})
"""Where transformers 5.23 looks for templates besides tokenizer_config.json, which these overrule."""


def overlay_texts(folder: Path, templates: Mapping[str, str]) -> dict[str, str]:
    """The files of *folder* that are written, by their paths in it. *folder* is where it will be when LMDeploy runs."""
    texts = {CONFIG_NAME: json.dumps({"model_name": "hf", "model_path": str(folder / OVERLAY_NAME)}) + "\n"}
    for name, text in templates.items():
        path = TEMPLATE_FILE if name == DEFAULT else f"{TEMPLATE_FOLDER}/{name}.jinja"
        texts[f"{OVERLAY_NAME}/{path}"] = text
    return texts


def overlay_copies(weights: Path) -> Iterator[tuple[str, Path]]:
    """The files of the overlay that are copied from a model's folder, by their paths: all but weights and templates.

    Raises Unwritable where *weights* is no folder with a tokenizer.
    """
    if not (weights / TOKENIZER_FILE).is_file() and not (weights / "tokenizer.model").is_file():
        raise Unwritable(f"{weights}: is no model folder with a tokenizer, which LMDeploy's overlay is made from")
    for path in sorted(weights.iterdir()):
        is_other = path.suffix in WEIGHT_SUFFIXES or path.name in OTHER_TEMPLATES or path.name.startswith(".")
        if path.is_file() and not is_other:
            yield f"{OVERLAY_NAME}/{path.name}", path
