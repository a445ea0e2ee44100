"""The student's head and its loss in one operation that never holds logits of all positions.

loss = sum over targets of alpha · CE + (1 - alpha) · T² · D(teacher, student), CE at temperature 1
and D at T over the teacher's kept tokens and their tail (`losses`). T², or T, keeps the size of D's
gradient independent of T (`losses.size_at`). It is a **sum**: the caller divides by the global
count of target tokens, so that no loss depends on how a step was cut into batches, forward passes
or ranks.

Where D compares ranks instead of tokens (``uld``), the student's tokens are its own k best, and the
same buckets hold the k largest probabilities of both sides and what is left.

Hidden states of a chunk of positions go through the head, the loss and its gradient are computed in
place on that chunk's float32 logits, and the gradient goes straight back through the head into the
gradients of hidden states and head, as in Liger's fused linear cross-entropy (Hsu et al. 2024,
arXiv:2410.10989). Backward only scales them. Beside these gradients, which any backward pass makes,
no memory grows with positions × vocabulary.

Shapes: T target positions, C of them in a chunk, B in a block, H hidden size, V vocabulary, k kept
tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from angelshare.student.losses import NEVER, SMALLEST_TAIL, Mixture, TopK, divergence_of, size_at
from angelshare.student.settings import LossSettings
from angelshare.teacher.distribution import largest

CHUNK_BYTES = {"cpu": 2**27, "cuda": 2**29}
"""Float32 logits of a chunk: large enough for the head's products to run at full speed."""
BLOCK_BYTES = {"cpu": 2**22, "cuda": 2**29}
"""Float32 logits whose loss is computed at once. It needs up to two more buffers of that size, so
small blocks leave room for large chunks: on a processor every chunk passes over the gradient of the
whole head once more, and twice the chunk is 11 % less time."""


class LossSums(NamedTuple):
    """A batch's loss and, by position, its parts, which have no gradient."""

    loss: Tensor
    """What training minimises, summed over positions (0-d float32)."""
    cross_entropy_T: Tensor
    """Of the hard labels, at temperature 1 (float32)."""
    divergence_T: Tensor | None
    """The divergence from the teacher, times `losses.size_at` (float32); None without a teacher."""
    states: Mapping[str, Tensor] = {}
    """Terms of hidden states by role, with a gradient: this pass's share of their means over the
    optimizer step."""


def head_loss(
    hidden_TH: Tensor,
    weight_VH: Tensor,
    bias_V: Tensor | None,
    targets_T: Tensor,
    teacher: TopK | Mixture | None,
    settings: LossSettings,
    vocab_size: int,
) -> LossSums:
    """The loss of hidden states under a linear head; plain cross-entropy without a teacher.

    Rows of the head from ``vocab_size`` on are padding: they count as logits of -inf and get no
    gradient. Products are computed in autocast's dtype where it is on, otherwise in the head's; all
    else in float32.
    """
    return LossSums(
        *_HeadLoss.apply(hidden_TH, weight_VH, bias_V, targets_T, teacher, settings, vocab_size)
    )


class _HeadLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_TH: Tensor,
        weight_VH: Tensor,
        bias_V: Tensor | None,
        targets_T: Tensor,
        teacher: TopK | Mixture | None,
        settings: LossSettings,
        vocab_size: int,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        ctx.set_materialize_grads(False)
        positions, device = len(targets_T), hidden_TH.device.type
        cross_entropy_T = hidden_TH.new_empty(positions, dtype=torch.float32)
        divergence_T = None if teacher is None else torch.empty_like(cross_entropy_T)
        head = _Head((hidden_TH, weight_VH, bias_V), ctx.needs_input_grad[:3], vocab_size)
        with torch.autocast(device, enabled=False):
            for chunk in _pieces(positions, CHUNK_BYTES, device, vocab_size):
                logits_CV = head.logits(chunk)
                for block in _pieces(len(logits_CV), BLOCK_BYTES, device, vocab_size):
                    here = slice(chunk.start + block.start, chunk.start + block.stop)
                    logits_BV, targets_B1 = logits_CV[block], targets_T[here, None]
                    if teacher is None or divergence_T is None:
                        hard_B1, gradient_BV = _hard(logits_BV, targets_B1, head.trained)
                    else:
                        hard_B1, divergence_T[here], gradient_BV = _mixed(
                            logits_BV, targets_B1, teacher.rows(here), settings, head.trained
                        )
                    cross_entropy_T[here] = hard_B1[:, 0]
                    if gradient_BV is None:
                        continue
                    if len(gradient_BV) == len(logits_CV):
                        logits_CV = gradient_BV
                    else:
                        logits_BV.copy_(gradient_BV)
                if head.trained:
                    head.backward(chunk, logits_CV)
        ctx.save_for_backward(*head.gradients())
        total = cross_entropy_T.sum()
        if divergence_T is None:
            ctx.mark_non_differentiable(cross_entropy_T)
        else:
            ctx.mark_non_differentiable(cross_entropy_T, divergence_T)
            total = settings.alpha * total + (1 - settings.alpha) * divergence_T.sum()
        return total, cross_entropy_T, divergence_T

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, scale: Tensor | None, *_: Tensor | None) -> tuple[Tensor | None, ...]:
        gradients = (None, None, None) if scale is None else ctx.saved_tensors
        scaled = (None if g is None else g.mul_(scale) for g in gradients)
        return (*scaled, None, None, None, None)


def _pieces(
    positions: int, size_bytes: Mapping[str, int], device: str, vocab_size: int
) -> Iterator[slice]:
    """Positions, as many at a time as have float32 logits of that size; at least one."""
    rows = max(1, size_bytes.get(device, size_bytes["cuda"]) // (4 * vocab_size))
    for begin in range(0, positions, rows):
        yield slice(begin, min(begin + rows, positions))


class _Head:
    """A linear head and the gradients that chunks of positions add to it."""

    def __init__(
        self,
        inputs: tuple[Tensor, Tensor, Tensor | None],
        wanted: Sequence[bool],
        vocab_size: int,
    ) -> None:
        hidden_TH, weight_VH, bias_V = inputs
        device, dtype = weight_VH.device.type, weight_VH.dtype
        if torch.is_autocast_enabled(device):
            dtype = torch.get_autocast_dtype(device)
        self.hidden_TH = hidden_TH.to(dtype)
        self.weight_VH = weight_VH[:vocab_size].to(dtype)
        self.bias_V = None if bias_V is None else bias_V[:vocab_size].float()
        self.trained = any(wanted)
        self._dtypes = [None if x is None else x.dtype for x in inputs]
        self._gradients = [
            torch.zeros_like(x, dtype=torch.float32) if x is not None and want else None
            for x, want in zip(inputs, wanted, strict=True)
        ]

    def logits(self, here: slice) -> Tensor:
        """Logits of some positions, float32 [C, V]."""
        logits_CV = _product(self.hidden_TH[here], self.weight_VH.t())
        return logits_CV if self.bias_V is None else logits_CV.add_(self.bias_V)

    def backward(self, here: slice, gradient_CV: Tensor) -> None:
        """Add what the gradient by the logits of some positions means for the head's inputs."""
        by_hidden, by_weight, by_bias = self._gradients
        vocab_size = gradient_CV.shape[1]
        if by_bias is not None:
            by_bias[:vocab_size] += gradient_CV.sum(0)
        gradient_CV = gradient_CV.to(self.weight_VH.dtype)
        if by_hidden is not None:
            by_hidden[here] = _product(gradient_CV, self.weight_VH)
        if by_weight is not None:
            _add_product(by_weight[:vocab_size], gradient_CV.t(), self.hidden_TH[here])

    def gradients(self) -> list[Tensor | None]:
        """By hidden states, weight and bias, in their dtypes; None where none is wanted."""
        return [
            None if gradient is None else gradient.to(dtype)
            for gradient, dtype in zip(self._gradients, self._dtypes, strict=True)
        ]


def _product(a: Tensor, b: Tensor) -> Tensor:
    """a @ b in float32; on a GPU without rounding to a narrower dtype on the way."""
    if a.is_cuda and a.dtype != torch.float32:
        return torch.mm(a, b, out_dtype=torch.float32)
    return torch.mm(a, b).float()


def _add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """total += a @ b for a float32 ``total``."""
    if a.dtype == torch.float32:
        total.addmm_(a, b)
    elif a.is_cuda:
        torch.addmm(total, a, b, out_dtype=torch.float32, out=total)
    else:
        total += torch.mm(a, b)


def _hard(
    logits_CV: Tensor, targets_C1: Tensor, trained: bool, weight: float = 1.0
) -> tuple[Tensor, Tensor | None]:
    """Cross-entropy [C, 1] and, where ``trained``, its gradient times ``weight`` [C, V]."""
    log_q_CV = logits_CV.log_softmax(-1)
    cross_entropy_C1 = -log_q_CV.gather(1, targets_C1)
    if not trained or weight == 0:
        return cross_entropy_C1, None
    gradient_CV = log_q_CV.exp_()
    if weight != 1:
        gradient_CV.mul_(weight)
    ones_C1 = torch.full_like(cross_entropy_C1, -weight)
    return cross_entropy_C1, gradient_CV.scatter_add_(1, targets_C1, ones_C1)


def _of_all(
    logits_CV: Tensor, targets_C1: Tensor, teacher: Mixture, settings: LossSettings, trained: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """As `_mixed`, of several teachers: the weighted sum of what each of them alone gives.

    Of two it takes one more buffer of a chunk's logits at once than of one, of more two.
    """
    divergence_C, gradient_CV = torch.zeros_like(logits_CV[:, 0]), None
    pairs = list(zip(teacher.weights, teacher.teachers, strict=True))
    for number, (weight, one) in enumerate(pairs, start=1):
        own_CV = logits_CV if number == len(pairs) else logits_CV.clone()
        hard_C1, soft_C, added_CV = _mixed(own_CV, targets_C1, one, settings, trained)
        divergence_C.add_(soft_C, alpha=weight)
        if added_CV is not None:
            added_CV.mul_(weight)
            gradient_CV = added_CV if gradient_CV is None else gradient_CV.add_(added_CV)
    return hard_C1, divergence_C, gradient_CV


def _mixed(
    logits_CV: Tensor,
    targets_C1: Tensor,
    teacher: TopK | Mixture,
    settings: LossSettings,
    trained: bool,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Cross-entropy [C, 1], D [C] with its factor, the loss's gradient [C, V].

    Overwrites the logits. At T = 1 both share one softmax.
    """
    if isinstance(teacher, Mixture):
        return _of_all(logits_CV, targets_C1, teacher, settings, trained)
    alpha, temperature = settings.alpha, teacher.temperature
    shared, hard_CV = temperature == 1, None
    gold_C1 = logits_CV.gather(1, targets_C1)
    if not shared:
        cross_entropy_C1, hard_CV = _hard(logits_CV, targets_C1, trained, alpha)
        logits_CV.div_(temperature)
    student = _buckets(logits_CV, teacher, settings)
    if shared:
        cross_entropy_C1 = student.log_partition_C1 - (gold_C1 - student.origin_C1)
    terms_CK, slopes_CK = divergence_of(settings)(student.log_p_CK, student.log_q_CK)
    size_C1 = size_at(settings, temperature) * student.taught_C1
    divergence_C = (size_C1 * terms_CK).sum(1)
    if not trained:
        return cross_entropy_C1, divergence_C, None
    q_CK = student.log_q_CK.exp()
    by_bucket_CK = slopes_CK - q_CK * slopes_CK.sum(1, keepdim=True)
    by_bucket_CK *= (1 - alpha) / temperature * size_C1
    if shared:
        by_bucket_CK += alpha * q_CK
    outside_C1 = by_bucket_CK[:, -1:] / student.outside_sum_C1
    if hard_CV is None:
        gradient_CV = logits_CV.mul_(outside_C1)
    else:
        gradient_CV = hard_CV.addcmul_(logits_CV, outside_C1)
    gradient_CV.scatter_add_(1, student.token_ids_Ck, by_bucket_CK[:, :-1])
    if shared:
        gradient_CV.scatter_add_(1, targets_C1, torch.full_like(gold_C1, -alpha))
    return cross_entropy_C1, divergence_C, gradient_CV


class _Buckets(NamedTuple):
    """Teacher p and student q over k kept tokens and, last, the tail (K = k + 1)."""

    token_ids_Ck: Tensor
    """Of the kept tokens, or of the student's best; slots that are not in use repeat the first."""
    taught_C1: Tensor
    """1 where there is a teacher, else 0."""
    log_p_CK: Tensor
    log_q_CK: Tensor
    origin_C1: Tensor
    """The student's best logit of all."""
    log_partition_C1: Tensor
    """Of the student, relative to ``origin_C1``: a small number, so q keeps its precision."""
    outside_sum_C1: Tensor
    """Of the exponentials of the tokens outside."""


def _buckets(logits_CV: Tensor, teacher: TopK, settings: LossSettings) -> _Buckets:
    """Gather the student's kept tokens and leave the exponentials of all others in ``logits_CV``.

    The tail's mass is summed over the tokens outside, relative to the best of them: never
    1 - sum, whose gradient is not finite where the kept tokens hold all mass.
    """
    ids_Ck, used_Ck = _kept(logits_CV, teacher, settings)
    kept_Ck = logits_CV.gather(1, ids_Ck)
    logits_CV.scatter_(1, ids_Ck, -torch.inf)
    best_C1 = logits_CV.amax(1, keepdim=True)
    none_C1 = best_C1 == -torch.inf
    best_C1 = torch.where(none_C1, kept_Ck[:, :1], best_C1)
    outside_C1 = logits_CV.sub_(best_C1).exp_().sum(1, keepdim=True)
    origin_C1 = torch.maximum(best_C1, kept_Ck.amax(1, keepdim=True))
    tail_C1 = outside_C1.log() + (best_C1 - origin_C1)
    relative_CK = torch.cat([(kept_Ck - origin_C1).where(used_Ck, NEVER), tail_C1], 1)
    log_z_C1 = relative_CK.logsumexp(1, keepdim=True)
    log_tail_C1 = teacher.log_tail_T[:, None]
    if settings.divergence == "reverse_kl":
        log_tail_C1 = log_tail_C1.clamp(min=SMALLEST_TAIL)
    if not settings.by_rank:
        log_tail_C1 = torch.where(none_C1, NEVER, log_tail_C1)
    return _Buckets(
        token_ids_Ck=ids_Ck,
        taught_C1=(teacher.log_probs_Tk[:, :1] != -torch.inf).float(),
        log_p_CK=torch.cat([teacher.log_probs_Tk, log_tail_C1], 1).clamp(min=NEVER),
        log_q_CK=(relative_CK - log_z_C1).clamp(min=NEVER),
        origin_C1=origin_C1,
        log_partition_C1=log_z_C1,
        outside_sum_C1=outside_C1.clamp(min=1),
    )


def _kept(logits_CV: Tensor, teacher: TopK, settings: LossSettings) -> tuple[Tensor, Tensor]:
    """Ids [C, k] of the student's tokens in the k slots, and which slots have one.

    They are those that the teacher kept or, by rank, the student's best, of which there may be
    fewer than slots. A position without a teacher has the first slot all the same.
    """
    used_Ck = teacher.log_probs_Tk != -torch.inf
    ids_Ck = teacher.token_ids_Tk
    if settings.by_rank:
        slots, vocab_size = used_Ck.shape[1], logits_CV.shape[1]
        best_Cn = largest(logits_CV, min(slots, vocab_size))[1]
        ids_Ck = best_Cn[:, torch.arange(slots, device=best_Cn.device).clamp(max=vocab_size - 1)]
        used_Ck[:, vocab_size:] = False
        used_Ck[:, 0] = True
    return torch.where(used_Ck, ids_Ck, ids_Ck[:, :1]), used_Ck
