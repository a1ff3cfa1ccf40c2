"""Every file is looked at, and what is missing or odd is reported in words: one sentence for each kind of damage."""

import json
import os
import re
import shutil

import numpy as np
import pytest
from benchmark_folders import contents, ids_of, write_build, write_layout
from PIL import Image
from scipy.io import savemat

from mlore_edu.data import verification
from mlore_edu.data.files import FileError
from mlore_edu.data.preparation import prepare
from mlore_edu.data.verification import check_images, grouped, verify
from mlore_edu.errors import UserError

ROOTS = {"pascal_context": "PASCALContext", "nyud_v2": "NYUDv2"}


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    place = tmp_path_factory.mktemp("originals")
    for name, root in ROOTS.items():
        write_layout(place / root, name)
    return place


@pytest.fixture
def mine(originals, tmp_path):
    """Copies of both that a test may damage."""
    return shutil.copytree(originals, tmp_path / "mine")


def look(name, place, **arguments):
    return verify(name, place / ROOTS[name], progress=False, **arguments)


@pytest.mark.parametrize("name", list(ROOTS))
def test_good_data_give_counts_and_no_problem(originals, name):
    before = contents(originals)
    report = look(name, originals)
    assert report.problems == []
    assert report.facts[:2] == ["train: 3 images", "val: 2 images"]
    assert "image sizes: 64×64 (5 images)" in report.facts
    kind = "human_parts" if name == "pascal_context" else "depth"
    assert f"{kind}: 5 of 5 files" in report.facts
    assert contents(originals) == before


def test_names_only_does_not_open_a_file(mine, monkeypatch):
    monkeypatch.setattr(verification, "check_images", None)
    assert look("nyud_v2", mine, contents=False).problems == []
    (mine / f"NYUDv2/depth/{ids_of(mine / 'NYUDv2')[0]}.npy").unlink()
    assert len(look("nyud_v2", mine, contents=False).problems) == 1


def test_it_is_said_how_many_labels_are_derived(mine):
    assert look("pascal_context", mine).facts[-1] == "derived labels: kept for 0 of 5 images"
    prepare("pascal_context", mine / "PASCALContext", progress=False)
    assert look("pascal_context", mine).facts[-1] == "derived labels: kept for 5 of 5 images"


def test_the_build_is_said(mine):
    assert "whose numbers the papers print" in look("nyud_v2", mine).facts[2]
    write_build(mine / "NYUD_MT", mine / "NYUDv2", "ASTMT")
    prepare("nyud_v2", mine / "converted", folder=mine / "NYUD_MT", progress=False)
    report = verify("nyud_v2", mine / "converted", progress=False)
    assert report.problems == []
    assert "not comparable" in report.facts[2]


def save(path, values):
    if path.suffix == ".npy":
        np.save(path, values)
    elif path.suffix == ".mat":
        savemat(path, values)
    else:
        Image.fromarray(values).save(path)


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def filled(value, shape=(64, 64), dtype=np.uint8):
    return np.full(shape, value, dtype)


PASCAL_DAMAGE = {
    "files of two ids missing": (
        lambda root, a, b: [(root / f"sal_distill/{name}.png").unlink() for name in (a, b)],
        r"sal_distill: 2 of 5 files are missing, e.g. sal_distill/{a}.png",
    ),
    "a folder missing": (
        lambda root, a, b: shutil.rmtree(root / "normals_distill"),
        r"normals_distill: the folder normals_distill is missing",
    ),
    "a picture cut off": (
        lambda root, a, b: cut(root / f"JPEGImages/{b}.jpg"),
        r"JPEGImages: 1 of 5 files is damaged or of another format, e.g. JPEGImages/{b}.jpg is damaged .*",
    ),
    "a file that is empty": (
        lambda root, a, b: (root / f"human_parts/{a}.mat").write_bytes(b""),
        r"human_parts: 1 of 5 files is damaged or of another format, e.g. human_parts/{a}.mat .*",
    ),
    "people annotated in another way": (
        lambda root, a, b: save(root / f"human_parts/{a}.mat", {"anno": {"imname": "x"}}),
        r"human_parts: 1 of 5 files is damaged .* does not hold the people's parts as PASCAL-Part does .*",
    ),
    "a segmentation of another size": (
        lambda root, a, b: save(root / f"semseg/VOC12/{a}.png", filled(0, (64, 63))),
        r"semseg/VOC12: 1 of 5 files has another size than its image, e.g. .*{a}.png is 64×63, but .* needs 64×64",
    ),
    "a class that does not exist": (
        lambda root, a, b: save(root / f"semseg/VOC12/{a}.png", filled(21)),
        r"semseg/VOC12: 1 of 5 files holds values that cannot be, e.g. .* the value 21, where only 0…20 and 255 can be",
    ),
    "a LabelMap beyond 459": (
        lambda root, a, b: save(root / f"pascal-context/trainval/{a}.mat", {"LabelMap": filled(460, dtype=np.uint16)}),
        r"pascal-context/trainval: 1 of 5 files holds values that cannot be, e.g. .* the value 460, .*",
    ),
    "saliency of 16 bits": (
        lambda root, a, b: save(root / f"sal_distill/{a}.png", filled(9, dtype=np.uint16)),
        r"sal_distill: 1 of 5 files holds another type of number, e.g. .* of type uint16, not of 8 bits",
    ),
    "normals that are none": (
        lambda root, a, b: save(root / f"normals_distill/{a}.png", filled(160, (64, 64, 3))),
        r"normals_distill: 1 of 5 files looks odd, e.g. .* vectors that are no unit normals in 100% of its pixels",
    ),
    "an image in both splits": (
        lambda root, a, b: (root / "ImageSets/Context/val.txt").open("a").write(f"{a}\n"),
        r"train and val must not meet, but share 1 of their images, e.g. {a}",
    ),
    "an id listed twice": (
        lambda root, a, b: (root / "ImageSets/Context/train.txt").open("a").write(f"{a}\n"),
        r"ImageSets/Context/train.txt lists ids more than once, 1 times in all",
    ),
    "an empty split": (
        lambda root, a, b: (root / "ImageSets/Context/val.txt").write_text("\n"),
        r"ImageSets/Context/val.txt lists no images: 2 ids belong there",
    ),
    "a split that is too short": (
        lambda root, a, b: (root / "ImageSets/Context/train.txt").write_text(f"{a}\n"),
        r"ImageSets/Context/train.txt lists 1 images, but should list 3",
    ),
}
NYUD_DAMAGE = {
    "files of all ids missing": (
        lambda root, a, b: [path.unlink() for path in (root / "normals").iterdir()],
        r"normals: 5 of 5 files are missing, e.g. normals/{a}.png",
    ),
    "depth cut off": (
        lambda root, a, b: cut(root / f"depth/{a}.npy"),
        r"depth: 1 of 5 files is damaged or of another format, e.g. depth/{a}.npy is damaged .*",
    ),
    "depth in whole millimetres": (
        lambda root, a, b: save(root / f"depth/{a}.npy", filled(2500, dtype=np.int32)),
        r"depth: 1 of 5 files holds another type of number, e.g. .* type int32, not metres in floats",
    ),
    "depth beyond the field's limit": (
        lambda root, a, b: save(root / f"depth/{a}.npy", filled(2500, dtype=np.float32)),
        r"depth: 1 of 5 files looks odd, e.g. .* reaches 2500 m, beyond the field's 80 m",
    ),
    "no depth at all": (
        lambda root, a, b: save(root / f"depth/{a}.npy", filled(np.nan, dtype=np.float32)),
        r"depth: 1 of 5 files looks odd, e.g. .* holds no valid depth",
    ),
    "no labelled pixel": (
        lambda root, a, b: save(root / f"segmentation/{a}.png", filled(0)),
        r"segmentation: 1 of 5 files looks odd, e.g. .* has no labelled pixel",
    ),
    "boundaries everywhere": (
        lambda root, a, b: save(root / f"edge/{a}.png", filled(255)),
        r"edge: 1 of 5 files looks odd, e.g. .* is boundary in 100% of its pixels",
    ),
    "boundaries neither 0 nor 255": (
        lambda root, a, b: save(root / f"edge/{a}.png", filled(1)),
        r"edge: 1 of 5 files holds values that cannot be, e.g. .* holds the value 1, where only 0…0 and 255 can be",
    ),
    "grey normals": (
        lambda root, a, b: save(root / f"normals/{b}.png", filled(1)),
        r"normals: 1 of 5 files has another size than its image, e.g. .* is 64×64, but its image needs 64×64×3",
    ),
    "pictures of two sizes": (
        lambda root, a, b: save(root / f"images/{a}.png", filled(1, (32, 32, 3))),
        r"images: 2 sizes are mixed, where all should be equal",
    ),
}


@pytest.mark.parametrize(
    ("name", "damage"),
    [("pascal_context", damage) for damage in PASCAL_DAMAGE] + [("nyud_v2", damage) for damage in NYUD_DAMAGE],
)
def test_each_kind_of_damage_is_one_sentence(mine, name, damage):
    root = mine / ROOTS[name]
    inflict, sentence = (PASCAL_DAMAGE if name == "pascal_context" else NYUD_DAMAGE)[damage]
    a, b = ids_of(root)[:2]
    inflict(root, a, b)
    before = contents(mine)
    problems = look(name, mine).problems
    assert any(re.fullmatch(sentence.format(a=a, b=b), problem) for problem in problems), problems
    side_effects = {"pictures of two sizes", "an image in both splits"}
    assert len(problems) == 1 or damage in side_effects
    assert contents(mine) == before


def test_a_file_that_may_not_be_read_is_counted_as_such(mine, monkeypatch):
    def refuse(self, name):
        raise FileError(name, "locked", "may not be read", "…")

    monkeypatch.setattr("mlore_edu.data.files.Folder.array", refuse)
    (problem,) = look("nyud_v2", mine).problems
    assert problem == f"depth: 5 of 5 files may not be read, e.g. depth/{ids_of(mine / 'NYUDv2')[0]}.npy"


def test_real_data_are_held_to_the_counts_and_sizes_of_the_field(mine):
    (mine / "NYUDv2/dataset.json").unlink()  # now nothing says that this is a Dollhouse
    assert look("nyud_v2", mine).problems == [
        "gt_sets/train.txt lists 3 images, but should list 795",
        "gt_sets/val.txt lists 2 images, but should list 654",
        "images: all are 64×64, but those of this build are 425×560",
    ]
    os.unlink(mine / "PASCALContext/dataset.json")
    assert look("pascal_context", mine).problems == [
        "ImageSets/Context/train.txt lists 3 images, but should list 4,998",
        "ImageSets/Context/val.txt lists 2 images, but should list 5,105",
    ]


def test_files_that_no_split_names_are_counted_as_others(mine):
    (mine / "NYUDv2/depth/stranger.npy").write_bytes(b"")
    report = look("nyud_v2", mine)
    assert "depth: 5 of 5 files, and 1 others" in report.facts
    assert report.problems == []


def test_either_place_of_a_segmentation_will_do(mine):
    root, name = mine / "PASCALContext", ids_of(mine / "PASCALContext")[0]
    (root / "semseg/pascal-context").mkdir()
    (root / f"semseg/VOC12/{name}.png").rename(root / f"semseg/pascal-context/{name}.png")
    assert look("pascal_context", mine).problems == []


def test_what_cannot_be_looked_at_is_refused(mine, tmp_path):
    with pytest.raises(UserError, match=r"There is no folder .*nowhere; give the folder"):
        verify("nyud_v2", tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"does not hold NYUD-v2 \(gt_sets/train.txt is missing\)"):
        verify("nyud_v2", mine / "PASCALContext")
    write_build(mine / "NYUD_MT", mine / "NYUDv2", "ASTMT")
    with pytest.raises(UserError, match=r"holds the ASTMT build .*prepare --folder"):
        verify("nyud_v2", mine / "NYUD_MT")


@pytest.mark.slow
def test_processes_change_nothing_but_the_time(mine):
    root, name = mine / "NYUDv2", ids_of(mine / "NYUDv2")[0]
    cut(root / f"depth/{name}.npy")
    for split in ("train", "val"):  # enough jobs for two processes
        path = root / f"gt_sets/{split}.txt"
        path.write_text(path.read_text() + "".join(f"nobody{split}{i}\n" for i in range(20)))
    assert look("nyud_v2", mine, workers=2) == look("nyud_v2", mine, workers=1)


def test_faults_are_grouped_and_named_twice_count_once():
    faults = [FileError(f"depth/{i}.npy", "missing", "is missing", "…") for i in (3, 1, 2, 1)]
    assert grouped(faults, 654) == ["depth: 3 of 654 files are missing, e.g. depth/1.npy"]
    assert grouped([], 654) == []


def test_a_file_error_survives_the_way_from_another_process():
    import pickle

    error = FileError("depth/1.npy", "size", "is 1×1", "depth/1.npy is 1×1; mend it.")
    twin = pickle.loads(pickle.dumps(error))
    assert (twin.name, twin.kind, twin.what, str(twin)) == (error.name, error.kind, error.what, str(error))


def test_the_cache_is_not_what_is_judged(mine):
    root, name = mine / "PASCALContext", ids_of(mine / "PASCALContext")[0]
    prepare("pascal_context", root, progress=False)
    path = root / f"pascal-context/trainval/{name}.mat"
    path.write_bytes(bytes(path.stat().st_size))  # same size, so the cache still answers to it
    assert any(
        "pascal-context/trainval: 1 of 5 files is damaged" in problem
        for problem in look("pascal_context", mine).problems
    )


def test_damaged_settings_of_a_dollhouse_fall_back_on_the_counts_of_the_field(mine):
    (mine / "NYUDv2/dataset.json").write_text(json.dumps({"settings": {}}))
    assert "gt_sets/train.txt lists 3 images, but should list 795" in look("nyud_v2", mine).problems
    assert check_images(verification.Job("nyud_v2", str(mine / "NYUDv2"), "train", ())) == ([], [])
