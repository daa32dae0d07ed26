"""A request to a model with a contract: what it may say, what it is made of, and in which ways it may be asked. Pure.

A contract is only as good as its narrowest door: whatever of a request can change a prompt is either the contract's to
decide, or is refused by name. So the parameters that pass are listed, and not those that do not.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from backends.dialect import CHAT, GENERATION, Dialect
from backends.prompting import ModeChoice, Prompting
from chat_templates.battery import Feature
from chat_templates.contract import Contract
from chat_templates.conversation import Conversation, ConversationInvalid, Json
from chat_templates.features import features_of
from chat_templates.messages import request_fields, ruled
from chat_templates.parity import Mode, Parity
from gateway.errors import BadRequest

_OPENAI = frozenset({
    "model", "messages", "tools", "tool_choice", "parallel_tool_calls", "stream", "stream_options", "n", "stop", "seed",
    "max_tokens", "max_completion_tokens", "temperature", "top_p", "frequency_penalty", "presence_penalty",
    "logit_bias", "logprobs", "top_logprobs", "response_format", "user", "metadata", "store", "service_tier",
    "safety_identifier", "prompt_cache_key", "prompt_cache_retention",
})  # fmt: skip
"""https://github.com/openai/openai-openapi, CreateChatCompletionRequest, without what some template may read."""

_OF_ENGINES = frozenset({
    # vLLM 0.32.0, entrypoints/openai/chat_completion/protocol.py
    "top_k", "min_p", "repetition_penalty", "length_penalty", "use_beam_search", "stop_token_ids", "ignore_eos",
    "include_stop_str_in_output", "min_tokens", "skip_special_tokens", "spaces_between_special_tokens",
    "prompt_logprobs", "logprob_token_ids", "allowed_token_ids", "bad_words", "structured_outputs", "priority",
    "request_id", "session_id", "return_tokens_as_token_ids", "return_token_ids", "return_token_offsets",
    "return_prompt_text", "cache_salt", "include_reasoning", "thinking_token_budget", "watermarking", "best_of",
    "guided_json", "guided_regex", "guided_choice", "guided_grammar",
    # LMDeploy 0.18.0, serve/openai/protocol.py
    "repetition_ngram_size", "repetition_ngram_threshold", "min_new_tokens", "return_logprob",
    # llama.cpp, tools/server/README.md, build 11434
    "typical_p", "dynatemp_range", "dynatemp_exponent", "repeat_penalty", "repeat_last_n", "mirostat", "mirostat_tau",
    "mirostat_eta", "dry_multiplier", "dry_base", "dry_allowed_length", "dry_penalty_last_n", "dry_sequence_breakers",
    "xtc_probability", "xtc_threshold", "top_n_sigma", "samplers", "min_keep", "n_probs", "n_predict", "grammar",
    "json_schema", "cache_prompt", "id_slot", "t_max_predict_ms", "timings_per_token", "return_progress",
    "post_sampling_probs", "response_fields",
})  # fmt: skip
"""What the engines know beside that, as far as it is about the answer and not about the prompt."""

_WITHOUT_EFFECT: Mapping[str, Json] = {"echo": False, "add_special_tokens": False, "functions": []}
"""What may change a prompt, and the value with which it does not."""

_VARIABLES = ("reasoning_effort", "enable_thinking")
"""Template variables that some engines take outside of ``chat_template_kwargs`` too: OpenAI's, and LMDeploy's."""

_HANDLED = frozenset({"chat_template", "chat_template_kwargs", "add_generation_prompt", "continue_final_message"})

KWARGS = "chat_template_kwargs"
PASSING = _OPENAI | _OF_ENGINES

_ALLOWED: Mapping[ModeChoice, tuple[Mode, ...]] = {
    "auto": ("native", "tokens", "text"),
    "native": ("native",),
    "strict": ("tokens", "text"),
}


@dataclass(frozen=True, slots=True)
class ContractedChat:
    """A chat as its contract has it. *body*: for an engine that renders. *variables*: those that are the client's."""

    body: dict[str, Any]
    conversation: Conversation
    variables: Mapping[str, Json] = field(default_factory=dict)

    @property
    def features(self) -> frozenset[Feature]:
        """What has to be proven for it."""
        return features_of(self.conversation)


def contracted_chat(
    body: Mapping[str, Any], contract: Contract, control_tokens: Collection[str] = (), *, may_be_closed: bool = False
) -> ContractedChat:
    """The chat *body* under *contract*.

    control_tokens: the texts that the tokenizer takes for special tokens. may_be_closed: no answer is wanted, so there
    need not be a place for one. Raises BadRequest, which names what the contract does not allow.
    """
    asked = {name: value for name, value in body.items() if value is not None}
    _refuse_what_changes_prompts(asked, contract)
    variables = _variables(asked, contract)
    if asked.get("tool_choice") == "none" or asked.get("tools") == []:
        # Some engines show tools that are not to be called, others do not; some refuse an empty list of them.
        for name in ("tools", "tool_choice", "parallel_tool_calls"):
            asked.pop(name, None)
    continues = _flag(asked, "continue_final_message", otherwise=False)
    opens = _flag(asked, "add_generation_prompt", otherwise=not continues)
    if not (opens or continues or may_be_closed):
        raise _not_allowed("add_generation_prompt", "without it there is no place for an answer")
    messages = asked.get("messages")
    if not isinstance(messages, list):
        raise BadRequest("messages must be a list of messages", param="messages", code="invalid_type")
    try:
        conversation = ruled(
            contract.messages,
            Conversation(messages, asked.get("tools"), add_generation_prompt=opens, continue_final_message=continues),
            control_tokens,
        )
    except ConversationInvalid as problem:
        raise BadRequest(str(problem), param="messages", code="invalid_messages") from problem
    for name in (*_HANDLED, *_VARIABLES, *_WITHOUT_EFFECT, "messages", "tools"):
        asked.pop(name, None)
    asked |= request_fields(conversation)
    if variables:
        asked[KWARGS] = dict(variables)
    return ContractedChat(asked, conversation, variables)


def with_contract_defaults(
    body: Mapping[str, Any], contract: Contract, dialect: Dialect, endpoint: str
) -> dict[str, Any]:
    """*body* with the contract's sampling where the client says nothing of it, and, for a chat, with its ends.

    Stop ids go to engines that have a field for them; the others were told at their launch. Raises BadRequest.
    """
    if endpoint not in GENERATION:
        return dict(body)
    unsaid = {name: value for name, value in contract.sampling.items() if body.get(name) is None}
    asked = {**body, **unsaid}
    if endpoint != CHAT:
        return asked
    if contract.stop.strings:
        asked["stop"] = _joined(body, "stop", contract.stop.strings)
    takes_ids = all(row.name != "stop_token_ids" or endpoint not in row.endpoints for row in dialect.unhonoured)
    if contract.stop.token_ids and takes_ids:
        asked["stop_token_ids"] = _joined(body, "stop_token_ids", contract.stop.token_ids)
    return asked


def ways(
    prompting: Prompting, parity: Parity | None, features: Collection[Feature], *, has_variables: bool
) -> tuple[Mode, ...]:
    """How a chat with *features* may be asked of an engine of which *parity* is known, the preferred way first.

    None at all: it is to be refused. has_variables: the client set some, and what is proven of an engine that renders
    was proven without them.
    """
    allowed = _ALLOWED[prompting.mode]
    if prompting.policy == "off":
        proven = allowed[:1] if prompting.mode == "auto" else allowed
    elif parity is None or parity.contract != prompting.contract.hash:
        proven = ()
    else:
        each = [parity.modes.get(feature, ()) for feature in features]
        proven = tuple(mode for mode in each[0] if mode in allowed and all(mode in modes for modes in each))
    if has_variables:
        return tuple(sorted(proven, key=lambda mode: mode == "native"))
    return proven


def allowed_modes(prompting: Prompting) -> tuple[Mode, ...]:
    """The ways that the operator allows."""
    return _ALLOWED[prompting.mode]


def unproven(prompting: Prompting, parity: Parity | None, features: Collection[Feature]) -> tuple[Feature, ...]:
    """Those of *features* that are proven in none of the allowed ways; all, where they are proven in different ones."""
    if parity is None or parity.contract != prompting.contract.hash:
        return tuple(sorted(features))
    allowed = _ALLOWED[prompting.mode]
    missing = [one for one in features if not any(mode in allowed for mode in parity.modes.get(one, ()))]
    return tuple(sorted(missing or features))


def can_refuse(contract: Contract) -> bool:
    """Whether a template of *contract* refuses some conversations, which not every engine's renderer passes on."""
    return any("raise_exception" in text for text in contract.templates.values())


def _refuse_what_changes_prompts(asked: Mapping[str, Any], contract: Contract) -> None:
    for name, value in asked.items():
        if name in PASSING or name in _HANDLED:
            continue
        if name in _WITHOUT_EFFECT and value == _WITHOUT_EFFECT[name]:
            continue
        if name in _VARIABLES:
            _check_variable(contract, name, value, name)
            continue
        raise _not_allowed(name, "it is not known to leave the prompt as it is")


def _variables(asked: Mapping[str, Any], contract: Contract) -> dict[str, Json]:
    given = asked.get(KWARGS, {})
    if not isinstance(given, dict):
        raise BadRequest(f"{KWARGS} must be an object", param=KWARGS, code="invalid_type")
    for name, value in given.items():
        _check_variable(contract, name, value, f"{KWARGS}.{name}")
    named = {name: asked[name] for name in _VARIABLES if name in asked}
    return {name: value for name, value in {**named, **given}.items() if name in contract.free}


def _check_variable(contract: Contract, name: str, value: Json, where: str) -> None:
    if name in contract.free or (name in contract.pinned and contract.pinned[name] == value):
        return
    if name in contract.pinned:
        raise _not_allowed(where, f"{name} is pinned to {contract.pinned[name]!r}")
    free = f"free are {', '.join(contract.free)}" if contract.free else "none is free"
    raise _not_allowed(where, f"{name} is no variable that a request may set ({free})")


def _not_allowed(param: str, why: str) -> BadRequest:
    message = f"leave out {param}: the prompt of this model is fixed by its contract, and {why}"
    return BadRequest(message, param=param, code="prompt_is_fixed")


def _flag(asked: Mapping[str, Any], name: str, *, otherwise: bool) -> bool:
    value = asked.get(name, otherwise)
    if not isinstance(value, bool):
        raise BadRequest(f"{name} must be true or false", param=name, code="invalid_type")
    return value


def _joined(body: Mapping[str, Any], name: str, ours: tuple[Any, ...]) -> list[Any]:
    theirs = body.get(name)
    if theirs is None:
        return list(ours)
    wanted = [theirs] if isinstance(theirs, type(ours[0])) else theirs
    if not isinstance(wanted, list) or not all(type(one) is type(ours[0]) for one in wanted):
        raise BadRequest(f"{name} must be one {type(ours[0]).__name__}, or a list", param=name, code="invalid_type")
    return [*wanted, *(one for one in ours if one not in wanted)]
