"""The training loop: its arithmetic against formulas, and its promise that a run broken anywhere goes on unchanged."""

import dataclasses
import json
import math
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from torch import nn
from training_fakes import RECIPE, Countdown, Noise, assert_same_run, make_model, press_ctrl_c, run, same_log

from mlore_edu.errors import UserError
from mlore_edu.losses import MultiTaskLoss
from mlore_edu.model import ModelOutput
from mlore_edu.tasks import DOLLHOUSE
from mlore_edu.training import checkpoint
from mlore_edu.training.engine import Training, split
from mlore_edu.training.run_folder import Log, RunFolder, read_log
from mlore_edu.training.setup import make_optimizer

CPU = torch.device("cpu")
SGD = dataclasses.replace(
    RECIPE, optimizer="sgd", momentum=0.0, weight_decay=0.0, lr=1.0, poly_power=0.0, clip_norm=None, tasks=("depth",)
)


class OneConvolution(nn.Module):
    """Predicts semseg and depth from a pixel alone: no BatchNorm, no dropout, so that its gradient can be reckoned."""

    def __init__(self, tasks=("semseg", "depth"), balance=0.0):
        super().__init__()
        torch.manual_seed(1)
        self.layers = nn.ModuleDict({name: nn.Conv2d(3, DOLLHOUSE[name].channels, 1) for name in tasks})
        self.balance = nn.Parameter(torch.tensor(balance))

    def forward(self, images):
        return ModelOutput({name: layer(images) for name, layer in self.layers.items()}, self.balance * 1.0, {})


def batch_of(tasks, size=4):
    samples = [Noise(size, tasks)[index] for index in range(size)]
    batch = {name: torch.stack([sample[name] for sample in samples]) for name in ("image", *tasks.names)}
    return {**batch, "meta": [sample["meta"] for sample in samples]}


def flat(model):
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    folder = tmp_path_factory.mktemp("unbroken") / "run"
    run(folder, eval_interval=3)
    return folder


def test_a_step_follows_the_gradient_of_the_weighted_losses_and_the_balance_loss():
    recipe = dataclasses.replace(SGD, tasks=("semseg", "depth"), lr=0.5, loss_weights=(("depth", 3.0),))
    model, twin = OneConvolution(balance=2.0), OneConvolution(balance=2.0)
    batch = batch_of(recipe.task_set)
    record = Training(model, recipe, CPU).step(batch)
    output = twin(batch["image"])
    semseg = nn.functional.cross_entropy(output.predictions["semseg"], batch["semseg"])
    depth = (output.predictions["depth"] - batch["depth"]).abs().mean()
    (semseg + 3 * depth + output.balance_loss).backward()
    expected = flat(twin) - 0.5 * torch.cat([parameter.grad.flatten() for parameter in twin.parameters()])
    torch.testing.assert_close(flat(model), expected, rtol=1e-5, atol=1e-6)
    assert record["losses"] == pytest.approx({"semseg": semseg.item(), "depth": depth.item()}, rel=1e-6)
    assert record["loss"] == pytest.approx((semseg + 3 * depth).item() + 2.0, rel=1e-6)
    assert (record["balance_loss"], record["iteration"], record["learning_rate"]) == (2.0, 1, 0.5)


def test_the_optimiser_receives_the_polynomial_learning_rate_of_each_step():
    recipe = dataclasses.replace(SGD, lr=0.1, poly_power=0.9, iterations=10)
    model = OneConvolution(("depth",))
    training = Training(model, recipe, CPU)
    for step in range(4):
        before = flat(model)
        record = training.step(batch_of(recipe.task_set))
        assert record["learning_rate"] == pytest.approx(0.1 * (1 - step / 10) ** 0.9)
        moved = float((flat(model) - before).norm())
        assert moved == pytest.approx(record["learning_rate"] * record["gradient_norm"], rel=1e-4)


@pytest.mark.parametrize("clip_norm", [0.25, 1e6, None])
def test_a_gradient_longer_than_the_limit_is_shortened_to_it_and_logged_as_it_was(clip_norm):
    recipe = dataclasses.replace(SGD, clip_norm=clip_norm)
    model = OneConvolution(("depth",))
    before = flat(model)
    record = Training(model, recipe, CPU).step(batch_of(recipe.task_set))
    assert record["gradient_norm"] > 0.25
    expected = min(clip_norm or math.inf, record["gradient_norm"])
    assert float((flat(model) - before).norm()) == pytest.approx(expected, rel=1e-4)


def test_accumulating_four_parts_gives_the_gradient_of_the_whole_batch():
    """All pixels of the noise are valid, so parts weigh the same; what is left is rounding: about 1e-7 relative."""
    recipe = dataclasses.replace(SGD, tasks=("semseg", "depth"), lr=0.1, batch_size=4)
    whole, parts = OneConvolution(), OneConvolution()
    one, four = Training(whole, recipe, CPU), Training(parts, dataclasses.replace(recipe, accumulation=4), CPU)
    for _ in range(3):
        records = one.step(batch_of(recipe.task_set)), four.step(batch_of(recipe.task_set))
        assert records[0]["losses"] == pytest.approx(records[1]["losses"], rel=1e-5)
    torch.testing.assert_close(flat(whole), flat(parts), rtol=1e-5, atol=1e-6)


def test_splitting_a_batch_loses_nothing_and_keeps_the_order():
    batch = {"image": torch.arange(6).view(6, 1), "meta": list("abcdef")}
    parts = list(split(batch, 3))
    assert [part["meta"] for part in parts] == [["a", "b"], ["c", "d"], ["e", "f"]]
    assert torch.equal(torch.cat([part["image"] for part in parts]), batch["image"])


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_computes_nearly_the_same_step(precision):
    recipe = dataclasses.replace(SGD, tasks=("semseg", "depth"), lr=0.1)
    batch = batch_of(recipe.task_set)
    full = Training(OneConvolution(), recipe, CPU).step(batch)
    half = Training(OneConvolution(), dataclasses.replace(recipe, precision=precision), CPU).step(batch)
    # bf16 keeps 8 bits (relative 2**-8 per operation), fp16 11; losses average over thousands of pixels
    assert half["losses"] == pytest.approx(full["losses"], rel=0.01)
    assert half["losses"] != full["losses"]


class Overflowing(OneConvolution):
    """The forward pass is fine, the gradient is not."""

    def forward(self, images):
        output = super().forward(images)
        for prediction in output.predictions.values():
            prediction.register_hook(lambda gradient: gradient * math.inf)
        return output


def test_a_gradient_that_overflows_in_fp16_is_skipped_and_the_scale_lowered():
    model = Overflowing(("depth",))
    training = Training(model, dataclasses.replace(SGD, precision="fp16"), CPU)
    before, scale = flat(model), training.scaler.get_scale()
    record = training.step(batch_of(SGD.task_set))
    assert not math.isfinite(record["gradient_norm"])
    assert math.isfinite(record["loss"])
    assert torch.equal(flat(model), before)
    assert training.scaler.get_scale() == scale / 2


def test_a_gradient_that_overflows_in_fp32_stops_the_run_before_it_touches_the_weights():
    model = Overflowing(("depth",))
    before = flat(model)
    with pytest.raises(UserError, match=r"step 1: gradient_norm became (nan|inf) on the images noise0, noise1"):
        Training(model, SGD, CPU).step(batch_of(SGD.task_set))
    assert torch.equal(flat(model), before)


class DepthBreaks(nn.Module):
    """A model whose depth becomes NaN at the n-th training step."""

    def __init__(self, model, step):
        super().__init__()
        self.model, self.countdown = model, step

    def forward(self, images):
        output = self.model(images)
        self.countdown -= self.training
        if self.countdown == 0:
            output.predictions["depth"] = output.predictions["depth"] * math.nan
        return output


def test_a_loss_that_is_not_finite_stops_with_step_task_and_images_and_leaves_the_run_intact(tmp_path):
    with pytest.raises(UserError) as caught:
        run(tmp_path / "run", model=DepthBreaks(make_model(RECIPE), 4))
    sentence = str(caught.value)
    assert sentence.startswith("step 4: depth became nan on the images noise")
    assert sentence.endswith("start another run with a lower --lr or in fp32.")
    assert checkpoint.load(checkpoint.latest(tmp_path / "run/checkpoints"))[1]["iteration"] == 2
    assert [entry["iteration"] for entry in read_log(tmp_path / "run/log.jsonl")] == [1, 2, 3]


def test_a_run_folder_tells_what_was_told_done_and_found(unbroken):
    metrics = json.loads((unbroken / "metrics.json").read_text())
    assert metrics["iteration"] == 5
    assert set(metrics["metrics"]) == set(metrics["details"]) == set(DOLLHOUSE.names)
    assert all(math.isfinite(value) for value in metrics["metrics"].values())
    versions = json.loads((unbroken / "versions.json").read_text())
    assert versions["packages"]["torch"] == torch.__version__.split("+")[0]
    assert {"python", "commit", "command", "processor", "cores", "gpus"} <= versions.keys()
    assert [path.suffix for path in (unbroken / "pictures").iterdir()] == [".png"]
    assert sorted(path.name for path in (unbroken / "checkpoints").iterdir()) == ["000004", "000005"]


def test_the_log_has_a_line_per_interval_and_one_per_evaluation(unbroken):
    entries = read_log(unbroken / "log.jsonl")
    steps = [entry for entry in entries if "loss" in entry]
    assert [entry["iteration"] for entry in steps] == [1, 2, 3, 4, 5]
    assert [entry["iteration"] for entry in entries if "metrics" in entry] == [3, 5]
    for entry in steps:
        weighted = sum(DOLLHOUSE[name].loss_weight * loss for name, loss in entry["losses"].items())
        assert entry["loss"] == pytest.approx(weighted, rel=1e-5)
        assert entry["gradient_norm"] > 0
        assert entry["images_per_second"] > 0
    assert entries[-1]["metrics"] == json.loads((unbroken / "metrics.json").read_text())["metrics"]


def test_a_longer_log_interval_writes_fewer_lines_and_always_the_last(tmp_path):
    run(tmp_path, log_interval=2, tasks=("depth",))
    assert [entry["iteration"] for entry in read_log(tmp_path / "log.jsonl") if "loss" in entry] == [2, 4, 5]


@pytest.mark.parametrize("loads", [1, 5, 9])
def test_ctrl_c_finishes_the_step_saves_and_goes_on_later_as_if_nothing_had_happened(tmp_path, unbroken, loads, capsys):
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt, match=r"stopped after iteration \d; .* run the same command again"):
        run(tmp_path / "run", eval_interval=3, on_load=Countdown(loads, press_ctrl_c))
    assert signal.getsignal(signal.SIGINT) == handler
    assert "Ctrl-C again" in capsys.readouterr().err
    stopped = checkpoint.latest(tmp_path / "run/checkpoints")
    assert int(stopped.name) == (loads + 1) // 2  # two images a step
    assert not (tmp_path / "run/metrics.json").exists()
    run(tmp_path / "run", eval_interval=3)
    assert_same_run(tmp_path / "run", unbroken)


def test_a_second_ctrl_c_breaks_off_at_once_and_costs_at_most_an_interval(tmp_path, unbroken):
    def twice():
        press_ctrl_c()
        press_ctrl_c()

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "run", eval_interval=3, on_load=Countdown(7, twice))
    assert checkpoint.latest(tmp_path / "run/checkpoints").name == "000003"
    run(tmp_path / "run", eval_interval=3)
    assert_same_run(tmp_path / "run", unbroken)


@pytest.mark.parametrize("loads", [2, 5])
def test_ctrl_c_during_an_evaluation_loses_only_the_evaluation(tmp_path, unbroken, loads):
    with pytest.raises(KeyboardInterrupt, match=f"stopped after iteration {3 if loads == 2 else 5};"):
        run(tmp_path / "run", eval_interval=3, on_validation=Countdown(loads, press_ctrl_c))
    run(tmp_path / "run", eval_interval=3)
    assert_same_run(tmp_path / "run", unbroken)


VICTIMS = {
    "in the middle of the fourth step": ("training.engine:Training._clip", 4),
    "before the folder holds its recipe": ("atomic:write_durably", 2),
    "between two files of the second checkpoint": ("atomic:write_durably", 8),
    "before the third checkpoint": ("training.checkpoint:safetensors.torch.save", 3),
    "trained to the end and not yet judged": ("training.report:Report.conclude", 1),
    "judged and metrics.json not yet written": ("training.report:draw", 1),
    "before a line of the log": ("training.run_folder:Log.write", 6),
}
"""Moments at which a run is killed: the n-th call of a function."""


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """A run per moment, ended by ``kill -9`` exactly there, each in a process of its own, forked off one that waits."""
    root = tmp_path_factory.mktemp("killed")
    script = f"""
        import importlib, os, signal, torch
        from operator import attrgetter
        from training_fakes import Countdown, die, run
        torch.set_num_threads({torch.get_num_threads()})
        for number, (victim, call) in enumerate({list(VICTIMS.values())!r}):
            if child := os.fork():
                assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL, victim
                continue
            module, path = victim.split(":")
            *path, function = path.split(".")
            owner = importlib.import_module("mlore_edu." + module)
            owner = attrgetter(".".join(path))(owner) if path else owner
            original, countdown = getattr(owner, function), Countdown(call, die)
            setattr(owner, function, lambda *words, **options: [countdown(), original(*words, **options)][1])
            run({str(root)!r} + "/" + str(number), eval_interval=3)
            os._exit(0)
    """
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    subprocess.run([sys.executable, "-c", textwrap.dedent(script)], env=environment, check=True)
    return root


@pytest.mark.slow
@pytest.mark.parametrize("moment", VICTIMS)
def test_a_run_killed_at_any_moment_and_resumed_equals_the_unbroken_run_bit_for_bit(killed, unbroken, moment):
    folder = killed / str(list(VICTIMS).index(moment))
    assert not (folder / "metrics.json").exists()
    run(folder, eval_interval=3)
    assert_same_run(folder, unbroken)


def test_the_seed_decides_the_run(tmp_path, unbroken):
    run(tmp_path / "same", eval_interval=3)
    assert_same_run(tmp_path / "same", unbroken)
    run(tmp_path / "other", eval_interval=3, seed=1)
    assert not same_log(tmp_path / "other", unbroken)


def test_resuming_fp16_restores_the_loss_scale(tmp_path):
    recipe = dataclasses.replace(SGD, precision="fp16", name="fp16")
    folder = RunFolder(tmp_path)
    training = Training(Overflowing(("depth",)), recipe, CPU)
    training.step(batch_of(recipe.task_set))
    training.save(folder)
    resumed = Training(Overflowing(("depth",)), recipe, CPU)
    resumed.restore(folder)
    assert resumed.scaler.get_scale() == training.scaler.get_scale() == 2.0**15


def test_a_complete_run_is_not_trained_again(tmp_path):
    metrics, _ = run(tmp_path, tasks=("depth",), iterations=1)

    def fail(_):
        raise AssertionError("an image was loaded")

    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.name != "lock"}
    again, _ = run(tmp_path, tasks=("depth",), iterations=1, on_load=fail, on_validation=fail)
    assert again == metrics
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.name != "lock"} == before


def test_another_recipe_or_other_peoples_files_in_the_folder_are_left_alone(tmp_path):
    run(tmp_path / "run", tasks=("depth",), iterations=1)
    with pytest.raises(UserError, match=r"holds a run with another iterations and lr; .* --run FOLDER"):
        run(tmp_path / "run", tasks=("depth",), iterations=2, lr=1.0)
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis/chapter.txt").write_text("precious")
    with pytest.raises(UserError, match="is not empty and holds no run"):
        run(tmp_path / "thesis")
    assert [path.name for path in (tmp_path / "thesis").iterdir()] == ["chapter.txt"]


def test_two_processes_do_not_train_in_one_folder(tmp_path):
    run(tmp_path, tasks=("depth",), iterations=1)
    hold = (
        "import fcntl, sys; lock = open(sys.argv[1], 'w'); fcntl.lockf(lock, fcntl.LOCK_EX); print(); sys.stdin.read()"
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", hold, tmp_path / "lock"], **pipes) as other:
        other.stdout.readline()  # it has the lock
        with pytest.raises(UserError, match="another process is training in"):
            run(tmp_path, tasks=("depth",), iterations=1)
        other.communicate()
    run(tmp_path, tasks=("depth",), iterations=1)  # and nobody has it now


def test_a_batch_that_cannot_be_divided_among_processes_is_a_user_error(monkeypatch):
    training = Training(OneConvolution(("depth",)), SGD, CPU)
    monkeypatch.setattr("mlore_edu.training.distributed.world_size", lambda: 3)
    with pytest.raises(UserError, match="a batch of 2 cannot be split into 3 equal parts"):
        training.loader(Noise(tasks=SGD.task_set))


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd"])
def test_every_optimiser_takes_its_settings_from_the_recipe(name):
    recipe = dataclasses.replace(SGD, optimizer=name, weight_decay=0.3, momentum=0.7)
    optimizer = Training(OneConvolution(("depth",)), recipe, CPU).optimizer
    assert type(optimizer).__name__.lower() == name
    assert optimizer.param_groups[0]["weight_decay"] == 0.3
    assert optimizer.param_groups[0].get("momentum", 0.7) == 0.7


def test_compile_and_channels_last_change_how_not_what_is_computed(monkeypatch):
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda model: compiled.append(model) or model)
    plain = dataclasses.replace(RECIPE, drop_path_rate=0.0, tasks=("depth",))
    fast = dataclasses.replace(plain, compile=True, channels_last=True)
    batch = batch_of(plain.task_set, 2)
    first = Training(make_model(plain), plain, CPU).step(batch)
    model = make_model(fast).to(memory_format=torch.channels_last)
    second = Training(model, fast, CPU).step(batch)
    assert compiled == [model]
    assert first["loss"] == pytest.approx(second["loss"], rel=1e-4)  # other kernels, other rounding


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd"])
def test_a_fused_optimiser_makes_the_same_update(optimizer):
    weights = {}
    for fused in (False, True):
        recipe = dataclasses.replace(RECIPE, optimizer=optimizer, weight_decay=0.1, lr=0.1, fused_optimizer=fused)
        model = OneConvolution()
        steps = make_optimizer(model, recipe)
        for number in range(3):
            for parameter in model.parameters():
                parameter.grad = torch.full_like(parameter, 0.5 - number)
            steps.step()
        weights[fused] = flat(model)
    torch.testing.assert_close(weights[True], weights[False])


def test_augmenting_in_the_training_process_changes_nothing_but_the_place(tmp_path):
    """On a CPU not even the last digit: the same transform runs with the same chance."""
    run(tmp_path / "here")
    run(tmp_path / "there", augment_on_gpu=True, workers=1)
    (first, _), (second, _) = (
        checkpoint.load(checkpoint.latest(tmp_path / name / "checkpoints")) for name in ("here", "there")
    )
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_the_moving_average_of_the_weights_is_that_of_its_definition_and_is_what_is_judged():
    recipe = dataclasses.replace(SGD, ema=0.75, lr=0.1, iterations=4)
    training = Training(OneConvolution(("depth",)), recipe, CPU)
    batch, average = batch_of(recipe.task_set), None
    for _ in range(4):
        training.step(batch)
        weights = flat(training.model).clone()
        average = weights if average is None else 0.75 * average + 0.25 * weights  # it begins with the first step's
        torch.testing.assert_close(flat(training.judged), average, rtol=1e-5, atol=1e-6)
    assert not torch.equal(flat(training.judged), flat(training.model))


def test_a_broken_run_with_a_moving_average_goes_on_as_if_nothing_had_happened(tmp_path):
    run(tmp_path / "unbroken", ema=0.5)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "broken", ema=0.5, on_load=Countdown(5, press_ctrl_c))
    assert not (tmp_path / "broken/metrics.json").exists()
    run(tmp_path / "broken", ema=0.5)
    assert_same_run(tmp_path / "unbroken", tmp_path / "broken")
    judged, state = checkpoint.load(checkpoint.latest(tmp_path / "broken/checkpoints"))
    assert any(not torch.equal(judged[name], state["weights"][name]) for name in judged)


def test_tensorboard_files_hold_the_log(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run(tmp_path, tasks=("depth",), iterations=2, tensorboard=True)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    losses = [entry["losses"]["depth"] for entry in read_log(tmp_path / "log.jsonl") if "losses" in entry]
    assert [event.value for event in events.Scalars("losses/depth")] == pytest.approx(losses)
    assert "metrics/depth" in events.Tags()["scalars"]


def test_asking_for_tensorboard_where_it_is_not_installed_is_a_user_error(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(UserError, match="pip install tensorboard"):
        run(tmp_path, tasks=("depth",), tensorboard=True)


def test_a_resumed_log_forgets_what_is_done_again_and_a_line_cut_by_a_kill(tmp_path):
    path = tmp_path / "log.jsonl"
    lines = [{"iteration": 1, "loss": 1.0}, {"iteration": 2, "metrics": {}}, {"iteration": 3, "loss": 1.0}]
    path.write_text("\n".join(map(json.dumps, lines)) + '\n12\n{"iteration": 4, "lo')
    log = Log(path, 2)
    assert read_log(path) == lines[:2]
    assert log.has_metrics(2)
    assert not log.has_metrics(1)


def test_a_full_disk_while_logging_is_one_sentence(tmp_path):
    log = Log(tmp_path / "log.jsonl", 0)
    log.path = Path("/dev/full")
    with pytest.raises(UserError, match=r"no space left on device.*the checkpoints are intact; free some space"):
        log.write({"iteration": 1})


@pytest.mark.parametrize("content", ["{", "[]", "{}"])
def test_damaged_metrics_are_named(tmp_path, content):
    (tmp_path / "metrics.json").write_text(content)
    with pytest.raises(UserError, match=r"metrics.json cannot be read"):
        RunFolder(tmp_path).read_metrics()


def test_the_loss_of_the_recipe_is_the_librarys():
    recipe = dataclasses.replace(RECIPE, loss_weights=(("edge", 7.0),), edge_positive_weight=0.6)
    loss = Training(make_model(recipe), recipe, CPU).loss
    assert isinstance(loss, MultiTaskLoss)
    assert (loss.loss_weights["edge"], loss.loss_weights["semseg"], loss.edge_positive_weight) == (7.0, 1.0, 0.6)
