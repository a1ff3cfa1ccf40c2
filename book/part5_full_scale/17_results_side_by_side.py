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
# # Results, side by side
#
# Three papers, thirty tables, and a bold number in the last row of almost every one. **Which decoder would you take, and which of
# the things that the papers say of theirs would you repeat to a colleague?** The chapters before this one took networks apart. This one puts
# everything that was counted and measured on the way beside what was printed, and judges it by a rule that was written down first.
#
# {numref}`fig-17-cost` is the short answer to the first question, on our data and at our budget. The second needs the rest of the chapter.

# %%
import json
from pathlib import Path
from statistics import mean, stdev

import matplotlib.pyplot as plt
import numpy as np

# %%
import mlore_edu as me
from mlore_edu import plots, published
from mlore_edu import scorecard as sc
from mlore_edu.seeds import chance_of_order, kendall, kth_interval, paired_interval
from mlore_edu.side_by_side import REASONS, places

plots.use_style()
tasks = me.DOLLHOUSE
blue, orange, green, red, sky, pink = plots.OKABE_ITO[:6]
# %%
RESULTS = Path("../results")
runs = sc.read_runs(RESULTS)  # {(sweep, row): {seed: {task: gain in %}}}
counts = json.loads((RESULTS / "counts.json").read_text())["models"]
costs = {
    (row["network"], row["training"]): row
    for row in json.loads((RESULTS / "decoders_benchmark.json").read_text())["rows"]
    if row["device"] == "cpu"
}

# %%
networks = {  # name: its runs, its row of the benchmark at inference
    "baseline": (("mlore/table2", "Baseline"), "baseline"),
    "MoE": (("mlore/others", "MoE decoder, no noise"), "MoE"),
    "MLoRE": (("mlore/table2", "+ SPE"), "MLoRE, fused"),
    "MLoRE, released": (("mlore/others", "released"), "MLoRE, released, fused"),
    "TaskExpert's baseline": (
        ("taskexpert/table1", "Baseline"),
        "TaskExpert's baseline",
    ),
    "TaskExpert": (("taskexpert/table1", "w/ MoE+CG+Mem"), "TaskExpert"),
    "TIF without its modules": (("tif/table6", "none"), "TIF without its modules"),
    "TIF": (("tif/table6", "SAFF, SFD, LTHD"), "TIF"),
}
colours = dict(
    zip(networks, ("0.45", sky, blue, blue, orange, orange, green, green))
)
hollow = {"MLoRE", "TaskExpert's baseline", "TIF without its modules"}


# %%
def gains_of(place):
    """Δm of every seed: the mean over tasks of the relative gains."""
    return [mean(run.values()) for run in runs[place].values()]


def interval_of_mean(values):
    found = paired_interval(values)  # a mean, and Student's t for its error
    return found.value, found.high - found.value


# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-17-cost", "caption": "Accuracy against cost, four times: Δm over single-task networks on Dollhouse, with its 95 % interval over seeds, against parameters (as trained), multiply-accumulates, time and memory of one inference, all as multiples of the baseline's. MLoRE is fused. Hollow: a decoder's plainer relative."}, "image": {"alt": "Four panels with the same eight dots and vertical intervals. TIF and TIF without its modules lie highest, at some nine percent; the mixture and the released MLoRE at about six; the others between one and four. None of the four costs puts the dots in the order of their height."}}
axes_of_cost = {
    "parameters": "parameters",
    "macs": "multiply-accumulates",
    "seconds": "time on one core",
    "memory": "memory",
}
figure, axes = plt.subplots(2, 2, figsize=(7.5, 4.8), sharey=True)
for axis, (cost, title) in zip(axes.flat, axes_of_cost.items()):
    for name, (place, row) in networks.items():
        as_trained = row.removesuffix(", fused") if cost == "parameters" else row
        x = costs[as_trained, False][cost] / costs["baseline", False][cost]
        middle, half = interval_of_mean(gains_of(place))
        look = {"color": colours[name], "mfc": "white" if name in hollow else None}
        label = name if cost == "parameters" else None
        axis.errorbar(x, middle, half, fmt="o", ms=6, lw=1, label=label, **look)
    axis.axhline(0, color="0.8", zorder=0)
    axis.set(xlabel=f"{title} / baseline's")
for axis in axes[:, 0]:
    axis.set_ylabel("Δm (%)")
_ = figure.legend(loc="outside upper center", ncols=4, fontsize=8)

# %% [markdown]
# ## What you will be able to do
#
# - find any row of any table of the papers in this book, with what stands beside it and why nothing does where nothing does;
# - compare decoders that were trained alike, and say in one breath what was alike and what was not;
# - turn a sentence of a paper into data, and judge it by a rule that does not know whom you like;
# - compute the interval of a paired difference over a few seeds, of the worst of several tasks, and the effect that so few seeds can see;
# - solve a table for numbers it does not print, draw how uncertain they are, and find the digit that is wrong.
#
# *Before you start:* [chapter 2](../part1_foundations/02_measuring.ipynb) for the metrics and Δm; the decoders are those of chapters
# [9](../part2_mlore/09_mlore_assembled.ipynb), [11](../part3_taskexpert/11_task_memory.ipynb) and [14](../part4_tif/14_low_to_high_diffusion.ipynb), and
# nothing of them is derived again. *Time:* 40 minutes of reading, ten seconds of running. *Hardware:* two CPU cores, 4 GB of memory; no GPU, no download.
# Everything that was trained is read from records.
#
# ## Every row has its place
#
# The papers are MLoRE {cite}`yang2024mlore` with its supplement, TaskExpert {cite}`ye2023taskexpert` and TIF
# {cite}`tif2024`. For each printed row we can have three things. A **count** of parameters and operations at the printed size needs no data.
# A **counterpart** is the same choice made in a network of less than two million weights, trained on Dollhouse; it says something of the method, nothing of
# the printed number. And the printed **accuracy** itself would need PASCAL-Context or NYUD-v2 and a GPU for some hours.

# %%
overview = {
    key: places(published.table(*key), runs, counts) for key in published.tables()
}
rows = [place for its in overview.values() for place in its]
print(len(overview), "tables,", len(rows), "rows")
print("counted at the printed size:", sum(bool(row.counted) for row in rows))
print("with a counterpart on Dollhouse:", sum(bool(row.dollhouse) for row in rows))
for reason in REASONS.values():
    print(f"{sum(row.reason == reason for row in rows):4}  {reason}")
assert all(row.reason for row in rows)

# %% [markdown]
# So no accuracy of the papers has been reproduced here, and none was contradicted. The machines that this book was written on could not reach the
# archives, and these records were made without a GPU. What can be run is ready: [chapter 15](15_pascal_context_and_nyud_v2.ipynb) fetches the data, the papers' own
# networks have recipes, and the rows of their ablations are options of these. `mlore-edu evaluate` then prints your numbers beside the papers'.
#
# The counts, on the other hand, were made at full size. Over all cells that have one, these are off by more than 3 %:

# %%
cells = [
    (key, f"{row.label}, {name}", 100 * (ours / row.row[name] - 1))
    for key, its in overview.items()
    for row in its
    for name, ours in row.counted.items()
]
close = np.mean([abs(off) < 1 for *_, off in cells])
print(f"{len(cells)} cells, {close:.0%} within 1 %")
for (paper, number), name, off in cells:
    if abs(off) > 3:
        print(f"{off:+6.1f} %  {paper}, Table {number}: {name}")

# %% [markdown]
# Of MLoRE's rows one is off, the size of *MoE*, and [chapter 9](../part2_mlore/09_mlore_assembled.ipynb) accounts for it
# (layers that the authors' class builds and never uses). The other line is no network of TIF's: its Table 4 gives TaskExpert the very numbers of the line above, TaskPrompter's 392 M and 470 G. For TaskExpert the parameters fit, the operations
# do not. For the rest it is fair to say that the networks of this book *are* those of the papers, as far as a count can tell. All the tables, cell by cell, are in [an appendix](../appendix/all_tables.ipynb), made by the same call of `places`. This one shows how to read them:

# %% mystnb={"markdown_format": "myst"}
from IPython.display import Markdown

from mlore_edu.side_by_side import markdown

table2 = published.table("mlore", 2)
Markdown(markdown(table2, overview["mlore", 2]))

# %% [markdown]
# Plain is what the paper prints; bold is ours. Notice what the last column does *not* do. It is no column of the paper's table but of another experiment: six tasks instead of five,
# rendered rooms instead of photographs, a network hundreds of times smaller. One may compare its *order* with the paper's, with care. To compare its *numbers* would be nonsense.
#
# ## Four decoders at one budget
#
# Within Dollhouse, numbers can be compared. What was equal: the 400 training and 100 validation scenes at 64 × 64, the 300 steps of 8 images, optimiser, learning rate and schedule, losses and
# their weights, the kind of heads, and the width $C = 32$ of the features that these get. The recipe was tuned, a little, for the baseline, and for nobody else but in one point, the noise of MLoRE's gates ([chapter 9](../part2_mlore/09_mlore_assembled.ipynb)).
#
# What was *not* equal: TaskExpert stands on `vit_nano_12`, whose twelve blocks give it twelve modules where the others have a `vit_nano` of three; so its own baseline is shown beside it. The decoders
# differ in size and cost, which {numref}`fig-17-cost` shows instead of hiding. And all were given the same number of *steps*, not the same time.

# %%
heads = "".join(f"{task.name[:7]:>8}" for task in tasks)
print(f"{'':24}{heads}{'Δm':>9}")
single = sc.single_tasks(RESULTS)
cells = "".join(f"{single[task.name]:8.2f}" for task in tasks)
print(f"{'single-task networks':24}{cells}")
for name, (place, _) in networks.items():
    its = runs[place].values()
    means = (mean(run[task.name] for run in its) for task in tasks)
    cells = "".join(f"{gain:+7.1f}%" for gain in means)
    middle, half = interval_of_mean(gains_of(place))
    print(f"{name:24}{cells}{middle:+7.1f} ± {half:.1f}")
print("seeds:", sorted({len(runs[place]) for place, _ in networks.values()}))

# %% [markdown]
# (Below the first line stand relative gains; a gain in normals or depth is an error that fell.) The intervals are over training seeds, for these hundred validation scenes. They leave one thing out. Δm is
# over six single-task networks, which have seeds of their own. If *these* had come out differently, all the gains would have moved, and together:


# %%
alone = json.loads((RESULTS / "chapter03.json").read_text())["runs"]
spreads = []
for name in single:
    its = [run["metrics"][name] for run in alone if run["tasks"] == [name]]
    spreads.append(100 * stdev(its) / len(its) ** 0.5 / single[name])
common = np.linalg.norm(spreads) / len(spreads)
print(f"standard error that all Δm have in common: {common:.1f} %")

# %% [markdown]
# It cancels from every comparison *between* decoders, which is all that follows.
#
# Three things can be read off. The order of the decoders is none of their costs' order: not of parameters, nor operations, nor time. What a paper adds to its own baseline moves Δm less than whose baseline
# it is: the three baselines lie farther apart than any of them lies from what was built on it. And TIF leads with or *without* the modules that its paper is about. What the two have in common, and the others lack, is a pyramid of four scales
# with 3 × 3 convolutions for every task at each of them ([chapter 12](../part4_tif/12_scale_attentive_fusion.ipynb)). That this is the reason was not tested apart, but [chapter 14](../part4_tif/14_low_to_high_diffusion.ipynb) points the same way: a TIF of equal size whose fine scales are narrower loses several percent.


# %%
def by_seed(place):
    return {seed: mean(run.values()) for seed, run in runs[place].items()}


def bracket(interval):
    return f"{interval.value:+.1f} [{interval.low:+.1f}, {interval.high:+.1f}]"


# %%
built_on = {
    "MLoRE": "baseline",
    "TaskExpert": "TaskExpert's baseline",
    "TIF": "TIF without its modules",
}
for name, plainer in built_on.items():
    a, b = (by_seed(networks[n][0]) for n in (name, plainer))
    found = paired_interval([a[seed] - b[seed] for seed in a if seed in b])
    print(f"{name} less {plainer}: {bracket(found)} %")

# %%
middles = {name: mean(gains_of(place)) for name, (place, _) in networks.items()}
baselines = [middles[plainer] for plainer in built_on.values()]
apart = max(baselines) - min(baselines)
most = max(abs(middles[n] - middles[b]) for n, b in built_on.items())
assert apart > most
print(f"baselines apart by {apart:.0f} %, additions at most {most:.0f} %")
lead = middles["TIF without its modules"]
assert (
    lead > max(middle for name, middle in middles.items() if "TIF" not in name) + 1
)

# %% [markdown]
# ### A radar shows what its axes were made to show
#
# MLoRE's Fig. 1 is a radar: one axis a task, and a polygon for each method, the paper's outside all others. Each axis has its own unit, so each needs a scale, and somebody has to choose it. {numref}`fig-17-radar` draws
# the same means twice. At the left every axis runs from the worst network shown to the best. At the right all axes are one scale, the relative gain over a network for that task alone.

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-17-radar", "caption": "The same numbers on two radars. Left: every axis from the worst to the best of the five. Right: every axis from −10 % to +20 % of relative gain; the grey ring is a single-task network. Means over seeds."}, "image": {"alt": "Two radar charts of six tasks with five polygons each. At the left the polygons differ wildly, and one almost fills the circle. At the right they nearly coincide on saliency, boundaries and segmentation, just around the grey ring, and differ visibly on depth and normals."}}
shown = ["baseline", "MoE", "MLoRE, released", "TaskExpert", "TIF"]
means = np.array(
    [
        [
            mean(run[n] for run in runs[networks[name][0]].values())
            for n in tasks.names
        ]
        for name in shown
    ]
)  # (networks, tasks)
angles = np.linspace(0, 2 * np.pi, len(tasks), endpoint=False)
closed = np.append(np.arange(len(tasks)), 0)
scaled = 0.15 + 0.85 * (means - means.min(0)) / (means.max(0) - means.min(0))
figure, axes = plt.subplots(
    1, 2, figsize=(7.5, 3.9), subplot_kw={"projection": "polar"}
)
for axis, values in zip(axes, (scaled, means)):
    for name, row in zip(shown, values):
        style = "--" if name == "baseline" else "-"
        axis.plot(
            angles[closed],
            row[closed],
            style,
            color=colours[name],
            lw=1.5,
            label=name,
        )
    axis.set_xticks(
        angles, [task.title.replace(" ", "\n", 1) for task in tasks], fontsize=8
    )
    axis.set_theta_offset(np.pi / 2)
    for text, angle in zip(axis.get_xticklabels(), angles):
        text.set_ha(
            "center"
            if abs(np.sin(angle)) < 0.1
            else "right"
            if np.sin(angle) > 0
            else "left"
        )
axes[0].set(yticks=[], ylim=(0, 1.02), title="from worst to best\n")
axes[1].set(ylim=(min(-10, means.min() - 1), max(20, means.max() + 1)))
axes[1].set_yticks((0, 10), ("0", "+10 %"), fontsize=7)
axes[1].set_title("relative gain\n")
ring = np.linspace(0, 2 * np.pi, 100)
axes[1].plot(ring, 0 * ring, color="0.5", lw=1)
_ = figure.legend(
    *axes[0].get_legend_handles_labels(),
    loc="outside lower center",
    ncols=5,
    fontsize=8,
)

# %% [markdown]
# The left one is the advertisement. It stretches each axis until the smallest difference spans it, so its shape knows nothing of the sizes, and it turns a lead of three hundredths (which MLoRE has in two of its nine columns,
# chapter 9) into a whole length of axis. Even the *area* of a polygon means nothing: exchange the order of the axes, and it changes, while no number did.


# %%
def area(radii):
    """Of a polygon with its corners at these radii, on axes at equal angles."""
    sine = np.sin(2 * np.pi / len(radii))
    return 0.5 * sine * sum(a * b for a, b in zip(radii, np.roll(radii, -1)))


# %%
rng = np.random.default_rng(0)
orders = [rng.permutation(len(tasks)) for _ in range(200)]
print("largest area / smallest, over orders of the axes")
for name, radii in zip(shown, scaled):
    areas = [area(radii[order]) for order in orders]
    print(f"{name:16} {max(areas) / min(areas):.1f}")

# %% [markdown]
# ### What the numbers look like
#
# A percent is nothing that one can see. The book comes with four trained networks, one of each decoder, into which
# [chapter 18](18_looking_inside.ipynb) looks. They were trained on rooms of 128 × 128 pixels, once each and not for
# equally long, so they are no part of the comparison above; but what they say can be seen, and asked for again. Their
# metrics on a hundred validation scenes:

# %%
shipped = ("baseline", "mlore", "taskexpert", "tif")
print(f"{'':11}" + "".join(f"{task.metric:>7}" for task in tasks))
for name in shipped:
    told = json.loads(Path("../models", name, "metrics.json").read_text())
    scores = "".join(f"{told['metrics'][task.name]:7.2f}" for task in tasks)
    print(f"{name:11}{scores}")

# %% [markdown]
# One command renders the scenes again, lets the stored files answer them, and ends with an error where a number is not
# the one above:
#
# ```console
# python book/results/make_shipped_models.py --verify
# ```
#
# {numref}`fig-17-pictures` shows two of the first forty scenes, chosen by a rule before anything was looked at: those
# with the most pixels of people.

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-17-pictures", "caption": "The two scenes with the largest people: labels, and the answers of the four networks that come with the book."}, "image": {"alt": "A grid of small pictures: for each of two rooms with a person five rows, labels, baseline, MLoRE, TaskExpert and TIF, and columns for the image and the six tasks. The answers look alike, with softer edges than the labels; they differ in the details of people, and in small things that one network names and another does not."}}
import torch

from mlore_edu.data.dollhouse_files import VALIDATION_SEEDS, DollhouseScenes
from mlore_edu.data.transforms import denormalise, eval_transform
from mlore_edu.evaluation import decode

forty = DollhouseScenes(
    40, 128, "easy", VALIDATION_SEEDS, transform=eval_transform(128)
)
scenes = sorted(forty, key=lambda scene: -(scene["human_parts"] % 255 > 0).sum())[
    :2
]
images = torch.stack([scene["image"] for scene in scenes])  # (2, 3, 128, 128)
with torch.inference_mode():
    answers = [
        decode(me.from_pretrained(f"../models/{name}")(images).predictions, tasks)
        for name in shipped
    ]
rows = []
for index, scene in enumerate(scenes):
    labels = {name: scene[name] for name in tasks.names}
    rows.append({"image": denormalise(images[index])} | labels)
    rows += [
        {name: answer[name][index] for name in tasks.names} for answer in answers
    ]
_ = plots.show_grid(rows, ("labels", "baseline", "MLoRE", "TaskExpert", "TIF") * 2)

# %% [markdown]
# Could you have said which of the four is best on Δm, and by how much? The papers' qualitative figures show less: images
# that their authors chose. What one does see is what the networks have in common. Whatever stands upright on the floor
# and is thin, such as the leg of a table, is in danger of becoming a part of a person, and then it is so in three tasks
# at once: the mistake was made before the decoder.
#
# ## A scorecard
#
# Now to what the papers *say*. A sentence like "the generic path improves all tasks" can be made into data: the table that bears it out, the row that should be better, the row that should be worse, and in what. `published/claims.csv` holds all such sentences of
# the four texts, in our words.

# %%
claims = sc.claims()
print(len(claims), "claims")
generic = next(
    c for c in claims if c.claim == "the generic path improves all tasks"
)
for name, value in vars(generic).items():
    print(f"{name:12} {value}")

# %% [markdown]
# Rows are numbered as printed. Where a text is vague, as in "surpasses the current methods", the list says how it was read. Claims that only a picture bears out (which experts serve which tasks, what
# features look like) are not on it, since they have no rows; chapters [7](../part2_mlore/07_routers.ipynb), [10](../part3_taskexpert/10_dynamic_assembly.ipynb), [13](../part4_tif/13_self_feature_distillation.ipynb) and
# [14](../part4_tif/14_low_to_high_diffusion.ipynb) look at those.
#
# ### The size of a claim
#
# In the paper, it is the difference of two printed numbers: of Δm where it is printed, otherwise the relative gain of one row over the other. Both are percent, and neither has an error bar, since every row was trained once.
#
# Here, each configuration that a claim compares was trained with five seeds, and the same seeds throughout. A seed decides on the order of the images and on which of them are mirrored, so two networks with the same seed
# have seen the same film. So we subtract **seed by seed**, and ask for the mean of these $n$ differences $d_s$. If they are normally distributed, then
#
# ```{math}
# :label: eq-17-interval
# \bar d \;\pm\; t_{n-1}\,\frac{s_d}{\sqrt n}, \qquad s_d^2 = \frac{1}{n-1}\sum_{s}(d_s - \bar d)^2,
# ```
#
# holds the true difference in 95 of 100 such experiments, with Student's quantile $t_{n-1}$: 4.3 for three seeds, 2.8 for five, 2.0 for very many. It is the price of not knowing the spread, and with few seeds it is high.

# %%
words = "the generic path improves low-rank experts"
helped = next(c for c in claims if c.claim == words)
d = sc.paired_differences(helped, runs)[:, 0]  # (S,)
n = len(d)
from scipy.stats import t as student

half = student.ppf(0.975, n - 1) * d.std(ddof=1) / n**0.5
print("differences by seed:", d.round(2))
print(f"{d.mean():+.2f} ± {half:.2f} %, the paper: {sc.paper_size(helped):+.2f} %")
found = paired_interval(d)
assert np.allclose((found.low, found.high), (d.mean() - half, d.mean() + half))

# %% [markdown]
# Does pairing help? If the seed moved both networks alike, the spread of the differences would be smaller than $\sqrt2$ times the spread of one network. Over all claims:

# %%
ratios = []
for c in claims:
    if c.metric != "delta_m" or not c.sweep or "&" in c.ours_better:
        continue
    sides = [gains_of((c.sweep, row)) for row in (c.ours_better, c.ours_worse)]
    apart = np.hypot(*(stdev(side) for side in sides))
    ratios.append(sc.paired_differences(c, runs)[:, 0].std(ddof=1) / apart)
print(
    f"spread of paired differences / of independent ones: {np.median(ratios):.1f}"
)

# %% [markdown]
# At 1 pairing gains nothing, and it costs degrees of freedom: $n - 1$ are left where two independent lists would leave
# $2n - 2$. It is still the honest way to treat runs that may not be independent, so we keep it.
#
# ### Every task, most tasks
#
# "Improves all tasks" is about the *smallest* of six true gains, and "most" about the fourth largest. An interval of the smallest takes some care. Its lower end is simply the lowest of the six lower ends: for it to be too high, the one task that really is
# the smallest must be misjudged. But for the upper end to be too low, *any one* of the six may be, so each has to be six times as sure. `kth_interval` does this for any rank, and a simulation shows that it keeps its promise:

# %%
rng = np.random.default_rng(17)
true = np.array([0.0, 0.1, 0.2, 0.5, 1.0, 2.0])  # gains of six tasks
for k, words in ((1, "largest"), (4, "fourth largest"), (6, "smallest")):
    truth, held = np.sort(true)[-k], []
    for _ in range(400):
        seen = kth_interval(true + rng.normal(size=(5, 6)), k)
        held.append(seen.low <= truth <= seen.high)
    assert np.mean(held) > 0.93
    print(f"the {words} true gain lies in at least 95 % of the intervals")

# %% [markdown]
# ### The rule
#
# One function decides, and it sees two things only: the paper's size and our interval. It is written down here before a single verdict is shown.


# %%
def rule(paper, ours):
    if paper is not None and paper <= 0:
        return "contradicted by the paper's own table"
    if ours is None:
        return "untestable here"
    if ours.low > 0:
        return "supported on Dollhouse"
    return "contradicted on Dollhouse" if ours.high < 0 else "noise on Dollhouse"


# %%
judged = [sc.judge(claim, runs, counts) for claim in claims]
by_seeds = [one for one in judged if one.claim.sweep != "counts"]
assert all(rule(one.paper, one.ours) == one.verdict for one in by_seeds)
for verdict, number in sc.tally(judged).items():
    print(f"{number:4}  {verdict}")

# %% [markdown]
# (Claims about parameters and operations have no seeds: they are counted, and the words say so.) {numref}`fig-17-forest` has a line for each claim that we could train for.

# %% tags=["hide-input"]
LOOKS = {
    sc.SUPPORTED: (green, "o"),
    sc.CONTRADICTED: (red, "o"),
    sc.NOISE: ("0.55", "o"),
    sc.OWN_TABLE: (pink, "D"),
}
TITLES = {
    "mlore": "MLoRE",
    "mlore_supplement": "MLoRE",
    "taskexpert": "TaskExpert",
    "tif": "TIF",
}
LIMIT = 8  # percent; intervals that go on are cut there


def in_words(claim):
    metric = {"delta_m": "", "every task": "", "most tasks": ""}.get(
        claim.metric, claim.metric
    )
    place = (
        claim.place.replace("suppl. ", "S")
        .replace("Table ", "T")
        .replace("Sec. ", "")
    )
    where = place.split(", ")[-1].split("; ")[-1]
    return f"{claim.claim}  ({where}{', ' * bool(metric)}{metric})"


def forest(its, height=0.155):
    """A line a claim: our interval in the colour of the verdict, the paper's size as a black bar."""
    figure, axis = plt.subplots(figsize=(7.5, height * len(its) + 0.9))
    for y, one in enumerate(its):
        colour, marker = LOOKS[one.verdict]
        low, high = max(one.ours.low, -LIMIT), min(one.ours.high, LIMIT)
        axis.plot((low, high), (y, y), color=colour, lw=1.6)
        axis.plot(
            np.clip(one.ours.value, -LIMIT, LIMIT), y, marker, ms=4, color=colour
        )
        if one.paper is not None:
            axis.plot(
                np.clip(one.paper, -LIMIT, LIMIT),
                y,
                "|",
                ms=8,
                mew=1.8,
                color="black",
            )
    papers = [TITLES[one.claim.paper] for one in its]
    for name in dict.fromkeys(papers):
        first = papers.index(name)
        axis.text(
            LIMIT,
            first - 0.4,
            name,
            ha="right",
            va="top",
            weight="bold",
            fontsize=8,
        )
        axis.axhline(first - 0.5, color="0.75", lw=0.8)
    axis.axvline(0, color="0.3", lw=0.8, zorder=0)
    axis.set_yticks(
        range(len(its)), [in_words(one.claim) for one in its], fontsize=6.5
    )
    axis.set(ylim=(len(its) - 0.4, -0.6), xlim=(-LIMIT - 0.2, LIMIT + 0.2))
    axis.set_xlabel("better by (%)")
    axis.tick_params("y", length=0)
    axis.spines["left"].set_visible(False)
    handles = [
        plt.Line2D([], [], color=c, marker=m, ms=4, label=v)
        for v, (c, m) in LOOKS.items()
    ]
    handles += [
        plt.Line2D(
            [], [], color="black", marker="|", ls="", mew=1.8, label="the paper"
        )
    ]
    figure.legend(
        handles=handles, loc="outside upper center", ncols=3, fontsize=7.5
    )


# %% mystnb={"figure": {"name": "fig-17-forest", "caption": "Every claim that was trained for: the paper's size (black bar), and ours with its 95 % interval, in the colour of the verdict. Right of zero is what the paper says. T is a table of the paper, S of its supplement. Intervals are cut at ± 8 %."}, "image": {"alt": "A tall forest plot of some seventy lines. Most intervals are grey and hold zero; a few lie wholly to one side of it, green on the right or red on the left. The papers' black bars stand mostly within one percent to the right of zero, well inside the grey intervals."}}
trained = [one for one in judged if one.ours and one.claim.sweep != "counts"]
forest(trained)

# %% [markdown]
# The widget shows one paper at a time; choose a verdict to see what is behind a number of the tally. {numref}`fig-17-taskexpert` is one of its views.


# %%
def look_at(paper, verdict):
    its = [one for one in trained if TITLES[one.claim.paper] == paper]
    its = [one for one in its if verdict in ("all", one.verdict)]
    forest(its, 0.2) if its else print("no such claim")


# %% tags=["nbval-ignore-output"]
import ipywidgets

_ = ipywidgets.interact(
    lambda paper, verdict: (look_at(paper, verdict), plt.show())[1],
    paper=ipywidgets.Dropdown(options=["MLoRE", "TaskExpert", "TIF"]),
    verdict=ipywidgets.Dropdown(options=["all", *LOOKS]),
)

# %% mystnb={"figure": {"name": "fig-17-taskexpert", "caption": "The widget's view of TaskExpert's claims."}, "image": {"alt": "A forest plot of about a dozen lines for TaskExpert, with the papers' bars between zero and three percent and intervals of several percent around our means."}}
look_at("TaskExpert", "all")

# %%
for verdict in (sc.SUPPORTED, sc.CONTRADICTED):
    print(verdict)
    for one in (one for one in judged if one.verdict == verdict):
        print(
            f"  {bracket(one.ours):20} {TITLES[one.claim.paper]}: {one.claim.claim}"
        )

# %% [markdown]
# (One line of the second list stands there twice: that every task gains is said of both data sets, and a single
# comparison of ours answers both.)
#
# ### What we could have seen
#
# *Noise* is no verdict on the paper. It is one on our experiment: the interval holds zero, and usually the paper's size as well. How large would a true effect have to be for us to find it? A difference is found when the interval leaves zero out; with its spread and number
# of seeds, each comparison finds a certain true effect in four of five attempts. That size is the field `seen`.

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-17-seen", "caption": "For each claim, the size that the paper reports against the true size that our seeds would find in four of five attempts. Only what lies below the diagonal had a fair chance."}, "image": {"alt": "A scatter of dots on logarithmic axes. Along the horizontal axis the paper's sizes run from a few hundredths of a percent to three percent; along the vertical one the sizes that we would see lie mostly between one and five percent. Most dots lie above the diagonal."}}
several = ("every task", "most tasks")  # whose interval is not one of a single mean
visible = [
    one
    for one in trained
    if (one.paper or 0) > 0 and one.claim.metric not in several
]
figure, axis = plt.subplots(figsize=(7.5, 3.2))
for name, colour in (("MLoRE", blue), ("TaskExpert", orange), ("TIF", green)):
    its = [one for one in visible if TITLES[one.claim.paper] == name]
    axis.loglog(
        [one.paper for one in its],
        [one.ours.seen for one in its],
        "o",
        ms=5,
        alpha=0.7,
        color=colour,
        label=name,
    )
ends = (0.02, 20)
axis.plot(ends, ends, color="0.5", lw=1)
axis.set(
    xlim=(0.02, 6),
    ylim=(0.15, 20),
    xlabel="size in the paper (%)",
    ylabel="size that we would see (%)",
)
for setter, ticks in ((axis.set_xticks, (0.1, 1)), (axis.set_yticks, (1, 10))):
    setter(ticks, [f"{tick:g}" for tick in ticks])
_ = figure.legend(loc="outside right center", fontsize=9)

# %%
fair = [one for one in visible if one.ours.seen < one.paper]
print(f"{len(fair)} of {len(visible)} claims had a fair chance")
theirs = [one.paper for one in visible]
ours = [one.ours.seen for one in visible]
print(f"median size in the papers:      {np.median(theirs):.1f} %")
print(f"median size that we would see:  {np.median(ours):.1f} %")

# %% [markdown]
# This is the main result of the scorecard, and it is not about our small networks alone. Most of the papers' steps are below one percent. Whoever trains each row once cannot know whether such a step would come again, *unless* a seed moves PASCAL-Context far less than
# Dollhouse; and no paper of the three says how much it does.
#
# ### Other ways to judge
#
# A verdict should not hang on one choice of method. Two alternatives. Chapters 9 to 14 pooled: if the seed shakes all comparisons alike, then one spread, estimated from all of them, replaces each one's own, with $t = 2.0$. That sees more, and believes more. And with so many claims, some intervals must
# miss their target: of intervals that are right 95 times in 100, one in twenty is wrong, and half of these to each side.

# %%
delta = [one for one in trained if one.claim.metric == "delta_m"]
spread = [sc.paired_differences(one.claim, runs)[:, 0] for one in delta]
freedom = sum(len(d) - 1 for d in spread)
s = (sum(((d - d.mean()) ** 2).sum() for d in spread) / freedom) ** 0.5
t = student.ppf(0.975, freedom)
pooled = []
for one, d in zip(delta, spread):
    half = t * s / len(d) ** 0.5
    pooled.append(one.ours._replace(low=d.mean() - half, high=d.mean() + half))
# %%
own = sc.tally(delta)
other = [sc.verdict(one.paper, interval) for one, interval in zip(delta, pooled)]
print(f"claims about Δm: {len(delta)}; pooled spread of differences: {s:.1f} %")
for verdict in LOOKS:
    print(
        f"{verdict:40} own spread: {own[verdict]:2}  pooled: {other.count(verdict):2}"
    )
chance = 0.05 * len(trained)
print(f"outside by chance, were there no effects: {chance:.1f} of {len(trained)}")

# %% [markdown]
# Hold the number of greens and reds in {numref}`fig-17-forest` against that last line before you believe any one of them. (The claims share networks, too, so they err together.) What deserves belief stands far from zero, and under both ways of judging:

# %%
for one, interval in zip(delta, pooled):
    both = {one.verdict, sc.verdict(one.paper, interval)}
    if both in ({sc.SUPPORTED}, {sc.CONTRADICTED}):
        print(f"{one.verdict}: {TITLES[one.claim.paper]}, {one.claim.claim}")

# %% [markdown]
# ### Do the rows come in the same order?
#
# Sizes may depend on the data and still the *order* of rows may not. **Kendall's τ** compares two orders: of all pairs of rows, those that both put alike, less those that they put oppositely, as a share of all. 1 is the same order, −1 the reverse, and random orders have 0 on average. With three to five rows chance is generous,
# so beside each τ stands the probability that a random order does as well. The last column is a ceiling: how well the order of one of our seeds agrees with that of the mean of the others. If our own seeds do not agree, no paper could agree with them.


# %%
def own_agreement(rows):
    """Mean τ of the order of one seed with that of the others' mean."""
    seeds = sorted(set.intersection(*(set(runs[row]) for row in rows)))
    gain = np.array(
        [[by_seed(row)[seed] for row in rows] for seed in seeds]
    )  # (S, R)
    rest = [np.delete(gain, i, axis=0).mean(0) for i in range(len(seeds))]
    return mean(kendall(one, others) for one, others in zip(gain, rest))


# %%
ablations = [("mlore", n) for n in (2, 3, 4)]
ablations += [("mlore_supplement", n) for n in (1, 2, 3, 4, 5)]
ablations += [("taskexpert", 1), ("taskexpert", 2), ("tif", 6), ("tif", 9)]


# %%
def paper_gain(table, row):
    """Printed Δm, or the gain over the table's first row."""
    if "delta_m" in row:
        return row["delta_m"]
    its = me.NYUD_V2 if "depth" in row else me.PASCAL_CONTEXT
    return me.multitask_gain(row, table.rows[0], its)


# %%
print(f"{'':29}rows     τ  by chance  among our seeds")
taus = []
for paper, number in ablations:
    table = published.table(paper, number)
    chosen = {p.counterpart: p for p in reversed(overview[paper, number])}
    chosen = [p for counterpart, p in reversed(chosen.items()) if counterpart]
    places_of = [tuple(place.counterpart.split(": ", 1)) for place in chosen]
    theirs = [paper_gain(table, place.row) for place in chosen]
    ours = [place.dollhouse["delta_m"] for place in chosen]
    taus.append(kendall(theirs, ours))
    name = f"{TITLES[paper]}, {'suppl. ' if 'suppl' in paper else ''}Table {number}"
    print(
        f"{name:29}{len(ours):4}{taus[-1]:+7.1f}{chance_of_order(theirs, ours):10.2f}"
        f"{own_agreement(places_of):+14.1f}"
    )
print(f"mean τ with the papers: {mean(taus):+.2f}")

# %% [markdown]
# With three rows even a perfect agreement has a probability of 1/6, so no single line can convince. A mean near zero says that the papers' orders tell nothing about ours; a column of seeds that is near zero says that we have no order to tell of.
#
# ## Forensics
#
# Printed numbers are data, too, and often enough to find what a paper does not print, or did not mean to.
#
# ### Units
#
# What is a "G"? Count the same network in $10^9$ and in $2^{30}$, and see in which unit it is what the paper prints ({numref}`fig-17-units`). 2³⁰ is 7 % larger than 10⁹.

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-17-units", "caption": "Printed FLOPs divided by ours, for every row that we can count, in both units. In its paper's own unit a row lies at 1."}, "image": {"alt": "Two rows of dots. In units of two to the thirty MLoRE's dots lie at one and the others some seven percent above; in units of ten to the nine TaskExpert's and TIF's dots lie at one and MLoRE's seven percent below."}}
figure, axis = plt.subplots(figsize=(7.5, 2.1))
for offset, paper in enumerate(("mlore", "taskexpert", "tif")):
    for key, its in overview.items():
        if key[0] != paper:
            continue
        of_others = {"mlore": "TaskExpert", "tif": "TaskExpert"}.get(paper)
        for place in its:
            if "flops" in place.counted and not place.label.startswith(
                of_others or "–"
            ):
                ratio = place.row["flops"] / place.counted["flops"]
                giga = ratio if paper != "mlore" else ratio * 1e9 / 2**30
                binary = ratio if paper == "mlore" else ratio * 2**30 / 1e9
                colour = (blue, orange, green)[offset]
                axis.plot(
                    (giga, binary),
                    (0.15 * offset, 1 + 0.15 * offset),
                    "o",
                    ms=5,
                    alpha=0.6,
                    color=colour,
                )
axis.axvline(1, color="0.6", lw=1, zorder=0)
axis.set(
    yticks=(0.15, 1.15),
    yticklabels=("10⁹", "2³⁰"),
    ylim=(-0.3, 1.7),
    xlabel="printed / counted",
)
for colour, name in zip((blue, orange, green), sc.RECORDS):
    axis.plot([], [], "o", color=colour, label=TITLES[name])
_ = axis.legend(ncols=3, loc="upper right", fontsize=8)

# %% [markdown]
# So MLoRE's table of methods puts its own 571 G of 2³⁰ beside TaskExpert's 622 G of 10⁹. The claim that it needs fewer operations survives in one unit, by the skin of its teeth:

# %%
words = "MLoRE needs fewer FLOPs than TaskExpert"
fewer = next(one for one in judged if one.claim.claim == words)
print(f"{fewer.paper:.0f} % fewer as printed, {fewer.ours.value:.0f} % in one unit")

# %% [markdown]
# ### Baselines that were never printed
#
# MLoRE's Δm is over five single-task networks whose numbers are nowhere. [Chapter 2](../part1_foundations/02_measuring.ipynb) solved for them. Δm is linear in the reciprocals $x_t = 1/M_{b,t}$, and a printed gain is known to half a hundredth, so each of 34 rows confines the five unknowns to a slab. Where all slabs meet is a small body in five dimensions; a linear program
# finds its farthest point in any direction, and with enough directions one can draw its shadow.

# %%
printed = [
    row
    for (paper, number), its in overview.items()
    if paper.startswith("mlore") and (paper, number) != ("mlore_supplement", 7)
    for row in (place.row for place in its)
    if "delta_m" in row
]
PASCAL = me.PASCAL_CONTEXT
gains = [row["delta_m"] for row in printed]
implied = me.metrics.implied_baselines(printed, gains, PASCAL)
for slip in implied.slips:
    print(
        f"no baselines explain {gains[slip]:.2f}; they give {implied.gains[slip]:.2f}"
    )

# %% [markdown]
# That takes the printed *metrics* at their word. If gains had been computed before rounding, each metric, too, could be off by half a hundredth. The slabs get thicker, by $0.1 \sum_t x_t$, which is linear again.

# %%
from scipy.optimize import linprog

kept = [i for i in range(len(printed)) if i not in implied.slips]
sign = np.array([-1 if task.lower_is_better else 1 for task in PASCAL])
metrics = np.array([[row[n] for n in PASCAL.names] for row in printed])  # (34, 5)
slope = 20 * sign * metrics
target = np.array(gains) + 100 * sign.mean()


def farthest(direction, thicker, used=kept):
    """The body's farthest point in a direction (5,); None if there is no body."""
    extra = 20 * 0.005 * thicker
    sides = np.vstack([slope[used] - extra, -slope[used] - extra])
    limits = np.concatenate([target[used] + 0.005, 0.005 - target[used]])
    found = linprog(-direction, sides, limits)
    return found.x if found.status == 0 else None


# %%
def shadow(a, b, thicker, directions=40):
    """Corners (N, 2) of the body's shadow on the plane of two tasks' baselines."""
    corners = []
    for angle in np.linspace(0, 2 * np.pi, directions, endpoint=False):
        direction = np.zeros(len(PASCAL))
        direction[[a, b]] = np.cos(angle) / 80, np.sin(angle) / 80
        corners.append(1 / farthest(direction, thicker)[[a, b]])
    return np.array(corners)


# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-17-region", "caption": "Single-task baselines of segmentation and human parts with which MLoRE's printed gains come out: the shadow of a body in five dimensions. Left, light: if the metrics were rounded after the gains had been computed. Dark, and enlarged at the right: from the metrics as printed."}, "image": {"alt": "Two panels. At the left a large light polygon that spans thirty points of segmentation, with a tiny dark one in its middle. At the right the dark one enlarged, a slanted polygon of two points by one and a half, with a cross for MLoRE below it."}}
figure, axes = plt.subplots(1, 2, figsize=(7.5, 3.0))
names, (a, b) = PASCAL.names, ("semseg", "human_parts")
full = table2.row(setting="+ SPE")
for axis, thick in zip(axes, ((True, False), (False,))):
    for thicker in thick:
        corners = shadow(names.index(a), names.index(b), thicker)
        text = "metrics rounded, too" if thicker else "metrics as printed"
        shade = {"color": blue, "alpha": 0.25 if thicker else 0.9}
        axis.fill(*corners.T, lw=0, label=text, **shade)
    axis.plot(full[a], full[b], "x", ms=7, mew=1.8, color="black", label="MLoRE")
    axis.set(
        xlabel=f"{PASCAL[a].title} ({PASCAL[a].unit})",
        ylabel=f"{PASCAL[b].title} ({PASCAL[b].unit})",
    )
axes[1].plot(implied.values[a], implied.values[b], "o", color="white", ms=4)
_ = figure.legend(
    *axes[0].get_legend_handles_labels(),
    loc="outside upper center",
    ncols=3,
    fontsize=8,
)

# %%
print(f"{'':14}as printed        rounded, too")
for i, task in enumerate(PASCAL):
    ends = []
    for thicker in (False, True):
        points = (farthest(d * np.eye(5)[i], thicker) for d in (1, -1))
        ends.append(sorted(1 / point[i] for point in points))
    (low, high), (lowest, highest) = ends
    print(
        f"{task.name:12}{low:6.1f} to {high:4.1f}{lowest:10.1f} to {highest:4.1f}"
    )

# %% [markdown]
# What a difference half a hundredth makes ({numref}`fig-17-region`). If the gains were computed from more digits than are printed, they tell next to nothing: the light region reaches beyond 100 %. Everything rests on the hypothesis that the authors put the *printed* metrics into the formula. But a hypothesis can be tested: had they
# not, the gains recomputed from printed metrics would miss the printed ones, and by how much is easy to simulate.

# %%
rng = np.random.default_rng(0)
x = 1 / np.array([implied.values[n] for n in PASCAL.names])  # (5,)
moved = (
    20 * rng.uniform(-0.005, 0.005, (1000, len(kept), 5)) @ (sign * x)
)  # (draws, rows)
moved += rng.uniform(-0.005, 0.005, moved.shape)  # the gain's own rounding
misses = np.mean((abs(moved) > 0.006).sum(axis=1))
missed = sum(abs(implied.gains[i] - gains[i]) > 0.006 for i in kept)
print(f"of {len(kept)} rows off by more than 0.006: {missed}")
print(f"expected, had the metrics had more digits: {misses:.0f}")
assert missed == 0

# %% [markdown]
# So the authors did compute from rounded metrics, and the dark region stands: the networks of one task were about as good as MLoRE in segmentation and saliency, better in human parts and normals, and worse in boundaries, to within a point or two. Are the slips still slips in the thicker slabs? A row is one if no body is left when its slab is added.

# %%
for slip in implied.slips:
    for thicker in (False, True):
        left = farthest(np.ones(5), thicker, [*kept, slip])
        words = "rounded, too" if thicker else "as printed"
        said = "a slip" if left is None else "possible"
        print(f"{gains[slip]:.2f}, metrics {words}: {said}")

# %% [markdown]
# One of them matters. For three active experts of fifteen the supplement prints −0.72. Its own metrics give −0.81. The text says that activating all fifteen is worse than activating any fewer, and the table has −0.75 for fifteen:

# %%
by_active = {
    row["active"]: (row["delta_m"], gain)
    for row, gain in zip(printed, implied.gains)
    if "active" in row
}
for active in (3, 15):
    before, after = by_active[active]
    print(f"{active:2} active: printed {before:.2f}, recomputed {after:.2f}")
assert by_active[3][0] > by_active[15][0]
assert by_active[3][1] < by_active[15][1]

# %% [markdown]
# A wrong number made a sentence true. Does it happen elsewhere? We recompute every claim about Δm that these rows bear out.

# %%
recomputed = dict(zip(map(tuple, metrics), implied.gains))


def gain_of(claim, row):
    cells = published.table(claim.paper, claim.table).rows[int(row) - 1]
    return recomputed[tuple(cells[n] for n in PASCAL.names)]


# %%
for one in judged:
    c = one.claim
    ablation = (c.paper, c.table) in {(p, str(n)) for p, n in ablations[:8]}
    if ablation and c.metric == "delta_m":
        size = gain_of(c, c.better) - gain_of(c, c.worse)
        if (size > 0) != (one.paper > 0):
            print(f"{one.paper:+.2f} printed, {size:+.2f} recomputed: {c.claim}")

# %% [markdown]
# ### One digit of a baseline
#
# TIF prints its baseline, and with it none of its gains comes out. One equation has room for one unknown: suppose three of the four metrics are right, and solve each of the six gains for the fourth, with its rounding.


# %%
tif_rows = {}
for number in (7, 8, 9):
    for row in published.table("tif", number).rows[1:]:
        tif_rows[tuple(row[n] for n in me.NYUD_V2.names)] = row
base = published.table("tif", 7).rows[0]


def baselines_of(row, task):
    """Least and largest baseline of a task that give a row its printed gain."""
    others = [n for n in me.NYUD_V2.names if n != task]
    rest = 3 * me.multitask_gain(row, base, me.NYUD_V2.subset(*others))
    sign = -1 if me.NYUD_V2[task].lower_is_better else 1
    needed = [4 * (row["delta_m"] + d) - rest for d in (-0.005, 0.005)]
    return sorted(row[task] / (1 + sign * share / 100) for share in needed)


# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-17-odsf", "caption": "TIF's printed baseline, solved for one metric at a time from six printed gains. Each bar is what one gain allows. Only for the boundaries is there a value that all six allow (orange)."}, "image": {"alt": "Four panels, one a metric, each with six short horizontal bars. In the panels of segmentation, depth and normals the bars do not overlap. In that of boundaries all six do, in a narrow band at 75.15; the title says that 65.15 is printed."}}
figure, axes = plt.subplots(1, 4, figsize=(7.5, 2.2), sharey=True)
for axis, task in zip(axes, me.NYUD_V2):
    spans = np.array([baselines_of(row, task.name) for row in tif_rows.values()])
    for y, (low, high) in enumerate(spans):
        axis.plot((low, high), (y, y), color=blue, lw=5, solid_capstyle="butt")
    low, high = spans[:, 0].max(), spans[:, 1].min()
    if low < high:
        axis.axvspan(low, high, color=orange, alpha=0.5, lw=0)
    axis.set_title(f"{task.name}\n(printed {base[task.name]})", fontsize=9)
    axis.set(yticks=[], xlabel=task.unit)
    axis.locator_params("x", nbins=3)
    axis.ticklabel_format(useOffset=False)
_ = axes[0].set_ylabel("six gains")

# %%
for task in me.NYUD_V2:
    lows, highs = zip(*(baselines_of(row, task.name) for row in tif_rows.values()))
    low, high = max(lows), min(highs)
    words = f"{low:.2f} to {high:.2f}" if low < high else "none"
    print(f"{task.name:8} printed {base[task.name]:<8} allowed by all six: {words}")

# %% [markdown]
# Only one of the four can be repaired ({numref}`fig-17-odsf`), and its value is pinned to two digits: 75.15, where the paper prints 65.15, three times. A six for a seven. With it the baseline is no longer ten points behind in boundaries, and what looked like a leap of twelve points is one of two and a half.
#
# ## What it means, and what it does not
#
# **It means** that the networks are rebuilt: they have the printed sizes and costs, to within what is printed. It means that on one small data set, at one small size, with one budget, most of what the papers' ablations say cannot be told from nothing with a few seeds, while the widths of a pyramid or the gates' noise, which no table
# varies, can. And it means that a printed table can be audited by anyone with a linear program.
#
# **It does not mean** that the papers are wrong. Dollhouse has 400 rooms of one generator, where PASCAL-Context has 5,000 photographs; a mixture may need variety to have something to mix. `vit_nano` starts from random numbers, where the papers' encoders are pre-trained on millions of images. A network of a million weights that has seen 2,400 images is early in its training, and what helps early
# need not help late. An effect of half a percent that is real on PASCAL-Context would be invisible to us, as {numref}`fig-17-seen` shows.
#
# **Nor does a green line mean** that a paper is right. It says that the same sign came out, in another world, outside the noise.
#
# What would settle it is known and dull: the papers' data, the papers' size, and five seeds a row. With one GPU a row of ViT-B takes hours; the recipes are there ([chapter 16](16_training_on_cuda.ipynb)), the scorecard reads whatever they write, and the rule is already fixed.
#
# ## Exercises
#
# ```{exercise} By seed
# :label: ex-17-paired
# Write `paired(a, b, t)` for two dictionaries `{seed: gain}` that share some seeds, and a function `t(freedom)` that gives Student's quantile. It returns the mean difference over the shared seeds and half of its interval.
# ```

# %%
from mlore_edu.exercises import ch17


def paired(a, b, t): ...


_ = ch17.check_paired(paired)

# %% [markdown]
# ```{solution-start} ex-17-paired
# :class: dropdown
# ```


# %% jupyter={"source_hidden": true}
def paired(a, b, t):
    d = [a[seed] - b[seed] for seed in a if seed in b]
    return mean(d), t(len(d) - 1) * stdev(d) / len(d) ** 0.5


_ = ch17.check_paired(paired)

# %% [markdown]
# ```{solution-end}
# ```
#
# ```{exercise} The rule, with a margin
# :label: ex-17-margin
# "A third module brings nothing more" is a claim of *no* effect, and an interval that holds zero does not support it: a bad experiment always gives one. Write `no_effect(low, high, margin)`: `"supported"` if the whole interval lies within ± `margin`, `"contradicted"` if it lies wholly outside of it, else `"open"`.
# ```


# %%
def no_effect(low, high, margin): ...


_ = ch17.check_no_effect(no_effect)

# %% [markdown]
# ```{solution-start} ex-17-margin
# :class: dropdown
# ```
# Now a wide interval is open, as it should be, and only a narrow one can support the claim. Our third module:


# %% jupyter={"source_hidden": true}
def no_effect(low, high, margin):
    if -margin <= low and high <= margin:
        return "supported"
    return "contradicted" if low > margin or high < -margin else "open"


third = next(one for one in judged if one.claim.claim.startswith("a third module"))
print("within half a percent?", no_effect(third.ours.low, third.ours.high, 0.5))
_ = ch17.check_no_effect(no_effect)

# %% [markdown]
# ```{solution-end}
# ```
#
# ```{exercise} Kendall's τ
# :label: ex-17-kendall
# Write `tau(first, second)` for two lists of equal length. Pairs that are tied in either list count for neither side.
# ```


# %%
def tau(first, second): ...


_ = ch17.check_tau(tau)

# %% [markdown]
# ```{solution-start} ex-17-kendall
# :class: dropdown
# ```


# %% jupyter={"source_hidden": true}
def tau(first, second):
    pairs = [(i, j) for i in range(len(first)) for j in range(i)]
    agree = [(first[i] - first[j]) * (second[i] - second[j]) for i, j in pairs]
    return sum(np.sign(agree)) / len(pairs)


_ = ch17.check_tau(tau)

# %% [markdown]
# ```{solution-end}
# ```
#
# ```{exercise} A baseline from a gain
# :label: ex-17-baseline
# A model has the metrics `row` (a list), over baselines of which the one at place `unknown` is missing, and the printed gain `delta_m` in percent. `lower` says for each metric whether lower is better. Write `solve(row, baselines, unknown, delta_m, lower)`, which returns the missing baseline.
# ```


# %%
def solve(row, baselines, unknown, delta_m, lower): ...


_ = ch17.check_solve(solve)

# %% [markdown]
# ```{solution-start} ex-17-baseline
# :class: dropdown
# ```


# %% jupyter={"source_hidden": true}
def solve(row, baselines, unknown, delta_m, lower):
    signs = [-1 if low else 1 for low in lower]
    known = sum(
        s * (m / b - 1)
        for i, (m, b, s) in enumerate(zip(row, baselines, signs))
        if i != unknown
    )
    left = len(row) * delta_m / 100 - known  # = sign · (M / M_b − 1)
    return row[unknown] / (1 + signs[unknown] * left)


_ = ch17.check_solve(solve)

# %% [markdown]
# ```{solution-end}
# ```
#
# ## Takeaways
#
# - Every row of every table has its place: a count at full size, a counterpart on Dollhouse, or *not run* and why. None of the papers' accuracies was measured here.
# - The counts agree with the papers' to a percent or three, each in its own paper's unit.
# - At one budget the decoders' order is not that of their costs. Whose baseline one starts from moves Δm more than what is added to it.
# - A claim is two rows and a sign. Judged by a rule, with intervals over seeds, most are noise: the papers' steps are smaller than what so few seeds can see, and how far a seed moves the papers' own numbers nobody has said.
# - "In all tasks" is a claim about the worst of them, and "no effect" is one about a margin; each needs its own interval.
# - A sentence can fall by its own paper's table, and one stood only on a wrong number.
# - A radar shows the scale of its axes. An interval shows what you know.
#
# You can now read a results section with a pencil: ask each bold number for its spread, each sentence for its rows, and each table for what it leaves out. The full tables are in the [appendix](../appendix/all_tables.ipynb).
