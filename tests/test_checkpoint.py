"""A checkpoint is whole or absent, whatever happens to the process or the disk while it is written."""

import errno
import os
import random
import resource

import numpy as np
import pytest
import torch

from mlore_edu.errors import UserError
from mlore_edu.training import checkpoint

WEIGHTS = {"layer.weight": torch.arange(6.0).view(2, 3), "norm.num_batches_tracked": torch.tensor(7)}


def a_state():
    parameter = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.Adam([parameter])
    parameter.grad = torch.ones(3)
    optimizer.step()
    return {"optimizer": optimizer.state_dict(), "random": [checkpoint.random_state()]}


def test_what_was_saved_is_loaded_bit_for_bit(tmp_path):
    weights = {**WEIGHTS, "half": torch.randn(5).half(), "transposed": torch.randn(2, 3, 4, 5).permute(0, 2, 3, 1)}
    state = a_state()
    path = checkpoint.save(tmp_path, 12, weights, state)
    loaded_weights, loaded = checkpoint.load(path)
    assert loaded_weights.keys() == weights.keys()
    for name, tensor in weights.items():
        assert torch.equal(loaded_weights[name], tensor)
        assert loaded_weights[name].dtype == tensor.dtype
    assert loaded["iteration"] == 12
    assert torch.equal(loaded["optimizer"]["state"][0]["exp_avg"], state["optimizer"]["state"][0]["exp_avg"])
    assert loaded["optimizer"]["param_groups"] == state["optimizer"]["param_groups"]


def test_random_numbers_go_on_where_they_were_after_a_save_and_a_load(tmp_path):
    checkpoint.seed_everything(5)
    random.gauss(0, 1), np.random.standard_normal(), torch.rand(3)  # leaves half a pair of normals behind
    path = checkpoint.save(tmp_path, 1, WEIGHTS, {"random": checkpoint.random_state()})
    expected = random.gauss(0, 1), np.random.standard_normal(), torch.rand(3)
    checkpoint.seed_everything(6)
    checkpoint.set_random_state(checkpoint.load(path)[1]["random"])
    actual = random.gauss(0, 1), np.random.standard_normal(), torch.rand(3)
    assert actual[:2] == expected[:2]
    assert torch.equal(actual[2], expected[2])


def test_the_latest_is_the_one_with_the_most_iterations_and_one_earlier_is_kept(tmp_path):
    assert checkpoint.latest(tmp_path) is None
    assert checkpoint.latest(tmp_path / "absent") is None
    for iteration in (5, 999_999, 1_000_000):
        checkpoint.save(tmp_path, iteration, WEIGHTS, {})
    assert checkpoint.latest(tmp_path).name == "1000000"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1000000", "999999"]


def test_a_half_written_checkpoint_of_a_killed_process_is_not_taken_for_one(tmp_path):
    checkpoint.save(tmp_path, 5, WEIGHTS, {})
    (tmp_path / ".000010.draft").mkdir()
    (tmp_path / ".000010.draft" / "model.safetensors").write_bytes(b"half")
    assert checkpoint.latest(tmp_path).name == "000005"
    assert checkpoint.load(checkpoint.save(tmp_path, 10, WEIGHTS, {}))[1] == {"iteration": 10}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["000005", "000010"]


class FullDisk:
    """Lets a number of calls pass, then answers as a full disk does."""

    def __init__(self, function, passes):
        self.function, self.passes = function, passes

    def __call__(self, *arguments, **options):
        self.passes -= 1
        if self.passes < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return self.function(*arguments, **options)


CALLS = {"fsync": 3, "rename": 1, "mkdir": 1}
"""Calls of each function of ``os`` that a save cannot do without: three files pushed to the disk, one folder."""


@pytest.mark.parametrize(("name", "passes"), [(name, n) for name, count in CALLS.items() for n in range(count)])
def test_a_disk_that_is_full_at_any_moment_leaves_the_previous_checkpoint_and_says_so(
    tmp_path, monkeypatch, name, passes
):
    checkpoint.save(tmp_path, 200, WEIGHTS, a_state())
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    full = FullDisk(getattr(os, name), passes)
    monkeypatch.setattr(os, name, full)
    with pytest.raises(UserError) as caught:
        checkpoint.save(tmp_path, 400, {"layer.weight": torch.zeros(1)}, {})
    monkeypatch.undo()
    assert full.passes == -1  # the fault was reached
    sentence = str(caught.value)
    assert "no space left on device" in sentence
    assert "the checkpoint of iteration 200 is intact" in sentence
    assert "free some space" in sentence
    assert before.items() <= {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}.items()
    assert checkpoint.load(tmp_path / "000200")[1]["iteration"] == 200
    checkpoint.save(tmp_path, 400, WEIGHTS, {})  # once there is space again
    assert checkpoint.latest(tmp_path).name == "000400"


def test_a_file_too_large_for_the_system_in_the_middle_of_a_write_leaves_nothing_behind(tmp_path):
    """A real failing write, not a simulated one: the system's limit on the size of a file."""
    checkpoint.save(tmp_path, 1, WEIGHTS, {})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        with pytest.raises(UserError, match=r"file too large.*iteration 1 is intact"):
            checkpoint.save(tmp_path, 2, {"large": torch.zeros(100_000)}, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [path.name for path in tmp_path.iterdir()] == ["000001"]


@pytest.mark.parametrize("name", ["model.safetensors", "training.pt", "checksums.json"])
@pytest.mark.parametrize("damage", ["truncated", "one bit", "missing", "empty"])
def test_a_damaged_checkpoint_is_named_with_the_remedy(tmp_path, name, damage):
    checkpoint.save(tmp_path, 200, WEIGHTS, a_state())
    path = checkpoint.save(tmp_path, 400, WEIGHTS, a_state())
    file = path / name
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    if damage == "missing":
        file.unlink()
    else:
        file.write_bytes({"truncated": content[: len(content) // 2], "one bit": content, "empty": b""}[damage])
    with pytest.raises(UserError) as caught:
        checkpoint.load(path)
    sentence = str(caught.value)
    assert str(path) in sentence
    assert "damaged" in sentence
    assert f"move the folder {path} away to go on from iteration 200" in sentence


def test_a_damaged_only_checkpoint_says_that_there_is_no_earlier_one(tmp_path):
    path = checkpoint.save(tmp_path, 200, WEIGHTS, {})
    (path / "training.pt").unlink()
    with pytest.raises(UserError, match=r"training.pt is damaged \(no such file or directory\); there is no earlier"):
        checkpoint.load(path)


@pytest.mark.parametrize(
    ("number", "remedy"),
    [(errno.EROFS, "writable disk"), (errno.EACCES, "may write to"), (errno.EIO, "look after the disk")],
)
def test_every_failure_of_a_disk_has_a_remedy(number, remedy):
    with (
        pytest.raises(UserError, match=f"cannot write the log .*{remedy}"),
        checkpoint.explain_disk_errors("the log a/log.jsonl"),
    ):
        raise OSError(number, os.strerror(number))
