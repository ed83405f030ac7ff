"""Retraining: when the data changed, train, compare with the model in service, put the better one in its place."""
