"""Self-checks of chapter 16: the cost of a training, a process's part of a batch, merged statistics, a fair loss."""

from __future__ import annotations

import math
from typing import Any

import torch

from mlore_edu.data.loaders import batch_draws
from mlore_edu.exercises import answered, exercise


@exercise("16.1", hint="Two operations for a product and its sum; one pass there, and two more for the way back.")
def check_hours(answer: Any) -> None:
    """``answer(macs, batch, iterations, rate, checkpointing)``: hours of a whole training."""
    for macs, batch, iterations, rate, checkpointing, truth in (
        (100e9, 4, 36_000, 24e12, False, 1.0),
        (100e9, 4, 36_000, 24e12, True, 4 / 3),
        (463e9, 4, 40_000, 80e12, False, 2 * 3 * 463e9 * 4 * 40_000 / 80e12 / 3600),
    ):
        found = float(answered(answer(macs, batch, iterations, rate, checkpointing)))
        with_or_without = "with" if checkpointing else "without"
        message = f"{macs:g} a picture, {iterations:,} batches of {batch}, {rate:g} a second, {with_or_without} "
        message += f"checkpointing, take {truth:.2f} h, not {found:.2f}."
        assert math.isclose(found, truth, rel_tol=1e-6), message


@exercise("16.2", hint="All processes together take batch draws an iteration, so the first is at iteration * batch.")
def check_draws(answer: Any) -> None:
    """``answer(iteration, batch, rank, world_size)``: numbers of one process's draws, None if they do not work out."""
    for iteration, batch, rank, world_size in ((0, 4, 0, 1), (3, 4, 1, 2), (7, 8, 3, 4), (2, 6, 2, 3)):
        found = list(answered(answer(iteration, batch, rank, world_size)))
        share = batch // world_size
        truth = [draw for _, draw in batch_draws(100, share, iteration, rank=rank, world_size=world_size)]
        message = f"In iteration {iteration}, process {rank} of {world_size} has {truth} of a batch of {batch}"
        assert found == truth, f"{message}, not {found}."
    assert answer(0, 4, 0, 8) is None, "A batch of 4 cannot be split among 8 processes: give None."


@exercise("16.3", hint="The variance around the common mean is one's own, plus one's mean's squared distance from it.")
def check_merge(answer: Any) -> None:
    """``answer(counts, means, variances)``: mean and variance of all numbers, from those of each process."""
    generator = torch.Generator().manual_seed(0)
    for counts in ((8, 8), (3, 9, 4), (1, 20)):
        groups = [
            torch.randn(count, generator=generator, dtype=torch.float64) + 3 * number
            for number, count in enumerate(counts)
        ]
        means = torch.stack([group.mean() for group in groups])
        variances = torch.stack([group.var(correction=0) for group in groups])
        everything = torch.cat(groups)
        mean, variance = map(float, answered(answer(torch.tensor(counts).double(), means, variances)))
        truth = everything.mean().item()
        assert math.isclose(mean, truth, rel_tol=1e-9), f"The mean of {counts} numbers is {truth:.3f}, not {mean:.3f}."
        truth = everything.var(correction=0).item()
        message = f"The variance of {counts} numbers is {truth:.3f}, not {variance:.3f}."
        assert math.isclose(variance, truth, rel_tol=1e-9), message


@exercise("16.4", hint="Sum up your valid pixels, divide by everybody's, and make good the division that DDP will do.")
def check_fair(answer: Any) -> None:
    """``answer(per_pixel, valid, valid_of_all, world_size)``: the loss whose mean over processes is the mean of all."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.rand(3, 2, 4, 4, generator=generator, dtype=torch.float64)  # (R, B, H, W)
    shares = torch.tensor([0.9, 0.2, -1.0]).view(3, 1, 1, 1)  # the last process has no valid pixel
    valid = torch.rand(pixels.shape, generator=generator) < shares
    pixels[~valid] = math.nan  # whatever stands there must not count
    found = [answered(answer(one, mask, int(valid.sum()), 3)) for one, mask in zip(pixels, valid)]
    mean, truth = float(sum(found)) / 3, pixels[valid].mean().item()
    assert math.isclose(mean, truth, rel_tol=1e-9), f"The mean over processes is {mean:.3f}, and should be {truth:.3f}."
    nothing = float(answer(pixels[2], valid[2], 0, 3))
    assert nothing == 0, f"Where no pixel counts anywhere the loss is 0, not {nothing}."
