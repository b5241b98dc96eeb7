"""Held-out documents that stand in the training text, too, are counted."""

import json

import pytest

from stitch_utils.data.pairs import TextRef
from stitch_utils.data.repeats import count_repeats


@pytest.fixture
def text(tmp_path):
    def write(name, documents):
        path = tmp_path / f"{name}.jsonl"
        path.write_text("\n".join(json.dumps({"text": document}) for document in documents))
        return TextRef("files", str(path))

    return write


TRAIN = [f"Document {number} is here." for number in range(30)]


@pytest.mark.parametrize(
    ("held_out", "limits", "expected"),
    [
        (["Another one.", "Document 3 was here."], {}, (0, 2)),
        (["Another one.", TRAIN[3], TRAIN[29]], {}, (2, 3)),
        ([TRAIN[3], TRAIN[3], "Another one."], {}, (2, 3)),
        ([" Document  3\nis here. "], {}, (1, 1)),
        ([TRAIN[3], TRAIN[20]], {"n_train": 10}, (1, 2)),
        ([TRAIN[3], TRAIN[20]], {"n_bytes": 10 * len(TRAIN[3])}, (1, 2)),
        (["Another one.", TRAIN[3]], {"n_held_out": 1}, (0, 1)),
    ],
)
def test_repeats_are_counted(text, held_out, limits, expected):
    found = count_repeats(text("train", TRAIN), text("held_out", held_out), **{"n_held_out": 9} | limits)
    assert found == expected
