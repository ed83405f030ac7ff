"""The main memory that a training needs, and whether this machine has it: before it starts, and when it ran out.

A training on a GPU is another matter: there the card's memory counts, which PyTorch itself keeps.
"""

from __future__ import annotations

import os
import re

from fvae.config import ConfigError, ModelConfig
from fvae.flops import parameters_and_flops
from fvae.memory import TrainingMemory, training_memory
from fvae.train_config import TrainConfig
from pipelines.cli.quantities import format_bytes
from pipelines.data.datasets import memory_bytes

PROCESS_BYTES = 350 * 2**20
"""What a worker's process has with PyTorch and Ray loaded, before it trains anything."""
CERTAIN_BYTES = 24
"""Per parameter, whatever the images: weight, gradient, Adam's two moments, and two averages."""
ACTIVATIONS = 5000
"""More float32 numbers than any model keeps for each pixel and channel of a batch. Where even so many fit, nothing is
counted, which takes up to a second."""
_REFUSED = re.compile(r"can't allocate memory|DefaultCPUAllocator|Cannot allocate memory|std::bad_alloc")
_RAY = re.compile(r"OutOfMemoryError|running low on memory")  # not its guess "OOM killer", which it makes of any loss


def was_in_use(room: int | None) -> str:
    """The words for a machine whose ``room`` bytes of memory were in use; None where they are not known."""
    return "its machine's memory was in use" if room is None else f"the machine's {format_bytes(room)} were in use"


def ran_out(error: BaseException | str) -> bool:
    """Whether an error says that main memory was refused, or that Ray ended a process for want of it."""
    if isinstance(error, MemoryError):
        return True
    if isinstance(error, str):
        return bool(_REFUSED.search(error) or _RAY.search(error))
    return isinstance(error, RuntimeError) and bool(_REFUSED.search(str(error)))


def lacks_room(
    model: ModelConfig, train: TrainConfig, images: int, *, checkpoint_activations: bool = False, room: int
) -> int | None:
    """Bytes that a worker needs where they are more than ``room``, the machine's; None where it fits.

    ``images``: of its forward pass.
    """
    need = _need(model, train, images, checkpoint_activations, room)
    return None if need is None or need <= room else need


def require_room(
    model: ModelConfig,
    train: TrainConfig,
    *,
    workers: int,
    micro_batch_size: int | None,
    checkpoint_activations: bool,
) -> None:
    """Raise ``ConfigError``, one line, where this machine could not hold one of ``workers`` CPU workers of a training.

    On a cluster, whose machines are others, nothing is checked.
    """
    if "RAY_ADDRESS" in os.environ:
        return
    room, share = memory_bytes(), -(-train.batch_size // workers)
    images = min(share, micro_batch_size or share)
    need = lacks_room(model, train, images, checkpoint_activations=checkpoint_activations, room=room)
    if need is None:
        return
    advice = "choose a smaller model, or a machine with more memory"
    smaller = images
    while smaller > 1:
        smaller //= 2
        if lacks_room(model, train, smaller, checkpoint_activations=True, room=room) is None:
            advice = f"--micro-batch-size {smaller} with --checkpoint-activations fits"
            break
    raise ConfigError(
        f"this model does not fit: each worker needs {format_bytes(need)} of memory to train it, and this machine has "
        f"{format_bytes(room)}; {advice}"
    )


def why_it_ran_out(model: ModelConfig, train: TrainConfig, images: int, room: int | None, *, crowded: bool) -> str:
    """One line for a trial that ran out of main memory: what it needs, what there is, and what would do.

    ``images``: of its forward pass. ``room``: bytes of its machine; None where they are not known. ``crowded``: other
    trials ran beside it.
    """
    memory = training_memory(model, images, precision=train.precision, validation_samples=train.validation_samples)
    advice = (
        "the same command tries it again, and --concurrent 1 leaves it more"
        if crowded
        else "a machine with more memory may hold it, and --max-memory leaves such models out"
    )
    need = format_bytes(_of_process(memory))
    return f"out of memory: its process needs about {need}, and {was_in_use(room)}; {advice}"


def does_not_fit(need: int, room: int) -> str:
    """One line for a trial that does not start, as it needs more memory than the machine has."""
    return (
        f"out of memory: its process needs {format_bytes(need)}, and the machine has {format_bytes(room)}; leave such "
        "models out with --max-memory, or search on a machine with more memory"
    )


def _need(model: ModelConfig, train: TrainConfig, images: int, checkpoint_activations: bool, room: int) -> int | None:
    parameters = parameters_and_flops(model)[0]
    pixels = images * model.channels * model.height * model.width
    if PROCESS_BYTES + CERTAIN_BYTES * parameters + 4 * ACTIVATIONS * pixels < room:
        return None
    memory = training_memory(
        model,
        images,
        precision=train.precision,
        checkpoint_activations=checkpoint_activations,
        validation_samples=train.validation_samples,
    )
    return _of_process(memory)


def _of_process(memory: TrainingMemory) -> int:
    return PROCESS_BYTES + memory.total
