"""The self-checks of chapter 16 accept right answers, and answer wrong ones with a hint."""

import torch

from mlore_edu.exercises import ch16
from mlore_edu.training.budget import SUSTAINED, Budget
from mlore_edu.training.recipes import find_recipe


def hours(macs, batch, iterations, rate, checkpointing):
    return (8 if checkpointing else 6) * macs * batch * iterations / rate / 3600


def draws(iteration, batch, rank, world_size):
    numbers = list(range(iteration * batch, (iteration + 1) * batch))
    share = batch // world_size
    return None if batch % world_size else numbers[rank * share : (rank + 1) * share]


def merge(counts, means, variances):
    mean = (counts * means).sum() / counts.sum()
    return mean, (counts * (variances + (means - mean) ** 2)).sum() / counts.sum()


def fair(per_pixel, valid, valid_of_all, world_size):
    return world_size * per_pixel[valid].sum() / max(valid_of_all, 1)


ANSWERS = {
    ch16.check_hours: (
        hours,
        lambda macs, batch, iterations, rate, checkpointing: 6 * macs * batch * iterations / rate / 3600,
        lambda *given: hours(*given) / 2,  # a multiply-accumulate as one operation
        lambda *given: hours(*given) * 3600,  # seconds
    ),
    ch16.check_draws: (
        draws,
        lambda iteration, batch, rank, world_size: draws(iteration, batch * world_size, rank, world_size),
        lambda iteration, batch, rank, world_size: list(range(iteration * batch + rank, (iteration + 1) * batch, 2)),
        lambda *given: draws(*given) or [],  # nothing instead of no answer
    ),
    ch16.check_merge: (
        merge,
        lambda counts, means, variances: (means.mean(), merge(counts, means, variances)[1]),  # unequal counts
        lambda counts, means, variances: (merge(counts, means, variances)[0], (counts * variances).sum() / sum(counts)),
    ),
    ch16.check_fair: (
        fair,
        lambda per_pixel, valid, valid_of_all, world_size: per_pixel[valid].mean(),  # as DDP does
        lambda per_pixel, valid, valid_of_all, world_size: per_pixel[valid].sum() / max(valid_of_all, 1),
        lambda per_pixel, valid, valid_of_all, world_size: world_size * per_pixel[valid].sum() / valid_of_all,
        lambda per_pixel, valid, valid_of_all, world_size: fair(per_pixel * valid, valid | True, valid_of_all, 3),
    ),
}


def test_the_hours_are_the_librarys():
    recipe = find_recipe("pascal_mlore_vit_base")
    budget = Budget(parameters=0, macs=4 * 463, weights=0, gradients=0, optimizer=0, activations=0, peak=0)
    expected = hours(463, 4, recipe.iterations, SUSTAINED[recipe.precision], checkpointing=False)
    assert budget.hours(recipe) == expected


def test_a_fair_loss_with_as_many_valid_pixels_everywhere_is_the_plain_mean():
    pixels = torch.rand(2, 5)
    everywhere = torch.ones(5, dtype=torch.bool)
    losses = [fair(own, everywhere, 10, 2) for own in pixels]
    torch.testing.assert_close(torch.stack(losses), pixels.mean(dim=1))
