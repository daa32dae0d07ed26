"""Everything that says what a fine-tune's prompt is: in one folder or file, or by a name."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from chat_templates.catalog.index import PREFIX as CATALOG
from chat_templates.catalog.index import read_entry
from chat_templates.forms.ignored import is_gguf
from chat_templates.sources import llamafactory, xtuner
from chat_templates.sources.found import Found, SourceUnreadable, read_text
from chat_templates.sources.gguf import read_gguf
from chat_templates.sources.go_modelfile import read_modelfile
from chat_templates.sources.hf_folder import read_file, read_folder
from chat_templates.sources.lmdeploy_json import FIELDS, read_lmdeploy

MODELFILE = "Modelfile"
JSON_LIMIT_BYTES = 64 * 1024
"""LMDeploy's templates are small; other JSON files of a model's folder are not looked into beyond this."""

_BARE = "{path} has no template: llama.cpp and Ollama by themselves would prompt it with one of their own choice"


def collect(sources: Sequence[str], package: Path | None = None) -> list[Found]:
    """All that *sources* say, no two under one name. Each is a path, ``llamafactory:NAME``, ``xtuner:NAME`` or
    ``catalog:NAME``.

    package: where the tool that is named is installed; None takes this environment. Raises SourceUnreadable, also for
    a source that says nothing of a prompt.
    """
    return _told_apart([found for source in sources for found in _collected(source, package)])


def _collected(source: str, package: Path | None) -> list[Found]:
    if source.startswith(CATALOG):
        return [read_entry(source.removeprefix(CATALOG))]
    if source.startswith(llamafactory.PREFIX):
        training = llamafactory.Training(source.removeprefix(llamafactory.PREFIX))
        return [llamafactory.read_llamafactory(training, package)]
    if source.startswith(xtuner.PREFIX):
        return [xtuner.read_xtuner(source.removeprefix(xtuner.PREFIX), package)]
    path = Path(source)
    found = list(_in_folder(path, package) if path.is_dir() else _in_file(path, package))
    if not found:
        raise SourceUnreadable(
            f"{path}: has no chat template; name the file it was trained with, or llamafactory:NAME, xtuner:NAME or"
            f" {CATALOG}NAME"
        )
    return found


def _in_folder(folder: Path, package: Path | None) -> Iterator[Found]:
    ggufs = [(path, read_gguf(path)) for path in sorted(folder.glob("*.gguf"))]
    bare = [_BARE.format(path=path) for path, said in ggufs if said is None]
    for exported in read_folder(folder):
        yield replace(exported, notes=(*exported.notes, *bare))
    for _, said in ggufs:
        if said is not None:
            yield said
    if (folder / MODELFILE).is_file() and (written := read_modelfile(folder / MODELFILE)) is not None:
        yield written
    for path in sorted(folder.glob("*.json")):
        if _is_lmdeploy(path):
            yield read_lmdeploy(path)
    for path in sorted({*folder.glob("*.yaml"), *folder.glob("*.yml")}):
        yield from _trained(path, package)


def _in_file(path: Path, package: Path | None) -> Iterator[Found]:
    if not path.is_file():
        raise SourceUnreadable(f"{path}: there is no such file or folder")
    if is_gguf(path):
        if (found := read_gguf(path)) is not None:
            yield found
    elif path.suffix == ".json":
        yield read_lmdeploy(path)
    elif path.suffix in (".yaml", ".yml"):
        yield from _trained(path, package)
    elif path.name.startswith(MODELFILE) or path.suffix.lower() == ".modelfile":
        if (found := read_modelfile(path)) is not None:
            yield found
    else:
        yield read_file(path)


def _trained(path: Path, package: Path | None) -> Iterator[Found]:
    training = llamafactory.read_training(path)
    if training is not None:
        found = llamafactory.read_llamafactory(training, package)
        yield replace(found, notes=(*found.notes, f"named by {path}"))


def _is_lmdeploy(path: Path) -> bool:
    """Whether a JSON file is one of LMDeploy's templates: it has their fields and no other."""
    try:
        if path.stat().st_size > JSON_LIMIT_BYTES:
            return False
        value = json.loads(read_text(path, "JSON"))
    except (OSError, ValueError, RecursionError, SourceUnreadable):
        return False
    return isinstance(value, dict) and "model_name" in value and value.keys() <= FIELDS


def _told_apart(found: list[Found]) -> list[Found]:
    """With a number behind a name that several have."""
    seen: dict[str, int] = {}
    made = []
    for one in found:
        seen[one.name] = seen.get(one.name, 0) + 1
        made.append(one if seen[one.name] == 1 else replace(one, name=f"{one.name}-{seen[one.name]}"))
    return made
