"""What a run tells: its log, its evaluations, and at the end its metrics and pictures."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from mlore_edu.data.datasets import LabelledImages
from mlore_edu.errors import UserError
from mlore_edu.evaluation import Evaluation, draw, evaluate, recipe_meters
from mlore_edu.training import distributed
from mlore_edu.training.interruption import Interruption
from mlore_edu.training.run_folder import Log, RunFolder
from mlore_edu.training.setup import evaluation_loader

if TYPE_CHECKING:
    from mlore_edu.training.engine import Training


class Report:
    """Writes what happens in a run to its folder; only the main process writes, all of them evaluate.

    Parameters
    ----------
    training
        The run, at the iteration where it goes on.
    validation_set
        Images that every evaluation judges.
    folder
        Where to write.
    progress
        Show a progress bar while evaluating.
    """

    def __init__(self, training: Training, validation_set: LabelledImages, folder: RunFolder, progress: bool) -> None:
        self.training, self.validation_set, self.folder, self.progress = training, validation_set, folder, progress
        self.recipe = training.recipe
        self.log = Log(folder.path / "log.jsonl", training.iteration) if distributed.is_main() else None
        self.tensorboard = _tensorboard(folder, training.iteration) if self.recipe.tensorboard and self.log else None
        self._last = (training.iteration, time.perf_counter())

    def log_if_due(self, record: dict[str, Any]) -> None:
        """Write a step's losses every ``log_interval`` iterations: that step's values, averaged over processes."""
        if not self.training.is_due(self.recipe.log_interval):
            return
        record = distributed.mean_of(record)
        (iteration, moment), now = self._last, time.perf_counter()
        images = (self.training.iteration - iteration) * self.recipe.batch_size
        self._last = (self.training.iteration, now)
        self._write({**record, "images_per_second": round(images / (now - moment), 2)})

    def _write(self, entry: dict[str, Any]) -> None:
        if self.log:
            self.log.write(entry)
        if self.tensorboard:
            for name, value in _flatten(entry):
                self.tensorboard.add_scalar(name, value, entry["iteration"])
            self.tensorboard.flush()

    def evaluate_if_due(self, interruption: Interruption) -> None:
        """Evaluate every ``eval_interval`` iterations, unless the log already holds the result of this one."""
        iteration = self.training.iteration
        known = distributed.gather(self.log is not None and self.log.has_metrics(iteration))[0]
        if iteration and self.recipe.eval_interval and self.training.is_due(self.recipe.eval_interval) and not known:
            self._evaluate(interruption)

    def conclude(self, interruption: Interruption) -> dict[str, float]:
        """Evaluate the last iteration, write metrics and pictures, and return the metrics."""
        result = self._evaluate(interruption)
        if distributed.is_main():
            draw(
                self.training.judged,
                self.validation_set,
                self.recipe.task_set,
                self.folder.pictures,
                self.recipe.pictures,
            )
            self.folder.write_metrics(self.training.iteration, result.metrics, result.details)
        distributed.barrier()
        return result.metrics

    def _evaluate(self, interruption: Interruption) -> Evaluation:
        loader = evaluation_loader(self.recipe, self.validation_set)
        with interruption.at_once(self.training.iteration, self.folder.path):
            meters = recipe_meters(self.recipe)
            result = evaluate(self.training.judged, loader, self.recipe.task_set, meters=meters, progress=self.progress)
        self._last = (self.training.iteration, time.perf_counter())  # the evaluation is no part of the training speed
        if not (self.log and self.log.has_metrics(self.training.iteration)):
            self._write({"iteration": self.training.iteration, "metrics": result.metrics})
        return result


def _flatten(entry: dict[str, Any]) -> list[tuple[str, float]]:
    """``{"losses": {"depth": 1.0}}`` as ``[("losses/depth", 1.0)]``."""
    pairs: list[tuple[str, float]] = []
    for name, value in entry.items():
        if isinstance(value, dict):
            pairs += [(f"{name}/{inner}", number) for inner, number in value.items()]
        elif name != "iteration":
            pairs.append((name, value))
    return pairs


def _tensorboard(folder: RunFolder, iteration: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise UserError(
            "TensorBoard is not installed; run 'pip install tensorboard' or leave out --tensorboard."
        ) from error
    return SummaryWriter(str(folder.path / "tensorboard"), purge_step=iteration)
