"""Helpers for several processes: plain in one, the same words in many."""

import socket

import pytest
import torch
import torch.distributed as dist

from mlore_edu.training import distributed


@pytest.fixture
def as_torchrun_starts_it(monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for name, value in {
        "RANK": 0,
        "WORLD_SIZE": 1,
        "LOCAL_RANK": 0,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
    }.items():
        monkeypatch.setenv(name, str(value))


def test_without_torchrun_there_is_one_process_and_nothing_to_wait_for(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    assert distributed.start() is False
    assert (distributed.rank(), distributed.world_size(), distributed.is_main()) == (0, 1, True)
    assert distributed.is_main_by_environment()
    assert distributed.gather("mine") == ["mine"]
    assert [distributed.any_true(flag) for flag in (True, False)] == [True, False]
    distributed.barrier()
    model = torch.nn.Linear(2, 2)
    assert distributed.wrap(model, torch.device("cpu")) is model


def test_started_by_torchrun_a_process_joins_its_group_once_and_leaves_it(as_torchrun_starts_it):
    try:
        assert distributed.start() is True
        assert distributed.start() is False  # the second call finds the group
        assert dist.is_initialized()
        assert (distributed.rank(), distributed.world_size()) == (0, 1)
    finally:
        distributed.stop()
    assert not dist.is_initialized()
    distributed.stop()  # twice is once


def test_the_device_is_the_gpu_of_the_local_rank_where_there_is_one(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv("RANK", "9")  # the second process of the second machine with 8 GPUs each
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert distributed.default_device() == torch.device("cuda", 1)
    assert not distributed.is_main_by_environment()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert distributed.default_device() == torch.device("cpu")


def test_many_processes_average_every_number_of_a_nested_record(monkeypatch):
    first = {"iteration": 4, "loss": 1.0, "losses": {"depth": 2.0}}
    records = [first, {"iteration": 4, "loss": 2.0, "losses": {"depth": 5.0}}]
    monkeypatch.setattr(distributed, "gather", lambda record: records)
    averaged = distributed.mean_of(records[0])
    assert averaged == {"iteration": 4, "loss": 1.5, "losses": {"depth": 3.5}}
    assert isinstance(averaged["iteration"], int)


def test_one_process_that_must_stop_stops_all(monkeypatch):
    monkeypatch.setattr(distributed, "gather", lambda flag: [flag, True])
    assert distributed.any_true(False)


def test_in_a_group_of_two_the_model_is_wrapped_to_average_gradients(monkeypatch, as_torchrun_starts_it):
    """The group has one member here; the wrapper is what is looked at."""
    distributed.start()
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    try:
        model = torch.nn.Linear(2, 2)
        wrapped = distributed.wrap(model, torch.device("cpu"))
        assert isinstance(wrapped, torch.nn.parallel.DistributedDataParallel)
        assert wrapped.module is model
        assert distributed.gather(3) == [3, None]
        distributed.barrier()
    finally:
        distributed.stop()
