"""An ingest that is killed, and the same command again."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines.data import writer as dataset_writer
from tests.pipelines.data.test_ingest import check_fresh, make, pixels, tree

pytestmark = pytest.mark.faults

KILLED = """
import sys
import pytest
from pipelines import ingest
from pipelines.data import writer as dataset_writer
from pipelines.cli import command_line
from tests.pipelines.dying import die_at, kill_this_process

dataset_writer.SHARD_BYTES = 5 * 8 * 8 * 3
die_at(pytest.MonkeyPatch(), dataset_writer, "encode_shard", "before", kill_this_process, call=5)
sys.argv = ["ingest", *sys.argv[1:]]
command_line.run(ingest.main, ingest.IngestSettings)
"""


def test_kill_9_then_the_same_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tree(tmp_path / "mine", pixels(60))
    command = [sys.executable, "-c", KILLED, str(folder), str(tmp_path / "set")]
    killed = subprocess.run(command, cwd=Path(__file__).parents[3], capture_output=True, text=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert (tmp_path / "set" / ".lock").exists()
    assert not (tmp_path / "set" / "manifest.json").exists()
    monkeypatch.setattr(dataset_writer, "SHARD_BYTES", 5 * 8 * 8 * 3)
    manifest, _ = make(folder, tmp_path / "set")
    check_fresh(manifest, tmp_path)
