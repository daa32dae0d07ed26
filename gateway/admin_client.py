"""The command line's side of `/admin`: finds the gateway, asks it, and tells in words what went wrong."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx

from gateway.config_file import load_config

DEFAULT_URL = "http://127.0.0.1:8080"
URL_VARIABLE = "UNIGATE_URL"
KEY_VARIABLE = "UNIGATE_ADMIN_KEY"
"""The key comes from the environment only: an argument would stand in the process list."""

ANSWER_TIMEOUT_S = 10.0
RELOAD_TIMEOUT_S = 60.0
"""The file is checked first, with all that it names, behind any reload that is being checked already."""


class AdminError(Exception):
    """The gateway could not be asked, or refused; the message says what to do."""


def find_gateway(url: str | None, config: Path | None, environ: Mapping[str, str]) -> str:
    """The gateway's address: as given, else of the environment, else of the configuration, else the default.

    Raises ConfigError for a configuration that cannot be used.
    """
    if url or environ.get(URL_VARIABLE):
        given = (url or environ[URL_VARIABLE]).rstrip("/")
        return given if "://" in given else f"http://{given}"
    if config is None:
        return DEFAULT_URL
    settings = load_config(config, environ).gateway
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(settings.host, settings.host)  # noqa: S104 - recognised, not bound
    return f"http://[{host}]:{settings.port}" if ":" in host else f"http://{host}:{settings.port}"


class GatewayUnreachable(AdminError):
    """Nobody answers there."""


class AdminClient:
    """One gateway's administration. Use it as a context manager. Raises AdminError for a *url* that is none."""

    def __init__(self, url: str, environ: Mapping[str, str] = os.environ) -> None:
        key = environ.get(KEY_VARIABLE)
        headers = {"authorization": f"Bearer {key}"} if key else {}
        self._url = url
        try:
            self._http = httpx.Client(base_url=url, headers=headers, timeout=ANSWER_TIMEOUT_S, trust_env=False)
        except httpx.InvalidURL as problem:
            raise AdminError(f"{url} is not an address ({problem}); write it like {DEFAULT_URL}") from None

    def __enter__(self) -> AdminClient:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def backends(self) -> list[dict[str, Any]]:
        """All backends as they stand."""
        found: list[dict[str, Any]] = self._ask("GET", "/admin/backends")
        return found

    def ask_for(self, action: str, name: str, wait_s: float) -> list[dict[str, Any]]:
        """``load``, ``unload`` or ``restart`` a model or one backend; how each stands after at most *wait_s*."""
        path = f"/admin/models/{quote(name)}/{action}"
        timeout = httpx.Timeout(ANSWER_TIMEOUT_S, read=wait_s + ANSWER_TIMEOUT_S)
        found: list[dict[str, Any]] = self._ask("POST", path, params={"wait_s": wait_s}, timeout=timeout)
        return found

    def parity(self, name: str) -> list[dict[str, Any]]:
        """What was proven of the prompts of each backend of a model."""
        found: list[dict[str, Any]] = self._ask("GET", f"/admin/models/{quote(name)}/parity")
        return found

    def reload(self, wait_s: float) -> dict[str, Any]:
        """Have the configuration read again; returns what that changes, and how far it has come after *wait_s*."""
        timeout = httpx.Timeout(ANSWER_TIMEOUT_S, read=wait_s + RELOAD_TIMEOUT_S)
        found: dict[str, Any] = self._ask("POST", "/admin/reload", params={"wait_s": wait_s}, timeout=timeout)
        return found

    def log_lines(self, name: str, lines: int, *, follow: bool) -> Iterator[str]:
        """The last *lines* of a backend's log, then, with *follow*, new ones until the gateway ends."""
        path = f"/admin/models/{quote(name)}/logs"
        params: dict[str, str | int] = {"lines": lines, "follow": str(follow).lower()}
        timeout = httpx.Timeout(ANSWER_TIMEOUT_S, read=None)
        try:
            with self._http.stream("GET", path, params=params, timeout=timeout) as answer:
                if not answer.is_success:
                    answer.read()
                    raise AdminError(_refusal(answer))
                yield from answer.iter_lines()
        except httpx.TransportError as problem:
            raise self._unreachable() from problem

    def _ask(self, method: str, path: str, **options: Any) -> Any:
        try:
            answer = self._http.request(method, path, **options)
        except httpx.TransportError as problem:
            raise self._unreachable() from problem
        if not answer.is_success:
            raise AdminError(_refusal(answer))
        try:
            return answer.json()
        except ValueError:
            raise AdminError(_stranger(answer)) from None

    def _unreachable(self) -> GatewayUnreachable:
        return GatewayUnreachable(
            f"no gateway answers at {self._url}; start one with 'unigate serve', or name its --url"
        )


def _stranger(answer: httpx.Response) -> str:
    return f"{answer.request.url} was answered {answer.status_code}, not as a gateway does; name another --url"


def _refusal(answer: httpx.Response) -> str:
    try:
        message = str(answer.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return _stranger(answer)
    if answer.status_code == httpx.codes.FORBIDDEN:
        return f"{message}; put the key into the environment variable {KEY_VARIABLE}"
    return message
