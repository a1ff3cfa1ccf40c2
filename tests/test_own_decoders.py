"""A decoder of one's own: found by its file, trained, judged and used like the library's; and those of chapter 20."""

from pathlib import Path

import pytest
import torch

from mlore_edu import cli
from mlore_edu.decoders.base import MapShape
from mlore_edu.decoders.own import find_own
from mlore_edu.decoders.tif import TIFDecoder
from mlore_edu.errors import UserError
from mlore_edu.model import build_model
from mlore_edu.prediction import predict
from mlore_edu.sharing import from_pretrained, save_pretrained
from mlore_edu.tasks import DOLLHOUSE, NYUD_V2

BOOK = Path(__file__).parents[1] / "book" / "part5_full_scale" / "own_decoders.py"
DECODERS = ["Template", "ExpertsWithMemory", "ExpertsOnScales"]
MINE = """
from dataclasses import dataclass
from torch import nn
from mlore_edu.decoders.base import DecoderOutput

WIDTH = 5

@dataclass
class Note:
    text: "str" = ""

class My_Decoder(nn.Module):
    def __init__(self, tasks, maps, channels, *, width=WIDTH):
        super().__init__()
        self.names, self.channels = tasks.names, width
        self.layer = nn.Conv2d(maps[0].channels, width, 1)

    def forward(self, maps):
        features = self.layer(maps[0])
        return DecoderOutput(dict.fromkeys(self.names, features), features.new_zeros(()), {})

class Silent(nn.Module):
    def __init__(self, tasks, maps, channels):
        super().__init__()

def function(): ...
"""
SIZE = (32, 48)


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """A folder, which is the current one, with a file of decoders."""
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(MINE)
    return "mine.py:My_Decoder_vit_nano"


def test_a_file_gives_a_model_whose_options_are_its_own(mine):
    model = build_model(mine, DOLLHOUSE, SIZE, width=7)
    assert model.decoder.channels == 7
    assert model(torch.randn(2, 3, *SIZE)).predictions["normals"].shape == (2, 3, *SIZE)
    assert build_model("mine.py:My_Decoder_vit_nano_12", DOLLHOUSE, SIZE).backbone.outputs[-1] == 11


def test_what_was_edited_counts(mine):
    assert build_model(mine, DOLLHOUSE, SIZE).decoder.channels == 5
    Path("mine.py").write_text(MINE.replace("WIDTH = 5", "WIDTH = 11"))
    assert build_model(mine, DOLLHOUSE, SIZE).decoder.channels == 11


def test_a_module_is_as_good_as_a_file():
    assert find_own("mlore_edu.decoders.baseline:BaselineDecoder").__name__ == "BaselineDecoder"
    model = build_model("mlore_edu.decoders.baseline:BaselineDecoder_vit_nano", NYUD_V2, SIZE)
    assert set(model.heads) == set(NYUD_V2.names)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere.py:Mine_vit_nano", "no file nowhere.py"),
        ("mine.py:Other_vit_nano", "mine.py has no class 'Other'"),
        ("mine.py:function_vit_nano", "no torch.nn.Module"),
        ("mine.py:My_Decoder", "names no backbone"),
        ("mine.py:My_Decoder_resnet", "names no backbone"),
        ("mine.py:Silent_vit_nano", "self.channels"),
        ("no_such_package.part:Mine_vit_nano", "no module 'no_such_package.part'"),
        (":Mine_vit_nano", "no module ''"),
    ],
)
def test_a_wrong_name_is_told_in_words(mine, name, message):
    with pytest.raises(UserError, match=message):
        build_model(name, DOLLHOUSE, SIZE)


def test_an_unknown_option_is_named_beside_the_known_ones(mine):
    with pytest.raises(UserError, match="no option 'depth'; its options are channels, width"):
        build_model(mine, DOLLHOUSE, SIZE, depth=3)


def test_a_mistake_in_ones_own_code_is_shown_as_it_is(mine):
    Path("broken.py").write_text("import a_package_that_nobody_has")
    with pytest.raises(ModuleNotFoundError, match="a_package_that_nobody_has"):
        build_model("broken.py:Mine_vit_nano", DOLLHOUSE, SIZE)


def test_training_judging_and_predicting_are_the_same_commands(mine, capsys):
    data = ["--root", "data", "--size", "64", "--train", "4", "--val", "2", "--workers", "1"]
    assert cli.main(["dollhouse", *data]) == 0
    recipe = ["train", "dollhouse_baseline_nano_64", "--root", "data", "--img-size", "64", "64", "--model", mine]
    flags = ["--iterations", "1", "--batch-size", "2", "--workers", "0", "--pictures", "0", "--run", "runs/mine"]
    assert cli.main([*recipe, *flags, "--model-options", "width", "6"]) == 0
    assert cli.main(["evaluate", "runs/mine"]) == 0
    assert cli.main(["complexity", mine, "--data", "dollhouse", "--img-size", "64", "64"]) == 0
    assert "decoder" in capsys.readouterr().out
    model = from_pretrained("runs/mine")
    assert model.decoder.channels == 6
    answers = predict(model, torch.zeros(50, 70, 3, dtype=torch.uint8).numpy())
    assert set(DOLLHOUSE.names) <= set(answers)


def test_a_stored_model_never_runs_a_strangers_code(mine):
    folder = save_pretrained(build_model(mine, DOLLHOUSE, SIZE), "saved")
    Path("mine.py").write_text("raise SystemExit('this ran')")
    with pytest.raises(UserError, match="nobody's code is run from here"):
        from_pretrained(folder)


@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize(("tasks", "size"), [(DOLLHOUSE, (64, 64)), (NYUD_V2.subset("depth"), (32, 48))])
def test_a_decoder_of_the_chapter_teaches_every_weight(name, tasks, size):
    torch.manual_seed(0)
    model = build_model(f"{BOOK}:{name}_vit_nano", tasks, size)
    output = model(torch.randn(2, 3, *size))
    (sum(p.square().mean() for p in output.predictions.values()) + output.balance_loss).backward()
    missing = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert missing == []
    assert model.eval()(torch.randn(1, 3, *size)).predictions[tasks.names[0]].shape[-2:] == size


def decoder_and_maps(name, **options):
    torch.manual_seed(0)
    shapes = [MapShape(3, 16, 24), MapShape(5, 4, 6), MapShape(5, 4, 6), MapShape(5, 4, 6)]
    decoder = find_own(f"{BOOK}:{name}")(NYUD_V2, shapes, 8, **options).double().eval()
    return decoder, [torch.randn(2, *shape, dtype=torch.float64) for shape in shapes]


def test_the_memory_is_kept_and_read_map_by_map_as_the_chapter_writes_it():
    decoder, maps = decoder_and_maps("ExpertsWithMemory", experts=3)
    torch.nn.init.normal_(decoder.momentum)
    for task, name in enumerate(NYUD_V2.names):
        memory = None
        for number in range(3):
            feature = decoder.narrow[number](maps[number + 1])
            for module in decoder.layers[number]:
                feature = module(feature).features
            feature = feature[:, task]
            if memory is not None:
                gate = torch.sigmoid(decoder.gates[number - 1](maps[number + 1]))[:, task]
                feature = feature + gate * memory
                memory = feature + decoder.momentum[task] * memory
            else:
                memory = feature
        large = torch.nn.functional.interpolate(memory, (16, 24), mode="bilinear")
        expected = large + decoder.plain(maps[0])[:, task]
        torch.testing.assert_close(decoder(maps).features[name], expected)


def test_without_a_memory_the_maps_are_added():
    decoder, maps = decoder_and_maps("ExpertsWithMemory", experts=3, memory=False)
    features = [decoder.plain(maps[0])]
    for narrow, (first, second), feature_map in zip(decoder.narrow, decoder.layers, maps[1:]):
        coarse = second(first(narrow(feature_map)).features).features.flatten(0, 1)
        features.append(torch.nn.functional.interpolate(coarse, (16, 24), mode="bilinear").unflatten(0, (2, -1)))
    torch.testing.assert_close(torch.stack(list(decoder(maps).features.values()), dim=1), sum(features))


def test_experts_stand_beside_the_tasks_features_of_every_scale():
    decoder, maps = decoder_and_maps("ExpertsOnScales", experts=3, high_width=4, low_width=6)
    scales = decoder.pyramid(maps)
    assert [tuple(scale.shape[-2:]) for scale in scales] == [(16, 24), (8, 12), (4, 6), (2, 3)]
    refined = []
    for fusion, to_tasks, mixture in zip(decoder.fusions, decoder.to_tasks, decoder.mixtures):
        features = to_tasks(fusion(scales))
        refined.append(features + mixture(features).features)
    output = decoder(maps)
    depth = decoder.fuse(refined)[:, NYUD_V2.names.index("depth")]
    torch.testing.assert_close(output.features["depth"], depth)
    assert {name: tuple(gates.shape) for name, gates in output.routing.items()} == {
        f"scale {scale}": (2, 4, 3) for scale in range(4)
    }


def test_without_a_mixture_it_is_tif_without_its_attention():
    decoder, maps = decoder_and_maps("ExpertsOnScales", mixture=False, high_width=4, low_width=6)
    shapes = [MapShape(*feature_map.shape[1:]) for feature_map in maps]
    settings = {"high_width": 4, "low_width": 6, "distilled_scales": 0, "diffusion": "none"}
    tif = TIFDecoder(NYUD_V2, shapes, 8, **settings).double().eval()
    tif.load_state_dict({name.replace("mixtures", "distillers"): value for name, value in decoder.state_dict().items()})
    torch.testing.assert_close(decoder(maps).features, tif(maps).features)
