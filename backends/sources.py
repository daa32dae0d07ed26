"""Where weights come from, as one word of the configuration: a path, or a model on a hub.

    hf:ORG/NAME[@REVISION][:FILE]     modelscope:ORG/NAME[@REVISION][:FILE]     ollama:NAME     anything else is a path

Pure: words in, values out. Each value is written back by ``str()`` as the word that means it.
"""  # fmt: skip

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args
from urllib.parse import quote

Hub = Literal["hf", "modelscope"]
HUBS: tuple[Hub, ...] = get_args(Hub)
HUB_NAMES = {"hf": "Hugging Face", "modelscope": "ModelScope"}

SourceKind = Literal["path", "hf", "modelscope", "ollama"]
SOURCE_KINDS: tuple[SourceKind, ...] = get_args(SourceKind)
SCHEMES = SOURCE_KINDS[1:]

_OTHER_NAMES = {
    "huggingface": "hf", "hugging-face": "hf", "hf-hub": "hf", "hub": "hf", "model-scope": "modelscope",
    "ms": "modelscope",
}  # fmt: skip
_SCHEME = re.compile(r"([A-Za-z][\w+.-]*):")
NAME_LIMIT = 96
# Both hubs take letters, digits, "-", "_" and "."; neither takes "..", nor "-" or "." at an end
# (huggingface_hub 2.4, utils/_validators.py). "--" is left to the hub to judge.
_NAME = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]*[A-Za-z0-9_])?")
_REVISION = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+/-]*")
_OLLAMA_NAME = re.compile(
    r"[A-Za-z0-9_][\w.-]*(?::\d+(?=/))?(?:/[A-Za-z0-9_][\w.-]*)*(?::[A-Za-z0-9_][\w.-]*)?", re.ASCII
)
_SPLIT = re.compile(r"(?P<stem>.*)-(?P<part>\d{5})-of-(?P<parts>\d{5})\.gguf")


class SourceRefused(Exception):
    """A word that means no source: ``str()`` says why, *remedy* what to write instead.

    Neither repeats the word: it may have come from the environment.
    """

    def __init__(self, message: str, remedy: str) -> None:
        super().__init__(message)
        self.remedy = remedy


@dataclass(frozen=True, slots=True)
class HubSource:
    """A model repository of a hub, or one file of it.

    *repo* is ``ORG/NAME``; *revision* a branch, tag or commit, empty for the hub's own main branch; *file* the path of
    one file in it, ``/`` between its parts, empty for all that an engine needs.
    """

    hub: Hub
    repo: str
    revision: str = ""
    file: str = ""

    @property
    def kind(self) -> Hub:
        """The word it begins with."""
        return self.hub

    def __str__(self) -> str:
        revision = f"@{self.revision}" if self.revision else ""
        file = f":{self.file}" if self.file else ""
        return f"{self.hub}:{self.repo}{revision}{file}"

    def folder(self, models_dir: Path) -> Path:
        """Where its repository lies below *models_dir*: ``hf/ORG/NAME``; a named revision has a folder of its own."""
        name = f"{self.repo}@{quote(self.revision, safe='')}" if self.revision else self.repo
        return models_dir / self.hub / name

    def weights(self, models_dir: Path) -> Path:
        """What an engine is given: the folder, or the one file in it."""
        return self.folder(models_dir) / self.file


@dataclass(frozen=True, slots=True)
class OllamaName:
    """A model by its name in Ollama's own library: ``qwen3:0.6b``. Ollama itself fetches and keeps it."""

    name: str

    @property
    def kind(self) -> Literal["ollama"]:
        """The word it begins with."""
        return "ollama"

    def __str__(self) -> str:
        return f"ollama:{self.name}"


RemoteSource = HubSource | OllamaName


def kind_of(source: Path | RemoteSource) -> SourceKind:
    """The kind of *source*."""
    return "path" if isinstance(source, Path) else source.kind


def parse_source(text: str) -> RemoteSource | None:
    """The source that *text* means; None when it is a path, as all that has no ``word:`` in front.

    A path that looks like a source is written ``./hf:x``. Raises SourceRefused.
    """
    scheme = _SCHEME.match(text)
    if scheme is None:
        return None
    word, rest = scheme[1], text[scheme.end() :]
    if not text.isprintable():
        raise SourceRefused("holds what cannot be printed", "look for a tab or a line break in it")
    if word == "ollama":
        return _read_ollama(rest)
    for hub in HUBS:
        if word == hub:
            return _read_hub(hub, rest)
    raise _unknown(word)


def is_below(path: str) -> bool:
    """Whether the relative *path*, put below a folder, stays there and names what it seems to name."""
    return not path.startswith("/") and "\\" not in path and not _climbs(path) and path.isprintable()


def split_parts(file: str) -> tuple[str, ...]:
    """The files that make up *file*: itself, or every part of a GGUF that is split, which llama.cpp opens by the first.

    Raises SourceRefused for a part that is not the first.
    """
    split = _SPLIT.fullmatch(file)
    if split is None:
        return (file,)
    if int(split["part"]) != 1:
        raise SourceRefused("names a part of a GGUF file that is not its first", "name the first: …-00001-of-….gguf")
    count = int(split["parts"])
    return tuple(f"{split['stem']}-{part:05}-of-{split['parts']}.gguf" for part in range(1, count + 1))


def _read_hub(hub: Hub, rest: str) -> HubSource:
    form = f"write it as {hub}:ORG/NAME, with @REVISION and :FILE after it if need be"
    if rest.startswith("//"):
        raise SourceRefused(f"must not have // after {hub}:", form)
    named, colon, file = rest.partition(":")
    repo, at, revision = named.partition("@")
    organisation, slash, name = repo.partition("/")
    if not (organisation and slash and name):
        raise SourceRefused("names no model" if not repo else "must have both an organisation and a name", form)
    for part in (organisation, name):
        if not _NAME.fullmatch(part) or ".." in part or len(part) > NAME_LIMIT:
            remedy = f"letters and digits, with - _ . between them, at most {NAME_LIMIT}; {form}"
            raise SourceRefused(f"holds what is in no name on {HUB_NAMES[hub]}", remedy)
    if at and (not _REVISION.fullmatch(revision) or _climbs(revision)):
        what = "has no revision after @" if not revision else "has no branch, tag or commit after @"
        raise SourceRefused(what, "write one, or leave @ out for the main branch")
    if colon and not is_below(file):
        what = (
            "has no file after its last colon" if not file else "has what cannot be a file of a model after its colon"
        )
        raise SourceRefused(what, "write the file's path as the hub lists it, or leave the colon out")
    if colon:
        split_parts(file)
    return HubSource(hub, repo, revision, file)


def _read_ollama(name: str) -> OllamaName:
    if not _OLLAMA_NAME.fullmatch(name) or ".." in name:
        what = "names no model after ollama:" if not name else "has what is no name of a model after ollama:"
        raise SourceRefused(what, "write it as `ollama list` shows it: ollama:qwen3:0.6b")
    return OllamaName(name)


def _climbs(path: str) -> bool:
    """Whether *path* is not what it seems once it is below a folder."""
    return any(part in ("", ".", "..") for part in path.split("/"))


def _unknown(word: str) -> SourceRefused:
    lower = word.lower()
    if lower in ("http", "https"):
        remedy = "write hf:ORG/NAME or modelscope:ORG/NAME, or download it and write where it lies"
        return SourceRefused("must be a path or a source, not an address", remedy)
    known = _OTHER_NAMES.get(lower) or next(iter(difflib.get_close_matches(lower, SCHEMES, n=1, cutoff=0.6)), None)
    listed = ", ".join(f"{scheme}:" for scheme in SCHEMES)
    remedy = f"did you mean {known}:?" if known is not None else f"known here: {listed}; or a path, with ./ before it"
    return SourceRefused("has a word before its colon that is no source", remedy)
