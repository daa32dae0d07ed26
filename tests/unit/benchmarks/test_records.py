"""The files of a run."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from benchmarks.errors import BenchmarkError
from benchmarks.journal import began, ended, read_journal, read_recounts, sampled
from benchmarks.records import (
    JOURNAL,
    RECOUNTS,
    REQUESTS,
    WARM_UP,
    RecordFile,
    cut_torn_line,
    finished,
    read_rows,
)
from tests.unit.benchmarks.rows import failed, row
from tests.unit.benchmarks.test_validity import sample


def keep(folder: Path, *records: object, name: str = REQUESTS) -> None:
    """Write *records* as a run does."""
    file = RecordFile(folder / name)
    for record in records:
        file.add(record)
    file.close()


def test_a_row_is_the_same_after_it_was_written(tmp_path: Path) -> None:
    """What is read is what was written, in its order."""
    rows = [row(0), failed(1, sent=1.0, error_text='"\n€'), row(2, sent=2.0, text="a b")]
    keep(tmp_path, *rows)
    assert [dataclasses.replace(one, token_us=tuple(one.token_us), token_chars=tuple(one.token_chars))
            for one in read_rows(tmp_path)] == rows  # fmt: skip


def test_a_request_that_was_sent_again_counts_once(tmp_path: Path) -> None:
    """After a resume the later row of a conversation's turn is the one that counts; a warm-up is another thing."""
    keep(tmp_path, row(0, sent=1.0), row(0, sent=2.0, session=1), row(0, sent=0.5, phase=WARM_UP))
    assert [(one.sent, one.phase) for one in read_rows(tmp_path)] == [(2.0, "measured"), (0.5, "warm_up")]


def test_a_conversation_is_finished_when_it_ended_or_failed() -> None:
    """One that stopped between two questions is asked again from its beginning."""
    rows = [row(0, is_last_turn=False), row(1), failed(2, is_last_turn=False), row(3, phase=WARM_UP)]
    assert finished(rows) == {1, 2}


def test_a_torn_last_line_is_cut_and_nothing_else(tmp_path: Path) -> None:
    """A process that was killed may leave half a line: it is left out, and removed before more is written."""
    keep(tmp_path, row(0))
    path = tmp_path / REQUESTS
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"index": 1, "tu')
    assert len(read_rows(tmp_path)) == 1
    cut_torn_line(path)
    assert path.read_bytes() == whole
    cut_torn_line(tmp_path / "none")


@pytest.mark.parametrize(
    ("line", "problem"), [("{", "not JSON"), ("3", "not a JSON object"), ("{}", "not a row of this program: no end")]
)
def test_a_line_that_is_no_row_is_told(tmp_path: Path, line: str, problem: str) -> None:
    """A broken line in the middle is told by file and line; it is never skipped."""
    keep(tmp_path, row(0))
    with (tmp_path / REQUESTS).open("a") as file:
        file.write(line + "\n")
    with pytest.raises(BenchmarkError, match=f"requests.jsonl:2: {problem}"):
        read_rows(tmp_path)


def test_a_folder_without_rows_has_none(tmp_path: Path) -> None:
    """A run that wrote nothing yet is empty, not broken."""
    assert read_rows(tmp_path) == []
    assert read_journal(tmp_path).sessions == ()
    assert read_recounts(tmp_path) == {}


def test_a_file_that_cannot_be_written_is_told() -> None:
    """A full disk ends a run with its reason instead of losing rows."""
    file = RecordFile(Path("/dev/full"))
    file.add({"a": 1})
    with pytest.raises(BenchmarkError, match="/dev/full: No space left on device"):
        file.close()
    with pytest.raises(BenchmarkError, match="/dev/full"):
        file.add({"a": 1})


def test_a_journal_is_the_same_after_it_was_written(tmp_path: Path) -> None:
    """Sessions and samples come back; a session that was killed has no end."""
    samples = [sample(0.0), sample(1.0, servers={"vllm": {"running": 1.0}})]
    keep(
        tmp_path, began(0, {"seed": 0}, {"version": "1"}), *map(sampled, samples),
        ended(0, "interrupted", {"version": "2"}, 7), began(1, {"seed": 0}, {}), name=JOURNAL,
    )  # fmt: skip
    journal = read_journal(tmp_path)
    assert list(journal.samples) == samples
    first, second = journal.sessions
    assert (first.ended, first.requests, first.after, first.before) == (
        "interrupted",
        7,
        {"version": "2"},
        {"version": "1"},
    )
    assert (second.ended, second.after, journal.is_done) == (None, None, False)


def test_files_of_another_kind_are_told(tmp_path: Path) -> None:
    """A journal or recount without its fields is not ours."""
    (tmp_path / JOURNAL).write_text(json.dumps({"kind": "sample"}) + "\n")
    (tmp_path / RECOUNTS).write_text("{}\n")
    with pytest.raises(BenchmarkError, match="not a journal"):
        read_journal(tmp_path)
    with pytest.raises(BenchmarkError, match="has no 'index'"):
        read_recounts(tmp_path)
