"""Batches, in an order that is random, endless and exactly repeatable (chapter 3).

A training run that is interrupted and resumed must see what the unbroken run would have seen. So nothing here has a
state: which image is draw number p, and how it is augmented, are functions of (seed, p) alone. Iteration n consists of
the draws n·B … n·B + B − 1, whoever loads them: a run resumed at n, any number of workers, and any number of processes
(rank r of R takes the r-th part of a batch of R·B) see the same draws. For the same reason it does not matter where a
sample is augmented: in a loading process, or in the training process on its device (chapter 16).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from mlore_edu.data.datasets import LabelledImages
from mlore_edu.data.device_batches import StoredBatch, one_ahead
from mlore_edu.data.dollhouse_files import DollhouseFolder
from mlore_edu.data.nyud_v2 import NYUDv2
from mlore_edu.data.pascal_context import PASCALContext
from mlore_edu.data.tensors import Sample, Step
from mlore_edu.errors import UserError
from mlore_edu.tasks import TaskSet


class Reader(Protocol):
    """How a data set on disk is opened."""

    def __call__(
        self, root: str | Path, split: str, tasks: TaskSet | None, transform: Step | None
    ) -> LabelledImages: ...


READERS: dict[str, Reader] = {"dollhouse": DollhouseFolder, "pascal_context": PASCALContext, "nyud_v2": NYUDv2}
"""Readers by the name that recipes and the command line use."""

Draw = tuple[int, int | None]
"""Index of a sample, and the number of this draw (None: no chance involved)."""
Batch = dict[str, Any]
"""``{"image": (B, 3, H, W), "<task>": …, "meta": list of B dicts}``."""


@lru_cache(maxsize=4)
def epoch_order(count: int, seed: int, epoch: int) -> tuple[int, ...]:
    """The permutation of ``count`` samples in which one epoch visits them."""
    return tuple(int(index) for index in np.random.default_rng((seed, epoch)).permutation(count))


def batch_draws(
    count: int, batch_size: int, iteration: int, seed: int = 0, rank: int = 0, world_size: int = 1
) -> list[Draw]:
    """Which samples form a training batch.

    Parameters
    ----------
    count
        Samples in the data set.
    batch_size
        Samples per process and iteration.
    iteration
        Number of the iteration, from 0.
    seed
        Seed of the run.
    rank, world_size
        This process and the number of processes; together they draw what one process would with their joint batch.

    Returns
    -------
    list of (index, draw)
        ``batch_size`` pairs; ``draw`` numbers all draws of the run and seeds the augmentation.
    """
    first = (iteration * world_size + rank) * batch_size
    return [(epoch_order(count, seed, draw // count)[draw % count], draw) for draw in range(first, first + batch_size)]


def draw_generator(seed: int, draw: int) -> torch.Generator:
    """The source of chance of one draw, independent of all others."""
    state = np.random.SeedSequence((seed, draw)).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state[0]))


def _chance(seed: int, number: int | None) -> torch.Generator | None:
    return None if number is None else draw_generator(seed, number)


def collate(samples: Sequence[Sample | UserError]) -> Batch | UserError:
    """Stack the tensors of several samples; ``meta`` becomes a list."""
    good = _without_errors(samples)
    return good if isinstance(good, UserError) else _stack(good)


def collate_as_stored(samples: Sequence[Sample | UserError]) -> StoredBatch | UserError:
    """Put samples of different sizes into one message to the training process."""
    good = _without_errors(samples)
    return good if isinstance(good, UserError) else StoredBatch.of(good)


def _without_errors(samples: Sequence[Sample | UserError]) -> list[Sample] | UserError:
    good: list[Sample] = []
    for sample in samples:
        if isinstance(sample, UserError):
            return sample
        good.append(sample)
    return good


def _stack(samples: Sequence[Sample]) -> Batch:
    return {
        name: [sample[name] for sample in samples] if name == "meta" else torch.stack([s[name] for s in samples])
        for name in samples[0]
    }


class _Drawn(Dataset[Sample | UserError]):
    """The data set addressed by draws; a user's error travels as a value, or a worker would bury it in a traceback."""

    def __init__(self, dataset: LabelledImages, seed: int, augment: bool) -> None:
        self.dataset, self.seed, self.augment = dataset, seed, augment

    def __getitem__(self, draw: Draw) -> Sample | UserError:
        index, number = draw
        try:
            if self.augment:
                return self.dataset.draw(index, _chance(self.seed, number))
            return {**self.dataset.load(index), "draw": number}
        except UserError as error:
            return error


class DeviceAugmentation:
    """What the loading processes leave to the training process: the same transform with the same chance, on its device.

    Parameters
    ----------
    transform
        The data set's.
    seed
        The loader's.
    device
        Where the tensors of the batch shall be. On a CPU the batches are those of the ordinary loader bit for bit; a
        GPU rounds otherwise, a resized image by up to one of its 255 levels.
    """

    def __init__(self, transform: Step, seed: int, device: torch.device) -> None:
        self.transform, self.seed, self.device = transform, seed, device

    def __call__(self, stored: StoredBatch) -> Batch:
        """Augment and stack samples that carry the number of their draw."""
        samples = stored.on(self.device)
        return _stack([self.transform(sample, _chance(self.seed, sample.pop("draw"))) for sample in samples])


class _TrainingBatches:
    """The endless sequence of batches of one process, from ``start_iteration`` on."""

    def __init__(self, count: int, batch_size: int, seed: int, start_iteration: int, rank: int, world_size: int):
        self.arguments = (count, batch_size)
        self.shard = (seed, rank, world_size)
        self.start_iteration = start_iteration

    def __iter__(self) -> Iterator[list[Draw]]:
        iteration = self.start_iteration
        while True:
            yield batch_draws(*self.arguments, iteration, *self.shard)
            iteration += 1


class Loader:
    """Iterating gives batches: endlessly for training, once through the data for evaluation (then it has a length)."""

    def __init__(
        self, batches: DataLoader[Any], length: int | None, augmentation: DeviceAugmentation | None = None
    ) -> None:
        self._batches, self._length, self._augmentation = batches, length, augmentation

    def __iter__(self) -> Iterator[Batch]:
        loaded = map(_raised, iter(self._batches))
        if self._augmentation is None:
            return loaded
        return one_ahead(map(self._augmentation, loaded), self._augmentation.device)

    def __len__(self) -> int:
        if self._length is None:
            raise TypeError("a training loader is endless and has no length")
        return self._length


def _raised(batch: Any) -> Any:
    if isinstance(batch, UserError):
        raise batch
    return batch


def make_loader(
    dataset: LabelledImages,
    batch_size: int,
    *,
    train: bool,
    seed: int = 0,
    workers: int = 0,
    start_iteration: int = 0,
    rank: int = 0,
    world_size: int = 1,
    device: torch.device | None = None,
) -> Loader:
    """Batches of a data set.

    Parameters
    ----------
    dataset
        A data set with a transform.
    batch_size
        Samples per batch and process.
    train
        True: endless, shuffled by ``seed``, beginning with iteration ``start_iteration``. False: each sample once,
        in order, the last batch short.
    seed
        Not negative; decides order and augmentation.
    workers
        Loading processes; 0 loads in this one.
    start_iteration
        First iteration of a resumed run.
    rank, world_size
        This process and their number. Training: disjoint parts of a joint batch. Evaluation: every
        ``world_size``-th sample, none twice.
    device
        Transform the samples there, in this process, one batch ahead; the loading processes only read. For few cores
        beside a fast GPU. None: the loading processes do both, and the batches are in the CPU's memory.

    Returns
    -------
    Loader
        Iterable of ``{"image": float32 (B, 3, H, W), "<task>": target, "meta": list}``.

    Raises
    ------
    UserError
        If the data set is empty or has no transform, or a number makes no sense; and while iterating, if a file
        cannot be used.
    """
    if dataset.transform is None:
        raise UserError("Samples of different sizes cannot form a batch; give the data set a transform.")
    if len(dataset) == 0 or batch_size < 1 or not 0 <= rank < world_size:
        raise UserError(
            f"No batch can be made of {len(dataset)} samples with batch size {batch_size} in process {rank} of "
            f"{world_size}; all but the process number must be at least 1."
        )
    draws: Any
    length = None
    if train:
        draws = _TrainingBatches(len(dataset), batch_size, seed, start_iteration, rank, world_size)
    else:
        mine = range(rank, len(dataset), world_size)
        draws = [[(index, None) for index in mine[i : i + batch_size]] for i in range(0, len(mine), batch_size)]
        length = len(draws)
    batches: DataLoader[Any] = DataLoader(
        _Drawn(dataset, seed, augment=device is None),
        batch_sampler=draws,
        num_workers=workers,
        collate_fn=collate if device is None else collate_as_stored,
        pin_memory=torch.cuda.is_available(),
        # DataLoader draws a number when iteration begins; a generator of its own keeps the global one untouched.
        generator=torch.Generator().manual_seed(seed),
    )
    return Loader(batches, length, DeviceAugmentation(dataset.transform, seed, device) if device is not None else None)


def open_dataset(
    name: str, root: str | Path, split: str, tasks: TaskSet | None = None, transform: Step | None = None
) -> LabelledImages:
    """Open a data set on disk by the name that recipes use.

    Parameters
    ----------
    name
        ``"dollhouse"``, ``"pascal_context"`` or ``"nyud_v2"``.
    root
        Its folder.
    split
        ``"train"`` or ``"val"``.
    tasks
        Labels to read; None reads all.
    transform
        Applied to every sample.

    Raises
    ------
    UserError
        If the name is unknown, or the folder does not hold that data set.
    """
    if name not in READERS:
        raise UserError(f"There is no data set {name!r}; choose one of {', '.join(READERS)}.")
    return READERS[name](root, split, tasks, transform)
