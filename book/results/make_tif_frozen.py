"""Let two tasks share nothing but attention, and see whether one hurts the other; write tif_frozen.json (chapter 13).

    python book/results/make_tif_frozen.py --seeds 6

All that the tasks of a TIF share, backbone, pyramid and the way to each scale's width, is taken from a network that was
trained on segmentation alone, and frozen. On it two decoders are trained from new weights, for segmentation and for
surface normals, true ones or those of the next room (the shuffled data of make_tif_transfer.py), with a small weight or
a large one. Adam treats every parameter by itself and nothing is clipped, so within each task nothing of the other can
arrive; across tasks whatever arrives has come through attention. Half a minute of one core a network.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

import torch
from make_tif_sweeps import interaction
from make_tif_transfer import ROOT, SHUFFLED, TASK, shuffle_labels
from record import record, write
from sweeps import prepare, run, trained

import mlore_edu as me
from mlore_edu.data.loaders import make_loader, open_dataset
from mlore_edu.data.transforms import eval_transform
from mlore_edu.model import MultiTaskModel

NARROW = 1
"""Width of the high scales: almost none, so that segmentation has to rely on the low ones, where attention is."""
ALONE = interaction("semseg", high_width=NARROW)
TASKS = me.DOLLHOUSE.subset("semseg", TASK)
STEPS, BATCH, RATE = 300, 8, 4e-3
"""As in the recipe dollhouse_tif_nano_64."""


@dataclass(frozen=True)
class Arm:
    """One kind of network."""

    distillation: str
    normals: str
    weight: float


ARMS = (
    Arm("self", "true", 10),
    Arm("self", "another room", 1000),
    Arm("cross", "true", 10),
    Arm("cross", "another room", 10),
    Arm("cross", "another room", 1000),
    Arm("cross", "true", 1000),
)


def shared_part(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What no task has for itself."""
    parts = ("backbone.", "decoder.pyramid.", "decoder.fusions.")
    return {name: value for name, value in state.items() if name.startswith(parts)}


def samples(folder: Path, split: str) -> dict[str, torch.Tensor]:
    """A whole split as one batch."""
    data = open_dataset("dollhouse", folder, split, TASKS, eval_transform(64))
    return next(iter(make_loader(data, len(data), train=False)))


def network(arm: Arm, seed: int, state: dict[str, torch.Tensor]) -> MultiTaskModel:
    """New decoders and heads on the frozen, shared part."""
    torch.manual_seed(seed)
    options = {"fused_scales": 0, "diffusion": "none", "high_width": NARROW}
    options |= {"distillation": arm.distillation}
    model = me.build_model("tif_vit_nano", TASKS, (64, 64), **options)
    model.load_state_dict(state, strict=False)
    for part in (model.backbone, model.decoder.pyramid, model.decoder.fusions):
        part.requires_grad_(False)
    return model


def set_training(model: MultiTaskModel) -> None:
    """Training mode, but for what is frozen: its BatchNorms, too, stay what they are."""
    model.train()
    for part in (model.backbone, model.decoder.pyramid, model.decoder.fusions):
        part.eval()


def train(
    model: MultiTaskModel, arm: Arm, seed: int, batch: dict[str, torch.Tensor]
) -> None:
    """Adam with the recipe's budget."""
    set_training(model)
    criterion = me.MultiTaskLoss(TASKS, loss_weights={TASK: arm.weight})
    wanted = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(wanted, RATE)
    order = torch.Generator().manual_seed(seed)
    count = len(batch["image"])
    for step in range(STEPS):
        optimizer.param_groups[0]["lr"] = RATE * (1 - step / STEPS) ** 0.9
        chosen = torch.randperm(count, generator=order)[:BATCH]
        few = {
            name: value[chosen] for name, value in batch.items() if name != "meta"
        }
        loss, _ = criterion(model(few["image"]).predictions, few)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def judge(
    model: MultiTaskModel, batch: dict[str, torch.Tensor]
) -> dict[str, float]:
    """mIoU of segmentation, mean error of the normals."""
    with torch.no_grad():
        predictions = model.eval()(batch["image"]).predictions
    semseg, normals = me.MeanIoU(TASKS["semseg"].channels), me.NormalError()
    semseg.update(predictions["semseg"].argmax(dim=1), batch["semseg"])
    normals.update(predictions[TASK], batch[TASK])
    return {"semseg": round(semseg.compute(), 4), TASK: round(normals.compute(), 4)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=6)
    seeds = parser.parse_args().seeds
    prepare()
    shuffle_labels(ROOT, SHUFFLED, TASK)
    if not (ALONE.folder(0) / "metrics.json").exists():
        run(ALONE, 0)
    state = shared_part(trained(ALONE, 0).state_dict())
    data = {
        "true": samples(ROOT, "train"),
        "another room": samples(SHUFFLED, "train"),
    }
    validation = samples(ROOT, "val")
    runs = []
    for seed in range(seeds):
        for arm in ARMS:
            model = network(arm, seed, state)
            train(model, arm, seed, data[arm.normals])
            runs.append(
                {**vars(arm), "seed": seed, "metrics": judge(model, validation)}
            )
            print(runs[-1], flush=True)
    made_with = record(ALONE.folder(0))
    write(
        "tif_frozen",
        {
            "command": f"python book/results/make_tif_frozen.py --seeds {seeds}",
            **{key: made_with[key] for key in ("hardware", "versions")},
            "shared part": f"mlore-edu {ALONE.command(0)}",
            "commit of the shared part": made_with["commit"],
            "runs": runs,
        },
    )


if __name__ == "__main__":
    main()
