"""One holder at a time, on a folder and in a bucket, through crashes, silence and take-overs."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fvae.config import ConfigError
from pipelines.storage import Storage, StorageError, open_storage
from pipelines.storage import lease as lease_module
from pipelines.storage.lease import LeaseTaken, exclusive
from pipelines.storage.lease_holder import Holder
from tests.s3 import FaultProxy, only, set_constants

pytestmark = pytest.mark.core

HOLDS = """
import sys, time
from pipelines.storage.lease import exclusive
from pipelines.storage import open_storage
with exclusive(open_storage(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture(params=["local", "s3"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    return open_storage(tmp_path if request.param == "local" else f"{request.getfixturevalue('bucket')}/run")


@pytest.fixture
def remote(bucket: str, impatient: None) -> Storage:
    return open_storage(f"{bucket}/run")


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease_module, "RENEW_SECONDS", 0.02)


@contextlib.contextmanager
def another_process(storage: Storage) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen([sys.executable, "-c", HOLDS, storage.uri], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def until(condition: Callable[[], object]) -> None:
    for _ in range(12_000):
        if condition():
            return
        time.sleep(0.005)
    raise AssertionError("did not come to pass in a minute")


def test_it_is_held_by_one_and_gone_at_the_end(storage: Storage) -> None:
    with exclusive(storage) as lease:
        lease.check()
        assert not lease.lost
        assert [found.key for found in storage.list()] == [".lock"]
        with pytest.raises(LeaseTaken) as caught, exclusive(storage):
            pass
        with exclusive(storage.child("other")), exclusive(storage, "mlflow.lock"):
            pass
    said = str(caught.value)
    assert said.startswith(f"{storage.uri}: in use by process {os.getpid()} on ")
    assert "\n" not in said
    assert isinstance(caught.value, ConfigError)
    assert list(storage.list()) == []
    with exclusive(storage), pytest.raises(LeaseTaken), exclusive(storage):
        pass


def test_it_ends_with_the_blocks_own_error(storage: Storage) -> None:
    with pytest.raises(ZeroDivisionError), exclusive(storage):
        raise ZeroDivisionError
    assert list(storage.list()) == []


def holders_of_six(storage: Storage) -> int:
    """How many of six threads that ask at once hold the lease at the same time."""
    together, done, held = threading.Barrier(6), threading.Barrier(6), []

    def compete() -> None:
        together.wait(60)
        with contextlib.ExitStack() as stack:
            with contextlib.suppress(LeaseTaken):
                held.append(stack.enter_context(exclusive(storage)))
            done.wait(60)

    threads = [threading.Thread(target=compete) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return len(held)


def test_of_many_at_once_one_gets_it(storage: Storage) -> None:
    assert holders_of_six(storage) == 1


def test_a_killed_holder_of_this_machine_is_replaced_at_once(storage: Storage) -> None:
    with another_process(storage) as process:
        with pytest.raises(LeaseTaken, match=f"in use by process {process.pid} on "), exclusive(storage):
            pass
        process.send_signal(signal.SIGKILL)
        process.wait()
        with exclusive(storage) as lease:
            lease.check()
    assert list(storage.list()) == []


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b'{"pid": "x", "token": 3}', b"\xff\xfe"])
def test_a_lock_that_says_nothing_is_respected_until_it_is_old(
    remote: Storage, content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    remote.write(".lock", content)
    with pytest.raises(LeaseTaken, match="an unknown process"), exclusive(remote):
        pass
    monkeypatch.setattr(lease_module, "EXPIRES_SECONDS", -2.0)
    with exclusive(remote):
        assert Holder.from_bytes(remote.read(".lock")).pid == os.getpid()


SINCE = "2026-01-02T03:04:05+00:00"  # fixed, so that two such holders are equal whenever they are made


def elsewhere() -> Holder:
    return dataclasses.replace(
        Holder.this_process("theirs"), host="far", machine="another", pid=os.getpid() + 1, since=SINCE
    )


def test_a_silent_holder_of_another_machine_is_replaced_once_it_is_late(
    remote: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    remote.write(".lock", elsewhere().to_bytes())
    with pytest.raises(LeaseTaken, match="on far since 20"), exclusive(remote):
        pass
    monkeypatch.setattr(lease_module, "EXPIRES_SECONDS", -2.0)  # the server's clock has whole seconds
    with exclusive(remote):
        assert Holder.from_bytes(remote.read(".lock")).token != "theirs"


def test_a_late_holder_is_replaced_by_one_of_many(remote: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    remote.write(".lock", elsewhere().to_bytes())
    monkeypatch.setattr(Holder, "gone", property(lambda self: self.token == "theirs"))
    assert holders_of_six(remote) == 1


def test_the_holder_renews(remote: Storage, quick: None) -> None:
    with exclusive(remote) as lease:
        until(lambda: Holder.from_bytes(remote.read(".lock")).renewals >= 3)
        assert not lease.lost
    assert list(remote.list()) == []


def test_a_holder_that_was_replaced_finds_out_and_leaves_the_lock_alone(remote: Storage, quick: None) -> None:
    with exclusive(remote) as lease:
        remote.write(".lock", elsewhere().to_bytes())
        until(lambda: lease.lost)
        with pytest.raises(StorageError, match=r"/\.lock: the lock was lost") as caught:
            lease.check()
        assert "\n" not in str(caught.value)
    assert remote.read(".lock") == elsewhere().to_bytes()


def test_a_lock_that_was_taken_over_unnoticed_is_left_alone(remote: Storage) -> None:
    with exclusive(remote):
        remote.write(".lock", elsewhere().to_bytes())
    assert remote.read(".lock") == elsewhere().to_bytes()


def test_a_holder_whose_lock_was_removed_finds_out(remote: Storage, quick: None) -> None:
    with exclusive(remote) as lease:
        remote.delete(".lock")
        until(lambda: lease.lost)
    assert list(remote.list()) == []


def test_a_holder_without_a_store_is_late_until_it_answers_again(
    s3: str, remote: Storage, quick: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with FaultProxy(s3, strict=True) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        with exclusive(remote) as lease:
            monkeypatch.setattr(lease_module, "EXPIRES_SECONDS", 0.3)
            proxy.dead = True
            until(lambda: lease.lost and "the lock was not renewed: s3://" in caplog.text)
            proxy.dead = False
            until(lambda: not lease.lost)
            monkeypatch.setattr(lease_module, "EXPIRES_SECONDS", 90.0)
            lease.check()
    assert list(remote.list()) == []


def test_a_renewal_whose_answers_were_all_lost_is_known_again(
    s3: str, remote: Storage, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The first three PUTs after those that take the lease (and see that it cannot be taken twice) are carried out, but
    # nobody is told.
    with FaultProxy(s3, dict.fromkeys((3, 4, 5), "reset"), counted=only("PUT")) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        with exclusive(remote) as lease:
            until(lambda: len(proxy.requests) >= 8)
            lease.check()
    assert list(remote.list()) == []


def test_a_store_that_dies_before_the_end_does_not_hide_the_blocks_error(
    s3: str, remote: Storage, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with FaultProxy(s3) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        with pytest.raises(ZeroDivisionError), exclusive(remote):
            proxy.dead = True
            raise ZeroDivisionError
    assert any("the lock was not removed" in record.getMessage() for record in caplog.records)


def test_nobody_takes_a_lock_of_a_dead_store(s3: str, remote: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    with FaultProxy(s3) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        proxy.dead = True
        with pytest.raises(StorageError), exclusive(remote):
            pytest.fail("held a lock that nobody has")


def test_the_end_does_not_wait_for_a_renewal(s3: str, remote: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease_module, "RENEW_SECONDS", 0.01)
    set_constants({"FIRST_WAIT": 600.0, "LONGEST_WAIT": 600.0}, monkeypatch.setattr)
    with FaultProxy(s3, {3: "500"}, counted=only("PUT")) as proxy:  # after the two that take the lease
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        with exclusive(remote):
            until(lambda: proxy.faults)
    assert list(remote.list()) == []


def test_holders_know_their_own_process(monkeypatch: pytest.MonkeyPatch) -> None:
    holder = Holder.this_process("token")
    assert Holder.from_bytes(holder.to_bytes()) == holder
    assert not holder.gone
    assert dataclasses.replace(holder, started="1").gone  # another process, which has its number now
    assert not dataclasses.replace(holder, machine="another", started="1").gone
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    assert dataclasses.replace(holder, pid=ended.pid).gone
    assert json.loads(holder.to_bytes())["pid"] == os.getpid()
