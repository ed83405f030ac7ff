"""SIGTERM in the midst of a training, an evaluation, an ingest and a retraining: what is kept, and the same command."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from mlflow import MlflowClient

from fvae import ModelConfig, build, save
from pipelines.data.datasets import load_dataset
from pipelines.storage import open_storage
from pipelines.tracking.settings import default_tracking_uri
from tests.processes import running
from tests.waiting import until

pytestmark = pytest.mark.core

ROOT = Path(__file__).parents[3]


def environment() -> dict[str, str]:
    alone = {name: value for name, value in os.environ.items() if name not in ("RAY_ADDRESS", "MLFLOW_TRACKING_URI")}
    return alone | {"PYTHONUNBUFFERED": "1", "PYTHONPATH": str(ROOT)}


def told_to_end(command: list[str], folder: Path, moment: Callable[[str], bool]) -> str:
    """What the command prints that gets SIGTERM once ``moment`` is true of what it has printed. It is interrupted."""
    log = folder / "log"
    with running([sys.executable, *command], folder, environment(), log) as process:
        until(lambda: moment(log.read_text()) or process.poll() is not None, "the moment")
        assert process.poll() is None, log.read_text()
        process.terminate()
        status = process.wait()
    said = log.read_text()
    assert status == 1, said
    assert "Interrupted." in said and "Traceback" not in said, said
    return said


def again(command: list[str], folder: Path) -> str:
    done = subprocess.run([sys.executable, *command], cwd=folder, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def statuses(runs: Path) -> list[str]:
    client = MlflowClient(default_tracking_uri(open_storage(runs)))
    experiments = [each.experiment_id for each in client.search_experiments()]
    return sorted(run.info.status for run in client.search_runs(experiments))


def test_a_training(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    command = ["-m", "pipelines.train", "--storage", str(runs), "--name", "t", "--model.family", "flow"]
    command += ["--train.epochs", "8", "--train.batch-size", "16", "--checkpoint-minutes", "0.02"]
    told_to_end(command, tmp_path, lambda _: any(runs.glob("t/checkpoints/*")))
    assert "RUNNING" not in statuses(runs)
    kept = {path.name for path in runs.glob("t/checkpoints/*")}
    assert kept
    said = again(command, tmp_path)
    assert "validation" in said
    result = json.loads((runs / "t/result.json").read_text())
    assert [epoch["epoch"] for epoch in result["history"]] == list(range(1, 9))
    assert statuses(runs) == ["FINISHED"]


def test_an_evaluation(tmp_path: Path) -> None:
    save(build(ModelConfig(family="flow", channels=1, height=8, width=8, bins=17)), tmp_path / "model")
    command = ["-m", "pipelines.evaluate", "--model", str(tmp_path / "model"), "--dataset", "digits"]
    command += ["--output", str(tmp_path / "out"), "--noise-seeds", "1"]
    told_to_end([*command, "--k", "1", "100000"], tmp_path, lambda said: "k = 1, noise 1 of 1" in said)
    assert {path.name for path in (tmp_path / "out").iterdir()} - {".lock"} == {"bits.parquet"}
    written = (tmp_path / "out/bits.parquet").stat().st_mtime_ns
    again([*command, "--k", "1"], tmp_path)
    assert (tmp_path / "out/bits.parquet").stat().st_mtime_ns == written  # nothing was measured twice
    assert (tmp_path / "out/evaluation.json").exists()


def test_an_ingest(tmp_path: Path) -> None:
    source, dest = tmp_path / "images.npy", tmp_path / "set"
    np.save(source, np.random.default_rng(0).integers(0, 256, (30_000, 32, 32, 3), dtype=np.uint8))
    command = ["-m", "pipelines.ingest", str(source), str(dest)]
    told_to_end(command, tmp_path, lambda _: any(path.is_file() for path in dest.rglob("*.parquet*")))
    assert not (dest / "manifest.json").exists()
    again(command, tmp_path)
    assert sum(load_dataset(str(dest)).counts().values()) == 30_000


def test_a_retraining(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    config = tmp_path / "config.toml"
    config.write_text('[model]\nfamily = "flow"\n[train]\nepochs = 8\nbatch_size = 16\n')
    command = ["-m", "pipelines.retrain", "--model", "fvae-digits", "--dataset", "digits", "--storage", str(runs)]
    command += ["--config", str(config), "--checkpoint-minutes", "0.02"]
    told_to_end(command, tmp_path, lambda _: any(runs.glob("retrain-digits-*/checkpoints/*")))
    assert "RUNNING" not in statuses(runs)
    assert "promoted: version 1 is the champion" in " ".join(again(command, tmp_path).split())
    assert "RUNNING" not in statuses(runs)
