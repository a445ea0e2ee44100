"""What a student is trained on: the teacher's distribution, and divergences from it.

Shapes: T target positions, V vocabulary, k kept teacher tokens. A teacher says at each position how
likely its k kept tokens are; everything else is one more outcome, the tail. Divergences therefore
compare k + 1 **buckets**, the tail last, and are true divergences: never negative, and 0 only where
student and teacher agree on all of them. Values are in nats; logits enter `fused`, not this module.

Written with d = log(y / x), each divergence is a sum of b(x, y) = x log(x / y) + y - x
= x (exp(d) - 1 - d) ≥ 0. The added y - x vanish in the sum, since both sides sum to 1, and keep
rounding from making it negative. Every function also returns its derivative by log q.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from angelshare.errors import AngelshareError
from angelshare.student.settings import LossSettings

IGNORED = -100
"""The label of a token that is no target (padding, prompts)."""
NEVER = -1e30
"""Stands for log 0: its exp is 0, and differences of two of them are 0 instead of NaN."""
SMALLEST_TAIL = -24 * math.log(2)
"""Log of the smallest tail mass that float32 log-probabilities of the kept tokens can show."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TopK:
    """A teacher's distribution at T positions and one temperature."""

    token_ids_Tk: Tensor
    """int64, most probable first; those in use differ within a row, the first of a row is in
    use."""
    log_probs_Tk: Tensor
    """float32, log-probabilities at ``temperature`` within the whole vocabulary; -inf: slot not in
    use, its id means nothing. A position without any has no teacher (``uld`` alone has such)."""
    log_tail_T: Tensor
    """float32, log of the mass outside the slots in use; -inf: none."""
    temperature: float

    def rows(self, here: slice) -> TopK:
        """Some of the positions, as views."""
        return TopK(
            token_ids_Tk=self.token_ids_Tk[here],
            log_probs_Tk=self.log_probs_Tk[here],
            log_tail_T=self.log_tail_T[here],
            temperature=self.temperature,
        )


@dataclass(frozen=True, slots=True)
class Mixture:
    """Teachers of the same positions and temperature, whose divergences are weighed.

    sum_i w_i KL(p_i ‖ q) differs from KL(sum_i w_i p_i ‖ q) by what does not depend on q (the
    generalised Jensen-Shannon divergence of the p_i), so for ``forward_kl`` its gradient is that of
    the divergence from the mixed distribution, which no cache would have to hold.
    """

    teachers: tuple[TopK, ...]
    weights: tuple[float, ...]
    """Positive; they sum to 1."""

    @property
    def temperature(self) -> float:
        """That of every teacher."""
        return self.teachers[0].temperature

    def rows(self, here: slice) -> Mixture:
        """Some of the positions, as views."""
        return Mixture(tuple(teacher.rows(here) for teacher in self.teachers), self.weights)


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
    token_ids_Tk: Tensor,
    logits_Tk: Tensor,
    log_partition_T: Tensor,
    temperature: float,
    *,
    tail: bool,
) -> TopK:
    """The teacher at ``temperature``: log p_T(j) = logit_j / T - log sum_v exp(logit_v / T).

    Slots with a logit of -inf are not in use. Where there is a ``tail``, it is what the others
    leave of 1, in float64; a sample's weights sum to 1 and have none.
    """
    log_probs = logits_Tk.double() / temperature - log_partition_T.double()[:, None]
    log_tail_T = torch.full_like(log_probs[:, 0], -torch.inf)
    if tail:
        log_tail_T = torch.log(-torch.expm1(log_probs.logsumexp(-1).clamp(max=0)))
    return TopK(
        token_ids_Tk=token_ids_Tk,
        log_probs_Tk=log_probs.float(),
        log_tail_T=log_tail_T.float(),
        temperature=temperature,
    )


def forward_kl(log_p: Tensor, log_q: Tensor) -> tuple[Tensor, Tensor]:
    """KL(p ‖ q) by bucket, and its derivative by log q."""
    return _bregman(log_p, log_q, log_q - log_p), -log_p.exp()


def reverse_kl(log_p: Tensor, log_q: Tensor) -> tuple[Tensor, Tensor]:
    """KL(q ‖ p) by bucket, and its derivative by log q."""
    return _bregman(log_q, log_p, log_p - log_q), log_q.exp() * (log_q - log_p)


def jsd(log_p: Tensor, log_q: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    """beta KL(p ‖ m) + (1 - beta) KL(q ‖ m), m = beta p + (1 - beta) q, and its derivative.

    The generalised Jensen-Shannon divergence of Agarwal et al. 2023 (arXiv:2306.13649, eq. 1).
    Divided by beta it becomes KL(p ‖ q) as beta → 0, and KL(q ‖ p) divided by 1 - beta as beta → 1.
    """
    p_over_q = log_p - log_q
    down = torch.log1p(beta * torch.expm1(p_over_q.clamp(max=0)))
    up = torch.log1p((1 - beta) * torch.expm1(-p_over_q.clamp(min=0)))
    m_over_q = torch.where(p_over_q > 0, up + p_over_q, down)
    m_over_p = torch.where(p_over_q > 0, up, down - p_over_q)
    log_m = torch.maximum(log_p, log_q) + torch.where(p_over_q > 0, m_over_p, m_over_q)
    from_p = _bregman(log_p, log_m, m_over_p)
    from_q = _bregman(log_q, log_m, m_over_q)
    return beta * from_p + (1 - beta) * from_q, -(1 - beta) * log_q.exp() * m_over_q


def by_rank(log_p: Tensor, log_q: Tensor) -> tuple[Tensor, Tensor]:
    """|p - q| by bucket, and its derivative by log q; buckets are ranks, and the tail.

    Summed, it is the distance W1 of universal logit distillation (Boizard et al. 2024,
    arXiv:2402.12030) where the teacher keeps every token; of fewer it never exceeds that, and lacks
    at most twice the smaller of the two tails.
    """
    q = log_q.exp()
    difference = q - log_p.exp()
    return difference.abs(), difference.sign() * q


def _bregman(log_x: Tensor, log_y: Tensor, d: Tensor) -> Tensor:
    """x log(x / y) + y - x elementwise, ≥ 0, with d = log(y / x).

    Accurate near x = y, where it is x (exp(d) - 1 - d), and where x vanishes.
    """
    x, near = log_x.exp(), d.clamp(max=1)
    return torch.where(d < 1, x * (torch.expm1(near) - near), log_y.exp() - x * (1 + d)).clamp(
        min=0
    )


Divergence = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def divergence_of(settings: LossSettings) -> Divergence:
    """The function from log-probabilities of buckets [T, k + 1] to terms and derivatives."""
    if settings.divergence == "jsd":
        assert settings.beta is not None
        return partial(jsd, beta=settings.beta)
    named = {"forward_kl": forward_kl, "reverse_kl": reverse_kl, "uld": by_rank}
    return named[settings.divergence]


def size_at(settings: LossSettings, temperature: float) -> float:
    """The factor of D that keeps the size of its gradient independent of the temperature.

    A divergence's gradient falls with T² (Hinton, Vinyals, Dean 2015, arXiv:1503.02531), that of a
    distance with T.
    """
    return temperature if settings.by_rank else temperature**2
