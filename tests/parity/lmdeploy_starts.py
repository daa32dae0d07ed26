"""Which model folders LMDeploy's own code takes at its start: run it with the Python of the LMDeploy environment.

Its server renders two conversations with the template before it listens, and ends where the template refuses one
(lmdeploy/model.py HFChatTemplate.__init__, 0.18.0). stdin: a JSON list of folders. stdout: for each a line that begins
with SAID, and then as JSON null where it starts, else why not.
"""

from __future__ import annotations

import json
import sys

from lmdeploy.model import HFChatTemplate  # type: ignore[import-not-found]

if __name__ == "__main__":
    for folder in json.load(sys.stdin):
        reason: str | None = None
        try:
            HFChatTemplate(model_path=folder)
        except ValueError as problem:
            reason = str(problem)
        print(f"\nSAID {json.dumps(reason)}")
