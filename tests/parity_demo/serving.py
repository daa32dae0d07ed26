"""The fine-tune served: by each engine's own command, as whoever has the export would, and by Unigate."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from tests.engines.environment import lmdeploy_command, vllm_python
from tests.gateways import ROOT, free_port, running_gateway, until
from tests.parity_demo.tuning import FineTune

MODEL = "mood"
START_S = 300.0
END_S = 30.0
CONTEXT_LENGTH = 1024

RAW, THROUGH = "raw", "through Unigate"


@dataclass(frozen=True, slots=True)
class Served:
    """*url*: where a client asks. *engine*: the engine itself. *prompts*: LMDeploy writes the ids of each there."""

    url: str
    engine: httpx.Client
    prompts: Path


@dataclass(frozen=True, slots=True)
class Engine:
    """How an engine is started on a small machine; nothing here touches a prompt.

    *command*, *variables* are its own; *argv* what is added to the command for an export and a port. *args* say in a
    configuration what *argv* says of the machine.
    """

    command: Callable[[], list[str]]
    argv: Callable[[FineTune, int], list[str]]
    weights: Callable[[FineTune], Path]
    variables: Mapping[str, str]
    args: Mapping[str, Any]


_LLAMACPP_SERVER = ROOT / "backends" / "engines" / "llamacpp_server.py"
"""llama-server's flags before the llama.cpp of xllamacpp; a file that is run by itself knows no gateway."""

ENGINES: Mapping[str, Engine] = {
    "vllm": Engine(
        command=lambda: [str(vllm_python()), "-m", "vllm.entrypoints.openai.api_server"],
        argv=lambda tune, port: [
            "--model", str(tune.export), "--served-model-name", MODEL, "--port", str(port),
            "--host", "127.0.0.1", "--max-model-len", str(CONTEXT_LENGTH), "--enforce-eager", "--dtype", "float32",
            "--max-num-seqs", "4",
        ],
        weights=lambda tune: tune.export,
        variables={"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "HF_HUB_OFFLINE": "1"},
        args={"dtype": "float32", "enforce-eager": True, "max-num-seqs": 4},
    ),
    "llamacpp": Engine(
        command=lambda: [sys.executable, "-P", str(_LLAMACPP_SERVER)],
        argv=lambda tune, port: [
            "--model", str(tune.gguf), "--alias", MODEL, "--host", "127.0.0.1", "--port", str(port),
            "--ctx-size", str(CONTEXT_LENGTH), "--slots", "--parallel", "1",
        ],
        weights=lambda tune: tune.gguf,
        # with it, GET /slots shows the text that is in a slot (tools/server/server-context.cpp, b11549)
        variables={"LLAMA_SERVER_SLOTS_DEBUG": "1"},
        args={"slots": True},
    ),
    "lmdeploy": Engine(
        command=lmdeploy_command,
        argv=lambda tune, port: [
            str(tune.export), "--model-name", MODEL, "--server-name", "127.0.0.1", "--server-port", str(port),
            "--session-len", str(CONTEXT_LENGTH),
        ],
        weights=lambda tune: tune.export,
        variables={"HF_HUB_OFFLINE": "1"},
        args={},
    ),
}  # fmt: skip


@contextlib.contextmanager
def served_raw(name: str, tune: FineTune, folder: Path) -> Iterator[Served]:
    """The engine *name* by its own command; what it prints goes to *folder*. It is ended afterwards.

    Raises:
        RuntimeError: it does not start; with the end of what it printed.
    """
    engine, port = ENGINES[name], free_port()
    prompts, printed = folder / "prompts.jsonl", folder / "printed.log"
    url = f"http://127.0.0.1:{port}"
    environ = {**os.environ, **engine.variables, "LMDEPLOY_CPU_PROMPTS": str(prompts)}
    environ.pop("PYTHONPATH", None)
    with printed.open("wb") as output:
        process = subprocess.Popen(
            [*engine.command(), *engine.argv(tune, port)],
            stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environ, cwd=folder,
        )  # fmt: skip
    try:
        with httpx.Client(base_url=url, timeout=START_S, trust_env=False) as client:

            def is_there() -> bool:
                if process.poll() is not None:
                    raise RuntimeError(f"{name} ended with {process.returncode}: {printed.read_text()[-2000:]}")
                with contextlib.suppress(httpx.TransportError):
                    return client.get("/health").is_success
                return False

            until(is_there, START_S, f"{name} is ready")
            yield Served(url, client, prompts)
    finally:
        process.terminate()
        try:
            process.wait(END_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextlib.contextmanager
def served_by_unigate(name: str, tune: FineTune, contract: Path, folder: Path) -> Iterator[Served]:
    """The engine *name* started by `unigate serve`, under *contract*."""
    engine = ENGINES[name]
    prompts = folder / "prompts.jsonl"
    model = {
        "engine": name,
        "weights": str(engine.weights(tune)),
        "context_length": CONTEXT_LENGTH,
        "template": {"contract": str(contract)},
        "args": dict(engine.args),
        "env": {**engine.variables, "LMDEPLOY_CPU_PROMPTS": str(prompts)},
        "start_timeout_s": START_S,
    }
    engines = {} if name == "llamacpp" else {name: {"command": engine.command()}}
    with running_gateway(folder, {MODEL: model}, engines=engines, is_ready=False) as gateway:
        state = gateway.until_state(MODEL, "ready", "failed", within_s=START_S)
        if state["state"] != "ready":
            raise RuntimeError(f"{name} is FAILED under its contract: {gateway.logged()[-2000:]}")
        address = gateway.backend(MODEL)["address"]
        transport = httpx.HTTPTransport(uds=address.removeprefix("unix:")) if address.startswith("unix:") else None
        base = "http://engine" if transport else f"http://{address.removeprefix('http://')}"
        with httpx.Client(transport=transport, base_url=base, timeout=START_S, trust_env=False) as client:
            yield Served(gateway.url, client, prompts)
