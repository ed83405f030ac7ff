"""Clusters of ``cluster.yaml`` and ``cluster.onprem.yaml``: launching, what runs on their machines, submitting jobs."""
