"""How a download is shown, what its process inherits, and what of its words is kept back."""

from __future__ import annotations

import errno
import fcntl
import importlib.util
import json
import shutil
import sys
from pathlib import Path

import pytest

from backends.completion import Verified, read_completion, write_completion
from backends.download import Download, Order, Progress, client_of, hold_folder
from backends.downloader import DownloadProgress, LocalDownloader, download_environment, redacted, tokens_of
from backends.hub import DownloadFailed, disk_failed
from backends.repository import RECORDS, RemoteFile, Repository
from backends.sizes import size_text
from backends.sources import HubSource

SOURCE = HubSource("hf", "a/b")
WHOLE = "downloading 43% of 3.1 GB, 12 MB/s"


@pytest.mark.parametrize(
    ("progress", "shown"),
    [
        (DownloadProgress("listing"), "asking for the model's files"),
        (DownloadProgress("downloading", 1_340_000_000, 3_100_000_000, 12_000_000), WHOLE),
        (DownloadProgress("downloading", 0, 3_100_000_000), "downloading 0% of 3.1 GB"),
        (DownloadProgress("checking", 0, 24_000_000_000), "checking the files that are there (24 GB in all)"),
        (DownloadProgress("finishing"), "writing the last of the model to the disk"),
        (DownloadProgress("waiting"), "waiting for another process that downloads the same model"),
        (
            DownloadProgress("waiting", 5, 10, 1000),
            "waiting for another process that downloads the same model: 50% of 10 B, 1.0 kB/s",
        ),
    ],
)  # fmt: skip
def test_progress_is_shown(progress: DownloadProgress, shown: str) -> None:
    """A download says what it does, how far it is, of how much, and how fast."""
    assert str(progress) == shown


@pytest.mark.parametrize(
    ("size", "shown"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (9_990_000, "10.0 MB"),
        (12_345_678, "12 MB"),
        (3_100_000_000, "3.1 GB"),
    ],
)
def test_sizes(size: int, shown: str) -> None:
    """Sizes have two or three digits and a unit."""
    assert size_text(size) == shown


def test_a_download_inherits_keys_and_mirrors() -> None:
    """Hubs' keys, addresses and proxies go on; secrets of the gateway do not; what the operator says wins."""
    inherited = {
        "HF_TOKEN": "hf_x", "HF_ENDPOINT": "http://mirror", "https_proxy": "http://p", "KEY": "sk-1",
        "HF_HUB_DISABLE_TELEMETRY": "0",
    }  # fmt: skip
    environment = download_environment(inherited, frozenset({"sk-1"}))
    assert {name: environment[name] for name in inherited if name != "KEY"} == {
        name: value for name, value in inherited.items() if name != "KEY"
    }
    assert "KEY" not in environment
    assert int(environment["MODELSCOPE_DOWNLOAD_TOTAL_TIMEOUT"]) > 86_400


def test_words_are_redacted() -> None:
    """Keys, passwords of proxies and signatures of addresses are not repeated."""
    environ = {"HF_TOKEN": "hf_secret", "HUGGING_FACE_HUB_TOKEN": "hf_older", "MODELSCOPE_API_TOKEN": "ms"}
    assert tokens_of(environ) == {"hf_secret", "hf_older"}
    said = "GET https://me:pw@p.lan/x?Signature=abc&Expires=1 failed with hf_secret, see http://h/y"
    assert redacted(said, tokens_of(environ)) == "GET https://***@p.lan/x?… failed with ***, see http://h/y"


def test_a_library_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the hub's library the failure is final and names the command that installs it."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DownloadFailed) as failed:
        client_of(SOURCE)
    assert failed.value.diagnosis.code == "sources_not_installed"
    assert failed.value.diagnosis.permanent
    assert failed.value.diagnosis.advice == f"Run: {sys.executable} -m pip install 'unigate[sources]'"


def test_a_full_disk_is_told_apart() -> None:
    """ENOSPC in mid-download is a full disk; another number is a folder that cannot be used."""
    assert disk_failed(OSError(28, "No space left on device"), Path("/m")).diagnosis.code == "disk_full"
    assert disk_failed(OSError(30, "Read-only file system"), Path("/m")).diagnosis.code == "folder_refused"


async def test_whole_is_whole_without_a_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A source with its mark starts nothing."""
    monkeypatch.setattr("sys.executable", "/nonexistent")
    place(tmp_path, "x", b"abc")
    write_completion(SOURCE, tmp_path, "c0ffee", [RemoteFile("x", 3)])
    assert await LocalDownloader(tmp_path).fetch(SOURCE, 1, lambda progress: None, lambda line: None) is None


def place(models_dir: Path, name: str, content: bytes) -> Path:
    """A file in the folder of SOURCE."""
    folder = SOURCE.folder(models_dir)
    (folder / RECORDS).mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(content)
    return folder / name


def test_the_mark(tmp_path: Path) -> None:
    """A source is whole when its mark is there and each file it names has its size, and not for another source."""
    files = [RemoteFile("x", 3, sha256="ab"), RemoteFile("y", 0)]
    path = place(tmp_path, "x", b"abc")
    place(tmp_path, "y", b"")
    assert read_completion(SOURCE, tmp_path) is None
    write_completion(SOURCE, tmp_path, "c0ffee", files)
    whole = read_completion(SOURCE, tmp_path)
    assert whole is not None
    assert (whole.commit, whole.size) == ("c0ffee", 3)
    assert read_completion(HubSource("hf", "a/b", "", "x"), tmp_path) is None
    path.write_bytes(b"ab")
    assert read_completion(SOURCE, tmp_path) is None


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"source": "hf:a/b"}', '{"source": "hf:a/b", "files": []}',
                                  '{"source": "hf:a/b", "files": {}, "commit": "c"}',
                                  '{"source": "hf:a/b", "files": {"x": "y"}, "commit": "c"}'])  # fmt: skip
def test_a_mark_that_says_nothing(tmp_path: Path, text: str) -> None:
    """A mark that is broken in any way is no mark."""
    place(tmp_path, f"{RECORDS}/complete-all.json", text.encode())
    assert read_completion(SOURCE, tmp_path) is None


def test_what_was_verified(tmp_path: Path) -> None:
    """A file counts as verified until it is changed, or until the hub lists other content."""
    path = place(tmp_path, "x", b"abc")
    file = RemoteFile("x", 3, sha256="ab")
    verified = Verified(path.parent)
    assert not verified.holds(file)
    verified.add(file)
    assert Verified(path.parent).holds(file)
    assert not verified.holds(RemoteFile("x", 3, sha256="cd"))
    path.write_bytes(b"abd")
    assert not verified.holds(file)


class FakeHub:
    """A hub with one file, which says that it was fetched."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.fetched: list[str] = []

    def repository(self, source: HubSource) -> Repository:
        return Repository("c0ffee", (RemoteFile("model.safetensors", self.size),))

    def fetch(self, source: HubSource, repository: Repository, file: RemoteFile, folder: Path) -> None:
        self.fetched.append(file.path)
        (folder / file.path).write_bytes(bytes(file.size))

    def partial_bytes(self, file: RemoteFile, folder: Path) -> int:
        return 0

    def forget_leftovers(self, folder: Path) -> None:
        """There are none."""


def room_for(models_dir: Path, hub: FakeHub) -> None:
    """A whole download from *hub*, of SOURCE, that leaves 100 bytes alone."""
    (SOURCE.folder(models_dir) / RECORDS).mkdir(parents=True, exist_ok=True)
    Download(Order(SOURCE, models_dir, 100, ()), hub, Progress(lambda event: None)).run()


def test_room_is_what_others_leave(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What other downloads have yet to write is not free; what has ended, or was interrupted, takes no room."""
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage)
    path = tmp_path / "modelscope" / "org" / "other" / RECORDS / "lock"
    path.parent.mkdir(parents=True)
    told = {"event": "progress", "phase": "downloading", "done": 50, "total": 450}
    path.write_text(json.dumps(told))
    hub = FakeHub(700)
    with path.open("rb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(DownloadFailed) as failed:
            room_for(tmp_path, hub)
    assert failed.value.diagnosis.reason == (
        f"hf:a/b needs 700 B more, and the disk of {tmp_path}/hf/a/b has 1.0 kB free, 400 B of it for other downloads"
        " that are under way; 100 B are left alone. Nothing was downloaded."
    )
    assert hub.fetched == []
    room_for(tmp_path, hub)
    assert hub.fetched == ["model.safetensors"]


def test_a_disk_without_locks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A network disk that knows no locks is downloaded to all the same, with a word about it."""

    def refuse(file: object, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    hub = FakeHub(7)
    hold_folder(SOURCE.folder(tmp_path), lambda event: None)
    room_for(tmp_path, hub)
    assert hub.fetched == ["model.safetensors"]
    assert "cannot be locked (No locks available); going on without" in capsys.readouterr().err


def test_progress_is_told_when_it_changes() -> None:
    """The same again is not told again at once; a change is, with a rate."""
    told: list[dict[str, object]] = []
    progress = Progress(told.append)
    for done in (0, 0, 5, 5, 9):
        progress.show("downloading", done, 10)
    assert [event["done"] for event in told] == [0, 5, 9]
    assert {event["phase"] for event in told} == {"downloading"}
    assert all(isinstance(event["rate"], int) and isinstance(event["work"], int) for event in told)
