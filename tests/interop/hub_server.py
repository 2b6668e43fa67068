"""A stand-in for the Hugging Face hub on this machine: repositories, revisions, commits and files, as its client asks for them."""

import base64
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit


class Hub:
    """Repositories in memory, each with its branches, served over HTTP."""

    def __init__(self):
        self.commits: dict[str, dict[str, dict[str, bytes]]] = {}
        self.branches: dict[str, dict[str, str]] = {}
        self.downloads: list[str] = []
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (_Handler,), {"hub": self}))
        self.thread = threading.Thread(target=self.server.serve_forever, daemon=True)
        self.thread.start()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}"

    def create(self, repository: str) -> None:
        if repository not in self.commits:
            self.commits[repository], self.branches[repository] = {}, {}
            self.commit(repository, "main", {})

    def commit(self, repository: str, branch: str, files: dict[str, bytes]) -> str:
        before = self.commits[repository].get(self.branches[repository].get(branch, ""), {})
        tree = {**before, **files}
        told = "".join(f"{path}:{hashlib.sha1(data).hexdigest()}" for path, data in sorted(tree.items()))
        sha = hashlib.sha1(f"{repository}{told}{len(self.commits[repository])}".encode()).hexdigest()
        self.commits[repository][sha] = tree
        self.branches[repository][branch] = sha
        return sha

    def at(self, repository: str, revision: str) -> str | None:
        sha = self.branches[repository].get(revision, revision)
        return sha if sha in self.commits[repository] else None

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub

    def log_message(self, format: str, *args) -> None:
        pass

    def do_GET(self) -> None:
        self._get(with_body=True)

    def do_HEAD(self) -> None:
        self._get(with_body=False)

    def do_POST(self) -> None:
        path = unquote(urlsplit(self.path).path)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if path == "/stop":
            self._send(200, b"{}")
            threading.Thread(target=self.hub.close).start()
        elif path == "/api/repos/create":
            wanted = json.loads(body)
            name = f"{wanted.get('organization') or 'owner'}/{wanted['name']}"
            self.hub.create(name)
            self._json({"url": f"{self.hub.address}/{name}", "name": name, "id": name})
        elif path == "/api/validate-yaml":
            self._json({"errors": [], "warnings": []})
        elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/preupload/(.+)", path):
            files = json.loads(body)["files"]
            self._json({"files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files]})
        elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/branch/(.+)", path):
            branches = self.hub.branches[found[1]]
            branches.setdefault(found[2], branches["main"])
            self._json({})
        elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/(.+)", path):
            lines = [json.loads(line) for line in body.splitlines() if line]
            files = {v["value"]["path"]: base64.b64decode(v["value"]["content"]) for v in lines if v["key"] == "file"}
            sha = self.hub.commit(found[1], found[2], files)
            self._json({"commitUrl": f"{self.hub.address}/{found[1]}/commit/{sha}", "commitOid": sha, "success": True})
        else:
            self._send(404, b"{}")

    def _get(self, with_body: bool) -> None:
        path = unquote(urlsplit(self.path).path)
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(revision|tree)/([^/]+))?(?:/.*)?", path):
            sha = self._revision(found[1], found[3] or "main")
            if sha is not None:
                self._info(found[1], sha, found[2] == "tree")
        elif found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            sha = self._revision(found[1], found[2])
            if sha is not None:
                self._file(found[1], sha, found[3], with_body)
        else:
            self._send(404, b"{}")

    def _revision(self, repository: str, revision: str) -> str | None:
        """Returns the commit; says what is missing if there is none."""
        if repository not in self.hub.commits:
            self._send(404, b"{}", {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"})
            return None
        sha = self.hub.at(repository, revision)
        if sha is None:
            self._send(404, b"{}", {"X-Error-Code": "RevisionNotFound", "X-Error-Message": "Invalid rev id"})
        return sha

    def _info(self, repository: str, sha: str, is_tree: bool) -> None:
        files = self.hub.commits[repository][sha]
        if is_tree:
            self._json([{"type": "file", "path": p, "size": len(d), "oid": _etag(d)} for p, d in sorted(files.items())])
        else:
            siblings = [{"rfilename": path} for path in sorted(files)]
            self._json({"id": repository, "modelId": repository, "sha": sha, "siblings": siblings, "private": False})

    def _file(self, repository: str, sha: str, path: str, with_body: bool) -> None:
        data = self.hub.commits[repository][sha].get(path)
        if data is None:
            self._send(404, b"{}", {"X-Error-Code": "EntryNotFound", "X-Error-Message": "Entry not found"})
            return
        if with_body:
            self.hub.downloads.append(path)
        self._send(200, data, {"ETag": f'"{_etag(data)}"', "X-Repo-Commit": sha}, with_body)

    def _json(self, value: object) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _send(self, status: int, data: bytes, headers: dict[str, str] | None = None, with_body: bool = True) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if with_body and self.command != "HEAD":
            self.wfile.write(data)


def _etag(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
