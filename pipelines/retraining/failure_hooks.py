"""Failure hooks: a command that is run, or a URL that gets a JSON object, when something has failed.

problem = run_hook("notify-send retraining", {"event": "failed", "model": "fvae-digits", "reason": "…"})
problem = run_hook("https://hooks.example.org/T0/B0", {"event": "failed", …})
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import tempfile
import threading
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import IO
from urllib.parse import urlsplit

from fvae.config import ConfigError, one_line, require

COMMAND_SECONDS, HTTP_SECONDS = 60.0, 20.0
"""Time-outs of a command, which is then killed, and of a web server."""
LONGEST = 8000
"""Maximum length of a value that a command gets; longer ones are truncated."""


def is_url(hook: str) -> bool:
    """Whether the hook is a URL; otherwise it is a command."""
    return hook.lower().startswith(("http://", "https://"))


def require_hook(option: str, hook: str, *, here: bool = True) -> None:
    """Raise ``ConfigError`` for a hook that cannot work.

    Args:
        option: the option's name, for the message.
        hook: the command or URL. Of a URL nothing but its host is ever shown: the rest is often a password.
        here: whether it will run on this machine, so that its program must be installed here.
    """
    require(hook.strip() != "", f"{option}: empty; give a command or an http(s):// address")
    if is_url(hook):
        try:
            host = urlsplit(hook).hostname
        except ValueError:
            host = None
        require(bool(host), f"{option}: this address has no host; give http(s)://host/path")
        return
    try:
        program = shlex.split(hook)[0]
    except (ValueError, IndexError) as error:
        raise ConfigError(f"{option}={hook!r}: no command ({error})") from error
    require(
        not here or shutil.which(program) is not None,
        f"{option}={hook!r}: no program {program!r} here; give its path, or sh -c '…' for what a shell knows",
    )


def run_hook(hook: str, event: Mapping[str, str]) -> str | None:
    """Run a hook with an event; returns None, or one line about what went wrong. Never raises.

    - A command runs without a shell, its words split as a shell would, in this process's environment and
      ``FVAE_<KEY>`` for each key of the event (``event`` → ``FVAE_EVENT``). After ``COMMAND_SECONDS`` it is killed,
      with its process group.
    - A URL gets one POST of the event as a JSON object, and has ``HTTP_SECONDS`` to answer.
    """
    try:
        return _post(hook, event) if is_url(hook) else _run(hook, event)
    except Exception as error:  # noqa: BLE001 - the failure is reported and must not hide the one that the hook is for
        return f"hook: {type(error).__name__}" if is_url(hook) else f"hook: {one_line(error, 200)}"


def _run(command: str, event: Mapping[str, str]) -> str | None:
    words = shlex.split(command)
    values = {f"FVAE_{key.upper()}": value[:LONGEST].replace("\0", " ") for key, value in event.items()}
    # Its output goes to a file: a pipe would be held open by processes that it leaves running.
    with tempfile.TemporaryFile() as output:
        try:
            process = subprocess.Popen(
                words,
                env={**os.environ, **values},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        except OSError as error:
            return f"hook {words[0]}: cannot be run ({error.strerror})"
        try:
            status = process.wait(COMMAND_SECONDS)
        except subprocess.TimeoutExpired:
            return f"hook {words[0]}: ended, because it took more than {COMMAND_SECONDS:g} s"
        finally:
            if process.poll() is None:  # also where we are interrupted ourselves
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        return None if status == 0 else f"hook {words[0]}: exit status {status}{_last_line(output)}"


def _last_line(output: IO[bytes]) -> str:
    size = output.seek(0, os.SEEK_END)
    output.seek(max(0, size - 2000))
    lines = output.read().decode(errors="replace").split("\n")
    last = next((line for line in reversed(lines) if line.strip()), "")
    return f" ({one_line(last, 200)})" if last else ""


def _post(url: str, event: Mapping[str, str]) -> str | None:
    host = urlsplit(url).hostname
    answers: list[str | None] = []

    def post() -> None:
        request = urllib.request.Request(
            url, json.dumps(dict(event)).encode(), {"Content-Type": "application/json", "User-Agent": "fvae"}
        )
        try:
            with urllib.request.urlopen(request, timeout=HTTP_SECONDS):
                answers.append(None)
        except urllib.error.HTTPError as error:
            answers.append(f"hook at {host}: HTTP {error.code}")
        except urllib.error.URLError as error:
            answers.append(f"hook at {host}: no answer ({one_line(error.reason, 200)})")
        except Exception as error:  # noqa: BLE001 - a thread's edge; the error's text may hold the address
            answers.append(f"hook at {host}: no answer ({type(error).__name__})")

    # A thread, because the time-out above is for each read, and a server may send a byte at a time.
    thread = threading.Thread(target=post, name="hook", daemon=True)
    thread.start()
    thread.join(2 * HTTP_SECONDS)
    return answers[0] if answers else f"hook at {host}: no answer within {2 * HTTP_SECONDS:g} s"
