"""What each cause means, and what mends it: data, by the cause's code and the engine's word."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

FINISHED = "have finished prompts sent instead: models.<name>.template.mode: auto, or strict"

TEMPLATE: Mapping[str, str] = {
    "vllm": "see that it runs with --chat-template FILE and --tokenizer-mode hf, as a contract has it started",
    "lmdeploy": "see that its model folder holds the contract's chat_template.jinja, as a contract has it started",
    "llamacpp": "see that it runs with --jinja --chat-template-file FILE, as a contract has it started",
    "ollama": "set OLLAMA_GO_TEMPLATE=0, and remove TEMPLATE, SYSTEM and RENDERER from the Modelfile",
}


@dataclass(frozen=True, slots=True)
class Meaning:
    """What a cause is. sentence: goes on from "the engine". fixes: what to do, by the engine; others get *FINISHED*."""

    sentence: str
    fixes: Mapping[str, str] = field(default_factory=dict)


MEANINGS: Mapping[str, Meaning] = {
    "double_bos": Meaning(
        "puts a second BOS in front",
        {
            "llamacpp": "set tokenizer.ggml.add_bos_token to false in the GGUF file",
            "ollama": "set tokenizer.ggml.add_bos_token to false in the GGUF file",
        },
    ),
    "added_bos": Meaning(
        "puts a BOS in front, where the contract has none",
        {
            "llamacpp": "set tokenizer.ggml.add_bos_token to false in the GGUF file",
            "ollama": "set tokenizer.ggml.add_bos_token to false in the GGUF file",
        },
    ),
    "missing_bos": Meaning(
        "leaves the BOS out", {"llamacpp": "set tokenizer.ggml.add_bos_token to true in the GGUF file"}
    ),
    "missing_generation_prompt": Meaning("does not begin the answer", TEMPLATE),
    "extra_generation_prompt": Meaning("begins an answer that nobody asked for", TEMPLATE),
    "default_system_lost": Meaning("leaves out the template's own system message", TEMPLATE),
    "default_system_added": Meaning("adds a system message of its own", TEMPLATE),
    "empty_system_block": Meaning(
        "adds an empty system block",
        {**TEMPLATE, "lmdeploy": "its JSON of eleven fields cannot leave it out: give it the Jinja itself (hf)"},
    ),
    "system_lost": Meaning("leaves out the system message", TEMPLATE),
    "system_moved_into_user": Meaning("puts the system message into the user's", TEMPLATE),
    "trailing_newline": Meaning("has other white space at the prompt's end", TEMPLATE),
    "content_trimmed": Meaning("cuts white space around contents"),
    "think_prefill_added": Meaning(
        "begins the answer with thinking, or with having thought",
        {
            "llamacpp": "pin enable_thinking: unigate template import --var enable_thinking=…",
            "ollama": "pin enable_thinking: unigate template import --var enable_thinking=…",
        },
    ),
    "think_prefill_missing": Meaning(
        "does not begin the answer with thinking",
        {
            "llamacpp": "pin enable_thinking: unigate template import --var enable_thinking=…",
            "ollama": "pin enable_thinking: unigate template import --var enable_thinking=…",
        },
    ),
    "history_think_dropped": Meaning("leaves out the thinking of earlier answers"),
    "history_think_kept": Meaning(
        "keeps the thinking of earlier answers",
        {"llamacpp": "see that it runs with --no-reasoning-preserve, as a contract has it started"},
    ),
    "date": Meaning(
        "tells another date",
        dict.fromkeys(TEMPLATE, "freeze the clock: unigate template import --clock DATE"),
    ),
    "tools_wrapper": Meaning("writes the tools otherwise"),
    "tool_calls": Meaning("writes calls of tools otherwise"),
    "parts_joined": Meaning("joins the parts of a message otherwise"),
    "same_role_merged": Meaning("makes one message of several of one role"),
    "continued_instead_of_new_turn": Meaning(
        "goes on with the last message instead of beginning a new one",
        {"llamacpp": "see that it runs with --no-prefill-assistant, as a contract has it started"},
    ),
    "new_turn_instead_of_continued": Meaning("begins a new message instead of going on with the last one"),
    "role_header": Meaning("names a role otherwise", TEMPLATE),
    "special_text_not_parsed": Meaning("reads special tokens that stand in a text as text"),
    "other_tokenizer": Meaning(
        "has the same text and another tokenizer",
        {
            "llamacpp": "convert the weights anew: the GGUF file's pre-tokenizer is not the model's",
            "ollama": "convert the weights anew: a pre-tokenizer that it does not know becomes its default",
        },
    ),
    "missing_stop": Meaning(
        "does not end answers where the contract ends them",
        {
            "llamacpp": "use a llama-server binary (--override-kv), or convert the weights with their EOT token",
            "ollama": "give it a GGUF file, into whose header the contract's ends are written",
        },
    ),
    "engine_refuses": Meaning("refuses the conversation"),
    "unknown": Meaning("has another prompt, for a reason that has no name yet"),
}


def meaning(code: str) -> str:
    """What the engine does by the causes in *code*, in a sentence without its subject."""
    return ", and ".join(MEANINGS[one].sentence for one in code.split("+"))


def fixes(code: str) -> dict[str, str]:
    """What mends the causes in *code*, by the engine; ``*`` for any other way."""
    named = [MEANINGS[one].fixes for one in code.split("+")]
    engines = sorted({engine for one in named for engine in one})
    made = {engine: "; ".join(dict.fromkeys(one.get(engine, FINISHED) for one in named)) for engine in engines}
    return {**made, "*": FINISHED}
