"""From a config to a result: one run, many runs in processes or on a cluster, and the search of settings."""
