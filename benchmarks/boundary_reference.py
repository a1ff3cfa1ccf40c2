"""The library's boundary evaluation against BSDS's own, as pyEdgeEval has it; test-only and optional.

    python3 -m venv /tmp/edgeeval
    /tmp/edgeeval/bin/pip install "numpy<2" "Cython<3" setuptools wheel opencv-python-headless scipy
    /tmp/edgeeval/bin/pip install --no-build-isolation --no-deps pyEdgeEval==0.2.8
    python benchmarks/boundary_reference.py /tmp/edgeeval/bin/python --json book/results/boundary_reference.json

pyEdgeEval wraps the matcher of the BSDS benchmark (GPL) and the suppression of Dollár's edges toolbox, so it is run in
an environment of its own and only its results are looked at. It gets the same arrays as the library: for each image the
probability, the library's ridges, the thinned map at every threshold, and the thinned truth.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from boundary import core_seconds, network_maps, noise_maps, recorded

from mlore_edu.atomic import write_atomically
from mlore_edu.data.dollhouse import scene
from mlore_edu.metrics.boundary import count_image, suppress
from mlore_edu.metrics.boundary_matching import match_thresholds, thin
from mlore_edu.metrics.boundary_protocols import PASCAL_BOUNDARY, PASCAL_PRESMOOTHED_BOUNDARY
from mlore_edu.training.run_folder import versions

INSIDE = """
import importlib.metadata, json, sys, time
import numpy as np
from pyEdgeEval._lib import correspond_pixels
from pyEdgeEval.common.binary_label.evaluate_boundaries import evaluate_boundaries_threshold_multiple_gts
from pyEdgeEval.preprocess.nms.fast_nms import fast_nms

given, told = np.load(sys.argv[1]), {}
distance = float(given["distance"])

def core_seconds(call):
    start = time.thread_time()
    result = call()
    return time.thread_time() - start, result

def matched(predicted, truth):
    found = correspond_pixels(predicted.astype(float), truth.astype(float), distance, 100.0)
    return [int((found[0] > 0).sum()), int((found[1] > 0).sum())]

def everything(probability, truth):
    found = evaluate_boundaries_threshold_multiple_gts(
        given["thresholds"], probability, [truth.astype(float)], distance, True, True
    )
    return [np.asarray(part).astype(int).tolist() for part in found]

for name in given.files:
    kind, number = name.rstrip("0123456789"), name.lstrip("abcdefghijklmnopqrstuvwxyz")
    truth = given["truth" + number] if kind in ("thinned", "probability") else None
    if kind == "thinned":
        seconds, pairs = core_seconds(lambda: [matched(its, truth) for its in given[name]])
        told[name] = {"seconds": seconds, "pairs": pairs}
    elif kind == "identical":
        told[name] = {"pairs": [matched(given[name], given[name])]}
    elif kind == "crest":
        told[name] = fast_nms(given[name].astype(np.float32), 1, 5, 1.01).astype(float).tolist()
    elif kind == "probability":
        told["kept" + number] = fast_nms(given[name].astype(np.float32), 1, 5, 1.01).astype(float).tolist()
        told["whole" + number] = everything(given[name], truth)
packages = {name: importlib.metadata.version(name) for name in ("pyEdgeEval", "numpy", "Cython")}
print("told:" + json.dumps({"packages": packages, "python": sys.version.split()[0], **told}))
"""


@dataclass(frozen=True)
class Options:
    """What to measure."""

    python: tyro.conf.Positional[Path]
    """Interpreter of the environment with pyEdgeEval."""
    small: int = 24
    """Scenes at 128×128, the size of the recorded predictions."""
    large: int = 1
    """Scenes at 375×500; each takes the reference minutes."""
    json: Path | None = None
    """Write a record here."""


def small_maps(number: int) -> tuple[np.ndarray, np.ndarray]:
    """The recorded prediction as it is, and the scene's boundaries at its size."""
    record = recorded()
    probability = record["probability"][number] / 255
    seed, difficulty = record["scenes"]["first seed"] + number, record["scenes"]["difficulty"]
    return probability, scene(seed, probability.shape[0], difficulty).edge


def ask(python: Path, arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    """What the reference says of these arrays."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "given.npz"
        np.savez(file, thresholds=PASCAL_BOUNDARY.thresholds, distance=PASCAL_BOUNDARY.max_distance, **arrays)
        command = [str(python), "-c", INSIDE, str(file)]
        said = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = [line for line in said.stdout.splitlines() if line.startswith("told:")]
    if not lines:
        raise SystemExit(f"{python} could not run pyEdgeEval; install it as this file says. {said.stderr[-300:]}")
    told: dict[str, Any] = json.loads(lines[0].removeprefix("told:"))
    return told


def f_measure(predicted: Any, matched_predicted: Any, true: Any, matched_true: Any) -> float:
    """odsF in percent from counts (images, thresholds) that are pooled."""
    predicted, matched_predicted, true, matched_true = (
        np.asarray(counts, dtype=float).sum(0) for counts in (predicted, matched_predicted, true, matched_true)
    )
    precision, recall = matched_predicted / np.maximum(predicted, 1), matched_true / np.maximum(true, 1)
    return float(100 * (2 * precision * recall / np.maximum(precision + recall, 1e-12)).max())


def compare(maps: list[tuple[np.ndarray, np.ndarray]], python: Path) -> dict[str, Any]:
    """The steps and the whole on some images of one size."""
    arrays: dict[str, np.ndarray] = {}
    counts, seconds, rounded = [], 0.0, []
    for number, (probability, target) in enumerate(maps):
        truth, coarse = thin(target == 1), np.round(probability * 255) / 255
        ridges = suppress(probability, PASCAL_BOUNDARY)
        reach = PASCAL_BOUNDARY.max_distance * float(np.hypot(*truth.shape))
        spent, found = core_seconds(
            lambda r=ridges, t=truth, d=reach: match_thresholds(r, t, PASCAL_BOUNDARY.thresholds, d)
        )
        seconds += spent
        counts.append([*found, np.full(len(found[0]), truth.sum())])
        rounded.append(coarse)
        arrays |= {
            f"truth{number}": truth,
            f"probability{number}": coarse,
            f"thinned{number}": np.stack([thin(ridges > threshold) for threshold in PASCAL_BOUNDARY.thresholds]),
        }
    told = ask(python, arrays)
    return {
        "images": len(maps),
        "size": list(maps[0][0].shape),
        "matching": matching(counts, seconds, told),
        "suppression": suppression(rounded, told),
        "whole": whole(maps, told),
        "reference": {"packages": told["packages"], "python": told["python"]},
    }


def matching(counts: list[list[np.ndarray]], seconds: float, told: dict[str, Any]) -> dict[str, Any]:
    """Pairs of the same thinned maps, by either solver."""
    predicted, ours, true = np.array(counts).swapaxes(0, 1)  # each (images, thresholds)
    theirs, of_truth = np.moveaxis([told[f"thinned{n}"]["pairs"] for n in range(len(counts))], 2, 0)
    return {
        "maps": ours.size,
        "maps that differ": int((ours != theirs).sum()),
        "largest difference": int((ours - theirs).max()),
        "reference has more": int((theirs > ours).sum()),
        "predicted pixels": int(predicted.sum()),
        "pairs": {"library": int(ours.sum()), "reference": int(theirs.sum())},
        "odsF": {
            "library": f_measure(predicted, ours, true, ours),
            "reference": f_measure(predicted, theirs, true, of_truth),
        },
        "core_seconds": {
            "library": seconds / len(counts),
            "reference": sum(told[f"thinned{n}"]["seconds"] for n in range(len(counts))) / len(counts),
        },
    }


def suppression(rounded: list[np.ndarray], told: dict[str, Any]) -> dict[str, Any]:
    """Ridges of the same probability, without and with the smoothing that the reference's have gone through."""
    theirs = [np.array(told[f"kept{n}"]) for n in range(len(rounded))]
    found: dict[str, Any] = {"kept by the reference": int(sum((its > 0.001).sum() for its in theirs))}
    for name, protocol in (("pascal", PASCAL_BOUNDARY), ("pascal_presmoothed", PASCAL_PRESMOOTHED_BOUNDARY)):
        ours = [suppress(image, protocol) for image in rounded]
        differ = [(mine > 0.001) != (its > 0.001) for mine, its in zip(ours, theirs)]
        values = [np.abs(mine - its)[~d].max() for mine, its, d in zip(ours, theirs, differ)]
        found[name] = {
            "kept": int(sum((mine > 0.001).sum() for mine in ours)),
            "differ": int(sum(d.sum() for d in differ)),
            "largest difference of the others": float(max(values)),
        }
    return found


def whole(maps: list[tuple[np.ndarray, np.ndarray]], told: dict[str, Any]) -> dict[str, Any]:
    """odsF from the probability on, by either."""
    counts = [count_image(probability, target, PASCAL_PRESMOOTHED_BOUNDARY) for probability, target in maps]
    predicted, matched = (np.array(part) for part in zip(*((c.predicted, c.matched) for c in counts)))
    true = np.array([[c.true] * len(c.predicted) for c in counts])
    theirs = np.array([told[f"whole{n}"] for n in range(len(maps))])  # (images, 4, thresholds)
    return {
        "predicted pixels": {"library": int(predicted.sum()), "reference": int(theirs[:, 3].sum())},
        "odsF": {
            "library": f_measure(predicted, matched, true, matched),
            "reference": f_measure(theirs[:, 3], theirs[:, 2], theirs[:, 1], theirs[:, 0]),
        },
    }


def identical(python: Path) -> dict[str, Any]:
    """How many pixels of a map find a partner in the map itself, asked twice: the reference draws random numbers."""
    mask = thin(noise_maps(0, 375, 500)[0] > 0.8)
    asked = [ask(python, {"identical0": mask})["identical0"]["pairs"][0][0] for _ in range(2)]
    return {"pixels": int(mask.sum()), "matched": asked}


def crests(python: Path) -> dict[str, float]:
    """What suppression makes of a straight ridge of height 1: its height, and its pixels if it lies or stands."""
    profile = np.exp(-((np.arange(101) - 50) ** 2) / 18)
    standing = np.tile(profile, (101, 1))
    told = {
        key: np.array(its)
        for key, its in ask(python, {"crest0": standing, "crest1": standing.T}).items()
        if "crest" in key
    }
    ours = [suppress(image, replace(PASCAL_PRESMOOTHED_BOUNDARY, levels=0)) for image in (standing, standing.T)]
    return {
        "height": float(told["crest0"].max()),
        "smoothed once": (1 + float(np.exp(-1 / 18))) / 2,
        "standing": int((told["crest0"] > 0.05).sum()),
        "lying": int((told["crest1"] > 0.05).sum()),
        "standing, library": int((ours[0] > 0.05).sum()),
        "lying, library": int((ours[1] > 0.05).sum()),
    }


def main(options: Options) -> None:
    start = time.perf_counter()
    small = [small_maps(number) for number in range(options.small)]
    large = [network_maps(number, 375, 500) for number in range(options.large)]
    record = {
        **versions(),
        "load": os.getloadavg()[0],
        "identical": identical(options.python),
        "crests": crests(options.python),
    }
    record["groups"] = []
    for maps in (small, large):
        if maps:
            record["groups"].append(compare(maps, options.python))
            print(json.dumps(record["groups"][-1], indent=1), flush=True)
    print(f"{record['identical']}, {record['crests']}, {time.perf_counter() - start:.0f} s")
    if options.json:
        write_atomically(options.json, (json.dumps(record, indent=1) + "\n").encode())


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
