"""The battery holds what parity has to be proven on."""

from __future__ import annotations

import json

from chat_templates.battery import BATTERY, CASES, FEATURES
from chat_templates.conversation import plain


def test_names_are_unique() -> None:
    """Reports and caches can quote a case by its name."""
    names = [case.name for case in BATTERY]
    assert len(names) == len(set(names)) > 80


def test_every_feature_is_asked_of_several() -> None:
    """No feature is proven by one case alone, and there are cases that ask for nothing but text."""
    for feature in FEATURES:
        assert sum(feature in case.features for case in CASES) >= 3, feature
    assert sum(case.features == {"text"} for case in CASES) >= 3


def test_features_are_those_of_the_conversation() -> None:
    """What a case says it needs is what its messages hold."""
    for case in CASES:
        messages = case.conversation.messages
        assert ("tools" in case.features) == (case.conversation.tools is not None), case.name
        assert ("system" in case.features) == any(m["role"] in ("system", "developer") for m in messages), case.name
        assert ("parts" in case.features) == any(isinstance(m.get("content"), list) for m in messages), case.name
        assert ("prefill" in case.features) == (messages[-1]["role"] == "assistant"), case.name


def test_cases_are_json() -> None:
    """Every conversation can be sent to an engine as it is."""
    for case in BATTERY:
        messages = plain(case.conversation.messages, "messages")
        assert json.loads(json.dumps(messages)) == messages, case.name
