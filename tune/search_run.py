"""Run a search, from its settings to its map: what ``python tune/search.py`` (:mod:`tune.search`) carries out."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from rich.console import Console

import pipelines.training.ray_environment  # noqa: F401  (before Ray is imported)
from fvae.config import ConfigError
from fvae.data.images import Dataset
from pipelines.cli.stop_signals import in_a_hurry
from pipelines.cli.terminal import make_console
from pipelines.data.datasets import load_dataset
from pipelines.storage.json_objects import address
from pipelines.storage.run_lock import explained_disk, locked
from pipelines.tracking.connection import unreachable_for_now
from pipelines.tracking.tracker import Artifact
from pipelines.tracking.tracking_uri import tracking_uri
from pipelines.training.worker_warnings import Notices
from pipelines.ui import how_to_open
from tune.map.page import write_page
from tune.map.plots import write_plot
from tune.map.tradeoff import build_tradeoff, write_tradeoff
from tune.propose.optuna_study import DATABASE, write_search
from tune.records.ledger import Ledger
from tune.records.scores import image_bits
from tune.records.search_folder import SEARCH, check_search, open_search
from tune.records.training_time import TIME, SearchClock
from tune.run.budget import Budget, retry_out_of_memory
from tune.run.mlflow_tracking import LedgerTracker
from tune.run.trial_checkpoint import remove_checkpoints
from tune.settings import SearchSettings
from tune.show.display import SearchDisplay, reading_progress
from tune.show.outcome import how_it_ended, say_interrupted, summary, trained_epochs, why_all_failed
from tune.show.plan import Forecaster, what_it_costs, what_runs
from tune.space import SearchSpace
from tune.stats.pareto import fronts

if TYPE_CHECKING:  # they import Ray, which takes seconds
    from tune.run.assembly import Parts
    from tune.run.resources import Resources

MAP_FILES = ("tradeoff.html", "tradeoff.png", "tradeoff.json", "trials.csv")
MAP_OPTIONS = ("time_budget", "gpu_hours", "patience", "sampler", "goal", "max_params", "max_flops", "max_memory",
               "seeds")  # fmt: skip
"""Options that the map names among its budget."""


def main(settings: SearchSettings) -> int:
    """Search, read the test split, draw the map. Returns the exit status."""
    console = make_console()
    with Notices(console) as notices:
        decisions: list[str] = []  # printed once it is sure that there will be a search
        dataset = load_dataset(settings.dataset, settings.streaming, decisions.append)
        SearchSpace.for_images(dataset.shape, dataset.bins)  # raises ConfigError for images that no model takes
        storage = settings.run_storage(dataset.name)
        if note := unreachable_for_now(tracking_uri(settings.all_runs())):
            decisions.append(f"warning: MLflow at {note}")
        if settings.dry_run:
            check_search(storage, settings, dataset)
            budget = Budget(settings, SearchClock(storage), dataset.bins)
            plan = what_runs(settings, dataset, Ledger(storage), budget)
            console.print(*decisions, plan, "Nothing is done.", sep="\n", highlight=False, soft_wrap=True, markup=False)
            return 0
        with explained_disk(storage), locked(storage, "search") as lease:
            storage.clean_up()  # what a killed search was about to write
            search = open_search(storage, settings, dataset)
            for decision in decisions:
                notices.say(decision)
            run = SearchRun(settings, dataset, search, Ledger(storage, lease.check), console, notices)
            try:
                status = run.run()
            except ConfigError:
                if not run.ledger.records:  # it could not begin
                    storage.delete(SEARCH, TIME)
                raise
            storage.clean_up()  # what a trial's process was about to write when it was ended
            return status


class SearchRun:
    """One session of a search: train what is left to train, read the test split, draw the map."""

    def __init__(
        self,
        settings: SearchSettings,
        dataset: Dataset,
        search: dict[str, Any],
        ledger: Ledger,
        console: Console,
        notices: Notices,
    ) -> None:
        """
        Args:
            settings: what the user asks for.
            dataset: the images.
            search: the content of ``search.json``.
            ledger: the records of the run, whose lock this process holds.
            console: where results are printed.
            notices: where progress and warnings are printed.
        """
        self.settings, self.dataset, self.search, self.ledger = settings, dataset, search, ledger
        self.console, self.notices = console, notices
        ledger.close_attempts()
        self.budget = Budget(settings, SearchClock(ledger.root, ledger.guard), dataset.bins)
        retry_out_of_memory(ledger, self.budget, settings.seeds)
        self.tracker = LedgerTracker(settings, dataset.name, search, ledger, notices)
        self._epochs_before = trained_epochs(ledger)

    def run(self) -> int:
        """Carry out all of it, and print the result. Returns the exit status."""
        for record in self.ledger.records.values():
            self.tracker.track(record)
        with self.tracker.closing():
            try:
                ended = self._train_and_test()
            except KeyboardInterrupt:
                ended = None
            if ended is None:  # first what outlives a kill that may follow within seconds
                self.tracker.close(interrupted=True)
                if in_a_hurry():  # the next command draws the map
                    return say_interrupted(self.console)
            files = self._draw_map(ended)
            if ended:
                self.tracker.finish(files)
            if not self.ledger.root.exists(DATABASE):
                name = self.settings.run_name(self.dataset.name)
                write_search(self.ledger, name, self.search["dataset"], self.notices.say)
        for problem in self.tracker.problems:
            self._print(f"warning: {problem}", style="yellow")
        return self._print_end(ended) if ended else say_interrupted(self.console)

    @property
    def trained(self) -> bool:
        """Whether this session has trained an epoch."""
        return trained_epochs(self.ledger) > self._epochs_before

    @property
    def unread(self) -> list[str]:
        """Ids of the fronts' models whose test split has not been read."""
        records = self.ledger.records
        on_fronts = {record_id for ids in fronts(list(records.values())).values() for record_id in ids}
        return sorted(record_id for record_id in on_fronts if records[record_id].test is None)

    @property
    def map_budget(self) -> dict[str, Any]:
        """What every complete trial got, how many trials there are, and the options that limit the search."""
        return {
            "trials": len(self.ledger.records),
            "epochs": self.settings.epochs,
            "images_per_trial": self.settings.epochs * self.dataset.counts()["train"],
            "batch_size": self.settings.batch_size,
            "precision": self.settings.precision,
            "max_trials": self.settings.max_trials,
            **{name: getattr(self.settings, name) for name in MAP_OPTIONS},
        }

    # --- training and testing --------------------------------------------------------------------------------------

    def _train_and_test(self) -> str | None:
        """Train what is left to train, then read the test split for the fronts.

        Returns why no more is trained, one line; None where Ctrl-C came first.
        """
        settings, dataset, ledger = self.settings, self.dataset, self.ledger
        ended = self.budget.finished(ledger, settings.seeds)
        if ended and not self.unread:
            return ended
        ledger.root.delete(DATABASE)  # it is written again, by a later session if this one is killed
        from tune.run.assembly import assemble  # Ray takes seconds to import: a finished search is shown without it
        from tune.run.resources import search_session
        from tune.run.scoring import read_tests

        self._print(what_runs(settings, dataset, ledger, self.budget))
        samples = self.search["validation_samples"]
        parts = None if ended else assemble(settings, dataset, ledger, self.budget, validation_samples=samples)
        with search_session(settings, dataset) as resources, self.tracker.reporting_interrupt():
            if parts:
                ended = self._train(resources, parts)
                if ended is None:
                    return None
            while ids := self.unread:  # a model that cannot be measured leaves its front to others
                readings = read_tests(resources, dataset, ledger, ids, self.notices.say)
                for record in reading_progress(self.console, readings, len(ids)):
                    self.tracker.track(record)
        remove_checkpoints(ledger)
        return ended

    def _train(self, resources: Resources, parts: Parts) -> str | None:
        """Train until the budget or the models are used up. Returns which, one line; None where Ctrl-C came first."""
        from tune.run.callbacks import BudgetStopper, LedgerCallback
        from tune.run.engine import run_trials

        settings, dataset, ledger, budget = self.settings, self.dataset, self.ledger, self.budget
        at_once = resources.expected_at_once()
        if parts.warm_start:
            self._print(parts.warm_start)
        self._print(what_it_costs(settings, dataset, ledger, budget, parts.source, parts.limits, at_once))
        stopper = BudgetStopper(budget, ledger)
        budget.clock.start()
        forecaster = Forecaster(ledger, budget, settings.epochs, at_once)
        with SearchDisplay(self.console, ledger, forecaster, trials=budget.max_trials) as display:
            watchers, keepers, workers = [display.watch], [self.tracker.track], settings.workers_per_trial
            callback = LedgerCallback(ledger, watchers, self.notices.say, keepers, workers=workers)
            done = run_trials(resources, dataset, parts.expected, parts.searcher, [callback], stopper)
        callback.pause_running()
        budget.clock.stop()
        for line in parts.searcher.exhausted.values():
            self.notices.say(line)
        return (stopper.why or parts.searcher.ended) if done else None

    # --- results ---------------------------------------------------------------------------------------------------

    def _draw_map(self, ended: str | None) -> list[Artifact]:
        """Write the map's files and print its summary. Returns the files."""
        records, root = list(self.ledger.records.values()), self.ledger.root
        search = self.search | {
            "budget": self.map_budget | {"ended": ended},
            "seconds": self.budget.clock.seconds,
            "options": self.settings.options_to_decide(),
        }
        tradeoff = build_tradeoff(records, search, lambda record: image_bits(self.ledger.trial_storage(record.id)))
        self.ledger.guard()
        write_tradeoff(root, tradeoff)
        write_plot(root, tradeoff, records)
        write_page(root, tradeoff, records)
        self.console.print(summary(tradeoff))
        for name in MAP_FILES:
            self._print(address(root, name), style="dim")
        return [Artifact(root, name) for name in MAP_FILES]

    def _print_end(self, ended: str) -> int:
        """Print why the search has ended and where MLflow shows it. Returns the exit status."""
        if reasons := why_all_failed(self.ledger):
            sys.stdout.flush()
            print(f"error: every trial has failed: {reasons}", file=sys.stderr)
            return 1
        self._print(how_it_ended(ended, self.ledger, self.settings, trained=self.trained))
        if self.tracker.logged:
            self._print(f"MLflow: {how_to_open(self.settings.all_runs())}, experiment fvae/{self.dataset.name}")
        else:
            self._print("MLflow has nothing of this search yet: the same command logs it once it answers")
        return 0

    def _print(self, text: str, style: str | None = None) -> None:
        self.console.print(text, style=style, soft_wrap=True, highlight=False, markup=False)
