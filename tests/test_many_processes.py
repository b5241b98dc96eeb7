"""Two processes that `torchrun` starts give the moments, the stitch and the curves of one, and nothing half-made."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from many_processes import torchrun
from toy_book import call_here, project_root_at

from stitch_utils.saes.pair import sweep_saes
from stitch_utils.stitching.pair import StitchedPair
from stitch_utils.stitching.stitch import Stitch
from stitch_utils.utils.files import is_intact

ONE, TWO = "one", "two"  # roots: what one process makes, and what two make


def assert_close(ours, theirs):
    assert (ours - theirs).norm() <= 1e-6 * theirs.norm()


@pytest.fixture
def file(small_pair, tmp_path):
    """A pair whose ridge is chosen by folds of the documents, and which leaves outliers out; roots to run it in."""
    for root in (ONE, TWO):
        (tmp_path / root / "book").mkdir(parents=True)
    return small_pair(outliers={"beyond": 1.2}, sizes={"sae_latents": 16, "sae_sweep_steps": 6})


def moments_in(root, file):
    with project_root_at(root):
        stitched = StitchedPair.open(file, "smoke")
        (path,) = (root / "artifacts" / "mine").glob("moments-*")
        assert is_intact(path)
        return stitched.moments  # read, as the name of the file is what made it


def test_two_processes_fit_and_train_as_one_does(file, tmp_path):
    fit = ("fit", "--pair", str(file), "--scale", "smoke")
    code, (out, other), err = torchrun(tmp_path / TWO, "-m", "stitch_utils", *fit)
    assert (code, err) == (0, ["", ""])
    code, lines, err = call_here(tmp_path / ONE, *fit)
    assert (code, err) == (0, "")
    assert other == "" and out.splitlines()[:-1] == lines[:-1], "the first prints what one process prints"
    one, two = (moments_in(tmp_path / root, file) for root in (ONE, TWO))
    assert (two.count, two.left_out) == (one.count, one.left_out) and one.left_out
    assert_close(two.mean, one.mean)
    assert_close(two.scatter, one.scatter)
    first, second = (Stitch.load(tmp_path / root / "artifacts" / "mine" / "stitch.safetensors") for root in (ONE, TWO))
    for name in ("P_up", "b_up", "P_down", "b_down"):
        assert_close(getattr(second, name), getattr(first, name))

    # Sweeps start from one stitch, since the last bits of a sum go with the number of processes.
    shutil.rmtree(tmp_path / ONE / "artifacts")
    shutil.copytree(tmp_path / TWO / "artifacts", tmp_path / ONE / "artifacts")
    code, (out, other), err = torchrun(
        tmp_path / TWO, "-m", "stitch_utils", "sweep", "--pair", str(file), "--scale", "smoke", "--seeds", "1"
    )
    assert (code, other, err) == (0, "", ["", ""])
    assert [line.split(" of the variance")[0].split(" explain")[0] for line in out.splitlines()[:2]] == [
        "3 SAEs of A",
        "13 SAEs of B",
    ]
    sweeps = []
    for root in (TWO, ONE):
        with project_root_at(tmp_path / root):
            stitched = StitchedPair.open(file, "smoke")
            sweeps.append(sweep_saes(stitched, widths=stitched.sizes.sweep_widths, seeds=range(1)))
    components = (np.array(list(sweep.components.values())) for sweep in sweeps)
    np.testing.assert_allclose(next(components), next(components), rtol=1e-6)
    for ours, theirs in zip(*(sweep[:2] for sweep in sweeps)):
        assert ours.keys() == theirs.keys()
        for key, curve in ours.items():
            for field, value in curve._asdict().items():
                if field != "seconds":
                    np.testing.assert_allclose(value, getattr(theirs[key], field), rtol=1e-6, err_msg=f"{key}: {field}")
    two, one = (
        sorted((tmp_path / root / "artifacts" / "mine").rglob("sae_weights.safetensors")) for root in (TWO, ONE)
    )
    assert len(two) == 16 and [path.parent.name for path in two] == [path.parent.name for path in one]


def test_a_process_that_dies_leaves_nothing_that_is_trusted(file, tmp_path):
    fit = ("fit", "--pair", str(file), "--scale", "smoke")
    root, script = tmp_path / TWO, Path(__file__).with_name("many_processes.py")
    code, out, err = torchrun(root, str(script), *fit)
    assert code != 0 and out == ["", ""] and err[1] == ""
    assert err[0] in (
        "",
        "stitch-book: another process of this job has ended, and what it did is lost; nothing "
        + "half-made is kept, so run the same again\n",
    )
    kept = [path.name for path in (root / "artifacts").rglob("*") if path.is_file()]
    assert kept == [], "moments and stitch are written once all processes have added theirs"
    for again in (root, tmp_path / ONE):
        assert call_here(again, *fit)[0] == 0
    first, second = (Stitch.load(path / "artifacts" / "mine" / "stitch.safetensors") for path in (root, tmp_path / ONE))
    assert torch.equal(first.P_up, second.P_up)
