"""What a hub tells of a model's repository, and which of its files an engine needs. Pure."""

from __future__ import annotations

import difflib
import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import PurePosixPath

from backends.sources import HubSource, is_below, split_parts

UNREAD = re.compile(
    # Git's own files; weights as their makers had them before the conversion (Meta's .pth); exports for other runtimes.
    r"(.*/)?\.[^/]*(/.*)?|(original|onnx|openvino|coreml|metal)/.*"
    # What training needed: its checkpoints, curves and states.
    r"|checkpoint-\d+/.*|runs/.*|(.*/)?(training_args|optimizer|scheduler|rng_state[^/]*)\.(bin|pt|pth)"
    r"|.*\.(onnx|onnx_data|msgpack|h5|tflite|ot|mlmodel|mlpackage|ckpt|nemo)"
    # Figures of the model card.
    r"|.*\.(png|jpe?g|gif|webp|svg|pdf|mp4)",
    re.IGNORECASE,
)
"""Files that none of our engines reads."""


RECORDS = ".unigate"
"""The folder of our own records within a repository's folder."""


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """One file of a repository. *path* has ``/`` between its parts; *size* is in bytes.

    *sha256* is that of its content, *git_oid* its SHA-1 as a Git blob, both in lower-case hex, empty where the hub does
    not tell.
    """

    path: str
    size: int
    sha256: str = ""
    git_oid: str = ""

    @property
    def digest(self) -> str:
        """What tells this content from another under the same name."""
        return self.sha256 or self.git_oid or f"size-{self.size}"


@dataclass(frozen=True, slots=True)
class Repository:
    """A repository at one moment. *commit* names that moment as exactly as the hub can."""

    commit: str
    files: tuple[RemoteFile, ...]


class NothingWanted(Exception):
    """The repository holds nothing that *source* can mean. ``str()`` says why, *remedy* what to write instead."""

    def __init__(self, message: str, remedy: str) -> None:
        super().__init__(message)
        self.remedy = remedy


def wanted_files(source: HubSource, repository: Repository) -> tuple[RemoteFile, ...]:
    """The files of *repository* that an engine needs to load *source*, in the order of their paths.

    One named file: that file, with all parts of a split GGUF. Else everything but what no engine reads, and of weights
    that are there twice the safetensors only: beside them, PyTorch's pickles, GGUF files and Mistral's second copy
    (``consolidated*.safetensors``) are left out. Raises NothingWanted.
    """
    files = {file.path: file for file in repository.files if _may_be_written(file.path)}
    if source.file:
        return tuple(_named(source, path, files) for path in split_parts(source.file))
    kept = {path: file for path, file in files.items() if not UNREAD.fullmatch(path)}
    weighted = {str(PurePosixPath(path).parent) for path in kept if _is_main_weights(path)}
    pickled = any(path.endswith(".bin") for path in kept)
    if not weighted and not pickled:
        raise _no_weights(source, sorted(kept))
    found = (kept[path] for path in sorted(kept) if not _is_second_copy(path, weighted))
    return tuple(found)


def listing_digest(files: Iterable[RemoteFile]) -> str:
    """A name for exactly these files, for a hub that names no commit."""
    lines = sorted(f"{file.path}\0{file.size}\0{file.digest}\n" for file in files)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _may_be_written(path: str) -> bool:
    return is_below(path) and not path.startswith(RECORDS)


def _is_main_weights(path: str) -> bool:
    name = PurePosixPath(path).name
    return name.endswith(".safetensors") and not name.startswith("consolidated")


def _is_second_copy(path: str, weighted: set[str]) -> bool:
    """Whether *path* repeats weights that are there as safetensors: in its own folder, or, for GGUF, anywhere."""
    if path.endswith(".gguf"):
        return True
    name, folder = PurePosixPath(path).name, str(PurePosixPath(path).parent)
    if folder not in weighted:
        return False
    return name.endswith((".bin", ".pt", ".pth")) or (name.endswith(".safetensors") and name.startswith("consolidated"))


def _named(source: HubSource, path: str, files: dict[str, RemoteFile]) -> RemoteFile:
    if path in files:
        return files[path]
    near = difflib.get_close_matches(path, files, n=1, cutoff=0.4)
    remedy = f"did you mean {_whole(source)}:{near[0]}?" if near else f"it holds: {', '.join(sorted(files)[:8])}"
    raise NothingWanted(f"{_whole(source)} has no file {path}", remedy)


def _no_weights(source: HubSource, paths: list[str]) -> NothingWanted:
    ggufs = [path for path in paths if path.endswith(".gguf") and _is_first_part(path)]
    if ggufs:
        shown = ", ".join(ggufs[:8]) + (", …" if len(ggufs) > 8 else "")
        message = f"{source} holds GGUF files, of which an engine takes one: {shown}"
        return NothingWanted(message, f"name one, such as {source}:{ggufs[0]}")
    only_consolidated = [path for path in paths if path.endswith(".safetensors")]
    if only_consolidated:
        return NothingWanted(
            f"{source} holds no weights in the Hugging Face format", "use a converted copy of the model"
        )
    return NothingWanted(f"{source} holds no weights", "name a model that has *.safetensors, *.bin or *.gguf files")


def _is_first_part(path: str) -> bool:
    return not re.search(r"-\d{5}-of-\d{5}\.gguf$", path) or "-00001-of-" in path


def _whole(source: HubSource) -> HubSource:
    return HubSource(source.hub, source.repo, source.revision)
