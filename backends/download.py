"""One download, in a process of its own: what `backends.downloader` starts.

    python -m backends.download --models-dir DIR --keep-free-bytes N --retry-pauses-s 1 2 -- hf:ORG/NAME

Theory of operation
-------------------
Only this process imports the hubs' libraries, so that the gateway stays small, its loop free, and a crash in here a
diagnosis out there. stdout carries one JSON object per line, stderr what the libraries say. The end of stdin means
that nobody waits any more: the process ends at once, as it does by TERM or KILL. That may be at any moment: what lies
on the disk is always either a part that will be gone on with, or a whole file that was verified, and the mark that the
source is whole is written last.

Steps: take the folder's lock (or tell what its holder tells) → ask the hub for the files and their sizes → compare what
is already there → see that the rest has room → fetch, some files at a time → mark.

Events, by the key ``event``:
    progress    phase (see PHASES), done and total in bytes, rate in bytes per second, work: a number that grows while
                anything is read or written
    failed      the fields of a Diagnosis
    done        nothing else
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import importlib.util
import itertools
import json
import os
import shutil
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from backends.completion import Verified, content_digest, read_completion, write_completion
from backends.diagnosis import Diagnosis
from backends.hub import LIBRARIES, NETWORK_FAILED, SOURCES_EXTRA, DownloadFailed, HubClient, disk_advice, disk_failed
from backends.repository import RECORDS, NothingWanted, RemoteFile, Repository, wanted_files
from backends.sizes import size_text
from backends.sources import HUB_NAMES, HubSource, parse_source

Phase = Literal["waiting", "listing", "checking", "downloading", "finishing"]
PHASES: tuple[Phase, ...] = get_args(Phase)

WORKERS = 4
"""Files fetched at a time."""
TELL_EVERY_S = 0.5
ALIVE_EVERY_S = 5.0
RATE_WINDOW_S = 10.0
MIB = 1024 * 1024

Tell = Callable[[dict[str, Any]], None]


class Progress:
    """What is known of a download, told to *tell* whenever it has changed and now and then when it has not."""

    def __init__(self, tell: Tell) -> None:
        self._tell = tell
        self._told: tuple[object, ...] = ()
        self._told_at = 0.0
        self._seen: deque[tuple[float, int]] = deque()

    def show(self, phase: Phase, done: int = 0, total: int = 0) -> None:
        """Tell *phase*, with *done* of *total* bytes."""
        now = time.monotonic()
        if phase != "downloading" or (self._seen and done < self._seen[-1][1]):
            self._seen.clear()
        self._seen.append((now, done))
        while self._seen[0][0] < now - RATE_WINDOW_S:
            self._seen.popleft()
        state = (phase, done, total)
        if state != self._told or now - self._told_at >= ALIVE_EVERY_S:
            self._told, self._told_at = state, now
            event = {"event": "progress", "phase": phase, "done": done, "total": total}
            self._tell({**event, "rate": self._rate(), "work": _work()})

    def _rate(self) -> int:
        (first_at, first), (last_at, last) = self._seen[0], self._seen[-1]
        return round((last - first) / (last_at - first_at)) if last_at > first_at else 0


def _work() -> int:
    """MiB that this process has read and written so far (proc(5)): it grows while a file is verified or assembled."""
    with contextlib.suppress(OSError):
        fields = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
        return (int(fields["rchar"]) + int(fields["wchar"])) // MIB
    return 0


@dataclass(frozen=True, slots=True)
class Order:
    """*source* is to be whole below *models_dir*, and *keep_free_bytes* of its disk are to stay free.

    A step that fails by the network is tried again after each of *retry_pauses_s*, and from the first of them anew once
    it has brought another byte.
    """

    source: HubSource
    models_dir: Path
    keep_free_bytes: int
    retry_pauses_s: tuple[float, ...]


class Download:
    """The making whole of what *order* asks for, by the holder of its folder."""

    def __init__(self, order: Order, hub: HubClient, progress: Progress) -> None:
        self._source = order.source
        self._models_dir = order.models_dir
        self._folder = order.source.folder(order.models_dir)
        self._keep_free = order.keep_free_bytes
        self._pauses_s = order.retry_pauses_s
        self._hub = hub
        self._progress = progress
        self._verified = Verified(self._folder)
        self._verified_lock = threading.Lock()

    def run(self) -> None:
        """Everything up to the mark. Raises DownloadFailed, OSError."""
        self._progress.show("listing")
        repository = self._patiently(lambda: self._hub.repository(self._source), lambda: 0)
        try:
            files = wanted_files(self._source, repository)
        except NothingWanted as problem:
            advice = problem.remedy[:1].upper() + problem.remedy[1:]
            raise DownloadFailed(Diagnosis("source_not_found", f"{problem}.", advice, permanent=True)) from problem
        self._hub.forget_leftovers(self._folder)
        missing = [file for file in files if not self._is_there(file, files)]
        total = sum(file.size for file in files)
        there = total - sum(file.size for file in missing)
        with _room(self._models_dir):
            self._check_room(missing)
            # What the next one that asks for room reckons with.
            self._progress.show("downloading", there + sum(map(self._partial_bytes, missing)), total)
        self._fetch(repository, missing, there, total)
        self._progress.show("finishing", total, total)
        with _beating(lambda: self._progress.show("finishing", total, total)):
            for file in files:
                _flush(self._folder / file.path)
        write_completion(self._source, self._models_dir, repository.commit, files)
        # Also those of an earlier commit, which nothing asks for any more.
        shutil.rmtree(self._folder / RECORDS / "parts", ignore_errors=True)

    def _is_there(self, file: RemoteFile, files: Sequence[RemoteFile]) -> bool:
        """Whether *file* lies there whole; one that nobody has verified yet is read to its end for that."""
        path = self._folder / file.path
        if not path.is_file() or path.stat().st_size != file.size:
            return False
        if self._verified.holds(file):
            return True
        total = sum(each.size for each in files)
        with _beating(lambda: self._progress.show("checking", 0, total)), path.open("rb") as content:
            is_same = content_digest(content, file) == file.digest
        if is_same:
            self._verified.add(file)
        return is_same

    def _check_room(self, missing: Sequence[RemoteFile]) -> None:
        needed = sum(file.size - self._partial_bytes(file) for file in missing)
        free = shutil.disk_usage(self._folder).free
        promised = _promised_bytes(self._models_dir, besides=self._folder)
        if needed > free - promised - self._keep_free:
            others = f", {size_text(promised)} of it for other downloads that are under way" if promised else ""
            reason = (
                f"{self._source} needs {size_text(needed)} more, and the disk of {self._folder} has"
                f" {size_text(free)} free{others}; {size_text(self._keep_free)} are left alone. Nothing was downloaded."
            )
            raise DownloadFailed(Diagnosis("disk_full", reason, disk_advice(self._folder), permanent=True))

    def _fetch(self, repository: Repository, missing: Sequence[RemoteFile], there: int, total: int) -> None:
        """All of *missing*, of a model of *total* bytes of which *there* were whole before."""
        left = set(missing)

        def show() -> None:
            fetched = sum(file.size for file in missing if file not in left)
            self._progress.show("downloading", there + fetched + sum(map(self._arrived_bytes, tuple(left))), total)

        def fetch(file: RemoteFile) -> None:
            self._patiently(
                lambda: self._hub.fetch(self._source, repository, file, self._folder),
                lambda: self._partial_bytes(file),
            )
            with self._verified_lock:
                self._verified.add(file)
            left.discard(file)

        with _beating(show):
            pool = ThreadPoolExecutor(WORKERS)
            # The largest last would leave one connection at work alone for the longest time.
            ordered = sorted(missing, key=lambda file: -file.size)
            done, _ = wait([pool.submit(fetch, file) for file in ordered], return_when=FIRST_EXCEPTION)
            for future in done:
                # The other threads end with the process: what they have is gone on with.
                future.result()
        show()

    def _patiently(self, step: Callable[[], Any], done: Callable[[], int]) -> Any:
        """What *step* returns, tried again when the network fails: soon while *done* grows, else a few times."""
        pauses_s = iter(self._pauses_s)
        while True:
            before = done()
            try:
                return step()
            except DownloadFailed as failure:
                if failure.diagnosis.code != NETWORK_FAILED:
                    raise
                if done() > before:
                    pauses_s = iter(self._pauses_s)
                pause_s = next(pauses_s, None)
                if pause_s is None:
                    raise
                sys.stderr.write(f"{failure.diagnosis.reason} Trying again in {pause_s:g} s.\n")
                time.sleep(pause_s)

    def _partial_bytes(self, file: RemoteFile) -> int:
        return min(file.size, self._hub.partial_bytes(file, self._folder))

    def _arrived_bytes(self, file: RemoteFile) -> int:
        """For showing: a file that has just been put into its place counts whole."""
        with contextlib.suppress(OSError):
            if (self._folder / file.path).stat().st_size == file.size:
                return file.size
        return self._partial_bytes(file)


@contextlib.contextmanager
def _beating(show: Callable[[], None]) -> Iterator[None]:
    """Calls *show* in a thread, again and again, while the context lasts."""
    is_over = threading.Event()

    def beat() -> None:
        while not is_over.wait(TELL_EVERY_S):
            show()

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()


def _flush(path: Path) -> None:
    """Until *path* is on the disk: the mark that follows must not survive a power cut that its files do not."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


# -- one at a time ----------------------------------------------------------------------------------------------------


def hold_folder(folder: Path, tell: Tell) -> Tell:
    """Hold *folder* until this process ends; returns what tells *tell* and whoever waits for the folder.

    While another process holds it, that one's progress is told as ours, in the phase ``waiting``.
    """
    (folder / RECORDS).mkdir(parents=True, exist_ok=True)
    # A bare descriptor: nothing but the end of the process closes it.
    lock = os.open(folder / RECORDS / "lock", os.O_RDWR | os.O_CREAT, 0o644)
    for turn in itertools.count():
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            if turn:
                time.sleep(TELL_EVERY_S)
            tell({"event": "progress", "done": 0, "total": 0, "rate": 0, **_told_in(lock), "phase": "waiting"})
        except OSError as problem:
            # Some network disks know no locks. Two at once may then spoil each other's parts, which verifying tells.
            sys.stderr.write(f"{folder}: cannot be locked ({problem.strerror}); going on without\n")
            break

    def tell_all(event: dict[str, Any]) -> None:
        os.ftruncate(lock, 0)
        os.pwrite(lock, json.dumps(event).encode(), 0)
        tell(event)

    return tell_all


def _told_in(lock: int) -> dict[str, Any]:
    """What the holder of *lock*, a descriptor, told last; nothing when it is writing just now."""
    with contextlib.suppress(ValueError):
        told = json.loads(os.pread(lock, 4096, 0) or b"{}")
        return told if isinstance(told, dict) and told.get("event") == "progress" else {}
    return {}


@contextlib.contextmanager
def _room(models_dir: Path) -> Iterator[None]:
    """One at a time looks at the free space of *models_dir* and says what it will take of it."""
    with (models_dir / ".unigate.lock").open("ab") as lock:
        with contextlib.suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _promised_bytes(models_dir: Path, besides: Path) -> int:
    """What other downloads below *models_dir*, under way just now, have yet to write."""
    promised = 0
    for path in models_dir.glob(f"*/*/*/{RECORDS}/lock"):
        if path.parent.parent == besides:
            continue
        with path.open("rb") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                told = _told_in(lock.fileno())
                if told.get("phase") == "downloading":
                    promised += max(0, int(told["total"]) - int(told["done"]))
            except OSError:
                continue
    return promised


# -- the process ------------------------------------------------------------------------------------------------------


def client_of(source: HubSource) -> HubClient:
    """The client of the hub that *source* names. Raises DownloadFailed when its library is not installed."""
    library = LIBRARIES[source.hub]
    if importlib.util.find_spec(library) is None:
        reason = f"{source} is downloaded with {library}, which is not installed beside unigate."
        raise DownloadFailed(Diagnosis("sources_not_installed", reason, f"Run: {SOURCES_EXTRA}", permanent=True))
    if source.hub == "hf":
        from backends.hubs.huggingface import HuggingFace

        return HuggingFace()
    from backends.hubs.modelscope import ModelScope

    return ModelScope()


def download(order: Order, tell: Tell) -> Diagnosis | None:
    """Do what *order* says; None when its source is whole, else why not. Blocks for as long as that takes."""
    folder = order.source.folder(order.models_dir)
    try:
        tell_all = hold_folder(folder, tell)
        if read_completion(order.source, order.models_dir) is None:
            Download(order, client_of(order.source), Progress(tell_all)).run()
    except DownloadFailed as failure:
        return failure.diagnosis
    except OSError as problem:
        return disk_failed(problem, folder).diagnosis
    return None


UNEXPECTED = Diagnosis("download_died", "The download ended by a mistake of ours.", "Its last words are in the log.")


def _end_with_stdin() -> None:
    """Nobody holds the other end of stdin any more: whatever is under way can be gone on with."""
    while os.read(0, 64):
        pass
    os._exit(1)


def main(arguments: list[str]) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="backends.download", description=__doc__)
    parser.add_argument("--models-dir", type=Path, required=True)
    parser.add_argument("--keep-free-bytes", type=int, required=True)
    parser.add_argument("--retry-pauses-s", type=float, nargs="*", default=())
    parser.add_argument("source")
    options = parser.parse_args(arguments)
    source = parse_source(options.source)
    assert isinstance(source, HubSource), f"{options.source} is of no hub, not of {' or '.join(HUB_NAMES.values())}"
    # Whatever a library prints is no event.
    events = os.dup(1)
    os.dup2(2, 1)
    threading.Thread(target=_end_with_stdin, daemon=True).start()

    def tell(event: dict[str, Any]) -> None:
        os.write(events, json.dumps(event).encode() + b"\n")

    try:
        order = Order(source, options.models_dir, options.keep_free_bytes, tuple(options.retry_pauses_s))
        failure = download(order, tell)
        tell({"event": "done"} if failure is None else {"event": "failed", **asdict(failure)})
    except Exception:
        # The top of this process: our parent makes a diagnosis of its last words.
        traceback.print_exc()
        failure = UNEXPECTED
    # Not by returning: threads that are still fetching would be waited for, and the lock would be let go before them.
    sys.stderr.flush()
    os._exit(0 if failure is None else 1)


if __name__ == "__main__":
    main(sys.argv[1:])
