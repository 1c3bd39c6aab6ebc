"""Findings: what is wrong with a model or a training, the evidence, the remedy."""
