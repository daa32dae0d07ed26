"""Two small hubs on 127.0.0.1 that the real libraries download from: Hugging Face's routes and ModelScope's.

The routes are those that huggingface_hub 2.4.0 and modelscope_hub 0.5.1 ask for. Large files of the first are served as
the real one does: by a redirect to another address, with ranges.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
REVISION = "release-2"
"""The one revision that a repository of Hugging Face has beside its main branch."""
LARGE_BYTES = 4096
"""From this size on a file is kept as Git LFS keeps it: with a SHA-256, and behind a redirect."""
WAIT_S = 60
PIECE_BYTES = 64 * 1024


@functools.cache
def model_files(weights_bytes: int = 8192) -> Mapping[str, bytes]:
    """What makes a model folder for an engine, its weights of *weights_bytes*, no two alike in any block."""
    pattern = b"".join(number.to_bytes(8, "big") for number in range(weights_bytes // 8 + 1))
    return {"config.json": b'{"architectures": ["Fake"]}', "model.safetensors": pattern[:weights_bytes]}


@dataclass
class Sent:
    """One answer with a file's content: what was asked for, and how much of it went out."""

    path: str
    start: int
    size: int = 0
    authorization: str = ""


@dataclass
class Hub:
    """Both hubs at one address. Whatever is set here holds for the requests that come after it."""

    models: Mapping[str, Mapping[str, bytes]]
    port: int = 0
    listing_status: int = 200
    file_status: int = 200
    cut_after: int = 0
    """The next answers break off after so many bytes of a file, `cuts` of them."""
    cuts: int = 0
    hold_after: int = 0
    """Every answer waits after so many bytes of a file until `released`."""
    tells_sizes: bool = True
    """Whether Hugging Face's first listing knows sizes; else only its tree does, as with some mirrors."""
    corrupts: int = 0
    """So many of the next answers carry other bytes than they should."""
    held: threading.Event = field(default_factory=threading.Event)
    released: threading.Event = field(default_factory=threading.Event)
    sent: list[Sent] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    authorizations: list[str] = field(default_factory=list)
    """Of the requests to the hub itself, not to where it redirects."""
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.port}"

    def environ(self) -> dict[str, str]:
        """What leads both libraries here."""
        return {"HF_ENDPOINT": self.url, "MODELSCOPE_ENDPOINT": self.url, "HF_HUB_DISABLE_XET": "1"}

    def sent_of(self, name: str) -> list[Sent]:
        """The answers with the content of the file *name*, in their order."""
        return [sent for sent in self.sent if sent.path == name]


@contextlib.contextmanager
def running_hub(models: Mapping[str, Mapping[str, bytes]]) -> Iterator[Hub]:
    """A Hub with *models*, by ``ORG/NAME``; it serves while the context lasts."""
    hub = Hub(models)
    with ThreadingHTTPServer(("127.0.0.1", 0), _Handler) as server:
        server.daemon_threads = True
        server.hub = hub  # type: ignore[attr-defined]
        hub.port = server.server_port
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield hub
        finally:
            hub.released.set()
            server.shutdown()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    @property
    def hub(self) -> Hub:
        found: Hub = self.server.hub  # type: ignore[attr-defined]
        return found

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        path, query = unquote(parts.path), {key: values[0] for key, values in parse_qs(parts.query).items()}
        self.hub.requests.append(self.path)
        if not path.startswith("/cdn/"):
            self.hub.authorizations.append(self.headers.get("Authorization", ""))
        with contextlib.suppress(ConnectionError):
            if path.startswith("/api/models/"):
                self._hf_listing(path.removeprefix("/api/models/"))
            elif "/resolve/" in path:
                self._hf_file(path)
            elif path.startswith("/cdn/"):
                _, _, organisation, name, file = path.split("/", 4)
                self._content(f"{organisation}/{name}", file)
            elif path.startswith("/api/v1/models/"):
                self._modelscope(path.removeprefix("/api/v1/models/"), query)
            else:
                self._json(200, {"Code": 200, "Success": True, "Data": {}})

    # Hugging Face

    def _hf_listing(self, rest: str) -> None:
        if "/tree/" in rest:
            self._hf_tree(rest.partition("/tree/")[0])
            return
        repo, _, revision = rest.partition("/revision/")
        if self._refused(self.hub.listing_status, repo):
            return
        if revision not in ("", "main", REVISION, COMMIT):
            self._json(404, {"error": "Invalid rev id"}, {"X-Error-Code": "RevisionNotFound"})
            return
        siblings = []
        for name, content in self.hub.models[repo].items():
            blob = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
            entry = {"rfilename": name, "size": len(content), "blobId": blob}
            if len(content) >= LARGE_BYTES:
                digest = hashlib.sha256(content).hexdigest()
                entry["lfs"] = {"sha256": digest, "size": len(content), "pointerSize": 134}
            siblings.append(entry if self.hub.tells_sizes else {"rfilename": name})
        self._json(200, {"id": repo, "modelId": repo, "sha": COMMIT, "siblings": siblings})

    def _hf_tree(self, repo: str) -> None:
        entries: list[dict[str, Any]] = [{"type": "directory", "path": "q", "oid": "0" * 40, "size": 0}]
        for name, content in self.hub.models[repo].items():
            blob = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
            entry: dict[str, Any] = {"type": "file", "path": name, "size": len(content), "oid": blob}
            if len(content) >= LARGE_BYTES:
                entry["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 134}
            entries.append(entry)
        self._json(200, entries)

    def _hf_file(self, path: str) -> None:
        repo, _, rest = path.removeprefix("/").partition("/resolve/")
        name = rest.partition("/")[2]
        if self._refused(self.hub.file_status, repo):
            return
        content = self.hub.models[repo].get(name)
        if content is None:
            self._json(404, {"error": "Entry not found"}, {"X-Error-Code": "EntryNotFound"})
        elif len(content) >= LARGE_BYTES:
            digest = hashlib.sha256(content).hexdigest()
            self._json(302, {}, {
                # another host name: what is for the hub alone must not follow
                "Location": f"http://localhost:{self.hub.port}/cdn/{repo}/{name}?signature=secret",
                "X-Repo-Commit": COMMIT, "X-Linked-Etag": f'"{digest}"', "X-Linked-Size": str(len(content)),
            })  # fmt: skip
        else:
            self._content(repo, name)

    def _refused(self, status: int, repo: str) -> bool:
        """Whether the request was answered with an error already."""
        codes = {401: "RepoNotFound", 403: "GatedRepo", 404: "RepoNotFound"}
        if status == 200 and repo in self.hub.models:
            return False
        status = 404 if status == 200 else status
        headers = {"X-Error-Code": codes.get(status, ""), "X-Error-Message": f"refused with {status}"}
        self._json(
            status, {"error": f"refused with {status}", "Code": status, "Message": f"refused with {status}"}, headers
        )
        return True

    # ModelScope

    def _modelscope(self, rest: str, query: Mapping[str, str]) -> None:
        repo = "/".join(rest.split("/")[:2])
        is_listing = rest.endswith("/repo/files")
        if self._refused(self.hub.listing_status if is_listing else self.hub.file_status, repo):
            return
        if not is_listing:
            self._content(repo, query["FilePath"])
            return
        files = [
            {
                "Path": name,
                "Name": name,
                "Type": "blob",
                "Size": len(content),
                "Sha256": hashlib.sha256(content).hexdigest(),
            }
            for name, content in self.hub.models[repo].items()
        ]
        self._json(200, {"Code": 200, "Success": True, "Data": {"Files": files}})

    # both

    def _json(self, status: int, body: object, headers: Mapping[str, str] | None = None) -> None:
        content = json.dumps(body).encode()
        self.send_response(status)
        for name, value in {**(headers or {}), "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _content(self, repo: str, name: str) -> None:
        content = self.hub.models[repo][name]
        asked = self.headers.get("Range", "")
        start = int(asked.removeprefix("bytes=").partition("-")[0]) if asked else 0
        self.send_response(206 if asked else 200)
        self.send_header("Content-Length", str(len(content) - start))
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        if asked:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        if self.command == "HEAD":
            return
        sent = Sent(name, start, authorization=self.headers.get("Authorization", ""))
        self.hub.sent.append(sent)
        body = content[start:]
        if len(content) >= LARGE_BYTES and self._counted("corrupts"):
            body = bytes(len(body))
        if len(body) > self.hub.cut_after and len(content) >= LARGE_BYTES and self._counted("cuts"):
            self._pieces(body[: self.hub.cut_after], sent)
            self.close_connection = True
            return
        if self.hub.hold_after and len(body) > self.hub.hold_after:
            self._pieces(body[: self.hub.hold_after], sent)
            body = body[self.hub.hold_after :]
            self.hub.held.set()
            self.hub.released.wait(WAIT_S)
        self._pieces(body, sent)

    def _counted(self, counter: str) -> bool:
        """Whether one more of *counter* was left."""
        with self.hub.lock:
            left: int = getattr(self.hub, counter)
            setattr(self.hub, counter, max(0, left - 1))
            return left > 0

    def _pieces(self, body: bytes, sent: Sent) -> None:
        for start in range(0, len(body), PIECE_BYTES):
            piece = body[start : start + PIECE_BYTES]
            self.wfile.write(piece)
            sent.size += len(piece)

    def log_request(self, code: object = "-", size: object = "-") -> None:
        """Print nothing."""
