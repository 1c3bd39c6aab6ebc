"""Every figure of the lab: one function each, from arrays to a matplotlib Figure; `pixels` has plain grids."""
