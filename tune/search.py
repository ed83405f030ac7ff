"""The main job: search VAE, flow and f-VAE, and draw the map of parameters against bits/dim.

    python tune/search.py                              # the embedded digits, about ten minutes on two cores
    python tune/search.py --dataset PATH --trials 60   # a folder of images, or the MNIST files

Results lie in runs/<name>/: tradeoff.html, tradeoff.png, tradeoff.json and trials.csv.
"""

from __future__ import annotations

import fcntl
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console

import tune.environment  # noqa: F401  (before Ray is imported)
from fvae.config import ConfigError
from fvae.data import ImageDataset
from fvae.files import read_json, write_text
from fvae.train_config import TrainConfig
from pipelines import command_line
from pipelines.datasets import load_dataset
from pipelines.tracking import SearchTracker
from tune.display import SearchDisplay, reading_progress, summary
from tune.ledger import Ledger, TrialRecord
from tune.page import write_page
from tune.pareto import fronts
from tune.plots import write_plot
from tune.settings import SearchSettings
from tune.snapshots import snapshot
from tune.space import SearchSpace
from tune.tradeoff import build_tradeoff, write_tradeoff

FORMAT = 1
"""Raised whenever models, figures or records of an earlier version would no longer compare."""
COMPARED = ("epochs", "batch_size", "precision", "seed")
"""Settings that all trials of a run share, besides the data set."""


def main(settings: SearchSettings) -> int:
    """Search, read the tests, draw the map. Returns the exit status."""
    dataset = load_dataset(settings.dataset)
    space = SearchSpace.for_images(dataset.shape)
    run_dir = settings.run_dir(dataset.name)
    make_writable(run_dir)
    with locked(run_dir):
        search = open_search(run_dir, settings, dataset)
        ledger = Ledger(run_dir)
        try:
            return run(settings, dataset, space, search, ledger)
        except OSError as error:
            if error.errno is None or isinstance(error, ConnectionError):
                raise
            raise storage_error(error) from error


def describe(dataset: ImageDataset) -> dict[str, Any]:
    """The data set's part of ``tradeoff.json``."""
    counts = {split: len(images) for split, images in dataset.splits().items()}
    return {
        "name": dataset.name,
        "hash": dataset.content_hash(),
        "shape": list(dataset.shape),
        "bins": dataset.bins,
        **counts,
    }


def open_search(run_dir: Path, settings: SearchSettings, dataset: ImageDataset) -> dict[str, Any]:
    """``search.json`` of this run, made or checked. Raises ``ConfigError`` where it is another search's."""
    path = run_dir / "search.json"
    mine = {"format": FORMAT, "dataset": describe(dataset), **{name: getattr(settings, name) for name in COMPARED}}
    if not path.exists():
        write_text(path, json.dumps(mine, indent=1) + "\n")
        return mine
    search = read_json(path)
    if search.get("format") != FORMAT:
        raise ConfigError(f"{run_dir}: a search of another version of this software; give another --name")
    theirs = search["dataset"]
    if theirs["hash"] != mine["dataset"]["hash"]:
        raise ConfigError(
            f"{run_dir}: holds a search of another data set ({theirs['name']}, hash {theirs['hash']}; "
            f"this is {dataset.name}, hash {mine['dataset']['hash']}); give another --name"
        )
    for name in COMPARED:
        if search[name] != mine[name]:
            option = "--" + name.replace("_", "-")
            raise ConfigError(
                f"{run_dir}: was searched with {option} {search[name]}, not {mine[name]}, and trials must compare; "
                f"give {option} {search[name]} or another --name"
            )
    return search


def make_writable(run_dir: Path) -> None:
    """Make the run's folder. Raises ``ConfigError`` where it cannot be written."""
    try:
        write_text(run_dir / ".writable", "")
        (run_dir / ".writable").unlink()
    except OSError as error:
        raise ConfigError(f"--storage: {run_dir} cannot be written ({error.strerror}); give another folder") from error


@contextmanager
def locked(run_dir: Path) -> Iterator[None]:
    """One search at a time in a run's folder; the lock goes with the process, however it ends."""
    with (run_dir / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(
                f"{run_dir}: another search is running there; wait for it or give another --name"
            ) from None
        yield


def run(
    settings: SearchSettings, dataset: ImageDataset, space: SearchSpace, search: dict[str, Any], ledger: Ledger
) -> int:
    """Everything between an opened run and its printed result. Returns the exit status."""
    console = Console()
    tracker = SearchTracker(
        runs_dir=ledger.root.parent,
        dataset_name=dataset.name,
        search_name=ledger.root.name,
        params={f"data.{name}": value for name, value in search["dataset"].items()}
        | {f"train.{name}": search[name] for name in COMPARED},
    )

    def track(record: TrialRecord) -> None:
        tracker.record_trial(snapshot(record, search["dataset"], ledger.trial_dir(record.id)))

    for record in ledger.records.values():
        track(record)
    tracker.start()
    finished = interrupted = False
    try:
        try:
            finished = search_and_test(settings, dataset, space, ledger, console, track)
            interrupted = not finished
        except KeyboardInterrupt:
            interrupted = True
        files = draw(ledger, {**search, "budget": budget(settings, dataset, ledger)}, console)
        if finished:
            tracker.finish(files)
    except KeyboardInterrupt:
        interrupted = True
        raise
    finally:
        console.print("Writing the last figures to MLflow …", style="dim")
        tracker.close(interrupted=interrupted)
    for problem in tracker.problems:
        console.print(f"warning: {problem}", style="yellow", markup=False)
    if not finished:
        console.print("Interrupted. The same command goes on where it stopped; nothing finished is lost.")
        return 1
    console.print(f"MLflow: make ui, experiment fvae/{dataset.name}")
    return 0


def search_and_test(
    settings: SearchSettings,
    dataset: ImageDataset,
    space: SearchSpace,
    ledger: Ledger,
    console: Console,
    track: Callable[[TrialRecord], None],
) -> bool:
    """Train what is left to train, then read the test split for the fronts. False where Ctrl-C came first."""
    done = len(ledger.records) >= settings.trials and not ledger.with_status("running")
    if done and not unread(ledger):
        return True
    from tune import engine  # Ray takes seconds to import: a finished search is shown without it
    from tune.callbacks import LedgerCallback
    from tune.searcher import FrontSearcher

    console.print(plan(settings, dataset, ledger), highlight=False, soft_wrap=True)
    with engine.ray_session(settings, dataset):
        if not done:
            channels, height, width = dataset.shape
            searcher = FrontSearcher(
                ledger=ledger,
                space=space,
                images={"channels": channels, "height": height, "width": width, "bins": dataset.bins},
                train=TrainConfig(
                    epochs=settings.epochs,
                    batch_size=settings.batch_size,
                    precision=settings.precision,
                    seed=settings.seed,
                ),
                families=settings.families,
                trials=settings.trials,
                seed=settings.seed,
            )
            with SearchDisplay(console, ledger, trials=settings.trials, epochs=settings.epochs) as display:
                callback = LedgerCallback(ledger, (display.watch, track))
                if not engine.run_trials(settings, dataset, ledger, searcher, [callback]):
                    return False
        while ids := unread(ledger):  # a model that cannot be measured leaves its front to others
            for record in reading_progress(console, engine.read_tests(settings, dataset, ledger, ids), len(ids)):
                track(record)
    return True


def unread(ledger: Ledger) -> list[str]:
    """The fronts' models whose test split has not been read."""
    on_fronts = {record_id for ids in fronts(list(ledger.records.values())).values() for record_id in ids}
    return sorted(record_id for record_id in on_fronts if ledger.records[record_id].test is None)


def budget(settings: SearchSettings, dataset: ImageDataset, ledger: Ledger) -> dict[str, Any]:
    """What every complete trial got, and how many trials there are, for ``tradeoff.json``."""
    return {
        "trials": len(ledger.records),
        "epochs": settings.epochs,
        "images_per_trial": settings.epochs * len(dataset.train),
        "batch_size": settings.batch_size,
        "precision": settings.precision,
    }


def plan(settings: SearchSettings, dataset: ImageDataset, ledger: Ledger) -> str:
    """What is about to run, in two lines."""
    channels, height, width = dataset.shape
    ended, unfinished = len(ledger.ended()), len(ledger.with_status("running"))
    resumed = f" ({ended} done before, {unfinished} to resume)" if ledger.records else ""
    return (
        f"{dataset.name}: {len(dataset.train):,} training, {len(dataset.val):,} validation and {len(dataset.test):,} "
        f"test images of {width}×{height}×{channels}, {dataset.bins} levels\n"
        f"{settings.trials} trials over {', '.join(settings.families)}, {settings.epochs} epochs each{resumed}; "
        f"results in {ledger.root}"
    )


def draw(ledger: Ledger, search: dict[str, Any], console: Console) -> list[Path]:
    """Write the map's files and print its summary. Returns the files."""
    records = list(ledger.records.values())
    tradeoff = build_tradeoff(records, search)
    write_tradeoff(ledger.root, tradeoff)
    write_plot(ledger.root, tradeoff, records)
    write_page(ledger.root, tradeoff, records)
    files = [ledger.root / name for name in ("tradeoff.html", "tradeoff.png", "tradeoff.json", "trials.csv")]
    console.print(summary(tradeoff))
    for path in files:
        console.print(str(path), style="dim", soft_wrap=True, highlight=False)
    return files


def storage_error(error: OSError) -> ConfigError:
    """A full or read-only disk, in one line."""
    where = f" {error.filename}" if error.filename else ""
    return ConfigError(
        f"--storage: cannot be written:{where} ({error.strerror}); make room and run the same command again"
    )


if __name__ == "__main__":
    command_line.run(main, SearchSettings)
