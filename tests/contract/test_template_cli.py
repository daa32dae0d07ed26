"""`unigate template render`: the prompt byte by byte, and errors that say what to mend."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from gateway.cli import cli
from tests.gateways import environment, unigate
from tests.oracle.folders import OWN, model_folder

TEMPLATE = """{{ bos_token }}{% for m in messages %}
<{{ m.role }}>{{ m.content }}
{% endfor %}
{% if tools %}{{ tools|tojson }}{% endif %}
{{ mood }}{% if add_generation_prompt %}<assistant>{% endif %}"""
MESSAGES = [{"role": "user", "content": " Hi 你好\n"}]
TOOLS = [{"type": "function", "function": {"name": "f"}}]


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """A folder with a template and messages."""
    (tmp_path / "t.jinja").write_text(TEMPLATE, encoding="utf-8")
    (tmp_path / "m.json").write_text(json.dumps(MESSAGES), encoding="utf-8")
    return tmp_path


def render(work: Path, *words: str, template: str = "t.jinja", messages: str = "m.json") -> str:
    """`unigate template render` in *work*: what it printed, after its end with 0."""
    command = ["template", "render", "--template", template, "--messages", messages, *words]
    done = unigate(*command, cwd=work, environ=environment("template", work, {}))
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_the_prompt_is_printed_as_it_is(work: Path) -> None:
    """Nothing is added to the prompt and nothing taken away, not even a newline at its end."""
    assert render(work) == "<user> Hi 你好\n\n<assistant>"
    assert render(work, "--no-generation-prompt") == "<user> Hi 你好\n\n"
    assert render(work, "--continue") == "<user> Hi 你好\n"


def test_variables_are_json_or_text(work: Path) -> None:
    """A variable is what its JSON says; what is no JSON is the text."""
    assert render(work, "--var", "mood=glad", "--var", "x=1").endswith("glad<assistant>")
    assert render(work, "--var", "mood=false").endswith("False<assistant>")
    assert render(work, "--var", 'mood={"a": [1]}').endswith("{'a': [1]}<assistant>")
    assert render(work, "--var", "mood=a=b").endswith("a=b<assistant>")


def test_tools_come_from_their_file_or_from_the_request(work: Path) -> None:
    """A chat request with messages and tools can be given as it is; a file of tools comes before its own."""
    (work / "tools.json").write_text(json.dumps(TOOLS))
    shown = '[{"type": "function", "function": {"name": "f"}}]'
    assert shown in render(work, "--tools", "tools.json")
    (work / "request.json").write_text(json.dumps({"model": "m", "messages": MESSAGES, "tools": TOOLS}))
    assert shown in render(work, messages="request.json")
    (work / "none.json").write_text("null")
    assert shown not in render(work, "--tools", "none.json", messages="request.json")


def test_a_tokenizer_gives_special_tokens_and_ids(work: Path) -> None:
    """With a tokenizer its special tokens are in the prompt, and the prompt's ids are printed."""
    model_folder(work / "model", OWN)
    printed = json.loads(render(work, "--tokenizer", "model", "--json"))
    assert printed["text"] == "<s><user> Hi 你好\n\n<assistant>"
    assert printed["template"] == "default"
    assert printed["ids"][0] == 1
    text, _, ids = render(work, "--tokenizer", "model").rpartition("\n" + f"{len(printed['ids'])} ids: ")
    assert (text, [int(id_) for id_ in ids.split()]) == (printed["text"], printed["ids"])


def test_a_models_folder_is_a_template(work: Path) -> None:
    """Where a folder is named, its own template is used, with its special tokens."""
    folder = model_folder(work / "model", OWN | {"chat_template": "{{ bos_token }}config"})
    assert render(work, template="model") == "<s>config"
    (folder / "chat_template.jinja").write_text("{{ eos_token }}file")
    assert render(work, template="model") == "</s>file"


def test_the_clock_can_be_set(work: Path) -> None:
    """A template that asks for the time can be given one."""
    (work / "t.jinja").write_text("{{ strftime_now('%d %b %Y') }}")
    assert render(work, "--now", "2024-07-26") == "26 Jul 2024"


@pytest.mark.parametrize(
    ("files", "words", "code", "complaint"),
    [
        ({"t.jinja": "{{ raise_exception('[no] users') }}"}, (), 1, "t.jinja: refuses this conversation: [no] users"),
        ({"t.jinja": "a\n{{ b.c }}"}, (), 1, "t.jinja:2: 'b' is undefined"),
        ({"t.jinja": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"}, (), 1,
         "t.jinja: was stopped: it took more than 0."),
        ({"t.jinja": "a\n{% if %}"}, (), 2, "t.jinja:2: Expected an expression"),
        ({"m.json": "[]"}, (), 1, "m.json: messages: there is none"),
        ({"m.json": '["x"]'}, (), 1, "m.json: messages[0]: is no mapping"),
        ({"m.json": '[{"role": "user", "content": "\\ud800"}]'}, (), 1, "m.json: the prompt cannot be written"),
        ({"m.json": "[1,\n 2"}, (), 2, "m.json:2:3: is no JSON"),
        ({"m.json": "{}"}, (), 2, "m.json: is neither a list of messages nor an object with `messages`"),
        ({"m.json": "[" * 100_000}, (), 2, "m.json: is JSON beyond what can be read"),
        ({"tools.json": "{}"}, ("--tools", "tools.json"), 2, "tools.json: the tools are no list"),
        ({}, ("--tools", "tools.json"), 2, "tools.json: No such file or directory"),
        ({}, ("--tokenizer", "nowhere"), 2, "nowhere/tokenizer.json: No such file or directory"),
        ({}, ("--var", "mood"), 2, "--var mood: write NAME=VALUE, such as enable_thinking=false"),
        ({}, ("--var", "tools=1"), 2, "the variable 'tools' is defined by the conversation itself"),
    ],
)  # fmt: skip
def test_errors_say_what_to_mend(
    work: Path,
    monkeypatch: pytest.MonkeyPatch,
    files: dict[str, str],
    words: tuple[str, ...],
    code: int,
    complaint: str,
) -> None:
    """What is wrong is said in a line, with its file and place; 1 for a prompt that is refused, 2 for the rest."""
    for name, content in files.items():
        (work / name).write_text(content)
    monkeypatch.chdir(work)
    done = CliRunner().invoke(
        cli, ["template", "render", "--template", "t.jinja", "--messages", "m.json", *words], catch_exceptions=False
    )
    assert (done.exit_code, done.stdout) == (code, "")
    assert f"error: {complaint}" in done.stderr


def test_the_command_line_is_light() -> None:
    """The command line starts without transformers or torch, which are no dependencies."""
    loaded = "import sys, gateway.cli; print({'transformers', 'torch', 'huggingface_hub'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", loaded], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
