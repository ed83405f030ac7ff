"""Whether MLflow's server answers, and whether it knows its user admin."""

from __future__ import annotations

import base64
import urllib.error
import urllib.request

from pipelines.services.secret_files import ADMIN

_PATIENCE = 10.0
"""Seconds until it must answer."""
_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # it is on this machine


def answers(url: str) -> bool:
    """Whether the server at ``url`` says that it is well."""
    try:
        with _DIRECT.open(f"{url}/health", timeout=_PATIENCE) as answer:
            return answer.status == 200
    except OSError:
        return False


def knows_admin(url: str, password: str) -> bool:
    """Whether ``password`` is that of the server's user admin. Raises ``OSError`` where it does not answer."""
    token = base64.b64encode(f"{ADMIN}:{password}".encode()).decode()
    request = urllib.request.Request(
        f"{url}/api/2.0/mlflow/experiments/search?max_results=1", headers={"Authorization": f"Basic {token}"}
    )
    try:
        with _DIRECT.open(request, timeout=_PATIENCE):
            return True
    except urllib.error.HTTPError as error:
        if error.code == 401:
            return False
        raise
