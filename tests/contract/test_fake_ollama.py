"""The fake Ollama is held to what the real one answered: the recorded requests, sent to it in their order."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.gateways import ROOT, free_port, until
from tests.gguf_files import CHATML, gguf_bytes

RECORDINGS = Path(__file__).parents[1] / "recordings" / "ollama_native.jsonl"
VARYING = {
    # measured times, counts of another tokenizer and model, and what only the real weights have
    "created_at", "modified_at", "expires_at", "total_duration", "load_duration", "prompt_eval_duration",
    "eval_duration", "context", "license", "tensors", "_debug_info", "prompt_eval_count", "eval_count",
}  # fmt: skip
NOT_PLAYED = {
    # "name" or "name/label" -> why
    "04-status": "no route of ours",
    "132-api-embeddings": "the older route, which we do not use",
    "19-create-from-unknown": "its error names a resolver",
    "27-create-safetensors-dir": "its blobs are not kept",
    "28-create-embedding-gguf": "its blob is not kept",
    "111-api-generate-system-template": "we send neither system nor template",
    "113-api-generate-suffix": "we send no suffix",
    "23-create-corrupt-gguf": "its blob is not kept",
    "24-create-not-a-model": "its blob is not kept",
    "35-show-hf": "made by 27",
    "104-api-chat-render-only-hf": "made by 27",
    "39-show-tools": "its creation was not recorded",
    "105-api-chat-render-only-tools": "its creation was not recorded",
    "136-api-embed-embed-model": "made by 28",
}
PLAYED_UP_TO = 138

Json = dict[str, Any]
GGUF = gguf_bytes(CHATML, name="smol")
REAL_DIGEST = "sha256:0ffaa636cff564031b43ea2e7354e1eef540bf1a1641f2438a2f55cbbb387513"
DIGEST = f"sha256:{hashlib.sha256(GGUF).hexdigest()}"


def exchanges() -> list[Json]:
    """The recorded exchanges that can be played: one after the other, without a fault that has to be arranged."""
    found = [json.loads(line) for line in RECORDINGS.read_text().splitlines()]
    return sorted(
        (
            exchange
            for exchange in found
            if exchange["name"] not in NOT_PLAYED and int(exchange["name"].split("-")[0].rstrip("b")) < PLAYED_UP_TO
        ),
        key=lambda exchange: int(exchange["name"].split("-")[0].rstrip("b")),
    )


PLAYED = exchanges()


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    folder = tmp_path_factory.mktemp("fake")
    port = free_port()
    environ = {
        **os.environ, "OLLAMA_HOST": f"127.0.0.1:{port}", "OLLAMA_MODELS": str(folder), "PYTHONPATH": str(ROOT),
        "OLLAMA_GO_TEMPLATE": "",
    }  # fmt: skip
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.fake_ollama", "serve"], env=environ, stderr=subprocess.DEVNULL
    )
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=20, trust_env=False) as client:
            until(lambda: answers(client), 20, "the fake listens")
            yield client
    finally:
        process.terminate()
        assert process.wait(10) == 0


def answers(client: httpx.Client) -> bool:
    """Whether it listens."""
    try:
        return client.get("/").is_success
    except httpx.TransportError:
        return False


def test_enough_is_played() -> None:
    """Nearly all of the plain recordings; what is left out says why."""
    assert len(PLAYED) > 50
    names = {json.loads(line)["name"] for line in RECORDINGS.read_text().splitlines()}
    assert set(NOT_PLAYED) <= names


@pytest.mark.parametrize("exchange", PLAYED, ids=lambda exchange: exchange["name"])
def test_it_answers_as_the_real_one(daemon: httpx.Client, exchange: Json) -> None:
    """The same status, the same kind of content, and the same fields, down to the words of errors."""
    asked, real = exchange["request"], exchange["response"]
    options = sent(asked)
    if exchange["name"] == "89-foreign-host":  # the header itself was not recorded
        options["headers"] = {"host": "evil.example"}
    answer = daemon.request(asked["method"], asked["path"].replace(REAL_DIGEST, DIGEST), **options)
    assert answer.status_code == real["status"]
    kind = real["headers"].get("content-type", "").partition(";")[0]
    if kind and asked["method"] != "HEAD" and asked["path"] != "/":
        assert answer.headers["content-type"].partition(";")[0] == kind
    assert [shape(line) for line in objects(answer.text)] == [shape(line) for line in recorded(real)]


def sent(asked: Json) -> Json:
    """The body as it was sent, its weights those of the test."""
    body = asked.get("body")
    if asked["path"].startswith("/api/blobs/"):
        is_real = REAL_DIGEST in asked["path"] and asked["method"] == "POST"
        return {"content": GGUF if is_real else str(body or "").encode()}
    if body is None:
        return {}
    if isinstance(body, str):
        return {"content": body.encode()}
    text = json.dumps(body).replace(REAL_DIGEST, DIGEST)
    if "and so on, 12,000 tokens" in text:
        text = text.replace("(and so on, 12,000 tokens)", "a b c d " * 3000)
    return {"content": text.encode(), "headers": {"content-type": "application/json"}}


def recorded(real: Json) -> list[Any]:
    """The JSON objects of a recorded answer, or its text."""
    if "chunks" in real:
        return objects("".join(real["chunks"]))
    body = real.get("body")
    return [] if body in (None, "") else [body]


def objects(text: str) -> list[Any]:
    """The JSON object of each line; the text where it is none."""
    found = []
    for line in text.splitlines():
        try:
            found.append(json.loads(line))
        except ValueError:
            found.append(line)
    return found


def shape(value: Any) -> Any:
    """What has to be alike: fields and words, not what varies, nor how much a model says or how its files are named."""
    if not isinstance(value, dict):
        return value
    if "error" in value:
        return {"error": kind_of_error(str(value["error"]))}
    if "models" in value:
        return {"models"}
    if "modelfile" in value:
        return "a model, shown"
    if "status" in value:
        return str(value["status"]).partition("sha256:")[0].replace("using existing layer", "creating new layer")
    if not value.get("done", True):
        return "a piece"
    return {name: shape(item) for name, item in value.items() if name not in VARYING and name not in CONTENT}


CONTENT = {"message", "response", "logprobs", "embeddings", "version", "done_reason"}


def kind_of_error(text: str) -> str:
    """An error's words, without numbers of tokens and names of files."""
    for word in ("exceed_context_size_error", "no such file or directory"):
        if word in text:
            return word
    return text
