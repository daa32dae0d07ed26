"""One backend, one task, one writer of its state.

Theory of operation
-------------------
Whatever happens to a backend, an operator's request, a process that ended, a timer, becomes a message in the inbox.
The task in `run` takes them one at a time, asks `lifecycle` for the row, and carries its effects out. Nothing else
writes the state, so no two parts of the program can disagree about it, and no lock is needed.

Messages from a run carry its generation; those of an earlier run are dropped. A start asked for while the backend is
leaving is remembered and replayed when it has stopped. New settings are a message too: they are taken over when no run
of the old ones is left, and those who wait meanwhile wait for the run that follows. Every waiter is answered on every
way out: READY wakes them, FAILED and STOPPED fail them with the reason, and each has a deadline of its own.

Asked to yield by another's start, it grants no more leases, lets those it gave come back in their own time, and leaves,
or sleeps where its engine can. What is asked of it meanwhile is remembered like any start, and queues for room again.

Leases are granted here too, synchronously: between the look at the state and the count there is no await, so a
backend that drains cannot be handed out. Readers elsewhere (`status`) are for showing, never for deciding.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable
from dataclasses import dataclass

import httpx

from backends.adapter import Adapter, LaunchSpec
from backends.backoff import Attempts, after_failure, retry_delay_s
from backends.devices import HOST
from backends.diagnosis import Diagnosis
from backends.lease import BackendUnavailable, Lease
from backends.lifecycle import HAS_PROCESS, LEAVING, RESTING, Effect, Event, State, is_legal, next_step
from backends.logs import BackendLog
from backends.probing import ProbeFailed
from backends.resident import DaemonLife
from backends.room import Occupancy
from backends.settings import BackendSettings, EngineSettings, is_adjustable
from backends.start import Host, Occurrence, Start
from backends.status import BackendStatus, Transition
from backends.waiting import Waiters
from chat_templates.proof import Proof

EARLY_STOP_GRACE_S = 5.0
"""From TERM to KILL of an engine that is still starting: nothing runs on it, and vLLM may not even have its signal
handlers yet (vllm#32116)."""
KILL_AGAIN_S = 10.0
SILENT = Diagnosis(
    "silent",
    "The engine fell silent: a request got nothing in time, and neither did a probe for one token.",
    "It is restarted; its log may hold the reason. Raise gateway.timeouts if it is only slow.",
)

_HAS_BEEN_READY = frozenset({State.READY, State.YIELDING, State.SLEEPING, State.DRAINING})

_log = logging.getLogger("unigate.backends")


@dataclass(frozen=True, slots=True)
class Request:
    """An event asked for, by people or by the supervisor of itself; *taken* is done once it has been looked at."""

    event: Event
    taken: asyncio.Future[None]


@dataclass(frozen=True, slots=True)
class Setup:
    """All that the runs of a backend are made from."""

    backend: BackendSettings
    engine: EngineSettings
    adapter: Adapter

    def is_adjustable_to(self, other: Setup) -> bool:
        """Whether a run of this setup may go on under the *other*."""
        is_same_engine = self.engine == other.engine and self.adapter is other.adapter
        return is_same_engine and is_adjustable(self.backend, other.backend)


@dataclass(frozen=True, slots=True)
class Change:
    """A new *setup* asked for; *taken* as that of a Request."""

    setup: Setup
    taken: asyncio.Future[None]


class Supervisor:
    """The owner of one backend. `run` must be running for anything to happen."""

    def __init__(
        self,
        backend: BackendSettings,
        engine: EngineSettings,
        adapter: Adapter,
        host: Host,
        log: BackendLog,
        publish: Callable[[Transition], None],
        *,
        max_waiting: int = 256,
        daemon: DaemonLife | None = None,
    ) -> None:
        self.log = log
        self._adopt(Setup(backend, engine, adapter))
        self._next_setup: Setup | None = None
        self._is_retired = False
        self._host = host
        self._daemon = daemon
        self._publish = publish
        self._inbox: asyncio.Queue[Request | Change | Occurrence] = asyncio.Queue()
        self._state = State.STOPPED
        self._generation = 0
        self._start: Start | None = None
        self._start_again = False
        self._may_sleep = False
        self._has_given_room = False
        self._is_over = False
        self._attempts = Attempts()
        self._restarts = 0
        self._leases = 0
        self._waiters = Waiters(max_waiting)
        self._settling: list[tuple[frozenset[State], asyncio.Future[None]]] = []
        self._diagnosis: Diagnosis | None = None
        self._is_doubted = False
        self._timer: asyncio.TimerHandle | None = None
        self._idle_timer: asyncio.TimerHandle | None = None
        self._health: asyncio.Task[None] | None = None
        self._clock = asyncio.get_running_loop().time
        self._since = self._started_at = self._last_answer_at = self._last_used_at = self._clock()

    def __repr__(self) -> str:
        return (
            f"<Supervisor {self.backend.name}: {self._state.value}, run {self._generation}, "
            f"{self._leases} leases, {len(self._waiters)} waiting>"
        )

    # --- asked for by others ---

    def request_start(self) -> asyncio.Future[None]:
        """Start it, or start it again once it has stopped. No effect on one that is starting or READY.

        The future is done when the request has been taken; `settled` then waits for its outcome.
        """
        return self._ask(Event.START_REQUESTED)

    def request_stop(self) -> asyncio.Future[None]:
        """Drain and stop it, and forget any start asked for before. The future is as that of `request_start`."""
        return self._ask(Event.STOP_REQUESTED)

    def _ask(self, event: Event) -> asyncio.Future[None]:
        return self._send(Request(event, asyncio.get_running_loop().create_future()))

    def _send(self, message: Request | Change) -> asyncio.Future[None]:
        if self._is_over:
            _taken(message)
        else:
            self._inbox.put_nowait(message)
        return message.taken

    def change(self, setup: Setup) -> asyncio.Future[None]:
        """Go on under *setup*. A run that cannot is drained and stopped, and one of the new setup follows it.

        One that was asked to run and has failed is started again; one that is stopped stays so, unless it is no longer
        on demand. The future is as that of `request_start`.
        """
        self._is_retired = False
        return self._send(Change(setup, asyncio.get_running_loop().create_future()))

    def retire(self) -> asyncio.Future[None]:
        """Drain and stop it for good: no request starts it again, only a `change` does. The future is as above."""
        self._is_retired = True
        return self.request_stop()

    @property
    def setup(self) -> Setup:
        """What it runs under, or will as soon as the run under an older one has ended."""
        return self._next_setup or self._setup

    def allow_waiting(self, limit: int) -> None:
        """Let at most *limit* requests wait from now on; those that wait already are not sent away."""
        self._waiters.limit = limit

    def request_yield(self, *, sleep: bool) -> None:
        """Make room for another: refuse leases, wait for those granted, then *sleep* or stop. No effect on one that
        is neither READY nor asleep, nor on a later run than this."""
        self._may_sleep = sleep
        self._inbox.put_nowait(Occurrence(self._generation, Event.YIELD_REQUESTED))

    def occupancy(self) -> Occupancy:
        """How it stands, for choosing who makes room."""
        return Occupancy(
            self._state,
            self._leases,
            self._since,
            self._last_used_at,
            self.backend.is_pinned,
            self.backend.min_residency_s,
        )

    def end_drain(self) -> None:
        """Wait no longer for the leases of a backend that drains."""
        self._ask(Event.DRAIN_TIMED_OUT)

    def kill(self) -> None:
        """KILL the process now; what follows is a crash or an end like any other."""
        if self._start is not None:
            self._start.kill()

    async def gone(self) -> None:
        """Until nothing is left of the last run."""
        if self._start is not None:
            await self._start.gone()

    @property
    def has_exited(self) -> bool:
        """Whether the main process of its run is gone, though the state may not say so yet."""
        return self._start is not None and self._start.has_exited

    def bytes_read(self) -> int:
        """Bytes the processes of the run have read from files so far. Blocks for some milliseconds."""
        return self._start.bytes_read() if self._start is not None else 0

    async def settled(self, *states: State) -> None:
        """Until the backend is in one of *states*."""
        if self._state in states:
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        entry = (frozenset(states), future)
        self._settling.append(entry)
        try:
            await future
        finally:
            if entry in self._settling:
                self._settling.remove(entry)

    def status(self) -> BackendStatus:
        """How it stands now."""
        start = self._start
        now = self._clock()
        claims = self._host.room.claims(self.backend.name)
        retry_in_s = max(0.0, self._timer.when() - now) if self._timer and self._state is State.BACKOFF else None
        return BackendStatus(
            name=self.backend.name,
            engine=self.backend.engine,
            state=self._state,
            phase=start.phase if start is not None and self._state is State.STARTING else "",
            pid=start.pid if start is not None else None,
            address=str(start.spec.address) if start is not None and start.spec is not None else "",
            since_s=now - self._since,
            leases=self._leases,
            waiting=len(self._waiters),
            restarts=self._restarts,
            retry_in_s=retry_in_s,
            on_demand=self.backend.on_demand,
            log=str(self.log.path),
            diagnosis=self._diagnosis if self._state is not State.READY else None,
            memory_bytes=sum(claims.values()),
            gpus=tuple(sorted(index for index in claims if index != HOST)),
            idle_s=None if self._leases else now - self._last_used_at,
            is_pinned=self.backend.is_pinned,
            has_given_room=self._has_given_room,
            model=self.backend.model,
            is_retired=self._is_retired,
            parity=self.proof.parity if self.proof is not None else None,
        )

    @property
    def proof(self) -> Proof | None:
        """What was seen of the prompts of its last run; None where nothing was to be proven, or not yet."""
        return self._start.proof if self._start is not None else None

    @property
    def outstanding(self) -> int:
        """How many requests it works on, and how many wait for it."""
        return self._leases + len(self._waiters)

    @property
    def state(self) -> State:
        """What it is doing. For choosing between backends, never for deciding about this one."""
        return self._state

    def try_lease(self) -> Lease | None:
        """A lease when the backend is READY, at once; none of an engine whose end is merely not over yet."""
        if self._state is not State.READY or self._start is None or self._start.spec is None or self.has_exited:
            return None
        self._leases += 1
        self._last_used_at = self._clock()
        spec = self._start.spec
        parity = self.proof.parity if self.proof is not None else None
        return Lease(self.backend, spec.address, spec.authorization, self._lease_returned, spec.served_name, parity)

    async def lease(self, max_wait_s: float) -> Lease:
        """A lease, waiting for a start if need be, up to *max_wait_s* seconds.

        Raises BackendUnavailable. Cancelled, it leaves nothing behind but, maybe, a backend that has started.
        """
        lease = self.try_lease()
        if lease is not None:
            return lease
        if self._waiters.is_full:
            message = f"the queue for {self.backend.name} is full ({len(self._waiters)} waiting)"
            raise BackendUnavailable("queue_full", message, self._retry_after_s())
        try:
            async with asyncio.timeout(max_wait_s):
                while lease is None:
                    await self._wait_for_ready()
                    lease = self.try_lease()
        except TimeoutError:
            message = (
                f"{self.backend.name} is {self._describe()}, and did not become ready within {round(max_wait_s, 1):g} s"
            )
            raise BackendUnavailable("model_not_ready", message, self._retry_after_s(), self._diagnosis) from None
        return lease

    async def _wait_for_ready(self) -> None:
        if self._state is State.FAILED:
            raise self._failed()
        if self._is_over or self._is_retired:
            raise self._stopped()
        is_under_way = self._state in (State.STARTING, State.BACKOFF, State.RECYCLING)
        await self._waiters.wait(None if is_under_way else self._ask(Event.START_REQUESTED))

    def _lease_returned(self, answered: bool, silent: bool) -> None:
        self._leases -= 1
        self._last_used_at = self._clock()
        if answered:
            self._last_answer_at = self._clock()
        self._is_doubted |= silent
        if self._leases == 0:
            if self._state is State.DRAINING:
                self._ask(Event.DRAINED)
            elif self._state is State.YIELDING:
                self._leave()
            self._arm_idle_timer()
            self._host.room.look_again()

    def _describe(self) -> str:
        start = self._start
        phase = f" ({start.phase})" if start is not None and start.phase and self._state is State.STARTING else ""
        reason = f": {self._diagnosis.reason}" if self._diagnosis is not None else ""
        return f"{self._state.value}{phase}{reason}"

    def _retry_after_s(self) -> float:
        if self._state is State.BACKOFF and self._timer is not None:
            return max(1.0, self._timer.when() - self._clock())
        return 10.0

    def _failed(self) -> BackendUnavailable:
        diagnosis = self._diagnosis
        message = f"{self.backend.name} has failed" + (f": {diagnosis}" if diagnosis is not None else "")
        return BackendUnavailable("model_failed", message, None, diagnosis)

    def _stopped(self) -> BackendUnavailable:
        return BackendUnavailable("model_stopped", f"{self.backend.name} was stopped", self._retry_after_s())

    # --- the one task ---

    async def run(self) -> None:
        """Live until cancelled. What is running then is killed."""
        try:
            while True:
                message = await self._inbox.get()
                try:
                    self._take(message)
                except Exception:
                    # The top of the supervisor task: a mistake of ours must not leave a process without an owner.
                    _log.exception("%r: a message could not be taken: %r", self, message)
                    self.kill()
        finally:
            self._end_timers()
            self.kill()
            self._start_again = False
            self._is_over = True
            self._fail_waiters()
            while not self._inbox.empty():
                message = self._inbox.get_nowait()
                if not isinstance(message, Occurrence):
                    _taken(message)

    def _take(self, message: Request | Change | Occurrence) -> None:
        if isinstance(message, Change):
            _taken(message)
            self._take_change(message.setup)
        else:
            self._take_event(message)
        if self._state is State.SLEEPING and self._next_setup is not None:
            # A run under an older setup is not woken; it has given room, so only a request brings it back.
            self._apply(Event.STOP_REQUESTED, None)
        if self._state not in HAS_PROCESS and self._next_setup is not None:
            self._adopt(self._next_setup)
            self._next_setup = None
        if self._state in RESTING and self._start_again:
            self._start_again = False
            self._apply(Event.START_REQUESTED, None)

    def _take_event(self, message: Request | Occurrence) -> None:
        if isinstance(message, Occurrence):
            if message.generation != self._generation:
                return
            event = message.event or self._event_of_end(message.diagnosis)
            diagnosis = message.diagnosis
            if event is Event.YIELD_REQUESTED and self._state is State.STARTING:
                if self._start is None or not self._start.is_asleep:
                    return  # it has room by now, or never slept
                self._start_again = True
            if event is Event.STOP_REQUESTED and (self._leases > 0 or self._state not in (State.READY, State.SLEEPING)):
                # The idle timer, too late: a lease was taken meanwhile, and its return arms the timer again; or the
                # backend is leaving already, and a start asked for since must not be forgotten.
                return
        else:
            event, diagnosis = message.event, None
            _taken(message)
        if event is Event.START_REQUESTED and self._is_retired:
            if self._state not in HAS_PROCESS:
                self._fail_waiters()  # no end will come that answers them
            return
        if event is Event.START_REQUESTED and self._state in LEAVING:
            self._start_again = True
        elif event is Event.STOP_REQUESTED:
            self._start_again = False
        # Requests that ask for what already is, timers overtaken by what they waited for: rightly too late.
        if is_legal(self._state, event):
            self._apply(event, diagnosis)

    def _take_change(self, setup: Setup) -> None:
        was_on_demand = self.backend.on_demand
        if self.setup.is_adjustable_to(setup):
            if self._next_setup is None:
                self._adopt(setup)
                self._arm_idle_timer()
            else:
                self._next_setup = setup
            self._start_again |= self._state is State.STOPPED and was_on_demand and not setup.backend.on_demand
            return
        self._next_setup = setup
        if self._state is State.STOPPED:
            self._start_again = was_on_demand and not setup.backend.on_demand
        elif self._state not in LEAVING | RESTING:
            self._start_again = not (self._state is State.FAILED and setup.backend.on_demand)
            self._apply(Event.STOP_REQUESTED, None)

    def _adopt(self, setup: Setup) -> None:
        self._setup = setup
        self.backend, self._engine, self._adapter = setup.backend, setup.engine, setup.adapter
        self._timing = setup.adapter.timing(setup.backend.timing)

    def _event_of_end(self, diagnosis: Diagnosis | None) -> Event:
        """Nothing is left of the process: whether that is an end, a crash or a rejection depends on who asked."""
        if self._state in (State.STOPPING, State.RECYCLING):
            return Event.EXITED
        if self._state is State.STARTING and diagnosis is not None and diagnosis.permanent:
            return Event.REJECTED
        return Event.CRASHED

    def _apply(self, event: Event, diagnosis: Diagnosis | None) -> None:
        before, step = self._state, next_step(self._state, event)
        now = self._clock()
        self._end_timers()
        self._keep_diagnosis(event, diagnosis)
        if event in (Event.CRASHED, Event.BECAME_UNHEALTHY, Event.START_TIMED_OUT):
            ready_for_s = now - self._since if before in _HAS_BEEN_READY else None
            self._attempts = after_failure(self._attempts, self._timing, ready_for_s)
        self._state, self._since = step.state, now
        if event is Event.YIELD_REQUESTED:
            self._has_given_room = True
        elif event is Event.STOP_REQUESTED or step.state in (State.READY, State.FAILED, State.BACKOFF):
            self._has_given_room = False
        if event is Event.START_REQUESTED:
            self._started_at = now
        if event is Event.BACKOFF_ELAPSED:
            self._restarts += 1
        for effect in step.effects:
            self._carry_out(effect)
        started_in_s = now - self._started_at if event is Event.BECAME_READY else None
        is_failure = step.state in (State.RECYCLING, State.BACKOFF, State.FAILED) or before is State.BACKOFF
        told = self._diagnosis if is_failure else None
        spec = self._start.spec if self._start is not None else None
        address = spec.address if spec is not None else None
        self._announce(
            Transition(
                self.backend.name,
                self.backend.engine,
                before,
                event,
                step.state,
                told,
                address,
                started_in_s,
                self.backend.model,
            )
        )

    def _keep_diagnosis(self, event: Event, diagnosis: Diagnosis | None) -> None:
        if event in (Event.START_REQUESTED, Event.BECAME_READY):
            self._diagnosis = None
        elif diagnosis is not None and event in (
            Event.CRASHED, Event.REJECTED, Event.START_TIMED_OUT, Event.BECAME_UNHEALTHY,
        ):  # fmt: skip
            self._diagnosis = diagnosis

    def _announce(self, transition: Transition) -> None:
        reason = f" ({transition.diagnosis})" if transition.diagnosis is not None else ""
        self.log.note(f"{transition.before.value} -> {transition.after.value}: {transition.event.value}{reason}")
        self._publish(transition)
        for entry in [entry for entry in self._settling if transition.after in entry[0]]:
            if not entry[1].done():
                entry[1].set_result(None)
        self._host.room.look_again()

    def _carry_out(self, effect: Effect) -> None:
        match effect:
            case Effect.SPAWN:
                self._spawn()
            case Effect.SIGNAL:
                self._signal()
            case Effect.KILL:
                self.kill()
                self._post_later(KILL_AGAIN_S, Event.STOP_TIMED_OUT)
            case Effect.WATCH_HEALTH:
                self._last_answer_at = self._clock()
                self._health = asyncio.create_task(self._watch_health(), name=f"health {self.backend.name}")
                self._arm_idle_timer()
            case Effect.AWAIT_DRAIN:
                self._await_drain()
            case Effect.AWAIT_LEASES:
                if self._leases == 0:
                    self._leave()
            case Effect.WAKE_ENGINE:
                assert self._start is not None
                self._start.wake()
            case Effect.AWAIT_IDLE:
                self._arm_idle_timer()
            case Effect.SCHEDULE_RETRY_OR_GIVE_UP:
                self._schedule_retry()
            case Effect.CANCEL_RETRY:
                pass  # every timer of the state just left is ended with it
            case Effect.RESET_ATTEMPTS:
                self._attempts = Attempts()
            case Effect.WAKE_WAITERS:
                self._waiters.wake()
            case Effect.FAIL_WAITERS:
                self._fail_waiters()

    def _spawn(self) -> None:
        self._generation += 1
        self._started_at = self._clock()
        self._start = Start(
            self._generation,
            self.backend,
            self._engine,
            self._adapter,
            self._host,
            self.log,
            self._inbox.put_nowait,
            self,
            self._daemon,
        )
        self._start.begin()

    def _signal(self) -> None:
        assert self._start is not None
        self._start.terminate()
        spec = self._start.spec
        grace_s = spec.stop_grace_s if spec is not None else EARLY_STOP_GRACE_S
        if not self._start.is_ready:
            grace_s = min(grace_s, EARLY_STOP_GRACE_S)
        self._post_later(grace_s, Event.STOP_TIMED_OUT)

    def _await_drain(self) -> None:
        if self._leases == 0:
            self._ask(Event.DRAINED)
        else:
            self._post_later(self._timing.drain_timeout_s, Event.DRAIN_TIMED_OUT)

    def _leave(self) -> None:
        """Nobody uses it any more: it makes room."""
        if self._may_sleep and self._start is not None:
            self._start.fall_asleep()
        else:
            self._ask(Event.DRAINED)

    def _schedule_retry(self) -> None:
        delay_s = retry_delay_s(self._attempts, self._timing, random.random())  # noqa: S311 - jitter
        if delay_s is None:
            self._ask(Event.GAVE_UP)
        else:
            self._post_later(delay_s, Event.BACKOFF_ELAPSED)

    def _fail_waiters(self) -> None:
        if not self._start_again:  # else they wait for the start that follows
            problem = self._failed if self._state is State.FAILED else self._stopped
            self._waiters.fail(problem, spare_newcomers=not self._is_over)

    def _post_later(self, delay_s: float, event: Event) -> None:
        loop = asyncio.get_running_loop()
        occurrence = Occurrence(self._generation, event)
        self._timer = loop.call_later(delay_s, self._inbox.put_nowait, occurrence)

    def _end_timers(self) -> None:
        for timer in (self._timer, self._idle_timer):
            if timer is not None:
                timer.cancel()
        self._timer = self._idle_timer = None
        if self._health is not None:
            self._health.cancel()
            self._health = None

    # --- while READY ---

    def _arm_idle_timer(self) -> None:
        if self._idle_timer is not None:
            self._idle_timer.cancel()
            self._idle_timer = None
        if (
            self.backend.idle_unload_s is not None
            and self._state in (State.READY, State.SLEEPING)
            and self._leases == 0
        ):
            loop = asyncio.get_running_loop()
            self._idle_timer = loop.call_later(self.backend.idle_unload_s, self._idle_elapsed)

    def _idle_elapsed(self) -> None:
        self._inbox.put_nowait(Occurrence(self._generation, Event.STOP_REQUESTED))

    async def _watch_health(self) -> None:
        """Post BecameUnhealthy after so many failed checks in a row, or when it has fallen silent. A whole answer just
        given needs no check."""
        assert self._start is not None
        assert self._start.spec is not None
        spec, generation, failures = self._start.spec, self._generation, 0
        self._is_doubted = False
        while failures < self._timing.health_failures:
            await asyncio.sleep(self._timing.health_interval_s)
            if self._is_doubted and await self._is_silent(spec):
                diagnosis = SILENT
                break
            answered_lately = self._clock() - self._last_answer_at < self._timing.health_interval_s
            is_well = answered_lately or await self._host.prober.is_healthy(spec, self._timing.health_timeout_s)
            failures = 0 if is_well else failures + 1
        else:
            reason = f"The engine failed {failures} health checks in a row."
            diagnosis = Diagnosis("unhealthy", reason, "It is restarted; its log holds the reason.")
        self._inbox.put_nowait(Occurrence(generation, Event.BECAME_UNHEALTHY, diagnosis))

    async def _is_silent(self, spec: LaunchSpec) -> bool:
        """Whether the engine brings no token either when it is asked for one, nor anybody else an answer meanwhile.

        vLLM's /health stays 200 while its engine core hangs (0.32.0, after SIGSTOP of EngineCore).
        """
        asked_at = self._clock()
        try:
            async with asyncio.timeout(self._timing.probe_timeout_s):
                await self._host.prober.prove(spec, self._timing.probe_timeout_s)
        except (httpx.RequestError, TimeoutError):
            # A full engine may keep the probe waiting too; but then others get their answers.
            if self._last_answer_at <= asked_at:
                return True
        except ProbeFailed:
            pass  # it speaks
        self._is_doubted = False
        return False


def _taken(message: Request | Change) -> None:
    if not message.taken.done():
        message.taken.set_result(None)
