"""Evaluation: bits/dim of every image of a split, in float32, with noise that a seed fixes."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fvae.data.images import Array, ImageSource, derived_seed, image_source
from fvae.iwae import iwae_bits_per_dim
from fvae.model import Model, images_at_once
from fvae.precision import true_float32
from fvae.workers import Workers

ALONE = Workers()


class NonFiniteError(ArithmeticError):
    """A loss, gradient or bits/dim that is NaN or infinite: the trial ends here. One line says where."""


@torch.no_grad()
def evaluate(
    model: Model,
    images: Array | ImageSource,
    *,
    k: int = 1,
    samples: int = 1,
    seed: int = 0,
    workers: Workers = ALONE,
    advance: Callable[[int], None] | None = None,
) -> Tensor:
    """Bits/dim of each image with k samples (k = 1: the ELBO; more: IWAE), float64 ``[N]`` on the CPU.

    ``images`` integer ``[N, C, H, W]``, or a source of them: the same images in the same order give the same
    figures to the bit, in memory or streamed, and on a CPU on any number of workers. Every worker gets all figures;
    the batches, each with noise of its own seed, are dealt out among them. The mean of ``samples``
    such bounds of each image is the same bound with a lower variance. ``advance`` is called with the number
    of images that this worker has just finished. Runs in float32 whatever precision trained the model.

    Raises :class:`NonFiniteError` where any image's figure is not finite: none is left out.
    """
    source = image_source(images)
    device = model.log_sigma1.device
    generator = torch.Generator(device)
    bits = torch.zeros(len(source), dtype=torch.float64, device=device)
    measured = torch.zeros(len(source), dtype=torch.int32, device=device)  # how often: once is right
    done = 0
    training = model.training
    model.eval()  # a fresh model must not take its ActNorm from images that it is measured on
    try:
        with true_float32(device.type):
            for number, batch in enumerate(source.in_order(images_at_once(model.config))):
                if number % workers.count == workers.rank:
                    generator.manual_seed(derived_seed(seed, f"batch/{number}"))
                    found = iwae_bits_per_dim(model, batch.to(device), k, generator, samples=samples)
                    bits[done : done + len(batch)] = found.double()
                    measured[done : done + len(batch)] += 1
                    if advance:
                        advance(len(batch))
                done += len(batch)
    finally:
        model.train(training)
    bits, measured = workers.all_reduce(bits).cpu(), workers.all_reduce(measured).cpu()
    if not bool((measured == 1).all()):
        raise RuntimeError(f"{int((measured != 1).sum())} of {len(bits)} images were not measured exactly once")
    require_finite(bits)
    return bits


def require_finite(bits: Tensor) -> None:
    """Raise :class:`NonFiniteError`, which names the first such image, where one of ``bits [N]`` is not finite."""
    bad = (~bits.isfinite()).nonzero().flatten()
    if len(bad):
        raise NonFiniteError(
            f"bits/dim of {len(bad)} of {len(bits)} images is not finite (image {int(bad[0])}: {float(bits[bad[0]])})"
        )


def standard_error(bits: Tensor) -> float:
    """Standard error of the mean over images, in bits/dim."""
    return float(bits.std() / len(bits) ** 0.5) if len(bits) > 1 else float("nan")
