"""A Hugging Face Hub on the loopback interface: what the real client needs to download and to push models.

    with HubServer() as hub:
        hub.add_folder("org/name", folder)
        ...  # the client with HF_ENDPOINT=hub.endpoint

Repositories are dicts of bytes in memory with one branch and tags; every file is a regular one (no LFS, no Xet).
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

_RESOLVE = re.compile(r"/(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<file>.+)")
_API = re.compile(r"/api/models/(?P<repo>[^/]+/[^/]+)(?:/(?P<verb>[a-z]+)(?:/(?P<revision>[^/]+))?)?/?")


class HubServer:
    """Serves `repos` until closed; counts what was asked for in `requests`."""

    def __init__(self) -> None:
        self.repos: dict[str, dict[str, bytes]] = {}
        self.tags: dict[tuple[str, str], dict[str, bytes]] = {}  # (repository, tag) -> its files then
        self.gated: set[str] = set()
        self.status: dict[str, int] = {}  # repository -> HTTP status that each request for it gets
        self.cut: dict[str, int] = {}  # repository -> bytes of each file after which the connection is closed
        self.requests: list[str] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> HubServer:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def add_folder(self, repo: str, folder: Path) -> None:
        """Puts all files below `folder` into `repo`."""
        paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
        self.repos[repo] = {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}

    def files(self, repo: str, revision: str | None) -> dict[str, bytes] | None:
        """The files of a branch, tag or commit; None when there is none of that name."""
        versions = [files for (name, _), files in self.tags.items() if name == repo] + [self.repos[repo]]
        commits = {self.commit_hash(files): files for files in versions}
        return self.tags.get((repo, revision or "main"), commits.get(revision or "main")) or (
            self.repos[repo] if revision in (None, "main") else None
        )

    @staticmethod
    def commit_hash(files: dict[str, bytes]) -> str:
        """40 hex digits that change with the content, as git's do."""
        digest = hashlib.sha1()
        for name, content in sorted(files.items()):
            digest.update(name.encode() + b"\0" + content)
        return digest.hexdigest()


def _etag(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _handler(hub: HubServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self._get(with_body=False)

        def do_GET(self) -> None:
            self._get(with_body=True)

        def _get(self, with_body: bool) -> None:
            url = unquote(urlsplit(self.path).path)
            hub.requests.append(f"{self.command} {url}")
            resolve, api = _RESOLVE.fullmatch(url), _API.fullmatch(url)
            match = resolve or api
            if match is None:
                self._json({"error": "no such page"}, 404)
            elif self._refused(match["repo"], is_file=resolve is not None):
                pass
            elif (files := hub.files(match["repo"], match["revision"])) is None:
                self._json({"error": "Revision not found"}, 404, {"X-Error-Code": "RevisionNotFound"})
            elif resolve is not None:
                self._file(resolve["repo"], files, resolve["file"], with_body)
            elif api["verb"] == "tree":
                self._json(
                    [
                        {"type": "file", "path": name, "size": len(content), "oid": _etag(content)}
                        for name, content in files.items()
                    ]
                )
            else:
                self._json(
                    {
                        "id": api["repo"],
                        "sha": hub.commit_hash(files),
                        "private": False,
                        "tags": [],
                        "siblings": [{"rfilename": name} for name in files],
                    }
                )

        def _refused(self, repo: str, is_file: bool) -> bool:
            """Answers for repositories that are absent, gated (they show their listing) or set to fail."""
            if repo in hub.status:
                self._json({"error": "set to fail"}, hub.status[repo])
            elif repo in hub.gated and is_file:
                self._json({"error": "Access to this model is restricted"}, 403, {"X-Error-Code": "GatedRepo"})
            elif repo not in hub.repos:
                # As the real Hub does for one who is not logged in: it does not tell absent from private.
                self._json({"error": "Repository not found"}, 401, {"X-Error-Code": "RepoNotFound"})
            else:
                return False
            return True

        def _file(self, repo: str, files: dict[str, bytes], name: str, with_body: bool) -> None:
            headers = {"X-Repo-Commit": hub.commit_hash(files)}
            content = files.get(name)
            if content is None:
                self._json({"error": "Entry not found"}, 404, {"X-Error-Code": "EntryNotFound", **headers})
                return
            start = 0
            asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
            if asked is not None:
                start = int(asked[1])
                headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
            headers |= {"ETag": f'"{_etag(content)}"', "Content-Type": "application/octet-stream"}
            self._head(206 if asked else 200, headers, len(content) - start)
            if with_body:
                stop = min(hub.cut.get(repo, len(content)), len(content))
                self.wfile.write(content[start:stop])
                if stop < len(content):
                    self.close_connection = True

        def do_POST(self) -> None:
            url = unquote(urlsplit(self.path).path)
            hub.requests.append(f"POST {url}")
            body = self._body()
            api = _API.fullmatch(url)
            if url == "/api/repos/create":
                wanted = json.loads(body)
                repo = f"{wanted.get('organization') or 'someone'}/{wanted['name']}"
                if repo in hub.status:
                    self._json({"error": "set to fail"}, hub.status[repo])
                    return
                hub.repos.setdefault(repo, {})
                self._json({"url": f"{hub.endpoint}/{repo}", "name": repo, "id": repo})
            elif url == "/api/validate-yaml":
                self._json({"errors": [], "warnings": []})
            elif api is not None and api["verb"] == "preupload":
                names = [file["path"] for file in json.loads(body)["files"]]
                self._json({"files": [{"path": n, "uploadMode": "regular", "shouldIgnore": False} for n in names]})
            elif api is not None and api["verb"] == "commit":
                self._commit(api["repo"], body)
            else:
                self._json({"error": "no such page"}, 404)

        def _commit(self, repo: str, body: bytes) -> None:
            for line in body.splitlines():
                entry = json.loads(line)
                if entry["key"] == "file":
                    hub.repos[repo][entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
            oid = hub.commit_hash(hub.repos[repo])
            self._json({"commitUrl": f"{hub.endpoint}/{repo}/commit/{oid}", "commitOid": oid, "pullRequestUrl": None})

        def _body(self) -> bytes:
            if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
                return self.rfile.read(int(self.headers.get("Content-Length", 0)))
            chunks = []
            while size := int(self.rfile.readline(), 16):
                chunks.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(chunks)

        def _json(self, content: object, status: int = 200, headers: dict[str, str] | None = None) -> None:
            body = json.dumps(content).encode()
            self._head(status, {"Content-Type": "application/json", **(headers or {})}, len(body))
            if self.command != "HEAD":
                self.wfile.write(body)

        def _head(self, status: int, headers: dict[str, str], length: int) -> None:
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(length)}.items():
                self.send_header(name, value)
            self.end_headers()

    return Handler
