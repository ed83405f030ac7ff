"""Command lines: options, messages, progress and signals."""

from pipelines.cli.packages import require_packages

require_packages("mlflow", "ray", "rich", "tyro")
