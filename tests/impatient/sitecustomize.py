"""Shortens the waits of requests to S3 in a process under test: see ``tests.s3.impatient_environment``."""

from __future__ import annotations

import json
import os

from pipelines.storage import s3_retry as s3_requests

for _name, _value in json.loads(os.environ["TEST_S3_CONSTANTS"]).items():
    setattr(s3_requests, _name, _value)
