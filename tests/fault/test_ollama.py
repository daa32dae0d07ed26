"""What breaks around an Ollama daemon and its models, with real processes, and that nothing of it is left."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import yaml

from tests.gateways import ROOT, Gateway, fake_model, free_port, processes_of, running_gateway, until
from tests.ollamas import ask_daemon, daemon_state, loaded, ollama_engine, ollama_model

HI: Any = [{"role": "user", "content": "Say hi"}]
ENDLESS: Any = [{"role": "user", "content": "never stop"}]
GONE_S = 20.0


@contextlib.contextmanager
def ollama_gateway(
    folder: Path, *names: str, faults: str = "", is_ready: bool = True, **settings: Any
) -> Iterator[Gateway]:
    """A gateway with models so named, each with weights of its own."""
    models = {name: ollama_model(folder, name, **settings) for name in names}
    with running_gateway(folder, models, engines=ollama_engine(folder, faults), is_ready=is_ready) as gateway:
        yield gateway


def children_of(gateway: Gateway) -> list[int]:
    """The runners' processes."""
    return list(daemon_state(gateway)["children"].values())


def is_alive(pid: int) -> bool:
    """Whether a process lives: a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def until_restarted(gateway: Gateway, name: str) -> None:
    """Wait until a model has been started again, and is READY."""
    until(lambda: gateway.backend(name)["restarts"] >= 1, GONE_S, f"{name} is restarted")
    gateway.until_state(name, "ready")


def ask(gateway: Gateway, model: str = "a", **options: Any) -> Any:
    """One short answer."""
    with gateway.openai() as client:
        return client.chat.completions.create(model=model, messages=HI, **options)


def test_a_killed_daemon_leaves_no_runner(tmp_path: Path) -> None:
    """kill -9 of `ollama serve` orphans its runners, as with the real one: they are ended, and all comes back alone."""
    with ollama_gateway(tmp_path, "a", "b") as gateway:
        runners = children_of(gateway)
        assert len(runners) == 2
        os.kill(gateway.backend("ollama")["pid"], signal.SIGKILL)
        until(lambda: not any(map(is_alive, runners)), GONE_S, "the runners are ended")
        for name in ("a", "b"):
            until_restarted(gateway, name)
        assert ask(gateway).choices[0].finish_reason == "stop"
        assert gateway.backend("ollama")["restarts"] == 1


def test_who_asks_of_a_killed_daemon_waits(tmp_path: Path) -> None:
    """While the runners of a daemon that is gone are still being ended, its models are not leased: who asks waits."""
    with ollama_gateway(tmp_path, "a") as gateway:
        os.kill(children_of(gateway)[0], signal.SIGSTOP)  # it takes TERM only once it goes on: a second, until KILL
        os.kill(gateway.backend("ollama")["pid"], signal.SIGKILL)
        time.sleep(0.2)  # the shim's word of it is under way, and nothing shows its coming
        assert gateway.backend("a")["state"] == "ready"
        assert ask(gateway).choices[0].message.content


def test_a_killed_gateway_leaves_nothing(tmp_path: Path) -> None:
    """kill -9 of the gateway ends the daemon and its runners."""
    with ollama_gateway(tmp_path, "a") as gateway:
        gateway.exit_codes = (-signal.SIGKILL,)
        runners = children_of(gateway)
        gateway.signal(signal.SIGKILL)
        gateway.process.wait(GONE_S)
        until(lambda: processes_of(gateway.run) == {}, GONE_S, "everything has ended")
        assert not any(map(is_alive, runners))


def test_a_runner_that_dies_in_a_stream(tmp_path: Path) -> None:
    """The client gets its pieces, then an error, never a quiet end; the next request is answered."""
    with ollama_gateway(tmp_path, "a", faults="chunk-s=0.05") as gateway, gateway.openai() as client:
        stream = client.chat.completions.create(model="a", messages=ENDLESS, stream=True, max_tokens=500)
        seen = [next(stream), next(stream)]
        os.kill(children_of(gateway)[0], signal.SIGKILL)
        with pytest.raises(openai.APIError, match="unexpected EOF"):
            seen.extend(stream)
        assert all(not choice.finish_reason for chunk in seen for choice in chunk.choices)
        assert ask(gateway).choices[0].message.content


def test_a_runner_that_dies_in_a_whole_answer(tmp_path: Path) -> None:
    """It is an error with a status."""
    with ollama_gateway(tmp_path, "a", faults="die-after-chunks=3") as gateway:
        with pytest.raises(openai.InternalServerError, match="unexpected EOF") as caught:
            ask(gateway)
        assert caught.value.status_code == 500


def test_the_daemon_dies_in_a_stream(tmp_path: Path) -> None:
    """An error event ends the stream, and the model is READY again."""
    with ollama_gateway(tmp_path, "a", faults="chunk-s=0.05") as gateway, gateway.openai() as client:
        stream = client.chat.completions.create(model="a", messages=ENDLESS, stream=True, max_tokens=500)
        next(stream)
        os.kill(gateway.backend("ollama")["pid"], signal.SIGKILL)
        with pytest.raises(openai.APIError) as caught:
            list(stream)
        assert caught.value.code == "backend_broke_off"
        until_restarted(gateway, "a")


def test_unload_and_load(tmp_path: Path) -> None:
    """Unloading one leaves the daemon and the others; loading it again makes nothing anew."""
    with ollama_gateway(tmp_path, "a", "b") as gateway:
        gateway.ask("POST", "/admin/backends/a/unload")
        gateway.until_state("a", "stopped")
        assert [name.partition(":")[0] for name in loaded(gateway)] == ["unigate/b"]
        assert gateway.backend("ollama")["state"] == "ready"
        assert ask(gateway, "b").choices
        assert gateway.load("a")["state"] == "ready"
        asked = daemon_state(gateway)["asked"]
        assert asked.count("POST /api/create") == 2


def test_a_request_loads_a_model_on_demand_and_its_idleness_unloads_it(tmp_path: Path) -> None:
    """The daemon starts with the first request for any model; an idle model leaves it."""
    with ollama_gateway(tmp_path, "a", load="on_demand", idle_unload_s=1) as gateway:
        assert gateway.backend("ollama")["state"] == "stopped"
        assert ask(gateway).choices
        assert loaded(gateway)
        gateway.until_state("a", "stopped")
        assert loaded(gateway) == []
        assert gateway.backend("ollama")["state"] == "ready"


def test_stopping_the_daemon_sends_its_models_away_first(tmp_path: Path) -> None:
    """A stream under way is finished; then all is stopped, and a load of the daemon brings its startup models back."""
    with ollama_gateway(tmp_path, "a", "b", faults="chunk-s=0.1") as gateway, gateway.openai() as client:
        stream = client.chat.completions.create(model="a", messages=HI, stream=True)
        next(stream)
        gateway.ask("POST", "/admin/backends/ollama/unload")
        chunks = list(stream)
        assert chunks[-1].choices[0].finish_reason == "stop"
        for name in ("a", "b", "ollama"):
            gateway.until_state(name, "stopped")
        assert gateway.processes() == {}
        gateway.load("ollama")
        for name in ("a", "b"):
            gateway.until_state(name, "ready")


def test_term_in_a_stream(tmp_path: Path) -> None:
    """The gateway's TERM lets the stream finish, and leaves nothing."""
    with ollama_gateway(tmp_path, "a", faults="chunk-s=0.1") as gateway, gateway.openai() as client:
        stream = client.chat.completions.create(model="a", messages=HI, stream=True)
        next(stream)
        gateway.signal(signal.SIGTERM)
        assert list(stream)[-1].choices[0].finish_reason == "stop"


def test_pinned_models_are_not_evicted(tmp_path: Path) -> None:
    """More models than Ollama keeps by default stay loaded, whatever is asked of which."""
    names = ("a", "b", "c", "d", "e")
    with ollama_gateway(tmp_path, *names) as gateway:
        for name in (*names, *names):
            ask(gateway, name, max_tokens=1)
        assert daemon_state(gateway)["loads"] == len(names)
        assert len(loaded(gateway)) == len(names)


def test_the_same_weights_with_another_context(tmp_path: Path) -> None:
    """Two models that would start their common runner anew at each change: the second is refused, and says why."""
    models = {
        "a": ollama_model(tmp_path, "w", context_length=64),
        "b": ollama_model(tmp_path, "w", context_length=128, load="on_demand"),
    }
    with running_gateway(tmp_path, models, engines=ollama_engine(tmp_path)) as gateway:
        with pytest.raises(openai.InternalServerError, match="num_ctx") as caught:
            ask(gateway, "b")
        assert caught.value.code == "model_failed"
        assert gateway.backend("b")["diagnosis"]["code"] == "weights_shared"
        assert ask(gateway, "a").choices


def test_models_that_share_their_weights(tmp_path: Path) -> None:
    """Unloading one of them leaves the other in memory."""
    models = {
        "a": ollama_model(tmp_path, "w", context_length=64),
        "b": ollama_model(tmp_path, "w", context_length=64, args={"temperature": 0.5}),
    }
    with running_gateway(tmp_path, models, engines=ollama_engine(tmp_path)) as gateway:
        gateway.ask("POST", "/admin/backends/a/unload")
        gateway.until_state("a", "stopped")
        assert len(loaded(gateway)) == 1
        assert ask(gateway, "b").choices
        assert daemon_state(gateway)["loads"] == 1
        gateway.ask("POST", "/admin/backends/b/unload")
        gateway.until_state("b", "stopped")
        assert loaded(gateway) == []


def test_lost_weights(tmp_path: Path) -> None:
    """A model whose weights vanish from the daemon is given to it again, by itself."""
    with ollama_gateway(tmp_path, "a") as gateway:
        for blob in (tmp_path / "models" / "blobs").iterdir():
            blob.unlink()
        os.kill(children_of(gateway)[0], signal.SIGKILL)
        until_restarted(gateway, "a")
        assert ask(gateway).choices
        assert daemon_state(gateway)["asked"].count("POST /api/create") == 2


def test_a_model_that_is_deleted_in_the_daemon(tmp_path: Path) -> None:
    """It is made again, by itself; until then it is no fault of the client's."""
    with ollama_gateway(tmp_path, "a") as gateway:
        (name,) = loaded(gateway)
        address = gateway.backend("ollama")["address"]
        httpx.request("DELETE", f"{address}/api/delete", json={"model": name}, trust_env=False).raise_for_status()
        with contextlib.suppress(openai.InternalServerError):  # 502 or 503, or it is back already
            ask(gateway)
        until_restarted(gateway, "a")
        assert ask(gateway).choices


@pytest.mark.parametrize(
    ("error", "code"),
    [
        ('tensor "a" offset+size (5) exceeds file size (4)', "weights_unreadable"),
        ("model requires more system memory (9 GiB) than is available", "out_of_memory"),
    ],
)
def test_a_load_that_fails(tmp_path: Path, error: str, code: str) -> None:
    """The model is FAILED with Ollama's reason; the daemon stays."""
    with ollama_gateway(tmp_path, "a", faults=f"load-error={error}", is_ready=False) as gateway:
        backend = gateway.until_state("a", "failed")
        assert backend["diagnosis"]["code"] == code
        assert gateway.backend("ollama")["state"] == "ready"


def test_a_download_shows_its_progress_and_can_be_stopped(tmp_path: Path) -> None:
    """The phase says how far it is; an unload ends it at once."""
    settings: dict[str, Any] = {"weights": "ollama:qwen2.5:1b", "load": "on_demand"}
    with ollama_gateway(tmp_path, "a", faults="pull-s=0.4", **settings) as gateway:
        gateway.ask("POST", "/admin/backends/a/load")
        until(lambda: "downloading 3" in gateway.backend("a")["phase"], GONE_S, "the phase shows a percentage")
        asked_at = time.monotonic()
        gateway.ask("POST", "/admin/backends/a/unload")
        gateway.until_state("a", "stopped")
        assert time.monotonic() - asked_at < 2
        assert gateway.backend("ollama")["leases"] == 0


def test_a_slow_load_is_not_broken_off(tmp_path: Path) -> None:
    """It may take longer than the readiness proof may."""
    with ollama_gateway(tmp_path, "a", faults="slow-load=3", probe_timeout_s=1) as gateway:
        assert ask(gateway).choices
        assert daemon_state(gateway)["loads"] == 1


def test_a_daemon_that_cannot_be_started(tmp_path: Path) -> None:
    """Its models are FAILED with the reason; other engines serve."""
    models = {
        "a": ollama_model(tmp_path, "a"),
        "other": fake_model(tmp_path),
    }
    engines = {
        "ollama": {"command": ["/nowhere/ollama", "serve"]},
        "vllm": {"command": [sys.executable, "-m", "tests.fake_engine"]},
    }
    with running_gateway(tmp_path, models, engines=engines, words=["--keep-going"], is_ready=False) as gateway:
        gateway.until_state("other", "ready")
        backend = gateway.until_state("a", "failed")
        assert backend["diagnosis"]["code"] == "not_started"
        assert "/nowhere/ollama" in backend["diagnosis"]["reason"]


def test_a_daemon_that_ends_at_its_start(tmp_path: Path) -> None:
    """It is given up in the end, and its models with it, each with the daemon's own reason."""
    settings = {"backoff": {"base_s": 0.01, "max_s": 0.02, "max_failed_starts": 2}}
    with ollama_gateway(tmp_path, "a", faults="exit-at-start=1", is_ready=False, **settings) as gateway:
        backend = gateway.until_state("a", "failed")
        assert backend["diagnosis"]["reason"].startswith("The daemon does not serve: ")
        assert gateway.backend("ollama")["state"] == "failed"


@pytest.fixture
def foreign_daemon(tmp_path: Path) -> Iterator[str]:
    """An Ollama that somebody else runs, with a model of its own."""
    port = free_port()
    environ = {
        **os.environ, "OLLAMA_HOST": f"127.0.0.1:{port}", "OLLAMA_MODELS": str(tmp_path / "theirs"),
        "PYTHONPATH": str(ROOT), "OLLAMA_GO_TEMPLATE": "0",
    }  # fmt: skip
    process = subprocess.Popen([sys.executable, "-m", "tests.fake_ollama", "serve"], env=environ)
    url = f"http://127.0.0.1:{port}"
    try:
        until(lambda: listens(url), 20, "the daemon listens")
        yield url
    finally:
        process.terminate()
        assert process.wait(10) == 0


def listens(url: str) -> bool:
    """Whether something answers at *url*."""
    with contextlib.suppress(httpx.TransportError):
        return httpx.get(url, trust_env=False).is_success
    return False


def test_a_daemon_that_runs_already(tmp_path: Path, foreign_daemon: str) -> None:
    """It is used and never stopped; our models are made under our own names, and leave it when the gateway does."""
    with httpx.Client(base_url=foreign_daemon, trust_env=False) as client:
        for path in ("/api/pull", "/api/generate"):
            client.post(path, json={"model": "theirs", "stream": False}).raise_for_status()
    models = {"a": ollama_model(tmp_path, "a")}
    with running_gateway(tmp_path, models, engines={"ollama": {"url": foreign_daemon}}) as gateway:
        assert ask(gateway).choices
        names = [entry["name"] for entry in ask_daemon(gateway, "GET", "/api/ps")["models"]]
        assert sorted(name.partition(":")[0] for name in names) == ["theirs", "unigate/a"]
        assert gateway.processes() == {}
    left = httpx.get(f"{foreign_daemon}/api/ps", trust_env=False).json()["models"]
    assert [entry["name"] for entry in left] == ["theirs:latest"]


def test_a_daemon_of_others_that_guesses_templates(tmp_path: Path) -> None:
    """Its guess is no template of the weights: the model is refused, unless the operator takes it."""
    port = free_port()
    environ = {**os.environ, "OLLAMA_HOST": f"127.0.0.1:{port}", "OLLAMA_MODELS": str(tmp_path / "theirs")}
    environ |= {"PYTHONPATH": str(ROOT), "OLLAMA_GO_TEMPLATE": ""}
    process = subprocess.Popen([sys.executable, "-m", "tests.fake_ollama", "serve"], env=environ)
    url = f"http://127.0.0.1:{port}"
    models = {
        "a": ollama_model(tmp_path, "a"),
        "b": ollama_model(tmp_path, "b", template={"engine": True}),
    }
    try:
        until(lambda: listens(url), 20, "the daemon listens")
        with running_gateway(tmp_path, models, engines={"ollama": {"url": url}}, is_ready=False) as gateway:
            assert gateway.until_state("a", "failed")["diagnosis"]["code"] == "template_not_kept"
            gateway.until_state("b", "ready")
    finally:
        process.terminate()
        assert process.wait(10) == 0


def test_stopping_one_leaves_the_streams_of_others(tmp_path: Path) -> None:
    """A model whose drain runs out loses its own streams only, though all share the daemon's address."""
    settings: dict[str, Any] = {"drain_timeout_s": 0.3}
    with (
        ollama_gateway(tmp_path, "a", "b", faults="chunk-s=0.05", **settings) as gateway,
        gateway.openai() as client,
    ):
        theirs = client.chat.completions.create(model="a", messages=ENDLESS, stream=True, max_tokens=1000)
        ours = client.chat.completions.create(model="b", messages=ENDLESS, stream=True, max_tokens=60)
        next(theirs)
        next(ours)
        gateway.ask("POST", "/admin/backends/a/unload")
        with pytest.raises(openai.APIError) as caught:
            list(theirs)
        assert caught.value.code == "backend_broke_off"
        assert list(ours)[-1].choices[0].finish_reason == "length"
        gateway.until_state("a", "stopped")


def test_a_reload_brings_a_model_and_other_settings_for_the_daemon(tmp_path: Path) -> None:
    """A new model moves into the daemon that runs; new settings of the daemon are taken by a new one, for all."""
    with ollama_gateway(tmp_path, "a") as gateway:
        pid = gateway.backend("ollama")["pid"]
        document = yaml.safe_load(gateway.config.read_text())
        document["models"]["b"] = ollama_model(tmp_path, "b")
        gateway.config.write_text(yaml.safe_dump(document))
        gateway.ask("POST", "/admin/reload").raise_for_status()
        gateway.until_state("b", "ready")
        assert gateway.backend("ollama")["pid"] == pid
        document["engines"]["ollama"]["num_parallel"] = 3
        gateway.config.write_text(yaml.safe_dump(document))
        gateway.ask("POST", "/admin/reload").raise_for_status()
        until(lambda: gateway.backend("ollama")["pid"] not in (None, pid), GONE_S, "another daemon runs")
        for name in ("a", "b"):
            gateway.until_state(name, "ready")
        assert "OLLAMA_NUM_PARALLEL=3" in gateway.ask("GET", "/admin/backends/ollama/logs").text
        assert ask(gateway, "b").choices
