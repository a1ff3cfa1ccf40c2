"""Judging a checkpoint of MLoRE's authors, end to end on Dollhouse in the file formats of both data sets."""

import json
from functools import cache

import pytest
import torch
from released_layout import SMALL_NYUD, SMALL_PASCAL, make_state

from mlore_edu import cli
from mlore_edu.data.dollhouse_files import write_dollhouse
from mlore_edu.data.loaders import make_loader, open_dataset
from mlore_edu.data.transforms import eval_transform
from mlore_edu.evaluation import evaluate
from mlore_edu.judging import Choices, judge_released
from mlore_edu.metrics import NYUD_BOUNDARY, make_meters
from mlore_edu.released import released_model
from mlore_edu.tasks import TASK_SETS

DATA = {"pascal_context": (SMALL_PASCAL, 64), "nyud_v2": (SMALL_NYUD, (112, 144))}
"""Sizes of a small checkpoint, and of the images that its 4 × 4 or 7 × 9 tokens cover."""


@pytest.fixture(scope="module")
def make_case(tmp_path_factory):
    """Name of a data set to its folder with rendered rooms and the file of a random checkpoint."""

    @cache
    def make(name):
        root, (sizes, size) = tmp_path_factory.mktemp(name), DATA[name]
        write_dollhouse(root / "data", layout=name, size=size, difficulty="easy", train=1, val=3, progress=False)
        state = {f"module.{key}": value for key, value in make_state(**sizes).items()}
        torch.save({"model": state, "epoch": 1}, root / "mlore.pth")
        return root / "data", root / "mlore.pth"

    return make


@pytest.fixture
def pascal(make_case):
    return make_case("pascal_context")


def complaint(capsys, *words):
    capsys.readouterr()
    assert cli.main(["evaluate", *map(str, words)]) == 2
    out, error = capsys.readouterr()
    assert out == ""
    assert error.count("\n") == 1
    sentence = error.split("\r")[-1]  # after the progress bar that it replaced
    assert sentence.startswith("mlore-edu: ")
    return sentence.strip()


@pytest.mark.parametrize("name", ["pascal_context", pytest.param("nyud_v2", marks=pytest.mark.slow)])
def test_the_table_shows_what_the_model_scores_on_the_validation_split(make_case, name, tmp_path, capsys):
    root, file = make_case(name)
    assert cli.main(["evaluate", "--released", str(file), "--root", str(root), "--json", f"{tmp_path}/r.json"]) == 0
    shown = capsys.readouterr().out
    stored = json.loads((tmp_path / "r.json").read_text())
    model, tasks = released_model(file), TASK_SETS[name]
    dataset = open_dataset(name, root, "val", tasks, eval_transform(model.img_size))
    expected = evaluate(model, make_loader(dataset, 1, train=False), tasks, progress=False)
    assert stored["metrics"] == pytest.approx(expected.metrics, rel=1e-4)
    assert stored["details"]["edge"]["images"] == len(dataset) == 3
    assert shown.startswith(cli.results_table(tasks, stored["metrics"]) + "\nno paper has numbers on Dollhouse")
    assert stored["model"] == "mlore_vit_small"


@pytest.mark.slow
def test_the_variant_of_saliency_and_of_boundaries_can_be_chosen(pascal):
    (root, file), name = pascal, "pascal_context"
    meters = make_meters(TASK_SETS[name], saliency="released", boundary=NYUD_BOUNDARY)
    model = released_model(file)
    dataset = open_dataset(name, root, "val", TASK_SETS[name], eval_transform(model.img_size))
    loader = make_loader(dataset, 4, train=False)
    expected = evaluate(model, loader, TASK_SETS[name], meters=meters, progress=False).metrics
    choices = Choices(root=str(root), saliency="released", boundary="nyud", progress=False)
    result = judge_released(file, choices, data=name)
    assert result.tasks is TASK_SETS[name]
    assert (result.boundary, result.saliency) == ("nyud", "released")
    assert result.metrics == pytest.approx(expected, rel=1e-6)
    standard = judge_released(file, Choices(root=str(root), progress=False))
    assert standard.metrics["saliency"] != result.metrics["saliency"]
    assert standard.metrics["edge"] != result.metrics["edge"]


@pytest.mark.slow
def test_images_are_padded_to_another_size_on_demand(pascal, capsys):
    root, file = pascal
    assert cli.main(["evaluate", "--released", str(file), "--root", str(root), "--img-size", "80", "96"]) == 0
    assert "Boundaries" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("", "give the folder of a run, or --released FILE"),
        ("runs/x --released FILE", "give the folder of a run, or --released FILE"),
        ("runs/x --data nyud_v2", "--data is for --released and --predictions; leave it out, a run's recipe says it"),
        ("runs/x --img-size 64 64", "--img-size is for --released and --predictions; leave it out"),
        ("--released /nowhere.pth", "There is no file /nowhere.pth"),
        ("--released FILE --root /nowhere", "There is no folder /nowhere"),
        ("--released FILE --root ROOT --data nyud_v2", "the tasks of PASCAL-Context; give --data pascal_context"),
        ("--released FILE --root ROOT --img-size 32 32", "larger than the frame of 32×32; choose a size of at least"),
        ("--released FILE --root ROOT --img-size 50 64", "multiples of 16, not (50, 64); use (48, 64)"),
        ("--released FILE --root ROOT --img-size 0 64", "multiples of 16"),
        ("--released FILE --root ROOT --saliency best", "invalid choice: 'best'"),
        ("--released FILE --json /nowhere/x.json", "there is no folder /nowhere"),
        ("--released ROOT/SHA256SUMS", "damaged or holds more than weights"),
        ("--released SHORT --root ROOT", "missing: heads.edge.linear_pred.bias"),
    ],
)
def test_every_mistake_is_answered_in_one_sentence(pascal, tmp_path, capsys, words, expected):
    root, file = pascal
    if "SHORT" in words:
        state = torch.load(file)["model"]
        del state["module.heads.edge.linear_pred.bias"]
        torch.save(state, tmp_path / "short.pth")
    words = words.replace("ROOT", str(root)).replace("FILE", str(file)).replace("SHORT", f"{tmp_path}/short.pth")
    assert expected in complaint(capsys, *words.split())
