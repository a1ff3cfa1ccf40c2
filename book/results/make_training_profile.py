"""Find where a training step's time goes, and write training_profile.json (chapter 16).

    OMP_NUM_THREADS=1 python book/results/make_training_profile.py

Three things, without a GPU. How one thread divides its time in a step of MLoRE with ViT-S at 256 x 256: encoder,
decoder, heads and loss there and back, the optimiser, and what reading and augmenting the images costs besides. Which
share of the multiply-accumulates each part has in the papers' models, at their true size, how many operations a step
asks a GPU for, one by one, and what options make of the memory. About three minutes.
"""

import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import torch
from record import HERE
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

import mlore_edu as me
from mlore_edu.data.dollhouse_files import write_dollhouse
from mlore_edu.data.loaders import collate, draw_generator, make_loader
from mlore_edu.data.pascal_context import PASCALContext
from mlore_edu.data.preparation import prepare
from mlore_edu.data.transforms import train_transform
from mlore_edu.training.listing import SAVINGS
from mlore_edu.training.recipes import RECIPES, find_recipe
from mlore_edu.training.rehearsal import blank_batch, rehearse
from mlore_edu.training.run_folder import versions
from mlore_edu.training.setup import make_model

MODEL, SIDE, BATCH, ROUNDS = "mlore_vit_small", 256, 2, 7
PARTS = ("backbone", "decoder", "heads")
COUNTED = tuple(
    name
    for name, recipe in RECIPES.items()
    if name.startswith("pascal_") and "single" not in name
)
VARIED = ("pascal_mlore_vit_base", "pascal_mlore_vit_large")


# --- a step, taken apart ---------------------------------------------------------------------------------------------


def cut(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same values as leaves, at which the way back stops and is taken up again."""
    return {name: t.detach().requires_grad_() for name, t in tensors.items()}


def back(outputs: Mapping[str, Tensor], leaves: Mapping[str, Tensor]) -> None:
    """One stretch of the way back: from the gradients at the leaves into what made the outputs."""
    used = [name for name in outputs if leaves[name].grad is not None]
    torch.autograd.backward(
        [outputs[name] for name in used], [leaves[name].grad for name in used]
    )


def one_step(
    model: me.model.MultiTaskModel,
    loss: me.MultiTaskLoss,
    optimizer: torch.optim.Optimizer,
    batch: Mapping[str, Any],
) -> dict[str, float]:
    """Processor seconds of every stretch of one training step."""
    times = [time.process_time()]

    def done() -> None:
        times.append(time.process_time())

    maps = {str(i): m for i, m in enumerate(model.backbone(batch["image"]))}
    done()
    map_leaves = cut(maps)
    decoded = model.decoder(list(map_leaves.values()))
    done()
    feature_leaves = cut(decoded.features)
    size = batch["image"].shape[-2:]
    predictions = {
        name: me.decoders.base.resize(head(feature_leaves[name]), size)
        for name, head in model.heads.items()
    }
    done()
    prediction_leaves = cut(predictions)
    total, _ = loss(prediction_leaves, batch)
    done()
    total.backward()
    done()
    back(predictions, prediction_leaves)
    done()
    if decoded.balance_loss.requires_grad:
        decoded.balance_loss.backward(retain_graph=True)
    back(decoded.features, feature_leaves)
    done()
    back(maps, map_leaves)
    done()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 10.0)
    optimizer.step()
    optimizer.zero_grad()
    done()
    names = [f"forward {part}" for part in (*PARTS, "loss")]
    names += [f"backward {part}" for part in ("loss", *reversed(PARTS))]
    spent = [after - before for before, after in pairwise(times)]
    return dict(zip([*names, "optimizer"], spent, strict=True))


def loading(source: PASCALContext, first: int) -> dict[str, float]:
    """Processor seconds of reading one batch and of augmenting it."""
    start = time.process_time()
    samples = [source.load((first + i) % len(source)) for i in range(BATCH)]
    read = time.process_time()
    assert source.transform is not None
    collate(
        [
            source.transform(sample, draw_generator(0, first + i))
            for i, sample in enumerate(samples)
        ]
    )
    return {"reading": read - start, "augmenting": time.process_time() - read}


def step_shares() -> dict[str, Any]:
    """Median processor time of every stretch, as shares of the step; loading on top of it."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder, "PASCALContext")
        form = {"size": (375, 500), "difficulty": "full", "train": 8, "val": 1}
        write_dollhouse(root, "pascal_context", **form, progress=False)
        prepare("pascal_context", root, progress=False)
        source = PASCALContext(root, "train", None, train_transform((SIDE, SIDE)))
        batch = next(iter(make_loader(source, BATCH, train=True)))
        rounds = [loading(source, BATCH * turn) for turn in range(ROUNDS)]
    torch.manual_seed(0)
    model = me.build_model(MODEL, me.PASCAL_CONTEXT, (SIDE, SIDE)).train()
    optimizer = torch.optim.Adam(model.parameters(), 2e-5)
    steps = [
        one_step(model, me.MultiTaskLoss(me.PASCAL_CONTEXT), optimizer, batch)
        for _ in range(ROUNDS)
    ]
    middle = {name: median(step[name] for step in steps) for name in steps[0]}
    whole = sum(middle.values())
    beside = {name: median(turn[name] for turn in rounds) for name in rounds[0]}
    return {
        "model": MODEL,
        "img_size": [SIDE, SIDE],
        "batch_size": BATCH,
        "precision": "fp32",
        "shares": {name: round(t / whole, 4) for name, t in middle.items()},
        "loading": {name: round(t / whole, 4) for name, t in beside.items()},
    }


# --- the papers' models at their true size ---------------------------------------------------------------------------


class Calls(TorchDispatchMode):
    """Count the operations that compute: a view of a tensor asks the device for nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        is_view = func is torch.ops.aten._unsafe_view.default or any(
            r.alias_info is not None and not r.alias_info.is_write
            for r in func._schema.returns
        )
        self.count += func.namespace == "aten" and not is_view
        return func(*args, **(kwargs or {}))


def calls_of_a_step(name: str) -> dict[str, int]:
    """Operations of one training step of a recipe, on tensors without content."""
    recipe = replace(find_recipe(name), pretrained=False)
    with torch.device("meta"):
        model = make_model(recipe).train()
    loss = me.MultiTaskLoss(recipe.task_set)
    with FakeTensorMode(allow_non_fake_inputs=True):
        model.to_empty(device="cpu")
        batch = blank_batch(recipe)
        with Calls() as there:
            output = model(batch["image"])
            total = loss(output.predictions, batch)[0] + output.balance_loss
        with Calls() as again:
            total.backward()
    tensors = sum(p.requires_grad for p in model.parameters())
    return {
        "forward": there.count,
        "backward": again.count,
        "weight_tensors": tensors,
    }


def macs_by_part(name: str) -> dict[str, int]:
    """Multiply-accumulates of the forward pass on one image."""
    recipe = find_recipe(name)
    with torch.device("meta"):
        model = me.build_model(recipe.model, recipe.task_set, recipe.img_size)
        cost = me.count(model, recipe.img_size)
    return {part: cost.by_module[part].macs for part in PARTS}


def budgets(name: str) -> dict[str, dict[str, int]]:
    """What a step would hold on a GPU, with each of the options that save memory."""
    recipe = find_recipe(name)
    return {
        words: asdict(rehearse(replace(recipe, **changes)))
        for words, changes in SAVINGS.items()
    }


def main() -> None:
    torch.set_num_threads(1)
    models = {
        name: {"macs": macs_by_part(name), "calls": calls_of_a_step(name)}
        for name in COUNTED
    }
    content = {
        **versions(),
        "step": step_shares(),
        "models": models,
        "budgets": {name: budgets(name) for name in VARIED},
    }
    (HERE / "training_profile.json").write_text(
        json.dumps(content, indent=1) + "\n"
    )
    print(json.dumps(content["step"], indent=1))


if __name__ == "__main__":
    main()
