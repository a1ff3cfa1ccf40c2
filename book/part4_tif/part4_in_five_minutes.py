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
# # Part IV in five minutes
#
# **Where the objects end is worth knowing when one has to say what they are. So most decoders let tasks read each other. Why would a network forbid it?**
#
# ## In one sentence
#
# In TIF {cite}`tif2024` the scales of the encoder help each other, every task then attends to itself alone, the fine scales borrow the coarse scales' attention,
# and no loss ever reaches another task's decoder.
#
# *Before you start:* [Part I in five minutes](../part1_foundations/part1_in_five_minutes.ipynb). *Time:* 5 minutes of reading, ten seconds of
# running. *Hardware:* two CPU cores, 4 GB of memory; no GPU, no download.

# %% tags=["hide-input"]
import json
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch

import mlore_edu as me
from mlore_edu import plots, published
from mlore_edu.data.dollhouse_files import VALIDATION_SEEDS, DollhouseScenes
from mlore_edu.data.transforms import denormalise, eval_transform
from mlore_edu.pictures import to_rgb

plots.use_style()
tasks, results = me.DOLLHOUSE, Path("../results")

# %% [markdown]
# ## Nothing shared behind the encoder
#
# **Whether tasks interact is a question of derivatives: which decoder does a task's loss reach?** With TIF, its own; and the encoder, where all tasks still meet.

# %%
model = me.from_pretrained("../models/tif").eval()
to_tensor = eval_transform(128)
rooms = DollhouseScenes(20, 128, "easy", VALIDATION_SEEDS, transform=to_tensor)
room = max(rooms, key=lambda scene: (scene["human_parts"] > 0).sum())
image = room["image"][None]  # (1, 3, 128, 128)

# %%
stem = model.backbone.stem[0].weight  # of the encoder
decoders = model.decoder.to_tasks[3][0].weight  # (T·C, …): one task after another
for name, answer in model(image).predictions.items():
    loss = answer.square().mean()  # any loss of this task alone
    to_stem, own = torch.autograd.grad(loss, (stem, decoders), retain_graph=True)
    reached = own.unflatten(0, (len(tasks), -1)).flatten(1).any(dim=1)  # (T,)
    assert to_stem.any()
    assert [tasks.names[i] for i in reached.nonzero()] == [name]

# %% [markdown]
# ## Every task asks itself
#
# **Self-feature distillation is attention within one task: each token takes from the tokens that its query wants.** Which these are differs from task to task.

# %%
with torch.inference_mode():
    anatomy = model.decoder.anatomy(model.backbone(image))
low = anatomy.affinities[3]  # of the coarsest scale
attention = low.matrix()[0].softmax(dim=-1)  # (T, n, n)
size = low.keys.shape[-2:]
assert torch.allclose(attention.sum(dim=-1), torch.ones(attention.shape[:2]))

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-part4-attention", "caption": "A token on the person (circle), and how much it takes from every other token of the coarsest scale, for each task. Dark is much; every map has its own scale."}, "image": {"alt": "A rendered room with a circle on the person, and six coarse maps in shades of blue. Some tasks gather from a few tokens near the person, others from tokens all over the room."}}
person = (room["human_parts"] > 0).float()[None, None]
share = torch.nn.functional.adaptive_avg_pool2d(person, size).flatten()
token = share.argmax().item()
y, x = ((np.array(divmod(token, size[1])) + 0.5) * 128 / size[0]).tolist()
figure, axes = plt.subplots(1, 7, figsize=(7.5, 1.6))
axes[0].imshow(to_rgb("image", denormalise(room["image"])))
axes[0].plot(x, y, "o", ms=9, mfc="none", mec="white", mew=2)
for axis, task, weights in zip(axes[1:], tasks, attention[:, token]):
    axis.imshow(weights.reshape(size), cmap="Blues", vmin=0)
    axis.set_title(task.title.split()[-1].lower(), fontsize=9)
for axis in axes:
    axis.set(xticks=[], yticks=[])
    axis.spines[:].set(visible=True, color="0.7")

# %% [markdown]
# ## Attention on loan
#
# **Attention costs the square of the number of tokens, so TIF's two fine scales do without their own: they use the coarse scales', enlarged. The matrix is never
# built, because its two factors can be enlarged and set side by side instead.**

# %%
finer = anatomy.affinities[2]
loan = low.resized(finer.keys.shape[-2:]).plus(finer)  # factors with 2C channels
both = low.resized(finer.keys.shape[-2:]).matrix() + finer.matrix()
torch.testing.assert_close(loan.matrix(), both)

# %%
tokens = [scale.shape[-2] * scale.shape[-1] for scale in anatomy.scales]
print("tokens of the four scales:", tokens)
print(
    f"attention at the finest: {(tokens[0] // tokens[2]) ** 2} × that of the third"
)

# %% [markdown]
# ## Do tasks that talk do harm?
#
# **They can, and the loud ones do.** Take everything away that two tasks share but attention, and make one of them loud, with labels of another room. Within a task
# segmentation loses nothing to the last digit; across tasks it loses points, with every seed.

# %%
found = {}
for run in json.loads((results / "tif_frozen.json").read_text())["runs"]:
    arm = run["distillation"], run["normals"], run["weight"]
    found.setdefault(arm, []).append(run["metrics"]["semseg"])
arms = ("true", 10), ("another room", 1000)  # quiet, and loud
within, across = (
    [found[(kind, *arm)] for arm in arms] for kind in ("self", "cross")
)
assert within[0] == within[1]
assert all(harmed < unharmed for unharmed, harmed in zip(*across))

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-part4-harm", "caption": "Segmentation beside quiet, true normals and beside loud ones of another room, on one frozen encoder: a line for each seed."}, "image": {"alt": "Two panels. At the left, within a task, six level lines between 76 and 78 percent. At the right, across tasks, six lines that begin a little lower and fall by one to two points."}}
figure, axes = plt.subplots(1, 2, figsize=(6, 2.3), sharey=True)
for axis, pair, title in zip(
    axes, (within, across), ("within a task", "across tasks")
):
    axis.plot([0, 1], pair, "o-", color=plots.OKABE_ITO[0], alpha=0.6, ms=4)
    axis.set(xticks=[0, 1], xticklabels=["quiet, true", "loud, wrong"], title=title)
    axis.set_xlim(-0.3, 1.3)
_ = axes[0].set_ylabel("mIoU (%)")

# %% [markdown]
# But such a world has to be built. Where tasks train their encoder together, as they usually do, most of the harm goes through it, and the choice between the two
# kinds of attention is lost in the noise of the seeds.
#
# ## In numbers

# %% tags=["hide-input"]
stored = json.loads((results / "counts.json").read_text())["models"]
for kind in ("self", "cross"):
    printed = published.table("tif", 8).row(distillation=f"{kind.title()}-distill")
    counted = stored[f"tif {kind}, Swin-T"]["parameters"]
    print(f"{kind:6}{counted:.1f} M weights counted,", end=" ")
    print(
        f"{printed['parameters']:.1f} printed; Δm printed {printed['delta_m']:+} %"
    )
    assert abs(counted / printed["parameters"] - 1) < 0.03

# %% [markdown]
# ## Where to read more
#
# - [Chapter 12](12_scale_attentive_fusion.ipynb): what each scale knows, and how scales are fused.
# - [Chapter 13](13_self_feature_distillation.ipynb): attention within a task, and harm built on purpose.
# - [Chapter 14](14_low_to_high_diffusion.ipynb): affinities on loan, and four decoders on one page.
#
# Next: [Part V in five minutes](../part5_full_scale/part5_in_five_minutes.ipynb).
