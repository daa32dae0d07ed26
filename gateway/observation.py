"""What is known of one request when it is over: the one value that metrics and the access log are given."""

from __future__ import annotations

from dataclasses import dataclass, field

STATUS_CLIENT_GONE = 499
"""nginx's number for a client that left before its answer; nobody is ever sent it."""


SHORT_HASH = 12
"""Digits of a contract's hash in logs and headers; `/v1/models` has all of it."""


@dataclass(slots=True)
class Observation:
    """Filled in as a request goes its way. Times are seconds of `time.perf_counter`; None means it never got there."""

    request_id: str
    endpoint: str
    received_at: float
    caller: str = "-"
    model: str | None = None
    """The configured name, never the client's spelling: what a client invents must not reach a metric label."""
    engine: str | None = None
    backend: str | None = None
    """The one that served it, of a model that has several."""
    contract: str | None = None
    """The hash of the contract that its prompt was made under, whole."""
    prompt_mode: str | None = None
    """Who made the prompt: native, tokens, text; ``unproven`` where it was served nevertheless."""
    is_stream: bool = False
    status: int = 0
    error: str | None = None
    phase: str = "admit"
    """Where it was when it ended: admit, read, resolve, enforce, lease, forward, relay, done."""
    waited_s: float = 0.0
    """In the queue of a backend that was not READY, and with one that failed before the request moved to another."""
    sent_at: float | None = None
    first_byte_at: float | None = None
    """The first piece of a stream, or the whole of another answer, in our hands."""
    relayed_at: float | None = None
    """The first piece of the answer handed to the client's connection."""
    first_token_at: float | None = None
    ended_at: float = 0.0
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    upstream_error: str | None = field(default=None)

    @property
    def duration_s(self) -> float:
        """From the request's head to its end."""
        return self.ended_at - self.received_at

    @property
    def ttft_s(self) -> float | None:
        """From the request's head to the first non-empty delta of a stream."""
        return self.first_token_at - self.received_at if self.first_token_at is not None else None

    @property
    def overhead_s(self) -> float | None:
        """What the gateway itself added to the time to the first byte: all but the queue and the engine."""
        if self.sent_at is None or self.first_byte_at is None or self.relayed_at is None:
            return None
        return (self.sent_at - self.received_at - self.waited_s) + (self.relayed_at - self.first_byte_at)


def log_line(seen: Observation) -> str:
    """One request as one ``key=value`` line. No header, no prompt, no key."""
    fields: dict[str, object] = {
        "id": seen.request_id,
        "key": seen.caller,
        "endpoint": seen.endpoint,
        "model": seen.model or "-",
        "engine": seen.engine or "-",
        **({"backend": seen.backend} if seen.backend is not None else {}),
        **({"contract": seen.contract[:SHORT_HASH]} if seen.contract is not None else {}),
        **({"prompt": seen.prompt_mode} if seen.prompt_mode is not None else {}),
        "stream": str(seen.is_stream).lower(),
        "status": seen.status,
        "ms": f"{seen.duration_s * 1000:.1f}",
    }
    if seen.waited_s >= 0.001:
        fields["queue_ms"] = f"{seen.waited_s * 1000:.1f}"
    if seen.ttft_s is not None:
        fields["ttft_ms"] = f"{seen.ttft_s * 1000:.1f}"
    if seen.overhead_s is not None:
        fields["overhead_ms"] = f"{seen.overhead_s * 1000:.2f}"
    if seen.prompt_tokens is not None:
        fields["prompt_tokens"] = seen.prompt_tokens
    if seen.completion_tokens is not None:
        fields["completion_tokens"] = seen.completion_tokens
    if seen.error is not None:
        fields["error"] = seen.error
    if seen.status == STATUS_CLIENT_GONE:
        fields["left_in"] = seen.phase
    return " ".join(f"{name}={_quoted(str(value))}" for name, value in fields.items())


def _quoted(value: str) -> str:
    return value if value.isprintable() and not set(value) & set(' "=') else repr(value)
