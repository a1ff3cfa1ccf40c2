"""What MLoRE's options mean: the paper and the released code row by row, presets, ranks, and every refusal."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from mlore_edu.decoders.base import MapShape
from mlore_edu.decoders.mlore import MLoREDecoder, MLoREModule
from mlore_edu.decoders.mlore_options import active_experts, rank_schedule
from mlore_edu.errors import UserError
from mlore_edu.model import build_model
from mlore_edu.tasks import DOLLHOUSE, NYUD_V2, PASCAL_CONTEXT, TaskSet

TASKS = DOLLHOUSE.subset("semseg", "depth")
MAPS = [MapShape(6, 3, 4)] * 4


def small(variant: str, **options: Any) -> MLoREDecoder:
    torch.manual_seed(0)
    return MLoREDecoder(TASKS, MAPS, 8, variant=variant, experts=5, min_rank=1, max_rank=5, task_rank=2, **options)


def modules_of(decoder: MLoREDecoder) -> list[MLoREModule]:
    return [module for module in decoder.modules() if isinstance(module, MLoREModule)]


def set_router(module: MLoREModule, logits: float | list[float], noise: float, rest: float = 1.0) -> None:
    """Make the router say the same of every image: these logits, this noise scale, this scale of the task path."""
    count = len(module.options.ranks)
    with torch.no_grad():
        module.router.predict.weight.zero_()
        rows = module.router.predict.bias.view(2, -1)
        rows[:, :count], rows[:, count : 2 * count] = torch.as_tensor(logits), noise
        rows[:, 2 * count :] = rest


# ---- the table of the facts page, row by row


def task_path_scale(variant: str) -> bool:
    """Whether the scale that the router predicts changes the output."""
    first, *_ = modules_of(small(variant).eval())
    features, outputs = torch.randn(2, 8, 3, 4), []
    for scale in (1.0, 3.0):
        set_router(first, 0.0, 0.0, scale)
        outputs.append(first(features).features)
    return not torch.equal(*outputs)


def spread_of_noise(variant: str, raw: float) -> float:
    """Standard deviation of the logits' noise in training, where the router's noise output is ``raw``."""
    first, *_ = modules_of(small(variant, k=5).train())
    set_router(first, 0.0, raw)
    torch.manual_seed(0)
    gates = first.route(torch.zeros(4000, 2, 8, 3, 4))[0].gates.detach().log()
    return round((gates[..., 0] - gates[..., 1]).std().item() / 2**0.5, 1)


def noise_in_evaluation(variant: str) -> bool:
    first, *_ = modules_of(small(variant).eval())
    return not torch.equal(*(first.route(torch.ones(2, 2, 8, 3, 4))[0].gates for _ in range(2)))


def gates_at_known_logits(variant: str) -> list[float]:
    first, *_ = modules_of(small(variant, k=2).eval())
    set_router(first, [0.0, 1.0, 2.0, 3.0, 4.0], 0.0)
    return [round(gate, 4) for gate in first.route(torch.zeros(1, 2, 8, 3, 4))[0].gates[0, 0].tolist()]


def gradient_of_the_generic_path(variant: str) -> bool:
    """Whether any reaches the features, where the other paths say nothing."""
    first, *_ = modules_of(small(variant).eval())
    with torch.no_grad():
        for parameter in (*first.norm.parameters(), *first.task_experts.parameters()):
            parameter.zero_()
    features = torch.randn(2, 8, 3, 4, requires_grad=True)
    first(features).features.square().sum().backward()
    return bool(features.grad.any())


def blocks(variant: str) -> list[str | None]:
    """Order of the non-linear block after every module of one scale, found by what BatchNorm is given."""
    orders: list[str | None] = []
    for module in modules_of(small(variant).eval())[:2]:
        if module.nonlinear is None:
            orders.append(None)
            continue
        seen: list[torch.Tensor] = []
        module.nonlinear.norm.register_forward_hook(lambda *call, seen=seen: seen.append(call[1][0]))
        x = torch.randn(2, 2, 8, 3, 4)
        module.nonlinear(x)
        orders.append("GELU, BatchNorm, linear" if torch.equal(seen[0], F.gelu(x)) else "BatchNorm, GELU, linear")
    return orders


def fusion_weighs(variant: str) -> bool:
    """Whether four equal maps stay that map, as any weights that sum to one leave it."""
    torch.manual_seed(0)
    x = torch.randn(2, 2, 8, 3, 4)
    return torch.allclose(small(variant).eval().fusion([x] * 4, (3, 4)), x, atol=1e-6)


def balance_sees_the_load(variant: str) -> bool:
    """Whether experts of equal importance but unequal load are unbalanced: two tasks, of 2 experts each one twice."""
    module = modules_of(small(variant))[0]
    gating = module.route(torch.zeros(1, 2, 8, 3, 4))[0]
    equal = gating._replace(gates=torch.full((1, 2, 5), 0.2), load=torch.tensor([[[2.0, 1, 1, 1, 1]] * 2]))
    return module.finish(torch.zeros(1, 2, 8, 3, 4), equal).balance_loss.item() > 0


def normed_outputs(variant: str) -> int:
    """Channels of the BatchNorm after the experts' sum: one per task and channel."""
    return modules_of(small(variant))[0].norm.norm.num_features


def outputs_per_task(variant: str) -> int:
    return modules_of(small(variant))[0].router.predict.out_channels // 2


def router_norms(variant: str) -> list[int]:
    """Widths of the LayerNorms inside the router's branches."""
    first = modules_of(small(variant))[0]
    norms = [getattr(branch, "norm", None) for branch in first.router.branches.values()]
    return [norm.weight.shape[1] for norm in norms if norm is not None]


KEPT = [round(x, 4) for x in torch.arange(5.0).softmax(0).tolist()]
ROWS: list[tuple[str, Callable[[str], Any], Any, Any]] = [
    ("the task path is added as is; released: times one scalar per sample and task", task_path_scale, False, True),
    ("the router has no norm or activation; released: LayerNorm, GELU in both branches", router_norms, [], [2, 8]),
    ("the router says a logit and a noise scale per expert; released: one number more", outputs_per_task, 10, 11),
    ("a noise scale of 0 is softplus(0); released: no noise", lambda v: spread_of_noise(v, 0.0), 0.7, 0.0),
    ("a noise scale of -2 is softplus(-2); released: 2", lambda v: spread_of_noise(v, -2.0), 0.1, 2.0),
    ("noise is for training alone, in both", noise_in_evaluation, False, False),
    ("gates: softmax over all, the rest struck out", gates_at_known_logits, [0, 0, 0, *KEPT[3:]], [0, 0, 0, *KEPT[3:]]),
    ("the balance loss counts the load too; released: importance alone", balance_sees_the_load, True, False),
    (
        "GELU, BatchNorm, linear between the modules; released: BatchNorm, GELU, linear after both",
        blocks,
        ["GELU, BatchNorm, linear", None],
        ["BatchNorm, GELU, linear", "BatchNorm, GELU, linear"],
    ),
    ("the generic path passes no gradient down, in both", gradient_of_the_generic_path, False, False),
    ("the scales are concatenated; released: weighed by a softmax", fusion_weighs, False, True),
    ("one BatchNorm per task normalises the experts' sum, in both", normed_outputs, 16, 16),
]


@pytest.mark.parametrize(("probe", "paper", "released"), [row[1:] for row in ROWS], ids=[row[0] for row in ROWS])
def test_paper_and_released_differ_as_the_table_of_the_facts_page_says(
    probe: Callable[[str], Any], paper: Any, released: Any
) -> None:
    assert probe("paper") == paper
    assert probe("released") == released


def test_no_parameter_differs_between_the_variants_beyond_the_tables_rows() -> None:
    shapes = [{name: p.shape for name, p in small(v).state_dict().items()} for v in ("paper", "released")]
    different = {
        name for name in set(shapes[0]) | set(shapes[1]) if shapes[0].get(name) != shapes[1].get(name)
    }  # rows: router branches, router output, after module 2, last step
    rows = ("basic.norm", "position.norm", "router.predict", "1.nonlinear", "fusion.")
    assert different
    assert [name for name in different if not any(row in name for row in rows)] == []
    assert all(any(row in name for name in different) for row in rows)


PRESETS = {  # width, ranks, R, weight of the balance loss, softmax before top-k
    ("vit_small", "released"): (192, (8, 64, 4), 32, 1e-4, True),
    ("vit_base", "released"): (640, (16, 128, 8), 64, 1e-4, True),
    ("vit_large", "released"): (452, (16, 128, 8), 72, 3e-4, True),
    ("vit_large", "released NYUD"): (768, (16, 240, 16), 16, 5e-4, False),
    ("vit_small", "paper"): (192, (8, 64, 4), 64, 1e-4, True),
    ("vit_base", "paper"): (384, (16, 128, 8), 64, 1e-4, True),
    ("vit_large", "paper"): (384, (16, 128, 8), 64, 1e-4, True),
    ("vit_large", "paper NYUD"): (384, (16, 128, 8), 64, 1e-4, True),
    ("dinov2_base", "released"): (640, (16, 128, 8), 64, 1e-4, True),
}


@pytest.mark.parametrize(("backbone", "reading"), PRESETS)
def test_widths_ranks_and_weights_are_those_of_the_text_or_of_the_checkpoints(backbone: str, reading: str) -> None:
    variant, _, nyud = reading.partition(" ")
    tasks, img_size = (NYUD_V2, (448, 448)) if nyud else (PASCAL_CONTEXT, (448, 448))
    with torch.device("meta"):
        decoder = build_model(f"mlore_{backbone}", tasks, img_size=img_size, variant=variant).decoder
    width, (lowest, highest, step), task_rank, weight, softmax_first = PRESETS[backbone, reading]
    options = modules_of(decoder)[0].options
    assert len(modules_of(decoder)) == 8  # two on each of four scales
    assert (decoder.channels, decoder.balance_weight) == (width, weight)
    assert options.ranks == tuple(range(lowest, highest + 1, step))
    assert (options.task_rank, options.softmax_first, options.k) == (task_rank, softmax_first, 9)


@pytest.mark.parametrize(
    ("name", "tasks", "size", "millions"),
    [
        ("vit_small", PASCAL_CONTEXT, (512, 512), 42.18),
        ("vit_base", PASCAL_CONTEXT, (512, 512), 259.13),
        ("vit_large", PASCAL_CONTEXT, (512, 512), 407.69),
        ("vit_large", NYUD_V2, (448, 576), 551.63),
    ],
)
def test_the_released_models_have_the_published_number_of_parameters(
    name: str, tasks: TaskSet, size: tuple[int, int], millions: float
) -> None:
    with torch.device("meta"):
        model = build_model(f"mlore_{name}", tasks, img_size=size, variant="released")
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.01)


@pytest.mark.parametrize("backbone", ["hrnet18", "swin_tiny", "swin_small", "swin_base", "swin_large"])
@pytest.mark.parametrize("variant", ["paper", "released"])
def test_pyramids_get_narrow_decoders_of_low_rank_in_either_variant(backbone: str, variant: str) -> None:
    preset = MLoREDecoder.preset(backbone, PASCAL_CONTEXT, {"variant": variant})
    assert preset == {"min_rank": 2, "max_rank": 16, "task_rank": 8}


def test_a_callers_option_replaces_the_presets_and_the_preset_itself_is_left_alone() -> None:
    model = build_model("mlore_vit_nano", DOLLHOUSE, img_size=(32, 32), max_rank=4, channels=8, experts=3)
    assert modules_of(model.decoder)[0].options.ranks == (2, 3, 4)
    MLoREDecoder.preset("vit_nano", DOLLHOUSE, {})["task_rank"] = 1
    assert MLoREDecoder.preset("vit_nano", DOLLHOUSE, {})["task_rank"] == 8


# ---- the noise before training


@pytest.mark.parametrize("std", [0.011, 0.05, 0.6931, 3.0])
def test_noise_has_the_named_strength_before_training_for_every_image(std: float) -> None:
    first, *_ = modules_of(small("paper", k=5, noise_start=std).train())
    with torch.no_grad():  # the logits say nothing, so that what differs between gates is noise
        first.router.predict.weight.unflatten(0, (2, -1))[:, :5] = 0
        first.router.predict.bias.unflatten(0, (2, -1))[:, :5] = 0
    images = 10 * torch.randn(4000, 2, 8, 3, 4)
    logs = first.route(images)[0].gates.detach().log()
    differences = (logs - logs.roll(1, dims=-1)).std(dim=(0, 2)) / 2**0.5
    assert torch.allclose(differences, torch.full((2,), std), rtol=0.03)  # 20000 draws: 1 in 200, six times over


def test_noise_starts_as_shazeers_and_the_small_model_with_less() -> None:
    assert torch.allclose(F.softplus(torch.zeros(1)), torch.tensor(modules_of(small("paper"))[0].options.noise_start))
    nano = build_model("mlore_vit_nano", DOLLHOUSE, img_size=(32, 32))
    assert {module.options.noise_start for module in modules_of(nano.decoder)} == {0.05}
    assert build_model("mlore_vit_nano", DOLLHOUSE, img_size=(32, 32), noise=False) is not None


def test_the_network_learns_the_noise_and_makes_it_depend_on_the_image() -> None:
    first, *_ = modules_of(small("paper", k=2, noise_start=0.05).train())
    optimizer = torch.optim.SGD(first.router.parameters(), lr=1.0)
    for _ in range(2):
        optimizer.zero_grad()
        first(torch.randn(4, 8, 3, 4)).balance_loss.backward()
        optimizer.step()
    rows = first.router.predict.weight.unflatten(0, (2, -1))[:, 5:10]
    assert rows.flatten(1).any(dim=1).all()


# ---- ranks and k


@settings(deadline=None)
@given(experts=st.integers(1, 40), lowest=st.integers(1, 100), more=st.integers(0, 200))
def test_ranks_rise_evenly_from_the_lowest_to_the_highest(experts: int, lowest: int, more: int) -> None:
    ranks = rank_schedule(experts, lowest, lowest + more)
    assert len(ranks) == experts
    assert ranks[0] == lowest
    assert experts == 1 or ranks[-1] == lowest + more
    steps = [b - a for a, b in pairwise(ranks)]
    assert all(step >= 0 for step in steps)
    assert not steps or max(steps) - min(steps) <= 2  # rounding moves either end of a step by at most a half


def test_the_papers_schedules_come_out_exactly() -> None:
    assert rank_schedule(15, 16, 128) == tuple(range(16, 129, 8))
    assert rank_schedule(15, 16, 240) == tuple(range(16, 241, 16))
    assert rank_schedule(15, 16, 16) == (16,) * 15
    assert rank_schedule(0, 16, 128) == ()


@pytest.mark.parametrize(("experts", "k"), [(0, 1), (1, 1), (3, 2), (5, 3), (10, 6), (15, 9), (20, 12)])
def test_sixty_percent_of_the_experts_work_at_least_one(experts: int, k: int) -> None:
    assert active_experts(experts, None) == k
    assert active_experts(15, 4) == 4


# ---- refusals

REFUSALS: dict[str, dict[str, Any]] = {
    r"variant is 'official'; choose one of paper, released\.": {"variant": "official"},
    r"experts_kind is 'dense'; choose one of low_rank, conv\.": {"experts_kind": "dense"},
    r"router is 'mean'; choose one of both, basic, position, static\.": {"router": "mean"},
    r"form is 'fast'; choose one of auto, concatenated, merged\.": {"form": "fast"},
    r"modules is 0; give a whole number of at least 1\.": {"modules": 0},
    r"experts is -1; give a whole number of at least 0\.": {"experts": -1},
    r"experts is '15'; give a whole number of at least 0\.": {"experts": "15"},
    r"min_rank is 0; give a whole number of at least 1\.": {"min_rank": 0},
    r"max_rank is 2\.5; give a whole number of at least 1\.": {"max_rank": 2.5},
    r"max_rank is 3, below min_rank 4; give 1 <= min_rank <= max_rank\.": {"min_rank": 4, "max_rank": 3},
    r"k is 6; give a number of active experts from 1 to 5\.": {"k": 6},
    r"k is 0; give a number of active experts from 1 to 5\.": {"k": 0},
    r"k is True; give a number of active experts from 1 to 5\.": {"k": True},
    r"task_rank is 0; give a whole number of at least 1\.": {"task_rank": 0},
    r"generic_rank is 0; give a whole number of at least 1\.": {"generic_rank": 0},
    r"generic is 'no'; give True or False\.": {"generic": "no"},
    r"task_experts is 0; give True or False\.": {"task_experts": 0},
    r"stop_gradient is 1; give True or False\.": {"stop_gradient": 1},
    r"softmax_first is 'False'; give True or False\.": {"softmax_first": "False"},
    r"noise is None; give True or False\.": {"noise": None},
    r"balance_weight is -0\.1; give a number of at least 0\.": {"balance_weight": -0.1},
    r"balance_weight is nan; give a number of at least 0\.": {"balance_weight": float("nan")},
    r"balance_weight is True; give a number of at least 0\.": {"balance_weight": True},
    r"balance_weight is '1'; give a number of at least 0\.": {"balance_weight": "1"},
    r"noise_start is 0\.01; give a standard deviation above 0\.01\.": {"noise_start": 0.01},
    r"noise_start is inf; give a standard deviation above 0\.01\.": {"noise_start": float("inf")},
    r"noise_start is True; give a standard deviation above 0\.01\.": {"noise_start": True},
    r"plain_maps is -1; give a whole number of at least 0\.": {"plain_maps": -1},
    r"plain_maps is 4 of 4 maps; leave at least one to the modules\.": {"plain_maps": 4},
    r"generic_rank is 2, but generic is False; leave one of them out\.": {"generic_rank": 2, "generic": False},
    r"needs a path; leave in experts, generic or task_experts\.": {
        "experts": 0,
        "generic": False,
        "task_experts": False,
    },
    r"Nothing below a generic path alone would learn.*; leave in experts .* stop_gradient=False\.": {
        "experts": 0,
        "task_experts": False,
    },
}


@pytest.mark.parametrize("message", REFUSALS)
def test_a_wrong_option_is_refused_in_one_sentence_that_ends_in_the_remedy(message: str) -> None:
    options = {"experts": 5, "min_rank": 1, "max_rank": 5, **REFUSALS[message]}
    with pytest.raises(UserError, match=message):
        MLoREDecoder(TASKS, MAPS, 8, **options)


def test_torch_can_synchronise_every_batchnorm_of_the_decoder() -> None:
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(small("released"))
    norms = [m for m in converted.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    assert len(norms) == 2 * 8 + 1
    assert all(isinstance(norm, nn.SyncBatchNorm) for norm in norms)
