"""The search of hyperparameters on this machine: what is tried, which trials run, what they found."""
