"""The search: space, trials, scheduler, searcher, ledger and the trade-off map."""
