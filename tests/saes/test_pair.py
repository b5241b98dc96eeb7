"""SAEs of a pair: those that its file names are taken, others are trained once and found again."""

import pytest
import torch
import yaml
from sae_lens import TopKSAE, TopKSAEConfig

from stitch_utils.data.pairs import load_pair
from stitch_utils.models import harvest
from stitch_utils.models import language_model as models
from stitch_utils.models.language_model import load_models
from stitch_utils.saes import pair as pair_saes
from stitch_utils.saes.pair import native_saes, paired_activations


@pytest.fixture
def file(small_pair):
    """A pair that trains SAEs of 24 latents in 6 steps."""
    return small_pair(sizes={"sae_latents": 24, "sae_steps": 6})


def saes(file, **options):
    pair = load_pair(file)
    return native_saes(pair, load_models(pair), (1, 2), scale="smoke", **options)


def test_saes_are_trained_once(file, monkeypatch):
    trained = []
    train = pair_saes.train_saes
    monkeypatch.setattr(pair_saes, "train_saes", lambda *given, **more: trained.append(more) or train(*given, **more))
    first, again = saes(file), saes(file)
    for sae, width, other in zip(first, (32, 48), again):
        assert (sae.cfg.d_in, sae.cfg.d_sae, sae.cfg.k) == (width, 24, 3)
        assert torch.equal(sae.W_enc, other.W_enc)
    assert first[1].cfg.metadata.hook_name == "blocks.2.hook_resid_pre"
    folders = {more["folder"] for more in trained}
    assert len(trained) == 4 and len(folders) == 2, "one sweep for each side, found again the second time"
    file.write_text(file.read_text().replace("lr: 0.01", "lr: 0.02"))
    assert not torch.equal(saes(file)[0].W_enc, first[0].W_enc)


def test_training_lowers_the_error(file):
    pair = load_pair(file)
    models = load_models(pair)
    _, (x, y) = paired_activations(pair, models, (1, 2), scale="smoke")
    errors = []
    for steps in (1, 60):
        data = yaml.safe_load(file.read_text())
        data["scales"]["smoke"]["sae_steps"] = steps
        file.write_text(yaml.safe_dump(data))
        errors.append([(sae(z) - z).square().mean().item() for sae, z in zip(saes(file), (x, y))])
    assert errors[1][0] < 0.7 * errors[0][0] and errors[1][1] < 0.7 * errors[0][1]


def test_held_out_activations_are_those_of_the_evaluation_text(file):
    pair = load_pair(file)
    models = load_models(pair)
    _, (x, y) = paired_activations(pair, models, (1, 2), scale="smoke")
    batches = list(harvest.evaluation_batches(pair, pair.scale("smoke"), models[0].tokenizer))
    assert len(x) == len(y) == sum(batch.mask.sum().item() for batch in batches)
    expected = models[1].residuals(batches[0].tokens, [2])[2][batches[0].mask]
    torch.testing.assert_close(y[: len(expected)], expected)


def test_an_sae_that_the_file_names_is_taken(file, tmp_path):
    sae = TopKSAE(TopKSAEConfig(d_in=32, d_sae=40, k=4))
    sae.save_model(tmp_path / "own_sae")
    data = yaml.safe_load(file.read_text()) | {"saes": {"a": "own_sae"}}
    file.write_text(yaml.safe_dump(data))
    a, b = saes(file)
    assert torch.equal(a.W_enc, sae.W_enc) and b.cfg.d_sae == 24
    file.write_text(yaml.safe_dump(data | {"saes": {"b": "own_sae"}}))
    with pytest.raises(ValueError, match=r"the SAE of b \(.*own_sae\) reads 32 dimensions: expected 48, the width of"):
        saes(file)


def test_one_side_alone(file, tmp_path):
    pair = load_pair(file)
    (only,) = native_saes(pair, load_models(pair), (1, 2), scale="smoke", sides="a")
    assert torch.equal(only.W_enc, saes(file)[0].W_enc)
    assert len(list(tmp_path.glob("artifacts/mine/sae-a-*"))) == 1


def test_only_what_the_package_ships_is_trained_anew(file, tmp_path, monkeypatch):
    """A published SAE is taken even then; it is not ours to train."""
    TopKSAE(TopKSAEConfig(d_in=32, d_sae=40, k=4)).save_model(tmp_path / "own_sae")
    monkeypatch.setattr(models, "PACKAGE", tmp_path)
    TopKSAE(TopKSAEConfig(d_in=48, d_sae=20, k=4)).save_model(tmp_path / "embedded" / "b_sae")
    data = yaml.safe_load(file.read_text()) | {"saes": {"a": "own_sae", "b": "embedded:b_sae"}}
    file.write_text(yaml.safe_dump(data))
    assert [sae.cfg.d_sae for sae in saes(file)] == [40, 20]
    assert [sae.cfg.d_sae for sae in saes(file, anew=True)] == [40, 24]


def test_a_text_that_changes_makes_other_saes(small_pair, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("\n\n".join(f"The cook bakes {number} cakes in the kitchen." for number in range(250)))
    file = small_pair(text="text.txt", sizes={"sae_latents": 24, "sae_steps": 6})
    before = saes(file)[0].W_enc
    text.write_text(text.read_text().replace("bakes", "sells"))
    assert not torch.equal(saes(file)[0].W_enc, before)
