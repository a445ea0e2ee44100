"""A teacher's logit cache beside the rows that a student reads.

A row is checked when the cache is opened: the digest of its token ids and target marks must be the
one that the teacher's pass recorded, or the run stops.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from transformers import PreTrainedTokenizerBase

from angelshare.data.sequences import EncodedRow
from angelshare.data.tokenizer import tokenizer_digest
from angelshare.errors import AngelshareError
from angelshare.student.losses import grid_index
from angelshare.teacher.cache import LogitCache
from angelshare.teacher.states import StateCache


@dataclass(frozen=True, slots=True, kw_only=True)
class TeacherTargets:
    """What a teacher's cache keeps of a sequence's n targets: K tokens in all."""

    kept: np.ndarray
    """int32 [n], how many tokens each position has; sums to K."""
    token_ids: np.ndarray
    """int32 [K], one position after the other."""
    logits: np.ndarray
    """float32 [K], log-probabilities at temperature 1, or the logarithm of a sample's weights."""
    log_partition: np.ndarray
    """float32 [n], at the temperature of the loss."""
    tail: bool
    """Whether the mass that is missing belongs to other tokens; a sample's weights sum to 1."""


class CachedTeacher:
    """One teacher's cache beside the rows that it was made from."""

    def __init__(
        self,
        rows: Sequence[EncodedRow],
        tokenizer: PreTrainedTokenizerBase,
        max_length: int,
        cache: LogitCache,
        temperature: float,
    ) -> None:
        self.column = grid_index(temperature, cache.info.temperatures)
        codec = cache.info.codec
        if not codec.tail and temperature != 1.0:
            raise AngelshareError(
                f"temperature {temperature}: this logit cache holds draws from the teacher at "
                f"temperature 1 (codec {codec.name}), whose weights are right for no other. Use "
                "temperature 1, or capture with the codec topk_tail"
            )
        what = f"logit cache ({cache.info.vocab_size} tokens)"
        same_tokenizer(tokenizer, cache.info.tokenizer_sha256, what, by_rank=codec.tail)
        self.cache = cache
        self._cache_rows = aligned(rows, cache, max_length)

    def targets(self, index: int) -> TeacherTargets:
        """What the teacher said at the targets of row ``index``."""
        cached = self.cache.row(self._cache_rows[index])
        return TeacherTargets(
            kept=cached.kept,
            token_ids=cached.token_ids,
            logits=cached.logits,
            log_partition=cached.log_partition[:, self.column],
            tail=self.cache.info.codec.tail,
        )


def same_tokenizer(
    tokenizer: PreTrainedTokenizerBase, sha256: str, what: str, *, by_rank: bool = False
) -> None:
    """Raise ``AngelshareError`` unless ``what`` was made with the student's tokenizer.

    ``by_rank``: whether it may be compared by rank instead, which the message then says.
    """
    found = tokenizer_digest(tokenizer)
    if sha256 != found:
        ranks = ", or compare ranks instead of tokens (loss.divergence: uld)" if by_rank else ""
        raise AngelshareError(
            f"the {what} was made with another tokenizer (digest {sha256}; the student's: "
            f"{len(tokenizer)} tokens, {found}): ids, special tokens or chat template mean "
            "different things on the two sides. Use the teacher's tokenizer, or distil from a "
            f"synthetic corpus{ranks}"
        )


def aligned(
    rows: Sequence[EncodedRow], cache: LogitCache | StateCache, max_length: int
) -> list[int]:
    """The cache row of each row; ``AngelshareError`` names the first that is missing or differs."""
    places = {row_id: (number, digest) for number, (row_id, digest) in enumerate(cache.keys())}
    if len(places) != len(cache):
        raise AngelshareError("the cache's parts hold a row id twice; they do not belong together")
    found = []
    for row_id, encoded in rows:
        if row_id not in places:
            raise AngelshareError(
                f"row {row_id!r} is not in the cache ({len(cache)} rows), so it was made from "
                "another table. Capture the table the student trains on"
            )
        number, digest = places[row_id]
        if digest != encoded.sha256:
            raise AngelshareError(
                f"row {row_id!r}: the cache was made from other tokens. Its digest of ids and "
                f"targets is {digest.hex()}, the student's is {encoded.sha256.hex()}. Tokenizer, "
                f"chat template, messages and max_length (here {max_length}) must be those of the "
                "teacher's pass; otherwise capture anew"
            )
        found.append(number)
    return found
