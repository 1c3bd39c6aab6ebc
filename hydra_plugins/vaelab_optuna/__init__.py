"""`hydra/sweeper=optuna`: searches a space of configs for the best metrics."""
