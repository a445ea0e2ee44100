"""What each codec is worth to a student: one teacher, one student, one run per codec and seed.

    python -m benchmarks.logits quality [--steps 600] [--labelled 500] [--teacher-steps 900]
                                        [--seeds 1 2 3] [--temperature 1] [--skip dense]
                                        [--out FILE]
    python -m benchmarks.logits quality --model FOLDER --data FILE.jsonl [--rows 400] [--steps 60]

The first trains the embedded default's teacher and its small student on word problems. With a model
the student is that model with every second layer left out, trained on the data but for its last
fifth, which is held out. `dense` is exact top-k over the whole vocabulary, the upper mark; `hard`
learns from labels alone. Held-out figures: cross-entropy of the labels, KL(teacher ‖ student) over
the whole vocabulary at T = 1, both in nats per target token, and, for the word problems, exact
match. Means over seeds, with the standard error; and, because students of one seed begin alike and
see the same batches, the mean difference from exact top-k at the same seed, with its own.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
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
from angelshare.teacher.cache import LogitCache
from angelshare.teacher.demo import train_demo_teacher
from angelshare.teacher.logits import capture_logits
from angelshare.teacher.models import load_causal_lm, load_tokenizer, save_model
from angelshare.teacher.settings import (
    CaptureSettings,
    DemoTeacher,
    RskdSettings,
    TopkTailSettings,
)

from .teachers import read_table

Codecs = dict[str, TopkTailSettings | RskdSettings | None]


def nothing(*_: object, **__: object) -> None:
    """Progress and counts, which a benchmark does not look at."""


class World:
    """A teacher, its data, and where its students come from."""

    def __init__(self, arguments: argparse.Namespace, folder: Path) -> None:
        self.folder, self.steps = folder, arguments.steps
        self.test: pa.Table | None = None
        if arguments.model is None:
            self._word_problems(arguments)
        else:
            self._real_model(arguments)
        self.tokenizer = load_tokenizer(self.teacher)
        self.held_out = encode_table(self.validation, self.tokenizer, self.max_length)

    def _word_problems(self, arguments: argparse.Namespace) -> None:
        problems = WordProblems(labelled=arguments.labelled, unlabelled=0)
        dataset = make_dataset(problems)
        self.teacher, self.max_length = self.folder / "teacher", 64
        save_tokenizer(problem_tokenizer(TokenizerSettings(), problems), self.folder / "tokenizer")
        train_demo_teacher(
            DemoTeacher(seed=1, steps=arguments.teacher_steps),
            problems,
            self.folder / "tokenizer",
            self.teacher,
            checkpoints=self.folder / "teacher-checkpoints",
            progress=nothing,
            count=nothing,
        )
        self.train, self.validation, self.test = (
            in_splits(dataset, [split]) for split in ("train", "validation", "test")
        )
        self.init: ScratchStudent | PretrainedStudent = ScratchStudent(
            hidden_size=64, layers=2, heads=4, intermediate_size=176, rope_theta=100
        )
        self.batch = {"batch_size": 32, "accumulation": 1, "eval_batch_size": 100}
        self.optimizer = OptimizerSettings(
            name="muon", learning_rate=0.02, adamw_learning_rate=0.01
        )

    def _real_model(self, arguments: argparse.Namespace) -> None:
        self.teacher, self.max_length = arguments.model, 256
        table = read_table(arguments.data, arguments.rows)
        split = table.num_rows * 4 // 5
        self.train, self.validation = table.slice(0, split), table.slice(split)
        student = load_causal_lm(self.teacher, dtype="float32")
        layers = student.base_model.layers
        student.base_model.layers = torch.nn.ModuleList(list(layers)[::2])
        student.config.num_hidden_layers = len(student.base_model.layers)
        for place, layer in enumerate(student.base_model.layers):
            layer.self_attn.layer_idx = place
        if getattr(student.config, "layer_types", None):
            student.config.layer_types = student.config.layer_types[::2]
        save_model(student, self.folder / "init")
        self.init = PretrainedStudent(model=str(self.folder / "init"))
        self.batch = {"batch_size": 4, "accumulation": 2, "eval_batch_size": 4}
        self.optimizer = OptimizerSettings(name="adamw", learning_rate=1e-4)

    def codecs(self, kept: int) -> Codecs:
        """The contenders; ``kept`` is the head's size."""
        return {
            "hard": None,
            "dense": TopkTailSettings(top_k=len(self.tokenizer), top_p=1.0),
            f"top {kept}": TopkTailSettings(top_k=kept, top_p=1.0),
            f"top {kept}, top-p 0.98": TopkTailSettings(top_k=kept, top_p=0.98),
            "rskd 50": RskdSettings(samples=50),
        }

    def student(self, name: str, cache: Path | None, seed: int, temperature: float) -> Path:
        """Train one student; its folder."""
        out = self.folder / f"{name}-{seed}"
        request = TrainRequest(
            init=self.init,
            training=TrainingSettings(
                max_steps=self.steps,
                warmup_steps=max(1, self.steps // 30),
                eval_every=max(1, self.steps // 6),
                max_length=self.max_length,
                optimizer=self.optimizer,
                stopping=StoppingSettings(patience=self.steps),
                **self.batch,
            ),
            loss=LossSettings(alpha=0.2, temperature=temperature),
            tokenizer=self.teacher,
            train=self.train,
            validation=self.validation,
            cache=[cache] if cache else [],
            seed=seed,
            out=out,
            checkpoints=self.folder / "checkpoints",
        )
        train_student(request, nothing, nothing)
        return out

    def scores(self, student: Path) -> dict[str, float]:
        """Held-out figures of a student."""
        found = held_out(self.teacher, student, self.held_out, len(self.tokenizer))
        if self.test is not None:
            score = evaluate_model(
                student,
                EvaluationSettings(batch_size=64, max_gen_toks=40),
                self.test,
                nothing,
                nothing,
            )
            found["exact_match"] = score[0].value
        return found


@torch.inference_mode()
def held_out(
    teacher_dir: Path, student_dir: Path, rows: list[EncodedRow], vocab_size: int
) -> dict[str, float]:
    """Cross-entropy of the labels and KL(teacher ‖ student), nats per target token."""
    teacher, student = (load_causal_lm(one, dtype="float32") for one in (teacher_dir, student_dir))
    cross_entropy = divergence = 0.0
    count = 0
    for row in rows:
        ids_1L = torch.tensor([row.encoded.input_ids], device=teacher.device)
        targets = [t for t, target in enumerate(row.encoded.targets) if target]
        log_p, log_q = (
            model(input_ids=ids_1L)
            .logits[0, [t - 1 for t in targets], :vocab_size]
            .float()
            .log_softmax(-1)
            for model in (teacher, student)
        )
        cross_entropy -= float(log_q[range(len(targets)), ids_1L[0, targets]].sum())
        divergence += float((log_p.exp() * (log_p - log_q)).sum())
        count += len(targets)
    return {"cross_entropy": cross_entropy / count, "kl_to_teacher": divergence / count}


def quality(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Every contender's figures by seed, and the bytes of its cache per target."""
    world = World(arguments, folder)
    grid = tuple(sorted({1.0, arguments.temperature}))
    found: dict[str, Any] = {}
    for name, codec in world.codecs(arguments.kept).items():
        if codec is not None and codec.name == "rskd" and arguments.temperature != 1:
            continue
        if name in arguments.skip:
            continue
        path = folder / f"{name}.parquet" if codec else None
        entry: dict[str, Any] = {"runs": []}
        if codec is not None and path is not None:
            settings = CaptureSettings(codec=codec, temperatures=grid, max_length=world.max_length)
            capture_logits(
                world.teacher, world.train, settings, path, progress=nothing, count=nothing
            )
            entry["bytes_per_target"] = path.stat().st_size / LogitCache([path]).info.targets
        for seed in arguments.seeds:
            entry["runs"].append(
                world.scores(world.student(name, path, seed, arguments.temperature))
            )
        found[name] = entry
    return found


def table_of(found: dict[str, Any], reference: str) -> str:
    """Means over seeds ± standard error, then differences from ``reference`` at the same seed."""
    metrics = list(found[reference]["runs"][0])
    heads = [metric.replace("_", " ") for metric in metrics]
    heads = ["", "bytes per target", *heads, *(f"Δ {head}" for head in heads)]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for name, entry in found.items():
        size = f"{entry['bytes_per_target']:.1f}" if "bytes_per_target" in entry else ""
        values = {metric: [run[metric] for run in entry["runs"]] for metric in metrics}
        cells = [f"{mean_and_error(values[metric], '.4f')}" for metric in metrics]
        for metric in metrics:
            theirs = [run[metric] for run in found[reference]["runs"]]
            paired = [a - b for a, b in zip(values[metric], theirs, strict=True)]
            cells.append("" if name == reference else mean_and_error(paired, "+.4f"))
        lines.append(f"| {' | '.join([name, size, *cells])} |")
    return "\n".join(lines)


def mean_and_error(values: list[float], form: str) -> str:
    """The mean ± its standard error."""
    error = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else 0.0
    return f"{statistics.mean(values):{form}} ± {error:.4f}"


def main(options: list[str]) -> None:
    """Print the table; write the figures where ``--out`` says."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.logits quality")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--labelled", type=int, default=500)
    parser.add_argument("--teacher-steps", type=int, default=900)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--kept", type=int, default=100)
    parser.add_argument("--skip", nargs="*", default=[], help="contenders to leave out")
    parser.add_argument("--model", type=Path)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--rows", type=int, default=400)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args(options)
    if arguments.model is not None and arguments.data is None:
        parser.error("--model needs --data")
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as folder:
        found = quality(arguments, Path(folder))
    print(table_of(found, f"top {arguments.kept}"))
    if arguments.out is not None:
        arguments.out.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")
