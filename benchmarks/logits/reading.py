"""Reading a cache in random order: tokens per second, opening, and what a training waits for it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from torch.utils.data import DataLoader, Dataset, RandomSampler
from transformers import Olmo2ForCausalLM

from angelshare.data.sequences import Encoded
from angelshare.student.cached import TeacherTargets
from angelshare.student.dataset import Example, collator
from angelshare.student.losses import at_temperature
from angelshare.student.settings import LossSettings
from angelshare.student.train import BATCHES_AHEAD
from angelshare.student.trainer import TargetLoss
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
        log_partition=row.log_partition[:, cache.info.temperatures.index(1.0)],
        tail=cache.info.codec.tail,
    )
    return Example(encoded, teacher)


class CachedRows(Dataset[Example]):
    """A cache's rows as training examples; the tokens before the targets are left out."""

    def __init__(self, cache: LogitCache) -> None:
        self.cache = cache

    def __len__(self) -> int:
        return len(self.cache)

    def __getitem__(self, index: int) -> Example:
        return _example(self.cache, index)


def waiting(
    paths: Sequence[Path],
    model: Olmo2ForCausalLM,
    *,
    in_memory: bool,
    batch_size: int = 8,
    steps: int = 5,
) -> dict[str, Any]:
    """Seconds of a training's steps and, of these, until the loader gave the next batch.

    The loader is a trainer's: in this process where the cache stays in memory, otherwise a process
    that reads ahead, from a cache of which a single row group stays. A step is forward, loss and
    backward; the first, in which processes start and caches fill, is not counted.
    """
    cache = LogitCache(paths, None if in_memory else 0)
    workers = 0 if cache.stays_in_memory else 1
    loader = DataLoader(
        CachedRows(cache),
        batch_size,
        sampler=RandomSampler(cache, num_samples=batch_size * (steps + 1)),
        collate_fn=collator(0),
        num_workers=workers,
        prefetch_factor=BATCHES_AHEAD if workers else None,
    )
    choice = LossSettings(alpha=0.2)
    waited, worked, tokens = [], [], []
    batches = iter(loader)
    for _ in range(steps + 1):
        began = time.perf_counter()
        batch = next(batches)
        got = time.perf_counter()
        model.zero_grad(set_to_none=True)
        teacher = at_temperature(
            batch["teacher_ids"],
            batch["teacher_logits"],
            batch["teacher_log_partition"],
            choice.temperature,
            tail=batch["teacher_tail"],
        )
        loss_of = TargetLoss(batch["labels"], teacher, choice, cache.info.vocab_size)
        sums = model(
            input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], loss_of=loss_of
        )
        sums.loss.backward()
        tokens.append(int(batch["attention_mask"].sum()))
        waited.append(got - began)
        worked.append(time.perf_counter() - got)
    return {
        "parameters": model.num_parameters(),
        "workers": workers,
        "tokens": sum(tokens[1:]) / steps,
        "wait_s": sum(waited[1:]) / steps,
        "step_s": sum(worked[1:]) / steps,
        "share": sum(waited[1:]) / (sum(waited[1:]) + sum(worked[1:])),
    }


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
