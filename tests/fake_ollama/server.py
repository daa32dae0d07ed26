"""The fake Ollama's HTTP side."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

from tests.fake_ollama import answers
from tests.fake_ollama.faults import Faults
from tests.fake_ollama.runners import Runner, Scheduler, seconds
from tests.fake_ollama.store import Model, Refused, Store, full_name

VERSION = "0.33.0-rc2"
JSON = "application/json; charset=utf-8"
BROKEN = "an error was encountered while running the model: unexpected EOF"
NO_EMBEDDINGS = "This server does not support embeddings. Start it with `--embeddings`"
LOOPBACK = re.compile(r"(localhost|127\.0\.0\.1|\[::1\])(:\d+)?")
KEPT_TOKENS = 2050

Body = dict[str, Any]


class FakeOllama(ThreadingHTTPServer):
    """The server and what its handlers share. *go_templates*: OLLAMA_GO_TEMPLATE, empty when unset."""

    daemon_threads = True

    def __init__(self, address: tuple[str, int], store: Store, scheduler: Scheduler, faults: Faults, go_templates: str):
        super().__init__(address, Handler)
        self.store = store
        self.scheduler = scheduler
        self.faults = faults
        self.go_templates = go_templates
        self.asked: list[str] = []


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    server: FakeOllama

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the name is the library's
        pass

    # dispatch

    def do_GET(self) -> None:
        self._serve("GET")

    def do_HEAD(self) -> None:
        self._serve("HEAD")

    def do_POST(self) -> None:
        self._serve("POST")

    def do_DELETE(self) -> None:
        self._serve("DELETE")

    def _serve(self, method: str) -> None:
        path = urlsplit(self.path).path
        self.server.asked.append(f"{method} {path}")
        if not LOOPBACK.fullmatch(self.headers.get("host", "")):
            self._send(403, "text/plain", b"")
            return
        blob = path.removeprefix("/api/blobs/")
        try:
            if blob != path:
                self._blob(method, blob)
                return
            route = ROUTES.get(path)
            if route is None:
                self._send(404, "text/plain", b"404 page not found")
            elif method not in route[0]:
                self._send(405, "text/plain", b"405 method not allowed")
            else:
                route[1](self)
        except Refused as problem:
            self._refuse(problem)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def _refuse(self, problem: Refused) -> None:
        if urlsplit(self.path).path.startswith("/v1/"):
            kinds = {400: "invalid_request_error", 404: "not_found_error"}
            error = {"message": problem.message, "type": kinds.get(problem.status, "api_error")}
            self._json({"error": {**error, "param": None, "code": None}}, problem.status)
        else:
            self._json({"error": problem.message}, problem.status)

    # reading and writing

    def _body(self) -> Body:
        raw = self.rfile.read(int(self.headers.get("content-length", 0)))
        if not raw:
            raise Refused(400, "missing request body")
        try:
            parsed = json.loads(raw)
        except ValueError:
            raise Refused(400, "unexpected EOF") from None
        if not isinstance(parsed, dict):
            raise Refused(400, "json: cannot unmarshal array into Go value of type api.ChatRequest")
        return parsed

    def _send(self, status: int, kind: str, content: bytes) -> None:
        self.send_response(status)
        if kind:
            self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _json(self, value: Any, status: int = 200, kind: str = JSON) -> None:
        self._send(status, kind, json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode())

    def _lines(self, values: Iterator[Any], kind: str = "application/x-ndjson") -> None:
        first = next(values)  # until there is a line, a failure still has a status of its own
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self._chunk(first)
        for value in values:
            self._chunk(value)
        self.wfile.write(b"0\r\n\r\n")

    def _chunk(self, value: Any) -> None:
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, separators=(",", ":")) + "\n"
        raw = text.encode()
        self.wfile.write(b"%x\r\n%s\r\n" % (len(raw), raw))

    def _progress(self, work: Callable[[Callable[..., None]], Any], body: Body) -> None:
        """The answer of a pull or a creation: a line per step, or the last one alone."""
        if body.get("stream") is False:
            work(lambda **_: None)
            self._json({"status": "success"}, kind="application/json")
            return
        self.send_response(200)
        self.send_header("Content-Type", "application/x-ndjson")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()

        def say(**line: Any) -> None:
            self._chunk(line)
            time.sleep(self.server.faults.pull_s)

        try:
            work(say)
        except Refused as problem:
            status = {"status": problem.status} if problem.status != 500 else {}
            self._chunk({"error": problem.message, **status})
        self.wfile.write(b"0\r\n\r\n")

    # the routes

    def root(self) -> None:
        self._send(200, "text/plain; charset=utf-8", b"Ollama is running")

    def version(self) -> None:
        self._json({"version": VERSION})

    def state(self) -> None:
        """Not Ollama's: what a test wants to know."""
        children = {runner.name: runner.child.pid for runner in self.server.scheduler.shown()}
        running = sum(runner.users for runner in self.server.scheduler.shown())
        loads = self.server.scheduler.loads
        self._json({"asked": self.server.asked, "children": children, "loads": loads, "running": running})

    def tags(self) -> None:
        models = [self._model(name) for name in self.server.store.names()]
        self._json({"models": [_tag(model) for model in models]})

    def ps(self) -> None:
        self._json({"models": [_loaded(runner) for runner in self.server.scheduler.shown()]})

    def show(self) -> None:
        model = self._asked_model(self._body(), missing="model '{full}' not found")
        is_go = answers.uses_go_template(model, self.server.go_templates)
        template = model.chat_template if model.chat_template and not is_go else model.go_template or "{{ .Prompt }}"
        path = self.server.store.blob(model.blob)
        modelfile = f'# Modelfile generated by "ollama show"\n# FROM {model.name}\n\nFROM {path}\n'
        capabilities = ["embedding"] if model.is_embedding else ["completion"]
        info: Body = {"general.architecture": "llama", "llama.context_length": answers.OPEN_ENDED * 819}
        if model.rope_theta:
            info["llama.rope.freq_base"] = model.rope_theta
        self._json(
            {
                "modelfile": modelfile,
                "parameters": "\n".join(f"{name:30} {value}" for name, value in model.parameters.items()),
                "template": template,
                "details": _details(),
                "model_info": info,
                "capabilities": capabilities,
            }
        )

    def create(self) -> None:
        body = self._body()
        full_name(str(body.get("model")))
        if "from" not in body and not body.get("files"):
            raise Refused(400, "neither 'from' or 'files' was specified")
        self._progress(lambda say: self.server.store.create(body, say), body)

    def pull(self) -> None:
        body = self._body()
        if self.server.faults.pull_error:
            self._progress(lambda _: _raise(Refused(500, self.server.faults.pull_error)), body)
        else:
            self._progress(lambda say: self.server.store.pull(str(body.get("model")), say), body)

    def copy(self) -> None:
        body = self._body()
        source = self.server.store.find(body["source"])
        if source is None:
            raise Refused(404, f'model "{body["source"]}" not found')
        source.name = full_name(body["destination"])
        self.server.store.save(source)
        self._send(200, "", b"")

    def delete(self) -> None:
        model = self._asked_model(self._body())
        self.server.store.remove(model.name)
        self._send(200, "", b"")

    def _blob(self, method: str, digest: str) -> None:
        self.close_connection = method == "POST"  # what is refused, or there, is not read
        path = self.server.store.blob(digest)
        if method == "HEAD":
            self._send(200 if path.exists() else 404, "" if path.exists() else JSON, b"")
        elif path.exists():
            self._send(200, "", b"")
        else:
            left = int(self.headers.get("content-length", 0))
            self.server.store.put(digest, self._pieces(left))
            self._send(201, "", b"")

    def _pieces(self, left: int) -> Iterator[bytes]:
        while left > 0:
            piece = self.rfile.read(min(left, 1 << 20))
            if not piece:
                raise Refused(400, "unexpected EOF")
            left -= len(piece)
            yield piece

    # generation

    def chat(self) -> None:
        body = self._body()
        model = self._asked_model(body)
        messages = body.get("messages") or []
        if not messages:
            self._load_or_unload(body, model, {"message": {"role": "assistant", "content": ""}})
            return
        if model.is_embedding:
            raise Refused(400, f'"{body["model"]}" does not support chat')
        if body.get("think"):
            raise Refused(400, f'"{body["model"]}" does not support thinking')
        prompt = answers.chat_prompt(model, messages, self.server.go_templates)
        tools = body.get("tools") or []
        if tools and "tools" not in model.chat_template + model.go_template:
            raise Refused(400, f"registry.ollama.ai/library/{model.name} does not support tools")
        self._generate(body, model, prompt, _in_message, answers.tool_call(tools) if tools else None)

    def generate(self) -> None:
        body = self._body()
        model = self._asked_model(body)
        prompt = body.get("prompt") or ""
        if not prompt:
            self._load_or_unload(body, model, {"response": ""})
            return
        if body.get("raw") and any(body.get(name) for name in ("template", "system", "context")):
            raise Refused(400, "raw mode does not support template, system, or context")
        if not body.get("raw"):
            prompt = answers.chat_prompt(model, [{"role": "user", "content": prompt}], self.server.go_templates)
        self._generate(body, model, prompt, _in_response, None)

    def _load_or_unload(self, body: Body, model: Model, empty: Body) -> None:
        reason = "load"
        if body.get("keep_alive") is not None and seconds(body["keep_alive"], 1) == 0:
            reason = "unload"
            self.server.scheduler.unload(model)
        else:
            self.server.scheduler.load(model, body)
        self._json({"model": body["model"], "created_at": _now(), **empty, "done": True, "done_reason": reason})

    def _generate(self, body: Body, model: Model, prompt: str, place: Callable[[str], Body], call: Body | None) -> None:
        options = {**model.parameters, **(body.get("options") or {})}
        if "temperature" in options and not isinstance(options["temperature"], int | float):
            raise Refused(500, 'option "temperature" must be of type float32')
        with self.server.scheduler.runner(model, body) as runner:
            if body.get("_debug_render_only"):
                shown = {**place(""), "done": False, "_debug_info": {"rendered_template": prompt}}
                self._json({"model": body["model"], "created_at": _now(), **shown})
                return
            used = answers.count(prompt)
            if used > runner.num_ctx:
                if body.get("truncate") is False:
                    raise Refused(400, answers.too_long(used, runner.num_ctx))
                used = KEPT_TOKENS
            head = {"model": body["model"]}
            if body.get("stream") is False:
                self._whole(head, prompt, options, runner, used, place, call)
            else:
                self._lines(self._streamed(head, prompt, options, runner, used, place, call))

    def _tokens(self, prompt: str, options: Body, runner: Runner) -> Iterator[tuple[str, str | None]]:
        for number, (word, reason) in enumerate(answers.tokens(prompt, options, runner.num_ctx), 1):
            time.sleep(self.server.faults.chunk_s)
            if number == self.server.faults.die_after_chunks:
                runner.child.kill()
                runner.child.wait()
            if runner.child.poll() is not None:
                raise Refused(500, BROKEN)
            yield word, reason

    def _whole(
        self, head: Body, prompt: str, options: Body, runner: Runner, used: int, place: Callable[[str], Body],
        call: Body | None,
    ) -> None:  # fmt: skip
        said = list(self._tokens(prompt, options, runner))
        answer = place("" if call else "".join(word for word, _ in said))
        if call:
            answer["message"]["tool_calls"] = [call]
        reason = said[-1][1]
        self._json({**head, "created_at": _now(), **answer, "done": True, "done_reason": reason, **_counts(used, said)})

    def _streamed(
        self, head: Body, prompt: str, options: Body, runner: Runner, used: int, place: Callable[[str], Body],
        call: Body | None,
    ) -> Iterator[Body]:  # fmt: skip
        said: list[tuple[str, str | None]] = []
        try:
            for word, reason in self._tokens(prompt, options, runner):
                said.append((word, reason))
                if not call:
                    yield {**head, "created_at": _now(), **place(word), "done": False}
        except Refused as problem:
            if not said:
                raise
            yield {"error": problem.message}
            return
        if call:
            answer = place("")
            answer["message"]["tool_calls"] = [call]
            yield {**head, "created_at": _now(), **answer, "done": False}
        last = {"done": True, "done_reason": said[-1][1], **_counts(used, said)}
        yield {**head, "created_at": _now(), **place(""), **last}

    def embed(self) -> None:
        body = self._body()
        model = self._asked_model(body)
        texts = [body["input"]] if isinstance(body.get("input"), str) else body.get("input") or []
        with self.server.scheduler.runner(model, body) as runner:
            if not model.is_embedding:
                raise Refused(501, NO_EMBEDDINGS)
            counts = [answers.count(text) for text in texts]
            if body.get("truncate") is False and any(number > runner.num_ctx for number in counts):
                raise Refused(400, "the input length exceeds the context length")
            size = body.get("dimensions") or 8
            rows = [[round(0.1 * (index + 1), 3) for index in range(size)] for _ in texts]
            self._json({"model": body["model"], "embeddings": rows, "prompt_eval_count": sum(counts)})

    # finding

    def _model(self, name: str) -> Model:
        model = self.server.store.find(name)
        assert model is not None
        return model

    def _asked_model(self, body: Body, missing: str = "model '{asked}' not found") -> Model:
        name = body.get("model")
        if not name:
            raise Refused(400, "model is required")
        model = self.server.store.find(name)
        if model is None:
            raise Refused(404, missing.format(asked=name, full=full_name(name)))
        return model


def _raise(problem: Exception) -> None:
    raise problem


def _now() -> str:
    return datetime.now(UTC).isoformat().replace("+00:00", "Z")


def _in_message(text: str) -> Body:
    return {"message": {"role": "assistant", "content": text}}


def _in_response(text: str) -> Body:
    return {"response": text}


def _counts(used: int, said: list[tuple[str, str | None]]) -> Body:
    times = {"total_duration": 3, "load_duration": 1, "prompt_eval_duration": 1, "eval_duration": 1}
    return {**times, "prompt_eval_count": used, "eval_count": len(said)}


def _details() -> Body:
    return {
        "parent_model": "", "format": "gguf", "family": "llama", "families": ["llama"],
        "parameter_size": "134.52M", "quantization_level": "F16",
    }  # fmt: skip


def _tag(model: Model) -> Body:
    shown = {"name": model.name, "model": model.name, "modified_at": _now(), "size": 64, "digest": model.digest}
    return {**shown, "details": _details(), "capabilities": ["completion"]}


def _loaded(runner: Runner) -> Body:
    until = datetime.now(UTC) + timedelta(seconds=min(runner.expires_at - time.monotonic(), 9e9))
    shown = {"name": runner.name, "model": runner.name, "size": 382027692, "digest": runner.digest}
    times = {"expires_at": until.isoformat(), "size_vram": 0, "context_length": runner.num_ctx}
    return {**shown, "details": _details(), **times}


ROUTES: dict[str, tuple[tuple[str, ...], Callable[[Handler], None]]] = {
    "/": (("GET", "HEAD"), Handler.root),
    "/api/version": (("GET", "HEAD"), Handler.version),
    "/api/tags": (("GET", "HEAD"), Handler.tags),
    "/api/ps": (("GET",), Handler.ps),
    "/api/show": (("POST",), Handler.show),
    "/api/create": (("POST",), Handler.create),
    "/api/pull": (("POST",), Handler.pull),
    "/api/copy": (("POST",), Handler.copy),
    "/api/delete": (("DELETE",), Handler.delete),
    "/api/chat": (("POST",), Handler.chat),
    "/api/generate": (("POST",), Handler.generate),
    "/api/embed": (("POST",), Handler.embed),
    "/__state": (("GET",), Handler.state),
}
