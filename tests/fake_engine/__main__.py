"""The fake engine as a process: ``python -m tests.fake_engine --uds PATH --served-model-name NAME [faults]``."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence

from tests.fake_engine.faults import CommandLine, ProcessFaults, command_line
from tests.fake_engine.server import FakeServer

CHILD_LIFE_S = 600


def main(arguments: Sequence[str]) -> int:
    """Serve until TERM or INT, or do what the faults say."""
    wanted = command_line(arguments)
    if wanted.process.ignore_sigterm:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    say(f"fake engine {os.getpid()}: serving {wanted.model}")
    early_exit = start_badly(wanted.process)
    if early_exit is not None:
        return early_exit
    return asyncio.run(serve(wanted))


def start_badly(faults: ProcessFaults) -> int | None:
    """What happens before listening; an exit code when the process shall end here."""
    if faults.stderr is not None:
        sys.stderr.write(faults.stderr.read_text(encoding="utf-8"))
        sys.stderr.flush()
    if faults.child:
        subprocess.Popen(["sleep", str(CHILD_LIFE_S)])
    if faults.setsid_child:
        subprocess.Popen(["sleep", str(CHILD_LIFE_S)], start_new_session=True)
    if faults.port_taken:
        say("[Errno 98] error while attempting to bind on address ('127.0.0.1', 8000): address already in use")
        return 1
    if faults.stall_start:
        signal.pause()
    time.sleep(faults.ready_after_s)
    return faults.exit_during_start


async def serve(wanted: CommandLine) -> int:
    """Listen until a signal or the fault that ends it. Exit code 0 after TERM or INT, else 1."""
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[int] = loop.create_future()
    signals = [signal.SIGINT] if wanted.process.ignore_sigterm else [signal.SIGINT, signal.SIGTERM]
    for number in signals:
        loop.add_signal_handler(number, _end, ended, 0)
    server = await FakeServer(wanted.model, wanted.answers, wanted.prompts).listen(wanted.place)
    say("fake engine: listening")
    if wanted.process.exit_after_s is not None:
        loop.call_later(wanted.process.exit_after_s, _end, ended, 1)
    code = await ended
    server.close()
    # Engines end with requests in flight; what is still open ends with the process.
    sys.stderr.flush()
    os._exit(code)


def _end(ended: asyncio.Future[int], code: int) -> None:
    if not ended.done():
        ended.set_result(code)


def say(text: str) -> None:
    """One log line, as engines write them: to stderr."""
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
