"""Metrics of the field, exactly (chapter 2): one meter each, ``update(prediction, target)`` then ``compute()``."""

from mlore_edu.metrics.boundary import BoundaryF
from mlore_edu.metrics.boundary_protocols import (
    BOUNDARY_PROTOCOLS,
    DOLLHOUSE_BOUNDARY,
    NYUD_BOUNDARY,
    PASCAL_BOUNDARY,
    BoundaryName,
    BoundaryProtocol,
    ignore_unlisted,
    read_image_ids,
)
from mlore_edu.metrics.depth import DepthRMSE
from mlore_edu.metrics.meter import Meter
from mlore_edu.metrics.multitask_gain import implied_baselines, multitask_gain
from mlore_edu.metrics.normals import NormalError, angular_error
from mlore_edu.metrics.saliency import MaxF, SaliencyVariant
from mlore_edu.metrics.segmentation import MeanIoU
from mlore_edu.tasks import NYUD_V2, PASCAL_CONTEXT, TaskSet

__all__ = [
    "BOUNDARY_PROTOCOLS",
    "DOLLHOUSE_BOUNDARY",
    "NYUD_BOUNDARY",
    "PASCAL_BOUNDARY",
    "BoundaryF",
    "BoundaryName",
    "BoundaryProtocol",
    "DepthRMSE",
    "MaxF",
    "MeanIoU",
    "Meter",
    "NormalError",
    "angular_error",
    "ignore_unlisted",
    "implied_baselines",
    "make_meters",
    "multitask_gain",
    "read_image_ids",
]

_BOUNDARY = {PASCAL_CONTEXT.name: PASCAL_BOUNDARY, NYUD_V2.name: NYUD_BOUNDARY}


def make_meters(
    tasks: TaskSet,
    *,
    saliency: SaliencyVariant = "standard",
    depth_per_image: bool = False,
    boundary: BoundaryProtocol | None = None,
    workers: int = 0,
) -> dict[str, Meter]:
    """Return a fresh meter for every task of a set.

    Parameters
    ----------
    tasks
        Each task names its metric.
    saliency, depth_per_image
        Variants of :class:`MaxF` and :class:`DepthRMSE`.
    boundary
        Protocol of :class:`BoundaryF`; by default that of the data set, for Dollhouse DOLLHOUSE_BOUNDARY.
    workers
        Threads that count boundaries.
    """
    protocol = boundary or _BOUNDARY.get(tasks.name, DOLLHOUSE_BOUNDARY)

    def meter(metric: str, channels: int) -> Meter:
        if metric == "mIoU":
            return MeanIoU(channels)
        if metric == "maxF":
            return MaxF(saliency)
        if metric == "mErr":
            return NormalError()
        return DepthRMSE(depth_per_image) if metric == "RMSE" else BoundaryF(protocol, workers)

    return {task.name: meter(task.metric, task.channels) for task in tasks}
