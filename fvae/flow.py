"""The multi-scale flow F: a bijection between w and z, with the prior z ~ N(0, I_d)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fvae.activation_checkpointing import RecomputableLayer
from fvae.bijections import ChannelAffine, CouplingLayer, SplitPrior, affine_maps, squeeze, unsqueeze
from fvae.config import Coupling, Mixing
from fvae.precision import full_precision


class FlowStep(RecomputableLayer):
    """ActNorm → mixing of channels → coupling (Glow, fig. 2a), on ``[B, H, W, C]``."""

    def __init__(self, channels: int, width: int, coupling: Coupling, mixing: Mixing) -> None:
        super().__init__()
        self.affine = ChannelAffine(channels, mixing)
        self.coupling = CouplingLayer(channels, width, coupling)

    def compute(self, x: Tensor, weight: Tensor | None = None, offset: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """``x`` → ``y`` of its shape, log_det in nats per image.

        Where ActNorm and mixing come as ``weight`` and ``offset`` of :func:`~fvae.bijections.affine_maps`, the caller
        adds their log_det.
        """
        log_det: Tensor | float = 0.0
        # The map itself keeps the precision of x: only the coupling's network may run in bf16.
        with full_precision(x.device.type):
            if weight is None:
                x, log_det = self.affine(x)
            else:
                x = F.linear(x, weight, offset)
        x, coupling_log_det = self.coupling(x)
        return x, log_det + coupling_log_det

    def inverse(self, y: Tensor) -> Tensor:
        """The step undone."""
        y = self.coupling.inverse(y)
        with full_precision(y.device.type):
            return self.affine.inverse(y)


class IdentityFlow(nn.Module):
    """F of a plain VAE: z = w, flattened; log_det = 0."""

    def __init__(self, shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.shape = shape

    def forward(self, w: Tensor) -> tuple[Tensor, Tensor]:
        """``w [B, C, H, W]`` → ``z [B, d]``, ``log_det [B]`` (zeros)."""
        return w.flatten(1), w.new_zeros(len(w))

    def inverse(self, z: Tensor) -> Tensor:
        """``z [B, d]`` → ``w [B, C, H, W]``."""
        return z.reshape(-1, *self.shape)

    def initialize(self, w: Tensor) -> None:
        """Nothing to initialise."""

    @property
    def initialized(self) -> bool:
        """True: see :meth:`initialize`."""
        return True


class MultiScaleFlow(nn.Module):
    """F: per level squeeze, K steps, then half the channels leave (RealNVP, §3.6; Glow, fig. 2b).

    >>> flow = MultiScaleFlow((1, 8, 8), levels=2, depth=4, width=32)
    >>> z, log_det = flow(w)        # w [B, 1, 8, 8] → z [B, 64], log_det [B] in nats
    >>> w = flow.inverse(z)
    """

    makes_maps_together = True
    """See :func:`~fvae.bijections.affine_maps`. Whether or not, the maps are the same but for rounding."""

    def __init__(
        self,
        shape: tuple[int, int, int],
        *,
        levels: int,
        depth: int,
        width: int,
        coupling: Coupling = "affine",
        mixing: Mixing = "plu",
        split_mixing: bool = False,
    ) -> None:
        super().__init__()
        self.shape, self.mixing = shape, mixing
        self.squeezes = levels > 0
        self.steps = nn.ModuleList()
        self.splits = nn.ModuleList()
        channels, height, width_ = shape
        self.sizes: list[tuple[int, int, int]] = []
        """``(H, W, C)`` of what leaves at each level; the last entry is what remains."""
        scales = max(1, levels)
        for scale in range(scales):
            if self.squeezes:
                channels, height, width_ = 4 * channels, height // 2, width_ // 2
            self.steps.append(nn.ModuleList(FlowStep(channels, width, coupling, mixing) for _ in range(depth)))
            if scale < scales - 1:
                self.splits.append(SplitPrior(channels, mixed=split_mixing))
                self.sizes.append((height, width_, channels - channels // 2))
                channels = channels // 2
        self.sizes.append((height, width_, channels))

    def forward(self, w: Tensor) -> tuple[Tensor, Tensor]:
        """``w [B, C, H, W]`` → ``z [B, d]``, ``log_det [B]``: log|det ∂z/∂w| in nats per image."""
        return self._run(w, initialize=False)

    @torch.no_grad()
    def initialize(self, w: Tensor) -> None:
        """Set every ActNorm from this batch, each after those before it. Once: a second call is idle."""
        self._run(w, initialize=True)

    @property
    def initialized(self) -> bool:
        """Whether every ActNorm is set; on a GPU the answer waits for the device."""
        return all(bool(step.affine.initialized) for scale in range(len(self.steps)) for step in self._level(scale))

    def _run(self, w: Tensor, *, initialize: bool) -> tuple[Tensor, Tensor]:
        x = w.permute(0, 2, 3, 1)  # [B, H, W, C] from here on
        log_det = w.new_zeros(len(w))
        latents = []
        for scale in range(len(self.steps)):
            if self.squeezes:
                x = squeeze(x)
            steps = self._level(scale)
            maps: Sequence[tuple[Tensor | None, Tensor | None]] = [(None, None)] * len(steps)
            if self.makes_maps_together and self.mixing == "plu" and len(steps) > 1 and not initialize:
                with full_precision(x.device.type):
                    weights, offsets, per_pixel = affine_maps([step.affine for step in steps])
                    log_det = log_det + x.shape[1] * x.shape[2] * per_pixel
                maps = list(zip(weights.unbind(), offsets.unbind(), strict=True))
            for step, affine_map in zip(steps, maps, strict=True):
                if initialize:
                    step.affine.initialize(x)
                x, step_log_det = step(x, *affine_map)
                log_det = log_det + step_log_det
            if scale < len(self.splits):
                x, noise, split_log_det = self.splits[scale](x)
                log_det = log_det + split_log_det
                latents.append(noise.flatten(1))
        latents.append(x.flatten(1))
        return torch.cat(latents, dim=1), log_det

    def _level(self, scale: int) -> list[FlowStep]:
        return cast("list[FlowStep]", list(self.steps[scale].children()))

    def inverse(self, z: Tensor) -> Tensor:
        """``z [B, d]`` → ``w [B, C, H, W]``, exact up to rounding."""
        parts = z.split([math.prod(size) for size in self.sizes], dim=1)
        latents = [part.reshape(-1, *size) for part, size in zip(parts, self.sizes, strict=True)]
        x = latents[-1]
        for scale in reversed(range(len(self.steps))):
            if scale < len(self.splits):
                x = self.splits[scale].inverse(x, latents[scale])  # type: ignore[operator]
            for step in reversed(self._level(scale)):
                x = step.inverse(x)
            if self.squeezes:
                x = unsqueeze(x)
        return x.permute(0, 3, 1, 2)
