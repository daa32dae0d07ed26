"""The readiness probe of every engine that speaks the OpenAI API below ``/v1`` and answers ``GET /health``."""

from __future__ import annotations

from typing import Any

from backends.adapter import Call, Probe
from backends.settings import BackendSettings


def openai_probe(backend: BackendSettings) -> Probe:
    """One real token, or one embedding for a backend whose readiness says so."""
    health = Call("GET", "/health")
    if backend.readiness == "embed":
        body: dict[str, Any] = {"model": backend.model_name, "input": "Hi"}
        return Probe(health, Call("POST", "/v1/embeddings", body), ("data", 0, "embedding", 0))
    # max_tokens is said, because LMDeploy has no default for it and would run to the end of its context (0.18.0).
    body = {"model": backend.model_name, "prompt": "Hi", "max_tokens": 1, "temperature": 0}
    return Probe(health, Call("POST", "/v1/completions", body), ("choices", 0, "text"))
