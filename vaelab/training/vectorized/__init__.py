"""Trains the jobs of a sweep as one: stacked weights, one batched step, and a trainer of its own for each job."""
