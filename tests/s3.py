"""A real S3 server (moto, over HTTP) for the tests, and what processes under test need to use it."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from tests.fault_proxy import FAULTS, FaultProxy, GroupedFaultProxy, Request, only

__all__ = [
    "CREDENTIALS",
    "FAULTS",
    "IMPATIENT",
    "FaultProxy",
    "GroupedFaultProxy",
    "Request",
    "impatient_environment",
    "moto_server",
    "only",
    "set_constants",
]

CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "test-key",
    "AWS_SECRET_ACCESS_KEY": "test-secret",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_CONFIG_FILE": "/dev/null",
    "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
}

IMPATIENT = {
    "ATTEMPTS": 3,
    "PATIENCE": 0.0,
    "FIRST_WAIT": 0.002,
    "LONGEST_WAIT": 0.01,
    "CONNECT_TIMEOUT": 1.0,
    "READ_TIMEOUT": 1.0,
}
"""Constants of requests to S3 with which a dead store is known as such at once: see :func:`set_constants`."""


def set_constants(constants: Mapping[str, float], set_attribute: Callable[[Any, str, float], None] = setattr) -> None:
    """Set constants of ``pipelines.storage.s3_client`` and ``s3_retry`` by their names, in this process."""
    from pipelines.storage import s3_client, s3_retry

    for name, value in constants.items():
        set_attribute(s3_client if hasattr(s3_client, name) else s3_retry, name, value)


def impatient_environment(**constants: float) -> dict[str, str]:
    """Variables for a process to be started: it, and all that it starts, has ``IMPATIENT`` and then ``constants``.

    Python runs ``sitecustomize`` at its start; the one in ``tests/impatient`` sets them.
    """
    repository = Path(__file__).parents[1]
    return {
        "PYTHONPATH": os.pathsep.join((str(repository / "tests" / "impatient"), str(repository))),
        "TEST_S3_CONSTANTS": json.dumps({**IMPATIENT, **constants}),
    }


@contextlib.contextmanager
def moto_server(folder: Path) -> Iterator[str]:
    """The URL of a moto server in a process of its own on a free port of the loopback; ended by its id."""
    log_path = folder / "moto.log"
    with log_path.open("wb") as log:
        process = subprocess.Popen([sys.executable, "-m", "moto.server", "-p", "0"], stdout=log, stderr=log)
    try:
        yield _url_in(log_path, process)
    finally:
        process.terminate()
        process.wait()


def _url_in(log_path: Path, process: subprocess.Popen[bytes]) -> str:
    for _ in range(600):
        if found := re.search(r"Running on (http://127\.0\.0\.1:\d+)", log_path.read_text()):
            return found[1]
        if process.poll() is not None:
            break
        time.sleep(0.05)
    raise RuntimeError(f"moto's server did not start: {log_path.read_text()}")
