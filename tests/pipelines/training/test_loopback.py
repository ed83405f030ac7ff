"""A machine without a loopback interface, as some containers are."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from pipelines.training.ray_session import require_loopback

pytestmark = pytest.mark.system

ROOT = Path(__file__).parents[3]


def test_without_loopback_it_is_one_line_at_once() -> None:
    program = "from pipelines.training.ray_session import require_loopback; require_loopback()"
    command = ["unshare", "--net", sys.executable, "-c", program]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert "ConfigError: a Ray on this machine: 127.0.0.1 cannot be reached" in done.stderr
    require_loopback()  # here it is up
