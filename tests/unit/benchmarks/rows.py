"""Rows as a run would have written them, for tests of what is made of them."""

from __future__ import annotations

from typing import Any

from benchmarks.records import MEASURED, Row


def row(
    index: int = 0, sent: float = 0.0, *, first: float = 0.1, tokens: int = 11, gap: float = 0.01, **given: Any
) -> Row:
    """A good streamed answer: sent at *sent*, its first token *first* later, then one each *gap*."""
    end = sent + first + (tokens - 1) * gap
    fields: dict[str, Any] = {
        "index": index,
        "turn": 0,
        "is_last_turn": True,
        "phase": MEASURED,
        "session": 0,
        "prompt": f"synthetic:{index + 1}",
        "intended": sent,
        "held": 0.0,
        "sent": sent,
        "end": end,
        "in_flight": 1,
        "status": 200,
        "first_byte": sent + first,
        "first_chunk": sent + first,
        "first_token": sent + first,
        "first_output": sent + first,
        "last_chunk": end,
        "wanted_tokens": tokens,
        "prompt_tokens": 20,
        "output_tokens": tokens,
        "finish_reason": "length",
        "model": "m",
        "token_us": (round(first * 1e6), *[round(gap * 1e6)] * (tokens - 1)),
        "token_chars": (4,) * tokens,
    }
    return Row(**{**fields, **given})


def failed(index: int = 0, sent: float = 0.0, kind: str = "http", **given: Any) -> Row:
    """A request that failed after a second."""
    nothing = dict.fromkeys(
        ("first_chunk", "first_token", "first_output", "last_chunk", "finish_reason", "output_tokens")
    )
    return row(
        index, sent, **{**nothing, "end": sent + 1, "token_us": (), "error_kind": kind, "error_text": "no", **given}
    )
