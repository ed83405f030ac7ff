"""The batches of a training, in the order that its seed fixes: each worker's share, moved to its device."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from fvae.data.images import ImageSource, steps_per_epoch
from fvae.train_config import TrainConfig
from fvae.workers import Workers


class TrainingBatches:
    """One worker's shares of the global batches of all epochs, by the number of the optimizer step, from 0."""

    def __init__(self, images: ImageSource, config: TrainConfig, workers: Workers, device: torch.device) -> None:
        self._images, self._config, self._device = images, config, device
        self._share = images.for_worker(workers.rank, workers.count)
        self.per_epoch = steps_per_epoch(len(images), config.batch_size)
        """Global batches, and so optimizer steps, in an epoch."""
        self._batches: Iterator[Tensor] = iter(())
        self._next_step: int | None = None  # the step whose batch comes next

    def share(self, step: int) -> Tensor:
        """This worker's share of a step's global batch, integer ``[B, C, H, W]`` on the device."""
        if self._next_step != step:
            epoch, start = divmod(step, self.per_epoch)
            # Every epoch that is left in one iterator: a streamed source reads ahead across their borders.
            self._batches = self._share.batches(
                seed=self._config.seed,
                epoch=epoch,
                batch_size=self._config.batch_size,
                start=start,
                epochs=self._config.epochs - epoch,
            )
        self._next_step = None  # unless a batch comes, the next call begins anew
        batch = next(self._batches)
        self._next_step = step + 1
        if self._device.type == "cuda" and not batch.is_cuda:
            batch = batch.pin_memory()
        return batch.to(self._device, non_blocking=True)

    def first_whole(self) -> Tensor:
        """The whole first global batch, integer ``[B, C, H, W]`` on the device."""
        whole = self._images.for_worker(0, 1)
        first = whole.batches(seed=self._config.seed, epoch=0, batch_size=self._config.batch_size)
        return next(first).to(self._device)

    def count(self, step: int) -> int:
        """Images of a step's global batch."""
        position = step % self.per_epoch
        return min(self._config.batch_size, len(self._images) - position * self._config.batch_size)

    def images_before(self, step: int) -> int:
        """Images of all global batches before a step's."""
        epochs, position = divmod(step, self.per_epoch)
        return epochs * len(self._images) + position * self._config.batch_size

    def release(self) -> None:
        """Give up the memory that a streamed source reads ahead into."""
        self._batches = iter(())
