"""A terminal in a fresh clone of the repository, in which the programs of ``.venv/bin`` only note what they are to do.

So bash and make themselves say what a printed command runs: they quote, expand and export as for a user.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from tests.docs.blocks import ROOT

MADE = ("runs", "evaluations", "data", "build")
"""What a user's commands make in a clone: this one has its own."""
OF_MAKE = ("MAKE", "MFLAGS", "ARGS", "PORT")
"""What ``make`` exports to the tests that it runs: its variables, and those of its command line."""
PROGRAMS = ("python", "ruff", "mypy", "deptry", "ray", "mlflow", "optuna-dashboard", "curl", "editor")
"""What only notes its words."""
_NOTE = r"""#!/bin/sh
{ printf '%s\0' "${0##*/}" "$@"; printf '\036'; } >> "$NOTES"
"""
_END = "\x1e"


class Terminal:
    """Runs shell code in the clone ``~/fvae`` of a home of its own."""

    def __init__(self, home: Path) -> None:
        """``home``: an empty folder."""
        self.home, self.clone = home, home / "fvae"
        self.clone.mkdir(parents=True)
        for path in ROOT.iterdir():
            if not path.name.startswith(".") and path.name not in MADE:
                (self.clone / path.name).symlink_to(path)
        programs = self.clone / ".venv" / "bin"
        programs.mkdir(parents=True)
        for name in PROGRAMS:
            (programs / name).write_text(_NOTE)
            (programs / name).chmod(0o755)
        for name in ("installed", "installed-dev"):  # newer than the lock files: make has nothing to install
            (programs.parent / name).touch()
        self._notes, self._environment = home / "notes", home / "environment"
        given = {name: value for name, value in os.environ.items() if not name.startswith(OF_MAKE)}
        self.environment = given | {
            "HOME": str(home),
            "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
            "EDITOR": "editor",
            "NOTES": str(self._notes),
        }
        """Of the shell, with what it has exported since."""
        self._given = dict(self.environment)

    @property
    def exported(self) -> dict[str, str]:
        """What the shell has exported, but for paths: the programs there only note their words."""
        own = ("PWD", "OLDPWD", "SHLVL", "_", "PATH")
        return {
            name: value
            for name, value in self.environment.items()
            if name not in own and self._given.get(name) != value
        }

    def type(self, code: str) -> list[list[str]]:
        """Run shell code; returns the words of each program that it has called. What it exports stays.

        Raises ``AssertionError`` where it fails.
        """
        self._notes.write_bytes(b"")
        done = subprocess.run(
            ["bash", "-c", f"{code}\nstatus=$?\nwait\nenv -0 > {self._environment}\nexit $status"],
            cwd=self.clone,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, f"status {done.returncode}: {done.stderr}"
        lines = self._environment.read_text().split("\0")
        self.environment = dict(line.split("=", 1) for line in lines if "=" in line)
        return [note.split("\0")[:-1] for note in self._notes.read_text().split(_END)[:-1]]
