"""A loopback proxy between a client and a server that does what networks do: answers errors, resets, truncates, stalls, damages."""

from __future__ import annotations

import http.client
import socket
import struct
import threading
import time
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from urllib.parse import urlsplit

_XML = '<?xml version="1.0"?><Error><Code>{code}</Code><Message>{code}, says the proxy</Message></Error>'
CODES = {429: "TooManyRequests", 500: "InternalError", 503: "SlowDown", 403: "AccessDenied"}


@dataclass
class Fault:
    """What happens to the next `times` requests that match, after `skip` of them have passed.

    what: an HTTP status (answered with the S3 code `code`); "reset" (the request is not forwarded), "lost" (forwarded, but instead of
        the answer comes a reset), "truncate" (half of the answer's body), "stall" (no answer for `seconds`, then the end), "slow"
        (the answer's body in eight parts over `seconds`), "damage" (one byte of the request's body is another one when it arrives).
    method, path: parts of the request's method and of its path with query.
    """

    what: int | str
    times: int = 1
    method: str = ""
    path: str = ""
    skip: int = 0
    seconds: float = 2.0
    code: str = ""


class FaultyProxy:
    """Forwards everything to `upstream` but what the plan says. `requests`: what came, as "GET /bucket/key bytes=0-9"."""

    def __init__(self, upstream: str):
        self.upstream = urlsplit(upstream)
        self.plan: list[Fault] = []
        self.requests: list[str] = []
        self._lock = threading.Lock()
        self._server = _Server(("127.0.0.1", 0), _handler(self))
        self.endpoint = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> FaultyProxy:
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._server.shutdown()
        self._server.server_close()

    def clear(self) -> None:
        """Forget the plan and the requests."""
        self.plan.clear()
        self.requests.clear()

    def add(self, what: int | str, **options: object) -> Fault:
        """Plan a fault; earlier ones come first."""
        fault = Fault(what, **options)  # type: ignore[arg-type]
        self.plan.append(fault)
        return fault

    def next_fault(self, method: str, path: str) -> Fault | None:
        """The fault of a request, counted down."""
        with self._lock:
            for fault in self.plan:
                if fault.method not in method or fault.path not in path or not fault.times:
                    continue
                if fault.skip:
                    fault.skip -= 1
                    continue
                fault.times -= 1
                return fault
        return None


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that went away is no news."""


def _handler(proxy: FaultyProxy) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *words: object) -> None:
            pass

        def forward(self) -> None:
            self.close_connection = True
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            proxy.requests.append(f"{self.command} {self.path} {self.headers.get('Range', '')}".rstrip())
            fault = proxy.next_fault(self.command, self.path)
            what = fault.what if fault else None
            if fault and isinstance(what, int):
                code = fault.code or CODES[what]
                return self.answer(what, {"Content-Type": "application/xml"}, _XML.format(code=code).encode())
            if fault and what == "stall":
                time.sleep(fault.seconds)
            if what in ("reset", "stall"):
                return self.reset()
            if what == "damage" and body:
                body = body[:-1] + bytes([body[-1] ^ 1])
            status, headers, data = self.ask(body)
            if what == "lost":
                return self.reset()
            slow = fault.seconds if fault and what == "slow" else 0.0
            return self.answer(status, headers, data, cut=len(data) // 2 if what == "truncate" else len(data), slow=slow)

        def ask(self, body: bytes) -> tuple[int, dict[str, str], bytes]:
            upstream = http.client.HTTPConnection(proxy.upstream.hostname or "", proxy.upstream.port, timeout=30)
            try:
                upstream.request(self.command, self.path, body, {k: v for k, v in self.headers.items() if k.lower() != "expect"})
                answer = upstream.getresponse()
                data = answer.read()
                dropped = ("connection", "transfer-encoding", "content-length")
                headers = {k: v for k, v in answer.getheaders() if k.lower() not in dropped}
                if self.command == "HEAD":
                    headers["Content-Length"] = answer.getheader("Content-Length") or "0"
                return answer.status, headers, data
            finally:
                upstream.close()

        def answer(self, status: int, headers: dict[str, str], data: bytes, cut: int | None = None, slow: float = 0.0) -> None:
            self.send_response_only(status)
            for name, value in {"Content-Length": str(len(data)), **headers, "Connection": "close"}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                body = data[:cut]
                part = -(-len(body) // 8) if slow else len(body)
                for at in range(0, len(body), max(1, part)):
                    time.sleep(slow / 8)
                    self.wfile.write(body[at : at + part])

        def reset(self) -> None:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()

        do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = forward

    return Handler
