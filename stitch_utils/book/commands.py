"""The commands of `stitch-book` for a pair of the user's own (no section of its own).

The rooms below fit, carry, judge and publish; here is what a user types and reads. A result is written before it is
judged, so that whatever stops the measuring loses nothing. This module takes seconds to import.

Offers `check`, `fit`, `sweep`, `transfer_sae`, `transfer_vector`, `transfer_probe` and `push`.
"""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..data.pairs import ModelPair, ModelRef, check_ridge
from ..data.tokenizer import begin_and_end
from ..models.language_model import count_parameters, load_model, load_models, set_threads
from ..probing.probes import judge_probe, read_probe, save_probe
from ..probing.probes import transfer_probe as carry_probe
from ..saes.evaluation import judge_sae
from ..saes.io import load_sae, reads_elsewhere, save_sae
from ..saes.pair import sweep_saes
from ..saes.transfer import transfer_sae as carry_sae
from ..steering.effects import judge_vectors
from ..steering.vectors import transfer_vector as carry_vector
from ..stitching.evaluation import CONDITIONS, survival
from ..stitching.pair import SHOWN_LOSSES, DoubtfulFit, FittedPair, StitchedPair, fit_pair, preflight, stitch_file
from ..stitching.publish import load_stitch, push_stitch, write_repository
from ..stitching.streams import BEYOND, WEIGHTY
from ..utils import ranks
from ..utils.arrays import read_vectors, save_arrays
from ..utils.files import writable_folder, write_whole
from .chapters import RequestError, one_line, refusing
from .runs import find_pair
from .trust import say_probe, say_sae, say_survival, say_vectors

MEASURED = 4  # rows of a matrix of vectors whose effect is measured


def check(root: Path, *, model: str, revision: str | None, dtype: str, trust_remote_code: bool) -> None:
    """Load a model as a pair would, and print what it is and how far the bridge is from transformers."""
    with refusing(ValueError):
        loaded = load_model(model, dtype=dtype, revision=revision, trust_remote_code=trust_remote_code)
        begin, parameters = begin_and_end(loaded.tokenizer)[0], count_parameters(loaded.config)
    tokenizer, agreement = loaded.tokenizer, loaded.agreement
    assert agreement is not None  # a model is compared when it is loaded
    before = "no token" if begin is None else repr(tokenizer.decode([begin]))
    chat = "a chat template" if getattr(tokenizer, "chat_template", None) else "no chat template"
    print(f"{model}: family {loaded.hf_model.config.model_type}")
    print(f"{loaded.n_layers} layers of width {loaded.d_model}, {parameters:,} parameters")
    print(f"tokenizer: {type(tokenizer).__name__}, {len(tokenizer):,} tokens, {before} before a text, {chat}")
    print(
        f"TransformerBridge agrees with transformers: residual streams to {agreement.residuals:.1g} of their norm, "
        f"logits to {agreement.logits:.1g} ({dtype} explains {agreement.allowed:.1g})"
    )


def fit(root: Path, *, pair: str, scale: str, alpha: float, ridge: float | str | None, out: str | None) -> None:
    """Fit the stitch of a pair, print its losses and save it, by default in `artifacts/<pair>/`."""

    def checked() -> tuple[ModelPair, Path]:
        models = find_pair(root, pair).described
        path = _target(out) if out else stitch_file(models.name)
        check_ridge(models.ridge if ridge is None else ridge)
        models.scale(scale)
        preflight(models)
        if not out:
            writable_folder(path.parent)  # before the hour that a fit may take
        return models, path

    with refusing(ValueError), warnings.catch_warnings():
        warnings.simplefilter("ignore", DoubtfulFit)  # it is printed below
        models, path = ranks.from_first(checked)
        fitted = fit_pair(models, scale=scale, alpha=alpha, ridge=ridge)
    if ranks.number():
        return  # the first process writes and prints
    write_whole(path, fitted.stitch.save, sealed=False)
    print(f"A: {models.a.model}, before layer {fitted.layers[0]}")
    print(f"B: {models.b.model}, before layer {fitted.layers[1]}{'' if models.b.layer is not None else ', by SVCCA'}")
    if fitted.is_stand_in:
        print("These are random weights under the names of real models: the losses mean nothing.")
    print(f"{f'Eq. 3, alpha {alpha:g}':16}" + "".join(f"{name:>12}" for name in fitted.fitted._fields))
    for name, loss in {"text fitted on": fitted.fitted, "held-out text": fitted.held_out}.items():
        print(f"{name:16}" + "".join(f"{value:12.4g}" for value in loss))
    up, down = fitted.unexplained
    median_up, median_down = fitted.streams["b"].unexplained, fitted.streams["a"].unexplained
    print(f"variance explained on held-out text: up {1 - up:.1%}, down {1 - down:.1%}")
    print(f"of the median token:                 up {1 - median_up:.1%}, down {1 - median_down:.1%}")
    _print_streams(fitted, left_out=models.outliers is not None)
    _print_losses(fitted)
    print(_said_of_ridge(fitted))
    for doubt in filter(None, (fitted.scarcity, fitted.repeats)):
        print(f"Beware: {doubt}.")
    left_out = f", without {fitted.left_out:,} outliers" if models.outliers else ""
    print(f"fitted on {fitted.tokens:,} tokens{left_out}; the stitch is in {path.as_posix()}")


def sweep(root: Path, *, pair: str, scale: str, alpha: float, seeds: int) -> None:
    """Train the SAEs that the chapter sae_training compares, at its own widths and seeds, and keep them for it."""

    def checked() -> ModelPair:
        models = find_pair(root, pair).described
        models.scale(scale)
        if seeds < 1:
            raise RequestError(f"--seeds {seeds}: expected a whole number of at least 1")
        preflight(models)
        return models

    with refusing(ValueError):
        models = ranks.from_first(checked)
        stitched = StitchedPair.open(models, scale, alpha=alpha)
        found = sweep_saes(stitched, widths=stitched.sizes.sweep_widths, seeds=range(seeds))
    for side, curves in {"A": found.a, "B": found.b}.items():
        explained = sorted(curve.explained_variance[-1] for curve in curves.values())
        print(f"{len(curves)} SAEs of {side} explain {explained[0]:.1%} to {explained[-1]:.1%} of the variance")
    print(f"they are in {(root / 'artifacts' / models.name).as_posix()}, where the chapter sae_training reads them")


def _print_streams(fitted: FittedPair, *, left_out: bool) -> None:
    """Print the norms of both streams, and what massive activations hold of the variance."""
    for side, shape in fitted.streams.items():
        print(
            f"stream of {side.upper()}: median norm {shape.median_norm:.4g}, the largest {shape.largest:.3g} medians; "
            f"{shape.beyond:,} of {shape.tokens:,} tokens beyond {BEYOND} medians hold {shape.held:.1%} of "
            f"the variance, and one dimension {shape.widest:.1%}"
        )
        if not left_out and shape.held > WEIGHTY:
            print(
                f"Beware: these tokens weigh in the fit; `outliers: {{beyond: {BEYOND}}}` in the file leaves them out."
            )


def _print_losses(fitted: FittedPair) -> None:
    """Print cross-entropy, in the tokens of the model that comes last and by the byte, and the share of tokens met."""
    fidelity = fitted.fidelity
    print(f"{'cross-entropy':16}{'nats a token':>14}{'bits a byte':>13}{'rise':>9}   (held-out text)")
    for name, key in SHOWN_LOSSES.items():
        rise = f"{fidelity.increase(*key).value:+9.1%}" if name in CONDITIONS else ""
        label = "->".join(name.upper().split("_TO_")) + (" itself" if name in "ab" else "")
        loss, bits = fidelity.cross_entropy(*key).value, fidelity.bits_per_byte(*key).value
        print(f"{label:16}{loss:14.4g}{bits:13.4g}{rise}")
    met = {side: fidelity.met(side).value for side in "ab"}
    if min(met.values()) < 1:
        print(f"tokens whose stream is replaced: {met['a']:.1%} of A's, {met['b']:.1%} of B's; others keep the host's")
    if min(met.values()) < 0.5:
        print("Beware: fewer than half of the tokens meet, so the losses say little of the stitch.")


def _said_of_ridge(fitted: FittedPair) -> str:
    """Say which ridge the fit had and, where it was chosen, what that gained on documents left out of the fit."""
    choice, report = fitted.ridge_choice, fitted.stitch.report
    assert report is not None
    if choice is None:
        return f"ridge {report.ridge:g}, as given"
    losses = dict(zip(choice.ridges, choice.losses))
    least, most = min(losses), max(losses)
    beside = "" if choice.ridge == least else f", {losses[least]:.4g} with {least:g}"
    edge = {least: "; it is the smallest that was tried", most: "; it is the largest that was tried"}
    chosen = f"chosen on documents left out of least-squares fits (Eq. 3 there {losses[choice.ridge]:.4g}{beside})"
    return f"ridge {report.ridge:g}, {chosen}{edge.get(choice.ridge, '')}"


class _AtHand:
    """A pair whose models are not loaded yet, its stitch, and the layers that the stitch is for."""

    def __init__(self, root: Path, pair: str, stitch: str | None, scale: str | None = None):
        """Load the pair's description and its stitch, by default the one that `fit` saved.

        RequestError where pair and stitch disagree in their layers, and where no `stitch` is named, in their models;
        where one is named, other models are only reported. With a `scale`, what `preflight` refuses is refused too.
        """
        self.pair, again = find_pair(root, pair).described, f"`stitch-book fit --pair {pair}`"
        where = stitch or stitch_file(self.pair.name).as_posix()
        if not stitch and not Path(where).is_file():
            missing = f"there is no stitch of the pair {self.pair.name!r} yet ({where})"
            raise RequestError(f"{missing}: make it with {again}, or name one by --stitch")
        self.stitch, self.layers = load_stitch(where), {}
        about = self.stitch.about
        for side, ref in (("a", self.pair.a), ("b", self.pair.b)):
            layer = self.layers[side] = about.get(f"layer_{side}", ref.layer)
            if layer is None:
                raise RequestError(
                    f"neither the stitch {where} nor the pair's file says which layer of {side} is meant"
                )
            for what, fitted, says in _differences(about, side, ref, layer, whole=not stitch):
                differs = f"is for {side} {what} {fitted!r}, and the pair {self.pair.name!r} says {says!r}"
                if not stitch or what == "before layer":
                    raise RequestError(f"the stitch {where} {differs}: fit it again with {again}")
                print(f"Note: the stitch {differs}.")
        if scale is not None:
            self.pair.scale(scale)
            preflight(self.pair)

    def opened(self, scale: str) -> StitchedPair:
        """Load the models; the experiments of the package take the result, together with the stitch at hand."""
        set_threads(self.pair)
        with refusing(ValueError):
            stitched = StitchedPair(self.pair, load_models(self.pair), (self.layers["a"], self.layers["b"]), scale)
        found, expected = tuple(self.stitch.P_up.shape), tuple(model.d_model for model in stitched.models)
        if found != expected:
            raise RequestError(f"the stitch connects streams of widths {found}: expected {expected}, the models'")
        if stitched.is_stand_in:
            print("These are random weights under the names of real models: the numbers below mean nothing.")
        return stitched

    def name(self, side: str) -> str:
        """Name a model and its layer."""
        return f"{side.upper()} ({getattr(self.pair, side).short}, before layer {self.layers[side]})"


def _differences(about: Mapping, side: str, ref: ModelRef, layer: int, *, whole: bool) -> list[tuple[str, Any, Any]]:
    """List what a stitch says of a model, and what the pair says instead: (what, stitch, pair), the layer first.

    Of paths the last names are compared, which are all that a published stitch has; with `whole`, whole paths.
    """
    said: list[tuple[str, Any, Any]] = [("before layer", layer, layer if ref.layer is None else ref.layer)]
    if side in about:
        fitted, named = (name if whole else Path(name).name for name in (str(about[side]), ref.model))
        said.append(("of", fitted, named))
        said.append(("at revision", about.get(f"revision_{side}") or "main", ref.revision or "main"))
    return [(what, fitted, named) for what, fitted, named in said if fitted != named]


def _target(out: str, ending: str | None = None, given: str | None = None) -> Path:
    """Return the path to write to: a folder for the ending "", else a file; `given` is the one that is read."""
    path = Path(out).expanduser()
    if ending != "" and (path.name in ("", "..") or path.is_dir()):
        raise RequestError(f"--out {out}: expected the name of a file, and this is a folder")
    if ending and path.suffix != ending:
        raise RequestError(f"--out {out}: expected a name that ends in {ending}")
    if given and path.resolve() == Path(given).expanduser().resolve():
        raise RequestError(f"--out {out} is the file that is carried: it would be lost")
    return path


def transfer_sae(root: Path, *, pair: str, sae: str, out: str, to: str, stitch: str | None, scale: str) -> None:
    """Carry an SAE that `load_sae` reads (Eq. 6) to a folder of SAELens, and print how both do on held-out text."""
    path, source = _target(out, "", sae), "a" if to == "b" else "b"
    with refusing(ValueError), warnings.catch_warnings():
        # SAELens warns of it in four lines. The line that is printed below says the same.
        warnings.filterwarnings("ignore", message=r"\s*This SAE has non-empty model_from_pretrained_kwargs")
        at_hand, original = _AtHand(root, pair, stitch, scale), load_sae(sae)
        carried = carry_sae(original, at_hand.stitch, to=to)
        save_sae(carried, path)
    print(f"{carried.cfg.d_sae:,} latents; the SAE of {at_hand.name(to)} is in {path.as_posix()}")
    layer = at_hand.layers[source]
    if elsewhere := reads_elsewhere(original, layer):
        print(f"Beware: the SAE says that it reads {elsewhere}, and the stitch the stream before layer {layer}.")
    if changed := original.cfg.metadata.model_from_pretrained_kwargs:
        print(f"Beware: the SAE says that its model was loaded with {changed}; the stitch reads the model as it is.")
    model = getattr(at_hand.pair, source).model
    if (said := original.cfg.metadata.model_name) and Path(said).name != Path(model).name:
        print(f"Beware: the SAE says that it is of {said!r}, and the pair has {model!r} as {source}.")
    stitched = at_hand.opened(scale)
    device = str(stitched.side(source)[0].device)
    with refusing(ValueError):
        trust = judge_sae(stitched, original.to(device), carried.to(device), stitch=at_hand.stitch, to=to)
    say_sae(trust, at_hand.name(source), at_hand.name(to))


def transfer_vector(
    root: Path, *, pair: str, vector: str, out: str, to: str, stitch: str | None, keep_norm: bool, scale: str
) -> None:
    """Carry directions v to v P, and print what they do to predictions, and what the stitch leaves of them."""
    path, rows = _target(out, ".npy", vector), []
    with refusing(ValueError):
        vectors, at_hand = read_vectors(vector), _AtHand(root, pair, stitch)
        at_hand.pair.scale(scale)
        for index, row in enumerate(np.atleast_2d(vectors)):
            try:
                rows.append(carry_vector(torch.from_numpy(row), at_hand.stitch, to=to, keep_norm=keep_norm))
            except ValueError as error:
                raise ValueError(f"row {index}: {error}") from error
    carried = torch.stack(rows).numpy().reshape(*vectors.shape[:-1], -1)
    save_arrays(path, carried)
    length = "as long as the stitch makes them" if keep_norm else "of unit length"
    print(f"directions of {at_hand.name(to)}, {length}, of shape {carried.shape}, are in {path.as_posix()}")
    _say_effects(at_hand, np.atleast_2d(vectors), to=to, scale=scale)
    say_survival(survival(vectors, at_hand.stitch, to=to))


def _say_effects(at_hand: _AtHand, vectors: np.ndarray, *, to: str, scale: str) -> None:
    """Print what carried vectors do to predictions, or why that is not measured: carrying itself needs no models."""
    rows = [torch.from_numpy(row) for row in vectors[:MEASURED]]
    try:
        found = judge_vectors(at_hand.opened(scale), rows, stitch=at_hand.stitch, to=to)
    except (RequestError, ValueError) as error:
        print(f"effect on predictions: not measured, since {one_line(error)}")
    else:
        say_vectors(found, "A" if to == "b" else "B", of=len(vectors))


def transfer_probe(root: Path, *, pair: str, probe: str, out: str, to: str, stitch: str | None, scale: str) -> None:
    """Carry a linear probe, and print what the stitch leaves of it and how both do on held-out text."""
    path = _target(out, ".npz", probe)
    with refusing(ValueError):
        original, at_hand = read_probe(probe), _AtHand(root, pair, stitch, scale)
        carried = carry_probe(original, at_hand.stitch, to=to)
    save_probe(carried, path)
    print(f"coef_ {carried.coef.shape}, intercept_ and classes_ for {at_hand.name(to)} are in {path.as_posix()}")
    stitched = at_hand.opened(scale)
    with refusing(ValueError):
        trust = judge_probe(stitched, original, carried, stitch=at_hand.stitch, to=to)
    say_probe(trust, "A" if to == "b" else "B")
    say_survival(survival(original.coef[original.coef.any(1)], at_hand.stitch, to=to, reads=True))


def push(
    root: Path, *, pair: str, name: str, stitch: str | None, licence: str | None, private: bool, folder: str | None
) -> None:
    """Publish the stitch of a pair with a model card on the Hub, or write both to a folder."""
    with refusing(ValueError):
        loaded = _AtHand(root, pair, stitch).stitch
        if folder:
            write_repository(loaded, folder, name, licence=licence)
            print(f"card and stitch are in {folder}: `hf upload {name} {folder}` publishes them")
        else:
            print(f"published: {push_stitch(loaded, name, licence=licence, private=private)}")
