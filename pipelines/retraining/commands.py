"""What ``python -m pipelines.retrain`` does: retrain, roll back, or print what would be done."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

import pipelines.training.ray_environment  # noqa: F401  (before Ray is imported)
from fvae.config import require
from fvae.data.images import Dataset
from fvae.evaluation import NonFiniteError
from fvae.flops import parameters_and_flops
from pipelines.data.datasets import describe, load_dataset
from pipelines.retraining.decision import Decision
from pipelines.retraining.failure_hooks import run_hook
from pipelines.retraining.holdout_reuse import image_hashes, require_parts
from pipelines.retraining.job import Job, champion_of, nothing_new
from pipelines.retraining.lease_wait import waited_for
from pipelines.retraining.paired_scores import SPLIT, Scorer
from pipelines.retraining.promotion import Promoter, previous_of
from pipelines.retraining.recipe import require_fit, too_large, without_search
from pipelines.retraining.registered_model import RegisteredModel, opened_tracking
from pipelines.retraining.settings import RetrainSettings
from pipelines.storage import StorageError
from pipelines.storage.run_lock import explained_disk, require_writable
from pipelines.tracking.database import WorkingCopy
from pipelines.training.configs import read_tables
from pipelines.training.worker_warnings import Notices


class Command:
    """The actions of the command."""

    def __init__(self, settings: RetrainSettings, console: Console, notices: Notices) -> None:
        self._settings, self._console, self._notices = settings, console, notices

    def retrain(self) -> int:
        """Train on new data, compare, and put the better model into service. Returns the exit status."""
        settings, notices = self._settings, self._notices
        if settings.config is not None:
            read_tables(Path(settings.config))  # before anything is made or waited for
        place = settings.place()
        require_writable(place)
        what = f"another retraining of {settings.model}"
        with (
            explained_disk(place),
            waited_for(place, what, settings.wait_seconds, notices.say) as lease,
            opened_tracking(settings.runs()) as (uri, database),
        ):
            place.child("readings").clean_up()
            registered = self._registered(uri)
            promoter = self._promoter(registered, database)
            done = promoter.complete()
            dataset = self._dataset()
            if done is not None and done.outcome != "rolled-back":
                if done.dataset.get("hash") == dataset.content_hash():
                    self.say(done.text())
                    return status_of(done)
                notices.say("The data set has changed since: going on with it")
            job = Job(settings, dataset, registered, promoter, place, lease, self._console, notices)
            decision, run_id = job.carry_out()
        self.say(decision.text(), style="red" if decision.status else "green")
        self.say(f"MLflow: experiment fvae/{settings.name}, run {run_id}")
        return status_of(decision)

    def roll_back(self) -> int:
        """Put the champion's predecessor back into service. Returns the exit status."""
        settings = self._settings
        place = settings.place()
        with opened_tracking(settings.runs()) as (uri, database):
            registered = self._registered(uri)
            require(registered.exists(), f"--rollback: there are no runs in {settings.runs().uri}")
            if settings.dry_run:
                served = registered.champion()
                previous = previous_of(served, registered)
                assert served is not None
                self.say(f"{settings.model}: version {previous} would be the champion, not version {served.number}")
                return 0
            require_writable(place)
            with explained_disk(place):
                promoter = self._promoter(registered, database)
                done = promoter.complete(promote=False)
                if done is not None and done.outcome == "rolled-back":
                    self.say(done.text())
                    return 0
                champion = champion_of(registered)
                version = None if champion is None else champion.version
                previous = previous_of(version, registered)
                assert champion is not None
                data = champion.configs.data if champion.configs else {}
                decision = Decision(
                    model=settings.model,
                    outcome="rolled-back",
                    reasons=(settings.reason or "by hand, no reason given",),
                    before=champion.version.number,
                    after=previous,
                    challenger=champion.version.number,
                    dataset={key: data[key] for key in ("name", "hash") if key in data},
                    settled="hash" in data,
                )
                run_id = promoter.carry_out(decision)
        if run_id is None:
            raise StorageError(
                f"{settings.model}: another process has just changed the champion; check it before another rollback"
            )
        self.say(decision.text(), style="green")
        self.say(f"MLflow: experiment fvae/{settings.name}, run {run_id}")
        return 0

    def dry_run(self) -> int:
        """Print what would happen. Returns the exit status."""
        settings = self._settings
        if settings.rollback:
            return self.roll_back()
        dataset = self._dataset()
        self.say(f"{dataset.name}: hash {dataset.content_hash()}, {describe(dataset)['train']:,} training images")
        with opened_tracking(settings.runs()) as (uri, _):
            registered = self._registered(uri)
            champion = None
            if registered.exists():
                pending = self._promoter(registered, None).pending()
                if pending is not None:
                    self.say(f"A decision is being carried out, or was interrupted and would be: {pending.text()}")
                champion = champion_of(registered)
                found = nothing_new(settings, registered, dataset, champion)
                if found is not None:
                    self.say(f"Nothing would be trained: {found[0]}")
                    return 0
            if champion is None:
                self.say(f"{settings.model} has no champion: the first sound model becomes it")
            else:
                what = f"version {champion.version.number} of {settings.model}"
                if champion.configs is not None:
                    require_fit(settings, dataset, champion.configs.model, what)
                model = registered.load(champion.version)
                try:
                    bits = Scorer(settings, dataset, None, self._console).score(model, f"champion, {what}")
                    self.say(f"The champion, {what}: {bits.mean(settings.k[0]):.4f} bits/dim on the test images")
                except NonFiniteError as error:
                    self.say(f"The champion, {what}, fails on the test images: {error}")
            if settings.search is not None:
                self.say(f"A search of {settings.search} would choose the configuration, which would then be trained")
                return 0
            if settings.rotate > 1:
                require_parts(image_hashes(dataset.images(SPLIT)), settings.rotate)
            configs, source = without_search(settings, dataset, champion, self.say)
        parameters, _ = parameters_and_flops(configs.model)
        about = f"{configs.model.family} of {parameters:,} parameters, {configs.train.epochs} epochs"
        problem = too_large(settings, configs.model)
        self.say(f"Nothing would be trained: {problem[0]}" if problem else f"Would train {source}: {about}")
        return 0

    def say(self, line: str, style: str | None = None) -> None:
        """Print a line."""
        self._console.print(line, style=style, soft_wrap=True, highlight=False, markup=False)

    def notify_failure(self, reason: str, champion: int | None) -> None:
        """Run the failure hook, where there is one."""
        settings = self._settings
        if settings.on_failure is None:
            return
        event = {
            "event": "failed",
            "model": settings.model,
            "dataset": settings.dataset or "",
            "reason": reason,
            "champion": "" if champion is None else str(champion),
            "text": f"Retraining of {settings.model} failed: {reason}",
        }
        if problem := run_hook(settings.on_failure, event):
            self.say(f"warning: {problem}", style="yellow")

    def _report(self, decision: Decision) -> None:
        if decision.outcome == "failed":
            self.notify_failure("; ".join(decision.reasons), decision.after)

    def _dataset(self) -> Dataset:
        settings = self._settings
        assert settings.dataset is not None
        dataset = load_dataset(settings.dataset, settings.streaming, self._notices.say)
        require(
            dataset.name == settings.name,
            f"--model={settings.model}: {settings.dataset} is named {dataset.name!r}, its model fvae-{dataset.name}; "
            f"python -m pipelines.ingest --name {settings.name} names it otherwise",
        )
        return dataset

    def _registered(self, uri: str) -> RegisteredModel:
        return RegisteredModel(self._settings.model, self._settings.name, uri, self._settings.runs())

    def _promoter(self, registered: RegisteredModel, database: WorkingCopy | None) -> Promoter:
        settings = self._settings
        return Promoter(
            settings.place(),
            registered,
            database,
            wait_seconds=settings.wait_seconds,
            say=self._notices.say,
            report=self._report,
        )


def status_of(decision: Decision) -> int:
    """The exit status: images on which the training has failed are a failure as long as they do not change."""
    return 1 if decision.outcome == "failed" or decision.about.get("failed_before") else 0
