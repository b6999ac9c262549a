"""A model Hub on loopback, as far as huggingface_hub needs one to push a small model and to fetch it."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit


@dataclass
class Hub:
    """Repositories by name, each with its files; tokens that may write."""

    address: str = ""
    files: dict[str, dict[str, bytes]] = field(default_factory=dict)
    private: dict[str, bool] = field(default_factory=dict)
    token: str = "hf_right"

    def commit(self, name: str) -> str:
        """Return the commit that a repository is at."""
        return hashlib.sha1(repr(sorted(self.files[name].items())).encode()).hexdigest()


@contextmanager
def serve_hub() -> Iterator[Hub]:
    """Serve a Hub while the block runs."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _make_handler(hub))
    hub.address = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


def _make_handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args: Any) -> None:
            """Say nothing."""

        def do_HEAD(self) -> None:
            self._get()

        def do_GET(self) -> None:
            self._get()

        def _get(self) -> None:
            parts = unquote(urlsplit(self.path).path).strip("/").split("/")
            if parts[:2] == ["api", "models"]:
                name = "/".join(parts[2:4])
                if name not in hub.files:
                    self._refuse()
                elif parts[4:5] == ["tree"]:
                    self._answer([self._describe(name, path) for path in hub.files[name]])
                else:
                    siblings = [{"rfilename": path} for path in hub.files[name]]
                    found = {"id": name, "sha": hub.commit(name), "siblings": siblings, "tags": []}
                    self._answer({**found, "private": hub.private[name], "downloads": 0, "likes": 0})
                return
            name, path = "/".join(parts[:2]), "/".join(parts[4:])
            if parts[2:3] != ["resolve"] or path not in hub.files.get(name, {}):
                self._refuse("EntryNotFound" if name in hub.files else "RepoNotFound")
                return
            content = hub.files[name][path]
            self.send_response(200)
            self.send_header("X-Repo-Commit", hub.commit(name))
            self.send_header("ETag", f'"{hashlib.sha1(content).hexdigest()}"')
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content)

        def do_POST(self) -> None:
            if self.headers.get("Transfer-Encoding") == "chunked":
                body = self._read_chunks()
            else:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            parts = unquote(urlsplit(self.path).path).strip("/").split("/")
            if self.headers.get("Authorization") != f"Bearer {hub.token}":
                self._answer({"error": "Invalid username or password."}, status=401)
            elif parts[1:] == ["repos", "create"]:
                asked = json.loads(body)
                name = "/".join(filter(None, [asked.get("organization"), asked["name"]]))
                hub.files.setdefault(name, {})
                hub.private.setdefault(name, asked.get("private") or asked.get("visibility") == "private")
                self._answer({"url": f"{hub.address}/{name}", "name": name, "id": name})
            elif parts[1:] == ["validate-yaml"]:
                self._answer({"errors": [], "warnings": []})
            elif parts[4:5] == ["preupload"]:
                files = json.loads(body)["files"]
                told = [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files]
                self._answer({"files": told})
            elif parts[4:5] == ["commit"]:
                name = "/".join(parts[2:4])
                for line in map(json.loads, body.decode().splitlines()):
                    value = line["value"]
                    if line["key"] == "file":
                        hub.files[name][value["path"]] = base64.b64decode(value["content"])
                    elif line["key"] == "deletedFile":
                        hub.files[name].pop(value["path"], None)
                commit = hub.commit(name)
                url = f"{hub.address}/{name}/commit/{commit}"
                self._answer({"success": True, "commitOid": commit, "commitUrl": url})
            else:
                self._refuse()

        def _read_chunks(self) -> bytes:
            found = b""
            while size := int(self.rfile.readline(), 16):
                found += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return found

        def _describe(self, name: str, path: str) -> dict[str, Any]:
            content = hub.files[name][path]
            oid = hashlib.sha1(content).hexdigest()
            return {"type": "file", "oid": oid, "size": len(content), "path": path}

        def _refuse(self, code: str = "RepoNotFound") -> None:
            self._answer({"error": code}, status=404, code=code)

        def _answer(self, value: Any, *, status: int = 200, code: str | None = None) -> None:
            content = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            if code is not None:
                self.send_header("X-Error-Code", code)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

    return Handler
