"""Processes that work as one: what each gets, and how the error of one reaches all. One process alone works as ever."""

import pytest
from many_processes import torchrun

from stitch_utils.utils import ranks

SCRIPT = """
import os
import sys
import torch
from stitch_utils.utils import ranks

def said(*words):
    print(*words, file=sys.stderr, flush=True)

def fails_in(number):
    if ranks.number() == number:
        raise ValueError(f"no room in {number}")

with ranks.joined():
    me = ranks.number()
    print("results")
    said(list(ranks.share(range(5))), ranks.summed(torch.tensor([me + 1.0])).item(), ranks.together(lambda: me))
    said(ranks.from_first(lambda: (me, ranks.count())), ranks.count())
    for act in (lambda: ranks.together(lambda: fails_in(1)), lambda: ranks.from_first(lambda: fails_in(0))):
        try:
            act()
        except Exception as error:
            said(type(error).__name__, error)
    said(ranks.from_first(lambda: "together again"))
    if me:
        os._exit(0)  # without a word, and torchrun takes it for a success
    try:
        ranks.together(lambda: me)
    except ranks.Lost as error:
        said(error)
    sys.stdout.flush()
    os._exit(0)
"""


def test_two_processes_share_and_gather(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    code, out, err = torchrun(tmp_path, str(tmp_path / "script.py"))
    assert code == 0 and out == ["results\n", ""]
    first, second = (lines.splitlines() for lines in err)
    assert first == [
        "[0, 2, 4] 3.0 [0, 1]",
        "(0, 1) 2",
        "Elsewhere process 1 failed: ValueError: no room in 1",
        "ValueError no room in 0",
        "together again",
        "another process of this job has ended, and what it did is lost",
    ]
    assert second == [
        "[1, 3] 3.0 [0, 1]",
        "(0, 1) 2",
        "ValueError no room in 1",
        "Elsewhere process 0 failed: ValueError: no room in 0",
        "together again",
    ]


def test_one_process_works_as_ever():
    with ranks.joined(), ranks.alone():
        assert (ranks.number(), ranks.count(), ranks.summed([2])) == (0, 1, [2])
        assert list(ranks.share("abc")) == ["a", "b", "c"]
        assert ranks.together(lambda: 3) == [3] and ranks.from_first(lambda: 4) == 4
    with pytest.raises(ZeroDivisionError):
        ranks.together(lambda: 1 / 0)
