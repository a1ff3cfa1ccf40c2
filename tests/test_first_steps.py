"""What the README says of a newcomer's first minutes was measured (benchmarks/first_steps.py)."""

import json
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_the_readme_says_of_the_first_steps_what_was_measured():
    seconds = json.loads((ROOT / "book" / "results" / "first_steps.json").read_text())["seconds"]
    figure = sum(seconds[step] for step in ("clone", "install", "first figure"))
    stated = re.search(
        r"our machine needed under (\d+) minutes, .*?under (\d+);", (ROOT / "README.md").read_text(), re.S
    )
    for minutes, measured in zip(stated.groups(), (figure, sum(seconds.values()))):
        assert int(minutes) - 1.5 <= measured / 60 < int(minutes)
