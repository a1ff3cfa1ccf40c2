"""The self-checks of chapter 7 accept right answers and explain typical wrong ones."""

from math import comb

import torch
import torch.nn.functional as F

from mlore_edu.exercises import ch07


def collapse(layers):
    weight, bias = torch.eye(layers[0][0].shape[1]).double(), 0
    for layer_weight, layer_bias in layers:
        weight, bias = layer_weight @ weight, layer_weight @ bias + layer_bias if torch.is_tensor(bias) else layer_bias
    return weight, bias


def chance(served, tasks, k, experts):
    p = k / experts
    return comb(tasks, served) * p**served * (1 - p) ** (tasks - served)


def carry(weights, factor):
    return weights.repeat_interleave(factor, 0).repeat_interleave(factor, 1) / factor**2


RIGHT = {
    "collapse": collapse,
    "chance": chance,
    "habit": lambda active: active.double().mean(0).prod(0),
    "carry": carry,
}

WRONG = {
    "collapse": {
        "multiplies in the wrong order": lambda layers: (
            layers[0][0].T @ layers[1][0].T @ layers[2][0].T,
            layers[2][1],
        ),
        "adds the biases up": lambda layers: (collapse(layers)[0], layers[2][1]),
        "forgets a layer's product": lambda layers: (2 * collapse(layers)[0], collapse(layers)[1]),
    },
    "chance": {
        "knows the power alone": lambda served, tasks, k, experts: (k / experts) ** served,
        "forgets the number of ways": lambda m, t, k, n: (k / n) ** m * (1 - k / n) ** (t - m),
        "counts experts, not tasks": lambda m, t, k, n: comb(k, m) * comb(n - k, max(0, t - m)) / comb(n, t),
    },
    "habit": {
        "does not shuffle": lambda active: active.all(1).double().mean(0),
        "takes one rate for all tasks": lambda active: active.double().mean((0, 1)) ** 3,
        "averages over experts": lambda active: active.double().mean(0).prod(0).mean(),
    },
    "carry": {
        "keeps the weights as they are": lambda weights, f: weights.repeat_interleave(f, 0).repeat_interleave(f, 1),
        "divides by the factor": lambda weights, f: carry(weights, f) * f,
        "smooths": lambda weights, f: F.interpolate(weights[None, None], scale_factor=f, mode="bilinear")[0, 0] / f**2,
        "tiles": lambda weights, f: weights.tile(f, f) / f**2,
        "forgets the columns": lambda weights, f: weights.repeat_interleave(f, 0) / f,
    },
}

ANSWERS = {getattr(ch07, f"check_{name}"): (right, *WRONG[name].values()) for name, right in RIGHT.items()}
