"""Look at the affinities of trained TIFs, and write tif_diffusion.npz and .json (chapter 14).

    python book/results/make_tif_diffusion.py

Takes runs of make_tif_sweeps.py, and trains those that are not there: the network in which all four scales attend for
themselves, the one with diffusion in place of that at the high scales, and the one with neither. `KEYS` says what is
kept. Letters as in the decoder: T tasks, n tokens of a scale, scales 0 to 3 from fine to coarse. What needs large
matrices is measured on the first MEASURED validation scenes. Two minutes, when all is trained.
"""

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from make_taskexpert_inside import choose_scenes
from make_tif_sweeps import ALONE, FULL, SWEEPS
from record import HERE, record, write
from sweeps import DATA, prepare, run, trained
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

import mlore_edu as me
from mlore_edu.data.loaders import make_loader
from mlore_edu.data.transforms import denormalise
from mlore_edu.decoders.tif import Affinity
from mlore_edu.pictures import to_rgb
from mlore_edu.tasks import IGNORE
from mlore_edu.training.recipe import load_recipe
from mlore_edu.training.setup import make_validation_set

ALL = SWEEPS["high"]["SFD"]
SCENES, CHUNK, MEASURED = 3, 10, 20
NETWORKS = {"all": ALL, "whole": FULL, "alone": ALONE}
SEEDS = {"all": 1, "whole": 3, "alone": 3}
SHARES = np.linspace(0, 1, 101)
EDGES = np.arange(-20, 11)
TASKS = me.DOLLHOUSE
KEYS = {
    "held": "(RUNS + 1, 4, T, 101) share of a row's weight that the most attended 0, 1 … 100 % of the tokens hold",
    "counted": "(RUNS + 1, 4, T, 30) share of the weights whose log2(n·weight) lies between two EDGES",
    "attended": "(RUNS + 1, 4, T) effective number of attended tokens, over n",
    "distance": "(RUNS + 1, 4, T) mean distance of what is attended to, over that of all tokens",
    "exchanged": "(EXCHANGES, 2, T) losses after the weights of scale 0 or 1 were exchanged; all scales attend",
    "diffused": "(3, DIFFUSED, T) losses after the affinities that are diffused were exchanged; the whole network",
    "apart": "(CANDIDATES, 2, T) bits from the own weights of scale 0 and 1, at scale 2's size, to candidates for them",
    "image": "(SCENES, 64, 64, 3) bytes",
    "semseg": "(SCENES, 64, 64) labels, bytes",
    "all_q0 … whole_k3": "int8 (SCENES, T, C, h, w) queries and keys of the network with all scales and of the whole one",
    "right": "(2, 3, 100) share of each scene's pixels whose class is right, without and with diffusion",
    "shown": "(3,) scenes of seed 0 with the largest, the middle and the smallest gain by diffusion",
    "shown_image": "(3, 64, 64, 3) bytes",
    "shown_maps": "(3, 3, 64, 64) label, without, with diffusion: classes, bytes",
}  # the first axis of held to distance: seeds of the network with all scales, then one before training


class Weights:
    """Weights (B, T, n, n) in the place of an affinity."""

    def __init__(self, weights: Tensor, keys: Tensor) -> None:
        self.weights, self.keys = weights, keys

    def gather(self, values: Tensor) -> Tensor:
        mixed = self.weights @ values.flatten(3).mT  # (B, T, n, C)
        return mixed.mT.unflatten(3, values.shape[3:])  # (B, T, C, h, w)


def softmax(affinity: Affinity) -> Tensor:
    """Weights (B, T, n, n) of an affinity."""
    return affinity.matrix().softmax(dim=-1)


def borrowed(affinities: dict[int, Affinity]) -> Affinity:
    """Eq. 11."""
    low = affinities[2]
    return affinities[3].resized(low.keys.shape[-2:]).plus(low)


def only_large(weights: Tensor) -> Tensor:
    """Without the weights below an equal share."""
    kept = weights * (weights >= 1 / weights.shape[-1])
    return kept / kept.sum(dim=-1, keepdim=True)


def equal(affinity: Affinity) -> Tensor:
    n = affinity.keys[0, 0, 0].numel()
    return torch.full((1, 1, n, n), 1 / n)


def itself(affinity: Affinity) -> Tensor:
    return torch.eye(affinity.keys[0, 0, 0].numel())[None, None]


EXCHANGES: dict[str, Callable[[Affinity, dict[int, Affinity]], Tensor]] = {
    "its own": lambda own, a: softmax(own),
    "only weights above 1/n": lambda own, a: only_large(softmax(own)),
    "equal weights": lambda own, a: equal(own),
    "each token itself": lambda own, a: itself(own),
    "borrowed": lambda own, a: softmax(borrowed(a).resized(own.keys.shape[-2:])),
}
"""What becomes of the weights of a high scale that attends for itself; ``a``: the affinities of the low scales."""

DIFFUSED: dict[str, Callable[[dict[int, Affinity]], Tensor]] = {
    "Eq. 11": lambda a: softmax(borrowed(a)),
    "A² alone": lambda a: softmax(a[2]),
    "A³ alone": lambda a: softmax(a[3].resized(a[2].keys.shape[-2:])),
    "equal weights": lambda a: equal(a[2]),
    "each token itself": lambda a: itself(a[2]),
    "another scene's": lambda a: softmax(borrowed(a)).roll(1, dims=0),
}
"""What the whole network's high scales gather with."""

CANDIDATES: dict[str, Callable[[dict[int, Affinity]], Tensor]] = {
    name: DIFFUSED[name]
    for name in ("Eq. 11", "A² alone", "equal weights", "another scene's")
}


def parts(samples: dict[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    """A few scenes at a time: the matrices of the finest scale are large."""
    for start in range(0, len(samples["image"]), CHUNK):
        yield {
            name: samples[name][start : start + CHUNK]
            for name in ("image", *TASKS.names)
        }


def concentration(weights: Tensor, side: int) -> dict[str, np.ndarray]:
    """How unequal the rows of weights (B, T, n, n) are, and how far they reach; means for every task."""
    n = weights.shape[-1]
    relative = (n * weights).movedim(1, 0).flatten(1, 2)  # (T, B·n, n)
    sums = (
        relative.sort(dim=-1, descending=True).values.mean(dim=1).cumsum(dim=-1) / n
    )  # (T, n)
    ranks = np.arange(n + 1) / n
    held = [np.interp(SHARES, ranks, [0, *row]) for row in sums.double().tolist()]
    scale = (
        relative.clamp(min=2.0 ** EDGES[0], max=2.0 ** EDGES[-1] * 0.999)
        .log2()
        .floor()
    )
    bins = (scale - EDGES[0]).long().flatten(1)  # (T, B·n·n)
    counted = [
        torch.bincount(row, minlength=len(EDGES) - 1) / row.numel() for row in bins
    ]
    entropy = -torch.special.xlogy(weights, weights).sum(dim=-1)  # (B, T, n)
    place = (torch.arange(side) + 0.5) / side
    grid = torch.cartesian_prod(place, place)  # (n, 2)
    far = torch.cdist(grid, grid)  # (n, n)
    return {
        "held": np.array(held),
        "counted": torch.stack(counted).numpy(),
        "attended": (entropy.exp() / n).mean(dim=(0, 2)).numpy(),
        "distance": ((weights * far).sum(dim=-1) / far.mean())
        .mean(dim=(0, 2))
        .numpy(),
    }


def concentrations(
    model: nn.Module, samples: dict[str, Tensor]
) -> dict[str, np.ndarray]:
    """The same for all scales of a network that attends at all of them, (4, T, …) each."""
    found: dict[str, list] = {}
    for part in parts(
        {name: values[:MEASURED] for name, values in samples.items()}
    ):
        affinities = model.decoder.anatomy(model.backbone(part["image"])).affinities
        told = [
            concentration(softmax(affinities[i]), affinities[i].keys.shape[-1])
            for i in range(4)
        ]
        for key in told[0]:
            found.setdefault(key, []).append([of_scale[key] for of_scale in told])
    return {key: np.mean(values, axis=0) for key, values in found.items()}


def losses(model: nn.Module, samples: dict[str, Tensor]) -> np.ndarray:
    """Validation losses of every task."""
    criterion, rows = me.MultiTaskLoss(TASKS, edge_positive_weight=0.8), []
    for part in parts(samples):
        _, by_task = criterion(model(part["image"]).predictions, part)
        rows.append([by_task[name].item() for name in TASKS.names])
    return np.mean(rows, axis=0)


def exchanged(model: nn.Module, samples: dict[str, Tensor]) -> np.ndarray:
    """Losses (EXCHANGES, 2, T) of the network in which all scales attend, with other weights at one of the high ones."""
    table = np.zeros((len(EXCHANGES), 2, len(TASKS)))
    for row, exchange in enumerate(EXCHANGES.values()):
        for scale in (0, 1):
            affinities: dict[int, Affinity] = {}

            def swap(
                module, given, result, exchange=exchange, affinities=affinities
            ):
                own = result[1]
                weights = Weights(exchange(own, affinities), own.keys)
                refined = weights.gather(own.keys) + given[0]
                return module.feed_forward(refined) + refined, own

            hooks = [
                model.decoder.distillers[str(scale)].register_forward_hook(swap),
                listen(model, affinities),
            ]
            table[row, scale] = losses(model, samples)
            for hook in hooks:
                hook.remove()
    return table


def listen(model: nn.Module, affinities: dict[int, Affinity]) -> RemovableHandle:
    """Before every pass of the decoder, put the affinities of the low scales into ``affinities``."""

    def ask(decoder, given):
        scales = decoder.pyramid(given[0])
        for i in (2, 3):
            features = decoder.to_tasks[i](decoder.fusions[i](scales))
            affinities[i] = decoder.distillers[str(i)].affinity(features)

    return model.decoder.register_forward_pre_hook(ask)


def diffused(model: nn.Module, samples: dict[str, Tensor]) -> np.ndarray:
    """Losses (DIFFUSED, T) of the whole network with other affinities at the high scales."""
    rows = []
    for exchange in DIFFUSED.values():
        affinities: dict[int, Affinity] = {}

        def swap(module, given, exchange=exchange, affinities=affinities):
            return given[0], Weights(exchange(affinities), given[1].keys)

        hooks = [
            module.register_forward_pre_hook(swap)
            for module in model.decoder.diffusers.values()
        ]
        hooks.append(listen(model, affinities))
        rows.append(losses(model, samples))
        for hook in hooks:
            hook.remove()
    return np.array(rows)


def shrunk(weights: Tensor, side: int, low: int) -> Tensor:
    """Weights (B, T, n, n) between larger tokens: mean over who asks, sum over who is asked."""
    cut = (
        weights.unflatten(3, (low, side // low, low, side // low))
        .sum(dim=(4, 6))
        .flatten(3)
    )  # (B, T, n, m)
    return (
        cut.unflatten(2, (low, side // low, low, side // low))
        .mean(dim=(3, 5))
        .flatten(2, 3)
    )  # (B, T, m, m)


def apart(model: nn.Module, samples: dict[str, Tensor]) -> np.ndarray:
    """Bits (CANDIDATES, 2, T) that are lost if candidates are taken for the own weights of the high scales."""
    found = []
    for part in parts(
        {name: values[:MEASURED] for name, values in samples.items()}
    ):
        affinities = model.decoder.anatomy(model.backbone(part["image"])).affinities
        candidates = [candidate(affinities) for candidate in CANDIDATES.values()]
        low, rows = affinities[2].keys.shape[-1], []
        for scale in (0, 1):
            own = shrunk(
                softmax(affinities[scale]), affinities[scale].keys.shape[-1], low
            )
            rows.append(
                [
                    (torch.special.xlogy(own, own / other))
                    .sum(dim=-1)
                    .mean(dim=(0, 2))
                    for other in candidates
                ]
            )
        found.append(
            [torch.stack(row).numpy() for row in rows]
        )  # 2 of (CANDIDATES, T)
    return np.mean(found, axis=0).swapaxes(0, 1) / np.log(2)


def factors(
    model: nn.Module, images: Tensor, name: str
) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    """Queries and keys as bytes, and what one step of them is worth."""
    bytes_, steps = {}, {}
    for scale, affinity in sorted(
        model.decoder.anatomy(model.backbone(images)).affinities.items()
    ):
        for letter, part in zip("qk", affinity):
            key = f"{name}_{letter}{scale}"
            steps[key] = part.abs().max().item() / 127
            bytes_[key] = (part / steps[key]).round().to(torch.int8).numpy()
    return bytes_, steps


def classes(
    model: nn.Module, samples: dict[str, Tensor]
) -> tuple[Tensor, np.ndarray]:
    """Predicted classes (100, 64, 64), and the share of right ones in every scene."""
    said = torch.cat(
        [
            model(part["image"]).predictions["semseg"].argmax(dim=1)
            for part in parts(samples)
        ]
    )
    counts = samples["semseg"] != IGNORE
    right = ((said == samples["semseg"]) & counts).sum(dim=(1, 2)) / counts.sum(
        dim=(1, 2)
    )
    return said, right.numpy()


def with_and_without(
    networks: dict[str, list[nn.Module]], samples: dict[str, Tensor]
) -> dict[str, np.ndarray]:
    """Segmentation without and with diffusion: scenes with the largest, the middle and the smallest gain."""
    both = [
        [classes(model, samples) for model in networks[name]]
        for name in ("alone", "whole")
    ]
    right = np.array(
        [[share for _, share in seeds] for seeds in both]
    )  # (2, 3, 100)
    order = (right[1, 0] - right[0, 0]).argsort(kind="stable")
    shown = order[[-1, len(order) // 2, 0]]
    maps = [samples["semseg"][shown], *(seeds[0][0][shown] for seeds in both)]
    return {
        "right": right,
        "shown": shown,
        "shown_image": pictures(samples, shown),
        "shown_maps": np.stack([m.byte().numpy() for m in maps], axis=1),
    }


def pictures(samples: dict[str, Tensor], chosen: list[int]) -> np.ndarray:
    return np.stack(
        [to_rgb("image", denormalise(image)) for image in samples["image"][chosen]]
    )


def networks_of(name: str) -> list[nn.Module]:
    """Its trained networks, one a seed."""
    configuration, seeds = NETWORKS[name], range(SEEDS[name])
    for seed in seeds:
        if not (configuration.folder(seed) / "metrics.json").exists():
            run(configuration, seed)
    return [trained(configuration, seed) for seed in seeds]


def everything() -> tuple[dict[str, np.ndarray], dict[str, float]]:
    """All that is kept, and the steps of what is kept as bytes."""
    networks = {name: networks_of(name) for name in NETWORKS}
    validation = make_validation_set(load_recipe(ALL.folder(0)))
    samples = next(iter(make_loader(validation, len(validation), train=False)))
    some = {name: samples[name][:MEASURED] for name in ("image", *TASKS.names)}
    torch.manual_seed(0)
    fresh = me.build_model("tif_vit_nano", TASKS, (64, 64), **ALL.options).eval()
    found = [concentrations(model, some) for model in (*networks["all"], fresh)]
    chosen = choose_scenes(samples)[:SCENES]
    bytes_, steps = {}, {}
    for name in ("all", "whole"):
        more = factors(networks[name][0], samples["image"][chosen], name)
        bytes_, steps = bytes_ | more[0], steps | more[1]
    return {
        **{key: np.stack([told[key] for told in found]) for key in found[0]},
        "exchanged": exchanged(networks["all"][0], some),
        "diffused": np.stack(
            [diffused(model, some) for model in networks["whole"]]
        ),
        "apart": apart(networks["all"][0], some),
        "image": pictures(samples, chosen),
        "semseg": samples["semseg"][chosen].byte().numpy(),
        **bytes_,
        **with_and_without(networks, samples),
    }, steps


def main() -> None:
    prepare()
    with torch.no_grad():
        content, steps = everything()
    path = HERE / "tif_diffusion.npz"
    np.savez_compressed(
        path,
        **{
            k: v.astype(np.float32) if v.dtype == float else v
            for k, v in content.items()
        },
    )
    runs = {
        name: [f"mlore-edu {c.command(seed)}" for seed in range(SEEDS[name])]
        for name, c in NETWORKS.items()
    }
    made = record(ALL.folder(0))
    told = {
        "command": f"python book/results/{Path(__file__).name}",
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "commit_of_the_runs": made["commit"],
        **{key: made[key] for key in ("hardware", "versions")},
        "data_command": f"mlore-edu {DATA}",
        "runs": runs,
        "edges": EDGES.tolist(),
        "exchanges": list(EXCHANGES),
        "diffused": list(DIFFUSED),
        "candidates": list(CANDIDATES),
        "steps": steps,
        "keys": KEYS,
    }
    write("tif_diffusion", told)


if __name__ == "__main__":
    main()
