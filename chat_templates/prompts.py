"""A prompt, seen from both sides: what a contract says it is, and what an engine made of the conversation."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Prompt:
    """What a contract says. ids: with the tokenizer the contract names; None where there is none at hand."""

    text: str
    ids: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class Seen:
    """What an engine shows of a prompt, which may be any of three: its text, its ids, or only how many ids."""

    text: str | None = None
    ids: tuple[int, ...] | None = None
    count: int | None = None


@dataclass(frozen=True, slots=True)
class Refused:
    """There is no prompt: the template, or the engine, refused the conversation with *message*."""

    message: str
