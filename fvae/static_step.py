"""A training step that reads and writes the same memory every time, so that a GPU can replay it as one CUDA graph.

A small model's step is a thousand kernels of microseconds, which a GPU finishes faster than Python launches them. As a
graph (docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs) they are launched at once.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fvae.model import Model
from fvae.train_config import TrainConfig

EAGER_STEPS = 3
"""Steps before the graph is captured, in which libraries make what they keep."""


class StaticStep:
    """Forward, backward, clipping, optimizer and average of a training on one device, in static memory.

    On a CPU, which knows no graphs, it runs as it is: the same operations on the same memory.
    """

    def __init__(
        self,
        model: Model,
        parameters: Sequence[nn.Parameter],
        average: Sequence[Tensor],
        optimizer: torch.optim.Optimizer,
        config: TrainConfig,
        dtype: torch.dtype,
    ) -> None:
        """
        Args:
            model: initialised, in training mode.
            parameters: those of ``model`` that are trained.
            average: the averaged weights, in their order.
            optimizer: of them, capturable, its learning rates tensors.
            config: the training's.
            dtype: of the images, an integer.
        """
        self.model, self.optimizer = model, optimizer
        self.parameters: list[Any] = list(parameters)
        self.average: list[Any] = list(average)
        self.config, self.device = config, model.log_sigma1.device
        batch, like = config.batch_size, model.log_sigma1.detach()
        self.images = torch.zeros(batch, *model.config.image_shape, dtype=dtype, device=self.device)
        self.r = like.new_zeros(batch, *model.config.image_shape)
        self.u = like.new_zeros(batch, *model.config.latent_shape)
        self.weights = like.new_zeros(batch)
        """Of each image in the loss: 0 for the places that the last batch of an epoch leaves empty, ``[B]``."""
        self.approach = like.new_zeros(())
        """By how much of their distance the averaged weights follow the weights."""
        self.loss, self.grad_norm = like.new_zeros(()), like.new_zeros(())
        self._graph: torch.cuda.CUDAGraph | None = None
        self._eager_steps = 0

    def run(
        self, images: Tensor, noise: tuple[Tensor, Tensor], rates: Sequence[float], ema_decay: float
    ) -> tuple[Tensor, Tensor]:
        """One step.

        Args:
            images: integer ``[b, C, H, W]`` on the device, at most a whole batch.
            noise: for them, as :meth:`Model.noise` gives it.
            rates: learning rates of the optimizer's groups.
            ema_decay: of the averaged weights.

        Returns the mean bits/dim and the gradient's norm before clipping, scalars.
        """
        count = len(images)
        self.images[:count].copy_(images, non_blocking=True)
        self.r[:count].copy_(noise[0])
        self.u[:count].copy_(noise[1])
        self.weights[:count].fill_(1 / count)
        self.weights[count:].zero_()
        self.approach.fill_(1 - ema_decay)
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            group["lr"].fill_(rate)
        self._run()
        return self.loss.clone(), self.grad_norm.clone()

    def _run(self) -> None:
        if self.device.type != "cuda":
            self._step()
        elif self._graph is not None:
            self._graph.replay()
        elif self._eager_steps < EAGER_STEPS:
            self._eager_steps += 1
            stream = torch.cuda.Stream(self.device)
            stream.wait_stream(torch.cuda.current_stream(self.device))
            with torch.cuda.stream(stream):  # not the default one, which cannot be captured
                self._step()
            torch.cuda.current_stream(self.device).wait_stream(stream)
        else:
            self._capture()
            self._run()

    def _capture(self) -> None:
        """Make the graph; where this GPU's libraries do not let it, say so, and go on without."""
        self.optimizer.zero_grad(set_to_none=True)  # the graph's gradients lie in its own memory
        torch.cuda.empty_cache()  # what the first steps took, the graph takes again
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):  # captured, not run
                self._step()
            self._graph = graph
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            warnings.warn(f"no CUDA graph of a training step: {str(error).splitlines()[0]}", stacklevel=2)
            self._eager_steps = -sys.maxsize

    def _step(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        # Weights that autocast has cast and keeps would not be cast again in a replay.
        with torch.autocast(
            self.device.type, torch.bfloat16, enabled=self.config.precision == "bf16", cache_enabled=False
        ):
            bits = self.model(self.images, noise=(self.r, self.u))
        loss = (bits * self.weights).sum()
        loss.backward()
        grad_norm = nn.utils.clip_grad_norm_(self.parameters, self.config.gradient_clip, foreach=True)
        self.optimizer.step()
        with torch.no_grad():
            away = torch._foreach_sub(self.parameters, self.average)
            torch._foreach_mul_(away, self.approach)
            torch._foreach_add_(self.average, away)
            self.loss.copy_(loss)
            self.grad_norm.copy_(grad_norm)
