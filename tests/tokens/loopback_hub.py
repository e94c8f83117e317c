"""A server on loopback that plays the part of the Hugging Face hub which reading a dataset needs: its commit, its files, ranges of them."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@contextlib.contextmanager
def hub(folder: Path, name: str) -> Iterator[tuple[str, list[str]]]:
    """The dataset `name` with the files below a folder. Gives the endpoint, and the list that requests are added to."""
    seen: list[str] = []

    class Handler(_Handler):
        root, dataset, requests = folder, name, seen

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", seen
    finally:
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    root: Path
    dataset: str
    requests: list[str]
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.requests.append(f"{self.command} {path} {self.headers.get('Range', '')}")
        about, files = f"/api/datasets/{self.dataset}", f"/datasets/{self.dataset}/resolve/"
        if path == about or path.startswith(f"{about}/revision/"):
            self._json({"id": self.dataset, "sha": COMMIT, "private": False, "gated": False, "tags": [], "siblings": []})
        elif path.startswith(f"{about}/tree/"):
            self._tree(path.removeprefix(f"{about}/tree/").partition("/")[2])
        elif path.startswith(files) and (file := self.root / path.removeprefix(files).partition("/")[2]).is_file():
            self._content(file.read_bytes())
        else:
            self._answer(404, b'{"error": "not found"}', {"X-Error-Code": "RepoNotFound" if "/api/" in path else "EntryNotFound"})

    do_HEAD = do_GET

    def _tree(self, inside: str) -> None:
        start = self.root / inside
        paths = (
            sorted(start.rglob("*"))
            if "recursive=" in self.path.lower() and "recursive=false" not in self.path.lower()
            else sorted(start.iterdir())
        )
        self._json([_entry(path, path.relative_to(self.root).as_posix()) for path in paths])

    def _content(self, data: bytes) -> None:
        tag = {"ETag": f'"{hashlib.sha1(data).hexdigest()}"', "Accept-Ranges": "bytes", "X-Repo-Commit": COMMIT}
        match = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if not match:
            return self._answer(200, data, tag)
        start, stop = int(match[1]), min(int(match[2] or len(data)), len(data) - 1) + 1
        return self._answer(206, data[start:stop], tag | {"Content-Range": f"bytes {start}-{stop - 1}/{len(data)}"})

    def _json(self, value: object) -> None:
        self._answer(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def _entry(path: Path, name: str) -> dict[str, object]:
    if path.is_dir():
        return {"type": "directory", "oid": "0" * 40, "size": 0, "path": name}
    data = path.read_bytes()
    return {"type": "file", "oid": hashlib.sha1(data).hexdigest(), "size": len(data), "path": name}
