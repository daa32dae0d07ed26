"""Python files of fine-tuning tools, read as data: no line of them is run, and no torch is imported."""

from __future__ import annotations

import ast
import difflib
import importlib.util
from collections.abc import Iterable
from pathlib import Path

from chat_templates.sources.found import SourceUnreadable


def package_file(package: str, inner: str, folder: Path | None) -> Path:
    """The file *inner* of an installed *package*; or of the one that *folder* is, or holds, an environment too.

    Raises SourceUnreadable where there is none.
    """
    if folder is not None:
        installed = folder.glob(f"lib/python*/site-packages/{package}")
        for base in (folder, folder / package, folder / "src" / package, *installed):
            if (base / inner).is_file():
                return base / inner
        raise SourceUnreadable(
            f"{folder}: has no {package}/{inner}; name the folder that `pip show -f {package}` tells"
        )
    # a top-level name: it is looked for, not imported
    found = importlib.util.find_spec(package)
    for place in (found.submodule_search_locations or ()) if found is not None else ():
        if (Path(place) / inner).is_file():
            return Path(place) / inner
    raise SourceUnreadable(
        f"{package} is not installed beside Unigate; say where it is with --package: its folder, or an environment that"
        " has it"
    )


def parse_python(path: Path) -> ast.Module:
    """The syntax tree of *path*. Raises SourceUnreadable."""
    try:
        return ast.parse(path.read_bytes(), filename=str(path))
    except OSError as problem:
        raise SourceUnreadable(f"{path}: {problem.strerror}") from problem
    except (SyntaxError, ValueError, RecursionError, MemoryError) as problem:
        raise SourceUnreadable(f"{path}: is no Python that can be read: {problem}") from problem


def literal(node: ast.expr, path: Path) -> object:
    """The plain value *node* writes. Raises SourceUnreadable where it is computed."""
    try:
        value: object = ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError) as problem:
        shown = f"{path}:{node.lineno}: {ast.unparse(node)[:60]}"
        raise SourceUnreadable(f"{shown}: is no plain value, so it cannot be read") from problem
    return value


def unknown_name(tool: str, name: str, known: Iterable[str], path: Path) -> SourceUnreadable:
    """That *tool* has no template called *name*, with the names that are near."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, 3)
    hint = f"did you mean {' or '.join(near)}?" if near else f"there are: {', '.join(names)}"
    return SourceUnreadable(f"{tool} has no template called {name!r} ({path}); {hint}")
