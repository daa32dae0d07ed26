"""What an engine's table of options means in the configuration: the check of each value, and the published schema."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, TypeAdapter, ValidationError
from pydantic_core import InitErrorDetails, PydanticKnownError

from backends.engines import ADAPTERS
from backends.options import Option, Options
from backends.settings import OptionValue
from gateway.config_values import Flag, Refusal, Word, again, freeze, number, refuse_all, suggest, whole

_EMPTY: Mapping[str, OptionValue] = freeze({})


def read_options(value: object, engine: str | None) -> Mapping[str, OptionValue]:
    """The options of a model of *engine*, each of its own type. An option without a value counts as not given.

    Without a known engine nothing is checked, because that has been refused already. Raises what pydantic reports.
    """
    if value is None:
        return _EMPTY
    if not isinstance(value, Mapping):
        raise PydanticKnownError("dict_type")
    if engine is None or engine not in ADAPTERS:
        return _EMPTY
    known = {option.name: option for option in ADAPTERS[engine].options}
    read: dict[str, OptionValue] = {}
    details: list[InitErrorDetails] = []
    for name, item in value.items():
        if name not in known:
            message = f"is no option of {engine} that unigate knows"
            details.append(Refusal((name,), message, _remedy(str(name), known)).as_details())
        elif item is not None:
            try:
                read[name] = _check(known[name]).validate_python(item)
            except ValidationError as error:
                details += [again(one, (name,)) for one in error.errors(include_url=False)]
    if details:
        raise refuse_all("options", details)
    return freeze(read)


def _remedy(name: str, known: Mapping[str, Option]) -> str:
    for option in known.values():
        if name.replace("_", "-") in (option.flag, *option.also):
            return f'did you mean "{option.name}"?'
    return f"{suggest(name, known)}; what the engine alone knows goes below args"


@cache
def _check(option: Option) -> TypeAdapter[Any]:
    return TypeAdapter(_kind(option))


def _kind(option: Option) -> Any:
    bounds = {"ge": option.least, "gt": option.above, "le": option.most}
    given = {name: bound for name, bound in bounds.items() if bound is not None}
    if option.kind == "switch":
        return Flag
    if option.kind == "whole":
        return whole(**given)
    if option.kind == "number":
        return number(**given)
    if option.kind == "choice":
        return Annotated[Literal[option.choices], BeforeValidator(_one_of(option.choices))]
    return Word


def _one_of(choices: tuple[str | int, ...]) -> Callable[[object], object]:
    def read(value: object) -> object:
        if isinstance(value, bool):
            # it would pass for 1
            raise PydanticKnownError("literal_error", {"expected": ", ".join(map(repr, choices))})
        # a number out of a variable is text
        return next((choice for choice in choices if isinstance(choice, int) and str(choice) == value), value)

    return read


def options_schema(table: Options) -> dict[str, Any]:
    """The JSON schema of one engine's options, each key as pydantic has it."""
    properties = {}
    for option in table:
        properties[option.name] = {**_check(option).json_schema(), "description": option.description}
    return {"type": "object", "additionalProperties": False, "properties": properties}
