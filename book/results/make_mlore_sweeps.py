"""Train the sweeps behind MLoRE's tables on Dollhouse; write mlore_sweeps.json, mlore_routing.json
and mlore_predictions.png (chapters 6, 7 and 9).

    python book/results/make_mlore_sweeps.py table2
    python book/results/make_mlore_sweeps.py all --seeds 3 --workers 2

Renders data/dollhouse_64 if it is not there, and trains in runs/mlore_sweeps, one thread a run. A configuration that
several sweeps share is trained once; what is in the file or in the run folders already is not made again, so an
interrupted sweep goes on where it was. One run takes one to three minutes of one core, all of them about four hours.
The single-task runs behind Δm are chapter 3's (make_chapter03.py), which have the same data and the same budget.
"""

import torch
from record import HERE
from sweeps import (
    Configuration,
    arguments,
    prepare,
    read,
    train,
    trained,
    write,
)

from mlore_edu.data.loaders import make_loader
from mlore_edu.data.transforms import denormalise
from mlore_edu.evaluation import decode
from mlore_edu.pictures import panel
from mlore_edu.training.recipe import load_recipe
from mlore_edu.training.setup import make_validation_set

RECORD = HERE / "mlore_sweeps.json"


def mlore(**options) -> Configuration:
    """MLoRE with the options of vit_nano (width 32, ranks 2 to 16, R = 8), but for those given."""
    return Configuration("mlore", options)


FULL = mlore()
LORE = {"generic": False, "task_experts": False}
CONV = {**LORE, "experts_kind": "conv"}
NO_GENERIC = mlore(generic=False)

SWEEPS: dict[str, dict[str, Configuration]] = {
    # Rows bear the names of the paper's rows. The ranks of vit_nano are an eighth of the paper's.
    "table2": {
        "Baseline": Configuration("baseline"),
        "Baseline + MoE": mlore(**CONV),
        "Baseline + LoRE": mlore(**LORE),
        "+ GC": mlore(task_experts=False),
        "+ SPE": FULL,
    },
    "pictures": {"Baseline": Configuration("baseline"), "MLoRE": FULL},
    "routing": {"with the generic path": FULL, "without": NO_GENERIC},
    "table4": {
        "basic": mlore(router="basic"),
        "basic+pos.": FULL,
        "only pos.": mlore(router="position"),
        "w/o sample-dep": mlore(router="static"),
    },
    "table3": {
        "2/2": mlore(min_rank=2, max_rank=2),
        "2/16": FULL,
        "16/16": mlore(min_rank=16, max_rank=16),
    },
    "supplement3": {
        "0": mlore(experts=0),
        "5": mlore(experts=5),
        "10": mlore(experts=10),
        "15": FULL,
        "20": mlore(experts=20),
    },
    "supplement4": {
        "3": mlore(k=3),
        "6": mlore(k=6),
        "9": FULL,
        "12": mlore(k=12),
        "15": mlore(k=15),
    },
    "supplement5": {
        "MLoRE": FULL,
        "MLoRE, no balance": mlore(balance_weight=0),
        "LoRE": mlore(**LORE),
        "LoRE, no balance": mlore(**LORE, balance_weight=0),
        "MoE": mlore(**CONV),
        "MoE, no balance": mlore(**CONV, balance_weight=0),
    },
    "supplement1": {"1": mlore(modules=1), "2": FULL, "3": mlore(modules=3)},
    # Low ranks as shares of the width: 16 and 128 of the paper's 640 are 0.8 and 6.4 of 32.
    "supplement2": {
        "rank 1": mlore(generic_rank=1),
        "rank 6": mlore(generic_rank=6),
        "plain 3×3": FULL,
    },
    # No table of the paper: how strong the gates' noise is before training. ln 2 is softplus(0), as in Shazeer et al.
    "noise": {
        "ln 2": mlore(noise_start=0.6931),
        "0.2": mlore(noise_start=0.2),
        "0.05": FULL,
        "off": mlore(noise=False),
    },
    # No table of the paper: the stopped gradient, the two kinds of MoE, the released code's choices.
    "others": {
        "gradient stopped": FULL,
        "gradient not stopped": mlore(stop_gradient=False),
        "released": mlore(variant="released"),
        "MoE decoder of Sec. 3.2": Configuration("moe"),
        "MoE decoder, no noise": Configuration("moe", {"noise": False}),
    },
}
ALIASES = {
    "fig3": ("supplement3", "supplement4"),
    "all": tuple(SWEEPS),
}


def routing(configuration: Configuration, seed: int) -> dict:
    """How a trained network uses its experts on the validation images, for every module."""
    recipe = load_recipe(configuration.folder(seed))
    model = trained(configuration, seed)
    images = make_loader(make_validation_set(recipe), 50, train=False)
    with torch.no_grad():
        batches = [model(batch["image"]).routing for batch in images]
    modules = {}
    for name in batches[0]:
        gates = torch.cat([batch[name] for batch in batches])  # (images, T, N)
        tasks = (gates > 0).sum(dim=1)  # (images, N): how many tasks use an expert
        counts = (tasks[..., None] == torch.arange(gates.shape[1] + 1)).sum(
            dim=0
        )  # (N, T + 1)
        modules[name] = {
            "mean_gate": [
                [round(gate, 4) for gate in row]
                for row in gates.mean(dim=0).tolist()
            ],
            "active_images": (gates > 0).sum(dim=0).tolist(),  # (T, N)
            "images_by_tasks": counts.tolist(),
        }
    return {
        "key": configuration.key,
        "seed": seed,
        "images": len(gates),
        "modules": modules,
    }


def pictures() -> None:
    """Draw what the recorded baseline and MLoRE of seed 0 say of two validation scenes."""
    networks = {"baseline": SWEEPS["table2"]["Baseline"], "MLoRE": FULL}
    recipe = load_recipe(FULL.folder(0))
    scenes = next(iter(make_loader(make_validation_set(recipe), 100, train=False)))
    people = ((scenes["human_parts"] > 0) & (scenes["human_parts"] < 255)).sum(
        dim=(1, 2)
    )
    chosen = people.topk(
        2
    ).indices  # the scenes with the largest people show the most
    answers = {"label": scenes}
    for name, configuration in networks.items():
        model = trained(configuration, 0)
        with torch.no_grad():
            answers[name] = decode(
                model(scenes["image"]).predictions, recipe.task_set
            )
    rows = [
        {"image": denormalise(scenes["image"][index])}
        | {task: source[task][index] for task in recipe.task_set.names}
        for index in chosen.tolist()
        for source in answers.values()
    ]
    panel(rows, list(answers) * len(chosen), side=128).save(
        HERE / "mlore_predictions.png", optimize=True
    )


def main() -> None:
    chosen = arguments(__doc__, [*SWEEPS, *ALIASES])
    prepare()
    names = list(ALIASES.get(chosen.sweep, (chosen.sweep,)))
    command = "python book/results/make_mlore_sweeps.py all"
    train(RECORD, command, SWEEPS, names, range(chosen.seeds), chosen.workers)
    if "routing" in names:
        runs = [
            routing(configuration, seed)
            for configuration in SWEEPS["routing"].values()
            for seed in range(chosen.seeds)
        ]
        recorded = read(RECORD)
        content = {
            "command": "python book/results/make_mlore_sweeps.py routing",
            **{
                name: recorded[name]
                for name in ("hardware", "versions", "data_command")
            },
            "commit": next(
                r["commit"] for r in recorded["runs"] if r["key"] == FULL.key
            ),
            "runs": runs,
        }
        write(HERE / "mlore_routing.json", content)
    if "pictures" in names:
        pictures()


if __name__ == "__main__":
    main()
