"""Training data as tensors: encoded conversations, with the teacher's cached targets if any.

Rows are checked against their caches when these are opened (`cached`). Batches are padded on the
right (a causal model never sees what follows, so padding changes nothing) and labels are -100 off
target.
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
from angelshare.errors import AngelshareError
from angelshare.student.cached import CachedTeacher, TeacherTargets, aligned, same_tokenizer
from angelshare.student.losses import IGNORED
from angelshare.student.pairing import PairedTeacher, Reader, read_with
from angelshare.teacher.cache import LogitCache
from angelshare.teacher.states import StateCache, StatesInfo, kept_positions

Batch = dict[str, Any]


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
        self._states[role] = cache, aligned(self.rows, cache, self._max_length)
        self.workers = max(self.workers, 0 if cache.stays_in_memory else 1)

    def states_read(self) -> dict[str, StatesInfo]:
        """What each attached cache says of itself, by role."""
        return {role: cache.info for role, (cache, _) in self._states.items()}

    @property
    def parts(self) -> Sequence[EncodedDataset]:
        """The datasets that it consists of, in order."""
        return [self]

    def paired(self) -> list[float]:
        """The share of the targets that has a partner, by teacher; none where all have one."""
        return []

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
        readers: Sequence[Reader] = (),
    ) -> None:
        """Encode ``table`` and align every row with ``cache`` and those of ``others``.

        ``readers``, where there are any, are the caches' own tokenizers, in their order; a target
        then learns from the one that a teacher has at the same place, if it has one.
        ``AngelshareError`` when a row is not in a cache or was other tokens there, when the
        tokenizers differ, or when ``temperature`` is not one of a cache's grid.
        """
        super().__init__(table, tokenizer, max_length)
        caches = (cache, *others)
        self.workers = 0 if all(one.stays_in_memory for one in caches) else 1
        self._teachers: list[CachedTeacher] = []
        if readers:
            placed = read_with(table, tokenizer, max_length)
            places = [placed[row_id][1] for row_id, _ in self.rows]
            for one, reader in zip(caches, readers, strict=True):
                read = read_with(table, reader.tokenizer, reader.max_length)
                self._teachers.append(
                    PairedTeacher(self.rows, places, read, reader, one, temperature)
                )
        else:
            self._teachers = [
                CachedTeacher(self.rows, tokenizer, max_length, one, temperature) for one in caches
            ]

    def __getitem__(self, index: int) -> Example:
        first, *others = (teacher.targets(index) for teacher in self._teachers)
        states = self._states_of(index)
        return Example(self.rows[index].encoded, first, states, tuple(others))

    def paired(self) -> list[float]:
        """The share of the targets that has a partner, by teacher; none where all have one."""
        read = (one for one in self._teachers if isinstance(one, PairedTeacher))
        return [one.paired for one in read]


class JoinedDataset(EncodedDataset):
    """The rows of several datasets, one after the other, each with its own teachers' work.

    Their ids need not differ; hidden states are attached to none of them.
    """

    def __init__(self, parts: Sequence[EncodedDataset]) -> None:
        self._parts = parts
        self.rows = [row for part in parts for row in part.rows]
        self.dropped = sum(part.dropped for part in parts)
        self.workers = max(part.workers for part in parts)
        self._ends = np.cumsum([len(part) for part in parts])
        self._states = {}

    def __getitem__(self, index: int) -> Example:
        number = int(np.searchsorted(self._ends, index, side="right"))
        part = self._parts[number]
        return part[index - int(self._ends[number]) + len(part)]

    def attach(self, role: str, cache: StateCache) -> None:
        """Refused: they would have to be of all parts."""
        raise AngelshareError("hidden states are read with one dataset, not with several")

    @property
    def parts(self) -> Sequence[EncodedDataset]:
        """The datasets that it consists of, in order."""
        return self._parts

    def paired(self) -> list[float]:
        """The share of the targets that has a partner, by teacher; none where all have one."""
        return [share for part in self._parts for share in part.paired()]


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
        batch = padded([example.encoded for example in examples], pad_id)
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
    used = np.arange(max(1, kept.max())) < kept[:, None]
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


def padded(sequences: Sequence[Encoded], pad_id: int) -> Batch:
    """``input_ids``, ``attention_mask`` and ``labels`` of `collator`."""
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
