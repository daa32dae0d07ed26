#!/usr/bin/env python3
"""LLaMA-Factory's own commands on a machine without CUDA: stands where `llamafactory-cli` stands.

    python llamafactory_cpu.py train|export|prompts ARGUMENTS.yaml

Run it with the Python of the LLaMA-Factory environment; nothing of this project is imported. Everything is
LLaMA-Factory's own (0.9.5) but one name: `llamafactory.data.mm_plugin` imports torchaudio, whose published builds load
CUDA's libraries, for models that hear. An empty module stands for it.

`prompts`, which LLaMA-Factory has no command for, writes what its training makes of user messages: beside the usual
arguments it takes `messages`, a list of texts, and `prompts`, a file that gets a JSON list of `[text, ids]`.
"""

from __future__ import annotations

import importlib.machinery
import json
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

TORCHAUDIO = "torchaudio"


def main(action: str, arguments: Path) -> None:
    """Does *action* with what the file *arguments* says."""
    import yaml

    absent = types.ModuleType(TORCHAUDIO)
    # asked for by importlib.util.find_spec, with which transformers and others look what is installed
    absent.__spec__ = importlib.machinery.ModuleSpec(TORCHAUDIO, loader=None)
    sys.modules[TORCHAUDIO] = absent
    from llamafactory.train import tuner  # type: ignore[import-not-found] # in an environment of its own

    actions: dict[str, Callable[[dict[str, Any]], None]] = {
        "train": tuner.run_exp,
        "export": tuner.export_model,
        "prompts": write_prompts,
    }
    actions[action](yaml.safe_load(arguments.read_text(encoding="utf-8")))


def write_prompts(said: dict[str, Any]) -> None:
    """Writes each message's prompt as the training encodes it (data/processor/supervised.py, data/template.py)."""
    from llamafactory.data import get_template_and_fix_tokenizer  # type: ignore[import-not-found]
    from llamafactory.hparams import get_infer_args  # type: ignore[import-not-found]
    from llamafactory.model import load_tokenizer  # type: ignore[import-not-found]

    messages, file = said.pop("messages"), Path(said.pop("prompts"))
    model_arguments, template_arguments, *_ = get_infer_args(said)
    tokenizer = load_tokenizer(model_arguments)["tokenizer"]
    template = get_template_and_fix_tokenizer(tokenizer, template_arguments)
    written = []
    for message in messages:
        turn = [{"role": "user", "content": message}, {"role": "assistant", "content": ""}]
        ids, _ = template.encode_oneturn(tokenizer, turn)
        written.append([tokenizer.decode(ids, skip_special_tokens=False), ids])
    file.write_text(json.dumps(written, ensure_ascii=False), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
