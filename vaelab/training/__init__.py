"""Training: one run from its config to its folder, the loop, callbacks, loggers, processes."""
