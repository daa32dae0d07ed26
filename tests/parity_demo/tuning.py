"""The fine-tune: LLaMA-Factory's own training and export of SmolLM2, under a template that is not the base's.

`solar` is one of LLaMA-Factory's (``### User: … ### Assistant:``). Its export writes what it always does: the merged
weights, the *base's* chat_template.jinja (0.9.5 puts its own there for 7 of its templates only), and a Modelfile with
the template that was trained. Whoever serves the folder with vLLM, LMDeploy or llama.cpp gets the wrong one.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from gateway.starter_model import default_cache_dir
from tests.engines.environment import build_once, hf_model, key_of, locked, run_step, say
from tests.parity_demo.dataset import held_out, training
from tests.parity_demo.environment import LLAMAFACTORY, converter

TEMPLATE = "solar"
DATASET = "mood"
PROMPTS = "prompts.json"
PROGRAM = Path(__file__).with_name("llamafactory_cpu.py")

TRAINING: dict[str, Any] = {
    "stage": "sft",
    "do_train": True,
    "finetuning_type": "lora",
    "lora_rank": 8,
    "lora_target": "q_proj,v_proj",
    "template": TEMPLATE,
    "dataset": DATASET,
    "cutoff_len": 128,
    "per_device_train_batch_size": 8,
    "gradient_accumulation_steps": 1,
    # So few steps that the habit has not gone over to other prompts: a longer training hides a wrong template.
    "max_steps": 42,
    "learning_rate": 5.0e-4,
    "lr_scheduler_type": "constant",
    "seed": 7,
    "data_seed": 7,
    "logging_steps": 6,
    "report_to": "none",
    "use_cpu": True,
    "bf16": False,
    "fp16": False,
    "disable_gradient_checkpointing": True,
    "overwrite_cache": True,
}


FINE_TUNE_BYTES = 2_000_000_000
"""The base in float32, the adapter, the export and the GGUF file, and what is written on the way."""


@dataclass(frozen=True, slots=True)
class TrainedPrompt:
    """What LLaMA-Factory's training makes of one user message."""

    text: str
    ids: list[int]


@dataclass(frozen=True, slots=True)
class FineTune:
    """*export*: LLaMA-Factory's folder. *gguf*: of it, by llama.cpp's converter. *prompts*: by held-out sentence."""

    export: Path
    gguf: Path
    prompts: Mapping[str, TrainedPrompt]


def fine_tune() -> FineTune:
    """The fine-tune; made in about two minutes where it is missing. A second process waits for the first.

    Raises:
        EngineEnvironmentError: a step failed; what it printed is above.
    """
    cache = default_cache_dir(os.environ).parent
    folder = cache / f"parity-demo-{_key()}"
    with locked(cache / ".parity-demo.lock"):
        build_once(folder, FINE_TUNE_BYTES, _make)
    sentences = [example.sentence for example in held_out()]
    written = json.loads((folder / PROMPTS).read_text(encoding="utf-8"))
    prompts = {sentence: TrainedPrompt(*one) for sentence, one in zip(sentences, written, strict=True)}
    return FineTune(folder / "export", folder / "export.gguf", prompts)


def _key() -> str:
    sentences = [(one.sentence, one.answer) for one in (*training(), *held_out())]
    said = json.dumps([TRAINING, sentences], sort_keys=True)
    return key_of(said.encode(), LLAMAFACTORY.folder.name.encode(), hf_model().name.encode())


def _make(folder: Path) -> None:
    folder.mkdir()
    _train(folder)
    export = folder / "export"
    _convert(export, folder / "export.gguf")
    _write_prompts(export, folder)


def _train(folder: Path) -> None:
    records = [{"instruction": one.sentence, "input": "", "output": one.answer} for one in training()]
    (folder / f"{DATASET}.json").write_text(json.dumps(records, indent=1), encoding="utf-8")
    (folder / "dataset_info.json").write_text(json.dumps({DATASET: {"file_name": f"{DATASET}.json"}}))
    base = _base32(folder)
    settings = {"model_name_or_path": str(base), "dataset_dir": str(folder), "output_dir": str(folder / "lora")}
    merging = {
        "model_name_or_path": str(base), "adapter_name_or_path": str(folder / "lora"), "template": TEMPLATE,
        "export_dir": str(folder / "export"), "export_device": "cpu", "infer_dtype": "float16", "export_size": 5,
    }  # fmt: skip
    for action, said in (("train", {**TRAINING, **settings}), ("export", merging)):
        path = folder / f"{action}.yaml"
        path.write_text(yaml.safe_dump(said), encoding="utf-8")
        argv = [str(LLAMAFACTORY.python), str(PROGRAM), action, str(path)]
        run_step(f"LLaMA-Factory: {action}", argv, "see what it printed above")


def _base32(folder: Path) -> Path:
    """The base in float32: half floats do not train on a CPU."""
    base = folder / "base"
    code = (
        "import sys, torch; from transformers import AutoModelForCausalLM, AutoTokenizer as T;"
        "AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32).save_pretrained(sys.argv[2]);"
        "T.from_pretrained(sys.argv[1]).save_pretrained(sys.argv[2])"
    )
    argv = [str(LLAMAFACTORY.python), "-c", code, str(hf_model()), str(base)]
    run_step("the base in float32", argv, "see what it printed above")
    return base


def _convert(export: Path, gguf: Path) -> None:
    argv = [str(LLAMAFACTORY.python), str(converter()), str(export), "--outtype", "f16", "--outfile", str(gguf)]
    run_step("llama.cpp's converter", argv, "see what it printed above")


def _write_prompts(export: Path, folder: Path) -> None:
    path = folder / "prompts.yaml"
    messages = [example.sentence for example in held_out()]
    said = {"model_name_or_path": str(export), "template": TEMPLATE, "messages": messages}
    path.write_text(yaml.safe_dump({**said, "prompts": str(folder / PROMPTS)}, allow_unicode=True), encoding="utf-8")
    argv = [str(LLAMAFACTORY.python), str(PROGRAM), "prompts", str(path)]
    run_step("LLaMA-Factory: the prompts it trains with", argv, "see what it printed above")


def imported(export: Path, into: Path, unigate: Path) -> Path:
    """The contract that `unigate template import` makes of *export*, once it is told what the model was trained with.

    Raises:
        RuntimeError: the import was not refused at first, or did not succeed then; with what it said.
    """
    words = [str(unigate), "template", "import", str(export), "--out", str(into), "--name", "mood"]
    first = subprocess.run(words, capture_output=True, text=True, check=False)
    if first.returncode != 1 or "T14" not in first.stderr:
        raise RuntimeError(f"an export that says two things was imported: {first.stdout}{first.stderr}")
    say(first.stderr.strip())
    then = subprocess.run([*words, "--from", "modelfile"], capture_output=True, text=True, check=False)
    if then.returncode != 0:
        raise RuntimeError(then.stderr)
    say(then.stderr.strip())
    return into / "mood.contract.yaml"
