"""Data sets, training on Ray, evaluation, tracking with MLflow, storage, clusters, retraining and schedules."""
