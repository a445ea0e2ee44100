"""The loss once more, dense, in float64 and by the textbook's formulas: what the fused one is
compared with. Nothing here is shared with the library but the names of the settings."""

from __future__ import annotations

import torch
from torch.special import xlogy

from angelshare.student.losses import TopK
from angelshare.student.settings import LossSettings

SMALLEST_TAIL = 2.0**-24
FLOATS = torch.float64


def teacher_of(logits_TV: torch.Tensor, k: int, temperature: float) -> TopK:
    """The top k of ``logits_TV`` at a temperature, with the exact tail, rounded to float32."""
    log_p = (logits_TV.double() / temperature).log_softmax(-1)
    ids = logits_TV.topk(k, dim=-1).indices
    outside = log_p.scatter(-1, ids, -torch.inf)
    return TopK(
        token_ids_Tk=ids,
        log_probs_Tk=log_p.gather(-1, ids).float(),
        log_tail_T=outside.logsumexp(-1).float(),
        temperature=temperature,
    )


def buckets(logits_TV: torch.Tensor, ids: torch.Tensor, temperature: float) -> torch.Tensor:
    """Log-probabilities of the tokens ``ids`` and, unless they are all, of the rest."""
    scaled = logits_TV.to(FLOATS) / temperature
    log_q = scaled.log_softmax(-1)
    kept = log_q.gather(-1, ids)
    if ids.shape[-1] == logits_TV.shape[-1]:
        return kept
    rest = log_q.masked_fill(torch.zeros_like(log_q).scatter(-1, ids, 1).bool(), -torch.inf)
    return torch.cat([kept, rest.logsumexp(-1, keepdim=True)], -1)


def kl(log_p: torch.Tensor, log_q: torch.Tensor) -> torch.Tensor:
    """sum p log(p / q)."""
    p = log_p.exp()
    return (xlogy(p, p) - p * log_q).sum()


def divergence(
    student_TV: torch.Tensor, teacher_TV: torch.Tensor, k: int, settings: LossSettings
) -> torch.Tensor:
    """T² times the divergence over the teacher's k best tokens and the rest, summed."""
    t = settings.temperature
    ids = teacher_TV.topk(k, dim=-1).indices
    log_p, log_q = buckets(teacher_TV, ids, t), buckets(student_TV, ids, t)
    if settings.divergence == "forward_kl":
        value = kl(log_p, log_q)
    elif settings.divergence == "reverse_kl":
        if k < teacher_TV.shape[-1]:
            tail = log_p[:, -1:].clamp(min=torch.tensor(SMALLEST_TAIL, dtype=FLOATS).log())
            log_p = torch.cat([log_p[:, :-1], tail], -1)
        value = (log_q.exp() * (log_q - log_p)).sum()
    else:
        beta = torch.tensor(settings.beta, dtype=FLOATS)
        log_m = torch.logaddexp(log_p + beta.log(), log_q + (1 - beta).log())
        value = beta * (log_p.exp() * (log_p - log_m)).sum()
        value = value + (1 - beta) * (log_q.exp() * (log_q - log_m)).sum()
    return t**2 * value


def loss(
    student_TV: torch.Tensor,
    targets_T: torch.Tensor,
    teacher_TV: torch.Tensor,
    k: int,
    settings: LossSettings,
) -> torch.Tensor:
    """alpha · CE + (1 - alpha) · T² · D, summed, float64."""
    hard = torch.nn.functional.cross_entropy(student_TV.to(FLOATS), targets_T, reduction="sum")
    soft = divergence(student_TV, teacher_TV.to(FLOATS), k, settings)
    return settings.alpha * hard + (1 - settings.alpha) * soft
