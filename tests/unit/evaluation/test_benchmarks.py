"""The harness's own benchmarks on local rows in their formats; its own command gives the same."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import lm_eval.tasks
import pytest
import torch
import yaml

from angelshare.data.tokenizer import train_tokenizer
from angelshare.errors import AngelshareError
from angelshare.evaluation.harness import evaluate_model
from angelshare.evaluation.scores import Score, counted
from angelshare.evaluation.settings import EvaluationSettings
from angelshare.student.models import make_student, publish_model
from angelshare.student.settings import ScratchStudent

ROWS = Path(__file__).resolve().parents[2] / "data/benchmarks"
HARNESS_TASKS = Path(lm_eval.tasks.__file__).parent
SAMPLES = {
    "gsm8k_sample": ("gsm8k/gsm8k.yaml", "gsm8k", {"fewshot_split": "test"}),
    "ifeval_sample": ("ifeval/ifeval.yaml", "ifeval", {}),
    "arc_sample": ("arc/arc_easy.yaml", "arc", {}),
    "hellaswag_sample": ("hellaswag/hellaswag.yaml", "hellaswag", {}),
}
"""The real task's definition, and the rows it asks instead of the hub's."""


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tasks that are the harness's own in all but their data."""
    folder = tmp_path_factory.mktemp("tasks")
    for name, (real, rows, changes) in SAMPLES.items():
        task = {
            "include": str(HARNESS_TASKS / real),
            "task": name,
            "tag": None,
            "dataset_path": "json",
            "dataset_name": None,
            "dataset_kwargs": {"data_files": {"test": str(ROWS / f"{rows}.jsonl")}},
            "training_split": None,
            "validation_split": None,
            "test_split": "test",
            **changes,
        }
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(task))
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model with room for a few shots."""
    torch.set_num_threads(1)
    texts = [line for path in ROWS.glob("*.jsonl") for line in path.read_text().splitlines()]
    tokenizer = train_tokenizer(texts, 300, 1024)
    shape = ScratchStudent(hidden_size=64, layers=1, heads=2, intermediate_size=64)
    folder = tmp_path_factory.mktemp("model") / "random"
    publish_model(make_student(shape, tokenizer, 1024, seed=0), tokenizer, folder)
    return folder


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "datasets")


def scored(model: Path, tasks: Path, *asked: dict[str, object], **settings: object) -> list[Score]:
    evaluation = EvaluationSettings.model_validate(
        {"tasks": list(asked), "task_folder": str(tasks), "max_gen_toks": 8, **settings}
    )
    return evaluate_model(model, evaluation, None, lambda *_: None, lambda **_: None)


ASKED = (
    {"task": "gsm8k_sample", "few_shot": 2},
    {"task": "arc_sample", "chat_template": False},
    {"task": "hellaswag_sample", "chat_template": False, "limit": 1},
)


@pytest.fixture(scope="module")
def through_the_project(model: Path, tasks: Path) -> list[Score]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        return scored(model, tasks, *ASKED, batch_size=2)


@pytest.mark.parametrize("asked", ASKED[:2], ids=lambda task: task["task"])
def test_the_harness_command_gives_the_same_scores(
    through_the_project: list[Score],
    model: Path,
    tasks: Path,
    asked: dict[str, object],
    tmp_path: Path,
) -> None:
    command = [
        *(sys.executable, "-m", "lm_eval", "run", "--model", "hf", "--device", "cpu"),
        *("--model_args", f"pretrained={model}", "--tasks", asked["task"]),
        *("--include_path", str(tasks), "--batch_size", "2", "--gen_kwargs", "max_gen_toks=8"),
        *(() if asked.get("chat_template") is False else ("--apply_chat_template",)),
        *(("--num_fewshot", str(asked["few_shot"])) if "few_shot" in asked else ()),
        *("--output_path", str(tmp_path / "out")),
    ]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hub")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (report,) = (tmp_path / "out").rglob("results_*.json")
    theirs = json.loads(report.read_text())["results"][asked["task"]]
    ours = {
        f"{score.metric},{score.filter}": score
        for score in through_the_project
        if score.task == asked["task"]
    }
    names = {name for name in theirs if "," in name and "_stderr," not in name}
    assert set(ours) == names
    for name, score in ours.items():
        assert theirs[name] == score.value
        stderr = theirs[name.replace(",", "_stderr,")]
        assert score.stderr == (pytest.approx(stderr) if stderr != "N/A" else None)


def test_records_say_how_the_tasks_were_asked(through_the_project: list[Score]) -> None:
    by_name = {(score.task, score.metric, score.filter): score for score in through_the_project}
    gsm8k = by_name["gsm8k_sample", "exact_match", "strict-match"]
    assert (gsm8k.few_shot, gsm8k.samples, gsm8k.limited) == (2, 4, False)
    assert gsm8k.task_version == "3.0"
    assert gsm8k.harness.startswith("lm-evaluation-harness 0.4")
    assert gsm8k.harness.endswith("(transformers)")
    assert len(gsm8k.chat_template_sha256) == 64
    hellaswag = by_name["hellaswag_sample", "acc_norm", "none"]
    assert (hellaswag.samples, hellaswag.limited) == (1, True)
    assert hellaswag.chat_template_sha256 is None
    assert gsm8k.problems_sha256 != hellaswag.problems_sha256


def test_quality_counts_one_metric_of_each_task(through_the_project: list[Score]) -> None:
    records = [score.to_json() for score in through_the_project]
    usual = EvaluationSettings.model_validate({"tasks": list(ASKED)})
    assert counted(records, usual.tasks) == {
        "gsm8k_sample_exact_match_strict_match",
        "arc_sample_acc",
        "hellaswag_sample_acc",
    }
    chosen = [
        {"task": "gsm8k_sample", "filter": "flexible-extract"},
        {"task": "arc_sample", "metric": "acc_norm"},
    ]
    assert counted(records, EvaluationSettings.model_validate({"tasks": chosen}).tasks) == {
        "gsm8k_sample_exact_match_flexible_extract",
        "arc_sample_acc_norm",
        "hellaswag_sample_acc",
    }


def test_a_task_outside_quality_is_recorded_alone(through_the_project: list[Score]) -> None:
    records = [score.to_json() for score in through_the_project]
    asked = [*(dict(one) for one in ASKED[1:]), {"task": "gsm8k_sample", "in_quality": False}]
    settings = EvaluationSettings.model_validate({"tasks": asked})
    assert counted(records, settings.tasks) == {"arc_sample_acc", "hellaswag_sample_acc"}
    assert "gsm8k_sample" not in settings.counts
    plain = EvaluationSettings.model_validate({"tasks": [*asked[:-1], "gsm8k_sample"]})
    assert plain.identity() == settings.identity(), "nothing is evaluated again"
    with pytest.raises(ValueError, match="no task is in_quality"):
        EvaluationSettings.model_validate({"tasks": [{"task": "gsm8k", "in_quality": False}]})


def test_a_metric_that_is_not_there_is_named_before_a_model_is_loaded(tasks: Path) -> None:
    with pytest.raises(AngelshareError, match=r"arc_sample has no f1; .* are acc \(none\), acc_n"):
        scored(Path("no/model"), tasks, {"task": "arc_sample", "metric": "f1"})


def test_ifeval_checks_instructions(model: Path, tasks: Path) -> None:
    pytest.importorskip("langdetect")
    pytest.importorskip("immutabledict")
    scores = scored(model, tasks, {"task": "ifeval_sample"}, max_gen_toks=4)
    values = {score.metric: score for score in scores}
    assert values["prompt_level_strict_acc"].samples == 3
    # Of four tokens: no comma in them or one, and never 300 words.
    assert values["prompt_level_strict_acc"].value in (0, 1 / 3, 2 / 3)
    assert values["inst_level_loose_acc"].value in (0, 1 / 4, 2 / 4, 3 / 4)


def test_prefill_and_decode_are_phases_that_follow_each_other(model: Path, tasks: Path) -> None:
    events: list[str] = []

    @contextmanager
    def phase(name: str):
        events.append(f"+{name}")
        yield
        events.append(f"-{name}")

    settings = EvaluationSettings.model_validate(
        {
            "tasks": ["gsm8k_sample", {"task": "arc_sample"}],
            "task_folder": str(tasks),
            "few_shot": 0,
            "max_gen_toks": 3,
            "batch_size": 2,
        }
    )
    evaluate_model(model, settings, None, lambda *_: None, lambda **_: None, phase)
    batch = ["+prefill", "-prefill", "+decode", "-decode"]
    assert events == [*batch, *batch, "+score", "-score"]


def test_a_template_that_is_missing_is_named(model: Path, tasks: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    for path in model.iterdir():
        if path.suffix != ".jinja":
            (bare / path.name).write_bytes(path.read_bytes())
    config = json.loads((bare / "tokenizer_config.json").read_text())
    config.pop("chat_template", None)
    (bare / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(AngelshareError, match=r"has no chat template: set evaluation\.chat"):
        scored(bare, tasks, {"task": "gsm8k_sample"})


def test_settings_of_one_task_and_of_all(tasks: Path) -> None:
    one = EvaluationSettings.model_validate({"tasks": ["gsm8k", "arc_easy"], "few_shot": 3})
    other = EvaluationSettings.model_validate(
        {"tasks": [{"task": "gsm8k", "few_shot": 3}, {"task": "arc_easy", "few_shot": 3}]}
    )
    assert one.identity() == other.identity()
    assert one.identity()["tasks"][0]["few_shot"] == 3
    with pytest.raises(ValueError, match="tasks and judged name gsm8k twice"):
        EvaluationSettings.model_validate({"tasks": ["gsm8k", {"task": "gsm8k"}]})


VLLM_SCRIPT = """
import json, sys
from pathlib import Path
from angelshare.evaluation.harness import evaluate_model
from angelshare.evaluation.settings import EvaluationSettings
settings = EvaluationSettings.model_validate_json(sys.argv[2])
counts = {}
def count(**more):
    for name, amount in more.items():
        counts[name] = counts.get(name, 0) + amount
scores = evaluate_model(Path(sys.argv[1]), settings, None, lambda *_: None, count)
print("\\n" + json.dumps([[s.to_json() for s in scores], counts]))
"""


def test_vllm_gives_the_scores_of_transformers(
    through_the_project: list[Score], model: Path, tasks: Path, tmp_path: Path
) -> None:
    """In a process of its own: an engine and transformers models do not share one."""
    pytest.importorskip("vllm")
    settings = EvaluationSettings.model_validate(
        {
            "tasks": list(ASKED),
            "task_folder": str(tasks),
            "max_gen_toks": 8,
            "engine": "vllm",
            "batch_size": 4,
        }
    )
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hub")}
    done = subprocess.run(
        [sys.executable, "-c", VLLM_SCRIPT, str(model), settings.model_dump_json()],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    scores, counts = json.loads(done.stdout.splitlines()[-1])
    ours = [(s.task, s.metric, s.filter, s.value) for s in through_the_project]
    assert [(s["task"], s["metric"], s["filter"], s["value"]) for s in scores] == ours
    assert all(s["harness"].endswith("(vllm)") for s in scores)
    assert counts["prompt"] > 0
    assert counts["evaluated"] > counts["prompt"] + counts["generated"]
