"""A convolution as a matrix product is the library's, with its gradients."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fvae import convolution
from fvae.convolution import convolve, zero_convolution

pytestmark = pytest.mark.core


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 4), (2, 2), (4, 4), (3, 5)])
def test_product_and_library_agree(
    height: int, width: int, kernel: int, relu: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(3, 5, kernel, padding="same", dtype=torch.float64)
    results = []
    for product in (False, True):
        monkeypatch.setattr(convolution, "_is_faster_as_product", lambda layer, x, product=product: product)
        x = torch.randn(7, height, width, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        x.requires_grad_()
        y = convolve(layer, x, relu=relu)
        gradients = torch.autograd.grad((y * y.detach().cos()).sum(), (x, layer.weight, layer.bias))
        results.append((y, *gradients))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other)
        assert one.shape == other.shape


def test_large_convolutions_and_those_in_bfloat16_stay_the_librarys(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    monkeypatch.setattr(convolution, "_product", lambda layer, x: (seen.append(x.shape[1]), x)[1])
    layer = zero_convolution(8, 8)
    for side in (2, 4, 8, 16):
        convolve(layer, torch.randn(1, side, side, 8))
    with torch.autocast("cpu", torch.bfloat16):
        convolve(layer, torch.randn(1, 2, 2, 8))
    assert seen == [2, 4]
