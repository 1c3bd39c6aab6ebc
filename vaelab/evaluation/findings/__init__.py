"""Findings: what is wrong with a model or its training, the evidence, the remedy."""
