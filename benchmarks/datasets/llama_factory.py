"""Datasets as LLaMA-Factory uses them: named in its dataset_info.json, with columns and tags.

The sources are LLaMA-Factory's own reader, src/llamafactory/data/parser.py and converter.py, and data/README.md.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.conversations import Conversation
from benchmarks.datasets.files import Record, conversation, read_records
from benchmarks.errors import BenchmarkError

INFO = "dataset_info.json"


@dataclass(frozen=True, slots=True)
class Alpaca:
    """The columns of the alpaca format; None: there is no such column."""

    prompt: str | None = "instruction"
    query: str | None = "input"
    response: str | None = "output"
    history: str | None = "history"
    system: str | None = "system"

    def read(self, record: Record, turns: str | None) -> Conversation | None:
        """The question of one record, after its history. None if it asks nothing."""
        said: list[dict[str, Any]] = []
        system = record.text(self.system)
        if system:
            said.append({"role": "system", "content": system})
        for pair in record.sequence(self.history):
            if not (isinstance(pair, list) and len(pair) == 2 and all(isinstance(part, str) for part in pair)):
                raise record.problem(f"{self.history}: each item has to be [question, answer]")
            said += [{"role": "user", "content": pair[0]}, {"role": "assistant", "content": pair[1]}]
        query = "\n".join(part for part in (record.text(self.prompt), record.text(self.query)) if part)
        if not query:
            return None
        said.append({"role": "user", "content": query})
        return conversation(record, said, turns or "last")


@dataclass(frozen=True, slots=True)
class ShareGpt:
    """The columns and tags of the sharegpt format."""

    messages: str = "conversations"
    system: str | None = "system"
    role_tag: str = "from"
    content_tag: str = "value"
    user_tag: str = "human"
    assistant_tag: str = "gpt"
    observation_tag: str | None = "observation"
    function_tag: str | None = "function_call"
    system_tag: str | None = "system"

    def read(self, record: Record, turns: str | None) -> Conversation | None:
        """The questions of one record, up to the first that a tool was to answer. None if it asks nothing."""
        roles = {self.user_tag: "user", self.assistant_tag: "assistant"}
        # other collections of this format name them so, ShareGPT's own among them
        roles |= {"user": "user", "chatgpt": "assistant", "bing": "assistant", "assistant": "assistant"}
        if self.system_tag:
            roles[self.system_tag] = "system"
        said: list[dict[str, Any]] = []
        system = record.text(self.system)
        for message in record.sequence(self.messages, is_needed=True):
            if not isinstance(message, dict):
                raise record.problem(f"{self.messages}: each item has to be an object")
            role, content = message.get(self.role_tag), message.get(self.content_tag)
            if role in (self.function_tag, self.observation_tag) and role is not None:
                break
            if role not in roles or not isinstance(content, str):
                where = f"{self.messages}: an item needs {self.role_tag} and {self.content_tag}"
                raise record.problem(f"{where}; {self.role_tag} is {role!r}, known are {', '.join(sorted(roles))}")
            said.append({"role": roles[role], "content": content})
        if system and (not said or said[0]["role"] != "system"):
            said.insert(0, {"role": "system", "content": system})
        return conversation(record, said, turns or "first")


def read_named(name: str, folder: Path, turns: str | None) -> list[Conversation]:
    """The dataset that LLaMA-Factory knows as *name* by the dataset_info.json in *folder*. Raises BenchmarkError."""
    path = folder / INFO
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, ValueError) as problem:
        raise BenchmarkError(f"--dataset-dir {folder}: {path}: {problem}") from problem
    entry = known.get(name) if isinstance(known, dict) else None
    if not isinstance(entry, dict):
        raise BenchmarkError(f"--dataset {name}: {path} does not name it; it names {', '.join(sorted(known)[:20])}")
    file = entry.get("file_name")
    if not isinstance(file, str):
        raise BenchmarkError(f"--dataset {name}: {path}: it has no file_name; download it and name the file")
    reader = reader_for(entry, f"{path}: {name}")
    found = [reader.read(record, turns) for record in read_records(folder / file)]
    return [one for one in found if one is not None]


def reader_for(entry: Mapping[str, Any], where: str) -> Alpaca | ShareGpt:
    """Reads the dataset of one entry of dataset_info.json. Raises BenchmarkError.

    As LLaMA-Factory has it, ``columns`` names all columns there are: one it leaves out is not read.
    """
    formatting = entry.get("formatting", "alpaca")
    columns, tags = entry.get("columns"), entry.get("tags") or {}
    if not isinstance(columns, dict | None) or not isinstance(tags, dict):
        raise BenchmarkError(f"{where}: columns and tags have to be objects")
    if formatting == "alpaca":
        if columns is None:
            return Alpaca(history=None, system=None)
        return Alpaca(**{name: columns.get(name) for name in ("prompt", "query", "response", "history", "system")})
    if formatting in ("sharegpt", "openai"):
        named = {name: tag for name, tag in tags.items() if name in ShareGpt.__dataclass_fields__}
        columns = columns or {}
        return ShareGpt(messages=columns.get("messages") or "conversations", system=columns.get("system"), **named)
    raise BenchmarkError(f'{where}: formatting "{formatting}" is not known; known are alpaca, sharegpt, openai')
