"""One training on one, two and three workers: the same figures, the same weights, every image once."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from fvae import ConfigError, Trainer, evaluate
from fvae.train import EpochMetrics
from fvae.workers import Workers
from tests.fvae.distributed_cases import CASES, images, largest_difference, model_config, train_config
from tests.fvae.worker_process import main

pytestmark = pytest.mark.core

FORKS = multiprocessing.get_context("forkserver")
"""Processes that are forked from one that has imported torch."""
FORKS.set_forkserver_preload(["tests.fvae.worker_process"])


def alone(name: str, **execution: Any) -> Trainer:
    case = CASES[name]
    trainer = Trainer(model_config(case), train_config(case), *images(case), **execution)
    while not trainer.finished:
        trainer.train_epoch()
    return trainer


@pytest.fixture(scope="module")
def single() -> dict[str, Trainer]:
    """Each case on one worker, with a worker's whole share at once."""
    return {name: alone(name) for name in CASES}


@pytest.fixture(scope="module", params=[2, 3])
def seen(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[dict[str, Any]]]:
    """What each of several workers saw."""
    folder = tmp_path_factory.mktemp("workers")
    case = CASES["fvae"]
    half = Trainer(model_config(case), train_config(case), *images(case))
    for _ in range(case.checkpoint_step):
        half.train_step()
    half.save(folder / "alone.safetensors")
    processes = [FORKS.Process(target=main, args=(rank, request.param, folder)) for rank in range(request.param)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(300)
    assert [process.exitcode for process in processes] == [0] * request.param
    results = [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(request.param)]
    for result in results:
        result["folder"] = folder
    yield results


def figures(history: list[EpochMetrics]) -> list[float]:
    return [
        getattr(each, name) for each in history for name in ("train_bpd", "val_bpd", "grad_norm", "sigma1", "sigma2")
    ]


@pytest.mark.parametrize("name", CASES)
def test_figures_after_each_epoch_equal_one_workers(
    name: str, seen: list[dict[str, Any]], single: dict[str, Trainer]
) -> None:
    tolerance = 2e-2 if CASES[name].precision == "bf16" else 1e-4
    for worker in seen:
        history = worker[name]["history"]
        assert [each.images for each in history] == [50, 100]
        assert figures(history) == pytest.approx(figures(single[name].history), abs=tolerance)


@pytest.mark.parametrize("name", CASES)
def test_all_workers_have_the_same_weights_to_the_bit(name: str, seen: list[dict[str, Any]]) -> None:
    for which in ("initial", "final", "ema"):
        for worker in seen[1:]:
            assert largest_difference(worker[name][which], seen[0][name][which]) == 0


@pytest.mark.parametrize("name", CASES)
def test_actnorm_is_initialised_from_the_whole_first_batch(name: str, seen: list[dict[str, Any]]) -> None:
    case = CASES[name]
    one = Trainer(model_config(case), train_config(case), *images(case))
    one.train_step()
    flags = [tensor for key, tensor in seen[0][name]["initial"].items() if key.endswith("initialized")]
    assert all(flags) and len(flags) == (0 if case.family == "vae" else 4)
    assert largest_difference(seen[0][name]["initial"], one.ema.state_dict()) < 1e-5


def test_every_training_image_goes_to_one_worker(seen: list[dict[str, Any]]) -> None:
    for name, case in CASES.items():
        assert sum(worker[name]["images"] for worker in seen) == case.images * case.epochs


def test_a_checkpoint_of_one_worker_goes_on_with_several_and_back(
    seen: list[dict[str, Any]], single: dict[str, Trainer]
) -> None:
    for worker in seen:
        assert figures(worker["resumed"]) == pytest.approx(figures(single["fvae"].history), abs=1e-4)
    case = CASES["fvae"]
    back = Trainer(model_config(case), train_config(case), *images(case))
    back.restore(seen[0]["folder"] / "fvae.safetensors")
    assert back.step == case.checkpoint_step
    while not back.finished:
        back.train_epoch()
    assert figures(back.history) == pytest.approx(figures(single["fvae"].history), abs=1e-4)


def test_an_evaluation_measures_every_image_once_and_as_one_worker_does_to_the_bit(seen: list[dict[str, Any]]) -> None:
    case = CASES["fvae"]
    val = images(case)[1]
    assert sum(sum(worker["measured"]) for worker in seen) == 2 * len(val)
    assert all(worker["measured"] for worker in seen)
    model = Trainer(model_config(case), train_config(case), *images(case)).ema
    model.load_state_dict(seen[0]["weights"])
    for k in (1, 5):
        expected = evaluate(model, val, k=k, seed=7)
        assert len(set(expected.tolist())) == len(val)
        for worker in seen:
            assert torch.equal(worker["bits"][k], expected)


def test_a_loss_that_is_not_finite_on_one_worker_ends_all(seen: list[dict[str, Any]]) -> None:
    assert all("step 1 (epoch 1)" in worker["non-finite"] for worker in seen)


@pytest.mark.parametrize("size", [1, 5, 12])
def test_micro_batches_change_nothing_but_rounding(size: int, single: dict[str, Trainer]) -> None:
    one = alone("fvae", micro_batch_size=size)
    assert figures(one.history) == pytest.approx(figures(single["fvae"].history), abs=1e-4)


def test_recomputed_activations_change_not_a_bit(single: dict[str, Trainer]) -> None:
    for name in ("fvae", "flow", "vae"):
        assert figures(alone(name, checkpoint_activations=True).history) == figures(single[name].history)


def test_a_rank_outside_the_workers_is_refused() -> None:
    with pytest.raises(ConfigError, match="rank=2: must be from 0 to count − 1 = 1"):
        Workers(rank=2, count=2)
