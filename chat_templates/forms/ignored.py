"""Models for which an engine ignores every template that it is given (T13)."""

from __future__ import annotations

from pathlib import Path

from chat_templates.forms.gguf_file import MAGIC, read_header
from chat_templates.model_folder import read_config
from chat_templates.refusals import Refusal

# vllm/config/model.py (the tokenizer mode by architecture), vllm/renderers/online_renderer.py (Harmony), vLLM 0.32.0
VLLM_ARCHITECTURES = frozenset({
    "DeepseekV32ForCausalLM", "DeepseekV41ForCausalLM", "DeepseekV4ForCausalLM", "DeepseekV4ForConditionalGeneration",
    "GptOssForCausalLM", "InklingForCausalLM", "InklingForConditionalGeneration", "KimiK3ForConditionalGeneration",
    "MoonshotKimiaForCausalLM",
})  # fmt: skip
# vllm/tokenizers/registry.py, `resolve_tokenizer_args`
MISTRAL_FILES = ("tekken.json", "tokenizer.model.v*")
# server/create.go: a RENDERER by itself; gpt-oss: Harmony. Ollama 0.32.15
OLLAMA_ARCHITECTURES = ("gemma4", "gptoss", "gpt-oss", "laguna", "nemotron_h")


def ignored_by_vllm(weights: Path) -> Refusal | None:
    """Why vLLM ignores a template for the model in the folder *weights*. Raises ModelFolderUnreadable."""
    named = read_config(weights / "config.json").get("architectures")
    for architecture in named if isinstance(named, list) else ():
        if architecture in VLLM_ARCHITECTURES:
            return Refusal("T13", f"vLLM renders {architecture} by itself and ignores every template")
    if any(next(weights.glob(pattern), None) is not None for pattern in MISTRAL_FILES):
        sentence = "vLLM takes Mistral's own renderer where it finds tekken.json or tokenizer.model.v*; remove them"
        return Refusal("T13", sentence)
    return None


def ignored_by_vllm_hf(weights: Path) -> Refusal | None:
    """The same of a vLLM that is started with ``--tokenizer-mode hf``: only Harmony is left, which looks at the model.

    Raises ModelFolderUnreadable. Source: vllm/renderers/online_renderer.py, ``use_harmony``.
    """
    if read_config(weights / "config.json").get("model_type") == "gpt_oss":
        return Refusal("T13", "vLLM renders gpt_oss by itself (Harmony) and ignores every template")
    return None


def ignored_by_ollama(weights: Path) -> Refusal | None:
    """Why Ollama ignores a template for *weights*, where that is a GGUF file. Raises Unwritable."""
    if not is_gguf(weights):
        return None
    architecture = str(read_header(weights).values.get("general.architecture", ""))
    if architecture.startswith(OLLAMA_ARCHITECTURES):
        return Refusal("T13", f"Ollama renders {architecture} by itself and ignores every template")
    return None


def is_gguf(path: Path) -> bool:
    """Whether *path* is a file that begins as GGUF does."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(len(MAGIC)) == MAGIC
