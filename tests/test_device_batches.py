"""Where a sample is augmented makes no difference: loading processes may only read, the training process goes on."""

import threading
from contextlib import contextmanager
from math import prod

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_loaders import assert_equal, first, ids
from test_transforms import LABELS, make_sample, tensors

from mlore_edu.data import device_batches
from mlore_edu.data.datasets import LabelledImages
from mlore_edu.data.device_batches import ALIGNMENT, StoredBatch, one_ahead
from mlore_edu.data.loaders import make_loader
from mlore_edu.data.transforms import eval_transform, train_transform
from mlore_edu.errors import UserError
from mlore_edu.tasks import DOLLHOUSE

CPU = torch.device("cpu")
SHAPES = st.lists(st.integers(1, 7), min_size=1, max_size=3)
DTYPES = st.sampled_from([torch.uint8, torch.int16, torch.float32, torch.float64])


class Varied(LabelledImages):
    """Seven images of seven sizes with all six labels; ``broken`` cannot be read."""

    offers = DOLLHOUSE

    def __init__(self, transform, broken=None):
        super().__init__([f"image {i}" for i in range(7)], DOLLHOUSE, transform)
        self.broken = broken

    def load(self, index):
        if index == self.broken:
            raise UserError("image.png is damaged; draw it again.")
        sample = make_sample(20 + index, 30 - index, seed=index)
        return {**sample, "meta": {"id": self.ids[index], "size": (20 + index, 30 - index)}}


@pytest.fixture
def data():
    return Varied(train_transform((16, 18)))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("where", [{}, {"start_iteration": 5}, {"rank": 1, "world_size": 2, "start_iteration": 2}])
def test_batches_are_those_of_the_ordinary_loader_bit_for_bit(data, workers, where):
    arguments = {"batch_size": 3, "train": True, "seed": 4, **where}
    ordinary = first(make_loader(data, **arguments), 4)
    here = first(make_loader(data, **arguments, workers=workers, device=CPU), 4)
    assert_equal(here, ordinary)
    for batch, other in zip(here, ordinary):
        assert list(batch) == list(other)
        assert all(type(batch[name]) is torch.Tensor for name in LABELS | {"image"})


def test_evaluation_on_a_device_visits_the_same_once():
    data = Varied(eval_transform(32))
    loader = make_loader(data, 3, train=False, device=CPU)
    assert_equal(list(loader), list(make_loader(data, 3, train=False)))
    assert len(loader) == 3


@pytest.mark.parametrize("workers", [0, 1])
def test_a_bad_file_is_one_sentence_when_its_turn_comes(workers):
    data = Varied(eval_transform(32), broken=3)
    batches = iter(make_loader(data, 3, train=False, workers=workers, device=CPU))
    assert ids([next(batches)]) == ["image 0", "image 1", "image 2"]
    with pytest.raises(UserError, match=r"^image.png is damaged; draw it again.$"):
        next(batches)
    with pytest.raises(UserError, match="image 0 is 20×30, larger than the frame"):
        next(iter(make_loader(Varied(eval_transform(8)), 2, train=False, workers=workers, device=CPU)))


@given(st.lists(st.dictionaries(st.sampled_from("abcde"), st.tuples(SHAPES, DTYPES)), min_size=1, max_size=3))
@settings(max_examples=40)
def test_samples_come_out_of_one_stretch_of_memory_as_they_went_in(layouts):
    samples = [
        {
            "draw": draw,
            **{name: torch.arange(prod(shape)).view(shape).to(dtype) for name, (shape, dtype) in its.items()},
        }
        for draw, its in enumerate(layouts)
    ]
    stored = StoredBatch.of(samples)
    assert stored.content.dtype == torch.uint8
    for sample, other in zip(stored.on(CPU), samples, strict=True):
        assert list(sample) == list(other)
        assert sample.pop("draw") == other.pop("draw")
        for name, value in sample.items():
            assert value.dtype == other[name].dtype
            assert torch.equal(value, other[name])
            assert value.storage_offset() * value.element_size() % ALIGNMENT == 0


def test_labels_keep_their_types_and_a_batch_travels_as_one_tensor():
    samples = [make_sample(5, 7), make_sample(9, 4, seed=1)]
    samples[0]["image"] = samples[0]["image"][:, :, ::2]  # not contiguous
    stored = StoredBatch.of(samples)
    unpacked = stored.on(CPU)
    for sample, other in zip(unpacked, samples, strict=True):
        assert sample["meta"] == other["meta"]
        for name in LABELS | {"image"}:
            assert type(sample[name]) is type(other[name])
            assert torch.equal(sample[name], other[name])
    assert not any(isinstance(v, torch.Tensor) for shell in stored.samples for v in shell.values())
    total = sum(value.nbytes for sample in samples for value in tensors(sample).values())
    assert total <= stored.content.nbytes < total + 14 * ALIGNMENT


def test_the_stored_samples_are_copied_and_not_changed_by_augmenting_them(data):
    sample = data.load(0)
    stored = StoredBatch.of([{**sample, "draw": 0}])
    before = stored.content.clone()
    data.transform(stored.on(CPU)[0], torch.Generator().manual_seed(0))
    assert torch.equal(stored.content, before)
    sample["image"].zero_()
    assert torch.equal(stored.content, before)


def test_only_the_semantic_labels_are_fetched_from_a_device_and_only_once():
    """On torch's device "meta", tensors have no values: any step that asked for one would fail."""
    pieces = {name: value.to("meta") for name, value in make_sample().items() if name not in ("semseg", "meta")}
    for seed in range(20):
        targets = train_transform((16, 18))({**pieces}, torch.Generator().manual_seed(seed))
        assert {value.device.type for name, value in targets.items() if name != "meta"} == {"meta"}
        assert {value.shape[-2:] for name, value in targets.items() if name != "meta"} == {(16, 18)}

    class Fetched(type(make_sample()["semseg"])):
        count = 0

        def cpu(self):
            Fetched.count += 1
            return super().cpu()

    sample = make_sample()
    sample["semseg"] = torch.zeros(24, 32, dtype=torch.uint8).as_subclass(Fetched)  # no crop will do: ten tries
    train_transform((16, 18), scale=(1, 1))(sample, torch.Generator().manual_seed(0))
    assert Fetched.count == 1


def test_the_next_batch_is_prepared_while_this_one_is_used_and_not_more():
    taken, thread_names = [], set()

    def batches():
        for number in range(4):
            taken.append(number)
            thread_names.add(threading.current_thread().name)
            began.set()
            yield {"number": number}

    began = threading.Event()
    ahead = one_ahead(batches(), CPU)
    assert taken == []  # nothing is loaded before the first batch is asked for
    assert next(ahead) == {"number": 0}
    while len(taken) < 2:
        began.wait(5)
    assert next(ahead) == {"number": 1}
    assert [batch["number"] for batch in ahead] == [2, 3]
    assert threading.current_thread().name not in thread_names


def test_on_a_gpu_a_stream_of_its_own_is_waited_for_and_its_memory_kept(monkeypatch):
    said = []

    class Stream:
        def __init__(self, device):
            said.append(f"stream on {device}")

        def synchronize(self):
            said.append("waited")

    class Streams:
        current_stream = staticmethod(lambda device: "the step's")

        @staticmethod
        @contextmanager
        def stream(stream):
            assert isinstance(stream, Stream)
            said.append("begin")
            yield
            said.append("end")

    Streams.Stream = Stream

    class OnDevice(torch.Tensor):
        def record_stream(self, stream):
            said.append(f"kept for {stream}")

    monkeypatch.setattr(device_batches.torch, "get_device_module", lambda device: Streams)
    batch = {"image": torch.zeros(1).as_subclass(OnDevice), "meta": []}
    assert list(one_ahead([batch], torch.device("meta"))) == [batch]
    assert said[:4] == ["stream on meta", "begin", "end", "waited"]
    assert said.count("kept for the step's") == 1
