"""Trials on several workers, and several on one card: real Ray clusters on this machine, processes killed for real."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ray import tune
from ray.cluster_utils import Cluster

import pipelines.ray_environment  # noqa: F401
from fvae import ConfigError, ModelConfig, TrainConfig, Trainer
from fvae.data import ImageDataset
from pipelines.storage import open_storage
from tests.tune.small_space import proposer
from tests.tune.travelling import HastyCoordinator, MeetingProcess, wait_until
from tune import engine, gpu_shares
from tune.budget import Budget
from tune.callbacks import BudgetStopper, LedgerCallback
from tune.clock import SearchClock
from tune.forecasts import Forecasts
from tune.ledger import Ledger, TrialRecord
from tune.searcher import FrontSearcher
from tune.settings import SearchSettings
from tune.standings import Standings
from tune.trial_files import CHECKPOINT

pytestmark = pytest.mark.core

EPOCHS = 5
KILLED, COORDINATOR_KILLED = ("0001-fvae", 3), ("0002-fvae", 2)
"""The trial, and after which epoch, of which a worker, and the coordinator, is killed."""
PIXELS = np.random.default_rng(0).integers(0, 8, (60, 1, 4, 4), dtype=np.uint8)
DATASET = ImageDataset(name="noise", bins=8, train=PIXELS[:40], val=PIXELS[40:50], test=PIXELS[50:])
MODEL = {"channels": 1, "height": 4, "width": 4, "bins": 8, "flow_levels": 1, "flow_depth": 1, "coupling_width": 8}


def models(count: int) -> list[ModelConfig]:
    return [ModelConfig(family="fvae", encoder_width=4 + 2 * number, **MODEL) for number in range(count)]


def open_ledger(folder: Path, trials: int) -> Ledger:
    """A ledger with trials that an earlier search began."""
    ledger = Ledger(open_storage(folder))
    for number, model in enumerate(models(trials)):
        train = TrainConfig(epochs=EPOCHS, batch_size=16, seed=number)
        ledger.put(
            TrialRecord(
                id=f"{number:04d}-fvae", family="fvae", config=model.to_dict(), train=train.to_dict(), params=1,
                flops_per_image=1, suggestion={},
            )
        )  # fmt: skip
    return ledger


def search(room: engine.Room, ledger: Ledger, *callbacks: tune.Callback) -> bool:
    """Train the ledger's trials, and stop none of them."""
    budget = Budget(SearchSettings(trials=len(ledger.records)), SearchClock(ledger.root), DATASET.bins)
    standings = Standings(ledger, Forecasts([], EPOCHS, DATASET.bins), bins=DATASET.bins)
    families = ("fvae",)
    searcher = FrontSearcher(ledger=ledger, proposer=proposer(families=families), families=families, budget=budget)
    warned: list[str] = []
    watching = [LedgerCallback(ledger, (), warned.append), *callbacks]
    done = engine.run_trials(room, DATASET, standings, searcher, watching, BudgetStopper(budget, ledger))
    assert warned == []
    return done


@contextmanager
def cluster(*nodes: dict[str, Any]) -> Iterator[None]:
    """A Ray cluster of these nodes, which ``RAY_ADDRESS`` names."""
    head, *others = nodes
    started = Cluster(initialize_head=True, head_node_args=head | {"include_dashboard": False})
    try:
        for node in others:
            started.add_node(**node)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("RAY_ADDRESS", started.address)
            yield
    finally:
        started.shutdown()


# --- processes -------------------------------------------------------------------------------------------


def trial_workers_of_ray() -> set[int]:
    """Process ids of the workers of trials that descend from this process."""
    parents, titles = {}, {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            status = (folder / "stat").read_text().rpartition(")")[2].split()
            titles[int(folder.name)] = (folder / "cmdline").read_text()
        except OSError:  # it ended
            continue
        parents[int(folder.name)] = int(status[1]) if status[0] != "Z" else 0

    def descends(process: int) -> bool:
        while process in parents and process != os.getpid():
            process = parents[process]
        return process == os.getpid()

    return {pid for pid, title in titles.items() if title.startswith("ray::HastyWorker") and descends(pid)}


class Killer(tune.Callback):
    """Kills a worker that its fellow waits for, and later a coordinator, whose workers must end with it."""

    def __init__(self) -> None:
        self.epochs: list[tuple[str, int]] = []
        self.workers: dict[str, set[int]] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def on_trial_result(self, trial: Any, result: dict[str, Any], **info: Any) -> None:
        last = (trial.config["id"], result["epoch"])
        self.workers.setdefault(trial.config["id"], set()).update(trial_workers_of_ray())
        if last == KILLED and last not in self.epochs:
            victim = max(trial_workers_of_ray())
            os.kill(victim, signal.SIGSTOP)  # so that the other is in the midst of waiting for it
            threading.Timer(1.0, os.kill, (victim, signal.SIGKILL)).start()
        if last == COORDINATOR_KILLED and last not in self.epochs:
            os.kill(result["pid"], signal.SIGKILL)
            wait_until(lambda: not trial_workers_of_ray())
        self.epochs.append(last)


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Ledger, Killer]]:
    """A search with two workers a trial, one on each of two nodes, of which some are killed."""
    ledger, killer = open_ledger(tmp_path_factory.mktemp("run"), 3), Killer()
    settings = SearchSettings(workers_per_trial=2, epochs=EPOCHS)
    with cluster({"num_cpus": 1}, {"num_cpus": 1}), pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "TrialCoordinator", HastyCoordinator)
        refused = SearchSettings(workers_per_trial=3)
        with (
            pytest.raises(ConfigError, match="--workers-per-trial=3: needs 3 times 1 CPU, .* there is room for 2;"),
            engine.search_session(refused, DATASET),
        ):
            pass
        with engine.search_session(settings, DATASET) as room:
            assert room.trials_at_once == 1
            assert search(room, ledger, killer)
        yield ledger, killer


def test_figures_are_those_of_one_worker(searched: tuple[Ledger, Killer]) -> None:
    ledger, _ = searched
    for record in Ledger(ledger.root).records.values():
        trainer = Trainer(
            ModelConfig.from_dict(record.config), TrainConfig.from_dict(record.train), DATASET.train, DATASET.val
        )
        while not trainer.finished:
            trainer.train_epoch()
        assert record.status == "complete", record.reason
        assert [each.epoch for each in record.history] == list(range(1, EPOCHS + 1))
        for name in ("train_bpd", "val_bpd", "sigma1", "sigma2", "images"):
            figures = [[getattr(each, name) for each in history] for history in (record.history, trainer.history)]
            assert figures[0] == pytest.approx(figures[1], abs=1e-3), name
        assert record.best_epoch == trainer.best_epoch
        assert record.val_bpd == pytest.approx(trainer.best_val_bpd, abs=1e-3)


def test_a_complete_trial_leaves_what_one_worker_s_leaves(searched: tuple[Ledger, Killer]) -> None:
    ledger, _ = searched
    for record in ledger.records.values():
        assert [info.key for info in ledger.trial_storage(record.id).list()] == sorted([
            "interpolations.png", "model/config.json", "model/model.safetensors", "reconstructions.png", "samples.png",
            "trial.json",
        ])  # fmt: skip


def test_the_workers_stay_for_the_next_trial(searched: tuple[Ledger, Killer]) -> None:
    _, killer = searched
    first, second = killer.workers["0000-fvae"], killer.workers["0001-fvae"]
    assert len(first) == 2
    assert first < second and len(second) == 4  # those of the first trial, and those after the kill


@pytest.mark.parametrize(("trial", "killed"), [KILLED, COORDINATOR_KILLED])
def test_after_a_kill_a_trial_goes_on_from_its_checkpoint(
    searched: tuple[Ledger, Killer], trial: str, killed: int
) -> None:
    _, killer = searched
    epochs = [epoch for id_, epoch in killer.epochs if id_ == trial]
    assert epochs[:killed] == list(range(1, killed + 1))
    assert epochs[killed] in (killed, killed + 1)
    assert epochs[killed:] == list(range(epochs[killed], EPOCHS + 1))


# --- shares of a card ------------------------------------------------------------------------------------


class Running(tune.Callback):
    """How many trials ran at once, and with which resources."""

    def __init__(self) -> None:
        self.most = 0
        self.bundles: list[Any] = []

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.most = max(self.most, sum(each.status == "RUNNING" for each in trials))
        self.bundles += trial.placement_group_factory.bundles


def test_four_trials_that_need_a_quarter_of_a_card_share_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The card is pretended, so trials train on the CPU."""
    ledger, running = open_ledger(tmp_path, 5), Running()
    settings = SearchSettings(gpus_per_trial="auto", epochs=EPOCHS)
    monkeypatch.setattr(engine, "TrialProcess", MeetingProcess)
    monkeypatch.setattr(engine, "device", lambda settings: "cpu")
    with cluster({"num_cpus": 6, "num_gpus": 1}):
        with (
            pytest.raises(ConfigError, match="--gpus-per-trial=auto: a GPU does not say its memory"),
            engine.search_session(settings, DATASET),
        ):
            pass
        monkeypatch.setattr(engine, "smallest_card_bytes", lambda nodes: 5 * gpu_shares.CONTEXT_BYTES)
        with engine.search_session(settings, DATASET) as room:
            assert search(room, ledger, running)
            (record,) = engine.read_tests(room, DATASET, ledger, ["0004-fvae"], pytest.fail)
    assert {each.status for each in ledger.records.values()} == {"complete"}
    assert running.bundles == [{"CPU": 1.0, "GPU": 0.25}] * 5 * EPOCHS
    assert running.most == 4
    assert record.test is not None
    assert not ledger.trial_storage(record.id).exists(CHECKPOINT)
