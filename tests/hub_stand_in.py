"""A stand-in for the Hugging Face hub: its HTTP interface on loopback, with real files and real commits behind it.

Written after the interface as huggingface_hub calls it: information and tree of a revision, resolving files, creating
repositories, pre-upload, Git LFS, commits, branches and tags.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

_LARGE = 1000
"""Files of more bytes are stored by LFS, as the hub does for larger ones."""
_KINDS = {"models": "model", "datasets": "dataset"}


@dataclass
class Repo:
    """Commits, and what branches and tags name."""

    private: bool = False
    gated: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)

    def commit(self, files: dict[str, bytes], branch: str = "main") -> str:
        """Make a commit of these files; returns its name."""
        content = json.dumps(sorted((name, sha(data)) for name, data in files.items()))
        name = hashlib.sha1(f"{len(self.commits)}{content}".encode()).hexdigest()
        self.commits[name] = files
        self.refs[branch] = name
        return name

    def at(self, revision: str) -> str | None:
        """The commit that a revision means."""
        return self.refs.get(revision, revision if revision in self.commits else None)


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def blob_id(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


class StandIn:
    """The state of the server."""

    def __init__(self) -> None:
        self.repos: dict[tuple[str, str], Repo] = {}
        self.large: dict[str, bytes] = {}
        self.requests: list[str] = []
        """Method and path of each, in order."""
        self.token = "hf_test"
        self.broken = False
        """Answer everything with 500."""
        self.url = ""

    def add(self, name: str, folder: Path, kind: str = "model") -> str:
        """A repository with the files of a folder; returns the commit."""
        repo = self.repos.setdefault((kind, name), Repo())
        names = [file for file in sorted(folder.rglob("*")) if file.is_file()]
        return repo.commit({file.relative_to(folder).as_posix(): file.read_bytes() for file in names})

    def files(self, name: str, kind: str = "model", revision: str = "main") -> dict[str, bytes]:
        """What a repository has."""
        repo = self.repos[kind, name]
        return repo.commits[repo.refs[revision]]


@contextmanager
def serve() -> Iterator[StandIn]:
    """Serve until the block ends."""
    state = StandIn()

    class Handler(_Handler):
        hub = state

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    hub: StandIn
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing."""

    def do_HEAD(self) -> None:
        self._answer(b"")

    def do_GET(self) -> None:
        self._answer(b"")

    def do_POST(self) -> None:
        self._answer(self.rfile.read(int(self.headers.get("Content-Length", 0))))

    def do_PUT(self) -> None:
        self.do_POST()

    def do_DELETE(self) -> None:
        self.do_POST()

    def _answer(self, body: bytes) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append(f"{self.command} {path}")
        if self.hub.broken:
            self._send(500, {"error": "out of order"})
            return
        for pattern, method, handle in self._routes():
            match = re.fullmatch(pattern, path)
            if match and self.command in method:
                handle(*match.groups(), body)
                return
        self._send(404, {"error": f"no route {path}"})

    def _routes(self) -> list[tuple[str, str, Any]]:
        repo = "/api/(models|datasets)/([^/]+/[^/]+)"
        return [
            (f"{repo}/revision/(.+)", "GET", self._info),
            (f"{repo}/tree/([^/]+)", "GET", self._tree),
            (repo, "GET", lambda kind, name, body: self._info(kind, name, "main", body)),
            (f"{repo}/preupload/(.+)", "POST", self._preupload),
            (f"{repo}/commit/(.+)", "POST", self._commit),
            (f"{repo}/branch/(.+)", "POST", self._branch),
            (f"{repo}/tag/(.+)", "POST DELETE", self._tag),
            ("/api/repos/create", "POST", self._create),
            ("/api/validate-yaml", "POST", lambda body: self._send(200, {"errors": [], "warnings": []})),
            (r"/(datasets/)?([^/]+/[^/]+)\.git/info/lfs/objects/batch", "POST", self._lfs_batch),
            ("/lfs/([0-9a-f]{64})", "PUT", self._lfs_put),
            ("/(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)", "GET HEAD", self._resolve),
        ]

    def _repo(self, kind: str, name: str) -> Repo | None:
        """The repository, where who asks may see it; otherwise the answer is sent."""
        repo = self.hub.repos.get((_KINDS[kind], name))
        if repo is None or (repo.private and not self._known()):
            self._send(
                401, {"error": "Invalid username or password."}, {"X-Error-Message": "Invalid username or password."}
            )
            return None
        if repo.gated and not self._known():
            self._send(403, {"error": "restricted"}, {"X-Error-Code": "GatedRepo"})
            return None
        return repo

    def _known(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {self.hub.token}"

    def _may_write(self) -> bool:
        if not self._known():
            self._send(401, {"error": "Invalid username or password."})
        return self._known()

    def _at(self, repo: Repo, revision: str) -> str | None:
        commit = repo.at(revision)
        if commit is None:
            self._send(404, {"error": "no such revision"}, {"X-Error-Code": "RevisionNotFound"})
        return commit

    def _info(self, kind: str, name: str, revision: str, body: bytes) -> None:
        repo = self._repo(kind, name)
        if repo is not None and (commit := self._at(repo, revision)):
            siblings = [{"rfilename": file} for file in repo.commits[commit]]
            self._send(200, {"id": name, "sha": commit, "private": repo.private, "siblings": siblings})

    def _tree(self, kind: str, name: str, revision: str, body: bytes) -> None:
        repo = self._repo(kind, name)
        if repo is None or not (commit := self._at(repo, revision)):
            return
        entries: list[dict[str, Any]] = []
        for file, data in repo.commits[commit].items():
            entry: dict[str, Any] = {"type": "file", "path": file, "size": len(data), "oid": blob_id(data)}
            if len(data) > _LARGE:
                entry["lfs"] = {"oid": sha(data), "size": len(data), "pointerSize": 130}
            entries.append(entry)
        self._send(200, entries)

    def _resolve(self, kind: str | None, name: str, revision: str, file: str, body: bytes) -> None:
        repo = self._repo("datasets" if kind else "models", name)
        if repo is None or not (commit := self._at(repo, revision)):
            return
        data = repo.commits[commit].get(file)
        if data is None:
            self._send(404, {"error": "no such file"}, {"X-Error-Code": "EntryNotFound"})
            return
        etag = sha(data) if len(data) > _LARGE else blob_id(data)
        self._send(200, data, {"ETag": f'"{etag}"', "X-Repo-Commit": commit})

    def _create(self, body: bytes) -> None:
        if not self._may_write():
            return
        asked = json.loads(body)
        key = (asked.get("type", "model"), f"{asked.get('organization') or 'me'}/{asked['name']}")
        if key in self.hub.repos:
            self._send(409, {"error": "You already created this repo", "url": f"{self.hub.url}/{key[1]}"})
            return
        self.hub.repos[key] = Repo(private=asked.get("visibility") == "private")
        self.hub.repos[key].commit({".gitattributes": b"*.safetensors filter=lfs\n"})
        self._send(200, {"url": f"{self.hub.url}/{'datasets/' if key[0] == 'dataset' else ''}{key[1]}"})

    def _preupload(self, kind: str, name: str, revision: str, body: bytes) -> None:
        repo = self._repo(kind, name)
        if repo is None or not (commit := self._at(repo, revision)):
            return
        files: list[dict[str, Any]] = []
        for file in json.loads(body)["files"]:
            mode = "lfs" if file["size"] > _LARGE else "regular"
            there = repo.commits[commit].get(file["path"])
            oid = None if there is None else sha(there) if mode == "lfs" else blob_id(there)
            files.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        self._send(200, {"files": files})

    def _lfs_batch(self, kind: str | None, name: str, body: bytes) -> None:
        objects: list[dict[str, Any]] = []
        for asked in json.loads(body)["objects"]:
            upload = {"upload": {"href": f"{self.hub.url}/lfs/{asked['oid']}"}}
            actions = {} if asked["oid"] in self.hub.large else {"actions": upload}
            objects.append({**asked, **actions})
        self._send(200, {"transfer": "basic", "objects": objects})

    def _lfs_put(self, oid: str, body: bytes) -> None:
        if sha(body) != oid:
            self._send(400, {"error": "another checksum"})
            return
        self.hub.large[oid] = body
        self._send(200, {})

    def _commit(self, kind: str, name: str, revision: str, body: bytes) -> None:
        repo = self._repo(kind, name)
        if repo is None or not self._may_write() or not (parent := self._at(repo, revision)):
            return
        files = dict(repo.commits[parent])
        for line in body.splitlines():
            change = json.loads(line)
            value = change["value"]
            match change["key"]:
                case "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                case "lfsFile":
                    files[value["path"]] = self.hub.large[value["oid"]]
                case "deletedFile":
                    del files[value["path"]]
                case "header":
                    pass
                case other:
                    self._send(400, {"error": f"unknown operation {other}"})
                    return
        commit = repo.commit(files, revision)
        self._send(200, {"commitUrl": f"{self.hub.url}/{name}/commit/{commit}", "commitOid": commit, "success": True})

    def _branch(self, kind: str, name: str, branch: str, body: bytes) -> None:
        repo = self._repo(kind, name)
        if repo is not None and self._may_write():
            taken = branch in repo.refs
            repo.refs.setdefault(branch, repo.refs["main"])
            self._send(409 if taken else 201, {})

    def _tag(self, kind: str, name: str, revision: str, body: bytes) -> None:
        repo = self._repo(kind, name)
        if repo is None or not self._may_write():
            return
        if self.command == "DELETE":
            known = repo.refs.pop(revision, None)
            headers = {} if known else {"X-Error-Code": "RevisionNotFound"}
            self._send(200 if known else 404, {}, headers)
            return
        if commit := self._at(repo, revision):
            repo.refs[json.loads(body)["tag"]] = commit
            self._send(200, {})

    def _send(self, status: int, content: Any, headers: dict[str, str] | None = None) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        kind = "application/octet-stream" if isinstance(content, bytes) else "application/json"
        for name, value in {"Content-Type": kind, "Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)
