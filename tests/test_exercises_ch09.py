"""The self-checks of chapter 9 accept right answers, and answer wrong ones with a hint."""

import math

from mlore_edu import multitask_gain
from mlore_edu.exercises import ch09


def module_size(tasks, channels, ranks, task_rank):
    def conv(inputs, outputs, kernel=1):
        return kernel**2 * inputs * outputs + outputs

    shared = conv(channels, channels, 3) + sum(conv(channels, rank, 3) + conv(rank, channels) for rank in ranks)
    own = conv(channels, channels) + 2 * channels + conv(channels, task_rank, 3) + conv(task_rank, channels)
    return shared + tasks * own


def widths(size, low, high):
    return [width for width in range(4, 2049, 4) if low <= size(width) < high]


def verdict(ours, reference, paper, spread, t):
    difference = sum(ours) / len(ours) - sum(reference) / len(reference)
    if abs(difference) <= t * spread * math.sqrt(1 / len(ours) + 1 / len(reference)):
        return "noise"
    return "supports" if difference * paper > 0 else "contradicts"


def slips(rows, gains, baselines, tasks):
    off = [abs(multitask_gain(row, baselines, tasks) - gain) for row, gain in zip(rows, gains, strict=True)]
    return [number for number, value in enumerate(off) if value > 0.006]


ANSWERS = {
    ch09.check_module_size: (
        module_size,
        lambda tasks, channels, ranks, task_rank: module_size(1, channels, ranks, task_rank),  # forgets the tasks
        lambda tasks, channels, ranks, task_rank: module_size(tasks, channels, ranks, task_rank) - 2 * tasks * channels,
    ),
    ch09.check_widths: (
        widths,
        lambda size, low, high: [width for width in range(4, 2049, 4) if low <= size(width) <= high],  # rounds up
        lambda size, low, high: [width for width in range(4, 2049) if low <= size(width) < high],
    ),
    ch09.check_verdict: (
        verdict,
        lambda ours, reference, paper, spread, t: verdict(ours, reference, paper, 0, t),  # no noise at all
        lambda ours, reference, paper, spread, t: verdict(ours, reference, 1, spread, t),  # forgets the paper
        lambda ours, reference, paper, spread, t: verdict(ours[:1], reference[:1], paper, spread, t),
    ),
    ch09.check_slips: (
        slips,
        lambda rows, gains, baselines, tasks: [],
        lambda rows, gains, baselines, tasks: [0],
    ),
}
