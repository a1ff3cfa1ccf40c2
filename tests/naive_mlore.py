"""MLoRE read from the paper's equations, one sample, one task, one expert at a time: what the fast code must equal.

Slow on purpose. Nothing of the library is called; only the numbers of its parameters are read.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

SMALLEST_NOISE = 1e-2


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Convolve a map ``(C, H, W)`` with ``(C', C, k, k)``: a sum over the kernel's places, zeros beyond the border."""
    size, (height, width) = weight.shape[-1], x.shape[1:]
    padded = F.pad(x, [size // 2] * 4)
    total = torch.zeros(weight.shape[0], height, width, dtype=x.dtype)
    for i in range(size):
        for j in range(size):
            total = total + torch.einsum("oc,chw->ohw", weight[:, :, i, j], padded[:, i : i + height, j : j + width])
    return total if bias is None else total + bias[:, None, None]


def gelu(x: Tensor) -> Tensor:
    return x * (1 + torch.erf(x / math.sqrt(2))) / 2


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Normalise the C channels of every pixel of ``(C, H, W)``."""
    x = (x - x.mean(0)) / (((x - x.mean(0)) ** 2).mean(0) + 1e-5).sqrt()
    return x * weight[:, None, None] + bias[:, None, None]


def batch_norm(maps: list[Tensor], norm, tasks: int, task: int) -> list[Tensor]:
    """Normalise one task's maps ``(C, H, W)`` of all samples, by their own statistics in training."""
    weight, bias, mean, var = (
        of_task(getattr(norm.norm, name), tasks, task) for name in ("weight", "bias", "running_mean", "running_var")
    )
    if norm.training:
        everything = torch.stack(maps)
        mean = everything.mean((0, 2, 3))
        var = ((everything - mean[:, None, None]) ** 2).mean((0, 2, 3))
    scale = weight / (var + 1e-5).sqrt()
    return [(x - mean[:, None, None]) * scale[:, None, None] + bias[:, None, None] for x in maps]


def of_task(parameter: Tensor | None, tasks: int, task: int) -> Tensor | None:
    """One task's share of a parameter whose first axis holds all tasks, one behind the other."""
    if parameter is None:
        return None
    rows = len(parameter) // tasks
    return parameter[task * rows : (task + 1) * rows]


def per_task(conv, x: Tensor, task: int) -> Tensor:
    return convolve(x, of_task(conv.weight, conv.tasks, task), of_task(conv.bias, conv.tasks, task))


def expert(experts, n: int, x: Tensor) -> Tensor:
    """W_lreb, b_lreb: 3×3 to r_n channels; W_lrea, b_lrea: 1×1 back (Sec. 3.3)."""
    start = sum(experts.ranks[:n])
    own = slice(start, start + experts.ranks[n])
    hidden = convolve(x, experts.down.weight[own], experts.down.bias[own])
    return convolve(hidden, experts.up_weight[:, own, None, None], experts.up_bias[n])


def conv_expert(experts, n: int, x: Tensor) -> Tensor:
    """The standard expert of Table 2: 3×3, ReLU, 1×1, all of C channels."""
    first, second = experts.spatial, experts.pointwise
    hidden = convolve(x, of_task(first.weight, experts.experts, n), of_task(first.bias, experts.experts, n))
    hidden = hidden.clamp_min(0)
    return convolve(hidden, of_task(second.weight, experts.experts, n), of_task(second.bias, experts.experts, n))


def mixture(experts, features: Tensor, gates: Tensor) -> Tensor:
    """Sum over n of g_n^t E_n(X^t), for features ``(B, T, C, H, W)`` and gates ``(B, T, N)``."""
    rows = []
    for sample, gates_of_sample in zip(features, gates, strict=True):
        for x, g in zip(sample, gates_of_sample, strict=True):
            rows.append(sum(g[n] * expert(experts, n, x) for n in range(len(g))))
    return torch.stack(rows).reshape(features.shape)


def route(router, x: Tensor, task: int, activation: bool) -> Tensor:
    """One task's router on one map ``(C, H, W)``, as printed or, with activations, as released."""
    if router.input is not None:
        x = router.input[task]
    vectors = []
    if "basic" in router.branches:
        basic = router.branches["basic"]
        hidden = per_task(basic.first, x, task)
        if activation:
            hidden = gelu(layer_norm(hidden, basic.norm.weight[task], basic.norm.bias[task]))
        vectors.append(per_task(basic.second, hidden, task).mean((1, 2)))  # two 1×1 convolutions, then the mean
    if "position" in router.branches:
        branch = router.branches["position"]
        hidden = (x.flatten(1) * branch.weight[task]).sum(1) + branch.bias[task]  # a linear layer over the HW places
        hidden = hidden[:, None, None]
        if activation:
            hidden = gelu(layer_norm(hidden, branch.norm.weight[task], branch.norm.bias[task]))
        vectors.append(per_task(branch.project, hidden, task)[:, 0, 0])
    return per_task(router.predict, torch.cat(vectors)[:, None, None], task)[:, 0, 0]


def gates_of(logits: Tensor, raw_noise: Tensor | None, draw: Tensor | None, options) -> Tensor:
    """Softmax and top k of one row of N logits; ``draw`` is standard normal noise, None in evaluation."""
    if raw_noise is not None and draw is not None:
        scale = raw_noise if options.released else F.softplus(raw_noise).clamp_min(SMALLEST_NOISE)
        logits = logits + draw * scale
    best = sorted(range(len(logits)), key=lambda n: (-logits[n].item(), n))[: options.k]
    weights = [logits[n].exp() for n in range(len(logits))]
    total = sum(weights) if options.softmax_first else sum(weights[n] for n in best)
    return torch.stack([weights[n] / total if n in best else torch.zeros_like(total) for n in range(len(logits))])


def module(of, features: Tensor, draw: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
    """Eq. 2 for every task and sample, and the gates ``(B, T, N)``; ``draw`` ``(B, T, N)`` is the noise in training."""
    tasks, count, options, samples = of.project.tasks, len(of.options.ranks), of.options, range(len(features))
    outputs, gates = [], []
    for t in range(tasks):
        maps = [per_task(of.project, x if x.dim() == 3 else x[t], t) for x in features]  # X^t
        routed = [route(of.router, x, t, options.released) for x in maps] if of.router is not None else None
        total = [torch.zeros_like(x) for x in maps]
        if of.generic is not None:  # f_g
            for b in samples:
                source = maps[b].detach() if options.stop_gradient else maps[b]
                if options.generic_rank is None:
                    generic = convolve(source, of.generic.weight, of.generic.bias)
                else:
                    down, up = of.generic.down, of.generic.up
                    generic = convolve(convolve(source, down.weight, down.bias), up.weight, up.bias)
                total[b] = total[b] + generic
        if count:  # f_sr(f_lre)
            kind = conv_expert if options.experts_kind == "conv" else expert
            rows = [
                gates_of(
                    routed[b][:count],
                    routed[b][count : 2 * count] if options.noise else None,
                    None if draw is None else draw[b, t],
                    options,
                )
                for b in samples
            ]
            sums = [sum(rows[b][n] * kind(of.experts, n, maps[b]) for n in range(count)) for b in samples]
            total = [a + b for a, b in zip(total, batch_norm(sums, of.norm, tasks, t), strict=True)]
            gates.append(torch.stack(rows))
        if of.task_experts is not None:  # f_se
            for b in samples:
                own = per_task(of.task_experts.up, per_task(of.task_experts.down, maps[b], t), t)
                total[b] = total[b] + (own * routed[b][-1] if options.released else own)
        if of.nonlinear is not None:
            norm, linear = of.nonlinear.norm, of.nonlinear.linear
            if options.released:
                total = [gelu(x) for x in batch_norm(total, norm, tasks, t)]
            else:
                total = batch_norm([gelu(x) for x in total], norm, tasks, t)
            total = [per_task(linear, x, t) for x in total]
        outputs.append(torch.stack(total))
    return torch.stack(outputs, 1), torch.stack(gates, 1) if gates else None


def cv_squared(values: Tensor) -> Tensor:
    if len(values) == 1:
        return torch.zeros(())
    mean = values.sum() / len(values)
    return ((values - mean) ** 2).sum() / (len(values) - 1) / mean**2


def decoder(of, maps: list[Tensor], released: bool, draws: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    """All scales' modules and their fusion: ``(B, T, C, H, W)`` and the gates by name; ``draws`` as in `module`."""
    finished, routing, tasks = [], {}, len(of.task_names)
    for scale, (feature_map, narrow, modules) in enumerate(zip(maps, of.narrow, of.scales, strict=True), 1):
        features = torch.stack([convolve(x, narrow.weight, narrow.bias) for x in feature_map])
        for number, one in enumerate(modules, 1):
            if not hasattr(one, "options"):  # a plain map
                features = torch.stack([torch.stack([per_task(one, x, t) for t in range(tasks)]) for x in features])
                continue
            name = f"scale {scale}, module {number}"
            features, gates = module(one, features, draws.get(name))
            if gates is not None:
                routing[name] = gates
        finished.append(features)
    size = max(tuple(x.shape[-2:]) for x in maps)
    finished = [
        torch.stack([F.interpolate(x, size, mode="bilinear", align_corners=False) for x in features])
        for features in finished
    ]  # S of (B, T, C, H, W)
    return (_weigh if released else _concatenate)(of.fusion, finished, tasks), routing


def _concatenate(fusion, maps: list[Tensor], tasks: int) -> Tensor:
    """One 1×1 convolution from 4C to C per task."""
    outputs = []
    for t in range(tasks):
        weight = torch.cat([of_task(part.weight, tasks, t) for part in fusion.parts], 1)
        bias = of_task(fusion.parts[0].bias, tasks, t)
        outputs.append(
            torch.stack([convolve(torch.cat([m[b, t] for m in maps]), weight, bias) for b in range(len(maps[0]))])
        )
    return torch.stack(outputs, 1)


def _weigh(fusion, maps: list[Tensor], tasks: int) -> Tensor:
    """The concatenation predicts one softmax weight per scale and pixel."""
    outputs = []
    for t in range(tasks):
        samples = range(len(maps[0]))
        hidden = [per_task(fusion.reduce, torch.cat([m[b, t] for m in maps]), t) for b in samples]
        hidden = [gelu(x) for x in batch_norm(hidden, fusion.norm, tasks, t)]
        weights = [per_task(fusion.predict, x, t).softmax(0) for x in hidden]  # (S, H, W)
        outputs.append(torch.stack([sum(weights[b][s] * m[b, t] for s, m in enumerate(maps)) for b in samples]))
    return torch.stack(outputs, 1)
