"""Metrics of the field, exactly (chapter 2): one meter each, ``update(prediction, target)`` then ``compute()``."""

from mlore_edu.metrics.depth import DepthRMSE
from mlore_edu.metrics.meter import Meter
from mlore_edu.metrics.multitask_gain import multitask_gain
from mlore_edu.metrics.normals import NormalError, angular_error
from mlore_edu.metrics.saliency import MaxF
from mlore_edu.metrics.segmentation import MeanIoU

__all__ = ["DepthRMSE", "MaxF", "MeanIoU", "Meter", "NormalError", "angular_error", "multitask_gain"]
