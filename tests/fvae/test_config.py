"""A config validates itself: every refusal names the field, its value and what would do."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest
import torch
from hypothesis import given

from fvae.config import FAMILIES, ConfigError, ModelConfig, fields_in_use, halvings, identity_fields, scales_in_bins
from fvae.model import build
from tests.fvae.strategies import EXAMPLES, config_of, model_configs, random_images
from tests.versions import of_the_first_version

pytestmark = pytest.mark.core

REFUSED = [
    ({"family": "gan"}, "family='gan'", "vae, flow, fvae"),
    ({"family": None}, "family=None", "vae, flow, fvae"),
    ({"coupling": "spline"}, "coupling='spline'", "affine, additive"),
    ({"mixing": "none"}, "mixing='none'", "plu, permutation"),
    ({"channels": 0}, "channels=0", "at least 1"),
    ({"channels": True}, "channels=True", "integer of at least 1"),
    ({"height": 8.0}, "height=8.0", "integer of at least 1"),
    ({"width": -4}, "width=-4", "at least 1"),
    ({"flow_depth": 0}, "flow_depth=0", "at least 1"),
    ({"coupling_width": 0}, "coupling_width=0", "at least 1"),
    ({"encoder_width": "8"}, "encoder_width='8'", "integer of at least 1"),
    ({"flow_levels": -1}, "flow_levels=-1", "at least 0"),
    ({"encoder_levels": -1}, "encoder_levels=-1", "at least 0"),
    ({"encoder_blocks": -1}, "encoder_blocks=-1", "at least 0"),
    ({"bins": 1}, "bins=1", "at least 2"),
    ({"bins": 257}, "bins=257", "at most 256"),
    ({"family": "fvae", "sigma1_init": 0.0}, "sigma1_init=0.0", "above 0"),
    ({"sigma1_init": -0.1}, "sigma1_init=-0.1", "at least 0"),
    ({"sigma1_init": math.nan}, "sigma1_init=nan", "finite"),
    ({"likelihood": "logistic"}, "likelihood='logistic'", "gaussian, discretized"),
    ({"likelihood": "discretized"}, "likelihood='discretized'", "leave it 'gaussian'"),
    ({"family": "vae", "posterior_scale": "vector"}, "posterior_scale='vector'", "scalar, network"),
    ({"dequantization": "none"}, "dequantization='none'", "uniform, variational"),
    ({"family": "fvae", "dequantization": "variational"}, "dequantization='variational'", "discretized"),
    ({"dequantization_width": 0}, "dequantization_width=0", "at least 1"),
    ({"split_mixing": "yes"}, "split_mixing='yes'", "true or false"),
    ({"sigma2_init": math.nan}, "sigma2_init=nan", "finite"),
    ({"sigma2_init": math.inf}, "sigma2_init=inf", "finite"),
    ({"flow_levels": 3}, "flow_levels=3", "flow_levels ≤ 2"),
    ({"flow_levels": 1, "height": 5}, "flow_levels=1", "multiples of 2"),
    ({"family": "fvae", "encoder_levels": 3}, "encoder_levels=3", "encoder_levels ≤ 2"),
    ({"family": "vae", "encoder_levels": 1, "width": 7}, "encoder_levels=1", "multiples of 2"),
    ({"flow_levels": 0}, "flow_levels=0", "flow_levels ≥ 1"),
    ({"latent_channels": 2}, "latent_channels=2", "leave it None"),
    ({"family": "fvae", "latent_channels": 0}, "latent_channels=0", "at least 1"),
    ({"family": "fvae", "latent_channels": 5}, "latent_channels=5", "at most 4"),
    ({"family": "fvae", "latent_channels": 2, "flow_levels": 2}, "flow_levels=2", "multiples of 8"),
]


@pytest.mark.parametrize(("changes", "named", "would_do"), REFUSED, ids=[named for _, named, _ in REFUSED])
def test_refusal_names_field_value_and_what_would_do(changes: dict, named: str, would_do: str) -> None:
    with pytest.raises(ConfigError) as refused:
        config_of("flow", **changes) if "family" not in changes else config_of(**changes)
    message = str(refused.value)
    assert named in message
    assert would_do in message
    assert "\n" not in message


def test_advice_of_a_refusal_does() -> None:
    """A side that the message asks for is accepted."""
    with pytest.raises(ConfigError, match="multiples of 8"):
        config_of("fvae", latent_channels=2, flow_levels=2)
    assert config_of("fvae", latent_channels=2, flow_levels=2, height=8, width=8).latent_shape == (2, 4, 4)


@EXAMPLES
@given(config=model_configs())
def test_dictionary_round_trip_through_json(config: ModelConfig) -> None:
    assert ModelConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_dictionary_with_an_unknown_or_a_missing_field_is_refused() -> None:
    values = config_of("flow").to_dict()
    with pytest.raises(ConfigError, match="depth: no such field of ModelConfig"):
        ModelConfig.from_dict(values | {"depth": 3})
    del values["height"]
    with pytest.raises(ConfigError, match="height: missing from ModelConfig"):
        ModelConfig.from_dict(values)


def test_posterior_scale_is_by_default_the_papers() -> None:
    assert [config_of(family).encoder_heads for family in FAMILIES] == [2, 1, 1]
    for scale, heads in (("scalar", 1), ("network", 2)):
        assert {config_of(family, posterior_scale=scale).encoder_heads for family in ("vae", "fvae")} == {heads}
    assert dataclasses.replace(config_of("vae"), family="fvae").encoder_heads == 1


def test_an_identity_is_the_same_without_the_fields_that_came_later() -> None:
    values = config_of("fvae").to_dict()
    earlier = of_the_first_version("model", values)
    assert identity_fields(ModelConfig, values) == earlier == identity_fields(ModelConfig, earlier)
    chosen = config_of("fvae", likelihood="discretized").to_dict()
    assert identity_fields(ModelConfig, chosen) == earlier | {"likelihood": "discretized"}


@EXAMPLES
@given(config=model_configs())
def test_fields_in_use_make_the_same_model(config: ModelConfig) -> None:
    """And each of them has an effect: none of another family's is left."""
    values = fields_in_use(config.to_dict())
    same = ModelConfig.from_dict(values)
    torch.manual_seed(0)
    model = build(config)
    torch.manual_seed(0)
    other = build(same)
    images = random_images(config, 4)
    bits = [each.eval().bits_per_dim(images, torch.Generator().manual_seed(0)) for each in (model, other)]
    assert torch.equal(*bits)
    assert ("flow_depth" in values) == ("mixing" in values) == config.has_flow
    assert ("encoder_width" in values) == ("likelihood" in values) == config.has_encoder
    assert ("dequantization" in values) == (config.family == "flow")


def test_scales_in_bins() -> None:
    fvae, vae = config_of("fvae", bins=16).to_dict(), config_of("vae", bins=16).to_dict()
    assert scales_in_bins(fvae, 0.5, 0.25) == {"sigma1_bins": 8.0, "sigma2_bins": 4.0}
    assert scales_in_bins(vae, 0.5, None) == {"sigma1_bins": None, "sigma2_bins": None}
    whole = fvae | {"latent_channels": 4}  # another shape of as many dimensions
    assert scales_in_bins(whole, 0.5, 0.25) == scales_in_bins(fvae, 0.5, 0.25)
    assert scales_in_bins(fvae | {"latent_channels": 1}, 0.5, 0.25) == {"sigma1_bins": None, "sigma2_bins": 4.0}


def test_config_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        config_of("flow").channels = 3  # type: ignore[misc]


def test_parts_that_a_family_lacks_are_not_validated() -> None:
    """A plain flow has no encoder and a VAE no flow: their levels are free."""
    assert config_of("flow", encoder_levels=9).image_shape == (1, 4, 4)
    assert config_of("vae", flow_levels=9).dimensions == 16


@pytest.mark.parametrize(("size", "expected"), [(1, 0), (2, 1), (3, 0), (8, 3), (12, 2), (28, 2), (32, 5)])
def test_halvings(size: int, expected: int) -> None:
    assert halvings(size) == expected


@EXAMPLES
@given(config=model_configs())
def test_every_valid_config_builds_and_evaluates(config: ModelConfig) -> None:
    model = build(config)
    bits = model.bits_per_dim(random_images(config, 8))
    assert bits.shape == (8,)
    assert bits.dtype == torch.float32
    assert torch.isfinite(bits).all()
