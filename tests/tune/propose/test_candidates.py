"""Candidates: drawn uniformly, all of them possible, and known before they are trained."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fvae import ConfigError, build
from fvae.memory import training_memory
from fvae.train_config import TrainConfig
from tests.tune.small_space import DIGITS, FAMILIES, SOURCE, SPACE, trial
from tune.propose.candidates import Candidate, SpaceCandidates, key
from tune.records.ledger import TrialRecord
from tune.space import SearchSpace, initial_designs, suggest, suggestion_of

pytestmark = pytest.mark.core

PHOTOS = SpaceCandidates(
    SearchSpace.for_images((3, 32, 32), 256), {"channels": 3, "height": 32, "width": 32, "bins": 256}, TrainConfig()
)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_drawn_is_possible_and_of_its_family(family: str) -> None:
    drawn = SOURCE.draw(family, 60, rng())
    assert len(drawn) == 60
    for candidate in drawn[:10]:
        assert candidate.family == candidate.model.family == family
        assert candidate.params == build(candidate.model).parameter_count()
        assert set(candidate.train) == set(TrainConfig().to_dict())
        assert candidate.train["learning_rate"] == candidate.suggestion["learning_rate"]


def test_a_draw_is_uniform_on_each_parameters_own_scale() -> None:
    drawn = SOURCE.draw("fvae", 3000, rng())
    depths = np.bincount([candidate.suggestion["flow_depth"] for candidate in drawn])[1:]
    assert len(depths) == SPACE.flow_depth[1]
    assert depths.min() > 0.8 * depths.mean()  # the ends are as likely as the middle
    low, high = map(math.log, SPACE.learning_rate)
    places = [(math.log(candidate.suggestion["learning_rate"]) - low) / (high - low) for candidate in drawn]
    assert np.histogram(places, bins=5, range=(0, 1))[0].min() > 500  # of 600
    mixings = {candidate.suggestion["mixing"] for candidate in drawn}
    assert mixings == set(SPACE.mixing)


def test_the_same_generator_draws_the_same() -> None:
    assert SOURCE.draw("vae", 5, rng(1)) == SOURCE.draw("vae", 5, rng(1)) != SOURCE.draw("vae", 5, rng(2))


def test_an_impossible_space_gives_nothing() -> None:
    impossible = dataclasses.replace(SPACE, flow_levels=(7, 8))
    assert SpaceCandidates(impossible, DIGITS, TrainConfig()).draw("flow", 3, rng()) == []


@pytest.mark.parametrize("source", [SOURCE, PHOTOS], ids=["digits", "photos"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_point_gives_the_candidate_again(source: SpaceCandidates, family: str) -> None:
    for candidate in source.draw(family, 20, rng()):
        assert source.at(family, candidate.suggestion) == candidate
        assert source.near(family, candidate.suggestion) == candidate


@pytest.mark.parametrize(
    ("change", "message"),
    [({"learning_rate": 1.0}, "learning_rate"), ({"mixing": "stirring"}, "stirring"), ({"flow_depth": 99}, "99")],
)
def test_a_point_outside_the_space_is_refused_in_one_line(change: dict[str, object], message: str) -> None:
    candidate = SOURCE.draw("flow", 1, rng())[0]
    with pytest.raises(ConfigError, match=message) as raised:
        SOURCE.at("flow", candidate.suggestion | change)
    assert "\n" not in str(raised.value)


def test_a_point_that_lacks_a_parameter_is_refused() -> None:
    for find in (SOURCE.at, SOURCE.near):
        with pytest.raises(ConfigError, match="flow_levels"):
            find("flow", {"learning_rate": 5e-3})


def test_the_nearest_candidate_of_another_space_keeps_what_it_can() -> None:
    theirs = PHOTOS.designs("vae", 8)[-1]
    near = SOURCE.near("vae", theirs.suggestion | {"latent_share": 0.3})
    assert near.suggestion["encoder_width"] == SPACE.encoder_width[1] < theirs.suggestion["encoder_width"]
    assert near.suggestion["latent_share"] == 0.25
    assert near.suggestion["sigma1_latent"] == theirs.suggestion["sigma1_latent"]
    assert near.model.image_shape == (1, 8, 8)
    assert SOURCE.at("vae", near.suggestion) == near
    with pytest.raises(ConfigError, match="coupling='quadratic'"):
        SOURCE.near("flow", SOURCE.designs("flow", 1)[0].suggestion | {"coupling": "quadratic"})


def test_the_key_tells_trainings_apart_and_is_the_records() -> None:
    one, other = SOURCE.draw("fvae", 2, rng())
    assert one.key != other.key
    assert one.key == dataclasses.replace(one, suggestion={}).key
    assert one.key != dataclasses.replace(one, train=one.train | {"seed": 1}).key
    earlier = {name: value for name, value in one.model.to_dict().items() if name not in ("dequantization",)}
    assert key(earlier, one.train) == one.key  # as an earlier version wrote it
    record = TrialRecord.from_dict(trial(0, one).to_dict())
    assert key(record.config, record.train) == one.key == Candidate.of(record).key


def test_its_memory_is_that_of_its_training() -> None:
    candidate = SOURCE.designs("flow", 1)[0]
    assert candidate.memory_bytes == training_memory(candidate.model, 64).total
    half = dataclasses.replace(candidate, train=candidate.train | {"batch_size": 32})
    assert half.memory_bytes < candidate.memory_bytes


@pytest.mark.parametrize("family", FAMILIES)
def test_designs_are_the_spaces_own(family: str) -> None:
    designs = SOURCE.designs(family, 4)
    assert [design.suggestion for design in designs] == initial_designs(family, SPACE, 4)


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 32, 32), (1, 28, 28), (3, 6, 10)])
@given(seed=st.integers(0, 2**31), family=st.sampled_from(FAMILIES))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_a_models_point_gives_the_model_again(shape: tuple[int, int, int], seed: int, family: str) -> None:
    space = SearchSpace.for_images(shape, 256)
    images = dict(zip(("channels", "height", "width"), shape, strict=True)) | {"bins": 256}
    (candidate,) = SpaceCandidates(space, images, TrainConfig()).draw(family, 1, rng(seed))
    point = suggestion_of(candidate.model, candidate.train, space)
    model, searched = suggest(optuna.trial.FixedTrial(point), family, space, images)
    assert model == candidate.model
    assert searched == {name: candidate.train[name] for name in searched}
    assert set(searched) == {"learning_rate", "kl_warmup"} - ({"kl_warmup"} if family != "vae" else set())
    assert set(point) == set(candidate.suggestion)
    same = {name for name in point if point[name] == pytest.approx(candidate.suggestion[name], rel=1e-15)}
    assert set(point) - same <= {"flow_levels", "latent_share", "split_mixing"}  # where two points give one model
