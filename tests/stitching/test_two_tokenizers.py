"""Two models with different tokenizers: moments, losses, errors and attributions, against loops over characters."""

import itertools
import json
import re

import numpy as np
import pytest
import torch
from toy_book import call_here
from toy_saes import make_sae
from transformers import AutoModelForCausalLM

from stitch_utils.data.alignment import reader_of_both
from stitch_utils.data.embedded.world import documents
from stitch_utils.data.hub import resolve
from stitch_utils.data.pairs import TextRef, load_pair
from stitch_utils.data.text import paired_batches
from stitch_utils.features.attribution import attribution_correlations, carried
from stitch_utils.models.language_model import load_model, load_models
from stitch_utils.saes.evaluation import judge_sae
from stitch_utils.saes.io import load_sae
from stitch_utils.steering.effects import STRENGTH, judge_vectors
from stitch_utils.steering.vectors import random_direction, transfer_vector
from stitch_utils.stitching.evaluation import measure_fidelity
from stitch_utils.stitching.fit import fit_exact
from stitch_utils.stitching.lrt_maps import map_errors
from stitch_utils.stitching.moments import PairMoments, harvest_moments
from stitch_utils.stitching.pair import StitchedPair
from stitch_utils.stitching.stitch import stitch_loss
from stitch_utils.stitching.streams import describe_streams
from tools.train_pair import TrainingConfig, build_model, save_model, train_tokenizer

LAYERS = (1, 2)
CONTEXT = 40
TEXTS = [
    "The cook bakes the big cake in the kitchen.",
    "She sees 12 fish and 7 birds; größer als €5 or 東京.",
    "def read(path):\n    return path  # all of it\n\nThen it slept, and the cat ate the rat.",
    "The small dog runs to the old house because the child is there. " * 3,
]


@pytest.fixture(scope="module")
def models(random_folders, tmp_path_factory):
    """Model a of the random ones, and one with a tokenizer of its own."""
    folder = tmp_path_factory.mktemp("other") / "c"
    tokenizer = train_tokenizer([text + " one two three four" for text in TEXTS], 330)
    model = build_model(TrainingConfig("c", 3, 48, 4, 4, 1e-3, 10_000, context=48), tokenizer)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4 if parameter.dim() > 1 else 1)
    save_model(model, tokenizer, folder)
    return load_model(str(random_folders / "a")), load_model(str(folder))


@pytest.fixture
def batches(models, tmp_path):
    (tmp_path / "text.jsonl").write_text(
        "".join(f'{{"text": {json.dumps(text)}}}\n' for text in TEXTS), encoding="utf-8"
    )
    text = TextRef("files", str(tmp_path / "text.jsonl"))
    tokenizers = tuple(model.tokenizer for model in models)
    return list(paired_batches(text, tokenizers, context=CONTEXT, batch_size=3))


def naive_rows(models):
    """For each text the ids of both, cut as they must be, and the tokens that meet; all counted by decoding."""
    rows = []
    for text in TEXTS:
        sides, reads = [], []
        for model in models:
            ids = model.tokenizer(text, add_special_tokens=False)["input_ids"]
            read, so_far = [], b""
            alphabet = bytes_of_tokens(model.tokenizer)
            for id in ids:
                so_far += alphabet[id]
                read.append(len(so_far))
            sides.append(ids)
            reads.append(read)
        whole = {len(text[:n].encode()) for n in range(1, len(text) + 1)}
        met = [(reads[0].index(n), reads[1].index(n)) for n in sorted({*reads[0]} & {*reads[1]} & whole)]
        met = [pair for pair in met if max(pair) < CONTEXT - 1]
        if max(map(len, sides)) > CONTEXT - 1:
            sides = [ids[: last + 1] for ids, last in zip(sides, met[-1])]
        begins = [[model.tokenizer.bos_token_id, *ids] for model, ids in zip(models, sides)]
        rows.append((begins, [(i + 1, j + 1) for i, j in met], len(text.encode()[: reads[0][met[-1][0]]])))
    return rows


def bytes_of_tokens(tokenizer):
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in shown]
    alphabet = {chr(byte): byte for byte in shown} | {chr(256 + n): byte for n, byte in enumerate(hidden)}
    vocabulary = {id: token for token, id in tokenizer.get_vocab().items() if token not in tokenizer.all_special_tokens}
    return {id: bytes(alphabet.get(letter, 0) for letter in token) for id, token in vocabulary.items()}


def streams_of(models, begins, layers=LAYERS):
    return [
        model.residuals(torch.tensor([ids]), [layer])[layer][0] for model, ids, layer in zip(models, begins, layers)
    ]


def any_stitch(models):
    generator = torch.Generator().manual_seed(0)
    moments = PairMoments(*(model.d_model for model in models))
    moments.update(*(torch.randn(300, model.d_model, generator=generator) for model in models))
    return fit_exact(moments)


def test_the_tokenizers_do_differ_and_most_tokens_meet(models, batches):
    rows = naive_rows(models)
    met = sum(len(pairs) for _, pairs, _ in rows)
    lengths = [sum(len(begins[side]) - 1 for begins, _, _ in rows) for side in (0, 1)]
    assert lengths[0] != lengths[1] and 30 < met < min(lengths)
    assert sum(int(batch.met_a.sum()) for batch in batches) == met


def test_moments_are_those_of_the_tokens_that_end_at_one_character(models, batches):
    moments = harvest_moments(*models, batches, [LAYERS])[LAYERS]
    expected = PairMoments(*(model.d_model for model in models))
    for begins, pairs, _ in naive_rows(models):
        x, y = streams_of(models, begins)
        for i, j in pairs:
            expected.update(x[i : i + 1], y[j : j + 1])
    assert moments.count == expected.count
    torch.testing.assert_close(moments.mean, expected.mean, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(moments.scatter, expected.scatter, rtol=1e-3, atol=1e-2)


def test_losses_are_of_each_hosts_tokens_with_the_stream_replaced_where_they_meet(models, batches):
    stitch = any_stitch(models)
    found = measure_fidelity(*models, *LAYERS, {"it": stitch}, batches)
    totals, counts, met, n_bytes = {}, {"a": 0, "b": 0}, {"a": 0, "b": 0}, 0
    for begins, pairs, length in naive_rows(models):
        x, y = streams_of(models, begins)
        images = {
            "a_to_b": {j: stitch.up(x[i]) for i, j in pairs},
            "b_to_a": {i: stitch.down(y[j]) for i, j in pairs},
            "a_to_b_to_a": {i: stitch.down(stitch.up(x[i])) for i, _ in pairs},
            "b_to_a_to_b": {j: stitch.up(stitch.down(y[j])) for _, j in pairs},
            "a": {},
            "b": {},
        }
        n_bytes += length
        for condition, values in images.items():
            side = "ab".index(condition[-1])

            def put(residual, values=values):
                residual = residual.clone()
                for place, value in values.items():
                    residual[0, place] = value
                return residual

            losses = models[side].cross_entropy(torch.tensor([begins[side]]), layer=LAYERS[side], edit=put)[0]
            totals[condition] = totals.get(condition, 0) + losses.double().sum().item()
        for side, name in enumerate("ab"):
            counts[name] += len(begins[side]) - 1
            met[name] += len(pairs)
    for condition, total in totals.items():
        name, key = condition[-1], ("own" if condition in "ab" else "it", condition)
        assert found.cross_entropy(*key).value == pytest.approx(total / counts[name], rel=1e-4)
        assert found.bits_per_byte(*key).value == pytest.approx(total / np.log(2) / n_bytes, rel=1e-4)
    for name in "ab":
        assert found.counts[name].tokens.sum() == counts[name] and found.counts[name].n_bytes.sum() == n_bytes
        assert found.met(name).value == pytest.approx(met[name] / counts[name]) and found.met(name).value < 1


def test_errors_and_streams_are_of_the_tokens_that_meet(models, batches):
    stitch = any_stitch(models)
    found = map_errors(models, LAYERS, batches, {"up": ("b", stitch.up)})["up"]
    lengths, means = [], tuple(torch.zeros(model.d_model) for model in models)
    for begins, pairs, _ in naive_rows(models):
        x, y = streams_of(models, begins)
        lengths += [(stitch.up(x[i]) - y[j]).norm().item() for i, j in pairs]
    assert found.length.value == pytest.approx(np.mean(lengths), rel=1e-4)
    shapes = describe_streams(models, LAYERS, batches, stitch, means=means)
    assert shapes["a"].tokens == shapes["b"].tokens == len(lengths)


def test_attributions_use_each_models_own_next_token(models, batches):
    stitched = StitchedPair(load_pair("tiny"), models, LAYERS, "smoke")
    stitched.__dict__["stitch"] = any_stitch(models)
    stitched.__dict__["moments"] = harvest_moments(*models, batches, [LAYERS])[LAYERS]
    sae = make_sae("topk", models[0].d_model, dtype="float32", apply_b_dec_to_input=False)
    twins = carried(stitched, sae, to="b", seed=0)
    found = attribution_correlations(stitched, {"up": twins}, batches)["up"]["transferred"]
    twin, values = twins.others["transferred"], [[], []]
    weights = [naive_logits(model) for model in models]
    for begins, pairs, _ in naive_rows(models):
        streams = streams_of(models, begins)
        for places in pairs:
            if any(place + 1 >= len(ids) for place, ids in zip(places, begins)):
                continue
            for side, one in enumerate((sae, twin)):
                place = places[side]
                latents = one.encode(streams[side][place][None])[0].double()
                direct = one.W_dec.detach().double() @ weights[side]  # (latents, vocabulary)
                values[side].append((latents * direct[:, begins[side][place + 1]]).detach().numpy())
    ours, theirs = (np.array(side) for side in values)
    assert found.n_tokens == len(ours) > 20
    compared = 0
    for feature in range(ours.shape[1]):
        if ours[:, feature].std() > 1e-9 and theirs[:, feature].std() > 1e-9:
            expected = np.corrcoef(ours[:, feature], theirs[:, feature])[0, 1]
            assert found.correlation[feature] == pytest.approx(expected, abs=1e-4)
            compared += 1
    assert compared > 5


def naive_logits(model):
    """Rows of the unembedding with the final norm's weight folded in, (d_model, vocabulary)."""
    final = model.hf_model.gpt_neox.final_layer_norm
    weight = model.hf_model.get_output_embeddings().weight.detach().double() * final.weight.detach().double()
    return (weight - weight.mean(1, keepdim=True)).T


def test_an_sae_is_judged_in_each_model_on_its_own_tokens(models, batches):
    stitch, sae = any_stitch(models), make_sae("topk", models[0].d_model, dtype="float32")
    twin = make_sae("topk", models[1].d_model, dtype="float32")
    stitched = StitchedPair(load_pair("tiny"), models, LAYERS, "smoke")
    trust = judge_sae(stitched, sae, twin, stitch=stitch, batches=batches)
    rows = naive_rows(models)
    assert trust.tokens == sum(len(begins[1]) - 1 for begins, _, _ in rows)
    x = torch.cat([streams_of(models, begins)[0][1:] for begins, _, _ in rows]).double()
    out = sae(x.float()).double()
    fuv = ((x - out) ** 2).sum() / ((x - x.mean(0)) ** 2).sum()
    assert trust.original.fuv.value == pytest.approx(fuv.item(), rel=1e-3)


def test_a_vector_is_judged_by_the_likelihood_of_the_text_between_tokens_that_meet(models, batches):
    stitched, stitch = StitchedPair(load_pair("tiny"), models, LAYERS, "smoke"), any_stitch(models)
    vector = random_direction(models[0].d_model, 0)
    (trust,) = judge_vectors(stitched, [vector], stitch=stitch, batches=batches)
    rows = naive_rows(models)
    changes, norms = [[], []], [[], []]
    for begins, places, _ in rows:
        streams = streams_of(models, begins)
        for pair in places:
            for side in (0, 1):
                norms[side].append(streams[side][pair[side]].norm())
    for begins, places, _ in rows:
        for side, direction in enumerate((vector, transfer_vector(vector, stitch))):
            step = STRENGTH * torch.stack(norms[side]).median() * direction
            tokens = torch.tensor([begins[side]])
            edits = None, lambda residual, step=step: residual + step
            losses = [models[side].cross_entropy(tokens, layer=LAYERS[side], edit=edit)[0] for edit in edits]
            rise = (losses[0] - losses[1]).double().numpy()  # of the log-likelihoods of tokens 1, 2, ...
            for here, there in itertools.pairwise(places):
                changes[side].append(rise[here[side] : there[side]].sum())
    assert trust.tokens == len(changes[0]) > 20
    assert trust.over_null.value.value == pytest.approx(np.corrcoef(*changes)[0, 1], abs=1e-3)


def test_what_needs_one_tokenizer_says_so(models):
    stitched = StitchedPair(load_pair("tiny"), models, LAYERS, "smoke")
    with pytest.raises(ValueError, match="the models of pair 'tiny' have different tokenizers"):
        _ = stitched.tokenizer


def retokenized(model, folder, size):
    """Load the same model under a smaller tokenizer, which is trained here: rows of its embeddings in a new order."""
    tokenizer = train_tokenizer([document.text for document in documents("another", stop=1500)], size)
    old, new = model.tokenizer.get_vocab(), tokenizer.get_vocab()
    rows = torch.zeros(len(new), dtype=torch.long)
    for token, id in new.items():
        rows[id] = old.get(token, 0)
    other = AutoModelForCausalLM.from_pretrained(resolve(model.ref))
    for module in (other.get_input_embeddings(), other.get_output_embeddings()):
        module.weight = torch.nn.Parameter(module.weight[rows].clone())
    other.config.vocab_size = len(new)
    save_model(other, tokenizer, folder)
    return load_model(str(folder))


def stitched_on_the_world(models, layers, context):
    """The stitch of two models, the rows that it has not seen, and what it leaves unexplained of them, up and down."""
    tokenizers = tuple(model.tokenizer for model in models)
    sizes = {"context": context, "batch_size": 16, "rows": "packed"}
    training = paired_batches(TextRef("world", "stitch"), tokenizers, n_tokens=30_000, **sizes)
    evaluation = list(paired_batches(TextRef("world", "evaluation"), tokenizers, n_documents=30, **sizes))
    stitch = fit_exact(harvest_moments(*models, training, [layers])[layers])
    held_out = harvest_moments(*models, evaluation, [layers])[layers]
    loss = stitch_loss(stitch, held_out)
    return stitch, evaluation, loss.up / held_out.cyy.diagonal().mean(), loss.down / held_out.cxx.diagonal().mean()


def test_a_model_under_another_tokenizer_is_stitched_to_itself(tmp_path):
    tiny = load_pair("tiny")
    smaller, own = load_models(tiny)
    layer, context = tiny.b.layer, tiny.context // 2
    pair = own, retokenized(own, tmp_path / "again", len(own.tokenizer) * 2 // 3)
    assert reader_of_both(*(model.tokenizer for model in pair)) is None
    stitch, evaluation, up, down = stitched_on_the_world(pair, (layer, layer), context)
    # The pair's own two models have one tokenizer, and differ in more than their tokens.
    _, _, between_up, between_down = stitched_on_the_world((smaller, own), (tiny.a.layer, layer), context)
    assert 0 < up < between_up / 2 and 0 < down < between_down / 2
    found = measure_fidelity(*pair, layer, layer, {"it": stitch}, evaluation)
    assert found.met("a").value > 0.95 and found.met("b").value > 0.8
    # The model was not trained on the other tokens: what comes from its own is better than what it makes of them.
    assert found.cross_entropy("it", "a_to_b").value < found.cross_entropy("own", "b").value
    assert found.increase("it", "a_to_b_to_a").value < 0.01


def test_the_commands_carry_across_tokenizers(models, small_pair, bare_book):
    folder = models[1].ref
    file = small_pair(b={"model": folder, "layer": 2}, ridge="auto")
    code, lines, err = call_here(bare_book, "fit", "--pair", str(file), "--scale", "smoke")
    assert (code, err) == (0, "")
    said = "\n".join(lines)
    shares = re.search(r"tokens whose stream is replaced: ([\d.]+)% of A's, ([\d.]+)% of B's; others keep", said)
    assert shares and all(30 < float(share) < 100 for share in shares.groups())
    assert re.search(r"^A->B +[\d.]+ +[\d.]+ +[+-][\d.]+%$", said, re.M) and "ridge" in said and "median token" in said
    rng = np.random.default_rng(0)
    np.save(bare_book / "v.npy", rng.normal(size=models[0].d_model).astype(np.float32))
    np.savez(bare_book / "p.npz", coef_=rng.normal(size=(1, models[0].d_model)), intercept_=np.zeros(1))
    make_sae("topk", models[0].d_model, dtype="float32").save_model(str(bare_book / "sae"))
    width = models[1].d_model
    for command, given, out in (
        ("transfer-vector", "v.npy", "w.npy"),
        ("transfer-probe", "p.npz", "q.npz"),
        ("transfer-sae", "sae", "carried"),
    ):
        options = ("--pair", str(file), "--out", str(bare_book / out))
        options += () if command == "transfer-vector" else ("--scale", "smoke")
        code, lines, err = call_here(bare_book, command, str(bare_book / given), *options)
        assert (code, err) == (0, ""), command
    assert np.load(bare_book / "w.npy").shape == (width,) and np.load(bare_book / "q.npz")["coef_"].shape == (1, width)
    assert load_sae(str(bare_book / "carried")).cfg.d_in == width
