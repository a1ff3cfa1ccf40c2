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
# # All tables
#
# Every row of every table of the four papers, with what this book has beside it. [Chapter 17](../part5_full_scale/17_results_side_by_side.ipynb) says how to read them and what
# may be compared; this page is only the register, and is made by the same code.
#
# - Plain numbers are printed in the papers. **Bold** numbers are ours. Where no unit is given it is percent, and the arrow points where better is.
# - Behind an equals sign stands what we **count** for the same network at its printed size, in the unit of the paper that the network is from.
# - The last column is Δm of the row's **counterpart on Dollhouse**, the same choice in a network of less than two million weights (tasks: those that its runs have). It belongs to another experiment: only differences between such
#   cells mean anything, and chapter 17 says how little most of them do.
# - No accuracy of the papers was run; under each table stands why.

# %% tags=["hide-input"]
import json
from pathlib import Path

from IPython.display import Markdown

from mlore_edu import published, scorecard
from mlore_edu.side_by_side import why_not, markdown, places

RESULTS = Path("../results")
runs = scorecard.read_runs(RESULTS)
counts = json.loads((RESULTS / "counts.json").read_text())["models"]


def show(paper, number):
    """One table with its places, and the reasons below it."""
    table = published.table(paper, number)
    its = places(table, runs, counts)
    lines = [f"**{table.source}.** {table.caption}", markdown(table, its)]
    return Markdown("\n\n".join([*lines, why_not(its)]))


# %% [markdown]
# ## MLoRE

# %% tags=["remove-input"] mystnb={"markdown_format": "myst"}
show("mlore", 1)

# %% tags=["remove-input"] mystnb={"markdown_format": "myst"}
show("mlore", 2)

# %% tags=["remove-input"] mystnb={"markdown_format": "myst"}
show("mlore", 3)

# %% tags=["remove-input"] mystnb={"markdown_format": "myst"}
show("mlore", 4)

# %% tags=["remove-input"] mystnb={"markdown_format": "myst"}
show("mlore", 5)

# %% tags=["remove-input"] mystnb={"markdown_format": "myst"}
show("mlore", 6)

# %% tags=["remove-input"] mystnb={"markdown_format": "myst"}
show("mlore", 7)

# %% [markdown]
# ## MLoRE, the supplement

# %% tags=["remove-input"] mystnb={"markdown_format": "myst"}
show("mlore_supplement", 1)

# %% tags=["remove-input"] mystnb={"markdown_format": "myst"}
show("mlore_supplement", 2)

# %% tags=["remove-input"] mystnb={"markdown_format": "myst"}
show("mlore_supplement", 3)

# %% tags=["remove-input"] mystnb={"markdown_format": "myst"}
show("mlore_supplement", 4)

# %% tags=["remove-input"] mystnb={"markdown_format": "myst"}
show("mlore_supplement", 5)

# %% tags=["remove-input"] mystnb={"markdown_format": "myst"}
show("mlore_supplement", 6)

# %% tags=["remove-input"] mystnb={"markdown_format": "myst"}
show("mlore_supplement", 7)

# %% [markdown]
# The last one is a figure with numbers, the mean gates of the eight modules; its cells are printed as a table in the
# repository (`mlore_edu/published`) and examined in chapters [7](../part2_mlore/07_routers.ipynb) and
# [18](../part5_full_scale/18_looking_inside.ipynb).

# %% tags=["remove-input"] mystnb={"markdown_format": "myst"}
show("mlore_supplement", "figure 5")

# %% [markdown]
# ## TaskExpert

# %% tags=["remove-input"] mystnb={"markdown_format": "myst"}
show("taskexpert", 1)

# %% tags=["remove-input"] mystnb={"markdown_format": "myst"}
show("taskexpert", 2)

# %% tags=["remove-input"] mystnb={"markdown_format": "myst"}
show("taskexpert", 3)

# %% tags=["remove-input"] mystnb={"markdown_format": "myst"}
show("taskexpert", 4)

# %% tags=["remove-input"] mystnb={"markdown_format": "myst"}
show("taskexpert", 5)

# %% [markdown]
# ## TIF

# %% tags=["remove-input"] mystnb={"markdown_format": "myst"}
show("tif", 1)

# %% tags=["remove-input"] mystnb={"markdown_format": "myst"}
show("tif", 2)

# %% tags=["remove-input"] mystnb={"markdown_format": "myst"}
show("tif", 3)

# %% tags=["remove-input"] mystnb={"markdown_format": "myst"}
show("tif", 4)

# %% tags=["remove-input"] mystnb={"markdown_format": "myst"}
show("tif", 5)

# %% tags=["remove-input"] mystnb={"markdown_format": "myst"}
show("tif", 6)

# %% tags=["remove-input"] mystnb={"markdown_format": "myst"}
show("tif", 7)

# %% tags=["remove-input"] mystnb={"markdown_format": "myst"}
show("tif", 8)

# %% tags=["remove-input"] mystnb={"markdown_format": "myst"}
show("tif", 9)

# %% tags=["remove-input"] mystnb={"markdown_format": "myst"}
show("tif", 10)

# %% [markdown]
# ## Every network of the sweeps
#
# Relative gains over single-task networks in percent, means over seeds; the half-width of Δm's 95 % interval stands
# behind ±. These are the networks that stand beside the papers' tables, and their variants. Those of the book's own
# questions, the hybrids of chapter 20 among them, are shown in the chapters that ask.

# %% tags=["hide-input"]
import mlore_edu as me
from mlore_edu.seeds import paired_interval


def all_runs(paper):
    names = me.DOLLHOUSE.names
    short = [name.replace("human_", "") for name in names]
    heads = ["row", "seeds", "Δm", *short]
    lines = [heads, ["---"] * len(heads)]
    for (sweep, row), its in runs.items():
        if not sweep.startswith(f"{paper}/") or len(its) < 1:
            continue
        means = [[run[n] for run in its.values() if n in run] for n in names]
        cells = [f"{sum(m) / len(m):+.1f}" if m else "–" for m in means]
        gains = [sum(run.values()) / len(run) for run in its.values()]
        middle = f"{sum(gains) / len(gains):+.1f}"
        if len(gains) > 1:
            found = paired_interval(gains)
            middle += f"\u00a0±\u00a0{found.high - found.value:.1f}"
        name = f"{sweep.split('/')[1]}: {row}"
        lines.append([name, str(len(its)), middle, *cells])
    return Markdown("\n".join(f"| {' | '.join(line)} |" for line in lines))


# %% tags=["remove-input"] mystnb={"markdown_format": "myst"}
all_runs("mlore")

# %% tags=["remove-input"] mystnb={"markdown_format": "myst"}
all_runs("taskexpert")

# %% tags=["remove-input"] mystnb={"markdown_format": "myst"}
all_runs("tif")
