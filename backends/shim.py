"""The process between the gateway and one engine: it outlives neither, and leaves nothing behind.

    python -m backends.shim --orphan-grace-s 4 -- ARGV...

Theory of operation
-------------------
The gateway starts a shim per run, in a session of its own, with `UNIGATE_BACKEND_ID` in the environment. Three pipes:
stdin brings commands and, by its end, the news that the gateway is gone; stdout carries one JSON object per line about
the engine; stderr is the engine's log, which the shim never reads.

Why a process and not `PR_SET_PDEATHSIG`: that signal fires when the creating *thread* dies, and it reaches only the
engine's first process. vLLM's EngineCore and workers outlive a killed API server and keep the GPU (vllm#55510). The
shim is a subreaper, so such orphans become its children, and it ends them.

Commands, one byte each: ``t`` TERM to the engine's main process (engines stop their own children in order: LMDeploy
aborts running streams when the whole group is told), ``k`` KILL to everything of this run.
Ends: the main process exited -> what is left of the run gets TERM, then KILL after `LEFTOVER_GRACE_S`. The gateway is
gone, or the shim itself got TERM -> TERM, then KILL to everything after the orphan grace.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import json
import os
import select
import signal
import subprocess
import sys
import time

from backends.kill_set import MARKER, ProcessEntry, members, send, sweep

LEFTOVER_GRACE_S = 1.0
"""What a main process left behind when it ended gets this long between TERM and KILL."""

PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h

COMMAND_TERM = b"t"
COMMAND_KILL = b"k"

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class Shim:
    """One run of an engine, from spawn to the last process gone."""

    def __init__(self, argv: list[str], marker: str, orphan_grace_s: float) -> None:
        self._argv = argv
        self._marker = marker
        self._orphan_grace_s = orphan_grace_s
        self._main_pid = 0
        self._main_status: int | None = None
        self._kill_at: float | None = None
        self._control: int | None = 0
        self._wakeup, wakeup_writer = os.pipe()
        os.set_blocking(wakeup_writer, False)
        os.set_blocking(self._wakeup, False)
        signal.set_wakeup_fd(wakeup_writer)
        for number in (signal.SIGCHLD, *STOP_SIGNALS):
            signal.signal(number, lambda *_: None)

    def run(self) -> int:
        """Start the engine and stay until nothing of it is left. Returns the shim's own exit code."""
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        try:
            engine = subprocess.Popen(self._argv, stdin=subprocess.DEVNULL, stdout=2, stderr=2)  # noqa: S603
        except OSError as problem:
            tell(event="failed", message=f"{self._argv[0]}: {problem.strerror}")
            return 127
        self._main_pid = engine.pid
        tell(event="started", pid=engine.pid)
        while self._main_status is None:
            self._wait_once()
        tell(event="exited")  # before the sweep, which may take a second: nobody is to be sent there any more
        engine.returncode = os.waitstatus_to_exitcode(self._main_status)  # reaped here, not by Popen
        wedged = sweep(self._members, term_s=LEFTOVER_GRACE_S if self._kill_at is None else 0)
        tell(event="ended", status=engine.returncode, wedged=wedged)
        return 0

    def _wait_once(self) -> None:
        left_s = None if self._kill_at is None else max(0.0, self._kill_at - time.monotonic())
        watched = [self._wakeup] + ([self._control] if self._control is not None else [])
        ready, _, _ = select.select(watched, [], [], left_s)
        if self._control in ready:
            self._obey(os.read(self._control, 64))
        if self._wakeup in ready:
            numbers = os.read(self._wakeup, 64)
            if any(number in numbers for number in STOP_SIGNALS):
                self._stop_within(self._orphan_grace_s)
        self._reap()
        if self._main_status is None and self._kill_at is not None and time.monotonic() >= self._kill_at:
            self._kill_everything()

    def _obey(self, commands: bytes) -> None:
        if not commands:  # the end of the pipe: the gateway is gone, in whatever way
            self._control = None
            self._stop_within(self._orphan_grace_s)
        if COMMAND_TERM in commands:
            self._term_main()
        if COMMAND_KILL in commands:
            self._kill_at = time.monotonic()

    def _stop_within(self, grace_s: float) -> None:
        self._term_main()
        deadline = time.monotonic() + grace_s
        self._kill_at = deadline if self._kill_at is None else min(self._kill_at, deadline)

    def _term_main(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._main_pid, signal.SIGTERM)
            # A stopped process takes TERM only once it runs again.
            os.kill(self._main_pid, signal.SIGCONT)

    def _kill_everything(self) -> None:
        for entry in self._members():
            send(entry, signal.SIGKILL)
        self._kill_at = time.monotonic() + 0.1  # again, for what was forked meanwhile

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if pid == self._main_pid:
                self._main_status = status

    def _members(self) -> list[ProcessEntry]:
        if self._main_status is not None:
            self._reap()
        return members(self._marker, session=os.getsid(0), root=os.getpid())


def tell(**event: object) -> None:
    """One line to the gateway; it may be gone, which stdin tells us anyway."""
    with contextlib.suppress(OSError):
        os.write(1, json.dumps(event).encode() + b"\n")


def main(arguments: list[str]) -> int:
    """The command line: options, ``--``, the engine's argv."""
    parser = argparse.ArgumentParser(prog="backends.shim", description=__doc__)
    parser.add_argument("--orphan-grace-s", type=float, default=4.0)
    parser.add_argument("argv", nargs="+")
    options = parser.parse_args(arguments)
    return Shim(options.argv, os.environ[MARKER], options.orphan_grace_s).run()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
