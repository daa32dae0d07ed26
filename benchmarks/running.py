"""One run: warm up, send, watch, write. What comes of it is in files; numbers are made from those afterwards.

    1 prepare    prompts chosen, schedule made, folder there           everything that is slow
    2 warm up    sent, written, never measured                         a server that does not answer stops it here
    3 before     what the server says of itself                        other tenants, model, version
    4 measure    the driver sends; sampler and ticker watch            every row is written as it ends
    5 after      the server once more; the session is closed
    6 recount    answers counted with our own tokenizer                not while anything is measured

An interruption ends 4 at once: requests under way are given up without a row and sent again by the run that resumes.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import resource
import ssl
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import uvloop

from benchmarks import journal as entries
from benchmarks.datasets.choosing import Prompts, choose_prompts
from benchmarks.datasets.tokenizer import Tokenizer, load_tokenizer
from benchmarks.datasets.traces import Arrival, read_trace
from benchmarks.environment import describe, run_queue_wait_s
from benchmarks.errors import BenchmarkError
from benchmarks.journal import DONE, INTERRUPTED, ClientSample, read_journal
from benchmarks.load.arrivals import at_rate, on_ramp, replayed, resumed, unit_arrivals
from benchmarks.load.connection import ConnectionPool, read_address
from benchmarks.load.driver import Driver, Limits, Load
from benchmarks.load.requests import RequestForm
from benchmarks.plan import Plan, load_plan, save_plan
from benchmarks.records import (
    JOURNAL,
    MEASURED,
    RECOUNTS,
    REQUESTS,
    WARM_UP,
    RecordFile,
    Row,
    cut_torn_line,
    finished,
    read_rows,
)
from benchmarks.server_state import ServerState

TICK_S = 0.02
SPARE_FILES = 256
MOST_CONNECTIONS = 20_000  # to one address there are about 28 000 ports


@dataclass(frozen=True, slots=True)
class Standing:
    """How a run stands, for whoever shows it."""

    phase: str
    loop: str
    at: float
    asked: int
    sent: int
    ended: int
    failed: int
    in_flight: int
    tokens: int
    last_ttft_s: float | None


Show = Callable[[Standing], None]


@dataclass(frozen=True, slots=True)
class Prepared:
    """A run that is ready to begin."""

    plan: Plan
    folder: Path
    prompts: Prompts
    times: tuple[float, ...] | None
    tokenizer: Tokenizer | None
    todo: tuple[int, ...]
    session: int


def schedule(plan: Plan, count: int, trace: Sequence[Arrival] = ()) -> list[float] | None:
    """When each of *count* conversations begins, in seconds; None for a closed loop."""
    if not plan.is_open:
        return None
    if plan.arrivals == "trace":
        return replayed([arrival.at for arrival in trace], plan.trace_speed)
    assert plan.rate is not None
    units = unit_arrivals(count, plan.shape, Random(f"{plan.seed} arrivals"))
    return at_rate(units, plan.rate) if plan.ramp_to is None else on_ramp(units, plan.rate, plan.ramp_to)


def prepare(plan: Plan, folder: Path, *, resume: bool = False) -> Prepared:
    """Choose the prompts and make the folder; with *resume*, find out what of the run there is left to do.

    Raises BenchmarkError: also when the folder holds another run, or the prompts are not those that run began with.
    """
    tokenizer = load_tokenizer(plan.tokenizer) if plan.tokenizer is not None else None
    trace = read_trace(Path(plan.trace), plan.prompts) if plan.trace is not None else []
    prompts = choose_prompts(plan, tokenizer, [(arrival.prompt_tokens, arrival.output_tokens) for arrival in trace])
    count = len(prompts.measured)
    times = schedule(plan, count, trace)
    todo = list(range(count))
    session = 0
    if resume:
        todo, session = _left(folder, prompts, count)
        times = resumed(times, todo) if times is not None else None
    else:
        _new_folder(folder)
        save_plan(plan, folder)
    return Prepared(plan, folder, prompts, tuple(times) if times is not None else None, tokenizer, tuple(todo), session)


def _new_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as problem:
        raise BenchmarkError(f"--out {folder}: {problem.strerror or problem}") from problem
    for name in (REQUESTS, JOURNAL):
        if (folder / name).exists():
            raise BenchmarkError(
                f"--out {folder}: it holds a run already; go on with it by `unigate bench run --resume {folder}`, or "
                "name another folder"
            )


def _left(folder: Path, prompts: Prompts, count: int) -> tuple[list[int], int]:
    for name in (REQUESTS, JOURNAL, RECOUNTS):
        cut_torn_line(folder / name)
    journal = read_journal(folder)
    if journal.sessions:
        digest = journal.sessions[0].environment["dataset"]["sha256"]
        if digest != prompts.digest:
            raise BenchmarkError(f"{folder}: the dataset is not the one this run began with; begin a new run")
    over = finished(read_rows(folder))
    return [index for index in range(count) if index not in over], len(journal.sessions)


def allow_many_files() -> int:
    """Let this process have as many files (connections) open as it may. Returns how many."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def tls_context(plan: Plan) -> ssl.SSLContext:
    """How the server's certificate is checked. Raises BenchmarkError."""
    try:
        context = ssl.create_default_context(cafile=plan.ca_file)
    except (OSError, ssl.SSLError) as problem:
        raise BenchmarkError(f"--ca-file {plan.ca_file}: {problem}") from problem
    if plan.insecure:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def headers_of(plan: Plan, environ: Mapping[str, str]) -> dict[str, str]:
    """The headers that carry the key; the key itself is kept nowhere."""
    key = environ.get(plan.api_key_env, "")
    if any(ord(letter) < 33 or ord(letter) > 126 for letter in key):
        raise BenchmarkError(f"{plan.api_key_env}: the key has characters that no header can carry")
    return {"authorization": f"Bearer {key}"} if key else {}


class Run:
    """A run under way; `interrupt` ends it early, and it can be resumed."""

    def __init__(self, prepared: Prepared, environ: Mapping[str, str], show: Show) -> None:
        self._prepared = prepared
        self._plan = plan = prepared.plan
        self._show = show
        self._address = read_address(plan.base_url)
        self._headers = headers_of(plan, environ)
        self._tls = tls_context(plan) if self._address.is_tls or plan.metrics_url else None
        self._form = RequestForm(
            self._address,
            plan.endpoint,
            plan.model,
            is_streamed=plan.stream,
            ignore_eos=plan.ignore_eos,
            temperature=plan.temperature,
            extra=plan.extra_body,
        )
        self._limits = Limits(plan.connect_timeout_s, plan.idle_timeout_s, plan.timeout_s)
        self._driver: Driver | None = None
        self._is_interrupted = False
        self._lags: list[int] = []
        self._connections = 0

    def interrupt(self) -> None:
        """End now; what is written stays."""
        self._is_interrupted = True
        if self._driver is not None:
            self._driver.stop()

    def _was_interrupted(self) -> bool:
        return self._is_interrupted

    async def go(self) -> bool:
        """Run. Returns whether it came to its end. Raises BenchmarkError; what was written until then stays."""
        prepared, plan = self._prepared, self._plan
        if not prepared.todo:
            return True
        self._check_files(allow_many_files() - SPARE_FILES)
        pool = ConnectionPool(self._address, tls=self._tls)
        server = ServerState(self._address, plan.model, self._headers, plan.metrics_url, self._tls)
        rows = RecordFile(prepared.folder / REQUESTS)
        journal = RecordFile(prepared.folder / JOURNAL)
        try:
            await pool.resolve()
            await self._warm_up(pool, rows)
            if self._was_interrupted():
                return False
            before = await server.state(waits_for_idle=True)
            environment = describe(plan, prepared.prompts, prepared.tokenizer, self._address.host)
            journal.add(entries.began(prepared.session, environment, before))
            if self._was_interrupted():
                return False
            driver = self._drive(MEASURED, pool, rows)
            how = INTERRUPTED
            try:
                await self._measured(driver, server if before["servers"] else None, journal)
                how = INTERRUPTED if self._was_interrupted() else DONE
            finally:
                after = await server.state() if how == DONE else {}
                journal.add(entries.ended(prepared.session, how, after, driver.counts.ended))
            return how == DONE
        finally:
            await pool.close()
            await server.close()
            rows.close()
            journal.close()

    def _check_files(self, connections: int) -> None:
        wanted = self._plan.concurrency or self._plan.max_in_flight
        if wanted > connections:
            raise BenchmarkError(
                f"{wanted} requests at once need as many open files, and this process may have {connections};"
                " raise the limit (ulimit -n) or ask for fewer"
            )
        self._connections = min(connections, MOST_CONNECTIONS)

    def _most_at_once(self) -> int:
        """What may be under way; never more than this client can hold open."""
        return self._plan.concurrency or self._plan.max_in_flight or self._connections

    def _drive(self, phase: str, pool: ConnectionPool, rows: RecordFile) -> Driver:
        prepared, plan = self._prepared, self._plan
        is_measured = phase == MEASURED
        conversations = prepared.prompts.measured if is_measured else prepared.prompts.warm_up
        load = Load(
            conversations=conversations,
            todo=prepared.todo if is_measured else range(len(conversations)),
            phase=phase,
            session=prepared.session,
            max_tokens=plan.output_tokens,
            times=prepared.times if is_measured else None,
            concurrency=self._most_at_once() if is_measured else (plan.concurrency or 4),
            ramp_s=plan.ramp_s if is_measured else 0.0,
            think_s=plan.think_s,
            keeps_text=plan.keep_text,
        )
        self._driver = Driver(
            load, self._form, self._form.head(self._headers), pool, rows.add, self._limits, time.perf_counter
        )
        return self._driver

    async def _warm_up(self, pool: ConnectionPool, rows: RecordFile) -> None:
        if not self._prepared.prompts.warm_up:
            return
        failures: list[Row] = []
        driver = self._drive(WARM_UP, pool, rows)

        def record(row: Row) -> None:
            rows.add(row)
            if not row.is_good:
                failures.append(row)

        driver.record = record
        showing = asyncio.create_task(self._tell(driver, WARM_UP))
        try:
            await driver.run()
        finally:
            showing.cancel()
            await asyncio.gather(showing, return_exceptions=True)
        if failures and len(failures) == driver.counts.ended:
            hint = ""
            if failures[0].status == 404 and not self._address.path:
                hint = "; an OpenAI-compatible address ends in /v1, is --base-url complete?"
            raise BenchmarkError(f"the server answers nothing: {failures[0].error_text}{hint}")

    async def _measured(self, driver: Driver, server: ServerState | None, journal: RecordFile) -> None:
        gc.collect()
        gc.freeze()  # what was prepared stays; a full collection would stop the clock for everything on the way
        tasks: list[asyncio.Task[None]] = []
        try:
            loop = asyncio.get_running_loop()
            running = loop.create_task(driver.run())
            tasks = [
                loop.create_task(self._tick()),
                loop.create_task(self._sample(driver, server, journal)),
                loop.create_task(self._tell(driver, MEASURED)),
            ]
            await running
            self._note(driver, journal, {})
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            gc.unfreeze()

    async def _tick(self) -> None:
        """Measure how late this loop is with what it has to do."""
        while True:
            due = time.perf_counter() + TICK_S
            await asyncio.sleep(TICK_S)
            self._lags.append(max(0, round((time.perf_counter() - due) * 1e6)))

    async def _sample(self, driver: Driver, server: ServerState | None, journal: RecordFile) -> None:
        while True:
            self._note(driver, journal, await server.servers() if server is not None else {})
            await asyncio.sleep(self._plan.sample_s)

    def _note(self, driver: Driver, journal: RecordFile, servers: Mapping[str, Any]) -> None:
        counts = driver.counts
        lags, self._lags = self._lags, []
        sample = ClientSample(
            session=self._prepared.session,
            at=round(driver.now(), 6),
            in_flight=counts.in_flight,
            most_in_flight=counts.most_in_flight,
            ended=counts.ended,
            failed=counts.failed,
            cpu_s=time.process_time(),
            wait_s=run_queue_wait_s(),
            lag_us=tuple(lags),
            servers=servers,
        )
        counts.most_in_flight = counts.in_flight
        journal.add(entries.sampled(sample))

    async def _tell(self, driver: Driver, phase: str) -> None:
        while True:
            await asyncio.sleep(0.5)
            counts = driver.counts
            self._show(
                Standing(
                    phase=phase,
                    loop=self._plan.loop,
                    at=driver.now(),
                    asked=len(driver.load.todo),
                    sent=counts.sent,
                    ended=counts.ended,
                    failed=counts.failed,
                    in_flight=counts.in_flight,
                    tokens=counts.tokens,
                    last_ttft_s=counts.last_ttft_s,
                )
            )


def recount(prepared: Prepared) -> None:
    """Count the answers with our own tokenizer, if there is one and the texts were kept, and write that down."""
    if prepared.tokenizer is None or not prepared.plan.keep_text:
        return
    file = RecordFile(prepared.folder / RECOUNTS)
    try:
        for row in read_rows(prepared.folder):
            if row.phase == MEASURED and row.session == prepared.session and row.is_good and row.text is not None:
                file.add({"index": row.index, "turn": row.turn, "tokens": prepared.tokenizer.count(row.text)})
    finally:
        file.close()


def run_to_end(prepared: Prepared, show: Show, listen: Callable[[Run, asyncio.AbstractEventLoop], None]) -> bool:
    """Run in a loop of its own; *listen* is given the run before it begins, to interrupt it. Whether it is complete."""

    async def going() -> bool:
        run = Run(prepared, os.environ, show)
        listen(run, asyncio.get_running_loop())
        return await run.go()

    is_complete = uvloop.run(going())
    recount(prepared)
    return is_complete


def resume(folder: Path) -> Prepared:
    """The run in *folder*, ready to go on. Raises BenchmarkError."""
    return prepare(load_plan(folder), folder, resume=True)
