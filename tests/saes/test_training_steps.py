"""Each step of a training against SAELens' trainer, naive arithmetic and counted FLOPs."""

import pytest
import torch
from sae_lens import TopKTrainingSAE, TopKTrainingSAEConfig
from sae_lens.config import SAETrainerConfig
from sae_lens.saes.sae import TrainStepInput
from sae_lens.training.sae_trainer import SAETrainer
from torch.utils.flop_counter import FlopCounterMode
from toy_sweep import BATCH, D, K, M, activations, config, transferred

from stitch_utils.saes import training as sae_training
from stitch_utils.saes.initialisation import starting_sae
from stitch_utils.saes.training import training_flops


def saelens_steps(start, batches, *, auxiliary, lr, dead_after, beta1):
    """SAELens' own trainer on the same batches, decoder rows normalised after each step: weights after each."""
    cfg = TopKTrainingSAEConfig(
        d_in=D,
        d_sae=M,
        k=K,
        apply_b_dec_to_input=False,
        rescale_acts_by_decoder_norm=False,
        aux_loss_coefficient=float(auxiliary),
    )
    sae = TopKTrainingSAE(cfg)
    sae.load_state_dict(start.state_dict())
    trainer = SAETrainer(
        SAETrainerConfig(
            total_training_samples=len(batches) * BATCH,
            train_batch_size_samples=BATCH,
            lr=lr,
            dead_feature_window=dead_after,
            lr_end=lr,
            adam_beta1=beta1,
        ),
        sae,
        iter(()),
    )
    after = []
    for batch in batches:
        trainer.step(batch)
        trainer.n_training_steps += 1
        sae.W_dec.data /= sae.W_dec.data.norm(dim=-1, keepdim=True)
        after.append({name: value.clone() for name, value in sae.state_dict().items()})
    return after


@pytest.mark.parametrize(
    ("auxiliary", "initial", "beta1"),
    [
        (False, "random", 0.9),
        (False, "stitch", 0.9),
        (True, "random", 0.9),
        (True, "stitch", 0.9),
        (False, "random", 0.0),
    ],
)
def test_each_step_is_that_of_saelens_trainer(auxiliary, initial, beta1):
    dead_after = 3
    chosen = config(initial=initial, auxiliary_loss=auxiliary, dead_after=dead_after, lr=1e-3, beta1=beta1)
    given = transferred()
    with torch.no_grad():
        given.b_enc -= 1.5  # fewer than k fire on some tokens
        given.b_enc[:6] = -50  # and these never
        assert 0 < (given.encode(activations(BATCH)) > 0).sum(1).float().mean() < K - 0.2
    given = given if initial == "stitch" else None
    # Small batches leave gradients that are not clipped, so that their scale matters.
    batches = [batch * (0.02 if i % 3 else 1) for i, batch in enumerate(activations(BATCH * 40).split(BATCH))]
    options = {"auxiliary": auxiliary, "lr": 1e-3, "dead_after": dead_after, "beta1": beta1}
    expected = saelens_steps(starting_sae(chosen, D, given), batches, **options)
    run = sae_training._Run(chosen, activations(BATCH), given, {})
    spent = [0.0]
    for step, batch in enumerate(batches):
        run.step(batch)
        spent.append(run.spent)
        for name, value in expected[step].items():
            torch.testing.assert_close(run.sae.state_dict()[name], value, rtol=1e-5, atol=1e-5)
    assert spent[1] == 10 * D * M * BATCH
    if initial == "stitch":
        assert spent[-1] - spent[-2] == (16 if auxiliary else 10) * D * M * BATCH
        never = run.silent == len(batches)
        assert never.sum() >= 6
        moved = (run.sae.W_dec - starting_sae(chosen, D, given).W_dec).abs().amax(1) > 1e-3
        assert moved[never].any() == auxiliary, "dead latents learn by the auxiliary loss alone"


def test_the_first_step_is_that_of_naive_arithmetic():
    """Dense matrices, autograd, the norm clipped by hand and Adam's first step, which is lr times the sign."""
    given = transferred()
    chosen = config(initial="stitch", lr=1e-3)
    start = starting_sae(chosen, D, given)
    x = activations(BATCH)
    leaves = [p.detach().clone().requires_grad_() for p in (start.W_enc, start.b_enc, start.W_dec, start.b_dec)]
    pre = x @ leaves[0] + leaves[1]
    threshold = pre.sort(dim=1, descending=True).values[:, K - 1 : K]
    out = (pre * (pre >= threshold)).relu() @ leaves[2] + leaves[3]
    ((out - x) ** 2).sum(1).mean().backward()
    norm = sum((leaf.grad**2).sum() for leaf in leaves).sqrt()
    assert norm > 1
    stepped = [leaf.detach() - 1e-3 * (g := leaf.grad / (norm + 1e-6)) / (g.abs() + 1e-8) for leaf in leaves]
    stepped[2] /= stepped[2].norm(dim=1, keepdim=True)
    run = sae_training._Run(chosen, activations(BATCH), given, {})
    run.step(x)
    for parameter, value in zip((run.sae.W_enc, run.sae.b_enc, run.sae.W_dec, run.sae.b_dec), stepped):
        torch.testing.assert_close(parameter.detach(), value, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("d", "m"), [(D, M), (33, 50), (7, 128)])
@pytest.mark.parametrize("dead", [False, True])
def test_flops_are_those_of_saelens_steps(d, m, dead):
    """As torch counts them, but for the gradient that SAELens carries on to the input, times zero."""
    sae = starting_sae(config(d_sae=m, auxiliary_loss=True), d)
    sae.b_dec.requires_grad_(False)
    x, mask = torch.zeros(1, d), torch.ones(m, dtype=torch.bool) if dead else None
    with FlopCounterMode(display=False) as counter:
        sae.training_forward_pass(TrainStepInput(x, {}, mask, 0, False)).loss.backward()
    assert training_flops(d, m, dead=dead) == counter.get_total_flops()


def test_flops_are_those_of_table_3():
    """Pythia-70m, width 32k, 120k steps of 4096: 8.2e16; Pythia-160m: 1.2e17."""
    for d_model, published in ((512, 8.2e16), (768, 1.2e17)):
        assert training_flops(d_model, 2**15) * 4096 * 120_000 == pytest.approx(published, rel=0.05)
