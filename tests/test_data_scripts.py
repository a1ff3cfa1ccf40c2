"""From a link to trained numbers by the commands a reader types: fetch, prepare, verify, train, evaluate."""

import os
import runpy
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from benchmark_folders import contents, ids_of, pack, server, write_build, write_layout

from mlore_edu.data import downloads
from mlore_edu.data.catalogue import BENCHMARKS
from mlore_edu.data.commands import main
from mlore_edu.data.loaders import open_dataset
from mlore_edu.doctor import report
from mlore_edu.training.recipes import RECIPES

ROOTS = {"pascal_context": "PASCALContext", "nyud_v2": "NYUDv2"}
REPOSITORY = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    """Archives as they circulate, made of Dollhouse."""
    place = tmp_path_factory.mktemp("originals")
    for name, root in ROOTS.items():
        pack(write_layout(place / root, name), place / f"{root}.tgz")
    for build in ("ASTMT", "MTL-PyTorch"):
        pack(write_build(place / build, place / "NYUDv2", build), place / f"{build}.tgz")
    return place


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty working folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(downloads, "PAUSE", 0)
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    return tmp_path


def run(name, command):
    return main(name, command.split())


@pytest.mark.parametrize(
    ("name", "archive"),
    [("pascal_context", "PASCALContext"), ("nyud_v2", "NYUDv2"), ("nyud_v2", "ASTMT"), ("nyud_v2", "MTL-PyTorch")],
)
def test_fetch_prepare_verify(originals, here, capsys, name, archive):
    script, root = f"python data_scripts/{name}.py", f"data/{ROOTS[name]}"
    build = archive if archive in ("ASTMT", "MTL-PyTorch") else "ATRC"
    content = (originals / f"{archive}.tgz").read_bytes()
    with server(content) as (shop, address):
        shop.breaks = [len(content) // 2]
        assert run(name, f"fetch --build {build} --from {address}") == 0
    assert f"next: {script} prepare" in capsys.readouterr().out
    assert f"next: {script} prepare" in report(here)
    assert run(name, "prepare") == 0
    assert f"next: {script} verify" in capsys.readouterr().out
    assert run(name, "verify") == 0
    assert f"{root}: every file is there and as it should be" in capsys.readouterr().out
    assert f"{script} verify" in report(here)
    assert [len(open_dataset(name, root, split)) for split in ("train", "val")] == [3, 2]
    assert (here / f"data/archives/{ROOTS[name]}-{build}.tgz").read_bytes() == content


@pytest.mark.parametrize("name", list(ROOTS))
def test_an_archive_or_a_folder_the_reader_has_needs_no_link(originals, here, capsys, name):
    before = contents(originals)
    assert run(name, f"prepare --archive {originals / ROOTS[name]}.tgz --root mine/one") == 0
    assert f"verify --root {Path('mine/one')}" in capsys.readouterr().out
    assert run(name, f"prepare --folder {originals / ROOTS[name]} --root mine/two --workers 1") == 0
    assert run(name, f"fetch --from {originals / ROOTS[name]}.tgz --archives mine") == 0
    assert f"prepare --archive mine/{ROOTS[name]}-ATRC.tgz" in capsys.readouterr().out
    for root in ("mine/one", "mine/two"):
        assert run(name, f"verify --root {root} --names-only") == 0
    assert contents(originals) == before


def test_what_is_missing_is_reported_and_the_exit_code_says_so(originals, here, capsys):
    run("nyud_v2", f"prepare --archive {originals / 'NYUDv2.tgz'}")
    name = ids_of(here / "data/NYUDv2")[0]
    (here / f"data/NYUDv2/depth/{name}.npy").unlink()
    assert run("nyud_v2", "verify") == 1
    said = capsys.readouterr().err
    assert f"! depth: 1 of 5 files is missing, e.g. depth/{name}.npy\n" in said
    assert "1 kinds of fault: unpack the archive again, or get it from another source" in said


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("fetch --from /nowhere/x.tgz", "could not be fetched (/nowhere/x.tgz: No such file or directory); look for"),
        ("prepare", "nothing to prepare NYUD-v2 from; fetch it with 'python data_scripts/nyud_v2.py fetch', or give"),
        ("prepare --archive x.tgz", "There is no archive x.tgz; give"),
        ("verify", "There is no folder data/NYUDv2; give"),
        ("verify --workers 0", "0 processes can do nothing; give --workers 1 or more"),
        ("verify --quick", "unrecognized arguments: --quick; 'python data_scripts/nyud_v2.py --help' shows"),
        ("fetch --build mine", "invalid choice: 'mine'"),
        ("", "the following arguments are required: COMMAND"),
    ],
)
def test_what_a_reader_can_put_right_is_one_sentence_and_exit_code_2(here, capsys, command, message):
    assert run("nyud_v2", command) == 2
    said = capsys.readouterr().err
    assert said.startswith("data_scripts/nyud_v2.py: ")
    assert message in said
    assert said.count("\n") == 1
    assert not [path for path in here.rglob("*") if path.is_file()]


def test_two_fetched_builds_ask_for_a_choice(originals, here, capsys):
    for build in ("ATRC", "ASTMT"):
        archive = {"ATRC": "NYUDv2", "ASTMT": "ASTMT"}[build]
        run("nyud_v2", f"fetch --build {build} --from {originals / archive}.tgz")
    assert run("nyud_v2", "prepare") == 2
    assert "NYUDv2-ATRC.tgz and data/archives/NYUDv2-ASTMT.tgz are two builds" in capsys.readouterr().err
    assert run("nyud_v2", "prepare --archive data/archives/NYUDv2-ASTMT.tgz") == 0
    assert run("nyud_v2", "prepare") == 0  # it is in place now


@pytest.mark.parametrize("name", list(ROOTS))
def test_help_names_the_steps_their_order_and_every_known_source(capsys, name):
    for command, expected in {
        "--help": ["fetch", "prepare", "verify", "Exit code: 0 all is well"],
        "fetch --help": [source for sources in BENCHMARKS[name].sources.values() for source in sources],
        "prepare --help": ["--archive FILE", "--folder FOLDER"],
        "verify --help": ["--names-only", f"data/{ROOTS[name]}"],
    }.items():
        with pytest.raises(SystemExit, match="0"):
            run(name, command)
        said = capsys.readouterr().out
        assert [words for words in expected if words not in said] == []


def test_every_data_set_has_several_sources_and_no_address_leads_to_two_files():
    for benchmark in BENCHMARKS.values():
        sources = [source for sources in benchmark.sources.values() for source in sources]
        assert len(sources) >= 3
        assert len(set(sources)) == len(sources)
        assert all(source.startswith("https://") for source in sources)


@pytest.mark.parametrize("name", list(ROOTS))
def test_the_script_itself_answers(here, monkeypatch, capsys, name):
    monkeypatch.setattr(sys, "argv", [f"{name}.py", "verify"])
    with pytest.raises(SystemExit, match="2"):
        runpy.run_path(str(REPOSITORY / f"data_scripts/{name}.py"), run_name="__main__")
    expected = f"data_scripts/{name}.py: There is no folder data/{ROOTS[name]}; give the folder"
    assert capsys.readouterr().err.startswith(expected)


@pytest.mark.slow
@pytest.mark.parametrize("decoder", ["mlore_vit_nano", "taskexpert_vit_nano_12", "tif_vit_nano"])
@pytest.mark.parametrize("name", list(ROOTS))
def test_what_was_prepared_trains_and_is_evaluated_with_every_decoder(originals, here, name, decoder):
    from mlore_edu.judging import Choices, judge_run
    from mlore_edu.training.engine import train

    root = here / "data" / ROOTS[name]
    assert run(name, f"prepare --archive {originals / ROOTS[name]}.tgz") == 0
    recipe = replace(
        RECIPES["pascal_baseline_vit_base" if name == "pascal_context" else "nyud_baseline_vit_base"],
        model=decoder, root=str(root), img_size=(64, 64), pretrained=False, drop_path_rate=0.0,
        iterations=20, batch_size=2, workers=0, hardware="CPU, seconds",
    )  # fmt: skip
    metrics = train(recipe, here / "run")
    assert set(metrics) == set(recipe.task_set.names)
    assert judge_run(here / "run", Choices()).metrics == metrics
