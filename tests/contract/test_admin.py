"""Operating a running gateway: the command line over /admin, and who may use it."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.contract.conftest import Secrets
from tests.gateways import ROOT, START_S, UNIGATE, Gateway, environment, fake_model, free_port, running_gateway, unigate


@pytest.fixture(scope="module")
def steered(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """A gateway whose backends these tests load, unload and restart."""
    folder: Path = tmp_path_factory.mktemp("steered")
    last_words = folder / "last-words.txt"
    last_words.write_text("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB\n")
    models = {
        "Org/Chat-7B": fake_model(folder),
        "cold": fake_model(folder, load="on_demand"),
        "failed": fake_model(folder, f"stderr={last_words}", "exit-during-start=1", load="on_demand"),
        "stalled": fake_model(folder, "stall-start", load="on_demand"),
    }
    with running_gateway(folder, models) as gateway:
        yield gateway


def states(gateway: Gateway) -> dict[str, str]:
    """What `unigate ps --json` says: model -> state."""
    done = gateway.command("ps", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    return {backend["name"]: backend["state"] for backend in json.loads(done.stdout)}


def test_ps(steered: Gateway) -> None:
    """`unigate ps` finds the gateway by the unigate.yaml of its folder and shows a line for each backend."""
    done = steered.command("ps")
    assert (done.returncode, done.stderr) == (0, "")
    header, *lines = done.stdout.splitlines()
    assert " ".join(header.split()) == "MODEL ENGINE STATE SINCE PID BUSY WAITING RESTARTS MEMORY IDLE NOTE"
    assert lines[0].split()[:3] == ["Org/Chat-7B", "vllm", "ready"]
    assert lines[0].split()[4] == str(steered.backend("Org/Chat-7B")["pid"])


def test_load_and_unload(steered: Gateway) -> None:
    """`unigate load` starts a cold backend, `unigate unload` stops it, and --wait returns when it is done."""
    loaded = steered.command("load", "cold", "--wait", "20")
    assert (loaded.returncode, loaded.stderr) == (0, "")
    assert " ready " in loaded.stdout
    assert states(steered)["cold"] == "ready"
    unloaded = steered.command("unload", "cold", "--wait", "20")
    assert (unloaded.returncode, unloaded.stderr) == (0, "")
    assert " stopped " in unloaded.stdout
    assert states(steered)["cold"] == "stopped"
    assert not any(marker.startswith("cold:") for marker in steered.processes().values())


def test_restart(steered: Gateway) -> None:
    """`unigate restart` ends the process and starts another; a name with a slash is no trouble."""
    before = steered.backend("Org/Chat-7B")["pid"]
    done = steered.command("restart", "Org/Chat-7B", "--wait", "20")
    assert (done.returncode, done.stderr) == (0, "")
    after = steered.backend("Org/Chat-7B")
    assert after["state"] == "ready"
    assert after["pid"] != before


def test_load_of_a_model_that_fails(steered: Gateway) -> None:
    """`unigate load` of a model that cannot start exits 1 and shows the diagnosis with its advice."""
    done = steered.command("load", "failed", "--wait", "20", environ={"COLUMNS": "400"})
    assert done.returncode == 1
    assert " failed " in done.stdout
    assert "The GPU ran out of memory. Lower options.gpu_memory_utilization" in done.stdout


def test_unload_of_a_model_that_starts(steered: Gateway) -> None:
    """A backend that hangs in its start can be stopped."""
    assert steered.command("load", "stalled").returncode == 0
    steered.until_state("stalled", "starting")
    assert steered.command("unload", "stalled", "--wait", "20").returncode == 0
    assert states(steered)["stalled"] == "stopped"


def test_logs(steered: Gateway) -> None:
    """`unigate logs` prints the last lines of a backend's log, and no more than asked for."""
    done = steered.command("logs", "Org/Chat-7B")
    assert done.returncode == 0
    assert "fake engine: listening" in done.stdout
    assert "starting -> ready" in done.stdout
    assert len(steered.command("logs", "Org/Chat-7B", "-n", "2").stdout.splitlines()) == 2


def test_following_a_log(steered: Gateway) -> None:
    """`unigate logs -f` goes on with new lines as they come, and ends in peace at Ctrl-C."""
    argv = [UNIGATE, "logs", "cold", "-f", "-n", "0"]
    with subprocess.Popen(
        argv, cwd=steered.folder, env=dict(steered.environ), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as following:
        assert following.stdout is not None
        assert following.stderr is not None
        try:
            steered.until_followed("cold")
            steered.load("cold")
            assert any("fake engine: listening" in line for line in iter(following.stdout.readline, ""))
            following.send_signal(signal.SIGINT)
            assert following.wait(10) == 0
            assert following.stderr.read() == ""
        finally:
            following.kill()


def test_a_backend_that_is_not_there(steered: Gateway) -> None:
    """Steering or reading an unknown backend exits 1 and names those there are."""
    for words in (("load", "chat"), ("unload", "chat"), ("restart", "chat"), ("logs", "chat"), ("logs", "chat", "-f")):
        done = steered.command(*words)
        assert done.returncode == 1
        assert done.stdout == ""
        assert done.stderr == ("error: there is no backend 'chat'; there are: Org/Chat-7B, cold, failed, stalled\n")


def test_no_gateway_there(tmp_path: Path) -> None:
    """Asking where nothing listens exits 1 and says what to do."""
    url = f"http://127.0.0.1:{free_port()}"
    done = unigate("ps", "--url", url, cwd=tmp_path, environ=environment("", tmp_path, {}))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (f"error: no gateway answers at {url}; start one with 'unigate serve', or name its --url\n")


@pytest.mark.parametrize("url", ["127.0.0.1:1", "ftp://127.0.0.1", "http://127.0.0.1:99999", "http://127.0.0.1:x"])
def test_an_address_that_is_none(tmp_path: Path, url: str) -> None:
    """A --url that is no address is told in a sentence, not in a traceback."""
    done = unigate("ps", "--url", url, cwd=tmp_path, environ=environment("", tmp_path, {}))
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert len(done.stderr.splitlines()) == 1
    assert url in done.stderr


def test_something_else_listens_there(tmp_path: Path, external_port: int) -> None:
    """An address where no gateway but another server answers is told in a sentence."""
    url = f"http://127.0.0.1:{external_port}"
    done = unigate("ps", "--url", url, cwd=tmp_path, environ=environment("", tmp_path, {}))
    assert done.returncode == 1
    assert done.stderr == (f"error: {url}/admin/backends was answered 404, not as a gateway does; name another --url\n")


def test_check_of_a_running_gateway(steered: Gateway) -> None:
    """`unigate check` beside the running gateway finds the one thing that is in the way: its port."""
    done = steered.command("check", "--no-versions")
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert f"unigate.yaml:2: gateway.port: port {steered.port} of 127.0.0.1 is in use" in done.stderr


def test_doctor(steered: Gateway) -> None:
    """`unigate doctor` reports Python, engines, GPUs, memory, disks and the address, and changes nothing."""
    done = steered.command("doctor", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    readings = json.loads(done.stdout)
    assert {reading["area"] for reading in readings} >= {"python", "engines", "gpus", "memory", "disk", "address"}
    address = next(reading for reading in readings if reading["area"] == "address")
    assert address["shown"] == "in use: a running gateway, or something else"
    assert steered.command("doctor").returncode == 0


def test_doctor_hides_passwords(tmp_path: Path) -> None:
    """A mirror's address in the environment is shown without its password."""
    environ = environment("", tmp_path, {"PIP_INDEX_URL": "https://me:hunter2@mirror.example/simple"})
    done = unigate("doctor", cwd=tmp_path, environ={**environ, "COLUMNS": "200"})
    assert done.returncode == 0
    assert "https://***@mirror.example/simple" in done.stdout
    assert "hunter2" not in done.stdout


def test_config_schema(tmp_path: Path) -> None:
    """`unigate config schema` prints the published schema."""
    done = unigate("config", "schema", cwd=tmp_path, environ=environment("", tmp_path, {}))
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout) == json.loads((ROOT / "gateway" / "config_schema.json").read_text())


LOCAL = {"host": "127.0.0.1"}


@pytest.mark.parametrize(
    "headers",
    [
        {"x-forwarded-for": "203.0.113.7"},
        {"forwarded": "for=203.0.113.7"},
        {"origin": "http://evil.example"},
        {"origin": "null"},
        {"host": "evil.example"},
        {"host": "127.0.0.1.evil.example"},
        {"host": ""},
    ],
)
def test_who_is_not_local(gateway: Gateway, headers: Mapping[str, str]) -> None:
    """A request through a proxy, from another site's page or under another name is refused, reading and steering."""
    for method, path in (("GET", "/admin/backends"), ("POST", "/admin/backends/cold/load"), ("GET", "/admin/docs")):
        answer = gateway.ask(method, path, headers=headers)
        assert answer.status_code == 403
        error = answer.json()["error"]
        assert error["code"] == "admin_only"
        assert error["message"] == "/admin is open to this machine only, or to a key marked admin: true"


@pytest.mark.parametrize("name", ["127.0.0.1", "localhost"])
def test_who_is_local(gateway: Gateway, name: str) -> None:
    """This machine itself, and our own pages, may use it without a key."""
    host = f"{name}:{gateway.port}"
    for headers in ({"host": host}, {"host": host, "origin": f"http://{host}"}):
        assert gateway.ask("GET", "/admin/backends", headers=headers).status_code == 200


def test_an_admin_key_opens_it_from_everywhere(keyed: Gateway, keys: Secrets) -> None:
    """A key marked admin opens /admin through any proxy; another key does not."""
    through_a_proxy = {"x-forwarded-for": "203.0.113.7", "host": "gateway.example"}

    def ask(key: str) -> Any:
        return keyed.ask("GET", "/admin/backends", headers={**through_a_proxy, "authorization": f"Bearer {key}"})

    assert ask(keys.owner).status_code == 200
    assert ask(keys.guest).status_code == 403
    assert ask("sk-wrong").status_code == 403


def test_admin_errors_wear_the_envelope(gateway: Gateway) -> None:
    """An unknown backend, path, method or value below /admin is told in the envelope."""
    for method, path, status, message in (
        ("GET", "/admin/backends/zzz", 404, "there is no backend 'zzz'; there are: chat, cold, "),
        ("GET", "/admin/zzz", 404, "nothing is served at /admin/zzz; see /admin/docs"),
        ("DELETE", "/admin/backends", 405, "/admin/backends does not take DELETE; see /admin/docs"),
        ("POST", "/admin/backends/cold/load?wait_s=-1", 400, "wait_s: Input should be greater than or equal to 0"),
        ("GET", "/admin/backends/chat/logs?lines=x", 400, "lines: Input should be a valid integer"),
    ):
        answer = gateway.ask(method, path)
        assert answer.status_code == status
        assert answer.json()["error"]["message"].startswith(message)


def test_a_status_is_complete(gateway: Gateway) -> None:
    """A backend's status holds what `ps` shows and where its log is; the log is there."""
    status = gateway.backend("chat")
    assert set(status) == {
        "name", "engine", "state", "phase", "pid", "address", "since_s", "leases", "waiting", "restarts",
        "retry_in_s", "on_demand", "log", "diagnosis", "memory_bytes", "gpus", "idle_s", "is_pinned",
        "has_given_room", "model", "is_retired", "parity",
    }  # fmt: skip
    assert Path(status["log"]).is_file()
    assert Path(f"/proc/{status['pid']}").is_dir()


def test_drained_by_hand(tmp_path: Path) -> None:
    """An unload lets the running answer finish before it stops the engine."""
    models = {"slow": fake_model(tmp_path, "chunk-interval=0.2", "chunks=5")}
    with running_gateway(tmp_path, models) as gateway, gateway.openai() as client:
        stream = client.completions.create(model="slow", prompt="hi", stream=True)
        first = next(stream)
        gateway.ask("POST", "/admin/backends/slow/unload")
        assert gateway.backend("slow")["state"] == "draining"
        rest = [chunk.choices[0].text for chunk in stream]
        assert first.choices[0].text + "".join(rest) == "word0 word1 word2 word3 word4 "
        gateway.until_state("slow", "stopped", within_s=START_S)
