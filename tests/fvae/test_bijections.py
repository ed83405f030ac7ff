"""Every layer of F: log_det equals autograd's Jacobian, and the inverse undoes it."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from fvae.bijections import (
    LOG_SCALE_BOUND,
    ChannelAffine,
    CouplingLayer,
    PermutationMixing,
    PLUMixing,
    SplitPrior,
    affine_maps,
    bounded,
    squeeze,
    unsqueeze,
)
from tests.fvae.strategies import EXAMPLES, couplings, log_abs_det, mixings, perturb, seeds

pytestmark = pytest.mark.core

channels_ = st.integers(2, 7)
sides = st.integers(1, 3)


def prepared(layer: nn.Module, scale: float = 0.3) -> nn.Module:
    """The layer in float64 with every parameter moved."""
    layer = layer.double()
    perturb(layer, scale)
    return layer


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def total(log_det: Tensor) -> Tensor:
    """log_det of a batch of one, whether given per image or as a scalar."""
    return log_det.reshape(())


@EXAMPLES
@given(channels=channels_, height=sides, width=sides, mixing=mixings, seed=seeds)
def test_channel_affine(channels: int, height: int, width: int, mixing: str, seed: int) -> None:
    torch.manual_seed(seed)
    layer = prepared(ChannelAffine(channels, mixing))  # type: ignore[arg-type]
    x = normal(seed, 1, height, width, channels)
    y, log_det = layer(x)
    torch.testing.assert_close(total(log_det), log_abs_det(lambda v: layer(v)[0], x), atol=1e-9, rtol=1e-9)
    torch.testing.assert_close(layer.inverse(y), x, atol=1e-9, rtol=0)


@EXAMPLES
@given(channels=channels_, height=sides, width=sides, coupling=couplings, seed=seeds)
def test_coupling_layer(channels: int, height: int, width: int, coupling: str, seed: int) -> None:
    torch.manual_seed(seed)
    layer = prepared(CouplingLayer(channels, 5, coupling))  # type: ignore[arg-type]
    x = normal(seed, 1, height, width, channels)
    y, log_det = layer(x)
    torch.testing.assert_close(total(log_det), log_abs_det(lambda v: layer(v)[0], x), atol=1e-9, rtol=1e-9)
    torch.testing.assert_close(layer.inverse(y), x, atol=1e-9, rtol=0)
    assert torch.equal(y[..., : layer.kept], x[..., : layer.kept])
    assert not torch.allclose(y[..., layer.kept :], x[..., layer.kept :])


@EXAMPLES
@given(channels=channels_, height=sides, width=sides, mixed=st.booleans(), seed=seeds)
def test_split_prior(channels: int, height: int, width: int, mixed: bool, seed: int) -> None:
    torch.manual_seed(seed)
    layer = prepared(SplitPrior(channels, mixed=mixed))
    x = normal(seed, 1, height, width, channels)
    kept, noise, log_det = layer(x)
    expected = log_abs_det(lambda v: torch.cat([part.flatten(1) for part in layer(v)[:2]], dim=1), x)
    torch.testing.assert_close(total(log_det), expected, atol=1e-9, rtol=1e-9)
    torch.testing.assert_close(layer.inverse(kept, noise), x, atol=1e-9, rtol=0)


def test_split_prior_is_a_conditional_gaussian() -> None:
    """log N(ε; 0, I) + log_det is log N(z; m(h), exp(2s(h))) of Glow's split prior."""
    torch.manual_seed(0)
    layer = prepared(SplitPrior(6))
    x = normal(1, 4, 2, 2, 6)
    kept, noise, log_det = layer(x)
    mean, log_scale = layer._mean_and_log_scale(kept)
    expected = torch.distributions.Normal(mean, log_scale.exp()).log_prob(x[..., 3:]).flatten(1).sum(1)
    standard = torch.distributions.Normal(0.0, 1.0).log_prob(noise).flatten(1).sum(1)
    torch.testing.assert_close(standard + log_det, expected)


@EXAMPLES
@given(channels=st.integers(1, 5), height=sides, width=sides, seed=seeds)
def test_squeeze_moves_values_and_changes_none(channels: int, height: int, width: int, seed: int) -> None:
    x = normal(seed, 2, 2 * height, 2 * width, channels)
    y = squeeze(x)
    assert y.shape == (2, height, width, 4 * channels)
    assert torch.equal(unsqueeze(y), x)
    torch.testing.assert_close(log_abs_det(squeeze, x[:1]), x.new_zeros(()))


def test_squeeze_gathers_neighbours() -> None:
    """The channels of an output pixel are one 2×2 block of the image."""
    x = torch.arange(16.0).reshape(1, 4, 4, 1)
    assert sorted(squeeze(x)[0, 0, 0].tolist()) == [0, 1, 4, 5]
    assert sorted(squeeze(x)[0, 1, 1].tolist()) == [10, 11, 14, 15]


def matrix_of(mixing: PLUMixing | PermutationMixing, channels: int) -> torch.Tensor:
    """What it does to the unit vectors, as the matrix W of y = Wx."""
    zero, one = torch.zeros(channels, dtype=torch.float64), torch.ones(channels, dtype=torch.float64)
    return mixing.mix(torch.eye(channels, dtype=torch.float64), zero, one).T


@EXAMPLES
@given(channels=st.integers(1, 9), seed=seeds)
def test_mixing_weights(channels: int, seed: int) -> None:
    torch.manual_seed(seed)
    identity = torch.eye(channels, dtype=torch.float64)
    for mixing in (PLUMixing(channels), PermutationMixing(channels)):
        mixing = mixing.double()
        weight = matrix_of(mixing, channels)
        torch.testing.assert_close(weight @ weight.T, identity, atol=1e-5, rtol=0)  # starts as a rotation
        perturb(mixing)
        weight = matrix_of(mixing, channels)
        torch.testing.assert_close(mixing.unmix(weight.T), identity, atol=1e-9, rtol=0)
        x, bias, scale = (torch.randn(3, 2, channels, dtype=torch.float64) for _ in range(3))
        mixed = mixing.mix(x, bias[0, 0], scale[0, 0])
        torch.testing.assert_close(mixed, ((x + bias[0, 0]) * scale[0, 0]) @ weight.T, atol=1e-9, rtol=0)
        expected = torch.linalg.slogdet(weight).logabsdet
        torch.testing.assert_close(mixing.log_det().double(), expected, atol=1e-9, rtol=1e-9)


def test_permutation_is_random_fixed_and_saved() -> None:
    torch.manual_seed(3)
    mixing = PermutationMixing(16)
    assert sorted(mixing.index.tolist()) == list(range(16)) != mixing.index.tolist()
    assert not list(mixing.parameters())
    other = PermutationMixing(16)
    assert not torch.equal(other.index, mixing.index)
    other.load_state_dict(mixing.state_dict())
    assert torch.equal(other.index, mixing.index)


def test_log_scale_is_bounded_with_unit_slope() -> None:
    raw = torch.tensor([-1e4, -1.0, 0.0, 1.0, 1e4], dtype=torch.float64, requires_grad=True)
    value = bounded(raw)
    (slope,) = torch.autograd.grad(value.sum(), raw)
    assert value.abs().max() <= LOG_SCALE_BOUND
    assert value[2] == 0 and slope[2] == 1
    assert (value.diff() > 0).all()


def test_no_weights_scale_a_value_beyond_the_bound() -> None:
    """However far the networks go, exp(±2) is the most that a coupling or split prior does to a value."""
    torch.manual_seed(0)
    x = 10 * torch.randn(4, 3, 3, 6)
    for layer in (CouplingLayer(6, 8, "affine"), SplitPrior(6)):
        perturb(layer, 100.0)
        log_det = layer(x)[-1]
        assert (log_det.abs() <= LOG_SCALE_BOUND * 3 * 9 + 1e-3).all()
        assert log_det.abs().max() > 1


@pytest.mark.parametrize("coupling", ["affine", "additive"])
def test_coupling_and_split_start_as_the_identity(coupling: str) -> None:
    x = torch.randn(3, 4, 4, 5)
    y, log_det = CouplingLayer(5, 8, coupling)(x)  # type: ignore[arg-type]
    assert torch.equal(y, x) and not log_det.any()
    kept, noise, log_det = SplitPrior(5)(x)
    assert torch.equal(torch.cat((kept, noise), dim=-1), x) and not log_det.any()


def test_every_entry_of_the_plu_factors_is_trained() -> None:
    """Each counts as a parameter, so each must move W."""
    torch.manual_seed(0)
    mixing = prepared(PLUMixing(6))
    (mixing.weight() * normal(0, 6, 6)).sum().backward()
    assert sum(parameter.numel() for parameter in mixing.parameters()) == 36
    for name, parameter in mixing.named_parameters():
        assert parameter.grad is not None and parameter.grad.all(), name


@pytest.mark.parametrize("count", [1, 3])
def test_maps_that_are_made_together_are_those_of_each_layer(count: int) -> None:
    torch.manual_seed(0)
    layers = [prepared(ChannelAffine(6, "plu")).double() for _ in range(count)]
    weights, offsets, log_det = affine_maps(layers)
    x = torch.randn(5, 4, 2, 6, dtype=torch.float64)
    whole = torch.zeros((), dtype=torch.float64)
    for layer, weight, offset in zip(layers, weights, offsets, strict=True):
        y, of_layer = layer(x)
        torch.testing.assert_close(x @ weight.T + offset, y)
        whole = whole + of_layer
    torch.testing.assert_close(4 * 2 * log_det, whole)
