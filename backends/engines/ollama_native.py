"""OpenAI's API in Ollama's own: /api/chat, /api/generate and /api/embed. Pure, without any I/O.

Only these take ``truncate: false`` and ``shift: false``, so that nothing is cut without a word [93, 94]; only these
send a prompt as it is (``raw``) [109, 140]; and only these say within a stream that the runner died [206].

Numbers in brackets are recordings of the real server, 0.33.0-rc2; sources name files of
https://github.com/ollama/ollama at that version.
"""

from __future__ import annotations

import base64
import json
import re
import struct
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from typing import Any

from backends.adapter import Body
from backends.dialect import CHAT
from backends.engines.ollama_arrival import BOUNDS
from backends.settings import BackendSettings
from backends.translation import Translated, Untranslatable

EMBEDDINGS = "embeddings"
LINE_LIMIT_BYTES = 16 * 1024 * 1024

_OPTIONS: Mapping[str, tuple[str, type]] = {
    "max_tokens": ("num_predict", int),
    "temperature": ("temperature", float),
    "top_p": ("top_p", float),
    "top_k": ("top_k", int),
    "min_p": ("min_p", float),
    "seed": ("seed", int),
    "frequency_penalty": ("frequency_penalty", float),
    "presence_penalty": ("presence_penalty", float),
    "repetition_penalty": ("repeat_penalty", float),
}
"""Parameter -> option and its kind (api/types.go Options). A wrong kind would be answered 500 [122]."""

_EFFORTS: Mapping[str, bool | str] = {
    "none": False, "minimal": "low", "low": "low", "medium": "medium", "high": "high", "xhigh": "max", "max": "max",
}  # fmt: skip
"""reasoning_effort -> think (openai/openai.go thinkFromReasoningEffort)."""

_DATA_URL = re.compile(r"data:(?:image/(?:jpeg|jpg|png|webp))?;base64,(?P<data>[A-Za-z0-9+/=\s]+)", re.ASCII)
_DONE = b"data: [DONE]\n\n"


def translate(backend: BackendSettings, endpoint: str, body: Body) -> Translated:
    """A request to *endpoint* in Ollama's API. Raises Untranslatable."""
    if endpoint == EMBEDDINGS:
        return _embeddings(backend, body)
    asked: Body = {"model": body["model"], "stream": bool(body.get("stream")), **BOUNDS}
    asked["options"] = _options(backend, body)
    asked.update(_format(body))
    if endpoint == CHAT:
        asked["messages"] = _messages(body.get("messages"))
        asked.update(_reasoning(body))
        if body.get("tools"):
            asked["tools"] = body["tools"]
        if body.get("logprobs"):
            asked["logprobs"] = True
            asked["top_logprobs"] = _number(body, "top_logprobs", int, 0)
        return Translated("/api/chat", asked, _Answer(_chat_shape, bool(asked["stream"])))
    asked["prompt"] = _prompt(body.get("prompt"))
    asked["raw"] = True
    if body.get("logprobs") is not None:
        asked["logprobs"] = True
        asked["top_logprobs"] = _number(body, "logprobs", int, 0)
    return Translated("/api/generate", asked, _Answer(_completion_shape, bool(asked["stream"])))


# requests


def _options(backend: BackendSettings, body: Body) -> Body:
    """The options of one request: never num_ctx, which would load the model anew [210].

    Without max_tokens an answer may fill the context and no more, where Ollama lets it go on for ten times that
    (llm/llama_server.go boundedNumPredict).
    """
    options: Body = {}
    if "num_predict" not in backend.args and backend.context_length is not None:
        options["num_predict"] = backend.context_length
    for name, (option, kind) in _OPTIONS.items():
        if name in body:
            options[option] = _number(body, name, kind, 0)
    stop = body.get("stop")
    if stop is not None:
        stops = [stop] if isinstance(stop, str) else stop
        if not isinstance(stops, list) or not all(isinstance(item, str) for item in stops):
            raise _wrong("stop", "must be text, or a list of texts")
        options["stop"] = stops
    return options


def _number(body: Body, name: str, kind: type, otherwise: int) -> Any:
    value = body.get(name, otherwise)
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or (kind is int and value != int(value)):
        raise _wrong(name, "must be a whole number" if kind is int else "must be a number")
    return kind(value)


def _format(body: Body) -> Body:
    wanted = body.get("response_format")
    if wanted is None:
        return {}
    kind = wanted.get("type") if isinstance(wanted, dict) else None
    if kind == "text":
        return {}
    if kind == "json_object":
        return {"format": "json"}
    schema = (wanted.get("json_schema") or {}).get("schema") if kind == "json_schema" else None
    if isinstance(schema, dict):
        return {"format": schema}
    raise _wrong("response_format", 'must be of type "text", "json_object", or "json_schema" with a schema')


def _reasoning(body: Body) -> Body:
    effort = body.get("reasoning_effort")
    if isinstance(body.get("reasoning"), dict):
        effort = body["reasoning"].get("effort", effort)
    if effort is not None:
        if effort not in _EFFORTS:
            raise _wrong("reasoning_effort", f"must be one of {', '.join(_EFFORTS)}")
        return {"think": _EFFORTS[effort]}
    variables = body.get("chat_template_kwargs") or {}
    others = sorted(set(variables) - {"enable_thinking"}) if isinstance(variables, dict) else ["of this kind"]
    if others:
        raise Untranslatable(
            f"Ollama passes no template variables on but enable_thinking; remove {', '.join(others)}",
            param="chat_template_kwargs",
            code="unsupported_parameter",
        )
    return {"think": bool(variables["enable_thinking"])} if variables else {}


def _messages(given: object) -> list[Body]:
    if not isinstance(given, list) or not given:
        raise _wrong("messages", "must be a list of messages, with one at least")
    names: dict[str, str] = {}
    return [_message(message, index, names) for index, message in enumerate(given)]


def _message(message: object, index: int, names: dict[str, str]) -> Body:
    """One message. *names*: tool call id -> function, of the calls so far."""
    where = f"messages[{index}]"
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        raise _wrong("messages", f"must hold objects with a role; {where} is none")
    # OpenAI's newer word. Ollama renders a role that it does not know as it is [119].
    role = "system" if message["role"] == "developer" else message["role"]
    content, images = _content(message.get("content"), where)
    calls = message.get("tool_calls") or []
    if message.get("content") is None and not calls:
        raise _wrong("messages", f"must have a content; {where} has none")
    told: Body = {"role": role, "content": content}
    if images:
        told["images"] = images
    if message.get("reasoning"):
        told["thinking"] = message["reasoning"]
    if calls:
        told["tool_calls"] = [_call(call, where, names) for call in calls]
    if role == "tool":
        call_id = message.get("tool_call_id")
        told["tool_call_id"] = call_id
        told["tool_name"] = message.get("name") or names.get(str(call_id), "")
    return told


def _content(content: object, where: str) -> tuple[str, list[str]]:
    """Text and images of a content; several texts are lines, as vLLM and llama.cpp have it.

    /v1 would make a message of each part (openai/openai.go FromChatRequest).
    """
    if content is None or isinstance(content, str):
        return content or "", []
    if not isinstance(content, list):
        raise _wrong("messages", f"must have a content that is text or a list of parts; that of {where} is neither")
    texts, images = [], []
    for part in content:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind == "text" and isinstance(part.get("text"), str):
            texts.append(part["text"])
        elif kind == "image_url":
            images.append(_image(part["image_url"], where))
        else:
            raise Untranslatable(
                f"a part of {where} is neither text nor an image: Ollama takes no other",
                param="messages",
                code="unsupported_content",
            )
    return "\n".join(texts), images


def _image(given: object, where: str) -> str:
    url = given.get("url") if isinstance(given, dict) else given
    found = _DATA_URL.fullmatch(url) if isinstance(url, str) else None
    if found is None:
        is_address = isinstance(url, str) and url.startswith(("http://", "https://"))
        what = f"is at an address ({str(url)[:100]}), and nothing is fetched" if is_address else "cannot be read"
        raise Untranslatable(
            f"an image of {where} {what}: send it as data:image/png;base64,... (png, jpeg or webp)",
            param="messages",
            code="invalid_image_url",
        )
    return found["data"]


def _call(call: object, where: str, names: dict[str, str]) -> Body:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(call, dict) or not isinstance(function, dict):
        raise _wrong("messages", f"must hold calls of functions; a tool call of {where} is none")
    arguments = function.get("arguments") or "{}"
    try:
        parsed = json.loads(arguments) if isinstance(arguments, str) else arguments
    except ValueError:
        parsed = None
    if not isinstance(parsed, dict):
        raise _wrong("messages", f"must hold calls whose arguments are a JSON object; those in {where} are not")
    name = str(function.get("name") or "")
    names[str(call.get("id"))] = name
    return {"id": str(call.get("id") or ""), "function": {"name": name, "arguments": parsed}}


def _prompt(given: object) -> str:
    prompt = given[0] if isinstance(given, list) and len(given) == 1 else given
    if not isinstance(prompt, str):
        raise _wrong("prompt", "must be one text: Ollama takes no tokens, and one prompt at a time")
    if not prompt:
        raise _wrong("prompt", "must not be empty")  # an empty one would only load the model
    return prompt


def _embeddings(backend: BackendSettings, body: Body) -> Translated:
    if backend.readiness != "embed":
        raise Untranslatable(
            "this model gives no embeddings (its operator can serve an embedding model with readiness: embed)",
            code="endpoint_not_supported",
        )
    given = body.get("input")
    texts = [given] if isinstance(given, str) else given
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) and text for text in texts):
        # One empty text would be answered with no embedding at all (server/routes.go EmbedHandler).
        raise _wrong("input", "must be a text that is not empty, or a list of such: Ollama takes no tokens")
    asked: Body = {"model": body["model"], "input": texts, "truncate": False, "keep_alive": -1}
    if "dimensions" in body:
        asked["dimensions"] = _number(body, "dimensions", int, 0)
    form = body.get("encoding_format", "float")
    if form not in ("float", "base64"):
        raise _wrong("encoding_format", "must be float or base64")
    return Translated("/api/embed", asked, _EmbeddingAnswer(as_base64=form == "base64"))


def _wrong(param: str, what: str) -> Untranslatable:
    return Untranslatable(f"{param} {what}", param=param, code="invalid_type")


# answers


class _EmbeddingAnswer:
    """The answer of /api/embed."""

    is_stream = False

    def __init__(self, *, as_base64: bool) -> None:
        self._as_base64 = as_base64

    def whole(self, body: bytes) -> bytes:
        """OpenAI's list of embeddings. Raises Untranslatable."""
        answer = _object(body)
        rows = answer.get("embeddings") if answer else None
        if answer is None or not isinstance(rows, list):
            raise Untranslatable("the backend's embeddings cannot be read")
        data = [{"object": "embedding", "index": at, "embedding": self._shown(row)} for at, row in enumerate(rows)]
        count = answer.get("prompt_eval_count", 0)
        usage = {"prompt_tokens": count, "total_tokens": count}
        return _dump({"object": "list", "data": data, "model": answer.get("model"), "usage": usage})

    def feed(self, chunk: bytes) -> bytes:
        """There are no streams of embeddings."""
        raise AssertionError("an embedding was streamed")

    def _shown(self, row: list[float]) -> Any:
        return base64.b64encode(struct.pack(f"<{len(row)}f", *row)).decode() if self._as_base64 else row


_Shape = Callable[["_Answer", Body, bool], Iterator[Body]]
"""An answer's state, one of its lines, and whether it stands for the whole -> the choices that OpenAI would send."""


class _Answer:
    """The answer of /api/chat or /api/generate: NDJSON, cut anywhere, or one object. One of them for each answer."""

    def __init__(self, shape: _Shape, is_stream: bool) -> None:
        self.is_stream = is_stream
        self.calls = 0
        """Tool calls so far."""
        self.has_role = False
        self.text_length = 0
        """Characters of text so far."""
        self._shape = shape
        self._pending = bytearray()
        self._is_over = False

    def whole(self, body: bytes) -> bytes:
        """OpenAI's completion. Raises Untranslatable."""
        line = _object(body)
        if line is None or line.get("done") is not True:
            raise Untranslatable("the backend's answer cannot be read, or is not complete")
        choice = next(self._shape(self, line, True))
        choice["finish_reason"] = self._reason(line)
        return _dump({**_head(line, _KINDS[self._shape][0]), "choices": [choice], "usage": _usage(line)})

    def feed(self, chunk: bytes) -> bytes:
        """The events of the lines that *chunk* completes. What cannot be read becomes an error event, the last one."""
        if self._is_over:
            return b""
        *lines, rest = (
            (bytes(self._pending) + chunk).split(b"\n") if b"\n" in chunk else (bytes(self._pending + chunk),)
        )
        self._pending = bytearray(rest)
        events = b"".join(self._events(line) for line in lines if line.strip())
        if len(self._pending) > LINE_LIMIT_BYTES and not self._is_over:
            return events + self._fail("the backend sent a line longer than any should be")
        return events

    def _events(self, raw: bytes) -> bytes:
        if self._is_over:
            return b""
        line = _object(raw)
        if line is None:
            return self._fail("the backend sent a line that is not JSON")
        if line.get("error"):
            return self._fail(str(line["error"]))
        head = _head(line, _KINDS[self._shape][1])
        events = b"".join(_event({**head, "choices": [choice]}) for choice in self._shape(self, line, False))
        if line.get("done") is not True:
            return events
        self._is_over = True
        last = {**_KINDS[self._shape][2], "index": 0, "finish_reason": self._reason(line)}
        return (
            events
            + _event({**head, "choices": [last]})
            + _event({**head, "choices": [], "usage": _usage(line)})
            + _DONE
        )

    def _fail(self, message: str) -> bytes:
        self._is_over = True
        return _event({"error": {"message": message, "type": "api_error", "param": None, "code": None}})

    def _reason(self, line: Body) -> str:
        reason = str(line.get("done_reason") or "stop")
        return "tool_calls" if reason == "stop" and self.calls else reason


def _chat_shape(state: _Answer, line: Body, is_whole: bool) -> Iterator[Body]:
    message = line.get("message")
    message = message if isinstance(message, dict) else {}
    thinking, content = message.get("thinking"), message.get("content")
    calls = [_shown_call(state, call, is_whole=is_whole) for call in message.get("tool_calls") or ()]
    logprobs = {"content": [_logprob(entry) for entry in line["logprobs"]]} if line.get("logprobs") else None
    if is_whole:
        told: Body = {"role": "assistant", "content": content if content or not calls else None}
        if thinking:
            told["reasoning_content"] = thinking
        if calls:
            told["tool_calls"] = calls
        yield {"index": 0, "message": told, "logprobs": logprobs}
        return
    deltas: list[Body] = []
    if thinking:
        deltas.append({"reasoning_content": thinking})
    if content:
        deltas.append({"content": content})
    if calls:
        deltas.append({"tool_calls": calls})
    for delta in deltas:
        role = {} if state.has_role else {"role": "assistant"}
        state.has_role = True
        choice = {"index": 0, "delta": {**role, **delta}, "finish_reason": None}
        yield {**choice, "logprobs": logprobs} if logprobs else choice
        logprobs = None


def _completion_shape(state: _Answer, line: Body, is_whole: bool) -> Iterator[Body]:
    text = str(line.get("response") or "")
    entries = line.get("logprobs") or ()
    logprobs = _old_logprobs(state, entries) if entries else None
    state.text_length += len(text)
    if is_whole or text:
        yield {"index": 0, "text": text, "logprobs": logprobs, "finish_reason": None}


_KINDS: Mapping[_Shape, tuple[str, str, Body]] = {
    _chat_shape: ("chat.completion", "chat.completion.chunk", {"delta": {}}),
    _completion_shape: ("text_completion", "text_completion", {"text": ""}),
}
"""The object's name, whole and in a stream, and what an empty choice of a stream holds."""


def _shown_call(state: _Answer, call: Body, *, is_whole: bool) -> Body:
    function = call.get("function") or {}
    index = state.calls
    state.calls += 1
    arguments = json.dumps(function.get("arguments") or {}, ensure_ascii=False, separators=(",", ":"))
    told = {"name": function.get("name"), "arguments": arguments}
    shown: Body = {"id": call.get("id") or f"call_{index}", "type": "function", "function": told}
    return shown if is_whole else {"index": index, **shown}


def _logprob(entry: Body) -> Body:
    return {"bytes": None, **entry, "top_logprobs": [{"bytes": None, **top} for top in entry.get("top_logprobs") or ()]}


def _old_logprobs(state: _Answer, entries: Any) -> Body:
    """The logprobs of a completion: columns, not rows."""
    tokens = [entry["token"] for entry in entries]
    offsets, at = [], state.text_length
    for token in tokens:
        offsets.append(at)
        at += len(token)
    return {
        "tokens": tokens,
        "token_logprobs": [entry["logprob"] for entry in entries],
        "top_logprobs": [
            {top["token"]: top["logprob"] for top in entry.get("top_logprobs") or ()} for entry in entries
        ],
        "text_offset": offsets,
    }


def _head(line: Body, kind: str) -> Body:
    # Native answers have no id; the gateway gives them its own.
    return {"id": "", "object": kind, "created": _seconds(line.get("created_at")), "model": line.get("model")}


def _seconds(created_at: object) -> int:
    try:
        return int(datetime.fromisoformat(str(created_at)).timestamp())
    except ValueError:
        return 0


def _usage(line: Body) -> Body:
    prompt, said = line.get("prompt_eval_count", 0), line.get("eval_count", 0)
    return {"prompt_tokens": prompt, "completion_tokens": said, "total_tokens": prompt + said}


def _object(raw: bytes) -> Body | None:
    try:
        parsed = json.loads(raw)
    except ValueError:
        return None
    return parsed if isinstance(parsed, dict) else None


def _event(value: Body) -> bytes:
    return b"data: " + _dump(value) + b"\n\n"


def _dump(value: Body) -> bytes:
    # A lone half of a surrogate pair, as a model may say, stays the escape that it came as.
    return json.dumps(value, separators=(",", ":")).encode()
