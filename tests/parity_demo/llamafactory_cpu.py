#!/usr/bin/env python3
"""LLaMA-Factory's own commands on a machine without CUDA: stands where `llamafactory-cli` stands.

    python llamafactory_cpu.py train|export ARGUMENTS.yaml

Run it with the Python of the LLaMA-Factory environment; nothing of this project is imported. Everything is
LLaMA-Factory's own (0.9.5) but one name: `llamafactory.data.mm_plugin` imports torchaudio, whose published builds load
CUDA's libraries, for models that hear. An empty module stands for it.
"""

from __future__ import annotations

import importlib.machinery
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

    actions: dict[str, Callable[[dict[str, Any]], None]] = {"train": tuner.run_exp, "export": tuner.export_model}
    actions[action](yaml.safe_load(arguments.read_text(encoding="utf-8")))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
