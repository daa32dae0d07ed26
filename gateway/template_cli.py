"""`unigate template …`: what a chat template makes of a conversation."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.markup import escape

from backends.render_pool import RenderChildFailed, RenderPool, TemplateStopped
from chat_templates.canonical import prompt_of
from chat_templates.contract import Contract
from chat_templates.contract_file import ContractInvalid, read_contract, tokenizer_folder
from chat_templates.conversation import Conversation, ConversationInvalid
from chat_templates.messages import ruled
from chat_templates.model_folder import (
    DEFAULT,
    TOKENIZER_FILE,
    ModelFolderUnreadable,
    read_special_tokens,
    read_templates,
)
from chat_templates.parsing import TemplateUnreadable, read_template
from chat_templates.rendering import Rendered, Renderer, TemplateBroken, TemplateRefused
from chat_templates.tokenizing import TextUnencodable, Tokenizer
from gateway import console

PROBLEMS = 1
UNUSABLE = 2

template_cli = typer.Typer(help="About chat templates.", no_args_is_help=True)


TemplateOption = Annotated[
    Path | None, typer.Option("--template", metavar="F", help="The Jinja file, or a model's folder that has one.")
]
ContractOption = Annotated[
    Path | None, typer.Option("--contract", metavar="C", help="Instead of --template: a contract that import made.")
]


class Unusable(Exception):
    """A file or an option cannot be used; the message names it and says why."""


@template_cli.command(short_help="Print the prompt a template makes.")
def render(
    messages: Annotated[
        Path, typer.Option("--messages", metavar="M.json", help="A list of messages, or a chat request that has one.")
    ],
    template: TemplateOption = None,
    contract: ContractOption = None,
    tools: Annotated[Path | None, typer.Option("--tools", metavar="T.json", help="A list of tools.")] = None,
    var: Annotated[
        list[str] | None,
        typer.Option("--var", metavar="NAME=VALUE", help="A template variable; JSON, or else text. May be repeated."),
    ] = None,
    tokenizer: Annotated[
        Path | None,
        typer.Option(
            "--tokenizer", metavar="DIR", help="A model's folder: its special tokens are used, and ids are printed."
        ),
    ] = None,
    generation_prompt: Annotated[bool, typer.Option(help="End with the head of the answer to come.")] = True,
    continue_final: Annotated[
        bool, typer.Option("--continue", help="Leave the last message open, for the model to go on with.")
    ] = False,
    now: Annotated[
        datetime | None, typer.Option("--now", help="The time the template is told. [default: this machine's]")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Print the prompt a template makes of a conversation, exactly as transformers 5.23 does, and its ids."""
    try:
        source = one_of(template, contract)
        given_messages, given_tools = read_conversation(messages, tools)
        prompting = _of_template if contract is None else _of_contract
        asked = prompting(source, read_variables(var or ()), tokenizer, now)
    except (Unusable, ModelFolderUnreadable, TemplateUnreadable, ConversationInvalid, ContractInvalid) as problem:
        _fail(str(problem), UNUSABLE)
    conversation = Conversation(
        given_messages,
        given_tools,
        add_generation_prompt=generation_prompt and not continue_final,
        continue_final_message=continue_final,
    )
    rendered = _rendered(asked, conversation, source, messages)
    try:
        ids = None if asked.tokenizer is None else asked.tokenizer.encode(rendered.text)
        _print(rendered, ids, as_json)
    except (TextUnencodable, UnicodeEncodeError) as problem:
        _fail(f"{messages}: the prompt cannot be written: {problem}")


def one_of(template: Path | None, contract: Path | None) -> Path:
    """Whichever of the two is named. Raises Unusable where it is both or none."""
    if template is not None and contract is not None:
        raise Unusable("--template and --contract: name one of them; a contract has its template with it")
    if (source := template or contract) is None:
        raise Unusable("--template is missing: name a Jinja file or a model's folder, or a contract with --contract")
    return source


@dataclass(frozen=True, slots=True)
class _Asked:
    """What renders. contract: whose rules messages are put under first; None without."""

    renderer: Renderer
    tokenizer: Tokenizer | None
    contract: Contract | None = None

    def ruled(self, conversation: Conversation) -> Conversation:
        """*conversation* as the template is given it. Raises ConversationInvalid."""
        if self.contract is None:
            return conversation
        tokens = frozenset(self.contract.tokenizer.special_tokens.values())
        if self.tokenizer is not None:
            tokens |= self.tokenizer.control_tokens
        return ruled(self.contract.messages, conversation, tokens)

    def whole(self, rendered: Rendered) -> Rendered:
        """With the BOS, where the contract leaves that to the tokenizer."""
        if self.contract is None:
            return rendered
        return replace(rendered, text=prompt_of(self.contract, rendered.text, None).text)


def _of_template(template: Path, variables: Mapping[str, Any], tokenizer: Path | None, now: datetime | None) -> _Asked:
    loaded = None if tokenizer is None else Tokenizer.read(tokenizer)
    tokens = _special_tokens(template, loaded)
    return _Asked(Renderer(_templates(template), variables=variables, special_tokens=tokens, clock=now), loaded)


def _of_contract(path: Path, variables: Mapping[str, Any], tokenizer: Path | None, now: datetime | None) -> _Asked:
    contract = read_contract(path)
    if fixed := sorted(variables.keys() - set(contract.free)):
        free = ", ".join(contract.free) or "none"
        raise Unusable(f"--var {fixed[0]}: {path} does not leave it to requests; it leaves them: {free}")
    if now is not None and not contract.is_time_dependent:
        raise Unusable(f"--now: {path} has no live clock, so no prompt of it depends on the time")
    folder = tokenizer or tokenizer_folder(path)
    loaded = None if folder is None else Tokenizer.read(folder)
    if loaded is not None and contract.tokenizer.sha256 not in ("", loaded.sha256):
        raise Unusable(f"{folder}: is not the tokenizer of {path}: the SHA-256 of its {TOKENIZER_FILE} differs")
    renderer = contract.renderer()
    renderer = replace(renderer, variables={**renderer.variables, **variables}, clock=now or renderer.clock)
    return _Asked(renderer, loaded, contract)


def _templates(path: Path) -> Mapping[str, str]:
    if not path.is_dir():
        return {DEFAULT: read_template(path)}
    templates = read_templates(path)
    if not templates:
        raise Unusable(f"{path}: has no chat template; name a Jinja file")
    return templates


def _special_tokens(template: Path, loaded: Tokenizer | None) -> Mapping[str, str]:
    if loaded is not None:
        return loaded.special_tokens
    return read_special_tokens(template) if template.is_dir() else {}


def read_conversation(messages: Path, tools: Path | None) -> tuple[list[Any], list[Any] | None]:
    """The messages and the tools in the files. Raises Unusable."""
    found = _read_json(messages)
    found_tools = None
    if isinstance(found, dict) and "messages" in found:
        found, found_tools = found["messages"], found.get("tools")
    if tools is not None:
        found_tools = _read_json(tools)
    if not isinstance(found, list):
        raise Unusable(f"{messages}: is neither a list of messages nor an object with `messages`")
    if not isinstance(found_tools, list | None):
        raise Unusable(f"{tools or messages}: the tools are no list")
    return found, found_tools


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as problem:
        raise Unusable(f"{path}: {problem.strerror}") from problem
    except UnicodeDecodeError as problem:
        raise Unusable(f"{path}: is not UTF-8 text (byte {problem.start})") from problem
    except json.JSONDecodeError as problem:
        raise Unusable(f"{path}:{problem.lineno}:{problem.colno}: is no JSON: {problem.msg}") from problem
    except (RecursionError, ValueError) as problem:
        raise Unusable(f"{path}: is JSON beyond what can be read: {problem}") from problem


def read_variables(given: Sequence[str]) -> dict[str, Any]:
    """``NAME=VALUE`` each; a value that is no JSON is the text it is. Raises Unusable."""
    variables = {}
    for pair in given:
        name, equals, value = pair.partition("=")
        if not equals or not name.isidentifier():
            raise Unusable(f"--var {pair}: write NAME=VALUE, such as enable_thinking=false")
        try:
            variables[name] = json.loads(value)
        except ValueError:
            variables[name] = value
    return variables


def _rendered(asked: _Asked, conversation: Conversation, template: Path, messages: Path) -> Rendered:
    try:
        return asked.whole(asyncio.run(_render(asked.renderer, asked.ruled(conversation))))
    except TemplateRefused as problem:
        _fail(f"{template}: refuses this conversation: {problem}")
    except TemplateBroken as problem:
        where = f"{template}" if problem.line is None else f"{template}:{problem.line}"
        _fail(f"{where}: {problem.message}")
    except TemplateStopped as problem:
        _fail(f"{template}: was stopped: {problem}")
    except ConversationInvalid as problem:
        _fail(f"{messages}: {problem}")
    except RenderChildFailed as problem:
        _fail(str(problem))


async def _render(renderer: Renderer, conversation: Conversation) -> Rendered:
    async with RenderPool() as pool:
        return await pool.render(renderer, conversation)


def _print(rendered: Rendered, ids: list[int] | None, as_json: bool) -> None:
    """The text alone is written as it is, without a newline of ours, so that it can be compared byte by byte."""
    if as_json:
        shown: dict[str, Any] = {"text": rendered.text, "template": rendered.template}
        text = json.dumps(shown if ids is None else shown | {"ids": ids}) + "\n"
    elif ids is not None:
        text = f"{rendered.text}\n{len(ids)} ids: {' '.join(map(str, ids))}\n"
    else:
        text = rendered.text + ("\n" if sys.stdout.isatty() else "")
    sys.stdout.buffer.write(text.encode("utf-8"))
    sys.stdout.flush()


def _fail(message: str, code: int = PROBLEMS) -> NoReturn:
    console.stderr().print(f"[bold red]error:[/] {escape(message)}")
    raise typer.Exit(code)
