"""An evaluation on several workers that loses a worker and then its driver: the figures are those of one worker."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from ray.cluster_utils import Cluster

from fvae import ModelConfig, build, save
from pipelines.data.datasets import load_dataset
from pipelines.evaluate import main
from pipelines.evaluation.settings import EvaluateSettings
from tests.commands import call
from tests.pipelines import forked_commands
from tests.pipelines.forks import Fork
from tests.pipelines.training.training_cluster import HASTE, grow
from tests.waiting import until

pytestmark = pytest.mark.faults

CONFIG = ModelConfig(
    family="fvae",
    channels=1,
    height=8,
    width=8,
    bins=17,
    flow_levels=1,
    flow_depth=1,
    coupling_width=8,
    encoder_width=4,
)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A folder with a model that has not been trained."""
    torch.manual_seed(0)
    made = build(CONFIG)
    made.initialize(torch.from_numpy(load_dataset("digits").images("train")[:64]))
    save(made.eval(), tmp_path / "model")
    return tmp_path / "model"


def descendants() -> Iterator[tuple[int, str]]:
    """Id and title of every process that this one has started, and theirs: those of the cluster among them."""
    parents: dict[int, int] = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # ended meanwhile
            parents[int(status.parent.name)] = int(status.read_text().rpartition(")")[2].split()[1])
    for pid in parents:
        ancestor = pid
        while ancestor in parents and ancestor != os.getpid():
            ancestor = parents[ancestor]
        if ancestor == os.getpid():
            with contextlib.suppress(OSError):
                yield pid, Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")


def test_a_worker_and_then_the_driver_are_killed(
    cluster: Cluster, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    grow(cluster, 2)
    monkeypatch.setenv("RAY_ADDRESS", cluster.address)
    for name, value in HASTE.items():
        monkeypatch.setenv(name, value)
    options = ["--model", str(model), "--k", "1", "8", "--noise-seeds", "2", "--samples", "1", "--temperatures", "1"]
    output = ["--output", str(tmp_path / "together"), "--workers", "2"]
    fork = Fork(tmp_path / "said", forked_commands.evaluate, [*options, *output], tmp_path)
    until(lambda: (tmp_path / "measured").exists() or not fork.alive, "the first reading")
    workers = [pid for pid, title in descendants() if "TrainWorker" in title]
    assert len(workers) == 2, fork.said()
    os.kill(workers[0], signal.SIGKILL)
    (tmp_path / "go").touch()
    assert fork.end() == -signal.SIGKILL, fork.said()  # by itself, after the third reading
    assert "they start again" in fork.said()

    again = call(main, EvaluateSettings, *options, *output)
    assert again.status == 0, again
    assert [line.split(":")[0] for line in again.out.splitlines() if line.startswith("k = ")] == ["k = 8, noise 2 of 2"]
    alone = call(main, EvaluateSettings, *options, "--output", str(tmp_path / "alone"), "--cpus-per-worker", "1")
    assert alone.status == 0, alone
    tables = [pq.read_table(tmp_path / place / "bits.parquet") for place in ("together", "alone")]
    assert tables[0].num_rows == 360 and tables[0].num_columns == 4
    assert tables[0].equals(tables[1])  # to the bit, every image once
