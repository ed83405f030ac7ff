"""Whether a search becomes slower when its run in MLflow has ten thousand children.

    python -m benchmarks.search.mlflow_children --output benchmarks/results/search_mlflow.txt

A search of so many trials is made in MLflow's own tables: its tracker writes the parent and one finished trial, and
that trial's rows are copied. Then the same search goes on: what it waits for itself (telling the tracker), and what the
tracker's thread does meanwhile: opening what is there, bringing it up to date when the search tells of every trial, as
it does when it is resumed, and a round that writes one epoch of a new trial.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import socket
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import tyro

from pipelines.storage import Storage, open_storage
from pipelines.tracking.settings import quiet_mlflow, server_environment
from pipelines.tracking.tracker import EpochSnapshot, SearchTracker, TrialSnapshot

SEARCH = "digits"
NUMBER_WIDTH = 5
"""Digits of a trial's number: ids are ``00007-fvae``."""
COPIED = ("metrics", "latest_metrics", "params", "tags")
"""Tables with rows of a run, besides ``runs``."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """Measure the tracker with few and with many trials."""

    children: tuple[int, ...] = (0, 1_000, 10_000)
    """Finished trials that the search has already."""
    epochs: int = 60
    """Of each."""
    new: int = 20
    """Trials told of, epoch by epoch, in each measurement."""
    told_epochs: int = 5
    """Epochs of these."""
    server: bool = True
    """Also through an MLflow server."""
    output: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """Also write what is printed to this file."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measured:
    """Seconds."""

    opening: float
    """Of a first round that is told of no trial: what a tracker does after a write that failed."""
    resumed: float
    """Of a first round that is told of every trial, as by a search at its start."""
    telling: list[float]
    """Of each ``record_trial``: all that the search waits for."""
    round: list[float]
    """Of each round that writes one epoch of one trial."""


def main(settings: Settings) -> None:
    """Measure, and print."""
    quiet_mlflow()
    rows = []
    for children in settings.children:
        with tempfile.TemporaryDirectory(prefix="children-") as folder:
            storage = open_storage(folder)
            fill(storage, children, settings.epochs)
            rows.append(("SQLite", children, measure(storage, children, settings, None)))
            if settings.server:
                with server(Path(folder)) as url:
                    rows.append(("server", children, measure(storage, children, settings, url)))
        print(f"{children:,} children: done", file=sys.stderr)
    text = report(settings, rows)
    print(text)
    if settings.output:
        settings.output.write_text(text + "\n", encoding="utf-8")


def report(settings: Settings, rows: list[tuple[str, int, Measured]]) -> str:
    """The table."""
    lines = [
        "python -m benchmarks.search.mlflow_children",
        f"children of {settings.epochs} epochs; {settings.new} new trials of {settings.told_epochs} epochs, a round "
        "for each epoch",
        "opening: to go on (after a failed write), and with every child told of (a search that is resumed)",
        "",
        f"{'':<18}{'the search waits':>22}{'the thread: a round':>24}{'opening':>20}",
        f"{'store':<8}{'children':>10}{'median µs':>12}{'max µs':>10}{'median ms':>14}{'max ms':>10}"
        f"{'on, s':>10}{'resumed, s':>14}",
    ]
    for store, children, each in rows:
        telling, rounds = ([1e6 * value for value in each.telling], [1e3 * value for value in each.round])
        lines.append(
            f"{store:<8}{children:>10,}{statistics.median(telling):>12.0f}{max(telling):>10.0f}"
            f"{statistics.median(rounds):>14.1f}{max(rounds):>10.1f}{each.opening:>10.2f}{each.resumed:>14.2f}"
        )
    return "\n".join(lines)


def trial(number: int, status: str, epochs: int) -> TrialSnapshot:
    """As :mod:`tune.run.mlflow_tracking` makes it, without files."""
    names = ("train/bpd", "val/bpd", "sigma1", "sigma2", "grad_norm", "images_per_second", "seconds")
    return TrialSnapshot(
        id=f"{number:0{NUMBER_WIDTH}d}-fvae",
        family="fvae",
        status=status,  # type: ignore[arg-type]
        params={f"model.field_{field}": field for field in range(16)}
        | {f"train.field_{field}": 1 for field in range(8)},
        constants={"size/params": 1e5, "size/flops_per_image": 2e6},
        history=tuple(
            EpochSnapshot(epoch, 1_790_000_000_000 + epoch, dict.fromkeys(names, 2 + 1 / epoch))
            for epoch in range(1, epochs + 1)
        ),
        final={"best/val_bpd": 2.0} if status == "complete" else {},
    )


def tracker(storage: Storage, uri: str | None) -> SearchTracker:
    """As the search's own, but for its rounds: they come when they are asked for."""
    return SearchTracker(
        storage=storage,
        dataset_name="digits",
        search_name=SEARCH,
        params={"train.epochs": 60},
        tracking_uri=uri,
        write_interval=3600.0,
    )


def fill(storage: Storage, children: int, epochs: int) -> None:
    """A search with so many finished trials, whose rows are the tracker's own."""
    first = tracker(storage, None)
    first.start()
    if children:
        first.record_trial(trial(0, "complete", epochs))
    first.flush(600.0)
    first.close(interrupted=True)
    assert not first.problems, first.problems
    assert storage.local_path is not None
    with contextlib.closing(sqlite3.connect(storage.local_path / "mlflow.db")) as database:
        copy_child(database, children - 1)


def copy_child(database: sqlite3.Connection, copies: int) -> None:
    """The rows of the trial 0 once more for each of the trials 1 … ``copies``, under ids of their own."""
    if copies < 1:
        return
    name = trial(0, "complete", 1).id
    (original,) = database.execute("SELECT run_uuid FROM runs WHERE name = ?", (name,)).fetchone()
    others = [(uuid.uuid4().hex, trial(number, "complete", 1).id) for number in range(1, copies + 1)]
    with database:
        database.execute("CREATE TEMP TABLE others (id TEXT, name TEXT)")
        database.executemany("INSERT INTO others VALUES (?, ?)", others)
        for table in ("runs", *COPIED):
            columns = [row[1] for row in database.execute(f"PRAGMA table_info({table})")]
            values = [own_value(table, column) for column in columns]
            database.execute(
                f"INSERT INTO {table} ({', '.join(columns)}) SELECT {', '.join(values)} FROM others, {table} "
                "AS original WHERE original.run_uuid = :original",
                {"original": original, "name": name},
            )
    database.execute("DROP TABLE others")


def own_value(table: str, column: str) -> str:
    """SQL of a copied row's column: its run's id and name are its own, wherever they stand."""
    if column == "run_uuid":
        return "others.id"
    if (table, column) == ("runs", "name") or (table, column) == ("tags", "value"):
        return f"CASE WHEN original.{column} = :name THEN others.name ELSE original.{column} END"
    if (table, column) == ("runs", "artifact_uri"):
        return "replace(original.artifact_uri, :original, others.id)"
    return f"original.{column}"


def measure(storage: Storage, children: int, settings: Settings, uri: str | None) -> Measured:
    """Of a search that goes on."""
    opening = opened(storage, uri, [])
    resumed = opened(storage, uri, [trial(number, "complete", settings.epochs) for number in range(children)])
    telling, rounds = [], []
    going_on = tracker(storage, uri)
    going_on.start()
    assert going_on.flush(600.0), going_on.problems
    for number in range(settings.new):
        for epoch in range(1, settings.told_epochs + 1):
            # A server's run sees the same database, which has the trials of the run before.
            snapshot = trial(children + number + (settings.new if uri else 0), "running", epoch)
            started = time.perf_counter()
            going_on.record_trial(snapshot)
            told = time.perf_counter()
            assert going_on.flush(600.0), going_on.problems
            telling.append(told - started)
            rounds.append(time.perf_counter() - told)
    going_on.close(interrupted=True, timeout=600.0)
    assert not going_on.problems, going_on.problems
    return Measured(opening=opening, resumed=resumed, telling=telling, round=rounds)


def opened(storage: Storage, uri: str | None, trials: list[TrialSnapshot]) -> float:
    """Seconds until a tracker that is told of ``trials`` has written all that MLflow lacks."""
    opening = tracker(storage, uri)
    for each in trials:
        opening.record_trial(each)
    started = time.perf_counter()
    opening.start()
    assert opening.flush(1800.0), opening.problems
    seconds = time.perf_counter() - started
    opening.close(interrupted=True, timeout=600.0)
    return seconds


@contextlib.contextmanager
def server(folder: Path) -> Iterator[str]:
    """The URL of an MLflow server on the database in ``folder``."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--workers", "1", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--backend-store-uri", f"sqlite:///{folder}/mlflow.db"]
    command += ["--artifacts-destination", str(folder / "mlartifacts")]
    with (folder / "server.log").open("ab") as log:
        process = subprocess.Popen(
            command, cwd=folder, env=server_environment(), stdout=log, stderr=log, start_new_session=True
        )
    try:
        deadline = time.monotonic() + 120
        while True:
            with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
                break
            assert process.poll() is None and time.monotonic() < deadline, (folder / "server.log").read_text()
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait()


if __name__ == "__main__":
    main(tyro.cli(Settings))
