"""One line of this user's crontab: added, replaced or removed. All other lines stay as they are."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable

from fvae.config import one_line, require


def installed() -> bool:
    """Whether there is a ``crontab`` command."""
    return shutil.which("crontab") is not None


def set_line(line: str | None, ours: Callable[[str], bool]) -> None:
    """Replace all lines for which ``ours`` is true by ``line``, or by none.

    Raises ``ConfigError`` where there is no ``crontab`` command, or where it refuses.
    """
    require(installed(), "crontab: not installed")
    listed = subprocess.run(["crontab", "-l"], capture_output=True, text=True, check=False)
    before = listed.stdout if listed.returncode == 0 else ""  # it fails where there is no crontab yet
    lines = before.removesuffix("\n").split("\n") if before else []
    after = "".join(f"{each}\n" for each in lines if not ours(each))
    if line is not None:
        after += f"{line}\n"
    if after.rstrip("\n") != before.rstrip("\n"):
        done = subprocess.run(["crontab", "-"], input=after, capture_output=True, text=True, check=False)
        require(done.returncode == 0, f"crontab: refused ({one_line(done.stderr)})")
