"""A hub of this process: of the Hugging Face Hub's interface what is called to make a repository and to fill it."""

import base64
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

TOKEN = "hf_only-of-this-test"


@dataclass
class Repository:
    private: bool
    files: dict[str, bytes] = field(default_factory=dict)
    commits: int = 0


@dataclass
class Hub:
    """What there is, and all that was asked for."""

    url: str = ""
    repositories: dict[str, Repository] = field(default_factory=dict)
    large: dict[str, bytes] = field(default_factory=dict)  # files by sha256
    asked: list[str] = field(default_factory=list)
    failing: int = 0  # a status that every request gets


class Handler(BaseHTTPRequestHandler):
    hub: Hub

    def do_GET(self) -> None:
        self.handle_one("GET", {})

    def do_POST(self) -> None:
        lines = [json.loads(line) for line in self.body().splitlines()]
        self.handle_one("POST", lines if "/commit/" in self.path else lines[0])

    def do_PUT(self) -> None:
        self.hub.large[self.path.rpartition("/")[2]] = self.body()
        self.say(200, {})

    def body(self) -> bytes:
        """What is sent, in one piece or in chunks."""
        if "Content-Length" in self.headers:
            return self.rfile.read(int(self.headers["Content-Length"]))
        chunks = []
        while size := int(self.rfile.readline(), 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def handle_one(self, verb: str, body: Any) -> None:
        self.hub.asked.append(f"{verb} {self.path}")
        if self.hub.failing:
            self.say(self.hub.failing, {"error": "broken today"})
        elif self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self.say(401, {"error": "Invalid credentials"})
        else:
            self.say(*self.answered(self.path, body))

    def answered(self, path: str, body: Any) -> tuple[int, Any]:
        known = self.hub.repositories
        if path == "/api/whoami-v2":
            return 200, {"type": "user", "name": "me"}
        if path == "/api/validate-yaml":
            return 200, {"errors": [], "warnings": []}
        if path == "/api/repos/create":
            name = f"{body['organization'] or 'me'}/{body['name']}"
            if name in known:
                return 409, {"error": "You already created this model repo", "url": f"{self.hub.url}/{name}"}
            if body["organization"] == "others":
                return 403, {"error": "You may not write there"}
            known[name] = Repository(body.get("visibility") == "private" or bool(body.get("private")))
            return 200, {"url": f"{self.hub.url}/{name}", "name": name}
        if path.endswith("/info/lfs/objects/batch"):
            objects = [self.batched(each) for each in body["objects"]]
            return 200, {"transfer": "basic", "objects": objects}
        name = "/".join(path.split("/")[3:5]).partition("?")[0]
        if path.startswith("/api/models/") and name in known:
            return self.of_repository(path, name, known[name], body)
        return 404, {"error": "Repository not found"}

    def batched(self, each: dict[str, Any]) -> dict[str, Any]:
        if each["oid"] in self.hub.large:
            return each
        return each | {"actions": {"upload": {"href": f"{self.hub.url}/large/{each['oid']}"}}}

    def of_repository(self, path: str, name: str, found: Repository, body: Any) -> tuple[int, Any]:
        if "/preupload/" in path:
            mode = {True: "lfs", False: "regular"}
            files = [
                {"path": f["path"], "uploadMode": mode[f["path"].endswith(".safetensors")], "shouldIgnore": False}
                for f in body["files"]
            ]
            return 200, {"files": files}
        if "/commit/" in path:
            for line in body:
                value = line["value"]
                if line["key"] == "file":
                    found.files[value["path"]] = base64.b64decode(value["content"])
                if line["key"] == "lfsFile":
                    found.files[value["path"]] = self.hub.large[value["oid"]]
            found.commits += 1
            return 200, {"commitUrl": f"{self.hub.url}/{name}/commit/1", "commitOid": "1" * 40, "success": True}
        return 200, {"id": name, "private": found.private, "siblings": []}

    def say(self, status: int, content: Any) -> None:
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None: ...


@contextmanager
def serving() -> Iterator[Hub]:
    hub = Hub()
    with ThreadingHTTPServer(("127.0.0.1", 0), type("HandlerOfHub", (Handler,), {"hub": hub})) as server:
        hub.url = f"http://127.0.0.1:{server.server_port}"
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        try:
            yield hub
        finally:
            server.shutdown()
            thread.join()
