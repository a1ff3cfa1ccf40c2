"""The order of batches is a function of the seed and the iteration, whoever loads them."""

from itertools import chain, islice

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchvision import tv_tensors

from mlore_edu.data.datasets import LabelledImages
from mlore_edu.data.loaders import batch_draws, collate, draw_generator, epoch_order, make_loader
from mlore_edu.data.tensors import ClassMap, Depth
from mlore_edu.data.transforms import eval_transform, train_transform
from mlore_edu.errors import UserError
from mlore_edu.tasks import DOLLHOUSE


class Toy(LabelledImages):
    """Ten noisy images whose depth says which one it is; image ``broken`` cannot be read."""

    offers = DOLLHOUSE

    def __init__(self, count=10, transform=None, broken=None):
        super().__init__([f"toy {i}" for i in range(count)], DOLLHOUSE.subset("semseg", "depth"), transform)
        self.broken = broken

    def load(self, index):
        if index == self.broken:
            raise UserError("toy.png is damaged; draw it again.")
        noise = torch.Generator().manual_seed(index)
        return {
            "image": tv_tensors.Image(torch.randint(0, 256, (3, 12, 16), generator=noise, dtype=torch.uint8)),
            "semseg": ClassMap(torch.randint(0, 15, (12, 16), generator=noise, dtype=torch.uint8)),
            "depth": Depth(torch.full((1, 12, 16), float(index + 1))),
            "meta": {"id": self.ids[index], "size": (12, 16)},
        }


def first(loader, count):
    return list(islice(loader, count))


def assert_equal(batches, others):
    assert len(batches) == len(others)
    for batch, other in zip(batches, others):
        assert batch.keys() == other.keys()
        assert batch["meta"] == other["meta"]
        for name in batch.keys() - {"meta"}:
            assert torch.equal(batch[name], other[name]), name


def ids(batches):
    return [meta["id"] for batch in batches for meta in batch["meta"]]


@pytest.fixture
def training():
    return Toy(transform=train_transform((10, 14)))


def test_a_batch_stacks_tensors_and_lists_meta(training):
    batch = first(make_loader(training, 3, train=True), 1)[0]
    assert batch["image"].shape == (3, 3, 10, 14)
    assert batch["semseg"].shape == (3, 10, 14)
    assert batch["depth"].shape == (3, 1, 10, 14)
    assert len(batch["meta"]) == 3
    assert set(batch) == {"image", "semseg", "depth", "meta"}


def test_a_resumed_loader_goes_on_bit_for_bit(training):
    unbroken = first(make_loader(training, 3, train=True, seed=4), 9)
    for start in (1, 5):
        resumed = make_loader(training, 3, train=True, seed=4, start_iteration=start)
        assert_equal(first(resumed, 9 - start), unbroken[start:])


def test_starting_again_gives_the_same_batches(training):
    loader = make_loader(training, 3, train=True)
    assert_equal(first(loader, 3), first(loader, 3))


def test_worker_processes_change_nothing(training):
    alone = first(make_loader(training, 4, train=True, seed=1, start_iteration=2), 6)
    for workers in (1, 2):
        helped = make_loader(training, 4, train=True, seed=1, start_iteration=2, workers=workers)
        assert_equal(first(helped, 6), alone)


def test_two_processes_see_the_halves_of_one_joint_batch(training):
    joint = first(make_loader(training, 4, train=True, seed=2), 5)
    halves = [first(make_loader(training, 2, train=True, seed=2, rank=rank, world_size=2), 5) for rank in (0, 1)]
    for whole, *parts in zip(joint, *halves):
        assert torch.equal(whole["image"], torch.cat([part["image"] for part in parts]))
        assert whole["meta"] == [meta for part in parts for meta in part["meta"]]


def test_the_seed_decides_order_and_augmentation(training):
    batches, others = (first(make_loader(training, 5, train=True, seed=seed), 2) for seed in (0, 1))
    assert ids(batches) != ids(others)
    generators = [draw_generator(seed, draw) for seed, draw in ((0, 0), (0, 1), (1, 0))]
    assert len({torch.rand((), generator=generator).item() for generator in generators}) == 3


def test_the_global_random_state_is_neither_used_nor_changed(training):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    batches = first(make_loader(training, 3, train=True), 3)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(99)
    assert_equal(first(make_loader(training, 3, train=True), 3), batches)


@given(st.integers(1, 30), st.integers(1, 8), st.integers(1, 4), st.integers(0, 2**31))
def test_every_epoch_visits_every_sample_once_over_all_ranks(count, batch_size, world_size, seed):
    drawn = []
    for iteration in range(2 * count // (batch_size * world_size) + 1):
        for rank in range(world_size):
            drawn += batch_draws(count, batch_size, iteration, seed, rank, world_size)
    assert [draw for _, draw in drawn] == list(range(len(drawn)))
    for epoch in range(len(drawn) // count):
        assert sorted(index for index, _ in drawn[epoch * count : (epoch + 1) * count]) == list(range(count))


def test_epochs_have_different_orders():
    assert len({epoch_order(50, 3, epoch) for epoch in range(10)}) == 10


def test_a_batch_may_be_larger_than_the_data_set():
    loader = make_loader(Toy(2, train_transform(8)), 5, train=True)
    assert sorted(ids(first(loader, 2))) == ["toy 0"] * 5 + ["toy 1"] * 5


@pytest.mark.parametrize("workers", [0, 2])
def test_evaluation_visits_everything_once_in_order(workers):
    loader = make_loader(Toy(transform=eval_transform(16)), 4, train=False, workers=workers)
    batches = list(loader)
    assert len(loader) == len(batches) == 3
    assert ids(batches) == [f"toy {i}" for i in range(10)]
    assert [len(batch["meta"]) for batch in batches] == [4, 4, 2]
    assert batches[0]["meta"][0] == {"id": "toy 0", "size": (12, 16), "offset": (2, 0)}


@given(st.integers(1, 20), st.integers(1, 5), st.integers(1, 6))
def test_evaluation_ranks_share_without_duplicates(count, batch_size, world_size):
    data = Toy(count, eval_transform(16))
    shares = [
        ids(make_loader(data, batch_size, train=False, rank=rank, world_size=world_size)) for rank in range(world_size)
    ]
    assert sorted(chain.from_iterable(shares)) == sorted(data.ids)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_bad_file_is_one_sentence_also_from_a_worker(workers):
    batches = iter(make_loader(Toy(transform=eval_transform(16), broken=5), 3, train=False, workers=workers))
    assert ids([next(batches)]) == ["toy 0", "toy 1", "toy 2"]
    with pytest.raises(UserError, match=r"^toy.png is damaged; draw it again.$"):
        next(batches)


def test_a_training_loader_has_no_length(training):
    with pytest.raises(TypeError, match="endless"):
        len(make_loader(training, 2, train=True))


@pytest.mark.parametrize("numbers", [{"batch_size": 0}, {"rank": 2, "world_size": 2}, {"rank": -1}])
def test_numbers_that_make_no_batch_are_refused(training, numbers):
    with pytest.raises(UserError, match="No batch can be made of 10 samples"):
        make_loader(training, **{"batch_size": 2, "train": True, **numbers})
    with pytest.raises(UserError, match="No batch can be made of 0 samples"):
        make_loader(Toy(0, train_transform(8)), 2, train=True)


def test_a_data_set_without_transform_is_refused():
    with pytest.raises(UserError, match="give the data set a transform"):
        make_loader(Toy(), 2, train=False)


def test_collate_hands_an_error_on():
    error = UserError("bad; mend it.")
    assert collate([{"meta": {}}, error]) is error
