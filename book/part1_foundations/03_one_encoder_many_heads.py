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
# # One encoder, many heads
#
# Six answers for every pixel could come from six networks. They could also come from one network that looks at the
# image once and answers six times. How does such a network ({numref}`fig-03-flow`) work, and what does sharing cost each of the answers?

# %%
import itertools
import json
import math
from pathlib import Path

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F

# %%
import mlore_edu as me
from mlore_edu import plots
from mlore_edu.data.dollhouse_files import VALIDATION_SEEDS, DollhouseScenes
from mlore_edu.data.loaders import make_loader
from mlore_edu.data.transforms import denormalise, eval_transform

plots.use_style()
# %%
tasks = me.DOLLHOUSE
validation = DollhouseScenes(
    48, 64, "easy", VALIDATION_SEEDS, transform=eval_transform(64)
)
loader = make_loader(validation, len(validation), train=False)
everything = next(iter(loader))  # all 48 scenes as one batch

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-03-flow", "caption": "The way of one image through the network of this chapter. The backbone runs once; from the decoder on, every task has a path of its own. Shapes are channels × height × width."}, "image": {"alt": "A flow diagram from left to right: a picture of a room, four stacked feature maps from the backbone, six squares for the features of the six tasks, and six pictures of the labels they should become."}}
from mlore_edu.pictures import to_rgb

figure = plt.figure(figsize=(7.5, 4.1), layout="none")
canvas = figure.add_axes((0, 0, 1, 1), xlim=(0, 7.5), ylim=(0, 4.1))
canvas.axis("off")


def place(picture, x, y, side, text=""):
    axis = figure.add_axes(
        (x / 7.5, y / 4.1, side / 7.5, side / 4.1), xticks=[], yticks=[]
    )
    axis.spines[:].set_visible(False)
    axis.imshow(picture) if hasattr(picture, "shape") else axis.set_facecolor(
        picture
    )
    canvas.text(x + side / 2, y - 0.06, text, ha="center", va="top", fontsize=8)


place(
    to_rgb("image", denormalise(everything["image"][0])),
    0.1,
    1.45,
    1.1,
    "image\n3 × 64 × 64",
)
for level, (side, text) in enumerate(
    ((0.62, "32 × 32 × 32"), *((0.36, "96 × 8 × 8"),) * 3)
):
    place(plots.OKABE_ITO[4], 2.5 - side / 2, 3.1 - 0.85 * level, side, text)
for row, task in enumerate(tasks):
    y = 3.4 - 0.64 * row
    place(plots.OKABE_ITO[1], 4.15, y, 0.5)
    place(to_rgb(task.name, everything[task.name][0]), 5.75, y, 0.5)
    canvas.text(
        6.35, y + 0.25, task.title.replace(" ", "\n", 1), va="center", fontsize=8
    )
    canvas.annotate(
        "", (5.68, y + 0.25), (4.72, y + 0.25), arrowprops={"arrowstyle": "->"}
    )
for x, end, text in (
    (1.3, 1.95, "backbone"),
    (2.95, 4.05, "decoder"),
    (4.75, 5.65, "heads"),
):
    canvas.text((x + end) / 2, 3.98, text, ha="center", va="center", weight="bold")
    if text != "heads":
        canvas.annotate("", (end, 2.0), (x, 2.0), arrowprops={"arrowstyle": "->"})
_ = canvas.text(
    4.4, 0.08, "32 × 32 × 32 each", ha="center", va="center", fontsize=8
)

# %% [markdown]
# ## What you will be able to do
#
# - follow an image through a backbone to four feature maps, and through a decoder to one feature for each task;
# - write the baseline decoder of MLoRE {cite}`yang2024mlore` and a prediction head in a few lines, and account for
#   every parameter and every multiplication of the paper's version;
# - derive each training loss, and say what it must read before the first step;
# - train all six tasks in one native PyTorch loop, and see the predictions become right;
# - compare with six single-task networks by Δm, and tell a difference from noise.
#
# *Before you start:* [chapter 1](01_five_answers_from_one_image.ipynb) for the tasks and [chapter
# 2](02_measuring.ipynb) for the metrics; convolutions, and the idea of a transformer block. *Time:* 40 minutes of
# reading, three quarters of a minute of running, much of it training. *Hardware:* two CPU cores, 4 GB of memory; no
# GPU, no download.

# %% [markdown]
# ## From pixels to four maps
#
# A **backbone** (or encoder) turns the image into feature maps: grids of vectors, each describing a patch of the
# image. Dense tasks want several maps, early ones for where things end and late ones for what they are. Every
# backbone in this book therefore gives four.
#
# Ours, `vit_nano`, has two parts. A convolutional *stem* works at half the image's resolution. A small vision transformer
# {cite}`dosovitskiy2021image` then cuts the stem's map into patches of 8 × 8 image pixels, makes a vector of each (a
# *token*), and lets three transformer blocks exchange information between all of them:
#
# ```{math}
# :label: eq-03-block
# \mathbf{Z}' = \mathbf{Z} + \operatorname{Attention}(\operatorname{LN}(\mathbf{Z})), \qquad
# \mathbf{Z}'' = \mathbf{Z}' + \operatorname{MLP}(\operatorname{LN}(\mathbf{Z}')),
# ```
#
# where $\mathbf{Z}$ holds one row for each of the $L$ tokens (here 64 rows of 96 numbers) and LN normalises each row.

# %%
torch.manual_seed(0)
model = me.build_model("baseline_vit_nano", tasks, img_size=(64, 64)).eval()
backbone = model.backbone
images = everything["image"][:4]  # (4, 3, 64, 64)

# %%
fine = backbone.stem(images)  # (4, 32, 32, 32)
patches = backbone.patch_embed(fine)  # (4, 96, 8, 8)
tokens = patches.flatten(2).transpose(1, 2)  # (4, 64, 96): a row per patch
tokens = tokens + backbone.pos_embed  # (4, 64, 96)


# %%
def as_map(tokens):
    return tokens.transpose(1, 2).unflatten(2, (8, 8))  # (4, 96, 8, 8)


ours = [fine]
for block in backbone.blocks:
    tokens = block(tokens)  # (4, 64, 96)
    ours.append(as_map(tokens))
ours[-1] = as_map(backbone.norm(tokens))  # (4, 96, 8, 8)

# %% [markdown]
# These few lines are the whole forward pass of `mlore_edu/backbones.py: NanoViT`:

# %%
maps = backbone(images)
for mine, theirs in zip(ours, maps, strict=True):
    torch.testing.assert_close(mine, theirs)
print([tuple(feature_map.shape) for feature_map in maps])

# %% [markdown]
# What is in such a map? It has too many channels to look at, so we find the three directions along which its vectors
# vary most (their principal components) and show these as red, green and blue. Pixels of equal colour have similar
# features.


# %%
def to_three_colours(feature_map):  # (C, h, w)
    vectors = feature_map.flatten(1).T  # (h·w, C)
    vectors = vectors - vectors.mean(dim=0)
    directions = torch.linalg.svd(vectors, full_matrices=False).Vh[:3]  # (3, C)
    colours = vectors @ directions.T  # (h·w, 3)
    low, high = colours.quantile(torch.tensor([0.02, 0.98]), dim=0)  # (3,) each
    colours = ((colours - low) / (high - low)).clamp(0, 1)
    return colours.reshape(*feature_map.shape[1:], 3)  # (h, w, 3)


# %%
def show_maps(image, maps, axes, row_title):
    pictures = [
        to_rgb("image", denormalise(image)),
        *(to_three_colours(m.detach()) for m in maps),
    ]
    for axis, picture in zip(axes, pictures, strict=True):
        axis.imshow(picture)
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set_visible(False)
    axes[0].set_ylabel(row_title)


# %% mystnb={"figure": {"name": "fig-03-maps-before", "caption": "The four maps of the untrained backbone, three principal components as colours. Random filters keep the picture; the tokens show hardly more than its coarse layout."}, "image": {"alt": "A row of five pictures: a room with a person, a fine map in which outlines of the room and person can be recognised, and three maps of 8 by 8 coloured squares that follow the room only roughly."}}
figure, axes = plt.subplots(1, 5, figsize=(7.5, 1.8))
show_maps(images[0], [m[0] for m in maps], axes, "untrained")
for axis, title in zip(
    axes, ("image", "stem", "after block 1", "after block 2", "after block 3")
):
    axis.set_title(title)

# %% [markdown]
# ### Where is a token?
#
# A transformer block does not know. It compares every token with every other and has no notion of a neighbour: if the
# tokens are shuffled, its outputs are the same ones, shuffled.


# %%
def run_blocks(tokens):
    for block in backbone.blocks:
        tokens = block(tokens)
    return tokens


# %%
tokens = patches.flatten(2).transpose(1, 2)  # (4, 64, 96)
shuffle = torch.randperm(64)
expected = run_blocks(tokens)[:, shuffle]
torch.testing.assert_close(
    run_blocks(tokens[:, shuffle]), expected, atol=1e-4, rtol=1e-4
)

# %%
expected = run_blocks(tokens + backbone.pos_embed)[:, shuffle]
shuffled = run_blocks(tokens[:, shuffle] + backbone.pos_embed)
print("position makes a difference:", not torch.allclose(shuffled, expected))

# %% [markdown]
# The **position embedding**, one learned vector for each place in the grid, is what tells the
# blocks floor (low in the image) from ceiling (high). It also ties the model to one image size, since there are as many vectors as tokens. To change the
# size one resizes the grid of embeddings like a small image; `build_backbone` does so when it loads weights.

# %% [markdown]
# ### Larger backbones, the same interface
#
# The papers use larger backbones, and each of them gives four maps as well: ViT {cite}`dosovitskiy2021image` after a
# quarter, half, three quarters and all of its blocks; Swin {cite}`liu2021swin` and HRNet {cite}`wang2020hrnet` at four
# resolutions. On PyTorch's *meta* device a tensor has a shape and no content, so that even a large model is built and
# run at no cost.

# %%
from mlore_edu.backbones import build_backbone

sizes = {"vit_base": (512, 512), "swin_base": (512, 512), "hrnet18": (448, 576)}
for name, size in sizes.items():
    with torch.device("meta"):
        large = build_backbone(name, size)(torch.empty(1, 3, *size))
    print(f"{name:10}", *(tuple(feature_map.shape[1:]) for feature_map in large))

# %% [markdown]
# ## From four maps to one feature per task
#
# Every task now needs a feature of its own, made of the four maps. This is the job of the **decoder**, and it is where
# the papers of this book differ. The simplest, the baseline of MLoRE's Table 2, gives each task a linear map of each
# scale, and adds:
#
# ```{math}
# :label: eq-03-decoder
# \mathbf{F}^t = \sum_{l=1}^{4} \operatorname{up}\left(\mathbf{W}^t_l\, \mathbf{X}^l + \mathbf{b}^t_l\right),
# ```
#
# where $\mathbf{X}^l$ is the $l$-th map, $\mathbf{W}^t_l$ and $\mathbf{b}^t_l$ are the weights of task $t$ for it, applied
# to the vector at every pixel, and $\operatorname{up}$ enlarges the result bilinearly to the largest map's size. All
# $\mathbf{F}^t$ have the same width $C$.
#
# The library stacks the maps of all tasks into one 1 × 1 convolution a scale, because their input is the same.
# Task $t$, counted from 0, owns its rows from $tC$ up to $(t+1)C$.

# %%
decoder = model.decoder
C = decoder.channels


def feature_of(t, maps):
    rows = slice(t * C, (t + 1) * C)
    total = 0
    for X, projection in zip(maps, decoder.projections, strict=True):
        W, b = projection.weight[rows, :, 0, 0], projection.bias[rows]
        Y = torch.einsum("oc,bchw->bohw", W, X) + b[:, None, None]  # (B, C, h, w)
        total = total + F.interpolate(Y, size=(32, 32), mode="bilinear")
    return total  # (B, C, 32, 32)


# %%
features = {task.name: feature_of(t, maps) for t, task in enumerate(tasks)}
for name, feature in decoder(maps).features.items():
    torch.testing.assert_close(features[name], feature)
print("six features of shape", tuple(features["depth"].shape))

# %% [markdown]
# ## From features to six predictions
#
# A **head** turns a task's feature into its prediction: enlarge, mix each pixel with its neighbours, predict.


# %%
def up(maps, size):
    return F.interpolate(maps, size=size, mode="bilinear")  # (B, channels, *size)


def predict(head, feature):
    x = up(feature, head.size)  # (B, C, 32, 32)
    x = F.conv2d(x, head.mix.weight, head.mix.bias, padding=1)  # (B, C, 32, 32)
    x = F.gelu(head.norm(x))
    x = F.conv2d(x, head.predict.weight, head.predict.bias)  # (B, channels, 32, 32)
    return up(x, (64, 64))  # (B, channels, 64, 64)


# %%
output = model(images)
for name, head in model.heads.items():
    torch.testing.assert_close(
        predict(head, features[name]), output.predictions[name]
    )
print(
    {name: prediction.shape[1] for name, prediction in output.predictions.items()}
)

# %% [markdown]
# That is the complete model. Only the number of channels differs between tasks: a logit for each class, three
# components of a normal, one number for a depth or for the logit of a boundary.
#
# ### What it costs at the paper's size
#
# MLoRE reports 115 M parameters and 391 G operations for this baseline with ViT-B, five tasks of PASCAL-Context and
# images of 512 × 512. Can we account for them? A convolution with $k \times k$ weights from $a$ to $b$ channels has
# $k^2 ab$ weights, and multiplies each of them once for every pixel of its output. The paper's text sets $C$ to 384
# with ViT-L and speaks of 640 in an ablation with ViT-B; the counts below decide for 640.

# %%
T, width, C_paper = len(me.PASCAL_CONTEXT), 768, 640
outputs = sum(task.channels for task in me.PASCAL_CONTEXT)  # 21 + 7 + 2 + 3 + 1
decoder_parameters = 4 * (width + 1) * T * C_paper
head = 9 * C_paper**2 + C_paper + 2 * C_paper  # conv 3×3 and BatchNorm
head_parameters = T * head + outputs * (C_paper + 1)

# %%
with torch.device("meta"):
    paper_model = me.build_model("baseline_vit_base", me.PASCAL_CONTEXT, (512, 512))
cost = me.count(paper_model, (512, 512))
assert cost.by_module["decoder"].parameters == decoder_parameters
assert cost.by_module["heads"].parameters == head_parameters
print(cost.format())

# %% [markdown]
# The parameters agree with the paper. So does the cost, once we know the paper's unit: its G is $2^{30}$
# multiply-accumulates, not $10^9$. (Papers seldom say; this book prints both.)

# %%
assert round(cost.parameters / 1e6) == 115
assert round(cost.in_units("2**30")) == 391

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-03-cost", "caption": "Where the baseline with ViT-B keeps its parameters and spends its multiply-accumulates."}, "image": {"alt": "Two stacked horizontal bars. Three quarters of the parameters belong to the backbone, but almost three quarters of the operations to the heads; the decoder has a small share of both."}}
figure, axis = plt.subplots(figsize=(7.5, 1.9))
modules = [cost.by_module[name] for name in ("backbone", "decoder", "heads")]
left = [0.0, 0.0]
for name, module, colour in zip(
    ("backbone", "decoder", "heads"), modules, plots.OKABE_ITO
):
    share = [
        100 * module.macs / cost.macs,
        100 * module.parameters / cost.parameters,
    ]
    axis.barh(
        ["multiply-accumulates", "parameters"],
        share,
        left=left,
        color=colour,
        label=name,
    )
    for y in (0, 1):
        if share[y] > 8:
            axis.text(
                left[y] + share[y] / 2,
                y,
                f"{share[y]:.0f} %",
                ha="center",
                va="center",
                color="white",
            )
    left = [a + b for a, b in zip(left, share)]
axis.set(xlabel="share of the whole model (%)", xlim=(0, 100))
_ = figure.legend(loc="outside upper center", ncols=3)

# %% [markdown]
# {numref}`fig-03-cost` shows something that the table of a paper does not: a 3 × 3 convolution at a quarter of the image's
# resolution is cheap to store and dear to run. The five heads together cost more than the large transformer they stand
# on.
#
# And sharing? Five networks for one task each would hold the backbone five times:

# %%
names = me.PASCAL_CONTEXT.names
single_sets = [me.PASCAL_CONTEXT.subset(name) for name in names]
with torch.device("meta"):
    alone = [me.build_model("baseline_vit_base", one) for one in single_sets]
costs = [me.count(network, (512, 512)) for network in alone]
print(
    f"{sum(c.parameters for c in costs) / cost.parameters:.1f} times the parameters"
)
print(f"{sum(c.macs for c in costs) / cost.macs:.1f} times the operations")

# %% [markdown]
# ## Six losses
#
# Each task has its own idea of a mistake. In all of them a set $\mathcal{V}$ of valid pixels counts and the others do
# not, so let us pretend that nobody labelled the upper eight rows of our images.

# %%
targets = {name: everything[name][:4].clone() for name in tasks.names}
for task in tasks:
    targets[task.name][..., :8, :] = task.ignore  # 255, or 0 for depth and normals
raw = {name: prediction.detach() for name, prediction in output.predictions.items()}


def mean_over(valid, per_pixel):
    return torch.where(valid, per_pixel, 0.0).sum() / valid.sum()


# %% [markdown]
# **Classes** (segmentation, parts). The logits $z_{ik}$ of pixel $i$ become probabilities by a softmax, and the loss is
# the negative logarithm of the one given to the true class $y_i$:
#
# ```{math}
# :label: eq-03-ce
# \mathcal{L}_{\text{class}} = \frac{1}{|\mathcal{V}|} \sum_{i \in \mathcal{V}} \Big( \log \sum_k e^{z_{ik}} - z_{i y_i} \Big).
# ```

# %%
from mlore_edu import losses


def class_cost(logits, target):  # (B, K, H, W), (B, H, W)
    # where the class is not known, any will do: the pixel does not count
    true_class = target.where(target != 255, 0)[:, None]  # (B, 1, H, W)
    return logits.logsumexp(dim=1) - logits.gather(1, true_class)[:, 0]  # (B, H, W)


for name in ("semseg", "human_parts"):
    loss = mean_over(targets[name] != 255, class_cost(raw[name], targets[name]))
    torch.testing.assert_close(loss, losses.cross_entropy(raw[name], targets[name]))

# %% [markdown]
# **Saliency** has two classes, of which the salient one is rare. If $s$ is the share of salient pixels in the batch, a
# salient pixel is weighted by $1 - s$ and any other by $s$, so that both classes weigh the same in all:
#
# ```{math}
# :label: eq-03-saliency
# \mathcal{L}_{\text{sal}} = \frac{1}{|\mathcal{V}|} \sum_{i \in \mathcal{V}}
# \big((1-s)\, y_i + s\, (1-y_i)\big) \Big( \log \sum_k e^{z_{ik}} - z_{i y_i} \Big).
# ```

# %%
target = targets["saliency"]
valid = target != 255
s = (target == 1).sum() / valid.sum()
weight = torch.where(target == 1, 1 - s, s)  # (B, H, W)
loss = mean_over(valid, weight * class_cost(raw["saliency"], target))
torch.testing.assert_close(
    loss, losses.balanced_cross_entropy(raw["saliency"], target)
)

# %% [markdown]
# **Boundaries** are rare too. One logit $z$ a pixel, its sigmoid $\sigma(z)$ the probability of a boundary, and a
# fixed weight $w$ for boundary pixels:
#
# ```{math}
# :label: eq-03-edge
# \mathcal{L}_{\text{edge}} = -\frac{1}{|\mathcal{V}|} \sum_{i \in \mathcal{V}}
# \big( w\, y_i \log \sigma(z_i) + (1-w)(1-y_i) \log(1 - \sigma(z_i)) \big).
# ```
#
# The field takes $w = 0.95$ on PASCAL-Context. A boundary missed is then worth nineteen false ones, and the network draws
# thick lines to be safe. For small images we take $w = 0.8$.

# %%
w = 0.8
z, y = raw["edge"], targets["edge"]  # (B, 1, H, W) each
per_pixel = -w * y * F.logsigmoid(z)
per_pixel = per_pixel - (1 - w) * (1 - y) * F.logsigmoid(-z)  # 1 − σ(z) = σ(−z)
torch.testing.assert_close(
    mean_over(y != 255, per_pixel), losses.weighted_bce(z, y, w)
)

# %% [markdown]
# **Normals and depth** are numbers, and their losses are distances: the sum of absolute differences between the true
# normal $\mathbf{n}$ and the prediction $\mathbf{p}$ brought to length one, and the absolute difference of depths $d$ in
# metres.
#
# ```{math}
# :label: eq-03-l1
# \mathcal{L}_{\text{normals}} = \frac{1}{|\mathcal{V}|} \sum_{i \in \mathcal{V}}
# \Big\lVert \frac{\mathbf{p}_i}{\lVert \mathbf{p}_i \rVert_2} - \mathbf{n}_i \Big\rVert_1, \qquad
# \mathcal{L}_{\text{depth}} = \frac{1}{|\mathcal{V}|} \sum_{i \in \mathcal{V}} \lvert \hat{d}_i - d_i \rvert.
# ```

# %%
p, n = raw["normals"], targets["normals"]  # (B, 3, H, W) each
per_pixel = (p / p.norm(dim=1, keepdim=True) - n).abs().sum(dim=1)  # (B, H, W)
torch.testing.assert_close(
    mean_over(n.norm(dim=1) > 0, per_pixel), losses.normals_l1(p, n)
)

# %%
d = targets["depth"]  # (B, 1, H, W)
torch.testing.assert_close(
    mean_over(d > 0, (raw["depth"] - d).abs()), losses.depth_l1(raw["depth"], d)
)

# %% [markdown]
# ### What they read before the first step
#
# An untrained network knows nothing, and each loss says so with a number that can be worked out. Few things find a
# mistake in a training script faster.
#
# With equal logits a softmax over $K$ classes gives $1/K$ to each, so equation {eq}`eq-03-ce` gives $\ln K$: $\ln 21 \approx 3.04$
# for the classes of PASCAL-Context, $\ln 15 \approx 2.71$ for ours. At logit 0 saliency and boundaries cost $\ln 2$ a pixel times its
# weight: $2s(1-s) \ln 2$ for saliency, and $(w q + (1-w)(1-q)) \ln 2$ for boundaries that cover a share $q$. Depth starts
# near 0 m, so it is wrong by the mean depth.
#
# For the normals we need the mean of $\lVert \mathbf{u} - \mathbf{n} \rVert_1$ over random directions $\mathbf{u}$. By a
# theorem of Archimedes each coordinate of a random point on the sphere is uniform between −1 and 1. For a number $u$ drawn
# so, the mean of $\lvert u - c \rvert$ is
#
# ```{math}
# :label: eq-03-archimedes
# \frac{1}{2} \int_{-1}^{1} \lvert u - c \rvert \, du = \frac{(1+c)^2 + (1-c)^2}{4} = \frac{1 + c^2}{2},
# ```
#
# and since the three coordinates of $\mathbf{n}$ have squares that sum to 1, the loss is $(3 + 1)/2 = 2$ whatever the room
# looks like. A quick experiment agrees ({numref}`fig-03-first-losses`):

# %%
directions = F.normalize(torch.randn(3, 200_000), dim=0)  # (3, samples)
for normal in ((0, 0, 1), (0.6, 0.8, 0), (2 / 3, 2 / 3, 1 / 3)):
    mean = (directions - torch.tensor(normal)[:, None]).abs().sum(dim=0).mean()
    assert abs(mean - 2) < 0.01

# %%
batch = {name: values[:16] for name, values in everything.items()}  # 16 scenes do
share = {
    name: (batch[name] == 1).double().mean().item() for name in ("saliency", "edge")
}
theory = {
    "semseg": math.log(15),
    "human_parts": math.log(7),
    "saliency": 2 * share["saliency"] * (1 - share["saliency"]) * math.log(2),
    "normals": 2.0,
    "depth": batch["depth"].mean().item(),
    "edge": (w * share["edge"] + (1 - w) * (1 - share["edge"])) * math.log(2),
}
# %%
criterion = me.MultiTaskLoss(tasks, edge_positive_weight=w)
first_losses = []
for seed in range(5):
    torch.manual_seed(seed)
    untrained = me.build_model("baseline_vit_nano", tasks, img_size=(64, 64))
    with torch.no_grad():
        _, by_task = criterion(untrained(batch["image"]).predictions, batch)
    first_losses.append(by_task)

# %%
for name, expected in theory.items():
    measured = [by_task[name].item() / expected for by_task in first_losses]
    near = all(2 / 3 < ratio < 3 / 2 for ratio in measured)
    print(f"{name:12} theory {expected:.2f}; five networks are near it: {near}")

# %% tags=["hide-input"]
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter


def log_axis(axis):
    axis.set_yscale("log")
    axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.yaxis.set_minor_formatter(NullFormatter())


# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-03-first-losses", "caption": "Losses of five untrained networks (dots) beside what theory says (bars). What scatter there is comes from the random weights of the last layers, whose logits are near zero but not equal."}, "image": {"alt": "Six pairs of a short horizontal bar, the theory, and five dots, the measured first losses. The dots lie on or close to their bars for every task, between a tenth for saliency and about four for depth."}}
figure, axis = plt.subplots(figsize=(7.5, 2.6))
for x, (name, expected) in enumerate(theory.items()):
    axis.plot(
        (x - 0.25, x + 0.25),
        (expected, expected),
        color="black",
        lw=2,
        label="theory" if x == 0 else None,
    )
    values = [by_task[name].item() for by_task in first_losses]
    axis.plot(torch.linspace(x - 0.16, x + 0.16, 5), values, "o", ms=5, color=plots.OKABE_ITO[0],
              label="untrained networks" if x == 0 else None)  # fmt: skip
axis.set(ylabel="loss", xticks=range(6))
log_axis(axis)
axis.set_xticklabels([task.title.replace(" ", "\n") for task in tasks])
_ = figure.legend(loc="outside upper center", ncols=2)

# %% [markdown]
# ### Why the losses carry weights
#
# The network is trained on a sum, and the shared backbone feels each task through its gradient alone. How large is the
# gradient that each loss sends there? We measure its length over all the backbone's parameters.


# %%
def gradient_lengths(network, batch):
    _, by_task = criterion(network(batch["image"]).predictions, batch)
    shared = list(network.backbone.parameters())
    gradients = {
        name: torch.autograd.grad(loss, shared, retain_graph=True)
        for name, loss in by_task.items()
    }
    return {
        name: torch.cat([g.flatten() for g in grads]).norm().item()
        for name, grads in gradients.items()
    }


# %%
before = gradient_lengths(untrained, batch)


# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-03-gradients", "caption": "Length of the gradient that each task sends into the shared backbone of an untrained network, as it is and times the field's weight."}, "image": {"alt": "A dot and a square on a logarithmic axis for each of six tasks. Without weights the gradient of the boundaries is the shortest and that of the normals the longest, tens of times longer; with weights the normals lead still and the boundaries come second."}}
def show_gradients(lengths):
    figure, axis = plt.subplots(figsize=(7.5, 2.7))
    for x, task in enumerate(tasks):
        alone, weighted = lengths[task.name], lengths[task.name] * task.loss_weight
        label = ("loss alone", "times its weight") if x == 0 else (None, None)
        axis.plot((x, x), (alone, weighted), color="0.7", lw=2, zorder=1)
        axis.scatter(x, alone, s=60, color=plots.OKABE_ITO[1], label=label[0])
        axis.scatter(
            x, weighted, s=60, marker="s", color=plots.OKABE_ITO[0], label=label[1]
        )
    log_axis(axis)
    axis.set(
        ylabel="gradient length",
        xticks=range(6),
        xlim=(-0.5, 5.5),
        ylim=(0.02, 100),
    )
    axis.set_xticklabels(
        [
            f"{task.title.replace(' ', chr(10))}\n× {task.loss_weight:g}"
            for task in tasks
        ]
    )
    figure.legend(loc="outside upper center", ncols=2)


show_gradients(before)
assert before["normals"] > 10 * before["edge"]

# %% [markdown]
# Metres, nats and vector components are not comparable, and neither are their gradients: boundaries would hardly be
# heard beside normals. So the field multiplies the losses by fixed weights, those under {numref}`fig-03-gradients`, and
# everyone who wants comparable numbers keeps them. They do not make the gradients equal. The normals shout at first,
# because an untrained network predicts short vectors, and bringing a vector to length one divides its gradient by
# that length. We shall look again after training. Schemes that adapt the weights during training
# exist {cite}`kendall2018multi,chen2018gradnorm`.
#
# ## Training
#
# MLoRE's recipe is short: draw a batch, add the weighted losses, step down the gradient by the rule of Adam {cite}`kingma2015adam`, at a rate
# that falls to zero as $\eta_i = \eta_0 (1 - i/I)^{0.9}$ over the $I$ steps. A gradient longer than 10 is cut to that
# length. With 40,000 steps on a pre-trained backbone the paper starts at $\eta_0 = 2 \cdot 10^{-5}$; a small network from
# scratch wants a rate two hundred times as large. {numref}`fig-03-curves` follows all six losses.

# %%
from mlore_edu.data.transforms import train_transform

augment = train_transform(64, scale=(1, 1), photometric=False)  # flips alone
training = DollhouseScenes(160, 64, "easy", transform=augment)


# %%
def train(model, tasks, steps, learning_rate=4e-3):
    criterion = me.MultiTaskLoss(tasks, edge_positive_weight=0.8)
    weights = model.parameters()
    optimizer = torch.optim.Adam(weights, learning_rate, weight_decay=1e-6)
    schedule = torch.optim.lr_scheduler.PolynomialLR(optimizer, steps, power=0.9)
    curves = []
    model.train().to(memory_format=torch.channels_last)  # faster convolutions
    for batch in itertools.islice(make_loader(training, 8, train=True), steps):
        total, by_task = criterion(model(batch["image"]).predictions, batch)
        optimizer.zero_grad()
        total.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 10.0)
        optimizer.step()
        schedule.step()
        curves.append({name: loss.item() for name, loss in by_task.items()})
    return curves


# %%
torch.manual_seed(0)
model = me.build_model("baseline_vit_nano", tasks, img_size=(64, 64))
curves = train(model, tasks, steps=180)


# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-03-curves", "caption": "The six losses while one network learns all six tasks: each batch (pale) and the mean of the last ten (dark)."}, "image": {"alt": "Six small line charts on logarithmic axes, one per task. Every loss falls steeply within the first hundred steps and then more slowly until the end."}}
def smooth(values, window=10):
    return [
        sum(values[max(0, i - window + 1) : i + 1])
        / len(values[max(0, i - window + 1) : i + 1])
        for i in range(len(values))
    ]


figure, axes = plt.subplots(2, 3, figsize=(7.5, 3.8), sharex=True)
for axis, task in zip(axes.flat, tasks):
    values = [by_task[task.name] for by_task in curves]
    axis.plot(values, color=plots.OKABE_ITO[4], alpha=0.5)
    axis.plot(smooth(values), color=plots.OKABE_ITO[0])
    axis.set_title(task.title)
    log_axis(axis)
for axis in axes[:, 0]:
    axis.set_ylabel("loss")
for axis in axes[1]:
    axis.set_xlabel("step")

# %% [markdown]
# What does the network say about rooms it has not seen? `decode` turns raw predictions
# into answers: the most likely class, a probability, a unit vector, metres ({numref}`fig-03-predictions`).

# %%
from mlore_edu.evaluation import decode

model.eval()
with torch.no_grad():
    answers = decode(model(everything["image"]).predictions, tasks)


# %%
def rows_of(index):
    image = {"image": denormalise(everything["image"][index])}
    return [
        image | {name: source[name][index] for name in tasks.names}
        for source in (everything, answers)
    ]


# %% mystnb={"figure": {"name": "fig-03-predictions", "caption": "Three validation scenes: each with its labels above and the predictions of the trained network below."}, "image": {"alt": "A grid of pictures. In each pair of rows, the predicted segmentation, body parts, saliency, normals, depth and boundaries of a room with a person resemble the labels above them, with small parts blurred or missing."}}
truth = {name: everything[name] for name in tasks.names}
figure = plots.show_grid(
    [row for index in (0, 1, 2) for row in rows_of(index)],
    ("label", "predicted") * 3,
)
assert (
    (truth["human_parts"][:3] % 255).flatten(1).any(dim=1).all()
)  # people in each

# %% [markdown]
# ### Far from trivial
#
# Pictures can flatter. A sober rival is the **constant predictor**: the same answer for every pixel of every image. We
# even let it look at the validation labels, so that it is the best of its kind: for each task, several constants are
# tried and the one with the best score stands.

# %%
from mlore_edu.metrics import make_meters

mean_normal = F.normalize(truth["normals"].mean(dim=(0, 2, 3)), dim=0)  # (3,)
constants = {
    "semseg": torch.arange(15),
    "human_parts": torch.arange(7),
    "saliency": torch.tensor([0.0, 1.0]),
    "normals": torch.stack([mean_normal, *torch.eye(3)]),  # (4, 3)
    "depth": torch.stack([truth["depth"].mean(), truth["depth"].median()]),
    "edge": torch.tensor([0.0, 1.0]),
}


# %%
def score(task, prediction):
    meter = make_meters(tasks.subset(task.name))[task.name]
    prediction = prediction.expand_as(answers[task.name]).contiguous()
    meter.update(prediction, truth[task.name])
    return meter.compute()


# %%
def best_constant(task):
    scores = [
        score(task, value.reshape(-1, 1, 1)) for value in constants[task.name]
    ]
    return min(scores) if task.lower_is_better else max(scores)


# %% [markdown]
# A second rival is harder to beat. Rooms resemble each other: the floor is below, the ceiling above. A **blind** predictor
# knows this and nothing else. It shows for every image the same picture, the average of the training labels at each
# pixel (for classes, the most frequent one).

# %%
unflipped = training.using(transform=eval_transform(64))
labels = next(iter(make_loader(unflipped, len(training), train=False)))
# no batch dimension: one picture for all images
blind = {name: labels[name].float().mean(dim=0) for name in tasks.names}
blind["edge"] = blind["edge"][0]  # (64, 64)
blind["normals"] = F.normalize(blind["normals"], dim=0)  # (3, 64, 64)
for name in ("semseg", "human_parts"):
    blind[name] = labels[name].mode(dim=0).values  # (64, 64)

# %%
scores = {
    "const.": {task.name: best_constant(task) for task in tasks},
    "blind": {task.name: score(task, blind[task.name]) for task in tasks},
    "ours": {task.name: score(task, answers[task.name]) for task in tasks},
}

# %% [markdown]
# The library has the blind predictor too, as `constant_predictor_scores` with one constant for each pixel. {numref}`fig-03-constant` sets the three side by side.

# %%
from mlore_edu.evaluation import constant_predictor_scores

library = constant_predictor_scores(unflipped, validation, tasks, per_pixel=True)
for name, value in library.items():
    assert math.isclose(value, scores["blind"][name], rel_tol=1e-3), name

# %%
factors = dict(zip(tasks.names, (1.8, 2.5, 2.5, 1.6, 1.4, 1.4)))
for task in tasks:
    *rivals, ours = (values[task.name] for values in scores.values())
    best = min(rivals) if task.lower_is_better else max(rivals)
    ratio = best / ours if task.lower_is_better else ours / best
    assert ratio > factors[task.name], (task.name, ratio)
    print(f"{task.title:22} more than {factors[task.name]} times as good as both")

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-03-constant", "caption": "The trained network, the best constant and the blind predictor on 48 validation scenes. An arrow up means that higher is better."}, "image": {"alt": "Six small bar charts with three bars each. The trained network's bar is clearly the best one in all six: higher for segmentation, parts, saliency and boundaries, lower for normals and depth. The blind predictor is second, or level with the constant."}}
figure, axes = plt.subplots(1, 6, figsize=(7.5, 2.3))
for axis, task in zip(axes, tasks):
    bars = axis.bar(
        list(scores),
        [values[task.name] for values in scores.values()],
        color=("0.75", "0.55", plots.OKABE_ITO[0]),
    )
    axis.bar_label(bars, fmt="%.2f" if task.unit == "m" else "%.0f", fontsize=8)
    direction = "↓" if task.lower_is_better else "↑"
    axis.set_title(
        f"{task.title.replace(' ', chr(10))}\n{task.metric} ({task.unit}) {direction}",
        fontsize=8,
    )
    axis.set_yticks([])
    axis.tick_params(axis="x", labelsize=8, rotation=35)
    axis.spines["left"].set_visible(False)

# %% [markdown]
# ### What training did to the maps
#
# The same three colours as before, now of the trained backbone ({numref}`fig-03-maps-after`). The tokens that looked arbitrary in
# {numref}`fig-03-maps-before` have organised themselves.

# %% mystnb={"figure": {"name": "fig-03-maps-after", "caption": "The four maps of the trained backbone for two validation scenes, three principal components as colours."}, "image": {"alt": "Two rows of five pictures: a room, a fine map with crisp outlines of the person and furniture, and three coarse maps in which wall, floor and person have clearly different colours."}}
with torch.no_grad():
    maps = model.backbone(everything["image"][:2])
figure, axes = plt.subplots(2, 5, figsize=(7.5, 3.2))
for row, index in zip(axes, (0, 1)):
    show_maps(everything["image"][index], [m[index] for m in maps], row, "trained")
for axis, title in zip(
    axes[0], ("image", "stem", "after block 1", "after block 2", "after block 3")
):
    axis.set_title(title)

# %% [markdown]
# ### What became of the gradients
#
# The same measurement as in {numref}`fig-03-gradients`, after training, is {numref}`fig-03-gradients-after`.

# %% mystnb={"figure": {"name": "fig-03-gradients-after", "caption": "Length of each task's gradient in the shared backbone after training; axes as before."}, "image": {"alt": "Dots and squares for six tasks as before. The normals lie far lower than they did in the earlier figure, and with weights the boundaries are no longer far below them."}}
after = gradient_lengths(model, batch)
show_gradients(after)
print(
    "normals: less than half the gradient:",
    after["normals"] < before["normals"] / 2,
)

# %%
with torch.no_grad():
    lengths = [
        network(batch["image"]).predictions["normals"].norm(dim=1).mean()
        for network in (untrained, model)
    ]
print("normals: longer vectors:", bool(lengths[0] < lengths[1]))

# %% [markdown]
# The normals, whose vectors have grown, have fallen far, and the ratios between the tasks are not those of the beginning. No
# fixed set of weights can balance the tasks at both ends. And length is only half of it, for two tasks may also pull the
# backbone in opposite directions; [chapter 6](../part2_mlore/06_generic_path_and_task_experts.ipynb) measures that.
#
# ### Look for yourself
#
# Go through the validation scenes. Where does the network fail, and do the tasks fail at the same places? {numref}`fig-03-explorer` is one of the views.


# %%
def compare(index, name):
    row_label, row_answer = rows_of(index)
    _, axes = plt.subplots(1, 3, figsize=(7.5, 2.7))
    pictures = (
        to_rgb("image", row_label["image"]),
        to_rgb(name, row_label[name]),
        to_rgb(name, row_answer[name]),
    )
    for axis, picture, title in zip(
        axes, pictures, ("image", f"{tasks[name].title}: label", "prediction")
    ):
        axis.imshow(picture)
        axis.set(xticks=[], yticks=[], title=title)
        axis.spines[:].set_visible(False)


# %% tags=["nbval-ignore-output"]
import ipywidgets

names = ipywidgets.Dropdown(
    options=tasks.names, value="human_parts", description="task"
)
index = ipywidgets.IntSlider(0, 0, len(validation) - 1, description="scene")
_ = ipywidgets.interact(
    lambda index, name: (compare(index, name), plt.show())[1],
    index=index,
    name=names,
)

# %% mystnb={"figure": {"name": "fig-03-explorer", "caption": "The explorer's view of one scene and task: the image, the label, and the prediction."}, "image": {"alt": "Three pictures side by side: a room with a person, the true body parts in six colours, and the predicted ones, which agree on the large parts and miss some of the small ones."}}
parts = truth["human_parts"]  # (48, 64, 64)
people = ((parts > 0) & (parts != 255)).sum(dim=(1, 2))  # (48,): pixels of people
largest = people.argmax().item()
compare(largest, "human_parts")

# %% [markdown]
# ## One network or six?
#
# The shared network costs less. Is it also worse, because six tasks compete for one backbone, or better, because they
# teach each other {cite}`caruana1997multitask`? The rival is a network of the same kind that has one task alone. Our loop trains it
# unchanged; let us do so for depth.

# %%
torch.manual_seed(0)
depth_only = tasks.subset("depth")
specialist = me.build_model("baseline_vit_nano", depth_only, img_size=(64, 64))
specialist_curves = train(specialist, depth_only, steps=180)
specialist.eval()
with torch.no_grad():
    raw = specialist(everything["image"]).predictions
    specialist_answer = decode(raw, depth_only)["depth"]  # (48, 1, 64, 64)

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-03-specialist", "caption": "Depth learned with five other tasks and alone: the losses of training, and one validation scene."}, "image": {"alt": "At the left two curves of the depth loss, of the shared and of the single-task network, which fall alike at first and then part, the shared one lower. At the right the true depth of a scene and the two predictions, the single-task network's the more blurred."}}
figure = plt.figure(figsize=(7.5, 2.4))
axes = figure.subplots(1, 4, width_ratios=(2, 1, 1, 1))
axes[0].plot(smooth([c["depth"] for c in curves]), label="six tasks")
axes[0].plot(smooth([c["depth"] for c in specialist_curves]), label="depth alone")
axes[0].set(xlabel="step", ylabel="depth loss (m)")
log_axis(axes[0])
axes[0].legend()
for axis, picture, title in zip(
    axes[1:],
    (truth["depth"], answers["depth"], specialist_answer),
    ("label", "six tasks", "alone"),
):
    axis.imshow(to_rgb("depth", picture[0]))
    axis.set(xticks=[], yticks=[])
    axis.spines[:].set_visible(False)
    rmse = (
        "" if title == "label" else f"\nRMSE {score(tasks['depth'], picture):.2f} m"
    )
    axis.set_title(title + rmse, fontsize=9)

# %% [markdown]
# One pair of runs, such as that of {numref}`fig-03-specialist`, settles nothing: with another seed it might come out otherwise. So we ran the whole comparison with three
# seeds. `book/results/make_chapter03.py` rendered a larger easy Dollhouse, trained the shared network and
# six single-task ones three times each with `mlore-edu train`, and wrote what it found to a file, together with the
# commands, the versions and the machine.

# %%
record = json.loads(Path("../results/chapter03.json").read_text())
print(record["data_command"])
print(record["runs"][0]["command"])
print(record["runs"][1]["command"])
print(len(record["runs"]), "runs with the seeds", record["seeds"])

# %%
shared, single = {}, {}
for run in record["runs"]:
    source = single if len(run["tasks"]) == 1 else shared
    source.setdefault(run["seed"], {}).update(run["metrics"])

# %%
print("             shared network          single-task networks")
for task in tasks:
    values = [
        f"{runs[seed][task.name]:5.2f}"
        for runs in (shared, single)
        for seed in runs
    ]
    print(f"{task.name:12}", *values[:3], "    ", *values[3:])

# %% [markdown]
# The multi-task gain Δm of [chapter 2](02_measuring.ipynb) condenses this into one number, the mean relative improvement
# over the single-task networks. Which ones, when there are three of each? We take all nine pairs. To know how much of
# what we see is noise, we compute the same number where there is nothing to gain: for each set of single-task networks
# over another set, which differs in its seed alone.


# %%
def gains(chosen):
    over_single = [
        me.multitask_gain(shared[a], single[b], chosen)
        for a in shared
        for b in single
    ]
    of_nothing = [
        me.multitask_gain(single[a], single[b], chosen)
        for a in single
        for b in single
        if a != b
    ]
    return over_single, of_nothing


for name, values in zip(("Δm of sharing", "Δm of nothing"), gains(tasks)):
    mean = sum(values) / len(values)
    print(
        f"{name}: from {min(values):+.1f} to {max(values):+.1f} %, mean {mean:+.2f} %"
    )

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-03-gain", "caption": "Relative gain for each task, and Δm, the mean over tasks. A blue dot compares a shared network with a single-task one, an orange dot two single-task networks that differ in their seed; the bars are the means."}, "image": {"alt": "Dots in percent for six tasks and their mean around a line at zero. Sharing is near twenty percent better for depth and a few percent better for normals, about level for saliency and boundaries, and some percent worse for segmentation and human parts. At the right, its mean lies a few percent above zero; orange dots of equal networks spread around zero everywhere."}}
figure, axis = plt.subplots(figsize=(7.5, 3.0))
for x, chosen in enumerate([*(tasks.subset(name) for name in tasks.names), tasks]):
    for side, values, label in zip(
        (-0.12, 0.12), gains(chosen), ("sharing", "nothing, but the seed")
    ):
        colour = plots.OKABE_ITO[0 if side < 0 else 1]
        axis.plot(
            [x + side] * len(values),
            values,
            "o",
            ms=4,
            alpha=0.7,
            color=colour,
            label=label if x == 0 else None,
        )
        axis.plot(
            (x + side - 0.08, x + side + 0.08),
            [sum(values) / len(values)] * 2,
            color=colour,
            lw=2.5,
        )
axis.axhline(0, color="0.6", lw=1)
axis.axvline(5.5, color="0.6", lw=1, ls=":")
axis.set(ylabel="gain (%)", xticks=range(7))
axis.set_xticklabels([*(task.title.replace(" ", "\n") for task in tasks), "Δm"])
_ = figure.legend(loc="outside upper center", ncols=2)

# %% [markdown]
# Read {numref}`fig-03-gain` from right to left. By Δm the shared network wins, and by more than the noise: no pair of
# single-task runs comes as high as the lowest pair with a shared one. But Δm is a mean, and the tasks tell different stories.
# Depth gains a great deal, normals a little. Segmentation and human parts, the tasks with the finest distinctions, lose.
# Leave out depth, and the sign of the mean turns, though by no more than the noise:

# %%
without_depth = tasks.subset(*(name for name in tasks.names if name != "depth"))
over_single, of_nothing = gains(without_depth)
print(f"Δm without depth: mean {sum(over_single) / len(over_single):+.1f} %")
print(f"of nothing: from {min(of_nothing):+.1f} to {max(of_nothing):+.1f} %")
assert min(gains(tasks)[0]) > max(gains(tasks)[1])  # beyond the noise with depth
assert min(of_nothing) < sum(over_single) / len(over_single) < 0

# %% [markdown]
# So what does sharing cost? In this small experiment it costs the class tasks some percent and pays in geometry, while one
# backbone does the work of six. Three seeds, one data set, and a learning rate chosen for the shared network do not make
# a law; with a rate of its own the depth network might catch up. What carries over is the way to ask: every task by itself,
# several seeds, and the noise beside the gain.
#
# On PASCAL-Context, MLoRE's table gives the same baseline a Δm of −3.41 % {cite}`yang2024mlore`: there, sharing costs more
# than it pays. To make it pay is what the decoders of this book are for.
#
# ## Exercises
#
# ```{exercise} Before learning
# :label: ex-03-first
# A colleague trains boundaries with $w = 0.95$ on images of which a share of 0.1 is boundary, and reads a first loss of
# 0.69. Something is wrong. Write a function that gives the loss of equation {eq}`eq-03-edge` when all logits are 0.
# ```

# %%
from mlore_edu.exercises import ch03


def first_edge_loss(share, weight): ...


_ = ch03.check_first_edge_loss(first_edge_loss)

# %% [markdown]
# ```{solution-start} ex-03-first
# :class: dropdown
# ```
# Every pixel costs $\ln 2$ times its weight. The colleague should have read about 0.1; 0.69 is $\ln 2$, so the weights are not
# applied at all.


# %% jupyter={"source_hidden": true}
def first_edge_loss(share, weight):
    return (weight * share + (1 - weight) * (1 - share)) * math.log(2)


print(f"{first_edge_loss(0.1, 0.95):.2f}")
_ = ch03.check_first_edge_loss(first_edge_loss)

# %% [markdown]
# ```{solution-end}
# ```
#
# ```{exercise} The poly schedule
# :label: ex-03-poly
# Write the learning rate of a step (the first is step 0) that falls from `rate` to zero over `steps` steps with the given
# `power`. At which step has a rate with power 0.9 fallen to a half?
# ```


# %%
def poly(step, steps, rate, power): ...


_ = ch03.check_poly(poly)

# %% [markdown]
# ```{solution-start} ex-03-poly
# :class: dropdown
# ```
# Where $(1 - i/I)^{0.9} = 1/2$, so at $i/I = 1 - 2^{-1/0.9}$, a little after the middle.


# %% jupyter={"source_hidden": true}
def poly(step, steps, rate, power):
    return rate * (1 - step / steps) ** power


print(f"{1 - 0.5 ** (1 / 0.9):.2f} of the way")
_ = ch03.check_poly(poly)

# %% [markdown]
# ```{solution-end}
# ```
#
# ```{exercise} Write the head
# :label: ex-03-head
# Write the head of this chapter as a module with a 3 × 3 convolution, a BatchNorm and a 1 × 1 convolution, made in this
# order: a class of your own, or a function `make_head` that returns the module. The check gives it the weights of the library's and compares.
# ```


# %%
def make_head(in_channels, channels, size): ...


_ = ch03.check_head(make_head)

# %% [markdown]
# ```{solution-start} ex-03-head
# :class: dropdown
# ```


# %% jupyter={"source_hidden": true}
class Head(torch.nn.Module):
    def __init__(self, in_channels, channels, size):
        super().__init__()
        self.size = size
        self.mix = torch.nn.Conv2d(in_channels, in_channels, 3, padding=1)
        self.norm = torch.nn.BatchNorm2d(in_channels)
        self.predict = torch.nn.Conv2d(in_channels, channels, 1)

    def forward(self, features):
        x = F.interpolate(
            features, size=self.size, mode="bilinear"
        )  # (B, C, *size)
        return self.predict(F.gelu(self.norm(self.mix(x))))  # (B, channels, *size)


_ = ch03.check_head(Head)

# %% [markdown]
# ```{solution-end}
# ```
#
# ```{exercise} How large is the decoder?
# :label: ex-03-count
# Given the channels of the maps, the number of tasks and the width $C$, how many parameters has the baseline decoder of
# equation {eq}`eq-03-decoder`, biases included?
# ```


# %%
def decoder_parameters(map_channels, tasks, channels): ...


_ = ch03.check_decoder_parameters(decoder_parameters)

# %% [markdown]
# ```{solution-start} ex-03-count
# :class: dropdown
# ```


# %% jupyter={"source_hidden": true}
def decoder_parameters(map_channels, tasks, channels):
    return sum((c + 1) * tasks * channels for c in map_channels)


print(f"{decoder_parameters((768,) * 4, 5, 640) / 1e6:.2f} M with ViT-B")
_ = ch03.check_decoder_parameters(decoder_parameters)

# %% [markdown]
# ```{solution-end}
# ```
#
# ```{exercise} A batch without a label
# :label: ex-03-mean
# A batch may hold no person, and then not one pixel counts for the parts. Our `mean_over` would give 0/0. Write
# `safe_mean(per_pixel, valid)` so that it gives exactly 0 in that case, with a gradient of 0; and so that an infinite or undefined
# loss at an ignored pixel does no harm.
# ```


# %%
def safe_mean(per_pixel, valid): ...


_ = ch03.check_mean_over(safe_mean)

# %% [markdown]
# ```{solution-start} ex-03-mean
# :class: dropdown
# ```
# Multiplying by the mask fails, since $0 \cdot \infty$ is undefined; indexing by the mask fails on an empty one.


# %% jupyter={"source_hidden": true}
def safe_mean(per_pixel, valid):
    return torch.where(valid, per_pixel, 0.0).sum() / valid.sum().clamp(min=1)


_ = ch03.check_mean_over(safe_mean)

# %% [markdown]
# ```{solution-end}
# ```
#
# ## Takeaways
#
# - A backbone gives four maps, a decoder one feature per task, a head one prediction per task. In the
#   baseline only the backbone is shared.
# - The baseline decoder is linear: a map for each scale and task, and a sum. With ViT-B it makes the paper's 115 M
#   parameters and 391 · 2³⁰ multiply-accumulates, most of the latter in the heads.
# - Every loss has a value before the first step that can be worked out. If a script reads another, it has a mistake.
# - Losses in different units need weights, because the backbone feels them through their gradients alone.
# - A comparison of networks needs several seeds, and a number for the noise beside the number for the gain.
#
# You can now build, count, train and judge a multi-task network. Its decoder gives each task a linear map of shared
# features and nothing else. Part II replaces it: chapter 4 lets each task choose among experts.
