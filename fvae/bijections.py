"""Invertible layers of the flow F, each with its log_det.

Layout: inside F every tensor is ``[B, H, W, C]`` (channels last in memory), which convolutions on
CPU and GPU read without a copy and in which mixing channels is one matrix product. Every layer maps
``forward(x) -> (y, log_det)`` and ``inverse(y) -> x``. ``log_det`` is in nats per image, ``[B]`` or
a scalar where it does not depend on x.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fvae.config import Coupling, Mixing
from fvae.convolution import convolve, zero_convolution
from fvae.precision import full_precision

LOG_SCALE_BOUND = 2.0
"""Largest |log-scale| of an affine coupling or split prior: tanh keeps it inside."""


def squeeze(x: Tensor) -> Tensor:
    """``[B, H, W, C]`` → ``[B, H/2, W/2, 4C]``: each 2×2 block becomes channels (RealNVP, §3.6)."""
    b, h, w, c = x.shape
    x = x.reshape(b, h // 2, 2, w // 2, 2, c).permute(0, 1, 3, 5, 2, 4)
    return x.reshape(b, h // 2, w // 2, 4 * c)


def unsqueeze(x: Tensor) -> Tensor:
    """``[B, H, W, 4C]`` → ``[B, 2H, 2W, C]``: the inverse of :func:`squeeze`."""
    b, h, w, c = x.shape
    x = x.reshape(b, h, w, c // 4, 2, 2).permute(0, 1, 4, 2, 5, 3)
    return x.reshape(b, 2 * h, 2 * w, c // 4)


def bounded(raw: Tensor) -> Tensor:
    """Log-scale in ±``LOG_SCALE_BOUND`` with slope 1 at zero."""
    return LOG_SCALE_BOUND * torch.tanh(raw / LOG_SCALE_BOUND)


def triangles(factors: Tensor, sign: Tensor) -> tuple[Tensor, Tensor]:
    """L and U, each ``[..., C, C]``, of ``factors [..., C, C]`` and ``sign [..., C]`` as of :class:`PLUMixing`."""
    diagonal = sign * factors.diagonal(dim1=-2, dim2=-1).exp()
    unit = torch.eye(factors.shape[-1], dtype=factors.dtype, device=factors.device)
    return factors.tril(-1) + unit, factors.triu(1) + torch.diag_embed(diagonal)


class PLUMixing(nn.Module):
    """Trained 1×1 convolution W = P·L·U (Glow, §3.2): L unit lower triangular, U upper, P and signs fixed.

    ``factors [C, C]`` holds both triangles: L below the diagonal, U above it, log|diagonal of U| on it.
    """

    permutation: Tensor
    sign: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        rotation = torch.linalg.qr(torch.randn(channels, channels, dtype=torch.float64))[0]
        permutation, lower, upper = torch.linalg.lu(rotation)
        diagonal = upper.diagonal()
        default = torch.get_default_dtype()
        self.register_buffer("permutation", permutation.to(default))
        self.register_buffer("sign", diagonal.sign().to(default))
        factors = lower.tril(-1) + torch.diag(diagonal.abs().log()) + upper.triu(1)
        self.factors = nn.Parameter(factors.to(default))

    def weight(self) -> Tensor:
        """W, ``[C, C]``."""
        lower, upper = triangles(self.factors, self.sign)
        return self.permutation @ lower @ upper

    def inverse_weight(self) -> Tensor:
        """W⁻¹, ``[C, C]``, by two triangular solves in float64."""
        lower, upper = triangles(self.factors.double(), self.sign.double())
        solved = torch.linalg.solve_triangular(lower, self.permutation.double().T, upper=False, unitriangular=True)
        return torch.linalg.solve_triangular(upper, solved, upper=True).to(self.factors.dtype)

    def log_det(self) -> Tensor:
        """log|det W| in nats per pixel, a scalar."""
        return self.factors.diagonal().sum()

    def mix(self, x: Tensor, bias: Tensor, scale: Tensor) -> Tensor:
        """W·(scale⊙(x + bias)) on ``[..., C]``, folded into one matrix product."""
        weight = self.weight() * scale  # W·diag(scale)
        return F.linear(x, weight, weight @ bias)

    def unmix(self, y: Tensor) -> Tensor:
        """W⁻¹y on ``[..., C]``."""
        return F.linear(y, self.inverse_weight())


class PermutationMixing(nn.Module):
    """Fixed random permutation of the channels, saved with the weights: channel i comes from channel ``index[i]``."""

    index: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("index", torch.randperm(channels))

    def log_det(self) -> Tensor:
        """0: a permutation keeps volume."""
        return torch.zeros((), device=self.index.device)

    def mix(self, x: Tensor, bias: Tensor, scale: Tensor) -> Tensor:
        """scale⊙(x + bias) on ``[..., C]``, permuted."""
        return ((x + bias) * scale).index_select(-1, self.index)

    def unmix(self, y: Tensor) -> Tensor:
        """``[..., C]`` with every channel where it came from."""
        return y.index_select(-1, self.index.argsort())


class ChannelAffine(nn.Module):
    """ActNorm then mixing: y = W·(exp(s)⊙(x + b)).

    ActNorm (Glow, §3.1) sets b and s from the first batch, so that its output has mean 0 and
    variance 1 per channel; until then it is the identity. ``initialized`` is a saved buffer.
    """

    initialized: Tensor

    def __init__(self, channels: int, mixing: Mixing) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(channels))
        self.log_scale = nn.Parameter(torch.zeros(channels))
        self.register_buffer("initialized", torch.zeros((), dtype=torch.bool))
        self.mixing = PLUMixing(channels) if mixing == "plu" else PermutationMixing(channels)

    @torch.no_grad()
    def initialize(self, x: Tensor) -> None:
        """Set ActNorm from a batch ``[B, H, W, C]``; does nothing the second time."""
        if self.initialized:
            return
        flat = x.reshape(-1, x.shape[-1])
        self.bias.copy_(-flat.mean(0))
        # A constant channel has no scale to measure: the floor keeps the log_det finite.
        self.log_scale.copy_(-flat.std(0, correction=0).clamp_min(1e-3).log())
        self.initialized.fill_(True)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        pixels = x.shape[1] * x.shape[2]
        log_det = pixels * (self.log_scale.sum() + self.mixing.log_det())
        return self.mixing.mix(x, self.bias, self.log_scale.exp()), log_det

    def inverse(self, y: Tensor) -> Tensor:
        """x = exp(−s)⊙W⁻¹y − b."""
        return self.mixing.unmix(y) * torch.exp(-self.log_scale) - self.bias


def affine_maps(layers: Sequence[ChannelAffine]) -> tuple[Tensor, Tensor, Tensor]:
    """The maps of K layers with PLU mixing and as many channels each, made together: one operation instead of K.

    Returns weights ``[K, C, C]`` and offsets ``[K, C]``, with which layer k is y = weight[k]·x + offset[k], and
    log|det ∂y/∂x| of all of them in nats per pixel, a scalar.
    """
    mixings = [cast(PLUMixing, layer.mixing) for layer in layers]
    factors = torch.stack([mixing.factors for mixing in mixings])
    sign = torch.stack([mixing.sign for mixing in mixings])
    permutation = torch.stack([mixing.permutation for mixing in mixings])
    bias = torch.stack([layer.bias for layer in layers])
    log_scale = torch.stack([layer.log_scale for layer in layers])
    lower, upper = triangles(factors, sign)
    weight = permutation @ lower @ upper * log_scale.exp()[:, None, :]
    offset = (weight @ bias[..., None]).squeeze(-1)
    return weight, offset, log_scale.sum() + factors.diagonal(dim1=-2, dim2=-1).sum()


class CouplingLayer(nn.Module):
    """y = (x₁, exp(s(x₁))⊙x₂ + t(x₁)) (RealNVP, eq. 7–8); ``additive`` has s = 0 (NICE, eq. 10).

    An odd number of channels is split with the larger part second. Likelihood terms keep
    the dtype of x, whatever precision autocast gives the network.
    """

    def __init__(self, channels: int, width: int, coupling: Coupling) -> None:
        super().__init__()
        self.kept = channels // 2
        self.changed = channels - self.kept
        self.affine = coupling == "affine"
        self.input = nn.Conv2d(self.kept, width, 3, padding=1)
        self.hidden = nn.Linear(width, width)  # a 1×1 convolution, as the matrix product that it is
        self.output = zero_convolution(width, self.changed * (2 if self.affine else 1))

    def _log_scale_and_shift(self, kept: Tensor) -> tuple[Tensor | None, Tensor]:
        hidden = convolve(self.input, kept, relu=True)  # in place: these activations are the largest
        shape = hidden.shape
        hidden = self.hidden(hidden.reshape(-1, shape[-1])).relu_().reshape(shape)
        raw = convolve(self.output, hidden).to(kept.dtype)  # [B, H, W, changed] or twice that
        if not self.affine:
            return None, raw
        log_scale, shift = raw.split(self.changed, dim=-1)
        return bounded(log_scale), shift

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        kept, changed = x.split((self.kept, self.changed), dim=-1)
        log_scale, shift = self._log_scale_and_shift(kept)
        if log_scale is None:
            return torch.cat((kept, changed + shift), dim=-1), x.new_zeros(())
        changed = torch.addcmul(shift, changed, log_scale.exp())
        return torch.cat((kept, changed), dim=-1), log_scale.flatten(1).sum(1)

    def inverse(self, y: Tensor) -> Tensor:
        """x₂ = exp(−s(y₁))⊙(y₂ − t(y₁))."""
        kept, changed = y.split((self.kept, self.changed), dim=-1)
        log_scale, shift = self._log_scale_and_shift(kept)
        changed = changed - shift
        if log_scale is not None:
            changed = changed * torch.exp(-log_scale)
        return torch.cat((kept, changed), dim=-1)


class SplitPrior(nn.Module):
    """Second half of the channels leaves F as ε = exp(−s(h))⊙(z − m(h)), h the first half.

    With ε ~ N(0, I) this is Glow's split prior N(m(h), exp(2s(h))) written as a bijection; the
    convolution for (m, s) starts as zero. Where it is ``mixed``, a trained 1×1 convolution comes first, so that which
    channels leave is learned.
    """

    def __init__(self, channels: int, *, mixed: bool = False) -> None:
        super().__init__()
        self.mixing = PLUMixing(channels) if mixed else None
        self.kept = channels // 2
        self.left = channels - self.kept
        self.prior = zero_convolution(self.kept, 2 * self.left)

    def _mean_and_log_scale(self, kept: Tensor) -> tuple[Tensor, Tensor]:
        mean, raw = convolve(self.prior, kept).to(kept.dtype).split(self.left, dim=-1)
        return mean, bounded(raw)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """``[B, H, W, C]`` → the half that goes on, ε, log_det."""
        mixing_log_det: Tensor | float = 0.0
        if self.mixing is not None:
            with full_precision(x.device.type):
                x = F.linear(x, self.mixing.weight())
                mixing_log_det = x.shape[1] * x.shape[2] * self.mixing.log_det()
        kept, left = x.split((self.kept, self.left), dim=-1)
        mean, log_scale = self._mean_and_log_scale(kept)
        return kept, (left - mean) * torch.exp(-log_scale), mixing_log_det - log_scale.flatten(1).sum(1)

    def inverse(self, kept: Tensor, noise: Tensor) -> Tensor:
        """The halves back into ``[B, H, W, C]``."""
        mean, log_scale = self._mean_and_log_scale(kept)
        x = torch.cat((kept, torch.addcmul(mean, noise, log_scale.exp())), dim=-1)
        if self.mixing is None:
            return x
        with full_precision(x.device.type):
            return self.mixing.unmix(x)
