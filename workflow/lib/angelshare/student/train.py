"""Training a student: one code path for every pipeline; only data and loss differ.

The loop is transformers' Trainer. Each pass adds its loss **sum** divided by the target tokens of
the whole optimizer step, so that 4 × 16 accumulated passes and one of 64 give the same gradient.
The metric that decides about stopping and the best checkpoint is the same for all pipelines: the
cross-entropy of the validation split's hard labels, in nats per target token, summed over all
tokens before it is divided.

Checkpoints go to a folder that is no declared output; a killed run that starts again continues from
the newest whole one and ends with the same model as an uninterrupted run. A run that is asked to
stop saves one more before it does.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    TrainerState,
    TrainingArguments,
)

from angelshare.energy.phases import Phase, unmetered
from angelshare.errors import AngelshareError
from angelshare.files import publish_bytes
from angelshare.recipes import digest
from angelshare.student.callbacks import (
    METRIC,
    Bookkeeping,
    Count,
    Interruption,
    Progress,
    Reporting,
    Stopping,
    evaluations,
    should_stop,
)
from angelshare.student.checkpoints import checkpoint_of, newest_checkpoint, read_state
from angelshare.student.dataset import DistilledDataset, EncodedDataset, JoinedDataset, collator
from angelshare.student.lora import merged, with_lora
from angelshare.student.models import make_student, pad_token_id, publish_model
from angelshare.student.on_policy import OnPolicy, StepBatches, as_read
from angelshare.student.pairing import Reader
from angelshare.student.ranks import ALONE, Ranks
from angelshare.student.requests import Reading, Source, TrainRequest, TrainResult
from angelshare.student.settings import TrainingSettings
from angelshare.student.states import StateTerm, make_terms
from angelshare.student.trainer import PROJECTOR_NAME, StudentTrainer, mean_cross_entropy
from angelshare.teacher.cache import LogitCache
from angelshare.teacher.models import load_causal_lm, load_tokenizer, without_progress_bars
from angelshare.teacher.states import StateCache

LOGS_PER_EVALUATION = 5
BATCHES_AHEAD = 4
"""Batches that are read ahead of the training where the cache does not stay in memory."""


def train_student(
    request: TrainRequest,
    progress: Progress,
    count: Count,
    stop: Callable[[], bool] = lambda: False,
    ranks: Ranks = ALONE,
    phase: Phase = unmetered,
) -> TrainResult:
    """Train, keep the best weights by validation cross-entropy and publish them as ``request.out``.

    Deterministic on one machine for a given number of threads. ``stop`` is asked after every
    optimizer step. With several ``ranks`` all of them call this; their number changes results by
    rounding alone, and the first publishes. ``phase`` opens stretches of the energy window where a
    teacher is in memory. Raises ``AngelshareError`` for data that does not fit
    the cache, the tokenizer or the settings, and for a loss that is not finite; ``Interrupted``
    after a stop.
    """
    with without_progress_bars():
        return _train(request, progress, count, stop, ranks, phase)


def _train(
    request: TrainRequest,
    progress: Progress,
    count: Count,
    stop: Callable[[], bool],
    ranks: Ranks,
    phase: Phase,
) -> TrainResult:
    tokenizer = load_tokenizer(request.tokenizer, revision=request.tokenizer_revision)
    train, validation = _datasets(request, tokenizer)
    max_steps = _max_steps(request.training, len(train))
    model = _untrained(request, tokenizer)
    parameters = model.num_parameters()
    terms = make_terms(request.loss, train.states_read(), model, request.seed)
    if request.lora is not None:
        if ranks.world > 1:
            raise AngelshareError("a low-rank update is trained by one process: set gpus to 1")
        if terms:
            raise AngelshareError("a low-rank update has no terms on hidden states: train it all")
        model = with_lora(model, request.lora, request.seed)
        if request.training.gradient_checkpointing:
            model.enable_input_require_grads()
    trained = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    resume = ranks.from_first(
        lambda: newest_checkpoint(request.checkpoints, _request_digest(request, train, validation))
    )
    state = read_state(resume) if resume else None
    if state is None or not (
        state.global_step >= max_steps or should_stop(state, request.training.stopping)
    ):
        source = _step_batches(request, model, tokenizer, count, phase)
        datasets = train, validation
        trainer = _trainer(request, tokenizer, model, terms, datasets, max_steps, ranks, source)
        trainer.args.eval_on_start = resume is None
        step_rows = request.training.batch_size * request.training.accumulation
        trainer.add_callback(Bookkeeping(count, len(train), step_rows, _tokens(validation)))
        trainer.add_callback(Reporting(progress))
        trainer.add_callback(Interruption(lambda: ranks.any(stop())))
        trainer.train(resume_from_checkpoint=str(resume) if resume else None)
        state = trainer.state
    best_step, best_metric = state.best_global_step, state.best_metric
    if best_step is None or best_metric is None:
        raise AngelshareError(f"no evaluation gave a finite {METRIC}: the training diverged")
    if ranks.is_first:
        best = _at(checkpoint_of(request.checkpoints, best_step), request, tokenizer)
        publish_model(best, tokenizer, request.out)
        projector = checkpoint_of(request.checkpoints, best_step) / PROJECTOR_NAME
        if projector.exists():
            publish_bytes(request.out.with_name(PROJECTOR_NAME), projector.read_bytes())
    return TrainResult(
        steps=state.global_step,
        best_step=best_step,
        cross_entropy=best_metric,
        untrained_cross_entropy=evaluations(state)[0],
        stopped_early=state.global_step < max_steps,
        parameters=parameters,
        trained_parameters=trained,
        trained_tokens=state.num_input_tokens_seen,
        train_rows=len(train),
        dropped_rows=train.dropped,
        sources=[_tokens(part) / _tokens(train) for part in train.parts],
        paired=train.paired(),
        history=history(state),
    )


def _untrained(request: TrainRequest, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    model = make_student(request.init, tokenizer, request.training.max_length, request.seed)
    if request.training.precision == "bfloat16":
        torch.nn.Module.to(model, torch.bfloat16)
    return model


def _at(
    checkpoint: Path, request: TrainRequest, tokenizer: PreTrainedTokenizerBase
) -> PreTrainedModel:
    """The student as it was at a checkpoint, a low-rank update merged into its weights."""
    if request.lora is not None:
        return merged(_untrained(request, tokenizer), checkpoint)
    bfloat16 = request.training.precision == "bfloat16"
    return load_causal_lm(checkpoint, dtype="bfloat16" if bfloat16 else "float32")


def _datasets(
    request: TrainRequest, tokenizer: PreTrainedTokenizerBase
) -> tuple[EncodedDataset, EncodedDataset]:
    """Training and validation rows; the latter by length, so that batches hold little padding."""
    length = request.training.max_length
    validation = EncodedDataset(request.validation, tokenizer, length)
    validation.rows.sort(key=lambda row: len(row.encoded.input_ids))
    first = Source(train=request.train, cache=request.cache, readings=request.readings)
    parts = [
        _rows(source, others, request, tokenizer)
        for source, others in ((first, request.other_caches), *((s, ()) for s in request.further))
    ]
    train = JoinedDataset(parts) if request.further else parts[0]
    for role, paths in request.states.items():
        train.attach(role, StateCache(paths))
    return train, validation


def _rows(
    source: Source,
    others: Sequence[Sequence[Path]],
    request: TrainRequest,
    tokenizer: PreTrainedTokenizerBase,
) -> EncodedDataset:
    """The rows of one dataset, with its own teachers' caches if it has any."""
    length = request.training.max_length
    if not source.cache:
        return EncodedDataset(source.train, tokenizer, length)
    cache, *further = (LogitCache(paths) for paths in (source.cache, *others))
    readers = [_reader(reading) for reading in source.readings]
    temperature = request.loss.temperature
    return DistilledDataset(source.train, tokenizer, length, cache, temperature, further, readers)


def _reader(reading: Reading) -> Reader:
    tokenizer = load_tokenizer(
        reading.tokenizer,
        revision=reading.revision,
        trust_remote_code=reading.trust_remote_code,
    )
    return Reader(tokenizer, reading.max_length)


def _step_batches(
    request: TrainRequest,
    student: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    count: Count,
    phase: Phase,
) -> StepBatches:
    """What makes the batches of a step, beyond what the data gives."""
    if request.on_policy is None:
        return as_read
    return OnPolicy(
        request.on_policy,
        student,
        tokenizer,
        temperature=request.loss.temperature,
        max_length=request.training.max_length,
        seed=request.seed,
        count=count,
        phase=phase,
    )


def _tokens(dataset: EncodedDataset) -> int:
    return sum(len(row.encoded.input_ids) for row in dataset.rows)


def _max_steps(training: TrainingSettings, rows: int) -> int:
    steps = training.max_steps
    if training.max_epochs is not None:
        passes = math.ceil(rows / training.batch_size)
        steps_per_epoch = math.ceil(passes / training.accumulation)
        steps = min(steps, math.ceil(training.max_epochs * steps_per_epoch))
    if training.warmup_steps >= steps:
        raise AngelshareError(
            f"warmup_steps is {training.warmup_steps}, the whole schedule has {steps} steps over "
            f"{rows} rows: lower warmup_steps, or raise max_steps or max_epochs"
        )
    return steps


def _request_digest(
    request: TrainRequest, train: EncodedDataset, validation: EncodedDataset
) -> str:
    """What checkpoints belong to: settings, seed, every row's tokens, and the teacher's if any."""
    further = [[path.name for path in source.cache] for source in request.further]
    return digest(
        "angelshare/training",
        {
            "init": request.init.model_dump(),
            "lora": request.lora and request.lora.model_dump(),
            "training": request.training.model_dump(),
            "loss": request.loss.terms(request.roles),
            "on_policy": request.on_policy
            and [request.on_policy.settings.identity(), request.on_policy.identity],
            "cache": [path.name for path in request.cache],
            "states": {role: [p.name for p in paths] for role, paths in request.states.items()},
            "other_caches": [[path.name for path in paths] for paths in request.other_caches],
            "weights": list(request.weights),
            **({"further": further} if further else {}),
            "seed": request.seed,
            "train": [row.encoded.sha256.hex() for row in train.rows],
            "validation": [row.encoded.sha256.hex() for row in validation.rows],
        },
    )


def _trainer(
    request: TrainRequest,
    tokenizer: PreTrainedTokenizerBase,
    model: PreTrainedModel,
    terms: Mapping[str, StateTerm],
    datasets: tuple[EncodedDataset, EncodedDataset],
    max_steps: int,
    ranks: Ranks,
    step_batches: StepBatches,
) -> StudentTrainer:
    trainer = StudentTrainer(
        model=model,
        args=_arguments(request, max_steps, datasets[0].workers, ranks.world),
        train_dataset=datasets[0],
        eval_dataset=datasets[1],
        data_collator=collator(pad_token_id(tokenizer)),
        compute_metrics=mean_cross_entropy,
        optimizer=request.training.optimizer,
        callbacks=[Stopping(request.training.stopping)],
        loss=request.loss,
        weights=request.weights,
        vocab_size=len(tokenizer),
        terms=terms,
        step_batches=step_batches,
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def _arguments(
    request: TrainRequest, max_steps: int, workers: int, world: int
) -> TrainingArguments:
    training = request.training
    batch, accumulation = training.divided(world)
    every = training.eval_every
    log_every = next(every // n for n in range(LOGS_PER_EVALUATION, 0, -1) if every % n == 0)
    on_gpu = torch.cuda.is_available()
    return TrainingArguments(
        output_dir=str(request.checkpoints),
        use_cpu=not on_gpu,
        max_steps=max_steps,
        warmup_steps=training.warmup_steps,
        lr_scheduler_type="cosine",
        learning_rate=training.optimizer.learning_rate,
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=accumulation,
        per_device_eval_batch_size=training.eval_batch_size,
        max_grad_norm=training.clip_norm,
        bf16=training.precision == "auto" and on_gpu and torch.cuda.is_bf16_supported(),
        gradient_checkpointing=training.gradient_checkpointing,
        eval_strategy="steps",
        eval_steps=every,
        save_strategy="steps",
        save_steps=every,
        save_total_limit=1,
        metric_for_best_model=METRIC,
        greater_is_better=False,
        logging_steps=log_every,
        logging_nan_inf_filter=False,
        include_num_input_tokens_seen="non_padding",
        seed=request.seed,
        data_seed=request.seed,
        dataloader_pin_memory=on_gpu,
        dataloader_num_workers=workers,
        dataloader_prefetch_factor=BATCHES_AHEAD if workers else None,
        remove_unused_columns=False,
        disable_tqdm=True,
        report_to=list(training.report_to) or "none",
        log_level="error",
    )


def history(state: TrainerState) -> list[dict[str, float]]:
    """The Trainer's log by step, in plain names."""
    names = {
        "loss": "train_loss",
        "learning_rate": "learning_rate",
        "grad_norm": "gradient_norm",
        "feature_loss": "feature_loss",
        "relation_loss": "relation_loss",
        "relation_pairs": "relation_pairs",
        f"eval_{METRIC}": METRIC,
    }
    steps: dict[float, dict[str, float]] = {}
    for entry in state.log_history:
        values = {name: float(entry[key]) for key, name in names.items() if key in entry}
        if values:
            steps.setdefault(entry["step"], {"step": entry["step"]}).update(values)
    return [steps[step] for step in sorted(steps)]
