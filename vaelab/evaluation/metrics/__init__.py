"""Metrics of trained models: functions on arrays."""
