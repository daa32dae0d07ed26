"""The fake Ollama's models on disk: blobs by digest, and what is known of each model by its name."""

from __future__ import annotations

import hashlib
import json
import re
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from backends.gguf import CHAT_TEMPLATE, POOLING, GgufUnreadable, read_metadata
from tests.gguf_files import gguf_bytes

CHATML_GO = "{{- range .Messages }}<|im_start|>{{ .Role }}\n{{ .Content }}<|im_end|>\n{{ end }}<|im_start|>assistant\n"
DIGEST = re.compile(r"sha256[:-][0-9a-f]{64}")
NAME = re.compile(r"(?i)[a-z0-9_][a-z0-9_./-]{0,300}(:[a-z0-9_][a-z0-9_.-]{0,79})?")


class Refused(Exception):
    """An error answer: its status and Ollama's words."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


@dataclass
class Model:
    """One model: its weights' *blob*, the template of its GGUF and the Go template of its Modelfile, if any."""

    name: str
    blob: str
    chat_template: str = ""
    go_template: str = ""
    system: str = ""
    parameters: dict[str, Any] = field(default_factory=dict)
    is_embedding: bool = False
    rope_theta: float = 0.0

    @property
    def digest(self) -> str:
        """What the manifest's digest would be."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()


def full_name(name: str) -> str:
    """*name* with its tag, as /api/tags shows it. Raises Refused."""
    plain = name.removeprefix("registry.ollama.ai/").removeprefix("library/").lower()
    if not NAME.fullmatch(plain) or plain.startswith("/"):
        raise Refused(400, "invalid model name")
    return plain if ":" in plain else f"{plain}:latest"


class Store:
    """What is below OLLAMA_MODELS."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._blobs = folder / "blobs"
        self._manifests = folder / "manifests"
        for path in (self._blobs, self._manifests):
            path.mkdir(parents=True, exist_ok=True)

    # blobs

    def blob(self, digest: str) -> Path:
        """Where a blob is, or would be. Raises Refused."""
        if not DIGEST.fullmatch(digest):
            raise Refused(400, "invalid digest format")
        return self._blobs / digest.replace(":", "-")

    def put(self, digest: str, pieces: Any) -> None:
        """Keep a blob. Raises Refused when it is not what *digest* says."""
        path = self.blob(digest)
        seen = hashlib.sha256()
        with tempfile.NamedTemporaryFile(dir=self._blobs, delete=False) as file:
            for piece in pieces:
                seen.update(piece)
                file.write(piece)
        got = f"sha256:{seen.hexdigest()}"
        if got != digest.replace("-", ":"):
            Path(file.name).unlink()
            raise Refused(400, f'digest mismatch, expected "{digest}", got "{got}"')
        Path(file.name).rename(path)

    # models

    def names(self) -> list[str]:
        """All models, the newest first."""
        files = sorted(self._manifests.iterdir(), key=lambda path: path.stat().st_mtime_ns, reverse=True)
        return [json.loads(path.read_text())["name"] for path in files]

    def find(self, name: str) -> Model | None:
        """A model by any of its spellings. Raises Refused for what is no name."""
        path = self._manifest(full_name(name))
        return Model(**json.loads(path.read_text())) if path.exists() else None

    def remove(self, name: str) -> None:
        """Forget a model; its blob stays."""
        self._manifest(full_name(name)).unlink()

    def save(self, model: Model) -> None:
        """Keep a model under its name."""
        self._manifest(model.name).write_text(json.dumps(asdict(model)))

    def _manifest(self, name: str) -> Path:
        return self._manifests / name.replace("/", "%2F").replace(":", "%3A")

    # making

    def pull(self, name: str, say: Callable[..., None]) -> Model:
        """A model from the registry, which has every one whose name does not begin with ``nope``."""
        full = full_name(name)
        if full.startswith("nope"):
            host = "registry.ollama.ai"
            path = f"/v2/library/{full.partition(':')[0]}/manifests/{full.partition(':')[2]}"
            raise Refused(
                500,
                f'pull model manifest: Get "https://{host}{path}": dial tcp: lookup {host} on RESOLVER:53:'
                " no such host",
            )
        say(status="pulling manifest")
        weights = gguf_bytes(name=full)
        digest = f"sha256:{hashlib.sha256(weights).hexdigest()}"
        for done in range(0, 101, 20):
            total = len(weights)
            say(status=f"pulling {digest[7:19]}", digest=digest, total=total, completed=total * done // 100)
        self.put(digest, [weights])
        say(status="verifying sha256 digest")
        say(status="writing manifest")
        model = self._of_gguf(full, digest)
        self.save(model)
        say(status="success")
        return model

    def create(self, asked: dict[str, Any], say: Callable[..., None]) -> None:
        """A model from files or from another model. Raises Refused."""
        name = full_name(str(asked.get("model")))
        if "from" in asked:
            base = self.find(asked["from"]) or self.pull(asked["from"], lambda **_: None)
            model = Model(**{**asdict(base), "name": name})
        elif asked.get("files"):
            model = self._of_files(name, asked["files"], say)
        else:
            raise Refused(400, "neither 'from' or 'files' was specified")
        if "{{ if }}" in asked.get("template", ""):
            raise Refused(400, "template error: template: :1: missing value for if")
        model.go_template = asked.get("template") or model.go_template
        model.system = asked.get("system") or model.system
        model.parameters = {**model.parameters, **asked.get("parameters", {})}
        say(status="writing manifest")
        self.save(model)
        say(status="success")

    def _of_files(self, name: str, files: dict[str, str], say: Callable[..., None]) -> Model:
        if any(file.endswith(".safetensors") for file in files):
            return self._of_safetensors(name, files, say)
        digest = next(iter(files.values()))
        path = self.blob(digest)
        if not path.exists():
            raise Refused(500, f"open {path}: no such file or directory")
        if path.read_bytes()[:4] != b"GGUF":
            raise Refused(400, "supplied file was not in GGUF format")
        say(status="parsing GGUF")
        say(status="verifying conversion")
        model = self._of_gguf(name, digest)
        say(status=f"creating new layer {model.blob}")
        self._detect(model, say)
        return model

    def _of_gguf(self, name: str, digest: str) -> Model:
        try:
            fields = read_metadata(self.blob(digest), {CHAT_TEMPLATE, POOLING})
        except GgufUnreadable as problem:
            message = "failed to validate GGUF with llama-quantize without compatibility patches: llama-quantize failed"
            raise Refused(500, f"{message}: exit status 1") from problem
        is_embedding = any(key.endswith(POOLING) for key in fields)
        return Model(name, digest, chat_template=str(fields.get(CHAT_TEMPLATE, "")), is_embedding=is_embedding)

    def _of_safetensors(self, name: str, files: dict[str, str], say: Callable[..., None]) -> Model:
        """As the real converter: rope_theta from the top level of config.json only, the template from
        tokenizer_config.json only."""
        say(status="converting model")
        config = json.loads(self.blob(files["config.json"]).read_text())
        tokenizer = json.loads(self.blob(files.get("tokenizer_config.json", files["config.json"])).read_text())
        template = tokenizer.get("chat_template") or None
        weights = gguf_bytes(template, name=json.dumps(sorted(files.items())))
        digest = f"sha256:{hashlib.sha256(weights).hexdigest()}"
        self.put(digest, [weights])
        say(status="verifying conversion")
        say(status=f"creating new layer {digest}")
        model = self._of_gguf(name, digest)
        model.rope_theta = config.get("rope_theta", 10000.0)
        self._detect(model, say)
        return model

    def _detect(self, model: Model, say: Callable[..., None]) -> None:
        """Levenshtein's neighbour, in one case."""
        if "<|im_start|>" in model.chat_template:
            say(status="using autodetected template chatml")
            say(status=f"creating new layer sha256:{hashlib.sha256(CHATML_GO.encode()).hexdigest()}")
            model.go_template = CHATML_GO
            model.parameters = {"stop": ["<|im_start|>", "<|im_end|>"], **model.parameters}
