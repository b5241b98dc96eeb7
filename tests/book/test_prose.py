"""The prose of the chapters: no sentence is long, and no exercise lacks its solution."""

import re
from pathlib import Path

import jupytext
import pytest

BOOK = Path(__file__).resolve().parents[2] / "book"
CHAPTERS = sorted(path.stem for path in BOOK.glob("*.md"))
LONGEST = 35  # words of a sentence
WITH_PROSE = {"admonition", "dropdown", "hint", "important", "note", "seealso", "tip", "warning"}  # directives
# After these a full stop ends no sentence; after "etc." it ends one where the next word is capitalised.
ABBREVIATIONS = {"al", "app", "cf", "ch", "e.g", "eq", "eqs", "fig", "figs", "i.e", "no", "p", "resp", "sec", "vs"}
STOP = re.compile(r"""[.!?]["')\]”’]*\s+""")


def paragraphs(markdown: str) -> list[str]:
    """Split a cell into paragraphs and list items, without headings, tables, code, displayed equations and options."""
    found, lines = [[]], []
    fences: list[tuple[str, bool]] = []  # the open ones, and whether they hold prose
    for line in re.sub(r"\$\$.*?\$\$", " ", markdown, flags=re.S).splitlines():
        stripped = line.strip()
        if fences and set(stripped) == set(fences[-1][0]) and len(stripped) >= len(fences[-1][0]):
            fences.pop()
            lines.append("")
        elif fences and not fences[-1][1]:
            continue
        elif mark := re.match(r"(`{3,}|~{3,}|:{3,})\s*(?:\{([\w:-]+)\})?", stripped):
            fences.append((mark[1], mark[2] in WITH_PROSE))
            lines.append("")
        elif fences and re.match(r":[\w-]+:", stripped):
            continue
        elif re.match(r"(#{1,6} |\||\+\+\+|\(.*\)=$)", stripped):
            lines.append("")
        else:
            lines.append(line)
    for line in lines:
        if not line.strip() or re.match(r"\s*([-*+]|\d+[.)])\s", line):
            found.append([])
        found[-1].append(re.sub(r"^\s*([-*+>]|\d+[.)])\s+", "", line).strip())
    return [text for part in found if (text := plain(" ".join(part)))]


def plain(text: str) -> str:
    """Reduce inline markup to words: a formula, a piece of code or a reference counts as one, a citation as none."""
    text = re.sub(r"\{cite(:\w+)?\}`[^`]*`", "", text)
    text = re.sub(r"\{(?:doc|ref|term)\}`([^`<]*?)\s*(?:<[^>]*>)?`", r"\1", text)
    text = re.sub(r"(?:\{[\w:-]+\})?(`+)[^`]+\1", "code", text)
    text = re.sub(r"\$[^$]+\$", "formula", text)
    text = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", text)
    text = re.sub(r"</?[a-zA-Z][^>]*>|<https?:[^>]*>", " ", text)
    return re.sub(r"\s+", " ", re.sub(r"[*_]{1,3}(?=\S)|(?<=\S)[*_]{1,3}", "", text)).strip()


def sentences(text: str) -> list[str]:
    """Split plain text where a full stop, a question mark or an exclamation mark ends a sentence."""
    found, start = [], 0
    for stop in STOP.finditer(text):
        words = text[start : stop.start()].split()
        last = re.sub(r"^\W+", "", words[-1]).lower() if words else ""
        goes_on = last == "etc" and not text[stop.end() : stop.end() + 1].isupper()
        if text[stop.start()] == "." and (last in ABBREVIATIONS or goes_on):
            continue
        found.append(text[start : stop.end()].strip())
        start = stop.end()
    return [*found, text[start:].strip()] if text[start:].strip() else found


def count_words(sentence: str) -> int:
    return sum(bool(re.search(r"\w", word)) for word in sentence.split())


def prose(chapter: str) -> list[str]:
    """Return the sources of a chapter's markdown cells."""
    return [cell.source for cell in jupytext.read(BOOK / f"{chapter}.md").cells if cell.cell_type == "markdown"]


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_no_sentence_is_long(chapter):
    found = [one for cell in prose(chapter) for part in paragraphs(cell) for one in sentences(part)]
    assert found
    long = [f"{chapter}.md, {count_words(one)} words: {one}" for one in found if count_words(one) > LONGEST]
    assert not long, "\n".join(long)


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_every_exercise_has_a_folded_solution(chapter):
    _, heading, section = "\n".join(prose(chapter)).partition("\n## Exercises\n")
    if heading:
        assert re.findall(r"^\*\*(One minute|Ten minutes|One hour)", section, flags=re.M) == [
            "One minute",
            "Ten minutes",
            "One hour",
        ]
        assert len(re.findall(r"^[:`]{3,}\{dropdown\} Solution$", section, flags=re.M)) == 3
        assert "\n## " not in section


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("One. Two! Three? Four", ["One.", "Two!", "Three?", "Four"]),
        ("See App. B and Eq. 3, Eqs. 4 and 5, or Fig. 2. Then stop.", None),
        ("Features, e.g. those of Chen et al. 2025, i.e. latents. They differ.", None),
        ("A loss of 3.5 nats at 1e-3. It is 0.2 lower.", None),
        ("It leads to B. A is smaller.", None),
        ("(It is in brackets.) It is not.", None),
        ("Stories, lists, etc. are texts. So are lists, etc. They differ.", 3),
        ("It ends in the middle (App. A.1). It goes on.", None),
        ("", []),
    ],
)
def test_sentences_end_at_stops_and_not_at_abbreviations(text, expected):
    found = sentences(text)
    assert " ".join(found) == text
    if isinstance(expected, list):
        assert found == expected
    else:
        assert len(found) == (expected or 2)


def test_what_is_no_prose_is_not_counted():
    cell = """# A title. With a stop.

A *first* sentence with $x = a + b$, `code of four words`, {cite}`one2025` and [a link](https://example.org/a b)
goes on {doc}`to a page <page>`

$$
x = 1. \\text{Not a word of it}
$$

| a | table. |
|---|---|

- an item
- another
  of two lines

```python
print("code. More")
```

:::{dropdown} Solution
:open:
The **answer**.

```bash
a command
```
:::

````{note}
A note.
````

```{raw} html
<p>Raw.</p>
```
"""
    first = "A first sentence with formula, code, and a link goes on to a page"
    assert paragraphs(cell) == [first, "an item", "another of two lines", "The answer.", "A note."]
    assert count_words(first) == 14
    assert count_words("A → B – and $") == 3


def test_a_long_sentence_is_found(monkeypatch, tmp_path):
    monkeypatch.setitem(globals(), "BOOK", tmp_path)
    (tmp_path / "words.md").write_text(f"# Words\n\n{'word ' * LONGEST}\n")
    test_no_sentence_is_long("words")
    (tmp_path / "words.md").write_text(f"# Words\n\nShort. {'word ' * LONGEST}word.\n")
    with pytest.raises(AssertionError, match=r"words\.md, 36 words: word word"):
        test_no_sentence_is_long("words")
