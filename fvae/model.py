"""A VAE, a flow or an f-VAE: bits/dim of images, encoding, decoding, sampling and interpolation.

The objective that gives the bits/dim is in :mod:`fvae.objective`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fvae import likelihood
from fvae.config import ModelConfig
from fvae.data.images import Array, as_tensor
from fvae.objective import Objective


class Model(Objective):
    """A VAE, a flow or an f-VAE: :func:`build` makes one from its config.

    ``images`` are a NumPy array or a tensor ``[B, C, H, W]`` of levels 0 … bins − 1, of any integer dtype (uint8 as a
    rule) and on any device. Where they have another shape, are no integers or leave 0 … bins − 1, the methods raise
    ``ValueError``; where they are neither an array nor a tensor, ``TypeError``. (Levels on a GPU are not checked.)
    The methods return tensors on the model's device.

    Noise comes from ``generator``, on the model's device, where one is given, else from torch's global one.
    """

    def bits_per_dim(
        self,
        images: Array,
        generator: torch.Generator | None = None,
        noise: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """Upper bound on the bits/dim of ``images [B, C, H, W]`` from one sample of r and u, unbiased for −ELBO.

        Returns ``[B]``, floating point, in bits per pixel and channel. ``noise`` is that sample, as :meth:`noise`
        gives it; by default it is drawn. In training mode the first call also initialises ActNorm from its images.
        """
        images = self._checked(images)
        r, u = noise or self.noise(len(images), generator)
        if self.training and not self._initialized:
            self._initialize(images, r, u)
        return self._bits_per_dim(self.log_weight(images, r, u))

    def forward(
        self,
        images: Array,
        generator: torch.Generator | None = None,
        noise: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """The same as :meth:`bits_per_dim`, so that a wrapper (DDP, ``torch.compile``) can stand around it."""
        return self.bits_per_dim(images, generator, noise)

    @torch.no_grad()
    def initialize(
        self,
        images: Array,
        generator: torch.Generator | None = None,
        noise: tuple[Tensor, Tensor] | None = None,
    ) -> None:
        """Set every ActNorm from ``images [B, C, H, W]`` and ``noise`` (see :meth:`bits_per_dim`), once; later calls
        do nothing.
        """
        images = self._checked(images)
        self._initialize(images, *(noise or self.noise(len(images), generator)))

    # --- what a trained model does ---------------------------------------------------------------

    @torch.no_grad()
    def encode(self, images: Array) -> Tensor:
        """Every latent of ``images [B, C, H, W]``: z = F(E(x')) at the posterior's mean and the middle of each bin.

        Returns ``[B, d]`` in the dtype of the weights; under the prior each is N(0, 1).
        """
        return self.flow(self._latent_mean(images))[0]

    @torch.no_grad()
    def decode(self, z: Array) -> Tensor:
        """Images of latents: G(F⁻¹(z)) as uint8 ``[B, C, H, W]``, levels 0 … bins − 1.

        ``z`` is a NumPy array or a tensor ``[B, d]`` in floating point, as :meth:`encode` gives it; it is computed with
        in the dtype of the weights. Raises ``ValueError`` for another shape or dtype.
        """
        z = as_tensor(z, "latents")
        dimensions = math.prod(self.config.latent_shape)
        if z.ndim != 2 or z.shape[1] != dimensions:
            raise ValueError(f"latents of shape {tuple(z.shape)}: this model needs [B, {dimensions}]")
        if not z.is_floating_point():
            raise ValueError(f"latents of dtype {z.dtype}: this model needs floating point")
        z = z.to(self.log_sigma1)
        return likelihood.quantize(self.decoder_mean(self.flow.inverse(z)), self.config.bins)

    @torch.no_grad()
    def reconstruct(self, images: Array) -> Tensor:
        """G(E(x')): what the posterior's mean keeps of ``images [B, C, H, W]``, as uint8 of the same shape."""
        return likelihood.quantize(self.decoder_mean(self._latent_mean(images)), self.config.bins)

    @torch.no_grad()
    def sample(self, n: int, temperature: float = 1.0, generator: torch.Generator | None = None) -> Tensor:
        """``n`` images from the model: G(F⁻¹(T·u)), u ~ N(0, I), as uint8 ``[n, C, H, W]``, levels 0 … bins − 1.

        Raises ``ValueError`` where ``n`` is no integer of at least 0, or the temperature T is below 0 or NaN.
        """
        if not (isinstance(n, int) and n >= 0):
            raise ValueError(f"n={n!r}: must be an integer of at least 0")
        if not temperature >= 0:
            raise ValueError(f"temperature={temperature!r}: must be at least 0")
        u = self.noise(n, generator)[1]
        return self.decode(temperature * u.flatten(1))

    @torch.no_grad()
    def interpolate(self, first: Array, second: Array, steps: int = 8) -> Tensor:
        """Images on the line between two images' latents (the paper's figure): uint8 ``[steps, C, H, W]``.

        ``first`` and ``second`` are single images ``[C, H, W]``, each an array or a tensor; both ends are their
        reconstructions. Raises ``ValueError`` as for ``images``, and where ``steps`` is no integer of at least 1.
        """
        if not (isinstance(steps, int) and steps >= 1):
            raise ValueError(f"steps={steps!r}: must be an integer of at least 1")
        pair = []
        for name, image in (("first", as_tensor(first, "images")), ("second", as_tensor(second, "images"))):
            if tuple(image.shape) != self.config.image_shape:
                needed = ", ".join(map(str, self.config.image_shape))
                raise ValueError(f"{name} of shape {tuple(image.shape)}: this model needs one image [{needed}]")
            pair.append(self._checked(image[None]))
        ends = self.encode(torch.cat(pair))  # [2, d]
        share = torch.linspace(0, 1, steps, dtype=ends.dtype, device=ends.device)[:, None]
        return self.decode(torch.lerp(ends[:1], ends[1:], share))

    def parameter_count(self) -> int:
        """Trained numbers: ActNorm, σ's and all; buffers (permutations, flags) are not counted."""
        return sum(parameter.numel() for parameter in self.parameters() if parameter.requires_grad)

    @property
    def sigma1(self) -> float:
        """σ1 now (where a network gives it, only the part that all images share: see :meth:`mean_sigma1`)."""
        return self.log_sigma1.exp().item()

    @torch.no_grad()
    def mean_sigma1(self, images: Array) -> float:
        """Geometric mean of σ1(x') over the first of ``images [B, C, H, W]`` and their dimensions, in units of the
        latent (where d = D and there is a flow: of the range of levels); σ1 where it is a scalar.
        """
        if self.config.encoder_heads == 1:
            return self.sigma1
        images = self._checked(images)[: images_at_once(self.config)]
        return self._posterior_at_bin_middle(images)[1].mean().exp().item()

    @property
    def sigma2(self) -> float:
        """σ2 now (where a network gives it, only the part that all images share: see :meth:`mean_sigma2`)."""
        return self.log_sigma2.exp().item()

    @torch.no_grad()
    def mean_sigma2(self, images: Array) -> float:
        """Geometric mean of σ2(w) over the first of ``images [B, C, H, W]`` and their dimensions, at the posterior's
        mean, in units of the range of levels; σ2 where it is a scalar.
        """
        if self.config.decoder_heads == 1:
            return self.sigma2
        images = self._checked(images)[: images_at_once(self.config)]
        return self.observation(self._posterior_at_bin_middle(images)[0])[1].mean().exp().item()

    def _latent_mean(self, images: Array) -> Tensor:
        return self._posterior_at_bin_middle(self._checked(images))[0]

    def _checked(self, images: Array) -> Tensor:
        """``images`` on the model's device. Raises what the class says of images that do not fit."""
        images = as_tensor(images, "images")
        shape, bins = self.config.image_shape, self.config.bins
        if images.ndim != 4 or tuple(images.shape[1:]) != shape:
            needed = ", ".join(map(str, shape))
            raise ValueError(f"images of shape {tuple(images.shape)}: this model needs [B, {needed}]")
        if not len(images):
            raise ValueError("images: an empty batch")
        if images.is_floating_point() or images.is_complex() or images.dtype == torch.bool:
            raise ValueError(f"images of dtype {images.dtype}: bits/dim needs integer levels 0 … {bins - 1}")
        if images.dtype in (torch.uint16, torch.uint32, torch.uint64):
            images = images.long()  # torch computes nothing with these
        # uint8 images of a 256-level model cannot be out of range; elsewhere a look costs a device sync.
        if not (images.dtype == torch.uint8 and bins == 256) and not images.is_cuda:
            low, high = int(images.min()), int(images.max())
            if low < 0 or high >= bins:
                raise ValueError(f"images hold levels {low} … {high}: this model has bins={bins}, so 0 … {bins - 1}")
        return images.to(self.log_sigma1.device)


def build(config: ModelConfig) -> Model:
    """A new model, in training mode, its weights drawn from torch's global random state."""
    return Model(config)


def images_at_once(config: ModelConfig) -> int:
    """How many images an evaluation takes at once: 128, or fewer of more than 1,024 pixels.

    Their noise has a seed of its own, so it is a function of the images' shape alone.
    """
    return max(1, min(128, 2**17 // (config.height * config.width)))
