"""Options as a configuration writes them -> flags as a command line takes them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from backends.settings import ArgValue


def flags(options: Mapping[str, ArgValue]) -> list[str]:
    """``{"max-model-len": 4096, "enforce-eager": True, "x": False}`` -> ``--max-model-len 4096 --enforce-eager``."""
    argv: list[str] = []
    for name, value in options.items():
        if value is False:
            continue
        argv.append(f"--{name}")
        if value is True:
            continue
        argv += [str(item) for item in value] if isinstance(value, tuple) else [str(value)]
    return argv


def canonical(name: str) -> str:
    """An option's one spelling: engines take ``max_model_len`` for ``--max-model-len``."""
    return name.lstrip("-").replace("_", "-")


def owned_problems(options: Mapping[str, ArgValue], owned: Mapping[str, str], engine: str) -> Iterable[str]:
    """A sentence for each option that the gateway sets itself. *owned*: option -> what to write instead."""
    for name in options:
        instead = owned.get(canonical(name))
        if instead is not None:
            yield f"args.{name}: the gateway sets --{canonical(name)} of {engine} itself; {instead}"
