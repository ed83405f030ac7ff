"""``python -m pipelines.services up|status|down``: MLflow's server and the scheduler of a head machine.

python -m pipelines.services up --data ~/fvae-data --artifacts s3://BUCKET/mlflow --at-boot
"""

from __future__ import annotations

from pipelines.cli import command_line
from pipelines.services import down, status, up
from pipelines.services.settings import Command, Down, Up


def main(settings: Command) -> int:
    """Do what is asked; returns the exit status."""
    command = settings.command
    if isinstance(command, Up):
        return up.run(command)
    if isinstance(command, Down):
        return down.run(command)
    return status.run(command)


if __name__ == "__main__":
    command_line.run(main, Command)
