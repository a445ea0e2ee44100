"""Reading a cache in random order: tokens per second, what one row costs, and opening."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from angelshare.data.sequences import Encoded
from angelshare.student.dataset import Example, TeacherTargets, collator
from angelshare.teacher.cache import LogitCache


def reading(paths: Sequence[Path], batch_size: int = 8, passes: int = 3) -> dict[str, Any]:
    """Batches of rows in random order, as a trainer's collator makes them, from one thread.

    ``cold`` keeps a single row group in memory, as with a cache far larger than the memory: nearly
    every row then decompresses a group. ``warm`` keeps all of them.
    """
    begin = time.perf_counter()
    cache = LogitCache(paths)
    places = {row_id: place for place, (row_id, _) in enumerate(cache.keys())}
    opened = time.perf_counter() - begin
    found: dict[str, Any] = {"open_s": opened, "rows": len(places)}
    for name, resident in (("cold", 0), ("warm", 1 << 40)):
        one = LogitCache(paths, resident)
        for _ in range(passes if name == "warm" else 1):
            begin = time.perf_counter()
            targets = _read(one, batch_size)
            took = time.perf_counter() - begin
        found[name] = {"targets_per_s": targets / took, "s_per_batch": took * batch_size / len(one)}
    found["amplification"] = amplification(paths)
    return found


def _read(cache: LogitCache, batch_size: int) -> int:
    order = np.random.default_rng(0).permutation(len(cache))
    collate = collator(0)
    targets = 0
    for begin in range(0, len(order), batch_size):
        batch = collate([_example(cache, int(row)) for row in order[begin : begin + batch_size]])
        targets += len(batch["teacher_ids"])
    return targets


def _example(cache: LogitCache, number: int) -> Example:
    row = cache.row(number)
    n = len(row.kept)
    encoded = Encoded(input_ids=[0] * (n + 1), targets=[False] + [True] * n, sha256=b"")
    teacher = TeacherTargets(
        kept=row.kept,
        token_ids=row.token_ids,
        logits=row.logits,
        log_partition=row.log_partition[:, 0],
        tail=cache.info.codec.tail,
    )
    return Example(encoded, teacher)


def amplification(paths: Sequence[Path]) -> float:
    """Bytes read for one random row over the row's own share of them."""
    groups = [
        (file.row_group(number).num_rows, file.row_group(number).total_byte_size)
        for file in (pq.read_metadata(path) for path in paths)
        for number in range(file.num_row_groups)
    ]
    rows = sum(count for count, _ in groups)
    read = sum(count * size for count, size in groups) / rows
    return read / (sum(size for _, size in groups) / rows)
