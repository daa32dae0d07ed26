"""The embedded llama.cpp as a process of its own: how it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from backends.engines.llamacpp import EMBEDDED
from tests.engines.environment import ROOT, gguf_model
from tests.gateways import until

pytestmark = [pytest.mark.engine_llamacpp, pytest.mark.timeout(120)]

START_S = 60.0
END_S = 20.0


@pytest.fixture
def server() -> Iterator[subprocess.Popen[bytes]]:
    """One that listens; killed afterwards."""
    with tempfile.TemporaryDirectory(prefix="unigate-") as folder:
        uds = Path(folder) / "s.sock"
        argv = [sys.executable, "-P", "-m", EMBEDDED, "--model", str(gguf_model()), "--host", str(uds), "-c", "256"]
        environ = {**os.environ, "PYTHONPATH": str(ROOT)}
        with subprocess.Popen(argv, env=environ, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            try:
                until(uds.exists, START_S, "llama.cpp listens")
                # Ended within a millisecond of its load, its destructor waits for a loop that has not begun, for ever
                # (xllamacpp 2026.10.11549): a token shows that it has.
                with httpx.Client(transport=httpx.HTTPTransport(uds=str(uds)), timeout=START_S) as client:
                    asked = {"prompt": "Hi", "max_tokens": 1}
                    until(lambda: client.post("http://m/v1/completions", json=asked).is_success, START_S, "it answers")
                yield process
            finally:
                process.kill()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_ends_when_told_to(server: subprocess.Popen[bytes], number: signal.Signals) -> None:
    """TERM and INT end it with 0."""
    server.send_signal(number)
    assert server.wait(END_S) == 0


def test_it_ends_though_it_stood_still(server: subprocess.Popen[bytes]) -> None:
    """TERM that comes while it is stopped ends it once it goes on, whichever of its threads takes the signal."""
    server.send_signal(signal.SIGSTOP)
    server.send_signal(signal.SIGTERM)
    server.send_signal(signal.SIGCONT)
    assert server.wait(END_S) == 0
