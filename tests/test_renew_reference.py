"""The script that renews the reference notebooks: all of them, or those that are named."""

import json

import pytest
import renew_reference
from toy_book import project_root_at


def test_named_chapters_of_the_reference_are_renewed_and_the_rest_is_kept(bare_book, monkeypatch):
    reference = bare_book / "reference"
    (reference / "results" / "tiny").mkdir(parents=True)
    (reference / "results" / "tiny" / "numbers.json").write_text('{"numbers.tiny.inverse": 3}')
    for name in ("numbers", "words"):
        (reference / f"{name}.ipynb").write_text("as it was")
    for name, folder in (("ROOT", bare_book), ("REFERENCE", reference)):
        monkeypatch.setattr(renew_reference, name, folder)
    with project_root_at(bare_book):
        with pytest.raises(SystemExit):
            renew_reference.renew(["other"])
        assert (reference / "words.ipynb").read_text() == "as it was"
        renew_reference.renew(["words"])
    assert "tiny|smoke|0" in (reference / "words.ipynb").read_text()
    assert (reference / "numbers.ipynb").read_text() == "as it was"
    assert sorted(path.name for path in reference.iterdir()) == ["numbers.ipynb", "results", "words.ipynb"]
    assert json.loads((reference / "results" / "tiny" / "numbers.json").read_text()) == {"numbers.tiny.inverse": 3}
