"""The conversations of a proof: the battery, and for each feature alone the contents on which renderings differ.

In the battery white space and odd texts stand in conversations of several features. An engine that trims a user's text
fails there, and would be blamed for the turns: so every feature has such contents in a case that has nothing else.
"""

from __future__ import annotations

from chat_templates.battery import BRACES, CASES, UNICODE, USER, WEATHER, Case, Feature, Message
from chat_templates.conversation import Conversation

_SPACED = "\n  \t{} \n\n"


def _said(role: str, content: str, **more: str) -> Message:
    return {"role": role, "content": content, **more}


def _case(name: str, feature: Feature, *messages: Message, tools: bool = False) -> Case:
    return Case(name, frozenset({"text", feature}), Conversation(messages, [WEATHER] if tools else None))


def _call() -> Message:
    function = {"name": "get_weather", "arguments": {"city": " Oslo\n"}}
    return {
        "role": "assistant",
        "content": _SPACED.format("Let me look."),
        "tool_calls": [{"id": "call00000", "type": "function", "function": function}],
    }


_RESULT: Message = _said("tool", _SPACED.format("4"), name="get_weather", tool_call_id="call00000")
_NEXT = _said("user", _SPACED.format("Next?"))

PROOF_CASES: tuple[Case, ...] = (
    *CASES,
    _case("plain_whitespace", "text", _said("user", _SPACED.format("How many legs?"))),
    _case("plain_unicode", "text", _said("user", UNICODE)),
    _case("plain_literals", "text", _said("user", BRACES)),
    _case("system_whitespace", "system", _said("system", _SPACED.format("You are terse.")), USER),
    _case("turns_whitespace", "multi_turn", USER, _said("assistant", _SPACED.format("Eight.")), _NEXT),
    _case(
        "reasoning_whitespace",
        "reasoning_history",
        USER,
        _said("assistant", "Eight.", reasoning_content=_SPACED.format("Arachnids.")),
        _NEXT,
    ),
    _case("tools_whitespace", "tools", USER, _call(), _RESULT, _NEXT, tools=True),
)
"""Those of the battery that end with a place for the answer, and these. The features are of the conversation as it is;
a proof goes by those that `features_of` finds once the contract's rules are applied."""
