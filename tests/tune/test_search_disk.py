"""The main job on a disk that is full: a small file system of its own, in a mount namespace."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.tune.real_search import ROOT, SMALL

pytestmark = pytest.mark.system  # an ordinary user may be refused a namespace


def test_a_full_disk_is_one_line_and_the_search_goes_on_when_there_is_room(tmp_path: Path) -> None:
    """A file system of 1.5 MB, then a larger one."""
    script = (
        'mount -t tmpfs -o size=1500k tmpfs "$1" && shift && "$@"; echo "status $?"; '
        'mount -o remount,size=64m "$0"; "$@"; echo "status $?"; ls "$0/digits"'
    )
    storage = tmp_path / "small"
    storage.mkdir()
    search_command = [sys.executable, "tune/search.py", "--storage", str(storage), *SMALL]
    result = subprocess.run(
        ["unshare", "--mount", "--map-root-user", "sh", "-c", script, str(storage), str(storage), *search_command],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    errors = [line for line in result.stderr.splitlines() if line]
    assert [line.startswith("error: --storage: cannot be written") for line in errors] == [True], result.stderr
    assert "status 2" in result.stdout
    assert "status 0" in result.stdout
    assert "tradeoff.html" in result.stdout
