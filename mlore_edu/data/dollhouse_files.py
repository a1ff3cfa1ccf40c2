"""Dollhouse as data sets: rendered in memory, written to a folder, and read from one (chapters 1 and 3)."""

from __future__ import annotations

import hashlib
import json
import shlex
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from torchvision import tv_tensors
from tqdm import tqdm

from mlore_edu.data import labels
from mlore_edu.data.datasets import LabelledImages
from mlore_edu.data.dollhouse import Scene, scene
from mlore_edu.data.dollhouse_layouts import (
    SPLIT_FILES,
    Layout,
    scene_files,
    scene_name,
    write_file,
    write_scene,
)
from mlore_edu.data.files import class_map, depth_map, normals_map, open_split
from mlore_edu.data.interiors import DIFFICULTIES
from mlore_edu.data.parallel import in_parallel
from mlore_edu.data.tensors import Sample, Step
from mlore_edu.errors import UserError
from mlore_edu.tasks import DOLLHOUSE, DOLLHOUSE_CLASSES, PART_NAMES, TaskSet

VALIDATION_SEEDS = 1_000_000
"""Validation scenes have the seeds from here on, training scenes those from 0: the two never meet."""
GENERATOR = 1
"""Version of the pictures: raised when the same seed renders another scene, so that old and new do not mix."""


def to_sample(rendered: Scene, name: str) -> Sample:
    """A rendered scene in the form in which every data set of the book hands out its samples."""
    return {
        "image": tv_tensors.Image(torch.from_numpy(np.ascontiguousarray(rendered.image.transpose(2, 0, 1)))),
        "semseg": class_map(rendered.semseg),
        "human_parts": class_map(rendered.human_parts),
        "saliency": class_map(rendered.saliency),
        "normals": normals_map(rendered.normals),
        "depth": depth_map(rendered.depth),
        "edge": class_map(rendered.edge),
        "meta": {"id": name, "size": rendered.image.shape[:2]},
    }


class DollhouseScenes(LabelledImages):
    """Scenes rendered when first asked for and kept in memory: no files, nothing to download.

    Parameters
    ----------
    count
        Number of scenes.
    size
        Side in pixels, or (height, width).
    difficulty
        ``"easy"``, ``"medium"`` or ``"full"``.
    first_seed
        Seed of the first scene; the others follow. Start validation scenes at ``VALIDATION_SEEDS``.
    transform, tasks
        As for every data set.
    """

    offers = DOLLHOUSE

    def __init__(
        self,
        count: int,
        size: int | tuple[int, int] = 64,
        difficulty: str = "easy",
        first_seed: int = 0,
        transform: Step | None = None,
        tasks: TaskSet = DOLLHOUSE,
    ) -> None:
        if count < 1:
            raise UserError(f"{count} Dollhouse scenes are none; ask for at least one.")
        super().__init__([scene_name(first_seed + i) for i in range(count)], tasks, transform)
        self.size, self.difficulty = size, difficulty
        self._rendered: dict[int, Sample] = {}

    def load(self, index: int) -> Sample:
        if index not in self._rendered:
            rendered = scene(int(self.ids[index]), self.size, self.difficulty)
            self._rendered[index] = to_sample(rendered, self.ids[index])
        sample = self._rendered[index]
        return {name: sample[name] for name in ("image", *self.tasks.names, "meta")}

    def render(self, progress: bool = True) -> DollhouseScenes:
        """Render everything now, with a progress bar, and return the data set itself."""
        for index in tqdm(range(len(self)), desc="rendering", unit="scene", disable=not progress):
            self.load(index)
        return self


class DollhouseFolder(LabelledImages):
    """Dollhouse scenes read from the folder that ``mlore-edu dollhouse`` wrote, all six tasks.

    Parameters
    ----------
    root
        The folder; it is only read.
    split
        ``"train"`` or ``"val"``.
    tasks, transform
        As for every data set.

    Raises
    ------
    UserError
        Naming the folder or file that is missing, damaged, of another size than its image, or out of range.
    """

    offers = DOLLHOUSE

    def __init__(
        self, root: str | Path, split: str, tasks: TaskSet | None = None, transform: Step | None = None
    ) -> None:
        layout = (_stored(Path(root)) or {}).get("layout", "dollhouse")
        if layout != "dollhouse":
            raise UserError(
                f"{root} holds a Dollhouse in the layout of {layout}; read it as that data set (--data {layout}), or "
                "choose another folder."
            )
        remedy = f"run '{_command(Path(root))}', which renders what is missing"
        self.folder, ids = open_split(root, SPLIT_FILES["dollhouse"], split, "a finished Dollhouse", remedy)
        super().__init__(ids, tasks or self.offers, transform)

    def load(self, index: int) -> Sample:
        name = self.ids[index]
        image = self.folder.image(f"images/{name}.png")
        shape = (image.shape[-2], image.shape[-1])
        sample: Sample = {"image": image}
        for task in self.tasks.names:
            sample[task] = self._label(task, f"{task}/{name}.png", shape)
        return {**sample, "meta": {"id": name, "size": shape}}

    def _label(self, task: str, path: str, shape: tuple[int, int]) -> Any:
        if task == "normals":
            return normals_map(labels.decode_normals(self.folder.coloured(path, shape), shortest=0.5))
        if task == "edge":
            return class_map(self.folder.mask(path, shape))
        pixels = self.folder.grey(path, shape, bits=16 if task == "depth" else 8)
        if task == "depth":
            return depth_map(labels.decode_depth(pixels))
        if task == "saliency":
            return class_map(labels.decode_saliency(pixels))
        self.folder.check_values(path, pixels, len(DOLLHOUSE_CLASSES if task == "semseg" else PART_NAMES) - 1)
        return class_map(pixels)


@dataclass(frozen=True)
class Settings:
    """What decides every byte of a written Dollhouse; stored as ``dataset.json`` in its folder."""

    layout: Layout
    size: tuple[int, int]
    difficulty: str
    train: int
    val: int
    seed: int
    generator: int = GENERATOR

    def seeds(self, split: str) -> range:
        """Seeds of a split's scenes: those of different splits and of different ``seed`` never meet."""
        first = 2 * VALIDATION_SEEDS * self.seed + (VALIDATION_SEEDS if split == "val" else 0)
        return range(first, first + (self.train if split == "train" else self.val))

    def check(self) -> None:
        """Raise a :class:`UserError` about the first setting that is not possible."""
        largest = 512 if self.size[0] == self.size[1] else 640  # NYUD-v2's pictures are 425×560
        if not all(64 <= side <= largest for side in self.size):
            size = "×".join(map(str, self.size))
            raise UserError(f"Dollhouse is not rendered at {size}; choose sides from 64 to 512 (a pair: to 640).")
        if self.layout not in get_args(Layout):
            raise UserError(f"There is no layout {self.layout!r}; choose one of {', '.join(get_args(Layout))}.")
        if self.difficulty not in DIFFICULTIES:
            raise UserError(f"There is no difficulty {self.difficulty!r}; choose one of {', '.join(DIFFICULTIES)}.")
        if not (0 < self.train <= VALIDATION_SEEDS and 0 < self.val <= VALIDATION_SEEDS and self.seed >= 0):
            raise UserError(
                f"{self.train} training and {self.val} validation scenes with seed {self.seed} cannot be made; "
                f"give counts from 1 to {VALIDATION_SEEDS:,} and a seed of at least 0."
            )


def _stored(root: Path) -> dict[str, Any] | None:
    """The settings in a folder's ``dataset.json``, or None if there are none that can be read."""
    try:
        stored = json.loads((root / "dataset.json").read_text(encoding="utf-8"))
        return {**stored["settings"], "size": tuple(stored["settings"]["size"])}
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _command(root: Path) -> str:
    """The command that makes or completes the folder."""
    settings = _stored(root) or {}
    options = [f"--{name} {settings[name]}" for name in ("layout", "difficulty", "train", "val", "seed") if settings]
    if settings:
        options.append("--size " + " ".join(map(str, settings["size"])))
    return " ".join(["mlore-edu dollhouse --root", shlex.quote(str(root)), *options])


def write_dollhouse(
    root: str | Path,
    layout: Layout = "dollhouse",
    size: int | tuple[int, int] = 128,
    difficulty: str = "easy",
    *,
    train: int = 1000,
    val: int = 100,
    seed: int = 0,
    workers: int = 1,
    progress: bool = True,
) -> str:
    """Render a Dollhouse data set into a folder; an interrupted call is completed by calling again.

    Every file appears as a whole or not at all. ``SHA256SUMS`` lists the finished ones (``sha256sum -c`` checks them),
    ``dataset.json`` the settings. A second call keeps files that match and renders missing or damaged ones again.

    Parameters
    ----------
    root
        The folder, new or empty, or begun with the same settings.
    layout
        File formats: ``"dollhouse"``, ``"pascal_context"`` or ``"nyud_v2"``.
    size
        Side, or (height, width), in pixels.
    difficulty
        ``"easy"``, ``"medium"`` or ``"full"``.
    train, val
        Number of scenes in each split.
    seed
        Another seed gives other scenes.
    workers
        Rendering processes; the files do not depend on it.
    progress
        Whether to show a progress bar and the content hash.

    Returns
    -------
    str
        Content hash: SHA-256 of the finished ``SHA256SUMS``. Same settings, same hash.

    Raises
    ------
    UserError
        If a setting is impossible, the folder holds something else, or it cannot be written.
    KeyboardInterrupt
        On Ctrl-C, saying how to go on.
    """
    root = Path(root)
    sides = (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))
    settings = Settings(layout, sides, difficulty, train, val, seed)
    settings.check()
    _refuse_other_content(root, settings)
    try:
        root.mkdir(parents=True, exist_ok=True)
        _describe(root, settings, None)
        sums = _finished(root, settings)
        _render_missing(root, settings, sums, workers, progress)
        content_hash = _complete(root, settings, sums)
    except OSError as error:
        raise UserError(
            f"Dollhouse cannot be written to {root} ({error.strerror or error}); make room or grant permission there, "
            "then run the same command to go on."
        ) from None
    except BrokenProcessPool:
        raise UserError(
            "A rendering process was ended from outside, perhaps for lack of memory; run the same command with fewer "
            "workers to go on."
        ) from None
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"interrupted; '{_command(root)}' goes on where it stopped.") from None
    if progress:
        print(f"{train + val} scenes in {root}, content hash sha256:{content_hash}")
    return content_hash


def _refuse_other_content(root: Path, settings: Settings) -> None:
    if root.exists() and not root.is_dir():
        raise UserError(f"{root} is a file; choose another folder.")
    stored = _stored(root)
    if stored is None:
        if root.exists() and any(path.name != ".dataset.json.draft" for path in root.iterdir()):
            raise UserError(f"{root} is not empty and holds no Dollhouse; choose another folder.")
        return
    for name, value in asdict(settings).items():
        if stored.get(name) != value:
            raise UserError(
                f"{root} holds a Dollhouse with {name} {stored.get(name)}, not {value}; choose another folder, or "
                "delete this one."
            )


def _describe(root: Path, settings: Settings, content_hash: str | None) -> None:
    content = {
        "name": "Dollhouse, rendered by mlore-edu",
        "settings": asdict(settings),
        "seeds": {split: [settings.seeds(split)[0], settings.seeds(split)[-1]] for split in ("train", "val")},
        "classes": DOLLHOUSE_CLASSES,
        "content_hash": content_hash,
    }
    write_file(root / "dataset.json", json.dumps(content, indent=1).encode())


def _sha256(path: Path) -> str | None:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except FileNotFoundError:
        return None


def _finished(root: Path, settings: Settings) -> dict[str, str]:
    """SHA-256 by path of the scenes whose files are all there and unchanged."""
    sums_file = root / "SHA256SUMS"
    lines = sums_file.read_text(encoding="utf-8").splitlines() if sums_file.exists() else []
    listed = {path: digest for digest, _, path in (line.partition("  ") for line in lines)}
    kept: dict[str, str] = {}
    for split in ("train", "val"):
        for seed in settings.seeds(split):
            paths = scene_files(settings.layout, scene_name(seed))
            if all(path in listed and _sha256(root / path) == listed[path] for path in paths):
                kept.update((path, listed[path]) for path in paths)
    return kept


def _sums_text(sums: dict[str, str]) -> str:
    return "".join(f"{sums[path]}  {path}\n" for path in sorted(sums))


def _render_missing(root: Path, settings: Settings, sums: dict[str, str], workers: int, progress: bool) -> None:
    """Render what ``sums`` does not hold yet; a scene whose files are written is entered there and in SHA256SUMS."""
    seeds = [*settings.seeds("train"), *settings.seeds("val")]
    jobs = [
        (str(root), settings.layout, seed, settings.size, settings.difficulty)
        for seed in seeds
        if scene_files(settings.layout, scene_name(seed))[0] not in sums
    ]
    write_file(root / "SHA256SUMS", _sums_text(sums).encode())
    bar = tqdm(total=len(seeds), initial=len(seeds) - len(jobs), desc=str(root), unit="scene", disable=not progress)
    with bar, (root / "SHA256SUMS").open("a", encoding="utf-8") as sums_file:
        for written in in_parallel(write_scene, jobs, workers):
            sums.update(written)
            sums_file.write(_sums_text(written))
            sums_file.flush()
            bar.update()


def _complete(root: Path, settings: Settings, sums: dict[str, str]) -> str:
    """Write the lists of both splits and the final SHA256SUMS; only now can readers open the folder."""
    for split in ("train", "val"):
        path = SPLIT_FILES[settings.layout].format(split)
        content = "".join(f"{scene_name(seed)}\n" for seed in settings.seeds(split)).encode()
        write_file(root / path, content)
        sums[path] = hashlib.sha256(content).hexdigest()
    text = _sums_text(sums).encode()
    write_file(root / "SHA256SUMS", text)
    content_hash = hashlib.sha256(text).hexdigest()
    _describe(root, settings, content_hash)
    return content_hash
