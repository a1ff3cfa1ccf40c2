"""Predictions for one's own images: what an evaluation judges where the image fits, and true to place, direction and
distance where it has to be resized."""

import math
import shutil
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import nn
from torchvision import tv_tensors
from using_fakes import SIZE, room, tiny_model, write_run

from mlore_edu import cli
from mlore_edu.data.files import Folder
from mlore_edu.data.tensors import Depth
from mlore_edu.data.transforms import RandomScale, denormalise, eval_transform
from mlore_edu.errors import UserError
from mlore_edu.evaluation import decode
from mlore_edu.prediction import frame_image, predict, tasks_of
from mlore_edu.prediction_files import find_images, predict_files
from mlore_edu.reparameterization import fuse
from mlore_edu.saved_predictions import read_prediction
from mlore_edu.tasks import DOLLHOUSE

MODEL = tiny_model()


class Mirror(nn.Module):
    """Predicts what it sees: the image's red as scores, depth and probability, its three colours as normals."""

    def __init__(self, size):
        super().__init__()
        self.img_size, self.unit = size, nn.Parameter(torch.ones(()))

    def forward(self, images):
        colours = denormalise(images).float() / 255 * self.unit  # (1, 3, H, W)
        red = colours[:, :1]
        predictions = {"normals": colours, "depth": red, "edge": torch.logit(red, 1e-6)}
        others = torch.full_like(red, -9).expand(-1, DOLLHOUSE["semseg"].channels - 2, -1, -1)
        predictions["semseg"] = torch.cat([0.5 - red, red - 0.5, others], dim=1)
        return SimpleNamespace(predictions=predictions)


MIRRORED = DOLLHOUSE.subset("semseg", "normals", "depth", "edge")


def waves(height, width):
    """A picture that changes slowly from place to place, (3, H, W) in 0…1, bright enough to have a direction."""
    y = torch.linspace(0, 1, height)[:, None].expand(height, width)
    x = torch.linspace(0, 1, width)[None].expand(height, width)
    return torch.stack([0.2 + 0.6 * x, 0.2 + 0.6 * y, 0.5 + 0.2 * torch.sin(3 * (x + y))])


def test_an_image_that_fits_gets_exactly_what_an_evaluation_judges():
    image = torch.from_numpy(room(24, 50)).permute(2, 0, 1)
    sample = eval_transform(SIZE)({"image": tv_tensors.Image(image)})
    top, left = sample["meta"]["offset"]
    with torch.no_grad():
        decoded = decode(MODEL(sample["image"][None]).predictions, DOLLHOUSE)
    answers = predict(MODEL, image)
    for name, judged in decoded.items():
        assert torch.equal(answers[name], judged[0][..., top : top + 24, left : left + 50]), name


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 150), st.integers(1, 150), st.booleans())
def test_every_answer_has_the_images_size_and_the_tasks_range(height, width, enlarge):
    image = torch.rand(3, height, width, generator=torch.Generator().manual_seed(height))
    answers = predict(MODEL, image, enlarge=enlarge)
    assert tuple(answers) == DOLLHOUSE.names
    for task in DOLLHOUSE:
        answer, channels = answers[task.name], {"normals": (3,), "depth": (1,)}.get(task.name, ())
        assert answer.shape == (*channels, height, width)
        assert not answer.is_inference()
        if task.metric == "mIoU":
            assert answer.dtype == torch.int64
            assert 0 <= answer.min() <= answer.max() < task.channels
        elif task.name in ("saliency", "edge"):
            assert 0 <= answer.min() <= answer.max() <= 1
        assert torch.isfinite(answer).all()
    torch.testing.assert_close(answers["normals"].norm(dim=0), torch.ones(height, width))


@pytest.mark.parametrize("size", [(1, 1), (1, 700), (700, 1), (2, 3), (900, 800)])
def test_extreme_shapes_are_predicted_too(size):
    for enlarge in (False, True):
        assert predict(MODEL, np.zeros(size), enlarge=enlarge)["semseg"].shape == size


@pytest.mark.parametrize(("height", "width"), [(100, 150), (150, 70), (64, 64), (30, 41), (20, 200)])
@pytest.mark.parametrize("enlarge", [False, True])
def test_answers_lie_where_the_things_are_in_the_image(height, width, enlarge):
    """A model that predicts what it sees gives the image back: shrinking, padding and their inverse agree in place."""
    image = waves(height, width)
    answers = predict(Mirror((48, 64)), image, tasks=MIRRORED, enlarge=enlarge)
    factor = max(1, height / 48, width / 64)
    off = 0.012 + 0.6 * 0.75 * factor / min(height, width)  # eight bits, and three quarters of a pixel of the frame
    torch.testing.assert_close(answers["depth"][0], image[0], atol=off, rtol=0)
    torch.testing.assert_close(answers["edge"], image[0], atol=2 * off, rtol=0)
    torch.testing.assert_close(answers["normals"], F.normalize(image, dim=0), atol=3 * off, rtol=0)
    clear = (image[0] - 0.5).abs() > off
    assert torch.equal(answers["semseg"][clear] == 1, image[0][clear] > 0.5)


def test_nothing_of_the_padding_reaches_the_answers():
    """The frame is dark around the picture; were it cut a pixel off, a dark border would show."""
    answers = predict(Mirror((64, 64)), torch.full((3, 50, 300), 0.8), tasks=MIRRORED)
    torch.testing.assert_close(answers["depth"], torch.full((1, 50, 300), 0.8), atol=3e-3, rtol=0)


def test_the_frame_holds_the_whole_image_in_its_shape():
    for height, width, enlarge, expected in [
        (480, 640, False, (48, 64)),
        (640, 480, False, (48, 36)),
        (24, 30, False, (24, 30)),
        (24, 30, True, (48, 60)),
        (10, 4000, False, (1, 64)),
        (49, 64, False, (48, 63)),
    ]:
        framed = frame_image(torch.zeros(3, height, width, dtype=torch.uint8), (48, 64), enlarge=enlarge)
        assert framed.size == expected
        assert framed.image.shape == (3, 48, 64)
        assert framed.offset == ((48 - expected[0]) // 2, (64 - expected[1]) // 2)


def test_classes_are_chosen_after_the_scores_are_resized():
    raw = torch.randn(1, 15, 48, 64, generator=torch.Generator().manual_seed(0))

    class Noisy(Mirror):
        def forward(self, images):
            return SimpleNamespace(predictions={"semseg": raw * self.unit})

    found = predict(Noisy((48, 64)), torch.zeros(3, 96, 100), tasks=DOLLHOUSE.subset("semseg"))["semseg"]
    inner = raw[..., 7:57]  # 96 × 100 becomes 48 × 50, with 7 columns of padding on either side
    assert torch.equal(found, F.interpolate(inner, (96, 100), mode="bilinear").argmax(dim=1)[0])
    of_classes = F.interpolate(inner.argmax(dim=1, keepdim=True).float(), (96, 100))[0, 0]
    assert not torch.equal(found, of_classes.long())  # so the order does matter


def test_metres_stay_as_predicted_unless_the_cameras_are_known():
    image = waves(96, 128)
    plain = predict(Mirror((48, 64)), image, tasks=MIRRORED)["depth"]
    known = predict(Mirror((48, 64)), image, tasks=MIRRORED, focal_ratio=3.0)["depth"]
    torch.testing.assert_close(known, plain * 3.0 * 0.5)


def test_for_the_trainings_own_camera_metres_undo_what_augmentation_does_to_depth():
    """A perfect model on the image at half its size says what RandomScale makes of the labels: twice the distance."""
    image, depth = waves(96, 128), Depth(torch.full((1, 96, 128), 2.5))
    scaled = RandomScale(0.5, 0.5)({"image": tv_tensors.Image(image), "depth": depth})

    class Perfect(Mirror):
        def forward(self, images):
            return SimpleNamespace(predictions={"depth": scaled["depth"][None].as_subclass(torch.Tensor) * self.unit})

    found = predict(Perfect((48, 64)), image, tasks=DOLLHOUSE.subset("depth"), focal_ratio=1)["depth"]
    torch.testing.assert_close(found, depth.as_subclass(torch.Tensor))


@pytest.mark.parametrize("ratio", [0, -1, math.nan, math.inf])
def test_a_ratio_that_cannot_be_is_refused(ratio):
    with pytest.raises(UserError, match=r"focal_ratio is .* give a positive number"):
        predict(MODEL, room(), focal_ratio=ratio)


def test_the_model_stays_in_the_mode_it_was_in_and_as_it_was():
    model = tiny_model().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    predict(model, room())
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_fused_model_answers_the_same():
    model = tiny_model("mlore_vit_nano")
    answers, fused = predict(model, room()), predict(fuse(model), room())
    for name in ("normals", "depth", "saliency", "edge"):
        torch.testing.assert_close(fused[name], answers[name], atol=1e-4, rtol=1e-4)


def test_a_model_put_together_by_hand_must_be_told_its_tasks():
    with pytest.raises(UserError, match="does not know its tasks; build it with build_model, or give tasks="):
        tasks_of(Mirror((48, 64)))


def test_a_run_can_be_named_in_place_of_a_model(tmp_path):
    run, model = write_run(tmp_path / "run")
    for source in (run, str(run)):
        answers = predict(source, room())
        assert all(torch.equal(answers[name], value) for name, value in predict(model, room()).items())


@pytest.fixture
def photos(tmp_path):
    """A folder with two photographs, three files that are none, and one that is not meant."""
    folder = tmp_path / "photos"
    folder.mkdir()
    Image.fromarray(room()).save(folder / "room.jpg")
    Image.fromarray(room()).convert("L").rotate(90, expand=True).save(folder / "grey.png")
    (folder / "empty.png").touch()
    (folder / "text.jpeg").write_text("no image")
    (folder / "cut.jpg").write_bytes((folder / "room.jpg").read_bytes()[:500])
    (folder / "notes.txt").write_text("not meant")
    return folder


def test_one_bad_file_does_not_stop_the_others(photos, tmp_path):
    outcome = predict_files(MODEL, [photos], tmp_path / "out", progress=False)
    assert outcome.written == ["grey", "room"]
    assert sorted(path.name for path in outcome.failures) == ["cut.jpg", "empty.png", "text.jpeg"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["grey.png", "room.png"]
    picture = Image.open(tmp_path / "out" / "room.png")
    assert picture.size == (7 * 128 + 6 * 4, 96 + 22)  # the image and six tasks, at the image's size


def test_arrays_are_those_that_evaluate_reads(photos, tmp_path):
    predict_files(MODEL, [photos / "grey.png"], tmp_path / "out", arrays=True, progress=False)
    answers = predict(MODEL, photos / "grey.png")
    for task in DOLLHOUSE:
        (file,) = (tmp_path / "out" / task.name).iterdir()
        read = read_prediction(Folder(tmp_path / "out", "again"), f"{task.name}/{file.name}", task, (128, 96))[0]
        exact = task.name not in ("saliency", "edge")
        torch.testing.assert_close(read, answers[task.name], atol=0 if exact else 0.5 / 255 + 1e-6, rtol=0)


def test_nothing_is_overwritten_and_no_two_files_share_a_name(photos, tmp_path):
    with pytest.raises(UserError, match=r"photos is there already and not an empty folder; choose another with --out"):
        predict_files(MODEL, [photos], photos)
    shutil.copy(photos / "room.jpg", photos / "room.bmp")
    with pytest.raises(UserError, match=r"room.bmp and .*room.jpg would both be room.png; rename one of them"):
        predict_files(MODEL, [photos], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_sources_without_images_are_named(tmp_path):
    with pytest.raises(UserError, match="holds no image; give a folder of JPEGs"):
        find_images([tmp_path])
    with pytest.raises(UserError, match="There is no file or folder"):
        find_images([tmp_path / "none"])
    with pytest.raises(UserError, match="every is 0"):
        predict_files(MODEL, [], tmp_path / "out", every=0)


def test_a_film_becomes_a_picture_of_every_so_many_of_its_frames(tmp_path):
    from test_images import write_film

    path = write_film(tmp_path / "film.mp4", [room() for _ in range(4)])
    assert predict_files(MODEL, [path], tmp_path / "out", every=3).written == ["film_000000", "film_000003"]


def test_the_command_writes_what_it_can_and_ends_with_two_where_something_failed(photos, tmp_path, capsys):
    run, _ = write_run(tmp_path / "run")
    assert cli.main(["predict", str(run), str(photos), "--out", str(tmp_path / "a")]) == 2
    error = capsys.readouterr().err.split("mlore-edu: ")[-1]
    assert error.startswith(f"3 files could not be predicted; the 2 images predicted are in {tmp_path / 'a'}:\n")
    assert error.count("\n  ") == 3
    assert cli.main(["predict", str(run), str(photos / "room.jpg"), "--out", str(tmp_path / "b"), "--arrays"]) == 0
    assert capsys.readouterr().out == f"1 image predicted; pictures and arrays are in {tmp_path / 'b'}\n"
    assert cli.main(["predict", str(run), str(photos / "cut.jpg"), "--out", str(tmp_path / "c")]) == 2
    assert "\n" not in capsys.readouterr().err.strip()


def test_the_command_puts_pictures_below_the_current_folder_where_nothing_else_is_said(photos, tmp_path, monkeypatch):
    run, _ = write_run(tmp_path / "run", "mlore_vit_nano")
    monkeypatch.chdir(tmp_path)
    assert cli.main(["predict", str(run), str(photos / "room.jpg"), "--fuse"]) == 0
    assert (tmp_path / "predictions" / "room" / "room.png").exists()


def test_a_film_without_the_package_is_one_sentence_of_the_command(tmp_path, monkeypatch, capsys):
    run, _ = write_run(tmp_path / "run")
    (tmp_path / "film.mp4").write_bytes(b"x")
    monkeypatch.setitem(sys.modules, "av", None)
    assert cli.main(["predict", str(run), str(tmp_path / "film.mp4"), "--out", str(tmp_path / "out")]) == 2
    assert "install it with 'pip install av'" in capsys.readouterr().err
