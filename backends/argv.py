"""Options and arguments as a configuration writes them -> flags as a command line takes them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping

from backends.adapter import Objection
from backends.options import Option, Options
from backends.settings import ArgValue, BackendSettings, OptionValue


def flags(args: Mapping[str, ArgValue], short: frozenset[str] = frozenset()) -> list[str]:
    """``{"max-model-len": 4096, "enforce-eager": True, "x": False}`` -> ``--max-model-len 4096 --enforce-eager``.

    *short*: flags the engine knows with one dash, whatever their length, as llama.cpp its ``-ngl``.
    """
    argv: list[str] = []
    for name, value in args.items():
        if value is False:
            continue
        bare = name.lstrip("-")
        argv.append(f"-{bare}" if bare in short else f"--{bare}")
        if value is True:
            continue
        argv += [str(item) for item in value] if isinstance(value, tuple) else [str(value)]
    return argv


def option_flags(table: Options, given: Mapping[str, OptionValue]) -> list[str]:
    """The flags of the options *given*, in the table's order. One that is not given adds nothing."""
    argv: list[str] = []
    for option in table:
        if option.name in given and option.flag:
            argv += _flags_of(option, given[option.name])
    return argv


def _flags_of(option: Option, value: OptionValue) -> list[str]:
    flag = f"--{option.flag}"
    if option.words is not None:
        return [flag, option.words[0] if value else option.words[1]]
    if value is True:
        return [flag]
    if value is False:
        return [f"--{option.off}"] if option.off else []
    return [flag, str(value), *(f"--{name}" for name in option.brings)]


def canonical(name: str) -> str:
    """A flag's one spelling: engines take ``max_model_len`` for ``--max-model-len``."""
    return name.lstrip("-").replace("_", "-")


def says(args: Iterable[str], flag: str) -> bool:
    """Whether *args* say something of *flag*, in whatever spelling."""
    return any(canonical(name) == flag for name in args)


def owned_objections(args: Mapping[str, ArgValue], owned: Mapping[str, str]) -> Iterable[Objection]:
    """An Objection to each flag that the gateway sets itself. *owned*: flag -> what to do instead."""
    for name in args:
        instead = owned.get(canonical(name))
        if instead is not None:
            yield Objection(("args", name), "is set by the gateway itself", instead)


def clashes(table: Options, given: Iterable[str], args: Iterable[str]) -> Iterator[Objection]:
    """An Objection to each of *args* that says what an option among *given* says too."""
    names = frozenset(given)
    said = {flag: option.name for option in table if option.name in names for flag in _spellings(option)}
    for arg in args:
        name = said.get(canonical(arg))
        if name is not None:
            yield Objection(("args", arg), f"says the same as options.{name}", "keep one of them")


def _spellings(option: Option) -> Iterator[str]:
    """Every flag that says the same as *option* does."""
    yield from (canonical(flag) for flag in (option.flag, option.off, *option.also, *option.brings) if flag)


def number_said(table: Options, backend: BackendSettings, *flags: str) -> float | None:
    """The number that *backend* gives for one of *flags*, below options or below args; None without one."""
    found = None
    for option in table:
        if option.flag in flags and option.name in backend.options:
            found = backend.options[option.name]
    said = [value for name, value in backend.args.items() if canonical(name) in flags]
    for value in (found, *said):
        if isinstance(value, str | int | float) and not isinstance(value, bool):
            with contextlib.suppress(ValueError):
                return float(value)
    return None
