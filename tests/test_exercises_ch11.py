"""The self-checks of chapter 11 accept right answers, and answer wrong ones with a hint."""

import torch

from mlore_edu.exercises import ch11

T = K = 5


def parts(assembled, carry):
    ones = torch.ones_like(assembled[:1, :, :1])
    weights = torch.cat([carry, ones]).flip(0).cumprod(0).flip(0)
    return weights * assembled


def counted_from_the_wrong_end(assembled, carry):
    ones = torch.ones_like(assembled[:1, :, :1])
    return torch.cat([ones, carry]).cumprod(0) * assembled


def decoder_size(modules, backbone, hidden, channels, gate):
    experts = K * ((backbone + 1) * hidden + 2 * hidden + (hidden + 1) * channels)
    gates = T * ((9 * backbone + 1) * gate + (9 * gate + 1) * gate + (9 * gate + 1) * K)
    return modules * (experts + gates) + memory_price(modules, gate)


def memory_price(modules, gate):
    return (modules - 1) * T * (9 * gate + 1 + 1)


ANSWERS = {
    ch11.check_balanced_momentum: (
        lambda experts: 1 - 1 / (experts + 1),
        lambda experts: 1.0,
        lambda experts: 1 - 1 / experts,  # forgets that the memory is one of the softmax's entries
    ),
    ch11.check_parts: (
        parts,
        counted_from_the_wrong_end,
        lambda assembled, carry: assembled,
        lambda assembled, carry: parts(assembled, carry).sum(0),
    ),
    ch11.check_decoder_size: (
        decoder_size,
        lambda modules, *widths: decoder_size(modules, *widths) - memory_price(modules, widths[-1]),
        lambda modules, *widths: decoder_size(modules, *widths) - modules * K * 2 * widths[1],  # forgets BatchNorm
    ),
    ch11.check_memory_price: (
        memory_price,
        lambda modules, gate: modules * T * (9 * gate + 2),  # the first module has no memory
        lambda modules, gate: (modules - 1) * T * (9 * gate + 1),  # forgets the momentum
    ),
}
