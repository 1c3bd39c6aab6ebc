"""Compares runs side by side: which of their metrics can be compared, and what follows."""
