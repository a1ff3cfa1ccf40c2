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
# # Low-rank experts
#
# An expert with a 3 × 3 and a 1 × 1 convolution of $C$ channels has $C^2(9+1)$ weights. MLoRE {cite}`yang2024mlore` wants
# fifteen of them, in each of eight places. How can anyone afford fifteen?

# %%
import copy
import itertools

import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F

# %%
import mlore_edu as me
from mlore_edu import plots, published
from mlore_edu.backbones import build_backbone
from mlore_edu.pictures import to_rgb

plots.use_style()

# %%
with torch.device("meta"):
    vit_base = build_backbone("vit_base", (512, 512))
C, modules = 640, 8  # the width of the paper's ablations; 4 scales × 2 modules
ranks = range(16, 129, 8)  # 16, 24, …, 128: fifteen of them
bill = {
    "the ViT-B encoder": sum(p.numel() for p in vit_base.parameters()),
    "15 full-width experts": modules * 15 * C * C * (9 + 1),
    "15 low-rank experts": modules * sum(C * r * (9 + 1) for r in ranks),
    "one 3 × 3 convolution": modules * 9 * C * C,
}

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-05-bill", "caption": "Weights of a whole encoder, and of what might stand behind it in each of eight places, with C = 640. This chapter is about the third bar."}, "image": {"alt": "Four horizontal bars. Fifteen full-width experts in eight places take nearly 500 million weights, several times the encoder's 86 million. Fifteen low-rank experts take about 55 million, and one convolution 29 million."}}
figure, axis = plt.subplots(figsize=(7.5, 2.0))
millions = [weights / 1e6 for weights in bill.values()]
bars = axis.barh(
    list(bill), millions, color=[plots.OKABE_ITO[i] for i in (4, 1, 0, 2)]
)
axis.bar_label(bars, [f"{value:.0f} M" for value in millions], padding=4)
axis.invert_yaxis()
axis.set(xlabel="weights (millions)", xlim=(0, 560))
_ = axis.tick_params(axis="y", length=0)

# %% [markdown]
# The answer is in {numref}`fig-05-bill`: with experts that are allowed to see less. What do they lose by it? {numref}`fig-05-truncated`, further
# down, shows predictions made with most of a convolution thrown away.
#
# ## What you will be able to do
#
# - read a 3 × 3 convolution as a matrix, and say what its rank means;
# - prove that a 3 × 3 convolution to $r$ channels and a 1 × 1 convolution back are one 3 × 3 convolution of rank at most $r$;
# - look at the singular values of a trained kernel, and at predictions with the kernel cut down to rank $r$;
# - derive the cost of experts of any rank, and recount the paper's Table 1 cell by cell;
# - compute fifteen experts as one, and say what that saves and what it does not.
#
# *Before you start:* [chapter 3](../part1_foundations/03_one_encoder_many_heads.ipynb) for the heads that we take apart,
# [chapter 4](04_mixture_of_experts.ipynb) for experts and gates; matrices, their rank, and what a singular value
# decomposition is. *Time:* 30 minutes of reading, half a minute of running, most of it training. *Hardware:* two CPU cores, 4
# GB of memory; no GPU, no download.

# %% [markdown]
# ## A convolution is a matrix
#
# At each pixel a 3 × 3 convolution looks at a patch of nine pixels with $C$ numbers each. Write these $9C$ numbers as
# a column $\mathbf{p}$, and the weights as a matrix $\mathbf{K}$ with a row for each output channel. Then what comes out
# is
#
# ```{math}
# :label: eq-05-matrix
# \mathbf{y} = \mathbf{K}\,\mathbf{p} + \mathbf{b}, \qquad \mathbf{K} \in \mathbb{R}^{C \times 9C},
# ```
#
# the same matrix at every pixel. Outside the image the patch holds zeros.

# %%
torch.manual_seed(0)
weight = torch.randn(12, 12, 3, 3, dtype=torch.float64)  # C = 12
image = torch.randn(1, 12, 7, 9, dtype=torch.float64)
patches = F.unfold(image, kernel_size=3, padding=1)  # (1, 9·12, 63): one per pixel
K = weight.flatten(1)  # (12, 9·12)
by_matrix = (K @ patches).unflatten(2, (7, 9))  # (1, 12, 7, 9)
torch.testing.assert_close(by_matrix, F.conv2d(image, weight, padding=1))

# %% [markdown]
# The *rank* of $\mathbf{K}$ is the number of independent directions that can come out: if it is $r$, the outputs at all
# pixels of all images lie, but for the bias, in one $r$-dimensional subspace of $\mathbb{R}^C$. A random kernel has rank $C$.
# Does a useful one need it?
#
# LoRA {cite}`hu2022lora` asked this of what a large language model learns. Fine-tuning such a model changes its $C \times C$
# matrices, and LoRA allows only changes of the form $\mathbf{U}\mathbf{V}$ with $\mathbf{U} \in \mathbb{R}^{C \times r}$ and
# $\mathbf{V} \in \mathbb{R}^{r \times C}$: instead of $C^2$ numbers, $2Cr$ are learned. It turned out that a very small $r$
# is enough. MLoRE carries the form over to convolutions,
#
# ```{math}
# :label: eq-05-factors
# \mathbf{K} = \mathbf{U}\,\mathbf{V}, \qquad \mathbf{U} \in \mathbb{R}^{C \times r}, \quad \mathbf{V} \in \mathbb{R}^{r \times 9C},
# ```
#
# and here both factors are convolutions themselves: $\mathbf{V}$ has the shape of a 3 × 3 convolution from $C$ to $r$
# channels, $\mathbf{U}$ that of a 1 × 1 convolution from $r$ to $C$. At every pixel the first gives
# $\mathbf{V}\mathbf{p} + \mathbf{b}_V$, and the second, which sees that pixel alone, makes of it
#
# ```{math}
# :label: eq-05-proof
# \mathbf{U}(\mathbf{V}\mathbf{p} + \mathbf{b}_V) + \mathbf{b}_U = (\mathbf{U}\mathbf{V})\,\mathbf{p} + (\mathbf{U}\mathbf{b}_V + \mathbf{b}_U).
# ```
#
# This is {eq}`eq-05-matrix` with $\mathbf{K} = \mathbf{U}\mathbf{V}$, at the border as well, since nothing was assumed of $\mathbf{p}$. A product of a $C \times r$ and an
# $r \times 9C$ matrix has rank at most $r$. That is the proof; here is the check.
# (The other order, 1 × 1 before 3 × 3, has as many weights, but with a bias between the two it does not compose at the border: [chapter 8](08_reparameterisation.ipynb).)

# %%
r = 3
V = torch.randn(r, 12, 3, 3, dtype=torch.float64)  # 3 × 3: C → r
U = torch.randn(12, r, dtype=torch.float64)  # 1 × 1: r → C
b_in = torch.randn(r, dtype=torch.float64)  # b_V
b_out = torch.randn(12, dtype=torch.float64)  # b_U
hidden = F.conv2d(image, V, b_in, padding=1)  # (1, r, 7, 9)
two_steps = F.conv2d(hidden, U[:, :, None, None], b_out)  # (1, 12, 7, 9)

# %%
composed = (U @ V.flatten(1)).unflatten(1, (12, 3, 3))  # (12, 12, 3, 3)
one_step = F.conv2d(image, composed, U @ b_in + b_out, padding=1)  # (1, 12, 7, 9)
assert (one_step - two_steps).abs().max() < 1e-12 * two_steps.abs().max()
print("rank of a random kernel:", int(torch.linalg.matrix_rank(K)))
print(
    "rank of the composed one:", int(torch.linalg.matrix_rank(composed.flatten(1)))
)

# %% [markdown]
# The argument also runs backwards: every kernel of rank $r$ is such a pair. The singular value decomposition writes any kernel as
# $\mathbf{K} = \sum_i \sigma_i \mathbf{u}_i \mathbf{v}_i^\top$, with orthonormal $\mathbf{u}_i$, orthonormal $\mathbf{v}_i$ and
# *singular values* $\sigma_1 \ge \sigma_2 \ge \dots \ge 0$. Each term is a pattern $\mathbf{v}_i$ of nine pixels to look for, and a
# direction $\mathbf{u}_i$ in which to answer where it is found. Stop after $r$ terms, and the result has rank $r$ and
# is a low-rank convolution. By a theorem of Eckart and Young {cite}`eckart1936approximation` no kernel of rank $r$ is
# closer to $\mathbf{K}$, and what is lost is known beforehand: the squared distance is $\sigma_{r+1}^2 + \sigma_{r+2}^2 + \cdots$


# %%
def truncate(kernel, rank):
    """The closest kernel of the given rank."""
    u, sigma, v = torch.linalg.svd(kernel.flatten(1), full_matrices=False)
    matrix = u[:, :rank] * sigma[:rank] @ v[:rank]  # (C, 9C)
    return matrix.unflatten(1, kernel.shape[1:])  # (C, C, 3, 3)


sigma = torch.linalg.svdvals(K)
lost = (truncate(weight, 5) - weight).square().sum()
torch.testing.assert_close(lost, sigma[5:].square().sum())
torch.testing.assert_close(truncate(composed, r), composed)  # nothing to lose

# %% [markdown]
# ## How low is the rank of a kernel that works?
#
# A random kernel loses a good part of itself at any rank below $C$. A kernel that has learned something may not. To see, we train the small
# network of chapter 3 and open its heads: each has a 3 × 3 convolution, here of 32 channels, between the features of its task
# and the prediction. We keep the kernels as they were before training.

# %%
from mlore_edu.data.dollhouse_files import VALIDATION_SEEDS, DollhouseScenes
from mlore_edu.data.loaders import make_loader
from mlore_edu.data.transforms import denormalise, eval_transform, train_transform

tasks = me.DOLLHOUSE
flips = train_transform(64, scale=(1, 1), photometric=False)
training = DollhouseScenes(160, 64, "easy", transform=flips)
validation = DollhouseScenes(
    24, 64, "easy", VALIDATION_SEEDS, transform=eval_transform(64)
)
truth = next(iter(make_loader(validation, len(validation), train=False)))


# %%
def train(model, steps, learning_rate=4e-3):
    criterion = me.MultiTaskLoss(tasks, edge_positive_weight=0.8)
    optimizer = torch.optim.Adam(model.parameters(), learning_rate)
    schedule = torch.optim.lr_scheduler.PolynomialLR(optimizer, steps, power=0.9)
    model.train().to(memory_format=torch.channels_last)  # faster convolutions
    for batch in itertools.islice(make_loader(training, 8, train=True), steps):
        total, _ = criterion(model(batch["image"]).predictions, batch)
        optimizer.zero_grad()
        total.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 10.0)
        optimizer.step()
        schedule.step()


# %%
torch.manual_seed(0)
model = me.build_model("baseline_vit_nano", tasks, img_size=(64, 64))
untrained = copy.deepcopy(model)
train(model, steps=180)
_ = model.eval()


# %%
def kernels_of(network):
    return {name: h.mix.weight.detach() for name, h in network.heads.items()}


before, after = kernels_of(untrained), kernels_of(model)  # (32, 32, 3, 3) each
change = {name: after[name] - before[name] for name in tasks.names}

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-05-spectrum", "caption": "Singular values of the heads' 3 × 3 kernels: as they were drawn, after training, and those of the difference of the two."}, "image": {"alt": "Three panels with six lines each over 32 singular values. Before training all lines are nearly level and alike. After training the first few values stand several times higher and the rest lies where it was. The values of the difference start as high and fall close to zero."}}
figure, axes = plt.subplots(1, 3, figsize=(7.5, 2.9), sharey=True)
for axis, (title, kernels) in zip(
    axes, {"before": before, "after": after, "change": change}.items()
):
    for name, kernel in kernels.items():
        sigma = torch.linalg.svdvals(kernel.flatten(1))
        axis.plot(range(1, 33), sigma, label=tasks[name].title, lw=1.5)
    axis.set(title=title, xlabel="i", xticks=(1, 8, 16, 24, 32))
axes[0].set(ylabel="singular value $\\sigma_i$", ylim=(0, None))
_ = figure.legend(
    *axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3
)

# %% [markdown]
# Before training ({numref}`fig-05-spectrum`, left) no direction stands out. After it a few do, and behind them lies a
# floor that looks like the beginning. So it is: the right panel shows what training has *added*, and that has few large
# values and then next to nothing. Most of the trained kernel's rank is noise that it was born with.
#
# This is LoRA's observation, in a network that was trained from nothing: **what is learned is of low rank**. In numbers: how much
# of the squared singular values do the first eight of thirty-two hold?


# %%
def share(kernel, rank):
    squares = torch.linalg.svdvals(kernel.flatten(1)).square()
    return (squares[:rank].sum() / squares.sum()).item()


stages = {"before": before, "after": after, "of the change": change}
for title, kernels in stages.items():
    least = min(share(kernel, 8) for kernel in kernels.values())
    print(f"{title:13} more than 1/2: {least > 0.5}, than 3/4: {least > 0.75}")

# %% [markdown]
# {numref}`fig-05-matrix` shows one such kernel as the matrix of {eq}`eq-05-matrix`. Its four strongest terms keep the
# stripes and blotches that one notices; what is left over looks as it did before training.

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-05-matrix", "caption": "The depth head's trained kernel as a 32 × 288 matrix; its factors at rank 4, drawn where they meet in the product; and what rank 4 leaves over. Blue is negative, red positive, one scale for the three kernels."}, "image": {"alt": "Three wide coloured matrices below each other: the kernel, the product of a tall narrow and a low wide factor which shows the same vertical stripes, and the remainder, an even noise without structure."}}
kernel = after["depth"].flatten(1)  # (32, 288)
u, sigma, v = torch.linalg.svd(kernel, full_matrices=False)
left, right = u[:, :4] * sigma[:4].sqrt(), sigma[:4, None].sqrt() * v[:4]
limit = kernel.abs().max() / 2
figure, axes = plt.subplots(
    4,
    2,
    figsize=(7.5, 4.6),
    width_ratios=(4, 288),
    height_ratios=(32, 6, 32, 32),
)
shown = {
    (0, 1): (kernel, limit, "the trained kernel $\\mathbf{K}$"),
    (1, 1): (right, right.abs().max(), "$\\mathbf{V}$"),
    (2, 0): (left, left.abs().max(), "$\\mathbf{U}$"),
    (2, 1): (left @ right, limit, "$\\mathbf{U}\\mathbf{V}$, rank 4"),
    (3, 1): (kernel - left @ right, limit, "what is left over"),
}
for place, axis in np.ndenumerate(axes):
    axis.set_axis_off()
    if place in shown:
        matrix, most, title = shown[place]
        axis.imshow(matrix, cmap="RdBu_r", vmin=-most, vmax=most, aspect="auto")
        axis.set_title(title, fontsize=9, pad=2)

# %% [markdown]
# ### What survives in the picture
#
# Small in numbers need not mean harmless in a prediction. We cut the kernels of all six heads down to rank $r$ and look. Encoder,
# decoder and everything else stay as they were.

# %%
from mlore_edu.evaluation import decode

with torch.no_grad():
    features = model.decoder(model.backbone(truth["image"])).features


def predict(name, rank):
    head, kernel = model.heads[name], truncate(after[name], rank)
    x = F.interpolate(features[name], size=head.size, mode="bilinear")
    x = F.conv2d(x, kernel, head.mix.bias, padding=1)  # (B, 32, 32, 32)
    x = head.predict(F.gelu(head.norm(x)))  # (B, channels, 32, 32)
    x = F.interpolate(x, size=(64, 64), mode="bilinear")  # (B, channels, 64, 64)
    return decode({name: x.detach()}, tasks.subset(name))[name]


# %% mystnb={"figure": {"name": "fig-05-truncated", "caption": "One validation scene, predicted with the kernels of all heads cut down to rank 1, 2, 4 and 8 out of 32, and with the whole kernels."}, "image": {"alt": "A grid of pictures with a column for each of six tasks and rows for the label and for ranks 1, 2, 4, 8 and 32. Boundaries and saliency are there at rank 1 or 2; segmentation, body parts, normals and depth are wrong at rank 1, become recognisable by rank 4, and at rank 8 resemble the predictions of the whole kernel."}}
people = ((truth["human_parts"] > 0) & (truth["human_parts"] != 255)).sum((1, 2))
scene = people.argmax().item()  # the scene with the largest person
rows = {"label": {name: truth[name][scene] for name in tasks.names}}
for rank in (1, 2, 4, 8, 32):
    rows[f"rank {rank}"] = {
        name: predict(name, rank)[scene] for name in tasks.names
    }
figure = plots.show_grid(list(rows.values()), list(rows))

# %% [markdown]
# A quarter of the rank does most of the work. {numref}`fig-05-scores` says the same in the metrics of chapter 2, over all
# validation scenes and relative to the whole kernel. It says something else besides: **tasks need different ranks**. One
# direction is enough to answer "boundary or not". Fifteen classes need several, and so do normals.

# %%
from mlore_edu.metrics import make_meters


def score(name, rank):
    meter = make_meters(tasks.subset(name))[name]
    meter.update(predict(name, rank), truth[name])
    return meter.compute()


cuts = (1, 2, 3, 4, 6, 8, 12, 16, 32)
scores = {name: [score(name, rank) for rank in cuts] for name in tasks.names}

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-05-scores", "caption": "How good the predictions remain when the head's kernel is cut down to rank r: the metric divided by that of the whole kernel, or the other way round for errors."}, "image": {"alt": "Six curves over ranks 1 to 32 on a logarithmic axis. Boundaries and saliency are close to 100 percent from rank 1 or 2 on; depth, segmentation and human parts rise steeply up to rank 6 or 8; normals rise more slowly. All end at 100 percent."}}
figure, axis = plt.subplots(figsize=(7.5, 3.0))
for (name, values), marker in zip(scores.items(), "osD^vP"):
    values = np.array(values)
    kept = (
        values[-1] / values if tasks[name].lower_is_better else values / values[-1]
    )
    axis.plot(cuts, 100 * kept, marker=marker, ms=4, label=tasks[name].title)
axis.set_xscale("log", base=2)
axis.set(xlabel="rank kept (of 32)", ylabel="quality kept (%)", ylim=(0, 105))
axis.set_xticks(cuts, map(str, cuts))
axis.minorticks_off()
_ = figure.legend(loc="outside right center", fontsize=9)

# %%
first = {name: values[0] / values[-1] for name, values in scores.items()}
print("rank 1 keeps 9/10 of the boundary score:", first["edge"] > 0.9)
print("rank 1 keeps half of the mIoU:", first["semseg"] > 0.5)

# %% [markdown]
# Try other tasks and ranks than those of {numref}`fig-05-explorer`. Which shapes appear first?


# %%
def show_cut(name, rank):
    _, axes = plt.subplots(1, 4, figsize=(7.5, 2.2))
    image = denormalise(truth["image"][scene])
    pictures = {
        "image": ("image", image),
        f"{tasks[name].title}: label": (name, truth[name][scene]),
        f"rank {rank}": (name, predict(name, rank)[scene]),
        "rank 32": (name, predict(name, 32)[scene]),
    }
    for axis, (title, (key, picture)) in zip(axes, pictures.items()):
        axis.imshow(to_rgb(key, picture))
        axis.set(xticks=[], yticks=[])
        axis.set_title(title, fontsize=9, wrap=True)
        axis.spines[:].set_visible(False)


# %% tags=["nbval-ignore-output"]
import ipywidgets

names = ipywidgets.Dropdown(
    options=tasks.names, value="normals", description="task"
)
rank = ipywidgets.IntSlider(3, 1, 32, description="rank")
_ = ipywidgets.interact(
    lambda name, rank: (show_cut(name, rank), plt.show())[1], name=names, rank=rank
)

# %% mystnb={"figure": {"name": "fig-05-explorer", "caption": "The explorer's view of the normals at rank 3."}, "image": {"alt": "Four pictures of one scene: the image, the true surface normals in colours, the normals predicted with a kernel of rank 3 in which some surfaces have a wrong colour, and those of the whole kernel."}}
show_cut("normals", 3)

# %% [markdown]
# Take this for what it is. Cutting a trained kernel is one thing, training with few ranks from the start another; and
# these heads are narrow. It makes low-rank experts plausible. Whether they work is a question for experiments, and the paper's Table 2 has one: the same
# baseline with fifteen full-width experts (MoE) and with fifteen low-rank ones (LoRE).

# %%
table2 = published.table("mlore", 2)
print(table2.format("setting", "delta_m", "flops", "parameters"))

# %% [markdown]
# Low-rank experts win back half of what the baseline lacks. Full-width ones win back half a point more, at almost six times the extra
# parameters. So low rank is not free; what more than makes up for it are the two paths of the last rows, which chapter 6 adds. Our own runs of this comparison, with
# several seeds, are in [chapter 9](09_mlore_assembled.ipynb).
#
# ## What an expert costs
#
# A weight of a convolution is used once at every pixel, so weights and multiply-accumulates go together: on a map of
# $L$ pixels, each weight costs $L$ of the latter. For a first convolution of width $k$ (in this section $k$ is that width, not a number
# of active experts), biases aside,
#
# ```{math}
# :label: eq-05-cost
# \underbrace{k^2 C^2 + C^2 = (k^2+1)\,C^2}_{\text{full width}} \qquad\qquad
# \underbrace{k^2 C r + r C = (k^2+1)\,C r}_{\text{rank } r}
# ```
#
# weights make an expert. The ratio is $r/C$, whatever $k$ is. A set of low-rank experts costs as much as a single one of rank
# $\sum_n r_n$ would, so with the paper's fifteen ranks

# %%
total = sum(ranks)
print(f"ranks sum to {total}, their mean is {total / len(ranks):.0f}")
for width in (640, 384):
    print(
        f"C = {width}: fifteen cost as much as {total / width:.1f} full-width experts"
    )

# %% [markdown]
# Two cautions. First, a full-width expert may have an activation between its two convolutions, and a low-rank one must
# not: only without it are the two one convolution. Secondly, {eq}`eq-05-cost` saves nothing unless $r < C$, and against the plain 3 × 3
# convolution that it could be composed to, with $9C^2$ weights, unless $r < 0.9\,C$.
#
# ### The paper's Table 1, recounted
#
# The paper compares one module of its own with one of standard experts, in parameters and "FLOPs". Its table does not say at which size, but
# the numbers do: $C = 384$, which its text gives as the decoder's width (the ablations say 640), 32 × 32 tokens and five tasks of
# PASCAL-Context, and a G of $2^{30}$ as we found in chapter 3. Then one expert used once on every token costs $(k^2+1)$ times

# %%
table = published.table("mlore", 1)
C1, tokens, T = 384, 32 * 32, 5
call = C1 * C1 * tokens / 2**30
print(f"{call:.4f} · 2³⁰ multiply-accumulates")

# %% [markdown]
# The left half of the table grows by one such call per expert and starts at ten calls with five experts: $N + 5$ in all. Every
# expert runs once on the shared feature, and there is one more, it seems, for each task. The right half hardly grows. It counts the module *after*
# re-parameterisation, where each task has a 1 × 1 projection and one fused convolution left: $5\,(k^2+1)$.

# %%
N = np.array(table["experts"])
k2 = np.array(table["kernel"]) ** 2 + 1  # 2 or 10
flops_moe = (N + T) * k2 * call
flops_mlore = T * k2 * call
both = table.beside("flops_moe", flops_moe).beside("flops_mlore", flops_mlore)
columns = [c.name for c in both.columns if "parameters" not in c.name]
print(both.format(*columns))

# %% [markdown]
# Every cell comes out but for a little, and the little has a pattern: with each expert it grows by the same amount,
# in both halves and for either $k$.

# %%
left_moe = np.array(table["flops_moe"]) - flops_moe
left_mlore = np.array(table["flops_mlore"]) - flops_mlore
print("MoE  ", left_moe.round(3))
print("MLoRE", left_mlore.round(3))
residual = 0.0175 * N  # G per expert
assert np.abs(left_mlore - residual).max() < 0.01
assert np.abs(left_moe - residual - 0.1).max() < 0.01

# %% [markdown]
# So something costs 0.0175 G for every expert, and the MoE half has 0.1 G of its own. What is it? Divided by the 1,024
# tokens these are 18 thousand and 105 thousand weights, if it is a layer that is used on every token like the rest. Then the columns of
# parameters should show it too. We count a generic $k \times k$ convolution and five projections for MLoRE, $N$ experts and one per
# task for MoE, and add those weights:

# %%
per_expert, once = (giga * 2**30 / tokens for giga in (0.0175, 0.1))
parameters_moe = (N + T) * k2 * C1**2 + N * per_expert + once


def parameters_mlore(mean_rank):
    paths = (k2 - 1) * C1**2 + T * C1**2  # generic path, projections
    return paths + N * (k2 * C1 * mean_rank + per_expert)


both = table.beside("parameters_moe", parameters_moe / 1e6)
both = both.beside("parameters_mlore", parameters_mlore(64) / 1e6)
print(both.format("experts", "kernel", "parameters_moe", "parameters_moe ours"))

# %%
print(both.format("experts", "kernel", "parameters_mlore", "parameters_mlore ours"))


def agrees(ours, printed):
    return bool((np.abs(ours / 1e6 - printed) <= 0.05).all())


print("MoE agrees:", agrees(parameters_moe, table["parameters_moe"]))
fits = [
    r
    for r in range(16, 129)
    if agrees(parameters_mlore(r), table["parameters_mlore"])
]
print("mean ranks with which MLoRE agrees:", fits)

# %% [markdown]
# All twelve cells agree. A layer of about 18 thousand weights for every expert, say of $48 \cdot 384$, and one of 105 thousand in the standard module
# would explain what was left over in four columns; which layers these are, the paper does not say. Nor are the ranks those of its text, with their mean of 72 ({numref}`fig-05-table1`):

# %%
too_many = parameters_mlore(72)[-1] / 1e6
print(f"with a mean rank of 72 the last row would have {too_many:.1f} M")

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-05-table1", "caption": "The paper's Table 1 (dots) and our count (lines). Left, parameters; right, multiply-accumulates. Fifteen low-rank experts of 3 × 3 take as many parameters as fifteen full-width ones of 1 × 1. MLoRE's multiply-accumulates are those after re-parameterisation."}, "image": {"alt": "Two panels over 5, 10 and 15 experts. For experts of 3 by 3 convolutions the standard mixture rises steeply, to 30 million parameters and 28 G, while the low-rank module rises to 6 million and stays at 7 G. For experts of 1 by 1 convolutions both lie far lower. All dots lie on their lines."}}
figure, axes = plt.subplots(1, 2, figsize=(7.5, 2.8))
columns = (
    ("parameters_moe", parameters_moe / 1e6, axes[0]),
    ("parameters_mlore", parameters_mlore(64) / 1e6, axes[0]),
    ("flops_moe", flops_moe + residual + 0.1, axes[1]),
    ("flops_mlore", flops_mlore + residual, axes[1]),
)
for name, ours, axis in columns:
    colour = plots.OKABE_ITO[1 if name.endswith("moe") else 0]
    for kernel, style in ((1, "--"), (3, "-")):
        which = np.array(table["kernel"]) == kernel
        printed = np.array(table[name])[which]
        label = f"{'MoE' if name.endswith('moe') else 'MLoRE'}, {kernel} × {kernel}"
        axis.plot(N[which], ours[which], style, color=colour, label=label)
        axis.plot(N[which], printed, "o", color=colour, ms=5)
axes[0].set(ylabel="parameters (M)", xlabel="experts N")
axes[1].set(ylabel="multiply-accumulates (2³⁰)", xlabel="experts N")
for axis in axes:
    axis.set(xticks=(5, 10, 15), ylim=(0, None))
_ = figure.legend(
    *axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=4
)

# %% [markdown]
# One more thing the table does not show: what it takes to *make* the fused convolutions, for every image and every task anew. That is the
# price of a mixture that depends on the sample, and [chapter 8](08_reparameterisation.ipynb) pays it.
#
# ## Fifteen different ranks
#
# MLoRE gives its experts the ranks 16, 24, … up to 128. Why not the same rank to all? The paper's reason is diversity, and its evidence is
# this:

# %%
print(
    published.table("mlore", 3).format(
        "min_rank", "max_rank", *me.PASCAL_CONTEXT.names, "delta_m"
    )
)

# %% [markdown]
# Mixed ranks have the best $\Delta_m$. Look at the tasks, though: with rank 16 throughout, two of the five are better than with mixed ranks. With rank 128, the
# most expensive choice, $\Delta_m$ is lowest. No second seed is reported. What can be said is that more rank is not
# simply better, and that half a percent of $\Delta_m$ lies between the best and the worst of the three.
#
# {numref}`fig-05-scores` suggests a reason of its own for mixed ranks, since tasks differ in what they need. And there is one that can be proved.
# A single expert is confined to a subspace. But gates *add* experts, and the rank of a sum can be as large as the sum of the
# ranks. Of the fifteen experts nine are active for a task. The nine of lowest rank have together

# %%
lowest = sorted(ranks)[:9]
print(" + ".join(map(str, lowest)), "=", sum(lowest))
assert sum(lowest) > C1

# %% [markdown]
# which is more than 384. So with $C = 384$, whichever nine experts a task picks, the rank of their sum can be full, and no subspace confines it. It is the single
# expert that is simple; the mixture is not. We try it with random experts at an eighth of the size.

# %%
narrow, small_ranks = 384 // 8, [r // 8 for r in ranks]  # 48; 2, 3, …, 16


def random_expert(rank):
    down = torch.randn(rank, 9 * narrow, dtype=torch.float64)
    return torch.randn(narrow, rank, dtype=torch.float64) @ down  # (C, 9C)


experts = [random_expert(rank) for rank in small_ranks]
for k in (1, 3, 6, 8, 9):
    found = int(torch.linalg.matrix_rank(sum(experts[:k])))
    print(f"the {k} lowest: rank {found} of {narrow}")

# %% [markdown]
# ## Fifteen experts, one convolution
#
# It remains to compute them. Written down as it reads, the sum over experts for the features $\mathbf{X}^t$ of task $t$ is
#
# ```{math}
# :label: eq-05-sum
# \mathbf{Y}^t = \sum_{n=1}^{N} g^t_n \left( \mathbf{U}_n (\mathbf{V}_n \circledast \mathbf{X}^t + \mathbf{b}_n) + \mathbf{c}_n \right),
# ```
#
# where $\circledast$ is the 3 × 3 convolution, $g^t_n$ are the gates of chapter 4, zero for experts that are not active, and $\mathbf{b}_n$, $\mathbf{c}_n$ the biases. In code it is a loop.

# %%
B, T, N, C = 2, 5, 15, narrow


def draw(*shape):
    return torch.randn(*shape, dtype=torch.float64)


V = [draw(r, C, 3, 3) for r in small_ranks]
b, U = [draw(r) for r in small_ranks], [draw(C, r) for r in small_ranks]
c, X = draw(N, C), draw(B, T, C, 8, 8).requires_grad_()

# %%
logits = draw(B, T, N)
active = torch.zeros_like(logits).scatter(-1, logits.topk(9).indices, 1.0)
gates = logits.softmax(-1) * active  # (B, T, N), six of them zero
_ = gates.requires_grad_()


# %%
def one_by_one(X, gates):
    flat = X.flatten(0, 1)  # (B·T, C, H, W)
    total = 0
    for n in range(N):
        hidden = F.conv2d(flat, V[n], b[n], padding=1)  # (B·T, r_n, H, W)
        expert = F.conv2d(hidden, U[n][:, :, None, None], c[n])  # (B·T, C, H, W)
        expert = expert.unflatten(0, (B, T))  # (B, T, C, H, W)
        total = total + gates[:, :, n, None, None, None] * expert
    return total  # (B, T, C, H, W)


# %% [markdown]
# Now rearrange {eq}`eq-05-sum`. A gate is a number and may move inside, to the $r_n$ channels between the two convolutions. Put the $\mathbf{V}_n$ below
# each other and the $\mathbf{U}_n$ side by side, and the sum over experts becomes part of a matrix product:
#
# ```{math}
# :label: eq-05-concatenated
# \mathbf{Y}^t = \begin{bmatrix} \mathbf{U}_1 & \cdots & \mathbf{U}_N \end{bmatrix}
# \begin{bmatrix} g^t_1 (\mathbf{V}_1 \circledast \mathbf{X}^t + \mathbf{b}_1) \\ \vdots \\ g^t_N (\mathbf{V}_N \circledast \mathbf{X}^t + \mathbf{b}_N) \end{bmatrix}
# + \sum_{n=1}^{N} g^t_n \mathbf{c}_n .
# ```
#
# One 3 × 3 convolution to $\sum r_n$ channels, a gate for each channel, one 1 × 1 convolution back, and a small matrix product for the last biases ({numref}`fig-05-concatenated`).

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-05-concatenated", "caption": "The channels between the two convolutions, as wide as their expert's rank. Here nine experts are active for a task; the gate of an expert, its height, multiplies all of its channels."}, "image": {"alt": "A row of fifteen blocks that become wider from left to right, from 16 to 128 channels. Nine of them are filled to different heights, six are empty."}}
edges = np.concatenate([[0], np.cumsum(ranks)])
heights = gates[0, 0].detach().numpy()
figure, axis = plt.subplots(figsize=(7.5, 1.9))
axis.bar(
    edges[:-1],
    heights,
    np.diff(edges),
    align="edge",
    color=[plots.OKABE_ITO[0 if i % 2 else 4] for i in range(15)],
)
for start, width in zip(edges, np.diff(edges)):
    axis.axvline(start, color="0.8", lw=0.8, zorder=0)
    axis.text(
        start + width / 2,
        heights.max() * 1.08,
        width,
        ha="center",
        fontsize=8,
        rotation=90 if width < 40 else 0,
    )
axis.set(xlim=(-8, total), ylim=(0, heights.max() * 1.3), ylabel="gate")
_ = axis.set_xlabel(
    "channel between the two convolutions, of 1,080; above: rank of the expert"
)

# %%
V_all, b_all, U_all = torch.cat(V), torch.cat(b), torch.cat(U, dim=1)
of_rank = torch.tensor(small_ranks)


def concatenated(X, gates):
    hidden = F.conv2d(X.flatten(0, 1), V_all, b_all, padding=1)  # (B·T, Σr, H, W)
    gate = gates.flatten(0, 1).repeat_interleave(of_rank, dim=1)  # (B·T, Σr)
    hidden = hidden * gate[:, :, None, None]
    mixed = F.conv2d(hidden, U_all[:, :, None, None])  # (B·T, C, H, W)
    return mixed.unflatten(0, (B, T)) + (gates @ c)[..., None, None]


Y = one_by_one(X, gates)
torch.testing.assert_close(concatenated(X, gates), Y)

# %% [markdown]
# This is what the library does. `LowRankExperts` holds the experts concatenated from the start; with our weights in it, outputs and gradients are the same.

# %%
from mlore_edu.decoders.low_rank import LowRankExperts

library = LowRankExperts(C, small_ranks, form="concatenated").double()
weights = {
    "down.weight": V_all,
    "down.bias": b_all,
    "up_weight": U_all,
    "up_bias": c,
}
print(library.load_state_dict(weights))
torch.testing.assert_close(library(X, gates), Y)

# %%
pull = torch.randn_like(Y)  # any gradient from above
for form in (concatenated, library):
    ours = torch.autograd.grad(form(X, gates), (X, gates), pull)
    naive = torch.autograd.grad(one_by_one(X, gates), (X, gates), pull)
    for gradient, expected in zip(ours, naive, strict=True):
        torch.testing.assert_close(gradient, expected)

# %% [markdown]
# ### What it saves
#
# Not arithmetic. Both forms use each weight once at every pixel, $10\,C \sum r_n$ multiply-accumulates a pixel. The loop could even skip experts
# that are not active, which the concatenated form computes and multiplies by zero; for one sample and task that would save a part,
# but every sample and task skips other ones.
#
# What it saves is memory. Training must *hold* the numbers from which gradients will be computed. The textbook form of a mixture, all experts' outputs in one
# stack, holds $N C$ numbers for every pixel and task, and the $\sum r$ channels in front of them. We let PyTorch tell what it holds.


# %%
def stacked(X, gates):
    outputs = []
    for n in range(N):
        hidden = F.conv2d(X.flatten(0, 1), V[n], b[n], padding=1)
        outputs.append(F.conv2d(hidden, U[n][:, :, None, None], c[n]))
    stack = torch.stack(outputs, dim=1).unflatten(0, (B, T))  # (B, T, N, C, H, W)
    return torch.einsum("btn,btnchw->btchw", gates, stack)


# %%
leaves = [*V, *U, *b, c, V_all, U_all, b_all, X, gates]
for tensor in leaves:
    tensor.requires_grad_()


def numbers_held(form):
    """Numbers kept for the backward pass, inputs and weights aside."""
    held, known = {}, {tensor.data_ptr() for tensor in leaves}

    def note(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            held[storage.data_ptr()] = storage.nbytes() // tensor.element_size()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        output = form(X, gates)  # alive, so that no storage is used twice
    assert output.requires_grad
    return sum(held.values())


# %%
pixels = B * T * 8 * 8
per_pixel = {f.__name__: numbers_held(f) / pixels for f in (stacked, concatenated)}
R = sum(small_ranks)
formulas = {"stacked": N * C + R, "concatenated": 2 * R}
for form, numbers in formulas.items():
    print(f"{form:12} by formula {numbers}, measured {per_pixel[form]:.0f}")

# %% [markdown]
# The concatenated form holds its $\sum r$ channels twice, before and after the gate, and one gate for each (the small rest). It never makes a map of $C$ channels for an
# expert. At the paper's size, in 32 bits:

# %%
at_640 = {"stacked": 15 * 640 + total, "concatenated": 2 * total}
size = 8 * 5 * 1024 * 4 / 1e9  # modules, tasks, tokens, bytes; in GB
for form, numbers in at_640.items():
    print(f"{form:12} {numbers * size:.2f} GB held for one image of 512 × 512")

# %% [markdown]
# There is a third form. The experts have no activation, so their kernels can be added before anything is convolved. Then there is nothing between to hold, but
# a kernel for each sample and task to make. Which form is cheaper depends on the batch, the number of tokens, $C$ and the ranks;
# `LowRankExperts(form="auto")` works it out from the shapes. [Chapter 8](08_reparameterisation.ipynb) derives it.
#
# ## Exercises
#
# ```{exercise} The size of an expert
# :label: ex-05-size
# How many parameters has one low-rank expert with $C$ channels, rank $r$ and a first convolution of width $k$, both biases
# included? Write `expert_parameters(channels, rank, kernel)`.
# ```

# %%
from mlore_edu.exercises import ch05


def expert_parameters(channels, rank, kernel): ...


_ = ch05.check_expert_parameters(expert_parameters)

# %% [markdown]
# ```{solution-start} ex-05-size
# :class: dropdown
# ```


# %% jupyter={"source_hidden": true}
def expert_parameters(channels, rank, kernel):
    return (kernel**2 * channels + 1) * rank + (rank + 1) * channels


_ = ch05.check_expert_parameters(expert_parameters)

# %% [markdown]
# ```{solution-end}
# ```
#
# ```{exercise} From a kernel to an expert
# :label: ex-05-factors
# Write `factors(kernel, rank)`: the 3 × 3 weights `(r, C, 3, 3)` and the 1 × 1 weights `(C, r)` of the low-rank expert that comes
# closest to a given kernel `(C, C, 3, 3)`. Are they the only ones?
# ```


# %%
def factors(kernel, rank): ...


_ = ch05.check_factors(factors)

# %% [markdown]
# ```{solution-start} ex-05-factors
# :class: dropdown
# ```
# They are not: for any invertible $r \times r$ matrix $\mathbf{A}$, the factors $\mathbf{U}\mathbf{A}$ and
# $\mathbf{A}^{-1}\mathbf{V}$ have the same product. The number of its weights is therefore larger, by $r^2$, than the
# number of directions in which one low-rank expert can differ from another.


# %% jupyter={"source_hidden": true}
def factors(kernel, rank):
    u, sigma, v = torch.linalg.svd(kernel.flatten(1), full_matrices=False)
    down = v[:rank].unflatten(1, kernel.shape[1:])  # (r, C, 3, 3)
    return down, u[:, :rank] * sigma[:rank]  # (C, r)


_ = ch05.check_factors(factors)

# %% [markdown]
# ```{solution-end}
# ```
#
# ```{exercise} How much rank is needed?
# :label: ex-05-needed
# Write `rank_needed(kernel, share)`: the smallest rank that keeps at least the given share of the sum of squared
# singular values. Which head's *change* in this chapter needs the lowest rank for a share of 0.9?
# ```


# %%
def rank_needed(kernel, share): ...


_ = ch05.check_rank_needed(rank_needed)

# %% [markdown]
# ```{solution-start} ex-05-needed
# :class: dropdown
# ```
# Usually that of a task that says yes or no, boundaries or saliency. The check below compares the six heads.


# %% jupyter={"source_hidden": true}
def rank_needed(kernel, share):
    squares = torch.linalg.svdvals(kernel.flatten(1)).square()
    kept = squares.cumsum(0) / squares.sum()
    return int((kept < share).sum()) + 1


needed = {name: rank_needed(kernel, 0.9) for name, kernel in change.items()}
print(
    "yes or no needs the least:",
    min(needed, key=needed.get) in ("edge", "saliency"),
)
_ = ch05.check_rank_needed(rank_needed)

# %% [markdown]
# ```{solution-end}
# ```
#
# ```{exercise} A gate for every channel
# :label: ex-05-gate
# Write `gate_of_rank(gates, ranks)`: gates `(…, N)` become `(…, Σr)`, each repeated for all channels of its expert. It must work for any number of leading dimensions.
# ```


# %%
def gate_of_rank(gates, ranks): ...


_ = ch05.check_gate_of_rank(gate_of_rank)

# %% [markdown]
# ```{solution-start} ex-05-gate
# :class: dropdown
# ```


# %% jupyter={"source_hidden": true}
def gate_of_rank(gates, ranks):
    return gates.repeat_interleave(torch.tensor(ranks), dim=-1)


_ = ch05.check_gate_of_rank(gate_of_rank)

# %% [markdown]
# ```{solution-end}
# ```
#
# ```{exercise} How many must be active?
# :label: ex-05-active
# Write `fewest_active(ranks, channels)`: the smallest $k$ with which *any* $k$ experts can add up to a kernel of full rank. What
# is it for the paper's ranks at $C = 384$, and at $C = 640$?
# ```


# %%
def fewest_active(ranks, channels): ...


_ = ch05.check_fewest_active(fewest_active)

# %% [markdown]
# ```{solution-start} ex-05-active
# :class: dropdown
# ```
# Nine and twelve. At $C = 384$ the paper's choice of nine active experts is just the least that never confines a task to a subspace. At
# $C = 640$, the width of the ablations, it is three too few for that, though nine experts of middling rank are enough there too.


# %% jupyter={"source_hidden": true}
def fewest_active(ranks, channels):
    reached = np.cumsum(sorted(ranks))
    return int((reached < channels).sum()) + 1


print([fewest_active(ranks, width) for width in (384, 640)])
_ = ch05.check_fewest_active(fewest_active)

# %% [markdown]
# ```{solution-end}
# ```
#
# ## Takeaways
#
# - A 3 × 3 convolution is a $C \times 9C$ matrix. A 3 × 3 convolution to $r$ channels followed by a 1 × 1 convolution is one of rank at most $r$, borders and biases included.
# - What training adds to a kernel is of low rank: a few directions do most of the work, and how many depends on the task.
# - A low-rank expert costs $r/C$ of a full one. MLoRE's fifteen together cost less than two full ones at $C = 640$.
# - A sum of low-rank experts need not be of low rank. Single experts are simple; the mixture is not.
# - Fifteen experts are one convolution, a gate for every channel, and one more. The arithmetic stays, the memory goes.
# - The paper's Table 1 can be recounted, its parameters to the last digit, with one layer per expert that the paper does not name.
#
# You can now afford fifteen experts and compute them as one. Each task still chooses its own nine, so that an expert may well never serve all
# tasks at once. [Chapter 6](06_generic_path_and_task_experts.ipynb) adds the path that always does, and an expert for each task alone.
