"""Two worlds in which the truth about transfer is known, measured as the chapters do and judged as the book does.

Both have streams with the same spectra. In one they are images of the same codes; in the other of unrelated ones, so
that nothing is there to transfer.
"""

import shutil
from pathlib import Path

import pytest
import torch
from sae_lens import TopKSAE, TopKSAEConfig
from toy_streams import ArrayModel, moments_of, rows_of

from stitch_utils.book.claims import verdicts
from stitch_utils.book.results import write_results
from stitch_utils.saes.evaluation import resample_saes
from stitch_utils.saes.transfer import transfer_sae
from stitch_utils.stitching.cka import debiased_cka, permuted_cka
from stitch_utils.stitching.evaluation import measure_fidelity
from stitch_utils.stitching.fit import fit_exact
from stitch_utils.stitching.nulls import component_stitch, strongest
from stitch_utils.stitching.stitch import random_stitch
from stitch_utils.utils.stats import from_resamples

D_A, D_B, K, DRAWS = 8, 12, 3, 19
DOCUMENTS, LENGTH = 40, 30
PAIR = ("a_to_b", "b_to_a")
CLAIMS = (
    "stitch-near-ground-truth",
    "stitch-needs-the-pairing",
    "streams-are-alike",
    "sae-transfer-explains",
    "sae-transfer-between-random-and-trained",
    "sae-transfer-keeps-prediction",
)


def codes(generator, documents=2 * DOCUMENTS):
    """Sparse codes, (tokens, D_A): K of D_A are positive at each token; every direction has its own spread."""
    n = documents * LENGTH
    active = torch.rand(n, D_A, generator=generator).argsort(1) < K
    size = 1 + torch.rand(n, D_A, generator=generator)
    return active * size * torch.linspace(2, 0.5, D_A)


def world(seed, *, shared):
    """Models of A and B, and the SAEs that made their streams; half of the documents are for fitting."""
    generator = torch.Generator().manual_seed(seed)
    bases = [torch.linalg.qr(torch.randn(d, d, generator=generator))[0][:D_A] for d in (D_A, D_B)]
    of_a = codes(generator)
    of_b = of_a if shared else codes(generator)
    noise = 0.02 * torch.randn(len(of_b), D_B, generator=generator)
    models = ArrayModel(of_a @ bases[0] + 1, "a"), ArrayModel(of_b @ bases[1] - 2 + noise, "b")
    return models, [sae_of(basis, centre) for basis, centre in zip(bases, (1.0, -2.0))]


def sae_of(basis, centre):
    sae = TopKSAE(TopKSAEConfig(basis.shape[1], D_A, k=K, apply_b_dec_to_input=True))
    with torch.no_grad():
        sae.W_enc.copy_(basis.T), sae.W_dec.copy_(basis), sae.b_enc.zero_(), sae.b_dec.fill_(centre)
    return sae


def numbers_of(seed, *, shared):
    """What the chapters stitching and sae_transfer write, of the claims' numbers."""
    models, (original, trained) = world(seed, shared=shared)
    fitting, held_out = rows_of(0, DOCUMENTS, LENGTH), rows_of(DOCUMENTS * LENGTH, DOCUMENTS, LENGTH)
    x, y = (model.rows[fitting.tokens[fitting.mask]] for model in models)
    moments, means = moments_of(x, y), (x.mean(0), y.mean(0))
    components = [component_stitch(moments, draw) for draw in range(DRAWS)]
    stitches = {
        "exact": fit_exact(moments),
        "components": strongest(components, models, (1, 1), [held_out]),
    }
    fidelity = measure_fidelity(*models, 1, 1, stitches, [held_out], means=means)
    numbers = {}
    for condition in PAIR:
        id = f"table1.tiny.{condition}"
        numbers |= fidelity.increase("exact", condition).numbers(f"{id}.increase")
        others = {"components": ("components", condition), "mean": ("own", f"{condition[-1]}_without_layer")}
        for name, other in others.items():
            numbers |= fidelity.increase("exact", condition, over=other).numbers(f"{id}.over_{name}.increase")
    numbers["figure6.tiny.cka"] = debiased_cka(x, y)
    numbers["figure6.tiny.cka.permuted"] = permuted_cka(x, y, draws=DRAWS, seed=seed).max()

    here = models[1].rows[held_out.tokens[held_out.mask]]
    random = [random_stitch(stitches["exact"], draw, means=means) for draw in range(DRAWS)]
    saes = {"transferred": transfer_sae(original, stitches["exact"]), "trained": trained}
    for kind, draws in (("random", random), ("components", components)):
        carried = [transfer_sae(original, stitch) for stitch in draws]
        saes[kind] = min(carried, key=lambda sae: (sae(here) - here).square().sum().item())
    found = resample_saes(saes, models[1], 1, [held_out])
    numbers |= found["transferred"].metrics().fuv.numbers("table2.tiny.fuv.transferred")
    for kind in ("random", "components", "trained"):
        for metric in ("fuv", "delta_loss"):
            less = getattr(found[kind], metric) - getattr(found["transferred"], metric)
            numbers |= from_resamples(less).numbers(f"table2.tiny.{metric}.{kind}.less_transferred")
    return numbers


def judged(project, seed, *, shared):
    shutil.copy(Path(__file__).parents[2] / "book" / "published.yml", project / "book" / "published.yml")
    write_results("tiny", "world", numbers_of(seed, shared=shared))
    return {verdict.id: verdict.verdict for verdict in verdicts("tiny") if verdict.id in CLAIMS}


@pytest.mark.parametrize("seed", range(3))
def test_where_everything_is_shared_every_claim_of_transfer_holds(project, seed):
    assert judged(project, seed, shared=True) == dict.fromkeys(CLAIMS, "holds")


def test_where_only_spectra_are_shared_no_claim_of_transfer_holds(project):
    """The rank among 19 permutations is right once in twenty; all else in no world."""
    found = [judged(project, seed, shared=False) for seed in range(8)]
    alike = [world.pop("streams-are-alike") for world in found]
    assert alike.count("holds") <= 2
    for world_said in found:
        assert len(world_said) == 5 and not {"holds", "partly"} & set(world_said.values()), world_said
