"""A store that fails at fixed requests costs log lines; one that is dead, or refuses, says so in one line."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest

from fvae.config import ConfigError
from pipelines.storage import Storage, StorageError, open_storage, s3_retry
from pipelines.storage.concurrency import in_threads
from pipelines.storage.s3_client import client
from tests.s3 import FAULTS, FaultProxy, impatient_environment, only, set_constants

pytestmark = [pytest.mark.core, pytest.mark.usefixtures("small_parts")]

CONTENT = bytes(range(256)) * 40
LARGE = os.urandom(11 * 2**20)


@pytest.fixture(scope="module")
def shared_bucket(s3_client: Any) -> str:
    """A bucket for all tests that look only at a place of their own in it."""
    s3_client.create_bucket(Bucket="shared-by-tests-of-faults")
    return "s3://shared-by-tests-of-faults"


@pytest.fixture
def storage(shared_bucket: str, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch) -> Storage:
    """A place in a bucket with one object ``held``; the proxy has not counted anything yet."""
    set_constants({"READ_TIMEOUT": 60.0}, monkeypatch.setattr)  # on a busy machine no request may take longer
    storage = open_storage(f"{shared_bucket}/place-{uuid.uuid4().hex[:8]}")
    storage.write("held", CONTENT)
    proxy.reset()
    return storage


@pytest.fixture
def unfinished(storage: Storage, s3_client: Any) -> Callable[[], list[str]]:
    """The keys of the place's unfinished uploads, as the server itself has them."""
    bucket, _, place = storage.uri.removeprefix("s3://").partition("/")

    def listed() -> list[str]:
        uploads = s3_client.list_multipart_uploads(Bucket=bucket, Prefix=place).get("Uploads", [])
        return [each["Key"].removeprefix(f"{place}/") for each in uploads]

    return listed


@pytest.fixture
def retries(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    return lambda: [record.getMessage() for record in caplog.records if record.name == "pipelines.storage"]


def keys(storage: Storage) -> list[str]:
    return [found.key for found in storage.list()]


def opened(storage: Storage) -> bytes:
    with storage.open("held") as file:
        file.seek(5000)
        end = file.read()
        file.seek(0)
        return file.read(5000) + end


def written(storage: Storage, content: bytes = CONTENT) -> bytes:
    storage.write("new", content)
    return storage.read("new")


def created(storage: Storage) -> bytes:
    assert storage.create("new", CONTENT)
    return storage.read("new")


def replaced(storage: Storage) -> bytes:
    version = storage.replace("held", CONTENT, storage.info("held").version)
    assert version == storage.info("held").version
    return storage.read("held")


def uploaded(storage: Storage, folder: Path) -> bytes:
    (folder / "file").write_bytes(CONTENT)
    storage.upload(folder / "file", "new")
    return storage.read("new")


def downloaded(storage: Storage, folder: Path) -> bytes:
    storage.download("held", folder / "target")
    return (folder / "target").read_bytes()


def deleted(storage: Storage) -> bytes:
    content = storage.read("held")
    storage.delete("held")
    assert not storage.exists("held")
    return content


OPERATIONS: dict[str, Callable[[Storage, Path], bytes]] = {
    "read": lambda storage, folder: storage.read("held"),
    "read_range": lambda storage, folder: CONTENT[:7] + storage.read_range("held", 7, 10**6),
    "open": lambda storage, folder: opened(storage),
    "write": lambda storage, folder: written(storage),
    "create": lambda storage, folder: created(storage),
    "replace": lambda storage, folder: replaced(storage),
    "upload": uploaded,
    "download": downloaded,
    "info": lambda storage, folder: CONTENT[: storage.info("held").size],
    "list": lambda storage, folder: CONTENT[: next(iter(storage.list())).size],
    "delete": lambda storage, folder: deleted(storage),
}
ONE_REQUEST = ("read", "read_range", "info", "list")
CASES = [(operation, fault) for operation in OPERATIONS for fault in FAULTS if fault != "corrupt"]


@pytest.mark.parametrize(("operation", "fault"), CASES)
def test_a_fault_costs_a_log_line(
    storage: Storage,
    proxy: FaultProxy,
    retries: Callable[[], list[str]],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    operation: str,
    fault: str,
) -> None:
    """The first request, and where there are more, the first one after its second attempt."""
    if fault == "stall":
        # A busy machine may not answer within the time-out either.
        set_constants({"READ_TIMEOUT": 0.3, "ATTEMPTS": 30}, monkeypatch.setattr)
    proxy.plan = {1: fault, 3: fault}

    assert OPERATIONS[operation](storage, tmp_path) == CONTENT
    assert [request.fault for request in proxy.faults] == [fault] * (1 if operation in ONE_REQUEST else 2)
    lines = retries()
    assert len(lines) == len(proxy.faults) or (fault == "stall" and len(lines) > 2)  # on a busy machine
    for line in lines:
        assert storage.uri in line
        assert "failed: " in line
        assert "\n" not in line


def test_somebody_elses_object_is_not_taken_for_an_attempt_of_ours(storage: Storage, proxy: FaultProxy) -> None:
    proxy.plan = {1: "reset", 3: "reset"}
    assert not storage.create("held", CONTENT)
    proxy.reset({1: "503"})
    assert storage.replace("held", b"x", '"opaque-another"') is None
    assert len(proxy.faults) == 1
    assert storage.read("held") == CONTENT


@pytest.mark.parametrize(("operation", "number"), [("read", 1), ("download", 2)])  # download: after HEAD
def test_a_corrupt_answer_is_asked_for_again(
    storage: Storage,
    proxy: FaultProxy,
    retries: Callable[[], list[str]],
    tmp_path: Path,
    operation: str,
    number: int,
) -> None:
    proxy.plan = {number: "corrupt"}
    assert OPERATIONS[operation](storage, tmp_path) == CONTENT
    assert len(proxy.faults) == 1
    (line,) = retries()
    assert "SHA-256" in line


def test_a_large_download_that_is_corrupt_is_begun_again(storage: Storage, proxy: FaultProxy, tmp_path: Path) -> None:
    storage.write("large", LARGE)
    proxy.reset({3: "corrupt"})  # HEAD and two ranges
    storage.download("large", tmp_path / "large")
    assert (tmp_path / "large").read_bytes() == LARGE
    assert [path.name for path in tmp_path.iterdir()] == ["large"]
    assert len(proxy.faults) == 1


@pytest.mark.parametrize("fault", ["503", "reset", "reset-upload", "truncate"])
def test_every_request_of_a_multipart_upload_may_fail(
    storage: Storage,
    proxy: FaultProxy,
    retries: Callable[[], list[str]],
    unfinished: Callable[[], list[str]],
    monkeypatch: pytest.MonkeyPatch,
    fault: str,
) -> None:
    """Each of begin, three parts and complete, at its first attempt."""
    seen: set[str] = set()

    def first_attempt(method: str, path: str) -> bool:
        request = f"{method} {re.sub('uploadId=[^&]*', 'uploadId', path)}"
        first = method in ("POST", "PUT") and request not in seen
        seen.add(request)
        return first

    with FaultProxy(proxy.url, dict.fromkeys(range(1, 10), fault), counted=first_attempt) as failing:
        monkeypatch.setenv("AWS_ENDPOINT_URL", failing.url)
        storage.write("new", LARGE)
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
    assert storage.read("new") == LARGE
    assert len(failing.faults) == len(retries()) == 5
    # Where the answer to the first request is lost, nobody knows the upload that it began.
    lost = fault in ("reset", "truncate")
    assert len(unfinished()) == lost
    assert storage.clean_up() == lost
    assert unfinished() == []
    assert keys(storage) == ["held", "new"]


def test_an_upload_that_fails_for_good_leaves_nothing(
    storage: Storage, proxy: FaultProxy, unfinished: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    storage.write("new", b"before")
    with FaultProxy(proxy.url, dict.fromkeys(range(2, 100), "500"), counted=only("PUT")) as failing:
        monkeypatch.setenv("AWS_ENDPOINT_URL", failing.url)
        with pytest.raises(StorageError, match=r"new: cannot write: 500.*\(3 attempts in \d+ s\)$"):
            storage.write("new", LARGE)
        assert storage.read("new") == b"before"
    assert unfinished() == []


def test_a_killed_upload_is_cleaned_up_by_the_next(
    storage: Storage, proxy: FaultProxy, unfinished: Callable[[], list[str]]
) -> None:
    program = (
        "from pipelines.storage import s3_multipart\n"
        "from pipelines.storage import open_storage\n"
        "s3_multipart.THRESHOLD, s3_multipart.PART = 2**20, 5 * 2**20\n"
        f"open_storage({storage.uri!r}).write('new', bytes(11 * 2**20))\n"
    )
    with FaultProxy(proxy.url, {2: "stall"}, counted=only("PUT")) as stalling:
        environment = {**os.environ, **impatient_environment(READ_TIMEOUT=60.0), "AWS_ENDPOINT_URL": stalling.url}
        process = subprocess.Popen([sys.executable, "-c", program], env=environment)
        while not stalling.faults:
            assert process.poll() is None
            time.sleep(0.01)
        process.kill()
        process.wait()

    assert unfinished() == ["new"]
    assert keys(storage) == ["held"]
    assert storage.clean_up() == 1
    assert unfinished() == []


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_dead_store_is_one_line_and_nothing_half_written(
    storage: Storage, proxy: FaultProxy, operation: str, tmp_path: Path
) -> None:
    proxy.dead = True
    with pytest.raises(StorageError) as caught:
        OPERATIONS[operation](storage, tmp_path)

    said = str(caught.value)
    assert said.startswith(storage.uri)
    assert ": cannot " in said
    assert re.search(r"\(3 attempts in \d+ s\)", said)
    assert "\n" not in said
    assert len(proxy.requests) == 3
    assert not (tmp_path / "target").exists()

    proxy.dead = False
    assert keys(storage) == ["held"]
    assert OPERATIONS[operation](storage, tmp_path) == CONTENT


def test_nobody_at_the_endpoint(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(StorageError, match=r"held: cannot read: no connection to http://127\.0\.0\.1:9 \(3 attempts"):
        storage.read("held")


def test_a_store_that_never_answers_is_given_up(
    storage: Storage, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_constants({"READ_TIMEOUT": 0.1}, monkeypatch.setattr)
    proxy.plan = dict.fromkeys(range(1, 10), "stall")
    with pytest.raises(StorageError, match=r"held: cannot read: no answer within 0\.1 s \(3 attempts"):
        storage.read("held")


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_refusal_is_one_line_at_once(storage: Storage, proxy: FaultProxy, operation: str, tmp_path: Path) -> None:
    proxy.plan = {1: "403"}
    with pytest.raises(ConfigError, match=r"access denied .*rights on s3://shared-by") as caught:
        OPERATIONS[operation](storage, tmp_path)
    assert "\n" not in str(caught.value)
    assert len(proxy.requests) == 1


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_missing_bucket_is_one_line(proxy: FaultProxy, operation: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^s3://no-such-bucket: no such bucket at http://127.* create it"):
        OPERATIONS[operation](open_storage("s3://no-such-bucket/x"), tmp_path)


def test_missing_credentials_are_one_line(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    with pytest.raises(ConfigError, match=r"no S3 credentials .*AWS_ACCESS_KEY_ID") as caught:
        storage.read("held")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("AWS_ENDPOINT_URL", "localhost:9000"),
        ("AWS_ENDPOINT_URL", "http://"),
        ("AWS_PROFILE", "nobody"),
        ("AWS_DEFAULT_REGION", "mars north"),
    ],
)
def test_settings_that_cannot_be_are_one_line(
    storage: Storage, monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=value) as caught:
        storage.read("held")
    assert "\n" not in str(caught.value)


def test_addresses_are_of_the_form_that_the_store_has(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def url() -> str:
        return str(client().generate_presigned_url("get_object", {"Bucket": "bucket", "Key": "key"}))

    for endpoint in ("http://store.example:9000", "http://localhost:9000"):
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        assert url().startswith(f"{endpoint}/bucket/key?")
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    assert url().startswith("https://bucket.s3.")


def test_one_failure_ends_the_waits_of_the_other_threads(impatient: None, monkeypatch: pytest.MonkeyPatch) -> None:
    set_constants({"FIRST_WAIT": 600.0, "LONGEST_WAIT": 600.0}, monkeypatch.setattr)
    together = threading.Barrier(4)

    def work(number: int) -> None:
        def call() -> None:
            together.wait(60)
            raise ConnectionResetError if number else ValueError("this one")

        s3_retry.request("read", f"s3://bucket/{number}", call)

    with pytest.raises(ValueError, match="this one"):
        in_threads(work, range(4))


def test_waits_grow_and_end(storage: Storage, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    set_constants({"ATTEMPTS": 9, "FIRST_WAIT": 0.5, "LONGEST_WAIT": 20.0}, monkeypatch.setattr)
    monkeypatch.setattr("random.uniform", lambda low, high: high)
    monkeypatch.setattr("time.sleep", waits.append)
    proxy.dead = True
    with pytest.raises(StorageError, match=r"\(9 attempts in"):
        storage.read("held")
    assert waits == [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 20.0, 20.0]


def test_nothing_depends_on_the_leniency_of_the_test_server(
    storage: Storage, proxy: FaultProxy, s3_client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The strict proxy refuses what moto takes; without that, the tests above would show less than they say."""
    where = storage.uri.removeprefix("s3:/") + "/held"
    for headers in ({}, {"Authorization": "AWS4-HMAC-SHA256 Credential=x", "x-amz-content-sha256": "UNSIGNED-PAYLOAD"}):
        with pytest.raises(HTTPError, match="403"):
            urlopen(Request(proxy.url + where, headers=headers))
    bucket, _, key = where[1:].partition("/")
    plain = s3_client.head_object(Bucket=bucket, Key=key)["ETag"]
    assert storage.info("held").version != plain
    assert hashlib.md5(CONTENT).hexdigest() in plain
    for number in range(4):
        storage.write(f"more/{number}", b"")
    proxy.reset()
    assert len(keys(storage)) == 5
    assert len(proxy.requests) == 2
