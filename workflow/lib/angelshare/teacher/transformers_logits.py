"""Capture by transformers: hidden states by the model, logits and what is kept of them by us.

Only target positions pass through the head, whose rows beyond the tokenizer (vocabulary padding)
are cut off before any sum. Head and sums are float32 whatever the weights' type.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import linear
from transformers import PreTrainedModel

from angelshare.data.sequences import EncodedRow
from angelshare.errors import AngelshareError
from angelshare.teacher import distribution
from angelshare.teacher.captured import OnItsWay
from angelshare.teacher.prompts import row_seed
from angelshare.teacher.settings import CaptureSettings

LOGITS_PER_CHUNK = 2**25
"""What the head makes at once: 128 MB."""
LOGITS_IN_CACHE = 2**19
"""What a processor looks at at once, so that several passes over it stay within its cache."""
HEAD_TOLERANCE = {torch.float32: 1e-3, torch.float16: 0.01, torch.bfloat16: 0.03}


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


def check_head(model: PreTrainedModel, head: Head, rows: Sequence[EncodedRow]) -> None:
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


def capture_batch(
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
    hidden_BTH = model.base_model(
        input_ids=ids_BT.to(model.device), use_cache=False
    ).last_hidden_state
    hidden_NH = hidden_BTH.flatten(0, 1)[predicting_N.to(model.device)]
    return OnItsWay(kept(head, hidden_NH, gold_N, settings, uniform(rows, settings)))


def kept(
    head: Head, hidden_NH: Tensor, gold_N: Tensor, settings: CaptureSettings, uniform_N: Tensor
) -> dict[str, Tensor]:
    """What is kept of the distributions at positions whose last hidden states are given: a chunk of
    logits at a time, so that those of all never exist. ``uniform_N`` as `uniform` makes it."""
    uniform_N = uniform_N.to(hidden_NH.device)
    size = max(1, LOGITS_PER_CHUNK // head.vocab_size)
    few = size if hidden_NH.is_cuda else min(size, max(1, LOGITS_IN_CACHE // head.vocab_size))
    chunks = [
        selected(logits, gold, uniform, settings)
        for hidden, golds, uniforms in zip(
            hidden_NH.split(size), gold_N.split(size), uniform_N.split(size), strict=True
        )
        for logits, gold, uniform in zip(
            head(hidden).split(few), golds.split(few), uniforms.split(few), strict=True
        )
    ]
    return {name: torch.cat([chunk[name] for chunk in chunks]) for name in chunks[0]}


def selected(
    logits_NV: Tensor, gold_N: Tensor, uniform_N: Tensor, settings: CaptureSettings
) -> dict[str, Tensor]:
    codec, grid = settings.codec, settings.temperatures
    if codec.name == "rskd":
        return distribution.rskd(logits_NV, gold_N, grid, codec, uniform_N)
    return distribution.topk_tail(logits_NV, gold_N, grid, codec)


def uniform(rows: Sequence[EncodedRow], settings: CaptureSettings) -> Tensor:
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
