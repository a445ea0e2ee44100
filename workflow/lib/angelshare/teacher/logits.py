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
        sequences=len(rows),
        targets=sum(sum(row.encoded.targets) for row in rows),
    )
    padding = 0

    def captured() -> Iterator[CachedTargets]:
        nonlocal padding
        done = 0
        for begin in range(0, len(rows), ROWS_PER_WINDOW):
            window = rows[begin : begin + ROWS_PER_WINDOW]
            results: dict[int, CachedTargets] = {}
            for batch in _batches(window, settings.batch_tokens):
                chosen = [window[i] for i in batch]
                found, pads = _capture_batch(model, head, chosen, settings)
                results.update(zip(batch, found, strict=True))
                padding += pads
                count(cached=sum(len(row.gold_logprob) for row in found))
                done += len(batch)
                progress(done, len(rows), "sequences")
            yield from (results[i] for i in range(len(window)))

    write_cache(out, captured(), info)
    return CaptureStats(
        sequences=len(rows),
        skipped=table.num_rows - len(rows),
        tokens=sum(len(row.encoded.input_ids) for row in rows),
        padding=padding,
        targets=info.targets,
    )


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


def _batches(rows: Sequence[EncodedRow], batch_tokens: int) -> Iterator[list[int]]:
    """Row numbers, shortest first, so that rows x longest stays within ``batch_tokens``."""
    order = sorted(range(len(rows)), key=lambda i: len(rows[i].encoded.input_ids))
    batch: list[int] = []
    for index in order:
        if batch and (len(batch) + 1) * len(rows[index].encoded.input_ids) > batch_tokens:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def _capture_batch(
    model: PreTrainedModel, head: Head, rows: Sequence[EncodedRow], settings: CaptureSettings
) -> tuple[list[CachedTargets], int]:
    """The rows' cache entries in their order, and how many padding tokens the pass had.

    Padding stands on the right, where no position of a causal model sees it.
    """
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
    results = [
        CachedTargets(
            id=row.id,
            tokens_sha256=row.encoded.sha256,
            **{name: split[name][index] for name in split},
        )
        for index, row in enumerate(rows)
    ]
    return results, ids_BT.numel() - sum(len(row.encoded.input_ids) for row in rows)


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
