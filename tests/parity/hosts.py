"""The running engines of the table, each watched at two places: what it says of a prompt, and what its model is given.

What an engine *says* is asked through its adapter's own plan, as the proof does. What its model *is given* is found
elsewhere, where the engine keeps it for the model: the ids in vLLM's answer, llama.cpp's slot, a file that LMDeploy's
stand-in engine writes. So a plan that lies, or a route that says one thing and does another, is found out.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import tempfile
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import httpx

from backends.adapter import Adapter, Body, Call, TokenizeRequest
from backends.address import Address
from backends.contract_texts import template_text
from backends.engines import ADAPTERS
from backends.engines.lmdeploy_contract import MODEL_FOLDER
from backends.prompting import CallRefused, Prompting
from backends.run_folder import write_run_folder
from backends.seen import CHAT
from backends.settings import ArgValue, BackendSettings, EngineSettings
from chat_templates.contract import Contract
from chat_templates.prompts import Seen
from chat_templates.rendering import DEFAULT
from tests.engines.environment import ROOT, lmdeploy_command, lmdeploy_python, vllm_python
from tests.gateways import free_port, until
from tests.parity.weights import cut_folder, cut_gguf

CONTEXT = 8192
"""In tokens; the battery's long text is 4 000."""
START_S = 300.0
ANSWER_S = 120.0
END_S = 30.0

GENERATE: Body = {"max_tokens": 1, "temperature": 0}
SEEN_FILE = "LMDEPLOY_CPU_SEEN"


class Session(Protocol):
    """One running engine with one contract. All it does blocks.

    at_once: how many requests it can be watched with at the same time.
    """

    at_once: int

    @property
    def backend(self) -> BackendSettings:
        """What it runs as."""

    @property
    def contract(self) -> Contract:
        """Whose prompts it is to make."""

    @property
    def adapter(self) -> Adapter:
        """What knows its engine."""

    def send(self, call: Call) -> Body:
        """The answer to *call*. Raises CallRefused."""

    def given(self, call: Call) -> Seen:
        """What the model is given for *call*, which has it generate. Raises CallRefused."""

    def tokenized(self, text: str) -> list[int]:
        """The ids that the engine makes of *text*, where nothing is added. Raises CallRefused."""


def driven(plan: Generator[Any, Any, Any], send: Callable[[Call], Body]) -> Any:
    """What *plan* comes to, its calls made by *send*."""
    try:
        call = next(plan)
        while True:
            try:
                answer = send(call)
            except CallRefused as problem:
                call = plan.throw(problem)
            else:
                call = plan.send(answer)
    except StopIteration as end:
        return end.value


@dataclass(frozen=True, slots=True)
class NotStarted:
    """An engine that ended at its start with *contract*. reason: its last lines."""

    contract: Contract
    reason: str


class EngineEnded(Exception):
    """At its start; the message is the end of its log."""


@dataclass(slots=True)
class Engine:
    """A running engine. backend: with the contract that its requests are under."""

    backend: BackendSettings
    client: httpx.Client
    known: dict[str, list[int]] = field(default_factory=dict)
    """The ids of texts; the tokenizer is the same for all templates."""
    at_once: int = 1

    @property
    def adapter(self) -> Adapter:
        """What knows it."""
        return ADAPTERS[self.backend.engine]

    @property
    def contract(self) -> Contract:
        """Whose prompts it is to make."""
        assert self.backend.prompting is not None
        return self.backend.prompting.contract

    @property
    def template(self) -> str:
        """The contract's template as the engine is given it, pinned variables in it."""
        return template_text(self.contract)

    def send(self, call: Call) -> Body:
        """The answer to *call*."""
        response = self.client.request(call.method, call.target, json=call.body)
        try:
            said = response.json()
        except ValueError:
            said = response.text
        if response.is_success and isinstance(said, dict):
            return said
        raise CallRefused(response.status_code, _reason(said))

    def tokenized(self, text: str) -> list[int]:
        """The ids of *text*, asked for once."""
        if text not in self.known:
            asked = TokenizeRequest(prompt=text, messages=None, add_special_tokens=False)
            self.known[text] = driven(self.adapter.tokenize(asked), self.send).tokens
        return self.known[text]


def _reason(said: object) -> str:
    if isinstance(said, dict):
        return _reason(said.get("error") or said.get("message") or said.get("detail") or str(said))
    return str(said)


def _generating(call: Call, **more: object) -> Call:
    return replace(call, body={**(call.body or {}), **GENERATE, **more})


class Vllm(Engine):
    """vLLM. The template comes with each request, which this server allows, and no gateway's.

    Both routes take it as they take that of the command line (entrypoints/chat_utils.py).
    """

    def send(self, call: Call) -> Body:
        """With the template."""
        if call.body is not None and call.target in ("/tokenize", CHAT):
            call = replace(call, body={**call.body, "chat_template": self.template})
        return Engine.send(self, call)

    def given(self, call: Call) -> Seen:
        """By ``return_token_ids``."""
        witness = self.adapter.witness
        return witness.seen(self.send(_generating(call, **witness.fields)))


class LlamaCpp(Engine):
    """llama.cpp, started for its contract."""

    def given(self, call: Call) -> Seen:
        """By its slot, which keeps the ids, and shows their text and number (LLAMA_SERVER_SLOTS_DEBUG)."""
        before = self._slot()
        try:
            self.send(_generating(call))
        except CallRefused:
            # a model of one layer says what no parser can read, for which there is a 500: its prompt was taken
            if self._slot().get("id_task") == before.get("id_task"):
                raise
        slot = self._slot()
        return Seen(text=slot["prompt"], count=slot["n_prompt_tokens"])

    def _slot(self) -> Body:
        slot: Body
        (slot,) = self.client.get("/slots").json()
        return slot


@dataclass(slots=True)
class InstalledLmdeploy(Engine):
    """LMDeploy's own server, started for its contract. taken: what its engine wrote down of each chat so far."""

    taken: dict[str, Seen] = field(default_factory=dict)

    def send(self, call: Call) -> Body:
        """Read what the engine writes down meanwhile."""
        answer = Engine.send(self, self._with_template(call))
        if call.target == CHAT:
            (*_, line) = Path(self.backend.env[SEEN_FILE]).read_bytes().splitlines()
            self.taken[_key(call)] = Seen(ids=tuple(json.loads(line)))
        return answer

    def given(self, call: Call) -> Seen:
        """By what was written down, be it when the plan asked for the very same."""
        asked = _generating(call)
        if _key(asked) not in self.taken:
            self.send(asked)
        return self.taken[_key(asked)]

    def _with_template(self, call: Call) -> Call:
        return call


class Lmdeploy(InstalledLmdeploy):
    """The same, where the template comes with each request, which a gateway lets no client do.

    All of ``chat_template_kwargs`` reaches `apply_chat_template` (model.py HFChatTemplate.messages2prompt). What the
    server cuts off a last message of the assistant is the installed template's.
    """

    def _with_template(self, call: Call) -> Call:
        if call.body is None or call.target != CHAT or call.body.get("input_ids"):
            return call
        return replace(call, body={**call.body, "chat_template_kwargs": {"chat_template": self.template}})


def _key(call: Call) -> str:
    return json.dumps(call.body, sort_keys=True)


def vllm_sessions(contracts: Sequence[Contract]) -> Generator[Session]:
    """One vLLM for all."""
    args: dict[str, ArgValue] = {
        "enforce-eager": True,
        "trust-request-chat-template": True,
        "enable-auto-tool-choice": True,
        "tool-call-parser": "hermes",
    }
    env = {"VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "2"}
    command = (str(vllm_python()), "-m", "vllm.entrypoints.openai.api_server")
    backend = _backend("vllm", cut_folder(), contracts[0], args, env)
    with running(backend, command) as client:
        known: dict[str, list[int]] = {}
        for contract in contracts:
            yield Vllm(replace(backend, prompting=_prompting(contract)), client, known, at_once=8)


def llamacpp_sessions(contracts: Sequence[Contract]) -> Generator[Session | NotStarted]:
    """A llama.cpp for each; one starts in a second."""
    # one thread: with two and a busy neighbour a token takes twenty times as long
    args: dict[str, ArgValue] = {"parallel": 1, "threads": 1, "threads-batch": 1, "slots": True, "no-warmup": True}
    known: dict[str, list[int]] = {}
    for contract in contracts:
        env = {"LLAMA_SERVER_SLOTS_DEBUG": "1", "PYTHONPATH": str(ROOT)}
        backend = _backend("llamacpp", cut_gguf(), contract, args, env)
        try:
            with running(backend) as client:
                yield LlamaCpp(backend, client, known)
        except EngineEnded as end:
            yield NotStarted(contract, str(end))


def lmdeploy_sessions(contracts: Sequence[Contract]) -> Generator[Session | NotStarted]:
    """One LMDeploy for all that it would start with."""
    text = (cut_folder() / "chat_template.jinja").read_text("utf-8")
    own = replace(contracts[0], name="smollm2", templates={DEFAULT: text}, pinned={})
    refusals = lmdeploy_refusals(contracts)
    with _lmdeploy(own) as (backend, client):
        for contract, refusal in zip(contracts, refusals, strict=True):
            if refusal is not None:
                yield NotStarted(contract, refusal)
            else:
                yield Lmdeploy(replace(backend, prompting=_prompting(contract)), client)


def lmdeploy_refusals(contracts: Sequence[Contract]) -> list[str | None]:
    """For each contract why LMDeploy ends at its start with it, None where it does not, by LMDeploy's own code."""
    adapter, place = ADAPTERS["lmdeploy"], Address(host="127.0.0.1", port=1)
    with tempfile.TemporaryDirectory(prefix="unigate-") as scratch:
        folders = []
        for number, contract in enumerate(contracts):
            run = Path(scratch) / str(number)
            backend = _backend("lmdeploy", cut_folder(), contract, {}, {})
            spec = adapter.launch_spec(backend, EngineSettings(tuple(lmdeploy_command())), place, run)
            write_run_folder(run, spec.files)
            folders.append(str(run / MODEL_FOLDER))
        script = str(Path(__file__).with_name("lmdeploy_starts.py"))
        environ = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        argv, asked = [str(lmdeploy_python()), script], json.dumps(folders).encode()
        done = subprocess.run(
            argv, input=asked, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environ, check=True
        )
    # the library prints where it likes
    said = [line for line in done.stdout.decode().splitlines() if line.startswith("SAID ")]
    return [json.loads(line.removeprefix("SAID ")) for line in said]


def installed_lmdeploy_sessions(contracts: Sequence[Contract]) -> Generator[Session | NotStarted]:
    """A LMDeploy for each; one starts in ten seconds."""
    for contract in contracts:
        try:
            with _lmdeploy(contract) as (backend, client):
                yield InstalledLmdeploy(backend, client)
        except EngineEnded as end:
            yield NotStarted(contract, str(end))


@contextmanager
def _lmdeploy(contract: Contract) -> Iterator[tuple[BackendSettings, httpx.Client]]:
    with tempfile.TemporaryDirectory(prefix="unigate-") as scratch:
        env = {"HF_HUB_OFFLINE": "1", SEEN_FILE: str(Path(scratch) / "seen")}
        backend = _backend("lmdeploy", cut_folder(), contract, {"tool-call-parser": "qwen3"}, env)
        with running(backend, tuple(lmdeploy_command())) as client:
            yield backend, client


SESSIONS: Mapping[str, Callable[[Sequence[Contract]], Generator[Session | NotStarted]]] = {
    "llamacpp": llamacpp_sessions,
    "vllm": vllm_sessions,
    "lmdeploy": lmdeploy_sessions,
}
"""By engine: the sessions of each contract in turn. An engine ends with its iterator."""


def _prompting(contract: Contract) -> Prompting:
    return Prompting(contract, Path(f"{contract.name}.contract.yaml"), cut_folder())


def _backend(
    engine: str, weights: Path, contract: Contract, args: Mapping[str, ArgValue], env: Mapping[str, str]
) -> BackendSettings:
    return BackendSettings(
        "m", engine, weights, args=args, env=env, context_length=CONTEXT, prompting=_prompting(contract)
    )


@contextmanager
def running(backend: BackendSettings, command: tuple[str, ...] = ()) -> Iterator[httpx.Client]:
    """A client of *backend*'s engine, started as the gateway starts it, and ended. Raises EngineEnded."""
    adapter = ADAPTERS[backend.engine]
    with tempfile.TemporaryDirectory(prefix="unigate-") as scratch:
        uds = str(Path(scratch) / "s.sock")
        place = Address(uds=uds) if "unix" in adapter.sockets else Address(host="127.0.0.1", port=free_port())
        spec = adapter.launch_spec(backend, EngineSettings(command), place, Path(scratch) / "run")
        write_run_folder(Path(scratch) / "run", spec.files)
        inherited = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        log = Path(scratch) / "log"
        with (
            log.open("wb") as output,
            subprocess.Popen(
                spec.argv, env={**inherited, **spec.env}, stdin=subprocess.DEVNULL, stdout=output, stderr=output
            ) as process,
            httpx.Client(
                transport=httpx.HTTPTransport(uds=place.uds or None),
                base_url="http://engine" if place.uds else f"http://{place.host}:{place.port}",
                timeout=ANSWER_S,
            ) as client,
        ):
            try:
                until(
                    lambda: _is_up(process, place, client, spec.probe.health, log), START_S, f"{backend.engine} is up"
                )
                yield client
            finally:
                process.terminate()
                try:
                    process.wait(END_S)
                except subprocess.TimeoutExpired:
                    process.kill()


def _is_up(process: subprocess.Popen[bytes], place: Address, client: httpx.Client, health: Call, log: Path) -> bool:
    if process.poll() is not None:
        raise EngineEnded(log.read_text(errors="replace")[-2000:])
    # httpcore leaves a socket open that could not be connected
    with socket.socket(socket.AF_UNIX if place.uds else socket.AF_INET) as probe:
        if probe.connect_ex(place.uds or (place.host, place.port)):
            return False
    try:
        return client.request(health.method, health.target).is_success
    except httpx.TransportError:
        return False
