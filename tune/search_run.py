"""One search: from its settings to its map. The command is :mod:`tune.search`."""

from __future__ import annotations

import contextlib
import math
import os
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from rich.console import Console

import pipelines.training.ray_environment  # noqa: F401  (before Ray is imported)
from fvae.config import ConfigError
from fvae.data.images import Dataset
from pipelines.cli.stop_signals import in_a_hurry
from pipelines.cli.terminal import make_console
from pipelines.data.datasets import load_dataset, memory_bytes
from pipelines.storage import StorageError
from pipelines.storage.json_objects import address
from pipelines.storage.run_lock import explained_disk, locked
from pipelines.tracking.stores import tracking_uri, unreachable_for_now
from pipelines.tracking.tracker import Artifact, SearchTracker
from pipelines.training.worker_warnings import Notices
from pipelines.ui import how_to_open
from tune.map.page import write_page
from tune.map.plots import write_plot
from tune.map.tradeoff import build_tradeoff, write_tradeoff
from tune.propose.optuna_study import DATABASE, FrozenTrials, write_studies
from tune.records.ledger import Ledger, TrialRecord
from tune.records.scores import image_bits
from tune.records.search_folder import COMPARED, SEARCH, check_search, open_search
from tune.records.training_time import TIME, SearchClock
from tune.run.budget import Budget
from tune.run.mlflow_snapshots import snapshot
from tune.run.trial_checkpoint import CHECKPOINT
from tune.settings import SearchSettings
from tune.show.display import SearchDisplay, reading_progress
from tune.show.outcome import how_it_ended, say_interrupted, summary, trained_epochs, why_all_failed
from tune.show.plan import Forecaster, what_it_costs, what_runs
from tune.space import SearchSpace
from tune.statistics.pareto import fronts

if TYPE_CHECKING:  # they import Ray, which takes seconds
    from tune.run.assembly import Parts
    from tune.run.resources import Room

CLOSING_SECONDS, CLOSING_SECONDS_WITHOUT_STORE = 60.0, 3.0
"""How long MLflow may take over what is left to write when the search ends."""
MANY_TRIALS = 100
"""Beyond so many it takes seconds to write the Optuna studies."""
MAP_FILES = ("tradeoff.html", "tradeoff.png", "tradeoff.json", "trials.csv")


def main(settings: SearchSettings) -> int:
    """Search, read the tests, draw the map. Returns the exit status."""
    console = make_console()
    with Notices(console) as notices:
        decisions: list[str] = []  # said once it is sure that there will be a search
        dataset = load_dataset(settings.dataset, settings.streaming, decisions.append)
        SearchSpace.for_images(dataset.shape, dataset.bins)  # raises ConfigError for images that no model takes
        run_storage = settings.run_storage(dataset.name)
        if note := unreachable_for_now(tracking_uri(settings.all_runs())):
            decisions.append(f"warning: MLflow at {note}")
        if settings.dry_run:
            check_search(run_storage, settings, dataset)
            plan = what_runs(
                settings, dataset, Ledger(run_storage), Budget(settings, SearchClock(run_storage), dataset.bins)
            )
            console.print(*decisions, plan, "Nothing is done.", sep="\n", highlight=False, soft_wrap=True, markup=False)
            return 0
        with explained_disk(run_storage), locked(run_storage, "search") as lease:
            run_storage.clean_up()  # what a killed search was about to write
            search = open_search(run_storage, settings, dataset)
            for decision in decisions:
                notices.say(decision)
            ledger = Ledger(run_storage, lease.check)
            ledger.close_attempts()
            budget = Budget(settings, SearchClock(run_storage, lease.check), dataset.bins)
            take_up_again(ledger, budget, settings.seeds)
            try:
                status = run(settings, dataset, search, ledger, budget, console, notices)
            except ConfigError:
                if not ledger.records:  # it could not begin
                    run_storage.delete(SEARCH, TIME)
                raise
            run_storage.clean_up()  # what a trial's process was about to write when it was ended
            return status


def take_up_again(ledger: Ledger, budget: Budget, seeds: int) -> None:
    """Let trials go on that failed for want of memory, where the budget lets them and they may find more of it.

    What a cluster's machines have is not known before Ray is there: those that no other trial crowded out are tried
    again only where something else is trained too.
    """
    if budget.over(ledger):
        return
    if "RAY_ADDRESS" not in os.environ:
        ledger.take_up_again(memory_bytes())
    else:
        ledger.take_up_again(0 if budget.finished(ledger, seeds) else math.inf)


def run(
    settings: SearchSettings,
    dataset: Dataset,
    search: dict[str, Any],
    ledger: Ledger,
    budget: Budget,
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
        tracker.start()  # a search that cannot begin leaves no run

    for record in ledger.records.values():
        track(record)
    ended: str | None = None
    epochs_before = trained_epochs(ledger)
    interrupted = said = False
    patience = CLOSING_SECONDS
    try:
        try:
            ended = search_and_test(settings, dataset, search, ledger, budget, console, notices, track, tracker)
            interrupted = ended is None
        except KeyboardInterrupt:
            interrupted = True
        if interrupted:  # first what outlives a kill that may follow within seconds
            said = True
            close(tracker, ledger, notices, interrupted=True, patience=patience)
        if interrupted and in_a_hurry():  # the next command draws the map
            return say_interrupted(console)
        spent = {
            "budget": told(settings, dataset, ledger) | {"ended": ended},
            "seconds": budget.clock.seconds,
            "options": settings.options_to_decide(),
        }
        files = draw(ledger, {**search, **spent}, console)
        if ended:
            tracker.finish(files)
        if not ledger.root.exists(DATABASE):
            keep_studies(ledger, search["dataset"], settings.run_name(dataset.name), notices)
    except KeyboardInterrupt:
        interrupted = True
        raise
    except StorageError:  # after minutes of trying: what MLflow still lacks, the next start brings it
        patience = CLOSING_SECONDS_WITHOUT_STORE
        notices.silence()
        raise
    finally:
        if not said:
            close(tracker, ledger, notices, interrupted=interrupted, patience=patience)
    for problem in tracker.problems:
        console.print(f"warning: {problem}", style="yellow", soft_wrap=True, highlight=False, markup=False)
    if not ended:
        return say_interrupted(console)
    if reasons := why_all_failed(ledger):
        sys.stdout.flush()
        print(f"error: every trial has failed: {reasons}", file=sys.stderr)
        return 1
    trained = trained_epochs(ledger) > epochs_before
    console.print(how_it_ended(ended, ledger, settings, trained=trained), soft_wrap=True, highlight=False, markup=False)
    if tracker.logged:
        opened = how_to_open(settings.all_runs())
        console.print(
            f"MLflow: {opened}, experiment fvae/{dataset.name}", soft_wrap=True, highlight=False, markup=False
        )
    else:
        console.print("MLflow has nothing of this search yet: the same command logs it once it answers", soft_wrap=True)
    return 0


def close(tracker: SearchTracker, ledger: Ledger, notices: Notices, *, interrupted: bool, patience: float) -> None:
    """Let MLflow have what is left to write, for up to ``patience`` seconds."""
    if ledger.records:
        notices.say("Writing the last figures to MLflow …")
    tracker.close(interrupted=interrupted, timeout=patience)


@contextlib.contextmanager
def closing_early(tracker: SearchTracker) -> Iterator[None]:
    """After Ctrl-C within the block MLflow hears of it at once, and not only when Ray has ended."""
    try:
        yield
    except KeyboardInterrupt:
        tracker.begin_to_close(interrupted=True)
        raise


def search_and_test(
    settings: SearchSettings,
    dataset: Dataset,
    search: dict[str, Any],
    ledger: Ledger,
    budget: Budget,
    console: Console,
    notices: Notices,
    track: Callable[[TrialRecord], None],
    tracker: SearchTracker,
) -> str | None:
    """Train what is left to train, then read the test split for the fronts.

    Returns why no more is trained, one line; None where Ctrl-C came first.
    """
    ended = budget.finished(ledger, settings.seeds)
    if ended and not unread(ledger):
        return ended
    ledger.root.delete(DATABASE)  # it is written anew, also by a later session if this one is killed
    from tune.run.assembly import assemble  # Ray takes seconds to import: a finished search is shown without it
    from tune.run.resources import search_session
    from tune.run.scoring import read_tests

    console.print(what_runs(settings, dataset, ledger, budget), highlight=False, soft_wrap=True, markup=False)
    samples = search["validation_samples"]
    parts = None if ended else assemble(settings, dataset, ledger, budget, validation_samples=samples)
    with search_session(settings, dataset) as room, closing_early(tracker):
        if parts:
            ended = train(room, dataset, parts, budget, console, notices, track)
            if ended is None:
                return None
        while ids := unread(ledger):  # a model that cannot be measured leaves its front to others
            readings = read_tests(room, dataset, ledger, ids, notices.say)
            for record in reading_progress(console, readings, len(ids)):
                track(record)
    remove_checkpoints(ledger)
    return ended


def train(
    room: Room,
    dataset: Dataset,
    parts: Parts,
    budget: Budget,
    console: Console,
    notices: Notices,
    track: Callable[[TrialRecord], None],
) -> str | None:
    """Train until the budget or the models are used up. Returns which, one line; None where Ctrl-C came first."""
    from tune.run import engine
    from tune.run.callbacks import BudgetStopper, LedgerCallback

    settings, ledger = room.settings, parts.searcher.ledger
    at_once = room.expected_at_once()
    costs = what_it_costs(settings, dataset, ledger, budget, parts.source, parts.limits, at_once)
    for text in (parts.said, costs):
        console.print(text, highlight=False, soft_wrap=True, markup=False) if text else None
    forecaster = Forecaster(ledger, budget, settings.epochs, at_once)
    stopper = BudgetStopper(budget, ledger)
    budget.clock.start()
    with SearchDisplay(console, ledger, forecaster, trials=budget.max_trials) as display:
        watchers, workers = (display.watch,), settings.workers_per_trial
        callback = LedgerCallback(ledger, watchers, notices.say, keepers=(track,), workers=workers)
        done = engine.run_trials(room, dataset, parts.standings, parts.searcher, [callback], stopper)
    callback.put_aside()
    budget.clock.stop()
    for line in parts.searcher.exhausted.values():
        notices.say(line)
    if not done:
        return None
    return stopper.why or parts.searcher.ended


def remove_checkpoints(ledger: Ledger) -> None:
    """Those of trials that never go on: each goes when its trial ends, unless the search is killed at that moment."""
    ended = {f"trials/{record.id}/{CHECKPOINT}" for record in ledger.with_status("complete", "failed")}
    ledger.root.delete(*(found.key for found in ledger.root.list("trials") if found.key in ended))


def unread(ledger: Ledger) -> list[str]:
    """The fronts' models whose test split has not been read."""
    on_fronts = {record_id for ids in fronts(list(ledger.records.values())).values() for record_id in ids}
    return sorted(record_id for record_id in on_fronts if ledger.records[record_id].test is None)


def told(settings: SearchSettings, dataset: Dataset, ledger: Ledger) -> dict[str, Any]:
    """What every complete trial got, how many trials there are, and what the command was told, for the map."""
    names = (
        "time_budget",
        "gpu_hours",
        "patience",
        "sampler",
        "goal",
        "max_params",
        "max_flops",
        "max_memory",
        "seeds",
    )
    return {
        "trials": len(ledger.records),
        "epochs": settings.epochs,
        "images_per_trial": settings.epochs * dataset.counts()["train"],
        "batch_size": settings.batch_size,
        "precision": settings.precision,
        "max_trials": settings.max_trials,
        **{name: getattr(settings, name) for name in names},
    }


def draw(ledger: Ledger, search: dict[str, Any], console: Console) -> list[Artifact]:
    """Write the map's files and print its summary. Returns the files."""
    records = list(ledger.records.values())
    tradeoff = build_tradeoff(records, search, lambda record: image_bits(ledger.trial_storage(record.id)))
    ledger.guard()
    write_tradeoff(ledger.root, tradeoff)
    write_plot(ledger.root, tradeoff, records)
    write_page(ledger.root, tradeoff, records)
    console.print(summary(tradeoff))
    for name in MAP_FILES:
        console.print(address(ledger.root, name), style="dim", soft_wrap=True, highlight=False, markup=False)
    return [Artifact(ledger.root, name) for name in MAP_FILES]


def keep_studies(ledger: Ledger, images: dict[str, Any], name: str, notices: Notices) -> None:
    """Write the search's trials as Optuna studies beside the map: :data:`tune.propose.optuna_study.DATABASE`."""
    (channels, height, width), bins = images["shape"], images["bins"]
    fields = {"channels": channels, "height": height, "width": width, "bins": bins}
    trials = FrozenTrials(SearchSpace.for_images((channels, height, width), bins), fields)
    firsts = [record for record in ledger.records.values() if record.replicate_of is None]
    if len(firsts) > MANY_TRIALS:
        notices.say(f"Writing {len(firsts)} trials to {DATABASE} …")
    ledger.guard()
    write_studies(ledger.root, name, [trials.of(record) for record in firsts])
