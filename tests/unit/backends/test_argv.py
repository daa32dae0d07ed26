"""Options as a configuration writes them -> flags."""

from __future__ import annotations

import pytest

from backends.adapter import Objection
from backends.argv import canonical, flags, owned_objections
from backends.settings import ArgValue

FLAGS: list[tuple[dict[str, ArgValue], list[str]]] = [
    ({}, []),
    ({"max-model-len": 4096}, ["--max-model-len", "4096"]),
    ({"enforce-eager": True}, ["--enforce-eager"]),
    ({"enforce-eager": False}, []),
    ({"gpu-memory-utilization": 0.9}, ["--gpu-memory-utilization", "0.9"]),
    ({"dtype": "float16"}, ["--dtype", "float16"]),
    ({"allowed-origins": ("a", "b c")}, ["--allowed-origins", "a", "b c"]),
    ({"seed": 0}, ["--seed", "0"]),
    ({"a": 1, "b": True, "c": "x"}, ["--a", "1", "--b", "--c", "x"]),
]


def test_short_options_keep_their_one_dash() -> None:
    """An option an engine knows with one dash is written with one, however the configuration spells it."""
    options: dict[str, ArgValue] = {"np": 2, "--parallel": 2, "-ngl": 9}
    assert flags(options, frozenset({"np", "ngl"})) == ["-np", "2", "--parallel", "2", "-ngl", "9"]


@pytest.mark.parametrize(("options", "argv"), FLAGS)
def test_flags(options: dict[str, ArgValue], argv: list[str]) -> None:
    """True is the bare flag, false leaves it out, a tuple follows one flag; order is kept and nothing is quoted."""
    assert flags(options) == argv


@pytest.mark.parametrize("name", ["max-model-len", "max_model_len", "--max-model-len", "--max_model_len"])
def test_one_spelling(name: str) -> None:
    """Underscores and leading dashes make no other option."""
    assert canonical(name) == "max-model-len"


def test_owned_options_are_named_with_their_remedy() -> None:
    """A sentence for each option the gateway sets itself, in whatever spelling, and none for others."""
    found = list(owned_objections({"served_model_name": "x", "dtype": "auto"}, {"served-model-name": "do that"}))
    assert found == [Objection(("args", "served_model_name"), "is set by the gateway itself", "do that")]
