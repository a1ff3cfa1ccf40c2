"""A recipe is one frozen record: it survives JSON, refuses nonsense in one sentence, and takes command-line options."""

import dataclasses
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlore_edu.errors import UserError
from mlore_edu.tasks import DOLLHOUSE
from mlore_edu.training.recipe import FREE_FIELDS, Recipe, load_recipe, override
from mlore_edu.training.recipes import RECIPES, find_recipe

NANO = RECIPES["dollhouse_baseline_nano"]
FIELDS = {field.name for field in dataclasses.fields(Recipe)}
OPTION_NAMES = st.text().filter(lambda name: name not in FIELDS)
OPTIONS = st.integers() | st.booleans() | st.text() | st.floats(-9, 9)


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_is_stored_under_its_own_name_and_survives_json(name):
    recipe = RECIPES[name]
    assert recipe.name == name
    assert Recipe.from_json(recipe.to_json()) == recipe


@given(
    st.builds(
        dataclasses.replace,
        st.sampled_from(list(RECIPES.values())),
        lr=st.floats(0, 10),
        img_size=st.tuples(st.integers(16, 999), st.integers(16, 999)),
        clip_norm=st.none() | st.floats(0.01, 100),
        model_options=st.lists(st.tuples(OPTION_NAMES, OPTIONS), max_size=3).map(tuple),
    )
)
def test_any_recipe_survives_json(recipe):
    assert Recipe.from_json(recipe.to_json()) == recipe


@pytest.mark.parametrize("text", ["", "[1]", "{}", '{"name": "a", "colour": 1}', '{"name": "a", "lr": "high"}'])
def test_a_stored_recipe_that_makes_no_sense_is_a_user_error(text):
    with pytest.raises(UserError, match="--run FOLDER"):
        Recipe.from_json(text)


def test_the_papers_settings_are_the_facts_pages():
    for name, size in (("pascal_baseline_vit_base", (512, 512)), ("nyud_baseline_vit_base", (448, 576))):
        recipe = RECIPES[name]
        assert (recipe.optimizer, recipe.lr, recipe.weight_decay) == ("adam", 2e-5, 1e-6)
        assert (recipe.iterations, recipe.batch_size, recipe.poly_power, recipe.clip_norm) == (40_000, 4, 0.9, 10.0)
        assert (recipe.augmentation, recipe.drop_path_rate, recipe.pretrained) == ("field", 0.15, True)
        assert recipe.img_size == size
        assert recipe.edge_positive_weight == 0.95


def test_the_learning_rate_falls_along_the_polynomial_from_its_full_value_to_zero():
    recipe = dataclasses.replace(NANO, lr=2.0, iterations=1000, poly_power=0.9)
    assert recipe.learning_rate(0) == 2.0
    assert recipe.learning_rate(250) == pytest.approx(2 * 0.75**0.9)
    assert recipe.learning_rate(1000) == 0.0
    rates = [recipe.learning_rate(iteration) for iteration in range(1001)]
    assert rates == sorted(rates, reverse=True)


def test_naming_no_task_means_all_and_naming_some_keeps_the_data_sets_order():
    assert NANO.task_set == DOLLHOUSE
    assert dataclasses.replace(NANO, tasks=("edge", "depth")).task_set.names == ("depth", "edge")


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"tasks": ("deepth",)}, "deepth"),
        ({"loss_weights": (("deepth", 1.0),)}, "deepth"),
        ({"loss_weights": (("depth", float("nan")),)}, "loss weight of depth is nan"),
        ({"iterations": 0}, "iterations"),
        ({"batch_size": 0}, "batch_size"),
        ({"lr": float("nan")}, "lr"),
        ({"lr": -1.0}, "lr"),
        ({"clip_norm": 0.0}, "clip_norm"),
        ({"eval_interval": 0}, "eval_interval"),
        ({"edge_positive_weight": 1.0}, "edge_positive_weight"),
        ({"workers": 1_000_000}, "at most 256"),
        ({"img_size": (8, 64)}, "img_size"),
        ({"batch_size": 16, "accumulation": 3}, "accumulation"),
        ({"data": "imagenet"}, "imagenet"),
        ({"seed": -1}, "seed"),
        ({"drop_path_rate": 1.0}, "drop_path_rate"),
        ({"model_options": (("img_size", 64),)}, "--img-size"),
    ],
)
def test_a_value_out_of_range_is_a_user_error_that_names_it(changes, named):
    with pytest.raises(UserError, match=named):
        dataclasses.replace(NANO, **changes)


def test_only_fields_that_decide_what_is_learned_count_as_differences():
    moved = dataclasses.replace(NANO, root="/elsewhere", workers=0, log_interval=1, checkpoint_interval=7)
    assert NANO.differences(moved) == []
    assert NANO.differences(dataclasses.replace(NANO, lr=1.0, seed=9)) == ["lr", "seed"]
    assert {field.name for field in dataclasses.fields(Recipe)} >= FREE_FIELDS


def test_an_unknown_recipe_is_answered_with_the_closest_names():
    with pytest.raises(UserError, match=r"'dolhouse_baseline'; did you mean dollhouse_baseline_nano"):
        find_recipe("dolhouse_baseline")
    with pytest.raises(UserError, match=r"'qqq'; 'mlore-edu recipes' lists all"):
        find_recipe("qqq")
    assert find_recipe(NANO.name) is NANO


def test_command_line_options_replace_fields_of_every_type():
    words = (
        "--lr 1e-3 --tasks depth edge --img-size 64 96 --clip-norm None --no-channels-last --batch-size=10 "
        "--accumulation 5 --loss-weights edge 2.5 --model-options channels 48 shared True"
    )
    changed = override(NANO, words.split())
    assert changed == dataclasses.replace(
        NANO,
        lr=1e-3,
        tasks=("depth", "edge"),
        img_size=(64, 96),
        clip_norm=None,
        channels_last=False,
        batch_size=10,
        accumulation=5,  # does not divide the recipe's own 16: the options count together
        loss_weights=(("edge", 2.5),),
        model_options=(("channels", 48), ("shared", True)),
    )
    assert override(NANO, []) == NANO


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ("--iteration 3", "did you mean --iterations"),
        ("3", "no field '3'"),
        ("--lr 1 --iterations x", "'--iterations x' does not fit"),
        ("--img-size 64 --lr 1", "'--img-size 64' does not fit"),
        ("--data coco", "'--data coco' does not fit"),
        ("--iterations 0", "iterations is 0"),
    ],
)
def test_a_wrong_option_is_named_in_one_sentence(arguments, sentence, capsys):
    with pytest.raises(UserError, match=sentence) as caught:
        override(NANO, arguments.split())
    assert "\n" not in str(caught.value)
    assert capsys.readouterr() == ("", "")


def test_help_explains_every_field_and_shows_the_recipes_own_values(capsys):
    with pytest.raises(SystemExit) as caught:
        override(NANO, ["--help"])
    assert caught.value.code == 0
    shown = capsys.readouterr().out
    for field in dataclasses.fields(Recipe):
        assert f"--{field.name.replace('_', '-')}" in shown
    assert "dollhouse_baseline_nano" in shown


def test_a_stored_recipe_that_is_no_text_is_a_user_error(tmp_path):
    (tmp_path / "recipe.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match=r"recipe\.json is damaged .* --run FOLDER"):
        load_recipe(tmp_path)


def test_a_folder_without_a_recipe_is_a_user_error(tmp_path):
    with pytest.raises(UserError, match="give the folder of a run"):
        load_recipe(tmp_path)
    (tmp_path / "recipe.json").write_text(json.dumps(dataclasses.asdict(NANO)))
    assert load_recipe(tmp_path) == NANO


@pytest.mark.parametrize("name", ["dollhouse_mlore_nano", "dollhouse_mlore_nano_64", "dollhouse_moe_nano_64"])
def test_recipes_of_other_decoders_train_exactly_as_the_baselines_do(name):
    baseline = RECIPES[f"dollhouse_baseline_nano{'_64' * name.endswith('_64')}"]
    assert set(baseline.differences(RECIPES[name])) == {"name", "model", "channels_last"}


@pytest.mark.parametrize("decoder", ["mlore", "taskexpert", "tif"])
def test_the_decoders_train_on_dollhouse_at_full_size_exactly_as_the_baseline_does(decoder):
    baseline, recipe = (RECIPES[f"dollhouse_{name}_vit_small_512"] for name in ("baseline", decoder))
    assert set(baseline.differences(recipe)) == {"name", "model", "channels_last"}
    assert (recipe.model, recipe.img_size, recipe.precision) == (f"{decoder}_vit_small", (512, 512), "bf16")
    assert recipe.difficulty == "full"
