"""The papers' recipes say what the papers say: every field against the settings typed in from them, and a step of each.

At full size every model is built without contents (on torch's meta device). A real step is taken at a reduced size: two
images of 64×64 or 64×96, the encoder replaced by the smallest of its family, the decoder's widths by small ones; the
losses, the optimiser and everything else are the recipe's own. Recipes that are alike after that share a step.
"""

import csv
import dataclasses
import re
from functools import cache
from pathlib import Path

import pytest
import torch

from mlore_edu import published
from mlore_edu.comparison import METHODS, PRINTED_BACKBONES, paper_rows
from mlore_edu.errors import UserError
from mlore_edu.losses import MultiTaskLoss
from mlore_edu.training.budget import stored_budget
from mlore_edu.training.engine import Training
from mlore_edu.training.recipe import FREE_FIELDS, Recipe
from mlore_edu.training.recipes import RECIPES
from mlore_edu.training.recipes_papers import paper_recipes, settings_of
from mlore_edu.training.rehearsal import blank_batch
from mlore_edu.training.setup import make_model

PAPERS = {recipe.name: recipe for recipe in paper_recipes()}
SMALLEST = {"vit_base": "vit_small", "vit_large": "vit_small", "swin_base": "swin_tiny", "swin_large": "swin_tiny"}
NARROW = {
    "baseline": {"channels": 16},
    "mlore": {"channels": 16, "min_rank": 2, "max_rank": 16, "task_rank": 4},
    "taskexpert": {"channels": 16, "expert_width": 16, "gate_width": 4},
    "tif": {"channels": 16, "high_width": 16, "low_width": 16},
}
DECODER = {
    "mlore": {
        "modules": lambda decoder: len(decoder.scales[0]),
        "experts": lambda decoder: len(decoder.scales[0][0].options.ranks),
        "k": lambda decoder: decoder.scales[0][0].options.k,
        "channels": lambda decoder: decoder.scales[0][0].task_experts.up.out_channels // len(decoder.task_names),
        "lowest rank": lambda decoder: min(decoder.scales[0][0].options.ranks),
        "highest rank": lambda decoder: max(decoder.scales[0][0].options.ranks),
        "task rank": lambda decoder: decoder.scales[0][0].task_experts.down.out_channels // len(decoder.task_names),
        "balance weight": lambda decoder: decoder.balance_weight,
        "softmax first": lambda decoder: "yes" if decoder.scales[0][0].options.softmax_first else "no",
    },
    "taskexpert": {
        "modules": lambda decoder: len(decoder.modules_in_order),
        "experts": lambda decoder: decoder.modules_in_order[0].gates.layers[-1].out_channels // len(decoder.task_names),
        "channels": lambda decoder: decoder.channels,
        "expert width": lambda decoder: decoder.modules_in_order[0].experts.project.weight.shape[1],
        "gate width": lambda decoder: decoder.modules_in_order[0].gates.layers[-1].weight.shape[1],
    },
    "tif": {
        "fused scales": lambda decoder: sum(fusion.fused for fusion in decoder.fusions),
        "distilled scales": lambda decoder: len(decoder.distillers),
        "channels": lambda decoder: decoder.fusions[0].reduce[0].out_channels,
        "low width": lambda decoder: decoder.fusions[3].reduce[0].out_channels,
    },
}
"""How each of the decoder's settings is read off a model that was built."""


def as_typed(value):
    """A field's value as settings.csv writes it."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return " ".join(map(str, value)) if isinstance(value, tuple) else value


def of_recipe(recipe):
    """Everything that a recipe itself, without its decoder, sets for its learning; by the names of settings.csv."""
    others = {"name", "model", "model_options", "data", "tasks", "seed", "loss_weights", "boundary_protocol", "weights"}
    faster = {"accumulation", "compile", "channels_last", "checkpointing", "fused_optimizer", "ema", "augment_on_gpu"}
    fields = {field.name for field in dataclasses.fields(Recipe)} - FREE_FIELDS - others - faster
    fields -= {"momentum"} if recipe.optimizer != "sgd" else set()
    weights = MultiTaskLoss(recipe.task_set, dict(recipe.loss_weights)).loss_weights
    found = {name: as_typed(getattr(recipe, name)) for name in fields}
    return found | {f"loss weight of {task}": weight for task, weight in weights.items()}


def disagreements(recipe):
    """Settings in which a recipe is not as typed in, or that only one of them has."""
    typed = {name: setting.value for name, setting in settings_of(recipe).items() if not name.startswith("decoder ")}
    ours = of_recipe(recipe)
    return sorted(name for name in ours.keys() | typed.keys() if ours.get(name, "-") != typed.get(name, "-"))


@cache
def built(model, data, tasks, img_size, options):
    recipe = Recipe("built", data=data, tasks=tasks, img_size=img_size, model=model, model_options=options)
    with torch.device("meta"):
        return make_model(recipe)


def full_size(recipe):
    return built(recipe.model, recipe.data, recipe.tasks, recipe.img_size, recipe.model_options)


# --- what is there ---------------------------------------------------------------------------------------------------


def test_every_model_that_the_papers_report_with_our_backbones_has_a_recipe():
    decoders = {method: decoder for decoder, method in METHODS.items() if decoder in NARROW}
    backbones = {printed: backbone for backbone, printed in PRINTED_BACKBONES.items()}
    seen, missing = 0, set()
    for place, data in (("pascal", "pascal_context"), ("nyud", "nyud_v2")):
        for row in [row for decoder in decoders.values() for row in paper_rows(data, f"{decoder}_vit_large")]:
            if row.method in decoders and row.backbone in backbones:
                seen += 1
                missing |= {f"{place}_{decoders[row.method]}_{backbones[row.backbone]}"} - set(PAPERS)
    assert not missing
    assert seen > 20


def test_a_name_says_data_decoder_backbone_and_variant_and_all_of_it_is_true():
    assert len(PAPERS) == len(list(paper_recipes()))
    assert PAPERS.items() <= RECIPES.items()
    tasks = "semseg|human_parts|saliency|normals|depth|edge"
    for name, recipe in PAPERS.items():
        words = (
            rf"(pascal|nyud)_(?:(mlore|taskexpert|tif|baseline)|single_({tasks}))_([a-z0-9]+(?:_[a-z]+?)?)(_released)?"
        )
        place, decoder, task, backbone, released = re.fullmatch(words, name).groups()
        assert recipe.data == {"pascal": "pascal_context", "nyud": "nyud_v2"}[place]
        assert recipe.model == f"{decoder or 'baseline'}_{backbone}"
        assert recipe.tasks == ((task,) if task else ())
        assert recipe.model_options == ((("variant", "released"),) if released else ())


def test_every_task_of_the_ablations_has_its_single_task_model_trained_as_the_multi_task_baseline():
    for place, backbone in (("pascal", "vit_base"), ("nyud", "vit_base"), ("nyud", "swin_tiny")):
        together = PAPERS[f"{place}_baseline_{backbone}"]
        for task in together.task_set.names:
            alone = PAPERS[f"{place}_single_{task}_{backbone}"]
            assert set(together.differences(alone)) == {"name", "tasks"}


# --- the settings of the papers --------------------------------------------------------------------------------------


def test_every_field_is_as_the_papers_settings_were_typed_in():
    assert {name: wrong for name, recipe in PAPERS.items() if (wrong := disagreements(recipe))} == {}


def test_changing_any_field_of_a_recipe_or_any_typed_setting_is_noticed(monkeypatch):
    recipe = PAPERS["nyud_tif_swin_tiny"]
    other = {"optimizer": "adam", "img_size": (32, 32), "pretrained": False, "augmentation": "none", "clip_norm": 1.0}
    other |= {"saliency_variant": "released", "precision": "bf16", "loss_weights": (("edge", 2.0),)}
    names = [name for name in of_recipe(recipe) if not name.startswith("loss weight of ")]
    for name in [*names, "loss_weights"]:
        value = other[name] if name in other else getattr(recipe, name) / 2
        value = int(value) if name in ("iterations", "batch_size") else value
        expected = {"loss_weights": ["loss weight of edge"], "optimizer": ["momentum", "optimizer"]}.get(name, [name])
        assert disagreements(dataclasses.replace(recipe, **{name: value})) == expected
    read = published._read
    for changed in published.settings("tif", recipe.data, "swin_tiny"):
        rows = [row | ({"value": "77"} if row["setting"] == changed else {}) for row in read("settings.csv")]
        monkeypatch.setattr(published, "_read", lambda name, rows=rows: rows)
        assert disagreements(recipe) == ([] if changed.startswith("decoder ") else [changed])


@pytest.mark.slow
def test_the_decoders_are_built_as_the_papers_settings_were_typed_in():
    for recipe in PAPERS.values():
        settings = {name: setting for name, setting in settings_of(recipe).items() if name.startswith("decoder ")}
        decoder = recipe.model.partition("_")[0]
        read_off = {f"decoder {name}": read for name, read in DECODER.get(decoder, {}).items()}
        assert set(settings) == set(read_off), recipe.name
        for name, setting in settings.items():
            assert read_off[name](full_size(recipe).decoder) == setting.value, f"{recipe.name}: {name}"


def test_every_typed_row_has_a_source_and_decides_something_for_some_recipe():
    path = Path(published.__file__).parent / "published" / "settings.csv"
    rows = list(csv.DictReader(path.read_text(encoding="utf-8").splitlines()))
    deciding = {(name, setting) for recipe in PAPERS.values() for name, setting in settings_of(recipe).items()}
    for row in rows:
        assert (
            row["setting"],
            published.Setting(published._cell(row["value"]), row["source"], row["status"]),
        ) in deciding
        assert row["status"] in ("stated", "code", "assumed")
        if row["status"] == "stated":
            paper = {"taskexpert": "TaskExpert", "mlore": "MLoRE", "tif": "TIF"}[row["paper"]]
            assert re.match(rf"{paper}, (supplement )?(Sec\.|Fig\.|Table) \d", row["source"])


def test_settings_of_an_unknown_paper_are_a_user_error():
    with pytest.raises(UserError, match="There are no settings of 'invpt'; choose one of taskexpert, mlore"):
        published.settings("invpt", "nyud_v2", "vit_base")
    assert settings_of(RECIPES["dollhouse_baseline_nano"]) == {}


# --- the models and a step -------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_every_model_is_built_at_full_size_with_as_many_parameters_as_its_budget_says():
    for recipe in PAPERS.values():
        parameters = sum(parameter.numel() for parameter in full_size(recipe).parameters())
        assert parameters == stored_budget(recipe).parameters, recipe.name


@pytest.mark.parametrize(
    ("name", "table", "row"),
    [
        ("pascal_taskexpert_vit_small", ("taskexpert", 2), {"variant": "ViT-S"}),
        ("pascal_taskexpert_vit_base", ("taskexpert", 2), {"variant": "ViT-B"}),
        ("pascal_mlore_vit_base_released", ("mlore", 2), {"setting": "+ SPE"}),
        ("pascal_mlore_vit_large_released", ("mlore", 5), {"method": "MLoRE"}),
        ("pascal_mlore_vit_small", ("mlore", 7), {"method": "MLoRE"}),
        ("pascal_baseline_vit_base", ("mlore", 2), {"setting": "Baseline"}),
        ("nyud_tif_swin_large", ("tif", 4), {"method": "TIF"}),
        ("nyud_tif_vit_base", ("tif", 10), {"method": "TIF", "backbone": "ViT-B"}),
    ],
)
def test_the_models_have_the_parameters_that_the_papers_print(name, table, row):
    printed = published.table(*table).row(**row)["parameters"]
    assert stored_budget(PAPERS[name]).parameters / 1e6 == pytest.approx(printed, rel=0.015)


def reduced(recipe):
    decoder, _, backbone = recipe.model.partition("_")
    return dataclasses.replace(
        recipe,
        name="reduced",
        model=f"{decoder}_{SMALLEST.get(backbone, backbone)}",
        model_options=(*recipe.model_options, *NARROW[decoder].items()),
        img_size=(64, 96) if recipe.data == "nyud_v2" else (64, 64),
        batch_size=2,
        pretrained=False,
    )


def random_batch(recipe):
    generator = torch.Generator().manual_seed(0)
    batch = {"meta": [{"id": "noise"}] * recipe.batch_size}
    for name, blank in blank_batch(recipe).items():
        noise = torch.rand(blank.shape, generator=generator)
        batch[name] = (noise > 0.5).to(blank.dtype) if name not in ("image", "depth", "normals") else noise
    return batch


REDUCED = {reduced(recipe): name for name, recipe in RECIPES.items() if name in PAPERS or name.endswith("_512")}


@pytest.mark.slow
@pytest.mark.parametrize("recipe", REDUCED, ids=REDUCED.values())
def test_a_step_of_every_recipe_moves_the_weights_as_its_optimiser_says(recipe):
    torch.manual_seed(0)
    training = Training(make_model(recipe), recipe, torch.device("cpu"))
    task = recipe.task_set.names[0]
    weights = list(training.model.heads[task].parameters())[-1]  # of the prediction itself
    before = weights.detach().clone()
    record = training.step(random_batch(recipe))
    assert set(record["losses"]) == set(recipe.task_set.names)
    assert all(loss > 0 for loss in record["losses"].values())
    slopes = [p.grad.double().norm() for p in training.model.parameters() if p.grad is not None]
    longest = recipe.clip_norm or float("inf")
    assert float(torch.stack(slopes).norm()) == pytest.approx(min(record["gradient_norm"], longest), rel=1e-4)
    slope = weights.grad + recipe.weight_decay * before
    move = slope if recipe.optimizer == "sgd" else slope / (slope.abs() + 1e-8)  # Adam's first step has one length
    torch.testing.assert_close(weights.detach(), before - recipe.lr * move, rtol=0, atol=recipe.lr * 1e-3)
