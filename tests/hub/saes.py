"""SAEs under the names and in the formats of the pairs' published ones, small and random.

Stands in for EleutherAI's sparsify checkpoints, for Gemma Scope 1 and 2, and for a repository of SAELens 3. Widths are
those of the stand-in models, and there are fewer latents than the names say.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from .checkpoints import CHECKPOINTS

N_LATENTS = 64
K = 16
SAE_WEIGHTS = "sae_weights.safetensors"
SPARSIFY = {
    "EleutherAI/sae-pythia-70m-deduped-32k/layers.2": "EleutherAI/pythia-70m-deduped",
    "EleutherAI/sae-pythia-160m-deduped-32k/layers.3": "EleutherAI/pythia-160m-deduped",
}
GEMMA_SCOPE = {
    "google/gemma-scope-2b-pt-res/layer_19/width_16k/average_l0_73": "google/gemma-2-2b",
    "google/gemma-scope-9b-pt-res/layer_32/width_16k/average_l0_61": "google/gemma-2-9b",
}
GEMMA_SCOPE_2 = {
    "google/gemma-scope-2-270m-pt/resid_post/layer_9_width_16k_l0_medium": "google/gemma-3-270m",
    "google/gemma-scope-2-1b-pt/resid_post/layer_13_width_16k_l0_medium": "google/gemma-3-1b-pt",
}
SAE_LENS_3 = {"someone/old-saes/layer_2": "EleutherAI/pythia-70m-deduped"}


def weights(model: str) -> dict[str, Tensor]:
    """W_enc (d, latents), b_enc, W_dec (latents, d) with rows of norm 1, b_dec, threshold; the same each time."""
    checkpoint = CHECKPOINTS[model]
    width = checkpoint.config.keywords["width"]
    generator = torch.Generator().manual_seed(checkpoint.seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    rows = torch.nn.functional.normalize(normal(N_LATENTS, width), dim=1)
    return {
        "W_enc": (rows.T + 0.1 * normal(width, N_LATENTS)).contiguous(),
        "b_enc": 0.1 * normal(N_LATENTS),
        "W_dec": rows,
        "b_dec": normal(width),
        "threshold": normal(N_LATENTS).abs() + 0.5,
    }


def write_saes(root: Path) -> None:
    """The SAEs, each at `root/models/<owner>/<name>/<folder>`."""
    for path, model in SPARSIFY.items():
        folder, stored = Path(root) / "models" / path, weights(model)
        folder.mkdir(parents=True)
        tensors = {
            "encoder.weight": stored["W_enc"].T.contiguous(),
            "encoder.bias": stored["b_enc"],
            "W_dec": stored["W_dec"],
            "b_dec": stored["b_dec"],
        }
        save_file(tensors, folder / "sae.safetensors")
        config = {
            "expansion_factor": 32,
            "normalize_decoder": True,
            "num_latents": N_LATENTS,
            "k": K,
            "signed": False,
            "d_in": len(stored["b_dec"]),
        }
        (folder / "cfg.json").write_text(json.dumps(config))
    for path, model in SAE_LENS_3.items():
        folder, stored = Path(root) / "models" / path, weights(model)
        folder.mkdir(parents=True)
        save_file({name: tensor for name, tensor in stored.items() if name != "threshold"}, folder / SAE_WEIGHTS)
        config = {
            "architecture": "standard",
            "activation_fn_str": "topk",
            "k": K,
            "apply_b_dec_to_input": True,
            "model_name": model,
            "hook_name": "blocks.2.hook_resid_post",
            "dtype": "torch.float16",
            "sae_lens_version": "3.13.0",
        }
        (folder / "cfg.json").write_text(json.dumps(config))
    for path, model in GEMMA_SCOPE.items():
        folder = Path(root) / "models" / path
        folder.mkdir(parents=True)
        np.savez(folder / "params.npz", **{name: tensor.numpy() for name, tensor in weights(model).items()})
    for path, model in GEMMA_SCOPE_2.items():
        folder = Path(root) / "models" / path
        folder.mkdir(parents=True)
        save_file({name.lower(): tensor for name, tensor in weights(model).items()}, folder / "params.safetensors")
        layer = path.split("layer_")[1].split("_")[0]
        config = {"architecture": "jump_relu", "model_name": model, "hf_hook_point_in": f"model.layers.{layer}.output"}
        (folder / "config.json").write_text(json.dumps(config))
