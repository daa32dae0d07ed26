"""Leases, waiters, timers and messages of one supervisor, beyond the rows of the table."""

from __future__ import annotations

import asyncio
import logging
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from backends import start
from backends.diagnosis import ExitStatus
from backends.lease import BackendUnavailable
from backends.lifecycle import Event, State
from backends.probing import ProbeFailed
from backends.process import SpawnFailed
from backends.start import MIN_PROGRESS_BYTES, Occurrence
from tests.unit.backends.fakes import CALM, OUT_OF_MEMORY, asked, living_backend, outcome, settings, turns, until

SLOW_RETRY = replace(CALM, backoff_base_s=60, backoff_max_s=60)
ONE_TRY = replace(CALM, max_failed_starts=1)


# --- leases ---


async def test_a_lease_names_the_endpoint(tmp_path: Path) -> None:
    """A lease of a READY backend says which backend it is of and where that listens."""
    async with living_backend(tmp_path, settings(tmp_path)) as world:
        run = await world.ready()
        lease = await world.supervisor.lease(1)
        assert (lease.backend, lease.engine) == ("m", "vllm")
        assert lease.address == run.spec.address
        lease.release()


async def test_no_lease_without_ready(tmp_path: Path) -> None:
    """`try_lease` gives nothing while STOPPED, STARTING or DRAINING, and one while READY."""
    async with living_backend(tmp_path, settings(tmp_path)) as world:
        assert world.supervisor.try_lease() is None
        await world.supervisor.request_start()
        assert world.supervisor.try_lease() is None
        (await world.run()).is_answering.set()
        await world.supervisor.settled(State.READY)
        lease = world.supervisor.try_lease()
        assert lease is not None
        await world.supervisor.request_stop()
        assert world.supervisor.try_lease() is None
        lease.release()


async def test_no_lease_of_an_engine_that_is_gone(tmp_path: Path) -> None:
    """While what a dead engine left behind is still ending, who asks waits, and is served by the next run."""
    async with living_backend(tmp_path, settings(tmp_path)) as world:
        run = await world.ready()
        run.has_exited = True
        assert world.state is State.READY
        assert world.supervisor.try_lease() is None
        waiter = asked(world)
        await turns()
        run.end(ExitStatus(signal=9))
        following = await world.launcher.started(2)
        assert not waiter.done()
        following.is_answering.set()
        lease = await waiter
        assert lease.address == following.spec.address
        lease.release()


async def test_a_lease_is_returned_once(tmp_path: Path) -> None:
    """Releasing twice counts once."""
    async with living_backend(tmp_path, settings(tmp_path)) as world:
        await world.ready()
        first, second = world.supervisor.try_lease(), world.supervisor.try_lease()
        assert first is not None
        assert second is not None
        first.release()
        first.release(answered=True)
        assert world.supervisor.status().leases == 1
        second.release()
        assert world.supervisor.status().leases == 0


async def test_a_waiter_starts_the_backend_and_gets_its_lease(tmp_path: Path) -> None:
    """A request for a stopped backend starts it, waits, and is served when one real token came back."""
    async with living_backend(tmp_path, settings(tmp_path)) as world:
        waiter = asked(world)
        run = await world.run()
        await turns()
        assert world.supervisor.status().waiting == 1
        assert not waiter.done()
        run.is_answering.set()
        (await waiter).release()
        assert world.supervisor.status().waiting == 0


async def test_a_hundred_waiters_start_one_process(tmp_path: Path) -> None:
    """Many that wait for the same backend start it once and are all served."""
    async with living_backend(tmp_path, settings(tmp_path)) as world:
        waiters = [asked(world) for _ in range(100)]
        (await world.run()).is_answering.set()
        for lease in await asyncio.gather(*waiters):
            lease.release()
        assert len(world.launcher.runs) == 1
        assert world.supervisor.status().leases == 0


async def test_a_full_queue_refuses_at_once(tmp_path: Path) -> None:
    """Beyond max_waiting a request is refused with `queue_full` and a time to come back."""
    async with living_backend(tmp_path, settings(tmp_path), max_waiting=2) as world:
        waiters = [asked(world), asked(world)]
        await turns()
        with pytest.raises(BackendUnavailable) as refusal:
            await world.supervisor.lease(1)
        assert refusal.value.code == "queue_full"
        assert refusal.value.retry_after_s == 10
        (await world.run()).is_answering.set()
        for lease in await asyncio.gather(*waiters):
            lease.release()


async def test_a_waiter_has_a_deadline(tmp_path: Path) -> None:
    """Waiting longer than max_wait_s ends in `model_not_ready`, saying what the backend is doing."""
    async with living_backend(tmp_path, settings(tmp_path)) as world:
        with pytest.raises(BackendUnavailable, match=r"m is starting .*did not become ready within 0.1 s") as refusal:
            await world.supervisor.lease(0.1)
        assert refusal.value.code == "model_not_ready"
        assert world.supervisor.status().waiting == 0


async def test_a_cancelled_waiter_leaves_no_lease(tmp_path: Path) -> None:
    """A client that leaves while waiting gives its place back at once and is counted nowhere afterwards."""
    async with living_backend(tmp_path, settings(tmp_path)) as world:
        gone, stays = asked(world), asked(world)
        run = await world.run()
        gone.cancel()
        await asyncio.wait([gone])
        assert world.supervisor.status().waiting == 1
        run.is_answering.set()
        (await stays).release()
        assert world.supervisor.status().leases == 0


async def test_a_waiter_cancelled_as_it_is_woken_leaves_no_lease(tmp_path: Path) -> None:
    """Cancelled in the very turn READY comes, a waiter takes no lease."""
    async with living_backend(tmp_path, settings(tmp_path)) as world:
        waiter = asked(world)
        run = await world.run()
        run.is_answering.set()
        await until(lambda: world.state is State.READY)
        was_woken = not waiter.done()
        waiter.cancel()
        await asyncio.wait([waiter])
        assert waiter.cancelled() == was_woken
        if not waiter.cancelled():
            waiter.result().release()
        assert world.supervisor.status().leases == 0


# --- every waiter is answered ---


async def test_waiters_learn_of_a_rejection(tmp_path: Path) -> None:
    """A permanent failure fails every waiter with the diagnosis and no time to come back."""
    async with living_backend(tmp_path, settings(tmp_path)) as world:
        waiters = [asked(world), asked(world)]
        run = await world.run()
        run.say(OUT_OF_MEMORY)
        run.end(ExitStatus(code=1))
        for waiter in waiters:
            with pytest.raises(BackendUnavailable, match="The GPU ran out of memory") as refusal:
                await waiter
            assert refusal.value.code == "model_failed"
            assert refusal.value.retry_after_s is None
            assert refusal.value.diagnosis is not None
            assert refusal.value.diagnosis.code == "gpu_out_of_memory"


async def test_a_failed_backend_refuses_at_once(tmp_path: Path) -> None:
    """A request for a FAILED backend is refused with the diagnosis and starts nothing."""
    async with living_backend(tmp_path, settings(tmp_path)) as world:
        world.launcher.failures.append(SpawnFailed("engine: No such file or directory"))
        assert await outcome(asked(world)) == "model_failed"
        assert await outcome(asked(world)) == "model_failed"
        assert world.events == ["StartRequested", "Rejected"]


async def test_waiters_learn_that_we_gave_up(tmp_path: Path) -> None:
    """A waiter that sat through the last retry is failed with the last diagnosis."""
    async with living_backend(tmp_path, settings(tmp_path, ONE_TRY)) as world:
        waiter = asked(world)
        (await world.run()).end(ExitStatus(code=3))
        with pytest.raises(BackendUnavailable, match="exit code 3"):
            await waiter


async def test_waiters_learn_of_a_stop_while_starting(tmp_path: Path) -> None:
    """Stopping a starting backend fails its waiters with `model_stopped`."""
    async with living_backend(tmp_path, settings(tmp_path)) as world:
        waiter = asked(world)
        await world.run()
        await world.supervisor.request_stop()
        assert await outcome(waiter) == "model_stopped"


async def test_waiters_learn_of_a_stop_while_backing_off(tmp_path: Path) -> None:
    """Stopping a backend that waits to be tried again fails its waiters."""
    async with living_backend(tmp_path, settings(tmp_path, SLOW_RETRY)) as world:
        waiter = asked(world)
        (await world.run()).end(ExitStatus(code=1))
        await world.supervisor.settled(State.BACKOFF)
        assert not waiter.done()
        await world.supervisor.request_stop()
        assert await outcome(waiter) == "model_stopped"


async def test_waiters_sit_through_a_retry(tmp_path: Path) -> None:
    """A crash while starting does not fail the waiters when a retry follows."""
    async with living_backend(tmp_path, settings(tmp_path)) as world:
        waiter = asked(world)
        (await world.run()).end(ExitStatus(code=1))
        (await world.launcher.started(2)).is_answering.set()
        assert await outcome(waiter) == "lease"


async def test_a_lease_asked_for_while_draining_waits_for_the_next_run(tmp_path: Path) -> None:
    """A request that comes during a stop is served by the run that follows it."""
    async with living_backend(tmp_path, settings(tmp_path)) as world:
        await world.ready()
        held = world.supervisor.try_lease()
        assert held is not None
        await world.supervisor.request_stop()
        waiter = asked(world)
        await turns()
        held.release()
        run = await world.launcher.started(2)
        run.is_answering.set()
        assert (await waiter).address == run.spec.address


async def test_a_waiter_for_a_replayed_start_learns_of_its_failure(tmp_path: Path) -> None:
    """Who waits for the start that follows a stop is failed when that start is rejected."""
    async with living_backend(tmp_path, settings(tmp_path)) as world:
        await world.ready()
        held = world.supervisor.try_lease()
        assert held is not None
        await world.supervisor.request_stop()
        waiter = asked(world)
        await turns()
        held.release()
        run = await world.launcher.started(2)
        run.say(OUT_OF_MEMORY)
        run.end(ExitStatus(code=1))
        await world.supervisor.settled(State.FAILED)
        await asyncio.wait([waiter], timeout=1)
        assert waiter.done()
        assert await outcome(waiter) == "model_failed"


async def test_waiters_are_answered_when_the_task_ends(tmp_path: Path) -> None:
    """Cancelling the supervisor fails who still waits, at once."""
    async with living_backend(tmp_path, settings(tmp_path)) as world:
        waiter = asked(world)
        await world.run()
        world.task.cancel()
        assert await outcome(waiter) == "model_stopped"


async def test_waiters_for_a_replayed_start_are_answered_when_the_task_ends(tmp_path: Path) -> None:
    """The same, for one that waits for the start after a stop."""
    async with living_backend(tmp_path, settings(tmp_path)) as world:
        await world.ready()
        held = world.supervisor.try_lease()
        await world.supervisor.request_stop()
        waiter = asked(world)
        await turns()
        world.task.cancel()
        await asyncio.wait([waiter], timeout=1)
        assert waiter.done()
        assert await outcome(waiter) == "model_stopped"
        assert held is not None
        held.release()


async def test_requests_are_taken_when_the_task_ends(tmp_path: Path) -> None:
    """Who awaits a request that came too late is not left waiting."""
    async with living_backend(tmp_path, settings(tmp_path)) as world:
        await turns()
        world.task.cancel()
        too_late = world.supervisor.request_start()
        await asyncio.wait([too_late], timeout=1)
        assert too_late.done()


# --- READY only after proof ---


async def test_ready_takes_a_token(tmp_path: Path) -> None:
    """A healthy engine that brings no token back stays STARTING until it does."""
    async with living_backend(tmp_path, settings(tmp_path)) as world:
        await world.supervisor.request_start()
        run = await world.run()
        run.refusal = ProbeFailed("the readiness request was answered 503: loading")
        run.is_answering.set()
        await turns(50)
        assert world.state is State.STARTING
        assert world.supervisor.status().phase == "waiting for the first token"
        run.refusal = None
        await world.supervisor.settled(State.READY)
        assert world.transitions[-1].started_in_s is not None
        assert world.transitions[-1].started_in_s > 0


async def test_a_refused_probe_is_final(tmp_path: Path) -> None:
    """An engine that answers the proof with 4xx is ended and FAILED, with what it said."""
    async with living_backend(tmp_path, settings(tmp_path)) as world:
        await world.supervisor.request_start()
        run = await world.run()
        run.refusal = ProbeFailed("the readiness request was answered 404: no such model", is_permanent=True)
        run.is_answering.set()
        await world.supervisor.settled(State.FAILED)
        assert run.signals == ["TERM"]
        diagnosis = world.supervisor.status().diagnosis
        assert diagnosis is not None
        assert diagnosis.code == "probe_refused"
        assert "no such model" in diagnosis.reason


async def test_a_refusing_engine_deaf_to_term_is_killed(tmp_path: Path) -> None:
    """The same for an engine that does not obey: KILL after its grace, then FAILED."""
    backend = settings(tmp_path, replace(CALM, stop_grace_s=0.01))
    async with living_backend(tmp_path, backend) as world:
        world.launcher.deaf = True
        await world.supervisor.request_start()
        run = await world.run()
        run.refusal = ProbeFailed("401", is_permanent=True)
        run.is_answering.set()
        await world.supervisor.settled(State.FAILED)
        assert run.signals == ["TERM", "KILL"]


async def test_a_probe_that_breaks_is_a_failed_start(tmp_path: Path) -> None:
    """A mistake in the probing ends the start; the backend does not stay STARTING for ever."""
    async with living_backend(tmp_path, settings(tmp_path, ONE_TRY)) as world:
        await world.supervisor.request_start()
        run = await world.run()
        run.refusal = RuntimeError("not foreseen")
        run.is_answering.set()
        async with asyncio.timeout(2):
            await world.supervisor.settled(State.FAILED)
        assert "RuntimeError" in str(world.supervisor.status().diagnosis)


async def test_a_stalled_start_is_recycled(tmp_path: Path) -> None:
    """No log line and nothing read for start_stall_timeout_s: the run is ended, and the reason says so."""
    backend = settings(tmp_path, replace(ONE_TRY, start_stall_timeout_s=0.02))
    async with living_backend(tmp_path, backend) as world:
        await world.supervisor.request_start()
        run = await world.run()
        run.is_well = False
        await world.supervisor.settled(State.FAILED)
        assert "StartTimedOut" in world.events
        diagnosis = world.supervisor.status().diagnosis
        assert diagnosis is not None
        assert diagnosis.code == "start_timed_out"
        assert "no progress" in diagnosis.reason


@pytest.mark.parametrize("sign", ["a log line", "bytes read"])
async def test_a_start_that_shows_life_is_not_stalled(tmp_path: Path, sign: str) -> None:
    """A start that prints or reads may take many times start_stall_timeout_s."""
    stall_s = 0.2
    backend = settings(tmp_path, replace(CALM, start_stall_timeout_s=stall_s))
    loop = asyncio.get_running_loop()
    async with living_backend(tmp_path, backend) as world:
        await world.supervisor.request_start()
        run = await world.run()
        run.is_well = False
        if sign == "bytes read":
            counter = iter(range(0, 10_000 * MIN_PROGRESS_BYTES, MIN_PROGRESS_BYTES))
            run.read_bytes = lambda: next(counter)
        end_at = loop.time() + 4 * stall_s
        while loop.time() < end_at:
            if sign == "a log line":
                run.say("Loading safetensors checkpoint shards: 10%")
            await asyncio.sleep(0.01)
        assert world.state is State.STARTING
        run.is_well = True
        run.is_answering.set()
        await world.supervisor.settled(State.READY)


async def test_our_own_questions_are_no_sign_of_life(tmp_path: Path) -> None:
    """A few bytes read, as a health check costs, do not keep a hung start alive."""
    backend = settings(tmp_path, replace(ONE_TRY, start_stall_timeout_s=0.1))
    async with living_backend(tmp_path, backend) as world:
        await world.supervisor.request_start()
        run = await world.run()
        run.is_well = False
        counter = iter(range(0, 1_000_000, 300))
        run.read_bytes = lambda: next(counter)
        await world.supervisor.settled(State.FAILED)
        assert "StartTimedOut" in world.events


async def test_one_start_holds_the_gate_for_a_while_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A start that hangs keeps others waiting no longer than GATE_HOLD_S."""
    monkeypatch.setattr(start, "GATE_HOLD_S", 0.05)
    async with living_backend(tmp_path, settings(tmp_path)) as world:
        await world.supervisor.request_start()
        await world.run()
        async with world.host.start_gate:
            assert world.state is State.STARTING


async def test_a_lease_asked_for_at_the_very_end_of_a_stop_is_granted(tmp_path: Path) -> None:
    """Whoever asks while the news of the exit waits in the inbox gets the next run, not `model_stopped`."""
    async with living_backend(tmp_path, settings(tmp_path)) as world:
        run = await world.ready()
        world.launcher.deaf = True
        await world.supervisor.request_stop()
        await world.supervisor.settled(State.STOPPING)
        # In this order the task asks before the supervisor wakes, but behind the news of the exit.
        asking = asyncio.create_task(world.supervisor.lease(5))
        world.supervisor._inbox.put_nowait(Occurrence(1, None, None))
        run.end(ExitStatus(code=0))
        second = await world.launcher.started(2)
        second.is_answering.set()
        (await asking).release()


async def test_the_phase_comes_from_the_log(tmp_path: Path) -> None:
    """What a starting engine prints is shown as its phase, and told to who waited in vain."""
    async with living_backend(tmp_path, settings(tmp_path)) as world:
        await world.supervisor.request_start()
        run = await world.run()
        await turns()
        run.say("INFO Loading safetensors checkpoint shards:  50% Completed")
        assert world.supervisor.status().phase == "loading weights"
        with pytest.raises(BackendUnavailable, match=r"starting \(loading weights\)"):
            await world.supervisor.lease(0.01)


# --- starts ---


async def test_a_command_that_cannot_be_run_is_final(tmp_path: Path) -> None:
    """A spawn failure is FAILED with `not_started`; neither its record nor its turn at the gate stays behind."""
    async with living_backend(tmp_path, settings(tmp_path)) as world:
        world.launcher.failures.append(SpawnFailed("vllm: No such file or directory"))
        await world.supervisor.request_start()
        await world.supervisor.settled(State.FAILED)
        diagnosis = world.supervisor.status().diagnosis
        assert diagnosis is not None
        assert (diagnosis.code, diagnosis.permanent) == ("not_started", True)
        assert "vllm: No such file or directory" in diagnosis.reason
        assert world.records.read_all() == []
        assert not world.host.start_gate.locked()


async def test_the_record_lives_as_long_as_the_run(tmp_path: Path) -> None:
    """While a run lives its record names its marker; afterwards there is none."""
    async with living_backend(tmp_path, settings(tmp_path)) as world:
        run = await world.ready()
        assert [record.marker for record in world.records.read_all()] == [run.marker]
        assert run.marker.startswith("m:")
        await world.supervisor.request_stop()
        await world.supervisor.settled(State.STOPPED)
        assert world.records.read_all() == []


async def test_the_place_is_given_back(tmp_path: Path) -> None:
    """When a run has ended, its socket is gone."""
    async with living_backend(tmp_path, settings(tmp_path)) as world:
        run = await world.ready()
        socket = Path(run.spec.address.uds)
        socket.touch()
        await world.supervisor.request_stop()
        await world.supervisor.settled(State.STOPPED)
        assert not socket.exists()


async def test_a_record_that_cannot_be_completed_orphans_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk fills up between the two writes of a record: the run that was started still has an owner."""
    async with living_backend(tmp_path, settings(tmp_path)) as world:
        world.launcher.session = os.getpid()
        write = world.records.write

        def write_once(record: Any) -> None:
            if record.session:
                raise OSError(28, "No space left on device")
            write(record)

        monkeypatch.setattr(world.records, "write", write_once)
        await world.supervisor.request_start()
        run = await world.run()
        await turns()
        assert run.is_alive == (world.state is State.STARTING)
        await world.supervisor.request_stop()
        await world.supervisor.settled(State.STOPPED)
        assert not run.is_alive


async def test_a_stop_before_the_process_is_there(tmp_path: Path) -> None:
    """A stop that overtakes the spawn still ends the run."""
    async with living_backend(tmp_path, settings(tmp_path)) as world:
        world.supervisor.request_start()
        world.supervisor.request_stop()
        await world.published(3)
        assert world.events == ["StartRequested", "StopRequested", "Exited"]
        assert world.launcher.alive == []


@pytest.mark.parametrize("signal", ["TERM", "KILL"])
async def test_a_stop_during_the_spawn(tmp_path: Path, signal: str) -> None:
    """What is asked of a run that is just being spawned reaches it as soon as it is there."""
    async with living_backend(tmp_path, settings(tmp_path)) as world:
        world.launcher.may_start.clear()
        await world.supervisor.request_start()
        await until(lambda: world.launcher.starting == 1)
        if signal == "TERM":
            await world.supervisor.request_stop()
        else:
            world.supervisor.kill()
        world.launcher.may_start.set()
        run = await world.launcher.started(1)
        await until(lambda: not run.is_alive)
        assert signal in run.signals


async def test_what_does_not_die_is_killed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """KILL is repeated until the run is gone, and only then is the backend STOPPED."""
    monkeypatch.setattr("backends.supervisor.KILL_AGAIN_S", 0.01)
    async with living_backend(tmp_path, settings(tmp_path, replace(CALM, stop_grace_s=0.01))) as world:
        world.launcher.deaf = True
        run = await world.ready()
        run.kills_ignored = 2
        await world.supervisor.request_stop()
        await world.supervisor.settled(State.STOPPED)
        assert run.signals == ["TERM", "KILL", "KILL", "KILL"]


async def test_the_start_gate_admits_one_at_a_time(tmp_path: Path) -> None:
    """A second backend spawns only when the first is READY; meanwhile it says what it waits for."""
    async with (
        living_backend(tmp_path / "a", settings(tmp_path)) as first,
        living_backend(tmp_path / "b", settings(tmp_path)) as second,
    ):
        object.__setattr__(second.host, "start_gate", first.host.start_gate)
        await first.supervisor.request_start()
        run = await first.run()
        await second.supervisor.request_start()
        await turns(50)
        assert second.launcher.runs == []
        assert second.supervisor.status().phase == "queued behind another start"
        run.is_answering.set()
        (await second.run()).is_answering.set()
        await second.supervisor.settled(State.READY)


@pytest.mark.parametrize("way_out", ["crash", "stop"])
async def test_the_start_gate_opens_however_a_start_ends(tmp_path: Path, way_out: str) -> None:
    """A start that crashes or is stopped lets the next one in."""
    async with living_backend(tmp_path, settings(tmp_path, SLOW_RETRY)) as world:
        await world.supervisor.request_start()
        run = await world.run()
        assert world.host.start_gate.locked()
        if way_out == "crash":
            run.end(ExitStatus(code=1))
            await world.supervisor.settled(State.BACKOFF)
        else:
            await world.supervisor.request_stop()
            await world.supervisor.settled(State.STOPPED)
        await turns()
        assert not world.host.start_gate.locked()


async def test_a_start_stopped_in_the_queue_never_spawns(tmp_path: Path) -> None:
    """Stopped while it waits at the gate, a backend ends without a process and without a place in the queue."""
    async with living_backend(tmp_path, settings(tmp_path)) as world:
        await world.host.start_gate.acquire()
        await world.supervisor.request_start()
        await turns()
        await world.supervisor.request_stop()
        await world.supervisor.settled(State.STOPPED)
        world.host.start_gate.release()
        await turns()
        assert world.launcher.runs == []
        assert not world.host.start_gate.locked()


async def test_a_diagnosis_looks_at_its_own_run_only(tmp_path: Path) -> None:
    """Out of memory in the last run does not make this run's unexplained end permanent."""
    async with living_backend(tmp_path, settings(tmp_path)) as world:
        run = await world.ready()
        run.say(OUT_OF_MEMORY)
        run.end(ExitStatus(code=1))
        (await world.launcher.started(2)).end(ExitStatus(code=3))
        await world.published(5)
        assert world.events[-2:] == ["BackoffElapsed", "Crashed"]
        assert world.transitions[-1].diagnosis is not None
        assert world.transitions[-1].diagnosis.code == "crashed"


# --- timers ---


async def test_retries_are_counted_and_announced(tmp_path: Path) -> None:
    """After a crash the status says when the next start is due; starts by back-off are counted as restarts."""
    async with living_backend(tmp_path, settings(tmp_path, SLOW_RETRY)) as world:
        run = await world.ready()
        assert world.supervisor.status().retry_in_s is None
        run.end(ExitStatus(code=1))
        await world.supervisor.settled(State.BACKOFF)
        status = world.supervisor.status()
        assert status.retry_in_s is not None
        assert 47 < status.retry_in_s <= 72
        assert status.restarts == 0
        with pytest.raises(BackendUnavailable) as refusal:
            await world.supervisor.lease(0.01)
        assert refusal.value.retry_after_s is not None
        assert 47 < refusal.value.retry_after_s <= 72


async def test_a_ready_run_clears_the_failed_starts(tmp_path: Path) -> None:
    """Only starts in a row that never got READY lead to giving up."""
    async with living_backend(tmp_path, settings(tmp_path, replace(CALM, max_failed_starts=2))) as world:
        await world.supervisor.request_start()
        for number in range(1, 9):
            run = await world.launcher.started(number)
            if number % 2 == 0:
                run.is_answering.set()
                await world.supervisor.settled(State.READY)
            run.end(ExitStatus(code=1))
            await world.launcher.started(number + 1)
        assert world.supervisor.status().restarts == 8


async def test_a_person_gives_it_all_its_tries_again(tmp_path: Path) -> None:
    """A start asked for after giving up has as many tries as the first."""
    async with living_backend(tmp_path, settings(tmp_path, replace(CALM, max_failed_starts=2))) as world:
        for _ in range(2):
            await world.supervisor.request_start()
            for _ in range(2):
                (await world.run()).end(ExitStatus(code=1))
                await until(lambda: not world.launcher.alive)
            await world.supervisor.settled(State.FAILED)
        assert world.events == ["StartRequested", "Crashed", "BackoffElapsed", "Crashed", "GaveUp"] * 2


async def test_only_a_ready_backend_is_checked(tmp_path: Path) -> None:
    """While it drains, nobody asks for its health, and an unwell engine may finish what it does."""
    async with living_backend(tmp_path, settings(tmp_path)) as world:
        run = await world.ready()
        lease = world.supervisor.try_lease()
        assert lease is not None
        await world.supervisor.request_stop()
        run.is_well = False
        checks = run.health_calls
        await asyncio.sleep(0.03)  # thirty times the interval: what must not come cannot be awaited
        assert run.health_calls <= checks + 1
        lease.release()


async def test_an_idle_backend_is_unloaded(tmp_path: Path) -> None:
    """Without a lease for idle_unload_s a backend drains and stops."""
    async with living_backend(tmp_path, settings(tmp_path, idle_unload_s=0.02)) as world:
        await world.ready()
        await world.supervisor.settled(State.STOPPED)
        assert world.events[2:] == ["StopRequested", "Drained", "Exited"]


async def test_a_lease_keeps_an_idle_timer_away(tmp_path: Path) -> None:
    """Idle time begins when the last lease came back."""
    async with living_backend(tmp_path, settings(tmp_path, idle_unload_s=0.03)) as world:
        await world.ready()
        lease = world.supervisor.try_lease()
        assert lease is not None
        await asyncio.sleep(0.1)
        assert world.state is State.READY
        lease.release()
        await world.supervisor.settled(State.STOPPED)


async def test_an_idle_timer_does_not_forget_a_start(tmp_path: Path) -> None:
    """The idle timer fires behind a restart in the inbox: the start asked for is still replayed."""
    async with living_backend(tmp_path, settings(tmp_path, idle_unload_s=60)) as world:
        await world.ready()
        world.supervisor.request_stop()
        world.supervisor.request_start()
        world.supervisor._idle_elapsed()
        await world.launcher.started(2)
        assert world.state is State.STARTING


async def test_a_whole_answer_spares_a_health_check(tmp_path: Path) -> None:
    """While answers come, the engine is not asked for its health; silent again, it is."""
    timing = replace(CALM, health_interval_s=0.05)
    async with living_backend(tmp_path, settings(tmp_path, timing)) as world:
        run = await world.ready()
        loop = asyncio.get_running_loop()
        asked_before, end_at = run.health_calls, loop.time() + 0.3
        while loop.time() < end_at:
            lease = world.supervisor.try_lease()
            assert lease is not None
            lease.release(answered=True)
            await asyncio.sleep(0.002)
        assert run.health_calls - asked_before <= 1
        asked_before = run.health_calls
        await run.checked(asked_before + 1)


WATCHFUL = replace(CALM, health_interval_s=0.002, health_failures=1000)
"""A timing under which only silence can make a backend unhealthy."""


async def test_an_engine_that_has_fallen_silent_is_recycled(tmp_path: Path) -> None:
    """A request that got nothing in time is doubt enough to ask for a token; none coming, good health is no excuse."""
    async with living_backend(tmp_path, settings(tmp_path, WATCHFUL)) as world:
        run = await world.ready()
        run.refusal = httpx.ReadTimeout("nothing came")
        await run.checked(run.health_calls + 3)
        assert world.state is State.READY
        (await world.supervisor.lease(1)).release(silent=True)
        await until(lambda: Event.BECAME_UNHEALTHY in [change.event for change in world.transitions])
        unhealthy = next(change for change in world.transitions if change.event is Event.BECAME_UNHEALTHY)
        assert unhealthy.diagnosis is not None
        assert unhealthy.diagnosis.code == "silent"


@pytest.mark.parametrize("refusal", [None, ProbeFailed("too busy")])
async def test_an_engine_that_speaks_is_not_silent(tmp_path: Path, refusal: ProbeFailed | None) -> None:
    """A token, or any word at all, takes the doubt away: the request was slow, not the engine dead."""
    async with living_backend(tmp_path, settings(tmp_path, WATCHFUL)) as world:
        run = await world.ready()
        run.refusal = refusal
        (await world.supervisor.lease(1)).release(silent=True)
        await run.checked(run.health_calls + 3)
        run.refusal = httpx.ReadTimeout("nobody asks any more")
        await run.checked(run.health_calls + 3)
        assert world.state is State.READY


async def test_an_engine_that_answers_others_is_not_silent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full engine keeps the probe waiting like everybody; while whole answers come it is not taken for dead."""
    async with living_backend(tmp_path, settings(tmp_path, WATCHFUL)) as world:
        run = await world.ready()
        clock = asyncio.get_running_loop().time
        probes = []

        async def prove(*_: Any) -> None:
            probes.append(asked_at := clock())
            await until(lambda: clock() > asked_at)
            (await world.supervisor.lease(1)).release(answered=True)
            raise httpx.ReadTimeout("nothing came")

        monkeypatch.setattr(world.host.prober, "prove", prove)
        (await world.supervisor.lease(1)).release(silent=True)
        await until(lambda: bool(probes))
        await run.checked(run.health_calls + 2)
        assert world.state is State.READY


async def test_one_failed_health_check_is_forgiven(tmp_path: Path) -> None:
    """Only so many failures in a row recycle; one good answer starts the count anew."""
    timing = replace(CALM, health_failures=3)
    async with living_backend(tmp_path, settings(tmp_path, timing)) as world:
        run = await world.ready()
        for _ in range(5):
            run.is_well = False
            seen = run.health_calls
            await run.checked(seen + 1)
            run.is_well = True
            seen = run.health_calls
            await run.checked(seen + 2)
        assert world.state is State.READY


# --- messages ---


async def test_a_stale_generation_is_dropped(tmp_path: Path) -> None:
    """What an earlier run still says changes nothing."""
    async with living_backend(tmp_path, settings(tmp_path)) as world:
        await world.ready()
        for event in Event:
            world.supervisor._inbox.put_nowait(Occurrence(0, event))
        world.supervisor._inbox.put_nowait(Occurrence(0))
        await turns()
        assert world.state is State.READY
        assert world.events == ["StartRequested", "BecameReady"]


async def test_a_subscriber_that_raises_leaves_no_process_without_an_owner(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A mistake of ours at the top of the task is logged, the run is killed, and the task lives on."""
    async with living_backend(tmp_path, settings(tmp_path)) as world:
        run = await world.ready()

        def broken(_: object) -> None:
            raise ValueError("a mistake")

        publish, world.supervisor._publish = world.supervisor._publish, broken
        with caplog.at_level(logging.ERROR):
            await world.supervisor.request_stop()
            await turns()
        world.supervisor._publish = publish
        assert "a message could not be taken" in caplog.text
        assert not run.is_alive
        await world.ready()


async def test_the_secret_of_a_backend_is_in_no_repr(tmp_path: Path) -> None:
    """Neither supervisor, settings nor run show the key of an external backend."""
    backend = settings(tmp_path, engine="external", url="http://127.0.0.1:1/v1", api_key="sk-secret")
    async with living_backend(tmp_path, backend) as world:
        run = await world.ready()
        lease = world.supervisor.try_lease()
        assert lease is not None
        assert lease.authorization == "Bearer sk-secret"
        shown = f"{world.supervisor!r} {world.supervisor.status()!r} {backend!r} {run.spec!r} {lease!r}"
        assert "sk-secret" not in shown
        lease.release()
        assert "sk-secret" not in "\n".join(world.log.tail(100))


async def test_transitions_are_written_into_the_log(tmp_path: Path) -> None:
    """The backend's log tells its life between the engine's own lines."""
    async with living_backend(tmp_path, settings(tmp_path)) as world:
        await world.ready()
        text = "\n".join(world.log.tail(100))
        assert "stopped -> starting: StartRequested" in text
        assert "run 1: vllm serve" in text
        assert "starting -> ready: BecameReady" in text
