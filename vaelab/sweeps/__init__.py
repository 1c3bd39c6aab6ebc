"""Sweeps: their folder and jobs, plans and forecasts, and the cost of a step."""
