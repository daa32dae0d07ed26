"""What a conversation needs proven."""

from __future__ import annotations

import pytest

from chat_templates.battery import BATTERY, Case
from chat_templates.conversation import Conversation
from chat_templates.features import features_of


@pytest.mark.parametrize("case", BATTERY, ids=lambda case: case.name)
def test_a_case_has_the_features_it_declares(case: Case) -> None:
    """What the battery says of a conversation is what is seen in it."""
    assert features_of(case.conversation) == case.features


def test_reasoning_in_a_part_is_seen() -> None:
    """Thinking that a client left in an answer's parts is reasoning history."""
    answer = {"role": "assistant", "content": [{"type": "text", "text": "<think>x</think>y"}]}
    assert "reasoning_history" in features_of(Conversation([{"role": "user", "content": "a"}, answer]))
