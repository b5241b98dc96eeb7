"""Docstrings against files that are written here and read by eye, and one installed package against its own objects."""

import hashlib
import importlib.metadata
import inspect
import json
from dataclasses import replace

import pytest
from toy_book import project_root_at

from stitch_utils.data import documentation
from stitch_utils.data.documentation import DocString, docstrings, documentation_key
from stitch_utils.data.pairs import TextRef, load_pair
from stitch_utils.data.text import read_documents
from stitch_utils.models.harvest import text_key

LONG = "This sentence is here to make the docstring long enough to be read at all, which takes eighty characters."
SHARED = f"Two packages have this text. {LONG}"
MODULE = f'''"""The module of shapes.

{LONG}
"""
import nothing_that_exists

class Shape:
    """A shape.

        Indented by four. {LONG}
    At the margin.
    """

    def area(self):
        """Compute the area. {LONG}"""
        # in a unit of its own
        if self.flat:
            raise ValueError("no area")
        return self.width * self.height

    async def wait(self):
        """Wait for it. {LONG}"""
        def inner():
            raise ValueError("of the function within")
        return inner

    def short(self):
        """Too short to be read."""
        raise ValueError

try:
    pass
except ImportError:
    def fallback():
        """Stand in for what is missing. {LONG}"""
else:
    for each in ():
        match each:
            case 1:
                def chosen(): """Be chosen. {LONG}"""; raise ValueError

def outer():
    """{SHARED}"""
    class Within:
        """Be within. {LONG}"""
    raise ValueError("after it")

def again():
    """{SHARED}"""

def plain():
    b"""Not a docstring, but bytes, of which there are more than enough characters to be read as one, were it one."""

def broken():
    """Half of a pair: \\ud800. {LONG}"""
'''
FILES = {
    "toy": {
        "toy/__init__.py": f'"""The package itself. {LONG}"""\n',
        "toy/shapes.py": MODULE,
        "toy/tests/test_it.py": f'"""A test. {LONG}"""\n',
        "toy/conftest.py": f'"""A test. {LONG}"""\n',
        "toy/_vendor/other.py": f'"""Of another package. {LONG}"""\n',
        "toy/old.py": f'"""Not of this Python. {LONG}"""\nprint "x"\n',
        "toy/latin.py": f'# coding: latin-1\n"""Caf\xe9. {LONG}"""\n'.encode("latin-1"),
        "toy/notes.txt": f'"""No Python. {LONG}"""\n',
        "toy/contested.py": f'"""It is here as well. {LONG}"""\n',
    },
    "other-one": {
        "other_one.py": f'"""{SHARED}"""\ndef own():\n    """Be its own. {LONG}"""\n',
        "other_tests.py": f'"""A test. {LONG}"""\n',
    },
    "unlocked": {"unlocked.py": f'"""The lock does not name it. {LONG}"""\n'},
}
AREA = """# in a unit of its own
if self.flat:
    raise ValueError("no area")
return self.width * self.height"""
EXPECTED = {
    DocString(f"The package itself. {LONG}", "toy", "module", "toy", False, ""),
    DocString(f"The module of shapes.\n\n{LONG}", "toy", "module", "toy.shapes", False, ""),
    DocString(
        f"A shape.\n\n    Indented by four. {LONG}\nAt the margin.", "toy", "class", "toy.shapes.Shape", False, ""
    ),
    DocString(f"Compute the area. {LONG}", "toy", "function", "toy.shapes.Shape.area", True, AREA),
    DocString(
        f"Wait for it. {LONG}",
        "toy",
        "function",
        "toy.shapes.Shape.wait",
        False,
        'def inner():\n    raise ValueError("of the function within")\nreturn inner',
    ),
    DocString(f"Stand in for what is missing. {LONG}", "toy", "function", "toy.shapes.fallback", False, ""),
    DocString(f"Be chosen. {LONG}", "toy", "function", "toy.shapes.chosen", True, ""),
    DocString(f"Be within. {LONG}", "toy", "class", "toy.shapes.outer.Within", False, ""),
    DocString(f"Caf\xe9. {LONG}", "toy", "module", "toy.latin", False, ""),
    DocString(f"It is here as well. {LONG}", "toy", "module", "toy.contested", False, ""),
    DocString(
        SHARED,
        "toy",
        "function",
        "toy.shapes.outer",
        True,
        f'class Within:\n    """Be within. {LONG}"""\nraise ValueError("after it")',
    ),
    DocString(f"Be its own. {LONG}", "other-one", "function", "other_one.own", False, ""),
}


def install(site, package, files):
    """Write a package and what an installer writes beside it."""
    lines = []
    for name, text in files.items():
        content = text if isinstance(text, bytes) else text.encode()
        (site / name).parent.mkdir(parents=True, exist_ok=True)
        (site / name).write_bytes(content)
        lines.append(f"{name},sha256={hashlib.sha256(content).hexdigest()},{len(content)}\n")
    info = site / f"{package.replace('-', '_')}-1.0.dist-info"
    info.mkdir(exist_ok=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    (info / "RECORD").write_text("".join(lines) + f"{info.name}/METADATA,,\n{info.name}/RECORD,,\n../bin/toy.py,,\n")


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A folder of packages, and a lock that names two of them and one that is not installed."""
    folder = tmp_path / "site"
    for package, files in FILES.items():
        install(folder, package, files)
    (tmp_path / "requirements.lock").write_text("toy==1.0\nmissing-one==3\nOther_One==1.0\n")
    monkeypatch.syspath_prepend(folder)
    with project_root_at(tmp_path):
        yield folder


def test_each_docstring_with_what_the_source_says_of_it(site):
    found = list(docstrings())
    assert set(found) == EXPECTED and len(found) == len(EXPECTED)
    assert set(docstrings("toy")) == {one for one in EXPECTED if one.package == "toy"}


def test_a_text_belongs_to_the_first_package_of_the_lock(site):
    (site.parent / "requirements.lock").write_text("other-one==1.0\ntoy==1.0\n")
    (owner,) = [one for one in docstrings() if one.text == SHARED]
    assert (owner.package, owner.kind) == ("other-one", "module")
    assert SHARED in [one.text for one in docstrings("toy")]


def test_the_order_is_that_of_the_texts_whatever_else_is_installed(site):
    texts = [one.text for one in docstrings()]
    assert texts == sorted(texts, key=lambda text: hashlib.sha256(text.encode()).hexdigest())
    one = [text for text in (one.text for one in docstrings("other-one")) if text != SHARED]
    assert [text for text in texts if text in one] == one


def test_files_are_parsed_once_and_again_when_they_change(site, monkeypatch):
    first, key = list(docstrings()), documentation_key("all")
    with monkeypatch.context() as patched:
        patched.setattr(documentation, "_parsed", None)
        assert list(docstrings()) == first and documentation_key("all") == key
    install(site, "other-one", {"other_one.py": f'"""Rewritten. {LONG}"""\n'})
    assert documentation_key("all") != key and documentation_key("toy") != documentation_key("other-one")
    assert [one.text for one in docstrings("other-one")] == [f"Rewritten. {LONG}"]


def test_a_key_of_activations_says_what_is_installed(site):
    text = TextRef("documentation", "all")
    before = text_key(text)
    assert before["name"] == "all" and text_key(text) == before
    install(site, "other-one", {"other_one.py": f'"""Rewritten. {LONG}"""\n'})
    assert text_key(text) != before and text_key(replace(text, name="toy")) == text_key(TextRef("documentation", "toy"))


def test_a_file_that_is_gone_has_no_docstrings(site):
    (site / "toy/shapes.py").unlink()
    assert {one.name for one in docstrings("toy")} == {"toy", "toy.latin", "toy.contested"}


@pytest.mark.parametrize(
    ("lock", "name", "message"),
    [
        (None, "all", "requirements.lock does not exist: expected the root of a checkout"),
        ("toy==1.0\n", "python", "unknown package 'python': expected one of requirements.lock, or 'all'"),
        ("toy==1.0\n", "unlocked", "unknown package 'unlocked': expected one of requirements.lock, or 'all'"),
        ("missing-one==3\n", "missing-one", "package 'missing-one' is installed with Python files and"),
        ("missing-one==3\n", "all", "no package of requirements.lock is installed with Python files and"),
    ],
)
def test_what_is_not_there(site, lock, name, message):
    (site.parent / "requirements.lock").unlink()
    if lock:
        (site.parent / "requirements.lock").write_text(lock)
    with pytest.raises(ValueError, match=message):
        list(docstrings(name))


def test_a_pair_reads_them_with_every_tenth_left_out(site):
    (site.parent / "mine.yml").write_text(
        json.dumps(
            {
                "name": "mine",
                "a": {"model": "embedded:tiny-a", "layer": 1},
                "b": {"model": "embedded:tiny-b"},
                "text": {"source": "documentation", "name": "all"},
            }
        )
    )
    pair, texts = load_pair(site.parent / "mine.yml"), [one.text for one in docstrings()]
    assert list(read_documents(pair.train)) == texts[:9] + texts[10:]
    assert list(read_documents(pair.evaluation)) == texts[9:10]
    assert list(read_documents(TextRef("documentation", "all", skip=3, take=4))) == texts[3:7]
    assert list(read_documents(TextRef("documentation", "toy"))) == [one.text for one in docstrings("toy")]
    with pytest.raises(ValueError, match="no documents in documentation source 'all' after skipping 99"):
        list(read_documents(TextRef("documentation", "all", skip=99)))


def test_an_installed_package_says_what_its_objects_say(tmp_path):
    import filelock

    version = importlib.metadata.version("filelock")
    (tmp_path / "requirements.lock").write_text(f"filelock=={version}\n")
    with project_root_at(tmp_path):
        found = {one.name: one for one in docstrings("filelock")}
    assert len(found) > 10 and {one.package for one in found.values()} == {"filelock"}
    for owner in (filelock.BaseFileLock, filelock.Timeout):
        for name in vars(owner):
            value = inspect.getattr_static(owner, name)
            said = inspect.cleandoc(getattr(value, "__doc__", None) or "") if inspect.isfunction(value) else ""
            if len(said) >= 80:
                one = found[f"{owner.__module__}.{owner.__qualname__}.{name}"]
                assert one.text == said and one.kind == "function"
    assert found["filelock._api.BaseFileLock.acquire"].raises
