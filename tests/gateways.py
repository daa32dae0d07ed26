"""A real `unigate serve` before fake engines: started, asked, ended, and looked over for what it left behind."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import httpx
import yaml
from openai import AsyncOpenAI, DefaultAsyncHttpxClient, DefaultHttpxClient, OpenAI
from prometheus_client.parser import text_string_to_metric_families

ROOT = Path(__file__).parents[1]
UNIGATE = str(Path(sys.executable).with_name("unigate"))
MARKER = "UNIGATE_BACKEND_ID"
RUN = "UNIGATE_TEST_RUN"
"""Set on every gateway started here and inherited by all it starts, so that tests side by side do not meet."""

START_S = 30.0
END_S = 30.0
ANSWER_S = 10.0
POLL_S = 0.02

Found = TypeVar("Found")
Settings = Mapping[str, Any]


def until(question: Callable[[], Found | None], within_s: float = ANSWER_S, what: str = "") -> Found:
    """The first truthy answer to *question*, about something outside this process. Fails after *within_s*."""
    deadline = time.monotonic() + within_s
    while not (found := question()):
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {within_s:g} s: {what or question}; last seen: {found!r}")
        time.sleep(POLL_S)
    return found


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def weights_in(folder: Path) -> Path:
    """A folder that looks like a Hugging Face model, and holds none."""
    weights = folder / "weights"
    weights.mkdir(exist_ok=True)
    (weights / "config.json").write_text('{"architectures": ["Fake"]}')
    (weights / "model.safetensors").write_bytes(b"")
    return weights


def fake_model(folder: Path, *flags: str, load: str = "startup", **settings: Any) -> dict[str, Any]:
    """A model's section whose engine is the fake one, started with *flags*: ``"no-done"``, ``"chunks=3"``."""
    pairs = (flag.partition("=") for flag in flags)
    args = {name: value if equals else True for name, equals, value in pairs}
    return {"engine": "vllm", "weights": str(weights_in(folder)), "args": args, "load": load, **settings}


def environment(run: str, folder: Path, added: Mapping[str, str]) -> dict[str, str]:
    """What a gateway inherits: nothing of this machine but its PATH."""
    home = folder / "home"
    home.mkdir(exist_ok=True)
    kept = {name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ}
    return {**kept, "HOME": str(home), "PYTHONPATH": str(ROOT), RUN: run, **added}


def processes_of(run: str) -> dict[int, str]:
    """Every living process that inherited *run*: pid -> its marker, empty for one without."""
    found = {}
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        with contextlib.suppress(OSError):
            block = (folder / "environ").read_bytes().split(b"\0")
            if f"{RUN}={run}".encode() in block:
                variables = dict(item.partition(b"=")[::2] for item in block)
                found[int(folder.name)] = variables.get(MARKER.encode(), b"").decode()
    return found


@dataclass
class Gateway:
    """One gateway process. Its files are in *folder*; what it prints goes to *printed*."""

    folder: Path
    port: int
    process: subprocess.Popen[bytes]
    run: str
    printed: Path
    config: Path
    exit_codes: tuple[int, ...] = (0,)
    """With which it may have ended when the test is over; a test that kills it says so here."""
    environ: Mapping[str, str] = field(default_factory=dict)

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.port}"

    # asking

    def ask(self, method: str, path: str, **options: Any) -> httpx.Response:
        """One request of its own connection."""
        with httpx.Client(base_url=self.url, timeout=ANSWER_S, trust_env=False) as client:
            return client.request(method, path, **options)

    def openai(self, key: str = "any", max_retries: int = 0) -> OpenAI:
        """The official client; the caller closes it."""
        http = DefaultHttpxClient(trust_env=False)
        return OpenAI(
            base_url=f"{self.url}/v1", api_key=key, max_retries=max_retries, timeout=ANSWER_S, http_client=http
        )

    def async_openai(self, key: str = "any", max_retries: int = 0) -> AsyncOpenAI:
        """The official asynchronous client; the caller closes it."""
        http = DefaultAsyncHttpxClient(trust_env=False)
        return AsyncOpenAI(
            base_url=f"{self.url}/v1", api_key=key, max_retries=max_retries, timeout=ANSWER_S, http_client=http
        )

    def command(self, *words: str, environ: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        """`unigate WORDS` in the gateway's own folder and environment."""
        return unigate(*words, cwd=self.folder, environ={**self.environ, **(environ or {})})

    def samples(self) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
        """Every sample of /metrics by its name and labels."""
        families = text_string_to_metric_families(self.ask("GET", "/metrics").text)
        return {(s.name, frozenset(s.labels.items())): s.value for family in families for s in family.samples}

    def metric(self, name: str, **labels: str) -> float:
        """The sum of the samples called *name* that have all *labels*; 0 without one."""
        wanted = set(labels.items())
        return sum(value for (named, has), value in self.samples().items() if named == name and wanted <= has)

    # its backends

    def backend(self, model: str) -> dict[str, Any]:
        """A backend as the administration shows it."""
        found: dict[str, Any] = self.ask("GET", f"/admin/backends/{model.replace('#', '%23')}").json()
        return found

    def load(self, model: str) -> dict[str, Any]:
        """Start a backend and wait for the outcome."""
        answer = self.ask("POST", f"/admin/backends/{model}/load", params={"wait_s": START_S}, timeout=START_S + 5)
        found: dict[str, Any] = answer.json()
        return found

    def engine_state(self, model: str) -> dict[str, int]:
        """What the fake engine of *model* counts: running, started, finished, cancelled."""
        uds = self.backend(model)["address"].removeprefix("unix:")
        with httpx.Client(transport=httpx.HTTPTransport(uds=uds), base_url="http://localhost") as client:
            state: dict[str, int] = client.get("/__state").json()
            return state

    def last_body(self, model: str) -> Any:
        """The last request for an answer that the fake engine of *model* was sent."""
        uds = self.backend(model)["address"].removeprefix("unix:")
        with httpx.Client(transport=httpx.HTTPTransport(uds=uds), base_url="http://localhost") as client:
            return client.get("/__last").json()["body"]

    def until_idle(self, model: str, within_s: float = ANSWER_S) -> dict[str, int]:
        """Wait until nothing is under way for *model*: not here, not in its engine. Returns the engine's counts."""

        def idle() -> dict[str, int] | None:
            gauges = ("unigate_requests_in_flight", "unigate_leases", "unigate_queue_depth")
            is_busy = any(self.metric(gauge, model=model) for gauge in gauges)
            state = self.engine_state(model)
            return None if is_busy or state["running"] else state

        return until(idle, within_s, f"{model} is idle")

    def until_state(self, model: str, *states: str, within_s: float = START_S) -> dict[str, Any]:
        """Wait until a backend is in one of *states*; returns how it stands then."""

        def there() -> dict[str, Any] | None:
            backend = self.backend(model)
            return backend if backend["state"] in states else None

        return until(there, within_s, f"{model} is {' or '.join(states)}")

    def until_followed(self, model: str) -> None:
        """Wait until somebody follows the log of *model*: the connection of `unigate logs -f` is accepted."""
        until(lambda: self._connections() > 0, what=f"the log of {model} is followed")

    def _connections(self) -> int:
        """Established connections to its port, seen from the clients' side."""
        wanted, established = f"0100007F:{self.port:04X}", "01"
        rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
        return sum(row[2] == wanted and row[3] == established for row in rows)

    # its life

    def until_serving(self) -> None:
        """Wait until it answers at all."""

        def answers() -> bool:
            if self.process.poll() is not None:
                raise AssertionError(f"the gateway ended with {self.process.returncode}: {self.logged()}")
            with contextlib.suppress(httpx.TransportError):
                return self.ask("GET", "/health").is_success
            return False

        until(answers, START_S, "the gateway serves")

    def until_ready(self, within_s: float = START_S) -> None:
        """Wait until every startup model is READY."""
        until(lambda: self.ask("GET", "/ready").status_code == 200, within_s, "the gateway is ready")

    def logged(self) -> str:
        """All it has said: to the terminal and to its log file."""
        file = self.folder / "state" / "logs" / "gateway.log"
        return self.printed.read_text() + (file.read_text() if file.exists() else "")

    def until_logged(self, text: str, within_s: float = ANSWER_S) -> str:
        """Wait for a line with *text* in its log; returns that line."""

        def line() -> str:
            return next((line for line in self.logged().splitlines() if text in line), "")

        return until(line, within_s, f"a log line with {text!r}")

    def signal(self, number: signal.Signals) -> None:
        """Signal the gateway's own process."""
        self.process.send_signal(number)

    def processes(self) -> dict[int, str]:
        """Its engines' processes, shims included: pid -> marker."""
        return {pid: marker for pid, marker in processes_of(self.run).items() if marker}

    def end(self) -> None:
        """TERM it unless it has ended, and wait. KILL is for a gateway that does not obey, which is a failure."""
        if self.process.poll() is None:
            self.process.terminate()
        try:
            self.process.wait(END_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(END_S)
            raise AssertionError(f"the gateway did not end {END_S:g} s after TERM: {self.logged()}") from None

    def assert_left_nothing(self) -> None:
        """It ended as it should, without a traceback, and no process of its engines lives on."""
        assert self.process.returncode in self.exit_codes, self.logged()
        assert processes_of(self.run) == {}
        assert "Traceback" not in self.logged(), self.logged()


@contextlib.contextmanager
def running_gateway(
    folder: Path,
    models: Mapping[str, Settings],
    *,
    settings: Settings | None = None,
    engines: Settings | None = None,
    environ: Mapping[str, str] | None = None,
    words: Sequence[str] = (),
    is_ready: bool = True,
) -> Iterator[Gateway]:
    """A gateway with *models*, ready unless *is_ready* is False; ended and looked over afterwards.

    *settings* are further keys of its ``gateway`` section, *engines* another such section, *environ* further variables,
    *words* further options of ``unigate serve``.
    """
    gateway = start_gateway(folder, models, settings=settings, engines=engines, environ=environ, words=words)
    try:
        gateway.until_serving()
        if is_ready:
            gateway.until_ready()
        yield gateway
    finally:
        gateway.end()
    gateway.assert_left_nothing()


def start_gateway(
    folder: Path,
    models: Mapping[str, Settings],
    *,
    settings: Settings | None = None,
    engines: Settings | None = None,
    environ: Mapping[str, str] | None = None,
    words: Sequence[str] = (),
) -> Gateway:
    """Start a gateway and return at once; the caller ends it."""
    port = free_port()
    config = folder / "unigate.yaml"
    document = {
        "gateway": {"port": port, "state_dir": str(folder / "state"), **(settings or {})},
        "engines": engines if engines is not None else {"vllm": {"command": fake_engine_command()}},
        "models": {name: dict(model) for name, model in models.items()},
    }
    config.write_text(yaml.safe_dump(document, sort_keys=False))
    run = secrets.token_hex(8)
    variables = environment(run, folder, environ or {})
    printed = folder / "printed.log"
    with printed.open("wb") as output:
        process = subprocess.Popen(
            [UNIGATE, "serve", "-c", str(config), *words], cwd=folder, env=variables, stdout=output, stderr=output,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
    return Gateway(folder, port, process, run, printed, config, environ=variables)


def fake_engine_command() -> list[str]:
    """The command of ``engines.vllm`` that starts the fake engine."""
    return [sys.executable, "-m", "tests.fake_engine"]


def unigate(*words: str, cwd: Path, environ: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """`unigate WORDS`, waited for; never a terminal."""
    return subprocess.run(
        [UNIGATE, *words], cwd=cwd, env=dict(environ), capture_output=True, text=True, timeout=START_S,
        stdin=subprocess.DEVNULL, check=False,
    )  # fmt: skip


def events_of(stream: Sequence[str] | str) -> list[Any]:
    """The data of each event of a stream, as JSON; ``"[DONE]"`` stays the text it is."""
    lines = stream.splitlines() if isinstance(stream, str) else stream
    data = [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]
    return [item if item == "[DONE]" else json.loads(item) for item in data]
