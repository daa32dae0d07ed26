"""Texts on which tokenizers part: what an engine's tokenizer is compared by."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Mapping

_SPACES = (
    "",
    " ",
    "  ",
    "   ",
    "    ",
    "\t",
    "\t\t",
    " \t",
    "\n",
    "\n\n",
    "\n\n\n",
    "\r\n",
    "\r\n\r\n",
    " \n ",
    "\n \n",
)
_WORDS = ("Hello world", "don't we'll I'M they'VE", "naïve façade", "CamelCaseWord", "snake_case_word", "UPPER lower")
_NUMBERS = (
    "0",
    "7",
    "42",
    "123",
    "1234",
    "12345",
    "1234567890",
    "3.14159",
    "1,000,000",
    "-17",
    "1e-9",
    "0x1F",
    "٣٤٥",
    "½",
)
_SCRIPTS = (
    "你好，世界！", "中文字符測試", "日本語のテキスト。", "カタカナ ﾊﾝｶｸ", "한국어 문장입니다", "Привет, мир",
    "Ελληνικά", "مرحبا بالعالم", "שלום עולם", "हिन्दी में पाठ", "ภาษาไทย", "Tiếng Việt", "ქართული", "አማርኛ",
)  # fmt: skip
_SYMBOLS = (
    "🕷️", "👩‍👩‍👧", "🇳🇴🇩🇪", "👍🏽", "❤️‍🔥", "🙂🙃", "€ £ ¥", "→ ⇒ ∀x∈ℝ", "…—–", "“quoted” ‘so’", "«a»", "™®©", "①②",
    "ﬁ ﬂ", "e\u0301 é", "Å Å", "\u200b\u200d", "\ufeff", "a\u00a0b", "\u3000", "\u2028", "\x7f", "\x01", "\ufffd",
    "𝕬𝖇𝖈", "\U0010ffff",
)  # fmt: skip
_CODE = (
    "def f(x):\n    return x + 1\n", "for (int i = 0; i < 10; i++) {\n\t\ta[i] = b;\n}", '{"a": [1, 2, {"b": null}]}',
    "<div class='x'>&amp;</div>", "SELECT * FROM t WHERE a != 'b';", "http://example.com/a?b=c&d=%20#e", "a@b.org",
    "C:\\dir\\file.txt", "~/x/../y", "$x = `ls -la | wc`", "// comment\n\n/* more */", "\\begin{x}\\frac{1}{2}\\end{x}",
    "{{ x }} {% if y %}", "### Heading\n\n- item\n- item\n", "===", "......", "!!!???", "----", "____", "((()))",
    "a+b=c;",
)  # fmt: skip
_LITERAL = re.compile(r"'((?:[^'\\\n]|\\.)*)'|\"((?:[^\"\\\n]|\\.)*)\"")
_OUTSIDE = re.compile(r"\{\{.*?\}\}|\{%.*?%\}|\{#.*?#\}", re.DOTALL)
_ESCAPES = {"\\n": "\n", "\\t": "\t", "\\'": "'", '\\"': '"', "\\\\": "\\"}

MOST = 400
LEAST = 200


def tokenizer_strings(special_tokens: Iterable[str], templates: Mapping[str, str]) -> tuple[str, ...]:
    """Between LEAST and MOST texts, each once, none empty, always the same for the same arguments.

    Among them each of *special_tokens* alone, within a word and beside white space, and what *templates* write
    themselves, with a word before and after it.
    """
    found = dict.fromkeys(itertools.chain(_special(special_tokens), _borders(templates), _plain()))
    found.pop("", None)
    return tuple(found)[:MOST]


def _special(tokens: Iterable[str]) -> Iterator[str]:
    for token in list(dict.fromkeys(token for token in tokens if token))[:24]:
        yield from (token, f"a{token}b", f" {token} ", f"{token}\n", token[:-1], token[1:])


def _borders(templates: Mapping[str, str]) -> Iterator[str]:
    """What the templates write, as their strings and between their tags."""
    for template in templates.values():
        literals = dict.fromkeys(_literals(template))
        for literal in list(literals)[:60]:
            yield from (literal, f"word{literal}word")


def _literals(template: str) -> Iterator[str]:
    for match in _LITERAL.finditer(template):
        text = match.group(1) if match.group(1) is not None else match.group(2)
        yield re.sub(r"\\.", lambda escape: _ESCAPES.get(escape.group(), escape.group()), text)
    yield from (text for text in _OUTSIDE.split(template) if text.strip())


def _plain() -> Iterator[str]:
    texts = (*_WORDS, *_NUMBERS, *_SCRIPTS, *_SYMBOLS, *_CODE)
    yield from texts
    yield from _SPACES
    for space in _SPACES:
        yield from (f"a{space}b", f"{space}Hello", f"Hello.{space}", f"7{space}8")
    yield from (f" {text}" for text in texts)
    yield from (f"{first} {second}" for first, second in itertools.pairwise(texts))
