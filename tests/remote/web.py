"""A web server on loopback for the files of a folder, with ranges or without."""

from __future__ import annotations

import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from urllib.parse import unquote, urlsplit


class WebServer:
    """Serves `folder`. `ranges`: whether it knows ranged requests; `sizes`: whether it announces sizes."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.ranges = self.sizes = True
        self.requests: list[str] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self._server.block_on_close = False
        self.endpoint = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> WebServer:
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._server.shutdown()
        self._server.server_close()

    def url(self, name: str) -> str:
        """The http:// url of a file."""
        return f"{self.endpoint}/{name}"


def _handler(server: WebServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *words: object) -> None:
            pass

        def do_GET(self) -> None:
            server.requests.append(f"{self.command} {self.path} {self.headers.get('Range', '')}".rstrip())
            self.close_connection = True
            path = server.folder / unquote(urlsplit(self.path).path).lstrip("/")
            if not path.is_file():
                return self.answer(404, b"", {})
            data = path.read_bytes()
            headers = {"ETag": f'"{path.stat().st_mtime_ns}"', "Accept-Ranges": "bytes" if server.ranges else "none"}
            wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")) if server.ranges else None
            if wanted is None:
                return self.answer(200, data, headers)
            start, stop = int(wanted[1]), min(int(wanted[2] or len(data)) + 1, len(data))
            if start >= len(data):
                return self.answer(416, b"", {"Content-Range": f"bytes */{len(data)}"})
            return self.answer(206, data[start:stop], {**headers, "Content-Range": f"bytes {start}-{stop - 1}/{len(data)}"})

        do_HEAD = do_GET

        def answer(self, status: int, data: bytes, headers: dict[str, str]) -> None:
            self.send_response_only(status)
            if server.sizes:
                headers["Content-Length"] = str(len(data))
            for name, value in {**headers, "Connection": "close"}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

    return Handler
