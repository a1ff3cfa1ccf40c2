"""Count the papers' models at their published sizes and write counts.json (chapter 17 and the appendix of all tables).

    python book/results/make_counts.py

Nothing is trained and nothing computed: the models are built on the meta device. Parameters are those of training;
operations, where experts are of low rank, those of the form fused with precomposed kernels, as MLoRE's paper has it.
The chapters that explain the choices are 5 (Table 1), 9 (MLoRE), 11 (TaskExpert) and 12 to 14 (TIF). About two minutes.
"""

import torch
from record import write

import mlore_edu as me
from mlore_edu import published
from mlore_edu.backbones import build_backbone
from mlore_edu.training.run_folder import versions

PASCAL, NYUD = (me.PASCAL_CONTEXT, (512, 512)), (me.NYUD_V2, (448, 576))
RELEASED = {"variant": "released"}
LORE = {**RELEASED, "generic": False, "task_experts": False}
MODELS = {
    "baseline, ViT-B": ("baseline_vit_base", PASCAL, {}),
    "moe, ViT-B": ("mlore_vit_base", PASCAL, {**LORE, "experts_kind": "conv"}),
    "lore, ViT-B": ("mlore_vit_base", PASCAL, LORE),
    "lore + gc, ViT-B": ("mlore_vit_base", PASCAL, {**RELEASED, "task_experts": False}),
    "mlore, ViT-B": ("mlore_vit_base", PASCAL, RELEASED),
    "mlore, ViT-L": ("mlore_vit_large", PASCAL, RELEASED),
    "mlore, ViT-S": ("mlore_vit_small", PASCAL, {**RELEASED, "task_rank": 64}),
    "taskexpert 3, ViT-B": ("taskexpert_vit_base", PASCAL, {"modules": 3}),
    "taskexpert 6, ViT-B": ("taskexpert_vit_base", PASCAL, {"modules": 6}),
    "taskexpert, ViT-B": ("taskexpert_vit_base", PASCAL, {}),
    "taskexpert, ViT-S": ("taskexpert_vit_small", PASCAL, {}),
    "taskexpert, ViT-L": ("taskexpert_vit_large", PASCAL, {}),
    "taskexpert, ViT-L, NYUD-v2": ("taskexpert_vit_large", NYUD, {}),
    "tif, HRNet18": ("tif_hrnet18", NYUD, {}),
    "tif, Swin-T": ("tif_swin_tiny", NYUD, {}),
    "tif, Swin-L": ("tif_swin_large", NYUD, {}),
    "tif, ViT-B": ("tif_vit_base", NYUD, {}),
    "tif self, Swin-T": ("tif_swin_tiny", NYUD, {"diffusion": "none"}),
    "tif cross, Swin-T": ("tif_swin_tiny", NYUD, {"diffusion": "none", "distillation": "cross"}),
}  # fmt: skip
UNITS = {"mlore": 2**30, "baseline": 2**30, "taskexpert": 1e9, "tif": 1e9}
"""What each paper calls a G; its own rows are counted in it."""


def count(name, data, options):
    """Parameters in M and operations in the paper's G."""
    tasks, size = data
    with torch.device("meta"):
        model = me.build_model(name, tasks, size, **options).eval()
    parameters = sum(parameter.numel() for parameter in model.parameters())
    if any(type(part).__name__ == "LowRankExperts" for part in model.modules()):
        model = me.fuse(model, mode="precomposed")
    unit = UNITS[name.partition("_")[0]]
    return {
        "parameters": round(parameters / 1e6, 2),
        "flops": round(me.count(model, size).macs / unit, 2),
        "unit": "2**30" if unit == 2**30 else "1e9",
    }


def modules_of_table_1():
    """Chapter 5's formulas: T = 5 tasks, width 384, 32 × 32 tokens, and the layer that the residuals imply."""
    width, tokens, tasks, mean_rank = 384, 32 * 32, 5, 64
    layer, once = (giga * 2**30 / tokens for giga in (0.0175, 0.1))
    for row in published.table("mlore", 1).rows:
        experts, kernel = row["experts"], row["kernel"]
        weights = kernel**2 + 1
        call = weights * width**2 * tokens / 2**30
        standard = (experts + tasks) * weights * width**2 + experts * layer + once
        low_rank = (kernel**2 + tasks) * width**2 + experts * (
            weights * width * mean_rank + layer
        )
        yield (
            f"module, {experts} experts, {kernel}×{kernel}",
            {
                "parameters_moe": round(standard / 1e6, 2),
                "parameters_mlore": round(low_rank / 1e6, 2),
                "flops_moe": round(
                    (experts + tasks) * call + 0.0175 * experts + 0.1, 2
                ),
                "flops_mlore": round(tasks * call + 0.0175 * experts, 2),
                "unit": "2**30",
            },
        )


def encoders():
    for printed, name in (("Swin-T", "swin_tiny"), ("Swin-S", "swin_small")):
        with torch.device("meta"):
            net = build_backbone(name, NYUD[1])
        counted = sum(p.numel() for p in net.parameters()) / 1e6
        yield f"encoder, {printed}", {"parameters_encoder": round(counted, 2)}


def main() -> None:
    models = {name: count(*how) for name, how in MODELS.items()}
    told = versions()
    write(
        "counts",
        {
            "command": "python book/results/make_counts.py",
            "commit": told["commit"],
            "versions": {"python": told["python"], **told["packages"]},
            "models": {**models, **dict(modules_of_table_1()), **dict(encoders())},
        },
    )  # fmt: skip


if __name__ == "__main__":
    main()
