"""Schedules of Ray jobs: cron expressions, the store of runs, submission, retries and failure hooks."""
