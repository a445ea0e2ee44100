"""What a batch's capture gave, on its way from the device to rows of the cache."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from angelshare.data.sequences import EncodedRow
from angelshare.teacher import distribution
from angelshare.teacher.codecs.rows import CachedTargets
from angelshare.teacher.settings import CaptureSettings


class CapturedRow(Protocol):
    """A row of a cache, whatever is cached."""

    @property
    def id(self) -> str:
        """The sequence's id in its table."""

    @property
    def tokens_sha256(self) -> bytes:
        """``Encoded.sha256`` of the sequence the teacher read."""


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


def split_rows(
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
