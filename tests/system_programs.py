"""The system programs that ``make test-system`` and ``make test-faults`` need, and where Debian has them.

    python -m tests.system_programs              a line for each that is missing, and what installs them; status 2
    python -m tests.system_programs --packages   the Debian packages of those that are missing, on one line

It imports the standard library alone, so that it runs before anything is installed.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

SBIN = ("/usr/local/sbin", "/usr/sbin", "/sbin")
"""Folders that are in root's PATH and in few others'."""


def _on_path(name: str) -> Callable[[], bool]:
    return lambda: shutil.which(name, path=os.pathsep.join((os.environ.get("PATH", os.defpath), *SBIN))) is not None


def _postgresql() -> bool:
    return _on_path("initdb")() or any(Path("/usr/lib/postgresql").glob("*/bin/initdb"))


PROGRAMS: dict[str, tuple[str, Callable[[], bool]]] = {
    "sshd": ("openssh-server", _on_path("sshd")),
    "ssh": ("openssh-client", _on_path("ssh")),
    "rsync": ("rsync", _on_path("rsync")),
    "ip": ("iproute2", _on_path("ip")),
    "ps": ("procps", _on_path("ps")),
    "unshare": ("util-linux", _on_path("unshare")),
    "mkfs.ext4": ("e2fsprogs", _on_path("mkfs.ext4")),
    "initdb (PostgreSQL)": ("postgresql", _postgresql),
    "chromium": ("chromium", _on_path("chromium")),
    "crontab": ("cron", _on_path("crontab")),
    "systemd-analyze": ("systemd", _on_path("systemd-analyze")),
}
"""By program, Debian's package and whether the program is here."""


def missing() -> dict[str, str]:
    """The programs that are not here, each with Debian's package of it."""
    return {program: package for program, (package, present) in PROGRAMS.items() if not present()}


def namespaces_refused() -> str | None:
    """Why this process may not make hosts of namespaces, or None where it may."""
    if os.geteuid() != 0:
        return f"they make hosts, disks and machines of their own; run them as root, not as user {os.geteuid()}"
    tried = subprocess.run(["unshare", "--mount", "--net", "--pid", "--fork", "true"], capture_output=True, text=True)
    return None if tried.returncode == 0 else tried.stderr.strip()


def main(arguments: list[str]) -> int:
    """Report what is missing. Returns 0 where nothing is, else 2; with ``--packages`` always 0."""
    absent = missing()
    packages = sorted(set(absent.values()))
    if arguments == ["--packages"]:
        print(*packages)
        return 0
    for program, package in absent.items():
        print(f"error: these tests need {program}, of Debian's package {package}", file=sys.stderr)
    if packages:
        print(f"error: install them with: apt-get install {' '.join(packages)}", file=sys.stderr)
        return 2
    if refusal := namespaces_refused():
        print(f"error: these tests need namespaces: {refusal}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
