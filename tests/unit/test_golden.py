"""What each stage makes is tied to its version.

If one of these tests fails, the meaning of a stage's output changed: raise its number in
`angelshare.recipes.STAGE_VERSIONS`, so that no store confuses the two, then write the new values
with `python -m tests.unit.test_golden`. If the meaning did not change, the code is wrong.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from pathlib import Path

import pytest

from angelshare.recipes import STAGE_VERSIONS

GOLDEN = Path(__file__).resolve().parents[1] / "data/golden.json"
BENCHMARKS = GOLDEN.with_name("benchmarks")
DIGITS = 12
TOLERANCE = 2e-3
"""Processors round differently; meanings do not differ by so little."""


def quiet(*_, **__):
    """Progress and counts that nobody reads."""


def text_digest(value) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:DIGITS]


def fingerprints(folder: Path) -> dict[str, dict[str, float | str]]:
    """A few numbers and digests of what each stage makes from fixed, tiny inputs."""
    import pyarrow.parquet as pq

    from angelshare.data.problems import make_dataset
    from angelshare.data.settings import TokenizerSettings, WordProblems
    from angelshare.data.tables import in_splits
    from angelshare.data.tokenizer import problem_tokenizer, save_tokenizer, tokenizer_digest
    from angelshare.evaluation.harness import evaluate_model
    from angelshare.evaluation.judges.asking import Reply
    from angelshare.evaluation.judges.mt_bench_101 import MtBench101
    from angelshare.evaluation.judges.settings import MtBench101Settings
    from angelshare.evaluation.settings import EvaluationSettings
    from angelshare.student.requests import TrainRequest
    from angelshare.student.settings import (
        LossSettings,
        OptimizerSettings,
        ScratchStudent,
        TrainingSettings,
    )
    from angelshare.student.train import train_student
    from angelshare.teacher.cache import LogitCache
    from angelshare.teacher.demo import train_demo_teacher
    from angelshare.teacher.generate import generate_corpus
    from angelshare.teacher.logits import capture_logits
    from angelshare.teacher.settings import (
        CaptureSettings,
        DecodingSettings,
        DemoTeacher,
        StatesCapture,
        StatesSettings,
        TopkTailSettings,
    )
    from angelshare.teacher.state_capture import capture_states
    from angelshare.teacher.states import StateCache

    problems = WordProblems(seed=3, labelled=24, unlabelled=8, validation=8, test=8)
    table = make_dataset(problems)
    tokenizer = problem_tokenizer(TokenizerSettings(), problems)
    save_tokenizer(tokenizer, folder / "tokenizer")
    teacher = train_demo_teacher(
        DemoTeacher(
            problems=240,
            steps=6,
            batch_size=8,
            hidden_size=32,
            intermediate_size=64,
            layers=1,
            heads=2,
            warmup_steps=1,
        ),
        problems,
        folder / "tokenizer",
        folder / "teacher",
        checkpoints=folder / "checkpoints",
        progress=quiet,
        count=quiet,
    )
    train = in_splits(table, ["train"])
    capture_logits(
        folder / "teacher",
        train,
        CaptureSettings(
            codec=TopkTailSettings(top_k=4, top_p=1.0), temperatures=(1.0, 2.0), max_length=64
        ),
        folder / "logits.parquet",
        progress=quiet,
        count=quiet,
    )
    cached = LogitCache([folder / "logits.parquet"]).row(0)
    for name, choice in (
        ("states", StatesSettings(layers=(0, 1), fraction=0.5, format="int8")),
        ("means", StatesSettings(positions="mean_of_tokens")),
    ):
        capture_states(
            folder / "teacher",
            train,
            StatesCapture.of(choice, CaptureSettings(max_length=64)),
            folder / f"{name}.parquet",
            progress=quiet,
            count=quiet,
        )
    states = StateCache([folder / "states.parquet"]).row(0)
    means = StateCache([folder / "means.parquet"]).row(0)
    generate_corpus(
        folder / "teacher",
        train,
        DecodingSettings(max_new_tokens=6),
        folder / "corpus.parquet",
        progress=quiet,
        count=quiet,
    )
    corpus = pq.read_table(folder / "corpus.parquet").to_pylist()
    student = train_student(
        TrainRequest(
            init=ScratchStudent(hidden_size=16, layers=1, heads=2, intermediate_size=32),
            training=TrainingSettings(
                max_steps=6,
                warmup_steps=1,
                batch_size=4,
                accumulation=2,
                eval_every=3,
                max_length=64,
                optimizer=OptimizerSettings(learning_rate=1e-2),
            ),
            loss=LossSettings(temperature=2.0),
            tokenizer=folder / "tokenizer",
            train=train,
            validation=in_splits(table, ["validation"]),
            cache=[folder / "logits.parquet"],
            seed=1,
            out=folder / "student",
            checkpoints=folder / "student-checkpoints",
        ),
        quiet,
        quiet,
    )
    scores = evaluate_model(
        folder / "teacher",
        EvaluationSettings(batch_size=4),
        in_splits(table, ["test"]),
        quiet,
        quiet,
    )
    evaluation = {
        "records": text_digest(
            [[s.task, s.metric, s.filter, s.samples, s.task_version, s.few_shot] for s in scores]
        ),
        "value": scores[0].value,
    }
    benchmark = MtBench101(
        MtBench101Settings(
            benchmark="mt_bench_101",
            judge="",
            data=str(BENCHMARKS / "mt_bench_101.jsonl"),
            prompts=str(BENCHMARKS / "mt_bench_101_prompts.py"),
        )
    )
    asked_of = benchmark.prompts().to_pylist()
    rows = [
        {**row, "finish_reason": "stop", "messages": [{"role": "assistant", "content": row["id"]}]}
        for row in asked_of
    ]
    asked, _ = benchmark.questions(rows)
    verdicts = {turn.id: Reply(text=f"[[{turn.number + 4}]]") for turn in benchmark.turns}
    judged = benchmark.scores(rows, lambda _: verdicts)
    return {
        "answers": {"prompts": text_digest(asked_of)},
        "judgements": {
            "questions": text_digest([one.messages for one in asked]),
            "value": judged[0].value,
        },
        "dataset": {"rows": text_digest(table.to_pylist())},
        "tokenizer": {"digest": tokenizer_digest(tokenizer)[:DIGITS]},
        "model": {"last_loss": teacher.last_loss},
        "logits": {
            "tokens": cached.tokens_sha256.hex()[:DIGITS],
            "logits": float(cached.logits.sum()),
            "log_partition": float(cached.log_partition.sum()),
            "gold_logprob": float(cached.gold_logprob.sum()),
            "entropy": float(cached.entropy.sum()),
        },
        "states": {
            "tokens": states.tokens_sha256.hex()[:DIGITS],
            "chosen": text_digest(states.chosen.tolist()),
            "size": float(abs(states.vectors()).sum()),
            "mean_size": float(abs(means.vectors()).sum()),
        },
        "corpus": {"answers": text_digest([row["messages"] for row in corpus])},
        "student": {"cross_entropy": student.cross_entropy, "tokens": student.trained_tokens},
        "scores": evaluation,
        "evaluation": evaluation,
    }


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    import torch

    torch.set_num_threads(1)
    return fingerprints(tmp_path_factory.mktemp("golden"))


@pytest.mark.parametrize("stage", sorted(STAGE_VERSIONS))
def test_a_change_of_meaning_is_a_new_version(found, stage):
    golden = json.loads(GOLDEN.read_text())[stage]
    assert golden.pop("version") == STAGE_VERSIONS[stage], "write the new version's values"
    assert found[stage].keys() == golden.keys()
    for name, value in golden.items():
        wanted = value if isinstance(value, str) else pytest.approx(value, rel=TOLERANCE)
        assert found[stage][name] == wanted, f"{stage}.{name}: see this file's first lines"


def main() -> None:
    """Write the values of the current code."""
    with tempfile.TemporaryDirectory() as folder:
        values = fingerprints(Path(folder))
    versioned = {stage: {"version": STAGE_VERSIONS[stage], **values[stage]} for stage in values}
    GOLDEN.write_text(json.dumps(versioned, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
