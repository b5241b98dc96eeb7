"""The study of section 5.2 as a whole: what its numbers are numbers of, and that the claims find theirs."""

import dataclasses
from pathlib import Path as File

import numpy as np
import pytest
import torch
import yaml
from toy_saes import make_sae

from stitch_utils.data.pairs import load_pair
from stitch_utils.features.attention import Path, path_ablation
from stitch_utils.features.entropy import decoder_rows, entropy_effects, null_space, unembedding
from stitch_utils.features.functional import (
    FunctionalConfig,
    functional_config,
    functional_twins,
    study_deactivation,
    study_entropy,
)
from stitch_utils.saes.transfer import transfer_sae
from stitch_utils.stitching.fit import fit_exact
from stitch_utils.stitching.nulls import component_stitches
from stitch_utils.stitching.pair import StitchedPair
from stitch_utils.stitching.stitch import random_stitch
from stitch_utils.utils.stats import over_seeds

LAYERS = (1, 2)
CONFIG = FunctionalConfig(
    20,
    12,
    2,
    candidates=12,
    max_tokens=40,
    min_tokens=3,
    quantile=0.5,
    random_directions=4,
    random_stitches=2,
    component_stitches=2,
    seed=3,
)
ROOT = File(__file__).parents[2]


@pytest.fixture
def twins(pair, models):
    stitched = StitchedPair(pair, models, LAYERS, "smoke")
    moments = stitched.moments
    sae = make_sae("topk", models[0].d_model, dtype="float32")
    with torch.no_grad():
        sae.b_enc.copy_(-moments.mean_x.float() @ sae.W_enc)  # centred, so that many features fire
        sae.W_dec[:8] = 9 * null_space(*unembedding(models[0])).directions[:, 0].float()  # some are entropy features
    return functional_twins(stitched, sae, CONFIG), moments


def test_the_saes_are_the_original_and_its_twins(twins, models):
    found, moments = twins
    stitch, original = fit_exact(moments), found.saes["before"]
    nulls = {group: [f"{group} {number}" for number in range(2)] for group in ("random", "components")}
    assert list(found.saes) == ["before", "after", *nulls["random"], *nulls["components"]]
    assert found.groups == {"before": ["before"], "after": ["after"], **nulls}
    for key, null in zip(nulls["components"], component_stitches(moments, 2, seed=3)):
        assert found.saes[key].W_dec.equal(transfer_sae(original, null).W_dec)
    assert found.saes["after"].W_dec.equal(transfer_sae(original, stitch).W_dec)
    other = random_stitch(stitch, 3 + 1, means=(moments.mean_x, moments.mean_y))
    assert found.saes["random 1"].W_dec.equal(transfer_sae(original, other).W_dec)
    assert found.sides["before"] == (models[0], 1) and found.sides["after"] == found.sides["random 0"] == (models[1], 2)
    assert len(found.spaces["before"].directions) == 32 and len(found.spaces["random 1"].directions) == 48
    assert found.texts_of("before") is found.texts["a"] and found.texts_of("random 1") is found.texts["b"]
    assert all(map(len, found.texts["a"])) and all(map(len, found.texts["b"]))


def test_numbers_of_entropy_features(twins):
    found = twins[0]
    study = study_entropy(found)
    numbers, some = study.numbers("mine"), study.followed
    shares = {key: found.spaces[key].share(decoder_rows(sae)) for key, sae in found.saes.items()}
    assert numbers["figure5a.mine.after.null_share"] == pytest.approx(shares["after"][some].sqrt().mean().item())
    mean = np.mean([shares[key][some].sqrt().mean().item() for key in ("random 0", "random 1")])
    assert numbers["figure5a.mine.random.null_share"] == pytest.approx(mean)
    assert (
        numbers["figure5a.mine.count"] == len(study.found["before"].candidates) == numbers["figure5a.mine.followed"] > 0
    )
    for null in ("random", "components"):

        def lowest(key):
            ranks = study.found[key].share_rank[some], study.found[key].size_rank[some]
            return min(rank.min().item() for rank in ranks)

        more = lowest("after") - max(lowest(f"{null} {number}") for number in range(2))
        assert numbers[f"figure5a.mine.after.lowest_rank.beyond_{null}"] == pytest.approx(more)
    assert numbers["figure5a.mine.after.lowest_rank"] == lowest("after")
    kept = set(study.found["before"].candidates) & set(study.found["after"].candidates)
    assert numbers["figure5a.mine.kept"] == len(kept)
    rows = found.activity["after"].mean[some, None] * found.saes["after"].W_dec[some]
    effects = entropy_effects(*found.sides["after"], rows.detach(), found.texts["b"].few)
    assert numbers["figure5a.mine.after.entropy_change"] == pytest.approx(
        effects.mean("entropy size").mean().item(), rel=1e-4
    )
    assert list(study.tests) == list(found.saes)
    ratios = []
    for key in ("random 0", "random 1"):
        rows = found.activity[key].mean[some, None] * found.saes[key].W_dec[some]
        ratios.append(entropy_effects(*found.sides[key], rows.detach(), found.texts["b"].few).per_rank.mean().item())
    assert numbers["figure5a.mine.random.per_rank"] == pytest.approx(np.mean(ratios), rel=1e-4)
    assert ratios[0] != pytest.approx(ratios[1], rel=1e-3), "nothing would be tested"
    for feature in some:
        own, random = study.of_feature(feature, "before"), study.of_feature(feature, "random")
        assert set(own) - set(study.of_feature(feature, "components")) == {"random", "above"}
        assert own["share"] == pytest.approx(shares["before"][feature].item() ** 0.5)
        assert random["share"] == pytest.approx(
            np.mean([shares[key][feature].item() ** 0.5 for key in ("random 0", "random 1")])
        )
        for one, keys in ((own, ("before",)), (random, ("random 0", "random 1"))):
            tests = [study.tests[key] for key in keys]
            at = some.index(feature)
            assert one["size rank"] == pytest.approx(np.mean([study.found[key].size_rank[feature] for key in keys]))
            for name, change in (("entropy", "entropy"), ("its size", "entropy size"), ("rank", "rank size")):
                assert one[name] == pytest.approx(np.mean([test.mean(change)[at, 0] for test in tests]))
            ratios = [test.mean("entropy size")[at] / test.mean("rank size")[at] for test in tests]
            ratio, beside = [of[0] for of in ratios], [of[1:] for of in ratios]
            assert one["ratio"] == pytest.approx(np.mean(ratio))
            assert one["random"] == pytest.approx(np.mean([np.sort(of)[(len(of) - 1) // 2] for of in beside]))
            below = [np.mean([value < own_ratio for value in of]) for of, own_ratio in zip(beside, ratio)]
            assert one["above"] == pytest.approx(np.mean(below))
    for key in found.saes:
        marked = np.flatnonzero(study.found[key].alive.numpy())[study.marked(key)]
        assert set(marked) == {feature for feature in some if study.found[key].alive[feature]}


def test_intervals_of_entropy_effects_are_over_documents(twins):
    """Of two documents one is drawn twice or both are, and each of the three is likelier than 2.5%."""
    study = study_entropy(twins[0])
    assert {test.tokens.shape[-1] for test in study.tests.values()} == {2}
    numbers = study.numbers("mine")
    ratios = {}
    for group, keys in study.twins.groups.items():
        ends = {"entropy_change": [], "rank_change": [], "per_rank": []}
        if group != "components":
            ends["over_random_directions"] = []
        for drawn in ([0], [1], [0, 1]):
            table = {quantity: [] for quantity in ends}
            for key in keys:
                sums, tokens = study.tests[key]
                _, entropy, rank = (sums[:, 0, drawn].sum(1) / tokens[:, 0, drawn].sum(1, keepdim=True)).T
                ratios.setdefault(tuple(drawn), {})[key] = (entropy / rank).mean().item()
                table["entropy_change"].append(entropy.mean())
                table["rank_change"].append(rank.mean())
                table["per_rank"].append((entropy / rank).mean())
                if group != "components":
                    beside = sums[:, 1:, drawn, 1].sum(-1) / sums[:, 1:, drawn, 2].sum(-1)
                    table["over_random_directions"].append(((entropy / rank) / beside.quantile(0.95, dim=1)).mean())
            for quantity, values in table.items():
                ends[quantity].append(np.mean([value.item() for value in values]))
        for quantity, values in ends.items():
            id = f"figure5a.mine.{group}.{quantity}"
            expected = values[2], min(values), max(values)
            assert [numbers[id], numbers[f"{id}.low"], numbers[f"{id}.high"]] == pytest.approx(expected, rel=1e-4), id
            assert min(values) < max(values)
    for null in ("random", "components"):
        more = [of["after"] - max(of[key] for key in study.twins.groups[null]) for of in ratios.values()]
        id = f"figure5a.mine.after.per_rank.beyond_{null}"
        expected = more[2], min(more), max(more)
        assert [numbers[id], numbers[f"{id}.low"], numbers[f"{id}.high"]] == pytest.approx(expected, rel=1e-4), id


def test_where_nothing_is_an_entropy_feature_the_closest_is_followed(twins):
    strict = dataclasses.replace(twins[0], config=dataclasses.replace(CONFIG, quantile=0.9999))
    study = study_entropy(strict)
    numbers = study.numbers("mine")
    assert study.found["before"].candidates == () and study.followed == [study.found["before"].closest]
    assert numbers["figure5a.mine.count"] == numbers["figure5a.mine.followed"] == 0


def test_numbers_of_deactivation(twins):
    found = twins[0]
    study = study_deactivation(found)
    numbers = study.numbers("mine")
    assert study.feature == study.search.effects[0].path.feature
    assert study.search.effects[0].mean_change == min(effect.mean_change for effect in study.search.effects)
    for key in found.saes:
        model, layer = found.sides[key]
        effect = study.roles[key]["closing"]
        again = path_ablation(
            model,
            layer,
            found.saes[key],
            [Path(study.feature, effect.path.layer, effect.path.head)],
            found.texts_of(key).evaluation,
            max_tokens=40,
        )[0]
        np.testing.assert_array_equal(again.ablated, effect.ablated)
        assert study.changes[key, "closing"] == again.change(seed=3)
        assert study.share(key) == pytest.approx(
            found.spaces[key].share(decoder_rows(found.saes[key]))[study.feature].item()
        )
    assert numbers["figure5b.mine.after.change"] == study.changes["after", "closing"].value
    assert numbers["figure16.mine.change"] == study.changes["after", "opening"].value
    for null in ("random", "components"):
        keys, start = (f"{null} 0", f"{null} 1"), f"figure5b.mine.after.change.beyond_{null}"
        closing, opening = ([study.changes[key, end].value for key in keys] for end in ("closing", "opening"))
        assert numbers[f"figure5b.mine.{null}.change"] == over_seeds(closing).value
        further = min(closing) - study.changes["after", "closing"].value
        assert numbers[start] == pytest.approx(further) and numbers[f"{start}.low"] < further < numbers[f"{start}.high"]
        further = study.changes["after", "opening"].value - max(opening)
        assert numbers[f"figure16.mine.change.beyond_{null}"] == pytest.approx(further) and min(opening) < max(opening)
        shares = [study.share(key) ** 0.5 for key in keys]
        beyond = study.share("after") ** 0.5 - max(shares)
        assert numbers[f"figure5b.mine.after.null_share.beyond_{null}"] == pytest.approx(beyond)
    assert numbers["figure5b.mine.before.null_share_squared"] == study.share("before")


def test_a_deactivation_feature_exists_by_its_size_and_beyond_chance(twins):
    study = study_deactivation(twins[0])

    def exists(value, high):
        change = study.changes["before", "closing"]._replace(value=value, high=high)
        return dataclasses.replace(study, changes={**study.changes, ("before", "closing"): change}).exists

    assert exists(-0.06, -0.01) and not exists(-0.06, 0.01) and not exists(-0.04, -0.01)


def test_every_number_that_a_claim_needs_is_there(twins):
    claims = yaml.safe_load((ROOT / "book" / "published.yml").read_text(encoding="utf-8"))["claims"]
    needed = {
        id.replace("{pair}", "mine")
        for claim in claims
        if claim["chapter"] == "functional_features"
        for id in claim["needs"].values()
    }
    numbers = study_entropy(twins[0]).numbers("mine") | study_deactivation(twins[0]).numbers("mine")
    assert needed <= set(numbers)
    assert all(isinstance(value, int | float) and np.isfinite(value) for value in numbers.values())


def test_settings_that_make_no_sense():
    assert functional_config(load_pair("tiny"), "smoke", seed=4, smallest=0.1).smallest == 0.1
    with pytest.raises(ValueError, match="entropy_documents must be 2 or more: got 1"):
        functional_config(load_pair("tiny"), "smoke", entropy_documents=1)
    with pytest.raises(ValueError, match="component_stitches must be 2 or more: got 1"):
        functional_config(load_pair("tiny"), "smoke", component_stitches=1)
    with pytest.raises(ValueError, match="random_stitches must be 2 or more: got 1"):
        functional_config(load_pair("tiny"), "smoke", random_stitches=1)
