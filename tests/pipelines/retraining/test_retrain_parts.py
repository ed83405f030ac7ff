"""What a retraining is made of: the comparison, the checks of soundness, the options, and what a search found."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fvae import Model, ModelConfig, TrainConfig, Trainer
from pipelines import retrain as retrain_command
from pipelines.cli import command_line
from pipelines.data.datasets import load_dataset
from pipelines.retraining.champion_rule import compare
from pipelines.retraining.recipe import too_large
from pipelines.retraining.sanity import problems
from pipelines.retraining.search import NothingFound, best_of, options_of, search_name
from pipelines.retraining.settings import RetrainSettings
from pipelines.retraining.training import training_name
from pipelines.training.configs import TrainConfigs

pytestmark = pytest.mark.core

# --- the comparison ---------------------------------------------------------------------------------------------------


def made_up(rng: np.random.Generator, difference: float, images: int, seeds: int) -> tuple[np.ndarray, np.ndarray]:
    """Bits/dim of two models: images differ widely, models a little on each image, noise is fresh for each seed."""
    of_image = rng.normal(3, 1, images)
    apart = rng.normal(difference, 0.05, images)
    noise = rng.normal(0, 0.08, (2, seeds, images))
    return of_image + apart + noise[0], of_image + noise[1]


def test_the_interval_holds_the_true_difference_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    found = [compare(*made_up(rng, -0.01, 60, 3)) for _ in range(2000)]
    inside = np.mean([each.low <= -0.01 <= each.high for each in found])
    assert 0.935 <= inside <= 0.965  # 0.95 ± 3 standard errors of 2,000 draws
    # Equal models are taken for better as seldom as one end of the interval is passed.
    equal = [compare(*made_up(rng, 0.0, 60, 3)) for _ in range(2000)]
    assert 0.0145 <= np.mean([each.high < 0 for each in equal]) <= 0.0355


def test_pairs_see_what_the_means_alone_do_not() -> None:
    challenger, champion = made_up(np.random.default_rng(1), -0.03, 200, 3)
    found = compare(challenger, champion)
    assert found.high < 0
    assert champion.mean(axis=0).std() / np.sqrt(200) > abs(found.difference)  # one mean's own error
    assert found.difference == pytest.approx(challenger.mean() - champion.mean())
    assert (found.challenger, found.champion, found.images) == (challenger.mean(), champion.mean(), 200)
    of_seed = (challenger - champion).mean(axis=1)
    assert found.standard_error_noise == pytest.approx(of_seed.std(ddof=1) / np.sqrt(3))


def test_better_is_what_the_whole_interval_shows() -> None:
    few, many = (compare(*made_up(np.random.default_rng(3), -0.01, images, 3)) for images in (40, 4000))
    assert few.difference < 0 < few.high and not few.better_by(0.0)  # fewer bits/dim, perhaps by chance
    assert many.high < 0 and many.better_by(0.0) and many.better_by(-many.high - 1e-9)
    assert not many.better_by(-many.high) and not many.better_by(-many.difference)


def test_what_cannot_be_compared() -> None:
    one = np.ones((2, 1))
    found = compare(one, one + 1)
    assert (found.low, found.high) == (-np.inf, np.inf)
    assert compare(np.ones((1, 3)), np.ones((1, 3))).standard_error_noise is None
    with pytest.raises(ValueError, match="not the same images"):
        compare(np.ones((1, 3)), np.ones((1, 4)))


# --- soundness --------------------------------------------------------------------------------------------------------

SHAPE: dict[str, Any] = {"channels": 1, "height": 8, "width": 8, "bins": 17}
SMALL: dict[str, dict[str, Any]] = {
    "vae": {"encoder_width": 8},
    "flow": {"flow_levels": 2, "flow_depth": 2, "coupling_width": 8},
    "fvae": {"flow_levels": 1, "flow_depth": 2, "coupling_width": 8, "encoder_width": 8},
}


@pytest.fixture(scope="module")
def trained() -> dict[str, Model]:
    """One model of each family, hardly trained."""
    digits, models = load_dataset("digits"), {}
    for family, sizes in SMALL.items():
        config = ModelConfig(family=family, **SHAPE, **sizes)  # type: ignore[arg-type]
        trainer = Trainer(config, TrainConfig(epochs=1, warmup_steps=5), digits.images("train"), digits.images("val"))
        trainer.train_epoch()
        models[family] = trainer.best_model()
    return models


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.from_numpy(load_dataset("digits").images("test")[:64])


def copy_of(model: Model) -> Model:
    from fvae import build

    made = build(model.config)
    made.load_state_dict(model.state_dict())
    return made.eval()


@pytest.mark.parametrize("family", list(SMALL))
def test_a_model_after_one_epoch_is_sound(trained: dict[str, Model], images: torch.Tensor, family: str) -> None:
    assert problems(trained[family], images, 0) == []
    assert problems(trained[family], images[:1], 1) == []


def broken(model: Model, how: str) -> Model:
    """What went wrong in training, on disk, or in somebody's code."""
    model = copy_of(model)
    with torch.no_grad():
        if how == "nan":
            next(model.flow.parameters()).fill_(float("nan"))
        if how == "constant":
            assert model.decoder is not None
            model.decoder.register_forward_hook(lambda *call: torch.zeros_like(call[2]))
        if how == "saturated":
            assert model.decoder is not None
            model.decoder.register_forward_hook(lambda *call: 40 * call[2])
        if how == "one way":
            inverse = model.flow.inverse
            model.flow.inverse = lambda z: inverse(z) + 0.01  # type: ignore[method-assign]
        if how == "unsaved":
            model.flow.register_forward_hook(lambda *call: (call[2][0], call[2][1] + 1))
        if how == "below 0":
            model.flow.register_forward_hook(lambda *call: (call[2][0], call[2][1] + 1000))
    return model


@pytest.mark.parametrize(
    ("how", "family", "said"),
    [
        ("nan", "flow", "samples are not finite"),
        ("nan", "fvae", "samples are not finite"),
        ("constant", "fvae", "samples are all alike: their pixels vary by 0 levels"),
        ("saturated", "fvae", "samples are saturated"),
        ("one way", "flow", "the flow does not come back: |F⁻¹(F(w)) − w| is up to 0.01"),
        ("unsaved", "fvae", "saved and loaded it gives other bits/dim"),
    ],
)
def test_a_broken_model_is_named(
    trained: dict[str, Model], images: torch.Tensor, how: str, family: str, said: str
) -> None:
    found = problems(broken(trained[family], how), images, 0)
    assert found and said in found[0]


def test_bits_that_no_model_can_reach(
    trained: dict[str, Model], images: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = broken(trained["flow"], "below 0")
    monkeypatch.setattr("pipelines.retraining.sanity.load", lambda path: wrong)
    (line,) = problems(wrong, images, 0)
    assert "below 0, which no model of images can reach" in line


# --- what is trained --------------------------------------------------------------------------------------------------


def trial(number: int, val: float | None, params: int = 1000, **changes: Any) -> dict[str, Any]:
    config = ModelConfig(family="flow", **SHAPE, flow_depth=number + 1)
    values = {"id": f"{number:04d}-flow", "status": "complete", "replicate_of": None, "val_bpd": val, "params": params}
    values |= {"flops_per_image": 10 * params, "config": config.to_dict(), "train": TrainConfig(seed=number).to_dict()}
    return values | changes


def settings(**values: Any) -> RetrainSettings:
    return RetrainSettings(**({"model": "fvae-digits", "dataset": "digits"} | values))


def test_the_best_of_a_search_is_whole_and_within_the_limits() -> None:
    found = [
        trial(0, 2.0, status="stopped"),
        trial(1, 2.1, 5000),
        trial(2, 2.2, replicate_of="0001-flow"),
        trial(3, 2.5),
        trial(4, 2.4),
        trial(5, None, status="failed"),
        trial(6, 2.6),
    ]
    chosen = [
        best_of({"trials": found}, settings(**limits), "s").configs.model.flow_depth - 1
        for limits in ({}, {"max_params": 4999}, {"max_flops": 49999.0}, {"max_params": 5000})
    ]
    assert chosen == [1, 4, 4, 1]
    best = best_of({"trials": found}, settings(max_params=2000), "s")
    assert best.configs.train.seed == 4 and best.configs.parent_run_id is None
    assert best.what == "trial 0004-flow of the search s, the best of 3 on validation images"
    with pytest.raises(NothingFound, match="the search s has trained no model within the limits"):
        best_of({"trials": found}, settings(max_params=10), "s")


def test_a_search_is_told_the_limits_and_the_champions_training() -> None:
    start = TrainConfigs(ModelConfig(family="flow", **SHAPE), TrainConfig(epochs=7, batch_size=32, seed=3), None)
    told = settings(search="2h", max_params=99, max_flops=1e6, search_options="--families flow --concurrent 1")
    options = options_of(told, "again", start)
    pairs = dict(zip(options[::2], options[1::2], strict=True))
    assert pairs == {
        "--dataset": "digits",
        "--storage": "runs",
        "--name": "again",
        "--streaming": "auto",
        "--time-budget": "2h",
        "--epochs": "7",
        "--batch-size": "32",
        "--precision": "float32",
        "--seed": "3",
        "--max-params": "99",
        "--max-flops": "1000000.0",
        "--cpus-per-trial": "1",
        "--families": "flow",
        "--concurrent": "1",
    }
    from tune.settings import SearchSettings  # it takes them all

    assert {f"--{field.name.replace('_', '-')}" for field in dataclasses.fields(SearchSettings)} >= set(pairs)
    assert "--epochs" not in options_of(told, "again", None)


def test_names_are_those_of_the_images_and_the_configuration() -> None:
    digits = load_dataset("digits")
    configs = TrainConfigs(ModelConfig(family="flow", **SHAPE), TrainConfig(), None)
    name = training_name(digits, configs)
    assert name == training_name(load_dataset("digits"), configs)
    assert name.startswith(f"retrain-digits-flow-{digits.content_hash()[:8]}-")
    other = configs._replace(train=TrainConfig(seed=1))
    fewer = dataclasses.replace(digits, train=digits.train[:-1])
    assert len({name, training_name(digits, other), training_name(fewer, configs)}) == 3
    assert search_name(digits) != search_name(fewer)


def test_limits_of_size() -> None:
    model = ModelConfig(family="flow", **SHAPE)
    assert too_large(settings(), model) == []
    (params,) = too_large(settings(max_params=10), model)
    assert "parameters are more than --max-params 10" in params
    assert len(too_large(settings(max_params=10, max_flops=10.0), model)) == 2


# --- the command line -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ((), "--model"),
        (("--model", "digits", "--dataset", "digits"), "--model='digits': must be fvae-NAME"),
        (("--model", "fvae-", "--dataset", "digits"), "--model='fvae-': must be fvae-NAME"),
        (("--model", "fvae-a/b", "--dataset", "digits"), "--model='fvae-a/b': must be fvae-NAME"),
        (("--model", "fvae-digits"), "--dataset: give 'digits', 'photos', a path or an s3:// URI"),
        (("--model", "fvae-digits", "--dataset", "/nowhere"), "/nowhere"),
        (("--model", "fvae-mnist", "--dataset", "digits"), "digits is named 'digits', its model fvae-digits"),
        (("--model", "fvae-digits", "--dataset", "digits", "--reason", "x"), "--reason: goes with --rollback"),
        (("--model", "fvae-digits", "--rollback", "--search", "2h"), "--rollback with --search"),
        (("--model", "fvae-digits", "--rollback"), "--rollback: there are no runs in"),
        (("--search", "2x"), "--search='2x': give a time such as 2h"),
        (("--search", "2h", "--config", "a.toml"), "--config=a.toml and --search=2h: give one of the two"),
        (("--search-options=--trials 3",), "--search-options: goes with --search"),
        (("--search", "1h", "--search-options='"), "--search-options"),
        (("--wait", "soon"), "--wait='soon': give a time"),
        (("--least-gain", "-1"), "--least-gain=-1.0: must be a finite number of at least 0"),
        (("--least-gain", "nan"), "--least-gain=nan: must be a finite number of at least 0"),
        (("--k", "0"), "--k=0: must be an integer of at least 1"),
        (("--k", "1", "1"), "--k: each at most once"),
        (("--noise-seeds", "0"), "--noise-seeds=0: must be an integer of at least 1"),
        (("--max-params", "0"), "--max-params=0: must be an integer of at least 1"),
        (("--max-flops", "0"), "--max-flops=0.0: must be a finite number above 0"),
        (("--on-failure", ""), "--on-failure: empty"),
        (("--on-failure", "no-such-program"), "no program 'no-such-program' here"),
        (("--storage", "ftp://x"), "--storage: ftp://x: cannot use ftp://"),
        (("--workers", "0"), "--workers=0: must be an integer of at least 1"),
        (("--elastic", "4:2"), "--elastic=4:2"),
        (("--config", "/nowhere.toml"), "--config=/nowhere.toml: cannot be read (No such file or directory)"),
    ],
)
def test_a_users_mistake_gets_one_line(
    options: tuple[str, ...],
    line: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    if options and "--model" not in options:
        options = ("--model", "fvae-digits", "--dataset", "digits", *options)
    monkeypatch.setattr(sys, "argv", ["retrain", *options])
    with pytest.raises(SystemExit) as exit_:
        command_line.run(retrain_command.main, RetrainSettings)
    said = [each for each in capsys.readouterr().err.splitlines() if each]
    assert exit_.value.code == 2 and len(said) == 1, said
    assert said[0].startswith("error: ") and line in said[0]
