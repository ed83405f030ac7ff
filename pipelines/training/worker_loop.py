"""The loop of a job on one of its workers, with the errors and warnings that the driver shows."""

from __future__ import annotations

import contextlib
import logging
import socket
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from ray.exceptions import RayError

from fvae.config import ConfigError
from fvae.workers import Workers
from pipelines.cli.quantities import format_bytes
from pipelines.data.datasets import memory_bytes
from pipelines.training import main_memory
from pipelines.training.events import Events, Notice
from pipelines.training.rendezvous import have_met
from pipelines.training.train_controller import final_error, last_line
from pipelines.training.worker_warnings import LOGGER

Config = TypeVar("Config")
Result = TypeVar("Result")


def on_worker(settings: dict[str, Any]) -> Any:
    """Called by Ray Train on each worker, once the process group is there. Returns what the loop returns."""
    have_met()
    torch.set_num_threads(settings["threads"])
    return carry_out(settings["loop"], settings["config"], settings["events"])


def carry_out(loop: Callable[[Config, Events], Result], config: Config, events: Events) -> Result:
    """Run a job's loop on this worker. Returns what it returns.

    Sends a ``Notice`` for each warning of the storage, and for an error after which the workers may start again.
    Raises what the loop raises, but ``ConfigError`` for want of memory: there would be no more at the next start.
    """
    forwarding = _ForwardWarnings(events)
    LOGGER.addHandler(forwarding)
    try:
        return loop(config, events)
    except Exception as error:
        if final_error(error) is not None:
            raise
        if main_memory.ran_out(error) or isinstance(error, torch.OutOfMemoryError):
            raise ConfigError(_out_of_memory(error)) from error
        # Of several workers one meets the cause, the others that it is gone.
        rank = Workers.of_process_group().rank
        events.put(Notice(f"worker {rank}: {type(error).__name__}: {last_line(error)}"))
        raise
    finally:
        LOGGER.removeHandler(forwarding)


class _ForwardWarnings(logging.Handler):
    """Sends the storage's warnings to the driver, which has a terminal."""

    def __init__(self, events: Events) -> None:
        super().__init__(logging.WARNING)
        self._events = events

    def emit(self, record: logging.LogRecord) -> None:
        with contextlib.suppress(RayError):  # the driver is gone, and so will this worker be
            self._events.put(Notice(record.getMessage()))


def _out_of_memory(error: BaseException) -> str:
    """One line for a worker that ran out of its machine's or its card's memory."""
    rank, host = Workers.of_process_group().rank, socket.gethostname()
    what = last_line(error).partition(". ")[0][:120]
    if isinstance(error, torch.OutOfMemoryError):
        has = f"its GPU has {format_bytes(torch.cuda.mem_get_info()[1])}" if torch.cuda.is_available() else ""
    else:
        has = f"the machine has {format_bytes(memory_bytes())}"
    return (
        f"worker {rank} on {host} ran out of memory ({'; '.join(filter(None, (what, has)))}); a smaller "
        "--micro-batch-size or --checkpoint-activations needs less, and so do more workers"
    )
