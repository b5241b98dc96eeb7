"""What publishes the book: launch links, the notebooks that they open, the workflow, the citation."""

import os
import re
import stat
import subprocess
import sys
import tomllib
from pathlib import Path

import jupytext
import pytest
import yaml
from extensions import extension

from stitch_utils.book.chapters import chapter_names

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def launch():
    return extension("launch")


def test_a_chapter_links_to_its_notebook(launch, monkeypatch):
    def buttons(page):
        context = {"header_buttons": []}
        launch._add_button(None, page, "page.html", context, None)
        return [button["url"] for button in context["header_buttons"]]

    monkeypatch.delenv("BOOK_REPOSITORY", raising=False)
    assert buttons("book/runs/tiny/stitching") == [], "nobody said where the repository is"
    monkeypatch.setenv("BOOK_REPOSITORY", "https://github.com/some-one/a.book")
    monkeypatch.setenv("BOOK_REVISION", "abc1")
    place = "https://mybinder.org/v2/gh/some-one/a.book/abc1?urlpath=lab/tree/stitching.ipynb"
    assert buttons("book/runs/tiny/stitching") == [place] == buttons("book/runs/gemma/stitching")
    assert buttons("genindex") == []
    monkeypatch.setenv("BOOK_REPOSITORY", "https://example.org/x")
    with pytest.raises(ValueError, match=r"BOOK_REPOSITORY is 'https://example.org/x': expected https://github.com/"):
        buttons("book/runs/tiny/stitching")


def test_the_notebooks_that_links_open_are_made(tmp_path):
    """In a copy of the chapters; pip, which would install the package, only says that it was called."""
    (tmp_path / "book").mkdir()
    for source in (ROOT / "book").glob("*.md"):
        (tmp_path / "book" / source.name).write_bytes(source.read_bytes())
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    python.write_text(f'#!/bin/bash\nif [ "$2" = pip ]; then echo "$*" > pip; else exec {sys.executable} "$@"; fi\n')
    python.chmod(python.stat().st_mode | stat.S_IEXEC)
    environment = os.environ | {"PATH": f"{python.parent}:{os.environ['PATH']}"}
    subprocess.run(["bash", ROOT / ".binder" / "postBuild"], cwd=tmp_path, env=environment, check=True)
    assert {path.stem for path in tmp_path.glob("*.ipynb")} == set(chapter_names(ROOT))
    notebook = jupytext.read(tmp_path / "stitching.ipynb")
    assert "parameters" in [tag for cell in notebook.cells for tag in cell.metadata.get("tags", ())]
    assert (tmp_path / "pip").read_text().endswith("--editable .\n")


def test_binder_installs_the_lock():
    assert (ROOT / ".binder" / "requirements.txt").read_text().strip() == "-r ../requirements.lock"
    conda = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    assert (ROOT / ".binder" / "runtime.txt").read_text().strip().replace("-", "=") in conda


def test_the_workflow_runs_the_two_commands_and_publishes_what_they_make():
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "book.yml").read_text())
    build, publish = workflow["jobs"]["build"], workflow["jobs"]["publish"]
    commands = [step["run"] for step in build["steps"] if "run" in step]
    assert commands[-3:] == ["make test", "make report", ".venv/bin/python tests/check_book.py"]
    upload = next(step for step in build["steps"] if "upload-pages-artifact" in step.get("uses", ""))
    assert upload["with"]["path"] == "_build/html" and publish["needs"] == "build"
    assert publish["permissions"] == {"pages": "write", "id-token": "write"}
    assert {"BOOK_REPOSITORY", "BOOK_REVISION"} <= set(build["env"])


def test_the_citation_is_of_this_version_and_of_both_papers():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert citation["version"] == project["version"] and citation["license"] == project["license"]
    assert {"cff-version", "message", "title", "authors", "abstract", "keywords", "date-released"} <= set(citation)
    papers = [citation["preferred-citation"], *citation["references"]]
    assert [re.search(r"\d{4}\.\d{5}", paper["url"])[0] for paper in papers] == ["2506.06609", "2506.00653"]
    bibliography = (ROOT / "book" / "references.bib").read_text()
    assert all(f"arXiv:{paper['url'].rsplit('/', 1)[1]}" in bibliography for paper in papers)
    for paper in papers:
        for author in paper["authors"]:
            assert f"{author['family-names']}, {author['given-names']}" in bibliography


def test_the_front_page_cites_both_papers_and_this_version():
    shown = (ROOT / "book" / "index.md").read_text().split("```bibtex\n")[1].split("\n```")[0].split("\n\n")
    bibliography = (ROOT / "book" / "references.bib").read_text().split("\n\n")
    assert [entry.split(",")[0] for entry in shown] == [
        "@inproceedings{chen2025transferring",
        "@misc{bello2025linear",
        "@software{stitch_utils",
    ]
    assert set(shown[:2]) <= set(bibliography)
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    title = citation["title"].replace("_", r"\_")
    year = citation["date-released"].year
    assert all(f"{{{part}}}" in shown[2] for part in (title, citation["version"], str(year)))
