"""An HTTP proxy before moto's EC2 that writes launches down and refuses some, as EC2 does where it has no capacity."""

from __future__ import annotations

import contextlib
import http.client
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

Launch = dict[str, str]
_REFUSED = """<?xml version="1.0" encoding="UTF-8"?>
<Response><Errors><Error><Code>{code}</Code><Message>We do not have what you ask for.</Message></Error></Errors>
<RequestID>1</RequestID></Response>"""


@contextlib.contextmanager
def ec2_proxy(target: str, refuse: Callable[[Launch], str | None]) -> Iterator[tuple[str, list[Launch]]]:
    """The proxy's URL and the launches that it saw. ``refuse(launch)`` is an error code of EC2's, or ``None``."""
    launches: list[Launch] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            asked = {name: values[0] for name, values in parse_qs(body.decode()).items()}
            code = None
            if asked.get("Action") == "RunInstances":
                launches.append(asked)
                code = refuse(asked)
            if code:
                self._answer(400, "text/xml", _REFUSED.format(code=code).encode())
                return
            place = urlsplit(target)
            connection = http.client.HTTPConnection(place.hostname or "", place.port, timeout=540)
            connection.request("POST", self.path, body, {k: v for k, v in self.headers.items() if k != "Connection"})
            answer = connection.getresponse()
            self._answer(answer.status, answer.headers["Content-Type"], answer.read())
            connection.close()

        def _answer(self, status: int, kind: str, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments: object) -> None:
            """Quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", launches
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
