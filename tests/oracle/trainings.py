"""What LLaMA-Factory's and XTuner's own code trains with, beside our Jinja: `python -m tests.oracle.trainings`.

--llamafactory, --xtuner: folders that hold the packages, unpacked (`pip download --no-deps llamafactory==0.9.5
xtuner==0.2.0`, then unzip). Their template code runs here, with stubs in place of what else it imports; nothing of it
is in this repository. Of each template, every way of thinking, and a tokenizer with and without BOS, each conversation
that a training has is rendered both ways. LLaMA-Factory's Modelfiles are compared too: as our Jinja, and as Go is run.
"""

from __future__ import annotations

import argparse
import copy
import enum
import importlib
import sys
import types
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from chat_templates.battery import CASES, Case
from chat_templates.conversation import Conversation
from chat_templates.derivation import core
from chat_templates.rendering import Renderer
from chat_templates.sources import llamafactory, xtuner
from chat_templates.sources.found import SourceUnreadable
from chat_templates.sources.go_modelfile import found_in
from chat_templates.sources.go_parsing import parse
from chat_templates.sources.llamafactory import Training, read_llamafactory
from chat_templates.sources.modelfile_parsing import parse_modelfile
from chat_templates.sources.xtuner import read_xtuner
from tests.oracle.go_running import chat_text

EOS = "</s>"


@dataclass(slots=True)
class Findings:
    """compared: renderings. templates: that were equal. different: what was not. refused: what is not read, and why."""

    compared: int = 0
    templates: int = 0
    different: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)


def training_cases(*, with_thoughts: bool) -> list[Case]:
    """The conversations of the battery that a training has: a system message or none, then user and assistant in turn.

    An empty system message is the default one to a training; an inline thought is text, or cut *with_thoughts*.
    """
    cases = {case.name: case for case in (*core(), *CASES)}
    return [case for case in cases.values() if _is_training(case.conversation, with_thoughts)]


def _is_training(conversation: Conversation, with_thoughts: bool) -> bool:
    messages = list(conversation.messages)
    if conversation.tools is not None or not all(
        set(message) == {"role", "content"} and isinstance(message["content"], str) for message in messages
    ):
        return False
    if messages[0]["role"] == "system":
        messages.pop(0)
    roles = [message["role"] for message in messages]
    in_turn = [("user", "assistant")[turn % 2] for turn in range(len(roles))]
    has_thoughts = any("<think>" in message["content"] for message in messages[1::2])
    return roles == in_turn and len(roles) % 2 == 1 and (with_thoughts or not has_thoughts)


class Tokenizer:
    """One that does not tokenize: its ids are the texts themselves."""

    def __init__(self, bos: str | None, eos: str | None) -> None:
        self.bos_token = self.bos_token_id = bos
        self.eos_token = self.eos_token_id = eos

    def encode(self, text: str, add_special_tokens: bool = False) -> list[str]:
        return [text]

    def convert_tokens_to_ids(self, token: str) -> str:
        return token

    def convert_ids_to_tokens(self, token: str) -> str:
        return token


# --- LLaMA-Factory


def llamafactory_code(folder: Path) -> types.ModuleType:
    """Its ``data/template.py`` and ``data/formatter.py``, imported with nothing of torch or datasets around them."""

    class Quiet:
        def __getattr__(self, name: str) -> Callable[..., None]:
            return lambda *_, **__: None

    class Role(enum.StrEnum):
        USER = "user"
        ASSISTANT = "assistant"
        SYSTEM = "system"
        FUNCTION = "function"
        OBSERVATION = "observation"

    _package("llamafactory", folder / "llamafactory")
    _package("llamafactory.data", folder / "llamafactory" / "data")
    logging = _module("llamafactory.extras.logging", get_logger=lambda *_: Quiet())
    _package("llamafactory.extras", None).__dict__["logging"] = logging
    _module("llamafactory.data.mm_plugin", get_mm_plugin=lambda *_, **__: None)
    _module("llamafactory.data.data_utils", Role=Role, SLOTS=list)
    return importlib.import_module("llamafactory.data.template")


def _package(name: str, path: Path | None) -> types.ModuleType:
    module = _module(name)
    module.__path__ = [] if path is None else [str(path)]
    return module


def _module(name: str, **names: Any) -> types.ModuleType:
    module = types.ModuleType(name)
    module.__dict__.update(names)
    sys.modules[name] = module
    return module


def llamafactory_findings(folder: Path) -> Findings:
    """Every template of LLaMA-Factory's, as it encodes and as we render."""
    code = llamafactory_code(folder)
    found = Findings()
    names = llamafactory.template_names(folder)
    assert set(names) == set(code.TEMPLATES)
    for name in names:
        is_reasoning = isinstance(code.TEMPLATES[name], code.ReasoningTemplate)
        before = len(found.different)
        try:
            for training in _trainings(name, is_reasoning):
                _compare(found, code, training, read_llamafactory(training, folder), is_reasoning)
        except SourceUnreadable as refusal:
            found.refused.append(str(refusal))
            continue
        found.templates += len(found.different) == before
    return found


def _trainings(name: str, is_reasoning: bool) -> Iterator[Training]:
    if not is_reasoning:
        yield from (Training(name), Training(name, default_system="Be kind."))
        return
    for enable in (True, False, None):
        for preserve in (True, False):
            yield Training(name, None, enable, preserve)


def _compare(found: Findings, code: types.ModuleType, training: Training, source: Any, is_reasoning: bool) -> None:
    template = copy.copy(code.TEMPLATES[training.template])
    if training.default_system is not None:
        template.default_system = training.default_system
    if is_reasoning:
        template.enable_thinking, template.preserve_thinking = training.enable_thinking, training.preserve_thinking
    eos = template.stop_words[0] if template.replace_eos else EOS
    for bos in ("<s>", None):
        tokens = {"bos_token": bos, "eos_token": EOS, **source.special_tokens} if bos else {"eos_token": eos}
        renderer = Renderer(source.templates, special_tokens=tokens)
        for case in training_cases(with_thoughts=is_reasoning):
            wanted = _encoded(template, Tokenizer(bos, eos), case)
            _note(found, f"{training} bos={bos} {case.name}", wanted, renderer.render(case.conversation).text)


def _encoded(template: Any, tokenizer: Tokenizer, case: Case) -> str:
    messages, system = _split(case)
    prompt, _ = template.encode_oneturn(tokenizer, [*messages, {"role": "assistant", "content": ""}], system, None)
    return "".join(prompt)


def _split(case: Case) -> tuple[list[dict[str, Any]], str | None]:
    messages = [dict(message) for message in case.conversation.messages]
    return (messages[1:], messages[0]["content"]) if messages[0]["role"] == "system" else (messages, None)


def _note(found: Findings, where: str, wanted: str, said: str) -> None:
    found.compared += 1
    if wanted != said:
        found.different.append(f"{where}: {said!r:.300} instead of {wanted!r:.300}")


def modelfile_findings(folder: Path) -> Findings:
    """The Modelfiles that LLaMA-Factory's exports get: our Jinja of each, and its Go as it is run."""
    code = llamafactory_code(folder)
    found = Findings()
    for name, template in code.TEMPLATES.items():
        eos = template.stop_words[0] if template.replace_eos else EOS
        try:
            text = template.get_ollama_modelfile(Tokenizer("<s>", eos))
            said = parse_modelfile(text)
            source = found_in(said, name)
        except (SourceUnreadable, ValueError) as refusal:
            found.refused.append(f"{name}: {refusal}")
            continue
        before = len(found.different)
        nodes, renderer = parse(said.template), Renderer(source.templates)
        for case in training_cases(with_thoughts=True):
            wanted = chat_text(nodes, case.conversation.messages, said.system)
            _note(found, f"{name} {case.name}", wanted, renderer.render(case.conversation).text)
        found.templates += len(found.different) == before
    return found


# --- XTuner


def xtuner_findings(folder: Path) -> Findings:
    """Every entry of XTuner's PROMPT_TEMPLATE, as its own functions map and encode, and as we render."""

    class ConfigDict(dict[str, Any]):
        def __init__(self, **entries: Any) -> None:
            super().__init__({name: ConfigDict(**one) if type(one) is dict else one for name, one in entries.items()})

        __getattr__ = dict.__getitem__

    _module("mmengine")
    _module("mmengine.config", ConfigDict=ConfigDict)
    _module("mmengine.utils")
    _module("mmengine.utils.misc", get_object_from_string=None)
    templates = _executed(folder / "xtuner" / "utils" / "templates.py")["PROMPT_TEMPLATE"]
    map_turns = _executed(folder / "xtuner" / "dataset" / "map_fns" / "template_map_fn.py")["template_map_fn"]
    found = Findings()
    names = xtuner.template_names(folder)
    assert set(names) == set(templates)
    for name in names:
        before = len(found.different)
        try:
            source = read_xtuner(name, folder)
        except SourceUnreadable as refusal:
            found.refused.append(str(refusal))
            continue
        renderer = Renderer(source.templates, special_tokens={"bos_token": "<s>", "eos_token": EOS})
        for case in training_cases(with_thoughts=False):
            if "SYSTEM" not in templates[name] and case.conversation.messages[0]["role"] == "system":
                continue
            wanted = _xtuner_encoded(map_turns, templates[name], case)
            _note(found, f"{name} {case.name}", wanted, renderer.render(case.conversation).text)
        found.templates += len(found.different) == before
    return found


def _executed(path: Path) -> dict[str, Any]:
    names: dict[str, Any] = {}
    exec(compile(path.read_text(encoding="utf-8"), str(path), "exec"), names)
    return names


def _xtuner_encoded(map_turns: Callable[..., Any], template: Mapping[str, Any], case: Case) -> str:
    """The input of the last turn and all before it; what ``encode_fn`` puts together (dataset/utils.py, 0.2.0)."""
    messages, system = _split(case)
    turns = [
        {"input": user["content"], "output": answer["content"]}
        for user, answer in zip(messages[::2], [*messages[1::2], {"content": ""}], strict=True)
    ]
    turns[0]["system"] = system or ""
    mapped = map_turns({"conversation": turns}, template)["conversation"]
    written, needs_bos = "", True
    for number, turn in enumerate(mapped):
        written += ("<s>" if needs_bos else "") + turn["input"]
        if number < len(mapped) - 1:
            needs_bos = turn["need_eos_token"]
            written += turn["output"] + (EOS if needs_bos else "") + turn["sep"]
    return written


def main() -> int:
    """Print what was compared; 1 where something differs."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--llamafactory", type=Path, metavar="FOLDER")
    options.add_argument("--xtuner", type=Path, metavar="FOLDER")
    chosen = options.parse_args()
    found = {}
    if chosen.llamafactory:
        found["LLaMA-Factory"] = llamafactory_findings(chosen.llamafactory)
        found["its Modelfiles"] = modelfile_findings(chosen.llamafactory)
    if chosen.xtuner:
        found["XTuner"] = xtuner_findings(chosen.xtuner)
    for name, one in found.items():
        for line in [*one.different[:20], *(f"refused: {reason}" for reason in one.refused)]:
            print(line)
        print(
            f"{name}: {one.templates} templates equal, {len(one.refused)} refused; {one.compared} renderings,"
            f" {len(one.different)} different"
        )
    return 1 if any(one.different for one in found.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
