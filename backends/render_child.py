"""The process in which chat templates run: what a template does to it, it does to nobody else.

    python -m backends.render_child --cpu-s 0.5 --memory-mib 256 --text-mib 16

Theory of operation
-------------------
A chat template is a program that comes with a model. Jinja's sandbox keeps it from Python's internals, but not from
looping for ever, nor from filling the memory, and a thread that does so cannot be stopped. So templates run here, one
job after another, and the limits are the kernel's: memory by RLIMIT_AS, over what the process had before its first job;
CPU time by a timer whose signal raises in the template's own code, and, where that does not get to run because a single
operation of Python's takes for ever, by RLIMIT_CPU. The parent's deadline (`render_pool`) comes before that.
What a template has filled or interrupted is not used again: after such a job the process ends, and the parent starts
another. It has no environment to speak of, opens no more than a few files, and writes none.

stdin: jobs. stdout: ``{"ready": true}``, then an answer to each job. Both are JSON with its length before it.
It ends with its stdin, and so with the gateway.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import resource
import signal
import struct
import sys
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from types import FrameType
from typing import Any, BinaryIO, NoReturn

from chat_templates.conversation import Conversation, ConversationInvalid
from chat_templates.rendering import Renderer, TemplateBroken, TemplateRefused

FRAME_HEADER = struct.Struct(">I")
"""Before each frame: its length in bytes."""

MIB = 1024 * 1024
OPEN_FILES = 32
TIMER_REPEAT_S = 0.05
"""A signal whose exception was lost (Python ignores those in a destructor) comes again."""


class OutOfTime(BaseException):
    """The job's CPU time is used up. No Exception, so that no code between here and there takes it for an error."""


def encode_frame(value: Any) -> bytes:
    """*value* as a frame. Raises TypeError, ValueError or RecursionError for what JSON does not have."""
    # the standard library's JSON, because it brings back everything unchanged, half surrogates and large integers too
    body = json.dumps(value, separators=(",", ":"), default=_unwrapped).encode("ascii")
    return FRAME_HEADER.pack(len(body)) + body


def _unwrapped(value: object) -> Any:
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"a {type(value).__name__} is no JSON value")


def renderer_definition(renderer: Renderer) -> dict[str, Any]:
    """*renderer* as JSON."""
    return {
        "templates": dict(renderer.templates),
        "rules": renderer.rules,
        "variables": renderer.variables,
        "special_tokens": dict(renderer.special_tokens),
        "clock": None if renderer.clock is None else renderer.clock.isoformat(),
    }


def conversation_definition(conversation: Conversation) -> dict[str, Any]:
    """*conversation* as JSON."""
    return {
        "messages": list(conversation.messages),
        "tools": None if conversation.tools is None else list(conversation.tools),
        "documents": None if conversation.documents is None else list(conversation.documents),
        "add_generation_prompt": conversation.add_generation_prompt,
        "continue_final_message": conversation.continue_final_message,
    }


class Worker:
    """Answers jobs. cpu_s: CPU seconds a job may use; text_limit: characters it may render."""

    def __init__(self, cpu_s: float, memory_bytes: int, text_limit: int) -> None:
        self._cpu_s = cpu_s
        self._memory_bytes = memory_bytes
        self._text_limit = text_limit
        self._renderers: dict[str, Renderer] = {}

    def answer(self, job: Mapping[str, Any]) -> dict[str, Any]:
        """What came of *job*: ``rendered`` with ``template``, ``refused``, ``broken`` with ``line``, ``invalid``, or
        ``stopped``, after which this process is not to be used again.
        """
        self._start_clock()
        try:
            return self._rendered(job)
        except OutOfTime:
            return {"stopped": f"it took more than {self._cpu_s:g} s of CPU time"}
        except MemoryError:
            return {"stopped": f"it took more than {self._memory_bytes // MIB} MiB of memory"}
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)

    def _rendered(self, job: Mapping[str, Any]) -> dict[str, Any]:
        try:
            rendered = self._renderer(job).render(Conversation(**job["conversation"]))
        except TemplateRefused as refusal:
            return {"refused": str(refusal)}
        except TemplateBroken as problem:
            return {"broken": problem.message[: self._text_limit], "line": problem.line}
        except ConversationInvalid as problem:
            return {"invalid": str(problem)}
        if len(rendered.text) > self._text_limit:
            return {"stopped": f"it rendered {len(rendered.text)} characters, and {self._text_limit} is the most"}
        return {"rendered": rendered.text, "template": rendered.template}

    def _renderer(self, job: Mapping[str, Any]) -> Renderer:
        key, definition = job["renderer"], job["definition"]
        if job["forget"]:
            self._renderers.clear()
        if definition is not None:
            clock = definition["clock"]
            self._renderers[key] = Renderer(
                **(definition | {"clock": None if clock is None else datetime.fromisoformat(clock)})
            )
        return self._renderers[key]

    def _start_clock(self) -> None:
        usage = resource.getrusage(resource.RUSAGE_SELF)
        # whole seconds are all the kernel takes; it ends the process
        last = math.ceil(usage.ru_utime + usage.ru_stime + self._cpu_s) + 1
        resource.setrlimit(resource.RLIMIT_CPU, (last, resource.RLIM_INFINITY))
        signal.setitimer(signal.ITIMER_PROF, self._cpu_s, TIMER_REPEAT_S)


def _out_of_time(signum: int, frame: FrameType | None) -> NoReturn:
    raise OutOfTime


def limit_process(memory_bytes: int) -> None:
    """Limit what this process may take: *memory_bytes* more than it has, few files, none written."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])  # proc(5)
    most = pages * resource.getpagesize() + memory_bytes
    for what, soft in (
        (resource.RLIMIT_AS, most),
        (resource.RLIMIT_NOFILE, OPEN_FILES),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
    ):
        hard = resource.getrlimit(what)[1]
        if hard == resource.RLIM_INFINITY or soft < hard:
            resource.setrlimit(what, (soft, hard))


def _read_frame(stream: BinaryIO) -> Any:
    """The next frame's value; None at the end of *stream*."""
    header = stream.read(FRAME_HEADER.size)
    if len(header) < FRAME_HEADER.size:
        return None
    body = stream.read(FRAME_HEADER.unpack(header)[0])
    return json.loads(body)


def main() -> int:
    """Answer jobs until stdin ends."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--cpu-s", type=float, required=True)
    options.add_argument("--memory-mib", type=int, required=True)
    options.add_argument("--text-mib", type=int, required=True)
    chosen = options.parse_args()
    # Ctrl-C in a terminal reaches the whole group; when this process ends is the gateway's to say
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGPROF, _out_of_time)
    memory_bytes = chosen.memory_mib * MIB
    limit_process(memory_bytes)
    worker = Worker(chosen.cpu_s, memory_bytes, chosen.text_mib * MIB)
    jobs, answers = sys.stdin.buffer, sys.stdout.buffer
    answer: dict[str, Any] = {"ready": True}
    while True:
        answers.write(encode_frame(answer))
        answers.flush()
        if "stopped" in answer:
            # without Python's own end, which might trip over what the template has left
            os._exit(0)
        job = _read_frame(jobs)
        if job is None:
            return 0
        answer = worker.answer(job)


if __name__ == "__main__":
    sys.exit(main())
