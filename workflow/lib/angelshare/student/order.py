"""Which rows each process reads in which pass.

The order of the data decides a student, so it must not depend on how many processes share the work:
every optimizer step reads the same rows, the next ones of a permutation that seed and epoch decide,
and they are dealt out to the processes. The last step of an epoch has what is left. Every process
makes equally many passes in every step, because each pass is a collective operation; one that has
run out of rows reads a row without targets, which counts for nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from accelerate.data_loader import SeedableRandomSampler
from torch.utils.data import DataLoader, Dataset, Sampler

from angelshare.student.dataset import EncodedDataset, Example

NOTHING = -1
"""Index of the row without targets."""


class Passes(Sampler[list[int]]):
    """The row numbers of each forward pass of one process in one epoch."""

    def __init__(
        self, rows: int, *, batch: int, accumulation: int, rank: int, world: int, seed: int
    ) -> None:
        """``batch`` and ``accumulation`` are those of each of the ``world`` processes."""
        self.rows, self.batch, self.accumulation = rows, batch, accumulation
        self.rank, self.world = rank, world
        self.order = SeedableRandomSampler(range(rows), generator=torch.Generator(), data_seed=seed)

    def set_epoch(self, epoch: int) -> None:
        """Choose the permutation."""
        self.order.set_epoch(epoch)

    def __len__(self) -> int:
        step = self.batch * self.accumulation * self.world
        whole, left = divmod(self.rows, step)
        return whole * self.accumulation + self._passes(left)

    def __iter__(self) -> Iterator[list[int]]:
        order = list(self.order)
        step = self.batch * self.accumulation * self.world
        for begin in range(0, self.rows, step):
            rows = order[begin : begin + step]
            mine = np.array_split(np.asarray(rows), self.world)[self.rank].tolist()
            for number in range(self._passes(len(rows))):
                here = mine[number * self.batch : (number + 1) * self.batch]
                yield here or [NOTHING]

    def _passes(self, rows: int) -> int:
        """Of one optimizer step over so many rows."""
        return -(-rows // (self.world * self.batch))


class WithNothing(Dataset[Example]):
    """A dataset's rows, and under ``NOTHING`` one without targets."""

    def __init__(self, dataset: Dataset[Example]) -> None:
        self.dataset = dataset

    def __getitem__(self, index: int) -> Example:
        if index != NOTHING or not isinstance(self.dataset, EncodedDataset):
            return self.dataset[index]
        return self.dataset.nothing()


class PassLoader(DataLoader[Any]):
    """Batches in the order of `Passes`, by epoch as the Trainer counts them."""

    def set_epoch(self, epoch: int) -> None:
        """Choose the permutation."""
        self.batch_sampler.set_epoch(epoch)  # type: ignore[union-attr]
