"""Exit status and log tail -> why it failed, against lines as engines print them."""

from __future__ import annotations

from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.diagnosis import EVIDENCE_LINES, ExitStatus, diagnose, evidence, first_match
from backends.engines import ADAPTERS
from backends.engines.llamacpp import PATTERNS as LLAMACPP
from backends.engines.lmdeploy import PATTERNS as LMDEPLOY
from backends.engines.vllm import PATTERNS as VLLM
from backends.pattern import Pattern, pattern
from backends.shared_patterns import COMMON, PYTORCH

TABLES: dict[str, tuple[Pattern, ...]] = {"vllm": VLLM, "lmdeploy": LMDEPLOY, "llamacpp": LLAMACPP}
"""The adapters that have a table of their own; every table is followed by COMMON."""
OWN = {engine: tuple(row for row in table if row not in PYTORCH) for engine, table in TABLES.items()}
SHARED = (*PYTORCH, *COMMON)


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
    Sample(
        "llamacpp",
        "0.00.004.749 E srv         start: couldn't bind HTTP server socket, hostname: 127.0.0.1, port: 18196",
        "port_in_use",
        False,
    ),
    Sample("llamacpp", "ggml_gallocr_reserve_n: failed to allocate CPU buffer of size 9", "out_of_memory", True),
    Sample("llamacpp", "ModuleNotFoundError: No module named 'xllamacpp'", "engine_missing", True),
    # Texts of build 11549, the values filled in; common/common.cpp, src/llama-adapter.cpp, src/llama-model.cpp.
    Sample(
        "llamacpp",
        "0.00.031.000 E cmn  common_init_: failed to load lora adapter '/l/a.gguf'",
        "adapter_unusable",
        True,
    ),
    Sample(
        "llamacpp",
        "llama_adapter_lora_init: failed to apply lora adapter: expect general.type to be 'adapter', but got: model",
        "adapter_unusable",
        True,
    ),
    Sample(
        "llamacpp",
        "llama_model_load: error loading model: error loading model architecture: unknown model architecture: 'qwen9'",
        "architecture_unknown",
        True,
        "architecture qwen9",
    ),
    Sample(
        "llamacpp",
        "llama_model_load: error loading model: error loading model vocabulary: unknown pre-tokenizer type: 'qwen9'",
        "tokenizer_unknown",
        True,
        "qwen9",
    ),
    Sample(
        "llamacpp",
        "llama_init_from_model: quantized V cache was requested, but this requires Flash Attention",
        "cache_needs_flash_attention",
        True,
    ),
    Sample(
        "llamacpp",
        "llama_model_load: error loading model: tensor 'blk.3.ffn_down.weight' data is not within the file bounds,"
        " model is corrupted or incomplete",
        "weights_incomplete",
        True,
    ),
    # From vLLM 0.32.0's source, the values filled in: lora/peft_helper.py, lora/lora_model.py, exceptions.py,
    # v1/worker/lora_model_runner_mixin.py, entrypoints/launchers/launcher.py, config/*.py, platforms/cuda.py.
    Sample(
        "vllm",
        "ValueError: LoRA rank 64 is greater than max_lora_rank 16.",
        "adapter_rank_too_high",
        True,
        "rank 64",
    ),
    Sample(
        "vllm",
        "ValueError: While loading /l/sql, expected target modules in {'o_proj', 'qkv_proj'} but received"
        " ['model.layers.0.mlp.router']. Please verify that the loaded LoRA module is correct",
        "adapter_modules_unsupported",
        True,
        "mlp.router",
    ),
    Sample(
        "vllm",
        '  File "/env/vllm/transformers_utils/utils.py", line 113, in parse_safetensors_file_metadata',
        "weights_unreadable",
        True,
    ),
    Sample("vllm", "ValueError: vLLM does not yet support DoRA.", "adapter_unsupported", True, "DoRA"),
    Sample("vllm", "ValueError: Adapter bias is not supported.", "adapter_unsupported", True, "bias"),
    Sample("vllm", "ValueError: MambaForCausalLM does not support LoRA yet.", "adapter_unsupported", True, "Mamba"),
    Sample("vllm", "ValueError: /l/sql doesn't contain tensors", "adapter_missing", True, "/l/sql"),
    Sample(
        "vllm",
        "KeyError: 'invalid tool call parser: hermess (chose from { hermes,mistral })'",
        "unknown_parser",
        True,
        "tool call parser named hermess",
    ),
    Sample(
        "vllm",
        "  Value error, Sleep mode is not supported on current platform. [type=value_error]",
        "sleep_unsupported",
        True,
    ),
    Sample(
        "vllm",
        "  Value error, Total number of attention heads (14) must be divisible by tensor parallel size (4).",
        "heads_not_divisible",
        True,
        "14 attention heads cannot be shared out to 4",
    ),
    Sample(
        "vllm",
        "  Value error, World size (8) is larger than the number of available GPUs (2) in this node.",
        "too_few_gpus",
        True,
        "8 GPUs, and vLLM sees 2",
    ),
    Sample(
        "vllm",
        "ValueError: Bfloat16 is only supported on GPUs with compute capability of at least 8.0. Your Tesla T4 GPU has"
        " compute capability 7.5. You can use float16 instead by explicitly setting the `dtype` flag in CLI",
        "dtype_unsupported",
        True,
        "capability 8.0.",
    ),
    Sample(
        "vllm",
        "ValueError: The quantization method fp8 is not supported for the current GPU. Minimum capability: 89. Current"
        " capability: 75.",
        "quantisation_unsupported",
        True,
        "quantisation fp8.",
    ),
    Sample(
        "vllm",
        "ValueError: torch.bfloat16 is not supported for quantization method awq. Supported dtypes: [torch.float16]",
        "quantisation_unsupported",
        True,
        "quantisation awq.",
    ),
    Sample(
        "vllm", "Unknown quantization method: awqq. Must be one of ['awq'].", "quantisation_unsupported", True, "awqq"
    ),
    # From LMDeploy 0.18.0's source: pytorch/check_env, turbomind/converter.py.
    Sample("lmdeploy", "2026-11-24 - lmdeploy - ERROR - <Adapter> check failed!", "adapter_unusable", True),
    Sample("lmdeploy", "model_format=fp8 requires sm>=9.0.", "quantisation_unsupported", True, "sm>=9.0"),
    Sample("lmdeploy", "RuntimeError: failed to locate weight files under /m", "weights_missing", True),
    # torch, CUDA's cudaGetErrorString, NCCL.
    Sample(
        "vllm",
        "RuntimeError: CUDA error: CUDA driver version is insufficient for CUDA runtime version",
        "driver_too_old",
        True,
    ),
    Sample(
        "lmdeploy",
        "RuntimeError: The NVIDIA driver on your system is too old (found version 11040). Please update it",
        "driver_too_old",
        True,
    ),
    Sample(
        "vllm",
        "torch.AcceleratorError: CUDA error: no kernel image is available for execution on the device",
        "gpu_unsupported",
        True,
    ),
    Sample("vllm", "RuntimeError: No CUDA GPUs are available", "no_gpu", True),
    Sample("vllm", "RuntimeError: Failed to infer device type, please set the environment variable", "no_gpu", True),
    Sample("vllm", "RuntimeError: CUDA error: all CUDA-capable devices are busy or unavailable", "gpu_busy", False),
    Sample(
        "vllm",
        "RuntimeError: NCCL error: unhandled system error (run with NCCL_DEBUG=INFO for details)",
        "gpus_cannot_talk",
        False,
        "unhandled system error",
    ),
    Sample(
        "vllm",
        "torch.AcceleratorError: CUDA error: an illegal memory access was encountered",
        "gpu_fault",
        False,
        "an illegal memory access",
    ),
    Sample("vllm", "torch.OutOfMemoryError: HIP out of memory. Tried to allocate 2.00 GiB", "gpu_out_of_memory", True),
    # transformers 5.19, huggingface_hub, safetensors 0.8.
    Sample("vllm", "OSError: You are trying to access a gated repo.", "repository_gated", True),
    Sample(
        "vllm",
        "huggingface_hub.errors.RepositoryNotFoundError: 401 Client Error. (Request ID: PvMw)",
        "repository_missing",
        True,
    ),
    Sample(
        "lmdeploy",
        "OSError: We couldn't connect to 'https://huggingface.co' to load the files, and couldn't find them in the"
        " cached files.",
        "download_failed",
        False,
    ),
    Sample(
        "vllm",
        "safetensors_rust.SafetensorError: Error while deserializing header: header too large",
        "weights_unreadable",
        True,
    ),
    Sample("vllm", "ValueError: Couldn't instantiate the backend tokenizer from one of: ", "tokenizer_missing", True),
    Sample(
        "lmdeploy",
        "ValueError: The repository /models/m contains custom code which must be executed to correctly load the model.",
        "code_not_trusted",
        True,
    ),
    Sample(
        "vllm",
        "  Value error, The checkpoint you are trying to load has model type `foo` but Transformers does not recognize"
        " this architecture.",
        "architecture_unknown",
        True,
    ),
    # Linux, glibc 2.36, CPython 3.11, NCCL.
    Sample(
        "vllm",
        "misc/shmutils.cc:72 NCCL WARN Error while creating shared memory segment /dev/shm/nccl-1a2b3c (size 9637888)",
        "shared_memory",
        True,
    ),
    Sample(
        "vllm",
        "ImportError: libcuda.so.1: cannot open shared object file: No such file or directory",
        "driver_missing",
        True,
    ),
    Sample(
        "llamacpp",
        "llama-server: /lib/libstdc++.so.6: version `GLIBCXX_3.4.32' not found (required by llama-server)",
        "library_too_old",
        True,
        "GLIBCXX_3.4.32",
    ),
    Sample(
        "vllm",
        "PermissionError: [Errno 13] Permission denied: '/models/m/config.json'",
        "permission_denied",
        True,
        "/models/m/config.json",
    ),
    Sample("vllm", "OSError: [Errno 24] Too many open files: 'x'", "too_many_open_files", True),
    Sample("vllm", "RuntimeError: can't start new thread", "too_many_processes", True),
    Sample(
        "vllm",
        "RuntimeError: [enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: you"
        " tried to allocate 268435456 bytes. Error code 12 (Cannot allocate memory)",
        "host_out_of_memory",
        False,
    ),
    Sample("vllm", "OSError: [Errno 122] Disk quota exceeded", "disk_full", True),
    Sample(
        "llamacpp",
        "srv  llama_server: couldn't bind HTTP server socket, hostname: 127.0.0.1, port: 18000",
        "port_in_use",
        False,
    ),
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
    """No row of a table is without a line it recognises, and none that is shared only works for one engine."""
    for engine, table in OWN.items():
        lines = [sample.line for sample in SAMPLES if sample.engine == engine]
        assert [row.code for row in table if not any(row.regex.search(line) for line in lines)] == []
    lines = [sample.line for sample in SAMPLES]
    assert [row.code for row in SHARED if not any(row.regex.search(line) for line in lines)] == []


@pytest.mark.parametrize(
    "row", [row for table in (*OWN.values(), SHARED) for row in table], ids=lambda row: str(row.code)
)
def test_every_pattern_says_where_and_what(row: Pattern) -> None:
    """A row has a source, a sentence of reason, a sentence of advice, and names only groups its pattern has."""
    assert row.source
    assert row.code == row.code.lower()
    assert row.advice.endswith(".")
    filled = row.reason.format(**dict.fromkeys(row.regex.groupindex, "x"))
    assert filled[0].isalpha()


def test_codes_are_unique_in_a_table() -> None:
    """One code per row, so that metrics tell the reasons apart; an engine's own row may be more exact than a shared."""
    for table in (*OWN.values(), SHARED):
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


def test_a_warning_of_vllms_is_no_reason() -> None:
    """What vLLM prints at every start where the limit of open files is low ended nothing."""
    warning = (
        "WARNING 11-24 08:01:02 [system_utils.py:293] Found ulimit of 1024 and failed to automatically increase with"
        " error. This can cause fd limit errors like `OSError: [Errno 24] Too many open files`. Consider increasing"
    )
    assert ADAPTERS["vllm"].diagnose(ExitStatus(code=1), [warning]).code == "crashed"


def test_a_symptom_is_believed_last() -> None:
    """What died is told only when nothing tells why, neither the engine's own table nor the shared ones."""
    died = "vllm.v1.engine.exceptions.EngineDeadError: EngineCore encountered an issue."
    why = "OSError: [Errno 28] No space left on device"
    for tail in ([why, died], [died, why]):
        assert ADAPTERS["vllm"].diagnose(ExitStatus(code=1), tail).code == "disk_full"
    assert ADAPTERS["vllm"].diagnose(ExitStatus(code=1), [died]).code == "engine_core_died"


def test_what_the_kernel_killed() -> None:
    """A kill for memory is believed before the log of the killed, and before a symptom; after a cause in the log of
    one that ended by itself, because what was killed may have been another.
    """
    died = "vllm.v1.engine.exceptions.EngineDeadError: EngineCore encountered an issue."
    warning = "ImportError: libcudart.so.12: cannot open shared object file: No such file or directory"
    for status in (ExitStatus(signal=9, oom_killed=True), ExitStatus(code=137, oom_killed=True)):
        assert ADAPTERS["vllm"].diagnose(status, [warning, died]).code == "host_out_of_memory"
    ended = ExitStatus(code=1, oom_killed=True)
    assert ADAPTERS["vllm"].diagnose(ended, [died]).code == "host_out_of_memory"
    assert ADAPTERS["vllm"].diagnose(ended, []).code == "host_out_of_memory"
    assert ADAPTERS["vllm"].diagnose(ended, [warning, died]).code == "library_missing"
    for unknown in (False, None):
        found = ADAPTERS["vllm"].diagnose(ExitStatus(signal=9, oom_killed=unknown), [])
        assert found.code == "killed"
        assert "probably" in found.reason


@given(st.lists(st.sampled_from(sorted({sample.line for sample in SAMPLES if sample.engine == "vllm"})), max_size=6))
def test_the_order_of_the_log_does_not_choose_the_cause(lines: list[str]) -> None:
    """Whatever order lines come in, the same cause is found, and it is that of the first row in the table of any."""
    rows = [row for row in (*VLLM, *COMMON) if any(row.regex.search(line) for line in lines)]
    causes = [row for row in rows if not row.is_symptom] or rows
    for tail in (lines, lines[::-1]):
        found = ADAPTERS["vllm"].diagnose(ExitStatus(code=1), tail)
        assert found.code == (causes[0].code if causes else "crashed")


STATUSES = [
    (ExitStatus(signal=9), "killed", False, "out of memory"),
    (ExitStatus(code=137), "killed", False, "out of memory"),
    (ExitStatus(signal=4), "illegal_instruction", True, "another CPU"),
    (ExitStatus(code=132), "illegal_instruction", True, "another CPU"),
    (ExitStatus(signal=7), "bus_error", False, "/dev/shm"),
    (ExitStatus(code=126), "command_not_executable", True, "may not be run"),
    (ExitStatus(code=127), "command_not_found", True, "could not be run"),
    (ExitStatus(code=3), "crashed", False, "exit code 3"),
    (ExitStatus(code=255), "crashed", False, "exit code 255"),
    (ExitStatus(signal=11), "segmentation_fault", False, "signal 11"),
    (ExitStatus(signal=6), "crashed", False, "killed by signal 6"),
    (ExitStatus(), "crashed", False, "unknown reason"),
    (ExitStatus(code=0), "crashed", False, "exit code 0"),
]


@pytest.mark.parametrize(("status", "code", "permanent", "said"), STATUSES)
def test_without_a_known_line_the_status_speaks(status: ExitStatus, code: str, permanent: bool, said: str) -> None:
    """Some signals and codes have a usual cause, also where a shell passes them on; all else is a crash."""
    found = diagnose((), status, ["nothing to see"])
    assert (found.code, found.permanent) == (code, permanent)
    assert said in found.reason
    assert str(found) == f"{found.reason} {found.advice}"


def test_the_line_that_tells_is_evidence() -> None:
    """It comes first when it stands above the last lines, so that nobody has to look for it; never twice."""
    why = "torch.OutOfMemoryError: CUDA out of memory."
    after = [f"  frame {number}" for number in range(20)]
    found = ADAPTERS["vllm"].diagnose(ExitStatus(code=1), [why, *after])
    assert found.evidence == (why, *after[-EVIDENCE_LINES + 1 :])
    found = ADAPTERS["vllm"].diagnose(ExitStatus(code=1), [*after, why])
    assert found.evidence == (*after[-EVIDENCE_LINES + 1 :], why)


def test_evidence_is_the_last_that_says_something() -> None:
    """At most EVIDENCE_LINES lines, oldest first, without the empty ones."""
    tail = [text for number in range(20) for text in (f"line {number}", "  ")]
    assert evidence(tail) == tuple(f"line {number}" for number in range(20 - EVIDENCE_LINES, 20))
    assert evidence([]) == ()
