"""What a codec keeps of logits: few passes over it and nothing sorted but the head.

Shapes: N positions, V vocabulary, k most kept, G grid temperatures, S draws. All on the logits'
device, in float32; the logits are used up.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from angelshare.teacher.settings import RskdSettings, TopkTailSettings

BLOCK = 64
Selected = dict[str, Tensor]


def topk_tail(
    logits_NV: Tensor, gold_N: Tensor, temperatures: tuple[float, ...], settings: TopkTailSettings
) -> Selected:
    """``ids`` and ``values`` [N, k], ``kept`` [N] and the positions' sums.

    Values are log-probabilities, best first, of which the first ``kept`` count; ``log_tail`` [N, G]
    is summed over the complement itself, so that a small one is not a difference of large sums.
    """
    values_NK, ids_NK = largest(logits_NV, settings.top_k)
    best_N1 = values_NK[:, :1].clone()
    logits_NV -= best_N1
    values_NK -= best_N1
    gold_N1 = logits_NV.gather(1, gold_N[:, None])
    rest: dict[float, Tensor] = {}
    for temperature, exp_NV in _exponentials(logits_NV, temperatures):
        exp_NV.scatter_(1, ids_NK, 0.0)
        rest[temperature] = exp_NV.sum(1)
        if temperature == 1.0:
            expected_N = torch.mul(exp_NV, logits_NV).sum(1)
    head_NK = values_NK.exp()
    expected_N += (head_NK * values_NK).sum(1)
    z_N = head_NK.sum(1) + rest[1.0]
    kept_N = _kept(head_NK.cumsum(1), settings.top_p * z_N, settings.top_p)
    inside_NK = torch.arange(values_NK.shape[1], device=kept_N.device) < kept_N[:, None]
    tails, partitions = [], []
    for temperature in temperatures:
        head_NK = (values_NK / temperature).exp()
        tails.append(rest[temperature] + (head_NK * ~inside_NK).sum(1))
        partitions.append(tails[-1] + (head_NK * inside_NK).sum(1))
    log_z_N1 = z_N.log()[:, None]
    grid_1G = torch.tensor([temperatures], device=log_z_N1.device)
    return {
        "ids": ids_NK.int(),
        "values": values_NK - log_z_N1,
        "kept": kept_N.int(),
        "log_tail": torch.stack(tails, 1).log() - log_z_N1 / grid_1G,
        "log_partition": torch.stack(partitions, 1).log() - log_z_N1 / grid_1G,
        "gold_logprob": (gold_N1 - log_z_N1)[:, 0],
        "entropy": log_z_N1[:, 0] - expected_N / z_N,
    }


def rskd(
    logits_NV: Tensor,
    gold_N: Tensor,
    temperatures: tuple[float, ...],
    settings: RskdSettings,
    uniform_N: Tensor,
) -> Selected:
    """``ids`` [N, S] of the draws, ascending by id, and the positions' sums.

    Draw i is the token at the quantile (i + u) / S of the cumulated probabilities.
    """
    logits_NV -= logits_NV.amax(1, keepdim=True)
    gold_N1 = logits_NV.gather(1, gold_N[:, None])
    partition: dict[float, Tensor] = {}
    for temperature, exp_NV in _exponentials(logits_NV, temperatures):
        partition[temperature] = exp_NV.sum(1)
        if temperature == 1.0:
            expected_N = torch.mul(exp_NV, logits_NV).sum(1)
            cumulated_NV = exp_NV.cumsum(1)
    steps_1S = torch.arange(settings.samples, device=uniform_N.device)[None]
    quantiles_NS = (steps_1S + uniform_N[:, None]) / settings.samples * cumulated_NV[:, -1:]
    ids_NS = torch.searchsorted(cumulated_NV, quantiles_NS, right=True, out_int32=True)
    z_N, partitions = partition[1.0], [partition[t] for t in temperatures]
    log_z_N1 = z_N.log()[:, None]
    grid_1G = torch.tensor([temperatures], device=log_z_N1.device)
    return {
        "ids": ids_NS.clamp(max=logits_NV.shape[1] - 1),
        "log_partition": torch.stack(partitions, 1).log() - log_z_N1 / grid_1G,
        "gold_logprob": (gold_N1 - log_z_N1)[:, 0],
        "entropy": log_z_N1[:, 0] - expected_N / z_N,
    }


def _exponentials(
    logits_NV: Tensor, temperatures: tuple[float, ...]
) -> Iterator[tuple[float, Tensor]]:
    """exp(logits / T) for every T, hottest first, in one buffer.

    Where T is half of the one before, the buffer is squared instead: an exp costs ten times that.
    """
    exp_NV = torch.empty_like(logits_NV)
    previous = 0.0
    for temperature in sorted(temperatures, reverse=True):
        if previous == 2 * temperature:
            exp_NV.mul_(exp_NV)
        else:
            torch.div(logits_NV, temperature, out=exp_NV).exp_()
        previous = temperature
        yield temperature, exp_NV


def _kept(cumulated_NK: Tensor, wanted_N: Tensor, top_p: float) -> Tensor:
    """The fewest tokens that hold the wanted mass, all k where these do not or ``top_p`` is 1."""
    k = cumulated_NK.shape[1]
    if top_p == 1:
        return torch.full_like(wanted_N, k, dtype=torch.int64)
    return ((cumulated_NK < wanted_N[:, None]).sum(1) + 1).clamp(max=k)


def largest(values_NV: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """``values_NV.topk(k)``; in a long row only the k blocks with the largest maxima are looked at.

    At most k blocks hold one of the k largest values each, and these have the largest maxima.
    """
    rows, width = values_NV.shape
    blocks = width // BLOCK
    if blocks < 4 * k:
        return values_NV.topk(k, dim=1)
    blocked_NBb = values_NV[:, : blocks * BLOCK].unflatten(1, (blocks, BLOCK))
    best_NK = blocked_NBb.amax(2).topk(k, dim=1, sorted=False).indices
    within_b = torch.arange(BLOCK, device=values_NV.device)
    chosen_NC = (best_NK[:, :, None] * BLOCK + within_b).reshape(rows, k * BLOCK)
    rest_R = torch.arange(blocks * BLOCK, width, device=values_NV.device)
    chosen_NC = torch.cat([chosen_NC, rest_R.expand(rows, -1)], 1)
    found = values_NV.gather(1, chosen_NC).topk(k, dim=1)
    return found.values, chosen_NC.gather(1, found.indices)


def counted(draws_NS: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ids and counts, flat, and how many different ids each position has.

    ``draws_NS`` ascends within a row; the result is ordered by falling count, then id.
    """
    rows, samples = draws_NS.shape
    new_NS = np.ones((rows, samples), dtype=bool)
    np.not_equal(draws_NS[:, 1:], draws_NS[:, :-1], out=new_NS[:, 1:])
    starts = np.flatnonzero(new_NS)
    counts = np.diff(starts, append=rows * samples)
    ids = draws_NS.ravel()[starts]
    order = np.lexsort((ids, -counts, starts // samples))
    return ids[order], counts[order], new_NS.sum(1, dtype=np.int32)
