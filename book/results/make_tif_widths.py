"""Find widths and structures with which TIF has its published size; write tif_widths.json (chapter 14).

    OMP_NUM_THREADS=1 python book/results/make_tif_widths.py

The paper names no width, and leaves open what many of its boxes hold. Its tables give parameters and FLOPs of models
on NYUD-v2. Here the decoder's are written down in closed form, for two widths (of scales 0 and 1, and of 2 and 3) and
for 1,536 structures, that is readings of the boxes; the encoders' are counted. About 40 seconds of one core.
"""

import json
import re
from functools import cache, reduce
from itertools import product
from typing import NamedTuple

import numpy as np
import torch
from record import HERE

from mlore_edu import complexity, published
from mlore_edu.decoders.tif import WIDTHS
from mlore_edu.model import build_model
from mlore_edu.tasks import NYUD_V2

TASKS = len(NYUD_V2)  # T, and N of Eq. 6
OUTPUTS = sum(task.channels for task in NYUD_V2)
SIZE = (448, 576)  # 425 × 560 brought to multiples of 32
SIZES = {"425 × 560": (425, 560), "448 × 576": SIZE, "480 × 640": (480, 640)}
UNITS = {"1e9": 1e9, "2**30": 2.0**30}
LIMIT = 0.03
GRID = {"high": (8, 256, 4), "low": (8, 400, 4)}  # first, last, step
PYRAMIDS = ("hrnet18", "swin_tiny", "swin_large")  # with both numbers published


class Structure(NamedTuple):
    """What the paper leaves open besides widths; defaults are the library's."""

    first: int = 3  # kernels of SAFF's two convolutions
    second: int = 3
    to_tasks: int = 3  # kernel of a task's own convolution
    ffn_ratio: int = 2
    projection: bool = False  # a linear map after SFD's attention
    ffn_at_full_size: bool = False  # LTHD's: of its result enlarged, or before
    join: int = 3  # kernel of LTHD's FeatureFuse
    concatenated: bool = True  # or added, there
    fuse: int = 3  # kernel of the last FeatureFuse
    head: bool = True  # a 3×3 convolution before the prediction


LIBRARY = Structure()
CHOICES = {
    **dict.fromkeys(Structure._fields, (3, 1)),
    **dict.fromkeys(("projection", "ffn_at_full_size"), (False, True)),
    **dict.fromkeys(("concatenated", "head"), (True, False)),
    "ffn_ratio": (1, 2, 4),
}
STRUCTURES = [Structure(*chosen) for chosen in product(*CHOICES.values())]


# --- what a model costs ---------------------------------------------------------------


class Cost(NamedTuple):
    """Parameters and multiply-accumulates of one image; numbers or arrays."""

    parameters: int | np.ndarray
    macs: int | np.ndarray


def total(*costs: Cost) -> Cost:
    return reduce(lambda a, b: Cost(a[0] + b[0], a[1] + b[1]), costs)


def conv(of, to, tokens, kernel=1, groups=1, bias=True) -> Cost:
    """``groups`` convolutions from ``of`` to ``to`` channels."""
    weights = groups * kernel**2 * of * to
    return Cost(weights + groups * to * bias, weights * tokens)


def norm(channels, groups=1) -> Cost:
    return Cost(2 * groups * channels, 0)


def saff(own, others, d, n, its: Structure) -> Cost:
    """SAFF of a scale that has ``own`` channels while the three others have ``others``."""
    reduced = total(conv(own, d, n, bias=False), norm(d))
    fused = total(conv(2 * d, d, n, its.first), conv(d, d, n, its.second))
    depthwise = conv(1, 1, n, kernel=3, groups=d)
    return total(reduced, conv(others, d, n), fused, depthwise, conv(d, d, n))


def per_task(of, to, tokens, kernel=1) -> Cost:
    """Every task's convolution and BatchNorm."""
    return total(conv(of, to, tokens, kernel, TASKS, bias=False), norm(to, TASKS))


def ffn(d, tokens, ratio: int) -> Cost:
    there = conv(d, ratio * d, tokens, groups=TASKS)
    return total(norm(d, TASKS), there, conv(ratio * d, d, tokens, groups=TASKS))


def sfd(d, tokens, its: Structure, maps: int) -> Cost:
    """SFD with ``maps`` linear maps for the keys: T, or 1 for each task across tasks."""
    query_and_keys = conv(d, (1 + maps) * d, tokens, groups=TASKS, bias=False)
    attention = Cost(0, TASKS * tokens**2 * 2 * d)
    after = conv(d, d, tokens, groups=TASKS) if its.projection else Cost(0, 0)
    feed_forward = ffn(d, tokens, its.ffn_ratio)
    return total(norm(d, TASKS), query_and_keys, attention, after, feed_forward)


def lthd(high, low, tokens, tokens_below, its: Structure) -> Cost:
    """LTHD of a scale; its affinities have the queries and keys of both low scales."""
    return total(
        conv(high, high, tokens_below, groups=TASKS, bias=False),
        Cost(0, TASKS * tokens_below**2 * (2 * low + high)),
        ffn(high, tokens if its.ffn_at_full_size else tokens_below, its.ffn_ratio),
        per_task((1 + its.concatenated) * high, high, tokens, its.join),
    )


def heads(d, tokens, its: Structure) -> Cost:
    mix = total(conv(d, d, tokens, 3, TASKS), norm(d, TASKS))
    return total(mix if its.head else Cost(0, 0), conv(d, OUTPUTS, tokens))


@cache
def encoder(backbone: str, size: tuple[int, int]) -> tuple[tuple, Cost]:
    """Channels of the four maps; cost of the encoder, a ViT's pyramid with it.

    An encoder takes multiples of 32 pixels; for others its operations go with the area.
    """
    taken = SIZE if any(side % 32 for side in size) else size
    with torch.device("meta"):
        net = build_model(f"tif_{backbone}", NYUD_V2, taken)
    parts = complexity.count(net, taken).by_module
    own, pyramid = parts["backbone"], parts["decoder.pyramid"]
    share = size[0] * size[1] / (taken[0] * taken[1])
    macs = round((own.macs + pyramid.macs) * share)
    return net.backbone.channels, Cost(own.parameters + pyramid.parameters, macs)


def costs(backbone: str, high, low, its=LIBRARY, size=SIZE) -> dict[str, Cost]:
    """A model's cost, by row: "full", or "self" and "cross" without LTHD; D is ``high``."""
    channels, shared = encoder(backbone, size)
    tokens = [
        -(-size[0] // s) * -(-size[1] // s) for s in (4, 8, 16, 32)
    ]  # rounded up
    for own, d, n in zip(channels, (high, high, low, low), tokens):
        enriched = saff(own, sum(channels) - own, d, n, its)
        shared = total(shared, enriched, per_task(d, d, n, its.to_tasks))
    fused = per_task(2 * (high + low), high, tokens[0], its.fuse)
    shared = total(shared, fused, heads(high, tokens[0], its))
    alone = total(shared, *(sfd(low, n, its, TASKS) for n in tokens[2:]))
    across = total(shared, *(sfd(low, n, its, 1) for n in tokens[2:]))
    diffused = (lthd(high, low, n, tokens[2], its) for n in tokens[:2])
    return {"full": total(alone, *diffused), "self": alone, "cross": across}


# --- held against the paper, with the library's structure -----------------------------


def pair(table: int, **of) -> tuple[float, float | None]:
    """Millions of parameters and "FLOPs" in G."""
    row = published.table("tif", table).row(**of)
    return row["parameters"], row.get("flops")


ROWS = {  # by backbone and row of ``costs``
    "hrnet18": {"full": pair(3, method="TIF", backbone="HRNet18")},
    "swin_tiny": {
        "full": pair(3, method="TIF", backbone="Swin-T"),
        "self": pair(8, distillation="Self-distill"),
        "cross": pair(8, distillation="Cross-distill"),
    },
    "swin_large": {"full": pair(4, method="TIF")},
    "vit_base": {"full": pair(10, method="TIF", backbone="ViT-B")},
}


def error(backbone: str, cost: dict[str, Cost], rows=None, unit: float = 1e9):
    """Largest relative error in the published numbers of rows, all of them if none is named."""
    worst = 0.0
    for row in rows or ROWS[backbone]:
        for ours, theirs, per in zip(cost[row], ROWS[backbone][row], (1e6, unit)):
            if theirs is not None:
                worst = np.maximum(worst, abs(ours / per / theirs - 1))
    return worst


def axes() -> tuple[np.ndarray, np.ndarray]:
    """The grid's widths as arrays (high, 1) and (1, low)."""
    high, low = (np.arange(a, b + 1, step) for a, b, step in GRID.values())
    return high[:, None], low[None]


def percent(share) -> float:
    return round(100 * float(share), 2)


def pairs(backbone: str) -> dict:
    """All pairs of widths within the limit: high, and the first and last low width."""
    high, low = axes()
    cost = costs(backbone, high, low)
    errors = error(backbone, cost)
    fits = errors <= LIMIT
    i, j = np.unravel_index(errors.argmin(), errors.shape)
    bands = [(int(d), low[0, its]) for d, its in zip(high[:, 0], fits) if its.any()]
    return {
        "found": int(fits.sum()),
        "found_for_full_row": int((error(backbone, cost, ["full"]) <= LIMIT).sum()),
        "best": [int(high[i, 0]), int(low[0, j]), percent(errors[i, j])],
        "bands": [[d, int(its[0]), int(its[-1])] for d, its in bands],
    }


def of_library(backbone: str) -> dict:
    """What the library takes where no width is given; published and ours, in M and G."""
    widths = WIDTHS[backbone]
    cost = costs(backbone, widths["high_width"], widths["low_width"])
    rows = {
        row: {
            "published": theirs,
            "ours": [round(n / per, 2) for n, per in zip(cost[row], (1e6, 1e9))],
            "error": percent(error(backbone, cost, [row])),
        }
        for row, theirs in ROWS[backbone].items()
    }
    return {**widths, "error": percent(error(backbone, cost)), "rows": rows}


def table8() -> dict:
    """Swin-T's low widths that fit Table 8: at two scales, each task has T maps or one."""
    difference = ROWS["swin_tiny"]["self"][0] - ROWS["swin_tiny"]["cross"][0]
    low = axes()[1][0]
    ours = 2 * TASKS * (TASKS - 1) * low**2 / 1e6
    fitting = low[abs(ours - difference) < 0.01]  # both are rounded
    return {"difference": round(difference, 2), "widths": fitting.tolist()}


# --- all structures ------------------------------------------------------------------

# Swin-T's rows to meet: one, or all; these also with the low width that Table 8 leaves.
QUESTIONS = ("full", "ablation", "ablation_at_96")
WIDTH_NAMES = [f"{name} {scales}" for name, scales in product(PYRAMIDS, GRID)]


class Fit(NamedTuple):
    """A structure at its best: the largest error, and high and low by backbone."""

    worst: float
    structure: Structure
    widths: list[int]

    def record(self) -> list[float]:
        return [*map(int, self.structure), *self.widths, percent(self.worst)]


def fit(its: Structure, high, low, size) -> dict[tuple[str, str], Fit]:
    """A structure with the best of the given widths, by unit and question."""
    cost, found = {name: costs(name, high, low, its, size) for name in PYRAMIDS}, {}
    for unit, question in product(UNITS, QUESTIONS):
        worst, widths = 0.0, []
        for name in PYRAMIDS:
            rows = ["full"] if question == "full" else ROWS[name]
            errors = error(name, cost[name], rows, UNITS[unit])
            if question == "ablation_at_96" and name == "swin_tiny":
                errors = np.where(np.isin(low, table8()["widths"]), errors, np.inf)
            at = errors.argmin()
            worst = max(worst, errors.flat[at])
            widths += [int(w.flat[at]) for w in np.broadcast_arrays(high, low)]
        found[unit, question] = Fit(worst, its, widths)
    return found


def survey(high, low, size=SIZE) -> dict[tuple[str, str], list[Fit]]:
    """All structures, the best fit first, by unit and question."""
    fits = [fit(structure, high, low, size) for structure in STRUCTURES]
    return {key: sorted(its[key] for its in fits) for key in fits[0]}


def counted(fits: list[Fit]) -> dict:
    """How many fit, how many of them with high ≤ low on all backbones; some of them."""
    widths = np.array([its.widths for its in fits if its.worst <= LIMIT])
    widths = widths.reshape(-1, 3, 2)
    ordered = int((widths[..., 0] <= widths[..., 1]).all(axis=1).sum())
    (library,) = (its for its in fits if its.structure == LIBRARY)
    some = {"best": fits[0].record(), "library": library.record()}
    return {"fitting": len(widths), "ordered": ordered} | some


def content() -> dict:
    """All that the file holds."""
    one_width = np.arange(GRID["high"][0], GRID["low"][1] + 1)
    two = {name: survey(*axes(), size) for name, size in SIZES.items()}
    one = {name: survey(one_width, one_width, size) for name, size in SIZES.items()}
    readings = [
        {"size": name, "unit": unit, "question": question}
        | {"two_widths": counted(two[name][unit, question])}
        | {"one_width": counted(one[name][unit, question])}
        for name, unit, question in product(SIZES, UNITS, QUESTIONS)
    ]
    fits = two["448 × 576"]["1e9", "ablation_at_96"]
    return {
        "command": "OMP_NUM_THREADS=1 python book/results/make_tif_widths.py",
        "grid": GRID,
        "limit": 100 * LIMIT,
        "size": SIZE,
        "published": ROWS,
        "encoders": {b: encoder(b, SIZE)[1]._asdict() for b in ROWS},
        "library": {b: of_library(b) for b in ROWS},
        "pairs": {b: pairs(b) for b in ROWS},
        "table8": table8(),
        "searched": len(STRUCTURES),
        "columns": [*Structure._fields, *WIDTH_NAMES, "error"],
        "readings": readings,
        "fitting": [its.record() for its in fits if its.worst <= LIMIT],
    }


def main() -> None:
    text = json.dumps(content(), indent=1)
    innermost = r"([\[{])\s+([^\[\]{}]*?)\s+([\]}])"  # one line each
    text = re.sub(
        innermost, lambda m: m[1] + re.sub(r"\s+", " ", m[2]) + m[3], text
    )
    (HERE / "tif_widths.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
