"""What the tests of using a model share: a tiny run that was never trained, and a room to look at."""

import functools

import numpy as np
import torch

from mlore_edu.data.dollhouse import scene
from mlore_edu.model import build_model
from mlore_edu.tasks import DOLLHOUSE
from mlore_edu.training import checkpoint
from mlore_edu.training.recipe import Recipe

SIZE = (32, 64)


def tiny_model(name="baseline_vit_nano", tasks=DOLLHOUSE, size=SIZE, seed=0, **options):
    """A model in evaluation mode that was never trained, and yet has BatchNorms that matter and answers that vary."""
    torch.manual_seed(seed)
    model = build_model(name, tasks, size, **{"channels": 8, **options}).eval()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.normal_(module.running_mean)
            torch.nn.init.uniform_(module.running_var, 0.5, 2)
    for head in model.heads.values():
        torch.nn.init.normal_(head.predict.weight)
        torch.nn.init.zeros_(head.predict.bias)
    return model


def write_run(folder, name="baseline_vit_nano"):
    """The folder of a run that was interrupted right at its start; returns it with its model."""
    model = tiny_model(name)
    folder.mkdir()
    recipe = Recipe(name="tiny", model=name, img_size=SIZE, model_options=(("channels", 8),))
    (folder / "recipe.json").write_text(recipe.to_json())
    checkpoint.save(folder / "checkpoints", 3, model.state_dict(), {})
    return folder, model


@functools.cache
def room(height=96, width=128):
    """A rendered photograph, uint8 (H, W, 3)."""
    return np.ascontiguousarray(scene(7, size=(height, width), difficulty="easy").image)
