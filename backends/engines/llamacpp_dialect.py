"""How llama.cpp's API differs from OpenAI's.

"Seen" is: with build 11549 (xllamacpp 2026.10.11549). Sources name files of https://github.com/ggml-org/llama.cpp at
b11434.
"""

from __future__ import annotations

from types import MappingProxyType

from backends.dialect import COMPLETIONS, Dialect, Quirk, Renamed, Unhonoured, error_form

_COMPLETIONS = frozenset({COMPLETIONS})
_REFUSED = "tools/server/server-common.cpp oaicompat_completion_params_parse: 'Unsupported param', even for null"
_UNKNOWN = "tools/server/server-task.cpp params_from_json_cmpl: not read"

DIALECT = Dialect(
    renamed=(
        Renamed(
            "repetition_penalty",
            "repeat_penalty",
            "seen: repetition_penalty changes nothing, repeat_penalty does",
            note="it looks back over repeat_last_n tokens, 64 unless the request says otherwise, not over all",
        ),
    ),
    unhonoured=(
        Unhonoured("best_of", _REFUSED, harmless=(1,), endpoints=_COMPLETIONS),
        Unhonoured("suffix", _REFUSED, harmless=("",), endpoints=_COMPLETIONS),
        Unhonoured(
            "echo",
            "tools/server/server-common.cpp: 'Only no echo is supported'",
            harmless=(False,),
            endpoints=_COMPLETIONS,
        ),
        *(Unhonoured(f"guided_{what}", _UNKNOWN) for what in ("json", "regex", "choice", "grammar")),
        Unhonoured("structured_outputs", _UNKNOWN),
        Unhonoured("stop_token_ids", _UNKNOWN, harmless=([],)),
    ),
    history_reasoning="reasoning_content",
    error_forms=(
        error_form(
            r"^exceed_context_size_error",
            source="seen: type exceed_context_size_error, 'exceeds the available context size'",
            code="context_length_exceeded",
        ),
        error_form(r"Field '(?P<param>\w+)': ", source="seen: \"Field 'temperature': ... type must be number\""),
    ),
    quirks=MappingProxyType({Quirk.ALWAYS_FINISHES: "seen: the last chunk of each choice names one"}),
    sources=MappingProxyType(
        {
            "history_reasoning": "common/chat.cpp common_chat_msgs_parse_oaicompat",
            "answer_reasoning": "common/chat.cpp, --reasoning-format",
        }
    ),
)
