"""Exchange the gates of trained networks, and look at their position branches; write chapter07.json (chapter 7).

    python book/results/make_chapter07.py

Uses the networks of make_mlore_sweeps.py, and trains those that are not in runs/mlore_sweeps; the rest takes a minute.
"""

from collections.abc import Callable

import torch
from make_mlore_sweeps import FULL, LORE, NO_GENERIC, mlore, routing
from record import HERE
from sweeps import DATA, Configuration, one_machine, prepare, run, trained, write

import mlore_edu as me
from mlore_edu.data.loaders import make_loader
from mlore_edu.decoders.mlore import MLoREModule
from mlore_edu.decoders.moe import Gating
from mlore_edu.training.recipe import load_recipe
from mlore_edu.training.setup import make_validation_set

CONFIGURATIONS = {
    "experts alone": mlore(**LORE),
    "with task experts": NO_GENERIC,
    "with generic path, too": FULL,
}
SEEDS = (0, 1, 2)

EXCHANGES: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "its own": lambda g: g,
    "another scene's": lambda g: g.roll(1, dims=0),
    "the mean": lambda g: g.mean(dim=0, keepdim=True).expand_as(g),
    "the next task's": lambda g: g.roll(1, dims=1),
    "random experts": lambda g: g.gather(-1, torch.rand(g.shape).argsort(dim=-1)),
}
"""What becomes of the gates (scenes, tasks, experts)."""


def losses(model: torch.nn.Module, scenes: dict, exchange: Callable) -> dict:
    """Loss of every task on the scenes, with exchanged gates."""
    modules = [m for m in model.modules() if isinstance(m, MLoREModule)]
    for module in modules:

        def route(features, original=module.route):
            gating, scale = original(features)
            return Gating(exchange(gating.gates), gating.load), scale

        module.route = route
    torch.manual_seed(0)
    criterion = me.MultiTaskLoss(me.DOLLHOUSE, edge_positive_weight=0.8)
    with torch.no_grad():
        _, by_task = criterion(model(scenes["image"]).predictions, scenes)
    for module in modules:
        del module.route  # the class's own comes back
    return {name: round(loss.item(), 5) for name, loss in by_task.items()}


def places(model: torch.nn.Module) -> dict:
    """How much the weights of every position branch vary over the places, and those that vary most."""
    named = [
        (f"scale {scale}, module {number}", module)
        for scale, modules in enumerate(model.decoder.scales, start=1)
        for number, module in enumerate(modules, start=1)
        if isinstance(module, MLoREModule)
    ]
    maps = {
        name: module.router.branches["position"].weight for name, module in named
    }  # (T, H·W) each
    spreads = {name: weights.std(dim=1).tolist() for name, weights in maps.items()}
    name = max(spreads, key=lambda key: max(spreads[key]))
    task = spreads[name].index(max(spreads[name]))
    strongest = maps[name][task].reshape(8, 8)
    return {
        "spreads": {
            key: [round(s, 4) for s in values] for key, values in spreads.items()
        },
        "strongest": {
            "module": name,
            "task": me.DOLLHOUSE.names[task],
            "weights": [[round(w, 3) for w in row] for row in strongest.tolist()],
        },
    }


def best_correlation(gates: torch.Tensor, turn: torch.Tensor) -> tuple[float, int]:
    """The gate (scenes, gates) that goes most with a number of every scene, and how closely; constant ones are left out."""
    centred, number = gates - gates.mean(dim=0), turn - turn.mean()
    length = centred.norm(dim=0)
    r = (number @ centred / (length * number.norm()).clamp(min=1e-9)).abs()
    r = torch.where(length > 1e-3, r, 0)  # (gates,)
    return r.max().item(), int(r.argmax())


def looks(model: torch.nn.Module, scenes: dict) -> dict:
    """How much each task's gates change from scene to scene, and how they follow the way a room is turned."""
    with torch.no_grad():
        routing = model(scenes["image"]).routing
    turn = scenes["normals"][:, 0].mean(
        dim=(1, 2)
    )  # (scenes,): to the left or right
    shuffles = torch.Generator().manual_seed(0)
    orders = [torch.randperm(len(turn), generator=shuffles) for _ in range(20)]
    told: dict = {"variance": {}, "follows": {}, "by_chance": {}}
    for t, name in enumerate(me.DOLLHOUSE.names):
        gates = torch.cat(
            [g[:, t] for g in routing.values()], dim=1
        )  # (scenes, gates)
        r, best = best_correlation(gates, turn)
        chance = [best_correlation(gates, turn[order])[0] for order in orders]
        told["variance"][name] = round(gates.var(dim=0).sum().item(), 4)
        told["follows"][name] = round(r, 3)
        told["by_chance"][name] = round(sum(chance) / len(chance), 3)
        if name == "normals":
            told["gate"] = [round(gate, 4) for gate in gates[:, best].tolist()]
    return told | {"turn": [round(number, 3) for number in turn.tolist()]}


def examine(title: str, configuration: Configuration, seed: int) -> dict:
    """Everything that is recorded of one network."""
    told = run(configuration, seed)  # trains it, where that was not done
    model = trained(configuration, seed)
    validation = make_validation_set(load_recipe(configuration.folder(seed)))
    scenes = next(iter(make_loader(validation, len(validation), train=False)))
    return {
        "title": title,
        "key": configuration.key,
        "seed": seed,
        "commit": told["commit"],
        "made_with": told["made_with"],
        "losses": {
            name: losses(model, scenes, exchange)
            for name, exchange in EXCHANGES.items()
        },
        **places(model),
        "looks": looks(model, scenes),
    }


def tasks_served(configuration: Configuration, seed: int) -> list[list[float]]:
    """For every module the share of experts that serve 0 to T tasks of an image."""
    run(configuration, seed)  # trains it, where that was not done
    modules = routing(configuration, seed)["modules"].values()
    counts = [
        torch.tensor(module["images_by_tasks"]).sum(dim=0) for module in modules
    ]
    return [
        [round(s, 4) for s in (c / c.sum()).tolist()] for c in counts
    ]  # (T + 1,) each


def main() -> None:
    prepare()
    runs = []
    for title, configuration in CONFIGURATIONS.items():
        for seed in SEEDS:
            runs.append(examine(title, configuration, seed))
            print(f"{title}, seed {seed}", flush=True)
    made_with = one_machine(runs)
    turns = [
        told["looks"].pop("turn") for told in runs
    ]  # the same scenes, each time
    content = {
        "command": "python book/results/make_chapter07.py",
        **made_with,
        "data_command": f"mlore-edu {DATA}",
        "turn": turns[0],
        "served_without_balance": [
            tasks_served(mlore(balance_weight=0), seed) for seed in SEEDS
        ],
        "runs": runs,
    }
    write(HERE / "chapter07.json", content)


if __name__ == "__main__":
    main()
