"""What is always true of words that name sources."""

from __future__ import annotations

import string
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from backends.sources import HUBS, HubSource, OllamaName, SourceRefused, parse_source

WORD = string.ascii_letters + string.digits + "_"
names = st.from_regex(r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,20}[A-Za-z0-9_])?", fullmatch=True)
parts = st.text(st.characters(exclude_categories=("C", "Z"), exclude_characters="/\\"), min_size=1, max_size=20).filter(
    lambda part: part not in (".", "..")
)
files = st.lists(parts, max_size=3).map("/".join).filter(lambda file: "-of-" not in file)
revisions = st.one_of(st.just(""), st.lists(names, min_size=1, max_size=3).map("/".join))
hub_sources = st.builds(HubSource, st.sampled_from(HUBS), st.tuples(names, names).map("/".join), revisions, files)
ollama_names = st.tuples(names, names).map(lambda pair: OllamaName(":".join(pair)))


@given(st.one_of(hub_sources, ollama_names))
def test_a_source_is_written_as_it_is_read(source: HubSource | OllamaName) -> None:
    """Writing a source and reading it again gives that source."""
    assert parse_source(str(source)) == source


@given(st.tuples(st.sampled_from(["hf:", "modelscope:", "ollama:", "hf:a/b@", "hf:a/b:", ""]), st.text()).map("".join))
def test_every_word_is_read_or_refused(word: str) -> None:
    """Any text is a path, a source that is written back the same, or refused with a remedy; never anything else."""
    try:
        source = parse_source(word)
    except SourceRefused as problem:
        refusal = problem
    else:
        assert source is None or str(source) == word
        return
    assert str(refusal)
    assert refusal.remedy


@given(hub_sources, hub_sources)
def test_places_are_below_and_apart(one: HubSource, other: HubSource) -> None:
    """Every source lies below the folder for models, and two different ones never share a place."""
    models_dir = Path("/m")
    assert one.weights(models_dir).is_relative_to(models_dir / one.hub)
    assert ".." not in one.weights(models_dir).parts
    assert one == other or one.weights(models_dir) != other.weights(models_dir)
