"""Shortens the waits of requests to S3 in a process under test: see ``tests.s3.impatient_environment``."""

from __future__ import annotations

import json
import os

from tests.s3 import set_constants

set_constants(json.loads(os.environ["TEST_S3_CONSTANTS"]))
