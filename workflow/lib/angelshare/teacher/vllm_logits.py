"""Capture by vLLM, for a teacher that one process cannot hold: its tensor parallelism.

vLLM gives the k best log-probabilities at T = 1 of every position and that of the token that stands
there. The head is computed in float32. What these cannot give is said in the file's metadata
(`cache.LIMITS`). Its partition ranges over all rows of the head, those that pad the vocabulary
among them: what these hold at the positions of the shortest row is measured at the start, and more
than `PADDING_TOLERANCE` is refused; those among the k best are taken out.

Entry i of ``prompt_logprobs`` holds predictions of token i (entry 0 is empty): first the token that
stands there, whatever its rank, then the k best in order, the same token once more among them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from angelshare.data.sequences import EncodedRow
from angelshare.errors import AngelshareError
from angelshare.teacher.captured import OnItsWay
from angelshare.teacher.models import load_config
from angelshare.teacher.settings import CaptureSettings, TopkTailSettings
from angelshare.teacher.vllm_backend import start_engine

if TYPE_CHECKING:
    from vllm.logprobs import FlatLogprobs

PADDING_TOLERANCE = 2.0**-9
"""Probability; about the error of a stored log-probability."""
ROWS_AT_ONCE = 256
Arrays = dict[str, np.ndarray]


class VllmLogits:
    """See the module; holds the engine."""

    def __init__(
        self,
        model: str | Path,
        vocab_size: int,
        rows: Sequence[EncodedRow],
        settings: CaptureSettings,
        *,
        revision: str | None = None,
        trust_remote_code: bool = False,
    ) -> None:
        """Start the engine for ``rows``, of a tokenizer of ``vocab_size`` tokens.

        ``AngelshareError`` if vLLM is not installed, the model has fewer tokens than the tokenizer,
        or rows of its head that pad the vocabulary hold more than ``PADDING_TOLERANCE``.
        """
        if settings.codec.name != "topk_tail":
            raise AngelshareError(f"vLLM cannot give what the codec {settings.codec.name} keeps")
        self._codec, self._vocab_size = settings.codec, vocab_size
        config = load_config(model, revision=revision, trust_remote_code=trust_remote_code)
        if config.vocab_size < vocab_size:
            raise AngelshareError(
                f"{model}: the tokenizer has {vocab_size} tokens, the model only "
                f"{config.vocab_size}; use the tokenizer the model was trained with"
            )
        room = max(len(row.encoded.input_ids) for row in rows) + 1
        self._engine = start_engine(
            model,
            "capture.backend",
            revision=revision,
            trust_remote_code=trust_remote_code,
            dtype=settings.dtype,
            seed=0,
            tensor_parallel_size=settings.tensor_parallel,
            max_model_len=room,
            max_num_seqs=min(ROWS_AT_ONCE, settings.batch_tokens),
            max_num_batched_tokens=max(room, settings.batch_tokens),
            max_logprobs=-1,
            enable_prefix_caching=False,
            hf_overrides={"head_dtype": "float32"},
        )
        if config.vocab_size > vocab_size:
            self._check_padding(model, min(rows, key=lambda row: len(row.encoded.input_ids)))

    def capture_batch(self, rows: Sequence[EncodedRow]) -> OnItsWay:
        """What `topk_tail` keeps of the rows' target positions, one row after the other."""
        found = [
            selected(flat, row.encoded.targets, self._codec, self._vocab_size)
            for row, flat in zip(rows, self._prompt_logprobs(rows, self._codec.top_k), strict=True)
        ]
        return OnItsWay(
            {
                name: torch.from_numpy(np.concatenate([one[name] for one in found]))
                for name in found[0]
            }
        )

    def _prompt_logprobs(self, rows: Sequence[EncodedRow], k: int) -> list[FlatLogprobs]:
        """The k best of every position of the rows; -1 for all tokens."""
        from vllm import SamplingParams
        from vllm.inputs import TokensPrompt

        outputs = self._engine.generate(
            [TokensPrompt(prompt_token_ids=row.encoded.input_ids) for row in rows],
            SamplingParams(
                max_tokens=1,
                temperature=0.0,
                prompt_logprobs=k,
                flat_logprobs=True,
                detokenize=False,
            ),
            use_tqdm=False,
        )
        found: list[Any] = [output.prompt_logprobs for output in outputs]
        return found

    def _check_padding(self, model: str | Path, row: EncodedRow) -> None:
        flat = self._prompt_logprobs([row], -1)[0]
        share = padding_mass(flat, row.encoded.targets, self._vocab_size)
        if share > PADDING_TOLERANCE:
            raise AngelshareError(
                f"{model}: rows of its head that no token of the tokenizer has hold {share:.2g} of "
                f"the probability at a position of row {row.id}, which vLLM cannot leave out; use "
                "capture.backend transformers"
            )


def selected(
    flat: FlatLogprobs, targets: Sequence[bool], codec: TopkTailSettings, vocab_size: int
) -> Arrays:
    """Of one row's n targets the arrays that `distribution.topk_tail` makes, on a grid of T = 1.

    Ids at or above ``vocab_size`` are left out, and the rest renormalised by what they held.
    ``entropy`` is NaN. ``AngelshareError`` where none of the best is below.
    """
    ids_NE, logprobs_NE = _entries(flat, targets)
    gold_N, values_NK, ids_NK = logprobs_NE[:, 0], logprobs_NE[:, 1:], ids_NE[:, 1:]
    outside_NK = ids_NK >= vocab_size
    order_NK = np.argsort(outside_NK, axis=1, kind="stable")
    p_NK = np.exp(np.where(outside_NK, -np.inf, values_NK))
    log_z_N1 = np.log1p(-np.exp(np.where(outside_NK, values_NK, -np.inf)).sum(1, keepdims=True))
    ids_NK, p_NK = (np.take_along_axis(a, order_NK, 1) for a in (ids_NK, p_NK))
    p_NK /= np.exp(log_z_N1)
    known_N = (~outside_NK).sum(1)
    if not known_N.all():
        raise AngelshareError(
            "the model's best predictions at a position are nothing but rows of its head that no "
            "token of the tokenizer has; use capture.backend transformers"
        )
    kept_N = known_N
    if codec.top_p < 1:
        kept_N = np.minimum((p_NK.cumsum(1) < codec.top_p).sum(1) + 1, known_N)
    beyond_NK = np.arange(p_NK.shape[1]) >= kept_N[:, None]
    # What is known of the tail is summed, so that only the unknown rest is a difference.
    tail_N = (p_NK * beyond_NK).sum(1) + np.maximum(1 - p_NK.sum(1), 0)
    with np.errstate(divide="ignore"):
        values_NK, log_tail_N = np.log(p_NK), np.log(tail_N)
    columns = {
        "values": values_NK,
        "log_tail": log_tail_N[:, None],
        "log_partition": np.zeros((len(gold_N), 1)),
        "gold_logprob": gold_N - log_z_N1[:, 0],
        "entropy": np.full(len(gold_N), np.nan),
    }
    return {
        "ids": ids_NK.astype(np.int32),
        "kept": kept_N.astype(np.int32),
        **{name: column.astype(np.float32) for name, column in columns.items()},
    }


def padding_mass(flat: FlatLogprobs, targets: Sequence[bool], vocab_size: int) -> float:
    """The most that ids at or above ``vocab_size`` hold at a target, where all were asked for."""
    ids_NE, logprobs_NE = _entries(flat, targets)
    outside_NK = ids_NE[:, 1:] >= vocab_size
    return float((np.exp(logprobs_NE[:, 1:]) * outside_NK).sum(1).max())


def _entries(flat: FlatLogprobs, targets: Sequence[bool]) -> tuple[np.ndarray, np.ndarray]:
    """Ids and log-probabilities, float64, [n, 1 + k] at the targets: the token there, the best."""
    starts, ends = np.asarray(flat.start_indices), np.asarray(flat.end_indices)
    if len(starts) != len(targets):
        raise AngelshareError(
            f"vLLM gave log-probabilities of {len(starts)} positions for {len(targets)} tokens"
        )
    chosen_N = np.flatnonzero(targets)
    widths = np.unique(ends[chosen_N] - starts[chosen_N])
    if len(widths) != 1:
        raise AngelshareError(f"vLLM gave unequal numbers of log-probabilities: {widths.tolist()}")
    places_NE = starts[chosen_N][:, None] + np.arange(widths[0])
    ids = np.asarray(flat.token_ids, dtype=np.int64)
    logprobs = np.asarray(flat.logprobs, dtype=np.float64)
    return ids[places_NE], logprobs[places_NE]
