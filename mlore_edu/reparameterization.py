"""Re-parameterisation: many linear convolutions become one (MLoRE, Eqs. 3 to 7; chapter 8).

A convolution is its weight ``(C', C, k, k)`` and its bias ``(C',)``. Each rule of the derivation is one function on
these two, exact, differentiable, for any floating dtype; and most take any number of leading dimensions, so that all
samples and tasks are done at once. :func:`fuse` applies them to a whole model.
"""

from __future__ import annotations

import copy
from typing import Literal, Protocol, TypeVar, cast, get_args

import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mlore_edu.errors import UserError

Mode = Literal["precomposed", "on_the_fly"]
Model = TypeVar("Model", bound=nn.Module)

NOTHING_TO_FUSE = "The model has nothing to fuse; of this library's decoders only mlore has."


class Fusable(Protocol):
    """A module that knows its inference form; timm's ``reparameterize_model`` looks for the same method."""

    def fuse(self, mode: Mode | None = None) -> nn.Module:
        """Give a new module with the same outputs; the module itself stays as it is."""


def compose(weight: Tensor, bias: Tensor, next_weight: Tensor, next_bias: Tensor) -> tuple[Tensor, Tensor]:
    """Make one convolution of a k×k convolution and the 1×1 convolution after it.

    The second is a matrix applied to every pixel of the first's result, so it may be applied to the first's kernel
    instead. Zero padding does no harm: it happens before both. (The other order, 1×1 and then k×k, does not compose
    under zero padding where the 1×1 has a bias: the k×k pads with zeros what the 1×1 would have made the bias.)

    Parameters
    ----------
    weight, bias
        The first, ``(..., r, C, k, k)`` and ``(..., r)``.
    next_weight, next_bias
        The second, ``(..., C', r)`` (without the two last axes of length 1) and ``(..., C')``.

    Returns
    -------
    tuple of Tensor
        ``(..., C', C, k, k)`` and ``(..., C')``.

    Notes
    -----
    Source: Ding et al. 2021 (Diverse Branch Block); the product W_lreb W_lrea of MLoRE, Eqs. 3 to 6. Chapter 8.
    """
    product = next_weight @ weight.flatten(-3)  # (..., C', C*k*k)
    composed = product.reshape(*product.shape[:-1], *weight.shape[-3:])  # (..., C', C, k, k)
    return composed, (next_weight @ bias[..., None])[..., 0] + next_bias  # (..., C')


def scale_channels(weight: Tensor, bias: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Make one convolution of a convolution and the scaling of its output channels.

    Parameters
    ----------
    weight, bias
        ``(..., C', C, k, k)`` and ``(..., C')``.
    scale
        ``(..., C')``, or anything that broadcasts to it.

    Returns
    -------
    tuple of Tensor
        ``(..., C', C, k, k)`` and ``(..., C')``. The factor before the sum in MLoRE, Eq. 3. Chapter 8.
    """
    return weight * scale[..., None, None, None], bias * scale


def add(*convolutions: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Make one convolution of several that read the same input and whose results are added.

    Parameters
    ----------
    *convolutions
        Pairs of weight ``(..., C', C, k, k)`` and bias ``(..., C')``, of one kernel size.

    Returns
    -------
    tuple of Tensor
        Weight and bias of their sum (MLoRE, Eqs. 5 and 6). Chapter 8.
    """
    weights, biases = zip(*convolutions, strict=True)
    return sum(weights[1:], weights[0]), sum(biases[1:], biases[0])


def batchnorm_as_scale_and_shift(norm: _BatchNorm) -> tuple[Tensor, Tensor]:
    """Write a BatchNorm in evaluation as ``scale * x + shift``.

    Its scale is γ / sqrt(σ² + ε), its shift β - μ · scale. (MLoRE's Eqs. 3 and 4 print γ / σ, without the ε.)

    Parameters
    ----------
    norm
        Any BatchNorm of C channels; its running statistics μ and σ² are used.

    Returns
    -------
    tuple of Tensor
        Scale and shift, ``(C,)`` each.

    Raises
    ------
    UserError
        Where it keeps no running statistics. Chapter 8.
    """
    if norm.running_mean is None or norm.running_var is None:
        raise UserError(
            "A BatchNorm without running statistics is no fixed scale and shift; "
            "build it with track_running_stats=True."
        )
    scale = (norm.running_var + norm.eps).rsqrt()  # (C,)
    if norm.affine:
        scale = scale * norm.weight
    shift = -norm.running_mean * scale
    return scale, shift + norm.bias if norm.affine else shift


def fold_batchnorm(weight: Tensor, bias: Tensor, norm: _BatchNorm) -> tuple[Tensor, Tensor]:
    """Make one convolution of a convolution and the BatchNorm after it, as it is in evaluation.

    Parameters
    ----------
    weight, bias
        ``(C', C, k, k)`` and ``(C',)``.
    norm
        BatchNorm of C' channels.

    Returns
    -------
    tuple of Tensor
        ``(C', C, k, k)`` and ``(C',)``.

    Raises
    ------
    UserError
        Where the BatchNorm keeps no running statistics.

    Notes
    -----
    Source: Ding et al. 2021 (RepVGG); MLoRE, Eqs. 3 and 4. Chapter 8.
    """
    scale, shift = batchnorm_as_scale_and_shift(norm)
    weight, bias = scale_channels(weight, bias, scale)
    return weight, bias + shift


def mix(gates: Tensor, values: Tensor) -> Tensor:
    """Add N tensors, weighted by gates, for all samples and tasks by one matrix product.

    Parameters
    ----------
    gates
        ``(..., N)``; zero where an expert is not active.
    values
        ``(N, *shape)``: the experts' kernels, say, ``(N, C', C, k, k)``, or their biases ``(N, C')``.

    Returns
    -------
    Tensor
        ``(..., *shape)`` in the dtype of ``values``.

    Notes
    -----
    Source: the sums over k in MLoRE, Eqs. 3 and 4. N · C' · C · k² multiply-accumulates for each row of gates; the
    product is so flat that it takes as long as the kernels take to be read and written. Chapter 8.
    """
    mixed = gates.to(values.dtype) @ values.flatten(1)  # (..., product of shape)
    return mixed.reshape(*gates.shape[:-1], *values.shape[1:])  # (..., *shape)


def mix_low_rank(gate_of_rank: Tensor, up: Tensor, down_weight: Tensor, down_bias: Tensor) -> tuple[Tensor, Tensor]:
    """Compose and add all low-rank experts, each weighted by its gate, by one matrix product: up · diag(gate) · down.

    Parameters
    ----------
    gate_of_rank
        ``(..., R)``: the gate of each expert, once for every one of its ranks; R is the sum of all ranks.
    up
        The 1×1 convolutions beside each other, ``(C', R)``; or ``(..., C', R)`` where they differ.
    down_weight, down_bias
        The k×k convolutions upon each other, ``(R, C, k, k)`` and ``(R,)``.

    Returns
    -------
    tuple of Tensor
        ``(..., C', C, k, k)`` and ``(..., C')``: without the biases of the 1×1 convolutions, which :func:`mix` adds.

    Notes
    -----
    Equals ``mix`` of the composed experts, for C' · R · C · k² multiply-accumulates a row of gates, and never holds
    the N composed kernels. Chapter 8.
    """
    gated = up * gate_of_rank.to(up.dtype)[..., None, :]  # (..., C', R)
    product = gated @ down_weight.flatten(1)  # (..., C', C*k*k)
    kernels = product.reshape(*gated.shape[:-1], *down_weight.shape[1:])  # (..., C', C, k, k)
    return kernels, gated @ down_bias  # (..., C')


def dynamic_conv(features: Tensor, kernels: Tensor, biases: Tensor) -> Tensor:
    """Convolve the features of every sample and task with a kernel of their own (MLoRE, Eq. 7).

    One convolution with B·T groups. Measured on a CPU against it: B·T separate convolutions take 0.9 of its time where
    they are large (C = 640, 32 × 32 tokens), but 2.6 times its time where they are small (C = 32, 8 × 8, gradients
    included), and fix B in an exported model; nine shifted matrix products, or im2col and one product, take 1.2 to 3.3
    times its time, and im2col keeps nine copies of the features for the backward pass.

    Parameters
    ----------
    features
        ``(B, T, C, H, W)``.
    kernels, biases
        ``(B, T, C', C, k, k)``, k odd, and ``(B, T, C')``.

    Returns
    -------
    Tensor
        ``(B, T, C', H, W)``; borders are padded with zeros.

    Raises
    ------
    UserError
        Where k is even: the result would have another size.

    Notes
    -----
    Source: MLoRE, Eq. 7. Chapter 8.
    """
    size = kernels.shape[-1]
    if size % 2 == 0:
        raise UserError(f"A kernel of size {size} cannot keep a map's size; give an odd one.")
    pairs = features.shape[0] * features.shape[1]  # B*T
    stacked = features.flatten(0, 2)[None]  # (1, B*T*C, H, W)
    output = F.conv2d(stacked, kernels.flatten(0, 2), biases.flatten(), padding=size // 2, groups=pairs)
    return output.view(*kernels.shape[:3], *features.shape[-2:])  # (B, T, C', H, W)


def fuse(model: Model, mode: Mode | None = None) -> Model:
    """Copy a model with every module that can be re-parameterised in its inference form.

    >>> import mlore_edu as me
    >>> model = me.build_model("mlore_vit_nano", me.DOLLHOUSE, img_size=(64, 64)).eval()
    >>> fused = me.fuse(model)

    Parameters
    ----------
    model
        In evaluation mode; it is not changed, and shares no memory with the copy.
    mode
        ``"precomposed"`` stores the kernel of every expert and mixes them for each image and task; ``"on_the_fly"``
        stores the low-rank factors and mixes these. None: see :func:`choose_mode`.

    Returns
    -------
    nn.Module
        With the same outputs, up to rounding.

    Raises
    ------
    UserError
        For an unknown mode, for a model in training mode, and where there is nothing to fuse.

    Notes
    -----
    Source: MLoRE, Sec. 3.3. Chapter 8, and its figure on what each mode costs.
    """
    check_fusable(model, mode)
    mode = mode or choose_mode(model)
    fused = {id(module): cast(Fusable, module).fuse(mode) for module in _fusable(model)}
    if not fused:
        raise UserError(NOTHING_TO_FUSE)
    return copy.deepcopy(model, dict(fused))  # puts what the memo holds for a module in that module's place


def check_fusable(model: nn.Module, mode: Mode | None) -> None:
    """Refuse an unknown mode, and a model in training mode.

    Raises
    ------
    UserError
        In these two cases.
    """
    if mode is not None and mode not in get_args(Mode):
        raise UserError(f"There is no mode {mode!r}; choose one of {', '.join(get_args(Mode))}.")
    if any(module.training for module in model.modules()):
        raise UserError("The model is in training mode, where BatchNorm is no fixed scale; call model.eval() first.")


def choose_mode(model: nn.Module) -> Mode:
    """Choose how a model is fused where nobody says.

    ``"precomposed"`` needs by far the fewest operations, and is taken as long as what it stores on top of the model's
    parameters is no more than these: where it at most doubles the model. Else ``"on_the_fly"``.

    Raises
    ------
    UserError
        Where there is nothing to fuse.
    """
    fusable, added = _fusable(model), 0
    if not fusable:
        raise UserError(NOTHING_TO_FUSE)
    for module in fusable:
        on_meta = copy.deepcopy(module).to("meta")  # tensors have no content there, so trying costs nothing
        added += _numbers(cast(Fusable, on_meta).fuse("precomposed")) - _numbers(module)
    return "precomposed" if added <= _numbers(model) else "on_the_fly"


def _fusable(model: nn.Module) -> list[nn.Module]:
    """The modules with a method ``fuse``; a submodule of that name is something else."""
    return [module for module in model.modules() if callable(getattr(type(module), "fuse", None))]


def _numbers(model: nn.Module) -> int:
    """How many numbers a model stores."""
    return sum(parameter.numel() for parameter in model.parameters())
