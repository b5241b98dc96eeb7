"""Tools without mathematics of their own: whole files, cached artifacts, progress bars, and intervals.

No section of the papers, but for the Clopper-Pearson intervals of App. F (`stats`).
"""
