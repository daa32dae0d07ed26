"""The configuration file: YAML text to one frozen ``Config``, or every problem in it with its line and its remedy.

Four steps, each of which can refuse: *read* bytes to text, *compose* text to YAML nodes, *plain* nodes to values (here
variables are expanded, so that no value can inject YAML, and every place gets its line), *validate* values to
``Config``. The second and third are ``gateway.yaml_document``. The first two stop at the first problem; the last two
report all of theirs together.

What a problem may show: keys, and values as they are typed in the file. Never what a variable expands to, and never
anything typed where secrets are kept.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic.json_schema import GenerateJsonSchema
from pydantic_core import ErrorDetails

from backends.adapter import Adapter
from backends.engines import ADAPTERS
from gateway.config import Config
from gateway.config_values import REFUSED, Loc, Origin, nearest, place, quoted
from gateway.engine_options import options_schema
from gateway.yaml_document import Document, Problem, Spot, Unusable, compose

FILE_LIMIT_BYTES = 1024 * 1024


class ConfigError(Exception):
    """The file is unusable. ``str()`` is one line for each problem, in the order of the file."""

    def __init__(self, path: Path, problems: tuple[Problem, ...]) -> None:
        self.path = path
        self.problems = tuple(sorted(problems, key=lambda problem: (problem.line, problem.column)))
        super().__init__(path, self.problems)

    def __str__(self) -> str:
        return "\n".join(self._line(problem) for problem in self.problems)

    def _line(self, problem: Problem) -> str:
        # a file name that is no UTF-8 must not break the print that tells of it
        name = str(self.path).encode("utf-8", "backslashreplace").decode()
        spot = f"{name}:{problem.line}" if problem.line else name
        text = f"{problem.where}: {problem.message}" if problem.where else problem.message
        return f"{spot}: {text}; {problem.remedy}" if problem.remedy else f"{spot}: {text}"


@dataclass(frozen=True, slots=True)
class ConfigFile:
    """A configuration and the lines its values stand on, for problems found only after loading."""

    path: Path
    config: Config
    lines: Mapping[Loc, int]

    def complaint(self, loc: Loc, message: str, remedy: str = "") -> str:
        """One line as ConfigError writes it: file, line of *loc* or of what holds it, message, remedy."""
        line = next((self.lines[loc[:end]] for end in range(len(loc), 0, -1) if loc[:end] in self.lines), 0)
        return str(ConfigError(self.path, (Problem(line, 1, place(loc), message, remedy),)))


def load_config(path: Path, environ: Mapping[str, str]) -> Config:
    """The configuration alone; see `load_config_file`."""
    return load_config_file(path, environ).config


def load_config_file(path: Path, environ: Mapping[str, str]) -> ConfigFile:
    """Returns the configuration in the file at *path*, with *environ* for its ``${NAME}``, ``~`` and XDG folders.

    Reads that one file (at most 1 MiB) and nothing else. Raises ConfigError with every problem found.
    """
    try:
        tree = compose(_read(path))
        if tree is None:
            raise Unusable(Problem(0, 0, "", "the file is empty", "start from examples/unigate.yaml"))
        document = Document(environ)
        values = document.plain(tree, ())
    except Unusable as exc:
        raise ConfigError(path, (exc.problem,)) from None
    config, problems = _validate(values, document, Origin(path.absolute().parent, environ))
    if config is None or problems:
        raise ConfigError(path, problems)
    return ConfigFile(path, config, {loc: spot.line for loc, spot in document.spots.items()})


# -- bytes to text ----------------------------------------------------------------------------------------------------


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            content = file.read(FILE_LIMIT_BYTES + 1)
    except OSError as exc:
        raise Unusable(_unreadable(exc)) from None
    if len(content) > FILE_LIMIT_BYTES:
        raise Unusable(Problem(0, 0, "", "the file is larger than 1 MiB", "name the configuration file, not weights"))
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as exc:
        line = content.count(b"\n", 0, exc.start) + 1
        raise Unusable(Problem(line, 1, "", "is not UTF-8 text", "save the file with the encoding UTF-8")) from None


def _unreadable(exc: OSError) -> Problem:
    if isinstance(exc, FileNotFoundError):
        return Problem(0, 0, "", "no such file", "copy examples/unigate.yaml, or name another file with -c")
    if isinstance(exc, IsADirectoryError):
        return Problem(0, 0, "", "is a folder", "name the configuration file in it")
    if isinstance(exc, PermissionError):
        return Problem(0, 0, "", "may not be read by this user", "change its owner or its mode")
    return Problem(0, 0, "", f"cannot be read: {exc.strerror or type(exc).__name__}", "check the path")


# -- values to Config -------------------------------------------------------------------------------------------------


def _validate(values: object, document: Document, origin: Origin) -> tuple[Config | None, tuple[Problem, ...]]:
    if not isinstance(values, dict):
        remedy = 'write "models:" and what belongs to it on the lines below; see examples/unigate.yaml'
        return None, (Problem(1, 1, "", 'must be a mapping of "key: value" lines', remedy),)
    # as in compose files: a place for anchors
    values = {key: value for key, value in values.items() if not key.startswith("x-")}
    config, errors = None, []
    try:
        config = Config.model_validate(values, context=origin)
    except ValidationError as exc:
        errors = exc.errors(include_url=False)
    told = (_problem(error, document) for error in errors if not _is_broken(error["loc"], document.broken))
    return config, (*document.problems, *told)


def _is_broken(loc: Loc, broken: set[Loc]) -> bool:
    return any(loc[:end] in broken for end in range(1, len(loc) + 1))


def _problem(error: ErrorDetails, document: Document) -> Problem:
    loc = error["loc"]
    spot = document.nearest_spot(loc)
    if error["type"] == REFUSED:
        message, remedy = _refused(error["ctx"], document)
    else:
        message, remedy = _sentence(error, spot if loc in document.spots else None)
    return Problem(spot.line, spot.column, document.label(loc), message, remedy)


def _refused(context: Mapping[str, Any], document: Document) -> tuple[str, str]:
    message: str = context["message"]
    if other := context["other"]:
        message += f" (line {document.nearest_spot(other).line})"
    return message, context["remedy"]


_WANTED: Mapping[str, Callable[[Mapping[str, Any]], str]] = {
    "bool": lambda ctx: "must be true or false",
    "int": lambda ctx: "must be a whole number",
    "float": lambda ctx: "must be a number",
    "finite_number": lambda ctx: "must be a finite number",
    "string": lambda ctx: "must be text",
    "tuple": lambda ctx: "must be a list",
    "dict": lambda ctx: 'must be a mapping of "key: value" lines',
    "model": lambda ctx: 'must be a mapping of "key: value" lines',
    "literal_error": lambda ctx: f"must be {_either(_choices(ctx))}",
    "greater_than_equal": lambda ctx: f"must be at least {_figure(ctx['ge'])}",
    "greater_than": lambda ctx: f"must be more than {ctx['gt']:g}",
    "less_than_equal": lambda ctx: f"must be at most {_figure(ctx['le'])}",
}
"""What pydantic's error types mean to people, by the type or by its first word (int_parsing, int_type, ...)."""


def _figure(bound: float) -> str:
    return f"{int(bound):,}" if bound == int(bound) else f"{bound:,}"


def _sentence(error: ErrorDetails, spot: Spot | None) -> tuple[str, str]:
    kind = error["type"]
    wanted = _WANTED.get(kind) or _WANTED.get(kind.partition("_")[0])
    message = wanted(error.get("ctx", {})) if wanted else "is not a value that this key takes"
    if _is_secret(error["loc"]):
        return message, "put it in quotes" if kind == "string_type" else ""
    shown = _shown(spot, kind, error["input"]) if spot and wanted else ""
    return f"{message}, not {shown}" if shown else message, _remedy(error, spot)


def _either(choices: list[str]) -> str:
    *others, last = choices
    return f"{', '.join(others)} or {last}" if others else last


def _choices(context: Mapping[str, Any]) -> list[str]:
    """The choices as they are written in the file: texts in quotes, numbers without."""
    return [quoted(text) if text else number for text, number in _CHOICE.findall(context.get("expected", ""))]


_CHOICE = re.compile(r"'([^']*)'|(?<![\w'])(-?\d+)(?![\w'])")


def _is_secret(loc: Loc) -> bool:
    return loc[:2] == ("gateway", "keys") or "env" in loc[2:3] or "api_key" in loc[2:3]


def _shown(spot: Spot, kind: str, value: object) -> str:
    """The value as typed in the file: never what a variable expands to, and no more of it than a glance takes."""
    if spot.variables:
        return f"the value of {' and '.join(f'${{{name}}}' for name in spot.variables)}"
    if spot.text is None:
        return "a list" if isinstance(value, list) else "a mapping"
    if isinstance(value, str):
        if kind.startswith(("tuple", "dict", "model")):
            # a whole command line may stand here
            return "text"
        return quoted(value) if len(value) <= 60 else "this text"
    return f"{spot.text} (to YAML {str(value).lower()})" if isinstance(value, bool) else spot.text[:60] or "nothing"


def _remedy(error: ErrorDetails, spot: Spot | None) -> str:
    kind, value = error["type"], error["input"]
    if kind == "string_type" and spot and spot.text is not None:
        return f'quote it: "{spot.text}"' if spot.text else 'write "" for empty text'
    if kind == "literal_error" and spot and not spot.variables:
        near = nearest(str(spot.text), [choice.strip('"') for choice in _choices(error.get("ctx", {}))])
        return f"did you mean {quoted(near)}?" if near else ""
    if kind == "tuple_type" and isinstance(value, str):
        return "write it as a list: [one, two]"
    last = str(error["loc"][-1]) if error["loc"] else ""
    if kind.startswith(("int_", "float_")):
        return "it is in seconds" if last.endswith("_s") else "it is in bytes" if last.endswith("_bytes") else ""
    return ""


# -- the published schema ---------------------------------------------------------------------------------------------


class _Untitled(GenerateJsonSchema):
    """Leaves out the titles pydantic makes of names: they only repeat them."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False


_VARIABLE = {"type": "string", "pattern": r"\$\{", "description": "A value from the environment: ${NAME}."}


def json_schema() -> dict[str, Any]:
    """The JSON schema (draft 2020-12) of the file as it is written: variables may stand for numbers and choices."""
    schema = Config.model_json_schema(by_alias=True, schema_generator=_Untitled)
    schema["$defs"] |= {_options_name(engine): options_schema(adapter.options) for engine, adapter in _with_options()}
    for section in (schema, *schema["$defs"].values()):
        section.pop("title", None)
        required = section.get("required", ())
        for name, value in section["properties"].items():
            section["properties"][name] = _as_written(value, is_required=name in required)
    schema["$defs"]["ModelConfig"]["allOf"] = [_options_of(engine) for engine, _ in _with_options()]
    schema["$defs"]["Variable"] = _VARIABLE
    schema["$defs"]["EngineConfig"]["type"] = ["object", "null"]
    schema["patternProperties"] = {"^x-": {"description": "Ignored: a place for anchors."}}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def _with_options() -> Iterator[tuple[str, Adapter]]:
    return ((engine, adapter) for engine, adapter in ADAPTERS.items() if adapter.options)


def _options_name(engine: str) -> str:
    return f"{engine.capitalize()}Options"


def _options_of(engine: str) -> dict[str, Any]:
    """That a model of *engine* takes the options of that engine."""
    options = {"anyOf": [{"$ref": f"#/$defs/{_options_name(engine)}"}, {"type": "null"}]}
    is_its_model = {"properties": {"engine": {"const": engine}}, "required": ["engine"]}
    return {"if": is_its_model, "then": {"properties": {"options": options}}}


def schema_text() -> str:
    """The schema as ``gateway/config_schema.json`` holds it."""
    return json.dumps(json_schema(), indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def _as_written(value: dict[str, Any], *, is_required: bool) -> dict[str, Any]:
    """A key's schema with what the reader also takes: a variable in place of a scalar, and nothing at all."""
    notes: dict[str, Any] = {key: value[key] for key in ("description", "default") if key in value}
    kinds = value.get("anyOf") or [{key: item for key, item in value.items() if key not in notes}]
    kinds = [kind for kind in kinds if kind != {"type": "null"}]
    if any("enum" in kind or kind.get("type") in ("integer", "number", "boolean") for kind in kinds):
        kinds = [*kinds, {"$ref": "#/$defs/Variable"}]
    if not is_required:
        kinds = [*kinds, {"type": "null"}]
    return {**notes, "anyOf": kinds} if len(kinds) > 1 else {**notes, **kinds[0]}
