"""The main job: search VAE, flow and f-VAE, and draw the map of parameters against bits/dim.

    python tune/search.py                              # the embedded digits, about ten minutes on two cores
    python tune/search.py --dataset PATH --trials 60   # your own images
    python tune/search.py --dataset s3://bucket/images --storage s3://bucket/runs

Results lie in runs/<name>/ (or where --storage says): tradeoff.html, tradeoff.png, tradeoff.json and trials.csv.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rich.console import Console

import pipelines.ray_environment  # noqa: F401  (before Ray is imported)
from fvae.data import Dataset
from fvae.train_config import TrainConfig
from pipelines import command_line
from pipelines.datasets import load_dataset
from pipelines.run_place import explained_disk, locked
from pipelines.storage import StorageError
from pipelines.stored import address
from pipelines.tracking import Artifact, SearchTracker
from pipelines.troubles import Notices
from tune.display import SearchDisplay, reading_progress, summary
from tune.ledger import Ledger, TrialRecord
from tune.opening import COMPARED, open_search
from tune.page import write_page
from tune.pareto import fronts
from tune.plots import write_plot
from tune.settings import SearchSettings
from tune.snapshots import snapshot
from tune.space import SearchSpace
from tune.tradeoff import build_tradeoff, write_tradeoff
from tune.trial_files import CHECKPOINT

CLOSING_SECONDS, CLOSING_SECONDS_WITHOUT_STORE = 60.0, 3.0
"""How long MLflow may take over what is left to write when the search ends."""
MAP_FILES = ("tradeoff.html", "tradeoff.png", "tradeoff.json", "trials.csv")


def main(settings: SearchSettings) -> int:
    """Search, read the tests, draw the map. Returns the exit status."""
    console = Console()
    with Notices(console) as notices:
        decisions: list[str] = []  # said once it is sure that there will be a search
        dataset = load_dataset(settings.dataset, settings.streaming, decisions.append)
        space = SearchSpace.for_images(dataset.shape)
        run_storage = settings.run_storage(dataset.name)
        with explained_disk(run_storage), locked(run_storage, "search") as lease:
            run_storage.clean_up()  # what a killed search was about to write
            search = open_search(run_storage, settings, dataset)
            for decision in decisions:
                notices.say(decision)
            status = run(settings, dataset, space, search, Ledger(run_storage, lease.check), console, notices)
            run_storage.clean_up()  # what a trial's process was about to write when it was ended
            return status


def run(
    settings: SearchSettings,
    dataset: Dataset,
    space: SearchSpace,
    search: dict[str, Any],
    ledger: Ledger,
    console: Console,
    notices: Notices,
) -> int:
    """Everything between an opened run and its printed result. Returns the exit status."""
    tracker = SearchTracker(
        storage=settings.all_runs(),
        dataset_name=dataset.name,
        search_name=settings.run_name(dataset.name),
        params={f"data.{name}": value for name, value in search["dataset"].items()}
        | {f"train.{name}": search[name] for name in COMPARED},
    )

    def track(record: TrialRecord) -> None:
        tracker.record_trial(snapshot(record, search["dataset"], ledger.trial_storage(record.id)))

    for record in ledger.records.values():
        track(record)
    tracker.start()
    finished = interrupted = False
    patience = CLOSING_SECONDS
    try:
        try:
            finished = search_and_test(settings, dataset, space, ledger, console, notices, track)
            interrupted = not finished
        except KeyboardInterrupt:
            interrupted = True
        files = draw(ledger, {**search, "budget": budget(settings, dataset, ledger)}, console)
        if finished:
            tracker.finish(files)
    except KeyboardInterrupt:
        interrupted = True
        raise
    except StorageError:  # after minutes of trying: what MLflow still lacks, the next start brings it
        patience = CLOSING_SECONDS_WITHOUT_STORE
        notices.silence()
        raise
    finally:
        notices.say("Writing the last figures to MLflow …")
        tracker.close(interrupted=interrupted, timeout=patience)
    for problem in tracker.problems:
        console.print(f"warning: {problem}", style="yellow", markup=False)
    if not finished:
        console.print("Interrupted. The same command goes on where it stopped; nothing finished is lost.")
        return 1
    where = "" if settings.storage == "runs" else f" ARGS='--runs {settings.storage}'"
    console.print(
        f"MLflow: make ui{where}, experiment fvae/{dataset.name}", soft_wrap=True, highlight=False, markup=False
    )
    return 0


def search_and_test(
    settings: SearchSettings,
    dataset: Dataset,
    space: SearchSpace,
    ledger: Ledger,
    console: Console,
    notices: Notices,
    track: Callable[[TrialRecord], None],
) -> bool:
    """Train what is left to train, then read the test split for the fronts. False where Ctrl-C came first."""
    done = len(ledger.records) >= settings.trials and not ledger.with_status("running")
    if done and not unread(ledger):
        return True
    from tune import engine  # Ray takes seconds to import: a finished search is shown without it
    from tune.callbacks import LedgerCallback
    from tune.searcher import FrontSearcher

    console.print(plan(settings, dataset, ledger), highlight=False, soft_wrap=True, markup=False)
    with engine.search_session(settings, dataset) as room:
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
                callback = LedgerCallback(ledger, (display.watch, track), notices.say)
                if not engine.run_trials(room, dataset, ledger, searcher, [callback]):
                    return False
        while ids := unread(ledger):  # a model that cannot be measured leaves its front to others
            readings = engine.read_tests(room, dataset, ledger, ids, notices.say)
            for record in reading_progress(console, readings, len(ids)):
                track(record)
    remove_checkpoints(ledger)
    return True


def remove_checkpoints(ledger: Ledger) -> None:
    """Those of ended trials: each goes when its trial ends, unless the search is killed at that very moment."""
    ended = {f"trials/{record.id}/{CHECKPOINT}" for record in ledger.ended()}
    ledger.root.delete(*(found.key for found in ledger.root.list("trials") if found.key in ended))


def unread(ledger: Ledger) -> list[str]:
    """The fronts' models whose test split has not been read."""
    on_fronts = {record_id for ids in fronts(list(ledger.records.values())).values() for record_id in ids}
    return sorted(record_id for record_id in on_fronts if ledger.records[record_id].test is None)


def budget(settings: SearchSettings, dataset: Dataset, ledger: Ledger) -> dict[str, Any]:
    """What every complete trial got, and how many trials there are, for ``tradeoff.json``."""
    return {
        "trials": len(ledger.records),
        "epochs": settings.epochs,
        "images_per_trial": settings.epochs * dataset.counts()["train"],
        "batch_size": settings.batch_size,
        "precision": settings.precision,
    }


def plan(settings: SearchSettings, dataset: Dataset, ledger: Ledger) -> str:
    """What is about to run, in two lines."""
    channels, height, width = dataset.shape
    counts = dataset.counts()
    ended, unfinished = len(ledger.ended()), len(ledger.with_status("running"))
    resumed = f" ({ended} done before, {unfinished} to resume)" if ledger.records else ""
    return (
        f"{dataset.name}: {counts['train']:,} training, {counts['val']:,} validation and {counts['test']:,} "
        f"test images of {width}×{height}×{channels}, {dataset.bins} levels\n"
        f"{settings.trials} trials over {', '.join(settings.families)}, {settings.epochs} epochs each{resumed}; "
        f"results in {ledger.root.uri}"
    )


def draw(ledger: Ledger, search: dict[str, Any], console: Console) -> list[Artifact]:
    """Write the map's files and print its summary. Returns the files."""
    records = list(ledger.records.values())
    tradeoff = build_tradeoff(records, search)
    ledger.guard()
    write_tradeoff(ledger.root, tradeoff)
    write_plot(ledger.root, tradeoff, records)
    write_page(ledger.root, tradeoff, records)
    console.print(summary(tradeoff))
    for name in MAP_FILES:
        console.print(address(ledger.root, name), style="dim", soft_wrap=True, highlight=False, markup=False)
    return [Artifact(ledger.root, name) for name in MAP_FILES]


if __name__ == "__main__":
    command_line.run(main, SearchSettings)
