"""The watch over training's losses and gradients."""

from __future__ import annotations

import torch
from torch import Tensor

from fvae.evaluation import NonFiniteError
from fvae.model import Model
from fvae.workers import Workers


class FiniteGuard:
    """Remembers the first step whose loss or gradient was not finite, and raises :class:`NonFiniteError` for it."""

    def __init__(self, model: Model, workers: Workers) -> None:
        self.model, self.workers = model, workers
        self.device = model.log_sigma1.device
        self._bad_step = torch.tensor(-1, device=self.device)

    def note(self, step: int, epoch: int, loss: Tensor, grad_norm: Tensor) -> None:
        """Look at a step, while its gradients are there."""
        # Workers must fail together: the gradient is the same on all of them, the loss is not.
        finite = grad_norm.isfinite() if self.workers.count > 1 else loss.isfinite() & grad_norm.isfinite()
        self._bad_step = torch.where(~finite & (self._bad_step < 0), step, self._bad_step)
        # On a CPU the look is free and the gradients are still there to name the cause;
        # on a GPU it waits for the device, so it comes now and then.
        if self.device.type == "cpu" or step % 50 == 49:
            self.check(epoch, f"loss {loss.item()}, gradient norm {grad_norm.item()}")

    def check(self, epoch: int, what: str = "the loss or its gradient is not finite") -> None:
        """Raise for what was noted up to now, during ``epoch`` (from 1)."""
        step = int(self._bad_step)
        if step < 0:
            return
        named = [(name, p if p.grad is None else p.grad) for name, p in self.model.named_parameters()]
        first = next((name for name, tensor in named if not bool(tensor.isfinite().all())), None)
        cause = f"; first non-finite in {first}" if first else ""
        raise NonFiniteError(f"step {step} (epoch {epoch}): {what}{cause}")
