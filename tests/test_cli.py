"""The command line end to end: what it prints, what it leaves on disk, and one sentence for every mistake."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from mlore_edu import cli
from mlore_edu.data.dollhouse_files import write_dollhouse
from mlore_edu.tasks import DOLLHOUSE
from mlore_edu.training.checkpoint import latest
from mlore_edu.training.recipes import RECIPES

TINY_WORDS = (
    "dollhouse_baseline_nano --img-size 64 64 --iterations 2 --batch-size 2 --workers 0 --model-options channels 8 "
    "--checkpoint-interval 1 --pictures 1 --log-interval 1"
)
TINY = TINY_WORDS.split()


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("data") / "dollhouse"
    write_dollhouse(root, size=64, difficulty="easy", train=4, val=2, progress=False)
    return root


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    run = tmp_path_factory.mktemp("runs") / "tiny"
    assert cli.main(["train", *TINY, "--root", str(data), "--run", str(run)]) == 0
    return run


@pytest.fixture
def damaged(trained, tmp_path):
    """A copy of the trained run that a test may damage."""
    copy = tmp_path / "copy"
    subprocess.run(["cp", "-r", str(trained), str(copy)], check=True)
    return copy


def complaint(capsys, *arguments):
    """The one line that a mistake is answered with."""
    capsys.readouterr()
    assert cli.main([str(argument) for argument in arguments]) == 2
    out, error = capsys.readouterr()
    lines = [line for line in error.splitlines() if line and "%|" not in line]  # without progress bars
    assert out == ""
    assert len(lines) == 1, error
    assert lines[0].startswith("mlore-edu: ")
    assert "Traceback" not in error
    return lines[0]


def test_help_answers_at_once_because_no_heavy_library_is_imported():
    script = "import sys; from mlore_edu.cli import main; sys.argv[1:] = ['--help']\ntry: main()\nfinally: "
    script += "print(sorted({'torch', 'numpy', 'timm', 'tyro'} & set(sys.modules)))"
    start = time.perf_counter()
    shown = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert shown.returncode == 0
    for command in ("doctor", "dollhouse", "train", "evaluate", "recipes", "complexity"):
        assert command in shown.stdout
    assert shown.stdout.splitlines()[-1] == "[]"
    assert time.perf_counter() - start < 5  # 0.1 s on an idle machine


def test_the_module_and_the_installed_command_are_the_same():
    command = Path(sys.executable).with_name("mlore-edu")
    outputs = [
        subprocess.run([*start, "recipes"], capture_output=True, text=True, check=True).stdout
        for start in ([sys.executable, "-m", "mlore_edu"], [command])
    ]
    assert outputs[0] == outputs[1]
    for name in RECIPES:
        assert name in outputs[0]


def test_training_prints_every_metric_and_where_everything_is(data, tmp_path, capsys):
    run = tmp_path / "run"
    assert cli.main(["train", *TINY, "--root", str(data), "--run", str(run)]) == 0
    shown = capsys.readouterr().out
    for task in DOLLHOUSE:
        assert task.title in shown
        assert task.metric in shown
    assert f"pictures are in {run}" in shown
    assert {path.name for path in run.iterdir()} >= {
        *("recipe.json", "versions.json", "log.jsonl", "metrics.json", "checkpoints", "pictures")
    }


def test_training_a_complete_run_again_says_so_with_its_numbers_and_how_to_start_anew(data, trained, capsys):
    before = (trained / "metrics.json").read_bytes()
    assert cli.main(["train", *TINY, "--root", str(data), "--run", str(trained)]) == 0
    shown = capsys.readouterr().out
    assert "was complete already; to train anew, choose another folder with --run FOLDER" in shown
    assert "Surface normals" in shown
    assert (trained / "metrics.json").read_bytes() == before


def test_runs_go_to_runs_slash_recipe_unless_told_otherwise(data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["train", *TINY, "--root", str(data), "--tasks", "depth"]) == 0
    metrics = json.loads((tmp_path / "runs/dollhouse_baseline_nano/metrics.json").read_text())["metrics"]
    assert set(metrics) == {"depth"}


def test_evaluating_a_run_reproduces_its_numbers_and_says_so(trained, tmp_path, capsys):
    stored = json.loads((trained / "metrics.json").read_text())
    assert cli.main(["evaluate", str(trained), "--json", str(tmp_path / "again.json")]) == 0
    assert "equal to the numbers at the end of the run, to the last digit" in capsys.readouterr().out
    again = json.loads((tmp_path / "again.json").read_text())
    assert again["metrics"] == stored["metrics"]
    assert again["details"] == stored["details"]


def test_evaluating_with_another_protocol_shows_both(trained, capsys):
    assert cli.main(["evaluate", str(trained), "--boundary-protocol", "pascal"]) == 0
    shown = capsys.readouterr().out
    assert "at the end of the run it was" in shown
    assert shown.count("Boundaries") == 2


def test_evaluating_an_unfinished_run_judges_its_last_checkpoint(damaged, capsys):
    (damaged / "metrics.json").unlink()
    assert cli.main(["evaluate", str(damaged)]) == 0
    assert "not complete yet" in capsys.readouterr().out


def test_a_single_precision_number_has_its_unit_and_direction():
    table = cli.results_table(DOLLHOUSE, dict.fromkeys(DOLLHOUSE.names, 12.3456))
    assert "Semantic segmentation  mIoU ↑    12.35 %" in table
    assert "Depth                  RMSE ↓   12.346 m" in table


def test_complexity_prints_the_table_of_the_model(capsys):
    words = "complexity baseline_vit_nano --data dollhouse --tasks depth --img-size 64 64"
    assert cli.main(words.split()) == 0
    shown = capsys.readouterr().out
    assert "parameters" in shown
    assert "heads" in shown
    assert "one image of 64 × 64" in shown


def test_dollhouse_writes_a_data_set_that_training_can_open(tmp_path, capsys):
    words = f"dollhouse --root {tmp_path}/rooms --size 64 --difficulty easy --train 2 --val 1 --workers 1"
    assert cli.main(words.split()) == 0
    assert "2 training and 1 validation scenes are in" in capsys.readouterr().out
    assert cli.main(f"train {TINY_WORDS} --root {tmp_path}/rooms --run {tmp_path}/run --iterations 1".split()) == 0


def test_training_reads_a_data_folder_that_cannot_be_written(data, tmp_path):
    modes = {path: path.stat().st_mode for path in [data, *data.rglob("*")]}
    try:
        for path, mode in modes.items():
            path.chmod(mode & ~0o222)
        assert cli.main(["train", *TINY, "--root", str(data), "--run", str(tmp_path / "run"), "--tasks", "depth"]) == 0
    finally:
        for path, mode in modes.items():
            path.chmod(mode)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("", "COMMAND"),
        ("frobnicate", "frobnicate"),
        ("recipes --fast", "--fast is not understood by 'recipes'"),
        ("train", "needs the name of a recipe"),
        ("train --help", "needs the name of a recipe"),
        ("train dolhouse_baseline", "did you mean dollhouse_baseline_nano"),
        ("train dollhouse_baseline_nano --lrr 1", "did you mean --lr"),
        ("train dollhouse_baseline_nano --lr fast", "'--lr fast' does not fit"),
        ("train dollhouse_baseline_nano --tasks deepth", "its tasks are semseg"),
        ("train dollhouse_baseline_nano --root ROOT --model baseline_vit_nona --run RUN", "baseline_vit_nano"),
        ("train dollhouse_baseline_nano --root ROOT --model-options widht 3 --run RUN", "no option 'widht'"),
        ("train dollhouse_baseline_nano_64 --root ROOT --model-options channels x --run RUN", "channels is 'x'"),
        ("train dollhouse_baseline_nano_64 --root ROOT --model-options head_stride 0 --run RUN", "number from 1 to 64"),
        ("train dollhouse_baseline_nano_64 --root ROOT --model-options blocks 3 --run RUN", "blocks is 3"),
        ("train dollhouse_baseline_nano --root ROOT --img-size 32 32 --run RUN", "a size of at least 64×64"),
        ("train dollhouse_baseline_nano_64 --root /nowhere --run RUN", "--root /nowhere --size 64 --difficulty easy"),
        ("train nyud_baseline_vit_base --root /nowhere --run RUN", "/nowhere"),
        ("evaluate /nowhere", "holds no recipe.json"),
        ("evaluate RUN --boundary-protocol mine", "boundary-protocol"),
        ("complexity baseline_resnet", "baseline_"),
        ("complexity baseline_vit_nano --tasks depth", "PASCAL-Context has no task 'depth'"),
        ("complexity baseline_vit_nano --img-size 0 64", "give --img-size H W"),
        ("dollhouse --root RUN --size 1 2 3", "takes one or two numbers"),
        ("dollhouse --root RUN --difficulty brutal", "difficulty"),
        ("dollhouse --root RUN --train 0", "0 training"),
    ],
)
def test_every_mistake_is_answered_in_one_sentence_and_leaves_nothing_behind(data, tmp_path, capsys, words, expected):
    words = words.replace("ROOT", str(data)).replace("RUN", str(tmp_path / "new"))
    assert expected in complaint(capsys, *words.split())
    assert list(tmp_path.iterdir()) == []


def test_a_place_for_the_json_that_does_not_exist_is_named_before_anything_is_judged(trained, tmp_path, capsys):
    sentence = complaint(capsys, "evaluate", trained, "--json", tmp_path / "nowhere" / "x.json")
    assert sentence.endswith(f"there is no folder {tmp_path / 'nowhere'}; make it, or choose another with --json.")


def test_another_recipe_in_the_same_folder_is_refused(data, trained, capsys):
    sentence = complaint(capsys, "train", *TINY, "--root", data, "--run", trained, "--lr", "1")
    assert "another lr; choose another folder with --run FOLDER" in sentence


@pytest.mark.parametrize("command", ["train", "dollhouse"])
def test_a_folder_that_may_not_be_looked_into_is_named(data, tmp_path, capsys, monkeypatch, command):
    def refuse(path):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "exists", refuse)  # a folder's own mode does not stop root, who may run these tests
    words = [*TINY, "--root", data, "--run", tmp_path] if command == "train" else ["--root", tmp_path]
    sentence = complaint(capsys, command, *words)
    assert str(tmp_path) in sentence
    assert sentence.endswith("may not be used; grant yourself permission, or choose another.")


def test_a_run_folder_that_cannot_be_made_is_named(data, tmp_path, capsys):
    (tmp_path / "file").write_text("in the way")
    for run, reason in ((tmp_path / "file" / "run", "not a directory"), (Path("/sys/kernel/run"), "")):
        sentence = complaint(capsys, "train", *TINY, "--root", data, "--run", run)
        assert f"cannot write the run folder {run}" in sentence
        assert reason in sentence


@pytest.mark.parametrize("command", ["evaluate", "train"])
def test_a_corrupted_checkpoint_is_named_with_the_remedy(data, damaged, capsys, command):
    last = latest(damaged / "checkpoints")
    (last / "model.safetensors").write_bytes(b"not weights")
    (damaged / "metrics.json").unlink()
    words = [damaged] if command == "evaluate" else [*TINY, "--root", data, "--run", damaged]
    sentence = complaint(capsys, command, *words)
    assert "model.safetensors is damaged" in sentence
    assert f"move the folder {last} away to go on from iteration 1" in sentence


def test_a_disk_that_fills_up_while_training_loses_only_what_came_after_the_checkpoint(
    data, tmp_path, capsys, monkeypatch
):
    original, calls = torch.save, []

    def full_at_the_second(*arguments, **options):
        calls.append(1)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")
        return original(*arguments, **options)

    monkeypatch.setattr(torch, "save", full_at_the_second)
    run = tmp_path / "run"
    sentence = complaint(capsys, "train", *TINY, "--root", data, "--run", run)
    assert "no space left on device" in sentence
    assert "the checkpoint of iteration 1 is intact; free some space and run the same command again" in sentence
    assert cli.main(["train", *TINY, "--root", str(data), "--run", str(run)]) == 0
    assert latest(run / "checkpoints").name == "000002"


def test_ctrl_c_exits_with_130_and_the_way_on(monkeypatch, capsys):
    def interrupted():
        raise KeyboardInterrupt("stopped after iteration 7; run the same command again to go on.")

    monkeypatch.setattr("mlore_edu.doctor.report", interrupted)
    assert cli.main(["doctor"]) == 130
    assert capsys.readouterr().err == "mlore-edu: stopped after iteration 7; run the same command again to go on.\n"


def test_ctrl_c_before_anything_was_done_is_named_too(monkeypatch, capsys):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "_recipes", interrupt)
    assert cli.main(["recipes"]) == 130
    assert capsys.readouterr().err == "mlore-edu: interrupted.\n"


def test_a_reader_that_has_seen_enough_is_no_mistake():
    command = f"{sys.executable} -m mlore_edu train dollhouse_baseline_nano --help | head -n 1"
    shown = subprocess.run(command, shell=True, capture_output=True, text=True, check=False)
    assert shown.stdout.startswith("usage: mlore-edu train dollhouse_baseline_nano")
    assert "Traceback" not in shown.stderr


@pytest.mark.slow
def test_ctrl_c_in_a_terminal_reaches_the_loading_processes_too_and_is_answered_once(data, tmp_path):
    words = [*TINY, "--iterations", "100000", "--workers", "2", "--root", str(data), "--run", str(tmp_path / "run")]
    command = [sys.executable, "-m", "mlore_edu", "train", *words]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, text=True, start_new_session=True, **pipes) as process:
        deadline = time.monotonic() + 100
        while not (tmp_path / "run/checkpoints/000003").exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGINT)
        error = process.communicate(timeout=100)[1]
    assert process.returncode == 130
    assert error.count("press Ctrl-C again") == 1
    assert error.count("everything is saved in") == 1
    assert "Traceback" not in error


@pytest.mark.slow
def test_two_processes_train_one_run_and_judge_every_image_once(data, tmp_path):
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    words = ["-m", "mlore_edu", "train", *TINY, "--root", str(data), "--run-folder", str(tmp_path / "run")]
    done = subprocess.run([*launch, *words], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Surface normals") == 1
    result = json.loads((tmp_path / "run/metrics.json").read_text())
    assert result["details"]["edge"]["images"] == 2
    log = [json.loads(line) for line in (tmp_path / "run/log.jsonl").read_text().splitlines()]
    assert [entry["iteration"] for entry in log] == [1, 2, 2]


def test_a_read_only_data_folder_serves_training_and_evaluation_and_is_left_as_it_was(data, tmp_path):
    root, run = tmp_path / "data", tmp_path / "run"
    subprocess.run(["cp", "-r", str(data), str(root)], check=True)
    subprocess.run(["chmod", "-R", "a-w", str(root)], check=True)
    before = {path: (path.stat().st_mtime_ns, path.stat().st_mode) for path in root.rglob("*")}
    assert cli.main(["train", *TINY, "--root", str(root), "--run", str(run)]) == 0
    assert cli.main(["evaluate", str(run)]) == 0
    assert {path: (path.stat().st_mtime_ns, path.stat().st_mode) for path in root.rglob("*")} == before
    subprocess.run(["chmod", "-R", "u+w", str(root)], check=True)


def test_rendering_into_a_folder_one_may_not_write_to_is_one_sentence(tmp_path, capsys, monkeypatch):
    def forbidden(*arguments):
        raise PermissionError(13, "Permission denied")  # permissions do not bind the root user who may run this test

    monkeypatch.setattr("os.replace", forbidden)
    words = ["--root", tmp_path / "rooms", "--size", "64", "--train", "1", "--val", "1", "--workers", "1"]
    sentence = complaint(capsys, "dollhouse", *words)
    assert "(Permission denied); make room or grant permission there, then run the same command to go on." in sentence
