"""Rendering chat templates that nobody has to trust: in child processes, under limits, off the event loop."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import psutil

from backends.render_child import FRAME_HEADER, MIB, conversation_definition, encode_frame, renderer_definition
from chat_templates.conversation import Conversation, ConversationInvalid
from chat_templates.rendering import Rendered, Renderer, TemplateBroken, TemplateRefused

START_TIMEOUT_S = 30.0
"""From the child's spawn until it is ready; it imports Jinja, which on a busy machine takes seconds."""

THREAD_WAIT_S = 30.0
"""Of a thread, whose loop may have ended meanwhile."""

KNOWN_RENDERERS = 64
"""How many renderers a child keeps."""

ESCAPED_BYTES = 6
"""The most bytes a UTF-16 unit takes in a frame (``\\uXXXX``)."""


class TemplateStopped(Exception):
    """The template was stopped because it went beyond a limit; the message says which."""


class RenderChildFailed(Exception):
    """The child process could not be started; the message says why. It is not the template's doing."""


@dataclass(frozen=True, slots=True)
class RenderLimits:
    """What one rendering may take.

    cpu_s: CPU seconds. deadline_s: seconds after which a child that has had them is killed, because what it does cannot
    be interrupted; starved_s: seconds after which any is, whatever it has had. memory_mib: over what an idle child has.
    text_mib: 2**20 characters of prompt.
    """

    cpu_s: float = 0.5
    deadline_s: float = 0.9
    starved_s: float = 10.0
    memory_mib: int = 256
    text_mib: int = 16


class RenderPool:
    """Up to *size* child processes that render. They are started when needed; `close` (or ``async with``) ends them.

    For one event loop. A job that is cancelled costs its child, and the next one starts another.
    """

    def __init__(self, size: int = 1, limits: RenderLimits = RenderLimits()) -> None:
        self._children = [_RenderChild(limits) for _ in range(size)]
        # the last used first: it knows the renderers
        self._idle: asyncio.LifoQueue[_RenderChild] = asyncio.LifoQueue()
        for child in self._children:
            self._idle.put_nowait(child)

    async def __aenter__(self) -> RenderPool:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def render(self, renderer: Renderer, conversation: Conversation) -> Rendered:
        """As `renderer.render`, elsewhere.

        Raises what that raises, and TemplateStopped, and RenderChildFailed. Waits for a free child.
        """
        child = await self._idle.get()
        try:
            return await child.render(renderer, conversation)
        finally:
            self._idle.put_nowait(child)

    def from_threads(self) -> Callable[[Renderer, Conversation], Rendered]:
        """`render` for other threads, which it keeps waiting; to be called on the loop. Raises TimeoutError too.

        A template that was stopped is one that failed, to those who know nothing of processes: TemplateBroken.
        """
        loop = asyncio.get_running_loop()

        def render(renderer: Renderer, conversation: Conversation) -> Rendered:
            rendering = asyncio.run_coroutine_threadsafe(self.render(renderer, conversation), loop)
            try:
                return rendering.result(THREAD_WAIT_S)
            except TemplateStopped as problem:
                raise TemplateBroken(f"it was stopped: {problem}", None) from problem

        return render

    async def close(self) -> None:
        """End the children; returns when they are gone."""
        for child in self._children:
            child.discard()
        for child in self._children:
            await child.gone()


class _RenderChild:
    """One process, replaced by another when it is used up."""

    def __init__(self, limits: RenderLimits) -> None:
        self._limits = limits
        self._process: asyncio.subprocess.Process | None = None
        self._known: set[str] = set()
        self._ending: set[asyncio.Task[int]] = set()

    async def render(self, renderer: Renderer, conversation: Conversation) -> Rendered:
        try:
            answer = await self._answer(renderer, conversation)
        except EOFError:
            # it may have been the machine that ended the process: the template is to blame if it happens again
            try:
                answer = await self._answer(renderer, conversation)
            except EOFError as problem:
                raise TemplateStopped("it ended the process it ran in") from problem
        return _outcome(answer)

    async def _answer(self, renderer: Renderer, conversation: Conversation) -> dict[str, Any]:
        """What a process says to it. Raises EOFError when the process ends instead."""
        process = await self._running()
        key, job = self._job(renderer, conversation)
        answer = await self._asked(process, job)
        if "stopped" in answer:
            self.discard()
        else:
            self._known.add(key)
        return answer

    def discard(self) -> None:
        """Kill the process, if there is one."""
        process, self._process = self._process, None
        self._known.clear()
        if process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        ending = asyncio.create_task(_end(process), name=f"end of render child {process.pid}")
        self._ending.add(ending)
        ending.add_done_callback(self._ending.discard)

    async def gone(self) -> None:
        """Until no discarded process is left."""
        while self._ending:
            await asyncio.wait(self._ending)

    def _job(self, renderer: Renderer, conversation: Conversation) -> tuple[str, bytes]:
        """The renderer's key, and the job as a frame. Raises ConversationInvalid."""
        definition = renderer_definition(renderer)
        key = hashlib.sha256(_encoded(definition)).hexdigest()
        forget = key not in self._known and len(self._known) >= KNOWN_RENDERERS
        if forget:
            self._known.clear()
        job = {
            "renderer": key,
            "definition": None if key in self._known else definition,
            "forget": forget,
            "conversation": conversation_definition(conversation),
        }
        return key, _encoded(job)

    async def _running(self) -> asyncio.subprocess.Process:
        if self._process is not None and self._process.returncode is not None:
            self.discard()
        if self._process is None:
            self._process = await _started(self._limits)
            try:
                async with asyncio.timeout(START_TIMEOUT_S):
                    await _read_answer(self._process, self._limits)
            except (TimeoutError, OSError, EOFError) as problem:
                self.discard()
                raise RenderChildFailed(
                    f"the process for chat templates did not start ({type(problem).__name__}); what it said is in the"
                    " gateway's own output"
                ) from problem
            except BaseException:
                self.discard()
                raise
        return self._process

    async def _asked(self, process: asyncio.subprocess.Process, job: bytes) -> dict[str, Any]:
        """The answer to *job*; ``stopped`` when none comes in time. Raises EOFError when the process ends instead."""
        started, used_s = time.monotonic(), _cpu_s(process.pid)
        exchange = asyncio.create_task(_exchange(process, job, self._limits), name=f"render child {process.pid}")
        try:
            while not (await asyncio.wait({exchange}, timeout=self._limits.deadline_s))[0]:
                # on a machine that is busy with other things it may not even have begun
                had_its_share = _cpu_s(process.pid) - used_s >= self._limits.cpu_s
                if had_its_share or time.monotonic() - started > self._limits.starved_s:
                    return {"stopped": f"it took more than {self._limits.deadline_s:g} s"}
            return exchange.result()
        except (OSError, EOFError) as problem:
            self.discard()
            raise EOFError from problem
        except BaseException:
            # cancelled: the answer, which is still to come, would be taken for the next job's
            self.discard()
            raise
        finally:
            exchange.cancel()


async def _exchange(process: asyncio.subprocess.Process, job: bytes, limits: RenderLimits) -> dict[str, Any]:
    assert process.stdin is not None
    process.stdin.write(job)
    await process.stdin.drain()
    return await _read_answer(process, limits)


def _cpu_s(pid: int) -> float:
    """CPU seconds that *pid* has used; none where it has ended. A read of the kernel's memory, which takes no time."""
    try:
        times = psutil.Process(pid).cpu_times()
    except psutil.NoSuchProcess:
        return 0.0
    return float(times.user + times.system)


async def _started(limits: RenderLimits) -> asyncio.subprocess.Process:
    argv = [sys.executable, "-m", "backends.render_child"]
    for option, value in (
        ("--cpu-s", limits.cpu_s), ("--memory-mib", limits.memory_mib), ("--text-mib", limits.text_mib),
    ):  # fmt: skip
        argv += [option, str(value)]
    # nothing else of the environment: a template that escapes its sandbox is to find no key there
    environ = {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "PYTHONSAFEPATH": "1"}
    if "TZ" in os.environ:
        environ["TZ"] = os.environ["TZ"]  # strftime_now tells local time
    try:
        return await asyncio.create_subprocess_exec(
            *argv, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, env=environ, cwd="/"
        )
    except OSError as problem:
        raise RenderChildFailed(f"{sys.executable}: {problem.strerror}") from problem


async def _read_answer(process: asyncio.subprocess.Process, limits: RenderLimits) -> dict[str, Any]:
    assert process.stdout is not None
    length = FRAME_HEADER.unpack(await process.stdout.readexactly(FRAME_HEADER.size))[0]
    if length > limits.text_mib * MIB * 2 * ESCAPED_BYTES + MIB:
        raise EOFError("an answer beyond all limits")
    answer: dict[str, Any] = json.loads(await process.stdout.readexactly(length))
    return answer


async def _end(process: asyncio.subprocess.Process) -> int:
    assert process.stdin is not None
    process.stdin.close()
    return await process.wait()


def _encoded(value: dict[str, Any]) -> bytes:
    try:
        return encode_frame(value)
    except (TypeError, ValueError, RecursionError) as problem:
        raise ConversationInvalid(f"it cannot be written as JSON: {problem}") from problem


def _outcome(answer: dict[str, Any]) -> Rendered:
    match answer:
        case {"rendered": str(text), "template": str(template)}:
            return Rendered(text, template)
        case {"refused": str(message)}:
            raise TemplateRefused(message)
        case {"broken": str(message), "line": int() | None as line}:
            raise TemplateBroken(message, line)
        case {"invalid": str(message)}:
            raise ConversationInvalid(message)
        case {"stopped": str(message)}:
            raise TemplateStopped(message)
    # only code that has escaped the sandbox writes something else
    raise TemplateStopped("it left the process it ran in without a proper answer")
