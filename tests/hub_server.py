"""A small Hub on 127.0.0.1: what `huggingface_hub` asks for to create, upload and download model repositories.

Content lives in memory. A commit is a new mapping of paths to contents; what was uploaded without a commit is in no
revision.
"""

import base64
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit


class Hub:
    """Repositories, uploaded objects, and switches for what goes wrong.

    Attributes:
        revisions: per repository the commits: (sha, {path: content}).
        branches: per repository the commit of each branch.
        objects: content of large files by SHA-256.
        drop_uploads: number of uploads of large files whose connection is cut in the middle.
        page: what every POST is answered with, such as the login page of a proxy; None: the Hub's answers.
        unknown: requests that it does not know.
    """

    def __init__(self):
        self.revisions: dict[str, list[tuple[str, dict[str, bytes]]]] = {}
        self.branches: dict[str, dict[str, str]] = {}
        self.objects: dict[str, bytes] = {}
        self.drop_uploads = 0
        self.page: str | None = None
        self.unknown: list[str] = []
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (Handler,), {"hub": self}))
        self.endpoint = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    def create(self, repo: str) -> None:
        self.revisions[repo], self.branches[repo] = [], {}
        self.commit(repo, "main", {".gitattributes": b"*.safetensors filter=lfs\n"})

    def commit(self, repo: str, branch: str, files: dict[str, bytes]) -> str:
        content = {**(self.files(repo, branch) or {}), **files}
        sha = hashlib.sha1(f"{repo}{len(self.revisions[repo])}".encode()).hexdigest()
        self.revisions[repo].append((sha, content))
        self.branches[repo][branch] = sha
        return sha

    def resolve(self, repo: str, revision: str) -> str | None:
        """Commit of a branch, or the commit itself."""
        known = dict(self.revisions[repo])
        return self.branches[repo].get(revision, revision if revision in known else None)

    def files(self, repo: str, revision: str = "main") -> dict[str, bytes] | None:
        return dict(self.revisions[repo]).get(self.resolve(repo, revision))


class Handler(BaseHTTPRequestHandler):
    """One request; `hub` is set by a subclass."""

    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def answer(self, status: int, body=b"", **headers: str) -> None:
        body = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def refuse(self, code: str) -> None:
        self.answer(404, {"error": code}, X_Error_Code=code, X_Error_Message=code)

    def read(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    # --- Uploads ---

    def do_PUT(self):
        hub, oid = self.hub, self.path.rsplit("/", 1)[-1]
        if hub.drop_uploads:
            hub.drop_uploads -= 1
            self.rfile.read(100)
            self.close_connection = True
            self.connection.close()
            return
        content = self.read()
        if hashlib.sha256(content).hexdigest() != oid:
            return self.answer(400, {"error": "the content is not what was announced"})
        hub.objects[oid] = content
        self.answer(200)

    def do_POST(self):
        hub, path, body = self.hub, urlsplit(self.path).path, self.read()
        if hub.page is not None:
            return self.answer(200, hub.page.encode(), Content_Type="text/html")
        if path == "/api/repos/create":
            asked = json.loads(body)
            repo = f"{asked.get('organization') or 'somebody'}/{asked['name']}"
            if repo in hub.revisions:
                return self.answer(
                    409, {"error": "You already created this model repo", "url": f"{hub.endpoint}/{repo}"}
                )
            hub.create(repo)
            return self.answer(200, {"url": f"{hub.endpoint}/{repo}", "name": repo})
        if path == "/api/validate-yaml":
            return self.answer(200, {"errors": [], "warnings": []})
        if match := re.fullmatch(r"/(.+)\.git/info/lfs/objects/batch", path):
            objects = [
                {**wanted, "actions": {"upload": {"href": f"{hub.endpoint}/upload/{wanted['oid']}", "header": {}}}}
                for wanted in json.loads(body)["objects"]
            ]
            return self.answer(200, {"transfer": "basic", "objects": objects})
        match = re.fullmatch(r"/api/models/([^/]+/[^/]+)/(preupload|commit|branch)/(.+)", path)
        if not match:
            hub.unknown.append(f"POST {path}")
            return self.answer(404)
        repo, action, revision = match[1], match[2], unquote(match[3])
        if action == "branch":
            hub.branches[repo][revision] = hub.branches[repo]["main"]
            return self.answer(200, {})
        if action == "preupload":
            files = [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if file["path"].endswith(".safetensors") else "regular",
                    "shouldIgnore": False,
                }
                for file in json.loads(body)["files"]
            ]
            return self.answer(200, {"files": files})
        added = {}
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                added[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                added[value["path"]] = hub.objects[value["oid"]]
        sha = hub.commit(repo, revision, added)
        self.answer(200, {"commitUrl": f"{hub.endpoint}/{repo}/commit/{sha}", "commitOid": sha})

    # --- Downloads ---

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        hub, path = self.hub, urlsplit(self.path).path
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(revision|tree)/([^/]+)(/.*)?)?", path):
            repo, kind, revision = match[1], match[2], match[3] or "main"
            if repo not in hub.revisions:
                return self.refuse("RepoNotFound")
            files = hub.files(repo, revision)
            if files is None:
                return self.refuse("RevisionNotFound")
            if kind == "tree":
                if match[4]:
                    return self.refuse("EntryNotFound")
                return self.answer(
                    200, [{"type": "file", "path": p, "size": len(c), "oid": p} for p, c in files.items()]
                )
            siblings = [{"rfilename": name} for name in files]
            sha = hub.resolve(repo, revision)
            return self.answer(200, {"id": repo, "sha": sha, "siblings": siblings, "tags": [], "private": False})
        match = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        if not match:
            hub.unknown.append(f"{self.command} {path}")
            return self.answer(404)
        repo, revision, name = match[1], match[2], unquote(match[3])
        if repo not in hub.revisions:
            return self.refuse("RepoNotFound")
        content = hub.files(repo, revision).get(name)
        if content is None:
            return self.answer(404, X_Error_Code="EntryNotFound", X_Repo_Commit=hub.resolve(repo, revision))
        etag = f'"{hashlib.sha256(content).hexdigest()}"'
        size = {"X_Linked_Size": str(len(content)), "X_Linked_Etag": etag}
        self.answer(200, content, ETag=etag, X_Repo_Commit=hub.resolve(repo, revision), **size)
