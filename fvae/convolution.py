"""Convolutions of ``[B, H, W, C]``: the library's, or on a CPU a matrix product where that is faster.

A library's convolution of a few pixels and channels costs a CPU its fixed price, 0.2 to 0.5 ms with its backward pass,
whatever is in it. As one matrix product, [B, H·W·C] × [H·W·C, H·W·outputs], it costs about half
(`benchmarks/small_models.py`).
"""

from __future__ import annotations

import functools

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

LARGEST_PRODUCT = 2**16
"""Entries of the largest matrix that a 3×3 convolution is written as: larger ones multiply too many zeros."""


def zero_convolution(inputs: int, outputs: int) -> nn.Conv2d:
    """A 3×3 convolution that starts as zero, so that the layer around it starts as the identity."""
    layer = nn.Conv2d(inputs, outputs, 3, padding=1)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    return layer


def convolve(layer: nn.Conv2d, x: Tensor, *, relu: bool = False) -> Tensor:
    """Apply a 3×3 or 1×1 convolution that keeps the size to ``x [B, H, W, C]``; ``relu`` follows in place."""
    if _is_faster_as_product(layer, x):
        y = _product(layer, x)
        return y.relu_() if relu else y
    # A permuted view is channels-last memory already. On the view, the ReLU in place would cost a copy.
    y = layer(x.permute(0, 3, 1, 2))
    return (y.relu_() if relu else y).permute(0, 2, 3, 1)


def _is_faster_as_product(layer: nn.Conv2d, x: Tensor) -> bool:
    if x.device.type != "cpu" or torch.is_autocast_enabled("cpu") or torch.compiler.is_compiling():
        return False
    pixels = x.shape[1] * x.shape[2]
    return layer.kernel_size == (1, 1) or pixels**2 * layer.in_channels * layer.out_channels <= LARGEST_PRODUCT


def _product(layer: nn.Conv2d, x: Tensor) -> Tensor:
    """The convolution as a matrix product: ``[B, H, W, C]`` → ``[B, H, W, outputs]``."""
    outputs, inputs, *kernel = layer.weight.shape
    if kernel == [1, 1]:
        return F.linear(x, layer.weight.reshape(outputs, inputs), layer.bias)
    batch, height, width, _ = x.shape
    pixels = height * width
    taps = layer.weight.permute(2, 3, 1, 0).reshape(9, inputs * outputs)
    matrix = torch.tensor(_taps_between_pixels(height, width), dtype=x.dtype) @ taps  # [pixels², inputs·outputs]
    matrix = matrix.view(pixels, pixels, inputs, outputs).transpose(1, 2).reshape(pixels * inputs, pixels * outputs)
    y = (x.reshape(batch, pixels * inputs) @ matrix).view(batch, height, width, outputs)
    return y + layer.bias  # type: ignore[operator]  # every layer here has one


@functools.lru_cache(maxsize=64)
def _taps_between_pixels(height: int, width: int) -> np.ndarray:
    """1 where a pixel of the output sees a pixel of the input through a tap of a 3×3 kernel, else 0.

    float32 ``[(H·W)², 9]``: the input's pixels outside, the output's inside.
    """
    row, column = np.divmod(np.arange(height * width), width)
    down = row[:, None] - row + 1  # [input, output]: the tap's row, 0 … 2 where there is one
    right = column[:, None] - column + 1
    seen = (down >= 0) & (down <= 2) & (right >= 0) & (right <= 2)
    taps = np.where(seen, 3 * down + right, -1).reshape(-1, 1)
    return (taps == np.arange(9)).astype(np.float32)
