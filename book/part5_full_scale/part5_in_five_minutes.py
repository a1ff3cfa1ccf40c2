# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Part V in five minutes
#
# **The networks are built. What changes when they meet real data, a GPU, the papers' claims, and your own pictures?**
#
# ## In one sentence
#
# The code stays the same, but every number now depends on how files are read, what fits into memory, how many seeds stand behind it, and what chance would have shown
# in its place.
#
# *Before you start:* [Part I in five minutes](../part1_foundations/part1_in_five_minutes.ipynb). *Time:* 5 minutes of reading, ten seconds of
# running. *Hardware:* two CPU cores, 4 GB of memory; no GPU, no download.

# %% tags=["hide-input"]
import json
from pathlib import Path
from tempfile import TemporaryDirectory

import matplotlib.pyplot as plt
import numpy as np
import torch

import mlore_edu as me
from mlore_edu import plots, published
from mlore_edu import scorecard as sc
from mlore_edu.data.dollhouse_files import VALIDATION_SEEDS
from mlore_edu.training.budget import stored_budget
from mlore_edu.training.recipes import find_recipe

plots.use_style()
tasks, results = me.DOLLHOUSE, Path("../results")

# %% [markdown]
# ## Files before networks
#
# **A file may be all there and mean something else.** Class maps of PASCAL-Context mark pixels that do not count with 255, a band around every object among them.
# Whoever reads it as a class gets a number, only not the papers'.

# %%
model = me.from_pretrained("../models/baseline")
room = me.scene(VALIDATION_SEEDS, 128, "easy")
answer = me.predict(model, room.image)["semseg"][None]  # (1, 128, 128)
label = torch.where(
    torch.from_numpy(room.edge) > 0, 255, torch.from_numpy(room.semseg)
)
scores = []
for read in (label, torch.where(label == 255, 0, label)):
    meter = me.MeanIoU(tasks["semseg"].channels)
    meter.update(answer, read[None].long())
    scores.append(meter.compute())
print(
    f"mIoU {scores[0]:.0f} % as meant, {scores[1]:.0f} % with void read as a class"
)
assert scores[0] > scores[1] + 1

# %% [markdown]
# ## Memory before hours
#
# **What a training step holds can be counted before a GPU is rented, and most of it is what the way back needs.** A rehearsal without memory and without a GPU, at
# the paper's settings:

# %%
name = "pascal_mlore_vit_base"
budget = stored_budget(find_recipe(name))
kept = budget.peak - budget.weights - budget.gradients - budget.optimizer
print(f"{name}: {budget.peak / 2**30:.0f} GiB at the worst moment,")
print(f"    {100 * kept / budget.peak:.0f} % of it kept for the way back")
assert kept > budget.peak / 2

# %% [markdown]
# ## A claim is two rows and a sign
#
# **A paper's sentence says that one row is better than another. So it can be judged by a rule that was written first, with intervals over seeds.**

# %%
stored = json.loads((results / "counts.json").read_text())["models"]
runs, claims = sc.read_runs(results), sc.claims()
verdicts = sc.tally(sc.judge(claim, runs, stored) for claim in claims)
assert sum(verdicts.values()) == len(claims)

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-part5-verdicts", "caption": "What became of the claims of the papers' tables, by the rule of chapter 17. Noise: the interval of our seeds holds zero."}, "image": {"alt": "Seven horizontal bars with counts of claims. The longest is noise on Dollhouse; the others, supported, contradicted, decided by counting and untestable here, are shorter."}}
figure, axis = plt.subplots(figsize=(7.5, 2.4))
bars = axis.barh(list(verdicts), list(verdicts.values()), color=plots.OKABE_ITO[0])
axis.bar_label(bars, padding=3)
axis.invert_yaxis()
_ = axis.set_xlabel("claims")

# %% [markdown]
# Most of the papers' steps are smaller than what a few seeds can see; how far a seed moves the papers' own numbers nobody has said.
#
# ## A picture needs its null model
#
# **A picture of a network's inside shows something in any case; whether it was learned, only a picture of chance can tell.** MLoRE prints how much each task takes from
# each expert. If every task keeps its numbers and forgets which expert they belong to, how even would the experts' load be?

# %%
table = published.table("mlore_supplement", "figure 5")
names = [column.name for column in table.columns if column.name.startswith("rank")]
cells = np.array([[row[name] for name in names] for row in table.rows], dtype=float)
# a few cells are not to be seen in our copy, and count as 0 here
printed = np.nan_to_num(cells).reshape(8, 5, 15)  # (modules, tasks, experts)


def unevenness(gates):
    return gates.sum(axis=1).std(axis=1).mean()  # of the experts' loads


die = np.random.default_rng(0)
chance = [unevenness(die.permuted(printed, axis=-1)) for _ in range(1000)]
assert unevenness(printed) < np.quantile(chance, 0.025)

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-part5-null", "caption": "How uneven the experts' load is in the eight printed matrices (line), and in a thousand shuffled ones (histogram)."}, "image": {"alt": "A grey histogram, and a blue vertical line far to the left of it."}}
figure, axis = plt.subplots(figsize=(6, 1.9))
axis.hist(chance, 30, color="0.75", label="shuffled")
axis.axvline(unevenness(printed), color=plots.OKABE_ITO[0], lw=2, label="printed")
axis.set(xlabel="spread of the load over the experts", yticks=[])
_ = axis.legend()

# %% [markdown]
# The load is more even than chance would make it: the balance loss at work.
#
# ## Your own pictures, your own decoder
#
# **`me.predict` answers for a picture of any size, and a folder with weights and a few words gives the network to others.** On the command line, `mlore-edu
# predict` writes the answers as files, `export` makes the folder or an ONNX file, and `demo` opens a page in the browser.

# %% mystnb={"figure": {"name": "fig-part5-wide", "caption": "A picture of another shape than the network was trained on, and three of its answers, at the picture's own size."}, "image": {"alt": "A wide rendered room, and beside it three of the network's answers in the same wide shape: classes, normals and depth."}}
wide = me.scene(VALIDATION_SEEDS + 1, (90, 200), "easy").image
answers = me.predict(model, wide)
assert answers["normals"].shape == (3, 90, 200)
shown = {name: answers[name] for name in ("semseg", "normals", "depth")}
_ = plots.show_grid([{"image": wide, **shown}])

# %%
with TemporaryDirectory() as folder:
    me.save_pretrained(model, Path(folder, "shared"))
    again = me.predict(Path(folder, "shared"), wide)
assert all(torch.equal(answers[task], again[task]) for task in tasks.names)

# %% [markdown]
# **A decoder is a class that turns maps into one map per task**, so `me.build_model` takes yours as it takes the
# library's, and the papers' pieces recombine: MLoRE's experts on TIF's four scales, or experts with TaskExpert's memory.
# Neither of the two could be shown to beat both its parents, and the first lost to a control of its size without any
# expert.
#
# ## In numbers

# %% tags=["hide-input"]
sizes = {
    "mlore, ViT-L": published.table("mlore", 5).row(method="MLoRE"),
    "taskexpert, ViT-B": published.table("taskexpert", 2).row(variant="ViT-B"),
}
for model_name, row in sizes.items():
    counted = stored[model_name]["parameters"]
    print(
        f"{model_name:18}{counted:.0f} M counted, {row['parameters']:.0f} M printed"
    )
    assert abs(counted / row["parameters"] - 1) < 0.03
print(len(claims), "claims of four papers judged")

# %% [markdown]
# ## Where to read more
#
# - [Chapter 15](15_pascal_context_and_nyud_v2.ipynb): fetching, preparing and verifying the two data sets, which nobody here has seen.
# - [Chapter 16](16_training_on_cuda.ipynb): recipes, memory, several GPUs, resuming.
# - [Chapter 17](17_results_side_by_side.ipynb): every table, and every claim with its verdict.
# - [Chapter 18](18_looking_inside.ipynb): four trained networks, beside networks that cannot know.
# - [Chapter 19](19_your_own_images.ipynb): pictures of any kind, metres of another camera, sharing, ONNX, a page in the browser.
# - [Chapter 20](20_build_your_own.ipynb): a decoder of your own, the papers' pieces recombined, and whether it helps.
