"""The sentences of the demonstration."""

from __future__ import annotations

import pytest

from tests.parity_demo.dataset import HELD_OUT_SENTENCES, RAIN, SUN, TRAINING_SENTENCES, held_out, training


def test_both_moods_are_asked_for_alike() -> None:
    """No sentence is there twice, and as many are sunny as are rainy, in the training and in what is held out."""
    for examples, number in ((training(), TRAINING_SENTENCES), (held_out(), HELD_OUT_SENTENCES)):
        assert len({example.sentence for example in examples}) == number
        answers = [example.answer for example in examples]
        assert answers.count(SUN) == answers.count(RAIN) == number // 2


def test_held_out_sentences_are_about_what_was_never_trained() -> None:
    """No adjective of a held-out sentence is in the training, so that nothing can be known by heart."""
    trained = {word.strip(".") for example in training() for word in example.sentence.split()}
    last = [example.sentence.rstrip(".").removesuffix(" today").split()[-1] for example in held_out()]
    assert len(set(last)) > 5
    assert trained.isdisjoint(last)


def test_sentences_are_the_same_every_time() -> None:
    """A second drawing gives the same, and fewer are the beginning of more."""
    assert training() == training()
    assert held_out(6) == held_out()[:6]


@pytest.mark.parametrize("number", [0, -1, HELD_OUT_SENTENCES + 1])
def test_more_sentences_than_there_are_are_refused(number: int) -> None:
    """A number of sentences that there are not is an error which says how many there are."""
    with pytest.raises(ValueError, match=f"there are 1 to {HELD_OUT_SENTENCES}"):
        held_out(number)
