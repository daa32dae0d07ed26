"""The faults of the matrix, in the order in which one engine meets them: each injects, watches a client, and counts.

The order saves starts: a fault that costs none comes before those that do, and what a gateway's end needs comes last.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import time
from collections.abc import Callable

from tests.fault.matrix.cells import Absent, Fault, Outcome, Recovery
from tests.fault.matrix.clients import CHAT, WHOLE, visiting
from tests.fault.matrix.stage import SEND_S, SETTLED_S, Stage
from tests.gateways import until

FAULTS: list[Fault] = []

GONE_WITHIN_S = 10.0
ERROR_EVENT = r"200, then one error event \(\w+\)"
BROKEN_OFF = r"200, then one error event \(backend_broke_off\)"
WHOLE_ONLY = re.escape(WHOLE)
PHASES = ("read", "lease", "forward", "relay")
SLOW_READ_BYTES, SLOW_READ_EVERY_S = 2048, 0.02

Inject = Callable[[Stage], Outcome | Absent]


def fault(
    title: str, promise: str, expected: str, *, is_cold: bool = False, needs_port: bool = False
) -> Callable[[Inject], Inject]:
    """Enter the function in the list under its own name."""

    def enter(inject: Inject) -> Inject:
        key = inject.__name__.replace("_", "-")
        FAULTS.append(Fault(key, title, promise, expected, inject, is_cold=is_cold, needs_port=needs_port))
        return inject

    return enter


# --- clients ---


@fault(
    "client leaves in each phase",
    "it is noted in the phase it left in, and the engine is idle afterwards",
    "noted in read, lease, forward, relay",
    is_cold=True,
)
def client_leaves(stage: Stage) -> Outcome:
    """Four clients: half a body sent; the model loading; before the first byte; between two tokens."""
    gateway = stage.gateway
    first = stage.ask(4)  # makes it load
    gateway.until_state(stage.model, "starting", within_s=stage.engine.clocks.patience_s)
    with visiting(gateway) as client:
        client.send(stage.body())
        until(lambda: gateway.metric("unigate_queue_depth", model=stage.model) == 2, what="both wait for the model")
        client.leave()
    until(lambda: gateway.metric("unigate_queue_depth", model=stage.model) == 1, what="it waits no more")
    assert first.story() == WHOLE
    with visiting(gateway) as client:
        client.send(stage.body(), share=0.5)
        time.sleep(0.2)  # so that the gateway has begun to read: nothing shows that from outside
        client.leave()
    stage.arm("mute")
    with visiting(gateway) as client:
        client.send(stage.body())
        until(lambda: stage.engine.busy(gateway, stage.model) > 0, stage.engine.clocks.patience_s, "the engine works")
        client.leave()
    with visiting(gateway) as client:
        client.send(stage.body())
        while b"data: {" not in client.read(within_s=stage.engine.clocks.patience_s):
            pass
        left_at = time.monotonic()
        client.leave()
    recovery = stage.recovery(left_at)

    def noted(phase: str) -> bool:
        return gateway.metric("unigate_client_disconnects_total", phase=phase) == 1

    with contextlib.suppress(AssertionError):
        until(lambda: all(map(noted, PHASES)), SETTLED_S)
    return stage.outcome(f"noted in {', '.join(filter(noted, PHASES)) or 'none'}", recovery)


@fault(
    "slow client",
    "one that reads slowly gets all of it; one that reads nothing is given up after timeouts.send_s",
    "slow: 200, whole; deaf: given up",
)
def slow_client(stage: Stage) -> Outcome:
    """One reads a little now and then; one stops reading an engine that does not stop sending."""
    gateway, answer = stage.gateway, b""
    with visiting(gateway, receive_buffer_bytes=4096) as client:
        client.send(stage.body(100))
        while not answer.endswith(b"0\r\n\r\n") and (piece := client.read(SLOW_READ_BYTES)):
            answer += piece
            time.sleep(SLOW_READ_EVERY_S)
    slow = WHOLE if b"data: [DONE]\n\n" in answer and b'"error"' not in answer else "200, then cut off"
    stage.arm("flood")
    before = gateway.metric("unigate_client_disconnects_total", model=stage.model, phase="relay")
    with visiting(gateway, receive_buffer_bytes=4096) as client:
        client.send(stage.body())
        assert client.read(within_s=stage.engine.clocks.patience_s)
        stopped_at = time.monotonic()
        recovery = stage.recovery(stopped_at)

        def given_up() -> bool:
            return gateway.metric("unigate_client_disconnects_total", model=stage.model, phase="relay") > before

        with contextlib.suppress(AssertionError):
            until(given_up, SEND_S + SETTLED_S)
        deaf = "given up" if given_up() else "kept"
    return stage.outcome(f"slow: {slow}; deaf: {deaf}", recovery)


# --- the wire ---


@fault(
    "garbage upstream bytes",
    "before the first byte 502 backend_garbage, within a stream one error event",
    rf"502 backend_garbage; {ERROR_EVENT}",
)
def garbage(stage: Stage) -> Outcome:
    """Bytes that are not HTTP, once in the place of an answer and once within one."""
    stage.arm("garbage-head")
    head = stage.ask().story()
    stage.arm("garbage-body")
    since = time.monotonic()
    body = stage.ask().story()
    return stage.outcome(f"{head}; {body}", stage.recovery(since))


@fault("upstream closes mid-stream", "the stream ends in one error event", BROKEN_OFF)
def closes_mid_stream(stage: Stage) -> Outcome:
    """The engine's connection ends behind some tokens."""
    stage.arm("close")
    since = time.monotonic()
    story = stage.ask().story()
    return stage.outcome(story, stage.recovery(since))


@fault("upstream never answers", "504 backend_timeout after timeouts.first_byte_s", "504 backend_timeout")
def never_answers(stage: Stage) -> Outcome:
    """The engine takes a request and says nothing; others are served meanwhile."""
    stage.arm("mute")
    client, since = stage.ask(), time.monotonic()
    until(lambda: not stage.order()["armed"], what="the request has reached the wire")
    recovery = stage.recovery(since)
    return stage.outcome(client.story(), recovery)


# --- the configuration ---


@fault(
    "config reload during a stream",
    "a stream ends whole, whether the change concerns its model or not; only a changed model is started anew",
    f"{WHOLE_ONLY}; untouched; {WHOLE_ONLY}; restarted",
)
def reload_while_streaming(stage: Stage) -> Outcome:
    """Two reloads, each in mid-stream: of a limit of the gateway's, and of the model's own context length."""
    stories, recovery = [], Recovery(0)
    for expected, change in (("untouched", stage.change_limit), ("restarted", stage.change_model)):
        client, since = stage.streaming(60), time.monotonic()
        change()
        answer = stage.gateway.ask("POST", "/admin/reload")
        assert answer.status_code == 200, answer.text
        stories.append(client.story())

        def outcome(since: float = since) -> str:
            backend = stage.gateway.until_state(stage.model, "ready", within_s=stage.engine.clocks.patience_s)
            return "restarted" if backend["since_s"] < time.monotonic() - since else "untouched"

        with contextlib.suppress(AssertionError):
            until(lambda: outcome() == expected, SETTLED_S)  # noqa: B023 - asked here only
        stories.append(outcome())
        recovery = stage.recovery(since)
    return stage.outcome("; ".join(stories), recovery)


# --- the disk ---


@fault(
    "disk full for logs",
    "requests go on, the loss is told, and with space the log goes on",
    WHOLE_ONLY,
)
def disk_full(stage: Stage) -> Outcome | Absent:
    """The disk under the logs is filled to its last byte, and freed again."""
    if not stage.has_log_disk:
        return Absent("no disk could be mounted: needs root")
    gateway, filler = stage.gateway, stage.logs / "filler"
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(bytes(64 * 1024)):
            pass
    since = time.monotonic()
    stage.say(500)
    recovery = stage.recovery(since)
    for _ in range(60):  # the gateway's own log is to be full too, not only at its next page
        gateway.ask("POST", CHAT, json={"model": "nobody", "messages": []})
    story = stage.ask(20).story()
    filler.unlink()
    stage.say(50)
    until(lambda: stage.said in stage.logged_lines(), SETTLED_S, "the log goes on once there is space")
    printed = gateway.printed.read_text()
    assert "Traceback" not in printed, printed
    is_told = "No space left on device" in printed
    assert is_told, printed
    return stage.outcome(story, recovery, is_loss_told=is_told)


# --- processes ---


@fault("kill -9 engine", "the stream ends in one error event, and the backend comes back by itself", BROKEN_OFF)
def kill_engine(stage: Stage) -> Outcome:
    """SIGKILL to the engine's main process, right behind its last log line."""
    client = stage.streaming()
    pid = stage.until_process("ready")["pid"]
    stage.say(200)
    os.kill(pid, signal.SIGKILL)
    since = time.monotonic()
    return stage.outcome(client.story(), stage.recovery(since))


@fault(
    "kill -9 a child of the engine",
    "the stream ends in one error event, and the backend comes back by itself",
    ERROR_EVENT,
)
def kill_child(stage: Stage) -> Outcome | Absent:
    """SIGKILL to the process in which the engine computes, where it is not the main one."""
    if not stage.engine.child:
        return Absent("has no child: " + stage.engine.no_child)
    if stage.child_model != stage.model:
        stage.stop_backend(stage.model)
    client = stage.streaming(model=stage.child_model)
    stage.say(200)
    os.kill(stage.child(), signal.SIGKILL)
    since = time.monotonic()
    story, recovery = client.story(), stage.recovery(since, stage.child_model)
    seen = stage.outcome(story, recovery)
    if stage.child_model != stage.model:
        stage.stop_backend(stage.child_model)
        stage.recovery(time.monotonic())
    return seen


@fault("SIGSTOP engine", "the stream ends in one error event once the health checks have failed", BROKEN_OFF)
def stop_engine(stage: Stage) -> Outcome:
    """The engine's main process stands still, and every byte it owes with it."""
    client = stage.streaming()
    os.kill(stage.until_process("ready")["pid"], signal.SIGSTOP)
    since = time.monotonic()
    return stage.outcome(client.story(), stage.recovery(since))


@fault("3 crashes, then recovery", "who asks meanwhile waits and is served", rf"{BROKEN_OFF}; meanwhile {WHOLE_ONLY}")
def three_crashes(stage: Stage) -> Outcome:
    """The engine is killed, and its next two starts end early; the third is good."""
    client = stage.streaming()
    stage.fail_starts("exit", "exit")
    os.kill(stage.until_process("ready")["pid"], signal.SIGKILL)
    since = time.monotonic()
    story = client.story()
    stage.until_process("backoff", "starting")
    meanwhile = stage.ask(4)
    recovery = stage.recovery(since)
    return stage.outcome(f"{story}; meanwhile {meanwhile.story()}", recovery)


@fault("engine exits during start", "who waits for the start is served by the next one", WHOLE_ONLY)
def exits_during_start(stage: Stage) -> Outcome:
    """Exit code 3 behind the first line of a cold start."""
    stage.stop_backend(stage.process)
    stage.fail_starts("exit")
    client, since = stage.ask(4), time.monotonic()
    backend = stage.until_process("backoff", "ready")
    reason = (backend["diagnosis"] or {}).get("reason", "")
    assert backend["state"] == "ready" or "exit code 3" in reason, backend
    return stage.outcome(client.story(), stage.recovery(since))


@fault("start stalls", "who waits for the start is served by the next one", WHOLE_ONLY)
def start_stalls(stage: Stage) -> Outcome:
    """The engine stands still as soon as it has begun: no line, nothing read, until start_stall_timeout_s."""
    stage.stop_backend(stage.process)
    stage.fail_starts("stall")
    client, since = stage.ask(4), time.monotonic()
    recovery = stage.recovery(since)
    assert stage.until_process("ready")["restarts"] >= 1
    return stage.outcome(client.story(), recovery)


# --- the gateway ---


@fault("kill -9 gateway", "the connection ends; the next gateway serves", "200, then cut off|no answer")
def kill_gateway(stage: Stage) -> Outcome:
    """SIGKILL to the gateway in mid-stream: its engines end by themselves, and somebody starts it again."""
    client = stage.streaming()
    stage.say(200)
    until(lambda: stage.said in stage.logged_lines(), SETTLED_S, "the log has the lines")
    stage.gateway.signal(signal.SIGKILL)
    since = time.monotonic()
    stage.gateway.process.wait()
    until(lambda: stage.orphans() == 0, GONE_WITHIN_S, "no process of the killed gateway is left")
    story = client.story()
    stage.reopen()
    return stage.outcome(story, stage.recovery(since))


@fault("TERM gateway while streaming", "the stream ends whole, then the gateway ends with 0", WHOLE_ONLY)
def term_gateway(stage: Stage) -> Outcome:
    """TERM in mid-stream: the gateway drains, stops its engines, and ends."""
    client = stage.streaming(60)
    stage.gateway.signal(signal.SIGTERM)
    since = time.monotonic()
    story = client.story()
    code = stage.gateway.process.wait(stage.engine.clocks.patience_s)
    assert code == 0, f"exit code {code}: {stage.gateway.logged()}"
    stage.reopen()
    return stage.outcome(story, stage.recovery(since))


@fault(
    "port taken",
    "the start fails as a crash, and who waits is served from another port",
    WHOLE_ONLY,
    is_cold=True,
    needs_port=True,
)
def port_taken(stage: Stage) -> Outcome:
    """A stranger listens at the port before the engine does."""
    stage.fail_starts("port")
    client, since = stage.ask(4), time.monotonic()
    backend = stage.until_process("backoff")
    assert backend["diagnosis"]["code"] == "port_in_use", backend
    return stage.outcome(client.story(), stage.recovery(since))
