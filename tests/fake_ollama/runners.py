"""The fake Ollama's scheduler: one child process per loaded weights file, loaded, kept, evicted and lost.

A child outlives a server that is killed, as llama-server does: nothing ties it to its parent.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from typing import Any

from tests.fake_ollama.faults import Faults
from tests.fake_ollama.store import Model, Refused, Store

CHILD = "import sys, time; time.sleep(600)"
TRAINED_CONTEXT = 8192


@dataclass
class Runner:
    """A loaded weights file. It is shown under the *name* that loaded it."""

    name: str
    digest: str
    blob: str
    num_ctx: int
    shift: bool
    child: subprocess.Popen[bytes]
    keep_alive_s: float
    users: int = 0
    used_at: float = field(default_factory=time.monotonic)

    @property
    def expires_at(self) -> float:
        """On the monotonic clock."""
        return self.used_at + self.keep_alive_s


def seconds(value: Any, default: float) -> float:
    """A keep_alive as Ollama reads it: a number of seconds, or Go's duration; below 0 is for ever. Raises Refused."""
    if value is None:
        return default
    with contextlib.suppress(ValueError, TypeError):
        number = float(value)
        return number if number >= 0 else 1e9
    units = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
    for unit, factor in units.items():
        with contextlib.suppress(ValueError):
            if str(value).endswith(unit):
                number = float(str(value).removesuffix(unit)) * factor
                return number if number >= 0 else 1e9
    raise Refused(400, f'time: invalid duration "{value}"')


class Scheduler:
    """Who is loaded. *most*: OLLAMA_MAX_LOADED_MODELS."""

    def __init__(self, store: Store, faults: Faults, most: int, num_ctx: int, parallel: int, keep_alive_s: float):
        self._store = store
        self._faults = faults
        self._most = most
        self._num_ctx = num_ctx
        self._parallel = parallel
        self._keep_alive_s = keep_alive_s
        self._runners: dict[str, Runner] = {}
        self._children: list[subprocess.Popen[bytes]] = []
        self._turn = threading.Lock()
        self._changed = threading.Condition()
        self.loads = 0
        threading.Thread(target=self._expire, daemon=True).start()

    def shown(self) -> list[Runner]:
        """As /api/ps lists them."""
        with self._changed:
            return list(self._runners.values())

    def load(self, model: Model, body: dict[str, Any]) -> None:
        """An empty request: it waits for a load, and for nobody's answer."""
        with self._turn, self._changed:
            runner = self._prepared(model, body)
            if body.get("keep_alive") is not None:
                runner.keep_alive_s = seconds(body["keep_alive"], 0)
            runner.used_at = time.monotonic()

    @contextlib.contextmanager
    def runner(self, model: Model, body: dict[str, Any]) -> Any:
        """The model's runner, loaded as *body* asks for it, for as long as the request lasts. Raises Refused."""
        keep_s = seconds(body.get("keep_alive"), self._keep_alive_s)
        with self._turn, self._changed:  # one at a time: nobody else is scheduled while one waits for room
            runner = self._prepared(model, body)
            runner.users += 1
        with self._changed:
            while runner.users > self._parallel:
                self._changed.wait()
        if body.get("keep_alive") is not None:
            runner.keep_alive_s = keep_s
        try:
            yield runner
        finally:
            with self._changed:
                runner.users -= 1
                runner.used_at = time.monotonic()
                self._changed.notify_all()
                if runner.keep_alive_s == 0 and runner.users == 0:
                    self._drop(runner)

    def unload(self, model: Model) -> None:
        """keep_alive 0 without a prompt."""
        with self._changed:
            runner = self._runners.get(model.blob)
            if runner is not None:
                runner.keep_alive_s = 0
                if runner.users == 0:
                    self._drop(runner)

    def end(self) -> None:
        """TERM: every child is ended, in the middle of whatever it does."""
        for child in self._children:
            child.kill()

    def _prepared(self, model: Model, body: dict[str, Any]) -> Runner:
        options = {**model.parameters, **(body.get("options") or {})}
        keep_s = seconds(body.get("keep_alive"), self._keep_alive_s)
        num_ctx = min(int(options.get("num_ctx", self._num_ctx)), TRAINED_CONTEXT)
        shift = body.get("shift", True)
        runner = self._runners.get(model.blob)
        while runner is not None and (runner.num_ctx, runner.shift) != (num_ctx, shift):
            if runner.users == 0:
                self._drop(runner)
                break
            self._changed.wait()
            runner = self._runners.get(model.blob)
        runner = self._runners.get(model.blob)
        if runner is not None and runner.child.poll() is not None:
            self._drop(runner)  # it died idle: it is loaded again without a word
            runner = None
        return runner or self._load(model, num_ctx, shift, keep_s)

    def _load(self, model: Model, num_ctx: int, shift: bool, keep_s: float) -> Runner:
        while len(self._runners) >= self._most:
            idle = [runner for runner in self._runners.values() if runner.users == 0]
            if idle:
                self._drop(min(idle, key=lambda runner: (runner.keep_alive_s, runner.blob)))
            else:
                self._changed.wait()
        path = self._store.blob(model.blob)
        if not path.exists():
            raise Refused(404, f'model "{model.name.removesuffix(":latest")}" not found, try pulling it first')
        if self._faults.load_error:
            raise Refused(500, self._faults.load_error)
        argv = [sys.executable, "-S", "-c", CHILD, "llama-server", "--model", str(path), "-c", str(num_ctx)]
        child = subprocess.Popen(argv, stdin=subprocess.DEVNULL)
        print(f'level=INFO msg="starting llama-server" pid={child.pid} model={path}', file=sys.stderr, flush=True)
        self._children.append(child)
        loaded_at = time.monotonic() + self._faults.slow_load_s
        while (left_s := loaded_at - time.monotonic()) > 0:
            self._changed.wait(left_s)
        self.loads += 1
        runner = Runner(model.name, model.digest, model.blob, num_ctx, shift, child, keep_s)
        self._runners[model.blob] = runner
        return runner

    def _drop(self, runner: Runner) -> None:
        runner.child.kill()
        runner.child.wait()
        self._runners.pop(runner.blob, None)
        self._changed.notify_all()

    def _expire(self) -> None:
        while True:
            time.sleep(0.02)
            with self._changed:
                for runner in list(self._runners.values()):
                    if runner.users == 0 and runner.expires_at <= time.monotonic():
                        self._drop(runner)
