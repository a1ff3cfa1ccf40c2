"""Measure how the tasks' gradients agree in MLoRE, and write chapter06.json (chapter 6).

    python book/results/make_chapter06.py

Takes the networks of `make_mlore_sweeps.py others` with the generic path's gradient stopped and not stopped, three
seeds each, and trains those that are not there (about two minutes each). In every network, and in untrained ones, the
switch is then set both ways: the gradients differ by it alone.
"""

import dataclasses
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from make_mlore_sweeps import FULL, mlore
from record import HERE
from sweeps import DATA, Configuration, one_machine, prepare, run, trained, write

import mlore_edu as me
from mlore_edu.data.loaders import make_loader
from mlore_edu.decoders.mlore import MLoREModule
from mlore_edu.training.recipe import load_recipe
from mlore_edu.training.setup import make_model, make_validation_set

SEEDS = (0, 1, 2)
TRAINED = {"stopped": FULL, "not stopped": mlore(stop_gradient=False)}
TASKS = me.DOLLHOUSE.names
BATCH = 16


def modules_of(model: torch.nn.Module) -> list[MLoREModule]:
    """The modules of all scales."""
    return [m for m in model.modules() if isinstance(m, MLoREModule)]


def set_stop(model: torch.nn.Module, stop: bool) -> None:
    """Stop the gradient of every generic path, or let it pass."""
    for module in modules_of(model):
        module.options = dataclasses.replace(module.options, stop_gradient=stop)


def gradients(
    model: torch.nn.Module, batch: dict
) -> dict[str, dict[str, torch.Tensor]]:
    """Each task's gradient as one long vector: at the maps of scales 2 to 4, in the backbone, in the generic paths."""
    maps: list[torch.Tensor] = []
    hook = model.backbone.register_forward_hook(
        lambda module, images, output: maps.extend(output)
    )
    torch.manual_seed(0)  # the same noise in the gates, whatever the switch
    predictions = model(batch["image"]).predictions
    hook.remove()
    criterion = me.MultiTaskLoss(me.DOLLHOUSE, edge_positive_weight=0.8)
    _, losses = criterion(predictions, batch)
    places = {
        "maps": maps[1:],
        "backbone": list(model.backbone.parameters()),
        "generic": [module.generic.weight for module in modules_of(model)],
    }
    found: dict[str, dict[str, torch.Tensor]] = {place: {} for place in places}
    for task in TASKS:
        for place, leaves in places.items():
            parts = torch.autograd.grad(losses[task], leaves, retain_graph=True)
            found[place][task] = torch.cat([part.flatten() for part in parts])
    return found


def measure(model: torch.nn.Module, batches: Iterable[dict]) -> dict:
    """Cosines between the tasks, averaged over batches; on the diagonal, of a task with itself on the next batch."""
    model.train()  # BatchNorm and noise as in training
    result = {}
    for name, stop in (("stopped", True), ("not stopped", False)):
        set_stop(model, stop)
        by_batch = [gradients(model, batch) for batch in batches]
        result[name] = {}
        for place in by_batch[0]:
            unit = torch.stack(
                [
                    F.normalize(torch.stack([g[place][t] for t in TASKS]), dim=1)
                    for g in by_batch
                ]
            )  # (batches, T, numbers)
            cosines = torch.einsum("bsn,btn->st", unit, unit) / len(unit)
            again = (unit * unit.roll(1, dims=0)).sum(2).mean(0)  # (T,)
            if place != "maps":  # of other images: no vector of the same space
                cosines = cosines.diagonal_scatter(again)
            result[name][place] = [
                [round(value, 4) for value in row] for row in cosines.tolist()
            ]
        result[name]["length"] = [
            round(
                sum(g["maps"][task].norm().item() for g in by_batch)
                / len(by_batch),
                6,
            )
            for task in TASKS
        ]
    return result


def measure_run(name: str, configuration: Configuration, seed: int) -> dict:
    """Train one network, if it is not there, and measure it untrained and trained."""
    told = run(configuration, seed)
    recipe = load_recipe(configuration.folder(seed))
    scenes = make_loader(make_validation_set(recipe), BATCH, train=False)
    batches = [batch for batch in scenes if len(batch["image"]) == BATCH]
    torch.manual_seed(seed)
    model = make_model(recipe, for_training=False)
    measured = {}
    if name == "stopped":  # untrained, there is nothing else to tell them apart
        measured["untrained"] = measure(model, batches)
    measured["trained"] = measure(trained(configuration, seed), batches)
    kept = ("seed", "command", "commit", "metrics", "made_with")
    return {
        "trained_with": name,
        **{key: told[key] for key in kept},
        "images": BATCH * len(batches),
        "measured": measured,
    }


def main() -> None:
    prepare()
    runs = []
    for name, configuration in TRAINED.items():
        for seed in SEEDS:
            runs.append(measure_run(name, configuration, seed))
            print(f"{len(runs)} of {len(TRAINED) * len(SEEDS)}", flush=True)
    content = {
        "command": "python book/results/make_chapter06.py",
        **one_machine(runs),
        "data_command": f"mlore-edu {DATA}",
        "tasks": list(TASKS),
        "runs": runs,
    }
    write(HERE / "chapter06.json", content)


if __name__ == "__main__":
    main()
