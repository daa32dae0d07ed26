"""The engines there are: one adapter each, independent of one another."""

from __future__ import annotations

from collections.abc import Mapping

from backends.adapter import Adapter
from backends.engines.external import External
from backends.engines.llamacpp import LlamaCpp
from backends.engines.lmdeploy import LmDeploy
from backends.engines.ollama import Ollama
from backends.engines.vllm import Vllm

ADAPTERS: Mapping[str, Adapter] = {
    adapter.engine: adapter for adapter in (Vllm(), LmDeploy(), Ollama(), LlamaCpp(), External())
}
