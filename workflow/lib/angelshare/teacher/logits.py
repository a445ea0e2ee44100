"""Capturing a teacher's distribution: one forward pass over the data, kept as a logit cache.

The pass is a back end's (`transformers_logits`, `vllm_logits`); the rest is the same, in `windows`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
from angelshare.teacher.cache import CacheInfo, write_cache
from angelshare.teacher.captured import split_rows
from angelshare.teacher.codecs import codec_of
from angelshare.teacher.codecs.rows import CachedTargets
from angelshare.teacher.models import load_causal_lm, load_config, load_tokenizer
from angelshare.teacher.pieces import packed, unpacked
from angelshare.teacher.settings import CaptureSettings
from angelshare.teacher.transformers_logits import Head, capture_batch, check_head
from angelshare.teacher.windows import (
    CaptureBatch,
    Keeping,
    Progress,
    captured_windows,
    windows_of,
)
from angelshare.teacher.write_behind import write_behind


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
    windows = captured_windows(
        start, rows, settings.batch_tokens, keeping(settings), journal, progress, count
    )
    write_behind(partial(write_cache, out, info=info), windows)
    lengths = [len(row.encoded.input_ids) for row in rows]
    tokens = sum(lengths)
    passed = sum(
        len(batch) * max(lengths[i] for i in batch)
        for batches in windows_of(lengths, settings.batch_tokens)
        for batch in batches
    )
    return CaptureStats(
        sequences=len(rows),
        skipped=table.num_rows - len(rows),
        tokens=tokens,
        padding=passed - tokens if settings.backend == "transformers" else 0,
        targets=info.targets,
    )


def keeping(settings: CaptureSettings) -> Keeping[CachedTargets]:
    """How what ``settings`` keep becomes rows and pieces."""
    return Keeping(
        split=partial(split_rows, settings=settings),
        pack=packed,
        unpack=partial(unpacked, temperatures=len(settings.temperatures)),
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
