"""Figures of probes: what is drawn where."""

from matplotlib.patches import Rectangle

from stitch_utils.book.figures.probes_and_steering import OF_PROBE, PROBE_LABELS, probe_accuracy, probe_panels

SPARSE = {curve: {1: (0.7, 0.6, 0.8), 5: (0.75, 0.65, 0.85)} for curve in OF_PROBE}
DENSE = {"dense.native": (0.9, 0.875, 0.9375), "dense.transferred": (0.5625, 0.53125, 0.625)}
DENSE |= {"dense.components": (0.5, 0.46875, 0.515625)}


def bands(axes):
    return sorted((patch.get_y(), patch.get_y() + patch.get_height()) for patch in axes.patches)


def test_dense_probes_have_bands_of_their_intervals():
    figure = probe_accuracy(SPARSE, DENSE)
    (axes,) = figure.axes
    assert all(isinstance(patch, Rectangle) for patch in axes.patches)
    assert bands(axes) == [(0.46875, 0.515625), (0.53125, 0.625), (0.875, 0.9375)]
    said = [text.get_text() for text in axes.get_legend().get_texts()]
    assert sorted(said) == sorted(PROBE_LABELS.values()), "a band is no entry of its own"


def test_so_has_every_panel():
    other = {"dense.native": (0.75, 0.6875, 0.8125), "dense.transferred": (0.5, 0.4375, 0.5625)}
    other |= {"dense.components": (0.25, 0.1875, 0.3125)}
    figure = probe_panels({"one": (SPARSE, DENSE), "two": (SPARSE, other)})
    assert [bands(axes) for axes in figure.axes] == [
        [(0.46875, 0.515625), (0.53125, 0.625), (0.875, 0.9375)],
        [(0.1875, 0.3125), (0.4375, 0.5625), (0.6875, 0.8125)],
    ]
