"""An HTTP proxy before an S3 server that fails on plan, for the tests."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import re
import select
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qsl, urlencode, urlsplit

_SLOW_DOWN = b"""<?xml version="1.0" encoding="UTF-8"?>
<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message><RequestId>1</RequestId></Error>"""
_DENIED = b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"
_ANSWERS = {"500": (500, b""), "503": (503, _SLOW_DOWN), "429": (429, b""), "403": (403, _DENIED)}
_NOT_IMPLEMENTED = b"<Error><Code>%s</Code><Message>A header implies functionality that is not there</Message></Error>"
_NO_CONDITIONS = {
    "501": (501, _NOT_IMPLEMENTED % b"NotImplemented"),
    "400": (400, _NOT_IMPLEMENTED % b"InvalidArgument"),
}
"""What stores without conditional writes answer to one."""
FAULTS = ("500", "503", "429", "reset", "reset-upload", "stall", "truncate", "corrupt")
"""What passes. ``403`` (access denied), which does not, can be planned too."""
_NO_SUCH_UPLOAD = b"<Error><Code>NoSuchUpload</Code><Message>The upload is completed or aborted</Message></Error>"
_FORBIDDEN = b"<Error><Code>SignatureDoesNotMatch</Code><Message>%s</Message></Error>"
_CONDITIONS = {"if-none-match", "if-match"}
_HOP = {"connection", "transfer-encoding", "keep-alive", "expect", "content-length"}


@dataclass(frozen=True)
class Request:
    """One request that the proxy saw; ``number`` counts from 1, ``fault`` is what was done to it (``""``: nothing)."""

    number: int
    method: str
    path: str
    fault: str


class FaultProxy:
    """An HTTP proxy before ``target`` that passes everything on, except for the faults planned by request number.

    ``plan`` maps request numbers (from 1) to one of ``FAULTS`` or ``403``; only requests for which
    ``counted(method, path)`` holds are counted. ``dead`` may be set at any time: from then on every connection is
    broken. ``strict`` takes moto's leniency away: unsigned requests and bodies with another checksum than the signed
    one are refused, ETags are no MD5, list pages end after 3 keys, and an upload is completed once.
    """

    def __init__(
        self,
        target: str,
        plan: dict[int, str] | None = None,
        *,
        counted: Callable[[str, str], bool] = lambda method, path: True,
        strict: bool = False,
    ) -> None:
        self.plan = dict(plan or {})
        assert set(self.plan.values()) <= {*FAULTS, "403"}, self.plan
        self.dead = False
        self.strict = strict
        self.conditions = ""
        """``501`` or ``400``: how conditional writes are refused; ``ignored``: they are made whatever is there."""
        self.requests: list[Request] = []
        """Every request that counted, in order of arrival."""
        self._target = target
        self._counted = counted
        self._completed: set[str] = set()
        self._count = 0
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler_of(self))
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    @property
    def faults(self) -> list[Request]:
        """The requests that were failed on plan."""
        return [request for request in self.requests if request.fault]

    def __enter__(self) -> FaultProxy:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def reset(self, plan: dict[int, str] | None = None) -> None:
        """As new: alive, with another plan, counting from 1."""
        with self._lock:
            self.plan, self.dead, self.requests, self._count = dict(plan or {}), False, [], 0

    def _fault_for(self, method: str, path: str) -> str:
        if not self._counted(method, path):
            return ""
        with self._lock:
            self._count += 1
            fault = "dead" if self.dead else self.plan.get(self._count, "")
            self.requests.append(Request(self._count, method, path, fault))
        return fault


class GroupedFaultProxy(FaultProxy):
    """A :class:`FaultProxy` that counts several groups of requests, each with a plan of its own.

    ``groups``: name → which requests belong to it, and its plan. A request belongs to the first that takes it.
    """

    def __init__(self, target: str, groups: dict[str, tuple[Callable[[str, str], bool], dict[int, str]]]) -> None:
        super().__init__(target)
        self._groups = groups
        self._counts = dict.fromkeys(groups, 0)
        self.failed: dict[str, dict[int, str]] = {name: {} for name in groups}
        """What was done to which request of each group: its plan, once all of it has happened."""

    def _fault_for(self, method: str, path: str) -> str:
        name = next((name for name, (counted, _) in self._groups.items() if counted(method, path)), None)
        if name is None:
            return super()._fault_for(method, path)
        with self._lock:
            self._counts[name] += 1
            number = self._counts[name]
            fault = self._groups[name][1].get(number, "")
            if fault:
                self.failed[name][number] = fault
        return fault


def only(*methods: str, path: str = "") -> Callable[[str, str], bool]:
    """For ``FaultProxy(counted=…)``: requests of these methods (none: any) whose path with its query holds ``path``."""
    return lambda method, where: (not methods or method in methods) and path in where


def _handler_of(proxy: FaultProxy) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_expect_100(self) -> bool:
            return True  # only once the fault is known: see _body

        def do_GET(self) -> None:
            fault = proxy._fault_for(self.command, self.path)
            if fault == "dead" or proxy.dead:
                self._break()
            elif fault == "reset-upload":
                self._body(most=1000)
                self._break()
            else:
                body = self._body()
                if fault == "stall":
                    select.select([self.connection], [], [], 60.0)  # readable once the client has closed
                    self._break()
                elif fault in _ANSWERS:
                    self._answer(_ANSWERS[fault][0], {"Content-Type": "application/xml"}, _ANSWERS[fault][1])
                elif proxy.conditions in _NO_CONDITIONS and not _CONDITIONS.isdisjoint(map(str.lower, self.headers)):
                    status, answer = _NO_CONDITIONS[proxy.conditions]
                    self._answer(status, {"Content-Type": "application/xml"}, answer)
                elif proxy.strict and (refusal := _refusal(self.headers, body)):
                    self._answer(403, {"Content-Type": "application/xml"}, _FORBIDDEN % refusal)
                elif proxy.strict and self.command == "POST" and self.path in proxy._completed:
                    self._answer(404, {"Content-Type": "application/xml"}, _NO_SUCH_UPLOAD)
                else:
                    self._forward(body, fault)

        do_PUT = do_POST = do_DELETE = do_HEAD = do_GET

        def _body(self, most: int | None = None) -> bytes:
            if self.headers.get("Expect", "").lower() == "100-continue":
                self.send_response_only(100)
                self.end_headers()
            if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
                return b"".join(self._chunks())
            length = int(self.headers.get("Content-Length", 0))
            return self.rfile.read(length if most is None else min(length, most))

        def _chunks(self) -> Iterator[bytes]:
            while size := int(self.rfile.readline().split(b";")[0], 16):
                yield self.rfile.read(size)
                self.rfile.readline()
            while self.rfile.readline().strip():  # trailers
                pass

        def _forward(self, body: bytes, fault: str) -> None:
            path = _short_pages(self.path) if proxy.strict else self.path
            if proxy.strict and self.command == "POST":
                if "uploadId=" in path:
                    proxy._completed.add(path)
                body = _plain(body.decode()).encode()
            connection = http.client.HTTPConnection(urlsplit(proxy._target).netloc, timeout=60)
            with contextlib.closing(connection):
                connection.putrequest(self.command, path, skip_host=True, skip_accept_encoding=True)
                for name, value in self.headers.items():  # Host as it was signed
                    ignored = proxy.conditions == "ignored" and name.lower() in _CONDITIONS
                    if name.lower() not in _HOP and not ignored:
                        connection.putheader(name, _plain(value) if proxy.strict else value)
                if body or self.command in ("PUT", "POST"):
                    connection.putheader("Content-Length", str(len(body)))
                connection.endheaders(body)
                answer = connection.getresponse()
                content = answer.read()
            headers = {name: value for name, value in answer.getheaders() if name.lower() not in _HOP}
            if self.command == "HEAD":
                headers["Content-Length"] = answer.getheader("Content-Length", "0")
            if proxy.strict:
                if "ETag" in headers:
                    headers["ETag"] = _opaque(headers["ETag"])
                # Moto says 2010 of every unfinished upload.
                content = re.sub(rb"(?<=<Initiated>)[^<]*", time.strftime("%FT%TZ", time.gmtime()).encode(), content)
                if b"<ETag>" in content[:100_000] and answer.getheader("Content-Type", "").endswith("xml"):
                    content = re.sub(r"<ETag>.*?</ETag>", lambda found: _opaque(found[0]), content.decode()).encode()
            self._answer(answer.status, headers, content, fault)

        def _answer(self, status: int, headers: dict[str, str], content: bytes, fault: str = "") -> None:
            if self.command == "HEAD":
                content = b""
            if fault in ("reset", "truncate") and not content:
                self._break(reset=fault == "reset")  # done, but nobody is told
                return
            self.send_response_only(status)
            for name, value in headers.items():
                self.send_header(name, value)
            if "Content-Length" not in headers:
                self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            half = len(content) // 2
            if fault == "corrupt" and content:
                content = content[:half] + bytes([content[half] ^ 1]) + content[half + 1 :]
            if fault in ("reset", "truncate"):
                self.wfile.write(content[:half])
                self.wfile.flush()
                self._break(reset=fault == "reset")
            else:
                self.wfile.write(content)

        def _break(self, reset: bool = True) -> None:
            if reset:  # RST instead of FIN
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                # The reader and writer files hold the socket open past close().
                self.rfile.close()
                self.wfile.close()
                self.connection.close()
            self.close_connection = True

        def handle(self) -> None:
            with contextlib.suppress(ConnectionError, ValueError):  # the client is gone, or we have closed
                super().handle()

        def finish(self) -> None:
            with contextlib.suppress(ConnectionError, ValueError):
                super().finish()

        def log_message(self, format: str, *args: object) -> None:
            pass

    return Handler


def _refusal(headers: http.client.HTTPMessage, body: bytes) -> bytes:
    if not headers.get("Authorization", "").startswith("AWS4-HMAC-SHA256 Credential="):
        return b"not signed"
    if headers.get("x-amz-content-sha256") != hashlib.sha256(body).hexdigest():
        return b"x-amz-content-sha256 is not that of the body"
    return b""


def _short_pages(path: str) -> str:
    where = urlsplit(path)
    query = dict(parse_qsl(where.query, keep_blank_values=True))
    if "list-type" in query:
        query["max-keys"] = "3"
    elif "uploads" in query:
        query["max-uploads"] = "3"
    else:
        return path
    return f"{where.path}?{urlencode(query)}"


def _opaque(etag: str) -> str:
    """An ETag that is no MD5; :func:`_plain` gives moto its own one back."""
    return re.sub(r"([0-9a-f]{32}(-[0-9]+)?)", r"opaque-\1", etag)


def _plain(etag: str) -> str:
    return etag.replace("opaque-", "")
