"""Predictions in files: what is written, what is understood, and the same numbers out of them as from the model."""

import json
import shutil
from functools import cache

import numpy as np
import pytest
import torch
from benchmark_folders import write_layout
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image
from torch import nn

from mlore_edu import cli
from mlore_edu.data.files import Folder
from mlore_edu.data.labels import encode_depth, encode_normals
from mlore_edu.data.loaders import make_loader, open_dataset
from mlore_edu.data.transforms import eval_transform
from mlore_edu.errors import UserError
from mlore_edu.evaluation import evaluate
from mlore_edu.judging import Choices, judge_predictions
from mlore_edu.metrics.saliency import THRESHOLDS
from mlore_edu.model import ModelOutput
from mlore_edu.saved_predictions import encode, read_prediction, save_answers
from mlore_edu.tasks import DOLLHOUSE, TASK_SETS

SIZE, FRAME = 64, (81, 96)  # the padding is odd below and even at the sides


class Scribbler(nn.Module):
    """Answers with random filters of the image: wrong, but different at every pixel."""

    def __init__(self, tasks):
        super().__init__()
        torch.manual_seed(0)
        self.heads = nn.ModuleDict({task.name: nn.Conv2d(3, task.channels, 5, padding=2) for task in tasks})

    def forward(self, images):
        return ModelOutput({name: 3 * head(images) for name, head in self.heads.items()}, torch.zeros(()), {})


@pytest.fixture(scope="module")
def make_case(tmp_path_factory):
    """Name of a layout to its data, the evaluation of a model on it, the probabilities it gave, and its files."""

    @cache
    def make(name):
        home, tasks = tmp_path_factory.mktemp(name), TASK_SETS[name]
        dataset = open_dataset(name, write_layout(home / "data", name), "val", tasks, eval_transform(FRAME))
        seen = []

        def keep(answered):
            for answers, batch in save_answers(answered, home / "saved", tasks):
                seen.append((answers, batch))
                yield answers, batch

        loader = make_loader(dataset, 2, train=False)
        evaluation = evaluate(Scribbler(tasks), loader, tasks, keep=keep, progress=False)
        return home, evaluation, seen

    return make


@pytest.fixture
def saved(make_case, tmp_path):
    """Dollhouse, and a folder with predictions of all six tasks that a test may damage."""
    home, _, _ = make_case("dollhouse")
    for path in (home / "saved").rglob("*.*"):
        copy = tmp_path / "saved" / path.relative_to(home / "saved")
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())
    return home / "data", tmp_path / "saved"


def judge(root, folder, data="dollhouse", **options):
    return judge_predictions(folder, data, Choices(root=str(root), progress=False), **options)


def write(path, values):
    """An array as .npy, .png or, with three channels, colour .png."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npy":
        np.save(path, values)
    else:
        Image.fromarray(values).save(path)


# --- what is written ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(TASK_SETS))
def test_predictions_saved_and_read_give_the_models_own_numbers_to_the_last_digit(make_case, name):
    home, own, seen = make_case(name)
    again = judge(home / "data", home / "saved", name)
    assert again.metrics.keys() == own.metrics.keys()
    for task in TASK_SETS[name].names:
        if task != "saliency":
            assert repr(again.evaluation.details[task]) == repr(own.details[task])  # all digits; nan equals nan
            assert again.metrics[task] == own.metrics[task]
    if "saliency" in own.metrics:
        low, high = saliency_bounds(seen)
        curve = again.evaluation.details["saliency"]["f"]
        assert all(least <= f <= most for least, f, most in zip(low, curve, high))
        assert 100 * max(low) <= again.metrics["saliency"] <= 100 * max(high)
        assert max(high) - max(low) < 0.01  # so rounding cannot move maxF by a whole percent here


def saliency_bounds(seen):
    """F at each threshold if rounding to 8 bits moved every probability within 1/510 of it the worst, the best way."""
    pairs = [
        (float(p), int(t))
        for answers, batch in seen
        for p, t in zip(answers["saliency"].flatten(), batch["saliency"].flatten())
        if t != 255
    ]
    p, true = np.array([p for p, _ in pairs]), np.array([t for _, t in pairs])
    bounds = []
    for helps in (-1, 1):
        curve = []
        for threshold in THRESHOLDS:
            hit = (p > threshold - helps / 510 - 1e-9) & (true == 1)
            alarm = (p > threshold + helps / 510 + 1e-9) & (true == 0)
            curve.append(1.3 * hit.sum() / (0.3 * true.sum() + hit.sum() + alarm.sum()))
        bounds.append(curve)
    return bounds


def test_files_are_what_the_page_says_and_cover_the_image_without_its_padding(make_case):
    home, _, seen = make_case("dollhouse")
    ids = (home / "data" / "val.txt").read_text().split()
    stored = {task: [next((home / "saved" / task).glob(f"{name}.*")) for name in ids] for task in DOLLHOUSE.names}
    top, left = (FRAME[0] - SIZE) // 2, (FRAME[1] - SIZE) // 2
    inner = (..., slice(top, top + SIZE), slice(left, left + SIZE))
    answers = {task: torch.cat([maps[task] for maps, _ in seen])[inner].numpy() for task in DOLLHOUSE.names}
    for task in ("semseg", "human_parts"):
        pixels = np.stack([np.asarray(Image.open(path)) for path in stored[task]])
        assert pixels.dtype == np.uint8
        assert (pixels == answers[task]).all()
    for task in ("saliency", "edge"):
        pixels = np.stack([np.asarray(Image.open(path)) for path in stored[task]])
        assert np.abs(pixels / 255 - answers[task]).max() <= 0.5 / 255 + 1e-7
    assert (np.stack([np.load(path) for path in stored["normals"]]) == answers["normals"].transpose(0, 2, 3, 1)).all()
    assert (np.stack([np.load(path) for path in stored["depth"]]) == answers["depth"][:, 0]).all()


@settings(max_examples=40, deadline=None)
@given(st.data(), st.sampled_from(DOLLHOUSE.names), st.tuples(st.integers(1, 5), st.integers(1, 5)))
def test_what_is_encoded_is_read_back(tmp_path_factory, data, name, size):
    task = DOLLHOUSE[name]
    shape = {"normals": (3, *size), "depth": (1, *size)}.get(name, size)
    if task.metric == "mIoU":
        answer = data.draw(arrays(np.int64, shape, elements=st.integers(0, task.channels - 1)))
    else:
        least, most = {"normals": (-1, 1), "depth": (-100, 100)}.get(name, (0, 1))
        answer = data.draw(arrays(np.float32, shape, elements=st.floats(least, most, width=32)))
    suffix, content = encode(task, answer)
    place = tmp_path_factory.mktemp("one")
    (place / f"x{suffix}").write_bytes(content)
    back = read_prediction(Folder(place, "remedy"), f"x{suffix}", task, size)
    assert back.dtype == (torch.int64 if task.metric == "mIoU" else torch.float32)
    assert back.shape == (1, *shape)
    allowed = 1 / 510 + 1e-6 if name in ("saliency", "edge") else 0
    assert np.abs(back[0].numpy() - answer).max() <= allowed


# --- what is understood ------------------------------------------------------------------------------------------


def test_every_form_that_the_page_allows_means_what_it_says(tmp_path):
    """Each line: task, file name, stored values, and by the table's formula what they mean."""
    rng = np.random.default_rng(0)
    classes = rng.integers(0, 7, (4, 5))
    bytes_ = rng.integers(0, 256, (4, 5), dtype=np.uint8)
    colours = rng.integers(0, 256, (4, 5, 3), dtype=np.uint8)
    floats = rng.random((4, 5))
    vectors = rng.uniform(-1, 1, (4, 5, 3))
    directions = 2 * colours.astype(float) / 255 - 1
    directions /= np.linalg.norm(directions, axis=-1, keepdims=True)
    millimetres = rng.integers(0, 65536, (4, 5), dtype=np.uint16)
    cases = [
        ("human_parts", "a.png", classes.astype(np.uint8), classes),
        ("human_parts", "a.npy", classes, classes),
        ("human_parts", "b.npy", classes.astype(np.int16), classes),
        ("saliency", "a.png", bytes_, bytes_ / 255),
        ("saliency", "a.npy", floats, floats),
        ("edge", "a.npy", floats.astype(np.float16), floats.astype(np.float16)),
        ("edge", "b.npy", bytes_, bytes_ / 255),
        ("normals", "a.png", colours, directions.transpose(2, 0, 1)),
        ("normals", "a.npy", vectors, vectors.transpose(2, 0, 1)),
        ("depth", "a.npy", 10 * floats - 1, (10 * floats - 1)[None]),
        ("depth", "a.png", millimetres, millimetres[None] / 1000),
    ]
    for task, name, stored, meaning in cases:
        write(tmp_path / name, stored)
        found = read_prediction(Folder(tmp_path, "remedy"), name, DOLLHOUSE[task], (4, 5))
        np.testing.assert_allclose(found[0].numpy(), meaning, rtol=1e-5, atol=1e-6)
    palette = Image.fromarray(classes.astype(np.uint8))
    palette.putpalette(list(range(255, -1, -1)) * 3)
    palette.save(tmp_path / "p.png")
    found = read_prediction(Folder(tmp_path, "remedy"), "p.png", DOLLHOUSE["semseg"], (4, 5))
    assert (found[0].numpy() == classes).all()


def test_predictions_with_their_padding_count_like_those_without(saved, make_case, tmp_path):
    root, _ = saved
    _, own, seen = make_case("dollhouse")
    answers = {task: torch.cat([maps[task] for maps, _ in seen]).numpy() for task in DOLLHOUSE.names}
    for index, name in enumerate((root / "val.txt").read_text().split()):
        write(tmp_path / f"padded/parts/{name}.png", answers["human_parts"][index].astype(np.uint8))
        write(tmp_path / f"padded/normal/{name}.npy", answers["normals"][index].transpose(1, 2, 0))
        write(tmp_path / f"padded/edges/{name}.npy", answers["edge"][index])
    judged = judge(root, tmp_path / "padded", img_size=FRAME)
    assert judged.metrics == {name: own.metrics[name] for name in ("human_parts", "normals", "edge")}


def test_labels_in_the_forms_of_other_builds_are_perfect_predictions(saved, tmp_path):
    """8-bit normals and millimetres are labels' own encodings, so nothing but their rounding is lost."""
    root, _ = saved
    dataset = open_dataset("dollhouse", root, "val", DOLLHOUSE)
    for index, name in enumerate(dataset.ids):
        sample = {task: dataset.load(index)[task].numpy() for task in ("normals", "depth")}
        write(tmp_path / f"p/surface_normals/{name}.png", encode_normals(sample["normals"].transpose(1, 2, 0)))
        write(tmp_path / f"p/depth/{name}.png", encode_depth(sample["depth"][0]))
    metrics = judge(root, tmp_path / "p").metrics
    assert metrics["normals"] < 0.4
    assert metrics["depth"] < 0.001


def test_only_the_tasks_that_are_there_are_judged_and_that_is_said(saved):
    root, folder = saved
    for task in ("semseg", "human_parts", "normals", "edge"):
        (folder / task).rename(folder.parent / task)
    (folder / "saliency").rename(folder / "Sal")
    (folder / ".hidden").mkdir()
    (folder / "README.txt").write_text("ours")
    (folder / "depth" / "extra.npy").write_bytes(b"never read")
    (folder / "depth" / "notes.txt").write_text("never read")
    judged = judge(root, folder)
    assert judged.tasks.names == ("saliency", "depth")
    assert judged.remarks == (
        f"not judged, because {folder} has no folder for it: semseg, human_parts, normals, edge",
        "1 file of depth is named after no image of the split and was not read",
    )


def test_a_part_of_the_images_is_judged_only_on_demand_and_that_is_said(saved):
    root, folder = saved
    first, second = (root / "val.txt").read_text().split()
    (folder / "depth" / f"{second}.npy").unlink()
    with pytest.raises(UserError, match=rf"depth lacks 1 of 2 images \({second}\); add them, or .*--partial"):
        judge(root, folder)
    judged = judge(root, folder, partial=True)
    truth = open_dataset("dollhouse", root, "val", DOLLHOUSE).load(0)["depth"][0].numpy().astype(float)
    error = np.load(folder / "depth" / f"{first}.npy") - truth
    assert judged.metrics["depth"] == pytest.approx(np.sqrt(np.square(error[truth > 0]).mean()), rel=1e-6)
    assert judged.evaluation.details["edge"]["images"] == 2
    assert judged.remarks == ("depth is judged on 1 of 2 images",)


# --- what is not -------------------------------------------------------------------------------------------------


def replace_first(task, suffix, values):
    """Damage: the first image's prediction of a task becomes something else; bytes are written as they are."""

    def damage(folder):
        old = min((folder / task).iterdir())
        old.unlink()
        path = old.with_suffix(suffix)
        path.write_bytes(values) if isinstance(values, bytes) else write(path, values)

    return damage


def truncate(folder):
    path = min((folder / "semseg").iterdir())
    path.write_bytes(path.read_bytes()[:-30])


def flat(value, dtype, *channels):
    return np.full((SIZE, SIZE, *channels), value, dtype)


DAMAGES = {
    "cut off": (truncate, "1000000.png is damaged or of another format"),
    "no array": (replace_first("depth", ".npy", b"no array"), "1000000.npy is damaged or of another format"),
    "objects": (replace_first("depth", ".npy", np.array([{}])), "is damaged or of another format"),
    "size": (replace_first("semseg", ".png", np.zeros((48, 63), np.uint8)), "is 48×63, but its image needs 64×64"),
    "one channel": (replace_first("normals", ".png", flat(0, np.uint8)), "is 64×64, but its image needs 64×64×3"),
    "channels first": (replace_first("normals", ".npy", np.zeros((3, 64, 64))), "is 3×64×64, but its image needs"),
    "four channels": (
        replace_first("normals", ".png", flat(9, np.uint8, 4)),
        "is 64×64×4, but its image needs 64×64×3",
    ),
    "logits": (replace_first("semseg", ".npy", flat(0.5, np.float32, 15)), "is 64×64×15, but its image needs 64×64"),
    "a number": (replace_first("depth", ".npy", np.float32(3)), "is a single number, but its image needs 64×64"),
    "class": (replace_first("semseg", ".png", flat(15, np.uint8)), "holds the value 15, where only 0…14 can be"),
    "void": (replace_first("human_parts", ".png", flat(255, np.uint8)), "holds the value 255, where only 0…6 can be"),
    "below 0": (replace_first("semseg", ".npy", flat(-1, np.int32)), "holds the value -1, where only 0…14 can be"),
    "float ids": (replace_first("semseg", ".npy", flat(1, np.float32)), "of type float32, not class ids in integers"),
    "nan": (replace_first("edge", ".npy", flat(np.nan, np.float32)), "holds the value nan, where only 0…1 can be"),
    "logit": (replace_first("saliency", ".npy", flat(-3.5, np.float64)), "holds the value -3.5, where only 0…1 can be"),
    "yes or no": (replace_first("saliency", ".npy", flat(True, bool)), "of type bool, not probabilities in 8 bits"),
    "16 bits": (replace_first("edge", ".png", flat(9, np.uint16)), "of type uint16, not probabilities in 8 bits"),
    "bytes": (replace_first("normals", ".npy", flat(213, float, 3)), "holds the value 213, where only -1…1 can be"),
    "infinite": (replace_first("depth", ".npy", flat(np.inf, float)), "the value inf, where only finite numbers"),
    "8-bit depth": (replace_first("depth", ".png", flat(9, np.uint8)), "type uint8, not metres in floats or mill"),
}


@pytest.mark.parametrize("damage", list(DAMAGES))
def test_a_file_that_cannot_be_a_prediction_is_named_in_one_sentence(saved, damage):
    root, folder = saved
    do, expected = DAMAGES[damage]
    do(folder)
    with pytest.raises(UserError) as caught:
        judge(root, folder)
    sentence = str(caught.value)
    assert sentence.startswith(f"{folder}/")
    assert expected in sentence
    assert sentence.endswith("; save it again in the form that mlore_edu/saved_predictions.py describes.")
    assert "\n" not in sentence


def test_a_wrong_size_is_told_beside_the_padded_one_that_would_do_too(saved):
    root, folder = saved
    replace_first("depth", ".npy", np.zeros((81, 97)))(folder)
    with pytest.raises(UserError, match=r"is 81×97, but its image needs 64×64 \(or, padded, 81×96\); save it again"):
        judge(root, folder, img_size=FRAME)


def test_a_folder_that_is_not_in_this_form_is_explained_in_one_sentence(saved, tmp_path):
    root, folder = saved
    with pytest.raises(UserError, match=r"There is no folder .*/nowhere; give the one that holds"):
        judge(root, tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"holds no folder of a task; put predictions into .*/empty/semseg"):
        judge(root, tmp_path / "empty")
    (folder / "flow").mkdir()
    with pytest.raises(UserError, match=r"/flow is named after no task of Dollhouse \(semseg, .*\); rename it"):
        judge(root, folder)
    (folder / "flow").rename(folder / "parts")
    with pytest.raises(UserError, match=r"human_parts and .*parts are both human_parts; move one"):
        judge(root, folder)
    (folder / "parts").rmdir()
    write(folder / "depth" / "1000000.png", flat(9, np.uint16))
    with pytest.raises(UserError, match=r"depth holds both 1000000.npy and 1000000.png; move one of them away"):
        judge(root, folder)
    for path in (folder / "depth").iterdir():
        path.rename(path.with_suffix(".mat"))
    with pytest.raises(UserError, match=r"depth holds no prediction of the 2 images; name files .* 1000000.png or"):
        judge(root, folder)


# --- the command line --------------------------------------------------------------------------------------------

TRAIN = (
    "train dollhouse_baseline_nano --img-size 80 96 --iterations 2 --batch-size 2 --workers 0 --model-options "
    "channels 8 --pictures 1"
)


@pytest.fixture(scope="module")
def trained(make_case, tmp_path_factory):
    home, _, _ = make_case("dollhouse")
    run = tmp_path_factory.mktemp("runs") / "tiny"
    assert cli.main([*TRAIN.split(), "--root", str(home / "data"), "--run", str(run)]) == 0
    return home / "data", run


def test_a_run_saves_its_predictions_and_they_are_judged_like_the_run(trained, tmp_path, capsys):
    root, run = trained
    words = f"evaluate {run} --save-predictions {tmp_path}/p --json {tmp_path}/run.json --pictures {tmp_path}/pictures"
    assert cli.main(words.split()) == 0
    shown = capsys.readouterr().out
    assert "equal to the numbers at the end of the run, to the last digit" in shown
    assert f"pictures are in {tmp_path}/pictures\npredictions are in {tmp_path}/p" in shown
    words = f"evaluate --predictions {tmp_path}/p --data dollhouse --root {root} --json {tmp_path}/files.json"
    assert cli.main([*words.split(), "--pictures", f"{tmp_path}/again", "--count", "1"]) == 0
    assert "no paper has numbers on Dollhouse" in capsys.readouterr().out
    own, again = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("run", "files"))
    assert own["metrics"].pop("saliency") == pytest.approx(again["metrics"].pop("saliency"), abs=1)
    assert own["metrics"] == again["metrics"]
    assert own["protocols"] == again["protocols"]
    names = (root / "val.txt").read_text().split()
    assert [path.stem for path in sorted((tmp_path / "pictures").iterdir())] == names
    assert [path.stem for path in (tmp_path / "again").iterdir()] == names[:1]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("RUN --predictions SAVED", "evaluate needs one thing to judge; give the folder of a run, or --released FILE"),
        ("--predictions SAVED", "give --data pascal_context, nyud_v2, dollhouse"),
        ("--predictions SAVED --data nyud_v2 --root ROOT", "does not hold NYUD-v2"),
        ("--predictions SAVED --data dollhouse --root ROOT --save-predictions X", "leave out --save-predictions"),
        ("RUN --partial", "--partial is for --predictions; leave it out"),
        ("RUN --save-predictions SAVED", "and not an empty folder; choose another with --save-predictions"),
        ("RUN --pictures SAVED", "and not an empty folder; choose another with --pictures"),
        ("RUN --pictures SAVED/depth/1000000.npy", "and not an empty folder; choose another with --pictures"),
        ("RUN --boundary-protocol mine", "there is no --boundary-protocol mine; choose one of pascal, "),
        ("RUN --boundary-images ROOT/none.txt", "none.txt cannot be read"),
        ("RUN --count 3", "--count says how many pictures to draw; add --pictures FOLDER, or leave it out"),
        ("RUN --pictures X --count 0", "--count is 0; give at least 1"),
        ("RUN --save-predictions /proc/p", "cannot write the predictions to /proc/p"),
        ("--predictions SAVED --data dollhouse --root ROOT --pictures /proc/p", "cannot write the pictures to /proc/p"),
    ],
)
def test_every_mistake_is_answered_in_one_sentence_and_changes_nothing(trained, saved, capsys, words, expected):
    (root, run), (_, folder) = trained, saved
    before = {path: path.read_bytes() for path in folder.rglob("*.*")}
    words = words.replace("RUN", str(run)).replace("SAVED", str(folder)).replace("ROOT", str(root))
    assert cli.main(["evaluate", *words.split()]) == 2
    out, error = capsys.readouterr()
    sentence = error.split("\r")[-1].strip()
    assert out == ""
    assert sentence.startswith("mlore-edu: ")
    assert expected in sentence
    assert "\n" not in sentence
    assert {path: path.read_bytes() for path in folder.rglob("*.*")} == before


def test_images_whose_boundaries_count_are_refused_where_no_boundaries_are_judged(saved, capsys):
    root, folder = saved
    shutil.rmtree(folder / "edge")
    words = f"evaluate --predictions {folder} --data dollhouse --root {root} --boundary-images {root}/val.txt"
    assert cli.main(words.split()) == 2
    assert "--boundary-images is for boundaries, and none are judged here; leave it out." in capsys.readouterr().err
