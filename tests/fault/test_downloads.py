"""A gateway and `unigate pull` that download models: seen, waited for, interrupted, and gone on with."""

from __future__ import annotations

import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.gateways import UNIGATE, environment, processes_of, running_gateway, unigate, until
from tests.hubs import Hub, model_files, running_hub

MIB = 1024 * 1024
SIZE = 24 * MIB
HELD = 12 * MIB
PROMPT_S = 5.0
"""Within so long after a stop nothing may be left of a download."""
KEY = "hf_key-of-the-tests"

pytestmark = pytest.mark.timeout(120)


@pytest.fixture
def hub() -> Iterator[Hub]:
    """Both hubs, with one model."""
    with running_hub({"org/m": model_files(SIZE)}) as running:
        yield running


def model(weights: str = "hf:org/m", **settings: Any) -> dict[str, Any]:
    """A model on a hub, for the fake engine."""
    return {"engine": "vllm", "weights": weights, **settings}


def until_half(gateway: Any) -> str:
    """Wait until half of the model is there, where the hub holds; returns how that is shown."""

    def phase() -> str:
        shown: str = gateway.backend("m")["phase"]
        percent = re.search(r"downloading (\d+)%", shown)
        return shown if percent and int(percent[1]) >= 100 * (HELD - MIB) // SIZE else ""

    return until(phase, 30, "half of the model is downloaded")


@pytest.mark.parametrize("scheme", ["hf", "modelscope"])
def test_a_model_is_downloaded_and_served(tmp_path: Path, hub: Hub, scheme: str) -> None:
    """A configured source is downloaded at the start, its percentage is the phase everywhere, and then it answers."""
    hub.hold_after = HELD
    environ = {**hub.environ(), "HF_TOKEN": KEY, "MODELSCOPE_API_TOKEN": KEY}
    folders = {"models_dir": str(tmp_path / "models")}
    with running_gateway(
        tmp_path, {"m": model(f"{scheme}:org/m")}, settings=folders, environ=environ, is_ready=False
    ) as gateway:
        phase = until_half(gateway)
        assert phase.startswith("downloading ")
        assert "% of 25 MB" in phase
        assert gateway.backend("m")["state"] == "starting"
        assert "downloading" in gateway.command("ps").stdout
        assert gateway.processes() == {}
        hub.released.set()
        gateway.until_ready()
        with gateway.openai() as client:
            answer = client.chat.completions.create(model="m", messages=[{"role": "user", "content": "Hi"}])
        assert answer.usage is not None
        for pid in gateway.processes():
            assert KEY.encode() not in Path(f"/proc/{pid}/environ").read_bytes()
        assert KEY not in gateway.logged() + gateway.command("logs", "m").stdout


def test_a_request_waits_for_the_download(tmp_path: Path, hub: Hub) -> None:
    """A request for a cold model starts its download, and is answered when it has arrived."""
    folders = {"models_dir": str(tmp_path / "models")}
    with running_gateway(tmp_path, {"m": model(load="on_demand")}, settings=folders, environ=hub.environ()) as gateway:
        assert hub.requests == []
        body = {"model": "m", "messages": [{"role": "user", "content": "Hi"}]}
        answer = gateway.ask("POST", "/v1/chat/completions", json=body, timeout=60)
        assert answer.status_code == 200
        assert len(hub.sent_of("model.safetensors")) == 1


def test_a_stop_in_mid_download(tmp_path: Path, hub: Hub) -> None:
    """TERM ends gateway and download promptly; the next gateway goes on where they were."""
    hub.hold_after = HELD
    folders = {"models_dir": str(tmp_path / "models")}
    with running_gateway(tmp_path, {"m": model()}, settings=folders, environ=hub.environ(), is_ready=False) as gateway:
        until_half(gateway)
        gateway.signal(signal.SIGTERM)
        gateway.process.wait(PROMPT_S)
    hub.hold_after = 0
    with running_gateway(tmp_path, {"m": model()}, settings=folders, environ=hub.environ()):
        _, rest = hub.sent_of("model.safetensors")
        assert rest.start >= HELD - MIB
        assert rest.size == SIZE - rest.start


def test_an_unload_in_mid_download(tmp_path: Path, hub: Hub) -> None:
    """Unloading ends the download, the gateway stays; loading again goes on with it."""
    hub.hold_after = HELD
    folders = {"models_dir": str(tmp_path / "models")}
    with running_gateway(tmp_path, {"m": model()}, settings=folders, environ=hub.environ(), is_ready=False) as gateway:
        until_half(gateway)
        assert gateway.command("unload", "m", "--wait", str(PROMPT_S)).returncode == 0
        assert list(processes_of(gateway.run)) == [gateway.process.pid]
        hub.hold_after = 0
        assert gateway.load("m")["state"] == "ready"
        assert hub.sent_of("model.safetensors")[1].start >= HELD - MIB


def test_kill_9_of_the_gateway_in_mid_download(tmp_path: Path, hub: Hub) -> None:
    """The download does not outlive the gateway, whatever ends that."""
    hub.hold_after = HELD
    folders = {"models_dir": str(tmp_path / "models")}
    with running_gateway(tmp_path, {"m": model()}, settings=folders, environ=hub.environ(), is_ready=False) as gateway:
        until_half(gateway)
        gateway.exit_codes = (-signal.SIGKILL,)
        gateway.signal(signal.SIGKILL)
        gateway.process.wait()
        until(lambda: not processes_of(gateway.run), PROMPT_S, "the download is gone")


def test_a_gated_model_is_failed_with_its_reason(tmp_path: Path, hub: Hub) -> None:
    """A model whose terms were not accepted is FAILED at once, and every request says what to do about it."""
    hub.file_status = 403
    folders = {"models_dir": str(tmp_path / "models")}
    with running_gateway(tmp_path, {"m": model()}, settings=folders, environ=hub.environ(), is_ready=False) as gateway:
        gateway.until_state("m", "failed")
        answer = gateway.ask("POST", "/v1/chat/completions", json={"model": "m", "messages": []})
        assert answer.status_code == 503
        assert answer.headers["x-should-retry"] == "false"
        assert "set HF_TOKEN" in answer.json()["error"]["message"]


# --- unigate pull ---


def config(folder: Path, *words: str) -> Path:
    """A configuration of models with these weights, which are downloaded below *folder*."""
    lines = [f"  m{number}: {{engine: vllm, weights: '{word}'}}" for number, word in enumerate(words)]
    path = folder / "unigate.yaml"
    path.write_text("\n".join([f"gateway: {{models_dir: {folder}/models}}", "models:", *lines, ""]))
    return path


def test_pull(tmp_path: Path, hub: Hub) -> None:
    """`unigate pull` downloads what the configuration names, prints where it lies, and what it did on the way."""
    config(tmp_path, "hf:org/m", "modelscope:org/m", "/elsewhere")
    environ = environment("", tmp_path, hub.environ())
    done = unigate("pull", "-c", "unigate.yaml", cwd=tmp_path, environ=environ)
    assert done.returncode == 0, done.stderr
    folders = [tmp_path / "models" / scheme / "org" / "m" for scheme in ("hf", "modelscope")]
    assert done.stdout.splitlines() == [str(folder) for folder in folders]
    assert "… hf:org/m: downloading " in done.stderr
    assert "✓ hf:org/m (25 MB)" in done.stderr
    assert all((folder / "model.safetensors").stat().st_size == SIZE for folder in folders)
    asked = len(hub.requests)
    again = unigate("pull", cwd=tmp_path, environ=environ)
    assert (again.returncode, again.stdout, len(hub.requests)) == (0, done.stdout, asked)
    checked = unigate("check", "--no-versions", cwd=tmp_path, environ=environ)
    assert f"hf:org/m is complete: 25 MB in {folders[0]}" in checked.stdout


def test_pull_to_a_folder(tmp_path: Path, hub: Hub) -> None:
    """A source named on the command line goes below --to, and without that into the data folder."""
    environ = environment("", tmp_path, hub.environ())
    done = unigate("pull", "hf:org/m:config.json", "--to", "disk", cwd=tmp_path, environ=environ)
    assert done.stdout == f"{tmp_path}/disk/hf/org/m/config.json\n", done.stderr
    done = unigate("pull", "modelscope:org/m:config.json", cwd=tmp_path, environ=environ)
    assert done.stdout == f"{tmp_path}/home/.local/share/unigate/models/modelscope/org/m/config.json\n", done.stderr


def test_pull_interrupted(tmp_path: Path, hub: Hub) -> None:
    """Ctrl-C ends it with what to do next, leaves no process, and the same command goes on where it was."""
    hub.hold_after = HELD
    environ = environment("pull-interrupted", tmp_path, hub.environ())
    argv = [UNIGATE, "pull", "hf:org/m", "--to", str(tmp_path)]
    with subprocess.Popen(argv, cwd=tmp_path, env=environ, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL) as pulling:
        part = tmp_path / "hf" / "org" / "m" / ".unigate" / "parts"
        until(lambda: sum(path.stat().st_size for path in part.glob("*.part")) >= HELD - MIB, 30, "half is there")
        pulling.send_signal(signal.SIGINT)
        assert pulling.stderr is not None
        said = pulling.stderr.read().decode()
    assert pulling.returncode == 130
    assert "interrupted; run the same command again to go on" in said
    assert "Traceback" not in said
    assert processes_of("pull-interrupted") == {}
    hub.hold_after = 0
    done = unigate(*argv[1:], cwd=tmp_path, environ=environ)
    assert done.returncode == 0, done.stderr
    assert hub.sent_of("model.safetensors")[1].start >= HELD - MIB


def test_pull_that_fails(tmp_path: Path, hub: Hub) -> None:
    """One source that fails does not keep the others; the end says which, why, and what to do."""
    environ = environment("", tmp_path, hub.environ())
    done = unigate("pull", "hf:org/none", "hf:org/m:config.json", "--to", ".", cwd=tmp_path, environ=environ)
    assert done.returncode == 1
    assert done.stdout == f"{tmp_path}/hf/org/m/config.json\n"
    assert "error: hf:org/none: Hugging Face shows us no model org/none. Correct the model's weights" in done.stderr
    done = unigate("pull", "hf:none", cwd=tmp_path, environ=environ)
    assert (done.returncode, done.stdout) == (2, "")
    assert "error: hf:none: must have both an organisation and a name; write it as hf:ORG/NAME" in done.stderr
