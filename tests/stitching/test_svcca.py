"""SVCCA against scikit-learn's parts, and the properties that it is defined by."""

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA

from stitch_utils.data.pairs import TextRef
from stitch_utils.data.text import token_batches
from stitch_utils.stitching.evaluation import measure_fidelity
from stitch_utils.stitching.stitch import Stitch
from stitch_utils.stitching.svcca import judge_layer, svcca_table


def svcca(x, y, **options):
    return svcca_table({0: x}, {0: y}, **options).item()


def streams(n=600, seed=0):
    generator = torch.Generator().manual_seed(seed)
    latent = torch.randn(n, 6, generator=generator)
    x = latent @ torch.randn(6, 10, generator=generator) + 0.3 * torch.randn(n, 10, generator=generator)
    y = latent @ torch.randn(6, 14, generator=generator) + 0.3 * torch.randn(n, 14, generator=generator)
    return x + 5, y - 3


def reference(x, y, variance):
    """PCA by scikit-learn, then canonical correlations as eigenvalues of Cxx^-1 Cxy Cyy^-1 Cyx."""
    u, v = (PCA(n_components=variance, svd_solver="full").fit_transform(part.double().numpy()) for part in (x, y))
    cxx, cyy, cxy = u.T @ u, v.T @ v, u.T @ v
    values = np.linalg.eigvals(np.linalg.solve(cxx, cxy) @ np.linalg.solve(cyy, cxy.T)).real
    size = min(u.shape[1], v.shape[1])
    return np.sqrt(np.clip(np.sort(values)[::-1][:size], 0, None)).mean()


@pytest.mark.parametrize("variance", [0.8, 0.95, 0.99])
def test_against_scikit_learn(variance):
    x, y = streams()
    assert svcca(x, y, variance=variance) == pytest.approx(reference(x, y, variance), abs=1e-6)


def test_an_invertible_map_of_the_main_directions_does_not_matter():
    x, _ = streams()
    scale = torch.linspace(0.5, 2, 10)
    assert svcca(x, x * 3 + 1) == pytest.approx(1, abs=1e-9)
    assert svcca(x, x @ torch.diag(scale), variance=1.0) == pytest.approx(1, abs=1e-6)


def test_unrelated_streams_score_low_and_noise_directions_do_not_count():
    x, y = streams(n=4000)
    unrelated = torch.randn(4000, 14, generator=torch.Generator().manual_seed(9))
    assert svcca(x, unrelated) < 0.1 < svcca(x, y)
    noisy = torch.cat([x, 1e-3 * torch.randn(4000, 5, generator=torch.Generator().manual_seed(8))], dim=1)
    assert svcca(noisy, x) == pytest.approx(1, abs=1e-3)


def test_the_table_holds_every_pair_of_layers():
    (x, y), (z, w) = streams(seed=1), streams(seed=2)
    table = svcca_table({1: z, 0: x}, {0: y, 1: w})
    assert table.shape == (2, 2)
    for row, a in enumerate((x, z)):
        for column, b in enumerate((y, w)):
            assert table[row, column].item() == pytest.approx(svcca(a, b), abs=1e-6)


def test_errors():
    x, y = streams()
    with pytest.raises(ValueError, match="8 tokens in 10 dimensions"):
        svcca(x[:8], y[:8])
    with pytest.raises(ValueError, match="variance must be a share"):
        svcca(x, y, variance=0.0)
    with pytest.raises(ValueError, match="do not vary"):
        svcca(torch.ones(100, 3), y[:100])


@pytest.fixture
def to_layers(random_models):
    """Three stitches to layers of B, which differ in their noise, and the text to judge them on."""
    generator, stitches = torch.Generator().manual_seed(0), {}
    for layer, size in ((1, 3.0), (2, 0.1), (3, 1.0)):
        shapes = ((32, 48), (48,), (48, 32), (32,))
        stitches[layer] = Stitch(*(size * torch.randn(shape, generator=generator) for shape in shapes))
    text = token_batches(
        TextRef("world", "layers"),
        random_models[0].tokenizer,
        context=40,
        batch_size=5,
        rows="document",
        n_documents=12,
    )
    return stitches, list(text)


def test_a_layer_is_judged_beside_the_best_other_on_documents_that_did_not_choose_it(random_models, to_layers):
    stitches, batches = to_layers
    sums = {
        layer: (found := measure_fidelity(*random_models, 1, layer, {"x": stitch}, batches)).sums["x", "a_to_b"]
        for layer, stitch in stitches.items()
    }
    tokens = found.counts["b"].tokens
    for layer_b in stitches:
        worth = judge_layer(random_models, 1, layer_b, stitches, batches)
        others = [layer for layer in stitches if layer != layer_b]
        assert worth.best_other == min(others, key=lambda layer: sums[layer][::2].sum())
        own, best = (sums[layer][1::2] for layer in (layer_b, worth.best_other))
        assert worth.excess.value == pytest.approx(own.sum() / best.sum() - 1, rel=1e-4)
        mean = np.mean([sums[layer][1::2].sum() for layer in others])
        assert worth.over_mean.value == pytest.approx(own.sum() / mean - 1, rel=1e-4)
        assert worth.excess.low < worth.excess.value < worth.excess.high
        assert worth.losses[layer_b] == pytest.approx(sums[layer_b].sum() / tokens.sum(), rel=1e-4)
    assert len({worth.best_other, judge_layer(random_models, 1, worth.best_other, stitches, batches).best_other}) == 2


def test_a_layer_is_judged_beside_another_on_enough_documents(random_models, to_layers):
    stitches, batches = to_layers
    with pytest.raises(ValueError, match=r"stitches to layers \[2\]: expected layer 2 and another"):
        judge_layer(random_models, 1, 2, {2: stitches[2]}, batches)
    few = [batch.each(lambda part: part[:3]) for batch in batches[:1]]
    with pytest.raises(ValueError, match="3 documents: expected two to choose a layer on and two to judge it by"):
        judge_layer(random_models, 1, 2, stitches, few)
