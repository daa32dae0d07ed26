"""How Ollama differs from OpenAI. Sources name files of https://github.com/ollama/ollama at v0.33.0-rc2.

Requests go to its native API, through `ollama_native`, so what is refused here is what that cannot say. Answers of its
/v1 are known here too, for an Ollama that is reached as an external server. Numbers in brackets are those of
tests/recordings/ollama.jsonl and ollama_native.jsonl: answers of the real server.
"""

from __future__ import annotations

from types import MappingProxyType

from backends.dialect import (
    CHAT,
    COMPLETIONS,
    AtLeast,
    Dialect,
    Finish,
    Quirk,
    Renamed,
    Unhonoured,
    Withheld,
    error_form,
)

_CHAT, _COMPLETIONS = frozenset({CHAT}), frozenset({COMPLETIONS})
_NO_FIELD = "api/types.go ChatRequest, GenerateRequest, Options: no such field; openai/openai.go has none either"
_LOADED = "server/routes.go GenerateHandler: an empty prompt only loads the model, nothing is generated"

DIALECT = Dialect(
    renamed=(
        Renamed("max_completion_tokens", "max_tokens", "one option for both: num_predict; /v1 ignores this name [56]"),
    ),
    unhonoured=(
        Unhonoured("n", f"{_NO_FIELD} [57]", harmless=(1,)),
        Unhonoured("best_of", _NO_FIELD, harmless=(1,), endpoints=_COMPLETIONS),
        Unhonoured("tool_choice", f"{_NO_FIELD} [213]", harmless=("auto",), endpoints=_CHAT),
        Unhonoured("parallel_tool_calls", _NO_FIELD, harmless=(True,), endpoints=_CHAT),
        Unhonoured("logit_bias", _NO_FIELD, harmless=({},)),
        Unhonoured("echo", _NO_FIELD, harmless=(False,), endpoints=_COMPLETIONS),
        Unhonoured("suffix", "a prompt that is sent as it is takes none", harmless=("",), endpoints=_COMPLETIONS),
        Unhonoured("functions", _NO_FIELD, harmless=([],), endpoints=_CHAT),
        Unhonoured("function_call", _NO_FIELD, harmless=("none",), endpoints=_CHAT),
        Unhonoured("continue_final_message", _NO_FIELD, harmless=(False,), endpoints=_CHAT),
        Unhonoured("add_generation_prompt", _NO_FIELD, harmless=(True,), endpoints=_CHAT),
        Unhonoured("ignore_eos", _NO_FIELD, harmless=(False,)),
        Unhonoured("min_tokens", _NO_FIELD, harmless=(0,)),
        Unhonoured("stop_token_ids", _NO_FIELD, harmless=([],)),
        *(Unhonoured(f"guided_{what}", _NO_FIELD) for what in ("json", "regex", "choice", "grammar")),
        Unhonoured("structured_outputs", _NO_FIELD),
    ),
    withheld=(
        Withheld(
            "tool_choice",
            "none",
            ("tool_choice", "tools", "parallel_tool_calls"),
            f"{_NO_FIELD}: tools it is given, the model may call",
            _CHAT,
        ),
    ),
    minimums=(
        AtLeast("max_tokens", 1, "openai/openai.go num_predict: 0 and less is no limit [83, 84]"),
        AtLeast("max_completion_tokens", 1, "as max_tokens, whose name it gets"),
    ),
    history_reasoning="reasoning",
    answer_reasoning="reasoning",
    finishes=(Finish("load", "stop", _LOADED), Finish("unload", "stop", _LOADED)),
    error_forms=(
        error_form(
            r"exceed_context_size_error|exceeds maximum context length|longer than the context length|"
            r"exceeds the context length",
            source="llama-server's error as a text [94], llm/llama_server.go, server/routes.go EmbedHandler [139]",
            code="context_length_exceeded",
        ),
        error_form(
            r"cannot unmarshal .* into Go struct field \w+\.(?P<param>\w+)",
            source="encoding/json UnmarshalTypeError [79, 81, 82, 144]",
            code="invalid_type",
        ),
        error_form(r"is too short - '(?P<param>\w+)'", source="middleware/openai.go ChatMiddleware [77, 78]"),
        error_form(r"maximum pending requests exceeded", source="server/sched.go ErrMaxQueue [205]", code="queue_full"),
    ),
    quirks=MappingProxyType(
        {
            Quirk.IDS_COLLIDE: "middleware/openai.go: chatcmpl- or cmpl- and a number below 999 [52, 141]",
            Quirk.STRAY_USAGE: "middleware/openai.go CompleteWriter: zeros on every chunk [141]",
            Quirk.ALWAYS_FINISHES: (
                "middleware/openai.go writeResponse: a runner's error is read as an empty chunk [206]"
            ),
        }
    ),
    sources=MappingProxyType(
        {
            "history_reasoning": "openai/openai.go Message.Reasoning",
            "answer_reasoning": "openai/openai.go Delta.Reasoning",
        }
    ),
)
