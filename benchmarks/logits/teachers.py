"""What the benchmarks read: rows of a chosen model, or of a made-up teacher that needs no download.

The made-up teacher's logits are a Zipf prior plus noise, sharpened per position so that its
distributions are shaped like a real one's. SmolLM2-135M-Instruct on 18,332 target tokens of GSM8K
and MT-Bench-101 has a mean entropy of 1.44 nats (median 1.24), its top 100 hold 0.981, and top-p
0.98 cut at 100 keeps 37.8 tokens; `shape` says how near the made-up one comes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa
import torch
from torch import Tensor

from angelshare.data.sequences import Encoded, EncodedRow
from angelshare.teacher.cache import CacheInfo
from angelshare.teacher.captured import OnItsWay, split_rows
from angelshare.teacher.codecs import codec_of
from angelshare.teacher.codecs.rows import CachedTargets
from angelshare.teacher.settings import CaptureSettings
from angelshare.teacher.transformers_logits import selected, uniform

VOCABULARY, TARGETS_PER_ROW, PROMPT_PER_TARGET = 100_278, 128, 4.72
"""The last is the prompt and padding positions per target at which the paper's harness stores
1,621 bytes a position and 9,275 per target token."""
LIKELY_IDS = 4000
"""The ids that may stand out at a position."""


def nothing(*_: object, **__: object) -> None:
    """Progress and counts, which a benchmark does not look at."""


def synthetic_logits(positions: int, seed: int) -> Tensor:
    """float32 [positions, V]."""
    draw = torch.Generator().manual_seed(seed)
    prior_V = -1.2 * torch.log(torch.arange(1, VOCABULARY + 1, dtype=torch.float32) + 2.7)
    logits_NV = prior_V + torch.randn(positions, VOCABULARY, generator=draw)
    logits_NV *= 1.05 + 0.8 * torch.rand(positions, 1, generator=draw)
    # A few candidates stand out by some nats, as the next token of real text does.
    likely_N8 = torch.randint(0, LIKELY_IDS, (positions, 8), generator=draw)
    return logits_NV.scatter_add_(
        1, likely_N8, 1 + 8 * torch.randn(positions, 8, generator=draw).abs()
    )


def shape(logits_NV: Tensor) -> dict[str, float]:
    """Mean entropy in nats, mass of the top 100, and tokens of top-p 0.98 within them."""
    logprobs_NV = logits_NV.log_softmax(-1)
    top_NK = logprobs_NV.topk(100).values.exp()
    kept_N = ((top_NK.cumsum(-1) < 0.98).sum(-1) + 1).clamp(max=100)
    return {
        "entropy_nats": float(-(logprobs_NV.exp() * logprobs_NV).sum(-1).mean()),
        "top_100_mass": float(top_NK.sum(-1).mean()),
        "top_p_98_kept": float(kept_N.float().mean()),
    }


def _encoded(row_id: str) -> Encoded:
    ids = list(range(TARGETS_PER_ROW + 1))
    return Encoded(
        input_ids=ids,
        targets=[False] + [True] * TARGETS_PER_ROW,
        sha256=hashlib.sha256(row_id.encode()).digest(),
    )


def synthetic_rows(
    rows: int, settings: Mapping[str, CaptureSettings]
) -> dict[str, tuple[list[CachedTargets], CacheInfo]]:
    """By name, captured rows of the made-up teacher, by the same code that captures a real one."""
    made: dict[str, list[CachedTargets]] = {name: [] for name in settings}
    for number in range(rows):
        row_id = f"row-{number:05d}"
        row = EncodedRow(row_id, _encoded(row_id))
        logits_NV = synthetic_logits(TARGETS_PER_ROW, number)
        gold_N = logits_NV.argmax(1)
        for name, one in settings.items():
            uniform_N = uniform([row], one)
            pieces = [
                selected(logits.clone(), gold_N[at : at + 4], uniform_N[at : at + 4], one)
                for at, logits in zip(range(0, len(gold_N), 4), logits_NV.split(4), strict=True)
            ]
            joined = OnItsWay(
                {key: torch.cat([piece[key] for piece in pieces]) for key in pieces[0]}
            )
            made[name].extend(split_rows([row], joined.arrays(), one))
    return {
        name: (
            made[name],
            CacheInfo(
                codec=codec_of(one.codec),
                temperatures=one.temperatures,
                vocab_size=VOCABULARY,
                tokenizer_sha256="synthetic",
                sequences=rows,
                targets=rows * TARGETS_PER_ROW,
            ),
        )
        for name, one in settings.items()
    }


def read_table(path: Path, limit: int) -> pa.Table:
    """Conversations of a JSON-lines file: ``messages``, or ``question`` and ``answer``."""
    rows = []
    for number, line in enumerate(path.read_text().splitlines()[:limit]):
        row = json.loads(line)
        messages = row.get("messages") or [
            {"role": "user", "content": row["question"]},
            {"role": "assistant", "content": row["answer"]},
        ]
        rows.append({"id": f"row-{number:05d}", "messages": messages})
    return pa.Table.from_pylist(rows)
