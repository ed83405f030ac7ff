"""How long processes that train together wait for one another: briefly to meet, long once they have met."""

from __future__ import annotations

import datetime

import torch.distributed as distributed
from torch.distributed.distributed_c10d import _get_default_store, _set_pg_timeout

MEETING = datetime.timedelta(minutes=2)
"""How long they wait to meet: a process that is not there by then does not come."""
TOGETHER = datetime.timedelta(minutes=30)
"""How long they wait for one another afterwards: longer than the first may try to write a checkpoint to a store that
is down. One that dies is noticed at once, by the process that has started it."""


def have_met() -> None:
    """Let every process, once the group is there, wait for the others for :data:`TOGETHER`."""
    if distributed.is_initialized():
        _set_pg_timeout(TOGETHER, distributed.group.WORLD)
        _get_default_store().set_timeout(TOGETHER)  # NCCL meets there at its first collective, gloo for a new group
