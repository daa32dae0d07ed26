"""LMDeploy's chat template JSON: its fields as Jinja, or the ``hf`` form, which points to a folder with a template.

Fields and meaning: ``ChatTemplateConfig`` and ``BaseChatTemplate.messages2prompt`` in lmdeploy/model.py (0.18.0). A
null is dropped there and becomes empty, so that there is a system block always. A last message of the assistant is left
open, for the model to go on with. Tools are passed over without a word there; the Jinja refuses them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from chat_templates.derivation import CARRIED
from chat_templates.forms.pinned_jinja import literal
from chat_templates.model_folder import ModelFolderUnreadable, read_templates
from chat_templates.rendering import DEFAULT
from chat_templates.sources.found import Found, SourceUnreadable, read_text

NAME = "lmdeploy"
TEXT_FIELDS = (
    "system", "meta_instruction", "eosys", "user", "eoh", "assistant", "eoa", "tool", "eotool", "separator",
)  # fmt: skip
FIELDS = frozenset({"model_name", "model_path", "capability", "stop_words", *TEXT_FIELDS})
BUILT_IN = frozenset(
    {
        "cogvlm", "vicuna", "llava-v1", "llama2", "codellama", "chatglm", "mistral", "mixtral", "internvl-zh",
        "deepseek-vl", "deepseek-vl2", "deepseek-v4", "deepseek-v32", "deepseek-v3.2", "llava-chatml",
    }
)  # fmt: skip
"""The registry's names that are code (lmdeploy/model.py, 0.18.0): such a JSON changes texts of that code."""


def read_lmdeploy(path: Path) -> Found:
    """What the JSON file *path* says. Raises SourceUnreadable."""
    fields = _fields(path)
    name = fields.get("model_name")
    if name == "hf":
        return _overlay(path, fields)
    if name in BUILT_IN:
        raise SourceUnreadable(
            f"{path}: model_name: {name!r} is one of LMDeploy's own templates, which are code; give the JSON another"
            " model_name and all of its fields"
        )
    if fields.get("capability", "chat") != "chat":
        raise SourceUnreadable(f"{path}: capability: {fields['capability']!r} writes no chats")
    texts = {field: fields.get(field, "") for field in TEXT_FIELDS}
    return Found(
        NAME,
        {DEFAULT: jinja_of(texts)},
        path,
        stop_strings=tuple(fields.get("stop_words", ())),
        system_default=texts["meta_instruction"],
        notes=("there is a system block always, an empty one too", "a last message of the assistant is left open"),
        speaks_of=CARRIED,
        is_given_bos=True,
    )


def jinja_of(fields: Mapping[str, str]) -> str:
    """The Jinja template that writes what LMDeploy writes with *fields*, all of TEXT_FIELDS."""
    head = fields["system"] + fields["meta_instruction"] + fields["eosys"]
    closing = fields["eoa"] + fields["separator"]
    return "\n".join(
        [
            "{#- made by Unigate from the fields of an LMDeploy JSON -#}",
            '{%- if tools -%}{{- raise_exception("this template knows no tools") -}}{%- endif -%}',
            f'{{%- if messages[0].role != "system" -%}}{{{{- {literal(head)} -}}}}{{%- endif -%}}',
            "{%- for message in messages -%}",
            '{%- set content = "" if message.content is not defined else message.content -%}',
            "{%- if content is not string -%}",
            '{{- raise_exception("this template knows only content that is text") -}}',
            "{%- endif -%}",
            *_role("if", "system", fields["system"], fields["eosys"]),
            *_role("elif", "user", fields["user"], fields["eoh"]),
            *_role("elif", "tool", fields["tool"], fields["eotool"]),
            '{%- elif message.role == "assistant" -%}',
            f"{{{{- {literal(fields['assistant'])} ~ content -}}}}",
            "{%- if not (loop.last and add_generation_prompt) -%}",
            f"{{{{- {literal(closing)} -}}}}",
            "{%- endif -%}",
            "{%- else -%}",
            '{{- raise_exception("this template knows no message of this role") -}}',
            "{%- endif -%}",
            "{%- endfor -%}",
            '{%- if add_generation_prompt and messages[-1].role != "assistant" -%}',
            f"{{{{- {literal(fields['assistant'])} -}}}}",
            "{%- endif -%}",
            "",
        ]
    )


def _role(word: str, role: str, before: str, after: str) -> Iterator[str]:
    yield f'{{%- {word} message.role == "{role}" -%}}'
    yield f"{{{{- {literal(before)} ~ content ~ {literal(after)} -}}}}"


def _overlay(path: Path, fields: Mapping[str, Any]) -> Found:
    if "model_path" not in fields:
        raise SourceUnreadable(f"{path}: model_path: is missing, so the template is the model's own; name its folder")
    folder = path.parent / fields["model_path"]
    try:
        templates = read_templates(folder)
    except ModelFolderUnreadable as problem:
        raise SourceUnreadable(f"{path}: model_path: {problem}") from problem
    if not templates:
        raise SourceUnreadable(f"{path}: model_path: {folder} has no chat template")
    notes: tuple[str, ...] = ()
    if "stop_words" in fields:
        notes = ("LMDeploy takes no stop_words from this form, and neither does Unigate",)
    return Found(NAME, templates, path, notes=notes, is_given_bos=True)


def _fields(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(read_text(path, "LMDeploy's JSON"))
    except json.JSONDecodeError as problem:
        raise SourceUnreadable(f"{path}:{problem.lineno}:{problem.colno}: is no JSON: {problem.msg}") from problem
    except (ValueError, RecursionError) as problem:
        raise SourceUnreadable(f"{path}: is no JSON that can be read: {problem}") from problem
    if not isinstance(found, dict) or not FIELDS & found.keys():
        raise SourceUnreadable(f"{path}: has none of LMDeploy's fields, so it is no chat template of its")
    if problems := list(_problems(found)):
        raise SourceUnreadable("\n".join(f"{path}: {problem}" for problem in problems))
    return {name: value for name, value in found.items() if value is not None}


def _problems(found: Mapping[str, Any]) -> Iterator[str]:
    for name, value in found.items():
        if name not in FIELDS:
            yield f"{name}: is no field of LMDeploy's (a TypeError there); there are: {', '.join(sorted(FIELDS))}"
        elif name == "stop_words":
            if value is not None and not (isinstance(value, list) and all(isinstance(word, str) for word in value)):
                yield "stop_words: is no list of texts"
        elif not isinstance(value, str | None):
            yield f"{name}: is no text"
