"""What is counted from a config is what its model has, and what torch's own counter sees it do."""

from __future__ import annotations

import time

import pytest
import torch
from hypothesis import given, settings
from torch.utils.flop_counter import FlopCounterMode

from fvae.config import FAMILIES, ModelConfig
from fvae.flops import parameters_and_flops
from fvae.model import build
from tests.fvae.strategies import EXAMPLES, config_of, model_configs

pytestmark = pytest.mark.core


def measured(config: ModelConfig) -> tuple[int, int]:
    """Parameters of the model that is built, and FLOPs per image as torch counts them while it runs.

    On the meta device nothing is allocated. The difference of two batches leaves out what a batch shares.
    """
    with torch.device("meta"):
        model = build(config)
        counts = []
        for batch in (1, 2):
            r, u = torch.empty(batch, *config.image_shape), torch.empty(batch, *config.latent_shape)
            with FlopCounterMode(display=False) as counter, torch.no_grad():
                model.log_weight(torch.empty(batch, *config.image_shape, dtype=torch.uint8), r, u)
            counts.append(counter.get_total_flops())
    return model.parameter_count(), counts[1] - counts[0]


@given(model_configs())
@settings(EXAMPLES, max_examples=50)
def test_the_count_is_the_models_own(config: ModelConfig) -> None:
    assert parameters_and_flops(config) == measured(config)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("mixing", ["plu", "permutation"])
@pytest.mark.parametrize("coupling", ["affine", "additive"])
@pytest.mark.parametrize(("encoder_levels", "latent_channels"), [(0, None), (1, 2), (3, None), (2, 7), (0, 3)])
def test_every_kind_of_layer_is_counted(
    family: str, mixing: str, coupling: str, encoder_levels: int, latent_channels: int | None
) -> None:
    config = config_of(
        family,  # type: ignore[arg-type]
        channels=3,
        height=16,
        width=32,
        flow_levels=2,
        flow_depth=3,
        encoder_levels=encoder_levels,
        encoder_blocks=2,
        encoder_width=9,
        coupling_width=11,
        latent_channels=None if family == "flow" else latent_channels,
        mixing=mixing,
        split_mixing=mixing == "plu",
        coupling=coupling,
    )
    assert parameters_and_flops(config) == measured(config)


def test_a_large_model_is_counted_a_thousand_times_within_a_second_or_two() -> None:
    config = ModelConfig(
        family="fvae",
        channels=3,
        height=128,
        width=128,
        flow_levels=4,
        flow_depth=12,
        coupling_width=256,
        encoder_levels=3,
        encoder_blocks=12,
    )
    start = time.process_time()
    for _ in range(1000):
        parameters_and_flops(config)
    assert time.process_time() - start < 2
