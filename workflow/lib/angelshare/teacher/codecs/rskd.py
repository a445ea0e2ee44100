"""Draws from the teacher's distribution: few bytes, and right on average.

Random sampling KD (Anshumann et al. 2025, arXiv:2503.16870): N draws from p itself, where every
draw has importance weight 1 / N, so a token's weight is its count over N, the weights of a position
sum to 1 and their expectation is p: the gradient of the forward KL is unbiased, and there is no
tail. The draws are systematic, one uniform number u per position and the quantiles (i + u) / N:
each count then is N p rounded down or up, still unbiased, where independent draws scatter
(mean squared error five times as large on SmolLM2-135M, for 11 % fewer distinct tokens).

Weights for T ≠ 1 would be p^(1/T) / p at the drawn tokens: the ratio is unbounded in the tail,
where at T = 2 a third of the mass lies and few draws fall. Neither the method nor this codec does
that; a loss at another temperature is refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pyarrow as pa

from angelshare.teacher.codecs.codec import Codec
from angelshare.teacher.codecs.rows import CachedTargets, Lists, as_lists, half, list_field


@dataclass(frozen=True, slots=True)
class Rskd(Codec):
    """See the module."""

    samples: int
    """N, the draws at a position."""
    seed: int
    """With the row's id, decides its draws."""

    name: ClassVar[str] = "rskd"
    version: ClassVar[int] = 1
    tail: ClassVar[bool] = False
    fields: ClassVar[tuple[pa.Field, ...]] = (
        list_field("token_ranks", pa.int32()),
        list_field("counts", pa.int32()),
        list_field("log_partition", pa.float32()),
    )
    decoding: ClassVar[str] = (
        "kept[i] tokens belong to position i of a row, most drawn first. counts[j] / samples is an "
        "unbiased estimate of the token's probability at T = 1; a position's counts sum to "
        "samples. log_partition holds, for each position, log sum_v p(v)^(1/T) over the whole "
        "vocabulary for every temperature T."
    )

    def encode(self, rows: Sequence[CachedTargets], ranks: np.ndarray) -> dict[str, pa.Array]:
        counts = [np.rint(np.exp(row.logits) * self.samples).astype(np.int32) for row in rows]
        return {
            "token_ranks": as_lists([ranks[row.token_ids] for row in rows]),
            "counts": as_lists(counts),
            "log_partition": as_lists([half(row.log_partition) for row in rows]),
        }

    def decode(
        self,
        columns: Mapping[str, Lists],
        row: int,
        kept: np.ndarray,
        ids: np.ndarray,
        temperatures: tuple[float, ...],
    ) -> dict[str, np.ndarray]:
        partition = columns["log_partition"][row]
        log_partition = partition.reshape(-1, len(temperatures))
        return {
            "token_ids": ids[columns["token_ranks"][row]],
            "logits": np.log(columns["counts"][row].astype(np.float32) / self.samples),
            "log_partition": log_partition,
            "log_tail": np.full_like(log_partition, -np.inf),
        }
