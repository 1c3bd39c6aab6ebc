"""Which arrays go to which figure, and report.html of a run or a sweep."""
