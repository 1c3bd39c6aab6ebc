"""Chooses which arrays go to which figure, and writes report.html of a run or a sweep."""
