"""Save what a network says of the boundaries of some scenes: boundary_predictions.npz and .json.

    python book/results/make_boundary_predictions.py

Trains the recipe dollhouse_baseline_nano on Dollhouse in full difficulty, with the field's weight of 0.95 for boundary
pixels, where the run is not there yet (some minutes), and stores the probabilities of the validation scenes in 8 bits,
as the protocol takes them. The appendix on boundary matching and benchmarks/boundary.py work on them.
"""

import json
import os
import shlex
from pathlib import Path

import numpy as np
import torch
from record import HERE, record

from mlore_edu.cli import main as mlore_edu
from mlore_edu.data.dollhouse_files import VALIDATION_SEEDS, DollhouseScenes
from mlore_edu.data.transforms import eval_transform
from mlore_edu.training import checkpoint
from mlore_edu.training.recipe import load_recipe
from mlore_edu.training.setup import make_model

SCENES = 24
RUN = Path("runs/boundary")
DATA = f"dollhouse --root data/dollhouse_full_128 --size 128 --difficulty full --train 400 --val {SCENES}"
TRAIN = (
    "train dollhouse_baseline_nano --root data/dollhouse_full_128 --difficulty full"
    f" --edge-positive-weight 0.95 --workers 0 --pictures 0 --run {RUN}"
)


def main() -> None:
    os.chdir(HERE.parents[1])
    if not (RUN / "metrics.json").exists():
        for command in (DATA, TRAIN):
            if mlore_edu(shlex.split(command)):
                raise SystemExit(2)
    weights, _ = checkpoint.load(checkpoint.latest(RUN / "checkpoints"))
    model = make_model(load_recipe(RUN), for_training=False)
    model.load_state_dict(weights)
    scenes = DollhouseScenes(
        SCENES, 128, "full", VALIDATION_SEEDS, transform=eval_transform(128)
    )
    images = torch.stack([scenes[i]["image"] for i in range(SCENES)])
    with torch.inference_mode():
        logits = model.eval()(images).predictions["edge"][:, 0]  # (N, 128, 128)
    probability = (255 * logits.double().sigmoid()).round().byte().numpy()
    np.savez_compressed(HERE / "boundary_predictions.npz", probability=probability)
    told = record(RUN)
    content = {
        "command": "python book/results/make_boundary_predictions.py",
        "data_command": f"mlore-edu {DATA}",
        "train_command": f"mlore-edu {TRAIN}",
        **{key: told[key] for key in ("commit", "hardware", "versions", "seed")},
        "scenes": {
            "difficulty": "full",
            "first seed": VALIDATION_SEEDS,
            "count": SCENES,
        },
        "metrics": {
            name: round(value, 4) for name, value in told["metrics"].items()
        },
    }
    path = HERE / "boundary_predictions.json"
    path.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
