"""Make one task hurt another on purpose, and see whether it does so through attention; write tif_transfer.json (chapter 13).

    python book/results/make_tif_transfer.py all --seeds 5 --workers 1

Semantic segmentation is learned beside surface normals, the two tasks of TIF's Fig. 1, by the networks that the sweep
"table1" compares. The normals are either true or those of another room: data/dollhouse_64_shuffled is a copy of
data/dollhouse_64 in which every training scene has the normals of the next one; its validation scenes are untouched.
Trains in runs/tif_sweeps, one thread a run, about a minute each; what is there already is not made again (sweeps.py).
"""

import argparse
import hashlib
import json
import shutil
from pathlib import Path

from make_tif_sweeps import interaction
from record import HERE
from sweeps import Configuration, Sweeps, prepare, train

RECORD = HERE / "tif_transfer.json"
ROOT, SHUFFLED = Path("data/dollhouse_64"), Path("data/dollhouse_64_shuffled")
TASK = "normals"


def pair(
    distillation: str, shuffled: bool, weight: float | None = None
) -> Configuration:
    """Segmentation and normals, by attention of one kind, with normals of one kind and one weight in the loss."""
    flags = [f"semseg {TASK}"]
    if weight is not None:
        flags.append(f"--loss-weights {TASK} {weight:g}")
    if shuffled:
        flags.append(f"--root {SHUFFLED}")
    return interaction(
        " ".join(flags),
        **({"distillation": "cross"} if distillation == "cross" else {}),
    )


def design(weight: float | None) -> dict[str, Configuration]:
    """Four networks: two kinds of attention, two kinds of normals."""
    return {
        f"{distillation}, {'another room' if shuffled else 'true'}": pair(
            distillation, shuffled, weight
        )
        for distillation in ("self", "cross")
        for shuffled in (False, True)
    }


SWEEPS: Sweeps = {
    "alone": {"alone": interaction("semseg")},
    "weight 10": design(
        None
    ),  # the field's weight of normals, ten times that of segmentation
    "weight 100": design(100),
}


def shuffle_labels(source: Path, target: Path, task: str) -> None:
    """Copy a Dollhouse folder; in the copy every training scene has the next one's label of a task, the last the first's."""
    if target.exists():
        return
    draft = target.with_name(target.name + "_draft")
    shutil.rmtree(draft, ignore_errors=True)
    shutil.copytree(source, draft)
    names = (source / "train.txt").read_text().split()
    for name, other in zip(names, names[1:] + names[:1], strict=True):
        shutil.copyfile(
            source / task / f"{other}.png", draft / task / f"{name}.png"
        )
    sums_file, about_file = draft / "SHA256SUMS", draft / "dataset.json"
    paths = [line.split("  ")[1] for line in sums_file.read_text().splitlines()]
    sums = "".join(
        f"{hashlib.sha256((draft / path).read_bytes()).hexdigest()}  {path}\n"
        for path in paths
    )
    sums_file.write_text(sums)
    about = json.loads(about_file.read_text())
    about["name"] += f"; every training scene has the {task} of the next"
    about["content_hash"] = hashlib.sha256(sums.encode()).hexdigest()
    about_file.write_text(json.dumps(about, indent=1))
    draft.rename(target)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("sweep", choices=[*SWEEPS, "all"])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=1)
    chosen = parser.parse_args()
    prepare()
    shuffle_labels(ROOT, SHUFFLED, TASK)
    names = list(SWEEPS) if chosen.sweep == "all" else [chosen.sweep]
    train(
        RECORD,
        f"python book/results/{Path(__file__).name} all",
        SWEEPS,
        names,
        chosen.seeds,
        chosen.workers,
    )


if __name__ == "__main__":
    main()
