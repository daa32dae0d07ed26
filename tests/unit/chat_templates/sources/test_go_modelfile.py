"""Ollama's Go templates: what they write, the same in Jinja, and what is not taken."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chat_templates.conversation import Conversation
from chat_templates.rendering import Renderer, TemplateRefused
from chat_templates.rules import RULES, TRANSFORMERS_5_23
from chat_templates.sources.found import SourceUnreadable
from chat_templates.sources.go_jinja import jinja_of
from chat_templates.sources.go_modelfile import read_modelfile
from chat_templates.sources.go_parsing import GoTemplateRefused, parse
from chat_templates.template_names import names_in
from tests.oracle.go_running import chat_text, run
from tests.oracle.go_styles import STYLES
from tests.oracle.go_templates import compared

SYSTEM = {"role": "system", "content": "S"}
USER = {"role": "user", "content": "U"}
ANSWER = {"role": "assistant", "content": "A"}
CHAT = [SYSTEM, USER, ANSWER, {"role": "user", "content": "V"}]

HEADER = "<|start_header_id|>{}<|end_header_id|>\n\n"

WRITTEN = {
    "chatml": (
        "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nU<|im_end|>\n<|im_start|>assistant\nA<|im_end|>\n"
        "<|im_start|>user\nV<|im_end|>\n<|im_start|>assistant\n"
    ),
    "turns with headers": (
        "<|system|>\nS<|end|>\n<|user|>\nU<|end|>\n<|assistant|>\nA<|end|>\n<|user|>\nV<|end|>\n<|assistant|>\n"
    ),
    "instruction": "S\n\n### Instruction:\nU\n\n### Response:\nA\n\n### Instruction:\nV\n\n### Response:\n",
    "system in the first user": "[INST] <<SYS>>\nS\n<</SYS>>\n\nU [/INST]A</s><s>[INST] V [/INST]",
    "library, with tools": (
        f"{HEADER.format('system')}S<|eot_id|>{HEADER.format('user')}U<|eot_id|>{HEADER.format('assistant')}A<|eot_id|>"
        f"{HEADER.format('user')}V<|eot_id|>{HEADER.format('assistant')}"
    ),
    "as LLaMA-Factory exports": (
        "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nU<|im_end|>\n<|im_start|>assistant\nA<|im_end|>\n"
        "<|im_start|>user\nV<|im_end|>\n<|im_start|>assistant\n"
    ),
    "turns without a response": "S U:A V:",
    "nothing but the prompt": "UAV",
    "response in a block": "S[U](A)![V]",
    "odds and ends": (
        'ab {{ "raw" }}<S>abc4% system Sabc4% user Uabc4% assistant Aabc4% user Va你\t"systemfalseSfalsetrue'
    ),
}


@pytest.mark.parametrize("name", WRITTEN)
def test_templates_write_what_go_writes(name: str) -> None:
    """Each style of template writes what Go 1.19.8 was seen to write, and the Jinja made of it the same."""
    nodes = parse(STYLES[name])
    assert chat_text(nodes, CHAT) == WRITTEN[name]
    assert Renderer.of(jinja_of(nodes)).render(Conversation(CHAT)).text == WRITTEN[name]


@pytest.mark.parametrize("name", STYLES)
def test_the_jinja_writes_the_same(name: str) -> None:
    """On every conversation of texts the Jinja made of a Go template writes what the Go template does, or fails too."""
    found = list(compared(name, STYLES[name]))
    assert len(found) > 20
    assert [one.case for one in found if one.jinja != one.running] == []


@pytest.mark.parametrize("name", STYLES)
def test_the_jinja_reads_no_variable_but_thinking(name: str) -> None:
    """None of its own names looks like one that has to be pinned."""
    read = names_in(jinja_of(parse(STYLES[name])), RULES[TRANSFORMERS_5_23.name]).variables
    assert read == ({"enable_thinking"} if name == "last user and thinking" else set())


NODES = {name: parse(text) for name, text in STYLES.items()}
RENDERERS = {name: Renderer.of(jinja_of(nodes, "Be kind.")) for name, nodes in NODES.items()}
TEXTS = st.text(st.sampled_from("aä🕷\n \t'\"\\{}%"), max_size=6)
ROLES = st.sampled_from(["system", "user", "assistant"])
MESSAGES = st.lists(st.fixed_dictionaries({"role": ROLES, "content": TEXTS}), min_size=1, max_size=7)


@given(st.sampled_from(sorted(STYLES)), MESSAGES)
def test_the_jinja_writes_the_same_of_any_messages(name: str, messages: list[dict[str, str]]) -> None:
    """In whatever order of roles, with a system message of the Modelfile's, and texts with anybody's signs in them."""
    text = RENDERERS[name].render(Conversation(messages)).text
    assert text == chat_text(NODES[name], messages, "Be kind.")


@pytest.mark.parametrize(
    ("thinking", "user", "end"),
    [({}, "V", ""), ({"enable_thinking": True}, "V /think", ""),
     ({"enable_thinking": False}, "V /no_think", "<think>\n\n</think>\n\n")],
)  # fmt: skip
def test_thinking_is_a_variable(thinking: dict[str, bool], user: str, end: str) -> None:
    """``.IsThinkSet`` and ``.Think`` are whether ``enable_thinking`` is set, and what it is."""
    jinja = jinja_of(parse(STYLES["last user and thinking"]))
    text = Renderer({"default": jinja}, variables=thinking).render(Conversation(CHAT)).text
    assert text.endswith(f"<|im_start|>user\n{user}<|im_end|>\n<|im_start|>assistant\n{end}")


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("a\n{{ json .System }}", "line 2: the function json is taken beside tools alone"),
        ("{{ currentDate }}", "the function currentDate is taken beside tools alone"),
        ("{{ html .System }}", "the function html is not taken here"),
        ('{{ define "x" }}{{ end }}', "{{ define }} is not taken here"),
        ('{{ template "x" . }}', "{{ template }} is not taken here"),
        ("{{ if .System }}", "{{ if }} is never ended"),
        ("{{ end }}", "{{ end }} has nothing to end"),
        ("{{ .System", "an action is opened here and not closed"),
        ("{{ $x }}", "the variable $x is not set"),
        ("{{ $x := $x }}", "the variable $x is not set"),
        ('{{ $x := "" }}{{ $x = 1 }}', "$x is set to a value of another kind than before"),
        ("{{ continue }}", "{{ continue }} stands outside of a range"),
        ("{{ .System.Method 1 }}", "'1' is not taken here"),
        ("{{ .System.Name }}", ".Name is not taken here"),
        ('{{ "\\xff" }}', "the escape \\x is not taken here"),
        ('{{ "\\ud800" }}', "the escape \\ud800 is not taken here"),
        ("{{ (.System }}", "a ( is never closed"),
        ("{{ if .System }}" * 99 + "{{ end }}" * 99, "it is nested more than 64 levels deep"),
        ("{{ if .System }}" + "{{ else if .System }}" * 99 + "{{ end }}", "it is nested more than 64 levels deep"),
        ("{{ if .ThinkLevel }}{{ end }}{{ .System }}", ".ThinkLevel is not taken here"),
        ('{{ printf "%q" .System }}', "this format of printf is not taken here"),
        ('{{ printf "%d" .System }}', "printf writes with %d what is no such value"),
        ('{{ printf "%s" }}', "printf has not as many values as its format"),
        ("{{ print .System 1 }}", "print is taken of one text alone"),
        ("{{ eq .System }}", "eq has 1 values"),
        ("{{ eq .System 1 }}", "eq compares values of which the kinds are not alike"),
        ("{{ len .System }}", "len is taken of messages alone"),
        ("{{ slice .Messages .System }}", "slice has a place that is no number"),
        ("{{ range . }}{{ .Messages }}{{ end }}", "the root itself is used as a value"),
        ("{{ range .System }}{{ end }}", "range goes over what are no messages (.System)"),
        ("{{ .Messages }}", "a value that is no text is written (.Messages)"),
        ("{{ range .Messages }}{{ . }}{{ end }}", "a value that is no text is written (the dot)"),
        ("{{ .Messages }}{{ .Prompt }}", "a value that is no text is written"),
        ("{{ if .Prompt }}{{ .Response }}{{ else }}x{{ end }}", "Ollama stops at an `else` after .Response"),
        ('{{ printf "%s" .Response }}', "in a template of turns .Response is taken by itself alone"),
    ],
)
def test_what_is_not_taken_is_named(text: str, complaint: str) -> None:
    """A construct beyond what is understood is refused by its name and line."""
    with pytest.raises(GoTemplateRefused) as refusal:
        jinja_of(parse(text))
    assert complaint in str(refusal.value)


def test_an_error_of_go_is_an_error() -> None:
    """Where Go stops with an error, in the template itself or for a slice beyond the end, the Jinja refuses."""
    for text in (
        '{{ if .System }}{{ index "no system" 99 }}{{ end }}{{ .Messages | len }}',
        "{{ (slice .Messages 9) | len }}",
    ):
        with pytest.raises(GoTemplateRefused):
            chat_text(parse(text), CHAT)
        with pytest.raises(TemplateRefused):
            Renderer.of(jinja_of(parse(text))).render(Conversation(CHAT))


@pytest.mark.parametrize("text", ["{{ .System.Nothing }}", "{{ .Messages }}", "{{ index .Messages 9 }}"])
def test_what_go_would_fail_on_fails(text: str) -> None:
    """The interpreter that the Jinja is compared with guesses nothing."""
    with pytest.raises(GoTemplateRefused):
        run(parse(text), {"Messages": [], "System": ""})


@pytest.mark.parametrize(
    "messages",
    [
        [{"role": "user", "content": [{"type": "text", "text": "U"}]}],
        [USER, {"role": "tool", "content": "T"}],
        [USER, {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f"}}]}],
        [USER, {"role": "assistant", "content": None}],
    ],
)
def test_what_the_jinja_does_not_carry_it_refuses(messages: list[dict[str, object]]) -> None:
    """Parts, tools' answers and calls, and contents that are none."""
    with pytest.raises(TemplateRefused):
        Renderer.of(jinja_of(parse(STYLES["chatml"]))).render(Conversation(messages))


def test_tools_are_refused() -> None:
    """A template of Ollama's is taken without its tools, and says so."""
    with pytest.raises(TemplateRefused, match="without its tools"):
        Renderer.of(jinja_of(parse(STYLES["library, with tools"]))).render(Conversation([USER], [{"name": "f"}]))


MODELFILE = '''# made by hand
FROM ./model.gguf
template """{{ range .Messages }}<{{ .Role }}>{{ .Content }}
{{ end }}"""
SYSTEM "You are
terse."
PARAMETER stop "<user>"
PARAMETER stop <end>
PARAMETER num_ctx 4096
'''


def test_a_modelfile_says_template_system_and_stops(tmp_path: Path) -> None:
    """TEMPLATE, SYSTEM and the stops are read; a conversation's own system message takes SYSTEM's place."""
    (tmp_path / "Modelfile").write_text(MODELFILE)
    found = read_modelfile(tmp_path / "Modelfile")
    assert found is not None
    assert found.stop_strings == ("<user>", "<end>")
    assert found.system_default == "You are\nterse."
    assert found.is_given_bos
    renderer = Renderer(found.templates)
    assert renderer.render(Conversation([USER])).text == "<system>You are\nterse.\n<user>U\n"
    assert renderer.render(Conversation(CHAT)).text.startswith("<system>S\n<user>U\n")


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("FROM x\nTEMPLATE y\nMESSAGE user hi\n", ": MESSAGE puts messages before every conversation"),
        ("FROM x\nTEMPLATE y\nRENDERER qwen3\n", ": RENDERER qwen3 has Ollama write prompts with code of its own"),
        ('FROM x\nTEMPLATE """a\n', ": line 2: the text that begins here has no closing"),
        ("FROM x\nTEMPLATE a{{ json .System }}\n", ": TEMPLATE: line 1: the function json"),
        ("HELLO\n", ": line 1: HELLO is no word of a Modelfile"),
    ],
)
def test_modelfiles_that_say_more_are_refused(tmp_path: Path, text: str, complaint: str) -> None:
    """What is part of a prompt and no template can say is refused with its place."""
    (tmp_path / "Modelfile").write_text(text)
    with pytest.raises(SourceUnreadable) as refusal:
        read_modelfile(tmp_path / "Modelfile")
    assert str(refusal.value).startswith(f"{tmp_path / 'Modelfile'}{complaint}")


def test_a_modelfile_without_a_template_says_nothing(tmp_path: Path) -> None:
    """Where Ollama would use the weights' own template, the Modelfile is no source."""
    (tmp_path / "Modelfile").write_text("FROM ./model.gguf\n")
    assert read_modelfile(tmp_path / "Modelfile") is None


def test_a_file_that_is_no_text_is_told(tmp_path: Path) -> None:
    """Bytes that are no UTF-8, a missing file, and one that is too long."""
    path = tmp_path / "Modelfile"
    with pytest.raises(SourceUnreadable, match="No such file"):
        read_modelfile(path)
    path.write_bytes(b"FROM \xff")
    with pytest.raises(SourceUnreadable, match=r"is not UTF-8 text \(byte 5\), so it is not a Modelfile"):
        read_modelfile(path)
    path.write_bytes(b"#" * (1024 * 1024 + 1))
    with pytest.raises(SourceUnreadable, match="is longer than"):
        read_modelfile(path)
