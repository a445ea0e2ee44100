"""Scores through lm-evaluation-harness: a model of known answers, and the harness's own command."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from lm_eval.models.huggingface import HFLM

from angelshare.data.problems import make_dataset
from angelshare.data.sequences import prompt_ids
from angelshare.data.settings import WordProblems
from angelshare.data.tables import in_splits
from angelshare.data.tokenizer import train_tokenizer
from angelshare.errors import AngelshareError
from angelshare.evaluation.harness import evaluate_model, refuse_unknown
from angelshare.evaluation.scores import Score
from angelshare.evaluation.settings import TASKS_FOLDER, EvaluationSettings
from angelshare.student.models import make_student, publish_model
from angelshare.student.settings import ScratchStudent
from angelshare.teacher.models import load_tokenizer

PROBLEMS = 20


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def test_split() -> pa.Table:
    table = make_dataset(WordProblems(labelled=40, unlabelled=0, validation=1, test=PROBLEMS))
    return in_splits(table, ["test"])


@pytest.fixture(scope="module")
def model_folder(test_split: pa.Table, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained model."""
    texts = [m["content"] for messages in test_split["messages"].to_pylist() for m in messages]
    tokenizer = train_tokenizer(texts, 140, 128)
    shape = ScratchStudent(hidden_size=16, layers=1, heads=2, intermediate_size=16)
    folder = tmp_path_factory.mktemp("model") / "untrained"
    publish_model(make_student(shape, tokenizer, 128, seed=0), tokenizer, folder)
    return folder


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch, test_split: pa.Table) -> Callable[[list[str]], None]:
    """Let the model say given texts to the problems, in their order."""

    def say(texts: list[str]) -> None:
        questions = [messages[0]["content"] for messages in test_split["messages"].to_pylist()]
        spoken = dict(zip(questions, texts, strict=True))

        def generate(self: HFLM, context: torch.Tensor, *_: object, **__: object) -> torch.Tensor:
            rows = []
            for row in context:
                text = self.tokenizer.decode(row, skip_special_tokens=True)
                rows.append([*self.tok_encode(spoken[text]), self.eot_token_id])
            width = max(map(len, rows))
            padded = [row + [self.tokenizer.pad_token_id] * (width - len(row)) for row in rows]
            return torch.cat([context, torch.tensor(padded)], 1)

        monkeypatch.setattr("lm_eval.models.huggingface.HFLM._model_generate", generate)

    return say


def evaluate(
    model: Path, dataset: pa.Table, **changes: object
) -> tuple[list[Score], dict[str, int]]:
    totals: dict[str, int] = {}

    def count(**amounts: int) -> None:
        for name, amount in amounts.items():
            totals[name] = totals.get(name, 0) + amount

    settings = EvaluationSettings.model_validate({"batch_size": 7, **changes})
    return evaluate_model(model, settings, dataset, lambda *_: None, count), totals


def test_exact_match_is_on_the_number_after_the_hash(
    model_folder: Path, test_split: pa.Table, answers: Callable[[list[str]], None]
) -> None:
    worked = [messages[1]["content"] for messages in test_split["messages"].to_pylist()]
    final = [text.rsplit("#", 1)[1] for text in worked]
    said = list(worked)
    said[0] = f"1+1=3;#{final[0]}"
    said[1] = f"#{int(final[1]) + 1}"
    said[2] = final[2]
    said[3] = f"#{final[3]}0"
    said[4] = ""
    answers(said)
    (score,), totals = evaluate(model_folder, test_split)
    right = PROBLEMS - 4
    assert score == Score(
        task="word_problems",
        metric="exact_match",
        filter="after-hash",
        value=right / PROBLEMS,
        stderr=pytest.approx(math.sqrt(right / PROBLEMS * 4 / PROBLEMS / (PROBLEMS - 1))),
        higher_is_better=True,
        samples=PROBLEMS,
        task_version="1.0",
        few_shot=0,
        chat_template_sha256=hashlib.sha256(
            load_tokenizer(model_folder).chat_template.encode()
        ).hexdigest(),
        problems_sha256=score.problems_sha256,
        batch_size=7,
        harness=score.harness,
    )
    tokenizer = load_tokenizer(model_folder)
    prompts = sum(len(prompt_ids(tokenizer, m)) for m in test_split["messages"].to_pylist())
    generated = sum(
        len(tokenizer(text, add_special_tokens=False)["input_ids"]) + 1 for text in said
    )
    assert totals == {
        "prompt": prompts,
        "generated": generated,
        "evaluated": prompts + generated,
        "samples": PROBLEMS,
    }


def test_the_score_does_not_depend_on_the_batch_size(
    model_folder: Path, test_split: pa.Table
) -> None:
    ((one,), tokens), ((other,), same_tokens) = (
        evaluate(model_folder, test_split, batch_size=size) for size in (1, PROBLEMS)
    )
    assert one == dataclasses.replace(other, batch_size=1)
    assert tokens == same_tokens


def test_the_harness_command_gives_the_same_score(
    model_folder: Path, test_split: pa.Table, tmp_path: Path
) -> None:
    """On a dataset whose answers are what the model says to half of the questions."""
    rows = test_split.to_pylist()
    for number, row in enumerate(rows):
        row["messages"][1]["content"] = f"#{number}"
    answered = pa.Table.from_pylist(rows, schema=test_split.schema)
    pq.write_table(answered, tmp_path / "test.parquet")
    (score,), _ = evaluate(model_folder, answered)
    command = [
        *(sys.executable, "-m", "lm_eval", "run", "--model", "hf", "--device", "cpu"),
        *("--model_args", f"pretrained={model_folder}", "--tasks", "word_problems"),
        *("--include_path", str(TASKS_FOLDER), "--batch_size", "7", "--apply_chat_template"),
        *("--metadata", json.dumps({"data_file": str(tmp_path / "test.parquet")})),
        *("--output_path", str(tmp_path / "out"), "--log_samples"),
    ]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hub")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (report,) = (tmp_path / "out").rglob("results_*.json")
    theirs = json.loads(report.read_text())["results"]["word_problems"]
    assert theirs["exact_match,after-hash"] == score.value
    assert theirs["exact_match_stderr,after-hash"] == pytest.approx(score.stderr)


def test_a_limit_asks_only_the_first_problems(model_folder: Path, test_split: pa.Table) -> None:
    (score,), totals = evaluate(model_folder, test_split, limit=5, max_gen_toks=3)
    assert score.samples == totals["samples"] == 5
    assert totals["generated"] <= 5 * 3


def test_unknown_tasks_and_missing_problems_are_named(
    model_folder: Path, test_split: pa.Table
) -> None:
    with pytest.raises(AngelshareError, match="no task 'gsm9k'"):
        evaluate(model_folder, test_split, tasks=["gsm9k"])
    with pytest.raises(AngelshareError, match="word_problems asks a dataset's test split"):
        evaluate(model_folder, test_split.slice(0, 0))


def test_prompts_are_never_cut(model_folder: Path, test_split: pa.Table) -> None:
    with pytest.raises(AngelshareError, match=r"a prompt has \d+ tokens, .* room for 8 before"):
        evaluate(model_folder, test_split, max_gen_toks=120)


def test_prefill_and_decoding_are_marked_batch_by_batch(
    model_folder: Path, test_split: pa.Table
) -> None:
    events: list[str] = []

    @contextmanager
    def phase(name: str) -> Iterator[None]:
        events.append(f"+{name}")
        yield
        events.append(f"-{name}")

    settings = EvaluationSettings.model_validate({"batch_size": 10, "max_gen_toks": 8})
    evaluate_model(
        model_folder, settings, test_split, lambda *_: None, lambda **_: None, phase=phase
    )
    assert events == ["+prefill", "-prefill", "+decode", "-decode"] * (PROBLEMS // 10)


def test_a_task_that_the_harness_lacks_is_refused_before_anything_runs(tmp_path: Path) -> None:
    (tmp_path / "here.yaml").touch()
    names = ("word_problems", "here", "gsm9k")
    settings = EvaluationSettings.model_validate(
        {"tasks": [{"task": name} for name in names], "task_folder": str(tmp_path)}
    )
    assert settings.harness_tasks == ["gsm9k"]
    with pytest.raises(AngelshareError, match="Did you mean 'gsm8k'"):
        refuse_unknown(EvaluationSettings.model_validate({"tasks": [{"task": "gsm9k"}]}))
