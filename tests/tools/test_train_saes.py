"""The SAEs that come with the package: of the embedded models, good enough to be used, and made as the script says."""

import pytest
import torch
from sae_lens import SAE
from toy_book import project_root_at

from stitch_utils.data.pairs import load_pair
from stitch_utils.saes.io import load_sae
from stitch_utils.saes.pair import native_saes, side_activations
from stitch_utils.stitching.pair import StitchedPair
from tools import train_saes as saes


@pytest.fixture(scope="module")
def activations():
    """Residuals of the pair's evaluation text, a part of it: (n, d_a), (n, d_b)."""
    return [held_out for _, held_out in side_activations(StitchedPair.open("tiny", "smoke")).values()]


def unexplained(sae, x):
    with torch.no_grad():
        return ((sae(x) - x).square().sum() / (x - x.mean(0)).square().sum()).item()


def test_they_reconstruct_the_models_that_they_belong_to(activations):
    pair = load_pair("tiny")
    for side, sae, x in zip("ab", native_saes(StitchedPair.open(pair, "smoke")), activations, strict=True):
        assert (sae.cfg.d_in, sae.cfg.architecture()) == (x.shape[1], "topk")
        assert sae.cfg.metadata.hook_name == f"blocks.{getattr(pair, side).layer}.hook_resid_pre"
        assert unexplained(sae, x) < 0.2
        assert ((sae.encode(x) > 0).sum(1) <= pair.sae_recipe.k).all()


def test_they_are_small_and_saelens_reads_them(activations):
    folders = [saes.FOLDER / f"tiny-{side}-sae" for side in "ab"]
    assert sum(file.stat().st_size for folder in folders for file in folder.iterdir()) < 5e6
    for folder, x in zip(folders, activations):
        assert torch.equal(SAE.load_from_disk(folder)(x), load_sae(f"embedded:{folder.name}")(x))


def test_the_script_writes_what_the_recipe_trains(tmp_path, activations):
    with project_root_at(tmp_path):
        written = saes.ship("smoke", tmp_path)
    pair = load_pair("tiny")
    for folder, x in zip(written, activations, strict=True):
        sae = load_sae(str(folder))
        assert (sae.cfg.d_sae, sae.cfg.k) == (pair.scale("smoke").sae_latents, pair.sae_recipe.k)
        assert 0.2 < unexplained(sae, x) < 1, "a few steps of training, not the shipped ones"


def test_an_embedded_sae_that_does_not_exist():
    with pytest.raises(ValueError, match="no embedded SAE 'tiny-c-sae': known are tiny-a-sae, tiny-b-sae"):
        load_sae("embedded:tiny-c-sae")
