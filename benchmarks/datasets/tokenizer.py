"""Counting tokens as the model does."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from benchmarks.errors import BenchmarkError

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Library

FILE = "tokenizer.json"


class Counter(Protocol):
    """What a synthetic prompt is made with: pieces that can be put together, and how long the whole is."""

    @property
    def unit(self) -> str:
        """What is counted."""

    @property
    def pieces(self) -> list[int]:
        """Ids to draw from."""

    def encode(self, text: str) -> list[int]:
        """The ids of *text*, without special ones."""

    def decode(self, ids: list[int]) -> str:
        """The text of *ids*."""


class Tokenizer:
    """A model's tokenizer. ``digest``: SHA-256 of its file."""

    unit = "tokens"

    def __init__(self, library: Library, digest: str) -> None:
        self.digest = digest
        self._library = library
        self._pieces: list[int] | None = None

    @property
    def pieces(self) -> list[int]:
        """Ids of plain words, each of which stays one token whatever stands around it."""
        if self._pieces is None:
            self._pieces = self._find_pieces()
        return self._pieces

    def encode(self, text: str) -> list[int]:
        """The ids of *text*, without special ones."""
        ids: list[int] = self._library.encode(text, add_special_tokens=False).ids
        return ids

    def decode(self, ids: list[int]) -> str:
        """The text of *ids*."""
        text: str = self._library.decode(ids, skip_special_tokens=False)
        return text

    def count(self, text: str) -> int:
        """How many tokens *text* is."""
        return len(self.encode(text))

    def _find_pieces(self) -> list[int]:
        found = []
        anchor = self.encode(" the")
        for piece, number in sorted(self._library.get_vocab().items(), key=lambda item: item[1]):
            word = piece[1:]
            # GPT-2's byte-level space, SentencePiece's, or WordPiece, where a word needs none
            is_word = piece[:1] in ("\u0120", "\u2581") and word.isascii() and word.isalpha() and word.islower()
            if is_word and len(word) > 1 and self.encode(f" the {word} the") == [*anchor, number, *anchor]:
                found.append(number)
        if len(found) < 100:
            found = [number for number in range(self._library.get_vocab_size()) if self._stays(number)]
        if not found:
            raise BenchmarkError("--tokenizer: none of its tokens stays one token when it is written out and read back")
        return found

    def _stays(self, number: int) -> bool:
        text = self.decode([number])
        return bool(text.strip()) and self.encode(text) == [number]


_PLAIN = """
about after all also and any are because been before being but came can come could day did down each even every few
find first for from get give good great had has have her here him his home house how into its just know last left
life like line little long look made make man many may might more most much must name never new next not now number
off old one only other our out over own part people place right said same saw say see she should small some still
such take tell than that the their them then there these they thing think this those three time two under until use
very was water way well went were what when where which while who will with word work world would write year you
your
"""
WORDS = tuple(_PLAIN.split())
"""Plain words, each of which most vocabularies have as one token."""


class WordCounter:
    """Stands in for a tokenizer: counts words, each of which most vocabularies have as one token."""

    unit = "words"
    digest = ""

    @property
    def pieces(self) -> list[int]:
        """Numbers of words."""
        return list(range(len(WORDS)))

    def encode(self, text: str) -> list[int]:
        """The numbers of the words of *text*, which are ours."""
        return [WORDS.index(word) for word in text.split()]

    def decode(self, ids: list[int]) -> str:
        """The words."""
        return "".join(f" {WORDS[number]}" for number in ids)


def load_tokenizer(place: str) -> Tokenizer:
    """The tokenizer in *place*: a tokenizer.json or the folder of one. Raises BenchmarkError."""
    path = Path(place)
    if path.is_dir():
        path = path / FILE
    try:
        content = path.read_bytes()
    except OSError as problem:
        raise BenchmarkError(
            f"--tokenizer {place}: {path}: {problem.strerror or problem}; name a model's folder or its {FILE}"
        ) from problem
    from tokenizers import Tokenizer as Library  # 60 ms that only who names a tokenizer pays

    try:
        library = Library.from_str(content.decode("utf-8"))
    except Exception as problem:  # the library raises Exception itself
        raise BenchmarkError(f"--tokenizer {path}: not a tokenizer: {problem}") from problem
    return Tokenizer(library, hashlib.sha256(content).hexdigest())
