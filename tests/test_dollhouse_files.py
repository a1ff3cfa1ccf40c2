"""Dollhouse on disk: three layouts that the real readers read, written so that nothing is lost or half there."""

import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image

from mlore_edu.data import dollhouse_files, dollhouse_layouts, labels
from mlore_edu.data.dollhouse import scene
from mlore_edu.data.dollhouse_files import VALIDATION_SEEDS, DollhouseFolder, DollhouseScenes, write_dollhouse
from mlore_edu.data.dollhouse_layouts import ENCODERS, TO_LABELMAP, TO_NYUD, TO_VOC
from mlore_edu.data.loaders import open_dataset
from mlore_edu.errors import UserError
from mlore_edu.tasks import DOLLHOUSE, DOLLHOUSE_CLASSES, NYUD_CLASSES, PASCAL_CLASSES

LAYOUTS = ["dollhouse", "pascal_context", "nyud_v2"]


@pytest.fixture(scope="module")
def rendered():
    return [scene(seed, 64, "easy") for seed in range(3)]


@pytest.fixture
def quick_scenes(monkeypatch, rendered):
    """Rendering is tested elsewhere: here three scenes serve for all seeds, told apart by one pixel."""
    calls = []

    def fake(seed, size, difficulty):
        calls.append(seed)
        image = rendered[seed % 3].image.copy()
        image[0, 0] = seed % 251
        return replace(rendered[seed % 3], image=image)

    monkeypatch.setattr(dollhouse_layouts, "scene", fake)
    return calls


def write(root, layout="dollhouse", **settings):
    return write_dollhouse(root, layout, **{"size": 64, "train": 3, "val": 2, "progress": False, **settings})


def contents(root):
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def test_classes_are_carried_over_by_name():
    def names(table, classes):
        return {name: classes[table[i]] for i, name in enumerate(DOLLHOUSE_CLASSES)}

    voc, nyud = names(TO_VOC, PASCAL_CLASSES), names(TO_NYUD, NYUD_CLASSES)
    context = names(TO_LABELMAP, {number: name for name, number in labels.LABELMAP_IDS.items()})
    assert (voc["table"], voc["person"], voc["wall"]) == ("diningtable", "person", "background")
    assert (nyud["rug"], nyud["person"], nyud["ball"]) == ("floor mat", "person", "otherprop")
    assert (context["lamp"], context["plant"], context["ball"]) == ("light", "pottedplant", "ball")
    assert all(nyud[name] == name and context[name] == name for name in ("wall", "floor", "bed", "sofa", "window"))


def test_the_palette_begins_like_that_of_pascal_voc():
    colours = np.array(dollhouse_layouts.palette()).reshape(256, 3)
    assert colours[:4].tolist() == [[0, 0, 0], [128, 0, 0], [0, 128, 0], [128, 128, 0]]
    assert colours[15].tolist() == [192, 128, 128]  # person
    assert colours[255].tolist() == [224, 224, 192]  # void


def test_the_own_layout_gives_back_every_label(tmp_path, quick_scenes, rendered):
    write(tmp_path)
    data = open_dataset("dollhouse", tmp_path, "train")
    assert len(data) == 3
    for i in range(3):
        sample, truth = data[i], dollhouse_files.to_sample(rendered[i], data.ids[i])
        for task in ("semseg", "human_parts", "saliency", "edge"):
            assert torch.equal(sample[task], truth[task]), task
        assert (sample["depth"] - truth["depth"]).abs().max() <= 0.00051
        cosine = (sample["normals"] * truth["normals"]).sum(0)
        assert cosine.min() > np.cos(np.radians(0.4))
        assert sample["meta"] == {"id": data.ids[i], "size": (64, 64)}


def test_labels_can_be_looked_at_with_any_picture_viewer(tmp_path, quick_scenes):
    write(tmp_path)
    with Image.open(next((tmp_path / "semseg").iterdir())) as picture:
        assert picture.mode == "P"
        assert np.array(picture.convert("RGB")).max() > 100
    with Image.open(next((tmp_path / "depth").iterdir())) as picture:
        assert picture.mode.startswith("I")


def test_the_real_reader_of_pascal_context_reads_the_scenes(tmp_path, quick_scenes, rendered):
    write(tmp_path, "pascal_context")
    data = open_dataset("pascal_context", tmp_path, "train")
    for i, truth in enumerate(rendered):
        sample = data[i]
        assert np.array_equal(sample["semseg"], TO_VOC[truth.semseg])
        assert np.array_equal(sample["saliency"], truth.saliency)
        parts = truth.human_parts if truth.human_parts.any() else np.full_like(truth.human_parts, 255)
        assert np.array_equal(sample["human_parts"], parts)
        potted = truth.semseg == DOLLHOUSE_CLASSES.index("plant")
        assert np.array_equal((sample["normals"] == 0).all(0), potted)
        expected = labels.labelmap_boundaries(TO_LABELMAP[truth.semseg])
        assert np.array_equal(sample["edge"], expected)
        assert np.abs(sample["image"].numpy().astype(int) - truth.image.transpose(2, 0, 1)).mean() < 8  # JPEG
    assert any(truth.human_parts.any() for truth in rendered)


def test_the_real_reader_of_nyud_reads_the_scenes(tmp_path, quick_scenes, rendered):
    write(tmp_path, "nyud_v2")
    data = open_dataset("nyud_v2", tmp_path, "train")
    for i, truth in enumerate(rendered):
        sample = data[i]
        assert np.array_equal(sample["semseg"], TO_NYUD[truth.semseg])
        assert np.array_equal(sample["edge"], truth.edge)
        assert np.array_equal(sample["depth"][0], truth.depth)


def test_people_are_stored_one_object_each_as_pascal_part_does(tmp_path, rendered):
    from scipy.io import loadmat

    truth = next(truth for truth in rendered if truth.human_parts.any())
    path = tmp_path / "x.mat"
    path.write_bytes(ENCODERS["pascal_context"]["human_parts/{}.mat"](truth, "x"))
    anno = loadmat(path)["anno"][0, 0]
    objects = anno["objects"][0]
    people = [thing for thing in objects if thing["class_ind"].item() == 15]
    assert len(people) == len(np.unique(truth.instances[truth.semseg == DOLLHOUSE_CLASSES.index("person")]))
    assert {name.item() for name in people[0]["parts"][0]["part_name"]} <= set(labels.MERGED_PART)
    assert people[0]["class"].item() == "person"
    assert people[0]["mask"].shape == (64, 64)
    assert all(thing["parts"].size == 0 for thing in objects if thing["class_ind"].item() != 15)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_same_settings_give_the_same_bytes(tmp_path, quick_scenes, layout):
    first, second = write(tmp_path / "a", layout), write(tmp_path / "b", layout)
    assert first == second
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert write(tmp_path / "c", layout, seed=1) != first


def test_the_folder_says_what_is_in_it_and_can_be_checked_with_sha256sum(tmp_path, quick_scenes, capsys):
    content_hash = write(tmp_path, progress=True)
    assert f"5 scenes in {tmp_path}, content hash sha256:{content_hash}" in capsys.readouterr().out
    described = json.loads((tmp_path / "dataset.json").read_text())
    assert described["settings"]["size"] == [64, 64]
    assert described["seeds"] == {"train": [0, 2], "val": [VALIDATION_SEEDS, VALIDATION_SEEDS + 1]}
    assert described["classes"] == list(DOLLHOUSE_CLASSES)
    assert described["content_hash"] == content_hash
    if sys.platform == "linux":
        subprocess.run(["sha256sum", "--quiet", "-c", "SHA256SUMS"], cwd=tmp_path, check=True)
    listed = {line.split("  ")[1] for line in (tmp_path / "SHA256SUMS").read_text().splitlines()}
    assert listed == contents(tmp_path).keys() - {"dataset.json", "SHA256SUMS"}


def test_a_second_call_renders_nothing_and_a_damaged_file_is_made_again(tmp_path, quick_scenes):
    content_hash, before = write(tmp_path), contents(tmp_path)
    quick_scenes.clear()
    assert write(tmp_path) == content_hash
    assert quick_scenes == []
    image = tmp_path / "images/0000001.png"
    image.write_bytes(image.read_bytes()[:50])
    (tmp_path / "depth/0000002.png").unlink()
    assert write(tmp_path) == content_hash
    assert quick_scenes == [1, 2]
    assert contents(tmp_path) == before


def test_an_interrupted_call_is_completed_by_the_next_one(tmp_path, quick_scenes, monkeypatch):
    expected = write(tmp_path / "unbroken")
    quick = dollhouse_layouts.scene

    def stop(seed, size, difficulty):
        if seed == 2:
            raise KeyboardInterrupt
        return quick(seed, size, difficulty)

    root = tmp_path / "broken"
    with monkeypatch.context() as patch:
        patch.setattr(dollhouse_layouts, "scene", stop)
        with pytest.raises(KeyboardInterrupt, match=r"'mlore-edu dollhouse --root .*broken .*--train 3.*goes on"):
            write(root)
    with pytest.raises(UserError, match=r"does not hold a finished Dollhouse.*run 'mlore-edu dollhouse --root"):
        DollhouseFolder(root, "train")
    with (root / "SHA256SUMS").open("a") as sums:
        sums.write("torn li")  # as a power cut would leave it
    quick_scenes.clear()
    assert write(root) == expected
    assert quick_scenes == [2, VALIDATION_SEEDS, VALIDATION_SEEDS + 1]
    assert contents(root) == contents(tmp_path / "unbroken")


def test_a_folder_with_other_settings_or_other_content_is_never_touched(tmp_path, quick_scenes):
    write(tmp_path / "a")
    before = contents(tmp_path / "a")
    for settings, message in (
        ({"size": 128}, r"size \(64, 64\), not \(128, 128\)"),
        ({"difficulty": "full"}, "difficulty easy, not full"),
        ({"layout": "nyud_v2"}, "layout dollhouse, not nyud_v2"),
        ({"train": 4}, "train 3, not 4"),
        ({"seed": 7}, "seed 0, not 7"),
    ):
        with pytest.raises(UserError, match=rf"holds a Dollhouse with {message}; choose another folder, or delete"):
            write(tmp_path / "a", **settings)
    assert contents(tmp_path / "a") == before

    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match=r"mine is not empty and holds no Dollhouse; choose another folder"):
        write(tmp_path / "mine")
    with pytest.raises(UserError, match=r"thesis.txt is a file; choose another folder"):
        write(tmp_path / "mine/thesis.txt")
    assert contents(tmp_path / "mine") == {"thesis.txt": b"years of work"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"size": 63}, "not rendered at 63×63; choose sides from 64 to 512"),
        ({"size": 513}, "not rendered at 513×513"),
        ({"size": (448, 641)}, "not rendered at 448×641"),
        ({"layout": "cityscapes"}, "no layout 'cityscapes'; choose one of dollhouse, pascal_context, nyud_v2"),
        ({"difficulty": "hard"}, "no difficulty 'hard'; choose one of easy"),
        ({"train": 0}, "0 training and 2 validation scenes with seed 0 cannot be made; give counts from 1"),
        ({"seed": -1}, "seed -1 cannot be made"),
    ],
)
def test_impossible_settings_are_refused_before_anything_is_written(tmp_path, settings, message):
    with pytest.raises(UserError, match=message):
        write(tmp_path / "new", **settings)
    assert not (tmp_path / "new").exists()


def test_a_full_disk_is_one_clear_sentence_and_leaves_no_half_file(tmp_path, quick_scenes, monkeypatch):
    real = os.replace
    left = [8]

    def full(source, target):
        left[0] -= 1
        if left[0] < 0:
            raise OSError(28, "No space left on device")
        real(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        with pytest.raises(UserError, match=r"cannot be written to .* \(No space left on device\); make room"):
            write(tmp_path / "a")
    assert write(tmp_path / "a") == write(tmp_path / "b")
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_splits_and_seeds_never_share_a_scene():
    settings = dollhouse_files.Settings("dollhouse", (64, 64), "easy", VALIDATION_SEEDS, VALIDATION_SEEDS, 0)
    ranges = [replace(settings, seed=seed).seeds(split) for seed in (0, 1) for split in ("train", "val")]
    for earlier, later in pairwise(ranges):
        assert earlier.stop <= later.start


@pytest.mark.parametrize(
    ("path", "content", "message"),
    [
        ("images/0000000.png", None, "is missing"),
        ("images/0000000.png", b"\x89PNG\r\n\x1a\nabc", "is damaged"),
        ("semseg/0000000.png", np.full((64, 64), 15, np.uint8), "holds the value 15, where only 0…14 and 255"),
        ("human_parts/0000000.png", np.full((64, 64), 7, np.uint8), "holds the value 7, where only 0…6"),
        ("depth/0000000.png", np.zeros((32, 64), np.uint16), "is 32×64, but its image needs 64×64"),
        ("normals/0000000.png", np.zeros((64, 64), np.uint8), "is 64×64, but its image needs 64×64×3"),
        ("edge/0000000.png", np.full((64, 64), 7, np.uint8), "holds the value 7"),
    ],
)
def test_a_bad_file_is_named_and_the_command_that_repairs_it(tmp_path, quick_scenes, path, content, message):
    content_hash = write(tmp_path)
    if content is None:
        (tmp_path / path).unlink()
    elif isinstance(content, bytes):
        (tmp_path / path).write_bytes(content)
    else:
        Image.fromarray(content).save(tmp_path / path)
    with pytest.raises(UserError, match=rf"{path} {message}.*; run 'mlore-edu dollhouse --root .* --size 64 64'"):
        DollhouseFolder(tmp_path, "train")[0]
    assert write(tmp_path) == content_hash
    DollhouseFolder(tmp_path, "train")[0]


def test_a_wrong_root_says_how_to_make_the_data(tmp_path):
    with pytest.raises(UserError, match=r"There is no folder .*nowhere; run 'mlore-edu dollhouse --root .*nowhere'"):
        DollhouseFolder(tmp_path / "nowhere", "train")


def test_a_folder_in_another_layout_names_the_data_set_that_reads_it(tmp_path, quick_scenes):
    write(tmp_path, layout="nyud_v2")
    with pytest.raises(UserError, match=r"layout of nyud_v2; read it as that data set \(--data nyud_v2\)"):
        DollhouseFolder(tmp_path, "train")


def test_scenes_in_memory_are_rendered_once_and_equal_the_folder(monkeypatch, rendered):
    calls = []

    def counted(seed, size, difficulty):
        calls.append((seed, size, difficulty))
        return rendered[seed % 3]

    monkeypatch.setattr(dollhouse_files, "scene", counted)
    data = DollhouseScenes(2, 64, "easy", first_seed=1).render(progress=False)
    assert calls == [(1, 64, "easy"), (2, 64, "easy")]
    assert list(data[0]) == ["image", *DOLLHOUSE.names, "meta"]
    depth = data.using(tasks=DOLLHOUSE.subset("depth"))
    assert list(depth[1]) == ["image", "depth", "meta"]
    assert len(calls) == 2
    assert np.array_equal(data[1]["semseg"], rendered[2].semseg)
    assert data.ids == ("0000001", "0000002")
    with pytest.raises(UserError, match="0 Dollhouse scenes are none; ask for at least one"):
        DollhouseScenes(0)


@pytest.mark.slow
def test_the_hash_does_not_depend_on_the_number_of_workers(tmp_path):
    assert write(tmp_path / "one", val=1, workers=1) == write(tmp_path / "two", val=1, workers=2)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_a_worker_that_dies_is_explained(tmp_path, monkeypatch):
    def dies(function, jobs, workers):
        raise BrokenProcessPool

    monkeypatch.setattr(dollhouse_files, "in_parallel", dies)
    with pytest.raises(UserError, match=r"ended from outside.*; run the same command with fewer workers"):
        write(tmp_path)


def begin(root, workers):
    """Start writing 400 scenes in another process, and wait until a few are there."""
    script = (
        "import signal\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a shell's background jobs ignore Ctrl-C
        "from mlore_edu.data.dollhouse_files import write_dollhouse\n"
        f"write_dollhouse({str(root)!r}, size=64, train=400, val=1, workers={workers}, progress=False)"
    )
    process = subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.PIPE, start_new_session=True)
    while len(list(root.glob("edge/*.png"))) < 6:
        assert process.poll() is None, process.stderr.read()
    return process


def assert_only_whole_files(root):
    done = (root / "SHA256SUMS").read_text().count("edge/")
    assert done < 400
    for path in root.rglob("[!.]*.png"):
        with Image.open(path) as picture:
            picture.load()
    with pytest.raises(UserError, match="holds a Dollhouse with train 400"):
        write(root)


@pytest.mark.slow
def test_a_killed_command_leaves_whole_files(tmp_path):
    process = begin(tmp_path / "killed", workers=1)
    process.kill()
    process.communicate()
    assert_only_whole_files(tmp_path / "killed")


@pytest.mark.slow
def test_ctrl_c_ends_all_workers_and_says_how_to_go_on(tmp_path):
    process = begin(tmp_path / "stopped", workers=2)
    os.killpg(process.pid, signal.SIGINT)  # what a terminal does
    _, errors = process.communicate(timeout=60)
    assert process.returncode != 0
    assert b"interrupted; 'mlore-edu dollhouse --root" in errors
    assert b"BrokenProcessPool" not in errors
    assert_only_whole_files(tmp_path / "stopped")
    assert not list((tmp_path / "stopped").rglob(".*.draft"))
    written = contents(tmp_path / "stopped").keys()
    time.sleep(1)
    assert contents(tmp_path / "stopped").keys() == written  # nobody is left rendering
