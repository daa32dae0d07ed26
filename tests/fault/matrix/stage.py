"""A gateway with one engine behind a wire, and the counting of what a fault leaves behind."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import yaml

from tests.fault.matrix.cells import Outcome, Recovery
from tests.fault.matrix.clients import WHOLE, Asking
from tests.fault.matrix.engines import Engine
from tests.fault.wire import CONTROL, LINE, STARTS
from tests.gateways import Gateway, processes_of, start_gateway, until

PROMPT: list[Any] = [{"role": "user", "content": "Tell me a very long story about a river, and never stop."}]
ENDLESS = 1500
"""Tokens of a stream that is to be there when its fault comes: it ends by that, or by its client."""
GAUGES = ("unigate_requests_in_flight", "unigate_leases", "unigate_queue_depth")
SETTLED_S = 20.0
LOG_DISK_BYTES = 16 * 1024 * 1024
SEND_S = 2.0

_LINE = re.compile(LINE.format(0).replace("000000", r"(\d{6})"))


class Stage:
    """One engine's gateway, started by `open` and again by `reopen`; *folder* holds its state over all of them."""

    def __init__(self, engine: Engine, folder: Path, *, on_port: bool = False) -> None:
        self.engine = engine
        self.model = f"smol-{engine.key}"
        self.child_model = f"{self.model}-child" if engine.child_args else self.model
        self.process = engine.daemon or self.model
        self.folder = folder
        self.logs = folder / "state" / "logs"
        self.has_log_disk = False
        self._on_port = on_port
        self._control = Path(tempfile.mkdtemp(prefix="unigate-wire-"))
        self._gateway: Gateway | None = None
        self._earlier: list[Gateway] = []
        self.said = 0
        self._lost_before = 0

    @property
    def gateway(self) -> Gateway:
        """The gateway that serves now."""
        assert self._gateway is not None
        return self._gateway

    # its life

    def open(self) -> None:
        """Start the gateway; its models are started by who asks."""
        own = self.engine.model(self.folder)
        models = {self.model: {**self._common(), **own}}
        if self.engine.child_args:
            args = {**own.get("args", {}), **self.engine.child_args}
            models[self.child_model] = {**self._common(), **own, "args": args}
        wire = [sys.executable, "-m", "tests.fault.wire", str(self._control), "--"]
        section = {"command": [*wire, *self.engine.command()], **self.engine.section(self.folder)}
        if self._on_port:
            section["socket"] = "tcp"
        clocks = self.engine.clocks
        settings = {
            "timeouts": {"first_byte_s": clocks.first_byte_s, "idle_s": clocks.idle_s, "send_s": SEND_S},
            "log_rotate_bytes": 64 * 1024,
            "log_keep": 1000,
        }
        self._gateway = start_gateway(self.folder, models, settings=settings, engines={self.engine.engine: section})
        self._gateway.until_serving()

    def _common(self) -> dict[str, Any]:
        clocks = self.engine.clocks
        return {
            "engine": self.engine.engine,
            "load": "on_demand",
            "backoff": {"base_s": 0.2, "max_s": 1},
            "health": {"interval_s": 0.5, "timeout_s": clocks.health_timeout_s, "failures": 3},
            "start_stall_timeout_s": clocks.start_stall_s,
        }

    def reopen(self) -> None:
        """Start the gateway again, over the state of the one that has ended."""
        self._earlier.append(self.gateway)
        self.open()

    def close(self) -> None:
        """End the gateway. Fails when it leaves a process or tells of a mistake of its own."""
        with contextlib.ExitStack() as last:
            last.callback(shutil.rmtree, self._control)
            if self._gateway is None:
                return
            self._gateway.end()
            until(lambda: self.orphans() == 0, SETTLED_S, "no process is left")
            assert "Traceback" not in self._gateway.logged(), self._gateway.logged()

    # asking

    def body(self, tokens: int = ENDLESS, *, stream: bool = True, model: str | None = None) -> dict[str, Any]:
        """A chat request for *tokens* tokens, no fewer."""
        asked = {"model": model or self.model, "messages": PROMPT, "max_tokens": tokens, "stream": stream}
        return {**asked, "temperature": 0, **self.engine.asks}

    def ask(self, tokens: int = ENDLESS, *, stream: bool = True, model: str | None = None) -> Asking:
        """A client that has asked."""
        return Asking(self.gateway, self.body(tokens, stream=stream, model=model), self.engine.clocks.patience_s)

    def streaming(self, tokens: int = ENDLESS, model: str | None = None) -> Asking:
        """A client whose stream is under way."""
        client = self.ask(tokens, model=model)
        client.until_streaming()
        return client

    def recovery(self, since: float, model: str | None = None) -> Recovery:
        """Ask again and again until there is a whole answer."""
        deadline = time.monotonic() + self.engine.clocks.patience_s
        refused = 0
        while (story := self.ask(4, stream=False, model=model).story()) != WHOLE:
            assert time.monotonic() < deadline, f"no whole answer any more, but {story}"
            refused += 1
            time.sleep(0.1)
        return Recovery(time.monotonic() - since, refused)

    def until_process(self, *states: str) -> dict[str, Any]:
        """Wait until the backend whose process the engine is stands so; how it stands."""
        return self.gateway.until_state(self.process, *states, within_s=self.engine.clocks.patience_s)

    def stop_backend(self, name: str) -> None:
        """Have a backend STOPPED."""
        self.gateway.ask("POST", f"/admin/backends/{name}/unload")
        self.gateway.until_state(name, "stopped", within_s=self.engine.clocks.patience_s)

    def change_limit(self) -> None:
        """Write another limit of the gateway into its configuration."""
        document = yaml.safe_load(self.gateway.config.read_text())
        document["gateway"]["queue"] = {"max_waiting": 99}
        self.gateway.config.write_text(yaml.safe_dump(document))

    def change_model(self) -> None:
        """Write another context length of the model into the configuration."""
        document = yaml.safe_load(self.gateway.config.read_text())
        model = document["models"][self.model]
        model["context_length"] = model.get("context_length", 2048) - 8
        self.gateway.config.write_text(yaml.safe_dump(document))

    def child(self) -> int:
        """The pid of the engine's child without which it cannot answer."""
        process = self.engine.daemon or self.child_model
        for pid, marker in self.gateway.processes().items():
            with contextlib.suppress(OSError):
                words = Path(f"/proc/{pid}/comm").read_text() + Path(f"/proc/{pid}/cmdline").read_text()
                if marker.startswith(f"{process}:") and self.engine.child in words:
                    return pid
        raise AssertionError(f"no process {self.engine.child} of {process}")

    # the wire

    def fail_starts(self, *faults: str) -> None:
        """The next starts meet *faults*, one each."""
        (self._control / STARTS).write_text("\n".join(faults))

    def arm(self, fault: str) -> None:
        """The next generation meets *fault*."""
        self.order(arm=fault)

    def say(self, lines: int) -> None:
        """The engine's log gets so many numbered lines."""
        self.said = self.order(say=lines)["said"]

    def order(self, **order: Any) -> dict[str, Any]:
        """Tell the relay, and get its answer."""
        with socket.socket(socket.AF_UNIX) as wire:
            wire.connect(str(self._control / CONTROL))
            wire.sendall(json.dumps(order).encode() + b"\n")
            answer: dict[str, Any] = json.loads(wire.makefile().readline())
            return answer

    # what is left

    def outcome(self, client: str, recovery: Recovery, *, is_loss_told: bool = False) -> Outcome:
        """Everything counted, once it has had time to settle."""
        self.say(20)
        with contextlib.suppress(AssertionError):
            until(lambda: self.leaked_leases() == 0, SETTLED_S)
        with contextlib.suppress(AssertionError):
            until(lambda: self.orphans() == 0, SETTLED_S)
        with contextlib.suppress(AssertionError):
            until(lambda: self.said in self.logged_lines(), SETTLED_S)
        leaked, orphans = self.leaked_leases(), self.orphans()
        until(
            lambda: self.engine.busy(self.gateway, self.model) == 0, self.engine.clocks.patience_s, "its engine is idle"
        )
        lost, self._lost_before = self.lost_lines() - self._lost_before, self.lost_lines()
        return Outcome(client, recovery, orphans, leaked, lost, is_loss_told)

    def leaked_leases(self) -> int:
        """What the gateway counts as being under way, though nobody is served."""
        backends = {row["name"]: row for row in self.gateway.ask("GET", "/admin/backends").json()}
        models = {self.model, self.child_model}
        # each model that is there has a lease on its daemon, and is to have it
        due = sum(backends[model]["state"] == "ready" for model in models) if self.engine.daemon else 0
        shown = sum(row["leases"] + row["waiting"] for row in backends.values()) - due
        return int(shown + sum(self.gateway.metric(gauge, model=model) for gauge in GAUGES for model in models))

    def orphans(self) -> int:
        """Processes of an earlier gateway, or in this one of no backend's present run."""
        earlier = sum(len(processes_of(gateway.run)) for gateway in self._earlier)
        now = processes_of(self.gateway.run)
        if self.gateway.process.poll() is not None:
            return earlier + len(now)
        del now[self.gateway.process.pid]
        mains = [self.gateway.backend(name)["pid"] for name in self._processes()]
        present = {now[pid] for pid in mains if pid in now}
        return earlier + sum(marker not in present for marker in now.values())

    def logged_lines(self) -> set[int]:
        """The numbers of the lines that the log files hold."""
        return {number for name in self._processes() for number in self._lines_of(name)}

    def lost_lines(self) -> int:
        """How many of the lines said are not in a log file, or not in their order."""
        in_order = 0
        for process in self._processes():
            found = self._lines_of(process)
            in_order += sum(after > before for before, after in zip([0, *found], found, strict=False))
        return self.said - in_order

    def _processes(self) -> set[str]:
        """The backends that have processes."""
        return {self.engine.daemon} if self.engine.daemon else {self.model, self.child_model}

    def _lines_of(self, process: str) -> list[int]:
        """The numbered lines of a backend's log over all its files, the oldest first."""
        name = f"{quote(process, safe=' ')}.log"
        rotated = sorted(self.logs.glob(f"{name}.*"), key=lambda file: -int(file.suffix[1:]))
        files = [file for file in (*rotated, self.logs / name) if file.exists()]
        return [int(number) for file in files for number in _LINE.findall(file.read_text())]


@contextlib.contextmanager
def log_disk(stage: Stage) -> Iterator[None]:
    """A small disk of its own under the stage's logs, where that may be mounted."""
    stage.logs.mkdir(parents=True)
    options = ["-t", "tmpfs", "-o", f"size={LOG_DISK_BYTES}", "tmpfs", str(stage.logs)]
    stage.has_log_disk = subprocess.run(["mount", *options], capture_output=True, check=False).returncode == 0
    try:
        yield
    finally:
        if stage.has_log_disk:
            subprocess.run(["umount", str(stage.logs)], check=True)
