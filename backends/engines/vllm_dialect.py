"""How vLLM's API differs from OpenAI's. Sources name files of https://github.com/vllm-project/vllm at v0.32.0."""

from __future__ import annotations

from types import MappingProxyType

from backends.dialect import COMPLETIONS, Dialect, Finish, Quirk, Unhonoured, error_form

_GUIDED = "vllm/entrypoints/serve/engine/protocol.py _REMOVED_GUIDED_FIELDS: accepted, output unconstrained; vllm#53975"
_FINISHES = "vllm/v1/engine/__init__.py FINISH_REASON_STRINGS"

DIALECT = Dialect(
    unhonoured=(
        *(Unhonoured(f"guided_{what}", _GUIDED) for what in ("json", "regex", "choice", "grammar")),
        Unhonoured(
            "best_of",
            "vllm/entrypoints/openai/completion/protocol.py: no such field, extra fields are allowed",
            harmless=(1,),
            endpoints=frozenset({COMPLETIONS}),
        ),
    ),
    answer_reasoning="reasoning",
    finishes=(
        Finish("abort", None, f"{_FINISHES}: aborted, by /abort_requests or by /sleep"),
        Finish("error", None, f"{_FINISHES}: an internal error"),
        Finish("repetition", "stop", f"{_FINISHES}: repetitive tokens detected, generation ended"),
    ),
    error_forms=(
        error_form(r"maximum context length is", source="vllm/renderers/params.py", code="context_length_exceeded"),
    ),
    quirks=MappingProxyType(
        {Quirk.ALWAYS_FINISHES: "vllm/entrypoints/openai/chat_completion/serving.py chat_completion_stream_generator"}
    ),
    sources=MappingProxyType(
        {
            "history_reasoning": "vllm/entrypoints/openai/chat_completion/protocol.py _normalize_messages_before: both",
            "answer_reasoning": "vllm/entrypoints/generate/base/protocol.py DeltaMessage.reasoning",
        }
    ),
)
