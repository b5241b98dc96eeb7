"""Names of the figures under their old module, until every chapter imports the new ones."""

from .pairs import language_shares, training_curves  # noqa: F401
from .saes import cosines, flops_saved, sae_curves, sae_metrics, scaling_laws  # noqa: F401
from .stitching import (  # noqa: F401
    alpha_sweep,
    cross_entropies,
    fit_trace,
    sae_alpha_sweep,
    svcca_heatmap,
    svcca_lines,
)
from .style import set_style  # noqa: F401
