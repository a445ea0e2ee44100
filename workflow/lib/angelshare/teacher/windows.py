"""A teacher's pass over data in windows: batches of alike lengths, written in table order.

Neither batch size nor order shows in what is kept. Finished windows can be kept in a journal: an
attempt that finds some there makes the others, in the batches they would have had without a kill.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Generic, TypeVar

import numpy as np

from angelshare.data.sequences import EncodedRow
from angelshare.store.journal import Journal
from angelshare.teacher.captured import CapturedRow, OnItsWay
from angelshare.teacher.write_behind import Window

Progress = Callable[[int, int, str], None]
TOKENS_PER_WINDOW = 2**16
CaptureBatch = Callable[[Sequence[EncodedRow]], OnItsWay]
"""From rows to what is kept of their positions, one row after the other."""
Row = TypeVar("Row", bound=CapturedRow)


@dataclass(frozen=True, slots=True)
class Keeping(Generic[Row]):
    """How one kind of capture becomes rows, and pieces of a journal."""

    split: Callable[[Sequence[EncodedRow], dict[str, np.ndarray]], Iterator[Row]]
    """A batch's arrays as its rows."""
    pack: Callable[[Sequence[Row]], bytes]
    """Rows as a piece, from which the same file comes."""
    unpack: Callable[[bytes], list[Row]]
    """The rows of a piece."""


Batch = tuple[Sequence[int], Sequence[EncodedRow], OnItsWay]
"""Row numbers, rows, and what was captured of them."""


def captured_windows(
    start: Callable[[], CaptureBatch],
    rows: Sequence[EncodedRow],
    batch_tokens: int,
    keeping: Keeping[Row],
    journal: Journal | None,
    progress: Progress,
    count: Callable[..., None],
    *,
    window_tokens: int | None = None,
) -> Iterator[Window[Row]]:
    """Windows of earlier attempts, then the others as the device makes them.

    The model is loaded (``start``) only if there are others. ``count(cached=…)`` receives target
    positions, without those of the ``journal``'s windows.
    """
    done = 0
    for kept in _kept_rows(journal, rows, keeping) if journal else ():
        done += len(kept)
        yield kept.__iter__
    if done:
        progress(done, len(rows), "sequences of an earlier attempt")
    left = rows[done:]
    if not left:
        return
    capture_batch = start()
    lengths = [len(row.encoded.input_ids) for row in left]
    for batches in windows_of(lengths, batch_tokens, window_tokens):
        made: list[Batch] = []
        for batch in batches:
            chosen = [left[i] for i in batch]
            made.append((batch, chosen, capture_batch(chosen)))
            count(cached=sum(sum(row.encoded.targets) for row in chosen))
            done += len(batch)
            progress(done, len(rows), "sequences")
        yield partial(_finished, made, keeping, journal)


def windows_of(
    lengths: Sequence[int], batch_tokens: int, window_tokens: int | None = None
) -> list[list[list[int]]]:
    """Windows of consecutive rows, each as batches of row numbers, shortest first.

    A window ends once it holds ``window_tokens`` (65,536 by default), which bounds what waits to be
    written. In a batch, rows times the longest stays within ``batch_tokens`` (or it is a single
    row).
    """
    most = window_tokens or TOKENS_PER_WINDOW
    windows, begin, tokens = [], 0, 0
    for end, length in enumerate(lengths, start=1):
        tokens += length
        if tokens < most and end < len(lengths):
            continue
        batches: list[list[int]] = [[]]
        for number in sorted(range(begin, end), key=lambda i: lengths[i]):
            if batches[-1] and (len(batches[-1]) + 1) * lengths[number] > batch_tokens:
                batches.append([])
            batches[-1].append(number)
        windows.append(batches)
        begin, tokens = end, 0
    return windows


def _finished(
    batches: Sequence[Batch], keeping: Keeping[Row], journal: Journal | None
) -> list[Row]:
    """A window's rows in table order, once they are here; kept in the journal."""
    found: dict[int, Row] = {}
    for numbers, rows, tensors in batches:
        found.update(zip(numbers, keeping.split(rows, tensors.arrays()), strict=True))
    finished = [found[number] for number in sorted(found)]
    if journal:
        journal.add(keeping.pack(finished))
    return finished


def _kept_rows(
    journal: Journal, rows: Sequence[EncodedRow], keeping: Keeping[Row]
) -> Iterator[list[Row]]:
    """What earlier attempts captured of the first ``rows``, piece by piece.

    A piece of other sequences than stand there, such as another version of the tokenizer's library
    makes, is forgotten with those behind it.
    """
    done = 0
    for piece in journal.pieces():
        kept = keeping.unpack(piece)
        expected = [(row.id, row.encoded.sha256) for row in rows[done : done + len(kept)]]
        if [(row.id, row.tokens_sha256) for row in kept] != expected:
            journal.forget_last()
            return
        done += len(kept)
        yield kept
