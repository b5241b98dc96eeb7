"""Graphs that join the tokens of a sample to their nearest neighbours, and distances along them.

Tenenbaum, de Silva & Langford (2000, Isomap). A stream may lie on a curved sheet, on which two tokens are as far apart
as the way along the sheet is long. Steps between neighbours follow it. Tokens of a language model gather in heaps, so
that a graph of neighbours alone can fall into parts with no way between them. The edges of the minimum spanning tree
hold it together with the shortest steps that do (Carreira-Perpinan & Zemel 2005).

Offers `neighbour_graph`, `graph_distances`.
"""

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.sparse import csr_array
from scipy.sparse.csgraph import minimum_spanning_tree, shortest_path
from torch import Tensor

CLOSEST = 1e-12  # share of the mean distance that two tokens count as apart at least: a sparse graph has no edge of 0


def neighbour_graph(points: Float[Tensor, "n d"], neighbours: int) -> csr_array:
    """Join every point to its nearest `neighbours`, and to those of the minimum spanning tree: Euclidean lengths.

    The graph, (n, n) in float64, is symmetric and connected. It takes memory for all n^2 distances. ValueError unless
    `neighbours` is from 1 to n - 1, and for points that are all the same.
    """
    n = len(points)
    if not 1 <= neighbours < n:
        raise ValueError(f"neighbours must be from 1 to {n - 1} for {n} points: got {neighbours}")
    centred = points.double() - points.double().mean(0)  # a mean that is large beside the spread costs digits
    lengths = torch.cdist(centred, centred).cpu()
    if lengths.max() == 0:
        raise ValueError(f"the {n} points are all the same: they have no neighbours")
    lengths = lengths.clamp_min(CLOSEST * lengths.mean()).fill_diagonal_(torch.inf)
    near = lengths.topk(neighbours, largest=False)
    rows = np.repeat(np.arange(n), neighbours)
    graph = csr_array((near.values.flatten().numpy(), (rows, near.indices.flatten().numpy())), shape=(n, n))
    tree = csr_array(minimum_spanning_tree(lengths.fill_diagonal_(0).numpy()))
    for part in (graph.T, tree, tree.T):
        graph = csr_array(graph.maximum(csr_array(part)))
    return graph


def graph_distances(graph: csr_array, start: Int[Tensor, " k"]) -> Float[Tensor, "n k"]:
    """Measure the shortest way along the graph from each of its points to each of `start`."""
    return torch.from_numpy(shortest_path(graph, method="D", directed=False, indices=start.numpy())).T.contiguous()
