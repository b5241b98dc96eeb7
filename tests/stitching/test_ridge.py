"""The ridge that is chosen on documents left out of the fit: against scikit-learn, on short and long text, of a pair"""

import functools
import itertools
import re

import pytest
import torch
import yaml
from sklearn.linear_model import Ridge
from toy_book import call_here
from toy_streams import gaussian_pair, moments_of, naive_loss

from stitch_utils.data.pairs import TextRef, load_pair
from stitch_utils.data.text import token_batches
from stitch_utils.models.harvest import paired_residuals
from stitch_utils.stitching import pair as fitting
from stitch_utils.stitching.fit import RIDGES, choose_ridge, fit_exact, scarcity
from stitch_utils.stitching.moments import PairMoments, harvest_folds, harvest_moments, load_folds, save_folds, total
from stitch_utils.stitching.pair import ScarceTokens, StitchedPair, fit_pair
from stitch_utils.stitching.stitch import Stitch, stitch_loss


def unexplained(stitch, x, y):
    """The shares of the variance of y and of x that the maps leave unexplained, from the activations."""
    gaps = (stitch.up(x) - y, y), (stitch.down(y) - x, x)
    return [(gap.square().sum() / (to - to.mean(0)).square().sum()).item() for gap, to in gaps]


def naive_losses(parts, ridges, alpha):
    """Eq. 3 of each ridge on every part, of scikit-learn's maps fitted to the activations of the other parts."""
    found = []
    for ridge in ridges:
        of_parts = []
        for left_out, (x, y) in enumerate(parts):
            rest = [torch.cat(side) for side in zip(*(part for at, part in enumerate(parts) if at != left_out))]
            maps = []
            for source, target in (rest, rest[::-1]):
                added = ridge * source.var(0, correction=0).mean().item() * len(source)
                regression = Ridge(alpha=added, solver="svd").fit(source.numpy(), target.numpy())
                maps += [torch.from_numpy(regression.coef_.T), torch.from_numpy(regression.intercept_)]
            of_parts.append(naive_loss(*maps, x, y, alpha)[-1].item())
        found.append(tuple(of_parts))
    return found


@pytest.mark.parametrize("alpha", [0, 0.5])
def test_the_losses_are_those_of_regressions_without_the_fold(alpha):
    x, y = gaussian_pair(seed=1, condition=1e3, d_a=8, d_b=12, n=60, shared=6)
    parts = list(zip(x.split((20, 7, 33)), y.split((20, 7, 33))))
    ridges = (1e-4, 1e-2, 1.0, 10.0)
    choice = choose_ridge([moments_of(*part) for part in parts], alpha=alpha, ridges=ridges)
    expected = naive_losses(parts, ridges, alpha)
    torch.testing.assert_close(torch.tensor(choice.by_fold), torch.tensor(expected), rtol=1e-6, atol=0)
    means = [(20 * first + 7 * second + 33 * third) / 60 for first, second, third in expected]
    assert choice.losses == pytest.approx(means) and choice.ridges == ridges
    assert choice.ridge == ridges[means.index(min(means))] and choice.ridge not in (ridges[0], ridges[-1])


@pytest.mark.parametrize("alpha", [0, 1])
def test_short_text_needs_a_ridge(alpha):
    """Fewer tokens than dimensions: without a ridge the maps are worse than the mean on other text."""
    x, y = gaussian_pair(seed=0, condition=1e2, d_a=24, d_b=32, n=5030, shared=16)
    short = [moments_of(x[at:30:5], y[at:30:5]) for at in range(5)]
    fits = {ridge: fit_exact(total(short), alpha=alpha, ridge=ridge) for ridge in (1e-8, choose_ridge(short).ridge)}
    without, chosen = (unexplained(stitch, x[30:].float(), y[30:].float()) for stitch in fits.values())
    assert max(without) > 1 and max(chosen) < 0.9 and all(a < b for a, b in zip(chosen, without))


@pytest.mark.parametrize("condition", [1e2, 1e5])
def test_long_text_loses_nothing(condition):
    x, y = gaussian_pair(seed=1, condition=condition, d_a=16, d_b=24, n=15000, shared=12)
    folds = [moments_of(x[at:5000:5], y[at:5000:5]) for at in range(5)]
    choice, held_out = choose_ridge(folds), moments_of(x[5000:], y[5000:])
    fixed, chosen = (stitch_loss(fit_exact(total(folds), ridge=r), held_out).total for r in (1e-8, choice.ridge))
    assert choice.ridge <= 1e-3 and chosen < fixed * 1.001


def test_the_choice_is_as_good_as_one_by_whole_fits():
    """Least squares stand for the fits with alpha > 0: on other text their choice loses hardly more than the best."""
    for n, condition in ((30, 1e4), (60, 1e2)):
        x, y = gaussian_pair(seed=2, condition=condition, d_a=12, d_b=16, n=n + 5000, shared=8)
        folds, other = [moments_of(x[at:n:5], y[at:n:5]) for at in range(5)], moments_of(x[n:], y[n:])
        losses = {ridge: stitch_loss(fit_exact(total(folds), ridge=ridge), other).total for ridge in RIDGES}
        assert losses[choose_ridge(folds).ridge] < 1.05 * min(losses.values())
        assert losses[1e-8] > 1.02 * min(losses.values()), "there is something to choose"


def test_what_cannot_be_chosen_on():
    x, y = gaussian_pair(seed=1, condition=10, d_a=3, d_b=4, n=40)
    whole, none = moments_of(x, y), PairMoments(3, 4)
    with pytest.raises(ValueError, match=r"1 folds hold tokens.*: expected two or more; give a number as the ridge"):
        choose_ridge([whole, none])
    with pytest.raises(ValueError, match="must not be negative: got alpha=1"):
        choose_ridge([whole, whole], alpha=1, ridges=(0.1, -0.1))
    with pytest.raises(ValueError, match="activations y do not vary over 20 tokens"):
        choose_ridge([moments_of(x[:20], y[:20]), moments_of(x[20:], y[20:] * 0)])
    halves = [moments_of(x[:20], y[:20]), moments_of(x[20:], y[20:])]
    assert choose_ridge([*halves, none]) == choose_ridge(halves)


def test_few_tokens_are_told():
    x, y = gaussian_pair(seed=1, condition=10, d_a=5, d_b=7, n=24)
    assert scarcity(moments_of(x, y)) == scarcity(moments_of(y, x)) == ""
    for few in (moments_of(x[:23], y[:23]), moments_of(y[:23], x[:23])):
        assert scarcity(few).startswith("23 tokens are fewer than twice the 12 dimensions of both streams")


@pytest.fixture
def batches(random_models):
    """Rows in which documents lie one after another, so that some begin in one batch and end in the next."""
    size = {"context": 32, "batch_size": 4, "rows": "packed", "n_tokens": 3200}
    return functools.partial(token_batches, TextRef("world", "ridge"), random_models[0].tokenizer, **size)


def test_a_document_is_in_one_fold(random_models, batches, monkeypatch):
    layers, every = [(1, 2), (0, 1)], list(batches())
    owners = [set(batch.documents[batch.mask].tolist()) for batch in every]
    assert any(first & second for first, second in itertools.pairwise(owners)), "a document crosses batches"
    read = list(paired_residuals(*random_models, every, [0, 1], [1, 2]))
    documents = torch.cat([batch.documents[batch.mask] for batch in every])
    x, y = (torch.cat([part[side][layer] for part in read]) for side, layer in ((0, 1), (1, 2)))

    def expect(folds):
        for number, fold in enumerate(folds):
            assert list(fold) == layers
            chosen = documents % 3 == number
            expected = moments_of(x[chosen], y[chosen])
            assert fold[1, 2].count == chosen.sum() > 0
            torch.testing.assert_close(fold[1, 2].mean, expected.mean, rtol=1e-5, atol=1e-6)
            torch.testing.assert_close(fold[1, 2].covariance, expected.covariance, rtol=1e-4, atol=1e-6)

    expect(harvest_folds(*random_models, batches(), layers, folds=3))
    residuals = random_models[1].residuals

    def small(tokens, layers):
        if len(tokens) > 2:
            raise torch.OutOfMemoryError("no room")
        return residuals(tokens, layers)

    monkeypatch.setattr(random_models[1], "residuals", small)
    expect(harvest_folds(*random_models, batches(), layers, folds=3))


def test_one_fold_is_the_harvest_to_the_last_bit(random_models, batches, tmp_path):
    expected = PairMoments(*(model.d_model for model in random_models))
    for xs, ys in paired_residuals(*random_models, batches(), [1], [2]):
        expected.update(xs[1], ys[2])
    (fold,) = harvest_folds(*random_models, batches(), [(1, 2)], folds=1)
    save_folds([fold[1, 2]], tmp_path / "one.safetensors")
    (again,) = load_folds(tmp_path / "one.safetensors")
    whole = harvest_moments(*random_models, batches(), [(1, 2)])[1, 2]
    for found in (fold[1, 2], again, whole, total([again]), PairMoments.load(tmp_path / "one.safetensors")):
        assert found.count == expected.count
        assert torch.equal(found.mean, expected.mean) and torch.equal(found.scatter, expected.scatter)


def test_folds_in_a_file(tmp_path):
    x, y = gaussian_pair(seed=1, condition=10, d_a=5, d_b=7, n=14)
    folds = [moments_of(x[:5], y[:5]), PairMoments(5, 7), moments_of(x[5:], y[5:])]
    save_folds(folds, tmp_path / "folds.safetensors")
    again = load_folds(tmp_path / "folds.safetensors")
    assert [(fold.d_a, fold.d_b, fold.count) for fold in again] == [(5, 7, 5), (5, 7, 0), (5, 7, 9)]
    assert all(torch.equal(a.mean, b.mean) and torch.equal(a.scatter, b.scatter) for a, b in zip(folds, again))
    torch.testing.assert_close(total(again).covariance, moments_of(x, y).covariance)
    fit_exact(total(folds), ridge=0.1).save(tmp_path / "stitch.safetensors")
    with pytest.raises(ValueError, match="holds Stitch data: expected PairMoments"):
        load_folds(tmp_path / "stitch.safetensors")


@pytest.fixture
def file(small_pair, tmp_path):
    """A pair's file that names no ridge, on a text of 60 documents."""
    documents = [f"The cook bakes {number} cakes in the kitchen. She sees the big fish." for number in range(60)]
    (tmp_path / "text.txt").write_text("\n\n".join(documents))
    return small_pair(text="text.txt")


def test_a_pair_chooses_at_no_further_pass(file, monkeypatch):
    passes = []

    @functools.wraps(harvest_folds)
    def counted(*given, **options):
        passes.append(options["folds"])
        return harvest_folds(*given, **options)

    monkeypatch.setattr(fitting, "harvest_folds", counted)
    pair = load_pair(file)
    opened, again = (StitchedPair.open(pair, "smoke", alpha=0.5) for _ in range(2))
    batches = opened.training_batches
    folds = harvest_folds(*opened.models, batches(), [opened.layers], folds=5)
    expected = choose_ridge([fold[opened.layers] for fold in folds], alpha=0.5)
    assert opened.ridge_choice == again.ridge_choice == expected and passes == [5]
    assert opened.ridge == "auto" and opened.ridge_used == expected.ridge == opened.stitch.report.ridge
    whole = harvest_moments(*opened.models, batches(), [opened.layers])[opened.layers]
    torch.testing.assert_close(opened.moments.covariance, whole.covariance, rtol=1e-8, atol=1e-12)
    assert torch.equal(opened.stitch.P_up, again.stitch.P_up) and passes == [5]


def test_a_number_is_taken_as_it_is(file, small_pair):
    pair = load_pair(file)
    opened = StitchedPair.open(pair, "smoke", ridge=0.25)
    whole = harvest_moments(*opened.models, opened.training_batches(), [opened.layers])[opened.layers]
    assert opened.ridge_choice is None and opened.ridge_used == opened.stitch.report.ridge == 0.25
    assert torch.equal(opened.moments.scatter, whole.scatter) and torch.equal(opened.moments.mean, whole.mean)
    of_file = StitchedPair.open(load_pair(small_pair(text="text.txt", ridge=0.5)), "smoke")
    assert of_file.ridge_used == of_file.ridge == 0.5
    with pytest.raises(ValueError, match="ridge must be a number of 0 or more, or auto: got 'least'"):
        StitchedPair.open(pair, "smoke", ridge="least")


def test_a_stitch_of_few_tokens_warns(small_pair):
    """The streams have 32 and 48 dimensions."""
    for tokens, expected in ((80, True), (155, True), (240, False)):
        opened = StitchedPair.open(load_pair(small_pair(sizes={"train_tokens": tokens})), "smoke")
        few = opened.moments.count < 2 * sum(model.d_model for model in opened.models)
        assert few == expected
        if few:
            with pytest.warns(ScarceTokens, match="tokens are fewer than twice the"):
                _ = opened.stitch
        _ = opened.stitch


def fit_lines(root, file, *given):
    code, lines, err = call_here(root, "fit", "--pair", str(file), "--scale", "smoke", *given)
    return code, [line for line in lines if line.startswith(("ridge", "Beware"))], err


def test_the_command_says_which_ridge_and_why(small_pair, file, bare_book):
    code, (line,), err = fit_lines(bare_book, file)
    assert (code, err) == (0, "") and line.endswith("; it is the smallest that was tried")
    short = small_pair(text="text.txt", sizes={"train_tokens": 200})
    code, (line,), err = fit_lines(bare_book, short)
    choice = fit_pair(short, scale="smoke").ridge_choice
    losses = dict(zip(choice.ridges, choice.losses))
    gained = f"(Eq. 3 there {losses[choice.ridge]:.4g}, {losses[1e-8]:.4g} with 1e-08)"
    assert line == f"ridge {choice.ridge:g}, chosen on documents left out of least-squares fits {gained}"
    assert 1e-8 < choice.ridge < max(RIDGES) and losses[choice.ridge] < losses[1e-8] / 2
    assert Stitch.load(bare_book / "artifacts" / "mine" / "stitch.safetensors").report.ridge == choice.ridge
    assert fit_lines(bare_book, short, "--ridge", "1e-3") == (0, ["ridge 0.001, as given"], "")
    assert fit_lines(bare_book, short, "--ridge", "auto") == (0, [line], "")
    for wrong, read in (("least", "'least'"), ("-1", "-1.0")):
        code, lines, err = fit_lines(bare_book, short, "--ridge", wrong)
        assert (code, lines, err.count("\n")) == (2, [], 1)
        assert err.endswith(f"ridge must be a number of 0 or more, or auto: got {read}\n")
    code, (_, beware), err = fit_lines(bare_book, small_pair(text="text.txt", sizes={"train_tokens": 80}))
    assert (code, err) == (0, "") and re.match("Beware: .* tokens are fewer than twice the 80 dimensions", beware)


def test_a_pair_of_a_short_text(small_pair, file):
    """With 1e-8 a map explains less of other documents than their mean does; with the ridge that is chosen, most."""
    pair = load_pair(small_pair(text="text.txt", sizes={"train_tokens": 100}))
    with pytest.warns(ScarceTokens):
        fixed, chosen = (fit_pair(pair, scale="smoke", ridge=ridge) for ridge in (1e-8, None))
    assert fixed.ridge_choice is None and chosen.scarcity == fixed.scarcity != ""
    assert max(fixed.unexplained) > 1 and max(chosen.unexplained) < 0.3


def test_a_text_of_one_document_needs_a_number(file, bare_book, tmp_path):
    (tmp_path / "one.txt").write_text("The cook bakes cakes in the kitchen. " * 9)
    text = {"train": {"source": "files", "name": "one.txt"}, "evaluation": {"source": "files", "name": "text.txt"}}
    file.write_text(yaml.safe_dump(yaml.safe_load(file.read_text()) | {"text": text}))
    code, lines, err = fit_lines(bare_book, file)
    assert (code, lines, err.count("\n")) == (2, [], 1)
    assert "ridge: auto: 1 folds hold tokens" in err and "give a number as the ridge of a text of one document" in err
    assert fit_lines(bare_book, file, "--ridge", "0.01")[0] == 0
