"""TopK SAEs trained from scratch and from a stitch, a whole sweep of them in one pass over the activations.

Section 3.1 and App. D (Figs. 1c, 2, 8, Tables 3, 4). With row vectors, as Eqs. 4 and 5 have it,

    f = TopK(x W_enc + b_enc),   x' = f W_dec + b_dec,   loss = E |x' - x|^2

and the paper's recipe: Adam at a constant 1e-4, batches of 4096 tokens, decoder rows normalised after each step, no
auxiliary loss. `initialisation` says where a run starts. SAELens gives the classes, the initial weights and the losses;
on a CPU `sparse_step` computes the same gradients. FLOPs count all dense products, as the paper's do, and evaluations
none.

Offers `train_saes`, `load_trained`, `Curve`, `training_flops`.
"""

import functools
import hashlib
import json
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from filelock import FileLock
from jaxtyping import Float
from sae_lens import SAE
from sae_lens.saes.sae import SAEMetadata, TrainStepInput
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import cosine_similarity, embedding_bag

from ..models.harvest import ModelStream, in_steps
from ..utils import ranks
from ..utils.files import is_intact, remove_if_damaged, remove_sealed, writable_folder, write_whole
from ..utils.progress import progress
from .initialisation import SAETrainingConfig, starting_sae
from .sparse_step import add_auxiliary_gradients, encode, sparse_gradients

SHUFFLED = 20  # batches that are shuffled together; SAELens' buffer holds as many by default
NOWHERE, SEVERAL = -1, -2  # no document and more than one, see `Curve.fires_in`


class Curve(NamedTuple):
    """How a run went. When a sweep is run again, only `seconds` differ."""

    steps: np.ndarray
    """(points,): steps done at each evaluation, from 0 on."""
    tokens: np.ndarray
    """(points,): activations read so far."""
    flops: np.ndarray
    """(points,): FLOPs of the training so far, see `training_flops`."""
    mse: np.ndarray
    """(points,): squared error on the held-out activations, mean over tokens and dimensions."""
    explained_variance: np.ndarray
    """(points,): on the held-out activations, 1 - squared errors over squared deviations from the mean."""
    seconds: np.ndarray
    """(points,): seconds spent on this run's steps so far."""
    cosine: np.ndarray
    """(d_sae,): cosine of each decoder row at the end to itself at the start (Fig. 2b)."""
    fires_in: np.ndarray
    """(d_sae,): the document in which the trained latent fires if that is a single one; else `NOWHERE` or `SEVERAL`."""
    counted: np.ndarray
    """(): the tokens on which that was counted."""

    @property
    def dead(self) -> np.ndarray:
        """(d_sae,): whether the trained latent fires on none of the tokens on which that was counted."""
        return self.fires_in == NOWHERE


def training_flops(d_in: int, d_sae: int, *, dead: bool = False) -> int:
    """Count the FLOPs a token of one training step: five products of 2 d_in d_sae, Table 3's rate.

    These are the encoder's and the decoder's forward, and one and two backward. The auxiliary loss of a step with
    `dead` latents takes three more.
    """
    return (16 if dead else 10) * d_in * d_sae


class _Run:
    """One run of a sweep, between two steps."""

    NUMBERS = ("points", "done", "spent", "seconds")

    def __init__(self, config: SAETrainingConfig, held_out: Tensor, given: SAE | None, metadata: Mapping):
        self.config, self.held_out, self.variance = config, held_out, _squared_deviations(held_out)
        self.sae = starting_sae(config, held_out.shape[1], given).to(held_out.device)
        self.sae.cfg.metadata = SAEMetadata(**metadata)
        decoder = self.sae.W_dec.detach()
        self.norms = decoder.norm(dim=-1, keepdim=True)  # 1 up to rounding
        self.directions = decoder / self.norms.clamp_min(1e-8)
        self.optimizer = torch.optim.Adam(self.sae.parameters(), lr=config.lr, betas=(config.beta1, 0.999))
        self.silent = torch.zeros(config.d_sae, device=held_out.device)  # steps since each latent fired
        self.last = torch.full((config.d_sae,), NOWHERE, device=held_out.device)  # document in which each latent fires
        self.first = torch.full_like(self.last, torch.iinfo(self.last.dtype).max)
        self.done = self.counted = 0
        self.spent = self.seconds = 0.0
        self.points: list[Sequence[float]] = []  # steps, flops, mse, explained variance, seconds

    def step(self, x: Tensor) -> None:
        """Step on a batch; evaluate before the first step."""
        if not self.done:
            if self.config.mean_bias and self.config.initial != "stitch":
                self.sae.b_dec.data.copy_(x.mean(0))
                self.sae.b_enc.data.copy_(-x.mean(0) @ self.sae.W_enc.data)
            self.evaluate()
        began = time.perf_counter()
        dead = self.silent > self.config.dead_after
        helped = self.config.auxiliary_loss and bool(dead.any())
        if x.is_cuda:
            mask = dead if helped else None
            output = self.sae.training_forward_pass(TrainStepInput(x, {}, mask, self.done, False))
            output.loss.backward()
            fired = output.feature_acts.bool().any(0)
        else:
            error, fired = sparse_gradients(self.sae, x)
            if helped:
                add_auxiliary_gradients(self.sae, x, error, dead)
        torch.nn.utils.clip_grad_norm_(self.sae.parameters(), 1.0)  # as SAELens' trainer does
        self.optimizer.step()
        self.optimizer.zero_grad()
        decoder = self.sae.W_dec.data
        decoder.mul_(self.norms / decoder.norm(dim=-1, keepdim=True).clamp_min(1e-8))
        self.silent = (self.silent + 1).masked_fill_(fired, 0)
        self.spent += len(x) * training_flops(*self.sae.W_enc.shape, dead=helped)
        self.done += 1
        self.seconds += time.perf_counter() - began

    def evaluate(self) -> None:
        squared = 0.0
        with torch.no_grad():
            for x in self.held_out.split(self.config.batch_tokens):
                acts, winners = encode(self.sae, x)
                written = embedding_bag(winners, self.sae.W_dec, per_sample_weights=acts, mode="sum")
                squared += (written + self.sae.b_dec - x).square().sum(dtype=torch.float64).item()
        errors = squared / self.held_out.numel(), 1 - squared / self.variance
        self.points.append((self.done, self.spent, *errors, self.seconds))

    def count(self, x: Tensor, documents: Tensor) -> None:
        """Note in which documents the latents fire, until each has fired in two."""
        self.counted += len(x)
        if not (self.first < self.last).all():
            acts, winners = encode(self.sae, x)
            fires = acts > 0
            places = documents.to(winners)[:, None].expand_as(winners)[fires]
            self.first.scatter_reduce_(0, winners[fires], places, "amin")
            self.last.scatter_reduce_(0, winners[fires], places, "amax")

    def state(self) -> dict[str, Tensor]:
        """Give the tensors from which `load` goes on."""
        tensors = {f"sae.{name}": tensor for name, tensor in self.sae.state_dict().items()}
        for number, moments in self.optimizer.state_dict()["state"].items():
            tensors |= {f"adam.{number}.{name}": tensor for name, tensor in moments.items()}
        tensors |= {name: torch.tensor(getattr(self, name), dtype=torch.float64) for name in self.NUMBERS}
        return tensors | {"silent": self.silent}

    def load(self, state: Mapping[str, Tensor]) -> None:
        self.sae.load_state_dict({name: state[f"sae.{name}"] for name in self.sae.state_dict()})
        moments = {
            number: {name: state[f"adam.{number}.{name}"] for name in ("step", "exp_avg", "exp_avg_sq")}
            for number, _ in enumerate(self.sae.parameters())
        }
        self.optimizer.load_state_dict(self.optimizer.state_dict() | {"state": moments})
        self.silent = state["silent"].to(self.silent.device)
        numbers: list[Any] = [state[name].tolist() for name in self.NUMBERS]
        self.points, done, self.spent, self.seconds = numbers
        self.done = int(done)

    def curve(self) -> Curve:
        steps, *measures = np.array(self.points, dtype=float).T
        steps = steps.astype(int)
        cosine = cosine_similarity(self.sae.W_dec.detach(), self.directions, dim=-1)
        fires_in = torch.where(self.first < self.last, SEVERAL, self.last)
        of_latents = cosine.cpu().numpy(), fires_in.cpu().numpy(), np.array(self.counted)
        return Curve._make([steps, steps * self.config.batch_tokens, *measures, *of_latents])


def unexplained_at_start(config: SAETrainingConfig, held_out: Float[Tensor, "n d"], given: SAE) -> float:
    """Measure the share of the variance of `held_out` that a run from `given` leaves before its first step."""
    run = _Run(config, held_out, given, {})
    run.evaluate()
    (_, _, _, explained, _), *_ = run.points
    return 1 - explained


def train_saes(
    stream: Iterable[Tensor],
    configs: Sequence[SAETrainingConfig],
    *,
    held_out: Float[Tensor, "n d"],
    folder: str | Path,
    counted: Iterable[tuple[Tensor, Tensor]] | None = None,
    initial_saes: Mapping[str, SAE] = {},
    evaluate_every: int = 100,
    checkpoint_every: int = 500,
    metadata: Mapping[str, str | int] = {},
) -> dict[str, Curve]:
    """Train all runs of a sweep side by side on the same batches and return {name of the config: curve}.

    `stream` gives activations (m, d) of any m. It is cut into batches, of which each `SHUFFLED` are shuffled together,
    and iterated anew when it ends; rows at its end that do not fill a batch are dropped. Runs are evaluated on
    `held_out`. `counted` gives activations (m, d) and the numbers of their documents (m,), on which it is counted at
    the end which latents fire; by default those of `held_out`, each a document. `initial_saes` has the SAEs of the runs
    that start from one, by the configs' names. Training runs on the device of `held_out`. `metadata` goes into the
    SAEs.

    `folder` keeps the state of the sweep, written every `checkpoint_every` steps, and the trained SAEs. A sweep that
    was cut off goes on from its state, without running the model on what it has read of a `ModelStream` (but for the
    batches that are shuffled with the next one), and gives the same curves as one that was not; a finished one is read
    back. What is damaged or of other arguments starts anew. The stream and `counted` are not compared: the folder's
    name is to say what they are. Of two processes with one folder the second waits.

    The processes of a group (`utils.ranks`) share the runs, each on all batches, and so each reads the whole `stream`;
    all have to call, each gets all curves, and all must see one `folder`. A checkpoint serves as many processes as
    wrote it.

    ValueError for configs of one name or of different batches, an SAE that does not fit, or a stream that is too short.
    """
    folder, names = Path(folder), [config.name for config in configs]
    if not configs or len(set(names)) < len(names):
        raise ValueError(f"expected at least one run and no two of one name: got {', '.join(names) or 'none'}")
    if len(sizes := {config.batch_tokens for config in configs}) > 1:
        raise ValueError(f"all runs read the same batches: got batch_tokens of {', '.join(map(str, sorted(sizes)))}")
    if unknown := sorted(set(initial_saes) - set(names)):
        raise ValueError(f"initial_saes has {', '.join(unknown)}: expected names of runs")
    checkpoint = writable_folder(folder) / "sweep.safetensors"
    digest = _digest(configs, held_out, initial_saes, folder.name, evaluate_every, metadata)
    n_steps, held_out = _n_steps(configs), held_out.float()
    if ranks.count() > 1:
        given = {"held_out": held_out, "counted": counted, "initial_saes": initial_saes, "metadata": metadata}
        given |= {"evaluate_every": evaluate_every, "checkpoint_every": checkpoint_every}
        return _train_in_parts(stream, configs, folder, digest, **given)
    with FileLock(folder / ".lock"):
        done, states, curves = _read_sweep(checkpoint, digest, configs)
        if curves is not None:
            return curves
        runs = {config.name: _Run(config, held_out, initial_saes.get(config.name), metadata) for config in configs}
        for name, state in states.items():
            runs[name].load(state)
        if not done:
            shutil.rmtree(folder / "saes", ignore_errors=True)
        batches = _batches(stream, configs[0].batch_tokens, done)
        for step in progress(range(done + 1, n_steps + 1), "SAEs", initial=done, total=n_steps):
            batch = next(batches).to(held_out)
            if (d := batch.shape[1]) != held_out.shape[1]:
                raise ValueError(f"the stream gives activations of width {d}: expected held_out's {held_out.shape[1]}")
            for run in runs.values():
                if step <= run.config.n_steps:
                    run.step(batch)
                    if step % evaluate_every == 0 or step == run.config.n_steps:
                        run.evaluate()
            if step % checkpoint_every == 0 and step < n_steps:
                _write_state(checkpoint, digest, step, {name: run.state() for name, run in runs.items()})
        for x, documents in [(held_out, torch.arange(len(held_out)))] if counted is None else counted:
            for run in runs.values():
                run.count(x.to(held_out), documents)
        for name, run in runs.items():
            write_whole(folder / "saes" / name, run.sae.save_inference_model)
        curves = {name: run.curve() for name, run in runs.items()}
        _write_state(checkpoint, digest, n_steps, {name: curve._asdict() for name, curve in curves.items()})
        return curves


def _train_in_parts(
    stream: Iterable[Tensor],
    configs: Sequence[SAETrainingConfig],
    folder: Path,
    digest: str,
    *,
    initial_saes: Mapping[str, SAE],
    **options: Any,
) -> dict[str, Curve]:
    """Train each process's share of the runs as a sweep of its own, and have the first put all in `folder`."""
    checkpoint = folder / "sweep.safetensors"

    def read() -> dict[str, Curve] | None:
        with FileLock(folder / ".lock"):
            return _read_sweep(checkpoint, digest, configs)[2]

    def train() -> dict[str, Curve]:
        own = list(ranks.share(configs))
        starts = {config.name: initial_saes[config.name] for config in own if config.name in initial_saes}
        with ranks.alone():
            return train_saes(stream, own, folder=part, initial_saes=starts, **options) if own else {}

    def put_together() -> None:
        with FileLock(folder / ".lock"):
            for number, trained in enumerate(parts):
                for name in trained:
                    copy = functools.partial(shutil.copytree, _part_of(folder, number, len(parts)) / "saes" / name)
                    write_whole(folder / "saes" / name, copy)
            _write_state(
                checkpoint, digest, _n_steps(configs), {name: curve._asdict() for name, curve in found.items()}
            )
            for number in range(len(parts)):
                shutil.rmtree(_part_of(folder, number, len(parts)), ignore_errors=True)

    if (curves := ranks.from_first(read)) is not None:
        return curves
    part = _part_of(folder, ranks.number(), ranks.count())
    parts = ranks.together(train)
    found = {name: curve for trained in parts for name, curve in trained.items()}
    found = {config.name: found[config.name] for config in configs}
    ranks.from_first(put_together)
    return found


def _part_of(folder: Path, number: int, count: int) -> Path:
    return folder / f"part-{number}-of-{count}"


def _n_steps(configs: Sequence[SAETrainingConfig]) -> int:
    return max(config.n_steps for config in configs)


def _read_sweep(
    path: Path, digest: str, configs: Sequence[SAETrainingConfig]
) -> tuple[int, dict[str, dict[str, Tensor]], dict[str, Curve] | None]:
    """Read the steps done and the tensors of each run, as `_read_state` does, and the curves of a finished sweep."""
    done, states = _read_state(path, digest)
    if done < _n_steps(configs):
        return done, states, None
    names = [config.name for config in configs]
    # a list, so that all of them are looked at
    if any([remove_if_damaged(path.parent / "saes" / name) for name in names]):
        remove_sealed(path)
        return 0, {}, None
    arrays = {name: {field: part.numpy() for field, part in states[name].items()} for name in names}
    return done, states, {name: Curve(**fields) for name, fields in arrays.items()}


def _read_state(path: Path, digest: str) -> tuple[int, dict[str, dict[str, Tensor]]]:
    """Read the steps done and the tensors of each run, if they are undamaged and of the sweep with this digest."""
    if remove_if_damaged(path):
        return 0, {}
    with safe_open(path, framework="pt") as file:
        facts = file.metadata()
    if facts.get("digest") != digest:
        return 0, {}
    states: dict[str, dict[str, Tensor]] = {}
    for name, tensor in load_file(path).items():
        run, field = name.split("/")
        states.setdefault(run, {})[field] = tensor
    return int(facts["step"]), states


def _write_state(path: Path, digest: str, step: int, states: Mapping[str, Mapping[str, Any]]) -> None:
    """Replace the state by these tensors in one file, whole: a process that dies here leaves the old one."""
    tensors = {f"{run}/{field}": part for run, state in states.items() for field, part in state.items()}
    plain = {name: torch.as_tensor(part).detach().cpu().contiguous().clone() for name, part in tensors.items()}
    write_whole(path, lambda place: save_file(plain, place, metadata={"digest": digest, "step": str(step)}))


def load_trained(folder: str | Path, config: SAETrainingConfig, device: str = "cpu") -> SAE:
    """Load the SAE for inference that a finished sweep left; ValueError if there is none, or if it is damaged."""
    path = Path(folder) / "saes" / config.name
    if not is_intact(path):
        raise ValueError(f"{folder} holds no trained SAE {config.name!r}, or a damaged one: train the sweep (again)")
    return SAE.load_from_disk(path, device=device)


def _squared_deviations(x: Tensor) -> float:
    return (x - x.mean(0)).square().sum(dtype=torch.float64).item()


def _batches(stream: Iterable[Tensor], size: int, skip: int) -> Iterator[Tensor]:
    """Give shuffled batches of `size` rows without end, but for the first `skip`.

    Of a `ModelStream`, the model reads nothing before the batches with which the next one is shuffled.
    """
    taken, parts = 0, stream
    if skip and isinstance(stream, ModelStream):
        of_this_pass = skip % (stream.count() // size)
        taken, parts = skip - of_this_pass % SHUFFLED, stream.after(of_this_pass // SHUFFLED * SHUFFLED * size)
    while True:
        before, in_order = taken, (batch for (batch,) in in_steps(zip(parts), size))
        while together := list(islice(in_order, SHUFFLED)):
            order = torch.randperm(len(together) * size, generator=torch.Generator().manual_seed(taken))
            for batch in torch.cat(together)[order.to(together[0].device)].split(size):
                taken += 1
                if taken > skip:
                    yield batch
        if taken == before:
            raise ValueError(f"the stream ended after {taken} batches of {size} tokens and cannot be iterated again")
        parts = stream


def _digest(configs, held_out: Tensor, given: Mapping[str, SAE], *facts) -> str:
    starts = [[name, sae.cfg.to_dict()] for name, sae in sorted(given.items())]
    about = [[asdict(config) for config in configs], facts, list(held_out.shape), starts]
    made = hashlib.sha256(json.dumps(about, default=str).encode())
    weights = [tensor for _, sae in sorted(given.items()) for _, tensor in sorted(sae.state_dict().items())]
    for tensor in (held_out, *weights):
        made.update(tensor.detach().cpu().float().contiguous().numpy().tobytes())
    return made.hexdigest()
