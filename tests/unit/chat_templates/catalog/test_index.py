"""The catalog: every template is what its entry says, and can be read by its name."""

from __future__ import annotations

from pathlib import Path

import pytest

from chat_templates.battery import BATTERY, CASES
from chat_templates.catalog import index
from chat_templates.catalog.index import ENTRIES, read_entry
from chat_templates.conversation import Conversation
from chat_templates.parsing import read_template
from chat_templates.rendering import DEFAULT, Renderer, TemplateRefused
from chat_templates.rules import RULES, TRANSFORMERS_5_23
from chat_templates.sources.found import SourceUnreadable
from chat_templates.template_names import names_in

FOLDER = Path(index.__file__).parent
TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}
CHAT = Conversation(
    [{"role": "user", "content": "U"}, {"role": "assistant", "content": "A"}, {"role": "user", "content": "V"}]
)


def renderer(name: str) -> Renderer:
    """The template *name* with special tokens."""
    return Renderer(read_entry(name).templates, special_tokens=TOKENS)


def test_every_file_has_an_entry() -> None:
    """And every entry its file."""
    assert {path.stem for path in FOLDER.glob("*.jinja")} == set(ENTRIES)


@pytest.mark.parametrize("name", ENTRIES)
def test_an_entry_is_read(name: str) -> None:
    """The file is the one whose digest the entry has, parses, is short, and says what its name is."""
    found = read_entry(name)
    assert found.name == f"catalog:{name}"
    assert found.templates == {DEFAULT: read_template(FOLDER / f"{name}.jinja")}
    assert found.templates[DEFAULT].startswith("{#-")
    assert max(map(len, found.templates[DEFAULT].splitlines())) <= 120


@pytest.mark.parametrize("name", [name for name, entry in ENTRIES.items() if "tools" not in entry.features])
def test_a_template_without_tools_refuses_them(name: str) -> None:
    """What a format has no place for its template does not drop: tools, calls of them, and their results."""
    call = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f"}}]}
    question = CHAT.messages[0]
    for conversation in (
        Conversation([question], [{"name": "f"}]),
        Conversation([question, call, question]),
        Conversation([question, CHAT.messages[1], {"role": "tool", "content": "T"}]),
    ):
        with pytest.raises(TemplateRefused):
            renderer(name).render(conversation)


@pytest.mark.parametrize("name", ENTRIES)
def test_other_roles_are_refused(name: str) -> None:
    """A role that the format does not know is not written as if it did."""
    (case,) = [case for case in CASES if case.name == "unknown_role"]
    with pytest.raises(TemplateRefused):
        renderer(name).render(case.conversation)


@pytest.mark.parametrize("name", ENTRIES)
def test_a_default_system_message_is_the_one_that_is_written(name: str) -> None:
    """Where an entry has one, a conversation without a system message has the same prompt as with that one."""
    default = ENTRIES[name].system_default
    if default is not None:
        with_it = Conversation([{"role": "system", "content": default}, *CHAT.messages])
        assert renderer(name).render(CHAT).text == renderer(name).render(with_it).text
    else:
        assert "You are" not in renderer(name).render(CHAT).text


@pytest.mark.parametrize("name", ENTRIES)
def test_a_template_reads_no_variable_but_those_of_its_family(name: str) -> None:
    """What an import has to pin is what the family's own templates read, and no name of ours looks like one."""
    read = names_in(read_entry(name).templates[DEFAULT], RULES[TRANSFORMERS_5_23.name]).variables
    assert read - TOKENS.keys() == {"qwen3": {"enable_thinking"}, "llama-3.1": {"date_string"}}.get(name, set())


def test_the_prompts_of_alpaca_and_vicuna() -> None:
    """The two that have no published template to be compared with."""
    assert renderer("alpaca").render(CHAT).text == (
        f"{ENTRIES['alpaca'].system_default}### Instruction:\nU\n\n### Response:\nA</s>\n\n"
        "### Instruction:\nV\n\n### Response:\n"
    )
    assert renderer("vicuna").render(CHAT).text == (
        f"{ENTRIES['vicuna'].system_default} USER: U ASSISTANT: A</s>USER: V ASSISTANT:"
    )


def test_entries_name_cases_that_there_are() -> None:
    """A difference that is explained is one of the battery's cases."""
    names = {case.name for case in BATTERY}
    for entry in ENTRIES.values():
        assert set(entry.unlike) <= names


def test_a_name_that_is_not_there_is_told() -> None:
    """With those that are near it, or all of them."""
    with pytest.raises(SourceUnreadable, match=r"no template called 'qwen2'; did you mean qwen2\.5"):
        read_entry("qwen2")
    with pytest.raises(SourceUnreadable, match="there are: alpaca, chatml"):
        read_entry("zzzz")


def test_a_template_that_was_changed_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was compared is what is given out."""
    monkeypatch.setattr(index, "sha256_of", lambda text: "0")
    with pytest.raises(SourceUnreadable, match="its SHA-256 differs"):
        read_entry("chatml")
