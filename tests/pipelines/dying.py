"""For scripts that are killed at a set moment: SIGKILL before or after the N-th call of a method."""

from __future__ import annotations

import os
import pathlib
import signal
from typing import Any, Literal

from pipelines.tracking import quiet_mlflow

quiet_mlflow()

from mlflow import MlflowClient  # noqa: E402
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore  # noqa: E402

OWNERS = {"client": MlflowClient, "store": SqlAlchemyStore, "path": pathlib.Path}


def die_at(owner: str, name: str, call: int, when: Literal["before", "after"]) -> None:
    """From now on the ``call``-th call of the method ``name`` of one of ``OWNERS`` ends this process."""
    original, calls = getattr(OWNERS[owner], name), []

    def dying(*args: Any, **kwargs: Any) -> Any:
        calls.append(None)
        if len(calls) == call and when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        result = original(*args, **kwargs)
        if len(calls) == call:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(OWNERS[owner], name, dying)
