"""Records of finished runs: what is kept, what is refused, and that the book shows them and counts their verdicts."""

import base64
import io
import json
import random
import re
import shutil
import subprocess
from importlib import metadata
from pathlib import Path

import nbformat
import papermill
import pytest
import renew_reference
import yaml
from PIL import Image
from toy_book import PACKAGE, call_here, runs

from stitch_utils.book import recorded, tables
from stitch_utils.book.chapters import page_of, recorded_pages
from stitch_utils.book.claims import verdicts
from stitch_utils.book.recorded import record
from stitch_utils.book.results import pairs_with_results, read_results, write_results
from stitch_utils.book.runs import execute, key_of

ROOT = Path(__file__).parents[2]
DAY = "2026-03-04"


def png(image):
    """An image as a notebook keeps it."""
    written = io.BytesIO()
    image.save(written, format="PNG")
    return base64.b64encode(written.getvalue()).decode()


def opened(encoded):
    return Image.open(io.BytesIO(base64.b64decode(encoded)))


def shown(**data):
    """An output of a cell, such as `shown(text_html="<b>")`."""
    return nbformat.v4.new_output("display_data", {kind.replace("_", "/", 1): value for kind, value in data.items()})


@pytest.fixture
def mine(book, monkeypatch):
    """The toy book, with a pair file of its own; gives a function that runs its chapters without a kernel.

    `outputs` are those of the last cell of each; `stand_in` is noted in the results if it is given.
    """
    description = yaml.safe_load((PACKAGE / "data" / "pairs" / "tiny.yml").read_text())
    (book / "mine.yml").write_text(yaml.safe_dump(description | {"name": "mine", "title": "Mine & yours"}))
    monkeypatch.chdir(book)
    monkeypatch.setenv("STITCH_ROOT", str(book))

    def run(*, outputs=(), chapters=("numbers", "words"), stand_in=None, **choices):
        for chapter in chapters:
            one = runs(book, pair=str(book / "mine.yml"), chapter=chapter, **choices)[chapter]

            def executed(partial, *_, one=one, **__):
                page = nbformat.read(partial, 4)
                page.metadata["papermill"] = {"end_time": f"{DAY}T23:59:58+00:00", "start_time": "no day"}
                page.metadata["language_info"] = {"name": "python", "pygments_lexer": "ipython3"}
                page.cells[-1].outputs = [*outputs, nbformat.v4.new_output("stream", name="stderr", text="50%")]
                page.cells[-1].metadata["papermill"] = {"duration": 1.5}
                if one.chapter == "numbers":
                    parameters = {"scale": one.parameters["scale"], "alpha": one.parameters["alpha"]}
                    parameters |= {} if stand_in is None else {"stand_in": stand_in}
                    write_results("mine", "numbers", {"numbers.mine.inverse": 4.0}, parameters=parameters)
                return page

            with monkeypatch.context() as patch:
                patch.setattr(papermill, "execute_notebook", executed)
                execute(one, key_of(book, one))
        return book

    return run


def contents(root):
    folder = root / "book" / "recorded"
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def page_in(root, chapter="numbers"):
    return json.loads((root / "book" / "recorded" / "mine" / f"{chapter}.ipynb").read_text())


def outputs_in(root):
    return page_in(root)["cells"][-1]["outputs"]


def test_a_record_has_pages_results_and_what_they_were_made_with(mine):
    root = mine(scale="smoke", given=[("seed", "7")])
    code, lines, err = call_here(root, "record", "--pair", "mine.yml")
    assert (code, err) == (0, "") and lines[0].startswith(f"book/recorded/mine: 2 pages of the run of {DAY}, 0.0 MB")
    assert sorted(contents(root)) == [
        "mine/numbers.ipynb",
        "mine/record.yml",
        "mine/results/numbers.json",
        "mine/words.ipynb",
    ]
    about = yaml.safe_load((root / "book" / "recorded" / "mine" / "record.yml").read_text())
    assert list(about) == ["pair", "date", "hardware", "commit", "clean", "versions", "chapters"]
    assert (about["pair"], about["date"], about["commit"], about["clean"]) == ("mine", DAY, None, False)
    assert set(about["hardware"]) == {"processor", "processors", "memory", "accelerator", "system"}
    assert re.fullmatch(r"\d+ GiB", about["hardware"]["memory"])
    for package in ("torch", "transformers", "transformer-lens", "sae-lens"):
        assert about["versions"][package] == metadata.version(package)
    ran = about["chapters"]["numbers"]
    assert ran["scale"] == "smoke" and ran["parameters"]["seed"] == 7 and ran["seconds"] >= 0
    rows = json.loads((root / "book" / "recorded" / "mine" / "results" / "numbers.json").read_text())
    written = json.loads((root / "results" / "mine" / "numbers.json").read_text())
    assert rows == written | {"run.recorded": DAY}

    page = page_in(root)
    nbformat.validate(nbformat.from_dict(page))
    title, *_ = page["cells"][0]["source"].splitlines()
    assert (
        title == "# Toy: mine" and DAY in page["cells"][0]["source"] and "at scale smoke" in page["cells"][0]["source"]
    )
    assert about["hardware"]["processor"] in page["cells"][0]["source"]
    assert page["metadata"]["stitch_book"]["recorded"] == DAY and "papermill" not in page["metadata"]
    assert page["cells"][-1]["outputs"] == [] and "papermill" not in page["cells"][-1]["metadata"]
    left = json.loads((root / "book" / "runs" / "mine" / "numbers.ipynb").read_text())
    assert len(left["cells"][-1]["outputs"]) == 1, "the page of the run stays as it was"


def test_the_commit_is_that_of_the_checkout_and_recording_again_changes_nothing(mine):
    root = mine()

    def git(*words):
        command = ["git", "-c", "user.name=t", "-c", "user.email=t@t", *words]
        return subprocess.run(command, cwd=root, capture_output=True, text=True, check=True).stdout.strip()

    def about():
        record(root, pair="mine.yml")
        found = yaml.safe_load((root / "book" / "recorded" / "mine" / "record.yml").read_text())
        return found["commit"], found["clean"]

    git("init", "-q")
    (root / ".gitignore").write_text("book/runs/\n/results/\n")
    git("add", "-A")
    git("commit", "-qm", "all")
    commit = git("rev-parse", "HEAD")
    assert about() == (commit, True)
    assert f"commit `{commit[:12]}`, with" in page_in(root)["cells"][0]["source"]
    first = contents(root)
    assert about() == (commit, True) and contents(root) == first, "the record itself is no change of the checkout"
    (root / "notes.txt").touch()
    assert about() == (commit, False)
    assert "changes that are not committed" in page_in(root)["cells"][0]["source"]


def _change(file, old, new):
    path = Path(file)
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


PAGES = "book/runs/mine"
SPOILS = [
    ("there is no page of the pair 'mine'", lambda: shutil.rmtree(PAGES)),
    ("mine/numbers.ipynb is not as its run", lambda: _change(f"{PAGES}/numbers.ipynb", "Toy", "Tay")),
    ("mine/words.ipynb is not as its run", lambda: Path(f"{PAGES}/words.ipynb").write_text("{")),
    ("mine/numbers.json is missing", lambda: Path("results/mine/numbers.json").unlink()),
    ("mine/numbers.ipynb is not as its run", lambda: _change("results/mine/numbers.json", "4", "5")),
    ("mine/words.ipynb .* made from other sources", lambda: _change("book/words.md", "# Toy", "# Toys")),
    ("mine/numbers.ipynb .* made from other sources", lambda: _change("requirements.lock", "2.0.0", "2.0.1")),
    ("mine/draft.ipynb is the page of no chapter", lambda: Path(f"{PAGES}/draft.ipynb").touch()),
]


@pytest.mark.parametrize(("message", "spoil"), SPOILS)
def test_what_is_not_a_finished_run_is_refused_in_one_line_and_the_earlier_record_stays(mine, message, spoil):
    root = mine()
    record(root, pair="mine.yml")
    before = contents(root)
    spoil()
    code, lines, err = call_here(root, "record", "--pair", "mine.yml")
    assert (code, lines) == (2, []) and err.count("\n") == 1 and re.search(message, err), err
    assert contents(root) == before


def test_the_embedded_pair_and_random_weights_are_not_recorded(mine):
    root = mine(stand_in=True)
    assert "nothing of it is recorded" in call_here(root, "record", "--pair", "tiny")[2]
    code, _, err = call_here(root, "record", "--pair", "mine.yml")
    assert code == 2 and "random weights" in err and not contents(root)


def test_a_record_that_is_too_large_names_its_largest_files(mine, monkeypatch):
    root = mine()
    record(root, pair="mine.yml")
    before = contents(root)
    mine(outputs=[shown(text_plain="a" * 30_000)])
    monkeypatch.setattr(recorded, "LARGEST", 30_000)
    code, _, err = call_here(root, "record", "--pair", "mine.yml")
    assert code == 2 and err.count("\n") == 1 and contents(root) == before
    assert re.search(r"would be 0\.\d MB, and 0\.03 are allowed: numbers.ipynb 0\.\d MB, words.ipynb 0\.0 MB", err)
    assert recorded.WIDEST == 1400
    monkeypatch.undo()
    assert recorded.LARGEST == 6_000_000


def test_paths_of_the_checkout_count_from_its_root(mine, monkeypatch):
    root = mine()
    said = f"{root}|{root}/results/mine|{root}-other|see #!/usr/bin/env and https://example.org{root.parent.parent}x"
    monkeypatch.setattr(recorded, "_is_of_this_machine", lambda path: False)
    mine(outputs=[shown(text_plain=said)])
    record(root, pair="mine.yml")
    (output,) = outputs_in(root)
    assert "".join(output["data"]["text/plain"]) == said.replace(f"{root}|{root}/", ".|", 1)


@pytest.mark.parametrize("place", ["home", "scratch", "model"])
def test_other_paths_of_this_machine_are_refused(mine, place, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", "/nowhere/someone")
    monkeypatch.setattr(recorded.tempfile, "gettempdir", lambda: "/scratch")
    (tmp_path / "models").mkdir()
    path = {"home": "/nowhere/someone/x", "scratch": "/scratch/tmpab12cd34/x", "model": f"{tmp_path}/models/a"}[place]
    assert not str(tmp_path).startswith(("/scratch", "/nowhere"))
    root = mine(outputs=[shown(text_html=f"<p>in /usr/lib/x, /gone/from/here, <i>a</i>/b and '{path}'</p>")])
    code, _, err = call_here(root, "record", "--pair", "mine.yml")
    assert code == 2 and f"numbers.ipynb would be recorded with the path {path}" in err and not contents(root)


def test_what_is_on_every_machine_or_on_none_is_no_path_of_this_one(mine):
    said = "#!/usr/bin/env, /gone/from/here, </p></div>, and/or/both, https://example.org/home/a, ../tmp/x, 1/2/3"
    root = mine(outputs=[shown(text_plain=said)])
    record(root, pair="mine.yml")
    assert "".join(outputs_in(root)[0]["data"]["text/plain"]) == said


def test_figures_are_made_small_and_drawings_stay(mine):
    draw = random.Random(0)
    noise = Image.new("RGB", (2800, 100))
    noise.putdata([(draw.randrange(256), draw.randrange(256), 7) for _ in range(2800 * 100)])
    plot = Image.new("RGBA", (300, 200), (255, 255, 255, 255))
    plot.paste((200, 30, 30, 255), (50, 50, 90, 180))
    tiny = Image.new("P", (1, 1))
    svg = "<svg>" + "<g/>" * 20 + "</svg>"
    outputs = [
        shown(image_png=png(noise)),
        shown(image_png=png(plot)),
        shown(image_png=png(plot), **{"image_svg+xml": svg}),
        shown(image_png=png(tiny), **{"image_svg+xml": svg * 9}),
    ]
    root = mine(outputs=outputs)
    record(root, pair="mine.yml")
    wide, small, drawing, dot = (output["data"] for output in outputs_in(root))
    assert opened(wide["image/png"]).size == (1400, 50)
    assert len(wide["image/png"]) < len(png(noise.resize((1400, 50)))) / 1.5, "a palette is smaller"
    assert len(small["image/png"]) < len(png(plot))
    assert opened(small["image/png"]).convert("RGBA").tobytes() == plot.tobytes()
    assert list(drawing) == ["image/svg+xml"] and "".join(drawing["image/svg+xml"]) == svg
    assert list(dot) == ["image/png"]


def test_links_lead_from_the_record_to_where_their_pages_are(mine):
    links = [
        ("../mine/words.html#the-b", '<a href="words.html#the-b">x</a>'),
        ("../mine/lrt.html", "x"),
        ("../tiny/words.html#the-b", '<a href="../../runs/tiny/words.html">x</a>'),
        ("../other/words.html", "x"),
        ("#here", '<a href="#here">x</a>'),
        ("https://example.org/a.html", '<a href="https://example.org/a.html">x</a>'),
    ]
    root = mine(outputs=[shown(text_html=" ".join(f'<a href="{link}">x</a>' for link, _ in links))])
    record(root, pair="mine.yml")
    assert outputs_in(root)[0]["data"]["text/html"] == " ".join(link for _, link in links)


def test_the_book_shows_a_record_below_its_chapter_unless_it_was_run(mine):
    root = mine(outputs=[shown(text_plain="from the run")], chapters=("numbers",))
    record(root, pair="mine.yml")
    extension = root / "book" / "_ext" / "recorded.py"
    extension.parent.mkdir()
    shutil.copy(ROOT / "book" / "_ext" / "recorded.py", extension)
    config = yaml.safe_load((root / "_config.yml").read_text())
    config["sphinx"]["local_extensions"] = {"recorded": "book/_ext"}
    (root / "_config.yml").write_text(yaml.safe_dump(config))
    html = root / "_build" / "html" / "book"

    code, lines, err = call_here(root, "build")
    assert code == 0, err
    said = "numbers (mine): the run of this checkout is shown, and not book/recorded/mine/numbers.ipynb"
    assert lines[0] == said and "rendering the book" in lines
    assert (html / "runs" / "mine" / "numbers.html").is_file() and not (html / "recorded").exists()

    for folder in ("book/runs/mine", "results/mine"):
        shutil.rmtree(root / folder)
    code, lines, err = call_here(root, "build")
    assert code == 0, err
    assert lines[0] == "rendering the book"
    page = (html / "recorded" / "mine" / "numbers.html").read_text()
    assert '<p class="admonition-title">Recorded</p>' in page and DAY in page and "from the run" in page
    contents = (html / "runs" / "tiny" / "numbers.html").read_text()
    assert 'href="../../recorded/mine/numbers.html"' in contents

    _change(root / "book/recorded/mine/numbers.ipynb", "from the run", "from another")
    assert call_here(root, "build")[1][0] == "rendering the book", "a new record is rendered"


def recorded_alone(root):
    """Leave the record and nothing of the run."""
    record(root, pair="mine.yml")
    shutil.rmtree(root / "book" / "runs" / "mine")
    shutil.rmtree(root / "results" / "mine")


def test_recorded_numbers_count_until_the_chapter_is_run_here(mine):
    root = mine(scale="smoke")
    assert pairs_with_results() == ["mine", "tiny"]
    assert read_results("mine").runs == {"numbers": {"scale": "smoke", "alpha": 0.5}}
    recorded_alone(root)
    assert pairs_with_results() == ["mine", "tiny"] and read_results("tiny").runs == {}
    found = read_results("mine")
    assert found.numbers == {"numbers.mine.inverse": 4.0}
    assert found.runs == {"numbers": {"scale": "smoke", "alpha": 0.5, "recorded": DAY}}
    (verdict,) = verdicts("mine")
    assert (verdict.verdict, verdict.recorded) == ("holds", DAY)
    assert verdict.page == "book/recorded/mine/numbers.html" == page_of("mine", "numbers")
    assert verdicts("tiny")[0].recorded == ""
    assert recorded_pages(root) == {Path(f"book/recorded/mine/{name}.ipynb"): False for name in ("numbers", "words")}

    assert page_of("mine", "numbers", "Toy: mine") == "book/recorded/mine/numbers.html#toy-mine"
    assert page_of("mine", "numbers", "A later one") == "book/recorded/mine/numbers.html"
    write_results("mine", "numbers", {"numbers.mine.inverse": -4.0})
    assert read_results("mine").numbers == {"numbers.mine.inverse": -4.0}
    assert read_results("mine").runs == {}
    (verdict,) = verdicts("mine")
    assert (verdict.verdict, verdict.recorded, verdict.page) == ("does not hold", "", "")
    assert list(recorded_pages(root).values()) == [True, False]


def test_tables_and_the_list_of_claims_mark_what_is_recorded(mine):
    root = mine(scale="smoke")
    marks = (tables.claims_table, tables.verdict_counts, tables.runs_table)
    assert not any("recorded" in table().data for table in marks)
    recorded_alone(root)
    table = tables.claims_table().data
    assert f"<b>mine</b>: holds<br><small>recorded {DAY}</small><br>" in table and table.count("recorded ") == 1
    assert '<a href="../../recorded/mine/numbers.html">numbers</a>' in table
    counts = tables.verdict_counts().data
    assert ">smoke (recorded)</td>" in counts and counts.count("recorded") == 1
    links = [f'<a href="../../recorded/mine/{name}.html">{name}</a> (recorded)' for name in ("numbers", "words")]
    assert ", ".join(links) in tables.runs_table().data
    figure = {"id": "f1", "title": "Map", "section": "3", "chapter": "numbers", "prefix": "numbers.{pair}."}
    document = yaml.safe_load((root / "book" / "published.yml").read_text())
    (root / "book" / "published.yml").write_text(yaml.safe_dump(document | {"figures": [figure]}))
    assert f"{links[0]}</td>" in tables.status_table().data
    code, lines, _ = call_here(root, "claims", "--pair", "mine.yml")
    assert code == 0 and lines[0].endswith(f"numbers: Section 1 (recorded {DAY})")
    assert lines[-1].strip() == "_build/html/book/recorded/mine/numbers.html"
    assert "recorded" not in " ".join(call_here(root, "claims")[1])


def test_a_recorded_pair_is_shown_by_its_title_where_its_file_is_in_the_checkout(mine):
    root = mine(scale="smoke")
    recorded_alone(root)

    def table():
        return tables.on_real_models("numbers", chapter="numbers", labels={"inverse": "Inverse"}).data

    link = '<a href="../../recorded/mine/numbers.html">{}</a> (recorded)</th>'
    assert link.format("Mine &amp; yours") in table() and ">4</td>" in table()
    assert ">Mine &amp; yours</td>" in tables.runs_table().data
    for broken in ("name: [", "name: mine"):
        (root / "mine.yml").write_text(broken)
        assert link.format("mine") in table()
    (root / "mine.yml").unlink()
    assert link.format("mine") in table()
    assert ">a pair file of your own: mine.yml</td>" in tables.runs_table().data


def test_the_tests_reference_has_no_record(mine, tmp_path, monkeypatch):
    root = mine()
    record(root, pair="mine.yml")
    monkeypatch.setattr(renew_reference, "ROOT", root)
    renew_reference.copy_sources(tmp_path / "copy")
    assert (tmp_path / "copy" / "book" / "numbers.md").is_file()
    assert not (tmp_path / "copy" / "book" / "recorded").exists()
