"""Two processes learn what one learns, judge what one judges, and survive the loss of one of them."""

import dataclasses
import os
import subprocess
import sys
import textwrap

import pytest
import torch
import torch.multiprocessing
from training_fakes import RECIPE, Noise, assert_same_run, make_model

from mlore_edu.data.dollhouse_files import write_dollhouse
from mlore_edu.data.loaders import collate
from mlore_edu.evaluation import evaluate
from mlore_edu.training import distributed
from mlore_edu.training.engine import Training
from mlore_edu.training.run_folder import RunFolder
from mlore_edu.training.setup import evaluation_loader

CPU = torch.device("cpu")
CALM = dataclasses.replace(RECIPE, drop_path_rate=0.0, batch_size=4, clip_norm=None)
MODELS = {
    "baseline": (),
    "moe": (("noise", False), ("balance_weight", 0.0)),
    "mlore": (("noise", False), ("balance_weight", 0.0)),
    "taskexpert": (),
    "tif": (),
}
"""Decoders, without what differs between a whole batch and its parts: the noise and the balance of the routers."""


def environment(rank=0, world_size=1, port="0"):
    names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world_size, "MASTER_ADDR": "127.0.0.1"}
    return {name: str(value) for name, value in {**names, "MASTER_PORT": port}.items()}


def halves():
    """Two batches of equal weight in every loss: one is the other's mirror image."""
    images = Noise(2, train=False)
    batch = collate([images[index] for index in range(2)])
    mirrored = {name: value.flip(-1) for name, value in batch.items() if name != "meta"}
    mirrored["normals"][:, 0] *= -1
    return batch, {**mirrored, "meta": batch["meta"]}


def gradients_of(name, batch):
    """Gradients and BatchNorm statistics after one backward pass in float64, as the training loop computes them."""
    recipe = dataclasses.replace(CALM, model=f"{name}_vit_nano", model_options=MODELS[name])
    training = Training(make_model(recipe).double(), recipe, CPU)
    training.model.train()
    exact = {task: batch[task].double() for task in ("image", "normals", "depth", "edge")}
    training._backward({**batch, **exact})
    gradients = {key: parameter.grad for key, parameter in training.model.named_parameters()}
    return gradients | {key: buffer for key, buffer in training.model.named_buffers() if "running" in key}


def judged():
    """Metrics of five images, those of this process's share added to the others'."""
    validation_set = Noise(5, train=False, first=100)
    return evaluate(make_model(CALM), evaluation_loader(CALM, validation_set), CALM.task_set, progress=False)


def as_one_of_two(rank, port, folder):
    os.environ.update(environment(rank, 2, port))
    distributed.start()
    found = {name: gradients_of(name, halves()[rank]) for name in MODELS}
    result = judged()
    images = result.details["edge"]["images"]
    torch.save({"gradients": found, "metrics": result.metrics, "images": images}, folder / f"{rank}.pt")
    distributed.stop()


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """What two processes find."""
    folder = tmp_path_factory.mktemp("two")
    port = str(20_000 + os.getpid() % 20_000)
    torch.multiprocessing.start_processes(as_one_of_two, (port, folder), nprocs=2, start_method="spawn")
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_gradients_and_statistics_of_two_processes_are_those_of_one_with_the_doubled_batch(two, name):
    first, second = halves()
    whole = {key: torch.cat([value, second[key]]) for key, value in first.items() if key != "meta"}
    expected = gradients_of(name, {**whole, "meta": first["meta"] + second["meta"]})
    for found in two:
        assert found["gradients"][name].keys() == expected.keys()
        for key, value in expected.items():
            assert value is not None, f"{key} has no gradient, and would have to be searched for"
            torch.testing.assert_close(found["gradients"][name][key], value, rtol=1e-7, atol=1e-10, msg=key)


@pytest.mark.slow
def test_metrics_of_two_processes_are_those_of_one_and_no_image_counts_twice(two):
    alone = judged()
    for found in two:
        assert found["images"] == alone.details["edge"]["images"] == 5
        assert found["metrics"] == pytest.approx(alone.metrics, rel=1e-6)  # float32 sums of normals and depth
        assert found["metrics"]["semseg"] == alone.metrics["semseg"]


def torchrun(folder, *command, script=("-m", "mlore_edu")):
    """Train on two processes as chapter 16 says; returns the finished process."""
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--max-restarts", "1"]
    fields = ["--root", folder / "data", "--iterations", 6, "--batch-size", 4, "--checkpoint-interval", 2]
    words = [*launch, *script, "train", "dollhouse_baseline_nano_64", *fields, "--log-interval", 1, *command]
    return subprocess.run(
        [sys.executable, *map(str, words)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"},  # see chapter 16
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.mark.slow
def test_a_run_that_loses_its_main_process_goes_on_from_its_last_checkpoint_to_the_same_end(tmp_path):
    """torchrun ends the others, starts all anew, and they find the checkpoint: the result is bit for bit the same."""
    write_dollhouse(tmp_path / "data", size=64, train=8, val=3, progress=False)
    fragile = tmp_path / "fragile.py"
    fragile.write_text(
        textwrap.dedent(f"""
        import os, pathlib, signal
        from mlore_edu.cli import main
        from mlore_edu.training.engine import Training

        happened, step = pathlib.Path({str(tmp_path / "killed")!r}), Training.step

        def step_or_die(self, batch):
            if self.iteration == 3 and os.environ["RANK"] == "0" and not happened.exists():
                happened.write_text("at iteration 3")
                os.kill(os.getpid(), signal.SIGKILL)
            return step(self, batch)

        Training.step = step_or_die
        raise SystemExit(main())
        """)
    )
    unbroken = torchrun(tmp_path, "--run-folder", tmp_path / "unbroken")
    broken = torchrun(tmp_path, "--run-folder", tmp_path / "broken", script=(fragile,))
    assert unbroken.returncode == 0, unbroken.stderr
    assert broken.returncode == 0, broken.stderr
    assert (tmp_path / "killed").exists()
    assert "exitcode: -9" in broken.stderr
    assert_same_run(tmp_path / "unbroken", tmp_path / "broken")
    assert unbroken.stdout.count("mIoU") == 2  # one table, of two tasks in mIoU, by one process
    assert [path.name for path in RunFolder(tmp_path / "broken").checkpoints.iterdir()] != []


def test_processes_that_do_not_see_the_same_folder_stop(tmp_path, monkeypatch):
    monkeypatch.setattr(distributed, "gather", lambda name: ["000004", None])
    training = Training(make_model(RECIPE), RECIPE, CPU)
    with pytest.raises(Exception, match=r"iteration 000004 in .* folder that all machines share"):
        training.restore(RunFolder(tmp_path))
