"""LMDeploy's JSON: its fields write what LMDeploy writes with them, and what cannot be used says why."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chat_templates.conversation import Conversation
from chat_templates.rendering import Renderer, TemplateRefused
from chat_templates.sources.found import Found, SourceUnreadable
from chat_templates.sources.lmdeploy_json import TEXT_FIELDS, jinja_of, read_lmdeploy
from tests.oracle import field_prompt
from tests.oracle.folders import OWN, model_folder

USER = {"role": "user", "content": "U"}
PLAIN = Conversation([USER, {"role": "assistant", "content": "A"}, USER])
SYSTEM = Conversation([{"role": "system", "content": "S"}, USER])

TEXTS = st.lists(st.sampled_from(["a", " ", "\n", "'", '"', "\\", "{{ x }}", "{%", "#}", "你", "\r"])).map("".join)
FIELDS = st.fixed_dictionaries(dict.fromkeys(TEXT_FIELDS, TEXTS))
ROLES = st.sampled_from(["system", "user", "assistant", "tool", "narrator"])
MESSAGES = st.lists(st.fixed_dictionaries({"role": ROLES, "content": TEXTS}), min_size=1)


@given(FIELDS, MESSAGES)
def test_fields_write_what_lmdeploy_writes(fields: dict[str, str], messages: list[dict[str, str]]) -> None:
    """For all fields and all messages of text, in whatever order of roles: the same prompt, or none."""
    try:
        text = Renderer.of(jinja_of(fields)).render(Conversation(messages)).text
    except TemplateRefused:
        text = None
    assert text == field_prompt.prompt(fields, messages)


def lmdeploy(folder: Path, content: Any) -> Found:
    """What LMDeploy's JSON with *content* says."""
    path = folder / "t.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return read_lmdeploy(path)


def said(found: Found, conversation: Conversation) -> str:
    """What *found* says."""
    return Renderer(found.templates).render(conversation).text


FILE = {
    "model_name": "mine", "system": "<S>", "eosys": "</S>", "user": "<U>", "eoh": "</U>", "assistant": "<A>",
    "eoa": "</A>", "separator": "\n", "stop_words": ["</A>"], "meta_instruction": None,
}  # fmt: skip


def test_a_null_is_an_empty_text(tmp_path: Path) -> None:
    """Without a system message the block stands there all the same, and no JSON can leave it out."""
    found = lmdeploy(tmp_path, FILE)
    assert said(found, PLAIN) == "<S></S><U>U</U><A>A</A>\n<U>U</U><A>"
    assert said(found, SYSTEM) == "<S>S</S><U>U</U><A>"
    assert (found.stop_strings, found.system_default) == (("</A>",), "")
    meta = lmdeploy(tmp_path, FILE | {"meta_instruction": "M"})
    assert said(meta, Conversation([USER])) == "<S>M</S><U>U</U><A>"
    assert meta.system_default == "M"


def test_a_name_may_be_missing_or_base(tmp_path: Path) -> None:
    """Without a model_name LMDeploy makes one up, and ``base`` is the class that such a JSON has anyway."""
    assert said(lmdeploy(tmp_path, {"user": "<U>"}), Conversation([USER])) == "<U>U"
    assert said(lmdeploy(tmp_path, {"model_name": "base", "user": "<U>"}), Conversation([USER])) == "<U>U"


def test_a_last_answer_is_left_open(tmp_path: Path) -> None:
    """For the model to go on with; closed, where nothing is to be generated."""
    messages = [USER, {"role": "assistant", "content": "A"}]
    found = lmdeploy(tmp_path, FILE)
    assert said(found, Conversation(messages)) == "<S></S><U>U</U><A>A"
    assert said(found, Conversation(messages, add_generation_prompt=False)) == "<S></S><U>U</U><A>A</A>\n"


@pytest.mark.parametrize(
    ("messages", "tools"),
    [([USER], [{"name": "f"}]), ([{"role": "user", "content": [{"type": "text", "text": "U"}]}], None)],
)
def test_tools_and_parts_are_refused(tmp_path: Path, messages: Any, tools: Any) -> None:
    """LMDeploy would pass over the tools without a word."""
    with pytest.raises(TemplateRefused):
        said(lmdeploy(tmp_path, FILE), Conversation(messages, tools))


def test_lmdeploys_hf_form_is_the_folders_template(tmp_path: Path) -> None:
    """``"model_name": "hf"`` points to a folder, whose Jinja template it is; its stop_words are nobody's."""
    folder = model_folder(tmp_path / "overlay", OWN)
    (folder / "chat_template.jinja").write_text("{{ messages[0].content }}!")
    found = lmdeploy(tmp_path, {"model_name": "hf", "model_path": "overlay", "stop_words": ["x"]})
    assert said(found, Conversation([USER])) == "U!"
    assert found.stop_strings == ()
    assert "stop_words" in found.notes[0]


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("[", "t.json:1:2: is no JSON"),
        ("[" * 100000, "t.json: is no JSON that can be read"),
        ({"a": ""}, "t.json: has none of LMDeploy's fields"),
        ({"model_name": "m", "sytem": ""}, "t.json: sytem: is no field of LMDeploy's"),
        ({"model_name": "m", "user": 1}, "t.json: user: is no text"),
        ({"model_name": 1}, "t.json: model_name: is no text"),
        ({"model_name": "m", "stop_words": "x"}, "t.json: stop_words: is no list of texts"),
        ({"model_name": "vicuna"}, "t.json: model_name: 'vicuna' is one of LMDeploy's own templates"),
        ({"model_name": "m", "capability": "completion"}, "t.json: capability: 'completion' writes no chats"),
        ({"model_name": "hf"}, "t.json: model_path: is missing"),
        ({"model_name": "hf", "model_path": "."}, "has no chat template"),
    ],
)
def test_lmdeploys_json_that_cannot_be_used_says_why(tmp_path: Path, content: Any, complaint: str) -> None:
    """Unknown fields, wrong types and built-in names are refused as LMDeploy would, or more clearly."""
    with pytest.raises(SourceUnreadable) as refusal:
        lmdeploy(tmp_path, content)
    assert complaint in str(refusal.value)
