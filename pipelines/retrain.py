"""Retrain a registered model when its data has changed, and put the new one into service if it is better.

    python -m pipelines.retrain --model fvae-photos --dataset s3://bucket/photos --storage s3://bucket/runs
    python -m pipelines.retrain --model fvae-photos --dataset s3://bucket/photos --search 2h --max-params 2000000
    python -m pipelines.retrain --model fvae-photos --dataset s3://bucket/photos --dry-run
    python -m pipelines.retrain --model fvae-photos --rollback --reason "blurred faces"

One job, safe to repeat: what is in service is the alias 'champion', which moves last and at once. Every decision is a
run in MLflow's experiment fvae/NAME, with its reasons as tags.
"""

from __future__ import annotations

import pipelines.training.ray_environment  # noqa: F401  (before Ray is imported)
from fvae.config import ConfigError
from pipelines.cli import command_line
from pipelines.cli.terminal import make_console
from pipelines.retraining.commands import Command
from pipelines.retraining.settings import RetrainSettings
from pipelines.storage import StorageError
from pipelines.training.worker_warnings import Notices


def main(settings: RetrainSettings) -> int:
    """Decide and act, or say what would be done. Returns the exit status."""
    console = make_console()
    with Notices(console) as notices:
        command = Command(settings, console, notices)
        try:
            if settings.dry_run:
                return command.dry_run()
            return command.roll_back() if settings.rollback else command.retrain()
        except KeyboardInterrupt:
            command.say("Interrupted. The same command goes on where it stopped; nothing finished is lost.")
            return 1
        except Exception as error:
            if not settings.dry_run:
                kind = "" if isinstance(error, ConfigError | StorageError) else f"{type(error).__name__}: "
                command.notify_failure(f"{kind}{error}", champion=None)
            raise


if __name__ == "__main__":
    command_line.run(main, RetrainSettings)
