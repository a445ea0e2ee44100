"""A sequence's cached targets as arrays, the same for every codec; and lists of lists for Parquet.

The tokens kept at a sequence's n positions stand one position after the other in flat arrays;
``kept`` says how many belong to each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import pyarrow as pa


@dataclass(frozen=True, slots=True, kw_only=True)
class CachedTargets:
    """One sequence's n target positions, with K tokens kept in all and G grid temperatures."""

    id: str
    """The sequence's id in its table."""
    tokens_sha256: bytes
    """``Encoded.sha256`` of the sequence the teacher read."""
    kept: np.ndarray
    """int32 [n], tokens kept at each position, at least 1; sums to K."""
    token_ids: np.ndarray
    """int32 [K], heaviest first within a position and different there."""
    logits: np.ndarray
    """float32 [K], log-probabilities at T = 1 in nats, or the logarithm of a sample's weights."""
    log_partition: np.ndarray
    """float32 [n, G], log sum_v p_v^(1/T) over the whole vocabulary; 0 at T = 1."""
    log_tail: np.ndarray
    """float32 [n, G], the same over the tokens that are not kept; -inf where there is none."""
    gold_logprob: np.ndarray
    """float32 [n], of the token that really stands there."""
    entropy: np.ndarray
    """float32 [n], in nats at T = 1."""


def as_lists(arrays: Sequence[np.ndarray]) -> pa.ListArray:
    """One list per array, whatever the arrays' shapes; all of one dtype."""
    ends = accumulate((array.size for array in arrays), initial=0)
    values = pa.array(np.concatenate([array.ravel() for array in arrays]))
    return pa.ListArray.from_arrays(pa.array(list(ends), pa.int32()), values)


def half(values: np.ndarray) -> np.ndarray:
    """float32 with the precision of float16: the zeros it leaves at the end compress to little.

    Stored so because some Parquet readers (DuckDB) do not read float16 split into bytes.
    """
    return values.astype(np.float16).astype(np.float32)


def list_field(name: str, type_: pa.DataType) -> pa.Field:
    """A column of lists without nulls."""
    return pa.field(name, pa.list_(pa.field("element", type_, nullable=False)), nullable=False)


class Lists:
    """A column of lists read back: one flat array and where each row starts in it."""

    def __init__(self, column: pa.ChunkedArray) -> None:
        array = column.combine_chunks()
        self.ends = array.offsets.to_numpy()
        self.flat = array.values.to_numpy(zero_copy_only=False)

    def __getitem__(self, row: int) -> np.ndarray:
        part: np.ndarray = self.flat[self.ends[row] : self.ends[row + 1]]
        return part
