"""The library under the book: multi-task dense prediction with mixtures of experts, built up chapter by chapter.

>>> import mlore_edu as me
>>> me.DOLLHOUSE.names
('semseg', 'human_parts', 'saliency', 'normals', 'depth', 'edge')

The names below are loaded when first used, so that ``import mlore_edu`` and the command line start at once.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlore_edu import published as published
    from mlore_edu.complexity import count as count
    from mlore_edu.data.dollhouse import scene as scene
    from mlore_edu.errors import UserError as UserError
    from mlore_edu.export import export_model as export_model
    from mlore_edu.losses import MultiTaskLoss as MultiTaskLoss
    from mlore_edu.metrics import BoundaryF as BoundaryF
    from mlore_edu.metrics import BoundaryProtocol as BoundaryProtocol
    from mlore_edu.metrics import DepthRMSE as DepthRMSE
    from mlore_edu.metrics import MaxF as MaxF
    from mlore_edu.metrics import MeanIoU as MeanIoU
    from mlore_edu.metrics import NormalError as NormalError
    from mlore_edu.metrics import implied_baselines as implied_baselines
    from mlore_edu.metrics import multitask_gain as multitask_gain
    from mlore_edu.model import build_model as build_model
    from mlore_edu.model import list_models as list_models
    from mlore_edu.prediction import predict as predict
    from mlore_edu.released import load_released_mlore as load_released_mlore
    from mlore_edu.reparameterization import fuse as fuse
    from mlore_edu.sharing import from_pretrained as from_pretrained
    from mlore_edu.sharing import save_pretrained as save_pretrained
    from mlore_edu.tasks import DOLLHOUSE as DOLLHOUSE
    from mlore_edu.tasks import NYUD_V2 as NYUD_V2
    from mlore_edu.tasks import PASCAL_CONTEXT as PASCAL_CONTEXT
    from mlore_edu.tasks import Task as Task
    from mlore_edu.tasks import TaskSet as TaskSet

__version__ = "0.1.0"

_HOME = {
    "count": "complexity",
    "scene": "data.dollhouse",
    "UserError": "errors",
    "export_model": "export",
    "MultiTaskLoss": "losses",
    **dict.fromkeys(("BoundaryF", "BoundaryProtocol", "DepthRMSE", "MaxF", "MeanIoU", "NormalError"), "metrics"),
    **dict.fromkeys(("implied_baselines", "multitask_gain"), "metrics"),
    "build_model": "model",
    "list_models": "model",
    "predict": "prediction",
    "load_released_mlore": "released",
    "fuse": "reparameterization",
    **dict.fromkeys(("from_pretrained", "save_pretrained"), "sharing"),
    **dict.fromkeys(("DOLLHOUSE", "NYUD_V2", "PASCAL_CONTEXT", "Task", "TaskSet"), "tasks"),
}
"""Module of each public name."""

__all__ = [*sorted(_HOME), "__version__", "published"]


def __getattr__(name: str) -> Any:
    if name == "published":  # a module: me.published.table("mlore", 5)
        return import_module("mlore_edu.published")
    if name in _HOME:
        return getattr(import_module(f"mlore_edu.{_HOME[name]}"), name)
    raise AttributeError(f"module 'mlore_edu' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
