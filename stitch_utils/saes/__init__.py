"""Sparse autoencoders: read, carry across a stitch, measure, train from a stitch (sections 3 and 3.1, Apps. B to D).

Eqs. 4 to 6 and 11 to 12 are in `transfer`, Table 2 in `evaluation`, Eq. 14 in `scaling`; `io` reads published SAEs, of
the tools and ages that `formats` knows; `pair` gives those of a pair and the sweep of section 3.1; `initialisation`,
`training` and `sparse_step` are one training run; `comparison` holds what the sister paper (arXiv 2506.00653) does with
the SAEs of two models.
"""
