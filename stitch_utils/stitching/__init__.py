"""Stitches: affine maps between the residual streams of two models (section 2, Eqs. 1-3, App. A).

`pair` opens a stitched pair; `stitch` holds the maps, their loss and the random stitch, `moments` what Eq. 3 needs of
the data, `fit` its minimum, `nulls` maps that know no pairing; `svcca` chooses layers (Fig. 6), `cka` asks if two
streams are alike beyond chance, `evaluation` measures prediction (Table 1) and what is left of a direction, `streams`
counts massive activations and `outliers` fits without them; `publish` writes to the Hub; `lrt_maps` has the maps of the
sister paper (arXiv 2506.00653). Others' maps: `maps` from moments; `relative` and `functional_maps` from a sample whose
pairs are known at a few anchors, on graphs of `neighbours`; `relu_map`, which bends, and `tuned`, on the host's own
loss, by `descent`; `comparison` of them all.
"""
