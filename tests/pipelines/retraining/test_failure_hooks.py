"""Hooks: what a command and a web server are told, and one line for everything that may go wrong with them."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from fvae import ConfigError
from pipelines.retraining import failure_hooks
from pipelines.retraining.failure_hooks import require_hook, run_hook
from tests.waiting import ended, until

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
    assert out.read_text().startswith("a bxxx") and len(out.read_text()) == failure_hooks.LONGEST


def test_a_command_that_hangs_is_ended_with_what_it_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pids = tmp_path / "pids"

    class Late(subprocess.Popen[bytes]):
        """Its time is over once it has begun."""

        def wait(self, timeout: float | None = None) -> int:
            if timeout is None:
                return super().wait()
            assert timeout == failure_hooks.COMMAND_SECONDS
            until(lambda: pids.exists() and len(pids.read_text().split()) == 3, "the command begins")
            return super().wait(0)

    monkeypatch.setattr(failure_hooks.subprocess, "Popen", Late)
    command = script(
        tmp_path / "hook.py",
        "import os, subprocess, time\n"
        "child = subprocess.Popen(['sleep', '600'])\n"
        f"open({str(pids)!r}, 'w').write(f'{{os.getpid()}} {{child.pid}} written')\n"
        "time.sleep(600)",
    )
    assert run_hook(command, EVENT) == f"hook {sys.executable}: ended, because it took more than 60 s"
    for pid in pids.read_text().split()[:2]:
        until(lambda pid=pid: ended(int(pid)), f"process {pid} ends")  # type: ignore[misc]


def test_a_command_may_leave_something_running(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    command = script(
        tmp_path / "hook.py",
        f"import subprocess\nopen({str(pid)!r}, 'w').write(str(subprocess.Popen(['sleep', '600']).pid))",
    )
    assert run_hook(command, EVENT) is None
    left = int(pid.read_text())
    assert not ended(left)
    os.kill(left, signal.SIGKILL)


# --- web servers ------------------------------------------------------------------------------------------------------


class Web:
    """A web server that keeps what it is sent and answers as it is told."""

    def __init__(self) -> None:
        self.status, self.slow = 200, False
        self.dribbled = threading.Event()
        """A part of a slow answer is sent."""
        self.closed = threading.Event()
        self.got: list[tuple[str, str, Any]] = []
        web = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                web.got.append((self.path, self.headers["Content-Type"], json.loads(body)))
                if web.slow:
                    while not web.closed.wait(0.05):  # a byte at a time: no read takes long
                        self.connection.sendall(b"H")
                        web.dribbled.set()
                    return
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
        self.closed.set()
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

    class Late(threading.Thread):
        """The time to wait for its end is over once the answer has begun."""

        def join(self, timeout: float | None = None) -> None:
            assert timeout == 2 * failure_hooks.HTTP_SECONDS
            assert web.dribbled.wait(60)

    monkeypatch.setattr(failure_hooks.threading, "Thread", Late)
    assert run_hook(web.url, EVENT) == "hook at 127.0.0.1: no answer within 40 s"


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
    for hook in ("https://failure_hooks.example.org/T0", "HTTP://x/", f"{sys.executable} -c pass"):
        require_hook("--on-failure", hook)
    require_hook("--on-failure", "only-on-the-other-machine", here=False)
