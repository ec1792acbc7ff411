"""A Hugging Face Hub of one process: the part of its HTTP API that models are pushed and pulled by, on loopback."""
import base64
import hashlib
import json
import re
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from urllib.parse import unquote, urlsplit

REFUSALS = {"down/ticket": (503,), "busy/ticket": (429,), "gated/ticket": (403, "GatedRepo", "Access to it is restricted")}
RIGHTS = {"hf_writer": "write", "hf_reader": "read"}   # token → what it may do


class Answer(Exception):
    "A refusal, as the Hub words it in headers"
    def __init__(self, status, code="", message=""): self.status, self.headers = status, {"X-Error-Code": code, "X-Error-Message": message}


class Hub:
    "Repositories: name → private, commits (oid → files), branches; large files by their SHA-256"
    def __init__(self): self.repos, self.large, self.messages, self.asked = {}, {}, [], []

    def add(self, name, files, private=False):
        "Put a repository there, as somebody else's push would have"
        self.repos[name] = {"private": private, "commits": {"0"*40: {}}, "branches": {"main": "0"*40}}
        self.commit(name, "main", files, "Made")

    def commit(self, name, branch, files, message):
        repo = self.repos[name]
        whole = repo["commits"][repo["branches"][branch]] | files
        oid = hashlib.sha1(repr((sorted(whole.items()), message, len(repo["commits"]))).encode()).hexdigest()
        repo["commits"][oid], repo["branches"][branch] = whole, oid
        self.messages.append((name, branch, message))
        return oid

    def readable(self, name, token):
        if name in REFUSALS: raise Answer(*REFUSALS[name])
        if token is not None and token not in RIGHTS: raise Answer(401, message="Invalid credentials in Authorization header")
        if name not in self.repos or (self.repos[name]["private"] and token not in RIGHTS): raise Answer(401 if token is None else 404, "RepoNotFound", "Repository not found")
        return self.repos[name]

    def writable(self, name, token):
        if token is None or token not in RIGHTS: raise Answer(401, message="Invalid credentials in Authorization header")
        if RIGHTS[token] != "write": raise Answer(403, message="You don't have the rights to do this")
        return self.readable(name, token) if name in self.repos else None

    def files(self, name, revision, token):
        repo = self.readable(name, token)
        oid = repo["branches"].get(revision, revision)
        if oid not in repo["commits"]: raise Answer(404, "RevisionNotFound", "Invalid rev id")
        return oid, repo["commits"][oid]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    ROUTES = (   # method, pattern of the path, what answers
        ("POST", r"/api/repos/create", "create"), ("POST", r"/api/validate-yaml", "validate"),
        ("GET", r"/api/models/([^/]+/[^/]+)(?:/revision/([^/]+))?", "info"), ("GET", r"/api/models/([^/]+/[^/]+)/tree/([^/]+)", "tree"),
        ("POST", r"/api/models/([^/]+/[^/]+)/branch/([^/]+)", "branch"), ("POST", r"/api/models/([^/]+/[^/]+)/preupload/([^/]+)", "preupload"),
        ("POST", r"/api/models/([^/]+/[^/]+)/commit/([^/]+)", "commit"), ("POST", r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch", "batch"),
        ("PUT", r"/large/([0-9a-f]{64})", "put"), ("HEAD", r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", "resolve"), ("GET", r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", "resolve"),
    )

    def log_message(self, *_): pass

    def answer(self):
        self.data = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.token = (self.headers.get("Authorization") or "").removeprefix("Bearer ") or None
        self.hub, path = self.server.hub, unquote(urlsplit(self.path).path)
        self.hub.asked.append((self.command, path))
        try:
            for method, pattern, name in self.ROUTES:
                if method == self.command and (found := re.fullmatch(pattern, path)): return getattr(self, name)(*found.groups())
            raise Answer(404, message=f"no {self.command} {path} here")
        except Answer as refusal: self.send(refusal.status, {"error": refusal.headers["X-Error-Message"]}, refusal.headers)

    do_GET = do_POST = do_PUT = do_HEAD = answer

    def send(self, status, value, headers=None):
        body = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        for name, text in {"Content-Length": str(len(body)), "Content-Type": "application/json", **(headers or {})}.items(): self.send_header(name, text)
        self.end_headers()
        if self.command != "HEAD": self.wfile.write(body)

    def url(self, path=""): return f"http://{self.headers['Host']}{path}"

    def create(self):
        asked = json.loads(self.data)
        name = f"{asked.get('organization') or 'ann'}/{asked['name']}"
        if self.hub.writable(name, self.token): return self.send(409, {"url": self.url(f"/{name}")})
        self.hub.add(name, {}, asked.get("visibility") == "private" or bool(asked.get("private")))
        self.send(200, {"url": self.url(f"/{name}")})

    def validate(self): self.send(200, {"errors": [], "warnings": []})

    def info(self, name, revision):
        oid, files = self.hub.files(name, revision or "main", self.token)
        licence = re.search(rb"^license: (.+)$", files.get("README.md", b""), re.M)
        self.send(200, {"id": name, "sha": oid, "private": self.hub.repos[name]["private"], "siblings": [{"rfilename": path} for path in files],
                        "cardData": {"license": licence[1].decode()} if licence else {}})

    def tree(self, name, revision):
        _, files = self.hub.files(name, revision, self.token)
        self.send(200, [{"type": "file", "path": path, "size": len(data), "oid": hashlib.sha1(data).hexdigest()} for path, data in files.items()])

    def branch(self, name, branch):
        repo = self.hub.writable(name, self.token)
        if branch in repo["branches"]: raise Answer(409, message="Reference already exists")
        repo["branches"][branch] = repo["branches"]["main"]
        self.send(200, {})

    def preupload(self, name, branch):
        self.hub.writable(name, self.token)
        mode = lambda path: "lfs" if path.endswith(".safetensors") else "regular"
        self.send(200, {"files": [{"path": file["path"], "uploadMode": mode(file["path"]), "shouldIgnore": False} for file in json.loads(self.data)["files"]]})

    def batch(self, name):
        self.hub.writable(name, self.token)
        objects = [dict(one, actions={"upload": {"href": self.url(f"/large/{one['oid']}")}}) for one in json.loads(self.data)["objects"]]
        self.send(200, {"transfer": "basic", "objects": objects})

    def put(self, oid):
        if hashlib.sha256(self.data).hexdigest() != oid: raise Answer(400, message="another checksum")
        self.hub.large[oid] = self.data
        self.send(200, {})

    def commit(self, name, branch):
        if branch not in self.hub.writable(name, self.token)["branches"]: raise Answer(404, "RevisionNotFound", "Invalid rev id")
        lines = [json.loads(line) for line in self.data.splitlines()]
        files = {line["value"]["path"]: base64.b64decode(line["value"]["content"]) for line in lines if line["key"] == "file"}
        files |= {line["value"]["path"]: self.hub.large[line["value"]["oid"]] for line in lines if line["key"] == "lfsFile"}
        oid = self.hub.commit(name, branch, files, lines[0]["value"]["summary"])
        self.send(200, {"success": True, "commitUrl": self.url(f"/{name}/commit/{oid}"), "commitOid": oid})

    def resolve(self, name, revision, path):
        oid, files = self.hub.files(name, revision, self.token)
        if path not in files: raise Answer(404, "EntryNotFound", "Entry not found")
        self.send(200, files[path], {"X-Repo-Commit": oid, "ETag": f'"{hashlib.sha256(files[path]).hexdigest()}"', "Content-Type": "application/octet-stream"})


@contextmanager
def stand_in():
    "A Hub on a free port: its address, and what it holds"
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.hub, server.daemon_threads = Hub(), True
    Thread(target=server.serve_forever, daemon=True).start()
    try: yield f"http://127.0.0.1:{server.server_port}", server.hub
    finally: server.shutdown(); server.server_close()
