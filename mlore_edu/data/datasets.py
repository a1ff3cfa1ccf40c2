"""What all data sets of the book have in common: ids, a way to read one sample, tasks, and a transform (chapter 1)."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, TypeVar

import torch
from torch.utils.data import Dataset

from mlore_edu.data.tensors import Sample, Step
from mlore_edu.errors import UserError
from mlore_edu.tasks import TaskSet

Data = TypeVar("Data", bound="LabelledImages")


class LabelledImages(ABC, Dataset[Sample]):
    """Images with the labels of several tasks.

    Parameters
    ----------
    ids
        One name per image, in order.
    tasks
        The labels to read: any subset of what the data set ``offers``.
    transform
        Applied to every sample by ``dataset[i]`` and by the loaders; None leaves the labels as they are stored.

    Raises
    ------
    UserError
        If a task is asked for that the data set does not offer.
    """

    offers: ClassVar[TaskSet]

    def __init__(self, ids: Sequence[str], tasks: TaskSet, transform: Step | None = None) -> None:
        for task in tasks:
            if task.name not in self.offers or self.offers[task.name].channels != task.channels:
                raise UserError(
                    f"{self.offers.name} has no labels for {tasks.name}'s {task.name} with {task.channels} channels; "
                    f"use the task set {self.offers.name} or a subset of it."
                )
        self.ids = tuple(ids)
        self.tasks = tasks
        self.transform = transform

    @abstractmethod
    def load(self, index: int) -> Sample:
        """The sample as stored: image uint8 (3, H, W), labels as typed tensors, ``meta`` with ``id`` and ``size``."""

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> Sample:
        return self.draw(index, None)

    def draw(self, index: int, generator: torch.Generator | None) -> Sample:
        """The transformed sample; ``generator`` is the only source of chance in it."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"index {index} is outside of {len(self)} samples")
        sample = self.load(index % len(self))
        return sample if self.transform is None else self.transform(sample, generator)

    def using(self: Data, *, tasks: TaskSet | None = None, transform: Step | None = None) -> Data:
        """The same data seen with other tasks or another transform (whatever is cached stays shared)."""
        twin = copy.copy(self)
        # Checks the tasks as on construction.
        LabelledImages.__init__(twin, self.ids, tasks or self.tasks, transform or self.transform)
        return twin
