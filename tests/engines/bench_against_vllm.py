"""Measure one server with `unigate bench run` and with `vllm bench serve` in turns, and tell by how much they differ.

    python -m tests.engines.bench_against_vllm --base-url http://127.0.0.1:8000/v1 --model NAME --tokenizer DIR
    python -m tests.engines.bench_against_vllm --timed-server --tokenizer DIR

Both send the same text completions of the same forced length: as a closed loop of 4, and evenly at ``--rate``. Text and
not chat, for there the two mean the same by a first token (`benchmarks.measures`). Exit code 1 when output throughput,
mean TTFT or mean TPOT differ by more than 3 % over all rounds. The server has to be idle but for this.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.conversations import as_text
from benchmarks.datasets.synthetic import Lengths, synthetic
from benchmarks.datasets.tokenizer import load_tokenizer
from tests.engines.environment import vllm_python
from tests.gateways import UNIGATE

COMPARED = ("output_throughput", "mean_ttft_ms", "mean_tpot_ms", "mean_itl_ms", "mean_e2el_ms")
HELD = COMPARED[:3]
MOST_APART = 0.03
# The CPU build of the test environment is a distribution of another name, which the command `vllm` does not survive.
SERVE = """
import sys
from vllm.benchmarks.serve import add_cli_args, main
from vllm.utils.argparse_utils import FlexibleArgumentParser
parser = FlexibleArgumentParser()
add_cli_args(parser)
main(parser.parse_args(sys.argv[1:]))
"""
TIMED = ("--ttft", "0.1", "--tpot", "0.02")


@dataclass(frozen=True, slots=True)
class Case:
    """What both are asked to do. *load*: our options and theirs."""

    name: str
    ours: tuple[str, ...]
    theirs: tuple[str, ...]


@contextlib.contextmanager
def served(given: argparse.Namespace) -> Iterator[str]:
    """The base URL of the server that was named, or of a timed one."""
    if not given.timed_server:
        yield given.base_url
        return
    command = [sys.executable, "-m", "benchmarks.timed_server", *TIMED]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip()
        finally:
            process.terminate()


def write_prompts(path: Path, given: argparse.Namespace) -> None:
    """Prompts of one length in ShareGPT's form, which both read."""
    lengths = [Lengths(given.input_tokens, given.output_tokens)] * given.num_prompts
    texts = [as_text(one.turns[0]).strip() for one in synthetic(lengths, load_tokenizer(given.tokenizer), seed=1)]
    said = [[{"from": "human", "value": text}, {"from": "gpt", "value": text}] for text in texts]
    path.write_text(json.dumps([{"conversations": turns} for turns in said]))


def measure_ours(url: str, given: argparse.Namespace, prompts: Path, case: Case, out: Path) -> dict[str, Any]:
    """One run of ours; its summary."""
    command = [
        UNIGATE, "bench", "run", "--base-url", url, "--model", given.model, "--endpoint", "completions",
        "--dataset", str(prompts), "--num-prompts", str(given.num_prompts), "--ignore-eos", "--warm-up", "8",
        "--output-tokens", str(given.output_tokens), *case.ours, "--out", str(out),
    ]  # fmt: skip
    subprocess.run(command, check=False, stdout=subprocess.DEVNULL)
    summary: dict[str, Any] = json.loads((out / "summary.json").read_text())
    return summary


def measure_theirs(url: str, given: argparse.Namespace, prompts: Path, case: Case, out: Path) -> dict[str, Any]:
    """One run of vLLM's; its result."""
    python = given.vllm_python or str(vllm_python())
    command = [
        python, "-c", SERVE, "--backend", "openai", "--base-url", url.removesuffix("/v1"),
        "--model", given.model, "--tokenizer", given.tokenizer, "--dataset-name", "sharegpt",
        "--dataset-path", str(prompts), "--sharegpt-output-len", str(given.output_tokens),
        "--num-prompts", str(given.num_prompts), "--ignore-eos", "--temperature", "0", "--num-warmups", "8",
        "--percentile-metrics", "ttft,tpot,itl,e2el", *case.theirs, "--save-result",
        "--result-dir", str(out.parent), "--result-filename", out.name,
    ]  # fmt: skip
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=environ)
    if done.returncode:
        raise SystemExit(f"vllm bench serve ended with {done.returncode}: {done.stderr[-2000:]}")
    result: dict[str, Any] = json.loads(out.read_text())
    return result


def mean(results: list[dict[str, Any]], key: str) -> float:
    """The mean of *key* over the rounds."""
    return math.fsum(result[key] for result in results) / len(results)


def compare(url: str, given: argparse.Namespace, folder: Path, case: Case) -> bool:
    """Print what both measured in *case*; whether they agree."""
    prompts = folder / "prompts.json"
    write_prompts(prompts, given)
    ours, theirs = [], []
    for number in range(given.rounds):
        name = f"{case.name}-{number}"
        ours.append(measure_ours(url, given, prompts, case, folder / f"ours-{name}"))
        theirs.append(measure_theirs(url, given, prompts, case, folder / f"theirs-{name}.json"))
    agree = True
    invalid = [reason for result in ours for reason in result["validity"]["reasons"]]
    print(f"\n{case.name}, {given.rounds} rounds in turns, load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    for key in COMPARED:
        mine, other = mean(ours, key), mean(theirs, key)
        apart = mine / other - 1
        agree = agree and (key not in HELD or abs(apart) <= MOST_APART)
        print(f"  {key:20} ours {mine:10.2f}   vllm {other:10.2f}   {apart:+.2%}")
    for reason in dict.fromkeys(invalid):
        print(f"  ours says INVALID: {reason}")
    return agree


def main() -> int:
    """Compare; 0 when both agree."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--base-url", default="")
    parser.add_argument("--timed-server", action="store_true")
    parser.add_argument("--model", default="timed")
    parser.add_argument("--tokenizer", required=True)
    parser.add_argument("--vllm-python", default="", help="Python of a vLLM; default that of the test environment")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--num-prompts", type=int, default=100)
    parser.add_argument("--input-tokens", type=int, default=64)
    parser.add_argument("--output-tokens", type=int, default=32)
    parser.add_argument("--rate", type=float, default=5.0, help="of the open loop: half of what the server takes")
    given = parser.parse_args()
    cases = [
        Case("closed-4", ("--concurrency", "4"), ("--max-concurrency", "4")),
        Case(
            "open",
            ("--rate", str(given.rate), "--arrivals", "constant"),
            ("--request-rate", str(given.rate), "--burstiness", "inf"),
        ),
    ]
    with tempfile.TemporaryDirectory() as folder, served(given) as url:
        agreements = [compare(url, given, Path(folder), case) for case in cases]
    return 0 if all(agreements) else 1


if __name__ == "__main__":
    sys.exit(main())
