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
# # Assembling features, token by token
#
# In Part II every task chose its experts once for the whole picture. But a picture is not one thing. Where an arm
# crosses the wall, body parts, depth and boundaries want something else than in the middle of the floor. What if
# every task could choose anew at every token?

# %%
import json
import math
from itertools import pairwise
from pathlib import Path
from statistics import mean

import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

# %%
import mlore_edu as me
from mlore_edu import plots
from mlore_edu.data.dollhouse_files import VALIDATION_SEEDS, DollhouseScenes
from mlore_edu.data.loaders import make_loader
from mlore_edu.data.transforms import eval_transform

plots.use_style()
tasks = me.DOLLHOUSE
T = len(tasks)

# %% [markdown]
# Here is what a network of the book, trained on Dollhouse, does with that freedom.
# `book/results/make_taskexpert_inside.py` wrote down its gates on six validation scenes: numbers from 0 to 1 that say
# how much of each expert a task takes, at each of 16 × 16 tokens ({numref}`fig-10-first`).

# %%
inside = np.load("../results/taskexpert_inside.npz")
recorded_gates = inside["gates"] / 255  # (S, L, T, K + 1, H, W)
S, L, _, outputs, H, W = recorded_gates.shape
K = outputs - 1
print(f"{S} scenes, {L} modules, {T} tasks, {K} experts a module, {H} × {W} tokens")

# %%
from matplotlib.colors import to_rgb as rgb_of

expert_colours = np.array([rgb_of(c) for c in (*plots.OKABE_ITO[:K], "black")])


def choice_map(gates):  # (K + 1, H, W)
    best, strength = gates.argmax(axis=0), gates.max(axis=0)  # (H, W) each
    return 1 - strength[..., None] * (1 - expert_colours[best])  # (H, W, 3)


# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-10-first", "caption": "Two scenes, and which expert counts most at each token, for the three tasks whose gates follow the picture most, each in the module where they do so. A colour is an expert, black the task's memory; the paler, the smaller the gate."}, "image": {"alt": "Two rows of four pictures. At the left a room with a person in it, at the right three coarse maps of it in a few colours. The person stands out from the wall in other colours, at another place in the second row than in the first; the floor and the wall have colours of their own."}}
def bare(axis, picture, title="", **options):
    axis.imshow(picture, **options)
    axis.set(xticks=[], yticks=[], title=title)
    axis.spines[:].set(visible=True, color="0.8")


follows = inside["variance"][:, :, 2]  # (L, T): explained further down
liveliest = follows.argmax(axis=0)  # (T,)
figure, axes = plt.subplots(2, 4, figsize=(7.5, 4.1))
for row, scene in zip(axes, (0, S - 1)):
    bare(row[0], inside["image"][scene], "" if scene else "image")
    for axis, t in zip(row[1:], follows.max(axis=0).argsort()[::-1]):
        title = tasks[tasks.names[t]].title if scene == 0 else ""
        bare(axis, choice_map(recorded_gates[scene, liveliest[t], t]), title)

# %% [markdown]
# This is TaskExpert {cite}`ye2023taskexpert`. Its modules **decompose** one feature of the backbone into $K$, and
# **assemble** a feature for each task from these, with weights of its own at every token. This chapter builds one
# such module. How the modules hand on what they assembled, from layer to layer, is the subject of [chapter
# 11](11_task_memory.ipynb).
#
# ## What you will be able to do
#
# - build experts, gates and assembly from Eqs. 1, 3 and 4 of the paper, and find that the library's are the same;
# - write the assembly as one einsum, and say what is computed once, what for each task, and what that costs;
# - read gates as maps over an image, and measure how much of them follows the image at all;
# - prove that a gate without context must fail at certain tasks, and watch one with context solve them, as far as it
#   can see;
# - tell what sparse gates would save when all tasks share the experts.
#
# *Before you start:* [chapter 4](../part2_mlore/04_mixture_of_experts.ipynb) for mixtures of experts, and [chapter
# 3](../part1_foundations/03_one_encoder_many_heads.ipynb) for backbone, tasks and heads. *Time:* 40 minutes of
# reading, ten seconds of running. *Hardware:* two CPU cores, 4 GB of memory; no GPU, no download. The network in the
# figures took longer and is read from a file.
#
# ## One feature becomes K

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-10-flow", "caption": "One module. The experts answer once, for all tasks (their answers in three principal components as colours). The gates of each task, a map for every expert, say how much of each answer it takes at each token. Dark is 1, white 0."}, "image": {"alt": "A flow diagram from left to right. A picture becomes a feature X. Above, X passes through six experts, shown as six small coloured pictures of the room. Below, it passes through gates, shown as a table of six rows and six columns of small maps. Both meet in a weighted sum, from which the features of the six tasks leave."}}
figure = plt.figure(figsize=(7.5, 4.3), layout="none")
canvas = figure.add_axes((0, 0, 1, 1), xlim=(0, 7.5), ylim=(0, 4.3))
canvas.axis("off")


def place(picture, x, y, side, **options):
    axis = figure.add_axes(
        (x / 7.5, y / 4.3, side / 7.5, side / 4.3), xticks=[], yticks=[]
    )
    axis.imshow(picture, **options)
    axis.spines[:].set(visible=True, color="0.7")


def box(x, y, width, height, text, colour, **style):
    canvas.add_patch(plt.Rectangle((x, y), width, height, color=colour, alpha=0.8))
    canvas.text(
        x + width / 2, y + height / 2, text, ha="center", va="center", **style
    )


def mosaic(tiles, empty, gap=2):  # (rows, columns, H, W, ...)
    rows, columns, height, width = tiles.shape[:4]
    shape = (rows * (height + gap) - gap, columns * (width + gap) - gap)
    page = np.full(shape + tiles.shape[4:], float(empty))
    for y in range(rows):
        for x in range(columns):
            corner = page[y * (height + gap) :, x * (width + gap) :]
            corner[:height, :width] = tiles[y, x]
    return page


def arrow(start, end):
    canvas.annotate("", end, start, arrowprops={"arrowstyle": "->", "color": "0.3"})


place(inside["image"][0], 0.1, 1.75, 1.0)
box(1.45, 2.05, 0.45, 0.45, r"$\mathbf{X}$", plots.OKABE_ITO[4])
arrow((1.13, 2.27), (1.42, 2.27))
box(2.25, 3.3, 0.8, 0.5, "experts", plots.OKABE_ITO[1], fontsize=9)
box(2.25, 1.15, 0.8, 0.5, "gates", plots.OKABE_ITO[5], fontsize=9)
arrow((1.93, 2.4), (2.3, 3.25))
arrow((1.93, 2.15), (2.3, 1.7))
arrow((3.08, 3.55), (3.3, 3.55))
arrow((3.08, 1.4), (3.3, 1.4))
for k in range(K):
    x = 3.35 + 0.38 * k
    place(inside["answers"][0, 0, k], x, 3.38, 0.35)
    canvas.text(x + 0.17, 3.82, rf"$\mathbf{{R}}_{k + 1}$", ha="center", fontsize=8)
page = mosaic(recorded_gates[0, 0, :, :K], empty=np.nan)
place(page, 3.35, 0.55, 2.25, cmap="Blues", vmin=0, vmax=1)
canvas.text(4.48, 0.38, "tasks × experts, a map each", ha="center", fontsize=8)
canvas.text(4.48, 3.18, r"$K$ answers", ha="center", fontsize=8)
box(6.0, 2.6, 0.36, 0.42, r"$\sum$", plots.OKABE_ITO[6], fontsize=12)
arrow((5.65, 3.45), (5.98, 2.95))
arrow((5.65, 1.7), (5.98, 2.6))
for row, task in enumerate(tasks):
    y = 3.7 - 0.44 * row
    box(6.62, y, 0.16, 0.26, "", plots.OKABE_ITO[4])
    canvas.text(
        6.83, y + 0.13, task.title.replace(" ", "\n"), va="center", fontsize=7.5
    )
    arrow((6.38, 2.81), (6.6, y + 0.13))

# %% [markdown]
# {numref}`fig-10-flow` has the whole module. To build it we need a feature to start from. Take the same
# model as above, smaller and not yet trained. Its backbone `vit_nano_12` is chapter 3's transformer with twelve
# blocks, and gives a map after each of them; TaskExpert puts a module on every one. We take the first map,
# $\mathbf{X} \in \mathbb{R}^{E \times H \times W}$ for each image.

# %%
scenes = DollhouseScenes(
    2, 64, "easy", VALIDATION_SEEDS, transform=eval_transform(64)
)
images = next(iter(make_loader(scenes, 2, train=False)))["image"]
torch.manual_seed(0)
model = me.build_model("taskexpert_vit_nano_12", tasks, img_size=(64, 64))
with torch.no_grad():
    stem, *maps = model.backbone(images)  # (B, 32, 32, 32), twelve (B, 96, 8, 8)
X = maps[0]  # (B, E, H, W)

# %% [markdown]
# There are $K$ **experts**, as many as tasks in the paper. Each is a Linear–BatchNorm–ReLU–Linear of its own that
# treats every token alike, and belongs to no task:
#
# ```{math}
# :label: eq-10-experts
# \mathbf{R}_i = f_i(\mathbf{X}), \qquad i = 1, \dots, K .
# ```
#
# The paper calls the answers $\mathbf{R}_i$ the *representative features*. A linear layer on every token is a 1 × 1
# convolution:

# %%
B, E, e, D = 2, 96, 32, 32  # images; widths of X, of the hidden layer, of R
experts = [
    nn.Sequential(
        nn.Conv2d(E, e, 1), nn.BatchNorm2d(e), nn.ReLU(), nn.Conv2d(e, D, 1)
    )
    for _ in range(K)
]
R = torch.stack([expert(X) for expert in experts], dim=1)  # (B, K, D, 8, 8)

# %% [markdown]
# Since all of them read the same $\mathbf{X}$, the first layers can lie one behind the other in one convolution; the
# second, which must not mix the experts, are one convolution in $K$ groups. So the library's `ExpertNetworks` takes
# the same weights in two pieces, and gives the same answers.

# %%
from mlore_edu.decoders import taskexpert


def pile(networks, layer, name):
    return torch.cat([getattr(network[layer], name) for network in networks])


library_experts = taskexpert.ExpertNetworks(E, K, e, D)
parts = {"expand": 0, "norm.norm": 1, "project": 3}
weights = {
    f"{part}.{name}": pile(experts, layer, name)
    for part, layer in parts.items()
    for name in ("weight", "bias")
}
library_experts.load_state_dict(weights, strict=False)
torch.testing.assert_close(library_experts(X), R)

# %% [markdown]
# (`strict=False` leaves out BatchNorm's running statistics, which play no part in training.)
#
# ## Gates that look around
#
# How much of each answer should task $t$ take? A **gating network** of its own says so, for each token:
#
# ```{math}
# :label: eq-10-gates
# \mathbf{G}^t = \operatorname{softmax}\big(\operatorname{conv}^t(\mathbf{X})\big) \in \mathbb{R}^{K \times H \times W},
# \qquad \sum_{i=1}^{K} \mathbf{G}^t_i = 1 .
# ```
#
# The softmax runs over the experts, at each token by itself. Earlier mixtures computed such gates by one linear map
# of the token. TaskExpert takes three 3 × 3 convolutions with ReLUs between them, so that a gate also sees what is
# around its token; the paper calls it *context-aware*. (Eq. 3 of the paper is this, for the first module. The later
# ones have one output more, for the memory of chapter 11.)

# %%
h = 8  # hidden width


def gating_network():
    widths = (E, h, h, K)
    convolutions = [nn.Conv2d(a, b, 3, padding=1) for a, b in pairwise(widths)]
    first, second, third = convolutions
    return nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), third)


gate_networks = [gating_network() for _ in range(T)]
logits = torch.stack([network(X) for network in gate_networks], dim=1)
G = logits.softmax(dim=2)  # (B, T, K, 8, 8)

# %% [markdown]
# All tasks' gates are computed together, again by one convolution on the shared $\mathbf{X}$ and two grouped ones:

# %%
library_gates = taskexpert.TaskGates(E, T, K, h, kind="context")
weights = {
    f"layers.{number}.{name}": pile(gate_networks, 2 * number, name)
    for number in range(3)
    for name in ("weight", "bias")
}
library_gates.load_state_dict(weights)
torch.testing.assert_close(taskexpert.choose(library_gates(X)), G)
torch.testing.assert_close(G.sum(dim=2), torch.ones(B, T, 8, 8))

# %% [markdown]
# ## Assembly
#
# What is left is a weighted sum. At each token, task $t$ multiplies each answer by its gate there, and adds:
#
# ```{math}
# :label: eq-10-assembly
# \mathbf{F}^t_p = \sum_{i=1}^{K} G^t_{i,p}\, \mathbf{R}_{i,p} \qquad \text{for every token } p .
# ```
#
# Written down as it stands, that is a loop over images, tasks, experts and tokens. It is slow, but nobody can doubt
# it. We let it run in double precision.

# %%
R64, G64 = R.detach().double(), G.detach().double()
loop = torch.zeros(B, T, D, 8, 8, dtype=torch.float64)
for b in range(B):
    for t in range(T):
        for i in range(K):
            for y in range(8):
                for x in range(8):
                    loop[b, t, :, y, x] += G64[b, t, i, y, x] * R64[b, i, :, y, x]

# %% [markdown]
# An index that appears on both sides of the arrow is kept, one that appears at the left only is summed over. That is
# all that {eq}`eq-10-assembly` says:

# %%
assembled = torch.einsum("btkhw,bkdhw->btdhw", G64, R64)  # (B, T, D, 8, 8)
torch.testing.assert_close(assembled, loop)

# %% [markdown]
# Experts, gates, sum: put together they are the library's module (`mlore_edu/decoders/taskexpert.py: MMoEModule`),
# here with a memory neither read nor written.

# %%
module = taskexpert.MMoEModule(
    T, E, D, experts=K, expert_width=e, gate_width=h, memory=False
)
module.experts, module.gates = library_experts, library_gates
result = module(X, None)
torch.testing.assert_close(result.gates, G)
torch.testing.assert_close(result.decoded, assembled.float(), atol=1e-5, rtol=1e-5)

# %% [markdown]
# ### What a gate learns
#
# How does training move a gate? Let $\ell_i$ be the logit of expert $i$ for one task at one token, and
# $\boldsymbol{\delta}$ the gradient of the loss with respect to the assembled $\mathbf{F}$ there. The softmax gives
#
# ```{math}
# :label: eq-10-gradient
# \frac{\partial \mathcal{L}}{\partial \ell_i} = G_i\; \boldsymbol{\delta}^{\top} (\mathbf{R}_i - \mathbf{F}) .
# ```
#
# A gate rises where its expert's answer lies, seen from what was assembled, in the direction that lowers the loss.
# Two things follow. Where all experts answer alike, the gates learn nothing; and where one gate is nearly 1, so that
# $\mathbf{F}$ is nearly that expert's answer and the other gates nearly 0, they learn next to nothing too.

# %%
leaf = logits.detach().double().requires_grad_()
features = torch.einsum("btkhw,bkdhw->btdhw", leaf.softmax(dim=2), R64)
delta = torch.randn(features.shape, dtype=torch.float64)  # whatever comes after
features.backward(delta)
away = R64[:, None] - features.detach()[:, :, None]  # (B, T, K, D, 8, 8)
derived = G64 * torch.einsum("btdhw,btkdhw->btkhw", delta, away)
torch.testing.assert_close(leaf.grad, derived)

# %% [markdown]
# ### Between the answers
#
# The gates of a token are positive and add up to 1. So what a task receives is a mean of the answers with certain
# weights: a point of the smallest convex body that contains them all, their **convex hull**. At each token the
# experts set up a few corners, and all tasks take their places between the same corners. Here are the trained
# network's first module and one token of the person.

# %%
decided = inside["token_gates"][:, 0].max(axis=2).mean(axis=1)  # (S,)
example = int(decided.argmin())  # the scene whose token is least decided
answers = inside["token_answers"][example, 0].astype(float)  # (K, D)
taken = inside["token_gates"][example, 0, :, :K].astype(float)  # (T, K)
placed = taken @ answers  # (T, D): the assembly at one token
recorded = inside["token_memory"][example, 0]  # (T, D): F, which starts the memory
np.testing.assert_allclose(placed, recorded, atol=0.02)
centre = answers.mean(axis=0)
flat = np.linalg.svd(answers - centre)[2][:2].T  # (D, 2): two principal directions


# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-10-hull", "caption": "One token in the first module. Discs: the answers of the six experts, 32 numbers each, in their two principal directions. Grey: the lines between them. Crosses: the features of the six tasks, none of which can lie outside."}, "image": {"alt": "At the left a picture of a room with one token marked on the person. At the right six numbered discs joined by grey lines to a polygon, with six crosses labelled by tasks inside of it; some of them are close to a corner, others near the middle."}}
def draw_hull(axis, corners):
    outwards = corners - corners.mean(axis=0)
    outwards = outwards / np.linalg.norm(outwards, axis=1, keepdims=True)
    for i in range(K):
        for j in range(i):
            axis.plot(*corners[[i, j]].T, color="0.85", lw=1, zorder=0)
        axis.plot(*corners[i], "o", ms=12, color=expert_colours[i])
        axis.annotate(i + 1, corners[i], 14 * outwards[i], ha="center", va="center",
                      textcoords="offset points", color=expert_colours[i], weight="bold")  # fmt: skip
    axis.set(xticks=[], yticks=[], aspect="equal")
    axis.margins(0.1)
    axis.spines[:].set_visible(False)


def mark_token(axis, scene):
    bare(axis, inside["image"][scene])
    row, column = inside["token"][scene] * 8
    frame = {"fill": False, "edgecolor": "black", "lw": 1.5}
    axis.add_patch(plt.Rectangle((column - 0.5, row - 0.5), 8, 8, **frame))


figure, axes = plt.subplots(1, 2, figsize=(7.5, 3.3), width_ratios=(1, 2))
mark_token(axes[0], example)
corners, points = (answers - centre) @ flat, (placed - centre) @ flat
draw_hull(axes[1], corners)
(left, bottom), (width, height) = corners.min(axis=0), np.ptp(corners, axis=0)
for line, t in enumerate(
    points[:, 1].argsort()
):  # labels in a column, in this order
    x, y = left + 1.15 * width, bottom + height * (0.1 + 0.16 * line)
    axes[1].plot(*points[t], "X", ms=9, color="black", mec="white", zorder=3)
    axes[1].plot(
        (points[t, 0], x), (points[t, 1], y), color="0.5", lw=0.6, zorder=2
    )
    title = tasks[tasks.names[t]].title
    axes[1].text(x, y, " " + title, va="center", fontsize=8)
_ = axes[1].set_xlim(left - 0.1 * width, left + 1.75 * width)

# %% [markdown]
# ### Once for all tasks
#
# No answer depends on the task. A loop over tasks that calls the experts anew in each round would compute every
# answer $T$ times; the module calls each expert once. What does it all cost? Count with torch on the `meta` device,
# at the size of the paper: ViT-B with $E = D = 768$ and 32 × 32 tokens, five tasks and five experts. The paper does
# not name the inner widths; $e = 768$ and $h = 288$ make its parameters and operations come out right ([chapter
# 11](11_task_memory.ipynb) shows the search).

# %%
from torch.utils.flop_counter import FlopCounterMode


def gmacs(call):
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops() / 2 / 1e9


# %%
def make_large(kind="context"):
    widths = {"experts": 5, "expert_width": 768, "gate_width": 288}
    return taskexpert.MMoEModule(5, 768, 768, **widths, gate=kind, memory=False)


with torch.device("meta"):
    large, x = make_large(), torch.empty(1, 768, 32, 32)
    g, r = torch.empty(1, 5, 5, 32, 32), torch.empty(1, 5, 768, 32, 32)
    price = {"experts, once": gmacs(lambda: large.experts(x))}
    price["experts, for each task"] = 5 * price["experts, once"]
    for kind in ("context", "pointwise", "linear"):
        gates_alone = make_large(kind).gates
        price[f"gates, {kind}"] = gmacs(lambda gates=gates_alone: gates(x))
    price["assembly"] = gmacs(lambda: torch.einsum("btkhw,bkdhw->btdhw", g, r))

# %%
counted = 5 * (768 * 768 + 768 * 768) * 1024 / 1e9  # K experts, two layers, tokens
assert math.isclose(price["experts, once"], counted)
for name, value in price.items():
    print(f"{name:24}{value:7.2f} · 10⁹ multiply-accumulates")

# %% [markdown]
# The sum itself costs next to nothing. What costs are the experts and, more than they, the gates: three 3 × 3
# convolutions for each of five tasks. To choose is dearer here than to know.
#
# An einsum also spares memory. The products $G^t_i \mathbf{R}_i$ before the sum would be
# $T \cdot K \cdot D \cdot H \cdot W$ numbers, $K$ times as many as the features. What runs instead is one matrix
# product a token, of the gates $(T \times K)$ with the answers $(K \times D)$, and the products are never stored.
# `benchmarks/taskexpert.py` measures time and memory of both ways.

# %%
before, after = 5 * 5 * 768 * 1024, 5 * 768 * 1024
print(f"stored by a loop that keeps its products: {4 * before / 2**20:.0f} MiB")
print(
    f"the assembled features alone: {4 * after / 2**20:.0f} MiB an image, a module"
)

# %% [markdown]
# ### The mixture of chapter 4, once more
#
# Let the gates of a scene be the same at every token, and {eq}`eq-10-assembly` becomes the mixture of [chapter
# 4](../part2_mlore/04_mixture_of_experts.ipynb), on a feature that all tasks share:

# %%
one_for_all = G.mean(dim=(3, 4))  # (B, T, K): one gate per image
everywhere = one_for_all[..., None, None].expand_as(G)  # (B, T, K, 8, 8)
torch.testing.assert_close(
    torch.einsum("btkhw,bkdhw->btdhw", everywhere, R),
    torch.einsum("btk,bkdhw->btdhw", one_for_all, R),
)

# %% [markdown]
# | | mixture of chapter 4 | TaskExpert |
# |---|---|---|
# | a task chooses | once an image | at every token |
# | the gate sees | the mean over all tokens | 7 × 7 tokens |
# | the expert sees | 3 × 3 tokens | one token |
# | active experts | the $k$ best of 15 | all $K = T$, weighed |
# | against idle experts | noise and a balance loss | nothing |
# | experts are called | once, or $T \cdot k$ times in MLoRE | once |
#
# The roles are exchanged: there the experts look around and the gates see only a mean, here the gates look around and
# an expert sees only its token.
#
# ## What a trained network does with it
#
# The network whose gates open this chapter has twelve modules. It was trained in one command.

# %%
record = json.loads(Path("../results/taskexpert_inside.json").read_text())
print(record["data_command"])
print(record["command"])
print(*(f"{name} {value:.1f}," for name, value in record["metrics"].items()))

# %% [markdown]
# From the second module on there is one gate more, the seventh, for the task's memory; in the pictures it is black.
# {numref}`fig-10-poster` has the choices of all modules for one scene.

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-10-poster", "caption": "Which gate is largest at each token, for the first scene of the first figure: a row for each task, a column for each module. The colours of one column have nothing to do with those of another, since every module has experts of its own. Black is the memory; pale means undecided."}, "image": {"alt": "A table of six rows and twelve columns of small coloured maps. Some are of one colour throughout, many show horizontal bands for floor and wall, and some show the outline of the person. In the seventh column nearly every map is of one colour."}}
choices = [
    [choice_map(recorded_gates[0, module, t]) for module in range(L)]
    for t in range(T)
]
figure, axis = plt.subplots(figsize=(7.5, 3.5))
axis.imshow(mosaic(np.array(choices), empty=1))
axis.spines[:].set_visible(False)
axis.tick_params(length=0)
axis.set_xticks(W / 2 + (W + 2) * np.arange(L), range(1, L + 1))
axis.set_yticks(H / 2 + (H + 2) * np.arange(T), [task.title for task in tasks])
_ = axis.set_xlabel("module")

# %% [markdown]
# The paper shows such maps in its Fig. 6 and concludes that different experts take care of different parts of a
# picture. We see that, too: where the person stands, many maps change their colour. We also see what a chosen figure
# would not show. There are maps of one colour, in which a task takes the same expert everywhere. In some modules
# every task has settled on an expert and nearly stays with it, and then that module is no mixture any more. The sum
# of the largest gate tells: it is near 1 where the choice is made.

# %%
largest_gate = inside["kept"][0]  # (L, T): mean over all validation scenes
settled = (largest_gate > 0.9).sum(axis=1)  # (L,)
print("tasks that have settled, by module:", settled.tolist())
assert settled.max() == T

# %% [markdown]
# A module in which every task has settled is a static decoder, much like the one that the paper starts from (the
# Baseline of its Table 1, where each task has an expert of its own), and all the work of its gates is for nothing. By
# {eq}`eq-10-gradient` it hardly finds a way back, and no balance loss pushes it.
#
# ### Look for yourself
#
# Choose a scene, a module, a task and an expert. What does the expert answer there, and where does the task take it? You start from {numref}`fig-10-explorer`.

# %%
names = [str(k + 1) for k in range(K)] + ["memory"]


def explore(scene, module, task, expert):
    figure, axes = plt.subplots(1, 3, figsize=(7.5, 2.6))
    bare(axes[0], inside["image"][scene], f"scene {scene + 1}")
    k = names.index(expert)
    gate = recorded_gates[scene, module - 1, tasks.names.index(task), k]
    what = f"expert {expert}" if k < K else "the memory"
    bare(axes[1], gate, f"gate of {what}", cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(axes[1].images[0], ax=axes[1], shrink=0.8, ticks=(0, 0.5, 1))
    axes[2].axis("off")  # what the memory holds is for chapter 11
    if k < K:
        bare(axes[2], inside["answers"][scene, module - 1, k], f"answer of {what}")
        axes[2].axis("on")
    figure.suptitle(f"module {module}, {tasks[task].title}", fontsize=10)


# %% tags=["nbval-ignore-output"]
import ipywidgets

_ = ipywidgets.interact(
    lambda **choice: (explore(**choice), plt.show())[1],
    scene=ipywidgets.IntSlider(0, 0, S - 1),
    module=ipywidgets.IntSlider(1, 1, L),
    task=ipywidgets.Dropdown(options=tasks.names),
    expert=ipywidgets.Dropdown(options=names),
)

# %% mystnb={"figure": {"name": "fig-10-explorer", "caption": "The explorer's view of the gate that, on this scene, differs most from its mean over the six: the picture, the gate, and the answer of the expert in three principal components."}, "image": {"alt": "Three panels: a room with a person; a map of 16 by 16 tokens, dark in one part of the room and white in others; and the same room in the colours of the expert's answer, coarse but recognisable."}}
own = recorded_gates[0] - recorded_gates.mean(axis=0)  # (L, T, K + 1, H, W)
spread = own[:, :, :K].std(axis=(3, 4))  # (L, T, K)
module, t, k = np.unravel_index(spread.argmax(), spread.shape)
explore(0, int(module) + 1, tasks.names[t], names[k])

# %% [markdown]
# ### What do the gates follow?
#
# "Dynamic" says that gates change with the picture. But a gate can vary over the tokens without looking at the
# picture at all: the upper tokens are wall in any Dollhouse, the lower ones floor. So we take the variance of each
# gate over the hundred validation scenes and all tokens apart, into three pieces. Let $\bar g_s$ be the mean over the
# tokens of scene $s$, $\bar g_p$ the mean over the scenes at place $p$, and $\bar g$ the mean of everything. Then
#
# ```{math}
# :label: eq-10-variance
# g_{s,p} - \bar g = \underbrace{(\bar g_s - \bar g)}_{\text{the scene}} + \underbrace{(\bar g_p - \bar g)}_{\text{the place}}
# + \underbrace{(g_{s,p} - \bar g_s - \bar g_p + \bar g)}_{\text{the rest: this token of this scene}},
# ```
#
# and the variances of the three add up, because each has mean zero wherever another is constant. The record has them,
# added over the gates of a module.

# %%
parts_of_variance = inside["variance"]  # (L, T, 3)
shares = parts_of_variance.sum(axis=(0, 1)) / parts_of_variance.sum()
for name, share in zip(("the scene", "the place", "the rest"), shares):
    print(f"{name:10}{100 * share:5.1f} %")
assert shares[0] < 0.02
assert shares[1] > 0.5

# %% [markdown]
# Almost nothing lies in the scene. A gate like chapter 4's, one number for a picture, could express less than a
# hundredth of what these gates do. But the larger part of their variance is a habit of places: a fixed map, the same
# for all pictures. Something between a quarter and a third follows what there is to see.
#
# Does the network use it? [Chapter 7](../part2_mlore/07_routers.ipynb) asked that of MLoRE's routers by exchanging
# the gates of a trained network, and we do the same. The losses below are means over all validation scenes, with the
# gates of all twelve modules replaced ({numref}`fig-10-exchange`).

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-10-exchange", "caption": "What becomes of the losses if the gates of all modules are exchanged, in multiples of the loss with the network's own. Left and middle bars keep only what depends on the scene, or on the place."}, "image": {"alt": "For each of the six tasks four bars on a logarithmic axis, relative to a line at one. One gate per scene multiplies all losses but that of boundaries by two and a half or more. One per place leaves the surface normals as they were, and multiplies saliency by more than ten. The gates of the next task do most harm nearly everywhere."}}
losses = dict(zip(record["exchanges"], inside["exchanged"]))  # (T,) each
figure, axis = plt.subplots(figsize=(7.5, 2.9))
shown = (
    "one for the scene",
    "one for the place",
    "another scene's",
    "the next task's",
)
for number, (name, colour) in enumerate(zip(shown, plots.OKABE_ITO)):
    height = losses[name] / losses["their own"]
    axis.bar(np.arange(T) + 0.2 * (number - 1.5), height - 1, 0.19, bottom=1,
             label=name, color=colour)  # fmt: skip
axis.axhline(1, color="black", lw=1)
axis.set(yscale="log", ylabel="loss, relative", xticks=range(T))
axis.set_yticks((1, 3, 10, 30), ("1", "3", "10", "30"))
axis.set_xticklabels([task.title.replace(" ", "\n") for task in tasks])
_ = figure.legend(loc="outside upper center", ncols=4, fontsize=9)

# %%
harm = {name: loss / losses["their own"] for name, loss in losses.items()}  # (T,)
assert (harm["one for the scene"][:5] > 2).all()  # all but boundaries
assert (harm["one for the place"][1:3] > 3).all()  # human parts, saliency
assert (harm["one for the place"][3:5] < 1.5).all()  # normals, depth
print(f"boundaries, one gate for all: {harm['one for all'][-1]:.1f} times the loss")

# %% [markdown]
# It does, and each task in its own way. With one gate a scene nearly everything falls apart: this network needs to
# choose by token. For normals, and nearly for depth, it is enough to know the place, as one would expect of rooms
# that are all alike, seen from much the same point. Body parts and saliency need the token of the scene. Boundaries
# hardly care where which gate is, perhaps because in this small model the stem's fine map passes by the modules; but
# even they break with the gates of another task. So the tasks do ask for different things.
#
# Such an exchange tells what this network relies on. Another one, trained with gates of one number a scene, might do
# well in another way; that would have to be trained.
#
# ## Why should a gate look at its neighbours?
#
# An expert sees one token. If the gate saw one token too, the module as a whole could only do what one token allows.
# Is that not enough, when a transformer has mixed the tokens before? Let us first find out what is at stake, in a
# world where tokens have *not* been mixed.
#
# Its pictures consist of strokes, four tokens long, lying or standing. A token says 1 where there is a stroke and 0
# where there is none, and nothing else. One task asks which way the stroke runs (+1 lying, −1 standing), the other
# for its ends (+1 at an end, −1 between). Experts would have little to do: one that says +1, one that says −1. But
# who is right at a token depends on its neighbours.

# %%
line, ends = torch.tensor([[0.0, 1, 1, 1, 1, 0], [0.0, 1, -1, -1, 1, 0]])


def draw_strokes(count):
    row = F.one_hot(torch.randint(1, 5, (count, 2, 2)), 6).float()  # (n, 2, 2, 6)
    lies = torch.rand(count, 2, 2, 1, 1) < 0.5

    def paint(profile, standing=1):
        tile = row[..., None] * profile  # (n, 2, 2, 6, 6): 2 × 2 tiles
        tile = torch.where(lies, tile, standing * tile.mT)
        return tile.permute(0, 1, 3, 2, 4).reshape(-1, 1, 12, 12)  # side by side

    return paint(line), torch.stack([paint(line, -1), paint(ends)], dim=1)


# %% [markdown]
# To every picture we add its reflection about the diagonal, in which all strokes that lay now stand. So of all stroke
# tokens exactly half belong to lying strokes; and since a stroke has two ends and two tokens between, exactly half
# are ends.


# %%
def with_reflections(pictures, targets):
    mirrored = targets.mT * torch.tensor([-1.0, 1])[:, None, None, None]
    return torch.cat([pictures, pictures.mT]), torch.cat([targets, mirrored])


torch.manual_seed(0)
pictures, targets = with_reflections(*draw_strokes(24))  # (48, 1, 12, 12)
unseen, answers_unseen = with_reflections(*draw_strokes(24))
strokes = pictures[:, None] == 1  # (48, 1, 1, 12, 12)
for name, t in (("lying or standing", 0), ("end or middle", 1)):
    print(f"{name}: mean of the targets {targets[:, t][strokes[:, 0]].mean():.1f}")

# %% [markdown]
# **What can a module do whose gates see one token?** All its parts, experts and gates, then work on one token at a
# time (BatchNorm's statistics are the same for all of them). The module is a function $f$ of the token. All stroke
# tokens are equal, so all receive the same answer $a = f(1)$, and the mean squared error over them is
#
# ```{math}
# :label: eq-10-chance
# \tfrac12 (a - 1)^2 + \tfrac12 (a + 1)^2 = 1 + a^2 \geq 1 .
# ```
#
# It is at least 1, with the right sign for exactly half of the tokens, whatever is learned, and however wide or deep
# experts and gates are. Now train the library's module on it, with three kinds of gates: `linear`, one 1 × 1
# convolution, as in earlier mixtures and in the row "w/ MoE" of the paper's Table 1; `pointwise`, three of them with
# ReLUs, as deep as the paper's; and the paper's `context`. (We give it
# four experts, though two could do. Two may happen to answer alike at the start, and then their gates learn nothing,
# as {eq}`eq-10-gradient` told.)


# %%
def learn(kind, pictures, targets, gate_width=8, steps=100):
    sizes = {"experts": 4, "expert_width": 8, "gate_width": gate_width}
    module = taskexpert.MMoEModule(
        targets.shape[1], 1, 1, **sizes, gate=kind, memory=False
    )
    optimizer = torch.optim.Adam(module.parameters(), 1e-2)
    on = pictures[:, None]  # errors count where there is something
    for _ in range(steps):
        error = (module(pictures, None).decoded - targets) ** 2 * on
        loss = error.sum(dim=(0, 2, 3, 4)) / on.sum()  # (T,)
        optimizer.zero_grad()
        loss.sum().backward()
        optimizer.step()
    return module.eval(), error.detach()


# %%
trained = {}
for kind in ("linear", "pointwise", "context"):
    torch.manual_seed(0)
    trained[kind], error = learn(kind, pictures, targets)
    with torch.no_grad():
        said = trained[kind](unseen, None).decoded.sign()  # (48, 2, 1, 12, 12)
    right = (said == answers_unseen)[(unseen[:, None] == 1).expand_as(said)]
    print(
        f"{kind:10} right at {100 * right.float().mean():.0f} % of the unseen tokens"
    )
    assert (error.sum() / strokes.sum() / 2 > 0.999) == (kind != "context")

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-10-strokes", "caption": "The world of strokes. From left to right: what the tokens say, what the tasks ask for, what is assembled with pointwise gates and with gates that see their neighbours, and one of these gates. Orange is +1, blue −1, white 0."}, "image": {"alt": "Two rows of five small pictures with four strokes each. In the first column all strokes are grey. In the second, first row, lying strokes are orange and standing ones blue; in the second row the ends are orange and the middles blue. The third column is empty. The fourth looks like the second. The fifth shows a gate that separates lying from standing strokes, and below ends from middles."}}
from matplotlib.colors import LinearSegmentedColormap

signs = LinearSegmentedColormap.from_list(
    "signs", (plots.OKABE_ITO[0], "white", plots.OKABE_ITO[1])
)
with torch.no_grad():
    views = {
        kind: trained[kind](unseen[:1], None) for kind in ("pointwise", "context")
    }
context_gates = views["context"].gates[0]  # (2, 4, 12, 12)
figure, axes = plt.subplots(2, 5, figsize=(7.5, 3.3))
for row, name in enumerate(("lying or\nstanding?", "end or\nmiddle?")):
    gate = context_gates[row] * unseen[0]  # (4, 12, 12)
    inks = gate[:, unseen[0, 0] == 1].std(dim=1)  # (4,)
    columns = {
        "tokens": unseen[0, 0],
        "asked for": answers_unseen[0, row, 0],
        "pointwise": views["pointwise"].decoded[0, row, 0] * unseen[0, 0],
        "context": views["context"].decoded[0, row, 0] * unseen[0, 0],
    }
    for axis, (title, picture) in zip(axes[row], columns.items()):
        colours = "Greys" if title == "tokens" else signs
        low = 0 if title == "tokens" else -1
        bare(axis, picture, title if row == 0 else "", cmap=colours, vmin=low,
             vmax=2 if title == "tokens" else 1)  # fmt: skip
    bare(axes[row, 4], gate[inks.argmax()], "a gate" if row == 0 else "", cmap="Purples",
         vmin=0, vmax=1)  # fmt: skip
    axes[row, 0].set_ylabel(name)

# %% [markdown]
# The theorem holds to the digit ({numref}`fig-10-strokes`): with the first two kinds the best that training finds is $a = 0$, an empty answer.
# With context the experts set up +1 and −1, and the gates, the only part that looks sideways, point to the right one.
# This division of labour is the idea of context-aware gating.
#
# ### How far does a gate see?
#
# A 3 × 3 convolution sees one token in each direction, and each further one adds one: three of them see 7 × 7. Take
# the gradient of a gate at one token with respect to all tokens of the input; it is zero where the gate cannot see.
# With all weights 1 and no ReLU, it counts the paths by which a token gets there.


# %%
def window(layers):
    tokens = torch.zeros(1, 1, 15, 15, requires_grad=True)
    gate = tokens
    for _ in range(layers):
        gate = F.conv2d(gate, torch.ones(1, 1, 3, 3), padding=1)
    return torch.autograd.grad(gate[0, 0, 7, 7], tokens)[0][0, 0]  # (15, 15)


seen = {layers: window(layers) for layers in (1, 2, 3)}  # (15, 15) each
for layers, gradient in seen.items():
    side = int((gradient > 0).any(dim=0).sum())
    print(
        f"{layers} convolution{'s' if layers > 1 else ''}: {side} × {side} tokens"
    )

# %% [markdown]
# Does it also *use* the whole window? A second world puts that to the test ({numref}`fig-10-reach`). In each row of one picture there are two
# dots, $d$ tokens apart, and each must say whether it is the right one of the two (+1) or the left one (−1). For
# $d \leq 3$ a dot sees its partner. For $d \geq 4$ it sees a lonely dot, whichever it is, and {eq}`eq-10-chance`
# holds again. (Rows are four tokens apart, and the border is far enough away, or a dot could find its place by
# these.)

# %%
farthest = 6
dots = torch.zeros(1, 1, 4 * farthest + 5, 20)
side_of = torch.zeros(1, 1, 1, 4 * farthest + 5, 20)  # (B, T, D, H, W)
for d in range(1, farthest + 1):
    left = 9 - d // 2
    dots[..., 4 * d, [left, left + d]] = 1
    side_of[..., 4 * d, left], side_of[..., 4 * d, left + d] = -1, 1

# %%
torch.manual_seed(0)
_, error = learn("context", dots, side_of, gate_width=16, steps=150)
by_distance = error[0, 0, 0].sum(dim=-1)[4:-4:4] / 2  # (6,): two dots in each row
assert (by_distance[:3] < 0.1).all()
assert (by_distance[3:] > 0.99).all()
print(
    "solved at the distances", (1 + torch.nonzero(by_distance < 0.5)[:, 0]).tolist()
)

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-10-reach", "caption": "Left: what a gate of the middle token sees through one, two and three 3 × 3 convolutions; the darker, the more paths lead to it. Right: pairs of dots at six distances, and the error that training leaves for each; 1 is chance."}, "image": {"alt": "Three square maps in which a dark patch in the middle grows from three by three over five by five to seven by seven tokens, darkest in the centre. Next to them a column of six pairs of dots that move apart, and six bars: none for distances one to three, full height for four to six."}}
figure, axes = plt.subplots(
    1, 5, figsize=(7.5, 2.3), width_ratios=(1, 1, 1, 0.8, 1.3)
)
for axis, (layers, gradient) in zip(axes, seen.items()):
    bare(
        axis,
        (gradient / gradient.max()).sqrt(),
        f"{layers} × (3 × 3)",
        cmap="Blues",
    )
bare(axes[3], dots[0, 0, :, 4:16], "dots", cmap="Greys", aspect="auto")
axes[4].barh(range(1, 7), by_distance, color=plots.OKABE_ITO[0])
axes[4].set(xlabel="error", ylabel="distance", xticks=(0, 1), yticks=range(1, 7))
_ = axes[4].set_ylim(7, 0)

# %% [markdown]
# Seven tokens of ViT-B are 112 pixels of the image. A real decoder's gates are better off than those of our toy,
# though, and so are its pointwise gates: the transformer's attention has mixed all tokens with all others before, and
# a token may well know that it is an end. What the toy shows is what context *can* be needed for. Whether it is
# needed there, only training can tell.
#
# ### What context is worth, measured
#
# `book/results/make_taskexpert_sweeps.py` trained TaskExpert with each kind of gate and several seeds, on the budget
# of [chapter 9](../part2_mlore/09_mlore_assembled.ipynb): the easy Dollhouse at 64 × 64, 400 scenes, 300 steps of 8
# images. As there, intervals come from the spread between seeds, pooled over all configurations. The gain Δm is taken
# over the full model here, with context, memory and all experts, so that its mean lies at zero.

# %%
sweeps = json.loads(Path("../results/taskexpert_sweeps.json").read_text())
runs = {}  # metrics of every run, by configuration
for run in sweeps["runs"]:
    runs.setdefault(run["key"], []).append(run["metrics"])
full = {n: mean(run[n] for run in runs["taskexpert"]) for n in tasks.names}
gains = {
    key: [me.multitask_gain(run, full, tasks) for run in its]
    for key, its in runs.items()
}
print(sweeps["runs"][0]["command"])

# %%
from scipy.stats import t as student

freedom = sum(len(values) - 1 for values in gains.values())
squares = sum((v - mean(values)) ** 2 for values in gains.values() for v in values)
seed_spread = math.sqrt(squares / freedom)
quantile = student.ppf(0.975, freedom)


def difference(key, reference):
    """Of the means of two configurations, and half of its 95 % interval."""
    a, b = gains[key], gains[reference]
    half = quantile * seed_spread * math.sqrt(1 / len(a) + 1 / len(b))
    return mean(a) - mean(b), half


# %%
def show_steps(steps):
    """Print each step that was recorded, beside the paper's, which is text."""
    print(f"{'Δm in %':34} paper    ours")
    for title, reference, key, paper in steps:
        if key in gains and reference in gains:
            value, half = difference(key, reference)
            agree = f"{value:+}"[0] == paper[:1]
            said = "supports the paper" if agree else "contradicts the paper"
            said = said if paper else "beyond the noise"
            said = said if abs(value) > half else "noise"
            print(f"{title:34}{paper:>6}   {value:+5.1f} ± {half:.1f}   {said}")


def draw_sweep(axis, sweep):
    rows = {
        row: key for row, key in sweeps["sweeps"][sweep].items() if key in gains
    }
    for y, key in enumerate(rows.values()):
        half = quantile * seed_spread / math.sqrt(len(gains[key]))
        blue = {"color": plots.OKABE_ITO[0]}
        axis.plot(gains[key], [y] * len(gains[key]), "o", ms=4, alpha=0.45, **blue)
        style = {"fmt": "|", "ms": 12, "mew": 2, "capsize": 3, **blue}
        axis.errorbar(mean(gains[key]), y, xerr=half, **style)
    axis.set(
        xlabel="Δm over the full model (%)",
        yticks=range(len(rows)),
        yticklabels=list(rows),
    )
    axis.set_ylim(len(rows) - 0.5, -0.5)


# %% mystnb={"figure": {"name": "fig-10-gate-kinds", "caption": "Three kinds of gates: a dot for each seed, the mean, and its 95 % interval from the pooled spread."}, "image": {"alt": "Three rows of dots with a mean and an interval, against the gain in percent: linear and pointwise gates together some three and a half percent to the left of context."}}
figure, axis = plt.subplots(figsize=(7.5, 1.9))
draw_sweep(axis, "gates")

# %% [markdown]
# {numref}`fig-10-gate-kinds` has our three. The paper compares linear gates with context-aware ones before the memory
# comes in (Table 1, from "w/ MoE" to "w/ MoE+CG"); its step, recomputed over its full model, stands beside ours below.
# It has no pointwise gates; they tell whether it is the context that helps or only the depth.

# %%
from mlore_edu import published

parts = {row["model"]: row for row in published.table("taskexpert", 1).rows}
over_full = {
    model: me.multitask_gain(row, parts["w/ MoE+CG+Mem"], me.PASCAL_CONTEXT)
    for model, row in parts.items()
}
kinds, ladder = sweeps["sweeps"]["gates"], sweeps["sweeps"]["table1"]
step = f"{over_full['w/ MoE+CG'] - over_full['w/ MoE']:+.2f}"
show_steps(
    [
        ("linear → context, no memory", ladder["w/ MoE"], ladder["w/ MoE+CG"], step),
        ("linear → context, with memory", kinds["linear"], kinds["context"], ""),
        ("pointwise → context, with memory", kinds["pointwise"], kinds["context"], ""),
    ]
)  # fmt: skip

# %% [markdown]
# Here, too, context helps, and by more than the paper reports. The step is there without the memory and with it,
# outside the noise. And it is the context, not the depth: a pointwise gate, three layers deep, is no better than a
# linear one. That is remarkable, since one transformer block at the first module, and twelve at the last, have mixed
# all 8 × 8 tokens before a gate looks at one. But a gate with 3 × 3 kernels is also the only place of this decoder that
# sees two tokens side by side, and has more weights than the other gates; which of these counts, the sweep cannot say.

# %%
for gate, key in kinds.items():
    if gate != "context":
        value, half = difference(kinds["context"], key)
        assert value > half, gate
value, half = difference(kinds["pointwise"], kinds["linear"])
assert abs(value) <= half

# %% [markdown]
#
# ## Dense or sparse
#
# All gates so far are positive, and every task takes something of every expert: the mixture is *dense*. As an
# alternative the paper keeps only the $k$ largest gates of each task at each token (the memory's counts as one). The
# text has them weighed by their gates as they are. One could also make those that stay sum to 1 again.

# %%
best = G.topk(2, dim=2).indices  # (B, T, 2, 8, 8)
sparse = G * torch.zeros_like(G).scatter(2, best, 1)  # (B, T, K, 8, 8)
renormalised = sparse / sparse.sum(dim=2, keepdim=True)
torch.testing.assert_close(taskexpert.choose(logits, 2), sparse)
torch.testing.assert_close(
    taskexpert.choose(logits, 2, renormalise=True), renormalised
)

# %% [markdown]
# The difference is that of chapter 4's two orders, and so is the consequence for $k = 1$: made to sum to 1, the only
# gate *is* 1, and its logits get no gradient.

# %%
for renormalise in (False, True):
    leaf = logits.detach().double().requires_grad_()
    gates = taskexpert.choose(leaf, 1, renormalise=renormalise)
    torch.einsum("btkhw,bkdhw->btdhw", gates, R64).sum().backward()
    learns = leaf.grad.abs().max().item() > 1e-9
    print(f"one expert, renormalised: {renormalise!s:5}  its gate learns: {learns}")

# %% [markdown]
# In the picture of {numref}`fig-10-hull`, a sparse mixture that is renormalised stands at a corner ($k = 1$) or on
# the line between two ($k = 2$). Without, it is drawn from there towards zero, and the farther the less sure the task
# was. What follows can tell an undecided token from a decided one by the size of its feature ({numref}`fig-10-sparse`).

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-10-sparse", "caption": "Left: the token of the earlier figure, for the task whose best two gates are smallest: assembled from all six answers, from the best two, from the best one; hollow: renormalised. Right: the sum of the gates that stay, over the first scene of this chapter and for the first of its tasks; dark is 1."}, "image": {"alt": "At the left six numbered discs joined by grey lines, and inside them a cross for the dense mixture; hollow marks for the renormalised sparse ones lie on a line and on a corner, filled ones are drawn from there towards a small ring that marks zero. At the right two maps, of the best gate and of the best two; the second is darker, and in both some parts of the room are pale."}}
module, t = np.unravel_index(follows.argmax(), follows.shape)
kept = -np.sort(
    -recorded_gates[0, module, t], axis=0
)  # (K + 1, H, W), largest first
undecided = int(np.sort(taken)[:, -2:].sum(axis=1).argmin())  # a task
g = taken[undecided]
figure, axes = plt.subplots(1, 3, figsize=(7.5, 3.0), width_ratios=(2, 1, 1))
draw_hull(axes[0], corners)
zero = -centre @ flat
axes[0].plot(*zero, "o", ms=5, mfc="white", mec="black")
axes[0].annotate("zero", zero, (5, 5), textcoords="offset points", fontsize=8)
for k, mark in ((K, "X"), (2, "s"), (1, "D")):
    sparse_g = np.where(g >= np.sort(g)[-k], g, 0)
    full = (sparse_g / sparse_g.sum() @ answers - centre) @ flat
    short = (sparse_g @ answers - centre) @ flat
    axes[0].plot(*full, mark, ms=9, mfc="none", mec="black")
    axes[0].plot(*zip(full, short), color="black", lw=1, ls=":")
    axes[0].plot(
        *short, mark, ms=9, color="black", label=f"best {k}" if k < K else "all"
    )
axes[0].legend(loc="best", fontsize=8, title=tasks[tasks.names[undecided]].title)
for k in (1, 2):
    title = "best gate" if k == 1 else "best two"
    bare(axes[k], kept[:k].sum(axis=0), title, cmap="Blues", vmin=0, vmax=1)

# %% [markdown]
# ### What would it save?
#
# In a language model the point of sparse gates is to skip work: an expert that a token has not chosen need not run
# for it. Here all tasks share the experts, and an expert may rest at a token only if *no* task wants it there. The
# record counted, on all validation scenes, how many experts the six tasks need together. By chance, if each task
# chose $k$ of $n$ gates at random, an expert would be wanted with probability $1 - (1 - k/n)^T$.

# %%
need = inside["union"] @ np.arange(K + 1)  # (2, L): mean number of experts
gates_a_task = np.array([K] + [K + 1] * (L - 1))  # the memory's among them
wanted = [1 - (1 - k / gates_a_task) ** T for k in (1, 2)]  # by chance
chance = K * np.array(wanted)  # (2, L); reading the memory is no work
for k, n, by_chance in zip((1, 2), need.mean(axis=1), chance.mean(axis=1)):
    print(f"best {k}: {n:.1f} of {K} experts needed, {by_chance:.1f} by chance")

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-10-union", "caption": "How many experts a token needs for all six tasks together, if each takes its best one or two gates; means over all validation scenes. Dashed: by chance. The gates are those of the network trained dense."}, "image": {"alt": "For each of twelve modules two bars. With the best gate, three to five of six experts are needed; with the best two, five to nearly six. Both lie close to the dashed lines of chance, some above and some below."}}
figure, axis = plt.subplots(figsize=(7.5, 2.5))
modules = np.arange(1, L + 1)
for k in (1, 2):
    colour = plots.OKABE_ITO[k - 1]
    axis.bar(
        modules + 0.38 * (k - 1.5),
        need[k - 1],
        0.36,
        color=colour,
        label=f"best {k}",
    )
    axis.step(modules, chance[k - 1], where="mid", color=colour, ls="--", lw=1.2)
axis.axhline(K, color="0.6", lw=1)
axis.set(xlabel="module", ylabel="experts needed", xticks=modules, ylim=(0, 7.4))
_ = axis.legend(ncols=2, loc="upper right")

# %% [markdown]
# With two gates a task, {numref}`fig-10-union` says, hardly any expert rests. With one, about a third could; and an expert is not all that a
# module runs, since its gates must be computed before anyone can choose.

# %%
whole = price["experts, once"] + price["gates, context"] + price["assembly"]
experts_share = price["experts, once"] / whole
print(f"experts are {100 * experts_share:.0f} % of a module of the paper's size")
for k, n in zip((1, 2), need.mean(axis=1)):
    saved = experts_share * (1 - n / K)
    print(f"best {k}: at most {100 * saved:.0f} % of the operations saved")
    assert saved < 0.2

# %% [markdown]
# And that is on paper; to gather the tokens of each expert would cost time of its own. (A network that was trained
# with sparse gates may choose otherwise than ours, which was trained dense.) So sparsity cannot win by its price
# here. It would have to win by accuracy. In the paper's Fig. 8 it does not: two active
# experts do better than one, and all of them best. The same three in our sweep (the figure prints no numbers, so that
# its direction alone stands beside ours):

# %% mystnb={"figure": {"name": "fig-10-density", "caption": "The best gate, the best two and all of them: a dot for each seed, the mean, and its 95 % interval from the pooled spread."}, "image": {"alt": "Three rows of dots with a mean and an interval, against the gain in percent: top 1 and top 2 together some two percent to the right of dense."}}
figure, axis = plt.subplots(figsize=(7.5, 1.9))
draw_sweep(axis, "figure8")

# %%
density = sweeps["sweeps"]["figure8"]
steps = [(f"{row} → Dense", density[row]) for row in ("Top 1", "Top 2")]
show_steps([(*step, density["Dense"], "+") for step in steps])

# %% [markdown]
# Ours ({numref}`fig-10-density`) points the other way: with one or two gates a task the network is better than with all, by more than the noise.
# Why, we have not found out; three hundred steps may favour another gate than the paper's forty thousand. That dense
# is best is no law.

# %%
for row in ("Top 1", "Top 2"):
    value, half = difference(density["Dense"], density[row])
    assert value < -half, row

# %% [markdown]
#
# ## Exercises
#
# ```{exercise} Read the gates off
# :label: ex-10-gates
# At one token you are given the experts' answers, `(K, D)`, and a task's feature, `(D,)`. Write `find_gates` that
# recovers the $K$ gates with which it was assembled. For how many experts is that possible?
# ```

# %%
from mlore_edu.exercises import ch10


def find_gates(answers, feature): ...


_ = ch10.check_find_gates(find_gates)

# %% [markdown]
# ```{solution-start} ex-10-gates
# :class: dropdown
# ```
# Eq. {eq}`eq-10-assembly` gives $D$ linear equations, and that the gates sum to 1 one more. They have one solution if
# the answers are the corners of a simplex, which needs $K \leq D + 1$. With more experts different gates may assemble
# the same feature.


# %% jupyter={"source_hidden": true}
def find_gates(answers, feature):
    one = torch.ones(1, dtype=answers.dtype)
    rows = torch.cat([answers.T, one.expand(1, len(answers))])  # (D + 1, K)
    wanted = torch.cat([feature, one])  # (D + 1,)
    return torch.linalg.lstsq(rows, wanted[:, None]).solution[:, 0]  # (K,)


found = find_gates(torch.tensor(answers), torch.tensor(placed[0]))
torch.testing.assert_close(found, torch.tensor(taken[0]), atol=0.01, rtol=0)
_ = ch10.check_find_gates(find_gates)

# %% [markdown]
# ```{solution-end}
# ```
#
# ```{exercise} A wider window
# :label: ex-10-window
# Write `window(kernels, dilations)` that gives the side, in tokens, of the window seen by a stack of convolutions
# with these kernels and dilations. With which dilations would three 3 × 3 convolutions solve the dots at all six
# distances, at no more cost?
# ```


# %%
def window(kernels, dilations): ...


_ = ch10.check_window(window)

# %% [markdown]
# ```{solution-start} ex-10-window
# :class: dropdown
# ```
# Six tokens in each direction need a window of at least 13: dilations that sum to 6, such as 1, 2, 3. (Their reach
# must also have no gaps: with 2, 2, 2 only even distances are seen.)


# %% jupyter={"source_hidden": true}
def window(kernels, dilations):
    return 1 + sum((k - 1) * d for k, d in zip(kernels, dilations))


print([window((3, 3, 3), dilations) for dilations in ((1, 1, 1), (1, 2, 3))])
_ = ch10.check_window(window)

# %% [markdown]
# ```{solution-end}
# ```
#
# ```{exercise} Who is needed?
# :label: ex-10-needed
# Write `needed(gates, k)` for gates `(B, T, K, H, W)`: how many experts are among the best $k$ of at least one task,
# at each token of each image?
# ```


# %%
def needed(gates, k): ...


_ = ch10.check_needed(needed)

# %% [markdown]
# ```{solution-start} ex-10-needed
# :class: dropdown
# ```
# On the first module of the six recorded scenes it must come close to what the record counted on a hundred.


# %% jupyter={"source_hidden": true}
def needed(gates, k):
    best = gates.topk(k, dim=2).indices  # (B, T, k, H, W)
    chosen = torch.zeros_like(gates).scatter(2, best, 1)  # (B, T, K, H, W)
    return chosen.amax(dim=1).sum(dim=1)  # (B, H, W)


here = needed(torch.tensor(recorded_gates[:, 0, :, :K]), 1).mean().item()
print("close to the record:", abs(here - need[0, 0]) < 0.3)
_ = ch10.check_needed(needed)

# %% [markdown]
# ```{solution-end}
# ```
#
# ```{exercise} How large is a module?
# :label: ex-10-size
# Give the number of parameters of a first module with context-aware gates, from the widths $E$ and $D$, the numbers
# of tasks $T$ and experts $K$, and the hidden widths $e$ and $h$. Which part is the larger at the paper's size?
# ```


# %%
def module_size(width, channels, tasks, experts, hidden, gate): ...


_ = ch10.check_module_size(module_size)

# %% [markdown]
# ```{solution-start} ex-10-size
# :class: dropdown
# ```


# %% jupyter={"source_hidden": true}
def module_size(width, channels, tasks, experts, hidden, gate):
    one_expert = (width + 1) * hidden + 2 * hidden + (hidden + 1) * channels
    one_gate = (9 * width + 1) * gate + (9 * gate + 1) * (gate + experts)
    return experts * one_expert + tasks * one_gate


whole, experts_alone = (module_size(768, 768, t, 5, 768, 288) / 1e6 for t in (5, 0))
print(f"experts {experts_alone:.1f} M, gates {whole - experts_alone:.1f} M")
_ = ch10.check_module_size(module_size)

# %% [markdown]
# ```{solution-end}
# ```
#
# ## Takeaways
#
# - A module of TaskExpert decomposes one feature into $K$ answers, once for all tasks, and assembles each task's feature
#   from them with gates of its own at every token: Eqs. 1, 3 and 4, and one einsum.
# - With gates that sum to 1, all tasks' features at a token lie in the convex hull of the same $K$ answers.
# - The sum is nearly free and the experts are called once. At the paper's size the gates, three 3 × 3 convolutions a
#   task, are the larger part of a module.
# - Where tokens have not been mixed, a gate that sees one token can do no better than chance when its neighbours decide.
#   Three 3 × 3 convolutions see what is up to three tokens away, and nothing beyond.
# - A trained network's gates hardly tell one scene from another as a whole. Most of their variance is a fixed map of
#   places, the rest follows the picture; which of the two a task relies on differs from task to task. In some modules
#   every task has settled on an expert, and nothing is assembled any more.
# - Sparse gates can save little when six tasks share six experts: somebody wants nearly every one.
# - On Dollhouse, in three hundred steps, context is worth three to four percent of Δm, and a deeper gate without it
#   nothing. One or two active experts do better than all, against the paper's figure.
#
# You can now build a module that assembles features at every token, read its gates, and say what they follow. A
# TaskExpert has one after each of twelve layers. [Chapter 11](11_task_memory.ipynb) joins them by a memory.
