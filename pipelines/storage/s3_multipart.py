"""Multipart uploads of large objects to S3: each part is retried by itself, and the object is whole or absent.

boto3's own ``upload_fileobj`` is not used, because it leaves retries to botocore: those are limited by their number
alone, not by the time for which a store may be away, and none is logged. Where the answer to CompleteMultipartUpload is
lost, botocore's second attempt gets NoSuchUpload, and the upload fails although the object is complete.
"""

from __future__ import annotations

import contextlib
import math
import threading
from typing import Any, BinaryIO

from fvae.config import ConfigError
from pipelines.storage.base import StorageError
from pipelines.storage.concurrency import in_threads
from pipelines.storage.s3_client import client, store_time
from pipelines.storage.s3_retry import request

THRESHOLD = 32 * 2**20
"""Bytes above which content is uploaded in parts."""
PART = 16 * 2**20
"""Bytes of a part; more where there would be more than ``MOST_PARTS``."""
MOST_PARTS = 10_000


def upload(bucket: str, key: str, source: BinaryIO, size: int, metadata: dict[str, str]) -> None:
    """Upload ``size`` bytes of the seekable ``source`` to ``key``.

    Raises as :func:`pipelines.storage.s3_retry.request` does; then the upload is aborted, and nothing is left of it
    unless the store does not answer.
    """
    uri = f"s3://{bucket}/{key}"
    part_size = max(PART, math.ceil(size / MOST_PARTS))
    place = {"Bucket": bucket, "Key": key}
    started = request("write", uri, lambda: client().create_multipart_upload(**place, Metadata=metadata))
    place_of_parts = {**place, "UploadId": started["UploadId"]}
    reading = threading.Lock()

    def put(number: int) -> dict[str, Any]:
        start = (number - 1) * part_size
        with reading:
            source.seek(start)
            content = source.read(min(part_size, size - start))
        if len(content) != min(part_size, size - start):
            raise StorageError(f"{uri}: cannot write: the file became shorter meanwhile")
        answer = request("write", uri, lambda: client().upload_part(**place_of_parts, PartNumber=number, Body=content))
        return {"PartNumber": number, "ETag": answer["ETag"]}

    try:
        parts = in_threads(put, range(1, math.ceil(size / part_size) + 1))
        request("write", uri, lambda: _complete(place_of_parts, parts, metadata))
    except BaseException:
        with contextlib.suppress(StorageError, ConfigError, FileNotFoundError):
            request("abort", uri, lambda: client().abort_multipart_upload(**place_of_parts))
        raise


def _complete(place: dict[str, str], parts: list[dict[str, Any]], metadata: dict[str, str]) -> None:
    try:
        client().complete_multipart_upload(**place, MultipartUpload={"Parts": parts})
    except client().exceptions.NoSuchUpload:
        # Done already, by an attempt whose answer was lost?
        held = client().head_object(Bucket=place["Bucket"], Key=place["Key"])
        if held["Metadata"] != metadata:
            raise


def abort_unfinished(bucket: str, prefix: str, older_than_seconds: float) -> int:
    """Abort the unfinished uploads below ``prefix`` that began so long ago; returns how many there were."""
    uri = f"s3://{bucket}/{prefix}"
    asked = {"Bucket": bucket, "Prefix": prefix}
    found: list[dict[str, str]] = []

    def next_page() -> dict[str, Any]:
        return request("list", uri, lambda: client().list_multipart_uploads(**asked))

    while True:
        page = next_page()
        now = store_time(page)
        found += [
            {"Bucket": bucket, "Key": each["Key"], "UploadId": each["UploadId"]}
            for each in page.get("Uploads", ())
            if each["Initiated"].timestamp() <= now - older_than_seconds
        ]
        if not page.get("IsTruncated"):
            break
        asked |= {"KeyMarker": page["NextKeyMarker"], "UploadIdMarker": page["NextUploadIdMarker"]}

    def abort(place: dict[str, str]) -> None:
        with contextlib.suppress(FileNotFoundError):
            request("abort", f"s3://{bucket}/{place['Key']}", lambda: client().abort_multipart_upload(**place))

    in_threads(abort, found)
    return len(found)
