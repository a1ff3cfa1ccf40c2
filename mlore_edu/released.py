"""Checkpoints of MLoRE's authors: their tensors, one for each task and expert, put into ours (chapter 9).

The authors' code keeps a module per task and per expert; ours runs them together and keeps their weights in one
tensor. Loading is therefore a table of names (:data:`NAMES`) and one rule: the tensors of all tasks, or of all
experts, are laid one behind the other. Two things depend on the number of tokens and are resized where it differs:
the position embedding, and the weights of the routers' position branches.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from math import isqrt
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from timm.layers.pos_embed import resample_abs_pos_embed
from torch import Tensor

from mlore_edu.backbones import read_state_dict
from mlore_edu.decoders.mlore import MLoREDecoder, MLoREModule
from mlore_edu.errors import UserError
from mlore_edu.model import MultiTaskModel, build_model
from mlore_edu.tasks import NYUD_V2, PASCAL_CONTEXT, TaskSet

TASKS = {"saliency": "sal"}
"""Tasks whose name differs in the released code; ours to theirs."""

NAMES = {
    r"backbone\.net\.": "backbone.",
    r"decoder\.narrow\.(\d)\.": r"backbone.fea_fuse.\1.",
    r"decoder\.scales\.(\d)\.0\.": r"backbone.MLoRE_1.\1.",
    r"decoder\.scales\.(\d)\.1\.": r"backbone.MLoRE_2.\1.",
    r"decoder\.fusion\.reduce\.": "backbone.task_mask.{t}.0.",
    r"decoder\.fusion\.norm\.norm\.": "backbone.task_mask.{t}.1.",
    r"decoder\.fusion\.predict\.": "backbone.task_mask.{t}.3.",
    r"heads\.(\w+)\.mix\.": r"heads.\1.mt_proj.0.",
    r"heads\.(\w+)\.norm\.": r"heads.\1.mt_proj.1.",
    r"heads\.(\w+)\.predict\.": r"heads.\1.linear_pred.",
}
"""Beginnings of our parameters' names and of theirs; ``{t}`` stands for every task, ``{n}`` for every expert."""

MODULE_NAMES = {
    "project.": "conv1.{t}.",
    "generic.": "share_conv.",
    "experts.down.": "lora_list_1.{n}.W.",
    "experts.up_": "lora_list_1.{n}.M.",
    "norm.norm.": "bn_all.{t}.",
    "task_experts.down.": "conv2.{t}.W.",
    "task_experts.up.": "conv2.{t}.M.",
    "router.branches.basic.first.": "router_1.{t}.0.conv1.",
    "router.branches.basic.norm.": "router_1.{t}.0.ln.",
    "router.branches.basic.second.": "router_1.{t}.0.conv3.",
    "router.branches.position.norm.": "router_1.{t}.0.ln_sp.",
    "router.branches.position.project.": "router_1.{t}.0.conv2.",
    "router.branches.position.": "router_1.{t}.0.convsp.",
    "router.predict.": "router_1.{t}.1.",
    "nonlinear.norm.norm.": "bn.{t}.",
    "nonlinear.linear.": "conv3.{t}.",
}
"""The same inside one MLoRE module."""

UNUSED = re.compile(r"(backbone\.q_fuse|backbone\.classify_route_[12]|aux_heads)\.")
"""What the released ViT-B class stores and never uses (the published 259 M are without it)."""

REMEDY = "give a checkpoint of MLoRE's authors, and a model of the same backbone, data set and widths"


class Part(NamedTuple):
    """One of our tensors, as the pieces it is made of in the released layout."""

    keys: list[str]
    shape: tuple[int, ...]  # of the whole, ours
    pieces: list[tuple[int, ...]]  # shapes, theirs
    dim: int = 0  # along which the pieces follow each other


def load_released_mlore(path_or_state_dict: str | Path | Mapping[str, Any], model: MultiTaskModel) -> None:
    """Load a checkpoint of MLoRE's authors into a model built with ``variant="released"``.

    Parameters
    ----------
    path_or_state_dict
        File, or its content: a state dict, or a dictionary that holds one under ``model``; keys may begin with
        ``module.``.
    model
        ``build_model("mlore_vit_…", PASCAL_CONTEXT or NYUD_V2, variant="released")``, of any image size. Where its
        grid of tokens is not the checkpoint's, the position embedding is resized like a picture, and the position
        branches of the routers answer as they would on features resized to their own grid (:func:`resize_places`).

    Raises
    ------
    UserError
        Listing what is missing, not expected, or of another shape; the model is then as it was.

    Notes
    -----
    A checkpoint does not store its grid of tokens, see :func:`stored_grid`. Chapter 9.
    """
    source = "The state dict" if isinstance(path_or_state_dict, Mapping) else str(path_or_state_dict)
    parts = _layout(model)
    state = _adapt(_read(path_or_state_dict), (model.img_size[0] // 16, model.img_size[1] // 16))
    expected = {key: shape for part in parts.values() for key, shape in zip(part.keys, part.pieces, strict=True)}
    faults = {
        "missing": [key for key in expected if key not in state],
        "not expected": [key for key in state if key not in expected and not UNUSED.match(key)],
        "of another shape": [
            f"{key} ({_shape(state[key].shape)} instead of {_shape(shape)})"
            for key, shape in expected.items()
            if key in state and state[key].shape != shape
        ],
    }
    if any(faults.values()):
        words = "; ".join(f"{fault}: {_some(keys)}" for fault, keys in faults.items() if keys)
        raise UserError(f"{source} does not fit ({words}); {REMEDY}.")
    model.load_state_dict({key: _join(part, [state[name] for name in part.keys]) for key, part in parts.items()})


def released_model(
    path_or_state_dict: str | Path | Mapping[str, Any], img_size: tuple[int, int] | None = None
) -> MultiTaskModel:
    """Build the model that a checkpoint of MLoRE's authors was made with, and load it.

    The backbone, the tasks, widths, ranks and the number of experts are read from the shapes. Two things leave no
    trace in them and follow from the data set as in the released code: k is 60 % of the experts, and the softmax comes
    before the choice of the k on PASCAL-Context, after it on NYUD-v2.

    Parameters
    ----------
    path_or_state_dict
        As for :func:`load_released_mlore`.
    img_size
        ``(H, W)`` in pixels; that of the checkpoint's training if not given.

    Returns
    -------
    MultiTaskModel
        On the CPU, in evaluation mode.

    Raises
    ------
    UserError
        If this is no such checkpoint, or not of a ViT and one of the two data sets. Chapter 9.
    """
    state = _read(path_or_state_dict)
    tasks = checkpoint_tasks(state)
    name, options, grid = _describe(state, tasks)
    model = build_model(name, tasks, img_size or (16 * grid[0], 16 * grid[1]), variant="released", **options)
    load_released_mlore(state, model)
    return model.eval()


def checkpoint_tasks(state: Mapping[str, Tensor]) -> TaskSet:
    """The data set whose tasks a checkpoint's heads predict.

    Raises
    ------
    UserError
        If they are those of no data set.
    """
    found = {match[1] for key in state if (match := re.fullmatch(r"heads\.(\w+)\.linear_pred\.weight", key))}
    for tasks in (PASCAL_CONTEXT, NYUD_V2):
        if found == {TASKS.get(name, name) for name in tasks.names}:
            return tasks
    heads = ", ".join(sorted(found)) or "no task"
    raise UserError(f"The checkpoint has heads for {heads}, which are those of no data set; {REMEDY}.")


def stored_grid(tokens: int, own: tuple[int, int] | None = None) -> tuple[int, int]:
    """Rows and columns of tokens that a checkpoint was trained with, of which it stores only the product.

    A square number is a square (PASCAL-Context: 1024 = 32 × 32). Any other is a grid of NYUD-v2's shape, 448 × 576
    pixels or 7 : 9 (1008 = 28 × 36), where it can be one, and else the model's ``own`` grid, where it has as many.

    Raises
    ------
    UserError
        If it is none of these.
    """
    side, unit = isqrt(tokens), isqrt(tokens // 63)
    if side * side == tokens:
        return side, side
    if 63 * unit * unit == tokens:
        return 7 * unit, 9 * unit
    if own is not None and own[0] * own[1] == tokens:
        return own
    raise UserError(
        f"The checkpoint's {tokens} tokens are no square and no grid of 7 : 9; build the model with the img_size that "
        "it was trained with."
    )


def resize_places(weights: Tensor, old: tuple[int, int], new: tuple[int, int]) -> Tensor:
    """Carry weights over the places of one grid to another, so that sums over places keep their meaning.

    A position branch adds up w_p x_p over all places p. On a grid of another size the answer should be the one for
    features resized to the old grid, sum_p w_p (R x)_p, where R is that bilinear resize: the new weights are w R. Each
    row of R sums to 1, so their sum is that of the old ones.

    Parameters
    ----------
    weights
        ``(T, h*w)``, one weight per task and place of the ``old`` grid.
    old, new
        Rows and columns.

    Returns
    -------
    Tensor
        ``(T, h'*w')``. Chapter 7.
    """
    weights = weights.to(torch.promote_types(weights.dtype, torch.float32))
    down, across = (_resize_matrix(new[axis], old[axis], weights) for axis in (0, 1))  # (h', h), (w', w)
    return torch.einsum("thw,yh,xw->tyx", weights.reshape(-1, *old), down, across).flatten(1)  # (T, h'*w')


def _resize_matrix(length: int, target: int, like: Tensor) -> Tensor:
    """The bilinear resize of ``length`` numbers to ``target`` as a matrix ``(length, target)``."""
    units = torch.eye(length, dtype=like.dtype, device=like.device)[:, None, None]  # (length, 1, 1, length)
    # Along the width: torch 2.15 resizes the height of a map one pixel wide wrongly.
    resized = F.interpolate(units, (1, target), mode="bilinear", antialias=True)  # (length, 1, 1, target)
    return resized[:, 0, 0]


def _read(path_or_state_dict: str | Path | Mapping[str, Any]) -> dict[str, Tensor]:
    """The state dict in a file or a dictionary, without the prefix of distributed training."""
    if not isinstance(path_or_state_dict, Mapping):
        return read_state_dict(path_or_state_dict)
    content = path_or_state_dict.get("model", path_or_state_dict)
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        raise UserError("The dictionary holds no state dict; give one of names and tensors, or the path of a file.")
    return {str(key).removeprefix("module."): value for key, value in content.items()}


def _describe(state: Mapping[str, Tensor], tasks: TaskSet) -> tuple[str, dict[str, Any], tuple[int, int]]:
    """Name, options and grid of tokens of the model that a checkpoint was made with, from its shapes."""

    def size(key: str, dim: int = 0) -> int:
        if key not in state or state[key].dim() < 2:
            raise UserError(f"The checkpoint holds no kernel {key}, so it is no released MLoRE; {REMEDY}.")
        return state[key].shape[dim]

    module, first = "backbone.MLoRE_1.0", TASKS.get(tasks.names[0], tasks.names[0])
    width, sizes = size("backbone.fea_fuse.0.weight", 1), {384: "small", 768: "base", 1024: "large"}
    if width not in sizes:
        raise UserError(f"The checkpoint's backbone is {width} wide, which is no ViT-S, B or L; {REMEDY}.")
    experts = {int(match[1]) for key in state if (match := re.match(rf"{module}\.lora_list_1\.(\d+)\.", key))} or {0}
    ranks = [size(f"{module}.lora_list_1.{expert}.W.weight") for expert in experts]
    options = {
        "channels": size("backbone.fea_fuse.0.weight"),
        "experts": len(ranks),
        "min_rank": min(ranks),
        "max_rank": max(ranks),
        "task_rank": size(f"{module}.conv2.{first}.W.weight"),
        "softmax_first": tasks is PASCAL_CONTEXT,
    }
    return f"mlore_vit_{sizes[width]}", options, stored_grid(size(f"{module}.router_1.{first}.0.convsp.weight", -1))


def _adapt(state: Mapping[str, Tensor], grid: tuple[int, int]) -> dict[str, Tensor]:
    """A state dict for another grid of tokens, and without the class token's row, which the model never used."""
    adapted = dict(state)
    for key, stored in state.items():
        if key == "backbone.pos_embed" and stored.dim() == 3:
            rows = stored[:, 1:]  # (1, h*w, width)
            old = stored_grid(rows.shape[1], grid)
            same = old == grid
            adapted[key] = rows if same else resample_abs_pos_embed(rows, list(grid), list(old), num_prefix_tokens=0)
        elif key.endswith(".convsp.weight") and stored.dim() == 2:
            old = stored_grid(stored.shape[1], grid)
            adapted[key] = stored if old == grid else resize_places(stored, old, grid)
    return adapted


def _layout(model: MultiTaskModel) -> dict[str, Part]:
    """How each tensor of a model is stored in the released layout."""
    decoder = model.decoder
    modules = [module for module in decoder.modules() if isinstance(module, MLoREModule)]
    if not isinstance(decoder, MLoREDecoder) or not modules or not modules[0].options.released:
        raise UserError(
            "Only MLoRE as its authors released it takes their checkpoints; build the model with "
            'build_model("mlore_vit_base", tasks, variant="released"), and fuse it afterwards.'
        )
    tasks = [TASKS.get(name, name) for name in decoder.task_names]
    return {key: _part(key, tensor, tasks, modules[0].options.ranks) for key, tensor in model.state_dict().items()}


def _part(key: str, ours: Tensor, tasks: Sequence[str], ranks: Sequence[int]) -> Part:
    """How one of our tensors is stored: whole, cut into tasks, or cut into experts."""
    name, shape = _translate(key), tuple(ours.shape)
    experts = [name.replace("{n}", str(expert)) for expert in range(len(ranks))]
    if name.endswith("{n}.M.weight"):  # (C, sum r) from (C, r, 1, 1) each
        return Part(experts, shape, [(shape[0], rank, 1, 1) for rank in ranks], dim=1)
    if name.endswith("{n}.M.bias"):  # (N, C) from (C,) each
        return Part(experts, shape, [shape[1:]] * len(ranks))
    if "{n}" in name:  # (sum r, ...) from (r, ...) each
        return Part(experts, shape, [(rank, *shape[1:]) for rank in ranks])
    if "{t}" not in name:
        return Part([name], shape, [shape])
    layer_norm = ".ln" in name  # (T, C) from (C,) each; all others (T*C, ...) from (C, ...) each
    piece = shape[1:] if layer_norm or not shape else (shape[0] // len(tasks), *shape[1:])
    return Part([name.replace("{t}", task) for task in tasks], shape, [piece] * len(tasks))


def _translate(key: str) -> str:
    """Our name of a tensor in theirs."""
    for ours, theirs in NAMES.items():
        key = re.sub(f"^{ours}", theirs, key)
    for ours, theirs in TASKS.items():
        key = key.replace(f"heads.{ours}.", f"heads.{theirs}.")
    if module := re.match(r"backbone\.MLoRE_\d\.\d\.", key):
        rest = key[module.end() :]
        begun = next((own for own in MODULE_NAMES if rest.startswith(own)), "")
        return module[0] + MODULE_NAMES.get(begun, "") + rest.removeprefix(begun)
    return key


def _join(part: Part, pieces: list[Tensor]) -> Tensor:
    if not part.shape:  # numbers of batches that BatchNorms have seen
        return torch.stack(pieces).amax()
    return torch.cat(pieces, dim=part.dim).reshape(part.shape)


def _some(words: Sequence[str]) -> str:
    """The first few of many words."""
    return ", ".join(words[:3]) + (f" and {len(words) - 3} more" if len(words) > 3 else "")


def _shape(sizes: Sequence[int]) -> str:
    return " × ".join(map(str, sizes)) or "one number"
