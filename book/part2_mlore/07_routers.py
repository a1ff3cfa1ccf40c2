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
# # Routers
#
# In MLoRE every image gets its own mixture of experts, and every task another one. Who decides? A router, one small network
# for each task. What does it see of the image, what can it tell apart, and does it use what it sees?

# %%
import itertools
import json
import math
from pathlib import Path
from statistics import mean, stdev

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F

# %%
import mlore_edu as me
from mlore_edu import plots, published
from mlore_edu.data.dollhouse_files import VALIDATION_SEEDS, DollhouseScenes
from mlore_edu.data.loaders import make_loader
from mlore_edu.data.transforms import denormalise, eval_transform, train_transform
from mlore_edu.decoders.routers import Router
from mlore_edu.pictures import to_rgb

plots.use_style()
tasks = me.DOLLHOUSE

# %% [markdown]
# We begin with trained routers, in a small MLoRE with nothing but its shared low-rank experts, one module at each of
# three scales, no generic path and no task experts, so that all that a task gets is its router's choice. Each task uses
# nine of fifteen experts.

# %%
augment = train_transform(64, scale=(1, 1), photometric=False)  # flips alone
training = DollhouseScenes(160, 64, "easy", transform=augment)
validation = DollhouseScenes(
    32, 64, "easy", VALIDATION_SEEDS, transform=eval_transform(64)
)
scenes = next(iter(make_loader(validation, len(validation), train=False)))
criterion = me.MultiTaskLoss(tasks, edge_positive_weight=0.8)

# %%
torch.manual_seed(0)
only_experts = {"modules": 1, "generic": False, "task_experts": False}
model = me.build_model("mlore_vit_nano", tasks, img_size=(64, 64), **only_experts)
optimizer = torch.optim.Adam(model.parameters(), 4e-3)
model.train()
for batch in itertools.islice(make_loader(training, 8, train=True), 80):
    output = model(batch["image"])
    loss, _ = criterion(output.predictions, batch)
    optimizer.zero_grad()
    (loss + output.balance_loss).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 10.0)
    optimizer.step()

# %%
model.eval()
with torch.no_grad():
    routing = model(scenes["image"]).routing
gates = routing["scale 4, module 1"]  # (32, 6, 15): scenes, tasks, experts
print(*(f"{name}: {tuple(g.shape)}" for name, g in routing.items()), sep="\n")


# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-07-gates", "caption": "Four scenes, and below each the gates that the routers of the coarsest scale give for it: a row for each task, a column for each expert, white where an expert is left out (the colour follows the square root of the gate, so that small ones show). Look for a difference between the scenes."}, "image": {"alt": "Four pictures of different rooms, and under each a table of six rows and fifteen columns with squares from white to dark blue. The four tables look almost the same: each task has its own pattern, which hardly changes from one room to the next."}}
def show_table(axis, table):
    axis.imshow(table, cmap="Blues", aspect="auto", vmin=0, vmax=1)
    axis.set(xticks=[], yticks=[])
    axis.tick_params(length=0)
    axis.spines[:].set(visible=True, color="0.7")


def name_tasks(axis):
    axis.set_yticks(range(6), [task.title for task in tasks], fontsize=8)


figure, axes = plt.subplots(2, 4, figsize=(7.5, 3.4), height_ratios=(2, 1.1))
for column, (upper, lower) in enumerate(axes.T):
    upper.imshow(to_rgb("image", denormalise(scenes["image"][column])))
    upper.axis("off")
    show_table(lower, gates[column].sqrt())
    lower.set_xlabel("experts", fontsize=8)
name_tasks(axes[1, 0])

# %% [markdown]
# Different rooms, and nearly the same gates. Is that because the training was so short, because a router of this kind cannot do
# better, or because nothing more is asked of it? This chapter takes the question apart.
#
# ## What you will be able to do
#
# - write the router of MLoRE {cite}`yang2024mlore`, and prove that as printed it is a single linear map of two averages;
# - say what an activation function adds to it, and show a case that nothing else can solve;
# - say what averaging over the image loses, and how a position branch gets it back;
# - read the paper's comparison of routers beside runs with several seeds;
# - compute how many tasks an expert serves by chance, and ask of any picture of routing whether it shows more than that.
#
# *Before you start:* [chapter 4](04_mixture_of_experts.ipynb) for gates, top-k and the balance loss; the idea of a null
# model in statistics helps. *Time:* 35 minutes of reading, half a minute of running, most of it the training above.
# *Hardware:* two CPU cores, 4 GB of memory; no GPU, no download.

# %% [markdown]
# ## The router as printed
#
# The router of task $t$ sees that task's features $\mathbf{X} \in \mathbb{R}^{C \times P}$, a column $\mathbf{x}_p$ for each of the
# $P = HW$ places. It has two branches. The **basic** one applies two 1 × 1 convolutions, $C \to C/4 \to C/4$, and then averages over
# the image. The **position-aware** one first takes a weighted sum over the places with learned weights $\mathbf{w} \in \mathbb{R}^P$, one for each
# place, and then maps $C$ to $C/4$. A last linear layer turns both results into a logit for each of the $N$ experts:
#
# ```{math}
# :label: eq-07-router
# \begin{aligned}
# \mathbf{u} &= \frac{1}{P} \sum_p \big( \mathbf{W}_2 (\mathbf{W}_1 \mathbf{x}_p + \mathbf{b}_1) + \mathbf{b}_2 \big) && \text{(basic)} \\
# \mathbf{v} &= \mathbf{W}_3 \Big( \sum_p w_p\, \mathbf{x}_p + b \Big) + \mathbf{b}_3 && \text{(position)} \\
# \mathbf{z} &= \mathbf{W}_u \mathbf{u} + \mathbf{W}_v \mathbf{v} + \mathbf{c} && \text{(prediction)}
# \end{aligned}
# ```
#
# The softmax of $\mathbf{z}$, of which the largest $k$ are kept, gives the gates. (In training the last layer also gives each
# expert's noise, as in chapter 4; we leave it out here.) In code, with one task:

# %%
torch.manual_seed(0)
C, P, N = 12, 20, 15
router = Router(1, C, P, N, activation=False).double()
X = torch.randn(1, 1, C, 4, 5, dtype=torch.float64)  # (B, T, C, H, W), HW = P
basic, position = router.branches["basic"], router.branches["position"]


# %%
def matrix(convolution):
    return convolution.weight[:, :, 0, 0], convolution.bias


W1, b1 = matrix(basic.first)  # (3, 12), (3,)
W2, b2 = matrix(basic.second)  # (3, 3), (3,)
W3, b3 = matrix(position.project)  # (3, 12), (3,)
w, b = position.weight[0], position.bias[0]  # (20,), ()
Wu, Wv = matrix(router.predict)[0].chunk(2, dim=1)  # (15, 3) each
c = router.predict.bias  # (15,)

# %%
x = X.flatten(3)[0, 0]  # (12, 20): a column for each place
u = (W2 @ (W1 @ x + b1[:, None]) + b2[:, None]).mean(dim=1)  # (3,)
v = W3 @ (x @ w + b) + b3  # (3,)
z = Wu @ u + Wv @ v + c  # (15,)
torch.testing.assert_close(z, router(X)[0, 0])

# %% [markdown]
# Nothing here bends. The mean of a linear map is the linear map of the mean, so the two convolutions can wait until the
# average $\bar{\mathbf{x}} = \frac{1}{P} \sum_p \mathbf{x}_p$ is taken, and then they are matrices that multiply each other:
#
# ```{math}
# :label: eq-07-collapsed
# \mathbf{z} = \mathbf{A}\, \bar{\mathbf{x}} + \mathbf{B}\, (\mathbf{X}\mathbf{w}) + \mathbf{d}, \qquad
# \mathbf{A} = \mathbf{W}_u \mathbf{W}_2 \mathbf{W}_1, \quad \mathbf{B} = \mathbf{W}_v \mathbf{W}_3,
# ```
#
# with all that does not depend on the image in $\mathbf{d} = \mathbf{W}_u(\mathbf{W}_2 \mathbf{b}_1 + \mathbf{b}_2) + \mathbf{W}_v(b\, \mathbf{W}_3 \mathbf{1} + \mathbf{b}_3) + \mathbf{c}$.
# The whole router is one matrix for the mean and one for the weighted sum.

# %%
A, B = Wu @ W2 @ W1, Wv @ W3  # (15, 12) each
d = Wu @ (W2 @ b1 + b2) + Wv @ (b * W3.sum(dim=1) + b3) + c  # (15,)
one_map = A @ x.mean(dim=1) + B @ (x @ w) + d  # (15,)
same = torch.allclose(one_map, router(X)[0, 0], rtol=1e-12, atol=1e-12)
print("three layers, one map, the same logits to twelve digits:", same)

# %% [markdown]
# At the width of the paper's ablations, $C = 640$, the printed layers hold more than ten times the numbers of the map that they amount to:

# %%
with torch.device("meta"):
    layers = Router(1, 640, 32 * 32, 15, activation=False)
printed = sum(p.numel() for p in layers.parameters())
collapsed = 2 * 15 * 640 + 32 * 32 + 15
print(f"{printed} numbers in the layers, {collapsed} in the map they make")

# %% [markdown]
# That need not be a waste. A product of matrices is trained along other paths than a single matrix, and may arrive elsewhere. But
# whatever is learned, a linear router has the limits of a linear one. Here is one of them. Let the left half of a picture
# show one thing and the right half another. Its mean is half-way between theirs, and so are its logits: a
# router without position and without bends has no opinion of its own about pictures that show both.

# %%
blind = Router(1, C, P, N, kind="basic", activation=False).double()
one, other = torch.randn(2, 1, 1, C, 4, 2, dtype=torch.float64)  # (1, 1, 12, 4, 2)
both = torch.cat([one, other], dim=-1)  # (1, 1, 12, 4, 4): side by side
torch.testing.assert_close(blind(both), (blind(one) + blind(other)) / 2)

# %% [markdown]
# ## What an activation adds
#
# The authors' released code is not what the paper prints. Between the two convolutions of the basic branch it has a LayerNorm over the channels
# and a GELU, and the same after the weighted sum of the position branch. (With it comes everything else in which code and paper
# differ; [chapter 9](09_mlore_assembled.ipynb) lists it.) Now the average is taken of something bent, and {eq}`eq-07-collapsed` is
# gone. What can such a router do that the printed one cannot?
#
# Take pictures of one plain colour each, described by two numbers, and let there be two experts: one for pictures where exactly
# one of the numbers is positive, the other for the rest. No line through the square separates the two kinds.

# %%
torch.manual_seed(1)
points = 2 * torch.rand(400, 2) - 1  # (400, 2)
wanted = (points.prod(dim=1) > 0).long()  # (400,): which expert
lift = torch.randn(16, 2)  # two numbers as 16 channels


def plain_pictures(points):
    features = (points @ lift.T)[:, None, :, None, None]  # (n, 1, 16, 1, 1)
    return features.expand(-1, -1, -1, 2, 2)  # (n, 1, 16, 2, 2)


# %%
def learn(router, features, wanted, steps=250, rate=2e-2):
    optimizer = torch.optim.Adam(router.parameters(), rate)
    for _ in range(steps):
        loss = F.cross_entropy(router(features)[:, 0], wanted)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return router


def right(router, features, wanted):
    return (router(features)[:, 0].argmax(dim=1) == wanted).float().mean().item()


# %%
bent = {}
for name, activation in (("as printed", False), ("as released", True)):
    torch.manual_seed(0)
    fresh = Router(1, 16, 4, 2, kind="basic", activation=activation)
    bent[name] = learn(fresh, plain_pictures(points), wanted)
    share = right(bent[name], plain_pictures(points), wanted)
    print(f"{name}: more than nine in ten right: {share > 0.9}")

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-07-xor", "caption": "Which of two experts the trained router gives to a plain picture with the two values a and b: the colour is the probability of the blue one, the dots are what it should be."}, "image": {"alt": "Two squares with blue and orange dots in a chequerboard of four quarters. Behind the dots, the left square, as printed, is evenly pale; the right square, as released, is coloured in four quarters that match the dots."}}
from matplotlib.colors import LinearSegmentedColormap

two = plots.OKABE_ITO[1], plots.OKABE_ITO[0]  # one colour for each expert
shades = LinearSegmentedColormap.from_list("two", (two[0], "white", two[1]))
line = torch.linspace(-1, 1, 81)
plane = torch.cartesian_prod(line, line)  # (81·81, 2)
figure, axes = plt.subplots(1, 2, figsize=(7.5, 3.3), sharey=True)
for axis, (name, trained) in zip(axes, bent.items()):
    with torch.no_grad():
        logits = trained(plain_pictures(plane))[:, 0]  # (81·81, 2)
    chance = logits.softmax(dim=1)[:, 1]  # (81·81,)
    axis.imshow(chance.reshape(81, 81).T, origin="lower", extent=(-1, 1, -1, 1), vmin=0, vmax=1, cmap=shades, alpha=0.6)  # fmt: skip
    for expert, colour in enumerate(two):
        axis.plot(
            *points[wanted == expert][:90].T, "o", ms=4, mec="white", color=colour
        )
    axis.set(title=name, xlabel="a")
    axis.locator_params(nbins=5)
_ = axes[0].set_ylabel("b")

# %% [markdown]
# In {numref}`fig-07-xor` the printed router stays unsure everywhere, however long it is trained; even the best line is right only two times in three. So an
# activation matters where a decision depends on two features *together*. It also lets the router have an opinion of its own about a
# mixed picture, since the mean of what was bent is not the same as bending the mean.
#
# ## What the mean forgets
#
# An average over the image does not change when the places are shuffled, and no activation helps: whatever function is applied
# to every column by itself, the columns' order is lost in the mean. A room and the same room upside down have the same mean,
# and the basic branch cannot tell one from the other. Let us train routers to do just that. As features we take the mean colour
# of each of 8 × 8 patches, lifted to sixteen channels.

# %%
plain = training.using(transform=eval_transform(64))
pictures = next(iter(make_loader(plain, len(plain), train=False)))["image"]
torch.manual_seed(2)
lift_colour = torch.randn(16, 3)


def upright_and_flipped(images):
    colours = F.adaptive_avg_pool2d(images, 8)  # (n, 3, 8, 8)
    features = torch.einsum("dc,nchw->ndhw", lift_colour, colours)  # (n, 16, 8, 8)
    both = torch.cat([features, features.flip(2)])  # (2n, 16, 8, 8)
    return both[:, None], torch.arange(2).repeat_interleave(len(images))


# %%
seen, unseen = upright_and_flipped(pictures), upright_and_flipped(scenes["image"])
oriented = {}
for kind, activation in itertools.product(("basic", "position"), (False, True)):
    torch.manual_seed(0)
    fresh = Router(1, 16, 64, 2, kind=kind, activation=activation)
    oriented[kind, activation] = learn(fresh, *seen, steps=80, rate=1e-2)

# %%
for (kind, activation), trained in oriented.items():
    how = "with an activation" if activation else "as printed"
    share = right(trained, *unseen)
    print(f"{kind:8} {how:18} more than nine in ten right: {share > 0.9}")
    if kind == "basic":
        upright, flipped = trained(unseen[0]).chunk(2)  # (32, 1, 2) each
        assert (upright - flipped).abs().max() < 1e-5

# %% [markdown]
# The basic branch gives both the same answer, as it must, and is right for one of the two. The position branch needs to learn only that
# floors differ from ceilings, and what it learned can be looked at. Its $P$ weights are a picture, that on the right of {numref}`fig-07-upright`.

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-07-upright", "caption": "Left: a room and its flipped twin, which have the same mean. Middle: the average of all training rooms. Right: the weights, one for each place, that the position branch learned in order to tell rooms that stand from rooms that hang."}, "image": {"alt": "A room, the same room upside down, a blurred average room with a bright upper and a darker lower part, and a map of eight by eight coloured squares in which the lower rows have one sign and the upper rows the other."}}
figure, axes = plt.subplots(1, 4, figsize=(7.5, 2.2), width_ratios=(1, 1, 1, 1.15))
room = denormalise(scenes["image"][0])
average = denormalise(pictures.mean(dim=0))
for axis, picture, title in zip(
    axes, (room, room.flip(1), average), ("a room", "flipped", "the average room")
):
    axis.imshow(to_rgb("image", picture))
    axis.set_title(title)
    axis.axis("off")


def show_places(axis, weights, title="", fontsize=10):
    limit = weights.abs().max()
    drawn = axis.imshow(weights, cmap="RdBu", vmin=-limit, vmax=limit)
    axis.set_title(title, fontsize=fontsize)
    axis.axis("off")
    return drawn


learned = oriented["position", True].branches["position"].weight.detach()
drawn = show_places(axes[3], learned.reshape(8, 8), "learned weights")
_ = figure.colorbar(drawn, ax=axes[3], shrink=0.8)

# %% [markdown]
# So the two branches are not rivals: one can bend and has no notion of place, the other knows places and gives each a fixed weight.
#
# How much of this matters in a real network is another question. There, the columns of $\mathbf{X}$ are no plain colours. They come out of a
# backbone that was told where everything is ([chapter 3](../part1_foundations/03_one_encoder_many_heads.ipynb)), so a floor above a
# ceiling may give other features and not just shuffled ones, and then the mean knows it too. In our trained network it does. We turn
# the rooms over and measure how far their means move:


# %%
def router_means(images):
    last = model.decoder.narrow[3](model.backbone(images)[3])  # (32, 32, 8, 8)
    features = model.decoder.scales[3][0].project(last)  # (32, 6, 32, 8, 8)
    return features.mean(dim=(3, 4))  # (32, 6, 32): B, T, C


with torch.no_grad():
    upright = router_means(scenes["image"])
    hanging = router_means(scenes["image"].flip(2))
change = (upright - hanging).norm() / (upright - upright.mean(dim=0)).norm()
print("more than half as far as rooms lie from their mean:", bool(change > 0.5))

# %% [markdown]
# The position branch also fixes the resolution, as the position embedding does, since it has one weight for each place. For another
# grid the library resizes the weights so that the branch answers as it would on features resized to its own grid; their sum stays
# the same (`mlore_edu/released.py: resize_places`, and {ref}`ex-07-carry`).
#
# ## Does it use what it sees?
#
# Back to {numref}`fig-07-gates`. To see at a glance how much the choice of experts depends on the image, we count for each
# task and each expert in what share of the scenes the expert is among the task's nine.

# %%
active = {name: g > 0 for name, g in routing.items()}  # (32, 6, 15) each
rates = {name: on.float().mean(dim=0) for name, on in active.items()}  # (6, 15)


def settled(rate):
    return ((rate == 0) | (rate == 1)).double().mean().item()


always = mean(settled(rate) for rate in rates.values())
print("the same in all 32 scenes: more than half of all pairs:", always > 0.5)

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-07-rates", "caption": "How often each expert is among the nine of a task, over 32 scenes, in the three modules of the trained network. White: in no scene. Darkest: in all."}, "image": {"alt": "Three tables of six rows, the tasks, and fifteen columns, the experts. Most squares are either white or of the darkest blue; few are in between."}}
figure, axes = plt.subplots(1, 3, figsize=(7.5, 1.7), sharey=True)
for axis, (name, rate) in zip(axes, rates.items()):
    show_table(axis, rate)
    axis.set_title(name.replace("scale", "Scale"), fontsize=9)
    axis.set_xlabel("experts", fontsize=8)
name_tasks(axes[0])

# %% [markdown]
# Most squares are white or dark: for most pairs of a task and an expert the question is settled once and for all,
# whatever the picture. Is our training too short? The networks of [chapter 9](09_mlore_assembled.ipynb), whole and
# trained nearly four times as long, were recorded (`book/results/make_mlore_sweeps.py routing`):

# %%
recorded = json.loads(Path("../results/mlore_routing.json").read_text())
whole = [run for run in recorded["runs"] if run["key"] == "mlore"]
modules = [module for run in whole for module in run["modules"].values()]
images = whole[0]["images"]
shares = [settled(torch.tensor(m["active_images"]) / images) for m in modules]
share = 100 * mean(shares)
print(
    f"{len(whole)} networks, {images} scenes: {share:.0f} % of all pairs are settled"
)

# %% [markdown]
# And the paper? Its supplement prints, for a trained ViT-B on PASCAL-Context, the mean gate of each expert for each task over
# the data set, in all eight modules (Fig. 5 there). Nine of fifteen experts are active. If every image had the *same* nine, six of
# fifteen means, 40 %, would be zero. If the nine changed freely with the image, none would be near zero.

# %%
table = published.table("mlore_supplement", "figure 5")
experts = [
    column.name for column in table.columns if column.name.startswith("rank")
]
cells = [
    row[name] for row in table.rows for name in experts if row[name] is not None
]
ours = [gate for m in modules for row in m["mean_gate"] for gate in row]
for name, means in (("the paper's", cells), ("ours", ours)):
    share = mean(gate <= 0.01 for gate in means)
    print(f"{name:12} {len(means)} means, {100 * share:.0f} % of them 0.01 or less")

# %% [markdown]
# By this measure the paper's routers are as settled as ours, and nearly as settled as routers that never look. (It is a hint, not a
# count: an expert that is active with a tiny gate also has a mean near zero.) What is called dynamic routing is, for
# the greater part of the choices, an assignment of experts to tasks, learned once. The balance loss does not
# object: it asks that all experts be used equally, and says nothing about images.
#
# ### Four ways to route wrongly
#
# Settled does not mean useless. To see what the routers contribute, we exchange the gates they give. Each scene may get the gates of *another
# scene*, or the *mean* gates of all; each task the gates of the *next task*; or the same gate values may fall on *random experts*. Nothing
# else changes.

# %%
from mlore_edu.decoders.mlore import MLoREModule
from mlore_edu.decoders.moe import Gating

exchanges = {
    "its own": lambda g: g,
    "another scene's": lambda g: g.roll(1, dims=0),
    "the mean": lambda g: g.mean(dim=0, keepdim=True).expand_as(g),
    "the next task's": lambda g: g.roll(1, dims=1),
    "random experts": lambda g: g.gather(-1, torch.rand(g.shape).argsort(dim=-1)),
}


# %%
def loss_with(exchange):
    modules = [m for m in model.modules() if isinstance(m, MLoREModule)]
    for module in modules:

        def route(features, original=module.route):
            gating, scale = original(features)
            return Gating(exchange(gating.gates), gating.load), scale

        module.route = route
    torch.manual_seed(0)
    with torch.no_grad():
        loss, _ = criterion(model(scenes["image"]).predictions, scenes)
    for module in modules:
        del module.route  # the class's own comes back
    return loss.item()


# %%
losses = {name: loss_with(exchange) for name, exchange in exchanges.items()}
own = losses["its own"]
for name in ("another scene's", "the mean"):
    print(
        f"{name:16} less than 5 % from its own: {abs(losses[name] / own - 1) < 0.05}"
    )
for name in ("the next task's", "random experts"):
    print(f"{name:16} more than 10 % worse: {losses[name] > 1.1 * own}")

# %% [markdown]
# In this network it matters a great deal which experts a *task* has, and hardly at all which image the gates were made for. The recorded networks are
# better trained, and there are three kinds of them: with nothing but experts as here, with task experts, and with the generic path
# as well. `book/results/make_chapter07.py` did the same to all of them.

# %%
record = json.loads(Path("../results/chapter07.json").read_text())
harm = {}  # by kind of network, exchange and task: how much worse, one number a seed
for run in record["runs"]:
    for name, by_task in run["losses"].items():
        for task, loss in by_task.items():
            worse = 100 * (loss / run["losses"]["its own"][task] - 1)
            harm.setdefault((run["title"], name, task), []).append(worse)
titles = list(dict.fromkeys(run["title"] for run in record["runs"]))

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-07-exchanged", "caption": "By how much the loss of each task grows when gates are exchanged, in recorded networks of three kinds: the mean of three seeds on a scale that is linear up to 1 % and logarithmic beyond."}, "image": {"alt": "Three panels with four groups of six coloured dots each. With experts alone, the next task's gates and random experts make most tasks tens to hundreds of percent worse; another scene's gates harm saliency and the surface normals by some twenty, the others by less. With task experts and with the generic path the dots for wrong tasks move down, to tens of percent for most."}}
figure, axes = plt.subplots(1, 3, figsize=(7.5, 3.1), sharey=True)
for axis, title in zip(axes, titles):
    for index, task in enumerate(tasks):
        worse = [mean(harm[title, name, task.name]) for name in list(exchanges)[1:]]
        places = [x + (index - 2.5) * 0.12 for x in range(4)]
        axis.plot(
            places,
            worse,
            "o",
            ms=5,
            label=task.title if title == titles[0] else None,
        )
    axis.set_yscale("symlog", linthresh=1)
    axis.set_title(title, fontsize=9)
    axis.set_xticks(
        range(4),
        [name.replace(" ", "\n", 1) for name in list(exchanges)[1:]],
        fontsize=7,
    )
    axis.axhline(0, color="0.6", lw=1, ls=":")
axes[0].set(ylabel="the loss grows by (%)", ylim=(-0.5, 1000))
axes[0].set_yticks([0, 1, 10, 100], ["0", "1", "10", "100"])
_ = figure.legend(loc="outside lower center", ncols=3, fontsize=8)


# %%
def average(title, name):
    return mean(mean(harm[title, name, task]) for task in tasks.names)


for title in titles:
    worse = average(title, "the next task's")
    print(f"{title:23} with the next task's gates: {worse:+4.0f} %")
for title in titles:
    others = {t: mean(harm[title, "another scene's", t]) for t in tasks.names}
    most = sorted(sorted(others, key=others.get)[-2:])
    print(f"{title:23} another scene's gates harm most:", ", ".join(most))

# %% [markdown]
# {numref}`fig-07-exchanged` says three things. As long as experts are all there is, they are the tasks' own: with the
# next task's experts the losses more than triple. Every further path takes over part of that work, though in the whole
# MLoRE, too, the losses grow by a good part with the wrong experts. And after longer training the routers do look at
# the image a little, for saliency and for the surface normals.
#
# What do they look for? We take, of all position branches of a network (six modules, six tasks), the one whose weights vary most over
# the places.

# %%
strongest = [run["strongest"] for run in record["runs"]]
owners = {branch["task"] for branch in strongest}
print(f"in {len(strongest)} networks it belongs to: {', '.join(owners)}")

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-07-places", "caption": "The most pronounced position branch of each of the nine recorded networks: one weight for each of 8 × 8 places. Above each map its scale and module."}, "image": {"alt": "Nine maps of eight by eight coloured squares. Some show a horizontal stripe at or below the middle, where in these rooms the wall meets the floor; others are of opposite colours at the left and right, or speckled."}}
figure, axes = plt.subplots(1, 9, figsize=(7.5, 1.3))
for axis, branch in zip(axes, strongest):
    place = branch["module"].replace("scale ", "").replace(", module ", "/")
    show_places(axis, torch.tensor(branch["weights"]), place, fontsize=8)

# %% [markdown]
# In every one of the nine networks ({numref}`fig-07-places`) it belongs to the normals. Some maps are marked along the line where the wall meets the floor, some
# differ between left and right. That would tell how the room is turned, which is just what one wants to know about a room before saying which
# way its walls face. Is it so? As a measure of the turn we take the mean over the scene of the true normals' first component: positive
# where the walls face right. Then we look, among all 90 gates of a task, for the one that goes with it most closely. The
# best of 90 correlates with anything to some degree, so we also shuffle the scenes and look again ({numref}`fig-07-turn`).

# %%
looks = [run["looks"] for run in record["runs"]]
for task in tasks.names:
    r = [look["follows"][task] for look in looks]
    high = sum(value > 0.7 for value in r)
    chance = mean(look["by_chance"][task] for look in looks)
    print(
        f"{task:12} mean {mean(r):.2f}, above 0.7 in {high} networks; shuffled {chance:.2f}"
    )

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-07-turn", "caption": "Left: how much the gates of each task vary over 100 scenes, summed over gates; a dot for each of the nine networks. Right: the gate of the normals that follows the turn of the room most closely, in the first of them; a dot for each scene, its turn being the mean of the true normals' first component."}, "image": {"alt": "Left: nine dots for each of six tasks on a logarithmic axis; those of the surface normals lie highest. Right: a cloud of dots: the gate is large for rooms that are turned to one side, falls, and is zero for most that are turned to the other."}}
figure, axes = plt.subplots(1, 2, figsize=(7.5, 2.8))
for x, task in enumerate(tasks.names):
    values = [look["variance"][task] for look in looks]
    axes[0].plot(
        [x] * len(values), values, "o", ms=4, alpha=0.6, color=plots.OKABE_ITO[x]
    )
axes[0].set_yscale("log")
axes[0].set(ylabel="variance of the gates", xticks=range(6))
axes[0].set_xticklabels(
    [task.title.replace(" ", "\n") for task in tasks], fontsize=7
)
axes[1].plot(record["turn"], looks[0]["gate"], "o", ms=4, color=plots.OKABE_ITO[3])
axes[1].set(xlabel="turn of the room", ylabel="gate")
axes[1].locator_params(axis="x", nbins=5)

# %% [markdown]
# It is so in eight of the nine networks, and in each of them the normals' gates vary most. This is the clearest use of
# a router, and of places, that we found, and an agreeable one: to a task that asks which way the walls face, the router
# says which way the room is turned.
#
# ## Table 4, with error bars
#
# If the choice hardly depends on the image, a router that sees no image should do nearly as well. The paper has tried it. The last row of its Table 4 feeds the
# basic branch with learned parameters in place of features, so that all images get the same gates. The others have the basic branch, the
# position branch, or both. (Its Δm is the gain over single-task networks, [chapter 2](../part1_foundations/02_measuring.ipynb).)

# %%
paper = published.table("mlore", 4)
print(paper.format())

# %% [markdown]
# From best to worst it is a third of a percent of Δm. How much is that of what MLoRE gains over its baseline, the first row of Table 2?

# %%
baseline = published.table("mlore", 2).rows[0]["delta_m"]
full = paper.row(router="basic+pos.")["delta_m"]
blind = paper.row(router="w/o sample-dep")["delta_m"]
kept = 100 * (blind - baseline) / (full - baseline)
print(f"a blind router keeps {kept:.0f} % of the gain")

# %% [markdown]
# One run stands behind each row, and none tells how far another seed would move it. We trained
# the same four on the easy Dollhouse, with several seeds each (`book/results/make_mlore_sweeps.py table4`).

# %%
sweeps = json.loads(Path("../results/mlore_sweeps.json").read_text())
alone = json.loads(Path("../results/chapter03.json").read_text())["runs"]
single = {
    name: mean(run["metrics"][name] for run in alone if run["tasks"] == [name])
    for name in tasks.names
}
rows = sweeps["sweeps"]["table4"]
gains = {
    row: [
        me.multitask_gain(run["metrics"], single, tasks)
        for run in sweeps["runs"]
        if run["key"] == key
    ]
    for row, key in rows.items()
}

# %%
for row, values in gains.items():
    theirs = paper.row(router=row)["delta_m"]
    span = f"from {min(values):+.1f} to {max(values):+.1f}, {len(values)} seeds"
    print(f"{row:15} paper {theirs:+.2f}   ours {mean(values):+.1f}, {span}")
within = math.sqrt(mean(stdev(values) ** 2 for values in gains.values()))
between = stdev(mean(values) for values in gains.values())
print(f"ours: between seeds ± {within:.1f}, between routers ± {between:.1f}")
assert between < within

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-07-table4", "caption": "Δm with four kinds of router. Left: the paper, ViT-B on PASCAL-Context, one run each. Right: ours, Dollhouse and vit_nano; a dot for each seed, the mean and its standard error."}, "image": {"alt": "Two panels with four rows, basic, basic plus position, only position, and without sample dependence. At the left one dot a row between minus 0.9 and minus 0.6. At the right several dots a row that spread over two or three percent, with means within little more than one percent, that without sample dependence lowest."}}
figure, axes = plt.subplots(1, 2, figsize=(7.5, 2.3), sharey=True)
for y, (row, values) in enumerate(gains.items()):
    axes[0].plot(paper.row(router=row)["delta_m"], y, "s", color="black")
    axes[1].plot(values, [y] * len(values), "o", ms=4, alpha=0.45)
    error = stdev(values) / math.sqrt(len(values))
    colour = axes[1].lines[-1].get_color()
    axes[1].errorbar(
        mean(values), y, xerr=error, fmt="|", ms=12, mew=2, capsize=3, color=colour
    )
axes[0].set(
    yticks=range(4), yticklabels=list(gains), title="paper", xlim=(-1.2, -0.3)
)
axes[1].set(title="ours")
axes[0].invert_yaxis()
_ = figure.supxlabel("Δm (%)", fontsize=10)

# %% [markdown]
# With us, on the right of {numref}`fig-07-table4`, the rows differ by less than the seeds within a row do, and none can be
# told from MLoRE's own router ([chapter 9](09_mlore_assembled.ipynb) has the intervals). The blind one comes last, as in
# the paper. That does not say that the paper's order is right, nor that it is wrong. It does say that an order made of
# differences of one or two tenths needs several seeds a row, and has one.
#
# ## By chance
#
# The paper's Fig. 4b counts, in a network without the generic path, how many tasks share an expert in the same image, and finds that an
# expert is seldom active for all of them. It concludes that experts cannot learn what is common to all tasks, and that a generic path is
# needed. To be seldom is relative. How often would an expert serve all tasks if the routers drew lots? The dots of
# [chapter 6](06_generic_path_and_task_experts.ipynb) gave the answer; here is where it comes from.
#
# Let each of $T$ tasks draw $k$ of $N$ experts, all alike and independent of each other. A given expert is among a task's $k$ with
# probability $k/N$, so the number $M$ of tasks that it serves is binomial:
#
# ```{math}
# :label: eq-07-chance
# \Pr(M = m) = \binom{T}{m} \Big(\frac{k}{N}\Big)^{m} \Big(1 - \frac{k}{N}\Big)^{T - m}, \qquad
# \Pr(M = T) = \Big(\frac{k}{N}\Big)^{T}.
# ```


# %%
def chance_of(m, T, k, N):
    return math.comb(T, m) * (k / N) ** m * (1 - k / N) ** (T - m)


for data in (me.PASCAL_CONTEXT, me.NYUD_V2, me.DOLLHOUSE):
    T = len(data)
    print(f"{data.name:15} all {T} tasks: {100 * chance_of(T, T, 9, 15):.1f} %")

# %% [markdown]
# A simulation of lots agrees, of course:


# %%
def draw_lots(T, k, N, images=4000, seed=0):
    generator = torch.Generator().manual_seed(seed)
    order = torch.rand(images, T, N, generator=generator).argsort(dim=-1)
    served = (order < k).sum(dim=1)  # (images, N): tasks that each expert serves
    return served.flatten().bincount(minlength=T + 1) / served.numel()  # (T + 1,)


drawn = draw_lots(5, 9, 15)
expected = torch.tensor([chance_of(m, 5, 9, 15) for m in range(6)])
assert (drawn - expected).abs().max() < 0.01

# %% [markdown]
# ### Turn the knobs


# %%
def show_chance(T, k, N=15):
    _, axis = plt.subplots(figsize=(7.5, 2.6))
    share = [100 * chance_of(m, T, k, N) for m in range(T + 1)]
    bars = axis.bar(range(T + 1), share, color=[*["0.75"] * T, plots.OKABE_ITO[0]])
    axis.plot(range(T + 1), 100 * draw_lots(T, k, N), "o", color=plots.OKABE_ITO[3])
    axis.bar_label(bars, fmt="%.0f %%", padding=6)
    axis.axvline(T * k / N, color="black", lw=1, ls=":")
    axis.set(title=f"{T} tasks, each with {k} of {N} experts", xticks=range(T + 1))
    axis.set(xlabel="tasks that an expert serves in one image")
    axis.set(ylabel="share of experts (%)", ylim=(0, 1.2 * max(share)))


# %% tags=["nbval-ignore-output"]
import ipywidgets

_ = ipywidgets.interact(
    lambda T, k: (show_chance(T, k), plt.show())[1],
    T=ipywidgets.IntSlider(5, 2, 8, description="tasks T"),
    k=ipywidgets.IntSlider(9, 1, 15, description="active k"),
)

# %% mystnb={"figure": {"name": "fig-07-chance", "caption": "How many tasks an expert serves when every task draws 9 of 15 experts by lot: the binomial (bars; blue: all tasks), a simulation (dots), and the mean T·k/N (dotted line)."}, "image": {"alt": "A bar chart for zero to five tasks with 1, 8, 23, 35, 26 and 8 percent. A dot of the simulation lies at the top of each bar. A dotted line marks the mean, three tasks."}}
show_chance(5, 9)

# %% [markdown]
# By pure chance 8 % of experts serve all five tasks ({numref}`fig-07-chance`). That *is* seldom, and no router was involved: it follows from $k/N = 0.6$. More is
# fixed than that. In each image the $T$ tasks take $k$ experts each, so the numbers of tasks over all experts add up to $Tk$, and their mean
# is $Tk/N$ *whatever the routers do*: 3 of 5 tasks with the paper's numbers. Routing can only spread the numbers or gather
# them.

# %%
for on in active.values():
    tasks_per_expert = on.sum(dim=1).double()  # (32, 15)
    assert (tasks_per_expert.mean(dim=1) - 6 * 9 / 15).abs().max() < 1e-9

# %% [markdown]
# And the balance loss gathers. Where the choice hardly depends on the image, balance means that every expert is taken by about as many *tasks* as
# any other. A perfectly balanced and perfectly settled set of routers with $T = 5$ would give every expert to exactly three tasks, and none would
# ever serve all five.
#
# So there are two null models to hold against a trained network. **Lots**: the binomial above. **Habit**: each task keeps its own rate for
# each expert, as in {numref}`fig-07-rates`, but the images are shuffled for each task separately, so that tasks cannot agree on an image. If
# habit already explains how often all tasks meet, then the routers do not react to what is in the picture together, neither
# seeking nor avoiding each other.


# %%
def poisson_binomial(rates):
    """Distribution of the number of tasks for each expert, from rates (T, N)."""
    shares = torch.zeros(len(rates) + 1, rates.shape[1], dtype=torch.float64)
    shares[0] = 1
    for rate in rates.double():  # one more task: it takes the expert, or does not
        shares[1:] = shares[1:] * (1 - rate) + shares[:-1] * rate
        shares[0] *= 1 - rate
    return shares.mean(dim=1)  # (T + 1,), over experts


torch.testing.assert_close(
    poisson_binomial(torch.full((5, 15), 0.6)),
    expected.double(),
    atol=1e-6,
    rtol=1e-5,
)

# %% [markdown]
# We hold them against the recorded runs without a generic path, the setting of Fig. 4b: six tasks, fifteen experts, and the
# choices on 100 validation scenes in each of six modules and with every seed.


# %%
def shares_of(module):
    served = torch.tensor(module["images_by_tasks"]).double()  # (15, 7)
    return served.sum(dim=0) / served.sum()  # (7,): share with 0 to 6 tasks


def shares_by_habit(module):
    return poisson_binomial(torch.tensor(module["active_images"]) / images)  # (7,)


# %%
runs = [run for run in recorded["runs"] if run["key"] == "mlore generic=False"]
no_generic = [module for run in runs for module in run["modules"].values()]
shares = {
    "lots": torch.tensor([[chance_of(m, 6, 9, 15) for m in range(7)]]),
    "habit": torch.stack([shares_by_habit(module) for module in no_generic]),
    "observed": torch.stack([shares_of(module) for module in no_generic]),
}
for name, each in shares.items():
    print(f"{name:9} all six tasks: {100 * each[:, 6].mean():.1f} %")

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-07-nulls", "caption": "How many of six tasks an expert serves in the same image, without a generic path: recorded runs (blue; the bar is the mean over modules and seeds, dots are single modules), drawn by lot, and by habit."}, "image": {"alt": "Groups of three bars for zero to six tasks. The observed bars and those by habit are nearly equal. Compared with lots they are higher in the middle, at three and four tasks, and lower at the ends, six tasks among them."}}
figure, axis = plt.subplots(figsize=(7.5, 2.9))
places = torch.arange(7)
for shift, (name, each), colour in zip(
    (-0.27, 0, 0.27),
    shares.items(),
    ("0.75", plots.OKABE_ITO[4], plots.OKABE_ITO[0]),
):
    height = 100 * each.mean(dim=0)
    axis.bar(places + shift, height, width=0.25, color=colour, label=name)
for each in shares["observed"]:
    axis.plot(places + 0.27, 100 * each, ".", ms=3, color="black", alpha=0.5)
axis.set(xlabel="tasks that an expert serves in one image", ylabel="share of experts (%)", xticks=range(7))  # fmt: skip
_ = axis.legend()

# %% [markdown]
# {numref}`fig-07-nulls` says that all six tasks meet at an expert even more rarely than by lot, by an order of magnitude; and habit explains it completely: the two
# blue bars are the same. The tasks have divided the experts among themselves once, and do not react to each other's choice in an image.
#
# Was it the balance loss that made them? The script also trained the whole MLoRE without that loss, and counted again:

# %%
counted = {
    "by lot": shares["lots"],
    "with the balance loss": torch.stack([shares_of(module) for module in modules]),
    "without": torch.tensor(record["served_without_balance"]).flatten(0, 1),
}
for name, each in counted.items():  # (modules of all runs, 7) each
    spread = (each * (places - 3.6) ** 2).sum(dim=1).mean()
    print(
        f"{name:21} variance {spread:.1f}, all six: {100 * each[:, 6].mean():.1f} %"
    )

# %% [markdown]
# Without the balance loss all six tasks meet about as often as by lot; with it, they keep apart. (That fewer meet because of
# it, the supplement itself grants.)
#
# So what is Fig. 4b evidence of? That few experts serve all tasks follows from $k/N = 0.6$; that they may be fewer still, from the balance loss. Neither
# says whether experts *could* learn what is common to all tasks. With $k = N$ every expert serves all of them, and the supplement's Table 4 gives that
# network a Δm of −0.75, which lies among the rows of Table 4 above. So the picture does not make the case for the generic path. Whether a generic path
# is worth its place is a question for Table 2, and for [chapter 9](09_mlore_assembled.ipynb).
#
# ## Exercises
#
# ```{exercise} Collapse
# :label: ex-07-collapse
# Given a list of linear layers as pairs `(W, b)`, applied one after the other, write `collapse(layers)` that returns the one pair `(W, b)`
# that they amount to.
# ```

# %%
from mlore_edu.exercises import ch07


def collapse(layers): ...


_ = ch07.check_collapse(collapse)

# %% [markdown]
# ```{solution-start} ex-07-collapse
# :class: dropdown
# ```


# %% jupyter={"source_hidden": true}
def collapse(layers):
    (weight, bias), *others = layers
    for next_weight, next_bias in others:
        weight, bias = next_weight @ weight, next_weight @ bias + next_bias
    return weight, bias


_ = ch07.check_collapse(collapse)

# %% [markdown]
# ```{solution-end}
# ```
#
# ```{exercise} Chance
# :label: ex-07-chance
# Every task draws `k` of `experts` experts by lot. Write `served_by_chance(served, tasks, k, experts)`, the probability that an expert serves exactly `served`
# of `tasks` tasks. How many of fifteen experts must be active for each of PASCAL-Context's five tasks, so that half of the experts serve all five?
# ```


# %%
def served_by_chance(served, tasks, k, experts): ...


_ = ch07.check_chance(served_by_chance)

# %% [markdown]
# ```{solution-start} ex-07-chance
# :class: dropdown
# ```
# All five meet with probability $(k/15)^5$, which passes one half at $k/15 = 2^{-1/5} \approx 0.87$, so at $k = 14$.


# %% jupyter={"source_hidden": true}
def served_by_chance(served, tasks, k, experts):
    ways, share = math.comb(tasks, served), k / experts
    return ways * share**served * (1 - share) ** (tasks - served)


print([f"{served_by_chance(5, 5, k, 15):.2f}" for k in (12, 13, 14)])
_ = ch07.check_chance(served_by_chance)

# %% [markdown]
# ```{solution-end}
# ```
#
# ```{exercise} Habit
# :label: ex-07-habit
# `active` is a boolean tensor `(images, T, N)`: which experts each task uses in each image. If the images are shuffled for each task separately, how
# often does each expert serve all tasks, on average over all shufflings? Write `by_habit(active)` with a result of shape `(N,)`.
# ```


# %%
def by_habit(active): ...


_ = ch07.check_habit(by_habit)

# %% [markdown]
# ```{solution-start} ex-07-habit
# :class: dropdown
# ```
# After shuffling, the tasks' choices are independent, so their rates multiply. No shuffling is needed.


# %% jupyter={"source_hidden": true}
def by_habit(active):
    rates = active.double().mean(dim=0)  # (T, N)
    return rates.prod(dim=0)  # (N,)


_ = ch07.check_habit(by_habit)

# %% [markdown]
# ```{solution-end}
# ```
#
# ```{exercise} A map for a finer grid
# :label: ex-07-carry
# A position branch with weights `(h, w)` is to work on features that are `factor` times as fine in both directions. Write `carry(weights, factor)`, which gives
# weights `(h · factor, w · factor)`, so that features that merely repeat each place give the answer they gave before.
# ```


# %%
def carry(weights, factor): ...


_ = ch07.check_carry(carry)

# %% [markdown]
# ```{solution-start} ex-07-carry
# :class: dropdown
# ```
# Each place becomes $f^2$ places, which share its weight. The library does the same for any pair of grids.


# %% jupyter={"source_hidden": true}
def carry(weights, factor):
    rows = weights.repeat_interleave(factor, dim=0)  # (h·f, w)
    return rows.repeat_interleave(factor, dim=1) / factor**2  # (h·f, w·f)


_ = ch07.check_carry(carry)

# %% [markdown]
# ```{solution-end}
# ```
#
# ## Takeaways
#
# - The router as printed is one linear map of the mean feature and of one weighted sum over places. It cannot react to two features together.
# - An activation before the mean adds that; no activation brings back what the mean forgets, the order of places. A position branch
#   does, at the price of a fixed resolution.
# - Trained routers are mostly settled: which experts a task uses hardly depends on the image, with us and by the paper's own figure. What there
#   is of looking serves saliency and, above all, the surface normals.
# - Exchanging gates tells what routing is worth. Between tasks it is worth much, as long as there is no other path; between images, little.
# - The mean number of tasks an expert serves is $Tk/N$, whatever the routers do. A picture of routing shows something
#   only where it departs from lots and from habit.
#
# You can now take a router apart, and ask a routing pattern what it would look like by chance. All paths of the module are on the table, each of
# them linear once the gates are known. [Chapter 8](08_reparameterisation.ipynb) makes one convolution of them.
