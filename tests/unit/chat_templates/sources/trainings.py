"""Folders that look like LLaMA-Factory's and XTuner's: registries with templates of ours."""

from __future__ import annotations

from pathlib import Path

LLAMAFACTORY = """
import torch_that_is_not_there


def register_template(name, **given):
    raise RuntimeError("this is read, never run")


register_template(
    name="thinker",
    format_user=StringFormatter(slots=["<|im_start|>user\\n{{content}}<|im_end|>\\n<|im_start|>assistant\\n"]),
    format_assistant=StringFormatter(slots=["{{content}}<|im_end|>\\n"]),
    format_system=StringFormatter(slots=["<|im_start|>system\\n{{content}}<|im_end|>\\n"]),
    stop_words=["<|im_end|>"],
    replace_eos=True,
    template_class=ReasoningTemplate,
)

register_template(
    name="thinker_nothink",
    format_user=StringFormatter(slots=["<|im_start|>user\\n{{content}}<|im_end|>\\n<|im_start|>assistant\\n"]),
    format_assistant=StringFormatter(slots=["{{content}}<|im_end|>\\n"]),
    format_system=StringFormatter(slots=["<|im_start|>system\\n{{content}}<|im_end|>\\n"]),
    stop_words=["<|im_end|>"],
    replace_eos=True,
)

register_template(
    name="folded",
    format_user=StringFormatter(slots=[{"bos_token"}, "[", "{{content}}", {"token": "]"}]),
    format_system=StringFormatter(slots=["<<{{content}}>>"]),
    format_prefix=EmptyFormatter(slots=["^", {"<odd>"}]),
    default_system="Be" " kind.",
    template_class=Llama2Template,
)

register_template(name="computed", format_user=StringFormatter(slots=make()))
register_template(name="indexed", format_user=StringFormatter(slots=["{{idx}} {{content}}"]))
register_template(name="strange", template_class=MyTemplate)
register_template(name="endless", replace_eos=True)
register_template(name="filled", format_prefix=EmptyFormatter(slots=["{{content}}"]))
register_template(name="bare", format_user=USER)
register_template(name="wrong", format_user=StringFormatter(slots=[3]))
"""

XTUNER = """
PROMPT_TEMPLATE = ConfigDict(
    chat=dict(
        SYSTEM="<s>{system}\\n",
        INSTRUCTION="[{round}] {input}<eoh>" "<ai>",
        SUFFIX="<eoa>",
        SUFFIX_AS_EOS=True,
        SEP="\\n",
        STOP_WORDS=["<eoa>"],
    ),
    ended=dict(INSTRUCTION="{{{input}}}>", SEP="\\n"),
    odd=dict(INSTRUCTION="{name}"),
    broken=dict(INSTRUCTION="{input"),
    silent=dict(SEP="x"),
    listed=dict(INSTRUCTION="", STOP_WORDS="x"),
    counted=dict(INSTRUCTION="", SEP=1),
)
"""


def llamafactory(folder: Path) -> Path:
    """A folder with a ``llamafactory`` package."""
    (folder / "llamafactory" / "data").mkdir(parents=True)
    (folder / "llamafactory" / "data" / "template.py").write_text(LLAMAFACTORY)
    return folder


def xtuner(folder: Path) -> Path:
    """A folder with an ``xtuner`` package."""
    (folder / "xtuner" / "utils").mkdir(parents=True)
    (folder / "xtuner" / "utils" / "templates.py").write_text(XTUNER)
    return folder
