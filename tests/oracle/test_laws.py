"""What holds of every conversation, not only of those somebody thought of."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chat_templates.conversation import Conversation
from chat_templates.rendering import DEFAULT, Renderer
from tests.oracle.reference import NOW, SPECIAL_TOKENS, TEMPLATES, Reference, frozen_clock, ours

OWN = (
    "{% for m in messages %}{{ m.role }}:{{ m.content|trim }}|{{ m|tojson(sort_keys=true) }}\n{% endfor %}"
    "{{ tools|tojson }}{% if add_generation_prompt %}>{% endif %}",
    "{% for m in messages %}{% if m.content is string %}{{ m.content }}{% else %}{% for p in m.content %}"
    "{{ p.text }}{% endfor %}{% endif %}{{ m.reasoning_content }}{{ m.thinking }}{{ eos_token }}{% endfor %}",
    "{{ bos_token }}{% if messages[0].role != 'user' %}{{ raise_exception('user first, not ' ~ messages[0].role) }}"
    "{% endif %}{% for m in messages %}{% generation %}{{ m['content'] + eos_token }}{% endgeneration %}{% endfor %}",
)
PUBLISHED = tuple(path.read_text(encoding="utf-8") for path in TEMPLATES[5::131])

TEXT = st.text(st.sampled_from("ab \n\t<>{}%|\"'\\é你🕷"), max_size=12) | st.sampled_from(
    ["<think>", "</think>", "<think>\na\n</think>\n\nb", "<|im_end|>", "CONTINUE_FINAL_MESSAGE_TAG ", "{{ x }}"]
)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | TEXT
JSON = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3), max_leaves=6
)
PARTS = st.lists(
    st.fixed_dictionaries({"type": st.sampled_from(["text", "image"])}, optional={"text": TEXT}), max_size=3
)
CALLS = st.lists(
    st.fixed_dictionaries(
        {"type": st.just("function"), "function": st.fixed_dictionaries({"name": TEXT, "arguments": JSON})}
    ),
    max_size=2,
)
MESSAGES = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["user", "assistant", "system", "tool", "developer"])},
        optional={
            "content": st.none() | TEXT | PARTS | JSON,
            "reasoning_content": st.none() | TEXT,
            "reasoning": st.none() | TEXT,
            "thinking": st.none() | TEXT,
            "tool_calls": st.none() | CALLS,
            "name": JSON,
        },
    ),
    min_size=1,
    max_size=5,
)
TOOLS = st.none() | st.lists(st.dictionaries(TEXT, JSON, max_size=3), max_size=2)
ENDINGS = st.sampled_from([(True, False), (False, False), (False, True), (False, "reasoning"), (True, True)])


@pytest.fixture(scope="module")
def reference() -> Reference:
    return Reference()


@given(
    template=st.sampled_from(OWN + PUBLISHED),
    messages=MESSAGES,
    tools=TOOLS,
    ending=ENDINGS,
    variables=st.dictionaries(st.sampled_from(["enable_thinking", "bos_token", "x"]), JSON, max_size=2),
)
@settings(max_examples=300, deadline=None)
def test_any_conversation_renders_as_in_transformers(
    reference: Reference,
    template: str,
    messages: list[dict[str, Any]],
    tools: list[dict[str, Any]] | None,
    ending: tuple[bool, bool | str],
    variables: dict[str, Any],
) -> None:
    """Whatever JSON a client sends as messages and tools, the outcome is the reference's."""
    conversation = Conversation(messages, tools, None, *ending)
    renderer = Renderer({DEFAULT: template}, variables=variables, special_tokens=SPECIAL_TOKENS, clock=NOW)
    with frozen_clock():
        assert ours(renderer, conversation) == reference.outcome(template, conversation, variables)
