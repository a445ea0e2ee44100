"""Training data as tensors: encoded conversations, with the teacher's cached targets if any.

A row is checked against the cache when it is opened: the digest of its token ids and target marks
must be the one that the teacher's pass recorded, or the run stops. Batches are padded on the right
(a causal model never sees what follows, so padding changes nothing) and labels are -100 off target.
The teacher's targets of a batch are flattened over rows, in the order in which
`losses.target_logits` picks positions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase

from angelshare.data.sequences import Encoded, EncodedRow, encode_table
from angelshare.data.tokenizer import tokenizer_digest
from angelshare.errors import AngelshareError
from angelshare.student.losses import IGNORED, grid_index
from angelshare.teacher.cache import LogitCache
from angelshare.teacher.states import StateCache, StatesInfo, kept_positions

Batch = dict[str, Any]


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


@dataclass(frozen=True, slots=True)
class RowStates:
    """A teacher's m hidden states of a sequence in each of L layers, and where they stand."""

    vectors_LMW: np.ndarray
    """float32; m is the number of kept positions, or 1 for their mean, or 0 for nothing."""
    kept_T: np.ndarray
    """bool, the positions that are kept or enter the mean."""


@dataclass(frozen=True, slots=True)
class Example:
    """One sequence: ids and target marks, and what the teacher said at its targets."""

    encoded: Encoded
    teacher: TeacherTargets | None
    states: Mapping[str, RowStates] = field(default_factory=dict)
    """Hidden states by the role in which they are read."""
    others: tuple[TeacherTargets, ...] = ()
    """Of further teachers, in their order."""


class EncodedDataset(Dataset[Example]):
    """The rows of a sequence table that have targets, in table order.

    ``dropped`` counts the rows without any (no answer, or an answer beyond ``max_length``).
    """

    workers = 0
    """Processes that should make batches ahead of the training."""

    def __init__(
        self, table: pa.Table, tokenizer: PreTrainedTokenizerBase, max_length: int
    ) -> None:
        """Encode ``table``; ``AngelshareError`` when no row has a target."""
        self.rows: list[EncodedRow] = encode_table(table, tokenizer, max_length)
        self.dropped = table.num_rows - len(self.rows)
        if not self.rows:
            raise AngelshareError(
                f"none of {table.num_rows} rows has an assistant token within {max_length} tokens: "
                "check the split and max_length"
            )

        self._tokenizer, self._max_length = tokenizer, max_length
        self._states: dict[str, tuple[StateCache, list[int]]] = {}

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Example:
        return Example(self.rows[index].encoded, None, self._states_of(index))

    def attach(self, role: str, cache: StateCache) -> None:
        """Give every example the hidden states of ``cache`` under ``role``.

        ``AngelshareError`` as for a logit cache that is not of these rows.
        """
        same_tokenizer(self._tokenizer, cache.info.tokenizer_sha256, "cache of hidden states")
        self._states[role] = cache, _aligned(self.rows, cache, self._max_length)
        self.workers = max(self.workers, 0 if cache.stays_in_memory else 1)

    def states_read(self) -> dict[str, StatesInfo]:
        """What each attached cache says of itself, by role."""
        return {role: cache.info for role, (cache, _) in self._states.items()}

    def nothing(self) -> Example:
        """A row without targets or hidden states, which counts for nothing."""
        encoded = self.rows[0].encoded.without_targets()
        nowhere = np.zeros(len(encoded.input_ids), bool)
        return Example(
            encoded,
            None,
            {
                role: RowStates(np.zeros((len(info.layers), 0, info.width), np.float32), nowhere)
                for role, info in self.states_read().items()
            },
        )

    def _states_of(self, index: int) -> dict[str, RowStates]:
        encoded, found = self.rows[index].encoded, {}
        for role, (cache, places) in self._states.items():
            cached = cache.row(places[index])
            kept = kept_positions(encoded, cache.info.positions, cached.chosen)
            found[role] = RowStates(cached.vectors(), kept)
        return found


class DistilledDataset(EncodedDataset):
    """Encoded rows with the cached distributions of teachers that read exactly these tokens."""

    def __init__(
        self,
        table: pa.Table,
        tokenizer: PreTrainedTokenizerBase,
        max_length: int,
        cache: LogitCache,
        temperature: float,
        others: Sequence[LogitCache] = (),
    ) -> None:
        """Encode ``table`` and align every row with ``cache`` and those of ``others``.

        ``AngelshareError`` when a row is not in a cache or was other tokens there, when the
        tokenizers differ, or when ``temperature`` is not one of a cache's grid.
        """
        super().__init__(table, tokenizer, max_length)
        caches = (cache, *others)
        self.workers = 0 if all(one.stays_in_memory for one in caches) else 1
        self._teachers = [
            _CachedTeacher(self.rows, tokenizer, max_length, one, temperature) for one in caches
        ]

    def __getitem__(self, index: int) -> Example:
        first, *others = (teacher.targets(index) for teacher in self._teachers)
        states = self._states_of(index)
        return Example(self.rows[index].encoded, first, states, tuple(others))


class _CachedTeacher:
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
        same_tokenizer(tokenizer, cache.info.tokenizer_sha256, what)
        self.cache = cache
        self._cache_rows = _aligned(rows, cache, max_length)

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


def same_tokenizer(tokenizer: PreTrainedTokenizerBase, sha256: str, what: str) -> None:
    """Raise ``AngelshareError`` unless ``what`` was made with the student's tokenizer."""
    found = tokenizer_digest(tokenizer)
    if sha256 != found:
        raise AngelshareError(
            f"the {what} was made with another tokenizer (digest {sha256}; the student's: "
            f"{len(tokenizer)} tokens, {found}): ids, special tokens or chat template mean "
            "different things on the two sides. Use the teacher's tokenizer, or distil from a "
            "synthetic corpus instead"
        )


def _aligned(
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


def collator(pad_id: int) -> Callable[[Sequence[Example]], Batch]:
    """A function from examples to a batch.

    ``input_ids``, ``attention_mask`` and ``labels`` are int64 [B, L]; where examples carry a
    teacher, ``teacher_ids`` int64 [T, K], ``teacher_logits`` float32 [T, K] and
    ``teacher_log_partition`` float32 [T] follow, T being the batch's target positions and K the
    most tokens that one of them has; unused slots hold id 0 and -inf. ``teacher_tail`` says whether
    what the slots lack of the mass 1 is the other tokens' (``TeacherTargets.tail``). The same of
    further teachers stands, one after the other, in ``other_teachers``. Where they
    carry hidden states, ``states`` has by role ``vectors`` float32 [layers, M, W], one row after
    the other, and ``kept`` bool [B, L], the positions they stand at or are the mean of.
    """

    def collate(examples: Sequence[Example]) -> Batch:
        batch = _padded([example.encoded for example in examples], pad_id)
        teachers = [example.teacher for example in examples if example.teacher is not None]
        if teachers:
            batch |= _teacher_slots(teachers)
        if examples[0].states:
            length = batch["input_ids"].shape[1]
            batch["states"] = {
                role: _state_slots([example.states[role] for example in examples], length)
                for role in examples[0].states
            }
        others = zip(*(e.others for e in examples if e.teacher is not None), strict=True)
        if further := [_teacher_slots(each) for each in others]:
            batch["other_teachers"] = further
        return batch

    return collate


def _state_slots(rows: Sequence[RowStates], length: int) -> Batch:
    kept_BL = np.zeros((len(rows), length), bool)
    for place, row in enumerate(rows):
        kept_BL[place, : len(row.kept_T)] = row.kept_T
    vectors_LMW = np.concatenate([row.vectors_LMW for row in rows], axis=1)
    return {"vectors": torch.from_numpy(vectors_LMW), "kept": torch.from_numpy(kept_BL)}


def _teacher_slots(teachers: Sequence[TeacherTargets]) -> Batch:
    kept = np.concatenate([teacher.kept for teacher in teachers])
    used = np.arange(kept.max()) < kept[:, None]
    ids, logits = np.zeros(used.shape, np.int64), np.full(used.shape, -np.inf, np.float32)
    ids[used] = np.concatenate([teacher.token_ids for teacher in teachers])
    logits[used] = np.concatenate([teacher.logits for teacher in teachers])
    partition = np.concatenate([teacher.log_partition for teacher in teachers])
    return {
        "teacher_ids": torch.from_numpy(ids),
        "teacher_logits": torch.from_numpy(logits),
        "teacher_log_partition": torch.from_numpy(partition),
        "teacher_tail": teachers[0].tail,
    }


def _padded(sequences: Sequence[Encoded], pad_id: int) -> Batch:
    shape = (len(sequences), max(len(s.input_ids) for s in sequences))
    input_ids, labels = np.full(shape, pad_id), np.full(shape, IGNORED)
    attention_mask = np.zeros(shape, dtype=np.int64)
    for row, sequence in enumerate(sequences):
        length = len(sequence.input_ids)
        input_ids[row, :length] = sequence.input_ids
        attention_mask[row, :length] = 1
        labels[row, :length] = np.where(sequence.targets, sequence.input_ids, IGNORED)
    arrays = {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels}
    return {name: torch.from_numpy(array) for name, array in arrays.items()}
