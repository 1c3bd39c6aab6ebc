"""`hydra/launcher=ray`: runs the jobs of a sweep on Ray."""
