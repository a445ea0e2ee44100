"""A teacher that reads with another tokenizer: which of its targets a student's target learns from.

Both sides read the same conversations, each in its own tokens. A target of the student has a
partner where one of the teacher's follows the same text of the same answer
(`angelshare.data.sequences.Place`); what comes next is then the same question to both. The others
learn from their labels alone. Pairing the i-th target with the i-th, as published with universal
logit distillation, compares different texts from the first token on that is cut differently.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from transformers import PreTrainedTokenizerBase

from angelshare.data.sequences import Encoded, EncodedRow, Place, encode_with_places
from angelshare.errors import AngelshareError
from angelshare.student.cached import CachedTeacher, TeacherTargets
from angelshare.teacher.cache import LogitCache

NONE = -1
"""Stands for no partner."""
Placed = dict[str, tuple[Encoded, list[Place | None]]]


@dataclass(frozen=True, slots=True)
class Reader:
    """What a teacher read with, where that need not be the student's."""

    tokenizer: PreTrainedTokenizerBase
    max_length: int
    """Of its sequences, in its own tokens."""


def read_with(table: pa.Table, tokenizer: PreTrainedTokenizerBase, max_length: int) -> Placed:
    """The rows of ``table`` that have targets, by id, with the places of their targets."""
    found: Placed = {}
    columns = (table["id"].to_pylist(), table["messages"].to_pylist())
    for row_id, messages in zip(*columns, strict=True):
        try:
            read = encode_with_places(tokenizer, messages, max_length)
        except AngelshareError as error:
            raise AngelshareError(f"row {row_id}: {error}") from error
        if read is not None:
            found[row_id] = read
    return found


def partners(student: Sequence[Place | None], teacher: Sequence[Place | None]) -> np.ndarray:
    """int32 [n]: the number of the teacher's target that each of the student's n has, or ``NONE``.

    No two share one.
    """
    known: Mapping[Place, int] = {p: n for n, p in enumerate(teacher) if p is not None}
    found = [NONE if place is None else known.get(place, NONE) for place in student]
    return np.asarray(found, np.int32)


def chosen(lengths: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Where the elements of some lists stand in all lists, one after the other.

    ``lengths`` [m] are those of all lists, ``wanted`` [n] the numbers of the lists to take.
    """
    counts = lengths[wanted]
    starts = (np.cumsum(lengths) - lengths)[wanted]
    shift = np.repeat(starts - (np.cumsum(counts) - counts), counts)
    return shift + np.arange(counts.sum())


class PairedTeacher(CachedTeacher):
    """A teacher's cache over its own tokens of the rows, and the partner of each target there."""

    def __init__(
        self,
        rows: Sequence[EncodedRow],
        places: Sequence[Sequence[Place | None]],
        read: Placed,
        reader: Reader,
        cache: LogitCache,
        temperature: float,
    ) -> None:
        """``places`` are those of the targets of ``rows``; ``read`` is what the teacher read."""
        common = [row for row in rows if row.id in read]
        super().__init__(
            [EncodedRow(row.id, read[row.id][0]) for row in common],
            reader.tokenizer,
            reader.max_length,
            cache,
            temperature,
        )
        found = dict(zip((row.id for row in common), self._cache_rows, strict=True))
        self._cache_rows = [found.get(row.id, NONE) for row in rows]
        self._partners = [
            partners(own, read[row.id][1] if row.id in read else [])
            for row, own in zip(rows, places, strict=True)
        ]
        every = np.concatenate(self._partners)
        self.paired = float((every != NONE).mean())
        if not self.paired:
            raise AngelshareError(
                "no target of the student follows the same text as one of the teacher's: a chat "
                "template changes the answers, or max_length cuts all of them off. Distil from a "
                "synthetic corpus instead"
            )

    def targets(self, index: int) -> TeacherTargets:
        """What the teacher said at the partners of the targets of row ``index``."""
        partners_n = self._partners[index]
        has = partners_n != NONE
        kept = np.zeros(len(partners_n), np.int32)
        partition = np.zeros(len(partners_n), np.float32)
        tokens, logits = np.zeros(0, np.int32), np.zeros(0, np.float32)
        if has.any():
            every = super().targets(index)
            wanted = partners_n[has]
            kept[has], partition[has] = every.kept[wanted], every.log_partition[wanted]
            here = chosen(every.kept, wanted)
            tokens, logits = every.token_ids[here], every.logits[here]
        return TeacherTargets(
            kept=kept,
            token_ids=tokens,
            logits=logits,
            log_partition=partition,
            tail=self.cache.info.codec.tail,
        )
