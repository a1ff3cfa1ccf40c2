"""The inference form of an MLoRE module: one 3×3 convolution per image and task (MLoRE, Eqs. 3 to 7; chapter 8).

Every path of a module is linear, so its paths and the BatchNorm of the experts' sum are one kernel. That kernel
depends on the gates, hence on the image, and is made anew for every image and task. This has a price, and two modes
pay it differently. In multiply-accumulates of one image and task, with N experts whose ranks add up to S, width C,
and H·W tokens, the experts cost

=====================  =====================================  ====================================
form                   a forward pass                         what it stores for them
=====================  =====================================  ====================================
concatenated           10 C S · H W                           10 C S
on the fly             9 C² S                                 10 C S
precomposed            9 C² N                                 9 C² N
=====================  =====================================  ====================================

beside the one convolution, 9 C² · H W, which the generic path needs anyway. So mixing on the fly costs less than not
fusing as soon as H·W > 0.9 C, whatever the ranks, the number of experts and the batch; and mixing precomposed kernels
as soon as H·W > 0.9 C · N/S, that is 0.9 C over the mean rank: practically always. The task experts' product,
9 C² R a task for any batch, is saved by storing 9 C² numbers a task. Not counted are the passes over memory: kernels
are written and read for each image and task, which no count of multiplications sees. Measured on a CPU at C = 640, one
image (book/results/mlore_price.json), on the fly takes less time than not fusing from about 28 × 28 tokens on (24 × 24
by the count), precomposed from about 12 × 12 on.
"""

from __future__ import annotations

import copy
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mlore_edu.decoders.low_rank import LowRankConv2d, LowRankExperts
from mlore_edu.decoders.mlore import MLoREModule, ModuleOutput
from mlore_edu.decoders.moe import Gating, importance_loss, load_loss, noisy_top_k
from mlore_edu.decoders.per_task import PerTaskBatchNorm2d, PerTaskConv2d
from mlore_edu.errors import UserError
from mlore_edu.reparameterization import (
    Mode,
    batchnorm_as_scale_and_shift,
    check_fusable,
    choose_mode,
    compose,
    dynamic_conv,
    mix,
    mix_low_rank,
    scale_channels,
)


class Stored(nn.Module):
    """Convolutions kept as full kernels."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.weight, self.bias = _keep(weight), _keep(bias)

    def forward(self) -> tuple[Tensor, Tensor]:
        """Give kernels ``(..., C', C, k, k)`` and biases ``(..., C')``."""
        return self.weight, self.bias


class Factored(nn.Module):
    """Low-rank convolutions kept as their two factors, and composed when they are needed."""

    def __init__(self, weight: Tensor, bias: Tensor, next_weight: Tensor, next_bias: Tensor) -> None:
        super().__init__()
        self.weight, self.bias = _keep(weight), _keep(bias)
        self.next_weight, self.next_bias = _keep(next_weight), _keep(next_bias)

    def forward(self) -> tuple[Tensor, Tensor]:
        """Give kernels ``(..., C', C, k, k)`` and biases ``(..., C')``."""
        return compose(self.weight, self.bias, self.next_weight, self.next_bias)


class StoredExperts(nn.Module):
    """The shared experts as N full kernels, mixed by one matrix product, then scaled by the BatchNorm of their sum."""

    def __init__(self, experts: LowRankExperts, scale: Tensor) -> None:
        super().__init__()
        weight, bias = experts.kernels()
        self.weight, self.bias, self.scale = _keep(weight), _keep(bias), _keep(scale)

    def forward(self, gates: Tensor) -> tuple[Tensor, Tensor]:
        """Turn gates ``(B, T, N)`` into kernels ``(B, T, C, C, 3, 3)`` and biases ``(B, T, C)``."""
        weight = mix(gates, self.weight).mul_(self.scale[..., None, None, None])
        return weight, mix(gates, self.bias) * self.scale


class FactoredExperts(nn.Module):
    """The shared experts as their low-rank factors, mixed by one matrix product; the scale goes into the upper one."""

    def __init__(self, experts: LowRankExperts, scale: Tensor) -> None:
        super().__init__()
        self.expert_of_rank: Tensor
        self.down = copy.deepcopy(experts.down)
        self.up_weight, self.up_bias, self.scale = _keep(experts.up_weight), _keep(experts.up_bias), _keep(scale)
        self.register_buffer("expert_of_rank", experts.expert_of_rank.clone(), persistent=False)

    def forward(self, gates: Tensor) -> tuple[Tensor, Tensor]:
        """Turn gates ``(B, T, N)`` into kernels ``(B, T, C, C, 3, 3)`` and biases ``(B, T, C)``."""
        up = self.scale[..., None] * self.up_weight  # (T, C, sum r)
        weight, bias = mix_low_rank(gates[..., self.expert_of_rank], up, self.down.weight, _bias(self.down))
        return weight, bias + mix(gates, self.up_bias) * self.scale


class FusedMLoREModule(nn.Module):
    """An :class:`~mlore_edu.decoders.mlore.MLoREModule` with all its paths as one convolution per image and task.

    With A and D the scale and shift of the BatchNorm of the experts' sum, a and d those of the BatchNorm right after
    the module (released; else 1 and 0), and s the learned scale of the task path (released; else 1)::

        W_r = a A · sum_n g_n W_n + s · a W_se + a W_g
        b_r = a A · sum_n g_n b_n + s · a b_se + a b_g + (a D + d)

    In ``"paper"`` the BatchNorm after the GELU goes into the 1×1 convolution that follows it.

    Parameters
    ----------
    module
        In evaluation mode. Nothing of its memory is shared.
    mode
        ``"precomposed"`` or ``"on_the_fly"``.

    Raises
    ------
    UserError
        Where the experts are not linear.

    Notes
    -----
    Source: MLoRE, Eqs. 3 to 7. Chapter 8.
    """

    def __init__(self, module: MLoREModule, mode: Mode) -> None:
        super().__init__()
        self.options, self.mode = module.options, mode
        self.project, self.router, nonlinear = copy.deepcopy((module.project, module.router, module.nonlinear))
        self.linear = None if nonlinear is None else nonlinear.linear
        one = torch.ones_like(_per_task(module.project)[1])  # (T, C)
        outer_scale, shift = one, torch.zeros_like(one)
        if nonlinear is not None:
            norm_scale, norm_shift = _scale_and_shift(nonlinear.norm)
            if nonlinear.norm_first:
                outer_scale, shift = norm_scale, norm_shift
            else:
                _fold_into_next(norm_scale, norm_shift, nonlinear.linear)
        self.experts: StoredExperts | FactoredExperts | None = None
        if module.experts is not None:
            linear_experts = _linear(module.experts)
            scale, inner_shift = _scale_and_shift(module.norm)
            form = StoredExperts if mode == "precomposed" else FactoredExperts
            self.experts, shift = form(linear_experts, outer_scale * scale), outer_scale * inner_shift + shift
        self.generic = None if module.generic is None else _generic_path(module.generic, mode)
        self.task_experts = None
        if module.task_experts is not None:
            up_weight, up_bias = _per_task(module.task_experts.up)  # (T, C, R, 1, 1), (T, C)
            up_weight, up_bias = scale_channels(up_weight, up_bias, outer_scale)
            self.task_experts = _low_rank(*_per_task(module.task_experts.down), up_weight[..., 0, 0], up_bias, mode)
        self.outer_scale, self.shift = _keep(outer_scale), _keep(shift)  # (T, C) each
        self.requires_grad_(False).eval()

    def forward(self, features: Tensor) -> ModuleOutput:
        """Turn the features ``(B, T, C, H, W)`` of all tasks, or ``(B, C, H, W)`` shared by them, into new ones."""
        features = self.project(features)  # X^t: (B, T, C, H, W)
        gating, task_scale = self.route(features)
        weight, bias = self.convolution(None if gating is None else gating.gates, task_scale)
        if weight.dim() == 6:  # (B, T, C, C, 3, 3)
            features = dynamic_conv(features, weight, bias)  # Eq. 7
        else:  # nothing depends on the image: (T, C, C, 3, 3)
            stacked = F.conv2d(
                features.flatten(1, 2), weight.flatten(0, 1), bias.flatten(), padding=1, groups=len(weight)
            )
            features = stacked.view_as(features)  # (B, T, C, H, W)
        if self.linear is not None:
            features = self.linear(F.gelu(features))
        if gating is None:
            return ModuleOutput(features, None, features.new_zeros(()))
        balance_loss = importance_loss(gating.gates)
        if not self.options.released:
            balance_loss = balance_loss + load_loss(gating.load)
        return ModuleOutput(features, gating.gates, balance_loss)

    def route(self, features: Tensor) -> tuple[Gating | None, Tensor | None]:
        """Gates of the experts, without noise, and the released code's scale ``(B, T)`` of the task path."""
        if self.router is None:
            return None, None
        outputs = self.router(features)  # (B, T, N [+ N] [+ 1])
        task_scale = outputs[..., -1] if self.options.released and self.task_experts is not None else None
        if self.experts is None:
            return None, task_scale
        logits, options = outputs[..., : len(self.options.ranks)], self.options
        return noisy_top_k(logits, None, options.k, softmax_first=options.softmax_first, training=False), task_scale

    def convolution(self, gates: Tensor | None, task_scale: Tensor | None) -> tuple[Tensor, Tensor]:
        """Add up all paths' kernels and biases (Eqs. 5 and 6).

        Parameters
        ----------
        gates
            ``(B, T, N)``; None without experts.
        task_scale
            ``(B, T)``; None where the task path is added as it is.

        Returns
        -------
        tuple of Tensor
            ``(B, T, C, C, 3, 3)`` and ``(B, T, C)``, both without B where nothing depends on the image.
        """
        terms = []  # kernels, biases, and the scale of their channels
        if self.task_experts is not None:
            one = self.outer_scale.new_ones(len(self.outer_scale))  # (T,)
            terms.append((*self.task_experts(), (one if task_scale is None else task_scale)[..., None]))
        if self.generic is not None:
            terms.append((*self.generic(), self.outer_scale))
        weight, bias = scale_channels(*terms.pop(0)) if self.experts is None or gates is None else self.experts(gates)
        for next_weight, next_bias, scale in terms:  # in place: a second tensor of this size costs more than the sum
            weight.addcmul_(next_weight, scale[..., None, None, None])
            bias = bias + next_bias * scale
        return weight, bias + self.shift


def fuse_module(module: MLoREModule, mode: Mode | None = None) -> FusedMLoREModule:
    """Give a module's inference form.

    Parameters
    ----------
    module
        In evaluation mode; it is not changed.
    mode
        None: :func:`~mlore_edu.reparameterization.choose_mode` decides, for this module by itself.

    Raises
    ------
    UserError
        For an unknown mode, a module in training mode, and experts that are not linear.
    """
    check_fusable(module, mode)
    with torch.no_grad():
        return FusedMLoREModule(module, mode or choose_mode(module))


def _keep(tensor: Tensor) -> nn.Parameter:
    """A copy that is stored with the model and counted among its numbers."""
    return nn.Parameter(tensor.detach().clone(memory_format=torch.contiguous_format))


def _bias(convolution: nn.Conv2d) -> Tensor:
    return cast(Tensor, convolution.bias)  # all convolutions of a module have one


def _per_task(convolution: PerTaskConv2d) -> tuple[Tensor, Tensor]:
    """Weights ``(T, C', C, k, k)`` and biases ``(T, C')``."""
    split = (convolution.tasks, -1)
    return torch.unflatten(convolution.weight, 0, split), torch.unflatten(_bias(convolution), 0, split)


def _scale_and_shift(norm: PerTaskBatchNorm2d) -> tuple[Tensor, Tensor]:
    """Scale and shift of T BatchNorms, ``(T, C)`` each."""
    scale, shift = batchnorm_as_scale_and_shift(norm.norm)  # (T*C,) each
    return scale.view(norm.tasks, -1), shift.view(norm.tasks, -1)


def _fold_into_next(scale: Tensor, shift: Tensor, convolution: PerTaskConv2d) -> None:
    """Fold a BatchNorm ``(T, C)`` into the 1×1 convolution after it: it sees one pixel, so borders do not matter."""
    weight, bias = _per_task(convolution)  # (T, C', C, 1, 1), (T, C')
    bias += (weight[..., 0, 0] @ shift[..., None])[..., 0]  # (T, C')
    weight *= scale[:, None, :, None, None]


def _linear(experts: nn.Module) -> LowRankExperts:
    if isinstance(experts, LowRankExperts):
        return experts
    raise UserError(
        "Experts with an activation between their convolutions cannot become one convolution; "
        "build the model with experts_kind='low_rank'."
    )


def _low_rank(weight: Tensor, bias: Tensor, next_weight: Tensor, next_bias: Tensor, mode: Mode) -> Stored | Factored:
    if mode == "precomposed":
        return Stored(*compose(weight, bias, next_weight, next_bias))
    return Factored(weight, bias, next_weight, next_bias)


def _generic_path(path: nn.Module, mode: Mode) -> Stored | Factored:
    """The convolution that all tasks share: full as it is, low-rank as the mode says."""
    if isinstance(path, LowRankConv2d):
        return _low_rank(path.down.weight, _bias(path.down), path.up.weight[..., 0, 0], _bias(path.up), mode)
    full = cast(nn.Conv2d, path)
    return Stored(full.weight, _bias(full))
