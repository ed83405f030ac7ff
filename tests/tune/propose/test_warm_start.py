"""Warm starts from real runs and a real MLflow store: what compares is observed, the rest gives what to try first."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from fvae import ConfigError, TrainConfig
from pipelines.storage import open_storage
from pipelines.tracking.tracker import SearchTracker
from tests.tune.small_space import DIGITS, FAMILIES, SOURCE, SPACE, trial
from tune.propose.candidates import SpaceCandidates
from tune.propose.limits import Limits
from tune.propose.proposers import OptunaProposer
from tune.propose.warm_start import WarmStart, warm_start
from tune.records.ledger import Ledger, TrialRecord
from tune.records.search_folder import FORMAT, SEARCH
from tune.run.mlflow_tracking import snapshot
from tune.space import SearchSpace
from tune.stats.pareto import fronts

pytestmark = pytest.mark.core

DATASET = {"name": "digits", "hash": "0123456789abcdef", "shape": [1, 8, 8], "bins": 17, "val": 180}
PHOTOS = SpaceCandidates(
    SearchSpace.for_images((3, 32, 32), 256), {"channels": 3, "height": 32, "width": 32, "bins": 256}, TrainConfig()
)


def records(count: int = 12, source: SpaceCandidates = SOURCE) -> list[TrialRecord]:
    """Trials of every family; the last three of each are stopped, failed, running."""
    made: list[TrialRecord] = []
    for place, family in enumerate(FAMILIES):
        for number, candidate in enumerate(source.draw(family, count, np.random.default_rng(place))):
            status = {count - 3: "stopped", count - 2: "failed", count - 1: "running"}.get(number, "complete")
            made.append(trial(len(made), candidate, status))
    return made


def write_search(runs: Path, trials: list[TrialRecord], name: str = "earlier") -> list[TrialRecord]:
    """A run as a search leaves it."""
    storage = open_storage(runs).child(name)
    train = TrainConfig()
    settings = {"epochs": train.epochs, "batch_size": train.batch_size, "precision": train.precision, "seed": 0}
    storage.write(SEARCH, json.dumps({"format": FORMAT, "dataset": DATASET, "streamed": False} | settings).encode())
    ledger = Ledger(storage)
    for record in trials:
        ledger.put(record)
    return trials


def start(
    runs: Path,
    location: str = "earlier",
    *,
    source: SpaceCandidates = SOURCE,
    dataset_hash: str = DATASET["hash"],
    families: tuple[str, ...] = FAMILIES,
) -> WarmStart:
    return warm_start(
        location,
        storage=open_storage(runs),
        run=open_storage(runs).child("new"),
        dataset_hash=dataset_hash,
        source=source,
        families=families,
    )


def front_of(trials: list[TrialRecord], family: str) -> list[dict]:
    """Configs on a family's front, by ascending size."""
    of_id = {record.id: record for record in trials}
    return [of_id[trial_id].config for trial_id in fronts(trials)[family]]


@pytest.fixture(scope="module")
def earlier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of all runs, with a search in it."""
    runs = tmp_path_factory.mktemp("runs")
    write_search(runs, records())
    return runs


# --- an earlier search -------------------------------------------------------------------------------------


def test_trials_of_the_same_images_and_budget_are_observed_and_the_fronts_come_first(earlier: Path) -> None:
    trials = records()
    warm = start(earlier)
    ended = [record for record in trials if record.status != "running"]
    assert [record.suggestion for record in warm.observed] == [record.suggestion for record in ended]
    assert [(record.status, record.params, record.val_bpd) for record in warm.observed] == [
        (record.status, record.params, record.val_bpd) for record in ended
    ]
    assert all(record.id.endswith("@earlier") for record in warm.observed)
    for family in FAMILIES:
        assert [candidate.model.to_dict() for candidate in warm.fronts[family]] == front_of(trials, family)
    count = sum(map(len, warm.fronts.values()))
    assert warm.summary == (
        "Warm start from earlier: 33 trials of the same images and budget observed (27 complete), "
        f"{count} models of its fronts are tried first"
    )


def test_a_proposer_learns_from_them_and_runs_none_again_but_the_fronts(earlier: Path) -> None:
    warm = start(earlier)
    proposer = OptunaProposer("tpe", source=SOURCE, limits=Limits(), first=warm.fronts, earlier=warm.observed, seed=0)
    tried = [proposer.propose("flow") for _ in range(len(warm.fronts["flow"]) + 3)]
    assert tried[:-3] == warm.fronts["flow"]
    observed = {json.dumps(record.config) for record in warm.observed}
    assert not {json.dumps(candidate.model.to_dict()) for candidate in tried[-3:]} & observed
    assert len(proposer._studies["vae"].trials) == 11


def test_a_folder_of_a_run_does_as_well_as_its_name(earlier: Path) -> None:
    by_path = start(earlier, str(earlier / "earlier"))
    assert by_path.fronts == start(earlier).fronts
    assert len(by_path.observed) == 33


def test_further_seeds_of_a_trial_are_left_out(tmp_path: Path) -> None:
    trials = records()
    replicate = dataclasses.replace(trials[0], id="0099-fvae", replicate_of=trials[0].id, val_bpd=0.1)
    write_search(tmp_path, [*trials, replicate])
    assert len(start(tmp_path).observed) == 33


def test_only_families_that_are_searched_are_taken(earlier: Path) -> None:
    warm = start(earlier, families=("vae",))
    assert set(warm.fronts) == {"vae"}
    assert {record.family for record in warm.observed} == {"vae"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epochs": 7}, "--epochs 60 there, 7 here"),
        ({"batch_size": 32}, "--batch-size 64 there, 32 here"),
        ({"precision": "bf16"}, "--precision float32 there, bf16 here"),
    ],
)
def test_another_budget_gives_what_to_try_first_and_no_observations(
    earlier: Path, change: dict[str, object], message: str
) -> None:
    warm = start(earlier, source=SpaceCandidates(SPACE, DIGITS, TrainConfig(**change)))
    assert warm.observed == ()
    assert message in warm.summary
    for family in FAMILIES:
        assert [candidate.model.to_dict() for candidate in warm.fronts[family]] == front_of(records(), family)
        assert all(candidate.train | change == candidate.train for candidate in warm.fronts[family])


def test_another_seed_still_compares(earlier: Path) -> None:
    assert len(start(earlier, source=SpaceCandidates(SPACE, DIGITS, TrainConfig(seed=5))).observed) == 33


def test_other_images_give_the_fronts_within_their_own_space(tmp_path: Path) -> None:
    trials = write_search(tmp_path, records(source=PHOTOS))
    warm = start(tmp_path, dataset_hash="another")
    assert warm.observed == ()
    assert "other images" in warm.summary
    for family in FAMILIES:
        models = warm.fronts[family]
        assert 0 < len(models) <= len(front_of(trials, family))
        assert [each.params for each in models] == sorted(each.params for each in models)
        assert len({each.key for each in models}) == len(models)
        for each in models:
            assert each.model.image_shape == (1, 8, 8)
            assert SOURCE.at(family, each.suggestion) == each


def test_trials_outside_a_space_that_has_changed_are_not_observed(earlier: Path) -> None:
    narrower = dataclasses.replace(SPACE, encoder_width=(8, 20))
    warm = start(earlier, source=SpaceCandidates(narrower, DIGITS, TrainConfig()))
    assert 11 < len(warm.observed) < 33  # flows have no encoder
    assert all(record.suggestion.get("encoder_width", 8) <= 20 for record in warm.observed)
    assert all(each.suggestion["encoder_width"] <= 20 for each in warm.fronts["vae"])


def test_an_earlier_search_on_s3(bucket: str, tmp_path: Path) -> None:
    write_search(bucket, records(), "runs-1")
    assert len(start(tmp_path, f"{bucket}/runs-1").observed) == 33
    assert len(start(bucket, "runs-1").observed) == 33


# --- what cannot be taken ----------------------------------------------------------------------------------


def refused(runs: Path, location: str = "earlier", **changes: object) -> str:
    with pytest.raises(ConfigError) as raised:
        start(runs, location, **changes)
    line = str(raised.value)
    assert "\n" not in line
    assert line.startswith(f"--warm-start {location}: ")
    return line


def test_no_such_run(tmp_path: Path) -> None:
    assert "no search in" in refused(tmp_path)
    assert "no search in" in refused(tmp_path, str(tmp_path / "nowhere"))
    assert not (tmp_path / "nowhere").exists()
    assert "ftp://" in refused(tmp_path, "ftp://host/runs/a")


def test_the_search_itself(tmp_path: Path) -> None:
    assert "this search itself" in refused(tmp_path, "new")


def test_nothing_has_ended(tmp_path: Path) -> None:
    write_search(tmp_path, [record for record in records() if record.status == "running"])
    assert "no trial has ended" in refused(tmp_path)


def test_nothing_of_what_is_searched(tmp_path: Path) -> None:
    write_search(tmp_path, [record for record in records() if record.family == "vae"])
    assert "none is within" in refused(tmp_path, families=("flow", "fvae"))


def test_a_search_of_another_version(tmp_path: Path) -> None:
    write_search(tmp_path, records())
    search = tmp_path / "earlier" / SEARCH
    search.write_text(json.dumps(json.loads(search.read_text()) | {"format": FORMAT + 1}))
    assert "another version" in refused(tmp_path)


# --- MLflow ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tracked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of all runs with nothing but MLflow's database: a search's, and one of another budget."""
    runs = tmp_path_factory.mktemp("tracked")
    storage = open_storage(runs)
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        shorter = [
            dataclasses.replace(record, train=record.train | {"epochs": 5}, val_bpd=0.5)
            for record in records(4)
            if record.status == "complete"
        ]
        again = dataclasses.replace(records()[0], id="0077-fvae", train=records()[0].train | {"seed": 9})
        for name, trials in (("earlier", [*records(), again]), ("shorter", shorter)):
            tracker = SearchTracker(storage=storage, dataset_name="digits", search_name=name, write_interval=3600.0)
            tracker.start()
            for record in trials:
                tracker.record_trial(snapshot(record, DATASET, storage.child(name).child("trials").child(record.id)))
            tracker.finish()
            tracker.close()
            assert tracker.problems == []
        yield runs


def test_finished_trials_of_an_experiment_are_as_good_as_a_search(tracked: Path) -> None:
    warm = start(tracked, "mlflow:fvae/digits")
    complete = [record for record in records() if record.status == "complete"]

    def measured(trials: list[TrialRecord]) -> list[tuple]:
        return sorted((json.dumps(each.config), each.train["seed"], each.params, each.val_bpd) for each in trials)

    assert measured(list(warm.observed)) == measured(complete)  # each model once, no other budget
    assert len({record.id for record in warm.observed}) == 27
    for record in warm.observed:
        assert SOURCE.at(record.family, record.suggestion).model.to_dict() == record.config
        assert record.flops_per_image > 0
    for family in FAMILIES:
        assert [candidate.model.to_dict() for candidate in warm.fronts[family]] == front_of(records(), family)
    assert "27 trials of the same images and budget observed (27 complete)" in warm.summary


def test_an_experiment_of_other_images_gives_what_to_try_first(tracked: Path) -> None:
    warm = start(tracked, "mlflow:fvae/digits", dataset_hash="another")
    assert warm.observed == ()
    for family in FAMILIES:  # of the larger of its two groups, which compares within itself
        assert [candidate.model.to_dict() for candidate in warm.fronts[family]] == front_of(records(), family)


def test_an_experiment_that_is_not_there(tracked: Path, tmp_path: Path) -> None:
    assert "no such experiment" in refused(tracked, "mlflow:fvae/photos")
    assert "does not exist" in refused(tmp_path, "mlflow:fvae/digits")
    assert not (tmp_path / "mlflow.db").exists()


def test_an_experiment_in_which_nothing_is_finished(tracked: Path) -> None:
    from mlflow import MlflowClient

    from pipelines.tracking.tracker import default_tracking_uri

    client = MlflowClient(default_tracking_uri(open_storage(tracked)))
    experiment = client.create_experiment("somebody/else")
    other = client.create_run(experiment)
    client.log_param(other.info.run_id, "lr", 0.1)
    client.set_terminated(other.info.run_id)
    assert "no finished trial or training" in refused(tracked, "mlflow:somebody/else")
