"""transformers' Trainer with this project's loss and validation metric; nothing else is changed."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import EvalPrediction, PreTrainedModel, Trainer, TrainingArguments

from angelshare.errors import AngelshareError
from angelshare.student.callbacks import METRIC
from angelshare.student.dataset import Batch
from angelshare.student.fused import LossSums, head_loss
from angelshare.student.head import head_parameters, let_loss_run_inside
from angelshare.student.losses import IGNORED, TopK, at_temperature
from angelshare.student.settings import LossSettings


class StudentTrainer(Trainer):
    """The Trainer with the loss of `fused` on target positions."""

    def __init__(
        self,
        model: PreTrainedModel | nn.Module,
        args: TrainingArguments,
        *,
        loss: LossSettings,
        vocab_size: int,
        **kwargs: Any,
    ) -> None:
        """``loss`` mixes in the teacher of batches that carry one; ``vocab_size``: tokenizer's."""
        if args.n_gpu > 1:
            # One process drives one GPU; several are for several ranks, not for DataParallel.
            args._n_gpu = 1
        let_loss_run_inside(model)
        super().__init__(model, args, **kwargs)
        self.loss_settings, self.vocab_size = loss, vocab_size
        self.model_accepts_loss_kwargs = True
        self.loss_is_scaled_for_ga = True
        self._loss_shifts_labels = True

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Batch,
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """The batch's share of the mean loss over the optimizer step's target tokens.

        ``num_items_in_batch`` is that global count. For an evaluation (``return_outputs``) the mean
        cross-entropy, with a float64 [B, 2] tensor of each row's sum and count.
        """
        teacher = None if return_outputs else self._teacher(inputs)
        sums = model(
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            loss_of=TargetLoss(inputs["labels"], teacher, self.loss_settings, self.vocab_size),
        )
        if return_outputs:
            sums_B2 = row_sums(sums.cross_entropy_T, inputs["labels"])
            return sums_B2[:, 0].sum() / sums_B2[:, 1].sum(), {"sums": sums_B2}
        ranks = self.accelerator.num_processes if self.args.average_tokens_across_devices else 1
        return sums.loss * ranks / num_items_in_batch

    def _teacher(self, inputs: Batch) -> TopK | None:
        if "teacher_ids" not in inputs:
            return None
        choice, tail = self.loss_settings, inputs.get("teacher_tail", True)
        if not tail and choice.divergence != "forward_kl":
            raise AngelshareError(
                f"loss.divergence {choice.divergence} needs the teacher's tail, but this logit "
                "cache holds draws, which say nothing of tokens that were not drawn: use "
                "forward_kl, or capture with a codec that keeps the tail"
            )
        return at_temperature(
            inputs["teacher_ids"],
            inputs["teacher_logits"],
            inputs["teacher_log_partition"],
            choice.temperature,
            tail=tail,
        )


class TargetLoss:
    """The loss of a batch's hidden states on its target positions.

    Position t-1 predicts the token at t, so the labels are shifted by one and the first of a row is
    never a target. Targets count row by row; so do the positions of ``teacher``. An object, because
    wrappers cast and move the tensors that they find among a model's arguments.
    """

    def __init__(
        self, labels_BL: Tensor, teacher: TopK | None, settings: LossSettings, vocab_size: int
    ) -> None:
        self.labels_BL, self.teacher = labels_BL, teacher
        self.settings, self.vocab_size = settings, vocab_size

    @torch.compiler.disable
    def __call__(self, hidden_BLH: Tensor, head: nn.Module) -> LossSums:
        """Sums over the batch's targets."""
        wanted_BL = self.labels_BL[:, 1:] != IGNORED
        return head_loss(
            hidden_BLH[:, :-1][wanted_BL],
            *head_parameters(head),
            self.labels_BL[:, 1:][wanted_BL],
            self.teacher,
            self.settings,
            self.vocab_size,
        )


def row_sums(cross_entropy_T: Tensor, labels_BL: Tensor) -> Tensor:
    """Cross-entropy sum and target count of each row, float64 [B, 2]."""
    rows_T = (labels_BL[:, 1:] != IGNORED).nonzero()[:, 0]
    parts_T2 = torch.stack([cross_entropy_T, torch.ones_like(cross_entropy_T)], -1).double()
    return parts_T2.new_zeros(len(labels_BL), 2).index_add_(0, rows_T, parts_T2)


def mean_cross_entropy(prediction: EvalPrediction) -> dict[str, float]:
    """The validation metric from all rows' sums and counts."""
    total, count = np.asarray(prediction.predictions).sum(0)
    return {METRIC: float(total / count)}
