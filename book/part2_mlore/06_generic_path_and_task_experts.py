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
# # The generic path and the task expert
#
# Each of six tasks picks nine of fifteen experts, anew for every image. Where two tasks pick the same expert they teach it
# together, and so learn from each other. Will any expert ever see all the tasks?

# %%
import dataclasses
import itertools
import json
import math
import textwrap
from pathlib import Path

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from torch import nn

# %%
import mlore_edu as me
from mlore_edu import plots
from mlore_edu.data.dollhouse_files import VALIDATION_SEEDS, DollhouseScenes
from mlore_edu.data.loaders import make_loader
from mlore_edu.data.transforms import denormalise, eval_transform, train_transform
from mlore_edu.pictures import to_rgb

plots.use_style()
tasks = me.DOLLHOUSE
T = len(tasks)
# %%
augment = train_transform(64, scale=(1, 1), photometric=False)
training = DollhouseScenes(160, 64, "easy", transform=augment)
validation = DollhouseScenes(
    32, 64, "easy", VALIDATION_SEEDS, transform=eval_transform(64)
)
scenes = next(iter(make_loader(validation, 32, train=False)))
criterion = me.MultiTaskLoss(tasks, edge_positive_weight=0.8)


# %% [markdown]
# Let us ask a network. It has the low-rank experts of [chapter 5](05_low_rank_experts.ipynb), the gates of
# [chapter 4](04_mixture_of_experts.ipynb), and no other way for one task to reach another. A few seconds of training
# are enough for its routers to have an opinion.


# %%
def train(model, steps=60):
    optimizer = torch.optim.Adam(model.parameters(), 4e-3, weight_decay=1e-6)
    schedule = torch.optim.lr_scheduler.PolynomialLR(optimizer, steps, power=0.9)
    for batch in itertools.islice(make_loader(training, 8, train=True), steps):
        output = model(batch["image"])
        total, _ = criterion(output.predictions, batch)
        optimizer.zero_grad()
        (total + output.balance_loss).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 10.0)
        optimizer.step()
        schedule.step()
    return model.eval()


# %%
def build(**options):
    torch.manual_seed(0)
    return me.build_model(
        "mlore_vit_nano", tasks, img_size=(64, 64), modules=1, **options
    )


# %%
mixture = train(build(generic=False, task_experts=False))
with torch.no_grad():
    routing = mixture(scenes["image"]).routing
gates = routing["scale 4, module 1"]  # (32, T, N)


# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-06-one-image", "caption": "Which tasks use which expert, for one image. Each row is a task with nine experts, the darker the larger the gate; above each expert, named by its rank, stands how many of the six tasks use it."}, "image": {"alt": "At the left a picture of a room. At the right a grid of six rows, the tasks, and fifteen columns, the experts of rank 2 to 16. In every row nine cells are filled in shades of blue. Numbers above the columns, mostly 3 to 5, say how many tasks use that expert."}}
def show_gates(index, gates, ranks):
    figure = plt.figure(figsize=(7.5, 2.7))
    left, right = figure.subplots(1, 2, width_ratios=(1, 2.6))
    left.imshow(to_rgb("image", denormalise(scenes["image"][index])))
    left.set(xticks=[], yticks=[])
    left.spines[:].set_visible(False)
    used = gates[index] > 0  # (T, N)
    shown = gates[index].where(used, torch.nan)
    right.imshow(shown.sqrt(), cmap="Blues", vmin=-0.1, aspect="auto")
    right.set_xticks(range(len(ranks)), ranks)
    right.set_yticks(range(T), [task.title for task in tasks])
    right.set_xlabel("expert (rank)")
    right.set_xticks([n + 0.5 for n in range(len(ranks))], minor=True)
    right.set_yticks([t + 0.5 for t in range(T)], minor=True)
    right.grid(which="minor", color="0.85", lw=0.5)
    right.tick_params(which="both", length=0)
    for n, number in enumerate(used.sum(dim=0).tolist()):
        right.text(
            n, -0.75, number, ha="center", weight="bold" if number == T else None
        )
    right.set_title("tasks that use the expert", pad=16, fontsize=9)


ranks = mixture.decoder.scales[3][0].experts.ranks
show_gates(0, gates, ranks)

# %% [markdown]
# In {numref}`fig-06-one-image` most experts serve some of the tasks. This chapter is about one that serves all of them, always,
# and about others that serve one each. In between it asks what becomes of a weight that six tasks pull at.
#
# ## What you will be able to do
#
# - count how many tasks meet in an expert, and prove that an expert learns from those tasks alone;
# - build MLoRE's generic path, and measure with cosines whether the tasks' gradients conflict in it and below it;
# - say exactly what a stopped gradient changes and what it leaves as it was, and prove it with autograd;
# - run one low-rank expert per task as a single grouped convolution;
# - assemble the paper's Equation 2 in twenty lines, and judge from several seeds what each path brings.
#
# *Before you start:* [chapter 4](04_mixture_of_experts.ipynb) for gates and [chapter 5](05_low_rank_experts.ipynb) for
# low-rank experts; the chain rule. *Time:* 35 minutes of reading, half a minute of running, most of it training.
# *Hardware:* two CPU cores, 4 GB of memory; no GPU, no download.

# %% [markdown]
# ## How many tasks meet in an expert?
#
# Let $g_n^t$ be the gate of expert $n$ for task $t$, zero where the expert is not among the task's $k$. The number of
# tasks that meet in expert $n$ is
#
# ```{math}
# :label: eq-06-meet
# m_n = \sum_{t=1}^{T} [\, g_n^t > 0 \,].
# ```
#
# Its mean over the experts is no matter of learning: $T$ tasks hand out $kT$ places among $N$ experts, so it is
# $kT/N = 9 \cdot 6/15 = 3.6$, in every image.

# %%
met = (gates > 0).sum(dim=1)  # (32, N)
print(f"mean number of tasks in an expert: {met.float().mean():.1f}")
assert ((gates > 0).sum(dim=2) == 9).all()

# %% [markdown]
# How it spreads around 3.6 *is* learned. Sixty steps prove little, so we look at recorded networks: three seeds with two
# modules on each of three scales, trained for 300 steps and run on 100 validation images (`book/results/make_mlore_sweeps.py`).
# Like the paper's Fig. 4b, they are without the generic path.

# %%
record = json.loads(Path("../results/mlore_routing.json").read_text())
runs = [run for run in record["runs"] if run["key"] == "mlore generic=False"]
counts = torch.tensor(
    [
        [m["images_by_tasks"] for m in run["modules"].values()] for run in runs
    ]  # for each expert, the number of images in which 0, 1, …, T tasks use it
)  # (seeds, modules, N, T + 1)
images = record["runs"][0]["images"]
print("seeds, modules, experts, 0…T tasks:", tuple(counts.shape))
assert (counts.sum(dim=3) == images).all()

# %%
overall = counts.sum(dim=(0, 1, 2)) / counts.sum()  # (T + 1,)
chance = torch.tensor(
    [math.comb(T, m) * 0.6**m * 0.4 ** (T - m) for m in range(T + 1)]
)
print(f"all six tasks, by chance: {100 * chance[T]:.1f} %")
print("measured: under a fifth of that:", bool(overall[T] < chance[T] / 5))

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-06-meetings", "caption": "Number of tasks that use an expert in one image. Left: for each expert of the last module, the share of images in which so many tasks use it (three networks, 100 images each). Right: over all experts and modules, beside what six tasks would do that choose nine experts each by lot."}, "image": {"alt": "At the left fifteen stacked bars, one for each rank from 2 to 16, made almost wholly of the shades for two to five tasks, three and four above all; the darkest, for six, is hardly to be seen. At the right bars over zero to six tasks with a peak at three and four, higher and narrower than the dots of chance; at six tasks the dot is far above the bar."}}
figure, (left, right) = plt.subplots(1, 2, figsize=(7.5, 3.0), width_ratios=(3, 2))
shares = 100 * counts[:, -1].sum(dim=0) / (len(runs) * images)  # (N, T + 1)
shades = plt.colormaps["cividis_r"](torch.linspace(0, 1, T + 1).numpy())
bottom = torch.zeros(len(ranks))
for m in range(T + 1):
    left.bar(
        range(len(ranks)), shares[:, m], bottom=bottom, color=shades[m], label=m
    )
    bottom = bottom + shares[:, m]
left.set_xticks(range(len(ranks)), ranks)
left.set(
    xlabel="expert (rank)", ylabel="images (%)", title="last module, each expert"
)
figure.legend(loc="outside upper left", ncols=T + 1, title="tasks in the expert",
              fontsize=8, title_fontsize=8, columnspacing=0.9, handlelength=1)  # fmt: skip
right.bar(range(T + 1), 100 * overall, color=shades, edgecolor="0.4", lw=0.5)
right.plot(
    range(T + 1), 100 * chance, "o", color=plots.OKABE_ITO[3], label="by lot"
)
right.set(
    xlabel="tasks in the expert", ylabel="images × experts (%)", title="all modules"
)
_ = right.legend()

# %% [markdown]
# The paper's answer holds for our small networks: an expert that all tasks use is a rarity
# ({numref}`fig-06-meetings`). It is far rarer than if the tasks drew lots. A likely cause is the balance loss, which wants all
# experts equally busy: what some tasks take often, the others had better leave.
# [Chapter 7](07_routers.ipynb) goes on from here and asks what "rare" has to be compared with.
#
# ### An expert learns from those who choose it
#
# Why does it matter who meets? Because where the gate is zero, no gradient passes. We can read off from autograd which
# task teaches which expert in one image, and find the gates again.

# %%
one = scenes["image"][:1]
output = mixture(one)
experts = mixture.decoder.scales[3][0].experts
taught = torch.zeros(T, len(ranks), dtype=torch.bool)

# %%
for t, name in enumerate(tasks.names):
    some_loss = output.predictions[name].square().sum()
    (gradient,) = torch.autograd.grad(
        some_loss, experts.up_weight, retain_graph=True
    )  # (C, sum of ranks)
    for n, block in enumerate(gradient.split(experts.ranks, dim=1)):
        taught[t, n] = block.any()

# %%
assert torch.equal(taught, output.routing["scale 4, module 1"][0] > 0)
print("a task teaches the experts it chose, and no other")

# %% [markdown]
# Over many images a task may well teach every expert something. But in most images there is no expert in which all tasks come
# together, and in none can one be counted on. MLoRE {cite}`yang2024mlore` builds such a place ({numref}`fig-06-paths`): beside the
# experts it lays a path that all tasks take, and another that each takes alone.

# %% tags=["hide-input"]
from matplotlib.patches import FancyBboxPatch

BLUE, ORANGE, GREEN, RED = "#7fb2d6", "#f3cf7f", "#7fceb4", plots.OKABE_ITO[3]


def box(x, y, width, height, colour, text=""):
    shape = FancyBboxPatch(
        (x, y), width, height, boxstyle="round,pad=0,rounding_size=0.04"
    )
    canvas.add_patch(shape)
    shape.set(facecolor=colour, edgecolor="0.3", lw=0.8)
    write(x + width / 2, y + height / 2, text)


def write(x, y, text, size=9, **style):
    canvas.text(x, y, text, fontsize=size, ha="center", va="center", **style)


def arrow(start, end, back=False):
    style = {"ls": ":", "color": RED, "lw": 1.6} if back else {"lw": 1}
    canvas.annotate("", end, start, arrowprops={"arrowstyle": "->", **style})


def sheets(x, text):
    for s in reversed(range(T)):
        box(x + 0.045 * s, 1.28 + 0.045 * s, 0.55, 0.55, "#cfe3f1")
    write(x + 0.275, 1.555, text, size=10)


# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-06-paths", "caption": "One module. Each task's feature takes three paths, and the results are added. The paths differ in who owns their weights: all tasks one convolution; all tasks a pool of experts, mixed by gates; every task an expert of its own. Dotted: the way of the gradients, which ends at the entrance of the generic path."}, "image": {"alt": "A diagram from left to right. A shared feature map X goes through one convolution per task to six task features. From there three arrows lead to three rows: one wide box, the generic path; fifteen narrow boxes with gates, the shared experts; and six boxes, the task experts. They join in a sum, which gives six new features. Dotted arrows run back along all three rows; along the upper one they end at a bar before the task features."}}
figure = plt.figure(figsize=(7.5, 3.3), layout="none")
canvas = figure.add_axes((0, 0, 1, 1), xlim=(0, 7.5), ylim=(0, 3.3))
canvas.axis("off")
box(0.1, 1.35, 0.55, 0.55, "#e8e8e8", "$\\mathbf{X}$")
arrow((0.7, 1.63), (1.3, 1.63))
write(1.0, 1.86, "1×1, one\nper task", size=8)
sheets(1.36, "$\\mathbf{X}^t$")
levels = (2.45, 1.4, 0.35)
box(3.1, levels[0], 2.3, 0.5, BLUE, "one 3×3 convolution")
for n in range(15):
    box(3.1 + n * 0.155, levels[1], 0.12, 0.5, ORANGE)
frame = {"fc": "white", "ec": "0.3", "pad": 2, "lw": 0.8}
write(4.25, levels[1] + 0.25, "gates", bbox=frame)
for t in range(T):
    box(3.1 + t * 0.39, levels[2], 0.33, 0.5, GREEN, str(t + 1))
titles = (
    "generic path $f_g$",
    "shared experts $f_{lre}$",
    "task experts $f_{se}^t$",
)
for y, title in zip(levels, titles):
    write(4.25, y + 0.66, title)
    arrow((2.3, 1.65), (3.05, y + 0.3))
    arrow((5.45, y + 0.3), (6.0, 1.65))
    arrow((6.0, 1.55), (5.47, y + 0.15), back=True)
    if y != levels[0]:
        arrow((3.05, y + 0.15), (2.3, 1.55), back=True)
canvas.plot((3.02, 3.02), (levels[0], levels[0] + 0.5), color=RED, lw=3)
write(2.6, 2.75, "the gradient\nstops here", size=8, color=RED)
box(6.02, 1.45, 0.3, 0.3, "white", "+")
arrow((6.36, 1.6), (6.6, 1.6))
sheets(6.66, "$\\mathbf{S}^t$")

# %% [markdown]
# ## One path for all
#
# As always in this book, the features of all tasks travel as one tensor $(B, T, C, H, W)$. A 1 × 1 convolution per task makes
# them from the backbone's map, $\mathbf{X}^t = f_{t,1\times1}(\mathbf{X})$, and the **generic path** is one 3 × 3
# convolution, the same for all tasks:
#
# ```{math}
# :label: eq-06-generic
# f_g(\mathbf{X}^t) = \mathbf{W}_g \circledast \mathbf{X}^t + \mathbf{b}_g ,
# ```
#
# where $\circledast$ is the convolution, as in the paper. To weights that are the same for all tasks, a task is just one more
# image. So we fold tasks into the batch.

# %%
full = train(build())  # all three paths
decoder, module = full.decoder, full.decoder.scales[3][0]
with torch.no_grad():
    X_shared = decoder.narrow[3](full.backbone(scenes["image"][:4])[3])
    X = module.project(X_shared)  # (4, T, C, 8, 8)
W_g, b_g = module.generic.weight, module.generic.bias

# %%
folded = X.flatten(0, 1)  # (4·T, C, 8, 8)
G = F.conv2d(folded, W_g, b_g, padding=1).unflatten(0, (4, T))  # (4, T, C, 8, 8)
for t in range(T):
    torch.testing.assert_close(G[:, t], F.conv2d(X[:, t], W_g, b_g, padding=1))
torch.testing.assert_close(G.flatten(0, 1), module.generic(folded))

# %% [markdown]
# Since all tasks go through the same weights, and the loss is a sum over the tasks, so is the gradient:
# $\partial \mathcal{L}/\partial \mathbf{W}_g = \sum_t \partial \mathcal{L}_t/\partial \mathbf{W}_g$, and no gate removes a summand.
# Here are six tasks in one image, all of them teaching.


# %%
def gradient_of(loss, leaves):
    parts = torch.autograd.grad(loss, leaves, retain_graph=True)
    return torch.cat([part.flatten() for part in parts])  # (numbers,)


predictions = full(one).predictions
some_losses = [predictions[name].square().mean() for name in tasks.names]
by_task = torch.stack([gradient_of(loss, [W_g]) for loss in some_losses])
print("tasks that teach the generic path:", int(by_task.any(dim=1).sum()))
together = gradient_of(sum(some_losses), [W_g])
torch.testing.assert_close(by_task.sum(dim=0), together, rtol=1e-3, atol=1e-5)

# %% [markdown]
# ## Do the tasks pull apart?
#
# Six gradients in one sum. They may agree, ignore each other, or conflict: a step that is good for one task may be bad for another.
# To first order, a small step $-\eta\,\mathbf{a}$ along task $a$'s gradient changes the loss of task $b$ by
# $-\eta\,\mathbf{a} \cdot \mathbf{b}$, so what counts is the sign of the product; dividing by the lengths makes pairs comparable:
#
# ```{math}
# :label: eq-06-cosine
# \cos(\mathbf{a}, \mathbf{b}) = \frac{\mathbf{a} \cdot \mathbf{b}}{\lVert \mathbf{a} \rVert\, \lVert \mathbf{b} \rVert} .
# ```
#
# Above zero the tasks help each other, below they conflict {cite}`yu2020gradient`. At zero neither notices the other.


# %%
def cosines(gradients):  # (T, numbers)
    unit = F.normalize(gradients, dim=1)
    return unit @ unit.T  # (T, T)


flat, angle = torch.tensor([[1.0, 0.0], [2.0, 0.0]]), math.pi / 3
turned = torch.tensor([[5 * math.cos(angle), 5 * math.sin(angle)]])
print(cosines(torch.cat([flat, turned])))

# %% [markdown]
# We look at two places. In the *generic path* all gradients arrive at the same weights. In the *backbone*, below the module, they
# arrive by three paths, and the paper lets only two of them through: during training it **stops** the gradient at the entrance of the
# generic path ({numref}`fig-06-paths`). The authors found that training becomes easier, and say that conflicts between gradients are solved by it. In
# code it is one word, `detach`. Our function flips this switch without touching anything else.


# %%
from mlore_edu.decoders.mlore import MLoREModule


def set_stop(model, stop):
    for part in model.modules():
        if isinstance(part, MLoREModule):
            part.options = dataclasses.replace(part.options, stop_gradient=stop)


def task_gradients(model, leaves, stop):
    set_stop(model, stop)
    torch.manual_seed(0)  # the same noise in the gates
    model.train()  # BatchNorm and noise as in training
    batch = {name: values[:16] for name, values in scenes.items()}
    _, by_task = criterion(model(batch["image"]).predictions, batch)
    model.eval()
    return torch.stack([gradient_of(by_task[name], leaves) for name in tasks.names])


# %%
generic = [decoder.scales[s][0].generic.weight for s in (1, 2, 3)]
below = list(full.backbone.blocks.parameters())
at_generic = {stop: task_gradients(full, generic, stop) for stop in (True, False)}
at_blocks = {stop: task_gradients(full, below, stop) for stop in (True, False)}
print("same in the generic path:", torch.allclose(*at_generic.values()))
print("same in the backbone:", torch.allclose(*at_blocks.values()))

# %% [markdown]
# In the generic path the switch changes nothing, and we shall prove that it cannot. In the backbone it does. How much, and is there a
# conflict to be solved? One network, trained for seconds, will not tell. `book/results/make_chapter06.py` measured the same cosines in six networks of two
# modules a scale, trained for 300 steps, three with the gradient stopped and three not, on six batches of validation images each. In every network it then set the
# switch both ways, so that the gradients we compare differ by it alone ({numref}`fig-06-conflict`).

# %%
record = json.loads(Path("../results/chapter06.json").read_text())
measured = [run["measured"]["trained"] for run in record["runs"]]
switches = ("stopped", "not stopped")
matrices = {
    (place, switch): torch.tensor([m[switch][place] for m in measured])
    for place in ("generic", "maps", "backbone")
    for switch in switches
}  # (6 networks, T, T) each
pairs = ~torch.eye(T, dtype=torch.bool)

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-06-conflict", "caption": "Cosines between the tasks' gradients, times 100, averaged over six trained networks: at the weights of the generic paths, at the features that the backbone hands over, and at the backbone's weights. Above with the gradient stopped, below not. On the diagonal, in grey, the same task on two different batches (for features there is no such number)."}, "image": {"alt": "Five square matrices of six by six numbers, coloured from orange for negative to purple for positive. The matrix of the generic path holds zeros beside its diagonal. At the features of the backbone the numbers are small, at its weights mostly between 5 and 50 and positive. Upper and lower row look much alike."}}
short = ["seg", "parts", "sal", "norm", "depth", "edge"]


def show_cosines(axis, matrix, diagonal=True, names=True):  # times 100
    axis.imshow(matrix.where(pairs, 0), cmap="PuOr", vmin=-70, vmax=70)
    for a, b in itertools.product(range(T), range(T)):
        value = round(matrix[a, b].item())
        colour = "0.55" if a == b else "white" if abs(value) > 45 else "black"
        if a != b or diagonal:
            axis.text(
                b, a, value, ha="center", va="center", fontsize=8, color=colour
            )
    axis.set_xticks(range(T), short, rotation=45, fontsize=8)
    axis.set_yticks(range(T), short if names else [], fontsize=8)
    axis.spines[:].set_visible(False)
    axis.tick_params(length=0)


figure, axes = plt.subplots(2, 3, figsize=(7.5, 5.2))
for column, place in enumerate(("generic", "maps", "backbone")):
    for row, switch in enumerate(switches):
        axis = axes[row, column]
        if place == "generic" and row == 1:
            axis.axis("off")
            axis.text(
                0.5,
                0.5,
                "the same",
                ha="center",
                va="center",
                transform=axis.transAxes,
            )
            continue
        mean = 100 * matrices[place, switch].mean(dim=0)  # (T, T)
        show_cosines(axis, mean, diagonal=place != "maps", names=column == row)
for axis, title in zip(
    axes[0], ("generic path's weights", "backbone's features", "backbone's weights")
):
    axis.set_title(title)
axes[0, 0].set_ylabel("stopped")
_ = axes[1, 1].set_ylabel("not stopped")

# %%
between = {key: matrix[:, pairs] for key, matrix in matrices.items()}  # (6, 30)
again = matrices["generic", "stopped"].diagonal(dim1=1, dim2=2)  # (6, T)
print(
    f"generic path, two tasks: at most {between['generic', 'stopped'].abs().max():.2f}"
)
again = again.mean(dim=0)  # (T,)
print(f"a task with itself: {again.min():.2f} to {again.max():.2f}, by task")

# %% [markdown]
# Begin with the **generic path**. Any two tasks have a cosine of practically zero there. This is not because gradients
# of single batches were mere noise: on other images human parts, saliency, depth and boundaries each agree with
# themselves by far more, segmentation by little, and only for the normals is one batch hardly a guide to the next. Six
# tasks teach the same weights, and neither help nor hinder each other.
#
# How can that be? At a single pixel the gradient of $\mathbf{W}_g$ is the outer product of what arrives from above, $\boldsymbol\delta^t$, and the patch
# $\mathbf{x}^t$ of task $t$'s feature that the kernel saw. For two such products
#
# ```{math}
# :label: eq-06-outer
# \big\langle \boldsymbol\delta^a {\mathbf{x}^a}^\top, \; \boldsymbol\delta^b {\mathbf{x}^b}^\top \big\rangle
# = (\boldsymbol\delta^a \cdot \boldsymbol\delta^b)\, (\mathbf{x}^a \cdot \mathbf{x}^b),
# ```
#
# so tasks meet in a weight only if they resemble each other on *both* sides of it. But before the generic path every task has a projection
# of its own, and behind it a fusion and a head of its own. Nothing makes channel 7 of one task mean what channel 7 of another means.


# %%
alike = cosines(X.transpose(0, 1).flatten(1))[pairs].abs()  # (T·(T-1),)
print("features of two tasks: mean cosine under 0.2:", bool(alike.mean() < 0.2))

# %% [markdown]
# In the **backbone**, which all tasks share outright, it is different. Now see what the switch does there.

# %%
for place in ("maps", "backbone"):
    for switch in switches:
        found = between[place, switch]  # (6, 30)
        share = 100 * (found < 0).float().mean()
        print(
            f"{place}, {switch}: mean {found.mean():.2f}, {share:.0f} % below zero"
        )

# %%
on, off = (between["backbone", switch] for switch in switches)
another_seed = (on[:3] - on[:3].roll(1, dims=0)).abs().mean()
print(f"the switch moves a cosine by {(on - off).abs().mean():.2f}")
print(f"another seed moves it by {another_seed:.2f}")

# %% [markdown]
# At the backbone's weights most pairs of tasks agree, and a few do not. Whether the gradient of the generic path is stopped hardly
# matters for that: it moves a cosine by less than another seed does. The networks that were *trained* with the switch on or off cannot be told
# apart either:

# %%
for switch, three in zip(switches, (slice(0, 3), slice(3, 6))):
    means = between["backbone", switch][three].mean(dim=1).tolist()
    print(f"trained with gradients {switch}:", [round(mean, 2) for mean in means])

# %% [markdown]
# So in our small networks there is little conflict to be solved, and the stopped gradient is not what solves it. This does not refute the paper, which reports
# that the stop eases optimisation and resolves conflicts, in networks far more expensive to train. But the paper prints no measurement of it, and the one we can make does
# not show it.
#
# Something else does change. A gradient has a direction and a length.


# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-06-length", "caption": "How much longer each task's gradient at the backbone's features becomes when the generic path's gradient is let through, in six trained networks and three untrained ones."}, "image": {"alt": "Dots for six tasks on a logarithmic axis. For untrained networks all dots lie at 1. For trained ones they lie between one and a third and three, lower for segmentation, human parts and saliency, higher for normals, depth and boundaries."}}
def ratios(stage):  # (networks, T)
    found = [r["measured"][stage] for r in record["runs"] if stage in r["measured"]]
    free, stopped = (
        torch.tensor([m[switch]["length"] for m in found])
        for switch in reversed(switches)
    )
    return free / stopped


figure, axis = plt.subplots(figsize=(7.5, 2.5))
for stage, shift, colour in (
    ("untrained", 0.12, "0.6"),
    ("trained", -0.12, plots.OKABE_ITO[0]),
):
    for t in range(T):
        values = ratios(stage)[:, t]
        label = stage if t == 0 else None
        axis.plot(
            [t + shift] * len(values),
            values,
            "o",
            ms=4,
            alpha=0.7,
            color=colour,
            label=label,
        )
axis.set_yscale("log")
axis.set_yticks([1, 1.5, 2, 3, 4], ["1", "1.5", "2", "3", "4"])
axis.minorticks_off()
axis.set(ylabel="times as long")
axis.set_xticks(range(T), [task.title.replace(" ", "\n") for task in tasks])
_ = axis.legend()

# %%
trained = ratios("trained")  # (6, T)
print(
    "shortest and longest factor:",
    *(f"{f:.1f}" for f in (trained.min(), trained.max())),
)

# %%
classes, geometry = trained[:, :3], trained[:, 3:]  # (6, 3) each
apart = (geometry.min(dim=1).values > classes.max(dim=1).values).all()
print("more for each task of geometry than for any other:", bool(apart))

# %% [markdown]
# Once trained, the generic path does a large part of the work, and so a large part of the gradient would come back through it. Stopping it takes that part away, from each task a
# different one ({numref}`fig-06-length`): the features below hear less from every task, and in every network the cut is deepest for the three that measure geometry, normals, depth and boundaries. Making one task's gradient shorter than another's is what loss
# weights do. To all that lies below, the switch re-weights the tasks.
#
# ## What a stopped gradient does, and what it does not
#
# Write $\operatorname{sg}(\cdot)$ for a function that returns its argument and has the derivative zero. In training a
# module computes
#
# ```{math}
# :label: eq-06-stop
# \mathbf{S}^t = f_g(\operatorname{sg}(\mathbf{X}^t)) + f_{sr}^t(f_{lre}(\mathbf{X}^t)) + f_{se}^t(\mathbf{X}^t),
# ```
#
# where $f_{lre}$ stands for the shared experts, $f_{sr}^t$ for their sum under the gates of task $t$ with a BatchNorm, and $f_{se}^t$ for the task's own expert, which comes below. Without $\operatorname{sg}$ this is
# the paper's Equation 2. Let $\boldsymbol\delta^t = \partial \mathcal{L}/\partial \mathbf{S}^t$ be the gradient that arrives from above. By the chain rule the generic path's
# weights need $\boldsymbol\delta^t$ and the values of $\mathbf{X}^t$, which are what they were. Only $\partial \mathcal{L}/\partial \mathbf{X}^t$ changes: it loses
# the summand that comes back through $\mathbf{W}_g$, the transposed convolution of $\boldsymbol\delta^t$. That makes four claims: the outputs stay, the generic path's
# gradients stay, those of the other two paths stay, and below exactly this summand is missing. We hold $\mathbf{X}^t$ in our hands by taking the projection out, and let autograd answer in float64.

# %%
torch.manual_seed(0)
exact = me.build_model(
    "mlore_vit_nano", tasks, img_size=(64, 64), modules=1
).double()
module = exact.decoder.scales[3][0].eval()
features = torch.randn(2, 32, 8, 8, dtype=torch.float64)
delta = torch.randn(2, T, 32, 8, 8, dtype=torch.float64)  # what arrives from above


def backward(stop):
    set_stop(module, stop)
    X = module.project(features).detach().requires_grad_()  # (2, T, C, 8, 8)
    module.project, keep = nn.Identity(), module.project
    S = module(X).features  # (2, T, C, 8, 8)
    module.project = keep
    S.backward(delta)
    weights = {
        n: p.grad for n, p in module.named_parameters() if p.grad is not None
    }
    module.zero_grad()
    return S.detach(), X.grad, weights


# %%
S_stop, below_stop, weights_stop = backward(stop=True)
S_free, below_free, weights_free = backward(stop=False)
assert torch.equal(S_stop, S_free)  # 1. the outputs are the same
for name in weights_stop:  # 2. and 3. f_g learns the same, and so do the others
    torch.testing.assert_close(weights_stop[name], weights_free[name])
kernel = module.generic.weight  # 4. what is missing below is what came through it
back = F.conv_transpose2d(delta.flatten(0, 1), kernel, padding=1)  # (2·T, C, 8, 8)
torch.testing.assert_close(below_free - below_stop, back.unflatten(0, (2, T)))
print(
    "all four hold; the generic path itself learns:",
    bool(weights_stop["generic.weight"].any()),
)

# %% [markdown]
# So the generic path goes on learning from all tasks; it merely has no say in what it is given. The features below are shaped by the
# experts and the task experts, and the generic path makes the best of them, like a reader who may not write to the author. It follows
# that it must not be alone. Without the other two paths nothing below would ever learn, and the library refuses to build such a network.

# %%
try:
    build(experts=0, task_experts=False)
except me.UserError as refusal:
    print(textwrap.fill(str(refusal), 80))

# %% [markdown]
# ### A dial instead of a switch
#
# Between stopping a gradient and letting it pass there is everything: a share $\alpha$ of it. The gradient below is then
#
# ```{math}
# :label: eq-06-dial
# \nabla\mathcal{L}_t(\alpha) = \nabla\mathcal{L}_t^{\text{others}} + \alpha\, \nabla\mathcal{L}_t^{\text{generic}},
# ```
#
# what comes through the other two paths and the share that comes through the generic one: at 0 the paper's choice, at 1 plain training. We have both ends already, in `at_blocks`, and can draw everything between.


# %%
def dial(alpha):
    stopped, free = at_blocks[True], at_blocks[False]
    return stopped + alpha * (free - stopped)  # (T, numbers)


# %% tags=["hide-input"]
def show_dial(alpha):
    _, (left, middle, right) = plt.subplots(
        1, 3, figsize=(7.5, 2.6), width_ratios=(1.2, 1, 1)
    )
    matrix = 100 * cosines(dial(alpha))
    show_cosines(left, matrix, diagonal=False)
    left.set_title(f"cosines × 100, α = {alpha:.1f}")
    alphas = torch.linspace(0, 1, 11)
    curves = torch.stack([cosines(dial(a))[pairs] for a in alphas])  # (11, pairs)
    lengths = torch.stack([dial(a).norm(dim=1) for a in alphas])  # (11, T)
    middle.plot(alphas, 100 * curves, color="0.8", lw=0.8)
    middle.plot(alphas, 100 * curves.mean(dim=1), color=plots.OKABE_ITO[0], lw=2)
    middle.set(title="each pair, and the mean", xlabel="α", ylabel="cosine × 100")
    for t in range(T):
        right.plot(alphas, lengths[:, t] / lengths[0, t], label=short[t])
    right.set(title="length, α = 0 is 1", xlabel="α")
    right.legend(fontsize=7, ncols=2)
    for axis in (middle, right):
        axis.axvline(alpha, color=plots.OKABE_ITO[3], lw=1, ls=":")


# %% tags=["nbval-ignore-output"]
import ipywidgets

_ = ipywidgets.interact(
    lambda alpha: (show_dial(alpha), plt.show())[1],
    alpha=ipywidgets.FloatSlider(0.0, min=0.0, max=1.0, step=0.1, description="α"),
)

# %% mystnb={"figure": {"name": "fig-06-dial", "caption": "The dial's view at α = 0.5, in our own small network: cosines between the tasks' gradients in the transformer blocks; how they change with α; and how the gradients' lengths do."}, "image": {"alt": "At the left a matrix of six by six cosines. In the middle thin lines, one for each pair of tasks, and a thick one for their mean, over alpha from 0 to 1; they bend a little but keep their order by and large. At the right the lengths of the six gradients over alpha."}}
show_dial(0.5)

# %% [markdown]
# Turn it, or look at {numref}`fig-06-dial`. In a network as young as this one some pairs of tasks do conflict in the transformer blocks, and the dial does little about it: the cosines bend, some up and some down, while the lengths grow, each task's by a
# factor of its own. In this it resembles the recorded networks. (With two modules a scale the
# dependence on $\alpha$ would not be linear, as the path through two dials carries $\alpha^2$.)
#
# ## An expert for each task
#
# The third path turns the question of this chapter around: which weights should *one* task have for itself? In MLoRE a
# low-rank expert each, of rank $R$ and without a gate:
#
# ```{math}
# :label: eq-06-task
# f_{se}^t(\mathbf{X}^t) = \mathbf{W}_{sea}^t \circledast \left( \mathbf{W}_{seb}^t \circledast \mathbf{X}^t + \mathbf{b}_{seb}^t \right) + \mathbf{b}_{sea}^t,
# ```
#
# with a 3 × 3 convolution $\mathbf{W}_{seb}^t$ from $C$ to $R$ channels and a 1 × 1 convolution $\mathbf{W}_{sea}^t$ back. Written down as it is read:

# %%
R = 8
pairs_of_convolutions = [
    nn.Sequential(nn.Conv2d(32, R, 3, padding=1), nn.Conv2d(R, 32, 1))
    for _ in tasks
]
by_loop = torch.stack(
    [own(X[:, t]) for t, own in enumerate(pairs_of_convolutions)], dim=1
)  # (4, T, C, 8, 8)

# %% [markdown]
# Twelve small convolutions keep a computer busy with starting and stopping. A convolution with *groups* splits its input
# channels into equal parts and gives each part weights of its own. If the tasks stand one behind the other as $TC$
# channels, a group is a task: two convolutions do the work of twelve.


# %%
def grouped(x, layer):  # x: (B, T·C_in, H, W)
    weight = torch.cat([own[layer].weight for own in pairs_of_convolutions])
    bias = torch.cat([own[layer].bias for own in pairs_of_convolutions])
    padding = weight.shape[-1] // 2
    return F.conv2d(x, weight, bias, padding=padding, groups=T)


hidden = grouped(X.flatten(1, 2), 0)  # (4, T·R, 8, 8)
by_groups = grouped(hidden, 1).unflatten(1, (T, 32))  # (4, T, C, 8, 8)
torch.testing.assert_close(by_groups, by_loop)

# %%
from mlore_edu.decoders.low_rank import TaskExperts

task_experts = TaskExperts(T, 32, R)
names = ("0.weight", "0.bias", "1.weight", "1.bias")  # down, then up
for ours, parameter in zip(names, task_experts.parameters(), strict=True):
    parameter.data = torch.cat(
        [own.state_dict()[ours] for own in pairs_of_convolutions]
    )
torch.testing.assert_close(task_experts(X), by_loop)

# %% [markdown]
# Folding tasks into the batch shares weights between them, folding them into the channels separates them. The library's 1 × 1
# convolutions per task, its routers and its BatchNorms are all of the second kind (`mlore_edu/decoders/per_task.py`).
#
# ### Three ways to share, in one picture
#
# At one pixel, each path is a matrix that takes the $TC$ numbers of all tasks to $TC$ new ones. We draw the matrices
# of the middle tap of the 3 × 3 kernels, for one image.

# %%
from mlore_edu.reparameterization import compose, mix

kernels, _ = module.experts.kernels()  # (N, C, C, 3, 3)
own_gates = module.route(module.project(features))[0].gates[0]  # (T, N), one image
down, up = module.task_experts.down, module.task_experts.up
own_kernels, _ = compose(
    down.weight.unflatten(0, (T, -1)),
    down.bias.unflatten(0, (T, -1)),
    up.weight[:, :, 0, 0].unflatten(0, (T, -1)),
    up.bias.unflatten(0, (T, -1)),
)  # (T, C, C, 3, 3)
paths = {
    "generic path": module.generic.weight.expand(T, -1, -1, -1, -1),
    "shared experts": mix(own_gates, kernels),
    "task experts": own_kernels,
}  # (T, C, C, 3, 3) each

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-06-blocks", "caption": "Each path of an untrained module as a matrix from the features of six tasks (columns) to six new ones (rows), at the middle of the 3 × 3 kernels. Generic path: one block, repeated. Shared experts: every task its own mixture of the same fifteen matrices, another for the next image. Task experts: six blocks that have nothing in common. None has anything beside its diagonal."}, "image": {"alt": "Three large squares of six by six blocks, filled along the diagonal and empty elsewhere. In the first all six diagonal blocks show the same pattern. In the second they resemble each other in parts. In the third all six differ."}}
figure, axes = plt.subplots(1, 3, figsize=(7.5, 2.9))
for axis, (title, blocks) in zip(axes, paths.items()):
    middle = [block[:8, :8, 1, 1] for block in blocks.detach()]  # 8 of 32 channels
    matrix = torch.block_diag(*middle)  # (T·8, T·8)
    limit = matrix.abs().max()
    axis.imshow(matrix, cmap="PuOr", vmin=-limit, vmax=limit)
    axis.set_title(title)
    ticks = [8 * t + 3.5 for t in range(T)]
    axis.set_xticks(ticks, short, rotation=45, fontsize=8)
    axis.set_yticks(ticks, short if axis is axes[0] else [], fontsize=8)
    axis.set_xticks([8 * t - 0.5 for t in range(1, T)], minor=True)
    axis.set_yticks([8 * t - 0.5 for t in range(1, T)], minor=True)
    axis.grid(which="minor", color="0.8", lw=0.5)
    axis.tick_params(which="both", length=0)

# %% [markdown]
# The empty squares beside the diagonals of {numref}`fig-06-blocks` deserve a second look. No task ever reads another task's feature in this decoder. What the
# paper calls modelling the relations between tasks happens in the weights alone: tasks are related in so far as they are
# served by the same numbers. In the generic path they share every one.
#
# ### What the two paths cost
#
# At the width of the paper's ablations, $C = 640$, with $R = 64$, five tasks and two modules on each of four scales:

# %%
C_paper, R_paper, T_paper, modules = 640, 64, 5, 8
generic_cost = modules * (9 * C_paper**2 + C_paper)
own = 9 * C_paper * R_paper + R_paper + R_paper * C_paper + C_paper
task_cost = modules * T_paper * own
table = me.published.table("mlore", 2)
print(table.format("setting", "parameters", "flops"))
print(
    f"generic path: {generic_cost / 1e6:.1f} M, task experts: {task_cost / 1e6:.1f} M"
)

# %% [markdown]
# 213 M, and 29.5 M for the generic path, are 243 M; another 16.4 M for the task experts make 259 M. Both steps of the paper's table are
# accounted for. In operations both paths are free, if we believe the last column: all three rows stand at 568 G. That is because all paths of a module are linear
# and become one convolution before the network is used, which [chapter 8](08_reparameterisation.ipynb) proves and prices.
#
# ## Equation 2, assembled
#
# All the pieces are there. A module is a projection, three paths, and their sum; the experts' share is normalised by a BatchNorm per
# task before it is added, since the sum of nine gated experts has no scale of its own. Only the router is still a black box, until the next chapter.

# %%
from mlore_edu.decoders.low_rank import LowRankExperts
from mlore_edu.decoders.moe import noisy_top_k
from mlore_edu.decoders.per_task import PerTaskBatchNorm2d, PerTaskConv2d
from mlore_edu.decoders.routers import Router


class Module(nn.Module):
    """S^t = f_g(X^t) + f_sr^t(f_lre(X^t)) + f_se^t(X^t)"""

    def __init__(self, tasks, channels, tokens, ranks, task_rank, k):
        super().__init__()
        self.project = PerTaskConv2d(tasks, channels, channels)  # f_{t,1×1}
        self.generic = nn.Conv2d(channels, channels, 3, padding=1)  # f_g
        self.experts = LowRankExperts(channels, ranks)  # f_lre
        self.norm = PerTaskBatchNorm2d(tasks, channels)
        self.task_experts = TaskExperts(tasks, channels, task_rank)  # f_se
        self.router = Router(
            tasks, channels, tokens, 2 * len(ranks), activation=False
        )
        self.k = k

    def forward(self, features):  # (B, C, H, W), or (B, T, C, H, W)
        X = self.project(features)  # (B, T, C, H, W)
        logits, noise = self.router(X).chunk(2, dim=2)  # (B, T, N) each
        gates, _ = noisy_top_k(
            logits, noise, self.k, softmax_first=True, training=self.training
        )
        common = self.generic(X.detach().flatten(0, 1)).unflatten(0, X.shape[:2])
        mixed = self.norm(self.experts(X, gates))  # (B, T, C, H, W)
        return common + mixed + self.task_experts(X)  # (B, T, C, H, W)


# %%
from mlore_edu.decoders.mlore_options import MLoREOptions

settings = {"ranks": tuple(range(2, 17)), "task_rank": 8, "k": 9}
ours = Module(T, 32, 64, **settings)
library = MLoREModule(T, 32, 64, MLoREOptions(**settings), nonlinear=False)
library.load_state_dict(ours.state_dict())  # same names, same shapes
features = torch.randn(2, 32, 8, 8)

# %%
results = []
for network in (ours, library):
    torch.manual_seed(1)  # the same noise
    S = network(features)
    S = S if isinstance(S, torch.Tensor) else S.features  # (2, T, C, 8, 8)
    S.square().sum().backward()
    gradients = {name: p.grad for name, p in network.named_parameters()}
    results.append((S.detach(), gradients))

# %%
torch.testing.assert_close(results[0], results[1])
print("outputs and", len(results[0][1]), "gradients agree")

# %% [markdown]
# The library's version has switches for every ablation, a non-linear block between two modules, and the details in which the authors' code departs from
# their paper; [chapter 9](09_mlore_assembled.ipynb) lists them.
#
# ## What each path brings
#
# Table 2 of the paper adds the paths one by one to a decoder with low-rank experts alone. Each row is one network. We have trained the same rows on Dollhouse, five seeds each
# (`book/results/make_mlore_sweeps.py table2`), and can say how far seeds alone move them.

# %%
sweeps = json.loads(Path("../results/mlore_sweeps.json").read_text())
keys = sweeps["sweeps"]["table2"]  # the paper's row: our configuration
scores = {}  # row: metrics of each seed
for row in ("Baseline + LoRE", "+ GC", "+ SPE"):
    runs = [run for run in sweeps["runs"] if run["key"] == keys[row]]
    scores[row] = {run["seed"]: run["metrics"] for run in runs}
for switch in switches:  # and the networks of this chapter
    runs = [run for run in record["runs"] if run["trained_with"] == switch]
    scores[switch] = {run["seed"]: run["metrics"] for run in runs}
print({row: len(runs) for row, runs in scores.items()})


# %%
def relative_gain(better, worse, task):  # in percent; above zero is better
    sign = -1 if task.lower_is_better else 1
    return sign * 100 * (better[task.name] / worse[task.name] - 1)


def gains(after, before, task):  # every seed against every other seed or row
    return [
        relative_gain(a, b, task)
        for a, b in itertools.product(
            scores[after].values(), scores[before].values()
        )
        if a is not b
    ]


changes = {
    "adding the generic path": ("+ GC", "Baseline + LoRE"),
    "adding the task experts": ("+ SPE", "+ GC"),
    "stopping the gradient": ("stopped", "not stopped"),
}


# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-06-ladder", "caption": "What a change brings to each task, in percent of its metric; above zero is better. Blue: each network after the change against each before it, with their mean. Grey: two networks that differ in nothing but the seed. Stars: the paper's rows on PASCAL-Context, single networks. It has no row for the stopped gradient, and no depth."}, "image": {"alt": "Three panels of dots around a line at zero, for six tasks. Adding the generic path, nearly all blue dots of human parts lie above zero and those of the normals below. Adding the task experts, those of segmentation lie above. Stopping the gradient, those of the normals lie below. Elsewhere blue and grey dots overlap. The paper's stars are all a little above zero."}}
BLUE, RED = plots.OKABE_ITO[0], plots.OKABE_ITO[3]
figure, axes = plt.subplots(1, 3, figsize=(7.5, 3.2), sharey=True)
for axis, (title, (after, before)) in zip(axes, changes.items()):
    for x, task in enumerate(tasks):
        noise = gains(after, after, task) + gains(before, before, task)
        values = gains(after, before, task)
        axis.plot(
            [x + 0.18] * len(noise),
            noise,
            "o",
            ms=3,
            color="0.75",
            label="only the seed differs",
        )
        axis.plot(
            [x - 0.12] * len(values),
            values,
            "o",
            ms=3.5,
            alpha=0.7,
            color=BLUE,
            label="the change",
        )
        axis.plot(
            (x - 0.3, x + 0.06), [sum(values) / len(values)] * 2, color=BLUE, lw=2.5
        )
        if before in keys and task.name != "depth":
            star = relative_gain(
                table.row(setting=after), table.row(setting=before), task
            )
            axis.plot(
                x - 0.12,
                star,
                "*",
                ms=9,
                color=RED,
                mec="white",
                mew=0.5,
                label="paper",
            )
    axis.axhline(0, color="0.6", lw=1)
    axis.set_title(title)
    axis.set_xticks(range(T), short, rotation=45)
axes[0].set_ylabel("relative gain (%)")
handles = dict(zip(*reversed(axes[0].get_legend_handles_labels())))
_ = figure.legend(
    handles.values(), handles.keys(), loc="outside upper center", ncols=3
)

# %%
print(" " * 24, *(f"{name:>6}" for name in short))
for title, (after, before) in changes.items():
    pairs = [gains(after, before, task) for task in tasks]
    better = [f"{sum(gain > 0 for gain in its)}/{len(its)}" for its in pairs]
    print(f"{title:24}", *(f"{count:>6}" for count in better))

# %% [markdown]
# The table counts in how many pairs of networks a change was for the better; {numref}`fig-06-ladder` shows by how much.
#
# **The generic path** helps human parts in nearly every pair, and the normals pay for it. Elsewhere a seed moves as much. In the paper all
# five tasks gain, the normals by a hundredth of a degree.
#
# **The task experts** help segmentation, in nearly every pair; the other tasks' gains could be a seed's. The paper's gains from them are fractions of a percent; how far a seed would have moved its
# numbers is not printed.
#
# **Stopping the gradient** costs, once more, the normals, in every pair. Of all tasks theirs is the gradient that the stop
# shortens most in the networks that were trained with it. This fits together, for a task that has less say in the features below must live with features that others shaped; but three seeds on a toy data set make it a
# conjecture, and you have the switch to test it.
#
# These are networks of 300 steps, and adding paths one by one is not the whole story: [chapter 9](09_mlore_assembled.ipynb) sets the full ladder, with the baseline below it, beside Table 2.
#
# ## Exercises
#
# ```{exercise} Meetings
# :label: ex-06-meetings
# Write `meetings(gates)` for gates $(B, T, N)$: for each number of tasks from 0 to $T$, the share of all pairs of an image and an expert in
# which exactly so many tasks use the expert.
# ```

# %%
from mlore_edu.exercises import ch06


def meetings(gates): ...


_ = ch06.check_meetings(meetings)

# %% [markdown]
# ```{solution-start} ex-06-meetings
# :class: dropdown
# ```


# %% jupyter={"source_hidden": true}
def meetings(gates):
    met = (gates > 0).sum(dim=1)  # (B, N)
    tasks = gates.shape[1]
    return torch.stack([(met == m).float().mean() for m in range(tasks + 1)])


assert abs(meetings(gates) @ torch.arange(T + 1.0) - 3.6) < 1e-5
_ = ch06.check_meetings(meetings)

# %% [markdown]
# ```{solution-end}
# ```
#
# ```{exercise} The bill of a module
# :label: ex-06-bill
# Given the width $C$, the ranks $r_1, \dots, r_N$, the rank $R$ and the number of tasks, how many parameters have the generic path, the shared experts and the
# task experts of one module, biases included? Write `path_parameters` so that it gives these three numbers, in this order. From which $R$ on do five task experts cost more than the generic path, at $C = 640$?
# ```


# %%
def path_parameters(channels, ranks, task_rank, tasks): ...


_ = ch06.check_path_parameters(path_parameters)

# %% [markdown]
# ```{solution-start} ex-06-bill
# :class: dropdown
# ```


# %% jupyter={"source_hidden": true}
def path_parameters(channels, ranks, task_rank, tasks):
    def pair(rank):
        return (9 * channels + 1) * rank + (rank + 1) * channels

    shared = sum(pair(rank) for rank in ranks)
    return (9 * channels + 1) * channels, shared, tasks * pair(task_rank)


R_dear = next(
    R
    for R in itertools.count(1)
    if path_parameters(640, [R], R, 5)[2] > path_parameters(640, [R], R, 5)[0]
)
print("from R =", R_dear)
_ = ch06.check_path_parameters(path_parameters)

# %% [markdown]
# ```{solution-end}
# ```
#
# ```{exercise} A dial in the network
# :label: ex-06-dial
# We turned the dial of equation {eq}`eq-06-dial` after the fact. Write `turn_down(x, alpha)`, which could stand in the network in place of `detach`: it gives the
# values of `x`, and lets the share `alpha` of the gradient pass.
# ```


# %%
def turn_down(x, alpha): ...


_ = ch06.check_dial(turn_down)

# %% [markdown]
# ```{solution-start} ex-06-dial
# :class: dropdown
# ```
# The bracket is zero, so the values are those of `x`; only it has a gradient.


# %% jupyter={"source_hidden": true}
def turn_down(x, alpha):
    return x.detach() + alpha * (x - x.detach())


_ = ch06.check_dial(turn_down)

# %% [markdown]
# ```{solution-end}
# ```
#
# ```{exercise} Surgery
# :label: ex-06-surgery
# Another answer to conflicts is to operate on the gradients {cite}`yu2020gradient`: where $\mathbf{a} \cdot \mathbf{b} < 0$, take from $\mathbf{a}$ the part that points
# against $\mathbf{b}$, so that what is left is at a right angle to it; otherwise leave $\mathbf{a}$ alone. Write `without_conflict(a, b)` for two vectors; it gives the new $\mathbf{a}$.
# ```


# %%
def without_conflict(a, b): ...


_ = ch06.check_surgery(without_conflict)

# %% [markdown]
# ```{solution-start} ex-06-surgery
# :class: dropdown
# ```
# Unlike the stopped gradient it needs every task's gradient by itself: as many backward passes as there are tasks.


# %% jupyter={"source_hidden": true}
def without_conflict(a, b):
    against = (a @ b).clamp(max=0)  # 0 where they agree
    return a - against / (b @ b) * b


_ = ch06.check_surgery(without_conflict)

# %% [markdown]
# ```{solution-end}
# ```
#
# ## Takeaways
#
# - In a mixture with top-$k$ gates an expert learns only from the tasks that choose it. All tasks at once seldom do,
#   far less often than by chance: the tasks share the experts out between them.
# - The generic path is one 3 × 3 convolution that sees the tasks as a larger batch. Every task teaches it in every image.
# - A cosine between gradients tells help from conflict. Between private projections and private heads the tasks' gradients at shared weights are nearly at right angles.
# - A stopped gradient leaves the outputs and the gradients of all three paths' weights as they are, and takes one summand from what flows below. In our networks it changes the gradients' lengths far more than their directions.
# - Folding tasks into the batch shares weights, folding them into channels with groups separates them. No path of MLoRE reads two tasks' features at once.
#
# You can now build every path of an MLoRE module, say which task teaches which weight, and measure whether tasks get in each other's way. What is
# still a black box is who decides: [chapter 7](07_routers.ipynb) opens the router.
