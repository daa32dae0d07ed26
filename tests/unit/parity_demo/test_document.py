"""The table of the demonstration, and its place in the READMEs."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.gateways import ROOT
from tests.parity_demo.document import BEGIN, END, document, put_between, table
from tests.parity_demo.measuring import Measured
from tests.parity_demo.serving import RAW, THROUGH

RAW_VLLM = Measured("vllm", RAW, 40, 3, 40, ("Mood: sunshine", "a | b"))
THROUGH_VLLM = Measured("vllm", THROUGH, 40, 39, 0)


@pytest.mark.parametrize("measured", [[RAW_VLLM, THROUGH_VLLM], [THROUGH_VLLM, RAW_VLLM]])
def test_a_row_has_an_engine_both_ways(measured: list[Measured]) -> None:
    """What was measured raw stands under raw, in whatever order it was measured."""
    head, rule, row = table(measured)
    assert head.count("|") == rule.count("|") == row.count("|")
    assert row == "| vLLM | 3 of 40 | **39 of 40** | 40 | **0** |"


def test_the_chinese_table_has_the_same_numbers() -> None:
    """The table in Chinese has the same numbers in the same places."""
    assert table([RAW_VLLM, THROUGH_VLLM], "zh")[2] == "| vLLM | 3 / 40 | **39 / 40** | 40 | **0** |"


def test_the_document_tells_what_was_run_and_how_it_was_seen() -> None:
    """The document has the table, wrong answers as they came, versions, the day, and how prompts were seen."""
    text = document([RAW_VLLM, THROUGH_VLLM], ["llamafactory 0.9.5"], "2026-11-24")
    for part in ("\n".join(table([RAW_VLLM, THROUGH_VLLM])), "`Mood: sunshine`", "2026-11-24; llamafactory 0.9.5"):
        assert part in text
    assert "return_token_ids" in text
    assert "LLaMA-Factory's own code encodes" in text


def test_only_what_is_between_the_marks_changes(tmp_path: Path) -> None:
    """Putting a table into a file changes what is between the marks, and doing it twice changes nothing more."""
    path = tmp_path / "README.md"
    path.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n", encoding="utf-8")
    for _ in range(2):
        put_between(path, ["| new |"])
        assert path.read_text(encoding="utf-8") == f"before\n{BEGIN}\n| new |\n{END}\nafter\n"


@pytest.mark.parametrize("text", ["nothing", BEGIN, END, f"{END}{BEGIN}"])
def test_a_file_without_marks_is_left_alone(tmp_path: Path, text: str) -> None:
    """A file that has not both marks in their order is refused by its name, and stays as it is."""
    path = tmp_path / "README.md"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=r"README\.md: has no"):
        put_between(path, ["x"])
    assert path.read_text(encoding="utf-8") == text


@pytest.mark.parametrize("name", ["README.md", "README.zh-CN.md"])
def test_the_readmes_have_a_place_for_it(name: str) -> None:
    """Both READMEs have one pair of marks, above their first heading of the second level."""
    opening = (ROOT / name).read_text(encoding="utf-8").split("\n## ")[0]
    assert opening.count(BEGIN) == opening.count(END) == 1
    assert opening.index(BEGIN) < opening.index(END)
