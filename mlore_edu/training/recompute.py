"""Activation checkpointing: trade time for memory by forgetting what the way back will need, and computing it again.

A gradient needs the values between the layers. They, not the weights, fill a GPU in dense prediction. A checkpointed
unit keeps only its input; when its gradient is due, its forward pass runs once more (Chen et al., 2016). Chapter 16.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import partial
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

CONTAINERS = (nn.ModuleList, nn.ModuleDict)


def checkpoint_activations(model: nn.Module, *, compiled: bool = False) -> list[str]:
    """Let a model forget the inner values of its units in training: in place, same weights, same gradient.

    A unit is a block of the encoder, a module of the decoder or a head: timm knows the blocks of its networks, and
    everywhere else a unit is an outermost member of a ModuleList or ModuleDict. Encoders for which timm has no
    checkpointing (HRNet) keep their values.

    Parameters
    ----------
    model
        The model, before it is wrapped or compiled.
    compiled
        Whether torch.compile follows. It computes BatchNorm's statistics once in any case; without it the second pass
        is kept from counting them again.

    Returns
    -------
    list of str
        Names of the units, timm's networks as one.
    """
    names = []
    for name, unit in _units(model, ""):
        if hasattr(unit, "set_grad_checkpointing"):
            with contextlib.suppress(AssertionError):  # how timm says that a network cannot
                unit.set_grad_checkpointing(True)
                names.append(name)
            continue
        contexts = {} if compiled else {"context_fn": partial(_contexts, unit)}
        unit.forward = partial(checkpoint, unit.forward, use_reentrant=False, **contexts)
        names.append(name)
    return names


def _units(module: nn.Module, prefix: str) -> Iterator[tuple[str, Any]]:
    for name, child in module.named_children():
        is_unit = isinstance(module, CONTAINERS) and not isinstance(child, CONTAINERS)
        if is_unit or hasattr(child, "set_grad_checkpointing"):
            yield prefix + name, child
        else:
            yield from _units(child, f"{prefix}{name}.")


def _contexts(unit: nn.Module) -> tuple[Any, Any]:
    """What surrounds the first pass (nothing) and the second."""
    return contextlib.nullcontext(), _statistics_at_rest(unit)


@contextlib.contextmanager
def _statistics_at_rest(unit: nn.Module) -> Iterator[None]:
    """Keep BatchNorm's running statistics as they are, or every batch would count twice."""
    norms = [module for module in unit.modules() if isinstance(module, _BatchNorm)]
    kept = [(norm, norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, momentum, count in kept:
            norm.momentum, norm.num_batches_tracked = momentum, count
