"""Which template LMDeploy's own code takes for a command line: run it with the Python of the LMDeploy environment.

stdin: JSON, a list of jobs ``{"argv": what follows "serve api_server", "messages": …}``. stdout: the prompts as JSON.
"""

from __future__ import annotations

import json
import sys

from lmdeploy.cli.entrypoint import CLI, SubCliLite, SubCliServe  # type: ignore[import-not-found]
from lmdeploy.cli.utils import get_chat_template  # type: ignore[import-not-found]
from lmdeploy.model import get_chat_template as template_for  # type: ignore[import-not-found]

if __name__ == "__main__":
    for group in (CLI, SubCliServe, SubCliLite):
        group.add_parsers()
    parser = SubCliServe.subparsers.choices["api_server"]
    prompts = []
    for job in json.load(sys.stdin):
        args = parser.parse_args(job["argv"])
        config = get_chat_template(args.chat_template, args.model_path)
        prompts.append(template_for(args.model_path, config).messages2prompt(job["messages"]))
    json.dump(prompts, sys.stdout)
