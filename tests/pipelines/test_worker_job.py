"""How a job on several workers ends: what its caller is told, in one line, and that nothing of it stays."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from ray.cluster_utils import Cluster

from tests.pipelines.training_cluster import HASTE, grow

JOBS = """
import dataclasses, sys, threading
import pipelines.ray_environment
from pipelines import command_line
from pipelines.ray_session import ray_session
from pipelines.storage import StorageError
from pipelines.worker_job import JobFailed, run_job
from pipelines.worker_resources import WorkerResources

def unlucky(config, events):
    events.put({"said": config})
    raise ValueError("out of luck")

def patient(config, events):
    events.put({"said": config})
    threading.Event().wait()

def refuse(event):
    raise StorageError(f"s3://bucket/{event['said']}: gone")

def main(settings):
    told = {"resources": WorkerResources(workers=2), "max_failures": 1}
    heard = []
    with ray_session(0, {}):
        try:
            run_job(unlucky, "first", name="first", on_event=heard.append, **told)
        except JobFailed as failed:
            print(failed, len(heard))
        run_job(patient, "second", name="second", on_event=refuse, **told)
    return 0

@dataclasses.dataclass
class Nothing:
    "No options."

command_line.run(main, Nothing)
"""


def test_what_ends_a_job_is_told_in_one_line_and_ends_its_workers(cluster: Cluster, tmp_path: Path) -> None:
    grow(cluster, 2)
    script = tmp_path / "jobs.py"
    script.write_text(JOBS)
    done = subprocess.run(
        [sys.executable, str(script)],
        env={**os.environ, **HASTE, "RAY_ADDRESS": cluster.address},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    (failed,) = [line for line in done.stdout.splitlines() if line.startswith("workers failed")]
    assert failed.startswith("workers failed 2 times, the last with: worker ") and "out of luck" in failed
    assert failed.endswith(" 4")  # both workers, twice
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "error: s3://bucket/second: gone"
