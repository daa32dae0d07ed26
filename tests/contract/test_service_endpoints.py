"""What is asked of a gateway beside generation: health, readiness, tokens, and paths that do not exist."""

from __future__ import annotations

import signal
from pathlib import Path

import httpx
import pytest

from tests.gateways import Gateway, fake_model, running_gateway, start_gateway, until


def test_health(gateway: Gateway) -> None:
    """/health is 200 while the gateway lives."""
    answer = gateway.ask("GET", "/health")
    assert (answer.status_code, answer.json()) == (200, {"status": "ok"})


def test_ready(gateway: Gateway) -> None:
    """/ready is 200 with the startup models once they are READY; on-demand models do not matter."""
    answer = gateway.ask("GET", "/ready")
    assert (answer.status_code, answer.json()) == (200, {"status": "ready", "models": {"chat": "ready"}})


def test_ready_before_and_while_draining(tmp_path: Path) -> None:
    """/ready is 503 while a startup model loads, and again once the gateway drains; /health stays 200 throughout."""
    models = {"slow": fake_model(tmp_path, "ready-after=1"), "chat": fake_model(tmp_path, "chunk-interval=0.2")}
    with running_gateway(tmp_path, models, is_ready=False) as gateway:
        answer = gateway.ask("GET", "/ready")
        assert answer.status_code == 503
        assert answer.json()["status"] == "not ready"
        assert answer.json()["models"]["slow"] == "starting"
        assert gateway.ask("GET", "/health").status_code == 200
        gateway.until_ready()
        body = {"model": "chat", "prompt": "hi", "stream": True}
        with httpx.stream("POST", f"{gateway.url}/v1/completions", json=body, trust_env=False) as running:
            lines = running.iter_lines()
            next(lines)
            gateway.signal(signal.SIGTERM)
            answer = until(lambda: is_503(gateway.ask("GET", "/ready")))
            assert answer.json()["status"] == "draining"
            assert gateway.ask("GET", "/health").status_code == 200
            assert list(lines)[-2] == "data: [DONE]"
        gateway.process.wait(10)


def is_503(answer: httpx.Response) -> httpx.Response | None:
    """The answer when it is a 503."""
    return answer if answer.status_code == 503 else None


def test_it_serves_while_its_models_start(tmp_path: Path) -> None:
    """A gateway answers, and stops when told to, while its models are still loading."""
    gateway = start_gateway(tmp_path, {"never": fake_model(tmp_path, "stall-start")})
    try:
        gateway.until_serving()
        assert gateway.ask("GET", "/v1/models").json()["data"][0]["status"]["value"] in ("loading", "unloaded")
    finally:
        gateway.end()
    gateway.assert_left_nothing()


@pytest.mark.parametrize("path", ["/", "/health", "/ready", "/metrics", "/v1/models", "/v1/models/chat"])
def test_head(gateway: Gateway, path: str) -> None:
    """HEAD answers as GET does, without the body: same status, same type, and the length GET would have."""
    head, get = gateway.ask("HEAD", path), gateway.ask("GET", path)
    assert head.status_code == get.status_code == 200
    assert head.content == b""
    assert head.headers["content-type"] == get.headers["content-type"]
    if path != "/metrics":  # it counts itself
        assert head.headers["content-length"] == get.headers["content-length"]


def test_the_front_page(gateway: Gateway) -> None:
    """The root says what this is and where everything else is."""
    page = gateway.ask("GET", "/").json()
    assert page["name"] == "unigate"
    for name in ("ready", "metrics", "admin"):
        assert gateway.ask("GET", page[name]).status_code == 200


@pytest.mark.parametrize("path", ["/nothing", "/v1", "/v1/chat", "/v1/chat/completions/", "/v1/modelsx", "/metrics/"])
def test_unknown_paths(gateway: Gateway, path: str) -> None:
    """A path where nothing is served is 404 in the envelope, whatever the method."""
    for method in ("GET", "POST", "DELETE"):
        answer = gateway.ask(method, path)
        assert answer.status_code == 404
        error = answer.json()["error"]
        assert error["message"] == f"nothing is served at {path}; the API is below /v1"
        assert (error["code"], error["source"]) == ("unknown_path", "gateway")


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("GET", "/v1/chat/completions", "POST"),
        ("HEAD", "/v1/completions", "POST"),
        ("PUT", "/v1/embeddings", "POST"),
        ("GET", "/tokenize", "POST"),
        ("POST", "/v1/models", "GET, HEAD"),
        ("DELETE", "/v1/models/chat", "GET, HEAD"),
        ("POST", "/metrics", "GET, HEAD"),
        ("POST", "/health", "GET, HEAD"),
    ],
)
def test_wrong_methods(gateway: Gateway, method: str, path: str, allow: str) -> None:
    """A known path asked in the wrong way is 405 in the envelope, with Allow."""
    answer = gateway.ask(method, path)
    assert answer.status_code == 405
    assert answer.headers["allow"] == allow
    if method != "HEAD":
        assert answer.json()["error"]["message"] == f"{path} takes {allow.replace(', ', ' or ')}"
        assert answer.json()["error"]["code"] == "method_not_allowed"


@pytest.mark.parametrize(
    "question",
    [
        {"prompt": "a bc def"},
        {"messages": [{"role": "user", "content": "a bc def"}]},
        {"prompt": "a bc def", "add_special_tokens": False},
    ],
)
def test_tokenize(gateway: Gateway, question: dict[str, object]) -> None:
    """/tokenize takes vLLM's request and gives vLLM's answer: count, tokens, max_model_len."""
    answer = gateway.ask("POST", "/tokenize", json={"model": "default", **question})
    assert answer.status_code == 200
    assert answer.json() == {"count": 3, "tokens": [1, 2, 3], "max_model_len": 4096}
    assert answer.headers["x-unigate-engine"] == "vllm"
    assert answer.headers["x-request-id"]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"model": "chat"}, "give either prompt or messages"),
        ({"model": "chat", "prompt": "x", "messages": []}, "give either prompt or messages"),
        ({"model": "chat", "prompt": 1}, "prompt must be text"),
        ({"model": "chat", "messages": "x"}, "messages must be a list"),
        ({"prompt": "x"}, "the request names no model"),
        ({"model": "elsewhere", "prompt": "x"}, "an external backend offers no tokenisation"),
    ],
)
def test_tokenize_refuses(gateway: Gateway, body: dict[str, object], message: str) -> None:
    """/tokenize says what it cannot use, and which engines cannot do it."""
    answer = gateway.ask("POST", "/tokenize", json=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["message"] == message


def test_tokenize_refuses_a_template(gateway: Gateway) -> None:
    """A client's own chat template is refused at /tokenize as well."""
    body = {"model": "chat", "messages": [], "chat_template": "{{ messages }}"}
    answer = gateway.ask("POST", "/tokenize", json=body)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "template_not_allowed")


def test_tokenize_of_a_cold_model(gateway: Gateway) -> None:
    """/tokenize loads a model that is not there yet."""
    gateway.ask("POST", "/admin/backends/cold/unload", params={"wait_s": 10}, timeout=15)
    assert gateway.ask("POST", "/tokenize", json={"model": "cold", "prompt": "x"}).json()["count"] == 1
