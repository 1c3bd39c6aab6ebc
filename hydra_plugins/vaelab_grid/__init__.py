"""Sweeper of `vaelab train -m`, which looks at all jobs first."""
