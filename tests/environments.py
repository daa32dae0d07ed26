"""Folders that look like Python environments, and wheels that pip really installs."""

from __future__ import annotations

import base64
import hashlib
import os
import textwrap
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path


def python_environment(
    folder: Path, *distributions: str, programs: Iterable[str] = (), is_conda: bool = False, python: str = "3.11"
) -> Path:
    """An environment in *folder* with the metadata of *distributions* (``vllm-0.32.0``) and empty *programs*."""
    site = folder / "lib" / f"python{python}" / "site-packages"
    for path in (folder / "bin", site, *([folder / "conda-meta"] if is_conda else [])):
        path.mkdir(parents=True, exist_ok=True)
    for program in ("python", *programs):
        (folder / "bin" / program).touch(mode=0o755)
    for distribution in distributions:
        (site / f"{distribution}.dist-info").mkdir()
    return folder


def wheel(
    folder: Path, name: str, version: str, *, script: str = "", requires: Sequence[str] = (), payload_bytes: int = 0
) -> Path:
    """A real wheel in *folder*: the module *name* whose ``main`` runs *script*, and a program of that name.

    *payload_bytes* of a file that no compression makes smaller go into it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    stem = f"{name.replace('-', '_')}-{version}"
    module = name.replace("-", "_")
    body = textwrap.indent(textwrap.dedent(script) or "pass", "    ")
    metadata = [f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}", *(f"Requires-Dist: {r}" for r in requires)]
    members = {
        f"{module}/__init__.py": f"def main():\n{body}\n".encode(),
        f"{module}/payload.bin": os.urandom(payload_bytes),
        f"{stem}.dist-info/METADATA": "\n".join([*metadata, ""]).encode(),
        f"{stem}.dist-info/WHEEL": b"Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{stem}.dist-info/entry_points.txt": f"[console_scripts]\n{name} = {module}:main\n".encode(),
    }
    record = f"{stem}.dist-info/RECORD"
    lines = [f"{path},sha256={_digest(content)},{len(content)}" for path, content in members.items()]
    members[record] = "\n".join([*lines, f"{record},,", ""]).encode()
    target = folder / f"{stem}-py3-none-any.whl"
    with zipfile.ZipFile(target, "w") as archive:
        for path, content in members.items():
            archive.writestr(path, content)
    return target


def _digest(content: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()


def offline(links: str | Path) -> dict[str, str]:
    """What pip needs in its environment to take everything from *links* and nothing from anywhere else."""
    return {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(links), "PIP_CONFIG_FILE": os.devnull}
