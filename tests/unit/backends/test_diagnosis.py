"""Exit status and log tail -> why it failed, against lines as engines print them."""

from __future__ import annotations

from typing import NamedTuple

import pytest

from backends.diagnosis import COMMON, EVIDENCE_LINES, ExitStatus, Pattern, diagnose, evidence, first_match, pattern
from backends.engines import ADAPTERS
from backends.engines.llamacpp import PATTERNS as LLAMACPP
from backends.engines.lmdeploy import PATTERNS as LMDEPLOY
from backends.engines.vllm import PATTERNS as VLLM

TABLES: dict[str, tuple[Pattern, ...]] = {"vllm": VLLM, "lmdeploy": LMDEPLOY, "llamacpp": LLAMACPP}
"""The adapters that have a table of their own; every table is followed by COMMON."""


class Sample(NamedTuple):
    """One line of an engine's log and what must be made of it. *said* is part of the reason."""

    engine: str
    line: str
    code: str
    permanent: bool
    said: str = ""


SAMPLES = [
    # Recorded from vLLM 0.32.0 (CPU build): a bad flag, a path that is not there, an empty folder, a context beyond the
    # model's, a template that is not there.
    Sample("vllm", "api_server.py: error: unrecognized arguments: --nope", "bad_option", True, "arguments: --nope"),
    Sample(
        "vllm",
        "OSError: Repo id must be in the form 'repo_name' or 'namespace/repo_name': '/nope/model'."
        " Use `repo_type` argument if needed.",
        "weights_missing",
        True,
    ),
    Sample(
        "vllm",
        "  Value error, Invalid repository ID or local directory specified: '/models/empty'.",
        "weights_missing",
        True,
    ),
    Sample(
        "vllm",
        "  Value error, User-specified max_model_len (999999) is greater than the derived max_model_len"
        " (max_position_embeddings=8192.0 or model_max_length=None in model's config.json).",
        "context_longer_than_model",
        True,
        "999999",
    ),
    Sample(
        "vllm",
        "vllm.exceptions.VLLMValidationError: The supplied chat template string (/nope/t.jinja) appears path-like,"
        " but doesn't exist! Tried: /nope/t.jinja and /nope/t.jinja (parameter=chat_template)",
        "bad_template",
        True,
        "appears path-like",
    ),
    # From vLLM 0.32.0's source, the values filled in: v1/worker/utils.py, v1/core/kv_cache_utils.py,
    # model_executor/models/registry.py, v1/engine/exceptions.py.
    Sample(
        "vllm",
        "ValueError: Free memory on device cuda:0 (3.51/23.65 GiB) on startup is less than desired GPU memory"
        " utilization (0.9, 21.28 GiB). Decrease GPU memory utilization or reduce GPU memory used by other processes.",
        "gpu_memory_taken",
        False,
    ),
    Sample(
        "vllm",
        "ValueError: To serve at least one request with the model's max seq len (131072), (7.00 GiB KV cache is needed,"
        " which is larger than the available KV cache memory (4.11 GiB).",
        "context_too_long_for_cache",
        True,
    ),
    Sample(
        "vllm",
        "ValueError: No available memory for the cache blocks. Try increasing `gpu_memory_utilization` when"
        " initializing the engine",
        "no_cache_memory",
        True,
    ),
    Sample(
        "vllm",
        "ValueError: Model architectures ['FooForCausalLM'] are not supported for now. Supported architectures: ...",
        "architecture_unknown",
        True,
        "'FooForCausalLM'",
    ),
    Sample(
        "vllm",
        "vllm.v1.engine.exceptions.EngineDeadError: EngineCore encountered an issue. See stack trace (above) for the"
        " root cause.",
        "engine_core_died",
        False,
    ),
    Sample(
        "vllm",
        "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of"
        " 23.65 GiB of which 1.02 GiB is free.",
        "gpu_out_of_memory",
        True,
    ),
    # Recorded from LMDeploy 0.18.0: a bad flag, a bad value, a folder without weights, a path that is not there, a
    # tokenizer without a chat template, a template that does not parse, a parser that does not exist, one that the
    # tokenizer lacks the tokens for, a config without architectures, no GPU, a dead engine process, a port in use.
    Sample("lmdeploy", "lmdeploy: error: unrecognized arguments: --nope 3", "bad_option", True, "arguments: --nope 3"),
    Sample(
        "lmdeploy",
        "lmdeploy serve api_server: error: argument --quant-policy: invalid _parse value: '5'",
        "bad_option",
        True,
        "--quant-policy",
    ),
    Sample(
        "lmdeploy",
        "OSError: Error no file named model.safetensors, or pytorch_model.bin, found in directory /models/m.",
        "weights_missing",
        True,
    ),
    Sample(
        "lmdeploy",
        "huggingface_hub.errors.HFValidationError: Repo id must be in the form 'repo_name' or 'namespace/repo_name':"
        " '/nope/model'. Use `repo_type` argument if needed.",
        "weights_missing",
        True,
    ),
    Sample(
        "lmdeploy",
        "ValueError: Try apply_chat_template failed: Cannot use chat template functions because"
        " tokenizer.chat_template is not set and no template argument was passed!",
        "template_missing",
        True,
    ),
    Sample(
        "lmdeploy",
        "ValueError: Try apply_chat_template failed: Expected an expression, got 'end of statement block'",
        "bad_template",
        True,
        "Expected an expression",
    ),
    Sample(
        "lmdeploy",
        "ValueError: The tool parser nope is not in the parser list: dict_keys(['deepseek-v32', 'llama3', 'qwen'])",
        "unknown_parser",
        True,
        "no tool parser named nope",
    ),
    Sample(
        "lmdeploy",
        "RuntimeError: ReasoningParser reasoning parser could not get reasoning tokens from the tokenizer:"
        " ['<think>', '</think>']",
        "reasoning_tokens_missing",
        True,
        "<think>",
    ),
    Sample(
        "lmdeploy",
        "RuntimeError: Could not find model architecture from config: {'transformers_version': '5.23.0'}",
        "architecture_unknown",
        True,
    ),
    Sample("lmdeploy", "AssertionError: Torch not compiled with CUDA enabled", "no_gpu", True),
    Sample(
        "lmdeploy",
        "lmdeploy.pytorch.engine.mp_engine.zmq_rpc.RPCServerDeadError: PyTorch ZMQ engine process is not alive.",
        "engine_process_died",
        False,
    ),
    Sample(
        "lmdeploy",
        "ERROR:    [Errno 98] error while attempting to bind on address ('127.0.0.1', 18000): address already in use",
        "port_in_use",
        False,
    ),
    # From LMDeploy 0.18.0's source: pytorch/engine/executor/base.py, pytorch/models/patch.py; torch 2.13.
    Sample("lmdeploy", "RuntimeError: No enough gpu memory for kv cache.", "no_cache_memory", True, "for the kv cache"),
    Sample(
        "lmdeploy",
        "AssertionError: No enough gpu memory for state cache. Please reduce max_batch_size.",
        "no_cache_memory",
        True,
        "for the state cache",
    ),
    Sample(
        "lmdeploy",
        "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.",
        "gpu_out_of_memory",
        True,
    ),
    Sample(
        "lmdeploy",
        "RuntimeError: Can not found rewrite for architectures: ['FooForCausalLM']",
        "architecture_unknown",
        True,
    ),
    # Recorded from xllamacpp 2026.10.11549 (llama.cpp build 11549): a bad flag, no file, a file that is no GGUF, a
    # template that does not parse.
    Sample(
        "llamacpp", "llamacpp_server: error: unrecognized arguments: --nope 3", "bad_option", True, "arguments: --nope"
    ),
    Sample(
        "llamacpp",
        "0.00.005.627 E gguf_init_from_file: failed to open GGUF file '/nope/x.gguf' (No such file or directory)",
        "weights_missing",
        True,
        "/nope/x.gguf",
    ),
    Sample(
        "llamacpp",
        "0.00.003.920 E llama_model_load: error loading model: llama_model_loader: failed to load model from x.gguf",
        "weights_unreadable",
        True,
    ),
    Sample(
        "llamacpp",
        "0.00.501.105 E common_chat_templates_init: failed to initialize chat template",
        "bad_template",
        True,
    ),
    Sample(
        "llamacpp",
        "0.00.501.123 E srv          init: init: chat template parsing error: std::exception",
        "bad_template",
        True,
    ),
    # From the strings of that build, the values filled in.
    Sample("llamacpp", "ggml_gallocr_reserve_n: failed to allocate CPU buffer of size 9", "out_of_memory", True),
    Sample("llamacpp", "ModuleNotFoundError: No module named 'xllamacpp'", "engine_missing", True),
    # Recorded from vLLM 0.32.0, whose socket was still there.
    Sample("vllm", "OSError: [Errno 98] Address already in use", "port_in_use", False),
    # CPython 3.11 and glibc 2.36.
    Sample("vllm", "OSError: [Errno 28] No space left on device", "disk_full", True),
    Sample("vllm", "ModuleNotFoundError: No module named 'vllm'", "module_missing", True, "no module vllm"),
    Sample(
        "vllm",
        "ImportError: libcudart.so.12: cannot open shared object file: No such file or directory",
        "library_missing",
        True,
        "libcudart.so.12",
    ),
]


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: f"{sample.engine}-{sample.code}")
def test_sample(sample: Sample) -> None:
    """Each recorded line, among others, is recognised: its code, whether a retry helps, and what it names."""
    tail = ["INFO starting", sample.line, "Traceback (most recent call last):", "", "RuntimeError: see above"]
    found = ADAPTERS[sample.engine].diagnose(ExitStatus(code=1), tail)
    assert (found.code, found.permanent) == (sample.code, sample.permanent)
    assert sample.said in found.reason
    assert "{" not in found.reason
    assert found.evidence == (
        "INFO starting",
        sample.line,
        "Traceback (most recent call last):",
        "RuntimeError: see above",
    )


def test_every_pattern_has_a_sample() -> None:
    """No row of a table is without a line it recognises."""
    seen = {(sample.engine, sample.code) for sample in SAMPLES}
    for engine, table in TABLES.items():
        for row in table:
            assert (engine, row.code) in seen
    assert {row.code for row in COMMON} <= {code for _, code in seen}


@pytest.mark.parametrize(
    "row", [row for table in (*TABLES.values(), COMMON) for row in table], ids=lambda row: str(row.code)
)
def test_every_pattern_says_where_and_what(row: Pattern) -> None:
    """A row has a source, a sentence of reason, a sentence of advice, and names only groups its pattern has."""
    assert row.source
    assert row.code == row.code.lower()
    assert row.advice.endswith(".")
    filled = row.reason.format(**dict.fromkeys(row.regex.groupindex, "x"))
    assert filled[0].isalpha()


def test_codes_are_unique_in_a_table() -> None:
    """One code per row, so that metrics tell the reasons apart."""
    for table in TABLES.values():
        codes = [row.code for row in table]
        assert len(codes) == len(set(codes))


def test_the_root_cause_wins_over_what_follows_it() -> None:
    """A row further up in the table wins, although its line stands further up in the log too."""
    tail = [
        "torch.OutOfMemoryError: CUDA out of memory.",
        "RuntimeError: Engine core initialization failed. See root cause above.",
        "OSError: [Errno 98] Address already in use",
    ]
    assert ADAPTERS["vllm"].diagnose(ExitStatus(code=1), tail).code == "gpu_out_of_memory"


def test_the_newest_line_of_a_row_wins() -> None:
    """Of several lines a row recognises, the last one fills the reason."""
    row = pattern("x", r"number (?P<n>\d)", "It was {n}.", "So.", source="here")
    found = first_match([row], ["number 1", "number 2", "other"])
    assert found is not None
    assert found.reason == "It was 2."


def test_a_brace_in_the_log_does_no_harm() -> None:
    """What the log holds is put in as it is, format characters included."""
    row = pattern("x", r"bad (?P<what>.*)", "It is {what}.", "So.", source="here")
    found = first_match([row], ["bad {0} {oops!r}"])
    assert found is not None
    assert found.reason == "It is {0} {oops!r}."


STATUSES = [
    (ExitStatus(signal=9), "killed", False, "out of memory"),
    (ExitStatus(code=127), "command_not_found", True, "could not be run"),
    (ExitStatus(code=3), "crashed", False, "exit code 3"),
    (ExitStatus(signal=11), "crashed", False, "killed by signal 11"),
    (ExitStatus(), "crashed", False, "unknown reason"),
    (ExitStatus(code=0), "crashed", False, "exit code 0"),
]


@pytest.mark.parametrize(("status", "code", "permanent", "said"), STATUSES)
def test_without_a_known_line_the_status_speaks(status: ExitStatus, code: str, permanent: bool, said: str) -> None:
    """Signal 9 points to the kernel's memory, 127 to the command; all else is a crash worth a retry."""
    found = diagnose((), status, ["nothing to see"])
    assert (found.code, found.permanent) == (code, permanent)
    assert said in found.reason
    assert str(found) == f"{found.reason} {found.advice}"


def test_evidence_is_the_last_that_says_something() -> None:
    """At most EVIDENCE_LINES lines, oldest first, without the empty ones."""
    tail = [text for number in range(20) for text in (f"line {number}", "  ")]
    assert evidence(tail) == tuple(f"line {number}" for number in range(20 - EVIDENCE_LINES, 20))
    assert evidence([]) == ()
