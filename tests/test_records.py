"""The records of runs in book/recorded: whole, and what a small fit made again says where the weights are.

The fit reads less text than the recorded one did, so it may be worse, but not better beyond the intervals; what does
not depend on the stitch must be the same within them.
"""

import json
from pathlib import Path

import nbformat
import pytest
import yaml

from stitch_utils.book.recorded import LARGEST
from stitch_utils.data.pairs import load_pair
from stitch_utils.stitching.evaluation import measure_fidelity
from stitch_utils.stitching.pair import StitchedPair

ROOT = Path(__file__).parents[1]
RECORDS = sorted(path.parent for path in (ROOT / "book" / "recorded").glob("[!.]*/record.yml"))
HOSTS = {"a_to_b": "b", "b_to_a": "a"}

each_record = pytest.mark.parametrize("folder", RECORDS or [None], ids=lambda path: path.name if path else "none")


@pytest.fixture(autouse=True)
def _in_the_checkout(request, monkeypatch):
    if request.node.name.endswith("[none]"):
        pytest.skip("nothing is recorded in book/recorded")
    monkeypatch.chdir(ROOT)


def again(pair, **parameters):
    """The ids of Table 1 for a stitch that is fitted now, on the text of scale smoke, with their intervals."""
    stitched = StitchedPair.open(pair, "smoke", **parameters)
    stitched.harvest(anew=True)
    found = measure_fidelity(
        *stitched.models, *stitched.layers, {"stitch": stitched.stitch}, stitched.evaluation_batches()
    )
    numbers = {f"figure6.{stitched.name}.chosen_layer_b": stitched.layers[1]}
    for host in ("a", "b"):
        numbers |= found.cross_entropy("own", host).numbers(f"table1.{stitched.name}.{host}")
    for condition in HOSTS:
        numbers |= found.cross_entropy("stitch", condition).numbers(f"table1.{stitched.name}.{condition}")
    return numbers


def disagreements(pair, recorded, numbers):
    """The ids of which a record and numbers that were measured again say what cannot both be true."""
    layer = f"figure6.{pair}.chosen_layer_b"
    found = [layer] if recorded[layer] != numbers[layer] else []
    for host in ("a", "b"):
        id = f"table1.{pair}.{host}"
        if recorded[f"{id}.high"] < numbers[f"{id}.low"] or numbers[f"{id}.high"] < recorded[f"{id}.low"]:
            found.append(id)
    for condition, host in HOSTS.items():
        id = f"table1.{pair}.{condition}"
        nothing_carried = recorded[f"table1.{pair}.{host}_without_layer"]
        if numbers[f"{id}.high"] < recorded[f"{id}.low"] or not max(numbers[id], recorded[id]) < nothing_carried:
            found.append(id)
    return found


def is_at_hand(model):
    """Whether a model is a file or folder on this disk, or comes with the package."""
    return model.startswith("embedded:") or Path(model).expanduser().exists()


@each_record
def test_a_record_is_whole_and_marked(folder):
    about = yaml.safe_load((folder / "record.yml").read_text())
    assert about["pair"] == folder.name and about["commit"] and about["clean"]
    assert {path.stem for path in folder.glob("*.ipynb")} == set(about["chapters"])
    assert sum(path.stat().st_size for path in folder.rglob("*")) <= LARGEST
    for path in folder.glob("*.ipynb"):
        page = nbformat.read(path, 4)
        nbformat.validate(page)
        assert "{admonition} Recorded" in page.cells[0].source and about["date"] in page.cells[0].source
    for path in (folder / "results").glob("*.json"):
        rows = json.loads(path.read_text())
        assert path.stem in about["chapters"] and rows["run.recorded"] == about["date"]


@each_record
def test_a_small_fit_agrees_with_the_record(folder):
    file = folder / "results" / "stitching.json"
    if not file.is_file():
        pytest.skip(f"the record of {folder.name} has no stitching chapter")
    about = yaml.safe_load((folder / "record.yml").read_text())["chapters"]["stitching"]["parameters"]
    pair = load_pair(about["pair"])
    if missing := [ref.model for ref in (pair.a, pair.b) if not is_at_hand(ref.model)]:
        pytest.skip(f"the weights of {' and '.join(missing)} are not on this disk (`make real` fetches them)")
    parameters = {name: about[name] for name in ("alpha", "ridge", "variance") if name in about}
    assert disagreements(folder.name, json.loads(file.read_text()), again(pair, **parameters)) == []


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """The embedded pair's numbers, measured again."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STITCH_ROOT", str(tmp_path_factory.mktemp("root")))
        return again("tiny")


KEPT = json.loads((ROOT / "tests" / "reference" / "results" / "tiny" / "stitching.json").read_text())


def test_the_reference_of_the_embedded_pair_passes_as_a_record(measured):
    assert disagreements("tiny", KEPT, measured) == []


@pytest.mark.parametrize("id", ["a", "b", *HOSTS])
def test_a_record_that_says_otherwise_is_noticed(measured, id):
    """As soon as its interval lies above the one measured; or below it, where a smaller fit is no excuse for that."""
    id = f"table1.tiny.{id}"

    def noticed(shift):
        shifted = {f"{id}{end}": KEPT[f"{id}{end}"] + shift for end in ("", ".low", ".high")}
        return disagreements("tiny", KEPT | shifted, measured)

    above, below = measured[f"{id}.high"] - KEPT[f"{id}.low"], measured[f"{id}.low"] - KEPT[f"{id}.high"]
    assert noticed(above + 0.001) == [id] and noticed(above - 0.001) == noticed(below + 0.001) == []
    assert noticed(below - 0.001) == ([] if "_to_" in id else [id])


@pytest.mark.parametrize(("condition", "host"), HOSTS.items())
def test_a_record_of_a_stream_that_carries_nothing_is_noticed(measured, condition, host):
    id = f"table1.tiny.{condition}"
    loss = max(KEPT[id], measured[id])
    assert disagreements("tiny", KEPT | {f"table1.tiny.{host}_without_layer": loss}, measured) == [id]
    assert disagreements("tiny", KEPT | {f"table1.tiny.{host}_without_layer": loss + 0.001}, measured) == []


def test_a_record_of_another_layer_is_noticed(measured):
    id = "figure6.tiny.chosen_layer_b"
    assert disagreements("tiny", KEPT | {id: KEPT[id] + 1}, measured) == [id]
