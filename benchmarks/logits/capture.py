"""What a capture costs beside the bare forward pass over the same batches.

``base`` is the model without its head; ``forward`` is the model as called for a cross-entropy,
logits at every position and no sum over them; ``capture`` is the whole job's loop: base, head at
the targets, sums, selection, copying, encoding and the file. The three take turns; times are the
least of the repeats.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from angelshare.data.sequences import Encoded, EncodedRow
from angelshare.teacher.cache import CacheInfo, write_cache
from angelshare.teacher.codecs import codec_of
from angelshare.teacher.logits import keeping
from angelshare.teacher.settings import CaptureSettings, RskdSettings, TopkTailSettings
from angelshare.teacher.transformers_logits import Head, capture_batch
from angelshare.teacher.windows import captured_windows, windows_of
from angelshare.teacher.write_behind import write_behind

from .teachers import nothing

CODECS = {
    "topk_tail": CaptureSettings(codec=TopkTailSettings(top_k=100, top_p=0.98)),
    "rskd": CaptureSettings(codec=RskdSettings(samples=50)),
}


def random_rows(count: int, length: int, vocab_size: int) -> list[EncodedRow]:
    """Sequences of which every token but the first is a target: the most that a capture can do."""
    ids_BL = torch.randint(vocab_size, (count, length), generator=torch.Generator().manual_seed(0))
    targets = [False] + [True] * (length - 1)
    return [
        EncodedRow(f"row-{place:05d}", Encoded(input_ids=ids, targets=targets, sha256=bytes(32)))
        for place, ids in enumerate(ids_BL.tolist())
    ]


def capture(
    model: PreTrainedModel,
    rows: Sequence[EncodedRow],
    vocab_size: int,
    settings: dict[str, CaptureSettings],
    repeats: int = 3,
) -> dict[str, Any]:
    """Seconds, tokens per second and the overhead over both bare passes."""
    some = next(iter(settings.values()))
    lengths = [len(row.encoded.input_ids) for row in rows]
    windows = windows_of(lengths, some.batch_tokens)
    head = Head(model, vocab_size)
    contenders: dict[str, Callable[[], None]] = {
        "base": lambda: _forward(model.base_model, model, rows, windows),
        "forward": lambda: _forward(model, model, rows, windows),
    }
    for name, one in settings.items():
        contenders[name] = lambda one=one: _job(model, head, rows, one)
    seconds = dict.fromkeys(contenders, float("inf"))
    with torch.inference_mode():
        for _ in range(repeats):
            for name, run in contenders.items():
                begin = time.perf_counter()
                run()
                seconds[name] = min(seconds[name], time.perf_counter() - begin)
    tokens, targets = sum(lengths), sum(sum(row.encoded.targets) for row in rows)
    return {
        "layers": model.config.num_hidden_layers,
        "hidden": model.config.hidden_size,
        "vocab": vocab_size,
        "device": model.device.type,
        "tokens": tokens,
        "targets": targets,
        "base_s": seconds["base"],
        "forward_s": seconds["forward"],
        **{
            name: {
                "seconds": seconds[name],
                "tokens_per_s": tokens / seconds[name],
                "over_forward": seconds[name] / seconds["forward"] - 1,
                "over_base": seconds[name] / seconds["base"] - 1,
            }
            for name in settings
        },
    }


def _forward(
    called: torch.nn.Module,
    model: PreTrainedModel,
    rows: Sequence[EncodedRow],
    windows: Sequence[Sequence[Sequence[int]]],
) -> None:
    for batch in (batch for batches in windows for batch in batches):
        chosen = [rows[number].encoded.input_ids for number in batch]
        ids_BT = torch.zeros(len(chosen), max(map(len, chosen)), dtype=torch.long)
        for place, ids in enumerate(chosen):
            ids_BT[place, : len(ids)] = torch.tensor(ids)
        called(input_ids=ids_BT.to(model.device), use_cache=False)
    if model.device.type == "cuda":
        torch.cuda.synchronize()


def _job(
    model: PreTrainedModel,
    head: Head,
    rows: Sequence[EncodedRow],
    settings: CaptureSettings,
) -> None:
    info = CacheInfo(
        codec=codec_of(settings.codec),
        temperatures=settings.temperatures,
        vocab_size=head.vocab_size,
        tokenizer_sha256="benchmark",
        sequences=len(rows),
        targets=sum(sum(row.encoded.targets) for row in rows),
    )

    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "cache.parquet"
        batches = partial(capture_batch, model, head, settings)
        windows = captured_windows(
            lambda: batches, rows, settings.batch_tokens, keeping(settings), None, nothing, nothing
        )
        write_behind(partial(write_cache, out, info=info), windows)
