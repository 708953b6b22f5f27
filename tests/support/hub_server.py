"""
A Hub on loopback for the tests: repositories in memory behind the routes that `huggingface_hub` calls, and faults.

It keeps branches as lists of commits, checks tokens and parents of commits, and can fail: answer with an error, late,
not at all, lose a request or its answer, cut an answer short, or be away for a while.
"""

import contextlib
import json
import os
import re
import socket
import threading
import time
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from support.hub_routes import OWNER_TOKEN, READER_TOKEN, ROUTES, Commit, HubError, Repository, Request, sha256


@dataclass
class Fault:
    """What happens to requests that match, as long as `times` lasts."""

    pattern: str
    times: int = 1
    status: int | None = None
    delay: float = 0.0
    hang: bool = False
    reset: str | None = None
    truncate: bool = False


class HubServer:
    """
    The Hub. `url` is its address; `requests` lists what was asked as `"POST /api/…"`.

    With `xet` set to a folder, clients store large files there by the Xet protocol, for real; the Hub then knows their
    hashes and sizes, and not what is in them. `xet_hashes` are their hashes there by their SHA-256: what the real Hub
    learns from its storage, and a test has to tell.

    With `OWNER_TOKEN` one may write, with `READER_TOKEN` or none only read.
    """

    def __init__(self):
        self.repositories: dict[str, Repository] = {}
        self.contents: dict[str, bytes] = {}
        self.faults: list[Fault] = []
        self.requests: list[str] = []
        self.lock = threading.RLock()
        self.released = threading.Event()
        self.port = 0
        self.xet: Path | None = None
        self.xet_hashes: dict[str, str] = {}
        self.start()

    def start(self) -> None:
        """Listen, on the same port as before."""
        self.released.clear()
        self.http = _Listener(("127.0.0.1", self.port), self)
        self.port = self.http.server_port
        self.url = f"http://127.0.0.1:{self.port}"
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def stop(self) -> None:
        """Stop: connections are closed and new ones refused, until `start`."""
        self.released.set()
        self.http.shutdown()
        self.http.server_close()
        self.http.cut_connections()

    def fail(self, pattern: str, **fault: Any) -> Fault:
        """
        Let requests fail whose `"METHOD /path"` matches the regular expression `pattern`, by default once.

        `status` answers with it, `delay` answers late, `hang` never does, `reset="before"` cuts the connection and
        does nothing, `reset="after"` does what was asked and cuts it, `truncate` sends half of the body.
        """
        self.faults.append(Fault(pattern, **fault))
        return self.faults[-1]

    def heal(self) -> None:
        """Remove all faults, and release hanging requests."""
        self.faults.clear()
        self.released.set()
        self.released = threading.Event()

    def files(self, repo_id: str, branch: str = "main") -> dict[str, bytes]:
        """The files on a branch."""
        files = self.repositories[repo_id].commit(branch).files
        return {path: self.contents[sha] for path, sha in files.items()}

    def titles(self, repo_id: str, branch: str = "main") -> list[str]:
        """The titles of a branch's commits, the oldest first."""
        return [commit.title for commit in self.repositories[repo_id].branches[branch]]

    def create(self, repo_id: str, files: dict[str, bytes] | None = None, private: bool = False) -> Repository:
        """A new repository as the Hub makes it, and a commit with files if there are some."""
        repository = self.repositories[repo_id] = Repository(private=private)
        self.add(repository, "main", "initial commit", {".gitattributes": b"*.safetensors filter=lfs\n"})
        if files:
            self.add(repository, "main", "files", files)
        return repository

    def add(self, repository: Repository, branch: str, title: str, files: dict[str, bytes | str | None]) -> Commit:
        """Commit files to a branch, by content or by the SHA-256 of one that is known; `None` deletes one."""
        commits = repository.branches.setdefault(branch, [])
        now = dict(commits[-1].files) if commits else {}
        for path, content in files.items():
            if content is None:
                now.pop(path, None)
            elif isinstance(content, str):
                now[path] = content
            else:
                now[path] = sha256(content)
                self.contents[now[path]] = content
        commits.append(Commit(os.urandom(20).hex(), title, now))
        return commits[-1]

    def authority(self, token: str | None, repo_id: str, write: bool) -> None:
        if token not in (None, OWNER_TOKEN, READER_TOKEN):
            raise HubError(401, None, "Invalid credentials in Authorization header")
        repository = self.repositories.get(repo_id)
        if repository is None or (repository.private and token != OWNER_TOKEN):
            raise HubError(404 if token else 401, "RepoNotFound", "Repository not found")
        if write and token != OWNER_TOKEN:
            raise HubError(403 if token else 401, None, "You don't have the rights to write to this repository")


class _Listener(ThreadingHTTPServer):
    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, address, hub: HubServer):
        self.hub, self.connections = hub, set()
        super().__init__(address, _Handler)

    def get_request(self):
        connection, address = super().get_request()
        self.connections.add(connection)
        return connection, address

    def cut_connections(self) -> None:
        for connection in self.connections:
            _cut(connection)

    def handle_error(self, request, client_address):
        pass


def _cut(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Listener

    def do_GET(self) -> None:
        hub = self.server.hub
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        request = f"{self.command} {unquote(self.path)}"
        with hub.lock:
            hub.requests.append(request)
            fault = next((fault for fault in hub.faults if fault.times and re.search(fault.pattern, request)), None)
            if fault is None:
                fault = Fault("")
            else:
                fault.times -= 1
            released = hub.released
        if fault.hang:
            released.wait()
        time.sleep(fault.delay)
        if fault.hang or fault.reset == "before":
            return self._hang_up()
        try:
            if fault.status is not None:
                raise HubError(fault.status, None, "made to fail")
            answer = self._route(hub)
        except HubError as error:
            headers = {"X-Error-Message": error.message}
            if error.code:
                headers["X-Error-Code"] = error.code
            answer = error.status, headers, json.dumps(error.body).encode()
        if fault.reset == "after":
            return self._hang_up()
        self._answer(*answer, cut=fault.truncate)

    do_HEAD = do_POST = do_PUT = do_GET

    def _answer(self, status: int, headers: dict[str, str], body: bytes, cut: bool) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[: len(body) // 2] if cut else body)
        if cut:
            self._hang_up()

    def _hang_up(self) -> None:
        self.close_connection = True
        _cut(self.connection)

    def log_message(self, *arguments: Any) -> None:
        pass

    def _route(self, hub: HubServer) -> tuple[int, dict[str, str], bytes]:
        path, query = urlsplit(self.path).path, parse_qs(urlsplit(self.path).query)
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ") or None
        with hub.lock:
            for method, pattern, action in ROUTES:
                # Slashes inside a revision or a path come quoted, so the path is taken apart as it came.
                if self.command in method and (match := re.fullmatch(pattern, path)):
                    parts = {name: unquote(value or "") for name, value in match.groupdict().items()}
                    result = action(hub, parts, Request(self.body, query, token, self.headers))
                    return result if isinstance(result, tuple) else (200, {}, json.dumps(result).encode())
        raise HubError(404, "RepoNotFound", f"no such route: {self.command} {path}")
