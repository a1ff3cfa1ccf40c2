"""From an archive or a folder to a data set that trains: nothing of the reader's is touched, nothing left half done."""

import errno
import json
import multiprocessing
import os
import re
import shutil
import signal
from concurrent.futures.process import BrokenProcessPool

import numpy as np
import pytest
import torch
from benchmark_folders import contents, half_mask, ids_of, pack, rendered, write_build, write_layout

from mlore_edu.data import derived, labels, nyud_builds, preparation
from mlore_edu.data.catalogue import NYUD_V2, find_folder
from mlore_edu.data.derived import DerivedLabels, derived_folder
from mlore_edu.data.nyud_v2 import NYUDv2
from mlore_edu.data.pascal_context import PASCALContext
from mlore_edu.data.preparation import prepare
from mlore_edu.errors import UserError


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    """What a reader may have: both data sets, and the other two builds of NYUD-v2. Nothing may change here."""
    place = tmp_path_factory.mktemp("originals")
    nyud = write_layout(place / "NYUDv2", "nyud_v2")
    write_layout(place / "PASCALContext", "pascal_context")
    write_build(place / "NYUD_MT", nyud, "ASTMT")
    write_build(place / "NYUD", nyud, "MTL-PyTorch")
    before = contents(place)
    yield place
    assert contents(place) == before


@pytest.fixture
def pascal(originals, tmp_path):
    """A copy of PASCAL-Context that a test may damage."""
    return shutil.copytree(originals / "PASCALContext", tmp_path / "mine/PASCALContext")


def make(name, root, **arguments):
    return prepare(name, root, progress=False, **arguments)


def samples(reader):
    return [reader[index] for index in range(len(reader))]


def assert_equal(readers, others):
    for sample, other in zip(samples(readers), samples(others), strict=True):
        assert sample.keys() == other.keys()
        for name in sample.keys() - {"meta"}:
            assert torch.equal(sample[name], other[name]), name
            assert type(sample[name]) is type(other[name])


def files(place):
    return sorted(path.name for path in place.iterdir())


# In place


@pytest.mark.parametrize(("name", "data"), [("pascal_context", "PASCALContext"), ("nyud_v2", "NYUDv2")])
@pytest.mark.parametrize("suffix", [".tgz", ".zip"])
def test_an_archive_becomes_the_folder_that_recipes_read(originals, tmp_path, name, data, suffix):
    archive = pack(originals / data, tmp_path / f"download{suffix}")
    root = tmp_path / "data" / data
    prepared = make(name, root, archive=archive)
    assert prepared.problems == []
    assert f"{archive} was unpacked to {root}." in prepared.facts
    assert contents(root) == contents(originals / data)
    assert set(files(root.parent)) <= {data, f"{data}.derived"}


def test_a_folder_of_the_reader_is_linked_and_only_read(originals, tmp_path):
    root = tmp_path / "data/PASCALContext"
    make("pascal_context", root, folder=originals)  # the data set's own folder is found in it
    assert root.is_symlink()
    assert root.resolve() == (originals / "PASCALContext").resolve()
    assert derived_folder(root) == tmp_path / "data/PASCALContext.derived"
    assert len(PASCALContext(root, "train")) == 3


def test_a_second_call_changes_nothing(originals, tmp_path):
    root = tmp_path / "data/PASCALContext"
    make("pascal_context", root, folder=originals / "PASCALContext")
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    prepared = make("pascal_context", root, folder=originals / "NYUDv2")
    assert "was there already" in prepared.facts[0]
    assert {path: path.stat().st_mtime_ns for path in before} == before


@pytest.mark.parametrize(
    ("build", "folder", "meaning"),
    [
        ("ATRC", "NYUDv2", "whose numbers the papers print"),
        ("ASTMT", "NYUD_MT", "not comparable with those of InvPT"),
        ("MTL-PyTorch", "NYUD", "do not fit the recipes' 448×576 frame, so train with --img-size 480 640"),
    ],
)
def test_each_build_of_nyud_is_recognised_and_its_meaning_for_recipes_said(originals, tmp_path, build, folder, meaning):
    root = tmp_path / "data/NYUDv2"
    prepared = make("nyud_v2", root, folder=originals / folder)
    assert prepared.problems == []
    assert any(build in fact and meaning in fact for fact in prepared.facts)
    assert len(NYUDv2(root, "train")) == 3
    if build != "ATRC":
        record = json.loads((root / "build.json").read_text())
        assert record["build"] == build
        assert record["source"] == str((originals / folder).resolve())
    assert files(root.parent) == ["NYUDv2"]


@pytest.mark.parametrize("build", ["ASTMT", "MTL-PyTorch"])
def test_a_converted_build_holds_what_it_held_before(originals, tmp_path, build):
    root = tmp_path / "data/NYUDv2"
    archive = pack(originals / {"ASTMT": "NYUD_MT", "MTL-PyTorch": "NYUD"}[build], tmp_path / "download.tgz")
    make("nyud_v2", root, archive=archive)
    assert files(root.parent) == ["NYUDv2"]
    for sample in samples(NYUDv2(root, "val")):
        shown = rendered(sample["meta"]["id"])
        exact = NYUDv2(originals / "NYUDv2", "val")
        same = exact[exact.ids.index(sample["meta"]["id"])]
        for task in ("semseg", "depth", "edge"):
            assert torch.equal(sample[task], same[task]), task
        assert (sample["image"].int() - same["image"].int()).abs().float().mean() < 4  # those are JPEG files
        cosine = (sample["normals"] * torch.from_numpy(shown.normals).permute(2, 0, 1)).sum(0)
        if build == "ASTMT":
            assert cosine.mean() > 0.98
        else:
            invalid = torch.from_numpy(half_mask(shown.depth)[..., 0])
            assert not sample["normals"][:, invalid].any()  # what had no normal still has none
            assert cosine[~invalid].min() > np.cos(np.radians(0.4))


# Derived labels


def test_with_and_without_the_cache_labels_are_equal(originals, tmp_path):
    root = tmp_path / "data/PASCALContext"
    make("pascal_context", root, folder=originals / "PASCALContext")
    for split in ("train", "val"):
        assert_equal(PASCALContext(root, split), PASCALContext(originals / "PASCALContext", split))


def test_with_the_cache_no_matlab_file_is_opened(originals, tmp_path, monkeypatch):
    root = tmp_path / "data/PASCALContext"
    make("pascal_context", root, folder=originals / "PASCALContext")

    def refuse(self, *arguments):
        raise AssertionError(f"opened {arguments}")

    monkeypatch.setattr("mlore_edu.data.files.Folder.matlab", refuse)
    assert len(samples(PASCALContext(root, "train"))) == 3


def test_a_file_that_was_replaced_is_derived_anew(pascal, originals):
    make("pascal_context", pascal)
    first, second = PASCALContext(pascal, "train").ids[:2]
    for kind in ("pascal-context/trainval", "human_parts"):
        shutil.copyfile(pascal / kind / f"{second}.mat", pascal / kind / f"{first}.mat")
    fresh = PASCALContext(pascal, "train")
    assert torch.equal(fresh[0]["edge"], fresh[1]["edge"])
    assert torch.equal(fresh[0]["human_parts"], fresh[1]["human_parts"])


@pytest.mark.parametrize("content", [b"", b"not a picture", None])
def test_a_damaged_or_missing_cache_only_costs_time(pascal, originals, content):
    make("pascal_context", pascal)
    for path in derived_folder(pascal).rglob("*.png"):
        path.unlink() if content is None else path.write_bytes(content)
    assert_equal(PASCALContext(pascal, "val"), PASCALContext(originals / "PASCALContext", "val"))


def test_a_label_of_another_size_in_the_cache_is_not_believed(pascal, originals):
    kept = DerivedLabels(pascal)
    reader = PASCALContext(pascal, "train")
    kept.write("edge", pascal / f"pascal-context/trainval/{reader.ids[0]}.mat", np.ones((2, 2), np.uint8))
    assert_equal(reader, PASCALContext(originals / "PASCALContext", "train"))


def test_new_rules_do_not_meet_old_labels(pascal, monkeypatch):
    make("pascal_context", pascal)
    monkeypatch.setattr(derived, "RULES", "2")
    source = pascal / f"pascal-context/trainval/{ids_of(pascal)[0]}.mat"
    assert DerivedLabels(pascal).read("edge", source) is None


def test_missing_and_damaged_files_are_counted_and_stop_nothing(pascal):
    first, second, *_ = PASCALContext(pascal, "train").ids
    (pascal / f"human_parts/{first}.mat").unlink()
    (pascal / f"pascal-context/trainval/{second}.mat").write_bytes(b"cut")
    (pascal / f"JPEGImages/{PASCALContext(pascal, 'val').ids[0]}.jpg").unlink()
    prepared = make("pascal_context", pascal)
    assert len(prepared.problems) == 3
    assert f"human_parts: 1 of 5 files is missing, e.g. human_parts/{first}.mat" in prepared.problems
    assert any("pascal-context/trainval: 1 of 5 files is damaged" in problem for problem in prepared.problems)
    assert len(list(derived_folder(pascal).rglob("*.png"))) == 3 * 5 - 3 - 3


@pytest.mark.parametrize(
    "bad", ["missing image", "missing depth", "odd classes", "odd normals", "odd edges", "integers"]
)
def test_a_build_with_bad_files_is_converted_without_them(originals, tmp_path, bad):
    mine = shutil.copytree(originals / "NYUD", tmp_path / "NYUD")
    name = ids_of(mine)[1]
    write = {
        "missing image": lambda: (mine / f"images/{name}.jpg").unlink(),
        "missing depth": lambda: (mine / f"depth/{name}.npy").unlink(),
        "odd classes": lambda: (mine / f"segmentation/{name}.png").write_bytes(b"cut"),
        "odd normals": lambda: np.save(mine / f"normals/{name}.npy", np.full((64, 64, 3), 0.2)),
        "odd edges": lambda: np.save(mine / f"edge/{name}.npy", np.full((64, 64), 0.5)),
        "integers": lambda: np.save(mine / f"depth/{name}.npy", np.ones((64, 64), int)),
    }
    write[bad]()
    prepared = make("nyud_v2", tmp_path / "data/NYUDv2", folder=mine)
    expected = {
        "missing image": f"images: 1 of 5 files is missing, e.g. images/{name}.jpg",
        "missing depth": f"depth: 1 of 5 files is missing, e.g. depth/{name}.npy",
        "odd classes": "segmentation: 1 of 5 files is damaged",
        "odd normals": "normals: 1 of 5 files holds values that cannot be, .* no unit normals in 100% of its pixels",
        "odd edges": "edge: 1 of 5 files holds values that cannot be, .* other values than 0 and 1",
        "integers": "depth: 1 of 5 files holds another type of number, .* type int64, not metres in floats",
    }
    (problem,) = prepared.problems
    assert re.match(expected[bad], problem)


# Interruptions


def _prepare_and_die(name, root, folder, after):
    """Prepare, and be killed at the call with this number of the function that writes files."""
    calls, module = iter(range(after)), nyud_builds if name == "nyud_v2" else derived
    write = module.write_atomically

    def write_or_die(path, content, **how):
        if next(calls, None) is None:
            os.kill(os.getpid(), signal.SIGKILL)
        write(path, content, **how)

    module.write_atomically = write_or_die
    make(name, root, folder=folder)


@pytest.mark.parametrize(("name", "folder"), [("nyud_v2", "NYUD_MT"), ("pascal_context", "PASCALContext")])
def test_after_being_killed_half_way_the_next_call_goes_on(originals, tmp_path, monkeypatch, name, folder):
    root, written = tmp_path / "data/Mine", []
    victim = multiprocessing.get_context("fork").Process(
        target=_prepare_and_die, args=(name, root, originals / folder, 8)
    )
    victim.start()
    victim.join()
    assert victim.exitcode == -signal.SIGKILL
    if name == "nyud_v2":
        assert not root.exists()  # nothing that looks finished
    module = nyud_builds if name == "nyud_v2" else derived
    write = module.write_atomically
    monkeypatch.setattr(
        module, "write_atomically", lambda path, content, **how: (written.append(path), write(path, content, **how))
    )
    assert make(name, root, folder=originals / folder).problems == []
    assert len([path for path in written if path.suffix in (".png", ".npy")]) < 5 * (5 if name == "nyud_v2" else 3)
    make(name, tmp_path / "data/Unbroken", folder=originals / folder)
    assert contents(root) == contents(tmp_path / "data/Unbroken")
    assert not [path for path in files(root.parent) if path.startswith(".")]


def test_an_unfinished_conversion_of_another_folder_is_not_mixed_in(originals, tmp_path):
    draft = tmp_path / "data/.NYUDv2.converting"
    (draft / "images").mkdir(parents=True)
    (draft / "images/stranger.png").write_bytes(b"")
    make("nyud_v2", tmp_path / "data/NYUDv2", folder=originals / "NYUD_MT")
    assert not (tmp_path / "data/NYUDv2/images/stranger.png").exists()


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), r"No space left.*; make room .* to go on"),
        (BrokenProcessPool(), r"ended from outside.* fewer --workers to go on"),
    ],
)
def test_a_full_disk_or_a_killed_worker_is_one_sentence_and_can_be_gone_on_from(pascal, monkeypatch, error, message):
    def fail(*arguments, **how):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(derived, "write_atomically", fail)
        with pytest.raises(UserError, match=message):
            make("pascal_context", pascal)
    assert make("pascal_context", pascal).problems == []


def test_ctrl_c_says_how_to_go_on(pascal, monkeypatch):
    def interrupt(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(preparation, "derive", interrupt)
    with pytest.raises(KeyboardInterrupt, match="the same command goes on"):
        make("pascal_context", pascal)


def test_two_jobs_at_once_prepare_the_same_data_once(originals, tmp_path):
    archive = pack(originals / "PASCALContext", tmp_path / "download.tgz")
    root = tmp_path / "data/PASCALContext"
    jobs = [
        multiprocessing.get_context("fork").Process(
            target=make, args=("pascal_context", root), kwargs={"archive": archive}
        )
        for _ in range(3)
    ]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join()
    assert [job.exitcode for job in jobs] == [0, 0, 0]
    assert files(tmp_path / "data") == ["PASCALContext", "PASCALContext.derived"]
    make("pascal_context", tmp_path / "alone", folder=originals / "PASCALContext")
    assert contents(tmp_path / "data/PASCALContext.derived") == contents(tmp_path / "alone.derived")


# Refusals


def test_what_cannot_be_prepared_is_said_with_the_remedy(originals, tmp_path):
    pascal, nyud, root = originals / "PASCALContext", originals / "NYUDv2", tmp_path / "data/root"
    other = pack(pascal, tmp_path / "other.tgz")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken/thesis.txt").write_text("years of work")
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere")
    shutil.copytree(originals / "NYUD_MT", tmp_path / "raw")
    cases = [
        ({"archive": other, "folder": pascal}, root, r"give --archive or --folder, not both"),
        ({}, root, r"nothing to prepare NYUD-v2 from; fetch it with 'python data_scripts/nyud_v2.py fetch', or give"),
        ({"folder": pascal}, root, r"No NYUD-v2 was found .*at the top there is ImageSets.*another archive or folder"),
        ({"archive": other}, root, r"No NYUD-v2 was found .*at the top there is PASCALContext\)"),
        ({"folder": tmp_path / "nowhere"}, root, r"There is no folder .*nowhere; give the one"),
        ({"archive": tmp_path / "nowhere.tgz"}, root, r"There is no archive .*nowhere.tgz; give"),
        ({"folder": nyud}, tmp_path / "taken", r"taken exists and holds no NYUD-v2; move it away, or choose another"),
        ({"folder": nyud}, tmp_path / "gone", r"gone is a link to .*nowhere, which is gone; delete the link"),
        ({}, tmp_path / "raw", r"raw holds the ASTMT build as it came; move it, .* prepare --folder"),
    ]
    for arguments, place, message in cases:
        with pytest.raises(UserError, match=message) as caught:
            make("nyud_v2", place, **arguments)
        assert "\n" not in str(caught.value)
    assert (tmp_path / "taken/thesis.txt").read_text() == "years of work"
    assert files(tmp_path / "data") == []


def test_a_folder_with_several_data_sets_asks_for_one(originals, tmp_path):
    with pytest.raises(UserError, match=r"holds NYUD-v2 more than once \(.*NYUD, .*NYUD_MT, .*NYUDv2\); give one"):
        find_folder(NYUD_V2, originals)
    empty = tmp_path / "deep/NYUD"
    (empty / "gt_sets").mkdir(parents=True)
    for split in ("train", "val"):
        (empty / f"gt_sets/{split}.txt").write_text("0001\n")
    assert find_folder(NYUD_V2, tmp_path) == empty
    with pytest.raises(UserError, match=r"holds none of the three builds of NYUD-v2"):
        make("nyud_v2", tmp_path / "data/NYUDv2", folder=tmp_path)


def test_trusted_normals_are_where_nyu_knows_the_class(pascal):
    make("pascal_context", pascal)
    reader = PASCALContext(pascal, "train")
    for sample in samples(reader):
        labelmap = reader.stored("pascal-context", sample["meta"]["id"], sample["meta"]["size"])
        known = np.isin(labelmap, labels.NORMALS_VALID_IDS)
        assert (sample["normals"].abs().sum(0).numpy() > 0).tolist() == known.tolist()
