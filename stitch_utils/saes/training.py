"""TopK SAEs trained from scratch and from a stitch, a whole sweep of them in one pass over the activations.

Section 3.1 and App. D (Figs. 1c, 2, 8, Tables 3, 4). With row vectors, as Eqs. 4 and 5 have it,

    f = TopK(x W_enc + b_enc),   x' = f W_dec + b_dec,   loss = E |x' - x|^2

and the paper's recipe: Adam at a constant 1e-4, batches of 4096 tokens, decoder rows normalised after each step, no
auxiliary loss. Where a run starts is `sae_start`'s matter.

SAELens gives the classes, the initial weights and the losses. On a CPU the same gradients are had from the k latents
that fire, which leaves one dense product of five, and those of the auxiliary loss from the dead latents alone; FLOPs
count all products, as the paper's do.

What a sweep leaves in its folder is `sae_state`'s matter.

Offers `train_saes`, `Curve`, `training_flops`, `OneSide`.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from filelock import FileLock
from jaxtyping import Float
from sae_lens import SAE, TopKTrainingSAE
from sae_lens.saes.sae import SAEMetadata, TrainStepInput
from torch import Tensor
from torch.nn.functional import embedding_bag
from torch.utils.flop_counter import FlopCounterMode

from ..utils.files import remove_if_damaged, remove_sealed, write_whole
from ..utils.progress import progress
from .initialisation import SAETrainingConfig, starting_sae
from .state import CHECKPOINT, read_state, sae_folder, write_state

MAX_GRAD_NORM = 1.0  # as SAELens' trainer clips gradients
CHUNK = 512  # tokens encoded at once, so that their pre-activations stay in a CPU's cache
GROUP = 8  # latents that `_top` looks at together


class Curve(NamedTuple):
    """How a run went. Two runs of one sweep agree in all but `seconds`."""

    steps: np.ndarray
    """(points,): steps done at each evaluation, from 0 on."""
    tokens: np.ndarray
    flops: np.ndarray
    """(points,): of the training so far, see `training_flops`."""
    mse: np.ndarray
    """(points,): on the held-out activations, mean over tokens and dimensions."""
    explained_variance: np.ndarray
    """(points,): on the held-out activations, 1 - squared errors over squared deviations from the mean."""
    seconds: np.ndarray
    """(points,): spent on this run's steps."""
    training_flops: np.ndarray
    """(n_steps,): after each step."""
    training_explained_variance: np.ndarray
    """(n_steps,): of each batch, before the step that it caused."""
    cosine: np.ndarray
    """(d_sae,): of each decoder row at the end to itself at the start (Fig. 2b)."""
    dead: np.ndarray
    """(d_sae,): whether the latent fires on no held-out token at the end."""

    def moving_average(self, window: int = 100) -> np.ndarray:
        """(n_steps,): training explained variance over the last `window` steps, or over all when there are fewer."""
        total = np.concatenate([[0.0], np.cumsum(self.training_explained_variance)])
        last = np.arange(1, len(total))
        first = np.maximum(last - window, 0)
        return (total[last] - total[first]) / (last - first)


class OneSide:
    """The activations of one model, re-iterable, from a re-iterable of pairs such as `harvest.ActivationStream`."""

    def __init__(self, pairs: Iterable[tuple[Tensor, Tensor]], side: str):
        if side not in ("a", "b"):
            raise ValueError(f"unknown side {side!r}: expected 'a' or 'b'")
        self.pairs, self.index = pairs, "ab".index(side)

    def __iter__(self) -> Iterator[Float[Tensor, "_ _"]]:
        return (pair[self.index] for pair in self.pairs)


def training_flops(sae: TopKTrainingSAE, *, dead: bool = False) -> int:
    """FLOPs a token of one training step, by torch's FlopCounterMode: 10 d_in d_sae, Table 3's rate.

    Encoder and decoder forwards, and backwards the decoder's two products and the encoder's one, at 2 d_in d_sae each.
    With `dead`, what a step takes that has an auxiliary loss: three more.
    """
    x, mask = sae.b_dec.detach().new_zeros(1, sae.cfg.d_in), None
    if dead:
        mask = torch.ones(sae.cfg.d_sae, dtype=torch.bool, device=x.device)
    # SAELens also carries the gradient on to the input, times zero, for a b_dec that is not subtracted from it.
    sae.b_dec.requires_grad_(False)
    with FlopCounterMode(display=False) as counter:
        sae.training_forward_pass(TrainStepInput(x, {}, mask, 0, False)).loss.backward()
    sae.b_dec.requires_grad_(True)
    sae.zero_grad(set_to_none=True)
    return counter.get_total_flops()


def _top(pre: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """`pre.topk(k, sorted=False)`, among the k groups of latents with the largest maxima: half the time on a CPU."""
    n, m = pre.shape
    if m % GROUP or m < 2 * k * GROUP:
        return pre.topk(k, sorted=False)
    grouped = pre.view(n, GROUP, m // GROUP)  # latents j, j + m / 8, j + 2 m / 8, ... are a group
    groups = grouped.amax(1).topk(k, sorted=False).indices
    candidates = grouped.gather(2, groups[:, None].expand(-1, GROUP, -1)).flatten(1)  # (n, 8 k)
    values, which = candidates.topk(k, sorted=False)
    return values, groups.gather(1, which % k) + which // k * (m // GROUP)


@torch.no_grad()
def _encode(sae: TopKTrainingSAE, x: Tensor) -> tuple[Tensor, Tensor]:
    """Activations of the k winners of each token and which they are: (n, k) each."""
    parts = [_top(torch.addmm(sae.b_enc, chunk, sae.W_enc), sae.cfg.k) for chunk in x.split(CHUNK)]
    values, winners = (torch.cat(part) for part in zip(*parts))
    return values.relu_(), winners


def _sparse_gradients(sae: TopKTrainingSAE, x: Tensor) -> tuple[Tensor, Tensor]:
    """Fills in the gradients of E |x' - x|^2; the errors x' - x, and which latents fired."""
    acts, winners = _encode(sae, x)
    decoder = sae.W_dec.detach()
    acts.requires_grad_()
    written = embedding_bag(winners, decoder, per_sample_weights=acts, mode="sum")
    error = (written + sae.b_dec).detach() - x
    by_output = error * (2 / len(x))
    (by_acts,) = torch.autograd.grad(written, acts, by_output)
    by_acts = by_acts.flatten() * (acts.flatten() > 0)  # relu
    acts = acts.detach().flatten()

    # Latent by latent the tokens on which it won: sums over them are the rows of both matrices' gradients.
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


def _add_auxiliary_gradients(sae: TopKTrainingSAE, x: Tensor, error: Tensor, dead: Tensor) -> None:
    """Adds the gradients of SAELens' auxiliary loss: the d_in / 2 best of the dead latents at each token are to write
    what the others leave out."""
    which = dead.nonzero().flatten()
    parts = [tensor.detach().requires_grad_() for tensor in (sae.W_enc[:, which], sae.b_enc[which], sae.W_dec[which])]
    encoder, bias, decoder = parts
    pre, half = x @ encoder + bias, x.shape[1] // 2
    values, winners = pre.topk(min(half, len(which)), sorted=False)
    written = torch.zeros_like(pre).scatter(1, winners, values) @ decoder
    scale = min(len(which) / half, 1.0)
    loss = sae.cfg.aux_loss_coefficient * scale * (written + error).square().sum(-1).mean()
    by_encoder, by_bias, by_decoder = torch.autograd.grad(loss, parts)
    sae.W_enc.grad[:, which] += by_encoder
    sae.b_enc.grad[which] += by_bias
    sae.W_dec.grad[which] += by_decoder


class _Run:
    """A run between two steps."""

    def __init__(self, config: SAETrainingConfig, d_in: int, given: SAE | None, metadata: Mapping, device):
        self.config = config
        self.sae = starting_sae(config, d_in, given).to(device)
        self.sae.cfg.metadata = SAEMetadata(**metadata)
        decoder = self.sae.W_dec.detach()
        self.norms = decoder.norm(dim=-1, keepdim=True)
        self.directions = decoder / self.norms.clamp_min(1e-8)
        self.optimizer = torch.optim.Adam(self.sae.parameters(), lr=config.lr, betas=(0.9, 0.999))
        self.silent = torch.zeros(config.d_sae, device=device)  # steps since each latent fired
        self.flops = {dead: config.batch_tokens * training_flops(self.sae, dead=dead) for dead in (False, True)}
        self.spent, self.seconds = 0, 0.0
        self.points: list[Sequence[float]] = []  # steps, flops, mse, explained variance, seconds
        self.log: list[Sequence[float]] = []  # flops, explained variance of each step
        self.dead: Tensor | None = None

    def start(self, batch: Tensor) -> None:
        if self.config.initial_bias == "mean" and self.config.initial != "stitch":
            self.sae.b_dec.data.copy_(batch.mean(0))

    def step(self, x: Tensor, variance: float) -> None:
        """One step on a batch whose squared deviations from its mean sum to `variance`."""
        began = time.perf_counter()
        dead = self.silent > self.config.dead_after
        helped = self.config.auxiliary_loss and bool(dead.any())
        if x.is_cuda:
            mask = dead if helped else None
            output = self.sae.training_forward_pass(TrainStepInput(x, {}, mask, len(self.log), False))
            output.loss.backward()
            error, fired = output.sae_out.detach() - x, output.feature_acts.bool().any(0)
        else:
            error, fired = _sparse_gradients(self.sae, x)
            if helped:
                _add_auxiliary_gradients(self.sae, x, error, dead)
        torch.nn.utils.clip_grad_norm_(self.sae.parameters(), MAX_GRAD_NORM)
        self.optimizer.step()
        self.optimizer.zero_grad()
        decoder = self.sae.W_dec.data
        decoder.mul_(self.norms / decoder.norm(dim=-1, keepdim=True).clamp_min(1e-8))
        self.silent = (self.silent + 1).masked_fill_(fired, 0)
        self.spent += self.flops[helped]
        self.log.append((self.spent, 1 - error.square().sum().item() / variance))
        self.seconds += time.perf_counter() - began

    def evaluate(self, held_out: Tensor, variance: float) -> None:
        squared, alive = 0.0, torch.zeros_like(self.silent, dtype=torch.bool)
        with torch.no_grad():
            for x in held_out.split(self.config.batch_tokens):
                acts, winners = _encode(self.sae, x)
                written = embedding_bag(winners, self.sae.W_dec, per_sample_weights=acts, mode="sum")
                squared += (written + self.sae.b_dec - x).square().sum(dtype=torch.float64).item()
                alive[winners[acts > 0]] = True
        self.dead = ~alive
        point = (len(self.log), self.spent, squared / held_out.numel(), 1 - squared / variance, self.seconds)
        self.points.append(point)

    def state(self) -> tuple[dict[str, Tensor], dict[str, float]]:
        """Tensors and plain numbers from which `load` goes on."""
        tensors = {f"sae.{name}": tensor for name, tensor in self.sae.state_dict().items()}
        for number, moments in self.optimizer.state_dict()["state"].items():
            tensors |= {f"adam.{number}.{name}": tensor for name, tensor in moments.items()}
        tensors |= {name: torch.tensor(getattr(self, name), dtype=torch.float64) for name in ("points", "log")}
        tensors |= {"silent": self.silent, "dead": self.dead}
        return tensors, {"spent": self.spent, "seconds": self.seconds}

    def load(self, tensors: Mapping[str, Tensor], numbers: Mapping[str, float]) -> None:
        device = self.silent.device
        self.sae.load_state_dict({name: tensors[f"sae.{name}"] for name in self.sae.state_dict()})
        moments: dict[int, dict[str, Tensor]] = {}
        for name in tensors:
            if name.startswith("adam."):
                _, number, kind = name.split(".")
                moments.setdefault(int(number), {})[kind] = tensors[name]
        self.optimizer.load_state_dict(self.optimizer.state_dict() | {"state": moments})
        self.points, self.log = (tensors[name].tolist() for name in ("points", "log"))
        self.silent, self.dead = (tensors[name].to(device) for name in ("silent", "dead"))
        self.spent, self.seconds = numbers["spent"], numbers["seconds"]

    def curve(self) -> Curve:
        steps, flops, mse, explained, seconds = np.array(self.points, dtype=float).T
        spent, training = np.array(self.log, dtype=float).T
        steps = steps.astype(int)
        cosine = torch.nn.functional.cosine_similarity(self.sae.W_dec.detach(), self.directions, dim=-1)
        return Curve(
            steps,
            steps * self.config.batch_tokens,
            flops,
            mse,
            explained,
            seconds,
            spent,
            training,
            cosine.cpu().numpy(),
            self.dead.cpu().numpy(),
        )


def train_saes(
    stream: Iterable[Tensor],
    configs: Sequence[SAETrainingConfig],
    *,
    held_out: Float[Tensor, "n d"],
    folder: str | Path,
    key: str = "",
    initial_saes: Mapping[str, SAE] | None = None,
    evaluate_every: int = 100,
    checkpoint_every: int = 500,
    metadata: Mapping[str, str | int] | None = None,
) -> dict[str, Curve]:
    """Train all runs of a sweep side by side, each batch going to every one, and give {name of the config: curve}.

    `stream` gives activations (m, d), m as it likes, and is iterated anew when it ends, if it can be; what is left of
    it that does not fill a batch is dropped. Whatever order it has, the batches have. `initial_saes` are those of the
    runs that start from one, by the configs' names. Runs live where `held_out` is. `metadata` goes into the SAEs.

    `folder` holds the state of the sweep, written every `checkpoint_every` steps and put in place at once: a sweep
    that was cut off goes on from there and gives the same curves as one that was not, and one that is finished is read
    back. A sweep of other configs, initial SAEs, held-out activations or another `key`, which stands for the stream,
    starts anew, and so does one whose state or SAEs are damaged. Trained SAEs are there too: `load_trained`. Of two
    processes that train one sweep the second waits for the first.

    ValueError for configs of one name or of different batches, an SAE that does not fit, or a stream that is too short.
    """
    configs, given = list(configs), dict(initial_saes or {})
    names = [config.name for config in configs]
    if not configs or len(set(names)) < len(names):
        raise ValueError(f"expected at least one run and no two of one name: got {', '.join(names) or 'none'}")
    if len(sizes := {config.batch_tokens for config in configs}) > 1:
        raise ValueError(f"all runs read the same batches: got batch_tokens of {', '.join(map(str, sorted(sizes)))}")
    if unknown := sorted(set(given) - set(names)):
        raise ValueError(f"initial_saes has {', '.join(unknown)}: expected names of runs, {', '.join(names)}")
    folder, metadata = Path(folder), dict(metadata or {})
    folder.mkdir(parents=True, exist_ok=True)
    digest = _digest(configs, held_out, key, given, evaluate_every, metadata)
    with FileLock(folder / ".lock"):
        curves = _finished(folder, digest, names)
        if curves is not None:
            return curves
        sweep = _Sweep(configs, held_out, given, metadata, folder, digest)
        return sweep.train(stream, evaluate_every, checkpoint_every)


class _Sweep:
    """All runs of `train_saes`, between two steps."""

    def __init__(self, configs, held_out: Tensor, given: Mapping[str, SAE], metadata, folder: Path, digest: str):
        self.folder, self.digest = folder, digest
        self.held_out = held_out.float()
        self.d_in, self.device = held_out.shape[1], held_out.device
        self.variance = _squared_deviations(self.held_out)
        self.runs = [_Run(config, self.d_in, given.get(config.name), metadata, self.device) for config in configs]
        self.done = 0
        saved = read_state(folder / CHECKPOINT, digest)
        if saved is None:
            shutil.rmtree(folder / "saes", ignore_errors=True)
            return
        tensors, facts = saved
        self.done = facts["step"]
        for run in self.runs:
            start = f"{run.config.name}/"
            own = {name.removeprefix(start): tensor for name, tensor in tensors.items() if name.startswith(start)}
            run.load(own, facts["numbers"][run.config.name])

    def train(self, stream: Iterable[Tensor], evaluate_every: int, checkpoint_every: int) -> dict[str, Curve]:
        n_steps = max(run.config.n_steps for run in self.runs)
        batches = _batches(stream, self.runs[0].config.batch_tokens, self.done)
        steps = range(self.done + 1, n_steps + 1)
        for step in progress(steps, "SAEs", initial=self.done, total=n_steps):
            batch = next(batches).to(self.device, torch.float32)
            if batch.shape[1] != self.d_in:
                raise ValueError(
                    f"the stream gives activations of width {batch.shape[1]}: expected held_out's {self.d_in}"
                )
            batch_variance = _squared_deviations(batch)
            for run in self.runs:
                if step == 1:
                    run.start(batch)
                    run.evaluate(self.held_out, self.variance)
                if step <= run.config.n_steps:
                    run.step(batch, batch_variance)
                    if step % evaluate_every == 0 or step == run.config.n_steps:
                        run.evaluate(self.held_out, self.variance)
            if step % checkpoint_every == 0 and step < n_steps:
                self._save(step)
        curves = {run.config.name: run.curve() for run in self.runs}
        for run in self.runs:
            write_whole(sae_folder(self.folder, run.config.name), run.sae.save_inference_model)
        tensors = {
            f"{name}/{field}": torch.from_numpy(array)
            for name, curve in curves.items()
            for field, array in curve._asdict().items()
        }
        write_state(self.folder / CHECKPOINT, tensors, {"digest": self.digest, "finished": True})
        return curves

    def _save(self, step: int) -> None:
        tensors, numbers = {}, {}
        for run in self.runs:
            own, numbers[run.config.name] = run.state()
            tensors |= {f"{run.config.name}/{name}": tensor for name, tensor in own.items()}
        write_state(self.folder / CHECKPOINT, tensors, {"digest": self.digest, "step": step, "numbers": numbers})


def _finished(folder: Path, digest: str, names: Sequence[str]) -> dict[str, Curve] | None:
    """The curves of a finished sweep; None where it is not, or where a trained SAE has been lost."""
    saved = read_state(folder / CHECKPOINT, digest)
    if saved is None or "finished" not in saved[1]:
        return None
    if any([remove_if_damaged(sae_folder(folder, name)) for name in names]):  # all of them are looked at
        remove_sealed(folder / CHECKPOINT)
        return None
    tensors = saved[0]
    return {name: Curve(*(tensors[f"{name}/{field}"].numpy() for field in Curve._fields)) for name in names}


def _squared_deviations(x: Tensor) -> float:
    return (x - x.mean(0)).square().sum(dtype=torch.float64).item()


def _batches(stream: Iterable[Tensor], size: int, skip: int) -> Iterator[Tensor]:
    """Batches of `size` rows without end, but for the first `skip`."""
    taken = 0
    while True:
        before, waiting, held = taken, [], 0
        for part in stream:
            waiting.append(part)
            held += len(part)
            if held < size:
                continue
            rows = torch.cat(waiting)
            for batch in rows[: held // size * size].split(size):
                taken += 1
                if taken > skip:
                    yield batch
            waiting, held = [rows[held // size * size :]], held % size
        if taken == before:
            raise ValueError(f"the stream ended after {taken} batches of {size} tokens and cannot be iterated again")


def _digest(configs, held_out: Tensor, key: str, given: Mapping[str, SAE], evaluate_every: int, metadata) -> str:
    facts = [[asdict(config) for config in configs], key, evaluate_every, metadata, list(held_out.shape)]
    made = hashlib.sha256(json.dumps(facts, default=str).encode())
    tensors = [held_out]
    for name in sorted(given):
        made.update(json.dumps([name, given[name].cfg.to_dict()], default=str).encode())
        tensors += [tensor for _, tensor in sorted(given[name].state_dict().items())]
    for tensor in tensors:
        made.update(tensor.detach().cpu().float().contiguous().numpy().tobytes())
    return made.hexdigest()
