"""LLaMA-Factory's and XTuner's templates by name: read as data, and what cannot be read is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from chat_templates.conversation import Conversation
from chat_templates.rendering import Renderer, TemplateRefused
from chat_templates.sources import llamafactory, xtuner
from chat_templates.sources.found import Found, SourceUnreadable
from chat_templates.sources.llamafactory import Training, read_llamafactory, read_training
from chat_templates.sources.xtuner import read_xtuner
from tests.unit.chat_templates.sources import trainings

USER = {"role": "user", "content": "U"}
ANSWER = {"role": "assistant", "content": "<think>\nT\n</think>\n\nA"}
CHAT = Conversation([USER, ANSWER, {"role": "user", "content": "V"}])
PLAIN = Conversation([USER, {"role": "assistant", "content": "A"}, USER])
SYSTEM = Conversation([{"role": "system", "content": "S"}, USER])
TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}


def said(found: Found, conversation: Conversation, tokens: dict[str, str] | None = None) -> str:
    """What *found* says."""
    return Renderer(found.templates, special_tokens=tokens or {}).render(conversation).text


# --- LLaMA-Factory


def test_a_training_template_is_read_and_never_run(tmp_path: Path) -> None:
    """The registry's file is read as data: its imports are not made, its functions not called."""
    folder = trainings.llamafactory(tmp_path)
    found = read_llamafactory(Training("thinker_nothink"), folder)
    assert found.name == "llamafactory:thinker_nothink"
    assert found.stop_strings == ("<|im_end|>",)
    assert found.special_tokens == {"eos_token": "<|im_end|>"}
    assert said(found, SYSTEM) == (
        "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nU<|im_end|>\n<|im_start|>assistant\n"
    )
    assert "thinker" in llamafactory.template_names(folder / "llamafactory")


def test_an_environment_is_a_place_too(tmp_path: Path) -> None:
    """The package is found in the environment that it is installed in."""
    trainings.llamafactory(tmp_path / "lib" / "python3.11" / "site-packages")
    assert "folded" in llamafactory.template_names(tmp_path)


@pytest.mark.parametrize(
    ("training", "end"),
    [
        (Training("thinker"), ""),
        (Training("thinker", enable_thinking=False), "<think>\n\n</think>\n\n"),
        (Training("thinker", enable_thinking=None), "<think>\n\n</think>\n\n"),
    ],
)
def test_reasoning_templates_cut_thoughts_and_may_end_with_an_empty_one(
    tmp_path: Path, training: Training, end: str
) -> None:
    """Earlier thoughts are cut; a training without thinking wrote an empty thought at the end of each prompt."""
    found = read_llamafactory(training, trainings.llamafactory(tmp_path))
    text = said(found, CHAT)
    assert "<|im_start|>assistant\nA<|im_end|>" in text
    assert text.endswith(f"V<|im_end|>\n<|im_start|>assistant\n{end}")
    assert any("ends with an empty thought" in note for note in found.notes) is (end != "")


def test_thoughts_may_be_kept(tmp_path: Path) -> None:
    """A training that preserves thinking keeps the thoughts of earlier answers."""
    training = Training("thinker", preserve_thinking=True)
    assert ANSWER["content"] in said(read_llamafactory(training, trainings.llamafactory(tmp_path)), CHAT)


def test_a_system_message_may_be_folded_into_the_first_user(tmp_path: Path) -> None:
    """Special tokens are the tokenizer's, and a Llama2Template puts the system message into the user's."""
    found = read_llamafactory(Training("folded"), trainings.llamafactory(tmp_path))
    assert said(found, SYSTEM, TOKENS) == "^<s>[<<S>>U]"
    assert said(found, PLAIN, TOKENS) == "^<s>[<<Be kind.>>U]A</s><s>[U]"
    assert said(found, PLAIN) == "^[<<Be kind.>>U]A[U]"
    assert found.system_default == "Be kind."


def test_a_trainings_system_message_takes_the_templates_place(tmp_path: Path) -> None:
    """``default_system`` of the training wins, and an empty one leaves the block out."""
    folder = trainings.llamafactory(tmp_path)
    assert said(read_llamafactory(Training("folded", "X"), folder), Conversation([USER])) == "^[<<X>>U]"
    assert said(read_llamafactory(Training("folded", ""), folder), Conversation([USER])) == "^[U]"


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("thinkr", "LLaMA-Factory has no template called 'thinkr'"),
        ("computed", "make(): is no plain value"),
        ("indexed", "has a blank that is not {{content}}"),
        ("strange", "is of the class MyTemplate, which is not known here"),
        ("endless", "replaces the EOS by a stop word and has none"),
        ("filled", "format_prefix: has a content"),
        ("bare", "format_user: has no plain slots, so it cannot be read"),
        ("wrong", "3: is no slot that is known here"),
    ],
)
def test_training_templates_that_cannot_be_read_say_why(tmp_path: Path, name: str, complaint: str) -> None:
    """An unknown name, a computed slot and an unknown class are told apart."""
    with pytest.raises(SourceUnreadable) as refusal:
        read_llamafactory(Training(name), trainings.llamafactory(tmp_path))
    assert complaint in str(refusal.value)


def test_a_package_that_is_not_there_is_named(tmp_path: Path) -> None:
    """Neither an installed package nor one in the folder: the message says which option names it."""
    with pytest.raises(SourceUnreadable, match="is not installed beside Unigate; say where it is with --package"):
        read_llamafactory(Training("x"))
    with pytest.raises(SourceUnreadable, match=r"has no xtuner/utils/templates\.py"):
        read_xtuner("x", tmp_path)


def test_python_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    """A file that is no Python, and one without the registry."""
    path = trainings.xtuner(tmp_path) / "xtuner" / "utils" / "templates.py"
    path.write_text("def (")
    with pytest.raises(SourceUnreadable, match="is no Python that can be read"):
        read_xtuner("chat", tmp_path)
    path.write_text("x = 1")
    with pytest.raises(SourceUnreadable, match="has no PROMPT_TEMPLATE"):
        read_xtuner("chat", tmp_path)


def test_a_training_file_names_its_template(tmp_path: Path) -> None:
    """The training YAML gives the template, its system message and its thinking; one without a template is none."""
    path = tmp_path / "train.yaml"
    path.write_text("template: qwen3\ndefault_system: S\nenable_thinking: false\nlearning_rate: 1.0e-4\n")
    assert read_training(path) == Training("qwen3", "S", False)
    path.write_text("stage: sft\n")
    assert read_training(path) is None
    path.write_text("template: [1]\n")
    with pytest.raises(SourceUnreadable, match=r"template: \[1\] is not what LLaMA-Factory takes"):
        read_training(path)
    path.write_text("a: b\ntemplate: : x\n")
    with pytest.raises(SourceUnreadable, match=r"train.yaml:2: is no YAML"):
        read_training(path)


# --- XTuner


def test_an_xtuner_template_counts_rounds(tmp_path: Path) -> None:
    """BOS is written first, SUFFIX and SEP after each answer, and rounds are counted from 1."""
    found = read_xtuner("chat", trainings.xtuner(tmp_path))
    assert said(found, PLAIN, TOKENS) == "<s>[1] U<eoh><ai>A<eoa>\n[2] U<eoh><ai>"
    assert said(found, SYSTEM, TOKENS) == "<s><s>S\n[1] U<eoh><ai>"
    assert found.stop_strings == ("<eoa>",)


def test_an_xtuner_template_may_end_answers_with_eos(tmp_path: Path) -> None:
    """Where no suffix takes its place EOS ends an answer, and BOS begins the next turn."""
    found = read_xtuner("ended", trainings.xtuner(tmp_path))
    assert said(found, PLAIN, TOKENS) == "<s>{U}>A</s>\n<s>{U}>"
    assert "system" not in found.speaks_of
    with pytest.raises(TemplateRefused, match="knows no system message"):
        said(found, SYSTEM)


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("chats", "did you mean chat?"),
        ("odd", "has the blank {name}, which is not known here"),
        ("broken", "'{input'"),
        ("silent", "silent: has no INSTRUCTION"),
        ("listed", "STOP_WORDS: is no list of texts"),
        ("counted", "SEP: is no text"),
    ],
)
def test_xtuner_templates_that_cannot_be_read_say_why(tmp_path: Path, name: str, complaint: str) -> None:
    """A name near another, an unknown blank and a wrong type each have their sentence."""
    with pytest.raises(SourceUnreadable) as refusal:
        read_xtuner(name, trainings.xtuner(tmp_path))
    assert complaint in str(refusal.value)


def test_xtuner_names_are_listed(tmp_path: Path) -> None:
    """Every entry of PROMPT_TEMPLATE has its name."""
    assert {"chat", "ended"} <= set(xtuner.template_names(trainings.xtuner(tmp_path)))
