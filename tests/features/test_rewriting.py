"""Versions of sentences: what breaks the structure, which are kept, and that a stopped run goes on as if it had not."""

import dataclasses
import json

import numpy as np
import pytest
from hub import child

from stitch_utils.data.embedded.marked import marked_groups
from stitch_utils.data.embedded.world import augmented_sentences
from stitch_utils.data.pairs import load_pair
from stitch_utils.data.text import read_documents
from stitch_utils.features import rewriting as augmented_text
from stitch_utils.features.rewriting import (
    _answer,
    augmented_groups,
    broken_rules,
    sentences,
    show_augmentations,
    world_stream,
)
from stitch_utils.models.generation import Response
from stitch_utils.utils.stats import resampled_counts

ORIGINAL = "When the rain had stopped, two farmers carried the ladder back to the barn."
VERSIONS = {
    "When the vote had failed, two lawyers mailed the contract back to the bank.": (),
    "": ("empty",),
    " \n": ("empty",),
    "When the vote had failed two lawyers mailed the contract back to the bank.": ("punctuation",),
    "When the vote had failed, two lawyers mailed a contract back to the bank.": ("function words",),
    "When the vote had failed, two old bald lawyers mailed the contract back to the bank.": ("length",),
    "When the rain had failed, two farmers mailed the ladder back to the bank.": ("content words",),
    "After a vote, lawyers mailed contracts!": ("punctuation", "function words", "length"),
}


@pytest.mark.parametrize(("version", "rules"), VERSIONS.items())
def test_rules_that_a_version_breaks(version, rules):
    assert broken_rules(ORIGINAL, version) == rules


def test_how_much_may_change(monkeypatch):
    longer = "When the vote had failed, two old bald lawyers mailed the contract back to the bank."
    monkeypatch.setattr(augmented_text, "TOLERANCE", 0.2)
    assert broken_rules(ORIGINAL, longer) == ()
    same = "When the vote had failed, two lawyers mailed the ladder back to the bank."
    assert broken_rules(ORIGINAL, same) == ("content words",)
    monkeypatch.setattr(augmented_text, "REPEATED", 0.4)
    assert broken_rules(ORIGINAL, same) == ()
    monkeypatch.undo()
    # Curly marks are straight ones, and what stands within a word is a part of it.
    assert broken_rules("“I don’t see it,” he said.", '"I don\'t hear it," he claimed.') == ()
    assert broken_rules("The so-called bus stops here.", "The well-known pen writes here.") == ()


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ('Output: "The cow sings."\n\nI kept the form.', "The cow sings."),
        ("\n  The cow sings.  \nThe pig dances.", "The cow sings."),
        ('"Sing," said the cow.', '"Sing," said the cow.'),
        ("“The cow sings.”", "The cow sings."),
        ("\n\n", ""),
    ],
)
def test_the_answer_of_a_response(text, answer):
    assert _answer(text) == answer


def test_the_world_has_versions_of_its_own():
    pair = load_pair("tiny")
    found = augmented_groups(pair, 40, 3)
    assert found.groups == augmented_sentences(world_stream(0), 40, 3) and found.source == "world"
    assert found.groups == [[one.text for one in group] for group in marked_groups(world_stream(0), 40, 3)]
    rules = [broken_rules(group[0], version) for group in found.groups for version in group[1:]]
    kept = [rules[i : i + 3].count(()) for i in range(0, 120, 3)]
    assert (found.versions, found.kept) == (120, kept) and 0 < sum(kept) < 120
    draws = resampled_counts(40, 2) @ np.array(kept) / 120
    assert found.whole(2) == pytest.approx((sum(kept) / 120, *np.quantile(draws, (0.025, 0.975))))
    assert found.broken["function words"] == sum("function words" in one for one in rules) > 0
    assert found.broken["empty"] == 0

    assert found.clean == [rules[i : i + 3] == [()] * 3 for i in range(0, 120, 3)] and 0 < sum(found.clean) < 40
    other = augmented_groups(pair, 40, 3, seed=1)
    assert other.groups != found.groups

    table = show_augmentations(found.groups)
    assert list(table["group"]) == [1] * 4 + [2] * 4 and list(table["version"]) == [1, 2, 3, 4] * 2
    assert list(table["sentence"]) == found.groups[0] + found.groups[1]


# ---- versions by a model -------------------------------------------------------------------------------------------


@pytest.fixture
def pair(small_pair, random_folders):
    """A pair of random models, of which one is also to write the versions."""
    return load_pair(small_pair(augmenter={"model": str(random_folders / "a"), "dtype": "float32"}))


def by(pair, model):
    """The same with another model that writes."""
    return dataclasses.replace(pair, augmenter=dataclasses.replace(pair.augmenter, model=str(model)))


class Writer:
    """Stands in for `generate_texts`: what it writes depends on the prompts and the seed; it can be stopped."""

    def __init__(self):
        self.asked, self.stop_after = [], None

    def __call__(self, model, prompts, *, max_new_tokens, batch_size, temperature, seed, losses, title):
        if self.stop_after is not None and len(self.asked) >= self.stop_after:
            raise KeyboardInterrupt
        self.asked.append((len(prompts), seed))
        assert batch_size == len(prompts) and temperature == 1.0 and max_new_tokens > 8 and not losses
        texts = [prompt.rsplit('Input: "', 1)[1].split('"\nOutput:')[0] for prompt in prompts]
        return [Response(f'"{text} {seed}.{place}"', 0.0, 0.0, 1) for place, text in enumerate(texts)]


@pytest.fixture
def writer(monkeypatch):
    writer = Writer()
    monkeypatch.setattr(augmented_text, "generate_texts", writer)
    monkeypatch.setattr(augmented_text, "AT_ONCE", 3)
    return writer


def test_sentences_are_whole_and_of_different_documents(pair, monkeypatch):
    monkeypatch.setattr(augmented_text, "SHORTEST", 5)
    monkeypatch.setattr(augmented_text, "LONGEST", 8)
    found = [sentence for sentence, _ in zip(sentences(pair, 0), range(60))]
    documents = [text for text, _ in zip(read_documents(pair.evaluation), range(400))]
    places = [next(index for index, text in enumerate(documents) if sentence in text) for sentence in found]
    assert len(set(places)) > 50
    assert all(5 <= len(sentence.split()) <= 8 and sentence[-1] in '.!?"' for sentence in found)
    assert all(sentence[0].isupper() or sentence[0] == '"' for sentence in found)
    assert not any("\n" in sentence or ". " in sentence for sentence in found)
    again = [sentence for sentence, _ in zip(sentences(pair, 1), range(60))]
    assert again != found


def test_a_model_writes_versions_of_each_sentence(pair, writer):
    found = augmented_groups(pair, 7, 2)
    originals = [sentence for sentence, _ in zip(sentences(pair, 0), range(7))]
    assert [group[0] for group in found.groups] == originals and found.source == pair.augmenter.model
    assert {len(group) for group in found.groups} == {3} and (found.versions, found.kept) == (14, [0] * 7)
    assert all(version.startswith(group[0]) for group in found.groups for version in group[1:])
    assert [count for count, _ in writer.asked] == [6, 6, 6] and len({seed for _, seed in writer.asked}) == 3


def test_a_run_that_was_stopped_goes_on_where_it_was(pair, writer, tmp_path):
    expected = augmented_groups(pair, 8, 2)
    (path,) = (tmp_path / "artifacts" / "mine").glob("augmented-*.jsonl")
    assert [json.loads(line.split(" ", 1)[1]) for line in path.read_text().splitlines()] == expected.groups
    asked = writer.asked.copy()
    assert augmented_groups(pair, 8, 2) == expected and writer.asked == asked, "nothing is written twice"
    assert augmented_groups(pair, 5, 2).groups == expected.groups[:5] and writer.asked == asked

    path.unlink()
    writer.asked.clear()
    writer.stop_after = 1
    with pytest.raises(KeyboardInterrupt):
        augmented_groups(pair, 8, 2)
    lines = path.read_text().splitlines(keepends=True)
    assert len(lines) == 3
    path.write_text("".join(lines[:2]) + lines[2][:10])  # killed in the middle of a line
    writer.stop_after = None
    assert augmented_groups(pair, 8, 2) == expected
    assert writer.asked == [asked[0], *asked], "the batch that was cut is sampled again, as it was"


def test_what_makes_versions_names_their_file(pair, writer, tmp_path):
    def files():
        return set((tmp_path / "artifacts" / "mine").glob("augmented-*.jsonl"))

    augmented_groups(pair, 3, 2)
    first = files()
    augmented_groups(pair, 4, 2)
    assert files() == first, "more sentences go into the file of the first"
    augmented_groups(pair, 2, 2)  # in smaller batches
    augmented_groups(pair, 3, 2, seed=1)
    augmented_groups(pair, 3, 3)
    augmented_groups(by(pair, pair.b.model), 3, 2)
    assert len(files()) == 5


def test_sentences_without_enough_versions_are_left_out(pair, monkeypatch):
    monkeypatch.setattr(augmented_text, "AT_ONCE", 3)

    def write(model, prompts, **options):
        texts = [prompt.rsplit('Input: "', 1)[1].split('"\nOutput:')[0] for prompt in prompts]
        return [Response("" if place == 0 else text, 0.0, 0.0, 1) for place, text in enumerate(texts)]

    monkeypatch.setattr(augmented_text, "generate_texts", write)
    found = augmented_groups(pair, 6, 2)
    assert len(found.groups) == 4 and found.broken["empty"] == 2 and found.broken["content words"] == 10
    assert found.versions == 12 and found.kept == [0] * 6
    assert not any(found.clean)


def test_the_prompt_says_every_rule():
    """App. H.1: meaning, function words and each kind of mark, kinds of content words, grammar, nothing else said."""
    asked = augmented_text.INSTRUCTION.format(sentence="It {is} so.")
    rules = asked.split('Input: "')[0]
    for rule in (
        "nothing to do with",
        "function words",
        "commas",
        "full stops",
        "brackets",
        "dashes",
        "nothing else",
        "noun, verb, adjective",
        "entirely different area",
        "grammar",
        "correct",
        " -> ",
    ):
        assert rule in rules
    assert asked.count('Input: "') == 2 and asked.endswith('Input: "It {is} so."\nOutput:')


def test_a_model_without_a_chat_template_goes_on_with_the_text(pair, hub_root, monkeypatch):
    """Random weights write nonsense."""
    monkeypatch.setattr(augmented_text, "SHORTEST", 4)
    monkeypatch.setattr(augmented_text, "LONGEST", 6)
    found = augmented_groups(by(pair, hub_root / "models" / "openai-community/gpt2"), 1, 2)
    assert found.source.endswith("gpt2") and found.versions == 2
    ((original, first, second),) = found.groups
    assert len({original, first, second}) == 3


def test_a_chat_template_is_used_where_there_is_one(pair, hub_root, monkeypatch):
    asked = []

    def write(model, prompts, **options):
        asked.extend(prompts)
        return [Response("Some words.", 0.0, 0.0, 1) for _ in prompts]

    monkeypatch.setattr(augmented_text, "generate_texts", write)
    found = augmented_groups(by(pair, hub_root / "models" / "google/gemma-2-2b-it"), 1, 1)
    assert asked[0].startswith("<bos><start_of_turn>user\nRewrite a sentence")
    assert f'Input: "{found.groups[0][0]}"\nOutput:<end_of_turn>\n<start_of_turn>model' in asked[0]


TWICE = """
import json
from dataclasses import replace
from stitch_utils.features import rewriting as augmented_text
from stitch_utils.models.generation import Response
from stitch_utils.data.pairs import AugmenterRef, load_pair
from stitch_utils.utils.files import project_root

asked = []

def write(model, prompts, **options):
    asked.append(len(prompts))
    return [Response("Some words.", 0.0, 0.0, 1) for _ in prompts]

augmented_text.generate_texts = write
pair = replace(load_pair("tiny"), augmenter=AugmenterRef("openai-community/gpt2", dtype="float32"))
for _ in range(2):
    augmented_text.augmented_groups(pair, 2, 1)
files = sorted(path.name for path in project_root().rglob("augmented-*.jsonl"))
print(json.dumps({"asked": asked, "files": files}))
"""


def test_what_a_model_of_the_hub_wrote_is_found_again_after_it_was_fetched(hub, home, tmp_path):
    """Its commit is in the name of the file, and is unknown until something of it was fetched."""
    found = child(hub.environment(home) | {"STITCH_ROOT": str(tmp_path)}, "-c", TWICE)
    assert len(found["asked"]) == len(found["files"]) == 1


def test_a_model_that_is_not_there_is_named_with_the_pair(pair):
    with pytest.raises(ValueError, match=r"pair 'mine' \(.*\), augmenter: './nowhere' is no folder"):
        augmented_groups(by(pair, "./nowhere"), 2, 2)


def test_numbers_that_make_no_sense(pair):
    for count, k in ((0, 2), (2, 0)):
        with pytest.raises(ValueError, match=f"expected count >= 1 and k >= 1: got {count} and {k}"):
            augmented_groups(pair, count, k)
