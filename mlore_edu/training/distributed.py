"""Training on several processes, one per GPU, in as few words as possible; every function also works without.

``torchrun --nproc-per-node 4 -m mlore_edu train RECIPE`` starts the same program four times and tells each process
through environment variables who it is: RANK counts over all machines, LOCAL_RANK within one machine. A process takes
the GPU of its *local* rank; its global rank would point past the last GPU on the second machine. Chapter 16.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

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
    """Average gradients over processes (DDP) and BatchNorm statistics too, as the papers train.

    DDP waits for the gradient of every parameter, and every decoder of this library gives one to each in every step;
    so there is no search for unused ones, which would cost a walk through the graph a step.
    """
    if world_size() == 1:
        return model
    if device.type == "cuda":
        convert: Callable[[nn.Module], nn.Module] = nn.SyncBatchNorm.convert_sync_batchnorm
        return nn.parallel.DistributedDataParallel(convert(model), device_ids=[device.index])
    norms: list[Any] = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    for norm in norms:  # torch's SyncBatchNorm exists on GPUs only
        norm.forward = partial(synchronised_batch_norm, norm)
    return nn.parallel.DistributedDataParallel(model)


def synchronised_batch_norm(norm: _BatchNorm, features: Tensor) -> Tensor:
    """BatchNorm over the batches of all processes together: what torch's SyncBatchNorm does on GPUs, in a few lines.

    Every process adds its sums to those of the others, so that all normalise with the mean and the variance of the
    whole batch. The gradient passes back through the same sums: a pixel on one process moves the mean on all.

    Parameters
    ----------
    norm
        The BatchNorm; its running statistics follow the whole batch.
    features
        This process's ``(B, C, H, W)``.
    """
    if not norm.training:
        return F.batch_norm(features, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps)
    features = features.to(torch.promote_types(features.dtype, torch.float32))  # sums need the digits
    own = features.transpose(0, 1).flatten(1)  # (C, B*H*W)
    count = world_size() * own.shape[1]  # every process has as many
    mean = cast(Tensor, _AddUp.apply(own.sum(1))) / count  # (C,)
    centred = own - mean[:, None]  # (C, B*H*W)
    variance = cast(Tensor, _AddUp.apply(centred.square().sum(1))) / count  # (C,)
    with torch.no_grad():
        assert norm.running_mean is not None
        assert norm.running_var is not None
        assert norm.momentum is not None
        norm.running_mean.lerp_(mean.to(norm.running_mean.dtype), norm.momentum)
        norm.running_var.lerp_((variance * count / (count - 1)).to(norm.running_var.dtype), norm.momentum)
        if norm.num_batches_tracked is not None:
            norm.num_batches_tracked.add_(1)
    shape = (1, -1, *[1] * (features.dim() - 2))
    normalised: Tensor = (features - mean.view(shape)) * (variance + norm.eps).rsqrt().view(shape)
    return torch.addcmul(norm.bias.view(shape), normalised, norm.weight.view(shape))


class _AddUp(torch.autograd.Function):
    """The sum of a tensor over all processes, in every process: each term is in all sums, so its gradient is a sum."""

    @staticmethod
    def forward(_: Any, term: Tensor) -> Tensor:
        total = term.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(_: Any, gradient: Tensor) -> Tensor:
        return cast(Tensor, _AddUp.apply(gradient))


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
