"""Ray's job server: submit a job under a given id, query its status, stop it.

Importing this imports Ray.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, TypeVar

import requests
from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobSubmissionClient

import pipelines.training.ray_environment  # noqa: F401  # before Ray
from fvae.config import require
from pipelines.cli.redaction import has_secret
from pipelines.storage import StorageError
from pipelines.training.ray_session import PASSED_ON

T = TypeVar("T")

DEFAULT_ADDRESS = "http://127.0.0.1:8265"
ADDRESS_VARIABLE = "RAY_API_SERVER_ADDRESS"
ANSWER_SECONDS = 30.0
"""How long the server may take for one request; it waits itself up to a few seconds for a job's agent."""


class RayUnreachable(StorageError):
    """Ray's job server does not answer, or not now: to be tried again."""


class _Client(JobSubmissionClient):
    """A client with a time-out: a server that hangs would block a scheduler for ever."""

    def _do_request(self, *arguments: Any, **options: Any) -> requests.Response:
        return super()._do_request(*arguments, **({"timeout": ANSWER_SECONDS} | options))


class RayJobs:
    """The jobs of one Ray.

    Args:
        address: ``http://HOST:PORT`` of its dashboard; None: ``RAY_API_SERVER_ADDRESS``, or :data:`DEFAULT_ADDRESS`.
            (``RAY_ADDRESS`` names the cluster's other port; Ray prefers both variables to an argument.)

    Raises ``ConfigError`` for another kind of address; its methods raise :class:`RayUnreachable`.
    """

    def __init__(self, address: str | None = None) -> None:
        self.address = address or os.environ.get(ADDRESS_VARIABLE) or DEFAULT_ADDRESS
        require(
            self.address.startswith(("http://", "https://")),
            f"--address={self.address!r}: must be that of Ray's dashboard, as in {DEFAULT_ADDRESS}",
        )
        os.environ[ADDRESS_VARIABLE] = self.address
        self._client: _Client | None = None

    def require_answer(self) -> None:
        """Raise :class:`RayUnreachable` unless it answers now."""
        self._call("GET version", lambda client: client.get_version())

    def find(self, submission_id: str) -> JobDetails | None:
        """Details of a job; None where this Ray does not know it, as after a restart."""
        return self._call(f"find {submission_id}", lambda client: client.get_job_info(submission_id), missing=None)

    def submit(self, submission_id: str, command: str, metadata: dict[str, str]) -> None:
        """Submit a job, unless Ray has one of that id: jobs with the same id are the same job."""
        variables = {name: os.environ[name] for name in ("MLFLOW_TRACKING_URI", *PASSED_ON) if name in os.environ}
        # They are kept in Ray's own records, so passwords are left out.
        variables = {name: value for name, value in variables.items() if not has_secret(value)}

        def submitted(client: _Client) -> None:
            try:
                client.submit_job(
                    entrypoint=command,
                    submission_id=submission_id,
                    metadata=metadata,
                    runtime_env={"env_vars": variables} if variables else None,
                )
            except RuntimeError as refused:
                try:
                    client.get_job_info(submission_id)  # it is there already: Ray takes an id once
                except RuntimeError:
                    raise refused from None

        self._call(f"submit {submission_id}", submitted)

    def stop(self, submission_id: str) -> None:
        """Ask a job to end: SIGTERM, and a few seconds later SIGKILL. Nothing where it has ended, or is not known."""
        self._call(f"stop {submission_id}", lambda client: client.stop_job(submission_id), missing=None)

    def _call(self, what: str, call: Callable[[_Client], T], **missing: T) -> T:
        """``call`` with a client; ``missing``: what is returned for a job that is not known."""
        try:
            if self._client is None:
                self._client = _Client(self.address)
            return call(self._client)
        except (OSError, RuntimeError, AuthenticationError, requests.RequestException, ValueError) as error:
            if missing and "status code 404" in str(error):
                return missing["missing"]
            self._client = None  # the next call reads the token, and looks at the server's version, again
            raise RayUnreachable(f"{self.address}: {_short(error)} ({what})") from error


def _short(error: Exception) -> str:
    if isinstance(error, AuthenticationError):
        return "refuses this token; RAY_AUTH_MODE=token and ~/.ray/auth_token must be as on Ray's head"
    if isinstance(error, ConnectionError | requests.ConnectionError):
        return "no Ray answers there"
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1].strip()[:200] if lines else type(error).__name__
