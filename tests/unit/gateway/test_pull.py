"""What `unigate pull` takes, and what it shows."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from backends.downloader import DownloadProgress
from backends.sources import HubSource
from gateway.config import Config
from gateway.pull import PullFailed, _shown, read_sources, sources_of


def config(**weights: str) -> Config:
    """A configuration with models of vLLM that have these weights."""
    return Config.model_validate(
        {"models": {name: {"engine": "vllm", "weights": word} for name, word in weights.items()}}
    )


def test_words_are_sources() -> None:
    """Each source is pulled once, however often it is named."""
    assert read_sources(["hf:a/b", "modelscope:a/b", "hf:a/b"]) == (
        HubSource("hf", "a/b"),
        HubSource("modelscope", "a/b"),
    )


@pytest.mark.parametrize(
    ("word", "complaint"),
    [
        ("hf:b", "hf:b: must have both an organisation and a name; write it as hf:ORG/NAME"),
        ("ollama:qwen3:0.6b", "ollama:qwen3:0.6b: Ollama fetches its own models; run: ollama pull qwen3:0.6b"),
        ("Qwen/Qwen3", "Qwen/Qwen3: is a path, and nothing to download; a model on a hub is written hf:ORG/NAME"),
    ],
)
def test_other_words_are_refused(word: str, complaint: str) -> None:
    """What is no source on a hub is refused with what to do instead."""
    with pytest.raises(PullFailed) as refusal:
        read_sources(["hf:a/b", word])
    assert str(refusal.value).startswith(complaint)


def test_sources_of_a_configuration() -> None:
    """Without words the configuration's own sources are pulled, each once."""
    assert sources_of(config(one="hf:a/b", two="hf:a/b", three="/weights")) == (HubSource("hf", "a/b"),)


def test_nothing_to_pull() -> None:
    """No configuration, and one without a source on a hub, are told apart."""
    with pytest.raises(PullFailed, match="name what to download"):
        sources_of(None)
    with pytest.raises(PullFailed, match="no model of the configuration"):
        sources_of(config(one="/weights"))


def printed(*progress: DownloadProgress, is_terminal: bool) -> str:
    """What a download that goes like this leaves on the screen."""
    text = io.StringIO()
    screen = Console(file=text, force_terminal=is_terminal, width=150, soft_wrap=True)
    with _shown(HubSource("hf", "a/b"), screen) as show:
        for each in progress:
            show(each)
    return text.getvalue()


def test_progress_without_a_terminal() -> None:
    """A line for each phase and each tenth of the bytes, and not one for each look."""
    done = [DownloadProgress("downloading", percent, 100) for percent in range(0, 101, 3)]
    lines = printed(DownloadProgress("listing"), *done, DownloadProgress("finishing"), is_terminal=False).splitlines()
    assert lines[0] == "… hf:a/b: asking for the model's files"
    assert lines[1] == "… hf:a/b: downloading 0% of 100 B"
    assert lines[-1] == "… hf:a/b: writing the last of the model to the disk"
    assert len(lines) == 12


def test_progress_on_a_terminal() -> None:
    """A bar with the amounts, which is gone when the download is over."""
    text = printed(DownloadProgress("downloading", 40, 100), is_terminal=True)
    assert "hf:a/b" in text
    assert "40/100 bytes" in text
    assert text.endswith("\x1b[2K")
