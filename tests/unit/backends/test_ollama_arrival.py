"""How a model gets into an Ollama daemon: the plan, its steps answered by hand."""

from __future__ import annotations

import json
from collections.abc import Callable, Generator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from backends.adapter import Call
from backends.engines import ADAPTERS
from backends.engines.ollama_arrival import arrive, derived_name, diagnose_load, leave, probe
from backends.engines.ollama_content import Content
from backends.gguf import read_metadata
from backends.prompting import ContractChoice, Prompting
from backends.residence import Digest, Follow, Pause, Reading, Reply, ResidenceRefused, Resident, Source, Step, Upload
from backends.settings import BackendSettings
from backends.sources import OllamaName
from chat_templates.contract import Contract, Stop
from tests.gguf_files import CHATML, gguf_bytes, write_gguf

GO = "{{ range .Messages }}{{ .Content }}{{ end }}"
BLOB = "b" * 64
Json = dict[str, Any]


def bytes_of(source: Source) -> bytes:
    """What is in *source*."""
    if isinstance(source, str):
        return source.encode()
    with source.open("rb") if isinstance(source, Path) else source.open() as file:
        return file.read()


@dataclass
class PaperDaemon:
    """Answers the steps of a plan as a daemon would, and keeps what it was asked."""

    template: str = CHATML
    renderer: str = ""
    pre: str = "llama-bpe"
    models: set[str] = field(default_factory=set)
    blobs: set[str] = field(default_factory=set)
    lost: set[str] = field(default_factory=set)
    answers: dict[str, Reply] = field(default_factory=dict)
    """Target -> what it answers instead."""
    asked: list[Step] = field(default_factory=list)

    def __call__(self, step: Step) -> Reply:
        """What comes of a step."""
        self.asked.append(step)
        match step:
            case Reading():
                return Reply(value=step.read())
            case Digest():
                raw = bytes_of(step.source)
                return Reply(value=f"{abs(hash(raw)):064x}")
            case Upload():
                self.blobs.add(step.target)
                return self.answers.get("upload", Reply(201))
            case Pause():
                return Reply()
            case Follow():
                return self._answer(step.call)
            case Call():
                return self._answer(step)

    def _answer(self, call: Call) -> Reply:
        if call.target in self.answers:
            return self.answers[call.target]
        body = call.body or {}
        if call.target == "/api/show":
            name = body["model"]
            return Reply(200, self._shown()) if name in self.models else Reply(404, {"error": "not found"})
        if call.target.startswith("/api/blobs/"):
            is_there = call.target in self.blobs or (call.target.endswith(BLOB) and BLOB not in self.lost)
            return Reply(200 if is_there else 404)
        if call.target in ("/api/create", "/api/pull"):
            self.models.add(body["model"])
            self.lost.clear()
            return Reply(200, {"status": "success"})
        if call.target == "/api/tags":
            return Reply(200, {"models": [{"name": "qwen:1b", "digest": "d1"}]})
        raise AssertionError(call)

    def _shown(self) -> Json:
        modelfile = f"# Modelfile\nFROM /m/blobs/sha256-{BLOB}\n{self.renderer}"
        return {"template": self.template, "modelfile": modelfile, "model_info": {"tokenizer.ggml.pre": self.pre}}

    def calls(self, target: str) -> list[Json]:
        """The bodies of the calls to *target*."""
        calls = [step.call if isinstance(step, Follow) else step for step in self.asked]
        return [call.body or {} for call in calls if isinstance(call, Call) and call.target == target]


def driven(plan: Generator[Step, Reply, Any], answer: Callable[[Step], Reply]) -> Any:
    """What *plan* comes to."""
    try:
        step = next(plan)
        while True:
            step = plan.send(answer(step))
    except StopIteration as done:
        return done.value


def model(tmp_path: Path, **others: Any) -> BackendSettings:
    """A model whose weights are a GGUF file."""
    weights = tmp_path / "a.gguf"
    if not weights.exists():
        write_gguf(weights)
    return replace(BackendSettings("Org/My Model", "ollama", weights=weights), **others)


def arrived(backend: BackendSettings, daemon: PaperDaemon, go_templates: bool | None = False) -> Resident:
    """The resident that *backend* becomes in *daemon*."""
    found: Resident = driven(arrive(backend, go_templates=go_templates), daemon)
    return found


def refusal(backend: BackendSettings, daemon: PaperDaemon, go_templates: bool | None = False) -> Any:
    """The diagnosis with which it is refused."""
    with pytest.raises(ResidenceRefused) as caught:
        arrived(backend, daemon, go_templates)
    return caught.value.diagnosis


def test_a_model_is_made_once(tmp_path: Path) -> None:
    """Uploaded and created at its first arrival, found at the next; what names the weights is the daemon's blob."""
    daemon, backend = PaperDaemon(), model(tmp_path, context_length=512, args={"num_gpu": 1, "temperature": 0})
    resident = arrived(backend, daemon)
    (created,) = daemon.calls("/api/create")
    assert created["model"] == resident.name
    assert list(created["files"]) == ["model.gguf"]
    assert created["parameters"] == {"temperature": 0.0, "top_p": 1.0, "num_gpu": 1, "num_ctx": 512}
    assert resident.weights == f"sha256:{BLOB}"
    assert resident.runner == {"num_gpu": 1, "num_ctx": 512}
    assert arrived(backend, daemon).name == resident.name
    assert len(daemon.calls("/api/create")) == 1
    assert sum(isinstance(step, Upload) for step in daemon.asked) == 1


def test_a_blob_that_is_there_is_not_sent(tmp_path: Path) -> None:
    """The daemon would not read it, and cut the connection in its midst."""
    daemon, backend = PaperDaemon(), model(tmp_path)
    arrived(backend, daemon)
    arrived(replace(backend, name="other"), daemon)
    assert len(daemon.calls("/api/create")) == 2
    assert sum(isinstance(step, Upload) for step in daemon.asked) == 1


def test_lost_weights_are_given_anew(tmp_path: Path) -> None:
    """A model whose blob is gone, which the daemon still shows, is made again."""
    daemon, backend = PaperDaemon(), model(tmp_path)
    arrived(backend, daemon)
    daemon.lost.add(BLOB)
    arrived(backend, daemon)
    assert len(daemon.calls("/api/create")) == 2


def test_names(tmp_path: Path) -> None:
    """A name is stable, valid for Ollama, and another for other files, parameters, templates or another base."""
    content = Content(files={"model.gguf": tmp_path}, template="t", parameters={"num_ctx": 1})
    name = derived_name("Org/My Model", content, {"model.gguf": "d"}, "")
    assert name.startswith("unigate/org-my-model:")
    assert len(name.partition(":")[2]) == 12
    others = [
        derived_name("Org/My Model", replace(content, parameters={"num_ctx": 2}), {"model.gguf": "d"}, ""),
        derived_name("Org/My Model", replace(content, template="u"), {"model.gguf": "d"}, ""),
        derived_name("Org/My Model", replace(content, extras={"system": "s"}), {"model.gguf": "d"}, ""),
        derived_name("Org/My Model", content, {"model.gguf": "e"}, ""),
        derived_name("Org/My Model", content, {"model.gguf": "d"}, "x"),
    ]
    assert len({name, *others}) == 6
    assert derived_name("中文", content, {}, "").startswith("unigate/model:")


# the template


@pytest.mark.parametrize(("go_templates", "where"), [(False, "ours"), (None, "attached")])
def test_a_template_that_ollama_chose_itself(tmp_path: Path, go_templates: bool | None, where: str) -> None:
    """A guessed Go template in place of the weights' own is refused, in a daemon of ours or another's."""
    diagnosis = refusal(model(tmp_path), PaperDaemon(template=GO), go_templates)
    assert (diagnosis.code, diagnosis.permanent) == ("template_not_kept", True)
    assert "chose by itself" in diagnosis.reason


def test_an_operator_may_take_what_there_is(tmp_path: Path) -> None:
    """template: {engine: true} takes Ollama's choice."""
    assert arrived(model(tmp_path, template_is_engines=True), PaperDaemon(template=GO))


def test_a_go_template_that_is_wanted(tmp_path: Path) -> None:
    """A Modelfile's is in force in a daemon for Go templates."""
    write_gguf(tmp_path / "a.gguf")
    (tmp_path / "Modelfile").write_text(f'FROM ./a.gguf\nTEMPLATE """{GO}"""\n')
    backend = model(tmp_path, weights=tmp_path / "Modelfile")
    daemon = PaperDaemon(template=GO)
    assert arrived(backend, daemon, go_templates=True)
    assert daemon.calls("/api/create")[0]["template"] == GO
    assert refusal(backend, PaperDaemon(template=CHATML), go_templates=None).code == "template_not_kept"


def test_a_tokenizer_that_the_converter_does_not_know(tmp_path: Path) -> None:
    """Cut by patterns and converted to none of the known kinds, it would give other tokens: refused."""
    weights = tmp_path / "w"
    weights.mkdir()
    steps = [{"type": "Split", "pattern": {"Regex": "x"}}]
    (weights / "config.json").write_text("{}")
    (weights / "model.safetensors").write_bytes(b"w")
    (weights / "tokenizer.json").write_text(json.dumps({"pre_tokenizer": {"pretokenizers": steps}}))
    (weights / "chat_template.jinja").write_text(CHATML)
    backend = model(tmp_path, weights=weights)
    assert refusal(backend, PaperDaemon(pre="default")).code == "tokenizer_not_kept"
    assert arrived(backend, PaperDaemon(pre="qwen2"))


# published models


def published(tmp_path: Path) -> BackendSettings:
    """A model that Ollama downloads."""
    return model(tmp_path, weights=None, source=OllamaName("qwen:1b"))


def test_a_published_model_is_downloaded_once(tmp_path: Path) -> None:
    """Then a model of ours is made from it, named also by the digest of what was downloaded."""
    daemon, backend = PaperDaemon(), published(tmp_path)
    resident = arrived(backend, daemon)
    assert daemon.calls("/api/pull") == [{"model": "qwen:1b"}]
    assert daemon.calls("/api/create")[0]["from"] == "qwen:1b"
    assert arrived(backend, daemon).name == resident.name
    assert len(daemon.calls("/api/pull")) == 1


def test_phases_of_a_download(tmp_path: Path) -> None:
    """Layers are added up to one percentage."""
    daemon = PaperDaemon()
    arrived(published(tmp_path), daemon)
    (follow,) = [step for step in daemon.asked if isinstance(step, Follow) and step.call.target == "/api/pull"]
    lines: list[Json] = [
        {"status": "pulling manifest"},
        {"status": "pulling a", "digest": "a", "total": 3_000_000_000, "completed": 1_500_000_000},
        {"status": "pulling b", "digest": "b", "total": 1_000_000_000, "completed": 220_000_000},
        {"status": "success"},
    ]
    expected = ["downloading: pulling manifest", "downloading 50% of 3.0 GB", "downloading 43% of 4.0 GB", None]
    assert [follow.phase(line) for line in lines] == expected


@pytest.mark.parametrize(
    ("error", "code", "permanent"),
    [
        ("pull model manifest: file does not exist", "source_not_found", True),
        ("pull model manifest: dial tcp: lookup r on x: no such host", "network_failed", False),
        ("write /m: no space left on device", "disk_full", True),
        ("something new", "download_failed", False),
    ],
)
def test_downloads_that_fail(tmp_path: Path, error: str, code: str, permanent: bool) -> None:
    """What would fail the same way again is told apart from what may be better later."""
    daemon = PaperDaemon(answers={"/api/pull": Reply(500, {"error": error})})
    diagnosis = refusal(published(tmp_path), daemon)
    assert (diagnosis.code, diagnosis.permanent) == (code, permanent)


def test_a_published_go_template_without_its_daemon(tmp_path: Path) -> None:
    """It would not be used: refused, unless a renderer of Ollama's is in force, or Go templates are."""
    assert refusal(published(tmp_path), PaperDaemon(template=GO)).code == "template_not_kept"
    assert arrived(published(tmp_path), PaperDaemon(template=GO, renderer="RENDERER qwen3\n"))
    assert arrived(published(tmp_path), PaperDaemon(template=GO), go_templates=True)


# creation, load, leave


@pytest.mark.parametrize(
    ("answers", "code"),
    [
        ({"/api/create": Reply(400, {"error": "supplied file was not in GGUF format"})}, "weights_unreadable"),
        ({"/api/create": Reply(400, {"error": "template error: x"})}, "bad_template"),
        ({"/api/create": Reply(200, {"status": "writing manifest"})}, "creation_failed"),
        ({"upload": Reply(400, {"error": "digest mismatch"})}, "upload_failed"),
        ({"upload": Reply(500, {"error": "write: no space left on device"})}, "disk_full"),
        ({"/api/show": Reply(404)}, "creation_lost"),
    ],
)
def test_creations_that_fail(tmp_path: Path, answers: dict[str, Reply], code: str) -> None:
    """Ollama's own words lead to the diagnosis, also when it ends without saying success."""
    assert refusal(model(tmp_path), PaperDaemon(answers=answers)).code == code


@pytest.mark.parametrize(
    ("error", "code", "permanent"),
    [
        ('model "x" not found, try pulling it first', "weights_gone", False),
        ('tensor "a" offset+size (5) exceeds file size (4)', "weights_unreadable", True),
        ("model requires more system memory (9 GiB) than is available", "out_of_memory", True),
        ("timed out waiting for llama-server to start - ", "load_timed_out", False),
        ("This server does not support embeddings. Start it with `--embeddings`", "not_embedding", True),
        ('"x" does not support generate', "not_generating", True),
        ("unknown model architecture: 'foo'", "architecture_unknown", True),
        ("llama runner process has terminated: exit status 2", "load_failed", False),
    ],
)
def test_loads_that_fail(error: str, code: str, permanent: bool) -> None:
    """Each of the texts Ollama gives has its reason."""
    diagnosis = diagnose_load(Reply(500, {"error": error}))
    assert (diagnosis.code, diagnosis.permanent) == (code, permanent)


@pytest.mark.parametrize("is_embedding", [True, False])
def test_the_probe(is_embedding: bool) -> None:
    """Health is the request that only loads; the proof is one token, or one embedding."""
    found = probe("n", is_embedding=is_embedding)
    assert found.health.body is not None
    assert found.health.body["keep_alive"] == -1
    assert not found.health.body.get("prompt")
    assert found.proof.body is not None
    if not is_embedding:
        assert found.proof.body["options"]["num_predict"] == 1
        assert (found.proof.body["shift"], found.proof.body["truncate"]) == (False, False)


def test_leaving_waits_until_it_is_gone() -> None:
    """keep_alive 0, said again as long as /api/ps lists the name."""
    listed = [["n", "o"], ["n"], ["o"]]
    asked: list[Step] = []

    def answer(step: Step) -> Reply:
        asked.append(step)
        if isinstance(step, Call) and step.target == "/api/ps":
            return Reply(200, {"models": [{"name": name} for name in listed.pop(0)]})
        return Reply()

    driven(leave("n"), answer)
    unload = Call("POST", "/api/generate", {"model": "n", "stream": False, "keep_alive": 0})
    assert [step for step in asked if step == unload] == [unload] * 3
    assert listed == []


def test_a_deleted_model_is_not_waited_for() -> None:
    """The daemon lists it for ever, and does not know its name."""
    assert driven(leave("n"), lambda step: Reply(404)) is None


# --- under a contract

FOREIGN = "{% for m in messages %}### {{ m.role }} ({{ mood }}):\n{{ m.content }}\n{% endfor %}"
FIXED = '{% set mood = "calm" %}\n' + FOREIGN
CONTRACT = Contract(
    "tuned",
    {"default": FOREIGN},
    "here",
    pinned={"mood": "calm"},
    stop=Stop((0, 1), ("### user",)),
    sampling={"top_k": 4},
)


def under(contract: Contract, backend: BackendSettings, **said: Any) -> BackendSettings:
    """*backend* with *contract*."""
    prompting = Prompting(contract, Path("/c/tuned.contract.yaml"), **said)
    return replace(backend, contract=ContractChoice(prompting.file, **said), prompting=prompting)


def test_the_weights_get_the_contracts_template(tmp_path: Path) -> None:
    """Uploaded is the GGUF file with the contract's template and ends; the model is made with its stop texts alone."""
    write_gguf(tmp_path / "a.gguf", eos=1)
    daemon, backend = PaperDaemon(template=FIXED), under(CONTRACT, model(tmp_path, context_length=512))
    resident = arrived(backend, daemon)
    (upload,) = [step for step in daemon.asked if isinstance(step, Upload)]
    (tmp_path / "got.gguf").write_bytes(bytes_of(upload.source))
    keys = {"tokenizer.chat_template", "tokenizer.ggml.eot_token_id", "tokenizer.ggml.eos_token_id"}
    assert read_metadata(tmp_path / "got.gguf", keys) == {
        "tokenizer.chat_template": FIXED,
        "tokenizer.ggml.eos_token_id": 1,
        "tokenizer.ggml.eot_token_id": 0,
    }
    (created,) = daemon.calls("/api/create")
    assert created.keys() == {"model", "parameters", "files"}
    assert created["parameters"] == {"temperature": 1.0, "top_p": 1.0, "stop": ["### user"], "num_ctx": 512}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.gguf", "got.gguf"], "nothing is written here"
    assert resident.name != arrived(model(tmp_path), PaperDaemon()).name


def test_weights_that_have_it_are_given_as_they_are(tmp_path: Path) -> None:
    """A file with the very template is not made anew, so that others who have the same weights share them."""
    contract = replace(CONTRACT, templates={"default": CHATML}, pinned={}, stop=Stop((1,)))
    write_gguf(tmp_path / "a.gguf", eos=1)
    daemon = PaperDaemon()
    arrived(under(contract, model(tmp_path)), daemon)
    assert [step.source for step in daemon.asked if isinstance(step, Upload)] == [tmp_path / "a.gguf"]


def test_a_modelfile_says_nothing_of_prompts(tmp_path: Path) -> None:
    """Under a contract what a Modelfile says of the prompt is left out, and what it says of the runner is not."""
    write_gguf(tmp_path / "a.gguf")
    modelfile = tmp_path / "Modelfile"
    modelfile.write_text(
        f'FROM ./a.gguf\nTEMPLATE """{GO}"""\nSYSTEM Be rude.\nMESSAGE user Hi\nPARAMETER stop x\n'
        "PARAMETER temperature 0.1\nPARAMETER num_ctx 99\n"
    )
    daemon = PaperDaemon(template=FIXED)
    arrived(under(CONTRACT, model(tmp_path, weights=modelfile)), daemon)
    (created,) = daemon.calls("/api/create")
    assert created.keys() == {"model", "parameters", "files"}
    assert created["parameters"] == {"temperature": 1.0, "top_p": 1.0, "num_ctx": 99, "stop": ["### user"]}


def test_another_template_in_force_is_found(tmp_path: Path) -> None:
    """A daemon that shows another template than the contract's does not get the model."""
    assert refusal(under(CONTRACT, model(tmp_path)), PaperDaemon(template=CHATML)).code == "template_not_kept"


def test_a_published_model_has_no_contract(tmp_path: Path) -> None:
    """It brings its own template: told before any start, and found in a Modelfile's FROM at its start."""
    published = under(CONTRACT, BackendSettings("m", "ollama", source=OllamaName("qwen:1b")))
    assert [one.path for one in ADAPTERS["ollama"].objections(published)] == [("template", "contract")]
    (tmp_path / "Modelfile").write_text("FROM qwen:1b\n")
    for backend in (published, under(CONTRACT, model(tmp_path, weights=tmp_path / "Modelfile"))):
        assert refusal(backend, PaperDaemon()).code == "contract_unusable"
    stopping = under(CONTRACT, model(tmp_path, args={"stop": "x"}))
    assert [one.path for one in ADAPTERS["ollama"].objections(stopping)] == [("args", "stop")]


def test_models_that_ollama_renders_by_itself(tmp_path: Path) -> None:
    """Where Ollama is to render, an architecture that it renders by itself is refused (T13)."""
    weights = tmp_path / "a.gguf"
    assert ADAPTERS["ollama"].contract_problem(under(CONTRACT, model(tmp_path), mode="native")) is None
    weights.write_bytes(gguf_bytes(architecture="gemma4"))
    assert str(ADAPTERS["ollama"].contract_problem(under(CONTRACT, model(tmp_path), mode="native"))).startswith("T13")
    assert ADAPTERS["ollama"].contract_problem(under(CONTRACT, model(tmp_path))) is None
