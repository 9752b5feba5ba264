"""A model hub on this machine: one repository, one commit, files from a folder; it remembers what was fetched."""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

REPOSITORY, COMMIT = "someone/some-model", "0123456789abcdef0123456789abcdef01234567"


class FakeHub:
    """What of the hub's HTTP interface huggingface_hub needs to list and fetch files."""

    def __init__(self, folder: Path):
        self.fetched: list[str] = []
        self.n_requests = 0
        self._files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                hub.answer(self, with_body=True)

            def do_HEAD(self) -> None:
                hub.answer(self, with_body=False)

            def log_message(self, *_: Any) -> None:
                """Nothing: the test's own output is enough."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}"

    def answer(self, request: BaseHTTPRequestHandler, *, with_body: bool) -> None:
        """Answer one request."""
        self.n_requests += 1
        path = request.path.partition("?")[0]
        file = path.removeprefix(f"/{REPOSITORY}/resolve/{COMMIT}/")
        if path == f"/api/models/{REPOSITORY}/revision/{COMMIT}":
            siblings = [{"rfilename": name} for name in self._files]
            self._send(request, 200, json.dumps({"id": REPOSITORY, "sha": COMMIT, "siblings": siblings}).encode())
        elif path == f"/api/models/{REPOSITORY}/tree/{COMMIT}":
            tree = [
                {"type": "file", "path": name, "size": file.stat().st_size, "oid": _etag(file)}
                for name, file in self._files.items()
            ]
            self._send(request, 200, json.dumps(tree).encode())
        elif file in self._files:
            if with_body:
                self.fetched.append(file)
            content, etag = self._files[file].read_bytes(), _etag(self._files[file])
            self._send(request, 200, content, with_body, {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT})
        else:
            code = "RepoNotFound" if path.startswith("/api") else "EntryNotFound"
            self._send(request, 404, b"{}", with_body, {"X-Error-Code": code})

    def _send(
        self,
        request: BaseHTTPRequestHandler,
        status: int,
        body: bytes,
        with_body: bool = True,
        headers: dict[str, str] | None = None,
    ) -> None:
        request.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            request.send_header(name, value)
        request.end_headers()
        if with_body:
            request.wfile.write(body)


def _etag(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


@contextmanager
def serving(folder: Path) -> Iterator[FakeHub]:
    """A hub that holds the folder as `REPOSITORY` at `COMMIT`."""
    hub = FakeHub(folder)
    thread = threading.Thread(target=hub.server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.server.shutdown()
        hub.server.server_close()
        thread.join()


def use_hub(monkeypatch: pytest.MonkeyPatch, endpoint: str, cache: Path) -> None:
    """Let huggingface_hub ask there, and keep what it fetches below `cache`."""
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", endpoint)
    template = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True, raising=False)


NOWHERE = "http://127.0.0.1:9"  # the port of the discard service: nobody listens
