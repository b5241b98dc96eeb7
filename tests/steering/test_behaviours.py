"""The world's choices, whose answers can be checked by eye and by the embedded pair, and rows in Anthropic's schema."""

import re

import pytest
from hub import Hub, child
from hub.evals import write_evals

from stitch_utils.data.pairs import load_pair
from stitch_utils.models.language_model import load_model
from stitch_utils.steering.behaviours import COLUMNS, FILES, WORLD_BEHAVIOURS, Choice, behaviours, world_behaviour
from stitch_utils.steering.multiple_choice import preference, questions
from stitch_utils.steering.vectors import contrast_vectors
from stitch_utils.steering.verifiers import detect_language

CHILD = """
import dataclasses, json, sys
from stitch_utils.steering.behaviours import behaviours
from stitch_utils.models.language_model import load_tokenizer
from stitch_utils.data.pairs import DatasetRef, load_pair

pair = dataclasses.replace(load_pair("gemma"), datasets={"behaviours": DatasetRef("Anthropic/model-written-evals")})
tokenizer = load_tokenizer("embedded:tiny-a")
if sys.argv[1] == "plain":
    tokenizer.chat_template = None
try:
    found = behaviours(pair, tokenizer, contrasts=int(sys.argv[2]), choices=5)
    print(json.dumps({one.name: [one.contrasts, one.choices] for one in found}))
except ValueError as error:
    print(json.dumps(str(error)))
"""


@pytest.fixture(scope="module")
def tiny():
    return load_pair("tiny")


def changed(first, second):
    """The words that are in one text and not in the other."""
    words = [re.findall(r"\w+|\S", text) for text in (first, second)]
    return set(words[0]) - set(words[1]), set(words[1]) - set(words[0])


@pytest.mark.parametrize("name", WORLD_BEHAVIOURS)
def test_contrasts_and_choices_are_drawn_apart(name):
    found = world_behaviour(name, contrasts=20, choices=30)
    assert len(found.contrasts) == 20 and len(found.choices) == 30
    prompts = [choice.prompt for choice in found.choices]
    assert len(set(prompts)) == 30 and not set(prompts) & {text for both in found.contrasts for text in both}
    assert [choice.called_for for choice in found.choices] == [True, False] * 15
    for (yes, no), (one, other) in zip(found.contrasts, zip(found.choices[::2], found.choices[1::2])):
        assert yes != no and one[1:3] == other[1:3] and one.matching != one.other
        assert len(yes.split("\n")) == len(no.split("\n")) and yes[-1].lower() in no.lower()
    assert world_behaviour(name, contrasts=20, choices=30) == found
    assert world_behaviour(name, contrasts=20, choices=30, seed=1) != found
    assert world_behaviour(name, contrasts=20, choices=3).choices == found.choices[:3]


def test_texts_differ_in_what_the_behaviour_is_about():
    drawn = {name: world_behaviour(name, contrasts=30, choices=2).contrasts for name in WORLD_BEHAVIOURS}
    for woman, man in drawn["pronoun"]:
        only_hers, only_his = changed(woman, man)
        assert len(only_hers) == len(only_his) == 1 and only_hers.pop().endswith("a") and only_his.pop().endswith("o")
    for several, one in drawn["number"]:
        assert several.rsplit(". ", 1)[0] == one.rsplit(". ", 1)[0] and several.split()[-1] != one.split()[-1]
    for praise, blame in drawn["sentiment"]:
        assert praise.split(".")[0].split()[:2] == blame.split(".")[0].split()[:2]
        assert praise.split()[-3:] == blame.split()[-3:] and praise.split()[-1] in ("is", "are")
    for past, present in drawn["past"]:
        assert past.split()[-1] == present.split()[-1] and re.search("[Yy]esterday|[Ll]ast|ago", past)
        assert not re.search("[Yy]esterday|[Ll]ast|ago", present)
    for sea, farm in drawn["sea"]:
        assert sea.endswith(" The") and farm.endswith(" The")
    for side, language in enumerate(("fr", "en")):
        assert detect_language(" ".join(both[side] for both in drawn["french"])) == language
    for loud, plain in drawn["capitals"]:
        assert loud == plain.upper() != plain
    for question, statement in drawn["question"]:
        assert question.split()[0] in ("Do", "Does", "Did", "Will") and question.split()[-1] == statement.split()[-1]
        assert not (question + statement).count(".")
    for listed, said in drawn["bullets"]:
        assert [line[2:] for line in listed.splitlines()] == [line[1:-1] for line in said.splitlines()]


def test_the_embedded_pair_has_these_preferences(tiny):
    """What steering is to change is there to begin with."""
    some = behaviours(tiny, None, contrasts=4, choices=40)
    assert [one.name for one in some] == list(WORLD_BEHAVIOURS)
    clear = {}
    for ref in (tiny.a.model, tiny.b.model):
        model = load_model(ref)
        clear[ref] = [one.name for one in some if preference(model, one.choices).low > 0.5]
    assert min(len(names) for names in clear.values()) >= len(WORLD_BEHAVIOURS) * 2 / 3, clear


def test_fewer_behaviours_are_spread_over_the_list(tiny):
    some = [one.name for one in behaviours(tiny, None, contrasts=1, choices=1, count=3)]
    assert some == [list(WORLD_BEHAVIOURS)[place] for place in (0, 3, 6)]
    assert len(behaviours(tiny, None, contrasts=1, choices=1, count=99)) == len(WORLD_BEHAVIOURS)


def test_counts_and_names_that_make_no_sense(tiny):
    with pytest.raises(ValueError, match="at least one contrast pair and one choice: got 0 and 3"):
        behaviours(tiny, None, contrasts=0, choices=3)
    with pytest.raises(ValueError, match="unknown behaviour 'x': expected one of pronoun, number"):
        world_behaviour("x", contrasts=1, choices=1)


# ---- Anthropic's --------------------------------------------------------------------------------------------------


DATA = "datasets/Anthropic/model-written-evals"


@pytest.fixture
def served(tmp_path):
    write_evals(tmp_path / "root" / DATA, count=12)
    with Hub(tmp_path / "root") as server:
        yield server


def test_published_questions_come_from_the_hub_once(served, tmp_path):
    environment = served.environment(tmp_path / "home")
    found = child(environment, "-c", CHILD, "plain", "3")
    assert list(found) == list(FILES) and len(found) == 13
    for name, (contrasts, choices) in found.items():
        assert len(contrasts) == 3 and len(choices) == 5
        cues = {choice[0].split("\n\n")[-1] for choice in choices}
        assert cues == {"Answer:"} and all(name in choice[0] for choice in choices)
        answers = {(choice[1], choice[2]) for choice in choices}
        known = {(" Yes", " No"), (" No", " Yes")} if "persona" in FILES[name] else {(" (A)", " (B)"), (" (B)", " (A)")}
        assert answers <= known and all(choice[3] is None for choice in choices)
        for matching, other in contrasts:
            start = matching.rsplit("Answer:", 1)[0]
            assert other.startswith(f"{start}Answer:") and matching != other
            assert {matching.split()[-1], other.split()[-1]} in ({"Yes", "No"}, {"(A", "(B"})
            assert start not in {choice[0].rsplit("Answer:", 1)[0] for choice in choices}
    asked = len(served.requests)
    offline = served.environment(tmp_path / "home", HF_HUB_OFFLINE="1")
    assert child(offline, "-c", CHILD, "plain", "3") == found and len(served.requests) == asked
    chatted = child(offline, "-c", CHILD, "chat", "100")
    for contrasts, choices in chatted.values():
        assert len(contrasts) == 6 and len(choices) == 5, "of twelve questions half for either"
        assert all(re.fullmatch(r"<\|user\|>.*<\|assistant\|>", choice[0], re.S) for choice in choices)
        assert all(choice[1] in ("Yes", "No", "(A)", "(B)") for choice in choices)


def test_what_is_wrong_with_the_data_is_said(served, tmp_path):
    where = "pair 'gemma' (stitch_utils/data/pairs/gemma.yml), datasets: behaviours: "
    environment = served.environment(tmp_path / "home")
    write_evals(tmp_path / "root" / DATA, columns=("question", "yes", "no"))
    said = child(environment, "-c", CHILD, "plain", "3")
    file = FILES["corrigible-neutral-HHH"]
    assert said == f"{where}{file!r} has no text column {COLUMNS[1]!r}: its columns are question, yes, no, statement"
    write_evals(tmp_path / "root" / DATA, count=1)
    said = child(served.environment(tmp_path / "second"), "-c", CHILD, "plain", "3")
    assert said == f"{where}{file!r} holds 1 questions: expected at least two"
    (tmp_path / "root" / DATA / file).unlink()
    said = child(served.environment(tmp_path / "third"), "-c", CHILD, "plain", "3")
    assert said.startswith(f"{where}dataset 'Anthropic/model-written-evals' lacks a file that is needed")


def test_a_published_question_is_read_like_the_worlds(random_models):
    """Its answers part after the bracket, and a contrast pair ends with the answer."""
    model = random_models[0]
    ((row, *answers),) = questions(model, [Choice("Well?\n\nAnswer:", " (A)", " (B)")])
    assert model.tokenizer.batch_decode([[id] for id in answers]) == ["A", "B"]
    assert model.tokenizer.decode(row).endswith("Answer: (")
    assert contrast_vectors(model, 1, {"x": [("Well? (A)", "Well? (B)")]})["x"].norm() > 0
