"""What a fake engine is told to do wrong, as its command line says it."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

READINESS_MAX_TOKENS = 1
"""Adapters prove READY with a request for one token; faults spare it unless `--fault-probe` says otherwise."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where to listen: a Unix socket's path, else host and port."""

    host: str
    port: int
    uds: str


@dataclass(frozen=True, slots=True)
class ProcessFaults:
    """What the process as a whole does wrong. Times in seconds, None for never."""

    ready_after_s: float
    exit_during_start: int | None
    exit_after_s: float | None
    ignore_sigterm: bool
    stall_start: bool
    port_taken: bool
    stderr: Path | None
    child: bool
    setsid_child: bool


@dataclass(frozen=True, slots=True)
class AnswerFaults:
    """What is wrong with the answers. A stream of *chunks* pieces breaks after `break_after`, half of them."""

    chunks: int
    chunk_interval_s: float
    crash_after_chunks: int | None
    hang_health: bool
    fault_probe: bool
    sleepless: bool
    stall_headers: bool
    stall_mid_stream: bool
    garbage: bool
    garbage_body: bool
    close_mid_stream: bool
    error_mid_stream: bool
    no_done: bool
    status: int | None
    error_shape: str
    require_key: str

    @property
    def break_after(self) -> int:
        """After how many pieces a fault in mid-stream shows: at least one, so that it is in mid-stream."""
        return max(1, self.chunks // 2)


TOKENISATIONS = ("plain", "characters")


@dataclass(frozen=True, slots=True)
class PromptFaults:
    """The template and the tokenizer that an engine is told to use, and how it makes its prompts otherwise.

    renders: another template; turns_to: another one, as soon as that file is there. tokenizes: otherwise, one of
    TOKENISATIONS. deaf_ends: its stop ids end nothing. takes_no_ids: finished prompts are passed over. die_after: it
    ends, and stall_after: it answers no more, after so many calls of /tokenize.
    """

    template: Path | None
    weights: Path | None
    generation: Path | None
    renders: Path | None
    turns_to: Path | None
    tokenizes: str | None
    deaf_ends: bool
    takes_no_ids: bool
    die_after: int | None
    stall_after: int | None


@dataclass(frozen=True, slots=True)
class CommandLine:
    """Everything a fake engine is started with."""

    place: Place
    model: str
    process: ProcessFaults
    answers: AnswerFaults
    prompts: PromptFaults


def parser() -> argparse.ArgumentParser:
    """The flags; those of vLLM and llama.cpp that name the place and the model are taken in both spellings."""
    p = argparse.ArgumentParser(prog="fake_engine", description=__doc__, allow_abbrev=False)
    p.add_argument(
        "--host", default="127.0.0.1", help="a host, or a path that ends in .sock (as llama-server takes it)"
    )
    p.add_argument("--port", type=int, default=8000)
    p.add_argument("--uds", default="", metavar="PATH")
    p.add_argument("--served-model-name", "--alias", dest="model", default="fake")
    _add_process_flags(p)
    _add_answer_flags(p)
    _add_prompt_flags(p)
    return p


def _add_process_flags(p: argparse.ArgumentParser) -> None:
    p.add_argument("--ready-after", type=float, default=0.0, metavar="S", help="listen only then")
    p.add_argument("--exit-during-start", type=int, metavar="CODE")
    p.add_argument("--exit-after", type=float, metavar="S", help="exit 1 so long after listening began")
    p.add_argument("--ignore-sigterm", action="store_true")
    p.add_argument("--stall-start", action="store_true", help="never listen, print nothing")
    p.add_argument("--port-taken", action="store_true", help="print 'address already in use', exit 1")
    p.add_argument("--stderr", type=Path, metavar="FILE", help="print FILE first")
    p.add_argument("--child", action="store_true", help="start a child that outlives us")
    p.add_argument("--setsid-child", action="store_true", help="the same, in a session of its own")


def _add_answer_flags(p: argparse.ArgumentParser) -> None:
    p.add_argument("--chunks", type=int, default=5, metavar="N", help="pieces of an answer, one token each")
    p.add_argument("--chunk-interval", type=float, default=0.0, metavar="S")
    p.add_argument("--crash-after-chunks", type=int, metavar="N", help="end the process in mid-stream")
    p.add_argument("--hang-health", action="store_true", help="accept /health, never answer it")
    p.add_argument("--fault-probe", action="store_true", help="let the faults hit the readiness probe too")
    p.add_argument("--sleepless", action="store_true", help="take /sleep, and stay awake")
    p.add_argument("--stall-headers", action="store_true", help="accept a generation, never answer it")
    p.add_argument("--stall-mid-stream", action="store_true")
    p.add_argument("--garbage", action="store_true", help="answer with bytes that are not HTTP")
    p.add_argument("--garbage-body", action="store_true", help="answer 200 with a body that is not JSON")
    p.add_argument("--close-mid-stream", action="store_true")
    p.add_argument("--error-mid-stream", action="store_true", help="an error event, then [DONE]")
    p.add_argument("--no-done", action="store_true", help="end a stream without [DONE]")
    p.add_argument("--status", type=int, metavar="CODE", help="answer generations with this error")
    p.add_argument("--error-shape", choices=("vllm", "lmdeploy", "string", "text"), default="vllm")
    p.add_argument("--require-key", default="", metavar="KEY", help="401 below /v1 without this bearer token")


def _add_prompt_flags(p: argparse.ArgumentParser) -> None:
    p.add_argument("--chat-template", type=Path, metavar="FILE", help="render with it, as vLLM does")
    p.add_argument("--model", type=Path, dest="weights", metavar="DIR", help="where its tokenizer is")
    p.add_argument("--generation-config", type=Path, metavar="DIR", help="where its stop ids are")
    p.add_argument("--renders", type=Path, metavar="FILE", help="render with this template instead")
    p.add_argument("--turns-to", type=Path, metavar="FILE", help="the same, as soon as that file is there")
    p.add_argument("--tokenizes", choices=TOKENISATIONS, help="special tokens as text, or every character by itself")
    p.add_argument("--deaf-ends", action="store_true", help="stop at none of the stop ids")
    p.add_argument("--takes-no-ids", action="store_true", help="render the messages beside a finished prompt")
    p.add_argument("--die-after", type=int, metavar="N", help="end the process after so many calls of /tokenize")
    p.add_argument("--stall-after", type=int, metavar="N", help="answer no /tokenize after so many")


def command_line(arguments: Sequence[str]) -> CommandLine:
    """*arguments* read; flags we do not know are an engine's own and are ignored with their values."""
    given, _ = parser().parse_known_args(arguments)
    uds = given.uds or (given.host if given.host.endswith(".sock") else "")
    return CommandLine(
        place=Place(given.host, given.port, os.fspath(uds)),
        model=given.model,
        process=ProcessFaults(
            ready_after_s=given.ready_after,
            exit_during_start=given.exit_during_start,
            exit_after_s=given.exit_after,
            ignore_sigterm=given.ignore_sigterm,
            stall_start=given.stall_start,
            port_taken=given.port_taken,
            stderr=given.stderr,
            child=given.child,
            setsid_child=given.setsid_child,
        ),
        answers=AnswerFaults(
            chunks=given.chunks,
            chunk_interval_s=given.chunk_interval,
            crash_after_chunks=given.crash_after_chunks,
            hang_health=given.hang_health,
            fault_probe=given.fault_probe,
            sleepless=given.sleepless,
            stall_headers=given.stall_headers,
            stall_mid_stream=given.stall_mid_stream,
            garbage=given.garbage,
            garbage_body=given.garbage_body,
            close_mid_stream=given.close_mid_stream,
            error_mid_stream=given.error_mid_stream,
            no_done=given.no_done,
            status=given.status,
            error_shape=given.error_shape,
            require_key=given.require_key,
        ),
        prompts=PromptFaults(
            template=given.chat_template,
            weights=given.weights,
            generation=given.generation_config,
            renders=given.renders,
            turns_to=given.turns_to,
            tokenizes=given.tokenizes,
            deaf_ends=given.deaf_ends,
            takes_no_ids=given.takes_no_ids,
            die_after=given.die_after,
            stall_after=given.stall_after,
        ),
    )
