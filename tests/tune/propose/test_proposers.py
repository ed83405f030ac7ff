"""Optuna's samplers in the proposer: what they learn from, what is never proposed, and that a kill changes nothing."""

from __future__ import annotations

import dataclasses
from collections import Counter

import numpy as np
import pytest
import torch
from optuna.trial import TrialState

from fvae import ConfigError
from fvae.train_config import TrainConfig
from tests.tune.small_space import DIGITS, FAMILIES, ONE_POINT, SOURCE, SPACE, made_up_bpd, proposer, trial
from tune.propose import limits
from tune.propose.candidates import SpaceCandidates
from tune.propose.designs import MOST, first_models
from tune.propose.limits import Limits, Untried
from tune.propose.proposers import STARTUP, OptunaProposer
from tune.records.ledger import TrialRecord
from tune.settings import Sampler

pytestmark = pytest.mark.core

SAMPLERS: tuple[Sampler, ...] = ("tpe", "nsga2", "gp", "random")
SMALL = Limits(max_params=6000)


@pytest.fixture
def soon_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """A search for an untried model gives up after 300 draws instead of 10,000."""
    monkeypatch.setattr(limits, "MOST_DRAWN", 300)


def states(proposer: OptunaProposer) -> Counter[TrialState]:
    return Counter(trial.state for study in proposer._studies.values() for trial in study.trials)


def search(one: OptunaProposer, count: int, family: str = "flow", first_number: int = 0) -> list[TrialRecord]:
    """``count`` trials one after another; every fifth is stopped, every seventh fails."""
    records = []
    for number in range(first_number, first_number + count):
        status = "stopped" if number % 5 == 4 else "failed" if number % 7 == 6 else "complete"
        records.append(trial(number, one.propose(family), status))
        one.tell(records[-1])
    return records


def test_only_complete_trials_are_told_with_values() -> None:
    one = proposer()
    records = []
    for number, status in enumerate(("complete", "stopped", "failed")):
        records.append(trial(number, one.propose("fvae"), status))
        one.tell(records[-1])
    trials = one._studies["fvae"].trials
    assert [each.state for each in trials] == [TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL]
    assert [each.values for each in trials] == [[records[0].params, records[0].val_bpd], None, None]
    assert [each.params for each in trials] == [record.suggestion for record in records]


@pytest.mark.parametrize("sampler", ["tpe", "nsga2", "random"])
def test_a_search_that_was_killed_proposes_what_it_would_have(sampler: Sampler) -> None:
    whole = proposer(sampler, families=("flow",), trials=6)
    records = search(whole, 40)
    again = proposer(sampler, families=("flow",), trials=6)
    for record in records[:33]:
        again.tell(record)
    again.tell(dataclasses.replace(records[33], status="running", val_bpd=None))
    again.tell(records[33])
    assert [record.suggestion for record in search(again, 6, first_number=34)] == [
        record.suggestion for record in records[34:]
    ]
    assert states(again)[TrialState.RUNNING] == states(again)[TrialState.WAITING] == 0


def test_another_seed_proposes_others() -> None:
    proposals = [proposer("random", trials=1, seed=seed) for seed in (0, 1)]
    for one in proposals:
        search(one, 1)  # the initial design
    assert proposals[0].propose("flow").key != proposals[1].propose("flow").key


@pytest.mark.parametrize("sampler", ["tpe", "nsga2"])
def test_the_samplers_learn_both_objectives(sampler: Sampler) -> None:
    """What they propose after a while is nearer to the front than a uniform draw."""
    one = proposer(sampler, families=("flow",), trials=1)
    records = search(one, 120)
    distances = [abs(np.log(record.train["learning_rate"] / 5e-3)) for record in records]
    assert np.mean(distances[60:]) < 0.8 * np.mean(distances[:20])


def test_the_gp_sampler_takes_two_objectives_choices_and_running_trials() -> None:
    one = proposer("gp", families=("flow",), trials=1)
    threads = torch.get_num_threads()
    *ended, running = SOURCE.draw("flow", STARTUP + 1, np.random.default_rng(0))
    for number, candidate in enumerate(ended):
        one.tell(trial(number, candidate))
    one.tell(trial(STARTUP, running, "running"))
    proposed = one.propose("flow")
    assert proposed == SOURCE.at("flow", proposed.suggestion)
    assert proposed.key not in {candidate.key for candidate in (*ended, running)}
    asked = one._studies["flow"].trials[-1]
    assert "gp:relative_params:0" in asked.system_attrs  # not a uniform draw
    assert states(one) == {TrialState.COMPLETE: STARTUP, TrialState.RUNNING: 2}
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize("sampler", ["tpe", "nsga2", "random"])
def test_what_is_beyond_the_limits_or_tried_is_never_proposed(sampler: Sampler) -> None:
    one = proposer(sampler, limits=SMALL, families=("flow",), trials=12)
    records = search(one, 3 * STARTUP)
    assert max(record.params for record in records) <= SMALL.max_params
    assert len({(str(record.config), str(record.train)) for record in records}) == len(records)
    ended = states(one)
    assert ended[TrialState.COMPLETE] == sum(record.status == "complete" for record in records)


@pytest.mark.usefixtures("soon_given_up")
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_nothing_left_is_said_in_one_line(sampler: Sampler) -> None:
    one_flow = SpaceCandidates(ONE_POINT, DIGITS, TrainConfig())
    one = OptunaProposer(sampler, source=one_flow, limits=Limits(), first={"flow": []}, seed=0)
    assert one.propose("flow").params > 0
    with pytest.raises(ConfigError, match="'flow': no untried model is found; widen tune/space.py") as raised:
        one.propose("flow")
    assert "\n" not in str(raised.value)


@pytest.mark.usefixtures("soon_given_up")
def test_limits_that_no_model_keeps_are_said_in_one_line() -> None:
    with pytest.raises(ConfigError, match="'vae': no untried model within --max-params 10 is found; raise the limit"):
        proposer(limits=Limits(max_params=10)).propose("vae")


def test_memory_that_no_model_keeps_to_is_said_before_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MOST_COUNTED", 2)
    least = SOURCE.designs("flow", 9)[0]
    one = proposer("random", limits=Limits(max_params=least.params, max_memory=200_000), families=("flow",), trials=1)
    with pytest.raises(ConfigError, match="--max-memory 200,000"):
        one.propose("flow")


def test_running_trials_of_an_earlier_session_are_no_ghosts() -> None:
    one = proposer()
    running = trial(0, SOURCE.designs("vae", 3)[1], "running")
    one.tell(running)
    assert states(one) == {TrialState.RUNNING: 1}
    one.tell(dataclasses.replace(running, status="complete", val_bpd=2.0))
    assert states(one) == {TrialState.COMPLETE: 1}


def test_records_of_another_space_or_family_are_no_trouble_and_not_told() -> None:
    narrower = SpaceCandidates(dataclasses.replace(SPACE, learning_rate=(1e-4, 2e-4)), DIGITS, TrainConfig())
    one = OptunaProposer("tpe", source=narrower, limits=Limits(), first={"flow": narrower.designs("flow", 2)}, seed=0)
    one.tell(trial(0, SOURCE.designs("flow", 1)[0]))
    one.tell(trial(1, SOURCE.designs("vae", 1)[0]))
    assert states(one) == {}
    assert one.propose("flow") == narrower.designs("flow", 2)[1]  # the first was that trial's turn


def test_an_extension_goes_on_with_the_sampler_not_with_the_designs_again() -> None:
    records = search(proposer(families=("flow",), trials=3), 3)
    more = proposer(families=("flow",), trials=4)
    for record in records:
        more.tell(record)
    designs = {design.key for design in SOURCE.designs("flow", 2)}
    assert more.propose("flow").key not in designs


# --- what a search begins with ---------------------------------------------------------------------------


def test_a_family_begins_with_two_thirds_of_its_share() -> None:
    first = first_models(SOURCE, Limits(), FAMILIES, 10)
    assert {family: len(designs) for family, designs in first.items()} == {"fvae": 2, "flow": 2, "vae": 2}
    assert first["fvae"] == SOURCE.designs("fvae", 2)
    one = proposer(trials=10)
    assert [one.propose("vae") for _ in range(2)] == first["vae"]
    assert len(first_models(SOURCE, Limits(), ("flow",), None)["flow"]) == MOST


def test_where_only_small_models_are_allowed_there_are_more_of_those() -> None:
    first = first_models(SOURCE, SMALL, ("flow",), 9)["flow"]
    assert len([design for design in SOURCE.designs("flow", 6) if SMALL.allows(design)]) < 6
    assert len({design.key for design in first}) == 6
    assert max(design.params for design in first) <= SMALL.max_params


def test_earlier_fronts_take_the_designs_place_in_order_both_ends_kept() -> None:
    front = sorted(SOURCE.draw("flow", 30, np.random.default_rng(0)), key=lambda each: each.params)
    first = first_models(SOURCE, Limits(), ("flow", "vae"), 12, {"flow": front})
    assert len(first["flow"]) == 4
    assert (first["flow"][0], first["flow"][-1]) == (front[0], front[-1])
    assert [each.params for each in first["flow"]] == sorted(each.params for each in first["flow"])
    assert first["vae"] == SOURCE.designs("vae", 4)
    assert first_models(SOURCE, Limits(), ("flow",), None, {"flow": front})["flow"] == front


def test_earlier_trials_are_observations_and_run_again_only_from_the_front() -> None:
    drawn = SOURCE.draw("flow", 40, np.random.default_rng(3))
    best = min(drawn, key=made_up_bpd)
    earlier = [trial(number, candidate, id=f"{number:04d}-flow@a") for number, candidate in enumerate(drawn)]
    one = OptunaProposer(
        "tpe", source=SOURCE, limits=Limits(), first={"flow": [best, drawn[0]]}, earlier=earlier, seed=0
    )
    assert states(one) == {TrialState.COMPLETE: 40}
    assert [one.propose("flow") for _ in range(2)] == [best, drawn[0]]
    records = search(one, 10, first_number=2)
    assert not {str(record.config) + str(record.train) for record in records} & {
        str(candidate.model.to_dict()) + str(candidate.train) for candidate in drawn
    }


# --- drawing what is untried -----------------------------------------------------------------------------


def test_a_draw_holds_no_candidate_twice_and_repeats_itself() -> None:
    small = Untried(SOURCE, SMALL, 0)
    drawn = small.draw("flow", 50)
    assert len({candidate.key for candidate in drawn}) == 50
    assert all(candidate in small for candidate in drawn)
    assert small.draw("flow", 50) == drawn
    small.take(drawn[0].key)
    assert drawn[0] not in small
    assert small.draw("flow", 50) != drawn


@pytest.mark.usefixtures("soon_given_up")
def test_fewer_are_drawn_where_there_are_no_more() -> None:
    one_flow = Untried(SpaceCandidates(ONE_POINT, DIGITS, TrainConfig()), Limits(), 0)
    assert len(one_flow.draw("flow", 5)) == 1
