"""What every Ray of the tests is started with: one token, and patience on a busy machine.

A process that has started a Ray of its own asks all others for its token.
"""

from __future__ import annotations

import os
import secrets

os.environ.setdefault("RAY_AUTH_MODE", "token")
os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
os.environ.setdefault("RAY_raylet_start_wait_time_s", "300")
os.environ.setdefault("RAY_agent_register_timeout_ms", "300000")
os.environ.setdefault("RAY_worker_niceness", "0")  # Ray's own, 15, leaves a worker 3% of a core beside a busy process
os.environ.setdefault("RAY_prestart_worker_first_driver", "0")  # processes that no test uses: each costs seconds
os.environ.setdefault("RAY_enable_worker_prestart", "0")
