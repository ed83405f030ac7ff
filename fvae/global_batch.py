"""Gradient of one global batch, shared by any number of workers (DDP) and split into micro-batches."""

from __future__ import annotations

import contextlib
import warnings

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from fvae.model import Model
from fvae.train_config import Precision
from fvae.workers import Workers, share

Noise = tuple[Tensor, Tensor]


class GlobalBatch:
    """Computes the gradient of the mean bits/dim of global batches, and leaves it in the model's parameters.

    A global batch is a property of the training, not of the cluster: each worker takes its share of the images
    *and of the one noise that all of them draw*, goes through it in micro-batches, and the gradients are added up
    once. So it is the same gradient on any number of workers, up to the order in which numbers are added.
    """

    def __init__(self, model: Model, *, workers: Workers, micro_batch_size: int | None, precision: Precision) -> None:
        """``model`` must be as it is to be trained: initialised, and the same on all workers."""
        self.workers, self.micro_batch_size, self.precision = workers, micro_batch_size, precision
        self.config, self.device = model.config, model.log_sigma1.device
        self._parallel: DistributedDataParallel | None = None
        forward: nn.Module = model
        if workers.count > 1:
            with warnings.catch_warnings():
                # From torch 2.13 on this option has another name, which earlier versions do not know.
                warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
                forward = self._parallel = DistributedDataParallel(
                    model,
                    device_ids=[self.device] if self.device.type == "cuda" else None,
                    broadcast_buffers=False,  # they are constants
                    gradient_as_bucket_view=True,
                )
        self._forward = forward

    def backward(self, images: Tensor, noise: Noise, count: int) -> Tensor:
        """Add the gradient of the global batch's mean bits/dim to the parameters'.

        Args:
            images: this worker's share, integer ``[B, C, H, W]``; may be empty.
            noise: of the whole global batch, as :meth:`Model.noise` gives it.
            count: images of the global batch.

        Returns this worker's part of the mean bits/dim: a scalar; the sum over the workers is the mean.
        """
        begin, end = share(count, self.workers.rank, self.workers.count)
        images, (r, u) = images, (each[begin:end] for each in noise)
        weight = 1 / count
        if not len(images):  # the others wait for this worker's gradient: of any image, times nothing
            images = images.new_zeros(1, *self.config.image_shape)
            r, u = (each[:1] for each in noise)
            weight = 0.0
        size = self.micro_batch_size or len(images)
        parts = list(zip(images.split(size), r.split(size), u.split(size), strict=True))
        total = torch.zeros((), device=self.device)
        for number, (part, *part_noise) in enumerate(parts):
            with self._adding_up(last=number == len(parts) - 1):
                with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
                    loss = self._forward(part, noise=part_noise).sum() * weight
                (loss * self.workers.count).backward()  # DDP averages over the workers
            total += loss.detach()
        return total

    def _adding_up(self, *, last: bool) -> contextlib.AbstractContextManager[object]:
        """Gradients travel once, with the last micro-batch."""
        return contextlib.nullcontext() if last or self._parallel is None else self._parallel.no_sync()
