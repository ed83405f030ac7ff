"""Retraining: when the data changed, train, compare with the model in service, and promote the better one."""
