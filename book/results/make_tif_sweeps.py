"""Train the sweeps behind TIF's tables on Dollhouse; write tif_sweeps.json (chapters 12 to 14).

    python book/results/make_tif_sweeps.py table6
    python book/results/make_tif_sweeps.py all --seeds 3 --workers 2

Renders data/dollhouse_64 if it is not there, and trains in runs/tif_sweeps, one thread a run; what is there already is
not made again (sweeps.py). One run takes one to two and a half minutes of one core, all of them about two hours of it.
The single-task runs behind Δm are chapter 3's: the same data, encoder and budget.
"""

from record import HERE
from sweeps import Configuration, Sweeps, arguments, train_chosen

RECORD = HERE / "tif_sweeps.json"


def tif(tasks: str = "", **options) -> Configuration:
    """TIF with the options of vit_nano (D = 32, C = 16 and 32), but for those given; all tasks where none is named."""
    flags = f"--tasks {tasks}" if tasks else ""
    return Configuration("tif", options, runs="tif_sweeps", flags=flags)


def interaction(tasks: str, **options) -> Configuration:
    """What Table 1 compares: attention alone, without the other two modules."""
    return tif(tasks, fused_scales=0, diffusion="none", **options)


FULL = tif()
ALONE = tif(diffusion="none")  # SAFF and SFD
PAIRS = {
    "semseg, depth": "semseg depth",
    "depth, normals": "normals depth",
    "semseg, depth, normals, edge": "semseg normals depth edge",
}

SWEEPS: Sweeps = {
    # Rows bear the names of the paper's rows.
    "table6": {
        "none": tif(fused_scales=0, distilled_scales=0, diffusion="none"),
        "SAFF": tif(distilled_scales=0, diffusion="none"),
        "SAFF, SFD": ALONE,
        "SAFF, SFD, LTHD": FULL,
    },
    "table8": {
        "Cross-distill": tif(diffusion="none", distillation="cross"),
        "Self-distill": ALONE,
    },
    # No table of the paper: attention at all four scales instead of diffusion, which it avoids for its cost.
    "high": {
        "none": ALONE,
        "LTHD": FULL,
        "SFD": tif(distilled_scales=4, diffusion="none"),
    },
    "table9": {
        "W/O SAFF": tif(fused_scales=0),
        "W/2 SAFF": tif(fused_scales=2),
        "W/4 SAFF": FULL,
    },
    "table7": {"W/1 SFD": tif(distilled_scales=1), "W/2 SFD": FULL},
    # Two tasks, the same two with another, and four: with all tasks' keys, and with each task's own.
    "table1": {
        f"{row} {names}": interaction(
            tasks, **({"distillation": "cross"} if row == "w/" else {})
        )
        for names, tasks in PAIRS.items()
        for row in ("w/", "w/o")
    },
    # No table of the paper: the N linear maps of Eq. 6 against the one that they are.
    "eq6": {"N maps": FULL, "one map": tif(key_maps=1)},
    # No table of the paper: Eqs. 7, 8 and 12 as they are printed.
    "printed": {
        "ours": FULL,
        "Eq. 7": tif(query="first"),
        "Eq. 8": tif(scaled=False),
        "Eq. 12": tif(diffusion="scatter"),
    },
    # No table of the paper: its counts pin the sum of a model's widths, not how the scales share it.
    "widths": {
        "high 8, low 37": tif(high_width=8, low_width=37),
        "high 16, low 32": FULL,
        "high 24, low 24": tif(high_width=24, low_width=24),
    },
}


if __name__ == "__main__":
    train_chosen(arguments(__doc__, [*SWEEPS, "all"]), RECORD, SWEEPS)
