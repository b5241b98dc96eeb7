"""Affine stitches between the residual streams of two language models, and the book that recomputes what they carry
across.

Start with `pairs.load_pair`, `models.load_models`, `harvest.harvest_moments` and `stitch.fit_exact`.
"""
