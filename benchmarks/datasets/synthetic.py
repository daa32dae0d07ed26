"""Prompts made up to a length: random plain words, so that no two are alike and no prefix is cached."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from benchmarks.conversations import Conversation
from benchmarks.datasets.tokenizer import Counter
from benchmarks.errors import BenchmarkError

TRIES = 20


@dataclass(frozen=True, slots=True)
class Lengths:
    """How long a prompt and its answer shall be, in tokens."""

    prompt: int
    output: int


def synthetic(
    lengths: Sequence[Lengths],
    counter: Counter,
    *,
    seed: int,
    prefix_tokens: int = 0,
    input_spread: float = 0.0,
    output_spread: float = 0.0,
    is_alone: bool = False,
) -> list[Conversation]:
    """One conversation of one turn per item of *lengths*.

    Every prompt is exactly as long as asked once it is written out and read back by *counter*; a chat template adds
    its own tokens. ``*_spread``: lengths are drawn evenly from within that part around the one asked for.
    ``prefix_tokens``: all begin with the same so many. ``is_alone``: nothing is around the prompt, so its expected
    length is the server's.
    """
    rng = Random(f"{seed} synthetic")
    prefix = exact_text(prefix_tokens, counter, rng) if prefix_tokens else ""
    made = []
    for number, wanted in enumerate(lengths, 1):
        length = max(prefix_tokens + 1, _spread(wanted.prompt, input_spread, rng))
        output = max(1, _spread(wanted.output, output_spread, rng))
        text = exact_text(length, counter, rng, prefix)
        message = {"role": "user", "content": text}
        expected = length if counter.unit == "tokens" and is_alone else None
        made.append(Conversation(f"synthetic:{number}", ((message,),), expected, output))
    return made


def exact_text(length: int, counter: Counter, rng: Random, prefix: str = "") -> str:
    """Text of exactly *length* tokens that begins with *prefix*. Raises BenchmarkError if none is found."""
    pieces = counter.pieces
    ids = counter.encode(prefix) if prefix else []
    for _ in range(TRIES):
        ids += [rng.choice(pieces) for _ in range(length - len(ids))]
        text = counter.decode(ids[:length])
        ids = counter.encode(text)
        if len(ids) == length and text.startswith(prefix):
            return text
        ids = counter.encode(prefix) if not text.startswith(prefix) else ids
    raise BenchmarkError(f"no text of exactly {length} tokens was found for this tokenizer; try another length")


def _spread(length: int, spread: float, rng: Random) -> int:
    if not spread:
        return length
    return rng.randint(round(length * (1 - spread)), round(length * (1 + spread)))
