"""Caching a teacher's hidden states: one forward pass through the blocks that are kept.

The size is calculated, said and held against the limit before the model is loaded; blocks behind
the last one that is kept are never computed. Windows, journal and writing are those of every
capture (`windows`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor
from transformers import PreTrainedModel

from angelshare.data.sequences import Encoded, EncodedRow, encode_table
from angelshare.data.tokenizer import tokenizer_digest
from angelshare.errors import AngelshareError
from angelshare.store.journal import Journal
from angelshare.teacher.blocks import (
    block_outputs,
    chosen_layers,
    picked_states,
    without_later_blocks,
)
from angelshare.teacher.captured import OnItsWay
from angelshare.teacher.models import load_causal_lm, load_config, load_tokenizer
from angelshare.teacher.prompts import row_seed
from angelshare.teacher.settings import StatesCapture, StatesSettings
from angelshare.teacher.states import (
    DTYPES,
    CachedStates,
    StatesInfo,
    kept_positions,
    packed,
    unpacked,
    write_states,
)
from angelshare.teacher.windows import (
    TOKENS_PER_WINDOW,
    CaptureBatch,
    Keeping,
    Progress,
    captured_windows,
)
from angelshare.teacher.write_behind import write_behind

WINDOW_BYTES = 256 << 20
"""What a window may hold, so that few of them fit any memory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StatesStats:
    """What a capture read and kept."""

    sequences: int
    """Rows of the cache."""
    targets: int
    """Target positions of these rows."""
    vectors: int
    """Vectors of each layer."""
    bytes: int
    """Of all vectors, before compression."""


@torch.inference_mode()
def capture_states(
    model_dir: str | Path,
    table: pa.Table,
    settings: StatesCapture,
    out: Path,
    *,
    progress: Progress,
    count: Callable[..., None],
    say: Callable[[str], None] = lambda _: None,
    share: float = 1.0,
    journal: Journal | None = None,
    revision: str | None = None,
    device: str | None = None,
    trust_remote_code: bool = False,
) -> StatesStats:
    """Write the hidden states of ``table``'s rows to ``out``.

    ``share`` of ``limit_gb`` is what this table may take. ``AngelshareError`` before the model is
    loaded when it takes more, when a row exceeds the model's positions, or when the model has no
    such layer.
    """
    origin: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
    tokenizer = load_tokenizer(model_dir, **origin)
    rows = encode_table(table, tokenizer, settings.max_length)
    if not rows:
        raise AngelshareError(f"none of {table.num_rows} rows has an answer to cache states of")
    config = load_config(model_dir, **origin)
    _check_positions(config, rows)
    info = StatesInfo(
        format=settings.format,
        positions=settings.positions,
        fraction=settings.fraction,
        layers=chosen_layers(settings.layers, config.num_hidden_layers),
        depth=config.num_hidden_layers,
        width=config.hidden_size,
        tokenizer_sha256=tokenizer_digest(tokenizer),
        sequences=len(rows),
        vectors=sum(_vectors(row.encoded, settings) for row in rows),
    )
    size = info.vectors * len(info.layers) * settings.vector_bytes(info.width)
    _check_size(size, share, info, settings, say)

    def start() -> CaptureBatch:
        model = load_causal_lm(
            model_dir,
            dtype=settings.dtype,
            device=device,
            attn_implementation=settings.attn_implementation,
            **origin,
        )
        without_later_blocks(model, info.layers[-1])
        return partial(states_batch, model, settings, info.layers)

    keeping = Keeping(
        split=partial(split_states, settings=settings),
        pack=partial(packed, info=info),
        unpack=partial(unpacked, info=info),
    )
    tokens = sum(len(row.encoded.input_ids) for row in rows)
    windows = captured_windows(
        start,
        rows,
        settings.batch_tokens,
        keeping,
        journal,
        progress,
        count,
        window_tokens=max(1, min(TOKENS_PER_WINDOW, int(WINDOW_BYTES * tokens / size))),
    )
    write_behind(partial(write_states, out, info=info), windows)
    return StatesStats(
        sequences=len(rows),
        targets=sum(sum(row.encoded.targets) for row in rows),
        vectors=info.vectors,
        bytes=size,
    )


def _check_positions(config: Any, rows: Sequence[EncodedRow]) -> None:
    positions = getattr(config, "max_position_embeddings", None)
    longest = max(rows, key=lambda row: len(row.encoded.input_ids))
    if positions is not None and len(longest.encoded.input_ids) > positions:
        raise AngelshareError(
            f"row {longest.id} has {len(longest.encoded.input_ids)} tokens, the model "
            f"{positions} positions; set capture.max_length to {positions} or less"
        )


def _check_size(
    size: int,
    share: float,
    info: StatesInfo,
    settings: StatesCapture,
    say: Callable[[str], None],
) -> None:
    """Say what will be written; ``AngelshareError`` with the ways out if it is too much."""
    limit = settings.limit_gb * share * 1e9
    what = (
        f"{info.vectors:,} vectors of {info.width} elements in each of {len(info.layers)} layers "
        f"as {info.format}: {size / 1e6:,.1f} MB before compression, limit {limit / 1e6:,.1f} MB"
    )
    if size > limit:
        of = "" if share == 1 else f" (this part's share of limit_gb {settings.limit_gb:g})"
        raise AngelshareError(
            f"hidden states would be too large: {what}{of}. {settings.ways_out()}"
        )
    say(f"hidden states of {info.sequences:,} sequences: {what}")


def _vectors(encoded: Encoded, settings: StatesSettings) -> int:
    return 1 if settings.pooled else _kept_targets(sum(encoded.targets), settings.fraction)


def _kept_targets(targets: int, fraction: float) -> int:
    return max(1, round(targets * fraction))


def chosen_targets(row: EncodedRow, settings: StatesSettings) -> np.ndarray:
    """int32 [m], which of the row's targets are kept, by seed and row id alone; of means, none."""
    if settings.pooled:
        return np.empty(0, np.int32)
    targets = sum(row.encoded.targets)
    kept = _kept_targets(targets, settings.fraction)
    if kept == targets:
        return np.arange(targets, dtype=np.int32)
    drawn = np.random.default_rng(row_seed(settings.seed, row.id)).permutation(targets)[:kept]
    return np.sort(drawn).astype(np.int32)


def states_batch(
    model: PreTrainedModel,
    settings: StatesCapture,
    layers: Sequence[int],
    rows: Sequence[EncodedRow],
) -> OnItsWay:
    """The rows' vectors [N, L, W], one row after the other; padding stands right, unseen."""
    width = max(len(row.encoded.input_ids) for row in rows)
    ids_BT = torch.zeros(len(rows), width, dtype=torch.long)
    kept_BT = torch.zeros(len(rows), width, dtype=torch.bool)
    for index, row in enumerate(rows):
        length = len(row.encoded.input_ids)
        ids_BT[index, :length] = torch.tensor(row.encoded.input_ids)
        kept = kept_positions(row.encoded, settings.positions, chosen_targets(row, settings))
        kept_BT[index, :length] = torch.from_numpy(kept)
    kept_BT = kept_BT.to(model.device)
    with block_outputs(model, layers) as states:
        model.base_model(input_ids=ids_BT.to(model.device), use_cache=False)
    picked = [picked_states(states[layer], kept_BT, settings.pooled) for layer in layers]
    values, scales = stored(torch.stack(picked, 1), settings.format)
    return OnItsWay({"values": values, "scales": scales})


def stored(vectors_NLW: Tensor, format_: str) -> tuple[Tensor, Tensor]:
    """Values as they are stored and, for int8, the scales [N, L]; else an empty tensor."""
    if format_ == "float16":
        return vectors_NLW.half(), vectors_NLW.new_empty(0)
    scales_NL = vectors_NLW.abs().amax(-1) / 127
    divisor_NL1 = torch.where(scales_NL == 0, 1, scales_NL)[..., None]
    return (vectors_NLW / divisor_NL1).round().to(torch.int8), scales_NL


def split_states(
    rows: Sequence[EncodedRow], arrays: dict[str, np.ndarray], settings: StatesCapture
) -> Iterator[CachedStates]:
    """A batch's vectors as its rows."""
    values, scales = arrays["values"].astype(DTYPES[settings.format]), arrays["scales"]
    end = 0
    for row in rows:
        begin, end = end, end + _vectors(row.encoded, settings)
        yield CachedStates(
            id=row.id,
            tokens_sha256=row.encoded.sha256,
            targets=sum(row.encoded.targets),
            chosen=chosen_targets(row, settings),
            values=np.ascontiguousarray(values[begin:end].swapaxes(0, 1)),
            scales=np.ascontiguousarray(scales[begin:end].T) if scales.size else scales,
        )
