"""LMDeploy's own prompt code (lmdeploy/model.py): run it with the Python of the LMDeploy environment.

stdin: JSON, a list of jobs ``{"template": FILE for --chat-template, "messages": …}``. stdout: the prompts as JSON.
"""

from __future__ import annotations

import json
import sys

from lmdeploy.model import ChatTemplateConfig  # type: ignore[import-not-found]

if __name__ == "__main__":
    templates: dict[str, object] = {}
    prompts = []
    for job in json.load(sys.stdin):
        template = templates.get(job["template"])
        if template is None:
            template = ChatTemplateConfig.from_json(job["template"]).chat_template()
            templates[job["template"]] = template
        prompts.append(template.messages2prompt(job["messages"]))  # type: ignore[attr-defined]
    json.dump(prompts, sys.stdout)
