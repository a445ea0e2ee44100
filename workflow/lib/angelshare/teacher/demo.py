"""The demo teacher: a small OLMo-2 that learns word problems in about a CPU-minute.

It stands in for a downloaded teacher where no hub can be reached. Muon (momentum orthogonalised by
Newton-Schulz steps, https://kellerjordan.github.io/posts/muon/) on the layers' matrices is
decisive: with AdamW alone the same tokens give a quarter of the exact matches. One seed and one
thread count give one teacher.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import (
    GenerationConfig,
    Olmo2Config,
    Olmo2ForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from angelshare.data.problems import Problem, teacher_problems
from angelshare.data.sequences import Encoded, encode
from angelshare.data.settings import WordProblems
from angelshare.data.tokenizer import save_tokenizer, tokenizer_digest
from angelshare.errors import AngelshareError
from angelshare.files import publishing
from angelshare.teacher.models import load_tokenizer, save_model
from angelshare.teacher.settings import DemoTeacher

Progress = Callable[[int, int, str], None]
CHECKPOINT = "checkpoint.pt"
SLICES = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoTeacherStats:
    """What training did."""

    steps: int
    """Optimizer steps in all, those before a resume included."""
    trained_tokens: int
    """Tokens trained on in this call, without padding."""
    last_loss: float
    """Weighted cross-entropy of the last batch, in nats."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A private file from which a killed run of the same settings goes on."""

    path: Path
    """Where it is."""
    identity: str
    """What the run is; another run's file is not used."""

    def save(self, step: int, parts: Sequence[Any]) -> None:
        """Publish the state of ``parts`` after ``step`` steps."""
        states = [part.state_dict() for part in parts]
        with publishing(self.path) as temporary:
            torch.save({"step": step, "identity": self.identity, "states": states}, temporary)

    def resume(self, parts: Sequence[Any]) -> int:
        """Load this run's state, if there is one, into ``parts``; the steps it had done."""
        if not self.path.is_file():
            return 0
        saved = torch.load(self.path, weights_only=True)
        if saved["identity"] != self.identity:
            return 0
        for part, state in zip(parts, saved["states"], strict=True):
            part.load_state_dict(state)
        return int(saved["step"])


def train_demo_teacher(
    settings: DemoTeacher,
    problems: WordProblems,
    tokenizer: Path,
    out: Path,
    *,
    checkpoints: Path,
    progress: Progress,
    count: Callable[..., None],
) -> DemoTeacherStats:
    """Train with the tokenizer in folder ``tokenizer``; write a Hugging Face folder to ``out``.

    ``checkpoints`` is a private folder: a run that finds its own checkpoint there goes on from it.
    ``count(trained=…)`` receives tokens without padding.
    """
    sample = teacher_problems(problems, settings.problems)
    trained_tokenizer = load_tokenizer(tokenizer)
    sequences = [_encode(trained_tokenizer, problem, settings.max_length) for problem in sample]
    model = _new_model(settings, trained_tokenizer)
    identity = "\n".join(
        [
            settings.model_dump_json(),
            problems.model_dump_json(),
            tokenizer_digest(trained_tokenizer),
        ]
    )
    checkpoint = Checkpoint(checkpoints / CHECKPOINT, identity)
    stats = _train(model, sequences, settings, checkpoint, progress, count)
    save_model(model, out)
    save_tokenizer(trained_tokenizer, out)
    return stats


def _encode(tokenizer: PreTrainedTokenizerBase, problem: Problem, max_length: int) -> Encoded:
    encoded = encode(
        tokenizer,
        [
            {"role": "user", "content": problem.question},
            {"role": "assistant", "content": problem.answer},
        ],
        max_length,
    )
    if encoded is None:
        raise AngelshareError(
            f"demo_teacher.max_length {max_length} leaves nothing of an answer; raise it"
        )
    return encoded


def _new_model(settings: DemoTeacher, tokenizer: PreTrainedTokenizerBase) -> Olmo2ForCausalLM:
    config = Olmo2Config(
        vocab_size=len(tokenizer),
        hidden_size=settings.hidden_size,
        intermediate_size=settings.intermediate_size,
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.heads,
        max_position_embeddings=settings.max_length,
        rope_parameters={"rope_type": "default", "rope_theta": settings.rope_theta},
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        dtype="float32",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        model = Olmo2ForCausalLM(config)
    model.generation_config = GenerationConfig(
        bos_token_id=config.bos_token_id,
        eos_token_id=config.eos_token_id,
        pad_token_id=config.pad_token_id,
    )
    return model


def _train(
    model: PreTrainedModel,
    sequences: Sequence[Encoded],
    settings: DemoTeacher,
    checkpoint: Checkpoint,
    progress: Progress,
    count: Callable[..., None],
) -> DemoTeacherStats:
    optimizers = _optimizers(model, settings)
    schedules = [
        torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _lr_factor(step, settings))
        for optimizer in optimizers
    ]
    parts = [model, *optimizers, *schedules]
    done = checkpoint.resume(parts)
    lengths = [len(sequence.input_ids) for sequence in sequences]
    batches = _batches(len(sequences), settings)
    trained, loss = 0, 0.0
    model.train()
    for step in range(done, settings.steps):
        slices = [
            _pad([sequences[i] for i in rows], settings) for rows in _slices(batches[step], lengths)
        ]
        weight = sum(float(weights_BT.sum()) for _, weights_BT in slices)
        loss = 0.0
        for ids_BT, weights_BT in slices:
            part = _weighted_loss_sum(model, ids_BT, weights_BT) / weight
            part.backward()
            loss += part.item()
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
        tokens = sum(lengths[i] for i in batches[step])
        trained += tokens
        count(trained=tokens)
        progress(step + 1, settings.steps, f"loss {loss:.3f}")
        if (step + 1) % settings.checkpoint_steps == 0 and step + 1 < settings.steps:
            checkpoint.save(step + 1, parts)
    return DemoTeacherStats(steps=settings.steps, trained_tokens=trained, last_loss=loss)


def _optimizers(model: PreTrainedModel, settings: DemoTeacher) -> list[torch.optim.Optimizer]:
    matrices: list[torch.nn.Parameter] = []
    others: list[torch.nn.Parameter] = []
    for name, parameter in model.named_parameters():
        inside = parameter.ndim == 2 and ".layers." in name
        (matrices if inside else others).append(parameter)
    return [
        torch.optim.Muon(matrices, lr=settings.matrix_lr, momentum=0.95, weight_decay=0.0),
        torch.optim.AdamW(others, lr=settings.other_lr, betas=(0.9, 0.95), weight_decay=0.0),
    ]


def _lr_factor(step: int, settings: DemoTeacher) -> float:
    """Linear warm-up, then linear decay that would reach zero one step after the last."""
    if step < settings.warmup_steps:
        return (step + 1) / (settings.warmup_steps + 1)
    return max(0.0, (settings.steps - step) / max(1, settings.steps - settings.warmup_steps))


def _batches(rows: int, settings: DemoTeacher) -> list[list[int]]:
    """Row numbers of every step's batch: one shuffled epoch after another."""
    draw = random.Random(f"demo teacher/{settings.seed}")
    numbers: list[int] = []
    while len(numbers) < settings.steps * settings.batch_size:
        order = list(range(rows))
        draw.shuffle(order)
        numbers += order
    return [
        numbers[step * settings.batch_size : (step + 1) * settings.batch_size]
        for step in range(settings.steps)
    ]


def _slices(batch: Sequence[int], lengths: Sequence[int]) -> list[list[int]]:
    """The batch in three passes of alike lengths: little padding, and still a mixed batch."""
    ordered = sorted(batch, key=lambda row: lengths[row])
    size = -(-len(ordered) // SLICES)
    return [ordered[begin : begin + size] for begin in range(0, len(ordered), size)]


def _pad(rows: Sequence[Encoded], settings: DemoTeacher) -> tuple[Tensor, Tensor]:
    """Ids [B, T], padded right by 0, and loss weights [B, T] (0 on padding and on token 0)."""
    width = max(len(row.input_ids) for row in rows)
    ids_BT = torch.zeros(len(rows), width, dtype=torch.long)
    weights_BT = torch.zeros(len(rows), width)
    for index, row in enumerate(rows):
        length = len(row.input_ids)
        ids_BT[index, :length] = torch.tensor(row.input_ids)
        targets = torch.tensor(row.targets)
        weights_BT[index, :length] = torch.where(targets, 1.0, settings.question_weight)
    weights_BT[:, 0] = 0.0
    return ids_BT, weights_BT


def _weighted_loss_sum(model: PreTrainedModel, ids_BT: Tensor, weights_BT: Tensor) -> Tensor:
    """Cross-entropy of each token given those before it, in nats, times its weight, summed."""
    logits_BTV = model(input_ids=ids_BT, use_cache=False).logits[:, :-1]
    losses = cross_entropy(logits_BTV.flatten(0, 1), ids_BT[:, 1:].flatten(), reduction="none")
    return (losses * weights_BT[:, 1:].flatten()).sum()
