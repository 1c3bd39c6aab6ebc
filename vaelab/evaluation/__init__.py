"""Metrics of trained models: functions on arrays, and the sections of `vaelab eval` made of them."""
