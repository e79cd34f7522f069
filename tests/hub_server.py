"""A small Hub on loopback, with what the real client needs to create, push, propose and load models.

It keeps everything in memory, wants a token for what is private or changes anything, and fails on request.
"""

import base64
import hashlib
import json
import re
import threading
import time
from collections import defaultdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

import yaml
from huggingface_hub.repocard_data import model_index_to_eval_results

TOKENS = {"hf_writer": "ada", "hf_reader": "ada", "hf_bob": "bob"}  # hf_reader may read only
LICENSES = {"apache-2.0", "mit", "cc-by-4.0"}
LARGE = (".safetensors", ".png", ".gif")
DROP, SLOW, LOST_ANSWER = "drop", "slow", "lost answer"


class Repo:
    """A repo's branches and the files of each commit."""

    def __init__(self, private: bool):
        self.private = private
        self.commits: dict[str, dict[str, bytes]] = {}
        self.refs: dict[str, str] = {}
        self.messages: list[str] = []
        self.commit("main", {}, "initial commit")

    def commit(self, branch: str, files: dict[str, bytes], message: str) -> str:
        """Add a commit to a branch and return its name."""
        sha = hashlib.sha1(repr((branch, len(self.commits), message)).encode()).hexdigest()
        self.commits[sha] = files
        self.refs[branch] = sha
        self.messages.append(message)
        return sha

    def files(self, revision: str) -> tuple[str, dict[str, bytes]] | None:
        """Return the commit that a branch or commit names, with its files."""
        sha = self.refs.get(revision, revision)
        return (sha, self.commits[sha]) if sha in self.commits else None


class HubServer(ThreadingHTTPServer):
    """The server; `failures` holds, for a pattern of `METHOD /path`, what to answer instead, one after the other."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.reset()
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def reset(self):
        """Forget everything."""
        self.repos: dict[tuple[str, str], Repo] = {}
        self.blobs: dict[str, bytes] = {}
        self.failures: dict[str, list[int | str]] = defaultdict(list)
        self.collections: dict[str, list[str]] = {}
        self.requests: list[str] = []

    def model(self, repo_id: str) -> dict[str, bytes]:
        """Return the files of a model's main branch."""
        return self.repos["model", repo_id].files("main")[1]


class Handler(BaseHTTPRequestHandler):
    """One request."""

    protocol_version = "HTTP/1.1"
    server: HubServer

    def log_message(self, *arguments):
        """Say nothing."""

    def _handle(self):
        address = urlsplit(self.path)
        self.path, self.query = unquote(address.path), parse_qs(address.query)
        length = int(self.headers.get("Content-Length") or 0)
        if self.headers.get("Transfer-Encoding") == "chunked":
            self.body = b""
            while size := int(self.rfile.readline(), 16):
                self.body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        else:
            self.body = self.rfile.read(length)
        request = f"{self.command} {self.path}"
        self.server.requests.append(request)
        self.lost = False
        for pattern, failures in self.server.failures.items():
            if failures and re.search(pattern, request):
                failure = failures.pop(0)
                if failure == DROP:
                    self.close_connection = True
                    self.connection.close()
                    return
                if failure == SLOW:
                    time.sleep(1.5)
                elif failure == LOST_ANSWER:
                    self.lost = True
                else:
                    self._answer(failure, f"<html>{failure}</html>".encode(), X_Error_Message=f"injected {failure}")
                    return
        for pattern, method in ROUTES:
            if found := re.fullmatch(pattern, request):
                getattr(self, method)(*found.groups())
                return
        self._answer(404, {"error": f"no such place: {request}"})

    do_GET = do_HEAD = do_POST = do_PUT = _handle  # noqa: N815

    def _answer(self, status, content=b"", **headers):
        if self.lost:
            self.close_connection = True
            self.connection.close()
            return
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _user(self):
        return TOKENS.get(self.headers.get("Authorization", "").removeprefix("Bearer "))

    def _repo(self, kind, repo_id, write=False):
        """Return a repo that the token allows to see, or to write to; otherwise answer and return None."""
        repo, user = self.server.repos.get((kind, repo_id)), self._user()
        if "Authorization" in self.headers and user is None:
            self._answer(401, {"error": "Invalid credentials in Authorization header"})
        elif repo is None or (repo.private and user != repo_id.split("/")[0]):
            self._answer(404 if user else 401, {"error": "Repository not found"}, X_Error_Code="RepoNotFound")
        elif write and not self._may_write(repo_id.split("/")[0]):
            self._answer(403, {"error": "You don't have the rights to do this"})
        else:
            return repo
        return None

    def _may_write(self, namespace):
        return self.headers.get("Authorization") != "Bearer hf_reader" and namespace == self._user()

    def _revision(self, repo, revision):
        found = repo.files(revision)
        if found is None:
            self._answer(404, {"error": f"Invalid rev id: {revision}"}, X_Error_Code="RevisionNotFound")
        return found

    def validate(self):
        """Check a page's metadata as far as the client can."""
        content = json.loads(self.body)["content"]
        metadata = yaml.safe_load(content.split("---\n")[1])
        errors = []
        if metadata.get("license") not in (None, *LICENSES):
            errors = [{"message": f'"license" must be one of {sorted(LICENSES)}'}]
        if "model-index" in metadata:
            model_index_to_eval_results(metadata["model-index"])
        as_text = self.headers.get("Accept") == "text/plain"
        answer = "; ".join(error["message"] for error in errors).encode()
        self._answer(400 if errors else 200, answer if as_text else {"errors": errors, "warnings": []})

    def whoami(self):
        """Name the user."""
        user = self._user()
        self._answer(200 if user else 401, {"name": user, "type": "user", "orgs": []} if user else {"error": "token"})

    def create(self):
        """Make a repo."""
        wanted = json.loads(self.body)
        namespace, kind = wanted.get("organization") or self._user(), wanted.get("type", "model")
        repo_id = f"{namespace}/{wanted['name']}"
        if self._user() is None:
            self._answer(401, {"error": "Invalid credentials in Authorization header"})
        elif not self._may_write(namespace):
            self._answer(403, {"error": "You don't have the rights to create a model under this namespace"})
        elif (kind, repo_id) in self.server.repos:
            self._answer(409, {"error": "You already created this model repo", "url": f"{self.server.url}/{repo_id}"})
        else:
            private = wanted.get("visibility") == "private" or bool(wanted.get("private"))
            self.server.repos[kind, repo_id] = Repo(private)
            place = "" if kind == "model" else f"{kind}s/"
            self._answer(200, {"url": f"{self.server.url}/{place}{repo_id}", "name": repo_id})

    def auth_check(self, kind, repo_id):
        """Say whether the token allows to write."""
        if self._repo(kind, repo_id, write=True):
            self._answer(200)

    def info(self, kind, repo_id, _, revision):
        """Describe a repo."""
        if (repo := self._repo(kind, repo_id)) and (found := self._revision(repo, revision or "main")):
            sha, files = found
            siblings = [{"rfilename": name} for name in files]
            self._answer(200, {"_id": "1", "id": repo_id, "modelId": repo_id, "sha": sha, "siblings": siblings,
                               "private": repo.private, "tags": [], "downloads": 0, "likes": 0})  # fmt: skip

    def tree(self, kind, repo_id, revision):
        """List a repo's files."""
        if (repo := self._repo(kind, repo_id)) and (found := self._revision(repo, revision)):
            entries = [
                {"type": "file", "path": name, "size": len(data), "oid": self._oid(data)}
                | ({"lfs": self._lfs(data)} if name.endswith(LARGE) else {})
                for name, data in found[1].items()
            ]
            self._answer(200, entries)

    @staticmethod
    def _oid(data):
        return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()

    @staticmethod
    def _lfs(data):
        return {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 100}

    def preupload(self, kind, repo_id, revision):
        """Say which files go where, and which of them are there already."""
        if not (repo := self._repo(kind, repo_id, write="create_pr" not in self.query)):
            return
        if found := self._revision(repo, revision):
            known = {
                name: hashlib.sha256(data).hexdigest() if name.endswith(LARGE) else self._oid(data)
                for name, data in found[1].items()
            }
            files = [
                {"path": file["path"], "uploadMode": "lfs" if file["path"].endswith(LARGE) else "regular",
                 "shouldIgnore": False, "oid": known.get(file["path"])}
                for file in json.loads(self.body)["files"]
            ]  # fmt: skip
            self._answer(200, {"files": files})

    def batch(self, repo_id):
        """Say where to put large files."""
        objects = [
            {"oid": wanted["oid"], "size": wanted["size"]}
            | (
                {}
                if wanted["oid"] in self.server.blobs
                else {"actions": {"upload": {"href": f"{self.server.url}/blobs/{wanted['oid']}"}}}
            )
            for wanted in json.loads(self.body)["objects"]
        ]
        self._answer(200, {"transfer": "basic", "objects": objects})

    def put(self, oid):
        """Take a large file."""
        if hashlib.sha256(self.body).hexdigest() == oid:
            self.server.blobs[oid] = self.body
            self._answer(200)
        else:
            self._answer(400, {"error": "another content"})

    def commit(self, kind, repo_id, revision):
        """Make a commit."""
        propose = "create_pr" in self.query
        if not (repo := self._repo(kind, repo_id, write=not propose)):
            return
        if propose and self.headers.get("Authorization") == "Bearer hf_reader":
            self._answer(403, {"error": "This token may only read"})
            return
        if found := self._revision(repo, revision):
            files = dict(found[1])
            message = ""
            for line in self.body.splitlines():
                item = json.loads(line)
                value = item["value"]
                match item["key"]:
                    case "header":
                        message = value["summary"]
                    case "file":
                        files[value["path"]] = base64.b64decode(value["content"])
                    case "lfsFile":
                        files[value["path"]] = self.server.blobs[value["oid"]]
                    case "deletedFile":
                        del files[value["path"]]
            branch = f"refs/pr/{len(repo.refs)}" if propose else revision
            sha = repo.commit(branch, files, message)
            self._answer(200, {"commitUrl": f"{self.server.url}/{repo_id}/commit/{sha}", "commitOid": sha,
                               "pullRequestUrl": f"{self.server.url}/{repo_id}/discussions/1"})  # fmt: skip

    def branch(self, kind, repo_id, branch):
        """Make a branch."""
        if repo := self._repo(kind, repo_id, write=True):
            if branch in repo.refs:
                self._answer(409, {"error": "Reference already exists"})
            else:
                repo.refs[branch] = repo.refs["main"]
                self._answer(200, {})

    def resolve(self, kind, repo_id, revision, name):
        """Give a file."""
        if (repo := self._repo(kind or "model", repo_id)) and (found := self._revision(repo, revision)):
            sha, files = found
            if name not in files:
                self._answer(404, {"error": "Entry not found"}, X_Error_Code="EntryNotFound", X_Repo_Commit=sha)
                return
            tag = hashlib.sha256(files[name]).hexdigest() if name.endswith(LARGE) else self._oid(files[name])
            self._answer(200, files[name], ETag=f'"{tag}"', X_Repo_Commit=sha)

    def _collection(self, slug):
        items = [
            {"_id": str(i), "id": name, "type": "model", "position": i}
            for i, name in enumerate(self.server.collections[slug])
        ]
        return {"slug": slug, "title": slug, "owner": {"name": slug.split("/")[0]}, "items": items, "position": 0,
                "private": False, "theme": "blue", "upvotes": 0,
                "lastUpdated": "2026-01-01T00:00:00.000Z"}  # fmt: skip

    def make_collection(self):
        """Make a collection, or say which has this title."""
        wanted = json.loads(self.body)
        slug = f"{wanted['namespace']}/{wanted['title']}-1"
        if not self._may_write(wanted["namespace"]):
            self._answer(403, {"error": "You don't have the rights to do this"})
        elif slug in self.server.collections:
            self._answer(409, {"error": "already there", "slug": slug})
        else:
            self.server.collections[slug] = []
            self._answer(200, self._collection(slug))

    def collection(self, slug):
        """Describe a collection."""
        self._answer(200, self._collection(slug))

    def add_to_collection(self, slug):
        """Add a model to a collection."""
        item = json.loads(self.body)["item"]
        if item["id"] in self.server.collections[slug]:
            self._answer(409, {"error": "already there"})
        else:
            self.server.collections[slug].append(item["id"])
            self._answer(200, self._collection(slug))


KIND, REPO = "(model|dataset|space)s", "([^/]+/[^/]+)"
ROUTES = [
    ("POST /api/validate-yaml", "validate"),
    ("GET /api/whoami-v2", "whoami"),
    ("POST /api/repos/create", "create"),
    ("POST /api/collections", "make_collection"),
    (r"GET /api/collections/(.+)", "collection"),
    (r"POST /api/collections/(.+)/items", "add_to_collection"),
    (rf"GET /api/{KIND}/{REPO}/auth-check/write", "auth_check"),
    (rf"GET /api/{KIND}/{REPO}(/revision/(.+))?", "info"),
    (rf"GET /api/{KIND}/{REPO}/tree/(.+)", "tree"),
    (rf"POST /api/{KIND}/{REPO}/preupload/(.+)", "preupload"),
    (rf"POST /api/{KIND}/{REPO}/commit/(.+)", "commit"),
    (rf"POST /api/{KIND}/{REPO}/branch/(.+)", "branch"),
    (rf"POST /{REPO}\.git/info/lfs/objects/batch", "batch"),
    (r"PUT /blobs/(\w+)", "put"),
    (rf"(?:GET|HEAD) /(?:(dataset|space)s/)?{REPO}/resolve/([^/]+|refs/pr/\d+)/(.+)", "resolve"),
]
