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
# # Part I in five minutes
#
# **What can one picture tell, pixel by pixel; who says whether an answer is good; and what does it cost to ask one network for all of them?**
#
# ## In one sentence
#
# A picture has many answers at every pixel that constrain one another, one network can give them all in one pass, and which of two networks is
# better depends on the metric, the baseline and the seed before it depends on the network.
#
# *Before you start:* nothing. *Time:* 5 minutes of reading, ten seconds of running. *Hardware:* two CPU cores, 4 GB of memory; no GPU, no download.

# %% tags=["hide-input"]
import json
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch

import mlore_edu as me
from mlore_edu import plots, published
from mlore_edu.data.dollhouse_files import VALIDATION_SEEDS

plots.use_style()

# %% [markdown]
# ## One picture, six answers that agree
#
# **Labels of one scene are not independent.** In Dollhouse, the rendered rooms of this book, classes, body parts, saliency, normals, depth and
# boundaries come from one set of shapes. So one label can check another: the normals are the slope of the depth.

# %%
unseen = range(VALIDATION_SEEDS, VALIDATION_SEEDS + 20)
rooms = [me.scene(seed, 128, "easy") for seed in unseen]
room = max(rooms, key=lambda scene: (scene.human_parts > 0).sum())

# %%
v, u = np.mgrid[:128, :128] + 0.5 - 64  # from the middle of the image, (H, W)
focal = np.full_like(u, room.meta["focal"])
points = room.depth * np.stack([u, -v, -focal]) / focal  # (3, H, W)
down, right = np.gradient(points, axis=(1, 2))
normals = np.cross(down, right, axis=0)  # (3, H, W)
normals /= np.linalg.norm(normals, axis=0)
cosine = (normals * np.moveaxis(room.normals, -1, 0)).sum(axis=0)  # (H, W)
assert np.median(cosine) > 0.999

# %% [markdown]
# ## One encoder, many heads
#
# **A backbone looks once; a decoder makes a feature for each task; heads turn features into answers.** The papers of this book differ in the decoder
# alone. The simplest, the *baseline*, is a linear map for each task and scale. The book ships one, trained for a few minutes.

# %%
tasks, model = me.DOLLHOUSE, me.from_pretrained("../models/baseline")
with torch.inference_mode():
    maps = model.backbone(torch.zeros(1, 3, 128, 128))  # four scales, (1, C, h, w)
    features = model.decoder(maps).features  # one for each task, (1, C, h, w)
assert len(maps) == 4
assert set(features) == set(tasks.names)

# %% mystnb={"figure": {"name": "fig-part1-answers", "caption": "A room that the network has not seen: its labels, and what the baseline answers, all six in one pass."}, "image": {"alt": "Two rows of pictures. The first shows a rendered room with a person, then its classes, body parts, saliency, normals, depth and boundaries. The second shows the network's answers: the same maps, with blurred outlines."}}
answers = me.predict(model, room.image)
labels = {name: getattr(room, name) for name in ("image", *tasks.names)}
_ = plots.show_grid([labels, answers], ("label", "answer"))

# %% [markdown]
# ## The metric decides
#
# **A number says what its metric was made to see.** Most pixels belong to nobody, so an answer that never finds a person has most of the body parts'
# pixels right. The mean intersection over union (mIoU) counts every class alike, and is not taken in.

# %%
truth = torch.stack([torch.from_numpy(scene.human_parts) for scene in rooms]).long()
found = torch.stack([me.predict(model, s.image)["human_parts"] for s in rooms])
scores = []
for name, answer in {"nobody": torch.zeros_like(truth), "network": found}.items():
    meter = me.MeanIoU(7)
    meter.update(answer, truth)
    scores.append(meter.compute())
    right = 100 * (answer == truth).double().mean()
    print(f"{name:8}{right:3.0f} % of the pixels right, mIoU {scores[-1]:3.0f} %")
assert scores[1] > 4 * scores[0]

# %% [markdown]
# Six metrics become one number by $\Delta_m$, the mean over the tasks of the relative gain over single-task networks. It hides which task paid.
#
# ## Sharing has a price, and seeds have a spread
#
# **One network for six tasks is cheaper than six networks; whether it is better must be asked task by task, and beside the noise.** Three shared
# networks against three sets of single-task ones, all nine pairs:

# %%
results = Path("../results")
shared, single = {}, {}
for run in json.loads((results / "chapter03.json").read_text())["runs"]:
    kind = single if len(run["tasks"]) == 1 else shared
    kind.setdefault(run["seed"], {}).update(run["metrics"])

# %%
columns = [*(tasks.subset(name) for name in tasks.names), tasks]


def gains(first, second):
    """Relative gains for each pair of networks, (pairs, 7): six tasks and their mean."""
    pairs = [(a, b) for a in first.values() for b in second.values() if a != b]
    return np.array(
        [[me.multitask_gain(a, b, t) for t in columns] for a, b in pairs]
    )


sharing, nothing = gains(shared, single), gains(single, single)
assert sharing[:, -1].min() > nothing[:, -1].max()  # Δm: beyond the noise
assert sharing.mean(axis=0).min() < 0  # and yet some tasks lose

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-part1-gain", "caption": "What sharing gains over single-task networks: bars are means, lines reach from the worst pair of seeds to the best. Grey: how far single-task networks that differ in the seed alone are apart."}, "image": {"alt": "Seven bars in percent, for six tasks and their mean, before grey boxes around zero. Depth's bar is by far the highest and leaves its grey box. Segmentation's and human parts' point downwards. The mean is a few percent above zero, outside its small grey box."}}
figure, axis = plt.subplots(figsize=(7.5, 2.6))
x, (low, high) = np.arange(7), (nothing.min(0), nothing.max(0))
axis.bar(x, high - low, 0.8, low, color="0.85", label="the seed alone")
axis.bar(x, sharing.mean(0), 0.3, label="sharing")
axis.vlines(x, sharing.min(0), sharing.max(0), color="black", lw=1)
axis.axhline(0, color="0.4", lw=1)
names = [*(task.title.replace(" ", "\n") for task in tasks), "Δm"]
axis.set(xticks=x, xticklabels=names, ylabel="gain (%)")
_ = axis.legend(loc="upper left")

# %% [markdown]
# ## In numbers

# %% tags=["hide-input"]
stored = json.loads((results / "counts.json").read_text())["models"]
counted = stored["baseline, ViT-B"]["parameters"]
printed = published.table("mlore", 2).row(setting="Baseline")
print(f"baseline, ViT-B: {counted:.0f} M weights counted,", end=" ")
print(f"{printed['parameters']:.0f} M printed; Δm printed {printed['delta_m']} %")
print(f"sharing on Dollhouse: mean Δm {sharing[:, -1].mean():+.1f} %")
assert abs(counted - printed["parameters"]) < 1

# %% [markdown]
# On the photographs of PASCAL-Context, by MLoRE's table, sharing costs more than it pays. To make it pay is what the
# decoders of the next parts are for.
#
# ## Where to read more
#
# - [Chapter 1](01_five_answers_from_one_image.ipynb): the six labels, their files, and what every encoding loses.
# - [Chapter 2](02_measuring.ipynb): the metrics by hand, and the choices of protocol that move published numbers.
# - [Chapter 3](03_one_encoder_many_heads.ipynb): backbone, decoder, heads, losses, and a first training.
#
# Next: [Part II in five minutes](../part2_mlore/part2_in_five_minutes.ipynb).
