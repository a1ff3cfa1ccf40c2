"""The readers of PASCAL-Context and NYUD-v2 on files made by hand, and on damaged ones."""

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import savemat

from mlore_edu.data import labels
from mlore_edu.data.catalogue import BENCHMARKS
from mlore_edu.data.loaders import open_dataset
from mlore_edu.data.nyud_builds import MEANING
from mlore_edu.data.nyud_v2 import NYUDv2
from mlore_edu.data.pascal_context import PASCALContext
from mlore_edu.data.transforms import eval_transform
from mlore_edu.errors import UserError
from mlore_edu.tasks import NYUD_V2, PASCAL_CONTEXT

H, W = 6, 8
WALL, PLANT = labels.LABELMAP_IDS["wall"], labels.LABELMAP_IDS["pottedplant"]


def save(path, values):
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npy":
        np.save(path, values)
    elif path.suffix == ".mat":
        savemat(path, values)
    elif path.suffix == ".txt":
        path.write_text(values)
    else:
        Image.fromarray(values).save(path)


def half(left, right, dtype=np.uint8):
    values = np.full((H, W), left, dtype)
    values[:, W // 2 :] = right
    return values


def person(*parts):
    """PASCAL-Part's structure, built with numpy's own record arrays."""
    rows = np.zeros((1, len(parts)), dtype=[("part_name", object), ("mask", object)])
    for i, (name, rows_shown) in enumerate(parts):
        mask = np.zeros((H, W), np.uint8)
        mask[rows_shown] = 1
        rows[0, i] = (name, mask)
    people = np.zeros((1, 1), dtype=[("class", object), ("class_ind", object), ("mask", object), ("parts", object)])
    people[0, 0] = ("person", 15, np.ones((H, W), np.uint8), rows if parts else np.zeros((0, 0)))
    return {"anno": {"imname": "x", "objects": people}}


@pytest.fixture
def pascal(tmp_path):
    root = tmp_path / "PASCALContext"
    for split, name in (("train", "2008_000001"), ("val", "2008_000002")):
        save(root / f"ImageSets/Context/{split}.txt", f"{name}\n\n")
        save(root / f"JPEGImages/{name}.jpg", np.full((H, W, 3), 90, np.uint8))
        save(root / f"pascal-context/trainval/{name}.mat", {"LabelMap": half(WALL, PLANT, np.uint16)})
        save(root / f"human_parts/{name}.mat", person(("hair", 0), ("lfoot", slice(4, 6))))
        save(root / f"normals_distill/{name}.png", np.full((H, W, 3), (128, 128, 255), np.uint8))
        save(root / f"sal_distill/{name}.png", half(127, 128))
    save(root / "semseg/VOC12/2008_000001.png", half(15, 255))
    save(root / "semseg/pascal-context/2008_000001.png", half(1, 2))
    save(root / "semseg/pascal-context/2008_000002.png", half(9, 20))
    return root


@pytest.fixture
def nyud(tmp_path):
    root = tmp_path / "NYUDv2"
    for split, name in (("train", "0001"), ("val", "0002")):
        save(root / f"gt_sets/{split}.txt", name)
        save(root / f"images/{name}.png", np.full((H, W, 3), 90, np.uint8))
        save(root / f"segmentation/{name}.png", half(0, 40))
        save(root / f"normals/{name}.png", np.full((H, W, 3), (255, 128, 128), np.uint8))
        save(root / f"depth/{name}.npy", half(0, 2.5, np.float32))
        save(root / f"edge/{name}.png", half(0, 255))
    return root


def test_pascal_labels_are_read_by_every_rule(pascal):
    data = PASCALContext(pascal, "train")
    assert (len(data), data.ids) == (1, ("2008_000001",))
    sample = data[0]
    assert list(sample) == ["image", *PASCAL_CONTEXT.names, "meta"]
    assert sample["image"].shape == (3, H, W)
    assert sample["meta"] == {"id": "2008_000001", "size": (H, W)}
    assert sample["semseg"].tolist() == half(15, 255).tolist()  # VOC12 goes first
    assert sample["saliency"].tolist() == half(0, 1).tolist()
    assert sample["human_parts"].tolist() == [[1] * W, [0] * W, [0] * W, [0] * W, [6] * W, [6] * W]
    assert sample["normals"][2, :, : W // 2].min() > 0.99  # on the wall
    assert sample["normals"][:, :, W // 2 :].abs().max() == 0  # NYU has no potted plants
    assert sample["edge"].sum(1).tolist()[1:-1] == [1] * (H - 2)


def test_pascal_falls_back_to_the_other_segmentation(pascal):
    assert PASCALContext(pascal, "val")[0]["semseg"].tolist() == half(9, 20).tolist()


def test_pascal_images_without_parts_are_ignored_for_human_parts(pascal):
    save(pascal / "human_parts/2008_000001.mat", person())
    assert (PASCALContext(pascal, "train")[0]["human_parts"] == 255).all()


def test_a_subset_of_tasks_opens_only_its_files(pascal):
    for folder in ("pascal-context", "human_parts", "normals_distill"):
        os.rename(pascal / folder, pascal / f"no_{folder}")
    sample = PASCALContext(pascal, "train", PASCAL_CONTEXT.subset("semseg", "saliency"))[0]
    assert list(sample) == ["image", "semseg", "saliency", "meta"]


def test_nyud_labels_are_read_by_every_rule(nyud):
    data = NYUDv2(nyud, "train")
    sample = data[0]
    assert list(sample) == ["image", *NYUD_V2.names, "meta"]
    assert sample["semseg"].tolist() == half(255, 39).tolist()
    assert sample["depth"][0].tolist() == half(0, 2.5, np.float32).tolist()
    assert sample["edge"].tolist() == half(0, 1).tolist()
    assert sample["normals"][0].min() > 0.99
    assert (sample["normals"].norm(dim=0) - 1).abs().max() < 1e-6


def test_normals_of_nyud_are_masked_only_where_the_build_had_floats(nyud):
    save(nyud / "normals/0001.png", np.full((H, W, 3), 128, np.uint8))  # the nearest that 8 bits come to zero
    normals = NYUDv2(nyud, "train")[0]["normals"]
    assert (normals.norm(dim=0) - 1).abs().max() < 1e-6
    (nyud / "build.json").write_text('{"build": "MTL-PyTorch"}')
    assert not NYUDv2(nyud, "train")[0]["normals"].any()
    (nyud / "build.json").write_text("{")
    assert torch.equal(NYUDv2(nyud, "train")[0]["normals"], normals)


def test_the_splits_of_the_field_have_these_counts():
    assert BENCHMARKS["pascal_context"].counts == {"train": 4998, "val": 5105}
    assert BENCHMARKS["nyud_v2"].counts == {"train": 795, "val": 654}


def test_the_480_by_640_build_does_not_fit_the_frame_of_the_recipes_and_this_is_said():
    sample = {"image": torch.zeros(3, 480, 640, dtype=torch.uint8), "meta": {"id": "0001", "size": (480, 640)}}
    with pytest.raises(UserError, match=r"0001 is 480×640, larger than the frame of 448×576"):
        eval_transform((448, 576))(sample)
    assert eval_transform((480, 640))(sample)["image"].shape == (3, 480, 640)
    assert "--img-size 480 640" in MEANING["MTL-PyTorch"]


def test_invalid_depth_of_nyud_becomes_zero(nyud):
    save(nyud / "depth/0001.npy", half(np.nan, -1, np.float32))
    assert NYUDv2(nyud, "train")[0]["depth"].abs().max() == 0


@pytest.mark.parametrize(
    ("build", "files"),
    [
        ("ASTMT", {"images/0001.jpg": half(0, 9), "segmentation/0001.mat": {"segmentation": half(0, 40)}}),
        ("MTL-PyTorch", {"images/0001.jpg": half(0, 9), "normals/0001.npy": np.zeros((H, W, 3))}),
    ],
)
def test_other_builds_of_nyud_are_told_apart_and_refused(tmp_path, build, files):
    save(tmp_path / "gt_sets/train.txt", "0001")
    for path, values in files.items():
        save(tmp_path / path, values)
    with pytest.raises(UserError, match=rf"holds the {build} build.*get the NYUDv2 archive"):
        NYUDv2(tmp_path, "train")


def damage(path, how):
    if not isinstance(how, str):
        save(path, how)
    elif how == "missing":
        path.unlink()
    elif how == "truncated":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    else:
        path.write_bytes(b"")


@pytest.mark.parametrize(
    ("path", "how", "message"),
    [
        ("JPEGImages/2008_000001.jpg", "missing", "is missing"),
        ("JPEGImages/2008_000001.jpg", "truncated", "is damaged"),
        ("JPEGImages/2008_000001.jpg", "empty", "is damaged"),
        ("semseg/VOC12/2008_000001.png", "truncated", "is damaged"),
        ("semseg/VOC12/2008_000001.png", np.zeros((H, W + 1), np.uint8), "is 6×9, but its image needs 6×8"),
        ("semseg/VOC12/2008_000001.png", half(0, 21), "holds the value 21, where only 0…20 and 255 can be"),
        ("human_parts/2008_000001.mat", "missing", "is missing"),
        ("human_parts/2008_000001.mat", "truncated", "is damaged"),
        ("human_parts/2008_000001.mat", "empty", "is damaged"),
        ("human_parts/2008_000001.mat", {"other": 1}, "is damaged or of another format .*anno"),
        ("human_parts/2008_000001.mat", {"anno": {"imname": "x"}}, "does not hold the people's parts"),
        ("human_parts/2008_000001.mat", person(("wing", 0)), "does not hold the people's parts .*wing"),
        (
            "pascal-context/trainval/2008_000001.mat",
            {"LabelMap": half(0, 460, np.uint16)},
            "holds the value 460",
        ),
        ("pascal-context/trainval/2008_000001.mat", {"LabelMap": np.ones((2, 2))}, "is 2×2, but"),
        ("normals_distill/2008_000001.png", half(0, 1), "is 6×8, but its image needs 6×8×3"),
        ("sal_distill/2008_000001.png", np.zeros((H, W, 3), np.uint8), "is 6×8×3, but its image needs 6×8"),
    ],
)
def test_a_bad_file_of_pascal_is_named_with_the_remedy(pascal, path, how, message):
    damage(pascal / path, how)
    data = PASCALContext(pascal, "train")
    with pytest.raises(UserError, match=rf"{path} {message}.*; .*unpack it again") as caught:
        data[0]
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("path", "how", "message"),
    [
        ("images/0001.png", "truncated", "is damaged"),
        ("segmentation/0001.png", half(0, 41), "holds the value 41, where only 0…40 can be"),
        ("depth/0001.npy", "truncated", "is damaged"),
        ("depth/0001.npy", "empty", "is damaged"),
        ("depth/0001.npy", np.zeros((W, H), np.float32), "is 8×6, but its image needs 6×8"),
        ("depth/0001.npy", np.array([None]), "is damaged"),
        ("normals/0001.png", half(0, 1), "is 6×8, but its image needs 6×8×3"),
        ("edge/0001.png", half(0, 1), "holds the value 1"),
    ],
)
def test_a_bad_file_of_nyud_is_named_with_the_remedy(nyud, path, how, message):
    damage(nyud / path, how)
    data = NYUDv2(nyud, "train")
    with pytest.raises(UserError, match=rf"{path} {message}.*; .*unpack it again"):
        data[0]


def test_a_wrong_root_or_split_says_what_is_missing(tmp_path, pascal, nyud):
    with pytest.raises(UserError, match=r"There is no folder .*nowhere; give the folder"):
        PASCALContext(tmp_path / "nowhere", "train")
    with pytest.raises(UserError, match=r"does not hold PASCAL-Context \(ImageSets/Context/train.txt is missing\)"):
        PASCALContext(nyud, "train")
    with pytest.raises(UserError, match=r"does not hold NYUD-v2 \(gt_sets/val.txt is missing\)"):
        NYUDv2(pascal, "val")
    with pytest.raises(UserError, match=r"no split 'test'; choose train or val"):
        NYUDv2(nyud, "test")
    save(nyud / "gt_sets/train.txt", "\n")
    with pytest.raises(UserError, match=r"train.txt lists no images"):
        NYUDv2(nyud, "train")


def test_a_file_without_read_permission_is_named(nyud, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied")

    data = NYUDv2(nyud, "train")
    monkeypatch.setattr(Image, "open", refuse)  # permissions do not bind the root user who may run this test
    with pytest.raises(UserError, match=r"images/0001.png may not be read; grant yourself permission"):
        data[0]


def test_reading_writes_nothing(pascal, nyud):
    def snapshot(root):
        return {path: path.stat().st_mtime_ns for path in sorted(Path(root).rglob("*"))}

    before = snapshot(pascal), snapshot(nyud)
    PASCALContext(pascal, "train")[0]
    NYUDv2(nyud, "val")[0]
    assert (snapshot(pascal), snapshot(nyud)) == before


def test_a_task_that_the_labels_cannot_serve_is_refused(nyud, pascal):
    with pytest.raises(UserError, match=r"NYUD-v2 has no labels for PASCAL-Context's semseg with 21 channels; use"):
        NYUDv2(nyud, "train", PASCAL_CONTEXT)
    with pytest.raises(UserError, match=r"no labels for NYUD-v2's depth"):
        PASCALContext(pascal, "train", NYUD_V2.subset("depth"))


def test_open_dataset_finds_the_reader_by_name(pascal, nyud):
    assert isinstance(open_dataset("pascal_context", pascal, "val"), PASCALContext)
    data = open_dataset("nyud_v2", str(nyud), "train", NYUD_V2.subset("depth"), eval_transform(8))
    assert data[0]["depth"].shape == (1, 8, 8)
    with pytest.raises(UserError, match=r"no data set 'nyud'; choose one of dollhouse, pascal_context, nyud_v2"):
        open_dataset("nyud", nyud, "train")


def test_a_data_set_can_be_seen_with_other_tasks_and_counted_from_the_end(nyud):
    data = NYUDv2(nyud, "train")
    depth = data.using(tasks=NYUD_V2.subset("depth"), transform=eval_transform(8))
    assert set(depth[-1]) == {"image", "depth", "meta"}
    assert data.transform is None
    assert len(data.tasks) == 4
    with pytest.raises(IndexError):
        data[1]


def test_a_data_set_can_be_sent_to_another_process(nyud):
    twin = pickle.loads(pickle.dumps(NYUDv2(nyud, "train", transform=eval_transform(8))))
    assert torch.equal(twin[0]["image"], NYUDv2(nyud, "train", transform=eval_transform(8))[0]["image"])
