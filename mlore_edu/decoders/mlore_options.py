"""What can be varied in MLoRE: options, ranks, and the presets of the papers' models (chapters 5 and 9)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from mlore_edu.checks import check_choice, check_switches, check_whole
from mlore_edu.decoders.low_rank import Form
from mlore_edu.decoders.moe import SMALLEST_NOISE
from mlore_edu.decoders.routers import RouterKind
from mlore_edu.errors import UserError
from mlore_edu.tasks import NYUD_V2, TaskSet

SHAZEER_NOISE = math.log(2)
"""Noise of the gates before training: softplus of the zeros that Shazeer et al. start from."""


@dataclass(frozen=True)
class MLoREOptions:
    """What can be varied in a module; see :class:`~mlore_edu.decoders.mlore.MLoREDecoder` for each one's meaning."""

    released: bool = False
    ranks: tuple[int, ...] = ()
    k: int = 1
    task_rank: int = 64
    generic: bool = True
    generic_rank: int | None = None
    stop_gradient: bool = True
    task_experts: bool = True
    experts_kind: Literal["low_rank", "conv"] = "low_rank"
    router: RouterKind = "both"
    softmax_first: bool = True
    noise: bool = True
    noise_start: float = SHAZEER_NOISE
    form: Form = "auto"

    def __post_init__(self) -> None:
        check_choice("experts_kind", self.experts_kind, ("low_rank", "conv"))
        check_choice("router", self.router, get_args(RouterKind))
        check_choice("form", self.form, get_args(Form))
        check_switches(generic=self.generic, task_experts=self.task_experts, stop_gradient=self.stop_gradient)
        check_switches(softmax_first=self.softmax_first, noise=self.noise)
        check_whole(1, task_rank=self.task_rank, generic_rank=1 if self.generic_rank is None else self.generic_rank)
        if type(self.noise_start) not in (int, float) or not SMALLEST_NOISE < self.noise_start < math.inf:
            # The least noise is a floor that no gradient passes: noise that starts there stays there.
            raise UserError(f"noise_start is {self.noise_start!r}; give a standard deviation above {SMALLEST_NOISE}.")


def rank_schedule(experts: int, lowest: int, highest: int) -> tuple[int, ...]:
    """Ranks of N experts, evenly spaced from the lowest to the highest and rounded; 15 from 16 to 128 step by 8."""
    check_whole(0, experts=experts)
    check_whole(1, min_rank=lowest, max_rank=highest)
    if highest < lowest:
        raise UserError(f"max_rank is {highest}, below min_rank {lowest}; give 1 <= min_rank <= max_rank.")
    step = (highest - lowest) / max(experts - 1, 1)
    return tuple(round(lowest + step * expert) for expert in range(experts))


def active_experts(experts: int, k: int | None) -> int:
    """K as given, or 60 % of N, at least 1 (Fig. 3)."""
    if k is None:
        return max(1, round(0.6 * experts))
    if type(k) is not int or not 1 <= k <= max(experts, 1):
        raise UserError(f"k is {k!r}; give a number of active experts from 1 to {max(experts, 1)}.")
    return k


SIZES: dict[str, dict[str, Any]] = {
    "small": {"channels": 192, "min_rank": 8, "max_rank": 64},  # with R = 64 its parameters are Table 7's 44 M
    "base": {"channels": 384},
    "large": {"channels": 384},
    "nano": {
        "min_rank": 2,
        "max_rank": 16,
        "task_rank": 8,
        "plain_maps": 1,
        "balance_weight": 1e-2,
        "noise_start": 0.05,
    },
}
"""By size of the ViT: what the paper's settings say (Secs. 4.1 and 4.4), and for the chapters' small model an eighth of
the ranks and, since it is trained for minutes, gates whose noise starts low and a stronger balance (chapter 9)."""
SIZES["nano_12"] = SIZES["nano"]

SMALL: dict[str, Any] = {"min_rank": 2, "max_rank": 16, "task_rank": 8}
"""For the narrow decoders of pyramids, of which the papers say nothing (HRNet18: supplement, Table 7); assumed."""

RELEASED: dict[tuple[str, str], dict[str, Any]] = {
    ("small", "PASCAL"): {"channels": 192, "min_rank": 8, "max_rank": 64, "task_rank": 32, "balance_weight": 1e-4},
    ("base", "PASCAL"): {"channels": 640, "task_rank": 64, "balance_weight": 1e-4},
    ("large", "PASCAL"): {"channels": 452, "task_rank": 72, "balance_weight": 3e-4},
    ("large", "NYUD"): {
        "channels": 768,
        "max_rank": 240,
        "task_rank": 16,
        "balance_weight": 5e-4,
        "softmax_first": False,
    },
}
"""By size of the ViT and data set: what the published checkpoints were made with."""


def preset(backbone: str, tasks: TaskSet, options: Mapping[str, Any]) -> dict[str, Any]:
    """Options that go with a backbone and a data set, where the caller gives none of their own."""
    family, _, size = backbone.partition("_")
    if family == "swin":
        return dict(SMALL)
    if options.get("variant") == "released":
        key = (size, "NYUD" if tasks.name == NYUD_V2.name else "PASCAL")
        return dict(RELEASED.get(key, RELEASED.get((size, "PASCAL"), SIZES.get(size, SMALL))))
    return dict(SIZES.get(size, SMALL))


def check_paths(options: MLoREOptions) -> None:
    """Refuse modules without a path, ones below which nothing would learn, and the rank of a path that is not there."""
    if options.generic_rank is not None and not options.generic:
        raise UserError(f"generic_rank is {options.generic_rank}, but generic is False; leave one of them out.")
    if options.ranks or options.task_experts:
        return
    if not options.generic:
        raise UserError("An MLoRE module needs a path; leave in experts, generic or task_experts.")
    if options.stop_gradient:
        raise UserError(
            "Nothing below a generic path alone would learn, since its gradient is stopped; "
            "leave in experts or task_experts, or give stop_gradient=False."
        )
