"""Message rules: what a contract does with a conversation before any template sees it."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chat_templates import contract as forms
from chat_templates.battery import BATTERY, SPECIAL, Case
from chat_templates.contract import MessageRules
from chat_templates.conversation import Conversation, ConversationInvalid, Json
from chat_templates.features import features_of
from chat_templates.messages import BREAK, as_requested, ruled
from chat_templates.trimming import TRIMS, TrimRules

RULES = MessageRules()
USER = {"role": "user", "content": "How many legs?"}
TOKENS = ("<|im_end|>", "<s>", "<|a|><|b|>", "<|b|>", "\n", "x")


def messages_of(*messages: Json, rules: MessageRules = RULES, tokens: tuple[str, ...] = ()) -> list[Any]:
    return list(ruled(rules, Conversation(messages), tokens).messages)


def content_of(content: Json, **rules: Any) -> Json:
    return messages_of({"role": "user", "content": content}, rules=replace(RULES, **rules))[0].get("content")


def refusal_of(*messages: Json, tokens: tuple[str, ...] = (), **rules: Any) -> str:
    with pytest.raises(ConversationInvalid) as caught:
        messages_of(*messages, rules=replace(RULES, **rules), tokens=tokens)
    return str(caught.value)


ANY_RULES = st.builds(
    MessageRules,
    parts=st.sampled_from(get_args(forms.Parts)),
    content_null=st.sampled_from(get_args(forms.NullContent)),
    developer=st.sampled_from(get_args(forms.Developer)),
    trim=st.builds(TrimRules, *[st.sampled_from(sorted(TRIMS))] * 3),
    system_default=st.sampled_from([None, "", " Be kind. "]),
    trailing_assistant=st.sampled_from(get_args(forms.TrailingAssistant)),
    reasoning_field=st.sampled_from(get_args(forms.ReasoningField)),
    control_tokens_in_text=st.sampled_from(get_args(forms.ControlTokens)),
)


@given(rules=ANY_RULES, case=st.sampled_from(BATTERY))
def test_the_rules_applied_twice_are_the_rules_applied_once(rules: MessageRules, case: Case) -> None:
    """What the rules have made of a conversation, they leave as it is."""
    try:
        once = ruled(rules, case.conversation, TOKENS)
    except ConversationInvalid:
        return
    assert ruled(rules, once, TOKENS) == once


@given(rules=ANY_RULES, case=st.sampled_from(BATTERY))
def test_a_request_says_what_the_rules_have_made(rules: MessageRules, case: Case) -> None:
    """Written as a chat request and read again, ruled messages are the same."""
    try:
        once = ruled(rules, case.conversation, TOKENS)
    except ConversationInvalid:
        return
    assert ruled(rules, replace(once, messages=as_requested(once.messages)), TOKENS) == once


def test_nothing_of_the_clients_is_changed_in_place() -> None:
    """The conversation that is given stays as it was."""
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    given_message = {"role": "assistant", "content": None, "reasoning": "x", "tool_calls": [call]}
    ruled(RULES, Conversation([USER, given_message]))
    assert given_message == {"role": "assistant", "content": None, "reasoning": "x", "tool_calls": [call]}
    assert call["function"] == {"name": "f", "arguments": "{}"}


# content


def test_text_parts_are_joined_by_line_ends() -> None:
    """Two parts are two lines, with nothing taken off them."""
    assert content_of([{"type": "text", "text": " a "}, {"type": "input_text", "text": "b"}, "c"]) == " a \nb\nc"


def test_parts_stay_as_they_are_where_the_template_reads_them() -> None:
    """`as_given` hands on images too."""
    parts = [{"type": "text", "text": "a"}, {"type": "image_url", "image_url": {"url": "x"}}]
    assert content_of(parts, parts="as_given") == parts


@pytest.mark.parametrize(
    ("content", "rules", "said"),
    [
        ([{"type": "image_url"}], {}, "messages[0].content[0]: is a part of the type 'image_url'"),
        ([{"type": "text"}], {}, "messages[0].content[0].text: is null"),
        ([7], {}, "messages[0].content[0]: is a number"),
        ([{"type": "text", "text": "a"}], {"parts": "reject"}, "messages[0].content: is a list of parts"),
        (None, {"content_null": "reject"}, "messages[0].content: is missing or null"),
        (42, {}, "messages[0].content: is a number"),
        (True, {}, "messages[0].content: is true or false"),
        ({"text": "a"}, {}, "messages[0].content: is an object"),
    ],
)
def test_a_content_that_no_rule_takes_is_refused_in_words(content: Json, rules: dict[str, Any], said: str) -> None:
    """The refusal names the place, and what is there."""
    assert refusal_of({"role": "user", "content": content}, **rules).startswith(said)


@pytest.mark.parametrize("message", [{"role": "assistant"}, {"role": "assistant", "content": None}])
@pytest.mark.parametrize(("rule", "made"), [("drop", {}), ("empty", {"content": ""})])
def test_null_and_missing_contents_are_one(message: Json, rule: str, made: Json) -> None:
    """Whether the key is null or not there, the rule makes the same of it."""
    assert messages_of(message, rules=replace(RULES, content_null=rule)) == [{"role": "assistant", **made}]  # type: ignore[arg-type]


@pytest.mark.parametrize(("role", "made"), [("system", "  a "), ("user", "a"), ("assistant", "a "), ("tool", "  a ")])
def test_contents_are_trimmed_by_their_role(role: str, made: str) -> None:
    """Each role has its own rule, and others have none."""
    rules = replace(RULES, trim=TrimRules(user="both", assistant="left"))
    assert messages_of({"role": role, "content": "  a "}, rules=rules)[0]["content"] == made


# roles


def test_a_developer_message_is_a_system_message() -> None:
    """The two roles are one to models that know only one."""
    assert messages_of({"role": "developer", "content": "a"}, USER)[0] == {"role": "system", "content": "a"}


def test_a_developer_message_may_be_kept_or_refused() -> None:
    """The contract decides whether the model knows the role."""
    said = {"role": "developer", "content": "a"}
    assert messages_of(said, USER, rules=replace(RULES, developer="as_given"))[0] == said
    assert refusal_of(said, USER, developer="reject").startswith("messages[0].role: this model has no developer")


@pytest.mark.parametrize(("said", "what"), [("x", "messages[1]: is no object"), ({}, "messages[1].role: is no text")])
def test_what_is_no_message_is_refused(said: Json, what: str) -> None:
    """A message is an object with a role."""
    assert refusal_of(USER, said) == what


def test_no_message_at_all_is_refused() -> None:
    """There is nothing to make a prompt of."""
    assert refusal_of() == "messages: there is none"


def test_the_default_system_message_comes_first_where_there_is_none() -> None:
    """A conversation with a system message, wherever it stands, keeps it as the only one."""
    rules = replace(RULES, system_default="Be kind.")
    assert messages_of(USER, rules=rules) == [{"role": "system", "content": "Be kind."}, USER]
    late = {"role": "system", "content": ""}
    assert messages_of(USER, late, rules=rules) == [USER, late]
    developer = {"role": "developer", "content": "x"}
    assert messages_of(developer, USER, rules=replace(rules, developer="as_given")) == [developer, USER]


# a last message of the assistant


@pytest.mark.parametrize(("rule", "add", "goes_on"), [("new_turn", True, False), ("continue", False, True)])
def test_the_last_answer_is_closed_or_continued(rule: Any, add: bool, goes_on: bool) -> None:
    """By the contract, whatever the engine's own custom is."""
    made = ruled(replace(RULES, trailing_assistant=rule), Conversation([USER, {"role": "assistant", "content": "Ei"}]))
    assert (made.add_generation_prompt, made.continue_final_message) == (add, goes_on)


def test_a_last_answer_may_be_refused() -> None:
    """Where the contract says so."""
    assert "the assistant's" in refusal_of(USER, {"role": "assistant", "content": "Ei"}, trailing_assistant="reject")


def test_a_request_cannot_continue_what_the_contract_closes() -> None:
    """`continue_final_message` obeys the contract, and needs an answer to continue."""
    answer = {"role": "assistant", "content": "Ei"}
    for messages, rule in itertools.product([[USER, answer], [USER]], ["new_turn", "continue"]):
        asked = Conversation(messages, add_generation_prompt=False, continue_final_message=True)
        rules = replace(RULES, trailing_assistant=rule)  # type: ignore[arg-type]
        if rule == "continue" and messages[-1] is answer:
            assert ruled(rules, asked).continue_final_message
            continue
        with pytest.raises(ConversationInvalid, match="cannot be continued"):
            ruled(rules, asked)


# reasoning and tools


@pytest.mark.parametrize("sent", ["reasoning_content", "reasoning", "thinking"])
def test_reasoning_has_the_contracts_name(sent: str) -> None:
    """Whichever of its three names the client used."""
    made = messages_of(USER, {"role": "assistant", "content": "8", sent: "x"}, USER)[1]
    assert made == {"role": "assistant", "content": "8", "reasoning_content": "x"}


def test_reasoning_may_be_left_out_and_has_to_be_text() -> None:
    """`none` drops it; a list is no reasoning."""
    answer = {"role": "assistant", "content": "8", "reasoning": "x"}
    assert messages_of(answer, rules=replace(RULES, reasoning_field="none")) == [{"role": "assistant", "content": "8"}]
    assert refusal_of({**answer, "reasoning": []}).startswith("messages[0].reasoning: is a list")


def call_with(arguments: Json) -> Json:
    return {"role": "assistant", "tool_calls": [{"id": "1", "function": {"name": "f", "arguments": arguments}}]}


@pytest.mark.parametrize(
    ("given_arguments", "made"),
    [('{"b": 1, "a": [2.5]}', {"b": 1, "a": [2.5]}), ({"a": 1}, {"a": 1}), ("", {}), (None, {})],
)
def test_arguments_of_tool_calls_become_mappings(given_arguments: Json, made: Json) -> None:
    """JSON text is read, in its own order; none is an empty mapping."""
    assert messages_of(call_with(given_arguments))[0]["tool_calls"][0]["function"]["arguments"] == made


@pytest.mark.parametrize("wrong", ["{", "[1]", 7, "7"])
def test_arguments_that_are_no_object_are_refused(wrong: Json) -> None:
    """The refusal names the call."""
    assert refusal_of(call_with(wrong)).startswith("messages[0].tool_calls[0].function.arguments: is ")


def test_calls_of_nothing_are_left_out_and_of_no_function_refused() -> None:
    """An empty list of calls is none; a call has a function with a name."""
    assert messages_of({"role": "assistant", "content": "8", "tool_calls": []}) == [
        {"role": "assistant", "content": "8"}
    ]
    assert refusal_of({"role": "assistant", "tool_calls": [{}]}).startswith("messages[0].tool_calls[0]: is no call")
    assert refusal_of({"role": "assistant", "tool_calls": 1}).startswith("messages[0].tool_calls: is a number")


@pytest.mark.parametrize(("tools", "said"), [("x", "tools: is text"), ([1], "tools[0]: is a number")])
def test_tools_are_a_list_of_objects(tools: Json, said: str) -> None:
    """Anything else is refused with its place."""
    with pytest.raises(ConversationInvalid) as caught:
        ruled(RULES, Conversation([USER], tools))
    assert str(caught.value).startswith(said)


# special tokens in texts


def test_special_tokens_in_texts_are_broken() -> None:
    """Escaped, no text of the conversation holds one; what is no token stays."""
    rules = replace(RULES, control_tokens_in_text="escape")
    text = f"{SPECIAL}<|a|><|b|>\nx"
    made = messages_of({"role": "user", "content": text}, rules=rules, tokens=TOKENS)[0]["content"]
    assert not any(token in made for token in TOKENS[:4])
    assert made.replace(BREAK, "") == text
    assert made.endswith("\nx")


def test_a_special_token_in_a_tools_description_is_refused_with_its_place() -> None:
    """Every text that a client sends is looked into."""
    rules = replace(RULES, control_tokens_in_text="reject")
    tools = [{"type": "function", "function": {"name": "f", "description": "a<s>b"}}]
    with pytest.raises(ConversationInvalid) as caught:
        ruled(rules, Conversation([USER], tools), TOKENS)
    assert str(caught.value).startswith("tools[0].function.description: holds the special token '<s>'")
    assert ruled(rules, Conversation([USER]), TOKENS).messages == [USER]


def test_an_empty_list_of_tools_is_no_tools() -> None:
    """What asks for no tool needs none of an engine, and reads as if nothing had been said."""
    said = ruled(MessageRules(), Conversation([{"role": "user", "content": "x"}], tools=[]))
    assert said.tools is None
    assert features_of(said) == {"text"}
