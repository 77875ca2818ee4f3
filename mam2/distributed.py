"""Distributed training: the only file that names torch.distributed.

`torchrun` starts the processes; they talk through gloo on CPUs and nccl on GPUs.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from mam2.config import UserError
from mam2.device import local_device


@contextmanager
def session() -> Iterator[None]:
    """Joins the other processes where torchrun started several, and leaves them at the end."""
    if "WORLD_SIZE" not in os.environ or dist.is_initialized():
        yield
        return
    here = local_device()
    if here.type == "cuda":
        if (gpus := torch.cuda.device_count()) <= here.index:
            raise UserError(
                f"Process {here.index} of this machine has no GPU: there are {gpus}. Start {gpus} processes."
            )
        torch.cuda.set_device(here)
    # Rank 0 may train a tokenizer first, which takes longer than the default timeout. CPU tensors use gloo even on GPU
    # runs, so that exchanging a stop flag does not synchronise the GPU.
    backend = "cpu:gloo,cuda:nccl" if here.type == "cuda" else "gloo"
    wait = timedelta(hours=2)
    joined = dist.rendezvous("env://", timeout=wait)  # type: ignore[attr-defined]  # torch documents both, untyped
    store, rank, world_size = next(joined)
    # torchrun with --master-port keeps its store when it restarts processes: addresses of those that died are in it.
    attempt = f"attempt {os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"
    store = dist.PrefixStore(attempt, store)  # type: ignore[attr-defined]  # exported, untyped
    dist.init_process_group(backend, store=store, rank=rank, world_size=world_size, timeout=wait)
    yield
    dist.destroy_process_group()  # not after an error of this process: it would wait for the others, and they for it


def rank() -> int:
    """This process's number; 0 is the one that writes."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Number of processes that train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def wrap(model: nn.Module) -> nn.Module:
    """The model with gradients averaged over all processes."""
    if world_size() == 1:
        return model
    here = local_device()
    with warnings.catch_warnings():  # newer versions of torch call it forward_sync_buffers
        warnings.filterwarnings("ignore", message=".*broadcast_buffers", category=FutureWarning)
        return DistributedDataParallel(
            model,
            device_ids=[here] if here.type == "cuda" else None,
            broadcast_buffers=False,  # they are constants
            gradient_as_bucket_view=True,
        )


def without_sync(model: nn.Module, skip: bool) -> Any:
    """A context in which gradients stay local if `skip`: for all but the last part of an accumulated batch."""
    return model.no_sync() if skip and isinstance(model, DistributedDataParallel) else nullcontext()


def mean(values: Tensor) -> Tensor:
    """Numbers averaged over all processes, in place."""
    if world_size() > 1:
        dist.all_reduce(values)
        values /= world_size()
    return values


def any_rank(flag: bool) -> bool:
    """True everywhere if true anywhere."""
    if world_size() == 1:
        return flag
    value = torch.tensor(float(flag))
    dist.all_reduce(value, op=dist.ReduceOp.MAX)
    return bool(value.item())


def gather(value: Any) -> list[Any]:
    """Every process's value, in the order of ranks, everywhere."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def barrier() -> None:
    """Waits for all processes."""
    if world_size() > 1:
        dist.barrier()


def end_with_parent() -> None:
    """Ends this process of a pool when its parent is gone, however that died."""
    parent = multiprocessing.parent_process()

    def watch() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
