"""Look inside a trained TIF where its tasks ask themselves; write tif_distillation.npz and .json (chapter 13).

    python book/results/make_tif_distillation.py

The network is the full one of tif_sweeps.json with seed 0, trained in runs/tif_sweeps if it is not there (two minutes).
`KEYS` says what the .npz holds; the .json says how the network was made. Letters: S scenes for pictures, those with the
largest things among the scenes that show a person; M scenes for statistics, the first ones of the validation set;
T tasks; n tokens of a scale.
"""

import hashlib
import json
from pathlib import Path

import numpy as np
import torch
from make_taskexpert_inside import choose_scenes
from make_tif_sweeps import FULL
from record import HERE, record
from sweeps import prepare, run, trained
from torch import Tensor

from mlore_edu.data.loaders import make_loader
from mlore_edu.training.recipe import load_recipe
from mlore_edu.training.setup import make_validation_set

SEED, PICTURES, STATISTICS = 0, 4, 16
KEYS = {
    "scenes": "(S,) numbers of the scenes in the validation set",
    "attention_2, attention_3": "(S, T, n, n) Softmax(A) of these scenes; a row for the token that asks",
    "before_2, before_3": "(M, T, C, h, w) features of the tasks that enter SFD",
    "after_2, after_3": "(M, T, C, h, w) features RX that leave it",
    "apart_2, apart_3": "(V, T, T) for every validation scene: the share of attention that would have to be moved from one "
    "token to another to turn one task's into the other's, mean over the tokens that ask",
}


def apart(attention: Tensor) -> Tensor:
    """Total variation between the tasks' attention (B, T, n, n), mean over the rows: (B, T, T)."""
    gaps = [
        (attention - one[:, None]).abs().sum(dim=-1).mean(dim=-1) / 2
        for one in attention.unbind(1)
    ]
    return torch.stack(gaps, dim=1)


def look(
    model: torch.nn.Module, samples: dict[str, Tensor]
) -> dict[str, np.ndarray]:
    """Everything that is kept."""
    chosen = choose_scenes(samples)[:PICTURES]
    anatomy = model.decoder.anatomy(model.backbone(samples["image"]))
    told = {"scenes": np.array(chosen)}
    for scale, affinity in sorted(anatomy.affinities.items()):
        attention = affinity.matrix().softmax(dim=-1)  # (B, T, n, n)
        found = {
            "attention": attention[chosen],
            "before": anatomy.of_tasks[scale][:STATISTICS],
            "after": anatomy.refined[scale][:STATISTICS],
            "apart": apart(attention),
        }
        told |= {
            f"{name}_{scale}": values.half().numpy()
            for name, values in found.items()
        }
    return told


def main() -> None:
    prepare()
    folder = FULL.folder(SEED)
    if not (folder / "metrics.json").exists():
        run(FULL, SEED)
    validation = make_validation_set(load_recipe(folder))
    samples = next(iter(make_loader(validation, len(validation), train=False)))
    with torch.no_grad():
        content = look(trained(FULL, SEED), samples)
    path = HERE / "tif_distillation.npz"
    np.savez_compressed(path, **content)
    told = {
        "made_by": f"python book/results/{Path(__file__).name}",
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "keys": KEYS,
        **record(folder),
        "command": f"mlore-edu {FULL.command(SEED)}",
    }
    (HERE / "tif_distillation.json").write_text(json.dumps(told, indent=1) + "\n")


if __name__ == "__main__":
    main()
