"""Which requests belong together."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.affinity import affinity

CHAT = "chat/completions"
FIRST = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]
LATER = [*FIRST, {"role": "assistant", "content": "Hi."}, {"role": "user", "content": "And now?"}]


def of(body: dict[str, Any], headers: dict[bytes, bytes] | None = None, caller: str = "me", path: str = CHAT) -> Any:
    """The affinity of a request."""
    return affinity(path, body, (headers or {}).get, caller)


def test_the_turns_of_a_conversation_belong_together() -> None:
    """What follows the first message of the user's changes nothing; another first message does."""
    assert of({"messages": FIRST}) == of({"messages": LATER}) != of({"messages": LATER[2:]})
    assert of({"messages": FIRST}, caller="you") == of({"messages": FIRST})


@pytest.mark.parametrize("field", ["prompt_cache_key", "user", "safety_identifier"])
def test_a_field_says_it(field: str) -> None:
    """Requests with one value belong together whatever their messages, and not with those of another key."""
    one, same = {"messages": FIRST, field: "a"}, {"messages": LATER[2:], field: "a"}
    assert of(one) == of(same)
    assert of(one) != of({**one, field: "b"})
    assert of(one) != of(one, caller="you")
    assert of({**one, field: ""}) == of({**one, field: 5}) == of({"messages": FIRST})


@pytest.mark.parametrize("header", [b"x-session-id", b"x-openwebui-chat-id"])
def test_a_header_says_it(header: bytes) -> None:
    """A session's header binds requests together."""
    assert of({"messages": FIRST}, {header: b"1"}) == of({"messages": LATER[2:]}, {header: b"1"})
    assert of({"messages": FIRST}, {header: b"1"}) != of({"messages": FIRST}, {header: b"2"})


def test_what_goes_before_what() -> None:
    """prompt_cache_key before a session's header, that before user, that before safety_identifier."""
    session = {b"x-session-id": b"s"}
    full = {"messages": FIRST, "prompt_cache_key": "k", "user": "u", "safety_identifier": "i"}
    assert of(full, session) == of({"prompt_cache_key": "k"})
    assert of({**full, "prompt_cache_key": None}, session) == of({}, session)
    assert of({**full, "prompt_cache_key": None}) == of({"user": "u"})


def test_text_prompts() -> None:
    """A text prompt is known by its beginning, of characters or of token ids; the first of several speaks for all."""
    text = "x" * 300
    assert of({"prompt": text}, path="completions") == of({"prompt": text + "more"}, path="completions")
    assert of({"prompt": text}) != of({"prompt": "y" + text})
    assert of({"prompt": [text, "other"]}) == of({"prompt": text})
    assert of({"prompt": [1, 2, 3]}) == of({"prompt": [[1, 2, 3], [4]]}) != of({"prompt": [1, 2]})


@pytest.mark.parametrize("body", [{}, {"messages": []}, {"messages": "x"}, {"prompt": ""}, {"prompt": 5}])
def test_nothing_is_known(body: dict[str, Any]) -> None:
    """A request that says nothing belongs to none."""
    assert of(body) is None


def test_odd_messages_are_no_mistake() -> None:
    """Messages that are none still have a beginning: what is wrong with them is the engine's to say."""
    assert of({"messages": [1, None]}) is not None


def test_embeddings_belong_to_none() -> None:
    """An endpoint that leaves nothing in a cache has no affinity."""
    assert of({"input": "x", "user": "u"}, path="embeddings") is None


def test_only_a_digest_leaves() -> None:
    """What a client says is not in what is made of it."""
    assert len(of({"user": "somebody"})) == 16
    assert b"somebody" not in of({"user": "somebody"})
