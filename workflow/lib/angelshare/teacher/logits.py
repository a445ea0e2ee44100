"""Capturing a teacher's distribution: one forward pass over the data, kept as a logit cache.

Batches are made of alike lengths and rows written in table order: neither batch size nor order
shows in the cache. The pass is a back end's (`transformers_logits`, `vllm_logits`); the rest is the
same. Finished windows can be kept in a journal: an attempt that finds some there makes the others,
in the batches they would have had without a kill.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch

from angelshare.data.sequences import EncodedRow, encode_table
from angelshare.data.tokenizer import tokenizer_digest
from angelshare.errors import AngelshareError
from angelshare.store.journal import Journal
from angelshare.teacher.cache import CacheInfo
from angelshare.teacher.captured import OnItsWay, split_rows
from angelshare.teacher.codecs import codec_of
from angelshare.teacher.codecs.rows import CachedTargets
from angelshare.teacher.models import load_causal_lm, load_config, load_tokenizer
from angelshare.teacher.pieces import kept_rows, packed
from angelshare.teacher.settings import CaptureSettings
from angelshare.teacher.transformers_logits import Head, capture_batch, check_head
from angelshare.teacher.write_behind import Window, write_behind

Progress = Callable[[int, int, str], None]
TOKENS_PER_WINDOW = 2**16


@dataclass(frozen=True, slots=True, kw_only=True)
class CaptureStats:
    """What a capture read and kept."""

    sequences: int
    """Rows of the cache."""
    skipped: int
    """Rows of the table without a target within ``max_length``."""
    tokens: int
    """Tokens of the forward passes, padding left out."""
    padding: int
    """Padding tokens of the forward passes."""
    targets: int
    """Positions of the cache."""


@torch.inference_mode()
def capture_logits(
    model_dir: str | Path,
    table: pa.Table,
    settings: CaptureSettings,
    out: Path,
    *,
    progress: Progress,
    count: Callable[..., None],
    journal: Journal | None = None,
    revision: str | None = None,
    device: str | None = None,
    trust_remote_code: bool = False,
) -> CaptureStats:
    """Write the logit cache of ``table``'s rows to ``out``.

    ``count(cached=…)`` receives target positions, without those of the ``journal``'s windows.
    ``AngelshareError`` when ``top_k`` exceeds the vocabulary, a row exceeds the model's positions,
    or the back end cannot tell the logits.
    """
    tokenizer = load_tokenizer(model_dir, revision=revision, trust_remote_code=trust_remote_code)
    rows = encode_table(table, tokenizer, settings.max_length)
    if not rows:
        raise AngelshareError(f"none of {table.num_rows} rows has an answer to capture logits of")
    _check(model_dir, len(tokenizer), rows, settings, revision, trust_remote_code)
    info = CacheInfo(
        codec=codec_of(settings.codec),
        temperatures=settings.temperatures,
        vocab_size=len(tokenizer),
        tokenizer_sha256=tokenizer_digest(tokenizer),
        sequences=len(rows),
        targets=sum(sum(row.encoded.targets) for row in rows),
        backend=settings.backend,
    )
    origin: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
    start = partial(_start, model_dir, len(tokenizer), rows, settings, device, origin)
    write_behind(out, captured_windows(start, rows, settings, journal, progress, count), info)
    lengths = [len(row.encoded.input_ids) for row in rows]
    windows = windows_of(lengths, settings.batch_tokens)
    tokens = sum(lengths)
    passed = sum(
        len(batch) * max(lengths[i] for i in batch) for batches in windows for batch in batches
    )
    return CaptureStats(
        sequences=len(rows),
        skipped=table.num_rows - len(rows),
        tokens=tokens,
        padding=passed - tokens if settings.backend == "transformers" else 0,
        targets=info.targets,
    )


def _start(
    model_dir: str | Path,
    vocab_size: int,
    rows: Sequence[EncodedRow],
    settings: CaptureSettings,
    device: str | None,
    origin: dict[str, Any],
) -> CaptureBatch:
    """The back end, loaded, and checked against ``rows``."""
    if settings.backend == "vllm":
        from angelshare.teacher.vllm_logits import VllmLogits

        return VllmLogits(model_dir, vocab_size, rows, settings, **origin).capture_batch
    model = load_causal_lm(
        model_dir,
        dtype=settings.dtype,
        device=device,
        attn_implementation=settings.attn_implementation,
        **origin,
    )
    head = Head(model, vocab_size)
    check_head(model, head, rows)
    return partial(capture_batch, model, head, settings)


def captured_windows(
    start: Callable[[], CaptureBatch],
    rows: Sequence[EncodedRow],
    settings: CaptureSettings,
    journal: Journal | None,
    progress: Progress,
    count: Callable[..., None],
) -> Iterator[Window]:
    """Windows of earlier attempts, then the others as the device makes them.

    The model is loaded only if there are others.
    """
    done = 0
    for kept in kept_rows(journal, rows, len(settings.temperatures)) if journal else ():
        done += len(kept)
        yield kept.__iter__
    if done:
        progress(done, len(rows), "sequences of an earlier attempt")
    left = rows[done:]
    if not left:
        return
    capture_batch = start()
    for batches in windows_of([len(row.encoded.input_ids) for row in left], settings.batch_tokens):
        made: list[Batch] = []
        for batch in batches:
            chosen = [left[i] for i in batch]
            made.append((batch, chosen, capture_batch(chosen)))
            count(cached=sum(sum(row.encoded.targets) for row in chosen))
            done += len(batch)
            progress(done, len(rows), "sequences")
        yield partial(_finished, made, settings, journal)


def _check(
    model_dir: str | Path,
    vocab_size: int,
    rows: Sequence[EncodedRow],
    settings: CaptureSettings,
    revision: str | None,
    trust_remote_code: bool,
) -> None:
    """Whether vocabulary and positions suffice; said before the weights are read."""
    codec = settings.codec
    if codec.name == "topk_tail" and codec.top_k > vocab_size:
        raise AngelshareError(
            f"capture.codec.top_k {codec.top_k} exceeds the vocabulary of {vocab_size} tokens"
        )
    config = load_config(model_dir, revision=revision, trust_remote_code=trust_remote_code)
    positions = getattr(config, "max_position_embeddings", None)
    if positions is not None and settings.backend == "vllm":
        positions -= 1  # vLLM always generates a token after those it reads
    longest = max(rows, key=lambda row: len(row.encoded.input_ids))
    if positions is not None and len(longest.encoded.input_ids) > positions:
        raise AngelshareError(
            f"row {longest.id} has {len(longest.encoded.input_ids)} tokens, the model "
            f"{positions} positions; set capture.max_length to {positions} or less"
        )


def windows_of(lengths: Sequence[int], batch_tokens: int) -> list[list[list[int]]]:
    """Windows of consecutive rows, each as batches of row numbers, shortest first.

    A window ends once it holds ``TOKENS_PER_WINDOW``, which bounds what waits to be written. In a
    batch, rows times the longest stays within ``batch_tokens`` (or it is a single row).
    """
    windows, begin, tokens = [], 0, 0
    for end, length in enumerate(lengths, start=1):
        tokens += length
        if tokens < TOKENS_PER_WINDOW and end < len(lengths):
            continue
        batches: list[list[int]] = [[]]
        for number in sorted(range(begin, end), key=lambda i: lengths[i]):
            if batches[-1] and (len(batches[-1]) + 1) * lengths[number] > batch_tokens:
                batches.append([])
            batches[-1].append(number)
        windows.append(batches)
        begin, tokens = end, 0
    return windows


CaptureBatch = Callable[[Sequence[EncodedRow]], OnItsWay]
"""From rows to what the codec keeps of their target positions, one row after the other."""
Batch = tuple[Sequence[int], Sequence[EncodedRow], OnItsWay]
"""Row numbers, rows, and what was captured of them."""


def _finished(
    batches: Sequence[Batch], settings: CaptureSettings, journal: Journal | None
) -> list[CachedTargets]:
    """A window's rows in table order, once they are here; kept in the journal."""
    found: dict[int, CachedTargets] = {}
    for numbers, rows, tensors in batches:
        found.update(zip(numbers, split_rows(rows, tensors.arrays(), settings), strict=True))
    finished = [found[number] for number in sorted(found)]
    if journal:
        journal.add(packed(finished))
    return finished
