"""`unigate template import | show | list | diff`: contracts, from what a fine-tune left behind."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from jinja2 import TemplateSyntaxError
from rich.markup import escape
from rich.table import Table

from backends.render_pool import RenderChildFailed, RenderPool, TemplateStopped
from chat_templates.agreement import Agreement, Voice, agree
from chat_templates.battery import CASES
from chat_templates.contract import LIVE, Contract
from chat_templates.contract_file import (
    NAME,
    SUFFIX,
    TOKENIZER_SUFFIX,
    ContractInvalid,
    contract_text,
    read_contract,
    tokenizer_folder,
    write_contract,
)
from chat_templates.conversation import Conversation
from chat_templates.importing import GENERATION_CONFIG, Clock, Imported, ImportRefused, Wishes, contract_of
from chat_templates.model_folder import (
    CONFIG_FILE,
    LEGACY_TOKENS_FILE,
    TOKENIZER_FILE,
    ModelFolderUnreadable,
    read_special_tokens,
)
from chat_templates.probing import Outcome, Render, outcome
from chat_templates.rendering import Rendered, Renderer
from chat_templates.sources.collecting import collect
from chat_templates.sources.found import Found, SourceUnreadable
from chat_templates.visible import around, parting, visible
from gateway import console
from gateway.command_line import PROBLEMS, UNUSABLE, JsonOption, fail, say
from gateway.template_cli import Unusable, read_variables

COPIED = (TOKENIZER_FILE, CONFIG_FILE, LEGACY_TOKENS_FILE)
"""What of a tokenizer goes beside its contract."""

PROBLEMS_OF_FILES = (
    Unusable, SourceUnreadable, ContractInvalid, ImportRefused, ModelFolderUnreadable, RenderChildFailed,
)  # fmt: skip


@contextlib.contextmanager
def rendering() -> Iterator[Render]:
    """Renders templates of others, in a child process. Raises TemplateStopped, RenderChildFailed."""
    with asyncio.Runner() as runner:
        pool = RenderPool()

        def render(renderer: Renderer, conversation: Conversation) -> Rendered:
            return runner.run(pool.render(renderer, conversation))

        try:
            yield render
        finally:
            runner.run(pool.close())


@contextlib.contextmanager
def _told() -> Iterator[None]:
    """What cannot be used ends the command with a sentence."""
    try:
        yield
    except PROBLEMS_OF_FILES as problem:
        fail(str(problem), UNUSABLE)
    except TemplateStopped as problem:
        fail(f"a template was stopped: {problem}")
    except TemplateSyntaxError as problem:
        fail(f"a template cannot be parsed: line {problem.lineno}: {problem.message}", UNUSABLE)
    except OSError as problem:
        fail(f"{problem.filename}: {problem.strerror}", UNUSABLE)


def import_(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCE...",
            help="What the fine-tune left: its folder, a GGUF or Jinja file, a Modelfile, LMDeploy's JSON, a training"
            " YAML of LLaMA-Factory; or llamafactory:NAME, xtuner:NAME, catalog:NAME.",
        ),
    ],
    winner: Annotated[
        str | None, typer.Option("--from", metavar="NAME", help="Whose word counts where the sources differ.")
    ] = None,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="Where the contract is written.")] = Path(),
    name: Annotated[
        str | None, typer.Option("--name", metavar="N", help="What it is called. [default: as the first source]")
    ] = None,
    var: Annotated[
        list[str] | None,
        typer.Option(
            "--var", metavar="NAME=VALUE", help="A variable no request may change. JSON, or text. Repeatable."
        ),
    ] = None,
    free: Annotated[
        list[str] | None, typer.Option("--free", metavar="NAME", help="A variable that requests may set. Repeatable.")
    ] = None,
    clock: Annotated[
        str | None, typer.Option("--clock", metavar="DATE|live", help="What a template that asks is told. [today]")
    ] = None,
    tokenizer: Annotated[
        Path | None, typer.Option("--tokenizer", metavar="DIR", help="Where the tokenizer is. [default: the sources]")
    ] = None,
    package: Annotated[
        Path | None,
        typer.Option("--package", metavar="DIR", help="Where LLaMA-Factory or XTuner is: its folder or environment."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a contract of that name.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Make a contract: one template for every engine. What the sources say is rendered and compared first."""
    with _told(), rendering() as render:
        found = collect(sources, package)
        wishes = Wishes(
            _name(name, sources[0]),
            read_variables(var or ()),
            tuple(free or ()),
            _read_clock(clock),
            tokenizer or _folder_with(TOKENIZER_FILE, sources),
            _folder_with(GENERATION_CONFIG, sources),
        )
        _check_winner(found, winner)
        tokens = {} if wishes.tokenizer is None else read_special_tokens(wishes.tokenizer)
        agreement = agree(found, render, tokens, winner, wishes.variables)
        if agreement.winner is None:
            _tell_disagreement(agreement, as_json)
            raise typer.Exit(PROBLEMS)
        made = contract_of(agreement.winner, wishes, render, datetime.now())
        path = _write(made.contract, wishes.tokenizer, out, force=force)
        _tell_made(made, agreement, path, as_json)


def _name(name: str | None, source: str) -> str:
    chosen = name or Path(source.partition(":")[2] or source).resolve().name.removesuffix(".jinja")
    if NAME.fullmatch(chosen) is None:
        raise Unusable(f"--name {chosen}: use letters, digits, '.', '_' and '-'")
    return chosen


def _read_clock(text: str | None) -> Clock | None:
    if text is None or text == LIVE:
        return LIVE if text == LIVE else None
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        raise Unusable(f"--clock {text}: write a date such as 2024-07-26, or live") from None


def _folder_with(file: str, sources: Sequence[str]) -> Path | None:
    folders = [path if path.is_dir() else path.parent for path in map(Path, sources) if path.exists()]
    return next((folder for folder in folders if (folder / file).is_file()), None)


def _check_winner(found: Sequence[Found], winner: str | None) -> None:
    names = [one.name for one in found]
    if winner is not None and winner not in names:
        raise Unusable(f"--from {winner}: there is no such source; there are {', '.join(names)}")


def _write(contract: Contract, tokenizer: Path | None, out: Path, *, force: bool) -> Path:
    path = out / f"{contract.name}{SUFFIX}"
    if path.exists() and not force:
        raise Unusable(f"{path}: is there already; --force replaces it, --name calls the new one otherwise")
    if tokenizer is not None:
        beside = out / f"{contract.name}{TOKENIZER_SUFFIX}"
        beside.mkdir(parents=True, exist_ok=True)
        for name in COPIED:
            if (tokenizer / name).is_file():
                shutil.copyfile(tokenizer / name, beside / name)
    return write_contract(contract, out)


def _tell_disagreement(agreement: Agreement, as_json: bool) -> None:
    names = [voice.found.name for voice in agreement.voices]
    if as_json:
        shown = [
            {
                "one": each.one.found.name,
                "other": each.other.found.name,
                "case": each.case,
                "differing": each.differing,
                "compared": each.compared,
                "prompts": [each.one.said[each.case].text, each.other.said[each.case].text],
            }
            for each in agreement.disagreements
        ]
        typer.echo(json.dumps({"refused": {"code": "T14", "sources": names, "disagreements": shown}}))
        return
    stderr = console.stderr()
    stderr.print("[bold red]refused:[/] T14: the sources disagree on what this model's prompt is")
    for voice in agreement.voices:
        stderr.print(escape(f"  {voice.found.name}: {voice.found.origin}{_given(voice)}"))
    for each in agreement.disagreements:
        for line in each.lines():
            stderr.print(escape(f"  {line}"))
    stderr.print(escape(f"  say which one the model was trained with: --from {' or '.join(names)}"))


def _given(voice: Voice) -> str:
    said = ", ".join(f"{name}={json.dumps(value)}" for name, value in voice.given.items())
    return f" ({said})" if said else ""


def _tell_made(made: Imported, agreement: Agreement, path: Path, as_json: bool) -> None:
    assert agreement.winner is not None
    contract = made.contract
    compared = [voice.found.name for voice in agreement.voices if voice is not agreement.winner]
    overruled = [f"{each.one.found.name} / {each.other.found.name}" for each in agreement.disagreements]
    if as_json:
        shown = {
            "file": str(path),
            "hash": contract.hash,
            "source": contract.source,
            "agrees_with": [] if overruled else compared,
            "overruled": overruled,
            "notes": list(made.notes),
        }
        typer.echo(json.dumps(shown, ensure_ascii=False))
        return
    typer.echo(path)
    lines = [f"contract {contract.hash[:12]}, the template of {contract.source} ({agreement.winner.found.origin})"]
    if compared and not overruled:
        lines.append(f"{', '.join(compared)} says the same, over {len(agreement.winner.said)} conversations")
    lines += [line for each in agreement.disagreements for line in ("overruled:", *each.lines())]
    for line in [*lines, *made.notes, f"to use it: models.<name>.template: {{contract: {path}}}"]:
        console.stderr().print(f"[bold]-->[/] {escape(line)}")


def show(
    contract: Annotated[Path, typer.Argument(metavar="CONTRACT", help="The file that an import wrote.")],
    as_json: JsonOption = False,
) -> None:
    """Print a contract: its hash, what is pinned, where answers end, and the prompt of a plain question."""
    with _told(), rendering() as render:
        made = read_contract(contract)
        prompt = outcome(render, made.renderer(), CASES[1].conversation)
        if as_json:
            typer.echo(json.dumps({"hash": made.hash, **_as_json(made), "example": prompt.text}, ensure_ascii=False))
            return
        out = console.stdout()
        out.print(f"[bold]{escape(made.name)}[/] {made.hash}")
        out.print(escape(contract_text(made).partition("name:")[2].partition("\n")[2]), end="")
        folder = tokenizer_folder(contract)
        out.print(escape(f"tokenizer beside it: {folder or 'none'}"))
        out.print("[bold]a prompt:[/]")
        out.print(escape("  " + visible(str(prompt)).replace("\n", "\n  ")))


def _as_json(contract: Contract) -> dict[str, Any]:
    made: dict[str, Any] = yaml.safe_load(contract_text(contract))
    return made


def list_(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Where to look, below it too.")] = Path(),
    as_json: JsonOption = False,
) -> None:
    """List the contracts in a folder."""
    with _told():
        if not folder.is_dir():
            raise Unusable(f"{folder}: is no folder")
        rows = [(path, _read_or_reason(path)) for path in sorted(folder.rglob(f"*{SUFFIX}"))]
    if as_json:
        typer.echo(json.dumps([_row_as_json(path, made) for path, made in rows], ensure_ascii=False))
        return
    if not rows:
        fail(f"{folder}: holds no contract; `unigate template import` makes one", PROBLEMS)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("name", "hash", "source", "pinned", "file"):
        table.add_column(column, overflow="fold")
    for path, made in rows:
        if isinstance(made, Contract):
            pinned = ", ".join(f"{name}={json.dumps(value)}" for name, value in made.pinned.items())
            table.add_row(*map(escape, (made.name, made.hash[:12], made.source, pinned or "-", str(path))))
        else:
            table.add_row("?", "[bold red]unusable[/]", escape(made.splitlines()[0]), "", escape(str(path)))
    console.stdout().print(table)


def _read_or_reason(path: Path) -> Contract | str:
    try:
        return read_contract(path)
    except ContractInvalid as problem:
        return str(problem)


def _row_as_json(path: Path, made: Contract | str) -> dict[str, Any]:
    if isinstance(made, str):
        return {"file": str(path), "problem": made}
    return {"file": str(path), "name": made.name, "hash": made.hash, "source": made.source}


@dataclass(frozen=True, slots=True)
class _Side:
    """One side of a comparison: what it is called, and what it says of each case."""

    name: str
    said: Mapping[str, Outcome]


def diff(
    one: Annotated[str, typer.Argument(metavar="A", help="A contract, or anything that import takes.")],
    other: Annotated[str, typer.Argument(metavar="B", help="The same.")],
    var: Annotated[
        list[str] | None, typer.Option("--var", metavar="NAME=VALUE", help="A variable for those that read it.")
    ] = None,
    package: Annotated[Path | None, typer.Option("--package", metavar="DIR", help="As for import.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Compare two over the battery; ends with 1 where any prompt differs."""
    with _told(), rendering() as render:
        variables = read_variables(var or ())
        sides = [_side(source, variables, package, render) for source in (one, other)]
    differing = [
        name for name, said in sides[0].said.items() if name in sides[1].said and said.text != sides[1].said[name].text
    ]
    compared = sides[0].said.keys() & sides[1].said.keys()
    if as_json:
        prompts = {name: [side.said[name].text for side in sides] for name in differing}
        typer.echo(json.dumps({"compared": len(compared), "differing": prompts}, ensure_ascii=False))
    elif not differing:
        typer.echo(f"{sides[0].name} and {sides[1].name} say the same of {len(compared)} conversations")
    else:
        _print_differences(sides, differing, len(compared))
    if differing:
        raise typer.Exit(PROBLEMS)


def _side(source: str, variables: Mapping[str, Any], package: Path | None, render: Render) -> _Side:
    if source.endswith(SUFFIX):
        contract = read_contract(Path(source))
        said = {case.name: outcome(render, contract.renderer(), case.conversation) for case in CASES}
        return _Side(contract.name, said)
    found = collect([source], package)
    folder = _folder_with(CONFIG_FILE, [source])
    tokens = read_special_tokens(folder) if folder is not None else {}
    agreement = agree(found, render, tokens, None, variables)
    voice = agreement.winner or agreement.voices[0]
    if agreement.winner is None:
        names = ", ".join(each.found.name for each in agreement.voices[1:])
        say(f"{source}: its sources disagree; {voice.found.name} is compared, {names} not (name a file to compare it)")
    return _Side(f"{source} ({voice.found.name})", voice.said)


def _print_differences(sides: Sequence[_Side], differing: Sequence[str], compared: int) -> None:
    out = console.stdout()
    out.print(escape(f"{len(differing)} of {compared} conversations differ"))
    for name in differing:
        said = [side.said[name] for side in sides]
        index = parting(*(each.text or "" for each in said))
        out.print(f"[bold]{escape(name)}[/]")
        for side, each in zip(sides, said, strict=True):
            text = around(each.text, index) if each.text is not None else str(each)
            out.print(escape(f"  {side.name}:\n    " + text.replace("\n", "\n    ")))
