"""Sweeper of `vaelab plan -m`, which runs nothing."""
