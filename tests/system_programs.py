"""The system programs that ``make test-system`` needs, and where Debian has them.

    python -m tests.system_programs              a line for each that is missing, and what installs them; status 2
    python -m tests.system_programs --packages   the Debian packages of those that are missing, on one line

It imports the standard library alone, so that it runs before anything is installed.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

SBIN = ("/usr/local/sbin", "/usr/sbin", "/sbin")
"""Folders that are in root's PATH and in few others'."""
POSTGRESQL = Path("/usr/lib/postgresql")
"""Where Debian keeps PostgreSQL's programs, in a folder for each version."""

PROGRAMS = {
    "sshd": "openssh-server",
    "ssh": "openssh-client",
    "ssh-keygen": "openssh-client",
    "rsync": "rsync",
    "ip": "iproute2",
    "ss": "iproute2",
    "ps": "procps",
    "pgrep": "procps",
    "hostname": "hostname",
    "unshare": "util-linux",
    "nsenter": "util-linux",
    "setpriv": "util-linux",
    "blkid": "util-linux",
    "mount": "mount",
    "umount": "mount",
    "losetup": "mount",
    "mkfs.ext4": "e2fsprogs",
    "initdb": "postgresql",
    "pg_ctl": "postgresql",
    "chromium": "chromium",
    "cron": "cron",
    "crontab": "cron",
    "systemctl": "systemd",
    "systemd-analyze": "systemd",
}
"""By program, Debian's package of it."""
OTHER_NAMES = {"chromium": ("chromium-browser", "google-chrome")}
"""Programs that serve as well."""

HOST = """
set -e
mount -t tmpfs tmpfs /mnt
ip link add br0 type bridge
ip link add cable type veth peer name eth0
"""
"""What a host of the tests consists of."""


def here(program: str) -> bool:
    """Whether this machine has a program."""
    path = os.pathsep.join((os.environ.get("PATH", os.defpath), *SBIN))
    names = (program, *OTHER_NAMES.get(program, ()))
    in_path = any(shutil.which(name, path=path) is not None for name in names)
    return in_path or (PROGRAMS[program] == "postgresql" and any(POSTGRESQL.glob(f"*/bin/{program}")))


def missing() -> dict[str, str]:
    """The programs that are not here, each with Debian's package of it."""
    return {program: package for program, package in PROGRAMS.items() if not here(program)}


def refusals() -> list[str]:
    """What this process may not do that the tests do: a line for each."""
    if os.geteuid() != 0:
        return [f"these tests need root, for hosts, disks and machines of their own; this is user {os.geteuid()}"]
    namespaces = ("--mount", "--net", "--pid", "--uts", "--ipc", "--fork", "--mount-proc")
    tried = {
        "namespaces with a network": ["unshare", *namespaces, "sh", "-c", HOST],
        "a loop device": ["losetup", "--find"],
    }
    lines = []
    for what, command in tried.items():
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0:
            lines.append(f"these tests need {what}: {' '.join(done.stderr.split())}")
    return lines


def main(arguments: list[str]) -> int:
    """Report what is missing. Returns 0 where nothing is, else 2; with ``--packages`` always 0."""
    absent = missing()
    packages = sorted(set(absent.values()))
    if arguments == ["--packages"]:
        print(*packages)
        return 0
    lines = [f"these tests need {program}, of Debian's package {package}" for program, package in absent.items()]
    if packages:
        lines.append(f"install them with: apt-get install {' '.join(packages)}")
    else:
        lines = refusals()
    for line in lines:
        print(f"error: {line}", file=sys.stderr)
    return 2 if lines else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
