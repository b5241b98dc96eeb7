"""The book: what chapters measured, the papers' claims about it, and the command that runs and renders them.

Results are flat numbers in a file for each chapter; claims compare them with the published ones; tables and figures
show both. `stitch-book` (`cli.py`, `commands.py`) executes chapters, builds the pages, and carries a user's own SAEs,
probes and vectors across a stitch. Nothing here computes a number of the papers: that is done in the rooms below.
"""
