"""One way to read and write, whether on a local folder or on S3."""

from __future__ import annotations

import re
from pathlib import Path

from fvae.config import ConfigError, require
from pipelines.storage.base import (
    READ_AHEAD,
    ArchivedError,
    ChangedError,
    CorruptError,
    ObjectInfo,
    Storage,
    StorageError,
    check_key,
)
from pipelines.storage.local import LocalStorage

__all__ = [
    "READ_AHEAD",
    "ArchivedError",
    "ChangedError",
    "ObjectInfo",
    "CorruptError",
    "Storage",
    "StorageError",
    "check_key",
    "is_remote",
    "open_storage",
]

_SCHEME = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]*)://")
_BUCKET = re.compile(r"^(?!\d+\.\d+\.\d+\.\d+$)(?!.*\.\.)[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]$")


def is_remote(location: str | Path) -> bool:
    """Whether ``location`` names a remote store (``scheme://…``) and not a local path."""
    return isinstance(location, str) and _SCHEME.match(location) is not None


def open_storage(location: str | Path, *, anonymous: bool = False) -> Storage:
    """The storage at ``s3://bucket[/prefix]`` or at a local path; nothing is read or written yet.

    ``anonymous`` sends no credentials to a remote store, as public buckets of other owners need it.

    Raises ``ConfigError`` for another scheme or an impossible bucket name.
    """
    if not is_remote(location):
        require(str(location) != "", "storage location '': must be a folder or s3://bucket/prefix")
        return LocalStorage(Path(location))
    scheme, rest = str(location).split("://", 1)
    require(scheme == "s3", f"{location}: cannot use {scheme}://; use a local folder or s3://bucket/prefix")
    bucket, _, prefix = rest.partition("/")
    require(
        _BUCKET.match(bucket) is not None,
        f"{location}: {bucket!r} is no bucket name (3 to 63 of a-z, 0-9, '.', '-'); use s3://bucket/prefix",
    )
    prefix = prefix.strip("/")
    try:
        if prefix:
            check_key(prefix)
    except ValueError as error:
        raise ConfigError(f"{location}: must not hold empty, '.' or '..' parts") from error
    from pipelines.storage.s3 import S3Storage  # boto3 takes 0.3 s to import: not for local runs

    return S3Storage(bucket, prefix, anonymous=anonymous)
