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
# # Looking inside
#
# A trained network is a few million numbers, and whoever wants to know what it has learned makes pictures of some of
# them. Here are three such pictures: how much each task takes from each of fifteen experts. One is printed in the
# supplement of MLoRE {cite}`yang2024mlore`, one comes from a network of this book, and one has been shuffled by a
# die. Which is which?

# %%
import json
from functools import partial
from itertools import combinations
from pathlib import Path

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
from mlore_edu.evaluation import decode, evaluate
from mlore_edu.pictures import to_rgb
from mlore_edu.tasks import DOLLHOUSE_CLASSES

plots.use_style()
tasks = me.DOLLHOUSE
T = len(tasks)
blue, orange = plots.OKABE_ITO[0], plots.OKABE_ITO[1]

# %% [markdown]
# The book ships four trained networks in `book/models`. Each is a folder with the weights, and with the few words that
# `from_pretrained` builds the network from.

# %%
mlore = me.from_pretrained("../models/mlore")

# %%
transform = eval_transform(128)
data = DollhouseScenes(60, 128, "easy", VALIDATION_SEEDS, transform=transform)
scenes = next(iter(make_loader(data, len(data), train=False)))
parts = scenes["image"].split(20)  # three of (20, 3, 128, 128)
S = len(data)


# %%
def decoded(model, images):
    """What the decoder gives: features, balance loss, routing."""
    with torch.inference_mode():
        return model.decoder(model.backbone(images))


outputs = [decoded(mlore, part) for part in parts]
routing = {
    name: torch.cat([output.routing[name] for output in outputs])
    for name in outputs[0].routing
}
gates = torch.stack(list(routing.values())).double()  # (M, S, T, N)
M, _, _, N = gates.shape
print(f"{M} modules, {S} scenes, {T} tasks, {N} experts")
ours = gates.mean(dim=1).numpy()  # (M, T, N): means over the scenes

# %% [markdown]
# The supplement prints one such matrix for each of its network's eight modules (Fig. 5 there), with two digits. They
# are typed in, but for fifteen cells that our copy of the page does not show. As the cells of a row add up to 1, what
# is missing from it is known, and where two cells are, we give half of it to each.

# %%
table = published.table("mlore_supplement", "figure 5")
columns = [c.name for c in table.columns if c.name.startswith("rank")]
rank = np.array([int(name.removeprefix("rank")) for name in columns])  # (15,)
cells = [[row[name] for name in columns] for row in table.rows]
typed = np.array(cells, dtype=float).reshape(8, 5, 15)  # (modules, tasks, N)
gaps = np.isnan(typed)
rest = 1 - np.nansum(typed, axis=2, keepdims=True)  # (8, 5, 1)
theirs = np.where(
    gaps, rest.clip(0) / gaps.sum(axis=2, keepdims=True).clip(1), typed
)


# %%
def shuffled(matrix, chance):
    """Each task keeps its numbers, and forgets which expert they belong to."""
    return chance.permuted(matrix, axis=-1)


# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-18-which", "caption": "Mean gates: a row for each task, a column for each expert, from the lowest rank to the highest. White is 0, the darkest blue 0.3. One matrix is from the paper, one from this book's network, one is shuffled."}, "image": {"alt": "Three tables of five rows and fifteen columns with squares from white to dark blue, called A, B and C. All three have dark and white squares scattered over them without an obvious order."}}
def show_matrix(axis, matrix, title="", top=0.3):
    axis.imshow(matrix, cmap="Blues", vmin=0, vmax=top, aspect="auto")
    axis.set(xticks=[], yticks=[])
    axis.set_title(title, fontsize=10)
    axis.spines[:].set(visible=True, color="0.7")


die = np.random.default_rng(0)
shown = (shuffled(theirs[7], die), theirs[7], ours[-1, [0, 1, 2, 3, 5]])
figure, axes = plt.subplots(1, 3, figsize=(7.5, 1.6))
for axis, matrix, letter in zip(axes, shown, "ABC"):
    show_matrix(axis, matrix, letter)
    axis.set_xlabel("experts, by rank", fontsize=9)
_ = axes[0].set_ylabel("tasks", fontsize=9)

# %% [markdown]
# It is hard to tell, and that is the subject of this chapter. A picture of a network's inside always shows *something*.
# Whether it shows anything that was learned can be said only beside a picture of what chance, or an untrained network,
# would have put there: a **null model**.
#
# ## What you will be able to do
#
# - draw the relation of tasks and experts in two ways, and say which of them a paper has plotted;
# - test a sentence about such a picture against shuffled pictures, with an interval, and for eight modules at once;
# - say how much of a gate is explained by where a token is, what it shows and how far away it is;
# - measure whether attention keeps to its own kind, and how far apart two tasks attend, beside networks that cannot know;
# - use principal components without being taken in by their colours;
# - tell what tiny networks on rendered rooms can say about the papers' networks, and what they cannot.
#
# *Before you start:* [chapter 7](../part2_mlore/07_routers.ipynb) for gates and null models, [chapter
# 10](../part3_taskexpert/10_dynamic_assembly.ipynb) for TaskExpert's gates, [chapters
# 13](../part4_tif/13_self_feature_distillation.ipynb) and [14](../part4_tif/14_low_to_high_diffusion.ipynb) for TIF's
# affinities. *Time:* 40 minutes of reading, half a minute of running. *Hardware:* two CPU cores, 4 GB of memory; no GPU,
# no download.
#
# ## Four networks to look into
#
# `python book/results/make_shipped_models.py` trained them, one core each, on a thousand
# easy scenes of 128 × 128 pixels. MLoRE is the *released* variant: in
# [chapter 9](../part2_mlore/09_mlore_assembled.ipynb) it was this one that left the baseline behind, and it is the kind
# of network that the supplement looks into. Their metrics were taken from the stored files, whose weights are kept in
# half precision:

# %%
names = ("baseline", "mlore", "taskexpert", "tif")
records = {
    name: json.loads(Path("../models", name, "metrics.json").read_text())
    for name in names
}
print(f"{'':11}{'weights':>8}  " + "".join(f"{t.metric:>7}" for t in tasks))
for name, told in records.items():
    values = "".join(f"{told['metrics'][t.name]:7.2f}" for t in tasks)
    print(f"{name:11}{told['parameters'] / 1e6:6.2f} M  {values}")
stored = sum(
    path.stat().st_size for path in Path("../models").glob("*/*.safetensors")
)
assert stored <= 8e6

# %% [markdown]
# (Columns in the order of the tasks: segmentation, human parts, saliency, normals in degrees, depth in metres,
# boundaries. They are not a comparison of decoders: the budgets differ, and there is one seed. For that see [chapter 17](17_results_side_by_side.ipynb).)
# What they say of one scene is {numref}`fig-18-predictions`. That a file gives what is said of it can be checked on a few scenes here, and on all of them with the option `--verify`
# of the script.

# %%
few = DollhouseScenes(6, 128, "easy", VALIDATION_SEEDS, transform=transform)
loader = make_loader(few, 6, train=False)
models = {name: me.from_pretrained(f"../models/{name}") for name in names}
close = {"mIoU": 0.1, "maxF": 0.01, "odsF": 0.1, "mErr": 0.001, "RMSE": 0.0002}
for name, model in models.items():
    found = evaluate(model, loader, tasks, progress=False).metrics
    wanted = records[name]["metrics_of_few"]
    same = all(
        abs(found[t.name] - wanted[t.name]) <= close[t.metric] for t in tasks
    )
    print(f"{name:11}as recorded: {same}")


# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-18-predictions", "caption": "Of the scenes with a person in the middle, the one with the most classes: its labels, and what the four networks answer."}, "image": {"alt": "Five rows of seven pictures. At the left of the first row a room with a person; then in each row the segmentation, the body parts, saliency, surface normals, depth and boundaries. The answers of the four networks look like blurred versions of the labels in the first row."}}
def pick():
    """Of the scenes with a person in the middle, the one with the most classes."""
    person = scenes["semseg"] == DOLLHOUSE_CLASSES.index("person")  # (S, 128, 128)
    central = person[:, :, 32:96].double().mean(dim=(1, 2)) > 0.08
    many = [len(s.unique()) for s in scenes["semseg"]]
    return max(range(S), key=lambda i: central[i] * many[i])


chosen = pick()
image = scenes["image"][chosen : chosen + 1]
rows = [
    {"image": denormalise(image[0])} | {t: scenes[t][chosen] for t in tasks.names}
]
with torch.inference_mode():
    for model in models.values():
        answers = decode(model(image).predictions, tasks)
        rows.append({t: answers[t][0] for t in tasks.names})
_ = plots.show_grid(rows, ("labels", *names))

# %% [markdown]
# ## Two numbers for one relation
#
# Let $g_{s,t,n}$ be the gate of task $t$ for expert $n$ on scene $s$, zero unless the expert is among the $k = 9$ of 15 that
# the task uses there. Over $S$ scenes there are two ways to say how much task and expert have to do with each other,
# the **mean gate** and the **share of activations**:
#
# ```{math}
# :label: eq-18-relation
# \bar g_{t,n} = \frac{1}{S} \sum_s g_{s,t,n}, \qquad
# a_{t,n} = \frac{1}{S k} \sum_s [\, g_{s,t,n} > 0 \,] .
# ```
#
# The first asks how much is taken, the second how often anything is ({numref}`fig-18-relations`). Where a task always uses the same nine experts,
# all of their shares are equal, however different the gates.

# %%
k = 9
share = (gates > 0).double().mean(dim=1).numpy() / k  # (M, T, N)
assert ((gates > 0).sum(dim=-1) == k).all()
assert np.allclose(share.sum(axis=2), 1)
together = np.corrcoef(ours.ravel(), share.ravel())[0, 1]
print(f"correlation of the two: {together:.1f}")

# %% mystnb={"figure": {"name": "fig-18-relations", "caption": "Both relations in the last module of our network (scale 4, module 2). Left: mean gates, up to 0.3. Right: shares of activations, up to the largest that there can be, 1/9."}, "image": {"alt": "Two tables of six rows, the tasks, and fifteen columns. At the left a few squares a row are dark, the others pale or white. At the right most squares are either white or of the darkest blue."}}
figure, axes = plt.subplots(1, 2, figsize=(7.5, 1.8), sharey=True)
show_matrix(axes[0], ours[-1], "mean gate")
show_matrix(axes[1], share[-1], "share of activations", top=1 / k)
axes[0].set_yticks(range(T), [task.title for task in tasks], fontsize=8)
_ = figure.supxlabel("experts, by rank", fontsize=9)

# %% [markdown]
# MLoRE's text on its Fig. 4a speaks of an *activation ratio*, the share of images for which a task selects an expert.
# What is plotted? A share of activations cannot exceed $1/k = 0.11$, and a plain rate, from 0 to 1, has rows that sum to
# nine.

# %%
complete = ~gaps.any(axis=2)  # (8, 5): rows without a gap
sums = typed.sum(axis=2)[complete]
print(f"largest cell: {np.nanmax(typed):.2f}; 1/9 = {1 / k:.2f}")
print(f"{len(sums)} complete rows sum to {sums.min():.2f} … {sums.max():.2f}")
small = 100 * (typed[~gaps] <= 0.01).mean()
print(f"at most a hundredth: {small:.0f} % of the cells")

# %% [markdown]
# So the figures show mean gates. That is no slip of consequence. But a reader who takes a cell of 0.02 for a rate will think
# that the expert is hardly ever used, when it may be active on every image, with a small gate.
#
# ## What would chance print?
#
# The paper reads three things from its matrices. Experts of different ranks learn different subsets of the tasks; in
# the module of its Fig. 4a, which is the last one here, those of low rank are shared by three or four tasks and those of
# high rank by one or two; and few serve all tasks (this it says of a network without the generic path; the printed matrices are of
# one with it). Against which chance shall we hold this?
#
# **Lots.** Each task draws its nine experts anew for each image, all alike. Then all mean gates are about 1/15.

# %%
chance = np.random.default_rng(0)
lots = chance.random((8, 400, 5, 15)).argsort(axis=-1) < k  # (8, images, 5, 15)
by_lot = lots.mean(axis=1) / k
for name, m in (("lots", by_lot), ("the paper", theirs), ("ours", ours)):
    total = m.sum(axis=2).mean()
    print(
        f"{name:10} cells {m.mean():.2f} ± {m.std():.3f}, rows sum to {total:.1f}"
    )

# %% [markdown]
# (A row of ours sums to less than 1, because the released code takes its softmax over all fifteen experts, drops six, and leaves the
# others as they are. That the printed rows sum to 1 tells that the authors' network had hardly anything to drop, or chose first.)
#
# Nobody would mistake lots for what the paper prints. But to rule them out says no more than that each task has habits, which
# chapter 7 found in another way. It does not say that there is order in them.
#
# **Shuffling.** Each task keeps its habits, so much for its first expert, so much for its second, but we deal them out to
# the experts anew. Everything that the matrix says about *which* expert is destroyed, and all else is kept. This is the
# null model of {numref}`fig-18-which` (where A is the shuffled one, B the paper's, and C ours).
#
# A sentence becomes testable as a number. Four of them, each a mean over the modules:


# %%
def served(matrices, above=0.01):
    """How many tasks take more than a hundredth from an expert."""
    return (matrices > above).sum(axis=-2)  # (..., N)


def with_rank(values):
    """Correlation with the number of the expert, mean over the modules."""
    number = np.arange(values.shape[-1])
    return np.mean([np.corrcoef(number, v)[0, 1] for v in values])


def trend(matrices, above=0.01):
    return with_rank(served(matrices, above))


statistics = {
    "rank ~ tasks served": trend,
    "rank ~ load": lambda m: with_rank(m.sum(axis=1)),
    "spread of the load": lambda m: m.sum(axis=1).std(axis=1).mean(),
    "experts of all tasks": lambda m: (served(m) == m.shape[1]).mean(),
}


# %% [markdown]
# (The *load* of an expert is the sum of its column, what all tasks together take from it.) Now shuffle a thousand times, and see
# between which bounds 95 % of the results lie ({numref}`fig-18-nulls`).


# %%
def under_shuffling(matrices, statistic, times=1000):
    dealer = np.random.default_rng(0)
    return np.array([statistic(shuffled(matrices, dealer)) for _ in range(times)])


verdicts, nulls = {}, {}
for name, statistic in statistics.items():
    for which, matrices in (("the paper", theirs), ("ours", ours)):
        null = nulls[which, name] = under_shuffling(matrices, statistic)
        low, high = np.quantile(null, (0.025, 0.975))
        seen = statistic(matrices)
        verdicts[which, name] = int(seen > high) - int(seen < low)  # -1, 0, 1
        word = ("below", "within", "above")[verdicts[which, name] + 1]
        bounds = f"chance {low:5.2f} … {high:5.2f}"
        print(f"{name:21}{which:10}{seen:6.2f}   {bounds}   {word}")

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-18-nulls", "caption": "Four numbers for the eight printed matrices (above) and for the six of our network (below): grey, what a thousand shuffled sets of matrices give; the line, what the real ones give, blue where it lies outside the middle 95 %."}, "image": {"alt": "Eight small histograms in two rows, each with a vertical line. In the first column the lines lie within or at the edge of the histograms; in the third column they lie left of them."}}
figure, axes = plt.subplots(2, 4, figsize=(7.5, 2.9))
for row, (which, matrices) in zip(axes, (("the paper", theirs), ("ours", ours))):
    row[0].set_ylabel(which, fontsize=9)
    for axis, (name, statistic) in zip(row, statistics.items()):
        axis.hist(nulls[which, name], bins=25, color="0.8")
        outside = verdicts[which, name] != 0
        axis.axvline(statistic(matrices), color=blue if outside else "0.3", lw=2)
        axis.set(yticks=[])
        axis.tick_params(labelsize=8)
        axis.locator_params(axis="x", nbins=4)
        if which == "the paper":
            axis.set_title(name, fontsize=9)

# %% [markdown]
# And the last module alone, of which the sentence was said? It is the orange one in {numref}`fig-18-ranks`.

# %%
last = theirs[-1:]
null = under_shuffling(last, statistics["rank ~ tasks served"])
seen = statistics["rank ~ tasks served"](last)
p = (1 + (abs(null) >= abs(seen)).sum()) / (1 + len(null))
print(f"last module: correlation {seen:.2f}, as large by chance in {100 * p:.0f} %")
each = [with_rank(served(m[None])) for m in theirs]
print("all eight:", *(f"{r:+.2f}" for r in each))

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-18-ranks", "caption": "How many tasks take part in an expert, by its rank. Dots: single modules (orange: the last). Blue: their mean. Grey: where 95 % of such means lie if the experts are shuffled."}, "image": {"alt": "Two panels, the paper with ranks from 16 to 128 and our network with ranks from 2 to 16. Dots are scattered between zero and all tasks. The blue lines wander around the grey bands without a clear trend. In the left panel the orange dots of the last module tend to fall from left to right."}}
figure, axes = plt.subplots(1, 2, figsize=(7.5, 2.7))
our_rank = np.arange(2, 17)
for axis, (name, matrices, ranks) in zip(
    axes, (("the paper", theirs, rank), ("ours", ours, our_rank))
):
    counts = served(matrices)  # (modules, N)
    dealer = np.random.default_rng(1)
    null = [served(shuffled(matrices, dealer)).mean(axis=0) for _ in range(300)]
    low, high = np.quantile(null, (0.025, 0.975))
    axis.axhspan(low, high, color="0.9")
    for number, line in enumerate(counts):
        is_last = number == len(counts) - 1
        axis.plot(ranks, line + 0.06 * (number - 3), "o", ms=4 if is_last else 3,
                  color=orange if is_last else "0.6")  # fmt: skip
    axis.plot(ranks, counts.mean(axis=0), color=blue)
    axis.set(title=name, xlabel="rank of the expert")
_ = axes[0].set_ylabel("tasks that take part")

# %% [markdown]
# What survives of three sentences? That ranks and *subsets of tasks* belong together is nothing that these matrices could
# contradict: in a shuffled one, too, every expert serves some subset. How many tasks it serves has nothing to do with its rank: over
# eight modules the correlation is what shuffling gives, its sign changes from one module to the next, and in the last one
# it has the claimed direction, but one shuffled matrix in ten or so has as much. (And modules are chosen for a figure by
# somebody who has seen them.) It is the same in our network, and at other thresholds:

# %%
for above in (0, 0.02, 0.05):
    for matrices in (theirs, ours):
        null = under_shuffling(matrices, partial(trend, above=above), 500)
        low, high = np.quantile(null, (0.01, 0.99))
        assert low < trend(matrices, above) < high
for which in ("the paper", "ours"):
    assert verdicts[which, "rank ~ tasks served"] == 0
    assert verdicts[which, "spread of the load"] == -1
assert verdicts["the paper", "rank ~ load"] == 1

# %% [markdown]
# Two things do stand out, and both have simple reasons. The load is spread more evenly than by chance, in the paper's network and in
# ours: that is what the balance loss asks for. With an even load experts that serve *all* tasks are rare
# ([chapter 7](../part2_mlore/07_routers.ipynb) switched the loss off, and they were back). And in the authors' network
# experts of high rank carry more of the load, which the paper does not mention. It would make sense, since they have more to
# offer. In ours, whose ranks are an eighth of the paper's, nothing of it is seen.
#
# ## What does a gate look at?
#
# The gates of TaskExpert {cite}`ye2023taskexpert` are not numbers but maps, one for each task, expert and module.
# ([Chapter 10](../part3_taskexpert/10_dynamic_assembly.ipynb) shows all modules of such a network at a glance.)

# %%
taskexpert = models["taskexpert"]
routes = [decoded(taskexpert, part).routing for part in parts]
gated = [torch.cat([r[name] for r in routes]) for name in routes[0]]
gated[0] = F.pad(gated[0], (0, 0, 0, 0, 0, 1))  # the first module has no memory
token_gates = torch.stack(gated, dim=1)  # (S, L, T, K + 1, 16, 16)
_, L, _, K1, H, W = token_gates.shape


# %%
def tokens(maps, side=16):
    """Means over the pixels of a token: (S, C, h, w) to (S, side², C)."""
    return F.adaptive_avg_pool2d(maps, side).flatten(2).mT


def one_hot(labels, count):
    return (
        F.one_hot(labels.clamp(max=count - 1).long(), count).movedim(-1, 1).float()
    )


classes = tokens(one_hot(scenes["semseg"], 15))  # (S, 256, 15)

# %% [markdown]
# Which of the many maps shall we show? The paper's Fig. 6 says that different experts attend to different things. So let us do
# what a figure invites to, and look for the gate that follows the *person* most closely: away from its mean over the scenes at
# each token, it should go up where more of a person is seen than usual at that place.

# %%
moving = (token_gates - token_gates.mean(dim=0)).flatten(4)  # (S, L, T, K + 1, 256)
person = classes[..., DOLLHOUSE_CLASSES.index("person")]  # (S, 256)
person = person - person.mean(dim=0)
products = torch.einsum("sltkp,sp->ltk", moving, person)
sizes = moving.square().sum(dim=(0, 4)).sqrt() * person.norm()  # (L, T, K + 1)
follows = (products / sizes.clamp(min=1e-6 * person.norm())).where(sizes > 1, 0)
highest = np.unravel_index(int(follows.argmax()), follows.shape)
module, task, expert = (int(i) for i in highest)
print(f"the highest of {follows.numel()} correlations: {follows.max():.1f}")


# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-18-gates", "caption": "Three scenes, and the gates of one task in one module (named above) for the six experts and the memory, chosen because one of them follows the person more than any other gate does. White 0, dark 1."}, "image": {"alt": "Three rows of eight pictures: a room with a person, and seven coarse maps in shades of blue. Some maps are white throughout; in others there is a dark or a white patch where the person stands, at another place in every row."}}
def bare(axis, picture, title="", **options):
    axis.imshow(picture, **options)
    axis.set(xticks=[], yticks=[])
    axis.set_title(title, fontsize=9)
    axis.spines[:].set(visible=True, color="0.8")


people = (scenes["human_parts"] > 0).double().mean(dim=(1, 2))  # (S,)
others = [i for i in people.argsort(descending=True).tolist() if i != chosen]
three = [chosen, *others[:2]]
figure, axes = plt.subplots(3, K1 + 1, figsize=(7.5, 3.2))
figure.suptitle(
    f"{tasks[tasks.names[task]].title}, module {module + 1}", fontsize=10
)
for row, s in zip(axes, three):
    bare(row[0], to_rgb("image", denormalise(scenes["image"][s])))
    for e, axis in enumerate(row[1:]):
        title = (
            ("memory" if e == K1 - 1 else f"expert {e + 1}")
            if s == three[0]
            else ""
        )
        bare(
            axis,
            token_gates[s, module, task, e],
            title,
            cmap="Blues",
            vmin=0,
            vmax=1,
        )

# %% [markdown]
# One sees the person in such maps. But a picture that was looked for among some five hundred shows what it was looked for. What do the
# gates do on the whole? We try to predict the gates, linearly, from
# three things that a token has: its **place** (256 of them), the **classes** of the pixels it covers, and its **depth** (in
# eight steps). The fit sees half of the scenes; what counts is the share of the gates' variance that it explains in the
# other half:
#
# ```{math}
# :label: eq-18-explained
# R^2 = 1 - \frac{\sum_s \lVert \mathbf{Y}_s - \mathbf{X}_s \mathbf{B} \rVert^2}{\sum_s \lVert \mathbf{Y}_s - \bar{\mathbf{Y}} \rVert^2},
# \qquad s \text{ not seen in the fit of } \mathbf{B} .
# ```


# %%
def unseen_share(X, Y, groups=1):
    """R² on the second half of the scenes, for each group of columns of Y."""
    X, Y = (a.double().flatten(2) for a in (X, Y))  # (S, P, F), (S, P, D)
    X = F.pad(X, (0, 1), value=1.0)  # a constant, too
    half = len(X) // 2
    x, y = X[:half].flatten(0, 1), Y[:half].flatten(0, 1)
    B = torch.linalg.solve(x.mT @ x + 1e-3 * torch.eye(x.shape[1]), x.mT @ y)
    left, all_of_it = Y[half:] - X[half:] @ B, Y[half:] - y.mean(dim=0)
    errors, total = (
        v.square().sum(dim=(0, 1)).view(groups, -1).sum(dim=1)
        for v in (left, all_of_it)
    )
    return (1 - errors / total).numpy()  # (groups,)


# %%
depth = tokens(scenes["depth"])  # (S, 256, 1)
steps = torch.quantile(depth.flatten(), torch.linspace(0, 1, 9)[1:-1])
far = F.one_hot(torch.bucketize(depth[..., 0], steps), 8).float()  # (S, 256, 8)
place = torch.eye(256).expand(S, -1, -1)  # (S, 256, 256)

# %%
Y = token_gates.permute(0, 4, 5, 2, 1, 3).flatten(1, 2)  # (S, 256, T, L, K + 1)
looks_at = {
    "place": [place],
    "class": [classes],
    "depth": [far],
    "all three": [place, classes, far],
    "place, and another scene's rest": [place, classes.roll(1, 0), far.roll(1, 0)],
}
shares = {
    name: unseen_share(torch.cat(known, dim=2), Y, groups=T)
    for name, known in looks_at.items()
}
print(f"{'explained, in %':32}", *(f"{name[:6]:>7}" for name in tasks.names))
for name, values in shares.items():
    print(f"{name:32}", *(f"{100 * value:7.0f}" for value in values))

# %%
one = Y[:, :, task, module, expert, None]  # the gate of the figure
shares_of_one = {
    name: unseen_share(torch.cat(looks_at[name], dim=2), one)[0]
    for name in ("place", "class", "all three")
}
told = (f"{name} {100 * v:.0f} %" for name, v in shares_of_one.items())
print("the gate in the figure:", *told)

# %% [markdown]
# Place alone explains more than half of every task's gates, and of the normals' and the depth's nearly all that is explained at all.
# Class alone explains a good deal, too, but mostly because classes have their places: walls are above and floors below. What
# does the scene at hand add, once the place is known? For body parts and saliency about a tenth of the variance, for normals and
# depth a hundredth or two, and class and depth of *another* scene add nothing. So the gates that look at the picture are those of the
# tasks that have to find the person, which is as it should be. What is left, up to two fifths, follows something that place,
# class and depth do not tell, at least not linearly.
#
# And the gate of {numref}`fig-18-gates`? It is what it looks like: class explains far more of it than place. For this
# task, this expert of this module has indeed become one for persons and things. To conclude from it that the experts
# specialise in objects would be to take the best of five hundred for the mean; and of the mean gate a fixed mask tells
# several times as much as the scene does. [Chapter 10](../part3_taskexpert/10_dynamic_assembly.ipynb) found the same
# division in another network by other means, and that the small part matters: without it body parts and saliency fall
# apart.

# %%
added = shares["all three"] - shares["place"]  # (T,)
assert (shares["place"] > 0.5).all()
assert added[[1, 2]].min() > 2 * added[[3, 4]].max()  # the person's tasks
assert (shares["place"] > 3 * added).all()
assert shares_of_one["class"] > shares_of_one["place"] + 0.1
null = shares["place, and another scene's rest"] - shares["place"]
assert abs(null).max() < 0.02

# %% [markdown]
# ## Whom does a token listen to?
#
# In TIF {cite}`tif2024` each task has attention of its own, on the two coarse scales. [Chapter
# 14](../part4_tif/14_low_to_high_diffusion.ipynb) drew it for one task at four scales; here it is for all tasks, on the
# image, for a token of the person and for one of the wall beside ({numref}`fig-18-listens`).

# %%
tif = models["tif"]


def attention(model, images):
    """Weights of the scales 2 and 3, (B, T, n, n): row for the token that asks."""
    with torch.inference_mode():
        affinities = model.decoder.anatomy(model.backbone(images)).affinities
        return {i: affinities[i].matrix().softmax(dim=-1) for i in (2, 3)}


seen_classes = {16: classes, 8: tokens(one_hot(scenes["semseg"], 15), 8)}
kinds = {side: c.argmax(dim=2) for side, c in seen_classes.items()}  # (S, side²)


# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-18-listens", "caption": "Attention at scale 2, for all tasks: whom the token with the cross listens to, on the image in grey. Blue is the largest weight of each map. Above a token of the person, below one of a wall."}, "image": {"alt": "Two rows of six grey pictures of a room with a cross and blue patches. For some tasks the blue lies on the cross's own object, for others elsewhere or nearly everywhere."}}
def token_of(scene, name, side=16):
    """The token that shows most of a class; where several do, the middle one."""
    shown = seen_classes[side][scene, :, DOLLHOUSE_CLASSES.index(name)]
    best = (shown == shown.max()).nonzero()[:, 0]
    return int(best[len(best) // 2])


def listen(axis, scene, weights, token, title=""):
    """The weights of one token, (n,), on the image."""
    side = int(len(weights) ** 0.5)
    picture = to_rgb("image", denormalise(scenes["image"][scene])).mean(axis=2)
    frame = {"extent": (0, side, side, 0)}
    bare(axis, picture, title, cmap="gray", vmin=-150, vmax=255, **frame)
    strength = (weights / weights.max()).view(side, side).numpy()
    blues = {"cmap": "Blues", "vmin": 0, "vmax": 1, "alpha": strength}
    axis.imshow(np.full((side, side), 0.8), **blues, **frame)
    axis.plot(
        token % side + 0.5, token // side + 0.5, "x", color="black", ms=7, mew=2
    )


headings = [task.title.replace(" ", "\n") for task in tasks]
weights = attention(tif, image)[2][0]  # (T, 256, 256)
figure, axes = plt.subplots(2, T, figsize=(7.5, 2.8))
for row, name in zip(axes, ("person", "wall")):
    token = token_of(chosen, name)
    for t, axis in enumerate(row):
        title = headings[t] if name == "person" else ""
        listen(axis, chosen, weights[t, token], token, title)

# %% [markdown]
# Does attention keep to its own kind? We take the tokens of *things*, whatever is not wall, floor, ceiling or window, and
# ask which share of their attention goes to tokens of the same class. By equal weights it would be the share of the class
# in the scene. And attention may prefer its class only because it prefers a place; so we also judge the weights by the
# classes of *another scene*.

# %%
room = [DOLLHOUSE_CLASSES.index(n) for n in ("wall", "floor", "ceiling", "window")]


def kept(weights, kind):
    """Share of attention on the own class, over tokens of things: to (T,)."""
    thing = ~torch.isin(kind, torch.tensor(room))  # (B, n)
    same = kind[:, :, None] == kind[:, None]  # (B, n, n)
    own = (weights * same[:, None]).sum(dim=-1)  # (B, T, n)
    return own.movedim(1, -1)[thing].mean(dim=0)  # (T,)


def apart(a, b):
    """How much of one attention must be moved to make the other: (…, n, n) → (…)."""
    return (a - b).abs().sum(dim=-1).mean(dim=-1) / 2


pairs = list(combinations(range(T), 2))


# %%
def look(model, parts):
    """By part of the scenes: attention on the own class, and distances."""
    found = {i: {"kept": [], "tasks": [], "scenes": []} for i in (2, 3)}
    for number, part in enumerate(parts):
        for i, w in attention(model, part).items():
            kind = kinds[int(w.shape[-1] ** 0.5)].split(20)[number]
            equal = torch.ones_like(w) / w.shape[-1]
            found[i]["kept"].append(
                torch.stack(
                    [kept(w, kind), kept(w, kind.roll(1, 0)), kept(equal, kind)]
                )
            )
            of_pairs = [apart(w[:, s], w[:, t]) for s, t in pairs]
            found[i]["tasks"].append(torch.stack(of_pairs, dim=1))  # (20, 15)
            found[i]["scenes"].append(apart(w, w.roll(1, 0)))  # (20, T)
    return found


torch.manual_seed(0)
untrained = me.build_model("tif_vit_nano", tasks, (128, 128)).eval()
inside = {
    "trained": look(tif, parts),
    "before training": look(untrained, parts[:1]),
}

# %%
for i in (2, 3):
    own = torch.stack(inside["trained"][i]["kept"]).mean(dim=0)  # (3, T)
    print(f"scale {i}, on the own class, in %:")
    for name, values in zip(
        ("its attention", "another scene", "equal weights"), own
    ):
        print(f"  {name:14}", *(f"{100 * v:5.0f}" for v in values.tolist()))

# %% [markdown]
# At scale 2 only the body parts do. Their attention stays on the own class several times as much as equal weights
# would, and about twice as much as it does for another scene's classes; so a good part of what looks like care for
# one's kind is, once more, a habit of place. Segmentation, of which one would expect it most, cares no more for the
# classes of its scene than for those of another. And saliency *avoids* its kind at scale 2: a thing listens to nearly
# everything but itself. A reason for it is quickly found, that what stands out is known by its surroundings. But it was
# found after looking; had it been the other way, we would have had a reason for that. And at scale 3 it *is* the other
# way: there saliency keeps to its kind, half as much again as another scene's classes would have it, and the body parts
# do not.

# %%
own, other, equal = torch.stack(inside["trained"][2]["kept"]).mean(dim=0)
semseg, body, saliency = range(3)
assert own[body] > 1.4 * other[body] > 1.4 * equal[body]
assert abs(own[semseg] - other[semseg]) < 0.03
assert own[saliency] < 0.5 * other[saliency]

# %% [markdown]
# ### How far apart are two tasks?
#
# The paper's Fig. 6 shows distances between tasks at scales 2 and 3, of a kind that it does not name. It finds them smaller
# at scale 3, and different for different images. [Chapter 13](../part4_tif/13_self_feature_distillation.ipynb) measured two
# kinds in a smaller network and found much the same. What it did not have is a network that cannot know anything: the
# same one before training. As a distance we take the share of attention that would have to be moved from place to place to
# turn one task's into the other's.

# %%
distance = {
    (state, i): torch.cat(found[i]["tasks"])  # (S, 15)
    for state, found in inside.items()
    for i in (2, 3)
}
for (state, i), d in distance.items():
    other = torch.cat(inside[state][i]["scenes"]).mean()
    print(f"{state:16} scale {i}: two tasks {d.mean():.2f}, two scenes {other:.2f}")

# %%
d = distance["trained", 2].double()
of_images = np.corrcoef(d.numpy())  # (S, S): do two images order the pairs alike?
alike = of_images[np.triu_indices(S, 1)].mean()
print(f"scale 2: two images order the 15 pairs alike, correlation {alike:.1f}")

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-18-distances", "caption": "How much attention would have to be moved to make one task's that of another, mean over the scenes."}, "image": {"alt": "Four tables of six by six cells in shades of orange with numbers: the trained network at scales 2 and 3, and the same before training. The cells of the trained one are darker and differ from each other, those before training are nearly all alike."}}
short = ["sem", "parts", "sal", "norm", "depth", "edge"]
figure, axes = plt.subplots(1, 4, figsize=(7.5, 2.5), sharey=True)
for axis, ((state, i), values) in zip(axes, distance.items()):
    square = np.zeros((T, T))
    for (s, t), value in zip(pairs, values.mean(dim=0).tolist()):
        square[s, t] = square[t, s] = value
        for x, y in ((s, t), (t, s)):
            look_of = {"color": "white" if value > 0.6 else "black", "fontsize": 8}
            number = f"{value:.1f}".lstrip("0")
            axis.text(x, y, number, ha="center", va="center", **look_of)
    axis.imshow(square, cmap="Oranges", vmin=0, vmax=1)
    axis.set_title(f"{state},\nscale {i}", fontsize=9)
    axis.set_xticks(range(T), short, rotation=90, fontsize=8)
_ = axes[0].set_yticks(range(T), short, fontsize=8)

# %% [markdown]
# Training has moved the tasks apart ({numref}`fig-18-distances`), more than three times as far as random weights put them: that is learned. That the tasks are
# nearer to each other at one scale than at the other is not so clear. By *this* distance they are further apart at scale 3,
# the other way round than in the paper and than by chapter 13's distance between features; and so they were before training, when nobody
# had learned anything. An order of two scales can come from the number of tokens, from the width or from how the
# weights are drawn, and says little as long as it is not shown beside the untrained one.
#
# And the images? Two scenes of one task are less far apart than two tasks on one scene, and nearly all images agree about which
# tasks are close. If the distances in Fig. 6 differ from image to image, they do so in a network that is not like this one.

# %%
d = {key: values.mean().item() for key, values in distance.items()}
for i in (2, 3):
    assert d["trained", i] > 2.5 * d["before training", i]
    scenes_apart = torch.cat(inside["trained"][i]["scenes"]).mean()
    assert scenes_apart < 0.8 * d["trained", i]
for state in inside:
    assert d[state, 3] > 1.1 * d[state, 2]
assert alike > 0.8

# %% [markdown]
# ## Colours of features
#
# What reaches a head is a map of 32 channels. The usual picture of it takes the three **principal components** (PCA), the
# directions in which the tokens vary most, and shows them as red, green and blue. Whose directions? Each task may have a
# basis of its own, or all tasks one in common.


# %%
def stacked(output):
    """Features of all tasks, (B, T, C, h, w)."""
    return torch.stack([output.features[name] for name in tasks.names], dim=1)


def pooled_to_tokens(output):
    maps = stacked(output)  # (B, T, C, 64, 64)
    small = F.adaptive_avg_pool2d(maps.flatten(0, 1), 16)  # (B·T, C, 16, 16)
    return (
        small.flatten(2).mT.unflatten(0, maps.shape[:2]).double()
    )  # (B, T, 256, C)


def principal(vectors, count=3):
    """Mean and first directions of (n, C), and the share of variance in these."""
    mean = vectors.mean(dim=0)
    spread = torch.cov(vectors.mT)  # (C, C)
    sizes, directions = torch.linalg.eigh(spread)  # the smallest first
    directions = directions[:, -count:].flip(1)  # (C, count)
    top = directions.abs().argmax(dim=0)
    signs = directions[top, torch.arange(count)].sign()  # an eigenvector has none
    return mean, directions * signs, (sizes[-count:].sum() / sizes.sum()).item()


# %%
def coloured(maps, basis, tint):
    """(C, h, w) as a picture; tint is (2, 3), what becomes black and white."""
    mean, directions, _ = basis
    shades = (maps.flatten(1).mT.double() - mean) @ directions  # (h·w, 3)
    shades = ((shades - tint[0]) / (tint[1] - tint[0])).clamp(0, 1)
    return shades.unflatten(0, maps.shape[1:]).numpy()  # (h, w, 3)


def range_of(vectors, basis):
    shades = (vectors - basis[0]) @ basis[1]
    return torch.quantile(shades, torch.tensor([0.02, 0.98]).double(), dim=0)


# %%
torch.manual_seed(0)
blank = me.build_model(
    "mlore_vit_nano", tasks, (128, 128), variant="released"
).eval()
pooled = {  # (S, T, 256, C)
    "trained": torch.cat([pooled_to_tokens(output) for output in outputs]),
    "before training": torch.cat(
        [pooled_to_tokens(decoded(blank, part)) for part in parts]
    ),
}

# %%
bases = {
    (name, t): principal(f[: S // 2, t].flatten(0, 1))
    for name, f in pooled.items()
    for t in range(T)
}
common = principal(pooled["trained"][: S // 2].flatten(0, 2))

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-18-pca", "caption": "One scene in the features of MLoRE, three principal components as colours. From above: what the labels say; a basis for each task; one basis for all tasks; and a basis for each task of the same network before training."}, "image": {"alt": "Four rows of six pictures under the names of the tasks. The first has the labels. In the second each task shows the room in strong colours, with things and person set off. In the third the colours are the same range for all tasks, and some of them are nearly plain. In the last, before training, all six show the same outlines of the room, in other colours."}}
figure, axes = plt.subplots(4, T, figsize=(7.5, 5.4))
rows = {
    "labels": None,
    "own basis": mlore,
    "one basis": mlore,
    "untrained": blank,
}
for row, (title, model) in zip(axes, rows.items()):
    row[0].set_ylabel(title, fontsize=9)
    for t, axis in enumerate(row):
        name = tasks.names[t]
        if model is None:
            bare(axis, to_rgb(name, scenes[name][chosen]), headings[t])
            continue
        state = "trained" if model is mlore else "before training"
        basis = common if title == "one basis" else bases[state, t]
        vectors = (
            pooled[state][:, :] if title == "one basis" else pooled[state][:, t]
        )
        tint = range_of(vectors[: S // 2 : 4].flatten(0, -2), basis)
        bare(axis, coloured(stacked(decoded(model, image))[0, t], basis, tint))

# %% [markdown]
# Three rows in {numref}`fig-18-pca`, three impressions, of which none is wrong and each could mislead. In a basis of its own every task fills the whole
# range of colours, whether its features vary much or little, and the same colour in two pictures means nothing at all. In
# the common basis colours can be compared, and the tasks with the largest numbers get the best of them. And *before training*
# the room is in the picture, too: random filters keep outlines. That an object can be recognised in a feature map is no
# evidence of anything.
#
# What is left out can be measured. How much of the variance do three directions hold? And how much of the *label* can be read
# off them, by a linear map, on scenes that it has not seen?

# %%
wanted = {
    "semseg": one_hot(scenes["semseg"], 15),
    "human_parts": one_hot(scenes["human_parts"], 7),
    "saliency": scenes["saliency"].view(S, 1, 128, 128).float(),
    "normals": scenes["normals"],
    "depth": scenes["depth"],
    "edge": scenes["edge"].view(S, 1, 128, 128).float(),
}
labels = {name: tokens(maps.clamp(-1e3, 1e3)) for name, maps in wanted.items()}


# %%
def readable(features, t):
    return unseen_share(features, labels[tasks.names[t]])[0]


told = {}
for t, name in enumerate(tasks.names):
    for state, f in pooled.items():
        mean, directions, held = bases[state, t]
        told[name, state] = (
            held,
            readable((f[:, t] - mean) @ directions, t),
            readable(f[:, t], t),
        )
    told[name, "common"] = readable(
        (pooled["trained"][:, t] - common[0]) @ common[1], t
    )
# %%
columns_of = ("variance", "label by 3", "by 3 common", "by all 32")
print(f"{'in %':13}" + "".join(f"{c:>13}" for c in columns_of))
for name in tasks.names:
    held, by3, by32 = told[name, "trained"]
    values = (held, by3, told[name, "common"], by32)
    print(f"{name:13}" + "".join(f"{100 * v:13.0f}" for v in values))
untrained_means = np.mean([told[n, "before training"] for n in tasks.names], axis=0)
held, by3, by32 = 100 * untrained_means
print(f"before training, mean: {held:.0f} % of the variance in 3,"
      f" {by3:.0f} % of the labels by 3, {by32:.0f} % by all 32")  # fmt: skip

# %% [markdown]
# Three directions hold most of the variance, and yet for some tasks they tell much less of the label than all 32 channels do. PCA
# keeps what varies most, which need not be what the head reads: boundaries and body parts are small things, and small things
# have little variance. In the common basis still more is lost. And the last line is the null model again: with
# *untrained* features, three directions hold as much of the variance as with trained ones, and a linear map of all 32
# reads more than half of what the labels vary, from colours and from the places that things have. A good probe, like
# a good picture, proves something only beside this line.

# %%
gap = {n: told[n, "trained"][2] - told[n, "trained"][1] for n in tasks.names}
assert max(gap.values()) > 0.1  # what three components leave out
assert untrained_means[0] > 0.75  # and how well they do on random filters
for n in tasks.names:
    assert told[n, "trained"][2] > told[n, "before training"][2]

# %% [markdown]
# ## One scene, three networks
#
# Choose a scene, a task and a place in the image, and see what the three decoders do for it: MLoRE's gates in its last
# module; the gates of TaskExpert in the module that follows the scenes most for this task; and TIF's attention at its two
# coarse scales. {numref}`fig-18-explorer` shows where you start.


# %%
def explore(scene, name, down, across):
    _, axes = plt.subplots(1, 5, figsize=(7.5, 1.9))
    t, picture = tasks.names.index(name), scenes["image"][scene : scene + 1]
    bare(axes[0], to_rgb(name, scenes[name][scene]), f"label of {name}")
    axes[1].bar(range(1, N + 1), gates[-1, scene, t], color=blue)
    axes[1].set(title="MLoRE, experts", yticks=[], box_aspect=1)
    layer = int(moving[:, :, t].square().sum(dim=(0, 2, 3)).argmax())
    strongest = token_gates[scene, layer, t].argmax(dim=0)  # (16, 16)
    colours = np.array([plt.matplotlib.colors.to_rgb(c) for c in plots.OKABE_ITO])
    bare(axes[2], colours[[0, 1, 2, 3, 4, 5, 7]][strongest], "TaskExpert")
    for axis, (i, w) in zip(axes[3:], attention(tif, picture).items()):
        side = int(w.shape[-1] ** 0.5)
        token = int(down * side) * side + int(across * side)
        listen(axis, scene, w[0, t, token], token, f"TIF, scale {i}")
    for axis in (axes[1], *axes[:1]):
        axis.title.set_fontsize(9)


# %% tags=["nbval-ignore-output"]
import ipywidgets

_ = ipywidgets.interact(
    lambda **choice: (explore(**choice), plt.show())[1],
    scene=ipywidgets.IntSlider(chosen, 0, S - 1),
    name=ipywidgets.Dropdown(options=tasks.names, description="task"),
    down=ipywidgets.FloatSlider(0.5, min=0, max=0.99, step=0.03),
    across=ipywidgets.FloatSlider(0.5, min=0, max=0.99, step=0.03),
)

# %% mystnb={"figure": {"name": "fig-18-explorer", "caption": "The explorer's view of the scene of this chapter, for human parts and a token of the person. TaskExpert: which gate is largest at each token, a colour for each expert, black the memory."}, "image": {"alt": "Five panels: the body parts of a person in colours; fifteen bars, six of which are missing; a coarse map of a few colours; and two grey pictures of the room with a cross and blue patches, in the first around the cross, in the second mostly along the floor."}}
token = token_of(chosen, "person")
explore(chosen, "human_parts", (token // 16 + 0.5) / 16, (token % 16 + 0.5) / 16)

# %% [markdown]
# ## What tiny networks can tell
#
# What was found here was found in networks of one or two million weights, each trained once, for a few hundred steps from random
# weights, on easy rendered rooms. Three kinds of sentences have to be told apart.
#
# *About the method of looking.* That a share of activations cannot exceed $1/k$; that shuffling a matrix leaves much of its look;
# that random filters keep outlines; that a basis chosen for each task hides how much the tasks differ. These are facts about
# the pictures, and hold for any network.
#
# *About numbers that the paper prints.* The tests on the eight matrices use the authors' network and our arithmetic.
# They hold for that network, as far as two digits and one seed go; and who tests four numbers must expect to see one of
# them outside its 95 % now and then.
#
# *About our networks.* That gates are mostly habits of place, or whom attention keeps to, depends on rooms that are much alike and seen
# from much the same point, on the budget and on the seed. Large encoders trained on photographs know more about objects before the decoder
# begins, and photographs vary more in what is where. With them every share of this chapter may come out differently. The programs
# to ask them are all here: the cells take any model of the library, and any batch of images with labels.
#
# ## Exercises
#
# ```{exercise} Two relations
# :label: ex-18-relations
# Write `relations(gates)`, which turns the gates `(S, T, N)` of $S$ scenes into the two tables of {eq}`eq-18-relation`, mean gates and shares of
# activations, `(T, N)` each. The number $k$ of active experts is not given, but is the same for all.
# ```

# %%
from mlore_edu.exercises import ch18


def relations(gates): ...


_ = ch18.check_relations(relations)

# %% [markdown]
# ```{solution-start} ex-18-relations
# :class: dropdown
# ```


# %% jupyter={"source_hidden": true}
def relations(gates):
    active = (gates > 0).double().mean(dim=0)  # (T, N): rates, whose rows sum to k
    return gates.mean(dim=0), active / active.sum(dim=1, keepdim=True)


_ = ch18.check_relations(relations)

# %% [markdown]
# ```{solution-end}
# ```
#
# ```{exercise} By chance
# :label: ex-18-chance
# Write `p_value(observed, null)`: the probability that shuffling gives a value at least as large as the observed one,
# estimated from an array of shuffled values. It must never be zero: had the observed dealing been made by
# shuffling, too, it would be one among `len(null) + 1`.
# ```


# %%
def p_value(observed, null): ...


_ = ch18.check_p_value(p_value)

# %% [markdown]
# ```{solution-start} ex-18-chance
# :class: dropdown
# ```


# %% jupyter={"source_hidden": true}
def p_value(observed, null):
    return (1 + (null >= observed).sum()) / (1 + len(null))


loads = nulls["the paper", "rank ~ load"]
p = p_value(statistics["rank ~ load"](theirs), loads)
print(f"rank ~ load, the paper: p = {p:.3f}")
_ = ch18.check_p_value(p_value)

# %% [markdown]
# ```{solution-end}
# ```
#
# ```{exercise} What must be moved
# :label: ex-18-moved
# Two tasks attend with weights `a` and `b`, `(n, n)` each, whose rows sum to 1. Write `moved(a, b)`: which share of
# the weight must be moved to other tokens to turn a row of the one into the same row of the other, in the mean over the rows?
# ```


# %%
def moved(a, b): ...


_ = ch18.check_moved(moved)

# %% [markdown]
# ```{solution-start} ex-18-moved
# :class: dropdown
# ```
# What is too much at some tokens is missing at others. The sum of all differences counts it twice.


# %% jupyter={"source_hidden": true}
def moved(a, b):
    return (a - b).abs().sum(dim=-1).mean() / 2


_ = ch18.check_moved(moved)

# %% [markdown]
# ```{solution-end}
# ```
#
# ```{exercise} Explained by classes
# :label: ex-18-explained
# For tokens of given `classes` `(P,)` and a `gate` `(P,)` at each, write `explained(classes, gate)`: the share of the gate's variance
# that is explained if every token gets the mean gate of its class. (On the tokens themselves, without a second half.)
# ```


# %%
def explained(classes, gate): ...


_ = ch18.check_explained(explained)

# %% [markdown]
# ```{solution-start} ex-18-explained
# :class: dropdown
# ```


# %% jupyter={"source_hidden": true}
def explained(classes, gate):
    means = torch.zeros_like(gate)
    for c in classes.unique():
        means[classes == c] = gate[classes == c].mean()
    return means.var() / gate.var()


_ = ch18.check_explained(explained)

# %% [markdown]
# ```{solution-end}
# ```
#
# ## Takeaways
#
# - A picture of a network's inside says something only beside a picture of what cannot know it: a shuffled matrix, another scene, a
#   network before training. It costs a few lines.
# - MLoRE's figures of tasks and experts show mean gates, not how often an expert is active; the two need not look alike.
# - In the eight printed matrices the rank of an expert has nothing to do with how many tasks it serves. What stands out is an even
#   load and few experts of all tasks, which is the balance loss at work, and that high ranks carry more, which nobody claimed.
# - TaskExpert's gates are mostly masks of place. What the scene adds is small, is more for the tasks that must find the
#   person, and matters.
# - TIF's attention keeps to its own kind for body parts at one scale and for saliency at the other, and a good part of
#   that is place. At which scale two tasks are closer depends on the distance that one takes, and part of the answer is
#   there before training.
# - Principal components show what varies most in a basis that somebody chose. Random filters give pretty ones, too, and a
#   linear probe of untrained features reads more than one would think.
# - Facts about a way of looking hold for every network; facts about a network hold for that network.
#
# You can now open any model of this library, draw what it does inside, and say for each drawing what it would have looked like by
# chance. [The next chapter](19_your_own_images.ipynb) leaves the rooms of Dollhouse, and takes the networks to pictures of your own.
