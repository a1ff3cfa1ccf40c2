"""Look inside a trained TaskExpert, and write taskexpert_inside.npz and .json (chapters 10 and 11).

    mlore-edu train dollhouse_taskexpert_nano --run runs/taskexpert_128
    python book/results/make_taskexpert_inside.py runs/taskexpert_128

The .npz holds, for six validation scenes (those with the largest things among the scenes that show a person), their gates
and features as pictures, and for all validation scenes some means; `KEYS` says what is what. The .json says how the
network was made. Letters as in the decoder: S scenes, L modules, T tasks, K experts, H × W tokens. A minute.
"""

import dataclasses
import hashlib
import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from record import HERE, record, write
from torch import Tensor

import mlore_edu as me
from mlore_edu.data.loaders import make_loader
from mlore_edu.data.transforms import denormalise
from mlore_edu.decoders.moe import top_k_mask
from mlore_edu.pictures import to_rgb
from mlore_edu.tasks import DOLLHOUSE_CLASSES, IGNORE
from mlore_edu.training import checkpoint
from mlore_edu.training.recipe import load_recipe
from mlore_edu.training.setup import make_model, make_validation_set

SCENES = 6
KEYS = {
    "scenes": "(S,) numbers of the scenes in the validation set",
    "image": "(S, 128, 128, 3) bytes",
    "semseg": "(S, 128, 128) labels of the scenes, bytes",
    "gates": "(S, L, T, K + 1, H, W) gates times 255; the last is the memory's, 0 in the first module",
    "answers": "(S, L, K, H, W, 3) answers R of every expert, three principal components as colours",
    "memory": "(S, T, H, W, 3) memory after the last module, coloured alike",
    "features": "(S, T, 64, 64, 3) what the heads receive, coloured alike",
    "token": "(S, 2) row and column of the token that shows most of the person",
    "token_answers": "(S, L, K, D) the experts' answers there",
    "token_gates": "(S, L, T, K + 1) the gates there",
    "token_memory": "(S, L, T, D) the memory there, after every module",
    "momentum": "(L - 1, T) alpha of the modules 2 to L",
    "memory_gate": "(L, T) mean gate of the memory; 0 in the first module",
    "weight": "(L, T) mean weight that a module's own share still has after the last module",
    "weight_std": "(L, T) its standard deviation over scenes and tokens",
    "norm_experts": "(L, T) mean length of the experts' share, the sum of G_i R_i",
    "norm_memory": "(L, T) mean length of the memory after the module",
    "norm_at_end": "(L, T) mean length of that share in the memory after the last module",
    "mean_gates": "(L, T, K + 1) mean gates",
    "variance": "(L, T, 3) the gates' variance, added over the gates: between scenes, between places, the rest",
    "union": "(2, L, K + 1) share of tokens at which the tasks' best 1 or best 2 gates need 0 to K experts together",
    "kept": "(2, L, T) mean sum of the best 1 and best 2 gates",
    "exchanged": "(6, T) validation losses after the gates of all modules were exchanged, see EXCHANGES",
}

EXCHANGES = {
    "their own": lambda g: g,
    "one for the scene": lambda g: g.mean(dim=(3, 4), keepdim=True).expand_as(g),
    "one for the place": lambda g: g.mean(dim=0, keepdim=True).expand_as(g),
    "one for all": lambda g: g.mean(dim=(0, 3, 4), keepdim=True).expand_as(g),
    "another scene's": lambda g: g.roll(1, dims=0),
    "the next task's": lambda g: g.roll(1, dims=1),
}
"""What becomes of the gates (scenes, T, K [+ 1], H, W) of every module; all scenes go through at once."""


def look(model: torch.nn.Module, images: Tensor) -> dict[str, list[Tensor]]:
    """Gates, answers and memory of every module, and what the heads receive."""
    seen: dict[str, list[Tensor]] = {"gates": [], "answers": [], "memory": []}

    def of_module(module, given, result):
        seen["gates"].append(result.gates)
        seen["memory"].append(result.memory)

    hooks = []
    for module in model.decoder.modules_in_order:
        hooks.append(module.register_forward_hook(of_module))
        hooks.append(
            module.experts.register_forward_hook(
                lambda m, g, result: seen["answers"].append(result)
            )
        )
    features = model.decoder(model.backbone(images)).features
    for hook in hooks:
        hook.remove()
    return {**seen, "features": list(features.values())}


def colours(maps: Tensor) -> np.ndarray:
    """Three principal components of (S, D, H, W) as bytes (S, H, W, 3): one basis for all the scenes."""
    scenes, _, height, width = maps.shape
    vectors = maps.movedim(1, -1).flatten(0, 2)  # (S·H·W, D)
    vectors = vectors - vectors.mean(dim=0)
    directions = (
        torch.linalg.eigh(vectors.T @ vectors).eigenvectors[:, -3:].flip(1)
    )  # (D, 3), the largest first
    largest = directions.gather(
        0, directions.abs().argmax(dim=0, keepdim=True)
    )  # (1, 3): an eigenvector has no sign
    shades = vectors @ (directions * largest.sign())  # (S·H·W, 3)
    some = shades[:: max(1, len(shades) // 100_000)]
    low, high = torch.quantile(some, torch.tensor([0.02, 0.98]), dim=0)  # (3,) each
    shades = ((shades - low) / (high - low).clamp(min=1e-9)).clamp(0, 1)
    return (255 * shades).round().byte().reshape(scenes, height, width, 3).numpy()


def pictures(
    model: torch.nn.Module, samples: dict[str, Tensor], chosen: list[int]
) -> dict[str, np.ndarray]:
    """Everything that is kept of the chosen scenes."""
    images = samples["image"][chosen]
    seen = look(model, images)
    gates = torch.zeros(
        len(chosen), len(seen["gates"]), *seen["gates"][-1].shape[1:]
    )  # (S, L, T, K + 1, H, W)
    for number, of_module in enumerate(seen["gates"]):
        gates[:, number, :, : of_module.shape[2]] = of_module
    answers = [
        [colours(answer[:, n]) for n in range(answer.shape[1])]
        for answer in seen["answers"]
    ]
    memory = seen["memory"][-1]
    person = F.avg_pool2d(
        person_in(samples)[chosen], images.shape[-1] // gates.shape[-1]
    )  # (S, H, W)
    rows, columns = np.unravel_index(
        person.flatten(1).argmax(dim=1).numpy(), person.shape[1:]
    )
    scene = torch.arange(len(chosen))

    def there(maps: list[Tensor]) -> np.ndarray:
        stacked = torch.stack(maps, dim=1)  # (S, L, ..., H, W)
        return stacked[scene, ..., rows, columns].half().numpy()

    return {
        "token": np.stack([rows, columns], axis=1),
        "token_answers": there(seen["answers"]),
        "token_gates": there(list(gates.unbind(1))),
        "token_memory": there(seen["memory"]),
        "scenes": np.array(chosen),
        "image": np.stack(
            [to_rgb("image", denormalise(image)) for image in images]
        ),
        "semseg": samples["semseg"][chosen].byte().numpy(),
        "gates": (255 * gates).round().byte().numpy(),
        "answers": np.moveaxis(np.array(answers), 2, 0),  # (S, L, K, H, W, 3)
        "memory": np.stack(
            [colours(memory[:, t]) for t in range(memory.shape[1])], axis=1
        ),
        "features": np.stack(
            [colours(feature) for feature in seen["features"]], axis=1
        ),
    }


def along_depth(
    model: torch.nn.Module, seen: dict[str, list[Tensor]]
) -> dict[str, np.ndarray]:
    """The recurrence of Eqs. 2 and 4, unrolled: what each module adds, and what is left of it at the end."""
    modules = model.decoder.modules_in_order
    K = modules[0].count
    told: dict[str, list] = {
        key: []
        for key in ("momentum", "memory_gate", "norm_experts", "norm_memory")
    }
    later: dict[str, list] = {
        key: [] for key in ("weight", "weight_std", "norm_at_end")
    }
    shares, keeps = [], []
    for module, gates, answers, memory in zip(
        modules, seen["gates"], seen["answers"], seen["memory"], strict=True
    ):
        share = torch.einsum(
            "btkhw,bkdhw->btdhw", gates[:, :, :K], answers
        )  # (B, T, D, H, W)
        gate = gates[:, :, K:].sum(dim=2, keepdim=True)  # (B, T, 1, H, W)
        shares.append(share)
        if module.momentum is not None:
            keeps.append(
                gate + module.momentum[:, None, None, None]
            )  # what is left of the memory before
            told["momentum"].append(module.momentum)
        told["memory_gate"].append(mean(gate))
        told["norm_experts"].append(mean(share.norm(dim=2)))
        told["norm_memory"].append(mean(memory.norm(dim=2)))
    weight, rebuilt = torch.ones_like(gate), 0
    for number in reversed(range(len(shares))):
        at_end = weight * shares[number]  # (B, T, D, H, W)
        rebuilt = rebuilt + at_end
        later["weight"].insert(0, mean(weight))
        later["weight_std"].insert(0, weight.std(dim=(0, 2, 3, 4)))
        later["norm_at_end"].insert(0, mean(at_end.norm(dim=2)))
        weight = weight * keeps[number - 1] if number else weight
    scale = seen["memory"][-1].abs().max().item()
    torch.testing.assert_close(
        rebuilt, seen["memory"][-1], rtol=0, atol=1e-4 * scale
    )
    return {
        key: torch.stack(values).numpy() for key, values in (told | later).items()
    }


def mean(values: Tensor) -> Tensor:
    """Mean over everything but the tasks."""
    return values.transpose(0, 1).flatten(1).mean(dim=1)  # (T,)


def of_gates(all_gates: list[Tensor], K: int) -> dict[str, np.ndarray]:
    """How the gates (B, T, K [+ 1], H, W) of every module vary, and what their best 1 and best 2 would need."""
    told: dict[str, list] = {
        key: [] for key in ("mean_gates", "variance", "union", "kept")
    }
    for gates in all_gates:
        average = gates.mean(dim=(0, 3, 4))  # (T, K [+ 1])
        told["mean_gates"].append(F.pad(average, (0, K + 1 - average.shape[1])))
        centred = gates - average[:, :, None, None]
        scene = centred.mean(dim=(3, 4), keepdim=True)
        place = centred.mean(dim=0, keepdim=True)
        parts = (scene, place, centred - scene - place)
        told["variance"].append(
            torch.stack(
                [(part**2).mean(dim=(0, 3, 4)).sum(dim=1) for part in parts], dim=1
            )
        )  # (T, 3)
        last = gates.movedim(2, -1)  # (B, T, H, W, K [+ 1])
        masks = [top_k_mask(last, k) for k in (1, 2)]
        needed = [
            mask[..., :K].any(dim=1).sum(dim=-1) for mask in masks
        ]  # (B, H, W); the memory is no work
        told["union"].append(
            torch.stack(
                [
                    torch.bincount(n.flatten(), minlength=K + 1) / n.numel()
                    for n in needed
                ]
            )
        )  # (2, K + 1)
        told["kept"].append(
            torch.stack([mean((last * mask).sum(dim=-1)) for mask in masks])
        )  # (2, T)
    arrays = {key: torch.stack(values).numpy() for key, values in told.items()}
    return arrays | {
        key: np.swapaxes(arrays[key], 0, 1) for key in ("union", "kept")
    }


def exchanged(
    model: torch.nn.Module, samples: dict[str, Tensor], tasks: me.TaskSet
) -> np.ndarray:
    """Losses (exchanges, T) on the validation scenes, with exchanged gates in all modules."""
    criterion = me.MultiTaskLoss(tasks, edge_positive_weight=0.8)
    rows = []
    for exchange in EXCHANGES.values():
        hooks = [
            module.gates.register_forward_hook(
                lambda m, given, logits, exchange=exchange: exchange(
                    logits.softmax(dim=2)
                ).log()
            )
            for module in model.decoder.modules_in_order
        ]
        _, losses = criterion(model(samples["image"]).predictions, samples)
        rows.append([losses[name].item() for name in tasks.names])
        for hook in hooks:
            hook.remove()
    return np.array(rows)


def person_in(samples: dict[str, Tensor]) -> Tensor:
    """Where there is a person: (B, H, W), 0 or 1."""
    parts = samples["human_parts"]  # (B, H, W)
    return ((parts > 0) & (parts != IGNORE)).float()


def choose_scenes(samples: dict[str, Tensor]) -> list[int]:
    """Of the scenes in which a person covers 2 % of the picture, those with the largest other things."""
    classes, person = (
        samples["semseg"],
        person_in(samples).mean(dim=(1, 2)),
    )  # (B, H, W), (B,)
    room = [
        DOLLHOUSE_CLASSES.index(name)
        for name in ("wall", "floor", "ceiling", "person")
    ]
    things = (
        (~torch.isin(classes, torch.tensor([*room, IGNORE])))
        .float()
        .mean(dim=(1, 2))
    )  # (B,)
    order = things.where(person > 0.02, -1).argsort(descending=True, stable=True)
    return order[:SCENES].tolist()


def trained(folder: Path) -> torch.nn.Module:
    """The network of a run's last checkpoint."""
    model = make_model(load_recipe(folder), for_training=False)
    weights, _ = checkpoint.load(checkpoint.latest(folder / "checkpoints"))
    model.load_state_dict(weights)
    return model.eval()


def main() -> None:
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/taskexpert_128")
    recipe = load_recipe(folder)
    model = trained(folder)
    where = recipe
    if "--root" in sys.argv:  # the data were moved since
        where = dataclasses.replace(
            recipe, root=sys.argv[sys.argv.index("--root") + 1]
        )
    validation = make_validation_set(where)
    samples = next(iter(make_loader(validation, len(validation), train=False)))
    with torch.no_grad():
        seen = look(model, samples["image"])
        content = {
            **pictures(model, samples, choose_scenes(samples)),
            **along_depth(model, seen),
            **of_gates(seen["gates"], model.decoder.modules_in_order[0].count),
            "exchanged": exchanged(model, samples, recipe.task_set),
        }
    content = {
        key: value.astype(np.float32) if value.dtype == float else value
        for key, value in content.items()
    }
    assert content.keys() == KEYS.keys()
    path = HERE / "taskexpert_inside.npz"
    np.savez_compressed(path, **content)
    told = {
        "made_by": f"python book/results/{Path(__file__).name} runs/{folder.name}",
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "data_command": recipe.data_command,
        "tasks": recipe.task_set.names,
        "exchanges": list(EXCHANGES),
        "keys": KEYS,
    }
    made = record(folder)
    made["command"] = made["command"].replace("__main__.py", "mlore-edu")
    write("taskexpert_inside", told | made)


if __name__ == "__main__":
    main()
