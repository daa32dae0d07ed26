"""The house's habits that no linter knows."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGES = ("gateway", "backends", "chat_templates", "benchmarks", "tests")
UNDECIDED = {"manager", "handler", "helper", "helpers", "util", "utils", "common", "misc", "data", "info"}
"""Words that say nobody decided what a thing is."""


def modules(*packages: str) -> Iterator[Path]:
    """Every module of *packages*."""
    for package in packages:
        yield from sorted((ROOT / package).rglob("*.py"))


def functions(module: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Every function in *module*, methods too."""
    for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def test_every_test_states_what_it_proves() -> None:
    """Every test's docstring is a sentence: what holds when it passes."""
    silent = [
        f"{module.relative_to(ROOT)}:{test.lineno} {test.name}"
        for module in modules("tests")
        for test in functions(module)
        if test.name.startswith("test_") and not (ast.get_docstring(test) or "").endswith(".")
    ]
    assert silent == []


def test_no_two_tests_of_a_file_state_the_same() -> None:
    """Two tests with one sentence are one test, or one of the sentences is wrong."""
    for module in modules("tests"):
        said = [ast.get_docstring(test) for test in functions(module) if test.name.startswith("test_")]
        assert len(said) == len(set(said)), module


def test_names_are_decided() -> None:
    """No module is called after a word that says nothing."""
    undecided = [
        str(module.relative_to(ROOT))
        for module in modules(*PACKAGES)
        if UNDECIDED & set(module.stem.lower().split("_"))
    ]
    assert undecided == []
