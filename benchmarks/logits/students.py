"""A teacher, its data and its students: what `quality` compares codecs with."""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch

from angelshare.data.problems import make_dataset
from angelshare.data.sequences import EncodedRow, encode_table
from angelshare.data.settings import TokenizerSettings, WordProblems
from angelshare.data.tables import in_splits
from angelshare.data.tokenizer import problem_tokenizer, save_tokenizer
from angelshare.evaluation.harness import evaluate_model
from angelshare.evaluation.settings import EvaluationSettings
from angelshare.student.requests import TrainRequest
from angelshare.student.settings import (
    LossSettings,
    OptimizerSettings,
    PretrainedStudent,
    ScratchStudent,
    StoppingSettings,
    TrainingSettings,
)
from angelshare.student.train import train_student
from angelshare.teacher.demo import train_demo_teacher
from angelshare.teacher.models import load_causal_lm, load_tokenizer, save_model
from angelshare.teacher.settings import DemoTeacher

from .teachers import nothing, read_table


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """A teacher, the data, and where students come from; it can be sent to another process."""

    folder: Path
    teacher: Path
    max_length: int
    train: pa.Table
    validation: pa.Table
    test: pa.Table | None
    """Word problems to be answered, if the data are such."""
    init: ScratchStudent | PretrainedStudent
    batch: dict[str, int]
    optimizer: OptimizerSettings
    steps: int
    looks: int
    """Evaluations on the validation set in a training; the best of them is kept."""
    temperature: float

    def vocab_size(self) -> int:
        """Tokens of the teacher's tokenizer."""
        return len(load_tokenizer(self.teacher))

    def student(self, cache: Path | None, seed: int) -> dict[str, float]:
        """Train one student, on the cache or on labels alone; its held-out figures are kept."""
        with tempfile.TemporaryDirectory(dir=self.folder) as folder:
            return self._student(cache, seed, Path(folder))

    def _student(self, cache: Path | None, seed: int, folder: Path) -> dict[str, float]:
        request = TrainRequest(
            init=self.init,
            training=TrainingSettings(
                max_steps=self.steps,
                warmup_steps=max(1, self.steps // 30),
                eval_every=max(1, self.steps // self.looks),
                max_length=self.max_length,
                optimizer=self.optimizer,
                stopping=StoppingSettings(patience=self.steps),
                **self.batch,
            ),
            loss=LossSettings(alpha=0.2, temperature=self.temperature),
            tokenizer=self.teacher,
            train=self.train,
            validation=self.validation,
            cache=[cache] if cache else [],
            seed=seed,
            out=folder / "student",
            checkpoints=folder / "checkpoints",
        )
        train_student(request, nothing, nothing)
        return self.scores(request.out)

    def scores(self, student: Path) -> dict[str, float]:
        """Held-out figures of a student."""
        tokenizer = load_tokenizer(self.teacher)
        rows = encode_table(self.validation, tokenizer, self.max_length)
        found = held_out(self.teacher, student, rows, len(tokenizer))
        if self.test is not None:
            settings = EvaluationSettings(batch_size=64, max_gen_toks=40)
            score = evaluate_model(student, settings, self.test, nothing, nothing)
            found["exact_match"] = score[0].value
        return found


def word_problems(arguments: argparse.Namespace, folder: Path) -> World:
    """The embedded default's teacher, trained here, and its small student."""
    problems = WordProblems(labelled=arguments.labelled, unlabelled=0)
    dataset = make_dataset(problems)
    teacher = folder / "teacher"
    save_tokenizer(problem_tokenizer(TokenizerSettings(), problems), folder / "tokenizer")
    train_demo_teacher(
        DemoTeacher(seed=1, steps=arguments.teacher_steps),
        problems,
        folder / "tokenizer",
        teacher,
        checkpoints=folder / "teacher-checkpoints",
        progress=nothing,
        count=nothing,
    )
    train, validation, test = (
        in_splits(dataset, [split]) for split in ("train", "validation", "test")
    )
    return World(
        folder=folder,
        teacher=teacher,
        max_length=64,
        train=train,
        validation=validation,
        test=test,
        init=ScratchStudent(
            hidden_size=64, layers=2, heads=4, intermediate_size=176, rope_theta=100
        ),
        batch={"batch_size": 32, "accumulation": 1, "eval_batch_size": 100},
        optimizer=OptimizerSettings(name="muon", learning_rate=0.02, adamw_learning_rate=0.01),
        steps=arguments.steps,
        looks=6,
        temperature=arguments.temperature,
    )


def real_model(arguments: argparse.Namespace, folder: Path) -> World:
    """A given model, and itself without every n-th layer; the data's last fifth is held out."""
    table = read_table(arguments.data, arguments.rows)
    split = table.num_rows * 4 // 5
    student = load_causal_lm(arguments.model, dtype="float32")
    leave_out(student, arguments.leave_out)
    save_model(student, folder / "init")
    return World(
        folder=folder,
        teacher=arguments.model,
        max_length=256,
        train=table.slice(0, split),
        validation=table.slice(split),
        test=None,
        init=PretrainedStudent(model=str(folder / "init")),
        batch={"batch_size": 4, "accumulation": 2, "eval_batch_size": 4},
        optimizer=OptimizerSettings(name="adamw", learning_rate=1e-4),
        steps=arguments.steps,
        looks=2,
        temperature=arguments.temperature,
    )


def leave_out(model: Any, every: int) -> None:
    """Take one layer of every ``every`` out of the model, the one in their middle."""
    kept = [
        number for number in range(len(model.base_model.layers)) if number % every != every // 2
    ]
    model.base_model.layers = torch.nn.ModuleList(model.base_model.layers[n] for n in kept)
    model.config.num_hidden_layers = len(kept)
    for place, layer in enumerate(model.base_model.layers):
        layer.self_attn.layer_idx = place
    if getattr(model.config, "layer_types", None):
        model.config.layer_types = [model.config.layer_types[number] for number in kept]


@torch.inference_mode()
def held_out(
    teacher_dir: Path, student_dir: Path, rows: list[EncodedRow], vocab_size: int
) -> dict[str, float]:
    """Means over target tokens: cross-entropy of the labels and KL(teacher ‖ student), in nats,
    and how often the student's likeliest token is the label, and the teacher's likeliest."""
    teacher, student = (load_causal_lm(one, dtype="float32") for one in (teacher_dir, student_dir))
    sums = torch.zeros(4, dtype=torch.float64)
    count = 0
    for row in rows:
        ids_1L = torch.tensor([row.encoded.input_ids], device=teacher.device)
        targets = [t for t, target in enumerate(row.encoded.targets) if target]
        labels = ids_1L[0, targets]
        log_p, log_q = (
            model(input_ids=ids_1L)
            .logits[0, [t - 1 for t in targets], :vocab_size]
            .float()
            .log_softmax(-1)
            for model in (teacher, student)
        )
        best = log_q.argmax(-1)
        sums += torch.stack(
            [
                -log_q[range(len(targets)), labels].double().sum(),
                (log_p.exp() * (log_p - log_q)).double().sum(),
                (best == labels).double().sum(),
                (best == log_p.argmax(-1)).double().sum(),
            ]
        ).cpu()
        count += len(targets)
    names = ("cross_entropy", "kl_to_teacher", "best_is_label", "best_is_teachers")
    return dict(zip(names, (sums / count).tolist(), strict=True))
