"""The comparison of two builds: what counts as a difference, and what does not."""

import shutil

import nbformat
import pytest
from compare_builds import differences, main, make, printed
from nbformat.v4 import new_code_cell, new_notebook, new_output


def page(text, *, id="T_ab12c", image="AAAA", seconds=" 3 s"):
    table = f'<style>#{id} {{color: red}}</style><table id="{id}"><tr><td>loss</td><td>{text} &lt; 2</td></tr></table>'
    outputs = [
        new_output("execute_result", {"text/html": table, "text/plain": f"<Styler at 0x{id}>"}, execution_count=1),
        new_output("display_data", {"image/png": image, "text/plain": "<Figure>"}),
        new_output("stream", name="stderr", text=seconds),
        new_output("stream", name="stdout", text="done\n"),
    ]
    return new_notebook(cells=[new_code_cell("x", outputs=outputs)])


@pytest.fixture
def two(tmp_path):
    for name in ("first", "second"):
        runs = tmp_path / name / "book" / "runs" / "tiny"
        runs.mkdir(parents=True)
        nbformat.write(page("1.0"), runs / "words.ipynb")
        results = tmp_path / name / "results" / "tiny"
        results.mkdir(parents=True)
        (results / "words.json").write_text('{"w.tiny.a": 1.0, "w.tiny.seconds": 2.0}')
    return tmp_path / "first", tmp_path / "second"


def test_names_images_and_times_may_differ(two, capsys):
    nbformat.write(page("1.0", id="T_ffff0", image="BBBB", seconds="4 s"), two[1] / "book/runs/tiny/words.ipynb")
    (two[1] / "results/tiny/words.json").write_text('{"w.tiny.a": 1.0, "w.tiny.seconds": 9.0}')
    assert printed(two[0] / "book/runs/tiny/words.ipynb") == ["loss", "1.0 < 2", "done"]
    assert main(list(map(str, two))) == 0 and capsys.readouterr().out == "both agree in all that they print\n"


def test_what_a_page_glues_is_compared_too(two):
    kinds = {"application/papermill.record/text/html": "<li>It is <b>1.1</b></li>"}
    glued = new_notebook(cells=[new_code_cell("x", outputs=[new_output("display_data", kinds)])])
    nbformat.write(glued, two[0] / "book/runs/tiny/words.ipynb")
    assert printed(two[0] / "book/runs/tiny/words.ipynb") == ["It is", "1.1"]


def test_digits_numbers_and_pages_may_not(two, capsys):
    nbformat.write(page("1.1"), two[1] / "book/runs/tiny/words.ipynb")
    (two[1] / "results/tiny/words.json").write_text('{"w.tiny.a": 1.00001, "w.tiny.b": 1}')
    shutil.copy(two[0] / "results/tiny/words.json", two[0] / "results/tiny/more.json")
    assert main(list(map(str, two))) == 1
    assert capsys.readouterr().out.splitlines() == [
        "results/tiny/more.json: only in one of the two",
        "results/tiny/words.json: w.tiny.a: 1.0 and 1.00001",
        "results/tiny/words.json: w.tiny.b: None and 1",
        "book/runs/tiny/words.ipynb: -1.0 < 2",
        "book/runs/tiny/words.ipynb: +1.1 < 2",
    ]
    assert len(differences(*two, numbers=False)) == 3


def test_nothing_is_not_the_same_as_nothing(tmp_path, capsys):
    assert main([str(tmp_path), str(tmp_path)]) == 1 and "nothing to compare" in capsys.readouterr().out


def test_folders_without_pages_are_nothing_to_compare(two, capsys):
    for side in two:
        (side / "book/runs/tiny/words.ipynb").unlink()
    assert main(list(map(str, two))) == 1 and "nothing to compare" in capsys.readouterr().out


def test_a_text_in_markdown_is_read(two):
    path = two[0] / "book/runs/tiny/words.ipynb"
    shown = new_output("display_data", {"text/markdown": "**2** of 3", "text/plain": "<Markdown object>"})
    nbformat.write(new_notebook(cells=[new_code_cell("x", outputs=[shown])]), path)
    assert printed(path) == ["**2** of 3"]


def test_runs_are_made_where_they_are_wanted(tmp_path, monkeypatch):
    called = []
    monkeypatch.setattr("subprocess.run", lambda command, **options: called.append((command, options)))
    make(tmp_path / "one", "smoke", 2)
    command, options = called[0]
    assert command[1:] == ["-m", "stitch_utils.book.cli", "run", "--scale", "smoke"] and options["check"]
    assert options["env"]["STITCH_ROOT"] == str(tmp_path / "one") and options["env"]["OMP_NUM_THREADS"] == "2"
    assert (tmp_path / "one" / "book" / "published.yml").is_file() and (tmp_path / "one" / "_toc.yml").is_file()
