"""The catalog beside its references: `python -m tests.oracle.catalog [--llamafactory FOLDER] [--fastchat FOLDER]`.

Every case of the battery within a template's features, with the generation prompt, without it, and continued, and with
variables set and unset, is rendered by the catalog's template and by the published one that it is compared with. Two
have no published one: they are compared with the code of LLaMA-Factory (0.9.5) and of FastChat (`pip download --no-deps
fschat==0.2.36`), where a folder is given that holds the package, on the conversations that a training has.
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from chat_templates.battery import BATTERY, Case
from chat_templates.catalog.index import ENTRIES, Entry, read_entry
from chat_templates.conversation import ConversationInvalid, Json
from chat_templates.rendering import DEFAULT, Renderer, TemplateBroken, TemplateRefused
from chat_templates.sources.llamafactory import Training, read_llamafactory
from tests.oracle.reference import NOW, SPECIAL_TOKENS, TEMPLATES
from tests.oracle.trainings import training_cases

VARIANTS = (".closed", ".continued")
VARIABLES: tuple[Mapping[str, Json], ...] = (
    {}, {"enable_thinking": True}, {"enable_thinking": False}, {"date_string": "1 Jan 2030"},
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Row:
    """One template: how many renderings were compared and equal, and which cases were not, without variants."""

    name: str
    entry: Entry
    compared: int
    equal: int
    unlike: frozenset[str]


Prompt = Callable[[Case, Mapping[str, Json]], str | None]
"""A case's prompt with variables; None for a refusal or an error, which are one here."""


def prompts_of(text: str) -> Prompt:
    """What the template *text* says."""

    def prompt(case: Case, variables: Mapping[str, Json]) -> str | None:
        renderer = Renderer({DEFAULT: text}, variables=variables, special_tokens=SPECIAL_TOKENS, clock=NOW)
        try:
            return renderer.render(case.conversation).text
        except (TemplateRefused, TemplateBroken, ConversationInvalid):
            return None

    return prompt


def compared(name: str, reference: Prompt, cases: Sequence[Case]) -> Row:
    """The catalog's template *name* beside *reference*."""
    ours = prompts_of(read_entry(name).templates[DEFAULT])
    pairs = [(case, variables) for case in cases for variables in VARIABLES]
    unlike = [case.name for case, variables in pairs if ours(case, variables) != reference(case, variables)]
    return Row(name, ENTRIES[name], len(pairs), len(pairs) - len(unlike), frozenset(map(base_name, unlike)))


def base_name(case: str) -> str:
    """The name of a case without its variant."""
    for variant in VARIANTS:
        case = case.removesuffix(variant)
    return case


def published_rows() -> Iterator[Row]:
    """Every template that has a published reference."""
    texts = {path.stem: path.read_text(encoding="utf-8") for path in TEMPLATES}
    for name, entry in ENTRIES.items():
        if (text := texts.get(entry.reference)) is not None:
            cases = [case for case in BATTERY if case.features - {"prefill"} <= entry.features]
            yield compared(name, prompts_of(text), cases)


def llamafactory_rows(folder: Path) -> Iterator[Row]:
    """Templates that are compared with LLaMA-Factory's slots, which `tests.oracle.trainings` compares with its code."""
    for name, template in _of("llamafactory"):
        text = read_llamafactory(Training(template), folder).templates[DEFAULT]
        yield compared(name, prompts_of(text), training_cases(with_thoughts=True))


def fastchat_rows(folder: Path) -> Iterator[Row]:
    """Templates that are compared with FastChat's conversations."""
    spec = importlib.util.spec_from_file_location("fastchat_conversation", folder / "fastchat" / "conversation.py")
    assert spec is not None
    assert spec.loader is not None
    code = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = code
    spec.loader.exec_module(code)

    def says(template: str, case: Case, variables: Mapping[str, Json]) -> str:
        made = code.get_conv_template(template)
        made.sep2 = SPECIAL_TOKENS["eos_token"]
        messages = list(case.conversation.messages)
        if messages[0]["role"] == "system":
            made.set_system_message(messages.pop(0)["content"])
        for message in messages:
            made.append_message(made.roles[message["role"] == "assistant"], message["content"])
        made.append_message(made.roles[1], None)
        prompt: str = made.get_prompt()
        return prompt

    # an empty message is none to FastChat
    cases = [
        case
        for case in training_cases(with_thoughts=True)
        if all(message["content"] for message in case.conversation.messages)
    ]
    for name, template in _of("fastchat"):
        yield compared(name, functools.partial(says, template), cases)


def _of(kind: str) -> Iterator[tuple[str, str]]:
    for name, entry in ENTRIES.items():
        found, _, template = entry.reference.partition(":")
        if found == kind and template:
            yield name, template


def table(rows: Sequence[Row]) -> Iterator[str]:
    """The rows, and below them why templates and references differ."""
    yield f"{'template':22}{'reference':44}{'cases':>6}{'equal':>6}  unlike"
    for row in rows:
        unlike = ", ".join(sorted(row.unlike)) or "-"
        yield f"{row.name:22}{row.entry.reference:44}{row.compared:6}{row.equal:6}  {unlike}"
    yield ""
    for reason in sorted({reason for row in rows for reason in row.entry.unlike.values()}):
        cases = sorted({case for row in rows for case, why in row.entry.unlike.items() if why == reason})
        yield f"{', '.join(cases)}: {reason}"


def main() -> int:
    """Print the table; 1 where a template differs in a case that its entry does not name, or names one in vain."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--llamafactory", type=Path, metavar="FOLDER")
    options.add_argument("--fastchat", type=Path, metavar="FOLDER")
    chosen = options.parse_args()
    rows = [
        *published_rows(),
        *(llamafactory_rows(chosen.llamafactory) if chosen.llamafactory else ()),
        *(fastchat_rows(chosen.fastchat) if chosen.fastchat else ()),
    ]
    for line in table(rows):
        print(line)
    wrong = [row.name for row in rows if row.unlike != row.entry.unlike.keys()]
    if wrong:
        print(f"\nnot as the index says: {', '.join(wrong)}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
