r"""Gradients of a TopK SAE from the latents that fire, for training on a CPU (section 3.1).

Only k latents fire on a token, so of the five dense products of a step (see `training`) one is left: x W_enc, which
says who wins. The gradients are those that autograd has for SAELens' losses.

Offers `encode`, `sparse_gradients`, `add_auxiliary_gradients`, `top`.
"""

import torch
from sae_lens import TopKTrainingSAE
from torch import Tensor
from torch.nn.functional import embedding_bag

CHUNK = 512  # tokens encoded at once, so that their pre-activations stay in a CPU's cache
GROUP = 8  # latents that `top` compares together


def top(pre: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Do `pre.topk(k, sorted=False)` among the k groups with the largest maxima, in half the time on a CPU."""
    n, m = pre.shape
    if m % GROUP or m < 2 * k * GROUP:
        return pre.topk(k, sorted=False)
    grouped = pre.view(n, GROUP, m // GROUP)  # latents j, j + m / 8, j + 2 m / 8, ... are a group
    groups = grouped.amax(1).topk(k, sorted=False).indices
    candidates = grouped.gather(2, groups[:, None].expand(-1, GROUP, -1)).flatten(1)  # (n, 8 k)
    values, which = candidates.topk(k, sorted=False)
    return values, groups.gather(1, which % k) + which // k * (m // GROUP)


@torch.no_grad()
def encode(sae: TopKTrainingSAE, x: Tensor) -> tuple[Tensor, Tensor]:
    """Find the k latents that win each token: their activations and their numbers, (n, k) each."""
    parts = [top(torch.addmm(sae.b_enc, chunk, sae.W_enc), sae.cfg.k) for chunk in x.split(CHUNK)]
    values, winners = (torch.cat(part) for part in zip(*parts))
    return values.relu_(), winners


def sparse_gradients(sae: TopKTrainingSAE, x: Tensor) -> tuple[Tensor, Tensor]:
    """Set the gradients of E |x' - x|^2; return the errors x' - x (n, d_in) and which latents fired (d_sae,)."""
    acts, winners = encode(sae, x)
    decoder = sae.W_dec.detach()
    acts.requires_grad_()
    written = embedding_bag(winners, decoder, per_sample_weights=acts, mode="sum")
    error = (written + sae.b_dec).detach() - x
    by_output = error * (2 / len(x))
    (by_acts,) = torch.autograd.grad(written, acts, by_output)
    by_acts = by_acts.flatten() * (acts.flatten() > 0)  # relu
    acts = acts.detach().flatten()

    # Sort the wins by latent: sums over the tokens that a latent won are the rows of both matrices' gradients.
    order = winners.flatten().argsort(stable=True)
    tokens, counts = order // sae.cfg.k, winners.flatten().bincount(minlength=sae.cfg.d_sae)
    starts = counts.cumsum(0) - counts
    sae.W_dec.grad = embedding_bag(tokens, by_output, starts, per_sample_weights=acts[order], mode="sum")
    sae.W_enc.grad = embedding_bag(tokens, x, starts, per_sample_weights=by_acts[order], mode="sum").T.contiguous()
    sae.b_enc.grad = torch.zeros_like(sae.b_enc).index_add_(0, winners.flatten(), by_acts)
    sae.b_dec.grad = by_output.sum(0)
    fired = torch.zeros(sae.cfg.d_sae, dtype=torch.bool, device=x.device)
    fired[winners.flatten()[acts > 0]] = True
    return error, fired


def add_auxiliary_gradients(sae: TopKTrainingSAE, x: Tensor, error: Tensor, dead: Tensor) -> None:
    """Add the gradients of SAELens' auxiliary loss: at each token the d_in / 2 best dead latents write the error."""
    which = dead.nonzero().flatten()
    parts = [tensor.detach().requires_grad_() for tensor in (sae.W_enc[:, which], sae.b_enc[which], sae.W_dec[which])]
    encoder, bias, decoder = parts
    pre, half = x @ encoder + bias, x.shape[1] // 2
    values, winners = pre.topk(min(half, len(which)), sorted=False)
    written = torch.zeros_like(pre).scatter(1, winners, values) @ decoder
    loss = sae.cfg.aux_loss_coefficient * min(len(which) / half, 1.0) * (written + error).square().sum(-1).mean()
    by_encoder, by_bias, by_decoder = torch.autograd.grad(loss, parts)
    assert sae.W_enc.grad is not None and sae.b_enc.grad is not None and sae.W_dec.grad is not None
    sae.W_enc.grad[:, which] += by_encoder
    sae.b_enc.grad[which] += by_bias
    sae.W_dec.grad[which] += by_decoder
