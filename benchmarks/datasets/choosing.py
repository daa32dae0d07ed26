"""Choosing the prompts of a run: from a file or made up, in an order that its seed decides."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

import orjson

from benchmarks.conversations import Conversation
from benchmarks.datasets.files import Record, read_lines, read_messages, read_records
from benchmarks.datasets.llama_factory import Alpaca, ShareGpt, read_named
from benchmarks.datasets.synthetic import Lengths, synthetic
from benchmarks.datasets.tokenizer import Tokenizer, WordCounter
from benchmarks.errors import BenchmarkError
from benchmarks.plan import SYNTHETIC, Plan


@dataclass(frozen=True, slots=True)
class Prompts:
    """The conversations of a run, and those that go before it. ``digest``: SHA-256 over all that is asked, in order."""

    measured: tuple[Conversation, ...]
    warm_up: tuple[Conversation, ...]
    about: str
    digest: str
    notes: tuple[str, ...] = ()


def choose_prompts(
    plan: Plan, tokenizer: Tokenizer | None, trace: Sequence[tuple[int | None, int | None]] = ()
) -> Prompts:
    """The prompts *plan* asks for; the same for the same seed. *trace*: lengths in and out per request, if it has them.

    Raises BenchmarkError, with file and line where there is one.
    """
    count = len(trace) or plan.prompts
    notes = []
    if plan.dataset == SYNTHETIC:
        counter = tokenizer or WordCounter()
        if tokenizer is None:
            notes.append("without --tokenizer the input length is in words, not tokens; the rows hold what was charged")
        lengths = [
            Lengths(given[0] or plan.input_tokens, given[1] or plan.output_tokens)
            for given in trace or [(None, None)] * (count + plan.warm_ups)
        ]
        lengths += [Lengths(plan.input_tokens, plan.output_tokens)] * (count + plan.warm_ups - len(lengths))
        made = synthetic(
            lengths,
            counter,
            seed=plan.seed,
            prefix_tokens=plan.prefix_tokens,
            input_spread=plan.input_spread,
            output_spread=plan.output_spread,
            is_alone=plan.endpoint == "completions",
        )
        measured, warm_up = made[:count], made[count:]
        about = f"synthetic, {plan.input_tokens} {counter.unit} in, {plan.output_tokens} tokens out"
    else:
        found = _read(plan)
        about = f"{plan.dataset}, {len(found)} conversations"
        order = list(range(len(found)))
        Random(f"{plan.seed} order").shuffle(order)
        if count > len(found):
            notes.append(
                f"{count} prompts are asked for and the dataset has {len(found)}: they repeat, and prefix caches make "
                "repeated ones faster"
            )
        measured = [found[order[number % len(order)]] for number in range(count)]
        if count + plan.warm_ups > len(found) and plan.warm_ups:
            notes.append("the warm-up uses prompts that are measured too, for the dataset has no others")
        warm_up = [found[order[(count + number) % len(order)]] for number in range(plan.warm_ups)]
    warm_up = [Conversation(one.name, one.turns[:1], one.prompt_tokens, one.output_tokens) for one in warm_up]
    return Prompts(tuple(measured), tuple(warm_up), about, digest_of(measured), tuple(notes))


def digest_of(conversations: Sequence[Conversation]) -> str:
    """SHA-256 over what is asked: messages and lengths, in order; not where it is from."""
    digest = hashlib.sha256()
    for one in conversations:
        asked = {"turns": [list(turn) for turn in one.turns], "output_tokens": one.output_tokens}
        digest.update(orjson.dumps(asked, option=orjson.OPT_SORT_KEYS))
    return digest.hexdigest()


def read_file(path: Path, form: str | None, turns: str | None) -> list[Conversation]:
    """The conversations in *path*; *form* None is told from the content. Raises BenchmarkError."""
    if form == "text" or (form is None and path.suffix not in (".json", ".jsonl")):
        return read_lines(path)
    records = read_records(path)
    readers: dict[str, Callable[[Record, str | None], Conversation | None]] = {
        "sharegpt": ShareGpt().read,
        "alpaca": Alpaca().read,
        "messages": read_messages,
    }
    if form is None:
        form = _told_by(records, path)
    found = [readers[form](record, turns) for record in records]
    return [one for one in found if one is not None]


def _told_by(records: Sequence[Record], path: Path) -> str:
    fields = records[0].fields if records else {}
    for name, form in (("messages", "messages"), ("conversations", "sharegpt"), ("instruction", "alpaca")):
        if name in fields:
            return form
    raise BenchmarkError(
        f"{path}: neither messages, conversations nor instruction is in its first record; name --dataset-format, or "
        "--dataset-dir with LLaMA-Factory's dataset_info.json"
    )


def _read(plan: Plan) -> list[Conversation]:
    if plan.dataset_dir is not None:
        found = read_named(plan.dataset, Path(plan.dataset_dir), plan.turns)
    else:
        found = read_file(Path(plan.dataset), plan.dataset_format, plan.turns)
    if not found:
        raise BenchmarkError(f"--dataset {plan.dataset}: holds no question")
    return found
