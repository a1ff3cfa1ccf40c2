"""Find the widths with which TaskExpert has its published size, and write taskexpert_widths.json (chapter 11).

    OMP_NUM_THREADS=1 python book/results/make_taskexpert_widths.py

The paper names no width. Its tables give parameters and FLOPs of five models, in which three widths are unknown for
each backbone: D of the tasks' features, e inside an expert, h inside a gate. Here parameters and multiply-accumulates
are written down in closed form, for every combination of widths on a grid at once. Some ten seconds of one core.
"""

import json
import re
from itertools import combinations, product
from typing import NamedTuple

import numpy as np
from record import HERE

from mlore_edu import published
from mlore_edu.decoders.taskexpert import SIZES
from mlore_edu.tasks import PASCAL_CONTEXT

SIDE = 512  # pixels
TOKENS = (SIDE // 16) ** 2
TASKS = EXPERTS = len(PASCAL_CONTEXT)  # T and K
CHANNELS = sum(task.channels for task in PASCAL_CONTEXT)  # of all predictions
VIT = {
    "small": (384, 12),
    "base": (768, 12),
    "large": (1024, 24),
}  # width E, layers
UNITS = {"1e9": 1e9, "2**30": 2.0**30}
LIMIT = 0.03
FINE = (32, 1536, 8)  # D where not the grid shall decide
# low, high, step: multiples that GPUs like
GRID = {"D": (32, 1024, 32), "e": (32, 3072, 32), "h": (16, 768, 16)}


# --- what a model costs ----------------------------------------------------------------------------------------------


class Cost(NamedTuple):
    """Weights, other parameters (biases, norms, embeddings, momenta), and multiply-accumulates of one image."""

    weights: int
    others: int
    macs: int

    def plus(self, other: "Cost", times: int = 1) -> "Cost":
        return Cost(*(a + times * b for a, b in zip(self, other)))

    @property
    def parameters(self) -> int:
        return self.weights + self.others


def vit(width: int, layers: int, attention: bool = True) -> Cost:
    """A ViT: 4 E² of attention and 8 E² of the MLP a layer; ``attention``: whether query·key and attention·value count."""
    patches, layer = 3 * 16**2 * width, 12 * width**2
    products = 2 * TOKENS**2 * width if attention else 0
    norms_and_biases = (2 * 2 + 3 + 1 + 4 + 1) * width
    embedding = width + TOKENS * width  # bias and positions
    return Cost(
        patches + layers * layer,
        embedding + layers * norms_and_biases + 2 * width,  # and the last norm
        TOKENS * patches + layers * (TOKENS * layer + products),
    )


def module(width: int, outputs: int, D: int, e: int, h: int) -> Cost:
    """One MMoE module: K experts E → e → D, T gates of three 3×3 convolutions E → h → h → outputs, and the assembly."""
    experts = EXPERTS * (width * e + e * D)
    gates = TASKS * 9 * (width * h + h * h + h * outputs)
    others = EXPERTS * (e + 2 * e + D) + TASKS * (h + h + outputs)
    assembly = TASKS * EXPERTS * D  # no weights: gates times the experts' answers
    return Cost(experts + gates, others, TOKENS * (experts + gates + assembly))


def heads(D: int, stride: int = 4) -> Cost:
    """Five times conv 3×3 – BatchNorm – ReLU – linear, at 1/stride of the image's resolution."""
    weights = TASKS * 9 * D * D + CHANNELS * D
    return Cost(weights, TASKS * 3 * D + CHANNELS, (SIDE // stride) ** 2 * weights)


def model(
    backbone: str,
    modules: int,
    D: int,
    e: int,
    h: int,
    stride: int = 4,
    attention: bool = True,
) -> Cost:
    """The whole model; the first module has no memory to read, the others one gate more and a momentum for each task."""
    width, layers = VIT[backbone]
    cost = vit(width, layers, attention).plus(heads(D, stride))
    cost = cost.plus(module(width, EXPERTS, D, e, h))
    cost = cost.plus(module(width, EXPERTS + 1, D, e, h), modules - 1)
    return cost.plus(Cost(0, TASKS, 0), modules - 1)


# --- held against the paper ------------------------------------------------------------------------------------------


def published_rows() -> dict[str, list[tuple[int, float, float]]]:
    """Modules, millions of parameters and 'FLOPs' in G, by backbone."""
    table = published.table("taskexpert", 2)
    rows = {"small": [table.row(variant="ViT-S")], "base": list(table.rows[:3])}
    rows["large"] = [
        published.table("taskexpert", 4).row(method="TaskExpert") | {"modules": 12}
    ]
    names = ("modules", "parameters", "flops")
    return {
        key: [tuple(row[n] for n in names) for row in its]
        for key, its in rows.items()
    }


ROWS = published_rows()


def error(
    backbone: str,
    D,
    e,
    h,
    stride: int = 4,
    unit: float = 1e9,
    attention: bool = True,
):
    """Largest relative error in all of a backbone's published numbers."""
    worst = 0.0
    for modules, millions, giga in ROWS[backbone]:
        cost = model(backbone, modules, D, e, h, stride, attention)
        for ours, theirs in (
            (cost.parameters / 1e6, millions),
            (cost.macs / unit, giga),
        ):
            worst = np.maximum(worst, abs(ours / theirs - 1))
    return worst


def axes(**other: tuple[int, int, int]) -> tuple[np.ndarray, ...]:
    """The grid's widths as arrays (D, 1, 1), (1, e, 1), (1, 1, h); ``other`` replaces a width's (low, high, step)."""
    D, e, h = (
        np.arange(low, high + 1, step)
        for low, high, step in (GRID | other).values()
    )
    return D[:, None, None], e[None, :, None], h[None, None, :]


def members(backbone: str) -> list[list[float]]:
    """All widths on the grid within the limit: D, e, h and the error in percent."""
    D, e, h = axes()
    errors = error(backbone, D, e, h)
    i, j, k = np.nonzero(errors <= LIMIT)
    percent = np.round(100 * errors[i, j, k], 2)
    widths = (D[i, 0, 0], e[0, j, 0], h[0, 0, k])
    return [list(row) for row in zip(*(its.tolist() for its in (*widths, percent)))]


def widths_of(backbone: str) -> dict:
    """The whole set, its best member, and what of it is free and what is not."""
    found = members(backbone)
    D, e, h = np.array(found)[:, :3].astype(int).T
    fine, *others = axes(D=FINE)
    fitting = fine[(error(backbone, fine, *others) <= LIMIT).any(axis=(1, 2))]
    size = module(VIT[backbone][0], EXPERTS + 1, D, e, h).parameters / 1e6
    limits = {"D": D, "D in steps of 8": fitting, "e": e, "h": h}
    return {
        "found": len(found),
        "best": min(found, key=lambda member: member[3]),
        "range": {n: [int(v.min()), int(v.max())] for n, v in limits.items()},
        "millions_per_module": [round(float(f(size)), 2) for f in (np.min, np.max)],
        "library": of_library(backbone),
        "members": found,
    }


def of_library(backbone: str) -> dict:
    """What the library takes where no width is given, and what it costs."""
    preset = SIZES[backbone][2]
    D, e, h = (preset[n] for n in ("channels", "expert_width", "gate_width"))
    costs = [model(backbone, modules, D, e, h) for modules, _, _ in ROWS[backbone]]
    return {
        "widths": [D, e, h],
        "error": round(100 * float(error(backbone, D, e, h)), 2),
        "rows": [
            {
                "modules": modules,
                "parameters": [millions, round(cost.parameters / 1e6, 1)],
                "flops": [giga, round(cost.macs / 1e9, 1)],
            }
            for (modules, millions, giga), cost in zip(ROWS[backbone], costs)
        ],
        "biases_and_norms": round(100 * costs[-1].others / costs[-1].parameters, 2),
    }


# --- how firmly the paper is read ------------------------------------------------------------------------------------


def readings() -> list[dict]:
    """Best error (%) under other readings of the paper: where heads work, what a G is, whether attention counts.

    Each with the D that it takes; also with D = E on ViT-B, as Eq. 1 has it.
    """
    found = []
    D, e, h = axes(D=FINE)
    for stride, unit, attention in product((2, 4, 8, 16), UNITS, (True, False)):
        how = {"stride": stride, "unit": UNITS[unit], "attention": attention}
        errors = {
            key: 100 * error(key, D, e, h, **how).min(axis=(1, 2)) for key in VIT
        }
        best = {key: round(float(its.min()), 2) for key, its in errors.items()}
        alike = errors["base"][D[:, 0, 0] == VIT["base"][0]]
        found.append(
            {"head_stride": stride, "unit": unit, "attention": attention}
            | {"worst": max(best.values()), "best": best}
            | {"D": {key: int(D.flat[its.argmin()]) for key, its in errors.items()}}
            | {"base_with_D_768": round(float(alike.min()), 2)}
        )
    return found


def rules() -> list[dict]:
    """Best error (%) of one rule for all backbones: e and h fixed fractions of E or of D, with any D each likes.

    Also of two backbones at a time, which shows who is at odds with whom.
    """
    found = []
    D = axes(D=FINE)[0].astype(float)
    e_share, h_share = (np.arange(1, 129) / 32)[:, None], np.arange(1, 129) / 256
    for e_of, h_of in product("ED", repeat=2):
        errors = {}
        for key, (E, _) in VIT.items():
            of = {"E": E, "D": D}
            every = error(key, D, e_share * of[e_of], h_share * of[h_of])
            errors[key] = 100 * every.min(axis=0)  # (e, h)
        worst = np.maximum.reduce(list(errors.values()))
        i, j = np.unravel_index(worst.argmin(), worst.shape)
        rule = {"e": f"{i + 1}/32 {e_of}", "h": f"{j + 1}/256 {h_of}"}
        pairs = {
            f"{one} and {other}": round(
                float(np.maximum(errors[one], errors[other]).min()), 2
            )
            for one, other in combinations(VIT, 2)
        }
        found.append(rule | {"worst": round(float(worst.min()), 2), "pairs": pairs})
    return found


def content() -> dict:
    """All that the file holds."""
    return {
        "command": "OMP_NUM_THREADS=1 python book/results/make_taskexpert_widths.py",
        "grid": GRID,
        "limit": 100 * LIMIT,
        "published": ROWS,
        "backbones": {backbone: widths_of(backbone) for backbone in VIT},
        "readings": readings(),
        "rules": rules(),
    }


def main() -> None:
    text = json.dumps(content(), indent=1)
    text = re.sub(
        r"([\[{])\s+([^\[\]{}]*?)\s+([\]}])",  # innermost lists and dictionaries: one line each
        lambda found: found[1] + re.sub(r"\s+", " ", found[2]) + found[3],
        text,
    )
    (HERE / "taskexpert_widths.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
