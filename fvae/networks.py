"""The encoder E and the decoder G: residual networks whose width and depth are free of D."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from fvae.activation_checkpointing import RecomputableLayer
from fvae.bijections import squeeze, unsqueeze
from fvae.convolution import convolve, zero_convolution
from fvae.precision import full_precision


class ResidualBlock(RecomputableLayer):
    """x + conv(relu(conv(relu(x)))), 3×3, starting as the identity; no batch statistics,
    so that an image's bits do not depend on the images beside it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.second = zero_convolution(width, width)

    def compute(self, x: Tensor) -> Tensor:
        """``[B, H, W, width]`` → the same shape."""
        return x + convolve(self.second, convolve(self.first, x.relu(), relu=True))


def squeeze_times(x: Tensor, times: int) -> Tensor:
    """:func:`squeeze`, ``times`` times."""
    for _ in range(times):
        x = squeeze(x)
    return x


def unsqueeze_times(x: Tensor, times: int) -> Tensor:
    """:func:`unsqueeze`, ``times`` times."""
    for _ in range(times):
        x = unsqueeze(x)
    return x


class Encoder(nn.Module):
    """E: [squeeze → residual blocks] per level, from ``[B, C, H, W]`` to ``heads`` times w's shape.

    Where w has the image's dimension (d = D), E is the image plus what the network adds, and starts
    as the identity: an f-VAE then starts as the plain flow that it contains.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        latent_shape: tuple[int, int, int],
        *,
        levels: int,
        blocks: int,
        width: int,
        heads: int = 1,
    ) -> None:
        super().__init__()
        channels = image_shape[0]
        self.levels, self.heads = levels, heads
        self.reshapes = latent_shape == image_shape
        self.skip = math.prod(latent_shape) == math.prod(image_shape)
        self.entries = nn.ModuleList()
        self.blocks = nn.ModuleList()
        inputs = channels
        for level in range(max(1, levels)):
            self.entries.append(nn.Conv2d(inputs * (4 if levels else 1), width, 3 if level == 0 else 1, padding="same"))
            self.blocks.append(nn.Sequential(*(ResidualBlock(width) for _ in range(blocks))))
            inputs = width
        outputs = channels * 4**levels if self.reshapes else latent_shape[0]
        self.exit = zero_convolution(width, outputs * heads)
        if not self.skip:
            nn.init.orthogonal_(self.exit.weight[:outputs], gain=0.1)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """``x [B, C, H, W]`` → one tensor of w's shape per head (the first is the mean)."""
        image = x.permute(0, 2, 3, 1)
        h = image
        for entry, blocks in zip(self.entries, self.blocks, strict=True):
            h = blocks(convolve(entry, squeeze(h) if self.levels else h))  # type: ignore[arg-type]
        with full_precision(x.device.type):  # bf16 would keep eight bits of a mean near ½
            heads = list(convolve(self.exit, h.relu().to(x.dtype)).chunk(self.heads, dim=-1))
        if self.skip:
            heads[0] = heads[0] + squeeze_times(image, self.levels)
        if self.reshapes:
            heads = [unsqueeze_times(head, self.levels) for head in heads]
        return tuple(head.permute(0, 3, 1, 2) for head in heads)


class Decoder(nn.Module):
    """G: the mirror of :class:`Encoder`, from w to the mean of p(x'|w), and to its log-scale where ``heads`` is 2."""

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        latent_shape: tuple[int, int, int],
        *,
        levels: int,
        blocks: int,
        width: int,
        heads: int = 1,
    ) -> None:
        super().__init__()
        channels = image_shape[0]
        self.levels, self.heads = levels, heads
        self.reshapes = latent_shape == image_shape
        self.skip = math.prod(latent_shape) == math.prod(image_shape)
        self.entry = nn.Conv2d(channels * 4**levels if self.reshapes else latent_shape[0], width, 3, padding=1)
        self.blocks = nn.ModuleList()
        self.exits = nn.ModuleList()
        scales = max(1, levels)
        for level in range(scales):
            self.blocks.append(nn.Sequential(*(ResidualBlock(width) for _ in range(blocks))))
            last = level == scales - 1
            outputs = (channels * heads if last else width) * (4 if levels else 1)
            self.exits.append(zero_convolution(width, outputs) if last else nn.Conv2d(width, outputs, 1))

    def forward(self, w: Tensor) -> Tensor:
        """``w`` of the latent's shape → ``[B, heads·C, H, W]``, the mean's channels first."""
        latent = w.permute(0, 2, 3, 1)
        if self.reshapes:
            latent = squeeze_times(latent, self.levels)
        h = convolve(self.entry, latent)
        *inner, (last_blocks, last_exit) = zip(self.blocks, self.exits, strict=True)
        for blocks, exit_ in inner:
            h = unsqueeze(convolve(exit_, blocks(h).relu()))  # type: ignore[arg-type]
        h = last_blocks(h).relu().to(w.dtype)
        with full_precision(w.device.type):
            h = convolve(last_exit, h)  # type: ignore[arg-type]
        if self.levels:
            h = unsqueeze(h)
        if self.skip:
            mean, *scale = h.chunk(self.heads, dim=-1)
            mean = mean + unsqueeze_times(latent, self.levels)
            h = torch.cat((mean, *scale), dim=-1) if scale else mean
        return h.permute(0, 3, 1, 2)
