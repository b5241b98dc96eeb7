"""The book's `published.yml`: what was transcribed agrees with itself, and its claims can hold and can fail."""

import math
import re
import shutil
import statistics
from pathlib import Path

import jupytext
import numpy as np
import pytest
from docutils import nodes
from docutils.core import publish_doctree
from myst_parser.docutils_ import Parser
from scipy import stats

from stitch_utils.book.chapters import for_pair
from stitch_utils.book.claims import published, verdicts
from stitch_utils.book.results import read_results, write_results
from stitch_utils.features.study import FeatureStudyConfig

REPOSITORY = Path(__file__).resolve().parent.parent
CHAPTERS = (
    "pairs",
    "stitching",
    "sae_transfer",
    "sae_training",
    "probing",
    "steering",
    "instruction_following",
    "feature_transfer",
    "functional_features",
    "lrt_maps",
    "lrt",
    "maps",
    "carry",
)


PAPERS_STEPS = 36_000
# Unexplained variance from which on it is in doubt whether a run passed the first threshold, one half explained.
UNREACHED = 0.45
EMBEDDED_PAIR_ONLY = ("classes-find-content-words", "models-write-their-languages")  # on no other pair's page


@pytest.fixture
def papers(project):
    """The book's numbers and claims, in a project without results."""
    shutil.copy(REPOSITORY / "book" / "published.yml", project / "book" / "published.yml")
    return published()


def _verdict(papers, pair, id):
    return next(verdict for verdict in verdicts(pair, book=papers) if verdict.id == id)


def test_published_increases_follow_from_the_published_losses(papers):
    checked = 0
    for pair in ("pythia", "gpt2", "gemma"):
        for way in ("a_to_b", "b_to_a", "a_to_b_to_a", "b_to_a_to_b"):
            own = papers.numbers[f"table1.{pair}.{way[-1]}"]
            increase = papers.numbers[f"table1.{pair}.{way}"] / own - 1
            assert papers.numbers[f"table1.{pair}.{way}.increase"] == pytest.approx(increase, abs=0.006)
            checked += 1
            if way in ("a_to_b", "b_to_a"):
                first = way[0]
                over = papers.numbers[f"table1.{pair}.{way}"] / papers.numbers[f"table1.{pair}.{first}"] - 1
                assert papers.numbers[f"table1.{pair}.{way}.over_{first}.increase"] == pytest.approx(over, abs=5e-5)
        down, up = (
            papers.numbers[f"table1.{pair}.{way}"] / papers.numbers[f"table1.{pair}.{way[-1]}"]
            for way in ("b_to_a_to_b", "a_to_b_to_a")
        )
        assert papers.numbers[f"table1.{pair}.inversion_gap.increase"] == pytest.approx(down - up, abs=5e-5)
        for metric in ("fuv", "delta_loss"):
            original, transferred = (
                papers.numbers[f"table2.{pair}.{metric}.{of}"] for of in ("original", "transferred")
            )
            less = papers.numbers[f"table2.{pair}.{metric}.original.less_transferred"]
            assert less == pytest.approx(original - transferred, abs=1e-9)
    assert checked == 12


@pytest.mark.parametrize("table", ["table5", "table6"])
def test_published_steering_intervals_are_clopper_pearson_of_163_prompts(papers, table):
    ids = [id for id in papers.numbers if id.startswith(f"{table}.gemma.") and not id.endswith((".low", ".high"))]
    assert len(ids) == 20 * 3
    k = np.arange(164)
    low = np.nan_to_num(stats.beta.ppf(0.025, k, 164 - k))
    high = np.nan_to_num(stats.beta.ppf(0.975, k + 1, 163 - k), nan=1.0)
    possible = np.stack([k / 163, low, high], axis=1)
    for id in ids:
        triple = [papers.numbers[id + suffix] for suffix in ("", ".low", ".high")]
        assert np.abs(possible - triple).max(axis=1).min() <= 0.0051, id


def test_derived_steering_numbers_follow_from_the_tables(papers):
    gaps, natives = [], []
    for model, table in (("a", "table5"), ("b", "table6")):
        languages = {id.split(".")[2] for id in papers.numbers if id.startswith(f"{table}.gemma.")}
        for kind in ("none", "native", "transferred"):
            mean = statistics.mean(papers.numbers[f"{table}.gemma.{language}.{kind}"] for language in languages)
            assert papers.numbers[f"figure3b.gemma.{model}.{kind}"] == pytest.approx(mean, abs=5e-5)
        none, native, transferred = (
            papers.numbers[f"figure3b.gemma.{model}.{kind}"] for kind in ("none", "native", "transferred")
        )
        gains = {"native_gain": native - none, "gain": transferred - none, "native_lead": native - transferred}
        gains["beyond_half"] = gains["gain"] - gains["native_gain"] / 2
        assert {name: papers.numbers[f"steering.gemma.{model}.{name}"] for name in gains} == pytest.approx(gains)
        for language in languages:
            transferred, native = (papers.numbers[f"{table}.gemma.{language}.{k}"] for k in ("transferred", "native"))
            natives.append(native)
            gaps.append(min(1.0, transferred / native) if native else float(transferred > 0))
    assert papers.numbers["figure3c.gemma.near_zero"] == statistics.mean(gap <= 0.25 for gap in gaps)
    assert papers.numbers["figure3c.gemma.near_one"] == statistics.mean(gap >= 0.75 for gap in gaps)
    assert papers.numbers["figure3c.gemma.high"] == sum(gap >= 0.75 for gap in gaps)
    fails = [gap for gap, native in zip(gaps, natives) if native < 0.1]
    assert papers.numbers["figure3c.gemma.high_where_native_fails"] == sum(gap >= 0.75 for gap in fails) == 6


def test_derived_lrt_numbers_follow_from_the_paper(papers):
    tasks = [value for id, value in papers.numbers.items() if id.startswith("lrt.gemma.correlation.")]
    assert len(tasks) == 13
    assert papers.numbers["lrt.gemma.correlation_summary.mean"] == pytest.approx(statistics.mean(tasks), abs=5e-4)
    assert papers.numbers["lrt.gemma.correlation_summary.lowest"] == min(tasks)
    chance = math.sqrt(16384 * (1 - 3584 / 16384))
    assert papers.numbers["lrt.gemma.decoder_residual.chance"] == pytest.approx(chance, abs=0.05)


@pytest.mark.parametrize(("key", "width"), [("before", 768), ("after", 1024)])
def test_derived_chance_of_a_null_space_follows_from_the_widths(papers, key, width):
    """GPT-2's LayerNorm leaves one dimension less; 2% of the rest, rounded up, are the null space."""
    inside = math.ceil(0.02 * (width - 1))
    expected = inside / (width - 1), *stats.beta.ppf((0.025, 0.975), inside / 2, (width - 1 - inside) / 2)
    for end, share in zip(("", ".low", ".high"), expected):
        assert papers.numbers[f"figure5b.gpt2.{key}.chance{end}"] == pytest.approx(share**0.5, abs=6e-5)


def test_every_table_and_figure_of_the_main_paper_is_listed(papers):
    ids = {figure.id for figure in papers.figures}
    wanted = {f"table{i}" for i in range(1, 9)} | {f"figure{i}" for i in range(1, 17)}
    assert {id for id in wanted if not any(known.rstrip("abcd") == id for known in ids)} == set()
    assert {figure.chapter for figure in papers.figures} | {claim.chapter for claim in papers.claims} == set(CHAPTERS)


def _sections(chapter, pair):
    """{title: ids} of the sections that docutils finds in a page, the title of the page first."""
    notebook = jupytext.read(REPOSITORY / "book" / f"{chapter}.md")
    notebook = notebook if pair == "tiny" else for_pair(notebook, pair)
    text = "\n\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    text = re.sub(r"\{cite\}`[^`]*`", "", text)  # a role of Sphinx
    settings = {"report_level": 5, "doctitle_xform": False, "myst_enable_extensions": ["amsmath", "dollarmath"]}
    tree = publish_doctree(text, parser=Parser(), settings_overrides=settings)
    return {section[0].astext(): section["ids"] for section in tree.findall(nodes.section)}


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_every_claim_and_figure_leads_to_a_section_of_its_chapter(papers, chapter):
    for pair in ("tiny", "other"):
        sections = _sections(chapter, pair)
        assert len({id for ids in sections.values() for id in ids}) >= len(sections) > 1
        for entry in (*papers.claims, *papers.figures):
            elsewhere = pair != "tiny" and entry.id in EMBEDDED_PAIR_ONLY
            if entry.chapter == chapter and getattr(entry, "prefix", "of a claim") and not elsewhere:
                assert entry.heading in list(sections)[1:], f"{entry.id}: no section {entry.heading!r} in {chapter}"
                assert nodes.make_id(entry.heading) in sections[entry.heading], entry.id


# Decimals and percentages that prose may hold: settings, and what the papers say. What is measured belongs in cells.
SETTINGS = {
    "pairs": {"0.5", "4%", "90%"},
    "stitching": {"0.0001"},
    "sae_training": {"50%"},
    "functional_features": {"2%"},
}
REFERENCES = r"(App\.|Appendi(x|ces)|[Ss]ections?|Figs?\.|Eqs?\.|arXiv) [A-Z]?[\d.]+((, | and | to )[A-Z]?[\d.]+)*"
FINDINGS = r"we (find|found|saw|observed?)|as expected|turns? out|confirm(s|ed)?|reproduces?|far (better|worse)"


@pytest.mark.parametrize("chapter", [*CHAPTERS, "claims", "index"])
def test_prose_states_no_result_that_a_cell_did_not_compute(chapter):
    for cell in jupytext.read(REPOSITORY / "book" / f"{chapter}.md").cells:
        caption = cell.metadata.get("mystnb", {}).get("figure", {}).get("caption", "")
        prose = cell.source if cell.cell_type == "markdown" else caption
        prose = re.sub(r"```.*?```|\$\$.*?\$\$|\$[^$]*\$|`[^`]*`", "", prose, flags=re.S)
        numbers = set(re.findall(r"\d+\.\d+%?|\d+%", re.sub(REFERENCES, "", prose)))
        assert numbers <= {"95%"} | SETTINGS.get(chapter, set()), prose
        assert not (found := re.search(FINDINGS, prose)), f"{found[0]!r} in {prose}"


def left_out(numbers, parameters):
    """How the ids begin that a run was too small to measure, or had nothing to measure of, by what it wrote instead."""
    found = ["table8.tiny.agree"]  # of the SAE of another pair
    if parameters["stitching"]["adam_steps"] < PAPERS_STEPS:
        found.append("stitch.tiny.adam.full_loss")
    versions = numbers["table7.tiny.versions"] // numbers["recovery.tiny.groups"]
    found += [f"recovery.tiny.up.k_{k}." for k in range(versions + 1, FeatureStudyConfig.versions + 1)]
    ends = r"figure1c\.tiny\.(largest|width_\d+)\.(scratch|stitch)\.fuv"
    unexplained = {id: value for id, value in numbers.items() if re.fullmatch(ends, id)}
    if max(value for id, value in unexplained.items() if ".largest." in id) > UNREACHED:
        found += ["figure2a.tiny.highest.", "counted.tiny."]
    if max(unexplained.values()) > UNREACHED:
        of_widths = ("smallest.saved", "largest.saved", "larger_saves_more", "widths_that_save")
        found += [f"figure1c.tiny.{ending}" for ending in of_widths]
    return tuple(found)


def test_every_claim_needs_numbers_that_a_chapter_writes(papers, project):
    shutil.copytree(REPOSITORY / "tests" / "reference" / "results", project / "results")
    ours, parameters = read_results("tiny")
    absent = left_out(ours, parameters)
    needed = {id.replace("{pair}", "tiny"): claim.id for claim in papers.claims for id in claim.needs.values()}
    assert {id: claim for id, claim in needed.items() if id not in ours and not id.startswith(absent)} == {}
    prefixes = {figure.prefix.replace("{pair}", "tiny") for figure in papers.figures if figure.prefix}
    assert {prefix for prefix in prefixes if not any(id.startswith(prefix) for id in (*ours, *absent))} == set()


def test_what_the_papers_say_of_their_own_numbers_holds_for_them(papers):
    """But for the residual norm of the sister paper's Fig. 2, which is at the level of chance."""
    found = {(v.id, pair): v.published_verdict for pair in papers.pairs for v in verdicts(pair, book=papers)}
    exceptions = {claim: verdict for (claim, _), verdict in found.items() if verdict not in ("", "holds")}
    assert exceptions == {"lrt-decoders-share-basis": "does not hold"}
    decided = {claim for (claim, _), verdict in found.items() if verdict}
    assert {"stitch-inverts", "steering-recovers-native", "scaling-law-shifts", "sae-transfer-explains"} < decided


def test_claims_stay_in_the_order_of_the_chapters(papers):
    order = [CHAPTERS.index(claim.chapter) for claim in papers.claims]
    assert order == sorted(order)


def test_no_two_published_ids_differ_only_by_a_typing_error(papers):
    """What is published for one pair is either published for another or belongs to a table that has one pair only."""
    several = [id for id in papers.numbers if id.split(".")[0] in ("table1", "table2", "table4")]
    quantities = [".".join([part for i, part in enumerate(id.split(".")) if i != 1]) for id in several]
    assert [q for q in set(quantities) if quantities.count(q) == 1] == []


def test_section_2_claims_hold_for_the_papers_own_pairs(papers):
    on_losses = (
        "stitch-near-ground-truth",
        "stitch-bottlenecked",
        "stitch-inverts",
        "stitch-inverts-from-above",
        "inversion-is-asymmetric",
    )
    for pair in ("pythia", "gpt2", "gemma"):
        for id in on_losses:
            verdict = _verdict(papers, pair, id)
            assert (verdict.verdict, verdict.published_verdict) == ("not run", "holds"), (pair, id)
    assert _verdict(papers, "tiny", "stitch-inverts").published_verdict == ""
    assert _verdict(papers, "gemma", "lrt-decoders-share-basis").published_verdict == "does not hold"


def _section_2_numbers(pair):
    """Every id of the claims of the chapters pairs and stitching, with values that meet each of them."""
    rises = {"a_to_b": 0.2, "b_to_a": 0.1, "a_to_b_to_a": 0.002, "b_to_a_to_b": 0.05, "inversion_gap": 0.048}
    rises |= {"a_to_b.over_a": 0.08, "b_to_a.over_b": 0.22}
    rises |= {f"{way}.over_{other}": -0.4 for way in ("a_to_b", "b_to_a") for other in ("bigram", "mean", "components")}
    stitching = {f"table1.{pair}.{rise}.increase": value for rise, value in rises.items()}
    stitching |= {f"figure6.{pair}.excess": -0.01, f"figure6.{pair}.over_mean": -0.2}
    stitching |= {f"figure6.{pair}.cka": 0.6, f"figure6.{pair}.cka.permuted": 0.01}
    for alpha in ("0", "0.1", "10"):
        stitching[f"figure7.{pair}.alpha_{alpha}.over_alpha_1.increase"] = 0.1
        stitching[f"figure7.{pair}.alpha_{alpha}.sae_delta_loss.over_alpha_1"] = 0.1
    stitching |= {
        f"{id}{end}": value + way * 0.0001
        for id, value in list(stitching.items())
        if id.startswith(("table1.", "figure7.")) or id.endswith((".excess", ".over_mean"))
        for end, way in ((".low", -1), (".high", 1))
    }
    stitching |= {f"stitch.{pair}.exact.loss": 0.6, f"stitch.{pair}.adam.loss": 0.605, f"stitch.{pair}.speedup": 20.0}
    stitching |= {f"stitch.{pair}.exact.seconds": 1.0, f"stitch.{pair}.adam.seconds": 20.0, f"stitch.{pair}.alpha": 1.0}
    stitching[f"stitch.{pair}.adam.full_loss"] = 0.605
    stitching |= {f"stitch.{pair}.full_adam.times": 2000.0, f"stitch.{pair}.full_adam.loss_ratio": 1.01}
    pairs = {f"pairs.{pair}.gap": 0.2, f"pairs.{pair}.recognised_lowest.temperature_0.5": 0.95}
    pairs |= {f"costs.{pair}.{of}.measured_over_formula": 1.01 for of in ("flops", "bytes")}
    return pairs, stitching


def test_section_2_is_decided_by_what_its_chapters_write(papers):
    pairs, stitching = _section_2_numbers("tiny")
    write_results("tiny", "pairs", pairs)
    write_results("tiny", "stitching", stitching)
    said = {v.id: v.verdict for v in verdicts("tiny", book=papers) if v.chapter in ("pairs", "stitching")}
    assert len(said) == 18 and set(said.values()) == {"holds"}


FEATURES = {
    "figure14.tiny.up.better_than.both": (0.8, 0.7, 0.9),
    "figure14.tiny.up.lost": (0.1, 0.07, 0.14),
    "figure14.tiny.up.flipped_of_left.more": (0.1, 0.05, 0.2),
    "figure4b.tiny.up.all.mean.more": (0.1, 0.05, 0.2),
    "figure4b.tiny.up.all.spread.less": (-0.1, -0.2, -0.05),
    "figure4b.tiny.up.matched.mean.more": (0.1, 0.05, 0.2),
    "figure4b.tiny.up.matched.spread.less": (-0.1, -0.2, -0.05),
    "figure4b.tiny.up.lowest_tenth.more": (1.0, 0.5, 2.0),
    "figure4b.tiny.up.highest_tenth.more": (1.0, 0.5, 2.0),
    "figure4b.tiny.up.rate_ratio.more": (1.0, 0.5, 2.0),
    "table7.tiny.whole": (0.7, 0.6, 0.8),
    "table8.tiny.agree": (4, 4, 4),
    "recovery.tiny.up.k_5.auc": (0.8, 0.75, 0.85),
    "recovery.tiny.up.k_5.gain.more": (0.1, 0.05, 0.15),
}


@pytest.mark.parametrize(
    ("changed", "by", "id", "verdict"),
    [
        ("", (), "attribution-beats-random-stitch", "holds"),
        ("figure14.tiny.up.better_than.both", (0.55, 0.45, 0.65), "attribution-beats-random-stitch", "inconclusive"),
        ("figure14.tiny.up.lost", (0.03, 0.02, 0.045), "some-features-do-not-transfer", "does not hold"),
        ("figure14.tiny.up.flipped_of_left.more", (-0.1, -0.2, -0.05), "some-features-flip", "does not hold"),
        ("figure4b.tiny.up.all.spread.less", (0.1, 0.05, 0.2), "structural-features-transfer-better", "partly"),
        ("figure4b.tiny.up.all.mean.more", (-0.1, -0.2, -0.05), "structural-features-transfer-better", "does not hold"),
        ("figure4b.tiny.up.matched.mean.more", (0.1, -0.1, 0.2), "structure-matters-beyond-density", "inconclusive"),
        ("figure4b.tiny.up.highest_tenth.more", (-1, -2, -0.5), "semantic-features-are-polarized", "does not hold"),
        ("figure4b.tiny.up.rate_ratio.more", (-1, -2, -0.5), "structural-features-are-dense", "does not hold"),
        ("table7.tiny.whole", (0.97, 0.96, 0.98), "augmentations-are-noisy", "does not hold"),
        ("table8.tiny.agree", (3, 3, 3), "named-features-have-their-classes", "does not hold"),
        ("recovery.tiny.up.k_5.gain.more", (0.1, -0.1, 0.2), "classes-find-content-words", "inconclusive"),
    ],
)
def test_claims_on_features_are_decided_beside_their_nulls(papers, changed, by, id, verdict):
    numbers = FEATURES | ({changed: by} if changed else {})
    ends = ("", ".low", ".high")
    written = {name + end: at for name, triple in numbers.items() for end, at in zip(ends, triple)}
    write_results("tiny", "feature_transfer", written)
    said = {v.id: v.verdict for v in verdicts("tiny", book=papers) if v.chapter == "feature_transfer"}
    assert said.pop(id) == verdict
    assert len(said) == 9 and set(said.values()) == {"holds"}


def _moved(quantity, value, other_end=None, *, figure="table1"):
    """A number moved to `value`, with an interval that leads to `other_end` if that is given, and else with none."""
    ends = sorted((value, value if other_end is None else other_end))
    return {f"{figure}.tiny.{quantity}{end}": at for end, at in zip(("", ".low", ".high"), (value, *ends))}


@pytest.mark.parametrize(
    ("id", "change", "verdict"),
    [
        ("stitch-near-ground-truth", _moved("a_to_b.increase", 0.41), "does not hold"),
        ("stitch-near-ground-truth", _moved("a_to_b.increase", 0.41, 0.39), "inconclusive"),
        ("stitch-needs-the-pairing", _moved("b_to_a.over_components.increase", 0.1), "does not hold"),
        ("stitch-needs-the-pairing", _moved("a_to_b.over_mean.increase", -0.1, 0.1), "inconclusive"),
        ("stitch-beats-bigrams", _moved("b_to_a.over_bigram.increase", 0.1), "does not hold"),
        ("stitch-bottlenecked", _moved("b_to_a.increase", -0.01), "does not hold"),
        ("stitch-bottlenecked", _moved("a_to_b.over_a.increase", -0.01, 0.01), "inconclusive"),
        ("stitch-bottlenecked", _moved("b_to_a.increase", 0.5), "holds"),  # since A may be the better model
        (
            "stitch-bottlenecked",
            _moved("b_to_a.increase", 0.5) | _moved("b_to_a.over_b.increase", 0.5),
            "does not hold",
        ),
        ("stitch-inverts", _moved("a_to_b_to_a.increase", 0.011), "partly"),
        ("stitch-inverts", _moved("a_to_b_to_a.increase", 0.009, 0.011), "partly"),
        ("stitch-inverts", _moved("a_to_b_to_a.increase", 0.049, 0.051), "inconclusive"),
        ("stitch-inverts", _moved("a_to_b_to_a.increase", 0.06), "does not hold"),
        ("stitch-inverts-from-above", _moved("b_to_a_to_b.increase", 0.2), "partly"),
        ("inversion-is-asymmetric", _moved("inversion_gap.increase", -0.01), "does not hold"),
        ("inversion-is-asymmetric", _moved("inversion_gap.increase", -0.01, 0.01), "inconclusive"),
        ("streams-are-alike", {"figure6.tiny.cka": 0.005}, "does not hold"),
        ("layer-by-svcca", _moved("excess", 0.01, -0.01, figure="figure6"), "partly"),
        ("layer-by-svcca", _moved("excess", 0.01, 0.03, figure="figure6"), "inconclusive"),
        ("layer-by-svcca", _moved("excess", 0.05, figure="figure6"), "does not hold"),
        ("layer-by-svcca", _moved("over_mean", 0.01, -0.01, figure="figure6"), "inconclusive"),
        ("inversion-penalty-balances", _moved("alpha_10.over_alpha_1.increase", -0.1, figure="figure7"), "partly"),
        (
            "inversion-penalty-balances",
            _moved("alpha_0.over_alpha_1.increase", -0.1, figure="figure7"),
            "does not hold",
        ),
        (
            "inversion-penalty-helps-saes",
            _moved("alpha_0.sae_delta_loss.over_alpha_1", -0.1, figure="figure7"),
            "does not hold",
        ),
        ("exact-fit-no-worse", {"stitch.tiny.exact.loss": 0.61}, "partly"),
        ("adam-converges", {"stitch.tiny.adam.full_loss": 0.65}, "partly"),
        ("adam-converges", {"stitch.tiny.adam.full_loss": 0.67}, "does not hold"),
        ("exact-fit-faster", {"stitch.tiny.speedup": 9.9}, "partly"),
        ("full-adam-is-slower", {"stitch.tiny.full_adam.loss_ratio": 0.99}, "does not hold"),
        ("b-is-better", {"pairs.tiny.gap": 0.09}, "partly"),
        ("cost-formula-holds", {"costs.tiny.flops.measured_over_formula": 0.9}, "does not hold"),
        ("models-write-their-languages", {"pairs.tiny.recognised_lowest.temperature_0.5": 0.8}, "does not hold"),
    ],
)
def test_section_2_claims_can_fail(papers, id, change, verdict):
    pairs, stitching = _section_2_numbers("tiny")
    for part in (pairs, stitching):
        part |= {key: value for key, value in change.items() if key in part}
    assert set(change) <= set(pairs) | set(stitching)
    write_results("tiny", "pairs", pairs)
    write_results("tiny", "stitching", stitching)
    assert _verdict(papers, "tiny", id).verdict == verdict
