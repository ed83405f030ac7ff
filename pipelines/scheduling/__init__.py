"""Jobs at set times: when they are due, what is known of each run, and the Ray jobs that they are."""
