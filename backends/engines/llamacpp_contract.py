"""A contract in llama.cpp's command line. Sources name files of llama.cpp, build 11549."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from backends.adapter import Objection
from backends.argv import owned_objections
from backends.contract_texts import TEMPLATE_FILE, template_problem, template_text, vocabulary_problem
from backends.gguf import further_ends
from backends.prompting import Prompting
from backends.settings import BackendSettings

_REMEDY = "remove it: the contract says it"
OWNED = dict.fromkeys(
    (
        "jinja", "no-jinja", "chat-template-kwargs", "reasoning", "rea", "reasoning-preserve", "no-reasoning-preserve",
        "prefill-assistant", "no-prefill-assistant", "override-kv", "skip-chat-parsing",
    ),
    _REMEDY,
)  # fmt: skip

ENV = (
    # llama-server takes flags from its environment too, and these change a prompt (common/arg.cpp).
    "LLAMA_ARG_CHAT_TEMPLATE",
    "LLAMA_ARG_CHAT_TEMPLATE_FILE",
    "LLAMA_ARG_CHAT_TEMPLATE_KWARGS",
    "LLAMA_ARG_JINJA",
    "LLAMA_ARG_PREFILL_ASSISTANT",
    "LLAMA_ARG_REASONING",
    "LLAMA_ARG_REASONING_PRESERVE",
    "LLAMA_ARG_SKIP_CHAT_PARSING",
)


def contract_flags(prompting: Prompting, folder: Path) -> list[str]:
    """The flags under which llama.cpp renders as the contract does, its file in *folder*.

    Earlier reasoning is kept, and a last message of the assistant continued, unless it is told not to (common/arg.cpp).
    """
    return ["--chat-template-file", str(folder / TEMPLATE_FILE), "--no-reasoning-preserve", "--no-prefill-assistant"]


def end_flags(stop_ids: Sequence[int], weights: Path | None) -> list[str]:
    """The flags that make *stop_ids* ends of generation, beside the EOS of the GGUF file: two of them have a place.

    An override counts where the file lacks the key, too (src/llama-model-loader.cpp GGUFMeta). Not run with a real
    binary; the same keys in a file's head were. Blocks: reads the head of the file. What has no place shows when the
    contract is proven.
    """
    further = further_ends(weights, stop_ids)
    said = ",".join(f"{key}=int:{one}" for key, one in further.items())
    return ["--override-kv", said] if said else []


def contract_files(prompting: Prompting) -> Mapping[str, str]:
    """What those flags name."""
    return {TEMPLATE_FILE: template_text(prompting.contract)}


def contract_objections(backend: BackendSettings) -> Iterator[Objection]:
    """Flags and variables that would say what the contract says."""
    if backend.contract is None:
        return
    yield from owned_objections(backend.args, OWNED)
    for name in ENV:
        if name in backend.env:
            yield Objection(("env", name), "would change the contract's prompts", "remove it")


def contract_problem(prompting: Prompting, weights: Path | None) -> str | None:
    """Weights of another fine-tune, and a template that nothing can be pinned in, where the engine is to render."""
    return vocabulary_problem(prompting, weights) or template_problem(prompting)
