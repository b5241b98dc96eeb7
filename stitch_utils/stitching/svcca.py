"""Which layer of B is most like a layer of A.

Section 2 and App. A.1, Fig. 6: A's layer is fixed, B's is the one with the highest mean correlation under SVCCA
(Raghu et al. 2017). Each stream is reduced to the directions that hold most of its variance, so that noise does not
count; canonical correlations between the two reduced streams are then averaged.

Offers `svcca_table`, `main_directions`, and `layer_grid`, the layers of a deep model that are compared.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from ..models.harvest import Residuals


def main_directions(x: Float[Tensor, "n d"], variance: float) -> Float[Tensor, "n k"]:
    """Span the principal components that hold this share of the variance of `x`, by orthonormal columns."""
    if len(x) <= x.shape[1]:
        raise ValueError(f"SVCCA of {len(x)} tokens in {x.shape[1]} dimensions: more tokens than dimensions are needed")
    if not 0 < variance <= 1:
        raise ValueError(f"variance must be a share above 0 and at most 1: got {variance}")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    centred = x.to(device).double()
    centred -= centred.mean(dim=0)
    # Of the d x d matrix: an SVD of all tokens would do more work for the same directions.
    values, vectors = torch.linalg.eigh(centred.T @ centred)
    values, vectors = values.flip(0).clamp(min=0), vectors.flip(1)
    held = values.cumsum(0) / values.sum()
    if not torch.isfinite(held).all():
        raise ValueError("activations do not vary: SVCCA is not defined")
    size = min(int((held < variance - 1e-12).sum()) + 1, int((values > values[0] * 1e-12).sum()))
    return (centred @ (vectors[:, :size] / values[:size].sqrt())).cpu()


def layer_grid(n_layers: int, *, at_most: int, always: int) -> list[int]:
    """List `at_most` layers, evenly spread from the first to the last, with `always` among them; all for 0."""
    if not at_most or at_most >= n_layers:
        return list(range(n_layers))
    spread = torch.linspace(0, n_layers - 1, at_most).round().int().tolist()
    nearest = min(range(len(spread)), key=lambda place: abs(spread[place] - always))
    spread[nearest] = always
    return spread


def svcca_table(xs: Residuals, ys: Residuals, *, variance: float = 0.99) -> Float[Tensor, "layers_a layers_b"]:
    """Average the canonical correlations between the main directions of every layer of A (rows) and of B (columns).

    Layers are in the order of their numbers, scores between 0 and 1. The paper does not give its share of variance;
    0.99 is that of Raghu et al. ValueError if there are not more tokens than dimensions: every score is then 1.
    """
    rows, columns = ([main_directions(side[layer], variance) for layer in sorted(side)] for side in (xs, ys))
    # Columns are orthonormal, so the canonical correlations are the cosines between the two subspaces.
    scores = [[torch.linalg.svdvals(u.T @ v).clamp(max=1).mean().item() for v in columns] for u in rows]
    return torch.tensor(scores)
