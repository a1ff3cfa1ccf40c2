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
# # Training on CUDA
#
# The loop of chapter 3 runs on a laptop. A GPU runs the same loop, and so do eight GPUs or two machines, with a dozen options that promise to
# make it faster or smaller. **What changes when you move, what must not change, and what will it cost?** A rule for the whole chapter: no option
# is believed. Each is tried here on a network small enough for two CPU cores, with an assertion that says what it leaves alone, and
# {numref}`fig-16-map` is the summary to which all of them add up.

# %%
import copy
import io
import json
import os
import queue
import signal
import tempfile
import threading
from collections import Counter
from contextlib import redirect_stderr
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from textwrap import fill, shorten
from unittest.mock import patch

os.environ["KINETO_LOG_LEVEL"] = "99"  # the profiler need not say: no GPU

# %%
import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

# %%
import mlore_edu as me
from mlore_edu import plots
from mlore_edu.data.dollhouse_files import DollhouseScenes, write_dollhouse
from mlore_edu.data.loaders import batch_draws, make_loader
from mlore_edu.data.transforms import eval_transform, train_transform
from mlore_edu.errors import UserError
from mlore_edu.training import distributed
from mlore_edu.training.recipes import find_recipe

plots.use_style()
RESULTS = Path("../results").resolve()
CPU = torch.device("cpu")

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-16-map", "caption": "One training step from left to right, and where each option of a recipe acts. Blue leaves every number as it is, to the last bit; green changes how numbers are rounded, and so the last digits; orange changes a little more, such as the random numbers or what is averaged, and has to be judged."}, "image": {"alt": "A row of seven boxes joined by arrows: read, augment, forward, backward, exchange, update, save. Below each box are the options that act there, in blue, green or orange letters; a legend explains the colours."}}
blue, orange, green, red, sky, pink = plots.OKABE_ITO[:6]
STAGES = {
    "read": [("workers", blue)],
    "augment": [("augment_on_gpu", green)],
    "forward": [
        ("channels_last", green),
        ("precision", orange),
        ("compile", orange),
    ],
    "backward": [("checkpointing", blue), ("accumulation", orange)],
    "exchange": [("processes", orange)],
    "update": [("fused_optimizer", green), ("ema", orange)],
    "save": [("resume", blue)],
}
figure = plt.figure(figsize=(7.5, 1.9), layout="none")
canvas = figure.add_axes((0, 0, 1, 1), xlim=(0, 7.5), ylim=(0, 1.9))
canvas.axis("off")
frame = {"boxstyle": "round,pad=.45", "fc": "0.95", "ec": "0.6"}
for number, (stage, options) in enumerate(STAGES.items()):
    x = 0.54 + 1.07 * number
    canvas.text(x, 1.6, stage, ha="center", va="center", weight="bold", bbox=frame)
    if number:
        line = {"arrowstyle": "->", "lw": 1}
        canvas.annotate("", (x - 0.44, 1.6), (x - 0.64, 1.6), arrowprops=line)
    for row, (option, colour) in enumerate(options):
        style = {"ha": "center", "color": colour, "fontsize": 8, "weight": "bold"}
        canvas.text(x, 1.14 - 0.21 * row, option, **style)
for x, colour, words in (
    (0.25, blue, "the same to the last bit"),
    (2.55, green, "the same but for rounding"),
    (5.0, orange, "close, and to be judged"),
):
    canvas.add_patch(plt.Rectangle((x, 0.15), 0.16, 0.16, color=colour))
    canvas.text(x + 0.25, 0.23, words, va="center", fontsize=9)

# %% [markdown]
# ## What you will be able to do
#
# - read a recipe line by line, and say which of its settings a paper states, which only its code shows, and which are guessed;
# - account for the memory of a training step and estimate its hours, before a GPU is rented;
# - say of bf16, channels_last, accumulation, checkpointing, a fused optimiser, a moving average and `torch.compile` what each changes, and show it;
# - write data-parallel training from one operation, and name the ways in which several processes learn something else than one;
# - find where a step's time goes, and whether the GPU waits for the loader;
# - launch, watch, interrupt and resume a run, so that nobody can tell from the result.
#
# *Before you start:* [chapter 3](../part1_foundations/03_one_encoder_many_heads.ipynb) for the loop and, to train on real data, [chapter 15](15_pascal_context_and_nyud_v2.ipynb). *Time:* 60 minutes of
# reading, half a minute of running. *Hardware:* two CPU cores, 4 GB of memory; no GPU, no download. **No GPU was lent to the authors while they wrote this**, so all memory and all hours on this page are
# estimates; what only a GPU can tell stands in {ref}`the last section <not-run>`, with the one command that measures it.
#
# ## The recipe, line by line
#
# Everything that decides what a run learns is one flat, frozen record. This is MLoRE with ViT-B on PASCAL-Context
# {cite}`yang2024mlore`; and because a library should not make up history, `mlore_edu/published/settings.csv` says of each setting where it is from.

# %%
from mlore_edu.training.recipes_papers import settings_of

recipe = find_recipe("pascal_mlore_vit_base")
settings = settings_of(recipe)
for status in ("stated", "code", "assumed"):
    print(f"--- {status}")
    for name, setting in settings.items():
        if setting.status == status:
            source = shorten(setting.source, 43, placeholder=" …")
            print(f"{name:27} {setting.value!s:9} {source}")


# %% [markdown]
# Read the headings first. *Stated* is what the paper itself says: the length of the training, the batch, the shape of the decoder. *Code*
# is what the authors, or those whose settings they say they follow, have published; without it nobody could train this model again. And the precision is
# named nowhere, so fp32 is *assumed*. The fields of the recipe hold these values, or a test fails; here is the short form of that test.


# %%
def plain(value):
    """A recipe's value as the table writes it."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return " ".join(map(str, value)) if isinstance(value, tuple) else value


# %%
for name in {field.name for field in fields(recipe)} & set(settings):
    assert plain(getattr(recipe, name)) == settings[name].value, name

# %% [markdown]
# Some lines deserve a word. `drop_path_rate` 0.15 skips residual branches of the encoder at random while it trains. `clip_norm` 10 shortens a gradient that is
# longer; `edge_positive_weight` is the $w$ of chapter 3; `saliency_variant` says that maxF will be measured as it was for
# the published tables (chapter 2). The learning rate falls as
#
# ```{math}
# :label: eq-16-poly
# \eta_i = \eta_0 \left(1 - \frac{i}{I}\right)^{0.9}, \qquad i = 0, \dots, I - 1,
# ```
#
# where $i$ is the step, $I$ the number of all steps and $\eta_0$ the rate at the start. It is a function of $i$ alone ({numref}`fig-16-poly`) and keeps no state. That is half of
# what makes a run resumable.

# %% mystnb={"figure": {"name": "fig-16-poly", "caption": "The learning rates of two recipes over their own lengths, each as a share of its start. The power 0.9 keeps a little above the straight line (dotted) and ends at zero."}, "image": {"alt": "Two slightly bent curves from 1 down to 0, one ending at 40 thousand steps and one at 50 thousand, each just above a dotted straight line."}}
figure, axis = plt.subplots(figsize=(7.5, 2.6))
for name, colour in (("pascal_mlore_vit_base", blue), ("nyud_tif_hrnet18", orange)):
    its = find_recipe(name)
    steps = np.arange(0, its.iterations + 1, 500)
    rates = [its.learning_rate(step) / its.lr for step in steps]
    label = f"{name}, from {its.lr:g}"
    axis.plot(steps / 1000, rates, color=colour, label=label)
    axis.plot([0, its.iterations / 1000], [1, 0], ":", color=colour)
axis.set(xlabel="thousands of steps", ylabel="share of the first rate", xlim=0)
_ = axis.legend()

# %% [markdown]
# ### A recipe is the identity of a run
#
# Every field is an option of the command line. What comes out is another record; two are compared field by field.

# %%
from mlore_edu.training.recipe import FREE_FIELDS, override

mine = override(recipe, ["--precision", "bf16", "--lr", "1e-5", "--workers", "8"])
print("another run, because of:", *recipe.differences(mine))
try:
    override(recipe, ["--batchsize", "8"])
except UserError as error:
    print(fill(str(error), 84, break_on_hyphens=False))

# %% [markdown]
# `workers` is not on the list: a few fields are *free*, for they decide how a run is watched or fed and not what it learns. All others are the run's
# identity. A run folder holds its recipe, goes on only with an equal one, and refuses any other; so a folder can never hold half of one training and
# half of another. `mlore-edu recipes` lists every recipe there is, `mlore-edu recipes NAME` prints the table above and the estimates that
# come now.

# %%
print(fill(" ".join(sorted(FREE_FIELDS)), 84))

# %% [markdown]
# ## What it costs
#
# ### Memory
#
# Four things lie in a GPU's memory while it trains. With $P$ learned numbers in fp32, and Adam {cite}`kingma2015adam`, which keeps two running means for each,
#
# ```{math}
# :label: eq-16-memory
# \text{bytes} = \underbrace{4P}_{\text{weights}} + \underbrace{4P}_{\text{gradients}} + \underbrace{8P}_{\text{optimiser}} +
# \underbrace{B \cdot A}_{\text{kept for the way back}},
# ```
#
# where $B$ is the number of images and $A$ what one image's forward pass must leave behind so that a gradient can be computed. The first three are easy. The last
# is usually by far the largest in dense prediction, and autograd tells it to whoever asks: every tensor it keeps passes through a hook.

# %%
tasks = me.DOLLHOUSE
scenes = DollhouseScenes(16, 64, "easy", transform=train_transform(64))
batch = next(iter(make_loader(scenes, 8, train=True)))
criterion = me.MultiTaskLoss(tasks, edge_positive_weight=0.8)
torch.manual_seed(0)
model = me.build_model("mlore_vit_nano", tasks, (64, 64)).train()


# %%
class Ledger:
    """The storages that autograd keeps, and the part that kept each first."""

    def __init__(self, model):
        self.weights = {w.untyped_storage().data_ptr() for w in model.parameters()}
        self.storages, self.part = {}, ""

    def remember(self, tensor):
        storage = tensor.untyped_storage()
        place = storage.data_ptr()  # views of one storage count once,
        if place not in self.weights:  # and weights not at all
            self.storages.setdefault(place, (self.part, storage.nbytes()))
        return tensor


# %%
def kept_for_the_way_back(model, batch):
    """Bytes by part, after the forward pass of chapter 3."""
    torch.manual_seed(1)
    ledger, predictions = Ledger(model), {}
    with torch.autograd.graph.saved_tensors_hooks(ledger.remember, lambda t: t):
        ledger.part = "backbone"
        maps = model.backbone(batch["image"])
        ledger.part = "decoder"
        decoded = model.decoder(maps)
        ledger.part = "heads"
        for name, head in model.heads.items():
            coarse = head(decoded.features[name])  # (B, channels, 32, 32)
            predictions[name] = F.interpolate(coarse, (64, 64), mode="bilinear")
        ledger.part = "loss"
        total, _ = criterion(predictions, batch)
    assert total.requires_grad  # it holds on to all that was kept
    kept = Counter()
    for part, size in ledger.storages.values():
        kept[part] += size
    return kept


# %%
few = {name: values[:2] for name, values in batch.items()}  # two of the eight
kept = kept_for_the_way_back(model, batch)
kept_of_two = kept_for_the_way_back(model, few)
ratio = kept.total() / kept_of_two.total()
print(f"eight images keep {ratio:.0f} times as much as two")

# %% [markdown]
# Now the same without running anything. The library *rehearses* a step: tensors that have a shape and a storage but no content go through model, loss and
# gradient, and a watcher adds up the storages that are alive (`mlore_edu/training/rehearsal.py`). For the model at hand both ways must agree; {numref}`fig-16-kept` says what it is that lies there.

# %%
from mlore_edu.training.rehearsal import rehearse

nano = find_recipe("dollhouse_mlore_nano_64")
rehearsed = rehearse(nano)
P = sum(weight.numel() for weight in model.parameters())
assert rehearsed.parameters == P
assert (rehearsed.gradients, rehearsed.optimizer) == (4 * P, 8 * P)
assert abs(rehearsed.activations / kept.total() - 1) < 0.05

# %% mystnb={"figure": {"name": "fig-16-kept", "caption": "What lies in memory when the forward pass of MLoRE on the nano ViT is done: eight images of 64×64. The weights with all that belongs to them are a small part."}, "image": {"alt": "A horizontal stacked bar. Weights, gradients and optimiser together take about a seventh; the decoder's kept values are the longest piece, then the heads', the backbone's and the loss's."}}
pieces = {
    "weights, gradients, optimiser": 16 * P,
    **{name: kept[name] for name in ("backbone", "decoder", "heads", "loss")},
}
figure, axis = plt.subplots(figsize=(7.5, 1.7))
left = 0
for (name, size), colour in zip(pieces.items(), ("0.6", blue, orange, green, pink)):
    axis.barh([""], size / 2**20, left=left, color=colour, label=name)
    left += size / 2**20
axis.set(xlabel="MiB", xlim=(0, left), yticks=[])
_ = figure.legend(loc="outside upper center", ncols=5, fontsize=8.5)

# %% [markdown]
# A rehearsal needs no memory and no GPU, so every recipe has had one, at its true size, and `mlore_edu/training/budgets.json` holds what was found ({numref}`fig-16-memory`).

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-16-memory", "caption": "Estimated memory of a training step at the papers' settings (fp32; batch 4, TIF 8), at its worst moment. Rehearsed, not measured. The dashed line is the memory of an RTX 3090."}, "image": {"alt": "Horizontal stacked bars for nine models. Weights, gradients and optimiser are the smaller pieces, what is kept for the way back the largest. They range from a few gibibytes with ViT-S to more than twenty with the largest Swin, whose bar passes the dashed line at twenty-four."}}
from mlore_edu.training.budget import stored_budget

SHOWN = {
    **{
        f"pascal_mlore_vit_{size}": f"MLoRE ViT-{size[0].upper()}"
        for size in ("small", "base", "large")
    },
    **{
        f"pascal_taskexpert_vit_{size}": f"TaskExpert ViT-{size[0].upper()}"
        for size in ("small", "base", "large")
    },
    **{
        f"pascal_tif_swin_{size}": f"TIF Swin-{size[0].upper()}"
        for size in ("tiny", "base", "large")
    },
}
budgets = {name: stored_budget(find_recipe(name)) for name in SHOWN}


def stack(axis, budgets, titles):
    """One bar a budget: what belongs to the weights, the rest at the worst moment."""
    for y, budget in enumerate(budgets):
        sizes = [budget.weights, budget.gradients, budget.optimizer]
        sizes.append(budget.peak - sum(sizes))
        names = ("weights", "gradients", "optimiser", "kept for the way back")
        left = 0
        for name, size, colour in zip(names, sizes, ("0.35", "0.55", "0.75", blue)):
            label = name if y == 0 else None
            axis.barh(y, size / 2**30, left=left / 2**30, color=colour, label=label)
            left += size
        axis.text(
            left / 2**30 + 0.2, y, f"{left / 2**30:.0f}", va="center", fontsize=9
        )
    axis.set(yticks=range(len(titles)), yticklabels=titles, xlabel="GiB")
    axis.invert_yaxis()


figure, axis = plt.subplots(figsize=(7.5, 3.7))
stack(axis, budgets.values(), SHOWN.values())
axis.axvline(24, color="0.3", ls="--", lw=1)
axis.text(24.2, 0.1, "24 GiB", fontsize=9)
axis.set(xlim=(0, 30))
_ = figure.legend(loc="outside upper center", ncols=4, fontsize=9)

# %% [markdown]
# A rehearsal counts tensors and nothing else. Where whole processes were measured beside it, on a CPU, they held up to about six tenths more (`benchmarks/measuring.py`); leave room.
#
# ### Hours
#
# A multiply-accumulate is two operations, and the way back costs twice the way there, once for the gradient of the values and once for that of the weights.
# With $M$ multiply-accumulates for one image and a GPU that keeps up $r$ operations a second,
#
# ```{math}
# :label: eq-16-hours
# \text{hours} = \frac{6 \, M \, B \, I}{3600 \, r}.
# ```
#
# Everything but $r$ is known beforehand. What the library assumes for $r$, and why, is written beside the number in `budget.py`: it starts from the one training time that any of the three
# papers prints.

# %%
from mlore_edu.training.budget import ASSUMED_GPU, SUSTAINED

print(f"assumed: {ASSUMED_GPU}")
print(f"\n{'':15} MACs an image     fp32     bf16")
for name, title in SHOWN.items():
    its, budget = find_recipe(name), budgets[name]
    M = budget.macs / its.batch_size
    operations = 6 * M * its.batch_size * its.iterations
    fp32, bf16 = (operations / SUSTAINED[kind] / 3600 for kind in ("fp32", "bf16"))
    assert np.isclose(fp32, budget.hours(its))
    print(f"{title:16} {M / 1e9:8.0f}e9 {fp32:8.1f} {bf16:8.1f}   hours")

# %% [markdown]
# So each of these models is at most a night's work on such a GPU, if the assumption holds. An estimate of this kind is good for choosing a machine
# and bad for anything else: it knows of arithmetic and not of the thousands of small operations between, of which we shall hear.

# %% [markdown]
# ## The options, one after the other
#
# Each experiment asks for the gradient of one batch, twice. So we need a function that gives the whole gradient as one long vector, and
# draws the same random numbers every time.


# %%
def gradient(model, batch, tasks=tasks):
    """The gradient of the training loss, all weights in one vector."""
    torch.manual_seed(1)  # drop path and the routers' noise draw from here
    model.zero_grad()
    output = model(batch["image"])
    total, _ = me.MultiTaskLoss(tasks)(output.predictions, batch)
    (total + output.balance_loss).backward()
    return torch.cat([weight.grad.flatten() for weight in model.parameters()])


# %%
def same(first, second, within=1e-9):
    """Whether two vectors differ by no more than this share of their length."""
    return bool((first - second).norm() <= within * second.norm())


# %% [markdown]
# ### bf16: half the bits, the same range
#
# A float is a sign, an exponent and a mantissa. fp32 has 8 bits of exponent and 23 of mantissa. Sixteen bits can be shared out in two ways:

# %%
print(f"{'':5} step above 1   smallest number above 0   largest")
for dtype in (torch.float32, torch.bfloat16, torch.float16):
    info = torch.finfo(dtype)
    powers = np.log2([info.eps, info.tiny * info.eps, info.max]).round()
    step, least, largest = (f"2^{power:.0f}" for power in powers)
    print(f"{info.dtype:9} {step:>8} {least:>25} {largest:>9}")

# %% [markdown]
# bf16 keeps the range of fp32 and gives up precision; fp16 keeps more precision and gives up range. Range is what dense prediction needs. A loss is a mean over all pixels of the
# batch, so the gradient that reaches a single pixel is divided by a million. Let us send one through fp16 ({numref}`fig-16-underflow`).

# %%
torch.manual_seed(0)
logits = (3 * torch.randn(1, 21, 512, 512)).requires_grad_()
labels = torch.randint(21, (1, 512, 512))
(F.cross_entropy(logits, labels) / 4).backward()  # one of four images
g = logits.grad.flatten()  # (21·512·512,)
scaled = g * 2**16


# %%
def lost(gradient, dtype):
    """The share of the numbers that become 0."""
    return (gradient.to(dtype) == 0).double().mean().item()


assert lost(g, torch.bfloat16) == 0
assert lost(g, torch.float16) > 0.5
assert lost(scaled, torch.float16) < 0.02
assert scaled.to(torch.float16).isfinite().all()

# %% mystnb={"figure": {"name": "fig-16-underflow", "caption": "Sizes of the gradient at the logits of one 512×512 image in a batch of four. Below 2⁻²⁴ there is nothing in fp16 (shaded), and most of the gradient would be lost. Multiplied by 2¹⁶ almost all of it survives."}, "image": {"alt": "Two equal histograms over powers of two, one 16 powers to the right of the other. The left one lies for the most part in a shaded area below two to the minus twenty-four, the right one outside of it."}}
figure, axis = plt.subplots(figsize=(7.5, 2.6))
bins = np.arange(-45, 1)
for values, label in ((scaled, "times 2¹⁶"), (g, "the gradient")):
    axis.hist(values[::50].abs().log2(), bins=bins, alpha=0.7, label=label)
axis.axvspan(-45, -24, color="0.9", zorder=0)
axis.text(-44.5, axis.get_ylim()[1] * 0.92, "zero in fp16", fontsize=9)
axis.set(xlabel="size, as a power of two", yticks=[], xlim=(-45, 8))
axis.spines["left"].set_visible(False)
_ = axis.legend(loc="upper right")

# %% [markdown]
# This is what *loss scaling* is for {cite}`micikevicius2018mixed`: multiply the loss by $2^{16}$, divide the gradient by it before the update, halve the factor whenever something
# overflows. `torch.amp.GradScaler` does so for `--precision fp16`. With bf16 nothing vanishes, so there is nothing to scale.
#
# Not every operation may be coarse. *Autocast* leaves the weights in fp32 and casts at each call: convolutions and matrix products get
# 16-bit copies, and sums over many numbers stay in 32. Which is which can be seen from what the modules return:

# %%
baseline = me.build_model("baseline_vit_nano", tasks, (64, 64)).train()
returned = {}


def note(module, inputs, output):
    returned[type(module).__name__] = output


hooks = [module.register_forward_hook(note) for module in baseline.modules()]

# %%
with torch.autocast("cpu", dtype=torch.bfloat16):
    output = baseline(batch["image"])
    total, _ = criterion(output.predictions, batch)
for kind in ("Conv2d", "Linear", "LayerNorm"):
    print(f"{kind:10} {returned[kind].dtype}")
print(f"{'the loss':10} {total.dtype}")
for hook in hooks:
    hook.remove()

# %% [markdown]
# The library computes all losses in fp32, autocast or not. And the gradient? Its direction is what a step follows:

# %%
exact = gradient(baseline, batch)
with torch.autocast("cpu", dtype=torch.bfloat16):
    coarse = gradient(baseline, batch)
assert {weight.grad.dtype for weight in baseline.parameters()} == {torch.float32}
assert torch.cosine_similarity(exact, coarse, dim=0) > 0.98
assert not torch.equal(exact, coarse)

# %% [markdown]
# ### channels_last: the same numbers, in another order
#
# An image is $(B, 3, H, W)$ for whoever reads the code. In memory either $W$ or the channel can be the direction in which neighbours lie side by side. Convolution kernels
# for tensor cores want the channel; with the usual layout they copy first. The shape stays, the *strides* change:

# %%
images = batch["image"]
as_nhwc = images.contiguous(memory_format=torch.channels_last)
print("usual strides        ", images.stride())
print("channels_last strides", as_nhwc.stride())
assert torch.equal(images, as_nhwc)

# %%
other = copy.deepcopy(baseline).to(memory_format=torch.channels_last)
nhwc = {**batch, "image": as_nhwc}
assert same(gradient(other, nhwc), exact, within=1e-4)

# %% [markdown]
# It helps networks of convolutions, and hardly those whose convolutions have a group for each task; the chapters' recipes switch it on where it
# was measured to help on a CPU.
#
# ### Accumulation: the same gradient, if
#
# Four images do not fit? Take two and two, add up the gradients, then step. The gradient of a mean is the mean of the gradients, so nothing changes, *if* the loss is a mean in which
# both parts weigh the same, *and* the images do not see each other. We take double precision and tasks whose every pixel counts, so that any difference is real. Two of our eight images at a time:

# %%
counted = tasks.subset("semseg", "human_parts", "normals", "depth", "edge")
all_valid = {
    "image": batch["image"].double(),
    "semseg": batch["semseg"] % 15,
    "human_parts": batch["human_parts"] % 7,
    "normals": F.normalize(batch["normals"].double() + 0.01, dim=1),
    "depth": batch["depth"].double().clamp(min=1),
    "edge": batch["edge"].double().clamp(max=1),
}
torch.manual_seed(0)
training = me.build_model("baseline_vit_nano", counted, (64, 64)).double()
frozen = copy.deepcopy(training).eval()  # BatchNorm uses stored statistics


# %%
def part(batch, first, size):
    return {name: values[first : first + size] for name, values in batch.items()}


def accumulated(model, batch, parts):
    size, total = len(batch["image"]) // parts, 0
    for first in range(0, parts * size, size):
        total = total + gradient(model, part(batch, first, size), counted)
    return total / parts


# %%
for words, network, within in (
    ("BatchNorm frozen", frozen, 1e-9),
    ("BatchNorm in training", training, 1e-2),
):
    whole = gradient(network, all_valid, counted)
    equal = same(accumulated(network, all_valid, 4), whole, within)
    print(f"{words}: same gradient {equal}")

# %% [markdown]
# BatchNorm makes the images of a batch see each other: it subtracts the mean over all of them, and a part has another mean than the whole. In training, accumulation
# therefore saves memory and gives a *similar* gradient. Keep in mind both conditions. They come back, letter for letter, with several processes.
#
# ### Checkpointing: forget, and compute again
#
# A checkpointed block keeps its input only {cite}`chen2016training`. When its gradient is due, its forward pass runs once more. A step goes four ways instead of three, a third more time, and memory holds
# one block's inner values at a time. The gradient is the same to the bit, for the second pass draws the same random numbers as the first.

# %%
from mlore_edu.training.recompute import checkpoint_activations

torch.manual_seed(0)
generous = me.build_model("mlore_vit_nano", tasks, (64, 64), drop_path_rate=0.15)
frugal = copy.deepcopy(generous)
units = checkpoint_activations(frugal.train())
assert torch.equal(gradient(frugal, batch), gradient(generous.train(), batch))

# %%
networks = generous, frugal
before, after = (kept_for_the_way_back(n, batch).total() for n in networks)
print(f"{len(units)} units keep less: 1/{before / after:.0f} of the bytes")

# %% [markdown]
# There is a trap, and it makes no noise. Everything that a forward pass does besides returning a value is done twice, and BatchNorm does something: it moves its running mean. Here is a head,
# checkpointed as PyTorch's documentation shows.

# %%
from torch.utils.checkpoint import checkpoint

model.heads["depth"].norm.reset_running_stats()
head, naive = (copy.deepcopy(model.heads["depth"]) for _ in range(2))
features = torch.randn(2, head.mix.in_channels, 32, 32, requires_grad=True)
head(features).sum().backward()
checkpoint(naive, features, use_reentrant=False).sum().backward()

# %%
for a, b in zip(head.parameters(), naive.parameters(), strict=True):
    assert torch.equal(a.grad, b.grad)  # the gradient is right
counts = (int(one.norm.num_batches_tracked) for one in (naive, head))
print("one batch, counted: {} instead of {}".format(*counts))
moved = naive.norm.running_mean / head.norm.running_mean
print(f"the running mean moved {moved.median():.1f} times as far")

# %% [markdown]
# With momentum 0.1 the running mean moves by a tenth of the way, and then by a tenth of the rest: 1.9 tenths in all. No loss and no gradient would ever show it, since in training BatchNorm does not
# use these numbers. Evaluation does, and finds an average over half as many batches. The library holds the statistics still during the second pass, and so agrees with a network that was never
# checkpointed:

# %%
for kept_statistic, other in zip(frugal.buffers(), generous.buffers(), strict=True):
    assert torch.equal(kept_statistic, other)

# %% [markdown]
# ### A fused optimiser: fewer calls
#
# Adam is a dozen operations on every tensor of weights, and a GPU is told of each operation by a call that costs some microseconds, however small the tensor. PyTorch can do all tensors
# of one operation together (its default on a GPU), or everything in one *fused* kernel. A listener counts what is asked for:

# %%
from torch.utils._python_dispatch import TorchDispatchMode


class Calls(TorchDispatchMode):
    """Count the operations that PyTorch is asked for."""

    count = 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        self.count += 1
        return operation(*args, **(kwargs or {}))


# %%
def three_updates(**how):
    """A network after three steps of Adam along given gradients and its calls."""
    twin, chance = copy.deepcopy(model), torch.Generator().manual_seed(0)
    adam = torch.optim.Adam(twin.parameters(), 1e-3, weight_decay=1e-6, **how)
    for _ in range(3):
        for weight in twin.parameters():
            weight.grad = torch.randn(weight.shape, generator=chance)
        with Calls() as listener:
            adam.step()
    return twin, listener.count


# %%
one_by_one, many = three_updates(foreach=False)
fused, few_calls = three_updates(fused=True)
for a, b in zip(one_by_one.parameters(), fused.parameters(), strict=True):
    torch.testing.assert_close(a, b)
print(len(list(model.parameters())), "tensors of weights")
print("one by one: more than a thousand calls:", many > 1000)
print("fused: fewer than ten:", few_calls < 10)

# %% [markdown]
# ### EMA: judge a smoother model
#
# Beside the weights $\boldsymbol\theta_i$ that are trained, keep a copy that follows them slowly,
#
# ```{math}
# :label: eq-16-ema
# \bar{\boldsymbol\theta}_i = \beta\, \bar{\boldsymbol\theta}_{i-1} + (1 - \beta)\, \boldsymbol\theta_i ,
# ```
#
# and evaluate the copy. In the words of signal processing it is a low-pass filter: a change arrives with weight $1-\beta^n$ after $n$ steps, so its memory is about $1/(1-\beta)$ steps long ({numref}`fig-16-ema`).

# %%
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

torch.manual_seed(0)
walk = torch.linspace(0, 1, 400).sqrt() + 0.15 * torch.randn(400)


def filtered(walk, beta):
    values = [walk[0]]
    for value in walk[1:]:
        values.append(beta * values[-1] + (1 - beta) * value)
    return torch.stack(values)


# %%
single = nn.Linear(1, 1, bias=False)
average = AveragedModel(single, multi_avg_fn=get_ema_multi_avg_fn(0.9))
for value, ours in zip(walk, filtered(walk, 0.9)):
    single.weight.data.fill_(value)
    average.update_parameters(single)
    torch.testing.assert_close(average.module.weight.squeeze(), ours)

# %% mystnb={"figure": {"name": "fig-16-ema", "caption": "A weight that drifts and jitters (made up), and two averages of it. The longer memory is smoother and later: it lags behind as long as there is a drift."}, "image": {"alt": "A noisy grey curve that rises like a square root, with an orange curve that follows it with small waves and a smoother blue one that runs below it on the steep part and joins it where it flattens."}}
figure, axis = plt.subplots(figsize=(7.5, 2.4))
axis.plot(walk, color="0.8", label="trained weight")
for beta, colour in ((0.9, orange), (0.98, blue)):
    axis.plot(filtered(walk, beta), color=colour, label=f"average, β = {beta}")
axis.set(xlabel="step", ylabel="value", xlim=(0, 400))
_ = axis.legend()

# %% [markdown]
# With a rate that falls to zero the weights settle by themselves, so the average has less to smooth at the end than in the middle. None of the papers mentions one; `ema` is 0 unless you ask, and a result with it is *another* result. Then
# every evaluation, the checkpoint's `model.safetensors` and the reported numbers are the average's.
#
# ### torch.compile: read first, then run
#
# PyTorch runs Python line by line, a kernel for each operation. `torch.compile` runs a function once with stand-ins that write down what was asked, and hands the list to a
# *backend*, which may merge neighbours into one kernel. A backend is a function, so we can look over its shoulder:


# %%
def last_lines(x, weight):
    x = x @ weight
    return F.gelu(x) * 2 + 1


captured = []


def onlooker(graph, inputs):
    captured.extend(node.name for node in graph.graph.nodes)
    return graph.forward  # as it came


# %%
x, weight = torch.randn(4, 8), torch.randn(8, 8)
compiled = torch.compile(last_lines, backend=onlooker)
assert torch.equal(compiled(x, weight), last_lines(x, weight))
print(" → ".join(captured[2:]))

# %% [markdown]
# The real backend would make one kernel of the last three, and read and write memory once instead of three times. It rounds differently, draws the random numbers of drop path from a generator of its own, needs a first step that can take minutes, and
# compiles again for every new shape, which is a good reason for one crop size. Nothing was compiled for a GPU here; the tests compile small models with backends that make no kernels.
#
# ### What the options make of the memory
#
# Of these, two save memory. The rehearsal knows both ({numref}`fig-16-options`):

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-16-options", "caption": "Estimated memory of MLoRE at 512×512, batch 4, with the options that save some. bf16 leaves weights, gradients and optimiser in fp32 and shrinks what is kept; checkpointing forgets most of it."}, "image": {"alt": "Two groups of four horizontal stacked bars, ViT-B and ViT-L: as it is, bf16, checkpointing, both. The piece kept for the way back shrinks from bar to bar, the others stay."}}
from mlore_edu.training.budget import Budget

profile_record = json.loads((RESULTS / "training_profile.json").read_text())
rows = {
    f"{SHOWN[name]}, {words.replace('--', '')}": Budget(**budget)
    for name, variants in profile_record["budgets"].items()
    for words, budget in variants.items()
}
figure, axis = plt.subplots(figsize=(7.5, 3.3))
stack(axis, rows.values(), rows)
axis.set_xlim(0, 1.1 * max(row.peak for row in rows.values()) / 2**30)
_ = figure.legend(loc="outside upper center", ncols=4, fontsize=9)

# %% [markdown]
# ## Many processes
#
# Several GPUs are several *processes*: the same program, started once for each GPU, on the same model, each with its share of every batch. They agree on one thing per step, the
# gradient. All of data-parallel training needs one operation: **all-reduce**, after which every process holds the sum of what all of them held.
#
# We have no GPUs, so our processes are two threads, and the network between them is a mailbox for each.

# %%
R = 2  # processes
mail = [queue.Queue() for _ in range(R)]
here = threading.local()  # here.rank: the number of the process that asks


def all_reduce(tensor):
    """Add up a tensor over both processes, in place."""
    mail[1 - here.rank].put(tensor.clone())
    tensor += mail[here.rank].get()


# %% [markdown]
# And this is distributed data parallel, **DDP**, whole: compute your own gradient, add up, divide.


# %%
def process(rank, model, batch, chosen, gradients):
    here.rank = rank
    replica = copy.deepcopy(model)
    mean = gradient(replica, batch, chosen)
    all_reduce(mean)
    gradients[rank] = mean / R


# %%
def launch(model, batches, chosen=counted):
    """Run one process per batch; return their gradients."""
    gradients = [None] * R
    crew = [
        threading.Thread(target=process, args=(r, model, b, chosen, gradients))
        for r, b in enumerate(batches)
    ]
    for act in (threading.Thread.start, threading.Thread.join):
        for thread in crew:
            act(thread)
    return gradients


# %% [markdown]
# The test of a good parallelisation: *two processes with half the batch learn what one learns with the whole.* Four images each, and as before BatchNorm frozen first. (Within double precision's rounding, that is; in training an agreement of one part in a hundred would do.)

# %%
halves = [part(all_valid, 0, 4), part(all_valid, 4, 4)]
for words, network, within in (
    ("BatchNorm frozen", frozen, 1e-9),
    ("BatchNorm in training", training, 1e-2),
):
    first, second = launch(network, halves)
    assert torch.equal(first, second)  # agreed, whether right or wrong
    whole = gradient(network, all_valid, counted)
    print(f"{words}: same as one process {same(first, whole, within)}")

# %% [markdown]
# On a network between GPUs the mailbox is a *ring* {cite}`patarasuk2009bandwidth`: every process passes pieces to its
# neighbour, twice around, and sends $2(R-1)/R$ times the gradient in all, less than twice, however many take part. DDP
# {cite}`li2020distributed` starts to send while the way back is still under way. How much is it?

# %%
size = budgets["pascal_mlore_vit_base"].gradients / 2**30
for world in (2, 4):
    sent = 2 * (world - 1) / world * size
    print(f"{world} processes: each sends {sent:.1f} GiB in every step")

# %% [markdown]
# Links between the GPUs of one machine carry hundreds of gigabytes a second, and nobody notices. Between machines on an
# ordinary network of 10 Gbit/s it takes half a second and more, several times as long as the arithmetic of the step in
# bf16: two such machines can be slower than one.
#
# ### BatchNorm must know of the others
#
# It is the second condition again. With four processes of one image each it would normalise every image by itself. So BatchNorm has to be **synchronised**: with the pixels
# of all processes, $n$ in all, it uses
#
# ```{math}
# :label: eq-16-sync
# \mu = \frac{1}{n} \sum_{r=1}^{R} \sum_{i \in \mathcal{P}_r} x_i, \qquad
# \sigma^2 = \frac{1}{n} \sum_{r=1}^{R} \sum_{i \in \mathcal{P}_r} (x_i - \mu)^2 ,
# ```
#
# where $\mathcal{P}_r$ are the pixels of process $r$. Each inner sum is computed at home, each outer one is an all-reduce. The way back needs the same: a pixel here has moved the mean there, so the gradient of a sum over
# processes is again a sum over processes.


# %%
class AddUp(torch.autograd.Function):
    @staticmethod
    def forward(_, x):
        total = x.clone()
        all_reduce(total)
        return total

    @staticmethod
    def backward(_, gradient):
        return AddUp.apply(gradient)


# %%
def synchronised(norm, x):  # (B, C, H, W)
    own = x.transpose(0, 1).flatten(1)  # (C, B·H·W)
    n = R * own.shape[1]
    mean = AddUp.apply(own.sum(1)) / n  # (C,)
    variance = AddUp.apply((own - mean[:, None]).square().sum(1)) / n  # (C,)
    per_channel = (mean, variance, norm.weight, norm.bias)
    mean, variance, scale, shift = (v[:, None, None] for v in per_channel)
    return (x - mean) / (variance + norm.eps).sqrt() * scale + shift


# %%
def with_norms(model, function):
    """A copy whose BatchNorms compute by the given function."""
    twin = copy.deepcopy(model)
    for norm in twin.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.forward = partial(function, norm)
    return twin


# %%
first, _ = launch(with_norms(training, synchronised), halves)
assert same(first, whole)

# %% [markdown]
# Nine digits agree, where not two did before. The library's `synchronised_batch_norm`, which its tests on two CPU processes use in place of PyTorch's `SyncBatchNorm` for GPUs, is the same
# function and keeps the running statistics too. We lend it our all-reduce:

# %%
ours = patch.object(distributed.dist, "all_reduce", all_reduce)
two = patch.object(distributed, "world_size", lambda: R)
theirs = with_norms(training, distributed.synchronised_batch_norm)
with ours, two:
    library, _ = launch(theirs, halves)
assert same(library, whole)

# %% [markdown]
# ### Pixels that do not count
#
# The first condition is left, and it is not mended. DDP takes the *mean of means*. If process 1 has $v_1$ valid pixels for a task and process 2 has $v_2$, a pixel of the first weighs
# $1/(2v_1)$ and not $1/(v_1+v_2)$. Human parts make it plain, for an image without a person counts nowhere at all (chapter 15):

# %%
parts = tasks.subset("human_parts")
people = {name: all_valid[name].clone() for name in ("image", "human_parts")}
people["human_parts"][4:] = 255  # nobody on the second process's images
torch.manual_seed(0)
finder = me.build_model("baseline_vit_nano", parts, (64, 64)).double().eval()

# %%
alone = gradient(finder, people, parts)
shared, _ = launch(finder, [part(people, 0, 4), part(people, 4, 4)], parts)
share = (shared.norm() / alone.norm()).item()
print(f"on two processes, parts learn with {share:.2f} of the gradient")

# %% [markdown]
# On one GPU the person's pixels are the whole mean; on two they are half of it. With an image a process and four processes, a person alone in the batch
# weighs a quarter. Over many steps a task whose labels are rare is held back, and *one GPU with four images is not quite four GPUs with one*. The
# remedy, dividing by the number of all processes' valid pixels, is {numref}`ex-16-fair`. The library does as DDP does; that no paper says which it had is one more reason to report the number of GPUs.
#
# Third, whatever else looks at a batch as a whole sees its own part only: the balance loss of MLoRE's routers (chapter 4), and the class frequencies in the loss of saliency. That drop path and routing noise
# draw other numbers on every process, on the other hand, is wanted: on one they differ between the images, too.
#
# ### The batch stays 4
#
# In this book a batch is counted over all processes, so that a recipe means the same on one GPU and on four. Which images are in batch $n$, and how they are augmented, follows from the seed and the number of the draw alone; process $r$ takes
# its piece of the list:

# %%
alone = batch_draws(count=100, batch_size=4, iteration=7)
by_two = [batch_draws(100, 2, 7, rank=rank, world_size=2) for rank in range(2)]
assert alone == by_two[0] + by_two[1]

# %% [markdown]
# Some libraries fix the batch *per GPU* instead; then every machine trains another recipe, with another noise in its gradients, and the learning rate would have to follow. Here, eight GPUs with four images are
# a mistake that is named:

# %%
from mlore_edu.training.engine import Training

tiny = Training(copy.deepcopy(model), replace(nano, batch_size=4), CPU)
try:
    with patch.object(distributed, "world_size", lambda: 8):
        tiny.loader(scenes)
except UserError as error:
    print(fill(str(error), 84, break_on_hyphens=False))

# %% [markdown]
# ### Who am I?
#
# `torchrun` starts the processes and tells each through environment variables who it is. `RANK` counts over all machines, `LOCAL_RANK` within one ({numref}`fig-16-ranks`).
# A process takes the GPU of its *local* rank. Code that takes `RANK` works on one machine and fails on the second, for want of a GPU of that number.


# %%
def draw_ranks(machines, gpus):
    """Machines as frames, processes as boxes, with what torchrun tells them."""
    size = (7.5, 1.1 * machines + 0.1)
    figure = plt.figure(figsize=size, layout="none")
    axis = figure.add_axes((0, 0, 1, 1), xlim=(0, 7.5), ylim=(size[1], 0))
    axis.axis("off")
    share = 4 / (machines * gpus)
    width = 6.4 / max(gpus, 2)
    images = f"{share:g} of 4 images" if share == int(share) else "4 images? no"
    for machine in range(machines):
        y = 0.08 + 1.1 * machine
        frame = plt.Rectangle(
            (0.95, y), width * gpus + 0.08, 1, fc="0.95", ec="0.6"
        )
        axis.add_patch(frame)
        axis.text(0.08, y + 0.5, f"machine {machine}", va="center", fontsize=9)
        for gpu in range(gpus):
            x, rank = 1.03 + width * gpu, machine * gpus + gpu
            colour = red if rank == 0 else "0.3"
            box = plt.Rectangle(
                (x, y + 0.08), width - 0.08, 0.84, fc="white", ec=colour
            )
            axis.add_patch(box)
            says = f"RANK {rank}\nLOCAL_RANK {gpu}\ncuda:{gpu}, {images}"
            style = {"ha": "center", "va": "center", "fontsize": 8.5}
            axis.text(x + width / 2 - 0.04, y + 0.5, says, color=colour, **style)


# %% tags=["nbval-ignore-output"]
from ipywidgets import IntSlider, interact


def explore(machines, gpus):
    draw_ranks(machines, gpus)
    plt.show()


_ = interact(explore, machines=IntSlider(2, 1, 3), gpus=IntSlider(2, 1, 4))

# %% mystnb={"figure": {"name": "fig-16-ranks", "caption": "Two machines with two GPUs each. Red: the process that writes files and prints. The GPU's number is the local rank; on the second machine the rank would point past the last GPU."}, "image": {"alt": "Two frames, one for each machine, with two boxes of text each. The ranks are 0 and 1 above, 2 and 3 below; the local ranks are 0 and 1 in both; every process has one of four images."}}
draw_ranks(2, 2)

# %% [markdown]
# ### Judging together
#
# Evaluation is shared out as well, and here a common shortcut tells a lie. PyTorch's `DistributedSampler` gives all processes equally many images, and if that does not work out it repeats some. Five images, two processes:

# %%
from torch.utils.data import DistributedSampler

five = DollhouseScenes(5, 64, "easy", transform=eval_transform(64))
samplers = [DistributedSampler(five, 2, rank, shuffle=False) for rank in range(2)]
print("DistributedSampler:", sorted([*samplers[0], *samplers[1]]))

# %%
seen = []
for rank in range(2):
    loader = make_loader(five, 2, train=False, rank=rank, world_size=2)
    seen += [meta["id"] for one in loader for meta in one["meta"]]
assert sorted(seen) == sorted(five.ids)  # every image once

# %% [markdown]
# Nor may one average the processes' numbers. mIoU pools its counts over the data set; the mean of two mIoU is something else. Every meter of chapter 2 can therefore `merge`, and what
# travels is counts.

# %%
truth = torch.stack([five[i]["semseg"] for i in range(5)])  # (5, 64, 64)
torch.manual_seed(0)
guess = truth.where(torch.rand(truth.shape) < 0.7, 1)  # wrong at 30 %
whole_meter, *meters = (me.MeanIoU(15) for _ in range(3))
whole_meter.update(guess, truth)
for rank, meter in enumerate(meters):
    meter.update(guess[rank::2], truth[rank::2])

# %%
mean = np.mean([meter.compute() for meter in meters])
pooled = whole_meter.compute()
assert meters[0].merge(meters[1]).compute() == pooled
print("the mean of the two is the mIoU:", bool(abs(mean - pooled) < 0.01))

# %% [markdown]
# ### Launching
#
# One GPU, four GPUs of one machine, two machines with two each (the same line on both):
#
# ```console
# mlore-edu train pascal_mlore_vit_base --precision bf16
#
# torchrun --standalone --nproc-per-node 4 -m mlore_edu train \
#     pascal_mlore_vit_base --precision bf16
#
# torchrun --nnodes 2 --nproc-per-node 2 --rdzv-backend c10d \
#     --rdzv-endpoint FIRST_MACHINE:29500 -m mlore_edu train \
#     pascal_mlore_vit_base --precision bf16 --run-folder /shared/runs/mlore
# ```
#
# (The recipe itself is in fp32, as far as anyone knows; with bf16 it is another one. `--run-folder` is `--run`, a name which torchrun keeps for itself.) On several machines the run folder must lie on a disk that all of them see. Only rank 0 writes, but all read the checkpoint when a run goes on, and those that find another one than the
# rest stop with a sentence that says so.
#
# Processes die: a machine is taken away, memory runs out. `torchrun` can start all of them anew, and since a run goes on from its last checkpoint by itself, that is all there is to elastic training:
#
# ```console
# TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 torchrun --standalone --max-restarts 3 \
#     --nproc-per-node 4 -m mlore_edu train pascal_mlore_vit_base
# ```
#
# The variable is no decoration. Without it the restarted processes may read the address at which the dead ones met, and wait there or be refused (PyTorch's issue 135712; we saw *connection refused*). Starting real processes takes too long for a
# notebook. `tests/test_distributed_training.py` does it: two processes, gradients of all decoders equal to one process with both batches (the routers' noise and balance switched off); metrics of five images on two processes, none twice; and the main process killed in the middle
# with `SIGKILL`, restarted, and the outcome equal to an unbroken run bit for bit. On CPUs; several GPUs we have not had.
#
# ## Where the time goes
#
# Before making anything faster, measure. PyTorch's profiler listens to every operation; names that we give to stretches of the program appear among them.

# %%
from torch.profiler import ProfilerActivity, profile, record_function


def one_step(network, adam):
    with record_function("forward"):
        output = network(batch["image"])
        total, _ = criterion(output.predictions, batch)
    with record_function("backward"):
        total.backward()
    with record_function("optimiser"):
        adam.step()
        adam.zero_grad()


# %%
one_of_ours = baseline, torch.optim.Adam(baseline.parameters(), 1e-3)
one_step(*one_of_ours)  # warm up
with profile(activities=[ProfilerActivity.CPU]) as listener:
    one_step(*one_of_ours)
events = {event.key: event for event in listener.key_averages()}
there, back = (events[f"aten::convolution{s}"].count for s in ("", "_backward"))
print(f"{there} convolutions there, {back} on the way back")

# %% mystnb={"figure": {"name": "fig-16-profile", "caption": "The dearest operations in one training step of the baseline with the nano ViT, on the machine that made this page: share of the time, without what each calls in turn."}, "image": {"alt": "Eight horizontal bars with names of operations, the longest above. Convolutions and their way back, copies, products of matrices and resizing are among them."}}
operations = [event for name, event in events.items() if "::" in name]
operations.sort(key=lambda event: -event.self_cpu_time_total)
whole_step = sum(event.self_cpu_time_total for event in events.values())
figure, axis = plt.subplots(figsize=(7.5, 2.5))
shares = [100 * event.self_cpu_time_total / whole_step for event in operations[:8]]
axis.barh([event.key.split("::")[-1] for event in operations[:8]], shares)
axis.set(xlabel="share of the step (%)")
axis.invert_yaxis()

# %% [markdown]
# Times as short as those of {numref}`fig-16-profile` change from run to run. For a model of useful size `book/results/make_training_profile.py` took the step apart at its joints, backbone, decoder, heads and loss, each there and back, and measured processor time on one core of the
# machine that this book was written on.

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-16-shares", "caption": "Where one CPU core spends a training step of MLoRE with ViT-S at 256×256: shares of the step, there and back. Reading and augmenting the two images is drawn on the same scale."}, "image": {"alt": "Horizontal bars. For backbone, decoder and heads a shorter bar there and a longer one back; the decoder's way back is by far the longest of all, the loss, the optimiser and the loading are hardly visible."}}
step = profile_record["step"]
names = ("backbone", "decoder", "heads", "loss")
figure, axis = plt.subplots(figsize=(7.5, 2.9))
for y, name in enumerate(names):
    there, back = (
        100 * step["shares"][f"{way} {name}"] for way in ("forward", "backward")
    )
    axis.barh(y, there, color=sky, label="there" if y == 0 else None)
    axis.barh(y, back, left=there, color=blue, label="back" if y == 0 else None)
    axis.text(
        there + back + 0.6,
        y,
        f"{there:.0f} + {back:.0f} %" if back > 1 else f"{there + back:.1f} %",
        va="center",
        fontsize=9,
    )
rest = {
    "optimiser": step["shares"]["optimizer"],
    "reading, augmenting": sum(step["loading"].values()),
}
for y, share in enumerate(rest.values(), len(names)):
    axis.barh(y, 100 * share, color="0.5")
    axis.text(100 * share + 0.6, y, f"{100 * share:.1f} %", va="center", fontsize=9)
axis.set(
    yticks=range(6), yticklabels=(*names, *rest), xlabel="share of the step (%)"
)
axis.invert_yaxis()
_ = axis.legend()

# %% [markdown]
# The decoder is what this book is about, and it is where the time goes ({numref}`fig-16-shares`). On a GPU the picture will be another, for two reasons that can be computed. One is arithmetic, which a GPU does hundreds of times faster; the other is the
# *number* of operations, each of which has to be asked for. {numref}`fig-16-parts` counts both.

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-16-parts", "caption": "The papers' models at 512×512. Left: multiply-accumulates of one image by part. Right: operations asked for in one training step, there (pale) and back (dark); views are not counted, and the optimiser is left out."}, "image": {"alt": "Two groups of horizontal bars for eleven models. Left, stacked bars of backbone, decoder and heads, from less than a hundred to nearly eight hundred. Right, seven hundred to three thousand operations a step, the baseline the fewest and MLoRE with ViT-S the most."}}
chosen = {
    **SHOWN,
    "pascal_tif_hrnet18": "TIF HRNet18",
    "pascal_baseline_vit_base": "baseline ViT-B",
}
models = profile_record["models"]
figure, (left_axis, right_axis) = plt.subplots(
    1, 2, figsize=(7.5, 3.7), sharey=True
)
for y, name in enumerate(chosen):
    left = 0
    for part_name, colour in zip(
        ("backbone", "decoder", "heads"), (blue, orange, green)
    ):
        size = models[name]["macs"][part_name] / 1e9
        label = part_name if y == 0 else None
        left_axis.barh(y, size, left=left, color=colour, label=label)
        left += size
    asked = models[name]["calls"]
    for start, size, colour in (
        (0, asked["forward"], sky),
        (asked["forward"], asked["backward"], blue),
    ):
        right_axis.barh(y, size / 1000, left=start / 1000, color=colour)
left_axis.set(
    yticks=range(len(chosen)),
    yticklabels=chosen.values(),
    xlabel="10⁹ multiply-accumulates",
)
right_axis.set(xlabel="thousands of operations")
left_axis.invert_yaxis()
_ = figure.legend(loc="outside upper center", ncols=3, fontsize=9)

# %% [markdown]
# Asking costs the CPU some microseconds; say ten, with Python and autograd in between. If the GPU is done before the next operation has been asked for, it waits, and no tensor core helps. MLoRE with ViT-S asks for more
# than with ViT-B, since at its width the library merges the experts anew for every image and task (chapter 5): fewer multiplications, in more pieces. For each model, the time of its arithmetic
# in bf16 at the assumed rate, divided by the time of asking:

# %%
for name, title in chosen.items():
    its, asked = find_recipe(name), models[name]["calls"]
    arithmetic = (
        6 * sum(models[name]["macs"].values()) * its.batch_size / SUSTAINED["bf16"]
    )
    asking = 10e-6 * (asked["forward"] + asked["backward"])
    print(f"{title:16} {arithmetic / asking:4.1f}")

# %% [markdown]
# Near 1 or below, the GPU is likely to be kept waiting by Python: that befalls the small models. They should gain most from `--compile`, which asks for fewer and larger things; a large one is held up by its
# arithmetic, and gains from bf16. Both rates that went in are assumptions. This is a guess to be tested, and {ref}`the command below <not-run>` tests it.
#
# ### Is the loader fast enough?
#
# The other one who can keep a GPU waiting is the loader. `benchmarks/loading.py` measured what one core reads and augments, for images of the data sets' usual sizes, and sets it beside what MLoRE with ViT-B would consume at two rates, both above
# the 80 assumed before: a loader should not be sized for a pessimist's GPU.

# %%
loading = json.loads((RESULTS / "loading.json").read_text())["data"]
print("cores that keep one GPU busy     ordinary   augment_on_gpu")
for name, found in loading.items():
    core = found["loading"]["images_per_second_and_core"]
    eats = found["training"]["mlore_vit_base"]["images_per_second_at_tflops"]
    for tflops, rate in eats.items():
        ordinary, reading = rate / core["augmenting"], rate / core["reading"]
        print(f"{name:15} at {tflops:>3} Tflop/s {ordinary:11.1f} {reading:14.1f}")

# %% [markdown]
# Rented machines often come with few cores for each GPU. About half of a core's work is augmentation, scaling and colouring large images, which a GPU does in passing. With
# `--augment-on-gpu` the loading processes only read; what they have read goes to the GPU as one block of bytes and is augmented there, one batch ahead of the step, with the same transform and the same chance. The batches are the same. On a CPU, to the last bit:

# %%
usual = make_loader(scenes, 4, train=True, seed=5)
moved = make_loader(scenes, 4, train=True, seed=5, device=CPU)
for _, one, other in zip(range(3), usual, moved):
    assert all(torch.equal(one[n], other[n]) for n in ("image", *tasks.names))

# %% [markdown]
# On a GPU a resized image may round otherwise, by one of its 255 levels.

# %% [markdown]
# ## Launch, watch, resume
#
# Now a run, whole. Data first, and a recipe shortened so that it fits on this page; `start` is `mlore-edu train` with the progress bar and the choice of device taken out.

# %%
from mlore_edu.training import checkpoint as checkpoints
from mlore_edu.training.engine import fit
from mlore_edu.training.setup import make_datasets, make_model

REPOSITORY, started_in = Path("../..").resolve(), os.getcwd()
place = tempfile.TemporaryDirectory()
os.chdir(place.name)  # the notebook writes nothing outside of this folder
write_dollhouse("data/dollhouse_64", size=64, train=32, val=3, progress=False)
short = {"batch_size": 4, "workers": 0, "log_interval": 1, "pictures": 2}
toy = replace(nano, iterations=10, checkpoint_interval=4, **short)


# %%
def start(recipe, run, device=CPU):
    """Begin a run or go on with it; the metrics of its last iteration."""
    checkpoints.seed_everything(recipe.seed)
    train_set, validation_set = make_datasets(recipe)
    validation_set.ids = validation_set.ids[:16]  # enough for this page
    given = (make_model(recipe), train_set, validation_set, recipe, Path(run))
    return fit(*given, device=device, progress=False)


unbroken = start(toy, "runs/unbroken")

# %% [markdown]
# The same run once more; this time somebody presses Ctrl-C while step 6 is being computed.

# %%
step_of_the_library = Training.step


def ctrl_c_in_step_six(self, batch):
    if self.iteration == 5:
        os.kill(os.getpid(), signal.SIGINT)
    return step_of_the_library(self, batch)


# %%
said = io.StringIO()
try:
    with patch.object(Training, "step", ctrl_c_in_step_six), redirect_stderr(said):
        start(toy, "runs/broken")
except KeyboardInterrupt as interruption:
    print(said.getvalue().strip())
    print(fill(str(interruption), 84))

# %% [markdown]
# The step was finished, everything was saved, and the sentence says what to do. So we do it.

# %%
import safetensors.torch

from mlore_edu.training.run_folder import read_log

assert start(toy, "runs/broken") == unbroken  # every metric, every digit


def content(run):
    """The weights, and the log without the speed."""
    weights = Path(f"runs/{run}/checkpoints/000010/model.safetensors")
    log = read_log(Path(f"runs/{run}/log.jsonl"))
    without_speed = [{**entry, "images_per_second": 0} for entry in log]
    return safetensors.torch.load_file(weights), without_speed


# %%
(weights, log), (other_weights, other_log) = content("unbroken"), content("broken")
assert all(torch.equal(weights[name], other_weights[name]) for name in weights)
assert log == other_log

# %% [markdown]
# From the result nobody can tell which of the two was interrupted. That takes more than saving the weights. Whatever a step depends on is either in the checkpoint, weights, BatchNorm's statistics, the optimiser's
# means, the loss scale and the state of every random generator, or it is a function of the step's number: learning rate, batch, augmentation. Nothing remains that could be lost.
#
# A power cut in the middle of writing loses nothing either, since a checkpoint is written under another name, pushed to the disk, and only then renamed. On a GPU *equal* means equal but for the last digits: some of its kernels add up in whatever order
# their threads arrive, and two unbroken runs differ as well.
#
# ### What is in the folder

# %%
for path in sorted(Path("runs/broken").rglob("*")):
    if path.is_file():
        print(path.relative_to("runs"))

# %% [markdown]
# `recipe.json` is the run's identity, `versions.json` the software, the hardware, the commit and the command. `metrics.json` appears when the run is complete. The last two checkpoints are kept. The weights are a *safetensors* file, plain numbers that can be shared without trusting
# anybody; the rest of the checkpoint can be loaded without executing code as well. And `log.jsonl` grows by one line for every `log_interval`, so `tail -f` watches a run. So shall we.
#
# This function chooses what the machine at hand can train: with CUDA and PASCAL-Context in place the paper's own recipe at its full size, though with the schedule squeezed into 200 steps
# and from random weights, else a toy.


# %%
def what_is_here():
    """A recipe that this machine can train in a minute or so, and where."""
    real = REPOSITORY / recipe.root
    if torch.cuda.is_available() and real.exists():
        brief = {"iterations": 200, "pretrained": False, "precision": "bf16"}
        brief |= {"log_interval": 5, "pictures": 2}
        return replace(recipe, root=str(real), **brief), torch.device("cuda")
    small = find_recipe("dollhouse_baseline_nano_64")
    return replace(small, iterations=60, **short), CPU


# %%
chosen_recipe, device = what_is_here()
metrics = start(chosen_recipe, "runs/watched", device)
assert set(metrics) == set(chosen_recipe.task_set.names)
steps = [e for e in read_log(Path("runs/watched/log.jsonl")) if "losses" in e]

# %% mystnb={"figure": {"name": "fig-16-log", "caption": "What log.jsonl tells of a run: the weighted loss, the length of the gradient before clipping with the limit of 10 (dashed), and the learning rate."}, "image": {"alt": "Three small charts over iterations. The loss falls from nearly forty to little more than ten, quickly at first; the gradient norm falls from a high start and jitters; the learning rate falls in an almost straight line to zero."}}
figure, axes = plt.subplots(1, 3, figsize=(7.5, 2.3))
for axis, key in zip(axes, ("loss", "gradient_norm", "learning_rate")):
    axis.plot([s["iteration"] for s in steps], [s[key] for s in steps], color=blue)
    axis.set(title=key, xlabel="iteration", ylim=0)
_ = axes[1].axhline(chosen_recipe.clip_norm, color="0.4", ls="--", lw=1)

# %%
losses = [entry["loss"] for entry in steps]
assert len(steps) == chosen_recipe.iterations / chosen_recipe.log_interval
assert np.isfinite(losses).all()
if device == CPU:  # the toy learns visibly
    assert np.mean(losses[-12:]) < 0.8 * np.mean(losses[:12])
os.chdir(started_in)
place.cleanup()

# %% [markdown]
# The paper's whole run is the line from above, `mlore-edu train pascal_mlore_vit_base`, started in the repository's folder after chapter 15's three commands. The number it reports is
# that of the **last** iteration. Its log looks like that of {numref}`fig-16-log`. To report the best of several evaluations instead would be to choose on the images that judge, as there is no third split.
#
# (not-run)=
# ## What was run, and what not
#
# ```{admonition} Without a GPU
# :class: warning
# The equalities above hold on CPUs and are tested there; memory and hours are estimates. Whether bf16 is faster and by how much, what compiling gains, how busy the GPU is, and how well the four
# decoders learn at 512×512: one command measures all of it, on one CUDA GPU.
#
# `python benchmarks/training.py`
#
# It writes its records to `book/results/`. The cells below show what is there when this page is made, and say so if nothing is.
# ```


# %%
def records(kind):
    """The records of one kind by recipe, as far as there are any."""
    paths = sorted(RESULTS.glob(f"gpu_{kind}_*.json"))
    return {p.stem[len(f"gpu_{kind}_") :]: json.loads(p.read_text()) for p in paths}


speed, learned = records("speed"), records("training")


# %%
def cell(row, key):
    return f"{'-':>8}" if row.get(key) is None else f"{row[key]:8.2f}"


keys = ("steps_per_second", "peak_gib", "busy_percent", "hours")
for name, its in speed.items():
    print(f"{name} on {', '.join(its['gpus']) or 'no GPU'}")
    print(f"{'':36} steps/s      GiB   busy %    hours")
    for words, row in its["settings"].items():
        print(f"{words:36}", *(cell(row, key) for key in keys))
if not speed:
    print("Speed and memory on a GPU: not run.")

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-16-gpu", "caption": "Training of the four decoders on Dollhouse at 512×512 on a GPU: each task's loss, averaged over its neighbours."}, "image": {"alt": "One small chart for each of six tasks with a falling curve for each of the four decoders."}}
if learned:
    figure, axes = plt.subplots(2, 3, figsize=(7.5, 4.2), sharex=True)
    for run, colour in zip(learned.values(), plots.OKABE_ITO):
        for axis, (name, losses) in zip(axes.flat, run["curve"]["losses"].items()):
            width = max(1, len(losses) // 40)
            smooth = np.convolve(losses, np.ones(width) / width, mode="valid")
            at = run["curve"]["iteration"][width - 1 :]
            axis.plot(at, smooth, color=colour, label=run["recipe"]["model"])
            axis.set(title=me.DOLLHOUSE[name].title, yscale="log")
            axis.tick_params(which="minor", labelleft=False)
    for axis in axes[1]:
        axis.set_xlabel("iteration")
    figure.legend(
        *axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=4
    )
else:
    print("The four decoders at 512×512: not run.")

# %%
for name, run in learned.items():
    print(name, {task: round(value, 2) for task, value in run["metrics"].items()})

# %% [markdown]
# ## Exercises
#
# Each check prints *correct*, or what is wrong and a hint.

# %%
from mlore_edu.exercises import ch16

# %% [markdown]
# ```{exercise} What will it cost?
# :label: ex-16-hours
# Write `hours(macs, batch, iterations, rate, checkpointing)`: the hours of a training by {eq}`eq-16-hours`, from the multiply-accumulates of one image's forward pass and the operations that
# the GPU keeps up in a second. With `checkpointing` the forward pass is done twice.
# ```


# %%
def hours(macs, batch, iterations, rate, checkpointing):
    return ...


_ = ch16.check_hours(hours)

# %% [markdown]
# ```{solution-start} ex-16-hours
# :class: dropdown
# ```
# There, back twice, and with checkpointing there again: three or four passes, two operations for each multiply-accumulate.


# %% jupyter={"source_hidden": true}
def hours(macs, batch, iterations, rate, checkpointing):
    passes = 4 if checkpointing else 3
    return 2 * passes * macs * batch * iterations / rate / 3600


_ = ch16.check_hours(hours)

# %% [markdown]
# ```{solution-end}
# ```
#
# ```{exercise} My part of the batch
# :label: ex-16-draws
# The draws of a run are numbered 0, 1, 2, … Iteration $n$ consists of the next `batch` of them, split among the processes in order of rank. Write `draws(iteration, batch, rank, world_size)`: the list of numbers for one process, or `None`
# if the batch cannot be split into equal parts.
# ```


# %%
def draws(iteration, batch, rank, world_size):
    return ...


_ = ch16.check_draws(draws)

# %% [markdown]
# ```{solution-start} ex-16-draws
# :class: dropdown
# ```


# %% jupyter={"source_hidden": true}
def draws(iteration, batch, rank, world_size):
    if batch % world_size:
        return None
    share = batch // world_size
    first = iteration * batch + rank * share
    return list(range(first, first + share))


_ = ch16.check_draws(draws)

# %% [markdown]
# ```{solution-end}
# ```
#
# ```{exercise} Statistics of all from statistics of each
# :label: ex-16-merge
# Process $r$ knows the mean and the variance (divided by the count, as BatchNorm does) of its own numbers. Write `merge(counts, means, variances)`: mean and variance of all numbers together. The counts may
# differ, and the three arguments are float64 tensors of shape $(R,)$. Do not average variances and forget that the means differ.
# ```


# %%
def merge(counts, means, variances):
    return ...


_ = ch16.check_merge(merge)

# %% [markdown]
# ```{solution-start} ex-16-merge
# :class: dropdown
# ```
# What a process's numbers scatter around the common mean is their own variance plus the square of the distance between the two means.


# %% jupyter={"source_hidden": true}
def merge(counts, means, variances):
    share = counts / counts.sum()
    mean = (share * means).sum()
    return mean, (share * (variances + (means - mean) ** 2)).sum()


_ = ch16.check_merge(merge)

# %% [markdown]
# ```{solution-end}
# ```
#
# ```{exercise} A fair loss
# :label: ex-16-fair
# DDP takes the mean of the processes' gradients. Write `fair(per_pixel, valid, valid_of_all, world_size)`: the loss that a process must return so that this mean is the gradient of the mean over all valid pixels of all processes. `per_pixel` and the mask `valid`
# are this process's, `valid_of_all` is the number of valid pixels on all of them (one all-reduce). It may be that no pixel counts here, or nowhere at all.
# ```


# %%
def fair(per_pixel, valid, valid_of_all, world_size):
    return ...


_ = ch16.check_fair(fair)

# %% [markdown]
# ```{solution-start} ex-16-fair
# :class: dropdown
# ```
# DDP will divide by the number of processes, so that number goes on top. Where nothing counts the sum is 0, and so must be the loss.


# %% jupyter={"source_hidden": true}
def fair(per_pixel, valid, valid_of_all, world_size):
    total = torch.where(valid, per_pixel, 0.0).sum()
    return world_size * total / max(valid_of_all, 1)


_ = ch16.check_fair(fair)

# %% [markdown]
# ```{solution-end}
# ```
#
# ## Takeaways
#
# - A recipe is the identity of a run. Of a paper's settings, few are stated, most are known from code only, and some are guesses; say which.
# - Memory is four terms, and the activations are the largest; both memory and arithmetic can be known before a GPU is rented.
# - bf16 needs no loss scaling because it has fp32's range; fp16 without it would lose most of the gradient of a dense loss.
# - Checkpointing and resuming are exact to the bit. channels_last and a fused optimiser round otherwise; compiling also draws other random numbers. Accumulation and several processes equal one
#   large batch under two conditions: BatchNorm must not see a part only, and pixels must weigh the same everywhere. The first is mended by synchronising, the second is not.
# - Measure before you speed up: arithmetic, the number of operations, and the loader are three different limits with three different remedies.
# - What a GPU makes of all this has to be measured on one. A single command does it; where it was not run, this page says so.
#
# You can now train any recipe of the book on one GPU, on several, or on two machines, know beforehand what to expect, and stop and resume at will.
# What the trained models are worth, beside the papers' tables, is the subject of [chapter 17](17_results_side_by_side.ipynb).
