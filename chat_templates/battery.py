"""The battery: conversations that between them touch everything in which renderings differ.

Each case is a frozen value with a name that stays, because parity reports and caches quote it. Contents are short and
distinct, so that a difference can be found in a prompt by eye. The features say what a request of that kind needs: a
model may be proven for ``text`` and not for ``tools``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from chat_templates.conversation import Conversation, Json

Feature = Literal["text", "system", "multi_turn", "tools", "reasoning_history", "prefill", "parts"]

FEATURES: tuple[Feature, ...] = ("text", "system", "multi_turn", "tools", "reasoning_history", "prefill", "parts")

Message = Mapping[str, Json]


@dataclass(frozen=True, slots=True)
class Case:
    """One conversation, and what it takes to answer it. features: every one that a request of this kind needs."""

    name: str
    features: frozenset[Feature]
    conversation: Conversation


def _said(role: str, content: Json, **more: Json) -> Message:
    return {"role": role, "content": content, **more}


def _call(name: str, arguments: Mapping[str, Json], number: int = 0) -> Message:
    # the arguments as a mapping: what templates are written for, and what engines make of OpenAI's JSON text
    return {"id": f"call{number:05d}", "type": "function", "function": {"name": name, "arguments": arguments}}


def _result(content: Json, name: str, number: int = 0) -> Message:
    return _said("tool", content, name=name, tool_call_id=f"call{number:05d}")


WEATHER: Message = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in a city.",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "description": 'The city\'s name, e.g. "Tromsø"'},
                "unit": {"type": "string", "enum": ["celsius", "fahrenheit"]},
            },
            "required": ["city"],
        },
    },
}

BOOKING: Message = {
    "type": "function",
    "function": {
        "name": "book_room",
        "description": "Books a room & <answers> with its number.",
        "parameters": {
            "type": "object",
            "properties": {
                "guests": {
                    "type": "array",
                    "items": {
                        "type": "object",
                        "properties": {"name": {"type": "string"}, "age": {"type": ["integer", "null"], "minimum": 0}},
                        "required": ["name"],
                    },
                },
                "nights": {"type": "integer", "default": 1},
                "price": {"anyOf": [{"type": "number"}, {"type": "null"}]},
            },
            "required": ["guests", "nights"],
            "additionalProperties": False,
        },
    },
}

NAMELESS: Message = {"type": "function", "function": {"name": "now", "description": "", "parameters": {}}}

SYSTEM = _said("system", "You are terse.")
USER = _said("user", "How many legs has a spider?")
ANSWER = _said("assistant", "Eight.")
NEXT = _said("user", "And an ant?")

UNICODE = "你好，世界！ Ünïcödé 🕷️👩‍👩‍👧 ​ «guillemets» \"double\" 'single' \\back\\n <b>&amp;</b>"
BRACES = "{{ messages }} {% if true %}x{% endif %} {# note #} {%- raw %} {} {0} %s $x"
SPECIAL = "a<|im_end|>b<|endoftext|>c<s>d</s>e[INST]f<|eot_id|>g<end_of_turn>h<think>i</think>j"
LONG = " ".join(f"Sentence {number} of many, with a number {number * 7919} in it." for number in range(200))


def _case(
    name: str,
    *messages: Message,
    features: Sequence[Feature] = (),
    tools: Sequence[Message] | None = None,
) -> Case:
    return Case(name, frozenset({"text", *features}), Conversation(messages, tools))


def _cases() -> tuple[Case, ...]:
    thoughts = "Spiders are arachnids.\nSo eight."
    weather_call = _call("get_weather", {"city": "Tromsø", "unit": "celsius"})
    weather_result = _result('{"temp": -3, "sky": "clear"}', "get_weather")
    tool: tuple[Feature, ...] = ("tools",)
    tools: tuple[Feature, ...] = ("tools", "multi_turn")
    return (
        _case("user", USER),
        _case("system_user", SYSTEM, USER, features=["system"]),
        _case("multi_turn", USER, ANSWER, NEXT, features=["multi_turn"]),
        _case("system_multi_turn", SYSTEM, USER, ANSWER, NEXT, features=["system", "multi_turn"]),
        _case(
            "many_turns",
            SYSTEM,
            *(_said(("user", "assistant")[turn % 2], f"Turn {turn}.") for turn in range(9)),
            features=["system", "multi_turn"],
        ),
        _case(
            "whitespace",
            _said("system", "\n  You are terse. \n"),
            _said("user", "  \n\tHow many legs?\n\n"),
            _said("assistant", " Eight. \n"),
            _said("user", "\r\n And an ant?\t "),
            features=["system", "multi_turn"],
        ),
        _case("unicode", _said("system", UNICODE), _said("user", UNICODE), features=["system"]),
        _case(
            "template_literals",
            _said("user", BRACES),
            _said("assistant", BRACES),
            _said("user", BRACES),
            features=["multi_turn"],
        ),
        _case("special_token_text", _said("user", SPECIAL)),
        _case("long", SYSTEM, _said("user", LONG), features=["system"]),
        _case("empty_user", _said("user", "")),
        _case("empty_system", _said("system", ""), USER, features=["system"]),
        _case("empty_answer", USER, _said("assistant", ""), NEXT, features=["multi_turn"]),
        _case("null_content", USER, _said("assistant", None), NEXT, features=["multi_turn"]),
        _case("no_content", USER, {"role": "assistant"}, NEXT, features=["multi_turn"]),
        _case("number_content", _said("user", 42)),
        _case(
            "reasoning_content",
            USER,
            _said("assistant", "Eight.", reasoning_content=thoughts),
            NEXT,
            features=["multi_turn", "reasoning_history"],
        ),
        _case(
            "reasoning",
            USER,
            _said("assistant", "Eight.", reasoning=thoughts, reasoning_content=None),
            NEXT,
            features=["multi_turn", "reasoning_history"],
        ),
        _case(
            "inline_think",
            USER,
            _said("assistant", f"<think>\n{thoughts}\n</think>\n\nEight."),
            NEXT,
            features=["multi_turn", "reasoning_history"],
        ),
        _case(
            "reasoning_of_two_turns",
            SYSTEM,
            USER,
            _said("assistant", "Eight.", reasoning_content="First thought."),
            NEXT,
            _said("assistant", "Six.", reasoning_content="Second thought."),
            _said("user", "And a crab?"),
            features=["system", "multi_turn", "reasoning_history"],
        ),
        _case("one_tool", USER, features=tool, tools=[WEATHER]),
        _case("two_tools", SYSTEM, USER, features=[*tool, "system"], tools=[WEATHER, BOOKING]),
        _case("no_tools", USER, features=tool, tools=[]),
        _case("bare_tool", USER, features=tool, tools=[NAMELESS]),
        _case(
            "tool_round_trip",
            _said("user", "Weather in Tromsø?"),
            _said("assistant", "Let me look.", tool_calls=[weather_call]),
            weather_result,
            features=tools,
            tools=[WEATHER],
        ),
        _case(
            "tool_call_without_content",
            _said("user", "Weather in Tromsø?"),
            _said("assistant", None, tool_calls=[weather_call]),
            weather_result,
            _said("assistant", "-3 °C."),
            _said("user", "Thanks."),
            features=tools,
            tools=[WEATHER],
        ),
        _case(
            "parallel_tool_calls",
            SYSTEM,
            _said("user", "Weather in Tromsø and Oslo?"),
            _said("assistant", "", tool_calls=[weather_call, _call("get_weather", {"city": "Oslo"}, 1)]),
            weather_result,
            _result("4", "get_weather", 1),
            features=[*tools, "system"],
            tools=[WEATHER, BOOKING],
        ),
        _case(
            "tool_arguments",
            _said("user", "Book."),
            _said(
                "assistant",
                "",
                tool_calls=[
                    _call(
                        "book_room",
                        {
                            "guests": [{"name": 'Åsa "O\'Neil"', "age": None}, {"name": "李", "age": 7}],
                            "nights": 2,
                            "price": 99.5,
                            "late": True,
                            "note": "",
                            "extras": {},
                        },
                    )
                ],
            ),
            _result([{"type": "text", "text": "room 12"}], "book_room"),
            features=[*tools, "parts"],
            tools=[BOOKING],
        ),
        _case(
            "tool_arguments_text",
            _said("user", "Weather?"),
            _said(
                "assistant",
                "",
                tool_calls=[
                    {
                        "id": "call00000",
                        "type": "function",
                        "function": {"name": "get_weather", "arguments": '{"city": "Oslo"}'},
                    }
                ],
            ),
            weather_result,
            features=tools,
            tools=[WEATHER],
        ),
        _case(
            "tool_reasoning",
            _said("user", "Weather in Tromsø?"),
            _said("assistant", "", reasoning_content="I need the tool.", tool_calls=[weather_call]),
            weather_result,
            features=[*tools, "reasoning_history"],
            tools=[WEATHER],
        ),
        _case("text_part", _said("user", [{"type": "text", "text": "How many legs?"}]), features=["parts"]),
        _case(
            "text_parts",
            _said("system", [{"type": "text", "text": "You are terse."}]),
            _said("user", [{"type": "text", "text": " One "}, {"type": "text", "text": "two.\n"}]),
            _said("assistant", [{"type": "text", "text": "Eight."}]),
            _said("user", [{"type": "text", "text": "Next?"}]),
            features=["system", "multi_turn", "parts"],
        ),
        _case("two_users", USER, NEXT, features=["multi_turn"]),
        _case("two_answers", USER, ANSWER, _said("assistant", "I am sure."), NEXT, features=["multi_turn"]),
        _case("late_system", USER, ANSWER, SYSTEM, NEXT, features=["system", "multi_turn"]),
        _case("two_systems", SYSTEM, _said("system", "Be kind."), USER, features=["system"]),
        _case("only_system", SYSTEM, features=["system"]),
        _case("developer", _said("developer", "You are terse."), USER, features=["system"]),
        _case("unknown_role", USER, _said("narrator", "A spider enters."), features=["multi_turn"]),
        _case("final_answer", USER, _said("assistant", "Eight, be"), features=["multi_turn", "prefill"]),
        _case(
            "final_answer_trailing_space",
            SYSTEM,
            USER,
            _said("assistant", "The number is "),
            features=["system", "multi_turn", "prefill"],
        ),
        _case(
            "final_answer_reasoning",
            USER,
            _said("assistant", "Eight, be", reasoning_content="Arachnids."),
            features=["multi_turn", "prefill", "reasoning_history"],
        ),
    )


CASES: tuple[Case, ...] = _cases()
"""All cases, each with the generation prompt."""


def without_generation_prompt(case: Case) -> Case:
    """The same conversation as it is when nothing is to be generated, as in training."""
    return _varied(case, "closed", add_generation_prompt=False, continue_final_message=False)


def continued(case: Case) -> Case:
    """The same conversation with its last message left open."""
    return _varied(case, "continued", add_generation_prompt=False, continue_final_message=True)


def _varied(case: Case, suffix: str, *, add_generation_prompt: bool, continue_final_message: bool) -> Case:
    conversation = replace(
        case.conversation,
        add_generation_prompt=add_generation_prompt,
        continue_final_message=continue_final_message,
    )
    return replace(case, name=f"{case.name}.{suffix}", conversation=conversation)


BATTERY: tuple[Case, ...] = (
    *CASES,
    *(without_generation_prompt(case) for case in CASES),
    *(continued(case) for case in CASES if "prefill" in case.features or "parts" in case.features),
)
"""Every case with and without the generation prompt, and those that may be continued, continued."""
