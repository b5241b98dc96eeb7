"""The experiment of section 3.1: SAEs of B trained from scratch and from A's, carried across, over widths and seeds.

Figs. 1c, 2 and 8, Table 4, App. D. For each width and seed an SAE of A is trained, carried across by the stitch
(Eq. 6), and trained on as one of B, beside a run from scratch and a control that gets the angles between A's decoder
directions and nothing of the stitch. The widest are also trained with the auxiliary loss, which the paper leaves out.
All runs of a side read the same batches in one pass over the activations.

Offers `sweep_saes`, `SAESweep`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict
from typing import NamedTuple

from ..data.pairs import ModelPair
from ..models.harvest import of_activations
from ..models.language_model import LanguageModel
from ..stitching.stitch import Stitch
from ..utils.cache import artifact
from .initialisation import INITIALS, SAETrainingConfig
from .pair import paired_activations
from .state import load_trained
from .training import Curve, OneSide, train_saes
from .transfer import transfer_sae

CHECKPOINT_EVERY = 50  # steps: a sweep that is killed loses less than a minute
JUDGED_TOKENS = 8192  # of the evaluation text; all runs are judged often, and together that must not outweigh training


class SAESweep(NamedTuple):
    """Curves by (width, seed), and for B by (initial, width, seed); `initial` as in `SAETrainingConfig`."""

    a: dict[tuple[int, int], Curve]
    b: dict[tuple[str, int, int], Curve]
    auxiliary: dict[tuple[str, int, int], Curve]
    """Runs of B with the auxiliary loss: `random` and `stitch`, the largest width."""


def sweep_saes(
    pair: ModelPair,
    models: tuple[LanguageModel, LanguageModel],
    layers: tuple[int, int],
    stitch: Stitch,
    *,
    scale: str,
    widths: Sequence[int],
    seeds: Sequence[int],
) -> SAESweep:
    """Train all of it, or find it in `artifacts/`; what was cut off goes on from its last checkpoint."""
    sizes, recipe = pair.scale(scale), pair.sae_recipe
    stream, held_out = paired_activations(pair, models, layers, scale=scale)
    held_out = tuple(side[:JUDGED_TOKENS] for side in held_out)
    made_of = of_activations(pair, layers, scale=scale) | {
        "widths": list(widths),
        "seeds": list(seeds),
        "recipe": asdict(recipe),
        "steps": sizes.sae_sweep_steps,
        "stitch": [hashlib.sha256(m.cpu().numpy().tobytes()).hexdigest() for m in (stitch.P_up, stitch.P_down)],
    }

    def config(initial: str, width: int, seed: int, auxiliary_loss: bool = False) -> SAETrainingConfig:
        return SAETrainingConfig(
            d_sae=width,
            k=min(recipe.k, width),
            n_steps=sizes.sae_sweep_steps,
            initial=initial,
            seed=seed,
            lr=recipe.lr,
            batch_tokens=recipe.batch_tokens,
            initial_bias="mean",
            auxiliary_loss=auxiliary_loss,
            dead_after=recipe.dead_after,
        )

    def train(side: str, configs: dict[tuple, SAETrainingConfig], initial_saes=None) -> dict[tuple, Curve]:
        curves = train_saes(
            OneSide(stream, side),
            list(configs.values()),
            held_out=held_out["ab".index(side)],
            folder=folders[side],
            key=folders[side].name,
            initial_saes=initial_saes,
            evaluate_every=max(1, sizes.sae_sweep_steps // 20),
            checkpoint_every=CHECKPOINT_EVERY,
        )
        return {key: curves[chosen.name] for key, chosen in configs.items()}

    folders = {
        side: artifact(
            pair.name, f"sweep-{side}", made_of, sources=(train_saes, transfer_sae, paired_activations), suffix=""
        )
        for side in "ab"
    }
    both = [(width, seed) for width in widths for seed in seeds]
    of_a = {key: config("random", *key) for key in both}
    a = train("a", of_a)
    of_b = {(initial, *key): config(initial, *key) for initial in INITIALS for key in both}
    helped = {
        (initial, max(widths), seed, "auxiliary"): config(initial, max(widths), seed, True)
        for initial in ("random", "stitch")
        for seed in seeds
    }
    initial_saes = {}
    for chosen in (*of_b.values(), *helped.values()):
        if chosen.initial != "random":
            small = load_trained(folders["a"], of_a[chosen.d_sae, chosen.seed], device=str(held_out[1].device))
            initial_saes[chosen.name] = transfer_sae(small, stitch) if chosen.initial == "stitch" else small
    b = train("b", of_b | helped, initial_saes)
    return SAESweep(a, {key: b[key] for key in of_b}, {key[:3]: b[key] for key in helped})
