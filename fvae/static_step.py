"""Training step in static memory, which a GPU can replay as one CUDA graph.

A small model's step is a thousand kernels of microseconds, which a GPU finishes faster than Python launches them. As a
graph (docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs) they are launched at once.
"""

from __future__ import annotations

import contextlib
import functools
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fvae.model import Model
from fvae.train_config import TrainConfig

EAGER_STEPS = 3
"""Steps before the graph is captured, in which libraries make what they keep."""


@functools.cache
def _capture_stream(device: torch.device) -> torch.cuda.Stream:
    """One for all trainings of this process, one after another: libraries keep memory for each stream that they saw."""
    return torch.cuda.Stream(device)


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
        clip: Callable[[], Tensor],
    ) -> None:
        """
        Args:
            model: initialised, in training mode.
            parameters: those of ``model`` that are trained.
            average: the averaged weights, in their order.
            optimizer: of them, capturable, its learning rates tensors.
            config: the training's.
            dtype: of the images, an integer.
            clip: clips the gradients and returns their norm before.
        """
        self.model, self.optimizer, self.clip = model, optimizer, clip
        self.parameters: list[Any] = list(parameters)
        self.average: list[Any] = list(average)
        self.config, self.device = config, model.log_sigma1.device
        batch, like = config.batch_size, model.log_sigma1.detach()
        self.images = torch.zeros(batch, *model.config.image_shape, dtype=dtype, device=self.device)
        self.r = like.new_zeros(batch, *model.config.image_shape)
        self.u = like.new_zeros(batch, *model.config.latent_shape)
        self.weights = like.new_zeros(batch)
        """Weight of each image in the loss: 0 for the places that the last batch of an epoch leaves empty, ``[B]``."""
        self.approach = like.new_zeros(())
        """By how much of their distance the averaged weights follow the weights."""
        self.loss, self.grad_norm = like.new_zeros(()), like.new_zeros(())
        self._graph: torch.cuda.CUDAGraph | None = None
        self._eager_steps = 0
        self._impossible = False

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
        if self.device.type != "cuda" or self._impossible:
            self._step()
        elif self._graph is not None:
            self._graph.replay()
        elif self._eager_steps < EAGER_STEPS:
            self._eager_steps += 1
            stream = _capture_stream(self.device)  # not the default one, which cannot be captured
            stream.wait_stream(torch.cuda.current_stream(self.device))
            with torch.cuda.stream(stream):
                self._step()
            torch.cuda.current_stream(self.device).wait_stream(stream)
        else:
            self._capture()
            self._run()

    def _capture(self) -> None:
        """Capture the graph; where this GPU's libraries or memory do not allow it, warn, and go on without."""
        self.optimizer.zero_grad(set_to_none=True)  # the graph's gradients lie in its own memory
        graph, pool = torch.cuda.CUDAGraph(), torch.cuda.graph_pool_handle()
        before = torch.cuda.current_stream(self.device)
        # cuBLAS keeps its scratch space for each stream: left as it is, graphs that run side by side would share it.
        torch._C._cuda_clearCublasWorkspaces()
        try:
            with torch.cuda.graph(graph, pool=pool, stream=_capture_stream(self.device)):  # captured, not run
                self._step()
            self._graph = graph
        except RuntimeError as error:
            self._impossible = True
            torch.cuda.set_stream(before)
            with contextlib.suppress(RuntimeError):  # a capture that has failed leaves the allocator in its midst
                torch._C._cuda_endAllocateToPool(before.device_index, pool)
                torch._C._cuda_releasePool(before.device_index, pool)
            warnings.warn(f"no CUDA graph of a training step: {str(error).splitlines()[0]}", stacklevel=2)
        finally:
            torch._C._cuda_clearCublasWorkspaces()
        if self._impossible:
            self.optimizer.zero_grad(set_to_none=True)
            torch.cuda.empty_cache()

    def _step(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        # Weights that autocast has cast and keeps would not be cast again in a replay.
        with torch.autocast(
            self.device.type, torch.bfloat16, enabled=self.config.precision == "bf16", cache_enabled=False
        ):
            bits = self.model(self.images, noise=(self.r, self.u))
        loss = (bits * self.weights).sum()
        loss.backward()
        grad_norm = self.clip()
        self.optimizer.step()
        with torch.no_grad():
            away = torch._foreach_sub(self.parameters, self.average)
            torch._foreach_mul_(away, self.approach)
            torch._foreach_add_(self.average, away)
            self.loss.copy_(loss)
            self.grad_norm.copy_(grad_norm)
