"""The command lines of the golden files, given to the real engines' own parsers: no engine is started."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from backends.engines import ADAPTERS
from backends.options import Option
from tests.engines.environment import lmdeploy_python, vllm_python
from tests.goldens.argv import EXAMPLES

pytestmark = pytest.mark.timeout(180)

VLLM = """
import json, sys
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.entrypoints.launchers.cli_args import make_arg_parser, validate_parsed_serve_args
from vllm.utils.argparse_utils import FlexibleArgumentParser
parser = make_arg_parser(FlexibleArgumentParser())
read = [parser.parse_args(argv) for argv in json.load(sys.stdin)]
for args in read:
    AsyncEngineArgs.from_cli_args(args)
    args.chat_template = None
    validate_parsed_serve_args(args)
flags = {flag: list(map(str, action.choices or ())) for action in parser._actions for flag in action.option_strings}
json.dump({"read": [vars(args) for args in read], "flags": flags}, sys.stdout, default=str)
"""
LMDEPLOY = """
import json, sys
from lmdeploy.cli.entrypoint import CLI, SubCliLite, SubCliServe
for group in (CLI, SubCliServe, SubCliLite):
    group.add_parsers()
parser = SubCliServe.subparsers.choices["api_server"]
read = [vars(parser.parse_args(argv)) for argv in json.load(sys.stdin)]
flags = {flag: list(map(str, action.choices or ())) for action in parser._actions for flag in action.option_strings}
json.dump({"read": read, "flags": flags}, sys.stdout, default=str)
"""
LLAMACPP = """
import json, sys
from backends.engines.llamacpp_server import parser, server_params
ours = parser()
read = [vars(ours.parse_args(argv)) for argv in json.load(sys.stdin)]
for options in read:
    server_params({**options, "chat_template_file": None})
flags = {flag: list(map(str, action.choices or ())) for action in ours._actions for flag in action.option_strings}
json.dump({"read": read, "flags": flags}, sys.stdout, default=str)
"""


def arguments(engine: str, name: str) -> list[str]:
    """The example's command line from where the engine's own parser reads it."""
    argv = list(EXAMPLES[engine][name].argv())
    if engine == "lmdeploy":
        return argv[argv.index("--model-name") - 1 :]
    return argv[argv.index("--served-model-name" if engine == "vllm" else "--model") :]


def asked(engine: str, python: Path | str, script: str) -> dict[str, Any]:
    """What the engine's parser reads of each example, and the flags it knows."""
    argvs = [arguments(engine, name) for name in EXAMPLES[engine]]
    done = subprocess.run(
        [python, "-c", script], input=json.dumps(argvs), capture_output=True, text=True, timeout=150, check=False
    )
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout.splitlines()[-1])
    return {"read": dict(zip(EXAMPLES[engine], answer["read"], strict=True)), "flags": answer["flags"]}


def proves(engine: str, answer: dict[str, Any]) -> None:
    """Every option, and every spelling and choice the table names, is the engine's own, and read as it was meant."""
    given = EXAMPLES[engine]["every option"].settings["options"]
    for option in ADAPTERS[engine].options:
        if not option.flag:
            continue
        read = answer["read"]["every option"]
        assert read[destination(engine, option)] == expected(option, given[option.name]), option.name
        known = answer["flags"]
        for flag in (option.flag, option.off, *option.also, *option.brings):
            assert not flag or f"--{flag}" in known or f"-{flag}" in known, flag
        choices = known[f"--{option.flag}"]
        assert not choices or not option.choices or {str(choice) for choice in option.choices} <= set(choices)
    off = answer["read"]["every switch off"]
    assert not any(off[destination(engine, option)] for option in ADAPTERS[engine].options if option.off)


def destination(engine: str, option: Option) -> str:
    """The name under which the parser keeps the option."""
    if engine == "llamacpp":
        return LLAMACPP_NAMES.get(option.name, option.flag.replace("-", "_"))
    return option.flag.replace("-", "_")


LLAMACPP_NAMES = {
    "parallel": "n_parallel",
    "gpu_layers": "n_gpu_layers",
    "batch_size": "n_batch",
    "ubatch_size": "n_ubatch",
    "flash_attention": "flash_attn_type",
    "cache_reuse": "n_cache_reuse",
    "cache_ram_mib": "cache_ram_mib",
    "threads": "cpuparams.n_threads",
    "threads_batch": "cpuparams_batch.n_threads",
    "context_shift": "ctx_shift",
    "embeddings": "embedding",
    "pooling": "pooling_type",
    "seed": "sampling.seed",
}


def expected(option: Option, value: Any) -> Any:
    """What the parser makes of *value*."""
    if option.words:
        return option.words[0] if value else option.words[1]
    return [float(share) for share in value.split(",")] if option.name == "tensor_split" else value


@pytest.mark.engine_vllm
def test_vllm_takes_them() -> None:
    """vLLM's own parser reads each command line, and each option as it was meant; its own checks pass."""
    proves("vllm", asked("vllm", vllm_python(), VLLM))


@pytest.mark.engine_lmdeploy
def test_lmdeploy_takes_them() -> None:
    """LMDeploy's own parser reads each command line, and each option as it was meant."""
    proves("lmdeploy", asked("lmdeploy", lmdeploy_python(), LMDEPLOY))


@pytest.mark.engine_llamacpp
def test_llamacpp_takes_them() -> None:
    """The embedded server reads each command line, and xllamacpp takes every value that it is given of it."""
    proves("llamacpp", asked("llamacpp", sys.executable, LLAMACPP))


@pytest.mark.engine_llamacpp
def test_llama_server_knows_the_flags() -> None:
    """llama-server's parser is part of xllamacpp's library: each flag and each choice is a text in it."""
    import xllamacpp.xllamacpp

    library = Path(xllamacpp.xllamacpp.__file__).read_bytes()
    for option in ADAPTERS["llamacpp"].options:
        for flag in (option.flag, option.off):
            assert not flag or f"--{flag}\0".encode() in library, flag
        assert option.source.partition(";")[0].encode() in library, option.source
