"""Causes where ids are compared: the tokenizer's own habits are no obstacle."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, normalizers

from chat_templates.battery import CASES
from chat_templates.comparison import Comparison, Context, compare
from chat_templates.prompts import Prompt, Seen
from chat_templates.rendering import Renderer
from chat_templates.tokenizing import Tokenizer

OWN_BOS = "{{ bos_token }}"
MESSAGES = "{% for m in messages %}[{{ m.role }}] {{ m.content }}</s>\n{% endfor %}"
ANSWER = "{% if add_generation_prompt %}[assistant]\n{% endif %}"
CASE = next(case for case in CASES if case.name == "whitespace")


def tokenizer_in(folder: Path, normalizer: normalizers.Normalizer, decoder: decoders.Decoder) -> Tokenizer:
    """One token per character or byte, ``<s>`` and ``</s>``."""
    tokens = ["<unk>", "<s>", "</s>", "▁", *(f"<0x{byte:02X}>" for byte in range(256)), *map(chr, range(33, 127))]
    vocabulary = {token: id_ for id_, token in enumerate(tokens)}
    core = tokenizers.Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True))
    core.normalizer = normalizer
    core.decoder = decoder
    core.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in ("<s>", "</s>")])
    core.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<s>", "eos_token": "</s>"}))
    return Tokenizer.read(folder)


SPACES = normalizers.Replace(" ", "▁")
FRONT = [normalizers.Prepend("▁"), SPACES]
SPACED = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]


def plain(folder: Path) -> Tokenizer:
    return tokenizer_in(folder, SPACES, decoders.Sequence(SPACED))


def spaced(folder: Path) -> Tokenizer:
    """As Llama 2's: a space in front of every text between special tokens, which decoding takes off the first."""
    decoder = decoders.Sequence([*SPACED, decoders.Strip(" ", 1, 0)])
    return tokenizer_in(folder, normalizers.Sequence(FRONT), decoder)


def losing(folder: Path) -> Tokenizer:
    """One that no way of decoding undoes."""
    decoder = decoders.Sequence(SPACED)
    return tokenizer_in(folder, normalizers.Sequence([normalizers.Lowercase(), *FRONT]), decoder)


@pytest.fixture(params=[plain, spaced, losing], ids=["plain", "spaced", "losing"])
def tokenizer(request: pytest.FixtureRequest, tmp_path: Path) -> Tokenizer:
    making: Callable[[Path], Tokenizer] = request.param
    return making(tmp_path)


def compared(tokenizer: Tokenizer, renderer: Renderer, expected: str, seen: str) -> Comparison:
    prompt = Prompt(expected, tuple(tokenizer.encode(expected)))
    return compare(CASE, prompt, Seen(ids=tuple(tokenizer.encode(seen))), Context(renderer, tokenizer))


@pytest.mark.parametrize("head", [OWN_BOS, ""], ids=["own_bos", "tokenizers_bos"])
def test_causes_are_named_whatever_the_tokenizer_does(tokenizer: Tokenizer, head: str) -> None:
    """A tokenizer that puts spaces in front or loses case, and a BOS that the template leaves to it, hide no cause."""
    renderer = Renderer({"default": head + MESSAGES + ANSWER}, special_tokens={"bos_token": "<s>"})
    front = "" if head else "<s>"
    expected = front + renderer.render(CASE.conversation).text
    unasked = replace(CASE.conversation, add_generation_prompt=False)
    trimmed = [message | {"content": str(message["content"]).strip()} for message in map(dict, unasked.messages)]
    seen = {
        "double_bos": f"<s>{expected}",
        "missing_bos": expected.removeprefix("<s>"),
        "missing_generation_prompt": front + renderer.render(unasked).text,
        "content_trimmed": front + renderer.render(replace(CASE.conversation, messages=trimmed)).text,
    }
    causes = {cause: compared(tokenizer, renderer, expected, text).cause for cause, text in seen.items()}
    assert causes == {cause: cause for cause in seen}


def test_a_bos_of_the_tokenizers_hides_no_cause_in_a_text() -> None:
    """Where texts are compared, and the contract's begins with a BOS that its template does not write."""
    renderer = Renderer({"default": MESSAGES + ANSWER}, special_tokens={"bos_token": "<s>"})
    expected, context = f"<s>{renderer.render(CASE.conversation).text}", Context(renderer)
    unasked = renderer.render(replace(CASE.conversation, add_generation_prompt=False)).text
    found = [compare(CASE, Prompt(expected), Seen(text=text), context) for text in (f"<s>{unasked}", expected[3:])]
    assert [one.cause for one in found] == ["missing_generation_prompt", "missing_bos"]


IDS = st.lists(st.integers(0, 5), max_size=8).map(tuple)


@given(IDS, IDS)
def test_the_first_token_that_differs_is_told(expected: tuple[int, ...], seen: tuple[int, ...]) -> None:
    """Equal ids are exact and no others are; up to the first token both are the same, and there they are not."""
    found = compare(CASE, Prompt("", expected), Seen(ids=seen), Context(Renderer({"default": ""})))
    assert (found.verdict == "exact") == (expected == seen)
    if found.verdict == "mismatch":
        first = found.first_token
        assert first is not None
        assert expected[:first] == seen[:first]
        assert expected[first : first + 1] != seen[first : first + 1]
