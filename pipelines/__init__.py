"""Data in, models out: data sets, storage, tracking."""
