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
# # Low-to-high diffusion, and TIF assembled
#
# Attention over the 16,128 pixels of TIF's finest map costs 256 times attention over the 1,008 of its third. Yet which
# part of a room belongs to which is much the same question on both. Can the fine map borrow the coarse map's answer?

# %%
import json
import math
from itertools import combinations, pairwise
from pathlib import Path
from statistics import mean

import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

# %%
import mlore_edu as me
from mlore_edu import plots, published

plots.use_style()
tasks = me.DOLLHOUSE
T = len(tasks)
inside = np.load("../results/tif_diffusion.npz")
told = json.loads(Path("../results/tif_diffusion.json").read_text())
S = len(inside["image"])

# %% [markdown]
# `book/results/make_tif_diffusion.py` has looked into trained networks for this chapter. In one of them all four scales
# attend for themselves, which the paper avoids. It shows what there would be to borrow ({numref}`fig-14-first`). An `Affinity` is the object of
# [chapter 13](13_self_feature_distillation.ipynb): queries and keys, whose products say how much every token wants of every
# other; a softmax makes weights of them.

# %%
from mlore_edu.decoders.tif import Affinity


def stored(network, scale, scene):
    """The affinity of one scale, for one of the stored scenes."""
    names = [f"{network}_{letter}{scale}" for letter in "qk"]
    maps = [torch.from_numpy(inside[name][scene]) for name in names]
    return Affinity(*(m[None] * told["steps"][n] for m, n in zip(maps, names)))


def attended(affinity, task, place):
    """The weights of the token at a place (0 to 1 down, 0 to 1 across), as a map."""
    h, w = affinity.keys.shape[-2:]
    token = int(place[0] * h) * w + int(place[1] * w)
    weights = affinity.matrix()[0, task].softmax(dim=-1)  # (n, n)
    return weights[token].view(h, w)


# %%
def middle_of(scene, name="person"):
    """The pixel of a class that is nearest to the middle of its pixels, as a place."""
    class_id = me.tasks.DOLLHOUSE_CLASSES.index(name)
    pixels = np.argwhere(inside["semseg"][scene] == class_id)  # (m, 2)
    away = np.square(pixels - pixels.mean(axis=0)).sum(axis=1)
    return (pixels[away.argmin()] + 0.5) / 64


# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-14-first", "caption": "One pixel of a person (the cross), and what it attends to for human parts, at the four scales of a network in which each attends for itself. Blue: more than an equal share; red: less."}, "image": {"alt": "A picture of a room with a cross on a person, and four square maps of 32, 16, 8 and 4 tokens a side in blue and red. The finest map follows the outlines of the room, the second has a checkerboard in it, and the coarse two are smooth patches."}}
def show_attended(axis, affinity, task, place, title=""):
    weights = attended(affinity, task, place)
    ratio = (weights * weights.numel()).log2()
    shown = axis.imshow(ratio, cmap="RdBu", vmin=-4, vmax=4, extent=(0, 1, 1, 0))
    axis.plot(place[1], place[0], "x", color="black", ms=7, mew=1.5)
    bare(axis, title)
    return shown


def bare(axis, title=""):
    axis.set(xticks=[], yticks=[])
    axis.set_title(title, fontsize=9)
    axis.spines[:].set(visible=True, color="0.8")


def show_place(axis, scene, place, title=""):
    axis.imshow(inside["image"][scene], extent=(0, 1, 1, 0))
    axis.plot(place[1], place[0], "x", color="white", ms=9, mew=3)
    axis.plot(place[1], place[0], "x", color="black", ms=7, mew=1.5)
    bare(axis, title)


def scale_bar(figure, axes, shown, title="times\n1/n"):
    bar = figure.colorbar(shown, ax=axes, shrink=0.8, ticks=(-4, -2, 0, 2, 4))
    bar.ax.set_yticklabels(("1/16", "1/4", "1", "4", "16"), fontsize=8)
    bar.ax.set_title(title, fontsize=8)


figure, axes = plt.subplots(1, 5, figsize=(7.5, 1.9))
place = middle_of(0)
show_place(axes[0], 0, place, "image")
for scale, axis in enumerate(axes[1:]):
    shown = show_attended(axis, stored("all", scale, 0), 1, place, f"scale {scale}")
scale_bar(figure, axes, shown)

# %% [markdown]
# (The checkerboard at scale 1 is real: a plain ViT has no such scale, and this one is made by a transposed convolution, which paints tiles of 2 × 2.)
#
# ## What you will be able to do
#
# - say what attention costs at each of four scales, and where it overtakes everything else;
# - test a premise that a paper states in passing, with a measure that does not depend on the number of tokens;
# - enlarge an affinity along both of its axes, and show that neither it nor a sum of two ever has to be written down;
# - build LTHD from its equations, and tell what the order of factors in Eq. 12 would do as printed;
# - put TIF {cite}`tif2024` together, and judge its parts with several seeds;
# - say what four decoders share, where their tasks meet, and what they cost.
#
# *Before you start:* [chapter 12](12_scale_attentive_fusion.ipynb) for the four scales, and [chapter
# 13](13_self_feature_distillation.ipynb) for self-feature distillation, whose affinities are used here. *Time:* 50 minutes of
# reading, a quarter of a minute of running. *Hardware:* two CPU cores, 4 GB of memory; no GPU, no download. The trainings are
# read from files.
#
# ## What attention costs
#
# SFD works on the two coarse maps only. Let a map have $n$ tokens of width $C$, and let there be $T$ tasks. Queries need one linear
# map per task, keys $N$ of them, and the feed-forward network two of ratio $r$. Then attention compares every token with
# every other, and averages: two products of $n \times n \times C$. In multiply-accumulates (MACs):
#
# ```{math}
# :label: eq-14-cost
# \underbrace{T\,(1 + N + 2r)\,C^2\, n}_{\text{linear maps}} \;+\; \underbrace{2\,T\,C\,n^2}_{\text{attention}} .
# ```
#
# The first grows with the number of tokens, the second with its square. Take the paper's Swin-T on images of 448 × 576, with four tasks
# and 96 channels at all scales. torch counts what the library's module really does ({numref}`fig-14-cost`).

# %%
from torch.utils.flop_counter import FlopCounterMode

from mlore_edu.decoders.tif import SelfFeatureDistillation


def macs_of(module, *inputs):
    with FlopCounterMode(display=False) as counter:
        module(*inputs)
    return counter.get_total_flops() // 2


# %%
sizes = [(448 >> (2 + i), 576 >> (2 + i)) for i in range(4)]  # 112 × 144 … 14 × 18
with torch.device("meta"):
    sfd = SelfFeatureDistillation(4, 96, key_maps=4, ffn_ratio=2)
costs = []
for h, w in sizes:
    n = h * w
    linear, products = 4 * (1 + 4 + 2 * 2) * 96**2 * n, 2 * 4 * 96 * n**2
    features = torch.empty(1, 4, 96, h, w, device="meta")  # (B, T, C, h, w)
    assert macs_of(sfd, features) == linear + products
    costs.append((n, linear / 1e9, products / 1e9))
    print(f"{n:6} tokens: {linear / 1e9:5.1f} + {products / 1e9:6.1f} · 10⁹ MACs")

# %% mystnb={"figure": {"name": "fig-14-cost", "caption": "SFD at each of the four scales of Swin-T (448 × 576, four tasks, C = 96). Every scale finer has four times the tokens: linear maps cost four times as much, attention sixteen times."}, "image": {"alt": "A bar chart with a logarithmic axis, two bars for each of four scales. The bars of the linear maps fall by a factor of four from scale to scale, those of attention by sixteen: from some 200 billion at scale 0, far above the linear maps, to 0.05 at scale 3, below them."}}
figure, axis = plt.subplots(figsize=(7.5, 2.5))
for k, label in ((1, "linear maps"), (2, "attention")):
    x = np.arange(4) + 0.36 * (k - 1.5)
    axis.bar(
        x, [c[k] for c in costs], 0.34, label=label, color=plots.OKABE_ITO[k - 1]
    )
names = [f"scale {i}\n{h} × {w}" for i, (h, w) in enumerate(sizes)]
axis.set(yscale="log", ylabel="10⁹ MACs", xticks=range(4), xticklabels=names)
axis.axhline(76.33, color="0.5", lw=1, ls="--", label="all of TIF, as printed")
_ = axis.legend()

# %%
tokens, attention = costs[0][0] / costs[3][0], costs[0][2] / costs[3][2]
print(f"scale 0 against scale 3: {tokens:.0f} times the tokens,"
      f" {attention:.0f} times the attention")  # fmt: skip

# %% [markdown]
# The paper says 64, for the complexity of self-attention. That is the ratio of tokens; attention's is its square. The case against
# attention on fine maps is stronger than the paper makes it: at scale 0 it alone would cost more than twice as much as the whole network.
#
# ## Nearly all zero?
#
# There is a second argument. Between the pixels of a fine map, the paper says, global relationships are "predominantly zero", so
# that there would be little to lose. It shows no measurement. What would one measure? Not the weights themselves. A softmax
# over $n$ tokens has a mean of $1/n$, so on a fine map *every* weight is near zero, whatever the network has learned. What
# can be compared between scales is how a weight relates to this equal share, and how the weight of a token's row is
# spread over the tokens.
#
# The first question: what share of the weight do the most attended tokens hold? The record has it for the network above, in which all scales
# attend, and for one before training ({numref}`fig-14-held`).

# %%
held = inside["held"]  # (runs + 1, 4, T, 101): by the top 0, 1, … 100 %
edges = np.array(told["edges"][:-1])  # lower ends of the bins of log2(n · weight)
counted = inside["counted"]  # (runs + 1, 4, T, 30)
rows = {
    "held by the top 10 %": held[..., 10],
    "weights below 1/n": counted[..., edges < 0].sum(axis=-1),
    "weights below 1/(8n)": counted[..., edges < -3].sum(axis=-1),
    "distance, of the mean": inside["distance"],
}
print(f"{'in %, mean over tasks':29}", *(f"scale {i}" for i in range(4)))
for name, values in rows.items():
    for which, part in (("trained", values[:-1]), ("before", values[-1:])):
        cells = 100 * part.mean(axis=(0, 2))  # (4,)
        print(f"{name:22}{which:8}", *(f"{cell:7.0f}" for cell in cells))

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-14-held", "caption": "Left: how much of the weight the most attended tokens hold, mean over six tasks; dotted, scale 0 before training; on the grey diagonal all weights would be equal. Right: the weights, in multiples of an equal share."}, "image": {"alt": "Left, four curves that rise steeply from the lower left and bend to the right, one for each scale, well above the diagonal; the curve before training lies close to the diagonal. Right, four broad bell curves on a logarithmic axis, of which that of scale 0 reaches furthest to small weights."}}
figure, (left, right) = plt.subplots(1, 2, figsize=(7.5, 2.9))
for scale, colour in enumerate(plots.OKABE_ITO[:4]):
    curve = held[:-1, scale].mean(axis=(0, 1))  # (101,)
    left.plot(np.arange(101), 100 * curve, color=colour, label=f"scale {scale}")
    shares = counted[:-1, scale].mean(axis=(0, 1))  # (30,)
    right.plot(edges + 0.5, 100 * shares, color=colour)
left.plot(np.arange(101), 100 * held[-1, 0].mean(axis=0), ":", color="black")
left.plot((0, 100), (0, 100), color="0.7", lw=1, zorder=0)
left.set(xlabel="most attended tokens (%)", ylabel="weight that they hold (%)")
right.axvline(0, color="0.7", lw=1, zorder=0)
right.set(xlabel="weight, in multiples of 1/n", ylabel="share of all weights (%)")
right.set(xlim=(-14, 6), xticks=(-12, -8, -4, 0, 4))
right.set_xticklabels(("1/4096", "1/256", "1/16", "1", "16"))
_ = left.legend()

# %% [markdown]
# Training has made attention unequal, and most of all at scale 0. There the most attended tenth of the tokens holds about half of the weight, and
# nearly half of the weights are below an eighth of an equal share; at the other scales it is one or two in ten. So the paper is
# right about the direction. Zero they are not, and what is far away is not what is small: the distance over which scale 0 attends is the mean
# distance between any two tokens. A network that only looked around would have a fraction of it.
#
# Would anything be lost with the small weights? That can be tried. In the network with attention at all scales we
# replace the weights of one high scale, and look at the validation losses.

# %%
losses = dict(zip(told["exchanges"], inside["exchanged"]))  # (2, T) each
print(f"{'loss, in multiples of its own':32}scale 0   scale 1")
for name, values in losses.items():
    ratio = (values / losses["its own"]).mean(axis=1)  # (2,): mean over tasks
    print(f"  {name:28}", *(f"{value:8.1f}" for value in ratio))

# %% [markdown]
# The small weights can go. Without all that lie below an equal share, and at scale 0 that is nearly three quarters of them, the network answers as well as
# before. In this sense relationships are "predominantly zero". But it does not follow that little is lost without them. With equal
# weights at scale 0 the losses are several times as large: the few large weights are what the network relies on. At
# scale 1 it hardly does. The last row is what this chapter is about, the answer of the coarse maps in place of the own
# one (Eq. 11, derived below). In a network that was not trained with it, it does worse than equal weights.
#
# Two reservations. An exchange shows what *this* network relies on; another one, trained without, may do as well in another way, which
# is a question for the sweeps at the end. And our finest map has 1,024 tokens, the paper's 16,128.

# %%
change = {name: (v / losses["its own"]).mean(axis=1) for name, v in losses.items()}
assert (abs(change["only weights above 1/n"] - 1) < 0.1).all()
assert change["equal weights"][0] > 2 * change["equal weights"][1]
assert change["borrowed"][0] > 0.9 * change["equal weights"][0]
below = counted[:-1, ..., edges < -3].sum(axis=-1).mean(axis=(0, 2))  # (4,)
assert below[0] > 1.5 * below[1:].max()

# %% [markdown]
# ## Enlarging an affinity
#
# LTHD turns the answers of the coarse maps into one for the fine ones. $\mathbf{A}^3$ has 4 × 4 tokens in our network,
# $\mathbf{A}^2$ has 8 × 8, so the first is enlarged before both are added:
#
# ```{math}
# :label: eq-14-sum
# \mathbf{A}^0 = \mathbf{A}^1 = f_{up}(\mathbf{A}^3) + \mathbf{A}^2 .
# ```
#
# (Eq. 11 of the paper. It is written for scale 0, and "the highest two scales" are processed alike. Nothing in it depends on
# the scale, so both get the same matrix.) What does it mean to enlarge an affinity? It is a matrix with a row for each token that
# asks and a column for each that is asked. A row is a map over the image, and can be enlarged like any map. But there are also
# more tokens that ask, so that rows must be made for them, from the rows of the tokens around. Both of its axes are enlarged, and
# each of them as a map.
#
# Enlarging a map bilinearly is linear: a matrix $\mathbf{U}$ with a row for each new token and a column for each old one. Its
# columns are what becomes of a picture with a single 1.

# %%
units = torch.eye(16, dtype=torch.float64).view(16, 1, 4, 4)  # a picture per token
U = F.interpolate(units, (8, 8), mode="bilinear").flatten(1).T  # (64, 16)
assert torch.allclose(U.sum(dim=1), torch.ones(64, dtype=torch.float64))
most = int((U > 0).sum(dim=1).max())
print(
    f"U is {U.shape[0]} × {U.shape[1]}; a new token is a mean of up to {most} old ones"
)

# %% [markdown]
# On the right it enlarges every row, on the left every column:
#
# ```{math}
# :label: eq-14-both
# f_{up}(\mathbf{A}) = \mathbf{U} \mathbf{A} \mathbf{U}^\top .
# ```
#
# The same as two enlargements of maps, one after the other, on a trained affinity:

# %%
A3 = Affinity(*(part.double() for part in stored("whole", 3, 0)))  # (1, T, C, 4, 4)
A = A3.matrix()[0]  # (T, 16, 16)
rows = F.interpolate(A.unflatten(2, (4, 4)), (8, 8), mode="bilinear").flatten(2)
columns = rows.mT.unflatten(2, (4, 4))  # (T, 64, 4, 4): maps of those who ask
both = F.interpolate(columns, (8, 8), mode="bilinear").flatten(2).mT  # (T, 64, 64)
torch.testing.assert_close(U @ A @ U.T, both)

# %% [markdown]
# It is tempting to take the matrix for a picture, and resize that: one line, the right shape, and wrong. In the flattened order the last
# token of a line stands beside the first of the next, at the other side of the image, and the one below is four
# places away. {numref}`fig-14-enlarge` shows both ways.

# %%
as_picture = F.interpolate(A[None], (64, 64), mode="bilinear")[0]  # (T, 64, 64)

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-14-enlarge", "caption": "One row of an affinity (before the softmax) of the trained network: what the token with the cross wants of all others. From the left: the image; the row at 4 × 4; enlarged along both axes to 8 × 8; and what becomes of it if the matrix is resized as a picture."}, "image": {"alt": "A picture of a room with a cross, and three maps in blue and red. The map of 8 by 8 tokens is a smooth version of that with 4 by 4. In the last map the pattern is torn into horizontal stripes."}}
figure, axes = plt.subplots(1, 4, figsize=(7.5, 2.2))
show_place(axes[0], 0, place, "image")
at = {side: int(place[0] * side) * side + int(place[1] * side) for side in (4, 8)}
shown = {
    "4 × 4": A[1, at[4]].view(4, 4),
    "both axes, as maps": both[1, at[8]].view(8, 8),
    "the matrix as a picture": as_picture[1, at[8]].view(8, 8),
}
limit = A[1, at[4]].abs().max().item()
for axis, (title, m) in zip(axes[1:], shown.items()):
    axis.imshow(m, cmap="RdBu", vmin=-limit, vmax=limit, extent=(0, 1, 1, 0))
    axis.plot(place[1], place[0], "x", color="black", ms=7, mew=1.5)
    bare(axis, title)

# %% [markdown]
# ## The matrix that is never built
#
# An affinity is a product, $\mathbf{A} = \mathbf{Q}\mathbf{K}^\top$ (the queries hold the factor $1/\sqrt{C}$). Put this into
# {eq}`eq-14-both` and the matrices move to the factors; and a sum of two products is one product of factors set side by side:
#
# ```{math}
# :label: eq-14-factors
# \mathbf{U}\mathbf{Q}\mathbf{K}^\top\mathbf{U}^\top = (\mathbf{U}\mathbf{Q})(\mathbf{U}\mathbf{K})^\top, \qquad
# \mathbf{Q}_a\mathbf{K}_a^\top + \mathbf{Q}_b\mathbf{K}_b^\top = [\mathbf{Q}_a\, \mathbf{Q}_b]\,[\mathbf{K}_a\, \mathbf{K}_b]^\top .
# ```
#
# So Eq. 11 is: enlarge queries and keys of scale 3 like any feature, and concatenate them with those of scale 2. In double precision:

# %%
A2 = Affinity(*(part.double() for part in stored("whole", 2, 0)))  # (1, T, C, 8, 8)
larger = [F.interpolate(part[0], (8, 8), mode="bilinear") for part in A3]
Q, K = (torch.cat([low, high[0]], dim=1) for low, high in zip(larger, A2))
eq11 = Q.flatten(2).mT @ K.flatten(2)  # (T, 64, 64), from factors with 2C channels
torch.testing.assert_close(eq11, U @ A @ U.T + A2.matrix()[0])
diffused = A3.resized((8, 8)).plus(A2)  # the library's
torch.testing.assert_close(diffused.matrix()[0], eq11)

# %% [markdown]
# Softmax and weighted mean are one function of queries, keys and values in torch (`scaled_dot_product_attention`), which can work through
# the matrix piece by piece without storing it. The arithmetic stays $n^2$, what must be kept grows with $n$ alone:

# %%
print("numbers for four tasks, in millions:   matrix   factors")
cases = [(f"scale {i}", h * w, 96) for i, (h, w) in enumerate(sizes)]
for name, n, C in [*cases, ("Eq. 11", 28 * 36, 2 * 96)]:
    millions = 4 * n * n / 1e6, 4 * 2 * n * C / 1e6
    print(f"{name:8}{n:6} tokens, C = {C:3}{millions[0]:16.1f}{millions[1]:10.1f}")

# %% [markdown]
# One more thing follows from the sum. It is taken before the softmax, and an exponential turns a sum into a product: up to the division by their sum, the diffused weights
# are the *product* of the weights of scale 3 and of scale 2. A token is attended to if both scales agree, and either of them can veto.

# %%
coarse, fine = ((U @ A @ U.T).softmax(dim=-1), A2.matrix()[0].softmax(dim=-1))
agreed = coarse * fine
agreed = agreed / agreed.sum(dim=-1, keepdim=True)
torch.testing.assert_close(agreed, eq11.softmax(dim=-1))

# %% [markdown]
# ## Gathering, or scattering
#
# Now the diffusion itself. A high scale's feature $\hat{\mathbf{X}}^0$ of a task is pooled to the size of scale 2, goes through a linear map
# $\mathbf{W}$, and every token takes the mean of all others with the weights of the low scales:
#
# ```{math}
# :label: eq-14-gather
# \mathbf{V} = \operatorname{Pool}(\hat{\mathbf{X}}^0)\,\mathbf{W} \in \mathbb{R}^{n_2 \times C}, \qquad
# \mathbf{R} = \operatorname{softmax}(\mathbf{A}^0)\,\mathbf{V} .
# ```
#
# The paper's Eq. 12 has the factors in the other order, $\mathbf{V} \times \operatorname{softmax}(\mathbf{A}^0)$. As shapes go this cannot be computed: $n_2 \times C$ meets
# $n_2 \times n_2$. It could, if features were columns. Would it be the same? A row of the softmax sums to 1, since it divides the attention of
# the token that asks. From the left the matrix takes means, so that a map that is constant stays constant. From the right every token *sends* its value to those
# that it wants, and a token receives as much as it is wanted.

# %%
weights = eq11.softmax(dim=-1)  # (T, 64, 64)
constant = torch.ones(64, 1, dtype=torch.float64)
gathered = weights @ constant  # (T, 64, 1)
scattered = (constant.T @ weights).mT  # (T, 64, 1)
torch.testing.assert_close(gathered, constant.expand(T, 64, 1))
lowest, highest = scattered.min().item(), scattered.max().item()
print("gathered, a constant 1 stays 1")
print(f"scattered, it becomes {lowest:.1f} to {highest:.1f}")

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-14-scatter", "caption": "What a constant map becomes if the weights stand on its right, as in the printed Eq. 12, for each task of the trained network: how much every token is wanted, in multiples of the mean. Gathered, as the library does by default, all of these would be white."}, "image": {"alt": "A picture of a room and six maps of 8 by 8 tokens in blue and red, one for each task. They differ between the tasks: some are nearly white, in others some tokens are wanted several times as much as the mean and others hardly at all."}}
figure, axes = plt.subplots(1, 7, figsize=(7.5, 1.6))
show_place(axes[0], 0, (-1, -1), "image")
axes[0].set(xlim=(0, 1), ylim=(1, 0))
for axis, task, wanted in zip(axes[1:], tasks, scattered.view(T, 8, 8)):
    shown = axis.imshow(wanted.log2(), cmap="RdBu", vmin=-4, vmax=4)
    bare(axis, task.title.replace(" ", "\n"))
scale_bar(figure, axes, shown, "times")

# %% [markdown]
# What becomes of a constant map is {numref}`fig-14-scatter`. To send is not absurd: it would write on each token how interesting it is to the others. But the text speaks of attention maps, and the
# mean is what attention takes. The library gathers, and scatters with `diffusion="scatter"`; both are measured below.

# %%
torch.manual_seed(0)
values = torch.randn(1, T, 5, 8, 8, dtype=torch.float64)  # (1, T, C, h, w)
V = values[0].flatten(2).mT  # (T, 64, C)
by_hand = {"gather": weights @ V, "scatter": (V.mT @ weights).mT}  # (T, 64, C)
for name, result in by_hand.items():
    theirs = getattr(diffused, name)(values)[0].flatten(2).mT  # (T, 64, C)
    torch.testing.assert_close(theirs, result)

# %% [markdown]
# ## Back to the fine map
#
# What was gathered goes through a feed-forward network, is enlarged, and is joined with the fine feature it came from; and at the very end
# all four scales of a task are joined in the same way:
#
# ```{math}
# :label: eq-14-fuse
# \begin{aligned}
# \mathbf{RX}^0 &= \operatorname{FeatureFuse}(\operatorname{FFN}(\mathbf{R}),\, \hat{\mathbf{X}}^0), \\
# \mathbf{FX} &= \operatorname{FeatureFuse}(\mathbf{RX}^0, \mathbf{RX}^1, \mathbf{RX}^2, \mathbf{RX}^3) .
# \end{aligned}
# ```
#
# These are Eqs. 13 and 14. "Convolutional layers followed by Batch Normalization" is all that the paper says of FeatureFuse. We enlarge
# to the finest map, concatenate, and take one 3 × 3 convolution per task, BatchNorm and ReLU. The feed-forward network is that of
# chapter 13. A whole LTHD then is:

# %%
from mlore_edu.decoders.per_task import PerTaskBatchNorm2d, PerTaskConv2d
from mlore_edu.decoders.pyramid import align  # enlarges bilinearly, or averages
from mlore_edu.decoders.tif import FeedForward


class Fuse(nn.Module):
    def __init__(self, widths, channels):
        super().__init__()
        conv = PerTaskConv2d(T, sum(widths), channels, 3, bias=False)
        self.block = nn.Sequential(conv, PerTaskBatchNorm2d(T, channels), nn.ReLU())

    def forward(self, features):
        size = max(feature.shape[-2:] for feature in features)
        together = torch.cat([align(f, size) for f in features], dim=2)
        return self.block(together)  # (B, T, C, H, W)


# %%
class Diffusion(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.value = PerTaskConv2d(T, channels, channels, bias=False)
        self.feed_forward = FeedForward(T, channels, ratio=2)
        self.fuse = Fuse([channels, channels], channels)

    def forward(self, X, affinity):
        V = self.value(align(X, affinity.keys.shape[-2:]))  # (B, T, C, h, w)
        W = affinity.matrix().softmax(dim=-1)  # (B, T, n, n)
        R = (W @ V.flatten(3).mT).mT.unflatten(3, V.shape[3:])  # (B, T, C, h, w)
        return self.fuse([X, self.feed_forward(R)])  # (B, T, C, H, W)


# %% [markdown]
# The parts bear the library's names, so its weights fit. We need an image and the four scales in front of it; `anatomy` of the library's
# decoder returns everything that is made on the way.

# %%
from mlore_edu.data.dollhouse_files import VALIDATION_SEEDS, DollhouseScenes
from mlore_edu.data.loaders import make_loader
from mlore_edu.data.transforms import eval_transform

scenes = DollhouseScenes(
    2, 64, "easy", VALIDATION_SEEDS, transform=eval_transform(64)
)
batch = next(iter(make_loader(scenes, 2, train=False)))
torch.manual_seed(0)
model = me.build_model("tif_vit_nano", tasks, (64, 64))
maps = [m.detach() for m in model.backbone(batch["image"])]
stages = model.decoder.anatomy(maps)

# %%
for scale in (0, 1):
    ours = Diffusion(16)
    ours.load_state_dict(model.decoder.diffusers[str(scale)].state_dict())
    mine = ours(stages.of_tasks[scale], stages.diffused)  # the same for both scales
    torch.testing.assert_close(mine, stages.refined[scale])
whole = Fuse([16, 16, 32, 32], 32)
whole.load_state_dict(model.decoder.fuse.state_dict())
torch.testing.assert_close(whole(stages.refined), stages.features)

# %% [markdown]
# The two scales differ in what is gathered and in their weights; who gathers from whom is the same.
#
# ## What diffusion costs
#
# Per task a high scale pays for the linear map and the feed-forward network at the $n_2$ tokens of scale 2, for attention there, with queries and
# keys of width $2C$, and for the fusion at its own $n_i$ tokens:
#
# ```{math}
# :label: eq-14-lthd
# (1 + 2r)\, C^2\, n_2 \;+\; 3\, C\, n_2^2 \;+\; 9 \cdot 2\, C^2\, n_i .
# ```
#
# Only the last depends on the fine map, and it is linear in it. Counted on the models for NYUD-v2 (whose widths are 88 and 96):


# %%
def build(backbone, data=me.NYUD_V2, **options):
    with torch.device("meta"):
        return me.build_model(f"tif_{backbone}", data, (448, 576), **options)


variants = {
    "none": {"diffusion": "none"},
    "LTHD": {},
    "SFD": {"diffusion": "none", "distilled_scales": 4},
}
networks = {
    name: build("swin_tiny", **options) for name, options in variants.items()
}
counts = {name: me.count(net, (448, 576)) for name, net in networks.items()}
for name, cost in counts.items():
    extra = (cost.macs - counts["none"].macs) / 1e9
    print(f"{name:5}{cost.macs / 1e9:6.1f} · 10⁹ MACs, {extra:+6.1f}")

# %%
spent = dict.fromkeys(("linear maps", "attention", "fusion"), 0.0)
for i in (0, 1):
    its = counts["LTHD"].by_module
    names = (
        f"decoder.diffusers.{i}{end}"
        for end in ("", ".fuse", ".value", ".feed_forward")
    )
    total, fusion, *linear = (its[name].macs / 1e9 for name in names)
    parts = sum(linear), total - fusion - sum(linear), fusion
    spent = {name: spent[name] + part for name, part in zip(spent, parts)}
print("of LTHD's:", {name: round(value, 1) for name, value in spent.items()})

# %% [markdown]
# Attention at the high scales would cost more than three times what the whole network costs without. Diffusion costs a fourteenth of that, and
# four fifths of it are the 3 × 3 convolution at the end. The paper says the same about the sum: 76.33 G for the whole (its Table 3), 62.49 G without
# LTHD (the text on its Table 8), which leaves 13.84 G. Its parameters do not fit as well: LTHD adds 1.13 M there, 1.43 M here.

# %%
C, n2, n_high = 88, 28 * 36, 112 * 144 + 56 * 72  # four tasks, two scales
assert math.isclose(spent["linear maps"], 2 * 4 * 5 * C**2 * n2 / 1e9)
assert math.isclose(spent["attention"], 2 * 4 * (2 * 96 + C) * n2**2 / 1e9)
assert math.isclose(spent["fusion"], 4 * 18 * C**2 * n_high / 1e9)
own = (counts["SFD"].macs - counts["none"].macs) / 1e9
assert 13 < own / sum(spent.values()) < 16
print(f"attending for itself costs {own / sum(spent.values()):.0f} times as much")

# %% [markdown]
# Operations are not time, nor memory. `benchmarks/tif.py` measures all three for the decoder, on one core of a CPU, with neither
# of the two, with diffusion, and with attention at the high scales.

# %%
bench = json.loads(Path("../results/tif_benchmark.json").read_text())


def measured(part, form, what, training=False):
    wanted = {"part": part, "form": form, "training": training, "device": "cpu"}
    return next(row[what] for row in bench["rows"] if wanted.items() <= row.items())


its = bench["options"]
print(f"one image of {its['height']} × {its['width']}, four tasks,"
      f" widths {its['high_width']} and {its['low_width']}")  # fmt: skip

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-14-benchmark", "caption": "The decoder with neither, with diffusion and with attention at the high scales, measured: time, and memory above what is there before, of an inference and of a training step."}, "image": {"alt": "Two bar charts, time and memory, each with three bars for inference and three for training: neither, diffusion, attention. In both the bar of attention is the longest."}}
figure, axes = plt.subplots(1, 2, figsize=(7.5, 2.3))
forms = ("neither", "diffusion", "attention")
for axis, what, unit in zip(axes, ("seconds", "memory"), (1, 2**30)):
    for k, (form, colour) in enumerate(zip(forms, plots.OKABE_ITO)):
        values = [
            measured("high scales", form, what, t) / unit for t in (False, True)
        ]
        axis.barh(
            np.arange(2) + 0.27 * (k - 1), values, 0.25, label=form, color=colour
        )
    axis.set(yticks=(0, 1), yticklabels=("inference", "training"), ylim=(1.5, -0.5))
axes[0].set_xlabel("time (s)")
axes[1].set_xlabel("memory (GiB)")
_ = figure.legend(
    *axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=3
)

# %%
for what in ("macs", "seconds", "memory"):
    neither, *both = (measured("high scales", form, what) for form in forms)
    extra = [value / neither - 1 for value in both]
    print(
        f"{what:8} diffusion {100 * extra[0]:+.0f} %, attention {100 * extra[1]:+.0f} %"
    )
for part in ("Eqs. 11 and 12", "scale 1"):
    matrix, factors = (
        measured(part, form, "memory") for form in ("matrix", "factors")
    )
    print(f"{part}: by factors {factors / matrix:.2f} of the matrix's memory")

# %% [markdown]
# Attention at the high scales takes more than four times as long as diffusion ({numref}`fig-14-benchmark`). It does not take much more memory, for the reason given above: torch's kernel works through the
# matrix in pieces. How much that saves says the last line, for a single attention at scale 1. The line before it is a caution: in Eq. 12 values and keys have different
# widths, for which the kernel on a CPU builds the matrix after all, and the factors come on top. With 1,008 tokens that is little.
#
# ## How good is the loan?
#
# What costs little should still be worth something. Choose a scene, a task and a pixel, and compare what the pixel's token attends to at scale 0 with
# what it would be lent: for the network in which all scales attend, its own four scales and Eq. 11 of its two coarse ones;
# and for the network with LTHD, what its high scales get in fact. {numref}`fig-14-explorer` keeps one such view.


# %%
def compare(scene, task, place):
    figure, axes = plt.subplots(1, 7, figsize=(7.5, 1.75))
    show_place(axes[0], scene, place, tasks.names[task].replace("_", " "))
    for scale, axis in enumerate(axes[1:5]):
        shown = show_attended(
            axis, stored("all", scale, scene), task, place, f"scale {scale}"
        )
    for network, axis in zip(("all", "whole"), axes[5:]):
        low, high = (stored(network, scale, scene) for scale in (2, 3))
        title = {"all": "Eq. 11 of\nthe same", "whole": "Eq. 11,\nwith LTHD"}[
            network
        ]
        show_attended(axis, high.resized((8, 8)).plus(low), task, place, title)
    scale_bar(figure, axes, shown)


# %% tags=["nbval-ignore-output"]
import ipywidgets

_ = ipywidgets.interact(
    lambda scene, task, down, across: (
        compare(scene, tasks.names.index(task), (down / 64, across / 64)),
        plt.show(),
    )[1],
    scene=ipywidgets.IntSlider(0, 0, S - 1),
    task=ipywidgets.Dropdown(options=tasks.names),
    down=ipywidgets.IntSlider(40, 0, 63),
    across=ipywidgets.IntSlider(32, 0, 63),
)

# %% mystnb={"figure": {"name": "fig-14-explorer", "caption": "The explorer's view of the person's middle pixel, for human parts. Four scales that attend for themselves; what Eq. 11 would make of the coarse two of these; and what it makes in the network trained with it."}, "image": {"alt": "A picture of a room with a cross on a person, and six maps in blue and red: four scales from fine to coarse, and two maps of 8 by 8 tokens. Of the two at the right the first has stronger colours than the coarse maps that it is made of; neither repeats the pattern of the finest one."}}
compare(0, 1, place)

# %% [markdown]
# How alike are they, over many pixels? We shrink the own weights of a high scale to the 8 × 8 tokens of scale 2 (a mean over those who ask, a
# sum over those who are asked) and count the bits that are lost if a candidate is taken in their place, the Kullback–Leibler
# divergence. It is 0 where both are the same.

# %%
bits = dict(zip(told["candidates"], inside["apart"]))  # (2, T) each
print(f"{'bits to the own weights':26}scale 0   scale 1")
for name, values in bits.items():
    print(f"  {name:22}", *(f"{value:8.1f}" for value in values.mean(axis=1)))

# %% [markdown]
# What Eq. 11 makes of the coarse maps tells no more about the fine ones' own weights than the same made of another scene, and is further from them
# than equal weights for all. (Part of that is the sum: it is sharper than either affinity, as a product of two opinions is.) The paper calls $\mathbf{A}^0$
# an approximate attention map of scale 0. In this network it is another attention map.
#
# That network was never asked to lend, though. The one with LTHD was, and its coarse scales have learned for two purposes. Which part of
# what they lend does it use? We replace the affinities that reach its high scales, and look at the losses again, now as means over three seeds.

# %%
ratios = inside["diffused"] / inside["diffused"][:, :1]  # (seeds, DIFFUSED, T)
print(
    f"{'loss, in multiples of its own':32}", *(f"{n[:6]:>7}" for n in tasks.names)
)
for name, ratio in zip(told["diffused"], ratios.mean(axis=0)):
    print(f"  {name:30}", *(f"{value:7.2f}" for value in ratio))

# %% [markdown]
# A remarkable table. The affinities of *another scene* do nearly as well as the scene's own. Rooms are much alike, one may object; but equal weights, which know nothing of
# rooms, do nearly as well too. What counts is that tokens are averaged at all: with each token for itself, human parts and saliency suffer. So what the trained network takes from
# LTHD is a mean over the image, a global context, and it hardly cares which mean. Perhaps its high scales need not be told who belongs to whom: SAFF has mixed all scales
# before, and what the coarse scales found by attention comes back in the last FeatureFuse.

# %%
means = ratios.mean(axis=(0, 2))  # over seeds and tasks
ratio = dict(zip(told["diffused"], means))
assert ratio["another scene's"] < 1.1
assert ratio["equal weights"] < 1.1
assert ratio["each token itself"] > ratio["equal weights"]

# %% [markdown]
# ## With and without, in pictures
#
# The paper's Fig. 7 shows a few photographs in which the segmentation is better with LTHD than without. Which photographs, is for the authors to
# choose. We let a rule choose: of the hundred validation scenes, the one that LTHD helps most (in pixels with the right class), the one in the middle,
# and the one it harms most. Both networks are those of seed 0 ({numref}`fig-14-pictures`).

# %%
right = inside["right"]  # (2, seeds, 100) without, with
gains = 100 * (right[1] - right[0])  # (seeds, 100)
shown_scenes = inside["shown"]
print("right pixels, with less without, in points:")
print("  mean of each seed:", *(f"{gain:+.2f}" for gain in gains.mean(axis=1)))
print("  the three scenes: ", *(f"{gains[0, s]:+.1f}" for s in shown_scenes))

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-14-pictures", "caption": "Semantic segmentation of three scenes without and with LTHD: where it helps most, in the middle, and where it harms most, of a hundred. Last column: pixels that only one of the two gets right; blue with LTHD, red without."}, "image": {"alt": "Three rows of five pictures: image, label, prediction without LTHD, prediction with it, and a map of differences. In the first row the map is mostly blue, in the last mostly red, in the second there are little of both."}}
from mlore_edu.pictures import to_rgb

figure, axes = plt.subplots(3, 5, figsize=(7.5, 4.8))
names = ("helps most", "in the middle", "harms most")
titles = ("image", "label", "without LTHD", "with LTHD", "only one is right")
cases = zip(axes, inside["shown_image"], inside["shown_maps"], names)
for number, (row, image, (label, without, having), name) in enumerate(cases):
    only_one = (having == label).astype(int) - (without == label)
    row[0].imshow(image)
    for axis, classes in zip(row[1:4], (label, without, having)):
        axis.imshow(to_rgb("semseg", classes))
    row[4].imshow(only_one, cmap="RdBu", vmin=-1.5, vmax=1.5)
    for axis, title in zip(row, titles):
        bare(axis, "" if number else title)
    row[0].set_ylabel(name, fontsize=9)

# %% [markdown]
# Had we shown the first row alone, the case for LTHD would look made; with the last alone, lost. A gain of one scene is hardly a
# property of the scene at all. If it were, the same scenes would gain with every seed:

# %%
between = [np.corrcoef(a, b)[0, 1] for a, b in combinations(gains, 2)]
print("correlation of the gains between seeds:", *(f"{c:.1f}" for c in between))

# %% [markdown]
# Next to nothing. Which scene LTHD helps is drawn anew with every seed, and on the mean over scenes the two networks are equally good, within a
# fifth of a point. A picture of one scene says what a network *can* get wrong. It cannot say which module is to be thanked.

# %%
assert max(between) < 0.5
assert abs(gains.mean(axis=1)).max() < 0.2

# %% [markdown]
# ## TIF assembled
#
# Everything is there now. SAFF enriches the four scales ([chapter 12](12_scale_attentive_fusion.ipynb)); a 3 × 3 convolution per task makes
# the task's own maps of them; SFD refines the coarse two and hands on affinities ([chapter 13](13_self_feature_distillation.ipynb)); LTHD
# refines the fine two; and one FeatureFuse joins them ({numref}`fig-14-flow`).

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-14-flow", "caption": "TIF as the library builds it for vit_nano and six tasks, with the shapes that anatomy() returns. Left of the dashed line everything is shared; right of it tasks never meet. Dotted: the affinities, which only go from coarse to fine."}, "image": {"alt": "A flow diagram of four rows, one for each scale. A picture enters four boxes of the backbone's maps; crossing arrows lead to four boxes of SAFF. After a dashed vertical line, stacks of six sheets for the tasks: the two lower rows lead through SFD, the two upper ones through LTHD, with dotted arrows from SFD up to LTHD. All end in one stack called FeatureFuse, and in six pictures."}}
from matplotlib.patches import FancyBboxPatch

from mlore_edu.data.transforms import denormalise

figure = plt.figure(figsize=(7.5, 3.9), layout="none")
canvas = figure.add_axes((0, 0, 1, 1), xlim=(0, 7.5), ylim=(0, 3.9))
canvas.axis("off")
blue, orange, green, red, sky, pink = plots.OKABE_ITO[:6]


def box(x, y, text, colour, width=0.8, height=0.46, sheets=1):
    for sheet in reversed(range(sheets)):
        corner = (x - width / 2 + 0.025 * sheet, y - height / 2 + 0.025 * sheet)
        style = {"boxstyle": "round,pad=0,rounding_size=.05", "ec": colour}
        canvas.add_patch(FancyBboxPatch(corner, width, height, fc="white", **style))
        canvas.add_patch(FancyBboxPatch(corner, width, height, fc=colour, alpha=0.25, **style))  # fmt: skip
    canvas.text(x, y, text, ha="center", va="center", fontsize=7.5)


def arrow(start, end, **line):
    line = {"arrowstyle": "->", "lw": 0.8, "shrinkA": 0, "shrinkB": 0} | line
    canvas.annotate("", end, start, arrowprops=line, zorder=line.pop("zorder", 3))


def picture(image, x, y, side):
    axis = figure.add_axes((x / 7.5, y / 3.9, side / 7.5, side / 3.9))
    axis.imshow(image)
    axis.set(xticks=[], yticks=[])
    axis.spines[:].set_visible(False)


def shape_of(tensor):
    return "×".join(str(side) for side in tensor.shape[1:])


picture(to_rgb("image", denormalise(batch["image"][0])), 0.06, 1.45, 0.8)
ys = (3.2, 2.4, 1.5, 0.6)
for scale, y in enumerate(ys):
    arrow((0.9, 1.85), (1.18, y))
    box(1.52, y, f"$X^{scale}$\n{shape_of(stages.scales[scale])}", sky, 0.64)
    for other in ys:
        arrow((1.86, other), (2.3, y), color="0.65" if other != y else "black")
    box(2.66, y, f"SAFF\n{shape_of(stages.shared[scale])}", green, 0.68)
    arrow((3.02, y), (3.3, y))
    box(3.75, y, f"3×3 per task\n{shape_of(stages.of_tasks[scale])}", orange, 0.86, sheets=6)  # fmt: skip
    module, colour = ("LTHD", pink) if scale < 2 else ("SFD", blue)
    arrow((4.32, y), (4.62, y))
    box(5.02, y, f"{module}\n{shape_of(stages.refined[scale])}", colour, 0.76, sheets=6)  # fmt: skip
    arrow((5.55, y), (5.83, 2.0 + 0.12 * (1.5 - scale)))
for x, start, text in ((4.82, 0.86, "$A^3$"), (5.2, 1.76, "$A^2$")):
    arrow((x, start), (x, 2.15), linestyle=":", lw=1.2, zorder=0)
    canvas.text(x + 0.05, start + 0.16, text, fontsize=8)
    arrow((x, 2.68), (x, 2.95), linestyle=":", lw=1.2)
canvas.plot((3.16, 3.16), (0.2, 3.55), color="0.4", lw=1, ls="--")
box(6.16, 1.95, f"Feature-\nFuse\n{shape_of(stages.features)}", orange, 0.74, 0.8, sheets=6)  # fmt: skip
for row, task in enumerate(tasks):
    y = 3.2 - 0.55 * row
    picture(to_rgb(task.name, batch[task.name][0]), 6.98, y, 0.46)
    arrow((6.63, 2.0), (6.94, y + 0.23))
for x, text in (
    (1.52, "backbone"),
    (2.5, "shared"),
    (4.3, "one per task"),
    (7.2, "heads"),
):
    canvas.text(x, 3.68, text, ha="center", fontsize=8, weight="bold")

# %% [markdown]
# In code that is a list of modules per scale, and a walk through them. SAFF and SFD come from the library, whose chapters have built them;
# `Diffusion` and `Fuse` are those from above.

# %%
from mlore_edu.decoders.base import MapShape
from mlore_edu.decoders.pyramid import SimpleFeaturePyramid
from mlore_edu.decoders.tif import ScaleAttentiveFusion


class Decoder(nn.Module):
    def __init__(self, shapes, high, low, D):
        super().__init__()
        widths = (high, high, low, low)
        self.pyramid = SimpleFeaturePyramid(shapes)
        scales = self.pyramid.shapes
        self.fusions = nn.ModuleList(
            ScaleAttentiveFusion(scales, i, C) for i, C in enumerate(widths)
        )
        self.to_tasks = nn.ModuleList(Fuse([C], C).block for C in widths)
        self.distillers = nn.ModuleDict(
            {i: SelfFeatureDistillation(T, low, key_maps=T) for i in "23"}
        )
        self.diffusers = nn.ModuleDict({i: Diffusion(high) for i in "01"})
        self.fuse = Fuse(widths, D)

    def forward(self, maps):
        X = self.pyramid(maps)  # 4 of (B, C_i, H_i, W_i)
        shared = [fusion(X) for fusion in self.fusions]  # 4 of (B, C, H_i, W_i)
        own = [f(x) for f, x in zip(self.to_tasks, shared)]  # (B, T, C, H_i, W_i)
        RX2, A2 = self.distillers["2"](own[2])
        RX3, A3 = self.distillers["3"](own[3])
        A = A3.resized(own[2].shape[-2:]).plus(A2)  # Eq. 11
        RX0, RX1 = (self.diffusers[i](own[int(i)], A) for i in "01")
        return self.fuse([RX0, RX1, RX2, RX3])  # (B, T, D, H_0, W_0)


# %%
ours = Decoder([MapShape(*m.shape[1:]) for m in maps], high=16, low=32, D=32)
ours.load_state_dict(model.decoder.state_dict())
leaves = [m.clone().requires_grad_() for m in maps]
features, expected = ours(leaves), model.decoder(leaves).features
for t, name in enumerate(tasks.names):
    torch.testing.assert_close(features[:, t], expected[name])
total = torch.stack([*expected.values()], dim=1).square().sum()
mine = torch.autograd.grad(features.square().sum(), leaves)
theirs = torch.autograd.grad(total, leaves)
for a, b in zip(mine, theirs, strict=True):
    torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3 * b.abs().max().item())
print("features and gradients agree")

# %% [markdown]
# ## Is it the published size?
#
# The paper compares TIF with others in Tables 3 (NYUD-v2), 4 (large models), 5 (PASCAL-Context) and 10 (decoders on several scales). Parameters and MACs need no training, and
# are recomputed here; the accuracies would take 50,000 steps on data that do not come with the book, and are marked as not run.

# %%
built = {
    "HRNet18": "hrnet18",
    "Swin-T": "swin_tiny",
    "Swin-L": "swin_large",
    "ViT-B": "vit_base",
}
ours = {"Swin-T": counts["LTHD"]}
for backbone in built.keys() - ours.keys():
    ours[backbone] = me.count(build(built[backbone]), (448, 576))


# %% tags=["hide-input"]
def show_beside(number):
    """A table of the paper; under each row of TIF ours, with what was not run."""
    table = published.table("tif", number)
    sizes = [n for n in ("parameters", "flops") if n in table.rows[0]]
    metrics = [task.name for task in tasks if task.name in table.rows[0]]
    heads = (" " * 3 + {"parameters": "M", "flops": "G"}[n] for n in sizes)
    print(f"Table {number:<18}", *(f"{head:>7}" for head in heads), end="")
    print("", *(f"{name[:8]:>9}" for name in metrics))
    for row in table.rows:
        cells = [
            "–" if row[n] is None else f"{row[n]:g}" for n in (*sizes, *metrics)
        ]
        show_row(f"{row['method']:15}{row['backbone']}", cells, len(sizes))
        if row["method"] == "TIF":
            its = ours.get(row["backbone"])
            sized = (
                (f"{its.parameters / 1e6:.2f}", f"{its.macs / 1e9:.1f}")
                if sizes
                else ()
            )
            show_row(
                "  ours",
                [*sized[: len(sizes)], *["not run"] * len(metrics)],
                len(sizes),
            )
    print()


def show_row(name, cells, sizes):
    widths = [7] * sizes + [9] * (len(cells) - sizes)
    print(f"{name:24}", *(f"{cell:>{width}}" for cell, width in zip(cells, widths)))


for number in (3, 4, 5, 10):
    show_beside(number)

# %%
for number in (3, 4, 10):
    for row in published.table("tif", number).rows:
        if row["method"] == "TIF":
            its = ours[row["backbone"]]
            assert abs(its.parameters / 1e6 / row["parameters"] - 1) < 0.03
            assert number == 10 or abs(its.macs / 1e9 / row["flops"] - 1) < 0.03
print("all published sizes within 3 %")

# %% [markdown]
# Two remarks can be made without a training. The bracket behind the FLOPs ("24.37 ↓", "90.98 ↓") counts G, not percent, below one rival each,
# DeMT and MQTransformer. And the text says that on PASCAL-Context TIF surpasses the current methods, while in semantic segmentation DeMT is ahead with all three backbones.

# %%
table5 = published.table("tif", 5)
for backbone in ("HRNet18", "Swin-T", "Swin-B"):
    demt, tif = (
        table5.row(method=m, backbone=backbone)["semseg"] for m in ("DeMT", "TIF")
    )
    print(f"{backbone:8} TIF less DeMT, semantic segmentation: {tif - demt:+.2f}")

# %% [markdown]
# ## Beside the paper's ablation
#
# `book/results/make_tif_sweeps.py` has trained every switch of the decoder on the easy Dollhouse, with several seeds and the budget of
# the other parts: 64 × 64, 400 scenes, 300 steps. As before, the spread between seeds is pooled over all configurations, and Δm is over the
# single-task networks of [chapter 3](../part1_foundations/03_one_encoder_many_heads.ipynb). The paper's Δm is recomputed from its metrics, over
# the baseline of its Tables 7 to 9, with an odsF of 75.15 (printed: 65.15, with which none of its own gains comes out).

# %%
record = json.loads(Path("../results/tif_sweeps.json").read_text())
chapter3 = json.loads(Path("../results/chapter03.json").read_text())
single = {
    task.name: mean(
        run["metrics"][task.name]
        for run in chapter3["runs"]
        if run["tasks"] == [task.name]
    )
    for task in tasks
}


def with_gains(runs):
    """For every configuration the metrics of its runs with all tasks, and their Δm."""
    found = {}
    for run in runs:
        if set(run["metrics"]) == set(single):
            gain = me.multitask_gain(run["metrics"], single, tasks)
            found.setdefault(run["key"], []).append(
                run["metrics"] | {"delta_m": gain}
            )
    return found


results = with_gains(record["runs"])
print(f"{sum(map(len, results.values()))} runs of {len(results)} configurations")

# %%
from scipy.stats import t as student


def pooled(results, metric="delta_m"):
    """Standard deviation between seeds, and its degrees of freedom."""
    lists = [[run[metric] for run in its] for its in results.values()]
    freedom = sum(len(values) - 1 for values in lists)
    squares = sum((v - mean(values)) ** 2 for values in lists for v in values)
    return math.sqrt(squares / max(freedom, 1)), max(freedom, 1)


def half_interval(runs, *counts, metric="delta_m"):
    """Half of the 95 % interval of a mean of so many runs, or of a difference of two."""
    s, freedom = pooled(runs, metric)
    return student.ppf(0.975, freedom) * s * math.sqrt(sum(1 / n for n in counts))


def difference(key, other, metric="delta_m"):
    a, b = ([run[metric] for run in results[k]] for k in (key, other))
    return mean(a) - mean(b), half_interval(results, len(a), len(b), metric=metric)


# %%
table6, names = published.table("tif", 6), me.NYUD_V2.names
base = published.table("tif", 7).row(sfd="Baseline") | {"edge": 75.15}
paper = {
    row: me.multitask_gain(
        {n: cells[n] for n in names}, {n: base[n] for n in names}, me.NYUD_V2
    )
    for row, cells in zip(record["sweeps"]["table6"], table6.rows)
}
assert [round(gain, 2) for gain in paper.values()][2:] == [5.35, 6.34]  # as printed
panels = {
    "table6": "Table 6, modules",
    "high": "at the high scales",
    "printed": "equations as printed",
    "widths": "widths of equal size",
}

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-14-sweeps", "caption": "Four comparisons: Δm, less that of the full model. Black squares: the paper, one run each. Blue: a dot for each seed, the mean, and its 95 % interval from the pooled spread. Only the first panel has a counterpart in the paper."}, "image": {"alt": "Four panels with three or four rows each, named by what is varied: the modules of Table 6, what happens at the high scales, equations as printed, and widths. Blue dots with intervals lie around a line at zero, the full model; in the first panel black squares lie at up to some three percent to the left of it."}}
full = record["sweeps"]["high"]["LTHD"]
zero = mean(run["delta_m"] for run in results[full])
figure, axes = plt.subplots(2, 2, figsize=(7.5, 3.9), sharex=True)
for axis, (sweep, title) in zip(axes.flat, panels.items()):
    its = record["sweeps"][sweep]
    for y, (row, key) in enumerate(its.items()):
        if sweep == "table6":
            axis.plot(paper[row] - paper["SAFF, SFD, LTHD"], y - 0.2, "s", ms=5, color="black")  # fmt: skip
        if key in results:
            values = [run["delta_m"] - zero for run in results[key]]
            place = [y + 0.15] * len(values)
            axis.plot(values, place, "o", ms=4, alpha=0.45, color=blue)
            look = {"fmt": "|", "ms": 10, "mew": 2, "capsize": 3, "color": blue}
            half = half_interval(results, len(values))
            axis.errorbar(mean(values), y + 0.15, xerr=half, **look)
    axis.axvline(0, color="0.8", zorder=0)
    axis.set(title=title, yticks=range(len(its)), yticklabels=list(its))
    axis.set_ylim(len(its) - 0.4, -0.7)
_ = figure.supxlabel("Δm, less the full model's (%)", fontsize=10)


# %%
def verdict(value, half, claimed):
    if abs(value) <= half:
        return "noise"
    return "supports" if value * claimed > 0 else "contradicts"


its = {
    row: key for row, key in record["sweeps"]["table6"].items() if key in results
}
steps = [*pairwise(its), (next(iter(its)), [*its][-1])]
print(f"{'Δm in %':35}paper   ours")
for before, after in steps:
    value, half = difference(its[after], its[before])
    claimed = paper[after] - paper[before]
    said = verdict(value, half, claimed)
    step, cell = f"{before} → {after}", f"{value:+5.1f} ± {half:.1f}"
    print(f"{step:34}{claimed:+6.2f}   {cell}   {said}")

# %%
print(f"{'task by task':14}", *(f"{task.name[:7]:>8}" for task in tasks))
for name, (before, after) in zip(("+ SAFF", "+ SFD", "+ LTHD", "all three"), steps):
    cells = []
    for task in tasks:
        value, half = difference(its[after], its[before], task.name)
        better = (value < 0) == task.lower_is_better
        cells.append("=" if abs(value) <= half else "better" if better else "worse")
    print(f"{name:14}", *(f"{cell:>8}" for cell in cells))

# %% [markdown]
# No step is outside the noise. The smallest of the paper's steps, five seeds cannot see. But its whole ladder, from no
# module to all of them, comes to two and a half percent, and that would have been seen: ours ends where it began, give or
# take less than one percent. On Dollhouse, with this encoder and this budget, the three modules bring nothing that shows in Δm. Task by task, a step wins here what it loses there.
#
# The other three comparisons are ours.

# %%
for sweep in ("high", "printed", "widths"):
    keys = record["sweeps"][sweep]
    reference = next(row for row, key in keys.items() if key == full)
    for row, key in keys.items():
        if key in results and row != reference:
            value, half = difference(key, full)
            where = (
                "inside the noise" if abs(value) <= half else "outside the noise"
            )
            print(f"{row} against {reference}: {value:+.1f} ± {half:.1f}, {where}")

# %% [markdown]
# Attention at all four scales is no better than the loan, rather worse (this row has one seed; its interval takes the spread from the others). So the premise costs
# nothing here: what the high scales would do for themselves is not missed. Of the printed equations two may stand. A query from the first task and
# weights on the wrong side make no difference that can be seen, which fits what we saw: the network uses LTHD as little more than a mean. Only Eq. 8 without its $1/\sqrt{C}$ is worse, as one
# would expect of a softmax that starts almost closed ([chapter 13](13_self_feature_distillation.ipynb)).
#
# And then the widths. The networks of the last panel have the same number of parameters, and differ in how the scales share them. Taking width from the high scales costs four
# percent, several times what all modules together bring or take. Of everything that was varied in this chapter, what the paper does not print matters most.
#
# ## What the paper leaves open
#
# No code of TIF was ever published. The whole list of what one has to decide, with what this book does:
#
# | Open | Here | Why |
# |---|---|---|
# | widths of the four scales and of the result | one for scales 0 and 1, one for 2 and 3, for each backbone (`high_width`, `low_width`, `channels`) | the printed sizes, see below |
# | how scales are brought to one size (Eq. 2) | enlarged bilinearly, reduced by averaging | keeps what is constant |
# | the two convolutions of SFF (Eq. 3) | 3 × 3 both, the first $2C \to C$ | the sizes |
# | where a task's own maps come from | a 3 × 3 convolution, BatchNorm, ReLU per task and scale | the text begins with $\hat{\mathbf{X}}_t$ |
# | "Flat", with a "linear normalization" | LayerNorm per task | the transformers' usual one |
# | whose query (Eq. 7) | the task's own (`query="first"`: the first task's, as printed) | "self"; otherwise tasks would meet |
# | scale of the affinity (Eq. 8) | $1/\sqrt{C}$ (`scaled`) | without it the softmax saturates |
# | heads of attention | one | one $\mathbf{A}$ is handed on |
# | feed-forward network (Eqs. 10, 13) | LayerNorm, GELU, ratio 2 (`ffn_ratio`) | the sizes |
# | one SFD only (Table 7) | at the lowest scale | counted from the lowest |
# | $f_{up}$ of Eq. 11 | bilinear, along both token axes | the only sizes that fit |
# | Pool of Eq. 12 | averaging, to the size of scale 2 | the only size that fits |
# | order of factors in Eq. 12 | gather (`diffusion="scatter"`) | attention takes means |
# | where LTHD enlarges | after its feed-forward network | cheaper, and the sizes |
# | FeatureFuse (Eqs. 13, 14) | enlarge, concatenate, 3 × 3, BatchNorm, ReLU | the sizes |
# | four scales of a plain ViT | a simple feature pyramid ([chapter 12](12_scale_attentive_fusion.ipynb)) | what detectors do |
# | prediction heads | 3 × 3, BatchNorm, ReLU, 1 × 1 at scale 0 | as in the other parts |
# | size of NYUD's images | 448 × 576 | multiples of 32 next to 425 × 560 |
# | optimiser, weights of the losses | those of the book's other networks | comparisons within the book |
#
# "The sizes" are the parameters and FLOPs that the paper prints. How much do they decide? `book/results/make_tif_widths.py` writes the cost of the
# decoder in closed form, for two widths and for 1,536 readings of its boxes, and asks which come within 3 % of every printed number of HRNet18, Swin-T and
# Swin-L.

# %%
searched = json.loads(Path("../results/tif_widths.json").read_text())
at = {"size": "448 × 576", "unit": "1e9"}
reading = {
    r["question"]: r for r in searched["readings"] if at.items() <= r.items()
}
print(f"of {searched['searched']} structures")
questions = {
    "full": "fit the full models",
    "ablation": "and the rows of Table 8",
    "ablation_at_96": "and its difference",
}
for question, words in questions.items():
    one, two = (
        reading[question][w]["fitting"] for w in ("one_width", "two_widths")
    )
    print(f"  {words:24} one width: {one}   two widths: {two:4}")
print("low width of Swin-T by Table 8:", *searched["table8"]["widths"])

# %% [markdown]
# With one width for all scales nothing fits, whatever the boxes hold. With two widths, many hundreds of structures do. One width is pinned as well, by Table 8: across
# tasks each task has one key map, by itself $N = 4$, and the difference of 0.22 M parameters is $2 \cdot 4 \cdot 3\, C^2$ for
# two scales, four tasks and three maps more. Only $C = 96$ gives it. What stays open is how a model divides its size between the scales ({numref}`fig-14-widths`):

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-14-widths", "caption": "With the library's structure: all pairs of widths with which every published number of a backbone comes out within 3 %. Rings: the library's choice."}, "image": {"alt": "Three clouds of dots in a plane of the width at scales 0 and 1 and the width at scales 2 and 3: a handful for HRNet18 and Swin-T, and a long falling band for Swin-L. A ring lies in each."}}
figure, axis = plt.subplots(figsize=(7.5, 2.9))
labels = {"hrnet18": "HRNet18", "swin_tiny": "Swin-T", "swin_large": "Swin-L"}
for (backbone, label), colour in zip(labels.items(), plots.OKABE_ITO):
    bands = searched["pairs"][backbone]["bands"]
    dots = [(high, low) for high, a, b in bands for low in range(a, b + 1, 4)]
    count = searched["pairs"][backbone]["found"]
    axis.plot(*zip(*dots), "o", ms=3, color=colour, label=f"{label}, {count} pairs")
    chosen = searched["library"][backbone]
    axis.plot(chosen["high_width"], chosen["low_width"], "o", ms=9, mfc="none", mec="black")  # fmt: skip
axis.set(xlabel="width at scales 0 and 1", ylabel="width at scales 2 and 3")
_ = axis.legend()

# %%
print(f"{'':12}{'row':7}{'M printed, ours':>17}{'G printed, ours':>18}")
for backbone, its in searched["library"].items():
    for row, numbers in its["rows"].items():
        cells = (numbers[name] for name in ("published", "ours"))
        (M, G), (m, g) = cells
        print(f"{backbone:12}{row:7}{M:9} {m:7}{G or '–':>10} {g:7}")

# %% [markdown]
# So the counts are met, and they prove little about the boxes. What one may take from a reconstruction like this is its *kind*, and what holds
# for several members of the fitting set. That is why the widths were varied in {numref}`fig-14-sweeps`.
#
# ## Four decoders on one page
#
# | | baseline | MLoRE | TaskExpert | TIF |
# |---|---|---|---|---|
# | stands on | four maps of the backbone | four maps | every layer | four scales |
# | shared by all tasks behind it | nothing | experts, generic path | experts | SAFF |
# | a task's own | a 1 × 1 convolution a map | projection, router, expert, BatchNorm | gates, momenta | everything after SAFF |
# | tasks meet | in the backbone | in the weights of the experts, each with a feature of its own | in the experts' answers, which all read | in the backbone and SAFF |
# | looks at the image as a whole | no | router, for gates | no (7 × 7 tokens) | attention, at two scales |
# | chosen anew | never | per image and task | per token and task | never |
# | paper | MLoRE's | CVPR 2024 | ICCV 2023 | ACM MM 2024 |
#
# None of them lets one task read another's feature, as the interacting decoders do with which the papers compare themselves
# ({cite}`ye2022invpt,ye2023taskprompter`). They differ in how much tasks share, and where.

# %%
decoders = {
    "baseline": {},
    "mlore": {"variant": "released"},
    "taskexpert": {},
    "tif": {},
}
print(f"ViT-B, PASCAL-Context, 512 × 512{'parameters':>18}{'10⁹ MACs':>12}")
for name, options in decoders.items():
    with torch.device("meta"):
        network = me.build_model(
            f"{name}_vit_base", me.PASCAL_CONTEXT, **options
        ).eval()
    size = sum(parameter.numel() for parameter in network.parameters())
    if name == "mlore":
        network = me.fuse(network, mode="precomposed")
    macs = me.count(network, (512, 512)).macs
    print(f"  {name:34}{size / 1e6:10.0f} M{macs / 1e9:12.0f}")

# %% [markdown]
# (MLoRE's parameters are those of training, its operations those of the fused form.) And on Dollhouse, with the recorded runs of this book, {numref}`fig-14-decoders`.

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-14-decoders", "caption": "Δm over single-task networks on the easy Dollhouse at 64 × 64, 300 steps. A dot for each seed, the mean, and its 95 % interval from the spread pooled within each part's runs. TaskExpert stands on another encoder, with twelve blocks instead of three."}, "image": {"alt": "Six rows with dots for the seeds, a mean and an interval: the baseline, MLoRE as its text has it, MLoRE as released, TIF, TIF without its three modules, and, in grey, TaskExpert with a deeper encoder."}}
files = {
    "baseline": ("mlore_sweeps", "baseline"),
    "MLoRE, text": ("mlore_sweeps", "mlore"),
    "MLoRE, released": ("mlore_sweeps", "mlore variant=released"),
    "TIF": ("tif_sweeps", "tif"),
    "TIF, no modules": ("tif_sweeps", record["sweeps"]["table6"]["none"]),
    "TaskExpert": ("taskexpert_sweeps", "taskexpert"),
}
figure, axis = plt.subplots(figsize=(7.5, 2.4))
summary = {}
for y, (label, (file, key)) in enumerate(files.items()):
    other = json.loads(Path(f"../results/{file}.json").read_text())
    assert other["data_command"] == record["data_command"]
    runs = with_gains(other["runs"])
    values = [run["delta_m"] for run in runs[key]]
    half = half_interval(runs, len(values))
    size = next(run["parameters"] for run in other["runs"] if run["key"] == key)
    summary[label] = (mean(values), half, size, len(values))
    colour = "0.5" if label == "TaskExpert" else blue
    axis.plot(values, [y] * len(values), "o", ms=4, alpha=0.45, color=colour)
    axis.errorbar(mean(values), y, xerr=half, fmt="|", ms=10, mew=2, capsize=3, color=colour)  # fmt: skip
axis.set(xlabel="Δm (%)", yticks=range(len(files)), yticklabels=files)
_ = axis.set_ylim(len(files) - 0.5, -0.5)

# %%
for label, (value, half, size, seeds) in summary.items():
    print(
        f"{label:16}{value:+6.1f} ± {half:.1f} %   {size / 1e6:.2f} M   {seeds} seeds"
    )

# %% [markdown]
# On one encoder, with one budget, the order is clear: TIF, then MLoRE as released, then the baseline, with gaps of about three percent. But the gap is there before
# the first of TIF's modules. TIF without its three modules stands there for that reason. What is left of it are 3 × 3 convolutions of each task's own at four scales, the finest among them, and one across all
# scales. On the finest map the other decoders have one 1 × 1 convolution per task.
#
# What may not be compared here: TaskExpert's row with the others, since its encoder is four times as deep; the sizes, which were not made equal; and any of it with the papers'
# tables, whose backbones have seen a million photographs. Every decoder got the learning rate of the book's recipe and no
# tuning of its own.
#
# ## Exercises
#
# ```{exercise} Where attention overtakes
# :label: ex-14-overtakes
# From how many tokens on does attention cost more than the linear maps of SFD? Write `overtakes(C, N, r)`: the number of tokens at which the two
# terms of {eq}`eq-14-cost` are equal.
# ```

# %%
from mlore_edu.exercises import ch14


def overtakes(C, N, r): ...


_ = ch14.check_overtakes(overtakes)

# %% [markdown]
# ```{solution-start} ex-14-overtakes
# :class: dropdown
# ```
# $(1 + N + 2r)\, C^2 n = 2\, C\, n^2$, divided by $C n$.


# %% jupyter={"source_hidden": true}
def overtakes(C, N, r):
    return (1 + N + 2 * r) * C / 2


print(
    f"Swin-T: {overtakes(96, 4, 2):.0f} tokens; scale 2 has 1008, scale 3 has 252"
)
_ = ch14.check_overtakes(overtakes)

# %% [markdown]
# ```{solution-end}
# ```
#
# ```{exercise} Any mixture of affinities
# :label: ex-14-factors
# Eq. 11 adds two affinities. Suppose one wants $\sum_j w_j \mathbf{Q}_j \mathbf{K}_j^\top$ with learned weights. Given a list of pairs of queries and keys, `(n, C_j)` each,
# and a list of numbers, write `factors(pairs, weights)` that returns one pair `(n, C)` whose product is that sum, without ever making an
# $n \times n$ matrix.
# ```


# %%
def factors(pairs, weights): ...


_ = ch14.check_factors(factors)

# %% [markdown]
# ```{solution-start} ex-14-factors
# :class: dropdown
# ```
# Every weight goes to one of its two factors, whatever its sign.


# %% jupyter={"source_hidden": true}
def factors(pairs, weights):
    queries = torch.cat([w * q for w, (q, _) in zip(weights, pairs)], dim=1)
    keys = torch.cat([k for _, k in pairs], dim=1)
    return queries, keys


_ = ch14.check_factors(factors)

# %% [markdown]
# ```{solution-end}
# ```
#
# ```{exercise} How many tokens are attended to?
# :label: ex-14-effective
# A row of weights that sums to 1 has the entropy $H = -\sum_j w_j \ln w_j$ (with $0 \ln 0 = 0$), and $e^H$ is its *effective number* of tokens: 1 if all weight lies on one,
# $m$ if it lies on $m$ of them evenly. Write `effective(weights)` for weights of any shape, rows in the last dimension.
# ```


# %%
def effective(weights): ...


_ = ch14.check_effective(effective)

# %% [markdown]
# ```{solution-start} ex-14-effective
# :class: dropdown
# ```


# %% jupyter={"source_hidden": true}
def effective(weights):
    return torch.special.entr(weights).sum(dim=-1).exp()


shares = inside["attended"][:-1].mean(axis=(0, 2))  # (4,): effective number, over n
print("attended share of the tokens, scales 0 to 3:", *(f"{s:.1f}" for s in shares))
_ = ch14.check_effective(effective)

# %% [markdown]
# ```{solution-end}
# ```
#
# ```{exercise} Who is wanted?
# :label: ex-14-wanted
# Scattered, as in the printed Eq. 12, a constant map is multiplied at every token by how much it is wanted. Write `wanted(Q, K)` that returns these $n$ numbers for
# queries and keys `(n, C)` (the queries hold their factor $1/\sqrt{C}$ already). What is their mean, whatever the weights?
# ```


# %%
def wanted(Q, K): ...


_ = ch14.check_wanted(wanted)

# %% [markdown]
# ```{solution-start} ex-14-wanted
# :class: dropdown
# ```
# Each of $n$ rows hands out 1 in all, to $n$ tokens, so the mean is 1.


# %% jupyter={"source_hidden": true}
def wanted(Q, K):
    return (Q @ K.T).softmax(dim=1).sum(dim=0)


_ = ch14.check_wanted(wanted)

# %% [markdown]
# ```{solution-end}
# ```
#
# ## Takeaways
#
# - Attention costs $n^2$: from one scale to the next finer one sixteen times as much, from TIF's coarsest to its finest 4,096 times. From some four hundred
#   tokens on it costs more than all linear maps around it.
# - Whether affinities are "near zero" must be asked in multiples of an equal share. On our finest map most weights are small and can be dropped; the few
#   large ones reach across the whole image, and the network relies on them.
# - An affinity is enlarged along both of its axes, each as a map. That is the same as enlarging queries and keys, and a sum of two affinities is one affinity of
#   concatenated ones. Eq. 11 needs no matrix.
# - A softmax of a sum is a product of weights: both scales must agree.
# - With weights on its left a value is gathered, on its right scattered, and a constant map is constant no longer.
# - LTHD costs a fourteenth of attention at the high scales, most of it in a convolution. What it lends is not what the fine scales would find by themselves, and
#   our trained network uses it as a mean over the image.
# - More than a thousand structures have TIF's printed sizes once two widths are free, and none with one; a number in Table 8 pins one of the widths.
# - Four decoders, one design question: how much to share, and where tasks may meet. None of them lets a task read another's feature.
#
# You can now build, size, train and question all three papers' networks, and say of each what is printed, what is measured and what was chosen. What is left
# is scale: Part V takes the same code to PASCAL-Context and NYUD-v2.
