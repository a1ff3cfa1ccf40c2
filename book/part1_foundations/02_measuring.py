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
# # Measuring
#
# Model A is better at depth, model B at boundaries. **Which of the two is better?** And a question that ought to come first: **is "better"
# even measured the same way in two papers?**
#
# Let us begin with one task. Two models segment the room of {numref}`fig-02-question`, and neither is quite right: A adds a little noise to its class scores, B is two pixels off.

# %%
import matplotlib.pyplot as plt
import numpy as np
import torch

import mlore_edu as me
from mlore_edu import plots
from mlore_edu.pictures import to_rgb

plots.use_style()
scenes = [me.scene(seed, size=(96, 128)) for seed in range(12)]

# %%
room = max(
    scenes, key=lambda scene: (scene.human_parts > 0).sum()
)  # much of it people

scores = np.eye(15)[room.semseg]  # (H, W, 15): 1 for the true class
scores += 0.34 * np.random.default_rng(0).standard_normal(scores.shape)
by_a = scores.argmax(-1)  # (H, W)
by_b = np.pad(room.semseg, ((2, 0), (2, 0)), "edge")[:-2, :-2]  # (H, W)

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-02-question", "caption": "A room, its semantic label, and two answers. Which one is better?"}, "image": {"alt": "Four pictures: a rendered room with people, its label in flat colours, the label strewn with coloured specks, and what looks like the label unchanged."}}
figure, axes = plt.subplots(1, 4, figsize=(7.5, 1.8))
shown = {
    "image": room.image,
    "label": room.semseg,
    "model A": by_a,
    "model B": by_b,
}
for axis, (title, picture) in zip(axes, shown.items()):
    axis.imshow(to_rgb("image" if picture is room.image else "semseg", picture))
    axis.set_title(title)
    axis.set_axis_off()

# %%
label = torch.from_numpy(room.semseg)[None].long()  # (1, H, W)
for name, picture in (("A", by_a), ("B", by_b)):
    answer = torch.from_numpy(picture)[None].long()
    right = 100 * (answer == label).double().mean()
    meter = me.MeanIoU(15)
    meter.update(answer, label)
    print(
        f"{name}: {right:.0f} % of the pixels right, mean IoU {meter.compute():.0f} %"
    )

# %% [markdown]
# A has more pixels right, B the higher mean IoU: two metrics, two winners. One number stands for each task in every results table of this field. This chapter opens those numbers, one after another. Each is a few
# lines of code, and nearly each has a choice inside it that moves the result by more than the gap between two published methods.

# %% [markdown]
# ## What you will be able to do
#
# - compute mIoU, maxF, the angular error of normals, the RMSE of depth, odsF and $\Delta_m$ by hand, and know that the library does the same;
# - say which mistakes each metric sees and which it forgives;
# - recognise ten choices of protocol that change published numbers, and say by how much most of them do;
# - read a $\Delta_m$ without being misled, and work out the baselines behind it when a paper does not print them.
#
# *Before you start:* chapter 1 (the tasks and their labels) and a little probability. *Time:* 45 minutes of reading, ten seconds of
# running. *Hardware:* two CPU cores, 4 GB of memory; no GPU, no download.

# %% [markdown]
# ## Predictions before there is a model
#
# Nothing has been trained yet, so we make predictions by spoiling labels. That has an advantage over a trained model: we know what is wrong
# with each answer, so a metric's response can be traced to its cause. The twelve scenes above serve as the validation set.
#
# Every label is first written as a stack of maps, as a network would predict it: one map per class that is 1 on the class and 0 elsewhere, one
# probability for saliency and for boundaries, three components of a normal, one depth. On such maps one and the same operation spoils all six
# tasks. Afterwards `decode` turns them into answers: the class with the largest value, a probability inside $(0, 1)$, a vector of length one.


# %%
def as_maps(task):
    """A label of all scenes as float maps (N, C, H, W)."""
    label = np.stack([getattr(scene, task.name) for scene in scenes])
    if task.metric == "mIoU":
        label = np.eye(task.channels)[label]  # (N, H, W, C)
    if label.ndim == 3:
        label = label[..., None]  # (N, H, W, 1)
    return np.moveaxis(label, -1, 1).astype(float)  # (N, C, H, W)


# %%
def decode(task, maps):
    """Maps (N, C, H, W) as answers: classes and probabilities lose the C."""
    maps = torch.from_numpy(np.ascontiguousarray(maps, dtype=np.float64))
    if task.metric == "mIoU":
        return maps.argmax(1)  # (N, H, W)
    if task.name in ("saliency", "edge"):
        return maps[:, 0].clamp(0.01, 0.99)  # (N, H, W)
    if task.name == "normals":
        return torch.nn.functional.normalize(maps, dim=1)
    return maps


# %%
labels = {task.name: as_maps(task) for task in me.DOLLHOUSE}
targets = {task.name: decode(task, labels[task.name]) for task in me.DOLLHOUSE}
for name in ("saliency", "edge"):
    targets[name] = torch.from_numpy(labels[name][:, 0]).long()  # (N, H, W)

# %% [markdown]
# Five ways to go wrong. `shift` moves everything two pixels down and right. `blur` smears each map, as a network does that predicts at a
# quarter of the resolution. `noise` adds a random number to each pixel. `drop` misses the largest piece of furniture, plant or person of
# each scene: the hole is filled with the nearest free piece of the room. `constant` does not look at the image and always says the same.

# %%
from scipy.ndimage import binary_dilation, distance_transform_edt, gaussian_filter
from scipy.ndimage import shift as translate


def shift(maps, pixels=2):
    return translate(maps, (0, 0, pixels, pixels), order=0, mode="nearest")


def blur(maps, sigma=2.0):
    return gaussian_filter(maps, (0, 0, sigma, sigma))


def noise(maps, level=0.3):
    return maps + level * np.random.default_rng(0).standard_normal(maps.shape)


def drop(maps):
    filled = maps.copy()
    for image, scene in zip(filled, scenes):
        y, x = room_behind(scene)
        image[:] = image[:, y, x]
    return filled


def constant(maps):
    return np.broadcast_to(maps.mean((0, 2, 3), keepdims=True), maps.shape)


# %%
TABLE = me.DOLLHOUSE["semseg"].class_names.index("table")  # the room comes first


def room_behind(scene):
    """Row and column that each pixel is filled from, (2, H, W): its own,
    or on the largest object those of the nearest free piece of room."""
    stands = scene.semseg >= TABLE
    ids, sizes = np.unique(scene.instances[stands], return_counts=True)
    gone = binary_dilation(scene.instances == ids[sizes.argmax()], iterations=2)
    occupied = binary_dilation(stands, iterations=2)
    _, nearest = distance_transform_edt(occupied, return_indices=True)
    return np.where(gone, nearest, np.indices(gone.shape))


# %%
MISTAKES = (shift, blur, noise, drop, constant)
answers = {}
for mistake in MISTAKES:
    answers[mistake.__name__] = {
        task.name: decode(task, mistake(maps))
        for task, maps in zip(me.DOLLHOUSE, labels.values())
    }
A, B = answers["noise"], answers["shift"]

# %% [markdown]
# {numref}`fig-02-models` has our two models with all their answers: A is the noisy one (a little less so than above), B the shifted one.


# %% tags=["hide-input"]
def show_answers(
    rows,
    number,
    columns=("semseg", "human_parts", "saliency", "normals", "depth", "edge"),
):
    """Draw the answers of several models on one scene, a row each."""
    figure = plots.show_grid(
        [{c: r[c][number] for c in columns} for r in rows.values()], list(rows)
    )
    for axis in figure.axes[: len(columns)]:
        axis.set_title(
            axis.get_title()
            .replace("Semantic segmentation", "Semantics")
            .replace("Surface n", "N")
        )


number = next(i for i, scene in enumerate(scenes) if scene is room)

# %% mystnb={"figure": {"name": "fig-02-models", "caption": "One scene, its labels, and the answers of two models. Model A wins four of the six tasks."}, "image": {"alt": "A grid of pictures with rows labels, model A and model B and a column per task. Model A's row is covered in speckle; model B's row looks exactly like the labels."}}
show_answers({"labels": targets, "model A": A, "model B": B}, number)

# %% [markdown]
# B looks flawless and A like a photograph taken in sleet. The library's meters, all six at once, see it otherwise.

# %%
from mlore_edu.metrics import make_meters


def measure(answer):
    """The six metrics of an answer."""
    meters = make_meters(me.DOLLHOUSE)
    for name, meter in meters.items():
        meter.update(answer[name], targets[name])
    return {name: meter.compute() for name, meter in meters.items()}


# %%
results = {name: measure(answer) for name, answer in answers.items()}
a, b = results["noise"], results["shift"]
for task in me.DOLLHOUSE:
    of_a, of_b = a[task.name], b[task.name]
    winner = "A" if (of_a > of_b) != task.lower_is_better else "B"
    digits = 1 if task.unit == "m" else 0
    numbers = f"A {of_a:3.{digits}f}   B {of_b:3.{digits}f} {task.unit:2}"
    print(f"{task.title:22} {task.metric:5} {numbers} {winner} wins")

# %% [markdown]
# Neither picture nor table is wrong. To understand the table we take the metrics one at a time.

# %% [markdown]
# ## Overlap: mean intersection over union
#
# The share of pixels that got the right class would be the obvious measure. It is a poor one, because walls and floors fill most of a room:
# whoever says "wall" everywhere is right quite often.

# %%
semseg = targets["semseg"]
right = (answers["constant"]["semseg"] == semseg).double().mean()
print(f"one class everywhere: {100 * right:.0f} % of the pixels are right")

# %% [markdown]
# So each class is judged by itself. The pixels where class $c$ was predicted and those where it is true overlap in the *true positives*
# $\mathrm{TP}_c$. What was predicted but is not true are *false positives* $\mathrm{FP}_c$, what is true but was not predicted *false negatives*
# $\mathrm{FN}_c$. The *intersection over union* compares the overlap with everything that either side claims
# {cite}`everingham2010pascal`:
#
# ```{math}
# :label: eq-02-iou
# \mathrm{IoU}_c = \frac{\mathrm{TP}_c}{\mathrm{TP}_c + \mathrm{FP}_c + \mathrm{FN}_c},
# \qquad \mathrm{mIoU} = \frac1{|\mathcal C|}\sum_{c\in\mathcal C}\mathrm{IoU}_c .
# ```
#
# $\mathcal C$ are the classes that occur, be it in the labels or in the answers. Each counts the same, however few pixels it has: a class of a hundred pixels weighs as much as the
# walls.


# %%
def class_iou(prediction, target, c):
    """IoU of class c in percent; pixels labelled 255 do not count."""
    counted = target != 255
    predicted, true = (prediction == c) & counted, (target == c) & counted
    # 0/0, that is nan, for a class that never occurs
    return 100 * (predicted & true).sum() / (predicted | true).sum()


# %%
meter = me.MeanIoU(15)
meter.update(B["semseg"], semseg)
ious = torch.stack([class_iou(B["semseg"], semseg, c) for c in range(15)])
by_hand = ious.nanmean()
torch.testing.assert_close(float(by_hand), meter.compute())

# %% [markdown]
# ### Pooled over the data set, or averaged over images?
#
# The code above counts over all twelve scenes first and divides once. One could also compute an IoU per scene and average those. It is a
# different number, as {numref}`fig-02-pooling` shows for people: a shift of two pixels costs a thin or distant figure more than a
# large one, and in the mean of images a figure of two hundred pixels counts as much as one of a thousand.

# %%
PERSON = me.DOLLHOUSE["semseg"].class_names.index("person")
size_of_person = (semseg == PERSON).sum((1, 2))  # (N,)
with_person = torch.nonzero(size_of_person)[:, 0]
of_b = B["semseg"]
per_image = torch.stack(
    [class_iou(of_b[i], semseg[i], PERSON) for i in with_person]
)
pooled = class_iou(of_b, semseg, PERSON)


# %% tags=["hide-input"]
HIT, MISSED, FALSE = plots.OKABE_ITO[0], plots.OKABE_ITO[1], plots.OKABE_ITO[5]


def overlay(axis, hit, missed, false, title=""):
    """Colour right, missed and falsely claimed pixels on white."""
    picture = np.full((*hit.shape, 3), 255, np.uint8)
    for mask, colour in ((hit, HIT), (missed, MISSED), (false, FALSE)):
        picture[np.asarray(mask)] = tuple(bytes.fromhex(colour[1:]))
    axis.imshow(picture)
    axis.set(xticks=[], yticks=[], title=title)
    axis.spines[:].set_visible(True)


def name_colours(figure, hit="right", missed="missed", false="false alarm"):
    """Write what the colours of an overlay mean below the figure."""
    patches = [
        plt.Rectangle((0, 0), 1, 1, color=colour) for colour in (HIT, MISSED, FALSE)
    ]
    figure.legend(
        patches, (hit, missed, false), loc="outside lower center", ncols=3
    )


def show_pooling():
    figure, axes = plt.subplots(1, 3, figsize=(7.5, 2.8), width_ratios=[1, 1, 1.25])
    order = size_of_person[with_person].argsort()
    for axis, i in zip(axes, with_person[order[[0, -1]]], strict=False):
        predicted, true = B["semseg"][i] == PERSON, semseg[i] == PERSON
        iou = class_iou(B["semseg"][i], semseg[i], PERSON)
        overlay(
            axis,
            predicted & true,
            true & ~predicted,
            predicted & ~true,
            f"IoU {iou:.0f} %",
        )
    axes[2].plot(size_of_person[with_person], per_image, "o", color="0.35")
    axes[2].axhline(pooled, color=HIT, label=f"pooled: {pooled:.0f} %")
    axes[2].axhline(
        per_image.mean(),
        color=plots.OKABE_ITO[3],
        ls="--",
        label=f"mean of images: {per_image.mean():.0f} %",
    )
    axes[2].set(
        xlabel="person pixels in the scene",
        ylabel="IoU of person [%]",
        ylim=(0, 100),
    )
    axes[2].legend(loc="upper left")
    name_colours(figure)


# %% mystnb={"figure": {"name": "fig-02-pooling", "caption": "Model B's people. Left: the scene with the fewest person pixels; middle: with the most. Right: each scene's IoU against the size of its people, with the two ways to make one number of them."}, "image": {"alt": "Two overlays of predicted and true people in blue, orange and pink, one small figure with thin overlap and a large one with large overlap, and a scatter plot in which the IoU tends to be higher where there are more person pixels; the line of the pooled IoU lies above the line of the mean of images."}}
show_pooling()

# %% [markdown]
# The papers pool. If a tool reports something else, look for this first: `torchmetrics`, for example, has a `segmentation.MeanIoU`
# that averages over images.
#
# The same holds for whole tables of classes. Below, the mean over scenes of each scene's own mIoU; nothing but the order of summing and
# dividing has changed.


# %%
def miou(prediction, target, classes=15):
    """Mean IoU over classes that occur, in percent."""
    ious = [class_iou(prediction, target, c) for c in range(classes)]
    return torch.stack(ious).nanmean()


semseg_pooled = miou(of_b, semseg)
semseg_per_image = torch.stack([miou(p, t) for p, t in zip(of_b, semseg)]).mean()
difference = semseg_per_image - semseg_pooled
print(f"pooled {semseg_pooled:.0f} %, mean of images {difference:+.0f} points")

# %% [markdown]
# ### What is left out
#
# A pixel labelled 255 does not count, whatever was predicted there. Annotators use it where they cannot tell; in PASCAL VOC, a band around every
# object is marked so. Since mistakes crowd around outlines, such a band is generous. We put one around ours, two pixels to either side, and measure
# the same answer again ({numref}`fig-02-void`).

# %%
outline = [binary_dilation(scene.edge > 0, iterations=2) for scene in scenes]
with_band = torch.where(
    torch.from_numpy(np.stack(outline)), 255, semseg
)  # (N, H, W)
wrong = of_b != semseg
semseg_band = miou(of_b, with_band)
print(
    f"B on all pixels: {semseg_pooled:.0f} %, without the band: {semseg_band:.0f} %"
)

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-02-void", "caption": "Left: a label with the band of 255 drawn in white. Middle: model B's mistakes. Right: the mistakes that count once the band is left out."}, "image": {"alt": "A label map in colours with white bands around every object, and two black and white maps of wrong pixels: outlines of everything on the left one, few pixels on the right one."}}
figure, axes = plt.subplots(1, 3, figsize=(7.5, 2.3))
counted = wrong & (with_band != 255)
shown = {
    "label with band": with_band,
    "wrong": wrong.long(),
    "wrong and counted": counted.long(),
}
for axis, (title, picture) in zip(axes, shown.items()):
    axis.imshow(
        to_rgb("semseg" if picture is with_band else "edge", picture[number])
    )
    axis.set(xticks=[], yticks=[], title=title)
    axis.spines[:].set_visible(True)

# %% [markdown]
# ## Saliency: the best F-measure
#
# A saliency map is a probability, and before anything can be counted somebody has to say where "salient" begins. Let a pixel be
# salient where its probability exceeds a threshold $\tau$. The share of these pixels that really are is the *precision* $P$; the share of all
# truly salient pixels that were found is the *recall* $R$. A low threshold finds everything and much besides, a high one the reverse. The
# F-measure makes one number of the two, and the field takes the best threshold for the whole data set:
#
# ```{math}
# :label: eq-02-f
# F_\beta(\tau) = \frac{(1+\beta^2)\,P R}{\beta^2 P + R}, \qquad \mathrm{maxF} = \max_{\tau} F_\beta(\tau),
# \qquad \tau \in \{0.05, 0.10, \dots, 0.95\} .
# ```
#
# $\beta^2 = 0.3$ gives precision the greater weight; the value goes back to {cite:t}`achanta2009frequency`. Written in counts, with
# $\mathrm{TP} + \mathrm{FP}$ predicted and $\mathrm{TP} + \mathrm{FN}$ true pixels, it is
# $(1+\beta^2)\,\mathrm{TP} \,/\, \bigl(\beta^2(\mathrm{TP}+\mathrm{FN}) + \mathrm{TP} + \mathrm{FP}\bigr)$, which also holds where nothing is predicted. Three of the thresholds are drawn in {numref}`fig-02-saliency`.


# %%
salient = targets["saliency"] == 1
thresholds = torch.arange(1, 20) / 20


def f_measure(probability, threshold, beta_squared=0.3):
    """F at one threshold, in percent, counts pooled over the data set."""
    predicted = probability > threshold
    hits = (predicted & salient).sum()
    claims = beta_squared * salient.sum() + predicted.sum()
    return 100 * (1 + beta_squared) * hits / claims


# %%
soft = answers["blur"]["saliency"]
curve = torch.stack([f_measure(soft, threshold) for threshold in thresholds])
meter = me.MaxF()
meter.update(soft, targets["saliency"])
torch.testing.assert_close(float(curve.max()), meter.compute(), rtol=1e-5, atol=0)

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-02-saliency", "caption": "A blurred saliency map of one scene cut at three of the nineteen thresholds. F in the titles is that of the whole data set."}, "image": {"alt": "Four pictures: a soft grey saliency map, and three overlays with a low, a middle and a high threshold: many false alarms first, then nearly all right, then much missed."}}
figure, axes = plt.subplots(1, 4, figsize=(7.5, 2.2))
axes[0].imshow(to_rgb("saliency", soft[number]))
axes[0].set(xticks=[], yticks=[], title="probability")
for axis, threshold in zip(axes[1:], (0.1, 0.45, 0.8)):
    predicted, true = soft[number] > threshold, salient[number]
    overlay(
        axis,
        predicted & true,
        true & ~predicted,
        predicted & ~true,
        f"τ = {threshold}: F = {f_measure(soft, threshold):.0f} %",
    )
name_colours(figure)

# %% [markdown]
# ### The saliency trap
#
# The evaluation code that InvPT {cite}`ye2022invpt`, TaskPrompter {cite}`ye2023taskprompter` and MLoRE {cite}`yang2024mlore` released applies a sigmoid
# to what it is given before it compares with the thresholds, as one must with raw network outputs. But it is given a probability. Let us follow what happens. A
# probability $p$ between 0 and 1 becomes $\sigma(p) = 1/(1+e^{-p})$, which lies between $\sigma(0) = 0.5$ and $\sigma(1) \approx 0.73$. Nineteen thresholds are
# compared with it, and
#
# ```{math}
# :label: eq-02-acting
# \sigma(p) > \tau \iff p > \ln\frac{\tau}{1-\tau} .
# ```
#
# A threshold separates pixels only if the right-hand side is inside $(0, 1)$.

# %%
on_probability = torch.log(thresholds / (1 - thresholds))
acting = on_probability[(on_probability > 1e-6) & (on_probability < 1)]
print("thresholds that act on p:", [round(float(p), 2) for p in acting])

meter = me.MaxF("released")
meter.update(soft, targets["saliency"])
np.testing.assert_allclose(acting, meter.acting_thresholds, rtol=1e-5)
released = max(f_measure(soft, p) for p in acting)
torch.testing.assert_close(float(released), meter.compute(), rtol=1e-5, atol=0)
print(f"lost on the blurred maps: {curve.max() - released:.0f} points")

# %% [markdown]
# Four thresholds are left of nineteen; at the lower ones every pixel is salient, at the higher ones none. Whether this costs anything depends on
# where the best threshold happens to lie, and that can be moved at will: replace every probability $p$ by $p^\gamma$. The order of the pixels stays,
# so do all the maps that thresholding can produce, and a good metric should hardly notice. {numref}`fig-02-trap` tells who does.


# %% tags=["hide-input"]
def show_trap():
    _, (left, right) = plt.subplots(1, 2, figsize=(7.5, 3.1))
    fine = np.linspace(0.01, 0.98, 98)
    left.plot(fine, [f_measure(soft, t) for t in fine], color="0.75", zorder=0)
    left.plot(thresholds, curve, "o", ms=4, label="standard: 19 thresholds")
    left.plot(
        acting,
        [f_measure(soft, p) for p in acting],
        "s",
        ms=8,
        color=plots.OKABE_ITO[3],
        label="released: 4 thresholds",
    )
    left.set(
        xlabel="threshold on the probability p", ylabel="F [%]", ylim=(40, 100)
    )
    left.legend(loc="lower left")
    right.plot(gammas, standard_f, label="standard")
    right.plot(
        gammas, released_f, color=plots.OKABE_ITO[3], ls="--", label="released"
    )
    right.set(
        xlabel="γ, with p replaced by $p^γ$",
        ylabel="maxF [%]",
        xscale="log",
        xticks=[0.25, 0.5, 1, 2, 4],
        ylim=(80, 100),
    )
    right.set_xticklabels(["¼", "½", "1", "2", "4"])
    right.minorticks_off()
    right.legend(loc="lower left")


# %% mystnb={"figure": {"name": "fig-02-trap", "caption": "The saliency trap. Left: F against the threshold for the blurred maps, and the points at which each variant looks. Right: both variants of maxF after the probabilities have been bent by a power, which leaves the order of the pixels as it is."}, "image": {"alt": "Left, a smooth hump of F over the threshold with nineteen small dots and four large squares that miss its top. Right, two curves over gamma: the standard one nearly flat, the released one waving between it and several points below."}}
gammas = 2 ** np.linspace(-2, 2, 41)
standard_f = [float(max(f_measure(soft**g, t) for t in thresholds)) for g in gammas]
released_f = [float(max(f_measure(soft**g, p) for p in acting)) for g in gammas]
show_trap()

# %%
trap = max(s - r for s, r in zip(standard_f, released_f))
moved = np.ptp(standard_f), np.ptp(released_f)
print(f"largest loss: {trap:.0f} points")
print(
    f"over γ, standard moves by {moved[0]:.0f} and released by {moved[1]:.0f} points"
)

# %% [markdown]
# Published saliency numbers of this family carry the trap, so a number from a correct evaluation must not be put beside them. The library has both,
# by name: `MaxF("standard")` and `MaxF("released")`. A third, `MaxF("astmt")`, is the older protocol of {cite:t}`maninis2019attentive` with
# $\beta^2 = 1$ and means over images.

# %% [markdown]
# ## Normals: the mean angle
#
# A predicted normal $\mathbf p$ and a true one $\mathbf g$, both of length one, enclose an angle. The cosine of it is their inner product, so
# $\arccos(\mathbf p^{\!\top}\mathbf g)$ is the first formula that comes to mind. The second is
#
# ```{math}
# :label: eq-02-angle
# \theta(\mathbf p, \mathbf g) = 2\,\operatorname{atan2}\bigl(\lVert\mathbf p - \mathbf g\rVert,\ \lVert\mathbf p + \mathbf g\rVert\bigr),
# ```
#
# because the two arrows span a rhombus whose diagonals $\mathbf p - \mathbf g$ and $\mathbf p + \mathbf g$ stand at right angles, and half of
# one over half of the other is the tangent of $\theta/2$ {cite}`kahan2006futile`. On paper the formulas are equal. On a computer they are not: near 0 the cosine is
# flat, $1 - \theta^2/2$, so with 32-bit numbers, which near 1 lie about $6\cdot10^{-8}$ apart, angles below a fiftieth of a degree cannot be told from zero.
# Rounding may also carry the inner product past 1, where the arccosine does not exist. {numref}`fig-02-arccos` draws both.


# %%
def angle_arccos(p, g):
    return torch.rad2deg(torch.arccos((p * g).sum(-1)))  # (...)


def angle_atan2(p, g):
    half = torch.atan2((p - g).norm(dim=-1), (p + g).norm(dim=-1))  # (...)
    return torch.rad2deg(2 * half)


degrees = torch.logspace(-4, 1, 400, dtype=torch.float64)[:, None]  # (400, 1)
turn = torch.deg2rad(degrees)
g = torch.tensor([[1.0, 2.0, 2.0]], dtype=torch.float64) / 3  # (1, 3), length 1
across = (
    torch.tensor([[0.0, 1.0, -1.0]], dtype=torch.float64) / 2**0.5
)  # upright on g
p = torch.cos(turn) * g + torch.sin(turn) * across  # (400, 3)

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-02-arccos", "caption": "Angles computed with 32-bit numbers against the true angle. Below about a tenth of a degree the arccosine climbs in steps, and then returns zero (drawn at the bottom) or nothing at all."}, "image": {"alt": "Two log-log plots of computed over true angle: the arccosine's points leave the diagonal below a tenth of a degree and form steps; the two-argument arctangent's points stay on the diagonal down to a ten-thousandth of a degree."}}
figure, axes = plt.subplots(1, 2, figsize=(7.5, 2.9), sharey=True)
for axis, formula, title in zip(
    axes, (angle_arccos, angle_atan2), ("arccos", "2·atan2")
):
    axis.loglog(degrees, degrees, color="0.8")
    axis.loglog(degrees, formula(p.float(), g.float()).clamp_min(2e-5), ".", ms=3)
    axis.set(xlabel="true angle [°]", title=title, ylim=(1e-5, 20))
_ = axes[0].set_ylabel("computed angle [°]")

# %% [markdown]
# The field's mErr is the mean of $\theta$ over all valid pixels of the data set, in degrees. Pixels whose label is the zero vector are not valid.

# %%
truth = targets["normals"]
predicted = answers["drop"]["normals"]  # (N, 3, H, W)
errors = angle_atan2(predicted.movedim(1, -1), truth.movedim(1, -1))  # (N, H, W)
meter = me.NormalError()
meter.update(predicted, truth)
torch.testing.assert_close(float(errors.mean()), meter.compute())


# %% tags=["hide-input"]
def show_normals(number):
    figure, axes = plt.subplots(1, 3, figsize=(7.5, 2.5), width_ratios=[1, 1, 1.3])
    axes[0].imshow(to_rgb("normals", answers["drop"]["normals"][number]))
    axes[0].set(xticks=[], yticks=[], title="one object missed")
    drawn = axes[1].imshow(errors[number], cmap="cividis", vmin=0, vmax=90)
    axes[1].set(xticks=[], yticks=[], title="angle to the label [°]")
    figure.colorbar(
        drawn, ax=axes[1], orientation="horizontal", ticks=[0, 45, 90], shrink=0.9
    )
    for name, colour, style in (
        ("drop", HIT, "-"),
        ("blur", plots.OKABE_ITO[3], "--"),
        ("noise", plots.OKABE_ITO[2], ":"),
    ):
        angles = (
            angle_atan2(
                answers[name]["normals"].movedim(1, -1), truth.movedim(1, -1)
            )
            .flatten()
            .sort()
            .values
        )
        label = f"{name}: {angles.mean():.0f}° / {angles.median():.0f}°"
        axes[2].plot(
            angles[::50],
            np.linspace(0, 100, len(angles[::50])),
            color=colour,
            ls=style,
            label=label,
        )
    axes[2].set(
        xlabel="angle [°]",
        ylabel="pixels below it [%]",
        xlim=(-2, 90),
        ylim=(0, 102),
    )
    axes[2].legend(loc="lower right", title="mean / median")


# %% mystnb={"figure": {"name": "fig-02-normals", "caption": "Mean and median. Left: normals of a scene whose largest object was missed, and their errors. Right: the share of pixels below each angle, for three mistakes."}, "image": {"alt": "A map of normals, a heat map in which only the missing object is bright, and three curves rising to 100 percent: that of drop starts above 80 percent at zero degrees, that of blur lower, that of noise at zero with its steepest rise at about twenty degrees."}}
show_normals(number)

# %% [markdown]
# In {numref}`fig-02-normals` noise spreads its errors over all pixels, so mean and median nearly agree. A missed object and blurred outlines leave most pixels untouched and a few very wrong: the mean is
# made by a minority, and the median does not see it. Papers on normals alone therefore report both, and the shares of pixels below
# 11.25°, 22.5° and 30°; `NormalError().details()` has them all. The multi-task tables have the mean only.

# %% [markdown]
# ## Depth: root mean square error
#
# Write $e_{ij}$ for the depth error in metres of pixel $j$ in image $i$, which has $n_i$ valid pixels (those with a depth above 0). There are again two ways to
# make one number:
#
# ```{math}
# :label: eq-02-rmse
# \mathrm{RMSE} = \sqrt{\frac{\sum_i\sum_j e_{ij}^2}{\sum_i n_i}} \quad\text{(pooled)}, \qquad
# \frac1N\sum_{i=1}^{N} \sqrt{\frac1{n_i}\sum_j e_{ij}^2} \quad\text{(mean of images)}.
# ```
#
# The square root bends downwards, so for images of equal size the mean of the roots never exceeds the root of the mean. That alone would do little harm,
# since it holds for every model. But the two may also disagree about *which model is better*. Consider a steady model that is wrong by a tenth everywhere, and a
# brilliant one that is wrong by a twentieth except in one image, where it takes the room for half as large again ({numref}`fig-02-depth`).

# %%
depth = targets["depth"]  # (N, 1, H, W)
steady = depth * 1.1
brilliant = depth * 1.05
brilliant[0] = depth[0] * 1.5


def image_rmse(prediction):
    return (prediction - depth).square().mean((1, 2, 3)).sqrt()  # (N,)


def pooled_rmse(prediction):
    return (prediction - depth).square().mean().sqrt()


# %%
for model in (steady, brilliant):
    meter = me.DepthRMSE()
    meter.update(model, depth)
    details = meter.details()
    torch.testing.assert_close(float(pooled_rmse(model)), details["pooled"])
    torch.testing.assert_close(
        float(image_rmse(model).mean()), details["per_image"]
    )


# %% tags=["hide-input"]
def show_depth():
    figure, axes = plt.subplot_mosaic(
        [["steady0", "steady1", "dots"], ["brilliant0", "brilliant1", "dots"]],
        figsize=(7.5, 3.2),
        width_ratios=[1, 1, 1.7],
    )
    dots = axes["dots"]
    for x, (name, model) in enumerate(
        {"steady": steady, "brilliant": brilliant}.items()
    ):
        for i in (0, 1):
            axis = axes[f"{name}{i}"]
            drawn = axis.imshow(
                (model - depth)[i, 0], cmap="cividis", vmin=0, vmax=2
            )
            axis.set(
                xticks=[],
                yticks=[],
                title=f"image {i}" if x == 0 else "",
                ylabel=name if i == 0 else "",
            )
        dots.plot(
            x + np.linspace(-0.15, 0.15, len(scenes)),
            image_rmse(model),
            "o",
            color="0.6",
            ms=5,
        )
        dots.hlines(
            pooled_rmse(model),
            x - 0.3,
            x + 0.3,
            color=HIT,
            label="pooled" if x == 0 else None,
        )
        mean = image_rmse(model).mean()
        dots.hlines(
            mean,
            x - 0.3,
            x + 0.3,
            plots.OKABE_ITO[3],
            "--",
            label="mean of images" if x == 0 else None,
        )
    dots.set(
        xticks=[0, 1],
        xticklabels=["steady", "brilliant"],
        ylabel="RMSE [m]",
        xlim=(-0.5, 1.5),
        ylim=(0, None),
    )
    dots.legend(loc="upper left")
    figure.colorbar(
        drawn,
        ax=[axes["steady0"], axes["brilliant0"]],
        location="left",
        label="error [m]",
        ticks=[0, 1, 2],
    )


# %% mystnb={"figure": {"name": "fig-02-depth", "caption": "Two depth models. Left: their errors on the first two images. Right: a dot per image. Pooled over pixels the steady model wins; averaged over images the brilliant one does."}, "image": {"alt": "Four error maps, in which only the brilliant model's first image is bright, and two columns of dots. The steady model's dots lie together; the brilliant model's lie lower except for one far above. By the solid lines, the pooled RMSE, the steady model is lower; by the dashed lines, the mean over images, the brilliant one is."}}
show_depth()
names = ("steady", "brilliant")
pooled_over_pixels = [pooled_rmse(model) for model in (steady, brilliant)]
mean_over_images = [image_rmse(model).mean() for model in (steady, brilliant)]
print("pooled, the better model is the", names[np.argmin(pooled_over_pixels)])
print("by the mean of images it is the", names[np.argmin(mean_over_images)])

# %% [markdown]
# The papers of this book pool; {cite:t}`maninis2019attentive` average over images. Which is right depends on what one fears. Squares punish rare large
# errors, and pooling carries that from pixels to images.

# %% [markdown]
# ## Boundaries: matching thin lines
#
# A boundary is one pixel wide. Shift it by one pixel and hardly any pixel is hit; a metric that counts hits would call the near-perfect answer
# worthless. The protocol of the Berkeley segmentation benchmark {cite}`martin2004learning,arbelaez2011contour` therefore *matches* predicted with true boundary
# pixels and lets them lie a little apart. We need a prediction that deserves it: the largest object missed, the lines one pixel off and soft, some
# false lines from texture, and weaker contrast in some images than in others.

# %%
true_lines = labels["edge"][:, 0] > 0  # (N, H, W)
lines = blur(shift(drop(labels["edge"]), pixels=1), sigma=1.0)  # (N, 1, H, W)
texture = blur(np.random.default_rng(1).standard_normal(lines.shape), sigma=1.5)
contrast = np.linspace(0.35, 1.0, len(scenes)).reshape(-1, 1, 1)  # (N, 1, 1)
drawn = (2 * lines + 1.5 * np.maximum(texture, 0))[:, 0]  # (N, H, W)
probability = np.clip(contrast * drawn, 0, 1)

hits = (probability > 0.5) & true_lines
print("more than half are hit exactly:", bool(hits.sum() > true_lines.sum() / 2))

# %% [markdown]
# ### From soft to thin
#
# Before anything is matched, lines must be lines. **Non-maximum suppression** estimates for each pixel the direction across the line that it lies on, and sets it to 0 if it is weaker
# than its neighbours in that direction: ridges stay. After the threshold, **thinning** peels what is still wide down to one pixel and keeps
# connected what was connected, as {numref}`fig-02-thin` shows step by step. Without them a fat line would cover every place the truth could be.

# %%
from mlore_edu.metrics import DOLLHOUSE_BOUNDARY
from mlore_edu.metrics.boundary import suppress
from mlore_edu.metrics.boundary_matching import match, thin

protocol = DOLLHOUSE_BOUNDARY
ridges = np.stack([suppress(image, protocol) for image in probability])  # (N, H, W)
predicted_lines = thin(ridges[number] > 0.2)
truth_thin = np.stack([thin(image) for image in true_lines])

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-02-thin", "caption": "From a boundary probability to lines: the probability, its ridges after non-maximum suppression, the threshold without suppression, and ridges, threshold and thinning together."}, "image": {"alt": "Four drawings of a room's outlines: soft grey lines, thin grey ridges, broad black strokes that fill small gaps, and black lines one pixel wide."}}
figure, axes = plt.subplots(1, 4, figsize=(7.5, 1.9))
steps = (
    probability[number],
    ridges[number],
    probability[number] > 0.2,
    predicted_lines,
)
for axis, title, picture in zip(
    axes,
    ("probability", "ridges", "threshold only", "all three steps"),
    steps,
    strict=True,
):
    axis.imshow(to_rgb("edge", picture))
    axis.set(xticks=[], yticks=[], title=title)

# %% [markdown]
# ### One to one
#
# When is a predicted pixel right? "A true pixel lies within the tolerance" will not do, as two parallel lines show. Let the truth be one line, and
# the prediction two, one pixel to either side of it.

# %%
from scipy.sparse import csr_array
from scipy.sparse.csgraph import maximum_bipartite_matching
from scipy.spatial.distance import cdist


def count_pairs(prediction, truth, tolerance):
    """Largest number of pairs within the tolerance, no pixel in two pairs."""
    near = cdist(np.argwhere(prediction), np.argwhere(truth)) <= tolerance  # (P, T)
    return int((maximum_bipartite_matching(csr_array(near)) >= 0).sum())


line, doubled = np.zeros((2, 20, 20), bool)
line[10], doubled[[9, 11]] = True, True
near = (cdist(np.argwhere(doubled), np.argwhere(line)) <= 2).any(1).sum()
print(f"{near} of {doubled.sum()} predicted pixels are near the truth")
print(f"{count_pairs(doubled, line, 2)} of them find a partner")

# %% [markdown]
# Every pixel of both lines is near the truth, yet half of what was drawn is superfluous. So each true pixel may serve one predicted pixel only: we look for as many
# pairs as possible in which no pixel occurs twice. That is a *maximum bipartite matching*, an old problem with exact and fast algorithms. What has no partner on the side
# of the prediction is a false alarm, on the side of the truth a miss: {numref}`fig-02-matching` has all three.

# %%
TOLERANCE = protocol.max_distance * np.hypot(96, 128)  # in pixels
pairs = match(
    predicted_lines, truth_thin[number], TOLERANCE
)  # (pairs, ends, coordinates)
assert len(pairs) == count_pairs(predicted_lines, truth_thin[number], TOLERANCE)
assert np.linalg.norm(pairs[:, 0] - pairs[:, 1], axis=1).max() <= TOLERANCE
print(f"tolerance {TOLERANCE:.1f} pixels")


# %% tags=["hide-input"]
def f_from(pairs, predicted, true):
    """F in percent from counts."""
    return 200 * pairs / max(predicted + true, 1)


def draw_matching(axis, prediction, truth, tolerance):
    """Draw matched, missed and falsely predicted boundary pixels; return F in percent."""
    (rows, columns), (true_rows, true_columns) = match(
        prediction, truth, tolerance
    ).transpose(1, 2, 0)
    hit, found = np.zeros((2, *truth.shape), bool)
    hit[rows, columns] = found[true_rows, true_columns] = True
    f = f_from(len(rows), prediction.sum(), truth.sum())
    overlay(
        axis,
        hit,
        truth & ~found & ~hit,
        prediction & ~hit,
        f"tolerance {tolerance:.1f} px: F = {f:.0f} %",
    )
    return f


# %% mystnb={"figure": {"name": "fig-02-matching", "caption": "A predicted boundary against the true one. Blue: predicted pixels that found a partner; orange: true pixels without one; pink: predicted pixels without one."}, "image": {"alt": "Line drawing of a room. Most lines are blue; the outline of one large object is orange because the prediction missed it; short pink strokes lie scattered where texture was taken for boundary."}}
figure, axis = plt.subplots(figsize=(5.5, 4.6))
draw_matching(axis, predicted_lines, truth_thin[number], TOLERANCE)
name_colours(figure, hit="matched")

# %% [markdown]
# ### How far apart may a pair be?
#
# The tolerance is a share of the image's diagonal: 0.0075 for PASCAL-Context, which is 4.7 pixels at 375×500, and 0.011 for NYUD-v2, 7.7 pixels at
# 425×560. For the small pictures of this book, Dollhouse uses 0.0225. Try what it does; {numref}`fig-02-tolerance` keeps three places of the slider.

# %%
from ipywidgets import FloatSlider, interact


def explore(tolerance):
    """Draw the matching of one scene at a tolerance in pixels."""
    figure, axis = plt.subplots(figsize=(5.5, 4.6))
    draw_matching(axis, predicted_lines, truth_thin[number], tolerance)
    name_colours(figure, hit="matched")
    plt.show()


# %% tags=["nbval-ignore-output"]
_ = interact(explore, tolerance=FloatSlider(value=3.5, min=0, max=8, step=0.5))


# %% tags=["hide-input"]
def show_tolerances():
    figure, axes = plt.subplot_mosaic(
        [["0", "1", "2"], ["f", "f", "f"]],
        figsize=(7.5, 4.6),
        height_ratios=[1, 0.9],
    )
    for axis, tolerance in zip((axes["0"], axes["1"], axes["2"]), (0, 1.0, 6.0)):
        draw_matching(axis, predicted_lines, truth_thin[number], tolerance)
        axis.set_title(axis.get_title(), fontsize=9)
    tolerances = np.arange(0, 8.5, 0.5)
    random_lines = np.roll(np.flip(predicted_lines, 1), 17, 0)
    for prediction, label, style in (
        (predicted_lines, "this prediction", "-o"),
        (random_lines, "the same, mirrored", "--s"),
    ):
        pairs = [len(match(prediction, truth_thin[number], t)) for t in tolerances]
        f = [f_from(n, prediction.sum(), truth_thin[number].sum()) for n in pairs]
        axes["f"].plot(tolerances, f, style, ms=4, label=label)
    axes["f"].axvline(TOLERANCE, color="0.7", ls=":")
    axes["f"].text(TOLERANCE + 0.1, 3, "Dollhouse", color="0.4")
    axes["f"].set(xlabel="tolerance [pixels]", ylabel="F [%]", ylim=(0, 100))
    axes["f"].legend(loc="lower right")
    name_colours(figure, hit="matched")


# %% mystnb={"figure": {"name": "fig-02-tolerance", "caption": "What the slider shows. Above: the matching at three tolerances. Below: F against the tolerance, for the prediction and for its mirror image moved down, which has nothing to do with the scene."}, "image": {"alt": "Three drawings of matched lines: with tolerance zero nearly everything is orange or pink, with one pixel mostly blue, with six pixels blue except a few strokes. Below, two curves of F rising with tolerance: the real prediction's quickly to a plateau, the mirrored one's slowly and steadily."}}
show_tolerances()

# %% [markdown]
# The first pixel of tolerance makes all the difference. From then on F grows mainly by forgiving, and an answer that belongs to another picture profits most. A score at
# one tolerance says little about a score at another: odsF values of the two data sets cannot be compared.
#
# ### One threshold for all, or one for each
#
# As with saliency there is a threshold $\tau$ to choose, and the counts of all images $i$ are pooled at each. With $m_i$ matched, $p_i$ predicted and $t_i$ true
# pixels,
#
# ```{math}
# :label: eq-02-ods
# \mathrm{odsF} = \max_\tau \frac{2\,P R}{P + R}
# = \max_\tau \frac{2\sum_i m_i(\tau)}{\sum_i p_i(\tau) + \sum_i t_i},
# \qquad P = \frac{\sum_i m_i}{\sum_i p_i},\quad R = \frac{\sum_i m_i}{\sum_i t_i} .
# ```
#
# "ods" stands for *optimal data set scale*: one threshold for everything. If each image may have its own best one, the result is called oisF, for *optimal
# image scale*.

# %%
matched, predicted = np.zeros((2, len(scenes), len(protocol.thresholds)))
for i in range(len(scenes)):
    for k, threshold in enumerate(protocol.thresholds):
        thinned = thin(ridges[i] > threshold)
        matched[i, k] = len(match(thinned, truth_thin[i], TOLERANCE))
        predicted[i, k] = thinned.sum()
true = truth_thin.sum((1, 2))[:, None]  # (N, 1)

odsf = (200 * matched.sum(0) / (predicted.sum(0) + true.sum())).max()
of_images = 2 * matched / (predicted + true)  # (N, thresholds)
best = np.arange(len(scenes)), of_images.argmax(1)  # each image's own threshold
oisf = 200 * matched[best].sum() / (predicted[best].sum() + true.sum())

meter = me.BoundaryF(protocol)
meter.update(torch.from_numpy(probability), targets["edge"])
assert np.allclose([odsf, oisf], [meter.compute(), meter.details()["oisF"]])
print(f"odsF {odsf:.0f} %, oisF {oisf:.0f} %")


# %% tags=["hide-input"]
def show_curve():
    details = meter.details()
    _, axis = plt.subplots(figsize=(5.0, 3.8))
    recall_grid, precision_grid = np.meshgrid(
        np.linspace(0.01, 1, 200), np.linspace(0.01, 1, 200)
    )
    f = 2 * precision_grid * recall_grid / (precision_grid + recall_grid)
    levels = axis.contour(
        100 * recall_grid,
        100 * precision_grid,
        100 * f,
        levels=[20, 40, 60, 80],
        colors="0.85",
    )
    axis.clabel(levels, fmt="F = %d", fontsize=8)
    axis.plot(
        100 * np.array(details["recall"]),
        100 * np.array(details["precision"]),
        "-o",
        ms=3,
        label="all images, a dot per threshold",
    )
    top = int(np.argmax(details["f"]))
    axis.plot(
        100 * details["recall"][top],
        100 * details["precision"][top],
        "o",
        ms=9,
        color=plots.OKABE_ITO[3],
        label="odsF",
    )
    p, r = (
        matched[best].sum() / predicted[best].sum(),
        matched[best].sum() / true.sum(),
    )
    axis.plot(100 * r, 100 * p, "s", ms=9, color=plots.OKABE_ITO[2], label="oisF")
    axis.set(
        xlabel="recall [%]", ylabel="precision [%]", xlim=(0, 100), ylim=(0, 102)
    )
    axis.legend(loc="lower left")


# %% mystnb={"figure": {"name": "fig-02-curve", "caption": "Precision and recall of boundaries over the thresholds, with lines of equal F. Since the contrast differs from image to image, no single threshold suits all, and oisF lies above odsF."}, "image": {"alt": "A curve from high precision at low recall to low precision at high recall over grey contour lines of F; a large round mark at the best point of the curve and a square mark well above it, beyond the curve."}}
show_curve()

# %% [markdown]
# The contrast of our twelve images differs on purpose, so that the gap in {numref}`fig-02-curve` is wide. odsF punishes a detector that does not know how sure it is.
#
# The full protocol has 101 thresholds and a few more choices. In the library each is a field of `BoundaryProtocol`, and the appendix on [boundary matching](../appendix/boundary_matching.ipynb) goes through
# them. Two concern what you read in tables: published odsF values of PASCAL-Context come from 2,498 of the 5,105 validation images, and
# NYUD-v2's true boundaries, being lines already, are taken for regions and outlined once more.

# %% [markdown]
# ## Every mistake, every metric
#
# Now all the meters can be read together. {numref}`fig-02-chart` has the five mistakes in its rows and the six metrics in its columns. Each column has its own
# scale: white is a perfect answer, the darkest blue the constant one, which does not look at the image.


# %% tags=["hide-input"]
def show_chart():
    table = np.array(
        [[results[name][task.name] for task in me.DOLLHOUSE] for name in answers]
    )  # (mistakes, tasks)
    perfect = np.array(
        [0.0 if task.lower_is_better else 100.0 for task in me.DOLLHOUSE]
    )
    lost = (perfect - table) / (perfect - table[-1])
    figure, axis = plt.subplots(figsize=(7.5, 3.4))
    drawn = axis.imshow(
        np.clip(lost, 0, 1), cmap="Blues", vmin=0, vmax=1, aspect="auto"
    )
    for (y, x), value in np.ndenumerate(table):
        text = (
            f"{value:.2f}" if me.DOLLHOUSE.tasks[x].unit == "m" else f"{value:.0f}"
        )
        axis.text(
            x,
            y,
            f"{text} {me.DOLLHOUSE.tasks[x].unit}",
            ha="center",
            va="center",
            color="white" if lost[y, x] > 0.5 else "black",
        )
    titles = [
        task.title.replace("Semantic segmentation", "Semantics").replace(
            "Surface n", "N"
        )
        for task in me.DOLLHOUSE
    ]
    axis.set_xticks(
        range(6),
        [f"{title}\n{task.metric}" for title, task in zip(titles, me.DOLLHOUSE)],
    )
    axis.set_yticks(range(5), list(answers))
    axis.xaxis.tick_top()
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
    figure.colorbar(drawn, ticks=[0, 1], pad=0.02).set_ticklabels(
        ["perfect", "constant"]
    )


# %% mystnb={"figure": {"name": "fig-02-chart", "caption": "How each metric responds to each mistake. Colour: how much of the way from a perfect to a constant answer has been lost. Mean errors of normals and RMSE are lower when better, the others higher."}, "image": {"alt": "A table of five mistakes by six metrics in shades of blue. The shift's row is nearly white under boundaries and darkest under human parts; the noise's row is darkest under human parts and pale under boundaries; the constant's row is dark throughout."}}
show_chart()

# %% [markdown]
# Read it by rows. The **shift** is nearly free for boundaries, because two pixels are within the tolerance, and ruinous
# for human parts, whose arms and legs are only a few pixels wide. The **noise** hardly disturbs boundaries either:
# speckles are no ridges that survive a threshold. It tells on human parts, because every wrong speck is a false
# positive of some small class, and on normals, where each pixel's angle counts for itself. The **dropped** object costs
# the class metrics a good deal, and normals little: most of the picture is still right.
#
# Read by columns: most metrics put the four mistakes in an order of their own. A model is not good or bad at seeing; it is good or bad at what a metric asks.

# %%
orders = set()
for task in me.DOLLHOUSE:
    four = ("shift", "blur", "noise", "drop")
    by_score = sorted(four, key=lambda name, task=task: results[name][task.name])
    orders.add(tuple(by_score if task.lower_is_better else by_score[::-1]))
print(
    f"{len(me.DOLLHOUSE)} metrics, {len(orders)} different orders of the four mistakes"
)

# %% [markdown]
# ## One number for a model: Δm
#
# Back to the first question. To say which model is *better* one has to add percent, degrees and metres, and the usual way is to divide each by what a
# single-task model $b$ reaches, a model of the same make trained for this task alone {cite}`maninis2019attentive`. With $M_t$ the metric of task $t$ out of $T$, $M_{b,t}$ the baseline's,
# and $l_t = 1$ where lower is better, otherwise 0:
#
# ```{math}
# :label: eq-02-gain
# \Delta_m = \frac1T\sum_{t=1}^{T} (-1)^{l_t}\,\frac{M_t - M_{b,t}}{M_{b,t}} .
# ```
#
# Positive: on average over tasks, one model for all does better than a model for each. Here are the published results of three methods on
# NYUD-v2 (Table 6 of the MLoRE paper {cite}`yang2024mlore`), all with a ViT-L backbone. The paper prints no single-task results. Its supplement has (Table 6 there) a plain multi-task baseline,
# which we use, so that the numbers below, drawn in {numref}`fig-02-gain`, are gains over *that*. (`published` holds the tables of the papers, each typed in once, so that no chapter has to.)

# %%
from mlore_edu import published

NYUD = me.NYUD_V2.names  # semseg mIoU, depth RMSE, normals mErr, boundaries odsF
table = published.table("mlore", 6)
models = {
    name: table.row(method=name) for name in ("TaskPrompter", "TaskExpert", "MLoRE")
}
plain = published.table("mlore_supplement", 6).row(
    dataset="NYUD-v2", method="Baseline"
)
print(table.format("method", *NYUD))
sign = np.array([-1 if task.lower_is_better else 1 for task in me.NYUD_V2])


def gains(model, baseline):
    """Relative gain of each task in percent."""
    m, b = (np.array([values[n] for n in NYUD]) for values in (model, baseline))
    return 100 * sign * (m - b) / b


# %%
for name, model in models.items():
    of_tasks = gains(model, plain)
    assert np.isclose(of_tasks.mean(), me.multitask_gain(model, plain, me.NYUD_V2))
    details = "  ".join(f"{n} {gain:+.1f}" for n, gain in zip(NYUD, of_tasks))
    print(f"{name:13} {of_tasks.mean():+.2f} %   from {details}")
share = of_tasks[1] / of_tasks.sum()
print(f"depth makes {100 * share:.0f} % of MLoRE's gain")

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-02-gain", "caption": "The same gains drawn: four tasks side by side for each method, and their mean as a black line. Depth makes most of it."}, "image": {"alt": "Three groups of four bars for TaskPrompter, TaskExpert and MLoRE. In each group the bar of depth is three to four times as high as that of boundaries and dwarfs semantics and normals; a black line at five to six percent marks the mean."}}
figure, axis = plt.subplots(figsize=(7.5, 2.9))
for k, task in enumerate(me.NYUD_V2):
    heights = [gains(model, plain)[k] for model in models.values()]
    axis.bar(np.arange(3) + 0.18 * (k - 1.5), heights, 0.16, label=task.title)
means = [gains(model, plain).mean() for model in models.values()]
axis.hlines(
    means, np.arange(3) - 0.4, np.arange(3) + 0.4, "black", label="mean: Δm"
)
axis.set(
    xticks=range(3),
    xticklabels=list(models),
    ylabel="gain over the plain model [%]",
)
_ = figure.legend(loc="outside right center", fontsize=9)

# %% [markdown]
# ### What it hides
#
# **Who paid.** A sum does not tell where it came from. About two thirds of MLoRE's gain here is the depth of a baseline that is weak at depth (0.60 m, where InvPT with the
# same backbone has 0.52). A model may lose on three tasks and stand above zero for the fourth.
#
# **The scale.** A point of mIoU at 55 % counts 1.8 %; taken off an *error* of 45 % it would count 2.2 %. For boundaries at 75 % it is 1.3 % against 4 %. Nothing says
# which of the two is right. Turn the two scores into errors, $100 - M$, and rank the methods again.


# %%
def as_errors(values):
    """100 − M where higher is better, (4,)."""
    m = np.array([values[n] for n in NYUD])
    return np.where(sign < 0, m, 100 - m)


def gain_in_errors(model):
    """Relative fall of each of the four errors in percent."""
    m, b = as_errors(model), as_errors(plain)
    return 100 * (b - m) / b


for name in ("TaskPrompter", "TaskExpert"):
    as_score = gains(models[name], plain).mean()
    as_error = gain_in_errors(models[name]).mean()
    print(
        f"{name:13} counted as scores {as_score:+.2f} %, as errors {as_error:+.2f} %"
    )

# %% [markdown]
# The same published results, two orders: TaskPrompter is ahead in scores, TaskExpert in errors.
#
# **The baseline.** Each task's gain is divided by the baseline's value, so a baseline that is good at normals (a small number) makes normals count for much, and so
# does one that is poor at a score (a small number too) with that score. Our own models A and B
# have been waiting for this. Judge both against two of the other mistakes of {numref}`fig-02-chart`.


# %%
def gain(model, baseline):
    return me.multitask_gain(results[model], results[baseline], me.DOLLHOUSE)


for baseline in ("blur", "constant"):
    winner = "A" if gain("noise", baseline) > gain("shift", baseline) else "B"
    print(f"against {baseline}: {winner} is better")

# %% [markdown]
# The normals of `blur` are good, so B's lead in normals weighs most. The classes and the saliency of `constant` score next to nothing, so A's
# lead in those does. It can be stranger still. Take two models with two errors each, and let each be
# the other's baseline.

# %%
two = me.NYUD_V2.subset("depth", "normals")
left, right = {"depth": 0.8, "normals": 10.0}, {"depth": 0.4, "normals": 20.0}
print(f"left against right: {me.multitask_gain(left, right, two):+.0f} %")
print(f"right against left: {me.multitask_gain(right, left, two):+.0f} %")

# %% [markdown]
# Each is a quarter worse than the other. A mean of ratios is not symmetric: an error that doubles costs 100 %, one that halves earns 50 %. So there is no
# answer to "which is better" without a baseline, and with one, the answer belongs to the baseline as well. A mean of *logarithms* of the ratios would be free of
# this, because the baseline cancels from every comparison ({ref}`ex-02-gain` below), but the field does not use it.
#
# ### Asking a table for its baselines
#
# The MLoRE paper reports $\Delta_m$ in its ablations on PASCAL-Context, without the single-task results that went into it. They are in the tables all the same. {eq}`eq-02-gain`
# is linear in the five unknowns $1/M_{b,t}$, and each row of an ablation is one equation. Three tables of the paper and five of its supplement have them.

# %%
ablations = [("mlore", n) for n in (2, 3, 4)]
ablations += [("mlore_supplement", n) for n in (1, 2, 3, 4, 5)]
rows = [(key, row) for key in ablations for row in published.table(*key).rows]
PASCAL = me.PASCAL_CONTEXT.names
M = np.array([[row[name] for name in PASCAL] for _, row in rows])  # (34, 5)
delta = np.array([row["delta_m"] for _, row in rows])
print(len(rows), "equations, 5 unknowns")

# %%
sign = np.array([-1 if task.lower_is_better else 1 for task in me.PASCAL_CONTEXT])


def solve(used):
    """Baselines (5,) from: mean over t of sign · (M / M_b − 1) = Δm / 100."""
    right = delta[used] / 100 + sign.mean()
    return 1 / np.linalg.lstsq(sign * M[used] / 5, right, rcond=None)[0]


def gains_over(baselines):
    return (100 * sign * (M / baselines - 1)).mean(1)  # (rows,)


# %% [markdown]
# Does one set of baselines explain all rows? We solve, look for the row that fits worst, and as long as it is off by a hundredth or more we leave it out and solve
# again.

# %%
used = list(range(len(rows)))
while True:
    baselines = solve(used)
    off = np.abs(gains_over(baselines) - delta)
    worst = max(used, key=lambda i: off[i])
    if off[worst] < 0.01:
        break
    used.remove(worst)
left_out = sorted(set(range(len(rows))) - set(used))
print(len(used), "rows are reproduced to a hundredth")

# %%
for i in left_out:
    (paper, number), row = rows[i]
    column, cell = next(iter(row.items()))  # what the row is about
    print(f"{paper}, Table {number}, {column} = {cell}:", end=" ")
    print(f"Δm printed {delta[i]:.2f}, expected {gains_over(baselines)[i]:.2f}")

# %%
printed = published.table("mlore", 2).row(setting="Baseline + MoE")
again = published.table("mlore_supplement", 5).row(
    model="Baseline + MoE", balance_loss="yes"
)
for name in (*PASCAL, "delta_m"):
    if printed[name] != again[name]:
        print(f"{name}: {printed[name]}, in the supplement {again[name]}")

# %% [markdown]
# Five numbers explain all printed gains but two. One of these belongs to a model that is printed twice, a hundredth apart in
# saliency and in normals, with the same gain; the supplement's row was not left out, so it is these numbers that belong to the gain. The other is a gain that does not agree with its own row.
#
# How certain are the baselines themselves? A printed $\Delta_m$ is rounded to two digits, so each row confines the unknowns to a strip and not to a plane; what lies in all strips at once is
# possible. A linear program finds how far each baseline can move in there. `implied_baselines` does all of this section in one call.

# %%
from mlore_edu.metrics import implied_baselines

implied = implied_baselines([row for _, row in rows], delta, me.PASCAL_CONTEXT)
assert sorted(implied.slips) == left_out
for task, (low, high) in zip(me.PASCAL_CONTEXT, implied.ranges.values()):
    print(f"{task.title:22} {low:5.1f} to {high:5.1f} {task.unit}")

# %% [markdown]
# So much the gains give away, if they were computed from metrics with two digits, as printed. They probably were: computed from more digits, they would hardly all agree
# with the printed metrics to within half a hundredth.


# %% tags=["hide-input"]
def show_baselines():
    steps = {
        "plain baseline": 0,
        "+ low-rank experts": 2,
        "+ generic path": 3,
        "+ task experts = MLoRE": 4,
    }
    figure, axis = plt.subplots(figsize=(7.5, 2.9))
    y = np.arange(len(steps))
    shown = list(steps.values())  # rows of Table 2, which come first
    over_plain = gains_over(M[0])[shown]
    axis.barh(y - 0.19, delta[shown], 0.36, label="single-task models, as printed")
    axis.barh(
        y + 0.19, over_plain, 0.36, label="the paper's plain multi-task baseline"
    )
    axis.axvline(0, color="black", lw=0.8)
    axis.set(yticks=y, yticklabels=list(steps), xlabel="Δm [%]", xlim=(-4, 4))
    axis.invert_yaxis()
    figure.legend(
        title="measured against", loc="outside upper right", ncols=2, fontsize=9
    )


# %% mystnb={"figure": {"name": "fig-02-baselines", "caption": "The rows of MLoRE's Table 2 on PASCAL-Context, measured against two baselines. Whether multi-task learning pays is decided by which of them is meant."}, "image": {"alt": "Horizontal bars for four models. Measured against single-task models all bars point left, from about minus 3.4 to minus 0.6 percent. Measured against the plain multi-task baseline they start at zero and point right, up to about 3 percent."}}
show_baselines()

# %% [markdown]
# Both sets of bars in {numref}`fig-02-baselines` are of the same models. Against single-task models the printed values are negative throughout, so that on this backbone five separate networks are, on average, still slightly better than one
# network with MLoRE; against the plain multi-task network MLoRE gains about three percent. A $\Delta_m$ without its baseline is half a number. This book prints the
# baseline beside each one.

# %% [markdown]
# ## The traps in one table
#
# The sizes in the last column were measured on the predictions of this chapter; on others they will differ. They are here to say what order of magnitude is at stake. The published
# methods that the next chapters compare are often less than a point apart.

# %%
from dataclasses import replace

from IPython.display import Markdown


def score(meter, prediction, target):
    meter.update(prediction, target)
    return meter.compute()


def change(**choices):
    """Change of odsF when the protocol is changed."""
    changed = me.BoundaryF(replace(protocol, **choices))
    return score(changed, torch.from_numpy(probability), targets["edge"]) - odsf


wider = change(max_distance=protocol.max_distance * 0.011 / 0.0075)
as_regions = change(truth_is_regions=True)
astmt = score(me.MaxF("astmt"), soft, targets["saliency"])
by_depth = pooled_rmse(brilliant) - image_rmse(brilliant).mean()


# %% tags=["hide-input"] mystnb={"markdown_format": "myst"}
def points(change):
    rounded = abs(round(float(change)))
    return (
        "less than a point"
        if rounded == 0
        else f"{rounded} point{'s' * (rounded > 1)}"
    )


TRAPS = [
    (
        "mIoU averaged over images instead of pooled",
        "some libraries",
        points(difference),
    ),
    (
        "a band of 255 around objects",
        "PASCAL VOC's labels",
        points(semseg_band - semseg_pooled),
    ),
    (
        "a sigmoid on the saliency probability",
        "InvPT, TaskPrompter, MLoRE",
        f"up to {points(trap)}",
    ),
    ("β² = 1 and means over images in maxF", "ASTMT", points(curve.max() - astmt)),
    (
        "RMSE averaged over images",
        "ASTMT",
        f"{by_depth:.1f} m; two models change places",
    ),
    (
        "boundary tolerance 0.011 instead of 0.0075",
        "NYUD-v2, PASCAL-Context",
        f"{points(wider)} (Dollhouse's, widened alike)",
    ),
    ("true boundaries outlined once more", "NYUD-v2", points(as_regions)),
    ("odsF on 2,498 of 5,105 images", "PASCAL-Context", "not measured here"),
    (
        "the best checkpoint, chosen on the evaluation split",
        "anywhere",
        "not measured here",
    ),
    ("Δm without its baseline", "most tables", "the sign"),
]
rows = "\n".join(f"| {' | '.join(row)} |" for row in TRAPS)
Markdown(f"| trap | where to meet it | size here |\n|---|---|---|\n{rows}")

# %% [markdown]
# ## Exercises
#
# Fill in the functions; each check says *correct*, or what is missing.
#
# ```{exercise} IoU with pencil and paper
# :label: ex-02-iou
# Write `iou(prediction, target, c)`: the intersection over union of class `c`, from 0 to 1, for two integer arrays. Pixels with target 255 do not count. If the class occurs in neither, the result is `nan`.
# ```

# %%
from mlore_edu.exercises import ch02


def iou(prediction, target, c):
    return ...


_ = ch02.check_iou(iou)

# %% [markdown]
# ```{solution-start} ex-02-iou
# :class: dropdown
# ```


# %% jupyter={"source_hidden": true}
def iou(prediction, target, c):
    predicted = (prediction == c) & (target != 255)
    true = target == c
    union = (predicted | true).sum()
    return (predicted & true).sum() / union if union else np.nan


_ = ch02.check_iou(iou)

# %% [markdown]
# ```{solution-end}
# ```
#
# ```{exercise} Which thresholds act?
# :label: ex-02-acting
# Somebody repairs the saliency trap by dividing the probability by a temperature before the sigmoid: $\sigma(p / T)$. Write `acting(temperature)`: the list, in ascending order, of those thresholds 0.05, 0.10, …, 0.95 that can separate probabilities between 0 and 1, each
# as a threshold on $p$ itself. With $T = 1$ it should have four entries. How many are there with a very small $T$, and why never more?
# ```


# %%
def acting(temperature):
    return ...


_ = ch02.check_acting(acting)

# %% [markdown]
# ```{solution-start} ex-02-acting
# :class: dropdown
# ```
# $\sigma(p/T) > \tau$ means $p > T\ln\frac{\tau}{1-\tau}$. The right-hand side is above 0 only for $\tau > 0.5$, which leaves nine thresholds at most: half of the scale is lost whatever the temperature.


# %% jupyter={"source_hidden": true}
def acting(temperature):
    tau = np.arange(1, 20) / 20
    p = temperature * np.log(tau / (1 - tau))
    return [float(x) for x in p if 1e-9 < x < 1]


_ = ch02.check_acting(acting)

# %% [markdown]
# ```{solution-end}
# ```
#
# ```{exercise} A small angle in 32 bits
# :label: ex-02-angle
# Write `angle(p, g)`: the angle in degrees between vectors along the last axis of two float32 arrays, which need not have length one. It must be right to a hundredth of its value for angles from a thousandth of a degree to 180 degrees.
# ```


# %%
def angle(p, g):
    return ...


_ = ch02.check_angle(angle)

# %% [markdown]
# ```{solution-start} ex-02-angle
# :class: dropdown
# ```


# %% jupyter={"source_hidden": true}
def angle(p, g):
    length = np.linalg.norm
    p, g = (v / length(v, axis=-1, keepdims=True) for v in (p, g))
    return np.degrees(
        2 * np.arctan2(length(p - g, axis=-1), length(p + g, axis=-1))
    )


_ = ch02.check_angle(angle)

# %% [markdown]
# ```{solution-end}
# ```
#
# ```{exercise} Pool what was averaged
# :label: ex-02-rmse
# A log file has one RMSE per image and the number of valid pixels of each. Write `pooled(errors, pixels)`: the RMSE over all pixels of the data set.
# ```


# %%
def pooled(errors, pixels):
    return ...


_ = ch02.check_pooled(pooled)

# %% [markdown]
# ```{solution-start} ex-02-rmse
# :class: dropdown
# ```


# %% jupyter={"source_hidden": true}
def pooled(errors, pixels):
    errors, pixels = np.asarray(errors), np.asarray(pixels)
    return np.sqrt((pixels * errors**2).sum() / pixels.sum())


_ = ch02.check_pooled(pooled)

# %% [markdown]
# ```{solution-end}
# ```
#
# ```{exercise} A gain that does not depend on the baseline
# :label: ex-02-gain
# Write `log_gain(results, baseline, lower_is_better)`: 100 times the mean over tasks of the natural logarithm of the improvement, where the improvement is $M/M_b$, or $M_b/M$ where lower is better. The arguments are three sequences of equal length. Then show on A and B that the order of two models is the same for
# every baseline.
# ```


# %%
def log_gain(results, baseline, lower_is_better):
    return ...


_ = ch02.check_log_gain(log_gain)

# %% [markdown]
# ```{solution-start} ex-02-gain
# :class: dropdown
# ```
# The difference of two models' gains is the mean of $\pm\ln(M^A_t / M^B_t)$: the baseline has cancelled.


# %% jupyter={"source_hidden": true}
def log_gain(results, baseline, lower_is_better):
    ratio = np.log(np.asarray(results) / np.asarray(baseline))
    return 100 * np.where(lower_is_better, -ratio, ratio).mean()


ch02.check_log_gain(log_gain)
lower = [task.lower_is_better for task in me.DOLLHOUSE]
lists = {name: list(result.values()) for name, result in results.items()}
of_a, of_b = (
    [log_gain(lists[m], base, lower) for base in lists.values()]
    for m in ("noise", "shift")
)
print(
    "A minus B is the same for every baseline:",
    bool(np.ptp(np.subtract(of_a, of_b)) < 1e-9),
)

# %% [markdown]
# ```{solution-end}
# ```

# %% [markdown]
# ## Takeaways
#
# - Metrics count over the whole data set and divide once. Averaging over images is another metric, and can turn the order of two models round.
# - Each metric forgives something: odsF a shift within its tolerance, the mean angle a missed object, mIoU nothing that is thin.
# - Published saliency numbers of this family come from four thresholds instead of nineteen.
# - Boundaries need suppression, thinning and a one-to-one matching, and their score depends on the tolerance most of all.
# - $\Delta_m$ belongs to its baseline. Where that was not printed, the table may give it away.
#
# You can now compute and question every number in this field's tables. What is missing is a model that earns some:
# [chapter 3](03_one_encoder_many_heads.ipynb) builds one encoder with many heads, trains it, and reads its scores with these meters.
