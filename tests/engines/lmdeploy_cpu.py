#!/usr/bin/env python3
"""LMDeploy's own server on a machine without a GPU: stands where the `lmdeploy` command stands.

    python lmdeploy_cpu.py serve api_server MODEL --server-port 23333 ...

Run it with the Python of the LMDeploy environment; nothing of this project is imported. Command line, backend choice,
application, chat templates, tokenizer, validation, parsers, sessions, health monitor, metrics and signals are
LMDeploy's own (0.18.0), and with `--backend pytorch` its engine child process too. Only the two CUDA engines are
replaced, by `Engine`, which generates with transformers on the CPU, without LoRA, images, guided decoding or
input scoring. Five names are put in their place:

- `lmdeploy.turbomind:is_available`: else `archs.autoget_backend` falls back to PyTorch where there is no CUDA;
- `lmdeploy.turbomind:TurboMind`, built in the server's process by `AsyncEngine._build_turbomind`;
- `lmdeploy.pytorch.engine:Engine`, built in the child by `ZMQMPEngine._mp_proc`;
- `lmdeploy.cli.serve:get_max_batch_size`, which asks CUDA for the name of the card;
- in the child, `multiprocessing.managers:AcquirerProxy.__exit__`, for a race at its start (see `_leave_quietly`).

Its environment, for tests:

| variable | effect |
|---|---|
| `LMDEPLOY_CPU_DELAY` | seconds to sleep before each token: slow streams |
| `LMDEPLOY_CPU_LOAD_DELAY` | seconds to sleep while loading |
| `LMDEPLOY_CPU_FAIL_WORD` | a request whose prompt holds this text meets an engine error after three tokens |
| `LMDEPLOY_CPU_FAIL_AFTER` | every request meets an engine error after so many tokens |
| `LMDEPLOY_CPU_OUT_OF_MEMORY` | the start ends as it does when the KV cache finds no memory |
| `LMDEPLOY_CPU_SEEN` | a file that gets a line for each request: the ids of its prompt, as JSON; the model is not run |
| `LMDEPLOY_CPU_PROMPTS` | such a file, and the model is run |
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import multiprocessing.managers
import os
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import lmdeploy.pytorch.engine  # type: ignore[import-not-found]
import lmdeploy.turbomind  # type: ignore[import-not-found]
import torch  # type: ignore[import-not-found]
from lmdeploy.messages import (  # type: ignore[import-not-found]
    EngineEvent,
    EngineOutput,
    EventType,
    RequestMetrics,
    ResponseType,
    ScheduleMetrics,
)
from lmdeploy.utils import get_logger  # type: ignore[import-not-found]
from transformers import AutoModelForCausalLM, AutoTokenizer

TORCH_THREADS = 1
"""Leaves a core for HTTP, and suits a small model: with two and a busy neighbour a token takes 4 times as long."""
UNKNOWN_CARD_BATCH = 128
"""What `lmdeploy.utils:get_max_batch_size` gives for a card it does not know."""
FAIL_WORD_TOKENS = 3

_logger = get_logger("lmdeploy")


def _seconds(name: str) -> float:
    return float(os.environ.get(f"LMDEPLOY_CPU_{name}") or 0)


class Sequence:
    """One running request. Made on the loop that asked for it; its outputs go to that loop's queue."""

    def __init__(self, prompt: list[int], config: Any, session_len: int, fail_after: float) -> None:
        self.prompt = list(prompt)
        self.config = config
        self.output: list[int] = []
        self.cache: Any = None
        self.is_cancelled = False
        self.fail_after = fail_after
        self.stop_ids = set(config.stop_token_ids or [])
        self.max_new = min(config.max_new_tokens, session_len - len(prompt))
        self.random = torch.Generator().manual_seed((config.random_seed or 0) % 2**64)
        self.events = [EngineEvent.new_event(EventType.QUEUED)]
        self.loop, self.queue = asyncio.get_running_loop(), asyncio.Queue[Any]()

    def put(self, output: Any) -> None:
        """Hand *output* over, from the engine's thread."""
        # metrics.metrics_processor reads the events and the token's time
        output.req_metrics = RequestMetrics(token_timestamp=time.time(), engine_events=self.events)
        self.events = []
        try:
            self.loop.call_soon_threadsafe(self.queue.put_nowait, output)
        except RuntimeError:  # the server's loop has closed: nobody is left to read this
            self.is_cancelled = True

    @property
    def is_complete(self) -> bool:
        """Whether its last token ended it."""
        is_stopped = self.output[-1] in self.stop_ids and not self.config.ignore_eos
        return is_stopped or len(self.output) >= self.max_new


class Engine:
    """Stands for `turbomind.TurboMind` and for `pytorch.engine.Engine`, with the methods LMDeploy calls on either.

    One thread advances every running sequence by a token per round, so concurrent requests interleave as in a
    continuous batch, without its speed.
    """

    @classmethod
    def from_pretrained(
        cls,
        model_path: str,
        engine_config: Any,
        trust_remote_code: bool = False,
        speculative_config: Any = None,
        **others: Any,
    ) -> Any:
        """An engine, or, for the PyTorch backend in the server's process, LMDeploy's own proxy of one in a child.

        The child calls this again with `enable_mp_engine` off (pytorch/engine/mp_engine/zmq_engine.py).
        """
        if getattr(engine_config, "enable_mp_engine", False):
            from lmdeploy.pytorch.engine.mp_engine import build_mp_engine  # type: ignore[import-not-found]

            return build_mp_engine(
                engine_config.mp_engine_backend,
                model_path,
                engine_config,
                trust_remote_code,
                speculative_config=speculative_config,
            )
        return cls(model_path, engine_config, trust_remote_code)

    def __init__(self, model_path: str, engine_config: Any, trust_remote_code: bool) -> None:
        torch.set_num_threads(TORCH_THREADS)
        time.sleep(_seconds("LOAD_DELAY"))
        if os.environ.get("LMDEPLOY_CPU_OUT_OF_MEMORY"):
            raise RuntimeError("No enough gpu memory for kv cache.")  # pytorch/engine/executor/base.py
        self.engine_config = engine_config
        # float32: bfloat16 is no faster on most CPUs, and too coarse for the model of the tests
        self._model = AutoModelForCausalLM.from_pretrained(
            model_path, dtype=torch.float32, trust_remote_code=trust_remote_code
        ).eval()
        self._tokenizer = AutoTokenizer.from_pretrained(model_path, trust_remote_code=trust_remote_code)
        self._sequences: dict[int, Sequence] = {}
        self._tick = 0
        self._is_closing = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="cpu-engine", daemon=True)
        self._thread.start()

    # What serve.core.AsyncEngine, its RequestHandlePool and, in the child, EngineWorkerBase ask for.

    def create_instance(self, cuda_stream_id: int = 0) -> Engine:
        """A slot for one request; it would hold no state here."""
        return self

    def start_loop(self) -> bool:
        return True

    def get_engine_config(self) -> Any:
        return self.engine_config

    def get_schedule_metrics(self) -> Any:
        """What the gauges of /metrics are made of."""
        running = list(self._sequences.values())
        room = self.engine_config.max_batch_size * self.engine_config.session_len
        tokens = sum(len(sequence.prompt) + len(sequence.output) for sequence in running)
        return ScheduleMetrics(active_seqs=len(running), scheduler_tick=self._tick, cache_usage=tokens / room)

    def get_local_health_status(self) -> dict[str, Any]:
        """What /health is made of."""
        metrics = self.get_schedule_metrics()
        return {"alive": self._thread.is_alive(), "message": "CPU stand-in engine.", "schedule_metrics": metrics}

    async def get_health_status(self) -> dict[str, Any]:
        return self.get_local_health_status()

    async def async_stream_infer(
        self,
        session_id: int,
        input_ids: list[int],
        gen_config: Any,
        notify_add_msg_func: Callable[[], None] | None = None,
        **others: Any,
    ) -> AsyncIterator[Any]:
        """One output per token. Left early, because the client has gone, it stops generating."""
        if seen := os.environ.get("LMDEPLOY_CPU_SEEN") or os.environ.get("LMDEPLOY_CPU_PROMPTS"):
            with Path(seen).open("a", encoding="ascii") as lines:
                lines.write(f"{json.dumps(list(input_ids))}\n")
        sequence = Sequence(input_ids, gen_config, self.engine_config.session_len, self._fail_after(input_ids))
        with self._changed:
            self._sequences[session_id] = sequence
            self._changed.notify_all()
        if notify_add_msg_func is not None:  # the child's RPC server answers the parent only after this
            notify_add_msg_func()
        try:
            while True:
                output = await sequence.queue.get()
                yield output
                if output.status is not ResponseType.SUCCESS:
                    return
        finally:
            sequence.is_cancelled = True

    def end_session(self, session_id: int) -> bool:
        """Stop generating for *session_id*; whether there was such a request."""
        sequence = self._sequences.get(session_id)
        if sequence is not None:
            sequence.is_cancelled = True
        return sequence is not None

    async def async_cancel(self, session_id: int) -> None:
        self.end_session(session_id)

    async_end = async_cancel

    async def sleep(self, level: int = 1) -> None:
        """AsyncEngine keeps the sleeping state; the weights stay in memory."""

    def wakeup(self, tags: Any = None) -> None: ...

    def close(self) -> None:
        """End the thread."""
        with self._changed:
            self._is_closing = True
            self._changed.notify_all()
        self._thread.join(5)

    async def wait_tasks(self) -> None: ...

    # The generating thread.

    def _run(self) -> None:
        while not self._is_closing:
            with self._changed:
                self._changed.wait_for(lambda: self._sequences or self._is_closing)
                running = list(self._sequences.items())
            time.sleep(_seconds("DELAY"))
            for session_id, sequence in running:
                output = self._output(session_id, sequence)
                if output.status is not ResponseType.SUCCESS:
                    del self._sequences[session_id]
                sequence.put(output)
            self._tick += 1  # AsyncEngine.health_probe wants this to move while requests run

    def _output(self, session_id: int, sequence: Sequence) -> Any:
        if sequence.is_cancelled:
            return EngineOutput(ResponseType.CANCEL, [])
        try:
            with torch.inference_mode():
                return self._advance(sequence)
        except Exception:
            _logger.exception("CPU stand-in engine: session %s failed", session_id)
            return EngineOutput(ResponseType.INTERNAL_ENGINE_ERROR, [])

    def _advance(self, sequence: Sequence) -> Any:
        if sequence.fail_after and len(sequence.output) >= sequence.fail_after:
            raise RuntimeError("an engine error, as asked for")
        if not sequence.output:
            sequence.events.append(EngineEvent.new_event(EventType.SCHEDULED))
        logits = self._logits(sequence)
        token = self._pick(logits.clone(), sequence)
        sequence.output.append(token)
        status = ResponseType.FINISH if sequence.is_complete else ResponseType.SUCCESS
        wanted = sequence.config.logprobs
        return EngineOutput(status, [token], logprobs=None if wanted is None else [_logprobs(logits, token, wanted)])

    def _logits(self, sequence: Sequence) -> Any:
        if os.environ.get("LMDEPLOY_CPU_SEEN"):
            return torch.zeros(self._model.config.vocab_size)
        ids = sequence.output[-1:] or sequence.prompt
        answer = self._model(torch.tensor([ids]), past_key_values=sequence.cache, use_cache=True, logits_to_keep=1)
        sequence.cache = answer.past_key_values
        return answer.logits[0, -1]

    def _pick(self, logits: Any, sequence: Sequence) -> int:
        config = sequence.config
        if config.repetition_penalty != 1.0:
            seen = torch.tensor(sequence.prompt + sequence.output).unique()
            penalty = config.repetition_penalty
            logits[seen] = torch.where(logits[seen] > 0, logits[seen] / penalty, logits[seen] * penalty)
        early = list(sequence.stop_ids) if len(sequence.output) < (config.min_new_tokens or 0) else []
        logits[list(config.bad_token_ids or []) + early] = -torch.inf
        if config.temperature == 0 or config.top_k == 1:
            return int(logits.argmax())
        return _sampled(logits / config.temperature, config, sequence.random)

    def _fail_after(self, prompt: list[int]) -> float:
        word = os.environ.get("LMDEPLOY_CPU_FAIL_WORD")
        if word and word in self._tokenizer.decode(prompt):
            return FAIL_WORD_TOKENS
        return _seconds("FAIL_AFTER")


def _sampled(logits: Any, config: Any, random: Any) -> int:
    """A token by top-k, min-p and top-p, in LMDeploy's order."""
    if config.top_k:
        logits[logits < logits.topk(min(config.top_k, len(logits))).values[-1]] = -torch.inf
    chances = logits.softmax(-1)
    chances[chances < config.min_p * chances.max()] = 0
    ranked, order = chances.sort(descending=True)
    chances[order[ranked.cumsum(0) - ranked >= config.top_p * ranked.sum()]] = 0
    return int(torch.multinomial(chances, 1, generator=random))


def _logprobs(logits: Any, token: int, wanted: int) -> dict[int, float]:
    """Token id -> log probability, of the chosen token and of the likeliest, as LMDeploy's engines report it."""
    values = logits.log_softmax(-1)
    top = values.topk(wanted)
    return {token: float(values[token]), **dict(zip(top.indices.tolist(), top.values.tolist(), strict=True))}


def _leave_quietly(leave: Callable[..., None]) -> Callable[..., None]:
    """*leave* of a lock's proxy, silent when the lock's owner has gone.

    `ZMQMPEngine._start_mp_proc` stops its multiprocessing manager as soon as it has read the child's port. On a busy
    machine the child, then still leaving its `with condition:`, meets EOFError and dies, and LMDeploy's start fails: 2
    of 12 did, 0 of 22 with this.
    """

    def quietly(proxy: Any, *exc_info: Any) -> None:
        with contextlib.suppress(EOFError, ConnectionError):
            leave(proxy, *exc_info)

    return quietly


# At module level, to hold in the engine's child too: multiprocessing's spawn imports this file again there.
lmdeploy.pytorch.engine.Engine = Engine
lmdeploy.turbomind.is_available = lambda: True
lmdeploy.turbomind.TurboMind = Engine

if __name__ == "__mp_main__":
    proxies = multiprocessing.managers.AcquirerProxy  # type: ignore[attr-defined]
    proxies.__exit__ = _leave_quietly(proxies.__exit__)


def main() -> object:
    """LMDeploy's own entry point."""
    import lmdeploy.cli.serve  # type: ignore[import-not-found]
    from lmdeploy.cli.entrypoint import run  # type: ignore[import-not-found]

    lmdeploy.cli.serve.get_max_batch_size = lambda device: UNKNOWN_CARD_BATCH
    return run()


if __name__ == "__main__":
    sys.exit(main())  # type: ignore[arg-type]
