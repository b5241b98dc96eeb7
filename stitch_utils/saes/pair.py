"""The SAEs of a stitched pair: published or trained here, and the sweep that trains B's from A's.

Sections 3 and 3.1, App. D: published TopK SAEs for Pythia and JumpReLU ones for Gemma; for GPT-2, the embedded pair and
a reader's own, TopK SAEs trained on the unnormalised residual stream by the paper's recipe. The sweep (Figs. 1c, 2 and
8, Table 4) trains, for each width and seed, an SAE of A, carries it across (Eq. 6), and trains it on as one of B,
beside the other two of `INITIALS`. The widest `random` and `stitch` are also trained with the auxiliary loss, which the
paper leaves out, and the smallest with Adam's beta1 at 0. Training an SAE of one model never runs the other. Stitches
that know no pairs carry the widest SAEs of A, too; what these leave unexplained is measured, and they are not trained.

Offers `native_saes`, `sweep_saes`, `SAESweep`, `VARIANTS`, `side_activations`.
"""

import functools
import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from typing import Any, NamedTuple

import torch
from sae_lens import SAE
from torch import Tensor

from ..data.text import PairedBatch, TokenBatch
from ..models.harvest import ModelStream
from ..stitching.nulls import component_stitches
from ..stitching.pair import StitchedPair
from .evaluation import check_width
from .initialisation import INITIALS, SAETrainingConfig
from .io import load_sae
from .training import Curve, load_trained, train_saes, unexplained_at_start
from .transfer import transfer_sae

CHECKPOINT_EVERY = 50  # steps: a sweep that is killed loses less than a minute
JUDGED_TOKENS = 4096  # of the evaluation text; all runs are judged often, and together that must not outweigh training
EVALUATIONS = 40  # of each run of a sweep, evenly spread over its steps
COUNTED_TOKENS = 2**20  # of the training text, if it has as many, on which it is counted which latents fire
VARIANTS = {"plain": {}, "auxiliary": {"auxiliary_loss": True}, "beta1": {"beta1": 0.0}}


def side_activations(stitched: StitchedPair, sides: Iterable[str] = "ab") -> dict[str, tuple[ModelStream, Tensor]]:
    """Give for each side a stream of its activations on the training text and, (n, d), those on the evaluation text.

    The streams are kept in memory but for scale `paper`, where each pass runs the model anew.
    """
    keep = stitched.scale != "paper"
    # if they are kept, both sides read one list of tokens
    training = functools.cache(lambda: list(stitched.training_batches())) if keep else stitched.training_batches
    found = {}
    for side in sides:
        evaluation = functools.partial(stitched.evaluation_rows, side)
        held_out = torch.cat(list(ModelStream(*stitched.side(side), evaluation)))
        rows = functools.partial(_rows_of, training, side)
        found[side] = ModelStream(*stitched.side(side), rows, keep=keep), held_out
    return found


def _rows_of(batches: Callable[[], Iterable[PairedBatch]], side: str) -> Iterator[TokenBatch]:
    return (getattr(batch, side) for batch in batches())


def _with_documents(stream: ModelStream) -> Iterator[tuple[Tensor, Tensor]]:
    """Give the first `COUNTED_TOKENS` activations of a stream (m, d), and the numbers of their documents (m,)."""
    left = COUNTED_TOKENS
    for x, batch in zip(stream, (batch for batch in stream.batches() if batch.mask.any())):
        yield x[:left], batch.documents[batch.mask][:left]
        left -= len(x)
        if left <= 0:
            return


def native_saes(stitched: StitchedPair, *, seed: int = 0, sides: str = "ab", anew: bool = False) -> tuple[SAE, ...]:
    """Read the SAEs of A and B, or of one side, that the pair's file names for the stitched layers; train the others.

    What is trained is kept in `artifacts/`. With `anew` the SAEs that the package ships for the embedded pair are
    trained again, instead of read. ValueError if a named SAE is of another width than its model.
    """
    named = {side: ref for side, ref in stitched.pair.saes.items() if not (anew and str(ref).startswith("embedded:"))}
    saes: dict[str, SAE] = {}
    for side in filter(named.get, sides):
        model, _ = stitched.side(side)
        saes[side] = load_sae(named[side], device=str(model.device))
        check_width(saes[side], model, f"the SAE of {side} ({named[side]})")
        if (found := saes[side].cfg.normalize_activations) != "none":
            expected = "the chapters compare SAEs of the residual stream as it is"
            raise ValueError(f"the SAE of {side} ({named[side]}) has normalize_activations={found!r}: {expected}")
    missing = [side for side in sides if side not in saes]
    for side, (stream, held_out) in side_activations(stitched, missing).items():
        config = _config(stitched, d_sae=stitched.sizes.sae_latents, n_steps=stitched.sizes.sae_steps, seed=seed)
        folder = stitched.artifact(f"sae-{side}", {"config": asdict(config)}, sources=(native_saes,), suffix="")
        hook = f"blocks.{stitched.side(side)[1]}.hook_resid_pre"
        metadata = {"model_name": getattr(stitched.pair, side).model, "hook_name": hook}
        train_saes(stream, [config], held_out=held_out, folder=folder, metadata=metadata)
        saes[side] = load_trained(folder, config, device=str(held_out.device))
    return tuple(saes[side] for side in sides)


def _config(stitched: StitchedPair, **options) -> SAETrainingConfig:
    """Configure a run by the pair's recipe, but for these options."""
    return SAETrainingConfig(**asdict(stitched.pair.sae_recipe) | options, mean_bias=True)


class SAESweep(NamedTuple):
    """The curves of a sweep."""

    a: dict[tuple[int, int], Curve]
    """Runs of A, by width and seed."""
    b: dict[tuple[str, int, int, str], Curve]
    """Runs of B, by `initial` as in `SAETrainingConfig`, width, seed, and variant, one of `VARIANTS`."""
    components: dict[int, list[float]]
    """By seed: what the widest SAE of A leaves unexplained of B's stream before training, carried by each of
    `stitching.nulls.component_stitches`."""


def sweep_saes(stitched: StitchedPair, *, widths: Sequence[int], seeds: Sequence[int]) -> SAESweep:
    """Train the SAEs of A and of B for all widths and seeds, or read them from `artifacts/`.

    All runs of a side read the same batches in one pass. A sweep that was cut off goes on from its last checkpoint.
    """
    recipe, steps = stitched.pair.sae_recipe, stitched.sizes.sae_sweep_steps
    maps = (stitched.stitch.P_up, stitched.stitch.P_down)
    stitch = [hashlib.sha256(matrix.cpu().numpy().tobytes()).hexdigest() for matrix in maps]
    made_of = {"widths": list(widths), "seeds": list(seeds), "recipe": asdict(recipe), "steps": steps, "stitch": stitch}
    folders = {side: stitched.artifact(f"sweep-{side}", made_of, sources=(sweep_saes,), suffix="") for side in "ab"}
    activations = side_activations(stitched)

    def config(initial: str, width: int, seed: int, variant: str = "plain") -> SAETrainingConfig:
        run = {"d_sae": width, "k": min(recipe.k, width), "n_steps": steps, "initial": initial, "seed": seed}
        return _config(stitched, **run, **VARIANTS[variant])

    def train(side: str, runs: dict[Any, SAETrainingConfig], **given) -> dict[Any, Curve]:
        stream, held_out = activations.pop(side)  # A's are not kept while B's are read
        given |= {"folder": folders[side], "checkpoint_every": CHECKPOINT_EVERY, "counted": _with_documents(stream)}
        given |= {"held_out": held_out[:JUDGED_TOKENS], "evaluate_every": max(1, steps // EVALUATIONS)}
        curves = train_saes(stream, list(runs.values()), **given)
        return {key: curves[run.name] for key, run in runs.items()}

    both = [(width, seed) for width in widths for seed in seeds]
    of_a = {key: config("random", *key) for key in both}
    a = train("a", of_a)
    keys = [(initial, *key, "plain") for initial in INITIALS for key in both]
    for width, variant in ((max(widths), "auxiliary"), (min(widths), "beta1")):
        keys += [(initial, width, seed, variant) for initial in ("random", "stitch") for seed in seeds]
    of_b, initial_saes = {key: config(*key) for key in keys}, {}
    for run in of_b.values():
        if run.initial != "random":
            small = load_trained(folders["a"], of_a[run.d_sae, run.seed], device=str(stitched.models[1].device))
            initial_saes[run.name] = transfer_sae(small, stitched.stitch) if run.initial == "stitch" else small
    judged, components = activations["b"][1][:JUDGED_TOKENS], {}
    for seed in seeds:
        small = initial_saes[config("rotation", max(widths), seed).name]  # A's own
        carried = (transfer_sae(small, null) for null in component_stitches(stitched.moments, seed=seed))
        run = config("stitch", max(widths), seed)
        components[seed] = [unexplained_at_start(run, judged, sae.to(judged.device)) for sae in carried]
    return SAESweep(a, train("b", of_b, initial_saes=initial_saes), components)
