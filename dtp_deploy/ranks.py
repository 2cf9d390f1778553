"""Several processes that train one model: what each of them is, and what they tell each other.

Started by ``torchrun``, every process trains on its share of each batch, on `torch.distributed`. One process, the
first, does everything else: it exports, measures, writes and talks.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed

from dtp_deploy.errors import DtpError, TrainingError

_Value = TypeVar("_Value")
_PATIENCE = timedelta(days=2)


def rank() -> int:
    """The number of this process, from 0; 0 where there is only one."""
    return distributed.get_rank() if _several() else 0


def world_size() -> int:
    """How many processes train together."""
    return distributed.get_world_size() if _several() else 1


def _several() -> bool:
    return distributed.is_available() and distributed.is_initialized()


@contextmanager
def joined() -> Iterator[None]:
    """Within the block this process is one of those that torchrun started; without torchrun it is the only one.

    Raises:
        TrainingError: another process died.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) < 2 or _several():
        yield
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(default_device())
    # The first process exports, builds and measures alone, for hours perhaps: waiting for it is no failure. One that
    # dies closes its connections, and is noticed at once.
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    distributed.init_process_group(backend, timeout=_PATIENCE)
    try:
        yield
    except DtpError:
        raise
    except RuntimeError as error:
        if "peer" not in str(error) and "closed" not in str(error) and "Timed out" not in str(error):
            raise
        raise TrainingError(
            "Another process of this run died. Its own message is above; go on from the last checkpoint with --resume."
        ) from error
    finally:
        distributed.destroy_process_group()


def default_device() -> torch.device:
    """Where this process trains unless told otherwise: its own CUDA device, or the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))


def mean_over_ranks(tensor: Tensor) -> Tensor:
    """The mean of a tensor that every process has one of; the tensor itself where there is only one process."""
    if not _several():
        return tensor
    total = tensor.clone()
    distributed.all_reduce(total)
    return total / world_size()


def any_rank(flag: bool) -> bool:
    """Whether any process says yes."""
    return float(mean_over_ranks(torch.tensor(float(flag)))) > 0


def from_all_ranks(value: _Value) -> list[_Value]:
    """What every process gives here, by rank."""
    if not _several():
        return [value]
    values: list[Any] = [None] * world_size()
    distributed.all_gather_object(values, value)
    return values


def copy_from_first(tensors: Iterable[Tensor]) -> None:
    """Give tensors, the same ones in all processes, the values that they have in the first."""
    if not _several():
        return
    for tensor in tensors:
        value = tensor.detach().contiguous()
        distributed.broadcast(value, src=0)
        with torch.no_grad():
            tensor.copy_(value)


def by_first(compute: Callable[[], _Value]) -> _Value:
    """What the first process computes, for all of them. An error of ours is raised in all of them, too."""
    if not _several():
        return compute()
    box: list[Any] = [None, None]
    if rank() == 0:
        try:
            box[0] = compute()
        except DtpError as error:
            box[1] = error
    distributed.broadcast_object_list(box)
    if box[1] is not None:
        raise box[1]
    value: _Value = box[0]
    return value
