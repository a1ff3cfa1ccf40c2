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
# # Mixture of experts
#
# To segment a picture it helps to know the colour of a surface. To find boundaries it helps to know where the colour
# changes. Must every task pay for every filter?

# %%
import math

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from torch import nn

# %%
import mlore_edu as me
from mlore_edu import plots, published
from mlore_edu.data.dollhouse_files import DollhouseScenes
from mlore_edu.data.loaders import make_loader
from mlore_edu.data.transforms import denormalise, eval_transform
from mlore_edu.pictures import to_rgb

plots.use_style()
# %%
tasks = me.DOLLHOUSE
scenes = DollhouseScenes(176, 64, "easy", transform=eval_transform(64))
everything = next(iter(make_loader(scenes, len(scenes), train=False)))
images = everything["image"]  # (176, 3, 64, 64)

# %% [markdown]
# {numref}`fig-04-filters` has four filters made by hand: the colour itself, the mean colour of the surroundings (a blur), the steps of
# colour from pixel to pixel, and the contrast to the surroundings.


# %%
def blur(x, radius):
    padded = F.pad(x, (radius,) * 4, mode="replicate")
    return F.avg_pool2d(padded, 2 * radius + 1, stride=1)  # (B, 3, H, W)


def steps(x):
    right = F.pad(x, (0, 1, 0, 0), mode="replicate").diff(dim=3)  # (B, 3, H, W)
    down = F.pad(x, (0, 0, 0, 1), mode="replicate").diff(dim=2)  # (B, 3, H, W)
    return (right**2 + down**2).sqrt()


# %%
some = images[:32]
filters = {
    "colour": some,
    "blur": blur(some, 8),
    "steps": steps(some),
    "contrast": (some - blur(some, 4)).abs(),
}

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-04-filters", "caption": "A scene as four filters see it."}, "image": {"alt": "Four pictures of one scene: its colours, a blurred version, bright outlines on black, and soft halos on black."}}
figure, axes = plt.subplots(1, 4, figsize=(7.5, 2.1))
for axis, (name, answer) in zip(axes, filters.items()):
    picture = answer[3]
    picture = denormalise(picture) if name in ("colour", "blur") else picture
    axis.imshow((picture / max(1, picture.max())).clamp(0, 1).permute(1, 2, 0))
    axis.set(title=name, xticks=[], yticks=[])
    axis.spines[:].set_visible(False)

# %% [markdown]
# How useful is a filter to a task? We predict the task's labels from the filter's answer and its square alone, pixel by
# pixel, by least squares, and ask what share of the labels' variance that explains ({numref}`fig-04-usefulness`).


# %%
def as_numbers(task):
    label = everything[task.name][:32]
    if task.name in ("semseg", "human_parts"):  # a one-hot vector for each class
        label = F.one_hot(label.where(label != 255, 0)).permute(0, 3, 1, 2)
    return label.reshape(32, -1, 64, 64).float()  # (B, c, H, W)


def as_rows(maps):
    return maps.permute(0, 2, 3, 1).flatten(0, 2)  # (B·H·W, c)


# %%
def share_explained(answer, task):
    x, y = as_rows(answer), as_rows(as_numbers(task))
    x = torch.cat([x, x**2, torch.ones(len(x), 1)], dim=1)  # (B·H·W, 2c + 1)
    residual = y - x @ torch.linalg.lstsq(x, y).solution
    return 1 - residual.var(dim=0).sum().item() / y.var(dim=0).sum().item()


rows = [[share_explained(f, task) for f in filters.values()] for task in tasks]
usefulness = torch.tensor(rows)  # (T, 4)
best = usefulness.argmax(dim=1).tolist()
print({task.name: list(filters)[n] for task, n in zip(tasks, best)})


# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-04-usefulness", "caption": "What share of a task's labels each filter explains, relative to the task's best filter."}, "image": {"alt": "A matrix of six tasks and four filters. Boundaries are alone in needing the steps; the other five tasks want colour first and the blurred colour second."}}
def show_matrix(axis, matrix, rows, columns, vmax=None, digits=None):
    shown = axis.imshow(matrix, cmap="Blues", vmin=0, vmax=vmax, aspect="auto")
    axis.set_xticks(range(len(columns)), columns)
    axis.set_yticks(range(len(rows)), rows)
    axis.spines[:].set_visible(False)
    if digits is not None:
        for y, row in enumerate(matrix.tolist()):
            for x, value in enumerate(row):
                style = {
                    "color": "white" if value > shown.norm.vmax / 2 else "black"
                }
                axis.text(
                    x, y, f"{value:.{digits}f}", ha="center", va="center", **style
                )
    return shown


titles = [task.title for task in tasks]
relative = usefulness / usefulness.amax(dim=1, keepdim=True)  # (T, 4)
figure, axis = plt.subplots(figsize=(5.5, 2.6))
_ = show_matrix(axis, relative, titles, list(filters), vmax=1, digits=2)

# %% [markdown]
# One stock of filters, and a table that says which task wants how much of which: that is a **mixture of experts**
# {cite}`jacobs1991adaptive`. In this chapter the filters will be learned. The table will be made anew for
# every image, by a small network that is learned too, and most of its entries will be zero.
#
# ## What you will be able to do
#
# - build experts and gates from Eq. 1 of MLoRE {cite}`yang2024mlore`, and find that the library's are the same;
# - let each task choose its $k$ best experts, in both orders of choosing and weighing, and say which one starves a
#   router;
# - derive how probable it is that an expert is chosen, check it by drawing lots, and recognise the mistake that several
#   public implementations make;
# - watch half of the experts die in a training run, keep them alive, and say what that did not achieve;
# - work out what a mixture costs, and why the next chapter makes the experts thinner.
#
# *Before you start:* [chapter 3](../part1_foundations/03_one_encoder_many_heads.ipynb) for tasks, decoder and losses;
# the softmax and the normal distribution. *Time:* 35 minutes of reading, half a minute of running, most of it
# training. *Hardware:* two CPU cores, 4 GB of memory; no GPU, no download.
#
# ## Experts and gates
#
# An **expert** $E_n$ is a small network that all tasks share. In the standard mixture that MLoRE starts from it is a 3 × 3
# convolution, a ReLU and a 1 × 1 convolution, from $C$ channels to $C$. A **router** $G_t$ per task looks at the feature $\mathbf{X}$
# and gives one number, a **gate** $g_n^t$, for each of the $N$ experts. The task's feature is the sum of the experts'
# answers, weighted by the gates:
#
# ```{math}
# :label: eq-04-mixture
# \mathbf{X}_n = E_n(\mathbf{X}), \qquad \mathbf{g}^t = G_t(\mathbf{X}) \in \mathbb{R}^N, \qquad
# \mathbf{S}^t = \sum_{n=1}^{N} g_n^t\, \mathbf{X}_n .
# ```

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-04-flow", "caption": "A mixture of experts. The experts work once for all tasks. Each task has a router of its own, whose gates, drawn as a matrix, weigh the experts' answers. White gates are zero."}, "image": {"alt": "A flow diagram. A picture becomes a feature X. Above, X passes through a column of eight boxes, the experts. Below, it passes through the routers, which give a matrix of six rows and eight columns with three dark cells in every row. Both meet in a weighted sum, from which six features leave, one per task."}}
figure = plt.figure(figsize=(7.5, 3.4), layout="none")
canvas = figure.add_axes((0, 0, 1, 1), xlim=(0, 7.5), ylim=(0, 3.4))
canvas.axis("off")


def box(x, y, width, height, text, colour, **style):
    canvas.add_patch(plt.Rectangle((x, y), width, height, color=colour, alpha=0.9))
    canvas.text(
        x + width / 2, y + height / 2, text, ha="center", va="center", **style
    )


def arrow(start, end):
    canvas.annotate("", end, start, arrowprops={"arrowstyle": "->", "color": "0.3"})


picture = figure.add_axes((0.1 / 7.5, 1.3 / 3.4, 0.95 / 7.5, 0.95 / 3.4))
picture.imshow(to_rgb("image", denormalise(images[3])))
picture.axis("off")
box(1.45, 1.55, 0.45, 0.45, r"$\mathbf{X}$", plots.OKABE_ITO[4])
arrow((1.1, 1.77), (1.42, 1.77))
for n in range(8):
    y = 3.11 - 0.165 * n
    box(2.75, y, 1.0, 0.13, rf"$E_{n + 1}$", plots.OKABE_ITO[1], fontsize=7)
canvas.text(3.25, 1.78, "experts", ha="center", va="center")
box(2.4, 0.55, 0.75, 0.5, "routers\n$G_1 … G_6$", plots.OKABE_ITO[5], fontsize=8)
arrow((1.95, 1.87), (2.68, 2.5))
arrow((1.95, 1.67), (2.36, 0.9))
arrow((3.2, 0.8), (3.5, 0.8))
drawn = torch.rand(6, 8, generator=torch.Generator().manual_seed(4))
drawn = drawn * (drawn >= drawn.sort(dim=1).values[:, -3:-2])
gates_axis = figure.add_axes((3.55 / 7.5, 0.25 / 3.4, 1.5 / 7.5, 1.1 / 3.4))
gates_axis.imshow(drawn, cmap="Blues", vmin=0, vmax=1.1, aspect="auto")
gates_axis.set(xticks=[], yticks=[])
gates_axis.spines[:].set_visible(False)
canvas.text(
    4.3, 0.1, "gates: tasks × experts", ha="center", va="center", fontsize=8
)
box(5.35, 1.5, 0.55, 0.55, r"$\sum$", plots.OKABE_ITO[6], fontsize=14)
arrow((3.8, 2.5), (5.3, 1.95))
arrow((5.1, 0.9), (5.4, 1.45))
for row, task in enumerate(tasks):
    y = 2.85 - 0.46 * row
    box(6.15, y, 0.3, 0.3, "", plots.OKABE_ITO[4])
    canvas.text(6.5, y + 0.15, task.title, va="center", fontsize=8)
    arrow((5.92, 1.77), (6.12, y + 0.15))

# %% [markdown]
# To watch the mixture of {numref}`fig-04-flow` alone we give it the plainest feature there is, without any transformer: patches of 8 × 8 pixels,
# their 192 numbers brought to $C = 16$ channels by a 1 × 1 convolution.

# %%
T, N, C = len(tasks), 8, 16
patches = F.pixel_unshuffle(images, 8)  # (176, 192, 8, 8)
torch.manual_seed(0)
project = nn.Conv2d(192, C, 1)
X = project(patches[:4]).detach()  # (B, C, 8, 8)

# %% [markdown]
# Now Eq. {eq}`eq-04-mixture` as it stands, with random gates for a moment:

# %%
experts = [
    nn.Sequential(nn.Conv2d(C, C, 3, padding=1), nn.ReLU(), nn.Conv2d(C, C, 1))
    for _ in range(N)
]
gates = torch.rand(4, T, N).softmax(dim=-1)  # (B, T, N)

# %%
S = torch.zeros(4, T, C, 8, 8)
for t in range(T):
    for n, expert in enumerate(experts):
        S[:, t] += gates[:, t, n, None, None, None] * expert(X)

# %% [markdown]
# No expert's answer depends on the task, so each need run only once. And since all of them begin with a convolution of
# the same $\mathbf{X}$, their kernels can lie one behind the other in one convolution with $N \cdot C$ outputs. The
# second one, which must not mix the experts, is a convolution in $N$ groups:

# %%
first, second = [E[0] for E in experts], [E[2] for E in experts]
W1 = torch.cat([c.weight for c in first])  # (N·C, C, 3, 3)
b1 = torch.cat([c.bias for c in first])  # (N·C,)
W2 = torch.cat([c.weight for c in second])  # (N·C, C, 1, 1)
b2 = torch.cat([c.bias for c in second])  # (N·C,)

hidden = F.conv2d(X, W1, b1, padding=1).relu()  # (B, N·C, 8, 8)
answers = F.conv2d(hidden, W2, b2, groups=N).unflatten(1, (N, C))  # (B, N, C, 8, 8)
mixed = torch.einsum("btn,bnchw->btchw", gates, answers)  # (B, T, C, 8, 8)
torch.testing.assert_close(mixed, S)

# %% [markdown]
# These are the library's experts, `mlore_edu/decoders/moe.py: ConvExperts`:

# %%
from mlore_edu.decoders.moe import ConvExperts

library = ConvExperts(C, N)
names = ("spatial.weight", "spatial.bias", "pointwise.weight", "pointwise.bias")
library.load_state_dict(dict(zip(names, (W1, b1, W2, b2))))
torch.testing.assert_close(library.shared(X, gates), S)

# %% [markdown]
# ### The router
#
# What should a router look at? The simplest thing: the mean of the feature over all pixels, one vector per image. A
# linear map for each task makes $N$ **logits** $\boldsymbol{\ell}^t$ of it, and a softmax makes positive gates that sum
# to 1. (What the mean forgets, and better routers, are the subject of [chapter 7](07_routers.ipynb).)

# %%
router = nn.Linear(C, T * N)
logits = router(X.mean(dim=(2, 3))).unflatten(1, (T, N))  # (B, T, N)
logits = 6 * logits.detach()  # enlarged: a trained router is more decided
gates = logits.softmax(dim=-1)  # (B, T, N)

# %% [markdown]
# ## Choosing k
#
# A softmax is never zero, so with these gates every task uses every expert, and pays for it in a model where tasks have
# features of their own. Sparse mixtures keep the $k$ largest and set the others to zero. `torch.topk` would find them;
# but of equal values it may return any, and equal logits are not rare, for a router that starts at zero has nothing
# else. A stable sort settles it: of equals the first wins.


# %%
def top_k_mask(scores, k):  # (..., N)
    best = scores.argsort(dim=-1, descending=True, stable=True)[..., :k]  # (..., k)
    return torch.zeros_like(scores, dtype=torch.bool).scatter(-1, best, True)


from mlore_edu.decoders import moe

for values in (logits, torch.zeros(2, 5)):
    assert torch.equal(top_k_mask(values, 3), moe.top_k_mask(values, 3))

# %% [markdown]
# Choose and then weigh, or weigh and then choose? Shazeer et al. {cite}`shazeer2017outrageously` choose first: a
# softmax over the $k$ chosen logits. MLoRE's text has the softmax first: over all $N$, and of its values the $k$
# largest stay as they are.

# %%
k = 3
chosen = top_k_mask(logits, k)  # (B, T, N)
softmax_first = logits.softmax(dim=-1) * chosen
softmax_last = logits.masked_fill(~chosen, -torch.inf).softmax(dim=-1)

# %% mystnb={"figure": {"name": "fig-04-gates", "caption": "Gates of one image as matrices of tasks × experts: dense, and sparse with k = 3 in both orders. The number at the right of a row is its sum."}, "image": {"alt": "Three matrices with six rows and eight columns. In the first all cells are positive. In the other two only three cells of each row are; where the softmax came first they keep their values and rows sum to less than one, where it came last they are larger and rows sum to one."}}
figure, axes = plt.subplots(1, 3, figsize=(7.5, 2.8), sharey=True)
matrices = {
    "softmax over all": gates,
    "softmax, then the best 3": softmax_first,
    "the best 3, then softmax": softmax_last,
}
for axis, (title, matrix) in zip(axes, matrices.items()):
    show_matrix(axis, matrix[0], titles, range(1, N + 1), vmax=0.8)
    axis.set(title=title, xlabel="expert")
    axis.tick_params(length=0)  # a tick beside a number looks like a minus sign
    for y, total in enumerate(matrix[0].sum(dim=-1).tolist()):
        axis.text(N - 0.35, y, f"{total:.2f}", va="center", fontsize=8)

# %% [markdown]
# The two orders ({numref}`fig-04-gates`) differ by one factor per row, the sum of what was kept. It tells how sure the router was, and what
# follows receives a larger or smaller feature accordingly; with the softmax last that knowledge is lost.

# %%
kept = softmax_first.sum(dim=-1, keepdim=True)  # (B, T, 1)
torch.testing.assert_close(softmax_first / kept, softmax_last)
for order, expected in ((True, softmax_first), (False, softmax_last)):
    gating = moe.noisy_top_k(logits, None, k, softmax_first=order, training=False)
    torch.testing.assert_close(gating.gates, expected)

# %% [markdown]
# They also teach the router differently. With the softmax last, logits that were not chosen receive no gradient at all,
# and for $k = 1$ the only gate is always 1, so that the task teaches the router nothing:

# %%
for order in ("first", "last"):
    for k in (1, 3):
        leaf = logits[0, 0].clone().requires_grad_()  # (N,)
        gating = moe.noisy_top_k(
            leaf, None, k, softmax_first=order == "first", training=True
        )
        (gating.gates * torch.arange(1.0, N + 1)).sum().backward()
        taught = (leaf.grad != 0).sum().item()
        print(f"softmax {order}, k = {k}: {taught} of {N} logits get a gradient")

# %% [markdown]
# The authors' released models contain both orders: softmax first for PASCAL-Context, softmax last for
# NYUD-v2. One switch of our library, `softmax_first`, tells them apart.
#
# ## Why noise
#
# A chosen expert is trained by the task's gradient; one that was left out is not. So the choice confirms itself: who
# works learns, who learns is chosen again, and nobody finds out whether expert 7 would have been better. The remedy is
# to try. In training, Shazeer et al. add noise to each logit, whose strength the router learns as well: with a second
# output $\rho_n$ per expert,
#
# ```{math}
# :label: eq-04-noise
# h_n = \ell_n + \varepsilon_n \sigma_n, \qquad \varepsilon_n \sim \mathcal{N}(0, 1), \qquad
# \sigma_n = \ln(1 + e^{\rho_n}),
# ```
#
# and the $k$ largest $h_n$ are chosen. The function of $\rho_n$, called *softplus*, is always positive. (The released
# code omits it and multiplies by $\rho_n$ as it is. Our library keeps it, and keeps $\sigma_n \ge 0.01$, so that no
# router can end its own exploration.) What the noise does to the choices can be seen in {numref}`fig-04-noise`.

# %%
h = {}
torch.manual_seed(0)
for strength in (0.0, 0.5, 2.0):
    noise = torch.randn(40, N)  # (steps, N)
    h[strength] = logits[0, 0] + strength * noise  # (steps, N)

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-04-noise", "caption": "Which k = 2 of eight experts one task tries in forty steps, with the same logits throughout and noise of three strengths."}, "image": {"alt": "Three grids of eight rows, the experts, and forty columns, the steps. Without noise the same two rows are filled throughout. With little noise a few others are tried now and then; with much noise most rows are filled in an irregular pattern."}}
figure, axes = plt.subplots(1, 3, figsize=(7.5, 1.9), sharey=True)
for axis, (strength, scores) in zip(axes, h.items()):
    axis.imshow(top_k_mask(scores, 2).T, cmap="Blues", vmax=1.2, aspect="auto")
    axis.set(title=f"noise σ = {strength:g}", xlabel="step")
    axis.set_yticks(range(0, N, 2), range(1, N + 1, 2))
_ = axes[0].set_ylabel("expert")

# %% [markdown]
# ## How probable is it to be chosen?
#
# We shall soon want to tell the router: spread the work. But the work, the number of times that an expert is chosen,
# jumps from 0 to 1 and has no gradient. The *probability* of being chosen is smooth. What is it?
#
# Hold the noise of all the others, and draw only that of expert $n$ again. Among $N - 1$ rivals the $k$-th largest is
# the **bar**, $b_n = \operatorname{kth\,largest}\,\{h_m : m \ne n\}$. Expert $n$ is among the $k$ exactly when it
# clears the bar, when $\ell_n + \varepsilon\,\sigma_n > b_n$. With $\Phi$, the distribution function of the normal
# distribution, that has the probability
#
# ```{math}
# :label: eq-04-load
# P_n = \Phi\!\left( \frac{\ell_n - b_n}{\sigma_n} \right).
# ```
#
# (With $k = N$ there is no bar, and everybody is chosen.)


# %%
def load(logits, h, sigma, k):  # (..., N) each
    P = torch.empty_like(logits)
    for n in range(logits.shape[-1]):
        others = torch.cat([h[..., :n], h[..., n + 1 :]], dim=-1)  # (..., N - 1)
        bar = others.topk(k).values[..., -1]  # (...)
        z = (logits[..., n] - bar) / sigma[..., n]
        P[..., n] = (1 + torch.erf(z / math.sqrt(2))) / 2
    return P


# %% [markdown]
# The library needs no loop. Sort all $N$ noisy logits once: for an expert that is among the $k$, the bar is number
# $k + 1$ of all; for one that is not, number $k$.

# %%
raw_noise = torch.randn(4, T, N)
sigma = F.softplus(raw_noise)
torch.manual_seed(1)
gating = moe.noisy_top_k(logits, raw_noise, 3, softmax_first=True, training=True)
torch.manual_seed(1)
h = logits + torch.randn_like(logits) * sigma  # the same draw
torch.testing.assert_close(gating.load, load(logits, h, sigma, 3))

# %% [markdown]
# Is the formula right? Let us count. Seven rivals have these noisy logits; we move the logit of an eighth expert from
# −4 to 4, and for each value draw its noise ten thousand times ({numref}`fig-04-load`).

# %%
rivals = torch.tensor([-2.6, -1.7, -0.8, 0.1, 0.5, 1.2, 2.1])
draws, strength = 10_000, 0.8
dots = torch.linspace(-4, 4, 17)
counted, computed = {}, {}
for k in (1, 3, 6):
    bar = rivals.topk(k).values[-1]
    noisy = dots[:, None] + strength * torch.randn(17, draws)  # (17, draws)
    counted[k] = (noisy > bar).double().mean(dim=1)  # (17,)
    rows = torch.cat([dots[:, None], rivals.expand(17, -1)], dim=1)  # (17, N)
    computed[k] = load(rows, rows, torch.full((17, N), strength), k)[:, 0]  # (17,)
    assert (counted[k] - computed[k]).abs().max() < 4.5 * 0.5 / math.sqrt(draws)

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-04-load", "caption": "Probability that an expert is among the k of eight, as a function of its logit: the formula (curves), and the share of 10,000 draws (dots). Dotted lines mark the bars; the ticks along the axis are the rivals' noisy logits."}, "image": {"alt": "Three S-shaped curves from zero to one, for k equal to six, three and one, from left to right. Dots lie on the curves. Each curve passes one half where a dotted vertical line marks its bar, which is one of the rivals' ticks."}}
figure, axis = plt.subplots(figsize=(7.5, 2.9))
grid = torch.linspace(-4, 4, 200)
for k, colour in zip((6, 3, 1), plots.OKABE_ITO):
    bar = rivals.topk(k).values[-1].item()
    curve = (1 + torch.erf((grid - bar) / strength / math.sqrt(2))) / 2
    axis.plot(grid, curve, color=colour, label=f"k = {k}")
    axis.plot(dots, counted[k], "o", ms=4, color=colour)
    axis.axvline(bar, ls=":", lw=1, color=colour)
axis.plot(rivals, torch.full((N - 1,), -0.04), "|", ms=9, color="black")
axis.set(xlabel="the expert's logit", ylabel="probability of being chosen")
_ = axis.legend(loc="center left")

# %% [markdown]
# ### A mistake to recognise
#
# Where the softmax comes first, it is tempting to sort the *probabilities*, to take the bar from them, and to compare
# it with the logits. Several public implementations do. A logit can be any number, a probability is less than 1: the
# two cannot be compared. {numref}`fig-04-mistake` shows what comes of it.


# %%
def mistaken_load(logits, h, sigma, k):
    return load(logits, h.softmax(dim=-1), sigma, k)  # a bar between 0 and 1


def count(logits, h, sigma, k, draws=2000):
    frequency = torch.empty_like(logits)
    for n in range(N):
        again = h.expand(draws, *h.shape).clone()  # (draws, B, T, N)
        again[..., n] = logits[..., n] + torch.randn(draws, 4, T) * sigma[..., n]
        frequency[..., n] = top_k_mask(again, k)[..., n].float().mean(dim=0)
    return frequency  # (B, T, N)


# %%
counts = count(logits, h, sigma, 3)
estimates = {f.__name__: f(logits, h, sigma, 3) for f in (load, mistaken_load)}
errors = {name: (P - counts).abs().mean() for name, P in estimates.items()}
assert errors["load"] < 0.02
print("mean error at least ten times as large:",
      bool(errors["mistaken_load"] > 10 * errors["load"]))  # fmt: skip

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-04-mistake", "caption": "Two estimates of the probability of being chosen (k = 3 of 8) against counting: four images, six tasks, eight experts each."}, "image": {"alt": "Two scatter plots. At the left all dots lie on the diagonal. At the right, where logits met probabilities, the dots are spread over the square, many far from the diagonal."}}
figure, axes = plt.subplots(1, 2, figsize=(6.2, 3.0), sharey=True)
for axis, P, title in zip(
    axes, estimates.values(), ("logits with logits", "logits with probabilities")
):
    axis.plot((0, 1), (0, 1), color="0.7", lw=1)
    axis.plot(counts.flatten(), P.flatten(), "o", ms=3, alpha=0.6)
    axis.set(title=title, xlabel="share of draws", aspect="equal")
_ = axes[0].set_ylabel("estimate")

# %% [markdown]
# ## Spreading the work
#
# Now two sums over all images and tasks of a batch: the **importance** of an expert is the sum of its gates, its
# **load** the sum of its probabilities. Both should be equal for all experts, and how unequal $N$ numbers $v_n$ are is
# measured, free of their unit, by the squared coefficient of variation:
#
# ```{math}
# :label: eq-04-cv
# \operatorname{CV}^2(\mathbf{v}) = \frac{\frac{1}{N-1}\sum_n (v_n - \bar v)^2}{\bar v^2}.
# ```

# %%
examples = {
    "all equal": [5, 5, 5, 5],
    "one slightly ahead": [8, 4, 4, 4],
    "one idle": [8, 6, 6, 0],
    "one does everything": [20, 0, 0, 0],
}
for name, values in examples.items():
    v = torch.tensor(values, dtype=torch.float32)  # (N,)
    cv_squared = v.var() / v.mean() ** 2
    torch.testing.assert_close(cv_squared, moe.cv_squared(v))
    print(f"{name:20} {values!s:16} CV² = {cv_squared:.2f}")

# %% [markdown]
# It is 0 for equal work and $N$ when one expert does everything. The **balance loss** is CV² of the importance plus CV²
# of the load, times a weight. Why both? One of them can be deceived. Here two experts have the same importance; but one
# serves a single image with a large gate, the other four images with small ones:

# %%
deceived = torch.tensor([[0.8, 0], *[[0, 0.2]] * 4])  # (5, 2): images, experts
work = (deceived > 0).float()
print(
    f"importance {moe.importance_loss(deceived):.2f}, load {moe.load_loss(work):.2f}"
)

# %% [markdown]
# (The authors' released code has the importance loss alone.) With one expert, or where all values are 0, Eq.
# {eq}`eq-04-cv` divides by zero; the library's answer there is 0, and {ref}`ex-04-cv` lets you do it yourself.
#
# ## Watch experts die
#
# Enough theory. We put sixteen experts, of which each task takes one ($k = 1$, softmax first), between the patches and
# six linear predictions at a resolution of 8 × 8. The routers start at zero, so that at first chance alone decides and
# all experts work alike.

# %%
from mlore_edu.decoders.moe import importance_loss, load_loss, noisy_top_k


class Mixture(nn.Module):
    def __init__(self, experts, k):
        super().__init__()
        self.k = k
        self.project = nn.Conv2d(192, C, 1)
        self.router = nn.Linear(C, T * 2 * experts)  # logits and noise scales
        nn.init.zeros_(self.router.weight)
        nn.init.zeros_(self.router.bias)
        self.experts = ConvExperts(C, experts)
        self.heads = nn.ModuleList(nn.Conv2d(C, task.channels, 1) for task in tasks)

    def route(self, X):
        routed = self.router(X.mean(dim=(2, 3))).unflatten(1, (T, -1))  # (B, T, 2N)
        return routed.chunk(2, dim=-1)  # (B, T, N) each

    def forward(self, patches):
        X = self.project(patches)  # (B, C, 8, 8)
        gating = noisy_top_k(
            *self.route(X), self.k, softmax_first=True, training=self.training
        )
        S = self.experts.shared(X, gating.gates)  # (B, T, C, 8, 8)
        heads = zip(tasks.names, self.heads)
        return {name: head(S[:, t]) for t, (name, head) in enumerate(heads)}, gating


# %%
labels = {name: everything[name][..., 4::8, 4::8] for name in tasks.names}
criterion = me.MultiTaskLoss(tasks, edge_positive_weight=0.8)


def task_loss(predictions, rows):
    targets = {name: label[rows] for name, label in labels.items()}
    return criterion(predictions, targets)[0]


# %%
def train(seed, balance, experts, k, steps=150):
    torch.manual_seed(seed)
    model = Mixture(experts, k)
    optimizer = torch.optim.Adam(model.parameters(), 4e-3)
    usage = []
    for _ in range(steps):
        rows = torch.randint(128, (8,))  # eight of the first 128 scenes
        predictions, (gates, P) = model(patches[rows])
        loss = task_loss(predictions, rows)
        loss = loss + balance * (importance_loss(gates) + load_loss(P))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 10.0)
        optimizer.step()
        usage.append((gates > 0).float().mean(dim=(0, 1)))  # (N,)
    return model.eval(), torch.stack(usage)  # (steps, N)


# %%
seeds = (0, 1, 2)
alone = [train(seed, balance=0.0, experts=16, k=1) for seed in seeds]

# %%
balanced = [train(seed, balance=1.0, experts=16, k=1) for seed in seeds]


# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-04-die", "caption": "Share of all choices that each of sixteen experts gets during training, one row per expert, ordered by their share at the end (first seed). The fair share is 1/16."}, "image": {"alt": "Two heat maps, sixteen rows by one hundred and fifty steps. Without the balance loss all rows are lightly filled at first; after some dozens of steps a few dark rows remain and the others are empty. With the balance loss all rows, or nearly all, stay filled until the end."}}
def smooth(usage, window=10):
    return F.avg_pool1d(usage.T[None], window, stride=1)[0]  # (N, steps - 9)


figure, axes = plt.subplots(1, 2, figsize=(7.5, 3.0), sharey=True)
for axis, (_, usage), title in zip(
    axes, (alone[0], balanced[0]), ("without balance loss", "with balance loss")
):
    shares = smooth(usage)
    shares = shares[shares[:, -25:].sum(dim=1).argsort(descending=True)]
    shown = axis.imshow(shares, cmap="Blues", vmin=0, vmax=4 / 16, aspect="auto")
    axis.set(title=title, xlabel="step")
    axis.set_yticks(range(0, 16, 5), range(1, 17, 5))
axes[0].set_ylabel("experts by final share")
ticks = (0, 1 / 16, 2 / 16, 4 / 16)
bar = figure.colorbar(shown, ax=axes, ticks=ticks, label="share of choices")
_ = bar.ax.set_yticklabels(("0", "fair", "2 × fair", "≥ 4 × fair"))

# %% [markdown]
# Call an expert **idle** when it gets less than a tenth of its fair share, as many come to do in {numref}`fig-04-die`.


# %%
def idle(usage, k):  # (..., N)
    return (usage < 0.1 * k / usage.shape[-1]).sum(dim=-1)


def idle_in_training(trained, steps, k=1):
    return [idle(usage[steps].mean(dim=0), k).item() for _, usage in trained]


# %%
first, last = slice(0, 15), slice(-25, None)
assert max(idle_in_training(alone + balanced, first)) <= 3  # all begin alike
assert min(idle_in_training(alone, last)) >= 6
assert max(idle_in_training(balanced, last)) <= 4
print("idle in the last 25 steps, in each of three seeds:")
print("without the balance loss at least six of sixteen, with it at most four")

# %% [markdown]
# Without the balance loss about half of the experts or more fall idle within some dozens of steps, and nothing brings
# them back: who is never chosen learns nothing, and who has learned nothing is not chosen. With the loss nearly all
# keep working. Its weight has to be seen beside the losses of the tasks, which add up to about ten here. A weight
# of 0.01 saves nobody in so short a run:

# %%
weakly = [train(0, balance=0.01, experts=16, k=1)]
print("weight 0.01: six or more idle:", min(idle_in_training(weakly, last)) >= 6)

# %% [markdown]
# So far the textbook. Now one question more: what happens when the noise is switched off, as it is in
# evaluation? We use the 48 scenes that were not trained on.


# %%
@torch.no_grad()
def evaluate(model):
    unseen = torch.arange(128, 176)
    predictions, gating = model(patches[unseen])
    active = (gating.gates > 0).float()  # (48, T, N)
    used = active.amax(dim=0).sum(dim=-1)  # (T,): experts a task uses at all
    return {
        "idle": idle(active.mean(dim=(0, 1)), model.k).item(),
        "loss": task_loss(predictions, unseen).item(),
        "used": used.mean().item(),
    }


# %% [markdown]
# We also train the mixture in the paper's proportion, nine of fifteen active for each task.

# %%
alone_9 = [train(seed, balance=0.0, experts=15, k=9) for seed in seeds]

# %%
balanced_9 = [train(seed, balance=1.0, experts=15, k=9) for seed in seeds]

# %%
groups = [alone, balanced, alone_9, balanced_9]
results = [[evaluate(model) for model, _ in trained] for trained in groups]

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-04-idle", "caption": "Three seeds each, without (orange) and with the balance loss (blue). Left and middle: idle experts at the end of training, with noise, and in evaluation, without. Right: the summed task losses on unseen scenes."}, "image": {"alt": "Three panels of dots for two settings, one of sixteen experts and nine of fifteen. With noise, orange dots of the first setting lie near ten, blue dots near zero; without noise both lie near ten. In the second setting all are at or near zero. At the right, blue dots lie above the orange ones in the first setting, and level with them or slightly below in the second."}}
figure, axes = plt.subplots(1, 3, figsize=(7.5, 2.7))
for group, (trained, found) in enumerate(zip(groups, results)):
    columns = (
        idle_in_training(trained, last, k=1 if group < 2 else 9),
        [values["idle"] for values in found],
        [values["loss"] for values in found],
    )
    x = group // 2 + (-0.2, 0.1)[group % 2]
    style = {
        "color": plots.OKABE_ITO[1 - group % 2],
        "label": ("without balance loss", "with balance loss")[group % 2],
    }
    for axis, values in zip(axes, columns):
        axis.plot((x, x + 0.05, x + 0.1), values, "o", ms=5, **style)
for axis, title in zip(
    axes, ("idle in training", "idle in evaluation", "loss on unseen scenes")
):
    axis.set(title=title, xticks=(0, 1), xlim=(-0.5, 1.5), xlabel="active experts")
    axis.set_xticklabels(("1 of 16", "9 of 15"))
for axis in axes[:2]:
    axis.set(ylim=(-0.6, 16), yticks=(0, 5, 10, 15))
handles, names = axes[0].get_legend_handles_labels()
_ = figure.legend(handles[:2], names[:2], loc="outside upper center", ncols=2)

# %%
found = results[1]  # one of sixteen, with the balance loss
print("noise off, still idle:", min(values["idle"] for values in found) >= 3)
print(
    "experts that a task uses on 48 scenes, fewer than four on average:",
    max(values["used"] for values in found) < 4,
)
nine = results[2] + results[3]
print("nine of fifteen: at most three idle:", max(v["idle"] for v in nine) <= 3)

# %%
loss = [sum(values["loss"] for values in found) / len(found) for found in results]
print(
    "one of sixteen: the balance loss costs more than 0.5:", loss[1] > loss[0] + 0.5
)
print("nine of fifteen: it changes less than 1:", abs(loss[3] - loss[2]) < 1)

# %% [markdown]
# Three things to take from {numref}`fig-04-idle`.
#
# *Balance under noise is not balance.* With the noise off, many experts are idle with the balance loss too. It has made
# the logits equal enough for the noise to spread the work; it has not made a task want different experts for different
# images. Routers whose choice did not depend on the image at all would keep at most $k \cdot T$ experts busy, six here,
# and these come close to that.
#
# *How many die depends on k.* Six tasks that each take nine of fifteen leave out hardly any expert, even if they choose
# blindly. {ref}`ex-04-chance` computes how many chance alone would leave out. Whoever reports that an expert is idle, or
# shared by all, should compare with that number first; [chapter 7](07_routers.ipynb) does so for MLoRE.
#
# *Balance is not quality.* With $k = 1$ the balanced mixtures are worse on unseen scenes, presumably because the noise
# lent each expert to many tasks in training, and in evaluation every task is left with one such generalist. With nine
# of fifteen, where nothing had to be saved, the difference is small, and rather in its favour. And in the paper?

# %%
columns = ("model", "balance_loss", "semseg", "human_parts", "edge", "delta_m")
print(published.table("mlore_supplement", 5).format(*columns))

# %% [markdown]
# In all three of its settings the balance loss gains between 0.09 and 0.20 in Δm, one run each. That is little, and
# always of the same sign. Our toy can neither confirm nor refute it, for it shares nothing with the paper's models but
# the idea.
#
# ### Play with k and the noise
#
# Take the routers of a balanced run and one image. How probable is each expert for each task when the noise is as
# strong as you like, and $k$ as large? {numref}`fig-04-explorer` shows four of the settings.


# %%
model = balanced[0][0]
with torch.no_grad():
    trained_logits = model.route(model.project(patches[128:129]))[0][0]  # (T, 16)


def chances(k, noise, draws=300):
    torch.manual_seed(0)
    h = trained_logits + noise * torch.randn(draws, T, 16)  # (draws, T, 16)
    return top_k_mask(h, k).float().mean(dim=0)  # (T, 16)


# %% tags=["nbval-ignore-output"]
import ipywidgets


def explore(k, noise):
    _, axis = plt.subplots(figsize=(6.5, 2.6))
    show_matrix(axis, chances(k, noise), titles, range(1, 17), vmax=1)
    axis.set(title=f"k = {k}, noise σ = {noise:g}", xlabel="expert")
    plt.show()


k_slider = ipywidgets.IntSlider(1, 1, 16, description="k")
noise_slider = ipywidgets.FloatLogSlider(1, min=-2, max=1, description="noise σ")
_ = ipywidgets.interact(explore, k=k_slider, noise=noise_slider)

# %% mystnb={"figure": {"name": "fig-04-explorer", "caption": "The explorer's view for two k and two strengths of noise: how often each of the sixteen experts is chosen by each task, on one unseen scene. Dark means always."}, "image": {"alt": "Four matrices of six tasks and sixteen experts. With little noise and k equal to one, each row has one dark cell; with strong noise several rows share their choices among a few cells. With k equal to nine each row has nine dark cells, and strong noise fills the others in between."}}
figure, axes = plt.subplots(2, 2, figsize=(7.5, 4.0), sharex=True, sharey=True)
for axis, (k, noise) in zip(axes.flat, ((1, 0.01), (1, 1.0), (9, 0.01), (9, 1.0))):
    shown = show_matrix(axis, chances(k, noise), titles, range(1, 17), vmax=1)
    axis.set(title=f"k = {k}, noise σ = {noise:g}")
    axis.set_xticks(range(0, 16, 3), range(1, 17, 3))
for axis in axes[1]:
    axis.set_xlabel("expert")
_ = figure.colorbar(shown, ax=axes, label="share of draws", ticks=(0, 0.5, 1))

# %% [markdown]
# ## The whole decoder
#
# The decoder of MLoRE's Sec. 3.2 has such a mixture at each of the four scales. Every map of the backbone gets a 1 × 1
# convolution to $C$ channels, routers and fifteen experts of its own, nine of them active, with the softmax last. Finally
# the four features of a task are concatenated and a 1 × 1 convolution makes $C$ channels of $4C$. As in chapter 3 that is
# a sum over the scales, and commutes with resizing.

# %%
torch.manual_seed(0)
network = me.build_model("moe_vit_nano", tasks, img_size=(64, 64)).eval()
with torch.no_grad():
    maps = network.backbone(images[:4])
    output = network.decoder(maps)
for name, gates in output.routing.items():
    print(name, "gates of shape", tuple(gates.shape))


# %%
@torch.no_grad()
def decode(X, scale):
    X = scale.project(X)  # (B, C, h, w)
    routed = scale.routers(X.mean(dim=(2, 3))).unflatten(1, (T, -1))  # (B, T, 2N)
    logits = routed[..., :15]  # (B, T, N); the other 15 are noise scales
    left_out = ~top_k_mask(logits, 9)
    gates = logits.masked_fill(left_out, -torch.inf).softmax(dim=-1)
    S = scale.experts.shared(X, gates)  # (B, T, C, h, w)
    Y = scale.to_sum(S.flatten(1, 2))  # (B, T·C, h, w)
    return F.interpolate(Y, size=(32, 32), mode="bilinear")  # (B, T·C, 32, 32)


total = sum(decode(X, scale) for X, scale in zip(maps, network.decoder.scales))
for features, name in zip(total.chunk(T, dim=1), tasks.names):
    torch.testing.assert_close(output.features[name], features)

# %% [markdown]
# It is trained as chapter 3's network was, with `output.balance_loss` added to the loss of the tasks: the losses of
# this chapter, summed over the scales and weighted by `balance_weight`, 0.01 unless you say otherwise. `mlore-edu train`
# does so for every decoder.
#
# ## What it costs
#
# An expert of full width has $9C^2 + C^2$ weights and $2C$ biases, and each call multiplies every weight once per pixel
# of the map. How many calls are there?
#
# - **One feature for all tasks.** Each expert is called once, whoever uses it. That makes $N$ calls, and choosing saves
#   nothing, as long as every expert is wanted by some task.
# - **A feature for each task**, as in MLoRE, where the feature is projected to each task first. Each task calls its own
#   $k$ experts, $T \cdot k$ calls in all. Now choosing saves: of $T \cdot N$ calls, a share of $k/N$ is left.
#
# For the second case the library gathers the kernels of the chosen experts for every image and task and runs all of
# them as one grouped convolution. The result is Eq. {eq}`eq-04-mixture` again:

# %%
with torch.no_grad():
    own = torch.randn(4, T, C, 8, 8)  # (B, T, C, H, W)
    sparse = library(own, softmax_last, k=3)  # (B, T, C, 8, 8)
    dense = [library.shared(own[:, t], softmax_last)[:, t] for t in range(T)]
torch.testing.assert_close(sparse, torch.stack(dense, dim=1), atol=1e-5, rtol=1e-5)

# %% [markdown]
# Let torch count both ways at the size of the paper's Table 2: fifteen experts of $C = 640$ channels, $k = 9$, five
# tasks, a map of 32 × 32 tokens. The `meta` device knows shapes alone, so nothing is computed.

# %%
from torch.utils.flop_counter import FlopCounterMode


def macs(call):
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops() // 2


# %%
with torch.device("meta"):
    large = ConvExperts(640, 15)
    own, gates = torch.empty(1, 5, 640, 32, 32), torch.empty(1, 5, 15)
    once = macs(lambda: large.shared(own[:, 0], gates))
    each = macs(lambda: large(own, gates, k=9))

# %%
call = 10 * 640**2 * 32 * 32  # one expert on one map
weights = sum(p.numel() for p in large.parameters())
assert weights == 15 * (10 * 640**2 + 2 * 640)
print(f"experts called once: {once / call:.1f} calls, {once / 1e9:.0f}e9 products")
print(f"each task its nine:  {each / call:.1f} calls, {each / 1e9:.0f}e9 products")

# %% [markdown]
# With features of their own, five tasks pay for 45 calls although there are fifteen experts. Is that the bill of the
# paper's Table 2? The row with the standard mixture costs 1834 G and has 676 M parameters, of which the baseline
# accounts for 391 G and 115 M. The paper places modules at four scales, two at each, and its G is $2^{30}$
# ([chapter 3](../part1_foundations/03_one_encoder_many_heads.ipynb)).

# %%
baseline, mixture = published.table("mlore", 2).rows[:2]
flops, parameters = (mixture[c] - baseline[c] for c in ("flops", "parameters"))
print(f"added in the paper: {flops:.0f} G, {parameters:.0f} M")
for calls in (15, 45):
    print(f"{calls} calls in 8 modules: {8 * calls * call / 2**30:.0f} G")
print(f"the experts' parameters: {8 * weights / 1e6:.0f} M")

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-04-price", "caption": "Multiply-accumulates (MACs) of one module of full-width experts against their number N, with C = 640, 32 × 32 tokens, five tasks and k = 0.6 N. The paper's decoder has eight modules."}, "image": {"alt": "Two straight lines from zero. Experts that are called once stay below the cost of a ViT-B encoder up to twenty of them; experts called by each task with its own feature are three times as dear and pass the encoder's cost at eight or nine experts."}}
with torch.device("meta"):
    encoder = me.build_model("baseline_vit_base", me.PASCAL_CONTEXT, (512, 512))
vit = me.count(encoder, (512, 512)).by_module["backbone"].macs / 1e9
figure, axis = plt.subplots(figsize=(7.5, 2.8))
count_axis = range(0, 21, 5)
for slope, label, colour in (
    (1, "one feature: N calls", 2),
    (3, "a feature per task: 5 · 0.6 N calls", 0),
):
    heights = [slope * n * call / 1e9 for n in count_axis]
    axis.plot(count_axis, heights, color=plots.OKABE_ITO[colour], label=label)
for slope in (1, 3):
    axis.plot(15, slope * 15 * call / 1e9, "o", color="black", ms=5)
axis.axhline(vit, color="0.5", ls="--", lw=1)
axis.text(0.1, vit * 1.03, "the whole ViT-B encoder", va="bottom", fontsize=9)
axis.set(
    xlabel="experts N",
    ylabel="MACs of a module / 10⁹",
    xlim=(0, 20),
    ylim=(0, None),
)
axis.set_xticks(count_axis)
_ = axis.legend(loc="upper left", bbox_to_anchor=(0.0, 0.98))

# %% [markdown]
# Only the 45 calls come near the printed number; what is missing is projections and routers, which
# [chapter 9](09_mlore_assembled.ipynb) counts too, and the parameters printed include some that the released model
# carries without using them. With these calls one module of fifteen full-width experts costs more than the whole
# encoder ({numref}`fig-04-price`), and there are eight.
#
# That is the price of a mixture whose experts are as wide as the feature. Must they be?
# [Chapter 5](05_low_rank_experts.ipynb) makes them thin. [Chapter 8](08_reparameterisation.ipynb), after taking the
# ReLU out, adds up their kernels before they touch the feature, and the 45 calls become five.
#
# ## Exercises
#
# ```{exercise} Left out by chance
# :label: ex-04-chance
# Each of $T$ tasks picks $k$ of $N$ experts at random, independently of the others. How many experts does no task pick,
# on average? Write `left_out(experts, k, tasks)`. What does that say about one of sixteen for six tasks, and about nine of
# fifteen for five?
# ```

# %%
from mlore_edu.exercises import ch04


def left_out(experts, k, tasks): ...


_ = ch04.check_left_out(left_out)

# %% [markdown]
# ```{solution-start} ex-04-chance
# :class: dropdown
# ```
# One task passes an expert over with probability $1 - k/N$, all tasks with $(1 - k/N)^T$, and expectations add up.


# %% jupyter={"source_hidden": true}
def left_out(experts, k, tasks):
    return experts * (1 - k / experts) ** tasks


print(f"1 of 16, six tasks: {left_out(16, 1, 6):.1f} experts left out")
print(f"9 of 15, five tasks: {left_out(15, 9, 5):.2f}")
_ = ch04.check_left_out(left_out)

# %% [markdown]
# With one of sixteen, nearly eleven experts rest in any one image by chance alone. That is why one must look at many
# images before calling an expert idle, as we did. With nine of fifteen hardly one rests.
#
# ```{solution-end}
# ```
#
# ```{exercise} From one order to the other
# :label: ex-04-orders
# Turn gates of the softmax-first order, `(..., N)`, into those of the softmax-last order, without the logits.
# ```


# %%
def renormalise(gates): ...


_ = ch04.check_renormalise(renormalise)

# %% [markdown]
# ```{solution-start} ex-04-orders
# :class: dropdown
# ```


# %% jupyter={"source_hidden": true}
def renormalise(gates):
    return gates / gates.sum(dim=-1, keepdim=True)


_ = ch04.check_renormalise(renormalise)

# %% [markdown]
# ```{solution-end}
# ```
#
# ```{exercise} A CV² that never breaks
# :label: ex-04-cv
# Write Eq. {eq}`eq-04-cv` for a vector of $N$ values so that it is 0 for one value and where all values are 0, with a
# finite gradient in each case.
# ```


# %%
def cv_squared(values): ...


_ = ch04.check_cv_squared(cv_squared)

# %% [markdown]
# ```{solution-start} ex-04-cv
# :class: dropdown
# ```
# A mean of zero is replaced *before* the division. To divide and to repair the result with `torch.where` would give the
# right value and a gradient that is not a number.


# %% jupyter={"source_hidden": true}
def cv_squared(values):
    if len(values) == 1:
        return values.sum() * 0
    mean = values.mean()
    return (values / mean.where(mean != 0, 1)).var()


_ = ch04.check_cv_squared(cv_squared)

# %% [markdown]
# ```{solution-end}
# ```
#
# ```{exercise} The bill
# :label: ex-04-price
# Write `price(channels, experts, calls, tokens)`: the parameters and the multiply-accumulates, in this order, of $N$
# full-width experts (3 × 3, ReLU, 1 × 1, with biases) that are called `calls` times in all, each time on a map of `tokens`
# places. Biases have parameters, but no multiply-accumulates.
# ```


# %%
def price(channels, experts, calls, tokens): ...


_ = ch04.check_price(price)

# %% [markdown]
# ```{solution-start} ex-04-price
# :class: dropdown
# ```


# %% jupyter={"source_hidden": true}
def price(channels, experts, calls, tokens):
    weights = 9 * channels**2 + channels**2
    return experts * (weights + 2 * channels), calls * tokens * weights


_ = ch04.check_price(price)

# %% [markdown]
# ```{solution-end}
# ```
#
# ```{exercise} Another balance loss
# :label: ex-04-switch
# Switch Transformers {cite}`fedus2022switch` need no noise for theirs. For logits `(rows, N)` let $f_n$ be the share of
# rows whose largest probability is that of expert $n$, and $p_n$ the mean of its probabilities. The loss is
# $N \sum_n f_n p_n$. Write it. What is it when all is equal, and through which factor does the gradient flow?
# ```


# %%
def switch_loss(logits): ...


_ = ch04.check_switch_loss(switch_loss)

# %% [markdown]
# ```{solution-start} ex-04-switch
# :class: dropdown
# ```
# It is 1 when all is equal. The shares $f_n$ jump and have no gradient; it flows through $p_n$, and pushes down most
# what is chosen most.


# %% jupyter={"source_hidden": true}
def switch_loss(logits):
    probabilities = logits.softmax(dim=-1)  # (rows, N)
    experts = logits.shape[-1]
    share = F.one_hot(probabilities.argmax(dim=-1), experts).to(logits).mean(dim=0)
    return experts * (share * probabilities.mean(dim=0)).sum()


_ = ch04.check_switch_loss(switch_loss)

# %% [markdown]
# ```{solution-end}
# ```
#
# ## Takeaways
#
# - A mixture of experts is a stock of small networks and a table of gates, tasks × experts, that a router makes for
#   every image.
# - Choose then weigh, or weigh then choose: the two differ by a factor per row, and in what the router learns. With
#   $k = 1$ and the softmax last, the tasks teach it nothing.
# - The load is the probability of being chosen: a logit against the bar set by the *other* noisy logits. Probabilities
#   have no place in that comparison.
# - Without a balance loss and with $k = 1$, about half of the experts or more died within some dozens of steps. With it
#   they lived, as long as there was noise.
# - Before marvelling at an idle or a popular expert, work out what chance would do.
# - Full-width experts are dear: with a feature for each task, $T \cdot k$ calls of $10 C^2$ weights.
#
# You can now build a sparse mixture for several tasks, train it without losing its experts, and price it.
# [Chapter 5](05_low_rank_experts.ipynb) brings the price down.
