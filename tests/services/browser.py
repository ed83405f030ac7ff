"""A real browser, Debian's Chromium without a window, told what to do over its DevTools pipe."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.services.head import PATIENCE

_TEXT = "document.body ? document.body.innerText : ''"


class Browser:
    """One page of a browser that gives a user's name and password with every request."""

    def __init__(self, commands: int, answers: int) -> None:
        self._commands, self._answers = commands, answers
        self._number, self._read = 0, b""
        self._session: str | None = None
        target = self._do("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._do("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self._do("Page.enable")
        self._do("Network.enable")
        self._do("Emulation.setDeviceMetricsOverride", width=1600, height=1300, deviceScaleFactor=1, mobile=False)

    def sign_in(self, user: str, password: str) -> None:
        """Give this password with every request from now on."""
        token = base64.b64encode(f"{user}:{password}".encode()).decode()
        self._do("Network.setExtraHTTPHeaders", headers={"Authorization": f"Basic {token}"})

    def open(self, url: str) -> None:
        """Go to a page."""
        self._do("Page.navigate", url=url)

    def text(self) -> str:
        """What can be read on the page now, with plain spaces."""
        return self.evaluate(_TEXT).replace("\N{NO-BREAK SPACE}", " ")

    def wait_for(self, *words: str) -> str:
        """The page's text, once all ``words`` are in it. The test fails where they never are."""
        deadline = time.monotonic() + PATIENCE
        while not all(word in (text := self.text()) for word in words):
            missing = [word for word in words if word not in text]
            assert time.monotonic() < deadline, f"never on the page: {missing}; it says: {text[:3000]}"
            time.sleep(0.2)
        return text

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression."""
        return self._do("Runtime.evaluate", expression=expression, returnByValue=True)["result"].get("value")

    def screenshot(self, path: Path) -> None:
        """Write what can be seen of the page as a PNG file."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(base64.b64decode(self._do("Page.captureScreenshot", format="png")["data"]))

    def _do(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        command = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            command["sessionId"] = self._session
        os.write(self._commands, json.dumps(command).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._number:
                assert "error" not in answer, f"{method}: {answer}"
                return answer["result"]

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._read:
            assert select.select([self._answers], [], [], PATIENCE)[0], "the browser does not answer"
            some = os.read(self._answers, 1 << 20)
            assert some, "the browser has ended"
            self._read += some
        answer, _, self._read = self._read.partition(b"\0")
        return json.loads(answer)


@contextlib.contextmanager
def browser() -> Iterator[Browser]:
    """A browser with a profile of its own, for the block."""
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    assert program, "needs Chromium (Debian's package chromium)"
    with tempfile.TemporaryDirectory(prefix="browser-", ignore_cleanup_errors=True) as profile:
        (take, command), (answers, give) = os.pipe(), os.pipe()
        flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]
        flags += ["--disable-background-networking", "--disable-component-update", f"--user-data-dir={profile}"]
        words = [program, *flags, "--remote-debugging-pipe"]  # no port that others could reach: files 3 and 4
        process = subprocess.Popen(
            ["bash", "-c", f'exec "$@" 3<&{take} 4>&{give}', "bash", *words],
            pass_fds=(take, give),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={"PATH": os.defpath, "HOME": profile},
            start_new_session=True,
        )
        os.close(take)
        os.close(give)
        try:
            yield Browser(command, answers)
        finally:
            os.close(command)  # it ends with its pipe
            os.close(answers)
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, 9)
                process.wait()
