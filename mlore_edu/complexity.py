"""What a model costs: parameters and multiply-accumulates, whole and by module (chapters 3 and 5).

Nothing is computed: the model runs on torch's ``meta`` device, where tensors have shapes and no content.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from mlore_edu.modes import evaluation_mode

Unit = Literal["1e9", "2**30"]
_UNITS: dict[Unit, float] = {"1e9": 1e9, "2**30": 2.0**30}


@dataclass(frozen=True)
class ModuleCost:
    """Parameters and multiply-accumulates of one module, its own modules included."""

    parameters: int
    macs: int


@dataclass(frozen=True)
class Complexity:
    """Cost of one forward pass on one image.

    Attributes
    ----------
    parameters
        Numbers that a model stores and learns.
    macs
        Multiply-accumulates of convolutions and matrix products (one product and its sum count as one; papers call
        them FLOPs). Norms, activations and resizing are left out, as everywhere in this literature.
    macs_without_attention
        The same without the two products inside attention, query · key and attention · value, which several tools
        overlook: those of ``scaled_dot_product_attention``.
    by_module
        Cost of every module, by its dotted name.
    img_size
        ``(H, W)`` of the image.
    """

    parameters: int
    macs: int
    macs_without_attention: int
    by_module: Mapping[str, ModuleCost]
    img_size: tuple[int, int]

    def in_units(self, unit: Unit = "1e9", *, attention: bool = True) -> float:
        """Multiply-accumulates in 10⁹ (``"1e9"``) or, as MLoRE's paper counts them, in 2³⁰ (``"2**30"``)."""
        return (self.macs if attention else self.macs_without_attention) / _UNITS[unit]

    def format(self, depth: int = 1) -> str:
        """Lay out a table of the modules down to ``depth`` dots, the whole model last."""
        height, width = self.img_size
        rows = [[f"one image of {height} × {width}", "parameters", "MACs / 1e9", "MACs / 2**30"]]
        shown = {name: cost for name, cost in self.by_module.items() if name.count(".") < depth}
        total = {
            "all": ModuleCost(self.parameters, self.macs),
            "all, without attention products": ModuleCost(self.parameters, self.macs_without_attention),
        }
        for name, cost in (shown | total).items():
            giga = [f"{cost.macs / size:.4g}" for size in _UNITS.values()]
            rows.append([name, f"{cost.parameters / 1e6:.4g} M", *giga])
        first = max(len(row[0]) for row in rows)
        return "\n".join(f"{row[0]:<{first}}" + "".join(f"{cell:>14}" for cell in row[1:]) for row in rows)


class _AttentionCounter(TorchFunctionMode):
    """Add up the products inside attention: L·S·(E + E_v) for every head of every sample."""

    def __init__(self) -> None:
        super().__init__()
        self.macs = 0

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func is F.scaled_dot_product_attention:
            named = dict(zip(("query", "key", "value"), args)) | (kwargs or {})
            query, key, value = (named[name].shape for name in ("query", "key", "value"))
            self.macs += prod(query[:-1]) * key[-2] * (query[-1] + value[-1])
        return func(*args, **(kwargs or {}))


def _matrix_vector_flops(matrix: torch.Size, vector: torch.Size, **_: Any) -> int:
    """A multiplication and an addition for every entry; FlopCounterMode knows products of two matrices only."""
    return 2 * prod(matrix)


def count(model: nn.Module, img_size: tuple[int, int]) -> Complexity:
    """Count parameters and multiply-accumulates of a model on one image, in evaluation mode.

    Parameters
    ----------
    model
        Any module that takes images ``(1, 3, H, W)``. Neither its weights nor its training mode are changed.
    img_size
        ``(H, W)`` in pixels.

    Returns
    -------
    Complexity
        Counted by torch's FlopCounterMode, halved, with matrix-vector products added. Chapters 3 and 5.
    """
    on_meta = {
        name: torch.empty_like(tensor, device="meta")
        for tensors in (model.named_parameters(), model.named_buffers())
        for name, tensor in tensors
    }
    counter = FlopCounterMode(display=False, custom_mapping={torch.ops.aten.mv: _matrix_vector_flops})
    with evaluation_mode(model), torch.no_grad(), _AttentionCounter() as attention, counter:
        functional_call(model, on_meta, (torch.empty(1, 3, *img_size, device="meta"),))
    by_module = _by_module(model, {name: sum(flops.values()) // 2 for name, flops in counter.get_flop_counts().items()})
    macs = counter.get_total_flops() // 2
    parameters = sum(p.numel() for p in model.parameters())
    return Complexity(parameters, macs, macs - attention.macs, by_module, img_size)


def _by_module(model: nn.Module, counted: Mapping[str, int]) -> dict[str, ModuleCost]:
    """Cost of every module; a list of modules, which is never called itself, costs what its members cost."""
    root = type(model).__name__
    macs: dict[str, int] = {}
    for name, module in reversed(list(model.named_modules())):  # members before what holds them
        members = sum(macs.get(f"{name}.{child}", 0) for child, _ in module.named_children()) if name else 0
        macs[name] = counted.get(f"{root}.{name}", members)
    parameters = {name: sum(p.numel() for p in module.parameters()) for name, module in model.named_modules()}
    return {name: ModuleCost(parameters[name], macs[name]) for name in parameters if name}
