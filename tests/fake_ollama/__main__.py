"""The fake Ollama as a process: ``python -m tests.fake_ollama serve``, its settings and faults in the environment."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from tests.fake_ollama.faults import faults_in
from tests.fake_ollama.runners import Scheduler, seconds
from tests.fake_ollama.server import VERSION, FakeOllama
from tests.fake_ollama.store import Store

WITHOUT_GPU = 3
"""Models that are loaded at once on a machine without a GPU when OLLAMA_MAX_LOADED_MODELS is 0."""


def main(words: list[str]) -> int:
    """Serve until TERM or INT, or tell the version as a client without a server does."""
    if "--version" in words:
        print(f"Warning: could not connect to a running Ollama instance\nWarning: client version is {VERSION}")
        return 0
    environ = os.environ
    faults = faults_in(environ)
    for name in sorted(environ):
        if name.startswith("OLLAMA_"):
            say(f"{name}={environ[name]}")
    if faults.exit_at_start is not None:
        say("Error: something in the start")
        return faults.exit_at_start
    host, _, port = environ.get("OLLAMA_HOST", "127.0.0.1:11434").rpartition(":")
    store = Store(Path(environ.get("OLLAMA_MODELS", "~/.ollama/models")).expanduser())
    scheduler = Scheduler(
        store,
        faults,
        most=int(environ.get("OLLAMA_MAX_LOADED_MODELS") or 0) or WITHOUT_GPU,
        num_ctx=int(environ.get("OLLAMA_CONTEXT_LENGTH") or 0) or 4096,
        parallel=int(environ.get("OLLAMA_NUM_PARALLEL") or 1),
        keep_alive_s=seconds(environ.get("OLLAMA_KEEP_ALIVE"), 300.0),
    )
    try:
        server = FakeOllama((host, int(port)), store, scheduler, faults, environ.get("OLLAMA_GO_TEMPLATE", ""))
    except OSError:
        say(f"Error: listen tcp {host}:{port}: bind: address already in use")
        return 1

    def end(*_: object) -> None:
        scheduler.end()
        sys.stderr.flush()
        os._exit(0)  # at once: it does not drain

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)
    say(f'level=INFO msg="Listening on {host}:{port} (version {VERSION})"')
    server.serve_forever()
    return 0


def say(text: str) -> None:
    """One log line: to stderr."""
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
