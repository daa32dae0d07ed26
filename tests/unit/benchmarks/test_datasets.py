"""Prompts: from files as people have them, and made up to a length."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import Any

import pytest
from tokenizers import Tokenizer as Library
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer

from benchmarks.conversations import as_text
from benchmarks.datasets.choosing import choose_prompts, read_file
from benchmarks.datasets.llama_factory import read_named
from benchmarks.datasets.synthetic import Lengths, exact_text, synthetic
from benchmarks.datasets.tokenizer import WORDS, Tokenizer, WordCounter, load_tokenizer
from benchmarks.datasets.traces import Arrival, read_trace
from benchmarks.errors import BenchmarkError
from benchmarks.plan import Plan

SAID = [
    {"role": "system", "content": "be brief"},
    {"role": "user", "content": "a?"},
    {"role": "assistant", "content": "a."},
    {"role": "user", "content": "b?"},
    {"role": "assistant", "content": "b."},
]
SHARED: dict[str, Any] = {"system": "be brief", "conversations": [
    {"from": "human", "value": "a?"}, {"from": "gpt", "value": "a."},
    {"from": "human", "value": "b?"}, {"from": "gpt", "value": "b."},
]}  # fmt: skip
ALPACA = {"instruction": "b?", "input": "", "output": "b.", "history": [["a?", "a."]], "system": "be brief"}


def write(folder: Path, name: str, content: Any) -> Path:
    """A file of *content*: text as it is, lines of JSON for a tuple, else JSON."""
    path = folder / name
    if isinstance(content, tuple):
        content = "\n".join(json.dumps(item) for item in content)
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """A real byte-level BPE, small, trained on our own words."""
    library = Library(BPE())
    library.pre_tokenizer = ByteLevel(add_prefix_space=False)
    library.decoder = ByteLevelDecoder()
    rng = Random(1)
    text = [" ".join(rng.choice(WORDS) for _ in range(50)) for _ in range(50)]
    library.train_from_iterator(
        text, BpeTrainer(vocab_size=600, initial_alphabet=ByteLevel.alphabet(), show_progress=False)
    )
    folder = tmp_path_factory.mktemp("tokenizer")
    library.save(str(folder / "tokenizer.json"))
    return load_tokenizer(str(folder))


@pytest.mark.parametrize(("name", "content"), [
    ("a.jsonl", ({"messages": SAID},)), ("a.json", [{"messages": SAID}]),
    ("a.json", [SHARED]), ("a.jsonl", (ALPACA, ALPACA)),
])  # fmt: skip
def test_every_format_asks_the_same(tmp_path: Path, name: str, content: Any) -> None:
    """OpenAI messages, ShareGPT and Alpaca with a history say the same conversation, told from the file itself."""
    found = read_file(write(tmp_path, name, content), None, "last")
    assert list(found[0].turns[0]) == SAID[:4]


@pytest.mark.parametrize(("turns", "expected"), [
    ("first", [SAID[:2]]), ("last", [SAID[:4]]), ("all", [SAID[:2], [SAID[3]]]),
])  # fmt: skip
def test_turns_say_what_of_a_conversation_is_asked(tmp_path: Path, turns: str, expected: Any) -> None:
    """The first question, the last with all before it, or all of them with the server's own answers between."""
    path = write(tmp_path, "a.jsonl", ({"messages": SAID},))
    assert [list(turn) for turn in read_file(path, None, turns)[0].turns] == expected


def test_sharegpt_asks_the_first_question_and_messages_the_last(tmp_path: Path) -> None:
    """Without a choice, ShareGPT's first question is asked, as `vllm bench serve` does, and of messages the last."""
    assert len(read_file(write(tmp_path, "s.json", [SHARED]), None, None)[0].turns[0]) == 2
    assert len(read_file(write(tmp_path, "m.json", [{"messages": SAID}]), None, None)[0].turns[0]) == 4


def test_a_conversation_ends_where_a_tool_was_to_answer(tmp_path: Path) -> None:
    """What a function answered cannot be asked of a server; the conversation is asked up to there."""
    said = [*SHARED["conversations"][:2], {"from": "human", "value": "c?"}, {"from": "function_call", "value": "{}"}]
    found = read_file(write(tmp_path, "s.json", [{"conversations": said}]), None, "last")
    assert found[0].turns[0][-1] == {"role": "user", "content": "c?"}


def test_lines_of_text_are_questions(tmp_path: Path) -> None:
    """Each line that is not empty is a question, named by its line."""
    found = read_file(write(tmp_path, "q.txt", "one\n\n two \n"), None, None)
    assert [(one.name.rpartition(":")[2], as_text(one.turns[0])) for one in found] == [("1", "one"), ("3", "two")]


def test_llama_factory_columns_and_tags(tmp_path: Path) -> None:
    """dataset_info.json names file, columns and tags; a column it leaves out is not read."""
    write(tmp_path, "dataset_info.json", {
        "mine": {"file_name": "mine.json", "columns": {"prompt": "question", "response": "answer", "history": "past"}},
        "talk": {"file_name": "talk.jsonl", "formatting": "sharegpt",
                 "columns": {"messages": "turns", "system": "rules"},
                 "tags": {"role_tag": "who", "content_tag": "what", "user_tag": "U", "assistant_tag": "A"}},
        "plain": {"file_name": "plain.json"},
    })  # fmt: skip
    write(tmp_path, "mine.json", [{"question": "b?", "input": "unread", "answer": "b.", "past": [["a?", "a."]]}])
    write(
        tmp_path,
        "talk.jsonl",
        ({"rules": "be brief", "turns": [{"who": "U", "what": "a?"}, {"who": "A", "what": "a."}]},),
    )
    write(tmp_path, "plain.json", [{"instruction": "b?", "input": "c", "output": "", "system": "unread"}])
    assert [message["content"] for message in read_named("mine", tmp_path, None)[0].turns[0]] == ["a?", "a.", "b?"]
    assert list(read_named("talk", tmp_path, None)[0].turns[0]) == SAID[:2]
    assert [message["content"] for message in read_named("plain", tmp_path, None)[0].turns[0]] == ["b?\nc"]


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("a.jsonl", '{"messages": []}\n{', "a.jsonl:2: not JSON"),
        ("a.json", "[\n{]", "a.json:2: not JSON"),
        ("a.json", [3], "a.json: item 1: not a JSON object"),
        ("a.jsonl", ({"question": "?"},), "name --dataset-format"),
        ("a.jsonl", ({"messages": SAID}, {"messages": "x"}), "a.jsonl:2: messages: missing, or not an array"),
        ("a.jsonl", ({"messages": [{"role": "robot"}]},), "a.jsonl:1: messages: each needs a role"),
        ("a.jsonl", ({"messages": [{"role": "user"}]},), "a.jsonl:1: messages: a user's message needs content"),
        (
            "a.jsonl",
            ({"conversations": [{"from": "x", "value": "y"}]},),
            "a.jsonl:1: conversations: an item needs from",
        ),
        ("a.jsonl", ({"instruction": 3},), "a.jsonl:1: instruction: has to be text"),
        ("a.jsonl", ({"instruction": "a", "history": ["b"]},), "a.jsonl:1: history: each item has to be"),
    ],
)
def test_a_complaint_names_file_and_line(tmp_path: Path, name: str, content: Any, problem: str) -> None:
    """What is wrong with a dataset is told where it is."""
    with pytest.raises(BenchmarkError) as told:
        read_file(write(tmp_path, name, content), None, None)
    assert problem in str(told.value)


@pytest.mark.parametrize(
    ("info", "problem"),
    [
        ({"other": {}}, "does not name it; it names other"),
        ({"mine": {"hf_hub_url": "x/y"}}, "it has no file_name"),
        ({"mine": {"file_name": "a", "formatting": "xml"}}, 'formatting "xml" is not known'),
        ({"mine": {"file_name": "a", "columns": 3}}, "columns and tags have to be objects"),
        ({"mine": {"file_name": "a.json"}}, "No such file"),
        ("{", "dataset_info.json"),
    ],
)
def test_a_dataset_that_is_not_described_is_told(tmp_path: Path, info: Any, problem: str) -> None:
    """A name, a file or a format that LLaMA-Factory's list does not have is an error with its place."""
    write(tmp_path, "dataset_info.json", info)
    with pytest.raises(BenchmarkError, match=r"dataset_info|No such file") as told:
        read_named("mine", tmp_path, None)
    assert problem in str(told.value)


def test_files_that_cannot_be_read_are_told(tmp_path: Path) -> None:
    """A missing file and one that is not UTF-8 are errors, not tracebacks."""
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    with pytest.raises(BenchmarkError, match="No such file"):
        read_file(tmp_path / "none.txt", None, None)
    with pytest.raises(BenchmarkError, match="not UTF-8"):
        read_file(tmp_path / "latin.txt", None, None)


@pytest.mark.parametrize("length", [1, 2, 17, 256, 1000])
def test_a_synthetic_prompt_is_exact_after_a_round_trip(tokenizer: Tokenizer, length: int) -> None:
    """Written out and read back, a prompt has exactly the tokens asked for."""
    made = synthetic([Lengths(length, 5)] * 3, tokenizer, seed=1)
    texts = [as_text(one.turns[0]) for one in made]
    assert [tokenizer.count(text) for text in texts] == [length] * 3
    assert length < 17 or len(set(texts)) == 3


def test_a_shared_prefix_is_shared_and_the_rest_is_not(tokenizer: Tokenizer) -> None:
    """Prompts with a prefix of 20 tokens begin alike, differ after, and are as long as asked."""
    texts = [as_text(one.turns[0]) for one in synthetic([Lengths(50, 5)] * 3, tokenizer, seed=1, prefix_tokens=20)]
    ids = [tokenizer.encode(text) for text in texts]
    assert [len(one) for one in ids] == [50] * 3
    assert ids[0][:20] == ids[1][:20] == ids[2][:20]
    assert len({tuple(one[20:]) for one in ids}) == 3


def test_lengths_vary_within_their_spread(tokenizer: Tokenizer) -> None:
    """A spread of a half draws lengths from a half to one and a half of what is asked."""
    made = synthetic([Lengths(40, 20)] * 200, tokenizer, seed=1, input_spread=0.5, output_spread=0.5)
    lengths = [tokenizer.count(as_text(one.turns[0])) for one in made]
    assert (min(lengths), max(lengths)) == (20, 60)
    assert {one.output_tokens for one in made} == set(range(10, 31))


def test_a_prompt_that_stands_alone_has_an_expected_length(tokenizer: Tokenizer) -> None:
    """Only where no template is around it is the server's count to be ours."""
    assert synthetic([Lengths(9, 5)], tokenizer, seed=1, is_alone=True)[0].prompt_tokens == 9
    assert synthetic([Lengths(9, 5)], tokenizer, seed=1)[0].prompt_tokens is None
    assert synthetic([Lengths(9, 5)], WordCounter(), seed=1, is_alone=True)[0].prompt_tokens is None


def test_a_tokenizer_that_never_repeats_itself_is_given_up(tokenizer: Tokenizer) -> None:
    """When no text of a length can be found, that is said instead of looking for ever."""

    class Growing(WordCounter):
        def encode(self, text: str) -> list[int]:
            return [*super().encode(text), 0]

    with pytest.raises(BenchmarkError, match="exactly 5 tokens"):
        exact_text(5, Growing(), Random(1))


@pytest.mark.parametrize(("content", "problem"), [(None, "No such file"), ("{}", "not a tokenizer")])
def test_a_tokenizer_that_is_none_is_told(tmp_path: Path, content: str | None, problem: str) -> None:
    """A folder without tokenizer.json, or with another file of that name, is an error."""
    if content is not None:
        write(tmp_path, "tokenizer.json", content)
    with pytest.raises(BenchmarkError, match=problem):
        load_tokenizer(str(tmp_path))


def test_a_seed_decides_the_prompts() -> None:
    """The same seed asks the same, with the same digest; another seed something else."""
    plan = Plan("http://x/v1", "m", num_prompts=5, rate=1.0)
    again = choose_prompts(plan, None)
    other = choose_prompts(Plan("http://x/v1", "m", num_prompts=5, rate=1.0, seed=1), None)
    assert choose_prompts(plan, None) == again
    assert again.digest != other.digest
    assert (len(again.measured), len(again.warm_up)) == (5, 10)
    texts = [{as_text(one.turns[0]) for one in kind} for kind in (again.measured, again.warm_up)]
    assert not texts[0] & texts[1]


def test_a_dataset_that_is_too_small_is_said(tmp_path: Path) -> None:
    """Prompts that repeat are faster by the prefix cache: a run says that they do."""
    path = write(tmp_path, "q.txt", "a\nb\nc")
    chosen = choose_prompts(Plan("http://x/v1", "m", dataset=str(path), num_prompts=5, concurrency=1), None)
    assert sorted(as_text(one.turns[0]) for one in chosen.measured[:3]) == ["a", "b", "c"]
    assert ["repeat" in note or "warm-up" in note for note in chosen.notes] == [True, True]


def test_a_dataset_without_a_question_is_told(tmp_path: Path) -> None:
    """A file in which nobody asks anything cannot be used."""
    path = write(tmp_path, "m.jsonl", ({"messages": [{"role": "system", "content": "x"}]},))
    with pytest.raises(BenchmarkError, match="holds no question"):
        choose_prompts(Plan("http://x/v1", "m", dataset=str(path), num_prompts=5, concurrency=1), None)


def test_a_trace_gives_times_and_lengths(tmp_path: Path) -> None:
    """Seconds, or Mooncake's objects with milliseconds and lengths; in order of time, as many as asked for."""
    path = write(tmp_path, "t.jsonl", '3\n{"timestamp": 500, "input_length": 7, "output_length": 2}\n\n1.5\n')
    assert read_trace(path) == [Arrival(0.5, 7, 2), Arrival(1.5), Arrival(3.0)]
    assert len(read_trace(path, 2)) == 2
    chosen = choose_prompts(Plan("http://x/v1", "m", arrivals="trace", trace=str(path)), None, [(7, 2), (None, None)])
    assert [(len(as_text(one.turns[0]).split()), one.output_tokens) for one in chosen.measured] == [(7, 2), (256, 128)]


@pytest.mark.parametrize(
    "line", ["x", "-1", "true", '{"timestamp": "1"}', '{"timestamp": 1, "input_length": 1.5}', "NaN"]
)
def test_a_trace_that_cannot_be_read_is_told(tmp_path: Path, line: str) -> None:
    """A line that is no time is told by file and line."""
    with pytest.raises(BenchmarkError, match=r"t\.jsonl:2: "):
        read_trace(write(tmp_path, "t.jsonl", f"1\n{line}\n"))


def test_an_empty_trace_is_told(tmp_path: Path) -> None:
    """A trace without an arrival is no load."""
    with pytest.raises(BenchmarkError, match="holds no arrival"):
        read_trace(write(tmp_path, "t.jsonl", "\n"))
