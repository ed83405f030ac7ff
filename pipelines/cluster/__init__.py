"""Clusters of ``cluster.yaml`` and ``cluster.onprem.yaml``: launching, what runs on their machines, submitting jobs."""

from pipelines.cli.packages import require_packages

require_packages("boto3")
