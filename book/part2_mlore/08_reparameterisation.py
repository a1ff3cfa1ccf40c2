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
# # Re-parameterisation, proved
#
# In training, an MLoRE module {cite}`yang2024mlore` is a small crowd: a shared convolution, fifteen experts, one more
# expert for each task, a BatchNorm. At test time, says the paper, the crowd can leave, and one 3 × 3 convolution per task
# gives the same result. The same to the last digit, at the border too? And does it then cost what one convolution costs?

# %%
import itertools
import json
import time
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F

# %%
import mlore_edu as me
from mlore_edu import plots
from mlore_edu.data.dollhouse_files import VALIDATION_SEEDS, DollhouseScenes
from mlore_edu.data.loaders import make_loader
from mlore_edu.data.transforms import denormalise, eval_transform, train_transform
from mlore_edu.pictures import to_rgb

plots.use_style()

# %%
tasks = me.DOLLHOUSE
flips = train_transform(64, scale=(1, 1), photometric=False)
training = DollhouseScenes(96, 64, "easy", transform=flips)
validation = DollhouseScenes(
    16, 64, "easy", VALIDATION_SEEDS, transform=eval_transform(64)
)
truth = next(iter(make_loader(validation, len(validation), train=False)))

# %% [markdown]
# Proofs do not care which weights a network has. Pictures do, so we train the small MLoRE of this book for a few seconds.

# %%
torch.manual_seed(0)
model = me.build_model("mlore_vit_nano", tasks, img_size=(64, 64))
criterion = me.MultiTaskLoss(tasks, edge_positive_weight=0.8)
optimizer = torch.optim.Adam(model.parameters(), 4e-3)
for batch in itertools.islice(make_loader(training, 8, train=True), 50):
    output = model(batch["image"])
    total, _ = criterion(output.predictions, batch)
    optimizer.zero_grad()
    (total + output.balance_loss).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 10.0)
    optimizer.step()

# %%
model = model.double().eval()  # float64: where equal means equal
grad_mode = torch.set_grad_enabled(False)  # no gradients until we come to training
people = ((truth["human_parts"] > 0) & (truth["human_parts"] != 255)).sum((1, 2))
chosen = people.argsort(descending=True)[:4]  # the scenes with the largest people
images = truth["image"][chosen].double()  # (4, 3, 64, 64)

# %% [markdown]
# From here on we look at one of its modules, the first at the last scale. Its input is the backbone's last map, which a
# 1 × 1 convolution for each task turns into the features $\mathbf{X}^t$; its routers give the gates $\mathbf{g}^t$. What is claimed of it is in {numref}`fig-08-paths`.

# %%
module = model.decoder.scales[3][0]
B, T, N = len(images), len(tasks), 15  # samples, tasks, experts
below = model.decoder.narrow[3](model.backbone(images)[3])  # (B, 32, 8, 8)
X = module.project(below)  # (B, T, 32, 8, 8): one feature per sample and task
gates = module.route(X)[0].gates  # (B, T, 15), nine of them not zero
C = X.shape[2]

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-08-paths", "caption": "The claim. One channel of what a module does to the features of the depth task: its three paths, their sum, and the result of a single 3 × 3 convolution with the right kernel."}, "image": {"alt": "Seven pictures in a row: a room, then maps of 8 by 8 coloured squares titled feature, generic path, experts, task expert, sum and one convolution. The maps of the three paths differ from each other; the last two, the sum and the single convolution, are the same."}}
t = tasks.names.index("depth")
paths = {
    "generic path": module.generic(X[:, t])[0],
    "experts": module.norm(module.experts(X, gates))[0, t],
    "task expert": module.task_experts(X)[0, t],
}
paths["sum"] = sum(paths.values())
kernel, shift = module.fuse("on_the_fly").convolution(gates, None)
paths["one convolution"] = F.conv2d(X[0, t], kernel[0, t], shift[0, t], padding=1)
channel = paths["sum"].var(dim=(1, 2)).argmax()
figure, axes = plt.subplots(1, 7, figsize=(7.5, 1.6))
axes[0].imshow(to_rgb("image", denormalise(truth["image"][chosen[0]])))
axes[0].set_title("image", fontsize=9)
shown = {"feature": X[0, t], **paths}
for axis, (name, maps), sign in zip(axes[1:], shown.items(), " =++==", strict=True):
    values = maps[channel]
    most = max(m[channel].abs().max() for m in paths.values())
    most = values.abs().max() if name == "feature" else most
    axis.imshow(values, cmap="RdBu_r", vmin=-most, vmax=most)
    axis.set_title(name.replace(" ", "\n"), fontsize=9)
    if name != "generic path":
        axis.text(-0.22, 0.5, sign, transform=axis.transAxes, ha="center", va="center", fontsize=14)  # fmt: skip
for axis in axes:
    axis.set(xticks=[], yticks=[])
    axis.spines[:].set_visible(False)

# %% [markdown]
# ## What you will be able to do
#
# - derive the paper's Equations 3 to 7 in five steps, each a function of a few lines, and check each in float64 with the
#   border included;
# - say which convolutions become one under zero padding, and where the error of the others sits;
# - fold a BatchNorm with the ε that the paper leaves out, and find two more slips in its equations;
# - merge the experts *in training*, with equal gradients, and say why the BatchNorm cannot join them;
# - tell what the kernels cost that have to be made anew for every image, in numbers stored, operations, time and memory,
#   and choose the form that is cheapest for given shapes.
#
# *Before you start:* [chapter 5](05_low_rank_experts.ipynb) for low-rank convolutions, [chapter
# 6](06_generic_path_and_task_experts.ipynb) for the three paths, [chapter 7](07_routers.ipynb) for the gates. *Time:* 35 minutes of
# reading, half a minute of running. *Hardware:* two CPU cores, 4 GB of memory; no GPU, no download.

# %% [markdown]
# ## Step 1: two convolutions become one
#
# Expert $n$ is a 3 × 3 convolution to $r_n$ channels and a 1 × 1 convolution back. The paper calls their weights
# $\mathbf{W}^n_{lreb}$ and $\mathbf{W}^n_{lrea}$; we keep the letters of chapter 5, $\mathbf{V}_n$ and $\mathbf{U}_n$, and write
# $\mathbf{v}_n$ and $\mathbf{u}_n$ for their biases. At any pixel the first reads the patch $\mathbf{p}$ of the nine pixels around it, and
# the second reads the one pixel that the first has just made:
#
# ```{math}
# :label: eq-08-compose
# \mathbf{U}_n(\mathbf{V}_n\,\mathbf{p} + \mathbf{v}_n) + \mathbf{u}_n
# = \underbrace{\mathbf{U}_n\mathbf{V}_n}_{\mathbf{W}_n}\,\mathbf{p} + \underbrace{\mathbf{U}_n\mathbf{v}_n + \mathbf{u}_n}_{\mathbf{b}_n}.
# ```
#
# At the border the patch reaches beyond the image and has zeros there. The equation does not mind: it holds for any
# $\mathbf{p}$. The only step that looks sideways is the first, and its zeros are there in both forms.

# %%
experts = module.experts
V = experts.down.weight.split(experts.ranks)  # fifteen of (r_n, C, 3, 3)
v = experts.down.bias.split(experts.ranks)  # (r_n,)
U = experts.up_weight.split(experts.ranks, dim=1)  # (C, r_n)
u = experts.up_bias  # (15, C)


# %%
def compose(V, v, U, u):
    """A 3 × 3 convolution and the 1 × 1 convolution after it, as one."""
    W = torch.einsum("or,rcij->ocij", U, V)  # (C, C, 3, 3)
    return W, U @ v + u  # (C,)


def conv(x, weight, bias):
    return F.conv2d(x, weight, bias, padding=weight.shape[-1] // 2)  # zeros around


def error(ours, truth):
    return ((ours - truth).abs().max() / truth.abs().max()).item()


# %%
x, worst = X.flatten(0, 1), 0.0  # (B*T, C, 8, 8)
for n in range(N):
    two_steps = conv(conv(x, V[n], v[n]), U[n][..., None, None], u[n])
    one_step = conv(x, *compose(V[n], v[n], U[n], u[n]))  # (B*T, C, 8, 8)
    worst = max(worst, error(one_step, two_steps))
print("all fifteen experts, every pixel, equal to 1e-12:", worst < 1e-12)

# %% [markdown]
# This rule and the next ones come from structural re-parameterisation, a way to train a network with many branches and use it with few {cite}`ding2021repvgg,ding2021diverse`.
#
# ### The other order fails, in a frame
#
# In the module a 1 × 1 convolution comes *before* the 3 × 3 ones as well: the projection $\mathbf{X}^t = \mathbf{P}\mathbf{X} + \mathbf{q}$. Could it
# be composed with them too? Inside the map, yes. The nine pixels of a patch have each become $\mathbf{P}\mathbf{x} + \mathbf{q}$, so the
# kernel is the product again. But beyond the border the 3 × 3 convolution pads *its own input* with zeros, after the projection. The composed
# one pads one step earlier, and takes a zero there for what the projection would have made of it: $\mathbf{P}\mathbf{0} + \mathbf{q} = \mathbf{q}$. With $\mathbf{K}_{ij}$ for the
# kernel's matrix at position $(i, j)$, the two differ by
#
# ```{math}
# :label: eq-08-frame
# \sum_{(i,j)\ \text{beyond the border}} \mathbf{K}_{ij}\, \mathbf{q},
# ```
#
# which is nothing for an inner pixel, three matrices at an edge, five in a corner, and nothing anywhere if $\mathbf{q} = 0$.


# %%
def compose_other_order(P, q, K, k):
    """A 1 × 1 convolution and the 3 × 3 convolution after it, as if they were one."""
    W = torch.einsum("omij,mc->ocij", K, P)  # (C, C, 3, 3)
    return W, K.sum(dim=(2, 3)) @ q + k  # (C,)


P, q = module.project.weight[t * C : (t + 1) * C], module.project.bias[t * C :][:C]
K, k = module.generic.weight, module.generic.bias  # the generic path
off = {}
for name, bias in {"with": q, "without": torch.zeros_like(q)}.items():
    right = conv(conv(below, P, bias), K, k)  # (B, C, 8, 8)
    wrong = conv(below, *compose_other_order(P[..., 0, 0], bias, K, k))
    off[name] = (wrong - right).abs().amax(dim=(0, 1)) / right.abs().max()  # (8, 8)

# %%
inside = off["with"][1:-1, 1:-1]
print("with a bias, inside the map: ", bool(inside.max() < 1e-12))
print("with a bias, everywhere:     ", bool(off["with"].max() < 1e-12))
print("without a bias, everywhere:  ", bool(off["without"].max() < 1e-12))

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-08-frame", "caption": "Largest error at each pixel (share of the largest value) when a 1 × 1 and a 3 × 3 convolution that follows it are composed. With a bias in the first, it sits in a frame one pixel wide, which on a map of 8 × 8 is 28 pixels of 64; without one there is none."}, "image": {"alt": "Two maps of 8 by 8 squares. In the left one, with a bias, all squares at the border are coloured and most strongly in or near the corners, while the inner ones are white. The right one, without a bias, is white everywhere."}}
figure, axes = plt.subplots(1, 2, figsize=(5.2, 2.5))
for axis, (name, map_) in zip(axes, off.items()):
    drawn = axis.imshow(map_, cmap="Oranges", vmin=0, vmax=off["with"].max())
    axis.set(xticks=[], yticks=[], title=f"1 × 1 {name} a bias")
    axis.spines[:].set(visible=True, color="0.8")
_ = figure.colorbar(drawn, ax=axes, label="error", shrink=0.9)

# %% [markdown]
# So the projection stays where it is. (It has to anyway: the routers read $\mathbf{X}^t$.) {ref}`ex-08-padding` finds a
# padding with which even this order would be exact.

# %% [markdown]
# ## Step 2: gates add kernels
#
# The experts' outputs are added, each times its gate. A convolution is linear in its kernel and its bias, so we may add those
# instead. For task $t$
#
# ```{math}
# :label: eq-08-mix
# \sum_{n} g^t_n \left(\mathbf{W}_n\,\mathbf{p} + \mathbf{b}_n\right)
# = \Big(\sum_{n} g^t_n \mathbf{W}_n\Big)\,\mathbf{p} + \sum_{n} g^t_n \mathbf{b}_n ,
# ```
#
# where an expert outside the active set $\mathbb{K}_t$ has gate 0. The kernels of all experts are the rows of one matrix with $9C^2$
# columns, and so the sums of all samples and tasks are one matrix product.

# %%
composed = [compose(*weights) for weights in zip(V, v, U, u)]
W = torch.stack([weight for weight, _ in composed])  # (N, C, C, 3, 3)
b = torch.stack([bias for _, bias in composed])  # (N, C)


def mix(gates, values):
    rows = gates @ values.flatten(1)  # (B, T, N) @ (N, numbers of one expert)
    return rows.unflatten(-1, values.shape[1:])  # (B, T, ...)


mixed, mixed_bias = mix(gates, W), mix(gates, b)  # (B, T, C, C, 3, 3), (B, T, C)


# %%
def conv_each(X, weight, bias):
    """Convolve every sample and task with a kernel of its own."""
    pairs = zip(X.flatten(0, 1), weight.flatten(0, 1), bias.flatten(0, 1))
    return torch.stack([conv(*pair) for pair in pairs]).view_as(X)


by_expert = 0
for n in range(N):
    output = conv(x, W[n], b[n]).view_as(X)  # (B, T, C, 8, 8)
    by_expert = by_expert + gates[:, :, n, None, None, None] * output
print(
    "gates mix kernels:", error(conv_each(X, mixed, mixed_bias), by_expert) < 1e-12
)

# %% [markdown]
# There is a second way to the same kernel, which never writes the fifteen $\mathbf{W}_n$ down. Put all $\mathbf{U}_n$ beside each other and
# all $\mathbf{V}_n$ upon each other. Then
#
# ```{math}
# :label: eq-08-low-rank
# \sum_n g^t_n\, \mathbf{U}_n \mathbf{V}_n =
# \begin{bmatrix} \mathbf{U}_1 & \cdots & \mathbf{U}_N \end{bmatrix}
# \operatorname{diag}(\underbrace{g^t_1, \dots, g^t_1}_{r_1}, \dots, \underbrace{g^t_N, \dots, g^t_N}_{r_N})
# \begin{bmatrix} \mathbf{V}_1 \\ \vdots \\ \mathbf{V}_N \end{bmatrix},
# ```
#
# again one matrix product for all samples and tasks. Remember that there are two ways; the last part of this chapter is about their prices.

# %%
gate_of_rank = gates[..., experts.expert_of_rank]  # (B, T, R), R = sum of ranks
gated = experts.up_weight * gate_of_rank[..., None, :]  # (B, T, C, R)
product = gated @ experts.down.weight.flatten(1)  # (B, T, C, 9C)
print("from the factors:", error(product.unflatten(-1, (C, 3, 3)), mixed) < 1e-12)

# %% [markdown]
# ## Step 3: a BatchNorm is a scale and a shift
#
# The experts' sum $\mathbf{z}$ goes through a BatchNorm. In evaluation it uses the mean $\mu$ and the variance $\sigma^2$ that training has
# accumulated, so for each channel it is a fixed scale and shift:
#
# ```{math}
# :label: eq-08-bn
# \gamma\, \frac{z - \mu}{\sqrt{\sigma^2 + \varepsilon}} + \beta = a\,z + d, \qquad
# a = \frac{\gamma}{\sqrt{\sigma^2 + \varepsilon}}, \quad d = \beta - a\,\mu .
# ```
#
# A scale of the output is a scale of the kernel and of the bias; a shift goes to the bias. With {eq}`eq-08-mix` this gives the
# paper's Equations 3 and 4:
#
# ```{math}
# :label: eq-08-lre
# \mathbf{W}_{lre}^t = a^t \sum_n g_n^t\, \mathbf{U}_n \mathbf{V}_n, \qquad
# \mathbf{b}_{lre}^t = a^t \sum_n g_n^t \left(\mathbf{U}_n \mathbf{v}_n + \mathbf{u}_n\right) + d^t .
# ```

# %%
norm = module.norm.norm  # the BatchNorms of all tasks, one of T*C channels
a = (norm.weight / (norm.running_var + norm.eps).sqrt()).view(T, C)
d = norm.bias.view(T, C) - norm.running_mean.view(T, C) * a
W_lre = a[:, :, None, None, None] * mixed  # (B, T, C, C, 3, 3)
b_lre = a * mixed_bias + d  # (B, T, C)

# %%
normalised = module.norm(by_expert)  # (B, T, C, 8, 8)
print("BatchNorm folded:", error(conv_each(X, W_lre, b_lre), normalised) < 1e-12)

# %% [markdown]
# Here the printed equations part from the truth in two places. They have $\gamma/\sigma$, without the ε that keeps a BatchNorm from
# dividing by zero. And they give γ, β, μ and σ no index $t$, as if one BatchNorm served all tasks.

# %%
a_printed = (norm.weight / norm.running_var.sqrt()).view(T, C)  # no ε
of_another_task = a.roll(1, dims=0)
for name, scale in {
    "ε left out": a_printed,
    "another task's": of_another_task,
}.items():
    ours = scale[:, :, None, None] * conv_each(X, mixed, mixed_bias)
    right = a[:, :, None, None] * conv_each(X, mixed, mixed_bias)
    off_by = error(ours, right)
    print(f"{name}: beyond 1e-12: {off_by > 1e-12}, beyond 1 %: {off_by > 0.01}")

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-08-epsilon", "caption": "What leaving out ε does to a channel's scale a, by the variance of the channel. The line is theory, the dots compare the two scales of all channels of all BatchNorms in our model, in float64; the dotted line is float64's own rounding."}, "image": {"alt": "A falling line on two logarithmic axes, from an error of more than a hundred percent at variance 10 to the minus 6 to less than 10 to the minus 8 above 1,000. Dots lie on the line in its lower half, from a variance of about a hundredth on, far above a dotted horizontal line near 10 to the minus 16."}}
norms = [m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)]
variances = torch.cat([m.running_var for m in norms])
figure, axis = plt.subplots(figsize=(7.5, 2.7))
printed, right = variances.rsqrt(), (variances + 1e-5).rsqrt()
line = torch.logspace(-6, 3.5, 200, dtype=torch.float64)
axis.plot(line, (1 + 1e-5 / line).sqrt() - 1, color="0.6", lw=2, label="theory")
axis.plot(variances, printed / right - 1, "o", ms=3, alpha=0.4, label="our channels")  # fmt: skip
axis.axhline(2.2e-16, ls=":", color="black", label="rounding")
axis.set(xscale="log", yscale="log", xlabel="variance σ² of the channel", ylabel="relative error of a")  # fmt: skip
_ = figure.legend(loc="outside right center")

# %% [markdown]
# {numref}`fig-08-epsilon` says how much the first slip matters: little in a channel that varies, a lot in one that hardly does. A
# checkpoint with nearly dead channels would be fused wrongly without a warning.

# %% [markdown]
# ## Steps 4 and 5: three paths, one kernel, one convolution
#
# The generic path is a convolution already, $\mathbf{W}_g$ and $\mathbf{b}_g$. The expert of task $t$ is composed by step 1, once for all images. All three read
# the same input and their results are added, so their kernels are added too. These are the paper's Equations 5 and 6:
#
# ```{math}
# :label: eq-08-sum
# \mathbf{W}_r^t = \mathbf{W}_g + \mathbf{W}_{lre}^t + \mathbf{U}^t\mathbf{V}^t, \qquad
# \mathbf{b}_r^t = \mathbf{b}_g + \mathbf{b}_{lre}^t + \mathbf{U}^t\mathbf{v}^t + \mathbf{u}^t .
# ```
#
# A third slip sits here: the paper writes $\mathbf{W}_{sr}^t$ and $\mathbf{b}_{sr}^t$ for the middle terms, symbols that it defines nowhere. They must be what its
# Equations 3 and 4 call $\mathbf{W}_{lre}^t$ and $\mathbf{b}_{lre}^t$, or the sum would not come out.

# %%
down, up = module.task_experts.down, module.task_experts.up
U_t = up.weight.unflatten(0, (T, C))[..., 0, 0]  # (T, C, rank)
V_t = down.weight.unflatten(0, (T, -1))  # (T, rank, C, 3, 3)
W_se = torch.einsum("tor,trcij->tocij", U_t, V_t)  # (T, C, C, 3, 3)
b_se = torch.einsum("tor,tr->to", U_t, down.bias.view(T, -1)) + up.bias.view(T, C)

# %%
W_r = module.generic.weight + W_lre + W_se  # (B, T, C, C, 3, 3)
b_r = module.generic.bias + b_lre + b_se  # (B, T, C)
generic = module.generic(x).view_as(X)
by_paths = generic + normalised + module.task_experts(X)  # (B, T, C, 8, 8)
print("three paths, one kernel:", error(conv_each(X, W_r, b_r), by_paths) < 1e-12)

# %% [markdown]
# What is left is Equation 7, the convolution, with a kernel of its own for each sample and each task. Ours loops over them. A
# *grouped* convolution splits its channels into groups that do not see each other; with one group for each sample and task it does all at once:

# %%
stacked = X.reshape(1, B * T * C, 8, 8)  # everything in one row of channels
grouped = F.conv2d(
    stacked, W_r.flatten(0, 2), b_r.flatten(), padding=1, groups=B * T
)
print("one grouped convolution:", error(grouped.view_as(X), by_paths) < 1e-12)

# %% [markdown]
# Both are in the library. `mlore_edu/reparameterization.py` has the rules, and `mlore_edu/decoders/mlore_fused.py` applies them
# to a module. A forward pass has no loop over experts, tasks or samples.

# %%
fused_module = module.fuse("precomposed")
weight, bias = fused_module.convolution(gates, None)
assert error(weight, W_r) < 1e-12
assert error(bias, b_r) < 1e-12

# %% [markdown]
# ### The whole model
#
# Six modules stand in our model, with GELUs between them that no algebra removes: re-parameterisation stops at every non-linearity and starts
# again behind it. `me.fuse` gives a copy in which every module has its inference form; both predict the maps of {numref}`fig-08-predictions`.

# %%
fused = me.fuse(model)
before, after = model(images), fused(images)
worst = max(error(after.predictions[n], before.predictions[n]) for n in tasks.names)
print("all predictions equal to 1e-12:", worst < 1e-12)

# %%
single = me.fuse(model).float()(images.float()).predictions  # in float32
close = max(error(single[name], before.predictions[name]) for name in tasks.names)
print("in float32, equal to 1e-4:", close < 1e-4)

# %% mystnb={"figure": {"name": "fig-08-predictions", "caption": "A validation scene: its labels, what our briefly trained model predicts, and what its fused copy predicts."}, "image": {"alt": "A grid of three rows and seven columns, the image and the six tasks. The first row shows the image and the true labels, the second the predictions of the model, blurred but recognisable, the third those of the fused model, the same pictures."}}
from mlore_edu.evaluation import decode

rows = {"label": {name: truth[name][chosen[0]] for name in tasks.names}}
rows["label"] = {"image": denormalise(truth["image"][chosen[0]]), **rows["label"]}
for name, output in {"model": before, "fused": after}.items():
    decoded = decode(output.predictions, tasks)
    rows[name] = {task: decoded[task][0] for task in tasks.names}
figure = plots.show_grid(list(rows.values()), list(rows))

# %% [markdown]
# timm's `reparameterize_model` finds the same method in the modules and does the same. A model in training mode is
# refused, for a reason that we come to now.
#
# ## May one merge in training?
#
# One convolution instead of fifteen experts would be welcome in training too. The paper's supplement (Section 1.3) says that it cannot be had there, because
# of the BatchNorm. That is half true. Let us do everything *up to* the BatchNorm in three ways, in training mode, and compare gradients.

# %%
grad_mode = torch.set_grad_enabled(True)
leaves = {"features": X.clone(), "gates": gates.clone()}
for leaf in leaves.values():
    leaf.requires_grad_()
parameters = dict(experts.named_parameters()) | dict(module.norm.named_parameters())
probe = torch.randn(X.shape, dtype=X.dtype)  # a random loss: sum of probe * output


def one_by_one(X, gates):
    outputs = [
        F.conv2d(conv(X.flatten(0, 1), V[n], v[n]), U[n][..., None, None], u[n])
        for n in range(N)
    ]
    stack = torch.stack(outputs, dim=1).unflatten(0, (B, T))  # (B, T, N, C, 8, 8)
    return torch.einsum("btn,btnchw->btchw", gates, stack)


# %%
V = experts.down.weight.split(experts.ranks)  # once more, now with gradients
v = experts.down.bias.split(experts.ranks)
U = experts.up_weight.split(experts.ranks, dim=1)
forms = {
    "one by one": one_by_one,
    "concatenated": experts.concatenated,
    "merged": experts.merged,
}
module.norm.train()
norm.momentum = 0.0  # running statistics stay as they are, whatever passes
gradients = {}
for name, form in forms.items():
    normalised = module.norm(form(leaves["features"], leaves["gates"]))
    wanted = [*leaves.values(), *parameters.values()]
    gradients[name] = torch.autograd.grad((probe * normalised).sum(), wanted)
_ = module.norm.eval()

# %%
for name in ("concatenated", "merged"):
    pairs = list(zip(gradients[name], gradients["one by one"]))
    worst = max(error(ours, right) for ours, right in pairs)
    print(f"{name}: {len(pairs)} gradients, all equal to 1e-10:", worst < 1e-10)

# %% [markdown]
# The merge is exact in training, gradients included: of the features, of the gates, of every weight and bias. The BatchNorm
# normalises $\mathbf{z}$ by the batch as ever, and does not ask how $\mathbf{z}$ came about.
#
# Whether it *pays* is another question. Take maps of $L$ tokens and ranks that sum to $R = \sum_n r_n$ (chapter 6 had this letter for the rank of a task's own
# expert). For each pair of a sample and a task the concatenated experts cost $10\,CR\,L$ operations (multiply-accumulates), and keep $R$ hidden channels for the backward pass, before and after their gates. Merged,
# all kernels are composed once ($9C^2R$), mixed for each pair ($9C^2N$), and used ($9C^2L$); kept are the kernels.


# %%
def costs(C, R, N, pairs, L):
    """Operations of a forward pass, and numbers held for the backward one."""
    return {
        "concatenated": (10 * C * R * pairs * L, 2 * R * pairs * L),
        "merged": (9 * C**2 * (R + pairs * (N + L)), 9 * C**2 * (N + pairs)),
    }


assert costs(C, sum(experts.ranks), N, B * T, 64) == experts.costs(B, T, 64)

# %%
for pairs, L in ((5, 32**2), (40, 32**2), (40, 64**2)):
    by_form = costs(640, 1080, 15, pairs, L)
    fewer = [by_form["merged"][i] < by_form["concatenated"][i] for i in (0, 1)]
    print(f"{pairs:2} pairs, {L} tokens: ", end="")
    print(f"fewer operations {fewer[0]}, less memory {fewer[1]}")

# %% [markdown]
# With ViT-B's width and ranks, merging always saves operations here. Memory it saves only on large maps: kernels are kept in place of hidden features, and at 32 × 32 tokens
# they are the larger of the two. Unless told otherwise (`form="merged"`), the library merges where it saves both.
#
# ### What goes wrong when the BatchNorm is folded
#
# The other half of the supplement's sentence is right. If the scale $a$ and the shift $d$ of {eq}`eq-08-bn` enter the kernel in training, they are constants: the network is no longer
# normalised by its own batch. Two properties go. A BatchNorm in training takes the mean of each channel away, so a gradient that passes it sums to zero over
# the channel; and it divides by the spread, so making the experts ten times larger changes nothing.

# %%
z = experts.concatenated(X, gates).detach().requires_grad_()  # (B, T, C, 8, 8)
with_batch = module.norm.train()(z)
with_constants = module.norm.eval()(z)  # what a folded BatchNorm computes
for name, output in {"BatchNorm": with_batch, "folded": with_constants}.items():
    (gradient,) = torch.autograd.grad((probe * output).sum(), z)
    per_channel = gradient.sum(dim=(0, 3, 4)).abs().max()  # over samples and pixels
    print(f"{name}: gradients sum to zero:", bool(per_channel < 1e-9))

# %%
factors = np.logspace(-1, 1, 9)
spread = {"BatchNorm": [], "folded": []}
for factor in factors:
    for name, output in (
        ("BatchNorm", module.norm.train()(factor * z)),
        ("folded", module.norm.eval()(factor * z)),
    ):
        by_channel = output.std(dim=(0, 3, 4))  # (T, C): over samples and pixels
        spread[name].append(by_channel.mean().item())

# %% [markdown]
# Does it matter? We let a fresh set of experts learn what another set does, by plain gradient descent, once with a BatchNorm and once with its
# folded form, and try many learning rates.

# %%
from mlore_edu.decoders.low_rank import LowRankExperts
from mlore_edu.decoders.per_task import PerTaskBatchNorm2d


def learn(rate, fold, steps=40):
    torch.manual_seed(1)
    teacher, student = (LowRankExperts(8, (2, 4, 6)) for _ in range(2))
    norm, gates = PerTaskBatchNorm2d(2, 8), torch.rand(4, 2, 3)
    features = 3 * torch.randn(4, 2, 8, 8, 8)  # (B, T, C, H, W)
    target = norm.train()(teacher(features, gates)).detach()
    optimizer = torch.optim.SGD([*student.parameters(), *norm.parameters()], rate)
    norm.train(not fold)  # folded: statistics as they were when it was folded
    for _ in range(steps):
        loss = F.mse_loss(norm(student(features, gates)), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return loss.item()


# %%
rates = np.logspace(-3, 2, 11)
final = {
    name: [learn(rate, fold) for rate in rates]
    for name, fold in (("BatchNorm", False), ("folded", True))
}
works = {name: sum(loss < 0.5 for loss in losses) for name, losses in final.items()}
print(
    "more learning rates work with BatchNorm:", works["BatchNorm"] > works["folded"]
)

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-08-folded", "caption": "Left: spread of what comes out when the experts are made larger by a factor. Right: loss after 40 steps of plain gradient descent; what has diverged is drawn at the top."}, "image": {"alt": "Left panel: a horizontal line for BatchNorm and a rising one for the folded form. Right panel: loss against learning rate; with BatchNorm it falls and stays low over several powers of ten, with the folded form it falls and then leaps to the top edge early."}}
figure, axes = plt.subplots(1, 2, figsize=(7.5, 2.7))
for name, marker, style in (("BatchNorm", "o", "-"), ("folded", "s", "--")):
    axes[0].plot(factors, spread[name], style, marker=marker, ms=4, label=name)
    losses = np.nan_to_num(final[name], nan=3, posinf=3).clip(max=3)
    axes[1].plot(rates, losses, style, marker=marker, ms=4)
axes[0].set(
    xscale="log", yscale="log", xlabel="factor", ylabel="spread of the output"
)
axes[1].set(xscale="log", xlabel="learning rate", ylabel="loss", ylim=(0, 3.1))
_ = figure.legend(loc="outside upper center", ncols=2)

# %% [markdown]
# At small learning rates ({numref}`fig-08-folded`) the two learn alike, and nothing warns the one who folds. Larger ones only the BatchNorm survives.
#
# So the rule is: **merge up to the BatchNorm whenever it pays; fold the BatchNorm when training is over.** What cannot be had in training is the *single* convolution: the BatchNorm
# needs the experts' sum by itself, so the generic path and the task expert cannot join it.
#
# ## The true price
#
# Equation {eq}`eq-08-sum` has made one convolution of everything. But which one? Its kernel depends on the gates, and those on the image.


# %%
def distance(i, j):
    return (kernels[i] - kernels[j]).norm() / kernels.norm(dim=1).mean()


kernels = W_r.transpose(0, 1).flatten(0, 1).flatten(1)  # (T*B, 9C²), by task
pairs = list(itertools.product(range(T * B), repeat=2))
distances = torch.tensor([distance(i, j) for i, j in pairs]).view(T * B, T * B)
different = ~torch.eye(T * B, dtype=bool)  # all pairs but a kernel with itself
print("no two kernels are the same:", bool(distances[different].min() > 1e-6))

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-08-kernels", "caption": "How far apart the merged kernels of four images and six tasks are: the norm of their difference over the mean norm of a kernel. Each block of 4 × 4 compares two tasks."}, "image": {"alt": "A square of 24 by 24 coloured cells with white lines around blocks of four. The blocks on the diagonal, the same task for different images, are by far the darkest, some of them nearly as dark as the diagonal itself; the blocks of different tasks are much brighter."}}
figure, axis = plt.subplots(figsize=(5.6, 3.3))
drawn = axis.imshow(distances, cmap="cividis", vmin=0)
ticks = np.arange(T) * B + (B - 1) / 2
axis.set_xticks([])
axis.set_xlabel("the same tasks and images")
axis.set_yticks(ticks, [task.title for task in tasks])
axis.tick_params(length=0)
for edge in np.arange(1, T) * B - 0.5:
    axis.axhline(edge, color="white", lw=1.5)
    axis.axvline(edge, color="white", lw=1.5)
_ = figure.colorbar(drawn, label="relative distance")

# %% [markdown]
# {numref}`fig-08-kernels` shows that even one task's kernels change from image to image, little as some do: these are the settled routers of chapter 7. So kernels have to be
# **made anew for every image and task**, and the paper's count of operations leaves that out. The two ways of step 2 make them at different prices. Per image and task, on $L$ tokens, the experts cost
#
# | form | operations | numbers stored |
# |---|---|---|
# | one by one, or concatenated | $10\,C R\, L$ | $10\,CR$ |
# | mixed on the fly from the factors | $9\,C^2 R$ | $10\,CR$ |
# | mixed from precomposed kernels | $9\,C^2 N$ | $9\,C^2 N$ |
#
# The convolution itself, $9\,C^2 L$, is not in the table: the generic path needs it in any form. Now compare the first two rows:
#
# ```{math}
# :label: eq-08-crossing
# 9\,C^2 R < 10\,C R\, L \quad\Longleftrightarrow\quad L > 0.9\, C .
# ```
#
# The ranks are gone, and so are the number of experts, tasks and images. Mixing on the fly saves operations as soon as the map has more tokens than nine tenths of the width. For precomposed
# kernels the same comparison gives $L > 0.9\, C N / R$: nine tenths of the width over the mean rank, which a handful of tokens fulfils. Is it so? We count the library's own modules,
# on the meta device ({numref}`fig-08-macs`).

# %%
from torch.utils.flop_counter import FlopCounterMode

from mlore_edu.decoders.mlore import MLoREModule
from mlore_edu.decoders.mlore_options import MLoREOptions

vit_base = MLoREOptions(
    released=True, ranks=tuple(range(16, 129, 8)), k=9, form="concatenated"
)


def count(side, form):
    with torch.device("meta"), torch.no_grad():
        module = MLoREModule(5, 640, side**2, vit_base, nonlinear=True).eval()
        module = module if form == "not fused" else me.fuse(module, form)
        with FlopCounterMode(display=False) as counter:
            module(torch.empty(1, 5, 640, side, side))
    return counter.get_total_flops() / 2


# %%
sides = (4, 8, 12, 16, 20, 23, 25, 28, 32, 48, 64)
forms = ("not fused", "on_the_fly", "precomposed")
macs = {form: [count(side, form) for side in sides] for form in forms}
for side in (23, 25):
    i = sides.index(side)
    print(f"{side} × {side} tokens: on the fly is cheaper than not fusing:",
          macs["on_the_fly"][i] < macs["not fused"][i])  # fmt: skip

# %%
R = sum(vit_base.ranks) + vit_base.task_rank  # a task's own expert is one more
for side, unfused, on_the_fly in zip(sides, macs["not fused"], macs["on_the_fly"]):
    saved = 5 * (10 * 640 * R * side**2 - 9 * 640**2 * R)  # 5 tasks
    assert abs(unfused - on_the_fly - saved) < 1e-3 * unfused  # but for some biases

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-08-macs", "caption": "Multiply-accumulates of one module of the released ViT-B model for one image, counted. The curves of the unfused and the on-the-fly form cross at 24 × 24 tokens, where L = 0.9 · 640 = 576. The dashed line is one 3 × 3 convolution per task and nothing else."}, "image": {"alt": "Three rising curves over the side of the map, on logarithmic axes, and a dashed line. The on-the-fly curve is nearly flat at 20 billion up to 16 tokens and then turns up; the unfused one rises steeply and crosses it at 24; the precomposed one stays close to the dashed line from about 12 tokens on."}}
figure, axis = plt.subplots(figsize=(7.5, 3.0))
for form, marker in zip(forms, "osD"):
    axis.plot(sides, macs[form], marker=marker, ms=4, label=form.replace("_", " "))
one = [5 * 9 * 640**2 * side**2 for side in sides]
axis.plot(sides, one, "--", color="0.4", label="convolution alone")
axis.axvline(24, color="0.7", lw=1, zorder=0)
axis.annotate("$L = 0.9\\,C$", (24, 1.5e9), (25, 1.5e9), fontsize=9)
axis.set(xscale="log", yscale="log", xlabel="tokens along each side", ylabel="multiply-accumulates")  # fmt: skip
axis.set_xticks((4, 8, 16, 24, 32, 48, 64), map(str, (4, 8, 16, 24, 32, 48, 64)))
axis.minorticks_off()
_ = figure.legend(loc="outside right center")

# %% [markdown]
# ### 259 M and 568 G
#
# The paper's Table 2 gives the whole model 259 M parameters and 568 G operations (in units of $2^{30}$). We count it in each form.

# %%
with torch.device("meta"):
    whole = me.build_model(
        "mlore_vit_base", me.PASCAL_CONTEXT, variant="released", form="concatenated"
    ).eval()
variants = {form: me.fuse(whole, form) for form in forms[1:]}
counted = {}
for form, network in {"not fused": whole, **variants}.items():
    cost = me.count(network, (512, 512))
    counted[form] = cost.parameters / 1e6, cost.in_units("2**30")
    print("{:12} {:.0f} M, {:.0f} G".format(form, *counted[form]))

# %%
right = [
    (abs(millions - 259) < 1, abs(giga - 568) < 1.5)
    for millions, giga in counted.values()
]
print("a form with 259 M:", any(m for m, _ in right))
print("a form with 568 G:", any(g for _, g in right))
print("a form with both: ", any(m and g for m, g in right))

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-08-claim", "caption": "The released ViT-B model on PASCAL-Context at 512 × 512: what it stores and what a forward pass takes, in the three forms, and the two numbers of the paper's Table 2."}, "image": {"alt": "A scatter of four points. Not fused and on the fly lie above each other at 259 million numbers and about 850 and 720 giga operations; precomposed lies far to the right at about 780 million and 569; the paper's star lies at 259 million and 568, in the lower left corner where no form is."}}
figure, axis = plt.subplots(figsize=(7.5, 2.8))
for (form, point), marker in zip(counted.items(), "osD"):
    axis.plot(*point, marker, ms=8)
    axis.annotate(form.replace("_", " "), point, xytext=(9, -3), textcoords="offset points")  # fmt: skip
axis.plot(259, 568, "*", ms=15, color="black")
axis.annotate("as printed", (259, 568), xytext=(11, -3), textcoords="offset points")
_ = axis.set(xlabel="numbers stored (millions)", ylabel="operations (2³⁰)", xlim=(150, 900), ylim=(500, 900))  # fmt: skip

# %% [markdown]
# Each of the two numbers is right for some form, and they hold together for none ({numref}`fig-08-claim`). 259 M is the model as trained or mixed on the fly; 568 G is the model with kernels that come from
# somewhere for free, or nearly so. Gates that ignored the image would not help either. Their kernels could be made once and for all, but there would be five of them in each of eight modules.

# %%
paths = 9 * 640**2 + 10 * 640 * (1080 + 5 * 64)  # generic, shared and task experts
ready = 5 * 9 * 640**2  # one kernel for each task
millions = counted["not fused"][0] + 8 * (ready - paths) / 1e6
print(f"gates that ignore the image: {millions:.0f} M")

# %% [markdown]
# `me.fuse(model)` therefore has a mode. When you name none, the rule is: `precomposed` as long as it at most doubles the numbers stored, else
# `on_the_fly`.

# %%
from mlore_edu.reparameterization import choose_mode

print(
    "ours:", choose_mode(model), "· the released ViT-B model:", choose_mode(whole)
)

# %% [markdown]
# Try other shapes than that of {numref}`fig-08-explorer`. The bars count the experts and the convolution for one image and one task, and the numbers stored for fifteen experts.


# %%
def price(C, side, mean_rank, generic=True):
    L, R, N = side**2, 15 * mean_rank, 15
    shared = 9 * C**2 * L  # the convolution that every form has
    operations = {
        "not fused": 10 * C * R * L + shared * generic,
        "on the fly": 9 * C**2 * R + shared,
        "precomposed": 9 * C**2 * N + shared,
    }
    stored = (10 * C * R, 10 * C * R, 9 * C**2 * N)
    return operations, dict(zip(operations, stored))


def show_price(C, side, mean_rank, generic):
    _, axes = plt.subplots(1, 2, figsize=(7.5, 1.9), sharey=True)
    titles = ("operations per image and task (10⁹)", "numbers stored (millions)")
    for axis, by_form, unit, title in zip(
        axes, price(C, side, mean_rank, generic), (1e9, 1e6), titles
    ):
        values = [value / unit for value in by_form.values()]
        bars = axis.barh(list(by_form), values, color=plots.OKABE_ITO)
        axis.bar_label(bars, [f"{value:.3g}" for value in values], padding=3)
        axis.set(xlabel=title, xlim=(0, 1.25 * max(values)))
    axes[0].invert_yaxis()


# %% tags=["nbval-ignore-output"]
import ipywidgets

_ = ipywidgets.interact(
    lambda **chosen: (show_price(**chosen), plt.show())[1],
    C=ipywidgets.IntSlider(640, 32, 1024, 32, description="width C"),
    side=ipywidgets.IntSlider(32, 4, 64, 4, description="tokens a side"),
    mean_rank=ipywidgets.IntSlider(72, 4, 128, 4, description="mean rank"),
    generic=ipywidgets.Checkbox(True, description="generic path"),
)

# %% mystnb={"figure": {"name": "fig-08-explorer", "caption": "The explorer's view of the released ViT-B model: C = 640, 32 × 32 tokens, mean rank 72, with the generic path."}, "image": {"alt": "Two groups of three horizontal bars. Operations: not fused about 11 billion, on the fly about 8, precomposed about 4. Numbers stored: about 7 million for the first two, 55 million for precomposed."}}
show_price(640, 32, 72, generic=True)

# %% [markdown]
# ### Time and memory
#
# Operations are not seconds. Making kernels also means writing them to memory and reading them again, which no count of multiplications sees. The next figure shows a
# recorded run of one module of the released ViT-B model on one thread of a CPU: four forms, for one image at several sizes and for several images at 16 × 16 tokens.

# %%
record = json.loads(Path("../results/mlore_price.json").read_text())
print(record["command"])
print(
    "threads:",
    record["hardware"]["threads"],
    "· torch",
    record["versions"]["torch"],
)


def recorded(form, key, **fixed):
    rows = [row for row in record["rows"] if row["form"] == form]
    rows = [row for row in rows if all(row[k] == v for k, v in fixed.items())]
    other = "tokens" if "batch" in fixed else "batch"
    return [row[other] for row in rows], np.array([row[key] for row in rows])


# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-08-recorded", "caption": "Recorded run. Left: processor time of a forward pass over the size of the map, divided by what the convolution alone would take at the rate of a plain matrix product. Middle: the same over the number of images. Right: largest memory that a pass takes on top of the model."}, "image": {"alt": "Three panels with four lines each. Left: over tokens, the precomposed form is the quickest at all but the smallest maps; the on-the-fly form is by far the slowest on small maps, and crosses below the unfused ones between 24 by 24 and 32 by 32. Middle: over the number of images the lines are nearly level. Right: memory of the separate experts rises most steeply; the fused forms start high and rise slowly."}}
labels = {"separate": "one by one", "concatenated": "concatenated", "on_the_fly": "on the fly", "precomposed": "precomposed"}  # fmt: skip
colours = dict(zip(labels, [plots.OKABE_ITO[i] for i in (3, 0, 1, 2)]))
figure, axes = plt.subplots(1, 3, figsize=(7.5, 3.2))
for form, marker in zip(labels, "^osD"):
    style = {"marker": marker, "ms": 4, "color": colours[form]}
    for axis, fixed in zip(axes, ({"batch": 1}, {"tokens": 256})):
        sizes, seconds = recorded(form, "seconds", **fixed)
        tokens = np.array(sizes) if "batch" in fixed else 256 * np.array(sizes)
        alone = 5 * 9 * 640**2 * tokens / record["product_rate"]
        places = np.sqrt(sizes) if "batch" in fixed else sizes
        axis.plot(places, seconds / alone, **style, label=labels[form])
    tokens, memory = recorded(form, "mebibytes", batch=1)
    axes[2].plot(np.sqrt(tokens), memory, **style)
for axis in axes:
    axis.set(xscale="log", yscale="log")
    axis.minorticks_off()
for axis in (axes[0], axes[2]):
    axis.set_xticks((8, 16, 24, 48), ("8", "16", "24", "48"))
    axis.set_xlabel("tokens along each side")
axes[1].set_xticks((1, 2, 4, 8), ("1", "2", "4", "8"))
axes[1].set_xlabel("images")
for axis in axes[:2]:
    axis.set_yticks((1, 2, 5, 10, 20), ("1", "2", "5", "10", "20"))
axes[0].set_ylabel("time, convolution alone = 1")
axes[2].set_ylabel("memory (MiB)")
axes[2].set_yticks((50, 100, 200, 500), ("50", "100", "200", "500"))
_ = figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=4)  # fmt: skip


# %%
def crossing_of(fused):
    """Tokens from which the fused form takes less time than the concatenated one."""
    tokens, unfused = recorded("concatenated", "seconds", batch=1)
    gain = np.log(unfused / recorded(fused, "seconds", batch=1)[1])
    return np.exp(np.interp(0, gain, np.log(tokens)))


for form, derived in (("on_the_fly", 576), ("precomposed", 8)):
    later = crossing_of(form) / derived
    print(
        f"{form:11} overtakes later than its operations say: {later > 1}, ", end=""
    )
    print(f"twice as late: {later > 2}")

# %% [markdown]
# The on-the-fly form overtakes the unfused one a little later than equation {eq}`eq-08-crossing` says. For precomposed kernels the operations promise eight
# tokens; it takes a map of about 12 × 12, presumably because a kernel of $9C^2$ numbers passes through memory several times before it is used at all. Three more things can be read off
# {numref}`fig-08-recorded`:
#
# - **Batching does not help.** Kernels belong to an image, so eight images need eight times as many. (It helps
#   ordinary layers, where all images share one kernel.)
# - **Small maps are the worst case.** On few tokens a kernel is hardly used once it has been made.
# - **Memory turns around.** A fused pass holds $9C^2$ numbers per image and task, whatever the size of the map. Unfused, experts that are kept one by one hold $NC$
#   numbers per token, concatenated ones about $2R$. So on small maps it is the fused forms that need more.
#
# A last look, live, on your machine, with a margin that any computer should keep:

# %%
torch.manual_seed(0)
small = MLoREModule(5, 64, 256, vit_base, nonlinear=True).eval()
x = torch.randn(1, 5, 64, 16, 16)


def fastest(module, repeats=5):
    times = []
    with torch.inference_mode():
        for _ in range(repeats + 1):  # the first is a rehearsal
            start = time.perf_counter()
            module(x)
            times.append(time.perf_counter() - start)
    return min(times[1:])


gain = fastest(small) / fastest(me.fuse(small, "precomposed"))
print("precomposed is faster than not fused:", gain > 1)

# %% [markdown]
# ## Exercises
#
# ```{exercise} A BatchNorm that comes first
# :label: ex-08-first
# Step 3 folds a BatchNorm into the convolution *before* it. In the non-linear block of the paper's supplement one comes before a 1 × 1 convolution instead. Write
# `fold_first(scale, shift, weight, bias)`: the weight $(C', C)$ and bias $(C',)$ of the 1 × 1 convolution that does both, given the scale and shift
# $(C,)$ of {eq}`eq-08-bn`. Why would it not work before a 3 × 3 convolution?
# ```

# %%
from mlore_edu.exercises import ch08


def fold_first(scale, shift, weight, bias): ...


_ = ch08.check_fold_first(fold_first)

# %% [markdown]
# ```{solution-start} ex-08-first
# :class: dropdown
# ```
# $\mathbf{W}(a \odot \mathbf{x} + d) + \mathbf{b} = (\mathbf{W}\operatorname{diag}(a))\,\mathbf{x} + (\mathbf{W}d + \mathbf{b})$. Before a 3 × 3 convolution the shift meets the padding, as in {eq}`eq-08-frame`.


# %% jupyter={"source_hidden": true}
def fold_first(scale, shift, weight, bias):
    return weight * scale, weight @ shift + bias


_ = ch08.check_fold_first(fold_first)

# %% [markdown]
# ```{solution-end}
# ```
#
# ```{exercise} A fourth path
# :label: ex-08-shortcut
# Add a shortcut to the module: $\mathbf{S}^t = \dots + \mathbf{X}^t$. It is linear, so it must fit into the kernel. Write `identity_kernel(channels, size)`: the weight
# $(C, C, k, k)$, $k$ odd, of a convolution that returns its input.
# ```


# %%
def identity_kernel(channels, size): ...


_ = ch08.check_identity_kernel(identity_kernel)

# %% [markdown]
# ```{solution-start} ex-08-shortcut
# :class: dropdown
# ```


# %% jupyter={"source_hidden": true}
def identity_kernel(channels, size):
    weight = torch.zeros(channels, channels, size, size)
    weight[:, :, size // 2, size // 2] = torch.eye(channels)
    return weight


_ = ch08.check_identity_kernel(identity_kernel)

# %% [markdown]
# ```{solution-end}
# ```
#
# ```{exercise} Pad with what?
# :label: ex-08-padding
# A 1 × 1 convolution $\mathbf{P}, \mathbf{q}$ and a 3 × 3 convolution after it do not become one, because zeros are padded between them ({numref}`fig-08-frame`). But suppose that
# the composed convolution may pad its input with any constant $\mathbf{c} \in \mathbb{R}^C$ instead of zeros. Write `padding(P, q)` that returns the $\mathbf{c}$ with which it is
# exact, for an invertible $\mathbf{P}$ of shape $(C, C)$ and $\mathbf{q}$ of shape $(C,)$.
# ```


# %%
def padding(P, q): ...


_ = ch08.check_padding(padding)

# %% [markdown]
# ```{solution-start} ex-08-padding
# :class: dropdown
# ```
# What the 3 × 3 convolution sees beyond the border must be zero: $\mathbf{P}\mathbf{c} + \mathbf{q} = 0$.


# %% jupyter={"source_hidden": true}
def padding(P, q):
    return torch.linalg.solve(P, -q)


_ = ch08.check_padding(padding)

# %% [markdown]
# ```{solution-end}
# ```
#
# ```{exercise} Experts without a generic path
# :label: ex-08-crossing
# The crossing at $L = 0.9\,C$ took for granted that a full convolution is needed anyway. In the row *+ LoRE* of the paper's Table 2 there is none: unfused, the
# experts cost $10\,CRL$ and nothing else; fused, they cost the mixing *and* the convolution. From how many tokens on (a real number) does mixing on the fly cost less? Write
# `crossing(C, R)`, with $R$ the sum of the ranks, and return infinity where it never does.
# ```


# %%
def crossing(C, R): ...


_ = ch08.check_crossing(crossing)

# %% [markdown]
# ```{solution-start} ex-08-crossing
# :class: dropdown
# ```
# $9C^2R + 9C^2L < 10\,CRL$ means $L\,(10R - 9C) > 9CR$. If $R \le 0.9\,C$ it is never so: experts whose ranks sum to no more than nine tenths of the width are best left as they are.
# And in that row of the table, with 1,024 tokens, mixing on the fly does not pay either, as the number below says.


# %% jupyter={"source_hidden": true}
def crossing(C, R):
    return 9 * C * R / (10 * R - 9 * C) if 10 * R > 9 * C else float("inf")


print(f"released ViT-B without a generic path: {crossing(640, 1080):.0f} tokens")
_ = ch08.check_crossing(crossing)

# %% [markdown]
# ```{solution-end}
# ```
#
# ## Takeaways
#
# - A 3 × 3 and then a 1 × 1 convolution are one 3 × 3 convolution, exactly and everywhere. In the other order a bias spoils a frame one pixel wide.
# - Gates, BatchNorm and parallel paths all act on the kernel linearly. So the paper's Equations 3 to 7 hold, with an ε, a $t$ and a name put right.
# - In training, experts may be merged up to the BatchNorm, with equal gradients; the BatchNorm itself must stay.
# - One convolution per task means one *new* kernel per image and task. Making it costs operations ($L > 0.9\,C$ decides) or storage, and 259 M and 568 G are not had at once.
# - When you read that something is free at inference, ask which form was counted, and whether it was the same one for every number.
#
# You can now take a network apart into what is linear and what is not, fuse it, and prove that nothing changed. All the pieces of MLoRE are on the table;
# [chapter 9](09_mlore_assembled.ipynb) puts them together and trains them.
