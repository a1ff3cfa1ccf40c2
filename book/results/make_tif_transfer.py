"""Make one task hurt another on purpose, and see whether it does so through attention; write tif_transfer.json (chapter 13).

    python book/results/make_tif_transfer.py all --seeds 3 --workers 1

Semantic segmentation is learned beside surface normals, the two tasks of TIF's Fig. 1, by the networks that the sweep
"table1" compares. The normals are either true or those of another room: data/dollhouse_64_shuffled is a copy of
data/dollhouse_64 in which every training scene has the normals of the next one; its validation scenes are untouched.
Of every finished network it is then asked what segmentation loses if the normals' features that enter the attention are
those of another validation scene ("exchanged" in the record).
Trains in runs/tif_sweeps, one thread a run, about a minute each; what is there already is not made again (sweeps.py).
"""

import argparse
import hashlib
import json
import shutil
from pathlib import Path

import torch
from make_tif_sweeps import interaction
from record import HERE
from sweeps import Configuration, Sweeps, prepare, read, train, trained, write

import mlore_edu as me
from mlore_edu.data.loaders import make_loader
from mlore_edu.training.recipe import load_recipe
from mlore_edu.training.setup import make_validation_set

RECORD = HERE / "tif_transfer.json"
ROOT, SHUFFLED = Path("data/dollhouse_64"), Path("data/dollhouse_64_shuffled")
TASK = "normals"


def pair(
    distillation: str, shuffled: bool, flags: str = "", **options
) -> Configuration:
    """Segmentation and normals, by attention of one kind, with normals of one kind."""
    flags = f"semseg {TASK} {flags}".strip()
    if shuffled:
        flags += f" --root {SHUFFLED}"
    if distillation == "cross":
        options["distillation"] = "cross"
    return interaction(flags, **options)


def design(true: str = "", wrong: str = "", **options) -> dict[str, Configuration]:
    """Four networks: two kinds of attention, two kinds of normals, and the flags that go with each kind."""
    return {
        f"{distillation}, {name}": pair(
            distillation, name != "true", flags, **options
        )
        for distillation in ("self", "cross")
        for name, flags in (("true", true), ("another room", wrong))
    }


def weight(value: int) -> str:
    """The flag of the normals' weight in the loss; the field's is 10, ten times that of segmentation."""
    return f"--loss-weights {TASK} {value}"


SHORT = "--iterations 150"
SWEEPS: Sweeps = {
    "alone": {"alone": interaction("semseg")},
    "weight 10": design(),
    "weight 100": design(weight(100), weight(100)),  # a trial, of one seed
    # Nothing but the low scales, where attention is, for segmentation to rely on; and wrong normals that drown it.
    "narrow": design(SHORT, f"{SHORT} {weight(1000)}", high_width=1),
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


def exchanged(model: torch.nn.Module, samples: dict[str, torch.Tensor]) -> float:
    """mIoU of segmentation where, at the entrance of every attention, the second task has the next scene's features."""

    def exchange(module, given):
        features = given[0].clone()  # (B, T, C, h, w)
        features[:, 1] = features[:, 1].roll(1, dims=0)
        return (features,)

    for distiller in model.decoder.distillers.values():
        distiller.register_forward_pre_hook(exchange)
    with torch.no_grad():
        logits = model(samples["image"]).predictions["semseg"]  # (B, classes, H, W)
    meter = me.MeanIoU(logits.shape[1])
    meter.update(logits.argmax(dim=1), samples["semseg"])
    return round(meter.compute(), 4)


def exchange_all() -> None:
    """Add to every run of two tasks in the record what it is worth with exchanged features."""
    content = read(RECORD)
    pairs = [told for told in content["runs"] if TASK in told["metrics"]]
    known = {c.key: c for rows in SWEEPS.values() for c in rows.values()}
    samples = None
    for told in (told for told in pairs if "exchanged" not in told):
        configuration = known[told["key"]]
        if samples is None:  # validation scenes are the same in both folders
            validation = make_validation_set(
                load_recipe(configuration.folder(told["seed"]))
            )
            samples = next(
                iter(make_loader(validation, len(validation), train=False))
            )
        model = trained(configuration, told["seed"])
        told["exchanged"] = exchanged(model, samples)
    write(RECORD, content)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("sweep", choices=[*SWEEPS, "all"])
    parser.add_argument("--seeds", type=int, default=3)
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
    exchange_all()


if __name__ == "__main__":
    main()
