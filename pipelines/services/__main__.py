"""``python -m pipelines.services up|status|down``: MLflow's server and the scheduler of a head machine.

python -m pipelines.services up --data ~/fvae-data --artifacts s3://BUCKET/mlflow --at-boot
"""

from __future__ import annotations

from pipelines.cli import command_line
from pipelines.services.commands import down, status, up
from pipelines.services.settings import Command, Down, Up


def main(settings: Command) -> int:
    """Run the command; returns the exit status."""
    command = settings.command
    if isinstance(command, Up):
        return up(command)
    if isinstance(command, Down):
        return down(command)
    return status(command)


if __name__ == "__main__":
    command_line.run(main, Command)
