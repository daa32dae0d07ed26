"""Weights from both hubs, by their official libraries, in the process that the gateway downloads with."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from backends.completion import read_completion
from backends.diagnosis import Diagnosis
from backends.downloader import DownloadProgress, LocalDownloader
from backends.repository import RECORDS
from backends.sources import HubSource, parse_source
from tests.gateways import ROOT, free_port, until
from tests.hubs import REVISION, Hub, model_files, running_hub

MIB = 1024 * 1024
SIZE = 24 * MIB
HELD = 12 * MIB
STALL_S = 30.0
KEY = "hf_key-of-the-tests"
QUICK = (0.05, 0.05)

pytestmark = pytest.mark.timeout(120)
both_hubs = pytest.mark.parametrize("scheme", ["hf", "modelscope"])


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """Both hubs, with one model, and an environment that leads to them and nowhere else."""
    for name in ("HF_TOKEN", "MODELSCOPE_API_TOKEN", "MODELSCOPE_DOMAIN", "HF_HUB_OFFLINE", "http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    # of the library's own tries, which each take seconds
    monkeypatch.setenv("MODELSCOPE_API_MAX_RETRIES", "1")
    monkeypatch.setenv("MODELSCOPE_REPO_TREE_PAGE_MAX_ATTEMPTS", "1")
    with running_hub({"org/m": {**model_files(SIZE), "q/x.gguf": b"GGUF" + bytes(8000)}}) as running:
        for name, value in running.environ().items():
            monkeypatch.setenv(name, value)
        yield running


@dataclass
class Fetching:
    """One fetch: what was shown and said of it, and what came of it."""

    models_dir: Path
    word: str
    keep_free_bytes: int = 0
    stall_timeout_s: float = STALL_S
    shown: list[DownloadProgress] = field(default_factory=list)
    said: list[str] = field(default_factory=list)

    @property
    def source(self) -> HubSource:
        source = parse_source(self.word)
        assert isinstance(source, HubSource)
        return source

    @property
    def folder(self) -> Path:
        return self.source.folder(self.models_dir)

    async def outcome(self) -> Diagnosis | None:
        downloader = LocalDownloader(
            self.models_dir, frozenset({"sk-of-a-client"}), keep_free_bytes=self.keep_free_bytes, retry_pauses_s=QUICK
        )
        return await downloader.fetch(self.source, self.stall_timeout_s, self.shown.append, self.said.append)

    def all_words(self) -> str:
        return "\n".join([*map(str, self.shown), *self.said])


async def fetched(models_dir: Path, word: str) -> Fetching:
    """A fetch that went well."""
    fetching = Fetching(models_dir, word)
    problem = await fetching.outcome()
    assert problem is None, f"{problem}\n{fetching.all_words()}"
    return fetching


async def failure(fetching: Fetching) -> Diagnosis:
    """Why a fetch went wrong."""
    problem = await fetching.outcome()
    assert problem is not None, fetching.all_words()
    return problem


async def happened(question: Callable[[], object]) -> None:
    """Until something in a thread or another process is so; the test's own limit bounds it."""
    while not question():  # noqa: ASYNC110 - nothing of it sets an event of this loop
        await asyncio.sleep(0.02)


def children() -> list[int]:
    """The downloads that this process runs."""
    found = []
    for line in Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split():
        with contextlib.suppress(OSError):
            if b"backends.download" in Path(f"/proc/{line}/cmdline").read_bytes():
                found.append(int(line))
    return found


# --- in order ---


@both_hubs
async def test_a_model_arrives_whole(hub: Hub, tmp_path: Path, scheme: str) -> None:
    """Every file an engine needs arrives as it is on the hub, with a mark; what it does not need stays away."""
    fetching = await fetched(tmp_path / "models", f"{scheme}:org/m")
    assert fetching.folder == tmp_path / "models" / scheme / "org" / "m"
    for name, content in model_files(SIZE).items():
        assert (fetching.folder / name).read_bytes() == content
    assert not (fetching.folder / "q").exists()
    whole = read_completion(fetching.source, tmp_path / "models")
    assert whole is not None
    assert whole.commit
    assert whole.size == sum(map(len, model_files(SIZE).values()))
    assert not (fetching.folder / RECORDS / "parts").exists()
    assert fetching.shown[0].phase == "listing"
    assert fetching.shown[-2] == DownloadProgress("downloading", whole.size, whole.size, fetching.shown[-2].rate)


@both_hubs
async def test_what_is_whole_asks_nobody(hub: Hub, tmp_path: Path, scheme: str) -> None:
    """A second fetch asks no hub and starts no process, so a start works offline."""
    await fetched(tmp_path, f"{scheme}:org/m")
    asked = len(hub.requests)
    again = await fetched(tmp_path, f"{scheme}:org/m")
    assert len(hub.requests) == asked
    assert again.shown == []


@both_hubs
@pytest.mark.parametrize("revision", ["", f"@{REVISION}"])
async def test_one_file_of_a_revision(hub: Hub, tmp_path: Path, scheme: str, revision: str) -> None:
    """A named file arrives alone, at its own path; a named revision is asked for and has a folder of its own."""
    fetching = await fetched(tmp_path, f"{scheme}:org/m{revision}:q/x.gguf")
    assert fetching.folder.name == f"m{revision}"
    assert (fetching.folder / "q" / "x.gguf").read_bytes()[:4] == b"GGUF"
    assert not (fetching.folder / "model.safetensors").exists()
    assert {sent.path for sent in hub.sent} == {"q/x.gguf"}
    assert any(REVISION in request for request in hub.requests) == bool(revision)


async def test_a_mirror_that_tells_no_sizes(hub: Hub, tmp_path: Path) -> None:
    """Where the listing lacks sizes the tree is asked, and everything is verified as ever."""
    hub.tells_sizes = False
    fetching = await fetched(tmp_path, "hf:org/m")
    assert any("/tree/" in request for request in hub.requests)
    assert (fetching.folder / "config.json").read_bytes() == model_files(SIZE)["config.json"]
    whole = read_completion(fetching.source, tmp_path)
    assert whole is not None
    assert whole.size == sum(map(len, model_files(SIZE).values()))


@both_hubs
async def test_files_that_are_there_are_verified_not_fetched(hub: Hub, tmp_path: Path, scheme: str) -> None:
    """A file that somebody has put there is compared with the hub's digest: the right one stays, a wrong one goes."""
    fetching = Fetching(tmp_path, f"{scheme}:org/m")
    fetching.folder.mkdir(parents=True)
    (fetching.folder / "model.safetensors").write_bytes(model_files(SIZE)["model.safetensors"])
    (fetching.folder / "config.json").write_bytes(bytes(len(model_files()["config.json"])))
    assert await fetching.outcome() is None
    assert [sent.path for sent in hub.sent] == ["config.json"]
    assert (fetching.folder / "config.json").read_bytes() == model_files()["config.json"]


@both_hubs
async def test_a_lost_file_is_fetched_again(hub: Hub, tmp_path: Path, scheme: str) -> None:
    """A mark that names a file which is gone, or has another size, is no mark: just that file is fetched."""
    fetching = await fetched(tmp_path, f"{scheme}:org/m")
    (fetching.folder / "config.json").write_text("{}")
    assert read_completion(fetching.source, tmp_path) is None
    hub.sent.clear()
    await fetched(tmp_path, f"{scheme}:org/m")
    assert [sent.path for sent in hub.sent] == ["config.json"]


# --- interrupted ---


@both_hubs
async def test_a_cancelled_download_is_gone_on_with(hub: Hub, tmp_path: Path, scheme: str) -> None:
    """A fetch that is cancelled ends its process at once; the next one is sent only what was not there yet."""
    hub.hold_after = HELD
    first = Fetching(tmp_path, f"{scheme}:org/m")
    task = asyncio.create_task(first.outcome())
    await happened(lambda: any(progress.done >= HELD - MIB for progress in first.shown))
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()
    assert children() == []
    assert read_completion(first.source, tmp_path) is None
    hub.hold_after = 0
    hub.released.set()
    await fetched(tmp_path, f"{scheme}:org/m")
    begun, rest = hub.sent_of("model.safetensors")
    assert begun.start == 0
    assert HELD - MIB <= rest.start <= HELD
    assert rest.size == SIZE - rest.start
    assert (first.folder / "model.safetensors").read_bytes() == model_files(SIZE)["model.safetensors"]


@both_hubs
async def test_a_killed_download_is_told_and_gone_on_with(hub: Hub, tmp_path: Path, scheme: str) -> None:
    """KILL from outside is a diagnosis that says so and is worth a retry, which goes on where it was."""
    hub.hold_after = HELD
    fetching = Fetching(tmp_path, f"{scheme}:org/m")
    task = asyncio.create_task(failure(fetching))
    await happened(lambda: any(progress.done >= HELD - MIB for progress in fetching.shown))
    (child,) = children()
    os.kill(child, signal.SIGKILL)
    problem = await task
    assert problem.code == "download_died"
    assert "by signal 9" in problem.reason
    assert not problem.permanent
    hub.hold_after = 0
    hub.released.set()
    await fetched(tmp_path, f"{scheme}:org/m")
    assert hub.sent_of("model.safetensors")[1].start >= HELD - MIB


@both_hubs
async def test_broken_connections_cost_only_what_was_not_sent(hub: Hub, tmp_path: Path, scheme: str) -> None:
    """A connection that breaks in the middle of a file, twice, is taken up where it broke."""
    hub.cut_after, hub.cuts = 5 * MIB, 2
    await fetched(tmp_path, f"{scheme}:org/m")
    first, second, third = hub.sent_of("model.safetensors")
    assert first.start < second.start < third.start
    assert second.start >= 4 * MIB
    assert third.start + third.size == SIZE


@both_hubs
async def test_wrong_content_is_thrown_away(hub: Hub, tmp_path: Path, scheme: str) -> None:
    """Content that is not what the hub lists never becomes a weight file; fetched again it is right."""
    hub.corrupts = 1
    fetching = Fetching(tmp_path, f"{scheme}:org/m")
    problem = await fetching.outcome()
    if problem is not None:
        assert (problem.code, problem.permanent) == ("download_corrupt", False)
        assert "model.safetensors" in problem.reason
        assert not (fetching.folder / "model.safetensors").exists()
        await fetched(tmp_path, f"{scheme}:org/m")
    assert [sent.start for sent in hub.sent_of("model.safetensors")] == [0, 0]
    assert (fetching.folder / "model.safetensors").read_bytes() == model_files(SIZE)["model.safetensors"]


async def test_a_download_that_stalls_is_ended(hub: Hub, tmp_path: Path) -> None:
    """A hub that sends nothing for the stall timeout is a failure of the network, and its process is gone."""
    hub.hold_after = HELD
    problem = await failure(Fetching(tmp_path, "hf:org/m", stall_timeout_s=2.0))
    assert (problem.code, problem.permanent) == ("network_failed", False)
    assert "no progress for 2 s" in problem.reason
    assert children() == []


async def test_the_death_of_the_parent(hub: Hub, tmp_path: Path) -> None:
    """Whatever ends the process that wanted a download, ends the download."""
    hub.hold_after = HELD
    script = (
        "import asyncio, sys; from pathlib import Path; from backends.downloader import LocalDownloader;"
        "from backends.sources import parse_source;"
        "asyncio.run(LocalDownloader(Path(sys.argv[1])).fetch(parse_source('hf:org/m'), 60, print, print))"
    )
    with subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], cwd=ROOT, stdout=subprocess.DEVNULL) as parent:
        assert await asyncio.to_thread(hub.held.wait, 30)
        (child,) = map(int, Path(f"/proc/{parent.pid}/task/{parent.pid}/children").read_text().split())
        parent.kill()
    until(lambda: not Path(f"/proc/{child}").exists() or "Z" in Path(f"/proc/{child}/stat").read_text().split()[2])


@both_hubs
async def test_two_that_want_the_same(hub: Hub, tmp_path: Path, scheme: str) -> None:
    """The second waits and shows how the first stands; both have the model, which was sent once."""
    hub.hold_after = HELD
    first, second = (Fetching(tmp_path, f"{scheme}:org/m") for _ in range(2))
    tasks = [asyncio.create_task(first.outcome())]
    await happened(lambda: any(progress.done >= HELD - MIB for progress in first.shown))
    tasks.append(asyncio.create_task(second.outcome()))
    await happened(lambda: any(progress.done >= HELD - MIB for progress in second.shown))
    assert "waiting for another process" in str(second.shown[-1])
    assert "% of 25 MB" in str(second.shown[-1])
    hub.released.set()
    assert await asyncio.gather(*tasks) == [None, None]
    assert len(hub.sent_of("model.safetensors")) == 1


async def test_the_second_takes_over_from_a_killed_first(hub: Hub, tmp_path: Path) -> None:
    """The lock of a download that was killed is free, and the one that waited goes on with what is there."""
    hub.hold_after = HELD
    first, second = (Fetching(tmp_path, "hf:org/m") for _ in range(2))
    dying = asyncio.create_task(first.outcome())
    await happened(lambda: any(progress.done >= HELD - MIB for progress in first.shown))
    waiting = asyncio.create_task(second.outcome())
    await happened(lambda: bool(second.shown))
    hub.hold_after = 0
    dying.cancel()
    assert await waiting is None
    assert hub.sent_of("model.safetensors")[1].start >= HELD - MIB


# --- refused ---


@both_hubs
async def test_too_little_room(hub: Hub, tmp_path: Path, scheme: str) -> None:
    """Before the first byte: what is needed, what is free, where, and what to do; nothing is sent."""
    problem = await failure(Fetching(tmp_path, f"{scheme}:org/m", keep_free_bytes=10**18))
    assert (problem.code, problem.permanent) == ("disk_full", True)
    assert f"{scheme}:org/m needs 25 MB more" in problem.reason
    assert f"the disk of {tmp_path}/{scheme}/org/m has" in problem.reason
    assert "gateway.models_dir" in problem.advice
    assert hub.sent == []


@both_hubs
@pytest.mark.parametrize("name", ["org/none", "none/m"])
async def test_a_model_that_is_not_there(hub: Hub, tmp_path: Path, scheme: str, name: str) -> None:
    """A model the hub does not know is final, and says how a private one would be read."""
    problem = await failure(Fetching(tmp_path, f"{scheme}:{name}"))
    assert (problem.code, problem.permanent) == ("source_not_found", True)
    assert name in problem.reason
    assert "_TOKEN" in problem.advice


async def test_a_file_and_a_revision_that_are_not_there(hub: Hub, tmp_path: Path) -> None:
    """A file or a revision that the repository does not have is final, with what it has instead."""
    problem = await failure(Fetching(tmp_path, "hf:org/m:q/y.gguf"))
    assert problem.code == "source_not_found"
    assert problem.advice == "Did you mean hf:org/m:q/x.gguf?"
    problem = await failure(Fetching(tmp_path, "hf:org/m@v9"))
    assert problem.reason == "org/m has no revision v9."


@both_hubs
@pytest.mark.parametrize("where", ["listing_status", "file_status"])
async def test_a_gated_model(hub: Hub, tmp_path: Path, scheme: str, where: str) -> None:
    """403 is final, and says that terms have to be accepted and which variable takes the key."""
    setattr(hub, where, 403)
    problem = await failure(Fetching(tmp_path, f"{scheme}:org/m"))
    assert (problem.code, problem.permanent) == ("source_gated", True)
    assert "Accept the model's terms" in problem.advice
    assert {"hf": "HF_TOKEN", "modelscope": "MODELSCOPE_API_TOKEN"}[scheme] in problem.advice


@both_hubs
@pytest.mark.parametrize("status", [429, 500, 503])
async def test_a_hub_that_cannot_now(hub: Hub, tmp_path: Path, scheme: str, status: int) -> None:
    """Too many requests and a hub in trouble may pass: tried again a few times, then a failure worth a retry."""
    hub.listing_status = status
    problem = await failure(Fetching(tmp_path, f"{scheme}:org/m"))
    assert (problem.code, problem.permanent) == ("network_failed", False)
    assert len([request for request in hub.requests if "org/m" in request]) >= 1 + len(QUICK)


@both_hubs
async def test_a_hub_that_is_not_there(hub: Hub, tmp_path: Path, scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody at the address: a failure worth a retry, which names the variable with the address."""
    variable = {"hf": "HF_ENDPOINT", "modelscope": "MODELSCOPE_ENDPOINT"}[scheme]
    monkeypatch.setenv(variable, f"http://127.0.0.1:{free_port()}")
    problem = await failure(Fetching(tmp_path, f"{scheme}:org/m"))
    assert (problem.code, problem.permanent) == ("network_failed", False)
    assert variable in problem.advice


async def test_the_offline_mode_of_the_library(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """HF_HUB_OFFLINE holds: nothing is asked, and the diagnosis names it."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    problem = await failure(Fetching(tmp_path, "hf:org/m"))
    assert (problem.code, problem.permanent) == ("source_offline", True)
    assert "HF_HUB_OFFLINE" in problem.reason
    assert hub.requests == []


async def test_a_folder_that_cannot_be_written_to(hub: Hub, tmp_path: Path) -> None:
    """A models_dir below a file is told by its path."""
    (tmp_path / "file").touch()
    problem = await failure(Fetching(tmp_path / "file", "hf:org/m"))
    assert (problem.code, problem.permanent) == ("folder_refused", True)
    assert f"{tmp_path}/file" in problem.reason


@both_hubs
async def test_the_key_reaches_the_hub_and_nobody_else(
    hub: Hub, tmp_path: Path, scheme: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hub's own key goes to the hub, not to where it redirects, to no log line and no command line."""
    monkeypatch.setenv({"hf": "HF_TOKEN", "modelscope": "MODELSCOPE_API_TOKEN"}[scheme], KEY)
    monkeypatch.setenv("SOME_NAME", "sk-of-a-client")
    hub.hold_after = HELD
    hub.cut_after, hub.cuts = 13 * MIB, 0
    fetching = Fetching(tmp_path, f"{scheme}:org/m")
    task = asyncio.create_task(fetching.outcome())
    await happened(lambda: hub.held.is_set() and children())
    (child,) = children()
    assert KEY.encode() not in Path(f"/proc/{child}/cmdline").read_bytes()
    assert b"sk-of-a-client" not in Path(f"/proc/{child}/environ").read_bytes()
    hub.released.set()
    assert await task is None
    assert any(KEY in authorization for authorization in hub.authorizations)
    if scheme == "hf":
        assert [sent.authorization for sent in hub.sent_of("model.safetensors")] == [""]
    assert KEY not in fetching.all_words()
    assert not any(KEY in path.read_text() for path in (fetching.folder / RECORDS).glob("*.json*"))


def test_a_file_beyond_plain_http(hub: Hub, tmp_path: Path) -> None:
    """A file larger than the Hub sends by plain HTTP, where Xet is off, is refused with the library's words."""
    script = (
        "from huggingface_hub import constants; constants.MAX_HTTP_DOWNLOAD_SIZE = 1000; import sys;"
        "from backends.download import main; main(sys.argv[1:])"
    )
    argv = [sys.executable, "-c", script, "--models-dir", str(tmp_path), "--keep-free-bytes", "0", "hf:org/m"]
    with subprocess.Popen(
        argv, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as child:
        assert child.stdout is not None
        last = json.loads(child.stdout.read().splitlines()[-1])
    assert (last["event"], last["code"], last["permanent"]) == ("failed", "hub_refused", True)
    assert "too large" in last["reason"]
