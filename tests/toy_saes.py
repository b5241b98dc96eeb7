"""Small SAEs of every kind with weights that are all different, for `test_saes.py` and `test_sae_loading.py`."""

import torch
from sae_lens import (
    SAE,
    BatchTopKTrainingSAEConfig,
    JumpReLUSAEConfig,
    JumpReLUTrainingSAEConfig,
    StandardSAEConfig,
    TopKSAEConfig,
    TopKTrainingSAEConfig,
    TrainingSAE,
)

D_A, D_B, LATENTS, K = 12, 20, 64, 5
KINDS = {
    "topk": (TopKSAEConfig, {"k": K}),
    "rescaled topk": (TopKSAEConfig, {"k": K, "rescale_acts_by_decoder_norm": True}),
    "jumprelu": (JumpReLUSAEConfig, {}),
    "relu": (StandardSAEConfig, {}),
}
TRAINED = {
    "topk": (TopKTrainingSAEConfig, {"k": K}),
    "plain topk": (TopKTrainingSAEConfig, {"k": K, "rescale_acts_by_decoder_norm": False}),
    "batchtopk": (BatchTopKTrainingSAEConfig, {"k": K}),
    "jumprelu": (JumpReLUTrainingSAEConfig, {}),
}


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def randomised(sae, seed=1):
    """Weights drawn anew, positive thresholds, decoder rows of norms from about 0.3 to 3."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in sorted(sae.state_dict().items()):
            tensor.copy_(torch.randn(tensor.shape, generator=generator, dtype=torch.float64))
            if "threshold" in name:
                tensor.abs_()
            if name == "W_dec":
                tensor.mul_(
                    torch.logspace(-0.5, 0.5, len(tensor), dtype=torch.float64)[:, None] / tensor.shape[1] ** 0.5
                )
    return sae


def make_sae(kind, d_in=D_A, dtype="float64", **options):
    config, own = KINDS[kind]
    config = config(d_in, LATENTS, dtype=dtype, **{**own, **options})
    return randomised(SAE.get_sae_class_for_architecture(config.architecture())(config))


def make_training_sae(kind, **options):
    config, own = TRAINED[kind]
    config = config(D_A, LATENTS, dtype="float64", **{**own, **options})
    return randomised(TrainingSAE.get_sae_class_for_architecture(config.architecture())(config))
