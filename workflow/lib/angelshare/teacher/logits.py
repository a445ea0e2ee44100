"""Capturing a teacher's distribution: one forward pass over the data, kept as a logit cache.

Only target positions pass through the head, whose rows beyond the tokenizer (vocabulary padding)
are cut off before any sum. Head and sums are float32 whatever the weights' type. Batches are made
of alike lengths and rows written in table order: neither batch size nor order shows in the cache.
With the back end vLLM (`angelshare.teacher.vllm_logits`) the pass is that program's; the rest is
the same. Finished windows can be kept in a journal: an attempt that finds some there makes the
others, in the batches they would have had without a kill.
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
from torch.nn.functional import linear
from transformers import PreTrainedModel

from angelshare.data.sequences import EncodedRow, encode_table
from angelshare.data.tokenizer import tokenizer_digest
from angelshare.errors import AngelshareError
from angelshare.store.journal import Journal
from angelshare.teacher import distribution
from angelshare.teacher.cache import CacheInfo
from angelshare.teacher.codecs import codec_of
from angelshare.teacher.codecs.rows import CachedTargets
from angelshare.teacher.models import load_causal_lm, load_config, load_tokenizer
from angelshare.teacher.pieces import kept_rows, packed
from angelshare.teacher.prompts import row_seed
from angelshare.teacher.settings import CaptureSettings
from angelshare.teacher.write_behind import Window, write_behind

Progress = Callable[[int, int, str], None]
TOKENS_PER_WINDOW = 2**16
LOGITS_PER_CHUNK = 2**25
"""What the head makes at once: 128 MB."""
LOGITS_IN_CACHE = 2**19
"""What a processor looks at at once, so that several passes over it stay within its cache."""
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
    """A model's output projection, cut to the tokenizer's vocabulary; logits are float32.

    On a GPU half-precision weights stay as they are: their products are exact in float32, in which
    they are summed.
    """

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
        weight_VH = layer.weight[:vocab_size]
        self.weight_VH = weight_VH if weight_VH.is_cuda else weight_VH.float()
        self.bias_V = None if layer.bias is None else layer.bias[:vocab_size].float()

    def __call__(self, hidden_NH: Tensor) -> Tensor:
        """Logits [N, V] in float32."""
        if self.weight_VH.dtype == torch.float32:
            return linear(hidden_NH.float(), self.weight_VH, self.bias_V)
        hidden_NH = hidden_NH.to(self.weight_VH.dtype)
        logits_NV = torch.mm(hidden_NH, self.weight_VH.T, out_dtype=torch.float32)
        return logits_NV if self.bias_V is None else logits_NV + self.bias_V


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
    write_behind(out, _captured(start, rows, settings, journal, progress, count), info)
    lengths = [len(row.encoded.input_ids) for row in rows]
    windows = _windows(lengths, settings.batch_tokens)
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
    _check_head(model, head, rows)
    return partial(_capture_batch, model, head, settings)


def _captured(
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
    for batches in _windows([len(row.encoded.input_ids) for row in left], settings.batch_tokens):
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


def _check_head(model: PreTrainedModel, head: Head, rows: Sequence[EncodedRow]) -> None:
    """Whether what capture makes of the last hidden states are the model's logits."""
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


def _capture_batch(
    model: PreTrainedModel, head: Head, settings: CaptureSettings, rows: Sequence[EncodedRow]
) -> OnItsWay:
    """The rows' positions one after the other; padding stands right, unseen by what is causal."""
    width = max(len(row.encoded.input_ids) for row in rows)
    ids_BT = torch.zeros(len(rows), width, dtype=torch.long)
    targets_BT = torch.zeros(len(rows), width, dtype=torch.bool)
    for index, row in enumerate(rows):
        length = len(row.encoded.input_ids)
        ids_BT[index, :length] = torch.tensor(row.encoded.input_ids)
        targets_BT[index, :length] = torch.tensor(row.encoded.targets)
    gold_N = ids_BT[targets_BT].to(model.device)
    predicting_N = targets_BT.flatten().nonzero()[:, 0] - 1
    uniform_N = _uniform(rows, settings).to(model.device)
    hidden_BTH = model.base_model(
        input_ids=ids_BT.to(model.device), use_cache=False
    ).last_hidden_state
    hidden_NH = hidden_BTH.flatten(0, 1)[predicting_N.to(model.device)]
    size = max(1, LOGITS_PER_CHUNK // head.vocab_size)
    few = size if hidden_NH.is_cuda else min(size, max(1, LOGITS_IN_CACHE // head.vocab_size))
    chunks = [
        _selected(logits, gold, uniform, settings)
        for hidden, golds, uniforms in zip(
            hidden_NH.split(size), gold_N.split(size), uniform_N.split(size), strict=True
        )
        for logits, gold, uniform in zip(
            head(hidden).split(few), golds.split(few), uniforms.split(few), strict=True
        )
    ]
    return OnItsWay({name: torch.cat([chunk[name] for chunk in chunks]) for name in chunks[0]})


def _selected(
    logits_NV: Tensor, gold_N: Tensor, uniform_N: Tensor, settings: CaptureSettings
) -> dict[str, Tensor]:
    codec, grid = settings.codec, settings.temperatures
    if codec.name == "rskd":
        return distribution.rskd(logits_NV, gold_N, grid, codec, uniform_N)
    return distribution.topk_tail(logits_NV, gold_N, grid, codec)


def _uniform(rows: Sequence[EncodedRow], settings: CaptureSettings) -> Tensor:
    """float32 [N] in [0, 1), one number per position, from seed and row id alone; or zeros."""
    counts = [sum(row.encoded.targets) for row in rows]
    if settings.codec.name != "rskd":
        return torch.zeros(sum(counts))
    seeds = [row_seed(settings.codec.seed, row.id) for row in rows]
    drawn = [
        np.random.default_rng(seed).random(count, np.float32)
        for seed, count in zip(seeds, counts, strict=True)
    ]
    return torch.from_numpy(np.concatenate(drawn))


class OnItsWay:
    """Tensors that are being copied from the device; from a GPU into pinned memory, not waited for.

    ``arrays`` waits. The copies are queued behind the work that makes them, so the next forward
    pass can be queued at once.
    """

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        first = next(iter(tensors.values()))
        self._copied: torch.cuda.Event | None = None
        self._tensors = tensors
        if first.is_cuda:
            self._tensors = {
                name: torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(
                    tensor, non_blocking=True
                )
                for name, tensor in tensors.items()
            }
            self._copied = torch.cuda.Event()
            self._copied.record()

    def arrays(self) -> dict[str, np.ndarray]:
        """The tensors as arrays, once they are here."""
        if self._copied is not None:
            self._copied.synchronize()
        return {name: tensor.numpy() for name, tensor in self._tensors.items()}


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
        found.update(zip(numbers, _split(rows, tensors.arrays(), settings), strict=True))
    finished = [found[number] for number in sorted(found)]
    if journal:
        journal.add(packed(finished))
    return finished


def _split(
    rows: Sequence[EncodedRow], arrays: dict[str, np.ndarray], settings: CaptureSettings
) -> Iterator[CachedTargets]:
    """A batch's positions as its rows, with only the tokens that are kept."""
    if settings.codec.name == "rskd":
        ids, counts, kept = distribution.counted(arrays["ids"])
        values = np.log(counts.astype(np.float32) / settings.codec.samples)
        log_tail = np.full_like(arrays["log_partition"], -np.inf)
    else:
        kept, log_tail = arrays["kept"], arrays["log_tail"]
        inside = np.arange(arrays["ids"].shape[1]) < kept[:, None]
        ids, values = arrays["ids"][inside], arrays["values"][inside]
    tokens = np.concatenate([[0], np.cumsum(kept)])
    end = 0
    for row in rows:
        begin, end = end, end + sum(row.encoded.targets)
        inside_row = slice(tokens[begin], tokens[end])
        yield CachedTargets(
            id=row.id,
            tokens_sha256=row.encoded.sha256,
            kept=kept[begin:end],
            token_ids=ids[inside_row],
            logits=values[inside_row],
            log_partition=arrays["log_partition"][begin:end],
            log_tail=log_tail[begin:end],
            gold_logprob=arrays["gold_logprob"][begin:end],
            entropy=arrays["entropy"][begin:end],
        )
