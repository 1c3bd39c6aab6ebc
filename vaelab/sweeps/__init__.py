"""Sweeps: their folder and jobs, plans and forecasts, what a step costs."""
