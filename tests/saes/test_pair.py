"""SAEs of a pair: those that its file names are taken, others are trained once and found again, one model at a time.

And the sweep of section 3.1: which runs there are, and that each starts where it says.
"""

from collections import Counter

import numpy as np
import pytest
import torch
import yaml
from sae_lens import TopKSAE, TopKSAEConfig

from stitch_utils.data import hub
from stitch_utils.data.pairs import TextRef
from stitch_utils.data.text import token_batches
from stitch_utils.models.harvest import ModelStream
from stitch_utils.models.language_model import LanguageModel
from stitch_utils.saes import pair as pair_saes
from stitch_utils.saes import training as sae_training
from stitch_utils.saes.initialisation import SAETrainingConfig, starting_sae
from stitch_utils.saes.pair import native_saes, side_activations, sweep_saes
from stitch_utils.saes.training import load_trained, train_saes
from stitch_utils.saes.transfer import transfer_sae
from stitch_utils.stitching.nulls import component_stitches
from stitch_utils.stitching.pair import StitchedPair


@pytest.fixture
def file(small_pair):
    """A pair that trains SAEs of 24 latents in 6 steps."""
    return small_pair(sizes={"sae_latents": 24, "sae_steps": 6})


def saes(file, **options):
    return native_saes(StitchedPair.open(file, "smoke"), **options)


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
    held_out = [found for _, found in side_activations(StitchedPair.open(file, "smoke")).values()]
    errors = []
    for steps in (1, 60):
        data = yaml.safe_load(file.read_text())
        data["scales"]["smoke"]["sae_steps"] = steps
        file.write_text(yaml.safe_dump(data))
        errors.append([(sae(z) - z).square().mean().item() for sae, z in zip(saes(file), held_out)])
    assert errors[1][0] < 0.7 * errors[0][0] and errors[1][1] < 0.7 * errors[0][1]


def test_held_out_activations_are_those_of_the_evaluation_text(file):
    stitched = StitchedPair.open(file, "smoke")
    x, y = (found for _, found in side_activations(stitched).values())
    batches = list(stitched.evaluation_rows("b"))
    assert len(x) == len(y) == sum(batch.mask.sum().item() for batch in batches)
    expected = stitched.models[1].residuals(batches[0].tokens, [2])[2][batches[0].mask]
    torch.testing.assert_close(y[: len(expected)], expected)


def test_an_sae_that_the_file_names_is_taken(file, tmp_path):
    sae = TopKSAE(TopKSAEConfig(d_in=32, d_sae=40, k=4))
    sae.save_model(tmp_path / "own_sae")
    data = yaml.safe_load(file.read_text()) | {"saes": {"a": "own_sae"}}
    file.write_text(yaml.safe_dump(data))
    a, b = saes(file)
    assert torch.equal(a.W_enc, sae.W_enc) and b.cfg.d_sae == 24
    file.write_text(yaml.safe_dump(data | {"saes": {"b": "own_sae"}}))
    with pytest.raises(ValueError, match=r"the SAE of b \(.*own_sae\) reads 32 dimensions: expected 48, that of"):
        saes(file)
    TopKSAE(TopKSAEConfig(d_in=32, d_sae=40, k=4, normalize_activations="layer_norm")).save_model(tmp_path / "own_sae")
    file.write_text(yaml.safe_dump(data))
    with pytest.raises(
        ValueError, match=r"the SAE of a \(.*own_sae\) has normalize_activations='layer_norm': the chapters"
    ):
        saes(file)


def test_one_side_alone(file, tmp_path):
    (only,) = saes(file, sides="a")
    assert torch.equal(only.W_enc, saes(file)[0].W_enc)
    assert len(list(tmp_path.glob("artifacts/mine/sae-a-*"))) == 1


def test_only_what_the_package_ships_is_trained_anew(file, tmp_path, monkeypatch):
    """A published SAE is taken even then; it is not ours to train."""
    TopKSAE(TopKSAEConfig(d_in=32, d_sae=40, k=4)).save_model(tmp_path / "own_sae")
    monkeypatch.setattr(hub, "EMBEDDED", tmp_path)
    TopKSAE(TopKSAEConfig(d_in=48, d_sae=20, k=4)).save_model(tmp_path / "b_sae")
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


@pytest.fixture
def passes(monkeypatch):
    """Counts forward passes, by the model's reference and the tokens that it reads."""
    found, residuals = Counter(), LanguageModel.residuals

    def counted(self, tokens, layers):
        found[self.ref, tuple(tokens.flatten().tolist())] += 1
        return residuals(self, tokens, layers)

    monkeypatch.setattr(LanguageModel, "residuals", counted)
    return found


@pytest.mark.parametrize("side", ["a", "b"])
def test_training_an_sae_of_one_model_never_runs_the_other(file, passes, side):
    stitched = StitchedPair.open(file, "smoke")
    saes(file, sides=side)
    batches = [*stitched.training_rows("b"), *stitched.evaluation_rows("b")]
    read = {(stitched.side(side)[0].ref, tuple(batch.tokens.flatten().tolist())) for batch in batches}
    assert set(passes) == read and set(passes.values()) == {1}, "each batch once, for six steps in two passes"
    passes.clear()
    saes(file, sides=side)
    evaluation = {tuple(batch.tokens.flatten().tolist()) for batch in stitched.evaluation_rows("b")}
    assert {tokens for _, tokens in passes} == evaluation, "what is trained already reads no training text"


@pytest.mark.parametrize(
    ("stops", "n_steps", "begins", "again"),
    [(13, 14, 12, 0), (13, 18, 12, 1), (29, 30, 12, 0)],
    ids=["early", "late", "pass"],
)
@pytest.mark.parametrize("keep", [True, False])
def test_a_training_that_goes_on_reads_nothing_again(
    random_models, tmp_path, monkeypatch, passes, keep, stops, n_steps, begins, again
):
    """15 steps a pass; states at every fourth step; every three steps are shuffled together.

    So it goes on from the step `begins` of the pass, and reads `again` batches of the next pass.
    """
    monkeypatch.setattr(sae_training, "SHUFFLED", 3)
    model, text = random_models[1], TextRef("world", "harvest")
    options = {"context": 32, "batch_size": 4, "rows": "packed", "n_tokens": 320}
    batches = list(token_batches(text, model.tokenizer, **options))
    config = SAETrainingConfig(24, 3, n_steps, lr=0.01, batch_tokens=20, mean_bias=True)
    held_out = torch.cat(list(ModelStream(model, 2, lambda: batches[:1])))

    def train(folder):
        passes.clear()
        stream = ModelStream(model, 2, lambda: iter(batches), keep=keep)
        assert stream.count() // 20 == 15
        curves = train_saes(stream, [config], held_out=held_out, folder=folder, evaluate_every=3, checkpoint_every=4)
        return curves[config.name], load_trained(folder, config)

    curve, sae = train(tmp_path / "undisturbed")
    step = sae_training._Run.step

    def dies(self, x):
        if self.done == stops:
            raise KeyboardInterrupt
        step(self, x)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(sae_training._Run, "step", dies)
        train(tmp_path / "broken")
    resumed, other = train(tmp_path / "broken")
    ends = np.cumsum([batch.mask.sum() for batch in batches])
    read = [batch for batch, end in zip(batches, ends) if end > begins * 20] + batches[:again]
    assert len(read) < len(batches) + again
    assert [tokens for _, tokens in passes] == [tuple(batch.tokens.flatten().tolist()) for batch in read]
    assert set(passes.values()) == {1}
    for field, value in curve._asdict().items():
        assert field == "seconds" or np.array_equal(value, getattr(resumed, field)), field
    assert all(torch.equal(other.state_dict()[name], value) for name, value in sae.state_dict().items())


RECIPE = {"k": 1, "batch_tokens": 100, "lr": 0.01, "dead_after": 1}


@pytest.fixture
def swept(small_pair, monkeypatch):
    """A sweep of two widths and two seeds on two random models: (sweep, stitch, what was given to B's training)."""
    given = []
    train = pair_saes.train_saes
    monkeypatch.setattr(pair_saes, "train_saes", lambda *args, **more: given.append(more) or train(*args, **more))
    stitched = StitchedPair.open(small_pair(sizes={"sae_sweep_steps": 4}, sae_recipe=RECIPE), "smoke")
    return sweep_saes(stitched, widths=[16, 24], seeds=[0, 1]), stitched.stitch, given


def test_every_width_and_seed_begins_in_every_way(swept):
    sweep, _, _ = swept
    both = [(width, seed) for width in (16, 24) for seed in (0, 1)]
    assert sorted(sweep.a) == both
    plain = sorted(key[:3] for key in sweep.b if key[3] == "plain")
    assert plain == sorted((start, *key) for start in ("random", "rotation", "stitch") for key in both)
    for key, curve in sweep.b.items():
        assert curve.steps[-1] == 4 and curve.tokens[-1] == 400 and len(curve.cosine) == key[1]
    for variant, width in (("auxiliary", 24), ("beta1", 16)):
        others = sorted(key[:3] for key in sweep.b if key[3] == variant)
        assert others == [(start, width, seed) for start in ("random", "stitch") for seed in (0, 1)]
        for key in others:
            assert sweep.b[*key, variant].mse[0] == sweep.b[*key, "plain"].mse[0], "one beginning"
    begins = {start: sweep.b[start, 24, 0, "plain"].mse[0] for start in ("random", "rotation", "stitch")}
    assert len(set(begins.values())) == 3, "three ways to begin are three beginnings"


def test_the_stitched_start_is_the_sae_of_a_carried_across(swept):
    sweep, stitch, given = swept
    of_a, of_b = given
    for seed in (0, 1):
        options = {"lr": 0.01, "dead_after": 1, "batch_tokens": 400, "mean_bias": True}
        small = load_trained(of_a["folder"], SAETrainingConfig(16, 1, 4, seed=seed, **options))
        (name, other) = sorted(name for name in of_b["initial_saes"] if name.startswith(f"stitch-16-k1-seed{seed}"))
        assert "beta0" in name and torch.equal(*(of_b["initial_saes"][each].W_dec for each in (name, other)))
        torch.testing.assert_close(of_b["initial_saes"][name].W_dec, transfer_sae(small, stitch).W_dec)
        (name,) = [name for name in of_b["initial_saes"] if name.startswith(f"rotation-16-k1-seed{seed}")]
        assert torch.equal(of_b["initial_saes"][name].W_dec, small.W_dec)
    assert not np.array_equal(sweep.a[16, 0].mse, sweep.a[16, 1].mse), "each seed has an SAE of A of its own"


def test_component_stitches_carry_the_widest_sae_of_a_as_the_stitch_does(swept, small_pair):
    """What their starts leave unexplained is what a run from the same SAE finds before its first step."""
    sweep, _, given = swept
    stitched = StitchedPair.open(small_pair(), "smoke")
    options = {"lr": 0.01, "dead_after": 1, "batch_tokens": 400, "mean_bias": True}
    assert list(sweep.components) == [0, 1] and all(len(set(found)) == 19 for found in sweep.components.values())
    _, held_out = side_activations(stitched, "b")["b"]
    for seed, found in sweep.components.items():
        small = load_trained(given[0]["folder"], SAETrainingConfig(24, 1, 4, seed=seed, **options))
        for draw in (0, 18):
            null = list(component_stitches(stitched.moments, seed=seed))[draw]
            start = starting_sae(SAETrainingConfig(24, 1, 4, "stitch"), held_out.shape[1], transfer_sae(small, null))
            left = (start.decode(start.encode(held_out)) - held_out).square().sum() / (
                held_out - held_out.mean(0)
            ).square().sum()
            assert found[draw] == pytest.approx(left.item(), rel=1e-3)


def test_the_auxiliary_loss_is_tried_on_the_same_start(swept):
    """One step without firing makes a latent dead here, so its help costs FLOPs and changes what becomes of the run."""
    sweep, _, given = swept
    costlier = []
    for key in [key for key in sweep.b if key[3] == "auxiliary"]:
        plain, helped = sweep.b[*key[:3], "plain"], sweep.b[key]
        assert helped.mse[0] == plain.mse[0], "one beginning"
        costlier.append(helped.flops[-1] > plain.flops[-1])
        assert costlier[-1] == (helped.mse[-1] != plain.mse[-1]), "where no latent is silent it changes nothing"
    assert any(costlier), "some latent must have been silent for this test to say anything"
    assert not any("auxiliary" in name for name in given[0].get("initial_saes", {})), "A's have none"


def test_firing_is_counted_on_the_first_tokens_of_the_training_text(swept, small_pair, monkeypatch):
    """With the document of each token."""
    monkeypatch.setattr(pair_saes, "COUNTED_TOKENS", 300)
    stitched = StitchedPair.open(small_pair(), "smoke")
    stream, _ = side_activations(stitched, "b")["b"]
    found = [torch.cat(parts) for parts in zip(*pair_saes._with_documents(stream))]
    batches = list(stitched.training_rows("b"))
    assert torch.equal(found[1], torch.cat([batch.documents[batch.mask] for batch in batches])[:300])
    torch.testing.assert_close(found[0], torch.cat(list(stream))[:300])
    assert len(found[1].unique()) > 2
    sweep, _, _ = swept
    everything = sum(int(batch.mask.sum()) for batch in batches)
    assert {int(curve.counted) for curve in [*sweep.a.values(), *sweep.b.values()]} == {everything}
