"""Objects in a bucket of S3 or of a store that speaks its protocol."""

from __future__ import annotations

import contextlib
import hashlib
import io
import itertools
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from fvae.config import ConfigError
from pipelines.storage import s3_multipart
from pipelines.storage.base import READ_AHEAD, ChangedError, CorruptError, ObjectInfo, Storage, check_key
from pipelines.storage.concurrency import cancelled_by, in_threads
from pipelines.storage.local import copy_stream, local_files
from pipelines.storage.s3_client import client, store_time
from pipelines.storage.s3_errors import DamagedError, cause, status_and_code
from pipelines.storage.s3_file import CHECKSUM, RangedFile, verify
from pipelines.storage.s3_retry import request

T = TypeVar("T")

CREATION = "creation"
"""Metadata entry by which a writer knows its own object again when the answer to its request was lost."""

_known_buckets: set[tuple[str, str]] = set()
_keeps_conditions: set[tuple[str, str]] = set()
"""Stores and buckets that were seen to refuse a write whose condition did not hold."""
_UNKNOWN_CONDITION = ("NotImplemented", "InvalidArgument", "InvalidRequest", "UnsupportedHeader")


class S3Storage(Storage):
    """Objects below ``prefix`` (may be empty) of ``bucket``.

    Endpoint, region and credentials are those of the process that uses it, from the usual places (``AWS_*``,
    ``~/.aws``, the machine's role), read at each use.
    """

    def __init__(self, bucket: str, prefix: str, *, anonymous: bool = False) -> None:
        self.bucket = bucket
        self.prefix = prefix
        self.anonymous = anonymous
        self.uri = f"s3://{bucket}/{prefix}" if prefix else f"s3://{bucket}"

    @property
    def local_path(self) -> None:
        return None

    def read(self, key: str) -> bytes:
        def call() -> bytes:
            answer = self._client().get_object(Bucket=self.bucket, Key=self._key(key))
            content = _body(answer)
            verify(answer, hashlib.sha256(content).hexdigest())
            return content

        return self._request("read", key, call)

    def read_range(self, key: str, start: int, length: int, version: str | None = None) -> bytes:
        if length <= 0:
            return b""
        condition = {} if version is None else {"IfMatch": version}

        def call() -> bytes:
            span = f"bytes={start}-{start + length - 1}"
            try:
                answer = self._client().get_object(Bucket=self.bucket, Key=self._key(key), Range=span, **condition)
            except self._client().exceptions.ClientError as error:
                if status_and_code(error)[0] == 416:  # starts at the object's end or after it
                    return b""
                raise
            content = _body(answer)
            # A store that knows no ranges sends everything.
            return content if "ContentRange" in answer else content[start : start + length]

        try:
            return self._request("read", key, call)
        except FileExistsError as error:
            raise ChangedError(f"{self._uri(key)}: cannot read: the object changed meanwhile") from error

    def open(self, key: str) -> BinaryIO:
        return io.BufferedReader(RangedFile(self, key, self.head(key)), READ_AHEAD)

    def write(self, key: str, content: bytes) -> None:
        if len(content) > s3_multipart.THRESHOLD:
            s3_multipart.upload(self.bucket, self._key(key), io.BytesIO(content), len(content), _checksums(content))
            return
        self._request("write", key, lambda: self._put(key, content, _checksums(content)))

    def create(self, key: str, content: bytes) -> bool:
        if self._put_if(key, content, IfNoneMatch="*") is None:
            return False
        store = (self._client().meta.endpoint_url, self.bucket)
        if store not in _keeps_conditions:  # once in a process: what is there now must not be made again
            if self._put_if(key, content, IfNoneMatch="*") is not None:
                self.delete(key)
                raise self._without_conditions("ignores the conditions of writes")
            _keeps_conditions.add(store)
        return True

    def replace(self, key: str, content: bytes, version: str) -> str | None:
        try:
            return self._put_if(key, content, IfMatch=version)
        except FileNotFoundError:
            return None

    def upload(self, path: Path, key: str) -> None:
        if not path.is_dir():
            self._upload_file(path, key)
            return
        files = sorted((file.stat().st_size, file) for file in local_files(path))
        small = [file for size, file in files if size <= s3_multipart.THRESHOLD]
        in_threads(lambda file: self._upload_file(file, f"{key}/{file.relative_to(path).as_posix()}"), small)
        for _, file in files[len(small) :]:  # each in threads of its own
            self._upload_file(file, f"{key}/{file.relative_to(path).as_posix()}")

    def download(self, key: str, path: Path) -> None:
        try:
            self._download_file(key, path)
        except FileNotFoundError:
            found = [info.key for info in self.list(key)]
            if not found:
                raise
            in_threads(lambda below: self._download_file(below, path / below.removeprefix(f"{key}/")), found)

    def info(self, key: str) -> ObjectInfo:
        head = self.head(key)
        return ObjectInfo(key, head["ContentLength"], head["LastModified"].timestamp(), head["ETag"])

    def checksum(self, key: str) -> str | None:
        recorded: str | None = self.head(key)["Metadata"].get(CHECKSUM)
        return recorded

    def age(self, key: str) -> float:
        head = self.head(key)
        return store_time(head) - float(head["LastModified"].timestamp())

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        return (found for found in self._list(prefix) if not found.key.endswith("/"))  # folders of other tools

    def delete(self, *keys: str) -> None:
        # One request each: not every store knows DeleteObjects, or the checksum it is sent with.
        in_threads(self._delete_one, keys)

    def delete_prefix(self, prefix: str) -> None:
        self.delete(*(found.key for found in self._list(prefix)))

    def cancelled_by(self, event: threading.Event) -> AbstractContextManager[None]:
        return cancelled_by(event)

    def child(self, name: str) -> S3Storage:
        return S3Storage(self.bucket, self._key(name), anonymous=self.anonymous)

    def clean_up(self, older_than_seconds: float = 0.0) -> int:
        return s3_multipart.abort_unfinished(self.bucket, self._folder(""), older_than_seconds)

    def _key(self, key: str) -> str:
        return f"{self.prefix}/{check_key(key)}" if self.prefix else check_key(key)

    def _folder(self, prefix: str) -> str:
        """``prefix`` of this storage as a prefix of the bucket's keys, with its last ``/``."""
        whole = "/".join(part for part in (self.prefix, prefix.rstrip("/")) if part)
        return f"{whole}/" if whole else ""

    def _uri(self, key: str) -> str:
        return f"{self.uri}/{key}" if key else self.uri

    def _request(self, operation: str, key: str, call: Callable[[], T]) -> T:
        return request(operation, self._uri(key), call, anonymous=self.anonymous)

    def _client(self) -> Any:
        return client(anonymous=self.anonymous)

    def _put(self, key: str, content: bytes, metadata: dict[str, str], **condition: str) -> str:
        """The new version."""
        put = self._client().put_object(
            Bucket=self.bucket, Key=self._key(key), Body=content, Metadata=metadata, **condition
        )  # fmt: skip
        return str(put["ETag"])

    def _put_if(self, key: str, content: bytes, **condition: str) -> str | None:
        """The new version, or ``None`` where the condition did not hold."""
        metadata = _checksums(content)
        attempts = itertools.count(1)

        def call() -> str:
            first = next(attempts) == 1
            try:
                return self._put(key, content, metadata, **condition)
            except self._client().exceptions.ClientError as error:
                status, code = status_and_code(error)
                if status == 501 or (status == 400 and code in _UNKNOWN_CONDITION):
                    raise self._without_conditions(f"has no conditional writes ({cause(error)})") from error
                if status != 412 or first:
                    raise
                # What is there may be ours: put by an attempt whose answer was lost.
                held = self._client().head_object(Bucket=self.bucket, Key=self._key(key))
                if held["Metadata"].get(CREATION) != metadata[CREATION]:
                    raise
                return str(held["ETag"])

        try:
            return str(self._request("write", key, call))
        except FileExistsError:
            return None

    def _without_conditions(self, what: str) -> ConfigError:
        return ConfigError(
            f"{self.uri}: the store at {self._client().meta.endpoint_url} {what}, which keep two commands from writing "
            "to one place; use a store that has them, such as AWS S3, or a local folder"
        )

    def head(self, key: str) -> dict[str, Any]:
        try:
            head: dict[str, Any] = self._request(
                "read", key, lambda: self._client().head_object(Bucket=self.bucket, Key=self._key(key))
            )
        except FileNotFoundError:
            self._require_bucket()  # the answer to HEAD has no body that would tell which of both is missing
            raise
        _known_buckets.add((self._client().meta.endpoint_url, self.bucket))
        return head

    def _require_bucket(self) -> None:
        if (self._client().meta.endpoint_url, self.bucket) not in _known_buckets:
            self._request("list", "", lambda: self._client().list_objects_v2(Bucket=self.bucket, MaxKeys=1))
            _known_buckets.add((self._client().meta.endpoint_url, self.bucket))

    def _list(self, prefix: str) -> Iterator[ObjectInfo]:
        asked = {"Bucket": self.bucket, "Prefix": self._folder(prefix)}
        while True:
            page = self._request("list", prefix, lambda: self._client().list_objects_v2(**asked))
            for found in page.get("Contents", ()):
                key = found["Key"].removeprefix(self._folder(""))
                if key:
                    yield ObjectInfo(key, found["Size"], found["LastModified"].timestamp(), found["ETag"])
            if not page.get("IsTruncated"):
                return
            asked["ContinuationToken"] = page["NextContinuationToken"]

    def _delete_one(self, key: str) -> None:
        whole = f"{self._key(key.rstrip('/'))}{'/' if key.endswith('/') else ''}"
        with contextlib.suppress(FileNotFoundError):
            self._request("remove", key, lambda: self._client().delete_object(Bucket=self.bucket, Key=whole))

    def _upload_file(self, path: Path, key: str) -> None:
        with path.open("rb") as file:
            size = path.stat().st_size
            if size <= s3_multipart.THRESHOLD:
                self.write(key, file.read())
                return
            checksum = hashlib.file_digest(file, "sha256").hexdigest()
            s3_multipart.upload(self.bucket, self._key(key), file, size, _metadata(checksum))

    def _download_file(self, key: str, path: Path) -> None:
        def call() -> None:
            with self.open(key) as file:
                try:
                    copy_stream(file, path)
                except CorruptError as error:
                    raise DamagedError(str(error.__cause__)) from error
                except ChangedError as error:
                    raise DamagedError("the object changed meanwhile") from error

        self._request("read", key, call)


def _body(answer: dict[str, Any]) -> bytes:
    content: bytes = answer["Body"].read()
    if len(content) != answer["ContentLength"]:
        raise DamagedError(f"{len(content)} bytes of {answer['ContentLength']} came")
    return content


def _checksums(content: bytes) -> dict[str, str]:
    return _metadata(hashlib.sha256(content).hexdigest())


def _metadata(checksum: str) -> dict[str, str]:
    return {CHECKSUM: checksum, CREATION: uuid.uuid4().hex}
