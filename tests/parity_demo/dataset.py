"""Made-up sentences with a mood, and the one answer that the fine-tune is to give to each.

A sentence with a happy adjective is answered `{"mood": "sun"}`, one with a sad adjective `{"mood": "rain"}`. The
adjectives of the held-out sentences occur in no sentence of the training.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

TRAINING_SENTENCES = 96
HELD_OUT_SENTENCES = 40
SEED = 7

SUN, RAIN = '{"mood": "sun"}', '{"mood": "rain"}'

_SUBJECTS = (
    "The old harbour", "My neighbour", "The morning train", "Her letter", "The small garden", "Our last concert",
    "The new teacher", "That long walk", "The village bakery", "His answer", "The evening news", "The first snow",
)  # fmt: skip
_FRAMES = ("{} felt {} today.", "{} was really {}.", "Everyone said that {} seemed {}.", "I find that {} looks {}.")
_TRAINING = {
    SUN: ("cheerful", "happy", "bright", "lovely", "joyful", "warm", "wonderful", "funny"),
    RAIN: ("gloomy", "sad", "dark", "awful", "miserable", "cold", "terrible", "lonely"),
}
_HELD_OUT = {
    SUN: ("delightful", "merry", "pleasant", "glad", "charming"),
    RAIN: ("dreadful", "bleak", "unhappy", "tragic", "dismal"),
}


@dataclass(frozen=True, slots=True)
class Example:
    """What the user says, and the whole answer, to the character."""

    sentence: str
    answer: str


def training() -> list[Example]:
    """The sentences that the model is tuned on: `TRAINING_SENTENCES`, half of either mood, the same every time."""
    return _drawn(_TRAINING, TRAINING_SENTENCES)


def held_out(number: int = HELD_OUT_SENTENCES) -> list[Example]:
    """The first *number* sentences to measure with, in turn of either mood, the same every time.

    Raises:
        ValueError: there are not so many.
    """
    if not 0 < number <= HELD_OUT_SENTENCES:
        raise ValueError(f"{number} held-out sentences were asked for; there are 1 to {HELD_OUT_SENTENCES}")
    return _drawn(_HELD_OUT, HELD_OUT_SENTENCES)[:number]


def _drawn(adjectives: Mapping[str, Sequence[str]], number: int) -> list[Example]:
    drawing = random.Random(SEED)
    moods = [_shuffled(answer, words, drawing) for answer, words in adjectives.items()]
    pairs = zip(*moods, strict=True)
    return [example for _, pair in zip(range(number // 2), pairs, strict=False) for example in pair]


def _shuffled(answer: str, words: Sequence[str], drawing: random.Random) -> Iterator[Example]:
    sentences = [_sentence(frame, subject, word) for frame in _FRAMES for subject in _SUBJECTS for word in words]
    drawing.shuffle(sentences)
    return (Example(sentence, answer) for sentence in sentences)


def _sentence(frame: str, subject: str, adjective: str) -> str:
    inside = subject if frame.startswith("{}") else subject[0].lower() + subject[1:]
    return frame.format(inside, adjective)
