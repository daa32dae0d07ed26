"""Options as a configuration writes them -> flags as a command line takes them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from backends.adapter import Objection
from backends.settings import ArgValue


def flags(options: Mapping[str, ArgValue], short: frozenset[str] = frozenset()) -> list[str]:
    """``{"max-model-len": 4096, "enforce-eager": True, "x": False}`` -> ``--max-model-len 4096 --enforce-eager``.

    *short*: options the engine knows with one dash, whatever their length, as llama.cpp its ``-ngl``.
    """
    argv: list[str] = []
    for name, value in options.items():
        if value is False:
            continue
        bare = name.lstrip("-")
        argv.append(f"-{bare}" if bare in short else f"--{bare}")
        if value is True:
            continue
        argv += [str(item) for item in value] if isinstance(value, tuple) else [str(value)]
    return argv


def canonical(name: str) -> str:
    """An option's one spelling: engines take ``max_model_len`` for ``--max-model-len``."""
    return name.lstrip("-").replace("_", "-")


def owned_objections(options: Mapping[str, ArgValue], owned: Mapping[str, str]) -> Iterable[Objection]:
    """An Objection to each option that the gateway sets itself. *owned*: option -> what to do instead."""
    for name in options:
        instead = owned.get(canonical(name))
        if instead is not None:
            yield Objection(("args", name), "is set by the gateway itself", instead)
