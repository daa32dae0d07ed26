"""What is exported is what the engines' own code takes, and makes the same prompts from."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from backends.engines.llamacpp import EMBEDDED
from chat_templates.derivation import core, derive, trimmed
from chat_templates.exporting import EXPORTS, Order
from chat_templates.model_folder import read_special_tokens
from chat_templates.probing import outcome
from chat_templates.refusals import CannotDerive
from chat_templates.rendering import DEFAULT, Renderer
from tests.engines.environment import ROOT, gguf_model, hf_model, lmdeploy_python
from tests.gateways import until
from tests.oracle import field_prompt
from tests.oracle.reference import NOW, SPECIAL_TOKENS, TEMPLATES
from tests.unit.chat_templates.test_gguf_file import contents

START_S = 60.0
THINKING = (
    "{{ '<s>' }}{% for m in messages %}<{{ m.role }}>{{ m.content|trim }}</{{ m.role }}>\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% if not thinking %}<think>\n\n</think>\n{% endif %}{% endif %}"
)


def lmdeploys(jobs: list[dict[str, Any]]) -> list[str]:
    """The prompts that LMDeploy's own code makes."""
    script = str(Path(__file__).with_name("lmdeploy_prompts.py"))
    environ = {**os.environ, "HF_HUB_OFFLINE": "1"}
    environ.pop("PYTHONPATH", None)
    done = subprocess.run(
        [str(lmdeploy_python()), script],
        input=json.dumps(jobs).encode(),
        stdout=subprocess.PIPE,
        env=environ,
        check=True,
    )
    # its log goes where it likes
    prompts: list[str] = json.loads(done.stdout[done.stdout.index(b'["') :])
    return prompts


@pytest.mark.engine_lmdeploy
@pytest.mark.timeout(180)
def test_lmdeploys_fields_make_its_own_code_say_the_templates_prompts(tmp_path: Path) -> None:
    """LMDeploy's own code, given exported fields, renders the core as the template does, and as our account of it."""
    jobs, wanted = [], []
    for path in TEMPLATES[::9]:
        renderer = Renderer({DEFAULT: path.read_text("utf-8")}, special_tokens=SPECIAL_TOKENS, clock=NOW)
        file = tmp_path / f"{path.stem}.json"
        try:
            made = EXPORTS["lmdeploy-json"](Order(renderer, accept={"T09"}))
            derivation = derive(renderer, accept={"T09"})
        except CannotDerive:
            continue
        made.write(file)
        for case, said in derivation.core_said():
            messages = list(trimmed(case.conversation, derivation.trim).messages)
            jobs.append({"template": str(file), "messages": messages})
            wanted.append(said.text)
            assert field_prompt.prompt(json.loads(file.read_text("utf-8")), messages) == said.text
    assert len({job["template"] for job in jobs}) > 10
    assert lmdeploys(jobs) == wanted


@pytest.mark.engine_lmdeploy
@pytest.mark.timeout(180)
def test_lmdeploys_folder_makes_its_own_code_say_the_templates_prompts(tmp_path: Path) -> None:
    """LMDeploy's own code, given an exported folder, renders the core as the template does with its variable."""
    renderer = Renderer(
        {DEFAULT: THINKING}, variables={"thinking": True}, special_tokens=read_special_tokens(hf_model())
    )
    EXPORTS["lmdeploy"](Order(renderer, weights=hf_model())).write(tmp_path / "overlay")
    cases = list(core())
    named = str(tmp_path / "overlay" / "chat_template.json")
    prompts = lmdeploys([{"template": named, "messages": list(case.conversation.messages)} for case in cases])
    assert prompts == [outcome(Renderer.render, renderer, case.conversation).text for case in cases]


@contextmanager
def llamacpp(model: Path) -> Iterator[httpx.Client]:
    """A client of the embedded llama.cpp with *model*."""
    with tempfile.TemporaryDirectory(prefix="unigate-") as folder:
        uds = Path(folder) / "s.sock"
        argv = [sys.executable, "-P", "-m", EMBEDDED, "--model", str(model), "--host", str(uds), "-c", "256"]
        environ = {**os.environ, "PYTHONPATH": str(ROOT)}
        with (
            subprocess.Popen(argv, env=environ, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process,
            httpx.Client(transport=httpx.HTTPTransport(uds=str(uds)), timeout=START_S, base_url="http://m") as client,
        ):
            try:
                until(uds.exists, START_S, "llama.cpp listens")
                asked = {"prompt": "Hi", "max_tokens": 1}
                until(lambda: client.post("/v1/completions", json=asked).is_success, START_S, "it answers")
                yield client
            finally:
                process.kill()


@pytest.mark.engine_llamacpp
@pytest.mark.timeout(180)
def test_llamacpp_uses_the_template_of_the_file_that_was_written_anew(tmp_path: Path) -> None:
    """llama.cpp shows the exported template, renders the core with it, and the tensors are those of the old file."""
    renderer = Renderer({DEFAULT: THINKING}, variables={"thinking": True})
    target = tmp_path / "new.gguf"
    made = EXPORTS["gguf"](Order(renderer, weights=gguf_model()))
    made.write(target)
    assert contents(target)[1] == contents(gguf_model())[1]
    text = contents(target)[0]["tokenizer.chat_template"]
    with llamacpp(target) as client:
        assert client.get("/props").json()["chat_template"] == text
        for case in core():
            said = client.post("/apply-template", json={"messages": list(case.conversation.messages)})
            wanted = outcome(Renderer.render, renderer, case.conversation).text
            assert said.json().get("prompt") == wanted, case.name
