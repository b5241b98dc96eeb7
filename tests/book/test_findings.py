"""The findings that pages open with: their data file, their sentences, and a page with them at its top."""

import re
import shutil
from pathlib import Path

import jupytext
import pytest
import yaml
from toy_book import call, call_here

from stitch_utils.book import recorded
from stitch_utils.book.chapters import SUMMARIES, chapter_names
from stitch_utils.book.findings import Finding, chapter_findings, front_findings, listed
from stitch_utils.book.results import read_results, write_results

ROOT = Path(__file__).resolve().parents[2]
CHAPTERS = [name for name in chapter_names(ROOT) if name not in SUMMARIES]
OPENING = """

````{admonition} What we found
:class: tip what-we-found
```{glue} findings
```
````

"""


@pytest.fixture
def papers(project):
    """A project with the papers' numbers, the claims and the findings, and no results."""
    for name in ("published.yml", "findings.yml"):
        shutil.copy(ROOT / "book" / name, project / "book" / name)
    return project


def plain(html):
    return re.sub(r"<[^>]*>", "", html)


def items(shown):
    return re.findall("<li>(.*?)</li>", shown.data)


def record(project, pair, chapter, heading=""):
    """Make what was written of the pair the record of a run of this chapter."""
    folder = project / "book" / "recorded" / pair
    folder.mkdir(parents=True)
    (project / "results" / pair).rename(folder / "results")
    (folder / f"{chapter}.ipynb").write_text(f'"## {heading}"')


# The data file


def test_every_chapter_has_three_to_five_findings_and_the_front_page_five(papers):
    found = listed()
    assert list(found.chapters) == CHAPTERS and len(found.front) == 5
    assert {len(of) for of in found.chapters.values()} <= {3, 4, 5}


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_a_finding_is_a_short_sentence_with_numbers(chapter):
    text = (ROOT / "book" / "findings.yml").read_text(encoding="utf-8")
    for one in yaml.safe_load(text)["chapters"][chapter]:
        assert len(one["says"].split()) <= 30, one["says"]
        assert one["numbers"] and one["says"][0].isupper() and not one["says"].endswith("."), one["says"]


def test_chapters_write_the_numbers_of_their_findings(papers):
    """But for those that a run at scale smoke is too small for."""
    shutil.copytree(ROOT / "tests" / "reference" / "results", papers / "results")
    numbers = read_results("tiny").numbers
    needed = {id.replace("{pair}", "tiny") for of in listed().chapters.values() for one in of for id in one.numbers}
    assert {
        id for id in needed - set(numbers) if not id.startswith(("figure2a.tiny.highest.", "counted.tiny."))
    } == set()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"claim": "ordr"}, r"first\.0: there is no claim 'ordr'"),
        (
            {"says": "It is {} and {}"},
            r"first\.0: says 'It is {} and {}': expected one {} or {%} for each of 1 numbers",
        ),
        ({"says": "It is {a}"}, r"first\.0: says 'It is {a}': expected one"),
        ({"says": "It is {} {"}, r"first\.0: says 'It is {} {': .* no other brace"),
        ({"numbers": ["table1.tiny.a"]}, r"first\.0: numbers: 'table1.tiny.a': expected an id that contains {pair}"),
        ({"numbers": []}, "for each of 0 numbers"),
        ({"numbers": "table1.{pair}.a"}, r"first\.0\.numbers: expected a list"),
        ({"verdict": "holds"}, r"unknown first\.0\.verdict"),
    ],
)
def test_a_wrong_finding_is_refused_in_one_line(project, change, message):
    with pytest.raises(ValueError, match=r"findings\.yml: .*" + message.replace("{", r"\{")) as error:
        written(project, first=[FIRST | change])
    assert "\n" not in str(error.value)


FIRST = {"claim": "order", "says": "A is at {}", "numbers": ["table1.{pair}.a"]}


def written(project, front=("order",), **chapters):
    """Write the data file and read it."""
    text = yaml.safe_dump({"front": list(front), "chapters": chapters})
    (project / "book" / "findings.yml").write_text(text, encoding="utf-8")
    return listed()


def test_unknown_chapters_claims_of_others_and_unknown_findings_are_refused(project):
    assert written(project, first=[FIRST]).front == (Finding("order", "A is at {}", ("table1.{pair}.a",)),)
    with pytest.raises(ValueError, match=r"findings\.yml: frist: expected one of first$"):
        written(project, frist=[FIRST])
    with pytest.raises(ValueError, match=r"first\.1: the claim 'order' has a finding already"):
        written(project, first=[FIRST, FIRST])
    with pytest.raises(ValueError, match="front: no finding of a chapter has the claim 'ratio'"):
        written(project, front=["ratio"], first=[FIRST])
    with pytest.raises(ValueError, match="first: expected a list, got None"):
        written(project, first=None)
    with (project / "book" / "published.yml").open("a") as file:
        file.write("  - {id: other, text: It, source: S, chapter: second, needs: {a: 'x.{pair}.a'}, holds: a > 0}\n")
    with pytest.raises(ValueError, match=r"second\.0: the claim 'order' is of the chapter first"):
        written(project, second=[FIRST])
    (project / "book" / "findings.yml").write_text("front: [")
    with pytest.raises(ValueError, match=r"findings\.yml: .*expected") as error:
        listed()
    assert "\n" not in str(error.value)


# The sentences


def test_a_recorded_pair_leads_then_the_pair_of_the_page_then_the_papers(papers):
    rises = {"a_to_b.increase": 0.5, "b_to_a.increase": 0.1}
    write_results("mine", "stitching", {f"table1.mine.{id}": value for id, value in rises.items()})
    record(papers, "mine", "stitching", "What it does to prediction")
    ends = {f"table1.tiny.a_to_b.increase.{end}": at for end, at in (("low", 0.3), ("high", 0.41))}
    rises = {"a_to_b.increase": 0.35, "b_to_a.increase": 0.2}
    write_results("tiny", "stitching", ends | {f"table1.tiny.{id}": value for id, value in rises.items()})
    for shown, link in (
        (chapter_findings("stitching", "tiny"), "#what-it-does-to-prediction"),
        (front_findings("tiny"), ""),
    ):
        first = items(shown)[0]
        assert first.startswith("Going on from") and "<b>+50.0%</b> in A → B and by <b>+10.0%</b> in B → A (<a" in first
        sentence, beside, claim = first.removesuffix("</small>").replace("</small>", "").split("<small>")
        assert sentence.endswith('<a href="../../recorded/mine/stitching.html#what-it-does-to-prediction">mine</a>).')
        assert plain(beside).startswith("Embedded pair: +35% [+30%, +41%] and +20.0%. Published: pythia +27.0% and")
        assert (f'<a href="{link}">Embedded pair</a>' in beside) == bool(link)
        assert "mine ✗ does not hold tiny ? inconclusive pythia ✓ holds gpt2 ✓ holds gemma ✓ holds" in plain(claim)
    ours = items(chapter_findings("stitching", "mine"))[0]
    assert "<b>+50.0%</b>" in ours and "Embedded pair" not in ours, "the page of another pair has its own alone"


def test_shares_are_in_percent_with_their_intervals(papers):
    ends = {"": 0.3123, ".low": 0.3001, ".high": 0.3207}
    fuv = {f"table2.tiny.fuv.transferred{end}": value for end, value in ends.items()}
    write_results("tiny", "sae_transfer", fuv | {"table2.tiny.fuv.original": 0.04})
    assert (
        "leaves <b>31.2% [30.0%, 32.1%]</b> of B&#x27;s variance unexplained; of A&#x27;s it leaves <b>4%</b> ("
        in (items(chapter_findings("sae_transfer", "tiny"))[0])
    )


def test_what_was_not_run_says_so_in_one_line(papers):
    write_results("tiny", "sae_transfer", {"table2.tiny.fuv.transferred": 0.3})
    one, *_, last = items(chapter_findings("sae_transfer", "tiny"))
    assert "(gpt2, published)" not in one and "(pythia, published)" in one and "0.3" not in one and "30%" not in one
    assert "gpt2 39% and 11%" in one and "○ not run .venv/bin/stitch-book run --pair tiny" in plain(one)
    command = ".venv/bin/stitch-book run --pair tiny --chapter sae_transfer"
    assert "<small>" not in last and plain(last).endswith(f"residual stream. ○ not run {command}")


def test_buried_findings_stand_at_the_top(papers):
    """The sister paper's 114 is chance; six of Gemma's gaps near one are failures of native steering."""
    (decoders,) = (one for one in items(front_findings("tiny")) if "decoder" in one)
    assert "leaves a norm of <b>114</b>, and unrelated decoders would leave <b>113.1</b>" in decoders
    (gaps,) = (one for one in items(chapter_findings("steering", "tiny")) if "gap" in one)
    assert "or more in <b>14</b> cases, and in <b>6</b> of these the model" in gaps
    claims = {one.claim for of in listed().chapters.values() for one in of}
    assert claims >= {"lrt-correlation-needs-a-control", "full-adam-is-slower", "sae-training-saves-in-full"}


def test_sentences_are_whole_on_the_reference_results(papers):
    shutil.copytree(ROOT / "tests" / "reference" / "results", papers / "results")
    for chapter in CHAPTERS:
        for item in items(chapter_findings(chapter, "tiny")):
            assert "{" not in item and "}" not in item and "None" not in item
            assert "not run" in item or "(<a" in item or "(Embedded pair)" in item


# The chapters


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_a_chapter_opens_with_its_findings_and_its_last_cell_glues_them(chapter):
    notebook = jupytext.read(ROOT / "book" / f"{chapter}.md")
    title, source, rest = notebook.cells[0].source.split("\n\n", 2)
    assert title.startswith("# ") and source.startswith("*") and source.endswith("*")
    assert rest.startswith(OPENING.strip())
    assert sum("{glue}" in cell.source for cell in notebook.cells) == 1
    last = notebook.cells[-1]
    assert last.metadata["tags"] == ["remove-cell"]
    assert re.search(
        rf'^glue\("findings", chapter_findings\("{chapter}", [\w.]*name\), display=False\)$', last.source, re.M
    )


@pytest.mark.parametrize("chapter", chapter_names(ROOT))
def test_set_up_is_hidden_and_what_is_folded_says_what_it_is_for(chapter):
    labels, in_section = [], False
    for cell in jupytext.read(ROOT / "book" / f"{chapter}.md").cells:
        tags = cell.metadata.get("tags", ())
        if cell.cell_type == "markdown":
            in_section = in_section or "\n## " in f"\n{cell.source}"
        elif {"hide-input", "hide-output"} & set(tags):
            labels.append(cell.metadata["mystnb"]["code_prompt_show"])
            assert in_section, f"a bar before the first section: {cell.source}"
        else:
            assert in_section or {"remove-input", "remove-cell"} & set(tags), f"code at the top: {cell.source}"
            assert "parameters" not in tags or "remove-input" in tags
    assert all(re.match(r"(Code for|The) ", label) and len(label) <= 60 for label in labels)
    assert len(set(labels)) == len(labels)


# The page

CHAPTER = (
    "# Toy\n\n*Section 1.*"
    + OPENING
    + """
```{code-cell} ipython3
:tags: [parameters, remove-input]

pair = "tiny"
scale = "default"
```

```{code-cell} ipython3
:tags: [remove-input]

set_up = "the set-up"
```

## First

What follows is computed.

```{code-cell} ipython3
:tags: [hide-input]
:mystnb: {code_prompt_show: "Code for the inverse"}

from stitch_utils.book.results import write_results

write_results(pair, "numbers", {f"numbers.{pair}.inverse": 0.125})
```

```{code-cell} ipython3
:tags: [remove-cell]

from myst_nb import glue

from stitch_utils.book.findings import chapter_findings

glue("findings", chapter_findings("numbers", pair), display=False)
```
"""
)


def test_a_built_page_shows_at_its_top_what_its_cells_compute_further_down(book):
    (book / "book" / "numbers.md").write_text(CHAPTER)
    finding = {"claim": "positive", "says": "The inverse is {}", "numbers": ["numbers.{pair}.inverse"]}
    (book / "book" / "findings.yml").write_text(
        yaml.safe_dump({"front": ["positive"], "chapters": {"numbers": [finding]}})
    )
    code, _, err = call(book, "run")
    assert code == 0, err
    code, _, err = call_here(book, "build")
    assert code == 0, err
    page = (book / "_build" / "html" / "book" / "runs" / "tiny" / "numbers.html").read_text(encoding="utf-8")
    top, section = re.split('<section[^>]*id="(?:toy|first)">', page)[1:]
    assert top.index("What we found") < top.index("The inverse is <b>0.125</b>") and "Published: gpt2 2." in plain(top)
    assert 'data-verdict="holds"' in top and "<details" not in top and "the set-up" not in page
    assert section.index("What follows is computed") < section.index("Code for the inverse")
    assert "Show code" not in page and "chapter_findings" not in page


def test_links_of_findings_lead_from_a_record_to_the_pages_that_it_knows():
    href = '<a href="../{}/{}.html#x">{}</a>'
    shown = href.format("mine", "numbers", "own") + href.format("gpt2", "numbers", "other")
    kind = "application/papermill.record/text/html"
    cell = {"cell_type": "code", "metadata": {}, "source": "", "outputs": [{"data": {kind: shown}}]}
    note = {"pair": "mine", "chapter": "numbers", "scale": None, "parameters": {}, "seconds": 1.0}
    page = {"cells": [cell], "metadata": {"stitch_book": note}}
    slim = recorded._slim(page, {"numbers"}, {"date": "2020-01-01"})
    assert slim["cells"][0]["outputs"][0]["data"][kind] == '<a href="numbers.html#x">own</a>other'
