"""`unigate template export`: a template in the form an engine takes, or why it cannot be had."""

from __future__ import annotations

import asyncio
import json
import sys
from collections import Counter
from collections.abc import Mapping
from datetime import datetime
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, cast

import typer
from rich.markup import escape

from backends.render_pool import RenderChildFailed, RenderPool, TemplateStopped
from chat_templates.battery import FEATURES, Feature
from chat_templates.contract_file import ContractInvalid, read_contract, tokenizer_folder
from chat_templates.conversation import Conversation, ConversationInvalid
from chat_templates.derivation import CARRIED
from chat_templates.exporting import EXPORTS, Export, Order
from chat_templates.forms.gguf_file import special_tokens as gguf_special_tokens
from chat_templates.forms.ignored import is_gguf
from chat_templates.model_folder import (
    DEFAULT,
    TOKENIZER_FILE,
    ModelFolderUnreadable,
    read_special_tokens,
    read_templates,
)
from chat_templates.parsing import TemplateUnreadable, read_template
from chat_templates.refusals import ACCEPTABLE, CannotDerive, Refusal, Unwritable
from chat_templates.rendering import Rendered, Renderer
from chat_templates.tokenizing import Tokenizer
from gateway import console
from gateway.command_line import PROBLEMS, UNUSABLE, JsonOption, fail
from gateway.template_cli import ContractOption, TemplateOption, Unusable, one_of, read_variables

Target = Enum("Target", {name: name for name in EXPORTS})  # type: ignore[misc] # its members are what EXPORTS has
Acceptable = Enum("Acceptable", {code: code for code in sorted(ACCEPTABLE)})  # type: ignore[misc] # as above
Need = Enum("Need", {name: name for name in FEATURES})  # type: ignore[misc] # as above

UNUSABLE_FILES = (
    Unusable, Unwritable, ModelFolderUnreadable, TemplateUnreadable, ConversationInvalid, ContractInvalid,
)  # fmt: skip


def export(
    to: Annotated[Target, typer.Option("--to", help="The form.")],
    template: TemplateOption = None,
    contract: ContractOption = None,
    weights: Annotated[
        Path | None, typer.Option("--weights", metavar="X", help="The model it is for: a folder, or a GGUF file.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="P", help="Where it is written. [default: printed]")
    ] = None,
    tokenizer: Annotated[
        Path | None,
        typer.Option("--tokenizer", metavar="DIR", help="A model's folder, for special tokens and the vocabulary."),
    ] = None,
    var: Annotated[
        list[str] | None,
        typer.Option("--var", metavar="NAME=VALUE", help="A variable that is pinned; JSON, or else text. Repeatable."),
    ] = None,
    now: Annotated[datetime | None, typer.Option("--now", help="The time the template is told for ever.")] = None,
    stop: Annotated[
        list[str] | None, typer.Option("--stop", metavar="TEXT", help="Where an answer ends. [default: what is found]")
    ] = None,
    add_bos: Annotated[
        bool | None, typer.Option("--add-bos/--no-add-bos", help="Whether the tokenizer adds the BOS. [default: found]")
    ] = None,
    needs: Annotated[
        list[Need] | None, typer.Option("--needs", help="What conversations will have, besides text. Repeatable.")
    ] = None,
    accept: Annotated[
        list[Acceptable] | None, typer.Option("--accept", help="A reason that is not to refuse. Repeatable.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Write a template in an engine's own form, compared by rendering; or refuse with a code and two renders."""
    with asyncio.Runner() as runner:
        pool = RenderPool()

        def render(renderer: Renderer, conversation: Conversation) -> Rendered:
            return runner.run(pool.render(renderer, conversation))

        try:
            source = one_of(template, contract)
            chosen = read_variables(var or ())
            if contract is None:
                loaded = None if tokenizer is None else Tokenizer.read(tokenizer)
                tokens = _special_tokens(source, weights, loaded)
                renderer = Renderer(_templates(source), variables=chosen, special_tokens=tokens, clock=now)
            else:
                renderer, loaded, stop = _contracted(contract, chosen, tokenizer, now, stop)
            order = Order(
                renderer,
                render,
                loaded,
                weights,
                out,
                add_bos,
                stop or (),
                CARRIED | {cast(Feature, need.value) for need in needs or ()},
                {code.value for code in accept or ()},
            )
            made = EXPORTS[to.value](order)
            _deliver(made, out, as_json)
        except CannotDerive as problem:
            _tell(problem.refusal, as_json)
            raise typer.Exit(PROBLEMS) from problem
        except TemplateStopped as problem:
            fail(f"{template or contract}: was stopped: {problem}")
        except RenderChildFailed as problem:
            fail(str(problem))
        except UNUSABLE_FILES as problem:
            fail(str(problem), UNUSABLE)
        except OSError as problem:
            fail(f"{problem.filename or out}: {problem.strerror}", UNUSABLE)
        finally:
            runner.run(pool.close())


def _contracted(
    path: Path, variables: Mapping[str, Any], tokenizer: Path | None, now: datetime | None, stops: list[str] | None
) -> tuple[Renderer, Tokenizer | None, list[str]]:
    """Of the contract in *path*: its renderer, its tokenizer, and the texts at which answers end. Raises Unusable."""
    contract = read_contract(path)
    if variables or now is not None:
        raise Unusable("--contract: it says itself what is pinned and what the clock tells; leave out --var and --now")
    folder = tokenizer or tokenizer_folder(path)
    loaded = None if folder is None else Tokenizer.read(folder)
    if loaded is not None and contract.tokenizer.sha256 not in ("", loaded.sha256):
        raise Unusable(f"{folder}: is not the tokenizer of {path}: the SHA-256 of its {TOKENIZER_FILE} differs")
    if contract.is_time_dependent:
        raise Unusable(f"{path}: its clock is live, and an exported template tells one date; import it with --clock")
    ends = [] if loaded is None else loaded.pieces(contract.stop.token_ids)
    return contract.renderer(), loaded, stops or [*filter(None, ends), *contract.stop.strings]


def _templates(path: Path) -> Mapping[str, str]:
    if not path.is_dir():
        return {DEFAULT: read_template(path)}
    templates = read_templates(path)
    if not templates:
        raise Unusable(f"{path}: has no chat template; name a Jinja file")
    return templates


def _special_tokens(template: Path, weights: Path | None, loaded: Tokenizer | None) -> Mapping[str, str]:
    """Those of the tokenizer named, or else of the template's folder, or else of the weights."""
    if loaded is not None:
        return loaded.special_tokens
    if template.is_dir():
        return read_special_tokens(template)
    if weights is not None and weights.is_dir():
        return read_special_tokens(weights)
    return gguf_special_tokens(weights) if weights is not None and is_gguf(weights) else {}


def _deliver(made: Export, out: Path | None, as_json: bool) -> None:
    """Write or print *made*; what a person has to know of it goes to stderr."""
    if out is not None:
        if out.exists() and not (out.is_dir() and not any(out.iterdir())):
            raise Unusable(f"{out}: is there already; name another, or remove it")
        made.write(out)
    elif made.text is None:
        raise Unusable("--out is missing: this form is more than one can print")
    if as_json:
        report = {
            "out": None if out is None else str(out),
            "text": made.text if out is None else None,
            "usage": _usage(made, out),
            "notes": list(made.notes),
            "beyond": dict(made.beyond),
        }
        typer.echo(json.dumps(report, ensure_ascii=False))
        return
    if out is None:
        assert made.text is not None
        sys.stdout.buffer.write(made.text.encode("utf-8"))
        sys.stdout.flush()
    for line in [_usage(made, out), *made.notes, *_outside(made)]:
        console.stderr().print(f"[bold]-->[/] {escape(line)}")


def _usage(made: Export, out: Path | None) -> str:
    return made.usage.format(out=out or "FILE")


def _outside(made: Export) -> list[str]:
    """One line of what is not as the template says outside the core."""
    if not made.beyond:
        return []
    counts = Counter(made.beyond.values())
    told = [
        f"{said}: {', '.join(sorted(name for name, each in made.beyond.items() if each == said))}"
        for said in ("differs", "not refused", "not carried")
        if counts[said]
    ]
    return [f"compared: {counts['exact']} of {len(made.beyond)} conversations are exact", *told]


def _tell(refusal: Refusal, as_json: bool) -> None:
    if as_json:
        shown = {"code": refusal.code, "reason": refusal.sentence, "case": refusal.case}
        typer.echo(json.dumps({"refused": shown | dict(zip(("template", "form"), _renders(refusal), strict=True))}))
        return
    stderr = console.stderr()
    stderr.print(f"[bold red]refused:[/] {escape(str(refusal))}")
    if refusal.case is not None:
        stderr.print(escape(f"  case: {refusal.case}"))
    for name, text in refusal.pair():
        indented = text.replace("\n", "\n    ")
        stderr.print(escape(f"  {name}:\n    {indented}"))
    if refusal.code in ACCEPTABLE:
        stderr.print(f"  to export it nevertheless: --accept {refusal.code}")


def _renders(refusal: Refusal) -> tuple[str | None, str | None]:
    return refusal.template, refusal.form
