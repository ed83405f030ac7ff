"""Schedules of Ray jobs: cron expressions, the store of runs, submission, retries and failure hooks."""

from pipelines.cli.packages import require_packages

require_packages("apscheduler")
