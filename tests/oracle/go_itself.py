"""Go's own text/template, where there is a Go: `go_text.go`, built into a temporary folder."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any


def answers(go: str, jobs: Iterable[Mapping[str, Any]]) -> list[dict[str, str]]:
    """What Go makes of each of *jobs*, as `go_text.go` describes them. *go* is its command."""
    lines = "".join(json.dumps(job) + "\n" for job in jobs)
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "go_text"
        source = Path(__file__).with_name("go_text.go")
        environ = os.environ | {"GOCACHE": folder, "GO111MODULE": "off", "GOFLAGS": ""}
        subprocess.run([go, "build", "-o", str(program), str(source)], check=True, env=environ)
        done = subprocess.run([str(program)], input=lines.encode(), stdout=subprocess.PIPE, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()]
