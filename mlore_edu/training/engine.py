"""The training loop, to be read in one sitting (chapters 3 and 16).

:func:`train` opens what a recipe names, :func:`fit` is the loop, and :class:`Training` is what the loop changes: a step
moves it one iteration on, a checkpoint stores it, restoring a checkpoint continues *exactly* where it was. Every number
that a step depends on is therefore either in the checkpoint (weights, BatchNorm statistics, optimiser, loss scale,
random numbers) or a function of the iteration (learning rate, batch, augmentation).
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

from mlore_edu.data.datasets import LabelledImages
from mlore_edu.data.loaders import Batch, Loader, make_loader
from mlore_edu.errors import UserError
from mlore_edu.losses import MultiTaskLoss
from mlore_edu.training import checkpoint, distributed
from mlore_edu.training.interruption import Interruption
from mlore_edu.training.recipe import Recipe
from mlore_edu.training.recompute import checkpoint_activations
from mlore_edu.training.report import Report
from mlore_edu.training.run_folder import RunFolder
from mlore_edu.training.setup import arrange, make_datasets, make_model, make_optimizer

AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


def train(recipe: Recipe, run: Path, *, progress: bool = True) -> dict[str, float]:
    """Train a recipe in a run folder, or go on where it stopped.

    Parameters
    ----------
    recipe
        What to train; its data set is opened at ``recipe.root``.
    run
        Folder of the run; created if it does not exist.
    progress
        Show progress bars.

    Returns
    -------
    dict
        The metric of every task after the last iteration (units: chapter 2). A complete run is not trained again.

    Raises
    ------
    UserError
        For a wrong root, another recipe's folder, a loss that is not finite, a full disk, …
    KeyboardInterrupt
        On Ctrl-C or SIGTERM, after a checkpoint was saved; the message says how to go on.
    """
    folder = RunFolder(run)
    if finished := folder.result(recipe):
        return finished
    started = distributed.start()
    try:
        checkpoint.seed_everything(recipe.seed)  # before the model is made: its first weights are random
        train_set, validation_set = make_datasets(recipe)
        return fit(make_model(recipe), train_set, validation_set, recipe, run, progress=progress)
    finally:
        if started:
            distributed.stop()


def fit(
    model: nn.Module,
    train_set: LabelledImages,
    validation_set: LabelledImages,
    recipe: Recipe,
    run: Path,
    *,
    device: torch.device | None = None,
    progress: bool = True,
) -> dict[str, float]:
    """The loop of :func:`train`, for a model and data sets that are there already; trains the model in place."""
    folder = RunFolder(run)
    progress = progress and distributed.is_main()
    with folder.claimed(recipe), Interruption() as interruption:
        training = Training(model, recipe, device or distributed.default_device())
        training.restore(folder)
        if finished := folder.result(recipe):
            return finished
        report = Report(training, validation_set, folder, progress)
        batches = iter(training.loader(train_set))
        bar = tqdm(desc="training", total=recipe.iterations, initial=training.iteration, disable=not progress)
        with bar:
            while training.iteration < recipe.iterations:
                report.evaluate_if_due(interruption)
                report.log_if_due(training.step(next(batches)))
                bar.update()
                stop = distributed.any_true(interruption.requested)
                if stop or training.is_due(recipe.checkpoint_interval) or training.is_due(recipe.eval_interval):
                    training.save(folder)
                if stop:
                    interruption.leave(training.iteration, run)
        return report.conclude(interruption)


class Training:
    """A training run at one moment: model, optimiser, and how many steps were done.

    Parameters
    ----------
    model
        Returns a :class:`~mlore_edu.model.ModelOutput`; trained in place.
    recipe
        How to train it.
    device
        Where.
    """

    def __init__(self, model: nn.Module, recipe: Recipe, device: torch.device) -> None:
        arrange(model, recipe)
        if recipe.checkpointing:
            checkpoint_activations(model, compiled=recipe.compile)
        self.model = model.to(device)
        blend: Callable[[float], Any] = get_ema_multi_avg_fn
        self.average = AveragedModel(model, multi_avg_fn=blend(recipe.ema)) if recipe.ema else None
        self.recipe, self.device, self.iteration = recipe, device, 0
        self.loss = MultiTaskLoss(recipe.task_set, dict(recipe.loss_weights), recipe.edge_positive_weight)
        self.optimizer = make_optimizer(model, recipe)
        self.scaler = torch.amp.GradScaler(device.type, enabled=recipe.precision == "fp16")
        replica = distributed.wrap(model, device)
        self.forward = torch.compile(replica) if recipe.compile else replica
        self.no_sync = getattr(replica, "no_sync", contextlib.nullcontext)
        checkpoint.seed_everything(recipe.seed + distributed.rank())  # dropout differs between processes

    @property
    def judged(self) -> nn.Module:
        """The model that is evaluated: the moving average of the weights where the recipe asks for one."""
        return self.average.module if self.average else self.model

    def is_due(self, interval: int | None) -> bool:
        """Whether something done every ``interval`` iterations is due now; at the end everything is."""
        return self.iteration == self.recipe.iterations or bool(interval and self.iteration % interval == 0)

    def loader(self, train_set: LabelledImages) -> Loader:
        """This process's part of every batch, from the present iteration on."""
        parts = distributed.world_size() * self.recipe.accumulation
        if self.recipe.batch_size % parts:
            raise UserError(
                f"a batch of {self.recipe.batch_size} cannot be split into {parts} equal parts ("
                f"{distributed.world_size()} processes × --accumulation {self.recipe.accumulation}); "
                f"choose a --batch-size that is a multiple of {parts}."
            )
        return make_loader(
            train_set,
            self.recipe.batch_size // distributed.world_size(),
            train=True,
            seed=self.recipe.seed,
            workers=self.recipe.workers,
            start_iteration=self.iteration,
            rank=distributed.rank(),
            world_size=distributed.world_size(),
            device=self.device if self.recipe.augment_on_gpu else None,
        )

    def step(self, batch: Batch) -> dict[str, Any]:
        """One step of the optimiser.

        Returns
        -------
        dict
            Entry of the log: iteration, loss, losses by task, balance loss, gradient norm, learning rate.

        Raises
        ------
        UserError
            If a loss or the gradient is not finite; the weights are still those before the step.
        """
        self.model.train()
        learning_rate = self.recipe.learning_rate(self.iteration)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.optimizer.zero_grad(set_to_none=True)
        losses = self._backward(batch)
        gradient_norm = self._clip()
        values = [float(value) for value in torch.stack([*losses.values(), gradient_norm]).tolist()]
        record = dict(zip([*losses, "gradient_norm"], values, strict=True))
        self._check_finite(record, batch)
        self.scaler.step(self.optimizer)  # with fp16, a gradient that overflowed is skipped here and the scale lowered
        self.scaler.update()
        if self.average:
            self.average.update_parameters(self.model)
        self.iteration += 1
        by_task = {name: record.pop(name) for name in self.recipe.task_set.names}
        return {"iteration": self.iteration, **record, "losses": by_task, "learning_rate": learning_rate}

    def _backward(self, batch: Batch) -> dict[str, Tensor]:
        """Add up the gradients of all parts of the batch; return the losses, averaged over the parts."""
        losses: dict[str, Tensor] = {}
        parts = list(split(batch, self.recipe.accumulation))
        for number, part in enumerate(parts, start=1):
            inputs = self._to_device(part)
            # Processes exchange gradients once per step, with the last part.
            with contextlib.nullcontext() if number == len(parts) else self.no_sync():
                with self._autocast():
                    output = self.forward(inputs["image"])
                    total, by_task = self.loss(output.predictions, inputs)
                    total = total + output.balance_loss
                self.scaler.scale(total / len(parts)).backward()
            for name, loss in {"loss": total, "balance_loss": output.balance_loss, **by_task}.items():
                losses[name] = losses.get(name, torch.zeros((), device=self.device)) + loss.detach() / len(parts)
        return losses

    def _autocast(self) -> torch.autocast:
        precision = self.recipe.precision
        return torch.autocast(self.device.type, dtype=AUTOCAST.get(precision), enabled=precision in AUTOCAST)

    def _to_device(self, batch: Batch) -> Batch:
        moved = {name: value.to(self.device, non_blocking=True) for name, value in batch.items() if name != "meta"}
        if self.recipe.channels_last:
            moved["image"] = moved["image"].contiguous(memory_format=torch.channels_last)
        return moved

    def _clip(self) -> Tensor:
        """Shorten the gradient to at most ``clip_norm``; return its length before."""
        self.scaler.unscale_(self.optimizer)
        longest = self.recipe.clip_norm or math.inf
        return nn.utils.clip_grad_norm_(self.model.parameters(), longest).to(self.device)

    def _check_finite(self, record: dict[str, float], batch: Batch) -> None:
        wrong = [name for name, value in record.items() if not math.isfinite(value)]
        if wrong == ["gradient_norm"] and self.scaler.is_enabled():
            return
        if wrong:
            tasks = [name for name in wrong if name in self.recipe.task_set] or wrong
            images = ", ".join(str(meta.get("id")) for meta in batch["meta"])
            raise UserError(
                f"step {self.iteration + 1}: {' and '.join(tasks)} became {record[tasks[0]]} on the images {images}; "
                "the run folder is intact: look at these images, or start another run with a lower --lr or in fp32."
            )

    def save(self, folder: RunFolder) -> None:
        """Write a checkpoint of this moment."""
        random_states = distributed.gather(checkpoint.random_state())
        if distributed.is_main():
            state = {
                "optimizer": self.optimizer.state_dict(),
                "scaler": self.scaler.state_dict(),
                "random": random_states,
                "weights": self.model.state_dict() if self.average else None,  # of the steps, beside the average
            }
            checkpoint.save(folder.checkpoints, self.iteration, self.judged.state_dict(), state)
        distributed.barrier()

    def restore(self, folder: RunFolder) -> None:
        """Go back to the last checkpoint, if there is one.

        Raises
        ------
        UserError
            If it is damaged, or not all processes find the same.
        """
        last = checkpoint.latest(folder.checkpoints)
        found = distributed.gather(last.name if last else None)
        if len(set(found)) > 1:
            raise UserError(
                f"some processes find the checkpoint of iteration {max(filter(None, found))} in {folder.path} and some "
                "do not; with --run-folder, choose a folder that all machines share."
            )
        if last is None:
            return
        weights, state = checkpoint.load(last)
        self.judged.load_state_dict(weights)
        if self.average:
            self.model.load_state_dict(state["weights"])
            self.average.n_averaged.fill_(state["iteration"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        self.iteration = state["iteration"]
        if len(state["random"]) == distributed.world_size():
            checkpoint.set_random_state(state["random"][distributed.rank()])


def split(batch: Batch, parts: int) -> Iterator[Batch]:
    """Cut a batch into equal parts along its first dimension.

    A loss averages over the valid pixels of *its part*, so the parts' mean is the loss of the whole batch exactly when
    every part has as many of them (and, for saliency, the same share of salient ones), else nearly so.
    """
    size = len(batch["image"]) // parts
    for start in range(0, len(batch["image"]), size):
        yield {name: value[start : start + size] for name, value in batch.items()}
