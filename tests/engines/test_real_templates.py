"""Templates of ours, of the catalog and translated, in llama.cpp's own Jinja."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from backends.engines.llamacpp import EMBEDDED
from chat_templates.catalog.index import ENTRIES, read_entry
from chat_templates.derivation import core
from chat_templates.forms.pinned_jinja import pinned
from chat_templates.model_folder import read_special_tokens
from chat_templates.probing import outcome
from chat_templates.rendering import DEFAULT, Renderer
from chat_templates.sources.go_jinja import jinja_of
from chat_templates.sources.go_parsing import parse
from chat_templates.sources.lmdeploy_json import TEXT_FIELDS
from chat_templates.sources.lmdeploy_json import jinja_of as jinja_of_fields
from chat_templates.sources.slots import SlotTemplate, Thoughts, around
from tests.engines.environment import ROOT, gguf_model, hf_model
from tests.gateways import until
from tests.oracle.go_styles import STYLES

START_S = 60.0

SLOTS = SlotTemplate(
    around("<u>", "</u>\n<a>"),
    around("", "</a>\n"),
    around("<s>", "</s>\n"),
    default_system="Be kind.",
    thoughts=Thoughts("<think>\n", "\n</think>\n\n", prefill="<think>\n\n</think>\n\n"),
)


def templates() -> dict[str, str]:
    """Each kind of template that is made here, by a name."""
    entries = {name: read_entry(name) for name in ENTRIES}
    # llama.cpp sets this variable to true by itself
    fixed = {"enable_thinking": False}
    return {
        **{
            f"catalog:{name}": pinned(Renderer(found.templates, variables=found.pinned))[DEFAULT]
            for name, found in entries.items()
        },
        **{
            f"go:{name}": pinned(Renderer({DEFAULT: jinja_of(parse(text))}, variables=fixed))[DEFAULT]
            for name, text in STYLES.items()
        },
        "lmdeploy": jinja_of_fields({field: f"<{field}>" for field in TEXT_FIELDS}),
        "slots": SLOTS.jinja("a test"),
    }


def listens(uds: Path) -> bool:
    """Whether somebody listens at *uds*."""
    with socket.socket(socket.AF_UNIX) as one:
        return one.connect_ex(str(uds)) == 0


TEMPLATES = templates()


@contextmanager
def llamacpp(template: Path) -> Iterator[httpx.Client]:
    """A client of the embedded llama.cpp with *template*."""
    with tempfile.TemporaryDirectory(prefix="unigate-") as folder:
        uds = Path(folder) / "s.sock"
        argv = [sys.executable, "-P", "-m", EMBEDDED, "--model", str(gguf_model()), "--host", str(uds), "-c", "256"]
        argv += ["--jinja", "--chat-template-file", str(template)]
        environ = {**os.environ, "PYTHONPATH": str(ROOT)}
        with (
            subprocess.Popen(argv, env=environ, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process,
            httpx.Client(transport=httpx.HTTPTransport(uds=str(uds)), timeout=START_S, base_url="http://m") as client,
        ):
            try:
                until(lambda: process.poll() is not None or listens(uds), START_S, "llama.cpp listens")
                assert process.poll() is None, "llama.cpp does not take the template"
                until(lambda: client.get("/health").is_success, START_S, "it is ready")
                yield client
            finally:
                process.kill()
                process.wait()


@pytest.mark.engine_llamacpp
@pytest.mark.timeout(60)
@pytest.mark.parametrize("name", TEMPLATES)
def test_llamacpp_renders_it_as_we_do(name: str, tmp_path: Path) -> None:
    """Over the core, with system messages, several turns and odd texts, llama.cpp makes the same prompt of it."""
    text = TEMPLATES[name]
    file = tmp_path / "t.jinja"
    file.write_text(text, encoding="utf-8")
    renderer = Renderer({DEFAULT: text}, special_tokens=read_special_tokens(hf_model()))
    different = []
    with llamacpp(file) as client:
        for case in core():
            wanted = outcome(Renderer.render, renderer, case.conversation).text
            said = client.post("/apply-template", json={"messages": list(case.conversation.messages)})
            if wanted is not None and said.json().get("prompt") != wanted:
                different.append((case.name, wanted[:300], said.text[:300]))
    assert different == []
