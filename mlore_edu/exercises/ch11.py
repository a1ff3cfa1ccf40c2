"""Self-checks of chapter 11: a balanced momentum, shares of the final memory, a decoder's size, the memory's price."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mlore_edu.decoders.base import MapShape
from mlore_edu.decoders.taskexpert import TaskExpertDecoder
from mlore_edu.exercises import answered, exercise
from mlore_edu.tasks import PASCAL_CONTEXT


@exercise("11.1", hint="A read gate starts at about 1 / (K + 1); which momentum makes the sum of the two equal 1?")
def check_balanced_momentum(answer: Any) -> None:
    """``answer(experts)``: the momentum with which, all gates equal, every layer weighs 1."""
    for experts in (1, 4, 6, 15):
        value = float(answered(answer(experts)))
        carry = value + 1 / (experts + 1)
        message = (
            f"With {experts} experts and a momentum of {value:.3f} a layer keeps {carry:.3f} of the memory, not 1."
        )
        assert abs(carry - 1) < 1e-9, message


def _recurrence(assembled: Tensor, carry: Tensor) -> Tensor:
    memory = assembled[0]
    for step, kept in zip(assembled[1:], carry):
        memory = step + kept * memory
    return memory


@exercise("11.2", hint="Layer l is multiplied by every carry factor that comes after it, and by none before.")
def check_parts(answer: Any) -> None:
    """``answer(assembled, carry)``: what each layer puts into the final memory, ``(L, T, D, N)``."""
    generator = torch.Generator().manual_seed(0)
    for layers in (1, 2, 5):
        assembled = torch.randn(layers, 2, 3, 4, generator=generator, dtype=torch.float64)  # (L, T, D, N)
        carry = 2 * torch.rand(layers - 1, 2, 1, 4, generator=generator, dtype=torch.float64) - 0.5  # (L - 1, T, 1, N)
        parts = answered(answer(assembled, carry))
        shape = tuple(parts.shape)
        assert shape == tuple(assembled.shape), (
            f"The parts should have the shape {tuple(assembled.shape)}, not {shape}."
        )
        for layer in range(layers):
            alone = torch.zeros_like(assembled)
            alone[layer] = assembled[layer]
            right = torch.allclose(parts[layer], _recurrence(alone, carry))
            assert right, f"Of {layers} layers, layer {layer + 1} puts something else into the memory."


def _decoder(widths: tuple[int, ...], memory: bool = True) -> nn.Module:
    """Decoder of PASCAL-Context's tasks from (L, E, e, D, h), with parameters of no content."""
    modules, backbone, hidden, channels, gate = widths
    with torch.device("meta"):
        return TaskExpertDecoder(
            PASCAL_CONTEXT,
            [MapShape(backbone, 4, 4)] * modules,
            channels,
            expert_width=hidden,
            gate_width=gate,
            memory=memory,
        )


SIZES = ((12, 768, 768, 768, 288), (1, 8, 4, 6, 2), (3, 10, 20, 6, 5))


@exercise("11.3", hint="Only the last of a gate's three layers differs between the first module and the others.")
def check_decoder_size(answer: Any) -> None:
    """``answer(L, E, e, D, h)``: parameters of TaskExpert's decoder for five tasks and five experts."""
    for widths in SIZES:
        truth = sum(parameter.numel() for parameter in _decoder(widths).parameters())
        value = answered(answer(*widths))
        where = "With L = {}, E = {}, e = {}, D = {} and h = {}".format(*widths)
        assert value == truth, f"{where} there are {truth} parameters, not {value}."


@exercise("11.4", hint="Per module after the first and per task: one more output of a 3×3 convolution, and a momentum.")
def check_memory_price(answer: Any) -> None:
    """``answer(L, h)``: parameters that the memory adds for five tasks."""
    for widths in SIZES:
        sizes = [sum(p.numel() for p in _decoder(widths, memory).parameters()) for memory in (True, False)]
        truth = sizes[0] - sizes[1]
        value = answered(answer(widths[0], widths[-1]))
        assert value == truth, f"With {widths[0]} modules and h = {widths[-1]} it adds {truth} parameters, not {value}."
