"""Capturing a teacher's distribution: one forward pass over the data, kept as a logit cache.

Only target positions pass through the head, whose rows beyond the tokenizer (vocabulary padding)
are cut off before any sum. Head and sums are float32 whatever the weights' type. Batches are made
of alike lengths and rows written in table order: neither batch size nor order shows in the cache.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor
from torch.nn.functional import linear
from transformers import PreTrainedModel

from angelshare.data.sequences import EncodedRow, encode_table
from angelshare.data.tokenizer import tokenizer_digest
from angelshare.errors import AngelshareError
from angelshare.teacher.cache import CachedTargets, CacheInfo, write_cache
from angelshare.teacher.models import load_causal_lm, load_tokenizer
from angelshare.teacher.settings import CaptureSettings

Progress = Callable[[int, int, str], None]
ROWS_PER_WINDOW = 4096
LOGITS_PER_CHUNK = 2**25
HEAD_TOLERANCE = {torch.float32: 1e-3, torch.float16: 0.01, torch.bfloat16: 0.03}


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


class Head:
    """A model's output projection in float32, cut to the tokenizer's vocabulary."""

    def __init__(self, model: PreTrainedModel, vocab_size: int) -> None:
        """``AngelshareError`` where the model has no plain head or too small a one."""
        layer = model.get_output_embeddings()
        if not isinstance(layer, torch.nn.Linear):
            raise AngelshareError(f"{model.name_or_path}: the model has no linear language head")
        if layer.out_features < vocab_size:
            raise AngelshareError(
                f"{model.name_or_path}: the tokenizer has {vocab_size} tokens, the model only "
                f"{layer.out_features}; use the tokenizer the model was trained with"
            )
        self.vocab_size = vocab_size
        self.weight_VH = layer.weight[:vocab_size].float()
        self.bias_V = None if layer.bias is None else layer.bias[:vocab_size].float()

    def __call__(self, hidden_NH: Tensor) -> Tensor:
        """Logits [N, V] in float32."""
        return linear(hidden_NH.float(), self.weight_VH, self.bias_V)


@torch.inference_mode()
def capture_logits(
    model_dir: str | Path,
    table: pa.Table,
    settings: CaptureSettings,
    out: Path,
    *,
    progress: Progress,
    count: Callable[..., None],
    revision: str | None = None,
    device: str | None = None,
    trust_remote_code: bool = False,
) -> CaptureStats:
    """Write the logit cache of ``table``'s rows to ``out``.

    ``count(cached=…)`` receives target positions. ``AngelshareError`` when ``top_k`` exceeds the
    vocabulary, a row exceeds the model's positions, or the model changes logits after its head.
    """
    tokenizer = load_tokenizer(model_dir, revision=revision, trust_remote_code=trust_remote_code)
    rows = encode_table(table, tokenizer, settings.max_length)
    if not rows:
        raise AngelshareError(f"none of {table.num_rows} rows has an answer to capture logits of")
    model = load_causal_lm(
        model_dir,
        revision=revision,
        dtype=settings.dtype,
        device=device,
        attn_implementation=settings.attn_implementation,
        trust_remote_code=trust_remote_code,
    )
    head = Head(model, len(tokenizer))
    _check(model, head, rows, settings)
    info = CacheInfo(
        k=settings.top_k,
        temperatures=settings.temperatures,
        vocab_size=head.vocab_size,
        tokenizer_sha256=tokenizer_digest(tokenizer),
        sequences=len(rows),
        targets=sum(sum(row.encoded.targets) for row in rows),
    )
    windows = _windows([len(row.encoded.input_ids) for row in rows], settings.batch_tokens)
    write_cache(out, _captured(model, head, rows, windows, settings, progress, count), info)
    tokens = sum(len(row.encoded.input_ids) for row in rows)
    passed = sum(
        len(batch) * max(len(rows[i].encoded.input_ids) for i in batch)
        for batches in windows
        for batch in batches
    )
    return CaptureStats(
        sequences=len(rows),
        skipped=table.num_rows - len(rows),
        tokens=tokens,
        padding=passed - tokens,
        targets=info.targets,
    )


def _captured(
    model: PreTrainedModel,
    head: Head,
    rows: Sequence[EncodedRow],
    windows: Sequence[Sequence[Sequence[int]]],
    settings: CaptureSettings,
    progress: Progress,
    count: Callable[..., None],
) -> Iterator[CachedTargets]:
    """Every row's cache entry, in order; no more than a window of them is held at once."""
    done = 0
    for batches in windows:
        results: dict[int, CachedTargets] = {}
        for batch in batches:
            found = _capture_batch(model, head, [rows[i] for i in batch], settings)
            results.update(zip(batch, found, strict=True))
            count(cached=sum(len(row.gold_logprob) for row in found))
            progress(done + len(results), len(rows), "sequences")
        done += len(results)
        yield from (results[i] for i in sorted(results))


def _check(
    model: PreTrainedModel, head: Head, rows: Sequence[EncodedRow], settings: CaptureSettings
) -> None:
    if settings.top_k > head.vocab_size:
        raise AngelshareError(
            f"capture.top_k {settings.top_k} exceeds the vocabulary of {head.vocab_size} tokens"
        )
    positions = getattr(model.config, "max_position_embeddings", None)
    longest = max(rows, key=lambda row: len(row.encoded.input_ids))
    if positions is not None and len(longest.encoded.input_ids) > positions:
        raise AngelshareError(
            f"row {longest.id} has {len(longest.encoded.input_ids)} tokens, the model "
            f"{positions} positions; set capture.max_length to {positions} or less"
        )
    shortest = min(rows, key=lambda row: len(row.encoded.input_ids))
    ids_1T = torch.tensor([shortest.encoded.input_ids], device=model.device)
    own_TV = model(input_ids=ids_1T, use_cache=False).logits[0, :, : head.vocab_size].float()
    ours_TV = head(model.base_model(input_ids=ids_1T, use_cache=False).last_hidden_state[0])
    if (own_TV - ours_TV).abs().max() > HEAD_TOLERANCE[model.dtype] * own_TV.abs().max():
        raise AngelshareError(
            f"{model.name_or_path}: the model changes its logits after the head (soft-capping or "
            "scaling), which capture does not reproduce; use another teacher"
        )


def _windows(lengths: Sequence[int], batch_tokens: int) -> list[list[list[int]]]:
    """Windows of consecutive rows, each as batches of row numbers, shortest first.

    In a batch, rows times the longest stays within ``batch_tokens`` (or it is a single row).
    """
    windows = []
    for begin in range(0, len(lengths), ROWS_PER_WINDOW):
        numbers = range(begin, min(begin + ROWS_PER_WINDOW, len(lengths)))
        batches: list[list[int]] = [[]]
        for number in sorted(numbers, key=lambda i: lengths[i]):
            if batches[-1] and (len(batches[-1]) + 1) * lengths[number] > batch_tokens:
                batches.append([])
            batches[-1].append(number)
        windows.append(batches)
    return windows


def _capture_batch(
    model: PreTrainedModel, head: Head, rows: Sequence[EncodedRow], settings: CaptureSettings
) -> list[CachedTargets]:
    """The rows' cache entries; padding stands right, where no causal position sees it."""
    width = max(len(row.encoded.input_ids) for row in rows)
    ids_BT = torch.zeros(len(rows), width, dtype=torch.long)
    targets_BT = torch.zeros(len(rows), width, dtype=torch.bool)
    for index, row in enumerate(rows):
        length = len(row.encoded.input_ids)
        ids_BT[index, :length] = torch.tensor(row.encoded.input_ids)
        targets_BT[index, :length] = torch.tensor(row.encoded.targets)
    hidden_BTH = model.base_model(
        input_ids=ids_BT.to(model.device), use_cache=False
    ).last_hidden_state
    hidden_NH = hidden_BTH[:, :-1][targets_BT[:, 1:].to(model.device)]
    gold_N = ids_BT[targets_BT].to(model.device)
    size = max(1, LOGITS_PER_CHUNK // head.vocab_size)
    chunks = [
        _distribution(head(hidden), gold, settings)
        for hidden, gold in zip(hidden_NH.split(size), gold_N.split(size), strict=True)
    ]
    columns = {
        name: np.concatenate([chunk[name].cpu().numpy() for chunk in chunks]) for name in chunks[0]
    }
    ends = np.cumsum(targets_BT.sum(dim=1).numpy())
    split = {name: np.split(array, ends[:-1]) for name, array in columns.items()}
    return [
        CachedTargets(
            id=row.id,
            tokens_sha256=row.encoded.sha256,
            **{name: split[name][index] for name in split},
        )
        for index, row in enumerate(rows)
    ]


def _distribution(
    logits_NV: Tensor, gold_N: Tensor, settings: CaptureSettings
) -> dict[str, Tensor]:
    """The cache's columns for N positions: see the table in ``angelshare.teacher.cache``."""
    logprobs_NV = logits_NV.log_softmax(dim=-1)
    values_NK, ids_NK = logprobs_NV.topk(settings.top_k, dim=-1)
    log_partition_NG = torch.stack(
        [
            torch.zeros_like(logprobs_NV[:, 0])
            if temperature == 1.0
            else (logprobs_NV / temperature).logsumexp(dim=-1)
            for temperature in settings.temperatures
        ],
        dim=-1,
    )
    return {
        "token_ids": ids_NK.to(torch.int32),
        "logits": values_NK,
        "log_partition": log_partition_NG,
        "gold_logprob": logprobs_NV.gather(1, gold_N[:, None])[:, 0],
        "entropy": torch.special.entr(logprobs_NV.exp()).sum(dim=-1),
    }
