"""A start whose weights are on a hub: the download comes first, is shown, is stopped, and fails as a start does."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from backends.adapter import Adapter
from backends.diagnosis import Diagnosis
from backends.downloader import DownloadProgress
from backends.engines import ADAPTERS
from backends.lifecycle import State
from backends.settings import BackendSettings
from backends.sources import HubSource, OllamaName
from backends.weights import folder_source_objections, gguf_source_objections
from tests.unit.backends.fakes import CALM, asked, living_backend, outcome, settings, turns

SOURCE = HubSource("hf", "org/m")


def model_on_hub(folder: Path, **others: Any) -> BackendSettings:
    """A backend whose weights will be in *folder*, which is as a download leaves it."""
    weights = SOURCE.weights(folder)
    weights.mkdir(parents=True)
    (weights / "config.json").write_text("{}")
    (weights / "model.safetensors").touch()
    return settings(weights, **{"source": SOURCE, **others})


async def test_the_download_is_shown_and_comes_first(tmp_path: Path) -> None:
    """While it downloads, the backend is STARTING with the percentage as its phase, and no process is there."""
    async with living_backend(tmp_path, model_on_hub(tmp_path)) as world:
        await world.supervisor.request_start()
        fetch = await world.downloader.called()
        assert fetch.source == SOURCE
        fetch.show(DownloadProgress("downloading", 43, 100, 0))
        status = world.supervisor.status()
        assert (status.state, status.phase) == (State.STARTING, "downloading 43% of 100 B")
        assert world.launcher.runs == []
        fetch.outcome.set_result(None)
        run = await world.run()
        assert str(SOURCE.weights(tmp_path)) in run.spec.argv
        run.is_answering.set()
        await world.supervisor.settled(State.READY)


async def test_its_words_are_in_the_log(tmp_path: Path) -> None:
    """Each phase is noted once, and what the library says stands between."""
    async with living_backend(tmp_path, model_on_hub(tmp_path)) as world:
        await world.supervisor.request_start()
        fetch = await world.downloader.called()
        for done in (1, 2, 3):
            fetch.show(DownloadProgress("downloading", done, 100, 0))
        fetch.say("Trying to resume download...")
        lines = world.log.tail(10)
        assert sum("hf:org/m: downloading 1% of 100 B" in line for line in lines) == 1
        assert not any("2%" in line for line in lines)
        assert lines[-1] == "Trying to resume download..."


async def test_it_holds_nobody_up(tmp_path: Path) -> None:
    """A download does not hold the start gate, which is for engines that load."""
    async with living_backend(tmp_path, model_on_hub(tmp_path)) as world:
        await world.supervisor.request_start()
        await world.downloader.called()
        assert not world.host.start_gate.locked()


async def test_it_does_not_count_against_the_start(tmp_path: Path) -> None:
    """The clocks of a start begin with its process: a long download is no slow start."""
    timing = replace(CALM, start_timeout_s=0.5, start_stall_timeout_s=0.5)
    async with living_backend(tmp_path, model_on_hub(tmp_path, timing=timing)) as world:
        await world.supervisor.request_start()
        fetch = await world.downloader.called()
        started = world.supervisor.status().since_s
        while world.supervisor.status().since_s < started + 0.6:
            await turns(1)
        fetch.outcome.set_result(None)
        (await world.run()).is_answering.set()
        await world.supervisor.settled(State.READY)
        assert world.events == ["StartRequested", "BecameReady"]


async def test_a_stop_ends_it(tmp_path: Path) -> None:
    """A stop in mid-download cancels it, and the backend is STOPPED with nothing started; a start begins anew."""
    async with living_backend(tmp_path, model_on_hub(tmp_path)) as world:
        await world.supervisor.request_start()
        fetch = await world.downloader.called()
        await world.supervisor.request_stop()
        await world.supervisor.settled(State.STOPPED)
        assert fetch.outcome.cancelled()
        assert world.launcher.runs == []
        await world.supervisor.request_start()
        await world.downloader.called(2)


async def test_a_kill_ends_it(tmp_path: Path) -> None:
    """KILL in mid-download cancels it too."""
    async with living_backend(tmp_path, model_on_hub(tmp_path)) as world:
        await world.supervisor.request_start()
        fetch = await world.downloader.called()
        world.supervisor.kill()
        await world.supervisor.gone()
        assert fetch.outcome.cancelled()


async def test_a_final_failure(tmp_path: Path) -> None:
    """What no retry mends makes the backend FAILED at once, with the download's own diagnosis."""
    async with living_backend(tmp_path, model_on_hub(tmp_path)) as world:
        await world.supervisor.request_start()
        waiting = asked(world)
        fetch = await world.downloader.called()
        gated = Diagnosis("source_gated", "Hugging Face does not give it.", "Set HF_TOKEN.", permanent=True)
        fetch.outcome.set_result(gated)
        await world.supervisor.settled(State.FAILED)
        assert world.supervisor.status().diagnosis == gated
        assert await outcome(waiting) == "model_failed"
        assert world.events == ["StartRequested", "Rejected"]


async def test_a_passing_failure(tmp_path: Path) -> None:
    """A failure of the network is retried with the back-off of any failed start, and the next try may succeed."""
    async with living_backend(tmp_path, model_on_hub(tmp_path)) as world:
        await world.supervisor.request_start()
        first = await world.downloader.called()
        first.outcome.set_result(Diagnosis("network_failed", "It cannot be read.", "The next try goes on."))
        second = await world.downloader.called(2)
        assert world.events[:3] == ["StartRequested", "Crashed", "BackoffElapsed"]
        second.outcome.set_result(None)
        (await world.run()).is_answering.set()
        await world.supervisor.settled(State.READY)


async def test_weights_that_the_engine_cannot_load(tmp_path: Path) -> None:
    """What arrived and is no model for the engine is told as that, before anything is started."""
    backend = model_on_hub(tmp_path)
    (SOURCE.weights(tmp_path) / "config.json").unlink()
    async with living_backend(tmp_path, backend) as world:
        await world.supervisor.request_start()
        (await world.downloader.called()).outcome.set_result(None)
        await world.supervisor.settled(State.FAILED)
        diagnosis = world.supervisor.status().diagnosis
        assert diagnosis is not None
        assert diagnosis.code == "weights_unusable"
        assert "has no config.json" in diagnosis.reason
        assert world.launcher.runs == []


async def test_weights_on_this_machine_are_not_downloaded(tmp_path: Path) -> None:
    """A backend without a source, or whose engine fetches it itself, starts at once."""
    for source in (None, OllamaName("qwen3")):
        async with living_backend(tmp_path, settings(tmp_path, source=source)) as world:
            await world.ready()
            assert world.downloader.calls == []


# --- what each engine takes ---


@pytest.mark.parametrize("adapter", ADAPTERS.values(), ids=ADAPTERS)
def test_sources_of_engines(adapter: Adapter) -> None:
    """An engine that we start says where its weights may come from; an address has none."""
    assert bool(adapter.sources) == adapter.launches


@pytest.mark.parametrize(
    ("source", "for_gguf", "for_folder", "for_both"),
    [
        (HubSource("hf", "a/b"), 1, 0, 0),
        (HubSource("hf", "a/b", "", "m.gguf"), 0, 1, 0),
        (HubSource("modelscope", "a/b", "main", "m.bin"), 1, 1, 1),
        (None, 0, 0, 0),
    ],
)
def test_files_and_folders(source: HubSource | None, for_gguf: int, for_folder: int, for_both: int) -> None:
    """An engine of GGUF files objects to a folder, one of folders to a file, and each says what to write."""
    objections = (
        list(gguf_source_objections(source)),
        list(folder_source_objections(source, takes_gguf=False)),
        list(folder_source_objections(source, takes_gguf=True)),
    )
    assert [len(each) for each in objections] == [for_gguf, for_folder, for_both]
    assert all(one.path == ("weights",) and one.remedy for each in objections for one in each)
