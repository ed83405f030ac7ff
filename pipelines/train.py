"""Train one model on one or many workers with Ray Train, through anything that may happen to them.

    python -m pipelines.train --dataset digits --model.family flow --model.flow-depth 8
    python -m pipelines.train --config configs/paper-64x64.toml --dataset s3://bucket/faces \\
        --storage s3://bucket/runs --elastic 2:8 --gpus-per-worker 1
    python -m pipelines.train --from-run RUN_ID --dataset data/photos --workers 4

The same command goes on where it stopped. Files lie in STORAGE/NAME: checkpoints/, model/, pictures, result.json.
"""

from __future__ import annotations

import pipelines.training.ray_environment  # noqa: F401  (before Ray is imported)
from fvae.config import ConfigError
from pipelines.cli import command_line
from pipelines.cli.terminal import make_console
from pipelines.cluster.submission import run_or_submit
from pipelines.data.datasets import load_dataset
from pipelines.storage.run_lock import explained_disk, locked
from pipelines.tracking.connection import unreachable_for_now
from pipelines.tracking.tracking_uri import tracking_uri
from pipelines.training.configs import train_configs
from pipelines.training.job import (
    JOB,
    check_job,
    default_name,
    identity,
    open_job,
    read_result,
)
from pipelines.training.run import Training, require_room, what_is_trained
from pipelines.training.settings import TrainSettings
from pipelines.training.worker_warnings import Notices


def main(settings: TrainSettings) -> int:
    """Train, or go on, or show what was trained. Returns the exit status."""
    console = make_console()
    with Notices(console) as notices:
        decisions: list[str] = []  # said once it is sure that there will be a training
        dataset = load_dataset(settings.dataset, settings.streaming, decisions.append)
        configs = train_configs(settings, dataset, decisions.append)
        job = identity(dataset, configs)
        name = settings.name or default_name(job)
        if note := unreachable_for_now(tracking_uri(settings.all_runs())):
            decisions.append(f"warning: MLflow at {note}")
        run = settings.all_runs().child(name)
        if settings.dry_run:
            check_job(run, job)
            if read_result(run) is None:
                require_room(settings, configs)
            lines = (*decisions, what_is_trained(settings, dataset, configs, run), "Nothing is done.")
            console.print(*lines, sep="\n", highlight=False, soft_wrap=True, markup=False)
            return 0
        with explained_disk(run), locked(run, "training") as lease:
            run.clean_up()  # what a killed job was about to write
            new = open_job(run, job)
            for decision in decisions:
                notices.say(decision)
            training = Training(settings, dataset, configs, job, name, run, lease, console, notices)
            try:
                status = training.carry_out()
            except ConfigError:
                if new and not training.tracking:  # it could not begin; MLflow's run keeps the params that it got
                    run.delete(JOB)
                raise
            lease.check()
            run.clean_up()
            return status


if __name__ == "__main__":
    command_line.run(run_or_submit(main), TrainSettings)
