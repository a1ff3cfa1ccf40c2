"""What MLoRE costs: the paper's tables rederived, and every module against a formula worked out by hand.

Nothing is computed: all models live on torch's meta device. A multiply-accumulate (MAC) counts once; the paper's "G" is
2³⁰ of them.
"""

from __future__ import annotations

from functools import cache
from math import prod

import pytest
import torch
from torch import nn

from mlore_edu.complexity import Complexity, count
from mlore_edu.decoders.low_rank import LowRankExperts
from mlore_edu.decoders.mlore import MLoREModule
from mlore_edu.decoders.mlore_options import MLoREOptions
from mlore_edu.decoders.moe import ConvExperts
from mlore_edu.decoders.per_task import PerTaskConv2d
from mlore_edu.model import MultiTaskModel, build_model
from mlore_edu.reparameterization import Mode, fuse
from mlore_edu.tasks import NYUD_V2, PASCAL_CONTEXT, TaskSet

SIZE = (512, 512)
TOKENS = 32 * 32
WIDTH, TASKS, RANKS, TASK_RANK = 640, 5, range(16, 129, 8), 64  # the released ViT-B model
SCALES, MODULES = 4, 2
EXPERTS = len(RANKS)


def build(name: str = "mlore_vit_base", tasks: TaskSet = PASCAL_CONTEXT, size=SIZE, **options) -> MultiTaskModel:
    with torch.device("meta"):
        return build_model(name, tasks, img_size=size, **{"variant": "released", **options}).eval()


@cache
def cost(**options) -> Complexity:
    """Cost of the ViT-B model on PASCAL-Context."""
    return count(build(**options), SIZE)


class Layer:
    """Parameters and MACs of convolutions that follow each other or stand beside each other, added up by hand."""

    def __init__(self, parameters: int, macs: int) -> None:
        self.parameters, self.macs = parameters, macs

    def __add__(self, other: Layer) -> Layer:
        return Layer(self.parameters + other.parameters, self.macs + other.macs)

    def __mul__(self, times: int) -> Layer:
        return Layer(self.parameters * times, self.macs * times)


def conv(inputs: int, outputs: int, kernel: int = 1, pixels: int = TOKENS, bias: bool = True) -> Layer:
    weights = inputs * outputs * kernel**2
    return Layer(weights + outputs * bias, weights * pixels)


def norm(channels: int) -> Layer:
    """BatchNorm or LayerNorm: a factor and a shift for every channel; not counted as MACs."""
    return Layer(2 * channels, 0)


# --- sizes that the paper and the released checkpoints give ---


@pytest.mark.parametrize(
    ("name", "tasks", "size", "millions"),
    [
        ("mlore_vit_base", PASCAL_CONTEXT, SIZE, 259.1),
        ("mlore_vit_large", PASCAL_CONTEXT, SIZE, 407.7),
        ("mlore_vit_small", PASCAL_CONTEXT, SIZE, 42.2),
        ("mlore_vit_large", NYUD_V2, (448, 576), 551.6),
    ],
)
def test_the_released_models_have_the_parameters_of_the_checkpoints(name, tasks, size, millions):
    parameters = sum(parameter.numel() for parameter in build(name, tasks, size).parameters())
    assert parameters / 1e6 == pytest.approx(millions, abs=0.1)


def test_vit_small_with_a_task_rank_of_64_has_table_7s_44_million():
    """The released ViT-S has R = 32, the paper says 64: 44.6 M, printed as 44 and so cut off rather than rounded."""
    parameters = sum(parameter.numel() for parameter in build("mlore_vit_small", task_rank=64).parameters())
    assert parameters / 1e6 == pytest.approx(44.6, abs=0.1)


# --- Table 2, at width 640 ---

TABLE_2 = {
    "LoRE": {"generic": False, "task_experts": False},
    "GC": {"task_experts": False},
    "SPE": {},
    "MoE": {"generic": False, "task_experts": False, "experts_kind": "conv"},
}


@pytest.mark.parametrize(("row", "millions"), [("LoRE", 213.2), ("GC", 242.7), ("SPE", 259.1)])
def test_the_parameters_of_table_2_follow_from_one_path_after_the_other(row, millions):
    """Printed: 213, 243, 259 M, after the baseline's 115 M (tests/test_complexity.py: 114.7 M and 390.5 · 2³⁰)."""
    assert cost(**TABLE_2[row]).parameters / 1e6 == pytest.approx(millions, abs=0.1)


def test_each_row_of_table_2_adds_what_its_path_holds():
    lore, generic, full = (cost(**TABLE_2[row]).parameters for row in ("LoRE", "GC", "SPE"))
    modules = SCALES * MODULES
    assert generic - lore == modules * conv(WIDTH, WIDTH, 3).parameters
    task_expert = conv(WIDTH, TASK_RANK, 3) + conv(TASK_RANK, WIDTH)
    scale = conv(WIDTH // 4 * 2, 1)  # one more output of each router
    assert full - generic == modules * TASKS * (task_expert + scale).parameters


def test_the_moe_row_is_15_full_experts_and_the_parts_that_the_released_class_carries_unused():
    """We count 649.5 M, the paper prints 676 M; what nothing uses in the released ViT-B class makes the difference.

    Those are auxiliary heads, built as the heads are, and 8.2 M of convolutions (``q_fuse``, ``classify_route``) whose
    size is known from the checkpoint alone.
    """
    expert = conv(WIDTH, WIDTH, 3) + conv(WIDTH, WIDTH)
    low_rank = sum(conv(WIDTH, rank, 3).parameters + conv(rank, WIDTH).parameters for rank in RANKS)
    moe, lore = cost(**TABLE_2["MoE"]).parameters, cost(**TABLE_2["LoRE"]).parameters
    assert moe - lore == SCALES * MODULES * (EXPERTS * expert.parameters - low_rank)
    assert moe / 1e6 == pytest.approx(649.5, abs=0.1)
    auxiliary_heads = cost().by_module["heads"].parameters
    assert auxiliary_heads / 1e6 == pytest.approx(18.46, abs=0.005)
    assert (moe + auxiliary_heads) / 1e6 + 8.2 == pytest.approx(676, abs=0.5)


def released_second_convolution() -> int:
    """MACs of a router's second 1×1 convolution, which the released code does at every token and we on the mean."""
    return SCALES * MODULES * TASKS * (WIDTH // 4) ** 2 * (TOKENS - 1)


def test_the_moe_rows_cost_is_that_of_9_experts_for_every_task():
    """Printed: 1834. We count 1832.4, and 1833.4 with the routers' second convolution at every token."""
    macs = cost(**TABLE_2["MoE"]).macs
    nine_for_each_task = SCALES * MODULES * TASKS * 9 * (conv(WIDTH, WIDTH, 3) + conv(WIDTH, WIDTH)).macs
    part = cost(**TABLE_2["MoE"]).by_module["decoder.scales.0.0.experts"]
    assert SCALES * MODULES * part.macs == nine_for_each_task + SCALES * MODULES * TASKS * 9 * WIDTH  # gated biases
    assert macs / 2**30 == pytest.approx(1832.4, abs=0.1)
    assert (macs + released_second_convolution()) / 2**30 == pytest.approx(1833.4, abs=0.1)


def test_a_mixture_that_ran_every_expert_once_would_cost_half_of_what_table_2_prints():
    """896 · 2³⁰, so Table 2 counts an expert once per task, although Table 1 counts each once."""
    expert = conv(WIDTH, WIDTH, 3) + conv(WIDTH, WIDTH)
    experts = cost(**TABLE_2["MoE"]).by_module["decoder.scales.0.0.experts"].macs * SCALES * MODULES
    once = cost(**TABLE_2["MoE"]).macs - experts + SCALES * MODULES * EXPERTS * expert.macs
    assert (once + released_second_convolution()) / 2**30 == pytest.approx(896, abs=1)


# --- every module of the released ViT-B model ---


def router(outputs: int, released: bool) -> Layer:
    hidden = WIDTH // 4
    weigh_places = Layer(TOKENS + 1, TOKENS * WIDTH)
    branches = conv(WIDTH, hidden, pixels=TOKENS if released else 1) + conv(hidden, hidden, pixels=1)
    branches += weigh_places + conv(WIDTH, hidden, pixels=1)
    if released:
        branches += norm(hidden) + norm(WIDTH)
    return (branches + conv(2 * hidden, outputs, pixels=1)) * TASKS


def concatenated_experts() -> Layer:
    total = sum(RANKS)
    bias = Layer(EXPERTS * WIDTH, TASKS * EXPERTS * WIDTH)  # mixed by the gates
    once = conv(WIDTH, total, 3) + conv(total, WIDTH, bias=False)
    return Layer(once.parameters, once.macs * TASKS) + bias


MODULE = {
    "project": conv(WIDTH, WIDTH) * TASKS,
    "generic": Layer(conv(WIDTH, WIDTH, 3).parameters, conv(WIDTH, WIDTH, 3).macs * TASKS),
    "experts": concatenated_experts(),
    "norm": norm(WIDTH) * TASKS,
    "task_experts": (conv(WIDTH, TASK_RANK, 3) + conv(TASK_RANK, WIDTH)) * TASKS,
    "nonlinear": (norm(WIDTH) + conv(WIDTH, WIDTH)) * TASKS,
}


@pytest.mark.parametrize("variant", ["released", "paper"])
def test_every_part_of_a_module_costs_what_its_formula_says(variant):
    released = variant == "released"
    parts = cost(variant=variant, channels=WIDTH).by_module
    expected = MODULE | {"router": router(2 * EXPERTS + released, released)}
    for module in ("decoder.scales.0.0", "decoder.scales.3.0"):
        assert {name.rpartition(".")[2] for name in parts if name.rpartition(".")[0] == module} == set(expected)
        for name, part in expected.items():
            counted = parts[f"{module}.{name}"]
            assert (counted.parameters, counted.macs) == (part.parameters, part.macs), name
        whole = sum(expected.values(), Layer(0, 0))
        assert (parts[module].parameters, parts[module].macs) == (whole.parameters, whole.macs)


def test_the_paper_has_no_non_linear_block_after_its_last_module():
    paper, released = (cost(variant=variant, channels=WIDTH).by_module for variant in ("paper", "released"))
    assert "decoder.scales.0.1.nonlinear" not in paper
    assert released["decoder.scales.0.1.nonlinear"].parameters == MODULE["nonlinear"].parameters


def test_the_scales_are_fused_at_the_cost_of_their_formulas():
    paper, released = (cost(variant=variant, channels=WIDTH).by_module for variant in ("paper", "released"))
    concatenate = conv(4 * WIDTH, WIDTH) * TASKS
    weigh = (conv(4 * WIDTH, WIDTH) + norm(WIDTH) + conv(WIDTH, SCALES, 3)) * TASKS
    for parts, expected in ((paper, concatenate), (released, weigh)):
        assert (parts["decoder.fusion"].parameters, parts["decoder.fusion"].macs) == (
            expected.parameters,
            expected.macs,
        )


def test_the_maps_are_narrowed_and_the_heads_work_at_a_quarter_of_the_image():
    parts = cost().by_module
    narrow = conv(768, WIDTH) * SCALES
    assert (parts["decoder.narrow"].parameters, parts["decoder.narrow"].macs) == (narrow.parameters, narrow.macs)
    pixels = 128 * 128
    for task in PASCAL_CONTEXT.names:
        channels = PASCAL_CONTEXT[task].channels
        head = conv(WIDTH, WIDTH, 3, pixels) + norm(WIDTH) + conv(WIDTH, channels, pixels=pixels)
        assert (parts[f"heads.{task}"].parameters, parts[f"heads.{task}"].macs) == (head.parameters, head.macs)


def test_the_backbone_costs_its_projections_and_its_attention():
    width, depth, mlp = 768, 12, 4
    block = conv(width, 3 * width) + conv(width, width) + conv(width, mlp * width) + conv(mlp * width, width)
    block += norm(width) * 2 + Layer(0, 2 * TOKENS**2 * width)  # query · key and attention · value
    expected = conv(3, width, 16) + block * depth + norm(width) + Layer(TOKENS * width, 0)  # position embedding
    counted = cost().by_module["backbone"]
    assert (counted.parameters, counted.macs) == (expected.parameters, expected.macs)
    assert cost().macs - cost().macs_without_attention == depth * 2 * TOKENS**2 * width


def test_without_fusing_the_experts_cost_283_of_1e9_and_9_active_ones_would_cost_170():
    experts = concatenated_experts().macs * SCALES * MODULES
    assert experts / 1e9 == pytest.approx(283, abs=0.5)
    assert experts / 1e9 * 9 / 15 == pytest.approx(170, abs=0.5)


# --- the fused form ---


@cache
def fused_cost(name: str, tasks: TaskSet, size: tuple[int, int], mode: Mode) -> Complexity:
    return count(fuse(build(name, tasks, size), mode), size)


FUSED = [  # 1e9 MACs of the released models, measured when fused
    ("mlore_vit_small", PASCAL_CONTEXT, SIZE, 77.2),
    ("mlore_vit_base", PASCAL_CONTEXT, SIZE, 609.6),
    ("mlore_vit_large", PASCAL_CONTEXT, SIZE, 613.3),
    ("mlore_vit_large", NYUD_V2, (448, 576), 926.2),
]


@pytest.mark.parametrize(("name", "tasks", "size", "giga"), FUSED)
def test_fused_models_cost_what_the_released_ones_do(name, tasks, size, giga):
    """The released figures are those of *precomposed* kernels, with the mixing of the kernels left out.

    We count the mixing (2.2e9 for ViT-B), and do the routers' second convolution on the mean instead of at every token
    (1.0e9 less for ViT-B). The difference is below 0.3 %; with both put right the figures agree to the last digit.
    """
    model, macs = build(name, tasks, size), fused_cost(name, tasks, size, "precomposed").macs
    assert macs / 1e9 == pytest.approx(giga, rel=0.003)
    width, tokens = model.decoder.channels, prod(size) // 16**2
    modules = SCALES * MODULES * len(tasks)
    mixing = modules * EXPERTS * (9 * width**2 + width)  # kernels and biases
    every_token = modules * (width // 4) ** 2 * (tokens - 1)
    assert (macs - mixing + every_token) / 1e9 == pytest.approx(giga, abs=0.06)


def test_table_2s_568_belongs_to_precomposed_kernels_whose_mixing_is_not_counted():
    """Printed with 259 M parameters, which belong to low-rank factors: no form has both (fuse's modes: chapter 8)."""
    stored = fused_cost("mlore_vit_base", PASCAL_CONTEXT, SIZE, "precomposed")
    mixed = fused_cost("mlore_vit_base", PASCAL_CONTEXT, SIZE, "on_the_fly")
    assert stored.macs / 2**30 == pytest.approx(568.8, abs=0.1)
    assert stored.parameters / 1e6 == pytest.approx(777.2, abs=0.1)
    assert mixed.macs / 2**30 == pytest.approx(723.9, abs=0.1)
    assert mixed.parameters / 1e6 == pytest.approx(259.1, abs=0.1)


def test_a_module_fused_by_itself_takes_the_mode_that_at_most_doubles_it():
    wide, narrow = (build(channels=width).decoder.scales[0][0] for width in (WIDTH, 32))
    assert wide.fuse().mode == "on_the_fly"  # 83 M numbers precomposed, 18 M as it is
    assert narrow.fuse().mode == "precomposed"


def test_every_row_of_table_2_costs_the_same_fused_but_for_its_task_path():
    """Printed: 568 three times. The paths add nothing: they are one kernel."""
    costs = [count(fuse(build(**TABLE_2[row]), "precomposed"), SIZE).macs for row in ("LoRE", "GC", "SPE")]
    scale = SCALES * MODULES * TASKS * 2 * (WIDTH // 4)  # the router's one more output
    assert costs[0] == costs[1] == costs[2] - scale


def test_every_part_of_a_fused_module_costs_what_its_formula_says():
    """The kernels of all paths are added up without multiplying matrices; what is left is one convolution per task."""
    convolution = 9 * WIDTH**2 * TOKENS * TASKS
    total = sum(RANKS)
    expected = {
        "precomposed": {
            "experts": Layer(
                EXPERTS * (9 * WIDTH**2 + WIDTH) + TASKS * WIDTH, TASKS * EXPERTS * (9 * WIDTH + 1) * WIDTH
            ),
            "task_experts": Layer(TASKS * (9 * WIDTH**2 + WIDTH), 0),
        },
        "on_the_fly": {
            "experts": Layer(
                total * (10 * WIDTH + 1) + EXPERTS * WIDTH + TASKS * WIDTH,
                TASKS * total * (9 * WIDTH + 1) * WIDTH + TASKS * EXPERTS * WIDTH,
            ),
            "task_experts": Layer(MODULE["task_experts"].parameters, TASKS * TASK_RANK * (9 * WIDTH + 1) * WIDTH),
        },
    }
    shared = {
        "project": MODULE["project"],
        "router": router(2 * EXPERTS + 1, released=True),
        "generic": Layer(MODULE["generic"].parameters, 0),
        "linear": conv(WIDTH, WIDTH) * TASKS,
    }
    for mode, parts in expected.items():
        counted = fused_cost("mlore_vit_base", PASCAL_CONTEXT, SIZE, mode).by_module
        for name, part in (shared | parts).items():
            found = counted[f"decoder.scales.0.0.{name}"]
            assert (found.parameters, found.macs) == (part.parameters, part.macs), (mode, name)
        whole = sum(part.macs for part in (shared | parts).values()) + convolution
        assert counted["decoder.scales.0.0"].macs == whole


# --- Table 1: one module, C = 384, 32×32 tokens, 5 tasks ---

NARROW = 384
TABLE_1 = {  # kernel, experts: parameters of MoE and MLoRE in M, FLOPs of MoE and MLoRE in 2³⁰ MACs
    (1, 5): (3.1, 1.2, 3.00, 1.49),
    (1, 10): (4.7, 1.6, 4.49, 1.58),
    (1, 15): (6.3, 1.9, 5.99, 1.66),
    (3, 5): (14.9, 3.4, 14.24, 7.12),
    (3, 10): (22.4, 4.7, 21.37, 7.21),
    (3, 15): (29.9, 6.0, 28.49, 7.29),
}


def macs_of(module: nn.Module, *inputs: torch.Tensor) -> int:
    with torch.utils.flop_counter.FlopCounterMode(display=False) as counter:
        module(*inputs)
    return counter.get_total_flops() // 2


def table_1(kernel: int, experts: int) -> tuple[float, float, float, float]:
    """All four cells of a row by formula; see the test below."""
    window, unknown = kernel**2 + 1, NARROW**2 // 8
    moe = (experts + TASKS) * (window * NARROW**2 + unknown)
    mlore = TASKS * NARROW**2 + kernel**2 * NARROW**2 + experts * (64 * window * NARROW + unknown)
    mlore_macs = TASKS * window * NARROW**2 + experts * unknown
    return moe / 1e6, mlore / 1e6, moe * TOKENS / 2**30, mlore_macs * TOKENS / 2**30


def test_all_24_cells_of_table_1_follow_from_one_assumption():
    """The formulas, without biases, and with one quantity of unknown nature: C²/8 more weights beside each expert.

    MoE: N + 5 experts of full width (5 belong to the tasks), each run once. MLoRE: 5 projections 1×1, the generic k×k
    convolution, N experts of *mean rank 64* (16…128 would have 72) and no task experts; it runs, for every task, the
    projection and one fused k×k convolution. C²/8 = 18,432 is what a 1×1 convolution C → C/8 holds; it costs as many
    MACs a token. The paper does not say what it is.
    """
    for (kernel, experts), printed in TABLE_1.items():
        ours = table_1(kernel, experts)
        assert ours[:2] == pytest.approx(printed[:2], abs=0.05)
        assert ours[2:] == pytest.approx(printed[2:], abs=0.015)


def test_with_ranks_16_to_128_or_without_the_unknown_part_table_1_comes_out_wrong():
    kernel, experts = 3, 15
    unknown = experts * NARROW**2 // 8 / 1e6
    with_72 = table_1(kernel, experts)[1] + experts * 8 * 10 * NARROW / 1e6
    assert abs(with_72 - 6.0) > 0.4
    assert abs(with_72 - unknown - 6.0) > 0.15
    assert abs(table_1(kernel, experts)[0] - unknown * 20 / 15 - 29.9) > 0.3


@pytest.mark.parametrize(("kernel", "experts"), TABLE_1)
def test_our_experts_cost_what_the_formula_of_table_1_says(kernel, experts):
    features = torch.empty(1, experts, NARROW, 32, 32, device="meta")
    with torch.device("meta"):
        wide = ConvExperts(NARROW, experts, kernel)
    weights = sum(parameter.numel() for parameter in wide.parameters() if parameter.dim() > 1)
    assert weights == experts * (kernel**2 + 1) * NARROW**2
    gates = torch.empty(1, experts, experts, device="meta")  # one expert for each of as many "tasks": each runs once
    assert macs_of(lambda x, g: wide(x, g, 1), features, gates) == weights * TOKENS


@pytest.mark.parametrize("experts", [5, 10, 15])
def test_our_module_without_task_experts_has_table_1s_parameters_but_for_the_router_and_the_unknown_part(experts):
    options = MLoREOptions(ranks=(64,) * experts, task_experts=False)
    with torch.device("meta"):
        module = MLoREModule(TASKS, NARROW, TOKENS, options, nonlinear=False)
    paths = sum(prod(parameter.shape) for name, parameter in module.named_parameters() if not name.startswith("router"))
    biases = TASKS * NARROW * 3 + NARROW + experts * (64 + NARROW)  # projections and BatchNorms, generic path, experts
    assert paths - biases + experts * NARROW**2 // 8 == round(table_1(3, experts)[1] * 1e6)


def test_the_fused_form_of_table_1_is_a_projection_and_a_3x3_convolution_per_task():
    features = torch.empty(1, TASKS, NARROW, 32, 32, device="meta")
    with torch.device("meta"):
        project, fused = PerTaskConv2d(TASKS, NARROW, NARROW), PerTaskConv2d(TASKS, NARROW, NARROW, 3)
    total = macs_of(project, features) + macs_of(fused, features)
    assert total / 2**30 == pytest.approx(7.03, abs=0.005)
    assert total == TASKS * 10 * NARROW**2 * TOKENS


# --- the two training forms ---


@pytest.mark.parametrize("samples", [1, 3])
def test_the_costs_by_which_experts_choose_their_form_are_those_that_are_counted(samples):
    """The formula leaves out the biases, which cost less than a thousandth."""
    channels, ranks, side = 48, (4, 8, 12), 16
    features = torch.empty(samples, TASKS, channels, side, side, device="meta")
    gates = torch.empty(samples, TASKS, len(ranks), device="meta")
    for form in ("concatenated", "merged"):
        with torch.device("meta"):
            experts = LowRankExperts(channels, ranks, form)
        predicted, _ = experts.costs(samples, TASKS, side * side)[form]
        assert macs_of(experts, features, gates) == pytest.approx(predicted, rel=1e-3)
