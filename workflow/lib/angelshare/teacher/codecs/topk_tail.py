"""The exact head of a distribution, cut at top-k and top-p, and the mass of all the rest.

Kept log-probabilities x_j and, for every grid temperature, the tail t_T = log sum of
exp(logit_v / T) over the tokens that are not kept have float16's precision and are relative to the
teacher's partition at T = 1. The partition is not stored beside them but follows from them:
Z_T = sum_j exp(x_j / T) + exp(t_T), so that head and tail sum to 1 at every temperature whatever
the rounding, and a small tail keeps its digits, which 1 - sum_j p_j would lose.

Rounding: a stored value is within 2^-11 of its own size, at most 2^-8 (0.4 % of the probability)
for what is more probable than exp(-16).
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
class TopkTail(Codec):
    """See the module."""

    top_k: int
    """Most tokens kept at a position."""
    top_p: float
    """Tokens after the fewest that hold this probability are not kept."""

    name: ClassVar[str] = "topk_tail"
    version: ClassVar[int] = 1
    tail: ClassVar[bool] = True
    fields: ClassVar[tuple[pa.Field, ...]] = (
        list_field("token_ranks", pa.int32()),
        list_field("logprobs", pa.float32()),
        list_field("log_tail", pa.float32()),
    )
    decoding: ClassVar[str] = (
        "kept[i] tokens belong to position i of a row, most probable first; log_tail holds, for "
        "each position, one value per temperature T. p_T(j) = exp(logprobs[j] / T) / (sum over "
        "the position's kept tokens of exp(logprobs / T) + exp(log_tail at T)); the rest of the "
        "mass at T is the tail's. At T = 1 logprobs are log-probabilities as they stand, up to "
        "rounding."
    )

    def encode(self, rows: Sequence[CachedTargets], ranks: np.ndarray) -> dict[str, pa.Array]:
        return {
            "token_ranks": as_lists([ranks[row.token_ids] for row in rows]),
            "logprobs": as_lists([half(row.logits) for row in rows]),
            "log_tail": as_lists([half(row.log_tail) for row in rows]),
        }

    def decode(
        self,
        columns: Mapping[str, Lists],
        row: int,
        kept: np.ndarray,
        ids: np.ndarray,
        temperatures: tuple[float, ...],
    ) -> dict[str, np.ndarray]:
        stored = columns["logprobs"][row]
        log_tail = columns["log_tail"][row].reshape(-1, len(temperatures))
        starts = np.cumsum(kept) - kept
        heads = [np.add.reduceat(np.exp(stored / t), starts) for t in temperatures]
        log_z = np.log(np.stack(heads, -1) + np.exp(log_tail))
        at_one = log_z[:, [temperatures.index(1.0)]]
        shift = at_one / np.asarray(temperatures, np.float32)
        return {
            "token_ids": ids[columns["token_ranks"][row]],
            "logits": stored - np.repeat(at_one[:, 0], kept),
            "log_partition": log_z - shift,
            "log_tail": log_tail - shift,
        }
