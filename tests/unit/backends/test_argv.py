"""Options and arguments as a configuration writes them -> flags."""

from __future__ import annotations

import pytest

from backends.adapter import Objection
from backends.argv import canonical, clashes, flags, option_flags, owned_objections
from backends.options import Option, Options
from backends.settings import ArgValue, OptionValue

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


TABLE: Options = (
    Option("width", "whole", "tensor-width", "", "", also=("tw",), brings=("enable-width",)),
    Option("eager", "switch", "eager", "", ""),
    Option("cache", "switch", "enable-cache", "", "", off="no-enable-cache"),
    Option("flash", "switch", "flash", "", "", words=("on", "off")),
    Option("sleep", "switch", "", "", ""),
)
OPTION_FLAGS: list[tuple[dict[str, OptionValue], list[str]]] = [
    ({}, []),
    ({"width": 2}, ["--tensor-width", "2", "--enable-width"]),
    ({"eager": True}, ["--eager"]),
    ({"eager": False}, []),
    ({"cache": True}, ["--enable-cache"]),
    ({"cache": False}, ["--no-enable-cache"]),
    ({"flash": True}, ["--flash", "on"]),
    ({"flash": False}, ["--flash", "off"]),
    ({"sleep": True}, []),
    ({"flash": True, "width": 0}, ["--tensor-width", "0", "--enable-width", "--flash", "on"]),
]


@pytest.mark.parametrize(("given", "argv"), OPTION_FLAGS)
def test_option_flags(given: dict[str, OptionValue], argv: list[str]) -> None:
    """What is given becomes its flag, in the table's order; what is not given becomes nothing."""
    assert option_flags(TABLE, given) == argv


@pytest.mark.parametrize("arg", ["tensor-width", "--tensor_width", "tw", "enable-width"])
def test_the_same_thing_twice(arg: str) -> None:
    """An argument that says what a given option says is told, in whatever spelling, naming both."""
    assert list(clashes(TABLE, ["width"], [arg])) == [
        Objection(("args", arg), "says the same as options.width", "keep one of them")
    ]


def test_different_things_do_not_clash() -> None:
    """An argument of an option that is not given, and one that no option knows, are the operator's to write."""
    assert list(clashes(TABLE, ["eager", "sleep"], ["tensor-width", "other", "no-enable-cache"])) == []
    assert [found.message for found in clashes(TABLE, ["cache"], ["no-enable-cache"])] == [
        "says the same as options.cache"
    ]
