"""The commands of `stitch-book` for a pair of one's own: what they take, what they write, what they say.

No section of the paper. `fitting.py` makes the stitch, `carry.py` carries across it and measures, `stitch_hub.py`
publishes; here is what a user types and reads. A result is written before it is judged, so that whatever stops the
measuring loses nothing.

    stitch-book fit --pair mine.yml                              artifacts/mine/stitch.safetensors, and its losses
    stitch-book transfer-sae --pair mine.yml SAE --out FOLDER    Eq. 6, for SAELens
    stitch-book transfer-vector --pair mine.yml v.npy --out w.npy
    stitch-book transfer-probe --pair mine.yml p.npz --out q.npz
    stitch-book push --pair mine.yml OWNER/NAME                  the stitch, with a model card, to the Hub

Offers `COMMANDS`, `add_parsers` and `look_ahead`.
"""

from __future__ import annotations

import argparse
import contextlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ..data.pairs import ModelPair, ModelRef, load_pair
from ..utils.files import write_whole
from .chapters import RequestError, one_line
from .runs import find_pair

if TYPE_CHECKING:  # what takes seconds to import is imported where it is used
    from ..data.text import TokenBatch
    from ..models.language_model import LanguageModel
    from ..stitching.stitch import Stitch


def look_ahead(root: Path, pair: str) -> ModelPair:
    """What would end a run after minutes of loading is said at once, in one line and not from within a notebook."""
    from ..stitching.pair import preflight

    with _in_one_line():
        models = load_pair(root / pair if pair.endswith((".yml", ".yaml")) else pair)
        preflight(models)
    return models


@contextlib.contextmanager
def _in_one_line() -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise RequestError(one_line(error)) from error


def fit(root: Path, *, pair: str, scale: str, alpha: float, out: str | None) -> None:
    """Fits the stitch of a pair, prints its losses and saves it, by default in `artifacts/<pair>/`."""
    from ..stitching.pair import fit_pair, stitch_file

    found = find_pair(root, pair)
    path = _file(out) if out else stitch_file(found.name)
    models = look_ahead(root, found.value)
    with _in_one_line():
        fitted = fit_pair(models, scale=scale, alpha=alpha)
    write_whole(path, fitted.stitch.save, sealed=False)
    explained = [f"{1 - share:.1%}" for share in fitted.unexplained]
    print(f"A: {models.a.model}, before layer {fitted.layers[0]}")
    print(f"B: {models.b.model}, before layer {fitted.layers[1]}{'' if models.b.layer is not None else ', by SVCCA'}")
    if fitted.is_stand_in:
        print("These are random weights under the names of real models: the losses mean nothing.")
    print(f"{f'Eq. 3, alpha {alpha:g}':16}" + "".join(f"{name:>12}" for name in fitted.fitted._fields))
    for name, loss in {"text fitted on": fitted.fitted, "held-out text": fitted.held_out}.items():
        print(f"{name:16}" + "".join(f"{value:12.4g}" for value in loss))
    print(f"variance explained on held-out text: up {explained[0]}, down {explained[1]}")
    print(f"fitted on {fitted.tokens:,} tokens; the stitch is in {path.as_posix()}")


class _AtHand(NamedTuple):
    """A pair and its stitch."""

    root: Path
    given: str
    """The pair as find_pair understands it."""
    pair: ModelPair
    stitch: Stitch
    layers: tuple[int, int]

    def models_and_text(self, scale: str) -> tuple[tuple[LanguageModel, LanguageModel], list[TokenBatch]]:
        """What a judgement on held-out text takes."""
        from ..models.harvest import evaluation_batches
        from ..models.language_model import load_models

        with _in_one_line():
            models = load_models(self.pair)
            return models, list(evaluation_batches(self.pair, self.pair.scale(scale), models[0].tokenizer))

    def name(self, side: str) -> str:
        index = "ab".index(side)
        return f"{side.upper()} ({(self.pair.a, self.pair.b)[index].short}, before layer {self.layers[index]})"


def _at_hand(root: Path, pair: str, stitch: str | None) -> _AtHand:
    """Pair and stitch, which must agree in their layers, and where no `stitch` is named, in their models too."""
    from ..stitching.pair import stitch_file
    from ..stitching.publish import load_stitch

    found = find_pair(root, pair)
    with _in_one_line():
        models = load_pair(root / found.value if found.digest else found.value)
        where = stitch or stitch_file(found.name)
        if not stitch and not where.is_file():
            raise RequestError(
                f"there is no stitch of the pair {found.name!r} yet ({where.as_posix()}): make it with "
                f"`stitch-book fit --pair {pair}`, or name one by --stitch"
            )
        loaded = load_stitch(where)
    layers = []
    for side, ref in (("a", models.a), ("b", models.b)):
        fitted = loaded.about.get(f"layer_{side}", ref.layer)
        if fitted is None:
            raise RequestError(f"neither the stitch {where} nor the pair's file says which layer of {side} it is for")
        layers.append(fitted)
        differs = [(f"before layer {fitted}", f"layer {ref.layer}")] if ref.layer not in (None, fitted) else []
        others = _other_model(loaded.about, side, ref, whole=not stitch)
        if refused := differs + ([] if stitch else others):
            is_for, says = refused[0]
            raise RequestError(
                f"the stitch {where} is for {side} {is_for}, and the pair {found.name!r} says {says}: fit it again "
                f"with `stitch-book fit --pair {pair}`"
            )
        for is_for, says in others:
            print(f"Note: the stitch is for {side} {is_for}, and the pair {found.name!r} says {says}.")
    return _AtHand(root, found.value, models, loaded, tuple(layers))


def _other_model(about: Mapping[str, Any], side: str, ref: ModelRef, *, whole: bool) -> list[tuple[str, str]]:
    """What a stitch says of its model and what the pair says, where they differ; of paths, unless `whole`, the last
    names, which are all that a published stitch has of them."""
    if side not in about:
        return []
    models = str(about[side]), ref.model
    revisions = about.get(f"revision_{side}") or "main", ref.revision or "main"
    differs = models[0] != models[1] if whole else Path(models[0]).name != Path(models[1]).name
    found = [(f"of {models[0]!r}", repr(models[1]))] if differs else []
    return found + ([(f"at revision {revisions[0]}", revisions[1])] if revisions[0] != revisions[1] else [])


def _file(out: str) -> Path:
    """Where to write a file: whatever is in a folder would be lost."""
    path = Path(out).expanduser()
    if path.name in ("", "..") or path.is_dir():
        raise RequestError(f"--out {out}: expected the name of a file, and this is a folder")
    return path


def _other_than(given: str, out: str, ending: str) -> Path:
    """Where to write, which must not be what is read."""
    path = _file(out) if ending else Path(out).expanduser()
    if ending and path.suffix != ending:
        raise RequestError(f"--out {out}: expected a name that ends in {ending}")
    if os.path.realpath(path) == os.path.realpath(Path(given).expanduser()):
        raise RequestError(f"--out {out} is the file that is carried: it would be lost")
    return path


def transfer_sae(root: Path, *, pair: str, sae: str, out: str, towards: str, stitch: str | None, scale: str) -> None:
    """Eq. 6 from an SAE that `load_sae` reads to a folder of SAELens, and both on held-out text."""
    from ..saes.transfer import transfer_sae as transfer
    from .carry import judge_sae, read_sae, reads_elsewhere, save_sae

    path, at_hand = _other_than(sae, out, ""), _at_hand(root, pair, stitch)
    source = "a" if towards == "b" else "b"
    with _in_one_line():
        at_hand.pair.scale(scale)
        original = read_sae(sae)
        carried = transfer(original, at_hand.stitch, to=towards)
        look_ahead(root, at_hand.given)
        save_sae(carried, path)
    print(f"{carried.cfg.d_sae:,} latents; the SAE of {at_hand.name(towards)} is in {path.as_posix()}")
    layer = at_hand.layers["ab".index(source)]
    if elsewhere := reads_elsewhere(original, layer):
        print(f"Beware: the SAE says that it reads {elsewhere}, and the stitch the stream before layer {layer}.")
    model = (at_hand.pair.a, at_hand.pair.b)["ab".index(source)].model
    if (said := original.cfg.metadata.model_name) and Path(said).name != Path(model).name:
        print(f"Beware: the SAE says that it is of {said!r}, and the pair has {model!r} as {source}.")
    models, batches = at_hand.models_and_text(scale)
    _say_stand_ins(models)
    device = str(models["ab".index(source)].device)
    with _in_one_line():
        trust = judge_sae(
            original.to(device), carried.to(device), at_hand.stitch, models, at_hand.layers, batches, towards=towards
        )
    print(f"{f'{trust.tokens:,} held-out tokens':44}{'L0':>8}{'FUV':>8}{'CE':>8}   more than the model's own")
    rows = [
        (f"{at_hand.name(source)} itself", None, trust.source_loss, None),
        ("  with the original SAE", trust.original, trust.source_loss, trust.original.delta_loss),
        (f"{at_hand.name(towards)} itself", None, trust.target_loss, None),
        ("  carried there and back, without an SAE", None, trust.round_trip_loss, None),
        ("  with the carried SAE", trust.carried, trust.target_loss, trust.carried.delta_loss),
    ]
    for name, metrics, loss, more in rows:
        columns = f"{metrics.l0.value:8.1f}{metrics.fuv.value:8.4f}" if metrics else " " * 16
        end = f"   {more.value:+.4f} [{more.low:+.4f}, {more.high:+.4f}]" if more else ""
        print(f"{name:44}{columns}{loss + (more.value if more else 0):8.4f}{end}")
    print(
        f"latents that never fired: {trust.original.dead_fraction:.1%} in the original, "
        f"{trust.carried.dead_fraction:.1%} in the carried one"
    )
    print("FUV: fraction of variance unexplained, 1 for what always says the mean. CE: nats a token.")


def transfer_vector(
    root: Path, *, pair: str, vector: str, out: str, towards: str, stitch: str | None, keep_norm: bool
) -> None:
    """Directions v to v P, and what the stitch leaves of them."""
    import numpy as np

    from .carry import carry_vectors, read_vectors, survival

    path = _other_than(vector, out, ".npy")
    with _in_one_line():
        vectors = read_vectors(vector)
        at_hand = _at_hand(root, pair, stitch)
        carried = carry_vectors(vectors, at_hand.stitch, towards=towards, keep_norm=keep_norm)

    def write(scratch: Path) -> None:
        with open(scratch, "wb") as file:
            np.save(file, carried, allow_pickle=False)

    write_whole(path, write, sealed=False)
    length = "as long as the stitch makes them" if keep_norm else "of unit length"
    print(f"directions of {at_hand.name(towards)}, {length}, of shape {carried.shape}, are in {path.as_posix()}")
    _say_survival(survival(vectors, at_hand.stitch, towards=towards))


def transfer_probe(
    root: Path, *, pair: str, probe: str, out: str, towards: str, stitch: str | None, scale: str
) -> None:
    """A linear probe to one of the other model, what the stitch leaves of it, and both on held-out text."""
    from .carry import carry_probe, judge_probe, read_probe, save_probe, survival

    path = _other_than(probe, out, ".npz")
    with _in_one_line():
        original = read_probe(probe)
        at_hand = _at_hand(root, pair, stitch)
        at_hand.pair.scale(scale)
        carried = carry_probe(original, at_hand.stitch, towards=towards)
        look_ahead(root, at_hand.given)
    save_probe(carried, path)
    print(f"coef_ {carried.coef.shape}, intercept_ and classes_ for {at_hand.name(towards)} are in {path.as_posix()}")
    weights = original.coef[original.coef.any(1)]
    _say_survival(survival(weights, at_hand.stitch, towards=towards, reads=True))
    models, batches = at_hand.models_and_text(scale)
    _say_stand_ins(models)
    with _in_one_line():
        trust = judge_probe(original, carried, at_hand.stitch, models, at_hand.layers, batches, towards=towards)
    source = "A" if towards == "b" else "B"
    print(f"on {trust.tokens:,} held-out tokens:")
    print(f"  variance of its score in {source} that the stitched stream explains (R^2): {_spread(trust.explained)}")
    print(
        f"  says what the original says of the same token in {source}: {trust.agreement:.1%} "
        f"(always the same answer: {trust.constant:.1%})"
    )
    print(f"  says what the original says of the stitched stream: {trust.check:.2%} (a check: 100% up to rounding)")


def _say_survival(found: Sequence) -> None:
    kept, random_kept = [each.kept for each in found], found[0].kept_random
    trips, random_trip = [each.round_trip for each in found], found[0].round_trip_random
    ratio = [each / random_kept for each in kept]
    print(
        f"length that the stitch keeps: {_spread(kept)} (random directions: {random_kept:.3f}), "
        f"{_spread(ratio)} times that of random ones"
    )
    print(f"cosine after the way there and back: {_spread(trips)} (random directions: {random_trip:.3f})")


def _spread(values: Sequence[float]) -> str:
    if len(values) == 1:
        return f"{values[0]:.3f}"
    return f"{min(values):.3f} to {max(values):.3f}, mean {sum(values) / len(values):.3f}"


def _say_stand_ins(models: tuple[LanguageModel, LanguageModel]) -> None:
    from ..models.language_model import are_stand_ins

    if are_stand_ins(models):
        print("These are random weights under the names of real models: the numbers below mean nothing.")


def push(
    root: Path,
    *,
    pair: str,
    repository: str,
    stitch: str | None,
    licence: str | None,
    private: bool,
    folder: str | None,
) -> None:
    """The stitch of a pair with a model card, to the Hub, or to a folder."""
    from ..stitching.publish import push_stitch, write_repository

    with _in_one_line():
        loaded = _at_hand(root, pair, stitch).stitch
        if folder:
            write_repository(loaded, folder, repository, licence=licence)
            print(f"card and stitch are in {folder}: `hf upload {repository} {folder}` publishes them")
        else:
            print(f"published: {push_stitch(loaded, repository, licence=licence, private=private)}")


COMMANDS: dict[str, Callable[..., None]] = {
    "fit": fit,
    "transfer-sae": transfer_sae,
    "transfer-vector": transfer_vector,
    "transfer-probe": transfer_probe,
    "push": push,
}


def add_parsers(commands: argparse._SubParsersAction) -> None:
    """The options of each of `COMMANDS`."""
    pair = argparse.ArgumentParser(add_help=False)
    pair.add_argument("--pair", required=True, help="a name in stitch_utils/pairs or a .yml file")
    scale = argparse.ArgumentParser(add_help=False)
    scale.add_argument("--scale", default="default", help="how much text: smoke, default or paper (default: default)")
    across = argparse.ArgumentParser(add_help=False)
    stitch = "a stitch file, or OWNER/NAME[@REVISION] on the Hub (default: artifacts/<pair>/stitch.safetensors)"
    across.add_argument("--stitch", help=stitch)
    towards = argparse.ArgumentParser(add_help=False)
    towards.add_argument(
        "--towards", choices=("a", "b"), default="b", help="the model that it is wanted for (default: b)"
    )

    command = commands.add_parser("fit", parents=[pair, scale], help="fit the stitch of a pair and save it")
    command.add_argument("--alpha", type=float, default=1.0, help="weight of the inversion terms (default 1)")
    command.add_argument("--out", help="file to write (default: artifacts/<pair>/stitch.safetensors)")

    carry = [pair, across, towards]
    command = commands.add_parser("transfer-sae", parents=[*carry, scale], help="carry an SAE to the other model")
    sae = "a folder (SAELens, sparsify), sae_lens:RELEASE/ID or sparsify:OWNER/NAME/HOOKPOINT"
    command.add_argument("sae", metavar="SAE", help=sae)
    command.add_argument("--out", required=True, metavar="FOLDER", help="folder to write, as SAELens reads it")

    command = commands.add_parser("transfer-vector", parents=carry, help="carry directions to the other model")
    vector = ".npy, or .safetensors with one tensor: a vector, or a matrix of rows"
    command.add_argument("vector", metavar="FILE", help=vector)
    command.add_argument("--out", required=True, metavar="FILE.npy", help="file to write")
    length = "leave the image as long as the stitch makes it (default: unit length)"
    command.add_argument("--keep-norm", action="store_true", help=length)

    command = commands.add_parser("transfer-probe", parents=[*carry, scale], help="carry a probe to the other model")
    probe = ".npz or .safetensors with coef_ (classes or 1, d) and intercept_, and classes_ if wanted"
    command.add_argument("probe", metavar="FILE", help=probe)
    command.add_argument("--out", required=True, metavar="FILE.npz", help="file to write")

    command = commands.add_parser("push", parents=[pair, across], help="publish a stitch on the Hub")
    command.add_argument("repository", metavar="OWNER/NAME", help="made if it does not exist")
    licence = "the stitch's own, as the Hub abbreviates it: mit, apache-2.0, ..."
    command.add_argument("--license", dest="licence", help=licence)
    command.add_argument("--private", action="store_true", help="if the repository is made")
    command.add_argument("--folder", help="write it there instead of publishing it")
