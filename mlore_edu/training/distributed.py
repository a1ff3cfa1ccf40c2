"""Training on several processes, one per GPU, in as few words as possible; every function also works without.

``torchrun --nproc-per-node 4 -m mlore_edu train RECIPE`` starts the same program four times and tells each process
through environment variables who it is: RANK counts over all machines, LOCAL_RANK within one machine. A process takes
the GPU of its *local* rank; its global rank would point past the last GPU on the second machine. Chapter 16.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn

T = TypeVar("T")


def rank() -> int:
    """Number of this process among all; 0 is the one that writes files and prints."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    """Whether this process writes files and prints."""
    return rank() == 0


def is_main_by_environment() -> bool:
    """The same before the processes have joined or after they have parted, from what torchrun told this one."""
    return os.environ.get("RANK", "0") == "0"


def start() -> bool:
    """Join the other processes if torchrun started this one; returns whether it did."""
    if "RANK" not in os.environ or dist.is_initialized():
        return False
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        dist.init_process_group("nccl")
    else:
        dist.init_process_group("gloo")
    return True


def stop() -> None:
    """Leave the group of processes."""
    if dist.is_initialized():
        dist.destroy_process_group()


def default_device() -> torch.device:
    """The GPU of this process's local rank, or the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))


def wrap(model: nn.Module, device: torch.device) -> nn.Module:
    """Average gradients over processes (DDP) and BatchNorm statistics too, as the papers train."""
    if world_size() == 1:
        return model
    if device.type == "cuda":  # SyncBatchNorm exists on GPUs only
        convert: Callable[[nn.Module], nn.Module] = nn.SyncBatchNorm.convert_sync_batchnorm
        model = convert(model)
        return nn.parallel.DistributedDataParallel(model, device_ids=[device.index])
    return nn.parallel.DistributedDataParallel(model)


def mean_of(record: dict[str, Any]) -> dict[str, Any]:
    """The mean of every number in a nested record over all processes, in every process."""
    return _mean(gather(record))


def _mean(records: list[dict[str, Any]]) -> dict[str, Any]:
    first = records[0]
    if len(records) == 1:
        return first
    columns = {name: [record[name] for record in records] for name in first}
    return {
        name: _mean(column) if isinstance(first[name], dict) else type(first[name])(sum(column) / len(column))
        for name, column in columns.items()
    }


def any_true(flag: bool) -> bool:
    """Whether the flag is set in any process: all of them must stop at the same step, or some wait forever."""
    return any(gather(flag))


def gather(value: T) -> list[T]:
    """The (picklable) values of all processes, in order of rank, in every process."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def barrier() -> None:
    """Wait for the other processes."""
    if world_size() > 1:
        dist.barrier()
