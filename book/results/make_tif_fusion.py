"""Save the encoder of a trained TIF and what can be read from its maps: tif_fusion.npz and .json (chapter 12).

    python book/results/make_tif_fusion.py

Takes TIF with SAFF, without, and with SAFF normalised, each with several seeds, from the runs of make_tif_sweeps.py, and
trains what is not there. The .npz holds, in half precision, the weights of the first network up to its fusions
(backbone, pyramid, SAFF); the .json what a linear map reads from every map before and after the fusion, how many hidden
units of the fusion are ever on, and what the tasks lose where a map is replaced by its mean. About a minute a network.
"""

import argparse
import json
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
import torch.nn.functional as F
from make_tif_sweeps import SWEEPS, tif
from record import HERE, record
from sweeps import Configuration, one_machine, prepare, run, trained
from torch import Tensor

import mlore_edu as me
from mlore_edu.data.dollhouse_files import VALIDATION_SEEDS, DollhouseScenes
from mlore_edu.data.loaders import make_loader
from mlore_edu.data.transforms import eval_transform
from mlore_edu.decoders.pyramid import align

ROWS = {
    "W/4 SAFF": SWEEPS["table9"]["W/4 SAFF"],
    "W/O SAFF": SWEEPS["table9"]["W/O SAFF"],
    "normalised": tif(
        fusion_norm=True
    ),  # W/4 SAFF with BatchNorms that the paper does not have
}
ENCODER = ("backbone.", "decoder.pyramid.", "decoder.fusions.")
FINEST = (32, 32)
TRAINING, VALIDATION = 200, 100
"""Scenes that a linear map is fitted to, and others that it is tried on."""
CLASSES = 15

Batch = dict[str, Tensor]
Maps = dict[str, list[Tensor]]


def scenes(count: int, *first_seed: int) -> Batch:
    """So many scenes as one batch, pictures and labels as in the sweeps."""
    data = DollhouseScenes(
        count, 64, "easy", *first_seed, transform=eval_transform(64)
    )
    return next(iter(make_loader(data, count, train=False)))


# --- what can be read from a map -------------------------------------------------------------------------------------


def maps_of(model: torch.nn.Module, images: Tensor) -> Maps:
    """The maps on the way through SAFF, lists from scale 0 to 3; without SAFF the way ends at XL."""
    decoder = model.decoder
    scales = decoder.pyramid(model.backbone(images))
    found: Maps = {
        "X": scales,
        "XL": [f.reduce(scales[f.scale]) for f in decoder.fusions],
    }
    if all(fusion.fused for fusion in decoder.fusions):
        found["Y"] = [fusion.aligned(scales) for fusion in decoder.fusions]
        found["XL, Y"] = [
            torch.cat(pair, dim=1) for pair in zip(found["XL"], found["Y"])
        ]
        found["SFX"] = [
            fusion.fuse(both) + own
            for fusion, both, own in zip(
                decoder.fusions, found["XL, Y"], found["XL"]
            )
        ]
        found["fused"] = [fusion(scales) for fusion in decoder.fusions]
    return found


def as_rows(*maps: Tensor) -> Tensor:
    """Maps side by side at the finest scale, a row for each token, with a 1 at its end: ``(B·32·32, C + 1)``."""
    together = torch.cat(
        [align(feature_map, FINEST) for feature_map in maps], dim=1
    )  # (B, C, 32, 32)
    rows = together.movedim(1, -1).flatten(0, 2).double()  # (B·32·32, C)
    return F.pad(rows, (0, 1), value=1.0)


def wanted(batch: Batch) -> Tensor:
    """For each token the share of every class in it, and whether it has a boundary: ``(B·32·32, 16)``."""
    classes = F.one_hot(batch["semseg"].clamp(max=CLASSES), CLASSES + 1)[
        ..., :CLASSES
    ]  # (B, 64, 64, 15)
    shares = F.avg_pool2d(classes.movedim(-1, 1).double(), 2)  # (B, 15, 32, 32)
    boundary = F.max_pool2d(
        (batch["edge"].reshape(-1, 1, 64, 64) == 1).double(), 2
    )  # (B, 1, 32, 32)
    return torch.cat([shares, boundary], dim=1).movedim(1, -1).flatten(0, 2)


def ridge(rows: Tensor, targets: Tensor, penalty: float = 1e-3) -> Tensor:
    """The linear map that makes the smallest squared error, and a small penalty on its weights."""
    square = rows.T @ rows + penalty * torch.eye(rows.shape[1], dtype=rows.dtype)
    return torch.linalg.solve(square, rows.T @ targets)


def scores(read: Tensor, truth: Tensor) -> dict[str, float]:
    """Mean IoU of the classes, and average precision of the boundaries, in percent."""
    said, is_so = read[:, :CLASSES].argmax(dim=1), truth[:, :CLASSES].argmax(dim=1)
    ious = [
        ((said == c) & (is_so == c)).sum() / ((said == c) | (is_so == c)).sum()
        for c in range(CLASSES)
        if (is_so == c).any()
    ]
    hits = truth[:, CLASSES][read[:, CLASSES].argsort(descending=True, stable=True)]
    precision = hits.cumsum(0) / torch.arange(1, len(hits) + 1)
    boundary = (precision * hits).sum() / hits.sum()
    return {
        "semseg": round(100 * torch.stack(ious).mean().item(), 2),
        "edge": round(100 * boundary.item(), 2),
    }


def readings(
    model: torch.nn.Module, training: Batch, validation: Batch
) -> dict[str, list[dict[str, float]]]:
    """Scores by kind of map: those of scales 0 to 3, and then of all four side by side."""
    seen, unseen = (
        maps_of(model, batch["image"]) for batch in (training, validation)
    )
    targets, truth = wanted(training), wanted(validation)
    told = {}
    for kind in seen:
        choices = [[scale] for scale in range(4)] + [[0, 1, 2, 3]]
        told[kind] = []
        for choice in choices:
            weights = ridge(
                as_rows(*(seen[kind][scale] for scale in choice)), targets
            )
            read = as_rows(*(unseen[kind][scale] for scale in choice)) @ weights
            told[kind].append(scores(read, truth))
    return told


def activity(model: torch.nn.Module, images: Tensor) -> list[list[float]]:
    """For every hidden unit of SFF, scale by scale, at what share of the tokens its ReLU lets something through."""
    shares: list[list[float]] = []
    hooks = [
        fusion.fuse[1].register_forward_hook(
            lambda module, given, hidden: shares.append(
                (hidden > 0).float().mean(dim=(0, 2, 3)).tolist()
            )
        )
        for fusion in model.decoder.fusions
    ]
    model.decoder(model.backbone(images))
    for hook in hooks:
        hook.remove()
    return [[round(share, 4) for share in of_scale] for of_scale in shares]


# --- what the tasks lose ---------------------------------------------------------------------------------------------


@contextmanager
def silenced(
    model: torch.nn.Module, part: str, chosen: list[int]
) -> Iterator[None]:
    """Replace XL ("reduce") or Y ("gather") of the chosen scales by their means over scenes and places."""
    hooks = [
        getattr(model.decoder.fusions[scale], part).register_forward_hook(
            lambda module, given, maps: maps.mean(
                dim=(0, 2, 3), keepdim=True
            ).expand_as(maps)
        )
        for scale in chosen
    ]
    yield
    for hook in hooks:
        hook.remove()


def losses(model: torch.nn.Module, batch: Batch) -> dict[str, float]:
    """Every task's loss on the batch."""
    _, by_task = me.MultiTaskLoss(me.DOLLHOUSE, edge_positive_weight=0.8)(
        model(batch["image"]).predictions, batch
    )
    return {name: round(loss.item(), 5) for name, loss in by_task.items()}


def silencing(
    model: torch.nn.Module, batch: Batch
) -> dict[str, list[dict[str, float]]]:
    """Losses with nothing replaced, and with XL or Y replaced at scale 0, 1, 2, 3, and at all."""
    told = {"nothing": [losses(model, batch)]}
    for part, name in (("gather", "Y"), ("reduce", "XL")):
        told[name] = []
        for chosen in ([0], [1], [2], [3], [0, 1, 2, 3]):
            with silenced(model, part, chosen):
                told[name].append(losses(model, batch))
    return told


# --- the record ------------------------------------------------------------------------------------------------------


def network(
    configuration: Configuration, seed: int
) -> tuple[torch.nn.Module, dict]:
    """A trained network, and how it was made."""
    folder = configuration.folder(seed)
    if not (folder / "metrics.json").exists():
        run(configuration, seed)
    told = record(folder)
    made = {
        "key": configuration.key,
        "seed": seed,
        "command": f"mlore-edu {configuration.command(seed)}",
        "commit": told["commit"][:12],
        "metrics": {
            name: round(value, 4) for name, value in told["metrics"].items()
        },
        "made_with": {key: told[key] for key in ("hardware", "versions")},
    }
    return trained(configuration, seed), made


def save_encoder(model: torch.nn.Module) -> None:
    weights = {
        name: value
        for name, value in model.state_dict().items()
        if name.startswith(ENCODER)
    }
    halves = {
        name: value.half().numpy()
        for name, value in weights.items()
        if value.is_floating_point()
    }
    np.savez_compressed(HERE / "tif_fusion.npz", **halves)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=3)
    seeds = parser.parse_args().seeds
    prepare()
    training, validation = scenes(TRAINING), scenes(VALIDATION, VALIDATION_SEEDS)
    runs = []
    for row, configuration in ROWS.items():
        for seed in range(seeds):
            model, made = network(configuration, seed)
            with torch.no_grad():
                made |= {
                    "row": row,
                    "readings": readings(model, training, validation),
                }
                if row != "W/O SAFF":
                    made["active"] = activity(model, validation["image"])
                    made["losses"] = silencing(model, validation)
            if not runs:
                save_encoder(model)
            runs.append(made)
            print(f"{row}, seed {seed}", flush=True)
    told = {
        "command": "python book/results/make_tif_fusion.py",
        **one_machine(runs),
    }
    told |= {"scenes": {"fitted to": TRAINING, "tried on": VALIDATION}}
    lines = ",\n".join(json.dumps(made) for made in runs)
    path = HERE / "tif_fusion.json"
    path.write_text(
        f'{json.dumps(told, indent=1)[:-2]},\n "runs": [\n{lines}\n ]\n}}\n'
    )


if __name__ == "__main__":
    main()
