"""Hooks: what a command and a web server are told, and one line for everything that may go wrong with them."""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from fvae import ConfigError
from pipelines.retraining import hooks
from pipelines.retraining.hooks import require_hook, run_hook

pytestmark = pytest.mark.core

EVENT = {"event": "failed", "model": "fvae-digits", "reason": "step 1: loss nan; 'quotes' $(and) `shell`"}


def script(path: Path, text: str) -> str:
    """A command that runs Python."""
    path.write_text(text)
    return f"{sys.executable} '{path}' 'two words'"


def test_a_command_gets_its_words_and_the_event(tmp_path: Path) -> None:
    out = tmp_path / "out with blank.json"
    command = script(
        tmp_path / "hook.py",
        f"import json, os, sys\njson.dump([sys.argv[1:], dict(os.environ)], open({str(out)!r}, 'w'))",
    )
    assert run_hook(command, EVENT) is None
    words, environment = json.loads(out.read_text())
    assert words == ["two words"]
    assert environment["FVAE_EVENT"] == "failed" and environment["FVAE_REASON"] == EVENT["reason"]
    assert environment["PATH"] == os.environ["PATH"]


def test_no_shell_reads_the_reason(tmp_path: Path) -> None:
    run_hook(f"{sys.executable} -c pass $(touch {tmp_path}/made)", EVENT)
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("/nowhere/program", "hook /nowhere/program: cannot be run (No such file or directory)"),
        ("PYTHON -c 'raise SystemExit(3)'", "hook PYTHON: exit status 3"),
        (
            "PYTHON -c 'import sys; print(1, flush=True); sys.exit(\"no  mail\\nserver\\n\")'",
            "hook PYTHON: exit status 1 (server)",
        ),
        ("PYTHON 'open", "hook: No closing quotation"),
        ("", "hook: list index out of range"),
    ],
)
def test_a_command_that_fails_is_one_line(command: str, said: str) -> None:
    assert run_hook(command.replace("PYTHON", sys.executable), EVENT) == said.replace("PYTHON", sys.executable)


def test_values_that_no_environment_takes(tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = script(tmp_path / "hook.py", f"import os\nopen({str(out)!r}, 'w').write(os.environ['FVAE_REASON'])")
    assert run_hook(command, {"reason": "a\0b" + "x" * 10**6}) is None
    assert out.read_text().startswith("a bxxx") and len(out.read_text()) == hooks.LONGEST


def test_a_command_that_hangs_is_ended_with_what_it_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hooks, "COMMAND_SECONDS", 1.5)
    pids = tmp_path / "pids"
    command = script(
        tmp_path / "hook.py",
        "import os, subprocess, time\n"
        "child = subprocess.Popen(['sleep', '600'])\n"
        f"open({str(pids)!r}, 'w').write(f'{{os.getpid()}} {{child.pid}}')\n"
        "time.sleep(600)",
    )
    began = time.monotonic()
    said = run_hook(command, EVENT)
    assert said == f"hook {sys.executable}: ended, because it took more than 1.5 s"
    assert time.monotonic() - began < 30
    for pid in pids.read_text().split():
        wait_for_end(int(pid))


def test_a_command_may_leave_something_running(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    command = script(
        tmp_path / "hook.py",
        f"import subprocess\nopen({str(pid)!r}, 'w').write(str(subprocess.Popen(['sleep', '600']).pid))",
    )
    began = time.monotonic()
    assert run_hook(command, EVENT) is None
    assert time.monotonic() - began < 30
    os.kill(int(pid.read_text()), 9)


def wait_for_end(pid: int) -> None:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return
        if state in "ZX":
            return
        time.sleep(0.02)
    raise AssertionError(f"process {pid} still runs")


# --- web servers ------------------------------------------------------------------------------------------------------


class Web:
    """A web server that keeps what it is sent and answers as it is told."""

    def __init__(self) -> None:
        self.status, self.slow = 200, False
        self.got: list[tuple[str, str, Any]] = []
        web = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                web.got.append((self.path, self.headers["Content-Type"], json.loads(body)))
                if web.slow:
                    for _ in range(600):  # a byte at a time: no read takes long
                        try:
                            self.connection.sendall(b"H")
                        except OSError:
                            return
                        time.sleep(0.05)
                self.send_response(web.status)
                if web.status in (301, 302):
                    self.send_header("Location", "/elsewhere")
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def web() -> Iterator[Web]:
    web = Web()
    yield web
    web.close()


def test_a_web_server_gets_the_event_as_json(web: Web) -> None:
    assert run_hook(f"{web.url}/T0/SECRET?x=1", EVENT) is None
    assert web.got == [("/T0/SECRET?x=1", "application/json", EVENT)]


@pytest.mark.parametrize("status", [404, 500])
def test_a_web_server_that_refuses_is_one_line_without_the_address(web: Web, status: int) -> None:
    web.status = status
    assert run_hook(f"{web.url}/T0/SECRET", EVENT) == f"hook at 127.0.0.1: HTTP {status}"


def test_nobody_there() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        said = run_hook(f"http://user:SECRET@127.0.0.1:{free.getsockname()[1]}/SECRET", EVENT)
    assert said is not None and said.startswith("hook at 127.0.0.1: no answer (") and "SECRET" not in said


@pytest.mark.parametrize("hook", ["http://[SECRET", "http:///SECRET", "https://host:port/SECRET"])
def test_an_address_that_is_none_never_raises(hook: str) -> None:
    said = run_hook(hook, EVENT)
    assert said is not None and "SECRET" not in said and "\n" not in said


def test_a_web_server_that_dribbles_is_given_up(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    web.slow = True
    monkeypatch.setattr(hooks, "HTTP_SECONDS", 0.5)
    began = time.monotonic()
    assert run_hook(web.url, EVENT) == "hook at 127.0.0.1: no answer within 1 s"
    assert time.monotonic() - began < 20


# --- before anything runs ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("hook", "said"),
    [
        ("  ", "--on-failure: empty; give a command or an http"),
        ("http://", "--on-failure: this address has no host"),
        ("https://[SECRET", "--on-failure: this address has no host"),
        ("mail 'a", '--on-failure="mail \'a": no command (No closing quotation)'),
        ("no-such-program-here x", "no program 'no-such-program-here' here"),
    ],
)
def test_a_hook_that_cannot_work_is_one_line(hook: str, said: str) -> None:
    with pytest.raises(ConfigError) as error:
        require_hook("--on-failure", hook)
    assert said in str(error.value) and "SECRET" not in str(error.value) and "\n" not in str(error.value)


def test_hooks_that_may_work() -> None:
    for hook in ("https://hooks.example.org/T0", "HTTP://x/", f"{sys.executable} -c pass"):
        require_hook("--on-failure", hook)
    require_hook("--on-failure", "only-on-the-other-machine", here=False)
