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
# # Part II in five minutes
#
# **Six tasks want different filters and have some in common. How can each have its own choice of fifteen experts, and the whole still cost little?**
#
# ## In one sentence
#
# MLoRE {cite}`yang2024mlore` gives every task, anew for each image, a weighted choice of thin shared experts, beside a path that all tasks must take and one of
# the task's own; and since all of it is linear, it becomes one convolution after training.
#
# *Before you start:* [Part I in five minutes](../part1_foundations/part1_in_five_minutes.ipynb). *Time:* 5 minutes of reading, ten seconds of
# running. *Hardware:* two CPU cores, 4 GB of memory; no GPU, no download.

# %% tags=["hide-input"]
import json
from itertools import pairwise
from pathlib import Path
from statistics import mean

import matplotlib.pyplot as plt
import numpy as np
import torch

import mlore_edu as me
from mlore_edu import plots, published
from mlore_edu.data.dollhouse_files import VALIDATION_SEEDS, DollhouseScenes
from mlore_edu.data.transforms import denormalise, eval_transform
from mlore_edu.pictures import to_rgb
from mlore_edu.scorecard import read_runs
from mlore_edu.seeds import paired_interval

plots.use_style()
tasks, results = me.DOLLHOUSE, Path("../results")

# %% [markdown]
# ## A choice of experts
#
# **A router looks at the image and gives each task its nine of fifteen experts, with weights.** A trained network of the book, two rooms that it has
# not seen, and the gates of its last module:

# %%
model = me.from_pretrained("../models/mlore").eval()
to_tensor = eval_transform(128)
rooms = DollhouseScenes(2, 128, "easy", VALIDATION_SEEDS, transform=to_tensor)
images = torch.stack([rooms[i]["image"] for i in range(2)])  # (2, 3, 128, 128)

# %%
with torch.inference_mode():
    output = model(images)
gates = list(output.routing.values())[-1]  # (2, T, N)
assert ((gates > 0).sum(dim=-1) == 9).all()
assert np.corrcoef(gates.flatten(1))[0, 1] > 0.7  # the rooms hardly matter

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-part2-gates", "caption": "Two rooms and the gates that they get: a row for each task, a column for each expert, from the lowest rank to the highest. Dark: much is taken; white: nothing."}, "image": {"alt": "Two rendered rooms, and beside each a table of six rows and fifteen columns in shades of blue. Rows differ from one another; the two tables look nearly the same."}}
figure, axes = plt.subplots(1, 4, figsize=(7.5, 1.7), width_ratios=(1, 2.2, 1, 2.2))
for i in range(2):
    axes[2 * i].imshow(to_rgb("image", denormalise(images[i])))
    axes[2 * i + 1].imshow(gates[i], cmap="Blues", vmin=0, vmax=0.3, aspect="auto")
    axes[2 * i + 1].set_xlabel("experts", fontsize=9)
for axis in axes:
    axis.set(xticks=[], yticks=[])
    axis.spines[:].set(visible=True, color="0.7")
short = [task.title.split()[-1].lower() for task in tasks]
_ = axes[1].set_yticks(range(6), short, fontsize=8)

# %% [markdown]
# The tasks choose differently; the rooms hardly matter. That is the rule in our networks, and in the paper's figure too.
#
# ## Thin experts
#
# **An expert that squeezes $C$ channels through $r$ is a 3 × 3 convolution of rank $r$, and costs $r/C$ of a full one.** The fifteen ranks all differ,
# so that some experts are simple and some are rich.

# %%
module = model.decoder.scales[-1][-1]
kernels, _ = module.experts.kernels()  # (N, C, C, 3, 3): each as one convolution
ranks = torch.linalg.matrix_rank(kernels.flatten(2), rtol=1e-4)  # (N,)
assert ranks.tolist() == list(module.options.ranks)
print("ranks", *ranks.tolist(), "of", kernels.shape[1])

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-part2-cost", "caption": "Weights of one module with 3 × 3 experts, at the paper's width: counted here (lines) and printed in its Table 1 (squares)."}, "image": {"alt": "Two rising lines over 5, 10 and 15 experts. Full experts rise from about 15 to 30 million weights, low-rank ones from about 3 to 6 million. Black squares lie on both lines."}}
counted = json.loads((results / "counts.json").read_text())["models"]
table1 = [row for row in published.table("mlore", 1).rows if row["kernel"] == 3]
figure, axis = plt.subplots(figsize=(5, 2.3))
N = [row["experts"] for row in table1]
for kind, name in (("moe", "full experts"), ("mlore", "MLoRE")):
    column = f"parameters_{kind}"
    lines = [counted[f"module, {n:.0f} experts, 3×3"][column] for n in N]
    axis.plot(N, lines, label=name)
    axis.plot(N, [row[column] for row in table1], "s", color="black", ms=4)
axis.set(xticks=N, xlabel="experts", ylabel="million weights", ylim=(0, None))
_ = axis.legend()

# %% [markdown]
# ## One path for all, one for each, one convolution
#
# **An expert learns only from the tasks that choose it, so a *generic path* joins all tasks and a *task expert* serves
# each alone. Gates, sums and BatchNorm are linear at test time: three paths become one kernel for each image and
# task.**

# %%
with torch.inference_mode():
    fused = me.fuse(model)(images).predictions
for name, answer in output.predictions.items():
    scale = answer.abs().max().item()
    torch.testing.assert_close(fused[name], answer, rtol=0, atol=1e-4 * scale)
print("the fused network gives the same answers")

# %% [markdown]
# The kernel has to be made anew for each image: from ready kernels, which must be stored, or from their factors, which
# costs operations. It is a bill to check, not a gift.
#
# ## What seeds leave of it
#
# **The paper adds one part after the other and trains each once; trained with several seeds, the steps have intervals.**

# %%
runs, printed = read_runs(results), published.table("mlore", 2)
rows = ["Baseline", "Baseline + LoRE", "+ GC", "+ SPE"]
theirs, ours = np.diff([printed.row(setting=row)["delta_m"] for row in rows]), []
for before, after in pairwise(runs["mlore/table2", row] for row in rows):
    gain = [
        {s: mean(run.values()) for s, run in of.items()} for of in (before, after)
    ]
    seeds = gain[0].keys() & gain[1].keys()
    ours.append(paired_interval([gain[1][s] - gain[0][s] for s in seeds]))

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-part2-steps", "caption": "Steps of Δm from row to row of the paper's Table 2. Squares: printed, one run a row, PASCAL-Context. Intervals: ours on Dollhouse, 95 %, paired by seed."}, "image": {"alt": "Three rows, one for each part that is added. Each has a black square between zero and two percent, and a blue interval two to four percent wide that holds zero."}}
figure, axis = plt.subplots(figsize=(7.5, 1.9))
value, low, high = np.array(ours).T[:3]
ends = [value - low, high - value]
axis.errorbar(value, range(3), xerr=ends, fmt="o", capsize=3, label="ours")
axis.plot(theirs, range(3), "s", color="black", label="printed")
axis.axvline(0, color="0.6", lw=1)
names = ["low-rank experts", "generic path", "task experts"]
axis.set(yticks=range(3), yticklabels=names, xlabel="step of Δm (%)")
axis.set_ylim(2.5, -0.5)
_ = figure.legend(loc="outside right upper")

# %% [markdown]
# ## In numbers

# %% tags=["hide-input"]
here, there = counted["mlore, ViT-B"], printed.row(setting="+ SPE")
print(f"ViT-B: {here['parameters']:.1f} M weights counted,", end=" ")
print(f"{there['parameters']:.0f} M printed")
first = printed.row(setting="Baseline")["delta_m"]
print(f"Δm printed: {first} % for the baseline, {there['delta_m']} % for MLoRE")
assert abs(here["parameters"] - there["parameters"]) < 1

# %% [markdown]
# ## Where to read more
#
# - [Chapter 4](04_mixture_of_experts.ipynb): experts, gates, noise, and why experts die.
# - [Chapter 5](05_low_rank_experts.ipynb): a convolution as a matrix, and fifteen experts as one.
# - [Chapter 6](06_generic_path_and_task_experts.ipynb): who teaches which weight.
# - [Chapter 7](07_routers.ipynb): what a router sees, and what chance would do.
# - [Chapter 8](08_reparameterisation.ipynb): the proof, and the true price.
# - [Chapter 9](09_mlore_assembled.ipynb): the whole network, and its ablations with several seeds.
#
# Next: [Part III in five minutes](../part3_taskexpert/part3_in_five_minutes.ipynb).
