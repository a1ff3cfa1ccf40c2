"""Self-checks of chapter 9: the size of a module, the width behind a printed size, verdicts over seeds, slips."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from mlore_edu import published
from mlore_edu.decoders.mlore import MLoREModule
from mlore_edu.decoders.mlore_options import MLoREOptions
from mlore_edu.exercises import answered, exercise
from mlore_edu.metrics import implied_baselines, multitask_gain
from mlore_edu.tasks import PASCAL_CONTEXT


def _paths(tasks: int, channels: int, ranks: tuple[int, ...], task_rank: int) -> int:
    """Parameters of a module's paths, its routers left out."""
    options = MLoREOptions(ranks=ranks, task_rank=task_rank)
    module: nn.Module = MLoREModule(tasks, channels, 4, options, nonlinear=False)
    counted = {name: part for name, part in module.named_parameters() if not name.startswith("router")}
    return sum(part.numel() for part in counted.values())


@exercise("9.1", hint="Projections and BatchNorms are per task, the generic path and the experts are there once.")
def check_module_size(answer: Any) -> None:
    """``answer(tasks, channels, ranks, task_rank)``: parameters of a module without its routers."""
    for tasks, channels, ranks, task_rank in ((6, 8, (2, 3), 4), (1, 4, (1,), 1), (5, 12, (2, 4, 6), 3)):
        truth = _paths(tasks, channels, ranks, task_rank)
        value = answered(answer(tasks, channels, ranks, task_rank))
        where = f"With T = {tasks}, C = {channels}, ranks {ranks} and R = {task_rank}"
        assert value == truth, f"{where} a module has {truth} parameters, not {value}."


@exercise("9.2", hint="Try every multiple of four up to 2048, and keep those with low <= size(width) < high.")
def check_widths(answer: Any) -> None:
    """``answer(size, low, high)``: multiples of four up to 2048 whose size lies in [low, high)."""
    sizes: dict[str, Callable[[int], float]] = {
        "width": lambda width: width,
        "width² / 100": lambda width: width * width / 100,
        "300 + width / 8": lambda width: 300 + width / 8,
    }
    for text, size in sizes.items():
        for low, high in ((16, 24), (400, 401), (0, 9), (5000, 6000)):
            truth = [width for width in range(4, 2049, 4) if low <= size(width) < high]
            value = list(answered(answer(size, low, high)))
            where = f"With size = {text}, from {low} to below {high}"
            assert value == truth, f"{where} the widths are {truth[:4]}…, not {value[:4]}…."


@exercise("9.3", hint="Half the interval is t·s·sqrt(1/n + 1/m); where it reaches beyond 0, the runs say nothing.")
def check_verdict(answer: Any) -> None:
    """``answer(ours, reference, paper, spread, t)``: "supports", "contradicts" or "noise"."""
    cases = [
        (([2.0, 3.0, 4.0], [0.0, 1.0, 2.0], 0.5, 1.0, 2.0), "supports"),  # 2 ± 1.6
        (([2.0, 3.0, 4.0], [0.0, 1.0, 2.0], -0.5, 1.0, 2.0), "contradicts"),
        (([2.0, 3.0, 4.0], [0.0, 1.0, 2.0], 0.5, 1.0, 3.0), "noise"),  # 2 ± 2.4
        (([0.0, 1.0, 2.0], [2.0, 3.0, 4.0], -0.1, 1.0, 2.0), "supports"),
        (([0.0, 0.0, 0.0, 0.0], [1.0], 1.0, 0.4, 2.0), "contradicts"),  # -1 ± 0.9: four runs and one
        (([0.0], [1.0], 1.0, 0.4, 2.0), "noise"),  # -1 ± 1.1
    ]
    for arguments, truth in cases:
        value = answered(answer(*arguments))
        assert value == truth, f"For {arguments} the verdict is {truth!r}, not {value!r}."


@exercise("9.4", hint="Recompute the gain of every row with me.multitask_gain, and compare with the printed one.")
def check_slips(answer: Any) -> None:
    """``answer(rows, gains, baselines, tasks)``: numbers of the rows whose printed gain is off by over 0.006."""
    rows = [row for number in (3, 4) for row in published.table("mlore_supplement", number).rows]
    rows += list(published.table("mlore", 2).rows)
    printed = [float(row["delta_m"] or 0) for row in rows]
    found = implied_baselines(rows, printed, PASCAL_CONTEXT)
    metrics = [{name: float(row[name] or 0) for name in PASCAL_CONTEXT.names} for row in rows]
    right = [multitask_gain(row, found.values, PASCAL_CONTEXT) for row in metrics]
    rounded = [round(gain, 2) for gain in right]
    for gains in (printed, rounded, [gain + 0.1 * (row == 1) for row, gain in enumerate(rounded)]):
        truth = [row for row, gain in enumerate(gains) if abs(gain - right[row]) > 0.006]
        value = sorted(answered(answer(metrics, gains, found.values, PASCAL_CONTEXT)))
        assert value == truth, f"The rows {truth} have another gain than printed, not {value}."
