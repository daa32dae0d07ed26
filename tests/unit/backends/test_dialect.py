"""The engines' dialects: complete, with sources that are there, and without contradictions."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from backends.dialect import GENERATION, OPENAI, REASONING, Dialect, Quirk, error_form
from backends.engines import ADAPTERS
from backends.engines.lmdeploy_dialect import DIALECT as LMDEPLOY
from backends.engines.ollama_dialect import DIALECT as OLLAMA

DIALECTS = {engine: adapter.dialect for engine, adapter in ADAPTERS.items()} | {"lmdeploy": LMDEPLOY, "ollama": OLLAMA}
RECORDINGS = Path(__file__).parents[2] / "recordings"

each_dialect = pytest.mark.parametrize("dialect", DIALECTS.values(), ids=DIALECTS)


def rows(dialect: Dialect) -> Iterator[Any]:
    """Every row that names its source itself."""
    yield from (*dialect.renamed, *dialect.unhonoured, *dialect.withheld, *dialect.minimums)
    yield from (*dialect.finishes, *dialect.error_forms)


def sources(dialect: Dialect) -> list[str]:
    """Every source."""
    return [*(row.source for row in rows(dialect)), *dialect.quirks.values(), *dialect.sources.values()]


@each_dialect
def test_everything_has_a_source(dialect: Dialect) -> None:
    """No difference is claimed without saying where it was seen."""
    assert all(len(source) >= 4 for source in sources(dialect))
    fields = {field.name for field in dataclasses.fields(Dialect)}
    assert set(dialect.sources) <= fields
    if dialect.history_reasoning is not None:
        assert "history_reasoning" in dialect.sources


@pytest.mark.parametrize("engine", ["lmdeploy", "ollama"])
def test_cited_recordings_exist(engine: str) -> None:
    """A number in brackets is that of a recording we keep."""
    lines = [line for file in RECORDINGS.glob(f"{engine}*.jsonl") for line in file.read_text().splitlines()]
    kept = {json.loads(line)["name"].split("-")[0].lstrip("0") for line in lines}
    cited = {
        number
        for source in sources(DIALECTS[engine])
        for listed in re.findall(r"\[([\d, ]+)\]", source)
        for number in listed.split(", ")
    }
    assert cited
    assert cited <= kept


@each_dialect
def test_a_parameter_has_one_fate(dialect: Dialect) -> None:
    """What is renamed is not refused as well, and nothing is listed twice for one endpoint."""
    for endpoint in GENERATION:
        fates = [row.name for row in dialect.renamed if endpoint in row.endpoints]
        fates += [row.name for row in dialect.unhonoured if endpoint in row.endpoints]
        assert len(fates) == len(set(fates))


@each_dialect
def test_finish_reasons_become_openais(dialect: Dialect) -> None:
    """An engine's own finish reason means one of OpenAI's, or that the answer is not whole."""
    words = dialect.finish_words
    assert len(words) == len(dialect.finishes)
    assert set(words.values()) <= {"stop", "length", "tool_calls", None}


@each_dialect
def test_endpoints_are_those_served(dialect: Dialect) -> None:
    """Rows speak of endpoints that there are."""
    assert all(row.endpoints <= GENERATION for row in rows(dialect) if hasattr(row, "endpoints"))


def test_which_engines_cost_nothing() -> None:
    """Streams of vLLM, llama.cpp and addresses we do not know pass untouched; LMDeploy's and Ollama's are edited."""
    assert {engine for engine, dialect in DIALECTS.items() if dialect.needs_editing} == {"lmdeploy", "ollama"}


def test_openai_differs_in_nothing() -> None:
    """The dialect of OpenAI itself has no row."""
    assert list(rows(OPENAI)) == []
    assert (OPENAI.answer_reasoning, OPENAI.needs_editing) == (REASONING, False)


def test_always_finishing_alone_needs_no_editing() -> None:
    """A quirk that is only watched changes no chunk."""
    assert not Dialect(quirks={Quirk.ALWAYS_FINISHES: "seen"}).needs_editing
    assert Dialect(quirks={Quirk.IDS_COLLIDE: "seen"}).needs_editing


def test_an_error_form() -> None:
    """A form is a pattern with what it tells."""
    form = error_form(r"^(?P<param>\w+) is bad", source="seen", code="bad")
    assert form.code == "bad"
    found = form.pattern.search("n is bad")
    assert found is not None
    assert found["param"] == "n"
