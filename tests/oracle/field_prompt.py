"""What LMDeploy makes of its fields, written from its behaviour: lmdeploy/model.py, `messages2prompt`, 0.18.0.

`tests/engines` compares it with LMDeploy's own code.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def prompt(fields: Mapping[str, Any], messages: Sequence[Mapping[str, Any]]) -> str | None:
    """The prompt from a field template; None where there is no such role."""
    around = {
        "system": (fields["system"], fields["eosys"]),
        "user": (fields["user"], fields["eoh"]),
        "assistant": (fields["assistant"], fields["eoa"] + fields["separator"]),
        "tool": (fields.get("tool", ""), fields.get("eotool", "")),
    }
    made: str = ""
    if messages and messages[0]["role"] != "system":
        made = fields["system"] + fields["meta_instruction"] + fields["eosys"]
    for message in messages:
        if message["role"] not in around:
            return None
        before, after = around[message["role"]]
        made += before + message["content"] + after
    if messages and messages[-1]["role"] == "assistant":
        end = around["assistant"][1]
        return made[: len(made) - len(end)]
    return f"{made}{fields['assistant']}"
