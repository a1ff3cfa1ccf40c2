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
# # Scale-attentive fusion
#
# Shrink a picture to four by four squares, and you may still guess that it shows a room, but no longer where the table ends. Trace its
# outlines, and you have the table's edge to the pixel, and no idea that it is a table. An encoder hands over maps of both kinds. How
# can each get from the others what it lacks?

# %%
import json
import math
from itertools import pairwise
from pathlib import Path
from statistics import mean

# %%
import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F

# %%
import mlore_edu as me
from mlore_edu import plots, published
from mlore_edu.data.dollhouse_files import VALIDATION_SEEDS, DollhouseScenes
from mlore_edu.data.loaders import make_loader
from mlore_edu.data.transforms import denormalise, eval_transform
from mlore_edu.pictures import to_rgb

plots.use_style()
tasks = me.DOLLHOUSE

# %% [markdown]
# The encoder of this chapter is `tif_vit_nano`, trained on Dollhouse at 64 × 64 for 300 steps. Its weights up to the fusion were stored
# by `book/results/make_tif_fusion.py`, so that everything below can be tried on it.

# %%
model = me.build_model("tif_vit_nano", tasks, img_size=(64, 64)).eval()
stored = np.load("../results/tif_fusion.npz")
weights = {name: torch.from_numpy(stored[name]).float() for name in stored.files}
_ = model.load_state_dict(weights, strict=False)  # decoders and heads stay random


# %%
def scenes(count, *first_seed):
    data = DollhouseScenes(
        count, 64, "easy", *first_seed, transform=eval_transform(64)
    )
    return next(iter(make_loader(data, count, train=False)))  # one batch


training, validation = scenes(72), scenes(36, VALIDATION_SEEDS)

# %% [markdown]
# To look at a map we show the three directions along which its vectors vary most as red, green and blue, as in
# [chapter 3](../part1_foundations/03_one_encoder_many_heads.ipynb). Of the validation scenes with a person we take the one with the
# most kinds of things.


# %%
def to_colours(maps):  # (B, C, h, w), one set of colours for all B
    vectors = maps.detach().movedim(1, -1).double()  # (B, h, w, C)
    vectors = vectors - vectors.mean(dim=(0, 1, 2))
    flat = vectors.flatten(0, 2)  # (B·h·w, C)
    directions = torch.linalg.eigh(flat.T @ flat).eigenvectors[:, -3:].flip(1)
    signs = directions.gather(0, directions.abs().argmax(0, keepdim=True)).sign()
    shades = vectors @ (directions * signs)  # (B, h, w, 3)
    limits = torch.tensor([0.02, 0.98], dtype=torch.double)
    low, high = shades.flatten(0, 2).quantile(limits, dim=0)  # (3,) each
    return ((shades - low) / (high - low)).clamp(0, 1)


# %%
people = (validation["human_parts"] % 255 > 0).sum(dim=(1, 2))  # (36,)
kinds = [
    sum(int((label == c).sum()) > 40 for c in label.unique())
    for label in validation["semseg"]
]
chosen = int((torch.tensor(kinds) * (people > 80)).argmax())
# %%
image = to_rgb("image", denormalise(validation["image"][chosen]))
with torch.no_grad():
    maps = model.backbone(validation["image"])
    X = model.decoder.pyramid(maps)  # four scales, (B, C_i, h_i, w_i)


# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-12-scales", "caption": "One scene and the four scales of the encoder, three principal components as colours. Above, every token is drawn as large as every other: this is how much there is. Below, all are stretched to the size of the image: this is where it lies."}, "image": {"alt": "Two rows of five pictures: a room, and maps of 32, 16, 8 and 4 squares a side. In the upper row they shrink from left to right to the size of a stamp. In the lower row all are equally large: in the first all outlines of the room can be seen, in the second and third coloured areas for wall, floor and things, in the last only a few large squares."}}
def place(figure, picture, x, y, side):
    """A picture without axes, in inches from the lower left corner."""
    width, height = figure.get_size_inches()
    axis = figure.add_axes(
        (x / width, y / height, side / width, side / height), xticks=[], yticks=[]
    )
    axis.spines[:].set(color="0.8")
    axis.imshow(picture)
    return axis


figure = plt.figure(figsize=(7.5, 4.0), layout="none")
x, side = 0.1, 1.92
place(figure, image, x, 1.95, side)
for i, scale in enumerate(X):
    x += side + 0.28
    side = 0.06 * scale.shape[-1]
    shown = to_colours(scale)[chosen]
    axis = place(figure, shown, x, 1.95 + 1.92 - side, side)
    axis.set_xlabel(f"scale {i}\n{scale.shape[1]} × {scale.shape[2]}²", fontsize=8)
    axis = place(figure, shown, 0.1 + 1.49 * (i + 1), 0.1, 1.34)
_ = place(figure, image, 0.1, 0.1, 1.34)

# %% [markdown]
# ## What you will be able to do
#
# - say in five sentences what TIF {cite}`tif2024` is, and prove with a gradient what its tasks share;
# - make four scales of a plain ViT, and measure what each knows: *what* is there, and *where* it ends;
# - bring maps from one scale to another without losing pixels on the way, in the order that costs least;
# - build scale-attentive fusion from Eqs. 2 to 5, and account for every multiplication of it;
# - look into a trained fusion and say what it adds, what it lets pass, and which of its units never speak;
# - read from an ablation table what it claims, and what it cannot.
#
# *Before you start:* [chapter 3](../part1_foundations/03_one_encoder_many_heads.ipynb) for backbones, and least squares. *Time:* 50
# minutes of reading, a quarter of a minute of running. *Hardware:* two CPU cores, 4 GB of memory; no GPU, no download. The longer
# trainings are read from files.
#
# ## TIF in five sentences
#
# In Parts II and III the tasks shared experts. The Task-Interaction-Free network lets them share the encoder and nothing after it. What the
# encoder knows is first put together, once for all tasks: **SAFF**, the scale-attentive feature fusion of this chapter, enriches each of
# four scales with the three others. Then every task takes a copy through a convolution of its own. At the two low (coarse) scales **SFD**, self-feature
# distillation, lets the task's own tokens attend to each other ([chapter 13](13_self_feature_distillation.ipynb)), and **LTHD**, low-to-high
# diffusion, reuses at the two high (fine) scales what was found there about who belongs with whom, since attention would be too dear on so many tokens
# ([chapter 14](14_low_to_high_diffusion.ipynb)). A last convolution joins the task's four maps into the feature for its head ({numref}`fig-12-flow`).

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-12-flow", "caption": "TIF whole. What is drawn in blue exists once; everything in the stack of six sheets, one sheet for each task, sees its own task only. From scale to scale dotted lines carry affinities: how much each token wants of every other."}, "image": {"alt": "A flow diagram from left to right. A picture of a room enters the backbone, from which four squares of falling size come, the scales. Each scale leads to a box named SAFF, and thin lines lead to it from the three other scales too. From the four boxes arrows lead into a stack of six sheets with two boxes named LTHD for the scales 0 and 1 and two named SFD for the scales 2 and 3; dotted lines lead from SFD up to LTHD. All four lead to a box named fuse, and from there to six small pictures of labels. Below, brackets name chapters 12, 13 and 14."}}
from matplotlib.patches import FancyBboxPatch

blue, orange, green, red, sky, pink = plots.OKABE_ITO[:6]
figure = plt.figure(figsize=(7.5, 3.4), layout="none")
canvas = figure.add_axes((0, 0, 1, 1), xlim=(0, 7.5), ylim=(0, 3.4))
canvas.axis("off")


def box(x, y, text, colour, width=0.62, height=0.36, fill=0.25):
    corner = (x - width / 2, y - height / 2)
    style = {"boxstyle": "round,pad=0,rounding_size=.05", "ec": colour}
    canvas.add_patch(FancyBboxPatch(corner, width, height, fc="white", **style))
    canvas.add_patch(
        FancyBboxPatch(corner, width, height, fc=colour, alpha=fill, **style)
    )
    canvas.text(x, y, text, ha="center", va="center", fontsize=8.5)


def arrow(start, end, **line):
    line = {"arrowstyle": "->", "lw": 0.9, "shrinkA": 0, "shrinkB": 0} | line
    canvas.annotate("", end, start, arrowprops=line)


rows = (2.95, 2.3, 1.6, 0.95)
place(figure, image, 0.08, 1.5, 0.85)
box(1.42, 1.92, "back-\nbone", sky, 0.55, 1.0)
arrow((0.97, 1.92), (1.13, 1.92))
for sheet in reversed(range(6)):
    corner = (4.02 + 0.035 * sheet, 0.66 + 0.035 * sheet)
    canvas.add_patch(
        FancyBboxPatch(corner, 2.2, 2.5, fc="white", ec="0.6",
                       boxstyle="round,pad=0,rounding_size=.05")
    )  # fmt: skip
for i, y in enumerate(rows):
    side = (0.56, 0.4, 0.28, 0.2)[i]
    place(figure, to_colours(X[i])[chosen], 2.2 - side / 2, y - side / 2, side)
    arrow((1.71, 1.92 + 0.25 * (1.5 - i)), (2.2 - side / 2 - 0.03, y), lw=0.7)
    for j, other in enumerate(rows):
        thin = {"lw": 0.9} if i == j else {"lw": 0.45, "color": "0.5"}
        arrow((2.2 + (0.3, 0.22, 0.16, 0.12)[j], other), (2.97, y), **thin)
    box(3.3, y, "SAFF", blue)
    arrow((3.63, y), (4.5, y))
    box(4.85, y, ("LTHD", "LTHD", "SFD", "SFD")[i], (green, orange)[i > 1])
    arrow((5.18, y), (5.52, 1.95 + 0.2 * (1.5 - i)), lw=0.7)
    canvas.text(
        2.2, y - side / 2 - 0.1, f"$X^{i}$", fontsize=8, ha="center", va="center"
    )
    canvas.text(3.68, y + 0.06, rf"$\hat{{X}}^{i}$", fontsize=8)
for start, end in ((2, 1), (3, 1)):
    arrow((4.85 - 0.1 * (start == 3), rows[start] + 0.18 if start == 2 else rows[3] + 0.18),
          (4.85 - 0.1 * (start == 3), rows[end] - 0.18), linestyle=":", color="0.3")  # fmt: skip
arrow((5.0, rows[2] + 0.18), (5.0, rows[0] - 0.18), linestyle=":", color="0.3")
box(5.8, 1.95, "fuse", "0.5", 0.5, 0.9)
arrow((6.06, 1.95), (6.62, 1.95))
canvas.text(6.3, 0.53, "a sheet a task", fontsize=8, ha="right")
for row, task in enumerate(tasks):
    label = to_rgb(task.name, validation[task.name][chosen])
    place(figure, label, 6.72, 2.88 - 0.52 * row, 0.48)
for left, right, text in (
    (2.95, 3.62, "chapter 12"),
    (4.02, 6.4, "chapters 13 and 14"),
):
    canvas.plot((left, right), (0.34, 0.34), color="black", lw=0.8)
    canvas.text(
        (left + right) / 2, 0.16, text, ha="center", va="center", fontsize=8.5
    )

# %% [markdown]
# *Nothing after it* can be put to the test. If the feature of one task depends on the weights of another, a gradient will flow there. The
# library keeps the weights of all tasks in one tensor, task after task, so that we can ask for every parameter of the decoder whose
# rows the feature for depth reaches.

# %%
T, depth = len(tasks), tasks.names.index("depth")
feature = model.decoder(model.backbone(validation["image"][:2])).features["depth"]
feature.square().sum().backward()
reached = {"shared": [], "own": []}
for name, parameter in model.decoder.named_parameters():
    if name.startswith(("pyramid", "fusions")):
        reached["shared"].append(bool(parameter.grad.abs().sum() > 0))
    else:
        rows = parameter.grad.unflatten(0, (T, -1)).flatten(1)  # (T, …)
        reached["own"].append(rows.abs().amax(dim=1).nonzero().flatten().tolist())

# %%
assert all(rows in ([depth], []) for rows in reached["own"])
print("of its own task only:", all(rows == [depth] for rows in reached["own"]))
print(
    f"shared parameters reached: {sum(reached['shared'])} of {len(reached['shared'])}"
)
model.zero_grad()

# %% [markdown]
# So behind SAFF the tasks are strangers. Before it they are not: the backbone and the fusion get the gradients of all of them, and whatever one
# task teaches these weights, the others find there. The paper says so itself. It calls SAFF a way to process task interaction
# implicitly, inside the encoder. *Free of interaction* is what the decoders are; the interaction has moved, not gone.
#
# ## Four scales from one encoder
#
# Eq. 1 of the paper wants four maps,
#
# ```{math}
# :label: eq-12-scales
# \mathbf{X}^0, \mathbf{X}^1, \mathbf{X}^2, \mathbf{X}^3 = \operatorname{FEX}(\mathbf{I}), \qquad
# \mathbf{X}^i \in \mathbb{R}^{C_i \times H/2^{i+2} \times W/2^{i+2}},
# ```
#
# of strides 4, 8, 16 and 32. Note the words: in this paper scale 0 is *high* and scale 3 is *low*, by resolution. Swin {cite}`liu2021swin` and HRNet
# {cite}`wang2020hrnet` hand out such maps as they are. A plain ViT does not: all its maps have one size. The paper uses
# one (ViT-B) and does not say how. The usual answer is the **simple feature pyramid** of detectors on plain ViTs {cite}`li2022plain`: enlarge the
# early maps by transposed convolutions, shrink the last by pooling.
#
# In `vit_nano` the stem's map is twice as fine as any pyramid needs, and serves as scale 0. At 64 × 64 pixels the four scales then have 32, 16, 8 and 4 tokens a
# side, that is strides of 2 to 16. A transposed convolution of 2 × 2 with stride 2 is nothing but four linear maps: each token becomes
# four, one for each corner.

# %%
enlarge = model.decoder.pyramid.steps[1][0]
W, b = enlarge.weight, enlarge.bias  # (C, D, 2, 2), (D,)
corners = torch.einsum("bchw,cdij->bdhiwj", maps[1], W)  # (B, D, 8, 2, 8, 2)
doubled = corners.flatten(4).flatten(2, 3) + b[:, None, None]  # (B, D, 16, 16)
ours = [maps[0], doubled, maps[2], F.max_pool2d(maps[3], 2)]  # the third as it is
for mine, theirs in zip(ours, X, strict=True):
    torch.testing.assert_close(mine, theirs)
print([tuple(scale.shape[1:]) for scale in X])

# %% [markdown]
# In {numref}`fig-12-scales` scale 1 looks like a chequered cloth. Nothing makes the four linear maps agree with each other, so that the
# four corners of a token differ by more than it differs from its neighbours. Scale 1 is finer than scale 2, but it is made of 8 × 8
# tokens too, one block earlier, and can know no more than these do. In Swin or HRNet it would.
#
# One may believe to see what each scale is good for. Let us measure it.
#
# ### What and where
#
# A **linear probe** {cite}`alain2016understanding` asks what can be read from a map with the simplest of readers: one linear map, the same at every token. Put the tokens of many
# images into the rows of a matrix $\mathbf{A}$ (with a 1 at the end of each, for the bias), and what we want to know there into those of $\mathbf{B}$. The best
# reader in the sense of least squares, with a little penalty $\lambda$ on large weights, is known in closed form. It is called ridge regression:
#
# ```{math}
# :label: eq-12-ridge
# \mathbf{V} = \arg\min_{\mathbf{V}} \lVert \mathbf{A}\mathbf{V} - \mathbf{B} \rVert^2 + \lambda \lVert \mathbf{V} \rVert^2
# = (\mathbf{A}^\top \mathbf{A} + \lambda \mathbf{1})^{-1} \mathbf{A}^\top \mathbf{B} .
# ```


# %%
def ridge(A, B, penalty=1e-3):
    square = A.T @ A + penalty * torch.eye(A.shape[1], dtype=A.dtype)
    return torch.linalg.solve(square, A.T @ B)


# %% [markdown]
# We want to know two things about each of the 32 × 32 tokens of scale 0: *what* it shows (the share of each class of the segmentation in its four
# pixels), and *where* things end (does a boundary cross it?). Coarser maps are enlarged bilinearly first, because that is how TIF itself
# will read them.

# %%
from mlore_edu.decoders.pyramid import align

CLASSES = tasks["semseg"].channels


def as_rows(*maps):
    fine = torch.cat([align(m, (32, 32)) for m in maps], dim=1)  # (B, C, 32, 32)
    rows = fine.detach().movedim(1, -1).flatten(0, 2).double()  # (B·32·32, C)
    return F.pad(rows, (0, 1), value=1.0)  # (B·32·32, C + 1)


# %%
def wanted(batch):
    labels = batch["semseg"].clamp(max=CLASSES)  # what is ignored gets a class too
    classes = F.one_hot(labels, CLASSES + 1)[
        ..., :CLASSES
    ].double()  # (B, 64, 64, 15)
    what = F.avg_pool2d(classes.movedim(-1, 1), 2)  # (B, 15, 32, 32)
    edges = (batch["edge"].reshape(-1, 1, 64, 64) == 1).double()
    where = F.max_pool2d(edges, 2)  # (B, 1, 32, 32)
    return torch.cat([what, where], dim=1).movedim(1, -1).flatten(0, 2)


# %% [markdown]
# The scores are the mean IoU of the classes, and for boundaries the **average precision**: go through all tokens from the likeliest boundary to the
# unlikeliest, and take at each true one the share of true ones so far. One who guesses gets the share of boundary tokens.


# %%
def scores(read, truth):
    said, is_so = read[:, :CLASSES].argmax(1), truth[:, :CLASSES].argmax(1)
    ious = [
        ((said == c) & (is_so == c)).sum() / ((said == c) | (is_so == c)).sum()
        for c in is_so.unique()
    ]
    order = read[:, CLASSES].argsort(descending=True, stable=True)
    hits = truth[order, CLASSES]
    precision = hits.cumsum(0) / torch.arange(1, len(hits) + 1)
    return 100 * mean(i.item() for i in ious), 100 * (precision @ hits / hits.sum())


# %%
with torch.no_grad():
    X_training = model.decoder.pyramid(model.backbone(training["image"]))
B, truth = wanted(training), wanted(validation)
choices = {f"scale {i}": [i] for i in range(4)} | {"all four": [0, 1, 2, 3]}
read = {}
for name, which in choices.items():
    A = as_rows(*(X_training[i] for i in which))
    V = ridge(A, B)  # (C + 1, 16)
    torch.testing.assert_close(A.T @ (B - A @ V), 1e-3 * V, rtol=0, atol=1e-4)
    read[name] = as_rows(*(X[i] for i in which)) @ V  # (36·32·32, 16)

# %% [markdown]
# (The check is the derivative of {eq}`eq-12-ridge`, which must vanish at the minimum.)

# %%
found = {name: scores(its, truth) for name, its in read.items()}
print(f"{'':10}  what: IoU   where: AP")
for name, (what, where) in found.items():
    print(f"{name:10}{what:8.0f} %{where:10.0f} %")
print(f"guessing boundaries: {100 * truth[:, CLASSES].mean():.0f} %")

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-12-probe", "caption": "What one linear map reads from each scale on a scene that it was not fitted to. Above: the class with the largest reading. Below: the reading for boundaries, dark where it is high."}, "image": {"alt": "Two rows of six pictures: the label, then readings from scales 0 to 3, and from all four. Upper row: from scale 0 the classes are crisp and speckled, from scales 1 and 2 whole areas with rounder borders, from scale 3 a few large patches; from all four crisp and mostly right. Lower row: from scale 0 sharp lines, from the others ever wider and paler bands, from all four sharp lines with fewer false ones."}}
figure, axes = plt.subplots(2, 6, figsize=(7.5, 2.9))
shown = {"label": truth} | read
for (name, its), column in zip(shown.items(), axes.T):
    its = its.unflatten(0, (-1, 32, 32))[chosen]  # (32, 32, 16)
    column[0].imshow(to_rgb("semseg", its[..., :CLASSES].argmax(-1)))
    column[1].imshow(its[..., CLASSES], cmap="Greys", vmin=0, vmax=0.8)
    column[0].set_title(name)
for axis, text in zip(axes[:, 0], ("what", "where")):
    axis.set_ylabel(text)
for axis in axes.flat:
    axis.set(xticks=[], yticks=[])
    axis.spines[:].set(color="0.8")

# %% [markdown]
# In {numref}`fig-12-probe` *where* falls from scale to scale, as it must. *What* does not simply rise: it is best in
# the middle, if by little, since a class that is right but smeared over a large square is wrong at its rim. But no
# scale by itself comes near what all four say together. This is the case for fusing them, and it needs no trained
# decoder to be made.

# %%
best_what, best_where = (
    max(found[f"scale {i}"][k] for i in range(4)) for k in (0, 1)
)
assert found["all four"][0] > best_what + 2
assert found["all four"][1] > best_where + 1
assert found["scale 0"][1] > found["scale 1"][1] > found["scale 3"][1]

# %% [markdown]
# ## Alignment
#
# To enrich scale $i$, the three others are brought to its size, laid on top of each other, and narrowed to its width (Eq. 2):
#
# ```{math}
# :label: eq-12-align
# \mathbf{Y}^i = \mathbf{W}_i \, \operatorname{cat}\big\{ \mathcal{P}_{h_i \times w_i}(\mathbf{X}^j) \big\}_{j \neq i} .
# ```
#
# Feature pyramid networks {cite}`lin2017feature` hand what the coarse maps know down to the finer ones, a step at a time, and HRNet's branches exchange
# what they have while they compute. SAFF does it once, at the end, from every scale to every other.
#
# $\mathcal{P}$ is said to change the scale, and no more. Here a smaller map is *enlarged bilinearly* and a larger one *reduced by
# averaging*: `align` in `mlore_edu/decoders/pyramid.py`. Four scales at four sizes make sixteen maps ({numref}`fig-12-align`).

# %%
aligned = [[align(source, target.shape[-2:]) for source in X] for target in X]
for i, row in enumerate(aligned):
    sizes = {tuple(m.shape[-2:]) for m in row}
    print(f"row {i}: all {sizes.pop()}, channels {[m.shape[1] for m in row]}")

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-12-align", "caption": "Every scale at the size of every other. A column shows one source; a row, what is laid side by side for one target. The framed map on the diagonal is the target's own, which takes another way."}, "image": {"alt": "Four rows of four coloured pictures of one room, all drawn equally large. The rows become coarser from top to bottom: 32, 16, 8 and 4 squares a side. In the first column the fine map becomes a mosaic of averages; in the last the coarsest map becomes soft clouds of colour when enlarged. The pictures on the diagonal have a frame."}}
figure, axes = plt.subplots(4, 4, figsize=(6.2, 6.4))
for j in range(4):  # a source has its colours in all rows
    rows = X[j].movedim(1, -1).flatten(0, 2)  # (B·h·w, C)
    middle = rows.mean(dim=0)
    basis = torch.linalg.eigh((rows - middle).T @ (rows - middle)).eigenvectors
    shades = (rows - middle) @ basis[:, -3:]
    low, high = shades.quantile(torch.tensor([0.02, 0.98]), dim=0)
    for i in range(4):
        colours = (aligned[i][j][chosen].movedim(0, -1) - middle) @ basis[:, -3:]
        axis = axes[i, j]
        axis.imshow(((colours - low) / (high - low)).clamp(0, 1))
        axis.set(xticks=[], yticks=[])
        frame = {"lw": 3, "color": "black"} if i == j else {"color": "0.8"}
        axis.spines[:].set(visible=True, **frame)
    axes[0, j].set_title(f"from scale {j}")
    axes[j, 0].set_ylabel(f"to scale {j}\n{X[j].shape[2]} × {X[j].shape[3]}")

# %% [markdown]
# ### Why reduce by averaging?
#
# Bilinear interpolation could do both directions, and in much code it does. But it reads the nearest two pixels in each
# direction, however far it goes. Going to an eighth it steps over the other six. The derivative of a token with respect to
# the pixels shows which of them it reads:


# %%
def bilinear(maps, size):
    return F.interpolate(maps, size=size, mode="bilinear")


def weights_of(reduce, side):
    pixels = torch.zeros(1, 1, 32, 32, requires_grad=True)
    tokens = reduce(pixels, (side, side))  # (1, 1, side, side)
    return torch.autograd.grad(tokens.sum(), pixels)[0][0, 0]  # (32, 32)


# %%
for side in (16, 8, 4):
    shares = [(weights_of(f, side) > 0).float().mean() for f in (align, bilinear)]
    print(f"32 → {side:2}: averaging reads {100 * shares[0]:.0f} %"
          f" of the pixels, bilinear {100 * shares[1]:.0f} %")  # fmt: skip

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-12-reduce", "caption": "Reducing 32 × 32 to 4 × 4. Left and middle: the weight of every pixel in its token, by averaging and by bilinear reading. Right: how much the aligned maps of scale 0 change when the picture moves by one pixel of that scale, relative to their own variation."}, "image": {"alt": "Three panels. The first is evenly grey. The second is white with sixteen small black squares of two by two pixels. The third is a bar chart with a pair of bars each for reducing to 16, 8 and 4 tokens a side: the two are equal at 16, and at 8 and 4 the bar of bilinear reading is clearly the higher one."}}
figure, axes = plt.subplots(1, 3, figsize=(7.5, 2.5), width_ratios=(1, 1, 1.5))
for axis, reduce, title in zip(axes, (align, bilinear), ("averaging", "bilinear")):
    axis.imshow(weights_of(reduce, 4), cmap="Greys", vmin=0, vmax=0.1)
    axis.set(title=title, xticks=[], yticks=[])
    axis.spines[:].set(visible=True, color="0.8")


def change(reduce, side):
    """Relative change of the reduced map when everything moves by one pixel."""
    before, after = (reduce(m, (side, side)) for m in (X[0], X[0].roll(1, dims=3)))
    inner = (slice(None), slice(None), slice(None), slice(1, None))
    return ((after - before)[inner].std() / before[inner].std()).item()


changes = {
    f.__name__: [change(f, side) for side in (16, 8, 4)] for f in (align, bilinear)
}
for offset, (name, values) in zip((-0.2, 0.2), changes.items()):
    label = {"align": "averaging"}.get(name, name)
    axes[2].bar([x + offset for x in range(3)], values, 0.38, label=label)
axes[2].set(xticks=range(3), xlabel="tokens a side", ylabel="change")
axes[2].set_xticklabels((16, 8, 4))
_ = axes[2].legend(fontsize=8, loc="lower left", bbox_to_anchor=(0, 1), ncols=2)

# %% [markdown]
# A thin line that runs between the reading points of {numref}`fig-12-reduce` is not there; move it by a pixel, and it is. By averaging, everything counts, and
# equally. At *one half* the two are the same, since a reading between two pixels is their average, and halving
# three times in a row by bilinear interpolation would be averaging as well. Only a long step loses pixels.

# %%
torch.testing.assert_close(align(X[0], (16, 16)), bilinear(X[0], (16, 16)))
# %%
steps = bilinear(bilinear(bilinear(X[0], (16, 16)), (8, 8)), (4, 4))
torch.testing.assert_close(align(X[0], (4, 4)), steps, rtol=1e-4, atol=1e-5)
# %%
spotted = X[0].clone()
spotted[..., ::8, ::8] += 100  # one pixel of every 64
assert torch.equal(bilinear(spotted, (4, 4)), bilinear(X[0], (4, 4)))
print(
    "a hundred added to one pixel of each block, and bilinear reading sees nothing"
)

# %% [markdown]
# ### The order that costs less
#
# Resizing mixes places and leaves the channels alone; a 1 × 1 convolution mixes channels and leaves the places alone. Two linear maps that act on
# different axes can change their order. Even the bias may stay, because the weights of every resized token add up to 1.

# %%
W, b = torch.randn(12, 32, 1, 1), torch.randn(12)
for size in ((4, 4), (16, 16), (64, 64)):
    first = align(F.conv2d(X[0], W, b), size)
    last = F.conv2d(align(X[0], size), W, b)  # (B, 12, *size)
    torch.testing.assert_close(first, last, rtol=1e-3, atol=1e-4)

# %% [markdown]
# The result is the same, the price is not. As printed, $\mathbf{W}_i$ works at the size of the target, on $n_i = h_i w_i$ tokens, for
# every source. But each source has its own columns of $\mathbf{W}_i$, and may be projected at its own size, on $n_j$ tokens. So the cheapest way is
# to project each where there are fewer tokens: *before* enlarging a coarser map, *after* reducing a finer one.
#
# ```{math}
# :label: eq-12-cost
# \text{as printed: } \; C \sum_{j \neq i} n_i\, C_j, \qquad \text{at least: } \; C \sum_{j \neq i} \min(n_i, n_j)\, C_j .
# ```
#
# At the paper's size, Swin-T and images of 448 × 576:

# %%
with torch.device("meta"):
    swin = me.build_model("tif_swin_tiny", me.NYUD_V2, (448, 576))
cost = me.count(swin, (448, 576))
shapes = swin.decoder.pyramid.shapes
n = [shape.height * shape.width for shape in shapes]
widths = [fusion.mix.out_channels for fusion in swin.decoder.fusions]


# %%
ways = {
    "as printed": lambda i, j: n[i],
    "all before aligning": lambda i, j: n[j],
    "cheapest": lambda i, j: min(n[i], n[j]),
}


# %%
def macs(i, way):
    others = [j for j in range(4) if j != i]
    return widths[i] * sum(way(i, j) * shapes[j].channels for j in others)


# %%
print("10⁶ MACs of W_i ", *(f"{name:>20}" for name in ways))
for i in range(4):
    print(
        f"scale {i}         ",
        *(f"{macs(i, way) / 1e6:20.0f}" for way in ways.values()),
    )
    assert (
        macs(i, ways["as printed"])
        == cost.by_module[f"decoder.fusions.{i}.gather"].macs
    )

# %%
printed, _, least = (sum(macs(i, way) for i in range(4)) for way in ways.values())
saff = sum(cost.by_module[f"decoder.fusions.{i}"].macs for i in range(4))
for name, whole in (("SAFF", saff), ("TIF", cost.macs)):
    print(f"saved: {100 * (printed - least) / whole:.0f} % of {name}")

# %% [markdown]
# Projecting everything first is a bad rule: at the low scales it would cost more than what is printed. Projecting where it is cheaper saves
# a good part of SAFF, and as much memory: the concatenated maps, some thirteen hundred channels at the finest scale, need never exist. But it is a few percent
# of the network, and this book counts operations to compare them with the paper's. The library therefore computes what is printed, and the
# cheap order is left to you ({numref}`ex-12-first`).
#
# ## Scale-enhanced fusion
#
# Now the target's own map. It is narrowed to the width $C$ by a 1 × 1 convolution and a BatchNorm and is then called $\mathbf{XL}^i$. Together with
# $\mathbf{Y}^i$ it goes through Eqs. 3 to 5:
#
# ```{math}
# :label: eq-12-fusion
# \begin{aligned}
# \mathbf{SFX}^i &= \operatorname{SFF}(\mathbf{XL}^i, \mathbf{Y}^i) + \mathbf{XL}^i, \\
# \mathbf{SP}^i &= \operatorname{ReLU}\big(f_{\text{group}}(\mathbf{SFX}^i)\big), \\
# \hat{\mathbf{X}}^i &= f_{1 \times 1}(\mathbf{SP}^i) .
# \end{aligned}
# ```
#
# SFF is two convolutions with a ReLU. $f_{\text{group}}$ is a 3 × 3 convolution with one group a channel (*depthwise*): each channel is
# filtered by itself. We write it down with the weights of the library's module, for random maps in double precision.

# %%
from mlore_edu.decoders.base import MapShape
from mlore_edu.decoders.tif import ScaleAttentiveFusion

# %%
torch.manual_seed(0)
sizes = [
    MapShape(6, 16, 24),
    MapShape(8, 8, 12),
    MapShape(8, 4, 6),
    MapShape(10, 2, 3),
]
module = [
    ScaleAttentiveFusion(sizes, i, channels=5).double().eval() for i in range(4)
]
Z = [
    torch.randn(2, *size, dtype=torch.float64) for size in sizes
]  # (B, C_i, h_i, w_i)


# %%
def conv(maps, layer):
    k = layer.kernel_size[0]
    options = {"padding": k // 2, "groups": layer.groups}
    return F.conv2d(maps, layer.weight, layer.bias, **options)


# %%
def fused(i, scales, its):
    others = [align(scales[j], scales[i].shape[-2:]) for j in range(4) if j != i]
    Y = conv(torch.cat(others, dim=1), its.gather)  # (B, C, h_i, w_i), Eq. 2
    XL = its.reduce[1](conv(scales[i], its.reduce[0]))  # (B, C, h_i, w_i)
    hidden = conv(torch.cat([XL, Y], dim=1), its.fuse[0]).relu()  # 2C → C channels
    SFX = conv(hidden, its.fuse[2]) + XL  # (B, C, h_i, w_i), Eq. 3
    SP = conv(SFX, its.spatial).relu()  # Eq. 4
    return conv(SP, its.mix)  # Eq. 5


# %%
for i, its in enumerate(module):
    torch.testing.assert_close(fused(i, Z, its), its(Z), rtol=1e-12, atol=1e-12)
    print(f"scale {i}: {sizes[i].channels} channels become {its(Z).shape[1]}")

# %% [markdown]
# Every scale is fused from the *original* four, not from what the others have become, so the four modules can run side by side. No weight is shared between
# them.
#
# ### A Transformer block without attention
#
# The authors say that the Transformer block inspired them. Such a block first mixes positions and then channels; which mixer it has for
# positions seems to matter less than that it has one {cite}`yu2022metaformer`. Beside each other:
#
# | | Transformer block | scale-enhanced fusion |
# |---|---|---|
# | comes in | $\mathbf{Z}$ | $\mathbf{XL}^i$ and $\mathbf{Y}^i$, joined by SFF |
# | positions are mixed by | attention: every token with all, by weights from their content | a depthwise 3 × 3 convolution: nine neighbours, by fixed weights |
# | channels are mixed by | two linear layers with a GELU, at each token | one linear layer, at each token (the 1 × 1 convolution) |
# | non-linearity between the mixers | none | ReLU |
# | residual | around each mixer | around SFF only |
# | normalisation | LayerNorm before each mixer | BatchNorm in $\mathbf{XL}^i$ only |
#
# A depthwise and then a 1 × 1 convolution are known as *depthwise separable* {cite}`howard2017mobilenets`: $9C + C^2$
# products a token instead of the $9C^2$ of a full 3 × 3 convolution. With $C$ near a hundred that is little more than a
# ninth. And yet it saves little here, for right before it stand two full convolutions with $18C^2$ and $9C^2$.

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-12-cost", "caption": "What SAFF holds and what it costs, with Swin-T at 448 × 576, scale by scale and part by part."}, "image": {"alt": "Two panels with four horizontal stacked bars each. Left, parameters: the four bars are nearly equally long. Right, multiply-accumulates: the bar of scale 0 is four times as long as that of scale 1, and the last two can hardly be seen. In all bars SFF is the largest part, and alignment the second."}}
parts = {
    "narrow (XL)": ("reduce",),
    "align (Y)": ("gather",),
    "SFF": ("fuse",),
    "depthwise, 1 × 1": ("spatial", "mix"),
}
figure, axes = plt.subplots(1, 2, figsize=(7.5, 2.3), sharey=True)
for axis, kind, unit in zip(axes, ("parameters", "macs"), (1e6, 1e9)):
    left = np.zeros(4)
    for (name, its), colour in zip(parts.items(), ("0.7", sky, blue, orange)):
        value = np.array([
            sum(getattr(cost.by_module[f"decoder.fusions.{i}.{p}"], kind) for p in its)
            for i in range(4)
        ]) / unit  # fmt: skip
        axis.barh(range(4), value, left=left, color=colour, label=name)
        left += value
axes[0].set(xlabel="parameters (M)", yticks=range(4), ylim=(3.6, -0.6))
axes[0].set_yticklabels([f"scale {i}" for i in range(4)])
axes[1].set_xlabel("multiply-accumulates (10⁹)")
_ = figure.legend(
    *axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=4
)

# %%
fusions = {name: c.macs for name, c in cost.by_module.items() if "fusions." in name}
pair = sum(m for name, m in fusions.items() if name.endswith(("spatial", "mix")))
sff = sum(m for name, m in fusions.items() if name.endswith("fuse"))
total = cost.by_module["decoder.fusions"].macs
print(
    f"SFF {100 * sff / total:.0f} %, the separable pair {100 * pair / total:.0f} %"
)
print(f"SAFF is {100 * total / cost.macs:.0f} % of TIF's operations,")
print(f"and scale 0 is {100 * fusions['decoder.fusions.0'] / total:.0f} % of SAFF")

# %% [markdown]
# ## What the fused map adds
#
# Four ways to look at a trained fusion: its pictures, how far a token sees, what can be read from it, and what the tasks lose without it.
#
# Choose a scene and compare what goes into the fusion with what comes out. $\mathbf{XL}^i$ is the target's own map, $\mathbf{Y}^i$ what
# the three others have to say at its size, and $\hat{\mathbf{X}}^i$ the fused map.

# %%
fusion = model.decoder.fusions
with torch.no_grad():
    steps = {
        "XL, its own": [its.reduce(X[i]) for i, its in enumerate(fusion)],
        "Y, the others": [its.aligned(X) for its in fusion],
        "fused": [its(X) for its in fusion],
    }
coloured = {name: [to_colours(m) for m in its] for name, its in steps.items()}


# %%
def draw_fusion(scene):
    _, axes = plt.subplots(3, 5, figsize=(7.5, 4.5))
    for axis, name in zip(axes[:, 0], ("image", "semseg", "edge")):
        picture = validation[name][scene]
        picture = denormalise(picture) if name == "image" else picture
        axis.imshow(to_rgb(name, picture))
    for (name, its), row in zip(coloured.items(), axes):
        row[1].set_ylabel(name)
        for i, axis in enumerate(row[1:]):
            axis.imshow(its[i][scene])
    for i, axis in enumerate(axes[0, 1:]):
        axis.set_title(f"scale {i}")
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set(color="0.8")


# %% tags=["nbval-ignore-output"]
import ipywidgets

_ = ipywidgets.interact(
    lambda scene: (draw_fusion(scene), plt.show())[1],
    scene=ipywidgets.IntSlider(chosen, 0, len(people) - 1),
)

# %% mystnb={"figure": {"name": "fig-12-fused", "caption": "The explorer's view of the scene of this chapter: each scale before the fusion, what the others bring, and after it. Three principal components as colours, one set of colours for each map."}, "image": {"alt": "A column with a room, its segmentation and its boundaries; beside it three rows of four coloured maps of 32, 16, 8 and 4 squares a side. In the map of scale 0 outlines stand out after the fusion more than before it; in the second row the colours of scale 0 are softer, since they come from coarser maps."}}
draw_fusion(chosen)

# %% [markdown]
# ### How far does a token see?
#
# A token of the stem's map has met two 3 × 3 convolutions, and depends on 7 × 7 pixels of the image. The other scales come after attention, and depend on all of
# it. What the fused token depends on, and how much, shows in the gradient with respect to the pixels, averaged over scenes (its *effective* receptive field
# {cite}`luo2016understanding`).


# %%
def field_of(feature_maps, images):
    images = images.clone().requires_grad_()
    with torch.enable_grad():
        maps = feature_maps(model.decoder.pyramid(model.backbone(images)))
        middle = maps[..., maps.shape[2] // 2, maps.shape[3] // 2]  # (B, C)
        torch.manual_seed(0)
        (some_direction,) = torch.randn(1, middle.shape[1])
        total = (middle @ some_direction).sum()
        gradient = torch.autograd.grad(total, images)[0]  # (B, 3, 64, 64)
    return gradient.abs().sum(dim=1).mean(dim=0)  # (64, 64)


# %%
sample = validation["image"][:12]
before = [
    field_of(lambda s, its=its: its.reduce(s[its.scale]), sample) for its in fusion
]
after = [field_of(its, sample) for its in fusion]

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-12-field", "caption": "How much the token in the middle of each scale depends on every pixel, before and after the fusion: mean absolute gradient over twelve scenes, logarithmic, white for a thousandth of the largest and less."}, "image": {"alt": "Two rows of four square maps. Upper row, before: at scale 0 a single dot of seven by seven pixels in the middle; at scales 1 to 3 a dark centre of growing size with a pale mottle over the whole square. Lower row, after: at scale 0 the dot is wider, with next to nothing around it; at scale 1 the centre is wider; at scales 2 and 3 the dark has spread, at the last over most of the square."}}
figure, axes = plt.subplots(2, 4, figsize=(7.5, 4.0))
for row, fields, title in zip(axes, (before, after), ("before", "after")):
    row[0].set_ylabel(title)
    for axis, field in zip(row, fields):
        shade = (field / field.max()).clamp(min=1e-3).log10()
        axis.imshow(shade, cmap="Purples", vmin=-3, vmax=0)
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set(visible=True, color="0.8")
for i, axis in enumerate(axes[0]):
    axis.set_title(f"scale {i}")

# %% [markdown]
# At scale 0 of {numref}`fig-12-field` the fused token went through three more 3 × 3 convolutions than the narrowed one. By itself that widens 7 × 7 pixels to 19 × 19. Whatever is
# further away can only have come from another scale:

# %%
reach = (abs(torch.arange(64) - 32) <= 9).float()  # 19 pixels around the middle
near = reach[:, None] * reach  # (64, 64)
for name, (field, *_) in (("before", before), ("after", after)):
    beyond = (field * (1 - near)).sum() / field.sum()
    seen = int((field > 0).sum())
    print(f"{name:6} scale 0 depends on {seen:4} pixels,"
          f" {beyond:.0%} of it beyond 19 × 19")  # fmt: skip


# %% [markdown]
# From 49 pixels to all of them: the fused token *can* see the whole image. But by far the most that it depends on is what its own scale could have
# told it. It is time to ask for amounts.
#
# ### What can be read from it?
#
# The probes of above, now fitted to 200 scenes and tried on 100, for three networks with SAFF (*W/4 SAFF*) and three without, whose
# maps end at $\mathbf{XL}^i$. The two maps have equal widths, so that the comparison is fair.

# %%
record = json.loads(Path("../results/tif_fusion.json").read_text())
with_saff, without = (
    [run for run in record["runs"] if run["row"] == row]
    for row in ("W/4 SAFF", "W/O SAFF")
)
print(f"{len(with_saff)} networks with SAFF, {len(without)} without")


# %%
def readings(runs, kind, place, score):
    """Of every run; place 0 to 3 is a scale, 4 all of them side by side."""
    return [run["readings"][kind][place][score] for run in runs]


kinds_of_map = {
    "XL, before": (with_saff, "XL", "o", sky),
    "XL and Y side by side": (with_saff, "XL, Y", "^", orange),
    "fused": (with_saff, "fused", "s", blue),
    "XL of a network without SAFF": (without, "XL", "D", "0.6"),
}

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-12-readings", "caption": "What a linear map reads, from each scale and from all four side by side: a mark for every trained network. Left, the classes; right, the boundaries."}, "image": {"alt": "Two panels with five groups of marks, for the scales 0 to 3 and all four. Left, what: the triangles, XL and Y side by side, are highest in every group; fused squares lie among or below the circles of XL at single scales, and above them for all four, where the grey diamonds are as high. Right, where: scale 0 and all four are far above the others; there the squares are spread, one of them highest."}}
figure, axes = plt.subplots(1, 2, figsize=(7.5, 3.0))
titles = {"semseg": "what: mean IoU (%)", "edge": "where: average precision (%)"}
for axis, (score, title) in zip(axes, titles.items()):
    for k, (name, (runs, kind, mark, colour)) in enumerate(kinds_of_map.items()):
        for place_ in range(5):
            values = readings(runs, kind, place_, score)
            x = [place_ + 0.16 * (k - 1.5)] * len(values)
            label = name if place_ == 0 else None
            axis.plot(x, values, mark, ms=5, color=colour, alpha=0.8, label=label)
    axis.set(title=title, xticks=range(5))
    axis.set_xticklabels(
        [*(f"scale {i}" for i in range(4)), "all four"], fontsize=8
    )
_ = figure.legend(
    *axes[0].get_legend_handles_labels(),
    loc="outside upper center",
    ncols=4,
    fontsize=8,
)


# %%
def step(before, after, place, score):
    """Mean difference of two kinds of map, and its range over the networks."""
    pairs = zip(
        *(readings(with_saff, kind, place, score) for kind in (before, after))
    )
    changes = [b - a for a, b in pairs]
    return f"{mean(changes):+5.1f} ({min(changes):+.1f} to {max(changes):+.1f})"


# %%
for score, place_ in (("edge", 0), ("semseg", 0), ("semseg", 3), ("semseg", 4)):
    where = f"scale {place_}" if place_ < 4 else "all four"
    print(f"{score:7}{where:9}", "XL → Y beside it", step("XL", "XL, Y", place_, score),
          " XL → fused", step("XL", "fused", place_, score))  # fmt: skip

# %% [markdown]
# There is something to be gained ({numref}`fig-12-readings`): where $\mathbf{Y}^i$ stands *beside* the scale's own map, the classes are read better at every
# scale, because the others know what this one does not. (The two together are twice as wide, so this is what there is, and not what one map
# could keep.) After the fusion no single scale keeps more than a part of that gain. The four fused maps together do hold about two points more than the four they came
# from, in each of the networks. But a network that never had SAFF has as much in its own four:

# %%
for name in ("fused", "XL of a network without SAFF"):
    runs, kind, _, _ = kinds_of_map[name]
    what, where = (readings(runs, kind, 4, score) for score in ("semseg", "edge"))
    print(f"{name:30} all four: what {mean(what):.0f} %, where {mean(where):.0f} %")

# %% [markdown]
# And the boundaries, which stand out so well in the fused map of {numref}`fig-12-fused`? Network by network, where the scales meet (SFX, Eq. 3) and
# behind the filter of nine neighbours that follows within the scale (Eqs. 4 and 5):

# %%
print("boundaries at scale 0, by network")
for kind in ("XL", "SFX", "fused"):
    values = readings(with_saff, kind, 0, "edge")
    print(f"{kind:6}", *(f"{value:5.0f} %" for value in values))

# %% [markdown]
# The jump belongs to the network of the picture and to no other, and most of it happens in the filter, which sees one scale only. A picture shows one
# network, and one network is an anecdote.
#
# ### What do the tasks lose without it?
#
# A probe sees only what can be read linearly. The network itself is the better judge. We replace $\mathbf{Y}^i$ by its mean over all scenes and places, so that nothing can be
# learned from it any more, and see by how much each task's loss grows; and do the same with $\mathbf{XL}^i$.


# %%
def growth(part, runs=with_saff):
    """Loss over the loss with nothing replaced: (networks, T, 5)."""
    ratios = []
    for run in runs:
        whole, silenced = run["losses"]["nothing"][0], run["losses"][part]
        ratios.append(
            [[its[n] / whole[n] for its in silenced] for n in tasks.names]
        )
    return np.array(ratios)


# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-12-silenced", "caption": "The loss of every task, as a multiple of what it is, when one scale's map is replaced by its mean: left what the other scales bring to it, right its own. Mean over the networks with SAFF."}, "image": {"alt": "Two tables of six tasks by five columns, scale 0 to 3 and all. In the left one the numbers are 1.00 or next to it at the scales 0 to 2, and up to 1.2 at scale 3 and for all. In the right one they are large: many times the loss at scale 0 and for all, between 1 and 3 at the other scales."}}
places = (*(f"scale {i}" for i in range(4)), "all")


def task_table(axis, values, title):
    axis.imshow(np.log2(values), cmap="Blues", aspect="auto", vmin=0, vmax=5)
    axis.set_xticks(range(5), places, fontsize=8)
    axis.set_yticks(range(T), [task.title for task in tasks], fontsize=8)
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
    for (y, x), value in np.ndenumerate(values):
        digits = 2 if value < 1.95 else 1 if value < 9.95 else 0
        colour = "white" if value > 8 else "black"
        axis.text(
            x,
            y,
            f"{value:.{digits}f}",
            ha="center",
            va="center",
            fontsize=8,
            color=colour,
        )
    axis.set_title(title)


figure, axes = plt.subplots(1, 2, figsize=(7.5, 2.3), sharey=True)
task_table(axes[0], growth("Y").mean(axis=0), "without the others (Y)")
task_table(axes[1], growth("XL").mean(axis=0), "without its own (XL)")

# %%
print("largest growth of a loss without Y, by network")
for i, place_ in enumerate(places):
    most = 100 * (growth("Y")[:, :, i].max(axis=1) - 1)  # (networks,)
    print(f"{place_:8}", *(f"{value:4.0f} %" for value in most))
# %%
losses = [
    list(run["losses"]["nothing"][0].values()) for run in with_saff
]  # (networks, T)
spread = np.max(losses, axis=0) / np.min(losses, axis=0) - 1  # (T,)
print(f"between seeds the losses differ by {100 * spread.min():.0f}"
      f" to {100 * spread.max():.0f} %")  # fmt: skip

# %% [markdown]
# The three finer scales hardly listen ({numref}`fig-12-silenced`). What the others bring to them is worth less than the
# difference between two seeds, in each network. The one that listens, in two networks of three, is the coarsest, which
# has the least to say of its own: without it some loss grows by 15 % in one of them and by 55 % in the other. So where
# information flows at all, it flows down, from fine to coarse; the high scales, for whose sake one would build such a
# module, go without.

# %%
assert growth("Y")[:, :, :3].max() < 1.05
assert (growth("Y")[:, :, 3].max(axis=1) > 1.1).sum() == 2

# %% [markdown]
# ### Which units speak?
#
# SFF is a hidden layer: a convolution, a ReLU, a convolution. A hidden unit whose ReLU is never open passes nothing on, and gets no
# gradient that could change it. How often is each open? {numref}`fig-12-units` has the answer.

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-12-units", "caption": "Hidden units of SFF in the trained networks: for each, the share of all tokens at which its ReLU lets something through, in falling order; a line for each network. Units on the grey ground are open at fewer than one token in a hundred."}, "image": {"alt": "Four panels for the scales 0 to 3, with a falling curve for each of three networks. One curve lies far below the others: at scale 1 it touches the grey ground from the third unit on. The other two reach the ground only towards their ends, at scale 1 not at all."}}
figure, axes = plt.subplots(1, 4, figsize=(7.5, 2.2), sharey=True)
for i, axis in enumerate(axes):
    for run, colour in zip(with_saff, plots.OKABE_ITO):
        share = sorted(run["active"][i], reverse=True)
        axis.plot(range(1, len(share) + 1), share, ".-", ms=4, lw=0.8, color=colour)
    axis.axhspan(-0.02, 0.01, color="0.85", zorder=0)
    axis.set(title=f"scale {i}", xlabel="unit", ylim=(-0.02, 1.02))
_ = axes[0].set_ylabel("share of tokens")

# %%
for i in range(4):
    closed = [sum(share < 0.01 for share in run["active"][i]) for run in with_saff]
    size = len(with_saff[0]["active"][i])
    print(f"scale {i}: of {size} units, all but never open:", *closed)

# %% [markdown]
# The networks differ. In the first, the one of our pictures, most of the hidden layer is closed, nearly all of it at scale 1. The residual of Eq. 3
# hides it well: a network whose SFF has fallen silent still has $\mathbf{XL}^i$, and trains on. That units die behind a ReLU is an old acquaintance of
# training with large steps. In the other two most units are open, and yet their finer scales do not listen either. So closed units are one
# way to lose the others, and not the only one.
#
# The equations suggest a further reason. They give a BatchNorm to $\mathbf{XL}^i$ and to nothing else. Here is how loud the two halves of
# SFF's input are in a network that was not trained yet (the standard deviation of a channel):

# %%
torch.manual_seed(0)
fresh = me.build_model("tif_vit_nano", tasks, (64, 64)).train()
with torch.no_grad():
    scales = fresh.decoder.pyramid(fresh.backbone(training["image"][:24]))
    for i, its in enumerate(fresh.decoder.fusions):
        pair = its.reduce(scales[i]), its.aligned(scales)  # (B, C, h_i, w_i) each
        loud = [m.movedim(1, 0).flatten(1).std(dim=1).mean().item() for m in pair]
        print(f"scale {i}: XL {loud[0]:.1f}, Y {loud[1]:.1f}")
        assert loud[1] < 0.5 * loud[0]

# %% [markdown]
# The others begin with a low voice, and a network that reaches its answers without them has little reason to turn it up. Two BatchNorms
# would give them the same voice: one after $\mathbf{W}_i$, one inside SFF, before its ReLU. The paper mentions neither, so in the library they are an
# option that is off, `fusion_norm`. Three networks were trained with it.

# %%
normalised = [run for run in record["runs"] if run["row"] == "normalised"]
shut = [
    sum(share < 0.01 for its in run["active"] for share in its)
    for run in normalised
]
print("closed units, normalised:", *shut)
print("largest growth of a loss without Y, by network")
for i, place_ in enumerate(places):
    most = 100 * (growth("Y", normalised)[:, :, i].max(axis=1) - 1)  # (networks,)
    print(f"{place_:8}", *(f"{value:4.0f} %" for value in most))

# %% [markdown]
# No unit is closed any more, and every one of the three networks listens: at scale 1, which was deaf before, some loss grows by more than a tenth in each.
# So the silence was not the tasks' wish. It came from the way the paper's equations start.
#
# The authors' backbones were trained before, and 50 thousand steps are more than 300, so that in their networks all this may be different. Keep the picture in mind for
# the tables: unless said otherwise, our rows are without these norms, as the paper is.
#
# ## Beside the paper's tables
#
# Table 9 adds SAFF in two steps, first to the two low scales, then to the two high ones, on NYUD-v2 with Swin-T. From it the authors read (in their Sec. 4.4.4) that fusing into
# the high scales does far more than fusing into the low ones. Here is what that rests on.

# %%
table9 = published.table("tif", 9)
print(table9.format("saff", "semseg", "depth", "normals", "edge", "delta_m"))


# %%
def better_by(task, before, after):
    """Change of a metric, a plus where it is for the better."""
    sign = -1 if task.lower_is_better else 1
    value = sign * (after[task.name] - before[task.name]) + 0.0
    return f"{value:+.4f}" if task.name == "depth" else f"{value:+.2f}"


# %%
nyud = me.NYUD_V2
baseline, *fused_rows = table9.rows
right = baseline | {"edge": 75.15}  # see below
for before_row, after_row in pairwise(fused_rows):
    name = f"{before_row['saff']} → {after_row['saff']}"
    gain = after_row["delta_m"] - before_row["delta_m"]
    print(f"{name:20} Δm {gain:+.2f}", end="")
    for task in nyud:
        print(f"  {task.name} {better_by(task, before_row, after_row)}", end="")
    print()

# %% [markdown]
# (A plus is an improvement. The boundaries of the row *Baseline* are printed as 65.15; only 75.15 gives the printed Δm.)

# %%
for row in fused_rows:
    assert abs(me.multitask_gain(row, right, nyud) - row["delta_m"]) < 0.006
    assert abs(me.multitask_gain(row, baseline, nyud) - row["delta_m"]) > 3

# %% [markdown]
# As numbers the claim holds: +0.70 against +0.11. But look at what is in them. Nearly all of the second step is segmentation and boundaries; depth and normals get *worse*.
# In the first step two of the four metrics do not move in any printed digit. And the table has no row with SAFF at the high scales *only*, so one cannot know whether the
# high scales gain more because they are high, or because the low ones were fused before. Nor do the two steps cost the same:

# %%
rows9 = ("W/O SAFF", "W/2 SAFF", "W/4 SAFF")
counts = []
for name, scales_fused in zip(rows9, (0, 2, 4)):
    with torch.device("meta"):
        network = me.build_model(
            "tif_swin_tiny", nyud, (448, 576), fused_scales=scales_fused
        )
    its_cost = me.count(network, (448, 576))
    counts.append(its_cost.macs / 1e9)
    print(f"{name}: {its_cost.parameters / 1e6:.2f} M, {counts[-1]:.2f} G")
print(f"the second step costs {(counts[2] - counts[1]) / (counts[1] - counts[0]):.0f}"
      " times the operations of the first")  # fmt: skip

# %% [markdown]
# Table 6 has the other view of SAFF: the first module of three, in a network that has neither SFD nor LTHD yet.

# %%
table6 = published.table("tif", 6)
gains6 = {
    name: me.multitask_gain(row, right, nyud)
    for name, row in zip(("none", "SAFF"), table6.rows)
}
print(table6.format())
print(f"none → SAFF: Δm {gains6['SAFF'] - gains6['none']:+.2f}, from the metrics")
# %%
ends = {"Table 9": (fused_rows[0], fused_rows[-1]), "Table 6": table6.rows[:2]}
for name, (off, on) in ends.items():
    moved = (f"{task.name} {better_by(task, off, on)}" for task in nyud)
    print(f"{name}, without → with SAFF:", *moved)

# %% [markdown]
# The two tables tell one story: with SAFF segmentation gains more than a point and boundaries more than a third of one, depth gains nothing, and normals lose a
# little. A module that trades geometry for semantics is a more interesting finding than one that is *better*. All of it is from one run a row.
#
# ### On Dollhouse
#
# `book/results/make_tif_sweeps.py` trained the rows of these tables with several seeds, at chapter 3's data and budget, so that its
# single-task networks are the baseline of Δm. As in [chapter 9](../part2_mlore/09_mlore_assembled.ipynb), the spread between
# seeds is pooled over all configurations.

# %%
sweeps = json.loads(Path("../results/tif_sweeps.json").read_text())
alone = json.loads(Path("../results/chapter03.json").read_text())["runs"]
single = {
    name: mean(run["metrics"][name] for run in alone if run["tasks"] == [name])
    for name in tasks.names
}
# %%
results = {}
for run in sweeps["runs"]:
    if set(run["metrics"]) >= set(tasks.names):  # some runs learn fewer tasks
        gain = me.multitask_gain(run["metrics"], single, tasks)
        results.setdefault(run["key"], []).append(
            run["metrics"] | {"delta_m": gain}
        )
seeds = sorted({len(its) for its in results.values()})
print(f"{len(results)} configurations with all six tasks, {seeds} seeds each")

# %%
from scipy.stats import t as student


def pooled(metric="delta_m"):
    """Standard deviation between seeds, and its degrees of freedom."""
    lists = [[run[metric] for run in its] for its in results.values()]
    freedom = sum(len(values) - 1 for values in lists)
    squares = sum((v - mean(values)) ** 2 for values in lists for v in values)
    return math.sqrt(squares / max(freedom, 1)), max(freedom, 1)


# %%
def difference(key, other, metric="delta_m"):
    """Of the means of two configurations, and half of its 95 % interval."""
    a, b = ([run[metric] for run in results[k]] for k in (key, other))
    s, freedom = pooled(metric)
    half = student.ppf(0.975, freedom) * s * math.sqrt(1 / len(a) + 1 / len(b))
    return mean(a) - mean(b), half


# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-12-sweeps", "caption": "SAFF in the paper and on Dollhouse: Δm over single-task networks. Above, the rows of Table 9; below, the first two of Table 6. Left, the paper: NYUD-v2, Swin-T, one run a row. Right, Dollhouse with vit_nano: a dot for each seed, the mean, and its 95 % interval from the pooled spread."}, "image": {"alt": "Two columns of panels, each with three rows above and two below. Left, single squares that move to the right from row to row. Right, clusters of dots with a mean and an interval for each row."}}
def interval_plot(axis, y, key, metric="delta_m"):
    values = [run[metric] for run in results[key]]
    s, freedom = pooled(metric)
    half = student.ppf(0.975, freedom) * s / math.sqrt(len(values))
    axis.plot(values, [y] * len(values), "o", ms=4, alpha=0.45, color=blue)
    look = {"fmt": "|", "ms": 12, "mew": 2, "capsize": 3, "color": blue}
    axis.errorbar(mean(values), y, xerr=half, **look)


paper = {
    "table9": {row["saff"]: row["delta_m"] for row in fused_rows},
    "table6": gains6,
}
figure, axes = plt.subplots(
    2, 2, figsize=(7.5, 3.2), sharex="col", height_ratios=(3, 2)
)
for line, (table, gains) in zip(axes, paper.items()):
    for y, (row, gain) in enumerate(gains.items()):
        line[0].plot(gain, y, "s", color="black")
        key = sweeps["sweeps"][table][row]
        interval_plot(line[1], y, key)
    for axis in line:
        axis.set(yticks=range(len(gains)), ylim=(len(gains) - 0.4, -0.6))
        axis.set_yticklabels(list(gains))
    line[1].tick_params(labelleft=False)
axes[0, 0].set_title("paper: NYUD-v2")
axes[0, 1].set_title("here: Dollhouse")
for axis in axes[1]:
    axis.set_xlabel("Δm (%)")


# %% [markdown]
# The zeros of the two columns of {numref}`fig-12-sweeps` have nothing to do with each other; what can be compared are steps. A step of ours *supports* the paper's if its interval lies on the same side of zero,
# *contradicts* it on the other side, and is *noise* if it contains zero.


# %%
def verdict(value, half, claimed):
    if abs(value) <= half:
        return "noise"
    return "supports" if value * claimed > 0 else "contradicts"


# %%
steps_of = {
    "table9": (*pairwise(rows9), ("W/O SAFF", "W/4 SAFF")),
    "table6": (("none", "SAFF"),),
}
for table, pairs_ in steps_of.items():
    for a, b in pairs_:
        keys = sweeps["sweeps"][table]
        value, half = difference(keys[b], keys[a])
        claimed = paper[table][b] - paper[table][a]
        said = verdict(value, half, claimed)
        print(f"{a:9} → {b:9}{claimed:+6.2f}   {value:+5.1f} ± {half:.1f}   {said}")

# %% [markdown]
# All steps are noise. On Dollhouse, with five seeds, SAFF makes no difference to Δm that could be told from the seeds, be
# it at two scales or at four. The intervals hold the paper's steps as well as zero, so this does not contradict the paper
# either; a single run a row, as in its tables, could not have told.
#
# Δm is a mean. The paper's tables move segmentation and boundaries up, normals down; {numref}`fig-12-tasks` has ours, task by task.

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-12-tasks", "caption": "The rows of Table 9 on Dollhouse, task by task; an arrow up means that higher is better. Dotted: the mean of the single-task networks."}, "image": {"alt": "Six panels, one for each task, each with three rows of dots with a mean and an interval: without SAFF, with it at two scales, and at four."}}
figure, axes = plt.subplots(2, 3, figsize=(7.5, 3.6), sharey=True)
for axis, task in zip(axes.flat, tasks):
    for y, row in enumerate(rows9):
        key = sweeps["sweeps"]["table9"][row]
        interval_plot(axis, y, key, task.name)
    axis.axvline(single[task.name], color="0.6", lw=1, ls=":")
    arrow_ = "↓" if task.lower_is_better else "↑"
    axis.set(title=task.title, xlabel=f"{task.metric} ({task.unit}) {arrow_}")
    axis.set(yticks=range(3), yticklabels=rows9, ylim=(2.5, -0.5))

# %%
for table, (a, b) in (
    ("table9", ("W/O SAFF", "W/4 SAFF")),
    ("table6", ("none", "SAFF")),
):
    keys = sweeps["sweeps"][table]
    print(f"{a} → {b}")
    for task in tasks:
        value, half = difference(keys[b], keys[a], task.name)
        sign = -1 if task.lower_is_better else 1
        word = (
            ("worse", "better")[value * sign > 0] if abs(value) > half else "noise"
        )
        print(f"   {task.name:12}{value:+7.2f} ± {half:.2f} {task.unit:2} {word}")

# %% [markdown]
# Of the paper's picture, segmentation and boundaries up and normals not, nothing comes back. Segmentation gets worse in
# both steps; the normals get better in the first, depth better and saliency worse in the second. Among twelve comparisons
# at 95 % one outside the noise would be no surprise. Five are more than that, and they say that SAFF moves what the
# network is good at from one task to another. Here it is not the paper's way.
#
# None of this says much about fusing into the high scales, since in our networks these make next to nothing of what they are offered. Rows that
# differ in SAFF differ in the filter of Eqs. 4 and 5, in the number of layers, in what scale 3 hears, and in the noise of their
# seeds. We would not know it, had we not looked inside. What about the networks that do listen?

# %%
for run in normalised:
    gain = me.multitask_gain(run["metrics"], single, tasks)
    results.setdefault("normalised", []).append(run["metrics"] | {"delta_m": gain})
for row in ("W/4 SAFF", "W/O SAFF"):
    value, half = difference("normalised", sweeps["sweeps"]["table9"][row])
    print(f"{row} → normalised: {value:+.1f} ± {half:.1f} % in Δm")

# %% [markdown]
# Nothing either. Even a fusion that every scale listens to brings the tasks no gain that a few seeds can show. The encoder offers an explanation: its scales 1 to 3 come
# from a transformer in which every token has already seen the whole image, and scale 0 from a stem that each task's last convolution joins to them anyway. A
# pyramid of convolutions, whose fine maps have never seen what is far away, would have more to gain from SAFF; that was not run.
#
# ## What the paper leaves open
#
# | Open | Here | Why |
# |---|---|---|
# | how a plain ViT feeds four scales | simple feature pyramid, the third map keeps its size | the usual answer |
# | $\mathcal{P}$: how maps are resized | bilinear to enlarge, averages to reduce | averages read every pixel |
# | $\mathbf{W}_i$ | 1 × 1 convolution with bias, after resizing | order of Eq. 2 |
# | the width $C$ of $\mathbf{XL}^i$ and $\hat{\mathbf{X}}^i$ | `high_width` and `low_width`, a preset for each backbone | from the printed parameters and FLOPs ([chapter 14](14_low_to_high_diffusion.ipynb)) |
# | kernels of SFF | 3 × 3, twice | "convolution layers" beside a 1 × 1 that is called so |
# | widths inside SFF, place of its ReLU | $2C \to C \to C$, between the two | the fewest assumptions |
# | norms inside SFF and after $\mathbf{W}_i$ | none | only that of $\mathbf{XL}^i$ is mentioned |
# | borders of convolutions | zeros | keeps the grid |
# | weights before training | PyTorch's defaults | nothing is said |
# | is a scale fused from the fused others? | no, from the original four | Eq. 2 takes $\mathbf{X}^j$ |
#
# ## Exercises
#
# ```{exercise} What bilinear reading sees
# :label: ex-12-share
# Write `share_seen(factor)`: the share of a map's pixels that bilinear interpolation reads when it reduces the map to 1/`factor` of its
# height and width. Mind the odd factors.
# ```

# %%
from mlore_edu.exercises import ch12


def share_seen(factor): ...


_ = ch12.check_share_seen(share_seen)

# %% [markdown]
# ```{solution-start} ex-12-share
# :class: dropdown
# ```
# With an even factor the centre of a token falls between two pixels in each direction, and both are read; with an odd one it falls on
# a pixel, and no other is.


# %% jupyter={"source_hidden": true}
def share_seen(factor):
    read = 1 if factor % 2 else 2
    return (read / factor) ** 2


_ = ch12.check_share_seen(share_seen)

# %% [markdown]
# ```{solution-end}
# ```
#
# ```{exercise} Project first
# :label: ex-12-first
# Write `projected_first(sources, W, b, size)`, which computes $\mathbf{Y}^i$ of {eq}`eq-12-align` by projecting every source `(B, C_j, h_j, w_j)` at its own size. `W` is
# `(C, sum of C_j)` and `b` is `(C,)`; use `align`. The result must be that of concatenating first.
# ```


# %%
def projected_first(sources, W, b, size): ...


_ = ch12.check_projected_first(projected_first)

# %% [markdown]
# ```{solution-start} ex-12-first
# :class: dropdown
# ```


# %% jupyter={"source_hidden": true}
def projected_first(sources, W, b, size):
    columns = W.split([source.shape[1] for source in sources], dim=1)
    projected = [
        torch.einsum("oc,bchw->bohw", w, source)  # (B, C, h_j, w_j)
        for w, source in zip(columns, sources)
    ]
    return (
        sum(align(p, size) for p in projected) + b[:, None, None]
    )  # (B, C, *size)


_ = ch12.check_projected_first(projected_first)

# %% [markdown]
# ```{solution-end}
# ```
#
# ```{exercise} The cheapest order
# :label: ex-12-cheapest
# Given the channels and the numbers of tokens of four scales, write `cheapest(channels, tokens, i, C)`: the multiply-accumulates of
# $\mathbf{W}_i$ if every source is projected where that costs least.
# ```


# %%
def cheapest(channels, tokens, i, C): ...


_ = ch12.check_cheapest(cheapest)

# %% [markdown]
# ```{solution-start} ex-12-cheapest
# :class: dropdown
# ```


# %% jupyter={"source_hidden": true}
def cheapest(channels, tokens, i, C):
    others = [j for j in range(4) if j != i]
    return C * sum(min(tokens[i], tokens[j]) * channels[j] for j in others)


_ = ch12.check_cheapest(cheapest)

# %% [markdown]
# ```{solution-end}
# ```
#
# ```{exercise} The size of SAFF
# :label: ex-12-size
# Write `saff_size(channels, i, C)`: the number of parameters of SAFF at scale $i$, biases and BatchNorm included. How does it depend on $i$?
# ```


# %%
def saff_size(channels, i, C): ...


_ = ch12.check_saff_size(saff_size)

# %% [markdown]
# ```{solution-start} ex-12-size
# :class: dropdown
# ```
# Not at all: what $\mathbf{XL}^i$ takes for scale $i$, $\mathbf{W}_i$ takes for the three others. In {numref}`fig-12-cost` the low scales have more only because they are wider.


# %% jupyter={"source_hidden": true}
def saff_size(channels, i, C):
    narrow_and_gather = sum(channels) * C + 2 * C + C  # with BatchNorm, and a bias
    fuse = (9 * 2 * C + 1) * C + (9 * C + 1) * C
    return narrow_and_gather + fuse + (9 + 1) * C + (C + 1) * C


_ = ch12.check_saff_size(saff_size)

# %% [markdown]
# ```{solution-end}
# ```
#
# ## Takeaways
#
# - TIF's tasks share the encoder and its fusion, and no weight after that; a gradient proves it. Interaction has moved into the encoder.
# - No scale knows everything: boundaries are read best from the finest, classes hardly better from one than from
#   another until the coarsest, and both best from all four.
# - To reduce a map, average. Bilinear reading at one eighth looks at one pixel in sixteen.
# - Resizing and a 1 × 1 convolution change places freely. Project where there are fewer tokens.
# - Scale-enhanced fusion is a Transformer block with a small fixed mixer, behind two full convolutions that cost most; three quarters of everything is spent at the finest scale.
# - In our networks the finer scales hardly listen to the others; only the coarsest does, in two of three. A residual keeps such a network alive, and hides
#   what has fallen silent. Look inside before you believe an ablation, and look into more than one.
# - The paper's own tables say: segmentation and boundaries gain, depth does not, normals lose.
#
# You can now give every scale of an encoder what the others know, say what it costs, and test whether it arrives. From here each task goes its own
# way: [chapter 13](13_self_feature_distillation.ipynb) lets it attend to itself.
