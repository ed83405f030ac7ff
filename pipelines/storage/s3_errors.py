"""Errors of S3: which are transient, and what each means to the user, in one line."""

from __future__ import annotations

import errno

from botocore import UNSIGNED
from botocore import exceptions as boto_errors
from botocore.parsers import ResponseParserError
from urllib3.exceptions import HTTPError

from fvae.config import ConfigError, one_line
from pipelines.storage import s3_client
from pipelines.storage.base import ArchivedError, CorruptError, StorageError
from pipelines.storage.concurrency import CancelledError


class DamagedError(Exception):
    """An answer that is not what was stored: short, or with another checksum."""


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

FAILURES = (
    boto_errors.BotoCoreError,
    boto_errors.ClientError,
    ResponseParserError,
    HTTPError,
    ConnectionError,
    DamagedError,
    CancelledError,
)
"""What a request may raise that :func:`storage_error` explains."""


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
        return f"no answer within {s3_client.READ_TIMEOUT:g} s"
    if isinstance(error, boto_errors.ConnectTimeoutError):
        return f"no connection to {_endpoint()} within {s3_client.CONNECT_TIMEOUT:g} s"
    if isinstance(error, boto_errors.EndpointConnectionError):
        return f"no connection to {_endpoint()}"
    if isinstance(error, (DamagedError, CancelledError)):
        return str(error)
    return f"broken connection ({one_line(error)})"


def storage_error(
    error: Exception, operation: str, uri: str, attempts: int, seconds: float, anonymous: bool
) -> Exception:
    """The error to raise in place of ``error``: see :func:`pipelines.storage.s3_retry.request`.

    Args:
        error: what the last attempt raised, one of :data:`FAILURES`.
        operation: what was attempted, as a verb.
        uri: the object or bucket.
        attempts: how many there were.
        seconds: how long they took altogether.
        anonymous: whether the requests were sent without credentials.
    """
    bucket = "/".join(uri.split("/")[:3])
    if isinstance(error, _MISCONFIGURED):
        return ConfigError(
            f"{bucket}: no S3 credentials ({one_line(error)}); set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, "
            "or AWS_PROFILE"
        )
    if isinstance(error, boto_errors.ClientError):
        status, code = status_and_code(error)
        if code == "NoSuchBucket":
            return ConfigError(f"{bucket}: no such bucket at {_endpoint()}; create it or name another")
        if status == 412:
            return FileExistsError(errno.EEXIST, "changed meanwhile", uri)
        if code == "InvalidObjectState":
            return ArchivedError(f"{uri}: archived by the store ({cause(error)}); restore it, and try again")
        if status in (401, 403) and anonymous:
            return ConfigError(f"{uri}: cannot {operation}: {bucket} is not public ({cause(error)}); give credentials")
        if status in (401, 403) and s3_client.client().meta.config.signature_version is UNSIGNED:
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


def _endpoint() -> str:
    return str(s3_client.client().meta.endpoint_url)
