"""The ledger on a folder and on S3: what it reads, and when it writes no more."""

from __future__ import annotations

import dataclasses
import pickle
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from fvae import ConfigError
from pipelines.storage import Storage, StorageError, open_storage
from tests.tune.synthetic import record
from tune.records import ledger as ledger_module
from tune.records.ledger import Ledger

pytestmark = pytest.mark.core


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


def test_an_epoch_waits_for_a_write_and_nothing_else_does(root: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    whole = record(0, "fvae", 1000, 2.5)
    ledger = Ledger(root)
    ledger.put(dataclasses.replace(whole, status="running", history=()))

    def written(epochs: int, at_once: bool = False, **changes: Any) -> int:
        ledger.update(whole.id, history=whole.history[:epochs], at_once=at_once, **changes)
        assert ledger.records[whole.id].epochs == epochs
        on_storage = Ledger(root).records[whole.id]
        assert ledger.is_written(whole.id) == (on_storage == ledger.records[whole.id])
        return on_storage.epochs

    assert [written(epochs) for epochs in (1, 2)] == [0, 0]
    now = ledger_module.WRITE_SECONDS
    assert written(3) == 3
    assert written(4) == 3
    assert written(4, at_once=True) == 4  # though nothing is new
    assert written(5) == 4
    ledger.flush()
    assert Ledger(root).records[whole.id].epochs == 5
    assert written(6) == 5
    assert written(7, at_once=True, status="stopped") == 7
    assert Ledger(root).records == ledger.records


def test_what_changes_nothing_is_not_written(root: Storage) -> None:
    ledger = Ledger(root)
    ledger.put(record(0, "fvae", 1000, 2.5))
    before = list(root.list("trials"))
    ledger.update("0000-fvae", status="complete", val_bpd=2.5)
    assert list(root.list("trials")) == before


def test_attempts_without_an_end_were_lost(root: Storage) -> None:
    ledger = Ledger(root)
    whole = record(0, "fvae", 1000, 2.5)
    open_ = dataclasses.replace(whole.attempts[0], ended="", ended_ms=None)
    for number, status in enumerate(("running", "running", "complete")):
        attempts = () if number == 1 else (open_,) if status == "running" else whole.attempts
        ledger.put(record(number, "fvae", 1000, 2.5, status=status, attempts=attempts))
    Ledger(root).close_attempts()
    ends = [[attempt.ended for attempt in each.attempts] for each in Ledger(root).records.values()]
    assert ends == [["lost"], [], ["done"]]


def test_tune_may_pickle_it_with_whoever_holds_it(root: Storage) -> None:
    lock = threading.Lock()
    ledger = Ledger(root, lambda: lock.release())
    assert len(pickle.dumps(ledger)) < 100
