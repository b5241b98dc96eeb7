"""The metrics of SAEs, token by token, and an SAE judged beside what became of it."""

import dataclasses

import numpy as np
import pytest
import torch
from sae_lens import SAE, StandardSAEConfig, TopKSAE, TopKSAEConfig, TranscoderConfig
from toy_saes import LATENTS, K, make_sae

from stitch_utils.data.pairs import TextRef
from stitch_utils.data.text import token_batches
from stitch_utils.saes.evaluation import SAEMetrics, evaluate_saes, judge_sae, resample_saes
from stitch_utils.saes.io import load_sae
from stitch_utils.saes.transfer import transfer_sae
from stitch_utils.stitching.evaluation import measure_fidelity
from stitch_utils.stitching.fit import fit_exact
from stitch_utils.stitching.nulls import component_stitches
from stitch_utils.stitching.pair import StitchedPair
from stitch_utils.stitching.stitch import AffineMap


@pytest.fixture
def batches(random_models):
    def make(batch_size=3):
        text = TextRef("world", "saes")
        tokenizer = random_models[1].tokenizer
        return token_batches(text, tokenizer, context=40, batch_size=batch_size, rows="packed", n_documents=6)

    return make


LAYER = 2


@pytest.fixture
def saes(random_models):
    """A JumpReLU SAE of which a part is dead, and a TopK one, of model b."""
    width = random_models[1].d_model
    some_dead, topk = (make_sae(kind, width, dtype="float32") for kind in ("jumprelu", "topk"))
    with torch.no_grad():
        some_dead.threshold[:20] = 1e6
        some_dead.threshold[20:].mul_(8)
    return {"some dead": some_dead, "topk": topk}


def by_hand(model, sae, batches):
    """Per token: document, activations, reconstruction, latents that fire, own and spliced cross-entropy."""
    rows = []
    for batch in batches():
        y = model.residuals(batch.tokens, [LAYER])[LAYER]
        with torch.no_grad():
            latents, out = sae.encode(y), sae(y)

        def put(residual, out=out, mask=batch.mask):
            residual = residual.clone()
            residual[mask] = out[mask]
            return residual

        own, spliced = model.cross_entropy(batch.tokens), model.cross_entropy(batch.tokens, layer=LAYER, edit=put)
        for row, position in batch.mask.nonzero().tolist():
            losses = (own[row, position - 1].item(), spliced[row, position - 1].item())
            document = batch.documents[row, position].item()
            at = (row, position)
            rows.append((document, y[at].double().numpy(), out[at].double().numpy(), latents[at].numpy() > 0, *losses))
    return [np.array(column) for column in zip(*rows)]


def naive_metrics(documents, y, out, fires, own, spliced):
    squares = ((y - out) ** 2).sum()
    variation = ((y - y.mean(axis=0)) ** 2).sum()
    return fires.sum(axis=1).mean(), squares / variation, squares / y.size, spliced.mean() - own.mean()


def test_metrics_are_what_their_names_say(random_models, batches, saes):
    model = random_models[1]
    found = evaluate_saes(saes, model, LAYER, batches(), seed=3)
    assert list(found) == list(saes)
    for name, sae in saes.items():
        columns = by_hand(model, sae, batches)
        expected = naive_metrics(*columns)
        for metric, value in zip(found[name], expected):
            assert metric.value == pytest.approx(value, rel=1e-4, abs=1e-6)
        dead = ~columns[3].any(axis=0)
        assert found[name].dead_fraction == dead.mean()
    assert (
        found["topk"].l0.value <= K < found["some dead"].l0.value and found["some dead"].dead_fraction >= 20 / LATENTS
    )
    alone = evaluate_saes({"topk": saes["topk"]}, model, LAYER, batches(), seed=3)
    assert alone == {"topk": found["topk"]}


def test_intervals_are_those_of_resampled_documents(random_models, batches, saes):
    model, sae = random_models[1], saes["some dead"]
    found = evaluate_saes({"sae": sae}, model, LAYER, batches(), seed=3)["sae"]
    columns = by_hand(model, sae, batches)
    numbers = np.unique(columns[0])
    places = [np.flatnonzero(columns[0] == number) for number in numbers]
    draws = np.random.default_rng(3).multinomial(len(numbers), np.full(len(numbers), 1 / len(numbers)), size=1000)
    values = []
    for draw in draws:
        tokens = np.concatenate([np.tile(place, times) for place, times in zip(places, draw)])
        values.append(naive_metrics(*(column[tokens] for column in columns)))
    for metric, low, high in zip(found, *np.quantile(values, (0.025, 0.975), axis=0)):
        assert metric.low == pytest.approx(low, rel=1e-3, abs=1e-6)
        assert metric.high == pytest.approx(high, rel=1e-3, abs=1e-6)
        assert metric.low < metric.value < metric.high


def test_two_saes_are_compared_document_by_document(random_models, batches, saes):
    """In each resample both are measured on the same documents, in whichever call."""
    model = random_models[1]
    found = resample_saes(saes, model, LAYER, batches(), seed=3)
    alone = resample_saes({"topk": saes["topk"]}, model, LAYER, batches(), seed=3)["topk"]
    columns = {name: by_hand(model, sae, batches) for name, sae in saes.items()}
    documents = columns["topk"][0]
    draw = np.random.default_rng(3).multinomial(len(set(documents)), np.full(6, 1 / 6), size=1000)[7]
    tokens = np.concatenate([np.tile(np.flatnonzero(documents == d), times) for d, times in zip(range(6), draw)])
    expected = [naive_metrics(*(column[tokens] for column in columns[name])) for name in saes]
    for index, name in enumerate(("l0", "fuv", "mse", "delta_loss")):
        one, two = (getattr(found[sae], name)[8] for sae in saes)
        assert two - one == pytest.approx(expected[1][index] - expected[0][index], rel=1e-3, abs=1e-6)
        np.testing.assert_array_equal(getattr(alone, name), getattr(found["topk"], name))
    assert found["topk"].metrics() == evaluate_saes(saes, model, LAYER, batches(), seed=3)["topk"]


def test_a_map_without_latents_is_measured_alike(random_models, batches):
    model = random_models[1]
    d = model.d_model
    generator = torch.Generator().manual_seed(0)
    half = AffineMap(torch.eye(d) / 2, torch.zeros(d))
    there, back = (
        AffineMap(torch.randn(d, 5, generator=generator), torch.randn(5, generator=generator)),
        AffineMap(torch.randn(5, d, generator=generator), torch.randn(d, generator=generator)),
    )
    maps = {"same": AffineMap(torch.eye(d), torch.zeros(d)), "half": half, "both": there.then(back)}
    found = {name: of.metrics() for name, of in resample_saes(maps, model, LAYER, batches()).items()}
    assert found["same"].fuv.value == 0 and found["same"].delta_loss.value == pytest.approx(0, abs=1e-6)
    y = torch.cat([model.residuals(batch.tokens, [LAYER])[LAYER][batch.mask] for batch in batches()])
    variation = (y - y.mean(0)).square().sum()
    for name, out in (("half", y / 2), ("both", back(there(y)))):
        assert found[name].fuv.value == pytest.approx(((out - y).square().sum() / variation).item(), rel=1e-3)
        assert found[name].l0.value == 0 and np.isnan(found[name].dead_fraction)


def test_an_sae_saved_in_half_precision_is_measured(random_models, batches, saes, tmp_path):
    model = random_models[1]
    saes["topk"].to(dtype=torch.float16).save_model(tmp_path)
    wide = saes["topk"].to(dtype=torch.float32)
    found = evaluate_saes({"half": load_sae(str(tmp_path)), "wide": wide}, model, LAYER, batches())
    assert found["half"] == found["wide"]


def test_saes_of_something_else_than_the_stream(random_models, batches):
    model = random_models[1]
    width = model.d_model
    of_heads = make_sae("relu", width, dtype="float32", reshape_activations="hook_z")
    config = TranscoderConfig(width, LATENTS, apply_b_dec_to_input=False, d_out=width)
    transcoder = SAE.get_sae_class_for_architecture("transcoder")(config)
    for sae in (of_heads, transcoder):
        with pytest.raises(ValueError, match=r"SAE 'other' is a (standard|transcoder) .*: expected an SAE of the"):
            evaluate_saes({"other": sae}, model, LAYER, batches())


def test_the_best_and_the_emptiest_sae(random_models, batches):
    """Latents for each direction and its opposite reconstruct everything; none at all leave the mean."""
    model = random_models[1]
    d = model.d_model
    config = StandardSAEConfig(d, 2 * d, apply_b_dec_to_input=False)
    perfect, empty = (SAE.get_sae_class_for_architecture("standard")(dataclasses.replace(config)) for _ in range(2))
    y = torch.cat([model.residuals(batch.tokens, [LAYER])[LAYER][batch.mask] for batch in batches()])
    with torch.no_grad():
        perfect.W_enc.copy_(torch.cat([torch.eye(d), -torch.eye(d)], dim=1))
        perfect.W_dec.copy_(perfect.W_enc.T)
        empty.b_enc.fill_(-1e6)
        empty.b_dec.copy_(y.mean(0))
    found = evaluate_saes({"perfect": perfect, "empty": empty}, model, LAYER, batches())
    assert found["perfect"].fuv.value == pytest.approx(0, abs=1e-10) and found["perfect"].l0.value == d
    assert found["perfect"].delta_loss.value == pytest.approx(0, abs=1e-5)
    assert found["empty"].fuv.value == pytest.approx(1, rel=1e-5) and found["empty"].dead_fraction == 1
    assert found["empty"].l0.value == 0 and found["empty"].mse.value == pytest.approx(y.var(0, correction=0).mean())


def test_halved_batches_and_short_pieces_give_the_same(random_models, batches, saes, monkeypatch):
    model = random_models[1]
    expected = evaluate_saes(saes, model, LAYER, batches())
    cross_entropy = model.cross_entropy

    def small(tokens, *, layer=None, edit=None, stream=None):
        if len(tokens) > 1 and edit is not None:
            raise torch.OutOfMemoryError("no room")
        return cross_entropy(tokens, layer=layer, edit=edit, stream=stream)

    monkeypatch.setattr(model, "cross_entropy", small)
    monkeypatch.setattr("stitch_utils.saes.evaluation.TOKENS_AT_ONCE", 7)
    found = evaluate_saes(saes, model, LAYER, batches())
    for name in saes:
        np.testing.assert_allclose(np.hstack(found[name]), np.hstack(expected[name]), rtol=1e-4, atol=1e-6)


def test_what_cannot_be_evaluated(random_models, batches, saes):
    with pytest.raises(ValueError, match=r"SAE 'sae' reads 48 dimensions: expected 32, that of"):
        evaluate_saes({"sae": saes["topk"]}, random_models[0], 1, batches())
    with pytest.raises(ValueError, match="hold no ordinary token"):
        evaluate_saes({"sae": saes["topk"]}, random_models[1], LAYER, [])
    with pytest.raises(ValueError, match="hold no ordinary token"):
        empty = (batch._replace(mask=torch.zeros_like(batch.mask)) for batch in batches())
        evaluate_saes({"sae": saes["topk"]}, random_models[1], LAYER, empty)


def test_the_metrics_are_table_2s():
    assert SAEMetrics._fields == ("l0", "fuv", "mse", "delta_loss", "dead_fraction")


@pytest.mark.parametrize("to", ["a", "b"])
def test_an_sae_is_judged_beside_the_original(pair, models, to):
    stitched = StitchedPair(pair, models, (1, 2), "smoke")
    batches, stitch = list(stitched.evaluation_rows("b")), fit_exact(stitched.held_out_moments)
    source, target = (0, 1) if to == "b" else (1, 0)
    torch.manual_seed(0)
    sae = TopKSAE(TopKSAEConfig((32, 48)[source], 64, k=3))
    carried = transfer_sae(sae, stitch, to=to)
    trust = judge_sae(stitched, sae, carried, stitch=stitch, to=to)
    assert trust.original == evaluate_saes({"sae": sae}, models[source], (1, 2)[source], batches)["sae"]
    assert trust.carried == evaluate_saes({"sae": carried}, models[target], (1, 2)[target], batches)["sae"]
    losses = measure_fidelity(*models, 1, 2, {"it": stitch}, batches)
    assert trust.source_loss == pytest.approx(losses.cross_entropy("own", "ab"[source]).value)
    assert trust.target_loss == pytest.approx(losses.cross_entropy("own", "ab"[target]).value)
    round_trip = losses.cross_entropy("it", {"b": "b_to_a_to_b", "a": "a_to_b_to_a"}[to]).value
    assert trust.target_loss + trust.alone.delta_loss.value == pytest.approx(round_trip, rel=1e-5)
    nulls = list(component_stitches(stitched.held_out_moments))
    null = transfer_sae(sae, nulls[0], to=to)
    assert trust.null == evaluate_saes({"sae": null}, models[target], (1, 2)[target], batches)["sae"]
    above = trust.carried.delta_loss.value - trust.null.delta_loss.value
    assert trust.above_null.value == pytest.approx(above) and trust.above_null.low < above < trust.above_null.high
    x, y = (
        torch.cat([models[side].residuals(b.tokens, [(1, 2)[side]])[(1, 2)[side]][b.mask] for b in batches])
        for side in (source, target)
    )
    shares = []
    for fires in (carried.encode(y), *(transfer_sae(sae, each, to=to).encode(y) for each in nulls)):
        pairs = zip((sae.encode(x) > 0).tolist(), (fires > 0).tolist())
        cells = [(a, b) for row in pairs for a, b in zip(*row)]
        shares.append(sum(a and b for a, b in cells) / sum(a or b for a, b in cells))
    assert trust.over_null.value.value == pytest.approx(shares[0])
    assert (trust.over_null.mean, trust.over_null.best) == pytest.approx(
        (np.mean(shares[1:]), max(shares[1:])), rel=0.01
    )
    still = (sae.encode(x.mean(0)) > 0).expand(len(x), -1)
    fires = sae.encode(x) > 0
    assert trust.over_mean.best == pytest.approx(((fires & still).sum() / (fires | still).sum()).item(), rel=0.01)
    assert trust.tokens == sum(batch.mask.sum().item() for batch in batches)
    some = list(batches[0].split(4))[:1]
    trust = judge_sae(stitched, sae, carried, stitch=stitch, batches=iter(some), to=to)
    assert trust.carried == evaluate_saes({"sae": carried}, models[target], (1, 2)[target], some)["sae"]


def test_tokens_beyond_the_limit_are_as_if_they_were_special(random_models, batches):
    """Neither counted nor replaced, whatever the SAE makes of them."""
    model = random_models[1]
    norms = torch.cat([model.residuals(b.tokens, [LAYER])[LAYER][b.mask].norm(dim=1) for b in batches()])
    limit, sae = norms.median().item(), make_sae("topk", model.d_model, dtype="float32")

    def masked(batch):
        return batch._replace(mask=batch.mask & (model.residuals(batch.tokens, [LAYER])[LAYER].norm(dim=-1) <= limit))

    found = evaluate_saes({"x": sae}, model, LAYER, batches(), limit=limit)["x"]
    assert found == evaluate_saes({"x": sae}, model, LAYER, map(masked, batches()))["x"]
    assert found.fuv != evaluate_saes({"x": sae}, model, LAYER, batches())["x"].fuv
