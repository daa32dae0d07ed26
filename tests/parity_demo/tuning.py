"""The fine-tune: LLaMA-Factory's own training and export of SmolLM2, under a template that is not the base's.

`solar` is one of LLaMA-Factory's (``### User: … ### Assistant:``). Its export writes what it always does: the merged
weights, the *base's* chat_template.jinja (0.9.5 puts its own there for 7 of its templates only), and a Modelfile with
the template that was trained. Whoever serves the folder with vLLM, LMDeploy or llama.cpp gets the wrong one.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import yaml

from gateway.starter_model import default_cache_dir
from tests.engines.environment import hf_model, run_step, say
from tests.parity_demo.dataset import training
from tests.parity_demo.environment import LLAMAFACTORY, converter

TEMPLATE = "solar"
DATASET = "mood"
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


def fine_tune() -> tuple[Path, Path]:
    """The export's folder and a GGUF file of it; made in about two minutes where they are missing.

    Raises:
        EngineEnvironmentError: a step failed; what it printed is above.
    """
    folder = default_cache_dir(os.environ).parent / f"parity-demo-{_digest()}"
    export, gguf = folder / "export", folder / "export.gguf"
    if not gguf.exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        _train(folder)
        _convert(export, gguf)
    return export, gguf


def _digest() -> str:
    said = json.dumps([TRAINING, [(one.sentence, one.answer) for one in training()]], sort_keys=True)
    return hashlib.sha256(said.encode() + PROGRAM.read_bytes()).hexdigest()[:12]


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
    made = gguf.with_suffix(".part")
    argv = [str(LLAMAFACTORY.python), str(converter()), str(export), "--outtype", "f16", "--outfile", str(made)]
    run_step("llama.cpp's converter", argv, "see what it printed above")
    made.rename(gguf)


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
