"""Trials on workers of two machines, of which a worker is killed, and then a coordinator."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest
from ray import tune
from ray.cluster_utils import Cluster

from tests.tune.tiny_trials import DATASET, EPOCHS, check_figures, check_files, open_ledger, search
from tests.tune.travelling import WORKER_KILLED, MortalCoordinator, trial_workers, wait_until
from tune.records.ledger import Ledger
from tune.run import engine
from tune.run.resources import search_session
from tune.settings import SearchSettings

pytestmark = pytest.mark.faults

COORDINATOR_KILLED = ("0002-fvae", 2)
"""The trial, and after which epoch."""


class Killer(tune.Callback):
    """Kills a coordinator, whose workers must end with it; and keeps which epochs and workers there were."""

    def __init__(self) -> None:
        self.epochs: list[tuple[str, int]] = []
        self.workers: dict[str, set[int]] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def on_trial_result(self, trial: Any, result: dict[str, Any], **info: Any) -> None:
        last = (trial.config["id"], result["epoch"])
        self.workers.setdefault(trial.config["id"], set()).update(trial_workers())
        if last == COORDINATOR_KILLED and last not in self.epochs:
            os.kill(result["pid"], signal.SIGKILL)
            wait_until(lambda: not trial_workers())
        self.epochs.append(last)


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Ledger, Killer]]:
    """A search with two workers a trial, one on each of two nodes."""
    ledger, killer = open_ledger(tmp_path_factory.mktemp("run"), 3), Killer()
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        cluster.add_node(num_cpus=1)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("RAY_ADDRESS", cluster.address)
            patch.setattr(engine, "TrialCoordinator", MortalCoordinator)
            with search_session(SearchSettings(workers_per_trial=2, epochs=EPOCHS), DATASET) as resources:
                assert resources.trials_at_once == 1
                assert search(resources, ledger, killer)
        yield ledger, killer
    finally:
        cluster.shutdown()


def test_figures_and_files_are_those_of_one_worker(searched: tuple[Ledger, Killer]) -> None:
    ledger, _ = searched
    for record in Ledger(ledger.root).records.values():
        check_figures(record)
        check_files(ledger, record)


def test_the_workers_stay_for_the_next_trial(searched: tuple[Ledger, Killer]) -> None:
    _, killer = searched
    first, second = killer.workers["0000-fvae"], killer.workers["0001-fvae"]
    assert len(first) == 2
    assert first < second and len(second) == 4  # those of the first trial, and those after the kill


@pytest.mark.parametrize(("trial", "killed"), [WORKER_KILLED, COORDINATOR_KILLED])
def test_after_a_kill_a_trial_goes_on_from_its_checkpoint(
    searched: tuple[Ledger, Killer], trial: str, killed: int
) -> None:
    _, killer = searched
    epochs = [epoch for id_, epoch in killer.epochs if id_ == trial]
    assert epochs[:killed] == list(range(1, killed + 1))
    assert epochs[killed] in (killed, killed + 1)
    assert epochs[killed:] == list(range(epochs[killed], EPOCHS + 1))
