"""`unigate template export`: files that engines take, and refusals that show what would have gone wrong."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from chat_templates.battery import BATTERY
from chat_templates.rendering import Renderer
from tests.gateways import environment, unigate
from tests.oracle.folders import OWN, model_folder
from tests.unit.chat_templates.test_derivation import CHATML
from tests.unit.chat_templates.test_forms import DEFAULT_SYSTEM, NO_SYSTEM
from tests.unit.chat_templates.test_gguf_file import contents, gguf_file

THINKING = CHATML + "{% if thinking %}<think>{% endif %}"


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """A folder with templates."""
    for name, text in {"chatml": CHATML, "default_system": DEFAULT_SYSTEM, "no_system": NO_SYSTEM}.items():
        (tmp_path / f"{name}.jinja").write_text(text, encoding="utf-8")
    (tmp_path / "thinking.jinja").write_text(THINKING, encoding="utf-8")
    return tmp_path


def export(work: Path, template: str, to: str, *words: str) -> subprocess.CompletedProcess[str]:
    """`unigate template export` in *work*."""
    command = ["template", "export", "--template", template, "--to", to, *words]
    return unigate(*command, cwd=work, environ=environment("export", work, {}))


def printed(work: Path, template: str, to: str, *words: str) -> str:
    """What it printed, after its end with 0."""
    done = export(work, template, to, *words)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("to", ["vllm", "llamacpp"])
def test_a_jinja_file_is_the_template(work: Path, to: str) -> None:
    """What nothing is pinned in is written byte for byte."""
    assert printed(work, "chatml.jinja", to) == CHATML


def test_pinned_variables_are_in_the_file(work: Path) -> None:
    """A pinned variable needs no flag of the engine's: the file itself says it."""
    made = printed(work, "thinking.jinja", "vllm", "--var", "thinking=true")
    renderer = Renderer({"default": THINKING}, variables={"thinking": True})
    case = BATTERY[0].conversation
    assert Renderer.of(made).render(case) == renderer.render(case)
    assert made.endswith(THINKING)


def test_a_modelfile_is_written(work: Path) -> None:
    """For Ollama a Modelfile is written, and a person is told how it is used and what it does not carry."""
    done = export(work, "chatml.jinja", "ollama", "--weights", "m.gguf", "--out", "Modelfile", "--stop", "<|im_end|>")
    assert (done.returncode, done.stdout) == (0, "")
    assert "ollama create NAME -f Modelfile" in done.stderr
    assert "differs: " in done.stderr
    text = (work / "Modelfile").read_text(encoding="utf-8")
    assert text.startswith('FROM m.gguf\nTEMPLATE """{{-')
    assert text.endswith('PARAMETER stop "<|im_end|>"\n')


def test_the_bos_is_the_tokenizers_where_it_adds_one(work: Path) -> None:
    """Whether the template's BOS is left out is what the GGUF file says; where nobody knows, it is asked."""
    (work / "bos.jinja").write_text("{{ bos_token }}" + CHATML, encoding="utf-8")
    assert '"<s>' not in printed(work, "bos.jinja", "ollama", "--weights", str(gguf_file(work / "m.gguf")))
    pinned = ("--weights", "elsewhere.gguf", "--var", "bos_token=<s>")
    assert '"<s>' in printed(work, "bos.jinja", "ollama", *pinned, "--no-add-bos")


def test_lmdeploys_fields_are_json(work: Path) -> None:
    """For LMDeploy's own form the eleven fields are printed."""
    fields = json.loads(printed(work, "default_system.jinja", "lmdeploy-json"))
    assert fields["meta_instruction"] == "Be kind."
    assert fields["stop_words"] == ["<|im_end|>"]


def test_lmdeploys_folder_has_the_template_and_no_weights(work: Path) -> None:
    """The overlay holds the tokenizer's files and the template, and its JSON names it by its whole path."""
    folder = model_folder(work / "model", OWN | {"chat_template": "old"})
    (folder / "model.safetensors").write_bytes(b"weights")
    printed(work, "chatml.jinja", "lmdeploy", "--weights", "model", "--out", "overlay")
    made = sorted(str(path.relative_to(work / "overlay")) for path in (work / "overlay").rglob("*") if path.is_file())
    assert made == [
        "chat_template.json",
        "template/chat_template.jinja",
        "template/tokenizer.json",
        "template/tokenizer_config.json",
    ]
    named = json.loads((work / "overlay" / "chat_template.json").read_text())
    assert named == {"model_name": "hf", "model_path": str(work / "overlay" / "template")}
    assert (work / "overlay/template/chat_template.jinja").read_text() == CHATML


def test_a_gguf_file_is_written_anew(work: Path) -> None:
    """The copy has the template and the same tensors; the file itself stays."""
    source = gguf_file(work / "m.gguf")
    before = source.read_bytes()
    printed(work, "chatml.jinja", "gguf", "--weights", "m.gguf", "--out", "new.gguf")
    keys, tensors = contents(work / "new.gguf")
    assert keys["tokenizer.chat_template"] == CHATML
    assert tensors == contents(source)[1]
    assert source.read_bytes() == before


def test_a_refusal_shows_code_case_and_both_renders(work: Path) -> None:
    """What a form cannot say is refused with its code, the conversation, and two renders with visible whitespace."""
    done = export(work, "chatml.jinja", "lmdeploy-json", "--out", "t.json")
    assert (done.returncode, done.stdout) == (1, "")
    assert "refused: T10: LMDeploy's fields always render a system block" in done.stderr
    assert "case: the beginning of a conversation" in done.stderr
    assert "<|im_start|>user⏎" in done.stderr
    assert "<|im_start|>system⏎" in done.stderr
    assert not (work / "t.json").exists()
    told = json.loads(export(work, "chatml.jinja", "lmdeploy-json", "--json").stdout)["refused"]
    assert told["code"] == "T10"
    assert told["template"] == "<|im_start|>user\n"


def test_a_reason_can_be_accepted(work: Path) -> None:
    """T08 and T09 are refused until somebody accepts them, and told then too."""
    assert "--accept T08" in export(work, "no_system.jinja", "lmdeploy-json").stderr
    done = export(work, "no_system.jinja", "lmdeploy-json", "--accept", "T08")
    assert done.returncode == 0
    assert "accepted, T08" in done.stderr
    assert "T09" in export(work, "thinking.jinja", "ollama", "--weights", "m").stderr
    assert export(work, "thinking.jinja", "ollama", "--weights", "m", "--accept", "T09").returncode == 0


@pytest.mark.parametrize(
    ("template", "to", "words", "code", "complaint"),
    [
        ("chatml.jinja", "ollama", (), 2, "--weights is missing"),
        ("chatml.jinja", "lmdeploy", ("--weights", "."), 2, "is no model folder with a tokenizer"),
        ("chatml.jinja", "gguf", ("--weights", "chatml.jinja", "--out", "x"), 2, "does not begin with GGUF"),
        ("nothing.jinja", "vllm", (), 2, "nothing.jinja: No such file"),
        ("chatml.jinja", "vllm", ("--out", "no_system.jinja"), 2, "no_system.jinja: is there already"),
        ("chatml.jinja", "vllm", ("--out", "nowhere/x"), 2, "nowhere/x: No such file or directory"),
        ("chatml.jinja", "ollama", ("--weights", "m", "--needs", "tools"), 1, "refused: T06"),
        ("chatml.jinja", "vllm", ("--tokenizer", "model"), 1, "refused: T11: the vocabulary has no token <|im_end|>"),
        ("default_system.jinja", "lmdeploy-json", ("--tokenizer", "other", "--stop", "the end"), 1, "refused: T12"),
        ("chatml.jinja", "vllm", ("--weights", "oss"), 1, "refused: T13: vLLM renders GptOssForCausalLM by itself"),
        ("loop.jinja", "vllm", ("--var", "x=1"), 1, "loop.jinja: was stopped: it took more than 0."),
    ],
)  # fmt: skip
def test_what_cannot_be_exported_is_told(
    work: Path, template: str, to: str, words: tuple[str, ...], code: int, complaint: str
) -> None:
    """Each mistake is told in a sentence that names it; a template without end is stopped."""
    model_folder(work / "model", OWN)
    markers = ["<|im_start|>", "<|im_end|>"]
    model_folder(work / "other", OWN | {"additional_special_tokens": markers})
    (work / "oss").mkdir()
    (work / "oss" / "config.json").write_text('{"architectures": ["GptOssForCausalLM"]}')
    endless = "{% for i in range(99999) %}{% for j in range(99999) %}{{ x }}{% endfor %}{% endfor %}"
    (work / "loop.jinja").write_text(endless)
    done = export(work, template, to, *words)
    assert complaint in done.stderr
    assert (done.returncode, done.stdout) == (code, "")
    assert "Traceback" not in done.stderr
