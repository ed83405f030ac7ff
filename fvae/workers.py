"""Workers: the processes of ``torch.distributed`` that train or evaluate one model together."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import torch
import torch.distributed as distributed
from torch import Tensor

from fvae.config import require


def share(count: int, worker: int, workers: int) -> tuple[int, int]:
    """Begin and end of one worker's contiguous part of ``count`` things; the first ones take what is left over."""
    size, extra = divmod(count, workers)
    begin = worker * size + min(worker, extra)
    return begin, begin + size + (worker < extra)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Workers:
    """How many processes share the work, and which this one is.

    Where there are several, every one calls the same methods in the same order: each waits for the others.
    Raises ``ConfigError`` unless ``rank`` is one of ``count``.
    """

    rank: int = 0
    """The number of this process, from 0. Worker 0 writes."""
    count: int = 1
    """The number of processes."""

    def __post_init__(self) -> None:
        require(0 <= self.rank < self.count, f"rank={self.rank}: must be from 0 to count − 1 = {self.count - 1}")

    @classmethod
    def of_process_group(cls) -> Workers:
        """Those of ``torch.distributed``'s process group; this process alone where there is none."""
        if not (distributed.is_available() and distributed.is_initialized()):
            return cls()
        return cls(rank=distributed.get_rank(), count=distributed.get_world_size())

    def all_reduce(self, tensor: Tensor) -> Tensor:
        """Replace ``tensor``, which every worker has in the same shape, by its sum over the workers; return it."""
        if self.count > 1:
            distributed.all_reduce(tensor)
        return tensor

    @torch.no_grad()
    def broadcast(self, tensors: Iterable[Tensor]) -> None:
        """Replace the tensors, of any dtype, by those of worker 0."""
        if self.count == 1:
            return
        for tensor in tensors:
            sent = tensor.to(torch.uint8) if tensor.dtype == torch.bool else tensor.contiguous()
            distributed.broadcast(sent, src=0)
            tensor.copy_(sent)
