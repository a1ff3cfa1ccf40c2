"""From the loading processes to a GPU in one piece, and one batch ahead of the training step (chapter 16).

About half of what a loading process does is augmenting (``benchmarks/loading.py``). Where cores are few and the GPU is
fast, the loading processes therefore only read, and the training process augments on its device
(``make_loader(..., device=...)``). Samples as they are stored have many tensors of many sizes: a
:class:`StoredBatch` lays them one after the other in one stretch of bytes, so that a batch is one message between
processes and one transfer to the GPU. :func:`one_ahead` prepares the next batch while the GPU is busy with this one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import prod
from typing import Any, NamedTuple

import torch

from mlore_edu.data.tensors import Sample

ALIGNMENT = 16
"""Tensors begin at multiples of so many bytes, which suits all types and a GPU's widest loads."""


class Piece(NamedTuple):
    """One tensor in a stretch of bytes: where it begins, and what it is."""

    start: int
    kind: type[torch.Tensor]
    dtype: torch.dtype
    shape: torch.Size

    @property
    def end(self) -> int:
        return self.start + prod(self.shape) * self.dtype.itemsize

    def of(self, content: torch.Tensor) -> torch.Tensor:
        """The tensor, typed as it was; it shares its memory with ``content`` (bytes,)."""
        return content[self.start : self.end].view(self.dtype).view(self.shape).as_subclass(self.kind)


@dataclass(frozen=True)
class StoredBatch:
    """Samples of any sizes whose tensors lie in one stretch of memory.

    Parameters
    ----------
    content
        uint8 (bytes,), all tensors one after the other.
    samples
        The samples, with a :class:`Piece` in place of every tensor.
    """

    content: torch.Tensor
    samples: tuple[Sample, ...]

    @classmethod
    def of(cls, samples: Sequence[Sample]) -> StoredBatch:
        """Copy samples into one stretch of memory."""
        end, laid_out = 0, []
        for sample in samples:
            shell: Sample = dict(sample)
            for name, value in sample.items():
                if isinstance(value, torch.Tensor):
                    start = -(-end // ALIGNMENT) * ALIGNMENT
                    shell[name] = Piece(start, type(value), value.dtype, value.shape)
                    end = shell[name].end
            laid_out.append(shell)
        content = torch.empty(end, dtype=torch.uint8)
        for sample, shell in zip(samples, laid_out, strict=True):
            for name, piece in shell.items():
                if isinstance(piece, Piece):
                    piece.of(content).copy_(sample[name])
        return cls(content, tuple(laid_out))

    def pin_memory(self) -> StoredBatch:
        """The same in memory that a GPU can fetch from by itself; DataLoader calls this."""
        return StoredBatch(self.content.pin_memory(), self.samples)

    def on(self, device: torch.device) -> list[Sample]:
        """The samples, their tensors on a device; of pinned memory the copy is only started, not waited for."""
        content = self.content.to(device, non_blocking=True)
        return [
            {name: value.of(content) if isinstance(value, Piece) else value for name, value in sample.items()}
            for sample in self.samples
        ]


def one_ahead(batches: Iterable[dict[str, Any]], device: torch.device) -> Iterator[dict[str, Any]]:
    """Batches as they come, each prepared by another thread while its predecessor is used.

    Parameters
    ----------
    batches
        Taking one computes it, on ``device``; an error in that is raised when its turn comes.
    device
        Of a GPU, a stream of its own is used, so that the work overlaps with that of the training step.
    """
    remaining = iter(batches)
    streams: Any = torch.get_device_module(device)
    stream = None if device.type == "cpu" else streams.Stream(device)

    def prepare() -> dict[str, Any] | None:
        with streams.stream(stream):
            batch = next(remaining, None)
        if stream is not None:
            stream.synchronize()  # this thread waits, the training step does not
        return batch

    with ThreadPoolExecutor(max_workers=1) as thread:
        coming = thread.submit(prepare)
        while (batch := coming.result()) is not None:
            coming = thread.submit(prepare)
            for value in batch.values():
                if stream is not None and isinstance(value, torch.Tensor):
                    # Memory of one stream must not be given away before another one that reads it is done.
                    value.record_stream(streams.current_stream(device))
            yield batch
