"""The README's lines, as a reader would copy them: run where they are of one's own SAEs, vectors and probes."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from toy_book import call_here

from stitch_utils.data.pairs import load_pair

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
SECTION = README.split("\n## Carry your own across\n")[1].split("\n## ")[0]
BLOCKS = re.findall(r"```(bash|python)\n(.*?)```", SECTION, re.DOTALL)


def commands(block):
    """The words of each line of a shell block; what stands between <<'END' and END is written to the file before it."""
    for name, content in re.findall(r"^cat > (\S+) <<'END'\n(.*?)^END$", block, re.DOTALL | re.MULTILINE):
        Path(name).write_text(content)
    block = re.sub(r"^cat > .*?^END$", "", block, flags=re.DOTALL | re.MULTILINE)
    return [words for line in block.splitlines() if (words := shlex.split(line, comments=True))]


def test_the_example_stitches_the_embedded_pair_where_it_is_stitched_in_the_book(tmp_path, monkeypatch):
    """Its SAEs are of those layers."""
    monkeypatch.chdir(tmp_path)
    commands(BLOCKS[0][1])
    mine, tiny = load_pair(tmp_path / "mine.yml"), load_pair("tiny")
    assert [(ref.model, ref.layer) for ref in (mine.a, mine.b)] == [(ref.model, ref.layer) for ref in (tiny.a, tiny.b)]


def test_the_lines_work_from_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("STITCH_ROOT", str(tmp_path))  # in the place of the checkout
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    seen, names = [], {}
    for language, block in BLOCKS:
        if language == "python":
            names = {}
            exec(block, names)
            continue
        for program, *arguments in commands(block):
            assert program == "stitch-book"
            code, lines, err = call_here(tmp_path, *arguments)
            assert (code, err) == (0, ""), arguments
            seen.append((arguments[0], "\n".join(lines)))
        if "transfer-sae" in block:
            assert sorted(path.name for path in Path("sae-in-b").iterdir()) == ["cfg.json", "sae_weights.safetensors"]
    printed = dict(seen)
    assert list(printed) == ["fit", "transfer-vector", "transfer-probe", "transfer-sae"]
    explained = [
        words for cell in re.findall(r"^\| (`[^|]+) \| ", SECTION, re.MULTILINE) for words in cell[1:-1].split("`, `")
    ]
    assert len(explained) == 8 and all(words in "\n".join(printed.values()) for words in explained)
    # There and back again: of A's direction most is left, and the probe still tells its own texts apart.
    v, w = np.load("v.npy"), names["w"].numpy()
    assert v @ w / np.linalg.norm(v) / np.linalg.norm(w) == pytest.approx(1, abs=0.1)
    with np.load("p.npz") as p, np.load("p-in-a.npz") as q:
        assert p["classes_"].tolist() == q["classes_"].tolist() == ["glad", "sad"]
        assert (p["coef_"] @ q["coef_"].T).item() > 0


def test_scripts_are_called_with_the_environment_that_make_sets_up():
    called = re.findall(r"`(\S*python) \S+\.py`", README)
    assert len(called) >= 2 and set(called) == {".venv/bin/python"}


def test_plain_papermill_finds_the_folder_that_it_writes_into():
    lines = README.split("With plain papermill:\n\n```bash\n")[1].split("```")[0].splitlines()
    folder = Path(next(line.split()[2] for line in lines if "/papermill " in line)).parent
    assert lines[0] == f"mkdir -p {folder.as_posix()}"
