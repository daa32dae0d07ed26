"""`unigate quickstart` as a newcomer runs it: one command, a real model that answers, Ctrl-C."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import openai
import pytest
import yaml

from tests.engines.environment import gguf_model
from tests.gateways import RUN, UNIGATE, free_port, processes_of, until

pytestmark = [pytest.mark.engine_llamacpp, pytest.mark.timeout(180)]

READY_S = 90.0
QUESTION = "What is the capital of France?"


class Quickstart:
    """One run of the command in *folder*, in its own process group, as a terminal would have it."""

    def __init__(self, folder: Path) -> None:
        self.run = secrets.token_hex(8)
        self.printed = folder / "printed.log"
        with self.printed.open("wb") as output:
            self.process = subprocess.Popen(
                [UNIGATE, "quickstart"], cwd=folder, env={**os.environ, RUN: self.run}, stdin=subprocess.DEVNULL,
                stdout=output, stderr=output, start_new_session=True,
            )  # fmt: skip

    def says(self, text: str) -> bool:
        """Whether it has printed *text*; fails when it has ended without."""
        printed = self.printed.read_text()
        if text not in printed and self.process.poll() is not None:
            raise AssertionError(printed)
        return text in printed

    def interrupt(self) -> int:
        """Ctrl-C; the exit code."""
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(30)


Begin = Callable[[], Quickstart]


@pytest.fixture
def begin(folder: Path) -> Iterator[Begin]:
    """Starts the command; a run that a failed test leaves behind is ended."""
    begun: list[Quickstart] = []

    def start() -> Quickstart:
        begun.append(Quickstart(folder))
        return begun[-1]

    yield start
    for quickstart in begun:
        if quickstart.process.poll() is None:
            quickstart.interrupt()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder whose configuration names a free port, because 8080 may be in use where tests run."""
    model = {"engine": "llamacpp", "weights": str(gguf_model()), "context_length": 1024}
    document = {"gateway": {"port": free_port(), "state_dir": ".unigate"}, "models": {"smollm2-135m": model}}
    (tmp_path / "unigate.yaml").write_text(yaml.safe_dump(document))
    return tmp_path


def run_to_its_end(folder: Path) -> subprocess.CompletedProcess[str]:
    """A run that is expected to refuse."""
    command = [UNIGATE, "quickstart"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=90, check=False)


def test_a_newcomers_first_minutes(folder: Path, begin: Begin) -> None:
    """It waits until the model has really answered, says what to do next, and Ctrl-C leaves nothing; then again."""
    port = yaml.safe_load((folder / "unigate.yaml").read_text())["gateway"]["port"]
    for _ in range(2):
        quickstart = begin()
        until(lambda started=quickstart: started.says("Ctrl-C stops everything"), READY_S)  # type: ignore[misc]
        printed = quickstart.printed.read_text()
        assert f"{QUESTION} The capital of France is Paris." in printed
        assert f"http://127.0.0.1:{port}/v1" in printed
        assert str(folder / "unigate.yaml") in printed
        with openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="x") as client:
            answer = client.chat.completions.create(
                model="smollm2-135m", messages=[{"role": "user", "content": QUESTION}], temperature=0
            )
        assert "Paris" in (answer.choices[0].message.content or "")
        assert quickstart.interrupt() == 0
        assert processes_of(quickstart.run) == {}


def test_the_snippet_it_prints_works(begin: Begin) -> None:
    """The Python lines it prints answer Paris when they are run as they stand."""
    quickstart = begin()
    until(lambda: quickstart.says("Ctrl-C stops everything"), READY_S)
    lines = quickstart.printed.read_text().splitlines()
    first = next(index for index, line in enumerate(lines) if "from openai import OpenAI" in line)
    snippet = "\n".join(line.removeprefix("  ") for line in lines[first : lines.index("", first)])
    done = subprocess.run(
        [sys.executable, "-c", snippet], capture_output=True, text=True, timeout=60, check=True,
        env={**os.environ, "PYTHONWARNINGS": "default"},
    )  # fmt: skip
    assert "Paris" in done.stdout
    assert quickstart.interrupt() == 0


def test_a_second_one_beside_it_is_told_why_not(folder: Path, begin: Begin) -> None:
    """A second run in the same folder ends at once with one sentence, and the first goes on."""
    quickstart = begin()
    until(lambda: quickstart.says("is ready"), READY_S)
    began = time.monotonic()
    second = subprocess.run(
        [UNIGATE, "quickstart"], cwd=folder, capture_output=True, text=True, timeout=60, check=False
    )
    assert second.returncode == 1
    assert "it runs already" in second.stderr
    assert "Traceback" not in second.stderr
    assert time.monotonic() - began < 30
    assert quickstart.process.poll() is None
    assert quickstart.interrupt() == 0


def test_it_writes_a_configuration_once(tmp_path: Path) -> None:
    """The starter configuration loads, and a configuration that is there already is never overwritten."""
    config = tmp_path / "unigate.yaml"
    config.write_text("models: {mine: {engine: external, url: 'http://127.0.0.1:9/v1'}}\n")
    before = config.read_bytes()
    done = subprocess.run(
        [UNIGATE, "quickstart"], cwd=tmp_path, capture_output=True, text=True, timeout=90, check=False
    )
    assert done.returncode == 1
    assert "has no model smollm2-135m" in done.stderr
    assert config.read_bytes() == before
