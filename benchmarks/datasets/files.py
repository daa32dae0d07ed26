"""Reading files of prompts: JSON, JSON lines, plain text. Every complaint names the file and the line."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.conversations import Conversation, Message
from benchmarks.errors import BenchmarkError

ROLES = ("system", "developer", "user", "assistant", "tool")


@dataclass(frozen=True, slots=True)
class Record:
    """One record of a file. ``place``: ``FILE:LINE``, or ``FILE: item 3`` of a JSON array."""

    place: str
    fields: dict[str, Any]

    def problem(self, text: str) -> BenchmarkError:
        """An error about this record."""
        return BenchmarkError(f"{self.place}: {text}")

    def text(self, name: str | None) -> str:
        """A text field; empty without it. Raises BenchmarkError when it is something else."""
        value = self.fields.get(name) if name is not None else None
        if value is None:
            return ""
        if not isinstance(value, str):
            raise self.problem(f"{name}: has to be text")
        return value

    def sequence(self, name: str | None, *, is_needed: bool = False) -> list[Any]:
        """A field that is an array; empty without it. Raises BenchmarkError."""
        value = self.fields.get(name) if name is not None else None
        if value is None and not is_needed:
            return []
        if not isinstance(value, list):
            raise self.problem(f"{name}: missing, or not an array")
        return value


def read_text(path: Path) -> str:
    """The content of *path*. Raises BenchmarkError."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as problem:
        raise BenchmarkError(f"{path}: not UTF-8 ({problem.reason} at byte {problem.start})") from problem
    except OSError as problem:
        raise BenchmarkError(f"{path}: {problem.strerror or problem}") from problem


def read_records(path: Path) -> list[Record]:
    """The objects of a JSON array or of JSON lines. Raises BenchmarkError."""
    content = read_text(path)
    if content.lstrip().startswith("["):
        try:
            items = json.loads(content)
        except ValueError as problem:
            line = getattr(problem, "lineno", 1)
            raise BenchmarkError(f"{path}:{line}: not JSON: {problem}") from problem
        records = [(f"{path}: item {number}", item) for number, item in enumerate(items, 1)]
    else:
        records = list(_json_lines(path, content))
    for place, item in records:
        if not isinstance(item, dict):
            raise BenchmarkError(f"{place}: not a JSON object")
    return [Record(place, item) for place, item in records]


def _json_lines(path: Path, content: str) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(content.split("\n"), 1):
        if not line.strip():
            continue
        try:
            yield f"{path}:{number}", json.loads(line)
        except ValueError as problem:
            raise BenchmarkError(f"{path}:{number}: not JSON: {problem}") from problem


def conversation(record: Record, said: Sequence[Message], turns: str) -> Conversation | None:
    """The conversation *said*, of which is asked: its ``first`` question, its ``last`` with all before it, or ``all``.

    The answers in *said* are left out where the server gives its own. None if nobody asks anything.
    """
    asked = [number for number, message in enumerate(said) if message["role"] == "user"]
    if not asked:
        return None
    if turns == "first":
        return Conversation(record.place, (tuple(said[: asked[0] + 1]),))
    if turns == "last":
        return Conversation(record.place, (tuple(said[: asked[-1] + 1]),))
    parts: list[tuple[Message, ...]] = []
    current: list[Message] = []
    for number, message in enumerate(said):
        if message["role"] == "assistant":
            if current and current[-1]["role"] == "user":
                parts.append(tuple(current))
                current = []
            continue
        current.append(message)
        if number == asked[-1]:
            parts.append(tuple(current))
            break
    return Conversation(record.place, tuple(parts))


def read_messages(record: Record, turns: str | None) -> Conversation | None:
    """A record of OpenAI messages, as for fine-tuning: ``{"messages": [...]}``."""
    said = record.sequence("messages", is_needed=True)
    for message in said:
        if not isinstance(message, dict) or message.get("role") not in ROLES:
            raise record.problem(f"messages: each needs a role, one of {', '.join(ROLES)}")
        if message["role"] == "user" and not isinstance(message.get("content"), str | list):
            raise record.problem("messages: a user's message needs content")
    return conversation(record, said, turns or "last")


def read_lines(path: Path) -> list[Conversation]:
    """A question per line of a text file; empty lines are none."""
    return [
        Conversation(f"{path}:{number}", (({"role": "user", "content": line.strip()},),))
        for number, line in enumerate(read_text(path).split("\n"), 1)
        if line.strip()
    ]
