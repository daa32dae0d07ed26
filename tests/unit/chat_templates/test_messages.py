"""Message rules, and the features of a conversation."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chat_templates.battery import BATTERY, Case
from chat_templates.contract import MessageRules
from chat_templates.conversation import Conversation, ConversationInvalid
from chat_templates.features import features_of
from chat_templates.messages import as_openai, ruled
from chat_templates.trimming import TrimRules

LENIENT = MessageRules(parts="as_given")
TOKENS = ("<|im_end|>", "<s>", "<|im")

RULES = st.builds(
    MessageRules,
    parts=st.sampled_from(["as_given", "join_newline", "reject"]),
    content_null=st.sampled_from(["drop", "empty", "reject"]),
    developer=st.sampled_from(["as_given", "system", "reject"]),
    trim=st.builds(TrimRules, *[st.sampled_from(["none", "both", "left", "right"])] * 3),
    system_default=st.none() | st.just(" Be kind. "),
    trailing_assistant=st.sampled_from(["new_turn", "continue", "reject"]),
    reasoning_field=st.sampled_from(["reasoning_content", "reasoning", "thinking", "none"]),
    control_tokens_in_text=st.sampled_from(["allow", "escape", "reject"]),
)


def one(rules: MessageRules, **message: Any) -> dict[str, Any]:
    said = ruled(rules, Conversation([message, {"role": "user", "content": "x"}]), TOKENS)
    return dict(said.messages[0])


@given(RULES, st.sampled_from(BATTERY))
def test_rules_applied_twice_are_rules_applied_once(rules: MessageRules, case: Case) -> None:
    """What came out of the rules stays as it is under them."""
    try:
        once = ruled(rules, case.conversation, TOKENS)
    except ConversationInvalid:
        return
    assert ruled(rules, once, TOKENS) == once


@pytest.mark.parametrize("case", BATTERY, ids=lambda case: case.name)
def test_a_case_has_the_features_it_names(case: Case) -> None:
    """The features of a conversation are those for which the battery has it."""
    assert features_of(case.conversation) == case.features


def test_parts_become_one_text() -> None:
    """Parts are joined by line ends; what is no text is refused by its place; or both are left as they are."""
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert one(MessageRules(), role="user", content=parts)["content"] == "a\nb"
    assert one(LENIENT, role="user", content=parts)["content"] == parts
    image = [{"type": "image_url", "image_url": {"url": "x"}}]
    with pytest.raises(ConversationInvalid, match=r"messages\[0\].content\[0\].type: is image_url"):
        one(MessageRules(), role="user", content=image)
    assert one(LENIENT, role="user", content=image)["content"] == image


@pytest.mark.parametrize(
    ("message", "problem"),
    [
        ({"content": "x"}, "role: is missing"),
        ({"role": "user", "content": 42}, "content: is neither text nor a list"),
        ({"role": "user", "content": ["x"]}, r"content\[0\]: is no part"),
        ({"role": "user", "content": [{"type": "text"}]}, r"content\[0\].text: is missing"),
        ({"role": "assistant", "tool_calls": "x"}, "tool_calls: is no list"),
        ({"role": "assistant", "tool_calls": [{}]}, r"tool_calls\[0\].function: is missing"),
        ({"role": "assistant", "tool_calls": [{"function": {"arguments": "{"}}]}, "arguments: is no JSON: "),
        ({"role": "assistant", "tool_calls": [{"function": {"arguments": "[]"}}]}, "arguments: is no JSON object"),
    ],
)
def test_what_is_no_message_is_refused_by_its_place(message: dict[str, Any], problem: str) -> None:
    """A message that no template could be given is an error that says which, and what of it."""
    with pytest.raises(ConversationInvalid, match=rf"messages\[0\].*{problem}"):
        one(LENIENT, **message)


def test_null_content_by_its_rule() -> None:
    """Content that is missing or null is left out, made empty, or refused."""
    said = {"role": "assistant", "content": None}
    assert "content" not in one(MessageRules(), **said)
    assert one(MessageRules(content_null="empty"), **said)["content"] == ""
    with pytest.raises(ConversationInvalid, match="content: is missing"):
        one(MessageRules(content_null="reject"), **said)


def test_developers_by_their_rule() -> None:
    """A developer's message is a system message, stays one, or is refused."""
    said = {"role": "developer", "content": "x"}
    assert one(MessageRules(), **said)["role"] == "system"
    assert one(MessageRules(developer="as_given"), **said)["role"] == "developer"
    with pytest.raises(ConversationInvalid, match="is developer"):
        one(MessageRules(developer="reject"), **said)


def test_a_default_system_message_is_put_first() -> None:
    """A conversation without a system message gets the contract's, one with it keeps its own."""
    rules = MessageRules(system_default="Be kind.")
    user = {"role": "user", "content": "x"}
    assert ruled(rules, Conversation([user])).messages == [{"role": "system", "content": "Be kind."}, user]
    own = [{"role": "system", "content": "mine"}, user]
    assert ruled(rules, Conversation(own)).messages == own


def test_reasoning_goes_where_the_template_looks() -> None:
    """Earlier thinking has one name, whatever the client called it; or it is left out."""
    said = {"role": "assistant", "content": "a", "reasoning": "t", "reasoning_content": None}
    assert one(MessageRules(), **said) == {"role": "assistant", "content": "a", "reasoning_content": "t"}
    assert one(MessageRules(reasoning_field="thinking"), **said)["thinking"] == "t"
    assert one(MessageRules(reasoning_field="none"), **said) == {"role": "assistant", "content": "a"}


def test_a_last_answer_by_its_rule() -> None:
    """After the assistant's own message a new turn begins, or that message goes on, or the request is refused."""
    said = Conversation([{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}])
    assert ruled(MessageRules(), said) == replace(said, messages=list(said.messages))
    gone_on = ruled(MessageRules(trailing_assistant="continue"), said)
    assert (gone_on.add_generation_prompt, gone_on.continue_final_message) == (False, True)
    with pytest.raises(ConversationInvalid, match="the last one is the assistant's"):
        ruled(MessageRules(trailing_assistant="reject"), said)


def test_special_tokens_that_a_user_wrote() -> None:
    """They stay, or are broken up so that none is left, or are refused; what others wrote is left alone."""
    text = "a<|im_end|>b<s<s>>c"
    assert one(MessageRules(), role="user", content=text)["content"] == text
    escaped = one(MessageRules(control_tokens_in_text="escape"), role="user", content=text)["content"]
    assert not any(token in escaped for token in TOKENS)
    assert escaped.replace("\u200b", "") == text
    with pytest.raises(ConversationInvalid, match=r"holds '<\|im_end\|>', which is a special token"):
        one(MessageRules(control_tokens_in_text="reject"), role="user", content=text)
    assert one(MessageRules(control_tokens_in_text="reject"), role="assistant", content=text)["content"] == text


def test_arguments_are_objects_here_and_text_in_a_request() -> None:
    """A template is given a call's arguments as an object, an engine as the text that OpenAI's API has."""
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": '{"b": [1.5, "ü"], "a": null}'}}
    said = one(MessageRules(), role="assistant", content="", tool_calls=[call])
    assert said["tool_calls"][0]["function"]["arguments"] == {"b": [1.5, "ü"], "a": None}
    back = as_openai([said])[0]["tool_calls"][0]["function"]["arguments"]
    assert isinstance(back, str)
    assert list(json.loads(back).items()) == [("b", [1.5, "ü"]), ("a", None)]


def test_what_is_given_is_not_touched() -> None:
    """The client's own messages stay as they were."""
    message = {"role": "developer", "content": [{"type": "text", "text": " x "}], "reasoning": "r"}
    before = json.dumps(message)
    ruled(MessageRules(trim=TrimRules(system="both")), Conversation([message]))
    assert json.dumps(message) == before
