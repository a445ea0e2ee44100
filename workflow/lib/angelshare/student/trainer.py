"""transformers' Trainer with this project's loss and validation metric; nothing else is changed."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import EvalPrediction, Trainer

from angelshare.student.callbacks import METRIC
from angelshare.student.dataset import Batch
from angelshare.student.losses import (
    IGNORED,
    TopK,
    at_temperature,
    restrict,
    student_loss,
    target_logits,
)
from angelshare.student.settings import LossSettings


class StudentTrainer(Trainer):
    """The Trainer with the loss of `losses` on target positions."""

    def __init__(self, *args: Any, loss: LossSettings, vocab_size: int, **kwargs: Any) -> None:
        """``loss`` mixes in the teacher of batches that carry one; ``vocab_size``: tokenizer's."""
        super().__init__(*args, **kwargs)
        self.loss_settings, self.vocab_size = loss, vocab_size
        self.model_accepts_loss_kwargs = True
        self.loss_is_scaled_for_ga = True

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
        logits_BLV = model(
            input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]
        ).logits
        logits_TV, targets_T = target_logits(
            restrict(logits_BLV, self.vocab_size), inputs["labels"]
        )
        if return_outputs:
            sums_B2 = row_sums(logits_TV, targets_T, inputs["labels"])
            return sums_B2[:, 0].sum() / sums_B2[:, 1].sum(), {"sums": sums_B2}
        sums = student_loss(logits_TV, targets_T, self._teacher(inputs), self.loss_settings)
        ranks = self.accelerator.num_processes if self.args.average_tokens_across_devices else 1
        return sums.loss * ranks / num_items_in_batch

    def _teacher(self, inputs: Batch) -> TopK | None:
        if "teacher_ids" not in inputs:
            return None
        return at_temperature(
            inputs["teacher_ids"],
            inputs["teacher_logits"],
            inputs["teacher_log_partition"],
            self.loss_settings.temperature,
        )


def row_sums(logits_TV: Tensor, targets_T: Tensor, labels_BL: Tensor) -> Tensor:
    """Cross-entropy sum and target count of each row, float64 [B, 2]."""
    losses_T = nn.functional.cross_entropy(logits_TV.float(), targets_T, reduction="none")
    rows_T = (labels_BL[:, 1:] != IGNORED).nonzero()[:, 0]
    parts_T2 = torch.stack([losses_T, torch.ones_like(losses_T)], -1).double()
    return parts_T2.new_zeros(len(labels_BL), 2).index_add_(0, rows_T, parts_T2)


def mean_cross_entropy(prediction: EvalPrediction) -> dict[str, float]:
    """The validation metric from all rows' sums and counts."""
    total, count = np.asarray(prediction.predictions).sum(0)
    return {METRIC: float(total / count)}
