"""`python -m tests.parity [--write docs/parity.md]`: observe, show, write down. Exit code 1 where anything is silent.

What was observed is kept under ~/.cache/unigate, so that a run that is interrupted goes on where it was; with other
code or other engines everything is observed anew.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from tests.parity.corpus import CorpusError, Template, corpus
from tests.parity.document import markdown
from tests.parity.hosts import SESSIONS
from tests.parity.published import published
from tests.parity.records import Records, default_folder
from tests.parity.run import run
from tests.parity.table import ENGINES, silent, summary


def main(arguments: Sequence[str]) -> int:
    """The command line."""
    options = parser().parse_args(arguments)
    began = time.monotonic()
    try:
        templates = chosen(corpus(), options.templates)
    except CorpusError as problem:
        print(f"parity: {problem}", file=sys.stderr)
        return 1
    engines = [engine for engine in ENGINES if not options.only or engine.key in options.only]
    results = run([engine.key for engine in engines], templates, Records(default_folder()), tell)
    print("\n".join(summary(results, engines)))
    wrong = silent(results)
    if options.write is not None:
        tell("all 786 published templates: the renderer and the derived forms")
        found = published()
        wrong += ["published templates: see the document"] * (found.different + found.silent)
        options.write.write_text(markdown(results, engines, found), encoding="utf-8")
    print("\n".join(f"SILENT {one}" for one in wrong))
    print(f"{len(wrong)} silent, {time.monotonic() - began:.0f} s")
    return 1 if wrong else 0


def chosen(templates: Sequence[Template], count: int | None) -> Sequence[Template]:
    """*count* of them, evenly spaced; all where it is None."""
    return templates if count is None else [templates[number * len(templates) // count] for number in range(count)]


def tell(line: str) -> None:
    """One line as it comes."""
    print(line, flush=True)


def parser() -> argparse.ArgumentParser:
    """Which part of it, and where to."""
    p = argparse.ArgumentParser(prog="python -m tests.parity", description=__doc__)
    p.add_argument("--only", nargs="+", choices=sorted(SESSIONS), metavar="ENGINE", help=", ".join(SESSIONS))
    p.add_argument("--templates", type=int, metavar="N", help="so many templates, evenly spaced; else all")
    p.add_argument("--write", type=Path, metavar="FILE", help="write the table down as Markdown")
    return p


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
