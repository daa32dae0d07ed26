"""Slot templates: the Jinja made of slots writes what training writes, and refuses what training never wrote."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chat_templates.battery import BATTERY
from chat_templates.conversation import Conversation
from chat_templates.rendering import Renderer, TemplateRefused
from chat_templates.sources.slots import Blank, SlotTemplate, Thoughts, around
from tests.oracle.slot_prompt import prompt, remembered

THOUGHTS = Thoughts("<think>\n", "\n</think>\n\n")

PIECES = ["a", " ", "\n", "<think>\n", "\n</think>\n\n", "'", '"', "\\", "{{ x }}", "{%", "#}", "你", "🕷", "\r"]
TEXTS = st.lists(st.sampled_from(PIECES)).map("".join)
SLOTS = st.builds(around, TEXTS, TEXTS)
EDGES = st.lists(TEXTS | st.sampled_from([Blank.BOS, Blank.EOS])).map(tuple)
TEMPLATES = st.builds(
    SlotTemplate,
    user=SLOTS | st.just(("[", Blank.ROUND, "]", Blank.CONTENT)),
    assistant=SLOTS,
    system=SLOTS,
    prefix=EDGES,
    default_system=st.none() | TEXTS,
    is_system_in_user=st.booleans(),
    joint=EDGES,
    thoughts=st.none() | st.builds(Thoughts, st.just("<think>\n"), st.just("\n</think>\n\n"), st.booleans(), TEXTS),
)


@st.composite
def chats(draw: st.DrawFn) -> Conversation:
    """A chat of up to three answers."""
    turns = draw(st.integers(0, 3)) * 2 + 1
    system = draw(st.none() | TEXTS)
    messages = [] if system is None else [{"role": "system", "content": system}]
    roles = [("user", "assistant")[turn % 2] for turn in range(turns)]
    return Conversation([*messages, *({"role": role, "content": draw(TEXTS)} for role in roles)])


@given(TEMPLATES, chats(), TEXTS, TEXTS)
def test_the_jinja_writes_what_training_writes(template: SlotTemplate, chat: Conversation, bos: str, eos: str) -> None:
    """For every slot template and every chat, the generated Jinja renders exactly the training's text."""
    renderer = Renderer({"default": template.jinja("a test")}, special_tokens={"bos_token": bos, "eos_token": eos})
    assert renderer.render(chat).text == prompt(template, chat, bos, eos)


CHATML = SlotTemplate(
    around("<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n"),
    around("", "<|im_end|>\n"),
    around("<|im_start|>system\n", "<|im_end|>\n"),
)


def test_what_training_never_wrote_is_refused() -> None:
    """On the whole battery the generated Jinja either writes the training's text or says why it cannot."""
    renderer = Renderer.of(CHATML.jinja("a test"))
    refusals = {}
    for case in BATTERY:
        try:
            renderer.render(case.conversation)
        except TemplateRefused as refusal:
            refusals[case.name] = str(refusal)
    assert refusals["one_tool"] == "this template knows no tools"
    assert refusals["late_system"] == "this template knows no message of this role here"
    assert refusals["text_part"] == "this template knows only content that is text"
    assert refusals["null_content"] == "this template knows only content that is text"
    assert refusals["final_answer"] == "this template begins an answer only after a message of the user"
    assert not {"user", "system_multi_turn", "final_answer.closed", "final_answer.continued"} & set(refusals)


def test_a_template_without_a_system_slot_refuses_a_system_message() -> None:
    """Where training knew no system message, one is refused, not dropped."""
    template = SlotTemplate(around("<user>", "<ai>"), around("", "\n"), None)
    chat = Conversation([{"role": "system", "content": "s"}, {"role": "user", "content": "u"}])
    with pytest.raises(TemplateRefused, match="knows no system message"):
        Renderer.of(template.jinja("a test")).render(chat)


@pytest.mark.parametrize(
    ("content", "cut"),
    [
        ("<think>\nx\n</think>\n\ny", "y"),
        ("<think>\n\n</think>\n\n\n\ny", "y"),
        ("a<think>\nx\n</think>\n\nb<think>\nz\n</think>\n\nc", "abc"),
        ("<think>\n<think>\nx\n</think>\n\ny", "y"),
        ("<think>\nx", "<think>\nx"),
        ("\n\ny", "y"),
    ],
)
def test_thoughts_of_earlier_answers_are_cut(content: str, cut: str) -> None:
    """A closed thought goes with the newlines it leaves at the beginning; one that is open stays."""
    template = SlotTemplate(around("", ""), around("[", "]"), thoughts=THOUGHTS)
    user = {"role": "user", "content": ""}
    chat = Conversation([user, {"role": "assistant", "content": content}, user])
    assert remembered(THOUGHTS, content) == cut
    assert Renderer.of(template.jinja("a test")).render(chat).text == f"[{cut}]"
