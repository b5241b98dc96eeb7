"""The SAEs of a pair's two models, published or trained here, so that chapters need not care which.

Section 3 and App. D: published TopK SAEs for Pythia and JumpReLU ones for Gemma; for GPT-2, as for a reader's own pair,
TopK SAEs trained on the unnormalised residual stream by the paper's recipe. Those of the embedded pair were trained in
the same way and come with the package.

Offers `native_saes`, `paired_activations`.
"""

from __future__ import annotations

from dataclasses import asdict

import torch
from sae_lens import SAE

from ..data.pairs import ModelPair
from ..models.harvest import ActivationStream, evaluation_batches, of_activations, paired_residuals, training_batches
from ..models.language_model import LanguageModel
from ..utils.cache import artifact
from .initialisation import SAETrainingConfig
from .io import load_sae
from .state import load_trained
from .training import OneSide, train_saes


def paired_activations(
    pair: ModelPair, models: tuple[LanguageModel, LanguageModel], layers: tuple[int, int], *, scale: str
) -> tuple[ActivationStream, tuple[torch.Tensor, torch.Tensor]]:
    """Activations (x, y) of the training text as a stream, and those of the evaluation text: (n, d_a), (n, d_b).

    The stream is kept in memory but for scale `paper`, where each pass runs the models anew.
    """
    sizes, tokenizer = pair.scale(scale), models[0].tokenizer
    stream = ActivationStream(
        *models,
        *layers,
        lambda: training_batches(pair, sizes, tokenizer, sizes.train_tokens),
        step_tokens=pair.sae_recipe.batch_tokens,
        keep=scale != "paper",
    )
    held_out = paired_residuals(*models, evaluation_batches(pair, sizes, tokenizer), [layers[0]], [layers[1]])
    sides = zip(*((xs[layers[0]].float(), ys[layers[1]].float()) for xs, ys in held_out))
    return stream, tuple(torch.cat(side) for side in sides)


def native_saes(
    pair: ModelPair,
    models: tuple[LanguageModel, LanguageModel],
    layers: tuple[int, int],
    *,
    scale: str,
    seed: int = 0,
    sides: str = "ab",
    anew: bool = False,
) -> tuple[SAE, ...]:
    """SAEs of A and B, or of one of them, at the stitched layers: those that the pair's file names, else trained ones.

    Training is done once for what it is made of; its state and its SAEs are kept in `artifacts/`. With `anew` those of
    the embedded pair are trained by it too, instead of read as they were shipped. ValueError if a named SAE is of
    another width than its model.
    """
    found, stream, held_out = [], None, ()
    for side in sides:
        index = "ab".index(side)
        ref, model = pair.saes.get(side), models[index]
        if ref is None or (anew and str(ref).startswith("embedded:")):
            if stream is None:
                stream, held_out = paired_activations(pair, models, layers, scale=scale)
            found.append(_trained(pair, side, layers, stream, held_out[index], scale, seed))
            continue
        found.append(load_sae(ref, device=str(model.device)))
        if found[-1].cfg.d_in != model.d_model:
            raise ValueError(
                f"the SAE of {side} ({ref}) reads {found[-1].cfg.d_in} dimensions: expected {model.d_model}, the "
                f"width of {model.ref!r}"
            )
    return tuple(found)


def _trained(pair: ModelPair, side: str, layers: tuple[int, int], stream, held_out, scale: str, seed: int) -> SAE:
    sizes, recipe = pair.scale(scale), pair.sae_recipe
    config = SAETrainingConfig(
        d_sae=sizes.sae_latents,
        k=recipe.k,
        lr=recipe.lr,
        batch_tokens=recipe.batch_tokens,
        n_steps=sizes.sae_steps,
        seed=seed,
        initial_bias="mean",
    )
    made_of = of_activations(pair, layers, scale=scale) | {"config": asdict(config)}
    folder = artifact(pair.name, f"sae-{side}", made_of, sources=(train_saes, paired_activations), suffix="")
    hook = f"blocks.{layers['ab'.index(side)]}.hook_resid_pre"
    metadata = {"model_name": getattr(pair, side).model, "hook_name": hook}
    train_saes(OneSide(stream, side), [config], held_out=held_out, folder=folder, key=folder.name, metadata=metadata)
    return load_trained(folder, config, device=str(held_out.device))
