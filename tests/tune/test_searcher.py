"""The searcher against real Optuna studies: shares, replay, and what is never told."""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState
from ray.tune.search import Searcher

from fvae import ConfigError, ModelConfig, TrainConfig
from fvae.flops import parameters_and_flops
from pipelines.storage import open_storage
from tune.ledger import Ledger, TrialRecord
from tune.searcher import FrontSearcher
from tune.space import SearchSpace, initial_designs, suggest

DIGITS = {"channels": 1, "height": 8, "width": 8, "bins": 17}
FAMILIES = ("fvae", "flow", "vae")
SPACE = SearchSpace.for_images((1, 8, 8))


def searcher(root: Path, trials: int = 12, families: tuple[str, ...] = FAMILIES) -> FrontSearcher:
    return FrontSearcher(
        ledger=Ledger(open_storage(root)),
        space=SPACE,
        images=DIGITS,
        train=TrainConfig(),
        families=families,
        trials=trials,
        seed=0,
    )


def finish(search: FrontSearcher, tune_id: str, trial_id: str, status: str, val_bpd: float | None = 2.5) -> None:
    search.ledger.update(trial_id, status=status, val_bpd=val_bpd, reason="because")
    search.on_trial_complete(tune_id)


def told(search: FrontSearcher) -> Counter[TrialState]:
    return Counter(trial.state for study in search._studies.values() for trial in study.trials)


def test_families_get_equal_shares_and_the_count_is_kept(tmp_path: Path) -> None:
    search = searcher(tmp_path, trials=9)
    for number in range(9):
        config = search.suggest(str(number))
        assert isinstance(config, dict)
        finish(search, str(number), config["id"], "complete", 2.0 + number / 10)
    assert search.suggest("x") == Searcher.FINISHED
    assert Counter(record.family for record in search.ledger.records.values()) == dict.fromkeys(FAMILIES, 3)


def test_sizes_are_known_before_training_and_configs_differ(tmp_path: Path) -> None:
    search = searcher(tmp_path)
    for number in range(12):
        search.suggest(str(number))
    records = list(search.ledger.records.values())
    assert len({repr((record.config, record.train)) for record in records}) == 12
    for record in records[:3]:
        assert (record.params, record.flops_per_image) == parameters_and_flops(ModelConfig.from_dict(record.config))


def test_only_complete_trials_are_told_with_values(tmp_path: Path) -> None:
    search = searcher(tmp_path)
    for number, status in enumerate(("complete", "stopped", "failed")):
        config = search.suggest(str(number))
        finish(search, str(number), config["id"], status)
    assert {state: told(search)[state] for state in (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)} == {
        TrialState.COMPLETE: 1,
        TrialState.PRUNED: 1,
        TrialState.FAIL: 1,
    }
    complete = [t for s in search._studies.values() for t in s.trials if t.state == TrialState.COMPLETE]
    record = next(iter(search.ledger.records.values()))
    assert complete[0].values == [record.params, record.val_bpd]
    assert all(
        trial.values is None
        for study in search._studies.values()
        for trial in study.trials
        if trial.state != TrialState.COMPLETE
    )


def test_a_restart_resumes_unfinished_trials_and_leaves_no_ghost(tmp_path: Path) -> None:
    first = searcher(tmp_path)
    configs = [first.suggest(str(number)) for number in range(4)]
    finish(first, "0", configs[0]["id"], "complete")  # the other three were running when the process died

    second = searcher(tmp_path)
    resumed = [second.suggest(f"again-{number}") for number in range(3)]
    assert [config["id"] for config in resumed] == [config["id"] for config in configs[1:]]
    assert [config["model"] for config in resumed] == [config["model"] for config in configs[1:]]
    fresh = second.suggest("new")
    assert fresh["id"].startswith("0004-")
    for number, config in enumerate(resumed):
        finish(second, f"again-{number}", config["id"], "complete")
    finish(second, "new", fresh["id"], "stopped")
    assert told(second)[TrialState.RUNNING] == 0
    assert told(second)[TrialState.COMPLETE] == 4


def test_a_replayed_study_equals_the_one_that_was_told(tmp_path: Path) -> None:
    first = searcher(tmp_path)
    for number in range(6):
        config = first.suggest(str(number))
        finish(first, str(number), config["id"], "complete" if number % 2 else "stopped", 2.0 + number)
    again = searcher(tmp_path)
    for family in FAMILIES:
        before, after = (
            [(t.state, t.values, t.params, t.distributions) for t in s._studies[family].trials if t.state.is_finished()]
            for s in (first, again)
        )
        assert after == before


def test_an_interrupted_trial_is_not_told(tmp_path: Path) -> None:
    search = searcher(tmp_path)
    search.suggest("0")
    search.on_trial_complete("0")  # Tune says so of every trial that Ctrl-C ends
    assert told(search)[TrialState.RUNNING] == 1


def test_an_exhausted_space_is_said_in_one_line(tmp_path: Path) -> None:
    point = dataclasses.replace(
        SPACE,
        flow_levels=(1, 1),
        flow_depth=(1, 1),
        coupling_width=(8, 8),
        coupling=("affine",),
        mixing=("plu",),
        sigma1=(0.1, 0.1),
        learning_rate=(1e-3, 1e-3),
    )
    search = FrontSearcher(
        ledger=Ledger(open_storage(tmp_path)),
        space=point,
        images=DIGITS,
        train=TrainConfig(),
        families=("flow",),
        trials=5,
        seed=0,
    )
    search.suggest("0")
    with pytest.raises(ConfigError, match="no untried model"):
        search.suggest("1")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 32, 32), (1, 28, 28)])
def test_every_initial_design_is_a_model_and_sizes_rise(family: str, shape: tuple[int, int, int]) -> None:
    space = SearchSpace.for_images(shape)
    images = dict(zip(("channels", "height", "width"), shape, strict=True)) | {"bins": 256}
    sizes = []
    for design in initial_designs(family, space, 5):
        trial = optuna.trial.FixedTrial(design)
        model, _ = suggest(trial, family, space, images)
        assert trial.params == design  # every key is asked for, every value inside its range
        sizes.append(parameters_and_flops(model)[0])
    assert sizes[::2] == sorted(sizes[::2])  # every other f-VAE has a light encoder
    assert sizes[1::2] == sorted(sizes[1::2])
    assert max(sizes) > 5 * min(sizes)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_space_asks_nothing_of_parts_that_a_family_lacks(family: str) -> None:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    possible = 0
    for _ in range(50):
        trial = study.ask()
        try:
            model, _ = suggest(trial, family, SPACE, DIGITS)
        except ConfigError:
            continue
        possible += 1
        assert model.family == family
        asked = set(trial.params)
        assert bool(asked & {"flow_depth", "coupling_width", "mixing"}) == (family != "vae")
        assert bool(asked & {"encoder_width", "latent_share", "sigma2_init"}) == (family != "flow")
    assert possible > 40


def test_images_that_cannot_be_halved_are_refused() -> None:
    with pytest.raises(ConfigError, match="images of 9×8"):
        SearchSpace.for_images((1, 8, 9))


def test_records_survive_the_disk(tmp_path: Path) -> None:
    search = searcher(tmp_path)
    config = search.suggest("0")
    finish(search, "0", config["id"], "complete")
    reread = Ledger(open_storage(tmp_path)).records
    assert reread == search.ledger.records
    assert isinstance(next(iter(reread.values())), TrialRecord)


def test_a_changed_space_resumes_and_extends(tmp_path: Path) -> None:
    first = searcher(tmp_path)
    configs = [first.suggest(str(number)) for number in range(6)]
    for number in range(3):
        finish(first, str(number), configs[number]["id"], "complete")
    narrower = dataclasses.replace(SPACE, learning_rate=(1e-4, 2e-4))
    second = FrontSearcher(
        ledger=Ledger(open_storage(tmp_path)),
        space=narrower,
        images=DIGITS,
        train=TrainConfig(),
        families=FAMILIES,
        trials=8,
        seed=0,
    )
    again = [second.suggest(f"again-{number}") for number in range(4)]
    assert [config["model"] for config in again[:3]] == [config["model"] for config in configs[3:]]
    assert again[3]["train"]["learning_rate"] <= 2e-4
    finish(second, "again-0", again[0]["id"], "complete")


def test_unfinished_trials_of_a_family_no_longer_searched_are_finished(tmp_path: Path) -> None:
    first = searcher(tmp_path, trials=3)
    started = [first.suggest(str(number))["id"] for number in range(3)]
    second = searcher(tmp_path, trials=3, families=("vae",))
    assert [second.suggest(f"again-{number}")["id"] for number in range(3)] == started
    assert second.suggest("x") == Searcher.FINISHED
    finish(second, "again-0", started[0], "complete")


def test_an_extension_goes_on_with_the_sampler_not_with_the_designs_again(tmp_path: Path) -> None:
    first = searcher(tmp_path, trials=9)
    for number in range(9):
        finish(first, str(number), first.suggest(str(number))["id"], "complete", 2.0 + number / 10)
    more = searcher(tmp_path, trials=15)
    waiting = [t for s in more._studies.values() for t in s.trials if t.state == TrialState.WAITING]
    assert waiting == []


def test_a_crash_is_told_as_failed(tmp_path: Path) -> None:
    search = searcher(tmp_path)
    search.suggest("0")
    search.on_trial_complete("0", error=True)  # before the ledger hears of it
    assert told(search)[TrialState.FAIL] == 1
