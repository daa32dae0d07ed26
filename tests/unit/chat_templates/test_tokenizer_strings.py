"""Texts on which tokenizers part."""

from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from chat_templates.tokenizer_strings import LEAST, MOST, tokenizer_strings


@given(st.lists(st.text(max_size=12), max_size=40), st.text(max_size=400))
def test_enough_and_each_once(tokens: list[str], template: str) -> None:
    """Whatever the tokens and the template are, there are between LEAST and MOST texts, none twice, none empty."""
    texts = tokenizer_strings(tokens, {"default": template})
    assert LEAST <= len(texts) <= MOST
    assert len(set(texts)) == len(texts)
    assert "" not in texts
    assert texts == tokenizer_strings(tokens, {"default": template})


def test_what_a_template_writes_is_among_them() -> None:
    """Its strings, escapes read, and what stands between its tags, alone and within a word; and the special tokens."""
    template = "{% for m in messages %}<|role|>{{ '### ' + m.role + \"\\n\" }}{% endfor %}"
    texts = tokenizer_strings(["<s>"], {"default": template})
    for text in ("<|role|>", "### ", "\n", "word### word", "<s>", "a<s>b", " <s> "):
        assert text in texts


def test_every_kind_is_among_them() -> None:
    """Digits beside white space, CJK, emoji, right-to-left text and control characters."""
    texts = tokenizer_strings((), {})
    for pattern in (r"\d\s+\d", "[一-鿿]", "[\U0001f300-\U0001faff]", "[֐-ۿ]", r"[\x00-\x08\x7f]", "\r\n", "\t"):
        assert any(re.search(pattern, text) for text in texts), pattern
