"""Several processes that work as one, as `torchrun` starts them (no section of the papers).

All processes of a group run the same lines, and each has a number, from 0 on. `share` gives each its part of the work,
`summed` adds up what they found, and `from_first` has the first alone do what is to be done once. An error in one of
them ends all: it is raised as it is where it arose, and as `Elsewhere` in the others. Without a group there is one
process, number 0, and all of this changes nothing.

Offers `started`, `joined`, `number`, `count`, `alone`, `share`, `summed`, `together`, `from_first`, and the errors
`Elsewhere` and `Lost`.
"""

import contextlib
import datetime
import io
import itertools
import os
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")
PATIENCE = datetime.timedelta(days=7)  # the others wait as long for the first to solve and to measure
_is_alone = False


class Elsewhere(Exception):
    """Another process of the group failed, and said why."""


class Lost(Elsewhere):
    """Another process of the group has ended, without a word."""


def _group() -> Any:
    """Return `torch.distributed` if this process is in a group, else None. Making a group imports the module."""
    module = None if _is_alone else sys.modules.get("torch.distributed")
    return module if module and module.is_available() and module.is_initialized() else None


def number() -> int:
    """Return the number of this process in its group; 0 without one."""
    return group.get_rank() if (group := _group()) else 0


def count() -> int:
    """Count the processes of the group; 1 without one."""
    return group.get_world_size() if (group := _group()) else 1


def started() -> int:
    """Return how many processes `torchrun` started with this one; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


@contextlib.contextmanager
def joined() -> Iterator[None]:
    """Join the processes that `torchrun` started together, if it started this one, within a context.

    They talk by gloo and, where there are GPUs, by NCCL; each then has the GPU of its number on its machine. All but
    the first print no results and no warnings. ValueError for more processes than GPUs.
    """
    if started() < 2:
        yield
        return
    import torch
    from torch import distributed

    backend = "gloo"
    if torch.cuda.is_available():
        place, gpus = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if place >= gpus:
            raise ValueError(f"this machine has {gpus} GPUs: start as many processes on it at most, one for each")
        torch.cuda.set_device(place)
        backend = "cpu:gloo,cuda:nccl"
    distributed.init_process_group(backend, timeout=PATIENCE)
    with contextlib.ExitStack() as stack:
        if number():
            stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
            stack.enter_context(warnings.catch_warnings())
            warnings.simplefilter("ignore")
        yield
    distributed.destroy_process_group()  # after an error the process ends, and with it its part in the group


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Work as if there were no group, within a context: for what one process does and the others do not."""
    global _is_alone
    before, _is_alone = _is_alone, True
    try:
        yield
    finally:
        _is_alone = before


def share(items: Iterable[T]) -> Iterator[T]:
    """Give each process every `count()`-th of the same items, beginning with that of its number."""
    return itertools.islice(items, number(), None, count())


def summed(values: "Tensor") -> "Tensor":
    """Add up tensors of one shape and dtype over all processes; each gets the sum, on the device of its own."""
    if not (group := _group()):
        return values
    device = "cuda" if "nccl" in group.get_backend_config() else "cpu"
    total = values.detach().to(device, copy=True)
    with _exchange():
        group.all_reduce(total)
    return total.to(values.device)


def together(work: Callable[[], T]) -> list[T]:
    """Do the work in every process and return what came of it in each, by their numbers.

    Where it fails in one of them, that one re-raises its error and the others raise `Elsewhere`.
    """
    if not (group := _group()):
        return [work()]
    found: list[Any] = [None] * count()
    made, error = _attempt(work)
    with _exchange():
        group.all_gather_object(found, (made, None if error is None else _said(error)))
    if error is not None:
        raise error
    for other, (_, said) in enumerate(found):
        if said is not None:
            raise Elsewhere(f"process {other} failed: {said}")
    return [made for made, _ in found]


def from_first(work: Callable[[], T]) -> T:
    """Do the work in the first process alone, and return in every process what came of it there.

    Where it fails, the first process re-raises the error and the others raise `Elsewhere`.
    """
    if not (group := _group()):
        return work()
    made = error = None
    if not number():
        with alone():
            made, error = _attempt(work)
    found: list[Any] = [(made, None if error is None else _said(error))]
    with _exchange():
        group.broadcast_object_list(found)
    if error is not None:
        raise error
    made, said = found[0]
    if said is not None:
        raise Elsewhere(f"process 0 failed: {said}")
    return made


def _attempt(work: Callable[[], T]) -> tuple[Any, Exception | None]:
    try:
        return work(), None
    except Exception as error:
        return None, error


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


@contextlib.contextmanager
def _exchange() -> Iterator[None]:
    """Re-raise what a broken connection raises as `Lost`."""
    try:
        yield
    except RuntimeError as error:
        raise Lost("another process of this job has ended, and what it did is lost") from error
