"""EC2's instance metadata service, version 2, over HTTP on the loopback: as strict about its tokens as the real one."""

from __future__ import annotations

import contextlib
import datetime
import json
import threading
import uuid
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class MetadataServer:
    """One instance's service. Without a notice, ``spot/instance-action`` is 404, as on any instance."""

    def __init__(self, instance: str) -> None:
        self.texts = {"instance-id": instance}
        """By path below ``latest/meta-data/``."""
        self.tokens: set[str] = set()
        """Those that are valid."""
        self.refused = 0
        """Requests without a valid token."""
        self.broken = False
        """Answers 503 to everything."""
        self.url = ""

    def give_notice(self, seconds: float) -> None:
        """EC2 takes the instance back in so many seconds."""
        end = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=seconds)
        action = {"action": "terminate", "time": end.strftime("%Y-%m-%dT%H:%M:%SZ")}
        self.texts["spot/instance-action"] = json.dumps(action)


@contextlib.contextmanager
def metadata_server(instance: str) -> Iterator[MetadataServer]:
    """The service, while the block runs."""
    service = MetadataServer(instance)

    class Handler(BaseHTTPRequestHandler):
        def do_PUT(self) -> None:
            seconds = self.headers.get("X-aws-ec2-metadata-token-ttl-seconds", "")
            if service.broken:
                self._answer(503)
            elif self.path == "/latest/api/token" and seconds.isdigit() and 1 <= int(seconds) <= 21600:
                token = uuid.uuid4().hex
                service.tokens.add(token)
                self._answer(200, token)
            else:
                self._answer(400)

        def do_GET(self) -> None:
            if service.broken:
                self._answer(503)
            elif self.headers.get("X-aws-ec2-metadata-token") not in service.tokens:
                service.refused += 1
                self._answer(401)
            elif text := service.texts.get(self.path.removeprefix("/latest/meta-data/")):
                self._answer(200, text)
            else:
                self._answer(404)

        def _answer(self, status: int, text: str = "") -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *arguments: object) -> None:
            """Quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    service.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield service
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
