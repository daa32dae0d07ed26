"""Ollama's streams are translated alike, however the network cuts them."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from backends.engines.ollama_native import translate
from backends.settings import BackendSettings
from backends.translation import AnswerTranslation

RECORDINGS = Path(__file__).parents[1] / "recordings" / "ollama_native.jsonl"
ENDPOINTS = {"/api/chat": "chat/completions", "/api/generate": "completions"}
REQUEST = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "prompt": "hi", "stream": True}


def reader(endpoint: str) -> AnswerTranslation:
    """A fresh reader of a streamed answer."""
    return translate(BackendSettings(name="m", engine="ollama"), endpoint, dict(REQUEST)).answer


def recorded_streams() -> list[tuple[str, bytes]]:
    """Every stream of the recordings: its endpoint and its bytes."""
    found = []
    for line in RECORDINGS.read_text().splitlines():
        exchange = json.loads(line)
        path = exchange["request"]["path"]
        if "chunks" in exchange["response"] and path in ENDPOINTS:
            found.append((ENDPOINTS[path], "".join(exchange["response"]["chunks"]).encode()))
    return found


STREAMS = recorded_streams()


@given(stream=st.sampled_from(STREAMS), cuts=st.lists(st.integers(0, 4000), max_size=40))
def test_any_chunking_gives_the_same_events(stream: tuple[str, bytes], cuts: list[int]) -> None:
    """However a recorded stream is cut, its events are the same."""
    endpoint, raw = stream
    places = sorted({0, *(cut for cut in cuts if cut < len(raw)), len(raw)})
    pieces = [raw[start:end] for start, end in itertools.pairwise(places)]
    piecewise = reader(endpoint)
    assert b"".join(piecewise.feed(piece) for piece in pieces) == reader(endpoint).feed(raw)


@given(noise=st.lists(st.binary(max_size=80), max_size=8))
def test_noise_ends_in_one_error_at_most(noise: list[bytes]) -> None:
    """Whatever comes, nothing is raised, and an error is the last that is said."""
    reading = reader("chat/completions")
    told = b"".join(reading.feed(piece) for piece in noise)
    events = [json.loads(event.removeprefix(b"data: ")) for event in told.split(b"\n\n") if event[:7] == b"data: {"]
    assert ["error" in event for event in events].count(True) <= 1
    assert not any("error" in event for event in events[:-1])
