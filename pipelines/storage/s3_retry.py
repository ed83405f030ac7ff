"""Requests to S3: the client, one loop of retries around every request, and errors in one line."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from email.utils import parsedate_to_datetime
from functools import partial
from typing import Any, TypeVar
from urllib.parse import urlsplit

import boto3
import tenacity
from botocore import UNSIGNED
from botocore import exceptions as boto_errors
from botocore.config import Config
from botocore.parsers import ResponseParserError
from urllib3.exceptions import HTTPError

from fvae.config import ConfigError
from pipelines.storage.base import ArchivedError, CorruptError, StorageError

T = TypeVar("T")
R = TypeVar("R")

log = logging.getLogger("pipelines.storage")

CONNECT_TIMEOUT = 5.0
READ_TIMEOUT = 30.0
"""Seconds without a byte from the store."""
ATTEMPTS = 5
PATIENCE = 150.0
"""A request is given up after ``ATTEMPTS`` attempts *and* ``PATIENCE`` seconds."""
FIRST_WAIT = 0.5
LONGEST_WAIT = 20.0
"""Waits are random up to ``FIRST_WAIT``, doubling to ``LONGEST_WAIT``, in seconds."""
THREADS = 8
CONNECTIONS = 32


class DamagedError(Exception):
    """An answer that is not what was stored: short, or with another checksum."""


class CancelledError(Exception):
    """Nobody waits for this request any more."""


_TRANSIENT = {
    "BadDigest",
    "ConditionalRequestConflict",
    "IncompleteBody",
    "OperationAborted",
    "RequestTimeout",
    "SlowDown",
    "Throttling",
    "ThrottlingException",
    "XAmzContentSHA256Mismatch",
}
_REFUSED = {
    "AuthorizationHeaderMalformed",
    "ExpiredToken",
    "InvalidAccessKeyId",
    "InvalidToken",
    "RequestTimeTooSkewed",
    "SignatureDoesNotMatch",
    "TokenRefreshRequired",
}
_MISCONFIGURED = (
    boto_errors.NoCredentialsError,
    boto_errors.PartialCredentialsError,
    boto_errors.ProfileNotFound,
    boto_errors.ConfigParseError,
    boto_errors.TokenRetrievalError,
    boto_errors.SSOError,
    boto_errors.InvalidRegionError,
    boto_errors.InvalidProxiesConfigError,
)

_FAILURES = (
    boto_errors.BotoCoreError,
    boto_errors.ClientError,
    ResponseParserError,
    HTTPError,
    ConnectionError,
    DamagedError,
    CancelledError,
)

_clients: dict[object, Any] = {}
_clients_lock = threading.Lock()
_cancelled = threading.local()


def client(*, anonymous: bool = False) -> Any:
    """The boto3 client of this process for the environment as it is now. Raises ``ConfigError``.

    It signs nothing where it is ``anonymous`` or the environment has no credentials: public buckets can be read so.
    """
    settings = tuple(sorted((name, value) for name, value in os.environ.items() if name.startswith("AWS_")))
    identity = (os.getpid(), CONNECT_TIMEOUT, READ_TIMEOUT, anonymous, settings)
    with _clients_lock:  # clients are thread-safe, making them is not
        if identity not in _clients:
            if len(_clients) >= 8:  # nobody has so many environments but tests
                _clients.clear()
            _clients[identity] = _make_client(anonymous)
        return _clients[identity]


def _make_client(anonymous: bool) -> Any:
    try:
        session = boto3.Session()
        signed = not anonymous and session.get_credentials() is not None
        made = _client_with(session, "auto", signed)
        host = urlsplit(made.meta.endpoint_url).hostname or ""
        if not host.endswith((".amazonaws.com", ".amazonaws.com.cn")):
            made = _client_with(session, "path", signed)  # other stores seldom have a DNS name for each bucket
    except (boto_errors.BotoCoreError, ValueError) as error:
        raise ConfigError(f"S3 settings: {one_line(error)}") from error
    return made


def _client_with(session: boto3.Session, addressing: str, signed: bool) -> Any:
    return session.client(
        "s3",
        region_name=session.region_name or "us-east-1",
        config=Config(
            signature_version=None if signed else UNSIGNED,
            connect_timeout=CONNECT_TIMEOUT,
            read_timeout=READ_TIMEOUT,
            retries={"total_max_attempts": 1, "mode": "standard"},  # ours is the only loop
            max_pool_connections=CONNECTIONS,
            request_checksum_calculation="when_required",  # compatible stores refuse trailing checksums
            response_checksum_validation="when_required",
            s3={"addressing_style": addressing, "payload_signing_enabled": True},
        ),
    )


def request(operation: str, uri: str, call: Callable[[], T], *, anonymous: bool = False) -> T:
    """``call()``, tried again while the store fails for a moment.

    Raises ``FileNotFoundError`` (no such object), ``ConfigError`` (no such bucket, refused credentials),
    ``FileExistsError`` (a condition on the object did not hold) or ``StorageError`` (anything else, after every retry).
    """
    started = time.monotonic()
    cancelled: threading.Event | None = getattr(_cancelled, "event", None)
    attempts = tenacity.Retrying(
        retry=tenacity.retry_if_exception(is_transient),
        wait=tenacity.wait_random_exponential(multiplier=FIRST_WAIT, max=LONGEST_WAIT),
        stop=tenacity.stop_all(tenacity.stop_after_attempt(ATTEMPTS), tenacity.stop_after_delay(PATIENCE)),
        sleep=time.sleep if cancelled is None else partial(_sleep, cancelled),
        before_sleep=lambda state: _log_retry(operation, uri, state),
        reraise=True,
    )
    try:
        return attempts(call)
    except _FAILURES as error:
        tried = attempts.statistics.get("attempt_number", 1)
        raise _explained(error, operation, uri, tried, time.monotonic() - started, anonymous) from error


def _sleep(cancelled: threading.Event, seconds: float) -> None:
    if cancelled.wait(seconds):
        raise CancelledError("given up, as its result is no longer needed")


def _log_retry(operation: str, uri: str, state: tenacity.RetryCallState) -> None:
    error = state.outcome.exception() if state.outcome else None
    wait_seconds = state.next_action.sleep if state.next_action else 0.0
    log.warning("%s %s: attempt %d failed: %s; again in %.1f s", operation, uri, state.attempt_number,
                cause(error), wait_seconds)  # fmt: skip


def is_transient(error: BaseException) -> bool:
    """Whether the same request may succeed a moment later."""
    if isinstance(error, boto_errors.ClientError):
        status, code = status_and_code(error)
        return code in _TRANSIENT or status in (408, 429) or (status >= 500 and status not in (501, 505))
    if isinstance(error, (*_MISCONFIGURED, boto_errors.ParamValidationError)):
        return False
    return isinstance(
        error,
        (
            boto_errors.ConnectionError,
            boto_errors.HTTPClientError,
            boto_errors.ResponseStreamingError,
            boto_errors.IncompleteReadError,
            boto_errors.CredentialRetrievalError,
            boto_errors.MetadataRetrievalError,
            ResponseParserError,  # cut short in mid-XML
            HTTPError,
            ConnectionError,
            DamagedError,
        ),
    )


def status_and_code(error: boto_errors.ClientError) -> tuple[int, str]:
    """HTTP status (0 where unknown) and S3 error code."""
    response = error.response
    return (
        int(response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)),
        str(response.get("Error", {}).get("Code", "")),
    )


def cause(error: BaseException | None) -> str:
    """Why a request failed, in one line."""
    if isinstance(error, boto_errors.ClientError):
        status, code = status_and_code(error)
        message = one_line(error.response.get("Error", {}).get("Message", ""))
        return f"{status} {code}: {message}" if message and message != code else f"{status} {code}"
    if isinstance(error, boto_errors.ReadTimeoutError):
        return f"no answer within {READ_TIMEOUT:g} s"
    if isinstance(error, boto_errors.ConnectTimeoutError):
        return f"no connection to {client().meta.endpoint_url} within {CONNECT_TIMEOUT:g} s"
    if isinstance(error, boto_errors.EndpointConnectionError):
        return f"no connection to {client().meta.endpoint_url}"
    if isinstance(error, (DamagedError, CancelledError)):
        return str(error)
    return f"broken connection ({one_line(error)})"


def store_time(answer: dict[str, Any]) -> float:
    """Seconds since 1970 by the clock of the store that gave ``answer``; this machine's where it does not say."""
    date = answer["ResponseMetadata"]["HTTPHeaders"].get("date")
    return parsedate_to_datetime(date).timestamp() if date else time.time()


def one_line(message: object) -> str:
    """``message`` with its line breaks and runs of blanks as one blank each."""
    return " ".join(str(message).split())


def _explained(error: Exception, operation: str, uri: str, attempts: int, seconds: float, anonymous: bool) -> Exception:
    bucket = "/".join(uri.split("/")[:3])
    if isinstance(error, _MISCONFIGURED):
        return ConfigError(
            f"{bucket}: no S3 credentials ({one_line(error)}); set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, "
            "or AWS_PROFILE"
        )
    if isinstance(error, boto_errors.ClientError):
        status, code = status_and_code(error)
        if code == "NoSuchBucket":
            return ConfigError(f"{bucket}: no such bucket at {client().meta.endpoint_url}; create it or name another")
        if status == 412:
            return FileExistsError(errno.EEXIST, "changed meanwhile", uri)
        if code == "InvalidObjectState":
            return ArchivedError(f"{uri}: archived by the store ({cause(error)}); restore it, and try again")
        if status in (401, 403) and anonymous:
            return ConfigError(f"{uri}: cannot {operation}: {bucket} is not public ({cause(error)}); give credentials")
        if status in (401, 403) and client().meta.config.signature_version is UNSIGNED:
            return ConfigError(
                f"{bucket}: no S3 credentials are set, and it is not public ({cause(error)}); set AWS_ACCESS_KEY_ID "
                "and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
            )
        if code in _REFUSED:
            return ConfigError(f"{uri}: cannot {operation}: the store refused the credentials ({cause(error)})")
        if status in (401, 403):
            return ConfigError(
                f"{uri}: cannot {operation}: access denied ({cause(error)}); these credentials need read, write, "
                f"delete and list rights on {bucket}"
            )
        if status == 404:
            return FileNotFoundError(errno.ENOENT, "no such object", uri)
    tries = "1 attempt" if attempts == 1 else f"{attempts} attempts in {seconds:.0f} s"
    kind = CorruptError if isinstance(error, DamagedError) else StorageError
    return kind(f"{uri}: cannot {operation}: {cause(error)} ({tries})")


def in_threads(function: Callable[[T], R], items: Iterable[T]) -> list[R]:
    """``[function(item) for item in items]`` in a few threads; the first failure ends the rest and is raised."""
    stop = threading.Event()

    def work(item: T) -> R:
        with cancelled_by(stop):
            return function(item)

    with ThreadPoolExecutor(THREADS, thread_name_prefix="storage") as pool:
        futures = [pool.submit(work, item) for item in items]
        try:
            done, _ = wait(futures, return_when=FIRST_EXCEPTION)
            failed = next((future.exception() for future in futures if future in done and future.exception()), None)
            if failed is not None:
                raise failed
        except BaseException:
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
        return [future.result() for future in futures]


@contextlib.contextmanager
def cancelled_by(event: threading.Event) -> Iterator[None]:
    """In this thread, once ``event`` is set, a failed request is not tried again, and no wait for it goes on."""
    _cancelled.event = event
    try:
        yield
    finally:
        del _cancelled.event
