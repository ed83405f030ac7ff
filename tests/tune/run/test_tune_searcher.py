"""The searcher on a real ledger and real proposers: order of work, shares, and what a restart finds."""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState
from ray.tune.search import Searcher

from fvae import ConfigError, ModelConfig
from fvae.flops import parameters_and_flops
from fvae.train_config import TrainConfig
from pipelines.storage import open_storage
from tests.tune.small_space import DIGITS, FAMILIES, ONE_POINT, SPACE, finish, searcher
from tune.propose import limits
from tune.propose.candidates import Candidate, SpaceCandidates
from tune.propose.limits import Limits
from tune.records.attempts import Attempt, begin_attempt, end_attempt
from tune.records.ledger import Ledger, TrialRecord
from tune.run.tune_searcher import FrontSearcher
from tune.space import SearchSpace, initial_designs, suggest

pytestmark = pytest.mark.core


@pytest.fixture
def soon_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """A search for an untried model gives up after 300 draws instead of 10,000."""
    monkeypatch.setattr(limits, "MOST_DRAWN", 300)


def states(search: FrontSearcher) -> Counter[TrialState]:
    return Counter(trial.state for study in search.proposer._studies.values() for trial in study.trials)


def test_families_get_equal_shares_and_the_count_is_kept(tmp_path: Path) -> None:
    search = searcher(tmp_path, trials=9)
    for number in range(9):
        config = search.suggest(str(number))
        assert isinstance(config, dict)
        finish(search, str(number), config["id"], "complete", 2.0 + number / 10)
    assert search.suggest("x") == Searcher.FINISHED
    assert Counter(record.family for record in search.ledger.records.values()) == dict.fromkeys(FAMILIES, 3)


def test_a_trial_that_its_share_did_not_hold_is_suggested_again(tmp_path: Path) -> None:
    """Also where the budget holds no further trial: the search waits for those that may come back."""
    search = searcher(tmp_path, trials=2)
    search.trials_may_return = True
    first, second = search.suggest("0"), search.suggest("1")
    assert isinstance(first, dict) and isinstance(second, dict)
    assert search.suggest("x") is None
    search.on_trial_complete("0", {"out_of_memory": True, "done": True})
    assert search.suggest("2") == first
    finish(search, "2", first["id"], "complete", 2.0)
    assert search.suggest("x") is None
    finish(search, "1", second["id"], "complete", 2.0)
    assert search.suggest("x") == Searcher.FINISHED


def test_a_trials_process_is_told_what_it_needs(tmp_path: Path) -> None:
    search = searcher(tmp_path)
    config = search.suggest("0")
    record = search.ledger.records["0000-fvae"]
    assert config == {
        "id": "0000-fvae",
        "storage": search.ledger.trial_storage("0000-fvae").uri,
        "model": record.config,
        "train": record.train,
    }


def test_sizes_are_known_before_training_and_configs_differ(tmp_path: Path) -> None:
    search = searcher(tmp_path)
    for number in range(12):
        search.suggest(str(number))
    records = list(search.ledger.records.values())
    assert len({repr((record.config, record.train)) for record in records}) == 12
    for record in records:
        assert (record.params, record.flops_per_image) == parameters_and_flops(ModelConfig.from_dict(record.config))


def test_the_proposer_hears_of_each_end_once(tmp_path: Path) -> None:
    search = searcher(tmp_path)
    for number, status in enumerate(("complete", "stopped", "failed")):
        finish(search, str(number), search.suggest(str(number))["id"], status)
    assert states(search) == {TrialState.COMPLETE: 1, TrialState.PRUNED: 1, TrialState.FAIL: 1}


def test_a_restart_resumes_unfinished_trials_and_leaves_no_ghost(tmp_path: Path) -> None:
    first = searcher(tmp_path)
    configs = [first.suggest(str(number)) for number in range(4)]
    finish(first, "0", configs[0]["id"])  # the other three were running when the process died

    second = searcher(tmp_path)
    resumed = [second.suggest(f"again-{number}") for number in range(3)]
    assert resumed == configs[1:]
    fresh = second.suggest("new")
    assert fresh["id"].startswith("0004-")
    for number, config in enumerate(resumed):
        finish(second, f"again-{number}", config["id"])
    finish(second, "new", fresh["id"], "stopped")
    assert states(second) == {TrialState.COMPLETE: 4, TrialState.PRUNED: 1}


def test_a_restart_goes_on_as_the_search_would_have(tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    one = searcher(whole, trials=24)
    for number in range(24):
        finish(one, str(number), one.suggest(str(number))["id"], val_bpd=2.0 + number % 5)
    for number in range(24):
        two = searcher(killed, trials=24)  # a new process for each
        finish(two, str(number), two.suggest(str(number))["id"], val_bpd=2.0 + number % 5)
    assert Ledger(open_storage(killed)).records == Ledger(open_storage(whole)).records


def test_an_interrupted_trial_is_not_told(tmp_path: Path) -> None:
    search = searcher(tmp_path)
    search.suggest("0")
    search.on_trial_complete("0")  # Tune calls it for every trial that Ctrl-C ends
    assert states(search) == {TrialState.RUNNING: 1}


def test_a_crash_is_told_as_failed(tmp_path: Path) -> None:
    search = searcher(tmp_path)
    search.suggest("0")
    search.on_trial_complete("0", error=True)  # before the ledger is updated
    assert states(search) == {TrialState.FAIL: 1}


def test_nothing_starts_once_the_budget_is_used_up_not_even_what_was_begun(tmp_path: Path) -> None:
    searcher(tmp_path).suggest("0")
    search = searcher(tmp_path)
    search.budget.used_up = "--time-budget 1h: used up"
    assert search.suggest("again") == Searcher.FINISHED
    assert list(search.ledger.records) == ["0000-fvae"]
    search.budget.used_up = None
    assert search.suggest("again")["id"] == "0000-fvae"


def test_records_survive_the_disk(tmp_path: Path) -> None:
    search = searcher(tmp_path)
    finish(search, "0", search.suggest("0")["id"])
    reread = Ledger(open_storage(tmp_path)).records
    assert reread == search.ledger.records
    assert isinstance(next(iter(reread.values())), TrialRecord)


def test_a_changed_space_resumes_and_extends(tmp_path: Path) -> None:
    first = searcher(tmp_path)
    configs = [first.suggest(str(number)) for number in range(6)]
    for number in range(3):
        finish(first, str(number), configs[number]["id"])
    narrower = dataclasses.replace(SPACE, learning_rate=(1e-4, 2e-4))
    second = searcher(tmp_path, trials=8, source=SpaceCandidates(narrower, DIGITS, TrainConfig()))
    again = [second.suggest(f"again-{number}") for number in range(4)]
    assert [config["model"] for config in again[:3]] == [config["model"] for config in configs[3:]]
    assert again[3]["train"]["learning_rate"] <= 2e-4
    finish(second, "again-0", again[0]["id"])


def test_unfinished_trials_of_a_family_no_longer_searched_are_finished(tmp_path: Path) -> None:
    first = searcher(tmp_path, trials=3)
    started = [first.suggest(str(number))["id"] for number in range(3)]
    second = searcher(tmp_path, trials=3, families=("vae",))
    assert [second.suggest(f"again-{number}")["id"] for number in range(3)] == started
    assert second.suggest("x") == Searcher.FINISHED
    finish(second, "again-0", started[0])


# --- where models run out ----------------------------------------------------------------------------------


@pytest.mark.usefixtures("soon_given_up")
def test_a_family_whose_models_are_all_tried_leaves_its_turns_to_others(tmp_path: Path) -> None:
    one_flow = SpaceCandidates(dataclasses.replace(ONE_POINT), DIGITS, TrainConfig())
    search = searcher(tmp_path, trials=5, families=("flow", "vae"), source=one_flow)
    families = [search.suggest(str(number))["id"].split("-")[1] for number in range(5)]
    assert families == ["flow", "vae", "vae", "vae", "vae"]
    assert list(search.exhausted) == ["flow"]
    assert "no untried model" in search.exhausted["flow"]


@pytest.mark.usefixtures("soon_given_up")
def test_a_search_whose_models_are_all_tried_is_finished(tmp_path: Path) -> None:
    one_flow = SpaceCandidates(ONE_POINT, DIGITS, TrainConfig())
    search = searcher(tmp_path, trials=5, families=("flow",), source=one_flow)
    finish(search, "0", search.suggest("0")["id"])
    assert search.suggest("1") == Searcher.FINISHED
    assert search.ended == "every model has been tried"


def test_why_a_search_has_ended_stands_whatever_the_last_trials_change(tmp_path: Path) -> None:
    search = searcher(tmp_path, trials=2, families=("flow",))
    first, second = (search.suggest(str(number))["id"] for number in range(2))
    assert search.ended is None
    assert search.suggest("2") == Searcher.FINISHED
    assert search.ended == "--trials 2: all started"
    search.budget = budget_without_end = Unlimited()
    for number, trial_id in enumerate((first, second)):
        finish(search, str(number), trial_id)
    assert budget_without_end.may_start(search.ledger) is None
    assert search.ended == "--trials 2: all started"


class Unlimited:
    """An allowance that refuses nothing."""

    def may_start(self, ledger: Ledger, *, replicate: bool = False) -> str | None:
        return None

    def over(self, ledger: Ledger) -> str | None:
        return None


@pytest.mark.usefixtures("soon_given_up")
def test_a_family_of_which_no_model_is_possible_is_refused(tmp_path: Path) -> None:
    search = searcher(tmp_path, limits=Limits(max_params=500))
    with pytest.raises(ConfigError, match="--max-params 500"):
        for number in range(3):
            search.suggest(str(number))


# --- trials that go on after they were stopped ---------------------------------------------------------------


class Resuming:
    """A proposer that takes the first stopped trial up again, twice, before it proposes anything new."""

    def __init__(self, ledger: Ledger, source: SpaceCandidates) -> None:
        self.ledger, self.designs = ledger, iter(source.designs("flow", 3))
        self.seen: list[tuple[str, str]] = []

    def propose(self, family: str) -> Candidate | TrialRecord:
        return next(iter(self.ledger.with_status("stopped")), None) or next(self.designs)

    def tell(self, record: TrialRecord) -> None:
        self.seen.append((record.id, record.status))


def test_a_stopped_trial_that_is_proposed_goes_on_and_is_a_turn_of_its_family(tmp_path: Path) -> None:
    search = searcher(tmp_path, trials=5, families=("flow", "vae"))
    proposer = search.proposer = Resuming(search.ledger, SpaceCandidates(SPACE, DIGITS, TrainConfig()))
    began = search.suggest("0")
    attempts = end_attempt(begin_attempt((), Attempt(started_ms=0, cpus=1, gpus=0)), "stopped")
    search.ledger.update(began["id"], attempts=attempts)
    finish(search, "0", began["id"], "stopped")
    assert search.suggest("1") == began
    record = search.ledger.records[began["id"]]
    assert (record.status, record.reason) == ("running", "")
    assert Ledger(open_storage(tmp_path)).records[record.id] == record
    finish(search, "1", began["id"], "complete")
    assert proposer.seen == [(began["id"], "stopped"), (began["id"], "complete")]
    assert searcher(tmp_path, families=("flow", "vae"))._turns == {"flow": 2, "vae": 0}


# --- further seeds -------------------------------------------------------------------------------------------


def test_further_seeds_come_when_all_else_is_done_and_are_not_repeated(tmp_path: Path) -> None:
    search = searcher(tmp_path, trials=3, seeds=3)
    configs = [search.suggest(str(number)) for number in range(3)]
    for number in range(2):
        finish(search, str(number), configs[number]["id"], val_bpd=2.0 + number)
    assert search.suggest("early") is None  # a front may still move
    finish(search, "2", configs[2]["id"], val_bpd=1.0)

    seen = []
    for number in range(3, 6):
        config = search.suggest(str(number))
        record = search.ledger.records[config["id"]]
        assert record.id == f"{number:04d}-{record.family}"
        first = search.ledger.records[record.replicate_of]
        assert config["model"] == first.config
        assert config["train"] != first.train
        seen.append(record.replicate_of)
        finish(search, str(number), record.id)
    assert sorted(seen) == sorted(config["id"] for config in configs)

    again = searcher(tmp_path, trials=3, seeds=3)
    rest = [again.suggest(f"again-{number}") for number in range(3)]
    assert [config["id"].split("-")[0] for config in rest] == ["0006", "0007", "0008"]
    assert again.suggest("x") == Searcher.FINISHED
    for number, config in enumerate(rest):
        finish(again, f"again-{number}", config["id"], "failed", None)
    assert searcher(tmp_path, trials=3, seeds=3).suggest("y") == Searcher.FINISHED
    assert states(again) == {TrialState.COMPLETE: 3}  # the proposer gets first seeds alone


def test_further_seeds_are_no_trials_of_the_budget_or_of_a_familys_share(tmp_path: Path) -> None:
    search = searcher(tmp_path, trials=3, seeds=2)
    for number in range(6):
        finish(search, str(number), search.suggest(str(number))["id"])
    more = searcher(tmp_path, trials=6, seeds=2)
    assert [more.suggest(f"more-{number}")["id"] for number in range(3)] == ["0006-fvae", "0007-flow", "0008-vae"]


def test_one_seed_is_finished_at_once(tmp_path: Path) -> None:
    search = searcher(tmp_path, trials=3)
    for number in range(3):
        search.suggest(str(number))
    assert search.suggest("x") == Searcher.FINISHED


# --- the space -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 32, 32), (1, 28, 28)])
def test_every_initial_design_is_a_model_and_sizes_rise(family: str, shape: tuple[int, int, int]) -> None:
    space = SearchSpace.for_images(shape, 256)
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
        assert bool(asked & {"encoder_width", "latent_share", "likelihood"}) == (family != "flow")
        assert ("dequantization" in asked) == (family == "flow")
        assert ("sigma_bins" in asked) == (
            model.dequantization == "uniform"
            and family == "flow"
            or family == "fvae"
            and model.likelihood == "gaussian"
            and model.latent_channels is None
        )
    assert possible > 40


def test_images_that_cannot_be_halved_are_refused() -> None:
    with pytest.raises(ConfigError, match="images of 9×8"):
        SearchSpace.for_images((1, 8, 9), 17)
