"""Losses of a student on target positions: pure functions, in nats, summed in float32.

Shapes: T target positions, V vocabulary, k kept teacher tokens. Every function returns a **sum**
over positions; the caller divides by the global count of target tokens, so that no loss depends on
how a batch was cut into forward passes. Logits are first restricted to the tokenizer's vocabulary
(`restrict`): the padding rows of an embedding matrix are -inf on both sides.

The teacher is a `TopK`: its k best tokens at each position with exact log-probabilities at the
temperature of the loss. What is outside of them is one more outcome, the tail, whose mass
1 - sum_j p_j is exact too, because the cache keeps the partition over the whole vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from angelshare.errors import AngelshareError
from angelshare.student.settings import LossSettings

IGNORED = -100
"""The label of a token that is no target (padding, prompts)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TopK:
    """A teacher's distribution at T positions and one temperature."""

    token_ids_Tk: Tensor
    """int64; different within a row."""
    log_probs_Tk: Tensor
    """float32, log-probabilities at ``temperature`` within the whole vocabulary."""
    temperature: float


@dataclass(frozen=True, slots=True, kw_only=True)
class LossSums:
    """A batch's loss and its parts, each summed over target positions (0-d float32)."""

    loss: Tensor
    """What training minimises."""
    cross_entropy: Tensor
    """Of the hard labels, at temperature 1."""
    divergence: Tensor | None
    """T² times the divergence from the teacher; None without a teacher."""


def grid_index(temperature: float, grid: tuple[float, ...]) -> int:
    """Where ``temperature`` stands in a cache's grid; ``AngelshareError`` if it does not."""
    if temperature in grid:
        return grid.index(temperature)
    raise AngelshareError(
        f"temperature {temperature} is not one of the logit cache's grid {list(grid)}, where the "
        "mass outside the top k is exact: use one of these, or add it to capture.temperatures and "
        "capture anew"
    )


def at_temperature(
    token_ids_Tk: Tensor, logits_Tk: Tensor, log_partition_T: Tensor, temperature: float
) -> TopK:
    """The teacher at ``temperature``: log p_T(j) = logit_j / T - log sum_v exp(logit_v / T)."""
    log_probs = logits_Tk.float() / temperature - log_partition_T.float()[:, None]
    return TopK(token_ids_Tk=token_ids_Tk, log_probs_Tk=log_probs, temperature=temperature)


def restrict(logits: Tensor, vocab_size: int) -> Tensor:
    """The last axis cut to the tokenizer's ``vocab_size`` tokens, as if the rest were -inf."""
    return logits[..., :vocab_size]


def target_logits(logits_BLV: Tensor, labels_BL: Tensor) -> tuple[Tensor, Tensor]:
    """Logits [T, V] that predict the batch's targets, and the targets [T], row by row.

    Position t-1 predicts the token at t, so the labels are shifted by one and the first of a row is
    never a target.
    """
    wanted_BL = labels_BL[:, 1:] != IGNORED
    return logits_BLV[:, :-1][wanted_BL], labels_BL[:, 1:][wanted_BL]


def cross_entropy_sum(student_logits_TV: Tensor, targets_T: Tensor) -> Tensor:
    """Sum over positions of -log softmax(logits)[target]."""
    return torch.nn.functional.cross_entropy(student_logits_TV.float(), targets_T, reduction="sum")


def topk_kl_sum(student_logits_TV: Tensor, teacher: TopK) -> Tensor:
    """T² · KL(p ‖ q) at the teacher's temperature, tail as one more outcome; ≥ 0.

    With p_j, q_j over the k tokens and p_0, q_0 = 1 - sum_j over the tail,
    KL = sum_j p_j log(p_j / q_j) + p_0 log(p_0 / q_0). T² keeps the size of the gradient
    independent of T (Hinton, Vinyals, Dean 2015, arXiv:1503.02531). log q_0 is the logsumexp over
    the complement, never log(1 - sum): its gradient stays finite when the student's top k hold all
    mass.
    """
    scaled_TV = student_logits_TV.float() / teacher.temperature
    log_z_T1 = scaled_TV.logsumexp(-1, keepdim=True)
    log_p, log_q = teacher.log_probs_Tk, scaled_TV.gather(-1, teacher.token_ids_Tk) - log_z_T1
    if teacher.token_ids_Tk.shape[-1] < student_logits_TV.shape[-1]:
        tail_p_T1 = (1 - log_p.exp().sum(-1, keepdim=True)).clamp(min=0)
        outside_TV = scaled_TV.scatter(-1, teacher.token_ids_Tk, -torch.inf)
        log_p = torch.cat([log_p, tail_p_T1.log()], -1)
        log_q = torch.cat([log_q, outside_TV.logsumexp(-1, keepdim=True) - log_z_T1], -1)
    return teacher.temperature**2 * _divergence_terms(log_p, log_q).sum()


def _divergence_terms(log_p: Tensor, log_q: Tensor) -> Tensor:
    """p log(p / q) + q - p elementwise: the KL divergence once summed, since p and q sum to 1 each.

    Every term is ≥ 0, so rounding cannot make the sum negative. With d = log(q / p) a term is
    p (exp(d) - 1 - d), which expm1 keeps accurate near q = p; where p vanishes it is q.
    """
    p = log_p.exp()
    d = log_q - log_p
    near = d.clamp(max=1)
    terms = torch.where(
        d < 1,
        p * (torch.expm1(near) - near),
        log_q.exp() - p - p * log_q + torch.xlogy(p, p),
    )
    return terms.clamp(min=0)


def truncated_kl_sum(student_logits_TV: Tensor, teacher: TopK) -> Tensor:
    """T² · sum_j p_j log(p_j / q_j) over the k kept tokens only: the paper's form.

    No divergence: p and q do not sum to 1 over the kept tokens, so the value can be negative
    (teacher 0.5, 0.2 and student 0.6, 0.3 give -0.172). Its gradient for a kept token is
    a · q_j - p_j with a = sum_j p_j < 1, not 0 at q = p: it inflates the kept tokens by 1 / a and
    drives the tail to 0.
    """
    scaled_TV = student_logits_TV.float() / teacher.temperature
    log_q = scaled_TV.log_softmax(-1).gather(-1, teacher.token_ids_Tk)
    p = teacher.log_probs_Tk.exp()
    return teacher.temperature**2 * (torch.xlogy(p, p) - p * log_q).sum()


DIVERGENCES = {"tail_bucket": topk_kl_sum, "truncated": truncated_kl_sum}


def student_loss(
    student_logits_TV: Tensor, targets_T: Tensor, teacher: TopK | None, settings: LossSettings
) -> LossSums:
    """alpha · CE + (1 - alpha) · T² · divergence; plain CE without a teacher. All summed."""
    cross_entropy = cross_entropy_sum(student_logits_TV, targets_T)
    if teacher is None:
        return LossSums(loss=cross_entropy, cross_entropy=cross_entropy, divergence=None)
    divergence = DIVERGENCES[settings.divergence](student_logits_TV, teacher)
    loss = settings.alpha * cross_entropy + (1 - settings.alpha) * divergence
    return LossSums(loss=loss, cross_entropy=cross_entropy, divergence=divergence)
