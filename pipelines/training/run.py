"""Runs a training job: starts and watches the workers, logs to MLflow, prints the result."""

from __future__ import annotations

from typing import Any

from rich.console import Console

import pipelines.training.ray_environment  # noqa: F401  (before Ray is imported)
from fvae.data.images import Dataset, steps_per_epoch
from fvae.epoch_metrics import EpochMetrics
from fvae.evaluation import NonFiniteError
from fvae.flops import parameters_and_flops
from pipelines.storage import Storage, StorageError
from pipelines.storage.json_objects import address
from pipelines.storage.lease import Lease
from pipelines.tracking.snapshot import epoch_snapshot, run_params
from pipelines.tracking.tracker import RunTracker, TrialSnapshot
from pipelines.training import main_memory
from pipelines.training.configs import TrainConfigs
from pipelines.training.display import TrainDisplay
from pipelines.training.events import EpochDone, Event, Notice, StepDone, TrainingDone, TrainingStarted
from pipelines.training.job import (
    TrainResult,
    artifacts,
    read_result,
    write_mlflow_model,
    write_result,
)
from pipelines.training.model_files import MODEL
from pipelines.training.settings import TrainSettings
from pipelines.training.worker_warnings import Notices

CLOSING_SECONDS, CLOSING_SECONDS_WITHOUT_STORE = 60.0, 3.0
"""How long MLflow may take over what is left to write when the job ends."""


class Training:
    """One job, from its opened place to its printed result."""

    def __init__(
        self,
        settings: TrainSettings,
        dataset: Dataset,
        configs: TrainConfigs,
        job: dict[str, Any],
        name: str,
        run: Storage,
        lease: Lease,
        console: Console,
        notices: Notices,
    ) -> None:
        self.settings, self.dataset, self.configs, self.job = settings, dataset, configs, job
        self.name, self.run, self.lease, self.console, self.notices = name, run, lease, console, notices
        self.parameters, self.flops = parameters_and_flops(configs.model)
        self.history: list[EpochMetrics] = []
        self.system: dict[int, dict[str, float]] = {}
        """System metrics by epoch: only of those trained since this process started."""
        self.result = read_result(run)
        self._starts = 0
        self._done: TrainResult | None = None
        self.tracking = False
        """Whether this process has begun to log the job to MLflow."""
        self.tracker = RunTracker(
            storage=settings.all_runs(),
            dataset_name=dataset.name,
            run_name=name,
            parent_run_id=configs.parent_run_id,
        )

    def carry_out(self) -> int:
        """Train what is left, log it to MLflow, print the result. Returns the exit status."""
        if self.result is None:
            plan = what_is_trained(self.settings, self.dataset, self.configs, self.run)
            self.console.print(plan, highlight=False, soft_wrap=True, markup=False)
        else:
            self.history = list(self.result.history)
            self._start_tracking()
        self._track()
        interrupted = True
        patience = CLOSING_SECONDS
        try:
            if self.result is None:
                self.result = self._train()
                self.lease.check()
                write_result(self.run, self.result)
                self._track()
            interrupted = False
        except StorageError:  # after minutes of trying: what MLflow still lacks, the next start brings it
            patience = CLOSING_SECONDS_WITHOUT_STORE
            self.notices.silence()
            raise
        except KeyboardInterrupt:
            self.console.print("Interrupted. The same command goes on from the last checkpoint.")
            return 1
        finally:
            if self.tracking:
                self.notices.say("Writing the last figures to MLflow …")
            self.tracker.close(interrupted=interrupted, timeout=patience)
            for problem in self.tracker.problems:
                self.console.print(f"warning: {problem}", style="yellow", soft_wrap=True, highlight=False, markup=False)
        return self._print_result()

    def _train(self) -> TrainResult:
        """Run the workers to the end of the training. Returns how it ended."""
        from pipelines.training.train_controller import JobFailed
        from pipelines.training.worker import WorkerTask, train  # Ray takes seconds to import: not to show what is done
        from pipelines.training.worker_group import job_session, ray_images, run_job

        resources = self.settings.resources()
        require_room(self.settings, self.configs)
        steps = steps_per_epoch(self.dataset.counts()["train"], self.configs.train.batch_size)
        with (
            TrainDisplay(self.console, epochs=self.configs.train.epochs, steps_per_epoch=steps) as self._display,
            job_session(self.dataset, resources),
        ):
            self._start_tracking()  # not before: what cannot start leaves no run
            task = WorkerTask(
                storage=self.run.uri,
                model=self.configs.model,
                train=self.configs.train,
                images=ray_images(self.dataset, ("train", "val")),
                keep=self.settings.keep_checkpoints,
                checkpoint_seconds=60 * self.settings.checkpoint_minutes,
                **self.settings.execution(),
            )
            try:
                return run_job(
                    train,
                    task,
                    name=self.name,
                    resources=resources,
                    max_failures=self.settings.max_failures,
                    resize_seconds=60 * self.settings.checkpoint_minutes,
                    on_event=self._on_event,
                )
            except KeyboardInterrupt:
                self.tracker.begin_to_close(interrupted=True)  # MLflow learns of it while Ray ends
                raise
            except NonFiniteError as error:
                return TrainResult(status="failed", reason=str(error), history=tuple(self.history))
            except JobFailed as failed:
                if self._done is not None:  # a worker was lost when all was done
                    return self._done
                raise StorageError(
                    f"{self.name}: {failed}; the same command goes on from the last checkpoint"
                ) from failed

    def _on_event(self, event: Event) -> None:
        """Called with the events of :func:`pipelines.training.worker.train`."""
        self.lease.check()  # the workers of a job that another process has taken over must end
        match event:
            case Notice(line):
                self.notices.say(line)
            case TrainingStarted(history, workers, step):
                new = history[len(self.history) :] if self._starts else ()  # a worker was lost before it sent them
                self.history = list(history)
                for metrics in new:
                    self._display.epoch(metrics)
                if new:
                    self._track()
                self._display.started(workers, step, again=self._starts > 0)
                self._starts += 1
            case StepDone(step):
                self._display.step(step)
            case EpochDone(metrics, system) if metrics.epoch <= len(self.history) + 1:  # else of workers that are lost
                self.history = [*self.history[: metrics.epoch - 1], metrics]
                self.system[metrics.epoch] = system
                self._display.epoch(metrics)
                self._track()
            case TrainingDone(result):
                self._done = result

    def _start_tracking(self) -> None:
        self.tracker.start()
        self.tracking = True

    def _track(self) -> None:
        """Log the present state of the job to MLflow."""
        result = self.result
        complete = result is not None and result.status == "complete"
        if complete:
            write_mlflow_model(self.run, self.dataset.name)
        model = self.configs.model
        self.tracker.record(
            TrialSnapshot(
                id=self.name,
                family=model.family,
                status=result.status if result else "running",
                reason=result.reason if result else "",
                params=run_params(self.job["model"], self.job["train"], self.job["dataset"]),
                constants={"size/params": self.parameters, "size/flops_per_image": self.flops},
                history=tuple(
                    epoch_snapshot(each, self.job["model"], self.system.get(each.epoch)) for each in self.history
                ),
                final={"best/val_bpd": result.best_val_bpd} if result and result.best_val_bpd is not None else {},
                artifacts=artifacts(self.run) if complete else (),
                registered_as=f"fvae-{self.dataset.name}" if self.settings.register else None,
            )
        )

    def _print_result(self) -> int:
        """The last lines. Returns the exit status."""
        assert self.result is not None
        if self.result.status == "failed":
            failed = f"failed: {self.result.reason}"
            self.console.print(failed, style="red", soft_wrap=True, highlight=False, markup=False)
            return 1
        lines = [
            f"validation {self.result.best_val_bpd:.4f} bits/dim (k = 1, epoch {self.result.best_epoch} of "
            f"{len(self.result.history)}), {self.parameters:,} parameters",
            f"model: {address(self.run, MODEL)}",
        ]
        if self.tracker.run_id:
            lines.append(f"MLflow: experiment fvae/{self.dataset.name}, run {self.tracker.run_id}")
        if self.tracker.model_version:
            lines.append(f"registered as models:/fvae-{self.dataset.name}/{self.tracker.model_version}")
        for line in lines:
            self.console.print(line, soft_wrap=True, highlight=False, markup=False)
        return 0


def require_room(settings: TrainSettings, configs: TrainConfigs) -> None:
    """Raise ``ConfigError`` where this machine's memory could not hold a CPU worker of the training."""
    resources = settings.resources()
    if not resources.gpus:
        main_memory.require_room(
            configs.model,
            configs.train,
            workers=resources.most,
            micro_batch_size=settings.micro_batch_size,
            checkpoint_activations=settings.checkpoint_activations,
        )


def what_is_trained(settings: TrainSettings, dataset: Dataset, configs: TrainConfigs, run: Storage) -> str:
    """The images, the model, and how it is trained, in two lines."""
    counts, train, model = dataset.counts(), configs.train, configs.model
    channels, height, width = dataset.shape
    resources = settings.resources()
    least, most = resources.workers, resources.most
    workers = f"{least} to {most} workers" if most > least else f"{most} worker{'s' if most > 1 else ''}"
    return (
        f"{dataset.name}: {counts['train']:,} training and {counts['val']:,} validation images of "
        f"{width}×{height}×{channels}, {dataset.bins} levels\n"
        f"{model.family} of {parameters_and_flops(model)[0]:,} parameters, {train.epochs} epochs in global batches "
        f"of {train.batch_size}, on {workers}; files in {run.uri}"
    )
