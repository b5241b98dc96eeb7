"""The Hub's HTTP interface on loopback; `writing.py` has the part for writing.

Stands in for huggingface.co: clients reach it through `HF_ENDPOINT` and notice no difference. Files are sent whole or
in ranges, without redirections and without Xet. Of a gated repository everybody sees what it holds, and only those
with access get its files, as on the Hub.
"""

from __future__ import annotations

import json
import os
import re
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Collection, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

from .answers import Answer, Refusal, as_json, byte_range, is_true
from .repository import Repository
from .writing import Desk

ID = r"(?P<id>[^/]+(?:/[^/]+)?)"
FILE = re.compile(rf"/(?P<kind>datasets/|)(?!api/){ID}/resolve/(?P<revision>[^/]+)/(?P<path>.+)")
API = rf"/api/(?P<kind>models|datasets)/{ID}"
INFO = re.compile(rf"{API}(?:/revision/(?P<revision>[^/]+))?")
TREE = re.compile(rf"{API}/tree/(?P<revision>[^/]+)(?:/(?P<path>.+))?")
PATHS = re.compile(rf"{API}/paths-info/(?P<revision>[^/]+)")


class Cut(NamedTuple):
    """The connection ends after so many bytes of the content."""

    after: int
    reset: bool = False
    """Not closed in an orderly way, but reset."""


class Hub(ThreadingHTTPServer):
    """Serves `root/models/<owner>/<name>/` and `root/datasets/<owner>/<name>/` while it is entered.

    `gated`: the tokens that have access to a repository; others get 403, and 401 without a token. `revisions`: names of
    branches and tags beside `main`. Both by id, with `datasets/` before that of a dataset, as in the Hub's addresses.
    `trouble` is asked before each answer, with the method and path, for an error status to give instead, or a `Cut`.
    `writers`: the tokens that may make and change any model.
    """

    daemon_threads = True

    def __init__(
        self,
        root: str | Path,
        *,
        gated: Mapping[str, Collection[str]] | None = None,
        revisions: Mapping[str, Collection[str]] | None = None,
        trouble: Callable[[str, str], int | Cut | None] | None = None,
        writers: Collection[str] = (),
    ):
        self.root, self.gated, self.revisions = Path(root), dict(gated or {}), dict(revisions or {})
        self.trouble = trouble or (lambda method, path: None)
        self.desk = Desk(self.root, writers)
        self.requests: list[tuple[str, str, int]] = []
        """(method, path, status) of each answer so far, the path without its query."""
        super().__init__(("127.0.0.1", 0), _Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def environment(self, home: str | Path, **changes: str) -> dict[str, str]:
        """Environment of a process whose clients use this server and keep everything below `home`.

        The process computes on one thread: models as small as these only lose time to several.
        """
        own = ("HF_", "HUGGING", "TRANSFORMERS_")
        kept = {name: value for name, value in os.environ.items() if not name.startswith(own)}
        plain = {"NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1", "OMP_NUM_THREADS": "1"}
        # on a busy machine an answer may take longer than the ten seconds that the clients give a real Hub
        plain |= dict.fromkeys(("HF_HUB_ETAG_TIMEOUT", "HF_HUB_DOWNLOAD_TIMEOUT"), "120")
        return {**kept, **plain, "HF_ENDPOINT": self.url, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0", **changes}

    def __enter__(self) -> Hub:
        self._thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *error) -> None:
        self.shutdown()
        self._thread.join()
        self.server_close()

    def handle_error(self, request, client_address) -> None:
        if not isinstance(sys.exception(), ConnectionError):  # clients may hang up
            super().handle_error(request, client_address)

    def repository(self, kind: str, id: str, token: str | None) -> Repository:
        folder = self.root / kind / id
        if "/" not in id or ".." in id.split("/") or not folder.is_dir():
            if token is None:  # the Hub does not tell strangers whether a private one exists
                raise Refusal(401, "RepoNotFound", "Invalid username or password.")
            raise Refusal(404, "RepoNotFound", "Repository not found")
        key = Repository(kind, id, folder).key
        return Repository(kind, id, folder, self.gated.get(key), self.revisions.get(key, ()))

    def check_access(self, repository: Repository, token: str | None) -> None:
        """Raises Refusal if the repository is gated and the token is not on its list."""
        if repository.friends is None or token in repository.friends:
            return
        restricted = f"Access to {repository.kind[:-1]} {repository.id} is restricted"
        if token is None:
            words = "You must have access to it and be authenticated to access it. Please log in."
            raise Refusal(401, "GatedRepo", f"{restricted}. {words}")
        page = f"https://huggingface.co/{repository.key}"
        words = f"and you are not in the authorized list. Visit {page} to ask for access."
        raise Refusal(403, "GatedRepo", f"{restricted} {words}")


class _Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # headers and body are two writes: the second would wait for the first's receipt

    def do_GET(self) -> None:
        body = self._body()
        url = urlsplit(self.path)
        trouble = self.server.trouble(self.command, url.path)
        try:
            if isinstance(trouble, int):
                raise Refusal(trouble, None, "The server is overloaded")
            answer = self._answer(url.path, parse_qs(url.query), body)
        except Refusal as refusal:
            answer = refusal.answer()
        self.server.requests.append((self.command, url.path, answer.status))
        self.send_response(answer.status)
        for name, value in {"Content-Length": str(len(answer.body)), **answer.headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer.body[: trouble.after] if isinstance(trouble, Cut) else answer.body)
        if isinstance(trouble, Cut):
            self.close_connection = True
            if trouble.reset:
                time.sleep(0.2)  # a reset also takes what is on its way
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.connection.close()

    do_HEAD = do_POST = do_PUT = do_GET

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def log_message(self, format, *arguments) -> None:
        """`Hub.requests` is the log."""

    def _answer(self, path: str, query: dict[str, list[str]], body: bytes) -> Answer:
        scheme, _, token = self.headers.get("Authorization", "").partition(" ")
        token = token if scheme == "Bearer" and token else None
        if path == "/api/whoami-v2":
            return self._whoami(token)
        if written := self.server.desk.answer(self.command, path, body, token, self.server.url):
            return written
        method = "GET" if self.command == "HEAD" else self.command
        for allowed, pattern in (("GET", FILE), ("GET", TREE), ("POST", PATHS), ("GET", INFO)):
            found = pattern.fullmatch(path)
            if not found or method != allowed:
                continue
            named = {name: unquote(value) for name, value in found.groupdict(default="").items()}
            repository = self.server.repository(named["kind"].strip("/") or "models", named["id"], token)
            revision = named["revision"] or "main"
            if not repository.has_revision(revision):
                raise Refusal(404, "RevisionNotFound", f"Invalid rev id: {revision}")
            if pattern is FILE:
                self.server.check_access(repository, token)
                return self._file(repository, named["path"])
            if pattern is TREE:
                return self._tree(repository, named["path"], revision, query)
            if pattern is PATHS:
                return self._paths_info(repository, body)
            return as_json(repository.info(blobs=is_true(query, "blobs")))
        raise Refusal(404, None, "Sorry, we can't find the page you are looking for.")

    def _whoami(self, token: str | None) -> Answer:
        if token is None:
            raise Refusal(401, None, "Invalid username or password.")
        access = {"type": "access_token", "accessToken": {"displayName": "tests", "role": "read"}}
        return as_json(
            {"type": "user", "id": "0" * 24, "name": "reader", "fullname": "Reader", "orgs": [], "auth": access}
        )

    def _tree(self, repository: Repository, path: str, revision: str, query: dict[str, list[str]]) -> Answer:
        entries = repository.tree(path, recursive=is_true(query, "recursive"), expand=is_true(query, "expand"))
        if entries is None:
            raise Refusal(404, "EntryNotFound", f'{path} does not exist on "{revision}"')
        return as_json(entries)

    def _paths_info(self, repository: Repository, body: bytes) -> Answer:
        if self.headers.get("Content-Type", "").startswith("application/json"):
            asked = json.loads(body)
            return as_json(repository.paths_info(asked["paths"], expand=bool(asked.get("expand"))))
        form = parse_qs(body.decode())
        return as_json(repository.paths_info(form.get("paths", []), expand=is_true(form, "expand")))

    def _file(self, repository: Repository, path: str) -> Answer:
        commit = {"X-Repo-Commit": repository.commit()}
        file = repository.files().get(path)
        if file is None:
            raise Refusal(404, "EntryNotFound", "Entry not found", commit)
        headers = {
            **commit,
            "ETag": f'"{file.etag}"',
            "Accept-Ranges": "bytes",
            "Content-Type": "application/octet-stream",
            "Content-Disposition": f'inline; filename="{Path(path).name}";',
        }
        if file.sha256:
            headers |= {"X-Linked-Size": str(file.size), "X-Linked-ETag": f'"{file.sha256}"'}
        if self.command == "HEAD":
            return Answer(200, {**headers, "Content-Length": str(file.size)}, b"")
        content = (repository.folder / path).read_bytes()
        wanted = byte_range(self.headers.get("Range"), file.size)
        if wanted is None:
            return Answer(200, headers, content)
        return Answer(
            206,
            {**headers, "Content-Range": f"bytes {wanted.start}-{wanted.stop - 1}/{file.size}"},
            content[wanted.start : wanted.stop],
        )
