"""Requests to S3: one loop of retries around every request, with a log line for each retry."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import TypeVar

import tenacity

from pipelines.storage.concurrency import CancelledError, cancellation
from pipelines.storage.s3_errors import FAILURES, cause, is_transient, storage_error

T = TypeVar("T")

log = logging.getLogger("pipelines.storage")

ATTEMPTS = 5
PATIENCE = 150.0
"""A request is given up after ``ATTEMPTS`` attempts *and* ``PATIENCE`` seconds."""
FIRST_WAIT = 0.5
LONGEST_WAIT = 20.0
"""Waits are random up to ``FIRST_WAIT``, doubling to ``LONGEST_WAIT``, in seconds."""


def request(operation: str, uri: str, call: Callable[[], T], *, anonymous: bool = False) -> T:
    """The result of ``call()``, which is repeated while the store fails for a moment.

    Raises ``FileNotFoundError`` (no such object), ``ConfigError`` (no such bucket, refused credentials),
    ``FileExistsError`` (a condition on the object did not hold) or ``StorageError`` (all else, after the last retry).
    """
    started = time.monotonic()
    cancelled = cancellation()
    attempts = tenacity.Retrying(
        retry=tenacity.retry_if_exception(is_transient),
        wait=tenacity.wait_random_exponential(multiplier=FIRST_WAIT, max=LONGEST_WAIT),
        stop=tenacity.stop_all(tenacity.stop_after_attempt(ATTEMPTS), tenacity.stop_after_delay(PATIENCE)),
        sleep=time.sleep if cancelled is None else partial(_sleep, cancelled),
        before_sleep=lambda state: _log_retry(operation, uri, state),
        reraise=True,
    )
    try:
        return attempts(call)
    except FAILURES as error:
        tried = attempts.statistics.get("attempt_number", 1)
        raise storage_error(error, operation, uri, tried, time.monotonic() - started, anonymous) from error


def _sleep(cancelled: threading.Event, seconds: float) -> None:
    if cancelled.wait(seconds):
        raise CancelledError("given up, as its result is no longer needed")


def _log_retry(operation: str, uri: str, state: tenacity.RetryCallState) -> None:
    error = state.outcome.exception() if state.outcome else None
    wait_seconds = state.next_action.sleep if state.next_action else 0.0
    log.warning("%s %s: attempt %d failed: %s; again in %.1f s", operation, uri, state.attempt_number,
                cause(error), wait_seconds)  # fmt: skip
