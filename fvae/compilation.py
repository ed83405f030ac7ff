"""``torch.compile`` of a model's repeated layers: always, or where a training's own epochs become shorter by it.

Compiling takes tens of seconds and fuses what a GPU otherwise runs as many small kernels. What that is worth depends on
the model, the precision and the card, so no rule says it beforehand.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from fvae.activation_checkpointing import RecomputableLayer

MOST_SHAPES = 64
"""Shapes for which a kind of layer is compiled in one process. By default there are 8, beyond which layers run
uncompiled: fewer than a model of several levels has with an epoch's last, smaller batch, or two models together."""
WORTH_SECONDS = 300.0
"""Seconds of training that must be left: compiling costs about a tenth of that, and must pay for itself."""
WARM_EPOCHS = 1
"""Epochs of each kind that are not measured: libraries load, graphs are captured, layers are compiled."""


class MeasuredCompilation:
    """Compiles a model's layers where enough training is left, and undoes it where epochs become no shorter."""

    def __init__(self, model: nn.Module, backend: str | Callable[..., Any] = "inductor") -> None:
        """``backend``: the backend of ``torch.compile``."""
        self.model, self.backend = model, backend
        self.compiled = False
        """Whether the layers are compiled now."""
        self._decided = False
        self._epochs = 0  # of the layers as they are now
        self._uncompiled_seconds = 0.0  # of an epoch

    def after_epoch(self, seconds: float, epochs_left: int) -> bool:
        """Take an epoch's ``seconds`` into account: compile, or undo it. Returns whether the layers have changed."""
        self._epochs += 1
        if self._decided or self._epochs <= WARM_EPOCHS:
            return False
        if self.compiled:
            self._decided = True
            if seconds < self._uncompiled_seconds:
                return False
            uncompile_layers(self.model)
        elif seconds * epochs_left < WORTH_SECONDS:
            return False
        else:
            self._uncompiled_seconds, self._epochs = seconds, 0
            # Where a machine has no compiler, layers run as they are, and the next measurement says so.
            torch._dynamo.config.suppress_errors = True
            from torch._inductor import config as inductor  # it takes a second, and few trainings need it

            # By default up to 32 processes compile, of every trial on the machine.
            inductor.compile_threads = torch.get_num_threads()
            compile_layers(self.model, backend=self.backend)
        self.compiled = not self.compiled
        return True


def compile_layers(module: nn.Module, **options: Any) -> None:
    """Compile what every :class:`RecomputableLayer` in ``module`` computes: ``torch.compile(**options)``, in place.

    Layers of one kind share their code, so that what is compiled for one serves all of its shape; a whole model takes
    as many times longer as it has layers. Shapes are compiled as they are: a training has few.
    """
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, MOST_SHAPES)
    for layer in module.modules():
        if isinstance(layer, RecomputableLayer):
            layer.compute = torch.compile(layer.compute, dynamic=False, **options)  # type: ignore[method-assign]


def uncompile_layers(module: nn.Module) -> None:
    """Undo :func:`compile_layers`."""
    for layer in module.modules():
        if isinstance(layer, RecomputableLayer):
            layer.__dict__.pop("compute", None)  # the class's own method is used again
