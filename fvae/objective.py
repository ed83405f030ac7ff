"""The objective of all three families, the ELBO in true bits/dim (arXiv 1809.05861, §3), and the parts that give it.

    −ELBO(x') = E_u[½‖z‖² − ½‖u‖² − log|det ∂F_x/∂u|] + E_u[‖x' − G(w)‖²/(2σ2²)] + D log σ2 + (D/2) log 2π

with w = σ1⊙u + E(x') and z = F(w). The families choose the parts:

    vae    E and G networks, F the identity, σ1 and σ2 trained
    flow   E and G the identity, σ1 = σ2 fixed: every σ term cancels
    fvae   E and G networks, F a flow, σ1 and σ2 trained

σ1 and σ2 are each a scalar or a network's output: σ1(x') is a second output of E, σ2(w) one of G. A discretized
likelihood puts Σ log P(x|w), a probability of levels, in the place of the Gaussian's density of x'.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fvae import likelihood
from fvae.config import ModelConfig
from fvae.dequantization import VariationalDequantization
from fvae.flow import IdentityFlow, MultiScaleFlow
from fvae.networks import Decoder, Encoder


class ELBOTerms(NamedTuple):
    """One-sample ELBO of images, in nats per image, each ``[B]``."""

    prior: Tensor
    """log N(z; 0, I)."""
    posterior: Tensor
    """log N(u; 0, I)."""
    log_det: Tensor
    """log|det ∂F_x/∂u|, with the log σ1 of every latent dimension."""
    reconstruction: Tensor
    """log N(x'; G(w), σ2² I), or log P(x|G(w), σ2) of a discretized likelihood."""

    @property
    def elbo(self) -> Tensor:
        """The bound on log p(x'), or on log P(x) of a discretized likelihood, ``[B]``."""
        return self.prior - self.posterior + self.log_det + self.reconstruction

    def elbo_with_kl_weight(self, weight: Tensor) -> Tensor:
        """:attr:`elbo` in value, ``[B]``; in its gradient the KL divergence of q(w|x) from p(w) counts ``weight``
        times.
        """
        negative_kl = self.prior - self.posterior + self.log_det
        return torch.lerp(negative_kl.detach(), negative_kl, weight) + self.reconstruction


class Objective(nn.Module):
    """E, G, F and the scales σ1 and σ2 of a model, and its ELBO on images that are tensors on its device.

    :class:`fvae.model.Model` adds what takes images of any origin, and what a trained model can do.
    """

    kl_weight: Tensor | None
    """Weight of the KL divergence in the gradient, a scalar, where a training warms it up; not saved with the model."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        sizes = {"levels": config.encoder_levels, "blocks": config.encoder_blocks, "width": config.encoder_width}
        log_sigma1 = torch.tensor(_log(config.sigma1_init), dtype=torch.get_default_dtype())
        log_sigma2 = torch.tensor(math.log(config.sigma2_init), dtype=torch.get_default_dtype())
        self.flow: MultiScaleFlow | IdentityFlow
        if config.has_flow:
            self.flow = MultiScaleFlow(
                config.latent_shape,
                levels=config.flow_levels,
                depth=config.flow_depth,
                width=config.coupling_width,
                coupling=config.coupling,
                mixing=config.mixing,
                split_mixing=config.split_mixing,
            )
        else:
            self.flow = IdentityFlow(config.latent_shape)
        self.encoder: Encoder | None = None
        self.decoder: Decoder | None = None
        if config.has_encoder:
            image, latent = config.image_shape, config.latent_shape
            self.encoder = Encoder(image, latent, **sizes, heads=config.encoder_heads)
            self.decoder = Decoder(image, latent, **sizes, heads=config.decoder_heads)
            self.log_sigma1 = nn.Parameter(log_sigma1)
            self.log_sigma2 = nn.Parameter(log_sigma2)
        else:
            self.register_buffer("log_sigma1", log_sigma1)
            self.register_buffer("log_sigma2", log_sigma1.clone())
        self.dequantization: VariationalDequantization | None = None
        if config.dequantization == "variational":
            self.dequantization = VariationalDequantization(config.channels, config.dequantization_width)
        self.register_buffer("kl_weight", None, persistent=False)
        self.most_images_at_once: int | None = None
        """Images that an evaluation takes at once, where a GPU's memory has once not held more."""
        self._initialized = not config.has_flow

    def posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean E(x') and log-scale log σ1 of w given dequantized ``x [B, C, H, W]``.

        The mean has w's shape; the log-scale is a scalar, or has w's shape where a network gives it.
        """
        if self.encoder is None:
            return x, self.log_sigma1
        mean, *rest = self.encoder(x)
        return mean, self.log_sigma1 + rest[0] if rest else self.log_sigma1

    def observation(self, w: Tensor) -> tuple[Tensor, Tensor]:
        """Mean G(w) ``[B, C, H, W]`` and log-scale log σ2 of p(x'|w): a scalar, or ``[B, C, H, W]`` from a network."""
        if self.decoder is None:
            return w, self.log_sigma2
        mean, *rest = self.decoder(w).chunk(self.config.decoder_heads, dim=1)
        return mean, self.log_sigma2 + rest[0] if rest else self.log_sigma2

    def decoder_mean(self, w: Tensor) -> Tensor:
        """G(w): the mean of p(x'|w), ``[B, C, H, W]``."""
        return self.observation(w)[0]

    def elbo_terms(self, x: Tensor, u: Tensor) -> ELBOTerms:
        """The objective's terms for dequantized ``x [B, C, H, W]`` and ``u ~ N(0, I)`` of w's shape.

        For a discretized likelihood ``x`` is the middle of each level's bin.
        """
        if not (self.config.has_encoder or self.config.sigma1_init):
            return self._elbo_terms_without_noise(x)
        mean, log_sigma1 = self.posterior(x)
        w = torch.addcmul(mean, u, log_sigma1.exp())  # [B, *latent_shape]
        z, flow_log_det = self.flow(w)
        per_image = u.numel() // len(u)
        shared = log_sigma1.ndim == 0
        sigma_log_det = per_image * log_sigma1 if shared else likelihood.sum_per_image(log_sigma1)
        return ELBOTerms(
            prior=likelihood.standard_normal_log_prob(z),
            posterior=likelihood.standard_normal_log_prob(u),
            log_det=flow_log_det + sigma_log_det,
            reconstruction=self._reconstruction(x, w),
        )

    def _reconstruction(self, x: Tensor, w: Tensor) -> Tensor:
        """log p(x'|w) or log P(x|w), nats ``[B]``."""
        mean, log_sigma2 = self.observation(w)
        if self.config.likelihood == "discretized":
            bins = self.config.bins
            levels = torch.round((x + 0.5) * bins - 0.5)
            log_scale = log_sigma2 + math.log(bins)
            return likelihood.sum_per_image(likelihood.bin_log_prob(levels, (mean + 0.5) * bins - 0.5, log_scale, bins))
        residual = (x - mean) * torch.exp(-log_sigma2)
        shared = log_sigma2.ndim == 0
        sigma_log_det = self.config.dimensions * log_sigma2 if shared else likelihood.sum_per_image(log_sigma2)
        return likelihood.standard_normal_log_prob(residual) - sigma_log_det

    def _elbo_terms_without_noise(self, x: Tensor) -> ELBOTerms:
        """A flow's with σ = 0: what σ and u give the other terms cancels at any σ, and has no value at 0."""
        z, log_det = self.flow(x)
        nothing = z.new_zeros(len(z))
        return ELBOTerms(likelihood.standard_normal_log_prob(z), nothing, log_det, nothing)

    def noise(self, count: int, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Fresh ``r ~ U[0, 1)`` ``[count, C, H, W]`` and ``u ~ N(0, I)`` ``[count, *latent_shape]``.

        A discretized likelihood dequantizes nothing: r is ½, the middle of the bin.
        """
        like = self.log_sigma1
        if self.config.likelihood == "discretized":
            r = like.new_full((1,), 0.5).expand(count, *self.config.image_shape)
        else:
            r = torch.rand(count, *self.config.image_shape, generator=generator, dtype=like.dtype, device=like.device)
        u = torch.randn(count, *self.config.latent_shape, generator=generator, dtype=like.dtype, device=like.device)
        return r, u

    def log_weight(self, images: Tensor, r: Tensor, u: Tensor) -> Tensor:
        """log of the importance weight of one sample: an unbiased estimate of the ELBO of ``images``, nats ``[B]``.

        ``images`` are a tensor of levels on the model's device, ``r`` and ``u`` as :meth:`noise` gives them. The
        density is that of x', or the probability of the levels where the likelihood is discretized.
        """
        x, dequantization_log_det = self._dequantized(images, r)
        terms = self.elbo_terms(x, u)
        elbo = terms.elbo if self.kl_weight is None else terms.elbo_with_kl_weight(self.kl_weight)
        return elbo if dequantization_log_det is None else elbo + dequantization_log_det

    def _dequantized(self, images: Tensor, r: Tensor) -> tuple[Tensor, Tensor | None]:
        """x' ``[B, C, H, W]`` from levels and r; log|det ∂r/∂r₀| ``[B]`` where variational dequantization changes r."""
        if self.config.likelihood == "discretized":
            return self._bin_middle(images), None
        log_det = None
        if self.dequantization is not None:
            r, log_det = self.dequantization(self._bin_middle(images), r)
        return likelihood.dequantize(images, self.config.bins, r), log_det

    def _bits_per_dim(self, log_likelihood: Tensor) -> Tensor:
        bins = 1 if self.config.likelihood == "discretized" else self.config.bins
        return likelihood.bits_per_dim(log_likelihood, self.config.dimensions, bins)

    def _posterior_at_bin_middle(self, images: Tensor) -> tuple[Tensor, Tensor]:
        return self.posterior(self._bin_middle(images))

    def _bin_middle(self, images: Tensor) -> Tensor:
        middle = torch.full(images.shape, 0.5, dtype=self.log_sigma1.dtype, device=self.log_sigma1.device)
        return likelihood.dequantize(images, self.config.bins, middle)

    @torch.no_grad()
    def _initialize(self, images: Tensor, r: Tensor, u: Tensor) -> None:
        mean, log_sigma1 = self.posterior(self._dequantized(images, r)[0])
        self.flow.initialize(torch.addcmul(mean, u, log_sigma1.exp()))
        self._initialized = True

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Load a state, which also says whether ActNorm is set: it is checked now, and not in each forward."""
        result = super().load_state_dict(*args, **kwargs)
        self.check_actnorm()
        return result

    def check_actnorm(self) -> None:
        """Check whether the flow's ActNorm is set, after its state was loaded."""
        self._initialized = self.flow.initialized


def _log(scale: float) -> float:
    """log σ; −∞ for a flow without noise."""
    return math.log(scale) if scale else -math.inf
