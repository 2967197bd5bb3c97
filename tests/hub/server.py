"""A server on this machine: plain files that can be cut or refused, and what the HF API needs."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import http.server
import json
import re
import threading
import urllib.parse
from collections.abc import Iterator, Mapping
from typing import Any

TOKEN = "hf_test_token"


class Server(http.server.ThreadingHTTPServer):
    """Serves `files` by path, and `repositories` as the Hugging Face Hub does.

    Attributes:
        files: bytes by path, "/net.zip".
        repositories: files by name, of each commit, of each repository.
        branches: the commit of "owner/name@branch".
        cuts: after how many bytes the next answers with content break off, in order.
        statuses: what paths are refused with, in order; the last one stays.
        redirects: where paths lead.
        private: repositories that need `TOKEN`.
        log: what was asked, "GET /net.zip bytes=10-".
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.repositories: dict[str, dict[str, dict[str, bytes]]] = {}
        self.branches: dict[str, str] = {}
        self.cuts: list[int] = []
        self.statuses: dict[str, list[int]] = {}
        self.redirects: dict[str, str] = {}
        self.private: set[str] = set()
        self.log: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def handle_of(self, path: str) -> str:
        """Return the handle of a plain file."""
        return f"{self.url}{path}#sha256={hashlib.sha256(self.files[path]).hexdigest()}"

    def commit(self, repository: str, files: Mapping[str, bytes], branch: str = "main") -> str:
        """Add a commit that has these files."""
        text = json.dumps([repository, *sorted((k, len(v)) for k, v in files.items())])
        commits = self.repositories.setdefault(repository, {})
        commit = hashlib.sha1(f"{text}{len(commits)}".encode()).hexdigest()
        commits[commit] = dict(files)
        self.branches[f"{repository}@{branch}"] = commit
        return commit

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of connections that a test broke."""


class Handler(http.server.BaseHTTPRequestHandler):
    """One request."""

    server: Server  # pyright: ignore[reportIncompatibleVariableOverride]
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        path = urllib.parse.urlsplit(self.path).path
        part = self.headers.get("Range", "")
        self.server.log.append(f"{self.command} {path} {part}".strip())
        if path in self.server.statuses:
            left = self.server.statuses[path]
            status = left.pop(0) if len(left) > 1 else left[0]
            if status != 200:
                self._json(status, {"error": "as the test says"})
                return
        if path in self.server.redirects:
            self._start(302, {"Location": self.server.redirects[path], "Content-Length": "0"})
        elif path in self.server.files:
            self._content(self.server.files[path], {})
        elif match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self._resolve(*map(urllib.parse.unquote, match.groups()))
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(.+))?", path):
            self._repository(match[1], urllib.parse.unquote(match[2] or ""))
        else:
            self._json(404, {"error": "nothing here"})

    do_HEAD = do_GET  # noqa: N815 (its name is http.server's)

    def do_POST(self) -> None:
        path = urllib.parse.urlsplit(self.path).path
        self.server.log.append(f"POST {path}")
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self._json(401, {"error": "Invalid credentials"})
        elif path == "/api/repos/create":
            asked = json.loads(body)
            name = "/".join(filter(None, (asked.get("organization", "me"), asked["name"])))
            if name not in self.server.repositories:
                self.server.commit(name, {".gitattributes": b""})
            self._json(200, {"url": f"{self.server.url}/{name}", "name": name})
        elif path == "/api/validate-yaml":
            self._json(200, {"errors": [], "warnings": []})
        elif "/preupload/" in path:
            files = json.loads(body)["files"]
            modes = [
                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files
            ]
            self._json(200, {"files": modes})
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/([^/]+)", path):
            self._commit(match[1], match[2], [json.loads(x) for x in body.splitlines()])
        else:
            self._json(404, {"error": "nothing here"})

    def _commit(self, repository: str, branch: str, lines: list[dict[str, Any]]) -> None:
        at = self.server.branches[f"{repository}@{branch}"]
        files = dict(self.server.repositories[repository][at])
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "deletedFile":
                del files[value["path"]]
        commit = self.server.commit(repository, files, branch)
        url = f"{self.server.url}/{repository}/commit/{commit}"
        self._json(200, {"success": True, "commitOid": commit, "commitUrl": url})

    def _may_read(self, repository: str) -> bool:
        allowed = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        if repository in self.server.repositories and (
            repository not in self.server.private or allowed
        ):
            return True
        self._json(401, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
        return False

    def _at(self, repository: str, revision: str) -> str | None:
        commit = self.server.branches.get(f"{repository}@{revision}", revision)
        if commit in self.server.repositories[repository]:
            return commit
        self._json(404, {"error": "Invalid rev id"}, {"X-Error-Code": "RevisionNotFound"})
        return None

    def _resolve(self, repository: str, revision: str, name: str) -> None:
        if not self._may_read(repository):
            return
        commit = self._at(repository, revision)
        if commit is None:
            return
        files = self.server.repositories[repository][commit]
        known = {"X-Repo-Commit": commit}
        if name not in files:
            self._json(404, {"error": "no file"}, {**known, "X-Error-Code": "EntryNotFound"})
            return
        self._content(files[name], known)

    def _repository(self, repository: str, rest: str) -> None:
        if not self._may_read(repository):
            return
        kind, _, revision = rest.partition("/")
        commit = self._at(repository, revision or "main")
        if commit is None:
            return
        files = self.server.repositories[repository][commit]
        if kind == "tree":
            listed = [
                {"type": "file", "path": k, "size": len(v), "oid": hashlib.sha1(v).hexdigest()}
                for k, v in files.items()
            ]
            self._json(200, listed)
            return
        siblings = [{"rfilename": name} for name in files]
        self._json(200, {"id": repository, "sha": commit, "siblings": siblings, "private": False})

    def _content(self, data: bytes, headers: Mapping[str, str]) -> None:
        tag = f'"{hashlib.sha256(data).hexdigest()}"'
        start = 0
        match = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if match and self.headers.get("If-Range", tag) == tag:
            start = int(match[1])
            if start >= len(data):
                self._start(416, {"Content-Length": "0"})
                return
        sent = {"Content-Length": str(len(data) - start), "ETag": tag, **headers}
        if start:
            sent["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        self._start(206 if start else 200, sent)
        if self.command == "HEAD":
            return
        if self.server.cuts:
            self.wfile.write(data[start : start + self.server.cuts.pop(0)])
            self.close_connection = True
        else:
            self.wfile.write(data[start:])

    def _json(self, status: int, value: Any, headers: Mapping[str, str] | None = None) -> None:
        data = json.dumps(value).encode()
        known = {"Content-Type": "application/json", "Content-Length": str(len(data))}
        self._start(status, {**known, **(headers or {})})
        if self.command != "HEAD":
            self.wfile.write(data)

    def _start(self, status: int, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


@contextlib.contextmanager
def running() -> Iterator[Server]:
    """Run a server, and stop it at the end."""
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
