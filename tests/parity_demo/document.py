"""The table of the demonstration, for docs/parity-demo.md and the head of both READMEs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tests.parity_demo.measuring import WITNESSES, Measured
from tests.parity_demo.serving import RAW, THROUGH
from tests.parity_demo.tuning import TRAINING

BEGIN, END = "<!-- parity-demo -->", "<!-- /parity-demo -->"
NAMES = {"vllm": "vLLM", "llamacpp": "llama.cpp", "lmdeploy": "LMDeploy"}

HEADS = {
    "en": (
        "engine",
        "right answers, raw",
        "through Unigate",
        "prompts unlike the trained ones, raw",
        "through Unigate",
    ),
    "zh": ("引擎", "正确回答（直接部署）", "经 Unigate", "与训练模板不同的提示词（直接部署）", "经 Unigate"),
}


def table(measured: Sequence[Measured], language: str = "en") -> list[str]:
    """A row per engine."""
    heads = HEADS[language]
    lines = [f"| {' | '.join(heads)} |", "|---|---:|---:|---:|---:|"]
    for engine in dict.fromkeys(one.engine for one in measured):
        by_way = {one.way: one for one in measured if one.engine == engine}
        raw, through = by_way[RAW], by_way[THROUGH]
        cells = (
            NAMES[engine], f"{raw.right} of {raw.asked}", f"**{through.right} of {through.asked}**",
            str(raw.differing), f"**{through.differing}**",
        )  # fmt: skip
        if language == "zh":
            cells = tuple(cell.replace(" of ", " / ") for cell in cells)  # type: ignore[assignment]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def document(measured: Sequence[Measured], versions: Sequence[str], day: str) -> str:
    """docs/parity-demo.md."""
    examples = [
        f"- {NAMES[one.engine]}, raw: {', '.join(f'`{text}`' for text in one.examples)}"
        for one in measured
        if one.way == RAW and one.examples
    ]
    lines = [
        "# The effect of a chat template",
        "",
        "Made by `make parity-demo`. LLaMA-Factory's own commands fine-tune SmolLM2-135M on the CPU (LoRA of rank"
        f" {TRAINING['lora_rank']}, {TRAINING['max_steps']} steps, about a minute), under its template"
        f' `{TRAINING["template"]}`, to answer 96 made-up sentences with their mood: `{{"mood": "sun"}}` or'
        ' `{"mood": "rain"}`. Its own export is served as it is, and then with one contract for all engines; 40'
        " sentences with adjectives that the training has not seen are asked, greedy.",
        "",
        *table(measured),
        "",
        "The export's `chat_template.jinja` is the base model's, because LLaMA-Factory puts its own there for seven of"
        " its templates only; what was trained is in the Modelfile beside it. `unigate template import` refuses the"
        " folder (T14), shows both prompts, and takes the one that is named with `--from`.",
        "",
        "What the raw engines answered, for instance:",
        "",
        *examples,
        "",
        "Raw is the engine's own command on the export, or on what llama.cpp's convert_hf_to_gguf.py makes of it. The"
        " trained prompts are what LLaMA-Factory's own code encodes; what an engine's model was given is known by",
        "",
        *(f"- {NAMES[one.engine]}: {WITNESSES[one.engine].told}" for one in measured if one.way == RAW),
        "",
        "The number of training steps was chosen so that these sentences are answered right under the trained template,"
        " so the table says nothing of how well such a model generalises; it says what another template takes away.",
        "",
        "LMDeploy is its own server with its CUDA engines replaced by one for the CPU. Ollama has no package on an"
        " index, and was not run. A fine-tune that was trained for longer answers right under a wrong template more"
        " often, and differs in less visible ways.",
        "",
        f"{day}; {', '.join(versions)}",
        "",
    ]
    return "\n".join(lines)


def put_between(path: Path, lines: Sequence[str]) -> None:
    """Put *lines* between the marks in *path*.

    Raises:
        ValueError: it has no marks.
    """
    text = path.read_text(encoding="utf-8")
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{path}: has no {BEGIN} … {END}")
    joined = "\n".join(lines)
    path.write_text(f"{before}{BEGIN}\n{joined}\n{END}{after}", encoding="utf-8")
