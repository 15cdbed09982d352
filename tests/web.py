"""A server of files for tests: it breaks off, goes on in the middle, and speaks as the Hugging Face hub does."""

import contextlib
import hashlib
import http.server
import json
import re
import threading
import time
from collections.abc import Iterator
from typing import NamedTuple

_REVISION = re.compile(r"/api/models/([^/?]+/[^/?]+)(?:/revision/([^/?]+))?(?:\?.*)?")
_FILE = re.compile(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)")


class Asked(NamedTuple):
    """A request."""

    method: str
    path: str
    range: str
    token: str


class Repository:
    """A repository of the hub: files by commit, and names of commits."""

    def __init__(self, files: dict[str, bytes], private: bool = False, gated: bool = False) -> None:
        self.commits: dict[str, dict[str, bytes]] = {}
        self.names: dict[str, str] = {}
        self.private = private
        self.gated = gated
        self.commit(files)

    def commit(self, files: dict[str, bytes], name: str = "main") -> str:
        digest = hashlib.sha1(repr(sorted(files.items())).encode()).hexdigest()
        self.commits[digest] = files
        self.names[name] = digest
        return digest


class Web:
    """What the server has, and what it was asked."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.files: dict[str, bytes] = {}
        self.types: dict[str, str] = {}
        self.tags = True
        self.ranges = True
        self.repositories: dict[str, Repository] = {}
        self.asked: list[Asked] = []
        # Each answer of a file is broken off after so many bytes, as long as there are such numbers.
        self.breaks: list[int] = []
        # An answer waits after so many bytes, for ever if nobody changes that.
        self.pause_after: int | None = None

    def paths(self, method: str = "GET") -> list[str]:
        return [asked.path for asked in self.asked if asked.method == method]


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    web: Web

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def handle(self) -> None:
        with contextlib.suppress(ConnectionError):  # of who asked, and was killed
            super().handle()

    def log_message(self, format: str, *args: object) -> None:
        pass

    def _answer(self, with_body: bool) -> None:
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        self.web.asked.append(Asked(self.command, self.path, self.headers.get("Range") or "", token))
        if self.path in self.web.files:
            return self._file(self.web.files[self.path], with_body, {})
        if match := _REVISION.fullmatch(self.path):
            return self._revision(match[1], match[2] or "main", token, with_body)
        if match := _FILE.fullmatch(self.path):
            return self._file_of_hub(match[1], match[2], match[3], token, with_body)
        return self._send(404, b"", with_body)

    def _refused(self, name: str, token: str, with_body: bool) -> bool:
        """The hub tells strangers that private repositories do not exist."""
        repository = self.web.repositories.get(name)
        if repository is None or (repository.private and token != "secret"):
            self._send(401, b"", with_body, {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"})
            return True
        if repository.gated and token != "secret":
            self._send(403, b"", with_body, {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access is restricted"})
            return True
        return False

    def _revision(self, name: str, revision: str, token: str, with_body: bool) -> None:
        if self._refused(name, token, with_body):
            return
        repository = self.web.repositories[name]
        commit = repository.names.get(revision, revision)
        if commit not in repository.commits:
            return self._send(404, b"", with_body, {"X-Error-Code": "RevisionNotFound"})
        siblings = [{"rfilename": file, "size": len(data)} for file, data in repository.commits[commit].items()]
        info = {"_id": "1", "id": name, "modelId": name, "sha": commit, "private": False, "tags": [], "downloads": 0}
        body = json.dumps({**info, "siblings": siblings}).encode()
        self._send(200, body, with_body, {"Content-Type": "application/json"})

    def _file_of_hub(self, name: str, revision: str, file: str, token: str, with_body: bool) -> None:
        if self._refused(name, token, with_body):
            return
        repository = self.web.repositories[name]
        commit = repository.names.get(revision, revision)
        if commit not in repository.commits:
            return self._send(404, b"", with_body, {"X-Error-Code": "RevisionNotFound"})
        if file not in repository.commits[commit]:
            return self._send(404, b"", with_body, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})
        self._file(repository.commits[commit][file], with_body, {"X-Repo-Commit": commit})

    def _file(self, data: bytes, with_body: bool, headers: dict[str, str]) -> None:
        tag = f'"{hashlib.sha256(data).hexdigest()}"'
        headers = {"Content-Type": self.web.types.get(self.path, "application/octet-stream"), **headers}
        if self.web.tags:
            headers["ETag"] = tag
        match = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
        is_same = self.headers.get("If-Range") in (None, tag)
        if match and self.web.ranges and is_same:
            start = int(match[1])
            if start >= len(data):
                return self._send(416, b"", with_body, {"Content-Range": f"bytes */{len(data)}"})
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
            return self._send(206, data[start:], with_body, headers, breaks=True)
        return self._send(200, data, with_body, headers, breaks=True)

    def _send(
        self, status: int, body: bytes, with_body: bool, headers: dict[str, str] | None = None, breaks: bool = False
    ) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        if breaks and with_body and self.web.breaks:
            self.close_connection = True
            self.send_header("Connection", "close")
            body = body[: self.web.breaks.pop(0)]
        self.end_headers()
        if with_body:
            pause = self.web.pause_after
            self.wfile.write(body[:pause])
            while pause is not None and self.web.pause_after is not None:
                time.sleep(0.01)
            if pause is not None:
                self.wfile.write(body[pause:])


@contextlib.contextmanager
def serving() -> Iterator[Web]:
    """Yields a server on this machine while it answers."""

    class Handler(_Handler):
        pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    Handler.web = Web(f"http://127.0.0.1:{server.server_address[1]}")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield Handler.web
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
