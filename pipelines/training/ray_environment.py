"""Environment variables of Ray and Tune, set before they are imported (MLflow's: ``pipelines.tracking.tracker``).

Usage statistics are disabled, and nothing prints into the live table. A variable that the user has set stays.
"""

from __future__ import annotations

import os
from pathlib import Path

START_SECONDS = 30
"""How long Train waits for Ray to find room for a group of workers before it takes the request back and asks again:
Ray may leave one pending for ever whose machine was lost and has come back."""

DEFAULTS = {
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": str(START_SECONDS),
    # From one poll of Train's workers to the next. It collects one report of an epoch at each, so that epochs shorter
    # than this wait for it (benchmarks/workers_report.py).
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.25",
    "RAY_USAGE_STATS_ENABLED": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # Tune's CSV, JSON and TensorBoard copies of the ledger
    "RAY_AIR_NEW_OUTPUT": "0",  # Tune's own progress tables
    "TUNE_FORCE_TRIAL_CLEANUP_S": "60",  # at a search's end, for epochs under way, which count for nothing
}
PASSED_ON = ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_REGION", "AWS_DEFAULT_REGION")
"""Variables that a cluster's processes get from here, so that they find the same store. Never credentials, which
would then stand in the cluster's own records: each node has its role, or its own settings."""

for _name, _value in DEFAULTS.items():
    os.environ.setdefault(_name, _value)

_root = str(Path(__file__).parents[2])
if os.environ.get("PYTHONPATH", "").split(os.pathsep)[0] != _root:
    # The processes of a Ray on this machine import this very code, wherever the command was called from.
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [_root, os.environ.get("PYTHONPATH")]))
