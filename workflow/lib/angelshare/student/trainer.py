"""transformers' Trainer with this project's loss, metric, order of the data and optimizers.

With several processes the model is sharded over them (`sharding`); to the Trainer it is one that
owns its placement and the reduction of its gradients, and its checkpoints are gathered.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import EvalPrediction, PreTrainedModel, Trainer, TrainingArguments
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME

from angelshare.errors import AngelshareError
from angelshare.student.callbacks import METRIC
from angelshare.student.dataset import Batch
from angelshare.student.fused import LossSums, head_loss
from angelshare.student.head import head_parameters, let_loss_run_inside
from angelshare.student.losses import IGNORED, Mixture, TopK, at_temperature
from angelshare.student.on_policy import StepBatches, as_read
from angelshare.student.optimizers import make_optimizer, shared_out
from angelshare.student.order import Passes, PassLoader, WithNothing
from angelshare.student.settings import LossSettings, OptimizerSettings
from angelshare.student.sharding import load_whole_weights, shard, whole, whole_weights
from angelshare.student.states import (
    PROJECTORS,
    Pairs,
    StateTerm,
    layers_read,
    state_shares,
)
from angelshare.student.whole_steps import WholeSteps
from angelshare.teacher.blocks import block_outputs
from angelshare.teacher.models import load_causal_lm

PROJECTOR_NAME = "projector.safetensors"


class StudentTrainer(Trainer):
    """The Trainer with the loss of `fused` on target positions."""

    model: Any
    optimizer: Any
    lr_scheduler: Any
    train_dataset: Any

    def __init__(
        self,
        model: PreTrainedModel | nn.Module,
        args: TrainingArguments,
        *,
        loss: LossSettings,
        vocab_size: int,
        optimizer: OptimizerSettings,
        weights: Sequence[float] = (1.0,),
        terms: Mapping[str, StateTerm] | None = None,
        step_batches: StepBatches = as_read,
        **kwargs: Any,
    ) -> None:
        """``loss`` mixes in the teachers of batches that carry any, with these ``weights``;
        ``vocab_size``: tokenizer's.

        ``terms`` on hidden states are added, by the role of the batches' ``states``. What a step
        learns from is what ``step_batches`` makes of what the data gives for it.
        """
        if args.n_gpu > 1:
            # One process drives one GPU; several are for several ranks, not for DataParallel.
            args._n_gpu = 1
        let_loss_run_inside(model)
        super().__init__(model, args, **kwargs)
        self.loss_settings, self.vocab_size = loss, vocab_size
        self.teacher_weights = tuple(weights)
        self.optimizer_settings = optimizer
        self.terms = terms or {}
        self.step_batches = step_batches
        self.steps = WholeSteps(self.terms, self.accelerator)
        self.averages = Averages()
        if self.sharded:
            # Set after the Trainer's own check, which does not know that checkpoints are gathered.
            self.is_distributed_loading_by_transformers = True
        self.model_accepts_loss_kwargs = True
        self.loss_is_scaled_for_ga = True
        self._loss_shifts_labels = True

    @property
    def sharded(self) -> bool:
        """Whether several processes share the model."""
        return bool(self.args.world_size > 1)

    def _move_model_to_device(self, model: nn.Module, device: torch.device) -> None:
        if self.sharded:
            shard(model, device, self.args.world_size)
        else:
            super()._move_model_to_device(model, device)

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """The optimizer of the settings, over the parameters as they are by now."""
        if self.optimizer is None:
            self.optimizer = make_optimizer(self.model, self.optimizer_settings)
        return self.optimizer

    def get_train_dataloader(self) -> PassLoader:
        """This process's passes, in an order that is the same for any number of processes."""
        args, rows = self.args, self.train_dataset
        passes = Passes(
            len(rows),
            batch=args.per_device_train_batch_size,
            accumulation=args.gradient_accumulation_steps,
            rank=args.process_index,
            world=args.world_size,
            seed=args.seed,
        )
        return PassLoader(
            WithNothing(rows),
            batch_sampler=passes,
            collate_fn=self.data_collator,
            num_workers=args.dataloader_num_workers,
            prefetch_factor=args.dataloader_prefetch_factor,
            pin_memory=args.dataloader_pin_memory,
        )

    def get_batch_samples(
        self, epoch_iterator: Iterator[Batch], num_batches: int, device: torch.device
    ) -> tuple[list[Batch], Any]:
        """The batches of an optimizer step, with what they must know of it as a whole."""
        read = list(islice(epoch_iterator, num_batches))
        made = iter(self.step_batches(read, self.state.global_step))
        batches, targets = super().get_batch_samples(made, num_batches, device)
        if self.terms and batches:
            self.averages.next_step(self.steps.prepare(batches, self._first_pass))
        return batches, targets

    @torch.no_grad()
    def _first_pass(self, batch: Batch) -> dict[str, Pairs]:
        model = self.model_wrapped
        model.train()
        batch = self._prepare_inputs(batch)
        terms = {role: term for role, term in self.terms.items() if term.whole_step}
        with (
            self.compute_loss_context_manager(),
            block_outputs(self.model, layers_read(terms)) as outputs,
        ):
            model(
                input_ids=batch["input_ids"],
                attention_mask=batch["attention_mask"],
                loss_of=lambda *_: (),
            )
            return {role: one.pairs(outputs, batch["states"][role]) for role, one in terms.items()}

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Batch,
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """The batch's share of the mean loss over the optimizer step's target tokens.

        ``num_items_in_batch`` is that global count. A batch may have an ``alpha`` of its own. For
        an evaluation (``return_outputs``) the mean cross-entropy, with a float64 [B, 2] tensor of
        each row's sum and count.
        """
        teacher = None if return_outputs else self._teacher(inputs)
        terms = {} if return_outputs else self.terms
        with block_outputs(self.model, layers_read(terms)) as outputs:
            further = partial(state_shares, terms, outputs, inputs.get("states", {}), self.model)
            alpha = inputs.get("alpha", self.loss_settings.alpha)
            settings = self.loss_settings.model_copy(update={"alpha": alpha})
            loss_of = TargetLoss(inputs["labels"], teacher, settings, self.vocab_size, further)
            sums = model(
                input_ids=inputs["input_ids"],
                attention_mask=inputs["attention_mask"],
                loss_of=loss_of,
            )
        if return_outputs:
            sums_B2 = row_sums(sums.cross_entropy_T, inputs["labels"])
            return sums_B2[:, 0].sum() / sums_B2[:, 1].sum(), {"sums": sums_B2}
        ranks = self.accelerator.num_processes if self.args.average_tokens_across_devices else 1
        loss = sums.loss * ranks / num_items_in_batch
        for role, share in sums.states.items():
            loss = loss + self.terms[role].weight * ranks * share
            self.averages.add(self.terms[role].name, ranks * share.detach())
        return loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log, with the terms on hidden states beside the loss."""
        if "loss" in logs:
            logs |= self.averages.take(self._mean_over_ranks)
        super().log(logs, start_time)

    def _track_num_input_tokens(self, inputs: Batch) -> None:
        # A row without targets only keeps a process in step with the others.
        counted_B1 = (inputs["labels"] != IGNORED).any(1, keepdim=True)
        super()._track_num_input_tokens(
            {**inputs, "attention_mask": inputs["attention_mask"] * counted_B1}
        )

    def _clip_grad_norm(self, model: nn.Module) -> Tensor:
        norm: Tensor = super()._clip_grad_norm(model)
        return norm.full_tensor() if isinstance(norm, DTensor) else norm

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the whole model, whoever holds it."""
        if not self.sharded:
            super().save_model(output_dir, _internal_call)
            return
        weights = whole_weights(self.model)
        if self.args.should_save:
            self._save(output_dir, state_dict=weights)

    def _mean_over_ranks(self, value: Tensor) -> float:
        return float(self.accelerator.gather(value.to(self.args.device)).mean())

    def _save(
        self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None
    ) -> None:
        if not hasattr(self.model, PROJECTORS):
            super()._save(output_dir, state_dict)
            return
        weights = self.model.state_dict() if state_dict is None else state_dict
        projectors = {n: w for n, w in weights.items() if n.startswith(f"{PROJECTORS}.")}
        super()._save(output_dir, {n: w for n, w in weights.items() if n not in projectors})
        safetensors.torch.save_file(projectors, Path(output_dir or ".", PROJECTOR_NAME))

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if not self.sharded:
            super()._save_optimizer_and_scheduler(output_dir)
            return
        state = whole(self.optimizer.state_dict())
        if self.args.should_save:
            torch.save(state, Path(output_dir, OPTIMIZER_NAME))
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir, SCHEDULER_NAME))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        kept = Path(resume_from_checkpoint, PROJECTOR_NAME)
        projectors = safetensors.torch.load_file(kept) if kept.exists() else {}
        if not self.sharded:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
            self.model.load_state_dict(projectors, strict=False)
            return
        saved = load_causal_lm(resume_from_checkpoint, dtype="float32")
        load_whole_weights(self.model, {**saved.state_dict(), **projectors})

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if not self.sharded or checkpoint is None:
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        saved = torch.load(Path(checkpoint, OPTIMIZER_NAME), map_location="cpu", weights_only=True)
        self.optimizer.load_state_dict(shared_out(saved, self.optimizer))
        self.lr_scheduler.load_state_dict(
            torch.load(Path(checkpoint, SCHEDULER_NAME), weights_only=True)
        )

    def _teacher(self, inputs: Batch) -> TopK | Mixture | None:
        if "teacher_ids" not in inputs:
            return None
        others = inputs.get("other_teachers")
        if not others:
            return _top_k(inputs, self.loss_settings)
        every = tuple(_top_k(slots, self.loss_settings) for slots in (inputs, *others))
        return Mixture(every, self.teacher_weights)


def _top_k(inputs: Batch, choice: LossSettings) -> TopK:
    tail = inputs.get("teacher_tail", True)
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
        self,
        labels_BL: Tensor,
        teacher: TopK | Mixture | None,
        settings: LossSettings,
        vocab_size: int,
        further: Callable[[], dict[str, Tensor]] = dict,
    ) -> None:
        """``further`` terms are computed in the same place; they become the sums' ``states``."""
        self.labels_BL, self.teacher = labels_BL, teacher
        self.settings, self.vocab_size = settings, vocab_size
        self.further = further

    @torch.compiler.disable
    def __call__(self, hidden_BLH: Tensor, head: nn.Module) -> LossSums:
        """Sums over the batch's targets."""
        wanted_BL = self.labels_BL[:, 1:] != IGNORED
        sums = head_loss(
            hidden_BLH[:, :-1][wanted_BL],
            *head_parameters(head),
            self.labels_BL[:, 1:][wanted_BL],
            self.teacher,
            self.settings,
            self.vocab_size,
        )
        return sums._replace(states=self.further())


class Averages:
    """Means over optimizer steps of values that passes add to, as the Trainer's own loss is one."""

    def __init__(self) -> None:
        self.totals: dict[str, Any] = {}
        self.steps = 0

    def next_step(self, values: Mapping[str, float]) -> None:
        """Count a step, of which these values are known already."""
        self.steps += 1
        for name, value in values.items():
            self.add(name, value)

    def add(self, name: str, value: Any) -> None:
        """Add a part of a step's value."""
        self.totals[name] = self.totals.get(name, 0.0) + value

    def take(self, over_ranks: Callable[[Tensor], float]) -> dict[str, float]:
        """The means since the last call; all processes must ask."""
        totals, self.totals = self.totals, {}
        steps, self.steps = max(1, self.steps), 0
        means = {name: torch.as_tensor(value) / steps for name, value in totals.items()}
        return {name: over_ranks(value) for name, value in means.items()}


def row_sums(cross_entropy_T: Tensor, labels_BL: Tensor) -> Tensor:
    """Cross-entropy sum and target count of each row, float64 [B, 2]."""
    rows_T = (labels_BL[:, 1:] != IGNORED).nonzero()[:, 0]
    parts_T2 = torch.stack([cross_entropy_T, torch.ones_like(cross_entropy_T)], -1).double()
    return parts_T2.new_zeros(len(labels_BL), 2).index_add_(0, rows_T, parts_T2)


def mean_cross_entropy(prediction: EvalPrediction) -> dict[str, float]:
    """The validation metric from all rows' sums and counts."""
    total, count = np.asarray(prediction.predictions).sum(0)
    return {METRIC: float(total / count)}
