"""Trials on several workers, and several on one card, on a real Ray."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ray import tune
from ray.cluster_utils import Cluster

from fvae import ConfigError
from tests.tune.tiny_trials import DATASET, EPOCHS, check_figures, check_files, open_ledger, search
from tests.tune.travelling import LargeProcess, MeetingProcess, trial_workers
from tune.records.ledger import Ledger
from tune.run import engine, scoring
from tune.run.gpu_shares import CONTEXT_BYTES
from tune.run.resources import search_session
from tune.run.trial_checkpoint import CHECKPOINT
from tune.settings import SearchSettings

pytestmark = pytest.mark.core

# --- several workers -------------------------------------------------------------------------------------


class Workers(tune.Callback):
    """Which workers each trial had."""

    def __init__(self) -> None:
        self.of: dict[str, set[int]] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.of.setdefault(trial.config["id"], set()).update(trial_workers())


@pytest.fixture(scope="module")
def searched(shared_ray: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Ledger, Workers]]:
    """A search with two workers a trial."""
    ledger, workers = open_ledger(tmp_path_factory.mktemp("run"), 2), Workers()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_ADDRESS", shared_ray)
        with search_session(SearchSettings(workers_per_trial=2, epochs=EPOCHS), DATASET) as resources:
            assert resources.trials_at_once == 1
            assert search(resources, ledger, workers)
    yield ledger, workers


def test_figures_are_those_of_one_worker(searched: tuple[Ledger, Workers]) -> None:
    ledger, _ = searched
    for record in Ledger(ledger.root).records.values():
        check_figures(record)


def test_a_complete_trial_leaves_what_one_worker_s_leaves(searched: tuple[Ledger, Workers]) -> None:
    ledger, _ = searched
    for record in ledger.records.values():
        check_files(ledger, record)


def test_the_workers_stay_for_the_next_trial(searched: tuple[Ledger, Workers]) -> None:
    _, workers = searched
    first, second = workers.of.values()
    assert first == second and len(first) == 2


def test_more_workers_than_there_is_room_for_are_one_line(ray_address: str) -> None:
    with (
        pytest.raises(ConfigError, match="--workers-per-trial=4: needs 4 times 1 CPU, .* there is room for 3;"),
        search_session(SearchSettings(workers_per_trial=4), DATASET),
    ):
        pass


# --- shares of a card ------------------------------------------------------------------------------------


class Running(tune.Callback):
    """How many trials ran at once, and with which resources."""

    def __init__(self) -> None:
        self.most = 0
        self.bundles: list[Any] = []

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.most = max(self.most, sum(each.status == "RUNNING" for each in trials))
        self.bundles += trial.placement_group_factory.bundles


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A Ray with a card, which is pretended: trials train on the CPU."""
    head = {"num_cpus": 3, "num_gpus": 1, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    monkeypatch.setenv("RAY_ADDRESS", cluster.address)
    monkeypatch.setattr(SearchSettings, "device", "cpu")
    yield
    cluster.shutdown()


def test_two_trials_that_need_half_a_card_share_it(card: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The third waits: there would be a core for it, but no part of the card."""
    ledger, running = open_ledger(tmp_path, 3), Running()
    settings = SearchSettings(gpus_per_trial="auto", epochs=EPOCHS)
    monkeypatch.setattr(engine, "TrialProcess", MeetingProcess)
    with (
        pytest.raises(ConfigError, match="--gpus-per-trial=auto: a GPU does not report its memory"),
        search_session(settings, DATASET),
    ):
        pass
    monkeypatch.setattr("tune.run.resources.smallest_card_bytes", lambda nodes: 2.5 * CONTEXT_BYTES)
    with search_session(settings, DATASET) as resources:
        assert search(resources, ledger, running)
        (record,) = scoring.read_tests(resources, DATASET, ledger, ["0002-fvae"], pytest.fail)
    assert {each.status for each in ledger.records.values()} == {"complete"}
    assert running.bundles == [{"CPU": 1.0, "GPU": 0.5}] * 3 * EPOCHS
    assert running.most == 2
    assert record.test is not None
    assert not ledger.trial_storage(record.id).exists(CHECKPOINT)


def test_a_trial_that_its_share_does_not_hold_gets_twice_that(
    card: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And none is lost; later ones get as much at once."""
    ledger, running = open_ledger(tmp_path, 3), Running()
    settings = SearchSettings(gpus_per_trial="auto", epochs=EPOCHS, concurrent=1)
    monkeypatch.setattr(engine, "TrialProcess", LargeProcess)
    monkeypatch.setattr("tune.run.resources.smallest_card_bytes", lambda nodes: 4.5 * CONTEXT_BYTES)
    with search_session(settings, DATASET) as resources:
        assert search(resources, ledger, running)
    for record in ledger.records.values():
        check_figures(record)
    assert [bundle["GPU"] for bundle in running.bundles][:3] == [0.25, 0.5, 1.0]
    first, _, third = ledger.records.values()  # Tune has placed the second while the first still asked for more
    assert [attempt.ended for attempt in first.attempts] == ["lost", "lost", "done"]
    assert [attempt.ended for attempt in third.attempts] == ["done"]
