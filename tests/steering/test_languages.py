"""The sweep of section 4: which cells there are, that each steers as its name says, and what is made of them."""

import dataclasses
import functools
import itertools

import numpy as np
import pytest
import torch
import yaml
from langdetect import DetectorFactory
from scipy.stats import spearmanr
from toy_book import project_root_at

from stitch_utils.data.pairs import load_pair
from stitch_utils.models.generation import Response
from stitch_utils.models.language_model import load_models
from stitch_utils.steering import sweep as engine
from stitch_utils.steering.languages import (
    LanguageConfig,
    LanguageSweep,
    clipped_gap,
    language_config,
    language_frequencies,
    rank_correlations,
    sweep_languages,
)
from stitch_utils.steering.prompts import languages, parallel_pairs, steering_prompts
from stitch_utils.steering.sweep import Answers, Cell
from stitch_utils.steering.vectors import condition_vectors, language_means, steering_vector
from stitch_utils.stitching.moments import PairMoments
from stitch_utils.stitching.nulls import component_stitches
from stitch_utils.stitching.pair import StitchedPair
from stitch_utils.stitching.stitch import Stitch
from stitch_utils.utils.stats import clopper_pearson, crossed_mean

LAYERS = {"a": 1, "b": 2}
CONFIG = LanguageConfig(
    languages=("fr", "de"),
    prompts=3,
    choosing_languages=("de",),
    choosing_prompts=2,
    pairs=4,
    strengths=(1.0, 3.0),
    max_new_tokens=5,
    batch_size=2,
    frequency_documents=3,
)


class Run:
    """A sweep of two random models, with what it was made of and how many cells were generated for it."""

    def __init__(self, path):
        self.pair, self.generated = load_pair(path), 0
        self.models = dict(zip("ab", load_models(self.pair)))
        generator = torch.Generator().manual_seed(0)
        shapes = ((32, 48), (48,), (48, 32), (32,))
        self.stitch = Stitch(*(torch.randn(shape, generator=generator) for shape in shapes))
        self.stitched = StitchedPair(self.pair, tuple(self.models.values()), (1, 2), "smoke")
        self.moments = PairMoments(32, 48)
        self.moments.update(*(torch.randn(200, d, generator=generator) * torch.rand(d) for d in (32, 48)))
        # in place of those that would be fitted and harvested
        vars(self.stitched).update(stitch=self.stitch, moments=self.moments)
        self.sweep = self.again()
        self.first = self.generated

    def again(self, **changes):
        return sweep_languages(self.stitched, dataclasses.replace(CONFIG, **changes))


@pytest.fixture(scope="module")
def run(random_folders, tmp_path_factory):
    root, generate = tmp_path_factory.mktemp("steering"), engine.generate_texts
    data = {
        "name": "mine",
        "context": 20,
        "text": {"source": "world", "name": "small pair"},
        "a": {"model": str(random_folders / "a"), "layer": 1},
        "b": {"model": str(random_folders / "b"), "layer": 2},
    }
    (root / "mine.yml").write_text(yaml.safe_dump(data))

    @functools.wraps(generate)  # whose module is in the key of what it makes
    def counted(*args, **more):
        made.generated += 1
        return generate(*args, **more)

    made = Run.__new__(Run)
    with project_root_at(root), pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "generate_texts", counted)
        made.__init__(root / "mine.yml")
        yield made


def naive(model, prompt, count, layer=None, edit=None):
    ids = torch.tensor([[0, *model.tokenizer(prompt, add_special_tokens=False)["input_ids"]]])
    start = ids.shape[1]
    for _ in range(count):
        ids = torch.cat([ids, model.logits(ids, layer=layer, edit=edit)[:, -1:].argmax(-1)], 1)
        if ids[0, -1] in model.stop_tokens:
            break
    return model.tokenizer.decode(ids[0, start:], skip_special_tokens=True).strip()


def test_every_condition_steers_as_its_name_says(run):
    """Against a naive loop of full passes with Eq. 9 written out, for every condition, side and language."""
    sweep, stitch = run.sweep, run.stitch
    prompts = sweep.prompts["evaluated"]
    assert len(prompts) == 3 and not set(prompts) & set(sweep.prompts["chosen"])
    raw = {}
    for side, model in run.models.items():
        for language in CONFIG.languages:
            vector = steering_vector(language_means(model, LAYERS[side], parallel_pairs(run.pair, language, 4)))
            raw[side, language] = vector, vector.direction * (vector.target - vector.source)
    different = 0
    for side, model in run.models.items():
        plain = [naive(model, prompt, 5) for prompt in prompts]
        assert [response.text for response in sweep.answers(side, "none", "fr").responses] == plain
        matrix, bias = (stitch.P_down, stitch.b_down) if side == "a" else (stitch.P_up, stitch.b_up)
        for language in CONFIG.languages:
            native, _ = raw[side, language]
            moved = raw["ba"["ab".index(side)], language][1] @ matrix
            directions = {"native": native.direction, "transferred": moved, "biased": moved + bias}
            pairs = parallel_pairs(run.pair, language, 4)
            nulls = [
                raw["ba"["ab".index(side)], language][1] @ (null.P_down if side == "a" else null.P_up)
                for null in component_stitches(run.moments)
            ]
            cosines = [(null @ native.direction / null.norm()).item() for null in nulls]
            directions["components"] = nulls[int(np.argmax(cosines))]
            for condition, direction in directions.items():
                v = direction / direction.norm()
                streams = [
                    torch.cat(
                        [
                            model.residuals(torch.tensor([[0, *ids]]), [LAYERS[side]])[LAYERS[side]][0, 1:]
                            for ids in model.tokenizer(list(texts), add_special_tokens=False)["input_ids"]
                        ]
                    )
                    for texts in zip(*pairs)
                ]
                english, other = ((stream @ v).mean() for stream in streams)
                z = english + sweep.chosen[side] * (other - english)
                said = [
                    naive(model, prompt, 5, LAYERS[side], lambda h, v=v, z=z: h + (z - h @ v)[..., None] * v)
                    for prompt in prompts
                ]
                assert [response.text for response in sweep.answers(side, condition, language).responses] == said
                different += said != plain
    assert different >= 6, "the test would say little if steering changed no text"


def test_a_random_direction_moves_tokens_as_far_as_the_native_one(run):
    means = {
        (side, "fr"): language_means(model, LAYERS[side], parallel_pairs(run.pair, "fr", 4))
        for side, model in run.models.items()
    }
    maps = {"transferred": (run.stitch, False), "biased": (run.stitch, True)}
    vectors = condition_vectors(means, maps, 0)
    for (side, language), found in vectors.items():
        drawn, native = found["random"], found["native"]
        assert drawn.target - drawn.source == pytest.approx(native.target - native.source, abs=1e-5)
        source = (means[side, language].source @ drawn.direction.double()).item()
        assert drawn.source == pytest.approx(source, abs=1e-6)
        assert abs((drawn.direction @ native.direction).item()) < 0.9
    other = condition_vectors(means, maps, 1)
    assert not torch.equal(other["a", "fr"]["random"].direction, vectors["a", "fr"]["random"].direction)


def test_which_cells_there_are(run):
    evaluated, doses = set(), set()
    for side in "ab":
        doses.add((side, "none", "de", 0.0))
        assert run.sweep.chosen[side] in CONFIG.strengths
        for language in CONFIG.languages:
            evaluated.add((side, "none", language, 0.0))
            for condition in ("native", "transferred", "biased", "components", "random"):
                evaluated.add((side, condition, language, run.sweep.chosen[side]))
            evaluated |= {(side, condition, language, 1.0) for condition in ("native", "transferred")}
        doses |= {(side, c, "de", s) for c in ("native", "transferred") for s in CONFIG.strengths}
    assert {key[1:5] for key in run.sweep.cells if key[0] == "evaluated"} == evaluated
    assert {key[1:5] for key in run.sweep.cells if key[0] == "chosen"} == doses
    assert all(
        len(found.responses) == len(found.judged) == (3 if cell.split == "evaluated" else 2)
        and found.done == tuple(language == cell.of for language in found.judged)
        for cell, found in run.sweep.cells.items()
    )


def test_responses_are_made_once(run):
    assert run.first == 2 * (2 + 2), "of each split the unsteered ones once a model, and all that are steered together"
    before = run.generated
    assert run.again() == run.sweep and run.generated == before
    run.again(strengths=(1.0, 3.0, 5.0))
    assert 2 <= run.generated - before <= 4, "one more strength, and perhaps another choice; nothing else"
    before = run.generated
    run.again(max_new_tokens=6, languages=("de",))
    assert run.generated - before == run.first


def test_a_strength_that_is_given_is_taken_and_all_prompts_are_evaluated(run):
    sweep = run.again(strength=3.0, languages=("de",))
    assert sweep.chosen == {"a": 3.0, "b": 3.0}
    tokenizer = run.models["a"].tokenizer
    assert sweep.prompts["evaluated"] == steering_prompts(run.pair, 3, tokenizer=tokenizer, split="all")
    assert run.sweep.prompts["evaluated"] == steering_prompts(run.pair, 3, tokenizer=tokenizer, split="evaluated")


def test_a_prompt_that_leaves_no_room_is_one_error(run):
    with pytest.raises(
        ValueError, match=r"pair 'mine' .*steering: a prompt of \d+ tokens .* and 99 new ones.* 48 at most"
    ):
        run.again(max_new_tokens=99)


def answers(judged, language, nll=1.0):
    responses = tuple(Response("", nll + index, 2 * nll, 3) for index, _ in enumerate(judged))
    return Answers(responses, tuple(judged), tuple(found == language for found in judged))


@pytest.fixture
def counted():
    """Four prompts and two languages, counted by hand: native 3 and 1 of 4, transferred 1 and 2 of 4."""
    cells = {Cell("evaluated", "a", "none", of): answers(["en", "en", "fr", "en"], of) for of in ("fr", "de")}
    for condition, french, german in (("native", 3, 1), ("transferred", 1, 2), ("random", 0, 0)):
        for language, count, nll in (("fr", french, 1.5), ("de", german, 2.5)):
            said = [language] * count + ["en"] * (4 - count)
            cells[Cell("evaluated", "a", condition, language, 2.0)] = answers(said, language, nll=nll)
    cells[Cell("evaluated", "a", "native", "fr", 1.0)] = answers(["unknown"] * 4, "fr")
    cells[Cell("evaluated", "a", "transferred", "fr", 1.0)] = answers(["fr"] + ["en"] * 3, "fr")
    config = LanguageConfig(languages=("fr", "de"), prompts=4, choosing_languages=("fr",), choosing_prompts=4)
    return LanguageSweep(config=config, chosen={"a": 2.0}, cells=cells)


def test_shares_have_clopper_and_pearsons_interval(counted):
    assert counted.share("a", "native", "fr") == clopper_pearson(3, 4)
    assert counted.share("a", "none", "fr") == clopper_pearson(1, 4)
    assert counted.share("a", "none", "de").value == 0
    assert counted.share("a", "native", "fr", 1.0).value == 0


def test_means_are_over_languages(counted):
    value, low, high = counted.mean_share("a", "native")
    assert value == 0.5 and 0 <= low < value < high <= 1
    assert counted.mean_share("a", "none").value == pytest.approx(0.125)
    assert counted.mean_share("a", "random") == (0, 0, 0)


def test_the_rise_is_over_the_unsteered_response_to_the_same_prompt(counted):
    assert counted.nll_rise("a", "native") == pytest.approx((1.0, 0.5, 1.5))  # 0.5 in French and 1.5 in German
    assert counted.nll_rise("a", "native", alone=True).value == pytest.approx(2.0)
    assert counted.nll_rise("a", "native", of=("de",)) == pytest.approx((1.5, 1.5, 1.5))
    assert counted.nll_rise("a", "none") == (0, 0, 0)


def test_gaps_are_equation_16(counted):
    assert counted.gaps("a") == pytest.approx({"fr": 1 / 3, "de": 1.0})
    counted.cells[Cell("evaluated", "a", "native", "de", 1.0)] = answers(["en"] * 4, "de")
    counted.cells[Cell("evaluated", "a", "transferred", "de", 1.0)] = answers(["en"] * 4, "de")
    assert dataclasses.replace(counted, chosen={"a": 1.0}).gaps("a") == {"fr": 1.0, "de": 0.0}, "x/0 and 0/0"


@pytest.mark.parametrize("scale", ["smoke", "default", "paper"])
def test_the_sizes_of_a_scale(scale):
    for name in ("tiny", "gemma"):
        config = language_config(load_pair(name), scale, strength=1.5, seed=3)
        assert (config.strength, config.seed) == (1.5, 3)
        if scale != "smoke":
            assert config.languages == languages(load_pair(name)) and config.prompts >= 60
        if scale == "default":
            assert config.choosing_languages == config.languages, "one strength is chosen for all of them"
            assert config.choosing_languages[0] == config.languages[0]
            assert config.choosing_languages[-1] == config.languages[-1]
    assert language_config(load_pair("tiny"), scale).strength == 0, "chosen"
    assert language_config(load_pair("gemma"), scale).strength == 1, "the paper's, where the paper's models are steered"
    with pytest.raises(ValueError, match="unknown scale 'huge'"):
        language_config(load_pair("tiny"), "huge")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompts": 0}, "prompts=0: a sweep needs at least one"),
        ({"languages": (), "choosing_languages": ()}, r"languages=\(\): a sweep needs at least one"),
        ({"strengths": ()}, "strengths must be positive"),
        ({"strengths": (1.0, -1.0)}, "strengths must be positive"),
        ({"strength": -1.0}, "strengths must be positive"),
    ],
)
def test_settings_that_make_no_sense(changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(CONFIG, **changes)


# ---- gaps, frequencies and their correlation -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("transferred", "native", "gap"),
    [
        (0.0, 0.0, 0),
        (0.3, 0.0, 1),
        (-0.3, 0.0, 0),
        (0.2, 0.8, 0.25),
        (0.8, 0.2, 1),
        (0.5, 0.5, 1),
        (0.0, 0.4, 0),
        (-0.1, 0.5, 0),
        (0.1, -0.5, 0),
        (-0.1, -0.2, 0.5),
    ],
)
def test_equation_16_with_its_edges(transferred, native, gap):
    assert clipped_gap(transferred, native) == pytest.approx(gap)


def test_languages_are_counted_by_the_sentence():
    documents = [
        "The baker opens the window because the kitchen is too warm. Where is the old captain's boat today?\n"
        "- Der Bäcker öffnet das Fenster, weil die Küche zu warm ist.",
        'He said: "The children are playing in the garden." Le boulanger ouvre la fenêtre parce qu\'il fait chaud !',
        "12 + 34 = 46.\n\n   \n",
    ]
    DetectorFactory.seed = 99  # the judge sets its own
    counts = language_frequencies(documents)
    assert counts == {"en": 3, "de": 1, "fr": 1}
    assert next(iter(counts)) == "en" and language_frequencies([]) == {}


def test_rank_correlations_are_spearmans_with_ties():
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 6, (3, 30)), rng.integers(0, 5, (3, 30))
    expected = [spearmanr(*both).statistic for both in zip(x, y + x)]
    assert rank_correlations(x, y + x) == pytest.approx(expected)
    assert rank_correlations(x[0], -x[0]) == pytest.approx(-1)
    assert np.isnan(rank_correlations(x[0], np.ones(30))), "values without an order"


PROMPTS = 40


def steered(shares, frequencies, seed=0):
    """A sweep of both models in which languages are reached by so many of `PROMPTS`: {language: {condition: count}}."""
    rng, cells = np.random.default_rng(seed), {}
    for side, (language, counts) in itertools.product("ab", shares.items()):
        for condition in ("none", "native", "transferred", "random"):
            said = np.array([language] * counts.get(condition, 0) + ["en"] * (PROMPTS - counts.get(condition, 0)))
            cell = Cell("evaluated", side, condition, language, 0.0 if condition == "none" else 2.0)
            cells[cell] = answers(rng.permutation(said).tolist(), language)
    config = LanguageConfig(languages=tuple(shares), prompts=PROMPTS, choosing_languages=("l0",), choosing_prompts=4)
    return LanguageSweep(config=config, chosen={"a": 2.0, "b": 2.0}, cells=cells, frequencies=frequencies)


def ladder(transferred, native=30):
    return {f"l{i}": {"native": native, "transferred": count} for i, count in enumerate(transferred)}


def test_gaps_follow_frequencies_beyond_the_error_of_prompts():
    counts = {f"l{i}": 10 * i + 1 for i in range(8)}
    languages = list(counts)
    clear = steered(ladder([2, 6, 10, 14, 18, 22, 26, 30]), counts).frequency_correlation(languages)
    assert clear.value == pytest.approx(1) and clear.low > 0.7
    near = steered(ladder([14, 15, 14, 16, 15, 16, 17, 16]), counts)
    value, low, high = near.frequency_correlation(languages)
    gaps = [np.mean([near.gaps(side)[language] for side in "ab"]) for language in languages]
    assert value == pytest.approx(spearmanr(list(counts.values()), gaps).statistic) and value > 0.7
    assert low < 0 < high, "a prompt more or less would turn the order"
    assert steered(ladder([9] * 8), counts).frequency_correlation(languages) == (0, -1, 1)
    few = near.frequency_correlation(languages[:4])
    assert few[1:] == (-1, 1) and few.value != 0, "four are too few to resample"
    assert near.frequency_correlation([]) == (0, -1, 1)


def test_native_steering_works_where_it_does_so_beyond_doubt_in_both_models():
    shares = {"l0": {"native": 30}, "l1": {"native": 6}, "l2": {"native": 30, "none": 28}, "l3": {"native": 0}}
    sweep = steered(shares, {})
    assert sweep.able() == ["l0"], "6 of 40 are beyond doubt alone, and not as one of eight tests"
    sweep.cells[Cell("evaluated", "b", "native", "l0", 2.0)] = answers(["en"] * PROMPTS, "l0")
    assert sweep.able() == []


def test_responses_in_any_of_the_languages_are_away_from_english():
    sweep = steered({"l0": {"none": 0, "random": 4}, "l1": {"none": 0, "random": 2}}, {})
    for side, condition, said in (("a", "none", ["l1"] * 2 + ["xx"] * 38), ("a", "random", ["l1"] * 6 + ["en"] * 34)):
        for language in ("l0", "l1") if condition == "none" else ("l0",):
            cell = Cell("evaluated", side, condition, language, 0.0 if condition == "none" else 2.0)
            sweep.cells[cell] = answers(said, language)
    assert sweep.away("a", "none") == clopper_pearson(2, PROMPTS), "every language has the same responses"
    assert sweep.away("b", "none") == clopper_pearson(0, PROMPTS)
    assert sweep.away("a", "random").value == pytest.approx((6 + 2) / 80), "whichever language the cell is of"


def test_what_conditions_share_is_drawn_anew_for_all_of_them_together():
    """Transferred steering reaches all that native steering reaches, but for one prompt in ten."""
    sweep = steered({"l0": {"native": 20, "transferred": 0}}, {})
    native = sweep.cells[Cell("evaluated", "a", "native", "l0", 2.0)].judged
    reached = [i for i, said in enumerate(native) if said == "l0"]
    said = ["en" if i in reached[:4] else one for i, one in enumerate(native)]
    sweep.cells[Cell("evaluated", "a", "transferred", "l0", 2.0)] = answers(said, "l0")
    found = sweep.paired_numbers("a", "x", ["random"])
    assert found["x.native_lead"] == pytest.approx(0.1) and found["x.native_lead.low"] > 0
    assert sweep.mean_share("a", "native").low < sweep.mean_share("a", "transferred").high, "not told apart alone"
    assert found["x.native_gain"] == 0.5 and found["x.gain"] == found["x.over_random"] == 0.4
    assert found["x.beyond_half"] == pytest.approx(0.4 - 0.25)
    done = [np.array([one == "l0" for one in row], dtype=float) for row in (said, native)]
    half = crossed_mean((done[0] - done[1] / 2)[None], 0)
    assert [found[f"x.beyond_half{end}"] for end in ("", ".low", ".high")] == pytest.approx(list(half))
