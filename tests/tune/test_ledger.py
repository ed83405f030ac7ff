"""The ledger on a folder and on S3: what it reads, and when it writes no more."""

from __future__ import annotations

import pickle
import threading
from pathlib import Path

import pytest

from fvae import ConfigError
from pipelines.storage import Storage, StorageError, open_storage
from tests.tune.synthetic import record
from tune.ledger import Ledger


@pytest.fixture(params=["local", "s3"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    """Where a run may lie."""
    return open_storage(tmp_path if request.param == "local" else f"{request.getfixturevalue('bucket')}/runs/digits")


def test_it_reads_what_it_wrote_in_order_of_starting(root: Storage) -> None:
    first = Ledger(root)
    for number in (3, 0, 11, 7):
        first.put(record(number, "fvae", 1000 + number, 2.5))
    first.update("0007-fvae", status="stopped", reason="because")
    root.write("trials/0003-fvae/model/config.json", b"{}")
    root.write("trials/trial.json", b"of nobody")
    second = Ledger(root)
    assert list(second.records) == ["0000-fvae", "0003-fvae", "0007-fvae", "0011-fvae"]
    assert second.records == first.records
    assert [each.id for each in second.ended()] == list(second.records)


def test_a_damaged_record_is_one_line_that_names_it(root: Storage) -> None:
    root.write("trials/0000-fvae/trial.json", b'{"id": ')
    with pytest.raises(ConfigError, match=r"trials/0000-fvae/trial\.json: damaged, not JSON") as caught:
        Ledger(root)
    assert str(caught.value).startswith(f"{root.uri}/") and "\n" not in str(caught.value)


def test_without_its_lock_it_writes_nothing(root: Storage) -> None:
    lost = False

    def check() -> None:
        if lost:
            raise StorageError("the lock was lost")

    ledger = Ledger(root, check)
    ledger.put(record(0, "fvae", 1000, 2.5))
    lost = True
    with pytest.raises(StorageError, match="the lock was lost"):
        ledger.put(record(1, "flow", 1000, 2.5))
    with pytest.raises(StorageError, match="the lock was lost"):
        ledger.update("0000-fvae", status="failed")
    assert Ledger(root).records == ledger.records == {"0000-fvae": record(0, "fvae", 1000, 2.5)}


def test_tune_may_pickle_it_with_whoever_holds_it(root: Storage) -> None:
    lock = threading.Lock()
    ledger = Ledger(root, lambda: lock.release())
    assert len(pickle.dumps(ledger)) < 100
