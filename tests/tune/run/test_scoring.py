"""The line that a reading of the test split leaves where its process was lost."""

from __future__ import annotations

import re

import pytest
from ray.exceptions import OutOfMemoryError, RayTaskError, WorkerCrashedError

from tune.run import scoring

pytestmark = pytest.mark.core


def test_a_reading_that_is_lost_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    ray_says = "Task was killed due to the node running low on memory.\n" + "Refer to the documentation.\n" * 20
    line = scoring._why_lost(OutOfMemoryError(ray_says))
    assert re.fullmatch(
        r"out of memory: the machine's [\d.]+ GiB were in use; .* --concurrent 1 reads one by one", line
    )
    monkeypatch.setenv("RAY_ADDRESS", "auto")  # the driver's memory is not that of the process
    line = scoring._why_lost(OutOfMemoryError(ray_says))
    assert line.startswith("out of memory: its machine's memory was in use; ")
    line = scoring._why_lost(WorkerCrashedError())
    assert line.startswith("its process was lost (") and line.endswith("); the same command goes on")
    assert "\n" not in line


def test_an_error_of_a_reading_is_no_lost_process() -> None:
    raised = RayTaskError("read_test_split", "Traceback …\nValueError: no such image", ValueError("no such image"))
    assert scoring._why_lost(raised) == "ValueError: no such image; the same command tries it again"
