"""`unigate template import`, `show`, `list`, `diff`: contracts, and what an import refuses."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from chat_templates.contract_file import read_contract, tokenizer_folder
from chat_templates.conversation import Conversation
from chat_templates.rendering import Renderer
from chat_templates.tokenizing import Tokenizer
from tests.gateways import environment, unigate
from tests.oracle.folders import CONFIGURATIONS, OWN, model_folder
from tests.unit.chat_templates.test_derivation import CHATML
from tests.unit.chat_templates.test_forms import DEFAULT_SYSTEM
from tests.unit.chat_templates.test_gguf_file import gguf_file

THINKING = CHATML + (
    "{% if add_generation_prompt and enable_thinking is defined and enable_thinking is false %}"
    "<think>\n\n</think>\n\n{% endif %}"
)
"""As Qwen3's: told not to think, it writes thinking that is empty, which nobody who trained without has seen."""

DATED = "{{ strftime_now('%Y-%m-%d') }}\n" + CHATML

SLOTS = """
register_template(
    name="plain_chatml",
    format_user=StringFormatter(slots=["<|im_start|>user\\n{{content}}<|im_end|>\\n<|im_start|>assistant\\n"]),
    format_assistant=StringFormatter(slots=["{{content}}<|im_end|>\\n"]),
    format_system=StringFormatter(slots=["<|im_start|>system\\n{{content}}<|im_end|>\\n"]),
    stop_words=["<|im_end|>"],
)
register_template(
    name="questions",
    format_user=StringFormatter(slots=["### Question:\\n{{content}}\\n\\n### Answer:\\n"]),
    format_assistant=StringFormatter(slots=["{{content}}<|im_end|>\\n"]),
)
"""
"""In the style of LLaMA-Factory's data/template.py."""


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """A folder with a fine-tune's export in ``export``, and a trainer's package in ``trainer``."""
    model_folder(tmp_path / "export", OWN)
    (tmp_path / "export" / "chat_template.jinja").write_text(CHATML, encoding="utf-8")
    package = tmp_path / "trainer" / "llamafactory" / "data"
    package.mkdir(parents=True)
    (package / "template.py").write_text(SLOTS, encoding="utf-8")
    return tmp_path


def run(work: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return unigate("template", *words, cwd=work, environ=environment("import", work, {}))


def made(work: Path, *words: str) -> dict[str, object]:
    """What an import says it made."""
    done = run(work, "import", *words, "--name", "tune", "--json")
    assert done.returncode == 0, done.stderr
    said: dict[str, object] = json.loads(done.stdout)
    return said


def put(work: Path, name: str, text: str) -> None:
    (work / "export" / name).write_text(text, encoding="utf-8")


def configured(work: Path, template: str) -> None:
    """Write *template* into the export's tokenizer_config.json."""
    path = work / "export" / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**config, "chat_template": template}), encoding="utf-8")


def test_an_export_becomes_a_contract(work: Path) -> None:
    """What is imported is in the file, with a tokenizer beside it, and complete in itself."""
    put(work, "generation_config.json", '{"eos_token_id": [1, 2], "temperature": 0.6, "top_k": 20, "do_sample": true}')
    said = made(work, "export", "--out", "contracts")
    path = work / str(said["file"])
    contract = read_contract(path)
    assert said["hash"] == contract.hash
    assert contract.templates == {"default": CHATML}
    assert set(contract.stop.token_ids) >= {1, 2}
    assert contract.sampling == {
        "temperature": 0.6, "top_p": 1.0, "top_k": 20, "min_p": 0.0, "repetition_penalty": 1.0,
    }  # fmt: skip
    folder = tokenizer_folder(path)
    assert folder is not None
    assert Tokenizer.read(folder).sha256 == contract.tokenizer.sha256


def test_a_contract_is_not_replaced_unasked(work: Path) -> None:
    """A second import under the same name is refused, and says how to have it."""
    made(work, "export")
    again = run(work, "import", "export", "--name", "tune")
    assert again.returncode == 2
    assert "--force replaces it" in again.stderr
    assert made(work, "export", "--force")["source"] == "jinja"


def test_a_configuration_that_says_otherwise_is_refused(work: Path) -> None:
    """chat_template.jinja and tokenizer_config.json that differ are shown and refused until one is named.

    transformers would take the one, converters to GGUF the other, and nobody would be told.
    """
    configured(work, DEFAULT_SYSTEM)
    refused = run(work, "import", "export", "--name", "tune")
    assert refused.returncode == 1
    assert "T14" in refused.stderr
    assert "jinja and tokenizer_config differ on" in refused.stderr
    assert "--from jinja or tokenizer_config" in refused.stderr
    assert not list(work.glob("*.contract.yaml"))
    said = made(work, "export", "--from", "tokenizer_config")
    assert (said["source"], said["overruled"]) == ("tokenizer_config", ["jinja / tokenizer_config"])


def test_sources_that_agree_are_told(work: Path) -> None:
    """Several sources that say the same make one contract."""
    configured(work, CHATML + "{# the same in other words #}")
    gguf_file(work / "export" / "model.gguf", CHATML)
    said = made(work, "export")
    assert (said["source"], said["agrees_with"]) == ("jinja", ["tokenizer_config", "gguf"])


def test_a_gguf_file_that_says_otherwise_is_refused(work: Path) -> None:
    """A GGUF file converted from another template is found out beside the folder it came from."""
    gguf_file(work / "other.gguf", DEFAULT_SYSTEM)
    refused = run(work, "import", "export", "other.gguf")
    assert refused.returncode == 1
    assert "jinja and gguf differ on" in refused.stderr


def test_what_a_trainer_trained_with_is_compared(work: Path) -> None:
    """A template of LLaMA-Factory's that is not the Jinja beside the weights refuses the import."""
    package = ["--package", "trainer"]
    refused = run(work, "import", "export", "llamafactory:questions", *package)
    assert refused.returncode == 1
    assert "jinja and llamafactory:questions differ on" in refused.stderr
    said = made(work, "export", "llamafactory:questions", *package, "--from", "llamafactory:questions")
    contract = read_contract(work / str(said["file"]))
    assert contract.source == "llamafactory:questions"
    prompt = contract.renderer().render(_question()).text
    assert prompt.endswith("### Question:\nWhy?\n\n### Answer:\n")


def test_a_variable_that_would_add_what_was_not_trained_is_held(work: Path) -> None:
    """Where the trainer's template is the Jinja's only with a variable set so, it is pinned; else it stays unset."""
    put(work, "chat_template.jinja", THINKING)
    said = made(work, "export", "llamafactory:plain_chatml", "--package", "trainer")
    contract = read_contract(work / str(said["file"]))
    assert (contract.source, contract.pinned, contract.free) == ("jinja", {}, ())
    assert contract.renderer().render(_question()).text.endswith("assistant\n")
    # the other way round: unset, this one thinks
    put(
        work,
        "chat_template.jinja",
        THINKING.replace("enable_thinking is false", "enable_thinking").replace(
            "enable_thinking is defined and", "enable_thinking is not defined or"
        ),
    )
    said = made(work, "export", "llamafactory:plain_chatml", "--package", "trainer", "--force")
    contract = read_contract(work / str(said["file"]))
    assert contract.pinned == {"enable_thinking": False}
    assert contract.renderer().render(_question()).text.endswith("assistant\n")
    assert any("enable_thinking is pinned to false" in str(note) for note in said["notes"])  # type: ignore[attr-defined]


def test_a_training_yaml_names_its_template(work: Path) -> None:
    """The YAML of a training in the folder is a source like the others."""
    put(work, "train.yaml", "template: questions\nlearning_rate: 1.0e-4\n")
    refused = run(work, "import", "export", "--package", "trainer")
    assert "jinja and llamafactory:questions differ on" in refused.stderr


def test_a_modelfile_that_loses_the_system_message_is_refused(work: Path) -> None:
    """A Modelfile whose TEMPLATE says less than the Jinja beside it is found out."""
    put(
        work, "Modelfile", 'FROM .\nTEMPLATE """<|im_start|>user\n{{ .Prompt }}<|im_end|>\n<|im_start|>assistant\n"""\n'
    )
    refused = run(work, "import", "export")
    assert refused.returncode == 1
    assert "jinja and modelfile differ on" in refused.stderr


def test_the_clock_is_frozen_unless_it_shall_run(work: Path) -> None:
    """A template that tells the date is told one date for ever, or the contract is marked as live."""
    put(work, "chat_template.jinja", DATED)
    said = made(work, "export", "--clock", "2024-07-26")
    contract = read_contract(work / str(said["file"]))
    assert contract.renderer().render(_question()).text.startswith("2024-07-26\n")
    assert read_contract(work / str(made(work, "export", "--clock", "live", "--force")["file"])).is_time_dependent


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (("nothing-here",), "there is no such file or folder"),
        (("export", "--from", "gguf"), "there is no such source; there are jinja"),
        (("export", "--var", "tone=dry"), "the template reads no such variable"),
        (("export", "--clock", "soon"), "write a date such as 2024-07-26"),
        (("export", "--name", "../x"), "use letters, digits"),
        (("llamafactory:nobody", "--package", "trainer"), "nobody"),
    ],
)
def test_what_cannot_be_used_is_told(work: Path, words: tuple[str, ...], complaint: str) -> None:
    """A bad name, option or file ends with a sentence and no file."""
    done = run(work, "import", *words)
    assert done.returncode == 2
    assert complaint in done.stderr
    assert "Traceback" not in done.stderr


def test_a_hostile_template_is_stopped(work: Path) -> None:
    """A template that never ends is stopped, and said."""
    put(
        work,
        "chat_template.jinja",
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}" + CHATML,
    )
    done = run(work, "import", "export")
    assert done.returncode == 1
    assert "a template was stopped" in done.stderr


def test_contracts_are_shown_and_listed(work: Path) -> None:
    """A person sees a contract's hash and a prompt, and all contracts of a folder, the unusable ones too."""
    said = made(work, "export")
    shown = run(work, "show", "tune.contract.yaml")
    assert str(said["hash"]) in shown.stdout
    assert "<|im_start|>user" in shown.stdout
    (work / "broken.contract.yaml").write_text("name: [", encoding="utf-8")
    listed = run(work, "list")
    assert str(said["hash"])[:12] in listed.stdout
    assert "unusable" in listed.stdout
    rows = json.loads(run(work, "list", "--json").stdout)
    assert [row.get("name") for row in rows] == [None, "tune"]


def test_two_are_compared(work: Path) -> None:
    """diff ends with 0 where two say the same, and shows where they do not."""
    made(work, "export")
    same = run(work, "diff", "tune.contract.yaml", "export")
    assert same.returncode == 0, same.stderr
    (work / "other.jinja").write_text(DEFAULT_SYSTEM, encoding="utf-8")
    differ = run(work, "diff", "tune.contract.yaml", "other.jinja")
    assert differ.returncode == 1
    assert "conversations differ" in differ.stdout


def _question() -> Conversation:

    return Conversation([{"role": "user", "content": "Why?"}])


def test_a_contracts_prompt_is_rendered(work: Path) -> None:
    """render --contract puts the conversation under the contract's rules, and takes no variable that it has pinned."""
    put(work, "chat_template.jinja", THINKING)
    assert run(work, "import", "export", "--var", "enable_thinking=false", "--name", "quiet").returncode == 0
    assert run(work, "import", "export", "--free", "enable_thinking", "--name", "open").returncode == 0
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    (work / "m.json").write_text(json.dumps([{"role": "user", "content": parts}]))
    asked = "<|im_start|>user\none\ntwo<|im_end|>\n<|im_start|>assistant\n"
    thought = "<think>\n\n</think>\n\n"
    said = json.loads(run(work, *rendered("quiet"), "--json").stdout)
    assert said["text"] == asked + thought
    assert said["ids"] == Tokenizer.read(work / "export").encode(said["text"])
    assert json.loads(run(work, *rendered("open"), "--json").stdout)["text"] == asked
    said = json.loads(run(work, *rendered("open"), "--var", "enable_thinking=false", "--json").stdout)
    assert said["text"] == asked + thought
    for words, complaint in [
        (("--var", "enable_thinking=true"), "does not leave it to requests; it leaves them: none"),
        (("--now", "2024-07-26"), "has no live clock"),
        (("--template", "export"), "name one of them"),
    ]:
        done = run(work, *rendered("quiet"), *words)
        assert (done.returncode, done.stdout) == (2, "")
        assert complaint in " ".join(done.stderr.split())


def test_a_contract_rejects_what_its_rules_reject(work: Path) -> None:
    """render --contract refuses a special token in a user's text where the contract says so, and names the message."""
    model_folder(work / "export", CONFIGURATIONS["tokens without a name"])
    assert run(work, "import", "export", "--name", "strict").returncode == 0
    file = work / "strict.contract.yaml"
    file.write_text(file.read_text().replace("control_tokens_in_text: allow", "control_tokens_in_text: reject"))
    (work / "m.json").write_text(json.dumps([{"role": "user", "content": "a<|im_end|>"}]))
    done = run(work, *rendered("strict"))
    assert (done.returncode, done.stdout) == (1, "")
    assert "m.json: messages[0]" in done.stderr


def rendered(name: str) -> tuple[str, ...]:
    """The words that render m.json under a contract."""
    return ("render", "--contract", f"{name}.contract.yaml", "--messages", "m.json")


def test_a_contract_is_exported_as_it_is_pinned(work: Path) -> None:
    """export --contract writes what the contract pins into the template, and its ends into a Modelfile."""
    model_folder(work / "export", CONFIGURATIONS["tokens without a name"])
    put(work, "chat_template.jinja", THINKING)
    assert run(work, "import", "export", "--var", "enable_thinking=false", "--name", "quiet").returncode == 0
    words = ("export", "--contract", "quiet.contract.yaml")
    done = run(work, *words, "--to", "vllm")
    assert done.returncode == 0, done.stderr
    renderer = Renderer.of(done.stdout)
    prompt = renderer.render(Conversation([{"role": "user", "content": "a"}])).text
    assert prompt.endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")
    done = run(work, *words, "--to", "ollama", "--weights", str(gguf_file(work / "m.gguf")), "--no-add-bos")
    assert 'PARAMETER stop "<|im_end|>"' in done.stdout, done.stderr
    done = run(work, *words, "--to", "vllm", "--var", "enable_thinking=true")
    assert (done.returncode, done.stdout) == (2, "")
    assert "it says itself what is pinned" in " ".join(done.stderr.split())


def test_a_name_of_the_catalog_is_imported(work: Path) -> None:
    """Where a fine-tune came without its template, one of the catalog's is made its contract."""
    file = work / str(made(work, "catalog:chatml", "--tokenizer", "export")["file"])
    contract = read_contract(file)
    assert (contract.source, tokenizer_folder(file)) == ("catalog:chatml", work / "tune.tokenizer")
    assert contract.renderer().render(_question()).text.startswith("<|im_start|>user\n")
    # and an export can be held against it
    assert run(work, "diff", "export", "catalog:chatml").returncode == 0


def test_what_diff_does_not_compare_is_told(work: Path) -> None:
    """A folder whose sources disagree is compared by the one transformers reads, and the others are named."""
    configured(work, DEFAULT_SYSTEM)
    done = run(work, "diff", "export", "export/chat_template.jinja")
    assert done.returncode == 0
    assert "jinja is compared, tokenizer_config not" in " ".join(done.stderr.split())
