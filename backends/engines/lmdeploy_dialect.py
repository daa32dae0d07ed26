"""How LMDeploy's API differs from OpenAI's. Sources name files of https://github.com/InternLM/lmdeploy at v0.18.0.

Numbers in brackets are those of tests/recordings/lmdeploy.jsonl: answers of the real server.
"""

from __future__ import annotations

from types import MappingProxyType

from backends.dialect import COMPLETIONS, Dialect, Finish, Quirk, Unhonoured, error_form

_COMPLETIONS = frozenset({COMPLETIONS})
_PENALTIES = "lmdeploy/serve/openai/protocol.py has the field, lmdeploy/messages.py GenerationConfig does not"
_FINISHES = "lmdeploy/serve/openai/protocol.py ChatCompletionResponseChoice.finish_reason"
_NO_FIELD = "lmdeploy/serve/openai/protocol.py CompletionRequest: no such field, unknown ones are ignored"
_NO_CHAT_FIELD = "lmdeploy/serve/openai/protocol.py ChatCompletionRequest: no such field, unknown ones are ignored [37]"

DIALECT = Dialect(
    unhonoured=(
        Unhonoured("presence_penalty", _PENALTIES, harmless=(0,)),
        Unhonoured("frequency_penalty", _PENALTIES, harmless=(0,)),
        Unhonoured(
            "n",
            "lmdeploy/serve/openai/endpoints/completions.py: 'Only support one here'; chat has it [23]",
            harmless=(1,),
            endpoints=_COMPLETIONS,
        ),
        Unhonoured("best_of", _NO_FIELD, harmless=(1,), endpoints=_COMPLETIONS),
        Unhonoured("logit_bias", _NO_FIELD, harmless=({},), endpoints=_COMPLETIONS),
        Unhonoured(
            "logprobs",
            "lmdeploy/serve/openai/endpoints/completions.py: always null, in a stream an exception [46]",
            endpoints=_COMPLETIONS,
        ),
        Unhonoured("echo", "read and not used [46]", harmless=(False,), endpoints=_COMPLETIONS),
        Unhonoured("suffix", "read and not used", harmless=("",), endpoints=_COMPLETIONS),
        *(Unhonoured(f"guided_{what}", _NO_CHAT_FIELD) for what in ("json", "regex", "choice", "grammar")),
        Unhonoured("structured_outputs", _NO_CHAT_FIELD),
        Unhonoured("response_format", _NO_FIELD, harmless=({"type": "text"},), endpoints=_COMPLETIONS),
        Unhonoured("stop_token_ids", _NO_CHAT_FIELD, harmless=([],)),
    ),
    history_reasoning="reasoning_content",
    finishes=(
        Finish("abort", None, f"{_FINISHES}: by /abort_request [157, 159] and by /sleep [161]"),
        Finish("error", None, _FINISHES),
        Finish("parse_error", "stop", f"{_FINISHES}: the model ended, its tool call could not be parsed"),
    ),
    error_forms=(
        error_form(
            r"must be smaller than the model context length",
            source="[104, 105, 107]",
            code="context_length_exceeded",
        ),
        error_form(r"^invalid_request_error: (?P<param>[a-z_]+)(\.[\w.]+)?: ", source="pydantic's texts [10, 11, 32]"),
        error_form(
            r"^invalid_request_error: The (?P<param>[a-z_]+) \S+ must be",
            source="lmdeploy/serve/openai/chat_completions/validation.py check_request [29, 30, 31]",
        ),
    ),
    quirks=MappingProxyType(
        {
            Quirk.IDS_COLLIDE: "completions: the session's id, '-1' unless the client names one [41, 154]",
            Quirk.ROLE_REPEATED: "every delta of a chat stream [4, 7]",
            Quirk.STRAY_USAGE: "'usage': null on every chunk of a stream with include_usage [5]",
            Quirk.ALWAYS_FINISHES: "[4, 24, 42]; an engine that died says so in an error event [111, 147]",
        }
    ),
    sources=MappingProxyType(
        {
            "history_reasoning": "messages go to the chat template as they are; models' templates read this name",
            "answer_reasoning": "lmdeploy/serve/openai/protocol.py DeltaMessage [118, 119]",
        }
    ),
)
