"""Tools without mathematics of their own: whole files, cached artifacts, progress bars, and intervals (App. F)."""
