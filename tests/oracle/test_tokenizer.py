"""Our tokenizer and transformers' give the same ids."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from chat_templates.battery import BATTERY, BRACES, LONG, SPECIAL, UNICODE
from chat_templates.conversation import Conversation, ConversationInvalid
from chat_templates.model_folder import read_templates
from chat_templates.rendering import Renderer, TemplateBroken, TemplateRefused
from chat_templates.tokenizing import Tokenizer
from tests.engines.environment import hf_model
from tests.oracle.folders import CONFIGURATIONS, model_folder
from tests.oracle.reference import TEMPLATES

PIECES = (
    "", " ", "  ", "\n", "\n\n", "\t", "\r\n", "a", " a", "a ", "Ünï", "你好", "🕷️", "👩‍👩‍👧", "0", "1234567890", "3.14",
    "<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|endoftext|>", "<think>", "[INST]", "{{ x }}", "<|im_",
    "e\u0301", "\u200b", "\ufeff", "\x00", "fox", "quick", "dog", "don't", "&amp;", "http://x.y/?a=b", "__init__",
    "\\n", "…", "«",
)  # fmt: skip

STRINGS = tuple(
    dict.fromkeys(
        [
            *PIECES,
            *(first + second for first in PIECES for second in PIECES[1:30]),
            UNICODE,
            BRACES,
            SPECIAL,
            LONG,
            SPECIAL * 3,
        ]
    )
)


@pytest.mark.parametrize("config", [pytest.param(config, id=name) for name, config in CONFIGURATIONS.items()])
def test_a_fine_tunes_folder_gives_the_references_ids(tmp_path: Path, config: dict[str, object]) -> None:
    """What a configuration adds to a tokenizer is added; nothing is cut or filled up, whatever the file says."""
    folder = model_folder(tmp_path / "model", config)
    tokenizer = Tokenizer.read(folder)
    reference = PreTrainedTokenizerFast.from_pretrained(folder)
    for text in STRINGS:
        assert tokenizer.encode(text) == reference.encode(text, add_special_tokens=False), repr(text)
    assert tokenizer.special_tokens == reference.special_tokens_map


def test_a_real_tokenizer_gives_the_references_ids() -> None:
    """SmolLM2's ids are transformers' for 200 strings and more, and for the battery by published templates."""
    assert len(STRINGS) > 200
    tokenizer, reference = Tokenizer.read(hf_model()), AutoTokenizer.from_pretrained(hf_model())
    for text in [*STRINGS, *prompts(tokenizer)]:
        assert tokenizer.encode(text) == reference.encode(text, add_special_tokens=False), repr(text)
    assert tokenizer.special_tokens == reference.special_tokens_map


def prompts(tokenizer: Tokenizer) -> list[str]:
    """The battery by SmolLM2's own template and by some of the published."""
    made = []
    templates = [
        read_templates(hf_model())["default"],
        *(path.read_text(encoding="utf-8") for path in TEMPLATES[::100]),
    ]
    for template in templates:
        renderer = Renderer({"default": template}, special_tokens=tokenizer.special_tokens)
        for case in BATTERY:
            try:
                made.append(renderer.render(case.conversation).text)
            except (TemplateRefused, TemplateBroken, ConversationInvalid):
                continue
    assert len(made) > 500
    return made


def test_a_real_conversation_gives_the_references_ids() -> None:
    """From messages to ids, in one step of transformers' and in two of ours, it is the same."""
    tokenizer, reference = Tokenizer.read(hf_model()), AutoTokenizer.from_pretrained(hf_model())
    renderer = Renderer(read_templates(hf_model()), special_tokens=tokenizer.special_tokens)
    messages = [{"role": "user", "content": f"{SPECIAL} {UNICODE}\n"}]
    ids = tokenizer.encode(renderer.render(Conversation(messages)).text)
    assert ids == reference.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
