"""Checkpoints of MLoRE's authors: loaded whole or not at all, and predicting what a naive reading of them predicts."""

import copy

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from released_layout import FULL_SIZE, PASCAL, SMALL_NYUD, SMALL_PASCAL, Reading, make_state, unused
from timm.layers.pos_embed import resample_abs_pos_embed

import mlore_edu as me
from mlore_edu.backbones import read_state_dict
from mlore_edu.errors import UserError
from mlore_edu.released import load_released_mlore, released_model, resize_places, stored_grid
from mlore_edu.reparameterization import fuse

CASES = {
    "PASCAL": (SMALL_PASCAL, {"k": 2, "softmax_first": True, "grid": (4, 4)}),
    "NYUD": (SMALL_NYUD, {"k": 2, "softmax_first": False, "grid": (7, 9)}),
}
"""Sizes of a small checkpoint, and what the data set decides: k = round(0.6 N), order of softmax and choice, grid."""

GRIDS = st.tuples(st.integers(1, 12), st.integers(2, 12))
"""Rows and columns; torch 2.15 resizes maps of one column wrongly, which the library works around and a test cannot."""

BUFFERS = ("running_mean", "running_var", "num_batches_tracked")


@pytest.fixture(scope="module", params=CASES)
def case(request):
    """A float64 state dict, two images, what the naive reading predicts, and the loaded model in evaluation mode."""
    sizes, choices = CASES[request.param]
    state = make_state(dtype=torch.float64, **sizes)
    images = torch.randn(2, 3, *(16 * side for side in choices["grid"]), generator=torch.Generator().manual_seed(1))
    expected = Reading(state, **sizes, **choices).predict(images.double())
    model = released_model(state).double()
    load_released_mlore(state, model)  # once more, now that it holds float64
    return {"state": state, "images": images, "expected": expected, "model": model, "sizes": sizes, "choices": choices}


@pytest.fixture(scope="module")
def pascal():
    return make_state(**SMALL_PASCAL)


@pytest.fixture(scope="module")
def pascal_model(pascal):
    return released_model(pascal)


def largest_difference(predictions, expected):
    """Relative to the largest number of each task's map."""
    assert predictions.keys() == expected.keys()
    return max(float((predictions[n] - expected[n]).abs().max() / expected[n].abs().max()) for n in expected)


@torch.no_grad()
def test_predictions_equal_those_of_the_naive_reading(case):
    assert largest_difference(case["model"](case["images"].double()).predictions, case["expected"]) < 1e-12
    single = copy.deepcopy(case["model"]).float()
    assert largest_difference(single(case["images"]).predictions, case["expected"]) < 1e-5


@torch.no_grad()
@pytest.mark.parametrize("mode", ["precomposed", pytest.param("on_the_fly", marks=pytest.mark.slow)])
def test_the_fused_model_predicts_the_same(case, mode):
    fused = fuse(case["model"], mode=mode)
    assert largest_difference(fused(case["images"].double()).predictions, case["expected"]) < 1e-10
    single = fuse(copy.deepcopy(case["model"]).float(), mode=mode)
    assert largest_difference(single(case["images"]).predictions, case["expected"]) < 1e-5


@torch.no_grad()
def test_the_naive_reading_leaves_no_tensor_unread(case):
    read = set()

    class Watched(dict):
        def __getitem__(self, key):
            read.add(key)
            return super().__getitem__(key)

    # With k = N every expert is used; which ones are left out is the image's choice.
    every = {**case["choices"], "k": len(case["sizes"]["ranks"])}
    Reading(Watched(case["state"]), **case["sizes"], **every).predict(case["images"][:1].double())
    assert all(key.endswith("num_batches_tracked") for key in set(case["state"]) - read)


@pytest.mark.parametrize("name", FULL_SIZE)
def test_the_three_published_checkpoints_fit_to_the_last_key_and_have_the_published_sizes(name):
    state = make_state(device="meta", **FULL_SIZE[name])
    if "ViT-B" in name:
        state |= {key: torch.empty(shape, device="meta") for key, shape in unused(**FULL_SIZE[name]).items()}
    with torch.device("meta"):
        model = released_model({"model": {f"module.{key}": value for key, value in state.items()}, "epoch": 7})
    millions = {"ViT-L PASCAL": 407.69, "ViT-B PASCAL": 259.13, "ViT-L NYUD": 551.63}[name]
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.1)
    options = model.decoder.scales[0][0].options
    assert (options.k, len(options.ranks)) == (9, 15)
    assert options.softmax_first is ("PASCAL" in name)
    assert model.img_size == ((512, 512) if "PASCAL" in name else (448, 576))
    stored = sum(v.numel() for k, v in make_state(device="meta", **FULL_SIZE[name]).items() if not k.endswith(BUFFERS))
    assert stored - sum(p.numel() for p in model.parameters()) == FULL_SIZE[name]["width"]  # the class token's row


@pytest.mark.slow
def test_a_file_as_training_leaves_it_is_read(pascal, pascal_model, tmp_path):
    content = {"model": {f"module.{key}": value for key, value in pascal.items()}, "optimizer": {"state": {}}}
    torch.save({**content, "scheduler": {"last_epoch": 3}, "epoch": 1, "iter_count": 40000}, tmp_path / "best.pth.tar")
    model = released_model(tmp_path / "best.pth.tar")
    assert not model.training
    for key, value in pascal_model.state_dict().items():
        assert torch.equal(value, model.state_dict()[key])
    assert read_state_dict(tmp_path / "best.pth.tar").keys() == pascal.keys()


@pytest.mark.slow
def test_the_order_of_keys_and_the_type_of_numbers_do_not_matter(pascal, pascal_model):
    half = {key: value.half() if value.is_floating_point() else value for key, value in reversed(pascal.items())}
    model = released_model(half)
    for key, value in pascal_model.state_dict().items():
        torch.testing.assert_close(model.state_dict()[key], value.half().to(value.dtype))


@torch.no_grad()
def test_at_another_size_position_embedding_and_position_branch_are_resized(pascal):
    model = released_model(pascal, img_size=(96, 128))  # 6 × 8 tokens instead of 4 × 4
    rows = resample_abs_pos_embed(pascal["backbone.pos_embed"][:, 1:], [6, 8], [4, 4], num_prefix_tokens=0)
    assert torch.equal(model.backbone.net.pos_embed, rows)
    weight = model.decoder.scales[2][1].router.branches["position"].weight  # (T, 48)
    for task, resized in zip(("semseg", "human_parts", "sal", "normals", "edge"), weight, strict=True):
        stored = pascal[f"backbone.MLoRE_2.2.router_1.{task}.0.convsp.weight"]  # (1, 16)
        torch.testing.assert_close(resized.sum(), stored.sum(), rtol=1e-5, atol=1e-6)
    assert model(torch.randn(1, 3, 96, 128)).predictions["edge"].isfinite().all()


@settings(max_examples=40, deadline=None)
@given(GRIDS, GRIDS, st.integers(0, 2**31))
def test_resized_weights_keep_their_sum_and_answer_as_on_resized_features(old, new, seed):
    generator = torch.Generator().manual_seed(seed)
    weights = torch.randn(3, old[0] * old[1], dtype=torch.float64, generator=generator)
    features = torch.randn(1, 5, *new, dtype=torch.float64, generator=generator)
    resized = resize_places(weights, old, new)
    torch.testing.assert_close(resized.sum(1), weights.sum(1), rtol=1e-10, atol=1e-10)
    on_old_grid = F.interpolate(features, old, mode="bilinear", antialias=True).flatten(2)  # (1, 5, h*w)
    torch.testing.assert_close(features.flatten(2) @ resized.T, on_old_grid @ weights.T, rtol=1e-9, atol=1e-10)


def test_weights_of_an_unchanged_grid_stay_as_they_are():
    weights = torch.randn(2, 12)
    torch.testing.assert_close(resize_places(weights, (3, 4), (3, 4)), weights)


@pytest.mark.parametrize(
    ("tokens", "own", "grid"),
    [
        (1024, None, (32, 32)),
        (1024, (16, 64), (32, 32)),  # whatever the model's grid, PASCAL-Context's was square
        (1008, None, (28, 36)),
        (1008, (36, 28), (28, 36)),
        (63, None, (7, 9)),
        (8, (2, 4), (2, 4)),
    ],
)
def test_the_stored_grid_follows_from_the_number_of_tokens(tokens, own, grid):
    assert stored_grid(tokens, own) == grid


def test_a_number_of_tokens_that_is_no_known_grid_is_named():
    with pytest.raises(UserError, match="8 tokens are no square and no grid of 7 : 9; build the model with"):
        stored_grid(8, (4, 4))


def damage(state):
    """A state dict with one fault of each kind."""
    del state["heads.sal.linear_pred.bias"], state["backbone.MLoRE_2.3.lora_list_1.3.M.weight"]
    state["backbone.cls_token"] = torch.zeros(1, 1, 384)
    state["backbone.MLoRE_1.0.conv2.edge.W.weight"] = torch.zeros(9, 20, 3, 3)
    state["backbone.norm.bias"] = torch.zeros(())
    return state


def test_everything_that_does_not_fit_is_listed_in_one_sentence_and_nothing_is_loaded(pascal, pascal_model):
    before = {key: value.clone() for key, value in pascal_model.state_dict().items()}
    other = damage(make_state(seed=1, **SMALL_PASCAL))
    with pytest.raises(UserError) as caught:
        load_released_mlore(other, pascal_model)
    assert str(caught.value) == (
        "The state dict does not fit (missing: backbone.MLoRE_2.3.lora_list_1.3.M.weight, heads.sal.linear_pred.bias; "
        "not expected: backbone.cls_token; of another shape: backbone.norm.bias (one number instead of 384), "
        "backbone.MLoRE_1.0.conv2.edge.W.weight (9 × 20 × 3 × 3 instead of 3 × 20 × 3 × 3)); "
        "give a checkpoint of MLoRE's authors, and a model of the same backbone, data set and widths."
    )
    assert all(torch.equal(before[key], value) for key, value in pascal_model.state_dict().items())


def test_a_checkpoint_of_another_data_set_names_the_first_few_of_many_faults(pascal_model):
    with pytest.raises(UserError, match=r"missing: \S+, \S+, \S+ and \d+ more; not expected: .* instead of"):
        load_released_mlore(make_state(**SMALL_NYUD), pascal_model)


@pytest.mark.parametrize(
    "build",
    [
        lambda: me.build_model("mlore_vit_nano", me.PASCAL_CONTEXT, (64, 64)),
        lambda: me.build_model("baseline_vit_nano", me.PASCAL_CONTEXT, (64, 64)),
        lambda: fuse(me.build_model("mlore_vit_nano", me.PASCAL_CONTEXT, (64, 64), variant="released").eval()),
    ],
    ids=["paper", "baseline", "fused"],
)
def test_only_the_released_variant_takes_a_released_checkpoint(pascal, build):
    with pytest.raises(UserError, match=r'variant="released"\), and fuse it afterwards'):
        load_released_mlore(pascal, build())


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda s: {}, "has heads for no task, which are those of no data set"),
        (
            lambda s: {k: v for k, v in s.items() if "sal" not in k},
            "heads for edge, human_parts, normals, semseg, which",
        ),
        (lambda s: {k: v for k, v in s.items() if "fea_fuse" not in k}, "no kernel backbone.fea_fuse.0.weight, so"),
        (lambda s: s | {"backbone.fea_fuse.0.weight": torch.zeros(8)}, "no kernel backbone.fea_fuse.0.weight, so"),
        (lambda s: s | {"backbone.fea_fuse.0.weight": torch.zeros(8, 100, 1, 1)}, "100 wide, which is no ViT-S, B or"),
        (lambda s: {k: v for k, v in s.items() if "lora" not in k}, "no kernel backbone.MLoRE_1.0.lora_list_1.0.W"),
        (lambda s: {"model": 3}, "holds no state dict"),
        (lambda s: s | {"epoch": 3}, "holds no state dict"),
    ],
    ids=["empty", "a task short", "no projection", "flat", "another width", "no experts", "a number", "mixed"],
)
def test_what_is_no_released_checkpoint_is_named(pascal, change, expected):
    with pytest.raises(UserError, match=r".*; give .*\.$") as caught:
        released_model(change(dict(pascal)))
    assert expected in str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match="There is no file"):
        released_model(tmp_path / "nothing.pth")


def test_the_released_tasks_are_known_by_our_names():
    assert {("saliency" if name == "sal" else name) for name in PASCAL} == set(me.PASCAL_CONTEXT.names)
