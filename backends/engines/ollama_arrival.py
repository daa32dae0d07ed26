"""How a model gets into an Ollama daemon with exactly our content, is loaded, and is unloaded: plans, without any I/O.

Numbers in brackets are recordings of the real server, 0.33.0-rc2; sources name files of
https://github.com/ollama/ollama at that version.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Generator, Mapping
from functools import partial
from typing import Any

from backends.adapter import Body, Call, Probe
from backends.diagnosis import Diagnosis, first_match, pattern
from backends.engines.ollama_content import Content, read_content, refused
from backends.engines.ollama_contract import read_under_contract
from backends.engines.ollama_parameters import RUNNER
from backends.residence import (
    ArrivalPlan,
    Digest,
    Follow,
    Pause,
    Reading,
    Reply,
    Resident,
    Step,
    Upload,
)
from backends.settings import BackendSettings
from chat_templates.sources.modelfile_parsing import is_go_template

NAMESPACE = "unigate"
GONE_POLL_S = 0.05
HEALTH = Call("GET", "/api/version")
_BLOB = re.compile(r"^FROM .*sha256[-:]([0-9a-f]{64})\s*$", re.MULTILINE)

DOWNLOAD_PATTERNS = (
    pattern(
        "source_not_found",
        r"pull model manifest: file does not exist|manifest unknown|\b404\b",
        "The registry has no such model.",
        "Correct the name after ollama: in the model's weights.",
        source="server/images.go PullModel, server/download.go",
    ),
    pattern(
        "network_failed",
        r"(?P<what>no such host|connection refused|i/o timeout|TLS handshake|connection reset|unexpected EOF|"
        r"network is unreachable|max retries exceeded)",
        "The registry cannot be reached: {what}.",
        "It is tried again; see the proxy settings of engines.ollama.env (HTTPS_PROXY).",
        source="recording 19; server/download.go errMaxRetriesExceeded",
        permanent=False,
    ),
)

LOAD_PATTERNS = (
    pattern(
        "weights_gone",
        r"not found, try pulling it first|model '[^']*' not found",
        "The daemon has lost the model's weights.",
        "They are given to it again.",
        source="server/routes.go handleScheduleError [208]: the file is gone, the manifest is not",
        permanent=False,
    ),
    pattern(
        "weights_unreadable",
        r"exceeds file size|invalid file magic|unexpected end of file|failed to load model from",
        "Ollama could not read the weights.",
        "Check that the file is whole; delete the model in the daemon (ollama rm) to have it made anew.",
        source="llama.cpp ggml/src/gguf.cpp, [208]",
    ),
    pattern(
        "out_of_memory",
        r"requires more system memory|out of memory|cudaMalloc failed|failed to allocate|unable to allocate",
        "There is too little memory for the model and its context.",
        "Lower context_length or engines.ollama.num_parallel, unload another model, or use smaller weights.",
        source="llm/llama_server.go, llm/status.go errorPrefixes",
    ),
    pattern(
        "architecture_unknown",
        r"unknown model architecture: '(?P<name>[^']*)'|unsupported architecture",
        "This Ollama does not know the model's architecture.",
        "Use a newer Ollama, or another engine.",
        source="llama.cpp src/llama-model.cpp; convert/convert.go",
    ),
    pattern(
        "load_timed_out",
        r"timed out waiting for llama-server to start",
        "The load made no progress for OLLAMA_LOAD_TIMEOUT, five minutes by default.",
        "It is tried again; set OLLAMA_LOAD_TIMEOUT in engines.ollama.env if the disk is only slow.",
        source="llm/llama_server.go WaitUntilRunning [208]",
        permanent=False,
    ),
    pattern(
        "not_embedding",
        r"does not support embeddings",
        "The model gives no embeddings.",
        "Remove readiness: embed, or use an embedding model.",
        source="llama.cpp tools/server, [130]",
    ),
    pattern(
        "not_generating",
        r'"[^"]*" does not support (chat|generate|completion)',
        "It is an embedding model.",
        "Write readiness: embed.",
        source="server/routes.go ChatHandler [137]",
    ),
)

CREATE_PATTERNS = (
    pattern(
        "weights_unreadable",
        r"failed to validate GGUF|not in GGUF format|no Modelfile or safetensors|unknown type",
        "Ollama could not read the weights.",
        "Check that the files are whole, and that this Ollama knows the model's kind.",
        source="server/create.go [23, 24]",
    ),
    pattern(
        "bad_template",
        r"template error: (?P<what>.*)",
        "Ollama could not parse the Modelfile's TEMPLATE: {what}.",
        "Correct it.",
        source="server/create.go errBadTemplate [25]",
    ),
)


def arrive(backend: BackendSettings, *, go_templates: bool | None) -> ArrivalPlan:
    """The plan that ends with *backend*'s model in the daemon, made now or at an earlier start. Raises
    ResidenceRefused."""
    read = partial(read_content, go_templates=go_templates) if backend.prompting is None else read_under_contract
    reply = yield Reading(partial(read, backend))
    content: Content = reply.value
    origin = (yield from _published(content.origin)) if content.origin else ""
    digests = yield from _digests(content)
    name = derived_name(backend.name, content, digests, origin)
    shown = yield from _present(name)
    if shown is None:
        yield from _upload(content, digests)
        yield from _create(name, content, digests)
        shown = yield from _present(name)
    if shown is None:
        raise refused(
            "creation_lost", "The daemon made the model and does not have it.", "See its log.", permanent=False
        )
    if not backend.template_is_engines and backend.readiness != "embed":
        _check_template(shown, content, go_templates)
    _check_tokenizer(shown, content)
    is_embedding = backend.readiness == "embed"
    return Resident(
        name=name,
        weights=_blob_of(shown) or name,
        runner={key: value for key, value in content.parameters.items() if key in RUNNER},
        probe=probe(name, is_embedding=is_embedding),
        load=load_call(name, is_embedding=is_embedding),
        leave=partial(leave, name),
    )


def derived_name(model: str, content: Content, digests: Mapping[str, str], origin: str) -> str:
    """``unigate/<slug>:<12 hex>``: the same for the same content, another for another; a valid name for Ollama.

    *digests*: file -> sha256, *origin*: the digest of the published model it is made from.
    """
    said = [sorted(digests.items()), origin, content.template, dict(content.parameters), dict(content.extras)]
    digest = hashlib.sha256(json.dumps(said, sort_keys=True, ensure_ascii=False).encode()).hexdigest()
    slug = re.sub(r"[^a-z0-9_-]+", "-", model.lower()).strip("-_") or "model"
    return f"{NAMESPACE}/{slug[:60]}:{digest[:12]}"


def probe(name: str, *, is_embedding: bool) -> Probe:
    """Whether the daemon has the model in memory, and whether it answers with one token.

    The health check is the empty request: warm it takes 1 or 2 ms [200]; a runner that died or was evicted is loaded
    again by it, one that hangs does not answer it, and a model that is lost is not found.
    """
    health = load_call(name, is_embedding=is_embedding)
    if is_embedding:
        return Probe(health, Call("POST", "/api/embed", {"model": name, "input": "Hi"}), ("embeddings", 0, 0))
    body: Body = {
        "model": name,
        "prompt": "Hi",
        "raw": True,
        "stream": False,
        **BOUNDS,
        "options": {"num_predict": 1, "temperature": 0},
    }
    return Probe(health, Call("POST", "/api/generate", body), ("eval_count",))


BOUNDS: Mapping[str, Any] = {"truncate": False, "shift": False, "keep_alive": -1}
"""In every request: a prompt that is too long is refused and not cut [93, 94], an answer ends where the context does,
and the model stays. A request with another *shift* would start the runner anew (server/sched.go needsReload)."""


def load_call(name: str, *, is_embedding: bool) -> Call:
    """An empty request, which only loads: [200], server/routes.go GenerateHandler, EmbedHandler."""
    if is_embedding:
        return Call("POST", "/api/embed", {"model": name, "input": [], "keep_alive": -1})
    return Call("POST", "/api/generate", {"model": name, "stream": False, "shift": False, "keep_alive": -1})


def leave(name: str) -> Generator[Step, Reply, None]:
    """Unload, and wait until the daemon does not list it any more [200].

    It is said again each time: a request that was under way when its client was sent away may have pinned it anew. A
    model that was deleted cannot be unloaded by its name any more [211]: what is left of it is nobody's.
    """
    while True:
        reply = yield Call("POST", "/api/generate", {"model": name, "stream": False, "keep_alive": 0})
        if reply.status == 404:
            return
        loaded = (yield Call("GET", "/api/ps")).body.get("models") or ()
        if not any(entry.get("name") == name for entry in loaded):
            return
        yield Pause(GONE_POLL_S)


def diagnose_load(reply: Reply) -> Diagnosis:
    """Why a model did not load, from the answer to `load_call`."""
    text = _error(reply)
    return first_match(LOAD_PATTERNS, [text]) or Diagnosis(
        "load_failed", f"Ollama could not load the model: {text}.", "See the log of the daemon: unigate logs ollama."
    )


# the steps


def _published(name: str) -> Generator[Step, Reply, str]:
    """A published model is here with its weights, downloaded if need be; its digest."""
    if (yield from _present(name)) is None:
        reply = yield Follow(Call("POST", "/api/pull", {"model": name}), _pull_phase())
        if reply.status != 200 or reply.body.get("status") != "success":
            raise _failed("download_failed", f"{name} could not be downloaded", reply, DOWNLOAD_PATTERNS)
    tags = (yield Call("GET", "/api/tags")).body.get("models") or ()
    full = name if ":" in name.rpartition("/")[2] else f"{name}:latest"
    return next((str(tag.get("digest")) for tag in tags if tag.get("name") == full), full)


def _digests(content: Content) -> Generator[Step, Reply, dict[str, str]]:
    found: dict[str, str] = {}
    for name, source in content.files.items():
        found[name] = (yield Digest(source)).value
    if content.adapter is not None:
        found["adapter"] = (yield Digest(content.adapter)).value
    return found


def _present(name: str) -> Generator[Step, Reply, Body | None]:
    """What the daemon shows of a model; None when it has none, or has lost its weights [208]."""
    shown = yield Call("POST", "/api/show", {"model": name})
    if shown.status != 200:
        return None
    blob = _blob_of(shown.body)
    if blob and (yield Call("HEAD", f"/api/blobs/{blob}")).status != 200:
        return None
    return shown.body


def _upload(content: Content, digests: Mapping[str, str]) -> Generator[Step, Reply, None]:
    sources = dict(content.files)
    if content.adapter is not None:
        sources["adapter"] = content.adapter
    for name, source in sources.items():
        target = f"/api/blobs/sha256:{digests[name]}"
        # Asked for first: of a blob that is there the body is not read, and the connection is cut in its midst [15].
        if (yield Call("HEAD", target)).status != 200:
            reply = yield Upload(target, source)
            if reply.status not in (200, 201):
                raise _failed("upload_failed", f"{name} could not be given to the daemon", reply, ())


def _create(name: str, content: Content, digests: Mapping[str, str]) -> Generator[Step, Reply, None]:
    body: Body = {"model": name, "parameters": dict(content.parameters), **content.extras}
    if content.origin:
        body["from"] = content.origin
    else:
        body["files"] = {file: f"sha256:{digests[file]}" for file in content.files}
    if content.adapter is not None:
        body["adapters"] = {content.adapter.name: f"sha256:{digests['adapter']}"}
    reply = yield Follow(Call("POST", "/api/create", body), _create_phase)
    if reply.status != 200 or reply.body.get("status") != "success":
        raise _failed("creation_failed", "Ollama could not make the model", reply, CREATE_PATTERNS)


def _check_template(shown: Body, content: Content, go_templates: bool | None) -> None:
    """The template in force is the one there should be: what /api/show tells (routes.go selectedModelTemplate)."""
    template = str(shown.get("template") or "")
    has_renderer = re.search(r"^(RENDERER|PARSER) ", str(shown.get("modelfile")), re.MULTILINE) is not None
    if content.origin or content.template is None:
        # A published model's own. Shown is a Go template too where none is in force and the weights have no other.
        if go_templates is False and is_go_template(template) and not has_renderer:
            raise refused(
                "template_not_kept",
                "The model's template is in Go's language, which this daemon does not use, and its weights hold none.",
                "Write engines.ollama.go_templates: true, or template: {engine: true} if ChatML is right for it.",
            )
        return
    if template.strip() != content.template.strip():
        raise refused(
            "template_not_kept",
            "Ollama renders this model with another template than its own"
            + (" (one in Go's language that it chose by itself)." if is_go_template(template) else "."),
            "Leave engines.ollama.go_templates false (of a daemon that runs elsewhere: OLLAMA_GO_TEMPLATE=0), or write"
            " template: {engine: true} to take what it has.",
        )


def _check_tokenizer(shown: Body, content: Content) -> None:
    if content.has_split and (shown.get("model_info") or {}).get("tokenizer.ggml.pre") == "default":
        raise refused(
            "tokenizer_not_kept",
            "Ollama's converter does not know how this tokenizer cuts text, and would give the model other tokens.",
            "Convert the folder with llama.cpp's convert_hf_to_gguf.py, and give the GGUF file as weights.",
        )


def _blob_of(shown: Body) -> str:
    found = _BLOB.search(str(shown.get("modelfile")))
    return f"sha256:{found[1]}" if found else ""


def _pull_phase() -> Callable[[Body], str | None]:
    layers: dict[str, tuple[int, int]] = {}

    def phase(line: Body) -> str | None:
        total = line.get("total")
        if isinstance(total, int) and total > 0:
            layers[str(line.get("digest"))] = int(line.get("completed") or 0), total
            done, whole = (sum(column) for column in zip(*layers.values(), strict=True))
            return f"downloading {done * 100 // whole}% of {whole / 1e9:.1f} GB"
        status = line.get("status")
        return None if status in (None, "success") else f"downloading: {status}"

    return phase


def _create_phase(line: Body) -> str | None:
    status = str(line.get("status") or "")
    known = {"parsing", "converting", "verifying", "quantizing"}
    return f"making the model: {status}" if status.partition(" ")[0] in known else None


def _error(reply: Reply) -> str:
    return str(reply.body.get("error") or f"status {reply.status}")[:500].rstrip(".")


def _failed(code: str, what: str, reply: Reply, patterns: Any) -> Exception:
    text = _error(reply)
    known = first_match((*patterns, *_SHARED), [text])
    diagnosis = known or Diagnosis(code, f"{what}: {text}.", "It is tried again; see unigate logs ollama.")
    return refused(diagnosis.code, diagnosis.reason, diagnosis.advice, permanent=diagnosis.permanent)


_SHARED = (
    pattern(
        "disk_full",
        r"no space left on device",
        "The disk that holds Ollama's models is full.",
        "Free space there, or write another engines.ollama.models_dir.",
        source="errno 28, Linux",
    ),
)
