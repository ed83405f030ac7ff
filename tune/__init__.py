"""Architecture search with Optuna on Ray: search space, proposals, trials, records and the map."""
