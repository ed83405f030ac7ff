"""An image's score depends on the image, the seed and the number of samples alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fvae import ModelConfig, NonFiniteError, build, evaluate
from fvae.config import FAMILIES
from fvae.model import Model
from fvae.scores import score

pytestmark = pytest.mark.core


def model_of(family: str, likelihood: str = "gaussian") -> Model:
    torch.manual_seed(0)
    likelihood = "gaussian" if family == "flow" else likelihood
    model = build(ModelConfig(family=family, channels=1, height=8, width=8, bins=17, likelihood=likelihood))
    model.bits_per_dim(IMAGES)  # initialises ActNorm
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.03 * torch.randn_like(parameter))
    return model


IMAGES = torch.randint(0, 17, (40, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
MODELS = {(family, kind): model_of(family, kind) for family in FAMILIES for kind in ("gaussian", "discretized")}


@pytest.mark.parametrize("kind", MODELS)
@settings(deadline=None, max_examples=15)
@given(
    chosen=st.lists(st.integers(0, 39), min_size=1, max_size=30),
    k=st.sampled_from((1, 2, 7, 9, 64, 65)),
    seed=st.integers(0, 3),
)
def test_one_image_one_figure(kind: tuple[str, str], chosen: list[int], k: int, seed: int) -> None:
    model = MODELS[kind]
    together = score(model, IMAGES[chosen], k=k, seed=seed)
    alone = score(model, IMAGES[chosen[-1:]], k=k, seed=seed)
    assert together[-1] == alone[0]
    assert together.dtype == torch.float64 and together.shape == (len(chosen),)


@pytest.mark.parametrize("kind", MODELS)
def test_it_is_the_bound_that_an_evaluation_measures(kind: tuple[str, str]) -> None:
    model = MODELS[kind]
    for k in (1, 16):
        mine = torch.stack([score(model, IMAGES, k=k, seed=seed) for seed in range(12)])
        theirs = torch.stack([evaluate(model, IMAGES, k=k, seed=seed) for seed in range(12)])
        error = (mine.var(0) / 12 + theirs.var(0) / 12).mean().div(len(IMAGES)).sqrt()
        assert (mine.mean() - theirs.mean()).abs() < 5 * error


@pytest.mark.parametrize(("k", "noises", "passes"), [(1, 40, 2), (16, 40, 20), (64, 40, 40), (100, 80, 63)])
def test_many_images_share_a_pass(k: int, noises: int, passes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = {"noise": 0, "log_weight": 0}
    model = MODELS["fvae", "gaussian"]

    def counted(name: str, method: Any) -> Any:
        def call(*arguments: Any) -> Any:
            calls[name] += 1
            return method(*arguments)

        return call

    for name in calls:
        monkeypatch.setattr(model, name, counted(name, getattr(model, name)))
    score(model, IMAGES, k=k)
    assert calls == {"noise": noises, "log_weight": passes}


def test_seeds_and_images_have_noise_of_their_own() -> None:
    model = MODELS["flow", "gaussian"]
    first = score(model, IMAGES, seed=0)
    assert (first != score(model, IMAGES, seed=1)).all()
    almost = IMAGES[:1].clone()
    almost[0, 0, 0, 0] ^= 1
    assert score(model, almost) != first[0]
    assert model.training  # as it was


def test_a_figure_that_is_not_finite_is_an_error() -> None:
    model = model_of("vae")
    with torch.no_grad():
        next(model.parameters()).fill_(float("nan"))
    with pytest.raises(NonFiniteError, match="of 3 images is not finite"):
        score(model, IMAGES[:3])
