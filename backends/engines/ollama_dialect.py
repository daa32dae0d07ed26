"""How Ollama's /v1 differs from OpenAI's. Sources name files of https://github.com/ollama/ollama at v0.33.0-rc2.

Numbers in brackets are those of tests/recordings/ollama.jsonl: answers of the real server.
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
_NO_FIELD = "openai/openai.go ChatCompletionRequest, CompletionRequest: no such field, unknown ones are ignored"
_LOADED = "server/routes.go GenerateHandler: an empty prompt only loads the model, nothing is generated"

DIALECT = Dialect(
    renamed=(Renamed("max_completion_tokens", "max_tokens", f"{_NO_FIELD} [56]: asked for 4 tokens, got 26"),),
    unhonoured=(
        Unhonoured("n", f"{_NO_FIELD} [57]", harmless=(1,)),
        Unhonoured("best_of", _NO_FIELD, harmless=(1,), endpoints=_COMPLETIONS),
        Unhonoured("tool_choice", f"{_NO_FIELD} [213]", harmless=("auto",), endpoints=_CHAT),
        Unhonoured("parallel_tool_calls", _NO_FIELD, harmless=(True,), endpoints=_CHAT),
        Unhonoured("logit_bias", _NO_FIELD, harmless=({},)),
        Unhonoured("logprobs", "openai/openai.go ToCompletion: asked of the runner, left out", endpoints=_COMPLETIONS),
        Unhonoured("echo", _NO_FIELD, harmless=(False,), endpoints=_COMPLETIONS),
        Unhonoured("response_format", _NO_FIELD, harmless=({"type": "text"},), endpoints=_COMPLETIONS),
        Unhonoured("top_k", _NO_FIELD),
        Unhonoured("min_p", _NO_FIELD, harmless=(0,)),
        Unhonoured("repetition_penalty", _NO_FIELD, harmless=(1,)),
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
            r"exceed_context_size_error|exceeds maximum context length",
            source="llama-server's error as a text, server/routes.go EmbedHandler [139]",
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
