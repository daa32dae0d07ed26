"""The JSON bodies of the OpenAI surface, in the shapes engines give them."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Generation:
    """One generation asked for: *chat* or plain text, so many *tokens*, one word each."""

    model: str
    chat: bool
    tokens: int
    prompt_tokens: int
    is_streamed: bool
    include_usage: bool
    finish_reason: str
    said: str = "word"
    prompt_ids: tuple[int, ...] | None = None
    """Shown in the answer, as vLLM does when it is asked to."""

    @property
    def text(self) -> str:
        """The whole answer."""
        return "".join(self.words())

    def words(self) -> Iterator[str]:
        """The answer's tokens."""
        return (f"{self.said}{number} " for number in range(self.tokens))

    def usage(self) -> Json:
        """What the client is charged."""
        total = self.prompt_tokens + self.tokens
        return {"prompt_tokens": self.prompt_tokens, "completion_tokens": self.tokens, "total_tokens": total}

    def whole(self) -> Json:
        """The answer as one object."""
        content: Json = {"message": {"role": "assistant", "content": self.text}} if self.chat else {"text": self.text}
        choice = {"index": 0, **content, "logprobs": None, "finish_reason": self.finish_reason}
        ids = {"prompt_token_ids": list(self.prompt_ids)} if self.prompt_ids is not None else {}
        return {**self._head("chat.completion"), "choices": [choice], "usage": self.usage(), **ids}

    def opening(self) -> list[Json]:
        """Objects before the first token: a chat stream names the role first."""
        if not self.chat:
            return []
        ids = {"prompt_token_ids": list(self.prompt_ids)} if self.prompt_ids is not None else {}
        return [{**self._chunk({"role": "assistant", "content": ""}, "", None), **ids}]

    def piece(self, word: str) -> Json:
        """One token of a stream."""
        return self._chunk({"content": word}, word, None)

    def closing(self) -> list[Json]:
        """Objects after the last token: the reason, then the usage when it was asked for."""
        end = self._chunk({}, "", self.finish_reason)
        if not self.include_usage:
            return [end]
        return [end, {**self._head("chat.completion.chunk"), "choices": [], "usage": self.usage()}]

    def _chunk(self, delta: Json, text: str, finish_reason: str | None) -> Json:
        content: Json = {"delta": delta} if self.chat else {"text": text}
        choice = {"index": 0, **content, "logprobs": None, "finish_reason": finish_reason}
        return {**self._head("chat.completion.chunk"), "choices": [choice]}

    def _head(self, kind: str) -> Json:
        return {
            "id": "chatcmpl-fake" if self.chat else "cmpl-fake",
            "object": kind if self.chat else "text_completion",
            "created": int(time.time()),
            "model": self.model,
        }


def generation(body: Mapping[str, Any], *, chat: bool, chunks: int) -> Generation:
    """What *body* asks for: *chunks* tokens, or fewer when it sets a limit."""
    limit = body.get("max_completion_tokens") or body.get("max_tokens") or chunks
    return Generation(
        model=str(body.get("model", "")),
        chat=chat,
        tokens=min(chunks, int(limit)),
        prompt_tokens=len(token_ids(body)),
        is_streamed=bool(body.get("stream")),
        include_usage=bool((body.get("stream_options") or {}).get("include_usage")),
        finish_reason="length" if int(limit) < chunks else "stop",
    )


def token_ids(body: Mapping[str, Any]) -> list[int]:
    """One token per word of the prompt or of the messages, numbered by its length."""
    if "messages" in body:
        texts = [str(message.get("content", "")) for message in body["messages"]]
    else:
        prompt = body.get("prompt", body.get("content", body.get("input", "")))
        texts = [str(item) for item in prompt] if isinstance(prompt, list) else [str(prompt)]
    return [len(word) for text in texts for word in text.split()]


def embeddings(body: Mapping[str, Any]) -> Json:
    """Four numbers per input."""
    given = body.get("input", "")
    inputs = given if isinstance(given, list) else [given]
    rows = [{"object": "embedding", "index": i, "embedding": [0.1, 0.2, 0.3, 0.4]} for i in range(len(inputs))]
    count = len(token_ids(body))
    usage = {"prompt_tokens": count, "total_tokens": count}
    return {"object": "list", "data": rows, "model": body.get("model", ""), "usage": usage}


def models(model: str) -> Json:
    """The one model served."""
    entry = {"id": model, "object": "model", "created": 0, "owned_by": "fake", "max_model_len": 4096}
    return {"object": "list", "data": [entry]}


def error(shape: str, status: int, message: str) -> Json | str:
    """An error body. ``vllm``: vllm/entrypoints/openai/engine/protocol.py, 0.32.0; ``lmdeploy``: flat, as
    lmdeploy/serve/openai/protocol.py ErrorResponse; ``string``: as vLLM's 401 and Ollama's own routes; ``text``: as
    Starlette's 500."""
    kind = "BadRequestError" if status < HTTPStatus.INTERNAL_SERVER_ERROR else "InternalServerError"
    if shape == "vllm":
        return {"error": {"message": message, "type": kind, "param": None, "code": status}}
    if shape == "lmdeploy":
        return {"object": "error", "message": message, "type": kind, "param": None, "code": status}
    return {"error": message} if shape == "string" else message
